//! Clocks.
//!
//! Owns: reading and setting them. Refuses: knowing what time it should be.

use std::time::Duration;

use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_gettime, clock_settime};

use crate::error::{During, Result};

fn read(clock: ClockId) -> Duration {
    Duration::from(
        clock_gettime(clock).expect("the kernel has this clock and the pointer is valid"),
    )
}

/// Since 1970, as far as the machine knows.
pub fn realtime() -> Duration {
    read(ClockId::CLOCK_REALTIME)
}

/// Since the kernel started, sleep included.
pub fn since_boot() -> Duration {
    read(ClockId::CLOCK_BOOTTIME)
}

/// Never goes back; for deadlines.
pub fn monotonic() -> Duration {
    read(ClockId::CLOCK_MONOTONIC)
}

/// The processor's cycle counter. It runs from power-on, before any kernel has a clock; only differences
/// on one processor mean anything.
pub fn cycles() -> u64 {
    // SAFETY: every x86_64 processor has this instruction, and it touches no memory.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// Steps the machine's clock.
pub fn set_realtime(since_1970: Duration) -> Result<()> {
    clock_settime(ClockId::CLOCK_REALTIME, TimeSpec::from_duration(since_1970))
        .during(|| format!("set the clock to {} seconds", since_1970.as_secs()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clocks_run() {
        assert!(realtime() > Duration::from_secs(1_700_000_000));
        assert!(
            since_boot() >= monotonic() - Duration::from_secs(1) && monotonic() > Duration::ZERO
        );
        let before = cycles();
        assert_ne!(cycles(), before);
    }
}
