//! What lies on a pool or comes with an image, as the node reads it, for the package `fuzz`.
//!
//! Owns: paths below a directory of the caller's. Refuses: everything that needs a node.

use std::path::{Path, PathBuf};

use api::{Begin, LogLine};
use types::deployment::Machine;
use types::flist::ImageConfig;
use types::guest::{Link, RunSpec};
use types::{Cidr, Mac};

use super::{identity, logs, machines, runspec};

/// What a guest is told to run, of an image and a machine. `None`: refused.
pub fn run_spec(image: &ImageConfig, machine: &Machine) -> Option<RunSpec> {
    let address = [10, 128, 0, 2].into();
    let link = Link {
        mac: Mac([2, 0, 0, 0, 0, 1]),
        address: Cidr::new(address, 24).expect("below 33"),
        gateway: [10, 128, 0, 1].into(),
        dns: [10, 128, 0, 1].into(),
        mtu: 1500,
        address6: None,
    };
    let name = "web".parse().expect("a name");
    runspec::merge(&name, image, machine, link, 10_000).ok()
}

/// What a machine's firmware says in its tables.
pub fn oem_strings(table: &[u8]) -> Vec<String> {
    super::smbios::oem_strings(table)
}

/// All that a reader gives of a machine's log, batch by batch.
pub fn log(paths: &[PathBuf; 2], begin: Begin) -> Vec<LogLine> {
    let reader = logs::Reader::open(paths, begin).expect("files can be read");
    let mut reader = reader.expect("both files are there");
    let mut lines = Vec::new();
    loop {
        let batch = reader.batch().expect("files can be read");
        if batch.is_empty() {
            return lines;
        }
        lines.extend(batch);
    }
}

/// Whether the file is a machine's record.
pub fn record(path: &Path) -> bool {
    machines::read_record(path).is_ok_and(|record| record.is_some())
}

/// The seed of the node's key from a pool. `None`: damaged.
pub fn seed(pool: &Path) -> Option<[u8; 32]> {
    identity::load_or_make(pool).ok().map(|found| found.seed)
}
