//! The chunk map of a lazy disk, mapped read-only and shared with the chunk daemon.
//!
//! Owns: the mapping, and loads with acquire ordering from its state bytes.
//! Refuses: a slice over memory that another process writes.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, Ordering};

use flist::map::{self, MapError, Table};

#[derive(Debug, thiserror::Error)]
pub(crate) enum SharedMapError {
    #[error("read the chunk map")]
    Read(#[source] io::Error),
    #[error("decode the chunk map")]
    Decode(#[source] MapError),
    #[error("map the chunk map of {0} bytes")]
    Map(usize, #[source] io::Error),
}

#[derive(Debug)]
pub(crate) struct ChunkMap {
    table: Table,
    start: NonNull<u8>,
    bytes: usize,
}

// SAFETY: the mapping belongs to this value alone and is only read, atomically.
unsafe impl Send for ChunkMap {}

impl ChunkMap {
    /// Header and table are read once with `read` and checked; only state bytes are looked at later.
    pub(crate) fn open(file: &File) -> Result<Self, SharedMapError> {
        let length = file.metadata().map_err(SharedMapError::Read)?.len();
        let longest = map::HEADER_BYTES + flist::CHUNKS_MAX * (map::ENTRY_BYTES + 1);
        let length = usize::try_from(length).unwrap_or(usize::MAX).min(longest);
        let mut bytes = vec![0; length];
        file.read_exact_at(&mut bytes, 0)
            .map_err(SharedMapError::Read)?;
        let table = Table::decode(&bytes).map_err(SharedMapError::Decode)?;
        drop(bytes);
        let bytes = table.map_bytes();
        // SAFETY: a new mapping at a place of the kernel's choice touches no memory of ours.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                bytes,
                libc::PROT_READ,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(SharedMapError::Map(bytes, io::Error::last_os_error()));
        }
        let start =
            NonNull::new(start.cast()).expect("mmap without MAP_FIXED never returns page 0");
        Ok(Self {
            table,
            start,
            bytes,
        })
    }

    pub(crate) fn table(&self) -> &Table {
        &self.table
    }

    /// Whether the image file holds this chunk. A chunk that is not in the table is never present.
    pub(crate) fn present(&self, chunk: usize) -> bool {
        if chunk >= self.table.chunks().len() {
            return false;
        }
        // SAFETY: the offset is below `map_bytes`, which is the length of the mapping that `self`
        // owns; the file behind it was at least as long and its owner, the chunk daemon, never cuts
        // it. An `AtomicU8` may be shared with a writer.
        let state = unsafe {
            AtomicU8::from_ptr(self.start.as_ptr().add(self.table.states_offset() + chunk))
        };
        state.load(Ordering::Acquire) == map::PRESENT
    }
}

impl Drop for ChunkMap {
    fn drop(&mut self) {
        // SAFETY: exactly the mapping made in `open`, and nothing refers to it any more.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.bytes) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flist::map::Extent;

    #[test]
    fn a_state_byte_written_to_the_file_is_seen_through_the_mapping() {
        let table = Table::new(
            1 << 20,
            vec![
                Extent {
                    start_block: 1,
                    blocks: 2
                };
                1
            ],
        )
        .expect("valid");
        let file = tempfile::tempfile().expect("temporary file");
        file.write_all_at(&table.encode(), 0).expect("writes");
        let map = ChunkMap::open(&file).expect("opens");
        assert!(!map.present(0));
        file.write_all_at(&[map::PRESENT], table.states_offset() as u64)
            .expect("writes");
        assert!(map.present(0));
        assert!(!map.present(1));
    }
}
