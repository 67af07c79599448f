//! Volumes: file systems of the program's own data, each on a disk of its own.
//!
//! Owns: mounting them in the program's root, having them span their disks, and holding them still for a copy.
//! Refuses: making a file system. The host has, and one that is damaged is nobody's to overwrite.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::statvfs::fstatvfs;
use sys::error::During;
use sys::mount::{Flags, mount};
use types::guest::VolumeMount;

use crate::console;
use crate::device;
use crate::error::{Result, SetupError};

/// What mkfs leaves in an empty file system.
const LOST_AND_FOUND: &str = "lost+found";
/// Blocks that a program frees go back to the node's pool.
const OPTIONS: &str = "discard";

/// The volumes of this machine that are mounted.
#[derive(Debug, Default)]
pub(crate) struct Volumes(Vec<Mounted>);

#[derive(Debug)]
struct Mounted {
    serial: String,
    disk: PathBuf,
    /// Its root directory.
    root: File,
    read_only: bool,
    held: bool,
}

impl Volumes {
    /// Mounts all of them, in order.
    pub(crate) fn mount(&mut self, volumes: &[VolumeMount]) -> Result<()> {
        for volume in volumes {
            self.0.push(Mounted::new(volume)?);
        }
        Ok(())
    }

    /// Those that are written to.
    pub(crate) fn written(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let written = self.0.iter().filter(|mounted| !mounted.read_only);
        written.map(|mounted| mounted.root.as_fd())
    }

    fn find(&mut self, serial: &str) -> Result<&mut Mounted> {
        let mut written = self.0.iter_mut().filter(|mounted| !mounted.read_only);
        written
            .find(|mounted| mounted.serial == serial)
            .ok_or_else(|| SetupError::NoVolume(serial.to_owned()))
    }

    pub(crate) fn grow(&mut self, serial: &str, bytes: u64) -> Result<u64> {
        self.find(serial)?.grow(bytes)
    }

    pub(crate) fn hold(&mut self, serial: &str) -> Result<()> {
        let mounted = self.find(serial)?;
        if !mounted.held {
            sys::filesystem::freeze(mounted.root.as_fd())
                .during(|| format!("have the volume on {serial} stand still"))?;
            mounted.held = true;
        }
        Ok(())
    }

    /// Has one go on, or all.
    pub(crate) fn release(&mut self, serial: Option<&str>) {
        let named = |mounted: &&mut Mounted| serial.is_none_or(|serial| serial == mounted.serial);
        for mounted in self.0.iter_mut().filter(named) {
            if !mounted.held {
                continue;
            }
            mounted.held = false;
            if let Err(error) = sys::filesystem::thaw(mounted.root.as_fd()) {
                console::warn(&format!(
                    "have the volume on {} go on: {error}",
                    mounted.serial
                ));
            }
        }
    }
}

impl Mounted {
    fn new(volume: &VolumeMount) -> Result<Self> {
        let VolumeMount {
            volume,
            serial,
            path,
            read_only,
        } = volume;
        let disk = device::disk(serial)?;
        let place = Path::new(path);
        fs::create_dir_all(place).during(|| format!("make {path} for the volume {volume}"))?;
        let image = fs::metadata(place).during(|| format!("look at {path}"))?;
        let (flags, options) = match read_only {
            true => (Flags::MS_NODEV | Flags::MS_RDONLY, ""),
            false => (Flags::MS_NODEV, OPTIONS),
        };
        mount(&disk.to_string_lossy(), place, "ext4", flags, options).map_err(|error| {
            let unsettled = error.source.raw_os_error() == Some(Errno::EROFS as i32);
            if *read_only && unsettled {
                return SetupError::Unsettled {
                    volume: volume.to_string(),
                    path: path.clone(),
                };
            }
            error.into()
        })?;
        let root = File::open(place).during(|| format!("open {path}"))?;
        let mounted = Self {
            serial: serial.clone(),
            disk,
            root,
            read_only: *read_only,
            held: false,
        };
        if !read_only {
            mounted.take_after(&image, place)?;
            // It may have become larger while no machine had it. What is not spanned is no reason not to run.
            if let Err(error) = mounted.grow(0) {
                console::warn(&sys::chain(&error));
            }
        }
        Ok(mounted)
    }

    /// An empty volume looks like the directory that it hides, so that a program finds it with the owner that its image
    /// has given it.
    fn take_after(&self, image: &fs::Metadata, place: &Path) -> Result<()> {
        let during = || format!("look into {}", place.display());
        for entry in fs::read_dir(place).during(during)? {
            if entry.during(during)?.file_name() != LOST_AND_FOUND {
                return Ok(());
            }
        }
        let during = || format!("set the owner of {}", place.display());
        chown(place, Some(image.uid()), Some(image.gid())).during(during)?;
        let permissions = fs::Permissions::from_mode(image.mode() & 0o7777);
        fs::set_permissions(place, permissions).during(during)?;
        Ok(())
    }

    /// Has the file system span its disk, once that has so many bytes.
    fn grow(&self, bytes: u64) -> Result<u64> {
        let has = device::size(&self.disk, bytes)?;
        let during = || format!("have the file system on {} span it", self.disk.display());
        let block = fstatvfs(&self.root)
            .map_err(io::Error::from)
            .during(during)?
            .block_size();
        let blocks = has.checked_div(block).unwrap_or(0);
        sys::filesystem::grow_ext4(self.root.as_fd(), blocks).during(during)?;
        Ok(blocks.saturating_mul(block))
    }
}
