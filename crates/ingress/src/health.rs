//! Whether a back end answers.
//!
//! Owns: when one is left out and when it is back. Refuses: asking (`backends` does).

/// Failures in a row after which it is left out: one may be chance.
const FAILURES: u8 = 2;

/// A back end as it was last found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Health {
    /// Nobody has asked yet: it is tried.
    #[default]
    Unknown,
    /// It answers; so many of the last questions failed.
    Up {
        failures: u8,
    },
    Down,
}

impl Health {
    pub(crate) fn is_usable(self) -> bool {
        match self {
            Self::Unknown | Self::Up { .. } => true,
            Self::Down => false,
        }
    }

    pub(crate) fn shown(self) -> Option<bool> {
        match self {
            Self::Unknown => None,
            Self::Up { .. } => Some(true),
            Self::Down => Some(false),
        }
    }

    /// One success is enough to be back: it can serve.
    pub(crate) fn after(self, answered: bool) -> Self {
        match (self, answered) {
            (_, true) => Self::Up { failures: 0 },
            // It has never answered: there is nothing to keep up.
            (Self::Unknown | Self::Down, false) => Self::Down,
            (Self::Up { failures }, false) if failures + 1 >= FAILURES => Self::Down,
            (Self::Up { failures }, false) => Self::Up {
                failures: failures + 1,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn who_answered_last_is_used_and_who_failed_twice_is_not(answers in proptest::collection::vec(any::<bool>(), 0..40)) {
            let health = answers.iter().fold(Health::default(), |health, answered| health.after(*answered));
            match answers[..] {
                [] => prop_assert_eq!(health, Health::Unknown),
                [.., true] => prop_assert_eq!(health, Health::Up { failures: 0 }),
                [.., true, false] => prop_assert!(health.is_usable()),
                [.., false] => prop_assert_eq!(health, Health::Down),
            }
        }
    }
}
