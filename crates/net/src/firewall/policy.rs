//! What may speak to what: the node's policies as rules.
//!
//! Owns: the default-deny policies of the node's own namespace and of tenant namespaces.
//! Refuses: exceptions that are not named in its inputs.

use std::net::Ipv4Addr;

use types::{Cidr, Mac};

use super::Ruleset;

/// The node's own namespace.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Node {
    /// Names of the machine's Ethernet ports.
    pub uplinks: Vec<String>,
    /// TCP ports of the node that are open on the uplinks.
    pub open_ports: Vec<u16>,
    pub tenants: Vec<NodeTenant>,
}

/// A tenant network, as the node's namespace sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeTenant {
    /// `Network::host_link`.
    pub link: String,
    pub subnet: Cidr,
    pub published: Vec<Published>,
}

/// A TCP port of the node that leads to a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Published {
    pub node_port: u16,
    pub address: Ipv4Addr,
    pub port: u16,
}

/// A tenant's namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tenant {
    /// `Network::gateway`.
    pub gateway: Cidr,
    /// The node's own addresses and the prefixes on its uplinks: refused beside all private ranges.
    pub refused: Vec<Cidr>,
    pub guests: Vec<Guest>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Guest {
    /// `TapSpec::name`.
    pub tap: String,
    pub mac: Mac,
    pub address: Ipv4Addr,
    /// TCP ports of the guest that are published.
    pub ports: Vec<u16>,
}

/// The rules of the node's own namespace.
pub fn node(policy: &Node) -> Ruleset {
    unimplemented!("{policy:?}")
}

/// The rules of one tenant's namespace, bridge family included.
pub fn tenant(policy: &Tenant) -> Ruleset {
    unimplemented!("{policy:?}")
}
