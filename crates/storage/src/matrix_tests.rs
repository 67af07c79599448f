//! Disks of others, each made by its own tool, and what becomes of them on a node: a name, and nothing else.
//!
//! What needs a kernel that this machine may not have (Linux RAID, ZFS) or a cluster (Ceph) has its mark written by its
//! specification, and the test's name says so.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use types::PublicKey;

use crate::crypt::Without;
use crate::disk::Disk;
use crate::mirrors::Layout;
use crate::plan::{Choice, choose};
use crate::pool;
use crate::pools::{self, Places};
use crate::probe::{Content, probe};

const OWNER: PublicKey = PublicKey([7; 32]);
const SIZE: u64 = 400 << 20;

struct Image {
    directory: tempfile::TempDir,
    file: PathBuf,
}

impl Image {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("disk");
        let disk = File::create(&file).expect("a file");
        disk.set_len(SIZE).expect("a size");
        Self { directory, file }
    }

    fn set_len(&self, bytes: u64) {
        let file = File::options().write(true).open(&self.file);
        file.expect("open").set_len(bytes).expect("a size");
    }

    /// Runs a tool; `@` in its arguments is the image.
    fn run(&self, command: &[&str]) -> Output {
        self.run_on(command, &self.file)
    }

    fn run_on(&self, command: &[&str], disk: &Path) -> Output {
        let disk = disk.to_str().expect("a path in ASCII");
        let arguments = command[1..].iter().map(|word| word.replace('@', disk));
        let output = Command::new(command[0])
            .args(arguments)
            .current_dir(self.directory.path())
            .env("DM_DISABLE_UDEV", "1")
            .output();
        let output = output.unwrap_or_else(|e| panic!("{}: {e}: run 'make setup'", command[0]));
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{command:?}: {said}");
        output
    }

    /// The same on a block device over the image.
    fn run_on_loop(&self, command: &[&str]) {
        let device = self.run(&["/sbin/losetup", "--find", "--show", "@"]).stdout;
        let device = String::from_utf8(device).expect("a path");
        let device = Path::new(device.trim());
        let done = std::panic::catch_unwind(|| self.run_on(command, device));
        self.run_on(&["/sbin/losetup", "--detach", "@"], device);
        done.map(drop).expect("the tool");
    }

    fn write(&self, pieces: &[(u64, &[u8])]) {
        let file = File::options().write(true).open(&self.file).expect("open");
        for (at, bytes) in pieces {
            file.write_all_at(bytes, *at).expect("written");
        }
    }

    fn content(&self) -> Content {
        let file = File::open(&self.file).expect("open");
        probe(&file, SIZE, 512).expect("a probe")
    }

    /// Says what is on it. A node that has only this disk was there in between, and left it as it was.
    fn left_alone(&self) -> String {
        let before = hash(&self.file);
        let content = self.content();
        let disk = Disk {
            size_bytes: SIZE,
            // Below `/dev`: whoever opened it for writing would write into the image.
            ..crate::disk::any(&format!("..{}", self.file.display()), "S")
        };
        assert_eq!(disk.device().canonicalize().expect("a path"), self.file);
        let words = content.describe(Some(&OWNER));
        let found = [(disk, content)];
        let choice = choose(&found, Some(&OWNER));
        let Choice::Memory { why } = &choice else {
            panic!("{words} was taken: {choice:?}");
        };
        assert!(
            why.contains(&words) && why.contains("sifr disk claim"),
            "{why}"
        );
        // It fails where nobody may mount; a pool in memory is the most that it may come to.
        let mountpoint = tempfile::tempdir().expect("a directory");
        let places = Places {
            first: mountpoint.path(),
            beside: mountpoint.path(),
        };
        let opened = pools::open(
            &found,
            Some(&OWNER),
            (&Without, Layout::Single),
            places,
            &|_, _| panic!("a pool was found"),
        );
        if let Ok(pools) = opened {
            assert!(!pools.first.durable);
            sys::mount::unmount(mountpoint.path()).expect("unmounted");
        }
        assert_eq!(hash(&self.file), before, "{words} was written to");
        words
    }
}

fn hash(path: &Path) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new();
    let mut file = File::open(path).expect("open");
    std::io::copy(&mut file, &mut hasher).expect("read");
    hasher.finalize()
}

fn made_by(command: &[&str]) -> String {
    let image = Image::new();
    image.run(command);
    image.left_alone()
}

#[test]
fn file_systems_of_their_own_tools_are_named_and_left_alone() {
    let cases: [(&[&str], &str); 13] = [
        (&["/sbin/mke2fs", "-qFt", "ext2", "@"], "ext2 file system"),
        (&["/sbin/mke2fs", "-qFt", "ext3", "@"], "ext3 file system"),
        (
            &["/sbin/mke2fs", "-qFt", "ext4", "-L", "photos", "@"],
            "ext4 file system \"photos\"",
        ),
        (
            &["/sbin/mke2fs", "-qFO", "journal_dev", "@"],
            "ext journal device",
        ),
        (
            &["/sbin/mkfs.xfs", "-qfL", "vm", "@"],
            "XFS file system \"vm\"",
        ),
        (
            &["/sbin/mkfs.btrfs", "-qL", "home", "@"],
            "btrfs file system \"home\"",
        ),
        (&["/sbin/mkfs.f2fs", "-q", "@"], "F2FS file system"),
        (
            &["/sbin/mkfs.vfat", "-F32", "-nUSB", "@"],
            "FAT file system \"USB\"",
        ),
        (&["/sbin/mkfs.vfat", "-F16", "@"], "FAT file system"),
        (&["/sbin/mkfs.exfat", "@"], "exFAT file system"),
        (&["/sbin/mkfs.ntfs", "-QFq", "@"], "NTFS file system"),
        (&["/sbin/mkswap", "-qL", "sw", "@"], "swap space \"sw\""),
        (&["/sbin/mkfs.minix", "@"], "unknown data"),
    ];
    for (command, expected) in cases {
        assert_eq!(made_by(command), expected, "{command:?}");
    }
}

#[test]
fn images_of_their_own_tools_are_named_and_left_alone() {
    let cases: [(&[&str], &str); 3] = [
        (
            &[
                "mksquashfs",
                "tree",
                "@",
                "-noappend",
                "-quiet",
                "-no-progress",
            ],
            "squashfs",
        ),
        (&["mkfs.erofs", "--quiet", "@", "tree"], "EROFS file system"),
        (
            &["genisoimage", "-quiet", "-V", "DEBIAN", "-o", "@", "tree"],
            "ISO 9660 image \"DEBIAN\"",
        ),
    ];
    for (command, expected) in cases {
        let image = Image::new();
        let tree = image.directory.path().join("tree");
        fs::create_dir(&tree).expect("a directory");
        fs::write(tree.join("file"), "content").expect("a file");
        image.run(command);
        // Written to a disk that is larger, as installers are.
        image.set_len(SIZE);
        assert_eq!(image.left_alone(), expected, "{command:?}");
    }
}

/// As little work as the tool allows.
fn encrypted(kind: &str) -> String {
    let image = Image::new();
    fs::write(image.directory.path().join("key"), "secret").expect("a key");
    let mut command = vec![
        "/sbin/cryptsetup",
        "--batch-mode",
        "luksFormat",
        "--type",
        kind,
    ];
    match kind {
        "luks2" => command.extend(["--pbkdf-force-iterations", "4", "--pbkdf-memory", "32"]),
        _ => command.extend(["--pbkdf-force-iterations", "1000"]),
    }
    command.extend(["@", "key"]);
    image.run(&command);
    image.left_alone()
}

#[test]
fn members_and_containers_of_their_own_tools_are_named_and_left_alone() {
    assert_eq!(encrypted("luks1"), "LUKS1 encrypted");
    assert_eq!(encrypted("luks2"), "LUKS2 encrypted");
    let data = made_by(&["/sbin/make-bcache", "-B", "@"]);
    assert_eq!(data, "bcache backing device");
    let cache = made_by(&["/sbin/make-bcache", "-C", "@"]);
    assert_eq!(cache, "bcache cache device");
    let on_loop: [(&[&str], &str); 2] = [
        (
            &[
                "/sbin/pvcreate",
                "-qq",
                "-y",
                "--devicesfile",
                "",
                "--nolocking",
                "@",
            ],
            "LVM2 physical volume",
        ),
        (
            &[
                "/sbin/drbdmeta",
                "--force",
                "0",
                "v08",
                "@",
                "internal",
                "create-md",
            ],
            "DRBD member",
        ),
    ];
    for (command, expected) in on_loop {
        let image = Image::new();
        image.run_on_loop(command);
        assert_eq!(image.left_alone(), expected);
    }
}

/// Puts file systems into partitions that begin at these MiB.
fn fill(image: &Image, places: [(u64, &str); 2]) {
    for (start_mib, mkfs) in places {
        let small = Image::new();
        small.set_len(40 << 20);
        small.run(&[mkfs, "@"]);
        let bytes = fs::read(&small.file).expect("read");
        image.write(&[(start_mib << 20, &bytes)]);
    }
}

#[test]
fn a_gpt_of_its_own_tool_is_named_with_what_is_in_its_partitions_and_left_alone() {
    let image = Image::new();
    image.run(&[
        "/sbin/sgdisk",
        "-n1:1M:+60M",
        "-c1:EFI",
        "-n2:100M:+60M",
        "-n3:200M:+60M",
        "@",
    ]);
    fill(&image, [(1, "/sbin/mkfs.vfat"), (200, "/sbin/mke2fs")]);
    assert_eq!(
        image.left_alone(),
        "GPT partition table: 1 FAT file system, 2 nothing known, 3 ext2 file system"
    );
    let Content::Foreign(found) = image.content() else {
        panic!("it is foreign");
    };
    let first = &found.partitions[0];
    let place = (first.start, first.bytes, first.name.as_str());
    assert_eq!(place, (1 << 20, 60 << 20, "EFI"));
    // What a tool leaves that wipes the beginning alone.
    image.write(&[(0, &vec![0; 1 << 20])]);
    let text = image.left_alone();
    assert!(text.contains("only the copy at the end"), "{text}");
}

#[test]
fn an_mbr_of_its_own_tool_is_named_with_what_is_in_its_partitions_and_left_alone() {
    let image = Image::new();
    let script = "start=1M,size=60M\nstart=100M,size=250M,type=5\nstart=360M\nstart=101M,size=20M\nstart=200M,size=60M\n";
    fs::write(image.directory.path().join("script"), script).expect("a script");
    image.run(&["sh", "-c", "/sbin/sfdisk -q --label dos @ <script"]);
    fill(&image, [(1, "/sbin/mke2fs"), (200, "/sbin/mkfs.vfat")]);
    assert_eq!(
        image.left_alone(),
        "MBR partition table: 1 ext2 file system, 3 nothing known, 5 nothing known, 6 FAT file system"
    );
}

#[test]
fn a_pool_of_another_owner_is_named_with_its_key_and_left_alone() {
    let image = Image::new();
    let other = PublicKey([0xab; 32]);
    let file = File::options().read(true).write(true).open(&image.file);
    pool::write_pool_table(&file.expect("open"), SIZE, &other);
    let expected = format!("pool of another owner, ed25519:{}…", "ab".repeat(12));
    assert_eq!(image.left_alone(), expected);
}

/// `mdadm --create` asks the kernel's RAID driver, `zpool create` that of ZFS, `ceph-osd --mkfs` a cluster's packages:
/// their marks are written as linux/raid/md_p.h, the ZFS On-Disk Specification and Ceph's bluestore_types.cc have them.
#[test]
fn linux_raid_zfs_ceph_and_firmware_raid_written_by_their_specifications_are_named_and_left_alone()
{
    let raid: &[u8] = b"\xfc\x4e\x2b\xa9\x01\0\0\0";
    let end = |before: u64| SIZE - before;
    let cases: [(u64, &[u8], &str); 14] = [
        (0, raid, "Linux RAID member (metadata 1.1)"),
        (4096, raid, "Linux RAID member (metadata 1.2)"),
        (end(8192), raid, "Linux RAID member (metadata 1.0)"),
        (
            end(64 << 10),
            b"\xfc\x4e\x2b\xa9\0\0\0\0",
            "Linux RAID member (metadata 0.90)",
        ),
        (128 << 10, b"\x0c\xb1\xba\0\0\0\0\0", "ZFS member"),
        (end(128 << 10), b"\0\0\0\0\0\xba\xb1\x0c", "ZFS member"),
        (0, b"bluestore block device\n9e1f", "Ceph BlueStore"),
        (1 << 20, b"\x0d\xd0\x01\xc0", "VMware VMFS volume"),
        (3, b"-FVE-FS-", "BitLocker encrypted"),
        (end(512), b"\xde\x11\xde\x11", "DDF RAID member"),
        (
            end(1024),
            b"Intel Raid ISM Cfg Sig. 1.3.00",
            "Intel Matrix RAID member",
        ),
        (end(512), b"$XIDE$", "LSI MegaRAID member"),
        (end(1024), b"NVIDIA  ", "NVIDIA RAID member"),
        (
            4120,
            b"\xc6\x85\x73\xf6\x66\xce\x90\xa9\xd9\x6a\x60\xcf\x80\x3d\xf7\xef",
            "bcachefs file system",
        ),
    ];
    for (at, magic, expected) in cases {
        let image = Image::new();
        image.write(&[(at, magic)]);
        assert_eq!(image.left_alone(), expected);
    }
}
