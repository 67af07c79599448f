//! IPv6 between tenants' networks and the outside: what follows from where the node is.
//!
//! Owns: which networks of IPv6 are the owner's, and which networks of tenants lead outside. Refuses: the rules that follow
//! ([`net::firewall`]), and saying it to machines ([`net::advertise`]).

use std::collections::BTreeSet;
use std::net::Ipv6Addr;

use types::{AnyCidr, Cidr6};

use super::{Tenant, Uplink};
use crate::node::uplink::names_network;

/// The most of a global prefix that one site has, and what the owner's other networks are in: as private as what is on the node's links,
/// though no address shows it (RFC 6177).
const SITE_PREFIX: u8 = 48;

/// The networks around the node, of both families, which machines do not reach.
pub(super) fn around(uplink: &Uplink) -> Vec<AnyCidr> {
    let four = uplink.networks.iter().map(|network| (*network).into());
    let six: BTreeSet<AnyCidr> = of_links(uplink).map(site).collect();
    four.chain(six).collect()
}

/// Those of the node's addresses that are not of one link alone.
fn of_links(uplink: &Uplink) -> impl Iterator<Item = Cidr6> {
    let all = uplink.prefixes.values().flatten();
    let six = all.filter_map(AnyCidr::v6);
    six.filter(|own| !own.address.is_unicast_link_local() && !own.address.is_loopback())
}

fn site(own: Cidr6) -> AnyCidr {
    let prefix = own.prefix().min(SITE_PREFIX);
    let site = Cidr6::new(own.address, prefix).expect("it is not longer than the address");
    site.network().into()
}

/// Whether a network's machines are told that IPv6 leads outside: where the node has the way to all of it; or has addresses of it at least, and
/// something in the network answers whoever comes in at them.
pub(super) fn leads(tenant: &Tenant, uplink: &Uplink) -> bool {
    let answers = !tenant.published.is_empty() && of_links(uplink).next().is_some();
    let own = tenant.owned.iter().any(|own| own.address.is_ipv6());
    !tenant.policy.internal && (uplink.link6.is_some() || answers || own)
}

/// The node's own address by which packets leave by a link; any of several.
pub(super) fn own(link: &str, uplink: &Uplink) -> Option<Ipv6Addr> {
    let prefixes = uplink.prefixes.get(link).into_iter().flatten();
    let mut six = prefixes.filter_map(AnyCidr::v6);
    let is_own =
        |own: &Cidr6| !own.address.is_unicast_link_local() && !names_network(&AnyCidr::from(*own));
    let own = six.find(is_own);
    own.map(|own| own.address)
}

#[cfg(test)]
mod tests {
    use super::super::tests::{keys, place, placed};
    use super::super::{Plan, plan};
    use super::*;

    fn uplink(prefixes: &[&str], link6: Option<&str>) -> Uplink {
        let prefixes = prefixes.iter().map(|p| p.parse().expect("a prefix"));
        Uplink {
            link6: link6.map(str::to_owned),
            prefixes: [("eth0".to_owned(), prefixes.collect())].into(),
            ..Uplink::default()
        }
    }

    #[test]
    fn the_owners_site_is_refused_and_not_only_what_is_on_the_nodes_links() {
        let uplink = Uplink {
            networks: vec!["192.0.2.0/24".parse().expect("a prefix")],
            ..uplink(
                &[
                    "192.0.2.7/24",
                    "2001:db8:6:7::9/64",
                    "2001:db8:6:8::9/64",
                    "2001:db8:7::1/40",
                    "fe80::9/64",
                ],
                None,
            )
        };
        let refused: Vec<String> = around(&uplink).iter().map(ToString::to_string).collect();
        assert_eq!(
            refused,
            ["192.0.2.0/24", "2001:db8::/40", "2001:db8:6::/48"]
        );
    }

    #[test]
    fn a_network_leads_outside_where_the_node_does_or_where_it_has_to_answer() {
        let of = |uplink: &Uplink, ports: &[(u16, u16)], internal: bool| {
            let (vm, mut web) = place("shop", "web", [10, 130, 1, 2], ports);
            web.cards[0].internal = internal;
            let plan: Plan = plan(&placed([(vm, web)]), uplink, [1, 2, 3, 4, 5], &keys());
            let tenant = plan.tenants.into_values().next().expect("a network");
            tenant.leads6
        };
        let (none, near) = (uplink(&[], None), uplink(&["2001:db8:6::9/64"], None));
        let all = uplink(&["2001:db8:6::9/64"], Some("eth0"));
        let local = uplink(&["fe80::9/64"], None);
        let ports = [(80, 8080)];
        for (uplink, ports, internal, expected) in [
            (&none, &ports[..], false, false),
            (&local, &ports[..], false, false),
            (&near, &[][..], false, false),
            (&near, &ports[..], false, true),
            (&all, &[][..], false, true),
            (&all, &ports[..], true, false),
        ] {
            let leads = of(uplink, ports, internal);
            assert_eq!(leads, expected, "{uplink:?} {ports:?} {internal}");
        }
    }
}
