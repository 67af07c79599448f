//! `sifr-guest`: PID 1 of a micro VM.
//!
//! ```text
//! mounts → vsock → /run.json → PHASES → program → attend → farewell → settle → reset
//! ```
//!
//! Owns: the order of a machine's life. What it is told stands in `types::guest`.
//! Refuses: staying when something fails. It says why on the control stream, or on the kernel's log
//! where there is none, and resets the machine.
#![forbid(unsafe_code)]

mod attend;
mod command;
mod console;
mod control;
mod device;
mod end;
mod error;
#[cfg(any(test, feature = "fuzz"))]
pub mod fuzz;
mod life;
mod link;
mod lower;
mod mounts;
mod names;
mod program;
mod pump;
mod restored;
mod root;
mod rtnetlink;
mod user;
mod volumes;

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use sys::error::During;
use sys::process::Ended;
use sys::signal::{Signal, Signals};
use types::guest::{FromGuest, Identity, RUN_SPEC_PATH, RunSpec};

use crate::attend::{Attendant, Machine};
use crate::control::Streams;
use crate::error::{CODE_SETUP, Result, SetupError};
use crate::life::Ending;
use crate::program::{Program, Started};
use crate::restored::Standing;
use crate::volumes::Volumes;

/// Longest run specification: its arguments are at most `deployment::ARGS_MAX_BYTES`, the image's
/// environment is of that order, and escaping can make six bytes of one.
const SPEC_BYTES_MAX: usize = 2 << 20;

/// What the phases make.
#[derive(Debug)]
struct Setup {
    spec: RunSpec,
    disks: Disks,
}

/// What is written to, and has to be settled at the end.
#[derive(Debug, Default)]
struct Disks {
    /// The mount of the writable layer, where that is a disk.
    layer: Option<OwnedFd>,
    volumes: Volumes,
}

/// One step of the set-up. The host is told its name where it fails.
struct Phase {
    name: &'static str,
    run: fn(&mut Setup) -> Result<()>,
}

/// Set-up once the specification is known, in order.
const PHASES: [Phase; 7] = [
    Phase {
        name: "root",
        run: |setup| {
            setup.disks.layer = root::enter(&setup.spec)?;
            Ok(())
        },
    },
    Phase {
        name: "mounts",
        run: |_| mounts::container(),
    },
    Phase {
        name: "volumes",
        run: |setup| setup.disks.volumes.mount(&setup.spec.volumes),
    },
    Phase {
        name: "names",
        run: |setup| {
            names::write(&setup.spec)?;
            restored::first()
        },
    },
    Phase {
        name: "network",
        run: |setup| link::bring_up(setup.spec.link.as_ref(), &setup.spec.further),
    },
    Phase {
        name: "cgroup",
        run: |_| program::cgroup(),
    },
    Phase {
        name: "limits",
        run: |_| program::limits(),
    },
];

/// A phase that failed.
#[derive(Debug)]
struct Failed {
    stage: &'static str,
    error: SetupError,
}

/// The whole program.
pub fn main() -> std::process::ExitCode {
    if std::process::id() != 1 {
        eprintln!("sifr-guest is PID 1 of a micro VM and does nothing elsewhere");
        return std::process::ExitCode::FAILURE;
    }
    std::panic::set_hook(Box::new(|panic| {
        console::error(&panic.to_string());
        // Where even this fails, the end of init is a kernel panic and `panic=-1` resets.
        let _refused = sys::reboot::end(sys::reboot::Ending::Restart);
    }));
    match mounts::early().and_then(|()| Streams::connect()) {
        Ok(streams) => live(streams),
        // Nobody to tell but the log.
        Err(error) => console::error(&format!("{}; resetting", sys::chain(&error))),
    }
    end::reset()
}

/// Everything between the first word to the host and the last.
fn live(streams: Streams) {
    let mut disks = Disks::default();
    let (ending, streams) = match set_up(&mut disks) {
        Ok((spec, program, signals, started)) => {
            let standing = Standing::new(&spec);
            Attendant::new(
                Guest {
                    signals,
                    standing,
                    volumes: &mut disks.volumes,
                },
                &spec,
                &program,
                started,
                streams,
            )
            .run()
        }
        Err(Failed { stage, error }) => {
            let message = sys::chain(&error);
            console::error(&format!("{stage}: {message}"));
            tell(
                &streams,
                &FromGuest::SetupFailed {
                    stage: stage.to_owned(),
                    message,
                },
            );
            (
                Ending {
                    code: CODE_SETUP,
                    signal: None,
                },
                streams,
            )
        }
    };
    control::half_close(streams.stdout.as_fd());
    control::half_close(streams.stderr.as_fd());
    // Before the last word: the host may take that for leave to pull the disk.
    end::settle(disks);
    let Ending { code, signal } = ending;
    tell(
        &streams,
        &FromGuest::Exited {
            code,
            signal,
            oom_kills: program::oom_kills(),
        },
    );
    streams.farewell();
}

fn tell(streams: &Streams, message: &FromGuest) {
    if let Err(error) = control::say(streams.control.as_fd(), message) {
        console::warn(&format!("tell the host {message:?}: {error}"));
    }
}

type Ready = (RunSpec, Program, Signals, Started);

/// `disks` are left behind even where a later phase fails: they have to be settled all the same.
fn set_up(disks: &mut Disks) -> std::result::Result<Ready, Failed> {
    let at = |stage| move |error| Failed { stage, error };
    let spec = read_spec().map_err(at("specification"))?;
    let mut setup = Setup {
        spec,
        disks: Disks::default(),
    };
    for (number, Phase { name, run }) in (1..).zip(PHASES) {
        let result = run(&mut setup);
        if let Err(error) = result {
            *disks = setup.disks;
            return Err(at(name)(error));
        }
        console::note(&format!(
            "{number}/{} {name} at {} ms",
            PHASES.len(),
            control::now_ms()
        ));
    }
    *disks = setup.disks;
    let start = || {
        let program = program::prepare(&setup.spec)?;
        // Before the fork: no end of a child may go unseen.
        let signals = Signals::take(&[Signal::SIGCHLD])?;
        let started = program.start()?;
        Ok((program, signals, started))
    };
    let (program, signals, started) = start().map_err(at("program"))?;
    Ok((setup.spec, program, signals, started))
}

fn read_spec() -> Result<RunSpec> {
    let during = || format!("read {RUN_SPEC_PATH}");
    let mut bytes = Vec::new();
    let limit = u64::try_from(SPEC_BYTES_MAX)
        .unwrap_or(u64::MAX)
        .saturating_add(1);
    File::open(RUN_SPEC_PATH)
        .and_then(|file| file.take(limit).read_to_end(&mut bytes))
        .during(during)?;
    if bytes.len() > SPEC_BYTES_MAX {
        return Err(SetupError::TooLong {
            path: RUN_SPEC_PATH.into(),
            max: SPEC_BYTES_MAX,
        });
    }
    serde_json::from_slice(&bytes).map_err(SetupError::Spec)
}

/// The real machine: init is everybody's last parent.
#[derive(Debug)]
struct Guest<'a> {
    signals: Signals,
    standing: Standing,
    volumes: &'a mut Volumes,
}

impl Machine for Guest<'_> {
    fn children(&self) -> BorrowedFd<'_> {
        self.signals.as_fd()
    }

    fn reap(&mut self, program: i32) -> io::Result<Option<Ending>> {
        // Emptied first: a child that ends after this makes the descriptor readable again.
        while self.signals.next().map_err(|error| error.source)?.is_some() {}
        let mut found = None;
        while let Some((pid, ended)) = sys::program::reap()? {
            if pid == program {
                found = Some(match ended {
                    Ended::Code(code) => Ending { code, signal: None },
                    Ended::Signal(signal) => Ending {
                        code: 128 + signal,
                        signal: Some(signal),
                    },
                });
            }
        }
        Ok(found)
    }

    fn kill_all(&mut self) {
        // Reaches what has left the program's session and cgroup, too.
        if let Err(error) = sys::signal::send_all(Signal::SIGKILL) {
            console::warn(&sys::chain(&error));
        }
    }

    fn freeze(&mut self) -> Result<()> {
        restored::freeze()
    }

    fn thaw(&mut self) -> Result<()> {
        restored::thaw()
    }

    fn grow(&mut self, serial: &str, bytes: u64) -> Result<u64> {
        self.volumes.grow(serial, bytes)
    }

    fn hold(&mut self, serial: &str) -> Result<()> {
        self.volumes.hold(serial)
    }

    fn release(&mut self, serial: Option<&str>) {
        self.volumes.release(serial);
    }

    fn reconnect(&mut self) -> Result<Streams> {
        Streams::connect()
    }

    fn take_on(&mut self, identity: &Identity) -> Result<()> {
        self.standing.take_on(identity)
    }
}
