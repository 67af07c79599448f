//! The pool: made on a blank disk, mounted, or replaced by memory.
//!
//! Owns: the partition, the file system on it, and the mount, of one pool.
//! Refuses: choosing the disk ([`crate::plan`] does), several pools ([`crate::pools`] has them), and `mkfs` on a pool that
//! has been in use.
//!
//! A power cut at any line heals. A mark is written first, then the table, entries before headers and the MBR
//! last, and [`crate::probe`] knows its halves. The mark stands until the pool has its `pool.json`, and while
//! it stands a file system that cannot be mounted is made again. Without it none is ever made over anything
//! but zeros.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use gpt::GptConfig;
use gpt::disk::LogicalBlockSize;
use types::PublicKey;

use crate::claim;
use crate::crypt::{self, CryptError, Keys, Wish};
use crate::disk::Disk;
use crate::marker;
use crate::mirrors;
use crate::plan::Place;
use crate::probe::{self, ALIGN_BYTES, MAKING_BYTES, POOL_TYPE, making, partition_name};
use crate::roster::PoolId;
use crate::torn;

/// Version of the pool's directory layout.
pub const FORMAT: u32 = 1;
/// What a pool may be given before it is one ([`make_with`]): the identity of the node that makes it.
const GIVEN: [&str; 1] = ["identity"];
const MKFS: &str = "/sbin/mkfs.xfs";
const REPAIR: &str = "/sbin/xfs_repair";
/// Share of the machine's memory that a pool in memory may fill, in percent: the rest runs guests.
const MEMORY_POOL_PERCENT: u32 = 40;

#[derive(Debug, thiserror::Error)]
pub enum PoolError {
    #[error("open the disk {disk}")]
    Open { disk: String, source: io::Error },
    #[error("write the partition table of {disk}")]
    Table { disk: String, source: gpt::GptError },
    #[error("write the protective MBR of {disk}")]
    ProtectiveMbr {
        disk: String,
        source: gpt::mbr::MBRError,
    },
    #[error("mark the pool on {disk} as being made")]
    Mark { disk: String, source: io::Error },
    #[error("show the new partition of {disk} to the kernel")]
    Reread { disk: String, source: io::Error },
    #[error("{program} on {device} failed: {message}")]
    Program {
        program: &'static str,
        device: String,
        message: String,
    },
    #[error("start {program}")]
    Start {
        program: &'static str,
        source: io::Error,
    },
    #[error(
        "mount the pool {device}, also after xfs_repair: the disk may be failing, nothing was erased"
    )]
    Mount {
        device: String,
        source: sys::error::Error,
    },
    #[error("none of the {count} pools of this owner can be used, the first because of this")]
    NoneUsable {
        count: usize,
        source: Box<PoolError>,
    },
    #[error(
        "the pool that is in use on {path} cannot be checked: it is left as it is, and checked again"
    )]
    InUse {
        path: PathBuf,
        source: Box<PoolError>,
    },
    #[error("the disk {disk} is read-only: the pool on it cannot be used")]
    ReadOnly { disk: String },
    #[error("the pool on {disk} cannot be used")]
    Crypt {
        disk: String,
        source: Box<CryptError>,
    },
    #[error("make the place {path} for a pool")]
    Place { path: PathBuf, source: io::Error },
    #[error("put the pool of {disk} in its place {path}")]
    Move {
        disk: String,
        path: PathBuf,
        source: sys::error::Error,
    },
    #[error("mount a pool in memory")]
    Memory { source: sys::error::Error },
    #[error("write {path}")]
    Marker {
        path: PathBuf,
        source: sys::error::Error,
    },
    #[error("read {path}")]
    Unreadable { path: PathBuf, source: io::Error },
    #[error(
        "{path} is not the description of a pool of format {FORMAT}: boot the image that made it"
    )]
    Format { path: PathBuf },
    #[error(
        "the two descriptions of the pool in {path} contradict each other: boot the image that made it, nothing has been changed"
    )]
    Contradiction { path: PathBuf },
    #[error(
        "the file system in {path} holds files and no description of a pool: nothing has been changed"
    )]
    Unmarked { path: PathBuf },
    #[error("find out what is mounted on {path}")]
    Mounts {
        path: PathBuf,
        source: sys::error::Error,
    },
    #[error("put into the new pool {path} what it is to hold from the first moment on")]
    Fill {
        path: PathBuf,
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error("draw an id for the pool")]
    Random { source: sys::error::Error },
    #[error("it is used, and there is no owner key to check it against")]
    Ownerless,
    #[error("the pool {device} belongs to the owner {owner}: it is left alone")]
    Owner { device: String, owner: PublicKey },
}

/// A mounted pool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pool {
    /// `None` where it is in memory.
    pub id: Option<PoolId>,
    pub mountpoint: PathBuf,
    /// False where it is in memory.
    pub durable: bool,
    /// Kernel name of its disk.
    pub disk: Option<String>,
    /// What a person should know: made just now, repaired, or why it is in memory.
    pub remark: Option<String>,
    /// What is wrong with it, although it can be used.
    pub problems: Vec<String>,
}

/// The block device on which the file system of a pool lies: the partition itself, the mirror over it, or what decrypts
/// either. What stands in `/proc/mounts` for it is led back to its disk by [`disk_of`].
fn backing(
    disk: &Disk,
    partition: u32,
    making: Making,
    keys: &dyn Keys,
) -> Result<PathBuf, PoolError> {
    let partition = mirrors::over(&disk.partition_device(partition));
    let device = match making {
        Making::Yes => crypt::make(&partition, disk.physical_bytes(), keys),
        Making::No => crypt::enter(&partition, keys),
    };
    device.map_err(|source| PoolError::Crypt {
        disk: disk.name.clone(),
        source: Box::new(source),
    })
}

/// The disk below a mounted device.
pub(crate) fn disk_of<'a>(source: &str, disks: &'a [Disk]) -> Option<&'a Disk> {
    let partitions = mirrors::beneath(Path::new(source));
    disks.iter().find(|d| {
        partitions
            .iter()
            .any(|partition| d.has_partition(partition))
    })
}

/// Mounts a pool that is there.
pub(crate) fn enter(
    place: Place,
    disks: &[Disk],
    owner: &PublicKey,
    keys: &dyn Keys,
    mountpoint: &Path,
) -> Result<Pool, PoolError> {
    let disk = &disks[place.disk];
    if disk.read_only {
        return Err(PoolError::ReadOnly {
            disk: disk.name.clone(),
        });
    }
    let device = backing(disk, place.partition, Making::No, keys)?;
    let tears = disk.tears(torn::BLOCK_BYTES);
    let remark = mount(&device, mountpoint, tears)?;
    let (id, problems) = mark(disk, owner, mountpoint, None)?;
    Ok(on_disk(disk, id, mountpoint, remark, problems))
}

/// Goes on where the making of a pool was cut short.
pub(crate) fn go_on(
    place: Place,
    disks: &[Disk],
    owner: &PublicKey,
    keys: &dyn Keys,
    mountpoint: &Path,
) -> Result<Pool, PoolError> {
    let disk = &disks[place.disk];
    let (id, problems) = finish(disk, place.partition, owner, keys, mountpoint, &nothing)?;
    let remark = "its making had been cut short and was done again".to_owned();
    Ok(on_disk(disk, id, mountpoint, Some(remark), problems))
}

/// Makes a pool on a disk that was found blank. After an error it is not mounted.
pub fn make(
    disk: &Disk,
    owner: &PublicKey,
    keys: &dyn Keys,
    mountpoint: &Path,
) -> Result<Pool, PoolError> {
    make_with(disk, owner, keys, mountpoint, &nothing)
}

/// Puts the first files into a new file system, on disk when this returns.
pub type Fill<'a> = &'a dyn Fn(&Path) -> Result<(), Box<dyn std::error::Error + Send + Sync>>;

fn nothing(_: &Path) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    Ok(())
}

/// The same, with what is in the pool before it has its description: whenever the power goes, a pool that is one has it.
pub fn make_with(
    disk: &Disk,
    owner: &PublicKey,
    keys: &dyn Keys,
    mountpoint: &Path,
    fill: Fill<'_>,
) -> Result<Pool, PoolError> {
    // Before anything is written.
    if let Wish::Required { but } = keys.wish() {
        return Err(PoolError::Crypt {
            disk: disk.name.clone(),
            source: Box::new(CryptError::Required(but)),
        });
    }
    let made = partition(disk, owner);
    let made = made.and_then(|number| finish(disk, number, owner, keys, mountpoint, fill));
    if made.is_err() {
        let _ = sys::mount::detach(mountpoint);
    }
    let (id, problems) = made?;
    let remark = format!("made on the blank disk {}", disk.name);
    Ok(on_disk(disk, id, mountpoint, Some(remark), problems))
}

fn on_disk(
    disk: &Disk,
    id: PoolId,
    mountpoint: &Path,
    remark: Option<String>,
    problems: Vec<String>,
) -> Pool {
    Pool {
        id: Some(id),
        mountpoint: mountpoint.to_owned(),
        durable: true,
        disk: Some(disk.name.clone()),
        remark,
        problems,
    }
}

/// The pool that an earlier run of the node agent has mounted. VMs run from it: nothing here takes it away.
pub(crate) fn adopt(
    mounted: &sys::mount::Mounted,
    disks: &[Disk],
    owner: Option<&PublicKey>,
    mountpoint: &Path,
) -> Result<Pool, PoolError> {
    if mounted.fstype == "tmpfs" {
        return Ok(in_memory(mountpoint, "as since the boot"));
    }
    let source = mounted.source.as_str();
    let name = disk_of(source, disks).map_or(source, |d| d.name.as_str());
    let checked = owner
        .ok_or(PoolError::Ownerless)
        .and_then(|owner| check_marker(name, owner, mountpoint));
    let found = checked.map_err(|source| PoolError::InUse {
        path: mountpoint.to_owned(),
        source: Box::new(source),
    })?;
    Ok(Pool {
        id: Some(found.id().to_owned()),
        mountpoint: mountpoint.to_owned(),
        durable: true,
        disk: Some(name.to_owned()),
        remark: None,
        problems: found.mend(),
    })
}

pub(crate) fn memory(why: &str, mountpoint: &Path) -> Result<Pool, PoolError> {
    // As the root of a pool on a disk: the chunk daemon, a user of its own, passes through to its directories.
    let options = format!("mode=0755,size={MEMORY_POOL_PERCENT}%");
    sys::mount::mount("tmpfs", mountpoint, "tmpfs", flags(), &options)
        .map_err(|source| PoolError::Memory { source })?;
    Ok(in_memory(mountpoint, why))
}

fn in_memory(mountpoint: &Path, why: &str) -> Pool {
    Pool {
        id: None,
        mountpoint: mountpoint.to_owned(),
        durable: false,
        disk: None,
        remark: Some(why.to_owned()),
        problems: Vec::new(),
    }
}

fn flags() -> sys::mount::Flags {
    use sys::mount::Flags;
    Flags::MS_NODEV | Flags::MS_NOSUID | Flags::MS_NOEXEC
}

/// Makes the one partition and returns its number.
pub(crate) fn partition(disk: &Disk, owner: &PublicKey) -> Result<u32, PoolError> {
    let reread = |source| PoolError::Reread {
        disk: disk.name.clone(),
        source,
    };
    let file = open_disk(disk)?;
    claim::clear(&file, disk.size_bytes)
        .and_then(|()| file.write_all_at(&making(), ALIGN_BYTES - MAKING_BYTES))
        .and_then(|()| file.sync_all())
        .map_err(|source| PoolError::Mark {
            disk: disk.name.clone(),
            source,
        })?;
    let device = file.try_clone().map_err(reread)?;
    let (number, _) = write_table(device, disk, owner)?;
    // The kernel believes a GPT only with its MBR, so this line makes the table real.
    file.sync_all().map_err(reread)?;
    let sectors = u32::try_from(disk.size_bytes / disk.block_bytes - 1).unwrap_or(u32::MAX);
    let mut mbr = &file;
    gpt::mbr::ProtectiveMBR::with_lb_size(sectors)
        .overwrite_lba0(&mut mbr)
        .map_err(|source| PoolError::ProtectiveMbr {
            disk: disk.name.clone(),
            source,
        })?;
    file.sync_all().map_err(reread)?;
    sys::block::reread_partitions(&file).map_err(reread)?;
    Ok(number)
}

/// Writes a table with one partition over the whole disk; both headers come after the entries.
fn write_table<D: gpt::DiskDevice>(
    device: D,
    disk: &Disk,
    owner: &PublicKey,
) -> Result<(u32, D), PoolError> {
    let table = |source| PoolError::Table {
        disk: disk.name.clone(),
        source,
    };
    let block = LogicalBlockSize::try_from(disk.block_bytes).unwrap_or(LogicalBlockSize::Lb512);
    let mut gpt = GptConfig::new()
        .writable(true)
        .logical_block_size(block)
        .create_from_device(device, None)
        .map_err(table)?;
    gpt.update_partitions(BTreeMap::new()).map_err(table)?;
    let align = ALIGN_BYTES / disk.block_bytes;
    let free = gpt
        .find_free_sectors()
        .into_iter()
        .map(|(_, length)| length);
    let length = free.max().unwrap_or(0).saturating_sub(2 * align) * disk.block_bytes;
    let kind = gpt::partition_types::Type {
        guid: POOL_TYPE.parse().expect("POOL_TYPE is a GUID"),
        os: gpt::partition_types::OperatingSystem::None,
    };
    let name = partition_name(owner);
    let number = gpt
        .add_partition(&name, length, kind, 0, Some(align))
        .map_err(table)?;
    Ok((number, gpt.write().map_err(table)?))
}

/// From the empty partition to a pool in use. Each step may be repeated.
fn finish(
    disk: &Disk,
    number: u32,
    owner: &PublicKey,
    keys: &dyn Keys,
    mountpoint: &Path,
    fill: Fill<'_>,
) -> Result<(PoolId, Vec<String>), PoolError> {
    set_making(disk, Making::Yes)?;
    let device = backing(disk, number, Making::Yes, keys)?;
    // One that was finished and only lacks its description is not made again.
    if !is_finished(&device) || try_mount(&device, mountpoint).is_err() {
        run(MKFS, &["-q", "-f", "-m", "reflink=1"], &device)?;
        try_mount(&device, mountpoint).map_err(|source| PoolError::Mount {
            device: device.display().to_string(),
            source,
        })?;
    }
    let marked = mark(disk, owner, mountpoint, Some(fill))?;
    set_making(disk, Making::No)?;
    Ok(marked)
}

/// Whether the mark of a pool that is being made stands before its partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Making {
    Yes,
    No,
}

/// The mark of a pool that is being made goes from a disk that is one of several of a pool.
pub(crate) fn end_making(disk: &Disk) -> Result<(), PoolError> {
    set_making(disk, Making::No)
}

/// On disk when this returns.
fn set_making(disk: &Disk, making: Making) -> Result<(), PoolError> {
    let failed = |source| PoolError::Mark {
        disk: disk.name.clone(),
        source,
    };
    write_making(&open_disk(disk)?, disk, making).map_err(failed)
}

fn write_making(file: &File, disk: &Disk, making: Making) -> io::Result<()> {
    let found = probe::our_partition(file, disk.size_bytes, disk.block_bytes)?;
    let start = found.and_then(|partition| partition.start.checked_sub(MAKING_BYTES));
    let at = start.ok_or(io::ErrorKind::InvalidData)?;
    let block = match making {
        Making::Yes => probe::making(),
        Making::No => vec![0; probe::making().len()],
    };
    file.write_all_at(&block, at)?;
    file.sync_all()
}

/// Whether `mkfs` came to its end. What cannot be read is not whole.
fn is_finished(device: &Path) -> bool {
    let mut beginning = [0; 4096];
    let read = File::open(device).and_then(|file| file.read_exact_at(&mut beginning, 0));
    read.is_ok() && probe::is_finished(&beginning)
}

/// Describes a pool that holds nothing yet, once it has been filled, and checks the description of any other. Says what was
/// wrong with that. The pool's id comes with it. `making`: the mark of a pool that is being made stands.
fn mark(
    disk: &Disk,
    owner: &PublicKey,
    mountpoint: &Path,
    making: Option<Fill<'_>>,
) -> Result<(PoolId, Vec<String>), PoolError> {
    if let Some(found) = marker::find(&disk.name, owner, mountpoint)? {
        return Ok((found.id().to_owned(), found.mend()));
    }
    let given = making.map_or(&[][..], |_| &GIVEN);
    if !marker::is_empty(mountpoint, given)? {
        return Err(PoolError::Unmarked {
            path: mountpoint.to_owned(),
        });
    }
    let fill = making.unwrap_or(&nothing);
    fill(mountpoint).map_err(|source| PoolError::Fill {
        path: mountpoint.to_owned(),
        source,
    })?;
    Ok((marker::make(owner, mountpoint)?, Vec::new()))
}

fn open_disk(disk: &Disk) -> Result<File, PoolError> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .open(disk.device())
        .map_err(|source| PoolError::Open {
            disk: disk.name.clone(),
            source,
        })
}

/// Mounts, which replays the journal. Where that fails, blocks that were half written are made whole by it; else the file
/// system is repaired once, which is refused while the journal has anything. Says so.
/// `tears`: a cut of the power can leave a block of the disk half written. Where it cannot, a wrong checksum is something else, and a
/// replay would give what is damaged a right one.
fn mount(device: &Path, mountpoint: &Path, tears: bool) -> Result<Option<String>, PoolError> {
    let Err(first) = try_mount(device, mountpoint) else {
        return Ok(None);
    };
    let blocks = match tears {
        true => torn::replay(device, &first, || try_mount(device, mountpoint)),
        false => 0,
    };
    if blocks > 0 {
        // The journal is empty, and what it has made of those blocks is looked at.
        sys::mount::unmount(mountpoint).map_err(|source| PoolError::Mount {
            device: device.display().to_string(),
            source,
        })?;
    }
    run(REPAIR, &[], device)?;
    try_mount(device, mountpoint).map_err(|source| PoolError::Mount {
        device: device.display().to_string(),
        source,
    })?;
    let blocks = match blocks {
        0 => String::new(),
        1 => "a block that was half written was made whole by the journal, and ".to_owned(),
        n => format!("{n} blocks that were half written were made whole by the journal, and "),
    };
    let first = sys::error::chain(&first);
    Ok(Some(format!("{blocks}repaired, because: {first}")))
}

fn try_mount(device: &Path, mountpoint: &Path) -> sys::Result<()> {
    let device = device.display().to_string();
    sys::mount::mount(&device, mountpoint, "xfs", flags(), "")
}

pub(crate) fn check_marker(
    disk: &str,
    owner: &PublicKey,
    mountpoint: &Path,
) -> Result<marker::Found, PoolError> {
    marker::find(disk, owner, mountpoint)?.ok_or_else(|| PoolError::Unmarked {
        path: mountpoint.to_owned(),
    })
}

/// Runs one of the two helpers by its absolute path, with no shell between.
fn run(program: &'static str, args: &[&str], device: &Path) -> Result<(), PoolError> {
    let output = Command::new(program)
        .args(args)
        .arg(device)
        .env_clear()
        .output()
        .map_err(|source| PoolError::Start { program, source })?;
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr);
    let message = text.lines().rev().take(3).collect::<Vec<_>>().join("; ");
    Err(PoolError::Program {
        program,
        device: device.display().to_string(),
        message,
    })
}

/// The table of a pool in a file.
#[cfg(any(test, feature = "fuzz"))]
pub(crate) fn write_pool_table(file: &File, size_bytes: u64, owner: &PublicKey) {
    let disk = Disk {
        size_bytes,
        ..crate::disk::any("file", "file")
    };
    file.write_all_at(&making(), ALIGN_BYTES - MAKING_BYTES)
        .expect("a file has room");
    let device = file.try_clone().expect("a descriptor");
    write_table(device, &disk, owner).expect("a file has room");
    let sectors = u32::try_from(size_bytes / 512 - 1).expect("a small file");
    let mut mbr = file;
    gpt::mbr::ProtectiveMBR::with_lb_size(sectors)
        .overwrite_lba0(&mut mbr)
        .expect("a file has room");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probe::{Content, Stage, owner_mark, probe};
    use std::io::{Read, Seek, SeekFrom, Write};

    const OWNER: PublicKey = PublicKey([0xcd; 32]);

    /// A file that remembers each write.
    #[derive(Debug)]
    struct Recorder {
        file: File,
        at: u64,
        writes: Vec<(u64, Vec<u8>)>,
    }

    impl Read for Recorder {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let length = self.file.read_at(buffer, self.at)?;
            self.at += u64::try_from(length).expect("small");
            Ok(length)
        }
    }

    impl Write for Recorder {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.file.write_all_at(bytes, self.at)?;
            self.writes.push((self.at, bytes.to_vec()));
            self.at += u64::try_from(bytes.len()).expect("small");
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Seek for Recorder {
        fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
            let end = self.file.metadata()?.len();
            let at = match to {
                SeekFrom::Start(at) => Some(at),
                SeekFrom::End(by) => end.checked_add_signed(by),
                SeekFrom::Current(by) => self.at.checked_add_signed(by),
            };
            self.at = at.ok_or(io::ErrorKind::InvalidInput)?;
            Ok(self.at)
        }
    }

    fn disk(block_bytes: u64) -> Disk {
        Disk {
            size_bytes: 64 << 20,
            block_bytes,
            ..crate::disk::any("test", "")
        }
    }

    fn empty(disk: &Disk) -> File {
        let file = tempfile::tempfile().expect("a file");
        file.set_len(disk.size_bytes).expect("a size");
        file
    }

    /// After each single write of the table the disk is blank still, or the pool already: never foreign.
    #[test]
    fn a_power_cut_at_any_write_of_the_table_heals() {
        for disk in [disk(512), disk(4096)] {
            let device = Recorder {
                file: empty(&disk),
                at: 0,
                writes: Vec::new(),
            };
            let (number, recorder) = write_table(device, &disk, &OWNER).expect("a table");
            let mut writes = recorder.writes;
            writes.insert(0, (ALIGN_BYTES - MAKING_BYTES, making()));
            let mut mbr = io::Cursor::new(vec![0; 512]);
            gpt::mbr::ProtectiveMBR::with_lb_size(1)
                .overwrite_lba0(&mut mbr)
                .expect("an MBR");
            writes.push((0, mbr.into_inner()));
            let made = Content::Pool {
                owner: owner_mark(&OWNER),
                stage: Stage::Made,
                partition: number,
            };
            let file = empty(&disk);
            for (count, (at, bytes)) in writes.iter().enumerate() {
                file.write_all_at(bytes, *at).expect("a write");
                let content = probe(&file, disk.size_bytes, disk.block_bytes).expect("a probe");
                let last = count + 1 == writes.len();
                assert_eq!(
                    content,
                    if last { made.clone() } else { Content::Blank },
                    "write {count}"
                );
            }
        }
    }

    #[test]
    fn somebody_elses_bytes_beside_half_a_table_of_ours_are_not_blank() {
        let disk = disk(512);
        let file = empty(&disk);
        file.write_all_at(&making(), ALIGN_BYTES - MAKING_BYTES)
            .expect("a write");
        write_table(file.try_clone().expect("clone"), &disk, &OWNER).expect("a table");
        assert_eq!(
            probe(&file, disk.size_bytes, 512).expect("a probe"),
            Content::Blank
        );
        file.write_all_at(b"x", 3 << 20).expect("a write");
        assert!(matches!(
            probe(&file, disk.size_bytes, 512),
            Ok(Content::Foreign(_))
        ));
    }

    #[test]
    fn the_mark_of_a_pool_that_is_being_made_comes_and_goes() {
        for disk in [disk(512), disk(4096)] {
            let file = empty(&disk);
            let table = write_table(file.try_clone().expect("clone"), &disk, &OWNER);
            assert_eq!(table.expect("a table").0, 1);
            let mut mbr = &file;
            gpt::mbr::ProtectiveMBR::with_lb_size(1)
                .overwrite_lba0(&mut mbr)
                .expect("an MBR");
            let stage = || match probe(&file, disk.size_bytes, disk.block_bytes) {
                Ok(Content::Pool { stage, .. }) => Some(stage),
                _ => None,
            };
            file.write_all_at(b"half a file system", ALIGN_BYTES + 4096)
                .expect("a write");
            assert_eq!(stage(), None);
            write_making(&file, &disk, Making::Yes).expect("marked");
            assert_eq!(stage(), Some(Stage::Made));
            write_making(&file, &disk, Making::No).expect("unmarked");
            assert_eq!(stage(), None);
        }
    }

    /// VMs run from it: an error is no reason to run from memory instead, which would hide it.
    #[test]
    fn a_pool_in_use_that_cannot_be_checked_is_an_error_of_its_own() {
        let pool = tempfile::tempdir().expect("a directory");
        let mounted = sys::mount::Mounted {
            source: "/dev/test1".to_owned(),
            fstype: "xfs".to_owned(),
        };
        let adopt = |owner| adopt(&mounted, &[disk(512)], owner, pool.path());
        for owner in [Some(&OWNER), None] {
            assert!(matches!(adopt(owner), Err(PoolError::InUse { .. })));
        }
        marker::make(&OWNER, pool.path()).expect("described");
        let adopted = adopt(Some(&OWNER)).expect("it is readable again");
        assert_eq!(adopted.disk.as_deref(), Some("test"));
    }

    #[test]
    fn an_empty_file_system_is_marked_and_a_full_one_is_checked() {
        let pool = tempfile::tempdir().expect("a directory");
        std::fs::write(pool.path().join("pool.json.new"), "{").expect("a torn marker");
        mark(&disk(512), &OWNER, pool.path(), None).expect("marked");
        mark(&disk(512), &OWNER, pool.path(), None).expect("checked");
        let other = mark(&disk(512), &PublicKey([1; 32]), pool.path(), None);
        assert!(matches!(other, Err(PoolError::Owner { .. })));
        let foreign = tempfile::tempdir().expect("a directory");
        std::fs::write(foreign.path().join("photos"), "").expect("a file");
        let refused = mark(&disk(512), &OWNER, foreign.path(), None);
        assert!(matches!(refused, Err(PoolError::Unmarked { .. })));
        assert!(!foreign.path().join("pool.json").exists());
    }

    /// A node that runs from RAM gives its key to the pool that it makes: were the pool one before, the next boot would draw
    /// another key.
    #[test]
    fn whatever_moment_a_pool_becomes_one_at_it_has_what_it_was_to_be_given() {
        let pool = tempfile::tempdir().expect("a directory");
        let (described, key) = (
            pool.path().join("pool.json"),
            pool.path().join("identity/a"),
        );
        // The power goes while the key is written: it is no pool yet.
        let cut = |to: &Path| {
            std::fs::create_dir(to.join("identity"))?;
            std::fs::write(to.join("identity/a"), "ke")?;
            Err("the power has gone".into())
        };
        let failed = mark(&disk(512), &OWNER, pool.path(), Some(&cut));
        assert!(matches!(failed, Err(PoolError::Fill { .. })), "{failed:?}");
        assert!(!described.exists());
        // Whoever goes on finds it as it was left, and nobody else takes it for theirs.
        let refused = mark(&disk(512), &OWNER, pool.path(), None);
        assert!(matches!(refused, Err(PoolError::Unmarked { .. })));
        let give = |to: &Path| {
            assert!(!to.join("pool.json").exists(), "it is a pool already");
            Ok(std::fs::write(to.join("identity/a"), "key")?)
        };
        mark(&disk(512), &OWNER, pool.path(), Some(&give)).expect("marked");
        assert!(described.exists() && key.exists());
        let again = |_: &Path| Err("what a pool has is not given again".into());
        mark(&disk(512), &OWNER, pool.path(), Some(&again)).expect("checked");
    }
}
