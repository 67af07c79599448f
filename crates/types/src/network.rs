//! Networks: which ones a deployment has, and which of them its machines are on.
//!
//! Owns: the fields a tenant writes, the ranges that subnets come from, and what can be checked without a node.
//! Refuses: networks of other deployments, and addresses that nobody can know before the node has chosen a subnet.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use crate::deployment::{Deployment, Machine, Protocol};
use crate::mesh::{Mesh, MeshError};
use crate::{Cidr, Name};

/// What the network is called that all machines of a signer share, whatever their deployment. No deployment names one so.
pub const DEFAULT_NETWORK: &str = "default";
/// Most networks of one machine: each is a card, which takes an interrupt line and threads of its monitor.
pub const CARDS_MAX: usize = 4;
/// Subnets are this long everywhere on a node.
pub const SUBNET_PREFIX: u8 = 24;
/// Subnets are the /24s of 10.128.0.0/9, numbered from 0; after them, for a LAN that takes all of 10.0.0.0/8, those of
/// 172.16.0.0/12. The first of each and how many there are.
pub const RANGES: [(Ipv4Addr, u16); 2] = [
    (Ipv4Addr::new(10, 128, 0, 0), 1 << 15),
    (Ipv4Addr::new(172, 16, 0, 0), 1 << 12),
];

/// A network of one deployment: its machines reach each other in it, by address and by name, and nobody else does.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Network {
    /// Absent: the node chooses. Never changes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subnet: Option<Cidr>,
    /// Its machines reach no further through it: it has no way out, and nothing is published into it.
    #[serde(default, skip_serializing_if = "is_false")]
    pub internal: bool,
    /// It goes on on other nodes. Absent: it is on this one alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mesh: Option<Mesh>,
}

fn is_false(value: &bool) -> bool {
    !*value
}

/// A network card of a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Card {
    /// A network of the same deployment, or [`DEFAULT_NETWORK`].
    pub network: Name,
    /// Of a network whose subnet the deployment says. Absent: the node chooses, and keeps it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<Ipv4Addr>,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NetworkError {
    #[error(
        "network {DEFAULT_NETWORK}: that is the one that all your machines are on which name none: choose another name"
    )]
    Reserved,
    #[error(
        "network {name}: {found} is no subnet here: write a /24 within 10.128.0.0/9 or 172.16.0.0/12, such as 10.128.7.0/24, or leave it out"
    )]
    Subnet { name: Name, found: Cidr },
    #[error("network {name} across nodes: {problem}")]
    Mesh { name: Name, problem: MeshError },
    #[error(
        "network {name} across nodes: UDP port {port} is another network's or published too: choose another"
    )]
    MeshPort { name: Name, port: u16 },
    #[error("networks {one} and {other} both want {subnet}: give each its own")]
    SubnetTwice {
        one: Name,
        other: Name,
        subnet: Cidr,
    },
    #[error("workload {machine}: it is on {found} networks, at most {CARDS_MAX} are possible")]
    Cards { machine: Name, found: usize },
    #[error("workload {machine} names the network {network} twice: once is enough")]
    Twice { machine: Name, network: Name },
    #[error(
        "workload {machine} is on {network}, which is no network of this deployment: add it to workloads as `{network}: {{network: {{}}}}`, or write {DEFAULT_NETWORK}"
    )]
    Unknown { machine: Name, network: Name },
    #[error(
        "workload {machine}: {address} cannot be asked for, as {network} says no subnet: give the network a subnet, or leave out the address"
    )]
    NoSubnet {
        machine: Name,
        network: Name,
        address: Ipv4Addr,
    },
    #[error(
        "workload {machine}: {address} is no address for a machine in {subnet}: take one from .2 to .254 of it"
    )]
    Outside {
        machine: Name,
        address: Ipv4Addr,
        subnet: Cidr,
    },
    #[error("workload {machine}: {address} is another machine's too: choose another")]
    AddressTwice { machine: Name, address: Ipv4Addr },
    #[error(
        "workload {machine} publishes ports and its first network, {network}, is internal: let the first be one that leads outside"
    )]
    Published { machine: Name, network: Name },
}

/// The number of the subnet that an address lies in. `None`: in none.
pub fn number(address: Ipv4Addr) -> Option<u16> {
    let mut first = 0;
    RANGES.iter().find_map(|(start, count)| {
        let from = first;
        first += count;
        let at = u32::from(address).checked_sub(u32::from(*start))? >> (32 - SUBNET_PREFIX);
        let at = u16::try_from(at).ok().filter(|at| at < count)?;
        Some(from + at)
    })
}

/// Whether a machine's subnet can be this.
pub(crate) fn is_subnet(subnet: &Cidr) -> bool {
    let whole = subnet.prefix() == SUBNET_PREFIX && *subnet == subnet.network();
    whole && number(subnet.address).is_some()
}

impl Network {
    fn check(&self, name: &Name, deployment: &Deployment) -> Result<(), NetworkError> {
        if name.as_str() == DEFAULT_NETWORK {
            return Err(NetworkError::Reserved);
        }
        if let Some(found) = self.subnet.filter(|subnet| !is_subnet(subnet)) {
            let name = name.clone();
            return Err(NetworkError::Subnet { name, found });
        }
        let here = deployment.machines().map(|(name, _)| name);
        let mesh = self.mesh.as_ref();
        let mesh = mesh.map(|mesh| mesh.check(self.subnet, here));
        mesh.unwrap_or(Ok(()))
            .map_err(|problem| NetworkError::Mesh {
                name: name.clone(),
                problem,
            })
    }
}

impl Machine {
    /// The networks that it is on, the first being its way outside.
    pub fn cards(&self) -> Vec<Card> {
        if !self.networks.is_empty() {
            return self.networks.clone();
        }
        let network = DEFAULT_NETWORK.parse().expect("it is a DNS label");
        vec![Card {
            network,
            address: None,
        }]
    }
}

/// All that is said of networks in a deployment.
pub(crate) fn check(deployment: &Deployment) -> Result<(), NetworkError> {
    let mut subnets: Vec<(Cidr, &Name)> = Vec::new();
    let published = deployment
        .machines()
        .flat_map(|(_, machine)| &machine.ports);
    let published = published.filter(|port| port.protocol == Protocol::Udp);
    let mut ports: BTreeSet<u16> = published.map(|port| port.node).collect();
    for (name, network) in deployment.networks() {
        network.check(name, deployment)?;
        if let Some(mesh) = &network.mesh
            && !ports.insert(mesh.port)
        {
            let (name, port) = (name.clone(), mesh.port);
            return Err(NetworkError::MeshPort { name, port });
        }
        let Some(subnet) = network.subnet else {
            continue;
        };
        if let Some((_, one)) = subnets.iter().find(|(other, _)| *other == subnet) {
            return Err(NetworkError::SubnetTwice {
                one: (*one).clone(),
                other: name.clone(),
                subnet,
            });
        }
        subnets.push((subnet, name));
    }
    let mut taken = BTreeSet::new();
    for (name, machine) in deployment.machines() {
        check_machine(deployment, name, machine, &mut taken)?;
    }
    Ok(())
}

fn check_machine(
    deployment: &Deployment,
    name: &Name,
    machine: &Machine,
    taken: &mut BTreeSet<Ipv4Addr>,
) -> Result<(), NetworkError> {
    let own = || name.clone();
    let cards = &machine.networks;
    if cards.len() > CARDS_MAX {
        let found = cards.len();
        let machine = own();
        return Err(NetworkError::Cards { machine, found });
    }
    let mut on = BTreeSet::new();
    for (place, card) in cards.iter().enumerate() {
        let (machine_name, network) = (own(), card.network.clone());
        if !on.insert(&card.network) {
            let machine = machine_name;
            return Err(NetworkError::Twice { machine, network });
        }
        let spec = deployment.network(&card.network);
        if spec.is_none() && network.as_str() != DEFAULT_NETWORK {
            let machine = machine_name;
            return Err(NetworkError::Unknown { machine, network });
        }
        if place == 0 && spec.is_some_and(|spec| spec.internal) && !machine.ports.is_empty() {
            let machine = machine_name;
            return Err(NetworkError::Published { machine, network });
        }
        if let Some(address) = card.address {
            check_address(name, card, address, spec)?;
            if !taken.insert(address) {
                let machine = machine_name;
                return Err(NetworkError::AddressTwice { machine, address });
            }
        }
    }
    Ok(())
}

fn check_address(
    machine: &Name,
    card: &Card,
    address: Ipv4Addr,
    spec: Option<&Network>,
) -> Result<(), NetworkError> {
    let (machine, network) = (machine.clone(), card.network.clone());
    let Some(subnet) = spec.and_then(|spec| spec.subnet) else {
        return Err(NetworkError::NoSubnet {
            machine,
            network,
            address,
        });
    };
    let [.., last] = address.octets();
    if !subnet.contains(address) || !(2..=254).contains(&last) {
        return Err(NetworkError::Outside {
            machine,
            address,
            subnet,
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, proptest};

    use super::*;
    use crate::Digest;

    fn check(networks: &str, machines: &[(&str, &str)]) -> Result<(), String> {
        let flist = Digest([1; 32]);
        let machine = |(name, fields): &(&str, &str)| {
            format!(r#","{name}":{{"machine":{{"image":{{"flist":"{flist}"}}{fields}}}}}"#)
        };
        let machines: String = machines.iter().map(machine).collect();
        let json = format!(r#"{{"workloads":{{{networks}{machines}}}}}"#);
        let deployment: Deployment = serde_json::from_str(&json).map_err(|e| e.to_string())?;
        deployment.check().map_err(|e| e.to_string())
    }

    const TWO: &str = r#""front":{"network":{"subnet":"10.128.7.0/24"}},"back":{"network":{}}"#;

    #[test]
    fn machines_are_on_networks_of_their_deployment() {
        let web = r#","networks":[{"network":"front","address":"10.128.7.9"},{"network":"back"}]"#;
        let db = r#","networks":[{"network":"back"},{"network":"default"}]"#;
        check(TWO, &[("web", web), ("db", db), ("none", "")]).expect("a valid deployment");
    }

    #[test]
    fn each_mistake_is_named() {
        let on = |networks: &str| format!(r#","networks":[{networks}]"#);
        for (networks, machine, says) in [
            (
                TWO,
                on(r#"{"network":"side"}"#),
                "which is no network of this deployment",
            ),
            (
                TWO,
                on(r#"{"network":"web"}"#),
                "which is no network of this deployment",
            ),
            (
                TWO,
                on(r#"{"network":"back"},{"network":"back"}"#),
                "names the network back twice",
            ),
            (
                TWO,
                on(r#"{"network":"back","address":"10.128.7.2"}"#),
                "back says no subnet",
            ),
            (
                TWO,
                on(r#"{"network":"default","address":"10.128.7.2"}"#),
                "default says no subnet",
            ),
            (
                TWO,
                on(r#"{"network":"front","address":"10.128.8.2"}"#),
                "no address for a machine",
            ),
            (
                TWO,
                on(r#"{"network":"front","address":"10.128.7.1"}"#),
                "no address for a machine",
            ),
            (
                TWO,
                on(r#"{"network":"front","address":"10.128.7.255"}"#),
                "no address for a machine",
            ),
            (TWO, on(r#"{"network":"front","mac":1}"#), "unknown field"),
            (
                r#""default":{"network":{}}"#,
                String::new(),
                "choose another name",
            ),
            (
                r#""a":{"network":{"subnet":"10.128.7.1/24"}}"#,
                String::new(),
                "is no subnet here",
            ),
            (
                r#""a":{"network":{"subnet":"10.127.7.0/24"}}"#,
                String::new(),
                "is no subnet here",
            ),
            (
                r#""a":{"network":{"subnet":"10.128.0.0/16"}}"#,
                String::new(),
                "is no subnet here",
            ),
            (
                r#""a":{"network":{"subnet":"10.128.7.0/24"}},"b":{"network":{"subnet":"10.128.7.0/24"}}"#,
                String::new(),
                "networks a and b both want 10.128.7.0/24",
            ),
            (
                r#""a":{"network":{"internal":true}}"#,
                format!(
                    r#"{},"ports":[{{"node":80,"machine":80}}]"#,
                    on(r#"{"network":"a"}"#)
                ),
                "its first network, a, is internal",
            ),
        ] {
            let error = check(networks, &[("web", &machine)]).expect_err(says);
            assert!(error.contains(says), "{error} for {says}");
        }
        let same = on(r#"{"network":"front","address":"10.128.7.2"}"#);
        let error = check(TWO, &[("a", &same), ("b", &same)]).expect_err("one address for two");
        assert!(error.contains("another machine's too"), "{error}");
    }

    #[test]
    fn a_machine_that_names_no_network_is_on_the_default_one() {
        let json = format!(r#"{{"image":{{"flist":"{}"}}}}"#, Digest([1; 32]));
        let machine: Machine = serde_json::from_str(&json).expect("a machine");
        let names: Vec<Card> = machine.cards();
        assert_eq!(names.len(), 1);
        assert_eq!(names[0].network.as_str(), DEFAULT_NETWORK);
    }

    proptest! {
        #[test]
        fn every_subnet_has_a_number_of_its_own(address in any::<u32>()) {
            let address = Ipv4Addr::from(address);
            let [a, b, c, _] = address.octets();
            let ours = (a == 10 && b >= 128) || (a == 172 && (16..32).contains(&b));
            assert_eq!(number(address).is_some(), ours);
            assert_eq!(number(address), number([a, b, c, 0].into()));
        }
    }
}
