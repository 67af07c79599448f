//! What this node is, for an agent of this boot that finds none of its pools.
//!
//! Owns: a copy of the identity and the list of the node's disks in `/run`, which is gone with the boot, and the pool in memory
//! of a node that waits for a disk. Refuses: another node: while this stands, none is made of a blank disk, and nothing that
//! the memory takes counts.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use storage::disk::Disk;
use storage::pools::{Places, Pools};
use storage::probe::{Content, Stage, owner_mark};
use storage::roster::{Member, Roster};
use types::PublicKey;
use types::node::{Half, HalfState, Mirror, Pool};

use super::disks::Found;
use super::identity;

/// As short-lived as the boot, and nobody else's to read.
const DIRECTORY: &str = "/run/sifr/known";

/// The node, as its pools last said.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Known {
    pub(crate) members: Vec<Member>,
    /// Of all disks that its pools lie on, both of a mirror's. None is empty.
    pub(crate) serials: BTreeSet<String>,
}

fn list() -> PathBuf {
    Path::new(DIRECTORY).join("pools.json")
}

/// `None`: in this boot the node has had no pool on a disk.
pub(crate) fn read() -> Option<Known> {
    serde_json::from_slice(&std::fs::read(list()).ok()?).ok()
}

/// Kept from here on, where the node has a pool on a disk. What cannot be kept is told: no boot fails over it.
pub(crate) fn keep(pools: &Pools, found: &[Found], seed: &[u8; 32]) {
    if !pools.first.durable {
        return;
    }
    let members = Roster::read(&pools.first.mountpoint).map_or_else(Vec::new, |r| r.members);
    if members.is_empty() {
        return;
    }
    let used = pools.standing().used;
    let serials = found.iter().map(|(disk, _)| disk);
    let serials = serials.filter(|disk| used.contains(&disk.name));
    let known = Known {
        serials: serials
            .map(|disk| disk.serial.clone())
            .chain(members.iter().map(|member| member.serial.clone()))
            .filter(|serial| !serial.is_empty())
            .collect(),
        members,
    };
    let json = serde_json::to_vec(&known).expect("text always serialises");
    let kept = identity::keep(Path::new(DIRECTORY), seed)
        .map_err(|error| sys::error::chain(&error))
        .and_then(|()| {
            sys::fs::write_atomic(&list(), &json, 0o600).map_err(|error| sys::error::chain(&error))
        });
    if let Err(why) = kept {
        log::error!("keep in mind what this node is, should its disks go: {why}");
    }
}

/// What mirrors look like now is kept, too: a disk that has come into one is waited for, and one that lacks what the others have
/// is not: alone it would be believed.
pub(crate) fn follow(pools: &[Pool]) {
    let Some(known) = read() else { return };
    let mut now = known.clone();
    pools
        .iter()
        .filter_map(|pool| pool.mirror.as_ref())
        .for_each(|mirror| now.note(mirror));
    if now == known {
        return;
    }
    let json = serde_json::to_vec(&now).expect("text always serialises");
    if let Err(error) = sys::fs::write_atomic(&list(), &json, 0o600) {
        let why = sys::error::chain(&error);
        log::error!("keep in mind which disks the mirrors lie on: {why}");
    }
}

impl Known {
    /// While none is whole, those that were so last stay.
    fn note(&mut self, mirror: &Mirror) {
        let is_whole = |half: &&Half| half.state == HalfState::InStep;
        if !mirror.halves.iter().any(|half| is_whole(&half)) {
            return;
        }
        for half in mirror.halves.iter().filter(|half| !half.serial.is_empty()) {
            match is_whole(&half) {
                true => self.serials.insert(half.serial.clone()),
                false => self.serials.remove(&half.serial),
            };
        }
    }

    /// Whether it is one of the disks that are waited for.
    pub(crate) fn awaits(&self, disk: &Disk, content: &Content, owner: &PublicKey) -> bool {
        let live = matches!(content, Content::Pool { owner: theirs, stage: Stage::Live, .. } if *theirs == owner_mark(owner));
        live && self.serials.contains(&disk.serial)
    }

    /// The node goes on from memory until a disk is back: reached, the same, and taking nothing.
    pub(crate) fn wait(self, places: Places<'_>) -> anyhow::Result<Pools> {
        // What is dead must not hide what comes.
        storage::pools::let_go(places.first);
        let serials: Vec<_> = self.serials.iter().map(String::as_str).collect();
        let why = format!(
            "none of the node's disks works: put one back ({}); until then nothing runs and nothing is accepted",
            serials.join(", ")
        );
        let mut pools = storage::pools::in_memory(&why, places)?;
        let known = Path::new(DIRECTORY);
        let kept = identity::load(known)?;
        identity::keep(places.first, &kept)?;
        pools.missing = self.members;
        Ok(pools)
    }

    /// A disk is back, and could not be used: it stays this node, says why, and tries again. These would be another.
    pub(crate) fn wait_on(self, others: Pools, places: Places<'_>) -> anyhow::Result<Pools> {
        let mut pools = self.wait(places)?;
        pools.first.problems = others.first.problems;
        pools.first.problems.extend(others.first.remark);
        pools.first.problems.dedup();
        pools.left = others.left;
        Ok(pools)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_mirror_the_disks_are_awaited_that_were_whole_last() {
        let mut known = Known {
            members: Vec::new(),
            serials: ["a", "b", "other"].map(str::to_owned).into(),
        };
        let mirror = |halves: &[(&str, HalfState)]| Mirror {
            array: "md_1".to_owned(),
            halves: halves
                .iter()
                .map(|(serial, state)| Half {
                    disk: None,
                    serial: (*serial).to_owned(),
                    state: *state,
                })
                .collect(),
            percent: None,
        };
        use HalfState::{Filling, InStep, Missing};
        let mut after = |halves: &[(&str, HalfState)]| {
            known.note(&mirror(halves));
            known.serials.iter().cloned().collect::<Vec<_>>().join(" ")
        };
        assert_eq!(after(&[("a", InStep), ("b", Missing)]), "a other");
        assert_eq!(after(&[("a", InStep), ("c", Filling)]), "a other");
        assert_eq!(after(&[("a", InStep), ("c", InStep)]), "a c other");
        assert_eq!(after(&[("c", InStep), ("a", Missing)]), "c other");
        assert_eq!(
            after(&[("c", Missing), ("", Missing)]),
            "c other",
            "none is whole"
        );
    }

    #[test]
    fn a_disk_is_awaited_by_its_serial_and_only_with_a_pool_of_this_owner_that_was_in_use() {
        let (ours, theirs) = (PublicKey([1; 32]), PublicKey([2; 32]));
        let known = Known {
            members: Vec::new(),
            serials: ["a".to_owned()].into(),
        };
        let disk = |serial| crate::node::disks::a_disk("sda", serial);
        let pool = |owner: &PublicKey, stage| Content::Pool {
            owner: owner_mark(owner),
            stage,
            partition: 1,
        };
        let live = pool(&ours, Stage::Live);
        assert!(known.awaits(&disk("a"), &live, &ours));
        for (serial, content) in [
            ("b", live.clone()),
            ("", live),
            ("a", pool(&theirs, Stage::Live)),
            ("a", pool(&ours, Stage::Made)),
            ("a", Content::Blank),
        ] {
            assert!(
                !known.awaits(&disk(serial), &content, &ours),
                "{serial} {content:?}"
            );
        }
    }
}
