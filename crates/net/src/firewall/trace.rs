//! Which rule decides over a packet.
//!
//! Owns: walking the chains of a ruleset as the kernel walks them, for the first packet of a new connection.
//! Refuses: what depends on traffic: no limit counts as reached, and nothing is under way yet. Asking the kernel: the rules
//! are those of `policy`, which are what it was given.

use std::net::IpAddr;

use types::Mac;

use super::rule::{
    Chain, ChainKind, Count, EtherType, Family, Point, Policy, Rule, Ruleset, Table, Test,
    Transport, Verdict,
};
use super::words;

/// Jumps within jumps that are followed. The policies have one.
const DEPTH_MAX: usize = 8;
/// Type of ICMPv6 (RFC 4443 section 4.1).
const ECHO_REQUEST_6: u8 = 128;

/// A packet at one of the places where rules stand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packet {
    /// The link that it came in by. `None`: it is not known yet, or the node itself sends it.
    pub from: Option<String>,
    /// The link that it will leave by. `None`: it is not known yet, or it is for the node itself.
    pub to: Option<String>,
    pub mac: Mac,
    pub source: IpAddr,
    pub destination: IpAddr,
    /// The destination is an address of the namespace that the rules are of.
    pub is_ours: bool,
    pub what: What,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    /// An ICMP echo request.
    Ping,
    /// From a port that means nothing, to this one.
    Port(Transport, u16),
}

/// What one rule, or a chain's policy, has decided.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    pub verdict: Decided,
    /// The chains on the way, from the hook's own on.
    pub chains: Vec<String>,
    /// In the words of `nft`.
    pub rule: String,
    /// The counter that it raises, where that has a name.
    pub counter: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decided {
    Accept,
    Drop,
    Reject,
    /// The destination becomes this.
    DestinationNat(IpAddr, u16),
    DestinationHost(IpAddr),
    /// The source becomes this.
    SourceNat(IpAddr),
    /// The source becomes the address of the link that it leaves by.
    Masquerade,
}

/// What happens to it at this place. `None`: nothing stands there, or, of translation, nothing applies.
pub fn decide(
    ruleset: &Ruleset,
    family: Family,
    kind: ChainKind,
    point: Point,
    packet: &Packet,
) -> Option<Decision> {
    let of_family = |table: &&Table| table.family == family;
    let table = ruleset.tables.iter().find(of_family)?;
    let stands = |chain: &&Chain| {
        let hook = chain.hook.as_ref();
        hook.is_some_and(|hook| hook.kind == kind && hook.point == point)
    };
    let chain = table.chains.iter().find(stands)?;
    let walk = Walk { table, packet };
    let by_policy = || {
        let policy = chain.hook.as_ref()?.policy;
        let (verdict, word) = match policy {
            Policy::Accept => (Decided::Accept, "policy accept"),
            Policy::Drop => (Decided::Drop, "policy drop"),
        };
        (kind == ChainKind::Filter).then(|| Decision {
            verdict,
            chains: vec![chain.name.clone()],
            rule: word.to_owned(),
            counter: None,
        })
    };
    walk.through(chain, 0).or_else(by_policy)
}

struct Walk<'a> {
    table: &'a Table,
    packet: &'a Packet,
}

impl Walk<'_> {
    fn through(&self, chain: &Chain, depth: usize) -> Option<Decision> {
        let holds = |rule: &&Rule| rule.tests.iter().all(|test| holds(test, self.packet));
        let mut those = chain.rules.iter().filter(holds);
        let mut decision = those.find_map(|rule| self.by(rule, depth))?;
        decision.chains.insert(0, chain.name.clone());
        Some(decision)
    }

    fn by(&self, rule: &Rule, depth: usize) -> Option<Decision> {
        let verdict = match &rule.verdict {
            Verdict::Accept => Decided::Accept,
            Verdict::Drop => Decided::Drop,
            Verdict::Reject => Decided::Reject,
            Verdict::DestinationNat(address, port) => Decided::DestinationNat(*address, *port),
            Verdict::DestinationHost(address) => Decided::DestinationHost(*address),
            Verdict::SourceNat(address) => Decided::SourceNat(*address),
            Verdict::Masquerade => Decided::Masquerade,
            Verdict::Jump(name) => {
                let chain = self.table.chains.iter().find(|chain| chain.name == *name)?;
                return (depth < DEPTH_MAX).then(|| self.through(chain, depth + 1))?;
            }
        };
        let counter = match &rule.count {
            Count::In(name) => Some(name.clone()),
            Count::Nowhere | Count::Here => None,
        };
        Some(Decision {
            verdict,
            chains: Vec::new(),
            rule: words::rule(rule, self.table.family),
            counter,
        })
    }
}

fn holds(test: &Test, packet: &Packet) -> bool {
    let four = |address: IpAddr| match address {
        IpAddr::V4(address) => Some(address),
        IpAddr::V6(_) => None,
    };
    match test {
        Test::From(link) => packet.from.as_ref() == Some(link),
        Test::To(link) => packet.to.as_ref() == Some(link),
        Test::Ipv4 | Test::EtherType(EtherType::Ipv4) => packet.source.is_ipv4(),
        Test::Ipv6 | Test::EtherType(EtherType::Ipv6) => packet.source.is_ipv6(),
        Test::Source(prefix) => prefix.contains(packet.source),
        Test::SourceIsNot(address) => four(packet.source).is_some_and(|at| at != *address),
        Test::Destination(prefix) => prefix.contains(packet.destination),
        Test::DestinationIsOurs => packet.is_ours,
        Test::DestinationPort(transport, port) => packet.what == What::Port(*transport, *port),
        Test::Ping => packet.what == What::Ping && packet.source.is_ipv4(),
        Test::Icmp6(kind) => {
            let is_ping = packet.what == What::Ping && packet.source.is_ipv6();
            is_ping && *kind == ECHO_REQUEST_6
        }
        Test::LinkLocal => match packet.source {
            IpAddr::V4(_) => false,
            IpAddr::V6(address) => address.is_unicast_link_local(),
        },
        Test::Source6Is(address) => packet.source == IpAddr::V6(*address),
        Test::ToGroup => match packet.destination {
            IpAddr::V4(at) => at.is_multicast() || at.is_broadcast(),
            IpAddr::V6(at) => at.is_multicast(),
        },
        Test::EtherSourceIsNot(mac) => packet.mac != *mac,
        // Below every limit.
        Test::PerSecond { .. } => true,
        Test::OverPerSecond { .. } | Test::MoreConnectionsThan(_) => false,
        // The first of a connection, from a client's port, which came through a router for all that is known.
        Test::Established | Test::Invalid | Test::SourcePort(..) | Test::Neighbour => false,
        // Of ARP and of neighbours.
        Test::EtherType(EtherType::Arp) | Test::ArpSender(..) | Test::TargetIs(_) => false,
    }
}

#[cfg(test)]
#[path = "trace_tests.rs"]
mod tests;
