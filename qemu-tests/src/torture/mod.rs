//! Power cuts: a node whose disk loses what was not flushed, at any of its requests.
//!
//! Owns: the owner's deeds between two cuts, and what must hold after each: the identity, every acknowledged statement,
//! no deleted one, what a guest has flushed, the chunks, the file system. Everything follows from a seed but the
//! node's own timing.
//! Refuses: looking at the pool while the node runs, but for the chunks, which [`crate::watch`] reads.

mod client;
mod encrypted;
mod filler;
mod halves;
mod keeper;
mod medium;
mod nbd;
mod promises;
mod random;
mod repair;
mod scribe;
mod tally;
mod torn;

use std::fs;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use image::qemu::Bus;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use types::Bytes;

use crate::store;
use crate::tpm::Chip;
use crate::{Answer, Follower, Lab, PATIENCE, Setup, disk, variant};
use client::Client;
use filler::Filler;
use halves::Exchange;
use keeper::{Act, Keeper};
use medium::{Fate, Flushes, Sectors};
use nbd::{Disks, Until};
use promises::{Deed, Desired, Promises, Standing};
use random::Random;
use scribe::Scribe;
pub use tally::Tally;

const DISK: Bytes = Bytes::gib(4);
/// Names that are deployed, changed and deleted.
const NAMES: [&str; 3] = ["a", "b", "c"];
/// Images that differ in one file.
const IMAGES: u32 = 3;
/// Deeds between two cuts, at most.
const DEEDS_MAX: u64 = 4;
/// Writes and flushes after which the power goes, at most: what four deeds come to, at 20 to 40 each.
const REQUESTS_MAX: u64 = 120;
/// The same for deeds with volumes, each of which waits for its end while the keeper flushes number after number.
const VOLUME_REQUESTS_MAX: u64 = 600;
/// The same for an image that is fetched, chunk by chunk, while the scribe flushes its numbers.
const FILL_REQUESTS_MAX: u64 = 250;
/// The same for a node that finds a blank disk: what it takes to make a pool, and some.
const FIRST_REQUESTS_MAX: u64 = 200;
/// The same for a boot of a node that has a pool.
const BOOT_REQUESTS_MAX: u64 = 60;
/// The same for a claim of a disk: what it takes to wipe it, to make a pool there, and some.
const CLAIM_REQUESTS_MAX: u64 = 250;
/// One life in so many ends in its boot.
const SHORT_LIVES: u64 = 4;
/// Of a node with two disks one life in so many has one of them.
const LIVES_ALONE: u64 = 3;
/// Of a mirror one half is replaced in one life of so many.
const LIVES_REPLACED: u64 = 5;
/// Between two looks at volumes: nothing tells from outside when one is ready.
const LOOK_AGAIN: Duration = Duration::from_millis(300);
/// One cut in so many is followed by an orderly end and a check of the file system, for itself and after the others.
const CHECK_EVERY: u64 = 10;

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
    /// At this request from power-on, of a node that has one of its disks.
    Alone(u64),
    /// Once the journal was replayed, of which nothing is flushed: every block is torn.
    InReplay,
    /// Once both halves of a mirror hold the same.
    InStep,
    /// At this request after the owner has begun to have a half replaced, while it is filled, or before that is said to be done.
    InReplace(u64),
}

/// What kind of node it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Plain,
    /// With sectors of 4096 bytes.
    Large,
    /// With a machine that counts on a volume of which there are snapshots and copies.
    Volumes,
    /// With a TPM, and a pool that only it opens.
    Encrypted,
    /// With two disks: each is the node.
    Two,
    /// With machines whose images come from a store while the power goes.
    Fill,
    /// With two disks that are one mirror: what each of them lost, the other may have.
    Mirror,
}

impl Kind {
    /// `make torture` takes them in turn, by the seed.
    pub const ALL: [Self; 7] = [
        Self::Plain,
        Self::Volumes,
        Self::Large,
        Self::Encrypted,
        Self::Two,
        Self::Fill,
        Self::Mirror,
    ];

    fn sectors(self) -> Sectors {
        match self {
            Self::Large => Sectors::Large,
            Self::Plain
            | Self::Volumes
            | Self::Encrypted
            | Self::Two
            | Self::Fill
            | Self::Mirror => Sectors::Small,
        }
    }

    fn disks(self) -> usize {
        match self {
            Self::Two | Self::Mirror => 2,
            Self::Plain | Self::Large | Self::Volumes | Self::Encrypted | Self::Fill => 1,
        }
    }

    /// Kernel arguments.
    fn arguments(self) -> &'static str {
        match self {
            Self::Encrypted => "sifr.encrypt=required",
            Self::Mirror => "sifr.disks=mirror",
            Self::Plain | Self::Large | Self::Volumes | Self::Two | Self::Fill => "",
        }
    }

    /// After how many requests the power goes, at most, while the owner does what this kind is for.
    fn requests_max(self) -> u64 {
        match self {
            Self::Volumes => VOLUME_REQUESTS_MAX,
            Self::Fill => FILL_REQUESTS_MAX,
            Self::Plain | Self::Large | Self::Encrypted | Self::Two | Self::Mirror => REQUESTS_MAX,
        }
    }
}

/// One owner, one node, its disks.
#[derive(Debug)]
pub struct Torture {
    lab: Lab,
    kind: Kind,
    disks: Vec<image::qemu::Disk>,
    /// Those that are in the machine in this life.
    present: Vec<usize>,
    /// A half that goes, and the one that comes in its place.
    exchange: Option<Exchange>,
    chip: Option<Chip>,
    /// A boot of this node has ended before it began.
    stillborn: bool,
    flushes: Flushes,
    images: Vec<Image>,
    promises: Promises,
    scribe: Scribe,
    keeper: Keeper,
    filler: Filler,
    /// Hears the keeper, in this life.
    ears: Option<Follower>,
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
    pub fn new(seed: u64, kind: Kind) -> Result<Self> {
        Self::with(seed, Flushes::Done, kind)
    }

    /// The same with a disk that only says that it flushes: what it promised cannot be kept.
    pub fn with_a_lying_disk(seed: u64) -> Result<Self> {
        Self::with(seed, Flushes::Pretended, Kind::Plain)
    }

    fn with(seed: u64, flushes: Flushes, kind: Kind) -> Result<Self> {
        let setup = Setup {
            watched: true,
            arguments: kind.arguments().to_owned(),
            ..Setup::default()
        };
        let mut lab = Lab::unpowered(&setup)?;
        let first = lab.disks().first_mut().context("the node has no disk")?;
        match kind.sectors() {
            Sectors::Small => {}
            Sectors::Large => first.bus = Bus::Virtio4Kn,
        }
        let disk = |number: usize| image::qemu::Disk {
            file: first.file.with_file_name(format!("pool-{number}.raw")),
            serial: format!("LAB{number}"),
            ..first.clone()
        };
        let disks: Vec<_> = (0..kind.disks()).map(disk).collect();
        let chip = (kind == Kind::Encrypted).then(|| Chip::new(&lab.directory().join("chip")));
        let chip = chip.transpose()?;
        lab.machine().tpm = chip.as_ref().map(Chip::socket);
        let count = if kind == Kind::Fill {
            filler::IMAGES
        } else {
            IMAGES
        };
        let images = (0..count).map(|n| {
            let store = format!("store-{n}");
            let flist = variant(lab.command(), lab.directory(), &store, n)?;
            let url = store::serve(flist.parent().context("a store")?)?;
            Ok(Image { flist, url })
        });
        let images: Vec<Image> = images.collect::<Result<_>>()?;
        let filler = Filler::of(lab.directory(), &images)?;
        let mut torture = Self {
            lab,
            kind,
            present: (0..disks.len()).collect(),
            disks,
            exchange: None,
            chip,
            flushes,
            images,
            promises: Promises::default(),
            scribe: Scribe::default(),
            keeper: Keeper::default(),
            filler,
            ears: None,
            key: None,
            has_claimed: false,
            stillborn: false,
            random: Random::new(seed),
            tally: Tally::default(),
        };
        torture.blank()?;
        Ok(torture)
    }

    /// Disks that have never been written to, of a node that was never there.
    fn blank(&mut self) -> Result<()> {
        for disk in &self.disks {
            let _ = fs::remove_file(&disk.file);
            image::qemu::blank_disk(&disk.file, DISK)?;
        }
        self.key = None;
        Ok(())
    }

    pub fn tally(&self) -> Tally {
        Tally {
            flushed: self.scribe.count() + self.keeper.heard,
            of_volumes: self.keeper.acts,
            filled: self.filler.heard,
            ..self.tally
        }
    }

    /// Begins with a blank disk, and cuts while the pool is made. The next life finds what is left.
    pub fn first_boot(&mut self) -> Result<()> {
        self.blank()?;
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
        self.blank()?;
        disk::foreign(&self.disks[0].file)?;
        self.has_claimed = false;
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
        if self.kind == Kind::Two && self.random.below(LIVES_ALONE) == 0 {
            self.alone()?;
        }
        if self.kind == Kind::Mirror && self.random.below(LIVES_REPLACED) == 0 {
            self.replace()?;
        }
        let when = match self.random.below(SHORT_LIVES) {
            0 => When::InBoot(1 + self.random.below(BOOT_REQUESTS_MAX)),
            _ => When::Later(1 + self.random.below(self.kind.requests_max())),
        };
        self.life(when)?;
        if self.tally.cuts.is_multiple_of(CHECK_EVERY) {
            self.check()?;
        }
        Ok(())
    }

    /// A life with one of the disks: it has all that was acknowledged, whichever it is.
    pub fn alone(&mut self) -> Result<()> {
        let all = std::mem::take(&mut self.present);
        let one = self.random.one_of(&all).context("there are disks")?;
        self.present = vec![one];
        let at = 1 + self.random.below(4 * BOOT_REQUESTS_MAX);
        self.life(When::Alone(at))?;
        self.present = all;
        self.tally.alone += 1;
        Ok(())
    }

    fn inserted(&self) -> Vec<image::qemu::Disk> {
        let disk = |at: &usize| self.disks[*at].clone();
        self.present.iter().map(disk).collect()
    }

    fn life(&mut self, when: When) -> Result<()> {
        let until = match when {
            When::InBoot(at) | When::AfterClaim(at) | When::Alone(at) => Until::Request(at),
            When::Later(_) | When::InClaim(_) | When::InStep | When::InReplace(_) => Until::Never,
            When::InReplay => Until::Flush,
        };
        let own = self.inserted();
        let files: Vec<_> = own.iter().map(|disk| disk.file.clone()).collect();
        let kind = (self.flushes, self.kind.sectors());
        let disk = Disks::serve(&files, self.lab.directory(), kind, until)?;
        let served = own.into_iter().zip(disk.addresses());
        *self.lab.disks() = served
            .map(|(disk, file)| image::qemu::Disk { file, ..disk })
            .collect();
        self.switch_on()?;
        self.keeper.wakes();
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
                    let in_boot = matches!(when, When::InBoot(_) | When::Alone(_) | When::InReplay);
                    self.tally.in_boot += u64::from(in_boot);
                    Ok(())
                }
                // As if the power had gone then, by the emulator's fault (docs/testing.md); a disk that no kernel can boot
                // with does it again.
                Err(Trouble::Broken(error)) if !self.stillborn && !self.lab.has_begun() => {
                    println!("the node ended before its first program began: {error:#}");
                    self.stillborn = true;
                    Ok(())
                }
                Err(Trouble::Broken(error)) => Err(error),
                Err(Trouble::Lie(what)) => bail!("{what}; console:\n{}", self.lab.console()),
            }
        });
        self.ears = None;
        self.lab.power_cut()?;
        let flushes = self.flushes;
        let fate = |random: &mut Random| match (flushes, when) {
            (Flushes::Pretended, _) => Fate::Dropped,
            (Flushes::Done, When::InReplay) => Fate::Torn,
            (Flushes::Done, _) => random.one_of(&Fate::ALL).unwrap_or(Fate::Dropped),
        };
        let settled = disk.settle(&mut self.random, fate)?;
        self.tally.cuts += 1;
        for (_, loss) in &settled {
            self.tally.unflushed += loss.unflushed as u64;
            self.tally.kept += loss.kept as u64;
        }
        ended.with_context(|| {
            let fates: Vec<_> = settled.iter().map(|(fate, _)| fate).collect();
            format!("{when:?}, then {fates:?}, cut number {}", self.tally.cuts)
        })
    }

    fn switch_on(&mut self) -> Result<()> {
        self.chip.as_mut().map_or(Ok(()), Chip::start)?;
        self.lab.switch_on()
    }

    fn live(&mut self, client: &Client, disk: &Disks, when: When) -> Result<(), Trouble> {
        let requests = match when {
            When::InClaim(requests) => {
                self.same_key(client)?;
                self.lab.ready()?;
                disk.cut_after(requests);
                return self.claims(client);
            }
            When::AfterClaim(_) => return self.goes_on(client),
            When::Alone(_) => {
                self.identity(client)?;
                self.lab.ready()?;
                return self.allow(client);
            }
            When::InBoot(_) | When::InReplay | When::InStep | When::InReplace(_) => None,
            When::Later(requests) => Some(requests),
        };
        self.identity(client)?;
        self.lab.ready()?;
        self.confirm(client)?;
        match when {
            When::InStep => self.in_step(client)?,
            When::InReplace(requests) => self.exchanges(client, disk, requests)?,
            _ => {}
        }
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
        let log = client.follow(scribe::NAME)?;
        loop {
            let line = log.line()?;
            if self.scribe.hear(&line).map_err(Trouble::Lie)? {
                break;
            }
        }
        match self.kind {
            Kind::Volumes => self.wakes(client)?,
            Kind::Fill => self.reads(client)?,
            Kind::Plain | Kind::Large | Kind::Encrypted | Kind::Two | Kind::Mirror => {}
        }
        if requests < u64::MAX {
            disk.cut_after(requests);
        }
        let mut lives = Ok(());
        for _ in 0..=self.random.below(DEEDS_MAX) {
            lives = match self.kind {
                Kind::Volumes => self.keeps(client),
                Kind::Fill => self.fills(client),
                Kind::Plain | Kind::Large | Kind::Encrypted | Kind::Two | Kind::Mirror => {
                    self.deed(client)
                }
            };
            if lives.is_err() {
                break;
            }
        }
        self.listens()?;
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
        if !pool.contains(" on vd") {
            return Err(Trouble::Lie(format!("the pool's disk is not used: {pool}")));
        }
        self.notes_mending()?;
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
            let said = Self::said(client, &name)?;
            if name == keeper::NAME {
                match self.promises.was_asked(&name, said) {
                    true => self.keeper.stands(),
                    false => self.keeper.falls(),
                }
            }
            if name == filler::NAME {
                self.filler.settle(self.promises.was_asked(&name, said));
            }
            self.promises.confirm(&name, said).map_err(Trouble::Lie)?;
        }
        Ok(())
    }

    /// The same of a node without one of its disks, which settles nothing.
    fn allow(&mut self, client: &Client) -> Result<(), Trouble> {
        for name in self.promises.names() {
            let said = Self::said(client, &name)?;
            self.promises.allow(&name, said).map_err(Trouble::Lie)?;
        }
        Ok(())
    }

    fn said(client: &Client, name: &str) -> Result<Option<Standing>> {
        let answer = client.sifr(&["--output", "json", "get", name], "")?;
        if answer.stderr.contains("not_found") || answer.stderr.contains("no deployment") {
            return Ok(None);
        }
        standing(&answer.must()?.stdout).map(Some)
    }

    /// The keeper's volumes are as promised, and its machine finds there what it had flushed.
    fn wakes(&mut self, client: &Client) -> Result<(), Trouble> {
        let since = Instant::now();
        while self.promises.desired(keeper::NAME).is_some() {
            let answer = client.sifr(&["--output", "json", "get", keeper::NAME], "")?;
            let status = serde_json::from_str(&answer.must()?.stdout).context("no JSON")?;
            if self.keeper.compare(&status).map_err(Trouble::Lie)? {
                break;
            }
            if since.elapsed() > PATIENCE {
                return Err(Trouble::Lie(format!(
                    "it does not come to its end: {status}"
                )));
            }
            thread::sleep(LOOK_AGAIN);
        }
        if self.promises.desired(keeper::NAME) == Some(Desired::Running) {
            let ears = client.follow(keeper::NAME)?;
            while !self.keeper.hear(&ears.line()?).map_err(Trouble::Lie)? {}
            self.ears = Some(ears);
        }
        Ok(())
    }

    /// One act of the owner of volumes, up to its end.
    fn keeps(&mut self, client: &Client) -> Result<(), Trouble> {
        self.listens()?;
        let desired = self.promises.desired(keeper::NAME);
        let act = self.keeper.choose(desired, &mut self.random);
        let image = format!("image: {}\n", self.images[0].flist.display());
        let (words, document) = self.keeper.command(&act, &image);
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        self.promises.ask_for(keeper::NAME, act.makes(desired));
        self.keeper.ask(&act);
        let answer = client.sifr(&words, &document)?;
        self.answered(keeper::NAME, answer)?;
        self.keeper.stands();
        let wait = |until| {
            let patience = format!("{}s", PATIENCE.as_secs());
            let words = ["wait", keeper::NAME, "--for", until, "--timeout", &patience];
            client.sifr(&words, "").and_then(Answer::must).map(drop)
        };
        match &act {
            Act::Take(name) => {
                self.listens()?;
                self.keeper.taken(name);
            }
            Act::Grow | Act::Drop(_) | Act::Restore(_) => {}
            Act::Stop => wait("stopped")?,
            Act::Destroy => wait("deleted")?,
            // It begins anew, on what there is.
            Act::Make | Act::Copy(_) | Act::Uncopy | Act::Start => return self.wakes(client),
        }
        Ok(())
    }

    /// What the keeper has said so far counts, whatever comes.
    fn listens(&mut self) -> Result<(), Trouble> {
        for line in self.ears.iter().flat_map(Follower::so_far) {
            self.keeper.hear(&line).map_err(Trouble::Lie)?;
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
}

fn standing(json: &str) -> Result<Standing> {
    let status: Value = serde_json::from_str(json).with_context(|| json.to_owned())?;
    let desired = status["desired"].as_str().and_then(Desired::from_word);
    Ok(Standing {
        version: status["version"].as_u64().context("no version")?,
        desired: desired.with_context(|| format!("no wish in {status}"))?,
    })
}
