//! What a foreign disk can reach, for the package `fuzz`.
//!
//! Owns: the mark of a mounted pool, and the table as provisioning writes it. Refuses: devices.

use std::fs::File;
use std::path::Path;

use types::PublicKey;

use crate::pool;

/// Whether the pool mounted here is this owner's.
pub fn is_ours(mountpoint: &Path, owner: &PublicKey) -> bool {
    pool::check_marker("disk", owner, mountpoint).is_ok()
}

/// Writes the table of a pool with an empty partition into a file.
pub fn make_table(file: &File, size_bytes: u64, owner: &PublicKey) {
    pool::write_pool_table(file, size_bytes, owner);
}
