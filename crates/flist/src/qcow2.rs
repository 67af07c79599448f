//! Reading the disk that a qcow2 image holds (QEMU's `docs/interop/qcow2.txt`, versions 2 and 3).
//!
//! Owns: header, tables, plain and compressed clusters of the image's present state; its snapshots stay where they are.
//! Refuses: whatever would need another file (a backing file, an external data file) or a key, what is marked corrupt,
//! features that it does not know, and tables that say more than the file holds. An image comes from anywhere: every
//! offset is an allegation. In memory are the L1 table, one L2 table and one cluster.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use flate2::{Decompress, FlushDecompress};

use crate::DISK_BYTES_MAX;

pub(crate) const MAGIC: [u8; 4] = *b"QFI\xfb";
/// Bytes of the header that are read: all fields that any feature that is known here needs.
const HEADER_BYTES: usize = 112;
/// A header of version 2 ends here; one of version 3 is at least [`HEADER_3_BYTES`] long.
const HEADER_2_BYTES: usize = 72;
const HEADER_3_BYTES: u32 = 104;
/// log2 of a cluster: what QEMU makes.
const CLUSTER_BITS: std::ops::RangeInclusive<u32> = 9..=21;
/// Largest L1 table, as QEMU has it. It is read whole.
const L1_BYTES_MAX: u64 = 32 << 20;
/// Incompatible features. One that is dirty has wrong reference counts, which nobody here reads.
const DIRTY: u64 = 1 << 0;
const CORRUPT: u64 = 1 << 1;
const EXTERNAL_DATA: u64 = 1 << 2;
const COMPRESSION_TYPE: u64 = 1 << 3;
const EXTENDED_L2: u64 = 1 << 4;
/// Of an entry in L1 and of a plain one in L2: where the table or cluster is.
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
const COMPRESSED: u64 = 1 << 62;
/// Of an entry in L2, version 3: the cluster is zeros, whatever place it has.
const ZERO: u64 = 1;
const ENTRY_BYTES: u64 = 8;
const SECTOR: u64 = 512;

#[derive(Debug, thiserror::Error)]
pub enum Qcow2Error {
    #[error("qcow2 image cannot be read")]
    Read(#[source] io::Error),
    #[error("this is no qcow2 image: it does not begin with its magic number")]
    Magic,
    #[error("qcow2 image has version {0}: versions 2 and 3 are known")]
    Version(u32),
    #[error("qcow2 image {what}: {advice}")]
    Unsupported {
        what: &'static str,
        advice: &'static str,
    },
    #[error("qcow2 image says that {what} is {found}, which it cannot be")]
    Impossible { what: &'static str, found: u64 },
    #[error(
        "qcow2 image is damaged: what is said to be {what} at byte {offset} is not in the file"
    )]
    Outside { what: &'static str, offset: u64 },
    #[error(
        "qcow2 image is damaged: its tables name more clusters than the file holds, so some are used more than once"
    )]
    Overlap,
    #[error(
        "qcow2 image is damaged: the cluster at byte {at} of its disk does not decompress to a cluster"
    )]
    Compressed { at: u64 },
}

/// Use `qemu-img convert` first.
const CONVERT: &str =
    "make it whole with `qemu-img convert -O qcow2 OLD NEW`, then pack the new one";

/// How clusters are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Compression {
    Deflate,
    Zstd,
}

/// Where a cluster of the disk is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Nowhere,
    Plain {
        offset: u64,
    },
    /// `bytes` at most; what follows the stream is others'.
    Compressed {
        offset: u64,
        bytes: u64,
    },
}

#[derive(Debug)]
pub(crate) struct Qcow2<'a> {
    file: &'a File,
    file_bytes: u64,
    bytes: u64,
    cluster_bits: u32,
    version: u32,
    compression: Compression,
    l1: Vec<u64>,
    /// The L2 table that was read last, and its place in L1.
    l2: Option<(u64, Vec<u8>)>,
    /// The compressed cluster that was read last, and its number on the disk.
    cluster: Option<(u64, Vec<u8>)>,
    /// Bytes of the file that no table or cluster has claimed yet. Each has its own: that bounds the work by the
    /// file's length, whatever size the disk is said to have.
    unclaimed: u64,
    /// L2 tables and clusters below these have made their claims.
    claimed_tables: u64,
    claimed_clusters: u64,
}

impl<'a> Qcow2<'a> {
    /// Reads and checks the header and the L1 table.
    pub(crate) fn open(file: &'a File) -> Result<Self, Qcow2Error> {
        let file_bytes = file.metadata().map_err(Qcow2Error::Read)?.len();
        let mut header = [0; HEADER_BYTES];
        let there = read_up_to(file, &mut header, 0)?;
        if there < HEADER_2_BYTES || header[..4] != MAGIC {
            return Err(Qcow2Error::Magic);
        }
        let header = Header::decode(&header)?;
        let entries_bits = header.cluster_bits - ENTRY_BYTES.trailing_zeros();
        let needed = header
            .bytes
            .div_ceil(1 << (header.cluster_bits + entries_bits));
        let impossible = |what, found| Err(Qcow2Error::Impossible { what, found });
        if needed * ENTRY_BYTES > L1_BYTES_MAX {
            return Err(Qcow2Error::Unsupported {
                what: "has a disk that is too large for its clusters",
                advice: "convert it with `qemu-img convert -O qcow2 -o cluster_size=64k OLD NEW`, then pack the new one",
            });
        }
        if u64::from(header.l1_entries) < needed {
            return impossible("the length of its L1 table", header.l1_entries.into());
        }
        if !header.l1_offset.is_multiple_of(1 << header.cluster_bits) {
            return impossible("the place of its L1 table", header.l1_offset);
        }
        let length = usize::try_from(needed * ENTRY_BYTES).expect("at most L1_BYTES_MAX");
        let mut table = vec![0; length];
        if read_up_to(file, &mut table, header.l1_offset)? < length {
            return Err(Qcow2Error::Outside {
                what: "its L1 table",
                offset: header.l1_offset,
            });
        }
        let (entries, _) = table.as_chunks::<8>();
        Ok(Self {
            file,
            file_bytes,
            bytes: header.bytes,
            cluster_bits: header.cluster_bits,
            version: header.version,
            compression: header.compression,
            l1: entries.iter().map(|e| u64::from_be_bytes(*e)).collect(),
            l2: None,
            cluster: None,
            unclaimed: file_bytes.saturating_add(1 << header.cluster_bits),
            claimed_tables: 0,
            claimed_clusters: 0,
        })
    }

    /// Length of the disk.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The first byte at or after `at` that may be other than zero; the disk's end where none is.
    pub(crate) fn next_data(&mut self, at: u64) -> Result<u64, Qcow2Error> {
        let mut from = at;
        while from < self.bytes {
            let table = from >> self.table_bits();
            if self.l1_entry(table)? == 0 {
                from = (table + 1) << self.table_bits();
                continue;
            }
            match self.place(from >> self.cluster_bits)? {
                Place::Nowhere => from = ((from >> self.cluster_bits) + 1) << self.cluster_bits,
                Place::Plain { .. } | Place::Compressed { .. } => return Ok(from),
            }
        }
        Ok(self.bytes)
    }

    /// Fills `into` with the disk's bytes from `at`, all of which are on it. Whoever goes front to back has each
    /// cluster read once.
    pub(crate) fn read(&mut self, mut at: u64, mut into: &mut [u8]) -> Result<(), Qcow2Error> {
        let cluster_bytes = 1u64 << self.cluster_bits;
        while !into.is_empty() {
            let within = at & (cluster_bytes - 1);
            let here = usize::try_from(cluster_bytes - within).expect("at most 2 MiB");
            let (piece, rest) = into.split_at_mut(here.min(into.len()));
            self.read_piece(at >> self.cluster_bits, within, piece)?;
            at += piece.len() as u64;
            into = rest;
        }
        Ok(())
    }

    /// A part of one cluster.
    fn read_piece(&mut self, cluster: u64, within: u64, into: &mut [u8]) -> Result<(), Qcow2Error> {
        match self.place(cluster)? {
            Place::Nowhere => into.fill(0),
            Place::Plain { offset } => {
                if offset >= self.file_bytes {
                    let what = "a cluster";
                    return Err(Qcow2Error::Outside { what, offset });
                }
                self.claim_cluster(cluster, 1 << self.cluster_bits)?;
                // The file's last cluster may be cut where zeros would follow.
                let there = read_up_to(self.file, into, offset + within)?;
                into[there..].fill(0);
            }
            Place::Compressed { offset, bytes } => {
                let from = usize::try_from(within).expect("at most 2 MiB");
                let plain = self.decompressed(cluster, offset, bytes)?;
                into.copy_from_slice(&plain[from..from + into.len()]);
            }
        }
        Ok(())
    }

    fn decompressed(&mut self, cluster: u64, offset: u64, bytes: u64) -> Result<&[u8], Qcow2Error> {
        let held = self.cluster.take().filter(|(number, _)| *number == cluster);
        let plain = match held {
            Some((_, plain)) => plain,
            None => {
                if offset >= self.file_bytes {
                    let what = "a compressed cluster";
                    return Err(Qcow2Error::Outside { what, offset });
                }
                let mut packed = vec![0; usize::try_from(bytes).expect("at most 4 MiB")];
                let there = read_up_to(self.file, &mut packed, offset)?;
                let length = 1usize << self.cluster_bits;
                let unpacked = match self.compression {
                    Compression::Deflate => inflate(&packed[..there], length),
                    Compression::Zstd => unpack_zstd(&packed[..there], length),
                };
                let at = cluster << self.cluster_bits;
                let (plain, taken) = unpacked.ok_or(Qcow2Error::Compressed { at })?;
                self.claim_cluster(cluster, taken)?;
                plain
            }
        };
        Ok(&self.cluster.insert((cluster, plain)).1)
    }

    /// log2 of what one L2 table describes.
    fn table_bits(&self) -> u32 {
        2 * self.cluster_bits - ENTRY_BYTES.trailing_zeros()
    }

    /// Offset of an L2 table; 0 where there is none.
    fn l1_entry(&self, table: u64) -> Result<u64, Qcow2Error> {
        let index = usize::try_from(table).expect("within the L1 table");
        let offset = self.l1[index] & OFFSET;
        if offset.is_multiple_of(1 << self.cluster_bits) {
            Ok(offset)
        } else {
            let what = "the place of an L2 table";
            Err(Qcow2Error::Impossible {
                what,
                found: offset,
            })
        }
    }

    fn place(&mut self, cluster: u64) -> Result<Place, Qcow2Error> {
        let entries_bits = self.cluster_bits - ENTRY_BYTES.trailing_zeros();
        let table = cluster >> entries_bits;
        let offset = self.l1_entry(table)?;
        if offset == 0 {
            return Ok(Place::Nowhere);
        }
        self.load(table, offset)?;
        let (_, entries) = self.l2.as_ref().expect("loaded");
        let (entries, _) = entries.as_chunks::<8>();
        let index = usize::try_from(cluster & ((1 << entries_bits) - 1)).expect("small");
        let entry = u64::from_be_bytes(entries[index]);
        if entry & COMPRESSED != 0 {
            return Ok(self.compressed(entry));
        }
        if entry & ZERO != 0 && self.version < 3 {
            let what = "an entry of an L2 table";
            return Err(Qcow2Error::Impossible { what, found: entry });
        }
        let offset = entry & OFFSET;
        if entry & ZERO != 0 || offset == 0 {
            return Ok(Place::Nowhere);
        }
        if !offset.is_multiple_of(1 << self.cluster_bits) {
            let what = "the place of a cluster";
            return Err(Qcow2Error::Impossible {
                what,
                found: offset,
            });
        }
        Ok(Place::Plain { offset })
    }

    /// "Compressed Clusters Descriptor": the offset, and above it the number of further sectors.
    fn compressed(&self, entry: u64) -> Place {
        let offset_bits = 62 - (self.cluster_bits - 8);
        let offset = entry & ((1 << offset_bits) - 1);
        let sectors = (entry & (COMPRESSED - 1)) >> offset_bits;
        Place::Compressed {
            offset,
            bytes: (sectors + 1) * SECTOR - offset % SECTOR,
        }
    }

    fn load(&mut self, table: u64, offset: u64) -> Result<(), Qcow2Error> {
        if self.l2.as_ref().is_some_and(|(held, _)| *held == table) {
            return Ok(());
        }
        let cluster_bytes = 1u64 << self.cluster_bits;
        if table >= self.claimed_tables {
            self.claim(cluster_bytes)?;
            self.claimed_tables = table + 1;
        }
        let (_, mut entries) = self.l2.take().unwrap_or_default();
        entries.resize(1 << self.cluster_bits, 0);
        if read_up_to(self.file, &mut entries, offset)? < entries.len() {
            let what = "an L2 table";
            return Err(Qcow2Error::Outside { what, offset });
        }
        self.l2 = Some((table, entries));
        Ok(())
    }

    fn claim_cluster(&mut self, cluster: u64, bytes: u64) -> Result<(), Qcow2Error> {
        if cluster >= self.claimed_clusters {
            self.claim(bytes)?;
            self.claimed_clusters = cluster + 1;
        }
        Ok(())
    }

    fn claim(&mut self, bytes: u64) -> Result<(), Qcow2Error> {
        let left = self.unclaimed.checked_sub(bytes);
        self.unclaimed = left.ok_or(Qcow2Error::Overlap)?;
        Ok(())
    }
}

/// What the header says, checked as far as it alone can be.
#[derive(Debug)]
struct Header {
    version: u32,
    cluster_bits: u32,
    bytes: u64,
    l1_entries: u32,
    l1_offset: u64,
    compression: Compression,
}

impl Header {
    fn decode(bytes: &[u8; HEADER_BYTES]) -> Result<Self, Qcow2Error> {
        let u32_at = |at: usize| u32::from_be_bytes(bytes[at..at + 4].try_into().expect("4 bytes"));
        let u64_at = |at: usize| u64::from_be_bytes(bytes[at..at + 8].try_into().expect("8 bytes"));
        let impossible = |what, found| Err(Qcow2Error::Impossible { what, found });
        let unsupported = |what, advice| Err(Qcow2Error::Unsupported { what, advice });
        let (version, cluster_bits, size) = (u32_at(4), u32_at(20), u64_at(24));
        let compression = match version {
            2 => Compression::Deflate,
            3 => features(u64_at(72), u32_at(100), bytes[104])?,
            other => return Err(Qcow2Error::Version(other)),
        };
        if u64_at(8) != 0 {
            return unsupported("has a backing file, and only part of the disk", CONVERT);
        }
        if u32_at(32) != 0 {
            return unsupported(
                "is encrypted",
                "decrypt it with `qemu-img convert`, then pack it with --encrypt if it is to be secret",
            );
        }
        if !CLUSTER_BITS.contains(&cluster_bits) {
            return impossible("log2 of its clusters", cluster_bits.into());
        }
        if size == 0 || size > DISK_BYTES_MAX {
            return impossible("the length of its disk (1 TiB at most)", size);
        }
        Ok(Self {
            version,
            cluster_bits,
            bytes: size,
            l1_entries: u32_at(36),
            l1_offset: u64_at(40),
            compression,
        })
    }
}

/// Of version 3. `kind` counts where its feature is set.
fn features(set: u64, header_bytes: u32, kind: u8) -> Result<Compression, Qcow2Error> {
    let unsupported = |what, advice| Err(Qcow2Error::Unsupported { what, advice });
    if header_bytes < HEADER_3_BYTES {
        let what = "the length of its header";
        return Err(Qcow2Error::Impossible {
            what,
            found: header_bytes.into(),
        });
    }
    if set & CORRUPT != 0 {
        return unsupported("is marked corrupt", "see what `qemu-img check` says");
    }
    if set & EXTERNAL_DATA != 0 {
        return unsupported("has its content in another file", CONVERT);
    }
    if set & EXTENDED_L2 != 0 {
        return unsupported("has subclusters (extended L2 entries)", CONVERT);
    }
    if set & !(DIRTY | COMPRESSION_TYPE) != 0 {
        return unsupported("has features that are not known here", CONVERT);
    }
    match (set & COMPRESSION_TYPE != 0, kind) {
        (false, _) | (true, 0) => Ok(Compression::Deflate),
        (true, 1) => Ok(Compression::Zstd),
        (true, _) => unsupported("is compressed in an unknown way", CONVERT),
    }
}

/// One deflate stream that gives exactly `length` bytes; them, and how many bytes it had.
fn inflate(packed: &[u8], length: usize) -> Option<(Vec<u8>, u64)> {
    let mut plain = vec![0; length];
    let mut stream = Decompress::new(false);
    let done = stream.decompress(packed, &mut plain, FlushDecompress::Finish);
    (done.is_ok() && stream.total_out() == length as u64).then(|| (plain, stream.total_in()))
}

/// The same of one zstd frame.
fn unpack_zstd(packed: &[u8], length: usize) -> Option<(Vec<u8>, u64)> {
    let taken = zstd::zstd_safe::find_frame_compressed_size(packed).ok()?;
    let plain = zstd::bulk::decompress(packed.get(..taken)?, length).ok()?;
    (plain.len() == length).then_some((plain, taken as u64))
}

/// Reads until `into` is full or the file ends.
fn read_up_to(file: &File, into: &mut [u8], offset: u64) -> Result<usize, Qcow2Error> {
    let mut there = 0;
    while there < into.len() {
        // What lies beyond every file is beyond this one too.
        let Some(from) = offset
            .checked_add(there as u64)
            .filter(|from| i64::try_from(*from).is_ok())
        else {
            break;
        };
        match file.read_at(&mut into[there..], from) {
            Ok(0) => break,
            Ok(count) => there += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(Qcow2Error::Read(error)),
        }
    }
    Ok(there)
}

#[cfg(test)]
#[path = "qcow2_tests.rs"]
mod tests;
