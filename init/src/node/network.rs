//! The node's network as the placed machines need it: firewalls, tenant networks, names.
//!
//! Owns: what follows from places and uplink, applied as a whole; the DNS forwarder of each network.
//! Refuses: choosing addresses (`workload` does).

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::num::NonZeroU8;
use std::os::fd::OwnedFd;

use net::dns::Names;
use net::firewall::policy;
use net::network::{self, Network, TapSpec};
use net::{firewall, namespace};
use tokio::runtime;
use tokio::sync::watch;
use types::deployment::{API_PORT, ONLY_WORKLOAD};
use types::{Cidr, PublicKey};
use workload::desired::Key;
use workload::host::{Placed, Places};

use super::context::Uplink;

/// The MTU of every port that DHCP has not told otherwise, and of tenant networks.
pub(crate) const MTU: u16 = 1500;
const DNS_PORT: u16 = 53;
/// Namespaces of this name and a number are tenant networks, and nothing else is.
const NAMESPACE: &str = "tenant";

/// A subnet for a signer who has none: the hash of the key says where the search begins.
pub(crate) fn choose_subnet(signer: &PublicKey, taken: &[Cidr], uplink: &Uplink) -> Option<Cidr> {
    let hash = blake3::hash(&signer.0);
    let [a, b, ..] = *hash.as_bytes();
    let avoid = [taken, &uplink.networks].concat();
    network::subnet(u16::from_le_bytes([a, b]), &avoid)
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
        mtu: u32::from(MTU),
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

/// Opens a machine's TAP, a descriptor for each queue. Its network must have been applied. Blocking: on a
/// thread of the runtime's pool.
pub(crate) fn open_tap(address: Ipv4Addr, queues: NonZeroU8) -> Result<Vec<OwnedFd>, String> {
    let network =
        network_of(address).ok_or_else(|| format!("{address} is in no tenant network"))?;
    let tap = TapSpec {
        name: tap_name(address),
        mtu: u32::from(MTU),
    };
    let opened = runtime::Handle::current().block_on(network::open_tap(&network, &tap, queues));
    opened.map_err(|e| sys::error::chain(&e))
}

/// Everything that is to be applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Plan {
    pub(crate) node: policy::Node,
    pub(crate) tenants: BTreeMap<String, (Network, policy::Tenant, Names)>,
}

/// What follows from places and uplink.
pub(crate) fn plan(places: &Places, uplink: &Uplink) -> Plan {
    let mut tenants: BTreeMap<String, (Network, policy::Tenant, Names)> = BTreeMap::new();
    let mut published: BTreeMap<String, Vec<policy::Published>> = BTreeMap::new();
    let mut machines: BTreeMap<&Key, usize> = BTreeMap::new();
    for place in places.values() {
        *machines.entry(&place.key).or_default() += 1;
    }
    for place in places.values() {
        let Some(network) = network_of(place.address) else {
            log::error!(
                "{} of {} has the foreign address {}",
                place.workload,
                place.key.name,
                place.address
            );
            continue;
        };
        let name = network.name.clone();
        let (_, tenant, names) = tenants.entry(name.clone()).or_insert_with(|| {
            let tenant = policy::Tenant {
                gateway: network.gateway,
                refused: uplink.networks.clone(),
                guests: Vec::new(),
            };
            (network, tenant, Names::default())
        });
        tenant.guests.push(policy::Guest {
            tap: tap_name(place.address),
            mac: network::guest_mac(place.address),
            address: place.address,
            ports: place
                .ports
                .iter()
                .map(|p| p.machine)
                .collect::<BTreeSet<_>>()
                .into_iter()
                .collect(),
        });
        add_names(names, place, machines[&place.key]);
        published
            .entry(name)
            .or_default()
            .extend(place.ports.iter().map(|port| policy::Published {
                node_port: port.node,
                address: place.address,
                port: port.machine,
            }));
    }
    let node_tenants = tenants
        .iter()
        .map(|(name, (network, ..))| policy::NodeTenant {
            link: network.host_link(),
            subnet: network.gateway.network(),
            published: published.remove(name).unwrap_or_default(),
        });
    let node = policy::Node {
        uplinks: uplink.links.clone(),
        open_ports: vec![API_PORT],
        tenants: node_tenants.collect(),
    };
    Plan { node, tenants }
}

/// `web.shop`; and plain `shop` where it is its deployment's only machine of so many, or the one that is called `main`.
fn add_names(names: &mut Names, place: &Placed, machines: usize) {
    let (workload, deployment) = (&place.workload, &place.key.name);
    let full = format!("{workload}.{deployment}");
    names.machines.insert(full, place.address);
    names.domains.insert(place.address, deployment.to_string());
    if workload.as_str() == ONLY_WORKLOAD || machines == 1 {
        names.machines.insert(deployment.to_string(), place.address);
    }
}

/// Applies a plan. One network that fails keeps no other from being made; the first error is given.
/// Gives the networks that are as they should be. Blocking, as what the kernel does of it takes its time
/// within the calls: on a thread of the runtime's pool.
pub(crate) fn apply(plan: &Plan) -> (BTreeSet<String>, Result<(), String>) {
    let mut made = BTreeSet::new();
    // Making a network turns forwarding on: without the node's rules that would be an open door.
    if let Err(error) = firewall::apply(&policy::node(&plan.node)) {
        return (made, Err(sys::error::chain(&error)));
    }
    let mut result = Ok(());
    let mut note = |outcome: Result<(), net::Error>| match outcome {
        Ok(()) => true,
        Err(error) => {
            result = std::mem::replace(&mut result, Ok(())).and(Err(sys::error::chain(&error)));
            false
        }
    };
    let runtime = runtime::Handle::current();
    for (name, (network, tenant, _)) in &plan.tenants {
        let done = runtime
            .block_on(network::ensure(network))
            .and_then(|()| firewall::apply_in(name, &policy::tenant(tenant)));
        if note(done) {
            made.insert(name.clone());
        }
    }
    match namespace::list() {
        Ok(names) => {
            let stale = names.iter().filter(|n| !plan.tenants.contains_key(*n));
            for network in stale.filter_map(|n| named(n)) {
                note(runtime.block_on(network::remove(&network)));
            }
        }
        Err(error) => {
            note(Err(error));
        }
    }
    (made, result)
}

/// The network of a namespace's name.
fn named(namespace: &str) -> Option<Network> {
    let index: u16 = namespace.strip_prefix(NAMESPACE)?.parse().ok()?;
    numbered(index).filter(|network| network.name == namespace)
}

/// The DNS forwarders: one a network, for as long as the network stands.
#[derive(Default)]
pub(crate) struct Forwarders {
    running: BTreeMap<String, Forwarder>,
    upstreams: Option<watch::Sender<Vec<SocketAddr>>>,
}

struct Forwarder {
    names: watch::Sender<Names>,
    task: tokio::task::JoinHandle<()>,
}

impl Forwarders {
    /// Starts, informs and ends forwarders as the plan says. One whose socket cannot be had is tried
    /// again at the next change.
    pub(crate) fn converge(&mut self, plan: &Plan, made: &BTreeSet<String>, uplink: &Uplink) {
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
        for (name, (network, _, names)) in &plan.tenants {
            if let Some(forwarder) = self.running.get(name) {
                forwarder.names.send_if_modified(|held| {
                    let new = held != names;
                    held.clone_from(names);
                    new
                });
            } else if made.contains(name) {
                match network::dns_sockets(network) {
                    Ok(sockets) => {
                        let (names, heard) = watch::channel(names.clone());
                        let task = tokio::task::spawn_local(forward(
                            sockets,
                            upstreams.subscribe(),
                            heard,
                        ));
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
mod tests {
    use super::*;
    use types::deployment::Port;
    use types::{Name, VmId};
    use workload::desired::Key;

    fn place(
        deployment: &str,
        workload: &str,
        address: [u8; 4],
        ports: &[(u16, u16)],
    ) -> (VmId, Placed) {
        let (signer, name) = (
            PublicKey([1; 32]),
            deployment.parse::<Name>().expect("a name"),
        );
        let workload: Name = workload.parse().expect("a name");
        let ports = ports.iter().map(|(node, machine)| Port {
            node: *node,
            machine: *machine,
        });
        let vm = VmId::new(&signer, &name, &workload);
        let key = Key { signer, name };
        (
            vm,
            Placed {
                key,
                workload,
                address: address.into(),
                ports: ports.collect(),
            },
        )
    }

    #[test]
    fn a_chosen_subnet_leads_back_to_its_network() {
        let uplink = Uplink::default();
        let gateway = choose_subnet(&PublicKey([3; 32]), &[], &uplink).expect("a subnet");
        let network = network_of(gateway.address).expect("a network");
        assert_eq!(network.gateway, gateway);
        assert_eq!(named(&network.name), Some(network.clone()));
        let other = choose_subnet(&PublicKey([3; 32]), &[gateway.network()], &uplink);
        assert_ne!(other, Some(gateway));
        let lan = Uplink {
            networks: vec![gateway.network()],
            ..uplink
        };
        assert_ne!(choose_subnet(&PublicKey([3; 32]), &[], &lan), Some(gateway));
    }

    #[test]
    fn a_node_whose_second_port_is_in_all_of_10_still_has_subnets() {
        let uplink = Uplink {
            addresses: "192.168.1.9/24".parse().into_iter().collect(),
            networks: ["192.168.1.0/24", "10.0.0.0/8"]
                .map(|lan| lan.parse().expect("a prefix"))
                .into(),
            ..Uplink::default()
        };
        let gateway = choose_subnet(&PublicKey([3; 32]), &[], &uplink).expect("a subnet");
        assert_eq!(gateway.address.octets()[0], 172);
        let network = network_of(gateway.address).expect("a network");
        assert_eq!(network.gateway, gateway);
        assert_eq!(named(&network.name), Some(network));
    }

    #[test]
    fn other_namespaces_are_not_ours() {
        for name in ["tenant", "tenantx", "tenant40000", "tenant01", "other3"] {
            assert_eq!(named(name), None, "{name}");
        }
    }

    #[test]
    fn two_deployments_share_their_owners_network() {
        let places: Places = [
            place("shop", "web", [10, 130, 1, 2], &[(80, 8080), (81, 8080)]),
            place("blog", "web", [10, 130, 1, 3], &[]),
            place("blog", "db", [10, 130, 1, 4], &[]),
            place("wiki", "main", [10, 130, 1, 5], &[]),
            place("wiki", "db", [10, 130, 1, 6], &[]),
        ]
        .into();
        let uplink = Uplink {
            addresses: "192.168.1.9/24".parse().into_iter().collect(),
            networks: ["192.168.1.0/24", "198.51.100.0/24"]
                .map(|lan| lan.parse().expect("a prefix"))
                .into(),
            links: vec!["eth0".to_owned(), "eth1".to_owned()],
            ..Uplink::default()
        };
        let plan = plan(&places, &uplink);
        assert_eq!((plan.tenants.len(), plan.node.tenants.len()), (1, 1));
        assert_eq!(plan.node.tenants[0].published.len(), 2);
        assert_eq!(plan.node.open_ports, [7443]);
        let (_, tenant, names) = plan.tenants.values().next().expect("a tenant");
        assert_eq!(tenant.refused, uplink.networks);
        let web = tenant
            .guests
            .iter()
            .find(|g| g.address == Ipv4Addr::new(10, 130, 1, 2));
        assert_eq!(web.map(|g| g.ports.clone()), Some(vec![8080]));
        let known = |name: &str| names.machines.get(name).map(|at| at.octets()[3]);
        for (name, at) in [
            ("web.shop", Some(2)),
            ("shop", Some(2)),
            ("web.blog", Some(3)),
            ("db.blog", Some(4)),
            ("blog", None),
            ("wiki", Some(5)),
            ("db.wiki", Some(6)),
            ("web", None),
        ] {
            assert_eq!(known(name), at, "{name}");
        }
        let beside = names.domains.get(&Ipv4Addr::new(10, 130, 1, 4));
        assert_eq!(beside.map(String::as_str), Some("blog"));
    }

    #[test]
    fn a_node_without_machines_still_has_its_own_rules() {
        let plan = plan(&Places::new(), &Uplink::default());
        assert!(plan.tenants.is_empty() && plan.node.open_ports == [API_PORT]);
    }
}
