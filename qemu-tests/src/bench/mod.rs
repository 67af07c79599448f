//! The benchmark: the image against the targets of its design.
//!
//! Owns: what is measured and how a table of it reads. All times are counts of instructions
//! (`image::qemu::Time::Instructions`): one a nanosecond, the same on every machine.
//! Refuses: failing where a target is missed. It says so; tests are elsewhere.

mod archive;
mod beside;
mod boot;
mod crowd;
mod entry;
mod images;
mod live;
mod machines;
mod measure;
mod memory;
pub mod node;
mod plain;
mod reading;
pub mod report;
pub mod table;

pub use beside::Peers;
pub use measure::{Choice, Group, Measured, all};
