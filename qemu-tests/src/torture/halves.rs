//! Halves of a mirror: when they hold the same, and what is replaced while the power goes.
//!
//! Owns: which disk goes, which comes, and what must hold of both then. Refuses: taking a half away while the other is not whole: no
//! mirror promises to survive that.

use std::fs;
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result};
use serde_json::Value;

use super::client::Client;
use super::nbd::Disks;
use super::{DISK, LOOK_AGAIN, Torture, Trouble, When};
use crate::PATIENCE;

/// Writes and flushes after which the power goes, at most: what a replacement takes until it is acknowledged, and as many
/// while the new half is filled.
const REPLACE_REQUESTS_MAX: u64 = 400;
/// Lives in which the power goes while a half is replaced: the second goes on with what the first has left.
const LIVES: u64 = 2;

/// Serials of two disks, of which one comes in place of the other.
#[derive(Debug, Clone)]
pub(super) struct Exchange {
    old: String,
    new: String,
    is_acknowledged: bool,
}

/// A half, as the node tells of it.
#[derive(Debug)]
struct Half {
    serial: String,
    state: String,
}

impl Torture {
    /// A half is replaced by a blank disk: one that works, or one that was pulled before. The power goes meanwhile, and once more
    /// while that goes on. In the end both halves are whole, and one of them is the new one.
    pub fn replace(&mut self) -> Result<()> {
        // From here on each half alone has all that was acknowledged.
        self.life(When::InStep)?;
        let old = self.random.one_of(&self.present).context("two halves")?;
        let new = self.blank_one()?;
        if self.random.below(2) == 0 {
            self.present.retain(|at| *at != old);
        }
        self.present.push(new);
        self.exchange = Some(Exchange {
            old: self.disks[old].serial.clone(),
            new: self.disks[new].serial.clone(),
            is_acknowledged: false,
        });
        for _ in 0..LIVES {
            let at = 1 + self.random.below(REPLACE_REQUESTS_MAX);
            self.life(When::InReplace(at))?;
        }
        self.check()
    }

    /// A disk that nobody has seen yet.
    fn blank_one(&mut self) -> Result<usize> {
        let first = self.disks.first().context("a disk")?;
        let number = self.tally.replaced + 2;
        let disk = image::qemu::Disk {
            file: first.file.with_file_name(format!("pool-{number}.raw")),
            serial: format!("LAB{number}"),
            ..first.clone()
        };
        image::qemu::blank_disk(&disk.file, DISK)?;
        self.disks.push(disk);
        self.tally.replaced += 1;
        Ok(self.disks.len() - 1)
    }

    /// Asks for the replacement until it is acknowledged, or is seen to go on; it is filled until the power goes.
    pub(super) fn exchanges(
        &mut self,
        client: &Client,
        disk: &Disks,
        requests: u64,
    ) -> Result<(), Trouble> {
        disk.cut_after(requests);
        self.ask_to_replace(client)?;
        self.in_step(client)
    }

    fn ask_to_replace(&mut self, client: &Client) -> Result<(), Trouble> {
        let Some(Exchange { old, new, .. }) = self.exchange.clone() else {
            return Ok(());
        };
        let since = Instant::now();
        while !halves(client)?.iter().any(|half| half.serial == new) {
            if self.exchange.as_ref().is_some_and(|e| e.is_acknowledged) {
                // Whoever heals mirrors takes a half in that was not there as the boot put it together.
                if since.elapsed() > PATIENCE {
                    let what = format!("{new} was to replace {old}, and is no half");
                    return Err(Trouble::Lie(what));
                }
                thread::sleep(LOOK_AGAIN);
                continue;
            }
            let words = ["disk", "replace", &old, &new, "--yes"];
            let answer = client.sifr(&words, "")?;
            self.tally.unanswered += u64::from(answer.code != 0);
            answer.must()?;
            self.tally.acknowledged += 1;
            if let Some(exchange) = &mut self.exchange {
                exchange.is_acknowledged = true;
            }
        }
        Ok(())
    }

    /// Waits until both halves of the mirror hold the same, and are those that are to be.
    pub(super) fn in_step(&self, client: &Client) -> Result<(), Trouble> {
        let since = Instant::now();
        loop {
            let halves = halves(client)?;
            let is_old =
                |half: &Half| (self.exchange.iter()).any(|exchange| exchange.old == half.serial);
            if halves.len() == 2
                && halves
                    .iter()
                    .all(|half| half.state == "in_step" && !is_old(half))
            {
                return Ok(());
            }
            if since.elapsed() > PATIENCE {
                return Err(Trouble::Lie(format!("they are not filled: {halves:?}")));
            }
            // Nothing tells when they are.
            thread::sleep(LOOK_AGAIN);
        }
    }

    /// Of a node that keeps its power: a replacement comes to its end, and what was replaced is thrown away.
    pub(super) fn halves_are_whole(&mut self) -> Result<()> {
        let client = Client::new(self.lab.command(), &self.lab.directory().join("home"));
        let whole = self
            .ask_to_replace(&client)
            .and_then(|()| self.in_step(&client));
        whole.map_err(|trouble| match trouble {
            Trouble::Broken(error) => error,
            Trouble::Lie(what) => anyhow::anyhow!("{what}; console:\n{}", self.lab.console()),
        })?;
        if let Some(Exchange { old, .. }) = self.exchange.take() {
            let goes = |disk: &mut image::qemu::Disk| disk.serial == old;
            for disk in self.disks.extract_if(.., goes) {
                fs::remove_file(&disk.file)?;
            }
            self.present = (0..self.disks.len()).collect();
        }
        Ok(())
    }
}

fn halves(client: &Client) -> Result<Vec<Half>> {
    let info = client.sifr(&["--output", "json", "node", "info"], "")?;
    let info: Value = serde_json::from_str(&info.must()?.stdout)?;
    let listed = info["pools"][0]["mirror"]["halves"].as_array();
    let listed = listed.with_context(|| format!("no mirror in {info}"))?;
    let text = |half: &Value, key: &str| half[key].as_str().unwrap_or_default().to_owned();
    let half = |half: &Value| Half {
        serial: text(half, "serial"),
        state: text(half, "state"),
    };
    Ok(listed.iter().map(half).collect())
}
