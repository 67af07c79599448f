//! Between the control socket at a path and the machine's process.
//!
//! Owns: the connections, and whose turn an answer is. The machine answers in the order in which it was asked.
//! Refuses: more connections and waiting requests than its limits, and to wait for
//! one who does not read.

use std::collections::{BTreeMap, VecDeque};
use std::fs::{File, TryLockError};
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use types::vm::{CONTROL_PACKET_MAX, ToVmm};

use super::listener::{ListenError, Listener};
use super::request::{Answer, Deed, understand};

/// Connections at once: a person, a script, a collector of metrics, each perhaps twice.
const CLIENTS_MAX: usize = 8;
/// Requests that the machine has not answered; it reads one after the other.
const PENDING_MAX: usize = 32;

/// Whose a request is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Asker {
    Client(u64),
    /// The front end itself.
    Front,
}

/// What a client's packet asks of the front end.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Heard {
    Nothing,
    Stop,
}

#[derive(Debug)]
pub(super) struct Bridge {
    listener: Option<Listener>,
    clients: BTreeMap<u64, OwnedFd>,
    next: u64,
    /// Towards the machine's process, non-blocking.
    machine: OwnedFd,
    pending: VecDeque<Asker>,
}

impl Bridge {
    /// `machine`: our end of the machine's control socket.
    pub(super) fn new(machine: OwnedFd, path: Option<&Path>) -> Result<Self, ListenError> {
        Ok(Self {
            listener: path.map(Listener::packets).transpose()?,
            clients: BTreeMap::new(),
            next: 0,
            machine,
            pending: VecDeque::new(),
        })
    }

    pub(super) fn machine(&self) -> BorrowedFd<'_> {
        self.machine.as_fd()
    }

    /// Where connections come from, while there is room for one.
    pub(super) fn listener(&self) -> Option<BorrowedFd<'_>> {
        let listener = self.listener.as_ref()?;
        (self.clients.len() < CLIENTS_MAX).then(|| listener.fd())
    }

    pub(super) fn clients(&self) -> impl Iterator<Item = (u64, BorrowedFd<'_>)> {
        self.clients.iter().map(|(id, fd)| (*id, fd.as_fd()))
    }

    /// Takes a connection that waits.
    pub(super) fn accept(&mut self) {
        // One that went away meanwhile is none.
        if let Some(listener) = self.listener()
            && let Ok(client) = sys::seqpacket::accept(listener)
        {
            self.clients.insert(self.next, client);
            self.next += 1;
        }
    }

    /// Hears one packet of a client.
    pub(super) fn hear(&mut self, id: u64) -> Heard {
        let Some(client) = self.clients.get(&id) else {
            return Heard::Nothing;
        };
        let mut packet = vec![0; CONTROL_PACKET_MAX];
        let received = match sys::socket::receive(client.as_fd(), &mut packet) {
            Ok(Some(received)) => received,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Heard::Nothing,
            Err(error) if error.kind() == ErrorKind::InvalidData => {
                self.refuse(
                    id,
                    format!("a packet has at most {CONTROL_PACKET_MAX} bytes"),
                );
                return Heard::Nothing;
            }
            Ok(None) | Err(_) => {
                self.clients.remove(&id);
                return Heard::Nothing;
            }
        };
        match understand(&packet[..received.length]) {
            Deed::Refuse(message) => self.refuse(id, message),
            Deed::Stop => {
                let (took_us, bytes) = (0, 0);
                self.tell(id, &Answer::Done { took_us, bytes });
                return Heard::Stop;
            }
            Deed::Ask(message, files) => {
                if let Err(message) = self.forward(id, &message, &files) {
                    self.refuse(id, message);
                }
            }
        }
        Heard::Nothing
    }

    fn forward(&mut self, id: u64, message: &ToVmm, files: &[PathBuf]) -> Result<(), String> {
        if self.pending.len() >= PENDING_MAX {
            return Err(format!("{PENDING_MAX} requests wait already"));
        }
        let mut opened = Vec::with_capacity(files.len());
        for path in files {
            opened.push(draft(path).map_err(|e| format!("open {}: {e}", path.display()))?);
        }
        let fds: Vec<_> = opened.iter().map(AsFd::as_fd).collect();
        self.ask(Asker::Client(id), message, &fds)
            .map_err(|error| format!("the machine does not listen: {error}"))
    }

    /// Asks the machine, whose answer comes later.
    pub(super) fn ask(
        &mut self,
        asker: Asker,
        message: &ToVmm,
        fds: &[BorrowedFd<'_>],
    ) -> io::Result<()> {
        let packet = serde_json::to_vec(message).expect("plain data");
        sys::socket::send(self.machine.as_fd(), &packet, fds)?;
        // A line for the guest has no answer.
        if !matches!(message, ToVmm::Guest(_)) {
            self.pending.push_back(asker);
        }
        Ok(())
    }

    /// The machine has answered: to whom.
    pub(super) fn answer(&mut self, answer: &Answer) -> Option<Asker> {
        let asker = self.pending.pop_front()?;
        if let Asker::Client(id) = asker {
            self.tell(id, answer);
        }
        Some(asker)
    }

    fn refuse(&mut self, id: u64, message: String) {
        self.tell(id, &Answer::Refused { message });
    }

    /// A client that has no room for its answer, or is gone, is cut off.
    fn tell(&mut self, id: u64, answer: &Answer) {
        let packet = serde_json::to_vec(answer).expect("plain data");
        if let Some(client) = self.clients.get(&id)
            && sys::socket::send(client.as_fd(), &packet, &[]).is_err()
        {
            self.clients.remove(&id);
        }
    }
}

/// A file for the machine to fill: a regular one, for its owner alone.
fn draft(path: &Path) -> io::Result<File> {
    let mut options = File::options();
    let options = options.read(true).write(true).create(true).mode(0o600);
    // A pipe at this place would wait for its other end.
    let file = options.custom_flags(libc::O_NONBLOCK).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(ErrorKind::InvalidInput, "no regular file"));
    }
    // Memory that a machine runs from would be cut off below it.
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(io::Error::new(
            ErrorKind::ResourceBusy,
            "a machine goes on from this file, or writes it: choose another",
        )),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct World {
        directory: tempfile::TempDir,
        bridge: Bridge,
        /// The machine's end of its control socket.
        machine: OwnedFd,
    }

    impl World {
        fn new() -> Self {
            let directory = tempfile::tempdir().expect("directory");
            let (ours, machine) = sys::socket::pair().expect("sockets");
            for end in [&ours, &machine] {
                sys::socket::set_nonblocking(end).expect("a flag of every socket");
            }
            let path = directory.path().join("control");
            let bridge = Bridge::new(ours, Some(&path)).expect("listens");
            Self {
                directory,
                bridge,
                machine,
            }
        }

        /// A client and its number.
        fn client(&mut self) -> (OwnedFd, u64) {
            let path = self.directory.path().join("control");
            let client = sys::seqpacket::connect(&path).expect("connects");
            sys::socket::set_nonblocking(&client).expect("a flag of every socket");
            let id = self.bridge.next;
            self.bridge.accept();
            assert!(self.bridge.clients.contains_key(&id));
            (client, id)
        }

        fn ask(&mut self, client: &(OwnedFd, u64), text: &str) -> Heard {
            sys::socket::send(client.0.as_fd(), text.as_bytes(), &[]).expect("sends");
            self.bridge.hear(client.1)
        }
    }

    fn packet(fd: &OwnedFd) -> Option<(String, usize)> {
        let mut bytes = vec![0; CONTROL_PACKET_MAX];
        let received = sys::socket::receive(fd.as_fd(), &mut bytes).ok()??;
        let text = String::from_utf8(bytes[..received.length].to_vec()).expect("JSON");
        Some((text, received.fds.len()))
    }

    const DONE: Answer = Answer::Done {
        took_us: 1,
        bytes: 2,
    };

    #[test]
    fn answers_find_who_asked_in_the_order_of_asking() {
        let mut world = World::new();
        let (a, b) = (world.client(), world.client());
        world.ask(&a, r#"{"request":"pause"}"#);
        world.ask(&b, r#"{"request":"resume"}"#);
        let asked = [packet(&world.machine), packet(&world.machine)];
        assert_eq!(
            asked,
            [r#""pause""#, r#""resume""#].map(|t| Some((t.to_owned(), 0)))
        );
        let refused = Answer::Refused {
            message: "no".to_owned(),
        };
        assert_eq!(world.bridge.answer(&DONE), Some(Asker::Client(a.1)));
        assert_eq!(world.bridge.answer(&refused), Some(Asker::Client(b.1)));
        assert_eq!(world.bridge.answer(&DONE), None);
        assert!(packet(&a.0).expect("an answer").0.contains("done"));
        assert!(packet(&b.0).expect("an answer").0.contains("refused"));
    }

    #[test]
    fn a_snapshot_brings_two_open_files() {
        let mut world = World::new();
        let client = world.client();
        let place = world.directory.path().display().to_string();
        world.ask(
            &client,
            &format!(r#"{{"request":"snapshot","state":"{place}/s","memory":"{place}/m"}}"#),
        );
        assert_eq!(packet(&world.machine).expect("asked").1, 2);
        world.ask(
            &client,
            &format!(r#"{{"request":"snapshot","state":"{place}/no/s","memory":"{place}/m"}}"#),
        );
        let (text, _) = packet(&client.0).expect("refused at once");
        assert!(text.contains("refused") && text.contains("/no/s"), "{text}");
        // A directory is no file.
        world.ask(
            &client,
            &format!(r#"{{"request":"snapshot","state":"{place}","memory":"{place}/m"}}"#),
        );
        assert!(packet(&client.0).expect("refused").0.contains("open"));
        assert!(packet(&world.machine).is_none());
    }

    #[test]
    fn more_than_the_machine_can_keep_is_refused_and_a_client_that_left_is_forgotten() {
        let mut world = World::new();
        let client = world.client();
        for _ in 0..PENDING_MAX {
            world.ask(&client, r#"{"request":"metrics"}"#);
        }
        assert!(packet(&client.0).is_none());
        world.ask(&client, r#"{"request":"metrics"}"#);
        assert!(
            packet(&client.0)
                .expect("refused")
                .0
                .contains("wait already")
        );
        let id = client.1;
        drop(client);
        world.bridge.hear(id);
        assert!(world.bridge.clients.is_empty());
        assert_eq!(world.bridge.answer(&DONE), Some(Asker::Client(id)));
    }

    #[test]
    fn a_full_house_takes_no_connection_until_one_leaves() {
        let mut world = World::new();
        let mut clients: Vec<_> = (0..CLIENTS_MAX).map(|_| world.client()).collect();
        assert!(world.bridge.listener().is_none());
        let (fd, id) = clients.remove(0);
        drop(fd);
        world.bridge.hear(id);
        assert!(world.bridge.listener().is_some());
    }

    #[test]
    fn stop_is_the_front_ends_and_is_acknowledged() {
        let mut world = World::new();
        let client = world.client();
        assert_eq!(world.ask(&client, r#"{"request":"stop"}"#), Heard::Stop);
        assert!(packet(&client.0).expect("an answer").0.contains("done"));
        assert!(packet(&world.machine).is_none());
    }
}
