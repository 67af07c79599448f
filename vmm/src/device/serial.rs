//! A 16550 serial port that only sends: for debugging a guest's kernel.
//!
//! Owns: its registers, as far as Linux' driver looks. Refuses: input, and to hold the guest up: what
//! its receiver does not take at once is lost.

use std::fs::File;
use std::io::{ErrorKind, Write};

use serde::{Deserialize, Serialize};
use vmm_sys_util::eventfd::EventFd;

const DATA: u8 = 0;
const IER: u8 = 1;
const IIR: u8 = 2;
const LCR: u8 = 3;
const MCR: u8 = 4;
const LSR: u8 = 5;
const MSR: u8 = 6;
const SCR: u8 = 7;

const IER_TRANSMITTER_EMPTY: u8 = 0x02;
const IIR_NONE: u8 = 0x01;
const IIR_TRANSMITTER_EMPTY: u8 = 0x02;
const LCR_DIVISOR: u8 = 0x80;
const MCR_LOOPBACK: u8 = 0x10;
/// Transmitter empty, holding register empty.
const LSR_IDLE: u8 = 0x60;
/// Carrier, data set ready, clear to send.
const MSR_CONNECTED: u8 = 0xb0;

#[derive(Debug)]
pub(crate) struct Serial {
    output: File,
    interrupt: EventFd,
    enabled: u8,
    /// The transmitter's interrupt is raised and not yet read.
    pending: bool,
    line: u8,
    modem: u8,
    scratch: u8,
    divisor: [u8; 2],
}

/// What a snapshot keeps of the port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SerialState {
    enabled: u8,
    pending: bool,
    line: u8,
    modem: u8,
    scratch: u8,
    divisor: [u8; 2],
}

impl Serial {
    /// COM1.
    pub(crate) const BASE: u16 = 0x3f8;
    pub(crate) const PORTS: u16 = 8;

    pub(crate) fn new(output: File, interrupt: EventFd) -> Self {
        let divisor = [12, 0];
        Self {
            output,
            interrupt,
            enabled: 0,
            pending: false,
            line: 0x03,
            modem: 0,
            scratch: 0,
            divisor,
        }
    }

    pub(crate) fn save(&self) -> SerialState {
        SerialState {
            enabled: self.enabled,
            pending: self.pending,
            line: self.line,
            modem: self.modem,
            scratch: self.scratch,
            divisor: self.divisor,
        }
    }

    /// Any values are those of a port that a guest could make.
    pub(crate) fn restore(&mut self, state: &SerialState) {
        (self.enabled, self.pending) = (state.enabled & 0x0f, state.pending);
        (self.line, self.modem) = (state.line, state.modem & 0x1f);
        (self.scratch, self.divisor) = (state.scratch, state.divisor);
        if self.pending {
            // It may have been on its way.
            let _ = self.interrupt.write(1);
        }
    }

    fn divisor_selected(&self) -> bool {
        self.line & LCR_DIVISOR != 0
    }

    pub(crate) fn read(&mut self, offset: u8) -> u8 {
        match offset {
            DATA if self.divisor_selected() => self.divisor[0],
            IER if self.divisor_selected() => self.divisor[1],
            DATA => 0,
            IER => self.enabled,
            IIR if self.pending => {
                self.pending = false;
                IIR_TRANSMITTER_EMPTY
            }
            IIR => IIR_NONE,
            LCR => self.line,
            MCR => self.modem,
            LSR => LSR_IDLE,
            MSR if self.modem & MCR_LOOPBACK != 0 => loopback(self.modem),
            MSR => MSR_CONNECTED,
            SCR => self.scratch,
            _ => crate::bus::ABSENT,
        }
    }

    pub(crate) fn write(&mut self, offset: u8, value: u8) {
        match offset {
            DATA if self.divisor_selected() => self.divisor[0] = value,
            IER if self.divisor_selected() => self.divisor[1] = value,
            DATA => {
                if self.modem & MCR_LOOPBACK == 0 {
                    // A full or closed receiver loses output; the guest must not notice. Nor does it of a
                    // pause, which interrupts the call.
                    while matches!(self.output.write(&[value]), Err(e) if e.kind() == ErrorKind::Interrupted)
                    {
                    }
                }
                self.transmitted();
            }
            IER => {
                self.enabled = value & 0x0f;
                self.transmitted();
            }
            LCR => self.line = value,
            MCR => self.modem = value & 0x1f,
            SCR => self.scratch = value,
            _ => {}
        }
    }

    /// The transmitter is empty again, at once.
    fn transmitted(&mut self) {
        if self.enabled & IER_TRANSMITTER_EMPTY != 0 {
            self.pending = true;
            // An event counter overflows only after 2^64 signals that nobody took.
            let _ = self.interrupt.write(1);
        }
    }
}

/// In loopback the modem's outputs come back as its inputs: DTR, RTS, OUT1, OUT2 as DSR, CTS, RI, DCD.
fn loopback(modem: u8) -> u8 {
    let bit = |from: u8, to: u8| (modem >> from & 1) << to;
    bit(0, 5) | bit(1, 4) | bit(2, 6) | bit(3, 7)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Seek};

    #[test]
    fn bytes_come_out_in_order_and_the_transmitter_interrupts_when_enabled() {
        let mut file = tempfile::tempfile().expect("temporary file");
        let interrupt = EventFd::new(libc::EFD_NONBLOCK).expect("eventfd");
        let mut serial = Serial::new(
            file.try_clone().expect("clones"),
            interrupt.try_clone().expect("clones"),
        );
        for byte in b"ok" {
            serial.write(DATA, *byte);
        }
        assert!(interrupt.read().is_err());
        serial.write(IER, IER_TRANSMITTER_EMPTY);
        assert_eq!(interrupt.read().expect("signalled"), 1);
        assert_eq!(serial.read(IIR), IIR_TRANSMITTER_EMPTY);
        assert_eq!(serial.read(IIR), IIR_NONE);
        file.rewind().expect("rewinds");
        let mut out = String::new();
        file.read_to_string(&mut out).expect("reads");
        assert_eq!(out, "ok");
    }

    #[test]
    fn divisor_access_sends_nothing() {
        let file = tempfile::tempfile().expect("temporary file");
        let interrupt = EventFd::new(libc::EFD_NONBLOCK).expect("eventfd");
        let mut serial = Serial::new(file.try_clone().expect("clones"), interrupt);
        serial.write(LCR, LCR_DIVISOR | 3);
        serial.write(DATA, 1);
        serial.write(IER, 2);
        assert_eq!((serial.read(DATA), serial.read(IER)), (1, 2));
        assert_eq!(file.metadata().expect("stat").len(), 0);
    }
}
