//! The chunk map: shared memory in which a VMM sees which chunks of its disk are present.
//!
//! Owns: the layout, its encoding, a validating decoder, and which chunks a byte range touches.
//! Refuses: mapping memory. The daemon writes a state byte with `pwrite` on the file behind the map,
//! after the chunk's bytes were written to the image file; the VMM loads it with acquire ordering from
//! its mapping, and reads the image file after. Both go through the page cache of one kernel, whose
//! write path orders the two stores.
//!
//! Layout, little-endian: 64 bytes of header {magic `SIFRMAP1`, version u32, chunk count u32, disk bytes
//! u64, zeros}, then per chunk 16 bytes {start block u32, blocks u32, reserved u64} sorted by start,
//! then per chunk one state byte. Blocks that no chunk covers are metadata or zeros: always present.

use std::ops::Range;

use crate::{BLOCK, CHUNK_BYTES_MAX, CHUNKS_MAX, DISK_BYTES_MAX};

pub const MAGIC: [u8; 8] = *b"SIFRMAP1";
pub const VERSION: u32 = 1;
pub const HEADER_BYTES: usize = 64;
pub const ENTRY_BYTES: usize = 16;

/// State byte: the image file does not hold the chunk yet; say [`crate::wire::FromVmm::Want`].
pub const ABSENT: u8 = 0;
/// State byte: the image file holds the chunk, verified. Never goes back.
pub const PRESENT: u8 = 1;

/// Where one chunk lies on the disk, in blocks of [`BLOCK`] bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    pub start_block: u32,
    pub blocks: u32,
}

impl Extent {
    pub fn start(&self) -> u64 {
        u64::from(self.start_block) * BLOCK
    }

    pub fn bytes(&self) -> u64 {
        u64::from(self.blocks) * BLOCK
    }

    pub fn end(&self) -> u64 {
        self.start() + self.bytes()
    }
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MapError {
    #[error("chunk map of {0} bytes is shorter than its header says")]
    Short(usize),
    #[error("chunk map does not begin with SIFRMAP1, or its reserved bytes are not zero")]
    Magic,
    #[error("chunk map has version {0}, only version 1 is known")]
    Version(u32),
    #[error("chunk map has {0} chunks, more than {CHUNKS_MAX}")]
    Count(u64),
    #[error("disk of {0} bytes is empty, above {DISK_BYTES_MAX} or no multiple of {BLOCK}")]
    Disk(u64),
    #[error("chunk {0} is empty, too long, out of order, overlapping or beyond the disk")]
    Extent(usize),
}

/// The disk and its chunks, checked: sorted, disjoint, inside the disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    disk_bytes: u64,
    chunks: Vec<Extent>,
}

impl Table {
    pub fn new(disk_bytes: u64, chunks: Vec<Extent>) -> Result<Self, MapError> {
        if disk_bytes == 0 || disk_bytes > DISK_BYTES_MAX || !disk_bytes.is_multiple_of(BLOCK) {
            return Err(MapError::Disk(disk_bytes));
        }
        if chunks.len() > CHUNKS_MAX {
            return Err(MapError::Count(chunks.len() as u64));
        }
        let mut free_from = 0;
        for (index, chunk) in chunks.iter().enumerate() {
            let sized = (1..=CHUNK_BYTES_MAX as u64).contains(&chunk.bytes());
            if !sized || chunk.start() < free_from || chunk.end() > disk_bytes {
                return Err(MapError::Extent(index));
            }
            free_from = chunk.end();
        }
        Ok(Self { disk_bytes, chunks })
    }

    pub fn disk_bytes(&self) -> u64 {
        self.disk_bytes
    }

    pub fn chunks(&self) -> &[Extent] {
        &self.chunks
    }

    /// Length of the whole map.
    pub fn map_bytes(&self) -> usize {
        self.states_offset() + self.chunks.len()
    }

    /// Where the state bytes begin: the state of chunk `i` is at `states_offset() + i`.
    pub fn states_offset(&self) -> usize {
        HEADER_BYTES + self.chunks.len() * ENTRY_BYTES
    }

    /// The chunks that share a byte with a range of the disk. Empty: nothing to wait for.
    pub fn chunks_of(&self, bytes: Range<u64>) -> Range<usize> {
        if bytes.is_empty() {
            return 0..0;
        }
        let first = self.chunks.partition_point(|c| c.end() <= bytes.start);
        let end = self.chunks.partition_point(|c| c.start() < bytes.end);
        first..end.max(first)
    }

    /// A new map: every chunk absent.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.map_bytes());
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&VERSION.to_le_bytes());
        let count = u32::try_from(self.chunks.len()).expect("at most CHUNKS_MAX chunks");
        out.extend_from_slice(&count.to_le_bytes());
        out.extend_from_slice(&self.disk_bytes.to_le_bytes());
        out.resize(HEADER_BYTES, 0);
        for chunk in &self.chunks {
            out.extend_from_slice(&chunk.start_block.to_le_bytes());
            out.extend_from_slice(&chunk.blocks.to_le_bytes());
            out.extend_from_slice(&[0; 8]);
        }
        out.resize(self.map_bytes(), ABSENT);
        out
    }

    /// Reads header and table; `map` may be longer than the map it holds (a mapping is whole pages).
    pub fn decode(map: &[u8]) -> Result<Self, MapError> {
        let header = map.get(..HEADER_BYTES).ok_or(MapError::Short(map.len()))?;
        if header[..8] != MAGIC || header[24..].iter().any(|b| *b != 0) {
            return Err(MapError::Magic);
        }
        let version = u32_at(header, 8);
        if version != VERSION {
            return Err(MapError::Version(version));
        }
        let count = u32_at(header, 12) as usize;
        if count > CHUNKS_MAX {
            return Err(MapError::Count(count as u64));
        }
        let disk_bytes = u64::from_le_bytes(header[16..24].try_into().expect("8 bytes"));
        let entries = HEADER_BYTES..HEADER_BYTES + count * ENTRY_BYTES;
        if map.len() < entries.end + count {
            return Err(MapError::Short(map.len()));
        }
        let (entries, _) = map[entries].as_chunks::<ENTRY_BYTES>();
        let extent = |e: &[u8; 16]| Extent {
            start_block: u32_at(e, 0),
            blocks: u32_at(e, 4),
        };
        Self::new(disk_bytes, entries.iter().map(extent).collect())
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("4 bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    prop_compose! {
        fn table()(parts in prop::collection::vec((0u32..9, 1u32..=256), 0..40), tail in 1u32..9) -> Table {
            let mut at = 0;
            let mut chunks = Vec::new();
            for (gap, blocks) in parts {
                chunks.push(Extent { start_block: at + gap, blocks });
                at += gap + blocks;
            }
            Table::new(u64::from(at + tail) * BLOCK, chunks).expect("built in order")
        }
    }

    proptest! {
        #[test]
        fn a_map_reads_back_whatever_follows_it(table in table(), tail in 0usize..5000) {
            let mut bytes = table.encode();
            prop_assert_eq!(bytes.len(), table.map_bytes());
            bytes.resize(bytes.len() + tail, 0xee);
            prop_assert_eq!(Table::decode(&bytes), Ok(table));
        }

        #[test]
        fn chunks_of_a_range_are_exactly_those_that_share_a_byte_with_it(
            table in table(), from in 0u64..12_000_000, length in 0u64..3_000_000,
        ) {
            let range = from..from + length;
            let found = table.chunks_of(range.clone());
            for (index, chunk) in table.chunks().iter().enumerate() {
                let shares = !range.is_empty() && chunk.start() < range.end && range.start < chunk.end();
                prop_assert_eq!(found.contains(&index), shares);
            }
        }

        #[test]
        fn hostile_bytes_are_refused_or_add_up(
            table in table(), at in 0usize..3000, bytes in prop::collection::vec(any::<u8>(), 1..9), cut in 0usize..3000,
        ) {
            let mut map = table.encode();
            let at = at % map.len();
            let end = map.len().min(at + bytes.len());
            map[at..end].copy_from_slice(&bytes[..end - at]);
            map.truncate(map.len().saturating_sub(cut % 64));
            if let Ok(read) = Table::decode(&map) {
                prop_assert!(read.map_bytes() <= map.len());
                prop_assert!(read.chunks().windows(2).all(|w| w[0].end() <= w[1].start()));
                prop_assert!(read.chunks().iter().all(|c| c.end() <= read.disk_bytes()));
            }
        }
    }

    #[test]
    fn a_range_at_the_end_of_numbers_touches_nothing() {
        let table = Table::new(
            BLOCK,
            vec![Extent {
                start_block: 0,
                blocks: 1,
            }],
        )
        .expect("fits");
        assert!(table.chunks_of(u64::MAX - 1..u64::MAX).is_empty());
        assert_eq!(table.chunks_of(0..u64::MAX), 0..1);
    }

    #[test]
    fn overlapping_and_oversized_chunks_are_refused() {
        let e = |start_block, blocks| Extent {
            start_block,
            blocks,
        };
        assert_eq!(
            Table::new(10 * BLOCK, vec![e(1, 2), e(2, 1)]),
            Err(MapError::Extent(1))
        );
        assert_eq!(
            Table::new(10 * BLOCK, vec![e(9, 2)]),
            Err(MapError::Extent(0))
        );
        assert_eq!(
            Table::new(1 << 30, vec![e(0, 257)]),
            Err(MapError::Extent(0))
        );
        assert_eq!(
            Table::new(10 * BLOCK, vec![e(0, 0)]),
            Err(MapError::Extent(0))
        );
        assert_eq!(Table::new(5, vec![]), Err(MapError::Disk(5)));
    }
}
