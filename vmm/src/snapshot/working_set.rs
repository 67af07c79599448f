//! The working set of a restored machine: which pages it has needed, in the order in which it has needed them.
//!
//! ```text
//!  0  8  "SIFRWSET"
//!  8  4  version            little-endian, as all numbers here
//! 12  4  reserved, zero
//! 16 16  id of the snapshot whose pages these are
//! 32  8  bytes of guest memory
//! 40  8  number of runs
//! 48 32  BLAKE3 of bytes 0 to 47 and of the runs
//! 80     the runs: first page, number of pages, 8 bytes each, to the end of the file
//! ```
//!
//! Owns: these bytes, of which there is one form for each working set.
//! Refuses: files of another version, length or snapshot, those in which a bit differs, and those that name
//! a page twice, name none, leave the memory, or break a run in two.

use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::memory::Run;
use crate::memory::PAGE;

const MAGIC: &[u8; 8] = b"SIFRWSET";
const VERSION: u32 = 1;
const HEADER_BYTES: usize = 80;
const DIGEST_AT: usize = 48;
const RUN_BYTES: usize = 16;
/// Of an id.
pub(crate) const ID_BYTES: usize = 16;
/// Most pages that a working set has: 4 GiB. Whoever needs more at the start reads its file from end to end.
pub(crate) const PAGES_MAX: usize = 1 << 20;

#[derive(Debug, thiserror::Error)]
pub(crate) enum WorkingSetError {
    #[error("read the working set")]
    Read(#[source] io::Error),
    #[error("write the working set")]
    Write(#[source] io::Error),
    #[error("this is no working set: pass a file that `working_set` was answered with, or none")]
    Magic,
    #[error(
        "the working set has version {0}, this sifr-vmm reads version {VERSION}: record it again, and restore without it until then"
    )]
    Version(u32),
    #[error(
        "the working set has {found} bytes, its header says {said}: the file was cut or added to, record it again"
    )]
    Length { found: u64, said: u64 },
    #[error("the working set is damaged, its digest does not match: record it again")]
    Digest,
    #[error(
        "the working set is another snapshot's: pass the one that a machine from this snapshot has recorded, or none"
    )]
    Foreign,
    #[error(
        "the working set was not written by sifr-vmm: its run {0} is empty, leaves the memory, or repeats or goes on from another"
    )]
    Run(usize),
}

/// Pages of one snapshot, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct WorkingSet {
    pub(crate) snapshot: [u8; ID_BYTES],
    pub(crate) memory_bytes: u64,
    runs: Vec<Run>,
}

impl WorkingSet {
    /// Of pages in the order in which they were needed, each once.
    pub(crate) fn of(snapshot: [u8; ID_BYTES], memory_bytes: u64, pages: &[u64]) -> Self {
        let mut runs: Vec<Run> = Vec::new();
        for page in pages {
            match runs.last_mut().filter(|r| r.first + r.count == *page) {
                Some(run) => run.count += 1,
                None => runs.push(Run {
                    first: *page,
                    count: 1,
                }),
            }
        }
        Self {
            snapshot,
            memory_bytes,
            runs,
        }
    }

    pub(crate) fn runs(&self) -> &[Run] {
        &self.runs
    }

    /// In order.
    #[cfg(test)]
    fn pages(&self) -> impl Iterator<Item = u64> {
        self.runs
            .iter()
            .flat_map(|run| run.first..run.first + run.count)
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEADER_BYTES + self.runs.len() * RUN_BYTES);
        bytes.extend(MAGIC);
        bytes.extend(VERSION.to_le_bytes());
        bytes.extend([0; 4]);
        bytes.extend(self.snapshot);
        bytes.extend(self.memory_bytes.to_le_bytes());
        bytes.extend((self.runs.len() as u64).to_le_bytes());
        bytes.extend([0; 32]);
        for run in &self.runs {
            bytes.extend(run.first.to_le_bytes());
            bytes.extend(run.count.to_le_bytes());
        }
        let digest = digest(&bytes);
        bytes[DIGEST_AT..HEADER_BYTES].copy_from_slice(&digest);
        bytes
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, WorkingSetError> {
        let Some(header) = bytes.get(..HEADER_BYTES).filter(|h| h.starts_with(MAGIC)) else {
            return Err(WorkingSetError::Magic);
        };
        let number = |at: usize| {
            let bytes = header[at..at + 8].try_into().expect("8 bytes of a header");
            u64::from_le_bytes(bytes)
        };
        // The version and what is reserved behind it.
        let version = u32::from_le_bytes(header[8..12].try_into().expect("4 bytes of a header"));
        if version != VERSION {
            return Err(WorkingSetError::Version(version));
        }
        let found = bytes.len() as u64;
        let said = number(40).saturating_mul(RUN_BYTES as u64);
        let said = said.saturating_add(HEADER_BYTES as u64);
        if found != said {
            return Err(WorkingSetError::Length { found, said });
        }
        if header[12..16] != [0; 4] || digest(bytes) != header[DIGEST_AT..] {
            return Err(WorkingSetError::Digest);
        }
        let runs = bytes[HEADER_BYTES..].chunks_exact(RUN_BYTES).map(|run| {
            let (first, count) = run.split_at(8);
            Run {
                first: u64::from_le_bytes(first.try_into().expect("8 of 16 bytes")),
                count: u64::from_le_bytes(count.try_into().expect("8 of 16 bytes")),
            }
        });
        let set = Self {
            snapshot: header[16..32].try_into().expect("16 bytes of a header"),
            memory_bytes: number(32),
            runs: runs.collect(),
        };
        set.check()?;
        Ok(set)
    }

    /// `bytes` behind a header that is right for so many runs, of a small memory.
    #[cfg(any(test, feature = "fuzz"))]
    pub(crate) fn seal(bytes: &[u8]) -> Vec<u8> {
        let (id, runs) = ([1; ID_BYTES], bytes.len() / RUN_BYTES);
        let mut sealed = Self::of(id, 1 << 20, &[]).encode();
        sealed[40..48].copy_from_slice(&(runs as u64).to_le_bytes());
        sealed.extend(&bytes[..runs * RUN_BYTES]);
        let digest = digest(&sealed);
        sealed[DIGEST_AT..HEADER_BYTES].copy_from_slice(&digest);
        sealed
    }

    /// Whether this is the one form of some working set.
    fn check(&self) -> Result<(), WorkingSetError> {
        let pages = self.memory_bytes / PAGE as u64;
        let mut seen = HashSet::new();
        let mut behind = None;
        for (index, run) in self.runs.iter().enumerate() {
            let bad = WorkingSetError::Run(index);
            let end = run.first.checked_add(run.count).filter(|e| *e <= pages);
            let (Some(end), false) = (end, run.count == 0 || behind == Some(run.first)) else {
                return Err(bad);
            };
            // Bounded before it is walked: a run is no longer than what is left.
            let left = (PAGES_MAX - seen.len()) as u64;
            if run.count > left || !(run.first..end).all(|page| seen.insert(page)) {
                return Err(bad);
            }
            behind = Some(end);
        }
        Ok(())
    }

    /// From the beginning of `file`, for the snapshot with this id.
    pub(crate) fn read(
        file: &File,
        snapshot: [u8; ID_BYTES],
        memory_bytes: u64,
    ) -> Result<Self, WorkingSetError> {
        let length = file.metadata().map_err(WorkingSetError::Read)?.len();
        let longest = (HEADER_BYTES + PAGES_MAX * RUN_BYTES) as u64;
        if length > longest {
            let (found, said) = (length, longest);
            return Err(WorkingSetError::Length { found, said });
        }
        let mut bytes = vec![0; usize::try_from(length).expect("some MiB")];
        file.read_exact_at(&mut bytes, 0)
            .map_err(WorkingSetError::Read)?;
        let set = Self::decode(&bytes)?;
        if set.snapshot != snapshot || set.memory_bytes != memory_bytes {
            return Err(WorkingSetError::Foreign);
        }
        Ok(set)
    }

    /// In the place of whatever `file` held. Returns the bytes written.
    pub(crate) fn write(&self, file: &File) -> Result<u64, WorkingSetError> {
        let bytes = self.encode();
        file.set_len(0).map_err(WorkingSetError::Write)?;
        file.write_all_at(&bytes, 0)
            .map_err(WorkingSetError::Write)?;
        Ok(bytes.len() as u64)
    }
}

fn digest(bytes: &[u8]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    hasher
        .update(&bytes[..DIGEST_AT])
        .update(&bytes[HEADER_BYTES..]);
    *hasher.finalize().as_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ID: [u8; ID_BYTES] = [7; ID_BYTES];
    const MEMORY: u64 = 1 << 20;

    fn set(pages: &[u64]) -> WorkingSet {
        WorkingSet::of(ID, MEMORY, pages)
    }

    #[test]
    fn the_order_in_which_pages_were_needed_is_kept() {
        let pages = [9, 10, 11, 3, 200, 4];
        let set = set(&pages);
        assert_eq!(set.runs().len(), 4);
        let read = WorkingSet::decode(&set.encode()).expect("its own");
        assert_eq!(read.pages().collect::<Vec<_>>(), pages);
        let file = tempfile::tempfile().expect("temporary file");
        file.write_all_at(&[1; 4096], 0).expect("written");
        let bytes = set.write(&file).expect("written");
        assert_eq!(bytes, file.metadata().expect("stat").len());
        assert_eq!(WorkingSet::read(&file, ID, MEMORY).expect("its own"), set);
        for (id, memory) in [([8; ID_BYTES], MEMORY), (ID, MEMORY * 2)] {
            let foreign = WorkingSet::read(&file, id, memory);
            assert!(matches!(foreign, Err(WorkingSetError::Foreign)));
        }
    }

    #[test]
    fn a_file_that_differs_in_a_bit_or_a_byte_is_refused() {
        let bytes = set(&[1, 2, 3, 100, 50]).encode();
        for bit in 0..bytes.len() * 8 {
            let mut bytes = bytes.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(WorkingSet::decode(&bytes).is_err(), "bit {bit}");
        }
        for length in 0..bytes.len() {
            assert!(WorkingSet::decode(&bytes[..length]).is_err());
        }
        let longer = [&bytes[..], &[0; RUN_BYTES]].concat();
        assert!(WorkingSet::decode(&longer).is_err());
    }

    #[test]
    fn runs_that_no_writer_makes_are_refused_with_a_right_digest() {
        let run = |first, count| Run { first, count };
        let last = MEMORY / PAGE as u64 - 1;
        for runs in [
            vec![run(1, 0)],
            vec![run(last, 2)],
            vec![run(u64::MAX, 2)],
            vec![run(0, u64::MAX)],
            vec![run(1, 2), run(3, 1)],
            vec![run(1, 2), run(9, 1), run(2, 1)],
        ] {
            let set = WorkingSet {
                snapshot: ID,
                memory_bytes: MEMORY,
                runs,
            };
            let refused = WorkingSet::decode(&set.encode());
            assert!(matches!(refused, Err(WorkingSetError::Run(_))), "{set:?}");
        }
        let huge = WorkingSet {
            snapshot: ID,
            memory_bytes: u64::MAX,
            runs: vec![run(0, PAGES_MAX as u64 + 1)],
        };
        assert!(WorkingSet::decode(&huge.encode()).is_err());
    }

    proptest! {
        #[test]
        fn what_is_read_is_written_as_it_was(pages in proptest::collection::hash_set(0u64..256, 0..64)) {
            let pages: Vec<u64> = pages.into_iter().collect();
            let bytes = set(&pages).encode();
            let read = WorkingSet::decode(&bytes).expect("its own");
            prop_assert_eq!(read.encode(), bytes);
            prop_assert_eq!(read.pages().collect::<Vec<_>>(), pages);
        }

        #[test]
        fn no_bytes_are_more_than_refused(bytes in proptest::collection::vec(any::<u8>(), 0..256)) {
            let _ = WorkingSet::decode(&bytes);
            let mut bytes = bytes;
            bytes.splice(..bytes.len().min(12), MAGIC.iter().copied().chain(VERSION.to_le_bytes()));
            let _ = WorkingSet::decode(&bytes);
        }
    }
}
