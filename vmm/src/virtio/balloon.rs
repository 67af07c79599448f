//! virtio-balloon: memory goes back to the host, and the guest says how it is doing.
//!
//! Owns: what the guest may keep (`num_pages`), pages it has put into the balloon, free pages that it reports,
//! its statistics. Refuses: pages outside its memory, and requests of any length; the host's kernel does the
//! rest within a turn's share.

use std::ops::Range;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use types::metrics::{Balloon as Standing, GuestMemory};
use types::vm::Balloon as Spec;
use virtio_bindings::virtio_ids::VIRTIO_ID_BALLOON;
use vm_memory::{GuestAddress, GuestMemoryBackend};

use super::ring::{Ring, Violation};
use super::{Device, Foreign, Ready, Turn};
use crate::memory::layout::MEMORY_MIB_MIN;
use crate::memory::{GuestRam, reclaim};
use crate::report::Reports;

/// Inflate, deflate, and of these two those that were agreed: statistics, reports.
/// Linux wants room for reports of 32 ranges (PAGE_REPORTING_CAPACITY), and uses one entry of the others.
const QUEUES: [u16; 4] = [32; 4];
const INFLATE: usize = 0;
const DEFLATE: usize = 1;
const FIRST_OPTIONAL: usize = 2;

/// Feature bits (VIRTIO 1.2 section 5.5.3).
const STATISTICS: u64 = 1 << 1;
const DEFLATE_ON_OOM: u64 = 1 << 2;
const REPORTING: u64 = 1 << 5;

/// The unit of the interface, whatever pages a guest has.
const PAGE: u64 = 4096;
const PAGES_PER_MIB: u64 = (1 << 20) / PAGE;
/// Most page numbers of one request: a page of them. Linux sends 256, Windows 1024.
const PFNS_MAX: usize = 1024;
const PFN_BYTES: usize = 4;
/// Requests of one turn. Each can make the kernel free a lot, and vsock waits for the same thread.
const REQUESTS_PER_TURN: usize = 16;
/// A statistic is a tag of two bytes and a value of eight. Linux knows 16 of them, and sends each once.
const STATISTIC_BYTES: usize = 10;
const STATISTICS_MAX: usize = 64;

/// Tags of VIRTIO 1.2 section 5.5.6.4, and 10 (OOM kills) of Linux' header.
fn field(statistics: &mut GuestMemory, tag: u16) -> Option<&mut Option<u64>> {
    match tag {
        2 => Some(&mut statistics.major_faults),
        4 => Some(&mut statistics.free_bytes),
        5 => Some(&mut statistics.total_bytes),
        6 => Some(&mut statistics.available_bytes),
        7 => Some(&mut statistics.cache_bytes),
        10 => Some(&mut statistics.oom_kills),
        _ => None,
    }
}

/// The last of several equal tags counts; a torn end is left out.
fn parse(bytes: &[u8]) -> GuestMemory {
    let mut out = GuestMemory::default();
    for item in bytes.chunks_exact(STATISTIC_BYTES) {
        let (tag, value) = item.split_at(2);
        let tag = u16::from_le_bytes(tag.try_into().expect("2 bytes"));
        if let Some(field) = field(&mut out, tag) {
            *field = Some(u64::from_le_bytes(value.try_into().expect("8 bytes")));
        }
    }
    out
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a guest with {memory_mib} MiB keeps {MEMORY_MIB_MIN} to {memory_mib} MiB, not {mib}")]
pub(crate) struct BalloonError {
    mib: u64,
    memory_mib: u64,
}

#[derive(Debug)]
pub(crate) struct Balloon {
    offered: u64,
    /// `num_pages` is ours, `actual` is the driver's.
    config: [u8; 8],
    statistics_queue: Option<usize>,
    reports_queue: Option<usize>,
    /// The driver's buffer for statistics. It comes back when somebody wants new ones.
    held: Option<u16>,
    asked: bool,
    standing: Standing,
    memory_mib: u64,
    /// The specification says what the guest is to keep.
    is_targeted: bool,
    reports: Reports,
}

/// What a snapshot keeps of the balloon: the configuration space as the driver knows it.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct BalloonState {
    target_pages: u32,
    actual_pages: u32,
}

impl Balloon {
    /// For a guest with `memory_mib` MiB.
    pub(crate) fn new(spec: &Spec, memory_mib: u64) -> Result<Self, BalloonError> {
        let bit = |on, bit| if on { bit } else { 0 };
        let mut balloon = Self {
            offered: STATISTICS
                | bit(spec.deflate_on_oom, DEFLATE_ON_OOM)
                | bit(spec.free_page_reporting, REPORTING),
            config: [0; 8],
            statistics_queue: None,
            reports_queue: None,
            held: None,
            asked: false,
            standing: Standing::default(),
            memory_mib,
            is_targeted: spec.target_mib.is_some(),
            reports: Reports::default(),
        };
        balloon.keep(spec.target_mib.unwrap_or(memory_mib))?;
        Ok(balloon)
    }

    /// What the guest is to keep; the balloon is to hold the rest. The driver is told by a configuration
    /// interrupt, and does it as it can.
    pub(crate) fn keep(&mut self, mib: u64) -> Result<(), BalloonError> {
        let memory_mib = self.memory_mib;
        if !(MEMORY_MIB_MIN..=memory_mib).contains(&mib) {
            return Err(BalloonError { mib, memory_mib });
        }
        let pages = (memory_mib - mib).saturating_mul(PAGES_PER_MIB);
        let pages = u32::try_from(pages).unwrap_or(u32::MAX);
        self.standing.target_bytes = u64::from(pages) * PAGE;
        self.config[..4].copy_from_slice(&pages.to_le_bytes());
        Ok(())
    }

    /// How things are, and from the next turn on newer statistics.
    pub(crate) fn standing(&mut self) -> Standing {
        self.asked = true;
        self.standing
    }

    /// Gives a range back. Where the kernel refuses, the guest has lost nothing, and goes on.
    fn give_back(&mut self, ram: &GuestRam, range: &Range<u64>) {
        match reclaim::give_back(ram, range) {
            Ok(bytes) => self.standing.returned_bytes += bytes,
            Err(error) => self.reports.say(format_args!(
                "balloon: return memory at {:#x}: {error}",
                range.start
            )),
        }
    }

    fn inflate(&mut self, ring: &mut Ring<'_>) -> Result<Turn, Violation> {
        ring.drain_some(REQUESTS_PER_TURN, |ring, chain| {
            let length = usize::try_from(chain.readable.bytes()).unwrap_or(usize::MAX);
            if length > PFNS_MAX * PFN_BYTES {
                return Err(Violation::Request(
                    "more pages at once than a page can name",
                ));
            }
            let mut bytes = vec![0; length];
            chain.readable.copy_to(ring.ram(), &mut bytes);
            for range in ranges(&bytes) {
                if !ring.ram().check_range(
                    GuestAddress(range.start),
                    usize::try_from(range.end - range.start).expect("4 MiB at most"),
                ) {
                    return Err(Violation::Request("a page that is not memory"));
                }
                self.give_back(ring.ram(), &range);
            }
            ring.complete(chain.head, 0)
        })
    }

    /// Pages that the guest takes back come with its first touch of them.
    fn deflate(ring: &mut Ring<'_>) -> Result<Turn, Violation> {
        ring.drain_some(REQUESTS_PER_TURN, |ring, chain| {
            ring.complete(chain.head, 0)
        })
    }

    /// Free pages as device-writable buffers, so that their content is known to be lost.
    fn take_reports(&mut self, ring: &mut Ring<'_>) -> Result<Turn, Violation> {
        ring.drain_some(REQUESTS_PER_TURN, |ring, chain| {
            for segment in chain.writable.iter() {
                let start = segment.address.0;
                self.give_back(ring.ram(), &(start..start + u64::from(segment.length)));
            }
            ring.complete(chain.head, 0)
        })
    }

    fn take_statistics(&mut self, ring: &mut Ring<'_>) -> Result<Turn, Violation> {
        // The order matters: a buffer that came meanwhile is as new as can be.
        if std::mem::take(&mut self.asked)
            && let Some(head) = self.held.take()
        {
            ring.complete(head, 0)?;
        }
        ring.drain_some(REQUESTS_PER_TURN, |ring, chain| {
            let length = usize::try_from(chain.readable.bytes()).unwrap_or(usize::MAX);
            let mut bytes = vec![0; length.min(STATISTICS_MAX * STATISTIC_BYTES)];
            chain.readable.copy_to(ring.ram(), &mut bytes);
            self.standing.guest = parse(&bytes);
            // A driver has one buffer; of several the last is kept.
            match self.held.replace(chain.head) {
                Some(before) => ring.complete(before, 0),
                None => Ok(()),
            }
        })
    }
}

/// Page numbers, four bytes each, as ranges of addresses in order and without overlap.
fn ranges(bytes: &[u8]) -> Vec<Range<u64>> {
    let number = |four: &[u8]| u32::from_le_bytes(four.try_into().expect("4 bytes"));
    let mut pfns: Vec<u32> = bytes.chunks_exact(PFN_BYTES).map(number).collect();
    pfns.sort_unstable();
    pfns.dedup();
    let mut out: Vec<Range<u64>> = Vec::new();
    for pfn in pfns {
        let start = u64::from(pfn) * PAGE;
        match out.last_mut() {
            Some(last) if last.end == start => last.end += PAGE,
            _ => out.push(start..start + PAGE),
        }
    }
    out
}

impl Device for Balloon {
    const ID: u32 = VIRTIO_ID_BALLOON;

    fn queues(&self) -> &[u16] {
        match self.offered & REPORTING {
            0 => &QUEUES[..3],
            _ => &QUEUES,
        }
    }

    fn features(&self) -> u64 {
        self.offered
    }

    fn config(&self) -> &[u8] {
        &self.config
    }

    fn write_config(&mut self, offset: usize, data: &[u8]) {
        if let (4, Ok(actual)) = (offset, <[u8; 4]>::try_from(data)) {
            self.config[4..].copy_from_slice(&actual);
            self.standing.actual_bytes = u64::from(u32::from_le_bytes(actual)) * PAGE;
        }
    }

    fn activate(&mut self, features: u64) {
        // Queues that were not agreed have no number (section 5.5.2; Linux and QEMU count so).
        let mut next = FIRST_OPTIONAL;
        let mut place = |feature| {
            let agreed = features & feature != 0;
            next += usize::from(agreed);
            agreed.then_some(next - 1)
        };
        self.statistics_queue = place(STATISTICS);
        self.reports_queue = place(REPORTING);
    }

    fn reset(&mut self) {
        (self.statistics_queue, self.reports_queue) = (None, None);
        (self.held, self.asked) = (None, false);
        self.config[4..].fill(0);
        self.standing.actual_bytes = 0;
        self.standing.guest = GuestMemory::default();
    }

    /// The buffer for statistics goes back to its ring.
    fn quiesce(&mut self, rings: &mut [Ring<'_>]) -> Result<(), Violation> {
        if let (Some(queue), Some(head)) = (self.statistics_queue, self.held.take()) {
            rings[queue].untake(&[head])?;
        }
        Ok(())
    }

    fn save(&self) -> Value {
        let word = |at: usize| u32::from_le_bytes(self.config[at..at + 4].try_into().expect("4"));
        let state = BalloonState {
            target_pages: word(0),
            actual_pages: word(4),
        };
        serde_json::to_value(state).expect("plain data")
    }

    /// What the guest is to keep is what the specification says, or else what was said to it.
    fn restore(&mut self, state: &Value) -> Result<(), Foreign> {
        let state = BalloonState::deserialize(state).map_err(|_| Foreign)?;
        if !self.is_targeted {
            let taken_mib = u64::from(state.target_pages) / PAGES_PER_MIB;
            let left_mib = self.memory_mib.checked_sub(taken_mib).ok_or(Foreign)?;
            self.keep(left_mib).map_err(|_| Foreign)?;
        }
        self.write_config(4, &state.actual_pages.to_le_bytes());
        Ok(())
    }

    /// Targets may differ. Whether there are statistics and reports, features and queues say.
    fn shape(&self) -> Vec<u8> {
        Vec::new()
    }

    fn serve(&mut self, ready: Ready, rings: &mut [Ring<'_>]) -> Result<Turn, Violation> {
        let mut turn = Turn::Done;
        if ready.queue(INFLATE) {
            turn = turn.and(self.inflate(&mut rings[INFLATE])?);
        }
        if ready.queue(DEFLATE) {
            turn = turn.and(Self::deflate(&mut rings[DEFLATE])?);
        }
        if let Some(queue) = self.statistics_queue
            && (ready.queue(queue) || self.asked)
        {
            turn = turn.and(self.take_statistics(&mut rings[queue])?);
        }
        if let Some(queue) = self.reports_queue
            && ready.queue(queue)
        {
            turn = turn.and(self.take_reports(&mut rings[queue])?);
        }
        Ok(turn)
    }
}

#[cfg(test)]
#[path = "balloon_tests.rs"]
mod tests;
