//! Unconnected sockets in tenants' networks.
//!
//! Owns: a few spare ones of each network, so that a new connection to a machine waits for nobody, and the request for more.
//! Refuses: making one: this process cannot.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::net::TcpSocket;
use tokio::sync::{Notify, Semaphore, mpsc};

use crate::line::LINES_MAX;
use crate::wire::SOCKETS_MAX;

/// More are asked for where fewer than this are left: the node agent may just be starting again.
const LOW: usize = SOCKETS_MAX / 2;
/// So many are left to clients: health checks take none of them.
const FOR_CLIENTS: usize = LOW / 2;
/// Health checks at once, of all names.
const CHECKS_MAX: usize = 128;
/// How long a connection waits for a socket: longer than the node agent takes to start again.
const WAIT: Duration = Duration::from_secs(10);

#[derive(Default)]
struct Shelf {
    sockets: Vec<OwnedFd>,
    /// Asked for and not yet come.
    asked: bool,
}

pub struct Stock {
    /// Held for a moment, by tasks of several threads.
    shelves: Mutex<BTreeMap<String, Shelf>>,
    come: Notify,
    need: mpsc::UnboundedSender<String>,
    /// For connections to machines.
    pub(crate) lines: std::sync::Arc<Semaphore>,
    pub(crate) checks: Semaphore,
}

impl Stock {
    /// `need` is told the network whenever one runs low: once, until sockets of it come.
    pub fn new(need: mpsc::UnboundedSender<String>) -> Self {
        Self {
            shelves: Mutex::default(),
            come: Notify::new(),
            need,
            lines: std::sync::Arc::new(Semaphore::new(LINES_MAX)),
            checks: Semaphore::new(CHECKS_MAX),
        }
    }

    fn shelves(&self) -> MutexGuard<'_, BTreeMap<String, Shelf>> {
        // Nothing is behind it that a panic could leave half done.
        self.shelves.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sockets have come. Those of before are dropped where there are too many.
    pub fn put(&self, network: &str, sockets: Vec<OwnedFd>) {
        let mut shelves = self.shelves();
        if let Some(shelf) = shelves.get_mut(network) {
            shelf.asked = false;
            shelf.sockets.extend(sockets);
            let over = shelf.sockets.len().saturating_sub(2 * SOCKETS_MAX);
            shelf.sockets.drain(..over);
        }
        drop(shelves);
        self.come.notify_waiters();
    }

    /// Whoever is asked now has heard nothing of before.
    pub fn ask_anew(&self) {
        for (network, shelf) in self.shelves().iter_mut() {
            shelf.asked = false;
            self.ask(network, shelf);
        }
    }

    /// These networks and no others.
    pub fn retain<'a>(&self, networks: impl IntoIterator<Item = &'a str>) {
        let mut shelves = self.shelves();
        let mut before = std::mem::take(&mut *shelves);
        for network in networks {
            let mut shelf = before.remove(network).unwrap_or_default();
            self.ask(network, &mut shelf);
            shelves.entry(network.to_owned()).or_insert(shelf);
        }
    }

    fn ask(&self, network: &str, shelf: &mut Shelf) {
        if shelf.sockets.len() < LOW && !shelf.asked {
            // Without anybody who hears there is no ingress.
            shelf.asked = self.need.send(network.to_owned()).is_ok();
        }
    }

    /// What lies here of a network leads nowhere any more.
    pub(crate) fn drop_all(&self, network: &str) {
        if let Some(shelf) = self.shelves().get_mut(network) {
            shelf.sockets.clear();
            self.ask(network, shelf);
        }
    }

    /// One for a health check, where there are more than clients may want before others come.
    pub(crate) fn spare(&self, network: &str) -> Option<TcpSocket> {
        let mut shelves = self.shelves();
        let shelf = shelves.get_mut(network)?;
        self.ask(network, shelf);
        let socket = shelf.sockets.pop();
        if shelf.sockets.len() < FOR_CLIENTS {
            shelf.sockets.extend(socket);
            return None;
        }
        drop(shelves);
        usable(socket?).ok()
    }

    fn pop(&self, network: &str) -> io::Result<Option<OwnedFd>> {
        let mut shelves = self.shelves();
        let Some(shelf) = shelves.get_mut(network) else {
            return Err(io::Error::other("its network is not there"));
        };
        let socket = shelf.sockets.pop();
        self.ask(network, shelf);
        Ok(socket)
    }

    /// One socket, waited for.
    pub(crate) async fn take(&self, network: &str) -> io::Result<TcpSocket> {
        let wait = async {
            loop {
                let come = self.come.notified();
                tokio::pin!(come);
                // From here on nothing that comes is missed.
                come.as_mut().enable();
                if let Some(socket) = self.pop(network)? {
                    return Ok(socket);
                }
                come.await;
            }
        };
        let socket: io::Result<OwnedFd> =
            tokio::time::timeout(WAIT, wait).await.unwrap_or_else(|_| {
                Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    "no socket of its network came",
                ))
            });
        usable(socket?)
    }
}

fn usable(socket: OwnedFd) -> io::Result<TcpSocket> {
    let stream = std::net::TcpStream::from(socket);
    stream.set_nonblocking(true)?;
    Ok(TcpSocket::from_std_stream(stream))
}

impl std::fmt::Debug for Stock {
    /// Shows no secret.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Stock")
    }
}
