//! A node and all disks that it ever had, of which it is booted with some.
//!
//! Owns: the disks, and that it stays the same node. Refuses: changing disks while the power is on (`rack` does).

use std::path::PathBuf;

use anyhow::{Result, ensure};
use image::qemu::Disk;

use crate::{Lab, busybox};

#[derive(Debug)]
pub struct Shelf {
    pub lab: Lab,
    /// An image for its machines.
    pub flist: PathBuf,
    disks: Vec<Disk>,
    pub key: String,
}

impl Shelf {
    pub fn of(lab: Lab, disks: Vec<Disk>) -> Result<Self> {
        Ok(Self {
            flist: busybox(lab.command(), lab.directory())?,
            key: lab.key()?,
            lab,
            disks,
        })
    }

    /// Cuts the power, and boots with these disks alone.
    pub fn boot_with(&mut self, disks: &[usize]) -> Result<()> {
        self.lab.power_cut()?;
        *self.lab.disks() = disks.iter().map(|at| self.disks[*at].clone()).collect();
        self.lab.power_on()?;
        ensure!(self.lab.key()? == self.key, "another node");
        Ok(())
    }
}
