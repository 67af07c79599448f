//! What a foreign disk can reach, for the package `fuzz`.
//!
//! Owns: the mark of a mounted pool, the table as provisioning writes it, and the file of options in a file system. Refuses: devices.

use std::fs::File;
use std::io;
use std::path::Path;

use types::PublicKey;

use crate::fat::{self, FatError, Medium};
use crate::options;
use crate::pool;

/// Whether the pool mounted here is this owner's.
pub fn is_ours(mountpoint: &Path, owner: &PublicKey) -> bool {
    pool::check_marker("disk", owner, mountpoint).is_ok()
}

/// Writes the table of a pool with an empty partition into a file.
pub fn make_table(file: &File, size_bytes: u64, owner: &PublicKey) {
    pool::write_pool_table(file, size_bytes, owner);
}

/// The file of options in a file system of at most `size` bytes.
pub fn options_of(volume: &[u8], size: u64) -> Result<Vec<u8>, FatError> {
    fat::file(&Bytes(volume), size, options::FILE, options::FILE_MAX)
}

struct Bytes<'a>(&'a [u8]);

impl Medium for Bytes<'_> {
    fn read(&self, at: u64, into: &mut [u8]) -> io::Result<()> {
        let from = usize::try_from(at).ok().and_then(|at| self.0.get(at..));
        let bytes = from.and_then(|from| from.get(..into.len()));
        into.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}

/// The smallest FAT12 that has a file of options, of at most five sectors: boot sector, table, root directory, content.
pub fn fat(content: &[u8]) -> Vec<u8> {
    const SECTOR: usize = 512;
    let mut volume = vec![0; SECTOR];
    volume[11..13].copy_from_slice(&[0, 2]);
    // Sectors of a cluster, before the table; tables; entries of the root directory; sectors in all; sectors of a table.
    volume[13..24].copy_from_slice(&[1, 1, 0, 1, 16, 0, 8, 0, 0xf8, 1, 0]);
    volume[510..].copy_from_slice(&[0x55, 0xaa]);
    let clusters = content.len().div_ceil(SECTOR).min(5);
    let mut table = vec![0xf8, 0xff, 0xff];
    for pair in 0..3u16 {
        let number = |at: u16| match usize::from(at) - 1 < clusters {
            true => at + 1,
            false => 0xfff,
        };
        let both = u32::from(number(2 * pair + 2)) | u32::from(number(2 * pair + 3)) << 12;
        table.extend_from_slice(&both.to_le_bytes()[..3]);
    }
    table.resize(SECTOR, 0);
    let mut root = b"OPTIONS    \x20".to_vec();
    root.resize(26, 0);
    root.extend_from_slice(&[2, 0]);
    let bytes = u32::try_from(content.len()).unwrap_or(u32::MAX);
    root.extend_from_slice(&bytes.to_le_bytes());
    root.resize(SECTOR, 0);
    volume.extend(table);
    volume.extend(root);
    volume.extend_from_slice(content);
    volume.resize(8 * SECTOR, 0);
    volume
}
