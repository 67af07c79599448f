//! Why a machine reaches somebody, or does not: the way of one packet through what is planned.
//!
//! Owns: which places a packet comes by, in which order, and what is said at its end.
//! Refuses: which rule decides at a place ([`net::firewall::trace`]), and packets that are really sent.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use net::dns::Found;
use net::firewall::policy::Inside;
use net::firewall::rule::{ChainKind, Family, Point};
use net::firewall::trace::{Decided, Decision, Packet, What, decide};
use net::firewall::{Counts, Ruleset, policy};
use net::network::{self, BRIDGE, MESH, Ula, WAN};
use types::AnyCidr;
use types::trace::{Destination, Outcome, Place, Question, Step, Trace, Way};
use workload::host::{Placed, PlacedCard, Places};

use super::{Keys, Plan, Tenant, Uplink, network_of, six, tap_name, transport};

/// Somebody outside, whom no network here has (RFC 5737, RFC 3849).
const SOMEBODY: Inside = Inside {
    four: Ipv4Addr::new(203, 0, 113, 1),
    six: Ipv6Addr::new(0x2001, 0xdb8, 0xffff, 0, 0, 0, 0, 1),
};

/// What the question is about, as it is now.
pub(crate) struct Scene<'a> {
    pub(crate) places: &'a Places,
    pub(crate) uplink: &'a Uplink,
    pub(crate) ula: Ula,
    pub(crate) keys: &'a Keys,
}

/// The way from or to the machine `of`, which has a place.
pub(crate) fn trace(scene: &Scene<'_>, of: &Placed, question: &Question) -> Trace {
    let plan = super::plan(scene.places, scene.uplink, scene.ula, scene.keys);
    let walk = Walk {
        plan: &plan,
        scene,
        of,
        question,
        steps: Vec::new(),
    };
    match &question.way {
        Way::To(destination) => walk.outward(destination),
        Way::FromOutside => walk.inward(),
    }
}

struct Walk<'a> {
    plan: &'a Plan,
    scene: &'a Scene<'a>,
    of: &'a Placed,
    question: &'a Question,
    steps: Vec<Step>,
}

/// One card of the machine, in its network.
struct Card<'a> {
    address: Ipv4Addr,
    inside: Inside,
    tenant: &'a Tenant,
}

impl Card<'_> {
    /// The address under which it speaks to this one.
    fn like(&self, to: IpAddr) -> IpAddr {
        self.inside.like(to)
    }

    fn gateways(&self) -> [AnyCidr; 2] {
        let policy = &self.tenant.policy;
        [policy.gateway.into(), policy.gateway6.into()]
    }

    /// The node whose part of its network an address lies in.
    fn across(&self, to: IpAddr) -> Option<String> {
        let mesh = self.tenant.network.mesh.as_ref()?;
        let (key, _) = mesh
            .peers
            .iter()
            .find(|(_, peer)| AnyCidr::from(peer.subnet).contains(to))?;
        let joined = self.tenant.joined.as_ref()?;
        Some(joined.peers.get(key)?.to_string())
    }
}

impl<'a> Walk<'a> {
    fn end(self, outcome: Outcome, message: impl Into<String>) -> Trace {
        Trace {
            steps: self.steps,
            outcome,
            message: message.into(),
        }
    }

    fn what(&self) -> What {
        let port = self.question.port;
        port.map_or(What::Ping, |(protocol, port)| {
            What::Port(transport(protocol), port)
        })
    }

    fn cards(&self) -> Vec<Card<'a>> {
        let known = |card: &PlacedCard| {
            let tenant = self.plan.tenants.get(&network_of(card.address)?.name)?;
            let address = card.address;
            let six = network::address6(self.scene.ula, address)?.address;
            let inside = Inside { four: address, six };
            Some(Card {
                address,
                inside,
                tenant,
            })
        };
        self.of.cards.iter().filter_map(known).collect()
    }

    fn outward(self, destination: &Destination) -> Trace {
        let cards = self.cards();
        let Some(first) = cards.first() else {
            return self.end(
                Outcome::Nowhere,
                "the machine has no card: it has never started",
            );
        };
        let to = match destination {
            Destination::Address(address) => *address,
            Destination::Name(name) => match first.tenant.names.find(first.address.into(), name) {
                Found::Machine(address) => address.into(),
                Found::Across { subnet, .. } => {
                    return self.end(Outcome::Nowhere, format!(
                        "{name} is on another node, whose part of the network is {subnet}: give the address that `sifr network get` shows there"
                    ));
                }
                Found::Nobody => {
                    return self.end(Outcome::Nowhere, format!(
                        "no machine on its networks is called {name}: names are WORKLOAD within a deployment, WORKLOAD.DEPLOYMENT beyond"
                    ));
                }
                Found::Elsewhere => {
                    return self.end(Outcome::Nowhere, format!(
                        "{name} is no machine's on its networks: give the address that it has in the world"
                    ));
                }
            },
        };
        self.outward_to(&cards, to)
    }

    fn outward_to(self, cards: &[Card<'_>], to: IpAddr) -> Trace {
        let lies = |card: &&Card<'_>| card.gateways().iter().any(|gateway| gateway.contains(to));
        // Its first card has the way to everybody else.
        let (own, first) = (cards.iter().find(lies), &cards[0]);
        match own {
            Some(card) if card.gateways().iter().any(|gateway| gateway.address == to) => {
                self.at_gateway(card, to)
            }
            Some(card) => self.within(card, card.like(to), to),
            None if first.across(to).is_some() => self.across(first, to),
            None => self.beyond(first, to),
        }
    }

    /// To the same network on another node, by the link between them.
    fn across(mut self, card: &Card<'_>, to: IpAddr) -> Trace {
        if self.leaves_network(card, to, MESH).is_none() {
            return self.stopped();
        }
        let node = card.across(to).unwrap_or_default();
        let message = format!(
            "it leaves for node {node} of the same network: `sifr get` says whether that is heard, its own trace what it does there"
        );
        self.end(Outcome::Leaves, message)
    }

    /// By its card, and by this link of the network's namespace. `None`: it is stopped on the way.
    fn leaves_network(&mut self, card: &Card<'_>, to: IpAddr, link: &str) -> Option<Packet> {
        let from = card.like(to);
        self.leaves_card(card, from, to)?;
        let packet = Packet {
            to: Some(link.to_owned()),
            ..self.packet(card, from, to)
        };
        let rules = policy::tenant(&card.tenant.policy, &Counts::new());
        let at = (Family::Inet, Point::Forward);
        self.filter(Place::Network, &rules, at, &packet)?;
        Some(packet)
    }

    /// By its card. `None`: it is stopped there.
    fn leaves_card(&mut self, card: &Card<'_>, from: IpAddr, to: IpAddr) -> Option<()> {
        let packet = Packet {
            from: Some(tap_name(card.address)),
            to: None,
            ..self.packet(card, from, to)
        };
        let rules = policy::tenant(&card.tenant.policy, &Counts::new());
        self.filter(
            Place::Card,
            &rules,
            (Family::Bridge, Point::Prerouting),
            &packet,
        )
    }

    fn packet(&self, card: &Card<'_>, source: IpAddr, destination: IpAddr) -> Packet {
        Packet {
            from: Some(BRIDGE.to_owned()),
            to: None,
            mac: network::guest_mac(card.address),
            source,
            destination,
            is_ours: false,
            what: self.what(),
        }
    }

    fn filter(
        &mut self,
        place: Place,
        rules: &Ruleset,
        (family, point): (Family, Point),
        packet: &Packet,
    ) -> Option<()> {
        let decision = decide(rules, family, ChainKind::Filter, point, packet)?;
        let verdict = decision.verdict;
        self.steps.push(step(place, decision));
        (verdict == Decided::Accept).then_some(())
    }

    /// Between two machines of one network: its bridge, and no gateway.
    fn within(mut self, card: &Card<'_>, from: IpAddr, to: IpAddr) -> Trace {
        if self.leaves_card(card, from, to).is_none() {
            return self.stopped();
        }
        let has = |guest: &&policy::Guest| {
            IpAddr::V4(guest.address) == to || IpAddr::V6(guest.address6) == to
        };
        if card.tenant.policy.guests.iter().any(|guest| has(&guest)) {
            let name = self.name_of(to);
            return self.end(
                Outcome::Delivered,
                format!("{name} gets it: what listens there decides"),
            );
        }
        self.end(Outcome::Nowhere, format!(
            "no machine has {to} now: a stopped one has no card, `sifr get` says where machines are"
        ))
    }

    fn at_gateway(mut self, card: &Card<'_>, to: IpAddr) -> Trace {
        let from = card.like(to);
        if self.leaves_card(card, from, to).is_none() {
            return self.stopped();
        }
        let packet = Packet {
            is_ours: true,
            ..self.packet(card, from, to)
        };
        let rules = policy::tenant(&card.tenant.policy, &Counts::new());
        match self.filter(
            Place::Network,
            &rules,
            (Family::Inet, Point::Input),
            &packet,
        ) {
            None => self.stopped(),
            Some(()) => self.end(
                Outcome::Delivered,
                "the network's gateway gets it: it answers DNS and pings",
            ),
        }
    }

    fn beyond(mut self, card: &Card<'_>, to: IpAddr) -> Trace {
        let Some(packet) = self.leaves_network(card, to, WAN) else {
            return self.stopped();
        };
        let uplink = self.scene.uplink;
        let (way, wanting) = match to {
            IpAddr::V4(_) => (
                &uplink.link,
                "the node has no way out: `sifr node info` shows its links",
            ),
            IpAddr::V6(_) => (
                &uplink.link6,
                "the node has no way out by IPv6: `sifr node info` shows its routers, and the machine is told of none; use IPv4",
            ),
        };
        let Some(link) = way.clone() else {
            return self.end(Outcome::Nowhere, wanting);
        };
        let packet = Packet {
            from: Some(card.tenant.network.host_link()),
            to: Some(link.clone()),
            ..packet
        };
        let rules = policy::node(&self.plan.node);
        if self
            .filter(Place::Node, &rules, (Family::Inet, Point::Forward), &packet)
            .is_none()
        {
            return self.stopped();
        }
        let nat = decide(
            &rules,
            Family::Inet,
            ChainKind::Nat,
            Point::Postrouting,
            &packet,
        );
        let as_itself = nat.as_ref().and_then(|nat| match nat.verdict {
            Decided::SourceNat(own) => Some(own),
            _ => None,
        });
        self.steps
            .extend(nat.map(|decision| step(Place::Node, decision)));
        let own = as_itself.or_else(|| self.own_of(&link, to));
        let own = own.map_or_else(|| "its address".to_owned(), |own| own.to_string());
        self.end(Outcome::Leaves, format!("it leaves the node by {link} under {own}: who is asked, and what is on the way, decide"))
    }

    /// Of the node, on the link of its way out, and of the family of `like`.
    fn own_of(&self, link: &str, like: IpAddr) -> Option<IpAddr> {
        let mut addresses = self.scene.uplink.addresses.iter();
        match like {
            IpAddr::V4(_) => addresses.find_map(|own| Some(own.v4()?.address.into())),
            IpAddr::V6(_) => six::own(link, self.scene.uplink).map(IpAddr::from),
        }
    }

    /// To an address of its own, where that lets it in.
    fn owned(&mut self) -> Option<(IpAddr, Packet)> {
        let rules = policy::node(&self.plan.node);
        let of = self.of;
        of.own.iter().find_map(|own| {
            let uplink = self.scene.uplink;
            let way = match own.address {
                IpAddr::V4(_) => &uplink.link,
                IpAddr::V6(_) => &uplink.link6,
            };
            let from = own.link.clone().or(way.clone());
            let packet = self.somebodys(from, own.address);
            let (kind, at) = (ChainKind::Nat, Point::Prerouting);
            let nat = decide(&rules, Family::Inet, kind, at, &packet)?;
            let Decided::DestinationHost(destination) = nat.verdict else {
                return None;
            };
            self.steps.push(step(Place::Node, nat));
            let packet = Packet {
                destination,
                ..packet
            };
            Some((destination, packet))
        })
    }

    fn somebodys(&self, from: Option<String>, destination: IpAddr) -> Packet {
        Packet {
            from,
            to: None,
            mac: network::guest_mac(SOMEBODY.four),
            source: SOMEBODY.like(destination),
            destination,
            is_ours: false,
            what: self.what(),
        }
    }

    /// To the node itself, by IPv4 where it has that.
    fn to_node(&self) -> Option<Packet> {
        let uplink = self.scene.uplink;
        let [four, six] = SOMEBODY.both();
        let to = |way: &Option<String>, like| {
            let link = way.clone()?;
            let own = self.own_of(&link, like)?;
            Some(Packet {
                is_ours: true,
                ..self.somebodys(Some(link), own)
            })
        };
        to(&uplink.link, four).or_else(|| to(&uplink.link6, six))
    }

    fn inward(mut self) -> Trace {
        if let Some((to, packet)) = self.owned() {
            let gets = format!("{} gets it at its own address", self.name_of(to));
            return self.published(to, &packet, &gets);
        }
        let Some((protocol, port)) = self.question.port else {
            return self.end(
                Outcome::Nowhere,
                "machines are reached from outside on published ports, and at addresses of their own on what these allow: name the node's port",
            );
        };
        let Some(packet) = self.to_node() else {
            return self.end(
                Outcome::Nowhere,
                "the node has no address that leads outside: `sifr node info` shows its links",
            );
        };
        let rules = policy::node(&self.plan.node);
        let (kind, at) = (ChainKind::Nat, Point::Prerouting);
        let nat = decide(&rules, Family::Inet, kind, at, &packet);
        let to = nat.as_ref().and_then(|nat| match nat.verdict {
            Decided::DestinationNat(to, inside) => Some((to, inside)),
            _ => None,
        });
        let Some((to, inside)) = to else {
            return match self.filter(Place::Node, &rules, (Family::Inet, Point::Input), &packet) {
                Some(()) => self.end(
                    Outcome::Delivered,
                    "the node itself answers on that port: no machine gets it",
                ),
                None => self.end(
                    Outcome::Dropped,
                    format!(
                        "{protocol} port {port} of the node leads to no machine that runs: publish it, `ports: [\"{port}:…\"]`"
                    ),
                ),
            };
        };
        let Some(name) = self.own_name(to) else {
            let message = format!(
                "{protocol} port {port} of the node leads to a machine of somebody else's: publish another"
            );
            return self.end(Outcome::Nowhere, message);
        };
        self.steps
            .extend(nat.map(|decision| step(Place::Node, decision)));
        let packet = Packet {
            destination: to,
            is_ours: false,
            what: What::Port(transport(protocol), inside),
            ..packet
        };
        let gets = format!("{name} gets it on {protocol} port {inside}");
        self.published(to, &packet, &gets)
    }

    /// On to the machine that a port leads to, for which `packet` is by now.
    fn published(mut self, to: IpAddr, packet: &Packet, gets: &str) -> Trace {
        let has = |tenant: &&Tenant| {
            let (four, six) = (tenant.policy.gateway, tenant.policy.gateway6);
            AnyCidr::from(four).contains(to) || AnyCidr::from(six).contains(to)
        };
        let Some(tenant) = self.plan.tenants.values().find(has) else {
            return self.end(Outcome::Nowhere, format!("{to} is in no network"));
        };
        let rules = policy::node(&self.plan.node);
        let packet = Packet {
            to: Some(tenant.network.host_link()),
            ..packet.clone()
        };
        if self
            .filter(Place::Node, &rules, (Family::Inet, Point::Forward), &packet)
            .is_none()
        {
            return self.stopped();
        }
        let packet = Packet {
            from: Some(WAN.to_owned()),
            to: Some(BRIDGE.to_owned()),
            ..packet
        };
        let rules = policy::tenant(&tenant.policy, &Counts::new());
        let at = (Family::Inet, Point::Forward);
        if self.filter(Place::Network, &rules, at, &packet).is_none() {
            return self.stopped();
        }
        let whose = self.cards().iter().any(|card| card.like(to) == to);
        let (outcome, but) = match whose {
            true => (Outcome::Delivered, ""),
            false => (Outcome::Nowhere, ", and not this machine"),
        };
        self.end(outcome, format!("{gets}{but}: what listens there decides"))
    }

    /// Where the last rule let it go no further.
    fn stopped(self) -> Trace {
        let last = self.steps.last();
        let refused = last.is_some_and(|step| step.verdict == "reject");
        let chain = last
            .and_then(|step| step.chains.last())
            .map_or("", String::as_str);
        let message = match policy::Attempt::ALL
            .iter()
            .find(|what| what.word() == chain)
        {
            Some(policy::Attempt::Private) => {
                "machines do not reach private networks, the node's own among them: publish what they need where they reach it"
            }
            Some(policy::Attempt::Tenants) => {
                "networks do not reach each other: put both machines on one network"
            }
            Some(policy::Attempt::Metadata) => {
                "link-local addresses are not reached: there is no metadata service"
            }
            Some(policy::Attempt::Outside) => "the network is internal: nothing leads out of it",
            Some(policy::Attempt::Node) => "of its gateway a machine reaches DNS and a few pings",
            _ => "no rule lets it through",
        };
        let outcome = if refused {
            Outcome::Refused
        } else {
            Outcome::Dropped
        };
        self.end(outcome, message)
    }

    fn name_of(&self, address: IpAddr) -> String {
        self.own_name(address)
            .unwrap_or_else(|| address.to_string())
    }

    /// A machine of the same signer. `None`: nothing is told of anybody else's.
    fn own_name(&self, address: IpAddr) -> Option<String> {
        let six = |card: &PlacedCard| network::address6(self.scene.ula, card.address);
        let is = |card: &PlacedCard| {
            IpAddr::V4(card.address) == address
                || six(card).is_some_and(|six| IpAddr::V6(six.address) == address)
        };
        let all = self.scene.places.machines.values();
        let mut own = all.filter(|placed| placed.key.signer == self.of.key.signer);
        let placed = own.find(|placed| placed.cards.iter().any(is))?;
        Some(format!(
            "{}/{} ({address})",
            placed.key.name, placed.workload
        ))
    }
}

fn step(place: Place, decision: Decision) -> Step {
    let verdict = match decision.verdict {
        Decided::Accept => "accept".to_owned(),
        Decided::Drop => "drop".to_owned(),
        Decided::Reject => "reject".to_owned(),
        Decided::Masquerade => "masquerade".to_owned(),
        Decided::DestinationNat(address, port) => SocketAddr::new(address, port).to_string(),
        Decided::DestinationHost(address) => address.to_string(),
        Decided::SourceNat(address) => format!("from {address}"),
    };
    Step {
        place,
        verdict,
        chains: decision.chains,
        rule: decision.rule,
        counter: decision.counter,
    }
}

#[cfg(test)]
#[path = "trace_tests.rs"]
mod tests;
