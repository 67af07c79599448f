//! The ledger: every accepted statement exactly as it was signed, in two copies.
//!
//! Owns: the files' format, their order of writing, and how two copies become one truth again.
//! Refuses: a format from the future, and to acknowledge what is not synced in both copies.
//!
//! A file is a header (magic, format version) and records: length (u32 LE), BLAKE3 of the envelope,
//! the envelope's bytes. Records are only appended. A copy counts up to its first record that is torn
//! or does not match its hash; the truth is the union of both copies. So whatever happens to one
//! copy, nothing is lost that the other holds.
//!
//! Healing a copy may fail: the pool is full, or the disk takes no more. Then what should run is known
//! all the same, and the copy is made again before the next statement is kept.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use crate::desired::{Key, Verified, needed};

const MAGIC: [u8; 8] = *b"SIFRLDGR";
/// Format written, and the newest that is read.
const FORMAT: u32 = 1;
const HEADER_BYTES: usize = 16;
const RECORD_HEADER_BYTES: usize = 4 + 32;
/// Longest envelope: 32 workloads with full arguments, as base64 in JSON, need 6 MiB.
pub const ENVELOPE_MAX: usize = 8 << 20;
/// Files below this are not compacted: reading them takes milliseconds.
const COMPACT_BYTES: u64 = 4 << 20;
/// Largest file that is read: compaction keeps an honest one far below.
const FILE_MAX: u64 = 1 << 30;

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
        "{path} has format {found}, this build knows up to {FORMAT}: boot the newer image again, nothing has been changed"
    )]
    Newer { path: PathBuf, found: u32 },
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
        "an earlier write failed and could not be taken back: restart the node to read the ledger again"
    )]
    Poisoned,
}

fn io_error(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> LedgerError {
    let path = path.to_owned();
    move |source| LedgerError::Io {
        operation,
        path,
        source,
    }
}

/// Both copies.
#[derive(Debug)]
pub struct Ledger {
    copies: [Copy; 2],
    /// What a copy that is [`State::Behind`] is to hold; empty while there is none.
    truth: Vec<u8>,
    poisoned: bool,
}

#[derive(Debug)]
struct Copy {
    directory: PathBuf,
    state: State,
}

#[derive(Debug)]
enum State {
    /// It holds every statement, in `length` bytes, and is open for appending.
    Whole { file: File, length: u64 },
    /// It does not, and could not be made to.
    Behind,
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

/// One envelope with what it says.
#[derive(Debug, Clone)]
struct Record {
    envelope: Vec<u8>,
    verified: Verified,
}

/// One copy as it was found.
#[derive(Debug, Default)]
struct Found {
    bytes: Vec<u8>,
    records: Vec<Record>,
    problem: Option<Problem>,
}

#[derive(Debug)]
enum Problem {
    /// There is no file.
    Missing,
    /// The disk does not give it, or not to its end.
    Unreadable(LedgerError),
    /// The last record is incomplete: a power cut while it was written. It was never acknowledged.
    Torn,
    /// Bytes have changed.
    Damaged,
    /// The hash matches, `verify` does not agree.
    Unverifiable { index: usize, reason: String },
}

impl Ledger {
    /// Reads both copies and heals them as far as that can be done now. `verify` checks a signature and
    /// parses its statement; it is called for every record.
    pub fn open(
        a: &Path,
        b: &Path,
        mut verify: impl FnMut(&[u8]) -> Result<Verified, String>,
    ) -> Result<Opened, LedgerError> {
        let directories = [a, b];
        let mut found = [read_copy(a, &mut verify)?, read_copy(b, &mut verify)?];
        refuse_unverifiable(directories, &found)?;
        refuse_unreadable(&mut found)?;
        let records = union(found.iter().flat_map(|f| f.records.iter()));
        let wanted = wanted(&records, &found);
        let mut problems = Vec::new();
        let mut copies = Vec::new();
        let new = found
            .iter()
            .all(|f| matches!(f.problem, Some(Problem::Missing)));
        for (directory, found) in directories.into_iter().zip(&found) {
            let healed = heal(directory, found, &wanted, &mut problems);
            // Compacted or not, it means the same.
            let spare = found.problem.is_none() && found.records.len() == records.len();
            let state = match healed {
                Ok(()) => whole(directory)?,
                Err(error) if new => return Err(error),
                Err(_) if spare => whole(directory)?,
                Err(error) => {
                    problems.push(behind(directory, &error));
                    State::Behind
                }
            };
            copies.push(Copy {
                directory: directory.to_owned(),
                state,
            });
        }
        problems.splice(0..0, describe(directories, &found));
        let [first, second] =
            <[Copy; 2]>::try_from(copies).expect("one for each of two directories");
        let copies = [first, second];
        let any_behind = copies
            .iter()
            .any(|copy| matches!(copy.state, State::Behind));
        Ok(Opened {
            ledger: Self {
                copies,
                truth: if any_behind { wanted } else { Vec::new() },
                poisoned: false,
            },
            statements: records.into_iter().map(|record| record.verified).collect(),
            problems,
        })
    }

    /// Writes the envelope to both copies and syncs them. When this returns `Ok`, it survives.
    pub fn append(&mut self, envelope: &[u8]) -> Result<(), LedgerError> {
        if self.poisoned {
            return Err(LedgerError::Poisoned);
        }
        let mut bytes = Vec::with_capacity(RECORD_HEADER_BYTES + envelope.len());
        encode_record(envelope, &mut bytes)?;
        self.catch_up()?;
        match self
            .copies
            .iter_mut()
            .try_for_each(|copy| copy.append(&bytes))
        {
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

    /// What could not be healed before must be whole before it is added to.
    fn catch_up(&mut self) -> Result<(), LedgerError> {
        for copy in &mut self.copies {
            if matches!(copy.state, State::Behind) {
                replace(&copy.directory, &self.truth)?;
                copy.state = whole(&copy.directory)?;
            }
        }
        self.truth = Vec::new();
        Ok(())
    }

    /// After a failed append: half a record must not stand before the next one.
    fn take_back(&mut self) {
        for copy in &self.copies {
            self.poisoned |= copy.cut().is_err();
        }
    }
}

impl Copy {
    fn append(&mut self, bytes: &[u8]) -> Result<(), LedgerError> {
        let State::Whole { file, .. } = &mut self.state else {
            // Not after `catch_up`; and if it were, nothing must be acknowledged.
            return Err(LedgerError::Poisoned);
        };
        file.write_all(bytes)
            .map_err(io_error("append to", &self.directory))?;
        file.sync_data().map_err(io_error("sync", &self.directory))
    }

    /// What was appended last belongs to it.
    fn keep(&mut self, bytes: usize) {
        if let State::Whole { length, .. } = &mut self.state {
            *length += bytes as u64;
        }
    }

    /// Back to what belongs to it.
    fn cut(&self) -> io::Result<()> {
        match &self.state {
            State::Whole { file, length } => file.set_len(*length).and_then(|()| file.sync_all()),
            State::Behind => Ok(()),
        }
    }
}

/// Opens a copy that holds everything.
fn whole(directory: &Path) -> Result<State, LedgerError> {
    let path = directory.join(FILE);
    let file = OpenOptions::new()
        .append(true)
        .open(&path)
        .map_err(io_error("open", &path))?;
    let length = file.metadata().map_err(io_error("stat", &path))?.len();
    Ok(State::Whole { file, length })
}

/// The bytes that both copies are to hold. Compaction and healing are the same act: write what is
/// needed, in the same order, to both. Nothing is written where both hold the same and it is not much.
fn wanted(records: &[Record], found: &[Found; 2]) -> Vec<u8> {
    let bytes_of =
        |records: &[Record]| HEADER_BYTES + records.iter().map(record_bytes).sum::<usize>();
    let kept = compacted(records);
    let length = bytes_of(records);
    if length as u64 > COMPACT_BYTES && bytes_of(&kept) * 2 < length {
        return encode(&kept);
    }
    let same = found[0].bytes == found[1].bytes && found.iter().all(|f| f.problem.is_none());
    if same {
        found[0].bytes.clone()
    } else {
        encode(records)
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

fn read_copy(
    directory: &Path,
    verify: &mut impl FnMut(&[u8]) -> Result<Verified, String>,
) -> Result<Found, LedgerError> {
    let path = directory.join(FILE);
    let mut bytes = Vec::new();
    let unreadable = match File::open(&path) {
        // What was read before an error counts, as far as its hashes agree.
        Ok(file) => file
            .take(FILE_MAX)
            .read_to_end(&mut bytes)
            .map_err(io_error("read", &path))
            .err(),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            return Ok(Found {
                problem: Some(Problem::Missing),
                ..Found::default()
            });
        }
        Err(e) => Some(io_error("open", &path)(e)),
    };
    let mut found = understand(bytes, &path, verify)?;
    // A record that is not accepted is no accident of the disk, and stays what is told.
    if let Some(error) = unreadable
        && !matches!(found.problem, Some(Problem::Unverifiable { .. }))
    {
        found.problem = Some(Problem::Unreadable(error));
    }
    Ok(found)
}

fn understand(
    bytes: Vec<u8>,
    path: &Path,
    verify: &mut impl FnMut(&[u8]) -> Result<Verified, String>,
) -> Result<Found, LedgerError> {
    let damaged = |bytes| Found {
        bytes,
        records: Vec::new(),
        problem: Some(Problem::Damaged),
    };
    // A file comes to its name whole: no power cut leaves less than a header.
    if bytes.len() < HEADER_BYTES {
        return Ok(damaged(bytes));
    }
    let (header, _) = bytes.split_at(HEADER_BYTES);
    let word = |at: usize| [header[at], header[at + 1], header[at + 2], header[at + 3]];
    // A version counts only under its own checksum: a flipped bit is damage, not a future.
    let intact = word(12) == header_check(word(8));
    let format = u32::from_le_bytes(word(8));
    if header[..8] != MAGIC || !intact {
        return Ok(damaged(bytes));
    }
    if format > FORMAT {
        return Err(LedgerError::Newer {
            path: path.to_owned(),
            found: format,
        });
    }
    let (records, problem) = read_records(&bytes[HEADER_BYTES..], verify);
    Ok(Found {
        bytes,
        records,
        problem,
    })
}

fn read_records(
    mut rest: &[u8],
    verify: &mut impl FnMut(&[u8]) -> Result<Verified, String>,
) -> (Vec<Record>, Option<Problem>) {
    let mut records = Vec::new();
    while !rest.is_empty() {
        let Some((length, tail)) = rest.split_first_chunk::<4>() else {
            return (records, Some(Problem::Torn));
        };
        let Ok(length) = usize::try_from(u32::from_le_bytes(*length)) else {
            return (records, Some(Problem::Damaged));
        };
        if length > ENVELOPE_MAX {
            return (records, Some(Problem::Damaged));
        }
        let Some((hash, tail)) = tail.split_first_chunk::<32>() else {
            return (records, Some(Problem::Torn));
        };
        let Some((envelope, tail)) = tail.split_at_checked(length) else {
            return (records, Some(Problem::Torn));
        };
        if blake3::hash(envelope) != *hash {
            return (records, Some(Problem::Damaged));
        }
        match verify(envelope) {
            Ok(verified) => records.push(Record {
                envelope: envelope.to_vec(),
                verified,
            }),
            Err(reason) => {
                let index = records.len();
                return (records, Some(Problem::Unverifiable { index, reason }));
            }
        }
        rest = tail;
    }
    (records, None)
}

/// A record that is whole and yet not accepted is no accident: nothing is healed over it.
fn refuse_unverifiable(directories: [&Path; 2], found: &[Found]) -> Result<(), LedgerError> {
    for (directory, found) in directories.into_iter().zip(found) {
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

/// A copy that cannot be read is replaced only where the other lacks nothing that was ever
/// acknowledged: what cannot be read today may be read after the next boot.
fn refuse_unreadable(found: &mut [Found; 2]) -> Result<(), LedgerError> {
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

fn describe(directories: [&Path; 2], found: &[Found]) -> Vec<String> {
    let both_missing = found
        .iter()
        .all(|f| matches!(f.problem, Some(Problem::Missing)));
    let mut out = Vec::new();
    for (directory, found) in directories.into_iter().zip(found) {
        let path = directory.join(FILE);
        let kept = found.records.len();
        match &found.problem {
            Some(Problem::Missing) if !both_missing => {
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
        out.push("both copies of the ledger were damaged: statements may be lost, deploy again what is missing".to_owned());
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

fn record_bytes(record: &Record) -> usize {
    RECORD_HEADER_BYTES + record.envelope.len()
}

fn header_check(format: [u8; 4]) -> [u8; 4] {
    let hash = blake3::hash(&format);
    let [a, b, c, d, ..] = *hash.as_bytes();
    [a, b, c, d]
}

fn header() -> [u8; HEADER_BYTES] {
    let mut out = [0; HEADER_BYTES];
    out[..8].copy_from_slice(&MAGIC);
    out[8..12].copy_from_slice(&FORMAT.to_le_bytes());
    out[12..].copy_from_slice(&header_check(FORMAT.to_le_bytes()));
    out
}

fn encode_record(envelope: &[u8], out: &mut Vec<u8>) -> Result<(), LedgerError> {
    let length = u32::try_from(envelope.len())
        .ok()
        .filter(|_| envelope.len() <= ENVELOPE_MAX);
    let length = length.ok_or(LedgerError::TooLarge(envelope.len()))?;
    out.extend_from_slice(&length.to_le_bytes());
    out.extend_from_slice(blake3::hash(envelope).as_bytes());
    out.extend_from_slice(envelope);
    Ok(())
}

fn encode(records: &[Record]) -> Vec<u8> {
    let mut out = header().to_vec();
    for record in records {
        encode_record(&record.envelope, &mut out)
            .expect("a record that was read is within the limit");
    }
    out
}

/// Replaces a copy by one rename: it is the old or the new at any moment.
fn replace(directory: &Path, bytes: &[u8]) -> Result<(), LedgerError> {
    let (path, temporary) = (directory.join(FILE), directory.join(TEMPORARY));
    let mut file = File::create(&temporary).map_err(io_error("create", &temporary))?;
    if let Err(error) = file.write_all(bytes).and_then(|()| file.sync_all()) {
        // Half a copy would keep the room that the next try needs.
        let _ = std::fs::remove_file(&temporary);
        return Err(io_error("write", &temporary)(error));
    }
    std::fs::rename(&temporary, &path).map_err(io_error("rename to", &path))?;
    sync_directory(directory)?;
    directory.parent().map_or(Ok(()), sync_directory)
}

fn sync_directory(directory: &Path) -> Result<(), LedgerError> {
    File::open(directory)
        .and_then(|d| d.sync_all())
        .map_err(io_error("sync", directory))
}

#[cfg(test)]
#[path = "ledger_tests.rs"]
mod tests;
