//! The memory file: guest memory as it lies in the guest, its ranges one after the other.
//!
//! ```text
//! full:          every page that is not zero at its place; holes are zeros
//! differential:  the pages of `MemoryState::pages` at their places; holes elsewhere, and where they are zero
//! ```
//!
//! A differential file is laid over what it is based on by taking exactly the pages of its list from it,
//! in the order in which the snapshots were taken.
//!
//! Owns: writing and checking these files, by blocks with a digest each.
//! Refuses: files of another length, and blocks that are not what was written.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use serde::{Deserialize, Serialize};
use vm_memory::{
    Bytes, GuestMemoryBackend, GuestMemoryRegion, GuestRegionMmap, MemoryRegionAddress,
};

use crate::memory::dirty::DirtyLog;
use crate::memory::{self, GuestRam, PAGE};

/// What one digest covers, and what is read or written at once.
pub(crate) const BLOCK: usize = 256 << 10;
const PAGES_OF_BLOCK: usize = BLOCK / PAGE;

#[derive(Debug, thiserror::Error)]
pub(crate) enum MemoryFileError {
    #[error("write the snapshot's memory")]
    Write(#[source] io::Error),
    #[error("read guest memory")]
    Guest(#[source] vm_memory::GuestMemoryError),
    #[error("read the snapshot's memory")]
    Read(#[source] io::Error),
    #[error(
        "the snapshot's memory has {found} bytes, its state says {said}: the file was cut or is another snapshot's"
    )]
    Length { found: u64, said: u64 },
    #[error(
        "the snapshot's memory is damaged at {at:#x}, its digest does not match: take the file from where it was copied from"
    )]
    Digest { at: u64 },
    #[error("the snapshot's list of pages or blocks leaves its memory, or is in no order")]
    List,
}

/// A digest of a block of the file that is not all zeros.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Block {
    index: u64,
    /// BLAKE3, in hexadecimal.
    digest: String,
}

/// Pages one after the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Run {
    pub(crate) first: u64,
    pub(crate) count: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct MemoryState {
    /// Length of the file.
    pub(crate) bytes: u64,
    /// In order; blocks that are not here are zeros.
    pub(crate) blocks: Vec<Block>,
    /// Of a differential snapshot, the pages that it replaces, in order.
    pub(crate) pages: Option<Vec<Run>>,
}

/// Which pages are wanted in the file.
pub(crate) enum Wanted<'a> {
    /// All. `anonymous`: those that were never touched need not be read.
    All { anonymous: bool },
    /// Those whose bit is set, by region.
    Marked(&'a [Vec<u64>]),
}

/// Writes memory into a file in the place of whatever it held. Returns what it holds, and the bytes written.
pub(crate) fn write(
    file: &File,
    ram: &GuestRam,
    wanted: &Wanted<'_>,
) -> Result<(MemoryState, u64), MemoryFileError> {
    let bytes = ram.iter().map(GuestMemoryRegion::len).sum();
    file.set_len(0).map_err(MemoryFileError::Write)?;
    file.set_len(bytes).map_err(MemoryFileError::Write)?;
    let mut writer = Writer {
        file,
        buffer: vec![0; BLOCK],
        blocks: Vec::new(),
        written: 0,
    };
    let mut pages = Vec::new();
    let mut start = 0;
    for (number, region) in ram.iter().enumerate() {
        for at in (0..region.size()).step_by(BLOCK) {
            let count = (region.size() - at).min(BLOCK) / PAGE;
            let keep = keep(region, number, at, count, wanted)?;
            let first = (start + at as u64) / PAGE as u64;
            if matches!(wanted, Wanted::Marked(_)) {
                add_runs(&mut pages, first, &keep);
            }
            writer.block(region, at, first, &keep)?;
        }
        start += region.len();
    }
    let state = MemoryState {
        bytes,
        blocks: writer.blocks,
        pages: matches!(wanted, Wanted::Marked(_)).then_some(pages),
    };
    Ok((state, writer.written))
}

/// Of a block's pages, which to look at.
fn keep(
    region: &GuestRegionMmap<DirtyLog>,
    number: usize,
    at: usize,
    count: usize,
    wanted: &Wanted<'_>,
) -> Result<Vec<bool>, MemoryFileError> {
    match wanted {
        Wanted::All { anonymous: false } => Ok(vec![true; count]),
        Wanted::All { anonymous: true } => {
            let mut present = vec![0; count];
            memory::resident(region, at, &mut present).map_err(MemoryFileError::Write)?;
            Ok(present.iter().map(|byte| byte & 1 != 0).collect())
        }
        Wanted::Marked(bits) => {
            let bits = bits.get(number).map(Vec::as_slice).unwrap_or_default();
            let marked = |page: usize| {
                bits.get(page / 64)
                    .is_some_and(|w| w >> (page % 64) & 1 != 0)
            };
            Ok((at / PAGE..at / PAGE + count).map(marked).collect())
        }
    }
}

/// Adds the pages of `keep` from page `first` on to the runs before them.
fn add_runs(runs: &mut Vec<Run>, first: u64, keep: &[bool]) {
    for (page, _) in (first..).zip(keep).filter(|(_, keep)| **keep) {
        match runs.last_mut().filter(|run| run.first + run.count == page) {
            Some(run) => run.count += 1,
            None => runs.push(Run {
                first: page,
                count: 1,
            }),
        }
    }
}

struct Writer<'a> {
    file: &'a File,
    buffer: Vec<u8>,
    blocks: Vec<Block>,
    written: u64,
}

impl Writer<'_> {
    /// One block: the kept pages that are not zero go to the file.
    fn block(
        &mut self,
        region: &GuestRegionMmap<DirtyLog>,
        at: usize,
        first: u64,
        keep: &[bool],
    ) -> Result<(), MemoryFileError> {
        if !keep.contains(&true) {
            return Ok(());
        }
        let block = &mut self.buffer[..keep.len() * PAGE];
        block.fill(0);
        for (index, page) in block.chunks_exact_mut(PAGE).enumerate() {
            if keep[index] {
                let at = MemoryRegionAddress((at + index * PAGE) as u64);
                region
                    .read_slice(page, at)
                    .map_err(MemoryFileError::Guest)?;
            }
        }
        let full: Vec<bool> = block
            .chunks_exact(PAGE)
            .map(|page| !is_zero(page))
            .collect();
        if !full.contains(&true) {
            return Ok(());
        }
        let mut runs = Vec::new();
        add_runs(&mut runs, 0, &full);
        for run in runs {
            let from = usize::try_from(run.first).expect("in a block") * PAGE;
            let bytes = &block[from..from + usize::try_from(run.count).expect("in a block") * PAGE];
            let place = first * PAGE as u64 + from as u64;
            self.file
                .write_all_at(bytes, place)
                .map_err(MemoryFileError::Write)?;
            self.written += bytes.len() as u64;
        }
        self.blocks.push(Block {
            index: first / PAGES_OF_BLOCK as u64,
            digest: blake3::hash(block).to_hex().to_string(),
        });
        Ok(())
    }
}

/// In whole words: the compiler makes it as fast as memory.
fn is_zero(page: &[u8]) -> bool {
    page.iter().fold(0, |all, byte| all | byte) == 0
}

impl MemoryState {
    /// Whether the file can be this snapshot's at all.
    pub(crate) fn check_length(&self, file: &File) -> Result<(), MemoryFileError> {
        let found = file.metadata().map_err(MemoryFileError::Read)?.len();
        if found != self.bytes {
            let said = self.bytes;
            return Err(MemoryFileError::Length { found, said });
        }
        Ok(())
    }

    /// Whether all of the file is what was written.
    pub(crate) fn verify(&self, file: &File) -> Result<(), MemoryFileError> {
        let mut buffer = vec![0; BLOCK];
        let mut listed = self.blocks.iter().peekable();
        for index in 0..self.bytes.div_ceil(BLOCK as u64) {
            let at = index * BLOCK as u64;
            let length = usize::try_from((self.bytes - at).min(BLOCK as u64)).expect("a block");
            let block = &mut buffer[..length];
            file.read_exact_at(block, at)
                .map_err(MemoryFileError::Read)?;
            let good = match listed.next_if(|b| b.index == index) {
                Some(listed) => blake3::hash(block).to_hex().as_str() == listed.digest,
                None => is_zero(block),
            };
            if !good {
                return Err(MemoryFileError::Digest { at });
            }
        }
        match listed.next() {
            Some(_) => Err(MemoryFileError::List),
            None => Ok(()),
        }
    }

    /// Takes the pages of this differential snapshot from its file into guest memory.
    pub(crate) fn lay_over(&self, file: &File, ram: &GuestRam) -> Result<(), MemoryFileError> {
        let mut buffer = vec![0; BLOCK];
        let mut before = 0;
        for run in self.pages.iter().flatten() {
            let end = run.first.checked_add(run.count);
            let end = end.and_then(|page| page.checked_mul(PAGE as u64));
            // In order, so that no list of runs takes longer than its memory.
            let end = end
                .filter(|end| run.count > 0 && run.first >= before && *end <= self.bytes)
                .ok_or(MemoryFileError::List)?;
            before = run.first + run.count;
            let mut at = run.first * PAGE as u64;
            while at < end {
                let length = usize::try_from((end - at).min(BLOCK as u64)).expect("a block");
                let part = &mut buffer[..length];
                file.read_exact_at(part, at)
                    .map_err(MemoryFileError::Read)?;
                put(ram, at, part)?;
                at += length as u64;
            }
        }
        Ok(())
    }
}

/// Writes at a place of the file into guest memory; a run may go from one range of RAM into the next.
fn put(ram: &GuestRam, mut at: u64, mut bytes: &[u8]) -> Result<(), MemoryFileError> {
    for region in ram.iter() {
        if at >= region.len() {
            at -= region.len();
            continue;
        }
        let here = usize::try_from(region.len() - at)
            .expect("64-bit only")
            .min(bytes.len());
        let (now, later) = bytes.split_at(here);
        region
            .write_slice(now, MemoryRegionAddress(at))
            .map_err(MemoryFileError::Guest)?;
        (at, bytes) = (0, later);
        if bytes.is_empty() {
            return Ok(());
        }
    }
    Err(MemoryFileError::List)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use types::vm::HugePages;
    use vm_memory::GuestAddress;

    const MIB: u64 = 32;

    fn content(ram: &GuestRam) -> Vec<u8> {
        let mut bytes = vec![0; usize::try_from(MIB << 20).expect("small")];
        ram.read_slice(&mut bytes, GuestAddress(0)).expect("inside");
        bytes
    }

    fn guest() -> Arc<GuestRam> {
        let ram = memory::allocate(MIB, HugePages::None).expect("memory");
        for (at, byte) in [
            (0, 1),
            (0x4_0000 - 2, 2),
            (0x12_3456, 3),
            ((MIB << 20) - 5, 4),
        ] {
            ram.write_slice(&[byte; 5], GuestAddress(at))
                .expect("inside");
        }
        ram
    }

    #[test]
    fn a_full_file_holds_what_is_not_zero_and_maps_as_the_same_memory() {
        use std::os::unix::fs::MetadataExt;
        let ram = guest();
        for anonymous in [true, false] {
            let file = tempfile::tempfile().expect("temporary file");
            let (state, written) = write(&file, &ram, &Wanted::All { anonymous }).expect("writes");
            assert_eq!((state.bytes, written), (MIB << 20, 5 * PAGE as u64));
            assert_eq!(state.blocks.len(), 4);
            assert!(file.metadata().expect("stat").blocks() * 512 <= 16 * PAGE as u64);
            state.check_length(&file).expect("whole");
            state.verify(&file).expect("undamaged");
            let clone = memory::map_private(MIB, &Arc::new(file)).expect("maps");
            assert_eq!(content(&clone), content(&ram));
        }
    }

    #[test]
    fn a_differential_file_is_laid_over_its_base() {
        let ram = guest();
        let base = tempfile::tempfile().expect("temporary file");
        write(&base, &ram, &Wanted::All { anonymous: true }).expect("writes");
        let region = ram.iter().next().expect("one");
        region.bitmap().begin();
        // One page anew, one that becomes zero, one in the middle of nothing.
        for (at, byte) in [(0u64, 9), (0x12_3000, 0), (0x100_0000, 7)] {
            ram.write_slice(&[byte; PAGE], GuestAddress(at))
                .expect("inside");
        }
        let mut bits = vec![vec![0; region.size() / PAGE / 64]];
        region.bitmap().take(&mut bits[0]);
        let file = tempfile::tempfile().expect("temporary file");
        let (state, written) = write(&file, &ram, &Wanted::Marked(&bits)).expect("writes");
        assert_eq!(written, 2 * PAGE as u64);
        let run = |first| Run { first, count: 1 };
        assert_eq!(state.pages, Some(vec![run(0), run(0x123), run(0x1000)]));
        state.verify(&file).expect("undamaged");
        let clone = memory::map_private(MIB, &Arc::new(base)).expect("maps");
        assert_ne!(content(&clone), content(&ram));
        state.lay_over(&file, &clone).expect("fits");
        assert_eq!(content(&clone), content(&ram));
    }

    #[test]
    fn a_bit_that_differs_is_found_in_blocks_and_in_holes() {
        let ram = guest();
        let file = tempfile::tempfile().expect("temporary file");
        let (state, _) = write(&file, &ram, &Wanted::All { anonymous: true }).expect("writes");
        for at in [0, 7, 0x4_0000, 0x50_0000, (MIB << 20) - 1] {
            let mut byte = [0];
            file.read_exact_at(&mut byte, at).expect("reads");
            file.write_all_at(&[byte[0] ^ 4], at).expect("writes");
            let error = state.verify(&file).expect_err("damaged");
            assert!(matches!(error, MemoryFileError::Digest { .. }), "{error}");
            file.write_all_at(&byte, at).expect("writes");
        }
        state.verify(&file).expect("as it was");
        file.set_len((MIB << 20) - 1).expect("cuts");
        assert!(state.check_length(&file).is_err());
    }

    #[test]
    fn lists_that_leave_memory_are_refused() {
        let ram = guest();
        let file = tempfile::tempfile().expect("temporary file");
        let (mut state, _) = write(&file, &ram, &Wanted::All { anonymous: true }).expect("writes");
        for (first, count) in [
            (u64::MAX, 1),
            (0, u64::MAX),
            ((MIB << 20) / PAGE as u64, 1),
            (0, 0),
        ] {
            state.pages = Some(vec![Run { first, count }]);
            assert!(state.lay_over(&file, &ram).is_err());
        }
        let run = |first| Run { first, count: 2 };
        for (pages, good) in [
            ([0, 2, 9], true),
            ([0, 1, 9], false),
            ([0, 0, 9], false),
            ([9, 4, 2], false),
        ] {
            state.pages = Some(pages.map(run).to_vec());
            assert_eq!(state.lay_over(&file, &ram).is_ok(), good, "{pages:?}");
        }
        state.blocks.push(Block {
            index: 1 << 40,
            digest: String::new(),
        });
        assert!(state.verify(&file).is_err());
    }
}
