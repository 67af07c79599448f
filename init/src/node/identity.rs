//! The node's identity: an ed25519 seed, made once, kept in two copies.
//!
//! Owns: the two files below `identity/` and how one heals the other, and how a pool gets them from another.
//! Refuses: making a new identity while any trace of an old one is there, and to be stopped by a bad copy
//! while the other is good.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use storage::assemble::Trace;

/// Name of the file format, and of what the checksum covers.
const MAGIC: &[u8; 8] = b"SIFRID01";
/// Magic, seed, BLAKE3 of both.
const FILE_BYTES: usize = 8 + 32 + 32;

#[derive(Debug, thiserror::Error)]
pub(crate) enum IdentityError {
    #[error("read the identity {path}")]
    Read { path: PathBuf, source: io::Error },
    #[error("make the directory {path}")]
    Directory { path: PathBuf, source: io::Error },
    #[error("write the identity")]
    Write { source: sys::error::Error },
    #[error("draw a new identity from the kernel's random numbers")]
    Random { source: sys::error::Error },
    #[error(
        "both copies of the identity below {path} are damaged: this disk is failing. The node keeps no new identity \
         over an old one; blank the disk elsewhere to begin anew"
    )]
    Damaged { path: PathBuf },
}

enum Copy {
    Absent,
    Damaged,
    /// The disk does not give it.
    Unreadable(IdentityError),
    Good([u8; 32]),
}

/// The identity in `pool`.
#[derive(Debug)]
pub(crate) struct Identity {
    pub(crate) seed: [u8; 32],
    /// What was wrong with a copy, and whether that has been mended.
    pub(crate) problems: Vec<String>,
}

/// The identity of a node with several pools: that of its first one, or, where that has lost it, of another that has it; made
/// now if there is none anywhere.
pub(crate) fn of_the_node(first: &Path, further: &[PathBuf]) -> Result<Identity, IdentityError> {
    let whole = |pool: &&Path| matches!(trace(pool), Trace::Key(_));
    let others = further.iter().map(PathBuf::as_path);
    let source = std::iter::once(first).chain(others).find(whole);
    let Some(source) = source.filter(|source| *source != first) else {
        return load_or_make(first);
    };
    let mut identity = load_or_make(source)?;
    keep(first, &identity.seed)?;
    identity.problems.push(format!(
        "the identity in {} was lost or damaged: it has been restored from {}",
        first.display(),
        source.display()
    ));
    Ok(identity)
}

/// Gives the node's identity to every other pool that has not got it. Says where that could not be done.
pub(crate) fn share(seed: &[u8; 32], further: &[PathBuf]) -> Vec<String> {
    let key = api::sign::SecretKey::from_seed(*seed).public();
    let lacks = |pool: &&PathBuf| trace(pool) != Trace::Key(key);
    let give = |pool: &PathBuf| {
        let error = keep(pool, seed).err()?;
        let (place, why) = (pool.display(), sys::error::chain(&error));
        Some(format!(
            "the pool in {place} does not take the identity: {why}"
        ))
    };
    further.iter().filter(lacks).filter_map(give).collect()
}

/// Whose pool it is.
pub(crate) fn trace(pool: &Path) -> Trace {
    let copies = ["a", "b"].map(|copy| read(&pool.join("identity").join(copy)));
    match copies {
        [Copy::Good(seed), _] | [_, Copy::Good(seed)] => {
            Trace::Key(api::sign::SecretKey::from_seed(seed).public())
        }
        [Copy::Absent, Copy::Absent] => Trace::Nothing,
        [Copy::Damaged | Copy::Unreadable(_), _] | [_, Copy::Damaged | Copy::Unreadable(_)] => {
            Trace::Damaged
        }
    }
}

/// The identity in `pool`, made now if there is none: then both copies are on disk when this returns.
/// Of an old one a bad copy is mended where it can be.
pub(crate) fn load_or_make(pool: &Path) -> Result<Identity, IdentityError> {
    let paths = ["a", "b"].map(|copy| pool.join("identity").join(copy));
    let copies = [read(&paths[0]), read(&paths[1])];
    let seed = match copies {
        [Copy::Good(seed), _] | [_, Copy::Good(seed)] => seed,
        [Copy::Absent, Copy::Absent] => {
            let seed = draw()?;
            keep(pool, &seed)?;
            return Ok(Identity {
                seed,
                problems: Vec::new(),
            });
        }
        [Copy::Unreadable(error), _] | [_, Copy::Unreadable(error)] => return Err(error),
        [Copy::Damaged, Copy::Absent | Copy::Damaged] | [Copy::Absent, Copy::Damaged] => {
            return Err(IdentityError::Damaged {
                path: pool.join("identity"),
            });
        }
    };
    let bad = paths.iter().zip(&copies);
    let problems = bad.filter_map(|(path, copy)| mend(path, copy, &seed));
    Ok(Identity {
        seed,
        problems: problems.collect(),
    })
}

/// The identity in a place that has one. Nothing is made.
pub(crate) fn load(place: &Path) -> Result<[u8; 32], IdentityError> {
    let copies = ["a", "b"].map(|copy| read(&place.join("identity").join(copy)));
    match copies {
        [Copy::Good(seed), _] | [_, Copy::Good(seed)] => Ok(seed),
        [Copy::Unreadable(error), _] | [_, Copy::Unreadable(error)] => Err(error),
        [Copy::Absent | Copy::Damaged, Copy::Absent | Copy::Damaged] => {
            Err(IdentityError::Damaged {
                path: place.join("identity"),
            })
        }
    }
}

/// Gives a pool that has no identity this one. Both copies are on disk when this returns.
pub(crate) fn keep(pool: &Path, seed: &[u8; 32]) -> Result<(), IdentityError> {
    let paths = ["a", "b"].map(|copy| pool.join("identity").join(copy));
    paths.iter().try_for_each(|path| write(path, seed))
}

/// Writes a copy that is not what it should be. Says what was wrong with it and what came of that.
fn mend(path: &Path, copy: &Copy, seed: &[u8; 32]) -> Option<String> {
    let what = match copy {
        Copy::Good(held) if held == seed => return None,
        Copy::Good(_) => "is another identity".to_owned(),
        Copy::Absent => "was missing".to_owned(),
        Copy::Damaged => "was damaged".to_owned(),
        Copy::Unreadable(error) => format!("cannot be read ({})", sys::error::chain(error)),
    };
    let done = match write(path, seed) {
        Ok(()) => "it has been made anew from the other copy".to_owned(),
        Err(error) => format!(
            "it cannot be made anew: {}; the other copy is good",
            sys::error::chain(&error)
        ),
    };
    Some(format!("the identity {} {what}: {done}", path.display()))
}

fn draw() -> Result<[u8; 32], IdentityError> {
    let mut seed = [0; 32];
    sys::random::fill(&mut seed).map_err(|source| IdentityError::Random { source })?;
    Ok(seed)
}

fn read(path: &Path) -> Copy {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Copy::Absent,
        Err(source) => {
            return Copy::Unreadable(IdentityError::Read {
                path: path.to_owned(),
                source,
            });
        }
    };
    let Ok(bytes): Result<[u8; FILE_BYTES], _> = bytes.try_into() else {
        return Copy::Damaged;
    };
    let (body, sum) = bytes.split_at(40);
    let whole = body.starts_with(MAGIC) && blake3::hash(body).as_bytes() == sum;
    let seed = body[8..].try_into().expect("40 bytes less 8 are 32");
    if whole {
        Copy::Good(seed)
    } else {
        Copy::Damaged
    }
}

fn write(path: &Path, seed: &[u8; 32]) -> Result<(), IdentityError> {
    let directory = path.parent().expect("the path was joined from two parts");
    fs::create_dir_all(directory).map_err(|source| IdentityError::Directory {
        path: directory.to_owned(),
        source,
    })?;
    let mut bytes = [MAGIC.as_slice(), seed].concat();
    bytes.extend_from_slice(blake3::hash(&bytes).as_bytes());
    sys::fs::write_atomic(path, &bytes, 0o600).map_err(|source| IdentityError::Write { source })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seed_in(pool: &Path) -> [u8; 32] {
        load_or_make(pool).expect("an identity").seed
    }

    #[test]
    fn an_identity_is_made_once() {
        let pool = tempfile::tempdir().expect("a directory");
        let seed = seed_in(pool.path());
        assert_eq!(seed_in(pool.path()), seed);
        let other = tempfile::tempdir().expect("a directory");
        assert_ne!(seed_in(other.path()), seed);
    }

    #[test]
    fn a_copy_that_cannot_be_read_does_not_stop_the_node_and_is_said() {
        for bad in ["a", "b"] {
            let pool = tempfile::tempdir().expect("a directory");
            let seed = seed_in(pool.path());
            // A directory in its place: reading it fails as a bad sector does.
            let path = pool.path().join("identity").join(bad);
            fs::remove_file(&path).expect("removed");
            fs::create_dir(&path).expect("in its place");
            let found = load_or_make(pool.path()).expect("the other copy is good");
            assert_eq!(found.seed, seed);
            assert!(
                found.problems.len() == 1 && found.problems[0].contains("cannot be read"),
                "{:?}",
                found.problems
            );
            fs::remove_dir(&path).expect("removed");
            seed_in(pool.path());
            assert!(path.is_file());
        }
    }

    #[test]
    fn a_copy_that_cannot_be_read_beside_none_makes_no_new_identity() {
        let pool = tempfile::tempdir().expect("a directory");
        fs::create_dir_all(pool.path().join("identity/a")).expect("in its place");
        let error = load_or_make(pool.path()).expect_err("a trace of an identity");
        assert!(matches!(error, IdentityError::Read { .. }), "{error}");
        assert!(!pool.path().join("identity/b").exists());
    }

    #[test]
    fn either_copy_heals_the_other() {
        let pool = tempfile::tempdir().expect("a directory");
        let seed = seed_in(pool.path());
        let copies = ["a", "b"].map(|c| pool.path().join("identity").join(c));
        for (damage, witness) in [(0, 1), (1, 0)] {
            for content in [None, Some(b"torn".as_slice())] {
                match content {
                    None => fs::remove_file(&copies[damage]).expect("removed"),
                    Some(bytes) => fs::write(&copies[damage], bytes).expect("written"),
                }
                assert_eq!(seed_in(pool.path()), seed);
                assert_eq!(
                    fs::read(&copies[damage]).ok(),
                    fs::read(&copies[witness]).ok()
                );
            }
        }
    }

    #[test]
    fn of_several_pools_the_one_that_has_the_identity_gives_it_to_the_others() {
        let pools = [(); 3].map(|()| tempfile::tempdir().expect("a directory"));
        let [first, further @ ..] = pools.each_ref().map(|pool| pool.path().to_owned());
        let seed = of_the_node(&first, &further).expect("an identity").seed;
        assert_eq!(trace(&further[0]), Trace::Nothing);
        assert_eq!(share(&seed, &further), Vec::<String>::new());
        for damage in [true, false] {
            if damage {
                for copy in ["a", "b"] {
                    fs::write(first.join("identity").join(copy), "torn").expect("written");
                }
                assert_eq!(trace(&first), Trace::Damaged);
            } else {
                fs::remove_dir_all(first.join("identity")).expect("removed");
            }
            let found = of_the_node(&first, &further).expect("an identity");
            assert!(found.seed == seed && found.problems.len() == 1, "{found:?}");
            assert_eq!(seed_in(&first), seed);
        }
    }

    #[test]
    fn a_damaged_identity_is_never_replaced_by_a_new_one() {
        let pool = tempfile::tempdir().expect("a directory");
        load_or_make(pool.path()).expect("an identity");
        for copy in ["a", "b"] {
            let path = pool.path().join("identity").join(copy);
            let mut bytes = fs::read(&path).expect("a copy");
            bytes[20] ^= 1;
            fs::write(&path, bytes).expect("written");
        }
        assert!(matches!(
            load_or_make(pool.path()),
            Err(IdentityError::Damaged { .. })
        ));
    }
}
