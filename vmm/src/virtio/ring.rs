//! One active queue, as a device uses it.
//!
//! Owns: taking chains, returning them, and telling the driver only when it wants to be told.
//! Refuses: to go on after the driver has broken the ring.

use std::io::Error as IoError;

use std::sync::atomic::{Ordering, fence};

use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};
use vmm_sys_util::eventfd::EventFd;

use super::Turn;
use super::chain::{Chain, ChainError};
use super::interrupt::{Interrupt, USED_BUFFER};
use crate::memory::GuestRam;
use crate::metrics::Counters;

/// Most requests of one turn: other devices, registers and the end of the machine come in between.
const TURN_MAX: usize = 256;

/// The driver broke the rules: its device stops until it is reset.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Violation {
    #[error("bad ring: {0}")]
    Ring(virtio_queue::Error),
    #[error("bad chain: {0}")]
    Chain(#[from] ChainError),
    #[error("bad request: {0}")]
    Request(&'static str),
    /// Not the driver's doing, but as final.
    #[error("{0}: {1}")]
    Host(&'static str, IoError),
}

impl From<virtio_queue::Error> for Violation {
    fn from(error: virtio_queue::Error) -> Self {
        Self::Ring(error)
    }
}

pub(crate) struct Ring<'a> {
    queue: &'a mut Queue,
    ram: &'a GuestRam,
    interrupt: &'a Interrupt,
    doorbell: &'a EventFd,
    counters: &'a Counters,
    /// Where the used ring stood when the driver was last told of it.
    told: u16,
}

/// A ring in the address space of this process, as far as nothing else is said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) size: u16,
    pub(crate) descriptors: u64,
    pub(crate) available: u64,
    pub(crate) used: u64,
    /// The used ring by its guest-physical address.
    pub(crate) used_in_guest: u64,
    /// Index of the next available entry.
    pub(crate) next: u16,
}

/// Offsets in the available ring: flags, index, entries, event index.
const AVAILABLE_ENTRIES: u64 = 4;
const AVAILABLE_ENTRY_BYTES: u64 = 2;
/// Entries of the used ring begin after flags and index, and have 8 bytes.
const USED_ENTRIES: u64 = 4;
const USED_ENTRY_BYTES: u64 = 8;
/// Flag in the available ring: the driver looks by itself.
const NO_INTERRUPT: u16 = 1;

impl<'a> Ring<'a> {
    pub(crate) fn new(
        queue: &'a mut Queue,
        ram: &'a GuestRam,
        interrupt: &'a Interrupt,
        doorbell: &'a EventFd,
        counters: &'a Counters,
    ) -> Self {
        let told = queue.next_used();
        Self {
            queue,
            ram,
            interrupt,
            doorbell,
            counters,
            told,
        }
    }

    pub(crate) fn ram(&self) -> &'a GuestRam {
        self.ram
    }

    pub(crate) fn doorbell(&self) -> &'a EventFd {
        self.doorbell
    }

    pub(crate) fn interrupt_line(&self) -> &'a EventFd {
        self.interrupt.line()
    }

    /// Whether somebody else signals the line: then a used buffer is always among the causes.
    pub(crate) fn lend_interrupt(&self, lent: bool) {
        match lent {
            true => self.interrupt.stand(USED_BUFFER),
            false => {
                self.interrupt.stand(0);
                // For a signal whose cause the driver has not read yet.
                self.interrupt.raise(USED_BUFFER);
            }
        }
    }

    /// Where the ring is, for who serves it in our place; `None` where the driver has not set it up.
    pub(crate) fn place(&self) -> Result<Option<Place>, Violation> {
        if !self.queue.ready() {
            return Ok(None);
        }
        let (size, entries) = (self.queue.size(), usize::from(self.queue.size()));
        let host = |address: u64, bytes: usize| {
            // In one piece of memory, and inside it.
            let slice = GuestMemoryBackend::get_slice(self.ram, GuestAddress(address), bytes);
            let slice = slice.map_err(virtio_queue::Error::GuestMemory)?;
            Ok::<_, Violation>(slice.ptr_guard().as_ptr().addr() as u64)
        };
        // VIRTIO 1.2 section 2.7: flags, index, entries and event index.
        Ok(Some(Place {
            size,
            descriptors: host(self.queue.desc_table(), entries * 16)?,
            available: host(self.queue.avail_ring(), entries * 2 + 6)?,
            used: host(self.queue.used_ring(), entries * 8 + 6)?,
            used_in_guest: self.queue.used_ring(),
            next: self.queue.next_avail(),
        }))
    }

    /// Goes on where another has stopped who had taken chains up to `next`, and has answered them.
    pub(crate) fn take_over(&mut self, next: u16) -> Result<(), Violation> {
        let used = self.queue.used_idx(self.ram, Ordering::Acquire)?.0;
        self.queue.set_next_avail(next);
        self.queue.set_next_used(used);
        self.told = used;
        Ok(())
    }

    /// Most chains that the driver can offer at once.
    pub(crate) fn size(&self) -> usize {
        usize::from(self.queue.size())
    }

    /// Chains that wait to be taken, by the driver's account: at most the ring's size.
    pub(crate) fn waiting(&self) -> usize {
        if !self.queue.ready() {
            return 0;
        }
        let offered = self.queue.avail_idx(self.ram, Ordering::Acquire);
        let count = offered.map_or(0, |at| at.0.wrapping_sub(self.queue.next_avail()));
        usize::from(count.min(self.queue.size()))
    }

    /// Puts chains back that were taken and neither begun nor completed, in the order they were taken in:
    /// they will be taken again first. The places they go to are free: a driver fills none of them before
    /// it has these chains back.
    pub(crate) fn untake(&mut self, heads: &[u16]) -> Result<(), Violation> {
        for head in heads.iter().rev() {
            let next = self.queue.next_avail().wrapping_sub(1);
            let slot = u64::from(next % self.queue.size());
            let at = AVAILABLE_ENTRIES + slot * AVAILABLE_ENTRY_BYTES;
            let address = GuestAddress(self.queue.avail_ring().wrapping_add(at));
            self.ram
                .write_obj(head.to_le(), address)
                .map_err(virtio_queue::Error::GuestMemory)?;
            self.queue.set_next_avail(next);
        }
        Ok(())
    }

    /// The next request. A queue that the driver has not set up has none.
    pub(crate) fn pop(&mut self) -> Result<Option<Chain>, Violation> {
        if !self.queue.ready() {
            return Ok(None);
        }
        match self.queue.iter(self.ram)?.next() {
            Some(chain) => {
                let chain = Chain::read(self.ram, chain)?;
                let (depth, bytes) = (self.depth()?, chain.readable.bytes());
                self.counters.taken(chain.head, depth, bytes);
                Ok(Some(chain))
            }
            None => Ok(None),
        }
    }

    /// Leaves the chain popped last, with so many readable bytes, to the next [`Ring::pop`]: the device could
    /// not finish it now.
    pub(crate) fn put_back(&mut self, readable: u64) {
        self.queue.go_to_previous_position();
        self.counters.put_back(readable);
    }

    /// Chains that the driver has offered and not got back.
    fn depth(&self) -> Result<u16, Violation> {
        let offered = self.queue.avail_idx(self.ram, Ordering::Relaxed)?;
        Ok(offered.0.wrapping_sub(self.queue.next_used()))
    }

    /// The request that is just being answered has failed.
    pub(crate) fn count_failure(&self) {
        self.counters.failed();
    }

    /// Gives a chain back, `written` bytes of it filled.
    pub(crate) fn complete(&mut self, head: u16, written: u32) -> Result<(), Violation> {
        self.queue.add_used(self.ram, head, written)?;
        self.counters.answered(head, self.depth()?, written);
        Ok(())
    }

    /// Gives several chains back so that the driver sees all of them or none: a received packet in
    /// pieces (VIRTIO 1.2 section 5.1.6.4).
    pub(crate) fn complete_together(&mut self, chains: &[(u16, u32)]) -> Result<(), Violation> {
        let Some(((last, written), before)) = chains.split_last() else {
            return Ok(());
        };
        let next = self.queue.next_used();
        for (place, (head, written)) in (0u16..).zip(before) {
            let slot = u64::from(next.wrapping_add(place) % self.queue.size());
            let at = USED_ENTRIES + slot * USED_ENTRY_BYTES;
            let entry = u64::from(*head) | u64::from(*written) << 32;
            let address = GuestAddress(self.queue.used_ring().wrapping_add(at));
            self.ram
                .write_obj(entry, address)
                .map_err(virtio_queue::Error::GuestMemory)?;
            self.counters.wrote(*written);
        }
        let skip = u16::try_from(before.len()).expect("a chain is on the ring once");
        self.queue.set_next_used(next.wrapping_add(skip));
        self.complete(*last, *written)
    }

    /// Interrupts the driver if buffers were returned and it asked for that.
    pub(crate) fn notify(&mut self) -> Result<(), Violation> {
        let (now, before) = (self.queue.next_used(), self.told);
        if now == before {
            return Ok(());
        }
        self.told = now;
        // The index must be visible before we look at what the driver wants to hear of.
        fence(Ordering::SeqCst);
        let field = match self.queue.event_idx_enabled() {
            true => AVAILABLE_ENTRIES + 2 * u64::from(self.queue.size()),
            false => 0,
        };
        let address = GuestAddress(self.queue.avail_ring().wrapping_add(field));
        let word = self.ram.load(address, Ordering::Relaxed).map(u16::from_le);
        let word = word.map_err(virtio_queue::Error::GuestMemory)?;
        let wanted = match self.queue.event_idx_enabled() {
            // It asked for the moment when entry `word` is used: has that passed just now?
            true => now.wrapping_sub(word).wrapping_sub(1) < now.wrapping_sub(before),
            false => word & NO_INTERRUPT == 0,
        };
        if wanted {
            self.interrupt.raise(USED_BUFFER);
        }
        Ok(())
    }

    /// Hands every waiting request to `each`, those that arrive meanwhile too, up to a turn's share.
    pub(crate) fn drain(
        &mut self,
        each: impl FnMut(&mut Self, Chain) -> Result<(), Violation>,
    ) -> Result<Turn, Violation> {
        self.drain_some(TURN_MAX, each)
    }

    /// The same with a share of its own, for requests that cost more than most. `share` is not 0.
    pub(crate) fn drain_some(
        &mut self,
        share: usize,
        mut each: impl FnMut(&mut Self, Chain) -> Result<(), Violation>,
    ) -> Result<Turn, Violation> {
        self.drain_share(share, (), |()| true, |ring, (), chain| each(ring, chain))
    }

    /// The same, as long as `open` holds. When it no longer does, the rest stays with the driver, which is
    /// not asked to tell of it: who closes also knows when to look again.
    pub(crate) fn drain_while<C>(
        &mut self,
        with: C,
        open: impl Fn(&mut C) -> bool,
        each: impl FnMut(&mut Self, &mut C, Chain) -> Result<(), Violation>,
    ) -> Result<Turn, Violation> {
        self.drain_share(TURN_MAX, with, open, each)
    }

    fn drain_share<C>(
        &mut self,
        mut share: usize,
        mut with: C,
        open: impl Fn(&mut C) -> bool,
        mut each: impl FnMut(&mut Self, &mut C, Chain) -> Result<(), Violation>,
    ) -> Result<Turn, Violation> {
        loop {
            self.disarm()?;
            loop {
                if !open(&mut with) {
                    self.notify()?;
                    return Ok(Turn::Done);
                }
                let Some(chain) = self.pop()? else { break };
                each(self, &mut with, chain)?;
                share -= 1;
                if share == 0 {
                    self.notify()?;
                    return Ok(Turn::Again);
                }
            }
            self.notify()?;
            if !self.arm()? {
                return Ok(Turn::Done);
            }
        }
    }

    /// Asks not to be told of new requests while we look at the ring anyway.
    pub(crate) fn disarm(&mut self) -> Result<(), Violation> {
        if self.queue.ready() {
            self.queue.disable_notification(self.ram)?;
        }
        Ok(())
    }

    /// Asks to be told of new requests. True: there are some already, look again.
    pub(crate) fn arm(&mut self) -> Result<bool, Violation> {
        Ok(self.queue.ready() && self.queue.enable_notification(self.ram)?)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use crate::virtio::testing::{DATA, Driver};

    proptest! {
        #[test]
        fn what_is_put_back_is_taken_again_first_and_in_order(
            before in 0usize..40, taken in 0usize..=16, keep in prop::collection::vec(any::<bool>(), 16),
            more in 0usize..=16,
        ) {
            let mut driver = Driver::new(&[16]);
            // Move the ring's indices so that they wrap.
            for _ in 0..before {
                driver.offer(0, &[], &[(DATA, 16)]);
                let mut rings = driver.rings();
                let chain = rings[0].pop().expect("rules kept").expect("offered");
                rings[0].complete(chain.head, 0).expect("inside");
            }
            driver.used(0);
            let heads: Vec<u16> = (0..taken).map(|_| driver.offer(0, &[], &[(DATA, 16)])).collect();
            let mut rings = driver.rings();
            prop_assert_eq!(rings[0].waiting(), taken);
            let mut held = Vec::new();
            for keep in &keep[..taken] {
                let head = rings[0].pop().expect("rules kept").expect("offered").head;
                match keep {
                    true => held.push(head),
                    false => rings[0].complete(head, 0).expect("inside"),
                }
            }
            rings[0].untake(&held).expect("inside");
            drop(rings);
            // The driver has as many free entries as it got back.
            let more = more.min(16 - held.len());
            let free: Vec<u16> = heads.iter().copied().filter(|h| !held.contains(h)).collect();
            let fresh: Vec<u16> = (0..more)
                .map(|n| match free.get(n) {
                    Some(head) => (driver.offer_head(0, *head), *head).1,
                    None => driver.offer(0, &[], &[(DATA, 16)]),
                })
                .collect();
            let mut rings = driver.rings();
            let mut seen = Vec::new();
            while let Some(chain) = rings[0].pop().expect("rules kept") {
                seen.push(chain.head);
            }
            prop_assert_eq!(seen, [held, fresh].concat());
        }
    }
}
