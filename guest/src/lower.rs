//! What of the image's disk becomes the root: all of it, or the first partition that looks like one.
//!
//! Owns: telling an EROFS file system (an image of files) from a disk image, and choosing among a disk's partitions.
//! Refuses: file systems that were not unmounted (mending them would write, and what is below the writable layer is
//! everybody's), and to guess beyond ext file systems: the kernel has no other.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

use sys::error::During;
use sys::mount::{Flags, mount, unmount};

use crate::device;
use crate::error::{Result, SetupError};

/// Both superblocks begin here.
const SUPERBLOCK_AT: u64 = 1024;
const SUPERBLOCK_BYTES: usize = 128;
/// EROFS: `erofs_super_block.magic`.
const EROFS_MAGIC: [u8; 4] = 0xE0F5_E1E2_u32.to_le_bytes();
/// ext2, ext3, ext4: `s_magic`, and where that and `s_feature_incompat` are.
const EXT_MAGIC: [u8; 2] = 0xEF53_u16.to_le_bytes();
const EXT_MAGIC_AT: usize = 56;
const EXT_INCOMPAT_AT: usize = 96;
/// The journal has to be replayed (EXT4_FEATURE_INCOMPAT_RECOVER).
const EXT_RECOVER: u32 = 0x4;
/// What every root has one of, and no partition for `/boot`, an EFI system or data has.
const SIGNS: [&str; 4] = ["bin", "sbin", "usr", "etc"];

/// What a device holds, as far as its superblock says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Content {
    Erofs,
    Ext,
    /// An ext file system that something had mounted when the disk was copied.
    ExtInUse,
    Other,
}

/// Mounts the root of the image's disk at `target`, to be read only.
pub(crate) fn mount_root(disk: &Path, target: &Path) -> Result<()> {
    match content(disk)? {
        Content::Erofs => mount_as(disk, target, "erofs", ""),
        Content::Ext => mount_ext(disk, target),
        Content::ExtInUse => Err(SetupError::InUse {
            device: disk.to_owned(),
        }),
        Content::Other => mount_partition(disk, target),
    }
}

/// The first partition, by its number, that has an ext file system which looks like a root.
fn mount_partition(disk: &Path, target: &Path) -> Result<()> {
    let partitions = device::partitions(disk)?;
    for partition in &partitions {
        match content(partition)? {
            Content::Ext => {}
            // If this one is the root, nothing behind it is.
            Content::ExtInUse => {
                return Err(SetupError::InUse {
                    device: partition.clone(),
                });
            }
            Content::Erofs | Content::Other => continue,
        }
        mount_ext(partition, target)?;
        if is_root(target) {
            return Ok(());
        }
        unmount(target)?;
    }
    Err(SetupError::NoRoot {
        partitions: partitions.len(),
    })
}

fn is_root(directory: &Path) -> bool {
    // Links count too: /bin is one on most systems.
    SIGNS
        .iter()
        .any(|sign| fs::symlink_metadata(directory.join(sign)).is_ok())
}

/// `noload`: nothing is in the journal, and so nobody looks into it.
fn mount_ext(device: &Path, target: &Path) -> Result<()> {
    mount_as(device, target, "ext4", "noload")
}

fn mount_as(device: &Path, target: &Path, kind: &str, options: &str) -> Result<()> {
    let flags = Flags::MS_RDONLY | Flags::MS_NODEV;
    Ok(mount(
        &device.to_string_lossy(),
        target,
        kind,
        flags,
        options,
    )?)
}

fn content(device: &Path) -> Result<Content> {
    let during = || format!("read the superblock of {}", device.display());
    let file = File::open(device).during(during)?;
    let mut superblock = [0; SUPERBLOCK_BYTES];
    match file.read_exact_at(&mut superblock, SUPERBLOCK_AT) {
        // A partition of a sector or two, such as the one that holds the others.
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => Ok(Content::Other),
        read => read
            .during(during)
            .map(|()| judge(&superblock))
            .map_err(Into::into),
    }
}

fn judge(superblock: &[u8; SUPERBLOCK_BYTES]) -> Content {
    if superblock.starts_with(&EROFS_MAGIC) {
        return Content::Erofs;
    }
    if superblock[EXT_MAGIC_AT..EXT_MAGIC_AT + 2] != EXT_MAGIC {
        return Content::Other;
    }
    let incompat = superblock[EXT_INCOMPAT_AT..EXT_INCOMPAT_AT + 4].try_into();
    let incompat = u32::from_le_bytes(incompat.expect("4 bytes"));
    match incompat & EXT_RECOVER {
        0 => Content::Ext,
        _ => Content::ExtInUse,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn superblock(magic: &[(usize, &[u8])]) -> [u8; SUPERBLOCK_BYTES] {
        let mut bytes = [0; SUPERBLOCK_BYTES];
        for (at, with) in magic {
            bytes[*at..at + with.len()].copy_from_slice(with);
        }
        bytes
    }

    #[test]
    fn file_systems_are_told_by_their_superblocks() {
        let ext = (EXT_MAGIC_AT, &EXT_MAGIC[..]);
        let features = |bits: u32| bits.to_le_bytes();
        assert_eq!(judge(&superblock(&[(0, &EROFS_MAGIC)])), Content::Erofs);
        let clean = superblock(&[ext, (EXT_INCOMPAT_AT, &features(0x2c2))]);
        assert_eq!(judge(&clean), Content::Ext);
        let in_use = superblock(&[ext, (EXT_INCOMPAT_AT, &features(0x2c6))]);
        assert_eq!(judge(&in_use), Content::ExtInUse);
        assert_eq!(judge(&superblock(&[])), Content::Other);
    }

    #[test]
    fn a_device_shorter_than_a_superblock_has_no_file_system() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        fs::write(file.path(), [0; 1024]).expect("write");
        assert_eq!(content(file.path()).expect("read"), Content::Other);
    }

    #[test]
    fn what_mke2fs_makes_is_an_ext_file_system() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let made = std::process::Command::new("/sbin/mke2fs")
            .args(["-q", "-t", "ext4"])
            .arg(file.path())
            .arg("4m")
            .status();
        assert!(made.expect("mke2fs runs: run 'make setup'").success());
        assert_eq!(content(file.path()).expect("read"), Content::Ext);
    }

    #[test]
    fn what_mkfs_erofs_makes_is_an_image_of_files() {
        let (file, tree) = (tempfile::NamedTempFile::new(), tempfile::tempdir());
        let (file, tree) = (file.expect("a file"), tree.expect("a directory"));
        let made = std::process::Command::new("mkfs.erofs")
            .args([file.path(), tree.path()])
            .output();
        assert!(
            made.expect("mkfs.erofs runs: run 'make setup'")
                .status
                .success()
        );
        assert_eq!(content(file.path()).expect("read"), Content::Erofs);
    }

    #[test]
    fn a_root_has_programs_or_settings_and_a_boot_partition_has_neither() {
        let directory = tempfile::tempdir().expect("a directory");
        for name in ["grub", "efi", "lost+found"] {
            fs::create_dir(directory.path().join(name)).expect("a directory");
        }
        assert!(!is_root(directory.path()));
        std::os::unix::fs::symlink("usr/bin", directory.path().join("bin")).expect("a link");
        assert!(is_root(directory.path()));
    }
}
