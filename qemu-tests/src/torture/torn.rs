//! Blocks of the pool's file system that are half written.
//!
//! Owns: the one cut that leaves such blocks for certain, and how often a node said that it has mended some.
//! Refuses: looking for them on the disk: what counts is what the node makes of them.

use std::fmt::Write;

use anyhow::{Result, ensure};

use super::{PATIENCE, Torture, When};

/// What a node says of a pool with such blocks (`storage::pool`).
const MENDED: &str = "half written";
/// A deployment of volumes alone.
const NAME: &str = "a-deployment-with-a-name-that-is-long";
/// With names as long as these their directory is a block, and no part of its inode, which is a sector.
const VOLUMES: u32 = 12;

impl Torture {
    /// Two cuts: the first leaves many names in the journal, the second comes while the next boot writes them where they belong,
    /// so that each block of that is half written.
    pub fn tear(&mut self) -> Result<()> {
        let mut volumes = String::new();
        for number in 0..VOLUMES {
            writeln!(
                volumes,
                "  volume-number-{number}: {{volume: {{size: 64Mi}}}}"
            )?;
        }
        self.boot()?;
        let deployed = self
            .lab
            .deploy(&format!("name: {NAME}\nworkloads:\n{volumes}"))?;
        deployed.must()?;
        self.stand()?;
        self.lab.power_cut()?;
        self.life(When::InReplay)
    }

    /// The next boot: the node says what it has mended, has what it acknowledged, and goes on with it.
    pub fn mended(&mut self) -> Result<()> {
        self.boot()?;
        self.stand()?;
        self.lab.power_cut()?;
        ensure!(
            self.tally.mended > 0,
            "no block was half written: what the cut was to leave was not there"
        );
        self.settle_in()
    }

    /// With nothing between the node and its disks.
    fn boot(&mut self) -> Result<()> {
        self.lab.disks().clone_from(&self.disks);
        self.switch_on()?;
        self.lab.ready()?;
        self.notes_mending()
    }

    fn stand(&self) -> Result<()> {
        self.lab.wait(NAME, "running")?.must().map(drop)
    }

    /// Counts a boot that has met such blocks.
    pub(super) fn notes_mending(&mut self) -> Result<()> {
        let pool = self.lab.node().wait_for_line("] pool ", PATIENCE)?;
        self.tally.mended += u64::from(pool.contains(MENDED));
        Ok(())
    }
}
