//! Clients: their connections, TLS, and which configuration counts for them.
//!
//! Owns: limits of clients, the sites as they were last told, and that a change of them ends no connection.
//! Refuses: binding ports: listeners are handed over.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use types::ingress::Host;
use types::status::SiteStatus;

use crate::backends::{Backend, Identity, NoConnection};
use crate::hello::{self, Replayed, UNRECOGNISED_NAME};
use crate::line;
use crate::pace::Paces;
use crate::proxy;
use crate::stock::Stock;
use crate::table::{Stand, Table, choose};
use crate::wire::{SiteConfig, TlsConfig};

/// Clients that are connected at once: each may take its two buffers, and the process has so many descriptors for both sides.
const CLIENTS_MAX: u64 = 4096;
/// Of one address: nobody takes all of them.
const CLIENTS_OF_ADDRESS_MAX: usize = 512;
/// Requests and tunnels of one address that are under way at once.
const REQUESTS_OF_ADDRESS_MAX: usize = 512;
/// How long a client may take to say whom it wants, by TLS or in the head of a request.
const HEAD_WAIT: Duration = Duration::from_secs(15);
/// Most bytes of a head, and of what is read ahead of the slower side.
const BUFFER_MAX: usize = 32 << 10;
/// Most fields of a head.
const FIELDS_MAX: usize = 128;
/// Requests at once on one connection of HTTP/2.
const STREAMS_MAX: u32 = 64;
/// Bytes that a client may send ahead on all of them together.
const WINDOW: u32 = 256 << 10;
/// A connection of HTTP/2 on which nothing is under way for so long is closed, whatever answers pings there.
const QUIET_MAX: Duration = Duration::from_secs(75);
/// How often that is looked at.
const LOOK: Duration = Duration::from_secs(15);
/// A connection of HTTP/2 on which nothing comes is asked whether anybody is there.
const PING: Duration = Duration::from_secs(30);
/// Between two attempts to accept where there are no descriptors left: nothing tells when there are.
const PAUSE: Duration = Duration::from_millis(100);
/// Before the token that an authority of certificates asks for (RFC 8555 section 8.3).
const PROOF_PATH: &str = "/.well-known/acme-challenge/";
/// What TLS offers, the better first.
const PROTOCOLS: [&[u8]; 2] = [b"h2", b"http/1.1"];

pub(crate) struct SiteRoute {
    pub(crate) path: String,
    pub(crate) backends: Vec<Arc<Backend>>,
}

enum Tls {
    None,
    Passthrough,
    Own(Own),
    Broken(String),
}

/// A certificate in use, and what it was made from: with the same one clients resume their sessions.
#[derive(Clone)]
struct Own {
    config: Arc<ServerConfig>,
    certificate: String,
    key: String,
}

/// What is served under a name.
pub(crate) struct Site {
    whose: String,
    tls: Tls,
    pub(crate) routes: Vec<SiteRoute>,
    named: BTreeMap<String, Arc<Backend>>,
    turn: AtomicUsize,
    answered: Arc<[AtomicU64; 5]>,
    /// For authorities of certificates, by token.
    proofs: BTreeMap<String, String>,
}

impl Site {
    pub(crate) fn has_tls(&self) -> bool {
        !matches!(self.tls, Tls::None)
    }

    /// What is answered to an authority that asks for this path in the clear. While it may, the path is no machine's.
    pub(crate) fn proof(&self, method: &Method, path: &str) -> Option<&str> {
        let token = path.strip_prefix(PROOF_PATH)?;
        let asks = matches!(*method, Method::GET | Method::HEAD);
        let proof = self.proofs.get(token).filter(|_| asks)?;
        Some(proof)
    }

    pub(crate) fn turn(&self) -> usize {
        self.turn.fetch_add(1, Ordering::Relaxed)
    }

    pub(crate) fn count(&self, status: StatusCode) {
        let hundreds = usize::from(status.as_u16() / 100);
        if let Some(count) = self.answered.get(hundreds.wrapping_sub(1)) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn status(&self) -> SiteStatus {
        let health =
            |(name, backend): (&String, &Arc<Backend>)| (name.clone(), backend.health().shown());
        let count = |at: usize| self.answered[at].load(Ordering::Relaxed);
        SiteStatus {
            backends: self.named.iter().map(health).collect(),
            // Which node a back end is on is nothing that is known here.
            nodes: BTreeMap::new(),
            message: match &self.tls {
                Tls::Broken(why) => Some(why.clone()),
                Tls::None | Tls::Passthrough | Tls::Own(_) => None,
            },
            answered: std::array::from_fn(count),
            // The node knows.
            certificate: None,
        }
    }
}

/// A client's connection counts until this goes.
#[derive(Clone)]
pub(crate) struct Client {
    pub(crate) address: IpAddr,
    seat: Arc<Seat>,
}

impl Client {
    /// A request begins. `None`: too many of its address are under way.
    pub(crate) fn ask(&self) -> Option<Asking> {
        let mut clients = lock(&self.seat.shared.clients);
        let taken = clients.entry(self.seat.origin).or_default();
        if taken.requests >= REQUESTS_OF_ADDRESS_MAX {
            return None;
        }
        taken.requests += 1;
        self.seat.under_way.fetch_add(1, Ordering::Relaxed);
        Some(Asking(self.seat.clone()))
    }
}

/// A request is under way until this goes.
pub(crate) struct Asking(Arc<Seat>);

impl Drop for Asking {
    fn drop(&mut self) {
        if let Some(taken) = lock(&self.0.shared.clients).get_mut(&self.0.origin) {
            taken.requests -= 1;
        }
        *lock(&self.0.since) = Instant::now();
        self.0.under_way.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What one origin has of the proxy.
#[derive(Debug, Default)]
struct Taken {
    connections: usize,
    requests: usize,
}

struct Seat {
    origin: IpAddr,
    shared: Arc<Shared>,
    /// Requests on this connection.
    under_way: AtomicUsize,
    /// When the last of them ended, or the connection began.
    since: Mutex<Instant>,
}

impl Seat {
    fn is_quiet(&self) -> bool {
        self.under_way.load(Ordering::Relaxed) == 0 && lock(&self.since).elapsed() > QUIET_MAX
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut clients = lock(&self.shared.clients);
        if let Some(taken) = clients.get_mut(&self.origin) {
            taken.connections -= 1;
            if taken.connections == 0 {
                clients.remove(&self.origin);
            }
        }
        self.shared.connected.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Whose limits count for an address: one household or machine has 2^64 addresses of IPv6.
fn origin(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(six) => Ipv6Addr::from_bits(six.to_bits() & (!0 << 64)).into(),
    }
}

/// What all connections see. Each lock is held for a moment, by tasks of several threads.
pub(crate) struct Shared {
    table: Mutex<Arc<Table<Site>>>,
    backends: Mutex<BTreeMap<Identity, Arc<Backend>>>,
    clients: Mutex<BTreeMap<IpAddr, Taken>>,
    handshakes: Mutex<Paces>,
    stock: Arc<Stock>,
    connected: AtomicU64,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing is behind it that a panic could leave half done.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    fn table(&self) -> Arc<Table<Site>> {
        lock(&self.table).clone()
    }

    pub(crate) fn site(&self, host: &Host) -> Option<Arc<Site>> {
        self.table().get(host).cloned()
    }

    /// Whether an address may begin one more handshake, which costs the most of all that a stranger can ask for.
    fn may_shake_hands(&self, client: &Client) -> bool {
        let now = Instant::now();
        lock(&self.handshakes).take(client.seat.origin, now)
    }

    fn seat(self: &Arc<Self>, address: IpAddr) -> Option<Client> {
        let origin = origin(address);
        let mut clients = lock(&self.clients);
        let connections = clients.get(&origin).map_or(0, |taken| taken.connections);
        let all = self.connected.load(Ordering::Relaxed);
        if connections >= CLIENTS_OF_ADDRESS_MAX || all >= CLIENTS_MAX {
            return None;
        }
        clients.entry(origin).or_default().connections += 1;
        self.connected.fetch_add(1, Ordering::Relaxed);
        let seat = Seat {
            origin,
            shared: self.clone(),
            under_way: AtomicUsize::new(0),
            since: Mutex::new(Instant::now()),
        };
        Some(Client {
            address,
            seat: Arc::new(seat),
        })
    }
}

/// The proxy. A copy is the same one.
#[derive(Clone)]
pub struct Ingress {
    shared: Arc<Shared>,
}

/// A listening socket that was handed over. Within a runtime.
pub fn listener(socket: OwnedFd) -> io::Result<TcpListener> {
    let listener = std::net::TcpListener::from(socket);
    listener.set_nonblocking(true)?;
    TcpListener::from_std(listener)
}

impl Ingress {
    pub fn new(stock: Arc<Stock>) -> Self {
        let shared = Shared {
            table: Mutex::default(),
            backends: Mutex::default(),
            clients: Mutex::default(),
            handshakes: Mutex::default(),
            stock,
            connected: AtomicU64::new(0),
        };
        Self {
            shared: Arc::new(shared),
        }
    }

    /// From now on this is served and nothing else. Connections go on; each next request on them finds it. Within a runtime.
    pub fn apply(&self, configs: Vec<SiteConfig>) {
        let shared = &self.shared;
        let networks: Vec<&str> = configs
            .iter()
            .flat_map(|config| config.backends.values())
            .map(|place| place.network.as_str())
            .collect();
        shared.stock.retain(networks);
        let before = shared.table();
        let mut backends = lock(&shared.backends);
        let mut kept = BTreeMap::new();
        let mut of = |identity: Identity| {
            let held = backends.get(&identity).cloned();
            let held = held.unwrap_or_else(|| Backend::new(identity.clone(), shared.stock.clone()));
            kept.entry(identity).or_insert(held).clone()
        };
        let site = |config: SiteConfig| {
            let host = config.host.clone();
            let site = build(config, before.get(&host).map(Arc::as_ref), &mut of);
            (host, site)
        };
        let table = Table::new(configs.into_iter().map(site).collect::<Vec<_>>());
        *backends = kept;
        *lock(&shared.table) = Arc::new(table);
    }

    pub fn statuses(&self) -> Vec<(Host, SiteStatus)> {
        let table = self.shared.table();
        let of = |(host, site): (&Host, &Arc<Site>)| (host.clone(), site.status());
        table.iter().map(of).collect()
    }

    /// Serves whoever connects. Never returns.
    pub async fn accept(self, listener: TcpListener, secure: bool) {
        loop {
            let (stream, from) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    log::debug!("accept a client: {error}");
                    tokio::time::sleep(PAUSE).await;
                    continue;
                }
            };
            let Some(client) = self.shared.seat(address(from)) else {
                continue;
            };
            let shared = self.shared.clone();
            tokio::spawn(async move {
                let served = match secure {
                    true => by_tls(shared, client, stream).await,
                    false => {
                        quiet(&stream);
                        http(shared, client, None, TokioIo::new(stream), Version::One).await;
                        Ok(())
                    }
                };
                // Who it is and what went wrong is the client's to say: strangers do not write our log.
                if let Err(error) = served {
                    log::debug!("serve a client: {error}");
                }
            });
        }
    }
}

fn address(from: SocketAddr) -> IpAddr {
    from.ip().to_canonical()
}

fn quiet(stream: &TcpStream) {
    let set = stream.set_nodelay(true);
    if let Err(error) = set.and_then(|()| line::watch(stream)) {
        log::debug!("set up a client's connection: {error}");
    }
}

fn build(
    config: SiteConfig,
    before: Option<&Site>,
    of: &mut impl FnMut(Identity) -> Arc<Backend>,
) -> Site {
    let named: BTreeMap<String, Arc<Backend>> = config
        .backends
        .into_iter()
        .map(|(name, place)| {
            let identity = Identity {
                host: config.host.clone(),
                place,
                check: config.health.clone(),
            };
            (name, of(identity))
        })
        .collect();
    let route = |(path, names): (String, Vec<String>)| SiteRoute {
        path,
        backends: names
            .iter()
            .filter_map(|name| named.get(name).cloned())
            .collect(),
    };
    let before = before.filter(|before| before.whose == config.whose);
    let tls = match config.tls {
        None => Tls::None,
        Some(TlsConfig::Passthrough) => Tls::Passthrough,
        Some(TlsConfig::Broken { why }) => Tls::Broken(why),
        Some(TlsConfig::Own { certificate, key }) => {
            own(certificate, key, before.map(|site| &site.tls))
        }
    };
    Site {
        whose: config.whose,
        tls,
        routes: config.routes.into_iter().map(route).collect(),
        named,
        turn: AtomicUsize::new(0),
        answered: before.map_or_else(Arc::default, |before| before.answered.clone()),
        proofs: config.proofs,
    }
}

fn own(certificate: String, key: String, before: Option<&Tls>) -> Tls {
    if let Some(Tls::Own(own)) = before
        && (&own.certificate, &own.key) == (&certificate, &key)
    {
        return Tls::Own(own.clone());
    }
    match terminate(&certificate, &key) {
        Ok(config) => Tls::Own(Own {
            config,
            certificate,
            key,
        }),
        Err(why) => Tls::Broken(format!("its certificate cannot be used: {why}")),
    }
}

/// TLS with this chain and key.
fn terminate(certificate: &str, key: &str) -> Result<Arc<ServerConfig>, String> {
    let chain: Result<Vec<CertificateDer<'static>>, _> =
        CertificateDer::pem_slice_iter(certificate.as_bytes()).collect();
    let chain = chain.map_err(|error| format!("the chain is not PEM: {error}"))?;
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes());
    let key = key.map_err(|error| format!("the key is not PEM: {error}"))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(|error| error.to_string())?;
    config.alpn_protocols = PROTOCOLS.map(<[u8]>::to_vec).to_vec();
    Ok(Arc::new(config))
}

async fn by_tls(shared: Arc<Shared>, client: Client, mut stream: TcpStream) -> io::Result<()> {
    quiet(&stream);
    let late = |_| io::Error::from(io::ErrorKind::TimedOut);
    let read = tokio::time::timeout(HEAD_WAIT, hello::read(&mut stream)).await;
    let hello = read.map_err(late)??;
    let known = hello
        .host
        .and_then(|host| Some((shared.site(&host)?, host)));
    let Some((site, host)) = known else {
        return stream.write_all(&UNRECOGNISED_NAME).await;
    };
    match &site.tls {
        Tls::None | Tls::Broken(_) => stream.write_all(&UNRECOGNISED_NAME).await,
        Tls::Passthrough => through(&site, stream, &hello.bytes).await,
        // Without a word: each would cost what a handshake does not.
        Tls::Own(_) if !shared.may_shake_hands(&client) => Ok(()),
        Tls::Own(own) => {
            let replayed = Replayed {
                bytes: hello.bytes,
                at: 0,
                stream,
            };
            let accepted = TlsAcceptor::from(own.config.clone()).accept(replayed);
            let stream = tokio::time::timeout(HEAD_WAIT, accepted)
                .await
                .map_err(late)??;
            let version = match stream.get_ref().1.alpn_protocol() {
                Some(b"h2") => Version::Two,
                Some(_) | None => Version::One,
            };
            http(shared, client, Some(host), TokioIo::new(stream), version).await;
            Ok(())
        }
    }
}

/// Bytes as they are, to a machine that speaks TLS itself.
async fn through(site: &Site, mut client: TcpStream, hello: &[u8]) -> io::Result<()> {
    let backends = site.routes.first().map_or(&[][..], |route| &route.backends);
    let mut tried = vec![false; backends.len()];
    loop {
        let stand = |(backend, tried): (&Arc<Backend>, &bool)| Stand {
            usable: backend.health().is_usable(),
            busy: backend.busy(),
            tried: *tried,
        };
        let stands: Vec<Stand> = backends.iter().zip(&tried).map(stand).collect();
        let Some(at) = choose(&stands, site.turn()) else {
            site.count(StatusCode::SERVICE_UNAVAILABLE);
            return Ok(());
        };
        let busy = backends[at].begin();
        tried[at] = true;
        match backends[at].connect().await {
            Err(NoConnection::NoSocket) => {}
            Err(NoConnection::Refused) => backends[at].found(false),
            Ok(mut machine) => {
                site.count(StatusCode::OK);
                machine.write_all(hello).await?;
                tokio::io::copy_bidirectional(&mut client, &mut machine).await?;
                drop(busy);
                return Ok(());
            }
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Version {
    One,
    Two,
}

async fn http<S>(
    shared: Arc<Shared>,
    client: Client,
    begun: Option<Host>,
    stream: TokioIo<S>,
    version: Version,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let seat = client.seat.clone();
    let service = service_fn(move |request: Request<Incoming>| {
        let answer = proxy::answer(shared.clone(), client.clone(), begun.clone(), request);
        async { Ok::<_, std::convert::Infallible>(answer.await) }
    });
    let served = match version {
        Version::One => {
            http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD_WAIT)
                .max_buf_size(BUFFER_MAX)
                .max_headers(FIELDS_MAX)
                .serve_connection(stream, service)
                .with_upgrades()
                .await
        }
        Version::Two => {
            let bytes = u32::try_from(BUFFER_MAX).expect("it is small");
            let connection = http2::Builder::new(TokioExecutor::new())
                .timer(TokioTimer::new())
                .keep_alive_interval(PING)
                .max_concurrent_streams(STREAMS_MAX)
                .max_header_list_size(bytes)
                .max_send_buf_size(BUFFER_MAX)
                .initial_stream_window_size(bytes)
                .initial_connection_window_size(WINDOW)
                .serve_connection(stream, service);
            until_quiet(connection, &seat).await
        }
    };
    if let Err(error) = served {
        log::debug!("a client's connection: {error}");
    }
}

/// A connection that is used, to its end.
async fn until_quiet(
    connection: impl Future<Output = hyper::Result<()>>,
    seat: &Seat,
) -> hyper::Result<()> {
    let mut connection = std::pin::pin!(connection);
    loop {
        match tokio::time::timeout(LOOK, connection.as_mut()).await {
            Ok(ended) => return ended,
            Err(_) if seat.is_quiet() => return Ok(()),
            Err(_) => {}
        }
    }
}

impl std::fmt::Debug for Ingress {
    /// Shows no secret.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Ingress")
    }
}

#[cfg(test)]
#[path = "serve_tests.rs"]
mod tests;
