//! The nouns that several parts of Sifr share, as pure data.
//!
//! Owns: names, units, the deployment document, the VM specification, the guest's run specification,
//! the messages between node, VMM and guest, and what the API reports.
//! Refuses: I/O, clocks, randomness, cryptography. A value that exists here has been checked.
#![forbid(unsafe_code)]

pub mod address;
pub mod cidr;
pub mod claim;
pub mod cpio;
pub mod deployment;
pub mod elsewhere;
pub mod flist;
pub mod guest;
pub mod health;
pub mod id;
pub mod ingress;
pub mod limits;
pub mod links;
pub mod mesh;
pub mod metrics;
pub mod network;
pub mod node;
pub mod proxy;
pub mod retire;
pub mod site;
pub mod status;
pub mod stores;
pub mod trace;
pub mod trouble;
pub mod unit;
pub mod vm;
pub mod volume;

pub use cidr::{AnyCidr, Cidr, Cidr6};
pub use id::{Digest, Name, PublicKey, VmId, VolumeId};
pub use stores::Stores;
pub use unit::{Bytes, Mac};
