//! One image's disk: its file on the pool and its chunk map in /run.
//!
//! Owns: the order that makes a crash harmless. A new disk: the old map goes, the image is made, the map
//! is made. A chunk: first its bytes, then its state byte. So a map always belongs to the image beside it,
//! and present always means written. The map lies on a tmpfs: after a boot there is none, and the image
//! is made anew.
//! Refuses: unverified bytes; `Chunk::open` has verified what comes here.

use std::fs::{self, File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use flist::cache::{Cache, CacheError};
use flist::chunk::Chunk;
use flist::format::Flist;
use flist::map::{ABSENT, PRESENT, Table};
use types::{Bytes, Digest};

use crate::room::{Room, RoomError};

#[derive(Debug, thiserror::Error)]
pub(crate) enum DiskError {
    #[error("cannot {doing} {path}")]
    Io {
        doing: &'static str,
        path: String,
        #[source]
        source: std::io::Error,
    },
    #[error("cannot write the chunk map {path}")]
    Map {
        path: String,
        #[source]
        source: sys::Error,
    },
    #[error(
        "the image {digest} comes to take {needed} MiB of the pool, {left} MiB are free and promised to nobody: delete what is not needed"
    )]
    NoRoom {
        digest: Digest,
        needed: u64,
        left: u64,
    },
    #[error(transparent)]
    Room(#[from] RoomError),
    #[error(transparent)]
    Cache(#[from] CacheError),
}

fn failed<'a>(doing: &'static str, path: &'a Path) -> impl Fn(std::io::Error) -> DiskError + 'a {
    move |source| DiskError::Io {
        doing,
        path: path.display().to_string(),
        source,
    }
}

#[derive(Debug)]
pub(crate) struct Disk {
    pub(crate) digest: Digest,
    pub(crate) flist: Flist,
    image: File,
    image_path: PathBuf,
    map: File,
    map_path: PathBuf,
    /// It was made just now, not by an earlier daemon of this boot.
    pub(crate) is_new: bool,
}

impl Disk {
    /// The disk of an flist that is in the cache: the one of an earlier daemon of this boot, or a new one.
    pub(crate) fn open(
        cache: &Cache,
        maps: &Path,
        room: &Room,
        digest: Digest,
    ) -> Result<Self, DiskError> {
        fs::create_dir_all(maps).map_err(failed("make directory", maps))?;
        let map_path = maps.join(digest.hex());
        let (flist, _) = cache.flist(&digest)?;
        let kept = kept(cache, &map_path, &flist, &digest);
        let is_new = kept.is_none();
        let image = match kept {
            Some(image) => image,
            None => {
                remove(&map_path)?;
                cache.remove_image(&digest)?;
                let footprint = cache.footprint(&flist);
                let needed = footprint.placed.saturating_add(footprint.missing);
                let left = room.left_for(&digest)?;
                if needed > left {
                    return Err(DiskError::NoRoom {
                        digest,
                        needed: Bytes(needed).as_mib() + 1,
                        left: Bytes(left).as_mib(),
                    });
                }
                let (_, image) = cache.create_image(&digest)?;
                sys::fs::write_atomic(&map_path, &flist.table().encode(), 0o600).map_err(
                    |source| DiskError::Map {
                        path: map_path.display().to_string(),
                        source,
                    },
                )?;
                image
            }
        };
        let mut options = OpenOptions::new();
        let map = options.read(true).write(true).open(&map_path);
        let map = map.map_err(failed("open", &map_path))?;
        let image_path = cache.image_path(&digest);
        Ok(Self {
            digest,
            flist,
            image,
            image_path,
            map,
            map_path,
            is_new,
        })
    }

    /// Removes map and image; who has them open keeps them.
    pub(crate) fn remove(&self, cache: &Cache) -> Result<(), DiskError> {
        remove(&self.map_path)?;
        Ok(cache.remove_image(&self.digest)?)
    }

    /// Both files again, read-only, for a VMM: image, map.
    pub(crate) fn for_vmm(&self) -> Result<[File; 2], DiskError> {
        let open = |path: &Path| File::open(path).map_err(failed("open", path));
        Ok([open(&self.image_path)?, open(&self.map_path)?])
    }

    pub(crate) fn chunk(&self, index: u32) -> Option<&Chunk> {
        self.flist.chunks().get(index as usize)
    }

    pub(crate) fn is_present(&self, index: u32) -> Result<bool, DiskError> {
        let mut state = [ABSENT];
        let at = self.state_at(index);
        self.map
            .read_exact_at(&mut state, at)
            .map_err(failed("read", &self.map_path))?;
        Ok(state[0] == PRESENT)
    }

    /// First half of a chunk's arrival: its verified plain bytes.
    pub(crate) fn write(&self, index: u32, plain: &[u8]) -> Result<(), DiskError> {
        let Some(chunk) = self.chunk(index) else {
            return Ok(());
        };
        let at = chunk.extent.start();
        self.image
            .write_all_at(plain, at)
            .map_err(failed("write", &self.image_path))
    }

    /// Second half: VMMs may read it. The two writes are system calls of one thread, each complete when
    /// it returns, so a VMM that sees the state byte reads the bytes.
    pub(crate) fn publish(&self, index: u32) -> Result<(), DiskError> {
        let at = self.state_at(index);
        self.map
            .write_all_at(&[PRESENT], at)
            .map_err(failed("write", &self.map_path))
    }

    fn state_at(&self, index: u32) -> u64 {
        (self.flist.table().states_offset() + index as usize) as u64
    }
}

/// Removes images of earlier boots: their maps went with the boot, and so nothing will use them.
pub(crate) fn remove_stale(cache: &Cache, maps: &Path) {
    for digest in cache.images() {
        if !maps.join(digest.hex()).exists()
            && let Err(error) = cache.remove_image(&digest)
        {
            log::warn!("the disk of an earlier boot stays: {}", sys::chain(&error));
        }
    }
}

fn remove(path: &Path) -> Result<(), DiskError> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(failed("remove", path)(e)),
        _ => Ok(()),
    }
}

/// The image of an earlier daemon of this boot, if its map is whole and both fit the flist.
fn kept(cache: &Cache, map_path: &Path, flist: &Flist, digest: &Digest) -> Option<File> {
    let mut map = Vec::new();
    let longest = flist.table().map_bytes() as u64 + 1;
    File::open(map_path)
        .ok()?
        .take(longest)
        .read_to_end(&mut map)
        .ok()?;
    if map.len() != flist.table().map_bytes() || Table::decode(&map).as_ref() != Ok(flist.table()) {
        return None;
    }
    let image = cache.image(digest).ok()?;
    (image.metadata().ok()?.len() == flist.disk_bytes()).then_some(image)
}
