//! Steps of all kinds in an order that the seed chooses.
//!
//! Owns: the choice. Refuses: steps that end the machine by themselves.

use super::Bench;
use crate::MEMORY_MIB;
use crate::device::{Descriptor, Device, Queue, Queues, STATUS, buffer};
use crate::memory::{ARENA, put, read, write};
use crate::random::Random;

const STEPS: u32 = 3000;

pub(super) fn run(bench: &mut Bench) {
    let (devices, count) = Device::find();
    let mut running = [Queues::default(); crate::device::DEVICES_MAX];
    for _ in 0..STEPS {
        let random = &mut bench.random;
        let chosen = random.below(count as u64) as usize;
        step(&devices[chosen], &mut running[chosen], random);
    }
}

fn step(device: &Device, queues: &mut Queues, random: &mut Random) {
    let queue = match queues.list() {
        [] => {
            *queues = device.start().unwrap_or_default();
            return;
        }
        list => random.pick(list),
    };
    match random.below(16) {
        0 => *queues = device.start().unwrap_or_default(),
        1 => device.write(random.below(0x40) * 4, random.word()),
        2 => write(device.base + random.below(0xff0), random.next()),
        3 => drop(read::<u64>(device.base + random.below(0xff0))),
        4 => device.write(STATUS, random.pick(&[0, 1, 3, 0xb, 0xf, 0x80])),
        5 => queue.set_available(random.next() as u16),
        6 => put(queue.base + random.below(0x3ff8), random.next()),
        7..=9 => descriptor(&queue, random),
        10 => {
            let data = buffer(random.below(8), 64);
            put(data, random.below(16) as u32);
            put(data + 8, 8 + random.below(64));
        }
        11..=13 => {
            queue.offer(random.below(u64::from(queue.size) + 1) as u16);
            device.notify(queue.index);
        }
        _ => device.notify(random.below(4) as u32),
    }
}

fn descriptor(queue: &Queue, random: &mut Random) {
    let near = BUFFERS_NEAR + random.below(0x10_0000);
    let address = match random.below(8) {
        0 => random.next(),
        1 => (MEMORY_MIB << 20) - random.below(64),
        2 => ARENA.start + random.below(0x1_0000),
        _ => near,
    };
    let length = random.pick(&[0, 1, 12, 16, 44, 512, 513, 4096, 0x1_0000, u32::MAX]);
    queue.describe(
        random.below(u64::from(queue.size)) as u16,
        Descriptor {
            address,
            length,
            flags: random.below(8) as u16,
            next: random.below(u64::from(queue.size) + 2) as u16,
        },
    );
}

const BUFFERS_NEAR: u64 = crate::device::BUFFERS;
