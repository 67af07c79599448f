//! What the chunk daemon may do: it reads bytes of stores, and is the only process of the node that speaks to them.
//!
//! Owns: its user, the paths in its reach, and the list of its system calls, the caller beside each.
//! Refuses: everything else, with the death of the process; pid1 starts another.

use std::fs;
use std::os::unix::fs::chown;
use std::path::Path;

use anyhow::Context;
use sys::confine::RulesetStatus;
use sys::confine::{
    Access, BpfProgram, Call, ConfineError, Tcp, any, masked, not_executable, with,
};

use super::Paths;
use crate::room;
use crate::wire::CHUNKS_ID;

/// Where names of stores are looked up.
const RESOLVER: &str = "/etc/resolv.conf";

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
    masked(libc::SYS_clone, 0, THREAD, THREAD),                      // threads for what blocks
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
    any(libc::SYS_exit_group),   // end of the daemon
    any(libc::SYS_clock_gettime), // time where the vDSO has none
    any(libc::SYS_getrandom),    // seeds of hash maps; DNS query ids
    any(libc::SYS_epoll_create1), // event loop
    any(libc::SYS_epoll_ctl),    // event loop
    any(libc::SYS_epoll_wait),   // event loop
    any(libc::SYS_epoll_pwait),  // event loop, musl
    any(libc::SYS_eventfd2),     // event loop
    any(libc::SYS_poll),         // DNS
    any(libc::SYS_fcntl),        // non-blocking sockets; copies
    with(libc::SYS_ioctl, 1, FIONBIO), // non-blocking sockets
    any(libc::SYS_accept4),      // the node
    any(libc::SYS_recvmsg),      // node and VMs; DNS
    any(libc::SYS_sendmsg),      // node and VMs; DNS over TCP
    with(libc::SYS_socket, 0, libc::AF_INET.cast_unsigned()), // stores, DNS
    with(libc::SYS_socket, 0, libc::AF_INET6.cast_unsigned()), // stores, DNS
    with(libc::SYS_socketpair, 0, libc::AF_UNIX.cast_unsigned()), // event loop: its own wake-up
    any(libc::SYS_bind),         // DNS
    any(libc::SYS_connect),      // stores
    any(libc::SYS_setsockopt),   // stores: no delay
    any(libc::SYS_getsockopt),   // stores: has it connected
    any(libc::SYS_getsockname),  // DNS: which address is nearer
    any(libc::SYS_getpeername),  // stores
    any(libc::SYS_shutdown),     // stores
    any(libc::SYS_sendto),       // stores, DNS
    any(libc::SYS_recvfrom),     // stores, DNS
    any(libc::SYS_read),         // files, events
    any(libc::SYS_readv),        // files of the C library
    any(libc::SYS_pread64),      // maps, flists
    any(libc::SYS_write),        // files, events, log
    any(libc::SYS_writev),       // stores
    any(libc::SYS_pwrite64),     // images, maps
    any(libc::SYS_lseek),        // flists
    any(libc::SYS_close),        // all descriptors
    any(libc::SYS_open),         // musl; Landlock says what
    any(libc::SYS_openat),       // Landlock says what
    any(libc::SYS_stat),         // musl
    any(libc::SYS_lstat),        // musl
    any(libc::SYS_fstat),        // musl
    any(libc::SYS_newfstatat),   // lengths, what is there
    any(libc::SYS_statx),        // the same
    any(libc::SYS_statfs),       // Room::free
    any(libc::SYS_fstatfs),      // the same, musl
    any(libc::SYS_getdents64),   // Cache::images, Room::machines
    any(libc::SYS_mkdir),        // Cache, unnamed
    any(libc::SYS_unlink),       // Cache::remove_image, maps
    any(libc::SYS_unlinkat),     // the same, musl
    any(libc::SYS_rename),       // sys::fs::write_atomic
    any(libc::SYS_renameat),     // the same, musl
    any(libc::SYS_linkat),       // Cache: a name for what is whole
    any(libc::SYS_fsync),        // Cache
    any(libc::SYS_fdatasync),    // Cache
    any(libc::SYS_ftruncate),    // images
    any(libc::SYS_utimensat),    // Cache::used
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

/// For the whole process, which has one thread yet. The pool is mounted, and the node has given its cache away.
pub(super) fn enter(paths: &Paths) -> anyhow::Result<()> {
    let id = Some(CHUNKS_ID);
    for directory in [&paths.maps, &paths.promises] {
        fs::create_dir_all(directory).with_context(|| format!("make {}", directory.display()))?;
    }
    chown(&paths.maps, id, id).with_context(|| format!("give {} away", paths.maps.display()))?;
    room::make_listable(&paths.promises)
        .with_context(|| format!("open {} to the daemon", paths.promises.display()))?;
    sys::process::become_user(CHUNKS_ID)?;
    sys::confine::forbid_privileges()?;
    reach(paths)?;
    Ok(sys::confine::install(&filter()?)?)
}

/// The paths of the cache and of the maps, and what tells how much room there is.
fn reach(paths: &Paths) -> anyhow::Result<()> {
    let below = |name: &str| paths.pool.join(name);
    let (stores, machines) = (["flists", "chunks", "images"].map(below), below("machines"));
    let mut all = vec![
        (Path::new(RESOLVER), Access::Read),
        (paths.promises.as_path(), Access::Read),
        (paths.maps.as_path(), Access::Store),
        (machines.as_path(), Access::List),
    ];
    all.extend(stores.iter().map(|path| (path.as_path(), Access::Store)));
    match sys::confine::enter_domain(&all, Tcp::Connect)? {
        RulesetStatus::FullyEnforced => {}
        RulesetStatus::PartiallyEnforced | RulesetStatus::NotEnforced => {
            log::warn!("this kernel's Landlock does not hold the chunk daemon to its paths")
        }
    }
    Ok(())
}

#[cfg(test)]
#[path = "confine_tests.rs"]
mod tests;
