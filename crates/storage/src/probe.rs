//! What is on a disk, told from its first and last bytes.
//!
//! Owns: what counts as blank, and the marks of our own pool.
//! Refuses: guessing. What is not all zero and not ours is foreign, whether [`crate::recognise`] knows its name or not.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use types::PublicKey;
use vault::luks::{self, DATA_AT, HEADERS_BYTES};

use crate::claim;
use crate::mirror;
use crate::recognise::{Foreign, recognise};
use crate::table::{self, GptEntry};

/// A disk is blank if this much at either end is zero: every format below puts a mark there.
pub const EDGE_BYTES: u64 = 16 << 20;
/// GPT type of the pool's partition: random, ours alone.
pub const POOL_TYPE: &str = "5B1F3E6A-0C7D-4B52-9E84-71D2A95C0F36";
const NAME: &str = "sifr-pool";

/// How far making a pool has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// The partition exists, and nothing has ever been kept in it: it is all zeros, or a mark before it
    /// says that its file system is being made.
    Made,
    /// There is a file system: its content is sacred.
    Live,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// Both edges are zero, or hold nothing but our mark and a partition table of ours that was cut short.
    Blank,
    /// Made by Sifr for the owner whose key begins with these digits.
    Pool {
        owner: String,
        stage: Stage,
        partition: u32,
    },
    /// Somebody's.
    Foreign(Foreign),
}

impl Content {
    /// One word for the node report.
    pub fn describe(&self, owner: Option<&PublicKey>) -> String {
        match self {
            Self::Blank => "blank".to_owned(),
            Self::Pool { owner: theirs, .. } if owner.is_some_and(|o| owner_mark(o) == *theirs) => {
                "pool".to_owned()
            }
            Self::Pool { owner, .. } => format!("pool of another owner, ed25519:{owner}…"),
            Self::Foreign(what) => what.to_string(),
        }
    }
}

/// The part of the owner's key that stands in the partition's name, which has 36 UTF-16 units.
pub fn owner_mark(owner: &PublicKey) -> String {
    owner.to_string()["ed25519:".len()..][..24].to_owned()
}

/// The partition's name.
pub fn partition_name(owner: &PublicKey) -> String {
    format!("{NAME} {}", owner_mark(owner))
}

fn parse_name(name: &str) -> Option<String> {
    let owner = name.strip_prefix(NAME)?.strip_prefix(' ')?;
    let digit = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
    let fine = owner.len() == 24 && owner.bytes().all(digit);
    fine.then(|| owner.to_owned())
}

/// Reads both edges of a disk of `size` bytes and says what it is. Errors are I/O errors of the disk.
pub fn probe(disk: &File, size: u64, block_bytes: u64) -> io::Result<Content> {
    let edge = EDGE_BYTES.min(size);
    // The usual case after the first boot, without reading both edges.
    if let Some(content) = our_pool(disk, size, block_bytes)? {
        return Ok(content);
    }
    let first = read(disk, 0, edge)?;
    let last = read(disk, size - edge, edge)?;
    let zero = (is_zero(&first) || claim::is_wiped(&first)) && is_zero(&last);
    if zero || usize::try_from(block_bytes).is_ok_and(|b| is_our_beginning(&first, &last, b)) {
        return Ok(Content::Blank);
    }
    Ok(Content::Foreign(recognise(disk, size, block_bytes)?))
}

fn read(disk: &File, at: u64, length: u64) -> io::Result<Vec<u8>> {
    let length = usize::try_from(length).map_err(|_| io::ErrorKind::InvalidInput)?;
    let mut bytes = vec![0; length];
    disk.read_exact_at(&mut bytes, at)?;
    Ok(bytes)
}

/// By cache lines: both edges together have 32 MiB, and are looked at on every boot.
pub(crate) fn is_zero(bytes: &[u8]) -> bool {
    let (lines, rest) = bytes.as_chunks::<64>();
    lines.iter().all(|line| *line == [0; 64]) && rest.iter().all(|b| *b == 0)
}

/// The pool's partition, as the table says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Partition {
    pub(crate) number: u32,
    pub(crate) start: u64,
    pub(crate) bytes: u64,
    owner: String,
}

/// Our pool, by its table; what is in the partition says how far it is.
fn our_pool(disk: &File, size: u64, block_bytes: u64) -> io::Result<Option<Content>> {
    let Some(partition) = our_partition(disk, size, block_bytes)? else {
        return Ok(None);
    };
    Ok(Some(match stage(disk, &partition)? {
        Some(stage) => Content::Pool {
            owner: partition.owner,
            stage,
            partition: partition.number,
        },
        None => Content::Foreign(Foreign::named(
            "pool whose file system has lost its beginning: nothing was touched, xfs_repair elsewhere may find it",
        )),
    }))
}

/// A protective MBR and a valid GPT whose only partition has our type and a name that we write, and lies on
/// the disk of `size` bytes.
pub(crate) fn our_partition(
    disk: &File,
    size: u64,
    block_bytes: u64,
) -> io::Result<Option<Partition>> {
    let Some(table) = table::read_gpt(disk, size, block_bytes)? else {
        return Ok(None);
    };
    if !is_protective_mbr(&read(disk, 0, 512)?) {
        return Ok(None);
    }
    let [partition] = table.entries.as_slice() else {
        return Ok(None);
    };
    let GptEntry {
        number,
        kind,
        first_block,
        last_block,
        name,
    } = partition;
    let (true, Some(owner)) = (*kind == pool_type_on_disk(), parse_name(name)) else {
        return Ok(None);
    };
    let bytes = |blocks: u64| blocks.checked_mul(block_bytes);
    let blocks = last_block.checked_sub(*first_block);
    let blocks = blocks.and_then(|blocks| blocks.checked_add(1));
    let (Some(start), Some(bytes)) = (bytes(*first_block), blocks.and_then(bytes)) else {
        return Ok(None);
    };
    if start.checked_add(bytes).is_none_or(|end| end > size) {
        return Ok(None);
    }
    Ok(Some(Partition {
        number: *number,
        start,
        bytes,
        owner,
    }))
}

/// Where the partition begins: 1 MiB suits every disk's erase and physical block.
pub(crate) const ALIGN_BYTES: u64 = 1 << 20;
/// Stands in the last bytes before the partition while its file system is being made. `mkfs` writes in an
/// order of its own, and a power cut may keep any part of that, over whatever the middle of a blank disk
/// held: only this says that nothing is lost. It is on disk before all else and gone from it before anything
/// is kept in the pool.
pub(crate) const MAKING: &[u8; 32] = b"sifr: this pool is being made...";
/// Bytes that the mark takes: a block of any disk, so that it is written whole.
pub(crate) const MAKING_BYTES: u64 = 4096;
/// Bytes at the start of the partition that are looked at: larger than any sector, with both headers of an encrypted one.
const BEGINNING: u64 = HEADERS_BYTES as u64;
/// Offset of `sb_inprogress` in an XFS superblock (fs/xfs/libxfs/xfs_format.h): `mkfs` clears it last.
const SB_INPROGRESS: usize = 126;

/// `None` where the partition holds something, and no file system that can be mounted.
fn stage(disk: &File, partition: &Partition) -> io::Result<Option<Stage>> {
    if let Some(at) = partition.start.checked_sub(MAKING_BYTES)
        && read(disk, at, MAKING.len() as u64)? == MAKING
    {
        return Ok(Some(Stage::Made));
    }
    let beginning = read(disk, partition.start, BEGINNING.min(partition.bytes))?;
    if is_finished(&beginning) || luks::is_luks(&beginning) || mirror::is_half(&beginning) {
        return Ok(Some(Stage::Live));
    }
    Ok(is_untouched(disk, partition)?.then_some(Stage::Made))
}

/// An XFS superblock whose `mkfs` came to its end.
pub(crate) fn is_finished(beginning: &[u8]) -> bool {
    beginning.starts_with(b"XFSB") && beginning.get(SB_INPROGRESS) == Some(&0)
}

/// What a file system is never without is at the start of the partition, or where XFS keeps copies: at the
/// start of each allocation group, of which one has the log behind it. A disk below 4 TiB has four groups, a
/// larger one a group in each TiB less one block. Of two mirrored disks that are not of one size the larger keeps them elsewhere.
fn is_untouched(disk: &File, partition: &Partition) -> io::Result<bool> {
    const FIRST: u64 = EDGE_BYTES - (1 << 20);
    const COPY: u64 = 1 << 20;
    const GROUP_MAX: u64 = (1 << 40) - 4096;
    let of = |begin: u64| {
        let bytes = partition.bytes.saturating_sub(begin);
        let quarters = (1..4).map(move |n| bytes / 4 / 4096 * n * 4096);
        let groups = (1..=bytes / GROUP_MAX).map(|n| n * GROUP_MAX);
        quarters.chain(groups).map(move |at| (begin + at, COPY))
    };
    // An encrypted one, a mirrored one, and one that is both begin farther in.
    let begins = [0, DATA_AT, mirror::DATA_AT, mirror::DATA_AT + DATA_AT];
    let places = begins
        .map(|begin| of(begin).chain([(begin, COPY)]))
        .into_iter()
        .flatten();
    for (at, length) in std::iter::once((0, FIRST)).chain(places) {
        let length = length.min(partition.bytes.saturating_sub(at));
        if read(disk, partition.start + at, length)?
            .iter()
            .any(|b| *b != 0)
        {
            return Ok(false);
        }
    }
    Ok(true)
}

/// A protective MBR and nothing else: no boot code, one entry of type 0xEE.
fn is_protective_mbr(sector: &[u8]) -> bool {
    sector.len() >= 512
        && sector[..446].iter().all(|b| *b == 0)
        && sector[450] == 0xee
        && sector[462..510].iter().all(|b| *b == 0)
        && sector[510..512] == [0x55, 0xaa]
}

/// A table of ours that a power cut left half-written: the mark stands, and beside it the edges are zero but
/// for the places of the table, which hold nothing that is not ours. [`crate::pool`] writes the mark before
/// all else and the MBR last; a table of ours without the mark belongs to a pool that has lost its beginning.
fn is_our_beginning(first: &[u8], last: &[u8], block: usize) -> bool {
    let header = |bytes: &[u8]| is_zero(bytes) || bytes.starts_with(b"EFI PART");
    let entries_fine = |bytes: &[u8]| {
        is_zero(bytes) || (bytes.starts_with(&pool_type_on_disk()) && is_zero(&bytes[ENTRY..]))
    };
    let used = 2 * block + ENTRIES;
    if first.len() < used || last.len() < used {
        return false;
    }
    let (mbr, rest) = first.split_at(block);
    let (primary, rest) = rest.split_at(block);
    let (entries, rest) = rest.split_at(ENTRIES);
    let (before, backup) = last.split_at(last.len() - block);
    let (before, backup_entries) = before.split_at(before.len() - ENTRIES);
    let mbr_fine = is_zero(mbr) || (is_protective_mbr(mbr) && is_zero(&mbr[512..]));
    let Some((rest, mark, after)) = around_mark(rest, used) else {
        return false;
    };
    mark == making()
        && mbr_fine
        && header(primary)
        && header(backup)
        && is_zero(rest)
        && is_zero(after)
        && is_zero(before)
        && entries_fine(entries)
        && entries_fine(backup_entries)
}

/// What lies before, in and behind the place of the mark; `rest` begins at `from` on the disk.
fn around_mark(rest: &[u8], from: usize) -> Option<(&[u8], &[u8], &[u8])> {
    let at = usize::try_from(ALIGN_BYTES - MAKING_BYTES).ok()?;
    let (before, mark) = rest.split_at_checked(at.checked_sub(from)?)?;
    let (mark, after) = mark.split_at_checked(usize::try_from(MAKING_BYTES).ok()?)?;
    Some((before, mark, after))
}

/// The mark as it stands on the disk.
pub(crate) fn making() -> Vec<u8> {
    let mut block = MAKING.to_vec();
    block.resize(usize::try_from(MAKING_BYTES).expect("a small number"), 0);
    block
}

/// Size of one GPT entry and of the array of 128 (UEFI 2.10, 5.3).
const ENTRY: usize = 128;
const ENTRIES: usize = 128 * ENTRY;

/// [`POOL_TYPE`] in the mixed byte order of a GPT: the first three fields are little-endian.
fn pool_type_on_disk() -> [u8; 16] {
    let digits: Vec<u8> = POOL_TYPE.bytes().filter(|b| *b != b'-').collect();
    let nibble = |b: u8| (b as char).to_digit(16).and_then(|d| u8::try_from(d).ok());
    let mut bytes = [0; 16];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        let [high, low] = [pair[0], pair[1]].map(|b| nibble(b).expect("POOL_TYPE is a GUID"));
        *byte = high << 4 | low;
    }
    bytes[..4].reverse();
    bytes[4..6].reverse();
    bytes[6..8].reverse();
    bytes
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{ProptestConfig, any, prop, proptest};

    use super::*;
    use std::io::{Seek, SeekFrom, Write};
    use std::process::Command;

    fn disk(size: u64) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().expect("a file");
        file.as_file().set_len(size).expect("a size");
        file
    }

    fn content(file: &tempfile::NamedTempFile) -> Content {
        let size = file.as_file().metadata().expect("metadata").len();
        probe(file.as_file(), size, 512).expect("a probe")
    }

    #[test]
    fn zeros_are_blank_and_one_byte_at_either_edge_is_not() {
        let mut file = disk(64 << 20);
        assert_eq!(content(&file), Content::Blank);
        file.seek(SeekFrom::End(-1)).expect("a seek");
        file.write_all(&[1]).expect("a write");
        assert_eq!(
            content(&file),
            Content::Foreign(Foreign::named("unknown data"))
        );
    }

    proptest! {
        // Each disk is looked at whole.
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn a_disk_with_anything_on_it_is_never_blank_and_never_ours(
            pieces in prop::collection::vec((0u64..1 << 20, prop::collection::vec(any::<u8>(), 1..600)), 1..4),
            block_is_large: bool,
        ) {
            let file = disk((1 << 20) + 600);
            let mut written = false;
            for (at, bytes) in &pieces {
                file.as_file().write_all_at(bytes, *at).expect("written");
                written |= bytes.iter().any(|b| *b != 0);
            }
            let size = file.as_file().metadata().expect("metadata").len();
            let block = if block_is_large { 4096 } else { 512 };
            let found = probe(file.as_file(), size, block).expect("a probe");
            assert!(matches!(found, Content::Foreign(_)) || !written, "{found:?}");
        }
    }

    #[test]
    fn a_disk_smaller_than_an_edge_is_read_whole() {
        assert_eq!(content(&disk(1 << 20)), Content::Blank);
    }

    #[test]
    fn the_name_of_our_partition_says_the_owner() {
        let owner = PublicKey([0xab; 32]);
        let name = partition_name(&owner);
        assert!(name.len() <= 36, "{name}");
        assert_eq!(parse_name(&name), Some(owner_mark(&owner)));
        for other in [
            "sifr-pool ABAB",
            "sifr-pool",
            "Linux",
            "sifr-pool abababababababababababag",
        ] {
            assert_eq!(parse_name(other), None, "{other}");
        }
    }

    const OWNER: PublicKey = PublicKey([0xab; 32]);
    const START: u64 = 1 << 20;

    /// A disk with the table of a pool; what is in its partition is up to the test.
    fn pool_disk(size: u64) -> tempfile::NamedTempFile {
        let file = disk(size);
        crate::pool::write_pool_table(file.as_file(), size, &OWNER);
        let unmarked = vec![0; making().len()];
        let marked = file.as_file().write_all_at(&unmarked, START - MAKING_BYTES);
        marked.expect("a write");
        file
    }

    #[test]
    fn a_pool_whose_first_edge_was_wiped_is_not_blank() {
        let file = pool_disk(400 << 20);
        let edge = vec![0; 16 << 20];
        file.as_file().write_all_at(&edge, 0).expect("a write");
        assert!(matches!(content(&file), Content::Foreign(_)));
        // Wiped at both ends, it is what everybody calls blank.
        let end = (400 << 20) - edge.len() as u64;
        file.as_file().write_all_at(&edge, end).expect("a write");
        assert_eq!(content(&file), Content::Blank);
    }

    fn stage_of(file: &tempfile::NamedTempFile) -> Option<Stage> {
        match content(file) {
            Content::Pool { stage, .. } => Some(stage),
            Content::Foreign(what) => {
                let what = what.to_string();
                assert!(what.contains("lost its beginning"), "{what}");
                None
            }
            Content::Blank => panic!("there is a table"),
        }
    }

    /// The partition as `mkfs.xfs` leaves it.
    fn file_system(bytes: u64) -> Vec<u8> {
        let file = disk(bytes);
        let done = Command::new("/sbin/mkfs.xfs")
            .args(["-q", "-f"])
            .arg(file.path())
            .status();
        assert!(done.expect("mkfs.xfs").success());
        read(file.as_file(), 0, bytes).expect("read")
    }

    /// Bytes of a partition on a disk of 400 MiB.
    fn partition_bytes(file: &tempfile::NamedTempFile) -> u64 {
        let found = our_partition(file.as_file(), 400 << 20, 512).expect("a table");
        let partition = found.expect("a partition");
        assert_eq!((partition.number, partition.start), (1, START));
        partition.bytes
    }

    #[test]
    fn a_finished_file_system_is_live() {
        let file = pool_disk(400 << 20);
        let made = file_system(partition_bytes(&file));
        file.as_file().write_all_at(&made, START).expect("a write");
        assert_eq!(stage_of(&file), Some(Stage::Live));
    }

    #[test]
    fn a_partition_that_does_not_lie_on_the_disk_is_nobodys_pool() {
        let file = disk(64 << 20);
        let mut gpt = gpt::GptConfig::new()
            .writable(true)
            .create_from_device(file.reopen().expect("reopen"), None)
            .expect("a table");
        let kind = gpt::partition_types::Type {
            guid: POOL_TYPE.parse().expect("a GUID"),
            os: gpt::partition_types::OperatingSystem::None,
        };
        let name = partition_name(&OWNER);
        let number = gpt.add_partition(&name, 32 << 20, kind, 0, None);
        let mut partitions = gpt.partitions().clone();
        let partition = partitions.get_mut(&number.expect("added"));
        partition.expect("there").last_lba = u64::MAX >> 10;
        gpt.update_partitions(partitions).expect("updated");
        gpt.write().expect("written");
        let mut mbr = file.as_file();
        gpt::mbr::ProtectiveMBR::with_lb_size(1)
            .overwrite_lba0(&mut mbr)
            .expect("an MBR");
        file.as_file().write_all_at(b"x", 5 << 20).expect("a write");
        assert!(matches!(content(&file), Content::Foreign(_)));
    }

    /// What a scrubbing tool, a bad cable or a bit may do to it.
    #[test]
    fn a_pool_that_lost_its_beginning_is_never_taken_for_an_unfinished_one() {
        let file = pool_disk(400 << 20);
        let made = file_system(partition_bytes(&file));
        let disk = file.as_file();
        for lost in [512usize, 4096, 64 << 10, 1 << 20, 15 << 20] {
            disk.write_all_at(&made, START).expect("a write");
            disk.write_all_at(&vec![0; lost], START).expect("a write");
            assert_eq!(stage_of(&file), None, "{lost} bytes lost");
        }
        for bit in 0..8 {
            let mut sector = made[..512].to_vec();
            sector[SB_INPROGRESS] ^= 1 << bit;
            disk.write_all_at(&sector, START).expect("a write");
            assert_eq!(stage_of(&file), None, "bit {bit}");
        }
    }

    /// The owner may have a copy of the header.
    #[test]
    fn an_encrypted_pool_that_lost_its_header_is_never_taken_for_an_unfinished_one() {
        let file = pool_disk(400 << 20);
        let disk = file.as_file();
        let made = file_system(partition_bytes(&file) - DATA_AT);
        // What was never written stays as it is on the disk; all else is noise there.
        let noise = |piece: &[u8]| piece.iter().map(|b| b ^ 0x5a).collect::<Vec<_>>();
        let pieces = made.chunks(4096).zip((START + DATA_AT..).step_by(4096));
        let pieces: Vec<_> = pieces.filter(|(piece, _)| !is_zero(piece)).collect();
        for (piece, at) in &pieces {
            disk.write_all_at(&noise(piece), *at).expect("a write");
        }
        assert_eq!(stage_of(&file), None, "all of the header lost");
        let group = partition_bytes(&file) / 4;
        for (piece, at) in pieces {
            if at < START + group {
                let zeros = vec![0; piece.len()];
                disk.write_all_at(&zeros, at).expect("a write");
            }
        }
        assert_eq!(stage_of(&file), None, "a quarter lost");
    }

    #[test]
    fn a_mirrored_pool_that_lost_its_beginning_is_never_taken_for_an_unfinished_one() {
        let file = pool_disk(400 << 20);
        let disk = file.as_file();
        let made = file_system(partition_bytes(&file) - mirror::DATA_AT);
        disk.write_all_at(&made, START + mirror::DATA_AT)
            .expect("a write");
        disk.write_all_at(&vec![0; 15 << 20], START)
            .expect("a write");
        assert_eq!(stage_of(&file), None);
    }

    #[test]
    fn a_partition_in_which_nothing_has_been_written_is_unfinished() {
        let file = pool_disk(400 << 20);
        assert_eq!(stage_of(&file), Some(Stage::Made));
        let bytes = partition_bytes(&file);
        for at in [0, 5 << 20, bytes / 4, bytes / 2, bytes / 4 * 3] {
            let at = START + at / 4096 * 4096 + 4096;
            file.as_file().write_all_at(b"x", at).expect("a write");
            assert_eq!(stage_of(&file), None, "a byte at {at}");
            file.as_file().write_all_at(&[0], at).expect("a write");
        }
    }

    /// Whatever part of the writes of `mkfs` came to the disk, in whatever order.
    #[test]
    fn while_the_mark_stands_every_state_of_mkfs_is_unfinished() {
        const PIECE: usize = 4096;
        let file = pool_disk(400 << 20);
        let disk = file.as_file();
        let made = file_system(partition_bytes(&file));
        let mut mark = MAKING.to_vec();
        mark.resize(PIECE, 0);
        disk.write_all_at(&mark, START - MAKING_BYTES)
            .expect("a write");
        let pieces: Vec<usize> = (0..made.len() / PIECE)
            .filter(|n| made[n * PIECE..][..PIECE].iter().any(|b| *b != 0))
            .collect();
        for order in [pieces.clone(), pieces.into_iter().rev().collect::<Vec<_>>()] {
            for n in order {
                let at = START + (n * PIECE) as u64;
                disk.write_all_at(&made[n * PIECE..][..PIECE], at)
                    .expect("a write");
                assert_eq!(stage_of(&file), Some(Stage::Made), "piece {n}");
            }
            assert!(is_finished(&read(disk, START, BEGINNING).expect("read")));
            disk.write_all_at(&vec![0; made.len()], START)
                .expect("a write");
        }
    }

    #[test]
    fn somebody_elses_empty_partition_table_is_not_blank() {
        let file = disk(64 << 20);
        let size = 64 << 20;
        let table = gpt::GptConfig::new()
            .writable(true)
            .create_from_device(file.reopen().expect("reopen"), None);
        table.expect("a table").write().expect("written");
        assert_eq!(
            probe(file.as_file(), size, 512).expect("a probe"),
            Content::Foreign(Foreign::named("GPT partition table without partitions"))
        );
    }
}
