//! What a machine's VMM has counted, as it answers [`crate::vm::ToVmm::Metrics`].
//!
//! Owns: the shape, the units, and the borders of the latency histogram. All counts begin at 0 with the VMM's
//! process and only grow, where nothing else is said.
//! Refuses: counting (`vmm` does), names for people (`sifr node metrics` has them).

use serde::{Deserialize, Serialize};

use crate::vm::Exits;

/// Upper borders of the latency buckets in microseconds, each included: from a page cache to a disk that hangs.
/// One more bucket takes what is slower.
pub const LATENCY_BORDERS_US: [u64; 11] = [
    10, 25, 100, 250, 1_000, 2_500, 10_000, 50_000, 250_000, 1_000_000, 10_000_000,
];
/// Buckets of a latency histogram.
pub const LATENCY_BUCKETS: usize = LATENCY_BORDERS_US.len() + 1;

/// One machine, at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Machine {
    pub boot: Boot,
    pub exits: Exits,
    /// In the order of their slots.
    pub devices: Vec<Device>,
    pub vsock: Vsock,
    pub memory: Memory,
    /// Of a machine that has one.
    #[serde(default)]
    pub balloon: Option<Balloon>,
}

/// Milestones of a boot, in microseconds since the entry of the VMM's process; `None`: not reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Boot {
    /// Entry of the process in microseconds of CLOCK_BOOTTIME: the zero of the others.
    pub entry_boottime_us: u64,
    /// Set-up is done and the vCPUs run.
    pub running_us: Option<u64>,
    /// The guest's kernel has entered its init: init has connected to its control port.
    pub guest_init_us: Option<u64>,
    /// Init has started the program.
    pub program_us: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    Blk,
    Net,
    Console,
    Rng,
    Balloon,
    Vsock,
    Pmem,
}

impl Kind {
    /// The word in metrics' labels, the same as in JSON.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Blk => "blk",
            Self::Net => "net",
            Self::Console => "console",
            Self::Rng => "rng",
            Self::Balloon => "balloon",
            Self::Vsock => "vsock",
            Self::Pmem => "pmem",
        }
    }
}

/// One virtio device. What a host kernel does for it past the VMM (vhost) is not in these counts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Device {
    pub kind: Kind,
    /// A disk's serial; else its number among those of its kind.
    pub name: String,
    /// How often it was stopped because its driver broke the rules.
    pub stops: u64,
    pub queues: Vec<Queue>,
}

/// One virtqueue.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Queue {
    /// Chains that the driver had offered and not got back, when last looked at. Of a queue for received data,
    /// the buffers that wait for it.
    pub depth: u32,
    /// The most of them ever.
    pub depth_max: u32,
    /// Chains taken.
    pub requests: u64,
    /// Bytes of the parts of taken chains that the device reads, headers included.
    pub from_guest_bytes: u64,
    /// Bytes that the device wrote, headers included.
    pub to_guest_bytes: u64,
    /// Requests that were answered with an error, or packets that the host did not take.
    pub errors: u64,
    /// From taking a request to answering it, on queues of requests.
    pub latency: Option<Latency>,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Latency {
    /// Requests by how long they took: at most [`LATENCY_BORDERS_US`] of the same index and more than of the one
    /// before. Not cumulative.
    pub buckets: [u64; LATENCY_BUCKETS],
    pub sum_us: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Vsock {
    /// Connections that are open now.
    pub open: u64,
    /// Connections opened so far.
    pub opened: u64,
    /// Connections that were asked for and refused.
    pub refused: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Memory {
    /// The guest's memory as specified.
    pub guest_bytes: u64,
    /// What the guest has given back through its balloon; `None` where it has none.
    pub balloon_bytes: Option<u64>,
    /// The most that the VMM's process has had resident, guest memory included.
    pub resident_max_bytes: u64,
    /// Of a machine whose pages come from a snapshot as they are touched.
    #[serde(default)]
    pub restored: Option<Pages>,
}

/// Pages that have come from a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pages {
    /// Before the vCPUs ran, by the working set.
    pub prefetched: u64,
    /// Because somebody waited for them.
    pub faulted: u64,
}

/// How a balloon stands, and what the guest said last of its memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Balloon {
    /// What it is to hold.
    pub target_bytes: u64,
    /// What the guest says it holds.
    pub actual_bytes: u64,
    /// Given back to the host since the start, all in all: what was taken again and given again counts twice.
    pub returned_bytes: u64,
    pub guest: GuestMemory,
}

/// The guest's memory by its own account: at the time of the question before this one, or of its boot. `None`:
/// its kernel does not count that.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GuestMemory {
    pub free_bytes: Option<u64>,
    pub total_bytes: Option<u64>,
    /// Could be used without swapping.
    pub available_bytes: Option<u64>,
    /// Could be dropped at once: the page cache.
    pub cache_bytes: Option<u64>,
    pub major_faults: Option<u64>,
    pub oom_kills: Option<u64>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vm::CONTROL_PACKET_MAX;

    #[test]
    fn the_largest_machine_with_the_largest_numbers_fits_one_packet() {
        const MOST: u64 = u64::MAX;
        let latency = Latency {
            buckets: [MOST; LATENCY_BUCKETS],
            sum_us: MOST,
        };
        let queue = Queue {
            depth: u32::MAX,
            depth_max: u32::MAX,
            requests: MOST,
            from_guest_bytes: MOST,
            to_guest_bytes: MOST,
            errors: MOST,
            latency: Some(latency),
        };
        let device = Device {
            kind: Kind::Balloon,
            name: "x".repeat(20),
            stops: MOST,
            queues: vec![queue; 4],
        };
        let exits = Exits {
            pio_in: MOST,
            pio_out: MOST,
            mmio_read: MOST,
            mmio_write: MOST,
            other: MOST,
        };
        let machine = Machine {
            boot: Boot {
                entry_boottime_us: MOST,
                running_us: Some(MOST),
                guest_init_us: Some(MOST),
                program_us: Some(MOST),
            },
            exits,
            devices: vec![device; 19],
            vsock: Vsock {
                open: MOST,
                opened: MOST,
                refused: MOST,
            },
            memory: Memory {
                guest_bytes: MOST,
                balloon_bytes: Some(MOST),
                resident_max_bytes: MOST,
                restored: Some(Pages {
                    prefetched: MOST,
                    faulted: MOST,
                }),
            },
            balloon: Some(Balloon {
                target_bytes: MOST,
                actual_bytes: MOST,
                returned_bytes: MOST,
                guest: GuestMemory {
                    free_bytes: Some(MOST),
                    total_bytes: Some(MOST),
                    available_bytes: Some(MOST),
                    cache_bytes: Some(MOST),
                    major_faults: Some(MOST),
                    oom_kills: Some(MOST),
                },
            }),
        };
        let json = serde_json::to_vec(&machine).expect("JSON");
        // The message around it.
        assert!(json.len() + 32 <= CONTROL_PACKET_MAX, "{}", json.len());
        assert_eq!(
            serde_json::from_slice::<Machine>(&json).expect("reads back"),
            machine
        );
    }

    #[test]
    fn the_borders_rise() {
        assert!(LATENCY_BORDERS_US.windows(2).all(|pair| pair[0] < pair[1]));
    }
}
