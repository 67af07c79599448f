//! Lines on the first serial port.
//!
//! Owns: their way out, a byte at a time. Refuses: input.

use core::fmt::{self, Write};

use crate::cpu::out8;

const DATA: u16 = 0x3f8;

struct Port;

impl Write for Port {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        text.bytes().for_each(|byte| out8(DATA, byte));
        Ok(())
    }
}

pub(crate) fn say(line: fmt::Arguments<'_>) {
    // The port takes everything.
    let _ = Port.write_fmt(line);
    let _ = Port.write_char('\n');
}
