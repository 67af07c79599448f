//! The reconciler's networks: which subnet each has, and which addresses a machine gets in those that it is on.
//!
//! Owns: what follows from the addresses that machines have. Nothing else is remembered of a network: one without machines has
//! the subnet that it asks for, or none. Refuses: the links and rules that follow ([`crate::host::Step::Publish`] has the
//! places).

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use types::deployment::{Action, Deployment, Machine as Spec};
use types::mesh::{OFFERS_MAX, PORT_OFFERS_MAX, PORTS, Peer};
use types::network::Network;
use types::status::{NetworkStatus, PeerStatus, Refusal, RefusalCode};
use types::{Bytes, Cidr, Name, VmId};

use super::Reconciler;
use crate::address;
use crate::desired::{Key, Target, Verified};
use crate::host::{CardAddress, NetworkId, PlacedMesh};
use crate::machine::Machine;

/// A subnet for a network that has none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wish<'a> {
    /// Any: the network's name says where the search begins.
    Any(&'a NetworkId),
    /// This one or none.
    This(Cidr),
}

/// Answers a wish with a subnet that touches none of these.
pub type ChooseSubnet = Box<dyn Fn(Wish<'_>, &[Cidr]) -> Option<Cidr> + Send>;

impl Reconciler {
    /// The networks that machines have addresses in, and those that ask for a subnet.
    pub(super) fn subnets(&self) -> BTreeMap<NetworkId, Cidr> {
        let mut subnets: BTreeMap<NetworkId, Cidr> = BTreeMap::new();
        for machine in self.machines.values() {
            for card in &machine.cards {
                let id = NetworkId::of(&machine.key, &card.network);
                subnets.insert(id, address::subnet_of(card.address));
            }
        }
        for (id, network) in self.wanted_networks() {
            if let Some(subnet) = network.subnet {
                subnets.insert(id, subnet);
            }
        }
        subnets
    }

    fn wanted_networks(&self) -> impl Iterator<Item = (NetworkId, &Network)> {
        self.desired.iter().flat_map(|(key, target)| {
            let networks = target.deployment().into_iter();
            let networks = networks.flat_map(Deployment::networks);
            networks.map(move |(name, network)| (NetworkId::of(key, name), network))
        })
    }

    /// The addresses that a machine is to have: those that it has already, where it stays on the network.
    pub(super) fn choose_cards(
        &self,
        vm: &VmId,
        machine: &Machine,
        target: &Target,
    ) -> Result<Vec<CardAddress>, &'static str> {
        let spec = target.machine(&machine.workload);
        let mut subnets = self.subnets();
        let taken = self.taken(vm, &machine.key);
        let mut cards = Vec::new();
        for card in spec.into_iter().flat_map(|spec| spec.cards()) {
            let id = NetworkId::of(&machine.key, &card.network);
            let subnet = match subnets.get(&id) {
                Some(subnet) => *subnet,
                None => {
                    let mut others: BTreeSet<Cidr> = subnets.values().copied().collect();
                    others.extend(self.grounds_of_pools(None));
                    let others: Vec<Cidr> = others.into_iter().collect();
                    let chosen = (self.choose_subnet)(Wish::Any(&id), &others);
                    let chosen = chosen.ok_or("the node has no subnet left")?.network();
                    subnets.insert(id, chosen);
                    chosen
                }
            };
            let held = machine.cards.iter().find(|h| h.network == card.network);
            let held = held.map(|held| held.address);
            let held = held.filter(|held| subnet.contains(*held) && !taken.contains(held));
            let address = match card.address.or(held) {
                Some(address) => address,
                None => {
                    address::choose(subnet, vm, &taken).ok_or("its network has no address left")?
                }
            };
            let network = card.network;
            cards.push(CardAddress {
                network,
                address,
                own: Vec::new(),
            });
        }
        if let Some((first, spec)) = cards.first_mut().zip(spec) {
            first.own = self.choose_own(vm, machine, spec)?;
        }
        Ok(cards)
    }

    /// What other machines have or ask for.
    fn taken(&self, vm: &VmId, key: &Key) -> BTreeSet<Ipv4Addr> {
        let others = self.machines.iter().filter(|(other, _)| *other != vm);
        let held = others.flat_map(|(_, machine)| &machine.cards);
        let mut taken: BTreeSet<Ipv4Addr> = held.map(|card| card.address).collect();
        let deployment = self.desired.get(key).and_then(Target::deployment);
        let machines = deployment.into_iter().flat_map(Deployment::machines);
        let others = machines.filter(|(name, _)| VmId::new(&key.signer, &key.name, name) != *vm);
        taken.extend(others.flat_map(|(_, spec)| spec.networks.iter().filter_map(|c| c.address)));
        taken
    }

    /// A network that nothing leads out of.
    pub(super) fn is_internal(&self, key: &Key, network: &Name) -> bool {
        let deployment = self.desired.get(key).and_then(Target::deployment);
        let network = deployment.and_then(|deployment| deployment.network(network));
        network.is_some_and(|network| network.internal)
    }

    /// Why a deployment's networks cannot be as it says: what they ask for is taken.
    pub fn networks_in_the_way(&self, verified: &Verified) -> Option<Refusal> {
        let Action::Deploy(deployment) = &verified.statement.action else {
            return None;
        };
        let (key, subnets) = (verified.key(), self.subnets());
        for (name, network) in deployment.networks() {
            let id = NetworkId::of(&key, name);
            let (Some(wish), has) = (network.subnet, subnets.get(&id)) else {
                continue;
            };
            if has == Some(&wish) {
                continue;
            }
            let others = subnets.values().copied();
            let others: Vec<Cidr> = others
                .chain(self.grounds_of_pools(Some(deployment)))
                .collect();
            if (self.choose_subnet)(Wish::This(wish), &others).is_none() {
                return Some(conflict(format!(
                    "network {name} of {} asks for {wish}, which is in use on this node or around it: ask for another /24, or for none",
                    key.name
                )));
            }
        }
        deployment.machines().find_map(|(name, machine)| {
            let vm = VmId::new(&key.signer, &key.name, name);
            let asked = machine.networks.iter().filter_map(|card| card.address);
            let mut asked: BTreeSet<Ipv4Addr> = asked.collect();
            let others = self.machines.iter().filter(|(other, _)| **other != vm);
            let held = others.flat_map(|(_, other)| &other.cards);
            let held = held.map(|card| card.address).find(|held| asked.remove(held))?;
            Some(conflict(format!(
                "{name} of {} asks for {held}, which another machine has: ask for another address, or remove that machine first",
                key.name
            )))
        })
    }

    pub(super) fn network_statuses(&self, key: &Key) -> BTreeMap<Name, NetworkStatus> {
        let deployment = self.desired.get(key).and_then(Target::deployment);
        let networks = deployment.into_iter().flat_map(Deployment::networks);
        let mut statuses: BTreeMap<Name, NetworkStatus> = networks
            .map(|(name, network)| {
                let subnet = network.subnet;
                let peers = network.mesh.iter().flat_map(|mesh| &mesh.peers);
                let status = NetworkStatus {
                    subnet,
                    machines: BTreeMap::new(),
                    peers: peers
                        .map(|(name, peer)| (name.clone(), unheard(peer)))
                        .collect(),
                };
                (name.clone(), status)
            })
            .collect();
        if statuses.is_empty() {
            return statuses;
        }
        for machine in self.machines.values().filter(|m| m.key == *key) {
            for card in &machine.cards {
                if let Some(status) = statuses.get_mut(&card.network) {
                    status
                        .subnet
                        .get_or_insert(address::subnet_of(card.address));
                    let name = machine.workload.clone();
                    status.machines.insert(name, card.address);
                }
            }
        }
        statuses
    }
}

/// What is known of another node before it was heard.
fn unheard(peer: &Peer) -> PeerStatus {
    PeerStatus {
        node: peer.node,
        subnet: peer.subnet,
        endpoint: None,
        handshake_s: None,
        sent: Bytes(0),
        received: Bytes(0),
    }
}

/// Those of a machine's networks that go on on other nodes.
pub(super) fn across(target: &Target, machine: &Spec) -> BTreeSet<Name> {
    let goes_on = |name: &Name| {
        let network = target.deployment().and_then(|all| all.network(name));
        network.is_some_and(|network| network.mesh.is_some())
    };
    let names = machine.cards().into_iter().map(|card| card.network);
    names.filter(goes_on).collect()
}

/// What a node can be in a network across nodes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offer {
    /// The one that it has, or those that it could have.
    pub ports: Vec<u16>,
    /// The one that it has, or those that it could have.
    pub subnets: Vec<Cidr>,
    /// As the ledger has it.
    pub network: Option<Network>,
}

impl Reconciler {
    /// What this node can be in a network of that name. `None`: no port is left.
    pub fn offer(&self, key: &Key, name: &Name) -> Option<Offer> {
        let deployment = self.desired.get(key).and_then(Target::deployment);
        let network = deployment.and_then(|all| all.network(name)).cloned();
        let held = network.as_ref().and_then(|network| network.mesh.as_ref());
        let ports = match held {
            Some(mesh) => vec![mesh.port],
            None => {
                let taken = self.desired.udp_ports(None);
                let free = PORTS.filter(|port| !taken.contains(port));
                free.take(PORT_OFFERS_MAX).collect()
            }
        };
        if ports.is_empty() {
            return None;
        }
        let (id, known) = (NetworkId::of(key, name), self.subnets());
        if let Some(subnet) = known.get(&id) {
            let subnets = vec![*subnet];
            return Some(Offer {
                ports,
                subnets,
                network,
            });
        }
        let mut taken: Vec<Cidr> = known.values().copied().collect();
        taken.extend(self.grounds_of_pools(None));
        let mut subnets = Vec::new();
        while subnets.len() < OFFERS_MAX
            && let Some(free) = (self.choose_subnet)(Wish::Any(&id), &taken)
        {
            subnets.push(free.network());
            taken.push(free.network());
        }
        Some(Offer {
            ports,
            subnets,
            network,
        })
    }

    pub(super) fn meshes(&self) -> Vec<PlacedMesh> {
        let networks = self.desired.iter().flat_map(|(key, target)| {
            let networks = target.deployment().into_iter();
            let networks = networks.flat_map(Deployment::networks);
            networks.map(move |(name, network)| (key, name, network))
        });
        let placed = networks.filter_map(|(key, name, network)| {
            Some(PlacedMesh {
                key: key.clone(),
                network: name.clone(),
                subnet: network.subnet?,
                internal: network.internal,
                mesh: network.mesh.clone()?,
            })
        });
        placed.collect()
    }
}

fn conflict(message: String) -> Refusal {
    Refusal {
        code: RefusalCode::Conflict,
        message,
    }
}
