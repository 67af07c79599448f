//! What may speak to what: the node's policies as rules.
//!
//! Owns: the default-deny policies of the node's own namespace and of tenant namespaces.
//! Refuses: exceptions that are not named in its inputs. IPv6 is the node's own: it is dropped in tenant networks.

use std::net::Ipv4Addr;

use types::{Cidr, Mac};

use super::rule::{
    Chain, ChainKind, EtherType, Family, Hook, Point, Policy, Rule, Ruleset, Table, Test,
    Transport, Verdict,
};
use crate::network::{BRIDGE, WAN};

/// The node's own namespace.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Node {
    /// Names of the machine's Ethernet ports.
    pub uplinks: Vec<String>,
    /// TCP ports of the node that are open on the uplinks.
    pub open_ports: Vec<u16>,
    pub tenants: Vec<NodeTenant>,
}

/// A tenant network, as the node's namespace sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeTenant {
    /// `Network::host_link`.
    pub link: String,
    pub subnet: Cidr,
    pub published: Vec<Published>,
}

/// A port of the node that leads to a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Published {
    pub transport: Transport,
    pub node_port: u16,
    pub address: Ipv4Addr,
    pub port: u16,
}

/// A tenant's namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tenant {
    /// `Network::gateway`.
    pub gateway: Cidr,
    /// The node's own addresses and the prefixes on its uplinks: refused beside [`PRIVATE`].
    pub refused: Vec<Cidr>,
    /// Nothing leads out of it.
    pub internal: bool,
    pub guests: Vec<Guest>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Guest {
    /// `TapSpec::name`.
    pub tap: String,
    pub mac: Mac,
    pub address: Ipv4Addr,
    /// Ports of the guest that are published.
    pub ports: Vec<(Transport, u16)>,
}

/// What no guest may speak to through the node (RFC 6890): whatever is somebody's own network, and
/// whatever is no unicast address on the internet.
pub const PRIVATE: [(Ipv4Addr, u8); 11] = [
    (Ipv4Addr::new(0, 0, 0, 0), 8),
    (Ipv4Addr::new(10, 0, 0, 0), 8),
    (Ipv4Addr::new(100, 64, 0, 0), 10),
    (Ipv4Addr::new(127, 0, 0, 0), 8),
    (Ipv4Addr::new(169, 254, 0, 0), 16),
    (Ipv4Addr::new(172, 16, 0, 0), 12),
    (Ipv4Addr::new(192, 0, 0, 0), 24),
    (Ipv4Addr::new(192, 168, 0, 0), 16),
    (Ipv4Addr::new(198, 18, 0, 0), 15),
    (Ipv4Addr::new(224, 0, 0, 0), 4),
    (Ipv4Addr::new(240, 0, 0, 0), 4),
];

/// Where filters stand among other users of the hook (NF_IP_PRI_FILTER, NF_BR_PRI_FILTER_BRIDGED).
const FILTER: i32 = 0;
const FILTER_BRIDGED: i32 = -200;
/// NF_IP_PRI_NAT_DST and NF_IP_PRI_NAT_SRC.
const NAT_DESTINATION: i32 = -100;
const NAT_SOURCE: i32 = 100;
/// Echo requests answered a second, and at once: enough for people, too little to load the node.
const PING: Test = Test::PerSecond {
    rate: 10,
    burst: 20,
};
const DHCP_SERVER: u16 = 67;
const DHCP_CLIENT: u16 = 68;
const DNS: u16 = 53;

fn rule<const N: usize>(tests: [Test; N], verdict: Verdict) -> Rule {
    Rule {
        tests: tests.into(),
        counter: false,
        verdict,
    }
}

fn counted<const N: usize>(tests: [Test; N], verdict: Verdict) -> Rule {
    Rule {
        counter: true,
        ..rule(tests, verdict)
    }
}

fn chain(name: impl Into<String>, rules: Vec<Rule>) -> Chain {
    Chain {
        name: name.into(),
        hook: None,
        rules,
    }
}

fn filter(name: &str, point: Point, priority: i32, rules: Vec<Rule>) -> Chain {
    let hook = Hook {
        kind: ChainKind::Filter,
        point,
        priority,
        policy: Policy::Drop,
    };
    Chain {
        name: name.to_owned(),
        hook: Some(hook),
        rules,
    }
}

fn nat(name: &str, point: Point, priority: i32, rules: Vec<Rule>) -> Chain {
    let hook = Hook {
        kind: ChainKind::Nat,
        point,
        priority,
        policy: Policy::Accept,
    };
    Chain {
        name: name.to_owned(),
        hook: Some(hook),
        rules,
    }
}

/// What every filter of connections begins with.
fn connections() -> [Rule; 2] {
    [
        rule([Test::Established], Verdict::Accept),
        rule([Test::Invalid], Verdict::Drop),
    ]
}

fn jump(test: Test, chain: &str) -> Rule {
    rule([test], Verdict::Jump(chain.to_owned()))
}

fn host(address: Ipv4Addr) -> Cidr {
    Cidr::new(address, 32).expect("32 is a prefix length")
}

fn tcp(port: u16) -> Test {
    Test::DestinationPort(Transport::Tcp, port)
}

/// The rules of the node's own namespace.
pub fn node(policy: &Node) -> Ruleset {
    let Node {
        uplinks, tenants, ..
    } = policy;
    let jumps = |test: fn(String) -> Test, chain: &str| -> Vec<Rule> {
        uplinks
            .iter()
            .map(|uplink| jump(test(uplink.clone()), chain))
            .collect()
    };
    let mut input = Vec::from(connections());
    input.push(rule([Test::From("lo".to_owned())], Verdict::Accept));
    input.extend(jumps(Test::From, "uplink"));
    input.push(counted([], Verdict::Drop));
    let mut forward = Vec::from(connections());
    forward.extend(jumps(Test::To, "outward"));
    forward.extend(jumps(Test::From, "inward"));
    forward.push(counted([], Verdict::Drop));
    let (published, translated) = (
        jumps(Test::From, "published"),
        jumps(Test::To, "translated"),
    );
    let chains = vec![
        chain("uplink", from_uplink(&policy.open_ports)),
        chain("outward", tenants.iter().map(outward).collect()),
        chain("inward", tenants.iter().flat_map(inward).collect()),
        chain(
            "published",
            tenants
                .iter()
                .flat_map(|t| &t.published)
                .map(publish)
                .collect(),
        ),
        chain("translated", tenants.iter().map(translate).collect()),
        filter("input", Point::Input, FILTER, input),
        filter("forward", Point::Forward, FILTER, forward),
        nat("prerouting", Point::Prerouting, NAT_DESTINATION, published),
        nat("postrouting", Point::Postrouting, NAT_SOURCE, translated),
    ];
    Ruleset {
        tables: vec![Table {
            family: Family::Inet,
            chains,
        }],
    }
}

/// What the node itself takes from an uplink. (Its DHCP client reads below the firewall; that rule keeps
/// the reply to a renewal from being counted as dropped.)
fn from_uplink(open_ports: &[u16]) -> Vec<Rule> {
    let dhcp = [
        Test::SourcePort(Transport::Udp, DHCP_SERVER),
        Test::DestinationPort(Transport::Udp, DHCP_CLIENT),
    ];
    let mut rules = vec![
        rule([Test::Ping, PING], Verdict::Accept),
        rule(dhcp, Verdict::Accept),
    ];
    rules.extend(
        open_ports
            .iter()
            .map(|port| rule([tcp(*port)], Verdict::Accept)),
    );
    rules.extend(of_ipv6_links());
    rules
}

const DHCP6_SERVER: u16 = 547;
const DHCP6_CLIENT: u16 = 546;
/// Types of ICMPv6 (RFC 4443, RFC 4861, RFC 2710). Errors, such as that a packet is too big for the way, belong to
/// connections and pass with those.
const ECHO_REQUEST: u8 = 128;
const LISTENER_QUERY: u8 = 130;
const ROUTER_ADVERTISEMENT: u8 = 134;
const NEIGHBOUR_SOLICITATION: u8 = 135;
const NEIGHBOUR_ADVERTISEMENT: u8 = 136;

/// Without which a link has no IPv6 (RFC 4890 section 4.4): neighbours find each other, routers say what they know, switches
/// learn which groups to bring, and servers answer the DHCPv6 client, which asks a group and so is of no connection. Nothing
/// of it comes from beyond the link.
fn of_ipv6_links() -> [Rule; 6] {
    let accept = |tests: Vec<Test>| Rule {
        tests,
        ..rule([], Verdict::Accept)
    };
    let dhcp = vec![
        Test::LinkLocal,
        Test::SourcePort(Transport::Udp, DHCP6_SERVER),
        Test::DestinationPort(Transport::Udp, DHCP6_CLIENT),
    ];
    let neighbour = |kind| accept(vec![Test::Icmp6(kind), Test::Neighbour]);
    [
        accept(vec![Test::Icmp6(ECHO_REQUEST), PING]),
        neighbour(NEIGHBOUR_SOLICITATION),
        neighbour(NEIGHBOUR_ADVERTISEMENT),
        accept(vec![
            Test::Icmp6(ROUTER_ADVERTISEMENT),
            Test::Neighbour,
            Test::LinkLocal,
        ]),
        accept(vec![Test::Icmp6(LISTENER_QUERY), Test::LinkLocal]),
        accept(dhcp),
    ]
}

/// A tenant's packets may leave by an uplink, under its own addresses only.
fn outward(tenant: &NodeTenant) -> Rule {
    let source = Test::Source(tenant.subnet.network());
    rule([Test::From(tenant.link.clone()), source], Verdict::Accept)
}

/// Packets to published ports may go in; their destination has been rewritten by then.
fn inward(tenant: &NodeTenant) -> impl Iterator<Item = Rule> {
    tenant.published.iter().map(|published| {
        let to = Test::To(tenant.link.clone());
        let address = Test::Destination(host(published.address));
        let port = Test::DestinationPort(published.transport, published.port);
        rule([to, address, port], Verdict::Accept)
    })
}

/// What is addressed to the node, and not what an uplink merely brought along for another machine.
fn publish(published: &Published) -> Rule {
    let Published {
        transport,
        node_port,
        address,
        port,
    } = *published;
    rule(
        [
            Test::Ipv4,
            Test::DestinationPort(transport, node_port),
            Test::DestinationIsOurs,
        ],
        Verdict::DestinationNat(address, port),
    )
}

/// Packets of a tenant leave under the node's address.
fn translate(tenant: &NodeTenant) -> Rule {
    rule([Test::Source(tenant.subnet.network())], Verdict::Masquerade)
}

/// The rules of one tenant's namespace, bridge family included.
pub fn tenant(policy: &Tenant) -> Ruleset {
    let inet = Table {
        family: Family::Inet,
        chains: vec![
            filter("input", Point::Input, FILTER, to_gateway(policy)),
            filter("forward", Point::Forward, FILTER, through_gateway(policy)),
        ],
    };
    let name = |guest: &Guest| format!("from-{}", guest.tap);
    let mut chains: Vec<Chain> = policy
        .guests
        .iter()
        .map(|guest| chain(name(guest), from_guest(guest)))
        .collect();
    let mut frames: Vec<Rule> = policy
        .guests
        .iter()
        .map(|guest| jump(Test::From(guest.tap.clone()), &name(guest)))
        .collect();
    frames.push(counted([], Verdict::Drop));
    chains.push(filter(
        "prerouting",
        Point::Prerouting,
        FILTER_BRIDGED,
        frames,
    ));
    Ruleset {
        tables: vec![
            inet,
            Table {
                family: Family::Bridge,
                chains,
            },
        ],
    }
}

/// Guests reach the gateway's DNS forwarder and may ping it.
fn to_gateway(policy: &Tenant) -> Vec<Rule> {
    let from = || Test::From(BRIDGE.to_owned());
    let gateway = || Test::Destination(host(policy.gateway.address));
    let mut rules = Vec::from(connections());
    rules.extend([
        rule([Test::From("lo".to_owned())], Verdict::Accept),
        rule(
            [
                from(),
                gateway(),
                Test::DestinationPort(Transport::Udp, DNS),
            ],
            Verdict::Accept,
        ),
        rule([from(), gateway(), tcp(DNS)], Verdict::Accept),
        rule([from(), gateway(), Test::Ping, PING], Verdict::Accept),
        counted([], Verdict::Drop),
    ]);
    rules
}

/// Guests reach the internet and each other; published ports reach guests.
fn through_gateway(policy: &Tenant) -> Vec<Rule> {
    let (inside, outside) = (BRIDGE.to_owned(), WAN.to_owned());
    let subnet = policy.gateway.network();
    let (from, to) = (Test::From(inside.clone()), Test::To(inside.clone()));
    let among = [
        from.clone(),
        to,
        Test::Source(subnet),
        Test::Destination(subnet),
    ];
    let mut rules = Vec::from(connections());
    rules.push(rule(among, Verdict::Accept));
    let private = PRIVATE
        .iter()
        .filter_map(|(address, prefix)| Cidr::new(*address, *prefix));
    for prefix in private.chain(policy.refused.iter().map(Cidr::network)) {
        rules.push(counted(
            [from.clone(), Test::Destination(prefix)],
            Verdict::Reject,
        ));
    }
    let outward = [from, Test::To(outside.clone()), Test::Source(subnet)];
    rules.push(match policy.internal {
        // Said at once, so that no program waits for its time to be up.
        true => counted(outward, Verdict::Reject),
        false => rule(outward, Verdict::Accept),
    });
    for guest in &policy.guests {
        let inward = |(transport, port): &(Transport, u16)| {
            let (from, to) = (Test::From(outside.clone()), Test::To(inside.clone()));
            let port = Test::DestinationPort(*transport, *port);
            rule(
                [from, to, Test::Destination(host(guest.address)), port],
                Verdict::Accept,
            )
        };
        rules.extend(guest.ports.iter().map(inward));
    }
    rules.push(counted([], Verdict::Drop));
    rules
}

/// A guest speaks as itself only: its MAC, its address, ARP and IPv4, and is no DHCP server.
fn from_guest(guest: &Guest) -> Vec<Rule> {
    let ip = || Test::EtherType(EtherType::Ipv4);
    let arp = [
        Test::EtherType(EtherType::Arp),
        Test::ArpSender(guest.mac, guest.address),
    ];
    let dhcp = Test::SourcePort(Transport::Udp, DHCP_SERVER);
    vec![
        counted([Test::EtherSourceIsNot(guest.mac)], Verdict::Drop),
        rule(arp, Verdict::Accept),
        counted([Test::SourceIsNot(guest.address)], Verdict::Drop),
        counted([ip(), dhcp], Verdict::Drop),
        rule([ip()], Verdict::Accept),
        counted([], Verdict::Drop),
    ]
}

#[cfg(test)]
pub(crate) mod tests;
