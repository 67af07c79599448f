//! What a foreign disk can reach, for the package `fuzz`.
//!
//! Owns: the mark of a mounted pool, and the table as provisioning writes it. Refuses: devices.

use std::fs::File;
use std::path::Path;

use types::PublicKey;

use crate::disk::Disk;
use crate::pool;

/// Whether the pool mounted here is this owner's.
pub fn is_ours(mountpoint: &Path, owner: &PublicKey) -> bool {
    pool::check_marker("disk", owner, mountpoint).is_ok()
}

/// Writes the table of a pool with an empty partition into a file.
pub fn make_table(file: &File, size_bytes: u64, owner: &PublicKey) {
    let disk = Disk {
        name: "file".to_owned(),
        serial: "file".to_owned(),
        size_bytes,
        removable: false,
        read_only: false,
        block_bytes: 512,
    };
    let device = file.try_clone().expect("a descriptor");
    pool::write_table(device, &disk, owner).expect("a file has room");
    let sectors = u32::try_from(size_bytes / 512 - 1).expect("a small file");
    let mut mbr = file;
    gpt::mbr::ProtectiveMBR::with_lb_size(sectors)
        .overwrite_lba0(&mut mbr)
        .expect("a file has room");
}
