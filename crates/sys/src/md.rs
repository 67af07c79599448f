//! The kernel's RAID driver (linux/raid/md_u.h, admin-guide/md).
//!
//! Owns: the ioctls on an array's node, and what sysfs says of it. Refuses: any level but what the members' superblocks
//! say (version 1.2), deciding who is a member, and arrays of others: it is told a name.
//!
//! The kernel assembles nothing by itself: it is built without autodetection.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::error::{During, Result};

/// Where an array is made by its name.
const NEW_ARRAY: &str = "/sys/module/md_mod/parameters/new_array";

/// `mdu_array_info_t`, eighteen numbers: only the version of the superblocks is said, all else stands in those.
type ArrayInfo = [i32; 18];
/// `mdu_disk_info_t`: number, major, minor, place, state.
type DiskInfo = [i32; 5];
/// `mdu_param_t`.
type Parameters = [i32; 3];
nix::ioctl_write_ptr!(add_new_disk, 9, 0x21, DiskInfo);
nix::ioctl_write_ptr!(set_array_info, 9, 0x23, ArrayInfo);
nix::ioctl_write_ptr!(run_array, 9, 0x30, Parameters);
nix::ioctl_none!(stop_array, 9, 0x32);

/// Node of the array of this name, which begins with `md_`.
pub fn node(name: &str) -> PathBuf {
    Path::new("/dev").join(name)
}

/// Puts an array together from members whose superblocks name each other, and starts it.
pub fn start(name: &str, members: &[PathBuf]) -> Result<PathBuf> {
    let during = || format!("start the mirror {name}");
    let node = node(name);
    make(name).during(during)?;
    let array = open(&node).during(during)?;
    let mut version: ArrayInfo = [0; 18];
    (version[0], version[1]) = (1, 2);
    let fd = array.as_raw_fd();
    // SAFETY: the kernel reads as many bytes as `ArrayInfo` has; it lives until the call returns, as `array` does.
    let started = unsafe { set_array_info(fd, &raw const version) }
        .map_err(io::Error::from)
        .and_then(|_| members.iter().try_for_each(|member| put(&array, member)))
        .and_then(|()| {
            let parameters: Parameters = [0; 3];
            // SAFETY: as above, with `Parameters`.
            unsafe { run_array(fd, &raw const parameters) }?;
            Ok(())
        });
    if started.is_err() {
        // SAFETY: the call takes no argument; `array` is open.
        let _ = unsafe { stop_array(fd) };
    }
    started.during(during)?;
    Ok(node)
}

/// The node of one that was just stopped may still be there and is about to go: the kernel waits for that before it makes another
/// of the name. So it is asked whether or not there is one.
fn make(name: &str) -> io::Result<()> {
    match fs::write(NEW_ARRAY, name) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        made => made,
    }
}

/// Gives a running array one more member: one that was away, or a new one with its superblock.
pub fn add(name: &str, member: &Path) -> Result<()> {
    let added = open(&node(name)).and_then(|array| put(&array, member));
    added.during(|| format!("add {} to the mirror {name}", member.display()))
}

/// Ends an array that nobody uses.
pub fn stop(name: &str) -> Result<()> {
    let stopped = open(&node(name)).and_then(|array| {
        // SAFETY: the call takes no argument; `array` is open.
        unsafe { stop_array(array.as_raw_fd()) }?;
        Ok(())
    });
    stopped.during(|| format!("stop the mirror {name}"))
}

/// Tells the kernel what becomes of a member: `faulty`, `remove`, `want_replacement` (admin-guide/md, "state").
pub fn set_state(name: &str, member: &str, state: &str) -> Result<()> {
    let file = directory(name).join(format!("dev-{member}/state"));
    fs::write(&file, state).during(|| format!("say {state} to {}", file.display()))
}

/// What the kernel says of an array now.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Seen {
    /// Kernel names of the partitions, each with the words of its state.
    pub members: Vec<(String, Vec<String>)>,
    /// `idle`, `recover`, `resync`.
    pub action: String,
    /// How many sectors of how many are done, while there is something to do.
    pub progress: Option<(u64, u64)>,
    /// Members that are wanted and not there.
    pub degraded: u64,
    /// Of each member what the array uses; 0 where the kernel does not say.
    pub half_bytes: u64,
}

/// `None` where there is no such array, or it does not run.
pub fn see(name: &str) -> Option<Seen> {
    let directory = directory(name);
    let text = |file: &str| {
        let text = fs::read_to_string(directory.join(file)).ok()?;
        Some(text.trim().to_owned())
    };
    let state = text("array_state")?;
    if ["clear", "inactive"].contains(&state.as_str()) {
        return None;
    }
    let mut members = Vec::new();
    for entry in fs::read_dir(&directory).ok()?.flatten() {
        let entry_name = entry.file_name().to_string_lossy().into_owned();
        let Some(member) = entry_name.strip_prefix("dev-") else {
            continue;
        };
        let state = text(&format!("{entry_name}/state")).unwrap_or_default();
        let words = state.split(',').map(str::to_owned).collect();
        members.push((member.to_owned(), words));
    }
    members.sort();
    let progress = text("sync_completed").and_then(|text| {
        let (done, all) = text.split_once(" / ")?;
        Some((done.parse().ok()?, all.parse().ok()?))
    });
    Some(Seen {
        members,
        action: text("sync_action").unwrap_or_default(),
        progress,
        degraded: text("degraded")
            .and_then(|text| text.parse().ok())
            .unwrap_or(0),
        half_bytes: text("component_size")
            .and_then(|text| text.parse::<u64>().ok())
            .map_or(0, |kib| kib.saturating_mul(1024)),
    })
}

/// Kernel names of what lies beneath an array's node. Empty where it is none.
pub fn beneath(node: &Path) -> Vec<String> {
    let name = node
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    if !name.starts_with("md_") {
        return Vec::new();
    }
    names_in(&Path::new("/sys/block").join(name).join("slaves"))
}

/// Name of the array that has this partition as a member.
pub fn over(partition: &Path) -> Option<String> {
    let name = partition.file_name()?;
    let holders = names_in(&Path::new("/sys/class/block").join(name).join("holders"));
    holders.into_iter().find(|name| name.starts_with("md_"))
}

fn names_in(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let mut names: Vec<_> = entries
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

fn directory(name: &str) -> PathBuf {
    Path::new("/sys/block").join(name).join("md")
}

/// To read alone: while a file system lies on it, the kernel lets nobody else open it to write, and its ioctls need no more.
fn open(node: &Path) -> io::Result<File> {
    File::open(node)
}

fn put(array: &File, member: &Path) -> io::Result<()> {
    let number = fs::metadata(member)?.rdev();
    let part = |value: u64| i32::try_from(value).map_err(|_| io::ErrorKind::InvalidInput);
    let (major, minor) = (
        part(nix::sys::stat::major(number))?,
        part(nix::sys::stat::minor(number))?,
    );
    let info: DiskInfo = [0, major, minor, 0, 0];
    // SAFETY: the kernel reads as many bytes as `DiskInfo` has; it lives until the call returns, as `array` does.
    unsafe { add_new_disk(array.as_raw_fd(), &raw const info) }?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_array_has_nothing_beneath_and_is_not_seen() {
        assert!(beneath(Path::new("/dev/vda1")).is_empty());
        assert!(beneath(Path::new("/dev/md_98765")).is_empty());
        assert_eq!(over(Path::new("/dev/none9")), None);
        assert_eq!(see("md_98765"), None);
    }
}
