//! A disk image as clouds give them: partitions, a file system in each, compressed as qcow2; and a stick with options.
//!
//! Owns: making them with Debian's own tools. Refuses: being packed; that is what is tested.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::userland::tree;

const MIB: u64 = 1 << 20;
const SECTOR: u64 = 512;
/// Type of an MBR partition that Linux uses.
const LINUX: u8 = 0x83;

/// How the disk is divided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Table {
    /// It is one file system.
    None,
    /// Two partitions: one that looks like `/boot`, and the root.
    Mbr,
    Gpt,
}

/// A busybox user land in the second partition of `<directory>/<name>.qcow2`; the first looks like `/boot`. `seed` is in
/// the bytes of its large file.
pub fn qcow2(directory: &Path, name: &str, seed: u32) -> Result<PathBuf> {
    let raw = raw(directory, name, seed, Table::Mbr)?;
    let image = raw.with_extension("qcow2");
    let convert = ["convert", "-c", "-f", "raw", "-O", "qcow2"];
    run(Command::new("qemu-img").args(convert).args([&raw, &image]))?;
    fs::remove_file(raw)?;
    Ok(image)
}

/// The same as `<directory>/<name>.raw`, divided in any way.
pub fn raw(directory: &Path, name: &str, seed: u32, table: Table) -> Result<PathBuf> {
    let inside = |suffix: &str| directory.join(format!("{name}{suffix}"));
    let (root, boot, raw) = (inside("-root"), inside("-boot"), inside(".raw"));
    tree(&root, seed)?;
    fs::write(root.join("ballast"), noise(seed)).context("write what nobody reads")?;
    fs::create_dir_all(boot.join("grub"))?;
    let disk = fs::File::create(&raw).context("make a disk")?;
    disk.set_len(65 * MIB)?;
    let partitions = [(MIB, 3 * MIB), (4 * MIB, 60 * MIB)];
    match table {
        Table::None => return ext4(&root, &raw, (0, 65 * MIB)).map(|()| raw),
        Table::Mbr => disk.write_all_at(&boot_sector(&partitions), 0)?,
        Table::Gpt => {
            let mut script = "label: gpt\n".to_owned();
            for (start, bytes) in partitions {
                let (start, size) = (start / SECTOR, bytes / SECTOR);
                script.push_str(&format!("start={start}, size={size}, type=linux\n"));
            }
            let text = inside(".sfdisk");
            fs::write(&text, script)?;
            let mut sfdisk = Command::new("/sbin/sfdisk");
            run(sfdisk.arg("--quiet").arg(&raw).stdin(fs::File::open(text)?))?;
        }
    }
    for (tree, place) in [&boot, &root].into_iter().zip(partitions) {
        ext4(tree, &raw, place)?;
    }
    Ok(raw)
}

fn ext4(tree: &Path, disk: &Path, (start, bytes): (u64, u64)) -> Result<()> {
    run(Command::new("/sbin/mke2fs")
        .args([
            "-q",
            "-F",
            "-t",
            "ext4",
            "-E",
            &format!("offset={start}"),
            "-d",
        ])
        .args([tree, disk])
        .arg(format!("{}k", bytes >> 10)))
}

/// A stick of 40 MiB with a partition of that name, and in it a file of options: as docs/site.md says, but into a file.
pub fn stick(file: &Path, name: &str, options: &str) -> Result<()> {
    let text = file.with_extension("options");
    fs::write(&text, options)?;
    fs::File::create(file)?.set_len(40 * MIB)?;
    let named = format!("--change-name=0:{name}");
    run(Command::new("/usr/sbin/sgdisk")
        .args(["--new=0:1M:+16M", &named])
        .arg(file))?;
    let sector = (MIB / SECTOR).to_string();
    run(Command::new("/sbin/mkfs.vfat")
        .args(["--offset", &sector])
        .arg(file)
        .arg("16384"))?;
    let inside = format!("{}@@{MIB}", file.display());
    run(Command::new("mcopy")
        .args(["-i", &inside])
        .arg(&text)
        .arg("::options"))
}

/// Makes the whole disk somebody else's file system.
pub fn foreign(disk: &Path) -> Result<()> {
    let mut mkfs = Command::new("/sbin/mke2fs");
    run(mkfs
        .args(["-q", "-F", "-t", "ext4", "-L", "another"])
        .arg(disk))
}

/// Copies the first partition of a disk with a GPT; where there are zeros the copy takes no room.
pub fn first_partition(disk: &Path, sector_bytes: u64, copy: &Path) -> Result<()> {
    let sector = gpt::disk::LogicalBlockSize::try_from(sector_bytes)?;
    let table = gpt::GptConfig::new().logical_block_size(sector);
    let table = table.writable(false).open(disk);
    let table = table.with_context(|| format!("read the table of {}", disk.display()))?;
    let partition = table.partitions().values().next().context("no partition")?;
    let (first, last) = (partition.first_lba, partition.last_lba);
    run(Command::new("dd")
        .args([
            "bs=1M",
            "iflag=skip_bytes,count_bytes",
            "conv=sparse",
            "status=none",
        ])
        .arg(format!("skip={}", first * sector_bytes))
        .arg(format!("count={}", (last + 1 - first) * sector_bytes))
        .arg(format!("if={}", disk.display()))
        .arg(format!("of={}", copy.display())))
}

/// Where there are zeros the copy takes no room.
pub fn copy(file: &Path, to: &Path) -> Result<()> {
    run(Command::new("cp").arg("--sparse=always").args([file, to]))
}

/// What lies beyond the first `bytes` of a file, in that file's place.
pub fn beyond(file: &Path, bytes: u64) -> Result<PathBuf> {
    let rest = file.with_extension("rest");
    run(Command::new("dd")
        .args(["bs=1M", "iflag=skip_bytes", "conv=sparse", "status=none"])
        .arg(format!("skip={bytes}"))
        .arg(format!("if={}", file.display()))
        .arg(format!("of={}", rest.display())))?;
    fs::remove_file(file)?;
    Ok(rest)
}

/// 16 MiB that do not compress.
fn noise(seed: u32) -> Vec<u8> {
    (0..4 << 20)
        .flat_map(|i: u32| (i ^ seed << 24).wrapping_mul(2_246_822_519).to_le_bytes())
        .collect()
}

/// With a table of primary partitions (start, length).
fn boot_sector(partitions: &[(u64, u64)]) -> [u8; 512] {
    let mut sector = [0; 512];
    for (n, (start, bytes)) in partitions.iter().enumerate() {
        let entry = &mut sector[446 + n * 16..][..16];
        let count = |bytes: u64| u32::try_from(bytes / SECTOR).expect("a small disk");
        entry[4] = LINUX;
        entry[8..12].copy_from_slice(&count(*start).to_le_bytes());
        entry[12..].copy_from_slice(&count(*bytes).to_le_bytes());
    }
    sector[510..].copy_from_slice(&[0x55, 0xaa]);
    sector
}

fn run(command: &mut Command) -> Result<()> {
    let output = command.output();
    let output = output.with_context(|| format!("start {command:?}: run 'make setup'"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?}: {said}");
    Ok(())
}
