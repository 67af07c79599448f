//! I/O ports: the keyboard controller's reset line and, if asked for, a serial port.
//!
//! Owns: port to device. Refuses: every other port.

use std::sync::Mutex;

use super::ABSENT;
use crate::device::i8042;
use crate::device::serial::Serial;

/// What a write to a port led to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PioWrite {
    Done,
    /// The guest pulled the reset line.
    Reset,
}

#[derive(Debug, Default)]
pub(crate) struct Pio {
    serial: Option<Mutex<Serial>>,
}

impl Pio {
    pub(crate) fn new(serial: Option<Serial>) -> Self {
        Self {
            serial: serial.map(Mutex::new),
        }
    }

    fn serial(&self, port: u16) -> Option<(std::sync::MutexGuard<'_, Serial>, u8)> {
        let offset = port
            .checked_sub(Serial::BASE)
            .filter(|o| *o < Serial::PORTS)?;
        let serial = self
            .serial
            .as_ref()?
            .lock()
            .expect("no panic while the port was locked");
        Some((serial, u8::try_from(offset).expect("below 8")))
    }

    pub(crate) fn read(&self, port: u16, data: &mut [u8]) {
        data.fill(ABSENT);
        let [byte] = data else { return };
        if port == i8042::COMMAND {
            *byte = i8042::STATUS;
        } else if let Some((mut serial, offset)) = self.serial(port) {
            *byte = serial.read(offset);
        }
    }

    pub(crate) fn write(&self, port: u16, data: &[u8]) -> PioWrite {
        let [byte] = *data else { return PioWrite::Done };
        if port == i8042::COMMAND && byte == i8042::RESET {
            return PioWrite::Reset;
        }
        if let Some((mut serial, offset)) = self.serial(port) {
            serial.write(offset, byte);
        }
        PioWrite::Done
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reset_line_is_the_only_port_that_does_anything_without_a_serial_port() {
        let pio = Pio::new(None);
        for port in 0..=u16::MAX {
            for value in [0, 0xfe, 0xff] {
                let reset = port == 0x64 && value == 0xfe;
                assert_eq!(pio.write(port, &[value]) == PioWrite::Reset, reset);
            }
            let mut byte = [0xaa];
            pio.read(port, &mut byte);
            assert_eq!(byte[0], if port == 0x64 { 0 } else { ABSENT });
        }
        assert_eq!(pio.write(0x64, &[0xfe, 0]), PioWrite::Done);
        let mut wide = [0; 4];
        pio.read(0x64, &mut wide);
        assert_eq!(wide, [ABSENT; 4]);
    }
}
