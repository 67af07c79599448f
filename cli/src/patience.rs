//! Patience with a node that goes away: its agent was killed, it reboots, a line broke.
//!
//! Owns: how long it is asked again, and what a person reads meanwhile.
//! Refuses: patience with a node that never answered (a wrong address should show at once), with one that
//! says no, and with one that answers and breaks off over and over.

use std::time::Duration;

use api::ClientError;
use api::client::Absence;
use tokio::time::Instant;

use crate::screen::{Screen, time};

/// Longest absence. A killed agent is back within seconds; a machine that boots fast, within this.
pub(crate) const AWAY_MAX: Duration = Duration::from_secs(120);
/// Between two tries: nothing tells from afar when a node listens again.
pub(crate) const PAUSE: Duration = Duration::from_millis(250);
/// A node that breaks off sooner than this after it came back has not been back.
const STEADY: Duration = Duration::from_secs(5);

/// Where we are with a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Contact {
    /// It has not answered yet.
    Never,
    Steady,
    Lost {
        since: Instant,
    },
    Regained {
        lost: Instant,
        at: Instant,
    },
}

impl Contact {
    fn heard(self, now: Instant) -> Self {
        match self {
            Self::Never | Self::Steady => Self::Steady,
            Self::Lost { since } => Self::Regained {
                lost: since,
                at: now,
            },
            Self::Regained { .. } => self,
        }
    }

    fn lost(self, absence: Absence, now: Instant) -> Self {
        match (self, absence) {
            (Self::Never, Absence::Unmet) | (Self::Lost { .. }, _) => self,
            (Self::Never, Absence::Met) | (Self::Steady, _) => Self::Lost { since: now },
            (Self::Regained { lost, at }, _) if now.duration_since(at) < STEADY => {
                Self::Lost { since: lost }
            }
            (Self::Regained { .. }, _) => Self::Lost { since: now },
        }
    }

    /// Whether to ask again.
    fn bears(self, now: Instant) -> bool {
        match self {
            Self::Never => false,
            Self::Lost { since } => now.duration_since(since) < AWAY_MAX,
            Self::Steady | Self::Regained { .. } => true,
        }
    }
}

#[derive(Debug)]
pub(crate) struct Patience {
    screen: Screen,
    contact: Contact,
}

impl Patience {
    pub(crate) fn new(screen: Screen) -> Self {
        Self {
            screen,
            contact: Contact::Never,
        }
    }

    /// The node has answered.
    pub(crate) fn heard(&mut self) {
        let now = Instant::now();
        if let Contact::Lost { since } = self.contact {
            let away = u64::try_from(now.duration_since(since).as_millis()).unwrap_or(u64::MAX);
            let away = time(away);
            self.screen
                .note(&format!("the node answers again after {away}"));
        }
        self.contact = self.contact.heard(now);
    }

    /// The node has not answered. Returns when it should be asked again; the error, where that is vain.
    pub(crate) async fn bear(&mut self, error: ClientError) -> Result<(), ClientError> {
        let Some(absence) = error.absence() else {
            return Err(error);
        };
        let now = Instant::now();
        let contact = self.contact.lost(absence, now);
        if contact == (Contact::Lost { since: now }) {
            let limit = AWAY_MAX.as_secs();
            self.screen.note(&format!(
                "the node does not answer: asking again for up to {limit} s"
            ));
        }
        self.contact = contact;
        if !contact.bears(now) {
            return Err(error);
        }
        tokio::time::sleep(PAUSE).await;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_that_never_answered_is_not_waited_for() {
        let now = Instant::now();
        assert!(!Contact::Never.lost(Absence::Unmet, now).bears(now));
        assert!(Contact::Never.lost(Absence::Met, now).bears(now));
    }

    #[test]
    fn a_node_that_went_away_is_waited_for_up_to_the_limit_each_time() {
        let start = Instant::now();
        let lost = |contact: Contact, at| contact.lost(Absence::Unmet, at);
        let away = lost(Contact::Never.heard(start), start);
        let late = start + AWAY_MAX - PAUSE;
        assert!(lost(away, late).bears(late) && !away.bears(start + AWAY_MAX));
        let back = away.heard(late).heard(late);
        let again = late + STEADY;
        assert_eq!(lost(back, again), Contact::Lost { since: again });
    }

    #[test]
    fn a_node_that_answers_and_breaks_off_over_and_over_is_given_up() {
        let start = Instant::now();
        let mut contact = Contact::Steady.lost(Absence::Met, start);
        let mut now = start;
        while contact.bears(now) {
            contact = contact.heard(now);
            now += PAUSE;
            contact = contact.lost(Absence::Met, now);
            assert!(now < start + AWAY_MAX + PAUSE, "without an end");
        }
    }
}
