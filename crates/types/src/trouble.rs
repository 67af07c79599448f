//! What can be wrong with a node or a workload, in words that never change.
//!
//! Owns: the codes, and one line for each that says what to do. docs/errors.md has the same lines, and tests compare them.
//! Refuses: finding out what is wrong (`init` and `workload` do), and refusals of requests ([`crate::status::RefusalCode`]).

use std::fmt;

use serde::{Deserialize, Serialize};

/// Something that is wrong, now or since it was last looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trouble {
    pub code: Code,
    /// The workload that has it, as `deployment/workload`; `None`: the node.
    #[serde(default)]
    pub about: Option<String>,
    /// What happened, with its operands.
    pub message: String,
    /// When it was first seen, since the kernel's start.
    pub uptime_ms: u64,
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (code, message) = (self.code, &self.message);
        match &self.about {
            Some(about) => write!(f, "{code}: {about}: {message}"),
            None => write!(f, "{code}: {message}"),
        }
    }
}

macro_rules! codes {
    ($($variant:ident $word:literal $remedy:literal,)*) => {
        /// The catalogue.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub enum Code {
            $(#[doc = $remedy] #[serde(rename = $word)] $variant,)*
            /// Of a newer build than this one.
            #[serde(other, rename = "unknown")]
            Unknown,
        }

        impl Code {
            /// All but [`Code::Unknown`].
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            pub const fn word(self) -> &'static str {
                match self {
                    $(Self::$variant => $word,)*
                    Self::Unknown => "unknown",
                }
            }

            /// One line: what to do.
            pub const fn remedy(self) -> &'static str {
                match self {
                    $(Self::$variant => $remedy,)*
                    Self::Unknown => "the node is newer than this command: get the same version",
                }
            }
        }
    };
}

codes! {
    PhaseMounts "phase_mounts" "the kernel lacks what the image needs: boot the image with its own kernel",
    PhaseHarden "phase_harden" "boot the image with its own kernel; the node runs on, less hardened",
    PhaseCgroups "phase_cgroups" "boot the image with its own kernel: without control groups nothing limits a machine",
    PhaseWatchdog "phase_watchdog" "look at the machine's watchdog in its firmware; the node runs on without it",
    PhaseChildren "phase_children" "boot the image again; where it stays so, the image is damaged",
    PhaseDisks "phase_disks" "look at the disks and their cables; `sifr node dmesg` has the kernel's word",
    PhasePool "phase_pool" "look at the disk that the line names; the node tries again",
    PhaseIdentity "phase_identity" "the pool cannot be read or written: look at its disk",
    PhaseClock "phase_clock" "the pool cannot be written or the clock not be set: look at the pool's disk",
    PhaseKvm "phase_kvm" "enable VT-x or AMD-V in the firmware's set-up",
    PhaseLinks "phase_links" "look at the network cards; `sifr node dmesg` has the kernel's word",
    PhaseAddress "phase_address" "look at the cable and the DHCP server; the node asks on",
    PhaseLedger "phase_ledger" "look at the pool's disk; the node tries again",
    PhaseApi "phase_api" "the node tries again; where it stays so, look at `sifr node dmesg` after a reboot",
    PhaseWorkloads "phase_workloads" "the node tries again; where it stays so, reboot it",
    NoOwner "owner_absent" "boot with `sifr.owner=ed25519:…` or build the key into the image",
    OwnerUnreadable "owner_unreadable" "build the image again with the owner's key",
    OptionUnreadable "option_unreadable" "correct it where the message says that it stands",
    RunsFromMemory "runs_from_memory" "give it a blank disk, or claim one with `sifr disk claim`",
    NoVirtualisation "no_virtualisation" "enable VT-x or AMD-V in the firmware's set-up, or nested virtualisation of the host",
    PoolProblem "pool_problem" "look at the disk that the message names, and replace it where it fails",
    MirrorDegraded "mirror_degraded" "put the disk back, or `sifr disk replace OLD NEW`; until it is filled the pool is on one disk",
    Decommissioned "decommissioned" "nothing: it switches itself off, and wipes those disks when it is switched on again",
    DiskFailing "disk_failing" "`sifr disk replace OLD NEW` in a mirror; else deploy anew what is on it, on another pool",
    DiskWorn "disk_worn" "plan its replacement; `sifr disk health` has its figures",
    DiskHot "disk_hot" "look at the machine's fans and air; heat wears disks out",
    DiskFlaps "disk_flaps" "look at the disk's cable and power, or take it out; it is used once it stays",
    DiskSilent "disk_silent" "look at its cable and power; where it stays so, replace the disk",
    PoolMissing "pool_missing" "put back the disk that the message names; what lies on it waits",
    PoolFailing "pool_failing" "replace the disk that the message names; what lies on it waits",
    PoolSilent "pool_silent" "look at the disk that the message names and its cable; where it stays so, take it out",
    PoolFull "pool_full" "delete deployments that are not needed, or give the node a larger disk",
    IdentityHealed "identity_healed" "nothing now; where it comes again, replace the pool's disk",
    LedgerNewer "ledger_newer" "boot the version of Sifr that the message names; nothing has been changed",
    LedgerUnread "ledger_unread" "look at the pool's disk, and boot the image that wrote the ledger; nothing has been changed",
    LedgerHealed "ledger_healed" "`sifr get` shows what is known; where it comes again, replace the pool's disk",
    MemoryShort "memory_short" "delete or shrink machines; where there are none, give the node more memory",
    MemoryKilled "memory_killed" "give the node more memory, or its machines less",
    ClockAtFloor "clock_at_floor" "set the machine's clock and renew its battery, or let it reach a time server",
    ClockRefused "clock_refused" "correct that time server, or name another with `sifr.ntp=`",
    ClockContradicted "clock_contradicted" "find out which time server is wrong, and take it away",
    PortMissing "port_missing" "look at the network card, or correct `sifr.net.`: the message says which ports there are",
    NetworkUnset "network_unset" "set it again with `sifr node network set`; until then the options of the boot count",
    NetworkFailed "network_failed" "`sifr node dmesg` has the kernel's word; the node tries again",
    CertificateEnding "certificate_ending" "`sifr get` says what its orders fail at; until it is mended browsers see the last one",
    PeerSilent "peer_silent" "look whether that node runs and is reached by UDP; where its address changed, deploy again",
    LastBootPanicked "last_boot_panicked" "report the headline; where it comes again, test the machine's memory",
    LastBootWatchdog "last_boot_watchdog" "the node hung: report it with `sifr node dmesg`",
    LastBootForced "last_boot_forced" "the node agent hung on the way down: look for a disk that hangs",
    ImageUnavailable "image_unavailable" "push the image again, or repair the store that the message names; it is tried again",
    StartFailed "start_failed" "the message says which part; it is tried again",
    StartSlow "start_slow" "the image came too slowly, or the guest hung: look at `sifr logs`; it is tried again",
    MachineLost "machine_lost" "`sifr logs` and `sifr node dmesg` say more; it is started again",
    GuestMemory "guest_memory" "give the machine more memory",
    ProgramFailed "program_failed" "`sifr logs` has what it said; it is started again",
    ProgramKilled "program_killed" "`sifr logs` has what it said; it is started again",
    GuestStuck "guest_stuck" "the guest did not write out its disk: look whether the node's disk is slow",
    StopSlow "stop_slow" "let the program end at its stop signal",
    DiskUnreadable "disk_unreadable" "its disk is kept and not used: delete the deployment and deploy it again",
    DiskNotRemoved "disk_not_removed" "look at the pool's disk; it is tried again",
    NoAddress "no_address" "delete machines of the same network that are not needed",
    AddressUnused "address_unused" "correct the pool's range or `link` as the message says; `sifr node info` has the links",
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

impl Code {
    /// Of a phase that failed.
    pub fn of_phase(name: &str) -> Self {
        let word = format!("phase_{name}");
        let all = Self::ALL.iter().copied();
        all.into_iter()
            .find(|code| code.word() == word)
            .unwrap_or(Self::Unknown)
    }

    /// While a node has this, nobody knows what it has promised: it takes nothing and removes nothing.
    pub fn is_of_an_unread_ledger(self) -> bool {
        matches!(self, Self::LedgerNewer | Self::LedgerUnread)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_code_is_one_word_of_its_own_and_its_remedy_one_line() {
        let words: BTreeSet<&str> = Code::ALL.iter().map(|code| code.word()).collect();
        assert_eq!(words.len(), Code::ALL.len());
        for code in Code::ALL {
            let fits = |c: char| c.is_ascii_lowercase() || c == '_';
            assert!(code.word().chars().all(fits), "{code}");
            let remedy = code.remedy();
            assert!(
                !remedy.contains(['\n', '|']) && remedy.len() < 100,
                "{remedy}"
            );
            let json = serde_json::to_string(code).expect("a word");
            assert_eq!(json, format!("\"{code}\""));
        }
    }

    #[test]
    fn a_code_of_a_newer_node_is_read_as_unknown() {
        let code: Code = serde_json::from_str("\"of_the_future\"").expect("read");
        assert_eq!(code, Code::Unknown);
    }
}
