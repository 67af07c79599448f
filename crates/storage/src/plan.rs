//! Which disk becomes the pool, and what each is to the node: pure decisions.
//!
//! Owns: the order of preference, and what may be claimed. Refuses: reading or writing a disk.

use std::time::SystemTime;

use types::PublicKey;
use types::node::DiskUse;

use crate::disk::Disk;
use crate::probe::{Content, Stage, owner_mark};

/// Smallest pool: XFS itself asks for 300 MiB, the rest is room to work.
pub const POOL_MIN_BYTES: u64 = 512 << 20;

/// A pool's place: its disk (an index into the list that was given) and its partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    pub disk: usize,
    pub partition: u32,
}

/// What to do, and with which disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Choice {
    /// Mount the pool that is there. Of several [`prefer`] takes one, by what is in them.
    Use { pools: Vec<Place> },
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
        found
    };
    let ours = |stage: Stage| {
        by_serial(
            &|_, content| matches!(content, Content::Pool { owner, stage: s, .. } if *owner == mark && *s == stage),
        )
    };
    let place = |disk: usize| {
        let partition = partition(&disks[disk].1)?;
        Some(Place { disk, partition })
    };
    let pools: Vec<_> = ours(Stage::Live).into_iter().filter_map(place).collect();
    if !pools.is_empty() {
        return Choice::Use { pools };
    }
    let begun = ours(Stage::Made)
        .into_iter()
        .filter(|i| disks[*i].0.objection().is_none())
        .find_map(place);
    if let Some(Place { disk, partition }) = begun {
        return Choice::Finish { disk, partition };
    }
    let blank = by_serial(&|disk, content| *content == Content::Blank && usable(disk));
    match blank.first().copied() {
        Some(disk) => Choice::Provision { disk },
        None => Choice::Memory {
            why: why_none(disks, owner),
        },
    }
}

/// What tells pools of one owner apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holding {
    /// Statements are in its ledger: somebody counts on it.
    pub statements: bool,
    /// When it was made, as far as the clock was right.
    pub made: SystemTime,
}

/// Which of several pools is used, if any can be (an index into the list). A node makes a second one where
/// the first was away for a boot, and the first is the one that was counted on: it has statements, or it is
/// at least the older, whose key may be known.
pub fn prefer(pools: &[Option<Holding>]) -> Option<usize> {
    let usable = pools.iter().enumerate();
    let usable = usable.filter_map(|(at, pool)| Some((at, pool.as_ref()?)));
    usable
        .min_by_key(|(_, pool)| (!pool.statements, pool.made))
        .map(|(at, _)| at)
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
        "no blank disk, none was touched: {}. `sifr disk claim` takes one with all that is on it; or add one",
        list.join(", ")
    )
}

/// What a disk is to the node, and why, for people. `pool`: the disk that the pool is on, if it is on one.
pub fn standing(
    disk: &Disk,
    content: &Content,
    owner: Option<&PublicKey>,
    pool: Option<&str>,
) -> (DiskUse, Option<String>) {
    let alone = |why: &str| (DiskUse::LeftAlone, Some(why.to_owned()));
    if pool == Some(disk.name.as_str()) {
        return (DiskUse::Pool, None);
    }
    let Some(owner) = owner else {
        return alone("the node has no owner key");
    };
    if let Some(objection) = disk.objection() {
        return alone(&objection);
    }
    match content {
        Content::Blank if disk.size_bytes < POOL_MIN_BYTES => {
            alone(&format!("smaller than {} MiB", POOL_MIN_BYTES >> 20))
        }
        Content::Blank => {
            let why = match pool {
                Some(_) => "spare: a node has one pool",
                None => "becomes the pool at the next boot",
            };
            (DiskUse::Ready, Some(why.to_owned()))
        }
        Content::Pool { owner: theirs, .. } if *theirs == owner_mark(owner) => {
            let why = match pool {
                Some(_) => "not in use: the pool is on another disk",
                None => "not in use at this boot",
            };
            (DiskUse::OtherPool, Some(why.to_owned()))
        }
        Content::Pool { .. } | Content::Foreign(_) => {
            alone("it holds what this node did not make: only `sifr disk claim` takes it")
        }
    }
}

/// Why nothing can be claimed of a disk; `None` where its content can be lost by a claim.
pub fn unclaimable(disk: &Disk, content: &Content, pool: Option<&str>) -> Option<String> {
    let name = &disk.name;
    if pool == Some(name.as_str()) {
        return Some(format!("{name} is the pool in use"));
    }
    if !types::claim::is_serial(&disk.serial) {
        return Some(format!(
            "{name} does not say a serial, so that no plan can name it"
        ));
    }
    if let Some(objection) = disk.objection() {
        return Some(format!("{name} is not used: {objection}"));
    }
    match content {
        Content::Blank => Some(format!("{name} is blank: there is nothing to claim")),
        Content::Pool { .. } | Content::Foreign(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::Sharing;
    use crate::recognise::Foreign;

    const OWNER: PublicKey = PublicKey([1; 32]);

    fn disk(name: &str, serial: &str) -> Disk {
        Disk {
            name: name.to_owned(),
            serial: serial.to_owned(),
            model: String::new(),
            class: types::node::DiskClass::Ssd,
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
                pools: vec![Place {
                    disk: 2,
                    partition: 1
                }]
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
    fn every_pool_of_this_owner_is_looked_into() {
        let disks = [
            (disk("vda", "B"), pool(&OWNER, Stage::Live)),
            (disk("vdb", "A"), pool(&OWNER, Stage::Live)),
            (disk("vdc", "C"), pool(&PublicKey([2; 32]), Stage::Live)),
        ];
        let Choice::Use { pools } = choose(&disks, Some(&OWNER)) else {
            panic!("there are pools")
        };
        let disks: Vec<_> = pools.iter().map(|place| place.disk).collect();
        assert_eq!(disks, [1, 0]);
    }

    #[test]
    fn a_pool_that_was_away_for_a_boot_is_preferred_to_the_one_made_meanwhile() {
        let holding = |statements, day: u64| {
            let made = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(day * 86_400);
            Some(Holding { statements, made })
        };
        // Whatever the clock said while the second was made.
        assert_eq!(prefer(&[holding(false, 1), holding(true, 9)]), Some(1));
        assert_eq!(prefer(&[holding(true, 9), holding(true, 2)]), Some(1));
        assert_eq!(prefer(&[holding(false, 1), holding(false, 2)]), Some(0));
        // The smaller serial, where nothing tells them apart; and what can be mounted at all.
        assert_eq!(prefer(&[holding(true, 1), holding(true, 1)]), Some(0));
        assert_eq!(prefer(&[None, holding(false, 3)]), Some(1));
        assert_eq!(prefer(&[None, None]), None);
    }

    #[test]
    fn what_is_foreign_is_never_chosen_and_is_named() {
        let other = pool(&PublicKey([2; 32]), Stage::Live);
        let disks = [
            (
                disk("vda", "A"),
                Content::Foreign(Foreign::named("ext4 file system")),
            ),
            (disk("vdb", "B"), other),
        ];
        let Choice::Memory { why } = choose(&disks, Some(&OWNER)) else {
            panic!("a disk was chosen")
        };
        assert!(
            why.contains("vda (ext4 file system)") && why.contains("vdb (pool of another owner"),
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
    fn each_disk_has_a_use_and_a_reason() {
        let other = PublicKey([2; 32]);
        let foreign = || Content::Foreign(Foreign::named("ext4 file system"));
        let vda = disk("vda", "A");
        let standing = |content: &Content, pool| standing(&vda, content, Some(&OWNER), pool);
        let alone = |content: &Content, pool| {
            let (used, because) = standing(content, pool);
            assert_eq!(used, DiskUse::LeftAlone, "{because:?}");
            because.expect("a reason")
        };
        let ours = pool(&OWNER, Stage::Live);
        assert_eq!(standing(&ours, Some("vda")), (DiskUse::Pool, None));
        for pool_at in [None, Some("vdb")] {
            assert_eq!(standing(&ours, pool_at).0, DiskUse::OtherPool);
        }
        assert_eq!(standing(&Content::Blank, None).0, DiskUse::Ready);
        assert_eq!(standing(&Content::Blank, Some("vdb")).0, DiskUse::Ready);
        for pool_at in [None, Some("vdb")] {
            for content in [foreign(), pool(&other, Stage::Live)] {
                assert!(alone(&content, pool_at).contains("sifr disk claim"));
            }
        }
        let (used, _) = super::standing(&vda, &Content::Blank, None, None);
        assert_eq!(used, DiskUse::LeftAlone);
    }

    #[test]
    fn only_what_holds_something_and_can_be_named_is_claimed() {
        let foreign = Content::Foreign(Foreign::named("ext4 file system"));
        let vda = disk("vda", "A");
        let why = |disk: &Disk, content: &Content, pool| unclaimable(disk, content, pool);
        assert_eq!(why(&vda, &foreign, Some("vdb")), None);
        assert_eq!(why(&vda, &pool(&OWNER, Stage::Live), None), None);
        assert!(why(&vda, &pool(&OWNER, Stage::Live), Some("vda")).is_some());
        assert!(why(&vda, &Content::Blank, None).is_some());
        assert!(why(&disk("vda", ""), &foreign, None).is_some());
        let mut stick = disk("sda", "B");
        stick.removable = true;
        assert!(why(&stick, &foreign, None).is_some());
    }

    #[test]
    fn without_an_owner_no_disk_is_touched() {
        let disks = [(disk("vda", "A"), Content::Blank)];
        assert!(matches!(choose(&disks, None), Choice::Memory { .. }));
    }
}
