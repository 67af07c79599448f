//! What the pools hold of each machine: `machines/<vm id>/` with record, writable layer and logs.
//!
//! Owns: those files and the order in which they change. A layer is named after what it belongs to,
//! and counts from the moment the record names it: a crash leaves the old layer or the new one.
//! Of several pools one has the machine's data; every other says which ([`super::places`]), so that a node that has lost a
//! disk knows what waits for it.
//! Refuses: deciding when a layer goes (`workload` does).

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use storage::roster::PoolId;
use types::VmId;
use types::node::DiskClass;
use workload::host::{Layer, OnPool, Record, Start};
use workload::placement;

use super::places::{Holding, Located, Place, locate};
use crate::room;

const RECORD: &str = "machine.json";
const LOGS: [&str; 2] = ["log.a", "log.b"];
const LAYER_PREFIX: &str = "upper-";
/// Largest record that is read: names, a digest, an address.
const RECORD_MAX: u64 = 64 << 10;

/// A pool of the node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Site {
    pub(crate) id: PoolId,
    pub(crate) class: DiskClass,
    pub(crate) mountpoint: PathBuf,
}

#[derive(Debug, Clone)]
struct Root {
    id: PoolId,
    path: PathBuf,
}

#[derive(Debug, Clone)]
pub(crate) struct Machines {
    roots: Vec<Root>,
}

impl Machines {
    /// Of a node with one pool.
    #[cfg(test)]
    pub(crate) fn open(pool: &Path) -> anyhow::Result<Self> {
        let mountpoint = pool.to_owned();
        Self::open_in(&[Site {
            id: PoolId::new(),
            class: DiskClass::Ssd,
            mountpoint,
        }])
    }

    pub(crate) fn open_in(pools: &[Site]) -> anyhow::Result<Self> {
        let mut roots = Vec::new();
        for Site { id, mountpoint, .. } in pools {
            let path = mountpoint.join("machines");
            fs::create_dir_all(&path).with_context(|| format!("make {}", path.display()))?;
            let id = id.clone();
            roots.push(Root { id, path });
        }
        let machines = Self { roots };
        machines.make_listable()?;
        Ok(machines)
    }

    /// For who counts what machines have taken of the pool ([`crate::room`]); files stay ours.
    fn make_listable(&self) -> anyhow::Result<()> {
        let root = &self.roots[0].path;
        let list = || {
            room::make_listable(root)?;
            for entry in fs::read_dir(root)? {
                let entry = entry?;
                if entry.file_type()?.is_dir() {
                    room::make_listable(&entry.path())?;
                }
            }
            Ok::<_, io::Error>(())
        };
        list().with_context(|| format!("let {} be listed", root.display()))
    }

    /// Where its record is; where there is none, where it would be made.
    fn directory(&self, vm: &VmId) -> PathBuf {
        let mut places = self.roots.iter().map(|root| root.path.join(vm.as_str()));
        let has = places.find(|place| place.join(RECORD).exists());
        has.unwrap_or_else(|| self.roots[0].path.join(vm.as_str()))
    }

    /// Everything that has a record, or something in its place that cannot be read, or lies on a disk that is not there.
    pub(crate) fn scan(&self) -> anyhow::Result<Vec<(VmId, OnPool)>> {
        let mut vms = BTreeSet::new();
        for Root { path, .. } in &self.roots {
            let entries = fs::read_dir(path).with_context(|| format!("list {}", path.display()))?;
            for entry in entries {
                let name = entry.with_context(|| format!("list {}", path.display()))?;
                // Other names are nobody's machine.
                vms.extend(
                    name.file_name()
                        .to_str()
                        .and_then(|n| n.parse::<VmId>().ok()),
                );
            }
        }
        let found = vms.into_iter().filter_map(|vm| Some((self.find(&vm)?, vm)));
        Ok(found.map(|(on_pool, vm)| (vm, on_pool)).collect())
    }

    fn find(&self, vm: &VmId) -> Option<OnPool> {
        let directories: Vec<_> = self
            .roots
            .iter()
            .map(|r| r.path.join(vm.as_str()))
            .collect();
        let holding = |(root, directory): (&Root, &PathBuf)| Holding {
            pool: root.id.clone(),
            record: directory.join(RECORD).exists(),
            place: Place::read(directory),
        };
        let holdings: Vec<_> = self.roots.iter().zip(&directories).map(holding).collect();
        let there = self.roots.iter().map(|root| root.id.clone()).collect();
        match locate(&holdings, &there) {
            Located::Nowhere => {
                directories.iter().for_each(|at| Place::remove(at));
                None
            }
            Located::Away(place) => {
                self.tell(vm, &place);
                let Place {
                    pool,
                    address,
                    cards,
                    ..
                } = place;
                let why = format!("its disk is not there: its data lies on the pool {pool}");
                Some(OnPool::Away {
                    address,
                    cards,
                    why,
                })
            }
            Located::Here { at, stale } => {
                let record = read_record(&directories[at].join(RECORD));
                if let Ok(Some(record)) = &record {
                    stale.iter().for_each(|n| forget(&directories[*n], vm));
                    let place = holdings[at].place.as_ref();
                    let version = place.map_or(0, |place| place.own);
                    self.tell(vm, &self.place(at, version, record));
                }
                match record {
                    Ok(record) => record.map(OnPool::Record),
                    Err(error) => Some(OnPool::Unreadable(format!("{error:#}"))),
                }
            }
        }
    }

    /// Says in every pool where the machine's data lies. A pool that does not take it is failing, which is said
    /// elsewhere too.
    fn tell(&self, vm: &VmId, place: &Place) {
        if self.roots.len() < 2 {
            return;
        }
        for root in &self.roots {
            if let Err(error) = place.tell(&root.path.join(vm.as_str())) {
                log::error!("note where {vm} lies: {error:#}");
            }
        }
    }

    fn place(&self, at: usize, version: u64, record: &Record) -> Place {
        Place {
            pool: self.roots[at].id.clone(),
            version,
            address: record.address,
            cards: record.cards.clone(),
            own: version,
        }
    }

    /// Where its data lies. Changes nothing.
    pub(crate) fn place_of(&self, vm: &VmId) -> placement::Place {
        let directory = |root: &Root| root.path.join(vm.as_str());
        let has = |root: &Root| directory(root).join(RECORD).exists();
        if let Some(at) = self.roots.iter().position(has) {
            return placement::Place::Here(at);
        }
        let there = |pool: &PoolId| self.roots.iter().any(|root| root.id == *pool);
        let mut said = self.roots.iter().filter_map(|r| Place::read(&directory(r)));
        match said.any(|place| !there(&place.pool)) {
            true => placement::Place::Away,
            false => placement::Place::Nowhere,
        }
    }

    /// Makes layer and record as the start says, durable on return; a new layer in the pool at this place of the list.
    /// Gives the layer.
    pub(crate) fn prepare(&self, start: &Start, at: usize) -> anyhow::Result<File> {
        match start.layer {
            Layer::Keep => self.make(start, &self.directory(&start.vm)),
            Layer::Fresh => self.begin(start, at),
        }
    }

    /// Makes a new layer in the pool at this place of the list. Who has none yet hears of it before there is one; who has an
    /// old one keeps that until the new one counts.
    fn begin(&self, start: &Start, at: usize) -> anyhow::Result<File> {
        let directory = |root: &Root| root.path.join(start.vm.as_str());
        let target = directory(&self.roots[at]);
        if self.roots.len() < 2 {
            return self.make(start, &target);
        }
        let place = self.place(at, start.launch.version, &start.record);
        let others = self.roots.iter().enumerate().filter(|(n, _)| *n != at);
        let others = others.map(|(_, root)| directory(root));
        let (holders, empty): (Vec<_>, Vec<_>) = others.partition(|at| at.join(RECORD).exists());
        for other in &empty {
            note(other, &place)?;
        }
        place.write(&target)?;
        let layer = self.make(start, &target)?;
        for other in &holders {
            note(other, &place)?;
            forget(other, &start.vm);
            note(other, &place)?;
        }
        Ok(layer)
    }

    fn make(&self, start: &Start, directory: &Path) -> anyhow::Result<File> {
        let root = directory.parent().unwrap_or(directory);
        fs::create_dir_all(directory).with_context(|| format!("make {}", directory.display()))?;
        room::make_listable(directory)
            .with_context(|| format!("let {} be listed", directory.display()))?;
        sys::fs::sync_directory(root)?;
        let path = directory.join(layer_name(&start.record));
        match start.layer {
            Layer::Keep => {}
            Layer::Fresh => {
                // Left by a crash: no record names it, so nobody's data is in it.
                remove_file(&path)?;
                let mut uuid = [0; 16];
                sys::random::fill(&mut uuid)?;
                storage::volume::make_ext4(&path, start.record.disk.0, uuid)?;
            }
        }
        let layer = OpenOptions::new()
            .read(true)
            .write(true)
            .open(&path)
            .with_context(|| format!("open the writable layer {}", path.display()))?;
        save_in(directory, &start.record)?;
        self.remove_other_layers(directory, &path)?;
        Ok(layer)
    }

    fn remove_other_layers(&self, directory: &Path, keep: &Path) -> anyhow::Result<()> {
        for entry in
            fs::read_dir(directory).with_context(|| format!("list {}", directory.display()))?
        {
            let path = entry
                .with_context(|| format!("list {}", directory.display()))?
                .path();
            let is_layer = path
                .file_name()
                .and_then(|name| name.to_str())
                .is_some_and(|name| name.starts_with(LAYER_PREFIX));
            if is_layer && path != keep {
                remove_file(&path)?;
            }
        }
        Ok(())
    }

    /// Replaces the record by one rename.
    pub(crate) fn save(&self, vm: &VmId, record: &Record) -> anyhow::Result<()> {
        save_in(&self.directory(vm), record)
    }

    /// The one with the record first: what the others say of it then counts as nothing.
    pub(crate) fn remove(&self, vm: &VmId) -> anyhow::Result<()> {
        let first = self.directory(vm);
        remove_in(&first)?;
        let others = self.roots.iter().map(|root| root.path.join(vm.as_str()));
        let mut others = others.filter(|other| *other != first);
        others.try_for_each(|other| remove_in(&other))
    }

    /// The log files, as the VMM writes them.
    pub(crate) fn open_logs(&self, vm: &VmId) -> anyhow::Result<[File; 2]> {
        let open = |path: PathBuf| {
            OpenOptions::new()
                .read(true)
                .append(true)
                .create(true)
                .open(&path)
                .with_context(|| format!("open the log {}", path.display()))
        };
        let [a, b] = self.log_paths(vm);
        Ok([open(a)?, open(b)?])
    }

    pub(crate) fn log_paths(&self, vm: &VmId) -> [PathBuf; 2] {
        LOGS.map(|name| self.directory(vm).join(name))
    }
}

fn save_in(directory: &Path, record: &Record) -> anyhow::Result<()> {
    let json = serde_json::to_vec(record).context("write a record as JSON")?;
    sys::fs::write_atomic(&directory.join(RECORD), &json, 0o600)?;
    Ok(())
}

/// Record first: a crash in between leaves what counts as nothing.
fn remove_in(directory: &Path) -> anyhow::Result<()> {
    if !directory.exists() {
        return Ok(());
    }
    remove_file(&directory.join(RECORD))?;
    sys::fs::sync_directory(directory)?;
    fs::remove_dir_all(directory).with_context(|| format!("remove {}", directory.display()))?;
    directory.parent().map_or(Ok(()), sys::fs::sync_directory)?;
    Ok(())
}

/// What is older than what counts goes.
fn forget(directory: &Path, vm: &VmId) {
    if let Err(error) = remove_in(directory) {
        log::error!("remove what {vm} was before: {error:#}");
    }
}

/// A full pool must hear where a machine is; one that is dead cannot.
fn note(directory: &Path, place: &Place) -> anyhow::Result<()> {
    let Err(error) = place.tell(directory) else {
        return Ok(());
    };
    let full = |cause: &(dyn std::error::Error + 'static)| {
        let cause = cause.downcast_ref::<io::Error>();
        cause.is_some_and(|e| e.kind() == io::ErrorKind::StorageFull)
    };
    if error.chain().any(full) {
        return Err(error.context(format!(
            "note in {} where a machine lies",
            directory.display()
        )));
    }
    log::error!(
        "note in {} where a machine lies: {error:#}",
        directory.display()
    );
    Ok(())
}

/// One image and one life of the deployment have one layer.
fn layer_name(record: &Record) -> String {
    format!(
        "{LAYER_PREFIX}{}-{}.img",
        record.incarnation,
        record.image.hex()
    )
}

pub(crate) fn read_record(path: &Path) -> anyhow::Result<Option<Record>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e).with_context(|| format!("open {}", path.display())),
    };
    let length = file
        .metadata()
        .with_context(|| format!("stat {}", path.display()))?
        .len();
    if length > RECORD_MAX {
        bail!(
            "{} has {length} bytes, at most {RECORD_MAX} are expected",
            path.display()
        );
    }
    let record = serde_json::from_reader(file)
        .with_context(|| format!("{} is not a machine's record", path.display()))?;
    Ok(Some(record))
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
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;
    use types::{Bytes, Digest, PublicKey};
    use workload::host::Launch;

    fn start(image: u8, layer: Layer) -> Start {
        let digest = Digest([image; 32]);
        let machine = serde_json::from_str(&format!(r#"{{"image":{{"flist":"{digest}"}}}}"#));
        Start {
            vm: "web-shop-01010101".parse().expect("an id"),
            launch: Launch { digest, version: 1 },
            layer,
            record: Record {
                signer: PublicKey([1; 32]),
                deployment: "shop".parse().expect("a name"),
                workload: "web".parse().expect("a name"),
                incarnation: 0,
                image: digest,
                disk: Bytes::mib(64),
                address: [10, 130, 1, 2].into(),
                cards: Vec::new(),
                finished: None,
            },
            machine: machine.expect("a machine"),
            volumes: Vec::new(),
            restarts: 0,
            across: Default::default(),
        }
    }

    fn layers(machines: &Machines, vm: &VmId) -> usize {
        let names = fs::read_dir(machines.directory(vm))
            .expect("a directory")
            .flatten();
        names
            .filter(|e| e.file_name().to_string_lossy().starts_with(LAYER_PREFIX))
            .count()
    }

    #[test]
    fn a_layer_keeps_its_bytes_until_a_fresh_one_takes_its_place() {
        let pool = tempfile::tempdir().expect("a directory");
        let machines = Machines::open(pool.path()).expect("opens");
        let first = start(1, Layer::Fresh);
        let layer = machines.prepare(&first, 0).expect("a layer");
        assert_eq!(layer.metadata().expect("stat").len(), 64 << 20);
        layer.write_all_at(b"data", 4096).expect("write");
        let kept = machines
            .prepare(&start(1, Layer::Keep), 0)
            .expect("the layer");
        let mut bytes = [0; 4];
        kept.read_exact_at(&mut bytes, 4096).expect("read");
        assert_eq!(&bytes, b"data");
        let renewed = start(2, Layer::Fresh);
        machines.prepare(&renewed, 0).expect("a layer");
        assert_eq!(layers(&machines, &first.vm), 1);
        let found = machines.scan().expect("a scan");
        assert_eq!(found, [(first.vm.clone(), OnPool::Record(renewed.record))]);
        // What no record names is made anew, not taken over.
        let back = machines.prepare(&first, 0).expect("a layer");
        back.read_exact_at(&mut bytes, 4096).expect("read");
        assert_ne!(&bytes, b"data");
        machines.remove(&first.vm).expect("a removal");
        machines.remove(&first.vm).expect("nothing to remove");
        assert!(machines.scan().expect("a scan").is_empty());
    }

    #[test]
    fn a_record_that_cannot_be_read_is_said_and_not_taken_for_none() {
        let pool = tempfile::tempdir().expect("a directory");
        let machines = Machines::open(pool.path()).expect("opens");
        let start = start(1, Layer::Fresh);
        machines.prepare(&start, 0).expect("a layer");
        fs::write(machines.directory(&start.vm).join(RECORD), b"{").expect("write");
        let found = machines.scan().expect("a scan");
        assert!(matches!(&found[..], [(_, OnPool::Unreadable(why))] if why.contains(RECORD)));
        assert_eq!(layers(&machines, &start.vm), 1);
    }

    #[test]
    fn a_kept_layer_that_is_gone_is_an_error_and_not_a_fresh_one() {
        let pool = tempfile::tempdir().expect("a directory");
        let machines = Machines::open(pool.path()).expect("opens");
        let error = machines
            .prepare(&start(1, Layer::Keep), 0)
            .expect_err("no layer");
        assert!(format!("{error:#}").contains("writable layer"), "{error:#}");
    }
}
