//! Which pools belong to one node: `members.json` in each of them.
//!
//! Owns: the file, its checksum and its sequence. Refuses: deciding what follows from several of them
//! ([`crate::assemble`] does), and to keep a node down over a file that is damaged: it is made again.
//!
//! The file is as good as the pool that it lies in: it names pools, and gives no right to any.

use std::io::Read;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use types::PublicKey;
use types::node::DiskClass;

/// Pools of one node: more disks than a server has, and a bound on the file.
pub const MEMBERS_MAX: usize = 64;
const FILE: &str = "members.json";
/// Longest file that is read: [`MEMBERS_MAX`] members with serials and models as long as they come.
const FILE_BYTES_MAX: u64 = 64 << 10;
const FORMAT: u32 = 1;

/// The id of a pool, as its `pool.json` says: 32 hexadecimal digits.
pub type PoolId = String;

/// A pool of the node, there or not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Member {
    pub pool: PoolId,
    /// Of the disk that it was on last; empty where that says none.
    pub serial: String,
    pub model: String,
    /// As the disk said when the pool joined. It is believed for good: a disk that calls itself another kind one day is
    /// the same disk.
    pub class: DiskClass,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Roster {
    /// Counts up with every change. Of two rosters the higher one knows more.
    pub sequence: u64,
    /// The node's identity.
    pub node: PublicKey,
    /// Where images and new machines go, when it is there.
    pub primary: PoolId,
    /// By id.
    pub members: Vec<Member>,
    /// Which of them were there last, by id.
    pub present: Vec<PoolId>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    format: u32,
    roster: Roster,
    /// BLAKE3 of the roster as compact JSON, in hexadecimal.
    checksum: String,
}

fn checksum(roster: &Roster) -> String {
    let json = serde_json::to_vec(roster).expect("a roster has no unserialisable part");
    blake3::hash(&json).to_hex().to_string()
}

fn path(pool: &Path) -> PathBuf {
    pool.join(FILE)
}

impl Roster {
    pub fn member(&self, pool: &str) -> Option<&Member> {
        self.members.iter().find(|member| member.pool == pool)
    }

    /// What lies in a pool. `None`: there is none, or none that counts.
    pub fn read(pool: &Path) -> Option<Self> {
        let mut bytes = Vec::new();
        let file = std::fs::File::open(path(pool)).ok()?;
        file.take(FILE_BYTES_MAX).read_to_end(&mut bytes).ok()?;
        Self::parse(&bytes)
    }

    pub(crate) fn parse(bytes: &[u8]) -> Option<Self> {
        let file: File = serde_json::from_slice(bytes).ok()?;
        let Roster { members, .. } = &file.roster;
        let sane = file.format == FORMAT && members.len() <= MEMBERS_MAX;
        let rising = members.windows(2).all(|two| two[0].pool < two[1].pool);
        let whole = sane && rising && checksum(&file.roster) == file.checksum;
        whole.then_some(file.roster)
    }

    /// Durable when this returns. What is there already stays.
    pub fn write(&self, pool: &Path) -> sys::Result<()> {
        if Self::read(pool).as_ref() == Some(self) {
            return Ok(());
        }
        let file = File {
            format: FORMAT,
            roster: self.clone(),
            checksum: checksum(self),
        };
        let json = serde_json::to_vec_pretty(&file).expect("a roster has no unserialisable part");
        sys::fs::write_atomic(&path(pool), &json, 0o600)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn roster() -> Roster {
        let member = |pool: &str| Member {
            pool: pool.to_owned(),
            serial: "S".to_owned(),
            model: String::new(),
            class: DiskClass::Ssd,
        };
        Roster {
            sequence: 3,
            node: PublicKey([7; 32]),
            primary: "a".to_owned(),
            members: vec![member("a"), member("b")],
            present: vec!["a".to_owned()],
        }
    }

    #[test]
    fn a_roster_is_read_as_it_was_written() {
        let pool = tempfile::tempdir().expect("a directory");
        assert_eq!(Roster::read(pool.path()), None);
        roster().write(pool.path()).expect("written");
        assert_eq!(Roster::read(pool.path()), Some(roster()));
    }

    proptest! {
        #[test]
        fn a_roster_with_a_changed_byte_means_the_same_or_nothing(at in 0usize..2000, to in any::<u8>()) {
            let pool = tempfile::tempdir().expect("a directory");
            roster().write(pool.path()).expect("written");
            let mut bytes = std::fs::read(path(pool.path())).expect("a file");
            let at = at % bytes.len();
            bytes[at] = to;
            let read = Roster::parse(&bytes);
            prop_assert!(read.is_none() || read == Some(roster()));
        }
    }
}
