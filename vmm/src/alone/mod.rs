//! One machine without a node: `sifr-vmm run machine.json`.
//!
//! Owns: the command line. The process it starts for the machine is this program again, without arguments,
//! as under a node: there is no second way to build a machine.
//! Refuses: to be missed by a machine under a node. Nothing here runs in the machine's process.

mod bridge;
mod front;
mod listener;
mod open;
mod request;
mod sockets;
mod spec;
mod terminal;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use crate::{BAD_SETUP, say};
use front::FrontError;
use open::{OpenError, Opened};
use spec::{MachineFile, SpecError};

pub(crate) const HELP: &str = "\
sifr-vmm runs one virtual machine on Linux with KVM.

  sifr-vmm run FILE [--control PATH]   run the machine that FILE describes, to its end
  sifr-vmm check FILE                  say whether it would start, and start nothing
  sifr-vmm --help | --version

FILE is JSON. Paths in it are relative to its directory. The least, and a disk and a network card:

  {
    \"kernel\": \"vmlinux\",
    \"initramfs\": [\"initramfs.cpio\"],
    \"cmdline\": \"\",
    \"cpus\": 2,
    \"memory\": \"256Mi\",
    \"disks\": [{ \"path\": \"disk.img\", \"serial\": \"data\", \"read_only\": false }],
    \"nets\": [{ \"tap\": \"tap0\", \"mac\": \"02:00:00:00:00:01\" }]
  }

The kernel is a vmlinux with a PVH entry (CONFIG_PVH=y) or a bzImage. Its serial console is shown here, and
Ctrl-C ends the machine, a second one at once. With \"console\": \"terminal\" it has a terminal (/dev/hvc0) that
takes what you type; Ctrl-A x ends the machine. With \"vsock\": [{ \"port\": 22, \"from\": \"host\", \"path\": PATH }]
who connects to the unix socket PATH speaks to port 22 of the guest's vsock; from \"guest\" it is the other
way round. --control listens on a SOCK_SEQPACKET at PATH for requests, one JSON object a packet:
{\"request\":\"pause\"}, resume, metrics, balloon, snapshot, stop.
With \"restore\": { \"state\": PATH, \"memory\": PATH } in FILE the machine goes on from a snapshot; kernel and
initramfs are then not read, all else is as it was.
docs/vmm.md is the manual, docs/examples/machine.json a complete example.

Started as root, the machine gets a user and namespaces of its own. As anybody else you need /dev/kvm:
be in the group that owns it.

Exit status: 0 the guest reset the machine, 1 bad specification or set-up, 2 the machine faulted,
3 it was ended from outside, 128+N signal N killed it.

Without arguments it is one machine's process under a Sifr node: descriptor 3 holds the specification as JSON
(types::vm::VmSpec), which names the other descriptors by number.
";

/// What the command line asks for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Command {
    /// The machine of descriptor 3.
    Machine,
    Version,
    Help,
    Check {
        file: PathBuf,
    },
    Run {
        file: PathBuf,
        control: Option<PathBuf>,
    },
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum UsageError {
    #[error("argument {0:?} is unknown; see sifr-vmm --help")]
    Unknown(OsString),
    #[error("{0} needs {1}; see sifr-vmm --help")]
    Missing(&'static str, &'static str),
}

impl Command {
    /// `arguments` without the program's name.
    pub(crate) fn parse(mut arguments: impl Iterator<Item = OsString>) -> Result<Self, UsageError> {
        let Some(first) = arguments.next() else {
            return Ok(Self::Machine);
        };
        let command = match first.to_str() {
            Some("--version") => Self::Version,
            Some("--help" | "-h") => Self::Help,
            Some("check") => {
                let file = file_of("check", arguments.next())?;
                Self::Check { file }
            }
            Some("run") => {
                let file = file_of("run", arguments.next())?;
                let control = match arguments.next() {
                    None => None,
                    Some(option) if option == "--control" => {
                        let path = arguments.next().map(PathBuf::from);
                        Some(path.ok_or(UsageError::Missing("--control", "a path"))?)
                    }
                    Some(other) => return Err(UsageError::Unknown(other)),
                };
                Self::Run { file, control }
            }
            _ => return Err(UsageError::Unknown(first)),
        };
        match arguments.next() {
            Some(more) => Err(UsageError::Unknown(more)),
            None => Ok(command),
        }
    }
}

fn file_of(command: &'static str, argument: Option<OsString>) -> Result<PathBuf, UsageError> {
    match argument {
        Some(option) if option.to_string_lossy().starts_with("--") => {
            Err(UsageError::Unknown(option))
        }
        Some(file) => Ok(file.into()),
        None => Err(UsageError::Missing(command, "a file")),
    }
}

#[derive(Debug, thiserror::Error)]
enum AloneError {
    #[error("{}", .0.display())]
    Spec(PathBuf, #[source] SpecError),
    #[error("{}", .0.display())]
    Open(PathBuf, #[source] OpenError),
    #[error("{}: the machine cannot be built", .0.display())]
    Machine(PathBuf, #[source] crate::assemble::SetupError),
    #[error(transparent)]
    Front(#[from] FrontError),
}

/// `sifr-vmm check`.
pub(crate) fn check(path: &Path) -> ExitCode {
    match opened(path) {
        Ok((file, _)) => {
            println!("{}: nothing stands in the way of {file}", path.display());
            ExitCode::SUCCESS
        }
        Err(error) => refuse(&error),
    }
}

/// `sifr-vmm run`: returns when the machine has ended.
pub(crate) fn run(path: &Path, control: Option<&Path>) -> ExitCode {
    let status =
        opened(path).and_then(|(_, opened)| front::run(opened, control).map_err(AloneError::Front));
    match status {
        Ok(status) => ExitCode::from(status),
        Err(error) => refuse(&error),
    }
}

/// Reads the file, opens what it names, and asks the machine's own checks.
fn opened(path: &Path) -> Result<(MachineFile, Opened), AloneError> {
    let file = MachineFile::read(path).map_err(|e| AloneError::Spec(path.into(), e))?;
    let base = path.parent().unwrap_or(Path::new(""));
    let opened = open::open(&file, base).map_err(|e| AloneError::Open(path.into(), e))?;
    crate::assemble::check(&opened.spec).map_err(|e| AloneError::Machine(path.into(), e))?;
    Ok((file, opened))
}

fn refuse(error: &AloneError) -> ExitCode {
    say(error);
    ExitCode::from(BAD_SETUP)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &[&str]) -> Result<Command, UsageError> {
        Command::parse(words.iter().map(OsString::from))
    }

    #[test]
    fn no_argument_is_a_machine_under_a_node() {
        assert_eq!(parse(&[]), Ok(Command::Machine));
    }

    #[test]
    fn a_file_runs_with_or_without_a_control_socket() {
        let run = |control: Option<&str>| Command::Run {
            file: "m.json".into(),
            control: control.map(PathBuf::from),
        };
        assert_eq!(parse(&["run", "m.json"]), Ok(run(None)));
        let with = parse(&["run", "m.json", "--control", "c.sock"]);
        assert_eq!(with, Ok(run(Some("c.sock"))));
        let check = Command::Check {
            file: "m.json".into(),
        };
        assert_eq!(parse(&["check", "m.json"]), Ok(check));
    }

    #[test]
    fn what_is_missing_or_too_much_is_named() {
        for words in [
            &["go"][..],
            &["run", "a", "b"],
            &["check", "a", "--control"],
            &["run", "a", "--control", "b", "c"],
            &["--help", "me"],
            &["run", "--control", "x"],
        ] {
            assert!(
                matches!(parse(words), Err(UsageError::Unknown(_))),
                "{words:?}"
            );
        }
        let missing = parse(&["run"]).expect_err("no file");
        assert_eq!(missing.to_string(), "run needs a file; see sifr-vmm --help");
        let missing = parse(&["run", "a", "--control"]).expect_err("no path");
        assert_eq!(missing, UsageError::Missing("--control", "a path"));
    }
}
