//! What the ingress process may do: it reads what anybody on the internet sends, and speaks to tenants' machines.
//!
//! Owns: its user, its empty network namespace, and the list of its system calls, the caller beside each.
//! Refuses: everything else, with the death of the process; pid1 starts another. It makes no socket: those that it has come from
//! the node, so that it reaches the machines behind names, and neither the node, its owner's LAN nor the internet.

use nix::sys::resource::{Resource, setrlimit};
use sys::confine::RulesetStatus;
use sys::confine::{BpfProgram, Call, ConfineError, Tcp, any, masked, not_executable, with};

use crate::wire::INGRESS_ID;

/// Descriptors: of 4096 clients and as many connections to machines, 128 health checks, and up to 64 spare sockets of each of some hundred
/// networks. Without any left the node could not be heard, so that the other limits come first.
const FILES_MAX: u64 = 32_768;
/// What starts a thread and no process.
const THREAD: u32 = libc::CLONE_THREAD.cast_unsigned();

const CALLS: &[Call] = &[
    any(libc::SYS_brk),                                              // allocator
    not_executable(libc::SYS_mmap),                                  // allocator, stacks
    not_executable(libc::SYS_mprotect),                              // allocator, guard pages
    any(libc::SYS_mremap),                                           // allocator
    any(libc::SYS_munmap),                                           // allocator, ended threads
    with(libc::SYS_madvise, 2, libc::MADV_DONTNEED.cast_unsigned()), // allocator
    with(libc::SYS_madvise, 2, libc::MADV_FREE.cast_unsigned()),     // allocator
    any(libc::SYS_futex),                                            // locks, threads that wait
    any(libc::SYS_sched_yield),                                      // locks
    masked(libc::SYS_clone, 0, THREAD, THREAD),                      // threads of the runtime
    with(libc::SYS_prctl, 0, libc::PR_SET_NAME.cast_unsigned()),     // their names
    any(libc::SYS_set_robust_list),                                  // start of a thread
    any(libc::SYS_sigaltstack),                                      // start and end of a thread
    any(libc::SYS_rt_sigprocmask),                                   // the same
    any(libc::SYS_rt_sigaction),                                     // abort after a panic
    any(libc::SYS_rt_sigreturn), // end of a signal handler of std
    any(libc::SYS_gettid),       // abort after a panic
    any(libc::SYS_getpid),       // the same
    with(libc::SYS_tgkill, 2, libc::SIGABRT.cast_unsigned()), // the same
    with(libc::SYS_tkill, 1, libc::SIGABRT.cast_unsigned()), // the same, musl
    any(libc::SYS_restart_syscall), // a wait after a stop
    any(libc::SYS_exit),         // end of a thread
    any(libc::SYS_exit_group),   // end of the process
    any(libc::SYS_clock_gettime), // time where the vDSO has none
    any(libc::SYS_getrandom),    // TLS; seeds of hash maps
    any(libc::SYS_epoll_create1), // event loop
    any(libc::SYS_epoll_ctl),    // event loop
    any(libc::SYS_epoll_wait),   // event loop
    any(libc::SYS_epoll_pwait),  // event loop, musl
    any(libc::SYS_eventfd2),     // event loop
    any(libc::SYS_fcntl),        // non-blocking sockets; copies
    with(libc::SYS_ioctl, 1, FIONBIO), // non-blocking sockets
    with(libc::SYS_socketpair, 0, libc::AF_UNIX.cast_unsigned()), // event loop: its own wake-up
    any(libc::SYS_accept4),      // the node, clients
    any(libc::SYS_recvmsg),      // the node
    any(libc::SYS_sendmsg),      // the node
    any(libc::SYS_connect),      // machines
    any(libc::SYS_setsockopt),   // no delay; how long silence lasts
    any(libc::SYS_getsockopt),   // machines: has it connected
    any(libc::SYS_getsockname),  // clients
    any(libc::SYS_getpeername),  // clients
    any(libc::SYS_shutdown),     // both
    any(libc::SYS_sendto),       // both
    any(libc::SYS_recvfrom),     // both
    any(libc::SYS_read),         // events
    any(libc::SYS_readv),        // both
    any(libc::SYS_write),        // events, log
    any(libc::SYS_writev),       // both
    any(libc::SYS_close),        // all descriptors
];

/// FIONBIO, asm-generic/ioctls.h.
const FIONBIO: u32 = 0x5421;

/// Calls of the C library that tests are linked with; the image's is musl.
#[cfg(target_env = "gnu")]
const OF_THE_C_LIBRARY: &[Call] = &[
    any(libc::SYS_clone3), // threads: its flags are in memory, where no filter looks
    any(libc::SYS_rseq),   // start of a thread
    any(libc::SYS_sched_getaffinity), // start of a thread
];
#[cfg(not(target_env = "gnu"))]
const OF_THE_C_LIBRARY: &[Call] = &[];

fn filter() -> Result<BpfProgram, ConfineError> {
    sys::confine::filter(CALLS.iter().chain(OF_THE_C_LIBRARY))
}

/// For the whole process, which has one thread yet.
pub(super) fn enter() -> anyhow::Result<()> {
    use anyhow::Context;
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET)
        .context("leave the node's network namespace")?;
    setrlimit(Resource::RLIMIT_NOFILE, FILES_MAX, FILES_MAX)
        .context("set how many descriptors it may have")?;
    sys::process::become_user(INGRESS_ID)?;
    sys::confine::forbid_privileges()?;
    // Ports of machines are any, and where they are is for the sockets to say.
    match sys::confine::enter_domain(&[], Tcp::Connect)? {
        RulesetStatus::FullyEnforced => {}
        RulesetStatus::PartiallyEnforced | RulesetStatus::NotEnforced => {
            log::warn!("this kernel's Landlock does not keep ingress from paths")
        }
    }
    Ok(sys::confine::install(&filter()?)?)
}

#[cfg(test)]
#[path = "confine_tests.rs"]
mod tests;
