//! What the workshop machine needs.
//!
//! Owns: the list of Debian packages with the reason for each, and installing what is missing.
//! Refuses: installing what is there, and any system but Debian's package manager.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::process::Command;

use anyhow::{Context, Result};

use crate::command;

/// Package and reason.
const PACKAGES: &[(&str, &str)] = &[
    ("bc", "the kernel's build computes constants with it"),
    ("bison", "the kernel's configuration parser"),
    ("build-essential", "compiler, linker, make"),
    (
        "busybox-static",
        "the content of test container images; never in ours",
    ),
    ("ca-certificates", "package downloads"),
    ("dpkg-dev", "unpacks Debian source packages"),
    ("e2fsprogs", "tests check written ext4 file systems with it"),
    ("erofs-utils", "tests compare packed images with it"),
    ("flex", "the kernel's configuration parser"),
    ("gettext", "xfsprogs' build"),
    ("git", "the commit in the build identity"),
    ("ipxe-qemu", "network boot ROMs for QEMU"),
    ("libblkid-dev", "xfsprogs: disk geometry"),
    ("libelf-dev", "the kernel's objtool"),
    ("libinih-dev", "xfsprogs: configuration files"),
    ("libssl-dev", "the kernel's certificate tools"),
    ("liburcu-dev", "xfsprogs: concurrent lists"),
    ("linux-source-6.12", "source of both kernels"),
    ("mmdebstrap", "the Debian user land of the demonstration"),
    ("musl-tools", "C compiler for static programs"),
    ("nftables", "tests compare firewall rules with it"),
    ("ovmf", "UEFI firmware for QEMU"),
    ("qemu-system-x86", "boots the image"),
    ("uuid-dev", "xfsprogs: identifiers"),
    ("xfsprogs", "tests check pools with xfs_db"),
    ("xz-utils", "unpacks the kernel source"),
    ("zstd", "compresses the kernel"),
];

/// The target all programs in the image are built for.
pub(crate) const TARGET: &str = "x86_64-unknown-linux-musl";

/// Installs what is missing. Says nothing and asks for no rights when nothing is.
pub fn setup() -> Result<()> {
    let wanted: Vec<_> = PACKAGES.iter().map(|(package, _)| *package).collect();
    let missing = missing(&wanted, &installed()?);
    if !missing.is_empty() {
        eprintln!("installing {}", missing.join(" "));
        command::output(privileged("apt-get")?.args(["-qq", "update"]))
            .context("refresh the package lists")?;
        let mut install = privileged("apt-get")?;
        install
            .args(["-qq", "--yes", "--no-install-recommends", "install"])
            .args(&missing);
        command::output(&mut install).context("install the missing packages")?;
    }
    if !rust_target_installed()? {
        eprintln!("adding the Rust target {TARGET}");
        command::output(command::clean("rustup").args(["target", "add", TARGET]))
            .with_context(|| format!("add the Rust target {TARGET}: is rustup installed?"))?;
    }
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

fn rust_target_installed() -> Result<bool> {
    let mut rustc = command::clean("rustc");
    let library = command::output(rustc.args(["--print", "target-libdir", "--target", TARGET]))?;
    Ok(fs::read_dir(library.trim()).is_ok_and(|mut entries| entries.next().is_some()))
}

/// A command as root: directly, or through sudo.
pub(crate) fn privileged(program: &str) -> Result<Command> {
    let uid = fs::metadata("/proc/self")
        .context("read our own user id")?
        .uid();
    let mut command = command::clean(if uid == 0 { program } else { "sudo" });
    if uid != 0 {
        command.arg(program);
    }
    command.env("DEBIAN_FRONTEND", "noninteractive");
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
