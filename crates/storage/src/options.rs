//! The partition that has a node's options: a GPT partition of a given name with a FAT file system, and a file in that.
//!
//! Owns: finding it on a disk, and reading the file, once. Refuses: disks with a node's pool, writing, and what the file means.
//!
//! The bytes are whose who has plugged the disk in: nothing is mounted, and every number in them is checked ([`crate::fat`]).

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

pub use crate::fat::FatError;
use crate::fat::{self, Medium};
use crate::probe;
use crate::table;

/// The partition's name where no other is named.
pub const NAME: &str = "sifr-config";
/// The file in its root directory.
pub const FILE: &str = "options";
/// Longest file of options: hundreds of lines.
pub const FILE_MAX: u32 = 64 << 10;

/// A partition of the name that was looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Part {
    pub number: u32,
    start: u64,
    bytes: u64,
}

/// Those on a disk of `size` bytes. A disk that is a node's pool has none, whatever its table comes to say.
pub fn find(disk: &File, size: u64, block_bytes: u64, name: &str) -> io::Result<Vec<Part>> {
    if probe::our_partition(disk, size, block_bytes)?.is_some() {
        return Ok(Vec::new());
    }
    // A disk may have been moved to a bridge that shows other blocks.
    for block in [block_bytes, 512, 4096] {
        let Some(table) = table::gpt(disk, size, block)? else {
            continue;
        };
        let named = table.entries.into_iter().filter(|e| e.name == name);
        let part = |e: table::Entry| Part {
            number: e.number,
            start: e.start,
            bytes: e.bytes,
        };
        return Ok(named.map(part).collect());
    }
    Ok(Vec::new())
}

/// The bytes of its file.
pub fn read(disk: &File, part: Part) -> Result<Vec<u8>, FatError> {
    let Part { start, bytes, .. } = part;
    let inside = Inside { disk, start, bytes };
    fat::file(&inside, bytes, FILE, FILE_MAX)
}

/// A part of a disk.
struct Inside<'a> {
    disk: &'a File,
    start: u64,
    bytes: u64,
}

impl Medium for Inside<'_> {
    fn read(&self, at: u64, into: &mut [u8]) -> io::Result<()> {
        let end = at.checked_add(into.len() as u64);
        match end.is_some_and(|end| end <= self.bytes) {
            true => self.disk.read_exact_at(into, self.start + at),
            false => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}

#[cfg(test)]
#[path = "options_tests.rs"]
mod tests;
