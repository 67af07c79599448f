//! Observing and changing links through rtnetlink.
//!
//! Owns: the socket, which belongs to the namespace it was opened in.
//! Refuses: planning.

use super::{Observed, Step};
use crate::Error;

/// An rtnetlink socket. Calls block, but only for the kernel's own work.
#[derive(Debug)]
pub struct Handle {}

impl Handle {
    /// In the caller's namespace.
    pub fn open() -> Result<Self, Error> {
        unimplemented!()
    }

    pub fn observe(&self) -> Result<Observed, Error> {
        unimplemented!()
    }

    /// Does the steps in order and stops at the first that fails.
    pub fn apply(&self, steps: &[Step]) -> Result<(), Error> {
        unimplemented!("{steps:?}")
    }
}

/// Tells when links, addresses or routes change.
#[derive(Debug)]
pub struct Monitor {}

impl Monitor {
    /// In the caller's namespace; within a tokio runtime.
    pub fn open() -> Result<Self, Error> {
        unimplemented!()
    }

    /// Returns once something has changed since the last call. Then observe.
    pub async fn changed(&mut self) -> Result<(), Error> {
        unimplemented!()
    }
}
