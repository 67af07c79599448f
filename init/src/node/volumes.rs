//! What the pool holds of each volume: `volumes/<volume id>/` with record, content and snapshots.
//!
//! Owns: those files and the order in which they change. Content is named after what it belongs to, and counts from
//! the moment the record names it: a crash leaves the old content or the new one. All paths come from one place
//! ([`Volumes::directory`]).
//! Refuses: mounting, and deciding when content goes (`workload` does).

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use types::{Bytes, VolumeId};
use workload::host::{Source, VolumeOnPool, VolumeRecord};
use workload::placement::Place;

use super::machines::Site;
use crate::room;

const RECORD: &str = "volume.json";
/// In every pool but that of the volume: there is one.
const ELSEWHERE: &str = "elsewhere";
const CONTENT_PREFIX: &str = "disk-";
const SNAPSHOT_PREFIX: &str = "snapshot-";
/// A copy that is not whole yet.
const PARTIAL: &str = "copy.partial";
/// Largest record that is read: names, and 32 snapshots.
const RECORD_MAX: u64 = 64 << 10;

/// Paths only: cheap to clone, holds nothing open.
#[derive(Debug, Clone)]
pub(crate) struct Volumes {
    roots: Vec<PathBuf>,
}

/// A copy that shares its blocks with what it was made of, and has no name yet.
#[derive(Debug)]
pub(crate) struct Copy {
    file: File,
    partial: PathBuf,
}

impl Volumes {
    /// Of a node with one pool.
    #[cfg(test)]
    pub(crate) fn open(pool: &Path) -> anyhow::Result<Self> {
        Self::open_below([pool])
    }

    pub(crate) fn open_in(pools: &[Site]) -> anyhow::Result<Self> {
        Self::open_below(pools.iter().map(|site| site.mountpoint.as_path()))
    }

    fn open_below<'a>(pools: impl IntoIterator<Item = &'a Path>) -> anyhow::Result<Self> {
        let mut roots = Vec::new();
        for pool in pools {
            let root = pool.join("volumes");
            fs::create_dir_all(&root).with_context(|| format!("make {}", root.display()))?;
            // For who counts what they have taken of the pool; files stay ours.
            room::make_listable(&root)
                .with_context(|| format!("let {} be listed", root.display()))?;
            roots.push(root);
        }
        Ok(Self { roots })
    }

    fn places(&self, volume: &VolumeId) -> impl Iterator<Item = PathBuf> {
        self.roots.iter().map(|root| root.join(volume.as_str()))
    }

    /// Where its record is, the newer of two; where there is none, where half of it is, or where it would be made.
    fn directory(&self, volume: &VolumeId) -> PathBuf {
        let made = |place: &PathBuf| {
            record_in(place)
                .map(|r| r.map_or(0, |r| r.made))
                .unwrap_or(0)
        };
        let with_record = self
            .places(volume)
            .filter(|place| place.join(RECORD).exists());
        let begun = |place: &PathBuf| place.exists() && !place.join(ELSEWHERE).exists();
        with_record
            .max_by_key(made)
            .or_else(|| self.places(volume).find(begun))
            .unwrap_or_else(|| self.roots[0].join(volume.as_str()))
    }

    fn content(&self, volume: &VolumeId, record: &VolumeRecord) -> PathBuf {
        let name = format!(
            "{CONTENT_PREFIX}{}-{}.img",
            record.incarnation, record.restored
        );
        self.directory(volume).join(name)
    }

    fn snapshot(&self, volume: &VolumeId, version: u64) -> PathBuf {
        let name = format!("{SNAPSHOT_PREFIX}{version}.img");
        self.directory(volume).join(name)
    }

    /// Everything that has a record, or something in its place that cannot be read. What a crash has left beside
    /// records goes.
    pub(crate) fn scan(&self) -> anyhow::Result<Vec<(VolumeId, VolumeOnPool)>> {
        let mut volumes = BTreeSet::new();
        for root in &self.roots {
            let during = || format!("list {}", root.display());
            for entry in fs::read_dir(root).with_context(during)? {
                let name = entry.with_context(during)?.file_name();
                // Other names are nobody's volume.
                volumes.extend(name.to_str().and_then(|n| n.parse::<VolumeId>().ok()));
            }
        }
        let mut found = Vec::new();
        for volume in volumes {
            match self.record(&volume) {
                Ok(Some(record)) => {
                    self.remove_strays(&volume, &record)?;
                    found.push((volume, VolumeOnPool::Record(record)));
                }
                Ok(None) if self.places(&volume).any(|at| at.join(ELSEWHERE).exists()) => {
                    let why =
                        "its disk is not there: put it back, or destroy the volume".to_owned();
                    found.push((volume, VolumeOnPool::Unreadable(why)));
                }
                Ok(None) => {}
                Err(error) => found.push((volume, VolumeOnPool::Unreadable(format!("{error:#}")))),
            }
        }
        Ok(found)
    }

    fn record(&self, volume: &VolumeId) -> anyhow::Result<Option<VolumeRecord>> {
        record_in(&self.directory(volume))
    }

    fn remove_strays(&self, volume: &VolumeId, record: &VolumeRecord) -> anyhow::Result<()> {
        let directory = self.directory(volume);
        let during = || format!("list {}", directory.display());
        let snapshots = record.snapshots.keys();
        let mut named: Vec<PathBuf> = snapshots.map(|v| self.snapshot(volume, *v)).collect();
        named.extend([self.content(volume, record), directory.join(RECORD)]);
        for entry in fs::read_dir(&directory).with_context(during)? {
            let path = entry.with_context(during)?.path();
            if !named.contains(&path) {
                log::info!("{} belongs to nothing: it goes", path.display());
                remove_file(&path)?;
            }
        }
        Ok(())
    }

    /// Replaces the record by one rename.
    pub(crate) fn save(&self, volume: &VolumeId, record: &VolumeRecord) -> anyhow::Result<()> {
        let json = serde_json::to_vec(record).context("write a record as JSON")?;
        sys::fs::write_atomic(&self.directory(volume).join(RECORD), &json, 0o600)?;
        Ok(())
    }

    /// Where its data lies. Changes nothing.
    pub(crate) fn place_of(&self, volume: &VolumeId) -> Place {
        if !self.places(volume).any(|place| place.exists()) {
            return Place::Nowhere;
        }
        let directory = self.directory(volume);
        if !directory.join(RECORD).exists() {
            // Begun is not made: it may still lie elsewhere.
            let elsewhere = self.places(volume).any(|at| at.join(ELSEWHERE).exists());
            let begun = directory.exists() && !directory.join(ELSEWHERE).exists();
            return match elsewhere && !begun {
                true => Place::Away,
                false => Place::Nowhere,
            };
        }
        let at = self.places(volume).position(|place| place == directory);
        at.map_or(Place::Nowhere, Place::Here)
    }

    /// The same directory's pool, for what is to lie beside it.
    fn pool_of(&self, volume: &VolumeId) -> usize {
        let directory = self.directory(volume);
        let at = self.places(volume).position(|place| place == directory);
        at.unwrap_or(0)
    }

    /// An empty directory for a volume that is to be made, in the pool of the one that it is to be a copy of.
    pub(crate) fn begin_beside(&self, volume: &VolumeId, source: &VolumeId) -> anyhow::Result<()> {
        self.begin(volume, self.pool_of(source))
    }

    /// The same in the pool at this place of the list. All other pools hear of it before there is a record.
    fn begin(&self, volume: &VolumeId, at: usize) -> anyhow::Result<()> {
        // Left by a crash: no record is there, so nobody's data is in it.
        self.erase(volume)?;
        let directory = self.roots[at].join(volume.as_str());
        for other in self.places(volume).filter(|other| *other != directory) {
            fs::create_dir(&other)
                .and_then(|()| room::make_listable(&other))
                .with_context(|| format!("make {}", other.display()))?;
            sys::fs::write_atomic(&other.join(ELSEWHERE), b"", 0o600)?;
            other.parent().map_or(Ok(()), sys::fs::sync_directory)?;
        }
        fs::create_dir(&directory).with_context(|| format!("make {}", directory.display()))?;
        room::make_listable(&directory)
            .with_context(|| format!("let {} be listed", directory.display()))?;
        directory.parent().map_or(Ok(()), sys::fs::sync_directory)?;
        Ok(())
    }

    /// A new file system in the pool at this place of the list, durable on return with its record.
    pub(crate) fn make(
        &self,
        volume: &VolumeId,
        record: &VolumeRecord,
        at: usize,
    ) -> anyhow::Result<()> {
        self.begin(volume, at)?;
        let mut uuid = [0; 16];
        sys::random::fill(&mut uuid)?;
        storage::volume::make_ext4(&self.content(volume, record), record.size.0, uuid)?;
        self.save(volume, record)
    }

    /// What a VM gets.
    pub(crate) fn open_content(
        &self,
        volume: &VolumeId,
        record: &VolumeRecord,
        read_only: bool,
    ) -> anyhow::Result<File> {
        let path = self.content(volume, record);
        OpenOptions::new()
            .read(true)
            .write(!read_only)
            .open(&path)
            .with_context(|| format!("open the volume {}", path.display()))
    }

    /// Makes the content as long as the record says, durable on return with it.
    pub(crate) fn grow(&self, volume: &VolumeId, record: &VolumeRecord) -> anyhow::Result<()> {
        let file = self.open_content(volume, record, false)?;
        let during = || format!("grow the volume {volume} to {}", record.size);
        let has = file.metadata().with_context(during)?.len();
        if has < record.size.0 {
            file.set_len(record.size.0).with_context(during)?;
        }
        file.sync_all().with_context(during)?;
        self.save(volume, record)
    }

    /// Copies what a source holds now into the directory of `volume`. Takes no room but for its map of blocks.
    pub(crate) fn copy(&self, source: &Source, volume: &VolumeId) -> anyhow::Result<Copy> {
        let from = match source.snapshot {
            None => self.content(&source.volume, &source.record),
            Some(version) => self.snapshot(&source.volume, version),
        };
        let partial = self.directory(volume).join(PARTIAL);
        remove_file(&partial)?;
        let open = File::open(&from).with_context(|| format!("open {}", from.display()))?;
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&partial)
            .with_context(|| format!("create {}", partial.display()))?;
        sys::fs::reflink(open.as_fd(), file.as_fd()).with_context(|| {
            format!(
                "copy {} without taking room: the pool must be an XFS of ours",
                from.display()
            )
        })?;
        Ok(Copy { file, partial })
    }

    /// Gives a copy its name: the volume's content, or its snapshot of this version. Durable on return with the record.
    pub(crate) fn keep(
        &self,
        copy: Copy,
        volume: &VolumeId,
        record: &VolumeRecord,
        snapshot: Option<u64>,
    ) -> anyhow::Result<()> {
        let path = match snapshot {
            None => self.content(volume, record),
            Some(version) => self.snapshot(volume, version),
        };
        let during = || format!("keep a copy as {}", path.display());
        if snapshot.is_none() && copy.file.metadata().with_context(during)?.len() < record.size.0 {
            copy.file.set_len(record.size.0).with_context(during)?;
        }
        copy.file.sync_all().with_context(during)?;
        fs::rename(&copy.partial, &path).with_context(during)?;
        sys::fs::sync_directory(&self.directory(volume))?;
        self.save(volume, record)
    }

    /// The same, as the volume's content in place of another, which goes.
    pub(crate) fn replace(
        &self,
        copy: Copy,
        volume: &VolumeId,
        record: &VolumeRecord,
    ) -> anyhow::Result<()> {
        self.keep(copy, volume, record, None)?;
        self.let_go(volume, record)
    }

    /// What a copy shares in the beginning.
    pub(crate) fn blocks(copy: &Copy) -> Bytes {
        let metadata = copy.file.metadata();
        Bytes(metadata.map_or(0, |m| m.blocks().saturating_mul(512)))
    }

    /// The record has let go of a snapshot, or names other content: what it does not name goes.
    pub(crate) fn let_go(&self, volume: &VolumeId, record: &VolumeRecord) -> anyhow::Result<()> {
        self.save(volume, record)?;
        self.remove_strays(volume, record)
    }

    /// Record first: a crash in between leaves what counts as nothing.
    pub(crate) fn erase(&self, volume: &VolumeId) -> anyhow::Result<()> {
        // Older ones before the one that counts: a crash in between brings none of them back.
        let counts = self.directory(volume);
        let others = self.places(volume).filter(|place| *place != counts);
        others
            .chain([counts.clone()])
            .filter(|place| place.exists())
            .try_for_each(|place| erase_in(&place))
    }

    /// What of the pool the content takes, shared with snapshots or not.
    pub(crate) fn used(&self, volume: &VolumeId) -> Option<Bytes> {
        let record = self.record(volume).ok()??;
        let metadata = fs::metadata(self.content(volume, &record)).ok()?;
        Some(Bytes(metadata.blocks().saturating_mul(512)))
    }

    /// What a copy shared with another volume when it was made; what is not known was nothing.
    pub(crate) fn shared(&self, volume: &VolumeId) -> Bytes {
        let record = self.record(volume).ok().flatten();
        record.map_or(Bytes(0), |record| record.shared)
    }
}

fn record_in(directory: &Path) -> anyhow::Result<Option<VolumeRecord>> {
    let path = directory.join(RECORD);
    let during = || format!("read {}", path.display());
    let length = match fs::metadata(&path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other.with_context(during)?.len(),
    };
    if length > RECORD_MAX {
        bail!(
            "{} has {length} bytes, at most {RECORD_MAX} are expected",
            path.display()
        );
    }
    let bytes = fs::read(&path).with_context(during)?;
    let record = serde_json::from_slice(&bytes)
        .with_context(|| format!("{} is not a volume's record", path.display()))?;
    Ok(Some(record))
}

fn erase_in(directory: &Path) -> anyhow::Result<()> {
    remove_file(&directory.join(RECORD))?;
    sys::fs::sync_directory(directory)?;
    fs::remove_dir_all(directory).with_context(|| format!("remove {}", directory.display()))?;
    directory.parent().map_or(Ok(()), sys::fs::sync_directory)?;
    Ok(())
}

fn remove_file(path: &Path) -> anyhow::Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            Err(e).with_context(|| format!("remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
#[path = "volumes_tests.rs"]
mod tests;
