//! How long pid1 waits for a sign of life of the node agent, pure.
//!
//! Owns: when an agent counts as hung, and when one that does not end is not waited for. Refuses: ending it, and looking at what it does: one that turns is well.

use std::time::Duration;

/// Longest silence. The node gives a sign each 10 s; a sync to a slow disk may hold up its loop for some.
const SILENCE_MAX: Duration = Duration::from_secs(60);

/// The agent's process, as far as it was heard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Patience {
    /// There is none.
    #[default]
    Absent,
    /// It was started or heard at this time.
    Heard(Duration),
}

impl Patience {
    /// It was started, or said something, whatever it was.
    pub(super) fn heard(&mut self, now: Duration) {
        *self = Self::Heard(now);
    }

    pub(super) fn gone(&mut self) {
        *self = Self::Absent;
    }

    /// When to look again.
    pub(super) fn deadline(self) -> Option<Duration> {
        match self {
            Self::Absent => None,
            Self::Heard(at) => Some(at + SILENCE_MAX),
        }
    }

    /// Whether it is to be ended now. Said once for each such silence: who is killed and does not die is
    /// given as much time again.
    pub(super) fn is_over(&mut self, now: Duration) -> bool {
        let over = self.deadline().is_some_and(|at| now >= at);
        if over {
            self.heard(now);
        }
        over
    }
}

/// Longest wait for the end of an agent that has hung up, and of one that was killed: it exits at once, unless the kernel holds a
/// thread of it in a disk that does not answer.
const LEAVE_MAX: Duration = Duration::from_secs(5);

/// An agent that is about to end, as far as can be seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Leaving {
    #[default]
    Not,
    /// It has closed its socket, which it does last.
    HungUp(Duration),
    Killed(Duration),
}

/// What is due of one that leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Due {
    Kill,
    /// Nothing of it will ever run again, and nobody can say when it ends.
    Abandon,
}

impl Leaving {
    pub(super) fn hung_up(&mut self, now: Duration) {
        if *self == Self::Not {
            *self = Self::HungUp(now);
        }
    }

    pub(super) fn killed(&mut self, now: Duration) {
        match self {
            Self::Not | Self::HungUp(_) => *self = Self::Killed(now),
            Self::Killed(_) => {}
        }
    }

    /// When to look again.
    pub(super) fn deadline(self) -> Option<Duration> {
        match self {
            Self::Not => None,
            Self::HungUp(at) | Self::Killed(at) => Some(at + LEAVE_MAX),
        }
    }

    pub(super) fn due(self, now: Duration) -> Option<Due> {
        self.deadline().filter(|at| now >= *at)?;
        match self {
            Self::Not => None,
            Self::HungUp(_) => Some(Due::Kill),
            Self::Killed(_) => Some(Due::Abandon),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agent_that_hangs_up_and_stays_is_killed_and_one_that_survives_that_is_abandoned() {
        let mut leaving = Leaving::default();
        assert_eq!(leaving.due(at(1000)), None, "it stays");
        leaving.hung_up(at(10));
        leaving.hung_up(at(14));
        assert_eq!(
            (leaving.due(at(14)), leaving.due(at(15))),
            (None, Some(Due::Kill))
        );
        leaving.killed(at(15));
        leaving.killed(at(19));
        assert_eq!(
            (leaving.due(at(19)), leaving.due(at(20))),
            (None, Some(Due::Abandon))
        );
        // Killed at once.
        let mut leaving = Leaving::default();
        leaving.killed(at(30));
        leaving.hung_up(at(31));
        assert_eq!(leaving.due(at(35)), Some(Due::Abandon));
    }

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn an_agent_that_says_something_each_minute_lives_and_a_silent_one_is_ended_once() {
        let mut patience = Patience::default();
        assert!(!patience.is_over(at(1000)), "there is none");
        patience.heard(at(1000));
        for second in (1000..5000).step_by(59) {
            assert!(!patience.is_over(at(second)));
            patience.heard(at(second));
        }
        let last = patience.deadline().expect("a deadline");
        assert!(!patience.is_over(last - at(1)));
        assert!(patience.is_over(last));
        assert!(!patience.is_over(last), "it is about to die");
        assert!(patience.is_over(last + at(60)), "it did not");
        patience.gone();
        assert_eq!(
            (patience.deadline(), patience.is_over(at(9999))),
            (None, false)
        );
    }
}
