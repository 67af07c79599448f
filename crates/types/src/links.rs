//! The node's own links and routes, as its kernel has them: `sifr node links` and `sifr node routes`.
//!
//! Owns: what is told of each. Refuses: what they should be (`site`), and the links inside tenants' networks.

use std::fmt;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::{AnyCidr, Cidr, Mac};

/// A link of the node's own namespace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkStatus {
    pub name: String,
    pub kind: LinkKind,
    pub state: LinkState,
    pub mac: Option<Mac>,
    pub mtu: u32,
    /// Megabits per second, where the port says so and has a cable.
    pub speed_mbit: Option<u32>,
    /// The bond or bridge that it is a port of.
    pub master: Option<String>,
    /// Of both families, link-local ones too.
    pub addresses: Vec<AnyCidr>,
    /// Those of them that a neighbour has too: they are not used.
    pub taken: Vec<AnyCidr>,
    pub received: Traffic,
    pub sent: Traffic,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum LinkKind {
    Ethernet,
    Bond {
        /// As the kernel calls it: `802.3ad` or `active-backup`. `None`: another.
        mode: Option<String>,
    },
    Vlan {
        id: u16,
        /// The link that it lies on; its number where it has gone meanwhile.
        on: String,
    },
    /// Leads to the tenants' network of this subnet.
    Network {
        subnet: Cidr,
    },
    Loopback,
    Other,
}

impl fmt::Display for LinkKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ethernet => f.write_str("ethernet"),
            Self::Bond { mode: Some(mode) } => write!(f, "bond {mode}"),
            Self::Bond { mode: None } => f.write_str("bond"),
            Self::Vlan { id, on } => write!(f, "vlan {id} on {on}"),
            Self::Network { subnet } => write!(f, "network {subnet}"),
            Self::Loopback => f.write_str("loopback"),
            Self::Other => f.write_str("other"),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LinkState {
    /// With a cable, or another end.
    Up,
    /// Switched on, and nothing is there.
    NoCarrier,
    /// Switched off.
    Down,
}

impl fmt::Display for LinkState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Up => "up",
            Self::NoCarrier => "no cable",
            Self::Down => "down",
        })
    }
}

/// In one direction, since the link was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Traffic {
    pub bytes: u64,
    pub packets: u64,
    /// Broken, or refused by the port.
    pub errors: u64,
    /// Whole, and there was no room for them.
    pub dropped: u64,
}

/// A route of the main table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteStatus {
    /// `0.0.0.0/0` and `::/0` are the default routes.
    pub destination: AnyCidr,
    /// `None`: the destination is on the link itself.
    pub gateway: Option<IpAddr>,
    /// Name of the link; its number where it has gone meanwhile.
    pub link: String,
    /// Of several to one destination the least is used.
    pub metric: u32,
    /// The kernel set it beside an address.
    pub kernel: bool,
}
