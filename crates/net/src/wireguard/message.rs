//! WireGuard links as messages of the kernel's generic netlink family `wireguard` (linux/wireguard.h).
//!
//! Owns: which attributes matter, both ways. Refuses: what it does not know, which it passes over.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};

use rtnetlink::packet_core::NlasIterator;
use types::Cidr;

use super::{Change, Key, Observed, Peer, Secret};
use crate::firewall::Writer;

/// Commands, and the family's version.
pub(super) const GET_DEVICE: u8 = 0;
pub(super) const SET_DEVICE: u8 = 1;
pub(super) const VERSION: u8 = 1;

/// `WGDEVICE_A_*`.
mod device {
    pub(super) const NAME: u16 = 2;
    pub(super) const PRIVATE_KEY: u16 = 3;
    pub(super) const LISTEN_PORT: u16 = 6;
    pub(super) const PEERS: u16 = 8;
}

/// `WGPEER_A_*`.
mod peer {
    pub(super) const PUBLIC_KEY: u16 = 1;
    pub(super) const FLAGS: u16 = 3;
    pub(super) const ENDPOINT: u16 = 4;
    pub(super) const KEEPALIVE: u16 = 5;
    pub(super) const LAST_HANDSHAKE: u16 = 6;
    pub(super) const RX_BYTES: u16 = 7;
    pub(super) const TX_BYTES: u16 = 8;
    pub(super) const ALLOWED_IPS: u16 = 9;
}

/// `WGALLOWEDIP_A_*`.
mod allowed {
    pub(super) const FAMILY: u16 = 1;
    pub(super) const ADDRESS: u16 = 2;
    pub(super) const MASK: u16 = 3;
}

const REMOVE_ME: u32 = 1;
const REPLACE_ALLOWED_IPS: u32 = 2;
const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;
/// The attribute of a list's first element; the kernel looks at none of them.
const ELEMENT: u16 = 0;

/// The attributes of a question for one link.
pub(super) fn question(link: &str) -> Vec<u8> {
    let mut writer = Writer::default();
    writer.text(device::NAME, link);
    writer.finish()
}

/// The attributes of one change.
pub(super) fn change(link: &str, change: &Change) -> Vec<u8> {
    let mut writer = Writer::default();
    writer.text(device::NAME, link);
    match change {
        Change::Device { secret, port } => {
            writer.bytes(device::PRIVATE_KEY, &secret.0);
            writer.bytes(device::LISTEN_PORT, &port.to_ne_bytes());
        }
        Change::Remove { key } => {
            writer.nest(device::PEERS, |list| {
                list.nest(ELEMENT, |one| {
                    one.bytes(peer::PUBLIC_KEY, key);
                    one.bytes(peer::FLAGS, &REMOVE_ME.to_ne_bytes());
                });
            });
        }
        Change::Peer {
            key,
            subnet,
            endpoint,
            keepalive_s,
        } => {
            writer.nest(device::PEERS, |list| {
                list.nest(ELEMENT, |one| {
                    one.bytes(peer::PUBLIC_KEY, key);
                    one.bytes(peer::FLAGS, &REPLACE_ALLOWED_IPS.to_ne_bytes());
                    if let Some(endpoint) = endpoint {
                        one.bytes(peer::ENDPOINT, &sockaddr(*endpoint));
                    }
                    one.bytes(peer::KEEPALIVE, &keepalive_s.to_ne_bytes());
                    one.nest(peer::ALLOWED_IPS, |list| {
                        list.nest(ELEMENT, |one| allow(one, subnet));
                    });
                });
            });
        }
    }
    writer.finish()
}

fn allow(writer: &mut Writer, subnet: &Cidr) {
    writer.bytes(allowed::FAMILY, &AF_INET.to_ne_bytes());
    writer.bytes(allowed::ADDRESS, &subnet.network().address.octets());
    writer.bytes(allowed::MASK, &[subnet.prefix()]);
}

/// `struct sockaddr_in` or `sockaddr_in6`.
fn sockaddr(at: SocketAddr) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(28);
    match at {
        SocketAddr::V4(at) => {
            bytes.extend(AF_INET.to_ne_bytes());
            bytes.extend(at.port().to_be_bytes());
            bytes.extend(at.ip().octets());
            bytes.extend([0; 8]);
        }
        SocketAddr::V6(at) => {
            bytes.extend(AF_INET6.to_ne_bytes());
            bytes.extend(at.port().to_be_bytes());
            bytes.extend(at.flowinfo().to_be_bytes());
            bytes.extend(at.ip().octets());
            bytes.extend(at.scope_id().to_ne_bytes());
        }
    }
    bytes
}

fn read_sockaddr(bytes: &[u8]) -> Option<SocketAddr> {
    let half = |at: usize| Some(<[u8; 2]>::try_from(bytes.get(at..at + 2)?).expect("two bytes"));
    let (family, port) = (u16::from_ne_bytes(half(0)?), u16::from_be_bytes(half(2)?));
    match family {
        AF_INET => {
            let address: [u8; 4] = bytes.get(4..8)?.try_into().ok()?;
            Some((Ipv4Addr::from(address), port).into())
        }
        AF_INET6 => {
            let address: [u8; 16] = bytes.get(8..24)?.try_into().ok()?;
            let scope = u32::from_ne_bytes(bytes.get(24..28)?.try_into().ok()?);
            Some(SocketAddrV6::new(Ipv6Addr::from(address), port, 0, scope).into())
        }
        _ => None,
    }
}

/// Adds what one message of an answer says: a link with many peers takes several, and a peer may go on in the next.
pub(super) fn read(attributes: &[u8], into: &mut Observed) {
    for attribute in NlasIterator::new(attributes).flatten() {
        let value = attribute.value();
        match attribute.kind() {
            device::PRIVATE_KEY => {
                let key: Option<[u8; 32]> = value.try_into().ok();
                into.secret = key.filter(|key| *key != [0; 32]).map(Secret);
            }
            device::LISTEN_PORT => into.port = value.try_into().map_or(0, u16::from_ne_bytes),
            device::PEERS => {
                for one in NlasIterator::new(value).flatten() {
                    read_peer(one.value(), into);
                }
            }
            _ => {}
        }
    }
}

fn read_peer(attributes: &[u8], into: &mut Observed) {
    let all = || NlasIterator::new(attributes).flatten();
    let find = |kind| all().find(|attribute| attribute.kind() == kind);
    let key = find(peer::PUBLIC_KEY).and_then(|a| Key::try_from(a.value()).ok());
    let Some(key) = key else { return };
    let held: &mut Peer = into.peers.entry(key).or_default();
    for attribute in all() {
        let value = attribute.value();
        let number = || value.try_into().map_or(0, u64::from_ne_bytes);
        match attribute.kind() {
            peer::ENDPOINT => held.endpoint = read_sockaddr(value),
            peer::KEEPALIVE => held.keepalive_s = value.try_into().map_or(0, u16::from_ne_bytes),
            // `struct __kernel_timespec`: zeros before the first.
            peer::LAST_HANDSHAKE => {
                let seconds = value.first_chunk().map(|bytes| i64::from_ne_bytes(*bytes));
                held.handshake = seconds
                    .and_then(|s| u64::try_from(s).ok())
                    .filter(|s| *s > 0);
            }
            peer::RX_BYTES => held.received_bytes = number(),
            peer::TX_BYTES => held.sent_bytes = number(),
            peer::ALLOWED_IPS => {
                let subnets = NlasIterator::new(value).flatten();
                held.subnets
                    .extend(subnets.filter_map(|one| read_allowed(one.value())));
            }
            _ => {}
        }
    }
}

fn read_allowed(attributes: &[u8]) -> Option<Cidr> {
    let (mut address, mut mask) = (None, None);
    for attribute in NlasIterator::new(attributes).flatten() {
        let value = attribute.value();
        match attribute.kind() {
            allowed::ADDRESS => address = <[u8; 4]>::try_from(value).ok(),
            allowed::MASK => mask = value.first().copied(),
            _ => {}
        }
    }
    Cidr::new(IpAddr::from(address?).to_string().parse().ok()?, mask?)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::proptest;

    use super::*;

    #[test]
    fn what_is_asked_for_is_read_back() {
        let subnet = "10.200.7.0/24".parse().expect("a subnet");
        for endpoint in ["192.0.2.7:51820", "[2001:db8::7]:7"] {
            let endpoint = Some(endpoint.parse().expect("an endpoint"));
            let asked = [
                Change::Device {
                    secret: Secret([3; 32]),
                    port: 51821,
                },
                Change::Peer {
                    key: [7; 32],
                    subnet,
                    endpoint,
                    keepalive_s: 25,
                },
            ];
            let mut link = Observed::default();
            asked
                .iter()
                .for_each(|one| read(&change("mesh", one), &mut link));
            assert_eq!((link.secret, link.port), (Some(Secret([3; 32])), 51821));
            let peer = &link.peers[&[7; 32]];
            assert_eq!((peer.endpoint, peer.keepalive_s), (endpoint, 25));
            assert_eq!(peer.subnets, [subnet]);
        }
    }

    proptest! {
        #[test]
        fn any_answer_is_read_to_an_end(answer: Vec<u8>) {
            let mut link = Observed::default();
            read(&answer, &mut link);
            assert!(link.peers.len() <= answer.len());
        }
    }
}
