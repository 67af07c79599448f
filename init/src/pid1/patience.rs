//! How long pid1 waits for a sign of life of the node agent, pure.
//!
//! Owns: when an agent counts as hung. Refuses: ending it, and looking at what it does: one that turns is well.

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

#[cfg(test)]
mod tests {
    use super::*;

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
