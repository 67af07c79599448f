//! What the node says: packets of the control socket, read and sorted.
//!
//! Owns: the reading end. Lines for the guest go to [`Lines`], all else is a request to the machine.
//! Refuses: packets outside the contract, descriptors that nobody asked for, and lines beyond their bound:
//! each is answered.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex};

use types::vm::{FromVmm, ToVmm};

use super::{Lines, Outbox};
use crate::event::Source;

/// Longest message of the node: a line for the guest, or a request with its numbers.
const MESSAGE_MAX: usize = 4096;

/// A request, with the descriptors that came beside it.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) message: ToVmm,
    pub(crate) fds: Vec<OwnedFd>,
}

#[derive(Debug)]
pub(crate) struct Inbox {
    /// `None` once the node's end is closed for good.
    socket: Mutex<Option<Arc<OwnedFd>>>,
    lines: Arc<Lines>,
    outbox: Arc<Outbox>,
}

impl Inbox {
    /// Makes the socket non-blocking: our end is ours alone.
    pub(crate) fn new(
        socket: Option<Arc<OwnedFd>>,
        lines: &Arc<Lines>,
        outbox: &Arc<Outbox>,
    ) -> io::Result<Self> {
        if let Some(socket) = &socket {
            sys::socket::set_nonblocking(socket.as_fd())?;
        }
        Ok(Self {
            socket: Mutex::new(socket),
            lines: Arc::clone(lines),
            outbox: Arc::clone(outbox),
        })
    }

    fn socket(&self) -> Option<Arc<OwnedFd>> {
        self.socket
            .lock()
            .expect("no panic while the inbox was locked")
            .clone()
    }

    fn close(&self) {
        *self
            .socket
            .lock()
            .expect("no panic while the inbox was locked") = None;
    }

    fn refuse(&self, message: String) {
        self.outbox.post(&FromVmm::Refused { message });
    }

    /// Fires when the node has said something.
    pub(crate) fn source(&self) -> Source {
        self.socket()
            .map_or(Source::never(), |socket| Source::readable(socket.as_ref()))
    }

    /// The next request to the machine. `None`: all that was said has been heard.
    pub(crate) fn next(&self) -> Option<Request> {
        loop {
            let socket = self.socket()?;
            let mut packet = [0; MESSAGE_MAX];
            let received = match sys::socket::receive(socket.as_fd(), &mut packet) {
                Ok(Some(received)) => received,
                Ok(None) => {
                    self.close();
                    return None;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return None,
                Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                    self.refuse(format!(
                        "read a packet of at most {MESSAGE_MAX} bytes: {error}"
                    ));
                    continue;
                }
                Err(error) => {
                    self.refuse(format!("read the control socket: {error}"));
                    self.close();
                    return None;
                }
            };
            match serde_json::from_slice(&packet[..received.length]) {
                Ok(ToVmm::Guest(message)) => {
                    if !self.lines.add(&message) {
                        self.refuse(format!(
                            "the guest reads none of its lines: {message:?} is not kept for it"
                        ));
                    }
                }
                Ok(message) => {
                    let fds = received.fds;
                    return Some(Request { message, fds });
                }
                // The node is ours, but may be newer: what we do not know we cannot do.
                Err(error) => self.refuse(format!(
                    "no request that this VMM ({}) knows: {error}",
                    sifr::IDENTITY
                )),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use types::guest::ToGuest;

    struct Node {
        inbox: Inbox,
        lines: Arc<Lines>,
        end: OwnedFd,
    }

    impl Node {
        fn new() -> Self {
            let (ours, end) = sys::socket::pair().expect("sockets");
            let ours = Arc::new(ours);
            let lines = Arc::new(Lines::new().expect("an event counter"));
            let outbox = Arc::new(Outbox::new(Some(ours.clone())).expect("an event counter"));
            let inbox = Inbox::new(Some(ours), &lines, &outbox).expect("non-blocking");
            Self { inbox, lines, end }
        }

        fn say(&self, packet: &[u8]) {
            sys::socket::send(self.end.as_fd(), packet, &[]).expect("sends");
        }

        fn hear(&self) -> FromVmm {
            let mut packet = [0; MESSAGE_MAX];
            let got = sys::socket::receive(self.end.as_fd(), &mut packet).expect("receives");
            let length = got.expect("open").length;
            serde_json::from_slice(&packet[..length]).expect("a message")
        }
    }

    #[test]
    fn a_request_is_heard_behind_lines_that_the_guest_never_reads() {
        let node = Node::new();
        let line = serde_json::to_vec(&ToVmm::Guest(ToGuest::Stop)).expect("plain data");
        for _ in 0..40 {
            node.say(&line);
            assert!(node.inbox.next().is_none());
        }
        node.say(b"\"pause\"");
        let request = node.inbox.next().expect("a request");
        assert_eq!(request.message, ToVmm::Pause);
        assert!(matches!(node.hear(), FromVmm::Refused { .. }));
        assert!(node.lines.take().is_some());
    }

    #[test]
    fn what_is_no_request_is_answered_and_the_next_one_is_heard() {
        let node = Node::new();
        for nonsense in [&b"{\"levitate\":{}}"[..], &[0xff], &[b' '; MESSAGE_MAX + 1]] {
            node.say(nonsense);
            assert!(node.inbox.next().is_none());
            assert!(matches!(node.hear(), FromVmm::Refused { .. }));
        }
        node.say(b"\"resume\"");
        assert_eq!(node.inbox.next().expect("one").message, ToVmm::Resume);
    }

    #[test]
    fn descriptors_come_with_their_request() {
        let node = Node::new();
        let (reader, writer) = std::io::pipe().expect("a pipe");
        let request = ToVmm::Snapshot {
            kind: types::vm::SnapshotKind::Full,
        };
        let packet = serde_json::to_vec(&request).expect("plain data");
        let fds = [reader.as_fd(), writer.as_fd()];
        sys::socket::send(node.end.as_fd(), &packet, &fds).expect("sends");
        let heard = node.inbox.next().expect("a request");
        assert_eq!((heard.message, heard.fds.len()), (request, 2));
    }
}
