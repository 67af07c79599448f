//! What our programs do in a node or guest whose init they are, and how they read a process's memory.
//!
//! Owns: mounts, the machine's end, the numbers in `/proc`.
//! Refuses: unsafe code: system calls come from `nix` and `sys`.

use anyhow::{Context, Result};
use nix::mount::{MsFlags, mount};
use nix::sys::reboot::{RebootMode, reboot};

use crate::bench::report::Overhead;

/// Returns only where it fails.
pub fn end(mode: RebootMode) -> Result<()> {
    let never = reboot(mode).context("end the machine")?;
    match never {}
}

pub fn wait() -> Result<()> {
    loop {
        std::thread::park();
    }
}

pub fn mount_at(kind: &str, place: &str) -> Result<()> {
    mount(
        Some(kind),
        place,
        Some(kind),
        MsFlags::empty(),
        None::<&str>,
    )
    .with_context(|| format!("mount {kind} on {place}"))
}

/// The number in a line such as `MemAvailable:    1000 kB`.
pub fn kib_of(text: &str, key: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
    line.split_whitespace().next()?.parse().ok()
}

/// By the sizes of its mappings (proc_pid_smaps(5)), of which the one as large as the guest's memory is
/// the guest's; and by what its cgroup has of the kernel's memory (kernel document `cgroup-v2`).
pub fn overhead(smaps: &str, memory_stat: &str, guest_mib: u64) -> Option<Overhead> {
    let (mut overhead, mut guests, mut is_guests) = (Overhead::default(), 0, false);
    for line in smaps.lines() {
        if let Some(size) = kib_of(line, "Size:") {
            is_guests = size == guest_mib * 1024;
            guests += usize::from(is_guests);
        }
        if !is_guests {
            overhead.pss_kib += kib_of(line, "Pss:").unwrap_or(0);
            overhead.rss_kib += kib_of(line, "Rss:").unwrap_or(0);
        }
    }
    overhead.kernel_kib = kib_of(memory_stat, "kernel ")? / 1024;
    (guests == 1).then_some(overhead)
}

/// Mappings by their proportional size (proc_pid_smaps(5)), largest first, those with none left out: KiB, and the
/// line that says what is mapped.
pub fn mappings(smaps: &str) -> Vec<(u64, String)> {
    let (mut all, mut name) = (Vec::new(), "");
    for line in smaps.lines() {
        let first = line.split_whitespace().next().unwrap_or_default();
        if let Some(kib) = kib_of(line, "Pss:").filter(|kib| *kib > 0) {
            all.push((kib, name.split_whitespace().collect::<Vec<_>>().join(" ")));
        } else if !first.ends_with(':') {
            name = line;
        }
    }
    all.sort_by(|a, b| b.cmp(a));
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mappings_are_told_by_their_size() {
        let smaps = "1-2 r-xp 0 0:0 7     /bin/x\nSize:  800 kB\nPss:  12 kB\nPss_Dirty: 1 kB\n\
                     3-4 rw-p 0 0:0 0\nSize: 8 kB\nPss: 40 kB\n5-6 rw-p 0\nSize: 8 kB\nPss: 0 kB\n";
        let expected = [(40, "3-4 rw-p 0 0:0 0"), (12, "1-2 r-xp 0 0:0 7 /bin/x")];
        assert_eq!(
            mappings(smaps),
            expected.map(|(kib, name)| (kib, name.to_owned()))
        );
    }

    #[test]
    fn the_guests_memory_is_told_from_the_monitors() {
        let smaps = "1-2 r-xp\nSize:  800 kB\nRss: 800 kB\nPss:  700 kB\nPss_Dirty: 1 kB\n\
                     3-4 rw-p\nSize:  131072 kB\nRss: 9000 kB\nPss:  9000 kB\n\
                     5-6 rw-p\nSize: 8 kB\nRss: 4 kB\nPss: 4 kB\n";
        let stat = "anon 1048576\nfile 0\nkernel 2097152\nkernel_stack 65536\n";
        let beyond = Overhead {
            pss_kib: 704,
            rss_kib: 804,
            kernel_kib: 2048,
        };
        assert_eq!(overhead(smaps, stat, 128), Some(beyond));
        assert_eq!(overhead("1-2 r-xp\nSize: 8 kB\n", stat, 128), None);
    }
}
