//! The trace of an flist: the chunks that its first run touched, in that order.
//!
//! Owns: the file `<flist digest>.trace` beside the `.flist`, in a store and in a node's cache, and taking one down.
//! Refuses: to be believed. A trace names chunks of its flist by their indices and nothing else: the worst that a false one
//! does is that content of that image comes early, up to [`CHUNKS_MAX`] chunks of it. It is not signed, and needs not be.
//!
//! Layout, little-endian: magic `SIFRTRC1`, digest of the flist (32 bytes), count u32, then so many chunk indices u32, each
//! below the flist's number of chunks and none twice. Nothing follows.

use std::collections::HashSet;
use std::time::Duration;

use types::Digest;

use crate::CHUNK_BYTES_MAX;

pub const MAGIC: [u8; 8] = *b"SIFRTRC1";
const HEADER_BYTES: usize = 44;

/// Most chunks of a trace: what a start touches is a few hundred. With it a false trace brings in 1 GiB at most.
pub const CHUNKS_MAX: usize = (1 << 30) / CHUNK_BYTES_MAX;
/// Longest trace file.
pub const BYTES_MAX: usize = HEADER_BYTES + 4 * CHUNKS_MAX;

/// A start has ended when nothing new was touched for so long. A program that computes for longer than this before it goes
/// on to load has a trace of its beginning, which is where waiting hurts.
pub const QUIET: Duration = Duration::from_secs(10);
/// And at the latest after this: what is touched then belongs to the work, not to the start.
pub const LONGEST: Duration = Duration::from_secs(120);

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TraceError {
    #[error("trace of {0} bytes, which is no length of one")]
    Length(usize),
    #[error("trace does not begin with SIFRTRC1")]
    Magic,
    #[error("trace is of the flist {0}")]
    Flist(Digest),
    #[error("trace names chunk {0}, which its flist does not have, or names it twice")]
    Chunk(u32),
}

/// Checked: of this flist, inside it, without repetition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trace {
    flist: Digest,
    chunks: Vec<u32>,
}

impl Trace {
    /// Reads the trace of an flist that has `count` chunks.
    pub fn decode(bytes: &[u8], flist: &Digest, count: usize) -> Result<Self, TraceError> {
        let length = TraceError::Length(bytes.len());
        if bytes.len() < HEADER_BYTES || bytes.len() > BYTES_MAX {
            return Err(length);
        }
        let (header, rest) = bytes.split_at(HEADER_BYTES);
        if header[..8] != MAGIC {
            return Err(TraceError::Magic);
        }
        let named = Digest(header[8..40].try_into().expect("32 bytes"));
        if named != *flist {
            return Err(TraceError::Flist(named));
        }
        let said = u32::from_le_bytes(header[40..].try_into().expect("4 bytes"));
        let (words, tail) = rest.as_chunks::<4>();
        if !tail.is_empty() || words.len() as u64 != u64::from(said) {
            return Err(length);
        }
        let chunks: Vec<u32> = words.iter().map(|w| u32::from_le_bytes(*w)).collect();
        let mut seen = HashSet::new();
        let bad = |c: &&u32| **c as usize >= count || !seen.insert(**c);
        match chunks.iter().find(bad) {
            Some(chunk) => Err(TraceError::Chunk(*chunk)),
            None => Ok(Self {
                flist: *flist,
                chunks,
            }),
        }
    }

    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(HEADER_BYTES + 4 * self.chunks.len());
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&self.flist.0);
        let count = u32::try_from(self.chunks.len()).expect("at most CHUNKS_MAX");
        out.extend_from_slice(&count.to_le_bytes());
        self.chunks
            .iter()
            .for_each(|c| out.extend_from_slice(&c.to_le_bytes()));
        out
    }

    pub fn flist(&self) -> &Digest {
        &self.flist
    }

    /// Indices into the flist's chunks, in the order of their first touch.
    pub fn chunks(&self) -> &[u32] {
        &self.chunks
    }
}

/// Name of an flist's trace in a store, beside `<hex>.flist`.
pub fn object(flist: &Digest) -> String {
    format!("{}.trace", flist.hex())
}

/// Takes down a first run. Pure: time is passed in.
#[derive(Debug, Clone, Default)]
pub struct Recorder {
    chunks: Vec<u32>,
    seen: HashSet<u32>,
    first: Option<Duration>,
    last: Duration,
}

impl Recorder {
    /// A chunk of the image was read, by any of its VMs.
    pub fn touch(&mut self, chunk: u32, now: Duration) {
        if self.chunks.len() < CHUNKS_MAX && self.seen.insert(chunk) {
            self.first.get_or_insert(now);
            self.last = now;
            self.chunks.push(chunk);
        }
    }

    /// When the start counts as over if nothing else is touched; `None` while it has not begun.
    pub fn due(&self) -> Option<Duration> {
        let first = self.first?;
        if self.chunks.len() >= CHUNKS_MAX {
            return Some(self.last);
        }
        Some((self.last + QUIET).min(first + LONGEST))
    }

    pub fn finish(self, flist: Digest) -> Trace {
        let chunks = self.chunks;
        Trace { flist, chunks }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const F: Digest = Digest([0xf; 32]);

    fn trace(chunks: &[u32]) -> Trace {
        let mut recorder = Recorder::default();
        for chunk in chunks {
            recorder.touch(*chunk, Duration::ZERO);
        }
        recorder.finish(F)
    }

    #[test]
    fn a_trace_reads_back_in_its_order() {
        let trace = trace(&[7, 0, 3, 7]);
        assert_eq!(trace.chunks(), [7, 0, 3]);
        assert_eq!(Trace::decode(&trace.encode(), &F, 8), Ok(trace));
    }

    #[test]
    fn what_is_not_of_this_flist_is_refused_whole() {
        let bytes = trace(&[1, 2]).encode();
        let other = Digest([1; 32]);
        let refused = |bytes: &[u8], flist, count| Trace::decode(bytes, flist, count).err();
        assert_eq!(refused(&bytes, &other, 8), Some(TraceError::Flist(F)));
        assert_eq!(refused(&bytes, &F, 2), Some(TraceError::Chunk(2)));
        let mut twice = bytes.clone();
        twice[48] = 1;
        assert_eq!(refused(&twice, &F, 8), Some(TraceError::Chunk(1)));
        let short = &bytes[..bytes.len() - 1];
        assert_eq!(refused(short, &F, 8), Some(TraceError::Length(51)));
        let long = vec![0; BYTES_MAX + 4];
        assert_eq!(refused(&long, &F, 8), Some(TraceError::Length(long.len())));
        assert_eq!(refused(&[0; 44], &F, 8), Some(TraceError::Magic));
    }

    #[test]
    fn a_start_is_over_when_nothing_new_is_touched_or_it_took_too_long() {
        let mut recorder = Recorder::default();
        assert_eq!(recorder.due(), None);
        let mut now = Duration::from_secs(5);
        recorder.touch(1, now);
        assert_eq!(recorder.due(), Some(now + QUIET));
        recorder.touch(1, now + QUIET / 2);
        assert_eq!(recorder.due(), Some(now + QUIET), "it was known");
        for chunk in 2..40 {
            now += QUIET / 2;
            recorder.touch(chunk, now);
        }
        assert_eq!(recorder.due(), Some(Duration::from_secs(5) + LONGEST));
    }

    #[test]
    fn a_trace_has_an_end() {
        let mut recorder = Recorder::default();
        let now = Duration::from_secs(1);
        for chunk in 0..2 * u32::try_from(CHUNKS_MAX).expect("few") {
            recorder.touch(chunk, now);
        }
        assert_eq!(recorder.due(), Some(now));
        assert_eq!(recorder.finish(F).encode().len(), BYTES_MAX);
    }

    proptest! {
        #[test]
        fn hostile_bytes_are_refused_or_add_up(
            mut chunks in prop::collection::vec(any::<u32>(), 0..20), count in 0usize..40,
            tail in prop::collection::vec(any::<u8>(), 0..6), said in 0u32..24,
        ) {
            chunks.iter_mut().for_each(|c| *c %= 50);
            let mut bytes = MAGIC.to_vec();
            bytes.extend(F.0);
            bytes.extend(said.to_le_bytes());
            chunks.iter().for_each(|c| bytes.extend(c.to_le_bytes()));
            bytes.extend(tail);
            if let Ok(read) = Trace::decode(&bytes, &F, count) {
                prop_assert_eq!(read.encode(), bytes);
                let distinct: HashSet<_> = read.chunks().iter().collect();
                prop_assert!(distinct.len() == read.chunks().len());
                prop_assert!(read.chunks().iter().all(|c| (*c as usize) < count));
            }
        }
    }
}
