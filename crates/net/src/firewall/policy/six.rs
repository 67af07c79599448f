//! What IPv6 needs on a link, as rules.
//!
//! Owns: neighbours, routers and DHCPv6: on the node's links, between it and a network, and between a network's gateway and its guests;
//! under which addresses a guest speaks. Refuses: what goes on from link to link: those are the rules of both families (`policy`).

use std::net::{IpAddr, Ipv6Addr};

use types::{AnyCidr, Cidr, Cidr6};

use super::{Attempt, Guest, PING, Tenant, attempt, rule};
use crate::firewall::rule::{EtherType, Rule, Test, Transport, Verdict};
use crate::network::{BRIDGE, WAN, guest_mac, link_local};

const DHCP6_SERVER: u16 = 547;
const DHCP6_CLIENT: u16 = 546;
/// Types of ICMPv6 (RFC 4443, RFC 4861, RFC 2710, RFC 3810). Errors, such as that a packet is too big for the way, belong to
/// connections and pass with those.
const ECHO_REQUEST: u8 = 128;
const LISTENER_QUERY: u8 = 130;
const ROUTER_SOLICITATION: u8 = 133;
const ROUTER_ADVERTISEMENT: u8 = 134;
const NEIGHBOUR_SOLICITATION: u8 = 135;
const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
const REDIRECT: u8 = 137;
const LISTENER_REPORT: u8 = 143;
/// Questions for a router of one guest, and at once: it asks when its card comes up, some three times. Each is answered by the node agent.
const SOLICITATIONS: Test = Test::OverPerSecond { rate: 1, burst: 5 };

pub(in crate::firewall) fn ping() -> Test {
    Test::Icmp6(ECHO_REQUEST)
}

fn accept(tests: Vec<Test>) -> Rule {
    Rule {
        tests,
        ..rule([], Verdict::Accept)
    }
}

/// Nothing of it comes from beyond the link.
fn neighbour(kind: u8) -> [Test; 2] {
    [Test::Icmp6(kind), Test::Neighbour]
}

/// Two that are on one link find each other.
pub(super) fn neighbours() -> [Rule; 2] {
    [NEIGHBOUR_SOLICITATION, NEIGHBOUR_ADVERTISEMENT].map(|kind| accept(neighbour(kind).into()))
}

/// Without which a link has no IPv6 (RFC 4890 section 4.4): neighbours find each other, routers say what they know, switches
/// learn which groups to bring, and servers answer the DHCPv6 client, which asks a group and so is of no connection. Nothing
/// of it comes from beyond the link.
pub(super) fn of_uplinks() -> impl Iterator<Item = Rule> {
    let dhcp = vec![
        Test::LinkLocal,
        Test::SourcePort(Transport::Udp, DHCP6_SERVER),
        Test::DestinationPort(Transport::Udp, DHCP6_CLIENT),
    ];
    let [kind, near] = neighbour(ROUTER_ADVERTISEMENT);
    let others = [
        accept(vec![kind, near, Test::LinkLocal]),
        accept(vec![Test::Icmp6(LISTENER_QUERY), Test::LinkLocal]),
        accept(dhcp),
    ];
    let first = [accept(vec![ping(), PING])];
    first.into_iter().chain(neighbours()).chain(others)
}

impl Tenant {
    /// Under both addresses that the gateway has of IPv6.
    fn gateway6(&self) -> [Ipv6Addr; 2] {
        let local = link_local(guest_mac(self.gateway.address));
        [self.gateway6.address, local]
    }

    /// The node's part of fd00::/8, which all its networks are of.
    pub(super) fn ours(&self) -> Cidr6 {
        let ours = Cidr6::new(self.gateway6.address, 48).expect("48 is a prefix length");
        ours.network()
    }
}

/// Guests find the gateway, ask it whether it leads outside, and may ping it; what they say to groups is meant for no node. By the other
/// link the gateway and the node find each other.
pub(super) fn to_gateway(policy: &Tenant) -> impl Iterator<Item = Rule> {
    let on = |link: &'static str| {
        move |mut rule: Rule| {
            rule.tests.insert(0, Test::From(link.to_owned()));
            rule
        }
    };
    let asks = accept(neighbour(ROUTER_SOLICITATION).into());
    let ping = |address: Ipv6Addr| {
        let to = Test::Destination(Cidr::host(IpAddr::from(address)));
        accept(vec![to, ping(), PING])
    };
    let groups = Cidr6::new(Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0), 8);
    let groups = groups.expect("8 is a prefix length");
    let groups = rule([Test::Destination(AnyCidr::from(groups))], Verdict::Drop);
    let guests = neighbours().into_iter().chain([asks, groups]);
    let pings = policy.gateway6().map(ping);
    let guests = guests.chain(pings).map(on(BRIDGE));
    guests.chain(neighbours().map(on(WAN)))
}

/// A guest speaks under the address that it was given and that of its card alone, which it defends and nobody else's; it is
/// no router.
pub(super) fn from_guest(guest: &Guest) -> Vec<Rule> {
    let own = guest.addresses6();
    let any = || Test::EtherType(EtherType::Ipv6);
    let nobody = || Test::Source6Is(Ipv6Addr::UNSPECIFIED);
    let router = |tests: [Test; 1]| attempt(guest, Attempt::Router, tests, Verdict::Drop);
    let server = [any(), Test::SourcePort(Transport::Udp, DHCP6_SERVER)];
    let (asks, answers) = (
        || Test::Icmp6(NEIGHBOUR_SOLICITATION),
        || Test::Icmp6(NEIGHBOUR_ADVERTISEMENT),
    );
    let looks = || Test::Icmp6(ROUTER_SOLICITATION);
    let mut rules = vec![
        router([Test::Icmp6(ROUTER_ADVERTISEMENT)]),
        router([Test::Icmp6(REDIRECT)]),
        attempt(guest, Attempt::Router, server, Verdict::Drop),
        rule([looks(), SOLICITATIONS], Verdict::Drop),
    ];
    // Without an address yet: which it is about to take, what it wants to hear, and who leads outside.
    let own_asked =
        own.map(|address| rule([nobody(), asks(), Test::TargetIs(address)], Verdict::Accept));
    rules.extend(own_asked);
    rules.push(rule(
        [nobody(), Test::Icmp6(LISTENER_REPORT)],
        Verdict::Accept,
    ));
    rules.push(rule([nobody(), looks()], Verdict::Accept));
    let own_answered =
        own.map(|address| rule([answers(), Test::TargetIs(address)], Verdict::Accept));
    rules.extend(own_answered);
    rules.push(attempt(
        guest,
        Attempt::Neighbour,
        [answers()],
        Verdict::Drop,
    ));
    rules.extend(own.map(|address| rule([Test::Source6Is(address)], Verdict::Accept)));
    rules.push(attempt(guest, Attempt::Address, [any()], Verdict::Drop));
    rules
}
