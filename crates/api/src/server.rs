//! The node's side of a connection: handshake, limits, requests to a handler and answers back.
//!
//! Owns: every limit that a peer meets before the handler does, and the order of checks: certificate,
//! route, authorisation, size, then the body, bounded in bytes and time.
//! Refuses: slow handshakes, headers and bodies, oversized bodies, too many connections, and peers that
//! do not read their answers. Never looks into a body.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures_util::stream::{FuturesUnordered, StreamExt};
use http_body_util::BodyExt;
use hyper::Request;
use hyper::body::{Body as HttpBody, Bytes, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use types::PublicKey;
use types::status::{Refusal, RefusalCode};

use crate::answer::Answer;
use crate::patience::Patient;
use crate::route::Route;
use crate::seats::{Seat, Seats};
use crate::tls;

/// What a peer may cost the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// From accepting to a finished handshake.
    pub handshake: Duration,
    /// From the end of one request (or the handshake) to the end of the next one's header.
    pub header: Duration,
    /// What a body may take beside [`Self::body_bytes_per_second`].
    pub body_grace: Duration,
    /// Slowest body that is read to its end.
    pub body_bytes_per_second: u64,
    /// Longest time that a peer leaves an answer unread.
    pub unread_answer: Duration,
    pub connections: usize,
    pub connections_per_address: usize,
}

impl Limits {
    /// Chosen for a client behind a poor line. Strangers may hold sockets until somebody else needs them:
    /// see [`crate::seats`].
    pub const NODE: Self = Self {
        handshake: Duration::from_secs(10),
        header: Duration::from_secs(10),
        body_grace: Duration::from_secs(10),
        body_bytes_per_second: 16 << 10,
        unread_answer: Duration::from_secs(30),
        connections: 256,
        connections_per_address: 32,
    };
}

/// Largest request header: ours are under 1 KiB, curl's too. Hyper's smallest allowed is 8 KiB.
const HEADER_BYTES_MAX: usize = 8 << 10;
/// Most header fields.
const HEADER_FIELDS_MAX: usize = 32;
/// After the last answer, what the peer is still sending is read and dropped up to this much, so that
/// the kernel does not reset the connection before the peer has read the answer.
const LINGER_BYTES: usize = 4 << 20;
/// … and for this long.
const LINGER_TIME: Duration = Duration::from_secs(2);
/// When accepting fails for want of descriptors, nothing tells when there are some again.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// What the caller does with requests.
pub trait Handler {
    /// May this key ask for this? Asked before a byte of the body is read.
    fn authorise(&self, peer: &PublicKey, route: &Route) -> Result<(), Refusal>;

    /// Does it. `Answer::from(result)` turns a `Result<Answer, Refusal>` into the answer.
    fn handle(&self, peer: PublicKey, route: Route, body: Body) -> impl Future<Output = Answer>;
}

/// Why a connection ended otherwise than by the peer's or the node's orderly close.
#[derive(Debug, thiserror::Error)]
pub enum ConnectionError {
    #[error("the TLS handshake with {address} took longer than {limit:?}")]
    SlowHandshake {
        address: SocketAddr,
        limit: Duration,
    },
    #[error("the TLS handshake with {address} failed")]
    Handshake {
        address: SocketAddr,
        #[source]
        source: io::Error,
    },
    #[error("the connection of {address} made room for another")]
    MadeRoom { address: SocketAddr },
    #[error("the peer {address} showed no ed25519 key")]
    NoKey { address: SocketAddr },
    #[error("the connection with {address} broke")]
    Http {
        address: SocketAddr,
        #[source]
        source: hyper::Error,
    },
}

/// A request's body: bounded in bytes by its route, in time by the limits.
#[derive(Debug)]
pub struct Body {
    incoming: Incoming,
    max: u64,
    received: u64,
    /// Time spent waiting for the peer; the handler's own time does not count.
    waited: Duration,
    limits: Limits,
    connected: Instant,
}

impl Body {
    /// When the connection was accepted that the request came over.
    pub fn connected(&self) -> Instant {
        self.connected
    }

    /// The next bytes, `None` at the end. Never more in all than the route allows.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Refusal> {
        loop {
            let rate = self.limits.body_bytes_per_second.max(1);
            let allowed = self.limits.body_grace + Duration::from_secs(self.received / rate);
            let started = Instant::now();
            let frame = timeout(allowed.saturating_sub(self.waited), self.incoming.frame()).await;
            self.waited += started.elapsed();
            let frame = match frame {
                Err(_) => return Err(self.too_slow()),
                Ok(None) => return Ok(None),
                Ok(Some(Err(_))) => return Err(broken()),
                Ok(Some(Ok(frame))) => frame,
            };
            // Trailers are read over.
            let Ok(data) = frame.into_data() else {
                continue;
            };
            self.received += data.len() as u64;
            if self.received > self.max {
                return Err(too_large(self.max));
            }
            return Ok(Some(data));
        }
    }

    /// The whole body. For routes whose limit is small enough to hold in memory.
    pub async fn collect(mut self) -> Result<Vec<u8>, Refusal> {
        let mut whole = Vec::new();
        while let Some(data) = self.next().await? {
            whole.extend_from_slice(&data);
        }
        Ok(whole)
    }

    fn too_slow(&self) -> Refusal {
        let received = self.received;
        let message = format!(
            "the request's body stalled after {received} bytes: send it again over a better line"
        );
        Refusal {
            code: RefusalCode::TooSlow,
            message,
        }
    }
}

fn broken() -> Refusal {
    Refusal {
        code: RefusalCode::Malformed,
        message: "the request's body broke off: send it again".to_owned(),
    }
}

fn too_large(max: u64) -> Refusal {
    let message =
        format!("the request's body is longer than the {max} bytes that are allowed for it");
    Refusal {
        code: RefusalCode::TooLarge,
        message,
    }
}

/// Accepts and serves for ever, in the caller's task: no connection is spawned, so the handler may be
/// tied to one thread.
pub async fn serve<H: Handler>(
    listener: TcpListener,
    tls: Arc<ServerConfig>,
    handler: &H,
    limits: Limits,
) {
    let mut connections = FuturesUnordered::new();
    let mut seats = Seats::new(limits.connections, limits.connections_per_address);
    loop {
        tokio::select! {
            Some((seat, result)) = connections.next(), if !connections.is_empty() => {
                seats.leave(&seat);
                // The peer has been told where it can be told; nobody else can act on it.
                if let Err::<(), ConnectionError>(error) = result {
                    log::debug!("{error}");
                }
            }
            accepted = accept(&listener) => match accepted {
                Ok((stream, address)) => match seats.take(address.ip()) {
                    Some(seat) => {
                        // A small answer should not wait for an acknowledgement (best effort).
                        let _ = stream.set_nodelay(true);
                        let tls = Arc::clone(&tls);
                        connections.push(async move {
                            let served = serve_seated(stream, address, tls, handler, limits, &seat);
                            let result = tokio::select! {
                                result = served => result,
                                () = seat.given_up() => Err(ConnectionError::MadeRoom { address }),
                            };
                            (seat, result)
                        });
                    }
                    None => log::debug!("too many connections: {address} is turned away"),
                },
                Err(error) => log::warn!("cannot accept a connection: {error}"),
            },
        }
    }
}

/// Inside the future, so that connections go on being served during the pause.
async fn accept(listener: &TcpListener) -> io::Result<(TcpStream, SocketAddr)> {
    let accepted = listener.accept().await;
    if accepted.is_err() {
        tokio::time::sleep(ACCEPT_PAUSE).await;
    }
    accepted
}

/// Serves one accepted connection to its end.
pub async fn serve_connection<S, H>(
    stream: S,
    address: SocketAddr,
    tls: Arc<ServerConfig>,
    handler: &H,
    limits: Limits,
) -> Result<(), ConnectionError>
where
    S: AsyncRead + AsyncWrite + Unpin,
    H: Handler,
{
    serve_seated(stream, address, tls, handler, limits, &Seat::default()).await
}

async fn serve_seated<S, H>(
    stream: S,
    address: SocketAddr,
    tls: Arc<ServerConfig>,
    handler: &H,
    limits: Limits,
    seat: &Seat,
) -> Result<(), ConnectionError>
where
    S: AsyncRead + AsyncWrite + Unpin,
    H: Handler,
{
    let connected = Instant::now();
    let patient = Patient::new(stream, limits.unread_answer);
    let limit = limits.handshake;
    let stream = timeout(limit, TlsAcceptor::from(tls).accept(patient))
        .await
        .map_err(|_| ConnectionError::SlowHandshake { address, limit })?
        .map_err(|source| ConnectionError::Handshake { address, source })?;
    let peer = tls::peer_key(stream.get_ref().1.peer_certificates())
        .ok_or(ConnectionError::NoKey { address })?;
    // Dropped when this function ends: after the last answer, and what lingers behind it.
    let over = OnceLock::new();
    let service = service_fn(|request| {
        let over = &over;
        Box::pin(async move {
            let mut answer = respond(handler, (peer, connected), request, limits, seat).await;
            if let Some(last) = answer.take_over() {
                // A connection has one last answer.
                let _ = over.set(last);
            }
            Ok::<_, Infallible>(answer.into_response())
        })
    });
    let mut http = hyper::server::conn::http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(limits.header)
        .max_buf_size(HEADER_BYTES_MAX)
        .max_headers(HEADER_FIELDS_MAX)
        .auto_date_header(false);
    let mut connection = http.serve_connection(TokioIo::new(stream), service);
    let result = std::future::poll_fn(|cx| connection.poll_without_shutdown(cx)).await;
    let parts = connection.into_parts();
    let mut stream = parts.io.into_inner();
    match result {
        // A header that never ended: hyper gives up without a word. An idle connection needs none.
        Err(error) if error.is_timeout() && !parts.read_buf.is_empty() => {
            // The peer may be gone, which is what was wanted.
            let _ = stream.write_all(&slow_header()).await;
            linger(stream).await;
            Ok(())
        }
        Err(error) if error.is_timeout() => {
            linger(stream).await;
            Ok(())
        }
        Err(source) => Err(ConnectionError::Http { address, source }),
        Ok(()) => {
            linger(stream).await;
            Ok(())
        }
    }
}

/// Closes so that the peer can read what was said last.
async fn linger<S: AsyncRead + AsyncWrite + Unpin>(mut stream: TlsStream<S>) {
    let drain = async {
        stream.shutdown().await?;
        // Below TLS: what comes is dropped, so it need not be decrypted.
        let (raw, _) = stream.get_mut();
        let mut sink = [0; 4096];
        let mut dropped = 0;
        while dropped < LINGER_BYTES {
            match raw.read(&mut sink).await? {
                0 => break,
                n => dropped += n,
            }
        }
        io::Result::Ok(())
    };
    // A failed close is a close.
    let _ = timeout(LINGER_TIME, drain).await;
}

fn slow_header() -> Vec<u8> {
    let message = "the request's header took too long: send it in one piece".to_owned();
    let refusal = Refusal {
        code: RefusalCode::TooSlow,
        message,
    };
    let body = serde_json::to_string(&refusal).expect("a refusal has only text keys");
    let head =
        "HTTP/1.1 408 Request Timeout\r\ncontent-type: application/json\r\nconnection: close\r\n";
    format!("{head}content-length: {}\r\n\r\n{body}", body.len()).into_bytes()
}

async fn respond<H: Handler>(
    handler: &H,
    (peer, connected): (PublicKey, Instant),
    request: Request<Incoming>,
    limits: Limits,
    seat: &Seat,
) -> Answer {
    let (head, incoming) = request.into_parts();
    let target = head
        .uri
        .path_and_query()
        .map_or("/", |target| target.as_str());
    let admitted = Route::parse(&head.method, target).and_then(|route| {
        handler.authorise(&peer, &route)?;
        seat.trust();
        let max = route.body_max();
        if incoming.size_hint().lower() > max {
            Err(too_large(max))
        } else {
            Ok((route, max))
        }
    });
    match admitted {
        Ok((route, max)) => {
            let body = Body {
                incoming,
                max,
                received: 0,
                waited: Duration::ZERO,
                limits,
                connected,
            };
            handler.handle(peer, route, body).await
        }
        Err(refusal) => Answer::refuse(&refusal),
    }
}
