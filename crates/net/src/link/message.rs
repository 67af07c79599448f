//! Our links, addresses, routes and steps as the messages of rtnetlink.
//!
//! Owns: which attributes of the kernel's messages matter, and what is asked of it for each step.
//! Refuses: objects of other families, which it passes over. The bytes are `netlink-packet-route`'s.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, RawFd};

use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::{AddressAttribute, AddressHeaderFlags, AddressMessage};
use rtnetlink::packet_route::link::{
    self as packet, BondLacpRate, BondXmitHashPolicy, InfoBond, InfoData, InfoKind, InfoVeth,
    InfoVlan, LinkAttribute, LinkExtentMask, LinkFlags, LinkInfo, LinkLayerType, LinkMessage,
};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol, RouteScope,
    RouteType,
};
use rtnetlink::{
    AddressMessageBuilder, LinkBond, LinkBridge, LinkMessageBuilder, LinkUnspec, LinkVeth,
    LinkVlan, LinkWireguard, RouteMessageBuilder,
};
use types::{AnyCidr, Mac};

use super::{BondMode, Create, DesiredRoute, Kind, Link, Route};

/// A link to be made.
/// `on`: the number of the link that a VLAN is to lie on.
pub(super) fn new_link(name: &str, create: &Create, on: u32) -> LinkMessage {
    match create {
        Create::Bridge => LinkMessageBuilder::<LinkBridge>::new(name).build(),
        Create::Veth { peer, namespace } => new_veth(name, peer, namespace.as_raw_fd()),
        Create::Bond { mode } => new_bond(name, *mode),
        Create::Vlan { id, .. } => LinkVlan::new(name, on, *id).build(),
        Create::Wireguard { namespace } => LinkWireguard::new(name)
            .setns_by_fd(namespace.as_raw_fd())
            .build(),
    }
}

/// As switches expect it: traffic spread by address and port, LACP every second, a cable that goes is seen in a tenth of one.
fn new_bond(name: &str, mode: BondMode) -> LinkMessage {
    let bond = LinkBond::new(name).miimon(MIIMON_MS);
    match mode {
        BondMode::ActiveBackup => bond.mode(packet::BondMode::ActiveBackup).build(),
        BondMode::Lacp => {
            let bond = bond.mode(packet::BondMode::Ieee8023Ad);
            let bond = bond.ad_lacp_rate(BondLacpRate::Fast);
            bond.xmit_hash_policy(BondXmitHashPolicy::Layer34).build()
        }
    }
}

/// The kernel's documentation of bonding recommends 100: without it no cable is missed at all.
const MIIMON_MS: u32 = 100;

fn new_veth(name: &str, peer: &str, namespace: RawFd) -> LinkMessage {
    let peer = LinkUnspec::new_with_name(peer).setns_by_fd(namespace);
    LinkMessageBuilder::<LinkVeth>::new_with_info_kind(InfoKind::Veth)
        .name(name)
        .set_info_data(InfoData::Veth(InfoVeth::Peer(peer.build())))
        .build()
}

/// An address of a link, of IPv4 with the broadcast address of its subnet.
pub(super) fn address(link: u32, address: AnyCidr) -> AddressMessage {
    let prefix = address.prefix();
    match address.address {
        IpAddr::V4(address) => AddressMessageBuilder::<Ipv4Addr>::new()
            .index(link)
            .address(address, prefix)
            .build(),
        IpAddr::V6(address) => AddressMessageBuilder::<Ipv6Addr>::new()
            .index(link)
            .address(address, prefix)
            .build(),
    }
}

/// A route to be set.
pub(super) fn new_route(link: u32, route: &DesiredRoute) -> io::Result<RouteMessage> {
    let message = route_of(link, route.destination, route.gateway, route.metric)?;
    Ok(match route.gateway {
        // The gateway is on the link even if no address says so: some providers hand out /32 addresses.
        Some(_) => message.onlink().build(),
        None => message.scope(RouteScope::Link).build(),
    })
}

/// A route to be deleted, whatever its scope and whoever set it.
pub(super) fn old_route(route: &Route) -> io::Result<RouteMessage> {
    let message = route_of(route.link, route.destination, route.gateway, route.metric)?;
    let message = message.scope(RouteScope::NoWhere);
    Ok(message.protocol(RouteProtocol::Unspec).build())
}

/// An error where the gateway cannot lead to the destination.
fn route_of(
    link: u32,
    destination: AnyCidr,
    gateway: Option<IpAddr>,
    metric: u32,
) -> io::Result<RouteMessageBuilder<IpAddr>> {
    let prefix = destination.network();
    let mut message = RouteMessageBuilder::<IpAddr>::new()
        .output_interface(link)
        .destination_prefix(prefix.address, prefix.prefix())
        .map_err(io::Error::other)?;
    if let Some(gateway) = gateway {
        message = message.gateway(gateway).map_err(io::Error::other)?;
    }
    if metric > 0 {
        message = message.priority(metric);
    }
    Ok(message)
}

/// The question for all links, without their counters.
pub(super) fn all_links() -> LinkMessage {
    let mut message = LinkMessage::default();
    let mask = LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]);
    message.attributes.push(mask);
    message
}

/// The question for all addresses.
pub(super) fn all_addresses() -> AddressMessage {
    AddressMessage::default()
}

/// The question for all routes.
pub(super) fn all_routes() -> RouteMessage {
    RouteMessage::default()
}

/// `None` where the message describes no link.
pub(super) fn link(message: &LinkMessage) -> Option<Link> {
    let header = &message.header;
    let mut link = Link {
        name: String::new(),
        index: header.index,
        mac: None,
        permanent: None,
        up: header.flags.contains(LinkFlags::Up),
        carrier: header.flags.contains(LinkFlags::LowerUp),
        mtu: 0,
        kind: match header.link_layer_type {
            LinkLayerType::Loopback => Kind::Loopback,
            LinkLayerType::Ether => Kind::Ethernet,
            _ => Kind::Other,
        },
        master: None,
        addresses: Vec::new(),
        local: None,
        taken: Vec::new(),
    };
    let ethernet = link.kind == Kind::Ethernet;
    let mut on = 0;
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Address(mac) if ethernet => {
                link.mac = mac.as_slice().try_into().ok().map(Mac);
            }
            LinkAttribute::PermAddress(mac) if ethernet => {
                link.permanent = mac.as_slice().try_into().ok().map(Mac);
            }
            LinkAttribute::Link(index) => on = *index,
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            LinkAttribute::Controller(master) => link.master = Some(*master),
            LinkAttribute::LinkInfo(infos) => {
                // A port of a bridge may say only what it is there: then it is no virtual link.
                link.kind = infos.iter().find_map(virtual_kind).unwrap_or(link.kind);
                link.kind = with_data(link.kind, infos);
            }
            _ => {}
        }
    }
    if let Kind::Vlan { on: at, .. } = &mut link.kind {
        *at = on;
    }
    (!link.name.is_empty()).then_some(link)
}

fn virtual_kind(info: &LinkInfo) -> Option<Kind> {
    match info {
        LinkInfo::Kind(InfoKind::Bridge) => Some(Kind::Bridge),
        LinkInfo::Kind(InfoKind::Veth) => Some(Kind::Veth),
        LinkInfo::Kind(InfoKind::Tun) => Some(Kind::Tun),
        LinkInfo::Kind(InfoKind::Bond) => Some(Kind::Bond(None)),
        LinkInfo::Kind(InfoKind::Vlan) => Some(Kind::Vlan { on: 0, id: 0 }),
        LinkInfo::Kind(_) => Some(Kind::Other),
        _ => None,
    }
}

/// What tells two of one kind apart.
fn with_data(kind: Kind, infos: &[LinkInfo]) -> Kind {
    let data = infos.iter().find_map(|info| match info {
        LinkInfo::Data(data) => Some(data),
        _ => None,
    });
    match (kind, data) {
        (Kind::Bond(_), Some(InfoData::Bond(bond))) => Kind::Bond(bond.iter().find_map(bond_mode)),
        (Kind::Vlan { on, .. }, Some(InfoData::Vlan(vlan))) => {
            let id = vlan.iter().find_map(|info| match info {
                InfoVlan::Id(id) => Some(*id),
                _ => None,
            });
            Kind::Vlan {
                on,
                id: id.unwrap_or(0),
            }
        }
        (kind, _) => kind,
    }
}

fn bond_mode(info: &InfoBond) -> Option<BondMode> {
    match info {
        InfoBond::Mode(packet::BondMode::Ieee8023Ad) => Some(BondMode::Lacp),
        InfoBond::Mode(packet::BondMode::ActiveBackup) => Some(BondMode::ActiveBackup),
        _ => None,
    }
}

/// What neighbours have said of an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Twin {
    /// They are still being asked.
    Unknown,
    None,
    Found,
}

/// Of IPv4 nobody is asked.
pub(super) fn twin(message: &AddressMessage) -> Twin {
    let flags = message.header.flags;
    if flags.contains(AddressHeaderFlags::Dadfailed) {
        Twin::Found
    } else if flags.contains(AddressHeaderFlags::Tentative) {
        Twin::Unknown
    } else {
        Twin::None
    }
}

/// (link, address); `None` where the message describes no address of IP.
pub(super) fn address_of(message: &AddressMessage) -> Option<(u32, AnyCidr)> {
    let header = &message.header;
    let find = |wanted: fn(&AddressAttribute) -> Option<IpAddr>| {
        message.attributes.iter().find_map(wanted)
    };
    let local = find(|attribute| match attribute {
        AddressAttribute::Local(address) => Some(*address),
        _ => None,
    });
    // The other end's on a link between two, ours elsewhere.
    let other = find(|attribute| match attribute {
        AddressAttribute::Address(address) => Some(*address),
        _ => None,
    });
    let address = local.or(other)?;
    Some((header.index, AnyCidr::new(address, header.prefix_len)?))
}

/// `None` where the message describes no unicast route of the main table.
pub(super) fn route(message: &RouteMessage) -> Option<Route> {
    let header = &message.header;
    let mut destination: IpAddr = match header.address_family {
        AddressFamily::Inet => Ipv4Addr::UNSPECIFIED.into(),
        AddressFamily::Inet6 => Ipv6Addr::UNSPECIFIED.into(),
        _ => return None,
    };
    let ours = header.table == RouteHeader::RT_TABLE_MAIN
        && header.kind == RouteType::Unicast
        && !header.flags.contains(RouteFlags::Cloned);
    if !ours {
        return None;
    }
    let (mut gateway, mut link, mut metric) = (None, None, 0);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(to) => destination = ip(to).unwrap_or(destination),
            RouteAttribute::Gateway(by) => gateway = ip(by),
            RouteAttribute::Oif(index) => link = Some(*index),
            RouteAttribute::Priority(priority) => metric = *priority,
            _ => {}
        }
    }
    Some(Route {
        destination: AnyCidr::new(destination, header.destination_prefix_length)?,
        gateway,
        link: link?,
        metric,
        kernel: header.protocol == RouteProtocol::Kernel,
    })
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some((*address).into()),
        RouteAddress::Inet6(address) => Some((*address).into()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, proptest};
    use rtnetlink::packet_core::Parseable;

    use super::*;

    proptest! {
        /// The kernel's bytes are believed, but a kernel may be newer than the library.
        #[test]
        fn any_bytes_are_an_object_or_none(header in any::<[u8; 16]>(), bytes: Vec<u8>) {
            let bytes = [&header[..], &bytes].concat();
            let _ = LinkMessage::parse(&bytes[..]).map(|message| link(&message));
            let _ = AddressMessage::parse(&bytes[..]).map(|message| address_of(&message));
            let _ = RouteMessage::parse(&bytes[..]).map(|message| route(&message));
        }

        #[test]
        fn an_attribute_of_any_kind_and_value_is_read_or_refused(kind in 0_u16..80, value: Vec<u8>) {
            let length = u16::try_from(4 + value.len()).expect("short");
            let mut bytes = vec![0; 16];
            bytes.extend_from_slice(&length.to_ne_bytes());
            bytes.extend_from_slice(&kind.to_ne_bytes());
            bytes.extend_from_slice(&value);
            bytes.resize(bytes.len().next_multiple_of(4), 0);
            let _ = LinkMessage::parse(&bytes[..]).map(|message| link(&message));
            let _ = AddressMessage::parse(&bytes[8..]).map(|message| address_of(&message));
            let _ = RouteMessage::parse(&bytes[4..]).map(|message| route(&message));
        }
    }

    fn asked(destination: &str, gateway: &str) -> DesiredRoute {
        DesiredRoute {
            destination: destination.parse().expect("a prefix"),
            gateway: Some(gateway.parse().expect("an address")),
            metric: 100,
        }
    }

    #[test]
    fn a_route_reads_back_as_it_was_asked_for() {
        for (destination, gateway) in [
            ("0.0.0.0/0", "10.0.2.2"),
            ("192.0.2.0/24", "10.0.2.2"),
            ("::/0", "fe80::1"),
            ("2001:db8::/32", "2001:db8:1::1"),
        ] {
            let asked = asked(destination, gateway);
            let read = route(&new_route(3, &asked).expect("a message")).expect("a route");
            assert_eq!(
                (read.destination, read.gateway),
                (asked.destination, asked.gateway)
            );
            assert_eq!((read.link, read.metric, read.kernel), (3, 100, false));
        }
        assert!(new_route(3, &asked("::/0", "10.0.2.2")).is_err());
    }

    #[test]
    fn an_address_reads_back_as_it_was_asked_for() {
        for asked in ["10.0.2.15/24", "2001:db8::15/64"] {
            let asked: AnyCidr = asked.parse().expect("an address");
            assert_eq!(address_of(&address(3, asked)), Some((3, asked)));
        }
        assert_eq!(address_of(&all_addresses()), None);
    }

    #[test]
    fn a_link_that_is_not_named_or_not_made_of_software_is_told_apart() {
        let mut port = LinkUnspec::new_with_index(2).build();
        assert_eq!(link(&port), None);
        port.header.link_layer_type = LinkLayerType::Ether;
        port.attributes = vec![
            LinkAttribute::IfName("eth0".to_owned()),
            LinkAttribute::Address(vec![2, 0, 0, 0, 0, 1]),
        ];
        let read = link(&port).expect("a link");
        assert_eq!(
            (read.kind, read.mac),
            (Kind::Ethernet, Some(Mac([2, 0, 0, 0, 0, 1])))
        );
        let bridge = link(&new_link("br0", &Create::Bridge, 0)).expect("a link");
        assert_eq!((bridge.kind, bridge.name.as_str()), (Kind::Bridge, "br0"));
    }
}
