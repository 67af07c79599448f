//! What the pool holds of each machine: `machines/<vm id>/` with record, writable layer and logs.
//!
//! Owns: those files and the order in which they change. A layer is named after what it belongs to,
//! and counts from the moment the record names it: a crash leaves the old layer or the new one.
//! Refuses: deciding when a layer goes (`workload` does).

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use types::VmId;
use workload::host::{Layer, OnPool, Record, Start};

use crate::room;

const RECORD: &str = "machine.json";
const LOGS: [&str; 2] = ["log.a", "log.b"];
const LAYER_PREFIX: &str = "upper-";
/// Largest record that is read: names, a digest, an address.
const RECORD_MAX: u64 = 64 << 10;

#[derive(Debug, Clone)]
pub(crate) struct Machines {
    root: PathBuf,
}

impl Machines {
    pub(crate) fn open(pool: &Path) -> anyhow::Result<Self> {
        let root = pool.join("machines");
        fs::create_dir_all(&root).with_context(|| format!("make {}", root.display()))?;
        let machines = Self { root };
        machines.make_listable()?;
        Ok(machines)
    }

    /// For who counts what machines have taken of the pool ([`crate::room`]); files stay ours.
    fn make_listable(&self) -> anyhow::Result<()> {
        let root = &self.root;
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

    fn directory(&self, vm: &VmId) -> PathBuf {
        self.root.join(vm.as_str())
    }

    /// Everything that has a record, or something in its place that cannot be read.
    pub(crate) fn scan(&self) -> anyhow::Result<Vec<(VmId, OnPool)>> {
        let mut found = Vec::new();
        let entries =
            fs::read_dir(&self.root).with_context(|| format!("list {}", self.root.display()))?;
        for entry in entries {
            let entry = entry.with_context(|| format!("list {}", self.root.display()))?;
            // Other names are nobody's machine.
            let Some(vm) = entry
                .file_name()
                .to_str()
                .and_then(|n| n.parse::<VmId>().ok())
            else {
                continue;
            };
            match read_record(&entry.path().join(RECORD)) {
                Ok(Some(record)) => found.push((vm, OnPool::Record(record))),
                Ok(None) => {}
                Err(error) => found.push((vm, OnPool::Unreadable(format!("{error:#}")))),
            }
        }
        Ok(found)
    }

    /// Makes layer and record as the start says, durable on return. Gives the layer.
    pub(crate) fn prepare(&self, start: &Start) -> anyhow::Result<File> {
        let directory = self.directory(&start.vm);
        fs::create_dir_all(&directory).with_context(|| format!("make {}", directory.display()))?;
        room::make_listable(&directory)
            .with_context(|| format!("let {} be listed", directory.display()))?;
        sys::fs::sync_directory(&self.root)?;
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
        self.save(&start.vm, &start.record)?;
        self.remove_other_layers(&directory, &path)?;
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
        let json = serde_json::to_vec(record).context("write a record as JSON")?;
        sys::fs::write_atomic(&self.directory(vm).join(RECORD), &json, 0o600)?;
        Ok(())
    }

    /// Record first: a crash in between leaves what counts as nothing.
    pub(crate) fn remove(&self, vm: &VmId) -> anyhow::Result<()> {
        let directory = self.directory(vm);
        if !directory.exists() {
            return Ok(());
        }
        remove_file(&directory.join(RECORD))?;
        sys::fs::sync_directory(&directory)?;
        fs::remove_dir_all(&directory)
            .with_context(|| format!("remove {}", directory.display()))?;
        sys::fs::sync_directory(&self.root)?;
        Ok(())
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
                finished: None,
            },
            machine: machine.expect("a machine"),
            restarts: 0,
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
        let layer = machines.prepare(&first).expect("a layer");
        assert_eq!(layer.metadata().expect("stat").len(), 64 << 20);
        layer.write_all_at(b"data", 4096).expect("write");
        let kept = machines.prepare(&start(1, Layer::Keep)).expect("the layer");
        let mut bytes = [0; 4];
        kept.read_exact_at(&mut bytes, 4096).expect("read");
        assert_eq!(&bytes, b"data");
        let renewed = start(2, Layer::Fresh);
        machines.prepare(&renewed).expect("a layer");
        assert_eq!(layers(&machines, &first.vm), 1);
        let found = machines.scan().expect("a scan");
        assert_eq!(found, [(first.vm.clone(), OnPool::Record(renewed.record))]);
        // What no record names is made anew, not taken over.
        let back = machines.prepare(&first).expect("a layer");
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
        machines.prepare(&start).expect("a layer");
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
            .prepare(&start(1, Layer::Keep))
            .expect_err("no layer");
        assert!(format!("{error:#}").contains("writable layer"), "{error:#}");
    }
}
