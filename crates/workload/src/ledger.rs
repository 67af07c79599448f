//! The ledger: every accepted statement exactly as it was signed, in two copies.
//!
//! Owns: the files' format, their order of writing, and how two copies become one truth again.
//! Refuses: a format from the future, and to acknowledge what is not synced in both copies.
//!
//! A file is a header (magic, format version) and records: length (u32 LE), BLAKE3 of the envelope,
//! the envelope's bytes. Records are only appended. A copy counts up to its first record that is torn
//! or does not match its hash; the truth is the union of both copies. So whatever happens to one
//! copy, nothing is lost that the other holds.

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

/// Both copies, open for appending.
#[derive(Debug)]
pub struct Ledger {
    copies: [Copy; 2],
    /// Bytes of each copy: both hold the same.
    length: u64,
    poisoned: bool,
}

#[derive(Debug)]
struct Copy {
    directory: PathBuf,
    file: File,
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
struct Found {
    bytes: Vec<u8>,
    records: Vec<Record>,
    problem: Option<Problem>,
}

enum Problem {
    /// There is no file.
    Missing,
    /// The last record is incomplete: a power cut while it was written. It was never acknowledged.
    Torn,
    /// Bytes have changed.
    Damaged,
    /// The hash matches, `verify` does not agree.
    Unverifiable { index: usize, reason: String },
}

impl Ledger {
    /// Reads both copies and heals them. `verify` checks a signature and parses its statement; it is
    /// called for every record.
    pub fn open(
        a: &Path,
        b: &Path,
        mut verify: impl FnMut(&[u8]) -> Result<Verified, String>,
    ) -> Result<Opened, LedgerError> {
        let mut found = Vec::new();
        for directory in [a, b] {
            std::fs::create_dir_all(directory).map_err(io_error("create", directory))?;
            found.push(read_copy(directory, &mut verify)?);
        }
        refuse_unverifiable([a, b], &found)?;
        let problems = describe([a, b], &found);
        let records = union(found.iter().flat_map(|f| f.records.iter()));
        let length: usize = HEADER_BYTES + records.iter().map(record_bytes).sum::<usize>();
        // Compaction and healing are the same act: write what is needed, in the same order, to both.
        let kept = compacted(&records);
        let kept_length = HEADER_BYTES + kept.iter().map(record_bytes).sum::<usize>();
        let compact = length as u64 > COMPACT_BYTES && kept_length * 2 < length;
        let same = found[0].bytes == found[1].bytes && found.iter().all(|f| f.problem.is_none());
        if compact || !same {
            let bytes = encode(if compact { &kept } else { &records });
            for (directory, found) in [a, b].into_iter().zip(&found) {
                if found.bytes != bytes {
                    let damaged = matches!(found.problem, Some(Problem::Damaged | Problem::Torn));
                    rewrite(directory, &bytes, damaged)?;
                }
            }
        }
        let ledger = Self::append_to(a, b)?;
        Ok(Opened {
            ledger,
            statements: records.into_iter().map(|record| record.verified).collect(),
            problems,
        })
    }

    fn append_to(a: &Path, b: &Path) -> Result<Self, LedgerError> {
        let open = |directory: &Path| {
            let path = directory.join(FILE);
            let file = OpenOptions::new()
                .append(true)
                .open(&path)
                .map_err(io_error("open", &path))?;
            Ok(Copy {
                directory: directory.to_owned(),
                file,
            })
        };
        let copies = [open(a)?, open(b)?];
        let length = copies[0]
            .file
            .metadata()
            .map_err(io_error("stat", a))?
            .len();
        Ok(Self {
            copies,
            length,
            poisoned: false,
        })
    }

    /// Writes the envelope to both copies and syncs them. When this returns `Ok`, it survives.
    pub fn append(&mut self, envelope: &[u8]) -> Result<(), LedgerError> {
        if self.poisoned {
            return Err(LedgerError::Poisoned);
        }
        let mut bytes = Vec::with_capacity(RECORD_HEADER_BYTES + envelope.len());
        encode_record(envelope, &mut bytes)?;
        match self.write(&bytes) {
            Ok(()) => {
                self.length += bytes.len() as u64;
                Ok(())
            }
            Err(error) => {
                self.take_back();
                Err(error)
            }
        }
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), LedgerError> {
        for copy in &mut self.copies {
            copy.file
                .write_all(bytes)
                .map_err(io_error("append to", &copy.directory))?;
            copy.file
                .sync_data()
                .map_err(io_error("sync", &copy.directory))?;
        }
        Ok(())
    }

    /// After a failed append: half a record must not stand before the next one.
    fn take_back(&mut self) {
        for copy in &self.copies {
            let cut = copy
                .file
                .set_len(self.length)
                .and_then(|()| copy.file.sync_all());
            self.poisoned |= cut.is_err();
        }
    }
}

fn read_copy(
    directory: &Path,
    verify: &mut impl FnMut(&[u8]) -> Result<Verified, String>,
) -> Result<Found, LedgerError> {
    let path = directory.join(FILE);
    let mut bytes = Vec::new();
    match File::open(&path) {
        Ok(file) => {
            file.take(FILE_MAX)
                .read_to_end(&mut bytes)
                .map_err(io_error("read", &path))?;
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            return Ok(Found {
                bytes,
                records: Vec::new(),
                problem: Some(Problem::Missing),
            });
        }
        Err(e) => return Err(io_error("open", &path)(e)),
    }
    if bytes.len() < HEADER_BYTES {
        let problem = Some(Problem::Torn);
        return Ok(Found {
            bytes,
            records: Vec::new(),
            problem,
        });
    }
    let (header, _) = bytes.split_at(HEADER_BYTES);
    let word = |at: usize| [header[at], header[at + 1], header[at + 2], header[at + 3]];
    // A version counts only under its own checksum: a flipped bit is damage, not a future.
    let intact = word(12) == header_check(word(8));
    let format = u32::from_le_bytes(word(8));
    if header[..8] != MAGIC || !intact {
        return Ok(Found {
            bytes,
            records: Vec::new(),
            problem: Some(Problem::Damaged),
        });
    }
    if format > FORMAT {
        return Err(LedgerError::Newer {
            path,
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
                    "{} was missing; it has been made anew from the other copy",
                    path.display()
                ));
            }
            Some(Problem::Damaged) => out.push(format!(
                "{} was damaged after {kept} records; it has been healed and kept as {DAMAGED}",
                path.display()
            )),
            Some(Problem::Torn) => out.push(format!(
                "{} ended in the middle of a record after {kept} whole ones; the tail has been cut",
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
fn rewrite(directory: &Path, bytes: &[u8], damaged: bool) -> Result<(), LedgerError> {
    let (path, temporary) = (directory.join(FILE), directory.join(TEMPORARY));
    let mut file = File::create(&temporary).map_err(io_error("create", &temporary))?;
    file.write_all(bytes)
        .map_err(io_error("write", &temporary))?;
    file.sync_all().map_err(io_error("sync", &temporary))?;
    if damaged {
        let evidence = directory.join(DAMAGED);
        std::fs::copy(&path, &evidence).map_err(io_error("copy to", &evidence))?;
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
