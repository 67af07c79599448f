//! Partition tables of others.
//!
//! Owns: reading GPT and MBR, of others and our own: what lies on the disk of it, within bounds.
//! Refuses: to say what is in a partition ([`crate::recognise`] does), tables within partitions, and writing.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use crc::{CRC_32_ISO_HDLC, Crc};

use crate::recognise::{Mark, printable};

/// Partitions that are looked at: as many as a GPT of the usual size has.
const PARTITIONS_MAX: usize = 128;
/// Links of the chain of logical partitions that are followed: Linux follows fewer than this.
const LOGICAL_MAX: u32 = 60;
/// MBR counts in sectors, whatever the disk's own block size.
const SECTOR: u64 = 512;

pub(crate) struct Table {
    pub(crate) name: &'static str,
    pub(crate) entries: Vec<Entry>,
}

/// A partition that lies on the disk.
pub(crate) struct Entry {
    pub(crate) number: u32,
    pub(crate) start: u64,
    pub(crate) bytes: u64,
    pub(crate) name: String,
}

/// The table of a disk of `size` bytes. `marks`: what has been recognised on it.
pub(crate) fn read(
    disk: &File,
    size: u64,
    block_bytes: u64,
    marks: &[Mark],
) -> io::Result<Option<Table>> {
    // A disk may have been moved to a bridge that shows other blocks.
    for block in [block_bytes, 512, 4096] {
        if let Some(table) = gpt(disk, size, block)? {
            return Ok(Some(table));
        }
    }
    let head = piece(disk, size, 0, 8 << 10)?;
    let is_header = |at: usize| head.get(at..at + 8) == Some(b"EFI PART");
    if is_header(512) || is_header(4096) {
        return Ok(Some(Table {
            name: "GPT partition table, damaged",
            entries: Vec::new(),
        }));
    }
    // The first sector of these looks like an MBR.
    const BOOTABLE: [&str; 5] = ["FAT", "NTFS", "exFAT", "BitLocker", "ReFS"];
    let is_boot_sector = |m: &Mark| BOOTABLE.iter().any(|name| m.name.starts_with(name));
    if marks.iter().any(is_boot_sector) {
        return Ok(None);
    }
    mbr(disk, size, &head)
}

fn piece(disk: &File, size: u64, at: u64, length: u64) -> io::Result<Vec<u8>> {
    let length = length.min(size.saturating_sub(at));
    let mut bytes = vec![0; usize::try_from(length).map_err(|_| io::ErrorKind::InvalidInput)?];
    disk.read_exact_at(&mut bytes, at)?;
    Ok(bytes)
}

/// What of `start` and `length` (in units of `unit` bytes) lies on the disk.
fn entry(number: u32, start: u64, length: u64, unit: u64, size: u64, name: &str) -> Option<Entry> {
    let start = start.checked_mul(unit).filter(|start| *start < size)?;
    let bytes = length.checked_mul(unit)?.min(size - start);
    (bytes > 0).then(|| Entry {
        number,
        start,
        bytes,
        name: printable(name),
    })
}

/// The entry of a GPT (UEFI 2.10, 5.3.3), as it stands there.
pub(crate) struct GptEntry {
    pub(crate) number: u32,
    /// Type, in the byte order of the disk.
    pub(crate) kind: [u8; 16],
    pub(crate) first_block: u64,
    pub(crate) last_block: u64,
    pub(crate) name: String,
}

/// A GPT whose checksums are right.
pub(crate) struct Gpt {
    copy: GptCopy,
    /// Used ones.
    pub(crate) entries: Vec<GptEntry>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum GptCopy {
    First,
    Last,
}

const CRC: Crc<u32> = Crc::<u32>::new(&CRC_32_ISO_HDLC);
/// Entries of a table that are read: eight times what a table has; Linux has no more than 256 partitions of a disk.
const ENTRIES_MAX: u32 = 1024;
/// Sizes that an entry may have (a power of two from 128 on): what is in use, and some room.
const ENTRY_BYTES: [u32; 4] = [128, 256, 512, 1024];
/// Bytes of an entry that have a meaning.
const ENTRY_USED: usize = 128;
const HEADER: usize = 92;

/// The table of a disk with blocks of `block` bytes: the first copy that is whole.
pub(crate) fn read_gpt(disk: &File, size: u64, block: u64) -> io::Result<Option<Gpt>> {
    // Less holds no table, and a block size that is none divides nothing.
    if !(512..=4096).contains(&block) || size < 3 * block {
        return Ok(None);
    }
    for (copy, at) in [(GptCopy::First, 1), (GptCopy::Last, size / block - 1)] {
        if let Some(entries) = gpt_at(disk, size, block, at)? {
            return Ok(Some(Gpt { copy, entries }));
        }
    }
    Ok(None)
}

/// The entries that the header in this block names, if both have the checksums that they say.
fn gpt_at(disk: &File, size: u64, block: u64, at: u64) -> io::Result<Option<Vec<GptEntry>>> {
    let mut header = piece(disk, size, at.saturating_mul(block), block)?;
    if header.len() < HEADER || !header.starts_with(b"EFI PART") {
        return Ok(None);
    }
    let [length, checksum] = [12, 16].map(|at| le32(&header, at));
    let [count, bytes, entries_checksum] = [80, 84, 88].map(|at| le32(&header, at));
    let [place, start] = [24, 72].map(|at| le64(&header, at));
    header[16..20].fill(0);
    let length = usize::try_from(length).unwrap_or(usize::MAX);
    let signed = header.get(..length).filter(|signed| signed.len() >= HEADER);
    let is_whole = signed.is_some_and(|signed| CRC.checksum(signed) == checksum);
    let is_sane = count <= ENTRIES_MAX && ENTRY_BYTES.contains(&bytes) && place == at;
    if !is_whole || !is_sane {
        return Ok(None);
    }
    let all = u64::from(count) * u64::from(bytes);
    let entries = piece(disk, size, start.saturating_mul(block), all)?;
    if entries.len() as u64 != all || CRC.checksum(&entries) != entries_checksum {
        return Ok(None);
    }
    let bytes = usize::try_from(bytes).unwrap_or(ENTRY_USED);
    let used = (1u32..).zip(entries.chunks_exact(bytes));
    Ok(Some(used.filter_map(|(n, e)| gpt_entry(n, e)).collect()))
}

/// `None`: unused, which a type of zeros says.
fn gpt_entry(number: u32, bytes: &[u8]) -> Option<GptEntry> {
    let bytes: &[u8; ENTRY_USED] = bytes.first_chunk()?;
    let kind = *bytes.first_chunk()?;
    let (units, _) = bytes[56..].as_chunks();
    let units: Vec<u16> = units.iter().map(|unit| u16::from_le_bytes(*unit)).collect();
    let name = units.split(|unit| *unit == 0).next().unwrap_or_default();
    (kind != [0; 16]).then(|| GptEntry {
        number,
        kind,
        first_block: le64(bytes, 32),
        last_block: le64(bytes, 40),
        name: String::from_utf16_lossy(name),
    })
}

fn le32(bytes: &[u8], at: usize) -> u32 {
    let number = bytes.get(at..).and_then(<[u8]>::first_chunk);
    number.map_or(0, |number| u32::from_le_bytes(*number))
}

fn le64(bytes: &[u8], at: usize) -> u64 {
    let number = bytes.get(at..).and_then(<[u8]>::first_chunk);
    number.map_or(0, |number| u64::from_le_bytes(*number))
}

pub(crate) fn gpt(disk: &File, size: u64, block: u64) -> io::Result<Option<Table>> {
    let Some(table) = read_gpt(disk, size, block)? else {
        return Ok(None);
    };
    let on_disk = |e: &GptEntry| {
        let blocks = e.last_block.checked_sub(e.first_block)?.checked_add(1)?;
        entry(e.number, e.first_block, blocks, block, size, &e.name)
    };
    let entries: Vec<_> = table
        .entries
        .iter()
        .filter_map(on_disk)
        .take(PARTITIONS_MAX)
        .collect();
    let name = match (table.copy, entries.is_empty()) {
        (GptCopy::First, false) => "GPT partition table",
        (GptCopy::First, true) => "GPT partition table without partitions",
        (GptCopy::Last, _) => "GPT partition table, of which only the copy at the end is left",
    };
    Ok(Some(Table { name, entries }))
}

/// Four entries in the first sector; one of them may begin a chain of further tables with two each.
fn mbr(disk: &File, size: u64, head: &[u8]) -> io::Result<Option<Table>> {
    let Some(slots) = head.get(..512).and_then(slots) else {
        return Ok(None);
    };
    let used = |slot: &&Slot| slot.kind != 0;
    let sane = slots.iter().all(|s| s.flag & 0x7f == 0);
    let some = slots
        .iter()
        .filter(used)
        .all(|s| s.start > 0 && s.sectors > 0);
    if !sane || !some {
        return Ok(None);
    }
    let mut entries = Vec::new();
    let mut extended = None;
    for (number, slot) in (1u32..).zip(&slots).filter(|(_, slot)| slot.kind != 0) {
        if slot.is_extended() {
            extended = extended.or(Some(u64::from(slot.start)));
            continue;
        }
        let (start, sectors) = (slot.start.into(), slot.sectors.into());
        entries.extend(entry(number, start, sectors, SECTOR, size, ""));
    }
    if let Some(first) = extended {
        logical(disk, size, first, &mut entries)?;
    }
    let name = match entries.is_empty() {
        false => "MBR partition table",
        true => "MBR boot sector without partitions",
    };
    Ok(Some(Table { name, entries }))
}

/// Logical partitions are counted from five.
fn logical(disk: &File, size: u64, first: u64, entries: &mut Vec<Entry>) -> io::Result<()> {
    let mut at = first;
    for number in 5..5 + LOGICAL_MAX {
        let sector = piece(disk, size, at.saturating_mul(SECTOR), SECTOR)?;
        let Some([slot, next, ..]) = slots(&sector) else {
            return Ok(());
        };
        let start = at.saturating_add(slot.start.into());
        if slot.kind != 0 {
            entries.extend(entry(number, start, slot.sectors.into(), SECTOR, size, ""));
        }
        if !next.is_extended() {
            return Ok(());
        }
        at = first.saturating_add(next.start.into());
    }
    Ok(())
}

struct Slot {
    flag: u8,
    kind: u8,
    start: u32,
    sectors: u32,
}

impl Slot {
    fn is_extended(&self) -> bool {
        matches!(self.kind, 0x05 | 0x0f | 0x85)
    }
}

/// The entries of a sector with the mark of a table.
fn slots(sector: &[u8]) -> Option<[Slot; 4]> {
    let sector: &[u8; 512] = sector.first_chunk()?;
    if sector[510..] != [0x55, 0xaa] {
        return None;
    }
    let slot = |n: usize| {
        let entry = &sector[446 + 16 * n..][..16];
        Slot {
            flag: entry[0],
            kind: entry[4],
            start: le32(entry, 8),
            sectors: le32(entry, 12),
        }
    };
    Some([slot(0), slot(1), slot(2), slot(3)])
}
