//! Initramfs archives of tests and benchmarks, and booting one in place of the shipped.
//!
//! Owns: building our programs for the inside, static; the archive of a guest of theirs; what the dynamic
//! loader would map of a foreign program.
//! Refuses: replacing any file of the shipped image.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use image::assemble::Image;
use image::paths::Paths;
use image::programs;
use image::qemu::{Boot, Machine};
use types::cpio::{self, Archive, Node};

const RUST_TARGET: &str = "x86_64-unknown-linux-musl";
/// Largest unpacked image: far above what fits the size target.
const UNPACKED_BYTES_MAX: usize = 256 << 20;
/// /dev/console (kernel document `admin-guide/devices.txt`).
const CONSOLE: (u32, u32) = (5, 1);
/// /dev/null, which a Rust program opens where it has no console, or ends.
const NULL: (u32, u32) = (1, 3);

/// Builds the program `name` of this package, static.
pub(crate) fn program(paths: &Paths, name: &str) -> Result<Vec<u8>> {
    built(paths, "qemu-tests", name, RUST_TARGET)
}

/// Builds the program `name` of `package` for `target` as it would be shipped, and reads it.
pub(crate) fn built(paths: &Paths, package: &str, name: &str, target: &str) -> Result<Vec<u8>> {
    let status = programs::plain_cargo(paths)
        .args(["build", "--quiet", "--release", "--locked"])
        .args(["--package", package, "--bin", name, "--target", target])
        .status()
        .context("start cargo")?;
    ensure!(status.success(), "cargo could not build {name}");
    let directory =
        std::env::var_os("CARGO_TARGET_DIR").map_or(paths.root.join("target"), PathBuf::from);
    read(&directory.join(target).join("release").join(name))
}

/// The initramfs of a guest whose init is `program`.
pub(crate) fn guest(program: &[u8]) -> Result<Vec<u8>> {
    let mut guest = Archive::default();
    guest.directory("/dev", 0o755)?;
    guest.character_device("/dev/console", 0o600, CONSOLE)?;
    guest.character_device("/dev/null", 0o666, NULL)?;
    guest.file("/init", 0o755, program)?;
    Ok(guest.encode())
}

/// The shipped initramfs, unpacked.
pub(crate) fn unpacked(image: &Image) -> Result<Vec<u8>> {
    unpack(&read(&image.initramfs)?).context("unpack the initramfs")
}

/// What a file that ends like this holds, in an unpacked initramfs.
pub(crate) fn file_in(initramfs: &[u8], ending: &str) -> Result<Vec<u8>> {
    let tree = cpio::decode(initramfs).context("read the initramfs")?;
    let file = tree.entries().find_map(|(path, entry)| match &entry.node {
        Node::File(content) if path.ends_with(ending) => Some(content.to_vec()),
        Node::File(_) | Node::Directory | Node::CharacterDevice { .. } => None,
    });
    file.with_context(|| format!("the image has no {ending}"))
}

/// What was packed with zstd.
pub(crate) fn unpack(packed: &[u8]) -> Result<Vec<u8>> {
    zstd::bulk::decompress(packed, UNPACKED_BYTES_MAX).context("unpack")
}

/// `archive` behind the shipped initramfs. The kernel unpacks archives one behind the other; one that is
/// not compressed begins on a multiple of four.
pub(crate) fn behind(image: &Image, archive: &Archive<'_>) -> Result<Vec<u8>> {
    let mut bytes = read(&image.initramfs)?;
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes.extend(archive.encode());
    Ok(bytes)
}

/// Makes `machine` boot this initramfs, with `arguments` behind its own on the kernel command line. The
/// file goes with what is given back.
pub(crate) fn instead(
    machine: &mut Machine,
    bytes: &[u8],
    arguments: &str,
) -> Result<tempfile::TempPath> {
    let file = tempfile::NamedTempFile::new().context("make a file for an initramfs")?;
    fs::write(file.path(), bytes).context("write an initramfs")?;
    match &mut machine.boot {
        Boot::Kernel {
            initramfs,
            arguments: line,
            ..
        } => {
            *initramfs = file.path().to_owned();
            line.push(' ');
            line.push_str(arguments);
        }
        Boot::Network { .. } | Boot::Disk => bail!("the machine does not boot a kernel directly"),
    }
    Ok(file.into_temp_path())
}

/// Adds these files of this machine, with their directories.
pub(crate) fn at_their_places(archive: &mut Archive<'_>, files: &BTreeSet<PathBuf>) -> Result<()> {
    let directories = files.iter().flat_map(|file| file.ancestors().skip(1));
    let directories: BTreeSet<_> = directories.filter(|path| path.parent().is_some()).collect();
    for directory in directories {
        archive.directory(text(directory)?, 0o755)?;
    }
    for file in files {
        archive.file(text(file)?, 0o755, read(file)?)?;
    }
    Ok(())
}

/// What the dynamic loader would map, the loader included.
pub(crate) fn libraries(program: &Path) -> Result<BTreeSet<PathBuf>> {
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

pub(crate) fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("read {}", path.display()))
}

pub(crate) fn text(path: &Path) -> Result<&str> {
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

    #[test]
    fn a_file_is_found_in_an_archive_by_the_end_of_its_path() {
        let archive = guest(b"program").expect("plain paths");
        assert_eq!(file_in(&archive, "/init").expect("it is there"), b"program");
        assert!(file_in(&archive, "/vmlinux").is_err());
    }
}
