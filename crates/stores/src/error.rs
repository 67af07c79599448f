//! What can go wrong with a store.
//!
//! Owns: the difference between what time may mend and what it will not. Refuses: URLs with signatures in messages.

use types::stores::STORES_MAX;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    #[error("store {text:?}: {problem}")]
    Location { text: String, problem: String },
    #[error("{0} stores are named, 1 to {STORES_MAX} may be")]
    Count(usize),
    #[error("store {store} does not answer: {reason}")]
    Unreachable { store: String, reason: String },
    #[error("store {store} is not reached: {problem}")]
    Proxy {
        store: String,
        /// Which proxy, what it did or lacks, and what to do.
        problem: String,
    },
    #[error("store {store} answers {status}{said}")]
    Status {
        store: String,
        status: u16,
        /// What else it says, with a colon before it, or nothing.
        said: String,
    },
    #[error("store {store} has no {object}")]
    NotFound { store: String, object: String },
    #[error("store {store} does not let you: {said}. {advice}")]
    Denied {
        store: String,
        said: String,
        advice: &'static str,
    },
    #[error("store {store} sends more of {object} than the {limit} bytes it should have")]
    Large {
        store: String,
        object: String,
        limit: u64,
    },
    #[error("store {store} sends something else than {object}")]
    Wrong { store: String, object: String },
    #[error("store {store} cannot be written: {why}")]
    ReadOnly { store: String, why: &'static str },
    #[error("store {store} cannot {what}: {why}")]
    Unable {
        store: String,
        what: &'static str,
        why: &'static str,
    },
    #[error("store {store}: {doing}: {reason}")]
    Io {
        store: String,
        doing: String,
        reason: String,
    },
    #[error("store {store} answers what is not understood: {problem}")]
    Answer { store: String, problem: String },
    #[error("no store has the range of {0}")]
    NoShard(String),
    #[error("{0}")]
    Sink(String),
}

impl StoreError {
    /// Whether time alone may help: a connection that fails, a server that says it is not well, or a proxy: the owner corrects what is
    /// written of it while machines wait.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::Proxy { .. } => true,
            Self::Status { status, .. } => *status >= 500 || matches!(status, 408 | 429),
            Self::Location { .. }
            | Self::Count(_)
            | Self::NotFound { .. }
            | Self::Denied { .. }
            | Self::Large { .. }
            | Self::Wrong { .. }
            | Self::ReadOnly { .. }
            | Self::Unable { .. }
            | Self::Io { .. }
            | Self::Answer { .. }
            | Self::NoShard(_)
            | Self::Sink(_) => false,
        }
    }

    /// Whether another store may still have what was asked for.
    pub(crate) fn is_of_the_store(&self) -> bool {
        !matches!(self, Self::Sink(_))
    }
}
