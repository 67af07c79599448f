//! What the boot phases hand to the engine: who the node is, what it has, and how it hears of changes.
//!
//! Owns: the shape of that hand-over. Refuses: making any of it (the phases do), using it (the engine
//! does).

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use storage::plan::Standing;
use tokio::sync::watch;
use types::node::{Capacity, NodeInfo};
use types::proxy::Egress;
use types::{AnyCidr, Bytes, Cidr, PublicKey};
use workload::admission::Storage;

use super::custody::Custody;
use super::disks::Found;
use super::machines::Site;
use super::site::Desk;
use super::vigil::Guarded;
use crate::room::{HEADROOM, Room};

/// Share of the machine's memory that stays with the node: host kernel, its page cache for images,
/// the three roles of init. A sixteenth grows with the page structures of large machines.
pub(crate) const MEMORY_RESERVED_DIVISOR: u64 = 16;
/// At least this much stays with the node: what an idle node uses, and half as much again.
pub(crate) const MEMORY_RESERVED_MIN: Bytes = Bytes::mib(160);
/// Part of the pool that stays with the node: identity, ledger, what is pushed and not deployed yet, and
/// what the file system takes for itself. At least [`HEADROOM`]. In percent of the pool.
pub(crate) const DISK_RESERVED_PERCENT: u64 = 10;

/// What stays with the node of so many bytes.
pub(crate) fn reserved_memory(all: u64) -> u64 {
    (all / MEMORY_RESERVED_DIVISOR).max(MEMORY_RESERVED_MIN.0)
}

/// What tenants may use of a pool of this size.
pub(crate) fn tenant_disk(pool: Bytes) -> Bytes {
    let kept = (pool.0 / 100 * DISK_RESERVED_PERCENT).max(HEADROOM.0);
    Bytes(pool.0.saturating_sub(kept))
}

/// What tenants may use in all of a machine with these totals. Nothing is promised twice: a pool in memory
/// may fill up with images, and what is in it is lost to machines.
pub(crate) fn tenant_capacity(cpus: u64, memory: Bytes, storage: Storage, pool: Bytes) -> Capacity {
    let reserved = reserved_memory(memory.0);
    let taken = match storage {
        Storage::Disk => 0,
        Storage::Memory => pool.0,
    };
    Capacity {
        cpus,
        memory: Bytes(memory.0.saturating_sub(reserved).saturating_sub(taken)),
        disk: tenant_disk(pool),
        ..Capacity::default()
    }
}

/// The node's connection to the world, as the newest lease says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Uplink {
    /// The link with the default route; `None` until there is one.
    pub(crate) link: Option<String>,
    /// Of that link, the one that is shown first.
    pub(crate) addresses: Vec<AnyCidr>,
    /// The link with the way to all of IPv6; `None` while there is none.
    pub(crate) link6: Option<String>,
    /// The prefixes of IPv4 on all physical links, not only that one's: guests must reach no neighbour on any.
    pub(crate) networks: Vec<Cidr>,
    pub(crate) dns: Vec<IpAddr>,
    /// How the node's own HTTP goes out.
    pub(crate) egress: Egress,
    /// Every physical link of the node: the host firewall knows them by name.
    pub(crate) links: Vec<String>,
    /// Their numbers, in the same order: one that is made anew under its name has another, and nothing of what was set on it.
    pub(crate) indexes: Vec<u32>,
    /// The prefixes on each of them.
    pub(crate) prefixes: BTreeMap<String, Vec<AnyCidr>>,
    /// Addresses on them that are no machine's, and whose each is.
    pub(crate) occupied: BTreeMap<IpAddr, &'static str>,
}

/// Everything the engine needs.
pub(crate) struct NodeContext {
    /// The ed25519 seed of the node's identity.
    pub(crate) seed: [u8; 32],
    /// The public key of `seed`.
    pub(crate) key: PublicKey,
    /// `None`: every request is refused.
    pub(crate) owner: Option<PublicKey>,
    pub(crate) storage: Storage,
    /// Mounted, with its directories not yet made: the engine makes those it uses.
    pub(crate) pool: PathBuf,
    /// All pools of the node, the first first.
    pub(crate) pools: Vec<Site>,
    /// Their disks, in the same order. Of a node that runs from RAM those that it waits for.
    pub(crate) guarded: Vec<Guarded>,
    /// The first pool is mounted since an earlier agent: what runs from it goes on.
    pub(crate) adopted: bool,
    /// None of the node's pools is there, and why nothing is accepted until one is.
    pub(crate) waits: Option<String>,
    /// All disks, as they were at this agent's start.
    pub(crate) found: Vec<Found>,
    /// Which disks they are on, and which disks of this owner are left alone.
    pub(crate) standing: Standing,
    /// The keys of disks.
    pub(crate) custody: Custody,
    /// How much of the pool may be taken.
    pub(crate) room: Room,
    /// Why no VM can run; `None` where KVM works.
    pub(crate) kvm_problem: Option<String>,
    /// What tenants may use ([`tenant_capacity`]).
    pub(crate) capacity: Capacity,
    /// What `GET /v1/node` says. The phases keep clock, links, disks and boot current; the engine keeps
    /// the used capacity and the last error current; uptime and clock are read when asked.
    pub(crate) info: watch::Sender<NodeInfo>,
    /// Where changes of the node's own network are asked for.
    pub(crate) desk: Desk,
    /// The newest lease. A change replaces the host's firewall.
    pub(crate) uplink: watch::Receiver<Uplink>,
    /// The socket to pid1 ([`crate::wire::PID1_FD`]), from which nothing has been read.
    pub(crate) pid1: OwnedFd,
}

impl fmt::Debug for NodeContext {
    /// Shows no secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NodeContext")
            .field("key", &self.key)
            .field("owner", &self.owner)
            .field("storage", &self.storage)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_node_keeps_its_own_share_before_tenants_get_any() {
        let on_disk = |cpus, memory, pool| tenant_capacity(cpus, memory, Storage::Disk, pool);
        let small = on_disk(1, Bytes::mib(256), Bytes::gib(1));
        assert_eq!(small.memory, Bytes::mib(96));
        let large = on_disk(64, Bytes::gib(512), Bytes::gib(1000));
        assert_eq!(large.memory, Bytes::gib(480));
        assert!(large.disk >= Bytes::gib(900) && large.disk < Bytes::gib(901));
        let tiny = on_disk(1, Bytes::gib(1), Bytes::mib(100));
        assert_eq!(tiny.disk, Bytes::mib(36));
        assert_eq!(on_disk(1, Bytes::mib(64), Bytes(0)).memory, Bytes(0));
    }

    #[test]
    fn a_node_that_runs_from_memory_promises_no_byte_of_it_twice() {
        let (memory, pool) = (Bytes::mib(960), Bytes::mib(384));
        let all = tenant_capacity(1, memory, Storage::Memory, pool);
        assert_eq!(all.memory, Bytes::mib(960 - 160 - 384));
        assert!(all.memory.0 + pool.0 + MEMORY_RESERVED_MIN.0 <= memory.0);
        assert!(all.disk.0 <= pool.0);
    }
}
