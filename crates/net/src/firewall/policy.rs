//! What may speak to what: the node's policies as rules.
//!
//! Owns: the default-deny policies of the node's own namespace and of tenant namespaces.
//! Refuses: exceptions that are not named in its inputs. IPv6 is the node's own, and in tenant networks their own: it leaves
//! none.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, Ipv6Addr};

use types::{Cidr, Mac};

use super::Counts;
use super::owned;
pub use super::owned::{Let, Owned};
use super::rule::{
    Chain, ChainKind, Count, EtherType, Family, Hook, Point, Policy, Rule, Ruleset, Table, Tally,
    Test, Transport, Verdict,
};
use crate::network::{BRIDGE, MESH, WAN, gateway_of, link_local};

/// The node's own namespace.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Node {
    /// Names of the machine's Ethernet ports.
    pub uplinks: Vec<String>,
    /// TCP ports of the node that are open on the uplinks.
    pub open_ports: Vec<u16>,
    /// UDP ports of networks across nodes. Nothing but WireGuard hears at them.
    pub mesh_ports: Vec<u16>,
    pub tenants: Vec<NodeTenant>,
}

/// A tenant network, as the node's namespace sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeTenant {
    /// `Network::host_link`.
    pub link: String,
    pub subnet: Cidr,
    pub published: Vec<Published>,
    /// Addresses of guests' own.
    pub owned: Vec<Owned>,
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
    /// The node's own addresses and the prefixes on its uplinks: refused beside all that is private (RFC 6890).
    pub refused: Vec<Cidr>,
    /// Nothing leads out of it.
    pub internal: bool,
    /// Its subnets on other nodes.
    pub peers: Vec<Cidr>,
    pub guests: Vec<Guest>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Guest {
    /// `TapSpec::name`.
    pub tap: String,
    pub mac: Mac,
    pub address: Ipv4Addr,
    pub address6: Ipv6Addr,
    /// Ports of the guest that are published.
    pub ports: Vec<(Transport, u16)>,
    /// What comes in to addresses of its own.
    pub lets: Vec<Let>,
}

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
/// What a guest may send to several at once: names and neighbours are found so, and each packet wakes all others.
const GROUPS: Test = Test::OverPerSecond {
    rate: 200,
    burst: 400,
};
const DHCP_SERVER: u16 = 67;
const DHCP_CLIENT: u16 = 68;
/// Types of ICMPv6 (RFC 4861).
const ROUTER_SOLICITATION: u8 = 133;
const REDIRECT: u8 = 137;
const LISTENER_REPORT: u8 = 143;
const DNS: u16 = 53;

pub(super) fn rule<const N: usize>(tests: [Test; N], verdict: Verdict) -> Rule {
    Rule {
        tests: tests.into(),
        count: Count::Nowhere,
        verdict,
    }
}

fn counted<const N: usize>(tests: [Test; N], verdict: Verdict) -> Rule {
    Rule {
        count: Count::Here,
        ..rule(tests, verdict)
    }
}

/// What a guest tried and was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Attempt {
    /// Under another MAC.
    Mac,
    /// ARP under another's address, or another's MAC in it.
    Arp,
    /// IP under another address.
    Address,
    /// To answer for another's address of IPv6.
    Neighbour,
    /// More to several at once than [`GROUPS`].
    Multicast,
    /// As a DHCP server.
    Dhcp,
    /// As a router or DHCP server of IPv6, or with a redirect.
    Router,
    /// Frames of other protocols.
    Frame,
    /// To the node itself, or the gateway, beyond DNS and a few pings.
    Node,
    /// To link-local addresses, where clouds have their metadata.
    Metadata,
    /// To other networks of this node.
    Tenants,
    /// To the owner's networks, or other addresses that are nobody's on the internet.
    Private,
    /// Out of a network that has no way out.
    Outside,
    /// More connections than [`CONNECTIONS_MAX`].
    Connections,
}

/// Connections of one guest outward at a time, and as many inward: an ordinary server's, and a few MiB of the node's memory.
pub const CONNECTIONS_MAX: u32 = 4096;

impl Attempt {
    pub const ALL: [Self; 14] = [
        Self::Mac,
        Self::Arp,
        Self::Address,
        Self::Neighbour,
        Self::Multicast,
        Self::Dhcp,
        Self::Router,
        Self::Frame,
        Self::Node,
        Self::Metadata,
        Self::Tenants,
        Self::Private,
        Self::Outside,
        Self::Connections,
    ];

    /// One that never changes: it stands in metrics.
    pub fn word(self) -> &'static str {
        match self {
            Self::Mac => "mac",
            Self::Arp => "arp",
            Self::Address => "address",
            Self::Neighbour => "neighbour",
            Self::Multicast => "multicast",
            Self::Dhcp => "dhcp",
            Self::Router => "router",
            Self::Frame => "frame",
            Self::Node => "node",
            Self::Metadata => "metadata",
            Self::Tenants => "tenants",
            Self::Private => "private",
            Self::Outside => "outside",
            Self::Connections => "connections",
        }
    }

    /// The counter of a guest with this TAP.
    pub fn counter(self, tap: &str) -> String {
        format!("{tap}-{}", self.word())
    }

    /// Which table's rules see it.
    fn family(self) -> Family {
        match self {
            Self::Mac
            | Self::Arp
            | Self::Address
            | Self::Neighbour
            | Self::Multicast
            | Self::Dhcp
            | Self::Router
            | Self::Frame => Family::Bridge,
            Self::Node
            | Self::Metadata
            | Self::Tenants
            | Self::Private
            | Self::Outside
            | Self::Connections => Family::Inet,
        }
    }
}

/// An attempt, in the counter of who made it.
fn attempt<const N: usize>(
    guest: &Guest,
    what: Attempt,
    tests: [Test; N],
    verdict: Verdict,
) -> Rule {
    Rule {
        count: Count::In(what.counter(&guest.tap)),
        ..rule(tests, verdict)
    }
}

/// The counters of one table, going on from before.
fn tallies(guests: &[Guest], family: Family, before: &Counts) -> Vec<Tally> {
    let seen = Attempt::ALL
        .into_iter()
        .filter(move |what| what.family() == family);
    let names = guests
        .iter()
        .flat_map(|guest| seen.clone().map(move |what| what.counter(&guest.tap)));
    let tally = |name: String| {
        let super::Counted { packets, bytes } = before.get(&name).copied().unwrap_or_default();
        Tally {
            name,
            packets,
            bytes,
        }
    };
    names.map(tally).collect()
}

/// A chain for what is refused: each guest's in its own counter, what is nobody's in the last rule's.
fn refusing(policy: &Tenant, what: Attempt, verdict: &Verdict) -> Chain {
    let of = |guest: &Guest| {
        let source = Test::Source(host(guest.address));
        attempt(guest, what, [source], verdict.clone())
    };
    let mut rules: Vec<Rule> = policy.guests.iter().map(of).collect();
    rules.push(counted([], verdict.clone()));
    chain(what.word(), rules)
}

/// A chain that lets pass who has not too much under way already.
fn connections_of(policy: &Tenant) -> Chain {
    let of = |guest: &Guest| {
        let source = Test::Source(host(guest.address));
        let over = Test::MoreConnectionsThan(CONNECTIONS_MAX);
        attempt(guest, Attempt::Connections, [source, over], Verdict::Drop)
    };
    let rules = policy.guests.iter().map(of).collect();
    chain(Attempt::Connections.word(), rules)
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

pub(super) fn host(address: Ipv4Addr) -> Cidr {
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
        chain("uplink", from_uplink(policy)),
        chain("outward", tenants.iter().flat_map(outward).collect()),
        chain("inward", tenants.iter().flat_map(inward).collect()),
        chain(
            "published",
            // Those of guests' own addresses first, where the owner's and the node's are one by mistake.
            owned::to_guests(tenants)
                .chain(tenants.iter().flat_map(|t| &t.published).map(publish))
                .collect(),
        ),
        chain(
            "translated",
            owned::from_guests(tenants)
                .chain(tenants.iter().map(translate))
                .collect(),
        ),
        filter("input", Point::Input, FILTER, input),
        filter("forward", Point::Forward, FILTER, forward),
        nat("prerouting", Point::Prerouting, NAT_DESTINATION, published),
        nat("postrouting", Point::Postrouting, NAT_SOURCE, translated),
    ];
    Ruleset {
        tables: vec![Table {
            family: Family::Inet,
            counters: Vec::new(),
            chains,
        }],
    }
}

/// What the node itself takes from an uplink. (Its DHCP client reads below the firewall; that rule keeps
/// the reply to a renewal from being counted as dropped.)
fn from_uplink(policy: &Node) -> Vec<Rule> {
    let dhcp = [
        Test::SourcePort(Transport::Udp, DHCP_SERVER),
        Test::DestinationPort(Transport::Udp, DHCP_CLIENT),
    ];
    let mut rules = vec![
        rule([Test::Ping, PING], Verdict::Accept),
        rule(dhcp, Verdict::Accept),
    ];
    let udp = |port: &u16| Test::DestinationPort(Transport::Udp, *port);
    let open = policy.open_ports.iter().map(|port| tcp(*port));
    let open = open.chain(policy.mesh_ports.iter().map(udp));
    rules.extend(open.map(|port| rule([port], Verdict::Accept)));
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

/// A tenant's packets may leave by an uplink, under its own addresses only. What its gateway begins is for machines, here and on other
/// nodes: where there is no way to those any more, it is not for whoever else has such an address.
fn outward(tenant: &NodeTenant) -> [Rule; 2] {
    let from = |source| [Test::From(tenant.link.clone()), Test::Source(source)];
    let gateway = host(gateway_of(&tenant.subnet));
    [
        counted(from(gateway), Verdict::Drop),
        rule(from(tenant.subnet.network()), Verdict::Accept),
    ]
}

/// Packets to published ports may go in; their destination has been rewritten by then. Those to a machine that has too many
/// connections already may not: they would take the room of all others.
fn inward(tenant: &NodeTenant) -> impl Iterator<Item = Rule> {
    let to = || Test::To(tenant.link.clone());
    let published = tenant.published.iter().map(|p| p.address);
    let owners = tenant.owned.iter().map(|owned| owned.inside);
    let machines: BTreeSet<Ipv4Addr> = published.chain(owners).collect();
    let bound = move |address: Ipv4Addr| {
        let over = Test::MoreConnectionsThan(CONNECTIONS_MAX);
        counted(
            [to(), Test::Destination(host(address)), over],
            Verdict::Drop,
        )
    };
    let accept = move |published: &Published| {
        let address = Test::Destination(host(published.address));
        let port = Test::DestinationPort(published.transport, published.port);
        rule([to(), address, port], Verdict::Accept)
    };
    let accepted = tenant.published.iter().map(accept);
    let bounds = machines.into_iter().map(bound);
    bounds.chain(accepted).chain(owned::let_in(tenant))
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

/// The rules of one tenant's namespace, bridge family included. Its counters go on from `before`.
pub fn tenant(policy: &Tenant, before: &Counts) -> Ruleset {
    let refused = [
        Attempt::Metadata,
        Attempt::Tenants,
        Attempt::Private,
        Attempt::Outside,
    ];
    let mut chains = vec![
        connections_of(policy),
        refusing(policy, Attempt::Node, &Verdict::Drop),
    ];
    // Said at once, so that no program waits for its time to be up.
    chains.extend(refused.map(|what| refusing(policy, what, &Verdict::Reject)));
    chains.extend([
        filter("input", Point::Input, FILTER, to_gateway(policy)),
        filter("forward", Point::Forward, FILTER, through_gateway(policy)),
    ]);
    let inet = Table {
        family: Family::Inet,
        counters: tallies(&policy.guests, Family::Inet, before),
        chains,
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
                counters: tallies(&policy.guests, Family::Bridge, before),
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
    let group = Cidr::new(Ipv4Addr::new(224, 0, 0, 0), 4).expect("4 is a prefix length");
    let [a, b, c, _] = policy.gateway.address.octets();
    let to_all = [
        group,
        host(Ipv4Addr::BROADCAST),
        host(Ipv4Addr::new(a, b, c, 255)),
    ];
    // Programs say such things to whoever may hear: it is meant for no node.
    rules.extend(to_all.map(|all| rule([from(), Test::Destination(all)], Verdict::Drop)));
    rules.extend(from_peers(policy));
    rules.extend([
        rule([Test::From("lo".to_owned())], Verdict::Accept),
        jump(from(), Attempt::Connections.word()),
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
        jump(from(), Attempt::Node.word()),
        counted([], Verdict::Drop),
    ]);
    rules
}

/// Other nodes' gateways ask for names, and machines there may ping.
fn from_peers(policy: &Tenant) -> Vec<Rule> {
    let from = || Test::From(MESH.to_owned());
    let gateway = || Test::Destination(host(policy.gateway.address));
    let mut rules = Vec::new();
    for peer in &policy.peers {
        let asker = Test::Source(host(gateway_of(peer)));
        let dns = Test::DestinationPort(Transport::Udp, DNS);
        let source = Test::Source(peer.network());
        rules.push(rule([from(), asker, gateway(), dns], Verdict::Accept));
        rules.push(rule(
            [from(), source, gateway(), Test::Ping, PING],
            Verdict::Accept,
        ));
    }
    if !policy.peers.is_empty() {
        rules.push(counted([from()], Verdict::Drop));
    }
    rules
}

/// Guests and those of other nodes' parts of the network reach each other, as the gateways there do (names of ingress lead them), and
/// nothing else comes from there.
fn across(policy: &Tenant) -> Vec<Rule> {
    let (bridge, mesh) = (BRIDGE.to_owned(), MESH.to_owned());
    let subnet = policy.gateway.network();
    let mut rules = Vec::new();
    // As to published ports: who comes from there is bounded by nobody else here.
    for guest in policy.guests.iter().filter(|_| !policy.peers.is_empty()) {
        let (from, to) = (Test::From(mesh.clone()), Test::To(bridge.clone()));
        let over = Test::MoreConnectionsThan(CONNECTIONS_MAX);
        let machine = Test::Destination(host(guest.address));
        rules.push(counted([from, to, machine, over], Verdict::Drop));
    }
    for peer in policy.peers.iter().map(Cidr::network) {
        let out = [
            Test::From(bridge.clone()),
            Test::To(mesh.clone()),
            Test::Source(subnet),
            Test::Destination(peer),
        ];
        let connections = Verdict::Jump(Attempt::Connections.word().to_owned());
        rules.push(rule(out.clone(), connections));
        rules.push(rule(out, Verdict::Accept));
        let inward = [
            Test::From(mesh.clone()),
            Test::To(bridge.clone()),
            Test::Source(peer),
            Test::Destination(subnet),
        ];
        rules.push(rule(inward, Verdict::Accept));
    }
    if !policy.peers.is_empty() {
        rules.push(counted([Test::From(mesh)], Verdict::Drop));
    }
    rules
}

/// Wherever the node is, and whatever is around it.
pub(super) fn refused_to_guests() -> impl Iterator<Item = (Cidr, Attempt)> {
    let known = [(METADATA, Attempt::Metadata)].into_iter();
    let known = known.chain(TENANTS.map(|range| (range, Attempt::Tenants)));
    let known = known.chain(PRIVATE.map(|range| (range, Attempt::Private)));
    known.filter_map(|((address, prefix), what)| Some((Cidr::new(address, prefix)?, what)))
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
    rules.extend(across(policy));
    let refuse = |prefix: Cidr, what: Attempt| {
        let tests = [from.clone(), Test::Destination(prefix)];
        rule(tests, Verdict::Jump(what.word().to_owned()))
    };
    let around = policy.refused.iter().map(Cidr::network);
    rules.extend(around.map(|prefix| refuse(prefix, Attempt::Private)));
    rules.extend(refused_to_guests().map(|(prefix, what)| refuse(prefix, what)));
    let outward = [from, Test::To(outside), Test::Source(subnet)];
    match policy.internal {
        true => rules.push(rule(
            outward,
            Verdict::Jump(Attempt::Outside.word().to_owned()),
        )),
        false => rules.extend([
            rule(
                outward.clone(),
                Verdict::Jump(Attempt::Connections.word().to_owned()),
            ),
            rule(outward, Verdict::Accept),
        ]),
    }
    rules.extend(policy.guests.iter().flat_map(owned::reached));
    rules.push(counted([], Verdict::Drop));
    rules
}

/// A guest speaks as itself only: its MAC, its addresses, ARP and IP, and is neither DHCP server nor router.
fn from_guest(guest: &Guest) -> Vec<Rule> {
    let ip = || Test::EtherType(EtherType::Ipv4);
    let arp = [
        Test::EtherType(EtherType::Arp),
        Test::ArpSender(guest.mac, guest.address),
    ];
    let any_arp = Test::EtherType(EtherType::Arp);
    let dhcp = |port| Test::SourcePort(Transport::Udp, port);
    let other_mac = Test::EtherSourceIsNot(guest.mac);
    let other_address = Test::SourceIsNot(guest.address);
    let mut rules = vec![
        attempt(guest, Attempt::Mac, [other_mac], Verdict::Drop),
        attempt(
            guest,
            Attempt::Multicast,
            [Test::ToGroup, GROUPS],
            Verdict::Drop,
        ),
        rule(arp, Verdict::Accept),
        attempt(guest, Attempt::Arp, [any_arp], Verdict::Drop),
        attempt(guest, Attempt::Address, [other_address], Verdict::Drop),
        attempt(
            guest,
            Attempt::Dhcp,
            [ip(), dhcp(DHCP_SERVER)],
            Verdict::Drop,
        ),
        rule([ip()], Verdict::Accept),
    ];
    rules.extend(ip6_from(guest));
    rules.push(attempt(guest, Attempt::Frame, [], Verdict::Drop));
    rules
}

/// The same of IPv6: under the address that it was given and that of its card alone, which it defends and nobody else's; it is
/// no router, and finds none.
fn ip6_from(guest: &Guest) -> Vec<Rule> {
    let own = [guest.address6, link_local(guest.mac)];
    let any = || Test::EtherType(EtherType::Ipv6);
    let nobody = || Test::Source6Is(Ipv6Addr::UNSPECIFIED);
    let router = |tests: [Test; 1]| attempt(guest, Attempt::Router, tests, Verdict::Drop);
    let server = [any(), Test::SourcePort(Transport::Udp, DHCP6_SERVER)];
    let (asks, answers) = (
        || Test::Icmp6(NEIGHBOUR_SOLICITATION),
        || Test::Icmp6(NEIGHBOUR_ADVERTISEMENT),
    );
    let mut rules = vec![
        router([Test::Icmp6(ROUTER_ADVERTISEMENT)]),
        router([Test::Icmp6(REDIRECT)]),
        attempt(guest, Attempt::Router, server, Verdict::Drop),
        rule([Test::Icmp6(ROUTER_SOLICITATION)], Verdict::Drop),
    ];
    // Without an address yet: which it is about to take, and what it wants to hear.
    let own_asked =
        own.map(|address| rule([nobody(), asks(), Test::TargetIs(address)], Verdict::Accept));
    rules.extend(own_asked);
    rules.push(rule(
        [nobody(), Test::Icmp6(LISTENER_REPORT)],
        Verdict::Accept,
    ));
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

#[cfg(test)]
pub(crate) mod tests;
