//! What the workshop machine needs.
//!
//! Owns: the list of Debian packages with the reason for each, and installing what is missing, the emulator last.
//! Refuses: installing what is there, and any system but Debian's package manager.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::paths::Paths;
use crate::progress::Progress;
use crate::{command, emulator};

/// Package and reason.
const PACKAGES: &[(&str, &str)] = &[
    ("bc", "the kernel's build computes constants with it"),
    ("bcache-tools", "tests make disks of others with it"),
    ("bison", "the kernel's configuration parser"),
    ("btrfs-progs", "tests make disks of others with it"),
    ("build-essential", "compiler, linker, make"),
    (
        "busybox-static",
        "the content of test container images; never in ours",
    ),
    ("ca-certificates", "package downloads"),
    ("cryptsetup-bin", "tests make disks of others with it"),
    ("curl", "tests speak to the API with it"),
    ("dosfstools", "tests make disks of others with it"),
    ("dpkg-dev", "unpacks Debian source packages"),
    ("drbd-utils", "tests make disks of others with it"),
    ("e2fsprogs", "tests check written ext4 file systems with it"),
    ("erofs-utils", "tests compare packed images with it"),
    ("exfatprogs", "tests make disks of others with it"),
    ("f2fs-tools", "tests make disks of others with it"),
    ("fdisk", "tests make disks of others with it"),
    ("flex", "the kernel's configuration parser"),
    ("gdisk", "tests make disks of others with it"),
    ("genisoimage", "tests make disks of others with it"),
    ("gettext", "xfsprogs' build"),
    ("git", "the commit in the build identity"),
    ("iproute2", "tests make network namespaces with it"),
    ("ipxe-qemu", "network boot ROMs for QEMU"),
    ("libblkid-dev", "xfsprogs: disk geometry"),
    ("libelf-dev", "the kernel's objtool"),
    ("libfdt-dev", "QEMU: device trees"),
    ("libglib2.0-dev", "QEMU: its base library"),
    ("libinih-dev", "xfsprogs: configuration files"),
    ("libpixman-1-dev", "QEMU: screens"),
    ("libslirp-dev", "QEMU: networks without rights"),
    ("libssl-dev", "the kernel's certificate tools"),
    ("liburcu-dev", "xfsprogs: concurrent lists"),
    ("linux-source-6.12", "source of both kernels"),
    ("lvm2", "tests make disks of others with it"),
    ("mdadm", "tests have it read the mirrors of nodes"),
    ("meson", "QEMU's build"),
    ("mmdebstrap", "the Debian user land of the demonstration"),
    ("mount", "tests mount packed images"),
    ("mtools", "tests put files of options into a FAT with it"),
    ("musl-tools", "C compiler for static programs"),
    ("nftables", "tests compare firewall rules with it"),
    ("ninja-build", "QEMU's build"),
    ("ntfs-3g", "tests make disks of others with it"),
    ("openssl", "tests sign images with it"),
    ("ovmf", "UEFI firmware for QEMU"),
    (
        "pebble",
        "the authority that nodes in tests order certificates from",
    ),
    (
        "qemu-system-x86",
        "boots the image; its firmware, where the emulator is built",
    ),
    ("qemu-utils", "tests make disk images with it, and compare"),
    ("skopeo", "puts test images into a registry"),
    ("squashfs-tools", "tests make disks of others with it"),
    (
        "swtpm",
        "the TPM of machines in tests, and of tests without machines",
    ),
    ("tcpdump", "tests read captures with it"),
    ("uidmap", "lets mmdebstrap work without root"),
    ("umoci", "makes test images as others make them"),
    ("uuid-dev", "xfsprogs: identifiers"),
    ("xfsprogs", "tests check pools with xfs_db"),
    ("xz-utils", "unpacks the kernel source"),
    ("zstd", "compresses the kernel"),
];

/// The target all programs in the image are built for.
pub(crate) const TARGET: &str = "x86_64-unknown-linux-musl";
/// The target of guest kernels that tests are made of.
pub const BARE_TARGET: &str = "x86_64-unknown-none";

/// Lines that dpkg prints about each package it installs, for the progress bar.
const LINES_A_PACKAGE: u64 = 4;
/// How long another apt may keep us waiting: fresh machines update themselves first.
const APT_LOCK_TIMEOUT: &str = "DPkg::Lock::Timeout=600";

/// How often apt is asked: once, and again for what it removed while it installed. More would be a circle.
const ROUNDS: usize = 2;

/// Installs what is missing. Says nothing and asks for no rights when nothing is.
pub fn setup(paths: &Paths) -> Result<()> {
    let wanted: Vec<_> = PACKAGES.iter().map(|(package, _)| *package).collect();
    install_all(&wanted)?;
    for target in [TARGET, BARE_TARGET] {
        if !rust_target_installed(target)? {
            eprintln!("adding the Rust target {target}");
            command::output(command::clean("rustup").args(["target", "add", target]))
                .with_context(|| format!("add the Rust target {target}: is rustup installed?"))?;
        }
    }
    emulator::prepare(paths);
    Ok(())
}

/// apt removes what contradicts a wish, such as one of QEMU's tools in a newer version than the rest: the next
/// round finds that missing.
fn install_all(wanted: &[&str]) -> Result<()> {
    for _ in 0..ROUNDS {
        let missing = missing(wanted, &installed()?);
        if missing.is_empty() {
            return Ok(());
        }
        install(&missing)?;
    }
    let missing = missing(wanted, &installed()?);
    ensure!(
        missing.is_empty(),
        "apt installed what was asked for, and {} is still missing: try apt-get install with all of these at once, \
         it names what contradicts what",
        missing.join(" ")
    );
    Ok(())
}

fn install(packages: &[&str]) -> Result<()> {
    eprintln!("installing {}", packages.join(" "));
    let what = ["--yes", "--no-install-recommends", "install"];
    let options = ["-qq", "-o", APT_LOCK_TIMEOUT];
    command::output(privileged("apt-get")?.args(options).arg("update"))
        .context("refresh the package lists")?;
    let mut plan = command::clean("apt-get");
    plan.arg("--simulate").args(what).args(packages);
    let plan = command::output(&mut plan).context(
        "find the missing packages: is the network up? Debian 13 has them all, Debian 12 with its \
         security archive",
    )?;
    let count = plan
        .lines()
        .filter(|line| line.starts_with("Inst "))
        .count();
    let lines = u64::try_from(count)?.saturating_mul(LINES_A_PACKAGE);
    let mut progress = Progress::new(&format!("install {count} packages"), lines);
    let mut install = privileged("apt-get")?;
    install.args(options).args(what).args(packages);
    command::lines(&mut install, |_| progress.step()).context("install the missing packages")?;
    progress.finish();
    Ok(())
}

fn installed() -> Result<String> {
    let format = "--showformat=${binary:Package} ${db:Status-Status}\n";
    command::output(command::clean("dpkg-query").args(["--show", format]))
        .context("list the installed packages: this needs Debian")
}

fn missing<'a>(wanted: &[&'a str], installed: &str) -> Vec<&'a str> {
    let there: Vec<_> = installed
        .lines()
        .filter_map(|line| line.strip_suffix(" installed"))
        // "libssl-dev:amd64" is libssl-dev.
        .map(|package| package.split(':').next().unwrap_or(package))
        .collect();
    wanted
        .iter()
        .copied()
        .filter(|package| !there.contains(package))
        .collect()
}

fn rust_target_installed(target: &str) -> Result<bool> {
    let mut rustc = command::clean("rustc");
    let library = command::output(rustc.args(["--print", "target-libdir", "--target", target]))?;
    Ok(fs::read_dir(library.trim()).is_ok_and(|mut entries| entries.next().is_some()))
}

/// A command as root that asks no questions: directly, or through sudo.
fn privileged(program: &str) -> Result<Command> {
    let uid = fs::metadata("/proc/self")
        .context("read our own user id")?
        .uid();
    // sudo passes no environment on, so that the variable is set behind it.
    let quiet = ["env", "DEBIAN_FRONTEND=noninteractive", program];
    if uid == 0 {
        let mut command = command::clean(quiet[0]);
        command.args(&quiet[1..]);
        return Ok(command);
    }
    let sudo = command::output(command::clean("sudo").arg("--version"));
    sudo.context("packages are missing: run 'make setup' as root once, or install sudo")?;
    let mut command = command::clean("sudo");
    command.args(quiet);
    Ok(command)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_missing_packages_are_installed() {
        let installed = "bc installed\nlibssl-dev:amd64 installed\nflex config-files\n";
        assert_eq!(
            missing(&["bc", "flex", "libssl-dev", "zstd"], installed),
            ["flex", "zstd"]
        );
    }

    #[test]
    fn the_list_is_sorted_and_gives_reasons() {
        assert!(PACKAGES.is_sorted() && PACKAGES.iter().all(|(_, reason)| !reason.is_empty()));
    }
}
