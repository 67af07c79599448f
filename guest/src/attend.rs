//! The loop beside the running program.
//!
//! Owns: the descriptors of the program's life (its report, its output, the host's control stream,
//! its end) and the order in which they are looked at. One thread, one `poll`, no timer but its deadline.
//! Refuses: deciding. `life` says what each event means.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags};
use sys::program::{Failure, Target};
use types::guest::{FromGuest, HOLD_MAX_MS, Identity, RunSpec, ToGuest};

use crate::console;
use crate::control::{self, Lines, Streams, now_ms};
use crate::error::{CODE_SETUP, Result};
use crate::life::{Action, Ending, Event, Life, State, Terms};
use crate::program::{Program, Started};
use crate::pump::Pump;

/// What of the machine the loop acts on.
pub(crate) trait Machine {
    /// Becomes readable when a child has ended.
    fn children(&self) -> BorrowedFd<'_>;
    /// Reaps what has ended; how the program ended if it is among them.
    fn reap(&mut self, program: i32) -> io::Result<Option<Ending>>;
    /// Kills every process but init.
    fn kill_all(&mut self);
    /// Has the program and all it has started stand still; returns when they do. An error: they go on.
    fn freeze(&mut self) -> Result<()>;
    fn thaw(&mut self) -> Result<()>;
    /// Has a volume's file system span its disk, once that has so many bytes. Returns what it spans.
    fn grow(&mut self, serial: &str, bytes: u64) -> Result<u64>;
    /// Writes a volume out and has it stand still.
    fn hold(&mut self, serial: &str) -> Result<()>;
    /// Has one go on, or all. What goes on already does.
    fn release(&mut self, serial: Option<&str>);
    /// New streams to the host: those that there were are gone.
    fn reconnect(&mut self) -> Result<Streams>;
    /// Makes the machine differ from all others that go on from the same snapshot.
    fn take_on(&mut self, identity: &Identity) -> Result<()>;
}

/// How long the host may take to say who a restored machine is: the line waits for the connection.
const IDENTITY_MS: u64 = 30_000;

#[derive(Debug)]
pub(crate) struct Attendant<'a, M> {
    machine: M,
    program: &'a Program,
    pid: i32,
    life: Life,
    /// Open until the kernel has executed the program or the child has said why not.
    report: Option<File>,
    control: OwnedFd,
    /// `None` once the host has said its last word.
    lines: Option<Lines>,
    /// The machine was restored and does not know who it is; until when it waits for that.
    nameless_until_ms: Option<u64>,
    /// A volume stands still; until when at the latest.
    held_until_ms: Option<u64>,
    stdout: Pump,
    stderr: Pump,
}

impl<'a, M: Machine> Attendant<'a, M> {
    pub(crate) fn new(
        machine: M,
        spec: &RunSpec,
        program: &'a Program,
        started: Started,
        streams: Streams,
    ) -> Self {
        let pid = started.child.pid;
        let terms = Terms {
            pid,
            stop_signal: spec.stop_signal,
            stop_grace_ms: spec.stop_grace_ms,
        };
        Self {
            machine,
            program,
            pid,
            life: Life::new(terms),
            report: Some(started.child.report.into()),
            control: streams.control,
            lines: Some(Lines::default()),
            nameless_until_ms: None,
            held_until_ms: None,
            stdout: Pump::new(started.stdout, streams.stdout),
            stderr: Pump::new(started.stderr, streams.stderr),
        }
    }

    /// Attends the program until it has ended and its output is with the host.
    pub(crate) fn run(mut self) -> (Ending, Streams) {
        loop {
            if let State::Done(ending) = self.life.state() {
                let Self {
                    control,
                    stdout,
                    stderr,
                    ..
                } = self;
                let (stdout, stderr) = (stdout.into_socket(), stderr.into_socket());
                return (
                    ending,
                    Streams {
                        control,
                        stdout,
                        stderr,
                    },
                );
            }
            self.wait();
            // Everything is non-blocking, so each is simply tried.
            self.hear_host();
            self.stdout.advance();
            self.stderr.advance();
            self.reap();
            let draining = matches!(self.life.state(), State::Draining { .. });
            if draining && self.stdout.closed() && self.stderr.closed() {
                self.step(Event::OutputsClosed);
            }
            self.step(Event::Tick);
            if self.held_until_ms.is_some_and(|at| at <= now_ms()) {
                console::warn("the host does not say that a volume may go on: it does");
                self.release(None);
            }
            if self.nameless_until_ms.is_some_and(|at| at <= now_ms()) {
                self.fail("the host does not say who this machine is".to_owned());
            }
        }
    }

    fn wait(&self) {
        let readable = |fd| PollFd::new(fd, PollFlags::POLLIN);
        let mut fds = vec![readable(self.machine.children())];
        fds.extend(self.report.as_ref().map(|report| readable(report.as_fd())));
        fds.extend(self.lines.as_ref().map(|_| readable(self.control.as_fd())));
        fds.extend(self.stdout.interest());
        fds.extend(self.stderr.interest());
        let deadlines = [
            self.life.deadline_ms(),
            self.nameless_until_ms,
            self.held_until_ms,
        ];
        let timeout = control::timeout(now_ms(), deadlines.into_iter().flatten().min());
        match nix::poll::poll(&mut fds, timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => panic!("poll on own descriptors: {errno}"),
        }
    }

    fn step(&mut self, event: Event) {
        for action in self.life.step(now_ms(), event) {
            match action {
                Action::Say(message) => self.say(&message),
                Action::SignalProgram(number) => self.signal(number),
                Action::KillAll => self.machine.kill_all(),
            }
        }
    }

    fn signal(&self, number: i32) {
        let target = Target::Process(self.pid);
        if let Err(error) = sys::program::signal(target, number) {
            console::warn(&format!("send signal {number} to {target:?}: {error}"));
        }
    }

    fn read_report(&mut self) {
        let Some(report) = &mut self.report else {
            return;
        };
        let mut bytes = [0; Failure::BYTES];
        let event = match report.read(&mut bytes) {
            Ok(0) => Event::Executed,
            Ok(length) => match Failure::decode(&bytes[..length]) {
                Some(failure) => {
                    let (code, message) = self.program.refusal(failure);
                    Event::Refused { code, message }
                }
                None => Event::Refused {
                    code: CODE_SETUP,
                    message: "start: no report".to_owned(),
                },
            },
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
                ) =>
            {
                return;
            }
            Err(error) => Event::Refused {
                code: CODE_SETUP,
                message: format!("start: {error}"),
            },
        };
        self.report = None;
        self.step(event);
    }

    fn hear_host(&mut self) {
        let Some(lines) = &mut self.lines else { return };
        let mut bytes = [0; 1024];
        let heard = match nix::unistd::read(&self.control, &mut bytes) {
            Ok(0) => Err("the host closed the control stream".to_owned()),
            Ok(length) => lines.push(&bytes[..length]).map_err(|e| sys::chain(&e)),
            Err(Errno::EAGAIN | Errno::EINTR) => return,
            // A host that ends the stream is heard as its end. This is the device: it is another one.
            Err(Errno::ECONNRESET | Errno::ENOTCONN) => match self.restart() {
                Ok(()) => return,
                Err(error) => Err(sys::chain(&error)),
            },
            Err(errno) => Err(format!("read the control stream: {errno}")),
        };
        let messages = heard.unwrap_or_else(|reason| {
            // Nobody could stop this machine any more: it stops itself.
            console::warn(&format!("{reason}; stopping"));
            self.lines = None;
            vec![ToGuest::Stop]
        });
        for message in messages {
            self.obey(message);
        }
    }

    fn obey(&mut self, message: ToGuest) {
        match message {
            ToGuest::Stop => {
                // Only who moves can end in its own way.
                self.thaw();
                self.step(Event::Stop);
            }
            ToGuest::Signal { number } => self.step(Event::Signal { number }),
            ToGuest::Freeze => {
                let refused = self.machine.freeze().err().map(|e| sys::chain(&e));
                self.say(&FromGuest::Frozen { refused });
            }
            ToGuest::Thaw => self.thaw(),
            ToGuest::Grow { serial, bytes } => {
                let grown = self.machine.grow(&serial, bytes);
                let (bytes, refused) = match grown {
                    Ok(bytes) => (bytes, None),
                    Err(error) => (0, Some(sys::chain(&error))),
                };
                self.say(&FromGuest::Grown {
                    serial,
                    bytes,
                    refused,
                });
            }
            ToGuest::Hold { serial } => {
                let refused = self.machine.hold(&serial).err().map(|e| sys::chain(&e));
                if refused.is_none() {
                    self.held_until_ms = Some(now_ms().saturating_add(HOLD_MAX_MS));
                }
                self.say(&FromGuest::Held { serial, refused });
            }
            ToGuest::Release { serial } => self.release(Some(&serial)),
            ToGuest::Restored(identity) => match self.machine.take_on(&identity) {
                Ok(()) => {
                    self.nameless_until_ms = None;
                    self.thaw();
                    let generation = identity.generation;
                    self.say(&FromGuest::Restored { generation });
                }
                Err(error) => self.fail(sys::chain(&error)),
            },
        }
    }

    /// The machine goes on from a snapshot, and has not been told who it is.
    fn restart(&mut self) -> Result<()> {
        if let Err(error) = self.machine.freeze() {
            console::warn(&sys::chain(&error));
        }
        let Streams {
            control,
            stdout,
            stderr,
        } = self.machine.reconnect()?;
        self.control = control;
        self.lines = Some(Lines::default());
        self.stdout.redirect(stdout);
        self.stderr.redirect(stderr);
        self.nameless_until_ms = Some(now_ms().saturating_add(IDENTITY_MS));
        Ok(())
    }

    /// Two machines with one identity must not both go on, and this one cannot know of the other.
    fn fail(&mut self, message: String) {
        console::error(&format!("restored: {message}"));
        self.nameless_until_ms = None;
        self.say(&FromGuest::SetupFailed {
            stage: "restored".to_owned(),
            message,
        });
        self.machine.kill_all();
    }

    fn release(&mut self, serial: Option<&str>) {
        self.machine.release(serial);
        self.held_until_ms = None;
    }

    /// Who does not know who it is stays as it is.
    fn thaw(&mut self) {
        if self.nameless_until_ms.is_some() {
            return;
        }
        if let Err(error) = self.machine.thaw() {
            console::warn(&sys::chain(&error));
        }
    }

    fn say(&self, message: &FromGuest) {
        if let Err(error) = control::say(self.control.as_fd(), message) {
            console::warn(&format!("tell the host {message:?}: {error}"));
        }
    }

    fn reap(&mut self) {
        // First the children that have ended, then the report, then what their ends mean: a report
        // that was written before a child ended is then always read before that end counts.
        let ended = self.machine.reap(self.pid);
        self.read_report();
        match ended {
            Ok(Some(ending)) => self.step(Event::Ended(ending)),
            Ok(None) => {}
            Err(error) => console::warn(&format!("reap children: {error}")),
        }
    }
}

#[cfg(test)]
#[path = "attend_tests.rs"]
mod tests;
