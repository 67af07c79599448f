//! Requests of disks that no driver makes (VIRTIO 1.2 section 5.2.6).
//!
//! Owns: header, data and status. Refuses: rings that break rules; here they are proper.

use super::Bench;
use crate::device::{BLK, Device, Queue, WRITE, buffer};
use crate::honest::READ_ONLY;
use crate::memory::put;

const OUT: u32 = 1;
const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;
/// Within any disk.
const SECTOR: u64 = 8;

fn header(kind: u32, sector: u64) -> u64 {
    let header = buffer(0, 16);
    put(header, kind);
    put(header + 8, sector);
    header
}

fn ask(device: &Device, queue: &Queue, parts: &[(u64, u32, u16)]) {
    queue.chain(0, parts);
    queue.offer(0);
    device.notify(0);
    queue.glance(device);
}

fn each(bench: &Bench, attack: impl Fn(&Device, &Queue)) {
    for device in bench.of(BLK) {
        if let Some(mut queues) = device.start() {
            attack(&device, queues.get(0));
        }
    }
}

/// Only on disks that say they cannot be written.
pub(super) fn read_only(bench: &mut Bench) {
    for kind in [OUT, DISCARD, WRITE_ZEROES] {
        each(bench, |device, queue| {
            if device.offered() & READ_ONLY == 0 {
                return;
            }
            let (data, status) = (buffer(1, 512), buffer(2, 1));
            // Sectors from 0, a few of them: a range of discard as much as plain bytes.
            put(data + 8, 4_u32);
            let parts = [(header(kind, 0), 16, 0), (data, 512, 0), (status, 1, WRITE)];
            ask(device, queue, &parts);
            let short = [(header(kind, 0), 16, 0), (data, 16, 0), (status, 1, WRITE)];
            ask(device, queue, &short);
        });
    }
}

pub(super) fn requests(bench: &mut Bench) {
    let sectors = [SECTOR, 1 << 40, u64::MAX / 512, u64::MAX];
    for kind in [0, OUT, 4, 5, 8, 10, 12, 14, 0xffff, u32::MAX] {
        for sector in sectors {
            each(bench, |device, queue| {
                let (data, status) = (buffer(1, 4096), buffer(2, 64));
                let h = header(kind, sector);
                let way = if kind == OUT { 0 } else { WRITE };
                for length in [1, 511, 512, 513, 4096] {
                    ask(
                        device,
                        queue,
                        &[(h, 16, 0), (data, length, way), (status, 1, WRITE)],
                    );
                }
                // No status, a status that is not a byte, half a header, nothing but a header.
                ask(device, queue, &[(h, 16, 0), (data, 512, way)]);
                ask(device, queue, &[(h, 16, 0), (status, 0, WRITE)]);
                ask(device, queue, &[(h, 7, 0), (status, 1, WRITE)]);
                ask(device, queue, &[(h, 16, 0)]);
                ask(device, queue, &[(status, 1, WRITE)]);
                // A header in sixteen pieces.
                let mut pieces = [(h, 1, 0); 18];
                for (at, piece) in (0..16).zip(&mut pieces) {
                    piece.0 = h + at;
                }
                pieces[16] = (data, 512, way);
                pieces[17] = (status, 1, WRITE);
                ask(device, queue, &pieces);
            });
        }
    }
}

/// Ranges to discard or to zero that end beyond the disk, or beyond all numbers.
pub(super) fn ranges(bench: &mut Bench) {
    for kind in [DISCARD, WRITE_ZEROES] {
        for (sector, count) in [
            (u64::MAX, 1),
            (u64::MAX, u32::MAX),
            (1 << 55, 8),
            (SECTOR, u32::MAX),
            (1 << 40, 1),
            (SECTOR, 0),
        ] {
            for flags in [0_u32, 1, u32::MAX] {
                each(bench, |device, queue| {
                    let (data, status) = (buffer(1, 4096), buffer(2, 1));
                    for at in 0..256 {
                        put(data + at * 16, sector);
                        put(data + at * 16 + 8, count);
                        put(data + at * 16 + 12, flags);
                    }
                    for length in [16, 15, 32, 4096] {
                        let h = header(kind, 0);
                        ask(
                            device,
                            queue,
                            &[(h, 16, 0), (data, length, 0), (status, 1, WRITE)],
                        );
                    }
                });
            }
        }
    }
}
