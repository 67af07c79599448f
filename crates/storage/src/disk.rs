//! The inventory of disks, from sysfs (Documentation/ABI/stable/sysfs-block).
//!
//! Owns: names, serials, sizes, and where a disk's partitions are.
//! Refuses: opening a disk; that is for [`crate::probe`] and [`crate::pool`].

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Disks looked at: more than any server has, and a bound on a hostile bus.
pub const DISKS_MAX: usize = 256;
/// Kernel names that are never disks of their own.
const NOT_DISKS: [&str; 7] = ["loop", "ram", "dm-", "md", "sr", "fd", "zram"];

#[derive(Debug, thiserror::Error)]
#[error("list the disks in {directory}")]
pub struct InventoryError {
    directory: PathBuf,
    source: io::Error,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// Kernel name: `vda`, `nvme0n1`.
    pub name: String,
    /// What the disk says of itself; empty where it says nothing.
    pub serial: String,
    pub size_bytes: u64,
    /// A removable medium, or a disk on USB: it may be carried away, and it appears seconds after the
    /// others, when the choice has been made.
    pub removable: bool,
    pub read_only: bool,
    /// Size of a logical block in bytes: 512 or 4096.
    pub block_bytes: u64,
}

impl Disk {
    pub fn device(&self) -> PathBuf {
        Path::new("/dev").join(&self.name)
    }

    /// Whether `device` is a partition of this disk.
    pub fn has_partition(&self, device: &Path) -> bool {
        let number = device.to_str().and_then(|path| {
            let rest = path.strip_prefix(self.partition_device(0).to_str()?.strip_suffix('0')?)?;
            rest.parse::<u32>().ok()
        });
        number.is_some()
    }

    /// The device of a partition, by the kernel's naming: a `p` between a digit and the number.
    pub fn partition_device(&self, number: u32) -> PathBuf {
        let separator = if self.name.ends_with(|c: char| c.is_ascii_digit()) {
            "p"
        } else {
            ""
        };
        Path::new("/dev").join(format!("{}{separator}{number}", self.name))
    }
}

/// All disks below `sys` (normally `/sys`), by name.
pub fn inventory(sys: &Path) -> Result<Vec<Disk>, InventoryError> {
    let directory = sys.join("block");
    let error = |source| InventoryError {
        directory: directory.clone(),
        source,
    };
    let mut disks = Vec::new();
    for entry in fs::read_dir(&directory).map_err(error)?.take(DISKS_MAX) {
        let entry = entry.map_err(error)?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if NOT_DISKS.iter().any(|prefix| name.starts_with(prefix)) {
            continue;
        }
        disks.extend(read(&entry.path(), name));
    }
    disks.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(disks)
}

/// `None` where the disk has gone or has no medium.
fn read(at: &Path, name: String) -> Option<Disk> {
    let text = |file: &str| {
        fs::read_to_string(at.join(file))
            .ok()
            .map(|t| t.trim().to_owned())
    };
    let number = |file: &str| text(file)?.parse::<u64>().ok();
    // `size` counts 512-byte sectors whatever the disk's own block size.
    let size_bytes = number("size")?
        .checked_mul(512)
        .filter(|bytes| *bytes > 0)?;
    let serial = ["serial", "device/serial", "device/wwid", "wwid"]
        .iter()
        .find_map(|f| text(f))
        .unwrap_or_default();
    Some(Disk {
        name,
        serial,
        size_bytes,
        removable: number("removable") == Some(1) || on_usb(at),
        read_only: number("ro") == Some(1),
        block_bytes: number("queue/logical_block_size").unwrap_or(512),
    })
}

/// `/sys/block/<name>` is a link to the device, along its way through the buses.
fn on_usb(at: &Path) -> bool {
    let way = fs::read_link(at).unwrap_or_default();
    way.components()
        .any(|part| part.as_os_str().to_string_lossy().starts_with("usb"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fake_disk(sys: &Path, name: &str, files: &[(&str, &str)]) {
        let at = sys.join("block").join(name);
        fs::create_dir_all(at.join("queue")).expect("a directory");
        fs::create_dir_all(at.join("device")).expect("a directory");
        for (file, content) in files {
            fs::write(at.join(file), format!("{content}\n")).expect("a file");
        }
    }

    #[test]
    fn disks_are_listed_with_their_serials_and_nothing_else_is() {
        let sys = tempfile::tempdir().expect("a directory");
        fake_disk(
            sys.path(),
            "vda",
            &[
                ("size", "2048"),
                ("serial", "A1"),
                ("removable", "0"),
                ("ro", "0"),
            ],
        );
        fake_disk(
            sys.path(),
            "sdb",
            &[
                ("size", "4096"),
                ("device/wwid", "naa.5"),
                ("removable", "1"),
            ],
        );
        fake_disk(sys.path(), "loop0", &[("size", "8")]);
        fake_disk(sys.path(), "sdc", &[("size", "0")]);
        let disks = inventory(sys.path()).expect("an inventory");
        let summary: Vec<_> = disks
            .iter()
            .map(|d| (d.name.as_str(), d.serial.as_str(), d.removable))
            .collect();
        assert_eq!(summary, [("sdb", "naa.5", true), ("vda", "A1", false)]);
        assert_eq!(disks[1].size_bytes, 1 << 20);
    }

    #[test]
    fn a_disk_on_usb_counts_as_removable() {
        let sys = tempfile::tempdir().expect("a directory");
        let way = sys
            .path()
            .join("devices/pci0000:00/usb1/1-1/host6/block/sda");
        fs::create_dir_all(&way).expect("a directory");
        fs::write(way.join("size"), "2048\n").expect("a file");
        fs::create_dir_all(sys.path().join("block")).expect("a directory");
        std::os::unix::fs::symlink(&way, sys.path().join("block/sda")).expect("a link");
        let disks = inventory(sys.path()).expect("an inventory");
        assert!(disks[0].removable);
    }

    #[test]
    fn partitions_are_named_as_the_kernel_names_them() {
        let disk = |name: &str| Disk {
            name: name.to_owned(),
            serial: String::new(),
            size_bytes: 0,
            removable: false,
            read_only: false,
            block_bytes: 512,
        };
        assert_eq!(disk("vda").partition_device(1), Path::new("/dev/vda1"));
        assert_eq!(
            disk("nvme0n1").partition_device(1),
            Path::new("/dev/nvme0n1p1")
        );
        assert!(disk("vda").has_partition(Path::new("/dev/vda12")));
        assert!(disk("nvme0n1").has_partition(Path::new("/dev/nvme0n1p1")));
        assert!(!disk("vda").has_partition(Path::new("/dev/vdb1")));
        assert!(!disk("nvme0n1").has_partition(Path::new("/dev/nvme0n11")));
    }
}
