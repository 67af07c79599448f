//! Rings and descriptors that break the rules of VIRTIO 1.2 section 2.7.
//!
//! Owns: what is in a ring. Refuses: where a ring is, and when it changes: `queues` does that.

use super::Bench;
use crate::MEMORY_MIB;
use crate::device::{
    Descriptor, Device, INDIRECT, NEXT, QUEUES_MAX, Queue, WRITE, buffer, describe,
};
use crate::memory::{ARENA, put};

/// Places that are not guest memory, or end outside it.
const OUTSIDE: [(u64, u32); 14] = [
    (MEMORY_MIB << 20, 1),
    ((MEMORY_MIB << 20) - 1, 2),
    ((MEMORY_MIB << 20) - 8, 4096),
    (0xcfff_ffff, 2),
    (0xd000_0000, 16),
    (0xfec0_0000, 16),
    (0xfee0_0000, 64),
    (0xfffb_d000, 4096),
    (0xffff_ffff, 1),
    (1 << 32, 512),
    (1 << 52, 16),
    (u64::MAX, 1),
    (u64::MAX - 15, 32),
    (0, u32::MAX),
];

fn kick(device: &Device, queue: &Queue, head: u16) {
    queue.offer(head);
    device.notify(queue.index);
    queue.glance(device);
}

fn link(address: u64, length: u32, flags: u16, next: u16) -> Descriptor {
    Descriptor {
        address,
        length,
        flags,
        next,
    }
}

pub(super) fn looping(bench: &mut Bench) {
    bench.each_queue(|device, queue, random| {
        let data = buffer(0, 512);
        let flags = random.pick(&[NEXT, NEXT | WRITE]);
        let around = random.pick(&[0, 1, queue.size - 1]);
        for at in 0..around {
            queue.describe(at, link(data, 16, flags, at + 1));
        }
        queue.describe(around, link(data, 16, flags, 0));
        kick(device, &queue, 0);
    });
}

/// As long as the ring, and one longer by a table.
pub(super) fn long_chain(bench: &mut Bench) {
    for extra in [0, 1, 0x300] {
        bench.each_queue(|device, queue, random| {
            let (data, table) = (buffer(0, 64), buffer(2, 0x4000));
            let flags = random.pick(&[0, WRITE]);
            for at in 0..queue.size {
                queue.describe(at, link(data, 1, NEXT | flags, at + 1));
            }
            let length = u32::from(queue.size) + extra;
            for at in 0..length.min(0x400) as u16 {
                describe(table, at, link(data, 1, NEXT | flags, at + 1));
            }
            let last = queue.size - 1;
            queue.describe(last, link(table, 16 * length, INDIRECT, 0));
            kick(device, &queue, random.pick(&[0, last]));
        });
    }
}

pub(super) fn outside_memory(bench: &mut Bench) {
    for (address, length) in OUTSIDE {
        for flags in [0, WRITE] {
            bench.each_queue(|device, queue, random| {
                let (header, status) = (buffer(0, 64), buffer(1, 64));
                let (first, last) = (random.pick(&[0, WRITE & flags]), WRITE);
                let parts = [
                    (header, 16, first),
                    (address, length, flags),
                    (status, 1, last),
                ];
                // By itself, behind a header, and before a status.
                let from = random.below(2) as usize;
                queue.chain(0, &parts[from..]);
                kick(device, &queue, 0);
            });
        }
    }
}

pub(super) fn indirect(bench: &mut Bench) {
    let tables = [
        (0, 16),
        (16, 0),
        (0, 0),
        (0, 15),
        (0, 17),
        (1, 32),
        (0, 0xffff_fff0),
        (0, u32::MAX),
    ];
    for (offset, length) in tables {
        for kind in 0..6 {
            bench.each_queue(|device, queue, random| {
                let (table, data) = (buffer(2, 0x1000), buffer(0, 64));
                // A table in a table, itself in itself, a loop, a proper one.
                let inner = match kind {
                    0 => link(table, 32, INDIRECT, 0),
                    1 => link(table + 16, 16, INDIRECT | NEXT, 0),
                    2 => link(data, 16, NEXT, 0),
                    3 => link(data, 16, NEXT, 0xffff),
                    _ => link(data, 16, WRITE, 0),
                };
                describe(table, 0, inner);
                describe(table, 1, inner);
                let flags = match kind {
                    4 => INDIRECT | NEXT,
                    5 => INDIRECT | WRITE | NEXT,
                    _ => INDIRECT | random.pick(&[0, WRITE]),
                };
                queue.describe(0, link(table + offset, length, flags, 1));
                queue.describe(1, link(data, 16, WRITE, 0));
                kick(device, &queue, 0);
            });
        }
    }
    for (address, length) in OUTSIDE {
        bench.each_queue(|device, queue, _| {
            queue.describe(0, link(address, length & !15 | 16, INDIRECT, 0));
            kick(device, &queue, 0);
        });
    }
}

pub(super) fn zero_length(bench: &mut Bench) {
    for count in [1, 2, 3, 255, 256] {
        for flags in [0, WRITE] {
            bench.each_queue(|device, queue, random| {
                let count = count.min(queue.size);
                let address = random.pick(&[ARENA.start, 0, MEMORY_MIB << 20, u64::MAX]);
                for at in 0..count {
                    let next = if at + 1 == count { 0 } else { NEXT };
                    queue.describe(at, link(address, 0, flags | next, at + 1));
                }
                kick(device, &queue, 0);
            });
        }
    }
}

/// Header, data and status on top of each other.
pub(super) fn overlap(bench: &mut Bench) {
    for shift in [0, 1, 8, 15] {
        bench.each_queue(|device, queue, random| {
            let data = buffer(0, 4096);
            put(data, random.pick(&[0_u32, 1, 8]));
            let parts = [
                (data, 16, 0),
                (data + shift, 1024, WRITE),
                (data + shift, 1, WRITE),
            ];
            queue.chain(0, &parts);
            kick(device, &queue, 0);
        });
    }
}

pub(super) fn bad_head(bench: &mut Bench) {
    for beyond in [0, 1, 0x7fff, 0xff00] {
        bench.each_queue(|device, queue, _| {
            let head = queue.size.saturating_add(beyond);
            kick(device, &queue, head);
            device.notify(queue.index);
        });
    }
}

/// More chains than a ring holds, backwards, and round the whole number.
pub(super) fn index_jump(bench: &mut Bench) {
    for jump in [1_u16, 2, 0x100, 0x101, 0x7fff, 0x8000, 0xffff] {
        bench.each_queue(|device, queue, _| {
            let data = buffer(0, 64);
            for at in 0..queue.size {
                queue.describe(at, link(data, 16, WRITE, 0));
                queue.set_entry(at, at);
            }
            for step in [jump, jump.wrapping_mul(2), 0, 0xffff, jump] {
                queue.set_available(queue.used().wrapping_add(step));
                device.notify(queue.index);
                queue.glance(device);
            }
        });
    }
}

/// What the device writes stands before what it reads.
pub(super) fn wrong_order(bench: &mut Bench) {
    bench.each_queue(|device, queue, _| {
        let data = buffer(0, 1024);
        let parts = [
            (data, 16, WRITE),
            (data, 512, 0),
            (data + 512, 16, WRITE),
            (data, 16, 0),
        ];
        queue.chain(0, &parts);
        kick(device, &queue, 0);
    });
}

pub(super) fn same_chain_again(bench: &mut Bench) {
    bench.each_queue(|device, queue, _| {
        let data = buffer(0, 4096);
        queue.chain(
            0,
            &[
                (data, 16, 0),
                (data + 64, 512, WRITE),
                (data + 1024, 1, WRITE),
            ],
        );
        for _ in 0..queue.size {
            queue.offer(0);
        }
        device.notify(queue.index);
        queue.glance(device);
    });
}

/// Devices write where rings are: descriptors, both rings, of this queue and of the others.
pub(super) fn over_own_rings(bench: &mut Bench) {
    for target in 0..QUEUES_MAX as u64 * 4 {
        bench.each_queue(|device, queue, random| {
            let (header, status) = (buffer(0, 64), buffer(1, 64));
            let address = ARENA.start + target * 0x1000;
            let mut queue = queue;
            let data = (address, 4096, WRITE);
            match random.below(2) {
                0 => queue.chain(0, &[data]),
                _ => queue.chain(0, &[(header, 16, 0), data, (status, 1, WRITE)]),
            }
            for _ in 0..8 {
                queue.offer(0);
                device.notify(queue.index);
            }
            queue.wait(0);
            queue.glance(device);
        });
    }
}

/// Entropy over this kernel's own code, stack and page tables.
pub(super) fn over_itself(bench: &mut Bench) {
    for device in bench.of(crate::device::RNG) {
        let Some(mut queues) = device.start() else {
            return;
        };
        let queue = queues.get(0);
        queue.describe(0, link(0, 0x10_0000, WRITE | NEXT, 1));
        queue.describe(1, link(0x10_0000, 0x20_0000, WRITE, 0));
        queue.offer(0);
        device.notify(0);
        for at in 0..64 {
            queue.describe(
                at,
                link(0x10_0000 + u64::from(at) * 0x1000, 0x1000, WRITE, 0),
            );
            queue.offer(at % queue.size);
            device.notify(0);
        }
        queue.glance(&device);
    }
}
