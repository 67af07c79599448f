//! pid1's rows of the boot table: mounts, hardening, cgroups, watchdog.
//!
//! Owns: what is mounted where and with which flags, and the kernel's settings.
//! Refuses: giving up. A phase that fails is shown, and the boot goes on with what there is.

use std::io;
use std::path::Path;
use std::time::Duration;

use sys::mount::Flags;
use sys::watchdog::Watchdog;

use super::{crash, jail};
use crate::console::Console;
use crate::options::{self, OnPanic};
use crate::phase::{Outcome, Row};
use crate::wire::RESOLV_CONF;

/// Room for sockets and small state; images and logs are in the pool.
const RUN_SIZE: &str = "mode=0755,size=16m";
/// Descriptors of pid1 and its agents: a few per VM, and the kernel's own ceiling (fs.nr_open).
const FILES_MAX: u64 = 1 << 20;
/// Long enough for a slow disk to stall the loop, short enough that a dead node is back in a minute.
const WATCHDOG_TIMEOUT: Duration = Duration::from_secs(30);
/// Warnings and worse of the kernel reach the console; all of it stays in the log.
const CONSOLE_LEVEL: u8 = 5;

/// What the boot leaves to the main loop.
pub(super) struct Booted {
    pub(super) console: Console,
    pub(super) watchdog: Option<Watchdog>,
}

/// Runs the phases before the children.
pub(super) fn run() -> Booted {
    let since = sys::clock::monotonic;
    let start = since();
    let mounts = mounts();
    let mut console = Console::open();
    console.line(&format!(
        "{} {}",
        sifr::IDENTITY,
        "starts: nothing here can be logged in to"
    ));
    show(&mut console, "mounts", since() - start, mounts);
    let options = options();
    crash::tell_before_dying();
    let start = since();
    let outcome = harden(options.on_panic);
    show(&mut console, "harden", since() - start, outcome);
    let start = since();
    let outcome = jail::prepare().map(|()| None).map_err(|e| sys::chain(&e));
    show(&mut console, "cgroups", since() - start, outcome);
    let start = since();
    let (watchdog, text) = watchdog();
    show(&mut console, "watchdog", since() - start, Ok(Some(text)));
    Booted { console, watchdog }
}

/// Prints one row.
pub(super) fn show(
    console: &mut Console,
    name: &str,
    took: Duration,
    result: Result<Option<String>, String>,
) {
    let outcome = match result {
        Ok(text) => Outcome::Fine(text),
        Err(text) => Outcome::Failed(text),
    };
    console.line(
        &Row {
            name,
            took,
            outcome: &outcome,
        }
        .to_string(),
    );
}

fn options() -> options::Options {
    let text = std::fs::read_to_string("/proc/cmdline").unwrap_or_default();
    // Its errors are shown by the node agent.
    options::parse(&text.chars().take(options::CMDLINE_MAX).collect::<String>())
}

/// The mounts of a node. What the machine or kernel may lack is tried last and may be missing.
fn mounts() -> Result<Option<String>, String> {
    let mut errors = Vec::new();
    let mut note = |result: sys::Result<()>| {
        if let Err(error) = result {
            errors.push(sys::chain(&error));
        }
    };
    let quiet = Flags::MS_NOSUID | Flags::MS_NODEV | Flags::MS_NOEXEC;
    let dev = Flags::MS_NOSUID | Flags::MS_NOEXEC;
    note(sys::mount::leave_initramfs(Path::new("/run")));
    for (kind, target, flags, options) in [
        ("proc", "/proc", quiet, ""),
        ("sysfs", "/sys", quiet, ""),
        ("devtmpfs", "/dev", dev, "mode=0755"),
        ("tmpfs", "/run", quiet, RUN_SIZE),
        (
            "cgroup2",
            "/sys/fs/cgroup",
            quiet,
            "nsdelegate,memory_recursiveprot",
        ),
    ] {
        note(sys::mount::mount(
            kind,
            Path::new(target),
            kind,
            flags,
            options,
        ));
    }
    // The image has every mount point; from here on nothing can be planted in it.
    note(sys::mount::remount(
        Path::new("/"),
        Flags::MS_BIND | Flags::MS_RDONLY | Flags::MS_NOSUID | Flags::MS_NODEV,
    ));
    note(run_directories());
    let efi = Path::new("/sys/firmware/efi/efivars");
    if efi.exists() {
        note(sys::mount::mount(
            "efivarfs",
            efi,
            "efivarfs",
            quiet | Flags::MS_RDONLY,
            "",
        ));
    }
    let panic = crash::last_panic(Path::new("/sys/fs/pstore"), quiet);
    if errors.is_empty() {
        Ok(panic)
    } else {
        Err(errors.join("; "))
    }
}

/// `/run/sifr` for sockets, the directory that becomes the root of every VMM, and the name servers' file.
fn run_directories() -> sys::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    use sys::error::During;
    // The chunk daemon, a user of its own, passes through the first to what is its own in there.
    for (directory, mode) in [("/run/sifr", 0o711), (jail::EMPTY_ROOT, 0o700)] {
        let made = std::fs::DirBuilder::new().mode(mode).create(directory);
        made.during(|| format!("make {directory}"))?;
    }
    let resolv = Path::new(RESOLV_CONF);
    std::fs::File::create_new(resolv).during(|| format!("make {}", RESOLV_CONF))?;
    sys::mount::bind(resolv, Path::new("/etc/resolv.conf"))
}

/// Kernel settings: path below /proc/sys, value, reason. A setting that this kernel was built without
/// needs no hardening.
const SETTINGS: [(&str, &str, &str); 15] = [
    (
        "kernel/kptr_restrict",
        "2",
        "no kernel addresses, not even for root",
    ),
    (
        "kernel/dmesg_restrict",
        "1",
        "the kernel log is for the node agent",
    ),
    (
        "kernel/yama/ptrace_scope",
        "3",
        "no process looks into another, for ever",
    ),
    (
        "kernel/printk_devkmsg",
        "on",
        "our own lines are not rate limited away",
    ),
    (
        "kernel/panic_on_oops",
        "1",
        "a kernel that is wrong stops, and reboots",
    ),
    (
        "kernel/io_uring_group",
        super::jail::RING_GROUP,
        "VMMs, whose filters let a disk's thread make one ring for one file",
    ),
    (
        "kernel/io_uring_disabled",
        "1",
        "io_uring is for the privileged and that group: a large attack surface",
    ),
    ("kernel/unprivileged_bpf_disabled", "2", "nothing loads BPF"),
    (
        "vm/unprivileged_userfaultfd",
        "0",
        "a tool of kernel exploits",
    ),
    ("fs/protected_hardlinks", "1", "no link to another's file"),
    (
        "fs/protected_symlinks",
        "1",
        "no following of another's link in a shared directory",
    ),
    (
        "fs/protected_fifos",
        "2",
        "no writing to another's pipe in a shared directory",
    ),
    (
        "fs/protected_regular",
        "2",
        "no writing to another's file in a shared directory",
    ),
    (
        "fs/suid_dumpable",
        "0",
        "no memory image of what changed its user",
    ),
    (
        "vm/mmap_min_addr",
        "65536",
        "null pointers of the kernel stay faults",
    ),
];

/// What a guest does with processor registers that KVM does not know is the guest's affair: it must not
/// write into the node's log.
const GUEST_REGISTERS_LOGGED: &str = "/sys/module/kvm/parameters/report_ignored_msrs";

/// Machines below this get [`reserve_kib`]; above, what the kernel keeps is less than a hundredth.
const SMALL_MACHINE_KIB: u64 = 4 << 20;

/// Memory that the kernel keeps free for itself on a small machine: what it would keep without huge pages,
/// four times the root of all there is (`calculate_min_free_kbytes`). For huge pages it keeps up to a
/// twentieth, and half as much again is never handed out because of it.
fn reserve_kib(meminfo: &str) -> Option<u64> {
    let total = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"));
    let total: u64 = total?.split_whitespace().next()?.parse().ok()?;
    (total < SMALL_MACHINE_KIB).then(|| (total * 16).isqrt())
}

fn harden(on_panic: OnPanic) -> Result<Option<String>, String> {
    let mut errors = Vec::new();
    let mut set = |path: &str, value: &str| match std::fs::write(path, format!("{value}\n")) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => errors.push(format!("{path}: {e}")),
        _ => {}
    };
    for (name, value, _reason) in SETTINGS {
        set(&format!("/proc/sys/{name}"), value);
    }
    if on_panic == OnPanic::Halt {
        set("/proc/sys/kernel/panic", "0");
    }
    set(GUEST_REGISTERS_LOGGED, "N");
    let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    if let Some(kib) = reserve_kib(&meminfo) {
        set("/proc/sys/vm/min_free_kbytes", &kib.to_string());
    }
    let mut note = |result: Result<(), String>| errors.extend(result.err());
    note(sys::klog::set_console_level(CONSOLE_LEVEL).map_err(|e| sys::chain(&e)));
    note(sys::reboot::catch_ctrl_alt_del().map_err(|e| sys::chain(&e)));
    note(nix::unistd::sethostname("sifr").map_err(|e| format!("set the host name: {e}")));
    use nix::sys::resource::{Resource, setrlimit};
    note(
        setrlimit(Resource::RLIMIT_NOFILE, FILES_MAX, FILES_MAX)
            .map_err(|e| format!("raise the limit of open files: {e}")),
    );
    note(setrlimit(Resource::RLIMIT_CORE, 0, 0).map_err(|e| format!("forbid core files: {e}")));
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o077));
    if errors.is_empty() {
        Ok(None)
    } else {
        Err(errors.join("; "))
    }
}

fn watchdog() -> (Option<Watchdog>, String) {
    match Watchdog::open(Path::new("/dev/watchdog0"), WATCHDOG_TIMEOUT) {
        Ok(dog) => {
            let mut text = format!("{} s", dog.timeout().as_secs());
            if dog.has_bitten() {
                text.push_str(", it ended the last boot");
                crash::note_bite();
            }
            (Some(dog), text)
        }
        Err(error) if error.source.kind() == io::ErrorKind::NotFound => {
            (None, "none in this machine".to_owned())
        }
        Err(error) => (None, sys::chain(&error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_machine_keeps_little_for_its_kernel_and_a_large_one_what_the_kernel_likes() {
        let total = |kib: u64| reserve_kib(&format!("MemTotal:       {kib} kB\nMemFree: 1 kB\n"));
        assert_eq!(total(1_004_980), Some(4009));
        assert_eq!(total(230_000), Some(1918));
        assert_eq!(total(64 << 20), None);
        assert_eq!(reserve_kib("MemTotal: much\n"), None);
    }
}
