//! Which disks are looked at, which become pools, and what each is to the node: pure decisions.
//!
//! Owns: the order of preference, and what may be claimed. Refuses: reading or writing a disk.

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
    /// Mount the pools that are there. What each is to the node is told by what is in them ([`crate::assemble`]).
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

/// What a further disk is to become.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Addition {
    /// Its making was cut short.
    Finish(Place),
    /// It is blank.
    Provision { disk: usize },
}

/// Every other disk that becomes a pool beside what was chosen, as far as that comes to a pool on a disk.
pub fn additions(disks: &[(Disk, Content)], owner: &PublicKey, choice: &Choice) -> Vec<Addition> {
    let (mark, chosen) = (owner_mark(owner), chosen(choice));
    let addition = |at: usize| {
        let (disk, content) = &disks[at];
        match content {
            Content::Blank if usable(disk) => Some(Addition::Provision { disk: at }),
            Content::Pool {
                owner,
                stage: Stage::Made,
                partition,
            } if *owner == mark && disk.objection().is_none() => Some(Addition::Finish(Place {
                disk: at,
                partition: *partition,
            })),
            Content::Blank | Content::Pool { .. } | Content::Foreign(_) => None,
        }
    };
    let others = (0..disks.len()).filter(|at| !chosen.contains(at));
    others.filter_map(addition).collect()
}

fn chosen(choice: &Choice) -> Vec<usize> {
    match choice {
        Choice::Use { pools } => pools.iter().map(|place| place.disk).collect(),
        Choice::Finish { disk, .. } | Choice::Provision { disk } => vec![*disk],
        Choice::Memory { .. } => Vec::new(),
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
        "no blank disk, none was touched: {}. `sifr disk claim` takes one with all that is on it; or add one",
        list.join(", ")
    )
}

/// What the disks of this owner's pools are to the node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Standing {
    /// Kernel names of the disks in use; the first pool's first.
    pub used: Vec<String>,
    /// Pools that are left alone: the disk, and why.
    pub left: Vec<LeftAlone>,
}

impl Standing {
    fn uses(&self, disk: &Disk) -> bool {
        self.used.contains(&disk.name)
    }
}

/// A pool of this owner that is not used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeftAlone {
    /// Kernel name of its disk.
    pub disk: String,
    /// For people.
    pub why: String,
}

impl LeftAlone {
    /// For people.
    pub fn told(&self) -> String {
        format!("{}: {}", self.disk, self.why)
    }
}

/// What a disk is to the node, and why, for people.
pub fn standing(
    disk: &Disk,
    content: &Content,
    owner: Option<&PublicKey>,
    pools: &Standing,
) -> (DiskUse, Option<String>) {
    let alone = |why: &str| (DiskUse::LeftAlone, Some(why.to_owned()));
    if pools.uses(disk) {
        let further = pools.used.first() != Some(&disk.name);
        let what = "one more pool: the node's identity and ledger are here too";
        return (DiskUse::Pool, further.then(|| what.to_owned()));
    }
    let Some(owner) = owner else {
        return alone("the node has no owner key");
    };
    if let Some(left) = pools.left.iter().find(|left| left.disk == disk.name) {
        return (DiskUse::OtherPool, Some(left.why.clone()));
    }
    if let Some(objection) = disk.objection() {
        return alone(&objection);
    }
    match content {
        Content::Blank if disk.size_bytes < POOL_MIN_BYTES => {
            alone(&format!("smaller than {} MiB", POOL_MIN_BYTES >> 20))
        }
        Content::Blank => {
            let why = "becomes a pool at the next boot, or waits for `sifr disk replace` where there is a mirror";
            (DiskUse::Ready, Some(why.to_owned()))
        }
        Content::Pool { owner: theirs, .. } if *theirs == owner_mark(owner) => {
            let why = "not in use at this boot";
            (DiskUse::OtherPool, Some(why.to_owned()))
        }
        Content::Pool { .. } | Content::Foreign(_) => {
            alone("it holds what this node did not make: only `sifr disk claim` takes it")
        }
    }
}

/// Why nothing can be claimed of a disk; `None` where its content can be lost by a claim.
pub fn unclaimable(disk: &Disk, content: &Content, pools: &Standing) -> Option<String> {
    let name = &disk.name;
    if pools.uses(disk) {
        return Some(format!("{name} is a pool in use"));
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
        crate::disk::any(name, serial)
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
    fn every_other_blank_disk_becomes_a_pool_too_and_nothing_else_does() {
        let mut stick = disk("sda", "S");
        stick.removable = true;
        let disks = [
            (disk("vda", "A"), pool(&OWNER, Stage::Live)),
            (disk("vdb", "B"), Content::Blank),
            (disk("vdc", "C"), pool(&OWNER, Stage::Made)),
            (disk("vdd", "D"), pool(&PublicKey([2; 32]), Stage::Made)),
            (
                disk("vde", "E"),
                Content::Foreign(Foreign::named("ext4 file system")),
            ),
            (stick, Content::Blank),
        ];
        let choice = choose(&disks, Some(&OWNER));
        let place = Place {
            disk: 2,
            partition: 1,
        };
        let expected = [Addition::Provision { disk: 1 }, Addition::Finish(place)];
        assert_eq!(additions(&disks, &OWNER, &choice), expected);
        let choice = Choice::Provision { disk: 1 };
        assert_eq!(additions(&disks, &OWNER, &choice), expected[1..]);
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
        let used = |pool: Option<&str>| Standing {
            used: pool.map(str::to_owned).into_iter().collect(),
            left: Vec::new(),
        };
        let standing = |content: &Content, pool| standing(&vda, content, Some(&OWNER), &used(pool));
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
        let (ownerless, _) = super::standing(&vda, &Content::Blank, None, &Standing::default());
        assert_eq!(ownerless, DiskUse::LeftAlone);
        let further = Standing {
            used: vec!["vdb".to_owned(), "vda".to_owned()],
            left: Vec::new(),
        };
        let (used, because) = super::standing(&vda, &ours, Some(&OWNER), &further);
        assert!(used == DiskUse::Pool && because.is_some());
        let left = Standing {
            used: vec!["vdb".to_owned()],
            left: vec![LeftAlone {
                disk: "vda".to_owned(),
                why: "of another node".to_owned(),
            }],
        };
        let because = Some("of another node".to_owned());
        let stands = super::standing(&vda, &ours, Some(&OWNER), &left);
        assert_eq!(stands, (DiskUse::OtherPool, because));
    }

    #[test]
    fn only_what_holds_something_and_can_be_named_is_claimed() {
        let foreign = Content::Foreign(Foreign::named("ext4 file system"));
        let vda = disk("vda", "A");
        let why = |disk: &Disk, content: &Content, pool: Option<&str>| {
            let used = pool.map(str::to_owned).into_iter().collect();
            let left = Vec::new();
            unclaimable(disk, content, &Standing { used, left })
        };
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
