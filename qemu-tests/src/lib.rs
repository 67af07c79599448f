//! The harness of the end-to-end tests: a node in QEMU from the shipped image, and the `sifr` command.
//!
//! Owns: a laboratory with one owner, one node and images made of busybox; waits by event.
//! Refuses: looking inside the node. Tests see what a user sees: console, command, network. What nobody outside
//! can see (limits, jails) is read by [`watch`], beside the shipped image and without a part in it.

#![forbid(unsafe_code)]

mod archive;
pub mod authority;
pub mod bench;
pub mod disk;
pub mod exposition;
pub mod fleet;
mod follower;
pub mod foreign;
pub mod hour;
pub mod http;
pub mod inside;
mod lab;
pub mod lan;
pub mod neighbour;
pub mod nested;
pub mod poison;
pub mod proxy;
pub mod rack;
pub mod registry;
pub mod router;
pub mod s3;
pub mod scan;
pub mod shelf;
pub mod store;
pub mod switch;
pub mod tls;
pub mod torture;
pub mod tpm;
pub mod trunk;
mod userland;
pub mod visitor;
pub mod watch;
pub mod wire;

pub use follower::Follower;
pub use lab::{Answer, Lab, Setup, WEB_PORT, command};
pub use userland::{busybox, sealed, tree, variant};

use std::time::Duration;

/// The longest wait for anything: minutes on a machine whose two cores emulate the node's.
pub const PATIENCE: Duration = Duration::from_secs(180);

/// What runs asynchronous code in a test.
pub fn runtime() -> tokio::runtime::Runtime {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder
        .enable_all()
        .build()
        .expect("a runtime needs a few descriptors only")
}
