//! The ways of packets between machines: a tenant's network with all its rules, beside the same way laid by hand with none.
//!
//! Owns: both, in one boot of one node: a bridge, a link between two nodes, and the way outside.
//! Refuses: a cable. The other node and the outside are namespaces of this node, so that the figures are what software costs.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, TcpListener, TcpStream};
use std::num::NonZeroU8;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use net::firewall::rule::{
    Chain, ChainKind, Count, Family, Hook, Point, Policy, Rule, Table, Test, Verdict,
};
use net::firewall::{self, Counts, Ruleset, policy};
use net::link::{self, Create, Desired, DesiredRoute, Handle};
use net::namespace;
use net::network::{self, Network, TapSpec};
use net::wireguard::{self, Secret, Wanted as Mesh, WantedPeer};
use types::{Cidr, Cidr6};

use super::monitor::{FIGURE, Monitor, Mover, Running, Wanted};
use super::net::{Ask, PORT, answer, ask_all};
use super::{Figures, say};
use crate::bench::report::{BY_HAND, OURS, Role, Sample};
use crate::nested::guest::{argument, mount};
use crate::nested::toolkit::Node;

/// The namespace of all that is laid by hand, as the node's own is for ours; and the parts behind it.
const HAND: &str = "hand";
const HAND_FIRST: &str = "hand1";
const HAND_SECOND: &str = "hand2";
const OUTSIDE: &str = "outside";
/// Towards the outside, from the node's own namespace and from the other.
const UPLINK: &str = "up0";
const MTU: u32 = 1500;
const MESH_MTU: u32 = 1420;
/// Each end of the link between nodes listens here.
const PORTS: [u16; 2] = [51820, 51821];
/// What a guest that is spoken to says first.
const SERVES: &str = "serves";
/// Neither private nor a tenant's, as the rules ask of what is outside (RFC 5737).
const WORLD: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 2);
const NODE_OUTSIDE: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Beside,
    Across,
    Outside,
}

impl Way {
    const ALL: [Self; 3] = [Self::Beside, Self::Across, Self::Outside];

    fn name(self) -> &'static str {
        match self {
            Self::Beside => "guest to guest on one node",
            Self::Across => "guest to guest across nodes",
            Self::Outside => "guest to the outside",
        }
    }
}

/// Where one machine is.
struct Place {
    tap: OwnedFd,
    spot: Spot,
}

fn within_24(address: Ipv4Addr) -> Cidr {
    Cidr::new(address, 24).expect("24 is a prefix length")
}

/// Whom the first machine speaks to.
enum Other {
    Machine(Place),
    Process(TcpListener),
}

pub(super) fn measure(node: &Node) -> Result<Vec<Sample>> {
    let runtime = runtime()?;
    let mut figures = Figures::default();
    for way in Way::ALL {
        for who in [OURS, BY_HAND] {
            let laid = runtime.block_on(async {
                match who {
                    OURS => ours(way).await,
                    _ => by_hand(way).await,
                }
            });
            let (first, other) = laid.with_context(|| format!("lay {}, {who}", way.name()))?;
            let said = speak(node, first, other);
            let said = said.with_context(|| format!("speak {}, {who}", way.name()))?;
            let named = said
                .into_iter()
                .map(|(what, value)| (format!("{}, {what}", way.name()), value));
            figures.add(who, named.collect());
            runtime.block_on(away())?;
        }
    }
    Ok(figures.samples())
}

/// What the first machine has measured.
fn speak(node: &Node, first: Place, other: Other) -> Result<Vec<(String, f64)>> {
    let start = |place: Place, role: Role, to: Option<Ipv4Addr>| {
        let mut wanted = Wanted::new(role);
        wanted.words = place.spot.words(to);
        wanted.mac = network::guest_mac(place.spot.address);
        wanted.card = Some((place.tap, Mover::Kernel));
        Running::start(Monitor::Ours, node, wanted)
    };
    let (to, server) = match other {
        Other::Process(listener) => {
            // It ends with the connection; what goes wrong there, the guest says.
            std::thread::spawn(move || answer(listener));
            (WORLD, None)
        }
        Other::Machine(place) => {
            let to = place.spot.address;
            let mut server = start(place, Role::Serve, None)?;
            let said = server.figure()?;
            ensure!(said == SERVES, "the other guest says {said}");
            (to, Some(server))
        }
    };
    let mut client = start(first, Role::Ask, Some(to))?;
    let figures = client.figures()?;
    ensure!(
        figures.len() == Ask::ALL.len(),
        "the guest has measured too little"
    );
    client.finish()?;
    server.map_or(Ok(()), Running::kill).map(|()| figures)
}

/// Everything of the last way goes.
async fn away() -> Result<()> {
    for index in 0..2 {
        network::remove(&tenant(index)?.0).await?;
    }
    for name in [HAND_FIRST, HAND_SECOND, HAND, OUTSIDE] {
        namespace::remove(name)?;
    }
    Ok(())
}

/// The network of this number, as the node makes one.
pub(super) fn numbered(index: u16) -> Result<Network> {
    let gateway = network::gateway(index).context("a network of this number")?;
    Ok(Network {
        name: format!("tenant{index}"),
        index,
        gateway,
        gateway6: Some(six(gateway)?),
        mtu: MTU,
        mesh: None,
        owned: Vec::new(),
    })
}

/// What has this address has of IPv6.
pub(super) fn six(address: Cidr) -> Result<Cidr6> {
    let six = network::address6([1, 2, 3, 4, 5], address.address);
    six.context("of a tenant network")
}

/// One of the two networks that the ways need, and the subnet of the other.
fn tenant(index: u16) -> Result<(Network, Cidr)> {
    let other = numbered(1 - index)?.gateway.network();
    Ok((numbered(index)?, other))
}

/// The machines' addresses in a subnet.
fn address(gateway: Cidr, number: u8) -> Ipv4Addr {
    let [a, b, c, _] = gateway.address.octets();
    Ipv4Addr::new(a, b, c, number)
}

async fn ours(way: Way) -> Result<(Place, Other)> {
    up(None, "lo").await?;
    if way == Way::Outside {
        outside(None).await?;
    }
    let mut networks = vec![tenant(0)?];
    let numbers: &[u8] = match way {
        Way::Beside => &[2, 3],
        Way::Across | Way::Outside => &[2],
    };
    if way == Way::Across {
        networks.push(tenant(1)?);
    }
    let tenants = networks.iter().map(|(network, _)| {
        Ok(policy::NodeTenant {
            link: network.host_link(),
            subnet: network.gateway.network(),
            subnet6: six(network.gateway)?.network(),
            published: Vec::new(),
            owned: Vec::new(),
        })
    });
    let rules = policy::Node {
        uplinks: vec![UPLINK.to_owned()],
        open_ports: Vec::new(),
        mesh_ports: PORTS.to_vec(),
        tenants: tenants.collect::<Result<_>>()?,
    };
    firewall::apply(&policy::node(&rules))?;
    let mut places = Vec::new();
    for (network, other) in &mut networks {
        let across = way == Way::Across;
        if across {
            network.mtu = MESH_MTU;
            network.mesh = Some(mesh(usize::from(network.index), *other));
        }
        let guests = numbers.iter().map(|n| guest(address(network.gateway, *n)));
        let tenant = policy::Tenant {
            gateway: network.gateway,
            gateway6: network.gateway6.context("it has one")?,
            refused: Vec::new(),
            internal: false,
            peers: across.then_some(*other).into_iter().collect(),
            guests: guests.collect(),
        };
        network::ensure(network).await?;
        firewall::apply_in(&network.name, &policy::tenant(&tenant, &Counts::new()))?;
        for guest in tenant.guests {
            let tap = TapSpec {
                name: guest.tap,
                mtu: network.mtu,
            };
            let taps = network::open_tap(network, &tap, NonZeroU8::MIN).await?;
            let tap = taps.into_iter().next().context("a queue of the TAP")?;
            let (address, mtu) = (guest.address, network.mtu);
            let spot = Spot { address, mtu };
            places.push(Place { tap, spot });
        }
    }
    pair(places)
}

pub(super) fn guest(address: Ipv4Addr) -> policy::Guest {
    policy::Guest {
        tap: format!("tap{}", address.octets()[3]),
        mac: network::guest_mac(address),
        address,
        address6: six(Cidr::host(address)).map_or(Ipv6Addr::UNSPECIFIED, |six| six.address),
        ports: Vec::new(),
        lets: Vec::new(),
    }
}

/// The first place, and the second or the process outside.
fn pair(places: Vec<Place>) -> Result<(Place, Other)> {
    let mut places = places.into_iter();
    let first = places.next().context("a first machine")?;
    let other = match places.next() {
        Some(second) => Other::Machine(second),
        None => {
            let outside = namespace::open(OUTSIDE)?.context("the outside")?;
            let listen = || TcpListener::bind((WORLD, PORT));
            Other::Process(inside(outside, "listen outside", listen)?)
        }
    };
    Ok((first, other))
}

/// What one end of the link between nodes is, both in this kernel.
fn mesh(end: usize, other: Cidr) -> Mesh {
    let secret = |end: usize| Secret([if end == 0 { 0x41 } else { 0x42 }; 32]);
    let theirs = vault::Secret::new(secret(1 - end).0);
    let peer = WantedPeer {
        subnet: other,
        endpoints: vec![(Ipv4Addr::LOCALHOST, PORTS[1 - end]).into()],
        keepalive_s: types::mesh::KEEPALIVE_S,
    };
    let key = vault::sealed::RecipientSecret::new(theirs).public().0;
    Mesh {
        secret: secret(end),
        port: PORTS[end],
        peers: [(key, peer)].into(),
    }
}

/// A veth pair to a namespace with the process that the machine speaks to.
async fn outside(from: Option<&Arc<OwnedFd>>) -> Result<()> {
    let world = Arc::new(namespace::ensure(OUTSIDE)?);
    let uplink = Desired {
        create: Some(Create::Veth {
            peer: "eth0".to_owned(),
            namespace: world.clone(),
        }),
        addresses: vec![within_24(NODE_OUTSIDE).into()],
        ..Desired::up(UPLINK)
    };
    lay(from, &[uplink]).await?;
    let inside = Desired {
        addresses: vec![within_24(WORLD).into()],
        ..Desired::up("eth0")
    };
    lay(Some(&world), &[inside]).await
}

async fn by_hand(way: Way) -> Result<(Place, Other)> {
    let node = Arc::new(namespace::ensure(HAND)?);
    up(Some(&node), "lo").await?;
    let gateways = [tenant(0)?.0.gateway, tenant(1)?.0.gateway];
    let places = match way {
        Way::Beside => {
            bridge(&node, gateways[0], MTU).await?;
            let (first, second) = (address(gateways[0], 2), address(gateways[0], 3));
            vec![
                tap(&node, first, MTU).await?,
                tap(&node, second, MTU).await?,
            ]
        }
        Way::Across => {
            let mut places = Vec::new();
            for (end, name) in [HAND_FIRST, HAND_SECOND].into_iter().enumerate() {
                let part = Arc::new(namespace::ensure(name)?);
                let (own, other) = (gateways[end], gateways[1 - end].network());
                bridge(&part, own, MESH_MTU).await?;
                let create = Create::Wireguard {
                    namespace: part.clone(),
                };
                let link = link::Step::Create {
                    link: network::MESH.to_owned(),
                    create,
                };
                Handle::open_in(&node)?.apply(&[link]).await?;
                let observed = wireguard::observe(name, network::MESH)?;
                let changes = wireguard::plan(&mesh(end, other), &observed, 0);
                wireguard::apply(name, network::MESH, &changes)?;
                let across = Desired {
                    mtu: Some(MESH_MTU),
                    addresses: vec![Cidr::host(own.address).into()],
                    routes: vec![route(other, None)],
                    ..Desired::up(network::MESH)
                };
                lay(Some(&part), &[across]).await?;
                places.push(tap(&part, address(own, 2), MESH_MTU).await?);
            }
            places
        }
        Way::Outside => {
            outside(Some(&node)).await?;
            bridge(&node, gateways[0], MTU).await?;
            namespace::within(&node, || {
                firewall::apply(&masquerade(gateways[0].network()))
            })?;
            vec![tap(&node, address(gateways[0], 2), MTU).await?]
        }
    };
    pair(places)
}

/// `nft add rule … oifname up0 ip saddr SUBNET masquerade`, and nothing else.
fn masquerade(subnet: Cidr) -> Ruleset {
    let rule = Rule {
        tests: vec![Test::To(UPLINK.to_owned()), Test::Source(subnet.into())],
        count: Count::Nowhere,
        verdict: Verdict::Masquerade,
    };
    let chain = Chain {
        name: "postrouting".to_owned(),
        hook: Some(Hook {
            kind: ChainKind::Nat,
            point: Point::Postrouting,
            priority: 100,
            policy: Policy::Accept,
        }),
        rules: vec![rule],
    };
    Ruleset {
        tables: vec![Table {
            family: Family::Inet,
            counters: Vec::new(),
            chains: vec![chain],
        }],
    }
}

async fn bridge(part: &Arc<OwnedFd>, gateway: Cidr, mtu: u32) -> Result<()> {
    let bridge = Desired {
        create: Some(Create::Bridge),
        mtu: Some(mtu),
        addresses: vec![gateway.into()],
        ..Desired::up(network::BRIDGE)
    };
    lay(Some(part), &[bridge]).await?;
    inside(part, "turn forwarding on", || {
        std::fs::write("/proc/sys/net/ipv4/ip_forward", "1")
    })
}

async fn tap(part: &Arc<OwnedFd>, address: Ipv4Addr, mtu: u32) -> Result<Place> {
    let name = guest(address).tap;
    let tap = inside(part, "open a TAP", || sys::tap::open(&name))?;
    let port = Desired {
        mtu: Some(mtu),
        master: Some(network::BRIDGE.to_owned()),
        ..Desired::up(&name)
    };
    lay(Some(part), &[port]).await?;
    let spot = Spot { address, mtu };
    Ok(Place { tap, spot })
}

fn inside<T: Send>(
    part: impl AsFd + Sync,
    what: &str,
    call: impl FnOnce() -> io::Result<T> + Send,
) -> Result<T> {
    let failed = |source| net::Error::Io {
        operation: what.to_owned(),
        source,
    };
    Ok(namespace::within(part, || call().map_err(failed))?)
}

fn route(destination: Cidr, gateway: Option<Ipv4Addr>) -> DesiredRoute {
    DesiredRoute {
        destination: destination.into(),
        gateway: gateway.map(Into::into),
        metric: 0,
    }
}

async fn up(part: Option<&Arc<OwnedFd>>, name: &str) -> Result<()> {
    let loopback = Cidr::new(Ipv4Addr::LOCALHOST, 8).context("8 is a prefix length")?;
    let link = Desired {
        addresses: vec![loopback.into()],
        ..Desired::up(name)
    };
    lay(part, &[link]).await
}

/// In a namespace, or this program's own.
async fn lay(part: Option<&Arc<OwnedFd>>, links: &[Desired]) -> Result<()> {
    let mut handle = match part {
        Some(part) => Handle::open_in(part.as_fd())?,
        None => Handle::open()?,
    };
    let steps = link::plan(links, &handle.observe().await?);
    handle.apply(&steps).await?;
    Ok(())
}

/// Where a guest's card is, as its command line has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Spot {
    address: Ipv4Addr,
    mtu: u32,
}

/// The words of the guest's command line: its address, its MTU, and whom it speaks to.
const ADDRESS: &str = "bench_address";
const SIZE: &str = "bench_mtu";
const TO: &str = "bench_to";

impl Spot {
    fn words(self, to: Option<Ipv4Addr>) -> String {
        let to = to.map_or(String::new(), |to| format!(" {TO}={to}"));
        format!(" {ADDRESS}={} {SIZE}={}{to}", self.address, self.mtu)
    }

    /// In the guest: its card is there.
    fn settle() -> Result<()> {
        let spot = Self {
            address: argument(ADDRESS)?.parse()?,
            mtu: argument(SIZE)?.parse()?,
        };
        let [a, b, c, _] = spot.address.octets();
        let everywhere = Cidr::new(Ipv4Addr::UNSPECIFIED, 0).context("0 is a prefix length")?;
        let card = Desired {
            mtu: Some(spot.mtu),
            addresses: vec![within_24(spot.address).into()],
            routes: vec![route(everywhere, Some(Ipv4Addr::new(a, b, c, 1)))],
            ..Desired::up("eth0")
        };
        mount("proc", "/proc")?;
        mount("sysfs", "/sys")?;
        runtime()?.block_on(lay(None, &[card]))
    }
}

/// In the guest that is spoken to.
pub(super) fn serve() -> Result<()> {
    Spot::settle()?;
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, PORT)).context("listen")?;
    say(&format!("{FIGURE}{SERVES}"));
    answer(listener)
}

/// In the guest that speaks.
pub(super) fn ask() -> Result<()> {
    Spot::settle()?;
    let to: Ipv4Addr = argument(TO)?.parse()?;
    ask_all(TcpStream::connect((to, PORT)).context("reach the other machine")?)
}

pub(super) fn runtime() -> Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ends_of_the_link_between_nodes_know_each_other() {
        let [first, second] = [0, 1].map(|end| mesh(end, within_24(Ipv4Addr::new(10, 128, 0, 0))));
        let knows = |one: &Mesh, other: &Mesh| {
            let (key, peer) = one.peers.first_key_value().expect("a peer");
            let secret = vault::Secret::new(other.secret.0);
            let public = vault::sealed::RecipientSecret::new(secret).public().0;
            *key == public && peer.endpoints == [(Ipv4Addr::LOCALHOST, other.port).into()]
        };
        assert!(knows(&first, &second) && knows(&second, &first));
    }
}
