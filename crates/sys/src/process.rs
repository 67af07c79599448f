//! Children: started by descriptor, confined before their first instruction, reaped.
//!
//! Owns: clone3, what a child does between clone and exec, and wait.
//! Refuses: paths to programs, and allocation in the child: all it needs is prepared by the parent.

use std::ffi::CString;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::fcntl::FcntlArg;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::error::{During, Error, Result};

/// First descriptor of `Program::fds` in the child.
pub const FIRST_FD: RawFd = 3;
/// Most descriptors handed to a child.
pub const FDS_MAX: usize = 64;

/// What runs, and with which descriptors.
#[derive(Debug)]
pub struct Program<'a> {
    /// Opened for reading; may be close-on-exec.
    pub file: BorrowedFd<'a>,
    pub args: Vec<CString>,
    pub env: Vec<CString>,
    /// They become number 3, 4, 5 and so on; every other descriptor above 2 is closed.
    pub fds: Vec<BorrowedFd<'a>>,
    /// Standard output and error; `/dev/null` where there is none. Standard input is `/dev/null`.
    pub output: Option<BorrowedFd<'a>>,
    /// A cgroup directory: the child is in it from its first instruction.
    pub cgroup: Option<BorrowedFd<'a>>,
    pub confinement: Option<Confinement>,
}

/// A jail: own namespaces (PID, mount, network, IPC, UTS), own user, no capability, one empty directory.
#[derive(Debug, Clone)]
pub struct Confinement {
    /// uid and gid.
    pub id: u32,
    /// The one supplementary group, if any.
    pub group: Option<u32>,
    /// An empty directory, which becomes the read-only root.
    pub root: CString,
    /// RLIMIT_NOFILE.
    pub files_max: u64,
    /// RLIMIT_FSIZE: longest that it may make any of the files it was handed.
    pub file_bytes_max: u64,
}

/// A started child. Dropping it neither ends nor reaps the process.
#[derive(Debug)]
pub struct Child {
    pub pid: i32,
    pub pidfd: OwnedFd,
}

/// How a child ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    Code(i32),
    Signal(i32),
}

/// Where between clone and exec a child failed; the number travels through the report pipe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Step {
    Descriptors = 1,
    Root = 2,
    Limits = 3,
    Capabilities = 4,
    User = 5,
    Exec = 6,
}

impl Step {
    fn text(number: u8) -> &'static str {
        const STEPS: [(Step, &str); 6] = [
            (Step::Descriptors, "arrange descriptors"),
            (Step::Root, "enter its empty root"),
            (Step::Limits, "set limits"),
            (Step::Capabilities, "drop capabilities"),
            (Step::User, "change the user"),
            (Step::Exec, "execute the program"),
        ];
        STEPS
            .iter()
            .find(|(s, _)| *s as u8 == number)
            .map_or("start", |(_, text)| text)
    }
}

/// `struct clone_args`, linux/sched.h, up to `cgroup`.
#[repr(C)]
#[derive(Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

/// All that the child needs, as plain numbers and pointers into memory of the parent, which the child
/// has a copy of.
struct Prepared {
    program: RawFd,
    argv: Vec<*const libc::c_char>,
    envp: Vec<*const libc::c_char>,
    /// Copies above every target number, so that no `dup2` overwrites a source.
    sources: Vec<RawFd>,
    null: RawFd,
    output: RawFd,
    report: RawFd,
    jail: Option<Jail>,
    last_capability: i32,
}

/// [`Confinement`] for the child.
#[derive(Clone, Copy)]
struct Jail {
    user: User,
    root: *const libc::c_char,
    /// Resource, whose type is the C library's, and limit.
    limits: [(libc::c_long, u64); 3],
}

/// Who a process becomes: uid and gid are the same number.
#[derive(Debug, Clone, Copy)]
struct User {
    id: u32,
    group: Option<u32>,
}

impl Jail {
    /// Points into `confinement`.
    fn new(confinement: &Confinement) -> Self {
        Self {
            user: User {
                id: confinement.id,
                group: confinement.group,
            },
            root: confinement.root.as_ptr(),
            limits: [
                (libc::RLIMIT_NOFILE.into(), confinement.files_max),
                (libc::RLIMIT_FSIZE.into(), confinement.file_bytes_max),
                (libc::RLIMIT_CORE.into(), 0),
            ],
        }
    }
}

/// Lets a process of any user make the files that it was handed so long, from now on.
pub fn allow_file_bytes(pid: i32, bytes: u64) -> std::io::Result<()> {
    let limit = libc::rlimit {
        rlim_cur: bytes,
        rlim_max: bytes,
    };
    let mut before = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: both structures live until the call returns; a new limit is not asked for where that is null.
    let asked =
        unsafe { libc::prlimit(pid, libc::RLIMIT_FSIZE, std::ptr::null(), &raw mut before) };
    nix::errno::Errno::result(asked)?;
    if before.rlim_cur >= bytes {
        return Ok(());
    }
    // SAFETY: the new limit lives until the call returns, and the old one is not asked for.
    let set = unsafe {
        libc::prlimit(
            pid,
            libc::RLIMIT_FSIZE,
            &raw const limit,
            std::ptr::null_mut(),
        )
    };
    nix::errno::Errno::result(set)?;
    Ok(())
}

/// Starts a program. Returns when it has been executed, or with the reason why not.
pub fn spawn(program: &Program<'_>) -> Result<Child> {
    let name = || {
        program
            .args
            .first()
            .map_or("?".into(), |a| a.to_string_lossy())
    };
    if program.fds.len() > FDS_MAX {
        let many = io::Error::from(io::ErrorKind::InvalidInput);
        return Err(many).during(|| format!("start {}", name()));
    }
    let null = File::options()
        .read(true)
        .write(true)
        .open("/dev/null")
        .during(|| "open /dev/null".to_owned())?;
    let (mut report, report_writer) = io::pipe().during(|| "make a pipe".to_owned())?;
    let floor = FIRST_FD + libc::c_int::try_from(FDS_MAX).expect("FDS_MAX fits");
    let lift = |fd: BorrowedFd<'_>| -> Result<OwnedFd> {
        let raw = nix::fcntl::fcntl(fd, FcntlArg::F_DUPFD_CLOEXEC(floor))
            .during(|| "copy a descriptor".to_owned())?;
        // SAFETY: F_DUPFD_CLOEXEC has just made this descriptor and nothing else knows its number.
        Ok(unsafe { OwnedFd::from_raw_fd(raw) })
    };
    let lifted: Vec<_> = program
        .fds
        .iter()
        .map(|fd| lift(*fd))
        .collect::<Result<_>>()?;
    let (file, null) = (lift(program.file)?, lift(null.as_fd())?);
    let output = program.output.map(lift).transpose()?;
    let report_child = lift(report_writer.as_fd())?;
    let pointers = |list: &[CString]| {
        list.iter()
            .map(|s| s.as_ptr())
            .chain([std::ptr::null()])
            .collect()
    };
    let prepared = Prepared {
        program: file.as_raw_fd(),
        argv: pointers(&program.args),
        envp: pointers(&program.env),
        sources: lifted.iter().map(AsRawFd::as_raw_fd).collect(),
        null: null.as_raw_fd(),
        output: output.as_ref().unwrap_or(&null).as_raw_fd(),
        report: report_child.as_raw_fd(),
        jail: program.confinement.as_ref().map(Jail::new),
        last_capability: last_capability(),
    };
    let child = clone(&prepared, program.cgroup, program.confinement.is_some())
        .during(|| format!("clone for {}", name()))?;
    // The child's copy must be the last one open, so that its exec ends the report.
    drop((report_child, report_writer));
    let mut failure = Vec::new();
    report
        .read_to_end(&mut failure)
        .during(|| format!("wait for the start of {}", name()))?;
    let Some((step, errno)) = failure.split_first() else {
        return Ok(child);
    };
    let _ = waitpid(Pid::from_raw(child.pid), None);
    let source = io::Error::from_raw_os_error(errno.try_into().map_or(0, i32::from_ne_bytes));
    Err(Error {
        operation: format!("start {}: {}", name(), Step::text(*step)),
        source,
    })
}

fn clone(prepared: &Prepared, cgroup: Option<BorrowedFd<'_>>, jailed: bool) -> io::Result<Child> {
    let mut pidfd: RawFd = -1;
    let mut flags = libc::CLONE_PIDFD;
    if jailed {
        flags |= libc::CLONE_NEWPID
            | libc::CLONE_NEWNS
            | libc::CLONE_NEWNET
            | libc::CLONE_NEWIPC
            | libc::CLONE_NEWUTS;
    }
    let bits = |n: libc::c_int| u64::from(n.cast_unsigned());
    // Not in every libc binding as an int: bit 33.
    const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
    let args = CloneArgs {
        flags: bits(flags)
            | if cgroup.is_some() {
                CLONE_INTO_CGROUP
            } else {
                0
            },
        pidfd: (&raw mut pidfd) as u64,
        exit_signal: bits(libc::SIGCHLD),
        cgroup: cgroup.map_or(0, |c| bits(c.as_raw_fd())),
        ..CloneArgs::default()
    };
    // SAFETY: without CLONE_VM this is a fork: the child runs on a copy of this memory, and `args`
    // and `pidfd` live until the call returns. In the child only `become_program` runs, which makes
    // plain system calls on prepared memory, so that locks held by other threads do not matter.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of::<CloneArgs>()) };
    match i32::try_from(pid) {
        // SAFETY: this is the child, and all of `prepared` is a copy that nobody else has.
        Ok(0) => unsafe { become_program(prepared) },
        Ok(pid) if pid > 0 => {
            // SAFETY: CLONE_PIDFD has just made this descriptor and nothing else knows its number.
            let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
            Ok(Child { pid, pidfd })
        }
        _ => Err(io::Error::last_os_error()),
    }
}

fn errno() -> i32 {
    io::Error::last_os_error()
        .raw_os_error()
        .unwrap_or(libc::EIO)
}

/// The child, from clone to exec. Never returns.
///
/// # Safety
/// Only for the child of a fork: it closes every descriptor it was not told of and ends the process.
unsafe fn become_program(p: &Prepared) -> ! {
    // SAFETY: forwarded from the caller.
    let Err((step, errno)) = unsafe { attempt(p) };
    let mut report = [0; 5];
    report[0] = step as u8;
    report[1..].copy_from_slice(&errno.to_ne_bytes());
    // SAFETY: the pointer is of a live array of 5 bytes; `_exit` runs no destructor of the parent.
    unsafe {
        libc::write(p.report, report.as_ptr().cast(), report.len());
        libc::_exit(127)
    }
}

/// A raw system call that must give 0 or more; else the function returns the step and the error number.
/// Raw, because the C library's own versions may take locks or speak to threads that do not exist in the
/// child.
macro_rules! must {
    ($step:expr, $number:expr $(, $argument:expr)*) => {
        // SAFETY: the arguments are integers or pointers to memory that lives until exec.
        if unsafe { libc::syscall($number $(, $argument)*) } < 0 {
            return Err(($step, errno()));
        }
    };
}

/// Returns only with the step that failed.
///
/// # Safety
/// As [`become_program`].
unsafe fn attempt(p: &Prepared) -> std::result::Result<std::convert::Infallible, (Step, i32)> {
    // SAFETY: a zeroed sigset_t is the empty set, and it lives until the call returns. setsid and
    // signal take integers only.
    unsafe {
        let none: libc::sigset_t = std::mem::zeroed();
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
        libc::setsid();
    }
    if let Some(jail) = &p.jail {
        // SAFETY: forwarded; `root` is a C string that the parent holds.
        unsafe { enter_root(jail.root) }.map_err(|errno| (Step::Root, errno))?;
    }
    let standard = [p.null, p.output, p.output];
    for (target, source) in standard.iter().chain(&p.sources).enumerate() {
        must!(Step::Descriptors, libc::SYS_dup3, *source, target, 0);
    }
    // The program and the report pipe are among them: close-on-exec keeps them until then.
    let (first, last) = (p.sources.len() + 3, u32::MAX);
    let on_exec = libc::CLOSE_RANGE_CLOEXEC;
    must!(
        Step::Descriptors,
        libc::SYS_close_range,
        first,
        last,
        on_exec
    );
    if let Some(jail) = &p.jail {
        enter_jail(jail, p.last_capability)?;
    }
    let (path, argv, envp) = (c"".as_ptr(), p.argv.as_ptr(), p.envp.as_ptr());
    let itself = libc::AT_EMPTY_PATH;
    must!(
        Step::Exec,
        libc::SYS_execveat,
        p.program,
        path,
        argv,
        envp,
        itself
    );
    Err((Step::Exec, libc::EIO))
}

/// linux/securebits.h: user 0 and programs that are its own get no capability (bit 0), none is raised in the ambient
/// set (6), and none of the four can be changed again (1, 3, 5, 7).
const SECUREBITS: libc::c_ulong = 1 | 1 << 1 | 1 << 3 | 1 << 5 | 1 << 6 | 1 << 7;

/// Limits, and what [`drop_privileges`] does. Allocates nothing.
fn enter_jail(jail: &Jail, last_capability: i32) -> std::result::Result<(), (Step, i32)> {
    for (resource, limit) in jail.limits {
        let limit = libc::rlimit {
            rlim_cur: limit,
            rlim_max: limit,
        };
        must!(
            Step::Limits,
            libc::SYS_prlimit64,
            0,
            resource,
            &raw const limit,
            0
        );
    }
    drop_privileges(jail.user, last_capability)
}

/// No capability in any set, the user, and no way back. Allocates nothing.
fn drop_privileges(user: User, last_capability: i32) -> std::result::Result<(), (Step, i32)> {
    let id = user.id;
    let (prctl, capabilities) = (libc::SYS_prctl, Step::Capabilities);
    // First: it takes a capability that goes below.
    must!(
        capabilities,
        prctl,
        libc::PR_SET_SECUREBITS,
        SECUREBITS,
        0,
        0,
        0
    );
    for capability in 0..=last_capability {
        must!(
            capabilities,
            prctl,
            libc::PR_CAPBSET_DROP,
            capability,
            0,
            0,
            0
        );
    }
    let groups = user.group.as_slice();
    must!(
        Step::User,
        libc::SYS_setgroups,
        groups.len(),
        groups.as_ptr()
    );
    must!(Step::User, libc::SYS_setresgid, id, id, id);
    must!(Step::User, libc::SYS_setresuid, id, id, id);
    let clear = libc::PR_CAP_AMBIENT_CLEAR_ALL;
    must!(capabilities, prctl, libc::PR_CAP_AMBIENT, clear, 0, 0, 0);
    // _LINUX_CAPABILITY_VERSION_3 for this process, and two empty 32-bit triples.
    let (header, sets) = ([0x2008_0522_u32, 0], [0u32; 6]);
    must!(
        capabilities,
        libc::SYS_capset,
        header.as_ptr(),
        sets.as_ptr()
    );
    must!(capabilities, prctl, libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    Ok(())
}

/// Makes the calling process `id`, user and group, with no other group, no capability in any set and no way back. Only
/// in a process with one thread: the kernel changes the calling thread alone.
pub fn become_user(id: u32) -> Result<()> {
    let user = User { id, group: None };
    drop_privileges(user, last_capability()).map_err(|(step, errno)| Error {
        operation: format!("become user {id}: {}", Step::text(step as u8)),
        source: io::Error::from_raw_os_error(errno),
    })
}

/// Makes `root` the read-only root and drops everything else from the mount namespace.
///
/// # Safety
/// Only in a child with its own mount namespace; `root` is a live C string.
unsafe fn enter_root(root: *const libc::c_char) -> std::result::Result<(), i32> {
    let null = std::ptr::null::<libc::c_char>();
    let read_only = libc::MS_RDONLY | libc::MS_NODEV | libc::MS_NOSUID | libc::MS_NOEXEC;
    let dot = c".".as_ptr();
    // SAFETY: all pointers are live C strings or null where the kernel allows null; the calls change
    // only this process's own namespace.
    unsafe {
        let fine = libc::mount(
            null,
            c"/".as_ptr(),
            null,
            libc::MS_REC | libc::MS_PRIVATE,
            std::ptr::null(),
        ) == 0
            && libc::mount(root, root, null, libc::MS_BIND, std::ptr::null()) == 0
            && libc::mount(
                null,
                root,
                null,
                libc::MS_BIND | libc::MS_REMOUNT | read_only,
                std::ptr::null(),
            ) == 0
            && libc::chdir(root) == 0
            && libc::syscall(libc::SYS_pivot_root, dot, dot) == 0
            && libc::umount2(dot, libc::MNT_DETACH) == 0
            && libc::chdir(c"/".as_ptr()) == 0;
        if fine { Ok(()) } else { Err(errno()) }
    }
}

/// The highest capability that this kernel knows.
fn last_capability() -> i32 {
    let known = std::fs::read_to_string("/proc/sys/kernel/cap_last_cap");
    // CAP_CHECKPOINT_RESTORE, the newest one in Linux 6.12.
    known
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .unwrap_or(40)
}

/// Reaps one ended child, whoever's it was before it became ours. `None` when none has ended.
pub fn reap() -> Result<Option<(i32, Ended)>> {
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(pid, code)) => {
                return Ok(Some((pid.as_raw(), Ended::Code(code))));
            }
            Ok(WaitStatus::Signaled(pid, signal, _)) => {
                return Ok(Some((pid.as_raw(), Ended::Signal(signal as i32))));
            }
            Ok(WaitStatus::StillAlive) | Err(nix::errno::Errno::ECHILD) => return Ok(None),
            // Stops and continues are not reported without being asked for.
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(errno) => return Err(errno).during(|| "wait for children".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn c(text: &str) -> CString {
        CString::new(text).expect("no NUL")
    }

    /// Runs a shell with `script` and gives its output and end.
    fn run(
        script: &str,
        fds: Vec<BorrowedFd<'_>>,
        confinement: Option<Confinement>,
    ) -> (String, i32) {
        let shell = File::open("/bin/sh").expect("a shell");
        let (mut reader, writer) = io::pipe().expect("a pipe");
        let child = spawn(&Program {
            file: shell.as_fd(),
            args: vec![c("sh"), c("-c"), c(script)],
            env: vec![c("PATH=/bin:/usr/bin")],
            fds,
            output: Some(writer.as_fd()),
            cgroup: None,
            confinement,
        })
        .expect("a child");
        drop(writer);
        let mut text = String::new();
        reader.read_to_string(&mut text).expect("read");
        let status = waitpid(Pid::from_raw(child.pid), None).expect("wait");
        let WaitStatus::Exited(_, code) = status else {
            panic!("{status:?}")
        };
        (text, code)
    }

    #[test]
    fn a_child_has_exactly_its_descriptors() {
        let file = File::open("/dev/zero").expect("open");
        let (text, code) = run(
            "for n in 0 1 2 3 4 5 6 7 67 68 69 70 71 72; do [ -e /proc/$$/fd/$n ] && echo $n; done; readlink /proc/$$/fd/4",
            vec![file.as_fd(), file.as_fd()],
            None,
        );
        assert_eq!((text.as_str(), code), ("0\n1\n2\n3\n4\n/dev/zero\n", 0));
    }

    /// A program that needs no library: it waits until descriptor 3 ends, then exits with 7.
    fn waiter(directory: &std::path::Path) -> Option<File> {
        let source =
            "#include <unistd.h>\nint main(void) { char c; return read(3, &c, 1) == 0 ? 7 : 8; }\n";
        let (from, to) = (directory.join("waiter.c"), directory.join("waiter"));
        std::fs::write(&from, source).expect("write");
        let built = std::process::Command::new("cc")
            .args(["-static", "-o"])
            .args([&to, &from])
            .status();
        built
            .is_ok_and(|s| s.success())
            .then(|| File::open(to).expect("open the program"))
    }

    /// The test needs root and a C compiler; it says so and passes where they are missing.
    #[test]
    fn a_confined_child_has_no_user_no_capability_and_nothing_to_open() {
        let directory = tempfile::tempdir().expect("a directory");
        let root = directory.path().join("empty");
        std::fs::create_dir(&root).expect("a directory");
        let program = waiter(directory.path()).filter(|_| nix::unistd::geteuid().is_root());
        let Some(file) = program else {
            eprintln!("skipped: needs root and cc");
            return;
        };
        let (reader, writer) = io::pipe().expect("a pipe");
        let child = spawn(&Program {
            file: file.as_fd(),
            args: vec![c("waiter")],
            env: vec![],
            fds: vec![reader.as_fd()],
            output: None,
            cgroup: None,
            confinement: Some(Confinement {
                id: 100_017,
                group: Some(99_999),
                root: c(root.to_str().expect("a path in UTF-8")),
                files_max: 99,
                file_bytes_max: 12_345,
            }),
        })
        .expect("a child");
        let proc = std::path::PathBuf::from(format!("/proc/{}", child.pid));
        let read = |name: &str| std::fs::read_to_string(proc.join(name)).expect(name);
        let status = read("status");
        let field = |name: &str| {
            let line = status
                .lines()
                .find_map(|l| l.strip_prefix(name)?.strip_prefix(':'));
            line.unwrap_or_else(|| panic!("{name}"))
                .split_whitespace()
                .collect::<Vec<_>>()
                .join(" ")
        };
        assert_eq!(field("Uid"), "100017 100017 100017 100017");
        assert_eq!(
            (field("Gid"), field("Groups")),
            ("100017 100017 100017 100017".to_owned(), "99999".to_owned())
        );
        for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
            assert_eq!(field(set), "0000000000000000", "{set}");
        }
        assert_eq!(
            (field("NoNewPrivs"), field("SigBlk")),
            ("1".to_owned(), "0000000000000000".to_owned())
        );
        assert!(
            field("NSpid").ends_with(" 1"),
            "first of its own PID namespace"
        );
        let limits = read("limits");
        let limited = |what: &str, to: &str| {
            let line = limits.lines().find(|line| line.starts_with(what));
            line.is_some_and(|line| line.split_whitespace().any(|word| word == to))
        };
        assert!(limited("Max open files", "99"), "{limits}");
        assert!(limited("Max file size", "12345"), "{limits}");
        let mounts = read("mounts");
        assert!(
            mounts.lines().count() == 1 && mounts.contains(" / ") && mounts.contains("ro,"),
            "{mounts}"
        );
        assert_eq!(
            std::fs::read_dir(proc.join("root"))
                .expect("its root")
                .count(),
            0
        );
        assert_eq!(
            std::fs::read_dir(proc.join("fd"))
                .expect("its descriptors")
                .count(),
            4
        );
        for space in ["pid_for_children", "mnt", "net", "ipc", "uts"] {
            let of = |p: &str| std::fs::read_link(format!("/proc/{p}/ns/{space}")).expect(space);
            assert_ne!(of(&child.pid.to_string()), of("self"), "{space}");
        }
        drop((reader, writer));
        let end = waitpid(Pid::from_raw(child.pid), None).expect("wait");
        assert_eq!(end, WaitStatus::Exited(Pid::from_raw(child.pid), 7));
    }

    #[test]
    fn a_program_that_cannot_run_is_an_error_of_spawn() {
        let file = File::open("/dev/null").expect("open");
        let program = Program {
            file: file.as_fd(),
            args: vec![c("nothing")],
            env: vec![],
            fds: vec![],
            output: None,
            cgroup: None,
            confinement: None,
        };
        let error = spawn(&program).expect_err("not a program");
        assert_eq!(error.operation, "start nothing: execute the program");
    }
}
