//! Which disk becomes the pool: a pure decision.
//!
//! Owns: the order of preference. Refuses: reading or writing a disk.

use types::PublicKey;

use crate::disk::Disk;
use crate::probe::{Content, Stage, owner_mark};

/// Smallest pool: XFS itself asks for 300 MiB, the rest is room to work.
pub const POOL_MIN_BYTES: u64 = 512 << 20;

/// What to do, and with which disk (an index into the list that was given).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Choice {
    /// Mount the pool that is there.
    Use { disk: usize, partition: u32 },
    /// A power cut came between making the partition and using it: make the file system again.
    Finish { disk: usize, partition: u32 },
    /// Make a pool on this blank disk.
    Provision { disk: usize },
    /// Run from memory. The reason is for people and says what to do.
    Memory { why: String },
}

/// A pool of this owner first, then one that was begun, then the blank disk with the smallest serial.
/// Without an owner no disk is touched: there is nobody to obey.
pub fn choose(disks: &[(Disk, Content)], owner: Option<&PublicKey>) -> Choice {
    let Some(owner) = owner else {
        return Choice::Memory {
            why: "no owner key: disks are left alone".to_owned(),
        };
    };
    let mark = owner_mark(owner);
    let by_serial = |wanted: &dyn Fn(&Disk, &Content) -> bool| {
        let mut found: Vec<_> = (0..disks.len())
            .filter(|i| wanted(&disks[*i].0, &disks[*i].1))
            .collect();
        found.sort_by_key(|i| (disks[*i].0.serial.clone(), disks[*i].0.name.clone()));
        found.first().copied()
    };
    let ours = |stage: Stage| {
        by_serial(
            &|_, content| matches!(content, Content::Pool { owner, stage: s, .. } if *owner == mark && *s == stage),
        )
    };
    if let Some((disk, partition)) =
        ours(Stage::Live).and_then(|i| Some((i, partition(&disks[i].1)?)))
    {
        return Choice::Use { disk, partition };
    }
    if let Some((disk, partition)) = ours(Stage::Made)
        .filter(|i| disks[*i].0.objection().is_none())
        .and_then(|i| Some((i, partition(&disks[i].1)?)))
    {
        return Choice::Finish { disk, partition };
    }
    match by_serial(&|disk, content| *content == Content::Blank && usable(disk)) {
        Some(disk) => Choice::Provision { disk },
        None => Choice::Memory {
            why: why_none(disks, owner),
        },
    }
}

fn usable(disk: &Disk) -> bool {
    disk.objection().is_none() && disk.size_bytes >= POOL_MIN_BYTES
}

fn partition(content: &Content) -> Option<u32> {
    match content {
        Content::Pool { partition, .. } => Some(*partition),
        Content::Blank | Content::Foreign(_) => None,
    }
}

fn why_none(disks: &[(Disk, Content)], owner: &PublicKey) -> String {
    if disks.is_empty() {
        return "no disk found".to_owned();
    }
    let describe = |(disk, content): &(Disk, Content)| {
        let objection = disk.objection();
        let objection = objection.map_or_else(String::new, |why| format!(", {why}"));
        let content = content.describe(Some(owner));
        format!("{} ({content}{objection})", disk.name)
    };
    let list: Vec<_> = disks.iter().map(describe).collect();
    format!(
        "no blank disk, none was touched: {}. Blank one elsewhere, or add one",
        list.join(", ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::Sharing;

    const OWNER: PublicKey = PublicKey([1; 32]);

    fn disk(name: &str, serial: &str) -> Disk {
        Disk {
            name: name.to_owned(),
            serial: serial.to_owned(),
            size_bytes: 1 << 30,
            removable: false,
            read_only: false,
            block_bytes: 512,
            sharing: Sharing::None,
        }
    }

    fn pool(owner: &PublicKey, stage: Stage) -> Content {
        Content::Pool {
            owner: owner_mark(owner),
            stage,
            partition: 1,
        }
    }

    #[test]
    fn the_blank_disk_with_the_smallest_serial_wins() {
        let disks = [
            (disk("vda", "Z"), Content::Blank),
            (disk("vdb", "A"), Content::Blank),
        ];
        assert_eq!(choose(&disks, Some(&OWNER)), Choice::Provision { disk: 1 });
    }

    #[test]
    fn a_pool_of_this_owner_comes_before_any_blank_disk() {
        let disks = [
            (disk("vda", "A"), Content::Blank),
            (disk("vdb", "B"), pool(&OWNER, Stage::Made)),
            (disk("vdc", "C"), pool(&OWNER, Stage::Live)),
        ];
        assert_eq!(
            choose(&disks, Some(&OWNER)),
            Choice::Use {
                disk: 2,
                partition: 1
            }
        );
        assert_eq!(
            choose(&disks[..2], Some(&OWNER)),
            Choice::Finish {
                disk: 1,
                partition: 1
            }
        );
    }

    #[test]
    fn what_is_foreign_is_never_chosen_and_is_named() {
        let other = pool(&PublicKey([2; 32]), Stage::Live);
        let disks = [
            (disk("vda", "A"), Content::Foreign("ext file system")),
            (disk("vdb", "B"), other),
        ];
        let Choice::Memory { why } = choose(&disks, Some(&OWNER)) else {
            panic!("a disk was chosen")
        };
        assert!(
            why.contains("vda (ext file system)") && why.contains("vdb (pool of another owner)"),
            "{why}"
        );
    }

    #[test]
    fn a_blank_disk_that_others_may_use_is_not_taken_and_the_reason_is_said() {
        let mut twin = disk("sda", "A");
        twin.sharing = Sharing::Twice("sdb".to_owned());
        let mut far = disk("sdc", "C");
        far.sharing = Sharing::Network;
        let begun = (twin.clone(), pool(&OWNER, Stage::Made));
        assert!(matches!(
            choose(&[begun], Some(&OWNER)),
            Choice::Memory { .. }
        ));
        let disks = [twin, far].map(|d| (d, Content::Blank));
        let Choice::Memory { why } = choose(&disks, Some(&OWNER)) else {
            panic!("a disk was chosen")
        };
        assert!(
            why.contains("sda (blank, the same disk as sdb)") && why.contains("network"),
            "{why}"
        );
        let own = (disk("sdd", "D"), Content::Blank);
        let disks = [disks.as_slice(), &[own]].concat();
        assert_eq!(choose(&disks, Some(&OWNER)), Choice::Provision { disk: 2 });
    }

    #[test]
    fn removable_read_only_and_tiny_disks_are_not_taken() {
        let mut stick = disk("sda", "A");
        stick.removable = true;
        let mut locked = disk("sdb", "B");
        locked.read_only = true;
        let mut tiny = disk("sdc", "C");
        tiny.size_bytes = 1 << 20;
        let disks = [stick, locked, tiny].map(|d| (d, Content::Blank));
        assert!(matches!(
            choose(&disks, Some(&OWNER)),
            Choice::Memory { .. }
        ));
    }

    #[test]
    fn without_an_owner_no_disk_is_touched() {
        let disks = [(disk("vda", "A"), Content::Blank)];
        assert!(matches!(choose(&disks, None), Choice::Memory { .. }));
    }
}
