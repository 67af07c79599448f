//! Room on the pool: what is free and promised to nobody.
//!
//! Owns: the one sum that the node and the chunk daemon both go by, and the file in which the node says what
//! it has promised.
//! Refuses: promising (`workload::admission` decides) and making room (`node::server` sweeps).
//!
//! Writable layers and the disks of images are sparse: they take their room as they are used. What they were
//! promised and have not taken yet is not free, whatever the file system says.

use std::collections::BTreeMap;
use std::fs::{DirEntry, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use types::{Bytes, Digest, VmId, VolumeId};

/// Left free beside all promises: the ledger, records and the clock go on. Both copies of the ledger with
/// their reserves fit eight times.
pub(crate) const HEADROOM: Bytes = Bytes::mib(64);
/// The promises of this boot, in a directory of their own: the chunk daemon, a user of its own, may read it and list
/// the machines, and nothing else of the node's.
pub(crate) const PROMISES_DIRECTORY: &str = "/run/sifr/room";
const PROMISES: &str = "promises.json";
const LISTABLE: u32 = 0o755;
const READABLE: u32 = 0o644;

/// What the ledger's deployments may come to take.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Promises {
    /// Everything below `machines/<vm id>/`.
    pub(crate) machines: BTreeMap<VmId, Bytes>,
    /// Everything below `volumes/<volume id>/`.
    #[serde(default)]
    pub(crate) volumes: BTreeMap<VolumeId, Bytes>,
    /// `images/<hex>.img`, where its size is known.
    pub(crate) images: BTreeMap<Digest, Bytes>,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum RoomError {
    #[error("ask how much of the pool {path} is free")]
    Free { path: PathBuf, source: io::Error },
    #[error("read the promises {path}")]
    Read { path: PathBuf, source: io::Error },
    #[error("write the promises {path}")]
    Write { path: PathBuf, source: io::Error },
    #[error("the promises {path} are not of this build")]
    Form {
        path: PathBuf,
        source: serde_json::Error,
    },
}

/// Paths only: cheap to clone, holds nothing open.
#[derive(Debug, Clone)]
pub(crate) struct Room {
    pool: PathBuf,
    promises: PathBuf,
}

impl Room {
    pub(crate) fn of_the_node(pool: &Path) -> Self {
        Self::new(pool, &Path::new(PROMISES_DIRECTORY).join(PROMISES))
    }

    /// Of a pool beside the first. The chunk daemon has nothing there.
    pub(crate) fn of_a_further(pool: &Path, id: &str) -> Self {
        let promises = Path::new(PROMISES_DIRECTORY).join(format!("{id}.json"));
        Self::new(pool, &promises)
    }

    pub(crate) fn new(pool: &Path, promises: &Path) -> Self {
        Self {
            pool: pool.to_owned(),
            promises: promises.to_owned(),
        }
    }

    /// Bytes that are promised to nobody.
    pub(crate) fn left(&self) -> Result<u64, RoomError> {
        self.left_to(None)
    }

    /// The same for who is about to make this image: it may use what the image was promised.
    pub(crate) fn left_for(&self, image: &Digest) -> Result<u64, RoomError> {
        self.left_to(Some(image))
    }

    /// Whether the disk of this image is there, or promised.
    pub(crate) fn holds(&self, image: &Digest) -> Result<bool, RoomError> {
        let promised = self.promises()?.images.contains_key(image);
        Ok(promised || self.images().contains_key(image))
    }

    fn left_to(&self, image: Option<&Digest>) -> Result<u64, RoomError> {
        let promised = self.promised(image)?;
        Ok(self
            .free()?
            .saturating_sub(promised)
            .saturating_sub(HEADROOM.0))
    }

    /// What is not free although nothing has taken it; `image` is passed over.
    fn promised(&self, image: Option<&Digest>) -> Result<u64, RoomError> {
        let mut promises = self.promises()?;
        let mut images = self.images();
        if let Some(image) = image {
            promises.images.remove(image);
            images.remove(image);
        }
        let machines = untaken(&promises.machines, &self.machines());
        let volumes = untaken(&promises.volumes, &self.volumes());
        let images = untaken(&promises.images, &images);
        Ok(machines.saturating_add(volumes).saturating_add(images))
    }

    fn free(&self) -> Result<u64, RoomError> {
        let stat = nix::sys::statvfs::statvfs(&self.pool).map_err(|errno| RoomError::Free {
            path: self.pool.clone(),
            source: errno.into(),
        })?;
        Ok(stat.blocks_available().saturating_mul(stat.fragment_size()))
    }

    /// None have been made, where there is no file: the node writes it before it promises anything.
    fn promises(&self) -> Result<Promises, RoomError> {
        let bytes = match std::fs::read(&self.promises) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Promises::default()),
            read => read.map_err(|source| RoomError::Read {
                path: self.promises.clone(),
                source,
            })?,
        };
        serde_json::from_slice(&bytes).map_err(|source| RoomError::Form {
            path: self.promises.clone(),
            source,
        })
    }

    /// Replaces the promises by one rename. They are as short-lived as the boot: nothing is synced.
    pub(crate) fn promise(&self, promises: &Promises) -> Result<(), RoomError> {
        let write = || {
            if let Some(directory) = self.promises.parent() {
                std::fs::create_dir_all(directory)?;
                permit(directory, LISTABLE)?;
            }
            let new = self.promises.with_extension("new");
            std::fs::write(&new, serde_json::to_vec(promises)?)?;
            permit(&new, READABLE)?;
            std::fs::rename(new, &self.promises)
        };
        write().map_err(|source| RoomError::Write {
            path: self.promises.clone(),
            source,
        })
    }

    fn machines(&self) -> BTreeMap<VmId, Taken> {
        self.below("machines", Taken::and)
    }

    /// Files of a volume share blocks, and each is said to take them: what the largest takes is taken for sure.
    fn volumes(&self) -> BTreeMap<VolumeId, Taken> {
        self.below("volumes", Taken::shared_with)
    }

    fn below(&self, name: &str, add: fn(Taken, Taken) -> Taken) -> BTreeMap<VmId, Taken> {
        let taken = |owner: &DirEntry| {
            let files = list(&owner.path());
            let files = files.iter().filter_map(Taken::by);
            files.fold(Taken::default(), add)
        };
        list(&self.pool.join(name))
            .iter()
            .filter_map(|m| Some((m.file_name().to_str()?.parse().ok()?, taken(m))))
            .collect()
    }

    fn images(&self) -> BTreeMap<Digest, Taken> {
        let digest = |file: &DirEntry| {
            Digest::from_hex(file.file_name().to_str()?.strip_suffix(".img")?).ok()
        };
        list(&self.pool.join("images"))
            .iter()
            .filter_map(|file| Some((digest(file)?, Taken::by(file)?)))
            .collect()
    }
}

fn permit(path: &Path, mode: u32) -> io::Result<()> {
    std::fs::set_permissions(path, Permissions::from_mode(mode))
}

/// Lets other users of the node list a directory; its files stay their owner's.
pub(crate) fn make_listable(directory: &Path) -> io::Result<()> {
    permit(directory, LISTABLE)
}

/// What cannot be listed has taken nothing: then all that was promised counts.
fn list(directory: &Path) -> Vec<DirEntry> {
    std::fs::read_dir(directory)
        .into_iter()
        .flatten()
        .flatten()
        .collect()
}

/// What files have taken of the disk, and how long they are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Taken {
    bytes: u64,
    length: u64,
}

impl Taken {
    fn by(file: &DirEntry) -> Option<Self> {
        let metadata = file.metadata().ok()?;
        Some(Self {
            bytes: metadata.blocks().saturating_mul(512),
            length: metadata.len(),
        })
    }

    fn shared_with(self, other: Self) -> Self {
        Self {
            bytes: self.bytes.max(other.bytes),
            ..self.and(other)
        }
    }

    fn and(self, other: Self) -> Self {
        Self {
            bytes: self.bytes.saturating_add(other.bytes),
            length: self.length.saturating_add(other.length),
        }
    }
}

/// What is promised and not taken. What is there without a promise (on its way out, or nobody can tell whose)
/// may still grow to its length.
fn untaken<K: Ord>(promised: &BTreeMap<K, Bytes>, taken: &BTreeMap<K, Taken>) -> u64 {
    let of = |key: &K| taken.get(key).copied().unwrap_or_default();
    let promises = promised
        .iter()
        .map(|(key, promise)| promise.0.saturating_sub(of(key).bytes));
    let others = taken
        .iter()
        .filter(|(key, _)| !promised.contains_key(key))
        .map(|(_, taken)| taken.length.saturating_sub(taken.bytes));
    promises.chain(others).fold(0, u64::saturating_add)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, File};
    use std::os::unix::fs::FileExt;

    fn vm(name: &str) -> VmId {
        name.parse().expect("an id")
    }

    #[test]
    fn what_is_promised_and_not_taken_is_not_free() {
        let taken = |bytes, length| Taken { bytes, length };
        let promised = BTreeMap::from([("made", Bytes(100)), ("unmade", Bytes(50))]);
        let found = BTreeMap::from([("made", taken(30, 100)), ("leaving", taken(5, 20))]);
        assert_eq!(untaken(&promised, &found), 70 + 50 + 15);
        let found = BTreeMap::from([("made", taken(130, 100))]);
        assert_eq!(untaken(&promised, &found), 50);
    }

    #[test]
    fn a_promise_is_kept_from_others_until_its_file_has_taken_it() {
        const MIB: u64 = 1 << 20;
        let pool = tempfile::tempdir().expect("a directory");
        let run = tempfile::tempdir().expect("a directory");
        let room = Room::new(pool.path(), &run.path().join("promises.json"));
        let image = Digest([1; 32]);
        let promises = Promises {
            machines: [(vm("web-shop-01010101"), Bytes(8 * MIB))].into(),
            volumes: BTreeMap::new(),
            images: [(image, Bytes(16 * MIB))].into(),
        };
        let promised = |image| room.promised(image).expect("readable");
        assert_eq!(promised(None), 0);
        room.promise(&promises).expect("promised");
        assert_eq!(promised(None), 24 * MIB);
        assert_eq!(promised(Some(&image)), 8 * MIB);
        fs::create_dir_all(pool.path().join("images")).expect("a directory");
        let file = File::create(pool.path().join(format!("images/{}.img", image.hex())));
        let file = file.expect("a file");
        file.set_len(64 * MIB).expect("a length");
        assert_eq!(promised(None), 24 * MIB);
        file.write_all_at(&vec![7; 16 << 20], 0).expect("written");
        file.sync_all().expect("synced");
        assert_eq!(promised(None), 8 * MIB);
        // Once nobody names it, it may still grow to its length.
        room.promise(&Promises::default()).expect("promised");
        assert!((40 * MIB..=48 * MIB).contains(&promised(None)));
    }

    #[test]
    fn promises_that_cannot_be_read_leave_no_room() {
        let pool = tempfile::tempdir().expect("a directory");
        let promises = pool.path().join("promises.json");
        let room = Room::new(pool.path(), &promises);
        fs::write(&promises, "{").expect("written");
        assert!(matches!(room.left(), Err(RoomError::Form { .. })));
    }
}
