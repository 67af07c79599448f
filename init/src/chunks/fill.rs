//! When back-filling begins: of an image once the machines that first run on it have started.
//!
//! Owns: what counts as started. A program must run in one of the image's machines, and then nothing may have been waited
//! for so long as a start counts as over (`flist::trace`): no machine says by itself that it serves. A machine that is gone
//! waits for nothing. At the latest it begins after a bound, whatever the machines do.
//! Beside it how long the filling of all images waits for VMs that wait.
//! Pure: time is passed in. Refuses: filling, and holding back what a machine waits for or is expected to want.
//!
//! ```text
//! Starts ── a machine's program runs, then QUIET without a wait ──▶ Begun
//!    └───── all machines are gone, or LONGEST after the opening ───▶ Begun
//! ```

use std::time::Duration;

use flist::trace::{LONGEST, QUIET};

use super::queue::Now;

/// Of one image, while its disk is open. Once begun it stays so: later machines find most of the image here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fill {
    Starts {
        opened: Now,
        /// When a program began to run in one of its machines, and none waited since.
        quiet_since: Option<Now>,
    },
    Begun,
}

impl Fill {
    /// The image was opened.
    pub(crate) fn new(now: Now) -> Self {
        Self::Starts {
            opened: now,
            quiet_since: None,
        }
    }

    /// The program of one of its machines runs.
    pub(crate) fn program_runs(&mut self, now: Now) {
        match self {
            Self::Starts { quiet_since, .. } => *quiet_since = Some(now),
            Self::Begun => {}
        }
    }

    /// One of its machines waits for a chunk.
    pub(crate) fn waits(&mut self, now: Now) {
        match self {
            Self::Starts {
                quiet_since: Some(since),
                ..
            } => *since = now,
            Self::Starts {
                quiet_since: None, ..
            }
            | Self::Begun => {}
        }
    }

    /// A machine is gone; so many are left. Whether it has begun with that.
    pub(crate) fn gone(&mut self, left: usize) -> bool {
        match self {
            Self::Starts { .. } if left == 0 => {
                *self = Self::Begun;
                true
            }
            Self::Starts { .. } | Self::Begun => false,
        }
    }

    /// When it begins if nothing happens before; `None` once it has.
    pub(crate) fn due(&self) -> Option<Now> {
        match self {
            Self::Starts {
                opened,
                quiet_since,
            } => {
                let latest = *opened + LONGEST;
                Some(quiet_since.map_or(latest, |since| (since + QUIET).min(latest)))
            }
            Self::Begun => None,
        }
    }

    /// Whether it has begun just now, because it was due.
    pub(crate) fn wake(&mut self, now: Now) -> bool {
        let is_due = self.due().is_some_and(|due| due <= now);
        if is_due {
            *self = Self::Begun;
        }
        is_due
    }

    /// What of the work is due now, and what later.
    pub(crate) fn part<T: Default>(&self, work: T) -> (T, T) {
        match self {
            Self::Starts { .. } => (T::default(), work),
            Self::Begun => (work, T::default()),
        }
    }
}

/// All back-filling waits while any VM does: the line is theirs. It goes on when none has waited for so long.
const HELD_QUIET: Duration = Duration::from_secs(1);
/// And after so much waiting, however the VMs read: what is pinned must come to be on this node.
const HELD_MAX: Duration = Duration::from_secs(30);

/// Since when VMs keep back-filling waiting, and when one last waited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Held {
    since: Now,
    last: Now,
}

impl Held {
    /// One VM more waits.
    pub(crate) fn waits(before: Option<Self>, now: Now) -> Self {
        let since = before.map_or(now, |held| held.since);
        Self { since, last: now }
    }

    pub(crate) fn until(self) -> Now {
        (self.last + HELD_QUIET).min(self.since + HELD_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Now = Duration::from_secs(100);
    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn an_image_is_filled_once_its_machine_runs_and_has_waited_for_nothing_for_a_while() {
        let mut fill = Fill::new(NOW);
        fill.waits(NOW + SECOND);
        assert_eq!(fill.due(), Some(NOW + LONGEST), "nothing runs yet");
        fill.program_runs(NOW + 2 * SECOND);
        assert_eq!(fill.due(), Some(NOW + 2 * SECOND + QUIET));
        fill.waits(NOW + 5 * SECOND);
        let due = NOW + 5 * SECOND + QUIET;
        assert!(!fill.wake(due - SECOND) && fill.part(1) == (0, 1));
        assert!(fill.wake(due) && fill.part(1) == (1, 0) && fill.due().is_none());
        assert!(!fill.wake(due), "it begins once");
    }

    #[test]
    fn an_image_whose_machine_never_runs_or_never_ceases_to_read_is_filled_at_last() {
        let mut fill = Fill::new(NOW);
        assert!(!fill.wake(NOW + LONGEST - SECOND));
        fill.program_runs(NOW + LONGEST - SECOND);
        assert_eq!(fill.due(), Some(NOW + LONGEST));
        assert!(fill.wake(NOW + LONGEST));
    }

    #[test]
    fn an_image_is_filled_when_the_last_of_its_machines_is_gone() {
        let mut fill = Fill::new(NOW);
        assert!(!fill.gone(1) && fill.due().is_some());
        assert!(fill.gone(0) && fill.due().is_none());
        assert!(!fill.gone(0), "it begins once");
        fill.program_runs(NOW);
        fill.waits(NOW);
        assert_eq!(fill.due(), None);
    }

    #[test]
    fn vms_that_wait_hold_all_filling_back_for_a_while_and_not_for_ever() {
        let mut held = Held::waits(None, NOW);
        assert_eq!(held.until(), NOW + HELD_QUIET);
        held = Held::waits(Some(held), NOW + HELD_QUIET / 2);
        assert_eq!(held.until(), NOW + HELD_QUIET / 2 + HELD_QUIET);
        held = Held::waits(Some(held), NOW + HELD_MAX);
        assert_eq!(held.until(), NOW + HELD_MAX);
    }

    #[test]
    fn no_history_holds_it_longer_than_the_bound() {
        // Each digit in base 3 of a number is a step: all histories of eight steps, a step every half of a quiet time.
        for history in 0..3_u32.pow(8) {
            let (mut fill, mut now, mut rest) = (Fill::new(NOW), NOW, history);
            while now < NOW + LONGEST {
                now += QUIET / 2;
                match rest % 3 {
                    0 => fill.program_runs(now),
                    1 => fill.waits(now),
                    _ => drop(fill.gone(1)),
                }
                rest = rest / 3 + (rest % 3) * 3_u32.pow(7);
                assert!(
                    fill.due().is_none_or(|due| due <= NOW + LONGEST),
                    "{history}"
                );
                fill.wake(now);
            }
            assert_eq!(fill, Fill::Begun, "{history}");
        }
    }
}
