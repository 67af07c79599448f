//! Disks whose pools failed while the node ran.
//!
//! Owns: the list of their serials, for the agents of this boot. Refuses: judging a disk (`vigil` does).
//!
//! One that fails is not opened again before it has been away, or the node starts again: it would take machines along each
//! time.

use std::collections::BTreeSet;
use std::path::Path;

/// As short-lived as the boot.
const FILE: &str = "/run/sifr/given-up.json";

pub(crate) fn read() -> BTreeSet<String> {
    let bytes = std::fs::read(FILE).unwrap_or_default();
    serde_json::from_slice(&bytes).unwrap_or_default()
}

fn write(serials: &BTreeSet<String>) {
    let json = serde_json::to_vec(serials).expect("text always serialises");
    if let Err(error) = sys::fs::write_atomic(Path::new(FILE), &json, 0o600) {
        log::error!("note which disks failed: {}", sys::error::chain(&error));
    }
}

/// One without a serial cannot be told from others.
pub(crate) fn add(serial: &str) {
    let mut serials = read();
    if !serial.is_empty() && serials.insert(serial.to_owned()) {
        write(&serials);
    }
}

/// What has gone may come back as good as new.
pub(crate) fn retain(there: impl Fn(&str) -> bool) {
    let mut serials = read();
    let before = serials.len();
    serials.retain(|serial| there(serial));
    if serials.len() != before {
        write(&serials);
    }
}
