//! Links, addresses and routes of one network namespace.
//!
//! Owns: what they are (observe), what they should be (plan, pure) and the steps between (apply).
//! Refuses: links that nobody described, which it leaves alone; and what the kernel sets itself beside them, such as
//! link-local addresses.

mod message;
mod neighbours;
mod observe;
mod plan;
mod proxy;
mod traffic;

use std::net::{IpAddr, Ipv6Addr};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use types::{AnyCidr, Mac};

pub use neighbours::{Neighbour, Neighbours};
pub use observe::{Handle, Monitor};
pub use plan::{Step, plan};
pub use proxy::{Answered, answer_for};
pub use traffic::Both;

/// Longest name of a link: IFNAMSIZ less its final NUL.
pub const NAME_MAX: usize = 15;

/// Everything that stands in one namespace.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Observed {
    pub links: Vec<Link>,
    /// Routes of the main table, of both families.
    pub routes: Vec<Route>,
}

impl Observed {
    pub fn link(&self, name: &str) -> Option<&Link> {
        self.links.iter().find(|link| link.name == name)
    }

    /// The machine's own Ethernet ports, in the kernel's order.
    pub fn ethernet(&self) -> impl Iterator<Item = &Link> {
        self.links.iter().filter(|link| link.kind == Kind::Ethernet)
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    pub name: String,
    pub index: u32,
    pub mac: Option<Mac>,
    /// The address that the port came with, where it has one: a port of a bond wears another.
    pub permanent: Option<Mac>,
    /// Administratively up.
    pub up: bool,
    /// Up and a cable or peer is there.
    pub carrier: bool,
    pub mtu: u32,
    pub kind: Kind,
    /// Index of the bridge or bond that it is a port of.
    pub master: Option<u32>,
    pub addresses: Vec<AnyCidr>,
    /// Its own address on the link itself, once it is known that no neighbour has the same.
    pub local: Option<Ipv6Addr>,
    /// Addresses that a neighbour has too: the kernel does not use them.
    pub taken: Vec<AnyCidr>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Loopback,
    /// A port of the machine: Ethernet framing and no software behind it.
    Ethernet,
    Bridge,
    Veth,
    Tun,
    /// `None`: of a mode that nobody here asks for.
    Bond(Option<BondMode>),
    Vlan {
        /// Index of the link that it lies on.
        on: u32,
        id: u16,
    },
    /// Any other virtual link.
    Other,
}

impl std::fmt::Display for BondMode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Lacp => "802.3ad",
            Self::ActiveBackup => "active-backup",
        })
    }
}

/// How the ports of a bond share its traffic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BondMode {
    /// IEEE 802.3ad (LACP): all at once, as the switch agrees.
    Lacp,
    /// One, and another where its cable goes: needs nothing of the switch.
    ActiveBackup,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Route {
    /// `0.0.0.0/0` and `::/0` are the default routes.
    pub destination: AnyCidr,
    pub gateway: Option<IpAddr>,
    pub link: u32,
    pub metric: u32,
    /// Set by the kernel beside an address: never planned, never removed.
    pub kernel: bool,
}

/// What one link should be. Addresses and routes are complete: others are removed.
#[derive(Debug, Clone)]
pub struct Desired {
    pub name: String,
    /// How to make it if it is missing. `None`: it comes from elsewhere, and is skipped while missing.
    pub create: Option<Create>,
    pub mtu: Option<u32>,
    pub mac: Option<Mac>,
    /// Name of the bridge or bond that it is a port of.
    pub master: Option<String>,
    pub addresses: Vec<AnyCidr>,
    pub routes: Vec<DesiredRoute>,
}

impl Desired {
    /// Up, with nothing else.
    pub fn up(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            create: None,
            mtu: None,
            mac: None,
            master: None,
            addresses: Vec::new(),
            routes: Vec::new(),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DesiredRoute {
    pub destination: AnyCidr,
    /// Of the destination's family.
    pub gateway: Option<IpAddr>,
    /// The least is used first. 0 is the kernel's own: 0 of IPv4, 1024 of IPv6.
    pub metric: u32,
}

#[derive(Debug, Clone)]
pub enum Create {
    Bridge,
    Bond {
        mode: BondMode,
    },
    Vlan {
        /// Name of the link that it lies on.
        on: String,
        id: u16,
    },
    /// A pair of links. The other end appears as `peer` in the namespace `namespace` is open on.
    Veth {
        peer: String,
        namespace: Arc<OwnedFd>,
    },
    /// A WireGuard link that appears in the namespace `namespace` is open on: its packets to other nodes leave from the one it
    /// is asked for in.
    Wireguard {
        namespace: Arc<OwnedFd>,
    },
}
