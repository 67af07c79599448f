//! Queues where none can be, and queues that change under the device.
//!
//! Owns: place, size and state. Refuses: what is in the rings: `rings` does that.

use super::Bench;
use crate::MEMORY_MIB;
use crate::device::{
    ACKNOWLEDGE, DRIVER, DRIVER_FEATURES, DRIVER_OK, FEATURES_OK, QUEUE_DESC, QUEUE_DEVICE,
    QUEUE_DRIVER, QUEUE_NUM, QUEUE_READY, QUEUE_SEL, Queue, STATUS, WRITE, buffer,
};
use crate::memory::ARENA;

/// Where a ring, or a part of one, must not be.
const PLACES: [u64; 12] = [
    0,
    1,
    ARENA.start + 1,
    ARENA.start + 2,
    (MEMORY_MIB << 20) - 16,
    (MEMORY_MIB << 20) - 2,
    MEMORY_MIB << 20,
    0xd000_0000,
    0xffff_fff0,
    1 << 32,
    1 << 63,
    u64::MAX,
];
/// Each rings a bell in the node's kernel and wakes a thread.
const FLOOD: u32 = 1000;

pub(super) fn bad_place(bench: &mut Bench) {
    for place in PLACES {
        for part in 0..4 {
            for device in bench.devices() {
                if !device.reset() || !device.agree(device.offered()) {
                    continue;
                }
                let size = device.entries(0);
                let queue = Queue::new(0, size);
                let mut parts = queue.parts();
                match parts.get_mut(part) {
                    Some(part) => *part = place,
                    None => parts = [place; 3],
                }
                device.place(0, size.into(), parts);
                device.go();
                device.notify(0);
            }
        }
    }
}

pub(super) fn bad_size(bench: &mut Bench) {
    for size in [
        0,
        1,
        3,
        255,
        257,
        0x8000,
        0xffff,
        0x1_0000,
        0x1_0100,
        u32::MAX,
    ] {
        for device in bench.devices() {
            if device.reset() && device.agree(device.offered()) {
                let queue = Queue::new(0, device.entries(0));
                device.place(0, size, queue.parts());
                device.go();
                queue.set_available(1);
                device.notify(0);
                queue.glance(device);
            }
        }
    }
}

/// Everything about a queue is written again while its device works on it.
pub(super) fn change_live(bench: &mut Bench) {
    bench.each_queue(|device, queue, random| {
        let data = buffer(0, 4096);
        for at in 0..queue.size {
            queue.chain(at, &[(data, 4096, WRITE)]);
            queue.offer(at);
        }
        device.notify(queue.index);
        for _ in 0..64 {
            let register = random.pick(&[
                QUEUE_NUM,
                QUEUE_READY,
                QUEUE_DESC,
                QUEUE_DESC + 4,
                QUEUE_DRIVER,
                QUEUE_DEVICE,
                DRIVER_FEATURES,
            ]);
            let value = random.pick(&[0, 1, 3, 0x400, 0x40_0000, u32::MAX]);
            let selected = random.pick(&[queue.index, queue.index, 7, u32::MAX]);
            device.write(QUEUE_SEL, selected);
            device.write(register, value);
            device.notify(queue.index);
        }
    });
}

pub(super) fn reset_busy(bench: &mut Bench) {
    for _ in 0..20 {
        bench.each_queue(|device, queue, random| {
            let (header, data, status) = (buffer(0, 64), buffer(1, 4096), buffer(2, 64));
            queue.chain(
                0,
                &[
                    (header, 16, 0),
                    (data, 0x10_0000, WRITE),
                    (status, 1, WRITE),
                ],
            );
            queue.chain(3, &[(data, 0x10_0000, WRITE)]);
            for _ in 0..queue.size {
                queue.offer(random.pick(&[0, 3]));
            }
            device.notify(queue.index);
            for _ in 0..random.below(200) {
                core::hint::spin_loop();
            }
            device.write(STATUS, 0);
            device.go();
            device.notify(queue.index);
        });
    }
}

/// Any state after any other.
pub(super) fn state_storm(bench: &mut Bench) {
    let states = [
        0,
        ACKNOWLEDGE,
        DRIVER,
        DRIVER_OK,
        FEATURES_OK,
        0xf,
        0x80,
        0x40,
        0xff,
        u32::MAX,
    ];
    bench.each_queue(|device, queue, random| {
        for _ in 0..400 {
            device.write(STATUS, random.pick(&states));
            if random.below(4) == 0 {
                device.place(queue.index, u32::from(queue.size), queue.parts());
            }
            device.notify(queue.index);
        }
    });
}

pub(super) fn notify_flood(bench: &mut Bench) {
    for device in bench.devices() {
        for running in [true, false] {
            let started = device.start();
            if !running || started.is_none() {
                device.reset();
            }
            for count in 0..FLOOD {
                device.notify(count % 3);
            }
            for queue in [3, 4, 0xff, 0xffff, 0x1_0000, u32::MAX] {
                device.notify(queue);
            }
        }
    }
}

/// All queues of all devices in one and the same place, running at once.
pub(super) fn shared_rings(bench: &mut Bench) {
    let data = buffer(0, 4096);
    let shared = Queue::new(0, 16);
    for device in bench.devices() {
        if !device.reset() || !device.agree(device.offered()) {
            continue;
        }
        for index in 0..3 {
            if device.entries(index) >= 16 {
                device.place(index, 16, shared.parts());
            }
        }
        device.go();
    }
    for round in 0..64 {
        shared.chain(round % 16, &[(data, 64, WRITE)]);
        shared.offer(round % 16);
        for device in bench.devices() {
            (0..3).for_each(|index| device.notify(index));
        }
    }
    for device in bench.devices() {
        shared.glance(device);
    }
}
