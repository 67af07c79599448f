//! Parts that a machine has only where it is asked for: the clock, and the port that says a panic.
//!
//! Owns: what no kernel writes there, and afterwards what every kernel reads.
//! Refuses: devices with rings.

use super::Bench;
use crate::console::say;
use crate::cpu::{in8, out8};
use crate::{CLOCK, GOES_ON};

/// MC146818, as in every PC.
const INDEX: u16 = 0x70;
const DATA: u16 = 0x71;
const SECONDS: u8 = 0x00;
const MINUTES: u8 = 0x02;
const HOURS: u8 = 0x04;
const DAY: u8 = 0x07;
const MONTH: u8 = 0x08;
const YEAR: u8 = 0x09;
const CENTURY: u8 = 0x32;
const REGISTER_A: u8 = 0x0a;
const UPDATING: u8 = 0x80;

/// pvpanic (QEMU's `docs/specs/pvpanic`).
const PANIC: u16 = 0x505;
const PANICKED: u8 = 1;
const CRASH_LOADED: u8 = 2;

fn register(index: u8) -> u8 {
    out8(INDEX, index);
    in8(DATA)
}

fn decimal(bcd: u8) -> u32 {
    u32::from(bcd >> 4) * 10 + u32::from(bcd & 0xf)
}

/// Year of the century, month, day, hours, minutes, seconds; all of one moment (as Linux' `mc146818_get_time` reads
/// them: again where a second has ended in between).
fn now() -> [u32; 7] {
    let read = || {
        let list = [CENTURY, YEAR, MONTH, DAY, HOURS, MINUTES, SECONDS];
        list.map(|index| decimal(register(index)))
    };
    loop {
        while register(REGISTER_A) & UPDATING != 0 {}
        let (first, second) = (read(), read());
        if first == second {
            return first;
        }
    }
}

/// Writes whatever it likes to every register of the clock, which then still says the time.
pub(super) fn clock(bench: &mut Bench) {
    for index in 0..=u8::MAX {
        out8(INDEX, index);
        out8(DATA, bench.random.word() as u8);
        in8(DATA);
    }
    let [century, year, month, day, hours, minutes, seconds] = now();
    say(format_args!(
        "{CLOCK} {century:02}{year:02} {month} {day} {hours} {minutes} {seconds}"
    ));
}

/// A kernel that saves its memory after a panic goes on; one that just panics is at its end.
pub(super) fn panic(_: &mut Bench) {
    assert!(
        in8(PANIC) == PANICKED | CRASH_LOADED,
        "there is no port for a panic"
    );
    out8(PANIC, CRASH_LOADED);
    say(format_args!("{GOES_ON}"));
    out8(PANIC, PANICKED);
}
