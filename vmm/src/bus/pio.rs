//! I/O ports: the keyboard controller's reset line, and what the specification asks for.
//!
//! Owns: port to device. Refuses: every other port.

use std::sync::{Arc, Mutex, MutexGuard};

use serde::{Deserialize, Serialize};

use super::ABSENT;
use crate::device::rtc::Rtc;
use crate::device::serial::{Serial, SerialState};
use crate::device::watchdog::{Watchdog, WatchdogState};
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

/// What a snapshot keeps of them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct PortsState {
    serial: Option<SerialState>,
    /// The register that the guest has selected.
    rtc: Option<u8>,
    watchdog: Option<WatchdogState>,
}

fn locked<T>(part: &Mutex<T>) -> MutexGuard<'_, T> {
    part.lock().expect("no panic while the part was locked")
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

    /// Of a machine that rests.
    pub(crate) fn save(&self) -> PortsState {
        let serial = self.serial.as_ref();
        PortsState {
            serial: serial.map(|serial| locked(serial).save()),
            rtc: self.rtc().map(|rtc| rtc.selected()),
            watchdog: self.watchdog.as_ref().map(|watchdog| watchdog.save()),
        }
    }

    /// At power-on. What this machine has no part for is left out.
    pub(crate) fn restore(&self, state: &PortsState) {
        if let (Some(serial), Some(state)) = (&self.serial, &state.serial) {
            locked(serial).restore(state);
        }
        if let (Some(mut rtc), Some(selected)) = (self.rtc(), state.rtc) {
            rtc.select(selected);
        }
        if let (Some(watchdog), Some(state)) = (&self.watchdog, state.watchdog) {
            watchdog.restore(state);
        }
    }

    fn serial(&self, port: u16) -> Option<(MutexGuard<'_, Serial>, u8)> {
        let offset = port
            .checked_sub(Serial::BASE)
            .filter(|o| *o < Serial::PORTS)?;
        let serial = locked(self.serial.as_ref()?);
        Some((serial, u8::try_from(offset).expect("below 8")))
    }

    fn rtc(&self) -> Option<MutexGuard<'_, Rtc>> {
        self.rtc.as_ref().map(locked)
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
    use crate::event::Served;

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
    fn parts_go_on_in_another_machine_as_they_were() {
        let end = Arc::new(End::new().expect("an event counter"));
        let machine = || {
            let event = vmm_sys_util::eventfd::EventFd::new(libc::EFD_NONBLOCK).expect("eventfd");
            let file = tempfile::tempfile().expect("temporary file");
            Pio::new(Ports {
                serial: Some(Serial::new(file, event)),
                rtc: Some(Rtc::default()),
                watchdog: Some(Arc::new(Watchdog::new(&end).expect("a timer"))),
                pvpanic: false,
            })
        };
        let (before, after) = (machine(), machine());
        for (port, value) in [
            (0x3f9, 2),
            (0x3fb, 0x1b),
            (0x3fc, 0x0b),
            (0x3ff, 0x77),
            (0x70, 0x0b),
            (0x443, 10),
        ] {
            before.write(port, &[value]);
        }
        let rest = |pio: &Pio| {
            pio.watchdog.as_ref().expect("has one").quiesce();
            pio.save()
        };
        let state = rest(&before);
        assert!(state.watchdog != machine().save().watchdog, "it runs");
        after.restore(&state);
        let again = rest(&after);
        assert_eq!((&again.serial, again.rtc), (&state.serial, Some(0x0b)));
        assert!(again.watchdog != machine().save().watchdog, "it runs");
        // The transmitter's interrupt is pending there, too.
        let mut byte = [0];
        after.read(0x3fa, &mut byte);
        assert_eq!(byte, [2]);
        Pio::default().restore(&state);
        assert_eq!(Pio::default().save(), PortsState::default());
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
