//! Mirrors as they are on the disks: found, made, started, filled again, and given another disk.
//!
//! Owns: what is written to halves, and the kernel's arrays of this node. Refuses: deciding what a half is
//! ([`crate::mirror`] does), a partition that is not ours, and to add a half to an array that its superblock does not name.
//!
//! A mirror lies between a pool's partitions and what lies on one partition else: encryption, file system. To the rest
//! of this crate the pool is on one of its disks; the others are its mates.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use sys::md;
use types::PublicKey;

use crate::crypt;
use crate::disk::Disk;
use crate::mirror::{
    BITMAP_AT, DATA_AT, Half, HalfError, Part, SUPER_AT, SUPER_BYTES, judge, pairs,
};
use crate::plan::{LeftAlone, POOL_MIN_BYTES, Standing};
use crate::pool::{self, PoolError};
use crate::probe::{self, Content, Stage, owner_mark};

/// How disks that are made pools are laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Layout {
    /// Each is a pool of its own.
    #[default]
    Single,
    /// Each two of one class and of like size are one pool.
    Mirror,
}

#[derive(Debug, thiserror::Error)]
pub enum MirrorError {
    #[error("read the mirror's superblock on {disk}")]
    Read { disk: String, source: io::Error },
    #[error("write the mirror's superblock on {disk}")]
    Write { disk: String, source: io::Error },
    #[error("draw an id for the mirror")]
    Random { source: sys::error::Error },
    #[error("make a partition for the mirror on {disk}")]
    Partition {
        disk: String,
        source: Box<PoolError>,
    },
    #[error("the mirror on {disk}: {source}")]
    Half { disk: String, source: HalfError },
    #[error(
        "{disk} is too small to be half of this mirror, or the mirror has replaced too many disks"
    )]
    NoFit { disk: String },
    #[error("{disk} is in no mirror that runs")]
    NoMirror { disk: String },
    #[error("the mirror is being filled: replace {disk} when it is whole")]
    Busy { disk: String },
    #[error("replace {disk}")]
    Kernel {
        disk: String,
        source: sys::error::Error,
    },
}

type Found = (Disk, Content);

/// Disks as the node chooses among them: of each mirror one.
#[derive(Debug)]
pub(crate) struct Mirrored {
    pub(crate) found: Vec<Found>,
    pub(crate) left: Vec<LeftAlone>,
    pub(crate) problems: Vec<String>,
    /// Halves that have the mark of a pool that is being made, and the disk that the pool is known by.
    pub(crate) begun: Vec<(Disk, String)>,
}

/// What a mirror has for another disk.
struct Place {
    /// Least size of the disk.
    bytes: u64,
    /// A half is not there.
    lacks: bool,
}

/// What lies on a partition of ours.
fn half_on(disk: &Disk) -> io::Result<Option<Result<Half, HalfError>>> {
    let file = File::open(disk.device())?;
    let partition = probe::our_partition(&file, disk.size_bytes, disk.block_bytes)?;
    let Some(partition) = partition else {
        return Ok(None);
    };
    let block = read_past_cache(&disk.device(), partition.start + SUPER_AT)?;
    Ok(Half::parse(&block))
}

/// From the disk, not from what the kernel remembers of it: its driver writes superblocks past that.
fn read_past_cache(device: &Path, at: u64) -> io::Result<[u8; SUPER_BYTES]> {
    /// open(2): straight from the device, into memory that is aligned as its blocks are.
    const O_DIRECT: i32 = 0o40000;
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(O_DIRECT)
        .open(device)?;
    let mut room = vec![0; 2 * SUPER_BYTES];
    let aligned = room.as_ptr().align_offset(SUPER_BYTES);
    let bytes = room
        .get_mut(aligned..aligned + SUPER_BYTES)
        .ok_or(io::ErrorKind::OutOfMemory)?;
    file.read_exact_at(bytes, at)?;
    let block = bytes.first_chunk().copied();
    block.ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
}

/// Puts together what is there, after making what is wished of blank disks.
pub(crate) fn start(found: &[Found], owner: &PublicKey, layout: Layout) -> Mirrored {
    let mut found = found.to_vec();
    let mut problems = Vec::new();
    if layout == Layout::Mirror {
        problems.extend(make_pairs(&mut found, owner));
    }
    let mut mirrored = Mirrored {
        found: Vec::new(),
        left: Vec::new(),
        problems,
        begun: Vec::new(),
    };
    let mut sets: BTreeMap<[u8; 16], Vec<(Found, Half)>> = BTreeMap::new();
    let mark = owner_mark(owner);
    for (disk, content) in found {
        let ours = matches!(&content, Content::Pool { owner, .. } if *owner == mark);
        let half = match ours {
            true => half_on(&disk),
            false => Ok(None),
        };
        match half {
            Ok(Some(Ok(half))) => sets
                .entry(half.set)
                .or_default()
                .push(((disk, content), half)),
            // One that is being made has no superblock worth the name.
            Ok(Some(Err(_))) if is_begun(&content) => mirrored.found.push((disk, content)),
            Ok(Some(Err(error))) => mirrored.leave(&disk, format!("half of a mirror: {error}")),
            Ok(None) => mirrored.found.push((disk, content)),
            // Of a half it would be half the truth, and repaired as if it were all of it.
            Err(error) => mirrored.leave(
                &disk,
                format!("whether its pool is half of a mirror cannot be read ({error}): replace the disk if it stays so"),
            ),
        }
    }
    let mut alone = std::mem::take(&mut mirrored.found);
    let mut places = Vec::new();
    for halves in sets.into_values() {
        places.extend(mirrored.start_one(halves));
    }
    // The owner puts in a disk for one that is lost, or soon will be: it is not to become a pool of its own first.
    let is_open = |place: &&Place| place.lacks || layout == Layout::Mirror;
    let least = places.iter().filter(is_open).map(|place| place.bytes).min();
    alone.retain(|(disk, content)| {
        let fits = least.is_some_and(|bytes| disk.size_bytes >= bytes);
        // The power may have gone when it had its partition and was no half yet.
        let is_empty = *content == Content::Blank || is_begun(content);
        !(fits && is_empty && layout_keeps(disk))
    });
    mirrored.found.extend(alone);
    mirrored.found.sort_by(|(a, _), (b, _)| a.name.cmp(&b.name));
    mirrored
}

/// An array of that name may be there without them: its disks were pulled, and these are what came back. It has nothing any
/// more, and as long as it is there its disks are not to be taken for pools of their own.
fn run_over(array: &str, members: &[PathBuf]) -> sys::Result<()> {
    let runs = |member: &PathBuf| md::over(member).is_some_and(|over| over == array);
    if members.iter().any(runs) {
        return Ok(());
    }
    if md::see(array).is_some() {
        md::stop(array)?;
    }
    md::start(array, members).map(drop)
}

/// What disks that came while the node runs may become pools, beside the disks that pools in use are known by: no halves, which
/// are taken back by [`heal`] or wait for the next boot, and no blank one that a mirror has a place for.
pub(crate) fn others(found: &[Found], used: &[String]) -> Vec<Found> {
    let disks: Vec<Disk> = found.iter().map(|(disk, _)| disk.clone()).collect();
    let in_use = disks.iter().filter(|disk| used.contains(&disk.name));
    let arrays: Vec<_> = in_use
        .filter_map(|disk| md::over(&disk.partition_device(1)))
        .collect();
    let is_for_a_mirror = |disk: &Disk| arrays.iter().any(|array| takes(array, &disks, disk));
    let may = |(disk, content): &&Found| match content {
        _ if used.contains(&disk.name) => true,
        Content::Blank => !is_for_a_mirror(disk),
        Content::Pool { .. } if is_begun(content) && is_for_a_mirror(disk) => false,
        Content::Pool { .. } => !is_half(disk),
        Content::Foreign(_) => true,
    };
    found.iter().filter(may).cloned().collect()
}

/// Of a disk with a pool of ours: it is one of several of that pool, or cannot be read.
pub fn is_half(disk: &Disk) -> bool {
    !matches!(half_on(disk), Ok(None))
}

/// The mirror has a place for another disk, whether or not the kernel has heard of it.
fn lacks(array: &str, disks: &[Disk]) -> bool {
    look(array, disks).is_none_or(|mirror| {
        let works = |(_, state): &&(String, State)| matches!(state, State::InStep | State::Filling);
        mirror.degraded || mirror.members.iter().filter(works).count() < 2
    })
}

/// A blank disk that came while the node runs is for this mirror: it lacks a half, or the disk can take the place of one.
pub fn takes(array: &str, disks: &[Disk], blank: &Disk) -> bool {
    let fits = |seen: md::Seen| {
        seen.half_bytes > 0 && blank.size_bytes >= seen.half_bytes.saturating_add(DATA_AT)
    };
    lacks(array, disks) || md::see(array).is_some_and(fits)
}

fn layout_keeps(disk: &Disk) -> bool {
    disk.objection().is_none()
}

fn is_begun(content: &Content) -> bool {
    matches!(
        content,
        Content::Pool {
            stage: Stage::Made,
            ..
        }
    )
}

impl Mirrored {
    fn leave(&mut self, disk: &Disk, why: String) {
        let disk = disk.name.clone();
        self.left.push(LeftAlone { disk, why });
    }

    /// What it has for another disk; `None` where it does not run.
    fn start_one(&mut self, halves: Vec<(Found, Half)>) -> Option<Place> {
        let all: Vec<Half> = halves.iter().map(|(_, half)| half.clone()).collect();
        let Some(parts) = judge(&all) else {
            for ((disk, _), _) in &halves {
                let why = "half of a mirror that was being filled: the pool is on the other disk, which is not there";
                self.leave(disk, why.to_owned());
            }
            return None;
        };
        let (mut members, mut stale, mut begun) = (Vec::new(), Vec::new(), Vec::new());
        let mut pool: Option<Found> = None;
        let live = halves.iter().zip(&parts).any(|(((_, content), _), part)| {
            matches!(part, Part::Truth | Part::Half) && !is_begun(content)
        });
        for (((disk, content), _), part) in halves.into_iter().zip(parts) {
            if let Some(why) = part.because() {
                self.leave(&disk, why.to_owned());
                self.problems.push(format!("{}: {why}", disk.name));
                continue;
            }
            let partition = partition_of(&disk, &content);
            match part {
                Part::Truth | Part::Half => members.push(partition),
                _ => stale.push(partition),
            }
            if is_begun(&content) {
                begun.push(disk.clone());
            }
            if part == Part::Truth {
                pool = Some((disk, content));
            }
        }
        let (disk, content) = pool?;
        let marked = begun.into_iter().map(|half| (half, disk.name.clone()));
        self.begun.extend(marked);
        let lacks = members.len() + stale.len() < 2;
        let array = all[0].array();
        if let Err(error) = run_over(&array, &members) {
            self.leave(&disk, sys::error::chain(&error));
            return None;
        }
        for partition in stale {
            if let Err(error) = md::add(&array, &partition) {
                self.problems.push(sys::error::chain(&error));
            }
        }
        let content = match (live, content) {
            (
                true,
                Content::Pool {
                    owner, partition, ..
                },
            ) => Content::Pool {
                owner,
                stage: Stage::Live,
                partition,
            },
            (_, content) => content,
        };
        self.found.push((disk, content));
        let half_bytes = all[0].size * crate::mirror::SECTOR;
        Some(Place {
            bytes: half_bytes.saturating_add(DATA_AT),
            lacks,
        })
    }
}

fn partition_of(disk: &Disk, content: &Content) -> PathBuf {
    match content {
        Content::Pool { partition, .. } => disk.partition_device(*partition),
        Content::Blank | Content::Foreign(_) => disk.partition_device(1),
    }
}

/// What went wrong, for people.
fn make_pairs(found: &mut [Found], owner: &PublicKey) -> Vec<String> {
    let mut problems = Vec::new();
    for class in [types::node::DiskClass::Ssd, types::node::DiskClass::Hdd] {
        let free: Vec<usize> = (0..found.len())
            .filter(|at| found[*at].0.class == class && is_free(&found[*at], found, owner))
            .collect();
        let sizes: Vec<u64> = free.iter().map(|at| found[*at].0.size_bytes).collect();
        for [a, b] in pairs(&sizes) {
            let two = [free[a], free[b]];
            match make_pair(two.map(|at| &found[at].0), owner) {
                Ok(contents) => {
                    for (at, content) in two.into_iter().zip(contents) {
                        found[at].1 = content;
                    }
                }
                Err(error) => problems.push(sys::error::chain(&error)),
            }
        }
    }
    problems
}

/// Whether nothing on it is of worth: it is blank, or a mirror was begun with it, and it is no half yet or its other half is not there.
fn is_free((disk, content): &Found, all: &[Found], owner: &PublicKey) -> bool {
    if disk.objection().is_some() || disk.size_bytes < POOL_MIN_BYTES {
        return false;
    }
    let begun = |content: &Content| {
        is_begun(content)
            && matches!(content, Content::Pool { owner: theirs, .. } if *theirs == owner_mark(owner))
    };
    if *content == Content::Blank {
        return true;
    }
    let set_of = |disk: &Disk| half_on(disk).ok().flatten()?.ok().map(|half| half.set);
    begun(content)
        && match half_on(disk) {
            Ok(Some(Ok(half))) => {
                let other = |(other, theirs): &&Found| {
                    other.name != disk.name
                        && matches!(theirs, Content::Pool { .. })
                        && set_of(other) == Some(half.set)
                };
                all.iter().find(other).is_none()
            }
            // It has its partition, and was to be a half.
            Ok(Some(Err(_))) => true,
            Ok(None) | Err(_) => false,
        }
}

fn draw() -> Result<[u8; 16], MirrorError> {
    let mut id = [0; 16];
    sys::random::fill(&mut id).map_err(|source| MirrorError::Random { source })?;
    Ok(id)
}

fn make_pair(disks: [&Disk; 2], owner: &PublicKey) -> Result<[Content; 2], MirrorError> {
    let (set, ids) = (draw()?, [draw()?, draw()?]);
    let [a, b] = disks;
    let (at_a, at_b) = (lay_out(a, owner)?, lay_out(b, owner)?);
    let halves = Half::pair(set, ids, [at_a.bytes, at_b.bytes]);
    for ((disk, place), half) in disks.iter().zip([&at_a, &at_b]).zip(&halves) {
        write(disk, place, half)?;
    }
    let content = |place: &probe::Partition| Content::Pool {
        owner: owner_mark(owner),
        stage: Stage::Made,
        partition: place.number,
    };
    Ok([content(&at_a), content(&at_b)])
}

/// Our partition on a blank disk, with the mark of a pool that is being made.
fn lay_out(disk: &Disk, owner: &PublicKey) -> Result<probe::Partition, MirrorError> {
    pool::partition(disk, owner).map_err(|source| MirrorError::Partition {
        disk: disk.name.clone(),
        source: Box::new(source),
    })?;
    let read = |source| MirrorError::Read {
        disk: disk.name.clone(),
        source,
    };
    let file = File::open(disk.device()).map_err(read)?;
    let found = probe::our_partition(&file, disk.size_bytes, disk.block_bytes).map_err(read)?;
    found.ok_or_else(|| read(io::ErrorKind::InvalidData.into()))
}

/// The bitmap first: a superblock names it.
fn write(disk: &Disk, place: &probe::Partition, half: &Half) -> Result<(), MirrorError> {
    let written = OpenOptions::new()
        .write(true)
        .open(disk.device())
        .and_then(|file| {
            file.write_all_at(&half.bitmap(), place.start + BITMAP_AT)?;
            file.sync_all()?;
            file.write_all_at(&half.encode(), place.start + SUPER_AT)?;
            file.sync_all()
        });
    written.map_err(|source| MirrorError::Write {
        disk: disk.name.clone(),
        source,
    })
}

/// The device on which a pool lies whose partition this is: the mirror, where it is a half of one that runs.
pub(crate) fn over(partition: &Path) -> PathBuf {
    md::over(partition).map_or_else(|| partition.to_owned(), |array| md::node(&array))
}

/// Where the pool begins on this partition, as long as no mirror runs over it.
pub(crate) fn data_at(partition: &File) -> u64 {
    let mut block = [0; SUPER_BYTES];
    let read = partition.read_exact_at(&mut block, SUPER_AT);
    match read.is_ok() && Half::parse(&block).is_some() {
        true => DATA_AT,
        false => 0,
    }
}

/// Partitions beneath a pool's device.
pub(crate) fn beneath(device: &Path) -> Vec<PathBuf> {
    let under = crypt::partition_of(device);
    let names = md::beneath(&under);
    match names.is_empty() {
        true => vec![under],
        false => names
            .iter()
            .map(|name| Path::new("/dev").join(name))
            .collect(),
    }
}

/// Ends the mirror over a disk that is not used: whoever claims the disk needs it for itself.
pub fn release(disk: &Disk) {
    if let Ok(Some(Ok(half))) = half_on(disk) {
        let _ = md::stop(&half.array());
    }
}

/// Ends the mirror that this is, if it is one: both its disks have gone, or what lay on it failed.
pub(crate) fn stop_over(device: &Path) {
    let name = device.file_name().and_then(|name| name.to_str());
    if let Some(name) = name.filter(|name| name.starts_with("md_")) {
        let _ = md::stop(name);
    }
}

/// Name of the array on which the pool lies that is mounted here.
pub fn array_of(mountpoint: &Path) -> Option<String> {
    let mounted = sys::mount::mounted(mountpoint).ok()??;
    let under = crypt::partition_of(Path::new(&mounted.source));
    let name = under.file_name()?.to_str()?;
    name.starts_with("md_").then(|| name.to_owned())
}

/// What a half does now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    InStep,
    Filling,
    /// The kernel has given it up.
    Failed,
    /// Its disk is not there any more.
    Gone,
}

/// A mirror that runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mirror {
    pub array: String,
    /// Kernel names of the disks (or of partitions whose disk is gone), each with its state.
    pub members: Vec<(String, State)>,
    /// Of a hundred, while a half is being filled.
    pub percent: Option<u8>,
    pub degraded: bool,
}

impl Mirror {
    /// A disk of it is there.
    pub fn has_disk(&self) -> bool {
        self.members.iter().any(|(_, state)| *state != State::Gone)
    }
}

/// The mirror as it is now. `None`: it does not run.
pub fn look(array: &str, disks: &[Disk]) -> Option<Mirror> {
    let seen = md::see(array)?;
    let member = |(partition, words): &(String, Vec<String>)| {
        let device = Path::new("/dev").join(partition);
        let disk = disks.iter().find(|disk| disk.has_partition(&device));
        let has = |word: &str| words.iter().any(|w| w == word);
        let state = match disk {
            None => State::Gone,
            Some(_) if has("faulty") => State::Failed,
            Some(_) if has("in_sync") => State::InStep,
            Some(_) => State::Filling,
        };
        let name = disk.map_or_else(|| partition.clone(), |disk| disk.name.clone());
        (name, state)
    };
    let percent = seen.progress.map(|(done, all)| {
        let percent = done.saturating_mul(100) / all.max(1);
        u8::try_from(percent.min(99)).unwrap_or(0)
    });
    Some(Mirror {
        array: array.to_owned(),
        members: seen.members.iter().map(member).collect(),
        percent,
        degraded: seen.degraded > 0,
    })
}

/// Lets go of halves whose disk is gone, and takes back one that has returned. What was done, for people.
pub fn heal(mirror: &Mirror, disks: &[Disk]) -> Vec<String> {
    let mut said = Vec::new();
    for (name, state) in &mirror.members {
        let over = match state {
            State::Gone => true,
            // One that works elsewhere is not tried again and again: it stays given up until the next boot.
            State::Failed => !mirror.degraded,
            State::InStep | State::Filling => false,
        };
        if over {
            let member = member_name(name, disks);
            // It is given up already, or the kernel refuses as it is the last.
            let _ = md::set_state(&mirror.array, &member, "faulty");
            match md::set_state(&mirror.array, &member, "remove") {
                Ok(()) => said.push(format!("{name} is no half of {} any more", mirror.array)),
                Err(error) => said.push(sys::error::chain(&error)),
            }
        }
    }
    if mirror.degraded
        && mirror
            .members
            .iter()
            .all(|(_, state)| *state == State::InStep)
    {
        said.extend(take_back(mirror, disks));
    }
    said
}

fn member_name(name: &str, disks: &[Disk]) -> String {
    let disk = disks.iter().find(|disk| disk.name == name);
    disk.map_or_else(
        || name.to_owned(),
        |disk| {
            let partition = disk.partition_device(1);
            let file = partition.file_name().unwrap_or_default();
            file.to_string_lossy().into_owned()
        },
    )
}

fn take_back(mirror: &Mirror, disks: &[Disk]) -> Option<String> {
    let halves: Vec<(&Disk, Half)> = disks
        .iter()
        .filter_map(|disk| Some((disk, half_on(disk).ok()??.ok()?)))
        .filter(|(_, half)| half.array() == mirror.array)
        .collect();
    let all: Vec<Half> = halves.iter().map(|(_, half)| half.clone()).collect();
    let parts = judge(&all)?;
    let is_member = |disk: &Disk| mirror.members.iter().any(|(name, _)| *name == disk.name);
    let truth = parts.iter().position(|part| *part == Part::Truth)?;
    // The disk on which the pool runs is the truth, whatever another says.
    is_member(halves[truth].0).then_some(())?;
    let back = halves
        .iter()
        .zip(parts)
        .find(|((disk, _), part)| !is_member(disk) && matches!(part, Part::Half | Part::Stale));
    let ((disk, _), _) = back?;
    Some(match md::add(&mirror.array, &disk.partition_device(1)) {
        Ok(()) => format!("{} is a half of {} again", disk.name, mirror.array),
        Err(error) => sys::error::chain(&error),
    })
}

/// What of a node's disks are pools now: mirrors may have lost some and been given others since the boot.
pub fn amend(standing: &Standing, disks: &[Disk]) -> Standing {
    let array = |disk: &Disk| md::over(&disk.partition_device(1));
    let is_half = |name: &String| {
        let disk = disks.iter().find(|disk| disk.name == *name);
        disk.is_some_and(|disk| matches!(half_on(disk), Ok(Some(_))))
    };
    let in_one = |name: &String| disks.iter().any(|d| d.name == *name && array(d).is_some());
    let mut used: Vec<String> = standing.used.clone();
    used.retain(|name| !is_half(name) || in_one(name));
    let left = |disk: &Disk| standing.left.iter().any(|left| left.disk == disk.name);
    for disk in disks {
        if array(disk).is_some() && !used.contains(&disk.name) && !left(disk) {
            used.push(disk.name.clone());
        }
    }
    Standing {
        used,
        left: standing.left.clone(),
    }
}

/// Puts `new`, which is blank, in place of `old`, a serial-bearing disk's kernel name or none where it is away, in a mirror.
pub fn replace(
    array: &str,
    old: Option<&Disk>,
    new: &Disk,
    disks: &[Disk],
    owner: &PublicKey,
) -> Result<(), MirrorError> {
    let none = || MirrorError::NoMirror {
        disk: array.to_owned(),
    };
    let mirror = look(array, disks).ok_or_else(none)?;
    let state_of = |disk: &Disk| {
        let member = mirror.members.iter().find(|(name, _)| *name == disk.name);
        member.map(|(_, state)| *state)
    };
    if mirror
        .members
        .iter()
        .any(|(_, state)| *state == State::Filling)
    {
        return Err(MirrorError::Busy {
            disk: old.map_or(array, |old| &old.name).to_owned(),
        });
    }
    let halves: Vec<Half> = disks
        .iter()
        .filter_map(|disk| half_on(disk).ok()??.ok())
        .filter(|half| half.array() == array)
        .collect();
    let truth = disks
        .iter()
        .filter(|disk| state_of(disk) == Some(State::InStep))
        .find_map(|disk| half_on(disk).ok()??.ok())
        .ok_or_else(none)?;
    let taken: Vec<u16> = halves.iter().map(|half| half.number).collect();
    let place = lay_out(new, owner)?;
    let no_fit = || MirrorError::NoFit {
        disk: new.name.clone(),
    };
    let spare = truth
        .spare(draw()?, place.bytes, &taken)
        .ok_or_else(no_fit)?;
    write(new, &place, &spare)?;
    let kernel = |source| MirrorError::Kernel {
        disk: new.name.clone(),
        source,
    };
    let partition = new.partition_device(place.number);
    // Whoever heals mirrors may have seen the new half first.
    let added = md::add(array, &partition);
    if md::over(&partition).as_deref() != Some(array) {
        added.map_err(kernel)?;
    }
    if let Some(old) = old
        && state_of(old) == Some(State::InStep)
    {
        let member = member_name(&old.name, disks);
        md::set_state(array, &member, "want_replacement").map_err(kernel)?;
    }
    // From here on the next boot takes it for what it is: no pool is made on it.
    pool::end_making(new).map_err(|source| MirrorError::Partition {
        disk: new.name.clone(),
        source: Box::new(source),
    })
}

/// Whether a disk is in some place to be listed by name.
pub fn directories(beside: &Path) -> Vec<String> {
    let entries = fs::read_dir(beside).into_iter().flatten().flatten();
    let mut names: Vec<_> = entries
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pool_of_which_nobody_can_read_whether_it_is_half_of_a_mirror_is_left_alone_and_named() {
        let owner = PublicKey([1; 32]);
        let pool = |stage| Content::Pool {
            owner: owner_mark(&owner),
            stage,
            partition: 1,
        };
        // No such device is there to read from.
        for stage in [Stage::Live, Stage::Made] {
            let found = [
                (crate::disk::any("none0", "A"), pool(stage)),
                (crate::disk::any("none1", "B"), Content::Blank),
            ];
            let mirrored = start(&found, &owner, Layout::Single);
            let names = |name: &str| mirrored.found.iter().any(|(disk, _)| disk.name == name);
            assert!(!names("none0") && names("none1"), "{mirrored:?}");
            let [left] = mirrored.left.as_slice() else {
                panic!("{mirrored:?}");
            };
            assert!(left.told().starts_with("none0: "), "{left:?}");
        }
    }
}
