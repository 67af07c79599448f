//! The benchmark's own initramfs: the shipped one, byte for byte, and a second archive behind it.
//!
//! Owns: what that archive holds: the measuring program, a guest for it, and Debian's QEMU with all it
//! needs to run.
//! Refuses: replacing any file of the shipped image, but for the monitor where another is asked for.

use std::path::{Path, PathBuf};

use anyhow::Result;
use image::assemble::Image;
use image::paths::Paths;
use types::cpio::Archive;

use super::Peers;
use super::report::{GUEST, KERNEL, PEERS, PROC, PROGRAM, QEMU, VMM};
use crate::archive::{self, behind, file_in, libraries, read, unpack, unpacked};

/// Where QEMU looks for firmware, and what its microvm needs of it.
const FIRMWARE: &str = "/usr/share/qemu/qboot.rom";
const PROGRAM_NAME: &str = "bench-node";

/// Builds the measuring program, static.
pub(super) fn program(paths: &Paths) -> Result<Vec<u8>> {
    archive::program(paths, PROGRAM_NAME)
}

/// The shipped initramfs and the program: as little more as possible.
pub(super) fn small(image: &Image, program: &[u8]) -> Result<Vec<u8>> {
    let mut archive = Archive::default();
    archive.file(PROGRAM, 0o755, program)?;
    archive.directory(PROC, 0o755)?;
    behind(image, &archive)
}

/// The same, and everything for virtual machines.
pub(super) fn large(image: &Image, program: &[u8], peers: &Peers) -> Result<Vec<u8>> {
    let kernel = unpack(&file_in(&unpacked(image)?, "/vmlinux.zst")?)?;
    let mut archive = Archive::default();
    archive.file(PROGRAM, 0o755, program)?;
    archive.directory(PROC, 0o755)?;
    archive.file(KERNEL, 0o644, kernel)?;
    archive.file(GUEST, 0o644, archive::guest(program)?)?;
    let mut files = libraries(Path::new(QEMU))?;
    files.extend([PathBuf::from(QEMU), PathBuf::from(FIRMWARE)]);
    if let Some(path) = peers.ours() {
        archive.directory("/bin", 0o755)?;
        archive.file(VMM, 0o755, read(path)?)?;
    }
    archive.directory(PEERS, 0o755)?;
    for (name, path) in peers.iter() {
        archive.file(&format!("{PEERS}/{name}"), 0o755, read(path)?)?;
        // Of a static program there are none to tell.
        files.extend(libraries(path).unwrap_or_default());
    }
    archive::at_their_places(&mut archive, &files)?;
    behind(image, &archive)
}
