//! Disks while the node runs: pools that vanish or fail, and disks that come.
//!
//! Owns: the kernel's events of block devices, the look that follows each, and what is made of it.
//! Refuses: doing anything about it: the engine stops what ran there, and the agent that comes next opens the pools again.
//!
//! The kernel tells of disks that come and go. It tells nobody of a file system that has shut itself down or of a disk that
//! answers with errors: that is found out by a flush of each pool every [`LOOK_EVERY`].

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use nix::sys::statvfs::{FsFlags, statvfs};
use storage::disk::Disk;
use storage::mirrors;
use storage::plan::{POOL_MIN_BYTES, Standing};
use storage::probe::{Content, Stage, owner_mark};
use sys::uevent::Uevents;
use tokio::io::unix::AsyncFd;
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use types::PublicKey;
use types::node::NodeInfo;
use types::trouble::Code;

use super::context::NodeContext;
use super::disks::{self, Found};
use super::engine::Request;
use super::flaps::Flaps;
use super::given_up::{self, GivenUp, Ill, Mark};
use super::troubles;

/// Between two flushes of a pool: nothing tells of a file system that shut down, and who reads of it can wait so long.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// Disks that come in one go have some events each: they are looked at together.
const SETTLE: Duration = Duration::from_millis(300);
/// In each pool, since before it was in use.
const WITNESS: &str = "pool.json";

/// Longest wait for the answers of all disks in one look: who has not answered by then is asked no second time, and the others
/// are not waited with.
const LOOK_MAX: Duration = Duration::from_secs(2);
/// A disk that has said nothing for so long is told of, and where it is the last one, nothing is accepted: the kernel's drivers
/// give a command of theirs up after half a minute.
const QUIET: Duration = Duration::from_secs(30);
/// After so long its pool is lost, where another one answers. NVMe has half a minute for a command, as much for its abort and then
/// a reset, SCSI much the same: what answers at all has done so by then, and machines have only waited. Virtio-blk knows no
/// limit: such a disk would hang for ever.
const HANGS: Duration = Duration::from_secs(90);

/// Until a disk that is waited for, is there and could not be used is tried once more: by then whoever still had what lay on it
/// before has ended. Each time costs an agent that takes nothing anyhow.
const TRY_AGAIN: Duration = Duration::from_secs(15);

/// A pool in use, or one that is waited for.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Guarded {
    pub(crate) mountpoint: PathBuf,
    pub(crate) disk: String,
    pub(crate) serial: String,
    pub(crate) mark: Mark,
    /// It lies on several disks: it outlives each of them, and `mirror` looks after those.
    pub(crate) array: Option<String>,
}

impl Guarded {
    /// A disk that fails may not say its serial any more, and is the same while it has the name.
    fn is_on(&self, disk: &Disk) -> bool {
        self.disk == disk.name && (disk.serial.is_empty() || self.serial == disk.serial)
    }
}

/// How a pool's disk is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Health {
    Fine,
    /// It is not there any more.
    Gone,
    /// It is there, and does not do what it should.
    Failing(String),
    /// It is there, and neither answers nor fails.
    Hanging,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Turn {
    /// These pools, by their places in the list, are lost.
    Lost(BTreeMap<usize, Health>),
    /// There are disks that a boot would use: their kernel names.
    Join(Vec<String>),
}

/// A disk that is not in use.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Spare {
    name: String,
    serial: String,
    kind: Kind,
    /// It came and went too often, and is not used before it has stayed for a while.
    rests: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// A pool of this owner.
    Pool,
    /// A pool may be made on it.
    Blank,
    /// It is listed, and that is all.
    Other,
}

/// Kernel name and serial.
type Called = (String, String);

/// What is known from before.
#[derive(Debug, Clone, Default)]
struct Memory {
    lost: BTreeSet<usize>,
    /// Disks that were looked at and are still there.
    seen: BTreeSet<Called>,
}

/// Pure. `guarded`: their serials; what was lost is lost until the agent starts again.
fn decide(
    memory: &mut Memory,
    guarded: &[Guarded],
    health: &[Health],
    spare: &[Spare],
) -> Option<Turn> {
    let called = |spare: &Spare| (spare.name.clone(), spare.serial.clone());
    let there: BTreeSet<Called> = spare.iter().map(called).collect();
    memory.seen.retain(|seen| there.contains(seen));
    let ill = health
        .iter()
        .enumerate()
        .filter(|(_, health)| **health != Health::Fine);
    let new: BTreeMap<_, _> = ill
        .filter(|(at, _)| !memory.lost.contains(at))
        .map(|(at, health)| (at, health.clone()))
        .collect();
    if !new.is_empty() {
        memory.lost.extend(new.keys());
        // One that is there and fails is no disk that came.
        let called = |at: &usize| (guarded[*at].disk.clone(), guarded[*at].serial.clone());
        memory.seen.extend(new.keys().map(called));
        return Some(Turn::Lost(new));
    }
    let all_lost = memory.lost.len() == guarded.len();
    let fresh: Vec<&Spare> = spare
        .iter()
        .filter(|s| !memory.seen.contains(&called(s)) && !s.rests)
        .collect();
    let judged = spare.iter().filter(|spare| !spare.rests);
    memory.seen.extend(judged.map(called));
    let joins = |spare: &&Spare| match spare.kind {
        // Without any pool of its own left the node would become another: only its own disk may come back.
        Kind::Pool if all_lost => guarded
            .iter()
            .any(|lost| !lost.serial.is_empty() && lost.serial == spare.serial),
        Kind::Pool => true,
        Kind::Blank => !all_lost,
        Kind::Other => false,
    };
    let new = fresh.iter().filter(|spare| joins(spare));
    let new: Vec<String> = new.map(|spare| spare.name.clone()).collect();
    (!new.is_empty()).then_some(Turn::Join(new))
}

/// Questions to disks, of which any may hang: each is asked in a thread of its own, and once.
struct Asked<K, T>(BTreeMap<K, (Instant, JoinHandle<T>)>);

impl<K: Ord + Clone, T: Send + 'static> Asked<K, T> {
    fn ask(&mut self, about: K, question: impl FnOnce() -> T + Send + 'static) {
        let asked = || (Instant::now(), tokio::task::spawn_blocking(question));
        self.0.entry(about).or_insert_with(asked);
    }

    /// What has been answered, at the latest at `until`.
    async fn answers(&mut self, until: Instant) -> BTreeMap<K, T> {
        let mut answers = BTreeMap::new();
        let mut waiting = BTreeMap::new();
        for (about, (since, mut asked)) in std::mem::take(&mut self.0) {
            match tokio::time::timeout_at(until, &mut asked).await {
                Ok(Ok(answer)) => drop(answers.insert(about, answer)),
                // It is asked again.
                Ok(Err(_)) => {}
                Err(_) => drop(waiting.insert(about, (since, asked))),
            }
        }
        self.0 = waiting;
        answers
    }

    /// Who has not answered for so long.
    fn silent(&self, now: Instant, long: Duration) -> BTreeSet<K> {
        let silent = self.0.iter();
        let silent = silent.filter(|(_, (since, _))| now.saturating_duration_since(*since) > long);
        silent.map(|(about, _)| about.clone()).collect()
    }
}

pub(crate) struct Vigil {
    guarded: Vec<Guarded>,
    /// None of them is there.
    waits: bool,
    /// The disks as this agent has found them at its start.
    found: Vec<Found>,
    standing: Standing,
    owner: Option<PublicKey>,
    info: watch::Sender<NodeInfo>,
    engine: mpsc::Sender<Request>,
    /// Why nothing can be done, while no pool answers.
    silence: watch::Sender<Option<String>>,
}

impl Vigil {
    pub(crate) fn of(
        context: &NodeContext,
        engine: mpsc::Sender<Request>,
        silence: watch::Sender<Option<String>>,
    ) -> Self {
        Self {
            guarded: context.guarded.clone(),
            waits: context.waits.is_some(),
            found: context.found.clone(),
            standing: context.standing.clone(),
            owner: context.owner,
            info: context.info.clone(),
            engine,
            silence,
        }
    }

    pub(crate) async fn keep(self) {
        let events = subscribe();
        let events = events
            .inspect_err(|e| log::error!("disks are looked at without events: {e:#}"))
            .ok();
        let mut memory = Memory::default();
        if self.waits {
            memory.lost = (0..self.guarded.len()).collect();
        }
        memory.seen = self.found.iter().map(|(disk, _)| called(disk)).collect();
        let mut names = memory.seen.clone();
        let try_again = Instant::now() + TRY_AGAIN;
        let (mut pools, mut spares) = (Asked(BTreeMap::new()), Asked(BTreeMap::new()));
        let (mut hanging, mut arrived) = (Asked(BTreeMap::new()), BTreeMap::new());
        let listing = Rc::new(Notify::new());
        let list = self.publisher(listing.clone());
        tokio::task::spawn_local(list);
        loop {
            let disks = match storage::disk::inventory(Path::new("/sys")) {
                Ok(disks) => disks,
                // It says of no disk that it is gone.
                Err(error) => {
                    log::error!("cannot look at the disks: {}", sys::error::chain(&error));
                    self.next(events.as_ref()).await;
                    continue;
                }
            };
            let until = Instant::now() + LOOK_MAX;
            let health = self.health(&memory, &mut pools, &disks, until).await;
            for called in answers_again(&mut hanging, &disks, until).await {
                // It is looked at as one that has come.
                memory.seen.remove(&called);
            }
            if self.waits && Instant::now() > try_again {
                forget_awaited(&mut memory, &self.guarded, &disks, &GivenUp::read());
            }
            let spare = self.spare(&memory, &mut spares, &disks, until).await;
            let spare = self.rest(&mut arrived, spare, &disks);
            let turn = decide(&mut memory, &self.guarded, &health, &spare);
            if let Some(Turn::Join(names)) = &turn {
                // Nobody has pulled one that is tried again.
                let came = |disk: &&Disk| names.contains(&disk.name) && !self.tries_again(disk);
                note_coming(disks.iter().filter(came));
            }
            let now: BTreeSet<_> = disks.iter().map(called).collect();
            if now != names {
                let there: Vec<Mark> = disks.iter().map(Mark::of).collect();
                given_up::retain(&there);
                listing.notify_one();
                names = now;
            }
            if let Some(turn) = turn {
                // Fails only when the loop has ended.
                let _ = self.engine.send(Request::Disks { turn }).await;
            }
            self.next(events.as_ref()).await;
        }
    }

    /// It was there at this agent's start, which could not use it.
    fn tries_again(&self, disk: &Disk) -> bool {
        self.waits && self.found.iter().any(|(found, _)| found.name == disk.name)
    }

    async fn health(
        &self,
        memory: &Memory,
        asked: &mut Asked<usize, Health>,
        disks: &[Disk],
        until: Instant,
    ) -> Vec<Health> {
        let kept = self.guarded.iter().enumerate();
        let kept = kept.filter(|(at, _)| !memory.lost.contains(at));
        for (at, pool) in kept {
            let (pool, disks) = (pool.clone(), disks.to_vec());
            asked.ask(at, move || health(&pool, &disks));
        }
        let mut answers = asked.answers(until).await;
        let now = Instant::now();
        let kept: BTreeSet<usize> = (0..self.guarded.len())
            .filter(|at| !memory.lost.contains(at))
            .collect();
        let quiet = asked.silent(now, QUIET);
        self.tell_silent(&quiet, quiet == kept);
        let hang = hang(&asked.silent(now, HANGS), &answers);
        let all = 0..self.guarded.len();
        all.map(|at| match (answers.remove(&at), hang.contains(&at)) {
            (Some(health), _) => health,
            (None, true) => Health::Hanging,
            (None, false) => Health::Fine,
        })
        .collect()
    }

    /// Where none of them answers nothing more is done about it: an agent that began anew would have nothing to begin with.
    fn tell_silent(&self, silent: &BTreeSet<usize>, all: bool) {
        let said: Vec<_> = silent
            .iter()
            .map(|at| {
                let Guarded { disk, serial, .. } = &self.guarded[*at];
                let seconds = QUIET.as_secs();
                format!("the disk {disk} (serial {serial:?}) has not answered for {seconds} seconds and more: what uses it waits")
            })
            .collect();
        let said = (!said.is_empty()).then(|| said.join("; "));
        match &said {
            None => troubles::over(&self.info, Code::PoolSilent),
            Some(said) => troubles::say(&self.info, Code::PoolSilent, said),
        }
        let why = said
            .filter(|_| all)
            .map(|said| format!("{said}, and nothing is accepted until it answers"));
        self.silence.send_if_modified(|silence| {
            let new = *silence != why;
            *silence = why;
            new
        });
    }

    /// Disks that are in no use. Those that have not answered are none yet.
    async fn spare(
        &self,
        memory: &Memory,
        asked: &mut Asked<Called, Kind>,
        disks: &[Disk],
        until: Instant,
    ) -> Vec<Spare> {
        // What was lost and is back is looked at as any other.
        let kept = self.guarded.iter().enumerate();
        let kept: Vec<&Guarded> = kept
            .filter(|(at, _)| !memory.lost.contains(at))
            .map(|(_, pool)| pool)
            .collect();
        let used = |disk: &&Disk| {
            let mut kept = kept.iter();
            !kept.any(|pool| pool.is_on(disk))
        };
        let spare: Vec<&Disk> = disks.iter().filter(used).collect();
        let place = Position {
            standing: self.standing.clone(),
            owner: self.owner,
            waits: self.waits,
            arrays: kept.iter().filter_map(|pool| pool.array.clone()).collect(),
        };
        for disk in spare.iter().filter(|d| !memory.seen.contains(&called(d))) {
            let (disk, place, all) = ((*disk).clone(), place.clone(), disks.to_vec());
            asked.ask(called(&disk), move || kind(disk, &place, &all));
        }
        let mut answers = asked.answers(until).await;
        let judged = |disk: &&Disk| {
            let called = called(disk);
            let kind = match memory.seen.contains(&called) {
                // It was judged when it came.
                true => Some(Kind::Other),
                false => answers.remove(&called),
            };
            let (name, serial) = called;
            Some(Spare {
                kind: kind?,
                name,
                serial,
                rests: false,
            })
        };
        spare.iter().filter_map(judged).collect()
    }

    /// Marks those that came and went too often, and says so.
    fn rest(
        &self,
        arrived: &mut BTreeMap<Called, u64>,
        mut spare: Vec<Spare>,
        disks: &[Disk],
    ) -> Vec<Spare> {
        let (flaps, now) = (Flaps::read(), since_boot_ms());
        arrived.retain(|called, _| disks.iter().any(|disk| self::called(disk) == *called));
        let mut said = Vec::new();
        let used = spare.iter_mut().filter(|spare| spare.kind != Kind::Other);
        for spare in used {
            let called = (spare.name.clone(), spare.serial.clone());
            let since = *arrived.entry(called).or_insert(now);
            let mark = disks
                .iter()
                .find(|disk| disk.name == spare.name)
                .map(Mark::of);
            let Some((stay, times)) = mark.and_then(|mark| flaps.stay(&mark, now)) else {
                continue;
            };
            let left = stay.saturating_sub(Duration::from_millis(now.saturating_sub(since)));
            spare.rests = !left.is_zero();
            if spare.rests {
                let Spare { name, serial, .. } = spare;
                let minutes = stay.as_secs() / 60;
                said.push(format!(
                    "the disk {name} (serial {serial:?}) has come {times} times in half an hour: it is used when it has stayed for {minutes} minutes"
                ));
            }
        }
        match said.is_empty() {
            true => troubles::over(&self.info, Code::DiskFlaps),
            false => troubles::say(&self.info, Code::DiskFlaps, said.join("; ")),
        }
        spare
    }

    /// What the API and the console list, as soon as all disks have answered, whenever they are others.
    fn publisher(&self, again: Rc<Notify>) -> impl Future<Output = ()> + use<> {
        let (owner, standing, info) = (self.owner, self.standing.clone(), self.info.clone());
        async move {
            loop {
                again.notified().await;
                let standing = standing.clone();
                let listed = tokio::task::spawn_blocking(move || {
                    let disks = storage::disk::inventory(Path::new("/sys")).ok()?;
                    let found = disks::contents("show", disks::LIST_WAIT, disks);
                    Some(disks::reports(&found, owner.as_ref(), &standing))
                });
                if let Ok(Some(disks)) = listed.await {
                    info.send_modify(|info| info.disks = disks);
                }
            }
        }
    }

    /// Until the kernel says that a block device came or went, or it is time.
    async fn next(&self, events: Option<&AsyncFd<Uevents>>) {
        let Some(events) = events else {
            return tokio::time::sleep(LOOK_EVERY).await;
        };
        let told = async {
            loop {
                let Ok(mut ready) = events.readable().await else {
                    return std::future::pending().await;
                };
                let of_disks = drain(events.get_ref());
                ready.clear_ready();
                if of_disks {
                    return;
                }
            }
        };
        // Safe to drop: what waits in the socket stays there.
        if tokio::time::timeout(LOOK_EVERY, told).await.is_ok() {
            tokio::time::sleep(SETTLE).await;
            drain(events.get_ref());
        }
    }
}

#[expect(
    deprecated,
    reason = "`register` asks the caller to vouch that the descriptor stays open and the same; `Uevents` owns it"
)]
fn subscribe() -> anyhow::Result<AsyncFd<Uevents>> {
    Ok(AsyncFd::new(Uevents::subscribe()?)?)
}

/// Reads all events that wait. Whether one was of a disk.
fn drain(events: &Uevents) -> bool {
    let mut of_disks = false;
    while let Ok(Some(event)) = events.next() {
        of_disks |= event.subsystem == "block" && event.devpath.contains("/block/");
    }
    of_disks
}

/// Disks that are waited for are looked at as if they had come, but for those that were given up.
fn forget_awaited(memory: &mut Memory, guarded: &[Guarded], disks: &[Disk], given_up: &GivenUp) {
    let awaited = |disk: &&Disk| {
        let mut guarded = guarded.iter();
        !disk.serial.is_empty() && guarded.any(|pool| pool.serial == disk.serial)
    };
    let well = |disk: &&Disk| given_up.ill(&Mark::of(disk)).is_none();
    for disk in disks.iter().filter(awaited).filter(well) {
        memory.seen.remove(&called(disk));
    }
}

/// For the agents that come: these disks are used anew.
fn note_coming<'a>(disks: impl Iterator<Item = &'a Disk>) {
    let mut flaps = Flaps::read();
    for disk in disks {
        flaps.came(&Mark::of(disk), since_boot_ms());
    }
    flaps.write();
}

fn since_boot_ms() -> u64 {
    u64::try_from(sys::clock::since_boot().as_millis()).unwrap_or(u64::MAX)
}

/// Those that are given up, where there is one that does not hang.
fn hang(silent: &BTreeSet<usize>, answers: &BTreeMap<usize, Health>) -> BTreeSet<usize> {
    match answers.values().any(|health| *health == Health::Fine) {
        true => silent.clone(),
        false => BTreeSet::new(),
    }
}

/// Disks that were given up because they hung, and answer again.
async fn answers_again(
    asked: &mut Asked<Called, Option<Mark>>,
    disks: &[Disk],
    until: Instant,
) -> Vec<Called> {
    let given_up = GivenUp::read();
    for disk in disks {
        let mark = Mark::of(disk);
        if given_up.ill(&mark) == Some(Ill::Hangs) {
            let device = disk.device();
            asked.ask(called(disk), move || {
                // What was read before is in memory: only a flush is asked of the disk itself.
                let flushed = File::open(device).and_then(|file| file.sync_all());
                flushed.is_ok().then_some(mark)
            });
        }
    }
    let answers = asked.answers(until).await;
    let well = answers
        .into_iter()
        .filter_map(|(called, mark)| Some((called, mark?)));
    let forgive = |(called, mark): (Called, Mark)| {
        log::info!("the disk {} answers again", called.0);
        given_up::forgive(&mark);
        called
    };
    well.map(forgive).collect()
}

/// What a new disk is judged by.
#[derive(Debug, Clone)]
struct Position {
    standing: Standing,
    owner: Option<PublicKey>,
    waits: bool,
    /// Mirrors that pools in use lie on.
    arrays: Vec<String>,
}

fn called(disk: &Disk) -> Called {
    (disk.name.clone(), disk.serial.clone())
}

fn kind(disk: Disk, place: &Position, disks: &[Disk]) -> Kind {
    let left = place.standing.left.iter().any(|l| l.disk == disk.name);
    let (disk, content) = disks::content(disk);
    // The owner puts it in for one that is lost, or soon will be.
    let reserved = |disk: &Disk| {
        let mut arrays = place.arrays.iter();
        arrays.any(|array| mirrors::takes(array, disks, disk))
    };
    match (content, place.owner) {
        (
            Content::Pool {
                owner: theirs,
                stage,
                ..
            },
            Some(owner),
        ) if theirs == owner_mark(&owner) => match stage {
            // Halves are taken back into their mirrors by `mirror`, or wait for the next boot.
            _ if !place.waits && mirrors::is_half(&disk) => Kind::Other,
            Stage::Live => Kind::Pool,
            Stage::Made if disk.objection().is_none() && !reserved(&disk) => Kind::Blank,
            Stage::Made => Kind::Other,
        },
        (Content::Blank, Some(_))
            if disk.objection().is_none() && disk.size_bytes >= POOL_MIN_BYTES && !left =>
        {
            match reserved(&disk) {
                true => Kind::Other,
                false => Kind::Blank,
            }
        }
        (Content::Blank | Content::Pool { .. } | Content::Foreign(_), _) => Kind::Other,
    }
}

fn health(pool: &Guarded, disks: &[Disk]) -> Health {
    let there = match &pool.array {
        Some(array) => mirrors::look(array, disks).is_some_and(|mirror| mirror.has_disk()),
        None => match disks.iter().find(|disk| pool.is_on(disk)) {
            Some(disk) if disk.read_only => {
                return Health::Failing("it has become read-only".to_owned());
            }
            found => found.is_some(),
        },
    };
    if !there {
        return Health::Gone;
    }
    match statvfs(&pool.mountpoint) {
        Ok(stat) if stat.flags().contains(FsFlags::ST_RDONLY) => {
            return Health::Failing("its file system has become read-only".to_owned());
        }
        Ok(_) => {}
        Err(errno) => return Health::Failing(errno.desc().to_owned()),
    }
    match flush(&pool.mountpoint) {
        Ok(()) => Health::Fine,
        Err(error) => Health::Failing(format!("it answers with an error: {error}")),
    }
}

/// On a file system that has shut down, and on a disk that takes nothing any more, this fails.
pub(crate) fn flush(mountpoint: &Path) -> std::io::Result<()> {
    File::open(mountpoint.join(WITNESS)).and_then(|file| file.sync_all())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guarded(serials: &[&str]) -> Vec<Guarded> {
        let one = |serial: &&str| Guarded {
            mountpoint: PathBuf::from("/pool"),
            disk: format!("vd{serial}"),
            serial: (*serial).to_owned(),
            ..Guarded::default()
        };
        serials.iter().map(one).collect()
    }

    fn spare(serial: &str, kind: Kind) -> Spare {
        Spare {
            name: format!("vd{serial}"),
            serial: serial.to_owned(),
            kind,
            rests: false,
        }
    }

    use Health::{Fine, Gone};

    #[test]
    fn a_pool_is_lost_once_and_stays_lost() {
        let (mut memory, pools) = (Memory::default(), guarded(&["a", "b"]));
        assert_eq!(decide(&mut memory, &pools, &[Fine, Fine], &[]), None);
        let lost = Some(Turn::Lost([(1, Gone)].into()));
        assert_eq!(decide(&mut memory, &pools, &[Fine, Gone], &[]), lost);
        assert_eq!(decide(&mut memory, &pools, &[Fine, Gone], &[]), None);
        // Its file system does not come back by itself.
        assert_eq!(decide(&mut memory, &pools, &[Fine, Fine], &[]), None);
    }

    #[test]
    fn a_disk_that_does_not_say_its_serial_any_more_is_not_gone() {
        use crate::node::disks::a_disk as disk;
        let pool = &guarded(&["a"])[0];
        assert!(pool.is_on(&disk("vda", "a")) && pool.is_on(&disk("vda", "")));
        assert!(!pool.is_on(&disk("vda", "b")) && !pool.is_on(&disk("vdb", "a")));
    }

    #[test]
    fn what_a_boot_would_use_joins_once_and_all_else_is_listed() {
        let (mut memory, pools) = (Memory::default(), guarded(&["a"]));
        let mut ask = |spare: &[Spare]| decide(&mut memory, &pools, &[Fine], spare);
        let other = spare("x", Kind::Other);
        assert_eq!(ask(std::slice::from_ref(&other)), None);
        let blank = spare("b", Kind::Blank);
        let both = [other, blank];
        let join = || Some(Turn::Join(vec!["vdb".to_owned()]));
        assert_eq!(ask(&both), join());
        assert_eq!(ask(&both), None, "once is enough");
        assert_eq!(ask(&[]), None);
        assert_eq!(ask(&both), join(), "it was away and is new again");
    }

    #[test]
    fn a_node_that_has_lost_all_pools_takes_only_its_own_disk() {
        let (mut memory, pools) = (Memory::default(), guarded(&["a", ""]));
        let mut ask = |spare: &[Spare]| decide(&mut memory, &pools, &[Gone, Gone], spare);
        assert!(matches!(ask(&[]), Some(Turn::Lost(_))));
        for other in [
            spare("b", Kind::Blank),
            spare("c", Kind::Pool),
            spare("", Kind::Pool),
            spare("a", Kind::Other),
        ] {
            assert_eq!(ask(std::slice::from_ref(&other)), None, "{other:?}");
            assert_eq!(ask(&[]), None);
        }
        let join = Some(Turn::Join(vec!["vda".to_owned()]));
        assert_eq!(ask(&[spare("a", Kind::Pool)]), join);
    }

    #[test]
    fn a_disk_that_is_waited_for_and_could_not_be_used_is_tried_again() {
        use crate::node::disks::a_disk as disk;
        let (mut memory, pools) = (Memory::default(), guarded(&["a", ""]));
        memory.lost = [0, 1].into();
        let there = [disk("vda", "a"), disk("vdb", "b"), disk("vdc", "")];
        memory.seen = there.iter().map(called).collect();
        let back = [spare("a", Kind::Pool), spare("b", Kind::Pool)];
        let ask = |memory: &mut Memory| decide(memory, &pools, &[Gone, Gone], &back);
        assert_eq!(ask(&mut memory), None);
        forget_awaited(&mut memory, &pools, &there, &GivenUp::default());
        let join = Some(Turn::Join(vec!["vda".to_owned()]));
        assert_eq!(ask(&mut memory), join);
    }

    #[test]
    fn a_disk_that_came_too_often_is_used_once_it_has_rested() {
        let (mut memory, pools) = (Memory::default(), guarded(&["a"]));
        let mut disk = spare("b", Kind::Pool);
        disk.rests = true;
        let mut ask = |disk: &Spare| {
            let disk = std::slice::from_ref(disk);
            decide(&mut memory, &pools, &[Fine], disk)
        };
        assert_eq!((ask(&disk), ask(&disk)), (None, None));
        disk.rests = false;
        assert_eq!(ask(&disk), Some(Turn::Join(vec!["vdb".to_owned()])));
        assert_eq!(ask(&disk), None);
    }

    #[tokio::test]
    async fn a_disk_that_hangs_is_asked_once_and_keeps_nobody_from_the_others_answers() {
        let mut asked = Asked(BTreeMap::new());
        let (release, hangs) = std::sync::mpsc::channel::<()>();
        asked.ask("hangs", move || {
            let _ = hangs.recv();
            1
        });
        asked.ask("hangs", || unreachable!("it has not answered yet"));
        let asked_at = Instant::now();
        assert_eq!(asked.answers(asked_at).await, [].into());
        assert!(asked.silent(asked_at, QUIET).is_empty());
        let later = asked_at + 2 * HANGS;
        assert_eq!(asked.silent(later, HANGS), ["hangs"].into());
        drop(release);
        assert_eq!(asked.answers(later).await, [("hangs", 1)].into());
        assert!(asked.silent(later, QUIET).is_empty());
    }

    #[test]
    fn a_pool_whose_disk_hangs_is_lost_where_another_answers_and_waited_for_where_none_does() {
        let silent: BTreeSet<usize> = [0].into();
        assert_eq!(hang(&silent, &[(1, Fine)].into()), silent);
        assert!(hang(&silent, &BTreeMap::new()).is_empty());
        // Nothing can be begun anew with one that fails.
        assert!(hang(&silent, &[(1, Gone)].into()).is_empty());
    }
}
