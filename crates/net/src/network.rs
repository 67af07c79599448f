//! Tenant networks: a bridge in a namespace of its own, led to the node by a veth pair.
//!
//! Owns: their addresses on the node, the links on both sides, the guests' TAPs.
//! Refuses: firewall decisions (`firewall::policy`). Apply those of the node first: this turns
//! forwarding on.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpListener, UdpSocket};
use std::num::NonZeroU8;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use types::network::{RANGES, SUBNET_PREFIX};
use types::{AnyCidr, Cidr, Cidr6, Mac};

use crate::link::{Create, Desired, DesiredRoute, Handle, Step, plan};
use crate::namespace::{self, SETTINGS, sysctl, sysctl_if_present, within};
use crate::wireguard::{self, Wanted};
use crate::{Error, dns};

/// The bridge inside each tenant namespace.
pub const BRIDGE: &str = "br0";
/// The link inside each tenant namespace that leads to the node.
pub const WAN: &str = "wan";
/// The link inside a tenant namespace that leads to the same network on other nodes.
pub const MESH: &str = "mesh";
/// The port of DNS on the gateway's address.
const DNS_PORT: u16 = 53;

/// Both ends of each veth pair, two addresses a network (RFC 3021): 2^16 networks fill a /15. It lies in
/// the shared space of RFC 6598, which neither a LAN nor a guest's image is likely to use.
const TRANSFER: Ipv4Addr = Ipv4Addr::new(100, 126, 0, 0);

/// The same of IPv6, on each pair: it is a link of its own.
const NODE6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
const TENANT6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 2);
/// Everybody, of each family.
const EVERYWHERE: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
const EVERYWHERE6: IpAddr = IpAddr::V6(Ipv6Addr::UNSPECIFIED);

/// One tenant network on this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Network {
    /// Name of its namespace.
    pub name: String,
    /// Unique on the node: transfer addresses and the host side's link name follow from it.
    pub index: u16,
    /// The gateway's address and the subnet's length, for example 10.128.3.1/24.
    pub gateway: Cidr,
    /// The same of IPv6. `None`: what its machines have of that ends in it.
    pub gateway6: Option<Cidr6>,
    pub mtu: u32,
    /// It goes on on other nodes.
    pub mesh: Option<Wanted>,
    /// Addresses of guests' own: the node knows that they lie behind this network, and answers for them to who asks.
    pub owned: Vec<IpAddr>,
}

impl Network {
    /// The link in the node's own namespace.
    pub fn host_link(&self) -> String {
        format!("tenant{}", self.index)
    }

    /// The node's and the tenant's end of the veth pair.
    fn transfer(&self) -> (Cidr, Cidr) {
        let first = u32::from(TRANSFER) + 2 * u32::from(self.index);
        let end = |address: u32| Cidr::new(address.into(), 31).expect("31 is a prefix length");
        (end(first), end(first + 1))
    }

    /// What a link has of IPv4, and what of IPv6 where there is any.
    fn with_six(&self, four: Cidr, six: impl IntoIterator<Item = AnyCidr>) -> Vec<AnyCidr> {
        let six = six.into_iter().filter(|_| self.gateway6.is_some());
        [AnyCidr::from(four)].into_iter().chain(six).collect()
    }

    /// The link in the node's own namespace.
    fn outside(&self, namespace: &Arc<OwnedFd>) -> Desired {
        let (node, tenant) = self.transfer();
        let by = |destination: AnyCidr| match destination.address {
            IpAddr::V4(_) => way(destination, tenant.address.into()),
            IpAddr::V6(_) => way(destination, TENANT6.into()),
        };
        let own = self.owned.iter();
        let own = own.filter(|own| own.is_ipv4() || self.gateway6.is_some());
        let own = own.map(|own| by(Cidr::host(*own)));
        let four = AnyCidr::from(self.gateway.network());
        let six = self.gateway6.map(|six| AnyCidr::from(six.network()));
        let subnets = [four].into_iter().chain(six).map(by);
        Desired {
            create: Some(Create::Veth {
                peer: WAN.to_owned(),
                namespace: namespace.clone(),
            }),
            mtu: Some(self.mtu),
            addresses: self.with_six(node, [local(NODE6)]),
            routes: subnets.chain(own).collect(),
            ..Desired::up(self.host_link())
        }
    }

    /// The links in the tenant's namespace.
    fn inside(&self) -> [Desired; 3] {
        let (node, tenant) = self.transfer();
        let all = |address| Cidr::new(address, 0).expect("0 is a prefix length");
        let default = way(all(EVERYWHERE), node.address.into());
        let default6 = self.gateway6.map(|_| way(all(EVERYWHERE6), NODE6.into()));
        let loopback = Cidr::new(Ipv4Addr::LOCALHOST, 8).expect("8 is a prefix length");
        let mac = guest_mac(self.gateway.address);
        [
            Desired {
                addresses: vec![loopback.into()],
                ..Desired::up("lo")
            },
            Desired {
                mtu: Some(self.mtu),
                addresses: self.with_six(tenant, [local(TENANT6)]),
                routes: [default].into_iter().chain(default6).collect(),
                ..Desired::up(WAN)
            },
            Desired {
                create: Some(Create::Bridge),
                mtu: Some(self.mtu),
                // Set, and so no longer the lowest of its ports': guests may remember it.
                mac: Some(mac),
                addresses: self.with_six(
                    self.gateway,
                    self.gateway6
                        .into_iter()
                        .map(AnyCidr::from)
                        .chain([local(link_local(mac))]),
                ),
                ..Desired::up(BRIDGE)
            },
        ]
    }

    /// The link to other nodes, with their subnets behind it. It has the gateway's address too: what the gateway asks other
    /// gateways comes from there.
    fn across(&self, mesh: &Wanted) -> Desired {
        let route = |destination: Cidr| DesiredRoute {
            destination: destination.into(),
            gateway: None,
            metric: 0,
        };
        let gateway = Cidr::host(self.gateway.address);
        Desired {
            mtu: Some(self.mtu),
            addresses: vec![gateway.into()],
            routes: mesh.peers.values().map(|peer| route(peer.subnet)).collect(),
            ..Desired::up(MESH)
        }
    }
}

/// A guest's TAP inside the tenant's namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TapSpec {
    /// At most 15 bytes, unique in the namespace.
    pub name: String,
    pub mtu: u32,
}

/// Whether a subnet touches none of `avoid`.
pub fn is_free(subnet: &Cidr, avoid: &[Cidr]) -> bool {
    let touches = |other: &Cidr| subnet.contains(other.address) || other.contains(subnet.address);
    !avoid.iter().any(touches)
}

/// The first of the node's tenant subnets that touches none of `avoid`: in each range, `index` says where
/// the search begins. The gateway is its first address. `None` when all are taken.
pub fn subnet(index: u16, avoid: &[Cidr]) -> Option<Cidr> {
    let free = |gateway: &Cidr| is_free(gateway, avoid);
    let mut first = 0;
    RANGES.iter().find_map(|(_, count)| {
        let from = first;
        first += count;
        (0..*count)
            .filter_map(|step| gateway(from + (index % count + step) % count))
            .find(free)
    })
}

/// The gateway of the tenant subnet with this number.
pub fn gateway(mut number: u16) -> Option<Cidr> {
    for (start, count) in RANGES {
        if number < count {
            let subnet = u32::from(start) + (u32::from(number) << (32 - SUBNET_PREFIX));
            return Cidr::new((subnet + 1).into(), SUBNET_PREFIX);
        }
        number -= count;
    }
    None
}

pub use types::network::number;

pub use crate::ula::{Ula, address6, link_local};

/// The MAC of a guest, or of the gateway: locally administered, made from the address, so that it is
/// unique within its network and the same after a restart.
pub fn guest_mac(address: Ipv4Addr) -> Mac {
    let [a, b, c, d] = address.octets();
    Mac([0x02, 0x00, a, b, c, d])
}

fn way(destination: AnyCidr, gateway: IpAddr) -> DesiredRoute {
    DesiredRoute {
        destination,
        gateway: Some(gateway),
        metric: 0,
    }
}

fn local(address: Ipv6Addr) -> AnyCidr {
    let address = Cidr6::new(address, 64);
    address.expect("64 is a prefix length").into()
}

/// Makes the network what `network` says, whatever stood before. Within a tokio runtime.
pub async fn ensure(network: &Network) -> Result<(), Error> {
    // The kernel may have been started without it.
    let has_ipv6 = Path::new(SETTINGS).join("ipv6").exists();
    let network = &Network {
        gateway6: network.gateway6.filter(|_| has_ipv6),
        ..network.clone()
    };
    let namespace = Arc::new(namespace::ensure(&network.name)?);
    within(&namespace, || settings(INSIDE))?;
    let (mut host, mut inner) = (Handle::open()?, Handle::open_in(&namespace)?);
    let (mut outside, inside) = (host.observe().await?, inner.observe().await?);
    // A pair is whole or made again: one end alone belongs to a namespace that is gone.
    let link = network.host_link();
    if outside.link(&link).is_some() != inside.link(WAN).is_some() {
        delete(&mut host, &link).await?;
        delete(&mut inner, WAN).await?;
        outside = host.observe().await?;
    }
    // The node's own namespace has the links of all tenants, so that it is looked at once. A link has to be there before its
    // settings can be made, and those before it has addresses.
    let steps = plan(&[network.outside(&namespace)], &outside);
    let (made, steps): (Vec<Step>, Vec<Step>) = steps.into_iter().partition(is_creation);
    host.apply(&made).await?;
    settings_of_link(network, &link)?;
    host.apply(&steps).await?;
    let steps = plan(&network.inside(), &inner.observe().await?);
    let (made, steps): (Vec<Step>, Vec<Step>) = steps.into_iter().partition(is_creation);
    inner.apply(&made).await?;
    within(&namespace, || {
        [WAN, BRIDGE]
            .iter()
            .try_for_each(|link| settings_of_link(network, link))
    })?;
    inner.apply(&steps).await?;
    join(network, &namespace, (&mut host, &mut inner)).await?;
    sysctl_if_present("ipv6/conf/all/forwarding", "1")?;
    sysctl("ipv4/ip_forward", "1")
}

fn is_creation(step: &Step) -> bool {
    matches!(step, Step::Create { .. })
}

/// Of a link that has IPv6, or has none. Its addresses are the node's to give, and nobody else has them: none is waited for.
fn settings_of_link(network: &Network, link: &str) -> Result<(), Error> {
    let off = if network.gateway6.is_some() { "0" } else { "1" };
    [
        // Before it would make one of its own.
        ("addr_gen_mode", "1"),
        ("accept_dad", "0"),
        ("accept_ra", "0"),
        ("accept_redirects", "0"),
        ("disable_ipv6", off),
    ]
    .iter()
    .try_for_each(|(name, value)| sysctl_if_present(&format!("ipv6/conf/{link}/{name}"), value))
}

/// Leads the network to other nodes, or not.
async fn join(
    network: &Network,
    namespace: &Arc<OwnedFd>,
    (host, inner): (&mut Handle, &mut Handle),
) -> Result<(), Error> {
    let observed = inner.observe().await?;
    let Some(mesh) = &network.mesh else {
        return match observed.link(MESH) {
            Some(_) => delete(inner, MESH).await,
            None => Ok(()),
        };
    };
    if observed.link(MESH).is_none() {
        let create = Create::Wireguard {
            namespace: namespace.clone(),
        };
        let link = MESH.to_owned();
        host.apply(&[Step::Create { link, create }]).await?;
    }
    // Its keys before its routes: nothing goes to whom it does not know.
    steer(network, mesh)?;
    let steps = plan(&[network.across(mesh)], &inner.observe().await?);
    inner.apply(&steps).await
}

/// Has the link to other nodes know them as it should.
fn steer(network: &Network, mesh: &Wanted) -> Result<(), Error> {
    let observed = wireguard::observe(&network.name, MESH)?;
    let changes = wireguard::plan(mesh, &observed, seconds_now());
    wireguard::apply(&network.name, MESH, &changes)
}

/// Has the link to other nodes look for those that are not heard; whom it knows is not changed. Returns how it is.
pub fn seek(network: &Network, mesh: &Wanted) -> Result<wireguard::Observed, Error> {
    let observed = wireguard::observe(&network.name, MESH)?;
    let changes = wireguard::seek(mesh, &observed, seconds_now());
    wireguard::apply(&network.name, MESH, &changes)?;
    Ok(observed)
}

/// Since 1970.
fn seconds_now() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.unwrap_or_default().as_secs()
}

/// No error if there is none.
async fn delete(handle: &mut Handle, link: &str) -> Result<(), Error> {
    let link = link.to_owned();
    handle.apply(&[Step::Delete { link }]).await
}

/// Settings of a tenant's namespace. The last field: the kernel may lack it.
const INSIDE: &[(&str, &str, bool)] = &[
    ("ipv4/ip_forward", "1", false),
    // What was ended because the rules do not let it begin does not begin in its middle: a machine that went on sending would bring it
    // back. In the node's own namespace the kernel itself forgets connections when an address goes for a moment: they may go on there.
    ("netfilter/nf_conntrack_tcp_loose", "0", true),
    // So nothing is forgotten before TCP itself gives up, in some quarter of an hour; the kernel's own are five minutes.
    (
        "netfilter/nf_conntrack_tcp_timeout_unacknowledged",
        "1200",
        true,
    ),
    (
        "netfilter/nf_conntrack_tcp_timeout_max_retrans",
        "1200",
        true,
    ),
    // The gateway answers for its own address only, and tells nobody of shorter ways.
    ("ipv4/conf/all/arp_ignore", "1", false),
    ("ipv4/conf/all/send_redirects", "0", false),
    ("ipv4/conf/default/send_redirects", "0", false),
    ("ipv4/conf/all/accept_redirects", "0", false),
    ("ipv4/conf/default/accept_redirects", "0", false),
    ("ipv6/conf/all/forwarding", "1", true),
    // Of links that are still to come: the ports of guests have no part of IPv6.
    ("ipv6/conf/default/disable_ipv6", "1", true),
    // Frames between guests are the bridge family's matter, not the IP rules'.
    ("bridge/bridge-nf-call-iptables", "0", true),
    ("bridge/bridge-nf-call-ip6tables", "0", true),
    ("bridge/bridge-nf-call-arptables", "0", true),
];

fn settings(settings: &[(&str, &str, bool)]) -> Result<(), Error> {
    settings
        .iter()
        .try_for_each(|(key, value, optional)| match optional {
            true => sysctl_if_present(key, value),
            false => sysctl(key, value),
        })
}

/// Deletes the namespace and with it the bridge and both ends of the veth pair. TAPs that VMMs still
/// hold lose their link. No error if there is none. Within a tokio runtime.
pub async fn remove(network: &Network) -> Result<(), Error> {
    // The namespace's end is not waited for, so the pair goes first.
    delete(&mut Handle::open()?, &network.host_link()).await?;
    if let Some(namespace) = namespace::open(&network.name)? {
        let mut inner = Handle::open_in(namespace)?;
        delete(&mut inner, BRIDGE).await?;
        // It would answer its peers, and keep its port, for as long as anybody holds the namespace.
        delete(&mut inner, MESH).await?;
    }
    namespace::remove(&network.name)
}

/// Opens a TAP (IFF_TAP | IFF_NO_PI | IFF_VNET_HDR, non-blocking) as a port of the bridge, up. It goes
/// when the last descriptor is closed. `EBUSY` while an earlier VMM still holds it. Apply the firewall
/// first: a TAP that the rules do not name passes nothing. Within a tokio runtime. One descriptor for each of
/// `queues`; with more than one the TAP is IFF_MULTI_QUEUE.
pub async fn open_tap(
    network: &Network,
    tap: &TapSpec,
    queues: NonZeroU8,
) -> Result<Vec<OwnedFd>, Error> {
    let operation = || format!("open TAP {} in namespace {}", tap.name, network.name);
    let namespace = existing(network)?;
    let fds = within(&namespace, || {
        let opened = match queues.get() {
            1 => sys::tap::open(&tap.name).map(|fd| vec![fd]),
            several => sys::tap::open_queues(&tap.name, several.into()),
        };
        opened.map_err(Error::io(operation()))
    })?;
    let port = Desired {
        mtu: Some(tap.mtu),
        master: Some(BRIDGE.to_owned()),
        ..Desired::up(&tap.name)
    };
    let mut handle = Handle::open_in(&namespace)?;
    let steps = plan(&[port], &handle.observe().await?);
    handle.apply(&steps).await?;
    Ok(fds)
}

/// The gateway of a subnet, here or on another node.
pub fn gateway_of(subnet: &Cidr) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(subnet.network().address) + 1)
}

/// A socket for questions to the gateway of the network's part on another node, for [`dns::ask`]: from the gateway's own address here,
/// which that one hears.
pub fn to_gateway(network: &Network, there: Cidr) -> Result<UdpSocket, Error> {
    let (from, to) = (network.gateway.address, gateway_of(&there));
    within(existing(network)?, || {
        let connect = || {
            let socket = UdpSocket::bind((from, 0))?;
            socket.set_nonblocking(true)?;
            socket.connect((to, DNS_PORT))?;
            Ok(socket)
        };
        connect().map_err(Error::io(format!(
            "make a socket to {to} in namespace {}",
            network.name
        )))
    })
}

/// Port 53 on the gateway's address, for [`dns::forward`].
pub fn dns_sockets(network: &Network) -> Result<dns::Sockets, Error> {
    let address = (network.gateway.address, DNS_PORT);
    within(existing(network)?, || {
        let bind = || {
            let (udp, tcp) = (UdpSocket::bind(address)?, TcpListener::bind(address)?);
            udp.set_nonblocking(true)?;
            tcp.set_nonblocking(true)?;
            Ok(dns::Sockets { udp, tcp })
        };
        bind().map_err(Error::io(format!(
            "listen for DNS in namespace {}",
            network.name
        )))
    })
}

/// Unconnected TCP sockets in the network, non-blocking: what is connected with one comes from the gateway's address.
pub fn tcp_sockets(network: &Network, count: usize) -> Result<Vec<OwnedFd>, Error> {
    let operation = || format!("make sockets in namespace {}", network.name);
    within(existing(network)?, || {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let make = || socket(AddressFamily::Inet, SockType::Stream, flags, None);
        let all: nix::Result<Vec<OwnedFd>> = (0..count).map(|_| make()).collect();
        all.map_err(Error::errno(operation()))
    })
}

fn existing(network: &Network) -> Result<OwnedFd, Error> {
    namespace::open(&network.name)?.ok_or_else(|| Error::Refused {
        what: "network",
        value: network.name.clone(),
        reason: "its namespace does not exist: call ensure first",
    })
}

#[cfg(test)]
mod tests;
