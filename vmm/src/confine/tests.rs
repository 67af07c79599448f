//! Filters are proved in a child process each: it does what its kind of thread is for, under that kind's filter,
//! and lives; or it does one thing more, and dies of SIGSYS. What needs a whole machine (KVM_RUN of a guest) is
//! proved by the nested laboratory of `qemu-tests`.

use std::fs::File;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::Arc;

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use types::vm::{FromVmm, HugePages, Stream};
use vmm_sys_util::eventfd::EventFd;

use sys::confine::Argument;

use super::*;
use crate::control::Outbox;
use crate::device::watchdog::{self, Watchdog};
use crate::end::End;
use crate::event::{self, Served};
use crate::hv::kick::Kick;
use crate::log::Log;
use crate::memory::{self, GuestRam};
use crate::snapshot;
use crate::snapshot::memory::Wanted;
use crate::virtio::blk::RING_ENTRIES;
use crate::virtio::testing::Driver;

/// Set in the child: kind, and what it is to do under its filter.
const DEED: &str = "SIFR_VMM_TEST_DEED";

/// Does what a thread of this kind is for: set-up first, then the filter, then all that it will ever call, then
/// [`done`]. Without a wildcard, so that a new kind says here what it needs.
fn needed(kind: Kind) {
    match kind {
        Kind::Main => main_works(),
        Kind::Vcpu => vcpu_works(),
        Kind::Blk => crate::virtio::blk::tests::work(|| confine(Kind::Blk), done),
        Kind::Pages => {
            let null = null();
            confine(Kind::Pages);
            refused_ioctl(null, COPY_PAGE());
            refused_ioctl(null, ZERO_PAGE());
            refused_ioctl(null, WAKE());
            done();
        }
        Kind::Net => {
            let null = null();
            crate::virtio::net::tests::work(
                || confine(Kind::Net),
                || {
                    refused_ioctl(null, SET_OFFLOADS());
                    refused_ioctl(null, SET_QUEUE());
                    done();
                },
            );
        }
    }
}

/// What threads of all kinds do; then the child ends. Nothing is dropped: a file of the standard library that is
/// closed asks for its flags first in programs that are built for debugging. Nor does the harness around the test
/// get its turn, which would make calls that no thread of ours makes.
#[expect(clippy::exit, reason = "ends the child under its filter")]
fn done() {
    every_kind_works();
    std::process::exit(0);
}

fn confine(kind: Kind) {
    install(&filter(kind).expect("builds")).expect("installs");
}

/// Memory of all sizes, a line on standard error, a lock, a wait that ends.
fn every_kind_works() {
    let mut kept = vec![1u8; 1 << 20];
    kept.resize(3 << 20, 2);
    drop(std::hint::black_box(kept));
    crate::report::line("a line under the filter");
    drop(std::sync::Mutex::new(0).lock());
}

fn event() -> EventFd {
    EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC).expect("an event")
}

/// The control socket, the log with a rotation, entropy, and the loop around them.
fn main_works() {
    let flags = SockFlag::SOCK_CLOEXEC;
    let sockets = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags);
    let (ours, node) = sockets.expect("sockets");
    let outbox = Outbox::new(Some(Arc::new(ours))).expect("an outbox");
    let file = || tempfile::tempfile().expect("a file");
    let mut log = Log::open([file(), file()], 0).expect("a log");
    let mut driver = Driver::new(&[16]);
    driver.offer(0, &[], &[(crate::virtio::testing::DATA, 4096)]);
    let stop = event();
    let pause = Pause::new();
    let forward = crate::virtio::vsock::forward::tests::Work::new();
    confine(Kind::Main);
    forward.work();
    pause.work();
    outbox.post(&FromVmm::Running { setup_us: 1 });
    for _ in 0..3 {
        log.append(Stream::Stdout, &[b'x'; 40_000]);
    }
    let _ = driver
        .turn(&mut crate::virtio::rng::Rng)
        .expect("rules kept");
    stop.write(1).expect("counts");
    event::run(&[&outbox as &dyn Served], &stop).expect("waits");
    outbox.finish();
    done();
    drop(node);
}

/// What a pause and a snapshot do: a thread is interrupted, the watchdog's timer rests, both files are checked and
/// written, KVM is asked for all its state.
struct Pause {
    kick: Kick,
    watchdog: Watchdog,
    ram: Arc<GuestRam>,
    file: &'static File,
    null: &'static File,
}

impl Pause {
    fn new() -> Self {
        let file: &File = Box::leak(Box::new(tempfile::tempfile().expect("a file")));
        // A file stands for a vCPU: what is mapped of it is a page, and the thread only sleeps.
        file.set_len(4096).expect("grows");
        let sleeper = std::thread::spawn(|| {
            loop {
                std::thread::park();
            }
        });
        let end = Arc::new(End::new().expect("an event"));
        let watchdog = Watchdog::new(&end).expect("a timer");
        watchdog.write(watchdog::START, 0);
        Self {
            kick: Kick::new(file.as_raw_fd(), sleeper),
            watchdog,
            ram: memory::allocate(memory::layout::MEMORY_MIB_MIN, HugePages::None).expect("memory"),
            file: Box::leak(Box::new(tempfile::tempfile().expect("a file"))),
            null: null(),
        }
    }

    fn work(mut self) {
        self.kick.interrupt().expect("a thread");
        self.kick.relent();
        self.watchdog.quiesce();
        self.watchdog.resume();
        // Whether a file is a regular one is left out: glibc asks by a call that musl, which is shipped, does not make.
        let _ = memory::is_never_swapped();
        for anonymous in [true, false] {
            let wanted = Wanted::All { anonymous };
            snapshot::memory::write(self.file, &self.ram, &wanted).expect("writes");
        }
        let state = snapshot::tests::state();
        snapshot::format::write(self.file, &state).expect("writes");
        for request in asked_for_state() {
            refused_ioctl(self.null, request);
        }
        std::mem::forget(self);
    }
}

/// The two ioctls, and what a guest's writes lead to: an interrupt that is raised, a doorbell that is rung.
fn vcpu_works() {
    let null = null();
    let bell = event();
    confine(Kind::Vcpu);
    refused_ioctl(null, RUN());
    refused_ioctl(null, GET_REGS());
    bell.write(1).expect("counts");
    // The serial port writes to what it was given.
    (&mut &*null).write_all(b"x").expect("written");
    done();
}

/// A system call with its arguments.
type Raw = (libc::c_long, [usize; 6]);

const NULL: usize = 0;
/// No descriptor: a call that passes the filter fails and does nothing.
const NONE: usize = usize::MAX;
const EXECUTABLE: usize = (libc::PROT_READ | libc::PROT_EXEC).cast_unsigned() as usize;
const PRIVATE: usize = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS).cast_unsigned() as usize;
const FORK: usize = libc::SIGCHLD.cast_unsigned() as usize;

/// What no kind of thread may do. Each is harmless where it passes.
const FORBIDDEN: &[(&str, Raw)] = &[
    ("open", (libc::SYS_open, [NULL; 6])),
    ("openat", (libc::SYS_openat, [NONE, NULL, 0, 0, 0, 0])),
    ("openat2", (libc::SYS_openat2, [NONE, NULL, NULL, 0, 0, 0])),
    ("stat", (libc::SYS_newfstatat, [NONE, NULL, NULL, 0, 0, 0])),
    ("unlink", (libc::SYS_unlinkat, [NONE, NULL, 0, 0, 0, 0])),
    ("mount", (libc::SYS_mount, [NULL; 6])),
    ("socket", (libc::SYS_socket, [NONE, NONE, 0, 0, 0, 0])),
    ("connect", (libc::SYS_connect, [NONE, NULL, 0, 0, 0, 0])),
    ("bind", (libc::SYS_bind, [NONE, NULL, 0, 0, 0, 0])),
    ("execve", (libc::SYS_execve, [NULL; 6])),
    (
        "execveat",
        (libc::SYS_execveat, [NONE, NULL, NULL, NULL, 0, 0]),
    ),
    ("clone", (libc::SYS_clone, [FORK, NULL, NULL, NULL, 0, 0])),
    ("clone3", (libc::SYS_clone3, [NULL; 6])),
    ("fork", (libc::SYS_fork, [NULL; 6])),
    ("unshare", (libc::SYS_unshare, [NULL; 6])),
    ("setns", (libc::SYS_setns, [NONE, 0, 0, 0, 0, 0])),
    ("setuid", (libc::SYS_setuid, [NONE, 0, 0, 0, 0, 0])),
    ("capset", (libc::SYS_capset, [NULL; 6])),
    ("prctl", (libc::SYS_prctl, [NONE, 0, 0, 0, 0, 0])),
    ("ptrace", (libc::SYS_ptrace, [NONE, 0, 0, 0, 0, 0])),
    (
        "process_vm_writev",
        (libc::SYS_process_vm_writev, [NONE, 0, 0, 0, 0, 0]),
    ),
    ("kill", (libc::SYS_kill, [NONE, NONE, 0, 0, 0, 0])),
    (
        "a signal other than SIGABRT",
        (libc::SYS_tgkill, [NONE, NONE, 9, 0, 0, 0]),
    ),
    ("memfd_create", (libc::SYS_memfd_create, [NULL; 6])),
    ("bpf", (libc::SYS_bpf, [NONE, 0, 0, 0, 0, 0])),
    ("keyctl", (libc::SYS_keyctl, [NONE, 0, 0, 0, 0, 0])),
    ("perf_event_open", (libc::SYS_perf_event_open, [NULL; 6])),
    (
        "executable memory",
        (libc::SYS_mmap, [0, 4096, EXECUTABLE, PRIVATE, NONE, 0]),
    ),
    (
        "memory made executable",
        (libc::SYS_mprotect, [0, 0, EXECUTABLE, 0, 0, 0]),
    ),
    (
        "an ioctl of another kind",
        (libc::SYS_ioctl, [NONE, 0x5413, 0, 0, 0, 0]),
    ),
    (
        "new registers for a vCPU",
        (libc::SYS_ioctl, [NONE, 0x4090_ae82, 0, 0, 0, 0]),
    ),
    ("making a VM", (libc::SYS_ioctl, [NONE, 0xae01, 0, 0, 0, 0])),
    (
        "memory for a VM",
        (libc::SYS_ioctl, [NONE, 0x4020_ae46, 0, 0, 0, 0]),
    ),
];

/// What a kind may not do though another may.
fn forbidden(kind: Kind) -> &'static [(&'static str, Raw)] {
    const DISK: (&str, Raw) = (
        "a disk's read",
        (libc::SYS_preadv, [NONE, NULL, 0, 0, 0, 0]),
    );
    const HOLE: (&str, Raw) = ("a hole", (libc::SYS_fallocate, [NONE, 0, 0, 0, 0, 0]));
    const RUN: (&str, Raw) = ("KVM_RUN", (libc::SYS_ioctl, [NONE, 0xae80, 0, 0, 0, 0]));
    const TAP: (&str, Raw) = (
        "offloads",
        (libc::SYS_ioctl, [NONE, 0x4004_54d0, 0, 0, 0, 0]),
    );
    const SEND: (&str, Raw) = ("a message", (libc::SYS_sendto, [NONE, NULL, 0, 0, 0, 0]));
    const RING: (&str, Raw) = (
        "a ring",
        (
            libc::SYS_io_uring_setup,
            [RING_ENTRIES as usize, NULL, 0, 0, 0, 0],
        ),
    );
    const OTHER_RING: (&str, Raw) = (
        "a ring of another size",
        (libc::SYS_io_uring_setup, [8, NULL, 0, 0, 0, 0]),
    );
    const RANDOM: (&str, Raw) = ("entropy", (libc::SYS_getrandom, [NULL, 0, 0, 0, 0, 0]));
    const WATCH: (&str, Raw) = (
        "watching memory",
        (libc::SYS_ioctl, [NONE, 0xc020_aa00, 0, 0, 0, 0]),
    );
    const STATE: (&str, Raw) = (
        "a vCPU's registers",
        (libc::SYS_ioctl, [NONE, 0x8138_ae83, 0, 0, 0, 0]),
    );
    const KICK: (&str, Raw) = (
        "an interruption",
        (
            libc::SYS_tgkill,
            [NONE, NONE, libc::SIGUSR1.cast_unsigned() as usize, 0, 0, 0],
        ),
    );
    const PLACE: (&str, Raw) = (
        "a place in a file",
        (libc::SYS_pwrite64, [NONE, NULL, 0, 0, 0, 0]),
    );
    match kind {
        Kind::Main => &[DISK, RUN, TAP, RING, OTHER_RING],
        Kind::Vcpu => &[STATE, KICK, PLACE, RANDOM, TAP, SEND, RING, OTHER_RING],
        Kind::Blk => &[STATE, KICK, PLACE, RANDOM, RUN, TAP, OTHER_RING],
        Kind::Pages => &[
            STATE, KICK, PLACE, RANDOM, DISK, HOLE, RUN, TAP, SEND, RING, OTHER_RING, WATCH,
        ],
        Kind::Net => &[
            STATE, KICK, PLACE, RANDOM, DISK, HOLE, RUN, SEND, RING, OTHER_RING,
        ],
    }
}

// The requests as the crates that make them compute them.
vmm_sys_util::ioctl_io_nr!(RUN, kvm_bindings::KVMIO, 0x80);
vmm_sys_util::ioctl_ior_nr!(GET_REGS, kvm_bindings::KVMIO, 0x81, kvm_bindings::kvm_regs);
vmm_sys_util::ioctl_ior_nr!(
    GET_SREGS,
    kvm_bindings::KVMIO,
    0x83,
    kvm_bindings::kvm_sregs
);
vmm_sys_util::ioctl_ior_nr!(
    GET_XSAVE,
    kvm_bindings::KVMIO,
    0xa4,
    kvm_bindings::kvm_xsave
);
vmm_sys_util::ioctl_ior_nr!(GET_XCRS, kvm_bindings::KVMIO, 0xa6, kvm_bindings::kvm_xcrs);
vmm_sys_util::ioctl_ior_nr!(
    GET_DEBUGREGS,
    kvm_bindings::KVMIO,
    0xa1,
    kvm_bindings::kvm_debugregs
);
vmm_sys_util::ioctl_ior_nr!(
    GET_LAPIC,
    kvm_bindings::KVMIO,
    0x8e,
    kvm_bindings::kvm_lapic_state
);
vmm_sys_util::ioctl_ior_nr!(
    GET_MP_STATE,
    kvm_bindings::KVMIO,
    0x98,
    kvm_bindings::kvm_mp_state
);
vmm_sys_util::ioctl_ior_nr!(
    GET_EVENTS,
    kvm_bindings::KVMIO,
    0x9f,
    kvm_bindings::kvm_vcpu_events
);
vmm_sys_util::ioctl_iowr_nr!(GET_MSRS, kvm_bindings::KVMIO, 0x88, kvm_bindings::kvm_msrs);
vmm_sys_util::ioctl_iowr_nr!(
    GET_CPUID,
    kvm_bindings::KVMIO,
    0x91,
    kvm_bindings::kvm_cpuid2
);
vmm_sys_util::ioctl_io_nr!(GET_TSC_KHZ, kvm_bindings::KVMIO, 0xa3);
vmm_sys_util::ioctl_io_nr!(KVMCLOCK_CTRL, kvm_bindings::KVMIO, 0xad);
vmm_sys_util::ioctl_iowr_nr!(
    GET_MSR_LIST,
    kvm_bindings::KVMIO,
    0x02,
    kvm_bindings::kvm_msr_list
);
vmm_sys_util::ioctl_iowr_nr!(
    GET_IRQCHIP,
    kvm_bindings::KVMIO,
    0x62,
    kvm_bindings::kvm_irqchip
);
vmm_sys_util::ioctl_ior_nr!(
    GET_CLOCK,
    kvm_bindings::KVMIO,
    0x7c,
    kvm_bindings::kvm_clock_data
);
vmm_sys_util::ioctl_iow_nr!(
    GET_LOG,
    kvm_bindings::KVMIO,
    0x42,
    kvm_bindings::kvm_dirty_log
);

/// All that a snapshot asks KVM.
fn asked_for_state() -> [libc::c_ulong; 16] {
    [
        GET_REGS(),
        GET_SREGS(),
        GET_XSAVE(),
        GET_XCRS(),
        GET_DEBUGREGS(),
        GET_LAPIC(),
        GET_MP_STATE(),
        GET_EVENTS(),
        GET_MSRS(),
        GET_CPUID(),
        GET_TSC_KHZ(),
        KVMCLOCK_CTRL(),
        GET_MSR_LIST(),
        GET_IRQCHIP(),
        GET_CLOCK(),
        GET_LOG(),
    ]
}

vmm_sys_util::ioctl_iow_nr!(SET_OFFLOADS, b'T'.into(), 208, libc::c_uint);
vmm_sys_util::ioctl_iow_nr!(SET_QUEUE, b'T'.into(), 217, libc::c_int);
// linux/userfaultfd.h: structures of so many words; the last is a mistake there, and stays.
vmm_sys_util::ioctl_iowr_nr!(COPY_PAGE, 0xaa, 3, [u64; 5]);
vmm_sys_util::ioctl_iowr_nr!(ZERO_PAGE, 0xaa, 4, [u64; 4]);
vmm_sys_util::ioctl_ior_nr!(WAKE, 0xaa, 2, [u64; 2]);

/// A device that knows none of these requests. Never closed: a file of the standard library that is, asks
/// for its flags first in programs that are built for debugging.
fn null() -> &'static File {
    let null = File::options().read(true).write(true).open("/dev/null");
    Box::leak(Box::new(null.expect("opens")))
}

#[expect(unsafe_code, reason = "the filter looks at the call itself")]
fn refused_ioctl(file: &File, request: libc::c_ulong) {
    // SAFETY: no argument is passed but zero, and /dev/null takes none of these requests.
    let result = unsafe { vmm_sys_util::ioctl::ioctl(file, request) };
    assert_eq!(result, -1);
    assert!(file.as_raw_fd() > 2);
}

#[expect(unsafe_code, reason = "the filter looks at the call itself")]
fn attempt((number, [a, b, c, d, e, f]): Raw) {
    // SAFETY: the arguments name no descriptor, process or memory of ours: where the call passes the filter it
    // fails, or makes a mapping or a child that this process ends with.
    unsafe { libc::syscall(number, a, b, c, d, e, f) };
}

fn deeds(kind: Kind) -> impl Iterator<Item = &'static (&'static str, Raw)> {
    FORBIDDEN.iter().chain(forbidden(kind))
}

#[test]
fn child() {
    let Ok(deed) = std::env::var(DEED) else {
        return;
    };
    let (kind, what) = deed.split_once(' ').expect("kind and deed");
    let kind = Kind::ALL.into_iter().find(|k| format!("{k:?}") == kind);
    let kind = kind.expect("a kind");
    match what {
        "works" => needed(kind),
        "landlock" => wall_in(),
        "seal" => {
            confine(kind);
            seal_ring().expect("seals");
            let _ = io_uring::IoUring::new(RING_ENTRIES);
        }
        other => {
            let (_, raw) = deeds(kind)
                .find(|(name, _)| *name == other)
                .expect("a deed");
            confine(kind);
            attempt(*raw);
        }
    }
    // Passed what it was to be killed for, or Landlock's test, which has no filter.
    #[expect(clippy::exit, reason = "ends the child under its filter")]
    std::process::exit(0);
}

fn run(kind: Kind, what: &str) -> ExitStatus {
    Command::new(std::env::current_exe().expect("this test"))
        .args([
            "--exact",
            "confine::tests::child",
            "--test-threads=1",
            "--nocapture",
        ])
        .env(DEED, format!("{kind:?} {what}"))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .expect("runs")
}

#[test]
fn a_thread_of_each_kind_does_all_its_work_under_its_filter() {
    for kind in Kind::ALL {
        let end = run(kind, "works");
        assert_eq!(end.code(), Some(0), "{kind:?}: {end}");
    }
}

#[test]
fn whatever_else_a_thread_does_kills_the_process() {
    for kind in Kind::ALL {
        for (what, _) in deeds(kind) {
            assert_eq!(
                run(kind, what).signal(),
                Some(libc::SIGSYS),
                "{kind:?}: {what}"
            );
        }
    }
}

#[test]
fn a_disk_has_one_ring_and_makes_no_other() {
    assert_eq!(run(Kind::Blk, "seal").signal(), Some(libc::SIGSYS));
}

#[test]
fn a_forbidden_call_is_in_no_list() {
    for kind in Kind::ALL {
        for (what, (number, [_, second, ..])) in deeds(kind) {
            let listed = calls(kind).any(|call| {
                let same = |a: &Argument| a.index != 1 || usize::try_from(a.value) == Ok(*second);
                call.number == *number
                    && call
                        .argument
                        .as_ref()
                        .is_none_or(|a| a.index == 1 && same(a))
            });
            assert!(!listed, "{kind:?}: {what}");
        }
    }
}

#[test]
fn every_filter_builds_and_no_call_is_listed_both_freely_and_with_an_argument() {
    for kind in Kind::ALL {
        filter(kind).expect("builds");
        for call in calls(kind) {
            let twins: Vec<_> = calls(kind)
                .filter(|other| other.number == call.number)
                .collect();
            assert!(twins.len() == 1 || twins.iter().all(|c| c.argument.is_some()));
        }
    }
}

/// In the child, which has no filter then: what the domain denies, and what it leaves. Its exit code says whether
/// this kernel has Landlock at all.
fn wall_in() {
    use std::net::{TcpListener, TcpStream};
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};

    let file = tempfile::tempfile().expect("a file");
    let name = format!("sifr-vmm-test-{}", std::process::id());
    let address = SocketAddr::from_abstract_name(name).expect("a name");
    let _outside = UnixListener::bind_addr(&address).expect("bound");
    let tcp = TcpListener::bind("127.0.0.1:0").expect("bound");
    let port = tcp.local_addr().expect("an address");
    assert!(File::open("/").is_ok(), "before");
    match domain().expect("a domain") {
        RulesetStatus::FullyEnforced => {}
        RulesetStatus::PartiallyEnforced | RulesetStatus::NotEnforced =>
        {
            #[expect(clippy::exit, reason = "ends the child")]
            std::process::exit(NO_LANDLOCK)
        }
    }
    let denied = |what: &str, done: std::io::Result<()>| {
        let error = done.expect_err(what);
        assert_eq!(error.kind(), std::io::ErrorKind::PermissionDenied, "{what}");
    };
    denied("open a directory", File::open("/").map(drop));
    denied("make a file", File::create("/tmp/sifr-vmm-test").map(drop));
    denied(
        "run a program",
        Command::new("/bin/true").status().map(drop),
    );
    denied(
        "bind a TCP port",
        TcpListener::bind("127.0.0.1:0").map(drop),
    );
    denied("connect a TCP port", TcpStream::connect(port).map(drop));
    denied(
        "an abstract socket",
        UnixStream::connect_addr(&address).map(drop),
    );
    let parent = nix::unistd::getppid();
    assert_eq!(
        nix::sys::signal::kill(parent, None),
        Err(nix::errno::Errno::EPERM)
    );
    // What is open stays as it was opened, and this process may still end itself.
    (&file).write_all(b"x").expect("written");
    file.set_len(0).expect("cut");
    assert_eq!(nix::sys::signal::kill(nix::unistd::getpid(), None), Ok(()));
}

/// Exit code of [`wall_in`] on an old kernel.
const NO_LANDLOCK: i32 = 77;

#[test]
fn in_its_domain_the_process_reaches_no_path_port_socket_or_process() {
    let end = run(Kind::Main, "landlock");
    if end.code() == Some(NO_LANDLOCK) {
        eprintln!(
            "this kernel has no Landlock of Linux 6.12: nothing to see; the nested laboratory looks too"
        );
        return;
    }
    assert_eq!(end.code(), Some(0), "{end}");
}
