//! The client's side: one call per row of the API table.
//!
//! Owns: connections to one pinned node, their reuse, time-outs, and errors that say what to do next.
//! Refuses: another node than the pinned one, answers without a bound, and to repeat a statement: only
//! what may be asked twice is asked again when a kept connection turns out to be closed.

mod site;
mod streams;

use std::collections::BTreeSet;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::HOST;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use rustls::{CertificateError, ClientConfig, OtherError};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsConnector;
use types::claim::Claimed;
use types::deployment::API_PORT;
use types::links::{LinkStatus, RouteStatus};
use types::mesh::Membership;
use types::node::{Drill, Drilled, NodeDisks, NodeInfo};
use types::retire::{Unlock, Unlocked};
use types::status::{Ack, DeploymentStatus, Refusal, RefusalCode};
use types::trace::{Question, Trace};
use types::{Digest, Name, PublicKey};

pub use streams::{ByteStream, LogStream};

use crate::envelope::Envelope;
use crate::logs::Begin;
use crate::route::{Frames, Route, Until, Verdict, WAIT_MAX, Wait};
use crate::sign::SecretKey;
use crate::tls::{self, TlsError, WrongKey};

/// From the first packet to the end of the handshake.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// From the request's last byte to the answer's first: a node syncs two disks before it acknowledges.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// Slowest upload that is waited for, matching the node's limit, and what is allowed beside it.
const UPLOAD_BYTES_PER_SECOND: u64 = 16 << 10;
/// Between two pieces of an answer that is not a stream.
const PIECE_TIMEOUT: Duration = Duration::from_secs(30);
/// Largest answer that is held in memory: the missing chunks of the largest flist that can be pushed.
const ANSWER_MAX: usize = 80 << 20;
/// Longest message of a node that is shown, in characters.
const MESSAGE_MAX: usize = 2000;
/// Chunks on their way at a time: fills a line with some delay, leaves the node's disk some rest.
pub const UPLOADS: usize = 4;

#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error(
        "the address {address:?} is not a host name or IP address, with a port where it is not {API_PORT}"
    )]
    Address {
        address: String,
        #[source]
        source: io::Error,
    },
    #[error(
        "cannot reach the node at {address}: check that it is on, that its console shows this address, and that TCP port {port} is open"
    )]
    Unreachable {
        address: String,
        port: u16,
        #[source]
        source: io::Error,
    },
    #[error(
        "the node at {address} has another key than the one you pinned\n  pinned: {}\n  found:  {}\nIf its console shows the found key, the node was set up anew: pin it with `sifr node add --replace`. If not, somebody is between you and the node.",
        wrong.expected, wrong.found
    )]
    WrongKey { address: String, wrong: WrongKey },
    #[error("the TLS handshake with {address} failed: check that a Sifr node listens there")]
    Handshake {
        address: String,
        #[source]
        source: io::Error,
    },
    #[error(
        "the connection with the node at {address} broke while it was asked for {request}: ask again"
    )]
    Broken {
        address: String,
        request: String,
        #[source]
        source: hyper::Error,
    },
    #[error(
        "the node at {address} did not answer {request} in time: look at its console, then ask again"
    )]
    Silent { address: String, request: String },
    #[error("{}", refusal.message)]
    Refused { refusal: Refusal },
    #[error(
        "the node at {address} answered {request} with what this client does not understand ({what}): compare `sifr version` with `sifr node info`"
    )]
    Strange {
        address: String,
        request: String,
        what: String,
    },
    #[error(transparent)]
    Tls(#[from] TlsError),
}

impl ClientError {
    /// Whether there was no (right) node to talk to, as against a node that said no.
    pub fn is_unreachable(&self) -> bool {
        match self {
            Self::Address { .. }
            | Self::Unreachable { .. }
            | Self::WrongKey { .. }
            | Self::Handshake { .. }
            | Self::Broken { .. }
            | Self::Silent { .. } => true,
            Self::Refused { .. } | Self::Strange { .. } | Self::Tls(_) => false,
        }
    }

    /// Whether asking again may bring an answer, and what is known of the node.
    pub fn absence(&self) -> Option<Absence> {
        match self {
            Self::Unreachable { .. } | Self::Handshake { .. } => Some(Absence::Unmet),
            Self::Broken { .. } | Self::Silent { .. } => Some(Absence::Met),
            Self::Refused { refusal } => {
                (refusal.code == RefusalCode::Restarting).then_some(Absence::Met)
            }
            Self::Address { .. } | Self::WrongKey { .. } | Self::Strange { .. } | Self::Tls(_) => {
                None
            }
        }
    }

    pub fn refusal(&self) -> Option<&Refusal> {
        match self {
            Self::Refused { refusal } => Some(refusal),
            _ => None,
        }
    }
}

/// How a node that gave no answer was absent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Absence {
    /// Nobody with the pinned key was met: it may be the wrong address.
    Unmet,
    /// The pinned node was met, and went away or said that it is about to.
    Met,
}

/// Answer to `PUT /v1/flists/{hex}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Missing {
    /// Digests of stored bytes, 64 hexadecimal digits each.
    pub missing: Vec<String>,
}

impl Missing {
    pub fn new(digests: impl IntoIterator<Item = Digest>) -> Self {
        Self {
            missing: digests.into_iter().map(|digest| digest.hex()).collect(),
        }
    }
}

type Connection = SendRequest<Full<Bytes>>;

/// Silence after which the kernel asks the other end whether it is there: a router's memory of a connection lasts minutes.
const KEEPALIVE_IDLE_S: u32 = 30;
/// Between its questions, and how many stay unanswered before the connection is given up: a minute after the node's
/// power went, who follows a log learns it.
const KEEPALIVE_EVERY_S: u32 = 10;
const KEEPALIVE_PROBES: u32 = 3;

/// A follower of a log hears nothing for hours: without questions it would never learn that its node is gone. Best effort.
fn keep_alive(tcp: &TcpStream) {
    use nix::sys::socket::{setsockopt, sockopt};
    let _ = setsockopt(tcp, sockopt::TcpKeepIdle, &KEEPALIVE_IDLE_S);
    let _ = setsockopt(tcp, sockopt::TcpKeepInterval, &KEEPALIVE_EVERY_S);
    let _ = setsockopt(tcp, sockopt::TcpKeepCount, &KEEPALIVE_PROBES);
    let _ = setsockopt(tcp, sockopt::KeepAlive, &true);
}

/// A client of one node. Calls may run at the same time, each on its own connection.
pub struct Client {
    address: String,
    node: PublicKey,
    tls: Arc<ClientConfig>,
    idle: Mutex<Vec<Connection>>,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client")
            .field("address", &self.address)
            .field("node", &self.node)
            .finish_non_exhaustive()
    }
}

impl Client {
    /// `address` is a host with an optional port. Nothing is sent yet.
    pub fn new(address: &str, node: PublicKey, key: &SecretKey) -> Result<Self, ClientError> {
        let tls = tls::client_config(key, node)?;
        Ok(Self {
            address: with_port(address),
            node,
            tls,
            idle: Mutex::default(),
        })
    }

    /// The same, and the first connection is made: errors of address and key show here.
    pub async fn connect(
        address: &str,
        node: PublicKey,
        key: &SecretKey,
    ) -> Result<Self, ClientError> {
        let client = Self::new(address, node, key)?;
        let connection = client.open().await?;
        client.put_back(connection);
        Ok(client)
    }

    pub fn node(&self) -> PublicKey {
        self.node
    }

    pub async fn node_info(&self) -> Result<NodeInfo, ClientError> {
        self.ask_json(&Route::Node).await
    }

    pub async fn dmesg(&self) -> Result<Vec<u8>, ClientError> {
        self.ask(&Route::Dmesg, Bytes::new()).await
    }

    /// Its own links, as its kernel has them.
    pub async fn links(&self) -> Result<Vec<LinkStatus>, ClientError> {
        self.ask_json(&Route::Links).await
    }

    /// Its own routes, as its kernel has them.
    pub async fn routes(&self) -> Result<Vec<RouteStatus>, ClientError> {
        self.ask_json(&Route::Routes).await
    }

    /// Its disks, as they are now.
    pub async fn disks(&self) -> Result<NodeDisks, ClientError> {
        self.ask_json(&Route::Disks).await
    }

    /// Asked once and on a fresh connection: after a lost answer [`Self::disks`] shows what was done.
    pub async fn claim_disks(&self, envelope: &Envelope) -> Result<Claimed, ClientError> {
        let route = Route::ClaimDisks;
        let connection = self.open().await?;
        let answer = self
            .send(connection, &route, envelope.to_json().into())
            .await?;
        self.parse(&route, &self.whole(&route, answer).await?)
    }

    /// Asked once and on a fresh connection, as [`Self::claim_disks`]: a passphrase is not sent twice.
    pub async fn unlock_disk(&self, unlock: &Unlock) -> Result<Unlocked, ClientError> {
        let route = Route::UnlockDisk;
        let body = serde_json::to_vec(unlock).expect("it has only text keys");
        let connection = self.open().await?;
        let answer = self.send(connection, &route, body.into()).await?;
        self.parse(&route, &self.whole(&route, answer).await?)
    }

    /// The receipt, as the node has signed it. Asked once: after a lost answer there is nothing left to destroy.
    pub async fn decommission(&self, wish: &Envelope) -> Result<Envelope, ClientError> {
        let route = Route::Decommission;
        let connection = self.open().await?;
        let answer = self.send(connection, &route, wish.to_json().into()).await?;
        self.parse(&route, &self.whole(&route, answer).await?)
    }

    /// The node's metrics, or only those of a deployment's machines, as Prometheus reads them.
    pub async fn metrics(&self, deployment: Option<&Name>) -> Result<Vec<u8>, ClientError> {
        let route = match deployment {
            None => Route::NodeMetrics,
            Some(name) => Route::Metrics(name.clone()),
        };
        self.ask(&route, Bytes::new()).await
    }

    /// Sends a .flist file; the answer is what the node lacks of its chunks.
    pub async fn put_flist(&self, digest: Digest, file: Bytes) -> Result<Vec<Digest>, ClientError> {
        let route = Route::PutFlist(digest);
        let answer: Missing = self.parse(&route, &self.ask(&route, file).await?)?;
        let digests = answer.missing.iter().map(|hex| Digest::from_hex(hex));
        digests
            .collect::<Result<_, _>>()
            .map_err(|error| self.strange(&route, error.to_string()))
    }

    /// The trace of an flist's first run on the node, as `flist::trace` has it; unchecked.
    pub async fn trace(&self, flist: Digest) -> Result<Vec<u8>, ClientError> {
        self.ask(&Route::Trace(flist), Bytes::new()).await
    }

    pub async fn put_chunk(&self, digest: Digest, stored: Bytes) -> Result<(), ClientError> {
        self.ask(&Route::PutChunk(digest), stored).await.map(drop)
    }

    /// Asked once and on a fresh connection: a lost answer is not repeated, look with [`Self::deployment`].
    pub async fn post_statement(&self, envelope: &Envelope) -> Result<Ack, ClientError> {
        let route = Route::PostStatement;
        let connection = self.open().await?;
        let answer = self
            .send(connection, &route, envelope.to_json().into())
            .await?;
        self.parse(&route, &self.whole(&route, answer).await?)
    }

    /// Asked once and on a fresh connection, as a statement is: a second process would be killed.
    pub async fn drill(&self, drill: &Drill) -> Result<Drilled, ClientError> {
        let route = Route::Drill;
        let body = serde_json::to_vec(drill).expect("a drill has only text keys");
        let connection = self.open().await?;
        let answer = self.send(connection, &route, body.into()).await?;
        self.parse(&route, &self.whole(&route, answer).await?)
    }

    pub async fn deployments(&self) -> Result<Vec<DeploymentStatus>, ClientError> {
        self.ask_json(&Route::Deployments).await
    }

    pub async fn deployment(&self, name: &Name) -> Result<DeploymentStatus, ClientError> {
        self.ask_json(&Route::Deployment {
            name: name.clone(),
            wait: None,
        })
        .await
    }

    /// What joins a network of a deployment with the same one on other nodes; both may be new.
    pub async fn membership(
        &self,
        deployment: &Name,
        network: &Name,
    ) -> Result<Membership, ClientError> {
        let route = Route::Membership(deployment.clone(), network.clone());
        self.ask_json(&route).await
    }

    /// Waits until `until` is met, never can be, or time is up; the last status and how it stands.
    /// `seen` is shown every status on the way.
    pub async fn wait(
        &self,
        name: &Name,
        until: Until,
        limit: Duration,
        mut seen: impl FnMut(&DeploymentStatus),
    ) -> Result<(DeploymentStatus, Verdict), ClientError> {
        let end = Instant::now() + limit;
        loop {
            let timeout = end.saturating_duration_since(Instant::now()).min(WAIT_MAX);
            let wait = Some(Wait { until, timeout });
            let status: DeploymentStatus = self
                .ask_json(&Route::Deployment {
                    name: name.clone(),
                    wait,
                })
                .await?;
            seen(&status);
            match until.judge(&status) {
                Verdict::NotYet if Instant::now() < end => {}
                verdict => return Ok((status, verdict)),
            }
        }
    }

    /// The output of a workload; with `follow` until the caller drops the stream or the node ends it.
    pub async fn logs(
        &self,
        deployment: &Name,
        workload: &Name,
        follow: bool,
        begin: impl Into<Begin>,
    ) -> Result<LogStream<'_>, ClientError> {
        let (deployment, workload) = (deployment.clone(), workload.clone());
        let begin = begin.into();
        let route = Route::Logs {
            deployment,
            workload,
            follow,
            begin,
        };
        let connection = self.open().await?;
        let answer = self.send(connection, &route, Bytes::new()).await?;
        let body = self.accepted(&route, answer).await?.into_body();
        Ok(LogStream {
            client: self,
            route,
            body,
            pending: Vec::new(),
            read: 0,
        })
    }

    /// The frames of a machine's card as pcapng, until the caller drops the stream, the machine's
    /// cards go, or the node ends it.
    pub async fn capture(
        &self,
        deployment: &Name,
        workload: &Name,
        frames: &Frames,
    ) -> Result<ByteStream<'_>, ClientError> {
        let route = Route::Capture {
            deployment: deployment.clone(),
            workload: workload.clone(),
            frames: frames.clone(),
        };
        let connection = self.open().await?;
        let answer = self.send(connection, &route, Bytes::new()).await?;
        let body = self.accepted(&route, answer).await?.into_body();
        Ok(ByteStream {
            client: self,
            route,
            body,
        })
    }

    /// Whether a first packet gets to or from a machine, and which rule decides.
    pub async fn network_trace(
        &self,
        deployment: &Name,
        workload: &Name,
        question: Question,
    ) -> Result<Trace, ClientError> {
        self.ask_json(&Route::NetworkTrace {
            deployment: deployment.clone(),
            workload: workload.clone(),
            question,
        })
        .await
    }

    /// Sends chunks, [`UPLOADS`] at a time. `load` gives a chunk's stored bytes; `sent` hears their number.
    pub async fn put_chunks<L, F, E>(
        &self,
        missing: &[Digest],
        load: L,
        sent: impl Fn(u64),
    ) -> Result<(), E>
    where
        L: Fn(Digest) -> F,
        F: Future<Output = Result<Bytes, E>>,
        E: From<ClientError>,
    {
        use futures_util::stream::{StreamExt, TryStreamExt, iter};
        let distinct: BTreeSet<Digest> = missing.iter().copied().collect();
        iter(distinct)
            .map(|digest| {
                let (load, sent) = (&load, &sent);
                async move {
                    let bytes = load(digest).await?;
                    let length = bytes.len() as u64;
                    self.put_chunk(digest, bytes).await?;
                    sent(length);
                    Ok::<(), E>(())
                }
            })
            .buffer_unordered(UPLOADS)
            .try_collect::<()>()
            .await
    }

    async fn ask_json<T: DeserializeOwned>(&self, route: &Route) -> Result<T, ClientError> {
        self.parse(route, &self.ask(route, Bytes::new()).await?)
    }

    /// A request that may be repeated.
    async fn ask(&self, route: &Route, body: Bytes) -> Result<Vec<u8>, ClientError> {
        while let Some(connection) = self.take_idle() {
            match self.send(connection, route, body.clone()).await {
                // The node had closed the kept connection: try the next one, then a fresh one.
                Err(ClientError::Broken { .. }) => {}
                answer => return self.whole(route, answer?).await,
            }
        }
        let connection = self.open().await?;
        let answer = self.send(connection, route, body).await?;
        self.whole(route, answer).await
    }

    fn take_idle(&self) -> Option<Connection> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.retain(|connection| !connection.is_closed());
        idle.pop()
    }

    fn put_back(&self, connection: Connection) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < UPLOADS && !connection.is_closed() {
            idle.push(connection);
        }
    }

    async fn open(&self) -> Result<Connection, ClientError> {
        match timeout(CONNECT_TIMEOUT, self.open_unbounded()).await {
            Ok(connection) => connection,
            Err(_) => Err(self.unreachable(io::ErrorKind::TimedOut.into())),
        }
    }

    async fn open_unbounded(&self) -> Result<Connection, ClientError> {
        let address = || self.address.clone();
        let found: Vec<SocketAddr> = tokio::net::lookup_host(&self.address)
            .await
            .map_err(|source| ClientError::Address {
                address: address(),
                source,
            })?
            .collect();
        let tcp = crate::reach::first_of(&found).await;
        let tcp = tcp.map_err(|source| self.unreachable(source))?;
        // Requests are small and wait for their answers (best effort).
        let _ = tcp.set_nodelay(true);
        keep_alive(&tcp);
        let tls = TlsConnector::from(Arc::clone(&self.tls))
            .connect(tls::server_name(), tcp)
            .await
            .map_err(|source| match wrong_key(&source) {
                Some(wrong) => ClientError::WrongKey {
                    address: address(),
                    wrong,
                },
                None => ClientError::Handshake {
                    address: address(),
                    source,
                },
            })?;
        let (sender, connection) = http1::handshake(TokioIo::new(tls))
            .await
            .map_err(|source| self.broken("a connection".to_owned(), source))?;
        // Ends when the sender is dropped; its errors reach the sender too.
        tokio::spawn(connection);
        Ok(sender)
    }

    /// Sends on this connection and keeps it for the next request where that is possible.
    async fn send(
        &self,
        mut connection: Connection,
        route: &Route,
        body: Bytes,
    ) -> Result<Response<Incoming>, ClientError> {
        let upload = Duration::from_secs(body.len() as u64 / UPLOAD_BYTES_PER_SECOND);
        let waits = match route {
            Route::Deployment {
                wait: Some(wait), ..
            } => wait.timeout,
            _ => Duration::ZERO,
        };
        let request = Request::builder()
            .method(route.method())
            .uri(route.target())
            .header(HOST, &self.address)
            .body(Full::new(body))
            .map_err(|error| self.strange(route, error.to_string()))?;
        let answer = async {
            connection.ready().await?;
            let answer = connection.send_request(request).await?;
            Ok((answer, connection))
        };
        match timeout(ANSWER_TIMEOUT + upload + waits, answer).await {
            Err(_) => Err(ClientError::Silent {
                address: self.address.clone(),
                request: describe(route),
            }),
            Ok(Err(source)) => Err(self.broken(describe(route), source)),
            Ok(Ok((answer, connection))) => {
                // Hyper lets the next request wait until this answer has been read.
                if !matches!(route, Route::Logs { .. } | Route::Capture { .. }) {
                    self.put_back(connection);
                }
                Ok(answer)
            }
        }
    }

    /// Turns an answer that is a refusal into the error.
    async fn accepted(
        &self,
        route: &Route,
        answer: Response<Incoming>,
    ) -> Result<Response<Incoming>, ClientError> {
        let status = answer.status();
        if status == StatusCode::OK {
            return Ok(answer);
        }
        let body = self.read(route, answer.into_body()).await?;
        match serde_json::from_slice::<Refusal>(&body) {
            Ok(refusal) => {
                let message = printable(&refusal.message);
                Err(ClientError::Refused {
                    refusal: Refusal { message, ..refusal },
                })
            }
            Err(_) => Err(self.strange(route, format!("status {status}"))),
        }
    }

    async fn whole(
        &self,
        route: &Route,
        answer: Response<Incoming>,
    ) -> Result<Vec<u8>, ClientError> {
        let answer = self.accepted(route, answer).await?;
        self.read(route, answer.into_body()).await
    }

    async fn read(&self, route: &Route, mut body: Incoming) -> Result<Vec<u8>, ClientError> {
        let mut whole = Vec::new();
        loop {
            match timeout(PIECE_TIMEOUT, body.frame()).await {
                Err(_) => {
                    return Err(ClientError::Silent {
                        address: self.address.clone(),
                        request: describe(route),
                    });
                }
                Ok(None) => return Ok(whole),
                Ok(Some(Err(source))) => return Err(self.broken(describe(route), source)),
                Ok(Some(Ok(frame))) => {
                    whole.extend_from_slice(&frame.into_data().unwrap_or_default())
                }
            }
            if whole.len() > ANSWER_MAX {
                return Err(self.strange(route, format!("more than {ANSWER_MAX} bytes")));
            }
        }
    }

    fn parse<T: DeserializeOwned>(&self, route: &Route, json: &[u8]) -> Result<T, ClientError> {
        serde_json::from_slice(json).map_err(|error| self.strange(route, error.to_string()))
    }

    fn unreachable(&self, source: io::Error) -> ClientError {
        let port = self
            .address
            .rsplit_once(':')
            .and_then(|(_, port)| port.parse().ok())
            .unwrap_or(API_PORT);
        ClientError::Unreachable {
            address: self.address.clone(),
            port,
            source,
        }
    }

    fn broken(&self, request: String, source: hyper::Error) -> ClientError {
        ClientError::Broken {
            address: self.address.clone(),
            request,
            source,
        }
    }

    fn strange(&self, route: &Route, what: String) -> ClientError {
        ClientError::Strange {
            address: self.address.clone(),
            request: describe(route),
            what,
        }
    }
}

fn describe(route: &Route) -> String {
    format!("{} {}", route.method(), route.target())
}

/// A node's words go to a terminal: no control characters, no flood.
fn printable(message: &str) -> String {
    message
        .chars()
        .filter(|c| !c.is_control() || *c == '\n')
        .take(MESSAGE_MAX)
        .collect()
}

/// Adds the API's port where there is none. A bare IPv6 address gets its brackets.
fn with_port(address: &str) -> String {
    if address.parse::<std::net::Ipv6Addr>().is_ok() {
        return format!("[{address}]:{API_PORT}");
    }
    let port = address.rsplit_once(':').is_some_and(|(host, port)| {
        port.parse::<u16>().is_ok() && (!host.contains(':') || host.ends_with(']'))
    });
    if port {
        address.to_owned()
    } else {
        format!("{address}:{API_PORT}")
    }
}

/// rustls's errors travel inside `io::Error`.
fn wrong_key(error: &io::Error) -> Option<WrongKey> {
    match error.get_ref()?.downcast_ref::<rustls::Error>()? {
        rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(inner))) => {
            inner.downcast_ref::<WrongKey>().copied()
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_connection_asks_whether_its_node_is_still_there() {
        use nix::sys::socket::{getsockopt, sockopt};
        let node = tokio::net::TcpListener::bind("127.0.0.1:0").await;
        let address = node.as_ref().expect("bound").local_addr();
        let tcp = TcpStream::connect(address.expect("an address")).await;
        let tcp = tcp.expect("connected");
        assert_eq!(getsockopt(&tcp, sockopt::KeepAlive), Ok(false));
        keep_alive(&tcp);
        assert_eq!(getsockopt(&tcp, sockopt::KeepAlive), Ok(true));
        let after = getsockopt(&tcp, sockopt::TcpKeepIdle);
        assert_eq!(after, Ok(KEEPALIVE_IDLE_S));
    }

    #[test]
    fn the_port_is_added_where_it_is_missing() {
        for (given, used) in [
            ("10.0.0.1", "10.0.0.1:7443"),
            ("10.0.0.1:17443", "10.0.0.1:17443"),
            ("n01.example", "n01.example:7443"),
            ("fe80::1", "[fe80::1]:7443"),
            ("[fe80::1]", "[fe80::1]:7443"),
            ("[fe80::1]:80", "[fe80::1]:80"),
        ] {
            assert_eq!(with_port(given), used);
        }
    }

    #[test]
    fn a_nodes_message_cannot_move_the_cursor() {
        assert_eq!(printable("a\x1b[2Jb\r\nc"), "a[2Jb\nc");
        assert_eq!(printable(&"x".repeat(MESSAGE_MAX + 1)).len(), MESSAGE_MAX);
    }
}
