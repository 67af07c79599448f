//! What may run short on a node: memory and room on the pool.
//!
//! Owns: when that is worth saying, and when it is over. Refuses: doing anything about it: what tenants get was bounded before
//! (`context::tenant_capacity`, `room`), and what the kernel may take from whom is pid1's (`pid1::jail`).

use std::time::Duration;

use tokio::sync::watch;
use types::Bytes;
use types::node::NodeInfo;
use types::trouble::Code;

use super::machines::Site;
use super::{machine, troubles};
use crate::room::HEADROOM;

/// Between two looks: nothing tells of a pool that fills up, and a person reads of it a minute later.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// Below this nothing new can be started for certain: a VMM, its page tables and the node's own work. A thirty-second of small
/// machines.
const MEMORY_MIN: Bytes = Bytes::mib(24);
/// The kernel's count of processes that it killed for lack of memory, in machines and beside them.
const VMS_EVENTS: &str = "/sys/fs/cgroup/vms/memory.events";

/// What was measured.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Seen {
    memory_available: Bytes,
    /// Of the first pool, which keeps images, and of each other one with its id.
    first_available: Bytes,
    further_available: Vec<(String, Bytes)>,
    /// Of VMMs, since the boot.
    killed: u64,
}

/// Looks for ever.
pub(crate) async fn watch(pools: Vec<Site>, info: watch::Sender<NodeInfo>) {
    loop {
        for (code, said) in judge(&look(&pools)) {
            match said {
                Some(said) => troubles::say(&info, code, said),
                None => troubles::over(&info, code),
            }
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

fn look(pools: &[Site]) -> Seen {
    let available = |site: &Site| machine::available_in(&site.mountpoint);
    let further = pools.iter().skip(1);
    let events = std::fs::read_to_string(VMS_EVENTS).unwrap_or_default();
    Seen {
        memory_available: machine::memory_available(),
        first_available: pools.first().map(available).unwrap_or_default(),
        further_available: further
            .map(|site| (site.id.clone(), available(site)))
            .collect(),
        killed: killed(&events),
    }
}

fn killed(events: &str) -> u64 {
    let mut lines = events.lines().filter_map(|line| line.split_once(' '));
    let count = lines.find(|(name, _)| *name == "oom_kill");
    count.and_then(|(_, n)| n.parse().ok()).unwrap_or(0)
}

fn judge(seen: &Seen) -> [(Code, Option<String>); 3] {
    let (memory, first) = (seen.memory_available, seen.first_available);
    let mib = |bytes: Bytes| bytes.as_mib();
    let memory = (memory < MEMORY_MIN).then(|| {
        let (left, enough) = (mib(memory), mib(MEMORY_MIN));
        format!("{left} MiB of memory are left, less than {enough}: machines may fail to start")
    });
    let kept = mib(HEADROOM);
    let full = (first < HEADROOM).then(|| {
        let left = mib(first);
        format!(
            "{left} MiB of the pool are left of {kept} that the node keeps for itself: it takes stops and deletions alone"
        )
    });
    let mut further = seen.further_available.iter();
    let full = full.or_else(|| {
        let (id, left) = further.find(|(_, available)| *available < HEADROOM)?;
        let left = mib(*left);
        Some(format!(
            "{left} MiB of the pool {id} are left of {kept} that the node keeps for itself: statements may fail"
        ))
    });
    let killed = (seen.killed > 0).then(|| {
        let times = seen.killed;
        format!("since its boot the node's memory ran out for machines, and {times} processes of theirs were killed")
    });
    [
        (Code::MemoryShort, memory),
        (Code::PoolFull, full),
        (Code::MemoryKilled, killed),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_with_enough_of_everything_says_nothing_and_one_without_names_each() {
        let well = Seen {
            memory_available: Bytes::mib(500),
            first_available: Bytes::gib(3),
            further_available: vec![("0a".to_owned(), Bytes::gib(1))],
            killed: 0,
        };
        assert!(judge(&well).iter().all(|(_, said)| said.is_none()));
        let ill = Seen {
            memory_available: Bytes::mib(3),
            first_available: Bytes::mib(5),
            further_available: Vec::new(),
            killed: 2,
        };
        let said = judge(&ill).map(|(code, said)| (code, said.expect("said")));
        assert!(said[0].1.starts_with("3 MiB of memory"), "{said:?}");
        assert!(said[1].1.starts_with("5 MiB of the pool"), "{said:?}");
        assert!(said[2].1.contains("2 processes"), "{said:?}");
        let further = Seen {
            further_available: vec![("0a".to_owned(), Bytes::mib(5))],
            ..well
        };
        let said = judge(&further)[1].1.clone();
        assert!(said.is_some_and(|said| said.contains("pool 0a")));
    }

    #[test]
    fn the_kernels_count_is_read_and_its_absence_is_none() {
        assert_eq!(killed("low 0\nmax 3\noom 4\noom_kill 2\n"), 2);
        assert_eq!(killed(""), 0);
    }
}
