//! The node's sign of life to pid1, which ends a node that gives none.
//!
//! Owns: how often it is given, and giving it while the boot's phases wait for disks: from a thread, as
//! reading every disk or repairing a pool's file system blocks for as long as it takes.
//! Refuses: speaking for the engine. Once that serves, only its own loop may say that it turns.

use std::convert::Infallible;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::Duration;

use crate::wire::ToPid1;

/// Six times within pid1's patience.
pub(crate) const EVERY: Duration = Duration::from_secs(10);
/// Longest that the phases may take: the repair of a full pool of the largest disks reads all their metadata.
/// What takes longer hangs.
const PHASES_MAX: Duration = Duration::from_secs(12 * 60 * 60);

/// Gives the sign until it is dropped.
#[derive(Debug)]
pub(crate) struct Pulse(
    #[expect(dead_code, reason = "its end is what the thread waits for")] Sender<Infallible>,
);

impl Pulse {
    pub(crate) fn start(pid1: &OwnedFd) -> io::Result<Self> {
        Self::every(pid1, EVERY, PHASES_MAX)
    }

    fn every(pid1: &OwnedFd, every: Duration, longest: Duration) -> io::Result<Self> {
        let socket = pid1.try_clone()?;
        let (alive, ended) = mpsc::channel();
        thread::Builder::new()
            .name("pulse".to_owned())
            .spawn(move || beat(&socket, &ended, every, longest))?;
        Ok(Self(alive))
    }
}

fn beat(socket: &OwnedFd, ended: &Receiver<Infallible>, every: Duration, longest: Duration) {
    let packet = serde_json::to_vec(&ToPid1::Alive).expect("plain data");
    let mut beaten = Duration::ZERO;
    while beaten < longest {
        // A full socket holds signs enough. One that pid1 has closed is no concern of this thread's.
        let _ = sys::socket::send(socket.as_fd(), &packet, &[]);
        match ended.recv_timeout(every) {
            Err(RecvTimeoutError::Timeout) => beaten += every,
            Err(RecvTimeoutError::Disconnected) => return,
            Ok(never) => match never {},
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn next(socket: &OwnedFd) -> Option<ToPid1> {
        let mut buffer = [0; 64];
        let received = sys::socket::receive(socket.as_fd(), &mut buffer).expect("a socket")?;
        Some(serde_json::from_slice(&buffer[..received.length]).expect("a message"))
    }

    #[test]
    fn a_blocked_boot_gives_signs_of_life_until_it_is_over() {
        let (node, pid1) = sys::socket::pair().expect("a pair");
        let soon = Duration::from_millis(5);
        let pulse = Pulse::every(&node, soon, Duration::MAX).expect("a thread");
        drop(node);
        for _ in 0..5 {
            assert_eq!(next(&pid1), Some(ToPid1::Alive));
        }
        drop(pulse);
        // The thread's copy of the socket goes with it.
        while next(&pid1).is_some() {}
    }

    #[test]
    fn phases_that_never_end_are_not_spoken_for_without_end() {
        let (node, pid1) = sys::socket::pair().expect("a pair");
        let soon = Duration::from_millis(5);
        let _pulse = Pulse::every(&node, soon, 3 * soon).expect("a thread");
        drop(node);
        let signs = std::iter::from_fn(|| next(&pid1)).count();
        assert_eq!(signs, 3);
    }
}
