//! Disks whose pools failed while the node ran, or that did not answer any more.
//!
//! Owns: the list of them, for the agents of this boot, and how one is known again. Refuses: judging a disk (`vigil` does).
//!
//! One that fails is not opened again before it has been away, or the node starts again: it would take machines along each
//! time. One that hangs is not even read before it answers: who asks it may wait for ever.
//!
//! A disk is known by its serial, and where it says none by the place where it is plugged in.

use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use storage::disk::Disk;

use super::patient;

/// As short-lived as the boot.
const FILE: &str = "/run/sifr/given-up.json";
/// Longest wait for the end of a mount: taking it out of the tree is done at once, the rest may wait for the disk.
const LET_GO_WAIT: Duration = Duration::from_secs(3);
/// Entries: as many as disks are looked at.
const ENTRIES_MAX: usize = storage::disk::DISKS_MAX;

/// How a disk is known again.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Mark {
    serial: String,
    /// Where it is plugged in; empty where the kernel does not say.
    position: String,
}

impl Mark {
    pub(crate) fn of(disk: &Disk) -> Self {
        let position = storage::disk::position(Path::new("/sys"), &disk.name);
        Self {
            serial: disk.serial.clone(),
            position: position.unwrap_or_default(),
        }
    }

    /// One that fails may not say its serial any more, and is the same while it stays where it is.
    pub(crate) fn is(&self, other: &Self) -> bool {
        match (self.serial.as_str(), other.serial.as_str()) {
            ("", _) | (_, "") => !self.position.is_empty() && self.position == other.position,
            (one, other) => one == other,
        }
    }
}

/// What is wrong with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Ill {
    Fails,
    /// It neither answers nor fails.
    Hangs,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    disk: Mark,
    ill: Ill,
}

/// All of them.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct GivenUp(Vec<Entry>);

impl GivenUp {
    pub(crate) fn read() -> Self {
        let bytes = std::fs::read(FILE).unwrap_or_default();
        serde_json::from_slice(&bytes).unwrap_or_default()
    }

    pub(crate) fn ill(&self, disk: &Mark) -> Option<Ill> {
        let entry = self.0.iter().find(|entry| entry.disk.is(disk));
        entry.map(|entry| entry.ill)
    }

    /// The newest word counts.
    fn note(&mut self, disk: Mark, ill: Ill) {
        // One that says neither cannot be told from others.
        if disk == Mark::default() {
            return;
        }
        self.0.retain(|entry| !entry.disk.is(&disk));
        if self.0.len() < ENTRIES_MAX {
            self.0.push(Entry { disk, ill });
        }
    }

    fn change(with: impl FnOnce(&mut Self)) {
        let before = Self::read();
        let mut now = before.clone();
        with(&mut now);
        if now == before {
            return;
        }
        let json = serde_json::to_vec(&now).expect("text always serialises");
        if let Err(error) = sys::fs::write_atomic(Path::new(FILE), &json, 0o600) {
            log::error!("note which disks failed: {}", sys::error::chain(&error));
        }
    }
}

pub(crate) fn add(disk: Mark, ill: Ill) {
    GivenUp::change(|all| all.note(disk, ill));
}

/// Takes a pool that is lost out of the tree. Its disk may hang, and whoever is the last to use it waits for that.
pub(crate) fn let_go(mountpoint: &Path) {
    let (name, place) = (
        format!("let go {}", mountpoint.display()),
        mountpoint.to_owned(),
    );
    let gone = patient::within(&name, LET_GO_WAIT, move || storage::pools::let_go(&place));
    if gone.is_none() {
        log::warn!(
            "{} is left to a disk that does not answer",
            mountpoint.display()
        );
    }
}

/// It answers again.
pub(crate) fn forgive(disk: &Mark) {
    GivenUp::change(|all| all.0.retain(|entry| !entry.disk.is(disk)));
}

/// What has gone may come back as good as new.
pub(crate) fn retain(there: &[Mark]) {
    GivenUp::change(|all| {
        let is_there = |entry: &Entry| there.iter().any(|disk| entry.disk.is(disk));
        all.0.retain(is_there);
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mark(serial: &str, position: &str) -> Mark {
        Mark {
            serial: serial.to_owned(),
            position: position.to_owned(),
        }
    }

    #[test]
    fn a_disk_without_a_serial_is_known_by_its_place_and_one_with_a_serial_wherever_it_is() {
        let mut all = GivenUp::default();
        all.note(mark("A", "pci1"), Ill::Fails);
        all.note(mark("", "pci2"), Ill::Hangs);
        assert_eq!(all.ill(&mark("A", "pci7")), Some(Ill::Fails));
        assert_eq!(all.ill(&mark("", "pci2")), Some(Ill::Hangs));
        for other in [mark("B", "pci1"), mark("", "pci3"), mark("", "")] {
            assert_eq!(all.ill(&other), None, "{other:?}");
        }
        // It says its serial no more.
        assert_eq!(all.ill(&mark("", "pci1")), Some(Ill::Fails));
    }

    #[test]
    fn a_disk_stands_in_the_list_once_and_one_that_says_nothing_not_at_all() {
        let mut all = GivenUp::default();
        all.note(mark("", ""), Ill::Fails);
        assert_eq!(all, GivenUp::default());
        all.note(mark("A", "pci1"), Ill::Hangs);
        all.note(mark("A", "pci2"), Ill::Fails);
        assert_eq!((all.0.len(), all.0[0].ill), (1, Ill::Fails));
        let json = serde_json::to_string(&all).expect("text");
        assert_eq!(serde_json::from_str::<GivenUp>(&json).expect("read"), all);
    }
}
