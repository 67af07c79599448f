//! I/O ports: the keyboard controller's reset line, and what the specification asks for.
//!
//! Owns: port to device. Refuses: every other port.

use std::sync::{Arc, Mutex};

use super::ABSENT;
use crate::device::rtc::Rtc;
use crate::device::serial::{Serial, SerialState};
use crate::device::watchdog::Watchdog;
use crate::device::{i8042, pvpanic, rtc, watchdog};

/// What a write to a port led to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PioWrite {
    Done,
    /// The guest pulled the reset line.
    Reset,
    /// The guest's kernel says that it has panicked.
    Panicked,
}

/// What there is at ports, besides the reset line.
#[derive(Debug, Default)]
pub(crate) struct Ports {
    pub(crate) serial: Option<Serial>,
    pub(crate) rtc: Option<Rtc>,
    pub(crate) watchdog: Option<Arc<Watchdog>>,
    pub(crate) pvpanic: bool,
}

#[derive(Debug, Default)]
pub(crate) struct Pio {
    serial: Option<Mutex<Serial>>,
    rtc: Option<Mutex<Rtc>>,
    watchdog: Option<Arc<Watchdog>>,
    pvpanic: bool,
}

impl Pio {
    pub(crate) fn new(ports: Ports) -> Self {
        Self {
            serial: ports.serial.map(Mutex::new),
            rtc: ports.rtc.map(Mutex::new),
            watchdog: ports.watchdog,
            pvpanic: ports.pvpanic,
        }
    }

    pub(crate) fn save_serial(&self) -> Option<SerialState> {
        let serial = self.serial.as_ref()?.lock();
        Some(serial.expect("no panic while the port was locked").save())
    }

    /// Of a machine that has no serial port, nothing.
    pub(crate) fn restore_serial(&self, state: &SerialState) {
        if let Some(serial) = &self.serial {
            let serial = serial.lock();
            serial
                .expect("no panic while the port was locked")
                .restore(state);
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

    fn rtc(&self) -> Option<std::sync::MutexGuard<'_, Rtc>> {
        let rtc = self.rtc.as_ref()?.lock();
        Some(rtc.expect("no panic while the clock was locked"))
    }

    pub(crate) fn read(&self, port: u16, data: &mut [u8]) {
        data.fill(ABSENT);
        let [byte] = data else { return };
        match port {
            i8042::COMMAND => *byte = i8042::STATUS,
            rtc::DATA => {
                if let Some(rtc) = self.rtc() {
                    *byte = rtc.read();
                }
            }
            pvpanic::PORT if self.pvpanic => *byte = pvpanic::EVENTS,
            _ => {
                if let Some((mut serial, offset)) = self.serial(port) {
                    *byte = serial.read(offset);
                }
            }
        }
    }

    pub(crate) fn write(&self, port: u16, data: &[u8]) -> PioWrite {
        let [byte] = *data else { return PioWrite::Done };
        match port {
            i8042::COMMAND if byte == i8042::RESET => return PioWrite::Reset,
            pvpanic::PORT if self.pvpanic && pvpanic::ends(byte) => return PioWrite::Panicked,
            rtc::INDEX => {
                if let Some(mut rtc) = self.rtc() {
                    rtc.select(byte);
                }
            }
            watchdog::START | watchdog::STOP => {
                if let Some(watchdog) = &self.watchdog {
                    watchdog.write(port, byte);
                }
            }
            _ => {
                if let Some((mut serial, offset)) = self.serial(port) {
                    serial.write(offset, byte);
                }
            }
        }
        PioWrite::Done
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::end::End;

    #[test]
    fn what_is_asked_for_answers_at_its_ports_and_a_panic_is_told() {
        let end = Arc::new(End::new().expect("an event counter"));
        let pio = Pio::new(Ports {
            serial: None,
            rtc: Some(Rtc::default()),
            watchdog: Some(Arc::new(Watchdog::new(&end).expect("a timer"))),
            pvpanic: true,
        });
        let read = |port| {
            let mut byte = [0xaa];
            pio.read(port, &mut byte);
            byte[0]
        };
        assert_eq!(pio.write(0x70, &[0x0d]), PioWrite::Done);
        assert_eq!([read(0x70), read(0x71), read(0x505)], [ABSENT, 0x80, 3]);
        assert_eq!(pio.write(0x71, &[0]), PioWrite::Done);
        assert_eq!(read(0x71), 0x80);
        assert_eq!(pio.write(0x505, &[2]), PioWrite::Done);
        assert_eq!(pio.write(0x505, &[1]), PioWrite::Panicked);
        assert_eq!([read(0x441), read(0x443)], [ABSENT; 2]);
    }

    #[test]
    fn the_reset_line_is_the_only_port_that_does_anything_in_a_plain_machine() {
        let pio = Pio::new(Ports::default());
        for port in 0..=u16::MAX {
            for value in [0, 1, 0xfe, 0xff] {
                let done = match (port, value) {
                    (0x64, 0xfe) => PioWrite::Reset,
                    _ => PioWrite::Done,
                };
                assert_eq!(pio.write(port, &[value]), done);
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

    #[test]
    fn no_read_of_any_port_leaves_what_stood_in_its_buffer() {
        let pio = Pio::new(Ports::default());
        for port in 0..=u16::MAX {
            for size in [1, 2, 4, 16] {
                let read = |poison: u8| {
                    let mut data = vec![poison; size];
                    pio.read(port, &mut data);
                    data
                };
                assert_eq!(read(0x5a), read(0xa5), "{size} bytes of {port:#x}");
            }
        }
    }
}
