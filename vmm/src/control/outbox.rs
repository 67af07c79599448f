//! What the node is told: packets out, in order, from any thread.
//!
//! Owns: a bounded queue for when the socket is full, and the last words of a VMM.
//! Refuses: to lose a packet in silence while the node's end is open. A line of the guest that finds no
//! room stays with the guest (vsock gives no credit).

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, send};
use types::guest::FromGuest;
use types::vm::FromVmm;
use vmm_sys_util::eventfd::EventFd;

use crate::event::{Served, Source, wait_writable};
use crate::metrics::Life;
use crate::report::Reports;

/// Packets that lines of the guest may fill; of 8 KiB at most, this bounds memory to 256 KiB.
const LINES_MAX: usize = 32;
/// Packets in all. Beyond it are only failed chunks, which the node also hears from the daemon.
const PACKETS_MAX: usize = 128;
/// How long the last packets may take to find room; the exit status says the same, only less.
const LAST_WORDS_MS: i32 = 1000;

#[derive(Debug)]
pub(crate) struct Outbox {
    socket: Option<Arc<OwnedFd>>,
    queue: Mutex<Queue>,
    /// Signalled when a packet was queued by another thread.
    wake: EventFd,
    reports: Reports,
    /// Milestones and connections.
    pub(crate) life: Life,
    /// Guest init has said how its program ended.
    exited: AtomicBool,
}

#[derive(Debug, Default)]
struct Queue {
    packets: VecDeque<Vec<u8>>,
    /// Nobody will ever read: packets are dropped.
    closed: bool,
}

impl Outbox {
    pub(crate) fn new(socket: Option<Arc<OwnedFd>>) -> io::Result<Self> {
        let queue = Mutex::new(Queue {
            closed: socket.is_none(),
            ..Queue::default()
        });
        Ok(Self {
            socket,
            queue,
            wake: EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?,
            reports: Reports::default(),
            life: Life::default(),
            exited: AtomicBool::new(false),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue
            .lock()
            .expect("no panic while the queue was locked")
    }

    /// Whether there is room for a line of the guest.
    pub(crate) fn room(&self) -> bool {
        self.lock().packets.len() < LINES_MAX
    }

    /// Whether the guest has come to its proper end.
    pub(crate) fn exited(&self) -> bool {
        self.exited.load(Ordering::Relaxed)
    }

    /// Whether everything posted has been handed to the kernel.
    pub(crate) fn empty(&self) -> bool {
        self.lock().packets.is_empty()
    }

    /// Fires when the node has taken some of what waits.
    pub(crate) fn writable(&self) -> Option<Source> {
        let socket = self.socket.as_ref()?;
        Some(Source::writable(socket.as_ref()))
    }

    /// Sends a packet, after those that wait.
    pub(crate) fn post(&self, message: &FromVmm) {
        let packet = serde_json::to_vec(message).expect("plain data");
        match message {
            FromVmm::Guest(FromGuest::Exited { .. }) => self.exited.store(true, Ordering::Relaxed),
            FromVmm::Guest(FromGuest::Started { .. }) => self.life.program(),
            FromVmm::Guest(
                FromGuest::SetupFailed { .. }
                | FromGuest::Settling
                | FromGuest::Restored { .. }
                | FromGuest::Frozen { .. }
                | FromGuest::Grown { .. }
                | FromGuest::Held { .. },
            )
            | FromVmm::Running { .. }
            | FromVmm::GuestInit { .. }
            | FromVmm::ChunkFailed { .. }
            | FromVmm::Panicked { .. }
            | FromVmm::Done { .. }
            | FromVmm::Refused { .. }
            | FromVmm::Metrics(_)
            | FromVmm::Stopped { .. } => {}
        }
        let mut queue = self.lock();
        if queue.closed {
            return;
        }
        if queue.packets.len() >= PACKETS_MAX {
            self.reports.say(format_args!(
                "control socket is full and nobody reads it: dropped {message:?}"
            ));
            return;
        }
        queue.packets.push_back(packet);
        self.flush(&mut queue);
        if !queue.packets.is_empty() {
            // Counters of events overflow only after 2^64 signals.
            let _ = self.wake.write(1);
        }
    }

    fn flush(&self, queue: &mut Queue) {
        let Some(socket) = &self.socket else { return };
        while let Some(packet) = queue.packets.front() {
            let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
            match send(socket.as_raw_fd(), packet, flags) {
                Ok(_) => {
                    queue.packets.pop_front();
                }
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN | Errno::ENOBUFS) => return,
                Err(error) => {
                    if error != Errno::EPIPE {
                        self.reports.say(format_args!("control socket: {error}"));
                    }
                    queue.closed = true;
                    queue.packets.clear();
                }
            }
        }
    }

    /// Sends what is left, waiting for room for a bounded time.
    pub(crate) fn finish(&self) {
        let mut queue = self.lock();
        self.flush(&mut queue);
        while let (Some(socket), false) = (&self.socket, queue.packets.is_empty()) {
            match wait_writable(socket.as_fd(), LAST_WORDS_MS) {
                Ok(true) => self.flush(&mut queue),
                Ok(false) | Err(_) => return,
            }
        }
    }
}

impl Served for Outbox {
    fn sources(&self, out: &mut Vec<Source>) {
        out.push(Source::readable(&self.wake));
        if !self.empty() {
            out.extend(self.writable());
        }
    }

    fn serve(&self, _fired: u64) {
        let _ = self.wake.read();
        self.flush(&mut self.lock());
    }

    fn stop(&self) {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, recv, socketpair};

    fn pair() -> (Arc<OwnedFd>, OwnedFd) {
        let (ours, theirs) = socketpair(
            AddressFamily::Unix,
            SockType::SeqPacket,
            None,
            SockFlag::SOCK_CLOEXEC,
        )
        .expect("sockets");
        (Arc::new(ours), theirs)
    }

    fn next(socket: &OwnedFd) -> FromVmm {
        let mut packet = [0; 4096];
        let length =
            recv(socket.as_raw_fd(), &mut packet, MsgFlags::MSG_DONTWAIT).expect("a packet");
        serde_json::from_slice(&packet[..length]).expect("reads back")
    }

    #[test]
    fn packets_keep_their_order_when_the_socket_was_full() {
        let (ours, theirs) = pair();
        let outbox = Outbox::new(Some(ours)).expect("makes");
        let message = |n| FromVmm::Running { setup_us: n };
        let mut posted = 0;
        while outbox.room() {
            outbox.post(&message(posted));
            posted += 1;
        }
        assert!(!outbox.empty());
        for n in 0..posted {
            assert_eq!(next(&theirs), message(n));
            outbox.serve(1);
        }
        assert!(outbox.empty());
    }

    #[test]
    fn a_closed_end_makes_posting_cheap_and_harmless() {
        let (ours, theirs) = pair();
        drop(theirs);
        let outbox = Outbox::new(Some(ours)).expect("makes");
        for n in 0..1000 {
            outbox.post(&FromVmm::Running { setup_us: n });
        }
        assert!(outbox.empty() && outbox.room());
        outbox.finish();
    }
}
