//! Exits of every kind, in numbers.
//!
//! Owns: ports, hypercalls, code where there is none. Refuses: devices.

use super::Bench;
use crate::cpu;
use crate::memory::{WINDOW, read};

const KEYBOARD: u16 = 0x64;
const SERIAL: core::ops::Range<u16> = 0x3f8..0x400;
const FLOOD: u32 = 20_000;
/// Every port is tried on a coarse step, and all of those where ISA parts are.
const STEP: usize = 7;

pub(super) fn ports(bench: &mut Bench) {
    let harmless = |port: &u16| *port != KEYBOARD && !SERIAL.contains(port);
    for port in (0..0x400)
        .chain((0x400..=0xffff).step_by(STEP))
        .filter(harmless)
    {
        cpu::out8(port, bench.random.word() as u8);
        cpu::in8(port);
        cpu::out32(port, bench.random.word());
        cpu::in32(port);
    }
    // By widths that the keyboard's controller and the serial port do not have.
    for port in [KEYBOARD - 1, KEYBOARD, SERIAL.start, SERIAL.end - 1] {
        cpu::out16(port, 0xfefe);
        cpu::in16(port);
        cpu::out32(port, 0xfefe_fefe);
        cpu::in32(port);
    }
    cpu::out8(KEYBOARD, 0xff);
    for port in SERIAL.skip(1) {
        for value in [0xff, 0x80, 0x00] {
            cpu::out8(port, value);
            cpu::in8(port);
        }
    }
}

/// Several thousand bytes at once, each way.
pub(super) fn port_strings(_: &mut Bench) {
    let mut bytes = [0_u8; 8192];
    for port in [0x60, KEYBOARD, 0x80, 0x1f0, 0xcfc, SERIAL.start + 7, 0xffff] {
        cpu::in_string(port, &mut bytes);
        bytes.fill(0x11);
        cpu::out_string(port, &bytes);
    }
}

pub(super) fn flood(_: &mut Bench) {
    for count in 0..FLOOD {
        cpu::out8(0x80, count as u8);
        cpu::in8(0x71);
        read::<u32>(WINDOW.end - 0x100_0000);
        read::<u32>(WINDOW.start);
    }
}

pub(super) fn hypercalls(bench: &mut Bench) {
    for leaf in 0..2000 {
        cpu::identify(
            bench
                .random
                .pick(&[leaf, 0x4000_0000 + leaf, 0x8000_0000 + leaf]),
        );
    }
    // 5 is a kick of another processor, 11 an interrupt to many; 9 and 12 write to memory or need a device.
    for number in [0, 1, 2, 3, 5, 11, 100, 1 << 32, u64::MAX] {
        for argument in [0, 1, 0xff, u64::MAX] {
            cpu::hypercall(number, argument);
        }
    }
}

/// A console that nobody could read as fast.
pub(super) fn console_flood(_: &mut Bench) {
    for count in 0..FLOOD {
        cpu::out8(SERIAL.start, if count % 64 == 63 { b'\n' } else { b'x' });
    }
    cpu::out8(SERIAL.start, b'\n');
}

/// A device's registers as code.
pub(super) fn run_in_registers(bench: &mut Bench) {
    let base = bench.devices().first().map_or(WINDOW.start, |d| d.base);
    cpu::jump(base + 0x70)
}

/// Code where neither memory nor a device is.
pub(super) fn run_in_nothing(_: &mut Bench) {
    cpu::jump(WINDOW.end - 0x200_0000)
}
