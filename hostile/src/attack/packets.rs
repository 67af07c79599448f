//! Frames, packets and wishes for entropy that no driver has.
//!
//! Owns: network cards, sockets, entropy. Refuses: disks.

use super::Bench;
use crate::device::{NET, Queue, RNG, VSOCK, WRITE, buffer};
use crate::memory::put;
use crate::random::Random;

const NET_HEADER: u32 = 12;
const VSOCK_HEADER: u32 = 44;
/// Mebibytes of the arena behind the rings that a device may write anything to.
const LARGE: (u64, u32) = (0x100_0000, 0x200_0000);

fn noise(address: u64, count: u64, random: &mut Random) {
    for at in (0..count).step_by(8) {
        put(address + at, random.next());
    }
}

/// Headers that promise checksums and segments where there are none.
pub(super) fn frames(bench: &mut Bench) {
    for device in bench.of(NET) {
        for length in [0, 1, 11, 12, 13, 25, 26, 60, 1514, 0xffff, 0x1_0000] {
            let Some(mut queues) = device.start() else {
                return;
            };
            let queue = *queues.get(1);
            for _ in 0..16 {
                let frame = buffer(0, 64);
                noise(frame, 64, &mut bench.random);
                put(frame, bench.random.pick(&[0_u8, 1, 2, 3, 0xff]));
                put(
                    frame + 1,
                    bench.random.pick(&[0_u8, 1, 3, 4, 5, 0x80, 0xff]),
                );
                queue.chain(0, &[(frame, length, 0)]);
                queue.offer(0);
                device.notify(1);
                queue.glance(&device);
            }
            // In many pieces, and longer than any frame.
            for at in 0..queue.size {
                queue.chain(at, &[(LARGE.0, LARGE.1, 0)]);
            }
            queue.chain(0, &[(LARGE.0, NET_HEADER, 0), (LARGE.0, LARGE.1, 0)]);
            queue.offer(0);
            device.notify(1);
            queue.glance(&device);
        }
    }
}

/// Buffers for received frames without room, and so many that all is room.
pub(super) fn buffers(bench: &mut Bench) {
    for device in bench.of(NET) {
        for length in [0, 1, 11, 12, 13, LARGE.1] {
            let Some(mut queues) = device.start() else {
                return;
            };
            let receive = *queues.get(0);
            for at in 0..receive.size {
                receive.chain(at, &[(LARGE.0, length, WRITE)]);
                receive.offer(at);
            }
            device.notify(0);
            // Frames out make the node's kernel answer or not; either way the buffers are looked at.
            let send = *queues.get(1);
            let frame = buffer(0, 128);
            send.chain(0, &[(frame, NET_HEADER + 60, 0)]);
            (0..send.size).for_each(|_| send.offer(0));
            device.notify(1);
            send.glance(&device);
        }
    }
}

fn packet(random: &mut Random, operation: u16) -> u64 {
    let packet = buffer(0, 4096);
    noise(packet, 64, random);
    put(packet, random.pick(&[3_u64, 3, 3, 2, 0, u64::MAX]));
    put(packet + 8, random.pick(&[2_u64, 2, 2, 3, 1, u64::MAX]));
    put(packet + 16, random.below(64) as u32);
    put(
        packet + 20,
        random.below(64) as u32 * random.pick(&[1, 32, 1024]),
    );
    put(
        packet + 24,
        random.pick(&[0_u32, 1, 64, 4096, 0x1_0000, u32::MAX]),
    );
    put(packet + 28, random.pick(&[1_u16, 1, 1, 2, 0, 0xffff]));
    put(packet + 30, operation);
    put(packet + 36, random.pick(&[0_u32, 1, 0x1_0000, u32::MAX]));
    put(packet + 40, random.pick(&[0_u32, 1, u32::MAX]));
    packet
}

fn send(device: &crate::device::Device, queue: &Queue, packet: u64, length: u32, data: u32) {
    let parts = [(packet, length, 0), (packet + 64, data, 0)];
    let count = if data == 0 { 1 } else { 2 };
    queue.chain(0, &parts[..count]);
    queue.offer(0);
    device.notify(1);
}

pub(super) fn vsock(bench: &mut Bench) {
    for device in bench.of(VSOCK) {
        for room in [0, 1, 43, 44, 45, 4096] {
            let Some(mut queues) = device.start() else {
                return;
            };
            let (receive, transmit) = (*queues.get(0), *queues.get(1));
            for at in 0..receive.size {
                receive.chain(at, &[(LARGE.0, room, WRITE)]);
                receive.offer(at);
            }
            device.notify(0);
            for _ in 0..48 {
                let random = &mut bench.random;
                let operation = random.below(10) as u16;
                let (length, data) = (
                    random.pick(&[VSOCK_HEADER, VSOCK_HEADER, VSOCK_HEADER, 0, 43, 45, 4096]),
                    random.pick(&[0, 0, 1, 64, 4096, 0x8_0000]),
                );
                let packet = packet(random, operation);
                send(&device, &transmit, packet, length, data);
                if device.broken() {
                    break;
                }
            }
            transmit.glance(&device);
        }
    }
}

/// Connections without end, to a port where the monitor listens and to others, and nobody takes the answers.
pub(super) fn vsock_flood(bench: &mut Bench) {
    for device in bench.of(VSOCK) {
        let Some(mut queues) = device.start() else {
            return;
        };
        let transmit = *queues.get(1);
        for count in 0..3000_u32 {
            let packet = buffer(0, 64);
            put(packet, 3_u64);
            put(packet + 8, 2_u64);
            put(packet + 16, count);
            put(packet + 20, 1024 + count % 8);
            put(packet + 28, 1_u16);
            put(packet + 30, bench.random.pick(&[1_u16, 1, 1, 5, 7]));
            put(packet + 36, u32::MAX);
            send(&device, &transmit, packet, VSOCK_HEADER, 0);
        }
        transmit.glance(&device);
    }
}

/// All memory there is, again and again.
pub(super) fn rng_greed(bench: &mut Bench) {
    for device in bench.of(RNG) {
        let Some(mut queues) = device.start() else {
            return;
        };
        let queue = queues.get(0);
        for at in 0..queue.size {
            queue.chain(at, &[(LARGE.0, LARGE.1, WRITE)]);
        }
        for _ in 0..20 {
            for at in 0..queue.size {
                queue.offer(at);
            }
            device.notify(0);
            if queue.wait(crate::device::PATIENCE).is_none() {
                return;
            }
        }
    }
}
