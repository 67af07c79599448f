//! A packet socket in the runtime: JSON packets with descriptors, in and out, without blocking.
//!
//! Owns: waiting for the socket, and what could not be sent yet. Refuses: knowing what is said.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::unix::AsyncFd;
use tokio::sync::Notify;

/// Packets that wait for a peer that does not read: four for each VM slot. More means it is stuck.
const QUEUE_MAX: usize = 4 * crate::wire::SLOTS_MAX as usize;

#[derive(Debug)]
pub(crate) struct Packets {
    socket: AsyncFd<OwnedFd>,
    longest: usize,
    queue: RefCell<VecDeque<(Vec<u8>, Vec<OwnedFd>)>>,
    queued: Notify,
}

impl Packets {
    /// `longest` is the longest packet in either direction.
    #[expect(
        deprecated,
        reason = "`register` asks the caller to vouch that the descriptor stays open and the same; an OwnedFd \
                  that nobody takes out again does that by its type"
    )]
    pub(crate) fn new(socket: OwnedFd, longest: usize) -> io::Result<Self> {
        sys::socket::set_nonblocking(&socket)?;
        Ok(Self {
            socket: AsyncFd::new(socket)?,
            longest,
            queue: RefCell::default(),
            queued: Notify::new(),
        })
    }

    /// Queues a packet; [`Packets::flush`] or [`Packets::serve`] sends it. Packets keep their order.
    pub(crate) fn send(&self, message: &impl Serialize, fds: Vec<OwnedFd>) -> io::Result<()> {
        let packet = serde_json::to_vec(message)?;
        if packet.len() > self.longest {
            let error = format!(
                "a packet of {} bytes, at most {} fit",
                packet.len(),
                self.longest
            );
            return Err(io::Error::new(io::ErrorKind::InvalidInput, error));
        }
        let mut queue = self.queue.borrow_mut();
        if queue.len() >= QUEUE_MAX {
            return Err(io::Error::new(
                io::ErrorKind::TimedOut,
                "the peer does not read",
            ));
        }
        queue.push_back((packet, fds));
        drop(queue);
        self.flush()?;
        self.queued.notify_one();
        Ok(())
    }

    /// Sends what the socket takes now.
    fn flush(&self) -> io::Result<()> {
        let mut queue = self.queue.borrow_mut();
        while let Some((packet, fds)) = queue.front() {
            let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
            match sys::socket::send(self.socket.get_ref().as_fd(), packet, &fds) {
                Ok(()) => drop(queue.pop_front()),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    /// Sends what waits whenever the socket takes it. Never returns but for an error. Safe to drop.
    pub(crate) async fn serve(&self) -> io::Result<std::convert::Infallible> {
        loop {
            if self.queue.borrow().is_empty() {
                self.queued.notified().await;
                continue;
            }
            let mut ready = self.socket.writable().await?;
            self.flush()?;
            if !self.queue.borrow().is_empty() {
                ready.clear_ready();
            }
        }
    }

    /// The next packet, left where it is: [`Packets::skip`] takes it. `None` when the peer is gone; the inner
    /// error where it is not a `T`. Safe to drop.
    pub(crate) async fn peek<T: DeserializeOwned>(&self) -> io::Result<Option<io::Result<T>>> {
        loop {
            let mut ready = self.socket.readable().await?;
            let mut buffer = vec![0; self.longest];
            return match sys::socket::peek(self.socket.get_ref().as_fd(), &mut buffer) {
                Ok(None) => Ok(None),
                Ok(Some(length)) => Ok(Some(parse(&buffer[..length]))),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    ready.clear_ready();
                    continue;
                }
                Err(e) if e.kind() == io::ErrorKind::InvalidData => Ok(Some(Err(e))),
                Err(e) => Err(e),
            };
        }
    }

    /// Drops the packet that was peeked at, and descriptors that came with it.
    pub(crate) fn skip(&self) -> io::Result<()> {
        let mut buffer = vec![0; self.longest];
        match sys::socket::receive(self.socket.get_ref().as_fd(), &mut buffer) {
            Err(e) if e.kind() != io::ErrorKind::InvalidData => Err(e),
            _ => Ok(()),
        }
    }

    /// The next packet; `None` when the peer is gone; `InvalidData` where it is not a `T`. Safe to drop: nothing is taken before it is given.
    pub(crate) async fn receive<T: DeserializeOwned>(
        &self,
    ) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
        loop {
            let mut ready = self.socket.readable().await?;
            let mut buffer = vec![0; self.longest];
            let received = sys::socket::receive(self.socket.get_ref().as_fd(), &mut buffer);
            match received {
                Ok(None) => return Ok(None),
                Ok(Some(received)) => {
                    let message = parse(&buffer[..received.length])?;
                    return Ok(Some((message, received.fds)));
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => ready.clear_ready(),
                Err(e) => return Err(e),
            }
        }
    }
}

fn parse<T: DeserializeOwned>(packet: &[u8]) -> io::Result<T> {
    serde_json::from_slice(packet).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn packets_arrive_in_order_though_the_peer_reads_late() {
        let (a, b) = sys::socket::pair().expect("a pair");
        let (a, b) = (
            Packets::new(a, 1024).expect("packets"),
            Packets::new(b, 1024).expect("packets"),
        );
        for n in 0..5000u32 {
            a.send(&n, Vec::new()).expect("queued");
        }
        let read = async {
            for n in 0..5000u32 {
                let (got, _): (u32, _) = b.receive().await.expect("a packet").expect("open");
                assert_eq!(got, n);
            }
        };
        tokio::select! {
            result = a.serve() => panic!("{result:?}"),
            () = read => {}
        }
        drop(a);
        assert!(b.receive::<u32>().await.expect("the end").is_none());
    }

    #[tokio::test]
    async fn a_peer_that_never_reads_is_found_out() {
        let (a, _b) = sys::socket::pair().expect("a pair");
        let a = Packets::new(a, 64).expect("packets");
        let stuck = (0..100_000u32).find_map(|n| a.send(&n, Vec::new()).err());
        assert_eq!(stuck.map(|e| e.kind()), Some(io::ErrorKind::TimedOut));
        assert!(a.send(&"x".repeat(100), Vec::new()).is_err());
    }
}
