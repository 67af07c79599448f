//! The pool's file system after an orderly end.
//!
//! Owns: what Debian's `xfs_repair` is given, and its word. Refuses: mounts, and mending anything.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::{Kind, Torture, encrypted};
use crate::disk;

impl Torture {
    /// Lets the node recover, has it end in order, and looks at its pools with Debian's own `xfs_repair`.
    pub fn check(&mut self) -> Result<()> {
        *self.lab.disks() = self.inserted();
        self.switch_on()?;
        self.lab.ready()?;
        self.notes_mending()?;
        if self.kind == Kind::Mirror {
            self.halves_are_whole()?;
        }
        let passphrase = match self.chip {
            Some(_) => Some(encrypted::passphrase(&self.lab)?),
            None => None,
        };
        self.lab.power_button()?;
        for disk in &self.disks {
            let inside = (self.kind, passphrase.as_deref());
            check_pool(&disk.file, inside, self.lab.directory())?;
            self.tally.checks += 1;
        }
        Ok(())
    }
}

/// Beyond the superblock and the bitmap of a half of a mirror (ARCHITECTURE.md).
const MIRROR_BYTES: u64 = 2 << 20;

/// The pool's file system, without a mount: its log is empty after an orderly end.
fn check_pool(file: &Path, (kind, passphrase): (Kind, Option<&str>), scratch: &Path) -> Result<()> {
    let partition = scratch.join("partition");
    disk::first_partition(file, kind.sectors().bytes() as u64, &partition)?;
    let inside = match (kind, passphrase) {
        (_, Some(passphrase)) => encrypted::open(&partition, passphrase)?,
        (Kind::Mirror, None) => disk::beyond(&partition, MIRROR_BYTES)?,
        (_, None) => partition,
    };
    let output = Command::new("/sbin/xfs_repair")
        .arg("-n")
        .arg(&inside)
        .output();
    let output = output.context("start xfs_repair: run 'make setup'")?;
    if output.status.success() {
        fs::remove_file(&inside)?;
        return Ok(());
    }
    let kept = std::env::temp_dir().join(format!("sifr-torture-{}.xfs", std::process::id()));
    disk::copy(&inside, &kept)?;
    bail!(
        "{} is what xfs_repair -n was given: {}{}",
        kept.display(),
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}
