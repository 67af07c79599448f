//! The ledger: every accepted statement exactly as it was signed, in two copies.
//!
//! Owns: the order of writing, how two copies become one truth again, and how they come to a newer format.
//! Refuses: a format from the future, and to acknowledge what is not synced in both copies.
//!
//! A file is a header (magic, format version, what it needs) and records: length (u32 LE), BLAKE3 of the envelope,
//! the envelope's bytes. Records are only appended. A copy counts up to its first record that is torn
//! or does not match its hash; the truth is the union of both copies. So whatever happens to one
//! copy, nothing is lost that the other holds.
//!
//! Healing a copy may fail: the pool is full, or the disk takes no more. Then what should run is known
//! all the same, and the copy is made again before the next statement is kept.
//!
//! A node with several disks has a pool on each, with two copies in each of up to [`POOLS_MAX`]. A statement is kept once all
//! of them have synced it. A pool that fails on the way is given up until the next opening, which is told, as long as
//! another one has kept the statement; then it is brought up to date from the union. One that does not answer has failed after a
//! while ([`Attempt`]); what it was given may come to it later, and was acknowledged by the others or by nobody.
//!
//! A copy of an older format is healed as a damaged one is: written anew, one rename for each copy. Whatever moment the
//! power goes at, each copy is of one format or the other, and both say the same.
//!
//! Behind its end each copy holds blocks of the disk in reserve. A deployment must leave them there; a stop
//! or a deletion may use them, so that a full pool can be emptied.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use types::Digest;
use types::deployment::Action;

use crate::desired::{Key, Verified, needed};

mod copy;
mod file;
mod header;

use copy::{Copy, State, replace, whole};
use file::{
    Found, Problem, RECORD_HEADER_BYTES, Record, encode, encode_record, read_copy, record_bytes,
};
use header::{FORMAT, HEADER_BYTES, LAYOUT_SINCE};

pub use types::deployment::ENVELOPE_MAX;

/// Files below this are not compacted: reading them takes milliseconds.
const COMPACT_BYTES: u64 = 4 << 20;
/// Longest file, written and read: a node of 1 GiB can hold both copies in memory while it boots.
const FILE_MAX: u64 = 128 << 20;
/// What leads to more running may fill this part. A stop or deletion is shorter than the deployment that
/// it ends: whatever stands in one half can be ended in the other.
const ORDINARY_MAX: u64 = FILE_MAX / 2;
/// Room on the disk that each copy keeps behind its end: a stop or deletion takes less than 1 KiB (one that names
/// volumes, 4 KiB at most), and so every machine that a node has a slot for (4096) can be ended on a full pool.
const RESERVE_BYTES: u64 = 4 << 20;

const FILE: &str = "ledger";
const TEMPORARY: &str = "ledger.new";
/// What a copy was before it was healed, for whoever wants to know what happened.
const DAMAGED: &str = "ledger.damaged";

#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    #[error("{operation} {path}")]
    Io {
        operation: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error(
        "{path} has format {found} and needs Sifr {}, this is Sifr {} and knows up to format {FORMAT}: boot the newer image again, nothing has been changed",
        .needs.as_deref().map_or("of a newer version".to_owned(), |version| format!("{version} or newer")),
        env!("CARGO_PKG_VERSION")
    )]
    Newer {
        path: PathBuf,
        found: u32,
        needs: Option<String>,
    },
    #[error(
        "the ledger has an older format and could not be brought to this one, so that it takes stops and deletions alone: make room on the pool, then try again"
    )]
    Older,
    #[error(
        "{path} is whole but its record {index} is not accepted ({reason}): boot the image that wrote it, nothing has been changed"
    )]
    Unverifiable {
        path: PathBuf,
        index: usize,
        reason: String,
    },
    #[error("an envelope of {0} bytes is over the ledger's limit of {ENVELOPE_MAX}")]
    TooLarge(usize),
    #[error(
        "a write failed and could not be taken back: the ledger must be read again before anything else is kept"
    )]
    Poisoned,
    #[error("the disk beneath {0} does not answer")]
    Silent(PathBuf),
    #[error(
        "the pool has no room for more than stops and deletions: stop and delete what is not needed, then try again"
    )]
    Full(#[source] io::Error),
    #[error(
        "the ledger has {0} bytes, which leaves room for stops and deletions alone: delete what is not needed, then try again"
    )]
    Long(u64),
    #[error(
        "{path} is longer than {FILE_MAX} bytes, which no build writes: nothing has been changed"
    )]
    TooLong { path: PathBuf },
}

impl LedgerError {
    /// Whether there was no room, and there will be once something has been deleted.
    pub fn is_full(&self) -> bool {
        match self {
            Self::Full(_) | Self::Long(_) | Self::Older => true,
            Self::Io { source, .. } => is_full(source),
            Self::Newer { .. }
            | Self::Unverifiable { .. }
            | Self::TooLarge(_)
            | Self::TooLong { .. }
            | Self::Silent(_)
            | Self::Poisoned => false,
        }
    }
}

fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
    )
}

/// Gives a file this many bytes of room on its disk without changing its length. The host knows how.
pub type Reserve = fn(&File, u64) -> io::Result<()>;

/// What is done to one pool. It owns all that it uses: it may go on after nobody waits for it any more.
pub type Work = Box<dyn FnOnce() -> Result<(), LedgerError> + Send>;

/// Does what is to be done to the pool at this place of the list, and waits for it. A disk may never answer: the host knows how
/// long to wait where another pool could decide, and `None` says that it did so in vain. What it was to do may be done later,
/// or never.
pub type Attempt = fn(usize, Work) -> Option<Result<(), LedgerError>>;

/// Which room a statement may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Claim {
    Ordinary,
    /// What is kept back, too: the statement makes room or lets go.
    Reserve,
}

impl Claim {
    pub fn of(action: &Action) -> Self {
        match action {
            Action::Deploy(_)
            | Action::Start
            | Action::Restart
            | Action::Snapshot { .. }
            | Action::Restore { .. } => Self::Ordinary,
            Action::Stop
            | Action::Delete
            | Action::Destroy { .. }
            | Action::DropSnapshot { .. } => Self::Reserve,
        }
    }

    fn length_max(self) -> u64 {
        match self {
            Self::Ordinary => ORDINARY_MAX,
            Self::Reserve => FILE_MAX,
        }
    }
}

fn io_error(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> LedgerError {
    let path = path.to_owned();
    move |source| LedgerError::Io {
        operation,
        path,
        source,
    }
}

/// Pools that hold copies: a third disk may die while the second is on its way, and each more makes every statement wait.
pub const POOLS_MAX: usize = 3;

/// All copies.
#[derive(Debug)]
pub struct Ledger {
    copies: Vec<Copy>,
    /// Pools that have failed, by their place in the list, and why; until the caller asks.
    lost: Vec<Lost>,
    /// What a copy that is [`State::Behind`] is to hold; empty while there is none.
    truth: Arc<Vec<u8>>,
    reserve: Reserve,
    attempt: Option<Attempt>,
    /// Length at which it is read again, to see what can be left out.
    compact_at: u64,
    /// A copy could not be brought to this build's format.
    older: bool,
    poisoned: bool,
}

/// A pool that keeps no statements until the ledger is opened again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lost {
    /// Its place in the list that [`Ledger::open_in`] was given.
    pub pool: usize,
    pub why: String,
}

/// What was found on opening.
#[derive(Debug)]
pub struct Opened {
    pub ledger: Ledger,
    /// In an order in which versions of each deployment rise.
    pub statements: Vec<Verified>,
    /// What was wrong and has been repaired, or is lost: for the console and the node's report.
    pub problems: Vec<String>,
}

/// Whether a copy in one of these directories has more than a header. Nothing is checked.
pub fn has_statements(directories: &[PathBuf]) -> bool {
    directories.iter().any(|directory| {
        let metadata = std::fs::metadata(directory.join(FILE));
        metadata.is_ok_and(|m| m.len() > HEADER_BYTES as u64)
    })
}

/// Which statements copies hold: of each deployment and version the digest. Two histories of one node agree wherever both say
/// something, unless each has gone on without the other.
pub type History = BTreeMap<(Key, u64), Digest>;

/// What the copies of one pool hold together. Nothing is changed.
pub fn history(
    directories: &[PathBuf; 2],
    mut verify: impl FnMut(&[u8]) -> Result<Verified, String>,
) -> Result<History, LedgerError> {
    let found = directories.each_ref().map(|d| read_copy(d, &mut verify));
    let [a, b] = found;
    let mut found = vec![a?, b?];
    refuse_unreadable(&mut found)?;
    let records = found.into_iter().flat_map(|found| found.records);
    let said = records.map(|record| {
        let verified = record.verified;
        (
            (verified.key(), verified.statement.version),
            verified.digest,
        )
    });
    Ok(said.collect())
}

impl Ledger {
    /// [`Ledger::open_in`] of a node with one pool.
    pub fn open(
        a: &Path,
        b: &Path,
        reserve: Reserve,
        verify: impl FnMut(&[u8]) -> Result<Verified, String>,
    ) -> Result<Opened, LedgerError> {
        Self::open_in(&[[a.to_owned(), b.to_owned()]], reserve, verify)
    }

    /// Reads the two copies of each pool and heals them as far as that can be done now. `verify` checks a signature and
    /// parses its statement; it is called for every record. After an error nothing has been changed.
    pub fn open_in(
        pools: &[[PathBuf; 2]],
        reserve: Reserve,
        verify: impl FnMut(&[u8]) -> Result<Verified, String>,
    ) -> Result<Opened, LedgerError> {
        let places = pools.iter().enumerate();
        let places = places.flat_map(|(at, pool)| pool.iter().map(move |d| (at, d.clone())));
        Self::open_at(&places.collect::<Vec<_>>(), reserve, verify)
    }

    fn open_at(
        places: &[(usize, PathBuf)],
        reserve: Reserve,
        mut verify: impl FnMut(&[u8]) -> Result<Verified, String>,
    ) -> Result<Opened, LedgerError> {
        let found: Result<Vec<_>, _> = places
            .iter()
            .map(|(_, directory)| read_copy(directory, &mut verify))
            .collect();
        let mut found = found?;
        refuse_unverifiable(places, &found)?;
        refuse_unreadable(&mut found)?;
        let records = union(found.iter().flat_map(|f| f.records.iter()));
        let wanted = wanted(&records, &found);
        let mut problems = describe(places, &found);
        let mut older = false;
        let mut copies = Vec::with_capacity(places.len());
        for ((pool, directory), found) in places.iter().zip(&found) {
            // Compacted or not, it means the same.
            let spare = found.problem.is_none()
                && found.records.len() == records.len()
                && found.format.is_some_and(|format| format >= LAYOUT_SINCE);
            let healed = heal(directory, found, &wanted, &mut problems);
            older |= healed.is_err() && found.is_older();
            let state = healed
                .or_else(|error| if spare { Ok(()) } else { Err(error) })
                .and_then(|()| whole(directory));
            copies.push(Copy {
                directory: directory.to_owned(),
                pool: *pool,
                state: state.unwrap_or_else(|error| {
                    problems.push(behind(directory, &error));
                    State::Behind
                }),
            });
        }
        let mut ledger = Self {
            copies,
            lost: Vec::new(),
            truth: Arc::default(),
            reserve,
            attempt: None,
            compact_at: 0,
            older,
            poisoned: false,
        };
        if ledger.copies.iter().any(Copy::is_behind) {
            ledger.truth = Arc::new(wanted);
        }
        ledger.compact_at = COMPACT_BYTES.max(2 * ledger.length());
        if let Err((_, error)) = ledger.reserve(0) {
            problems.push(told(&error));
        }
        Ok(Opened {
            ledger,
            statements: records.into_iter().map(|record| record.verified).collect(),
            problems,
        })
    }

    /// From now on a pool that does not answer holds up nobody for longer than this waits, as long as there is another.
    pub fn with_patience(mut self, attempt: Attempt) -> Self {
        self.attempt = Some(attempt);
        self
    }

    /// Writes the envelope to all copies and syncs them. When this returns `Ok`, it survives. `verify` is
    /// that of [`Ledger::open`]: now and then the ledger is read again and compacted.
    pub fn append(
        &mut self,
        envelope: &[u8],
        claim: Claim,
        verify: impl FnMut(&[u8]) -> Result<Verified, String>,
    ) -> Result<(), LedgerError> {
        if self.poisoned {
            return Err(LedgerError::Poisoned);
        }
        let mut bytes = Vec::with_capacity(RECORD_HEADER_BYTES + envelope.len());
        encode_record(envelope, &mut bytes)?;
        let bytes = Arc::new(bytes);
        self.catch_up()?;
        self.stay_short(bytes.len() as u64, claim, verify)?;
        while let Err((pool, error)) = self.reserve(bytes.len() as u64) {
            if error.is_full() && claim == Claim::Reserve {
                break;
            }
            self.give_up(pool, error)?;
        }
        match self.append_to_all(&bytes) {
            Ok(()) => {
                self.copies
                    .iter_mut()
                    .for_each(|copy| copy.keep(bytes.len()));
                Ok(())
            }
            Err(error) => {
                self.take_back();
                Err(error)
            }
        }
    }

    fn append_to_all(&mut self, bytes: &Arc<Vec<u8>>) -> Result<(), LedgerError> {
        let mut uncut = false;
        for at in 0..self.copies.len() {
            let copy = &self.copies[at];
            if copy.is_given_up() {
                continue;
            }
            let pool = copy.pool;
            let done = copy.append(bytes);
            let done = done.and_then(|work| self.attempt(pool, &copy.directory, work));
            if let Err(error) = done {
                // Should no pool keep it, this one must not have it either. One that does not answer may yet come to have it.
                uncut |= match &error {
                    LedgerError::Silent(_) => true,
                    _ => self.cut_back(pool).is_err(),
                };
                if let Err(error) = self.give_up(pool, error) {
                    self.poisoned |= uncut;
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// With a limit where another pool could decide: who is the last is waited for.
    fn attempt(&self, pool: usize, directory: &Path, work: Work) -> Result<(), LedgerError> {
        match self.attempt.filter(|_| self.has_others(pool)) {
            None => work(),
            Some(attempt) => {
                let silent = || Err(LedgerError::Silent(directory.to_owned()));
                attempt(pool, work).unwrap_or_else(silent)
            }
        }
    }

    /// Another pool holds everything.
    fn has_others(&self, pool: usize) -> bool {
        let others = |copy: &Copy| copy.pool != pool && matches!(copy.state, State::Whole { .. });
        self.copies.iter().any(others)
    }

    /// Both copies of a pool, to what belongs to them.
    fn cut_back(&self, pool: usize) -> Result<(), LedgerError> {
        let mut result = Ok(());
        for copy in self.copies.iter().filter(|copy| copy.pool == pool) {
            let done = self.attempt(pool, &copy.directory, copy.cut());
            result = result.and(done);
        }
        result
    }

    /// Goes on without a pool that has failed, if another one holds everything. A full pool has not failed.
    fn give_up(&mut self, pool: usize, error: LedgerError) -> Result<(), LedgerError> {
        if error.is_full() || !self.has_others(pool) {
            return Err(error);
        }
        let why = told(&error);
        let copies = self.copies.iter_mut().filter(|copy| copy.pool == pool);
        copies.for_each(|copy| copy.state = State::GivenUp);
        self.lost.push(Lost { pool, why });
        Ok(())
    }

    /// Pools that have failed since this was asked last.
    pub fn take_lost(&mut self) -> Vec<Lost> {
        std::mem::take(&mut self.lost)
    }

    /// Whether a write could not be taken back. Then nobody knows whether its statement was kept, and
    /// nothing more is until the ledger has been opened again.
    pub fn is_poisoned(&self) -> bool {
        self.poisoned
    }

    /// Of the longer copy: one may be compacted and the other not.
    fn length(&self) -> u64 {
        self.copies.iter().map(Copy::length).max().unwrap_or(0)
    }

    /// Compacts where there is much to leave out, and refuses what would be too much even so.
    fn stay_short(
        &mut self,
        more: u64,
        claim: Claim,
        verify: impl FnMut(&[u8]) -> Result<Verified, String>,
    ) -> Result<(), LedgerError> {
        let limit = claim.length_max();
        if self.older || self.length() > self.compact_at || self.length() + more > limit {
            let places = self.copies.iter().filter(|copy| !copy.is_given_up());
            let places: Vec<_> = places.map(|c| (c.pool, c.directory.clone())).collect();
            let (lost, attempt) = (self.take_lost(), self.attempt);
            *self = Self::open_at(&places, self.reserve, verify)?.ledger;
            (self.lost, self.attempt) = (lost, attempt);
            self.catch_up()?;
        }
        if self.older && claim == Claim::Ordinary {
            return Err(LedgerError::Older);
        }
        if self.length() + more > limit {
            return Err(LedgerError::Long(self.length()));
        }
        Ok(())
    }

    /// Keeps room for `more` bytes, and the reserve behind them. Of an error the pool is told.
    fn reserve(&self, more: u64) -> Result<(), (usize, LedgerError)> {
        for copy in &self.copies {
            let State::Whole { file, length } = &copy.state else {
                continue;
            };
            let (reserve, file, directory) = (self.reserve, file.clone(), copy.directory.clone());
            let bytes = length + more + RESERVE_BYTES;
            let work = move || {
                reserve(&file, bytes).map_err(|source| match is_full(&source) {
                    true => LedgerError::Full(source),
                    false => io_error("keep room for", &directory)(source),
                })
            };
            let done = self.attempt(copy.pool, &copy.directory, Box::new(work));
            done.map_err(|error| (copy.pool, error))?;
        }
        Ok(())
    }

    /// What could not be healed before must be whole before it is added to.
    fn catch_up(&mut self) -> Result<(), LedgerError> {
        for at in 0..self.copies.len() {
            let Copy {
                directory, pool, ..
            } = &self.copies[at];
            let (directory, pool) = (directory.clone(), *pool);
            if self.copies[at].is_behind() {
                let (place, truth) = (directory.clone(), self.truth.clone());
                let healed =
                    self.attempt(pool, &directory, Box::new(move || replace(&place, &truth)));
                match healed.and_then(|()| whole(&directory)) {
                    Ok(state) => self.copies[at].state = state,
                    Err(error) => self.give_up(pool, error)?,
                }
            }
        }
        self.truth = Arc::default();
        Ok(())
    }

    /// After a failed append: half a record must not stand before the next one.
    fn take_back(&mut self) {
        for copy in &self.copies {
            let done = self.attempt(copy.pool, &copy.directory, copy.cut());
            self.poisoned |= done.is_err();
        }
        // A cut gives the reserve back. Where it cannot be had again, the next statement is told.
        let _ = self.reserve(0);
    }
}

/// The bytes that all copies are to hold. Compaction and healing are the same act: write what is
/// needed, in the same order, to all. Nothing is written where all hold the same and it is not much.
fn wanted(records: &[Record], found: &[Found]) -> Vec<u8> {
    let bytes_of =
        |records: &[Record]| HEADER_BYTES + records.iter().map(record_bytes).sum::<usize>();
    let kept = compacted(records);
    let length = bytes_of(records);
    if length as u64 > COMPACT_BYTES && bytes_of(&kept) * 2 < length {
        return encode(&kept);
    }
    let same = |first: &Found| {
        let alike = |f: &Found| f.problem.is_none() && !f.is_older() && f.bytes == first.bytes;
        found.iter().all(alike)
    };
    match found.first().filter(|first| same(first)) {
        Some(first) => first.bytes.clone(),
        None => encode(records),
    }
}

/// Makes a copy hold `wanted`. What it was is kept aside where that can be done; where not, that is no
/// reason to leave it damaged.
fn heal(
    directory: &Path,
    found: &Found,
    wanted: &[u8],
    problems: &mut Vec<String>,
) -> Result<(), LedgerError> {
    let evidence = match &found.problem {
        None if found.bytes == wanted => return Ok(()),
        Some(Problem::Torn) if found.bytes.starts_with(wanted) => {
            return cut_tail(directory, wanted);
        }
        Some(Problem::Damaged | Problem::Torn | Problem::Unreadable(_)) => true,
        Some(Problem::Missing | Problem::Unverifiable { .. }) | None => false,
    };
    std::fs::create_dir_all(directory).map_err(io_error("create", directory))?;
    if evidence && let Err(error) = set_aside(directory) {
        problems.push(format!(
            "what {} was could not be kept as {DAMAGED}: {error}",
            directory.join(FILE).display()
        ));
    }
    replace(directory, wanted)
}

/// Takes no room, so that it can be done on a full pool.
fn cut_tail(directory: &Path, wanted: &[u8]) -> Result<(), LedgerError> {
    let path = directory.join(FILE);
    let file = OpenOptions::new()
        .write(true)
        .open(&path)
        .map_err(io_error("open", &path))?;
    file.set_len(wanted.len() as u64)
        .and_then(|()| file.sync_all())
        .map_err(io_error("cut", &path))
}

/// Keeps what a copy was under another name, without reading it and without taking room.
fn set_aside(directory: &Path) -> io::Result<()> {
    let (path, evidence) = (directory.join(FILE), directory.join(DAMAGED));
    match std::fs::remove_file(&evidence) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    // The name stays until the healed copy takes it. What is no file can only be moved.
    std::fs::hard_link(&path, &evidence).or_else(|_| std::fs::rename(&path, &evidence))
}

/// A record that is whole and yet not accepted is no accident: nothing is healed over it.
fn refuse_unverifiable(places: &[(usize, PathBuf)], found: &[Found]) -> Result<(), LedgerError> {
    for ((_, directory), found) in places.iter().zip(found) {
        if let Some(Problem::Unverifiable { index, reason }) = &found.problem {
            let path = directory.join(FILE);
            return Err(LedgerError::Unverifiable {
                path,
                index: *index,
                reason: reason.clone(),
            });
        }
    }
    Ok(())
}

/// A copy that cannot be read is replaced only where another lacks nothing that was ever
/// acknowledged: what cannot be read today may be read after the next boot.
fn refuse_unreadable(found: &mut [Found]) -> Result<(), LedgerError> {
    let complete = |f: &Found| matches!(f.problem, None | Some(Problem::Torn));
    if found.iter().any(complete) {
        return Ok(());
    }
    for found in found {
        found.problem = match found.problem.take() {
            Some(Problem::Unreadable(error)) => return Err(error),
            other => other,
        };
    }
    Ok(())
}

fn behind(directory: &Path, error: &LedgerError) -> String {
    format!(
        "{} cannot be healed now: {}; it is tried again before the next statement is kept",
        directory.join(FILE).display(),
        told(error)
    )
}

/// An error with its cause, for a sentence.
fn told(error: &LedgerError) -> String {
    match std::error::Error::source(error) {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}

fn describe(places: &[(usize, PathBuf)], found: &[Found]) -> Vec<String> {
    // A pool without any copy is a new one.
    let is_new = |pool: usize| {
        let copies = places.iter().zip(found).filter(|((p, _), _)| *p == pool);
        let mut copies = copies.map(|(_, f)| matches!(f.problem, Some(Problem::Missing)));
        copies.all(|missing| missing)
    };
    let mut out = Vec::new();
    for ((pool, directory), found) in places.iter().zip(found) {
        let path = directory.join(FILE);
        let kept = found.records.len();
        match &found.problem {
            Some(Problem::Missing) if !is_new(*pool) => {
                out.push(format!(
                    "{} was missing; it is made anew from the other copy",
                    path.display()
                ));
            }
            Some(Problem::Unreadable(error)) => out.push(format!(
                "{} after {kept} records; it is made anew from the other copy, the disk may be failing",
                told(error)
            )),
            Some(Problem::Damaged) => out.push(format!(
                "{} was damaged after {kept} records; it is healed, and was kept as {DAMAGED}",
                path.display()
            )),
            Some(Problem::Torn) => out.push(format!(
                "{} ended in the middle of a record after {kept} whole ones; the tail is cut",
                path.display()
            )),
            Some(Problem::Missing | Problem::Unverifiable { .. }) | None => {}
        }
    }
    if found
        .iter()
        .all(|f| matches!(f.problem, Some(Problem::Damaged)))
    {
        out.push("all copies of the ledger were damaged: statements may be lost, deploy again what is missing".to_owned());
    }
    out
}

/// Every record once. The first copy's order, with what only the second has in its place by version.
fn union<'a>(records: impl Iterator<Item = &'a Record>) -> Vec<Record> {
    let mut order: Vec<Key> = Vec::new();
    let mut by_key: BTreeMap<Key, BTreeMap<u64, &Record>> = BTreeMap::new();
    for record in records {
        let key = record.verified.key();
        let versions = by_key.entry(key.clone()).or_insert_with(|| {
            order.push(key);
            BTreeMap::new()
        });
        versions
            .entry(record.verified.statement.version)
            .or_insert(record);
    }
    order
        .iter()
        .flat_map(|key| by_key[key].values().map(|record| (*record).clone()))
        .collect()
}

fn compacted(records: &[Record]) -> Vec<Record> {
    let mut by_key: BTreeMap<Key, Vec<&Record>> = BTreeMap::new();
    for record in records {
        by_key
            .entry(record.verified.key())
            .or_default()
            .push(record);
    }
    let mut out = Vec::new();
    for records in by_key.values() {
        let statements: Vec<_> = records.iter().map(|r| &r.verified.statement).collect();
        out.extend(
            needed(&statements)
                .into_iter()
                .map(|at| records[at].clone()),
        );
    }
    out
}

#[cfg(test)]
#[path = "ledger/migration_tests.rs"]
mod migration_tests;
#[cfg(test)]
#[path = "ledger_tests.rs"]
mod tests;
