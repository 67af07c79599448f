//! Router advertisements and solicitations as bytes (RFC 4861, RFC 4191, RFC 8106).
//!
//! Owns: which advertisements count, and what of them is used. Refuses: remembering anything.

use std::net::Ipv6Addr;

use types::{Cidr6, Mac};

/// Nothing of it came through a router.
const HOP_LIMIT: u8 = 255;
const ADVERTISEMENT: u8 = 134;
const SOLICITATION: u8 = 133;
/// The fixed part of an advertisement.
const HEADER_BYTES: usize = 16;
const OPTION_SOURCE: u8 = 1;
const OPTION_PREFIX: u8 = 3;
const OPTION_MTU: u8 = 5;
const OPTION_ROUTE: u8 = 24;
const OPTION_DNS: u8 = 25;
/// What a packet on any link can hold, and more than Ethernet can.
pub(super) const ADVERT_MAX: usize = 9216;
/// Things of one kind that one advertisement may name; more are passed over. Routers name one or two.
const NAMED_MAX: usize = 16;

/// What one router says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Advert {
    pub(super) router: Ipv6Addr,
    /// Seconds for which it leads to the world; 0: it does not.
    pub(super) lifetime: u16,
    pub(super) preference: Preference,
    /// Addresses come from DHCPv6.
    pub(super) managed: bool,
    /// Name and time servers do.
    pub(super) other: bool,
    pub(super) prefixes: Vec<Prefix>,
    pub(super) routes: Vec<Route>,
    /// Name servers, each with its lifetime.
    pub(super) dns: Vec<(Ipv6Addr, u32)>,
    pub(super) mtu: Option<u32>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Preference {
    Low,
    Medium,
    High,
}

impl Preference {
    /// Two bits; the reserved value is as if there were none (RFC 4191 section 2.2).
    fn read(flags: u8) -> Self {
        match flags >> 3 & 3 {
            1 => Self::High,
            3 => Self::Low,
            _ => Self::Medium,
        }
    }
}

/// Lifetimes in seconds; `u32::MAX`: for ever.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Prefix {
    pub(super) network: Cidr6,
    pub(super) on_link: bool,
    pub(super) autonomous: bool,
    pub(super) valid: u32,
    pub(super) preferred: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Route {
    pub(super) destination: Cidr6,
    pub(super) preference: Preference,
    pub(super) lifetime: u32,
}

/// `None` where it is no advertisement, or may not be believed (RFC 4861 section 6.1.2).
pub(super) fn parse(from: Ipv6Addr, hop_limit: u8, packet: &[u8]) -> Option<Advert> {
    let (header, mut options) = packet.split_first_chunk::<HEADER_BYTES>()?;
    let [ADVERTISEMENT, 0, _, _, _, flags, life_high, life_low, ..] = *header else {
        return None;
    };
    if hop_limit != HOP_LIMIT || !from.is_unicast_link_local() {
        return None;
    }
    let mut advert = Advert {
        router: from,
        lifetime: u16::from_be_bytes([life_high, life_low]),
        preference: Preference::read(flags),
        managed: flags & 0x80 != 0,
        other: flags & 0x40 != 0,
        prefixes: Vec::new(),
        routes: Vec::new(),
        dns: Vec::new(),
        mtu: None,
    };
    while let [kind, length, ..] = *options {
        // In units of eight bytes. A length of zero makes the whole packet worthless.
        let length = usize::from(length) * 8;
        let (option, rest) = options.split_at_checked(length).filter(|_| length > 0)?;
        match kind {
            OPTION_PREFIX => advert.prefixes.extend(prefix(option)),
            OPTION_ROUTE => advert.routes.extend(route(option)),
            OPTION_DNS => advert.dns.extend(servers(option)),
            OPTION_MTU => advert.mtu = mtu(option).or(advert.mtu),
            _ => {}
        }
        options = rest;
    }
    advert.prefixes.truncate(NAMED_MAX);
    advert.routes.truncate(NAMED_MAX);
    advert.dns.truncate(NAMED_MAX);
    options.is_empty().then_some(advert)
}

fn number(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..)?.first_chunk()?;
    Some(u32::from_be_bytes(*bytes))
}

fn address(bytes: &[u8], at: usize) -> Option<Ipv6Addr> {
    let bytes: &[u8; 16] = bytes.get(at..)?.first_chunk()?;
    Some((*bytes).into())
}

fn prefix(option: &[u8]) -> Option<Prefix> {
    let network = Cidr6::new(address(option, 16)?, *option.get(2)?)?.network();
    let flags = *option.get(3)?;
    let (valid, preferred) = (number(option, 4)?, number(option, 8)?);
    let usable = is_networks(network.address) && network.prefix() > 0 && preferred <= valid;
    usable.then_some(Prefix {
        network,
        on_link: flags & 0x80 != 0,
        autonomous: flags & 0x40 != 0,
        valid,
        preferred,
    })
}

/// Not what every link has, and nobody's.
fn is_networks(address: Ipv6Addr) -> bool {
    !address.is_unicast_link_local() && !address.is_multicast() && !address.is_loopback()
}

/// Its prefix is written as far as it is long (RFC 4191 section 2.3).
fn route(option: &[u8]) -> Option<Route> {
    let (length, flags) = (*option.get(2)?, *option.get(3)?);
    let written = option.get(8..)?;
    let mut bytes = [0; 16];
    bytes[..written.len().min(16)].copy_from_slice(&written[..written.len().min(16)]);
    let destination = Cidr6::new(bytes.into(), length)?.network();
    let reserved = flags >> 3 & 3 == 2;
    let whole = usize::from(length) <= written.len() * 8;
    (whole && !reserved && is_networks(destination.address)).then_some(Route {
        destination,
        preference: Preference::read(flags),
        lifetime: number(option, 4)?,
    })
}

fn servers(option: &[u8]) -> Vec<(Ipv6Addr, u32)> {
    let Some(lifetime) = number(option, 4) else {
        return Vec::new();
    };
    let servers = option[8..].chunks_exact(16);
    let servers = servers.filter_map(|bytes| address(bytes, 0));
    let servers = servers.filter(|a| !a.is_unspecified() && !a.is_multicast());
    servers.map(|server| (server, lifetime)).collect()
}

fn mtu(option: &[u8]) -> Option<u32> {
    number(option, 4).filter(|mtu| *mtu >= super::MTU_MIN)
}

/// Asks all routers of the link. The kernel writes the checksum.
pub(super) fn solicitation(mac: Mac) -> Vec<u8> {
    let mut packet = vec![SOLICITATION, 0, 0, 0, 0, 0, 0, 0, OPTION_SOURCE, 1];
    packet.extend_from_slice(&mac.0);
    packet
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::{any, proptest};

    use super::*;

    pub(crate) fn ip(text: &str) -> Ipv6Addr {
        text.parse().expect("an address")
    }

    /// An advertisement of so many seconds, with these flags and options.
    pub(crate) fn advert(seconds: u16, flags: u8, options: &[Vec<u8>]) -> Vec<u8> {
        let [high, low] = seconds.to_be_bytes();
        let mut packet = vec![134, 0, 0, 0, 64, flags, high, low];
        packet.resize(HEADER_BYTES, 0);
        packet.extend(options.concat());
        packet
    }

    pub(crate) fn prefix_option(network: &str, flags: u8, valid: u32, preferred: u32) -> Vec<u8> {
        let network: Cidr6 = network.parse().expect("a prefix");
        let mut option = vec![3, 4, network.prefix(), flags];
        option.extend(valid.to_be_bytes());
        option.extend(preferred.to_be_bytes());
        option.extend([0; 4]);
        option.extend(network.address.octets());
        option
    }

    pub(crate) fn dns_option(server: &str, lifetime: u32) -> Vec<u8> {
        let mut option = vec![25, 3, 0, 0];
        option.extend(lifetime.to_be_bytes());
        option.extend(ip(server).octets());
        option
    }

    #[test]
    fn an_advertisement_is_read_as_its_router_means_it() {
        let mut route = vec![24, 2, 48, 0x08];
        route.extend(600_u32.to_be_bytes());
        route.extend(&ip("2001:db8:9::").octets()[..8]);
        let options = [
            prefix_option("2001:db8:0:7::/64", 0xc0, 7200, 3600),
            dns_option("2001:db8::53", 300),
            vec![5, 1, 0, 0, 0, 0, 5, 0x78],
            route,
            vec![77, 1, 0, 0, 0, 0, 0, 0],
        ];
        let packet = advert(1800, 0x88 | 0x40, &options);
        let read = parse(ip("fe80::1"), 255, &packet).expect("an advertisement");
        assert_eq!((read.lifetime, read.preference), (1800, Preference::High));
        assert!(read.managed && read.other);
        let network = "2001:db8:0:7::/64".parse().expect("a prefix");
        let (on_link, autonomous) = (true, true);
        let expected = Prefix {
            network,
            on_link,
            autonomous,
            valid: 7200,
            preferred: 3600,
        };
        assert_eq!(read.prefixes, [expected]);
        assert_eq!(read.dns, [(ip("2001:db8::53"), 300)]);
        assert_eq!(read.mtu, Some(1400));
        assert_eq!(read.routes.len(), 1);
        assert_eq!(read.routes[0].destination.to_string(), "2001:db8:9::/48");
        assert_eq!(read.routes[0].preference, Preference::High);
    }

    #[test]
    fn what_came_through_a_router_or_from_no_neighbour_or_is_cut_is_not_believed() {
        let packet = advert(1800, 0, &[prefix_option("2001:db8::/64", 0xc0, 1, 1)]);
        assert!(parse(ip("fe80::1"), 255, &packet).is_some());
        assert_eq!(parse(ip("fe80::1"), 254, &packet), None);
        assert_eq!(parse(ip("2001:db8::1"), 255, &packet), None);
        assert_eq!(parse(ip("fe80::1"), 255, &packet[..packet.len() - 1]), None);
        let without_length = advert(1800, 0, &[vec![3, 0, 0, 0, 0, 0, 0, 0]]);
        assert_eq!(parse(ip("fe80::1"), 255, &without_length), None);
    }

    #[test]
    fn prefixes_of_no_network_and_lifetimes_in_the_wrong_order_are_passed_over() {
        for option in [
            prefix_option("fe80::/64", 0xc0, 1, 1),
            prefix_option("ff02::/64", 0xc0, 1, 1),
            prefix_option("2001:db8::/64", 0xc0, 1, 2),
            prefix_option("::/0", 0xc0, 1, 1),
            vec![5, 1, 0, 0, 0, 0, 4, 0xff],
        ] {
            let packet = advert(1800, 0, &[option]);
            let read = parse(ip("fe80::1"), 255, &packet).expect("an advertisement");
            assert!(read.prefixes.is_empty() && read.mtu.is_none());
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_an_advertisement_or_none(options: Vec<u8>, flags: u8, kind in 0_u8..30, length in 0_u8..5, value: [u8; 32]) {
            let _ = parse(ip("fe80::1"), 255, &options);
            let made = [&[kind, length], &value[..], &options].concat();
            if let Some(read) = parse(ip("fe80::1"), 255, &advert(9, flags, &[made])) {
                assert!(read.prefixes.iter().all(|p| p.network == p.network.network()));
                assert!(read.prefixes.len().max(read.routes.len()).max(read.dns.len()) <= NAMED_MAX);
            }
        }

        #[test]
        fn a_solicitation_names_its_sender(mac in any::<[u8; 6]>()) {
            let packet = solicitation(Mac(mac));
            assert_eq!((packet.len(), &packet[8..10], &packet[10..]), (16, &[1, 1][..], &mac[..]));
        }
    }
}
