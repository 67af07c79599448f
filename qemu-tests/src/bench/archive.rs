//! The benchmark's own initramfs: the shipped one, byte for byte, and a second archive behind it.
//!
//! Owns: what that archive holds: the measuring program, a guest for it, and Debian's QEMU with all it
//! needs to run.
//! Refuses: replacing any file of the shipped image.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use image::assemble::Image;
use image::paths::Paths;
use types::cpio::{self, Archive, Node};

use super::report::{GUEST, KERNEL, PROC, PROGRAM, QEMU};

/// Where QEMU looks for firmware, and what its microvm needs of it.
const FIRMWARE: &str = "/usr/share/qemu/qboot.rom";
const PROGRAM_NAME: &str = "bench-node";
const RUST_TARGET: &str = "x86_64-unknown-linux-musl";
/// Largest unpacked image: far above what fits the size target.
const UNPACKED_BYTES_MAX: usize = 256 << 20;
/// /dev/console (kernel document `admin-guide/devices.txt`).
const CONSOLE: (u32, u32) = (5, 1);
/// /dev/null, which a Rust program opens where it has no console, or ends.
const NULL: (u32, u32) = (1, 3);

/// Builds the measuring program, static.
pub(super) fn program(paths: &Paths) -> Result<Vec<u8>> {
    let status = Command::new(std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned()))
        .current_dir(&paths.root)
        .args([
            "build",
            "--quiet",
            "--release",
            "--locked",
            "--package",
            "qemu-tests",
        ])
        .args(["--bin", PROGRAM_NAME, "--target", RUST_TARGET])
        .status()
        .context("start cargo")?;
    ensure!(status.success(), "cargo could not build {PROGRAM_NAME}");
    let target =
        std::env::var_os("CARGO_TARGET_DIR").map_or(paths.root.join("target"), PathBuf::from);
    read(&target.join(RUST_TARGET).join("release").join(PROGRAM_NAME))
}

/// The shipped initramfs and the program: as little more as possible.
pub(super) fn small(image: &Image, program: &[u8]) -> Result<Vec<u8>> {
    let mut archive = Archive::default();
    archive.file(PROGRAM, 0o755, program)?;
    archive.directory(PROC, 0o755)?;
    behind(image, &archive)
}

/// The same, and everything for virtual machines.
pub(super) fn large(image: &Image, program: &[u8]) -> Result<Vec<u8>> {
    let shipped = read(&image.initramfs)?;
    let shipped =
        zstd::bulk::decompress(&shipped, UNPACKED_BYTES_MAX).context("unpack the initramfs")?;
    let tree = cpio::decode(&shipped).context("read the initramfs")?;
    let kernel = tree.entries().find_map(|(path, entry)| match &entry.node {
        Node::File(content) if path.ends_with("/vmlinux.zst") => Some(content),
        Node::File(_) | Node::Directory | Node::CharacterDevice { .. } => None,
    });
    let kernel = kernel.context("the image has no guest kernel")?;
    let kernel =
        zstd::bulk::decompress(kernel, UNPACKED_BYTES_MAX).context("unpack the guest kernel")?;

    let mut guest = Archive::default();
    guest.directory("/dev", 0o755)?;
    guest.character_device("/dev/console", 0o600, CONSOLE)?;
    guest.character_device("/dev/null", 0o666, NULL)?;
    guest.file("/init", 0o755, program)?;

    let mut archive = Archive::default();
    archive.file(PROGRAM, 0o755, program)?;
    archive.directory(PROC, 0o755)?;
    archive.file(KERNEL, 0o644, kernel)?;
    archive.file(GUEST, 0o644, guest.encode())?;
    let mut files = libraries(Path::new(QEMU))?;
    files.extend([PathBuf::from(QEMU), PathBuf::from(FIRMWARE)]);
    let mut directories = BTreeSet::new();
    for file in &files {
        directories.extend(
            file.ancestors()
                .skip(1)
                .filter(|path| path.parent().is_some()),
        );
    }
    for directory in directories {
        archive.directory(text(directory)?, 0o755)?;
    }
    for file in &files {
        archive.file(text(file)?, 0o755, read(file)?)?;
    }
    behind(image, &archive)
}

/// The kernel unpacks archives one behind the other; one that is not compressed begins on a multiple
/// of four.
fn behind(image: &Image, archive: &Archive<'_>) -> Result<Vec<u8>> {
    let mut bytes = read(&image.initramfs)?;
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes.extend(archive.encode());
    Ok(bytes)
}

/// What the dynamic loader would map, the loader included.
fn libraries(program: &Path) -> Result<BTreeSet<PathBuf>> {
    let output = Command::new("ldd")
        .arg(program)
        .output()
        .context("start ldd")?;
    ensure!(
        output.status.success(),
        "ldd {}: run 'make setup'",
        program.display()
    );
    Ok(paths_in(&String::from_utf8_lossy(&output.stdout)))
}

fn paths_in(ldd: &str) -> BTreeSet<PathBuf> {
    let words = ldd.split_whitespace().filter(|word| word.starts_with('/'));
    words.map(PathBuf::from).collect()
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("read {}", path.display()))
}

fn text(path: &Path) -> Result<&str> {
    path.to_str()
        .with_context(|| format!("{} is not UTF-8", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loader_and_the_libraries_are_found_and_the_kernels_is_not() {
        let ldd = "\tlinux-vdso.so.1 (0x1)\n\tlibz.so.1 => /lib/x/libz.so.1 (0x2)\n\t/lib64/ld.so (0x3)\n";
        let paths: Vec<_> = paths_in(ldd).into_iter().collect();
        assert_eq!(
            paths,
            [
                PathBuf::from("/lib/x/libz.so.1"),
                PathBuf::from("/lib64/ld.so")
            ]
        );
    }
}
