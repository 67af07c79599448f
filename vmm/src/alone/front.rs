//! The small parent of one machine's process: starts it, speaks for it, and ends it.
//!
//! ```text
//!  Running ──asked to stop──► Stopping (its init shuts down) ──limit──► Pausing ──paused, limit──► Killed
//!     └───── asked to stop, and the guest has no init that hears it ─────┘          asked again ──► Killed
//! ```
//!
//! Owns: the process, its jail where there is root, the console, signals.
//! Refuses: to outlive the machine, and to keep a machine whose devices are in the middle of something from
//! finishing it: before it is killed it is paused.

use std::ffi::CString;
use std::fs::{self, DirBuilder, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use sys::process::{Child, Confinement, Ended, Program};
use sys::signal::{Signal, Signals};
use types::guest::ToGuest;
use types::vm::{CONTROL_PACKET_MAX, FromVmm, ToVmm, VmSpec};

use super::bridge::{Asker, Bridge, Heard};
use super::listener::ListenError;
use super::open::Opened;
use super::request::{Answer, answer};
use super::sockets::Sockets;
use super::terminal::{Input, Typed};

/// How long a guest's init may take: the stop signal's grace and a minute to write out its disk.
const STOP_LIMIT: Duration = Duration::from_secs(90);
/// How long the machine may take to come to rest: its devices finish what they have begun.
const PAUSE_LIMIT: Duration = Duration::from_secs(5);
/// Bytes of the console copied at a time.
const CONSOLE_BYTES: usize = 64 << 10;

/// Exit status: the machine was ended from outside.
const STOPPED: u8 = 3;
/// As shells count: a signal ended the process.
const SIGNALLED: u8 = 128;

/// Under root: the machine's root directory, in which nothing is.
const EMPTY_ROOT: &str = "/run/sifr-vmm";
/// User and group of a machine under root, with the parent's process number added: above what systemd and
/// containers give away (systemd's document UIDS-GIDS), below 2^31.
const FIRST_ID: u32 = 1_900_000_000;
/// Descriptors of a machine: what it inherits, and as many again for its own events and connections.
const FILES_MAX: u64 = 1024;
/// This program.
const ITSELF: &str = "/proc/self/exe";

#[derive(Debug, thiserror::Error)]
pub(crate) enum FrontError {
    #[error("check `--control`")]
    Listen(#[from] ListenError),
    #[error("open {ITSELF}: mount /proc")]
    Itself(#[source] io::Error),
    #[error("make the empty directory {EMPTY_ROOT}, the root of machines that root starts")]
    EmptyRoot(#[source] io::Error),
    #[error("{EMPTY_ROOT} is not an empty directory of root's: remove it")]
    NotEmpty,
    #[error("start the machine's process")]
    Start(#[source] sys::Error),
    #[error(
        "start the machine's process: root that may not make namespaces cannot jail it, so start it as a user who may open /dev/kvm"
    )]
    Namespaces(#[source] sys::Error),
    #[error(
        "start the machine's process: in its empty root there are no shared libraries, so use a static sifr-vmm (`cargo build --release -p vmm --target x86_64-unknown-linux-musl`)"
    )]
    Dynamic(#[source] sys::Error),
    #[error("name the machine's process")]
    Name(#[source] std::ffi::NulError),
    #[error("prepare the machine's process")]
    Prepare(#[source] sys::Error),
    #[error("{0}")]
    Io(&'static str, #[source] io::Error),
}

/// Where the end of the machine stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Running,
    /// Its init was told to stop.
    Stopping {
        until: Instant,
    },
    /// It comes to rest, to be killed.
    Pausing {
        until: Instant,
    },
    Killed,
}

/// What to do next about the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Wait,
    TellInit,
    Pause,
    Kill,
}

/// What may end a phase.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Event {
    /// A signal, or a request on the control socket.
    AskedToStop,
    Time,
    Paused,
}

impl Phase {
    /// What `event` leads to. `init_speaks`: the guest's init has a connection, and so hears.
    fn step(self, event: Event, init_speaks: bool) -> Step {
        match (self, event) {
            (Self::Running, Event::AskedToStop) if init_speaks => Step::TellInit,
            (Self::Running, Event::AskedToStop) | (Self::Stopping { .. }, Event::Time) => {
                Step::Pause
            }
            (Self::Stopping { .. } | Self::Pausing { .. }, Event::AskedToStop)
            | (Self::Pausing { .. }, Event::Time | Event::Paused) => Step::Kill,
            (Self::Running, Event::Time | Event::Paused)
            | (Self::Stopping { .. }, Event::Paused)
            | (Self::Killed, _) => Step::Wait,
        }
    }

    fn deadline(self) -> Option<Instant> {
        match self {
            Self::Stopping { until } | Self::Pausing { until } => Some(until),
            Self::Running | Self::Killed => None,
        }
    }
}

struct Front {
    child: Child,
    bridge: Bridge,
    sockets: Option<Sockets>,
    console: Option<UnixStream>,
    /// Of a console that is a terminal.
    input: Option<Input>,
    signals: Signals,
    phase: Phase,
    init_speaks: bool,
}

/// Starts the machine and stays until it has ended. Its exit status.
pub(super) fn run(opened: Opened, control: Option<&Path>) -> Result<u8, FrontError> {
    let stop = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP];
    let signals = Signals::take(&stop).map_err(FrontError::Prepare)?;
    let Opened {
        spec,
        fds,
        control: machine,
        sockets,
        console,
        terminal,
    } = opened;
    let prepare = |e| FrontError::Io("prepare the machine's sockets", e);
    sys::socket::set_nonblocking(&machine).map_err(prepare)?;
    let bridge = Bridge::new(machine, control)?;
    let child = start(&spec, &fds)?;
    // The machine has its copies: what it closes has to be closed.
    drop(fds);
    if let Some(console) = &console {
        console.set_nonblocking(true).map_err(prepare)?;
    }
    let input = terminal.then(Input::open).transpose();
    let input = match input {
        Ok(input) => input,
        Err(error) => {
            kill(&child);
            return Err(FrontError::Io("make the terminal raw", error));
        }
    };
    let mut front = Front {
        child,
        bridge,
        sockets,
        console,
        input,
        signals,
        phase: Phase::Running,
        init_speaks: false,
    };
    let ended = front.serve();
    if ended.is_err() {
        kill(&front.child);
    }
    let ended = ended.map_err(|e| FrontError::Io("wait for the machine", e))?;
    Ok(status(ended, front.phase))
}

fn status(ended: Ended, phase: Phase) -> u8 {
    match (ended, phase) {
        (Ended::Signal(libc::SIGKILL), Phase::Killed) => STOPPED,
        (Ended::Signal(signal), _) => {
            crate::report::line(&format!(
                "sifr-vmm: signal {signal} killed the machine's process"
            ));
            SIGNALLED.saturating_add(u8::try_from(signal).unwrap_or(0))
        }
        (Ended::Code(code), _) => u8::try_from(code).unwrap_or(crate::FAULT),
    }
}

/// This program again, as the process of one machine. With root it is in a jail from its first instruction.
fn start(spec: &VmSpec, inherited: &[OwnedFd]) -> Result<Child, FrontError> {
    let name = CString::new(format!("vmm:{}", spec.id)).map_err(FrontError::Name)?;
    let text = serde_json::to_vec(spec).expect("plain data");
    let spec = sys::fs::sealed_memory("machine", &text).map_err(FrontError::Prepare)?;
    let itself = File::open(ITSELF).map_err(FrontError::Itself)?;
    let root = nix::unistd::geteuid().is_root();
    let confinement = if root { Some(jail()?) } else { None };
    let fds = [spec.as_fd()].into_iter();
    let fds = fds.chain(inherited.iter().map(AsFd::as_fd));
    let started = sys::process::spawn(&Program {
        file: itself.as_fd(),
        args: vec![name],
        env: Vec::new(),
        fds: fds.collect(),
        output: Some(io::stderr().as_fd()),
        cgroup: None,
        confinement,
    });
    started.map_err(|error| match error.source.kind() {
        io::ErrorKind::PermissionDenied if root => FrontError::Namespaces(error),
        // The program itself is there: what is not is the loader that it names.
        io::ErrorKind::NotFound if root => FrontError::Dynamic(error),
        _ => FrontError::Start(error),
    })
}

/// What the kernel offers anybody with root. Limits of memory and processor time are who-starts-it's: this
/// program may stand in any cgroup.
fn jail() -> Result<Confinement, FrontError> {
    let made = DirBuilder::new().mode(0o755).create(EMPTY_ROOT);
    match made {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            return Err(FrontError::EmptyRoot(error));
        }
        _ => {}
    }
    let found = fs::symlink_metadata(EMPTY_ROOT).map_err(FrontError::EmptyRoot)?;
    let entries = fs::read_dir(EMPTY_ROOT).map_err(FrontError::EmptyRoot)?;
    let others_write = found.mode() & 0o022 != 0;
    if !found.is_dir() || found.uid() != 0 || others_write || entries.count() > 0 {
        return Err(FrontError::NotEmpty);
    }
    Ok(Confinement {
        id: FIRST_ID + std::process::id(),
        group: None,
        root: CString::new(EMPTY_ROOT).map_err(FrontError::Name)?,
        files_max: FILES_MAX,
        file_bytes_max: libc::RLIM_INFINITY,
    })
}

fn kill(child: &Child) {
    // One that has ended already needs it no more.
    let _ = sys::signal::send(child.pidfd.as_fd(), libc::SIGKILL);
    let _ = sys::process::reap();
}

/// What a turn of the loop found ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    Signal,
    Child,
    Machine,
    Console,
    /// There is room for what was typed.
    ConsoleRoom,
    Input,
    Listener,
    Client(u64),
    /// The machine asks for a connection of its guest's.
    Sockets,
    /// Somebody wants one to the guest.
    Entrance(usize),
}

impl Front {
    fn serve(&mut self) -> io::Result<Ended> {
        loop {
            let ready = self.wait()?;
            if self.phase.deadline().is_some_and(|d| Instant::now() >= d) {
                self.happened(Event::Time);
            }
            for source in &ready {
                match source {
                    Source::Signal => {
                        while self.signals.next().map_err(|e| e.source)?.is_some() {
                            self.happened(Event::AskedToStop);
                        }
                    }
                    Source::Machine => while self.hear()? {},
                    Source::Console => {
                        self.copy_console();
                    }
                    Source::Input => self.read_input(),
                    Source::ConsoleRoom => {
                        if let (Some(input), Some(console)) = (&mut self.input, &mut self.console) {
                            input.push(console);
                        }
                    }
                    Source::Listener => self.bridge.accept(),
                    Source::Client(id) => match self.bridge.hear(*id) {
                        Heard::Stop => self.happened(Event::AskedToStop),
                        Heard::Nothing => {}
                    },
                    Source::Sockets => self.hear_sockets()?,
                    Source::Entrance(number) => {
                        if let Some(sockets) = &self.sockets {
                            sockets.accept(*number);
                        }
                    }
                    // Last, when all that it said is heard.
                    Source::Child => {}
                }
            }
            if ready.contains(&Source::Child)
                && let Some((_, ended)) = sys::process::reap().map_err(|e| e.source)?
            {
                while self.hear()? {}
                while self.copy_console() {}
                return Ok(ended);
            }
        }
    }

    /// Waits for events, the last one in the list the child's end.
    fn wait(&self) -> io::Result<Vec<Source>> {
        let mut sources = vec![
            (Source::Signal, self.signals.as_fd()),
            (Source::Machine, self.bridge.machine()),
        ];
        if let Some(console) = &self.console {
            sources.push((Source::Console, console.as_fd()));
            if let Some(input) = &self.input {
                sources.extend(input.source().map(|fd| (Source::Input, fd)));
                let room = (Source::ConsoleRoom, console.as_fd());
                sources.extend(input.waits().then_some(room));
            }
        }
        sources.extend(self.bridge.listener().map(|fd| (Source::Listener, fd)));
        let clients = self.bridge.clients();
        sources.extend(clients.map(|(id, fd)| (Source::Client(id), fd)));
        if let Some(sockets) = &self.sockets {
            sources.push((Source::Sockets, sockets.machine()));
            let entrances = sockets.entrances();
            sources.extend(entrances.map(|(number, fd)| (Source::Entrance(number), fd)));
        }
        sources.push((Source::Child, self.child.pidfd.as_fd()));
        ready(&sources, self.phase.deadline())
    }

    /// Hears what the machine asks its broker for. An ended machine asks no more: its end follows.
    fn hear_sockets(&mut self) -> io::Result<()> {
        let Some(sockets) = &self.sockets else {
            return Ok(());
        };
        if !sockets.hear() && hung_up(sockets.machine())? {
            self.sockets = None;
        }
        Ok(())
    }

    /// Hears one message of the machine, if there is one. An ended machine is heard no more.
    fn hear(&mut self) -> io::Result<bool> {
        let mut packet = vec![0; CONTROL_PACKET_MAX];
        let received = match sys::socket::receive(self.bridge.machine(), &mut packet) {
            Ok(Some(received)) => received,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
            Ok(None) | Err(_) => {
                // Its end follows; until then the socket would be ready for ever.
                let until = self.phase.deadline();
                let child = [(Source::Child, self.child.pidfd.as_fd())];
                ready(&child, until)?;
                return Ok(false);
            }
        };
        let Ok(message) = serde_json::from_slice(&packet[..received.length]) else {
            return Ok(true);
        };
        match answer(message) {
            Ok(answer) => {
                let asker = self.bridge.answer(&answer);
                let rests = !matches!(answer, Answer::Metrics { .. });
                if asker == Some(Asker::Front) && rests {
                    self.happened(Event::Paused);
                }
            }
            Err(message) => self.told(&message),
        }
        Ok(true)
    }

    fn told(&mut self, message: &FromVmm) {
        let line = |text: String| crate::report::line(&format!("sifr-vmm: {text}"));
        match message {
            FromVmm::Guest(_) => self.init_speaks = true,
            FromVmm::Panicked { reason } => line(format!("the guest's kernel panicked: {reason}")),
            FromVmm::ChunkFailed { disk, chunk } => {
                line(format!("chunk {chunk} of disk {disk} could not be read"));
            }
            // Its own process says why it ended; answers have been taken before.
            FromVmm::Running { .. }
            | FromVmm::GuestInit { .. }
            | FromVmm::Stopped { .. }
            | FromVmm::Done { .. }
            | FromVmm::Refused { .. }
            | FromVmm::Metrics(_) => {}
        }
    }

    fn happened(&mut self, event: Event) {
        let now = Instant::now();
        self.phase = match self.phase.step(event, self.init_speaks) {
            Step::Wait => return,
            Step::TellInit => {
                let stop = ToVmm::Guest(ToGuest::Stop);
                // One that cannot be told is paused when time is up.
                let _ = self.bridge.ask(Asker::Front, &stop, &[]);
                let until = now + STOP_LIMIT;
                Phase::Stopping { until }
            }
            Step::Pause => match self.bridge.ask(Asker::Front, &ToVmm::Pause, &[]) {
                Ok(()) => {
                    let until = now + PAUSE_LIMIT;
                    Phase::Pausing { until }
                }
                Err(_) => self.kill(),
            },
            Step::Kill => self.kill(),
        };
    }

    fn kill(&self) -> Phase {
        // One that has ended already needs it no more.
        let _ = sys::signal::send(self.child.pidfd.as_fd(), libc::SIGKILL);
        Phase::Killed
    }

    /// Hands on what was typed.
    fn read_input(&mut self) {
        if let (Some(input), Some(console)) = (&mut self.input, &mut self.console)
            && input.read(console) == Typed::Stop
        {
            self.happened(Event::AskedToStop);
        }
    }

    /// Copies what the console has to standard output. False when it has nothing.
    fn copy_console(&mut self) -> bool {
        let Some(console) = &mut self.console else {
            return false;
        };
        let mut bytes = [0; CONSOLE_BYTES];
        match copy(console, &mut bytes, &mut io::stdout()) {
            Ok(true) => true,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => false,
            // The machine has closed it, or nobody looks any more.
            Ok(false) | Err(_) => {
                self.console = None;
                false
            }
        }
    }
}

/// False at the end of what is copied.
fn copy(from: &mut UnixStream, bytes: &mut [u8], to: &mut impl Write) -> io::Result<bool> {
    let count = from.read(bytes)?;
    to.write_all(&bytes[..count])?;
    to.flush()?;
    Ok(count > 0)
}

/// Whether the other end is closed.
fn hung_up(fd: BorrowedFd<'_>) -> io::Result<bool> {
    let mut set = [PollFd::new(fd, PollFlags::empty())];
    poll(&mut set, PollTimeout::ZERO)?;
    let gone = PollFlags::POLLHUP | PollFlags::POLLERR;
    Ok(set[0].revents().is_some_and(|found| found.intersects(gone)))
}

/// The sources that are ready, at the latest at `until`.
fn ready(sources: &[(Source, BorrowedFd<'_>)], until: Option<Instant>) -> io::Result<Vec<Source>> {
    let timeout = match until {
        None => PollTimeout::NONE,
        Some(until) => {
            let left = until.saturating_duration_since(Instant::now());
            // Rounded up, so that the last turn is not spent spinning.
            let left = left.as_millis().saturating_add(1);
            PollTimeout::from(u16::try_from(left).unwrap_or(u16::MAX))
        }
    };
    let mut set: Vec<_> = sources
        .iter()
        .map(|(source, fd)| match source {
            Source::ConsoleRoom => PollFd::new(*fd, PollFlags::POLLOUT),
            _ => PollFd::new(*fd, PollFlags::POLLIN),
        })
        .collect();
    match poll(&mut set, timeout) {
        Ok(_) | Err(Errno::EINTR) => {}
        Err(error) => return Err(error.into()),
    }
    let fired = |poll: &PollFd<'_>| poll.revents().is_some_and(|r| !r.is_empty());
    let both = sources.iter().zip(&set);
    Ok(both
        .filter(|(_, poll)| fired(poll))
        .map(|((source, _), _)| *source)
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_whose_init_hears_shuts_down_itself_and_any_other_comes_to_rest_first() {
        let asked = Event::AskedToStop;
        assert_eq!(Phase::Running.step(asked, true), Step::TellInit);
        assert_eq!(Phase::Running.step(asked, false), Step::Pause);
        let until = Instant::now();
        assert_eq!(
            Phase::Stopping { until }.step(Event::Time, true),
            Step::Pause
        );
        assert_eq!(
            Phase::Pausing { until }.step(Event::Paused, true),
            Step::Kill
        );
    }

    #[test]
    fn a_second_request_and_a_limit_kill_and_a_killed_machine_is_waited_for() {
        let until = Instant::now();
        let asked = Event::AskedToStop;
        for phase in [Phase::Stopping { until }, Phase::Pausing { until }] {
            assert_eq!(phase.step(asked, true), Step::Kill);
            assert_eq!(phase.deadline(), Some(until));
        }
        assert_eq!(
            Phase::Pausing { until }.step(Event::Time, false),
            Step::Kill
        );
        for event in [asked, Event::Time, Event::Paused] {
            assert_eq!(Phase::Killed.step(event, true), Step::Wait);
        }
        assert_eq!(Phase::Killed.deadline(), None);
        assert_eq!(Phase::Running.step(Event::Paused, true), Step::Wait);
    }

    #[test]
    fn the_exit_status_is_the_machines_unless_it_was_ended_from_outside() {
        assert_eq!(status(Ended::Code(0), Phase::Killed), 0);
        assert_eq!(status(Ended::Code(2), Phase::Running), 2);
        assert_eq!(status(Ended::Signal(9), Phase::Killed), 3);
        assert_eq!(status(Ended::Signal(9), Phase::Running), 137);
        assert_eq!(status(Ended::Signal(libc::SIGSYS), Phase::Killed), 159);
    }

    #[test]
    fn the_console_is_copied_whole_and_its_end_is_seen() {
        let (mut ours, mut theirs) = UnixStream::pair().expect("sockets");
        ours.set_nonblocking(true).expect("a flag of every socket");
        let mut out = Vec::new();
        let mut bytes = [0; 4];
        let nothing = copy(&mut ours, &mut bytes, &mut out).expect_err("nothing yet");
        assert_eq!(nothing.kind(), io::ErrorKind::WouldBlock);
        theirs.write_all(b"hello\x1b[0m").expect("writes");
        drop(theirs);
        while copy(&mut ours, &mut bytes, &mut out).expect("copies") {}
        assert_eq!(out, b"hello\x1b[0m");
    }
}
