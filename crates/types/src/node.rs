//! What the API says about the node itself.
//!
//! Owns: the node report. Refuses: measuring anything (`init` does).

use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use crate::{Bytes, Cidr, Mac, PublicKey};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeInfo {
    pub key: PublicKey,
    pub owner: Option<PublicKey>,
    /// `sifr::IDENTITY`'s text: version, commit, kernel configuration digest.
    pub build: String,
    pub uptime_ms: u64,
    /// False where the node runs from RAM.
    pub durable: bool,
    /// `None` where KVM works; else why not and what to do.
    pub virtualisation_problem: Option<String>,
    pub clock: Clock,
    pub capacity: Capacity,
    pub links: Vec<Link>,
    pub disks: Vec<Disk>,
    pub boot: Vec<Phase>,
    pub last_error: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Clock {
    pub realtime_ms: u64,
    /// Whether a time server has been heard since boot.
    pub synchronised: bool,
}

/// What tenants may use in all, and what is promised to deployments.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Capacity {
    pub cpus: u64,
    pub cpus_used: u64,
    pub memory: Bytes,
    pub memory_used: Bytes,
    pub disk: Bytes,
    pub disk_used: Bytes,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Link {
    pub name: String,
    pub mac: Mac,
    pub up: bool,
    pub address: Option<Cidr>,
    pub gateway: Option<Ipv4Addr>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disk {
    pub name: String,
    pub serial: String,
    pub size: Bytes,
    /// `pool`, `blank`, or what was recognised on it.
    pub content: String,
}

/// One line of the boot table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Phase {
    pub name: String,
    pub ms: u64,
    /// `None` where it went well.
    pub error: Option<String>,
}
