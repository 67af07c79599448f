//! The error of this crate: what was tried, on what, and what the kernel answered.
//!
//! Owns: that pairing, and the one-line text of a chain of errors. Refuses: deciding what to do next.

use std::io;

/// A system call that failed.
#[derive(Debug, thiserror::Error)]
#[error("{operation}")]
pub struct Error {
    /// The call in words, with its operands: `mount proc on /proc`.
    pub operation: String,
    #[source]
    pub source: io::Error,
}

pub type Result<T> = std::result::Result<T, Error>;

/// Names the operation that failed.
pub trait During<T> {
    fn during(self, operation: impl FnOnce() -> String) -> Result<T>;
}

impl<T, E: Into<io::Error>> During<T> for std::result::Result<T, E> {
    fn during(self, operation: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|source| Error {
            operation: operation(),
            source: source.into(),
        })
    }
}

/// An error and all its causes on one line, outermost first.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_names_the_operation_and_its_cause() {
        let result: std::result::Result<(), _> = Err(nix::errno::Errno::ENOENT);
        let error = result
            .during(|| "open /x".to_owned())
            .expect_err("an error");
        assert_eq!(
            chain(&error),
            "open /x: No such file or directory (os error 2)"
        );
    }
}
