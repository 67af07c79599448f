//! The device status as a state machine (VIRTIO 1.2 sections 2.1 and 3.1.1), pure.
//!
//! Owns: which status writes are legal. Refuses: steps left out, steps back, unknown bits. A refused
//! write changes nothing, which the driver sees when it reads the status back.

const ACKNOWLEDGE: u32 = 1;
const DRIVER: u32 = 2;
const DRIVER_OK: u32 = 4;
const FEATURES_OK: u32 = 8;
const NEEDS_RESET: u32 = 64;
const FAILED: u32 = 128;

/// How far the driver has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(crate) enum Phase {
    #[default]
    Reset,
    Acknowledged,
    /// The driver knows the device and negotiates features.
    Driver,
    /// Features are agreed; the only phase in which queues can be set up.
    FeaturesOk,
    /// The driver is ready: queues are served.
    Running,
}

impl Phase {
    const fn bits(self) -> u32 {
        match self {
            Self::Reset => 0,
            Self::Acknowledged => ACKNOWLEDGE,
            Self::Driver => ACKNOWLEDGE | DRIVER,
            Self::FeaturesOk => ACKNOWLEDGE | DRIVER | FEATURES_OK,
            Self::Running => ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK,
        }
    }

    const fn next(self) -> Option<Self> {
        match self {
            Self::Reset => Some(Self::Acknowledged),
            Self::Acknowledged => Some(Self::Driver),
            Self::Driver => Some(Self::FeaturesOk),
            Self::FeaturesOk => Some(Self::Running),
            Self::Running => None,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Status {
    phase: Phase,
    /// The driver has given up.
    failed: bool,
    /// The device has given the driver up.
    broken: bool,
}

/// What a status write asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Request {
    Nothing,
    Reset,
    /// One step further; the caller decides whether to take it.
    Enter(Phase),
}

impl Status {
    pub(crate) fn bits(self) -> u32 {
        let broken = if self.broken { NEEDS_RESET } else { 0 };
        let failed = if self.failed { FAILED } else { 0 };
        self.phase.bits() | broken | failed
    }

    /// From what `bits` gave. `None`: no status has these bits.
    pub(crate) fn from_bits(bits: u32) -> Option<Self> {
        let phase = bits & !(NEEDS_RESET | FAILED);
        let phases = std::iter::successors(Some(Phase::Reset), |phase| phase.next());
        Some(Self {
            phase: phases.into_iter().find(|p| p.bits() == phase)?,
            broken: bits & NEEDS_RESET != 0,
            failed: bits & FAILED != 0,
        })
    }

    #[cfg(test)]
    pub(crate) fn phase(self) -> Phase {
        self.phase
    }

    /// Whether queues are served.
    pub(crate) fn live(self) -> bool {
        self.phase == Phase::Running && !self.failed && !self.broken
    }

    /// Whether the driver may configure; a device that was given up waits for its reset.
    pub(crate) fn configurable(self, phase: Phase) -> bool {
        self.phase == phase && !self.failed && !self.broken
    }

    /// Judges a write. Only the driver's failure is noted here.
    pub(crate) fn request(&mut self, value: u32) -> Request {
        if value == 0 {
            return Request::Reset;
        }
        // A driver that sets a bit writes back all it has read, NEEDS_RESET included.
        let value = value & !NEEDS_RESET;
        if value & FAILED != 0 {
            self.failed = true;
            return Request::Nothing;
        }
        match self.phase.next() {
            Some(next) if value == next.bits() && !self.failed && !self.broken => {
                Request::Enter(next)
            }
            _ => Request::Nothing,
        }
    }

    pub(crate) fn enter(&mut self, phase: Phase) {
        self.phase = phase;
    }

    pub(crate) fn break_down(&mut self) {
        self.broken = true;
    }

    pub(crate) fn reset(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PHASES: [Phase; 5] = [
        Phase::Reset,
        Phase::Acknowledged,
        Phase::Driver,
        Phase::FeaturesOk,
        Phase::Running,
    ];

    #[test]
    fn from_each_phase_only_the_next_one_and_reset_can_be_reached() {
        for (at, phase) in PHASES.into_iter().enumerate() {
            for value in 0..=0x3ff {
                let mut status = Status {
                    phase,
                    ..Status::default()
                };
                let next = PHASES
                    .get(at + 1)
                    .filter(|n| n.bits() == value & !NEEDS_RESET);
                let expected = match (value, next) {
                    (0, _) => Request::Reset,
                    (_, Some(next)) => Request::Enter(*next),
                    (_, None) => Request::Nothing,
                };
                assert_eq!(status.request(value), expected, "{phase:?} {value:#x}");
                assert_eq!(status.phase(), phase);
            }
        }
    }

    #[test]
    fn a_failed_or_broken_device_goes_nowhere_but_to_reset() {
        for phase in PHASES {
            let mut failed = Status {
                phase,
                ..Status::default()
            };
            assert_eq!(failed.request(phase.bits() | FAILED), Request::Nothing);
            let mut broken = Status {
                phase,
                ..Status::default()
            };
            broken.break_down();
            for status in [&mut failed, &mut broken] {
                assert!(!status.live() && !status.configurable(phase));
                for next in PHASES.into_iter().skip(1) {
                    assert_eq!(status.request(next.bits()), Request::Nothing);
                }
                assert_eq!(status.request(0), Request::Reset);
                status.reset();
                assert_eq!(status.bits(), 0);
            }
        }
    }
}
