//! What may speak to what: the node's policies as rules.
//!
//! Owns: the default-deny policies of the node's own namespace and of tenant namespaces.
//! Refuses: exceptions that are not named in its inputs. Both families are led by the same rules: what is one's is the other's.

mod attempt;
mod ranges;
mod six;

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use types::{AnyCidr, Cidr, Cidr6, Mac};

use super::Counts;
use super::owned;
pub use super::owned::{Let, Owned};
use super::rule::{
    Chain, ChainKind, Count, EtherType, Family, Hook, Point, Policy, Rule, Ruleset, Table, Tally,
    Test, Transport, Verdict,
};
use crate::network::{BRIDGE, MESH, WAN, gateway_of, link_local};
pub use attempt::Attempt;
pub(super) use six::ping as ping6;

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
    pub subnet6: Cidr6,
    pub published: Vec<Published>,
    /// Addresses of guests' own.
    pub owned: Vec<Owned>,
}

impl NodeTenant {
    pub(super) fn subnets(&self) -> [AnyCidr; 2] {
        [self.subnet.network().into(), self.subnet6.network().into()]
    }

    pub(super) fn has(&self, machine: IpAddr) -> bool {
        self.subnets().iter().any(|subnet| subnet.contains(machine))
    }
}

/// Where a guest is in its network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Inside {
    pub four: Ipv4Addr,
    pub six: Ipv6Addr,
}

impl Inside {
    pub fn both(&self) -> [IpAddr; 2] {
        [self.four.into(), self.six.into()]
    }

    /// The one of the same family.
    pub fn like(&self, other: IpAddr) -> IpAddr {
        match other {
            IpAddr::V4(_) => self.four.into(),
            IpAddr::V6(_) => self.six.into(),
        }
    }
}

/// A port of the node that leads to a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Published {
    pub transport: Transport,
    pub node_port: u16,
    pub inside: Inside,
    pub port: u16,
}

/// A tenant's namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tenant {
    /// `Network::gateway`.
    pub gateway: Cidr,
    pub gateway6: Cidr6,
    /// The node's own addresses and the prefixes on its uplinks: refused beside all that is private (RFC 6890).
    pub refused: Vec<AnyCidr>,
    /// Nothing leads out of it.
    pub internal: bool,
    /// Its subnets on other nodes.
    pub peers: Vec<Cidr>,
    pub guests: Vec<Guest>,
}

impl Tenant {
    pub(super) fn gateways(&self) -> [AnyCidr; 2] {
        [self.gateway.into(), self.gateway6.into()]
    }

    /// Wherever the node is, and whatever is around it: what counts as what, in the order in which it is asked.
    pub(super) fn refused_to_guests(&self) -> impl Iterator<Item = (AnyCidr, Attempt)> {
        let around = self.refused.iter().map(Cidr::network);
        let around = around.map(|prefix| (prefix, Attempt::Private));
        around.chain(ranges::refused_to_guests(self.ours()))
    }
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
    /// What comes in to addresses of its own, and for which of its addresses in the network it is by then.
    pub lets: Vec<(IpAddr, Let)>,
}

impl Guest {
    fn addresses(&self) -> [IpAddr; 2] {
        [self.address.into(), self.address6.into()]
    }

    /// The one that it was given, and that of its card.
    fn addresses6(&self) -> [Ipv6Addr; 2] {
        [self.address6, link_local(self.mac)]
    }

    pub(super) fn has(&self, address: IpAddr) -> bool {
        self.addresses().contains(&address)
    }
}

/// Where filters stand among other users of the hook (NF_IP_PRI_FILTER, NF_BR_PRI_FILTER_BRIDGED).
const FILTER: i32 = 0;
const FILTER_BRIDGED: i32 = -200;
/// NF_IP_PRI_NAT_DST and NF_IP_PRI_NAT_SRC.
const NAT_DESTINATION: i32 = -100;
const NAT_SOURCE: i32 = 100;
/// Behind all translation.
const LAST: i32 = 300;
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

/// Connections of one guest outward at a time, and as many inward: an ordinary server's, and a few MiB of the node's memory.
pub const CONNECTIONS_MAX: u32 = 4096;

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
    let of = |(guest, address): (&Guest, IpAddr)| {
        let source = Test::Source(host(address));
        attempt(guest, what, [source], verdict.clone())
    };
    let mut rules: Vec<Rule> = sources(policy, what).map(of).collect();
    rules.push(counted([], verdict.clone()));
    chain(what.word(), rules)
}

/// Under which addresses guests come into the chain of an attempt: that of a card comes no further than to the gateway.
fn sources(policy: &Tenant, what: Attempt) -> impl Iterator<Item = (&Guest, IpAddr)> {
    let near = matches!(what, Attempt::Node | Attempt::Connections);
    policy.guests.iter().flat_map(move |guest| {
        let card = near.then(|| link_local(guest.mac).into());
        let all = guest.addresses().into_iter().chain(card);
        all.map(move |address| (guest, address))
    })
}

/// Chains that let pass who has not too much under way already: one for each guest, of both families together, and the one that
/// leads to those.
fn connections_of(policy: &Tenant) -> Vec<Chain> {
    let name = |guest: &Guest| format!("count-{}", guest.tap);
    let bound = |guest: &Guest| {
        let over = Test::MoreConnectionsThan(CONNECTIONS_MAX);
        let rule = attempt(guest, Attempt::Connections, [over], Verdict::Drop);
        chain(name(guest), vec![rule])
    };
    let lead = |(guest, address): (&Guest, IpAddr)| jump(Test::Source(host(address)), &name(guest));
    let leads = sources(policy, Attempt::Connections).map(lead).collect();
    let mut chains: Vec<Chain> = policy.guests.iter().map(bound).collect();
    chains.push(chain(Attempt::Connections.word(), leads));
    chains
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

pub(super) fn host(address: impl Into<IpAddr>) -> AnyCidr {
    Cidr::host(address.into())
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
    // The node and each network's gateway find each other.
    let links = tenants.iter().map(|tenant| tenant.link.clone());
    input.extend(links.map(|link| jump(Test::From(link), "neighbours")));
    input.push(counted([], Verdict::Drop));
    let mut forward = Vec::from(connections());
    forward.extend(jumps(Test::To, "outward"));
    forward.extend(jumps(Test::From, "inward"));
    forward.push(counted([], Verdict::Drop));
    let (published, translated) = (
        jumps(Test::From, "published"),
        jumps(Test::To, "translated"),
    );
    let mut chains = vec![
        chain("uplink", from_uplink(policy)),
        chain("neighbours", six::neighbours().into()),
        chain("outward", tenants.iter().flat_map(outward).collect()),
    ];
    chains.extend(machines(tenants).into_iter().map(bound));
    chains.extend([
        chain("inward", tenants.iter().flat_map(inward).collect()),
        chain(
            "published",
            // Those of guests' own addresses first, where the owner's and the node's are one by mistake.
            owned::to_guests(tenants)
                .chain(tenants.iter().flat_map(|t| &t.published).flat_map(publish))
                .collect(),
        ),
        chain(
            "translated",
            owned::from_guests(tenants)
                .chain(tenants.iter().flat_map(translate))
                .collect(),
        ),
        chain("local", tenants.iter().map(of_link_alone).collect()),
        filter("input", Point::Input, FILTER, input),
        filter("forward", Point::Forward, FILTER, forward),
        nat("prerouting", Point::Prerouting, NAT_DESTINATION, published),
        nat("postrouting", Point::Postrouting, NAT_SOURCE, translated),
        leaving(jumps(Test::To, "local")),
    ]);
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
    rules.extend(six::of_uplinks());
    rules
}

/// A tenant's packets may leave by an uplink, under its own addresses only. What its gateway begins is for machines, here and on other
/// nodes: where there is no way to those any more, it is not for whoever else has such an address. (By IPv6 it begins nothing.)
fn outward(tenant: &NodeTenant) -> [Rule; 3] {
    let from = |source| [Test::From(tenant.link.clone()), Test::Source(source)];
    let gateway = host(gateway_of(&tenant.subnet));
    let [four, six] = tenant
        .subnets()
        .map(|subnet| rule(from(subnet), Verdict::Accept));
    [counted(from(gateway), Verdict::Drop), four, six]
}

/// Those that something leads to from outside.
fn machines(tenants: &[NodeTenant]) -> BTreeSet<Inside> {
    let published = tenants.iter().flat_map(|tenant| &tenant.published);
    let owned = tenants.iter().flat_map(|tenant| &tenant.owned);
    let published = published.map(|published| published.inside);
    published.chain(owned.map(|owned| owned.inside)).collect()
}

fn bound_of(machine: Inside) -> String {
    format!("to-{}", machine.four)
}

/// Packets to a machine that has too many connections already go nowhere: they would take the room of all others. Both families have
/// one bound.
fn bound(machine: Inside) -> Chain {
    let over = Test::MoreConnectionsThan(CONNECTIONS_MAX);
    chain(bound_of(machine), vec![counted([over], Verdict::Drop)])
}

/// Packets to published ports may go in; their destination has been rewritten by then.
fn inward(tenant: &NodeTenant) -> impl Iterator<Item = Rule> {
    let to = || Test::To(tenant.link.clone());
    let machines = machines(std::slice::from_ref(tenant)).into_iter();
    let bounds = machines.flat_map(move |machine| {
        machine.both().map(|address| {
            let verdict = Verdict::Jump(bound_of(machine));
            rule([to(), Test::Destination(host(address))], verdict)
        })
    });
    let accept = move |published: &Published| {
        published.inside.both().map(|address| {
            let address = Test::Destination(host(address));
            let port = Test::DestinationPort(published.transport, published.port);
            rule([to(), address, port], Verdict::Accept)
        })
    };
    let accepted = tenant.published.iter().flat_map(accept);
    bounds.chain(accepted).chain(owned::let_in(tenant))
}

/// What is addressed to the node, and not what an uplink merely brought along for another machine.
fn publish(published: &Published) -> [Rule; 2] {
    let Published {
        transport,
        node_port,
        inside,
        port,
    } = *published;
    inside.both().map(|address| {
        let family = match address {
            IpAddr::V4(_) => Test::Ipv4,
            IpAddr::V6(_) => Test::Ipv6,
        };
        let port_of_node = Test::DestinationPort(transport, node_port);
        rule(
            [family, port_of_node, Test::DestinationIsOurs],
            Verdict::DestinationNat(address, port),
        )
    })
}

/// Packets of a tenant leave under the node's address.
fn translate(tenant: &NodeTenant) -> [Rule; 2] {
    tenant
        .subnets()
        .map(|subnet| rule([Test::Source(subnet)], Verdict::Masquerade))
}

/// What stands behind all translation.
fn leaving(rules: Vec<Rule>) -> Chain {
    let hook = Hook {
        kind: ChainKind::Filter,
        point: Point::Postrouting,
        priority: LAST,
        policy: Policy::Accept,
    };
    Chain {
        name: "leaving".to_owned(),
        hook: Some(hook),
        rules,
    }
}

/// While the node has no address of IPv6 that it may use on a link, as when it asks neighbours whether one has it already, the kernel takes
/// the one that is of the link alone: nobody beyond it could answer, and the connection would keep it.
fn of_link_alone(tenant: &NodeTenant) -> Rule {
    let from = Test::From(tenant.link.clone());
    counted([from, Test::LinkLocal], Verdict::Drop)
}

/// The rules of one tenant's namespace, bridge family included. Its counters go on from `before`.
pub fn tenant(policy: &Tenant, before: &Counts) -> Ruleset {
    let refused = [
        Attempt::Metadata,
        Attempt::Tenants,
        Attempt::Private,
        Attempt::Outside,
    ];
    let mut chains = connections_of(policy);
    chains.push(refusing(policy, Attempt::Node, &Verdict::Drop));
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
    let group = AnyCidr::from(group);
    let [a, b, c, _] = policy.gateway.address.octets();
    let to_all = [
        group,
        host(Ipv4Addr::BROADCAST),
        host(Ipv4Addr::new(a, b, c, 255)),
    ];
    // Programs say such things to whoever may hear: it is meant for no node.
    rules.extend(to_all.map(|all| rule([from(), Test::Destination(all)], Verdict::Drop)));
    rules.extend(six::to_gateway(policy));
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
        let source = Test::Source(peer.network().into());
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
    let subnet = AnyCidr::from(policy.gateway.network());
    let mut rules = Vec::new();
    // As to published ports: who comes from there is bounded by nobody else here.
    for guest in policy.guests.iter().filter(|_| !policy.peers.is_empty()) {
        let (from, to) = (Test::From(mesh.clone()), Test::To(bridge.clone()));
        let over = Test::MoreConnectionsThan(CONNECTIONS_MAX);
        let machine = Test::Destination(host(guest.address));
        rules.push(counted([from, to, machine, over], Verdict::Drop));
    }
    let peers = policy.peers.iter().map(Cidr::network);
    for peer in peers.map(AnyCidr::from) {
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

/// Guests reach the internet and each other; published ports reach guests.
fn through_gateway(policy: &Tenant) -> Vec<Rule> {
    let (inside, outside) = (BRIDGE.to_owned(), WAN.to_owned());
    let subnets = policy.gateways().map(|gateway| gateway.network());
    let (from, to) = (Test::From(inside.clone()), Test::To(inside.clone()));
    let among = |subnet: AnyCidr| {
        let ends = [Test::Source(subnet), Test::Destination(subnet)];
        let [source, destination] = ends;
        let tests = [from.clone(), to.clone(), source, destination];
        rule(tests, Verdict::Accept)
    };
    let mut rules = Vec::from(connections());
    rules.extend(subnets.map(among));
    rules.extend(across(policy));
    let refuse = |(prefix, what): (AnyCidr, Attempt)| {
        let tests = [from.clone(), Test::Destination(prefix)];
        rule(tests, Verdict::Jump(what.word().to_owned()))
    };
    rules.extend(policy.refused_to_guests().map(refuse));
    let jump = |what: Attempt| Verdict::Jump(what.word().to_owned());
    for subnet in subnets {
        let outward = [
            from.clone(),
            Test::To(outside.clone()),
            Test::Source(subnet),
        ];
        match policy.internal {
            true => rules.push(rule(outward, jump(Attempt::Outside))),
            false => rules.extend([
                rule(outward.clone(), jump(Attempt::Connections)),
                rule(outward, Verdict::Accept),
            ]),
        }
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
    rules.extend(six::from_guest(guest));
    rules.push(attempt(guest, Attempt::Frame, [], Verdict::Drop));
    rules
}

#[cfg(test)]
pub(crate) mod tests;
