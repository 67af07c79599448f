//! Addresses of machines' own: what follows from them for rules, ways and links.
//!
//! Owns: the parts of a plan that come from pools, and why an address of one is not used. Refuses: choosing addresses (`workload`
//! does).

use std::collections::BTreeSet;
use std::net::IpAddr;

use net::firewall::policy::{Inside, Let, Owned};
use net::link::Answered;
use types::address::{Allow, Kind, Pool, Traffic};
use workload::host::{Placed, PlacedOwn, Places};

use super::{Tenant, Uplink, transport};

/// By which link the address is reached; `None`: by each. An error: it is not used, and why.
fn link_of(own: &PlacedOwn, uplink: &Uplink) -> Result<Option<String>, String> {
    let address = own.address;
    if let Some(whose) = uplink.occupied.get(&address) {
        return Err(format!(
            "{address} is {whose}: give the pool a range without it"
        ));
    }
    link_of_pool(own.kind, own.link.as_deref(), address, uplink)
}

fn link_of_pool(
    kind: Kind,
    named: Option<&str>,
    address: IpAddr,
    uplink: &Uplink,
) -> Result<Option<String>, String> {
    let known = |link: &str| uplink.links.iter().any(|known| known == link);
    // Where nothing is named, that in whose network it lies: the way out may lead by another now, and neighbours there have other addresses.
    let around = |prefixes: &[types::AnyCidr]| prefixes.iter().any(|p| p.contains(address));
    let mut prefixes = uplink.prefixes.iter();
    let lies = prefixes.find_map(|(link, all)| around(all).then_some(link.as_str()));
    let way = match address {
        IpAddr::V4(_) => uplink.link.as_deref(),
        IpAddr::V6(_) => uplink.link6.as_deref().or(uplink.link.as_deref()),
    };
    match (kind, named.or(lies).or(way)) {
        (Kind::Routed, _) => Ok(None),
        (Kind::Lan, None) => {
            Err("the node has no way out, whose link the pool's addresses would be on".to_owned())
        }
        (Kind::Lan, Some(link)) if !known(link) => Err(format!(
            "the node has no link {link}: it has {}, or `sifr node network` makes it",
            uplink.links.join(", ")
        )),
        (Kind::Lan, Some(link)) => Ok(Some(link.to_owned())),
    }
}

/// Why an address is not used, or why nobody will find it.
pub(crate) fn problem(own: &PlacedOwn, uplink: &Uplink) -> Option<String> {
    match link_of(own, uplink) {
        Err(problem) => Some(problem),
        Ok(link) => astray(link.as_deref()?, own.address, uplink),
    }
}

/// The same of a pool, whether it is in use or not.
pub(crate) fn pool_problem(pool: &Pool, uplink: &Uplink) -> Option<String> {
    let (first, last) = pool.range.ends();
    match link_of_pool(pool.kind, pool.link.as_deref(), first, uplink) {
        Err(problem) => Some(problem),
        Ok(link) => {
            let of = |end| astray(link.as_deref()?, end, uplink);
            of(first).or_else(|| of(last))
        }
    }
}

/// Neighbours ask for an address of their own network only.
fn astray(link: &str, address: IpAddr, uplink: &Uplink) -> Option<String> {
    let prefixes = uplink.prefixes.get(link);
    let prefixes = || prefixes.into_iter().flatten();
    if prefixes().any(|prefix| prefix.contains(address)) {
        return None;
    }
    let known: Vec<String> = prefixes()
        .map(|prefix| prefix.network().to_string())
        .collect();
    Some(match &known[..] {
        [] => format!("the node has no address on {link}, where {address} would be: set it up"),
        known => format!(
            "{address} is in no network of {link}, which has {}: give the pool another range or link",
            known.join(", ")
        ),
    })
}

/// Which of the machine's addresses are used, and by which link.
fn used<'a>(
    place: &'a Placed,
    uplink: &'a Uplink,
) -> impl Iterator<Item = (&'a PlacedOwn, Option<String>)> {
    place
        .own
        .iter()
        .filter_map(move |own| match link_of(own, uplink) {
            Ok(link) => Some((own, link)),
            Err(problem) => {
                let (workload, of) = (&place.workload, &place.key.name);
                log::error!("{workload} of {of} has an address that is not used: {problem}");
                None
            }
        })
}

/// To the network of the machine's first card, where it has `inside`.
pub(super) fn add(tenant: &mut Tenant, inside: Inside, place: &Placed, uplink: &Uplink) {
    for (own, link) in used(place, uplink) {
        let address = own.address;
        let let_in = |allow: &Allow| let_in(allow, address);
        let allow: Vec<Let> = own.allow.iter().filter_map(let_in).collect();
        if let Some(guest) = tenant.policy.guests.last_mut() {
            let more = allow.iter().map(|one| (inside.like(address), *one));
            let lets: BTreeSet<(IpAddr, Let)> = guest.lets.drain(..).chain(more).collect();
            guest.lets = lets.into_iter().collect();
        }
        tenant.network.owned.push(address);
        tenant.owned.push(Owned {
            address,
            inside,
            link,
            allow,
        });
    }
}

/// `None`: nobody speaks to an address of the other family from there.
fn let_in(allow: &Allow, address: IpAddr) -> Option<Let> {
    let port = match allow.what {
        Traffic::Port(protocol, port) => Some((transport(protocol), port)),
        Traffic::Ping => None,
    };
    let from = match allow.from {
        None => None,
        Some(prefix) if prefix.address.is_ipv4() != address.is_ipv4() => return None,
        Some(prefix) => Some(prefix),
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
        for (own, link) in used(place, uplink) {
            let address = own.address;
            // To neighbours of another network the address may be somebody else's.
            let astray = |link: &str| astray(link, address, uplink).is_some();
            if own.kind == Kind::Lan
                && let Some(link) = link.filter(|link| !astray(link))
            {
                answered.entry(link).or_default().insert(address);
            }
        }
    }
    answered
}

#[cfg(test)]
mod tests {
    use net::firewall::rule::Transport;
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
        plan(&placed([machine]), &uplink(), [1, 2, 3, 4, 5], &keys())
    }

    fn uplink() -> Uplink {
        let prefix = |text: &str| vec![text.parse().expect("a prefix")];
        Uplink {
            link: Some("eth0".to_owned()),
            addresses: prefix("192.0.2.7/24"),
            links: ["eth0", "office", "bare"].map(str::to_owned).into(),
            prefixes: [
                ("eth0".to_owned(), prefix("192.0.2.7/24")),
                ("office".to_owned(), prefix("198.51.100.7/28")),
                ("bare".to_owned(), Vec::new()),
            ]
            .into(),
            occupied: [
                ([192, 0, 2, 7].into(), "the node's own"),
                ([198, 51, 100, 7].into(), "the node's own"),
                ([192, 0, 2, 1].into(), "the router's"),
            ]
            .into(),
            ..Uplink::default()
        }
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
            inside: Inside {
                four: [10, 130, 1, 2].into(),
                six: "fd01:203:405:201::a82:102".parse().expect("an address"),
            },
            link: Some("eth0".to_owned()),
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
        assert_eq!(made.network.owned, [IpAddr::from([192, 0, 2, 200])]);
        let [guest] = &made.policy.guests[..] else {
            panic!("{made:?}");
        };
        let allow = &plan.node.tenants[0].owned[0].allow;
        let inside = IpAddr::from([10, 130, 1, 2]);
        let lets: BTreeSet<_> = allow.iter().map(|one| (inside, *one)).collect();
        assert_eq!(guest.ports, [(Transport::Tcp, 80)]);
        assert_eq!(guest.lets, lets.into_iter().collect::<Vec<_>>());
    }

    #[test]
    fn an_address_is_answered_for_on_the_link_in_whose_network_it_lies_and_on_no_other() {
        let plan = planned(web(own("198.51.100.9", Kind::Lan, &[])));
        let office = plan.answered.get("office").map(BTreeSet::len);
        assert_eq!((of_lan(&plan), office), (None, Some(1)));
        assert_eq!(
            plan.node.tenants[0].owned[0].link.as_deref(),
            Some("office")
        );
        let plan = planned(web(own("203.0.113.9", Kind::Lan, &[])));
        assert!(
            plan.answered.is_empty(),
            "it is in no network of the node's"
        );
    }

    #[test]
    fn an_address_of_ipv6_is_translated_to_the_machines_of_that_family_and_answered_for_by_its_link()
     {
        let uplink = Uplink {
            link6: Some("eth0".to_owned()),
            prefixes: [(
                "eth0".to_owned(),
                ["fe80::7/64", "2001:db8:6::7/64"]
                    .map(|own| own.parse().expect("a prefix"))
                    .into(),
            )]
            .into(),
            ..uplink()
        };
        let let_in = [
            allow(Traffic::Ping, Some("2001:db8:9::/48")),
            allow(Traffic::Ping, Some("203.0.113.0/24")),
        ];
        let machine = web(own("2001:db8:6::200", Kind::Lan, &let_in));
        let plan = plan(&placed([machine]), &uplink, [1, 2, 3, 4, 5], &keys());
        assert_eq!(
            of_lan(&plan),
            Some(vec!["2001:db8:6::200".parse().expect("one")])
        );
        let [tenant] = &plan.node.tenants[..] else {
            panic!("{plan:?}");
        };
        let [owned] = &tenant.owned[..] else {
            panic!("{tenant:?}");
        };
        assert_eq!(owned.link.as_deref(), Some("eth0"));
        assert_eq!(owned.allow.len(), 1, "nobody of IPv4 speaks to it");
        let made = plan.tenants.values().next().expect("a network");
        let inside: IpAddr = "fd01:203:405:201::a82:102".parse().expect("an address");
        assert_eq!(made.policy.guests[0].lets, [(inside, owned.allow[0])]);
        assert!(made.leads6, "it has to answer");
        let far = own("2001:db8:7::200", Kind::Lan, &[]);
        let said = problem(&far, &uplink).expect("a problem");
        assert!(
            said.contains("no network of eth0, which has fe80::/64, 2001:db8:6::/64"),
            "{said}"
        );
    }

    #[test]
    fn an_address_that_a_router_sends_is_not_answered_for() {
        let plan = planned(web(own("198.51.100.9", Kind::Routed, &[])));
        assert_eq!(of_lan(&plan), None);
        assert_eq!(plan.node.tenants[0].owned.len(), 1);
    }

    #[test]
    fn an_address_that_the_node_or_its_router_has_on_any_link_stays_theirs() {
        for (address, link) in [
            ("192.0.2.7", None),
            ("192.0.2.1", None),
            ("198.51.100.7", Some("office")),
            ("198.51.100.7", None),
            ("192.0.2.200", Some("gone")),
        ] {
            let own = PlacedOwn {
                link: link.map(str::to_owned),
                ..own(address, Kind::Lan, &[])
            };
            assert!(problem(&own, &uplink()).is_some(), "{address} on {link:?}");
            let plan = planned(web(own));
            assert!(plan.answered.is_empty(), "{address} on {link:?}");
            assert_eq!(plan.node.tenants[0].owned, []);
            let made = plan.tenants.values().next().expect("a network");
            assert!(made.network.owned.is_empty());
        }
    }

    #[test]
    fn an_address_is_of_its_pools_link_and_one_that_a_router_sends_comes_by_any() {
        let bound = |own: PlacedOwn| {
            let plan = planned(web(own));
            plan.node.tenants[0].owned[0].link.clone()
        };
        let of_office = PlacedOwn {
            link: Some("office".to_owned()),
            ..own("198.51.100.9", Kind::Lan, &[])
        };
        assert_eq!(bound(of_office), Some("office".to_owned()));
        assert_eq!(
            bound(own("192.0.2.200", Kind::Lan, &[])),
            Some("eth0".to_owned())
        );
        assert_eq!(bound(own("203.0.113.9", Kind::Routed, &[])), None);
    }

    #[test]
    fn a_pool_that_nobody_will_find_is_told_with_what_is_wrong() {
        let problem = |kind, range: &str, link: Option<&str>| {
            let pool = Pool {
                kind,
                range: range.parse().expect("a range"),
                link: link.map(str::to_owned),
                deployments: None,
            };
            pool_problem(&pool, &uplink()).unwrap_or_default()
        };
        for (range, link, says) in [
            (
                "192.0.2.200",
                Some("gone"),
                "no link gone: it has eth0, office, bare",
            ),
            (
                "192.0.2.200",
                Some("office"),
                "no network of office, which has 198.51.100.0/28",
            ),
            (
                "192.0.2.200-192.0.3.1",
                None,
                "192.0.3.1 is in no network of eth0",
            ),
            ("192.0.2.200", Some("bare"), "no address on bare"),
        ] {
            let said = problem(Kind::Lan, range, link);
            assert!(said.contains(says), "{said}");
        }
        assert_eq!(problem(Kind::Lan, "192.0.2.200-192.0.2.210", None), "");
        assert_eq!(problem(Kind::Routed, "203.0.113.0/28", None), "");
        let none = Uplink::default();
        let own = own("192.0.2.200", Kind::Lan, &[]);
        let said = super::problem(&own, &none).expect("a problem");
        assert!(said.contains("no way out"), "{said}");
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
