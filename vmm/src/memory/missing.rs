//! Guest memory whose pages come when they are first touched.
//!
//! Owns: which page belongs where, which have come and in which order, and the thread that brings them.
//! Refuses: to go on without a page. Who waits for one cannot be told of an error: the process ends.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::sync::{Arc, Barrier, Mutex, MutexGuard};

use sys::confine::BpfProgram;
use sys::userfault::{Filled, Userfault};
use types::metrics::Pages;
use types::vm::HugePages;
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

use super::{GuestRam, MemoryError, PAGE};
use crate::confine;
use crate::report;
use crate::snapshot::memory::Run;

/// Stack of the thread: nothing is kept there.
const STACK_BYTES: usize = 128 << 10;
/// Exit status of a machine that cannot go on.
const FAULT: i32 = 2;

/// One range of RAM, page for page as in the snapshot.
#[derive(Debug, Clone, Copy)]
struct Piece {
    /// Where it is in this process, and where its content is.
    to: usize,
    from: usize,
    /// In pages of the snapshot.
    first: u64,
    count: u64,
}

/// What has come so far.
#[derive(Debug, Default)]
struct Come {
    /// A bit a page of the snapshot.
    bits: Vec<u64>,
    /// In order, as far as there is room.
    order: Vec<u64>,
    pages: Pages,
}

impl Come {
    /// Whether it comes for the first time.
    fn note(&mut self, page: u64) -> bool {
        let word = usize::try_from(page / 64).expect("64-bit only");
        let Some(word) = self.bits.get_mut(word) else {
            return false;
        };
        let bit = 1 << (page % 64);
        let is_new = *word & bit == 0;
        *word |= bit;
        if is_new && self.order.len() < self.order.capacity() {
            self.order.push(page);
        }
        is_new
    }
}

pub(crate) struct Missing {
    fault: Userfault,
    pieces: Vec<Piece>,
    /// Keeps the content mapped, and the guest's memory.
    source: Arc<GuestRam>,
    ram: Arc<GuestRam>,
    come: Mutex<Come>,
}

impl Missing {
    /// Memory of `mib` MiB in which nothing is yet, and behind it `source`, which has as much. `order_max`: how many
    /// pages are remembered in order.
    pub(crate) fn new(
        device: &File,
        mib: u64,
        source: Arc<GuestRam>,
        order_max: usize,
    ) -> Result<Self, MemoryError> {
        let ram = super::allocate(mib, HugePages::None)?;
        let fault = Userfault::new(device).map_err(MemoryError::Userfault)?;
        let mut pieces = Vec::new();
        let mut first = 0;
        for (to, from) in ram.iter().zip(source.iter()) {
            let count = to.len().min(from.len()) / PAGE as u64;
            // SAFETY: a region is a mapping of guest memory, which is only ever read and written through raw
            // pointers and volatile slices. `ram` lives as long as what is made here.
            unsafe { fault.watch(to.as_ptr(), to.size()) }.map_err(MemoryError::Userfault)?;
            pieces.push(Piece {
                to: to.as_ptr() as usize,
                from: from.as_ptr() as usize,
                first,
                count,
            });
            first += count;
        }
        let pages = usize::try_from(first).expect("64-bit only");
        let come = Come {
            bits: vec![0; pages.div_ceil(64)],
            order: Vec::with_capacity(order_max.min(pages)),
            pages: Pages::default(),
        };
        Ok(Self {
            fault,
            pieces,
            source,
            ram,
            come: Mutex::new(come),
        })
    }

    pub(crate) fn ram(&self) -> &Arc<GuestRam> {
        &self.ram
    }

    fn come(&self) -> MutexGuard<'_, Come> {
        self.come.lock().expect("no panic while locked")
    }

    pub(crate) fn pages(&self) -> Pages {
        self.come().pages
    }

    /// Which pages have come, in order.
    pub(crate) fn order(&self) -> Vec<u64> {
        self.come().order.clone()
    }

    /// Brings pages before anybody waits for them.
    pub(crate) fn prefetch(&self, runs: &[Run]) -> io::Result<()> {
        // In the order of the file: what lies together is read together.
        let mut sorted = runs.to_vec();
        sorted.sort_unstable_by_key(|run| run.first);
        super::expect(&self.source, &sorted)?;
        for run in &sorted {
            let mut first = run.first;
            let end = run.first.saturating_add(run.count);
            while first < end {
                let Some(piece) = self.piece(first) else {
                    return Err(io::ErrorKind::InvalidInput.into());
                };
                let count = (end - first).min(piece.first + piece.count - first);
                self.fill(piece, first, count)?;
                first += count;
            }
        }
        let mut come = self.come();
        for page in runs.iter().flat_map(|r| r.first..r.first + r.count) {
            come.pages.prefetched += u64::from(come.note(page));
        }
        Ok(())
    }

    fn piece(&self, page: u64) -> Option<Piece> {
        let holds = |piece: &&Piece| (piece.first..piece.first + piece.count).contains(&page);
        self.pieces.iter().find(holds).copied()
    }

    /// Brings `count` pages of a piece, from `page` on.
    fn fill(&self, piece: Piece, page: u64, count: u64) -> io::Result<()> {
        let at = usize::try_from(page - piece.first).expect("64-bit only") * PAGE;
        let bytes = usize::try_from(count).expect("64-bit only") * PAGE;
        let mut done = 0;
        while done < bytes {
            let from = (piece.from + at + done) as *const u8;
            // SAFETY: `piece.from` is a mapping of `source`, which lives as long as `self` and is as long as
            // the piece says; a file that is cut under it is an error of the call. The place is in a range
            // that is watched.
            let filled = unsafe { self.fault.fill(piece.to + at + done, from, bytes - done) }?;
            done += match filled {
                Filled::Bytes(bytes) => bytes,
                Filled::There => PAGE,
            };
        }
        Ok(())
    }

    /// The page of the snapshot that belongs at `address`.
    fn page_at(&self, address: usize) -> Option<(Piece, u64)> {
        self.pieces.iter().find_map(|piece| {
            let offset = address.checked_sub(piece.to)? / PAGE;
            let page = u64::try_from(offset).ok().filter(|p| *p < piece.count)?;
            Some((*piece, piece.first + page))
        })
    }

    /// Brings the page that somebody waits for. One that has come and gone, because the guest gave it back, is
    /// zeros now.
    fn bring(&self, address: usize) -> io::Result<()> {
        let Some((piece, page)) = self.page_at(address) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        let is_new = {
            let mut come = self.come();
            let is_new = come.note(page);
            come.pages.faulted += u64::from(is_new);
            is_new
        };
        if is_new {
            return self.fill(piece, page, 1);
        }
        loop {
            match self.fault.zero(address / PAGE * PAGE, PAGE)? {
                Filled::Bytes(0) => {}
                Filled::Bytes(_) | Filled::There => return Ok(()),
            }
        }
    }

    /// Starts the thread that brings what is missing, from now until the process ends. Returns when it has its filter.
    pub(crate) fn serve(self: &Arc<Self>, filter: BpfProgram) -> io::Result<()> {
        let (missing, ready) = (Arc::clone(self), Arc::new(Barrier::new(2)));
        let there = Arc::clone(&ready);
        let thread = std::thread::Builder::new()
            .name("pages".to_owned())
            .stack_size(STACK_BYTES);
        thread.spawn(move || {
            if let Err(error) = confine::install(&filter) {
                end(&format!("install a system call filter: {error}"));
            }
            there.wait();
            loop {
                let brought = missing.fault.next().and_then(|at| missing.bring(at));
                if let Err(error) = brought {
                    end(&format!("bring a page of the snapshot: {error}"));
                }
            }
        })?;
        ready.wait();
        Ok(())
    }
}

#[expect(clippy::exit, reason = "threads that wait for a page wait for ever")]
fn end(message: &str) -> ! {
    report::line(&format!("sifr-vmm: {message}"));
    std::process::exit(FAULT)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::confine::Kind;
    use crate::memory::{allocate, reclaim};
    use vm_memory::{Bytes, GuestAddress};

    const MIB: u64 = 32;

    #[test]
    fn pages_come_as_they_are_touched_and_in_that_order_but_for_those_that_were_expected() {
        let device = File::options()
            .read(true)
            .write(true)
            .open("/dev/userfaultfd");
        // A kernel without it, or a user who may not: the laboratory has one.
        let Ok(device) = device else { return };
        let source = allocate(MIB, HugePages::None).expect("memory");
        let at = |page: u64| GuestAddress(page * PAGE as u64);
        for page in [3, 9, 10, 500] {
            let byte = u8::try_from(page % 251).expect("a byte");
            source.write_slice(&[byte; 8], at(page)).expect("inside");
        }
        let missing = Missing::new(&device, MIB, source, 5).expect("watched");
        let missing = Arc::new(missing);
        let run = |first, count| Run { first, count };
        missing
            .prefetch(&[run(9, 2), run(3, 1)])
            .expect("they are there");
        assert!(missing.prefetch(&[run(1 << 40, 1)]).is_err());
        let filter = confine::filter(Kind::Pages).expect("builds");
        missing.serve(filter).expect("starts");
        let ram = Arc::clone(missing.ram());
        let read = |page| ram.read_obj::<u64>(at(page)).expect("inside").to_le_bytes()[0];
        for page in [500, 10, 7, 3, 500, 9] {
            let expected = if page == 7 { 0 } else { page % 251 };
            assert_eq!(u64::from(read(page)), expected);
        }
        assert_eq!(missing.order(), [9, 10, 3, 500, 7]);
        let pages = missing.pages();
        assert_eq!((pages.prefetched, pages.faulted), (3, 2));
        // What a guest has given back is not the snapshot's any more.
        let gone = at(500).0..at(501).0;
        reclaim::give_back(&ram, &gone).expect("given back");
        assert_eq!(read(500), 0);
        // Beyond what is remembered in order, pages come all the same.
        assert_eq!(read(600), 0);
        assert_eq!(missing.order().len(), 5);
    }
}
