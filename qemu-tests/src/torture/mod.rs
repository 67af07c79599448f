//! Power cuts: a node whose disk loses what was not flushed, at any of its requests.
//!
//! Owns: the owner's deeds between two cuts, and what must hold after each: the identity, every acknowledged statement,
//! no deleted one, what a guest has flushed, the chunks, the file system. Everything follows from a seed but the
//! node's own timing.
//! Refuses: looking at the pool while the node runs, but for the chunks, which [`crate::watch`] reads.

mod client;
mod medium;
mod nbd;
mod promises;
mod random;
mod scribe;

use std::fmt;
use std::fs;
use std::ops::AddAssign;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use image::qemu::Bus;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use types::Bytes;

use crate::store;
use crate::{Lab, PATIENCE, Setup, disk, variant};
use client::Client;
use medium::{Fate, Flushes, Sectors};
use nbd::Disk;
use promises::{Deed, Desired, Promises, Standing};
use random::Random;
use scribe::Scribe;

const DISK: Bytes = Bytes::gib(4);
/// Names that are deployed, changed and deleted.
const NAMES: [&str; 3] = ["a", "b", "c"];
/// Images that differ in one file.
const IMAGES: u32 = 3;
/// Deeds between two cuts, at most.
const DEEDS_MAX: u64 = 4;
/// Writes and flushes after which the power goes, at most: what four deeds come to, at 20 to 40 each.
const REQUESTS_MAX: u64 = 120;
/// The same for a node that finds a blank disk: what it takes to make a pool, and some.
const FIRST_REQUESTS_MAX: u64 = 200;
/// The same for a boot of a node that has a pool.
const BOOT_REQUESTS_MAX: u64 = 60;
/// The same for a claim of a disk: what it takes to wipe it, to make a pool there, and some.
const CLAIM_REQUESTS_MAX: u64 = 250;
/// One life in so many ends in its boot.
const SHORT_LIVES: u64 = 4;
/// One cut in so many is followed by an orderly end and a check of the file system, for itself and after the others.
const CHECK_EVERY: u64 = 10;

/// What was done, for people.
#[derive(Debug, Clone, Copy, Default)]
pub struct Tally {
    pub cuts: u64,
    /// Of these, while a pool was being made or recovered.
    pub in_boot: u64,
    /// Sectors that had not been flushed, and those of them that were there all the same.
    pub unflushed: u64,
    pub kept: u64,
    /// Of these, while a disk of others was claimed.
    pub in_claim: u64,
    pub acknowledged: u64,
    /// Statements that the power took before an answer.
    pub unanswered: u64,
    /// Numbers that a guest had flushed.
    pub flushed: u64,
    pub chunks: u64,
    pub checks: u64,
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.cuts += other.cuts;
        self.in_boot += other.in_boot;
        self.in_claim += other.in_claim;
        self.unflushed += other.unflushed;
        self.kept += other.kept;
        self.acknowledged += other.acknowledged;
        self.unanswered += other.unanswered;
        self.flushed += other.flushed;
        self.chunks += other.chunks;
        self.checks += other.checks;
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            cuts,
            in_boot,
            in_claim,
            unflushed,
            kept,
            acknowledged,
            unanswered,
            flushed,
            chunks,
            checks,
        } = self;
        write!(
            f,
            "{cuts} cuts ({in_boot} in a boot, {in_claim} in a claim), {kept} of {unflushed} unflushed sectors left, {acknowledged} statements \
             acknowledged and {unanswered} not answered, {flushed} numbers flushed by a guest, {chunks} chunks compared, \
             {checks} file systems checked"
        )
    }
}

/// Why a life ended before its owner wanted.
enum Trouble {
    /// Something did not work: no wonder if the power has gone.
    Broken(anyhow::Error),
    /// A promise was not kept: power or not.
    Lie(String),
}

impl From<anyhow::Error> for Trouble {
    fn from(error: anyhow::Error) -> Self {
        Self::Broken(error)
    }
}

/// When the power goes.
#[derive(Debug, Clone, Copy)]
enum When {
    /// At this request from power-on.
    InBoot(u64),
    /// At this request after all was found in order, or with the last deed.
    Later(u64),
    /// At this request after the owner has begun to claim the disk, or with the answer.
    InClaim(u64),
    /// At this request from power-on, of a node whose disk was claimed when the power went.
    AfterClaim(u64),
}

/// One owner, one node, one disk.
#[derive(Debug)]
pub struct Torture {
    lab: Lab,
    file: PathBuf,
    flushes: Flushes,
    sectors: Sectors,
    images: Vec<Image>,
    promises: Promises,
    scribe: Scribe,
    key: Option<String>,
    /// The disk of others is the node's, and stays it.
    has_claimed: bool,
    random: Random,
    tally: Tally,
}

/// An image and a web server that has it.
#[derive(Debug)]
struct Image {
    flist: PathBuf,
    url: String,
}

impl Torture {
    /// A machine that has never had power. Its numbers follow from `seed`.
    pub fn new(seed: u64) -> Result<Self> {
        Self::with(seed, Flushes::Done, Sectors::Small)
    }

    /// The same with a disk whose sectors have 4096 bytes.
    pub fn with_large_sectors(seed: u64) -> Result<Self> {
        Self::with(seed, Flushes::Done, Sectors::Large)
    }

    /// The same with a disk that only says that it flushes: what it promised cannot be kept.
    pub fn with_a_lying_disk(seed: u64) -> Result<Self> {
        Self::with(seed, Flushes::Pretended, Sectors::Small)
    }

    fn with(seed: u64, flushes: Flushes, sectors: Sectors) -> Result<Self> {
        let setup = Setup {
            watched: true,
            ..Setup::default()
        };
        let mut lab = Lab::unpowered(&setup)?;
        let first = lab.disks().first_mut().context("the node has no disk")?;
        match sectors {
            Sectors::Small => {}
            Sectors::Large => first.bus = Bus::Virtio4Kn,
        }
        let file = first.file.clone();
        let images = (0..IMAGES).map(|n| {
            let store = format!("store-{n}");
            let flist = variant(lab.command(), lab.directory(), &store, n)?;
            let url = store::serve(flist.parent().context("a store")?)?;
            Ok(Image { flist, url })
        });
        let images = images.collect::<Result<_>>()?;
        Ok(Self {
            lab,
            file,
            flushes,
            sectors,
            images,
            promises: Promises::default(),
            scribe: Scribe::default(),
            key: None,
            has_claimed: false,
            random: Random::new(seed),
            tally: Tally::default(),
        })
    }

    pub fn tally(&self) -> Tally {
        Tally {
            flushed: self.scribe.count(),
            ..self.tally
        }
    }

    /// Begins with a blank disk, and cuts while the pool is made. The next life finds what is left.
    pub fn first_boot(&mut self) -> Result<()> {
        fs::remove_file(&self.file)?;
        image::qemu::blank_disk(&self.file, DISK)?;
        self.key = None;
        let at = 1 + self.random.below(FIRST_REQUESTS_MAX);
        self.life(When::InBoot(at))?;
        // It recovers, though it may be cut a second time.
        let at = 1 + self.random.below(FIRST_REQUESTS_MAX);
        self.life(When::InBoot(at))
    }

    /// Begins with a disk that holds another's file system, which the owner claims; the power goes meanwhile, and maybe once
    /// more while that goes on. A claim that was acknowledged is a pool with the key of the node that acknowledged it; any
    /// other is done to its end by itself, or can be made again.
    pub fn claim(&mut self) -> Result<()> {
        fs::remove_file(&self.file)?;
        image::qemu::blank_disk(&self.file, DISK)?;
        disk::foreign(&self.file)?;
        (self.key, self.has_claimed) = (None, false);
        let at = 1 + self.random.below(CLAIM_REQUESTS_MAX);
        self.life(When::InClaim(at))?;
        self.tally.in_claim += 1;
        let at = 1 + self.random.below(CLAIM_REQUESTS_MAX);
        self.life(When::AfterClaim(at))?;
        self.life(When::AfterClaim(u64::MAX))?;
        self.life(When::InBoot(u64::MAX))
    }

    /// A life that is not cut before all was found in order. The first one deploys the machine that counts, and comes before
    /// [`Torture::cut`].
    pub fn settle_in(&mut self) -> Result<()> {
        self.life(When::Later(u64::MAX))
    }

    /// One life of the node, which ends with a cut.
    pub fn cut(&mut self) -> Result<()> {
        let when = match self.random.below(SHORT_LIVES) {
            0 => When::InBoot(1 + self.random.below(BOOT_REQUESTS_MAX)),
            _ => When::Later(1 + self.random.below(REQUESTS_MAX)),
        };
        self.life(when)?;
        if self.tally.cuts.is_multiple_of(CHECK_EVERY) {
            self.check()?;
        }
        Ok(())
    }

    fn life(&mut self, when: When) -> Result<()> {
        let until = match when {
            When::InBoot(at) | When::AfterClaim(at) => Some(at),
            When::Later(_) | When::InClaim(_) => None,
        };
        let disk = Disk::serve(
            &self.file,
            &self.lab.directory().join("disk.sock"),
            (self.flushes, self.sectors),
            until,
        )?;
        self.lab.disks()[0].file = disk.address();
        self.lab.switch_on()?;
        let client = Client::new(self.lab.command(), &self.lab.directory().join("home"));
        let pid = Pid::from_raw(self.lab.node().pid().try_into()?);
        let ended = thread::scope(|scope| {
            let killer = scope.spawn(|| {
                disk.wait_for_cut(Duration::MAX);
                kill(pid, Signal::SIGKILL).context("end QEMU")?;
                client.end()
            });
            let ended = self.live(&client, &disk, when);
            let was_cut = disk.is_cut();
            disk.cut();
            killer
                .join()
                .map_err(|_| anyhow!("the thread that cuts the power ended"))??;
            match ended {
                Ok(()) => Ok(()),
                Err(Trouble::Broken(_)) if was_cut => {
                    self.tally.in_boot += u64::from(matches!(when, When::InBoot(_)));
                    Ok(())
                }
                Err(Trouble::Broken(error)) => Err(error),
                Err(Trouble::Lie(what)) => bail!("{what}; console:\n{}", self.lab.console()),
            }
        });
        self.lab.power_cut()?;
        let fate = match self.flushes {
            Flushes::Done => self.random.one_of(&Fate::ALL).unwrap_or(Fate::Dropped),
            Flushes::Pretended => Fate::Dropped,
        };
        let loss = disk.settle(fate, &mut self.random)?;
        self.tally.cuts += 1;
        self.tally.unflushed += loss.unflushed as u64;
        self.tally.kept += loss.kept as u64;
        ended.with_context(|| format!("{when:?}, then {fate:?}, cut number {}", self.tally.cuts))
    }

    fn live(&mut self, client: &Client, disk: &Disk, when: When) -> Result<(), Trouble> {
        let requests = match when {
            When::InClaim(requests) => {
                self.same_key(client)?;
                self.lab.ready()?;
                disk.cut_after(requests);
                return self.claims(client);
            }
            When::AfterClaim(_) => return self.goes_on(client),
            When::InBoot(_) => None,
            When::Later(requests) => Some(requests),
        };
        self.identity(client)?;
        self.lab.ready()?;
        self.confirm(client)?;
        let Some(requests) = requests else {
            return Ok(());
        };
        self.chunks()?;
        if self.scribe.count() == 0 {
            self.deploy(
                client,
                scribe::NAME,
                0,
                &format!("command: [sh, -c, '{}']\n", scribe::PROGRAM),
            )?;
        }
        let log = self.lab.follow(scribe::NAME)?;
        loop {
            let line = log.line()?;
            if self.scribe.hear(&line).map_err(Trouble::Lie)? {
                break;
            }
        }
        if requests < u64::MAX {
            disk.cut_after(requests);
        }
        let mut lives = Ok(());
        for _ in 0..=self.random.below(DEEDS_MAX) {
            lives = self.deed(client);
            if lives.is_err() {
                break;
            }
        }
        // What it said before the cut counts, whenever it is read.
        for line in log.so_far() {
            self.scribe.hear(&line).map_err(Trouble::Lie)?;
        }
        lives
    }

    /// The owner of a node that runs from RAM takes its disk.
    fn claims(&mut self, client: &Client) -> Result<(), Trouble> {
        let claim = ["disk", "claim", "lab", "--serial", "LAB0", "--yes"];
        let answer = client.sifr(&claim, "")?;
        self.tally.unanswered += u64::from(answer.code != 0);
        answer.must()?;
        self.tally.acknowledged += 1;
        self.has_claimed = true;
        Ok(())
    }

    /// After a cut: the pool is there, or was not promised yet.
    fn goes_on(&mut self, client: &Client) -> Result<(), Trouble> {
        if self.has_claimed {
            self.identity(client)?;
            self.lab.ready()?;
            return Ok(());
        }
        // The key was in memory alone.
        self.key = None;
        let pool = self.lab.node().wait_for_line("] pool ", PATIENCE)?;
        self.same_key(client)?;
        self.lab.ready()?;
        if pool.contains(" on vda") {
            self.has_claimed = true;
            return Ok(());
        }
        self.claims(client)
    }

    /// The disk is never taken for another's, and the node is who it was.
    fn identity(&mut self, client: &Client) -> Result<(), Trouble> {
        let pool = self.lab.node().wait_for_line("] pool ", PATIENCE)?;
        if !pool.contains(" on vda") {
            return Err(Trouble::Lie(format!("the pool's disk is not used: {pool}")));
        }
        self.same_key(client)
    }

    /// Shown once, it never changes.
    fn same_key(&mut self, client: &Client) -> Result<(), Trouble> {
        let key = self.lab.key()?;
        match &self.key {
            Some(known) if *known != key => {
                return Err(Trouble::Lie(format!(
                    "the identity was {known} and is {key}"
                )));
            }
            Some(_) => return Ok(()),
            None => {}
        }
        let address = format!("127.0.0.1:{}", self.lab.api);
        let add = ["node", "add", "lab", &address, "--key", &key, "--replace"];
        self.key = Some(key.clone());
        client.sifr(&add, "")?.must()?;
        Ok(())
    }

    /// Asks for every name, and compares.
    fn confirm(&mut self, client: &Client) -> Result<(), Trouble> {
        let mut names = self.promises.names();
        names.extend(NAMES.map(str::to_owned));
        for name in names {
            let answer = client.sifr(&["--output", "json", "get", &name], "")?;
            let said =
                if answer.stderr.contains("not_found") || answer.stderr.contains("no deployment") {
                    None
                } else {
                    Some(standing(&answer.must()?.stdout)?)
                };
            self.promises.confirm(&name, said).map_err(Trouble::Lie)?;
        }
        Ok(())
    }

    /// Every chunk in the cache is what its name says.
    fn chunks(&mut self) -> Result<(), Trouble> {
        let (sound, damaged) = self.lab.watch()?.verify("/pool/chunks")?;
        if !damaged.is_empty() {
            return Err(Trouble::Lie(format!(
                "these chunks are not what they are called: {damaged:?}"
            )));
        }
        self.tally.chunks += sound;
        Ok(())
    }

    fn deed(&mut self, client: &Client) -> Result<(), Trouble> {
        let name = self.random.one_of(&NAMES).unwrap_or(NAMES[0]);
        let deed = self.promises.choose(name, &mut self.random);
        if deed == Deed::Deploy {
            let image = self.random.below(u64::from(IMAGES));
            let mark = self.random.word();
            let more = format!("restart: never\nenv: {{MARK: \"{mark}\"}}\ncommand: [\"true\"]\n");
            return self.deploy(client, name, image, &more);
        }
        let verb = match deed {
            Deed::Deploy => "deploy",
            Deed::Stop => "stop",
            Deed::Start => "start",
            Deed::Delete => "delete",
        };
        self.promises.ask(name, deed);
        let answer = client.sifr(&[verb, name], "")?;
        self.answered(name, answer)
    }

    /// Half of all images are pushed, half are fetched from a store by the node.
    fn deploy(
        &mut self,
        client: &Client,
        name: &str,
        image: u64,
        more: &str,
    ) -> Result<(), Trouble> {
        let Image { flist, url } =
            &self.images[usize::try_from(image).map_err(anyhow::Error::from)?];
        let source = match self.random.below(2) {
            0 => format!("image: {}\n", flist.display()),
            _ => {
                let digest = flist.file_stem().context("a name")?.to_string_lossy();
                format!("image: blake3:{digest}\nstore: {url}\n")
            }
        };
        let yaml = format!("name: {name}\n{source}memory: 64Mi\ndisk: 64Mi\n{more}");
        self.promises.ask(name, Deed::Deploy);
        let answer = client.sifr(&["deploy", "-"], &yaml)?;
        self.answered(name, answer)
    }

    fn answered(&mut self, name: &str, answer: crate::Answer) -> Result<(), Trouble> {
        self.tally.unanswered += u64::from(answer.code != 0);
        answer.must()?;
        self.promises.acknowledge(name);
        self.tally.acknowledged += 1;
        Ok(())
    }

    /// Lets the node recover, has it end in order, and looks at its pool with Debian's own `xfs_repair`.
    pub fn check(&mut self) -> Result<()> {
        self.lab.disks()[0].file = self.file.clone();
        self.lab.power_on()?;
        self.lab.power_button()?;
        check_pool(&self.file, self.sectors, self.lab.directory())?;
        self.tally.checks += 1;
        Ok(())
    }
}

fn standing(json: &str) -> Result<Standing> {
    let status: Value = serde_json::from_str(json).with_context(|| json.to_owned())?;
    let desired = status["desired"].as_str().and_then(Desired::from_word);
    Ok(Standing {
        version: status["version"].as_u64().context("no version")?,
        desired: desired.with_context(|| format!("no wish in {status}"))?,
    })
}

/// The pool's file system, without a mount: its log is empty after an orderly end.
fn check_pool(file: &Path, sectors: Sectors, scratch: &Path) -> Result<()> {
    let partition = scratch.join("partition");
    disk::first_partition(file, sectors.bytes() as u64, &partition)?;
    let output = std::process::Command::new("/sbin/xfs_repair")
        .arg("-n")
        .arg(&partition)
        .output();
    let output = output.context("start xfs_repair: run 'make setup'")?;
    fs::remove_file(&partition)?;
    ensure!(
        output.status.success(),
        "xfs_repair -n: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}
