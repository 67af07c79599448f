//! A driver that follows the rules: the proof that a device serves.
//!
//! Owns: one well-formed request a device, with an answer that can be judged.
//! Refuses: devices that it knows no request of; those must reset and come up.

use core::fmt;

use crate::cpu::cycles;
use crate::device::{BLK, Device, NET, PATIENCE, Queues, RNG, VSOCK, WRITE, buffer};
use crate::memory::{get, put};

const SECTOR: u32 = 512;
const OK: u8 = 0;
/// VIRTIO_BLK_F_RO.
pub(crate) const READ_ONLY: u64 = 1 << 5;

/// The byte at `offset` of a read-only disk.
pub fn pattern(offset: u64) -> u8 {
    (offset.wrapping_mul(31) >> 3) as u8 ^ 0x5a
}

/// What did not serve.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Miss {
    device: Device,
    what: &'static str,
}

impl fmt::Display for Miss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { device, what } = self;
        write!(f, "device {} at {:#x}: {what}", device.id, device.base)
    }
}

/// How many devices serve: all of them, or the first that does not.
pub(crate) fn all(devices: &[Device]) -> Result<usize, Miss> {
    let each = |check: fn(&Device) -> Result<(), &'static str>| {
        devices.iter().try_for_each(|device| {
            check(device).map_err(|what| Miss {
                device: *device,
                what,
            })
        })
    };
    // First all of them: one that still runs may write where another's answer is judged.
    each(|device| match device.reset() {
        true => Ok(()),
        false => Err("does not reset"),
    })?;
    each(one)?;
    Ok(devices.len())
}

fn one(device: &Device) -> Result<(), &'static str> {
    let mut queues = device.start().ok_or("does not come up")?;
    match device.id {
        BLK => disk(device, &mut queues)?,
        RNG => entropy(device, &mut queues)?,
        NET => network(device, &mut queues)?,
        VSOCK => vsock(device, &mut queues)?,
        _ => {}
    }
    if device.broken() {
        return Err("says that it is broken");
    }
    if !device.reset() {
        return Err("does not reset");
    }
    Ok(())
}

fn disk(device: &Device, queues: &mut Queues) -> Result<(), &'static str> {
    let (header, data, status) = (buffer(0, 16), buffer(1, u64::from(SECTOR)), buffer(2, 1));
    put(status, 0xff_u8);
    // A read of sector 1.
    put(header + 8, 1_u64);
    let queue = queues.get(0);
    queue.chain(
        0,
        &[(header, 16, 0), (data, SECTOR, WRITE), (status, 1, WRITE)],
    );
    queue.offer(0);
    device.notify(0);
    let (_, written) = queue.wait(PATIENCE).ok_or("a read is not answered")?;
    let sector = u64::from(SECTOR);
    // What may be written, an attack may have written.
    let same = device.offered() & READ_ONLY == 0
        || (0..sector).all(|at| get::<u8>(data + at) == pattern(sector + at));
    match (written == SECTOR + 1, get::<u8>(status) == OK, same) {
        (true, true, true) => Ok(()),
        (false, ..) => Err("a read wrote another count"),
        (_, false, _) => Err("a read failed"),
        (.., false) => Err("a read gave other bytes"),
    }
}

fn entropy(device: &Device, queues: &mut Queues) -> Result<(), &'static str> {
    let (data, count) = (buffer(0, 64), 64);
    let queue = queues.get(0);
    queue.chain(0, &[(data, count, WRITE)]);
    queue.offer(0);
    device.notify(0);
    let (_, written) = queue.wait(PATIENCE).ok_or("a request is not answered")?;
    let some = (0..u64::from(count)).any(|at| get::<u8>(data + at) != 0);
    match (written == count, some) {
        (true, true) => Ok(()),
        _ => Err("a request gave no entropy"),
    }
}

/// A frame to nobody: broadcast, an experimental protocol (IEEE 802, 0x88b5).
fn network(device: &Device, queues: &mut Queues) -> Result<(), &'static str> {
    const HEADER: u32 = 12;
    let frame = buffer(0, 128);
    for at in 0..6 {
        put(frame + u64::from(HEADER) + at, 0xff_u8);
        put(frame + u64::from(HEADER) + 6 + at, 0x02_u8);
    }
    put(frame + u64::from(HEADER) + 12, 0xb588_u16);
    let queue = queues.get(1);
    queue.chain(0, &[(frame, HEADER + 64, 0)]);
    queue.offer(0);
    device.notify(1);
    let sent = queue.wait(PATIENCE).ok_or("a frame is not taken")?;
    if sent.0 != 0 {
        return Err("another chain came back");
    }
    Ok(())
}

/// A connection to a port where nobody is must be reset (section 5.10.6.6).
fn vsock(device: &Device, queues: &mut Queues) -> Result<(), &'static str> {
    const HEADER: u32 = 44;
    const REQUEST: u16 = 1;
    const RESET: u16 = 3;
    let (from, to) = (buffer(0, 64), buffer(1, 4096));
    // A port of the guest that no packet of an attack has named.
    let port = 0x4000_0000 | (cycles() as u32 & 0xffff);
    put(from, u64::from(get_cid(device)));
    put(from + 8, 2_u64);
    put(from + 16, port);
    put(from + 20, 0x7fff_fff0_u32);
    put(from + 28, 1_u16);
    put(from + 30, REQUEST);
    put(from + 36, 0x1_0000_u32);
    queues.get(0).chain(0, &[(to, 4096, WRITE)]);
    queues.get(0).offer(0);
    device.notify(0);
    queues.get(1).chain(0, &[(from, HEADER, 0)]);
    queues.get(1).offer(0);
    device.notify(1);
    queues
        .get(1)
        .wait(PATIENCE)
        .ok_or("a packet is not taken")?;
    queues
        .get(0)
        .wait(PATIENCE)
        .ok_or("a packet is not answered")?;
    match get::<u16>(to + 30) == RESET && get::<u32>(to + 20) == port {
        true => Ok(()),
        false => Err("a request to nobody was not reset"),
    }
}

/// The guest's address, from the configuration.
fn get_cid(device: &Device) -> u32 {
    device.read(crate::device::CONFIG)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sectors_of_a_read_only_disk_differ() {
        let sector = |n: u64| (0..512).map(move |at| pattern(n * 512 + at));
        assert!(!sector(0).eq(sector(1)));
    }
}
