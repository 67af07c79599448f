//! A virtio-mmio device from the driver's side (VIRTIO 1.2 section 4.2), and a split ring (section 2.7).
//!
//! Owns: the steps of a driver, each by itself: attacks take them in other orders.
//! Refuses: waiting without a bound.

use crate::cpu::cycles;
use crate::memory::{ARENA, WINDOW, fill, fresh16, get, put, read, write};

pub(crate) const MAGIC: u64 = 0x00;
pub(crate) const DEVICE_ID: u64 = 0x08;
pub(crate) const DEVICE_FEATURES: u64 = 0x10;
pub(crate) const DEVICE_FEATURES_SEL: u64 = 0x14;
pub(crate) const DRIVER_FEATURES: u64 = 0x20;
pub(crate) const DRIVER_FEATURES_SEL: u64 = 0x24;
pub(crate) const QUEUE_SEL: u64 = 0x30;
pub(crate) const QUEUE_NUM_MAX: u64 = 0x34;
pub(crate) const QUEUE_NUM: u64 = 0x38;
pub(crate) const QUEUE_READY: u64 = 0x44;
pub(crate) const QUEUE_NOTIFY: u64 = 0x50;
pub(crate) const STATUS: u64 = 0x70;
pub(crate) const QUEUE_DESC: u64 = 0x80;
pub(crate) const QUEUE_DRIVER: u64 = 0x90;
pub(crate) const QUEUE_DEVICE: u64 = 0xa0;
pub(crate) const CONFIG: u64 = 0x100;

/// Bits of STATUS.
pub(crate) const ACKNOWLEDGE: u32 = 1;
pub(crate) const DRIVER: u32 = 2;
pub(crate) const DRIVER_OK: u32 = 4;
pub(crate) const FEATURES_OK: u32 = 8;
pub(crate) const NEEDS_RESET: u32 = 0x40;

/// Device numbers (section 5).
pub(crate) const NET: u32 = 1;
pub(crate) const BLK: u32 = 2;
pub(crate) const RNG: u32 = 4;
pub(crate) const VSOCK: u32 = 19;

/// Flags of a descriptor.
pub(crate) const NEXT: u16 = 1;
pub(crate) const WRITE: u16 = 2;
pub(crate) const INDIRECT: u16 = 4;

/// "virt".
const MAGIC_VALUE: u32 = 0x7472_6976;
const STRIDE: u64 = 0x1000;
pub(crate) const DEVICES_MAX: usize = 16;
pub(crate) const QUEUES_MAX: usize = 4;
/// No ring of ours is larger, whatever the device offers.
const ENTRIES_MAX: u16 = 256;
/// Cycles that a device may take to answer a driver that follows the rules: ten seconds and more on any
/// processor, emulated or not.
pub(crate) const PATIENCE: u64 = 60_000_000_000;
/// Cycles that an attack gives a device to show what it makes of it; most show it by then.
const GLANCE: u64 = 20_000_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Device {
    pub(crate) base: u64,
    pub(crate) id: u32,
}

impl Device {
    /// All devices, in the order of their slots.
    pub(crate) fn find() -> ([Self; DEVICES_MAX], usize) {
        let none = Self { base: 0, id: 0 };
        let (mut devices, mut count) = ([none; DEVICES_MAX], 0);
        for (slot, place) in (0..).zip(devices.iter_mut()) {
            let base = WINDOW.start + slot * STRIDE;
            if read::<u32>(base + MAGIC) == MAGIC_VALUE {
                let id = read(base + DEVICE_ID);
                *place = Self { base, id };
                count += 1;
            }
        }
        (devices, count)
    }

    pub(crate) fn read(&self, register: u64) -> u32 {
        read(self.base + register)
    }

    pub(crate) fn write(&self, register: u64, value: u32) {
        write(self.base + register, value);
    }

    pub(crate) fn offered(&self) -> u64 {
        self.write(DEVICE_FEATURES_SEL, 1);
        let high = self.read(DEVICE_FEATURES);
        self.write(DEVICE_FEATURES_SEL, 0);
        u64::from(high) << 32 | u64::from(self.read(DEVICE_FEATURES))
    }

    /// Whether the device comes back to its beginning.
    pub(crate) fn reset(&self) -> bool {
        self.write(STATUS, 0);
        within(PATIENCE, || self.read(STATUS) == 0)
    }

    /// From reset to agreed features. Whether the device agrees.
    pub(crate) fn agree(&self, features: u64) -> bool {
        self.write(STATUS, ACKNOWLEDGE);
        self.write(STATUS, ACKNOWLEDGE | DRIVER);
        for (half, word) in [(0, features as u32), (1, (features >> 32) as u32)] {
            self.write(DRIVER_FEATURES_SEL, half);
            self.write(DRIVER_FEATURES, word);
        }
        self.write(STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK);
        self.read(STATUS) & FEATURES_OK != 0
    }

    /// Most entries of a queue; 0 where there is none.
    pub(crate) fn entries(&self, queue: u32) -> u16 {
        self.write(QUEUE_SEL, queue);
        self.read(QUEUE_NUM_MAX).min(u32::from(ENTRIES_MAX)) as u16
    }

    /// Describes a queue with any numbers, and says it is ready.
    pub(crate) fn place(&self, queue: u32, size: u32, parts: [u64; 3]) {
        self.write(QUEUE_SEL, queue);
        self.write(QUEUE_NUM, size);
        for (register, address) in [QUEUE_DESC, QUEUE_DRIVER, QUEUE_DEVICE].iter().zip(parts) {
            self.write(*register, address as u32);
            self.write(register + 4, (address >> 32) as u32);
        }
        self.write(QUEUE_READY, 1);
    }

    pub(crate) fn go(&self) {
        self.write(STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
    }

    pub(crate) fn notify(&self, queue: u32) {
        self.write(QUEUE_NOTIFY, queue);
    }

    pub(crate) fn broken(&self) -> bool {
        self.read(STATUS) & NEEDS_RESET != 0
    }

    /// Reset, all offered features, all queues, running.
    pub(crate) fn start(&self) -> Option<Queues> {
        if !self.reset() || !self.agree(self.offered()) {
            return None;
        }
        let mut queues = Queues::default();
        for (index, place) in (0..).zip(&mut queues.list) {
            let size = self.entries(index);
            if size == 0 {
                break;
            }
            let queue = Queue::new(index, size);
            self.place(index, u32::from(size), queue.parts());
            *place = queue;
            queues.count += 1;
        }
        self.go();
        Some(queues)
    }
}

/// Whether something becomes true in so many cycles.
pub(crate) fn within(patience: u64, mut done: impl FnMut() -> bool) -> bool {
    let start = cycles();
    loop {
        if done() {
            return true;
        }
        if cycles().wrapping_sub(start) > patience {
            return false;
        }
    }
}

#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Queues {
    list: [Queue; QUEUES_MAX],
    count: usize,
}

impl Queues {
    pub(crate) fn list(&self) -> &[Queue] {
        &self.list[..self.count]
    }

    pub(crate) fn get(&mut self, index: usize) -> &mut Queue {
        &mut self.list[..self.count][index]
    }
}

/// A ring at a place of its own in the arena: descriptors, then the driver's part, then the device's.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Queue {
    pub(crate) index: u32,
    pub(crate) size: u16,
    pub(crate) base: u64,
    /// Entries of the used ring that were taken.
    taken: u16,
}

/// One descriptor.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Descriptor {
    pub(crate) address: u64,
    pub(crate) length: u32,
    pub(crate) flags: u16,
    pub(crate) next: u16,
}

const DRIVER_AT: u64 = 0x2000;
const DEVICE_AT: u64 = 0x3000;
const RING_BYTES: u64 = 0x4000;
/// Behind the rings: for attacks to use as they like.
pub(crate) const BUFFERS: u64 = ARENA.start + QUEUES_MAX as u64 * RING_BYTES;

impl Queue {
    /// A blank ring.
    pub(crate) fn new(index: u32, size: u16) -> Self {
        let base = ARENA.start + u64::from(index) * RING_BYTES;
        for at in (base..base + RING_BYTES).step_by(8) {
            put(at, 0_u64);
        }
        Self {
            index,
            size,
            base,
            taken: 0,
        }
    }

    pub(crate) fn parts(&self) -> [u64; 3] {
        [self.base, self.driver(), self.base + DEVICE_AT]
    }

    pub(crate) fn driver(&self) -> u64 {
        self.base + DRIVER_AT
    }

    /// Writes descriptor `at`, which may be beyond the ring's size.
    pub(crate) fn describe(&self, at: u16, descriptor: Descriptor) {
        describe(self.base, at, descriptor);
    }

    /// Writes a proper chain of these from descriptor `at` on.
    pub(crate) fn chain(&self, at: u16, parts: &[(u64, u32, u16)]) {
        for (index, (address, length, flags)) in (at..).zip(parts) {
            let last = usize::from(index - at) + 1 == parts.len();
            self.describe(
                index,
                Descriptor {
                    address: *address,
                    length: *length,
                    flags: flags | if last { 0 } else { NEXT },
                    next: index + 1,
                },
            );
        }
    }

    /// The driver's index.
    pub(crate) fn available(&self) -> u16 {
        get(self.driver() + 2)
    }

    pub(crate) fn set_available(&self, index: u16) {
        put(self.driver() + 2, index);
    }

    /// Writes an entry of the driver's ring.
    pub(crate) fn set_entry(&self, index: u16, head: u16) {
        put(self.driver() + 4 + 2 * u64::from(index % self.size), head);
    }

    /// Offers the chain that begins at `head`.
    pub(crate) fn offer(&self, head: u16) {
        let index = self.available();
        self.set_entry(index, head);
        self.set_available(index.wrapping_add(1));
    }

    pub(crate) fn used(&self) -> u16 {
        fresh16(self.base + DEVICE_AT + 2)
    }

    /// The next chain that the device is done with, and how many bytes it wrote.
    pub(crate) fn wait(&mut self, patience: u64) -> Option<(u32, u32)> {
        if !within(patience, || self.used() != self.taken) {
            return None;
        }
        let at = self.base + DEVICE_AT + 4 + 8 * u64::from(self.taken % self.size);
        self.taken = self.taken.wrapping_add(1);
        Some((get(at), get(at + 4)))
    }

    /// Gives the device a moment: until it says that it is broken or is done with something.
    pub(crate) fn glance(&self, device: &Device) {
        let before = self.used();
        within(GLANCE, || self.used() != before || device.broken());
    }
}

pub(crate) fn describe(table: u64, at: u16, descriptor: Descriptor) {
    let place = table + 16 * u64::from(at);
    put(place, descriptor.address);
    put(place + 8, descriptor.length);
    put(place + 12, descriptor.flags);
    put(place + 14, descriptor.next);
}

/// A blank buffer number `index` of `count` bytes at most 64 KiB.
pub(crate) fn buffer(index: u64, count: u64) -> u64 {
    let address = BUFFERS + index * 0x1_0000;
    fill(address, count, 0);
    address
}
