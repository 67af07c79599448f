//! Where no guest goes through the node, wherever that is.
//!
//! Owns: the ranges that are nobody's on the internet, or somebody's own network, of both families. Refuses: what is around this very
//! node (`Tenant::refused` has it).

use std::net::{Ipv4Addr, Ipv6Addr};

use types::{AnyCidr, Cidr, Cidr6};

use super::Attempt;

/// What no guest may speak to through the node (RFC 6890): whatever is somebody's own network, and
/// whatever is no unicast address on the internet.
const PRIVATE: [(Ipv4Addr, u8); 10] = [
    (Ipv4Addr::new(0, 0, 0, 0), 8),
    (Ipv4Addr::new(10, 0, 0, 0), 8),
    (Ipv4Addr::new(100, 64, 0, 0), 10),
    (Ipv4Addr::new(127, 0, 0, 0), 8),
    (Ipv4Addr::new(172, 16, 0, 0), 12),
    (Ipv4Addr::new(192, 0, 0, 0), 24),
    (Ipv4Addr::new(192, 168, 0, 0), 16),
    (Ipv4Addr::new(198, 18, 0, 0), 15),
    (Ipv4Addr::new(224, 0, 0, 0), 4),
    (Ipv4Addr::new(240, 0, 0, 0), 4),
];

/// Counted apart from the others: where clouds have their metadata, and the ranges of tenants' networks.
const METADATA: (Ipv4Addr, u8) = (Ipv4Addr::new(169, 254, 0, 0), 16);
const TENANTS: [(Ipv4Addr, u8); 2] = [
    (Ipv4Addr::new(10, 128, 0, 0), 9),
    (Ipv4Addr::new(172, 16, 0, 0), 12),
];
/// The same of IPv6, where all of the internet is in 2000::/3. In it: what IETF keeps for itself (Teredo among it), and 6to4, whose addresses
/// have such of IPv4 in them, private ones too.
const PRIVATE6: [(Ipv6Addr, u8); 5] = [
    (Ipv6Addr::UNSPECIFIED, 3),
    (Ipv6Addr::new(0x2001, 0, 0, 0, 0, 0, 0, 0), 23),
    (Ipv6Addr::new(0x2002, 0, 0, 0, 0, 0, 0, 0), 16),
    (Ipv6Addr::new(0x4000, 0, 0, 0, 0, 0, 0, 0), 2),
    (Ipv6Addr::new(0x8000, 0, 0, 0, 0, 0, 0, 0), 1),
];
const LINK_LOCAL6: (Ipv6Addr, u8) = (Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0), 10);

/// In the order in which they are asked. `ours`: the node's part of fd00::/8, of which its networks are.
pub(in crate::firewall) fn refused_to_guests(
    ours: Cidr6,
) -> impl Iterator<Item = (AnyCidr, Attempt)> {
    let known = [(METADATA, Attempt::Metadata)].into_iter();
    let known = known.chain(TENANTS.map(|range| (range, Attempt::Tenants)));
    let known = known.chain(PRIVATE.map(|range| (range, Attempt::Private)));
    let four = known.filter_map(|((address, prefix), what)| {
        Some((AnyCidr::from(Cidr::new(address, prefix)?), what))
    });
    let known = [(LINK_LOCAL6, Attempt::Metadata)].into_iter();
    let ours = ours.network();
    let known = known.chain([((ours.address, ours.prefix()), Attempt::Tenants)]);
    let known = known.chain(PRIVATE6.map(|range| (range, Attempt::Private)));
    let six = known.filter_map(|((address, prefix), what)| {
        Some((AnyCidr::from(Cidr6::new(address, prefix)?), what))
    });
    four.chain(six)
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use proptest::prelude::proptest;

    use super::*;

    fn of(address: IpAddr) -> Option<Attempt> {
        let ours = "fd01:203:405::/48".parse().expect("a prefix");
        let mut all = refused_to_guests(ours);
        all.find_map(|(prefix, what)| prefix.contains(address).then_some(what))
    }

    #[test]
    fn of_ipv6_the_internet_alone_is_reached() {
        for (address, expected) in [
            ("2001:4860:4860::8888", None),
            ("2a01:4f8::1", None),
            ("3ffe::1", None),
            ("::1", Some(Attempt::Private)),
            ("::ffff:192.168.1.1", Some(Attempt::Private)),
            ("64:ff9b::c0a8:101", Some(Attempt::Private)),
            ("2001::1", Some(Attempt::Private)),
            ("2001:1ff:ffff::1", Some(Attempt::Private)),
            ("2001:200::1", None),
            ("2002:c0a8:101::1", Some(Attempt::Private)),
            ("fd00:ec2::254", Some(Attempt::Private)),
            ("fd01:203:405:7::a80:302", Some(Attempt::Tenants)),
            ("fd01:203:406:7::a80:302", Some(Attempt::Private)),
            ("fe80::1", Some(Attempt::Metadata)),
            ("fec0::1", Some(Attempt::Private)),
            ("ff02::1", Some(Attempt::Private)),
        ] {
            assert_eq!(
                of(address.parse().expect("an address")),
                expected,
                "{address}"
            );
        }
    }

    proptest! {
        #[test]
        fn whatever_is_not_in_2000_is_refused(bits: u128) {
            let is_global = bits >> 125 == 1;
            assert!(is_global || of(Ipv6Addr::from_bits(bits).into()).is_some());
        }
    }
}
