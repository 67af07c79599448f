//! The tenant's program: prepared from the specification and the image, then started.
//!
//! Owns: its user, directory, environment, cgroup and output pipes, and the words for why it could
//! not be executed. Refuses: its life after that (`life`, `attend`).

use std::ffi::CString;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use nix::fcntl::OFlag;
use nix::sys::resource::{Resource, setrlimit};
use nix::unistd::Uid;
use sys::error::During;
use sys::program::{Failure, Spawned, Step};
use types::guest::RunSpec;

use crate::command;
use crate::error::{CODE_NOT_EXECUTABLE, CODE_NOT_FOUND, CODE_SETUP, Result, SetupError};
use crate::root::ensure;
use crate::user::{self, Identity};

/// Open files of a program: the soft limit that `select` can count, the hard limit that systemd gives.
const FILES_SOFT: u64 = 1024;
const FILES_HARD: u64 = 524_288;
/// Longest `/etc/passwd` or `/etc/group` that is read: ten thousand users fit.
const ACCOUNTS_BYTES_MAX: usize = 1 << 20;
/// The cgroup of the program and all it starts.
pub(crate) const CGROUP: &str = "/sys/fs/cgroup/program";

/// Everything about the program that can be decided before it is started.
#[derive(Debug)]
pub(crate) struct Program {
    candidates: Vec<CString>,
    argv: Vec<CString>,
    env: Vec<CString>,
    workdir: CString,
    identity: Identity,
    /// For messages: the program's name and the path it was looked for in.
    name: String,
    path: String,
}

/// The running child, and our ends of its output.
#[derive(Debug)]
pub(crate) struct Started {
    pub(crate) child: Spawned,
    pub(crate) stdout: OwnedFd,
    pub(crate) stderr: OwnedFd,
}

/// Limits that the program inherits from init.
pub(crate) fn limits() -> Result<()> {
    setrlimit(Resource::RLIMIT_NOFILE, FILES_SOFT, FILES_HARD)
        .during(|| format!("set the limit of open files to {FILES_SOFT}, at most {FILES_HARD}"))?;
    // The VM is the limit of processes; the kernel's default is computed from its memory.
    setrlimit(Resource::RLIMIT_NPROC, u64::MAX, u64::MAX)
        .during(|| "lift the limit of processes".to_owned())?;
    Ok(())
}

/// Makes the program's cgroup, with every controller that images may want to pass on.
pub(crate) fn cgroup() -> Result<()> {
    let control = "/sys/fs/cgroup/cgroup.subtree_control";
    fs::write(control, "+cpu +memory +pids").during(|| format!("write to {control}"))?;
    ensure(CGROUP, 0o755)
}

/// How many processes the kernel has killed for want of memory.
pub(crate) fn oom_kills() -> u64 {
    let events = fs::read_to_string(Path::new(CGROUP).join("memory.events")).unwrap_or_default();
    count(&events, "oom_kill")
}

pub(crate) fn count(events: &str, name: &str) -> u64 {
    let mut pairs = events.lines().filter_map(|line| line.split_once(' '));
    pairs
        .find(|(key, _)| *key == name)
        .and_then(|(_, n)| n.parse().ok())
        .unwrap_or(0)
}

pub(crate) fn prepare(spec: &RunSpec) -> Result<Program> {
    let name = spec
        .argv
        .first()
        .filter(|name| !name.is_empty())
        .ok_or(SetupError::NoProgram)?;
    let (passwd, group) = (read("/etc/passwd")?, read("/etc/group")?);
    let identity = user::resolve(&spec.user, &passwd, &group)?;
    let environment = command::environment(&spec.env, spec.hostname.as_str(), &identity.home);
    let workdir = if spec.workdir.is_empty() {
        "/"
    } else {
        &spec.workdir
    };
    fs::create_dir_all(workdir).during(|| format!("make the working directory {workdir}"))?;
    let candidates = command::candidates(name, &environment);
    Ok(Program {
        candidates: command::c_strings(&candidates, "the program's path")?,
        argv: command::c_strings(&spec.argv, "an argument")?,
        env: command::c_strings(&environment, "a variable")?,
        workdir: CString::new(workdir).map_err(|_| SetupError::Nul {
            what: "the working directory",
        })?,
        identity,
        name: name.clone(),
        path: command::search_path(&environment).to_owned(),
    })
}

/// A file of the image, bounded; empty where there is none. Names that are no UTF-8 match nothing.
fn read(path: &str) -> Result<String> {
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(String::new()),
        other => other.during(|| format!("open {path}"))?,
    };
    let mut bytes = Vec::new();
    let limit = u64::try_from(ACCOUNTS_BYTES_MAX).unwrap_or(u64::MAX);
    file.take(limit.saturating_add(1))
        .read_to_end(&mut bytes)
        .during(|| format!("read {path}"))?;
    if bytes.len() > ACCOUNTS_BYTES_MAX {
        return Err(SetupError::TooLong {
            path: path.into(),
            max: ACCOUNTS_BYTES_MAX,
        });
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

impl Program {
    /// Starts it in its cgroup.
    pub(crate) fn start(&self) -> Result<Started> {
        let procs = Path::new(CGROUP).join("cgroup.procs");
        let procs = File::options()
            .write(true)
            .open(&procs)
            .during(|| format!("open {}", procs.display()))?;
        self.spawn(Some(&procs))
    }

    pub(crate) fn spawn(&self, cgroup: Option<&File>) -> Result<Started> {
        let during = || format!("start {}", self.name);
        let null = File::open("/dev/null").during(|| "open /dev/null".to_owned())?;
        let (stdout, stdout_write) = pipe(self.identity.uid)?;
        let (stderr, stderr_write) = pipe(self.identity.uid)?;
        let child = sys::program::spawn(&sys::program::Program {
            candidates: &self.candidates,
            argv: &self.argv,
            env: &self.env,
            workdir: &self.workdir,
            uid: self.identity.uid,
            gid: self.identity.gid,
            groups: &self.identity.groups,
            stdio: [null.as_fd(), stdout_write.as_fd(), stderr_write.as_fd()],
            cgroup: cgroup.map(AsFd::as_fd),
        })
        .during(during)?;
        sys::socket::set_nonblocking(&child.report).during(during)?;
        Ok(Started {
            child,
            stdout,
            stderr,
        })
    }

    /// The exit code and the words for a child that could not execute the program.
    pub(crate) fn refusal(&self, failure: Failure) -> (i32, String) {
        let Self {
            name,
            path,
            identity,
            ..
        } = self;
        let workdir = self.workdir.to_string_lossy();
        let cause = io::Error::from_raw_os_error(failure.errno);
        let set_up = |what: String| (CODE_SETUP, format!("{what}: {cause}"));
        match failure.step {
            Step::Cgroup => set_up("join the program's cgroup".to_owned()),
            Step::Session => set_up("make a session".to_owned()),
            Step::Stdio => set_up("set the standard streams".to_owned()),
            Step::Workdir => set_up(format!("enter the working directory {workdir}")),
            Step::Groups => set_up(format!("set the groups {:?}", identity.groups)),
            Step::Gid => set_up(format!("become group {}", identity.gid)),
            Step::Uid => set_up(format!("become user {}", identity.uid)),
            Step::Exec if matches!(failure.errno, libc::ENOENT | libc::ENOTDIR) => {
                let place = if name.contains('/') {
                    "the image".to_owned()
                } else {
                    format!("PATH ({path})")
                };
                let hint = "check `entrypoint` and `command`, and that the image has the interpreter it names";
                (
                    CODE_NOT_FOUND,
                    format!("{name:?} was not found in {place}: {hint}"),
                )
            }
            Step::Exec => {
                let hint = "is it an executable file for x86_64 that this user may execute?";
                (
                    CODE_NOT_EXECUTABLE,
                    format!("{name:?} could not be executed: {cause}: {hint}"),
                )
            }
        }
    }
}

/// A pipe whose writing end belongs to the program's user: images link their log files to
/// `/dev/stdout`, and opening that is opening this pipe.
fn pipe(uid: u32) -> Result<(OwnedFd, OwnedFd)> {
    let during = || "make an output pipe".to_owned();
    let (read, write) = nix::unistd::pipe2(OFlag::O_CLOEXEC).during(during)?;
    nix::unistd::fchown(&write, Some(Uid::from_raw(uid)), None).during(during)?;
    sys::socket::set_nonblocking(&read).during(during)?;
    Ok((read, write))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A program of this machine, run as whoever runs the test.
    pub(crate) fn here(argv: &[&str]) -> Program {
        let argv: Vec<String> = argv.iter().map(|a| (*a).to_owned()).collect();
        let environment = vec!["PATH=/usr/bin:/bin".to_owned()];
        let (uid, gid) = (
            Uid::current().as_raw(),
            nix::unistd::Gid::current().as_raw(),
        );
        let candidates = command::candidates(&argv[0], &environment);
        Program {
            candidates: command::c_strings(&candidates, "path").expect("no NUL"),
            argv: command::c_strings(&argv, "argument").expect("no NUL"),
            env: command::c_strings(&environment, "variable").expect("no NUL"),
            workdir: c"/".to_owned(),
            identity: Identity {
                uid,
                gid,
                groups: Vec::new(),
                home: "/".to_owned(),
            },
            name: argv[0].clone(),
            path: "/usr/bin:/bin".to_owned(),
        }
    }

    #[test]
    fn each_failed_step_has_the_exit_code_of_container_runtimes() {
        let program = here(&["web"]);
        let code = |step, errno| program.refusal(Failure { step, errno });
        assert_eq!(code(Step::Exec, libc::ENOENT).0, 127);
        assert_eq!(code(Step::Exec, libc::EACCES).0, 126);
        assert_eq!(code(Step::Exec, libc::ENOEXEC).0, 126);
        assert_eq!(code(Step::Workdir, libc::ENOENT).0, 125);
        assert!(
            code(Step::Exec, libc::ENOENT)
                .1
                .contains("PATH (/usr/bin:/bin)")
        );
        assert!(
            code(Step::Workdir, libc::EACCES)
                .1
                .starts_with("enter the working directory /: ")
        );
    }

    #[test]
    fn out_of_memory_kills_are_counted_from_the_cgroups_events() {
        let events = "low 0\nhigh 0\nmax 3\noom 2\noom_kill 1\noom_group_kill 0\n";
        assert_eq!((count(events, "oom_kill"), count("", "oom_kill")), (1, 0));
        assert_eq!(count("oom_kill many\n", "oom_kill"), 0);
    }
}
