//! What stands on the networks around the node.
//!
//! Owns: which addresses there are somebody's for all that the node knows itself. Refuses: asking neighbours.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use net::link::{Link, Observed};
use net::site::Role;
use types::AnyCidr;

/// On each link: what the kernel holds, and what it will.
pub(super) fn prefixes<'a>(
    links: impl Iterator<Item = &'a Link>,
    roles: &[Role],
) -> BTreeMap<String, Vec<AnyCidr>> {
    let of = |link: &Link| {
        let mut all = link.addresses.clone();
        let role = roles.iter().find(|role| role.link == link.name);
        let addressing = role.and_then(|role| role.addressing.as_ref());
        all.extend(addressing.iter().flat_map(|a| &a.addresses));
        // Where DHCPv6 gives an address, routers say which network it is in.
        let routes = addressing.iter().flat_map(|a| &a.routes);
        let direct = routes.filter(|(_, router)| router.is_none());
        all.extend(direct.map(|(network, _)| AnyCidr::from(*network)));
        all.sort_unstable();
        all.dedup();
        (link.name.clone(), all)
    };
    links.map(of).collect()
}

/// The link by which the node reaches all of IPv6: of those with a router of it the first that has a cable, else the first.
pub(super) fn leads6(observed: &Observed, roles: &[Role]) -> Option<String> {
    let leads = |role: &&Role| {
        let addressing = role.addressing.as_ref();
        addressing.is_some_and(|a| a.gateway6.is_some())
    };
    let rank = |role: &&Role| {
        let link = observed.link(&role.link);
        !link.is_some_and(|link| link.carrier)
    };
    let first = roles.iter().filter(leads).min_by_key(rank)?;
    Some(first.link.clone())
}

/// Whose each is, to stand behind "which is".
pub(super) fn occupied<'a>(
    links: impl Iterator<Item = &'a Link>,
    roles: &[Role],
) -> BTreeMap<IpAddr, &'static str> {
    let mut occupied = BTreeMap::new();
    let prefixes = prefixes(links, roles);
    for prefix in prefixes.values().flatten() {
        for end in ends(prefix) {
            occupied.insert(
                end.into(),
                "of no machine: all of its network, or everybody in it",
            );
        }
        // RFC 4291 section 2.6.1.
        if let Some(six) = prefix.v6().filter(|prefix| prefix.prefix() < 127) {
            let first = six.network().address;
            occupied.insert(first.into(), "of no machine: every router of its network");
        }
    }
    let gateways = roles.iter().filter_map(|role| role.addressing.as_ref());
    for addressing in gateways {
        let v4 = addressing.gateway.map(IpAddr::from);
        let all = v4.into_iter().chain(addressing.gateway6.map(IpAddr::from));
        occupied.extend(all.map(|gateway| (gateway, "the router's")));
    }
    let own = prefixes.values().flatten();
    let own = own.filter(|own| own.address.is_ipv4() || !names_network(own));
    occupied.extend(own.map(|own| (own.address, "the node's own")));
    occupied
}

/// It is a network, and no address in it.
pub(crate) fn names_network(prefix: &AnyCidr) -> bool {
    let is_long = prefix.v6().is_some_and(|six| six.prefix() >= 127);
    *prefix == prefix.network() && !is_long
}

/// The first and the last of a network, which mean all of it and everybody in it.
fn ends(prefix: &AnyCidr) -> impl Iterator<Item = Ipv4Addr> + use<> {
    let four = prefix.v4().filter(|prefix| prefix.prefix() < 31);
    let both = four.map(|prefix| {
        let first = prefix.network().address;
        [first, Ipv4Addr::from_bits(first.to_bits() | !prefix.mask())]
    });
    both.into_iter().flatten()
}

#[cfg(test)]
mod tests {
    use net::site::Addressing;

    use super::super::tests::ethernet;
    use super::*;

    #[test]
    fn the_nodes_addresses_on_every_link_its_routers_and_the_ends_of_networks_are_no_machines() {
        let links = [
            ethernet("eth0", 2, &["192.0.2.7/24"]),
            ethernet("office", 3, &["198.51.100.9/31"]),
            ethernet("eth1", 4, &["2001:db8:6::7/64", "2001:db8:7::77/128"]),
        ];
        let role = Role {
            link: "eth1".to_owned(),
            asks: true,
            listens: false,
            addressing: Some(Addressing {
                addresses: vec!["203.0.113.5/28".parse().expect("a prefix")],
                routes: vec![("2001:db8:7::/64".parse().expect("a prefix"), None)],
                gateway: Some([203, 0, 113, 1].into()),
                ..Addressing::default()
            }),
        };
        let found = occupied(links.iter(), &[role]);
        let whose = |text: &str| {
            let address: IpAddr = text.parse().expect("an address");
            found.get(&address).copied()
        };
        for (address, expected) in [
            ("192.0.2.7", Some("the node's own")),
            ("198.51.100.9", Some("the node's own")),
            ("203.0.113.5", Some("the node's own")),
            ("203.0.113.1", Some("the router's")),
            ("192.0.2.8", None),
            ("2001:db8:6::7", Some("the node's own")),
            ("2001:db8:7::77", Some("the node's own")),
            ("2001:db8:6::8", None),
            ("2001:db8:7::8", None),
            ("198.51.100.8", None),
        ] {
            assert_eq!(whose(address), expected, "{address}");
        }
        for first in ["2001:db8:6::", "2001:db8:7::"] {
            let said = whose(first).expect("the first");
            assert!(said.contains("every router"), "{first}: {said}");
        }
        for end in ["192.0.2.0", "192.0.2.255", "203.0.113.0", "203.0.113.15"] {
            let said = whose(end).expect("an end");
            assert!(said.contains("everybody in it"), "{end}: {said}");
        }
    }
}
