//! One copy of the ledger as bytes: the records, and what may be wrong with them.
//!
//! Owns: reading and encoding both. Refuses: deciding what follows from a problem, and writing.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use crate::desired::Verified;

use super::header::{self, FORMAT, Header};
use super::{ENVELOPE_MAX, FILE, FILE_MAX, LedgerError, io_error};

pub(super) const RECORD_HEADER_BYTES: usize = 4 + 32;
/// One envelope with what it says.
#[derive(Debug, Clone)]
pub(super) struct Record {
    pub(super) envelope: Vec<u8>,
    pub(super) verified: Verified,
}

/// One copy as it was found.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) bytes: Vec<u8>,
    pub(super) records: Vec<Record>,
    pub(super) problem: Option<Problem>,
    /// Of its header; `None` where none can be read.
    pub(super) format: Option<u32>,
}

impl Found {
    /// It was written by an older build, and is to be as this one writes it.
    pub(super) fn is_older(&self) -> bool {
        self.format.is_some_and(|format| format < FORMAT)
    }
}

#[derive(Debug)]
pub(super) enum Problem {
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

pub(super) fn read_copy(
    directory: &Path,
    verify: &mut impl FnMut(&[u8]) -> Result<Verified, String>,
) -> Result<Found, LedgerError> {
    let path = directory.join(FILE);
    let mut bytes = Vec::new();
    let unreadable = match File::open(&path) {
        // What was read before an error counts, as far as its hashes agree.
        Ok(file) => file
            .take(FILE_MAX + 1)
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
    if bytes.len() as u64 > FILE_MAX {
        return Err(LedgerError::TooLong { path });
    }
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
    let (format, length) = match header::read(&bytes) {
        Header::Known { format, length } => (format, length),
        Header::Newer { format, needs } => {
            return Err(LedgerError::Newer {
                path: path.to_owned(),
                found: format,
                needs,
            });
        }
        Header::Damaged => {
            return Ok(Found {
                bytes,
                problem: Some(Problem::Damaged),
                ..Found::default()
            });
        }
    };
    let (records, problem) = read_records(&bytes[length..], verify);
    Ok(Found {
        bytes,
        records,
        problem,
        format: Some(format),
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

pub(super) fn record_bytes(record: &Record) -> usize {
    RECORD_HEADER_BYTES + record.envelope.len()
}

pub(super) fn encode_record(envelope: &[u8], out: &mut Vec<u8>) -> Result<(), LedgerError> {
    let length = u32::try_from(envelope.len())
        .ok()
        .filter(|_| envelope.len() <= ENVELOPE_MAX);
    let length = length.ok_or(LedgerError::TooLarge(envelope.len()))?;
    out.extend_from_slice(&length.to_le_bytes());
    out.extend_from_slice(blake3::hash(envelope).as_bytes());
    out.extend_from_slice(envelope);
    Ok(())
}

pub(super) fn encode(records: &[Record]) -> Vec<u8> {
    let mut out = header::header();
    for record in records {
        encode_record(&record.envelope, &mut out)
            .expect("a record that was read is within the limit");
    }
    out
}
