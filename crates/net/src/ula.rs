//! Addresses of IPv6 in tenant networks.
//!
//! Owns: how they follow from the node, the network and the address of IPv4. Refuses: keeping any.

use std::net::{Ipv4Addr, Ipv6Addr};

use types::{Cidr6, Mac};

use crate::network::number;

/// Every network has as much.
const SUBNET6_PREFIX: u8 = 64;

/// A node's part of fd00::/8 (RFC 4193): what follows the first byte.
pub type Ula = [u8; 5];

/// The IPv6 address of who has this one in a tenant network: the node's part, the network's number, and the address itself.
pub fn address6(node: Ula, address: Ipv4Addr) -> Option<Cidr6> {
    let [a, b, c, d, e] = node;
    let half = |high, low| u16::from_be_bytes([high, low]);
    let [f, g, h, i] = address.octets();
    let number = number(address)?;
    let (high, low) = (half(f, g), half(h, i));
    let address = Ipv6Addr::new(
        half(0xfd, a),
        half(b, c),
        half(d, e),
        number,
        0,
        0,
        high,
        low,
    );
    Cidr6::new(address, SUBNET6_PREFIX)
}

/// The address that a card has on its link by itself (RFC 4291 appendix A).
pub fn link_local(mac: Mac) -> Ipv6Addr {
    let Mac([a, b, c, d, e, f]) = mac;
    let half = |high, low| u16::from_be_bytes([high, low]);
    let (first, last) = (half(a ^ 2, b), half(e, f));
    Ipv6Addr::new(0xfe80, 0, 0, 0, first, half(c, 0xff), half(0xfe, d), last)
}
