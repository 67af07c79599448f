//! What the owner says of the node's own network: which ports are used, how they are joined, where addresses come from.
//!
//! Owns: the options `sifr.net.<link>.<key>=<value>`, `sifr.dns=` and `sifr.proxy=`, what they mean together, and what follows from
//! them for the ports that a machine has ([`Site::wanted`]).
//! Refuses: where options are written down, and changing links.
//!
//! Without options every port asks DHCP and listens to routers. With any, exactly what is named is used.

mod draft;
mod wanted;

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use types::proxy::Egress;
use types::{AnyCidr, Cidr6, Mac};

use crate::autoconf::{Learned, MTU_MIN};
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
    /// In the order in which they were named: the first with a gateway leads to the world. `None`: every port asks.
    pub links: Option<Vec<Spec>>,
    /// Name servers; empty: those that DHCP names.
    pub dns: Vec<IpAddr>,
    /// How the node's own HTTP goes out.
    pub egress: Egress,
}

/// One link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spec {
    pub port: Port,
    pub made: Made,
    /// IPv4 from DHCP.
    pub dhcp: bool,
    /// IPv6 from router advertisements, and from DHCPv6 where they say so.
    pub ra: bool,
    pub addresses: Vec<AnyCidr>,
    pub gateway: Option<Ipv4Addr>,
    pub gateway6: Option<Ipv6Addr>,
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

/// What one link was told by others.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Heard {
    pub lease: Option<Lease>,
    pub learned: Option<Learned>,
}

/// What one link has, from its options or from others.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Addressing {
    /// The first is the one that is shown.
    pub addresses: Vec<AnyCidr>,
    pub gateway: Option<Ipv4Addr>,
    pub gateway6: Option<Ipv6Addr>,
    /// By this router, or directly.
    pub routes: Vec<(Cidr6, Option<Ipv6Addr>)>,
    pub dns: Vec<IpAddr>,
    pub ntp: Vec<IpAddr>,
    pub mtu: Option<u32>,
}

impl Addressing {
    pub fn has_gateway(&self) -> bool {
        self.gateway.is_some() || self.gateway6.is_some()
    }
}

impl Spec {
    /// What is written counts before what is told. Neither family waits for the other.
    fn addressing(&self, heard: Option<&Heard>) -> Option<Addressing> {
        let lease = heard.and_then(|heard| heard.lease.as_ref());
        let lease = lease.filter(|_| self.dhcp);
        let learned = heard.and_then(|heard| heard.learned.as_ref());
        let learned = learned.filter(|_| self.ra);
        let mut addresses = self.addresses.clone();
        let leased = lease.map(|lease| AnyCidr::from(lease.address));
        let announced = learned.into_iter().flat_map(|learned| &learned.addresses);
        for told in leased.into_iter().chain(announced.map(|a| (*a).into())) {
            // One address with two lengths is one address to the kernel.
            if !addresses.iter().any(|a| a.address == told.address) {
                addresses.push(told);
            }
        }
        if addresses.is_empty() {
            return None;
        }
        // The kernel takes IPv6 off a link that carries less than it needs.
        let least = if self.ra { MTU_MIN } else { 0 };
        let mtu = lease.and_then(|lease| lease.mtu).map(u32::from);
        let mtu = mtu.map(|mtu| mtu.max(least));
        let lower = learned.and_then(|l| l.mtu).filter(|mtu| *mtu < MTU);
        Some(Addressing {
            addresses,
            gateway: self.gateway.or(lease.and_then(|lease| lease.gateway)),
            gateway6: self.gateway6.or(learned.and_then(|l| l.gateway)),
            routes: learned.map(|l| l.routes.clone()).unwrap_or_default(),
            dns: in_turn(lease.map(|l| &l.dns[..]), learned.map(|l| &l.dns[..])),
            ntp: in_turn(lease.map(|l| &l.ntp[..]), learned.map(|l| &l.ntp[..])),
            mtu: self.mtu.or(mtu.into_iter().chain(lower).min()),
        })
    }
}

/// One of each in turn: who asks the first few asks servers of both families. A server's address on one link only would
/// need the link's name beside it, which askers do not take.
fn in_turn(v4: Option<&[Ipv4Addr]>, v6: Option<&[Ipv6Addr]>) -> Vec<IpAddr> {
    let (v4, v6) = (v4.unwrap_or_default(), v6.unwrap_or_default());
    let everywhere = v6.iter().filter(|a| !a.is_unicast_link_local());
    let mut v4 = v4.iter().map(|a| IpAddr::from(*a));
    let mut v6 = everywhere.map(|a| IpAddr::from(*a));
    let mut all = Vec::new();
    loop {
        match (v4.next(), v6.next()) {
            (None, None) => return all,
            (one, other) => all.extend(one.into_iter().chain(other)),
        }
    }
}

#[cfg(test)]
mod tests;
