//! Finding the VM's devices by what the specification calls them, never by their order.
//!
//! Owns: disks by serial, their partitions, the network card by address, and waiting for them by event.
//! Refuses: polling. The kernel announces each device on a netlink socket.

use std::fs::File;
use std::io::Read;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags};
use sys::error::During;
use sys::uevent::Uevents;
use types::Mac;

use crate::control::{now_ms, timeout};
use crate::error::{Result, SetupError};

/// How long a device may take to appear: the kernel probes them all before init runs, so this is only
/// reached where the VM has no such device.
const WAIT_SECONDS: u64 = 10;
/// Longest sysfs attribute: a page.
const ATTRIBUTE_BYTES_MAX: u64 = 4096;
/// What sysfs counts a disk in, whatever its own sectors are.
const SECTOR: u64 = 512;

/// The device node of the virtio disk with this serial.
pub(crate) fn disk(serial: &str) -> Result<PathBuf> {
    find(&format!("a disk with the serial {serial:?}"), || {
        let name = first(Path::new("/sys/block"), |disk| {
            attribute(&disk.join("serial")) == serial
        })?;
        Ok(name.map(|name| Path::new("/dev").join(name)))
    })
}

/// The device nodes of a disk's partitions, as the kernel has read its table (MBR or GPT), by their numbers.
pub(crate) fn partitions(disk: &Path) -> Result<Vec<PathBuf>> {
    let name = disk.file_name().unwrap_or_default();
    numbered(&Path::new("/sys/block").join(name))
}

fn numbered(disk: &Path) -> Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(disk).during(|| format!("list {}", disk.display()))?;
    let mut found: Vec<(u32, PathBuf)> = entries
        .filter_map(|entry| {
            let path = entry.ok()?.path();
            let number = attribute(&path.join("partition")).parse().ok()?;
            Some((number, Path::new("/dev").join(path.file_name()?)))
        })
        .collect();
    found.sort_unstable();
    Ok(found.into_iter().map(|(_, path)| path).collect())
}

/// Waits until a disk has so many bytes; returns how many it has.
pub(crate) fn size(disk: &Path, bytes: u64) -> Result<u64> {
    let name = disk.file_name().unwrap_or_default();
    let path = Path::new("/sys/block").join(name).join("size");
    find(&format!("{bytes} bytes of {}", disk.display()), || {
        let sectors: Option<u64> = attribute(&path).parse().ok();
        let has = sectors.map(|sectors| sectors.saturating_mul(SECTOR));
        Ok(has.filter(|has| *has >= bytes))
    })
}

/// The name and index of the network card with this address.
pub(crate) fn card(mac: Mac) -> Result<(String, u32)> {
    let address = mac.to_string();
    let class = Path::new("/sys/class/net");
    find(
        &format!("a network card with the address {address}"),
        || {
            let Some(name) = first(class, |card| attribute(&card.join("address")) == address)?
            else {
                return Ok(None);
            };
            let index = attribute(&class.join(&name).join("ifindex")).parse();
            Ok(index.ok().map(|index| (name, index)))
        },
    )
}

/// The first entry of `directory`, by name, that `fits`.
fn first(directory: &Path, fits: impl Fn(&Path) -> bool) -> Result<Option<String>> {
    let entries =
        std::fs::read_dir(directory).during(|| format!("list {}", directory.display()))?;
    let mut names: Vec<String> = entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .collect();
    names.sort_unstable();
    Ok(names.into_iter().find(|name| fits(&directory.join(name))))
}

/// A sysfs attribute without its line end; empty where there is none.
fn attribute(path: &Path) -> String {
    let mut text = String::new();
    match File::open(path).and_then(|file| file.take(ATTRIBUTE_BYTES_MAX).read_to_string(&mut text))
    {
        Ok(_) => text.trim_end().to_owned(),
        Err(_) => String::new(),
    }
}

/// Looks, and looks again after each event, until `look` finds or time is up.
fn find<T>(what: &str, mut look: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    if let Some(found) = look()? {
        return Ok(found);
    }
    // Subscribed before looking again: nothing that appears in between is missed.
    let events = Uevents::subscribe()?;
    let deadline_ms = now_ms().saturating_add(WAIT_SECONDS * 1000);
    loop {
        if let Some(found) = look()? {
            return Ok(found);
        }
        if now_ms() >= deadline_ms {
            return Err(SetupError::Absent {
                what: what.to_owned(),
                seconds: WAIT_SECONDS,
            });
        }
        let poll = PollFd::new(events.as_fd(), PollFlags::POLLIN);
        match nix::poll::poll(&mut [poll], timeout(now_ms(), Some(deadline_ms))) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => {
                return Err(errno)
                    .during(|| format!("wait for {what}"))
                    .map_err(Into::into);
            }
        }
        // What an event says does not matter, only that there was one.
        while events
            .next()
            .during(|| format!("wait for {what}"))?
            .is_some()
        {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_found_by_its_attribute_and_not_by_its_name() {
        let directory = tempfile::tempdir().expect("a directory");
        for (name, serial) in [("vda", "upper\n"), ("vdb", "image\n"), ("vdc", "")] {
            std::fs::create_dir(directory.path().join(name)).expect("a directory");
            std::fs::write(directory.path().join(name).join("serial"), serial).expect("a file");
        }
        std::fs::create_dir(directory.path().join("loop0")).expect("a directory");
        let by = |serial: &str| first(directory.path(), |d| attribute(&d.join("serial")) == serial);
        assert_eq!(by("image").expect("a list"), Some("vdb".to_owned()));
        assert_eq!(by("imag").expect("a list"), None);
    }

    #[test]
    fn partitions_come_by_their_numbers() {
        let directory = tempfile::tempdir().expect("a directory");
        for (name, number) in [("vda10", "10\n"), ("vda2", "2\n"), ("queue", "")] {
            std::fs::create_dir(directory.path().join(name)).expect("a directory");
            if !number.is_empty() {
                std::fs::write(directory.path().join(name).join("partition"), number)
                    .expect("a file");
            }
        }
        std::fs::write(directory.path().join("size"), "2048\n").expect("a file");
        let found = numbered(directory.path()).expect("a list");
        assert_eq!(found, [Path::new("/dev/vda2"), Path::new("/dev/vda10")]);
    }

    #[test]
    fn what_is_there_is_found_without_listening() {
        assert_eq!(find("x", || Ok(Some(7))).expect("found"), 7);
    }
}
