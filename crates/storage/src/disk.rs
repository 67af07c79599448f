//! The inventory of disks, from sysfs (Documentation/ABI/stable/sysfs-block).
//!
//! Owns: names, serials, sizes, where a disk's partitions are, and what tells that others may use it too.
//! Refuses: opening a disk; that is for [`crate::probe`] and [`crate::pool`].
//!
//! A disk is known to be shared where two devices have one identity (two ways to one disk) and where it is
//! behind a network (Fibre Channel, iSCSI, NVMe over fabrics). Not known: a disk in a SAS enclosure or an NVMe
//! namespace that a second machine is cabled to, as long as this machine has one way to it. The kernel shows
//! neither reservations nor NVMe's `nmic` in sysfs.

use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use types::node::DiskClass;

use crate::recognise::printable;

/// Disks looked at: more than any server has, and a bound on a hostile bus.
pub const DISKS_MAX: usize = 256;
/// Longest page of a SCSI disk's product data that is read: one byte counts what follows its header in most.
const VPD_BYTES_MAX: u64 = 4 + 255;
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
    /// The same.
    pub model: String,
    /// As the disk reports whether it rotates, and by what it is spoken to.
    pub class: DiskClass,
    pub size_bytes: u64,
    /// A removable medium, or a disk on USB: it may be carried away, and it appears seconds after the
    /// others, when the choice has been made.
    pub removable: bool,
    pub read_only: bool,
    /// Size of a logical block in bytes: 512 or 4096.
    pub block_bytes: u64,
    pub sharing: Sharing,
}

/// Whether others may write to a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sharing {
    /// Nothing says so.
    None,
    /// The disk of this name says that it is the same one.
    Twice(String),
    /// It is behind a network.
    Network,
}

impl Disk {
    /// Why it is not taken although it may be blank. For people.
    pub fn objection(&self) -> Option<String> {
        match &self.sharing {
            _ if self.removable => Some("removable".to_owned()),
            _ if self.read_only => Some("read-only".to_owned()),
            Sharing::None => None,
            Sharing::Twice(other) => Some(format!("the same disk as {other}")),
            Sharing::Network => Some("behind a network, others may use it".to_owned()),
        }
    }

    /// Whether a cut of the power may leave so many bytes half written.
    pub(crate) fn tears(&self, bytes: usize) -> bool {
        usize::try_from(self.physical_bytes()).is_ok_and(|whole| whole < bytes)
    }

    /// Bytes that the disk writes in one: at least a block. It is asked for where a new pool is encrypted, or one is damaged.
    pub(crate) fn physical_bytes(&self) -> u32 {
        let file = Path::new("/sys/block")
            .join(&self.name)
            .join("queue/physical_block_size");
        let said = fs::read_to_string(file).ok();
        let said = said.and_then(|text| text.trim().parse().ok());
        said.unwrap_or(512)
    }

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

/// Where a disk is plugged in, as the kernel's path of its device: what tells one from others that says no serial, for
/// as long as it stays there.
pub fn position(sys: &Path, name: &str) -> Option<String> {
    // `../devices/pci0000:00/0000:00:03.0/virtio1/block/vda`
    let link = fs::read_link(sys.join("block").join(name)).ok()?;
    let device = link.parent()?.parent()?;
    device.to_str().map(str::to_owned)
}

/// All disks below `sys` (normally `/sys`), by name.
pub fn inventory(sys: &Path) -> Result<Vec<Disk>, InventoryError> {
    let directory = sys.join("block");
    let error = |source| InventoryError {
        directory: directory.clone(),
        source,
    };
    let mut found = Vec::new();
    for entry in fs::read_dir(&directory).map_err(error)?.take(DISKS_MAX) {
        let entry = entry.map_err(error)?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if NOT_DISKS.iter().any(|prefix| name.starts_with(prefix)) {
            continue;
        }
        found.extend(read(&entry.path(), name));
    }
    found.sort_by(|(a, _), (b, _)| a.name.cmp(&b.name));
    Ok(note_twins(found))
}

/// A disk with what it says it is: what two ways to one disk have in common, and no two disks.
type Identified = (Disk, Option<String>);

fn note_twins(found: Vec<Identified>) -> Vec<Disk> {
    let twin = |(disk, identity): &Identified| {
        let same = |(other, theirs): &&Identified| other.name != disk.name && theirs == identity;
        identity.as_ref().and_then(|_| found.iter().find(same))
    };
    let twins: Vec<_> = found
        .iter()
        .map(|f| twin(f).map(|(t, _)| t.name.clone()))
        .collect();
    let noted = |((disk, _), twin): (Identified, Option<String>)| Disk {
        sharing: twin.map_or(disk.sharing, Sharing::Twice),
        ..disk
    };
    found.into_iter().zip(twins).map(noted).collect()
}

/// `None` where the disk has gone or has no medium.
fn read(at: &Path, name: String) -> Option<Identified> {
    let text = |file: &str| {
        let text = fs::read_to_string(at.join(file)).ok()?;
        Some(text.trim().to_owned()).filter(|text| !text.is_empty())
    };
    let number = |file: &str| text(file)?.parse::<u64>().ok();
    // `size` counts 512-byte sectors whatever the disk's own block size.
    let size_bytes = number("size")?
        .checked_mul(512)
        .filter(|bytes| *bytes > 0)?;
    let serial = ["serial", "device/serial", "device/wwid", "wwid"]
        .iter()
        .find_map(|f| text(f))
        .or_else(|| unit_serial(&at.join("device/vpd_pg80")))
        .unwrap_or_default();
    // Namespaces of one NVMe controller have one serial, and each a `wwid` of its own.
    let identity = ["wwid", "device/wwid"].iter().find_map(|f| text(f));
    let identity = identity.or_else(|| Some(serial.clone()).filter(|serial| !serial.is_empty()));
    let fabric = text("device/transport").is_some_and(|transport| transport != "pcie");
    let sharing = if fabric || passes(at, &["rport-", "session"]) {
        Sharing::Network
    } else {
        Sharing::None
    };
    let disk = Disk {
        serial,
        model: printable(&text("device/model").unwrap_or_default()),
        class: class(&name, number("queue/rotational")),
        name,
        size_bytes,
        removable: number("removable") == Some(1) || passes(at, &["usb"]),
        read_only: number("ro") == Some(1),
        block_bytes: number("queue/logical_block_size").unwrap_or(512),
        sharing,
    };
    Some((disk, identity))
}

/// What a SCSI disk says in its page 0x80 (SPC-4 7.8.15), where it says nothing else: four bytes before it, the last two its length.
fn unit_serial(page: &Path) -> Option<String> {
    let mut bytes = Vec::new();
    let file = fs::File::open(page).ok()?;
    file.take(VPD_BYTES_MAX).read_to_end(&mut bytes).ok()?;
    unit_serial_of(&bytes)
}

fn unit_serial_of(page: &[u8]) -> Option<String> {
    let (&[_, 0x80, high, low], rest) = page.split_first_chunk()? else {
        return None;
    };
    let length = usize::from(u16::from_be_bytes([high, low]));
    let text = rest.get(..length.min(rest.len()))?;
    let text = printable(&String::from_utf8_lossy(text));
    Some(text.trim().to_owned()).filter(|text| !text.is_empty())
}

/// As the disk says: whether it rotates, and by what it is spoken to.
fn class(name: &str, rotational: Option<u64>) -> DiskClass {
    match rotational {
        Some(1) => DiskClass::Hdd,
        Some(_) | None if name.starts_with("nvme") => DiskClass::Nvme,
        Some(_) | None => DiskClass::Ssd,
    }
}

/// `/sys/block/<name>` is a link to the device, along its way through the buses: `usb1`; `rport-0:0-1` of
/// Fibre Channel; `session1` of iSCSI.
pub(crate) fn passes(at: &Path, stations: &[&str]) -> bool {
    let way = fs::read_link(at).unwrap_or_default();
    way.components().any(|part| {
        let part = part.as_os_str().to_string_lossy();
        stations.iter().any(|station| part.starts_with(station))
    })
}

/// A disk of 1 GiB, for tests.
#[cfg(any(test, feature = "fuzz"))]
pub(crate) fn any(name: &str, serial: &str) -> Disk {
    Disk {
        name: name.to_owned(),
        serial: serial.to_owned(),
        model: String::new(),
        class: DiskClass::Ssd,
        size_bytes: 1 << 30,
        removable: false,
        read_only: false,
        block_bytes: 512,
        sharing: Sharing::None,
    }
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
    fn a_class_is_what_a_disk_says_of_itself() {
        let sys = tempfile::tempdir().expect("a directory");
        for (name, rotates) in [("nvme0n1", "0"), ("sda", "0"), ("sdb", "1"), ("sdc", "?")] {
            fake_disk(
                sys.path(),
                name,
                &[("size", "8"), ("queue/rotational", rotates)],
            );
        }
        let disks = inventory(sys.path()).expect("an inventory");
        let classes: Vec<_> = disks.iter().map(|disk| disk.class).collect();
        use DiskClass::{Hdd, Nvme, Ssd};
        assert_eq!(classes, [Nvme, Ssd, Hdd, Ssd]);
    }

    /// A disk at the end of this way through the buses.
    fn disk_behind(way: &str) -> Disk {
        let sys = tempfile::tempdir().expect("a directory");
        let way = sys.path().join("devices").join(way).join("block/sda");
        fs::create_dir_all(&way).expect("a directory");
        fs::write(way.join("size"), "2048\n").expect("a file");
        fs::create_dir_all(sys.path().join("block")).expect("a directory");
        std::os::unix::fs::symlink(&way, sys.path().join("block/sda")).expect("a link");
        inventory(sys.path()).expect("an inventory").remove(0)
    }

    #[test]
    fn a_disk_without_a_serial_is_known_by_where_it_is_plugged_in() {
        let sys = tempfile::tempdir().expect("a directory");
        fs::create_dir_all(sys.path().join("block")).expect("a directory");
        for (name, way) in [("sda", "ata1/host0"), ("sdb", "ata2/host1")] {
            let way = format!("../devices/{way}/block/{name}");
            std::os::unix::fs::symlink(way, sys.path().join("block").join(name)).expect("a link");
        }
        let at = |name| position(sys.path(), name);
        assert_eq!(at("sda").as_deref(), Some("../devices/ata1/host0"));
        assert_eq!(at("sdb").as_deref(), Some("../devices/ata2/host1"));
        assert_eq!(at("sdc"), None);
    }

    #[test]
    fn a_disk_on_usb_counts_as_removable() {
        assert!(disk_behind("pci0000:00/usb1/1-1/host6").removable);
        assert!(!disk_behind("pci0000:00/ata1/host0").removable);
    }

    #[test]
    fn a_disk_behind_a_network_counts_as_shared() {
        for way in [
            "pci0000:00/host3/rport-3:0-1/target3:0:0",
            "platform/host5/session1/target5:0:0",
        ] {
            assert_eq!(disk_behind(way).sharing, Sharing::Network, "{way}");
        }
        assert_eq!(disk_behind("pci0000:00/ata1/host0").sharing, Sharing::None);
        let sys = tempfile::tempdir().expect("a directory");
        for (name, transport) in [("nvme0n1", "pcie"), ("nvme1n1", "tcp")] {
            fake_disk(
                sys.path(),
                name,
                &[("size", "8"), ("device/transport", transport)],
            );
        }
        let disks = inventory(sys.path()).expect("an inventory");
        assert_eq!(disks[0].sharing, Sharing::None);
        assert_eq!(disks[1].sharing, Sharing::Network);
    }

    #[test]
    fn two_ways_to_one_disk_are_seen_and_two_namespaces_of_one_controller_are_two() {
        let sys = tempfile::tempdir().expect("a directory");
        let add = |name: &str, serial: (&str, &str), wwid: (&str, &str)| {
            fake_disk(sys.path(), name, &[("size", "8"), serial, wwid]);
        };
        let none = ("ro", "0");
        add("sda", none, ("device/wwid", "naa.5000"));
        add("sdb", none, ("device/wwid", "naa.5000"));
        add("nvme0n1", ("device/serial", "S1"), ("wwid", "eui.1"));
        add("nvme0n2", ("device/serial", "S1"), ("wwid", "eui.2"));
        add("vda", ("serial", "same"), none);
        add("vdb", ("serial", "same"), none);
        add("vdc", ("serial", ""), none);
        add("vdd", ("serial", ""), none);
        let disks = inventory(sys.path()).expect("an inventory");
        let twins = |disk: &Disk| match &disk.sharing {
            Sharing::Twice(other) => Some(format!("{}={other}", disk.name)),
            Sharing::None | Sharing::Network => None,
        };
        let twins: Vec<_> = disks.iter().filter_map(twins).collect();
        assert_eq!(twins, ["sda=sdb", "sdb=sda", "vda=vdb", "vdb=vda"]);
    }

    #[test]
    fn a_scsi_disk_that_has_a_unit_serial_alone_is_known_by_it() {
        let sys = tempfile::tempdir().expect("a directory");
        fake_disk(sys.path(), "sda", &[("size", "8")]);
        let page = sys.path().join("block/sda/device/vpd_pg80");
        fs::write(&page, b"\0\x80\0\x08  ZC1A\x1b ").expect("a page");
        let serial = || {
            inventory(sys.path())
                .expect("an inventory")
                .remove(0)
                .serial
        };
        assert_eq!(serial().replace(|c: char| !c.is_alphanumeric(), ""), "ZC1A");
        for wrong in [
            &b""[..],
            b"\0\x80\0",
            b"\0\x83\0\x04ZC1A",
            b"\0\x80\xff\xff",
            b"\0\x80\0\x02  ",
        ] {
            fs::write(&page, wrong).expect("a page");
            assert_eq!(serial(), "", "{wrong:?}");
        }
        fake_disk(sys.path(), "sda", &[("device/wwid", "naa.5000")]);
        assert_eq!(serial(), "naa.5000", "pools are known by it since before");
    }

    #[test]
    fn partitions_are_named_as_the_kernel_names_them() {
        let disk = |name: &str| Disk {
            size_bytes: 0,
            ..any(name, "")
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
