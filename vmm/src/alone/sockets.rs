//! Programs of the host at the guest's vsock: the broker of one machine.
//!
//! Owns: the paths that are listened at and connected to. Bytes are not its business: each connected socket goes to the
//! machine's process, which moves them.
//! Refuses: to wait. A path at which nobody listens, or has no room for one more, is a refusal for the guest.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use types::vm::{FromBroker, ToBroker};

use super::listener::{ListenError, Listener};
use super::spec::{From, SocketFile};

/// Longest packet of the machine: two numbers.
const PACKET_MAX: usize = 256;
/// Connections of one turn, so that others get theirs.
const TURN_MAX: usize = 16;

/// One that is listened at, for a port of the guest.
#[derive(Debug)]
struct Entrance {
    listener: Listener,
    guest_port: u32,
}

#[derive(Debug)]
pub(super) struct Sockets {
    /// Towards the machine's process, non-blocking.
    machine: OwnedFd,
    entrances: Vec<Entrance>,
    /// By port of the host.
    exits: Vec<(u32, PathBuf)>,
}

impl Sockets {
    /// Listens. `base`: the directory that relative paths begin at.
    pub(super) fn open(
        machine: OwnedFd,
        files: &[SocketFile],
        base: &Path,
    ) -> Result<Self, ListenError> {
        let (mut entrances, mut exits) = (Vec::new(), Vec::new());
        for file in files {
            let path = base.join(&file.path);
            match file.from {
                From::Guest => exits.push((file.port, path)),
                From::Host => entrances.push(Entrance {
                    listener: Listener::stream(&path)?,
                    guest_port: file.port,
                }),
            }
        }
        Ok(Self {
            machine,
            entrances,
            exits,
        })
    }

    pub(super) fn machine(&self) -> BorrowedFd<'_> {
        self.machine.as_fd()
    }

    pub(super) fn entrances(&self) -> impl Iterator<Item = (usize, BorrowedFd<'_>)> {
        let fds = self.entrances.iter().map(|entrance| entrance.listener.fd());
        fds.enumerate()
    }

    /// Takes who waits at an entrance. Where the machine takes no more they are sent away.
    pub(super) fn accept(&self, number: usize) {
        let Some(entrance) = self.entrances.get(number) else {
            return;
        };
        for _ in 0..TURN_MAX {
            // One that went away meanwhile is none.
            let Ok(stream) = sys::seqpacket::accept(entrance.listener.fd()) else {
                return;
            };
            let guest_port = entrance.guest_port;
            let _ = self.tell(&FromBroker::Connect { guest_port }, &[stream.as_fd()]);
        }
    }

    /// Hears one request of the machine. False where there is none, for good or for now.
    pub(super) fn hear(&self) -> bool {
        let mut packet = [0; PACKET_MAX];
        let Ok(Some(received)) = sys::socket::receive(self.machine(), &mut packet) else {
            return false;
        };
        let Ok(asked) = serde_json::from_slice::<ToBroker>(&packet[..received.length]) else {
            return true;
        };
        let ToBroker { port, guest_port } = asked;
        let answer = FromBroker::Accepted { port, guest_port };
        let exit = self.exits.iter().find(|exit| exit.0 == port);
        let stream = exit.and_then(|(_, path)| sys::seqpacket::connect_stream(path).ok());
        let stream: Vec<_> = stream.iter().map(AsFd::as_fd).collect();
        // A machine that does not hear is about to end.
        let _ = self.tell(&answer, &stream);
        true
    }

    fn tell(&self, message: &FromBroker, stream: &[BorrowedFd<'_>]) -> io::Result<()> {
        let packet = serde_json::to_vec(message).expect("plain data");
        sys::socket::send(self.machine(), &packet, stream)
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::{UnixListener, UnixStream};

    use super::*;

    fn file(port: u32, path: &str, from: From) -> SocketFile {
        let path = path.into();
        SocketFile { port, path, from }
    }

    fn heard(machine: &OwnedFd) -> (FromBroker, Option<UnixStream>) {
        let mut packet = [0; PACKET_MAX];
        let received = sys::socket::receive(machine.as_fd(), &mut packet).expect("receives");
        let received = received.expect("a packet");
        let message = serde_json::from_slice(&packet[..received.length]).expect("a message");
        (message, received.fds.into_iter().next().map(Into::into))
    }

    #[test]
    fn the_guest_gets_who_listens_and_a_refusal_where_nobody_does() {
        let directory = tempfile::tempdir().expect("a directory");
        let listener = UnixListener::bind(directory.path().join("web")).expect("listens");
        let (ours, machine) = sys::socket::pair().expect("sockets");
        sys::socket::set_nonblocking(&ours).expect("a flag");
        let files = [file(80, "web", From::Guest), file(81, "gone", From::Guest)];
        let sockets = Sockets::open(ours, &files, directory.path()).expect("nothing to listen at");
        assert!(!sockets.hear());
        for (port, there) in [(80, true), (81, false), (82, false)] {
            let guest_port = port + 1000;
            let asked = serde_json::to_vec(&ToBroker { port, guest_port }).expect("plain data");
            sys::socket::send(machine.as_fd(), &asked, &[]).expect("sends");
            assert!(sockets.hear());
            let (answer, stream) = heard(&machine);
            assert_eq!(answer, FromBroker::Accepted { port, guest_port });
            assert_eq!(stream.is_some(), there, "{port}");
            if let Some(mut stream) = stream {
                stream.write_all(b"x").expect("connected");
                let (mut other, _) = listener.accept().expect("connected");
                other.read_exact(&mut [0]).expect("a byte");
            }
        }
    }

    #[test]
    fn who_connects_to_a_path_is_passed_with_the_guests_port_and_the_path_goes_in_the_end() {
        let directory = tempfile::tempdir().expect("a directory");
        let (ours, machine) = sys::socket::pair().expect("sockets");
        sys::socket::set_nonblocking(&ours).expect("a flag");
        let path = directory.path().join("ssh");
        let sockets = Sockets::open(ours, &[file(22, "ssh", From::Host)], directory.path());
        let sockets = sockets.expect("listens");
        let _clients = [0; 2].map(|_| UnixStream::connect(&path).expect("connects"));
        sockets.accept(0);
        for _ in 0..2 {
            let (message, stream) = heard(&machine);
            assert_eq!(message, FromBroker::Connect { guest_port: 22 });
            let nothing = stream.expect("a socket").read(&mut [0]).expect_err("empty");
            assert_eq!(nothing.kind(), io::ErrorKind::WouldBlock);
        }
        drop(sockets);
        assert!(!path.exists());
    }
}
