//! The description of a pool: `pool.json`, and a second copy of it.
//!
//! Owns: both files, and how one mends the other.
//! Refuses: a pool of another format or owner, and to guess where the two contradict each other.

use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use types::PublicKey;

use crate::pool::{FORMAT, PoolError};
use crate::roster::PoolId;

/// Names of the copies; the first is written first.
const FILES: [&str; 2] = ["pool.json", "pool.json.copy"];
/// What a power cut may leave of them ([`sys::fs::write_atomic`]).
const UNFINISHED: [&str; 2] = ["pool.json.new", "pool.json.copy.new"];

/// The content of either file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Marker {
    format: u32,
    /// 32 random hexadecimal digits: tells pools apart in reports.
    id: String,
    owner: PublicKey,
}

/// What every format has.
#[derive(Deserialize)]
struct AnyFormat {
    format: u32,
}

enum Copy {
    Absent,
    Damaged,
    /// Whole, and of another format.
    Other,
    /// The disk does not give it.
    Unreadable(PoolError),
    Good(Marker),
}

/// The description of the pool mounted here, of this owner.
#[derive(Debug)]
pub(crate) struct Found {
    marker: Marker,
    /// The copies that are not as they should be, and what is wrong with them.
    bad: Vec<(PathBuf, String)>,
}

/// Reads both copies. `None` where there is none at all. `disk` is for people.
pub(crate) fn find(
    disk: &str,
    owner: &PublicKey,
    mountpoint: &Path,
) -> Result<Option<Found>, PoolError> {
    let paths = FILES.map(|name| mountpoint.join(name));
    let format = |path: &Path| PoolError::Format {
        path: path.to_owned(),
    };
    let [first, second] = [read(&paths[0]), read(&paths[1])];
    let marker = match (&first, &second) {
        (Copy::Other, _) => return Err(format(&paths[0])),
        (_, Copy::Other) => return Err(format(&paths[1])),
        (Copy::Good(a), Copy::Good(b)) if a != b => {
            return Err(PoolError::Contradiction {
                path: mountpoint.to_owned(),
            });
        }
        (Copy::Good(marker), _) | (_, Copy::Good(marker)) => marker.clone(),
        (Copy::Absent, Copy::Absent) => return Ok(None),
        (Copy::Absent | Copy::Damaged, Copy::Absent | Copy::Damaged) => {
            return Err(format(&paths[0]));
        }
        (Copy::Unreadable(_), _) | (_, Copy::Unreadable(_)) => {
            let error = [first, second].into_iter().find_map(Copy::error);
            return Err(error.unwrap_or_else(|| format(&paths[0])));
        }
    };
    if marker.owner != *owner {
        return Err(PoolError::Owner {
            device: disk.to_owned(),
            owner: marker.owner,
        });
    }
    let bad = paths.into_iter().zip([first, second]);
    let bad = bad.filter_map(|(path, copy)| Some((path, copy.fault()?)));
    Ok(Some(Found {
        marker,
        bad: bad.collect(),
    }))
}

impl Copy {
    fn error(self) -> Option<PoolError> {
        match self {
            Self::Unreadable(error) => Some(error),
            Self::Absent | Self::Damaged | Self::Other | Self::Good(_) => None,
        }
    }

    fn fault(self) -> Option<String> {
        match self {
            Self::Good(_) => None,
            Self::Absent => Some("was missing".to_owned()),
            Self::Damaged | Self::Other => Some("was damaged".to_owned()),
            Self::Unreadable(error) => {
                Some(format!("cannot be read ({})", sys::error::chain(&error)))
            }
        }
    }
}

impl Found {
    pub(crate) fn id(&self) -> &str {
        &self.marker.id
    }

    /// Writes bad copies again. Says what was wrong and what came of it; a copy that cannot be written is
    /// no reason to do without the pool.
    pub(crate) fn mend(&self) -> Vec<String> {
        let mend = |(path, fault): &(PathBuf, String)| {
            let done = match write(path, &self.marker) {
                Ok(()) => "it has been made anew from the other copy".to_owned(),
                Err(error) => format!(
                    "it cannot be made anew: {}; the other copy is good",
                    sys::error::chain(&error)
                ),
            };
            format!("{} {fault}: {done}", path.display())
        };
        self.bad.iter().map(mend).collect()
    }
}

/// Describes a pool that holds nothing yet. Gives its id.
pub(crate) fn make(owner: &PublicKey, mountpoint: &Path) -> Result<PoolId, PoolError> {
    let mut id = [0; 16];
    sys::random::fill(&mut id).map_err(|source| PoolError::Random { source })?;
    let marker = Marker {
        format: FORMAT,
        id: id.iter().map(|b| format!("{b:02x}")).collect(),
        owner: *owner,
    };
    FILES
        .iter()
        .try_for_each(|name| write(&mountpoint.join(name), &marker))?;
    Ok(marker.id)
}

/// Whether the file system holds nothing but what [`make`] may have left half-done, and `given`: what comes to a pool
/// before its description does.
pub(crate) fn is_empty(mountpoint: &Path, given: &[&str]) -> Result<bool, PoolError> {
    let names = std::fs::read_dir(mountpoint).and_then(|entries| {
        entries
            .map(|entry| entry.map(|entry| entry.file_name()))
            .collect::<io::Result<Vec<_>>>()
    });
    let names = names.map_err(|source| PoolError::Unreadable {
        path: mountpoint.to_owned(),
        source,
    })?;
    let left = UNFINISHED.iter().chain(given);
    let left = |name: &std::ffi::OsString| left.clone().any(|left| name == left);
    Ok(names.iter().all(left))
}

/// When the pool was made: a copy that was mended is younger than the other.
pub(crate) fn made(mountpoint: &Path) -> SystemTime {
    let modified = |name: &&str| mountpoint.join(name).metadata()?.modified();
    let times = FILES.iter().filter_map(|name| modified(name).ok());
    times.min().unwrap_or_else(SystemTime::now)
}

fn read(path: &Path) -> Copy {
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Copy::Absent,
        Err(source) => {
            return Copy::Unreadable(PoolError::Unreadable {
                path: path.to_owned(),
                source,
            });
        }
    };
    match serde_json::from_slice::<AnyFormat>(&bytes) {
        Ok(any) if any.format != FORMAT => Copy::Other,
        Ok(_) | Err(_) => serde_json::from_slice(&bytes).map_or(Copy::Damaged, Copy::Good),
    }
}

fn write(path: &Path, marker: &Marker) -> Result<(), PoolError> {
    let json = serde_json::to_vec_pretty(marker).expect("a marker has no unserialisable part");
    sys::fs::write_atomic(path, &json, 0o600).map_err(|source| PoolError::Marker {
        path: path.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    const OWNER: PublicKey = PublicKey([0xcd; 32]);

    fn pool() -> (tempfile::TempDir, [PathBuf; 2]) {
        let pool = tempfile::tempdir().expect("a directory");
        make(&OWNER, pool.path()).expect("made");
        let paths = FILES.map(|name| pool.path().join(name));
        (pool, paths)
    }

    fn found(pool: &Path) -> Found {
        find("vda", &OWNER, pool)
            .expect("readable")
            .expect("a description")
    }

    #[test]
    fn either_copy_mends_the_other_whatever_happened_to_it() {
        type Damage = fn(&Path);
        let damage: [(&str, Damage); 3] = [
            ("missing", |path| fs::remove_file(path).expect("removed")),
            ("damaged", |path| fs::write(path, "{").expect("written")),
            ("cannot be read", |path| {
                fs::remove_file(path).expect("removed");
                fs::create_dir(path).expect("in its place");
            }),
        ];
        for bad in [0, 1] {
            for (what, damage) in damage {
                let (pool, paths) = pool();
                let before = fs::read(&paths[bad]).expect("a copy");
                damage(&paths[bad]);
                let said = found(pool.path()).mend();
                assert!(
                    said.len() == 1 && said[0].contains(what),
                    "{what}: {said:?}"
                );
                if paths[bad].is_dir() {
                    assert!(said[0].contains("cannot be made anew"), "{said:?}");
                    fs::remove_dir(&paths[bad]).expect("removed");
                    found(pool.path()).mend();
                }
                assert_eq!(fs::read(&paths[bad]).expect("mended"), before);
                assert!(found(pool.path()).mend().is_empty());
            }
        }
    }

    #[test]
    fn a_description_of_which_no_copy_is_good_is_refused() {
        let (pool, paths) = pool();
        fs::remove_file(&paths[0]).expect("removed");
        fs::write(&paths[1], "{").expect("written");
        let refused = find("vda", &OWNER, pool.path());
        assert!(matches!(refused, Err(PoolError::Format { .. })));
        fs::create_dir(&paths[0]).expect("in its place");
        let refused = find("vda", &OWNER, pool.path());
        assert!(matches!(refused, Err(PoolError::Unreadable { .. })));
    }

    #[test]
    fn a_copy_from_the_future_is_not_mended_with_the_past() {
        let (pool, paths) = pool();
        let newer = r#"{"format": 2, "whatever": []}"#;
        fs::write(&paths[1], newer).expect("written");
        let refused = find("vda", &OWNER, pool.path());
        assert!(matches!(refused, Err(PoolError::Format { path }) if path == paths[1]));
    }

    #[test]
    fn copies_that_contradict_each_other_are_not_chosen_between() {
        let (pool, paths) = pool();
        let (other, theirs) = self::pool();
        fs::copy(&theirs[1], &paths[1]).expect("copied");
        let refused = find("vda", &OWNER, pool.path());
        assert!(matches!(refused, Err(PoolError::Contradiction { .. })));
        drop(other);
    }
}
