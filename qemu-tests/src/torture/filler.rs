//! A machine whose image is always a new one, which the node fetches from a store while the power goes.
//!
//! Owns: the machine's program, which reads all of the image's one large file, and what it may find there.
//! Refuses: an image that is pushed: the node is to fetch each chunk itself.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use super::client::Client;
use super::promises::{Deed, Desired};
use super::{Image, Torture, Trouble};

/// Its deployment's name.
pub(super) const NAME: &str = "filler";
/// So many are not read twice by a node of forty cuts.
pub(super) const IMAGES: u32 = 40;

/// Says what it reads, once in each boot.
const PROGRAM: &str = "set -- $(sha256sum /www/large.bin); echo read $1 $(cat /proc/sys/kernel/random/boot_id); \
    sleep 100000";

/// What it has said, and may say.
#[derive(Debug, Default)]
pub(super) struct Filler {
    /// Of each image's large file.
    sums: Vec<String>,
    next: usize,
    stands: Option<usize>,
    asked: Option<usize>,
    boots: BTreeSet<String>,
    /// Images that were read to their end.
    pub(super) heard: u64,
}

impl Filler {
    pub(super) fn of(directory: &Path, images: &[Image]) -> Result<Self> {
        let sum = |number: usize| {
            let file = directory.join(format!("store-{number}-tree/www/large.bin"));
            let output = std::process::Command::new("sha256sum").arg(&file).output();
            let output = output.context("start sha256sum")?;
            let _ = fs::remove_file(&file);
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            let sum = text.split_whitespace().next().map(str::to_owned);
            sum.with_context(|| format!("no sum of {}", file.display()))
        };
        let sums = (0..images.len()).map(sum).collect::<Result<_>>()?;
        Ok(Self {
            sums,
            ..Self::default()
        })
    }

    /// The image of a deployment that is on its way: from now on it may stand.
    fn ask(&mut self) -> usize {
        let image = self.next % self.sums.len();
        self.next += 1;
        self.asked = Some(image);
        image
    }

    /// What was under way stands, or does not.
    pub(super) fn settle(&mut self, stands: bool) {
        if let Some(asked) = self.asked.take().filter(|_| stands) {
            self.stands = Some(asked);
        }
    }

    /// Hears a line of its log, old ones again at each reading. True where it is the word of a boot that was not heard before.
    ///
    /// # Errors
    /// It read what is in no image that it may have.
    fn hear(&mut self, line: &str) -> Result<bool, String> {
        let words: Vec<_> = line.split_whitespace().collect();
        let ["read", sum, boot] = words[..] else {
            return Ok(false);
        };
        if !self.boots.insert(boot.to_owned()) {
            return Ok(false);
        }
        let may: Vec<_> = self.stands.iter().chain(&self.asked).collect();
        if !may.iter().any(|image| self.sums[**image] == sum) {
            return Err(format!(
                "{NAME}: it read {sum}, of none of the images {may:?}"
            ));
        }
        self.heard += 1;
        Ok(true)
    }
}

impl Torture {
    /// The machine has come back, and reads its image as it was packed.
    pub(super) fn reads(&mut self, client: &Client) -> Result<(), Trouble> {
        if self.promises.desired(NAME) != Some(Desired::Running) {
            return Ok(());
        }
        let log = client.follow(NAME)?;
        while !self.filler.hear(&log.line()?).map_err(Trouble::Lie)? {}
        Ok(())
    }

    /// The owner has it run from the next image.
    pub(super) fn fills(&mut self, client: &Client) -> Result<(), Trouble> {
        let Image { flist, url } = &self.images[self.filler.ask()];
        let digest = flist.file_stem().context("a name")?.to_string_lossy();
        let yaml = format!(
            "name: {NAME}\nimage: blake3:{digest}\nstore: {url}\nmemory: 64Mi\ndisk: 64Mi\ncommand: [sh, -c, '{PROGRAM}']\n"
        );
        self.promises.ask(NAME, Deed::Deploy);
        let answer = client.sifr(&["deploy", "-"], &yaml)?;
        self.answered(NAME, answer)?;
        self.filler.settle(true);
        self.reads(client)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_of_no_image_that_stands_are_found_and_old_lines_are_not_taken_for_them() {
        let mut filler = Filler {
            sums: ["s0", "s1", "s2"].map(str::to_owned).to_vec(),
            ..Filler::default()
        };
        filler.ask();
        filler.settle(true);
        assert_eq!(filler.hear("read s0 a"), Ok(true));
        assert_eq!(filler.hear("read s0 a"), Ok(false), "heard before");
        filler.ask();
        assert_eq!(filler.hear("read s1 b"), Ok(true), "it was asked for");
        filler.settle(false);
        assert!(filler.hear("read s1 c").is_err(), "it never stood");
        assert!(filler.hear("read s2 d").is_err());
        assert_eq!(filler.heard, 2);
    }
}
