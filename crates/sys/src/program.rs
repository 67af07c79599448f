//! Fork and exec of a container's program.
//!
//! Owns: what a child does between `fork` and `execve`: cgroup, session, standard streams, working
//! directory, identity, signals; and the report of the step that failed.
//! Refuses: looking anything up. Paths, users and the environment have been decided by the caller.

use std::ffi::{CStr, CString, c_char};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};

use crate::process::Ended;

/// Signal numbers of x86_64 Linux, and the bytes of a set of them.
const SIGNALS: i32 = 64;
const SIGNAL_SET_BYTES: usize = 8;

/// Everything a child needs, resolved.
#[derive(Debug)]
pub struct Program<'a> {
    /// Paths to execute, tried in order as `execvp` does.
    pub candidates: &'a [CString],
    pub argv: &'a [CString],
    pub env: &'a [CString],
    pub workdir: &'a CStr,
    pub uid: u32,
    pub gid: u32,
    pub groups: &'a [u32],
    /// Standard input, output, error; each number is over 2.
    pub stdio: [BorrowedFd<'a>; 3],
    /// `cgroup.procs` of the cgroup to join, open for writing.
    pub cgroup: Option<BorrowedFd<'a>>,
}

/// A child that has been forked.
#[derive(Debug)]
pub struct Spawned {
    pub pid: i32,
    /// Ends without a byte once the program has been executed; else holds a [`Failure`].
    pub report: OwnedFd,
}

/// The step between `fork` and `execve` that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    Cgroup,
    Session,
    Stdio,
    Workdir,
    Groups,
    Gid,
    Uid,
    Exec,
}

const STEPS: [Step; 8] = [
    Step::Cgroup,
    Step::Session,
    Step::Stdio,
    Step::Workdir,
    Step::Groups,
    Step::Gid,
    Step::Uid,
    Step::Exec,
];

/// What a child reports before it gives up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Failure {
    pub step: Step,
    pub errno: i32,
}

impl Failure {
    /// A report's length: the step's number and errno, below PIPE_BUF and so written whole.
    pub const BYTES: usize = 5;

    fn encode(self) -> [u8; Self::BYTES] {
        let [a, b, c, d] = self.errno.to_le_bytes();
        [self.step as u8, a, b, c, d]
    }

    /// `None` where `bytes` is no report.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let [step, errno @ ..] = <[u8; Self::BYTES]>::try_from(bytes).ok()?;
        let step = *STEPS.get(usize::from(step))?;
        Some(Self {
            step,
            errno: i32::from_le_bytes(errno),
        })
    }
}

/// Forks, and returns at once: whether the program was executed arrives in [`Spawned::report`].
pub fn spawn(program: &Program<'_>) -> io::Result<Spawned> {
    if program.stdio.iter().any(|fd| fd.as_raw_fd() <= 2) {
        // One could be overwritten by another's dup2.
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let (report, write) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
    // Everything the child touches is laid out before the fork: it must not allocate.
    let (argv, env) = (pointers(program.argv), pointers(program.env));
    // SAFETY: fork takes no arguments; the child below calls only async-signal-safe system calls on
    // memory that exists already, and never returns from `child`.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => child(program, &argv, &env, write.as_raw_fd()),
        pid => Ok(Spawned { pid, report }),
    }
}

fn pointers(strings: &[CString]) -> Vec<*const c_char> {
    strings
        .iter()
        .map(|s| s.as_ptr())
        .chain([std::ptr::null()])
        .collect()
}

fn child(program: &Program<'_>, argv: &[*const c_char], env: &[*const c_char], report: RawFd) -> ! {
    let failure = match prepare(program) {
        Ok(()) => execute(program.candidates, argv, env),
        Err(failure) => failure,
    };
    let bytes = failure.encode();
    // SAFETY: `bytes` lives for the call; a failed write leaves the parent with an early end of the
    // pipe and this exit status, nothing more can be done here. `_exit` runs no destructor of the parent's.
    unsafe {
        libc::write(report, bytes.as_ptr().cast(), bytes.len());
        libc::_exit(127)
    }
}

fn prepare(program: &Program<'_>) -> Result<(), Failure> {
    if let Some(cgroup) = program.cgroup {
        // SAFETY: a one-byte literal; "0" means the writing process.
        let written = unsafe { libc::write(cgroup.as_raw_fd(), c"0".as_ptr().cast(), 1) };
        check(Step::Cgroup, written >= 0)?;
    }
    // SAFETY: no pointers.
    let session = unsafe { libc::setsid() };
    check(Step::Session, session >= 0)?;
    for (number, fd) in (0..).zip(program.stdio) {
        // SAFETY: no pointers; `spawn` has checked that no source is a target.
        let duplicate = unsafe { libc::dup2(fd.as_raw_fd(), number) };
        check(Step::Stdio, duplicate >= 0)?;
    }
    // SAFETY: a NUL-terminated string that outlives the call.
    let moved = unsafe { libc::chdir(program.workdir.as_ptr()) };
    check(Step::Workdir, moved == 0)?;
    identity(program)?;
    default_signals();
    Ok(())
}

/// Raw system calls: the C library's wrappers would first ask other threads, of which a forked child
/// has none.
fn identity(program: &Program<'_>) -> Result<(), Failure> {
    let Program {
        uid, gid, groups, ..
    } = *program;
    // SAFETY: pointer and count come from one slice.
    let result = unsafe { libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) };
    check(Step::Groups, result == 0)?;
    // SAFETY: no pointers.
    let result = unsafe { libc::syscall(libc::SYS_setresgid, gid, gid, gid) };
    check(Step::Gid, result == 0)?;
    // SAFETY: no pointers.
    let result = unsafe { libc::syscall(libc::SYS_setresuid, uid, uid, uid) };
    check(Step::Uid, result == 0)
}

/// Rust ignores SIGPIPE and the parent blocks what it reads from a signalfd: a program expects neither.
fn default_signals() {
    // The kernel's own struct sigaction, all zero: SIG_DFL, no flags, no mask. The C library's wrapper
    // refuses the two or three numbers that it uses itself, and a parent may have ignored those.
    let default = [0u64; 4];
    for number in 1..=SIGNALS {
        // SAFETY: `default` has the layout and size of x86_64's kernel sigaction; numbers that cannot
        // be changed return an error.
        unsafe {
            let old = std::ptr::null_mut::<u64>();
            libc::syscall(
                libc::SYS_rt_sigaction,
                number,
                default.as_ptr(),
                old,
                SIGNAL_SET_BYTES,
            );
        }
    }
    // SAFETY: sigset_t is plain data that sigemptyset fills before it is read.
    unsafe {
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &none, std::ptr::null_mut());
    }
    // SAFETY: no pointers.
    unsafe { libc::umask(0o022) };
}

/// Returns only where no candidate could be executed.
fn execute(candidates: &[CString], argv: &[*const c_char], env: &[*const c_char]) -> Failure {
    let mut errno = libc::ENOENT;
    for path in candidates {
        // SAFETY: NUL-terminated strings and null-terminated arrays made by `pointers`, all alive.
        unsafe { libc::execve(path.as_ptr(), argv.as_ptr(), env.as_ptr()) };
        match last_errno() {
            libc::ENOENT | libc::ENOTDIR => {}
            libc::EACCES => errno = libc::EACCES,
            other => {
                return Failure {
                    step: Step::Exec,
                    errno: other,
                };
            }
        }
    }
    Failure {
        step: Step::Exec,
        errno,
    }
}

fn check(step: Step, fine: bool) -> Result<(), Failure> {
    if fine {
        Ok(())
    } else {
        Err(Failure {
            step,
            errno: last_errno(),
        })
    }
}

fn last_errno() -> i32 {
    io::Error::last_os_error().raw_os_error().unwrap_or(0)
}

/// Sends signal `number` (real-time ones too) to a child that has not been reaped, or to its process
/// group. A child that has ended already is fine.
pub fn signal(target: Target, number: i32) -> io::Result<()> {
    let pid = match target {
        Target::Process(pid) => pid,
        Target::Group(pid) => pid.checked_neg().unwrap_or(pid),
    };
    if matches!(pid, -1..=1) {
        // Everybody, the own group, or init: never meant here.
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: no pointers.
    match unsafe { libc::kill(pid, number) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Whom a signal is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    Process(i32),
    Group(i32),
}

/// Reaps one ended child of any descent. `None` when none has ended. Unlike
/// [`crate::process::reap`] it knows real-time signals, which a tenant's program may die of.
pub fn reap() -> io::Result<Option<(i32, Ended)>> {
    loop {
        let mut status = 0;
        // SAFETY: `status` is a writable integer that lives for the call.
        let pid = unsafe { libc::waitpid(-1, &mut status, libc::WNOHANG) };
        match pid {
            0 => return Ok(None),
            -1 => match last_errno() {
                libc::ECHILD => return Ok(None),
                libc::EINTR => {}
                errno => return Err(io::Error::from_raw_os_error(errno)),
            },
            pid if libc::WIFSIGNALED(status) => {
                return Ok(Some((pid, Ended::Signal(libc::WTERMSIG(status)))));
            }
            pid => return Ok(Some((pid, Ended::Code(libc::WEXITSTATUS(status))))),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Read;
    use std::os::fd::AsFd;

    use nix::sys::wait::{WaitStatus, waitpid};
    use nix::unistd::Pid;

    use super::*;

    fn strings(texts: &[&str]) -> Vec<CString> {
        texts
            .iter()
            .map(|t| CString::new(*t).expect("no NUL"))
            .collect()
    }

    fn run(candidates: &[&str], argv: &[&str], workdir: &CStr) -> (Option<Failure>, i32, String) {
        let null = File::open("/dev/null").expect("/dev/null opens");
        let (mut out, write) = std::io::pipe().expect("a pipe");
        let (candidates, argv) = (strings(candidates), strings(argv));
        let env = strings(&["GREETING=hello"]);
        let stdio = [null.as_fd(), write.as_fd(), write.as_fd()];
        let (uid, gid) = (
            nix::unistd::getuid().as_raw(),
            nix::unistd::getgid().as_raw(),
        );
        let program = Program {
            candidates: &candidates,
            argv: &argv,
            env: &env,
            workdir,
            uid,
            gid,
            groups: &[],
            stdio,
            cgroup: None,
        };
        let spawned = spawn(&program).expect("fork works");
        drop(write);
        let (mut report, mut text) = (Vec::new(), String::new());
        File::from(spawned.report)
            .read_to_end(&mut report)
            .expect("the report ends");
        out.read_to_string(&mut text).expect("output ends");
        let status = waitpid(Pid::from_raw(spawned.pid), None).expect("a child");
        let WaitStatus::Exited(_, code) = status else {
            panic!("{status:?}")
        };
        (Failure::decode(&report), code, text)
    }

    #[test]
    fn a_program_runs_with_exactly_the_given_environment() {
        let script = "echo $GREETING; pwd; exit 3";
        let (failure, code, text) = run(
            &["/nonexistent/sh", "/bin/sh"],
            &["sh", "-c", script],
            c"/proc",
        );
        assert_eq!((failure, code, text.as_str()), (None, 3, "hello\n/proc\n"));
    }

    #[test]
    fn a_program_starts_with_default_signals() {
        let script = "grep -E '^Sig(Blk|Ign)' /proc/self/status";
        let (_, _, text) = run(&["/bin/sh"], &["sh", "-c", script], c"/");
        assert!(text.contains("SigBlk:\t0000000000000000"), "{text}");
        assert!(text.contains("SigIgn:\t0000000000000000"), "{text}");
    }

    #[test]
    fn the_failed_step_and_its_errno_are_reported() {
        let exec = |errno| {
            Some(Failure {
                step: Step::Exec,
                errno,
            })
        };
        assert_eq!(run(&["/nonexistent"], &["x"], c"/").0, exec(libc::ENOENT));
        assert_eq!(
            run(&["/etc/passwd", "/nonexistent"], &["x"], c"/").0,
            exec(libc::EACCES)
        );
        let workdir = Failure {
            step: Step::Workdir,
            errno: libc::ENOENT,
        };
        assert_eq!(run(&["/bin/sh"], &["sh"], c"/nonexistent").0, Some(workdir));
    }

    #[test]
    fn signals_never_go_to_everybody_by_mistake() {
        for target in [
            Target::Process(-1),
            Target::Process(0),
            Target::Process(1),
            Target::Group(1),
            Target::Group(0),
        ] {
            let error = signal(target, 0).expect_err("refused");
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{target:?}");
        }
    }

    #[test]
    fn every_step_reads_back_and_other_bytes_are_no_report() {
        for step in STEPS {
            let failure = Failure { step, errno: 13 };
            assert_eq!(Failure::decode(&failure.encode()), Some(failure));
        }
        assert_eq!(Failure::decode(&[8, 0, 0, 0, 0]), None);
        assert_eq!(Failure::decode(&[]), None);
    }
}
