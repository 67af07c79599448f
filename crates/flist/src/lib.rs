//! The flist: a container image as metadata and content-addressed chunks.
//!
//! Owns: the file format, packing, the chunk store's layout, the cache on a node, the map of present
//! chunks that a VMM reads, and the packets of the chunk daemon.
//! Refuses: threads, sockets and HTTP (`init` has the daemon), and whatever a hostile flist, chunk or
//! map says that does not add up.
#![forbid(unsafe_code)]

mod archive;
mod beneath;
pub mod cache;
pub mod chunk;
pub mod columns;
mod compressed;
mod content;
pub mod disk;
pub mod erofs;
pub mod format;
#[cfg(test)]
mod image_tests;
pub mod input;
pub mod map;
pub mod materialise;
pub mod oci;
pub mod pack;
mod qcow2;
mod scan;
pub mod seal;
pub mod store;
pub mod trace;
pub mod tree;
pub mod wire;

/// Block of the disk and of every chunk: EROFS block size, and the page of every machine we run on.
pub const BLOCK: u64 = 4096;
/// The same, as a length in memory.
pub(crate) const BLOCK_LEN: usize = 4096;
/// Largest disk that an flist describes. Far beyond any container image, and far below what would
/// overflow block numbers.
pub const DISK_BYTES_MAX: u64 = 1 << 40;
/// Most chunks of an flist: bounds the map to 17 MiB and the chunk table to 88 MiB.
pub const CHUNKS_MAX: usize = 1 << 20;
/// Longest chunk, plain.
pub const CHUNK_BYTES_MAX: usize = 1 << 20;
/// Longest chunk as stored: one that does not compress, with the tag of its encryption.
pub const STORED_BYTES_MAX: usize = CHUNK_BYTES_MAX + seal::TAG_BYTES;
