//! What the program inside the node tells the benchmark outside.
//!
//! Owns: the lines that carry it, and the words that choose what the program does.
//! Refuses: figures that were not measured.

use serde::{Deserialize, Serialize};
use types::vm::Exits;

/// Where the program is in the benchmark's own initramfs. It is also the guest's init.
pub const PROGRAM: &str = "/bench";
/// Its specification and guest, beside it.
pub const KERNEL: &str = "/bench-kernel";
pub const GUEST: &str = "/bench-guest";
/// Our monitor, as the image has it.
pub const VMM: &str = "/bin/sifr-vmm";
/// Other monitors, each under the name of its kind.
pub const PEERS: &str = "/bench-peers";
/// The environment variable, set on the kernel command line, that names those that are there, with commas.
pub const PEERS_WORD: &str = "peers";
/// Debian's, in this machine and at the same place in the node.
pub const QEMU: &str = "/usr/bin/qemu-system-x86_64";
/// Where the file system that tells about memory is: out of the way of the node's own mounts.
pub const PROC: &str = "/bench-proc";
/// The environment variable, set on the kernel command line, that holds a [`Role`]'s word.
pub const ROLE: &str = "bench";
/// What a line with the cycle counter begins with; 16 hexadecimal digits follow.
pub const CYCLES: &str = "bench: cycles ";
/// What a line with an [`Idle`] begins with.
pub const IDLE: &str = "bench: idle ";
/// What a line with a [`Report`] begins with.
pub const REPORT: &str = "bench: report ";
/// What a line with a [`Sample`] begins with.
pub const SAMPLE: &str = "bench: sample ";
/// The last line.
pub const END: &str = "bench: end";
/// What a line that says why nothing could be measured begins with.
pub const FAILED: &str = "bench: failed ";

/// Whose network is measured: the one that the node makes, or the same laid by hand.
pub const OURS: &str = "Sifr";
pub const BY_HAND: &str = "by hand";

/// Memory of every measured guest.
pub const GUEST_MIB: u64 = 128;

/// What the program does, by the word in [`ROLE`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// In the node, as init: measures virtual machines.
    Machines,
    /// In the node, as init: measures their disks, or their cards and sockets, how many there can be, or their
    /// snapshots.
    Disks,
    Nets,
    Scale,
    Snapshots,
    /// In the node, as init: measures tenants' networks beside the same laid by hand.
    Networks,
    /// In the node, as init: says when it was entered, starts a [`Role::Sampler`] and becomes the node's
    /// own init.
    Idle,
    /// In the node, beside its init: says how much memory is free once that changes no more.
    Sampler,
    /// In a guest, as init: resets the machine at once.
    Reset,
    /// In a guest, as init: does nothing.
    Wait,
    /// In a guest, as init: says how many processors there are, and does nothing.
    Count,
    /// In a guest, as init: uses its disk, its card or its sockets.
    UseDisk,
    UseNet,
    UseVsock,
    /// In a guest, as init: speaks to another machine, or answers it.
    Ask,
    Serve,
    /// In a guest, as init: waits for the host, and says when it goes on.
    Sleep,
}

impl Role {
    pub const ALL: [Self; 17] = [
        Self::Machines,
        Self::Disks,
        Self::Nets,
        Self::Scale,
        Self::Snapshots,
        Self::Networks,
        Self::Idle,
        Self::Sampler,
        Self::Reset,
        Self::Wait,
        Self::Count,
        Self::UseDisk,
        Self::UseNet,
        Self::UseVsock,
        Self::Ask,
        Self::Serve,
        Self::Sleep,
    ];

    pub fn word(self) -> &'static str {
        match self {
            Self::Machines => "machines",
            Self::Disks => "disks",
            Self::Nets => "nets",
            Self::Scale => "scale",
            Self::Snapshots => "snapshots",
            Self::Networks => "networks",
            Self::Idle => "idle",
            Self::Sampler => "sampler",
            Self::Reset => "reset",
            Self::Wait => "wait",
            Self::Count => "count",
            Self::UseDisk => "use-disk",
            Self::UseNet => "use-net",
            Self::UseVsock => "use-vsock",
            Self::Ask => "ask",
            Self::Serve => "serve",
            Self::Sleep => "sleep",
        }
    }

    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|role| role.word() == word)
    }
}

/// Memory of a node that does nothing, as its kernel counts it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Idle {
    pub available_kib: u64,
    /// All that the kernel hands out: the machine's, less the kernel itself and its books of pages.
    pub total_kib: u64,
}

/// Memory of a process that runs a guest, without the guest's, KiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Overhead {
    /// Proportional set size: pages that processes share count once.
    pub pss_kib: u64,
    /// Resident set size: they count for each.
    pub rss_kib: u64,
    /// What the kernel holds for it: page tables, stacks, KVM's own.
    pub kernel_kib: u64,
}

/// One virtual machine monitor.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Monitor {
    /// From the start of the process to its end, the guest's whole life between, microseconds.
    pub life_us: Vec<u64>,
    /// While the guest waits.
    pub memory: Overhead,
}

impl Monitor {
    /// The run in the middle.
    pub fn median_us(&self) -> u64 {
        median(&self.life_us)
    }
}

/// What happened that is in the middle; 0 where nothing did.
pub fn median(values: &[u64]) -> u64 {
    let mut sorted = values.to_vec();
    sorted.sort_unstable();
    sorted.get(sorted.len() / 2).copied().unwrap_or(0)
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Report {
    pub ours: Monitor,
    pub qemu: Monitor,
    /// Our monitor's own part: from its start to the guest's first instruction, microseconds.
    pub setup_us: Vec<u64>,
    /// Exits to our monitor in one guest's life.
    pub exits: Exits,
}

/// One kind of work, done by one monitor or the guest in it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    pub what: String,
    pub who: String,
    pub outcome: Outcome,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Outcome {
    /// A figure of each run, all in the unit that the kind of work has.
    Runs(Vec<f64>),
    /// It was not measured, and why.
    Cannot(String),
}

impl Sample {
    pub fn new(what: impl Into<String>, who: impl Into<String>, runs: Vec<f64>) -> Self {
        Self {
            what: what.into(),
            who: who.into(),
            outcome: Outcome::Runs(runs),
        }
    }

    pub fn cannot(what: impl Into<String>, who: impl Into<String>, why: impl Into<String>) -> Self {
        Self {
            what: what.into(),
            who: who.into(),
            outcome: Outcome::Cannot(why.into()),
        }
    }

    /// The line that carries it.
    pub fn line(&self) -> String {
        let json = serde_json::to_string(self).expect("strings and numbers");
        format!("{SAMPLE}{json}")
    }

    pub fn parse(line: &str) -> Option<Self> {
        let (_, json) = line.split_once(SAMPLE)?;
        serde_json::from_str(json.trim()).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_role_is_found_by_its_word() {
        for role in Role::ALL {
            assert_eq!(Role::parse(role.word()), Some(role));
        }
        assert_eq!(Role::parse("shell"), None);
    }

    #[test]
    fn a_sample_reads_back_from_its_line() {
        let measured = Sample::new("read", "QEMU", vec![1.5, 2.25]);
        let not = Sample::cannot("read", "QEMU", "there is no disk");
        for sample in [measured, not] {
            assert_eq!(
                Sample::parse(&format!("x {}\r", sample.line())),
                Some(sample)
            );
        }
        assert_eq!(Sample::parse("bench: sample of nothing"), None);
    }

    #[test]
    fn the_median_is_a_run_that_happened() {
        assert_eq!((median(&[9, 1, 5]), median(&[4]), median(&[])), (5, 4, 0));
    }
}
