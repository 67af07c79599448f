//! Addresses of machines' own: what follows from them for rules, ways and links.
//!
//! Owns: the parts of a plan that come from pools. Refuses: choosing addresses (`workload` does), and one that the node has itself.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

use net::firewall::policy::{Let, Owned};
use net::firewall::rule::Transport;
use net::link::Answered;
use types::address::{Allow, Kind, Traffic};
use workload::host::{Placed, PlacedOwn, Places};

use super::{Tenant, Uplink, transport};

/// Which of the machine's addresses of IPv4 are used. One that the node has too is its own: a pool is not to take it from the owner.
fn used<'a>(
    place: &'a Placed,
    uplink: &'a Uplink,
) -> impl Iterator<Item = (Ipv4Addr, &'a PlacedOwn)> {
    let nodes = |address: Ipv4Addr| {
        let mut own = uplink.addresses.iter();
        own.any(|own| own.address == IpAddr::V4(address))
    };
    place.own.iter().filter_map(move |own| match own.address {
        IpAddr::V4(address) if nodes(address) => {
            let (workload, of) = (&place.workload, &place.key.name);
            log::error!(
                "{workload} of {of} has {address} of its own, which is the node's: give the pool a range without it"
            );
            None
        }
        IpAddr::V4(address) => Some((address, own)),
        IpAddr::V6(_) => None,
    })
}

/// To the network of the machine's first card, where it has `inside`.
pub(super) fn add(tenant: &mut Tenant, inside: Ipv4Addr, place: &Placed, uplink: &Uplink) {
    for (address, own) in used(place, uplink) {
        let allow: Vec<Let> = own.allow.iter().filter_map(let_in).collect();
        if let Some(guest) = tenant.policy.guests.last_mut() {
            guest.pinged |= allow.iter().any(|one| one.port.is_none());
            let ports = allow.iter().filter_map(|one| one.port);
            let ports: BTreeSet<(Transport, u16)> = guest.ports.drain(..).chain(ports).collect();
            guest.ports = ports.into_iter().collect();
        }
        tenant.network.owned.push(address);
        tenant.owned.push(Owned {
            address,
            inside,
            allow,
        });
    }
}

/// `None`: nobody speaks to an address of IPv4 from there.
fn let_in(allow: &Allow) -> Option<Let> {
    let port = match allow.what {
        Traffic::Port(protocol, port) => Some((transport(protocol), port)),
        Traffic::Ping => None,
    };
    let from = match allow.from {
        None => None,
        Some(prefix) => Some(prefix.v4()?),
    };
    Some(Let { port, from })
}

/// On which links the node answers for which of them.
pub(super) fn answered(places: &Places, uplink: &Uplink) -> Answered {
    let mut answered = Answered::new();
    for place in places.machines.values() {
        let first = place.cards.first();
        if first.is_none_or(|card| card.internal) {
            continue;
        }
        for (address, own) in used(place, uplink) {
            let link = own.link.as_ref().or(uplink.link.as_ref());
            if own.kind == Kind::Lan
                && let Some(link) = link
            {
                let of_link = answered.entry(link.clone()).or_default();
                of_link.insert(address.into());
            }
        }
    }
    answered
}

#[cfg(test)]
mod tests {
    use types::VmId;

    use super::super::tests::{keys, place, placed};
    use super::super::{Plan, plan};
    use super::*;

    fn own(address: &str, kind: Kind, allow: &[Allow]) -> PlacedOwn {
        PlacedOwn {
            address: address.parse().expect("an address"),
            kind,
            link: None,
            allow: allow.to_vec(),
        }
    }

    fn allow(what: Traffic, from: Option<&str>) -> Allow {
        let from = from.map(|from| from.parse().expect("a prefix"));
        Allow { what, from }
    }

    fn web(own: PlacedOwn) -> (VmId, Placed) {
        let (vm, mut web) = place("shop", "web", [10, 130, 1, 2], &[(8080, 80)]);
        web.own.push(own);
        (vm, web)
    }

    fn planned(machine: (VmId, Placed)) -> Plan {
        let uplink = Uplink {
            link: Some("eth0".to_owned()),
            addresses: "192.0.2.7/24".parse().into_iter().collect(),
            ..Uplink::default()
        };
        plan(&placed([machine]), &uplink, [1, 2, 3, 4, 5], &keys())
    }

    fn of_lan(plan: &Plan) -> Option<Vec<IpAddr>> {
        let answered = plan.answered.get("eth0");
        answered.map(|all| all.iter().copied().collect())
    }

    #[test]
    fn an_address_of_the_lan_is_answered_for_and_leads_to_its_machine_as_far_as_it_is_let_in() {
        let tcp = |port| Traffic::Port(types::deployment::Protocol::Tcp, port);
        let let_in = [
            allow(tcp(443), Some("203.0.113.0/24")),
            allow(Traffic::Ping, None),
            allow(tcp(22), Some("2001:db8::/32")),
        ];
        let plan = planned(web(own("192.0.2.200", Kind::Lan, &let_in)));
        assert_eq!(of_lan(&plan), Some(vec![[192, 0, 2, 200].into()]));
        let [tenant] = &plan.node.tenants[..] else {
            panic!("{plan:?}");
        };
        let expected = Owned {
            address: [192, 0, 2, 200].into(),
            inside: [10, 130, 1, 2].into(),
            allow: vec![
                Let {
                    port: Some((Transport::Tcp, 443)),
                    from: "203.0.113.0/24".parse().ok(),
                },
                Let {
                    port: None,
                    from: None,
                },
            ],
        };
        assert_eq!(tenant.owned, [expected]);
        let made = plan.tenants.values().next().expect("a network");
        assert_eq!(made.network.owned, [Ipv4Addr::new(192, 0, 2, 200)]);
        let [guest] = &made.policy.guests[..] else {
            panic!("{made:?}");
        };
        let ports = [(Transport::Tcp, 80), (Transport::Tcp, 443)];
        assert_eq!((&guest.ports[..], guest.pinged), (&ports[..], true));
    }

    #[test]
    fn an_address_that_a_router_sends_is_not_answered_for() {
        let plan = planned(web(own("198.51.100.9", Kind::Routed, &[])));
        assert_eq!(of_lan(&plan), None);
        assert_eq!(plan.node.tenants[0].owned.len(), 1);
    }

    #[test]
    fn an_address_that_the_node_has_itself_stays_the_nodes() {
        let plan = planned(web(own("192.0.2.7", Kind::Lan, &[])));
        assert_eq!(
            (of_lan(&plan), &plan.node.tenants[0].owned[..]),
            (None, &[][..])
        );
        let made = plan.tenants.values().next().expect("a network");
        assert!(made.network.owned.is_empty());
    }

    #[test]
    fn a_machine_that_nothing_leads_out_of_has_no_address_outside() {
        let (vm, mut web) = web(own("192.0.2.200", Kind::Lan, &[]));
        web.cards[0].internal = true;
        let plan = planned((vm, web));
        assert_eq!(
            (of_lan(&plan), &plan.node.tenants[0].owned[..]),
            (None, &[][..])
        );
    }
}
