//! How a command ends.
//!
//! Owns: the exit statuses, and the text of an error with its causes.
//! Refuses: new meanings: scripts count on these numbers.

use std::io;
use std::process::ExitCode;

use api::ClientError;
use types::status::RefusalCode;

/// Exit statuses, as `sifr --help` and docs/commands.md list them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The reader of our output went away: nothing is wrong.
    Unheard = 0,
    Failed = 1,
    Usage = 2,
    Refused = 3,
    Unreachable = 4,
    TimedOut = 5,
}

/// The command was understood but cannot be meant so.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Usage(pub(crate) String);

/// A wait whose time ran out.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct TimedOut(pub(crate) String);

impl Outcome {
    pub(crate) fn of(error: &anyhow::Error) -> Self {
        for cause in error.chain() {
            if let Some(client) = cause.downcast_ref::<ClientError>() {
                return match client {
                    ClientError::Refused { .. } => Self::Refused,
                    client if client.is_unreachable() => Self::Unreachable,
                    _ => Self::Failed,
                };
            }
            if cause.is::<Usage>() {
                return Self::Usage;
            }
            if cause.is::<TimedOut>() {
                return Self::TimedOut;
            }
            if cause
                .downcast_ref::<io::Error>()
                .is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe)
            {
                return Self::Unheard;
            }
        }
        Self::Failed
    }
}

impl From<Outcome> for ExitCode {
    fn from(outcome: Outcome) -> Self {
        Self::from(match outcome {
            Outcome::Unheard => 0,
            Outcome::Failed => 1,
            Outcome::Usage => 2,
            Outcome::Refused => 3,
            Outcome::Unreachable => 4,
            Outcome::TimedOut => 5,
        })
    }
}

/// The error, its causes, and what to do where the node's own words do not say it.
pub(crate) fn explain(error: &anyhow::Error, outcome: Outcome) -> Option<String> {
    if outcome == Outcome::Unheard {
        return None;
    }
    let mut text = format!("sifr: {error}");
    for cause in error.chain().skip(1) {
        text.push_str(&format!("\n  because: {cause}"));
    }
    let refusal = error
        .chain()
        .find_map(|cause| cause.downcast_ref::<ClientError>()?.refusal());
    if let Some(advice) = refusal.and_then(|refusal| advice(refusal.code)) {
        text.push_str(&format!("\n  {advice}"));
    }
    Some(text)
}

/// What this program can do about a refusal; the node does not know our options.
fn advice(code: RefusalCode) -> Option<&'static str> {
    match code {
        RefusalCode::Replayed | RefusalCode::Skipped => Some(
            "It was changed by somebody else at the same time: look with `sifr get`, then run this again.",
        ),
        RefusalCode::Volatile => Some("To run it all the same, add --accept-volatile."),
        RefusalCode::UnknownKey => {
            Some("Compare `sifr key show` with the owner that the node's console shows.")
        }
        RefusalCode::MissingChunks => {
            Some("Give the .flist file in its store to --image, so that it is pushed.")
        }
        RefusalCode::PortTaken => Some("`sifr get` shows which of its ports are in use."),
        RefusalCode::DiskChanged => Some("`sifr disk list` shows what the disks hold now."),
        RefusalCode::OverCapacity => Some("`sifr node info` shows what is free."),
        RefusalCode::Malformed
        | RefusalCode::BadSignature
        | RefusalCode::WrongNode
        | RefusalCode::NotFound
        | RefusalCode::Conflict
        | RefusalCode::TooLarge
        | RefusalCode::TooSlow
        | RefusalCode::NoOwner
        | RefusalCode::LedgerUnread
        | RefusalCode::DiskSilent
        | RefusalCode::Decommissioned
        | RefusalCode::Restarting
        | RefusalCode::Internal => None,
    }
}

#[cfg(test)]
mod tests {
    use types::status::Refusal;

    use super::*;

    #[test]
    fn each_kind_of_error_has_its_own_status() {
        let refusal = Refusal {
            code: RefusalCode::Volatile,
            message: "it runs from RAM".to_owned(),
        };
        let refused = ClientError::Refused { refusal };
        let silent = ClientError::Silent {
            address: "a".to_owned(),
            request: "b".to_owned(),
        };
        for (error, outcome) in [
            (anyhow::anyhow!("plain"), Outcome::Failed),
            (Usage("so".to_owned()).into(), Outcome::Usage),
            (
                anyhow::Error::from(refused).context("cannot deploy"),
                Outcome::Refused,
            ),
            (silent.into(), Outcome::Unreachable),
            (TimedOut("late".to_owned()).into(), Outcome::TimedOut),
            (
                io::Error::from(io::ErrorKind::BrokenPipe).into(),
                Outcome::Unheard,
            ),
            (
                io::Error::from(io::ErrorKind::NotFound).into(),
                Outcome::Failed,
            ),
        ] {
            assert_eq!(Outcome::of(&error), outcome, "{error:?}");
        }
    }

    #[test]
    fn an_explanation_has_the_causes_and_the_advice() {
        let refusal = Refusal {
            code: RefusalCode::Volatile,
            message: "it runs from RAM".to_owned(),
        };
        let error =
            anyhow::Error::from(ClientError::Refused { refusal }).context("cannot deploy shop");
        assert_eq!(
            explain(&error, Outcome::Refused).expect("a text"),
            "sifr: cannot deploy shop\n  because: it runs from RAM\n  To run it all the same, add --accept-volatile."
        );
        assert_eq!(explain(&error, Outcome::Unheard), None);
    }
}
