//! The pool: made on a blank disk, mounted, or replaced by memory.
//!
//! Owns: the partition, the file system on it, the mount, and `pool.json`.
//! Refuses: choosing the disk ([`crate::plan`] does), and `mkfs` on a pool that has been in use.
//!
//! A power cut at any line heals: the partition is named `sifr-new` until `pool.json` is on disk, and
//! only then `sifr-pool`. A `sifr-new` partition is made again from `mkfs` on; a `sifr-pool` is never.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use gpt::GptConfig;
use gpt::disk::LogicalBlockSize;
use serde::{Deserialize, Serialize};
use types::PublicKey;

use crate::disk::Disk;
use crate::plan::Choice;
use crate::probe::{POOL_TYPE, Stage, partition_name};

/// Version of the pool's directory layout.
pub const FORMAT: u32 = 1;
const MKFS: &str = "/sbin/mkfs.xfs";
const REPAIR: &str = "/sbin/xfs_repair";
/// Partition boundaries: 1 MiB suits every disk's erase and physical block.
const ALIGN_BYTES: u64 = 1 << 20;
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
    #[error("the pool {device} belongs to the owner {owner}: it is left alone")]
    Owner { device: String, owner: PublicKey },
}

/// The content of `pool.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Marker {
    format: u32,
    owner: PublicKey,
}

/// The mounted pool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pool {
    pub mountpoint: PathBuf,
    /// False where it is in memory.
    pub durable: bool,
    /// Kernel name of its disk.
    pub disk: Option<String>,
    /// What a person should know: made just now, repaired, or why it is in memory.
    pub remark: Option<String>,
}

/// Carries out a choice. Called again after a restart of the node agent it finds its own mount and
/// changes nothing.
pub fn open(
    choice: &Choice,
    disks: &[Disk],
    owner: Option<&PublicKey>,
    mountpoint: &Path,
) -> Result<Pool, PoolError> {
    let pool = |disk: Option<&Disk>, remark: Option<String>| Pool {
        mountpoint: mountpoint.to_owned(),
        durable: disk.is_some(),
        disk: disk.map(|d| d.name.clone()),
        remark,
    };
    let mounted = sys::mount::mounted(mountpoint).map_err(|source| PoolError::Memory { source })?;
    match (choice, owner) {
        (Choice::Use { disk, partition }, Some(owner)) => {
            let disk = &disks[*disk];
            let remark = match mounted {
                Some(_) => None,
                None => mount(&disk.partition_device(*partition), mountpoint)?,
            };
            check_marker(disk, owner, mountpoint)?;
            Ok(pool(Some(disk), remark))
        }
        (Choice::Finish { disk, partition }, Some(owner)) => {
            let disk = &disks[*disk];
            finish(disk, *partition, owner, mountpoint)?;
            Ok(pool(
                Some(disk),
                Some("its making had been cut short and was done again".to_owned()),
            ))
        }
        (Choice::Provision { disk }, Some(owner)) => {
            let disk = &disks[*disk];
            let partition = partition(disk, owner)?;
            finish(disk, partition, owner, mountpoint)?;
            Ok(pool(
                Some(disk),
                Some(format!("made on the blank disk {}", disk.name)),
            ))
        }
        (Choice::Use { .. } | Choice::Finish { .. } | Choice::Provision { .. }, None) => open(
            &Choice::Memory {
                why: "no owner key".to_owned(),
            },
            disks,
            None,
            mountpoint,
        ),
        (Choice::Memory { why }, _) => {
            if mounted.is_none() {
                let flags = flags();
                let options = format!("mode=0700,size={MEMORY_POOL_PERCENT}%");
                sys::mount::mount("tmpfs", mountpoint, "tmpfs", flags, &options)
                    .map_err(|source| PoolError::Memory { source })?;
            }
            Ok(pool(None, Some(why.clone())))
        }
    }
}

fn flags() -> sys::mount::Flags {
    use sys::mount::Flags;
    Flags::MS_NODEV | Flags::MS_NOSUID | Flags::MS_NOEXEC
}

/// Makes the one partition, named as not yet in use, and returns its number.
fn partition(disk: &Disk, owner: &PublicKey) -> Result<u32, PoolError> {
    let table = |source| PoolError::Table {
        disk: disk.name.clone(),
        source,
    };
    let mut file = open_disk(disk)?;
    let block = LogicalBlockSize::try_from(disk.block_bytes).unwrap_or(LogicalBlockSize::Lb512);
    let sectors = u32::try_from(disk.size_bytes / disk.block_bytes - 1).unwrap_or(u32::MAX);
    gpt::mbr::ProtectiveMBR::with_lb_size(sectors)
        .overwrite_lba0(&mut file)
        .map_err(|source| PoolError::ProtectiveMbr {
            disk: disk.name.clone(),
            source,
        })?;
    let mut gpt = GptConfig::new()
        .writable(true)
        .logical_block_size(block)
        .create_from_device(file, None)
        .map_err(table)?;
    gpt.update_partitions(BTreeMap::new()).map_err(table)?;
    let align = ALIGN_BYTES / disk.block_bytes;
    let free = gpt
        .find_free_sectors()
        .into_iter()
        .map(|(_, length)| length)
        .max()
        .unwrap_or(0);
    let length = free.saturating_sub(2 * align) * disk.block_bytes;
    let kind = gpt::partition_types::Type {
        guid: POOL_TYPE.parse().expect("POOL_TYPE is a GUID"),
        os: gpt::partition_types::OperatingSystem::None,
    };
    let name = partition_name(Stage::Made, owner);
    let number = gpt
        .add_partition(&name, length, kind, 0, Some(align))
        .map_err(table)?;
    let file = gpt.write().map_err(table)?;
    let reread = |source| PoolError::Reread {
        disk: disk.name.clone(),
        source,
    };
    file.sync_all().map_err(reread)?;
    sys::block::reread_partitions(&file).map_err(reread)?;
    Ok(number)
}

/// From the empty partition to a pool in use. Each step may be repeated.
fn finish(disk: &Disk, number: u32, owner: &PublicKey, mountpoint: &Path) -> Result<(), PoolError> {
    let device = disk.partition_device(number);
    if sys::mount::mounted(mountpoint)
        .map_err(|source| PoolError::Memory { source })?
        .is_none()
    {
        run(MKFS, &["-q", "-f", "-m", "reflink=1"], &device)?;
        mount(&device, mountpoint)?;
    }
    let path = mountpoint.join("pool.json");
    let marker = Marker {
        format: FORMAT,
        owner: *owner,
    };
    let json = serde_json::to_vec_pretty(&marker).expect("a marker has no unserialisable part");
    sys::fs::write_atomic(&path, &json, 0o600)
        .map_err(|source| PoolError::Marker { path, source })?;
    rename(disk, number, &partition_name(Stage::Live, owner))
}

/// Writes the partition's new name: this is the moment from which its content is sacred.
fn rename(disk: &Disk, number: u32, name: &str) -> Result<(), PoolError> {
    let table = |source| PoolError::Table {
        disk: disk.name.clone(),
        source,
    };
    let block = LogicalBlockSize::try_from(disk.block_bytes).unwrap_or(LogicalBlockSize::Lb512);
    let mut gpt = GptConfig::new()
        .writable(true)
        .logical_block_size(block)
        .open_from_device(open_disk(disk)?)
        .map_err(table)?;
    let mut partitions = gpt.partitions().clone();
    if let Some(partition) = partitions.get_mut(&number) {
        name.clone_into(&mut partition.name);
    }
    gpt.update_partitions(partitions).map_err(table)?;
    let file = gpt.write().map_err(table)?;
    file.sync_all().map_err(|source| PoolError::Reread {
        disk: disk.name.clone(),
        source,
    })
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

/// Mounts, which replays the log; where that fails, repairs once and mounts again. Says so.
fn mount(device: &Path, mountpoint: &Path) -> Result<Option<String>, PoolError> {
    let source = device.display().to_string();
    let attempt = || sys::mount::mount(&source, mountpoint, "xfs", flags(), "");
    let Err(first) = attempt() else {
        return Ok(None);
    };
    run(REPAIR, &[], device)?;
    match attempt() {
        Ok(()) => Ok(Some(format!(
            "repaired, because: {}",
            sys::error::chain(&first)
        ))),
        Err(error) => Err(PoolError::Mount {
            device: source.clone(),
            source: error,
        }),
    }
}

fn check_marker(disk: &Disk, owner: &PublicKey, mountpoint: &Path) -> Result<(), PoolError> {
    let path = mountpoint.join("pool.json");
    let bytes = std::fs::read(&path).map_err(|source| PoolError::Unreadable {
        path: path.clone(),
        source,
    })?;
    match serde_json::from_slice::<Marker>(&bytes) {
        Ok(marker) if marker.format == FORMAT && marker.owner == *owner => Ok(()),
        Ok(marker) if marker.format == FORMAT => Err(PoolError::Owner {
            device: disk.name.clone(),
            owner: marker.owner,
        }),
        Ok(_) | Err(_) => Err(PoolError::Format { path }),
    }
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
