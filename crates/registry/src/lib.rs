//! Container images of registries, brought to this machine as OCI image layouts.
//!
//! Owns: which text names an image of a registry, whom this machine logs in to and trusts, a download
//! that goes on where it was cut and is compared with its digests, and whose signature an image must have.
//! Refuses: to unpack or to understand an image (`flist` does), to push, and plain HTTP but on this machine.
#![forbid(unsafe_code)]

pub mod access;
#[cfg(test)]
mod fake;
pub mod pull;
pub mod reference;
pub mod signature;

pub use access::Access;
pub use pull::{Progress, PullError, Pulled, pull};
pub use reference::Reference;
pub use signature::{Key, Policy, PolicyError};
