//! A watchdog as on the IB700 board: two ports and a timer.
//!
//! ```text
//! stopped → (write to START) → running → (time is up) → the machine's end
//! ```
//!
//! Owns: the timer, and what its end means. While the machine rests the timer does, too: a guest that cannot feed
//! it is not ended by it.
//! Refuses: to start by itself; a guest that never asks for it is never ended by it.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use serde::{Deserialize, Serialize};
use types::vm::StopReason;

use crate::end::End;
use crate::event::{Served, Source};

/// Any write stops the timer.
pub(crate) const STOP: u16 = 0x441;
/// A write starts the timer anew: its low four bits say for how long.
pub(crate) const START: u16 = 0x443;
/// Time of a start with 0; each step above that is two seconds less.
const LONGEST_S: u64 = 30;
const STEP_S: u64 = 2;
/// A time of 0 is over at once. A timer that is set to 0 would never fire.
const AT_ONCE: Duration = Duration::from_nanos(1);

pub(crate) struct Watchdog {
    timer: TimerFd,
    end: Arc<End>,
    /// What was left when the machine came to rest.
    left: Mutex<Option<Duration>>,
}

/// What a snapshot keeps of the watchdog.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct WatchdogState {
    /// `None`: it is stopped.
    left_ms: Option<u64>,
}

impl std::fmt::Debug for Watchdog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Watchdog")
    }
}

fn time(value: u8) -> Duration {
    let steps = u64::from(value & 0x0f);
    Duration::from_secs(LONGEST_S - STEP_S * steps).max(AT_ONCE)
}

impl Watchdog {
    pub(crate) fn new(end: &Arc<End>) -> Result<Self, Errno> {
        let flags = TimerFlags::TFD_CLOEXEC | TimerFlags::TFD_NONBLOCK;
        Ok(Self {
            timer: TimerFd::new(ClockId::CLOCK_MONOTONIC, flags)?,
            end: Arc::clone(end),
            left: Mutex::default(),
        })
    }

    fn left(&self) -> MutexGuard<'_, Option<Duration>> {
        self.left.lock().expect("no panic while locked")
    }

    /// Of a machine that rests.
    pub(crate) fn save(&self) -> WatchdogState {
        let left = *self.left();
        WatchdogState {
            left_ms: left.map(|left| u64::try_from(left.as_millis()).unwrap_or(u64::MAX)),
        }
    }

    /// The machine runs at once. No more is left than a guest could ask for.
    pub(crate) fn restore(&self, state: WatchdogState) {
        let left = state.left_ms.map(Duration::from_millis);
        let most = Duration::from_secs(LONGEST_S);
        *self.left() = left.map(|left| left.clamp(AT_ONCE, most));
        self.resume();
    }

    /// What a write to one of the ports does. Called by any vCPU.
    pub(crate) fn write(&self, port: u16, value: u8) {
        let done = match port {
            START => self.set(time(value)),
            STOP => self.timer.unset(),
            _ => Ok(()),
        };
        done.expect("a timer takes any time and can always be stopped");
    }

    fn set(&self, time: Duration) -> Result<(), Errno> {
        let once = Expiration::OneShot(time.into());
        self.timer.set(once, TimerSetTimeFlags::empty())
    }
}

impl Served for Watchdog {
    fn sources(&self, out: &mut Vec<Source>) {
        use std::os::fd::{AsFd, AsRawFd};
        out.push(Source::readable(&self.timer.as_fd().as_raw_fd()));
    }

    fn serve(&self, _fired: u64) {
        // Not over: the guest has fed it between the wait and here.
        if self.timer.wait().is_ok() {
            self.end.say(StopReason::Watchdog);
        }
    }

    fn quiesce(&self) {
        match self.timer.get().expect("a timer can always be read") {
            Some(
                Expiration::OneShot(time)
                | Expiration::Interval(time)
                | Expiration::IntervalDelayed(time, _),
            ) => {
                *self.left() = Some(time.into());
                self.timer.unset().expect("a timer can always be stopped");
            }
            // Stopped, or its time was up before the pause.
            None => self.serve(1),
        }
    }

    fn resume(&self) {
        if let Some(left) = self.left().take() {
            self.set(left).expect("a timer takes any time");
        }
    }

    fn stop(&self) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    fn watchdog() -> (Arc<End>, Watchdog) {
        let end = Arc::new(End::new().expect("an event counter"));
        let watchdog = Watchdog::new(&end).expect("a timer");
        (end, watchdog)
    }

    fn left(watchdog: &Watchdog) -> Option<u64> {
        match watchdog.timer.get().expect("a timer") {
            Some(Expiration::OneShot(time)) => {
                let rounded = Duration::from(time) + Duration::from_millis(500);
                Some(rounded.as_secs())
            }
            Some(Expiration::IntervalDelayed(..) | Expiration::Interval(_)) => panic!("it repeats"),
            None => None,
        }
    }

    #[test]
    fn a_start_sets_what_its_low_bits_say_and_a_stop_ends_it() {
        let (end, watchdog) = watchdog();
        assert_eq!(left(&watchdog), None);
        for (value, seconds) in [(0, 30), (1, 28), (0x0e, 2), (0xf0, 30), (0x5a, 10)] {
            watchdog.write(START, value);
            assert_eq!(left(&watchdog), Some(seconds));
        }
        watchdog.write(0x442, 0);
        assert_eq!(left(&watchdog), Some(10));
        watchdog.serve(1);
        assert_eq!(end.said(), None, "time is not up");
        watchdog.write(STOP, 0);
        assert_eq!(left(&watchdog), None);
    }

    #[test]
    fn while_the_machine_rests_no_time_goes_by_and_another_goes_on_with_what_was_left() {
        let (end, watchdog) = watchdog();
        watchdog.quiesce();
        assert_eq!(watchdog.save(), WatchdogState { left_ms: None });
        watchdog.resume();
        assert_eq!(left(&watchdog), None);
        watchdog.write(START, 5);
        watchdog.quiesce();
        assert_eq!(left(&watchdog), None, "the timer is stopped");
        let state = watchdog.save();
        watchdog.resume();
        assert_eq!(left(&watchdog), Some(20));
        let (_, other) = self::watchdog();
        other.restore(state);
        assert_eq!(left(&other), Some(20));
        for (left_ms, seconds) in [(u64::MAX, 30), (7000, 7)] {
            let left_ms = Some(left_ms);
            other.restore(WatchdogState { left_ms });
            assert_eq!(left(&other), Some(seconds));
        }
        // Time that was up before the pause is up.
        watchdog.write(START, 0x0f);
        while left(&watchdog).is_some() {}
        watchdog.quiesce();
        assert_eq!(end.said(), Some(StopReason::Watchdog));
    }

    #[test]
    fn the_machine_ends_when_time_is_up() {
        let (end, watchdog) = watchdog();
        watchdog.write(START, 0x0f);
        crate::event::run(&[&watchdog], &end.event).expect("polls");
        assert_eq!(end.said(), Some(StopReason::Watchdog));
    }
}
