//! What guests try that is refused.
//!
//! Owns: its kinds, their names, and whose table counts each. Refuses: the rules that refuse it (`policy`).

use crate::firewall::rule::Family;

/// What a guest tried and was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Attempt {
    /// Under another MAC.
    Mac,
    /// ARP under another's address, or another's MAC in it.
    Arp,
    /// IP under another address.
    Address,
    /// To answer for another's address of IPv6.
    Neighbour,
    /// More to several at once than [`GROUPS`].
    Multicast,
    /// As a DHCP server.
    Dhcp,
    /// As a router or DHCP server of IPv6, or with a redirect.
    Router,
    /// Frames of other protocols.
    Frame,
    /// To the node itself, or the gateway, beyond DNS and a few pings.
    Node,
    /// To link-local addresses, where clouds have their metadata.
    Metadata,
    /// To other networks of this node.
    Tenants,
    /// To the owner's networks, or other addresses that are nobody's on the internet.
    Private,
    /// Out of a network that has no way out.
    Outside,
    /// More connections than [`CONNECTIONS_MAX`].
    Connections,
}

impl Attempt {
    pub const ALL: [Self; 14] = [
        Self::Mac,
        Self::Arp,
        Self::Address,
        Self::Neighbour,
        Self::Multicast,
        Self::Dhcp,
        Self::Router,
        Self::Frame,
        Self::Node,
        Self::Metadata,
        Self::Tenants,
        Self::Private,
        Self::Outside,
        Self::Connections,
    ];

    /// One that never changes: it stands in metrics.
    pub fn word(self) -> &'static str {
        match self {
            Self::Mac => "mac",
            Self::Arp => "arp",
            Self::Address => "address",
            Self::Neighbour => "neighbour",
            Self::Multicast => "multicast",
            Self::Dhcp => "dhcp",
            Self::Router => "router",
            Self::Frame => "frame",
            Self::Node => "node",
            Self::Metadata => "metadata",
            Self::Tenants => "tenants",
            Self::Private => "private",
            Self::Outside => "outside",
            Self::Connections => "connections",
        }
    }

    /// The counter of a guest with this TAP.
    pub fn counter(self, tap: &str) -> String {
        format!("{tap}-{}", self.word())
    }

    /// Which table's rules see it.
    pub(super) fn family(self) -> Family {
        match self {
            Self::Mac
            | Self::Arp
            | Self::Address
            | Self::Neighbour
            | Self::Multicast
            | Self::Dhcp
            | Self::Router
            | Self::Frame => Family::Bridge,
            Self::Node
            | Self::Metadata
            | Self::Tenants
            | Self::Private
            | Self::Outside
            | Self::Connections => Family::Inet,
        }
    }
}
