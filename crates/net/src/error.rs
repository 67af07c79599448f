//! What can go wrong below the node's network.
//!
//! Owns: the error of every call in this crate that touches the kernel or a peer.
//! Refuses: the words of the inner error in the outer text; they are its source.

use std::io;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot {operation}")]
    Io {
        operation: String,
        #[source]
        source: io::Error,
    },
    #[error("the kernel's answer to {operation} cannot be read: {what}")]
    Answer {
        operation: String,
        what: &'static str,
    },
    #[error("{what} {value:?} is refused: {reason}")]
    Refused {
        what: &'static str,
        value: String,
        reason: &'static str,
    },
    #[error("no usable answer from time server {server}: {reason}")]
    Time {
        server: std::net::SocketAddr,
        reason: &'static str,
    },
}

impl Error {
    /// For `map_err`: names the operation that failed.
    pub(crate) fn io(operation: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let operation = operation.into();
        move |source| Self::Io { operation, source }
    }

    /// For `map_err` where the cause is an error number.
    pub(crate) fn errno(operation: impl Into<String>) -> impl FnOnce(nix::Error) -> Self {
        let operation = operation.into();
        move |errno| Self::Io {
            operation,
            source: errno.into(),
        }
    }

    /// The error number at the root, where there is one.
    pub fn raw_os_error(&self) -> Option<i32> {
        match self {
            Self::Io { source, .. } => source.raw_os_error(),
            Self::Answer { .. } | Self::Refused { .. } | Self::Time { .. } => None,
        }
    }
}
