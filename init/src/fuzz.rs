//! What others than the node's own programs can say to it, for the package `fuzz`.
//!
//! Owns: nothing; it opens doors inside `node` and `chunks`. Refuses: sockets and devices.

use types::PublicKey;

pub use crate::chunks::fuzz::{fetch, store};
pub use crate::node::fuzz::{log, oem_strings, record, run_spec, seed};

/// The owner on a kernel command line, and what could not be read of it.
pub fn command_line(text: &str) -> (Option<PublicKey>, Vec<String>) {
    let options = crate::options::parse(text);
    (options.owner, options.errors)
}

/// A packet of the node as pid1 reads it, and back. `None`: refused.
pub fn to_pid1(packet: &[u8]) -> Option<Vec<u8>> {
    let message: crate::wire::ToPid1 = serde_json::from_slice(packet).ok()?;
    Some(serde_json::to_vec(&message).expect("plain data"))
}
