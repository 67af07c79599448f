//! Connections of programs in the guest with programs of the host, by stream sockets that a broker passes.
//!
//! Owns: what is said to the broker and heard from it, and the bytes between a connection and its stream.
//! Refuses: ports of the host that the specification does not name; to listen and to connect, which is the broker's.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::sys::socket::{Shutdown, shutdown};
use types::guest::{CONTROL_PORT, STDERR_PORT, STDOUT_PORT};
use types::vm::{FromBroker, SOCKET_PORT_MAX, ToBroker};

use super::connection::{BUFFER_BYTES, Connection, Reset};
use crate::event::Source;

/// Longest packet of a broker: a word and two numbers.
const PACKET_MAX: usize = 256;
/// Bytes for the guest that may wait in a connection before more is read of its stream.
const UNSENT_MAX: usize = BUFFER_BYTES as usize;
/// What is read of a stream at once. Below 32 KiB it is one packet of the guest's driver.
const READ_BYTES: usize = 16 << 10;
/// VMADDR_PORT_ANY is no port.
const PORT_LAST: u32 = u32::MAX - 1;

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SocketsError {
    #[error(
        "vsock port {0} of the host cannot be named: use 1 to {SOCKET_PORT_MAX}, but not {CONTROL_PORT} to {STDERR_PORT}, which are the guest's init's"
    )]
    Port(u32),
    #[error("vsock port {0} of the host is named twice")]
    Twice(u32),
}

/// What can be said of ports without their broker.
pub(crate) fn check(ports: &[u32]) -> Result<(), SocketsError> {
    let mut seen = BTreeSet::new();
    for port in ports {
        let init = [CONTROL_PORT, STDOUT_PORT, STDERR_PORT].contains(port);
        if init || *port == 0 || *port > SOCKET_PORT_MAX {
            return Err(SocketsError::Port(*port));
        }
        if !seen.insert(port) {
            return Err(SocketsError::Twice(*port));
        }
    }
    Ok(())
}

/// What the broker has said.
#[derive(Debug)]
pub(super) enum News {
    Accepted {
        port: u32,
        guest_port: u32,
        stream: Option<Stream>,
    },
    Connect {
        guest_port: u32,
        stream: Stream,
    },
    /// It is gone, and answers nothing any more.
    Gone,
}

#[derive(Debug)]
pub(crate) struct Broker {
    /// `None` once its other end is closed.
    socket: Option<OwnedFd>,
    ports: BTreeSet<u32>,
    /// From which the host connects next.
    next: u32,
}

impl Broker {
    /// Makes the socket non-blocking: our end is ours alone.
    pub(crate) fn new(socket: OwnedFd, ports: &[u32]) -> io::Result<Self> {
        sys::socket::set_nonblocking(&socket)?;
        Ok(Self {
            socket: Some(socket),
            ports: ports.iter().copied().collect(),
            next: SOCKET_PORT_MAX,
        })
    }

    /// Asks for a stream to `port`. False where there is none to be had.
    pub(super) fn ask(&self, port: u32, guest_port: u32) -> bool {
        let Some(socket) = self.socket.as_ref().filter(|_| self.ports.contains(&port)) else {
            return false;
        };
        let packet = serde_json::to_vec(&ToBroker { port, guest_port }).expect("plain data");
        sys::socket::send(socket.as_fd(), &packet, &[]).is_ok()
    }

    /// A port of the host that no connection begins at, as `taken` knows.
    pub(super) fn free_port(&mut self, taken: impl Fn(u32) -> bool) -> u32 {
        loop {
            self.next = match self.next {
                PORT_LAST => SOCKET_PORT_MAX + 1,
                port => port + 1,
            };
            if !taken(self.next) {
                return self.next;
            }
        }
    }

    pub(super) fn source(&self) -> Source {
        self.socket
            .as_ref()
            .map_or(Source::never(), Source::readable)
    }

    /// The next of what it has said. Packets outside the contract are left out.
    pub(super) fn hear(&mut self) -> Option<News> {
        loop {
            let socket = self.socket.as_ref()?;
            let mut packet = [0; PACKET_MAX];
            let received = match sys::socket::receive(socket.as_fd(), &mut packet) {
                Ok(Some(received)) => received,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return None,
                Err(error) if error.kind() == ErrorKind::InvalidData => continue,
                Ok(None) | Err(_) => {
                    self.socket = None;
                    return Some(News::Gone);
                }
            };
            let stream = received.fds.into_iter().next().map(Stream::new);
            match (
                serde_json::from_slice(&packet[..received.length]).ok(),
                stream,
            ) {
                (Some(FromBroker::Accepted { port, guest_port }), stream) => {
                    return Some(News::Accepted {
                        port,
                        guest_port,
                        stream,
                    });
                }
                (Some(FromBroker::Connect { guest_port }), Some(stream)) => {
                    return Some(News::Connect { guest_port, stream });
                }
                (Some(FromBroker::Connect { .. }) | None, _) => {}
            }
        }
    }
}

/// The host's end of one connection: connected, non-blocking.
#[derive(Debug)]
pub(super) struct Stream {
    file: File,
    /// The host has been told that the guest says nothing more.
    told: bool,
}

impl Stream {
    fn new(socket: OwnedFd) -> Self {
        Self {
            file: socket.into(),
            told: false,
        }
    }

    /// What to wait for: room for the guest's bytes, and the host's, as far as the guest takes them.
    pub(super) fn sources(&self, connection: &Connection, inbox: &[u8], out: &mut Vec<Source>) {
        if !inbox.is_empty() {
            out.push(Source::writable(&self.file.as_raw_fd()));
        }
        if connection.reads() && connection.unsent() < UNSENT_MAX {
            out.push(Source::readable(&self.file.as_raw_fd()));
        }
    }

    /// Moves bytes both ways, as far as there is room. An error: the host's end is gone.
    pub(super) fn forward(
        &mut self,
        connection: &mut Connection,
        inbox: &mut Vec<u8>,
    ) -> Result<(), Reset> {
        self.give(connection, inbox)?;
        if connection.half_closed() && inbox.is_empty() && !self.told {
            self.told = true;
            shutdown(self.file.as_raw_fd(), Shutdown::Write).map_err(|_| Reset)?;
        }
        self.take(connection)
    }

    fn give(&mut self, connection: &mut Connection, inbox: &mut Vec<u8>) -> Result<(), Reset> {
        let mut given = 0;
        while given < inbox.len() {
            match self.file.write(&inbox[given..]) {
                Ok(count) => given += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return Err(Reset),
            }
        }
        inbox.drain(..given);
        connection.forward(u32::try_from(given).expect("within the buffer"));
        Ok(())
    }

    fn take(&mut self, connection: &mut Connection) -> Result<(), Reset> {
        let mut bytes = [0; READ_BYTES];
        while connection.reads() && connection.unsent() < UNSENT_MAX {
            let room = (UNSENT_MAX - connection.unsent()).min(READ_BYTES);
            match self.file.read(&mut bytes[..room]) {
                Ok(0) => connection.end(),
                Ok(count) => connection.send(&bytes[..count]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return Err(Reset),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::os::unix::net::UnixStream;

    use super::super::packet::{Header, NO_SEND};
    use super::*;

    /// All that a broker and a stream ever call, for the filters' tests.
    pub(crate) struct Work {
        broker: Broker,
        stream: Stream,
        /// Theirs, which only have to be there.
        _ends: (OwnedFd, UnixStream),
    }

    impl Work {
        pub(crate) fn new() -> Self {
            let (ours, host) = sys::socket::pair().expect("sockets");
            let (stream, program) = UnixStream::pair().expect("sockets");
            stream.set_nonblocking(true).expect("a flag");
            Self {
                broker: Broker::new(ours, &[1]).expect("a flag"),
                stream: Stream::new(stream.into()),
                _ends: (host, program),
            }
        }

        pub(crate) fn work(mut self) {
            assert!(self.broker.ask(1, 2) && self.broker.hear().is_none());
            let mut connection = Connection::new(&Header::default());
            connection.receive(3).expect("credit");
            connection.guest_shutdown(NO_SEND).expect("agreed");
            let mut inbox = vec![1, 2, 3];
            let forwarded = self.stream.forward(&mut connection, &mut inbox);
            assert!(forwarded.is_ok() && inbox.is_empty() && self.stream.told);
            // Nothing is dropped: see `confine::tests::done`.
            std::mem::forget(self);
        }
    }

    #[test]
    fn ports_are_named_once_and_those_of_the_init_never() {
        assert_eq!(check(&[1, 22, SOCKET_PORT_MAX]), Ok(()));
        for port in [0, CONTROL_PORT, STDERR_PORT, SOCKET_PORT_MAX + 1] {
            assert_eq!(check(&[22, port]), Err(SocketsError::Port(port)));
        }
        assert_eq!(check(&[22, 23, 22]), Err(SocketsError::Twice(22)));
    }

    #[test]
    fn ports_of_the_host_go_round_and_leave_out_those_in_use() {
        let (ours, _theirs) = sys::socket::pair().expect("sockets");
        let mut broker = Broker::new(ours, &[]).expect("a flag");
        let first = broker.free_port(|_| false);
        assert_eq!(first, SOCKET_PORT_MAX + 1);
        assert_eq!(broker.free_port(|port| port == first + 1), first + 2);
        broker.next = PORT_LAST;
        assert_eq!(broker.free_port(|_| false), first);
    }
}
