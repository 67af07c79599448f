//! Machines behind names: connections to them, and whether they answer.
//!
//! Owns: connections that are kept for the next request, health checks, what is under way to each.
//! Refuses: choosing among them (`table` does).

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use http_body_util::{Either, Empty};
use hyper::Request;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::{HOST, USER_AGENT};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::{Notify, OwnedSemaphorePermit};
use types::ingress::{HealthCheck, Host};

use crate::answer::Out;
use crate::health::Health;
use crate::line::{self, Line};
use crate::stock::Stock;
use crate::wire::Place;

/// How long a machine may take to accept a connection: it is on this node or one that is a tunnel away, and its kernel answers; a SYN that
/// was lost is sent again after one second.
const CONNECT_WAIT: Duration = Duration::from_secs(3);
/// Most bytes of the head of an answer, and of what is read ahead of the client.
const BUFFER_MAX: usize = 32 << 10;
/// Kept for the next request, at most so long: less than the ordinary 60 s after which servers close them.
const IDLE_MAX: Duration = Duration::from_secs(30);
/// Kept for each machine: what was under way at once comes again.
const IDLE_CONNECTIONS_MAX: usize = 16;
/// Seconds at most until one that is left out is asked again.
const DOWN_INTERVAL_S: u16 = 5;
/// How long a health check waits for its answer.
const CHECK_WAIT: Duration = Duration::from_secs(5);

/// What tells one back end from others.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Identity {
    /// Health checks ask for it.
    pub(crate) host: Host,
    pub(crate) place: Place,
    pub(crate) check: HealthCheck,
}

pub(crate) struct Backend {
    identity: Identity,
    stock: Arc<Stock>,
    busy: AtomicUsize,
    /// Both held for a moment, by tasks of several threads.
    health: Mutex<Health>,
    /// Told when it is left out.
    left: Notify,
    idle: Mutex<Vec<(Instant, SendRequest<Out>)>>,
}

impl std::fmt::Debug for Backend {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Backend({:?})", self.identity)
    }
}

/// Why there is no connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NoConnection {
    /// The node gives no socket just now: that says nothing of the machine.
    NoSocket,
    Refused,
}

/// One thing that is under way to a back end.
pub(crate) struct Busy(Arc<Backend>);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.busy.fetch_sub(1, Ordering::Relaxed);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing is behind it that a panic could leave half done.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Backend {
    /// A back end that is asked for its health until nobody has it any more. Within a runtime.
    pub(crate) fn new(identity: Identity, stock: Arc<Stock>) -> Arc<Self> {
        let backend = Arc::new(Self {
            identity,
            stock,
            busy: AtomicUsize::new(0),
            health: Mutex::default(),
            left: Notify::new(),
            idle: Mutex::default(),
        });
        tokio::spawn(keep_asking(Arc::downgrade(&backend)));
        backend
    }

    pub(crate) fn health(&self) -> Health {
        *lock(&self.health)
    }

    pub(crate) fn busy(&self) -> usize {
        self.busy.load(Ordering::Relaxed)
    }

    pub(crate) fn begin(self: &Arc<Self>) -> Busy {
        self.busy.fetch_add(1, Ordering::Relaxed);
        Busy(self.clone())
    }

    /// What a question or a connection has shown.
    pub(crate) fn found(&self, answered: bool) {
        let mut health = lock(&self.health);
        let before = health.is_usable();
        *health = health.after(answered);
        let after = health.is_usable();
        drop(health);
        if before != after {
            let (host, at) = (&self.identity.host, self.identity.place.address);
            let word = if after {
                "answers again"
            } else {
                "does not answer: it is left out"
            };
            log::info!("ingress: {at} of {host} {word}");
        }
        if !after {
            lock(&self.idle).clear();
            self.left.notify_waiters();
        }
    }

    /// Until it is left out.
    pub(crate) async fn left_out(&self) {
        loop {
            let left = self.left.notified();
            tokio::pin!(left);
            // From here on nothing that is told is missed.
            left.as_mut().enable();
            if !self.health().is_usable() {
                return;
            }
            left.await;
        }
    }

    /// A new connection to it.
    pub(crate) async fn connect(&self) -> Result<Line, NoConnection> {
        let network = &self.identity.place.network;
        let place = self.place()?;
        match self.stock.take(network).await {
            Ok(socket) => self.connect_with(socket, place).await,
            Err(error) => {
                // Clients bring this about as often as they like: not for a log that is read.
                log::debug!("ingress: no socket in {network}: {error}");
                Err(NoConnection::NoSocket)
            }
        }
    }

    fn place(&self) -> Result<OwnedSemaphorePermit, NoConnection> {
        let place = self.stock.lines.clone().try_acquire_owned();
        place.map_err(|_| NoConnection::NoSocket)
    }

    async fn connect_with(
        &self,
        socket: TcpSocket,
        place: OwnedSemaphorePermit,
    ) -> Result<Line, NoConnection> {
        let connected = self.reach(socket).await;
        let stream = connected.map_err(|error| match error.kind() {
            io::ErrorKind::NetworkUnreachable | io::ErrorKind::AddrNotAvailable => {
                // The network has been made again: sockets of the one before lead nowhere.
                self.stock.drop_all(&self.identity.place.network);
                NoConnection::NoSocket
            }
            _ => NoConnection::Refused,
        })?;
        Ok(Line {
            stream,
            _place: place,
        })
    }

    async fn reach(&self, socket: TcpSocket) -> io::Result<TcpStream> {
        line::watch(&socket)?;
        socket.set_nodelay(true)?;
        let connecting = socket.connect(self.identity.place.address.into());
        let connected = tokio::time::timeout(CONNECT_WAIT, connecting).await;
        connected.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }

    /// A new connection to it, for requests.
    pub(crate) async fn speak(&self) -> Result<SendRequest<Out>, NoConnection> {
        Self::speak_by(self.connect().await?).await
    }

    async fn speak_by(line: Line) -> Result<SendRequest<Out>, NoConnection> {
        let mut http = http1::Builder::new();
        http.max_buf_size(BUFFER_MAX);
        let spoken = http.handshake(TokioIo::new(line)).await;
        let (sender, connection) = spoken.map_err(|_| NoConnection::Refused)?;
        tokio::spawn(async move {
            // Whoever has asked hears how it ended.
            let _ = connection.with_upgrades().await;
        });
        Ok(sender)
    }

    /// A connection from before, if any is there still.
    pub(crate) fn kept(&self) -> Option<SendRequest<Out>> {
        let mut idle = lock(&self.idle);
        loop {
            let (since, sender) = idle.pop()?;
            if sender.is_ready() && since.elapsed() < IDLE_MAX {
                return Some(sender);
            }
        }
    }

    /// Keeps a connection once its answer has been read to the end.
    pub(crate) fn keep(busy: Busy, mut sender: SendRequest<Out>) {
        tokio::spawn(async move {
            let open = sender.ready().await.is_ok();
            let backend = &busy.0;
            if open && backend.health().is_usable() {
                backend.prune();
                let mut idle = lock(&backend.idle);
                if idle.len() < IDLE_CONNECTIONS_MAX {
                    idle.push((Instant::now(), sender));
                }
            }
        });
    }

    /// Connections that are kept too long take the place of others.
    fn prune(&self) {
        let fine = |(since, sender): &(Instant, SendRequest<Out>)| {
            since.elapsed() < IDLE_MAX && !sender.is_closed()
        };
        lock(&self.idle).retain(fine);
    }

    /// Whether it can serve. `None`: it could not be asked.
    async fn ask(&self) -> Option<bool> {
        let Ok(_turn) = self.stock.checks.acquire().await else {
            return None;
        };
        // Nobody who is there is left out because the node agent is not.
        let socket = self.stock.spare(&self.identity.place.network)?;
        let line = self.connect_with(socket, self.place().ok()?).await;
        let asked = match (&self.identity.check.path, line) {
            (_, Err(why)) => Err(why),
            (None, Ok(_)) => Ok(true),
            (Some(path), Ok(line)) => {
                let waited = tokio::time::timeout(CHECK_WAIT, self.fetch(line, path)).await;
                waited.unwrap_or(Ok(false))
            }
        };
        match asked {
            Ok(answered) => Some(answered),
            Err(NoConnection::Refused) => Some(false),
            Err(NoConnection::NoSocket) => None,
        }
    }

    async fn fetch(&self, line: Line, path: &str) -> Result<bool, NoConnection> {
        let request = Request::get(path)
            .header(HOST, self.identity.host.as_str())
            .header(USER_AGENT, "sifr-ingress health check")
            .body(Either::Right(Empty::new()));
        let Ok(request) = request else {
            return Ok(false);
        };
        let mut sender = Self::speak_by(line).await?;
        let response = sender.send_request(request).await;
        let status = response.map(|response| response.status());
        Ok(status.is_ok_and(|status| status.is_success() || status.is_redirection()))
    }
}

/// Ends when the back end is nobody's any more.
async fn keep_asking(backend: Weak<Backend>) {
    loop {
        let Some(held) = backend.upgrade() else {
            return;
        };
        if let Some(answered) = held.ask().await {
            held.found(answered);
        }
        held.prune();
        let wanted = held.identity.check.interval_s;
        let seconds = match held.health().is_usable() {
            true => wanted,
            false => wanted.min(DOWN_INTERVAL_S),
        };
        drop(held);
        tokio::time::sleep(Duration::from_secs(seconds.into())).await;
    }
}
