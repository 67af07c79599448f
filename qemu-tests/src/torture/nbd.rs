//! The disks of a node, served to QEMU, which lose their power together, at any request.
//!
//! Owns: the server's side of the NBD protocol (NetworkBlockDevice/nbd `doc/proto.md`), as far as QEMU asks for it: the
//! fixed newstyle handshake without options but `GO`, `INFO` and `EXPORT_NAME`, simple replies, flush and FUA.
//! Refuses: several disks at one socket, disks that lose their power one by one, structured replies, TLS, trim.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};

use super::medium::{Fate, Flushes, Loss, Medium, Sectors};
use super::random::Random;

const GREETING: &[u8; 16] = b"NBDMAGICIHAVEOPT";
const OPTION_REPLY: u64 = 0x0003_e889_0455_65a9;
const REQUEST: u32 = 0x2560_9513;
const SIMPLE_REPLY: u32 = 0x6744_6698;
/// Of the handshake: fixed newstyle, and no 124 zeros after `EXPORT_NAME`.
const HANDSHAKE_FLAGS: u16 = 3;
/// Of the disk: flags are meant, flush is understood, FUA is understood.
const DISK_FLAGS: u16 = 1 | 1 << 2 | 1 << 3;
const OPTION_EXPORT_NAME: u32 = 1;
const OPTION_ABORT: u32 = 2;
const OPTION_INFO: u32 = 6;
const OPTION_GO: u32 = 7;
const REPLY_ACK: u32 = 1;
const REPLY_INFO: u32 = 3;
const REPLY_UNSUPPORTED: u32 = 1 << 31 | 1;
const INFO_EXPORT: u16 = 0;
const COMMAND_READ: u16 = 0;
const COMMAND_WRITE: u16 = 1;
const COMMAND_DISCONNECT: u16 = 2;
const COMMAND_FLUSH: u16 = 3;
const COMMAND_FUA: u16 = 1;
const EIO: u32 = 5;
const EINVAL: u32 = 22;
/// Longest option and longest request: QEMU's own limit is 32 MiB.
const LENGTH_MAX: u32 = 32 << 20;

/// Disks under power, each at a socket. Dropping them lets a request that waits for power go nowhere.
#[derive(Debug)]
pub(super) struct Disks {
    sockets: Vec<PathBuf>,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    media: Vec<Medium>,
    power: Power,
    /// Writes and flushes so far, of all disks: their own time.
    requests: u64,
}

/// Which request is the one that is not answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Until {
    Never,
    /// The write or flush of this number, of all disks.
    Request(u64),
    /// The first flush.
    Flush,
}

impl Until {
    fn is(self, request: &Request, number: u64) -> bool {
        match self {
            Self::Never => false,
            Self::Request(last) => number == last,
            Self::Flush => request.command == COMMAND_FLUSH,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Power {
    /// Until a request that is not answered any more.
    On(Until),
    Gone,
    /// The machine has ended as well: nobody waits for anything.
    Over,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Disks {
    /// Serves each of `files` at a socket of its own in `directory`, with power until one of their requests.
    pub(super) fn serve(
        files: &[PathBuf],
        directory: &Path,
        (flushes, sectors): (Flushes, Sectors),
        until: Until,
    ) -> Result<Self> {
        let (mut media, mut sockets, mut listeners) = (Vec::new(), Vec::new(), Vec::new());
        for (number, file) in files.iter().enumerate() {
            let opened = File::options().read(true).write(true).open(file);
            let opened = opened.with_context(|| format!("open {}", file.display()))?;
            media.push(Medium::new(opened, flushes, sectors));
            let socket = directory.join(format!("disk-{number}.sock"));
            if socket.exists() {
                std::fs::remove_file(&socket)?;
            }
            let listener = UnixListener::bind(&socket);
            listeners.push(listener.with_context(|| format!("listen at {}", socket.display()))?);
            sockets.push(socket);
        }
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                media,
                power: Power::On(until),
                requests: 0,
            }),
            changed: Condvar::new(),
        });
        for (number, listener) in listeners.into_iter().enumerate() {
            let serving = Arc::clone(&shared);
            // QEMU connects once. The thread ends with that connection.
            thread::spawn(move || {
                let (stream, _) = listener.accept()?;
                converse(stream, &serving, number)
            });
        }
        Ok(Self { sockets, shared })
    }

    /// What QEMU takes in the files' places.
    pub(super) fn addresses(&self) -> Vec<PathBuf> {
        let address = |socket: &PathBuf| format!("nbd:unix:{}", socket.display()).into();
        self.sockets.iter().map(address).collect()
    }

    /// Waits until the power has gone; false where `patience` was over first.
    pub(super) fn wait_for_cut(&self, patience: Duration) -> bool {
        let state = self.shared.state();
        let on = |state: &mut State| matches!(state.power, Power::On(_));
        let waited = self.shared.changed.wait_timeout_while(state, patience, on);
        let (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        !matches!(state.power, Power::On(_))
    }

    /// The power will go at the write or flush that is `more` after those so far; at least 1.
    pub(super) fn cut_after(&self, more: u64) {
        let mut state = self.shared.state();
        let last = state.requests.saturating_add(more.max(1));
        if let Power::On(until) = &mut state.power {
            *until = Until::Request(last);
        }
    }

    /// The power has gone.
    pub(super) fn is_cut(&self) -> bool {
        !matches!(self.shared.state().power, Power::On(_))
    }

    /// Takes the power, where it has not gone yet: nothing is answered from now on.
    pub(super) fn cut(&self) {
        self.shared.state().power = Power::Gone;
        self.shared.changed.notify_all();
    }

    /// Once the machine has ended: what is on each medium then, by a fate of its own.
    pub(super) fn settle(
        self,
        random: &mut Random,
        fate: impl Fn(&mut Random) -> Fate,
    ) -> Result<Vec<(Fate, Loss)>> {
        let mut state = self.shared.state();
        state.power = Power::Over;
        self.shared.changed.notify_all();
        let cut = |medium: &mut Medium| {
            let fate = fate(random);
            let loss = medium.cut(fate, random).context("write what is left")?;
            Ok((fate, loss))
        };
        state.media.iter_mut().map(cut).collect()
    }
}

fn converse(mut stream: UnixStream, shared: &Shared, disk: usize) -> io::Result<()> {
    let bytes = shared.state().media[disk].len()?;
    if !shake_hands(&mut stream, bytes)? {
        return Ok(());
    }
    loop {
        let mut head = [0; 28];
        stream.read_exact(&mut head)?;
        let request = Request::parse(&head)?;
        let mut data = vec![0; request.length as usize];
        match request.command {
            COMMAND_DISCONNECT => return Ok(()),
            COMMAND_WRITE => stream.read_exact(&mut data)?,
            COMMAND_FLUSH => data.clear(),
            _ => {}
        }
        let Some(done) = obey(&request, &mut data, shared, disk) else {
            return Ok(());
        };
        let error = match done {
            Ok(()) => 0,
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => EINVAL,
            Err(_) => EIO,
        };
        let mut reply = Vec::with_capacity(16 + data.len());
        reply.extend(SIMPLE_REPLY.to_be_bytes());
        reply.extend(error.to_be_bytes());
        reply.extend(request.cookie);
        if request.command == COMMAND_READ && error == 0 {
            reply.extend(&data);
        }
        stream.write_all(&reply)?;
    }
}

/// Does one request; `None` where the power went before it was done and the machine has ended since.
fn obey(
    request: &Request,
    data: &mut [u8],
    shared: &Shared,
    disk: usize,
) -> Option<io::Result<()>> {
    let mut state = shared.state();
    if matches!(request.command, COMMAND_WRITE | COMMAND_FLUSH) {
        state.requests += 1;
    }
    if matches!(state.power, Power::On(until) if until.is(request, state.requests)) {
        // A write that comes with the cut may be on the medium as well. It was never answered.
        if request.command == COMMAND_WRITE {
            let _ = state.media[disk].write(request.at, data);
        }
        state.power = Power::Gone;
        shared.changed.notify_all();
    }
    let gone = |state: &mut State| state.power == Power::Gone;
    let waited = shared.changed.wait_while(state, gone);
    let mut state = waited.unwrap_or_else(PoisonError::into_inner);
    if state.power == Power::Over {
        return None;
    }
    let medium = &mut state.media[disk];
    Some(match request.command {
        COMMAND_READ => medium.read(request.at, data),
        COMMAND_WRITE if request.flags & COMMAND_FUA != 0 => medium.write_through(request.at, data),
        COMMAND_WRITE => medium.write(request.at, data),
        COMMAND_FLUSH => medium.flush(),
        _ => Err(io::ErrorKind::InvalidInput.into()),
    })
}

struct Request {
    flags: u16,
    command: u16,
    cookie: [u8; 8],
    at: u64,
    length: u32,
}

impl Request {
    fn parse(head: &[u8; 28]) -> io::Result<Self> {
        let [a, b, c, d, flags0, flags1, command0, command1, ..] = *head;
        let length = u32::from_be_bytes(head[24..28].try_into().map_err(io::Error::other)?);
        if u32::from_be_bytes([a, b, c, d]) != REQUEST || length > LENGTH_MAX {
            return Err(io::ErrorKind::InvalidData.into());
        }
        Ok(Self {
            flags: u16::from_be_bytes([flags0, flags1]),
            command: u16::from_be_bytes([command0, command1]),
            cookie: head[8..16].try_into().map_err(io::Error::other)?,
            at: u64::from_be_bytes(head[16..24].try_into().map_err(io::Error::other)?),
            length,
        })
    }
}

/// False where the client has left.
fn shake_hands(stream: &mut UnixStream, bytes: u64) -> io::Result<bool> {
    stream.write_all(GREETING)?;
    stream.write_all(&HANDSHAKE_FLAGS.to_be_bytes())?;
    stream.read_exact(&mut [0; 4])?;
    loop {
        let mut head = [0; 16];
        stream.read_exact(&mut head)?;
        let word = |at: usize| head[at..at + 4].try_into().map(u32::from_be_bytes);
        let option = word(8).map_err(io::Error::other)?;
        let length = word(12).map_err(io::Error::other)?;
        if head[..8] != GREETING[8..] || length > LENGTH_MAX {
            return Err(io::ErrorKind::InvalidData.into());
        }
        stream.read_exact(&mut vec![0; length as usize])?;
        let disk = [&bytes.to_be_bytes()[..], &DISK_FLAGS.to_be_bytes()].concat();
        match option {
            OPTION_EXPORT_NAME => {
                stream.write_all(&disk)?;
                return Ok(true);
            }
            OPTION_GO | OPTION_INFO => {
                let info = [&INFO_EXPORT.to_be_bytes()[..], &disk].concat();
                answer(stream, option, REPLY_INFO, &info)?;
                answer(stream, option, REPLY_ACK, &[])?;
                if option == OPTION_GO {
                    return Ok(true);
                }
            }
            OPTION_ABORT => {
                answer(stream, option, REPLY_ACK, &[])?;
                return Ok(false);
            }
            _ => answer(stream, option, REPLY_UNSUPPORTED, &[])?,
        }
    }
}

fn answer(stream: &mut UnixStream, option: u32, kind: u32, data: &[u8]) -> io::Result<()> {
    let length = u32::try_from(data.len()).map_err(io::Error::other)?;
    let head = [
        &OPTION_REPLY.to_be_bytes()[..],
        &option.to_be_bytes(),
        &kind.to_be_bytes(),
    ];
    stream.write_all(&[&head.concat()[..], &length.to_be_bytes(), data].concat())
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    fn qemu_io(address: &Path, commands: &[&str]) -> String {
        let mut qemu_io = Command::new("qemu-io");
        qemu_io.args(["-f", "raw"]);
        commands.iter().for_each(|c| {
            qemu_io.args(["-c", c]);
        });
        let output = qemu_io.arg(address).output().expect("qemu-io runs");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    #[test]
    fn qemu_reads_what_it_wrote_and_a_cut_takes_what_it_did_not_flush() {
        let directory = tempfile::TempDir::new().expect("a directory");
        let files = ["first", "second"].map(|name| directory.path().join(name));
        for file in &files {
            let made = File::create(file).expect("made");
            made.set_len(1 << 20).expect("long");
        }
        let kind = (Flushes::Done, Sectors::Small);
        let disks = Disks::serve(&files, directory.path(), kind, Until::Never).expect("serves");
        let [first, second] = &disks.addresses()[..] else {
            panic!("not two");
        };
        let said = qemu_io(
            first,
            &[
                "write -P 7 0 64k",
                "flush",
                "write -P 8 4k 4k",
                "read -P 8 4k 4k",
            ],
        );
        assert!(said.contains("read 4096/4096 bytes"), "{said}");
        assert!(!said.contains("failed"), "{said}");
        assert!(disks.shared.state().requests >= 3);
        let said = qemu_io(second, &["write -P 9 8k 4k"]);
        assert!(!said.contains("failed"), "{said}");
        // qemu-io flushes as it ends, so all are there.
        let settled = disks.settle(&mut Random::new(0), |_| Fate::Dropped);
        assert_eq!(settled.expect("settled").len(), 2);
        let [first, second] = files.map(|file| std::fs::read(file).expect("read"));
        assert_eq!(
            (first[0], first[4096], first[8192], first[65536]),
            (7, 8, 7, 0)
        );
        assert_eq!((second[0], second[8192]), (0, 9));
    }
}
