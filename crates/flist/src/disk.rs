//! A whole disk as an image: what it is read from, and how it is cut.
//!
//! Owns: telling raw and qcow2 apart, holes, and chunks by the disk's own offsets. Refuses: to know what is on the
//! disk: partitions and file systems are the business of the machine that runs it.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::FileExt;

use nix::errno::Errno;
use nix::unistd::{Whence, lseek};
use types::flist::ImageConfig;

use crate::chunk::{Encoder, hash};
use crate::format::{self, Metadata};
use crate::map::Extent;
use crate::pack::{PackError, Packed, Progress, Stats, is_zero};
use crate::qcow2::{self, Qcow2, Qcow2Error};
use crate::seal::Salt;
use crate::store::ChunkSink;
use crate::{BLOCK, BLOCK_LEN, DISK_BYTES_MAX};

/// Content is cut at multiples of this offset, so that two disks that differ in a place differ in a chunk. It is
/// what large files are cut into, for the same reasons.
const CUT_BYTES: u64 = 512 << 10;

/// How a disk lies in its file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiskFormat {
    /// Byte for byte.
    Raw,
    Qcow2,
}

#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    #[error("disk image cannot be read")]
    Read(#[source] io::Error),
    #[error("disk image has {0} bytes: 1 byte to 1 TiB can be packed")]
    Size(u64),
    #[error(transparent)]
    Qcow2(#[from] Qcow2Error),
}

/// Bytes at the beginning that [`looks_like`] wants to see.
pub(crate) const START_BYTES: usize = 2048;
const SECTOR: usize = 512;
/// The last two bytes of a boot sector; a GPT has one too.
const BOOT_SIGNATURE: [u8; 2] = [0x55, 0xaa];
/// ext2, ext3 and ext4: `s_magic` of the superblock at byte 1024.
const EXT_MAGIC_AT: usize = 1024 + 56;
const EXT_MAGIC: [u8; 2] = [0x53, 0xef];

/// Whether a file that begins so is a disk, and how it lies in it. What is raw has no magic number: it is taken for a
/// disk where it begins with a boot sector, or with nothing and then an ext file system.
pub(crate) fn looks_like(start: &[u8]) -> Option<DiskFormat> {
    if start.starts_with(&qcow2::MAGIC) {
        return Some(DiskFormat::Qcow2);
    }
    let boots = start.get(SECTOR - 2..SECTOR) == Some(&BOOT_SIGNATURE);
    let ext = start.get(EXT_MAGIC_AT..EXT_MAGIC_AT + 2) == Some(&EXT_MAGIC);
    (boots || ext).then_some(DiskFormat::Raw)
}

/// Packs the disk in `file`. The result has no metadata area.
pub(crate) fn pack(
    file: &File,
    format: DiskFormat,
    config: &ImageConfig,
    salt: Option<&Salt>,
    sink: &mut dyn ChunkSink,
    progress: &mut dyn FnMut(Progress),
) -> Result<Packed, PackError> {
    let mut disk = Disk::open(file, format)?;
    let total_bytes = disk.bytes();
    let disk_bytes = total_bytes.next_multiple_of(BLOCK);
    let mut encoder = Encoder::new(salt).map_err(PackError::Compress)?;
    let cut = usize::try_from(CUT_BYTES).expect("64-bit only");
    let (mut buffer, mut chunks, mut stats) = (vec![0; cut], Vec::new(), Stats::default());
    let mut at = 0;
    while at < total_bytes {
        progress(Progress {
            done_bytes: at,
            total_bytes,
        });
        let data = disk.next_data(at)?;
        if data >= total_bytes {
            break;
        }
        at = data / CUT_BYTES * CUT_BYTES;
        let length = CUT_BYTES.min(total_bytes - at);
        let whole = usize::try_from(length).expect("at most a cut");
        disk.read(at, &mut buffer[..whole])?;
        let padded = whole.next_multiple_of(BLOCK_LEN);
        buffer[whole..padded].fill(0);
        let start_block = u32::try_from(at / BLOCK).expect("at most DISK_BYTES_MAX");
        if let Some((extent, plain)) = content(start_block, &buffer[..padded]) {
            let encoded = encoder.encode(extent, plain);
            let (chunk, stored) = encoded.map_err(PackError::Compress)?;
            sink.put(&chunk.stored, stored).map_err(PackError::Sink)?;
            stats.stored_bytes += u64::from(chunk.stored_bytes);
            stats.content_bytes += extent.bytes();
            chunks.push(chunk);
        }
        at += length;
    }
    progress(Progress {
        done_bytes: total_bytes,
        total_bytes,
    });
    let flist = format::encode(config, Metadata::None, disk_bytes, salt.is_some(), &chunks)?;
    stats.disk_bytes = disk_bytes;
    stats.chunks = chunks.len() as u64;
    Ok(Packed {
        digest: hash(&flist),
        flist,
        stats,
    })
}

/// What is left of a cut without the blocks of zeros at both its ends, and where that is.
fn content(start_block: u32, cut: &[u8]) -> Option<(Extent, &[u8])> {
    let (blocks, _) = cut.as_chunks::<BLOCK_LEN>();
    let first = blocks.iter().position(|block| !is_zero(block))?;
    let last = blocks.iter().rposition(|block| !is_zero(block))?;
    let number = |n: usize| u32::try_from(n).expect("at most a cut");
    let extent = Extent {
        start_block: start_block + number(first),
        blocks: number(last + 1 - first),
    };
    Some((extent, blocks[first..=last].as_flattened()))
}

#[derive(Debug)]
enum Disk<'a> {
    Raw { file: &'a File, bytes: u64 },
    Qcow2(Box<Qcow2<'a>>),
}

impl<'a> Disk<'a> {
    fn open(mut file: &'a File, format: DiskFormat) -> Result<Self, DiskError> {
        match format {
            DiskFormat::Raw => {
                // Works for block devices too.
                let bytes = file.seek(SeekFrom::End(0)).map_err(DiskError::Read)?;
                if bytes == 0 || bytes > DISK_BYTES_MAX {
                    return Err(DiskError::Size(bytes));
                }
                Ok(Self::Raw { file, bytes })
            }
            DiskFormat::Qcow2 => Ok(Self::Qcow2(Box::new(Qcow2::open(file)?))),
        }
    }

    fn bytes(&self) -> u64 {
        match self {
            Self::Raw { bytes, .. } => *bytes,
            Self::Qcow2(image) => image.bytes(),
        }
    }

    /// The first byte at or after `at` that may be other than zero; the disk's end or more where none is.
    fn next_data(&mut self, at: u64) -> Result<u64, DiskError> {
        match self {
            Self::Raw { file, .. } => Ok(after_hole(file, at)),
            Self::Qcow2(image) => Ok(image.next_data(at)?),
        }
    }

    fn read(&mut self, at: u64, into: &mut [u8]) -> Result<(), DiskError> {
        match self {
            Self::Raw { file, .. } => file.read_exact_at(into, at).map_err(DiskError::Read),
            Self::Qcow2(image) => Ok(image.read(at, into)?),
        }
    }
}

/// Where a file says that data begins; `at` itself where it cannot say.
fn after_hole(file: &File, at: u64) -> u64 {
    let Ok(offset) = i64::try_from(at) else {
        return at;
    };
    match lseek(file, offset, Whence::SeekData) {
        Ok(data) => u64::try_from(data).unwrap_or(at),
        Err(Errno::ENXIO) => u64::MAX,
        Err(_) => at,
    }
}

#[cfg(test)]
#[path = "disk_tests.rs"]
mod tests;
