//! The fence around system calls: the only library with `unsafe` in it.
//!
//! Owns: each call's types, errors and safety. One topic per module.
//! Refuses: policy. A caller decides what is mounted, started, written or ended.

pub mod acpi;
pub mod block;
pub mod capture;
pub mod clock;
pub mod confine;
pub mod error;
pub mod filesystem;
mod filter;
pub mod fs;
pub mod icmp;
pub mod klog;
pub mod mapper;
pub mod md;
pub mod mount;
pub mod nvme;
pub mod packet;
pub mod process;
pub mod program;
pub mod random;
pub mod reboot;
pub mod scsi;
pub mod seqpacket;
pub mod signal;
pub mod socket;
pub mod tap;
pub mod uevent;
pub mod userfault;
pub mod watchdog;

pub use error::{Error, Result, chain};
