//! The node's identity: an ed25519 seed, made once, kept in two copies.
//!
//! Owns: the two files below `identity/` and how one heals the other.
//! Refuses: making a new identity while any trace of an old one is there.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

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
    Good([u8; 32]),
}

/// The seed in `pool`, made now if there is none. Both copies are whole and on disk when this returns.
pub(crate) fn load_or_make(pool: &Path) -> Result<[u8; 32], IdentityError> {
    let paths = ["a", "b"].map(|copy| pool.join("identity").join(copy));
    let [first, second] = [read(&paths[0])?, read(&paths[1])?];
    let seed = match (&first, &second) {
        (Copy::Good(seed), _) | (_, Copy::Good(seed)) => *seed,
        (Copy::Absent, Copy::Absent) => draw()?,
        (Copy::Damaged, Copy::Absent | Copy::Damaged) | (Copy::Absent, Copy::Damaged) => {
            return Err(IdentityError::Damaged {
                path: pool.join("identity"),
            });
        }
    };
    for (path, copy) in paths.iter().zip([first, second]) {
        if !matches!(copy, Copy::Good(held) if held == seed) {
            write(path, &seed)?;
        }
    }
    Ok(seed)
}

fn draw() -> Result<[u8; 32], IdentityError> {
    let mut seed = [0; 32];
    sys::random::fill(&mut seed).map_err(|source| IdentityError::Random { source })?;
    Ok(seed)
}

fn read(path: &Path) -> Result<Copy, IdentityError> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Copy::Absent),
        Err(source) => {
            return Err(IdentityError::Read {
                path: path.to_owned(),
                source,
            });
        }
    };
    let Ok(bytes): Result<[u8; FILE_BYTES], _> = bytes.try_into() else {
        return Ok(Copy::Damaged);
    };
    let (body, sum) = bytes.split_at(40);
    let whole = body.starts_with(MAGIC) && blake3::hash(body).as_bytes() == sum;
    let seed = body[8..].try_into().expect("40 bytes less 8 are 32");
    Ok(if whole {
        Copy::Good(seed)
    } else {
        Copy::Damaged
    })
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

    #[test]
    fn an_identity_is_made_once() {
        let pool = tempfile::tempdir().expect("a directory");
        let seed = load_or_make(pool.path()).expect("an identity");
        assert_eq!(load_or_make(pool.path()).expect("the identity"), seed);
        let other = tempfile::tempdir().expect("a directory");
        assert_ne!(load_or_make(other.path()).expect("another identity"), seed);
    }

    #[test]
    fn either_copy_heals_the_other() {
        let pool = tempfile::tempdir().expect("a directory");
        let seed = load_or_make(pool.path()).expect("an identity");
        let copies = ["a", "b"].map(|c| pool.path().join("identity").join(c));
        for (damage, witness) in [(0, 1), (1, 0)] {
            for content in [None, Some(b"torn".as_slice())] {
                match content {
                    None => fs::remove_file(&copies[damage]).expect("removed"),
                    Some(bytes) => fs::write(&copies[damage], bytes).expect("written"),
                }
                assert_eq!(load_or_make(pool.path()).expect("the identity"), seed);
                assert_eq!(
                    fs::read(&copies[damage]).ok(),
                    fs::read(&copies[witness]).ok()
                );
            }
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
