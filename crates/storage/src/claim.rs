//! Taking a disk from whoever had it.
//!
//! Owns: the fingerprint of what is on a disk, and the wipe that a power cut may end anywhere.
//! Refuses: deciding that a disk may be wiped. Who calls has the owner's signature, and gives it here: it lies on the
//! disk while the wipe is under way, so that the next boot knows by whose will the disk is as it is.
//!
//! The order, each line on the disk before the next:
//!
//! 1. the consent, 4 KiB behind the mark's place, at 512 KiB: there no format that we know keeps a mark
//! 2. the mark of a wipe under way, one sector: from here on the disk is nobody's
//! 3. zeros over both edges but for that place, and over the copies of a superblock that lie elsewhere
//! 4. the mark of a wipe that is done
//! 5. zeros over the consent
//! 6. zeros over the mark
//!
//! Cut before 2 the disk is what it was; before 4 it is marked, and is wiped again from 3 on; later it is blank.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};

use types::Digest;

use crate::disk::Disk;
use crate::probe::{EDGE_BYTES, is_zero};

/// Place of the mark. ZFS, which keeps marks farthest in, ends here; the first partition begins behind.
pub(crate) const MARK_AT: u64 = 512 << 10;
/// Stands there while a wipe is under way.
pub(crate) const WIPING: &[u8; 32] = b"sifr: this disk is being wiped..";
/// Stands there until the consent is gone.
const WIPED: &[u8; 32] = b"sifr: this disk has been wiped..";
/// A block of any disk: the mark, and the length of the consent in four bytes, little-endian.
const MARK_BYTES: u64 = 4096;
/// Longest consent: the longest signed document.
pub const CONSENT_MAX: usize = 256 << 10;
/// Where the place of mark and consent ends.
const PLACE_END: u64 = MARK_AT + MARK_BYTES + CONSENT_MAX as u64;
/// Superblock copies of btrfs beyond an edge (btrfs: On-disk format, "Superblock"): its tools look for them.
const COPIES: [u64; 2] = [64 << 20, 256 << 30];
const COPY_BYTES: u64 = 4096;
/// Smallest disk that is wiped: smaller ones never become a pool.
const DISK_MIN_BYTES: u64 = 2 << 20;
/// open(2): of a block device, that nobody else has it so, nor a file system in it is mounted.
const O_EXCL: i32 = 0o200;
/// Begins what the fingerprint is taken of.
const DOMAIN: &[u8] = b"sifr disk content 1\0";

#[derive(Debug, thiserror::Error)]
pub enum ClaimError {
    #[error("open {disk} for itself alone: somebody uses it")]
    Open { disk: String, source: io::Error },
    #[error("read {disk}")]
    Read { disk: String, source: io::Error },
    #[error("wipe {disk}: what was on it may be gone in part; the next boot goes on")]
    Write { disk: String, source: io::Error },
    #[error("{disk} has {bytes} bytes: a disk below {DISK_MIN_BYTES} is not taken")]
    Small { disk: String, bytes: u64 },
    #[error("the consent has {0} bytes, at most {CONSENT_MAX} fit beside the mark")]
    Consent(usize),
    #[error("show {disk} to the kernel as it is now")]
    Reread { disk: String, source: io::Error },
}

impl ClaimError {
    /// Whether somebody uses the disk: a file system of it is mounted, say.
    pub fn is_in_use(&self) -> bool {
        matches!(self, Self::Open { source, .. } if source.kind() == io::ErrorKind::ResourceBusy)
    }
}

/// What tells one content of a disk from another: BLAKE3 of its size in bytes, its block size, what was recognised (which
/// reaches into the partitions), and both edges.
pub fn fingerprint(disk: &File, size: u64, block_bytes: u64, content: &str) -> io::Result<Digest> {
    let edge = EDGE_BYTES.min(size);
    let mut hasher = blake3::Hasher::new();
    hasher.update(DOMAIN);
    for number in [size, block_bytes, content.len() as u64] {
        hasher.update(&number.to_le_bytes());
    }
    hasher.update(content.as_bytes());
    for at in [0, size - edge] {
        hasher.update(&read(disk, at, edge)?);
    }
    Ok(Digest(*hasher.finalize().as_bytes()))
}

/// A disk that nobody else uses while this lives.
#[derive(Debug)]
pub struct Taken {
    disk: Disk,
    file: File,
}

impl Taken {
    pub fn open(disk: &Disk) -> Result<Self, ClaimError> {
        let open = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(O_EXCL)
            .open(disk.device());
        let file = open.map_err(|source| ClaimError::Open {
            disk: disk.name.clone(),
            source,
        })?;
        Self::of(disk, file)
    }

    fn of(disk: &Disk, file: File) -> Result<Self, ClaimError> {
        if disk.size_bytes < DISK_MIN_BYTES {
            return Err(ClaimError::Small {
                disk: disk.name.clone(),
                bytes: disk.size_bytes,
            });
        }
        let disk = disk.clone();
        Ok(Self { disk, file })
    }

    pub fn disk(&self) -> &Disk {
        &self.disk
    }

    pub fn file(&self) -> &File {
        &self.file
    }

    /// Makes the disk blank. `consent`: what is found on it where a power cut ends this.
    pub fn wipe(&self, consent: &[u8]) -> Result<(), ClaimError> {
        if consent.len() > CONSENT_MAX {
            return Err(ClaimError::Consent(consent.len()));
        }
        let mut steps = mark(consent);
        steps.extend(erase(self.disk.size_bytes));
        self.carry_out(&steps)
    }

    /// The consent to a wipe that was cut short.
    pub fn unfinished(&self) -> Result<Option<Vec<u8>>, ClaimError> {
        unfinished(&self.file, self.disk.size_bytes).map_err(|source| ClaimError::Read {
            disk: self.disk.name.clone(),
            source,
        })
    }

    /// Goes on where it was cut short.
    pub fn resume(&self) -> Result<(), ClaimError> {
        self.carry_out(&erase(self.disk.size_bytes))
    }

    fn carry_out(&self, steps: &[Step]) -> Result<(), ClaimError> {
        let written = steps.iter().try_for_each(|step| step.carry_out(&self.file));
        written.map_err(|source| ClaimError::Write {
            disk: self.disk.name.clone(),
            source,
        })?;
        sys::block::reread_partitions(&self.file).map_err(|source| ClaimError::Reread {
            disk: self.disk.name.clone(),
            source,
        })
    }
}

/// Marks a disk so that the next boot wipes it, while it is still in use: by the owner's signature that is given here and by
/// nothing less.
pub fn begin(disk: &Disk, consent: &[u8]) -> Result<(), ClaimError> {
    if consent.len() > CONSENT_MAX {
        return Err(ClaimError::Consent(consent.len()));
    }
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(disk.device());
    let file = file.map_err(|source| ClaimError::Open {
        disk: disk.name.clone(),
        source,
    })?;
    let written = mark(consent)
        .iter()
        .try_for_each(|step| step.carry_out(&file));
    written.map_err(|source| ClaimError::Write {
        disk: disk.name.clone(),
        source,
    })
}

/// The consent that lies on a disk with the mark of a wipe under way. It is an allegation.
pub fn unfinished(disk: &File, size: u64) -> io::Result<Option<Vec<u8>>> {
    if size < PLACE_END {
        return Ok(None);
    }
    let mark = read(disk, MARK_AT, MARK_BYTES)?;
    let length = mark.strip_prefix(WIPING.as_slice());
    let length = length.and_then(<[u8]>::first_chunk);
    let length = length.map(|bytes| u64::from(u32::from_le_bytes(*bytes)));
    match length.filter(|length| *length <= CONSENT_MAX as u64) {
        Some(length) => read(disk, MARK_AT + MARK_BYTES, length).map(Some),
        None => Ok(None),
    }
}

/// Whether the beginning of a disk is zero but for what a finished wipe has not yet cleared away.
pub(crate) fn is_wiped(first: &[u8]) -> bool {
    let place = usize::try_from(MARK_AT).expect("a small number");
    let end = usize::try_from(PLACE_END).expect("a small number");
    let (Some(before), Some(mark), Some(after)) =
        (first.get(..place), first.get(place..end), first.get(end..))
    else {
        return false;
    };
    mark.starts_with(WIPED) && is_zero(before) && is_zero(after)
}

/// Clears away what a finished wipe may have left, so that the disk is zero there.
pub(crate) fn clear(disk: &File, size: u64) -> io::Result<()> {
    if size < PLACE_END {
        return Ok(());
    }
    cleared().iter().try_for_each(|step| step.carry_out(disk))
}

/// Writes that may reach the disk in any order. They are on it before the next step begins.
struct Step(Vec<Write>);

enum Write {
    Bytes(u64, Vec<u8>),
    /// From, to.
    Zeros(u64, u64),
}

impl Step {
    fn carry_out(&self, disk: &File) -> io::Result<()> {
        self.0.iter().try_for_each(|write| write.carry_out(disk))?;
        disk.sync_all()
    }
}

impl Write {
    fn carry_out(&self, disk: &File) -> io::Result<()> {
        const PIECE: usize = 1 << 20;
        match self {
            Self::Bytes(at, bytes) => disk.write_all_at(bytes, *at),
            Self::Zeros(from, to) => {
                let zeros = vec![0; PIECE];
                let mut at = *from;
                while at < *to {
                    let length = (to - at).min(PIECE as u64);
                    let length = usize::try_from(length).unwrap_or(PIECE);
                    disk.write_all_at(&zeros[..length], at)?;
                    at += length as u64;
                }
                Ok(())
            }
        }
    }
}

fn mark_of(text: &[u8; 32], length: usize) -> Vec<u8> {
    let mut mark = text.to_vec();
    let length = u32::try_from(length).expect("at most CONSENT_MAX");
    mark.extend(length.to_le_bytes());
    mark.resize(usize::try_from(MARK_BYTES).expect("a small number"), 0);
    mark
}

/// 1 and 2.
fn mark(consent: &[u8]) -> Vec<Step> {
    let at = MARK_AT + MARK_BYTES;
    vec![
        Step(vec![Write::Bytes(at, consent.to_vec())]),
        Step(vec![Write::Bytes(MARK_AT, mark_of(WIPING, consent.len()))]),
    ]
}

/// 3 to 6, of a disk of `size` bytes.
fn erase(size: u64) -> Vec<Step> {
    let copies = COPIES.iter().filter(|at| *at + COPY_BYTES <= size);
    let mut zeros: Vec<_> = copies
        .map(|at| Write::Zeros(*at, at + COPY_BYTES))
        .collect();
    zeros.push(Write::Zeros(0, MARK_AT));
    zeros.push(Write::Zeros(PLACE_END, EDGE_BYTES.min(size)));
    let last = size.saturating_sub(EDGE_BYTES).max(PLACE_END);
    zeros.push(Write::Zeros(last, size));
    let mut steps = vec![Step(zeros)];
    steps.push(Step(vec![Write::Bytes(MARK_AT, mark_of(WIPED, 0))]));
    steps.extend(cleared());
    steps
}

/// 5 and 6.
fn cleared() -> [Step; 2] {
    [
        (MARK_AT + MARK_BYTES, PLACE_END),
        (MARK_AT, MARK_AT + MARK_BYTES),
    ]
    .map(|(from, to)| Step(vec![Write::Zeros(from, to)]))
}

fn read(disk: &File, at: u64, length: u64) -> io::Result<Vec<u8>> {
    let length = usize::try_from(length).map_err(|_| io::ErrorKind::InvalidInput)?;
    let mut bytes = vec![0; length];
    disk.read_exact_at(&mut bytes, at)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use proptest::prelude::{ProptestConfig, any, prop, proptest};

    use super::*;
    use crate::probe::{Content, probe};

    const SIZE: u64 = 80 << 20;
    const SECTOR: usize = 512;

    fn foreign(mkfs: &[&str]) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().expect("a file");
        file.as_file().set_len(SIZE).expect("a size");
        let mut command = Command::new(mkfs[0]);
        let made = command.args(&mkfs[1..]).arg(file.path()).output();
        assert!(made.expect(mkfs[0]).status.success(), "{mkfs:?}");
        file
    }

    fn content(file: &tempfile::NamedTempFile) -> Content {
        probe(file.as_file(), SIZE, 512).expect("a probe")
    }

    fn wipe(consent: &[u8]) -> Vec<Step> {
        let mut steps = mark(consent);
        steps.extend(erase(SIZE));
        steps
    }

    #[test]
    fn a_wiped_disk_is_blank_and_no_tool_finds_anything_on_it() {
        let file = foreign(&["/sbin/mkfs.ext4", "-q", "-F"]);
        for step in wipe(b"signed") {
            step.carry_out(file.as_file()).expect("written");
        }
        assert_eq!(content(&file), Content::Blank);
        let found = Command::new("/sbin/blkid")
            .arg("-p")
            .arg(file.path())
            .output();
        let found = found.expect("blkid");
        assert!(found.stdout.is_empty(), "{found:?}");
    }

    #[test]
    fn a_fingerprint_changes_with_each_byte_at_either_edge_and_with_nothing_else() {
        let file = foreign(&["/sbin/mkfs.ext4", "-q", "-F"]);
        let disk = file.as_file();
        let print = || fingerprint(disk, SIZE, 512, "ext4 file system").expect("read");
        let before = print();
        assert_eq!(print(), before);
        for at in [0, 1080, EDGE_BYTES - 1, SIZE - EDGE_BYTES, SIZE - 1] {
            let mut byte = [0];
            disk.read_exact_at(&mut byte, at).expect("read");
            disk.write_all_at(&[byte[0] ^ 1], at).expect("written");
            assert_ne!(print(), before, "byte {at}");
            disk.write_all_at(&byte, at).expect("written");
        }
        assert_eq!(print(), before);
        assert_ne!(
            fingerprint(disk, SIZE, 4096, "ext4 file system").expect("read"),
            before
        );
        assert_ne!(
            fingerprint(disk, SIZE, 512, "ext3 file system").expect("read"),
            before
        );
    }

    #[test]
    fn a_mark_with_a_length_that_cannot_be_is_no_mark() {
        let file = foreign(&["/sbin/mkfs.ext4", "-q", "-F"]);
        let mut mark = mark_of(WIPING, 0);
        mark[32..36].fill(0xff);
        file.as_file()
            .write_all_at(&mark, MARK_AT)
            .expect("written");
        assert_eq!(unfinished(file.as_file(), SIZE).expect("read"), None);
    }

    /// Writes some sectors of a step, as a disk does whose power goes.
    fn torn(step: &Step, disk: &File, kept: &[bool]) {
        let mut n = 0;
        let mut sector = |at: u64, bytes: &[u8]| {
            if kept[n % kept.len()] {
                disk.write_all_at(bytes, at).expect("written");
            }
            n += 1;
        };
        for write in &step.0 {
            match write {
                Write::Bytes(at, bytes) => {
                    for (n, piece) in bytes.chunks(SECTOR).enumerate() {
                        sector(at + (n * SECTOR) as u64, piece);
                    }
                }
                Write::Zeros(from, to) => {
                    for at in (*from..*to).step_by(SECTOR) {
                        sector(at, &[0; SECTOR]);
                    }
                }
            }
        }
    }

    proptest! {
        // Each looks at a whole disk, and writes most of it sector by sector.
        #![proptest_config(ProptestConfig::with_cases(24))]
        /// Whatever was on it, wherever the power goes, whichever of the last writes came to the disk.
        #[test]
        fn a_power_cut_leaves_a_disk_as_it_was_or_marked_or_blank(
            kind in 0..3usize,
            whole in 0..6usize,
            kept in prop::collection::vec(any::<bool>(), 1..40),
            consent in prop::collection::vec(any::<u8>(), 1..5000),
        ) {
            let kinds: [&[&str]; 3] = [
                &["/sbin/mkfs.ext4", "-q", "-F"],
                &["/sbin/mkswap", "-q"],
                &["/sbin/sgdisk", "-n1:1M:+60M"],
            ];
            let file = foreign(kinds[kind % kinds.len()]);
            let disk = file.as_file();
            let before = content(&file);
            let steps = wipe(&consent);
            steps[..whole].iter().for_each(|step| step.carry_out(disk).expect("written"));
            torn(&steps[whole], disk, &kept);
            match unfinished(disk, SIZE).expect("read") {
                Some(found) => {
                    assert_eq!(found, consent);
                    assert!(matches!(content(&file), Content::Foreign(_)));
                    erase(SIZE).iter().for_each(|step| step.carry_out(disk).expect("written"));
                    assert_eq!(content(&file), Content::Blank);
                }
                None if whole < 2 => assert_eq!(content(&file), before),
                None => assert_eq!(content(&file), Content::Blank),
            }
        }
    }
}
