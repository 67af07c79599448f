//! Deployments on one node: what is accepted, kept, wanted, and done about it.
//!
//! Owns: admission, the ledger, the plan, and the reconciler that follows it.
//! Refuses: disks other than the ledger's files, netlink, VMMs, clocks: those are the
//! [`host::Host`]'s, and time comes with each call.
#![forbid(unsafe_code)]

pub mod address;
pub mod admission;
pub mod desired;
pub mod host;
pub mod ledger;
mod machine;
pub mod placement;
pub mod reconcile;
mod volume;

pub use machine::{Pause, STOP_GRACE_MS, STOP_MAX_MS};
