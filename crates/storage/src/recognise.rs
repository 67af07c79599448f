//! What others keep on disks, told by the marks that their formats put there.
//!
//! Owns: the magic numbers of everything that people keep on disks, the words for it, what is in each partition.
//! Refuses: our own pool ([`crate::probe`] knows it), checking what a format's own tool checks, and guessing: a disk
//! without a mark that stands here is "unknown data".
//!
//! Everything read is hostile: it is looked at in pieces of fixed size, at places that lie on the disk, and nothing
//! read decides how much is read next but a partition's place.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use crate::claim;
use crate::table::{self, Table};

/// From the start of a disk or partition: reaches over the superblock of btrfs at 64 KiB.
const HEAD_BYTES: u64 = 136 << 10;
/// From its end: RAID 0.90 lies between 64 and 128 KiB before it, a copy of DDF's anchor at 128.5.
const TAIL_BYTES: u64 = 136 << 10;
/// Longest label that is shown, in characters: a GPT name has 36.
const LABEL_MAX: usize = 36;
/// Partitions that [`Foreign`] names in one line; all of them are in its list.
const NAMED_MAX: usize = 4;

/// One format that is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mark {
    pub name: &'static str,
    /// What its maker called it; empty where it has no name. Printable, and at most 36 characters.
    pub label: String,
}

impl Mark {
    fn new(name: &'static str) -> Self {
        Self {
            name,
            label: String::new(),
        }
    }

    fn labelled(name: &'static str, label: &[u8]) -> Self {
        let label = String::from_utf8_lossy(label);
        Self {
            name,
            label: printable(&label),
        }
    }
}

/// Foreign text for a console: no control characters, cut at its NUL.
pub(crate) fn printable(text: &str) -> String {
    let text = text.split('\0').next().unwrap_or_default();
    let shown = text
        .chars()
        .filter(|c| !c.is_control() && *c != char::REPLACEMENT_CHARACTER);
    shown
        .take(LABEL_MAX)
        .collect::<String>()
        .trim_end()
        .to_owned()
}

impl fmt::Display for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)?;
        match self.label.as_str() {
            "" => Ok(()),
            label => write!(f, " {label:?}"),
        }
    }
}

/// A partition of somebody's table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Partition {
    pub number: u32,
    /// Bytes from the start of the disk.
    pub start: u64,
    pub bytes: u64,
    /// As the table has it; empty in an MBR.
    pub name: String,
    pub marks: Vec<Mark>,
}

impl Partition {
    /// What is in it, for people.
    pub fn content(&self) -> String {
        match self.marks.as_slice() {
            [] => "nothing known".to_owned(),
            marks => list(marks),
        }
    }
}

fn list(marks: &[Mark]) -> String {
    let words: Vec<_> = marks.iter().map(Mark::to_string).collect();
    words.join(", ")
}

/// What somebody else has put on a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Foreign {
    /// The more telling first; never empty.
    marks: Vec<Mark>,
    pub partitions: Vec<Partition>,
}

impl Foreign {
    /// Known by a word alone.
    pub fn named(name: &'static str) -> Self {
        Self {
            marks: vec![Mark::new(name)],
            partitions: Vec::new(),
        }
    }
}

impl fmt::Display for Foreign {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&list(&self.marks))?;
        let shown = self.partitions.iter().take(NAMED_MAX);
        for (at, partition) in shown.enumerate() {
            let before = if at == 0 { ": " } else { ", " };
            write!(f, "{before}{} {}", partition.number, partition.content())?;
        }
        match self.partitions.len().checked_sub(NAMED_MAX) {
            None | Some(0) => Ok(()),
            Some(more) => write!(f, " and {more} more"),
        }
    }
}

/// Names what is on a disk of `size` bytes that is not blank and not ours.
pub fn recognise(disk: &File, size: u64, block_bytes: u64) -> io::Result<Foreign> {
    let area = Area {
        disk,
        start: 0,
        bytes: size,
    };
    let mut marks = marks(&area)?;
    let mut partitions = Vec::new();
    if let Some(Table { name, entries }) = table::read(disk, size, block_bytes, &marks)? {
        // Before the file systems: what spans the disk says more than what one of its places says.
        let at = marks
            .iter()
            .take_while(|m| CONTAINERS.contains(&m.name))
            .count();
        marks.insert(at, Mark::new(name));
        for entry in entries {
            let inside = Area {
                disk,
                start: entry.start,
                bytes: entry.bytes,
            };
            partitions.push(Partition {
                number: entry.number,
                start: entry.start,
                bytes: entry.bytes,
                name: entry.name,
                marks: self::marks(&inside)?,
            });
        }
    }
    if marks.is_empty() {
        marks.push(Mark::new("unknown data"));
    }
    Ok(Foreign { marks, partitions })
}

/// A part of a disk. Reading beyond its end gives fewer bytes.
struct Area<'a> {
    disk: &'a File,
    start: u64,
    bytes: u64,
}

impl Area<'_> {
    fn read(&self, at: u64, length: u64) -> io::Result<Vec<u8>> {
        let length = length.min(self.bytes.saturating_sub(at));
        let mut bytes = vec![0; usize::try_from(length).map_err(|_| io::ErrorKind::InvalidInput)?];
        let at = self
            .start
            .checked_add(at)
            .ok_or(io::ErrorKind::InvalidInput)?;
        self.disk.read_exact_at(&mut bytes, at)?;
        Ok(bytes)
    }
}

/// Head and tail of an area, and marks that lie elsewhere.
struct Seen {
    head: Vec<u8>,
    tail: Vec<u8>,
    /// Where the area's bytes end, within the tail's last block of 64 KiB and so on.
    bytes: u64,
}

impl Seen {
    fn at(&self, offset: usize, magic: &[u8]) -> bool {
        self.head.get(offset..offset + magic.len()) == Some(magic)
    }

    fn field(&self, offset: usize, length: usize) -> &[u8] {
        self.head.get(offset..offset + length).unwrap_or_default()
    }

    fn le32(&self, offset: usize) -> u32 {
        le32(self.field(offset, 4))
    }

    /// The bytes from `at` on, counted from the area's start, where they are in the tail.
    fn in_tail(&self, at: Option<u64>) -> &[u8] {
        let first = self.bytes - self.tail.len() as u64;
        let offset = at.and_then(|at| usize::try_from(at.checked_sub(first)?).ok());
        offset
            .and_then(|offset| self.tail.get(offset..))
            .unwrap_or_default()
    }

    /// The bytes that begin so many before the area's end.
    fn before_end(&self, bytes: u64) -> &[u8] {
        self.in_tail(self.bytes.checked_sub(bytes))
    }
}

fn le32(bytes: &[u8]) -> u32 {
    bytes
        .first_chunk()
        .map_or(0, |bytes| u32::from_le_bytes(*bytes))
}

fn marks(area: &Area<'_>) -> io::Result<Vec<Mark>> {
    let tail = TAIL_BYTES.min(area.bytes);
    let seen = Seen {
        head: area.read(0, HEAD_BYTES)?,
        tail: area.read(area.bytes - tail, tail)?,
        bytes: area.bytes,
    };
    let mut found: Vec<Mark> = Vec::new();
    found.extend(raid(&seen));
    found.extend(firmware_raid(&seen));
    found.extend(drbd(&seen));
    found.extend(luks(&seen));
    found.extend(lvm(&seen));
    found.extend(bcache(&seen));
    found.extend(zfs(area)?);
    found.extend(vmfs(area)?);
    found.extend(half_wiped(area)?);
    found.extend(ext(&seen));
    found.extend(fat(&seen));
    found.extend(swap(&seen));
    for (name, offset, magic, label) in MAGICS {
        if seen.at(*offset, magic) {
            let label = label.map_or(&[][..], |(at, length)| seen.field(at, length));
            found.push(Mark::labelled(name, label));
        }
    }
    found.dedup_by(|a, b| a.name == b.name);
    Ok(found)
}

/// Formats that hold others: they say most about a disk.
const CONTAINERS: [&str; 18] = [
    RAID_090,
    RAID_10,
    RAID_11,
    RAID_12,
    DDF,
    IMSM,
    LSI,
    NVIDIA,
    PROMISE,
    DRBD,
    LUKS1,
    LUKS2,
    LVM,
    BCACHE_DATA,
    BCACHE_CACHE,
    ZFS,
    "Ceph BlueStore",
    "BitLocker encrypted",
];

/// Where a label is: offset and length.
type Label = Option<(usize, usize)>;

/// Name, offset from the start, magic, label. Source: util-linux 2.38, libblkid/src/superblocks, if not said otherwise.
const MAGICS: &[(&str, usize, &[u8], Label)] = &[
    ("Ceph BlueStore", 0, b"bluestore block device", None),
    ("BitLocker encrypted", 3, b"-FVE-FS-", None),
    (
        "BitLocker encrypted",
        424,
        b"\x3b\xd6\x67\x49\x29\x2e\xd8\x4a\x83\x99\xf6\xa3\x39\xe3\xd0\x01",
        None,
    ),
    (
        "Stratis pool member",
        516,
        b"!Stra0tis\x86\xff\x02^\x41rh",
        None,
    ),
    ("VDO volume", 0, b"dmvdo001", None),
    ("XFS file system", 0, b"XFSB", Some((108, 12))),
    ("btrfs file system", 65600, b"_BHRfS_M", Some((65835, 256))),
    ("F2FS file system", 1024, b"\x10\x20\xf5\xf2", None),
    ("NTFS file system", 3, b"NTFS    ", None),
    ("exFAT file system", 3, b"EXFAT   ", None),
    ("ReFS file system", 0, b"\0\0\0ReFS\0", None),
    ("ISO 9660 image", 32769, b"CD001", Some((32808, 32))),
    ("UDF file system", 32769, b"BEA01", None),
    ("squashfs", 0, b"hsqs", None),
    (
        "EROFS file system",
        1024,
        b"\xe2\xe1\xf5\xe0",
        Some((1088, 16)),
    ),
    ("cramfs", 0, b"\x45\x3d\xcd\x28", None),
    ("JFS file system", 32768, b"JFS1", None),
    ("ReiserFS file system", 65588, b"ReIsEr", None),
    ("NILFS2 file system", 1024, b"\x02\0\0\0\0\0\x34\x34", None),
    ("GFS2 file system", 65536, b"\x01\x16\x19\x70", None),
    ("UFS2 file system", 66908, b"\x19\x01\x54\x19", None),
    ("HFS+ file system", 1024, b"H+\0\x04", None),
    ("HFS+ file system", 1024, b"HX\0\x05", None),
    ("APFS container", 32, b"NXSB", None),
];

const LUKS1: &str = "LUKS1 encrypted";
const LUKS2: &str = "LUKS2 encrypted";

/// LUKS On-Disk Format Specification 1.2.3 and 2: magic, version big-endian at 6, in LUKS2 a label at 24. The second
/// header of LUKS2 lies behind the first, which has one of these sizes.
fn luks(seen: &Seen) -> Option<Mark> {
    const SECOND: [usize; 4] = [16 << 10, 32 << 10, 64 << 10, 128 << 10];
    match seen.field(0, 8) {
        b"LUKS\xba\xbe\x00\x01" => Some(Mark::new(LUKS1)),
        b"LUKS\xba\xbe\x00\x02" => Some(Mark::labelled(LUKS2, seen.field(24, 48))),
        _ if SECOND.iter().any(|at| seen.at(*at, b"SKUL\xba\xbe")) => Some(Mark::new(LUKS2)),
        _ => None,
    }
}

const LVM: &str = "LVM2 physical volume";

/// The label is in one of the first four sectors (LVM2, lib/label/label.h).
fn lvm(seen: &Seen) -> Option<Mark> {
    let label = |sector: usize| {
        seen.at(sector * 512, b"LABELONE") && seen.at(sector * 512 + 24, b"LVM2 001")
    };
    (0..4).any(label).then(|| Mark::new(LVM))
}

const RAID_090: &str = "Linux RAID member (metadata 0.90)";
const RAID_10: &str = "Linux RAID member (metadata 1.0)";
const RAID_11: &str = "Linux RAID member (metadata 1.1)";
const RAID_12: &str = "Linux RAID member (metadata 1.2)";

/// Linux, include/uapi/linux/raid/md_p.h: version 1 at the start, at 4 KiB, or 8 to 12 KiB before the end; 0.90 in
/// the last whole 64 KiB but one, in the byte order of its maker.
fn raid(seen: &Seen) -> Option<Mark> {
    const MAGIC: u32 = 0xa92b_4efc;
    let one = |at: &[u8]| le32(at) == MAGIC && at.get(4..8) == Some(&[1, 0, 0, 0]);
    let named = |name, at: &[u8]| Mark::labelled(name, at.get(32..64).unwrap_or_default());
    for (name, at) in [(RAID_11, 0), (RAID_12, 4096)] {
        let superblock = seen.head.get(at..).unwrap_or_default();
        if one(superblock) {
            return Some(named(name, superblock));
        }
    }
    let sectors = seen.bytes / 512;
    let last = sectors.checked_sub(16).map(|sectors| (sectors & !7) * 512);
    let superblock = seen.in_tail(last);
    if one(superblock) {
        return Some(named(RAID_10, superblock));
    }
    let old = (seen.bytes & !0xffff).checked_sub(64 << 10);
    let superblock = seen.in_tail(old);
    let is_old = le32(superblock) == MAGIC || le32(superblock).swap_bytes() == MAGIC;
    is_old.then(|| Mark::new(RAID_090))
}

const DDF: &str = "DDF RAID member";
const IMSM: &str = "Intel Matrix RAID member";
const LSI: &str = "LSI MegaRAID member";
const NVIDIA: &str = "NVIDIA RAID member";
const PROMISE: &str = "Promise FastTrak RAID member";

/// What the firmware of a controller writes at the end of its disks. DDF: SNIA Common RAID Disk Data Format 2.0, 4.1,
/// the anchor in the last block; the others: libblkid.
fn firmware_raid(seen: &Seen) -> Option<Mark> {
    let ends: [(&str, u64, &[u8]); 7] = [
        (DDF, 512, b"\xde\x11\xde\x11"),
        (DDF, 512, b"\x11\xde\x11\xde"),
        (DDF, 257 * 512, b"\xde\x11\xde\x11"),
        (IMSM, 1024, b"Intel Raid ISM Cfg Sig. "),
        (LSI, 512, b"$XIDE$"),
        (NVIDIA, 1024, b"NVIDIA"),
        (PROMISE, 63 * 512, b"Promise Technology, Inc."),
    ];
    let found = ends
        .iter()
        .find(|(_, before, magic)| seen.before_end(*before).starts_with(magic));
    found.map(|(name, ..)| Mark::new(name))
}

const DRBD: &str = "DRBD member";

/// The last 4 KiB, its magic at 60 (drbd-utils, user/shared/drbdmeta.c: versions 8 and 9).
fn drbd(seen: &Seen) -> Option<Mark> {
    let superblock = seen.in_tail((seen.bytes & !0xfff).checked_sub(4096));
    let magic = superblock.get(60..64).unwrap_or_default();
    let is_drbd = matches!(magic, [0x83, 0x74, 0x02, 0x6b..=0x6d]);
    is_drbd.then(|| Mark::new(DRBD))
}

const BCACHE_DATA: &str = "bcache backing device";
const BCACHE_CACHE: &str = "bcache cache device";

/// Linux, include/uapi/linux/bcache.h: magic at 24 of the superblock at 4 KiB, version at 16; bcachefs lies there too.
fn bcache(seen: &Seen) -> Option<Mark> {
    const OLD: &[u8] = b"\xc6\x85\x73\xf6\x4e\x1a\x45\xca\x82\x65\xf5\x7f\x48\xba\x6d\x81";
    const NEW: &[u8] = b"\xc6\x85\x73\xf6\x66\xce\x90\xa9\xd9\x6a\x60\xcf\x80\x3d\xf7\xef";
    if seen.at(4120, NEW) {
        return Some(Mark::new("bcachefs file system"));
    }
    let name = match seen.le32(4112) {
        1 | 4 | 6 => BCACHE_DATA,
        _ => BCACHE_CACHE,
    };
    seen.at(4120, OLD).then(|| Mark::new(name))
}

const ZFS: &str = "ZFS member";

/// ZFS On-Disk Specification, 1.2: four labels of 256 KiB, two at either end; in each a list of names and values from
/// 16 KiB on, which names the pool, and uberblocks from 128 KiB on, in the byte order of their maker.
fn zfs(area: &Area<'_>) -> io::Result<Option<Mark>> {
    const LABEL: u64 = 256 << 10;
    const UBERBLOCK: [&[u8]; 2] = [b"\x0c\xb1\xba\0\0\0\0\0", b"\0\0\0\0\0\xba\xb1\x0c"];
    let end = area.bytes / LABEL * LABEL;
    let places = [
        Some(0),
        Some(LABEL),
        end.checked_sub(2 * LABEL),
        end.checked_sub(LABEL),
    ];
    for at in places.into_iter().flatten() {
        let list = area.read(at + (16 << 10), 8 << 10)?;
        let uberblocks = area.read(at + LABEL / 2, LABEL / 2)?;
        let mut blocks = uberblocks.chunks_exact(1024);
        let is_label = blocks.any(|b| UBERBLOCK.iter().any(|magic| b.starts_with(magic)));
        // XDR, big-endian, version 0, unique names.
        let is_list = list.starts_with(b"\x01\x01\0\0\0\0\0\0\0\0\0\x01")
            && list.windows(9).any(|name| name == b"pool_guid");
        if is_label || is_list {
            return Ok(Some(Mark::labelled(ZFS, pool_name(&list))));
        }
    }
    Ok(None)
}

/// The string of the pair `name`, in XDR: name's length and bytes, type 9, one element, length, bytes.
fn pool_name(list: &[u8]) -> &[u8] {
    const NAME: &[u8] = b"\0\0\0\x04name\0\0\0\x09\0\0\0\x01";
    let value = list
        .windows(NAME.len())
        .position(|window| window == NAME)
        .and_then(|at| list.get(at + NAME.len()..));
    let Some((length, rest)) = value.and_then(<[u8]>::split_first_chunk::<4>) else {
        return &[];
    };
    let length = usize::try_from(u32::from_be_bytes(*length)).unwrap_or(0);
    rest.get(..length).unwrap_or_default()
}

/// The volume's header at 1 MiB, the file system's at 2 MiB (libblkid, vmfs.c).
fn vmfs(area: &Area<'_>) -> io::Result<Option<Mark>> {
    for (at, magic) in [
        (1 << 20, b"\x0d\xd0\x01\xc0"),
        (2 << 20, b"\x5e\xf1\xab\x2f"),
    ] {
        if area.read(at, 4)? == magic {
            return Ok(Some(Mark::new("VMware VMFS volume")));
        }
    }
    Ok(None)
}

/// A claim of an owner whom this image does not know, or a copy of its mark.
fn half_wiped(area: &Area<'_>) -> io::Result<Option<Mark>> {
    let mark = area.read(claim::MARK_AT, claim::WIPING.len() as u64)?;
    let found = mark == claim::WIPING;
    Ok(found.then(|| Mark::new("disk whose claim was cut short, by another owner")))
}

/// Linux, Documentation/filesystems/ext4/super.rst. Which of the three it is follows from what it needs.
fn ext(seen: &Seen) -> Option<Mark> {
    const JOURNAL: u32 = 0x4;
    const JOURNAL_DEVICE: u32 = 0x8;
    // Filetype, recover, meta_bg; sparse_super, large_file, btree_dir.
    const INCOMPAT_EXT3: u32 = 0x2 | 0x4 | 0x10;
    const RO_COMPAT_EXT3: u32 = 0x1 | 0x2 | 0x4;
    if !seen.at(1080, b"\x53\xef") {
        return None;
    }
    let [compat, incompat, ro_compat] = [0x5c, 0x60, 0x64].map(|at| seen.le32(1024 + at));
    let name = match () {
        () if incompat & JOURNAL_DEVICE != 0 => "ext journal device",
        () if incompat & !INCOMPAT_EXT3 != 0 || ro_compat & !RO_COMPAT_EXT3 != 0 => {
            "ext4 file system"
        }
        () if compat & JOURNAL != 0 => "ext3 file system",
        () => "ext2 file system",
    };
    Some(Mark::labelled(name, seen.field(1024 + 0x78, 16)))
}

/// Microsoft FAT specification, 3: the words are hints, and with the boot sector's mark they are enough for people.
fn fat(seen: &Seen) -> Option<Mark> {
    let types: [(usize, &[u8], usize); 4] = [
        (82, b"FAT32   ", 71),
        (54, b"FAT16   ", 43),
        (54, b"FAT12   ", 43),
        (54, b"FAT     ", 43),
    ];
    let found = types.iter().find(|(at, magic, _)| seen.at(*at, magic))?;
    let label = seen.field(found.2, 11);
    let label = if label == b"NO NAME    " { b"" } else { label };
    seen.at(510, b"\x55\xaa")
        .then(|| Mark::labelled("FAT file system", label))
}

/// At the end of the first page, whatever its size; a label at 1052 (Linux, include/linux/swap.h).
fn swap(seen: &Seen) -> Option<Mark> {
    const PAGES: [usize; 4] = [4 << 10, 8 << 10, 16 << 10, 64 << 10];
    let ends = |magic: &[u8]| PAGES.iter().any(|page| seen.at(page - 10, magic));
    if ends(b"SWAPSPACE2") {
        return Some(Mark::labelled("swap space", seen.field(1052, 16)));
    }
    let suspended: [&[u8]; 3] = [b"S1SUSPEND", b"S2SUSPEND", b"LINHIB0001"];
    match () {
        () if ends(b"SWAP-SPACE") => Some(Mark::new("swap space")),
        () if suspended.iter().any(|magic| ends(magic)) => {
            Some(Mark::new("swap space of a suspended system"))
        }
        () => None,
    }
}

#[cfg(test)]
#[path = "recognise_tests.rs"]
mod tests;
