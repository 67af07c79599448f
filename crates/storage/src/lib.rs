//! Disks of the node: what is on them, which one becomes the pool, and the volumes in it.
//!
//! Owns: inventory, recognition, the choice, provisioning of the pool, wiping what was claimed, ext4 volumes, the partition with options.
//! Refuses: writing to anything that [`probe`] does not find blank or made by this owner's Sifr, but for [`claim`],
//! whose caller has the owner's signature.
#![forbid(unsafe_code)]

pub mod assemble;
pub mod claim;
pub mod crypt;
pub mod disk;
mod fat;
#[cfg(any(test, feature = "fuzz"))]
pub mod fuzz;
mod marker;
#[cfg(test)]
mod matrix_tests;
pub mod mirror;
pub mod mirrors;
pub mod options;
pub mod plan;
pub mod pool;
pub mod pools;
pub mod probe;
pub mod recognise;
pub mod roster;
pub mod smart;
mod table;
mod torn;
pub mod volume;
