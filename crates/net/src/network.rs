//! Tenant networks: a bridge in a namespace of its own, led to the node by a veth pair.
//!
//! Owns: their addresses on the node, the links on both sides, the guests' TAPs.
//! Refuses: firewall decisions (`firewall::policy`), and a network whose subnet touches another's.

use std::os::fd::OwnedFd;

use types::{Cidr, Mac};

use crate::{Error, dns};

/// The bridge inside each tenant namespace.
pub const BRIDGE: &str = "br0";
/// The link inside each tenant namespace that leads to the node.
pub const WAN: &str = "wan";

/// One tenant network on this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Network {
    /// Name of its namespace.
    pub name: String,
    /// Unique on the node: transfer addresses and the host side's link name follow from it.
    pub index: u16,
    /// The gateway's address and the subnet's length, for example 10.200.3.1/24.
    pub gateway: Cidr,
    pub mtu: u32,
}

impl Network {
    /// The link in the node's own namespace.
    pub fn host_link(&self) -> String {
        format!("tenant{}", self.index)
    }
}

/// A guest's TAP inside the tenant's namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TapSpec {
    /// At most 15 bytes, unique in the namespace.
    pub name: String,
    pub mtu: u32,
}

/// The first of the node's tenant subnets, numbered from `index` on, that touches none of `avoid`.
/// The gateway is its first address. `None` when all are taken.
pub fn subnet(index: u16, avoid: &[Cidr]) -> Option<Cidr> {
    let _ = (index, avoid);
    unimplemented!()
}

/// The address a guest's MAC is made from.
pub fn guest_mac(address: std::net::Ipv4Addr) -> Mac {
    let [a, b, c, d] = address.octets();
    Mac([0x02, 0x00, a, b, c, d])
}

/// Makes the network what `network` says, whatever stood before.
pub fn ensure(network: &Network) -> Result<(), Error> {
    unimplemented!("{network:?}")
}

/// Deletes the namespace and with it the bridge and both ends of the veth pair. TAPs that VMMs still
/// hold lose their link. No error if there is none.
pub fn remove(network: &Network) -> Result<(), Error> {
    unimplemented!("{network:?}")
}

/// Opens a TAP (IFF_TAP | IFF_NO_PI | IFF_VNET_HDR) as a port of the bridge, up. It goes when the last
/// descriptor is closed. `EBUSY` while an earlier VMM still holds it. Apply the firewall first: a TAP
/// that the rules do not name passes nothing.
pub fn open_tap(network: &Network, tap: &TapSpec) -> Result<OwnedFd, Error> {
    unimplemented!("{network:?} {tap:?}")
}

/// Port 53 on the gateway's address, for [`dns::forward`].
pub fn dns_sockets(network: &Network) -> Result<dns::Sockets, Error> {
    unimplemented!("{network:?}")
}
