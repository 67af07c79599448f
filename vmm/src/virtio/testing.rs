//! A driver for tests: guest memory, rings in it, and chains offered to a device.

use std::sync::atomic::Ordering;

use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::EventFd;

use super::interrupt::Interrupt;
use super::ring::{Ring, Violation};
use super::{Device, Ready, Turn};
use crate::memory::GuestRam;
use crate::metrics::Counters;

/// Data begins here; below are the rings, 64 KiB per queue.
pub(crate) const DATA: u64 = 0x10_0000;
const RAM_BYTES: usize = 4 << 20;

const NEXT: u16 = 1;
const WRITE: u16 = 2;

pub(crate) struct Driver {
    pub(crate) ram: GuestRam,
    queues: Vec<Queue>,
    interrupt: Interrupt,
    doorbells: Vec<EventFd>,
    pub(crate) counters: Vec<Counters>,
    /// Per queue: next free descriptor, chains offered, chains seen used.
    state: Vec<(u16, u16, u16)>,
}

fn table(queue: usize) -> u64 {
    queue as u64 * 0x1_0000
}

fn available(queue: usize) -> u64 {
    table(queue) + 0x4000
}

fn used(queue: usize) -> u64 {
    table(queue) + 0x8000
}

impl Driver {
    pub(crate) fn new(sizes: &[u16]) -> Self {
        let ram = GuestRam::from_ranges(&[(GuestAddress(0), RAM_BYTES)]).expect("maps");
        let queue = |(index, size): (usize, &u16)| {
            let mut queue = Queue::new(*size).expect("a power of two");
            let low = |address: u64| Some(u32::try_from(address).expect("below 4 GiB"));
            queue.set_desc_table_address(low(table(index)), Some(0));
            queue.set_avail_ring_address(low(available(index)), Some(0));
            queue.set_used_ring_address(low(used(index)), Some(0));
            queue.set_ready(true);
            queue
        };
        Self {
            queues: sizes.iter().enumerate().map(queue).collect(),
            interrupt: Interrupt::new(EventFd::new(libc::EFD_NONBLOCK).expect("eventfd")),
            doorbells: sizes
                .iter()
                .map(|_| EventFd::new(libc::EFD_NONBLOCK).expect("eventfd"))
                .collect(),
            counters: sizes.iter().map(|size| Counters::timed(*size)).collect(),
            state: vec![(0, 0, 0); sizes.len()],
            ram,
        }
    }

    /// Writes one descriptor as it is.
    pub(crate) fn describe(
        &self,
        queue: usize,
        index: u16,
        address: u64,
        length: u32,
        flags: u16,
        next: u16,
    ) {
        let at = table(queue) + 16 * u64::from(index);
        let tail = u64::from(length) | u64::from(flags) << 32 | u64::from(next) << 48;
        self.ram
            .write_obj(address, GuestAddress(at))
            .expect("inside");
        self.ram
            .write_obj(tail, GuestAddress(at + 8))
            .expect("inside");
    }

    /// Makes the chain that begins at `head` available.
    pub(crate) fn offer_head(&mut self, queue: usize, head: u16) {
        let size = self.queues[queue].size();
        let offered = &mut self.state[queue].1;
        let at = available(queue) + 4 + 2 * u64::from(*offered % size);
        *offered = offered.wrapping_add(1);
        let index = *offered;
        self.ram.write_obj(head, GuestAddress(at)).expect("inside");
        self.ram
            .store(index, GuestAddress(available(queue) + 2), Ordering::Release)
            .expect("inside");
    }

    /// Both sides' indices, as after so many chains. Nothing was offered yet.
    pub(crate) fn begin_at(&mut self, queue: usize, index: u16) {
        self.queues[queue].set_next_avail(index);
        self.queues[queue].set_next_used(index);
        self.state[queue] = (0, index, index);
        self.set_available(queue, index);
        self.ram
            .store(index, GuestAddress(used(queue) + 2), Ordering::Release)
            .expect("inside");
    }

    /// Says that all entries up to `index` are available, whatever they hold.
    pub(crate) fn set_available(&self, queue: usize, index: u16) {
        self.ram
            .store(index, GuestAddress(available(queue) + 2), Ordering::Release)
            .expect("inside");
    }

    /// As agreed by VIRTIO_RING_F_EVENT_IDX.
    pub(crate) fn use_event_index(&mut self, queue: usize) {
        self.queues[queue].set_event_idx(true);
    }

    /// Asks for an interrupt once entry `index` is used.
    pub(crate) fn want_event(&self, queue: usize, index: u16) {
        let entries = 2 * u64::from(self.queues[queue].size());
        let at = GuestAddress(available(queue) + 4 + entries);
        self.ram.write_obj(index, at).expect("inside");
    }

    /// Offers a chain of parts that the device reads, then parts that it writes.
    pub(crate) fn offer(
        &mut self,
        queue: usize,
        readable: &[(u64, u32)],
        writable: &[(u64, u32)],
    ) -> u16 {
        let head = self.state[queue].0;
        let size = self.queues[queue].size();
        let flagged = |flag: u16| move |(address, length): &(u64, u32)| (*address, *length, flag);
        let parts: Vec<_> = readable
            .iter()
            .map(flagged(0))
            .chain(writable.iter().map(flagged(WRITE)))
            .collect();
        for (index, (address, length, flags)) in parts.iter().enumerate() {
            let at = self.state[queue].0;
            self.state[queue].0 = (at + 1) % size;
            let more = if index + 1 < parts.len() { NEXT } else { 0 };
            self.describe(queue, at, *address, *length, flags | more, (at + 1) % size);
        }
        self.offer_head(queue, head);
        head
    }

    /// Chains that the device has given back since last asked: head and length.
    pub(crate) fn used(&mut self, queue: usize) -> Vec<(u16, u32)> {
        let end: u16 = self
            .ram
            .load(GuestAddress(used(queue) + 2), Ordering::Acquire)
            .expect("inside");
        let size = self.queues[queue].size();
        let seen = &mut self.state[queue].2;
        let mut out = Vec::new();
        while *seen != end {
            let at = used(queue) + 4 + 8 * u64::from(*seen % size);
            let entry: u64 = self.ram.read_obj(GuestAddress(at)).expect("inside");
            out.push((
                u16::try_from(entry & 0xffff).expect("16 bits"),
                u32::try_from(entry >> 32).expect("32 bits"),
            ));
            *seen = seen.wrapping_add(1);
        }
        out
    }

    pub(crate) fn write(&self, at: u64, bytes: &[u8]) {
        self.ram
            .write_slice(bytes, GuestAddress(at))
            .expect("inside");
    }

    pub(crate) fn read(&self, at: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.ram
            .read_slice(&mut bytes, GuestAddress(at))
            .expect("inside");
        bytes
    }

    /// Interrupts since last asked.
    pub(crate) fn interrupted(&self) -> bool {
        self.interrupt.line().read().is_ok()
    }

    pub(crate) fn turn<D: Device>(&mut self, device: &mut D) -> Result<Turn, Violation> {
        device.serve(Ready::ALL, &mut self.rings())
    }

    pub(crate) fn quiesce<D: Device>(&mut self, device: &mut D) -> Result<(), Violation> {
        device.quiesce(&mut self.rings())
    }

    pub(crate) fn rings(&mut self) -> Vec<Ring<'_>> {
        let queues = self.queues.iter_mut().zip(&self.doorbells);
        queues
            .zip(&self.counters)
            .map(|((queue, bell), counters)| {
                Ring::new(queue, &self.ram, &self.interrupt, bell, counters)
            })
            .collect()
    }
}

/// A stop that has been signalled already.
pub(crate) fn stopped() -> EventFd {
    let stop = EventFd::new(libc::EFD_NONBLOCK).expect("an event");
    stop.write(1).expect("counts");
    stop
}

/// Something to serve that never has anything to do.
pub(crate) fn idle() -> impl crate::event::Served {
    struct Idle(EventFd);
    impl crate::event::Served for Idle {
        fn sources(&self, out: &mut Vec<crate::event::Source>) {
            out.push(crate::event::Source::readable(&self.0));
        }
        fn serve(&self, _fired: u64) {
            let _ = self.0.read();
        }
        fn stop(&self) {}
    }
    Idle(stopped())
}

/// Arbitrary descriptors, most of them nearly sane.
pub(crate) mod hostile {
    use proptest::prelude::*;

    /// Address, length, flags, next.
    pub(crate) type Descriptor = (u64, u32, u16, u16);

    pub(crate) fn descriptors() -> impl Strategy<Value = Vec<Descriptor>> {
        let address = prop_oneof![8 => 0u64..0x40_0000, 1 => any::<u64>()];
        let length = prop_oneof![4 => 0u32..100, 4 => 0u32..70_000, 1 => any::<u32>()];
        // Indirect tables, too: flag 4.
        let flags = 0u16..8;
        let next = prop_oneof![8 => 0u16..16, 1 => any::<u16>()];
        prop::collection::vec((address, length, flags, next), 16)
    }

    pub(crate) fn heads() -> impl Strategy<Value = Vec<u16>> {
        prop::collection::vec(prop_oneof![8 => 0u16..16, 1 => any::<u16>()], 1..20)
    }
}
