//! The bytes of rtnetlink (linux/rtnetlink.h, linux/if_link.h).
//!
//! Owns: encoding requests and decoding links, addresses and routes. Refuses: objects of other
//! families, which it passes over.

use std::os::fd::{AsRawFd, RawFd};

use types::{Cidr, Mac};

use super::{DesiredRoute, Kind, Link, Route};
use crate::netlink::attr::{Attributes, Writer, ip_of, text_of, u32_of};
use crate::netlink::{Message, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};

pub(super) const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
pub(super) const RTM_GETLINK: u16 = 18;
pub(super) const RTM_NEWADDR: u16 = 20;
const RTM_DELADDR: u16 = 21;
pub(super) const RTM_GETADDR: u16 = 22;
pub(super) const RTM_NEWROUTE: u16 = 24;
const RTM_DELROUTE: u16 = 25;
pub(super) const RTM_GETROUTE: u16 = 26;

const AF_INET: u8 = 2;
const ARPHRD_ETHER: u16 = 1;
const ARPHRD_LOOPBACK: u16 = 772;
const IFF_UP: u32 = 1;
const IFF_LOWER_UP: u32 = 0x1_0000;

const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_MASTER: u16 = 10;
const IFLA_LINKINFO: u16 = 18;
const IFLA_NET_NS_FD: u16 = 28;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const VETH_INFO_PEER: u16 = 1;

const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_BROADCAST: u16 = 4;

const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_PRIORITY: u16 = 6;
const RT_TABLE_MAIN: u8 = 254;
const RTPROT_KERNEL: u8 = 2;
const RTPROT_STATIC: u8 = 4;
const RT_SCOPE_UNIVERSE: u8 = 0;
const RT_SCOPE_LINK: u8 = 253;
const RTN_UNICAST: u8 = 1;
const RTM_F_CLONED: u32 = 0x200;
/// The gateway is on the link even if no address says so: some providers hand out /32 addresses.
const RTNH_F_ONLINK: u32 = 4;

/// `struct ifinfomsg`.
fn link_header(index: u32, flags: u32, change: u32) -> [u8; 16] {
    let mut header = [0; 16];
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    header[8..12].copy_from_slice(&flags.to_ne_bytes());
    header[12..].copy_from_slice(&change.to_ne_bytes());
    header
}

/// What of a link is set.
#[derive(Debug, Clone, Copy)]
pub(super) enum Set {
    Up,
    Mtu(u32),
    Mac(Mac),
    /// Index of the bridge; 0 = of none.
    Master(u32),
}

pub(super) fn set_link(index: u32, set: Set) -> Message {
    let flags = match set {
        Set::Up => IFF_UP,
        Set::Mtu(_) | Set::Mac(_) | Set::Master(_) => 0,
    };
    let mut body = Writer::new(&link_header(index, flags, flags));
    match set {
        Set::Up => {}
        Set::Mtu(mtu) => {
            body.u32(IFLA_MTU, mtu);
        }
        Set::Mac(mac) => {
            body.bytes(IFLA_ADDRESS, &mac.0);
        }
        Set::Master(master) => {
            body.u32(IFLA_MASTER, master);
        }
    }
    Message {
        kind: RTM_NEWLINK,
        flags: 0,
        body: body.finish(),
    }
}

pub(super) fn new_bridge(name: &str) -> Message {
    let mut body = Writer::new(&link_header(0, 0, 0));
    body.text(IFLA_IFNAME, name).nest(IFLA_LINKINFO, |info| {
        info.text(IFLA_INFO_KIND, "bridge");
    });
    Message {
        kind: RTM_NEWLINK,
        flags: NLM_F_CREATE | NLM_F_EXCL,
        body: body.finish(),
    }
}

pub(super) fn new_veth(name: &str, peer: &str, namespace: RawFd) -> Message {
    let mut body = Writer::new(&link_header(0, 0, 0));
    body.text(IFLA_IFNAME, name).nest(IFLA_LINKINFO, |info| {
        info.text(IFLA_INFO_KIND, "veth")
            .nest(IFLA_INFO_DATA, |data| {
                data.nest(VETH_INFO_PEER, |other| {
                    other.raw(&link_header(0, 0, 0)).text(IFLA_IFNAME, peer);
                    other.bytes(IFLA_NET_NS_FD, &namespace.as_raw_fd().to_ne_bytes());
                });
            });
    });
    Message {
        kind: RTM_NEWLINK,
        flags: NLM_F_CREATE | NLM_F_EXCL,
        body: body.finish(),
    }
}

pub(super) fn delete_link(index: u32) -> Message {
    Message {
        kind: RTM_DELLINK,
        flags: 0,
        body: link_header(index, 0, 0).to_vec(),
    }
}

pub(super) fn address(index: u32, address: Cidr, add: bool) -> Message {
    let [a, b, c, d] = index.to_ne_bytes();
    let mut body = Writer::new(&[AF_INET, address.prefix(), 0, 0, a, b, c, d]);
    body.ip(IFA_LOCAL, address.address)
        .ip(IFA_ADDRESS, address.address);
    if add && address.prefix() <= 30 {
        let broadcast = u32::from(address.address) | !address.mask();
        body.ip(IFA_BROADCAST, broadcast.into());
    }
    let (kind, flags) = if add {
        (RTM_NEWADDR, NLM_F_CREATE | NLM_F_REPLACE)
    } else {
        (RTM_DELADDR, 0)
    };
    Message {
        kind,
        flags,
        body: body.finish(),
    }
}

/// `struct rtmsg`.
fn route_header(prefix: u8, protocol: u8, gateway: bool) -> [u8; 12] {
    let scope = if gateway {
        RT_SCOPE_UNIVERSE
    } else {
        RT_SCOPE_LINK
    };
    let [a, b, c, d] = if gateway { RTNH_F_ONLINK } else { 0 }.to_ne_bytes();
    [
        AF_INET,
        prefix,
        0,
        0,
        RT_TABLE_MAIN,
        protocol,
        scope,
        RTN_UNICAST,
        a,
        b,
        c,
        d,
    ]
}

pub(super) fn add_route(index: u32, route: &DesiredRoute) -> Message {
    let header = route_header(
        route.destination.prefix(),
        RTPROT_STATIC,
        route.gateway.is_some(),
    );
    let mut body = Writer::new(&header);
    write_route(&mut body, index, route);
    Message {
        kind: RTM_NEWROUTE,
        flags: NLM_F_CREATE | NLM_F_REPLACE,
        body: body.finish(),
    }
}

pub(super) fn delete_route(route: &Route) -> Message {
    let header = route_header(route.destination.prefix(), 0, route.gateway.is_some());
    let mut header = header;
    header[6] = u8::MAX; // RT_SCOPE_NOWHERE: any scope.
    header[8..].fill(0);
    let mut body = Writer::new(&header);
    let Route {
        destination,
        gateway,
        metric,
        ..
    } = *route;
    write_route(
        &mut body,
        route.link,
        &DesiredRoute {
            destination,
            gateway,
            metric,
        },
    );
    Message {
        kind: RTM_DELROUTE,
        flags: 0,
        body: body.finish(),
    }
}

fn write_route(body: &mut Writer, index: u32, route: &DesiredRoute) {
    if route.destination.prefix() > 0 {
        body.ip(RTA_DST, route.destination.network().address);
    }
    if let Some(gateway) = route.gateway {
        body.ip(RTA_GATEWAY, gateway);
    }
    body.u32(RTA_OIF, index);
    if route.metric > 0 {
        body.u32(RTA_PRIORITY, route.metric);
    }
}

/// `None` where the bytes are no link.
pub(super) fn parse_link(body: &[u8]) -> Option<Link> {
    let header: &[u8; 16] = body.get(..16)?.try_into().ok()?;
    let hardware = u16::from_ne_bytes([header[2], header[3]]);
    let flags = u32_of(&header[8..12])?;
    let mut link = Link {
        name: String::new(),
        index: u32_of(&header[4..8])?,
        mac: None,
        up: flags & IFF_UP != 0,
        carrier: flags & IFF_LOWER_UP != 0,
        mtu: 0,
        kind: match hardware {
            ARPHRD_LOOPBACK => Kind::Loopback,
            ARPHRD_ETHER => Kind::Ethernet,
            _ => Kind::Other,
        },
        master: None,
        addresses: Vec::new(),
    };
    for (kind, value) in Attributes(&body[16..]) {
        match kind {
            IFLA_IFNAME => link.name = text_of(value)?.to_owned(),
            IFLA_ADDRESS if hardware == ARPHRD_ETHER => {
                link.mac = value.try_into().ok().map(Mac);
            }
            IFLA_MTU => link.mtu = u32_of(value)?,
            IFLA_MASTER => link.master = u32_of(value),
            IFLA_LINKINFO => {
                let name = Attributes(value).find(|(kind, _)| *kind == IFLA_INFO_KIND);
                link.kind = match name.and_then(|(_, value)| text_of(value)) {
                    Some("bridge") => Kind::Bridge,
                    Some("veth") => Kind::Veth,
                    Some("tun") => Kind::Tun,
                    Some(_) => Kind::Other,
                    None => link.kind, // A port of a bridge says only what it is there.
                };
            }
            _ => {}
        }
    }
    (!link.name.is_empty()).then_some(link)
}

/// (link, address); `None` where the bytes are no IPv4 address.
pub(super) fn parse_address(body: &[u8]) -> Option<(u32, Cidr)> {
    let header: &[u8; 8] = body.get(..8)?.try_into().ok()?;
    if header[0] != AF_INET {
        return None;
    }
    let find = |wanted| Attributes(&body[8..]).find(|(kind, _)| *kind == wanted);
    let (_, value) = find(IFA_LOCAL).or_else(|| find(IFA_ADDRESS))?;
    Some((u32_of(&header[4..8])?, Cidr::new(ip_of(value)?, header[1])?))
}

/// `None` where the bytes are no IPv4 unicast route of the main table.
pub(super) fn parse_route(body: &[u8]) -> Option<Route> {
    let header: &[u8; 12] = body.get(..12)?.try_into().ok()?;
    let [family, prefix, _, _, table, protocol, _, kind, ..] = *header;
    let cloned = u32_of(&header[8..12])? & RTM_F_CLONED != 0;
    if family != AF_INET || table != RT_TABLE_MAIN || kind != RTN_UNICAST || cloned {
        return None;
    }
    let find = |wanted| {
        Attributes(&body[12..])
            .find(|(kind, _)| *kind == wanted)
            .map(|(_, v)| v)
    };
    let destination = match find(RTA_DST) {
        Some(value) => ip_of(value)?,
        None => [0; 4].into(),
    };
    Some(Route {
        destination: Cidr::new(destination, prefix)?,
        gateway: find(RTA_GATEWAY).and_then(ip_of),
        link: find(RTA_OIF).and_then(u32_of)?,
        metric: find(RTA_PRIORITY).and_then(u32_of).unwrap_or(0),
        kernel: protocol == RTPROT_KERNEL,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::proptest;

    use super::*;

    proptest! {
        #[test]
        fn any_bytes_are_an_object_or_none(bytes: Vec<u8>) {
            let _ = (parse_link(&bytes), parse_address(&bytes), parse_route(&bytes));
        }
    }

    #[test]
    fn a_route_reads_back_as_it_was_asked_for() {
        let route = DesiredRoute {
            destination: "0.0.0.0/0".parse().expect("a prefix"),
            gateway: Some([10, 0, 2, 2].into()),
            metric: 100,
        };
        let read = parse_route(&add_route(3, &route).body).expect("a route");
        assert_eq!(
            (read.destination, read.gateway),
            (route.destination, route.gateway)
        );
        assert_eq!((read.link, read.metric, read.kernel), (3, 100, false));
    }
}
