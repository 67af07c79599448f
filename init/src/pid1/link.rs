//! pid1's end of the socket to the node agent.
//!
//! Owns: the queue of what the node has not taken yet. Refuses: waiting for the node.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::machines::Machines;
use crate::wire::{FromPid1, PACKET_MAX, SLOTS_MAX, ToPid1};

/// Messages that wait: the replay of every VM, an exit and an answer for each. A node that leaves more
/// unread is stuck.
const QUEUE_MAX: usize = 3 * SLOTS_MAX as usize + 16;

pub(super) struct Link {
    socket: OwnedFd,
    queue: VecDeque<FromPid1>,
}

/// What one packet brought.
pub(super) enum Heard {
    Message(ToPid1, Vec<OwnedFd>),
    /// Not a message of this version. The packet is gone.
    Nonsense(String),
    /// Nothing more waits.
    Nothing,
    /// The other end is closed.
    End,
}

impl Link {
    /// `socket` must not block. The queue begins with what a new node has to know.
    pub(super) fn new(socket: OwnedFd, machines: &Machines) -> Self {
        let queue = machines.replay().chain([FromPid1::Welcome]).collect();
        Self { socket, queue }
    }

    /// False where the node has left so much unread that it must be stuck.
    pub(super) fn say(&mut self, message: FromPid1) -> bool {
        self.queue.push_back(message);
        self.queue.len() <= QUEUE_MAX
    }

    pub(super) fn has_more_to_say(&self) -> bool {
        !self.queue.is_empty()
    }

    /// Sends until the socket is full or the queue empty.
    pub(super) fn flush(&mut self, machines: &Machines) -> io::Result<()> {
        while let Some(message) = self.queue.front() {
            let kept: Vec<BorrowedFd<'_>> = match message {
                FromPid1::Kept { vm, .. } => machines
                    .get(vm)
                    .map_or_else(Vec::new, |m| m.kept.iter().map(AsFd::as_fd).collect()),
                FromPid1::Welcome
                | FromPid1::Spawned { .. }
                | FromPid1::SpawnFailed { .. }
                | FromPid1::Exited { .. }
                | FromPid1::Drilled { .. }
                | FromPid1::Stop { .. } => Vec::new(),
            };
            let packet = serde_json::to_vec(message)?;
            match sys::socket::send(self.socket.as_fd(), &packet, &kept) {
                Ok(()) => {
                    self.queue.pop_front();
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    pub(super) fn hear(&self, buffer: &mut [u8; PACKET_MAX]) -> io::Result<Heard> {
        let received = match sys::socket::receive(self.socket.as_fd(), buffer) {
            Ok(Some(received)) => received,
            Ok(None) => return Ok(Heard::End),
            // It ended with words of ours unread.
            Err(e) if e.kind() == io::ErrorKind::ConnectionReset => return Ok(Heard::End),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(Heard::Nothing),
            Err(e) if e.kind() == io::ErrorKind::InvalidData => {
                return Ok(Heard::Nonsense(e.to_string()));
            }
            Err(e) => return Err(e),
        };
        Ok(match serde_json::from_slice(&buffer[..received.length]) {
            Ok(message) => Heard::Message(message, received.fds),
            Err(error) => Heard::Nonsense(error.to_string()),
        })
    }
}

impl AsFd for Link {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_node_hears_the_past_first_and_nothing_is_lost_when_it_reads_late() {
        let (ours, theirs) = sys::socket::pair().expect("a pair");
        sys::socket::set_nonblocking(&ours).expect("non-blocking");
        let machines = Machines::default();
        let mut link = Link::new(ours, &machines);
        let vm: types::VmId = "a".parse().expect("a valid id");
        for pid in 0..5000 {
            assert!(link.say(FromPid1::Spawned {
                vm: vm.clone(),
                pid
            }));
        }
        let mut buffer = [0; PACKET_MAX];
        let mut heard = Vec::new();
        while heard.len() < 5001 {
            link.flush(&machines).expect("send");
            let packet = sys::socket::receive(theirs.as_fd(), &mut buffer)
                .expect("receive")
                .expect("a packet");
            heard.push(
                serde_json::from_slice::<FromPid1>(&buffer[..packet.length]).expect("a message"),
            );
        }
        assert_eq!(heard[0], FromPid1::Welcome);
        assert_eq!(heard[5000], FromPid1::Spawned { vm, pid: 4999 });
    }

    #[test]
    fn nonsense_is_no_message_and_no_end() {
        let (ours, theirs) = sys::socket::pair().expect("a pair");
        let link = Link::new(ours, &Machines::default());
        sys::socket::send(theirs.as_fd(), b"{\"dance\":1}", &[]).expect("send");
        let mut buffer = [0; PACKET_MAX];
        assert!(matches!(link.hear(&mut buffer), Ok(Heard::Nonsense(_))));
        drop(theirs);
        assert!(matches!(link.hear(&mut buffer), Ok(Heard::End)));
    }
}
