//! Network namespaces with names, and calls made inside them.
//!
//! Owns: `/run/netns/<name>`, the thread on which a call inside a namespace runs.
//! Refuses: moving the caller. A thread that has entered a namespace never returns to a pool.

use std::os::fd::OwnedFd;

use crate::Error;

/// Where named namespaces are mounted, as iproute2 has it.
pub const DIRECTORY: &str = "/run/netns";

/// Creates the namespace unless it exists. It lives on in its mount when this process ends.
pub fn ensure(name: &str) -> Result<OwnedFd, Error> {
    unimplemented!("{name}")
}

/// The names of all namespaces.
pub fn list() -> Result<Vec<String>, Error> {
    unimplemented!()
}
