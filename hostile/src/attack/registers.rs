//! Registers, by every width and at every offset.
//!
//! Owns: what a driver never writes. Refuses: rings.

use super::Bench;
use crate::device::{CONFIG, DRIVER_FEATURES_SEL, Device, QUEUE_DESC};
use crate::memory::{WINDOW, read, write};

const PAGE: u64 = 0x1000;
/// Far more than the ring has room for that KVM and its user share: a page of 24-byte entries.
const WAITING: u32 = 3000;

fn touch(address: u64, value: u64) {
    write(address, value as u8);
    read::<u8>(address);
    write(address, value as u16);
    read::<u16>(address);
    write(address, value as u32);
    read::<u32>(address);
    write(address, value);
    read::<u64>(address);
}

pub(super) fn every_size(bench: &mut Bench) {
    let Bench { random, .. } = bench;
    let (devices, count) = Device::find();
    for device in &devices[..count] {
        device.start();
        for offset in 0..0x110 {
            touch(device.base + offset, random.next());
        }
    }
}

pub(super) fn configuration(bench: &mut Bench) {
    for device in bench.devices() {
        device.start();
        for offset in (CONFIG..PAGE - 8).step_by(61) {
            touch(device.base + offset, u64::MAX);
        }
        for offset in CONFIG..CONFIG + 64 {
            touch(device.base + offset, u64::MAX);
        }
    }
}

/// Accesses that begin in one device's page and end in the next's.
pub(super) fn between_devices(bench: &mut Bench) {
    for device in bench.devices() {
        device.start();
        for offset in PAGE - 9..PAGE + 9 {
            touch(device.base + offset, u64::MAX);
        }
    }
}

/// The whole window: interrupt controllers, KVM's own pages, nothing.
pub(super) fn window(bench: &mut Bench) {
    for page in 0..64 {
        touch(WINDOW.start + page * PAGE + 0xff0, 0);
    }
    for step in 1..64 {
        touch(WINDOW.start + step * 0x00b7_1000, u64::MAX);
    }
    // The I/O APIC's window register, and what of the local APIC does no harm to ourselves.
    for value in [0_u32, 0x10, 0x3f, 0xff, 0xffff_ffff] {
        write(0xfec0_0000, value);
        write(0xfec0_0010, 0x1_0000 | value);
        read::<u32>(0xfec0_0010);
    }
    for offset in (0x20..0x400).step_by(0x10) {
        read::<u32>(0xfee0_0000 + offset);
        write(0xfee0_0000 + offset + 4, u32::MAX);
    }
    for address in [0xfffb_d000, 0xfffb_e000, 0xfffb_f000, 0xffff_fff0] {
        read::<u64>(address);
    }
    let _ = bench.random.next();
}

/// Writes that do not stop the processor, many more than wait.
pub(super) fn waiting_writes(bench: &mut Bench) {
    for device in bench.devices() {
        device.start();
        for count in 0..WAITING {
            device.write(DRIVER_FEATURES_SEL, count);
            device.write(QUEUE_DESC, count);
        }
    }
}
