//! A block of a pool's file system that was half written when the power went.
//!
//! A disk writes sectors whole, and a block of XFS may be eight of them. While the journal is replayed, XFS leaves a block alone
//! that is as new as the record (its first sector says so, the LSN), and where the power went during an earlier replay the other
//! seven may still be old. Then the checksum is wrong, the mount fails, and `xfs_repair` would have the journal thrown away, with
//! what was acknowledged in it. But all that the last flush does not cover is in the journal. So such a block is given an LSN of
//! nothing: the replay takes it for an old one and writes into it all that there is, as it did before blocks had LSNs.
//!
//! Owns: finding, by the kernel's own word, the block over which the replay stumbled, making it old, and how often that is done.
//! Refuses: a block of another kind, place or file system than the kernel speaks of, and one whose checksum is right; deciding
//! that all is well afterwards (`xfs_repair` does, once the journal is empty).

use std::fs::OpenOptions;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crc::{CRC_32_ISCSI, Crc};

/// What XFS calls EFSBADCRC: a checksum was wrong (`asm-generic/errno.h`).
const EBADMSG: i32 = 74;
/// Blocks that can be half written at once: each costs a replay, and so many writes are not under way in one.
const TORN_MAX: usize = 256;
/// Of the file system: each buffer of the kinds below is one block.
pub(crate) const BLOCK_BYTES: usize = 4096;
/// What a disk writes whole, and the unit in which the kernel says where a block is.
const SECTOR_BYTES: usize = 512;
const CRC_32C: Crc<u32> = Crc::<u32>::new(&CRC_32_ISCSI);

/// Where a kind of block has what all of them have (kernel, `fs/xfs/libxfs/xfs_format.h` and `xfs_da_format.h`).
struct Layout {
    place: usize,
    lsn: usize,
    uuid: usize,
    checksum: usize,
}

/// `xfs_dir3_blk_hdr`.
const DIRECTORY: Layout = Layout {
    place: 8,
    lsn: 16,
    uuid: 24,
    checksum: 4,
};
/// `xfs_da3_blkinfo`.
const INDEX: Layout = Layout {
    place: 16,
    lsn: 24,
    uuid: 32,
    checksum: 12,
};
/// `xfs_btree_block` with pointers of an allocation group.
const SHORT_TREE: Layout = Layout {
    place: 16,
    lsn: 24,
    uuid: 32,
    checksum: 52,
};
/// `xfs_btree_block` with pointers of the file system.
const LONG_TREE: Layout = Layout {
    place: 24,
    lsn: 32,
    uuid: 40,
    checksum: 64,
};

impl Layout {
    fn of(block: &[u8; BLOCK_BYTES]) -> Option<Self> {
        match &block[..4] {
            b"XDB3" | b"XDD3" | b"XDF3" => Some(DIRECTORY),
            b"AB3B" | b"AB3C" | b"IAB3" | b"FIB3" | b"RMB3" | b"R3FC" => Some(SHORT_TREE),
            b"BMA3" => Some(LONG_TREE),
            _ => match block[8..10] {
                [0x3d, 0xf1] | [0x3d, 0xff] | [0x3e, 0xbe] | [0x3b, 0xee] => Some(INDEX),
                _ => None,
            },
        }
    }

    fn is_whole(&self, block: &[u8; BLOCK_BYTES]) -> bool {
        let said = field(self.checksum, 4);
        let mut digest = CRC_32C.digest();
        digest.update(&block[..said.start]);
        digest.update(&[0; 4]);
        digest.update(&block[said.end..]);
        digest.finalize().to_le_bytes() == block[said]
    }
}

const fn field(at: usize, bytes: usize) -> Range<usize> {
    at..at + bytes
}

/// Mounts what did not, for that reason, because of blocks that were half written. How many there were; 0: it is not mounted.
pub(crate) fn replay(
    device: &Path,
    first: &sys::Error,
    mount: impl Fn() -> sys::Result<()>,
) -> usize {
    let is_damage = |error: &sys::Error| error.source.raw_os_error() == Some(EBADMSG);
    if !is_damage(first) {
        return 0;
    }
    for blocks in 1..=TORN_MAX {
        // Without the kernel's words there is nothing to go by.
        let log = sys::klog::read().unwrap_or_default();
        match make_old(device, &log) {
            Ok(Some(_)) => {}
            Ok(None) | Err(_) => return 0,
        }
        match mount() {
            Ok(()) => return blocks,
            Err(error) if is_damage(&error) => {}
            Err(_) => return 0,
        }
    }
    0
}

/// Has the next replay take the block for an old one over which the last replay stumbled, by what the kernel's log says of
/// `device`. `None`: it did not, or that block is none that a cut of the power leaves. Says which it was, in sectors.
fn make_old(device: &Path, kernel_log: &str) -> io::Result<Option<u64>> {
    let name = device.file_name().and_then(|name| name.to_str());
    let Some(place) = name.and_then(|name| stumbled_at(name, kernel_log)) else {
        return Ok(None);
    };
    let Some(at) = place.checked_mul(SECTOR_BYTES as u64) else {
        return Ok(None);
    };
    let file = OpenOptions::new().read(true).write(true).open(device)?;
    let (mut first, mut block) = ([0; SECTOR_BYTES], [0; BLOCK_BYTES]);
    file.read_exact_at(&mut first, 0)?;
    file.read_exact_at(&mut block, at)?;
    let Some(uuid) = file_system(&first) else {
        return Ok(None);
    };
    if !forget_lsn(&mut block, place, &uuid) {
        return Ok(None);
    }
    // One sector, so that this is done or not.
    file.write_all_at(&block[..SECTOR_BYTES], at)?;
    file.sync_all()?;
    Ok(Some(place))
}

/// The sector of the block that the kernel found damaged last, of those of the file system on the device `name`.
fn stumbled_at(name: &str, kernel_log: &str) -> Option<u64> {
    let complaint = format!("XFS ({name}): Metadata CRC error detected at ");
    let said = kernel_log
        .lines()
        .rev()
        .find_map(|line| line.split_once(&complaint))?
        .1;
    let (_, number) = said.rsplit_once(" block 0x")?;
    u64::from_str_radix(number.trim_end(), 16).ok()
}

/// The name that the file system writes into each of its blocks. `None`: its blocks are of another size.
fn file_system(superblock: &[u8; SECTOR_BYTES]) -> Option<[u8; 16]> {
    let bytes = u32::try_from(BLOCK_BYTES).ok()?.to_be_bytes();
    let ours = superblock.starts_with(b"XFSB") && superblock[field(4, 4)] == bytes;
    let uuid = superblock[field(32, 16)].try_into().ok();
    uuid.filter(|_| ours)
}

/// True where the block is one of that file system at that place and not whole, and the replay took it for a new one: where it did not,
/// another replay makes nothing better.
fn forget_lsn(block: &mut [u8; BLOCK_BYTES], place: u64, uuid: &[u8; 16]) -> bool {
    let Some(layout) = Layout::of(block) else {
        return false;
    };
    let is_there = block[field(layout.place, 8)] == place.to_be_bytes()
        && block[field(layout.uuid, 16)] == *uuid;
    let lsn = field(layout.lsn, 8);
    if !is_there || layout.is_whole(block) || block[lsn.clone()] == [0; 8] {
        return false;
    }
    block[lsn].fill(0);
    true
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fs::File;
    use std::process::Command;

    use proptest::prelude::*;

    use super::*;

    /// A file system with small, large and huge directories and a file in many pieces, made by Debian's own tool.
    fn real() -> (tempfile::TempDir, File) {
        let directory = tempfile::tempdir().expect("a directory");
        let (image, proto) = (directory.path().join("xfs"), directory.path().join("proto"));
        let mut text = "boot\n0 0\nd--755 0 0\n".to_owned();
        for files in [20, 300, 3000] {
            text.push_str(&format!("names-{files} d--755 0 0\n"));
            for number in 0..files {
                text.push_str(&format!(
                    "a-name-that-is-long-{number} ---644 0 0 /dev/null\n"
                ));
            }
            text.push_str("$\n");
        }
        text.push_str("$\n");
        std::fs::write(&proto, text).expect("written");
        let file = File::create_new(&image).expect("made");
        file.set_len(512 << 20).expect("long");
        let mut mkfs = Command::new("/sbin/mkfs.xfs");
        mkfs.args(["-q", "-m", "reflink=1,rmapbt=1", "-p"]);
        let done = mkfs.arg(&proto).arg(&image).output().expect("mkfs.xfs");
        assert!(done.status.success(), "{done:?}");
        let file = OpenOptions::new().read(true).write(true).open(&image);
        (directory, file.expect("opened"))
    }

    #[test]
    fn blocks_of_a_real_file_system_are_known_and_only_a_torn_one_is_made_old() {
        let (directory, file) = real();
        let mut first = [0; SECTOR_BYTES];
        file.read_exact_at(&mut first, 0).expect("read");
        let uuid = file_system(&first).expect("an XFS");
        let (mut kinds, mut block) = (BTreeSet::new(), [0; BLOCK_BYTES]);
        let mut torn = None;
        for number in 0..file.metadata().expect("a file").len() / BLOCK_BYTES as u64 {
            file.read_exact_at(&mut block, number * BLOCK_BYTES as u64)
                .expect("read");
            let place = number * (BLOCK_BYTES / SECTOR_BYTES) as u64;
            let known = Layout::of(&block);
            let Some(layout) = known.filter(|l| block[field(l.uuid, 16)] == uuid) else {
                continue;
            };
            let kind = match &block[..4] {
                letters if letters.is_ascii() && letters[0] != 0 => letters.to_vec(),
                _ => block[8..10].to_vec(),
            };
            kinds.insert(kind);
            assert!(layout.is_whole(&block), "block {number}");
            assert!(!forget_lsn(&mut block.clone(), place, &uuid));
            block[BLOCK_BYTES - 1] ^= 1;
            // The tool has no journal; what was written since has a number in it.
            block[field(layout.lsn, 8)].fill(1);
            assert!(!forget_lsn(&mut block.clone(), place + 8, &uuid));
            assert!(!forget_lsn(&mut block.clone(), place, &[9; 16]));
            let before = block;
            assert!(forget_lsn(&mut block, place, &uuid));
            let changed = (0..BLOCK_BYTES).filter(|at| before[*at] != block[*at]);
            assert!(
                changed
                    .into_iter()
                    .all(|at| field(layout.lsn, 8).contains(&at))
            );
            assert!(!forget_lsn(&mut block, place, &uuid), "it is old already");
            torn = Some((place, before));
        }
        let expected: [&[u8]; 10] = [
            &[0x3d, 0xf1],
            &[0x3d, 0xff],
            &[0x3e, 0xbe],
            b"AB3B",
            b"AB3C",
            b"FIB3",
            b"IAB3",
            b"R3FC",
            b"RMB3",
            b"XDB3",
        ];
        let missing = expected.iter().find(|kind| !kinds.contains(**kind));
        assert_eq!(missing, None, "{kinds:?}");

        // By what the kernel says, on the device itself; a second time there is nothing to do.
        let (place, bytes) = torn.expect("there are blocks");
        let at = place * SECTOR_BYTES as u64;
        file.write_all_at(&bytes, at).expect("torn");
        let device = directory.path().join("xfs");
        let said = format!(
            "[1.0] XFS (xfs): Mounting V5 Filesystem\n[1.1] XFS (xfs): Metadata CRC error detected at xfs_dir3_data_read_verify+0x71/0x100, xfs_dir3_data block {place:#x} \n[1.2] XFS (xfs): log mount failed"
        );
        assert_eq!(make_old(&device, &said).expect("asked"), Some(place));
        assert_eq!(make_old(&device, &said).expect("asked"), None);
        file.read_exact_at(&mut block, at).expect("read");
        assert!(block[SECTOR_BYTES..] == bytes[SECTOR_BYTES..]);
        file.write_all_at(&[0; BLOCK_BYTES], at).expect("another's");
        assert_eq!(make_old(&device, &said).expect("asked"), None);
        assert_eq!(make_old(&device, "all is well").expect("asked"), None);
    }

    #[test]
    fn the_kernels_last_word_about_this_device_counts() {
        let log = "[5.1] XFS (vda1): Metadata CRC error detected at xfs_bnobt_read_verify+0x1/0x2, xfs_bnobt block 0x8 \n\
            [5.2] XFS (vda1): Metadata CRC error detected at xfs_dir3_block_read_verify+0x71/0x100, xfs_dir3_block block 0x40078 \n\
            [5.3] XFS (vda1): Unmount and run xfs_repair\n\
            [5.4] XFS (dm-0): Metadata CRC error detected at xfs_dir3_block_read_verify+0x71/0x100, xfs_dir3_block block 0x10 \n";
        assert_eq!(stumbled_at("vda1", log), Some(0x40078));
        assert_eq!(stumbled_at("dm-0", log), Some(0x10));
        assert_eq!(stumbled_at("vda", log), None);
        let end = "XFS (vda1): Metadata CRC error detected at x, y block 0xfffffffffffffffff";
        assert_eq!(stumbled_at("vda1", end), None);
    }

    proptest! {
        #[test]
        fn any_bytes_and_any_log_are_survived(
            noise in proptest::collection::vec(any::<u8>(), BLOCK_BYTES), place: u64, log in ".*"
        ) {
            let mut block: [u8; BLOCK_BYTES] = noise.try_into().expect("a block");
            let before = block;
            if !forget_lsn(&mut block, place, &[0; 16]) {
                prop_assert!(block == before);
            }
            stumbled_at("vda1", &format!("XFS (vda1): Metadata CRC error detected at {log}"));
        }
    }
}
