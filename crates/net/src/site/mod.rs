//! What the owner says of the node's own network: which ports are used, how they are joined, where addresses come from.
//!
//! Owns: the options `sifr.net.<link>.<key>=<value>` and `sifr.dns=`, what they mean together, and what follows from them
//! for the ports that a machine has ([`Site::wanted`]).
//! Refuses: where options are written down, and changing links.
//!
//! Without options every port asks DHCP. With any, exactly what is named is used.

mod draft;
mod wanted;

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use types::{Cidr, Mac};

use crate::dhcp::Lease;
use crate::link::{self, BondMode};

pub use draft::Draft;
pub use wanted::{Role, Wanted};

/// The MTU of what is told no other.
pub const MTU: u32 = 1500;
/// How often the kernel is looked at until it is as a site wants it: what is stale is deleted, the rest made, what that
/// changed of other links is set right, and it is seen that nothing is left.
pub const ROUNDS_MAX: usize = 4;
/// Links that one node may be told of: more than any machine has ports.
pub const LINKS_MAX: usize = 64;
/// Ports of one bond, and addresses of one link: far above what switches and racks have.
pub const PARTS_MAX: usize = 16;

/// The node's own network as it should be.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Site {
    /// In the order in which they were named: the first with a gateway leads to the world. `None`: every port asks DHCP.
    pub links: Option<Vec<Spec>>,
    /// Name servers; empty: those that DHCP names.
    pub dns: Vec<Ipv4Addr>,
}

/// One link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spec {
    pub port: Port,
    pub made: Made,
    pub dhcp: bool,
    pub addresses: Vec<Cidr>,
    pub gateway: Option<Ipv4Addr>,
    pub mtu: Option<u32>,
}

/// Where a link comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Made {
    /// The machine has it.
    Found,
    /// IEEE 802.1Q.
    Vlan {
        on: Port,
        id: u16,
    },
    Bond {
        mode: BondMode,
        ports: Vec<Port>,
    },
}

/// What a link is called: the kernel's name, or a port's own address, which stays the same in every slot.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Port {
    Name(String),
    Mac(Mac),
}

impl FromStr for Port {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(mac) = text.parse() {
            return Ok(Self::Mac(mac));
        }
        let fits = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
        let (whole, ours) = (!text.is_empty() && text.bytes().all(fits), OURS);
        if !whole || text.len() > link::NAME_MAX {
            let max = link::NAME_MAX;
            return Err(format!(
                "{text} is no name of a link: up to {max} letters, digits, - and _, or the port's own address as 52:54:00:12:34:56"
            ));
        }
        if ours.iter().any(|begin| text.starts_with(begin)) {
            return Err(format!("{text} is a name that the node gives itself"));
        }
        if KERNELS.contains(&text) {
            return Err(format!("{text} is a name that the kernel gives no link"));
        }
        Ok(Self::Name(text.to_owned()))
    }
}

/// How the names of links begin that are not the owner's to give: `lo`, and those of tenants ([`crate::network`]).
const OURS: [&str; 2] = ["lo", "tenant"];

/// Of its settings for all links (`sysctl_dev_name_is_allowed`).
const KERNELS: [&str; 2] = ["all", "default"];

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => f.write_str(name),
            Self::Mac(mac) => mac.fmt(f),
        }
    }
}

/// What one link has, from its options or its lease.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Addressing {
    /// The first is the one that is shown.
    pub addresses: Vec<Cidr>,
    pub gateway: Option<Ipv4Addr>,
    pub dns: Vec<Ipv4Addr>,
    pub ntp: Vec<Ipv4Addr>,
    pub mtu: Option<u32>,
}

impl Addressing {
    fn leased(lease: &Lease) -> Self {
        Self {
            addresses: vec![lease.address],
            gateway: lease.gateway,
            dns: lease.dns.clone(),
            ntp: lease.ntp.clone(),
            mtu: lease.mtu.map(u32::from),
        }
    }
}

impl Spec {
    /// What is written counts before what is leased.
    fn addressing(&self, lease: Option<&Lease>) -> Option<Addressing> {
        let lease = lease.filter(|_| self.dhcp).map(Addressing::leased);
        if lease.is_none() && self.addresses.is_empty() {
            return None;
        }
        let mut all = lease.unwrap_or_default();
        let leased = all.addresses.iter().filter(|a| !self.addresses.contains(a));
        all.addresses = self.addresses.iter().chain(leased).copied().collect();
        all.gateway = self.gateway.or(all.gateway);
        all.mtu = self.mtu.or(all.mtu);
        Some(all)
    }
}

#[cfg(test)]
mod tests;
