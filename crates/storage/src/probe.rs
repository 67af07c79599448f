//! What is on a disk, told from its first and last bytes.
//!
//! Owns: the magic numbers of everything that people keep on disks, and the marks of our own pool.
//! Refuses: guessing. What is not all zero and not ours is foreign, known by name or not.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use types::PublicKey;

/// A disk is blank if this much at either end is zero: every format below puts a mark there.
pub const EDGE_BYTES: u64 = 16 << 20;
/// GPT type of the pool's partition: random, ours alone.
pub const POOL_TYPE: &str = "5B1F3E6A-0C7D-4B52-9E84-71D2A95C0F36";

/// How far making a pool has come; the partition's name says it, so that a power cut is seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// The partition exists; its file system may not, or only in part. It holds nothing.
    Made,
    /// The pool has been in use: its content is sacred.
    Live,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// Both edges are zero.
    Blank,
    /// Made by Sifr for the owner whose key begins with these digits.
    Pool {
        owner: String,
        stage: Stage,
        partition: u32,
    },
    /// Somebody's. The name is for people.
    Foreign(&'static str),
}

impl Content {
    /// One word for the node report.
    pub fn describe(&self, owner: Option<&PublicKey>) -> String {
        match self {
            Self::Blank => "blank".to_owned(),
            Self::Pool { owner: theirs, .. } if owner.is_some_and(|o| owner_mark(o) == *theirs) => {
                "pool".to_owned()
            }
            Self::Pool { .. } => "pool of another owner".to_owned(),
            Self::Foreign(what) => (*what).to_owned(),
        }
    }
}

/// The part of the owner's key that stands in the partition's name, which has 36 UTF-16 units.
pub fn owner_mark(owner: &PublicKey) -> String {
    owner.to_string()["ed25519:".len()..][..24].to_owned()
}

/// The partition's name: stage and owner.
pub fn partition_name(stage: Stage, owner: &PublicKey) -> String {
    let stage = match stage {
        Stage::Made => "sifr-new",
        Stage::Live => "sifr-pool",
    };
    format!("{stage} {}", owner_mark(owner))
}

fn parse_name(name: &str) -> Option<(Stage, String)> {
    let (stage, owner) = name.split_once(' ')?;
    let stage = match stage {
        "sifr-new" => Stage::Made,
        "sifr-pool" => Stage::Live,
        _ => return None,
    };
    let hex = owner.len() == 24
        && owner
            .bytes()
            .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    hex.then(|| (stage, owner.to_owned()))
}

/// Reads both edges of a disk of `size` bytes and says what it is. Errors are I/O errors of the disk.
pub fn probe(disk: &File, size: u64, block_bytes: u64) -> io::Result<Content> {
    let edge = EDGE_BYTES.min(size);
    let first = read(disk, 0, edge)?;
    let last = read(disk, size - edge, edge)?;
    if first.iter().all(|b| *b == 0) && last.iter().all(|b| *b == 0) {
        return Ok(Content::Blank);
    }
    if let Some(pool) = our_pool(disk, block_bytes) {
        return Ok(pool);
    }
    Ok(Content::Foreign(name_of(&first, &last)))
}

fn read(disk: &File, at: u64, length: u64) -> io::Result<Vec<u8>> {
    let length = usize::try_from(length).map_err(|_| io::ErrorKind::InvalidInput)?;
    let mut bytes = vec![0; length];
    disk.read_exact_at(&mut bytes, at)?;
    Ok(bytes)
}

/// Our pool: a valid GPT whose only partition has our type and a name that we write.
fn our_pool(disk: &File, block_bytes: u64) -> Option<Content> {
    let lb = gpt::disk::LogicalBlockSize::try_from(block_bytes).ok()?;
    let table = gpt::GptConfig::new()
        .writable(false)
        .logical_block_size(lb)
        .open_from_device(disk.try_clone().ok()?);
    let table = table.ok()?;
    let mut used = table.partitions().iter().filter(|(_, p)| p.is_used());
    let (number, partition) = used.next()?;
    if used.next().is_some()
        || !partition
            .part_type_guid
            .guid
            .to_string()
            .eq_ignore_ascii_case(POOL_TYPE)
    {
        return None;
    }
    let (stage, owner) = parse_name(&partition.name)?;
    Some(Content::Pool {
        owner,
        stage,
        partition: *number,
    })
}

/// (name, offset from the start, magic), the more telling first. Sources: util-linux libblkid's tables.
const MAGICS: [(&str, usize, &[u8]); 20] = [
    ("LUKS encrypted", 0, b"LUKS\xba\xbe"),
    ("LVM2 physical volume", 512, b"LABELONE"),
    ("Ceph BlueStore", 0, b"bluestore block device"),
    ("XFS file system", 0, b"XFSB"),
    ("squashfs", 0, b"hsqs"),
    ("BitLocker", 3, b"-FVE-FS-"),
    ("NTFS file system", 3, b"NTFS    "),
    ("exFAT file system", 3, b"EXFAT   "),
    ("FAT file system", 82, b"FAT32   "),
    ("FAT file system", 54, b"FAT16   "),
    ("EROFS file system", 1024, b"\xe2\xe1\xf5\xe0"),
    ("ext file system", 1080, b"\x53\xef"),
    ("F2FS file system", 1024, b"\x10\x20\xf5\xf2"),
    ("Linux RAID member", 4096, b"\xfc\x4e\x2b\xa9"),
    ("Linux RAID member", 0, b"\xfc\x4e\x2b\xa9"),
    ("swap space", 4086, b"SWAPSPACE2"),
    ("bcache", 4120, b"\xc6\x85\x73\xf6\x4e\x1a\x45\xca"),
    ("ISO 9660 image", 32769, b"CD001"),
    ("btrfs file system", 65600, b"_BHRfS_M"),
    ("GPT partition table", 512, b"EFI PART"),
];

/// ZFS uberblocks (magic 0x00bab10c, either byte order) from 128 KiB on, every KiB.
fn is_zfs(first: &[u8]) -> bool {
    let area = first.get(128 << 10..256 << 10).unwrap_or_default();
    area.chunks_exact(1024).any(|block| {
        block.starts_with(b"\x0c\xb1\xba\x00\0\0\0\0")
            || block.starts_with(b"\0\0\0\0\x00\xba\xb1\x0c")
    })
}

/// RAID metadata at the end: version 1.0 within the last 12 KiB, 0.90 in the last 128 KiB.
fn is_raid_at_end(last: &[u8]) -> bool {
    let tail = &last[last.len().saturating_sub(128 << 10)..];
    tail.chunks_exact(4096)
        .any(|block| block.starts_with(b"\xfc\x4e\x2b\xa9"))
}

fn name_of(first: &[u8], last: &[u8]) -> &'static str {
    let at = |offset: usize, magic: &[u8]| first.get(offset..offset + magic.len()) == Some(magic);
    if let Some((name, _, _)) = MAGICS.iter().find(|(_, offset, magic)| at(*offset, magic)) {
        return name;
    }
    match () {
        () if is_zfs(first) => "ZFS member",
        () if is_raid_at_end(last) => "Linux RAID member",
        () if at(4096, b"EFI PART") => "GPT partition table",
        () if at(510, b"\x55\xaa") => "MBR partition table",
        () => "unknown data",
    }
}

#[cfg(test)]
mod tests {
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
        assert_eq!(content(&file), Content::Foreign("unknown data"));
    }

    #[test]
    fn a_disk_smaller_than_an_edge_is_read_whole() {
        assert_eq!(content(&disk(1 << 20)), Content::Blank);
    }

    /// Each format is made by its real tool.
    #[test]
    fn what_real_tools_make_is_recognised() {
        let cases: [(&str, &[&str], &str); 5] = [
            ("/sbin/mkfs.ext4", &["-q", "-F"], "ext file system"),
            ("/sbin/mkfs.xfs", &["-q", "-f"], "XFS file system"),
            ("/sbin/mkswap", &["-q"], "swap space"),
            (
                "/sbin/mke2fs",
                &["-q", "-F", "-t", "ext2"],
                "ext file system",
            ),
            ("/sbin/mkfs.minix", &[], "unknown data"),
        ];
        for (tool, args, expected) in cases {
            let file = disk(400 << 20);
            let done = Command::new(tool)
                .args(args)
                .arg(file.path())
                .output()
                .expect(tool);
            assert!(
                done.status.success(),
                "{tool}: {}",
                String::from_utf8_lossy(&done.stderr)
            );
            assert_eq!(content(&file), Content::Foreign(expected), "{tool}");
        }
    }

    #[test]
    fn the_name_of_our_partition_says_stage_and_owner() {
        let owner = PublicKey([0xab; 32]);
        for stage in [Stage::Made, Stage::Live] {
            let name = partition_name(stage, &owner);
            assert!(name.len() <= 36, "{name}");
            assert_eq!(parse_name(&name), Some((stage, owner_mark(&owner))));
        }
        assert_eq!(parse_name("sifr-pool ABAB"), None);
        assert_eq!(parse_name("Linux"), None);
    }
}
