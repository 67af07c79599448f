//! What the VMM forbids itself: new privileges, being traced, every path, and every system call not listed here.
//!
//! Owns: one allow-list per kind of thread, as data, the caller beside each call; and the Landlock domain of the
//! whole process, in which nothing is allowed.
//! Refuses: everything else, with the death of the process. User, namespaces, file tree and cgroup are
//! its parent's work and done before it starts.

use sys::confine::{BpfProgram, Call, RulesetStatus, Tcp, any, not_executable, with};

use crate::report;
use crate::virtio::blk::RING_ENTRIES;

pub(crate) use sys::confine::{ConfineError, install};

/// The kinds of thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// Serves vsock, entropy and the control socket, and ends the process.
    Main,
    Vcpu,
    Blk,
    Net,
    /// Brings the pages of a restored machine.
    Pages,
}

impl Kind {
    /// Each of them: what is not here has no tests. One that is added gets its place here first.
    #[cfg(test)]
    const ALL: [Self; 5] = [Self::Main, Self::Vcpu, Self::Blk, Self::Net, Self::Pages];
}

/// KVM_RUN of `VcpuFd::run`.
const KVM_RUN: u32 = 0xae80;
/// TUNSETOFFLOAD of `Net::activate`.
pub(crate) const TUNSETOFFLOAD: u32 = 0x4004_54d0;

/// TUNSETQUEUE of `Net::attach_active`.
pub(crate) const TUNSETQUEUE: u32 = 0x4004_54d9;

/// VHOST_* of linux/vhost.h, each for `Vhost`.
pub(crate) mod vhost {
    pub(crate) const GET_FEATURES: u32 = 0x8008_af00;
    pub(crate) const SET_FEATURES: u32 = 0x4008_af00;
    pub(crate) const SET_OWNER: u32 = 0xaf01;
    pub(crate) const SET_MEM_TABLE: u32 = 0x4008_af03;
    pub(crate) const SET_LOG_BASE: u32 = 0x4008_af04;
    pub(crate) const SET_VRING_NUM: u32 = 0x4008_af10;
    pub(crate) const SET_VRING_ADDR: u32 = 0x4028_af11;
    pub(crate) const SET_VRING_BASE: u32 = 0x4008_af12;
    pub(crate) const GET_VRING_BASE: u32 = 0xc008_af12;
    pub(crate) const SET_VRING_KICK: u32 = 0x4008_af20;
    pub(crate) const SET_VRING_CALL: u32 = 0x4008_af21;
    pub(crate) const SET_VRING_ERR: u32 = 0x4008_af22;
    pub(crate) const NET_SET_BACKEND: u32 = 0x4008_af30;
}

/// IORING_REGISTER_*: what a ring may be told before it is switched on.
const REGISTER_FILES: u32 = 2;
const REGISTER_RESTRICTIONS: u32 = 11;
const REGISTER_ENABLE_RINGS: u32 = 12;
const REGISTER_IOWQ_MAX_WORKERS: u32 = 19;

/// Every thread: the allocator, locks, messages, its own end.
const COMMON: &[Call] = &[
    any(libc::SYS_brk),                                              // allocator
    not_executable(libc::SYS_mmap),                                  // allocator
    not_executable(libc::SYS_mprotect),                              // allocator
    any(libc::SYS_mremap),                                           // allocator
    any(libc::SYS_munmap), // allocator; stack of an ended thread
    with(libc::SYS_madvise, 2, libc::MADV_DONTNEED.cast_unsigned()), // allocator
    with(libc::SYS_madvise, 2, libc::MADV_FREE.cast_unsigned()), // allocator
    any(libc::SYS_futex),  // Mutex, Barrier, join
    any(libc::SYS_sched_yield), // Mutex under contention
    any(libc::SYS_read),   // EventFd::read
    any(libc::SYS_write),  // EventFd::write, eprintln
    any(libc::SYS_writev), // eprintln on musl; Net; log records
    any(libc::SYS_close),  // drop of descriptors at the end
    any(libc::SYS_clock_gettime), // time of a log record where the vDSO has no clock
    any(libc::SYS_restart_syscall), // any wait, continued after a stop signal
    any(libc::SYS_rt_sigprocmask), // end of a thread; abort
    any(libc::SYS_rt_sigreturn), // end of a signal handler of std (stack overflow)
    any(libc::SYS_sigaltstack), // end of a thread
    any(libc::SYS_gettid), // abort after a panic
    any(libc::SYS_getpid), // abort after a panic
    with(libc::SYS_tgkill, 2, libc::SIGABRT.cast_unsigned()), // abort after a panic
    with(libc::SYS_tkill, 1, libc::SIGABRT.cast_unsigned()), // abort after a panic, musl
    any(libc::SYS_rt_sigaction), // abort after a panic
    any(libc::SYS_exit),   // end of a thread
    any(libc::SYS_exit_group), // end of main
    any(libc::SYS_set_robust_list), // end of a thread, musl
];

const MAIN: &[Call] = &[
    any(libc::SYS_poll),                                           // event::run
    any(libc::SYS_recvmsg),                                        // Inbox::next
    any(libc::SYS_sendto),                                         // Outbox::flush
    any(libc::SYS_sendmsg),                                        // Broker::ask
    with(libc::SYS_shutdown, 1, libc::SHUT_WR.cast_unsigned()),    // Stream::forward
    any(libc::SYS_getrandom),                                      // Rng::serve
    any(libc::SYS_getrusage),                                      // Registry::read
    any(libc::SYS_ftruncate),                                      // log rotation
    any(libc::SYS_fstat),           // log: length of a file; Subject::snapshot
    any(libc::SYS_pwrite64),        // snapshot: both files
    any(libc::SYS_mincore),         // memory::resident
    any(libc::SYS_sysinfo),         // memory::is_never_swapped
    any(libc::SYS_timerfd_gettime), // Watchdog::quiesce
    any(libc::SYS_timerfd_settime), // Watchdog::quiesce, Watchdog::resume
    with(libc::SYS_tgkill, 2, libc::SIGUSR1.cast_unsigned()), // Kick::interrupt
    with(libc::SYS_tkill, 1, libc::SIGUSR1.cast_unsigned()), // Kick::interrupt, musl
    with(libc::SYS_fcntl, 1, libc::F_GETFL.cast_unsigned()), // Subject::snapshot: is the file writable
    with(libc::SYS_ioctl, 1, KVM_GET_REGS),                  // VcpuState::save, as all below
    with(libc::SYS_ioctl, 1, 0x8138_ae83),                   // KVM_GET_SREGS
    with(libc::SYS_ioctl, 1, 0x9000_aea4),                   // KVM_GET_XSAVE
    with(libc::SYS_ioctl, 1, 0x8188_aea6),                   // KVM_GET_XCRS
    with(libc::SYS_ioctl, 1, 0x8080_aea1),                   // KVM_GET_DEBUGREGS
    with(libc::SYS_ioctl, 1, 0x8400_ae8e),                   // KVM_GET_LAPIC
    with(libc::SYS_ioctl, 1, 0x8004_ae98),                   // KVM_GET_MP_STATE
    with(libc::SYS_ioctl, 1, 0x8040_ae9f),                   // KVM_GET_VCPU_EVENTS
    with(libc::SYS_ioctl, 1, 0xc008_ae88),                   // KVM_GET_MSRS
    with(libc::SYS_ioctl, 1, 0xc008_ae91),                   // KVM_GET_CPUID2
    with(libc::SYS_ioctl, 1, 0xaea3),                        // KVM_GET_TSC_KHZ
    with(libc::SYS_ioctl, 1, 0xaead),                        // KVM_KVMCLOCK_CTRL, Subject::pause
    with(libc::SYS_ioctl, 1, 0xc004_ae02),                   // KVM_GET_MSR_INDEX_LIST, Vm::msrs
    with(libc::SYS_ioctl, 1, 0xc208_ae62),                   // KVM_GET_IRQCHIP, Subject::state
    with(libc::SYS_ioctl, 1, 0x8030_ae7c),                   // KVM_GET_CLOCK, Subject::state
    with(libc::SYS_ioctl, 1, 0x4010_ae42),                   // KVM_GET_DIRTY_LOG, Vm::take_log
    any(libc::SYS_readv),                                    // Console: input to the guest
    with(libc::SYS_madvise, 2, libc::MADV_REMOVE.cast_unsigned()), // Balloon: shared memory
];

const VCPU: &[Call] = &[
    with(libc::SYS_ioctl, 1, KVM_RUN),                // VcpuFd::run
    with(libc::SYS_ioctl, 1, KVM_GET_REGS),           // vcpu::internal_error
    with(libc::SYS_ioctl, 1, vhost::NET_SET_BACKEND), // Vhost::stop, where the driver resets a card
    any(libc::SYS_io_uring_enter), // Engine::settle, where the driver resets a disk
    any(libc::SYS_fdatasync),      // the same
    any(libc::SYS_preadv),         // the same
    any(libc::SYS_pwritev),        // the same
    any(libc::SYS_fallocate),      // the same
    any(libc::SYS_timerfd_settime), // Watchdog::write
];

/// KVM_GET_REGS.
const KVM_GET_REGS: u32 = 0x8090_ae81;

const BLK: &[Call] = &[
    // Uring::new. What such a ring may do is not for a filter to see: see `seal_ring`.
    with(libc::SYS_io_uring_setup, 0, RING_ENTRIES),
    with(libc::SYS_io_uring_register, 1, REGISTER_FILES),
    with(libc::SYS_io_uring_register, 1, REGISTER_RESTRICTIONS),
    with(libc::SYS_io_uring_register, 1, REGISTER_ENABLE_RINGS),
    with(libc::SYS_io_uring_register, 1, REGISTER_IOWQ_MAX_WORKERS),
    with(
        libc::SYS_prctl,
        0,
        libc::PR_SET_NO_NEW_PRIVS.cast_unsigned(),
    ), // seal_ring
    with(libc::SYS_seccomp, 0, libc::SECCOMP_SET_MODE_FILTER), // seal_ring
    any(libc::SYS_io_uring_enter),                             // Uring::submit, Uring::wait
    any(libc::SYS_poll),                                       // event::run
    any(libc::SYS_preadv),                                     // Disk::read
    any(libc::SYS_pwritev),                                    // Disk::write
    any(libc::SYS_fdatasync),                                  // Disk::flush
    any(libc::SYS_fallocate),                                  // Disk::discard, Disk::write_zeroes
    any(libc::SYS_recvfrom),                                   // Blk::hear
    any(libc::SYS_sendto),                                     // Blk::ask, Outbox::post
    any(libc::SYS_timerfd_settime),                            // Throttle::open
];

const NET: &[Call] = &[
    with(libc::SYS_ioctl, 1, vhost::SET_FEATURES), // Vhost::introduce
    with(libc::SYS_ioctl, 1, vhost::SET_OWNER),    // Vhost::introduce
    with(libc::SYS_ioctl, 1, vhost::SET_MEM_TABLE), // Vhost::introduce
    with(libc::SYS_ioctl, 1, vhost::SET_LOG_BASE), // Vhost::introduce, where writes are noted
    with(libc::SYS_ioctl, 1, vhost::SET_VRING_NUM), // Vhost::hand_over
    with(libc::SYS_ioctl, 1, vhost::SET_VRING_ADDR), // Vhost::hand_over
    with(libc::SYS_ioctl, 1, vhost::SET_VRING_BASE), // Vhost::hand_over
    with(libc::SYS_ioctl, 1, vhost::SET_VRING_KICK), // Vhost::hand_over
    with(libc::SYS_ioctl, 1, vhost::SET_VRING_CALL), // Vhost::hand_over
    with(libc::SYS_ioctl, 1, vhost::SET_VRING_ERR), // Vhost::hand_over
    with(libc::SYS_ioctl, 1, vhost::NET_SET_BACKEND), // Vhost::back
    with(libc::SYS_ioctl, 1, vhost::GET_VRING_BASE), // Vhost::position
    any(libc::SYS_poll),                           // event::run
    any(libc::SYS_readv),                          // Net: packets to the guest
    with(libc::SYS_ioctl, 1, TUNSETOFFLOAD),       // Net: offloads as agreed
    with(libc::SYS_ioctl, 1, TUNSETQUEUE),         // Net: queue pairs that the driver uses
    any(libc::SYS_timerfd_settime),                // Throttle::open
];

/// `Userfault::next` reads, which every thread may.
const PAGES: &[Call] = &[
    with(libc::SYS_ioctl, 1, UFFDIO_COPY), // Userfault::fill
    with(libc::SYS_ioctl, 1, 0xc020_aa04), // UFFDIO_ZEROPAGE, Userfault::zero
    with(libc::SYS_ioctl, 1, 0x8010_aa02), // UFFDIO_WAKE, Userfault::judge
];

/// UFFDIO_COPY.
const UFFDIO_COPY: u32 = 0xc028_aa03;

fn calls(kind: Kind) -> impl Iterator<Item = &'static Call> {
    let own = match kind {
        Kind::Main => MAIN,
        Kind::Vcpu => VCPU,
        Kind::Blk => BLK,
        Kind::Net => NET,
        Kind::Pages => PAGES,
    };
    COMMON.iter().chain(own)
}

/// The filter of one kind of thread, ready to be installed.
pub(crate) fn filter(kind: Kind) -> Result<BpfProgram, ConfineError> {
    sys::confine::filter(calls(kind))
}

/// For the calling thread, which has made the one ring that it needs: from now on it makes and changes none. A
/// ring is restricted by who makes it, and one that is not would do what no filter sees. Until this is
/// called that is left to the rest of the jail: no path to open, no network to reach.
pub(crate) fn seal_ring() -> Result<(), String> {
    let calls = [libc::SYS_io_uring_setup, libc::SYS_io_uring_register];
    let filter = sys::confine::without(&calls);
    let sealed = filter.and_then(|filter| install(&filter));
    sealed.map_err(|e| format!("seal the ring: {}", sys::chain(&e)))
}

/// For the whole process, before any thread starts: no privileges by exec, no core dump, no tracer of
/// the same user, no path.
pub(crate) fn process() -> Result<(), ConfineError> {
    sys::confine::forbid_privileges()?;
    report_domain(domain()?);
    Ok(())
}

/// A domain in which no path can be opened, made, moved or changed, and no TCP port connected to either.
fn domain() -> Result<RulesetStatus, ConfineError> {
    sys::confine::enter_domain(&[], Tcp::Nothing)
}

fn report_domain(status: RulesetStatus) {
    match status {
        RulesetStatus::FullyEnforced => {}
        RulesetStatus::PartiallyEnforced => report::line(
            "sifr-vmm: this kernel's Landlock is older than Linux 6.12: the filters of system calls stand for the rest",
        ),
        RulesetStatus::NotEnforced => report::line(
            "sifr-vmm: this kernel has no Landlock: only the filters of system calls forbid paths",
        ),
    }
}

#[cfg(test)]
mod tests;
