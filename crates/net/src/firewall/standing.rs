//! Connections that stand while the rules change.
//!
//! Owns: which of them the new rules would let begin, and whether a change takes anything away at all. It says again what
//! `policy` says of first packets, as a kernel's list of connections has no other reader.
//! Refuses: the kernel (`flows`), and the node's own connections: no rule of a machine's is about them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use types::AnyCidr;

use super::flows::{Flow, Spoken, Way};
use super::owned::{Let, Owned};
use super::policy::{Guest, Node, NodeTenant, Published, Tenant};

/// What of the node's namespace may stand.
#[derive(Debug)]
pub struct Standing<'a> {
    tenants: &'a [NodeTenant],
    /// The node's own, on all links.
    addresses: &'a BTreeSet<IpAddr>,
    /// By what leads to them on the node.
    published: BTreeMap<u16, Vec<&'a Published>>,
    owned: BTreeMap<IpAddr, &'a Owned>,
    owners: BTreeMap<IpAddr, &'a Owned>,
}

impl<'a> Standing<'a> {
    pub fn of(node: &'a Node, addresses: &'a BTreeSet<IpAddr>) -> Self {
        let tenants = &node.tenants[..];
        let mut published: BTreeMap<u16, Vec<&Published>> = BTreeMap::new();
        for one in tenants.iter().flat_map(|tenant| &tenant.published) {
            published.entry(one.node_port).or_default().push(one);
        }
        let all = || tenants.iter().flat_map(|tenant| &tenant.owned);
        Self {
            tenants,
            addresses,
            published,
            owned: all().map(|own| (own.address, own)).collect(),
            owners: all().map(|own| (own.within(), own)).collect(),
        }
    }

    pub fn keeps(&self, flow: &Flow) -> bool {
        let Flow {
            began, answered, ..
        } = flow;
        let to = |way: &Way| match way.what {
            Spoken::Port { to, .. } => Some(to),
            Spoken::Ping | Spoken::Other => None,
        };
        let from = |way: &Way| match way.what {
            Spoken::Port { from, .. } => Some(from),
            Spoken::Ping | Spoken::Other => None,
        };
        if answered.source != began.destination || from(answered) != to(began) {
            return self.leads_in(began, answered);
        }
        // Only machines' packets leave under another address than their own.
        answered.destination == began.source || self.leads_out(began.source, answered.destination)
    }

    /// From outside to a machine.
    fn leads_in(&self, began: &Way, answered: &Way) -> bool {
        let (machine, address) = (answered.source, began.destination);
        if let Some(own) = self.owned.get(&address) {
            return own.within() == machine && own.allow.iter().any(|one| one.lets(began));
        }
        let (Spoken::Port { transport, to, .. }, Spoken::Port { from, .. }) =
            (began.what, answered.what)
        else {
            return false;
        };
        let leads = |one: &&Published| {
            let to = (one.transport, one.inside.like(machine), one.port);
            to == (transport, machine, from)
        };
        let mut published = self.published.get(&to).into_iter().flatten();
        self.addresses.contains(&address) && published.any(leads)
    }

    /// From a machine to the outside: under its own address, or the node's.
    fn leads_out(&self, machine: IpAddr, under: IpAddr) -> bool {
        let mut tenants = self.tenants.iter();
        let own = self.owners.get(&machine).map(|own| own.address);
        tenants.any(|tenant| tenant.has(machine))
            && (own == Some(under) || self.addresses.contains(&under))
    }
}

impl Node {
    /// Whether something that was let in or out before is not now.
    pub fn takes_from(&self, before: &Self) -> bool {
        let now: BTreeMap<&str, &NodeTenant> = self
            .tenants
            .iter()
            .map(|tenant| (tenant.link.as_str(), tenant))
            .collect();
        let has = |was: &NodeTenant| {
            let now = now.get(was.link.as_str());
            now.is_some_and(|now| {
                let published = was.published.iter().all(|one| now.published.contains(one));
                let stays = |was: &Owned| now.owned.iter().any(|now| now.has_all(was));
                now.subnets() == was.subnets() && published && was.owned.iter().all(stays)
            })
        };
        !before.tenants.iter().all(has)
    }
}

impl Owned {
    fn has_all(&self, was: &Self) -> bool {
        let who = |own: &Self| (own.address, own.inside, own.link.clone());
        who(self) == who(was) && was.allow.iter().all(|one| self.allow.contains(one))
    }
}

impl Let {
    /// Whether it lets this begin.
    fn lets(&self, began: &Way) -> bool {
        let what = match (self.port, began.what) {
            (Some(port), Spoken::Port { transport, to, .. }) => port == (transport, to),
            (None, Spoken::Ping) => true,
            (Some(_), Spoken::Ping | Spoken::Other)
            | (None, Spoken::Port { .. } | Spoken::Other) => false,
        };
        what && self.from.is_none_or(|prefix| prefix.contains(began.source))
    }
}

impl Tenant {
    /// Whether it may stand in the network's namespace, where nothing is translated.
    pub fn keeps(&self, flow: &Flow) -> bool {
        let began = &flow.began;
        let inside = |address| {
            self.gateways()
                .iter()
                .any(|gateway| gateway.contains(address))
        };
        let is_guest = |address| self.guests.iter().any(|guest| guest.has(address));
        let of_peer = |address| {
            self.peers
                .iter()
                .any(|peer| AnyCidr::from(*peer).contains(address))
        };
        match (inside(began.source), inside(began.destination)) {
            (true, true) | (false, false) => true,
            // The gateway asks others for names, and leads requests to their machines.
            (true, false) if began.source == IpAddr::from(self.gateway.address) => {
                of_peer(began.destination)
            }
            // Of a machine that is gone: the next one with its address would have it.
            (true, false) if !is_guest(began.source) => false,
            (true, false) if of_peer(began.destination) => true,
            (true, false) => !self.internal && !self.refuses(began.destination),
            (false, true) if of_peer(began.source) => true,
            (false, true) => {
                let mut guests = self.guests.iter();
                let guest = guests.find(|guest| guest.has(began.destination));
                guest.is_some_and(|guest| guest.is_reached_by(began))
            }
        }
    }

    fn refuses(&self, destination: IpAddr) -> bool {
        let mut all = self.refused_to_guests().map(|(prefix, _)| prefix);
        all.any(|prefix| prefix.contains(destination))
    }

    /// Whether something that was let in or out before is not now.
    pub fn takes_from(&self, before: &Self) -> bool {
        let guests: BTreeMap<_, &Guest> = self
            .guests
            .iter()
            .map(|guest| (guest.address, guest))
            .collect();
        let has = |was: &Guest| {
            let now = guests.get(&was.address);
            now.is_some_and(|now| {
                let ports = was.ports.iter().all(|port| now.ports.contains(port));
                ports && was.lets.iter().all(|one| now.lets.contains(one))
            })
        };
        let of_peers = before.peers.iter().all(|peer| self.peers.contains(peer));
        let refused = |prefix: &AnyCidr| before.refused.contains(prefix);
        let stays = self.gateways() == before.gateways() && before.guests.iter().all(has);
        let more = (self.internal && !before.internal) || !self.refused.iter().all(refused);
        !stays || !of_peers || more
    }
}

impl Guest {
    fn is_reached_by(&self, began: &Way) -> bool {
        let published = match began.what {
            Spoken::Port { transport, to, .. } => self.ports.contains(&(transport, to)),
            Spoken::Ping | Spoken::Other => false,
        };
        let mut lets = self.lets.iter();
        published || lets.any(|(at, one)| *at == began.destination && one.lets(began))
    }
}

#[cfg(test)]
mod tests {
    use super::super::policy::tests::{example_node, example_tenant};
    use super::super::rule::Transport;
    use super::*;

    const CLIENT: [u8; 4] = [203, 0, 113, 9];
    const STRANGER: [u8; 4] = [192, 0, 2, 50];
    const NODE: [u8; 4] = [192, 0, 2, 7];
    const OWN: [u8; 4] = [198, 51, 100, 9];
    const WEB: [u8; 4] = [10, 128, 3, 2];
    const OWNER: [u8; 4] = [10, 128, 3, 3];
    const GATEWAY: [u8; 4] = [10, 128, 3, 1];

    fn way(source: impl Into<IpAddr>, destination: impl Into<IpAddr>, what: Spoken) -> Way {
        Way {
            source: source.into(),
            destination: destination.into(),
            what,
        }
    }

    /// From a client's port to this one, where an answer comes from another's.
    fn tcp<A: Into<IpAddr> + Copy>(from: A, to: (A, u16), inside: (A, u16), under: A) -> Flow {
        let port = |from, to| Spoken::Port {
            transport: Transport::Tcp,
            from,
            to,
        };
        Flow {
            began: way(from, to.0, port(5000, to.1)),
            answered: way(inside.0, under, port(inside.1, 5000)),
            named: (Vec::new(), Vec::new()),
        }
    }

    fn ping(from: [u8; 4], to: [u8; 4], inside: [u8; 4]) -> Flow {
        Flow {
            began: way(from, to, Spoken::Ping),
            answered: way(inside, from, Spoken::Ping),
            named: (Vec::new(), Vec::new()),
        }
    }

    fn kept(node: &Node, flow: &Flow) -> bool {
        let addresses = [NODE.into(), six(NODE6)].into();
        Standing::of(node, &addresses).keeps(flow)
    }

    #[test]
    fn what_the_rules_would_let_begin_stands_and_nothing_else() {
        let node = example_node();
        let own = |from, port| tcp(from, (OWN, port), (OWNER, port), from);
        let out = |machine, under| tcp(machine, (CLIENT, 80), (CLIENT, 80), under);
        for (flow, expected, why) in [
            (own(CLIENT, 443), true, "it is let in"),
            (own(STRANGER, 443), false, "not from there"),
            (own(CLIENT, 22), false, "not that port"),
            (ping(STRANGER, OWN, OWNER), true, "pings are"),
            (
                tcp(CLIENT, (OWN, 443), (WEB, 443), CLIENT),
                false,
                "it is another's now",
            ),
            (
                tcp(CLIENT, (NODE, 8080), (WEB, 80), CLIENT),
                true,
                "a published port",
            ),
            (
                tcp(CLIENT, (NODE, 8080), (WEB, 81), CLIENT),
                false,
                "it leads elsewhere now",
            ),
            (
                tcp(CLIENT, (NODE, 8081), (WEB, 80), CLIENT),
                false,
                "it is not published now",
            ),
            (
                tcp(CLIENT, (STRANGER, 8080), (WEB, 80), CLIENT),
                false,
                "that is nobody's address",
            ),
            (out(OWNER, OWN), true, "under its own address"),
            (out(OWNER, NODE), true, "by another link, under the node's"),
            (out(WEB, NODE), true, "under the node's"),
            (out(WEB, OWN), false, "under another's"),
            (
                out([10, 128, 9, 9], NODE),
                false,
                "of a network that is gone",
            ),
            (
                tcp(CLIENT, (NODE, 7443), (NODE, 7443), CLIENT),
                true,
                "the node's own",
            ),
        ] {
            assert_eq!(kept(&node, &flow), expected, "{why}: {flow:?}");
        }
    }

    #[test]
    fn in_a_network_who_is_reached_and_what_is_reached_stands() {
        let mut tenant = example_tenant();
        let flow = |from, to, port| tcp(from, (to, port), (to, port), from);
        let outward = flow(WEB, CLIENT, 80);
        for (flow, expected, why) in [
            (flow(CLIENT, WEB, 80), true, "a port that leads to it"),
            (flow(CLIENT, WEB, 22), false, "one that does not"),
            (flow(CLIENT, OWNER, 80), false, "another's"),
            (ping(CLIENT, OWNER, OWNER), true, "it is pinged"),
            (ping(CLIENT, WEB, WEB), false, "it is not"),
            (outward.clone(), true, "the internet"),
            (
                flow(WEB, [198, 51, 100, 7], 80),
                false,
                "a neighbour of the node's",
            ),
            (flow(WEB, [192, 168, 1, 1], 80), false, "somebody's LAN"),
            (flow(WEB, OWNER, 5432), true, "its neighbour"),
            (
                flow(WEB, [10, 200, 7, 5], 5432),
                true,
                "its network elsewhere",
            ),
            (flow([10, 200, 7, 5], WEB, 5432), true, "and from there"),
            (
                flow(GATEWAY, [10, 200, 7, 5], 8080),
                true,
                "a name leads there",
            ),
            (flow(GATEWAY, [10, 200, 8, 5], 8080), false, "not any more"),
            (flow(GATEWAY, WEB, 8080), true, "and here"),
            (
                flow([10, 200, 7, 1], WEB, 8080),
                true,
                "a name elsewhere leads here",
            ),
        ] {
            assert_eq!(tenant.keeps(&flow), expected, "{why}: {flow:?}");
        }
        let mut without = tenant.clone();
        without
            .guests
            .retain(|guest| IpAddr::from(guest.address) != IpAddr::from(WEB));
        assert!(!without.keeps(&outward), "the machine is gone");
        tenant.internal = true;
        assert!(!tenant.keeps(&outward), "nothing leads out of it now");
    }

    const CLIENT6: &str = "2001:db8:9::7";
    const STRANGER6: &str = "2001:db8:a::7";
    const NODE6: &str = "2001:db8:6::7";
    const OWN6: &str = "2001:db8:5::9";
    const WEB6: &str = "fd01:203:405:3::a80:302";
    const OWNER6: &str = "fd01:203:405:3::a80:303";

    fn six(address: &str) -> IpAddr {
        address.parse().expect("an address")
    }

    #[test]
    fn of_ipv6_the_same_stands_in_both_places() {
        let node = example_node();
        let flow = |from, to: (&str, u16), inside: (&str, u16), under| {
            let ((to, port), (inside, inner)) = (to, inside);
            tcp(six(from), (six(to), port), (six(inside), inner), six(under))
        };
        let own = |from, port| flow(from, (OWN6, port), (OWNER6, port), from);
        let out = |machine, under| flow(machine, (CLIENT6, 80), (CLIENT6, 80), under);
        let port = |to, inside, inner| flow(CLIENT6, (to, 8080), (inside, inner), CLIENT6);
        for (flow, expected, why) in [
            (own(CLIENT6, 443), true, "it is let in"),
            (own(STRANGER6, 443), false, "not from there"),
            (own(CLIENT6, 22), false, "not that port"),
            (port(NODE6, WEB6, 80), true, "a published port"),
            (port(NODE6, WEB6, 81), false, "it leads elsewhere now"),
            (port(STRANGER6, WEB6, 80), false, "that is nobody's address"),
            (out(OWNER6, OWN6), true, "under its own address"),
            (out(WEB6, NODE6), true, "under the node's"),
            (out(WEB6, OWN6), false, "under another's"),
            (
                out("fd01:203:405:9::a80:902", NODE6),
                false,
                "a network that is gone",
            ),
        ] {
            assert_eq!(kept(&node, &flow), expected, "{why}: {flow:?}");
        }
        let mut tenant = example_tenant();
        let flow = |from, to, port| flow(from, (to, port), (to, port), from);
        let outward = flow(WEB6, STRANGER6, 80);
        for (flow, expected, why) in [
            (flow(CLIENT6, WEB6, 80), true, "a port that leads to it"),
            (flow(CLIENT6, WEB6, 22), false, "one that does not"),
            (flow(CLIENT6, OWNER6, 443), true, "it lets that in"),
            (flow(STRANGER6, OWNER6, 443), false, "not from there"),
            (outward.clone(), true, "the internet"),
            (flow(WEB6, NODE6, 80), false, "the owner's site"),
            (
                flow(WEB6, "fd01:203:405:9::a80:902", 80),
                false,
                "another network",
            ),
            (flow(WEB6, OWNER6, 5432), true, "its neighbour"),
        ] {
            assert_eq!(tenant.keeps(&flow), expected, "{why}: {flow:?}");
        }
        tenant.internal = true;
        assert!(!tenant.keeps(&outward), "nothing leads out of it now");
    }

    #[test]
    fn a_change_that_only_adds_takes_nothing() {
        let (node, tenant) = (example_node(), example_tenant());
        assert!(!node.takes_from(&node) && !node.takes_from(&Node::default()));
        assert!(Node::default().takes_from(&node));
        assert!(!tenant.takes_from(&tenant));
        type Change = fn(&mut Node);
        let changes: [Change; 5] = [
            |node| node.tenants[0].owned[0].allow.truncate(1),
            |node| node.tenants[0].owned.clear(),
            |node| node.tenants[0].owned[0].link = None,
            |node| node.tenants[0].published.truncate(1),
            |node| node.tenants[0].published[0].inside.four = OWNER.into(),
        ];
        for (at, change) in changes.iter().enumerate() {
            let mut less = node.clone();
            change(&mut less);
            assert!(less.takes_from(&node), "change {at}");
        }
        let changes: [fn(&mut Tenant); 6] = [
            |tenant| tenant.internal = true,
            |tenant| tenant.guests.truncate(1),
            |tenant| tenant.guests[0].ports.truncate(1),
            |tenant| tenant.guests[1].lets.clear(),
            |tenant| tenant.peers.clear(),
            |tenant| tenant.refused.push(CLIENT_NET.parse().expect("a prefix")),
        ];
        for (at, change) in changes.iter().enumerate() {
            let mut less = tenant.clone();
            change(&mut less);
            assert!(less.takes_from(&tenant), "change {at}");
        }
    }

    const CLIENT_NET: &str = "203.0.113.0/24";
}
