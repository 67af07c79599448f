//! The node's network as the placed machines need it: firewalls, tenant networks, names.
//!
//! Owns: what follows from places and uplink, applied as a whole; the DNS forwarder of each network.
//! Refuses: choosing addresses (`workload` does).

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::num::NonZeroU8;
use std::os::fd::OwnedFd;
use std::sync::{Mutex, MutexGuard, PoisonError};

use net::dns::{Across, Names};
use net::firewall::policy;
use net::firewall::rule::Transport;
use net::link::Answered;
use net::network::{self, Network, TapSpec, Ula};
use net::{firewall, namespace};
use tokio::runtime;
use tokio::sync::watch;
use types::address::Range;
use types::deployment::{API_PORT, ONLY_WORKLOAD, Port, Protocol};
use types::ingress::{self, Host};
use types::{Cidr, Cidr6, PublicKey, VmId, mesh};
use workload::desired::Key;
use workload::host::{NetworkId, Placed, PlacedCard, PlacedMesh, PlacedSite, Places};
use workload::reconcile::Wish;

use super::context::Uplink;
use super::mesh::{Joined, Keys};

mod cut;
mod laid;
pub(crate) mod owned;
mod six;
mod speakers;
pub(crate) mod trace;

pub(crate) use laid::Laid;
use speakers::Speakers;

/// The MTU of every port that DHCP has not told otherwise, and of tenant networks.
pub(crate) const MTU: u16 = 1500;
const DNS_PORT: u16 = 53;
/// What the kernel tracks at most.
const CONNECTIONS: &str = "/proc/sys/net/netfilter/nf_conntrack_max";
/// Of 32 machines that have all that they may, outward and inward; each takes some 300 bytes.
const CONNECTIONS_OF_ALL: u32 = 32 * 2 * policy::CONNECTIONS_MAX;
/// Namespaces of this name and a number are tenant networks, and nothing else is.
const NAMESPACE: &str = "tenant";

/// A subnet for a network that has none: the hash of whose it is says where the search begins.
pub(crate) fn choose_subnet(wish: Wish<'_>, taken: &[Cidr], uplink: &Uplink) -> Option<Cidr> {
    let avoid = [taken, &uplink.networks].concat();
    let hash = match wish {
        Wish::This(subnet) => return Some(subnet).filter(|s| network::is_free(s, &avoid)),
        Wish::Any(NetworkId::Default(signer)) => blake3::hash(&signer.0),
        Wish::Any(NetworkId::Named(key, name)) => {
            let names = format!("{name}.{}", key.name);
            blake3::hash(&[&key.signer.0, names.as_bytes()].concat())
        }
    };
    let [a, b, ..] = *hash.as_bytes();
    network::subnet(u16::from_le_bytes([a, b]), &avoid)
}

/// The node's part of its machines' addresses of IPv6: the same for as long as it is this node.
pub(crate) fn ula(node: &PublicKey) -> Ula {
    let hash = blake3::hash(&[&b"sifr ula 1"[..], &node.0].concat());
    let [a, b, c, d, e, ..] = *hash.as_bytes();
    [a, b, c, d, e]
}

/// All that the node's networks have of IPv6.
pub(crate) fn ours(node: &PublicKey) -> Range {
    let [a, b, c, d, e] = ula(node);
    let first = Ipv6Addr::from([0xfd, a, b, c, d, e, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    let all = Cidr6::new(first, 48).expect("48 is a prefix length");
    Range::of(all.into())
}

/// The network that an address of a tenant's machine lies in. `None`: not one of ours.
pub(crate) fn network_of(address: Ipv4Addr) -> Option<Network> {
    numbered(network::number(address)?)
}

fn numbered(index: u16) -> Option<Network> {
    Some(Network {
        name: format!("{NAMESPACE}{index}"),
        index,
        gateway: network::gateway(index)?,
        gateway6: None,
        mtu: u32::from(MTU),
        mesh: None,
        owned: Vec::new(),
    })
}

/// The name of a machine's TAP: unique in its network.
fn tap_name(address: Ipv4Addr) -> String {
    format!("tap{}", address.octets()[3])
}

/// The card of a machine with this address: its namespace and its TAP.
pub(crate) fn card(address: Ipv4Addr) -> Option<(String, String)> {
    Some((network_of(address)?.name, tap_name(address)))
}

/// Held by who changes links: the kernel does that one at a time, and who waits here does not use up the time in which the kernel
/// must answer ([`net::link`]). With a hundred machines that start, the last would.
static LINKS: Mutex<()> = Mutex::new(());

pub(crate) fn links_turn() -> MutexGuard<'static, ()> {
    // Nothing is behind it that a panic could leave half done.
    LINKS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Opens a machine's TAP, a descriptor for each queue. Its network must have been applied. Blocking: on a
/// thread of the runtime's pool.
pub(crate) fn open_tap(
    address: Ipv4Addr,
    mtu: u16,
    queues: NonZeroU8,
) -> Result<Vec<OwnedFd>, String> {
    let network =
        network_of(address).ok_or_else(|| format!("{address} is in no tenant network"))?;
    let tap = TapSpec {
        name: tap_name(address),
        mtu: u32::from(mtu),
    };
    let _turn = links_turn();
    let opened = runtime::Handle::current().block_on(network::open_tap(&network, &tap, queues));
    opened.map_err(|e| sys::error::chain(&e))
}

/// Unconnected sockets in a tenant's network, by the name of its namespace. Blocking.
pub(crate) fn tcp_sockets(namespace: &str, count: usize) -> Result<Vec<OwnedFd>, String> {
    let network = named(namespace).ok_or_else(|| format!("{namespace} is no tenant network"))?;
    network::tcp_sockets(&network, count).map_err(|e| sys::error::chain(&e))
}

/// A socket for questions to the gateway of a tenant's network on another node. Blocking.
pub(crate) fn to_gateway(namespace: &str, there: Cidr) -> Result<UdpSocket, String> {
    let network = named(namespace).ok_or_else(|| format!("{namespace} is no tenant network"))?;
    network::to_gateway(&network, there).map_err(|e| sys::error::chain(&e))
}

/// Everything that is to be applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Plan {
    pub(crate) node: policy::Node,
    /// Addresses of machines' own that are the node's to answer for.
    answered: Answered,
    /// The node's own links have what they will have, as far as is known: without, rules leave out what they are to give.
    settled: bool,
    pub(crate) tenants: BTreeMap<String, Tenant>,
    /// Names of ingress.
    pub(crate) sites: BTreeMap<Host, PlacedSite>,
}

/// One network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Tenant {
    network: Network,
    policy: policy::Tenant,
    names: Names,
    published: Vec<policy::Published>,
    /// Addresses of machines' own.
    owned: Vec<policy::Owned>,
    /// Where it goes on on other nodes.
    joined: Option<Joined>,
    /// Its gateway says that it leads outside by IPv6.
    leads6: bool,
}

impl Tenant {
    fn new(mut network: Network, internal: bool, uplink: &Uplink, ula: Ula) -> Self {
        let gateway6 = network::address6(ula, network.gateway.address);
        network.gateway6 = gateway6;
        let policy = policy::Tenant {
            gateway: network.gateway,
            gateway6: gateway6.expect("a network has a number, and its gateway is in it"),
            refused: six::around(uplink),
            internal,
            peers: Vec::new(),
            guests: Vec::new(),
        };
        let names = Names {
            alone: internal,
            six: Some(ula),
            ..Names::default()
        };
        Self {
            network,
            policy,
            names,
            published: Vec::new(),
            owned: Vec::new(),
            joined: None,
            leads6: false,
        }
    }

    /// It goes on on other nodes.
    fn join(&mut self, placed: &PlacedMesh, keys: &Keys, uplink: &Uplink) {
        let about = (&placed.key, &placed.network);
        let peers = || placed.mesh.peers.values();
        self.policy.peers = peers().map(|peer| peer.subnet).collect();
        let domain = &placed.key.name;
        let machines = peers().flat_map(|peer| {
            let names = peer.machines.iter();
            names.map(move |name| (format!("{name}.{domain}"), peer.subnet))
        });
        self.names.across = Some(Across {
            subnet: placed.subnet,
            machines: machines.collect(),
            domain: domain.to_string(),
        });
        self.network.mtu = u32::from(mesh::MTU);
        self.network.mesh = Some(keys.wanted(about, &placed.mesh, uplink));
        let names = placed.mesh.peers.iter();
        self.joined = Some(Joined {
            key: placed.key.clone(),
            name: placed.network.clone(),
            network: self.network.clone(),
            peers: names
                .map(|(name, peer)| (peer.key.0, name.clone()))
                .collect(),
        });
    }

    /// `ports`: those that lead to this very card.
    fn add(&mut self, address: Ipv4Addr, address6: Ipv6Addr, ports: &[Port]) {
        let inside: BTreeSet<_> = ports
            .iter()
            .map(|p| (transport(p.protocol), p.machine))
            .collect();
        self.policy.guests.push(policy::Guest {
            tap: tap_name(address),
            mac: network::guest_mac(address),
            address,
            address6,
            ports: inside.into_iter().collect(),
            lets: Vec::new(),
        });
        let inside = policy::Inside {
            four: address,
            six: address6,
        };
        let publish = |port: &Port| policy::Published {
            transport: transport(port.protocol),
            node_port: port.node,
            inside,
            port: port.machine,
        };
        self.published.extend(ports.iter().map(publish));
    }
}

fn transport(protocol: Protocol) -> Transport {
    match protocol {
        Protocol::Tcp => Transport::Tcp,
        Protocol::Udp => Transport::Udp,
    }
}

impl Plan {
    /// Networks that go on on other nodes.
    pub(crate) fn joined(&self) -> Vec<Joined> {
        let joined = self.tenants.values().filter_map(|t| t.joined.clone());
        joined.collect()
    }
}

/// What follows from places and uplink.
pub(crate) fn plan(places: &Places, uplink: &Uplink, ula: Ula, keys: &Keys) -> Plan {
    let mut tenants: BTreeMap<String, Tenant> = BTreeMap::new();
    let mut machines: BTreeMap<&Key, usize> = BTreeMap::new();
    for place in places.machines.values() {
        *machines.entry(&place.key).or_default() += 1;
    }
    for placed in &places.meshes {
        let Some(network) = network_of(placed.subnet.address) else {
            continue;
        };
        // Which machines the deployment has elsewhere is not known here.
        machines.insert(&placed.key, usize::MAX);
        tenants
            .entry(network.name.clone())
            .or_insert_with(|| Tenant::new(network, placed.internal, uplink, ula))
            .join(placed, keys, uplink);
    }
    for place in places.machines.values() {
        for (at, card) in place.cards.iter().enumerate() {
            let PlacedCard { address, internal } = *card;
            let known = network_of(address).zip(network::address6(ula, address));
            let Some((network, six)) = known else {
                let (workload, of) = (&place.workload, &place.key.name);
                log::error!("{workload} of {of} has the foreign address {address}");
                continue;
            };
            let tenant = tenants
                .entry(network.name.clone())
                .or_insert_with(|| Tenant::new(network, internal, uplink, ula));
            let ports = if at == 0 && !internal {
                &place.ports[..]
            } else {
                &[]
            };
            tenant.add(address, six.address, ports);
            if at == 0 && !internal {
                let six = six.address;
                let inside = policy::Inside { four: address, six };
                owned::add(tenant, inside, place, uplink);
            }
            add_names(&mut tenant.names, place, address, machines[&place.key]);
        }
    }
    look_further(&mut tenants, &places.machines);
    for tenant in tenants.values_mut() {
        tenant.leads6 = six::leads(tenant, uplink);
    }
    Plan {
        node: of_node(places, uplink, &tenants),
        answered: owned::answered(places, uplink),
        settled: uplink.link.is_some() || !uplink.networks.is_empty(),
        tenants,
        sites: places.sites.clone(),
    }
}

fn of_node(places: &Places, uplink: &Uplink, tenants: &BTreeMap<String, Tenant>) -> policy::Node {
    let mesh_ports = places.meshes.iter().map(|placed| placed.mesh.port);
    let tenants = tenants.values().map(|tenant| policy::NodeTenant {
        link: tenant.network.host_link(),
        subnet: tenant.network.gateway.network(),
        subnet6: tenant.policy.gateway6.network(),
        published: tenant.published.clone(),
        owned: tenant.owned.clone(),
    });
    let served = places
        .sites
        .iter()
        .map(|(host, placed)| (host, &*placed.site));
    let mut open_ports = vec![API_PORT];
    open_ports.extend(ingress::ports(served));
    policy::Node {
        uplinks: uplink.links.clone(),
        open_ports,
        mesh_ports: mesh_ports.collect(),
        tenants: tenants.collect(),
    }
}

/// `web.shop`; and plain `shop` where it is its deployment's only machine of so many, or the one that is called `main`.
fn add_names(names: &mut Names, place: &Placed, address: Ipv4Addr, machines: usize) {
    let (workload, deployment) = (&place.workload, &place.key.name);
    let full = format!("{workload}.{deployment}");
    names.machines.insert(full, address);
    names.domains.insert(address, deployment.to_string());
    if workload.as_str() == ONLY_WORKLOAD || machines == 1 {
        names.machines.insert(deployment.to_string(), address);
    }
}

/// A machine asks the DNS of its first network for the names in all of its networks: those of the first count before
/// those of the next.
fn look_further(tenants: &mut BTreeMap<String, Tenant>, places: &BTreeMap<VmId, Placed>) {
    let name = |card: &PlacedCard| network_of(card.address).map(|network| network.name);
    for cards in places.values().map(|place| &place.cards) {
        let [first, others @ ..] = &cards[..] else {
            continue;
        };
        let known = others.iter().rev().filter_map(name);
        let known = known.filter_map(|name| tenants.get(&name));
        let mut beyond = BTreeMap::new();
        for tenant in known {
            beyond.extend(tenant.names.machines.clone());
        }
        let first_of = name(first).and_then(|name| tenants.get_mut(&name));
        if let Some(tenant) = first_of.filter(|_| !beyond.is_empty()) {
            tenant.names.beyond.insert(first.address, beyond);
        }
    }
}

/// Applies a plan. One network that fails keeps no other from being made; the first error is given.
/// Gives the networks that are as they should be. Blocking, as what the kernel does of it takes its time
/// within the calls: on a thread of the runtime's pool.
pub(crate) fn apply(plan: &Plan, laid: &Mutex<Laid>) -> (BTreeSet<String>, Result<(), String>) {
    let mut made = BTreeSet::new();
    let _turn = links_turn();
    // What panicked under it has forgotten the network that it was at.
    let mut laid = laid.lock().unwrap_or_else(PoisonError::into_inner);
    let before = laid.forget_node();
    // Making a network turns forwarding on: without the node's rules that would be an open door.
    if let Err(error) = firewall::apply(&policy::node(&plan.node)) {
        return (made, Err(sys::error::chain(&error)));
    }
    if !plan.tenants.is_empty() {
        make_room();
    }
    let mut result = Ok(());
    let mut note = |outcome: Result<(), net::Error>| match outcome {
        Ok(()) => true,
        Err(error) => {
            result = std::mem::replace(&mut result, Ok(())).and(Err(sys::error::chain(&error)));
            false
        }
    };
    if plan.settled && note(cut::of_node(before.as_ref(), &plan.node)) {
        laid.note_node(&plan.node);
    }
    let runtime = runtime::Handle::current();
    for (name, tenant) in &plan.tenants {
        if laid.stands(name, tenant) {
            made.insert(name.clone());
            continue;
        }
        let before = laid.forget(name);
        let is_new = before.is_none() && cut::is_new(name);
        // What was counted until now is not lost with the rules that counted it.
        let rules = policy::tenant(&tenant.policy, &counts(name));
        let done = runtime
            .block_on(network::ensure(&tenant.network))
            .and_then(|()| firewall::apply_in(name, &rules));
        if !note(done) {
            continue;
        }
        made.insert(name.clone());
        let cut = || cut::of_tenant(name, before.as_ref(), &tenant.policy);
        // Where it could not be looked through, it is with the next change: its rules stand.
        if is_new || (plan.settled && note(cut())) {
            laid.note(name, tenant);
        }
    }
    note(runtime.block_on(net::link::answer_for(&plan.answered)));
    match namespace::list() {
        Ok(names) => {
            let stale = names.iter().filter(|n| !plan.tenants.contains_key(*n));
            for network in stale.filter_map(|n| named(n)) {
                laid.forget(&network.name);
                note(runtime.block_on(network::remove(&network)));
            }
        }
        Err(error) => {
            note(Err(error));
        }
    }
    (made, result)
}

/// All connections of all machines have a place each in the node's table, which is small where memory is: what bounds it is
/// what each machine may have.
fn make_room() {
    let (path, most) = (CONNECTIONS, CONNECTIONS_OF_ALL.to_string());
    let held = std::fs::read_to_string(path);
    if held.is_ok_and(|held| held.trim() != most)
        && let Err(error) = std::fs::write(path, &most)
    {
        log::error!("write {most} to {path}: {error}");
    }
}

fn counts(namespace: &str) -> firewall::Counts {
    firewall::counts_in(namespace).unwrap_or_else(|error| {
        log::error!("{}", sys::error::chain(&error));
        firewall::Counts::new()
    })
}

/// Packets that were refused to who has the address, by what they tried.
pub(crate) type Attempts = BTreeMap<Ipv4Addr, BTreeMap<&'static str, u64>>;

/// Of who has these addresses. Blocking, as [`apply`].
pub(crate) fn attempts(addresses: &BTreeSet<Ipv4Addr>) -> Attempts {
    let mut networks: BTreeMap<String, firewall::Counts> = BTreeMap::new();
    let mut all = Attempts::new();
    for address in addresses {
        let Some(network) = network_of(*address) else {
            continue;
        };
        let counts = networks
            .entry(network.name)
            .or_insert_with_key(|name| counts(name));
        let tap = tap_name(*address);
        let of = |what: policy::Attempt| {
            let counted = counts.get(&what.counter(&tap))?;
            Some((what.word(), counted.packets))
        };
        let own: BTreeMap<_, _> = policy::Attempt::ALL.into_iter().filter_map(of).collect();
        if !own.is_empty() {
            all.insert(*address, own);
        }
    }
    all
}

/// The network of a namespace's name.
fn named(namespace: &str) -> Option<Network> {
    let index: u16 = namespace.strip_prefix(NAMESPACE)?.parse().ok()?;
    numbered(index).filter(|network| network.name == namespace)
}

/// The DNS forwarders, and what gateways say beside: one a network, for as long as the network stands.
#[derive(Default)]
pub(crate) struct Forwarders {
    running: BTreeMap<String, Forwarder>,
    upstreams: Option<watch::Sender<Vec<SocketAddr>>>,
    /// Who says whether the networks lead outside by IPv6.
    speakers: Speakers,
}

struct Forwarder {
    names: watch::Sender<Names>,
    task: tokio::task::JoinHandle<()>,
}

impl Forwarders {
    /// Starts, informs and ends forwarders as the plan says. One whose socket cannot be had is tried
    /// again at the next change.
    pub(crate) fn converge(&mut self, plan: &Plan, made: &BTreeSet<String>, uplink: &Uplink) {
        self.speakers.converge(plan, made);
        let servers: Vec<SocketAddr> = uplink
            .dns
            .iter()
            .map(|ip| SocketAddr::new(*ip, DNS_PORT))
            .collect();
        let upstreams = self
            .upstreams
            .get_or_insert_with(|| watch::channel(Vec::new()).0);
        upstreams.send_if_modified(|held| {
            let new = *held != servers;
            held.clone_from(&servers);
            new
        });
        self.running.retain(|name, forwarder| {
            let stays = plan.tenants.contains_key(name) && !forwarder.task.is_finished();
            if !stays {
                forwarder.task.abort();
            }
            stays
        });
        for (name, tenant) in &plan.tenants {
            let names = &tenant.names;
            if let Some(forwarder) = self.running.get(name) {
                forwarder.names.send_if_modified(|held| {
                    let new = held != names;
                    held.clone_from(names);
                    new
                });
            } else if made.contains(name) {
                match network::dns_sockets(&tenant.network) {
                    Ok(sockets) => {
                        let (names, heard) = watch::channel(names.clone());
                        let upstreams = upstreams.subscribe();
                        let task = tokio::task::spawn_local(forward(sockets, upstreams, heard));
                        self.running.insert(name.clone(), Forwarder { names, task });
                    }
                    Err(error) => log::error!("{}", sys::error::chain(&error)),
                }
            }
        }
    }
}

async fn forward(
    sockets: net::dns::Sockets,
    upstreams: watch::Receiver<Vec<SocketAddr>>,
    names: watch::Receiver<Names>,
) {
    if let Err(error) = net::dns::forward(sockets, upstreams, names).await {
        log::error!("{}", sys::error::chain(&error));
    }
}

#[cfg(test)]
mod tests;
