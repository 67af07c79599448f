//! One file for several nodes: which part of it each of them gets.
//!
//! Owns: `on` of machines and `nodes` of networks, and what follows from them.
//! Refuses: to guess where a machine or volume lies, judging which nodes serve a name (`served` does), and speaking to nodes (`across` does).

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use serde_json::{Map, Value};
use types::Name;
use types::deployment::{Deployment, Machine, Workload};
use types::ingress::Host;

use crate::failure::Usage;
use crate::served;
use crate::spec::{SpecError, at, label, object};

/// What a file says of nodes. Empty: nothing, and all of it goes to one.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Fleet {
    /// The node of each machine.
    pub(crate) on: BTreeMap<Name, Name>,
    /// The nodes of each network that spans several.
    pub(crate) networks: BTreeMap<Name, BTreeMap<Name, Reach>>,
    /// The nodes that serve a name of ingress, where the file says so.
    pub(crate) sites: BTreeMap<Host, BTreeSet<Name>>,
}

/// Where the other nodes reach one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reach {
    /// At its own addresses.
    Own,
    /// Nowhere: it stands behind a NAT, and begins.
    Hidden,
    /// At an address before a NAT, or a name's; on its own port or another.
    At(IpAddr, Option<u16>),
}

impl Fleet {
    pub(crate) fn is_empty(&self) -> bool {
        self.on.is_empty() && self.networks.is_empty() && self.sites.is_empty()
    }

    /// All that it names.
    pub(crate) fn nodes(&self) -> BTreeSet<&Name> {
        let of_networks = self.networks.values().flat_map(BTreeMap::keys);
        let of_sites = self.sites.values().flatten();
        self.on
            .values()
            .chain(of_networks)
            .chain(of_sites)
            .collect()
    }

    /// Takes `on` out of a machine's fields.
    pub(crate) fn take_on(
        &mut self,
        name: &Name,
        place: &str,
        fields: &mut Map<String, Value>,
    ) -> Result<(), SpecError> {
        if let Some(node) = fields.remove("on") {
            let node = label(&format!("{place}.on"), &node)?;
            self.on.insert(name.clone(), node);
        }
        Ok(())
    }

    /// Takes `nodes` out of a network's fields.
    pub(crate) fn take_nodes(
        &mut self,
        name: &Name,
        place: &str,
        fields: &mut Map<String, Value>,
    ) -> Result<(), SpecError> {
        let place = format!("{place}.nodes");
        let Some(nodes) = fields.remove("nodes") else {
            return Ok(());
        };
        let Value::Array(nodes) = nodes else {
            return Err(at(
                &place,
                "write a list of nodes that you know, such as [n1, n2]",
            ));
        };
        if fields.contains_key("subnet") {
            let problem = "with nodes, each of them has a subnet of its own: leave subnet out";
            return Err(at(&place, problem));
        }
        let mut reaches = BTreeMap::new();
        for (index, node) in nodes.into_iter().enumerate() {
            let place = format!("{place}[{index}]");
            let (node, reach) = node_of(&place, node)?;
            if reaches.insert(node, reach).is_some() {
                return Err(at(&place, "this node stands twice"));
            }
        }
        let several = 2..=types::mesh::PEERS_MAX + 1;
        if !several.contains(&reaches.len()) {
            let most = types::mesh::PEERS_MAX + 1;
            return Err(at(
                &place,
                &format!("name 2 to {most} nodes, or leave it out"),
            ));
        }
        self.networks.insert(name.clone(), reaches);
        Ok(())
    }

    /// What each node is asked for. Networks across nodes are not joined yet.
    pub(crate) fn parts(&self, whole: &Deployment) -> Result<BTreeMap<Name, Deployment>, Usage> {
        let mut parts: BTreeMap<Name, Deployment> = BTreeMap::new();
        let empty = || Deployment {
            workloads: BTreeMap::new(),
            ingress: Default::default(),
            ..whole.clone()
        };
        let mut put = |node: &Name, name: &Name, workload: &Workload| {
            let part = parts.entry(node.clone()).or_insert_with(empty);
            part.workloads.insert(name.clone(), workload.clone());
        };
        for (name, workload) in &whole.workloads {
            match workload {
                Workload::Machine(machine) => put(self.node_of(name, machine)?, name, workload),
                Workload::Volume(_) => {
                    let uses = |m: &Machine| m.mounts.iter().any(|mount| mount.volume == *name);
                    put(self.only_node(whole, name, uses)?, name, workload);
                }
                Workload::Pool(_) => match self.on.get(name) {
                    Some(node) => put(node, name, workload),
                    None => {
                        return Err(Usage(format!(
                            "workloads.{name}: say of which node the pool is, with `on: NODE` beside `pool`"
                        )));
                    }
                },
                Workload::Network(_) => match self.networks.get(name) {
                    Some(nodes) => nodes.keys().for_each(|node| put(node, name, workload)),
                    None => {
                        let uses = |m: &Machine| m.networks.iter().any(|c| c.network == *name);
                        put(self.only_node(whole, name, uses)?, name, workload);
                    }
                },
            }
        }
        for (host, site) in &whole.ingress {
            for node in served::nodes(self, whole, host, site)? {
                let part = parts.entry(node.clone()).or_insert_with(empty);
                part.ingress.insert(host.clone(), site.clone());
            }
        }
        Ok(parts)
    }

    pub(crate) fn node_of(&self, name: &Name, machine: &Machine) -> Result<&Name, Usage> {
        let Some(node) = self.on.get(name) else {
            let known = self.nodes().into_iter().map(Name::as_str);
            let known: Vec<&str> = known.collect();
            return Err(Usage(format!(
                "workloads.{name}: say on which node it is, with `on: {}`: the file names several nodes ({})",
                known.first().unwrap_or(&"NODE"),
                known.join(", ")
            )));
        };
        for card in &machine.networks {
            let nodes = self.networks.get(&card.network);
            if nodes.is_some_and(|nodes| !nodes.contains_key(node)) {
                return Err(Usage(format!(
                    "workloads.{name}: it is on {node}, and the network {} is not: add {node} to its nodes",
                    card.network
                )));
            }
        }
        Ok(node)
    }

    /// The node of all machines that have it.
    fn only_node(
        &self,
        whole: &Deployment,
        name: &Name,
        uses: impl Fn(&Machine) -> bool,
    ) -> Result<&Name, Usage> {
        let machines = whole.machines().filter(|(_, machine)| uses(machine));
        let nodes = machines.map(|(name, machine)| self.node_of(name, machine));
        let nodes = nodes.collect::<Result<BTreeSet<&Name>, Usage>>()?;
        let listed: Vec<&str> = nodes.iter().map(|node| node.as_str()).collect();
        match (&listed[..], whole.network(name)) {
            ([_], _) => Ok(nodes.into_iter().next().expect("one")),
            ([], _) => Err(Usage(format!(
                "workloads.{name}: no machine has it, so that nobody knows on which node it is to be: give it to one, or leave it out"
            ))),
            (several, Some(_)) => Err(Usage(format!(
                "workloads.{name}: machines on several nodes are on this network: add `nodes: [{}]` to it",
                several.join(", ")
            ))),
            (several, None) => Err(Usage(format!(
                "workloads.{name}: a volume lies on one node, and machines on {} have it",
                several.join(", ")
            ))),
        }
    }
}

fn node_of(place: &str, value: Value) -> Result<(Name, Reach), SpecError> {
    if value.is_string() {
        return Ok((label(place, &value)?, Reach::Own));
    }
    let mut fields = object(place, value)?;
    let node = fields.remove("node").unwrap_or(Value::Null);
    let node = label(&format!("{place}.node"), &node)?;
    let reach = match fields.remove("endpoint") {
        None => Reach::Own,
        Some(text) => {
            let read = text.as_str().and_then(reach);
            let how = "write an IP address, with a port where it is another than the node's, or none where it stands behind a NAT";
            read.ok_or_else(|| at(&format!("{place}.endpoint"), how))?
        }
    };
    match fields.keys().next() {
        None => Ok((node, reach)),
        Some(field) => Err(at(
            place,
            &format!("{field} is not a field here: known are node, endpoint"),
        )),
    }
}

fn reach(text: &str) -> Option<Reach> {
    if text == "none" {
        return Some(Reach::Hidden);
    }
    if let Ok(at) = text.parse::<SocketAddr>() {
        return Some(Reach::At(at.ip(), Some(at.port())));
    }
    text.parse().ok().map(|ip| Reach::At(ip, None))
}

#[cfg(test)]
mod tests {
    use types::Digest;

    use crate::spec;

    use super::*;

    fn read(yaml: &str) -> Result<(Deployment, Fleet), String> {
        let mut resolve = |_: &str| Ok(Digest([0xaa; 32]));
        let draft = spec::parse(yaml, &mut resolve).map_err(|error| error.to_string())?;
        Ok((draft.deployment, draft.fleet))
    }

    fn parts(yaml: &str) -> Result<BTreeMap<String, Vec<String>>, String> {
        let (deployment, fleet) = read(yaml)?;
        let parts = fleet.parts(&deployment).map_err(|error| error.0)?;
        let names = |part: &Deployment| part.workloads.keys().map(Name::to_string).collect();
        Ok(parts
            .iter()
            .map(|(node, part)| (node.to_string(), names(part)))
            .collect())
    }

    const NET: &str = "  net: {network: {nodes: [n1, {node: n2, endpoint: 203.0.113.9}, {node: n3, endpoint: none}]}}\n";

    #[test]
    fn each_node_gets_its_machines_with_what_they_need_and_the_networks_that_span_it() {
        let yaml = format!(
            "workloads:\n{NET}  data: {{volume: {{size: 1Gi}}}}\n  own: {{network: }}\n\
             \x20 web: {{image: x, on: n1, ports: [80], networks: [net]}}\n\
             \x20 also: {{image: x, on: n2, ports: [80], networks: [net, own], mounts: [\"data:/data\"]}}\n"
        );
        let parts = parts(&yaml).expect("a good file");
        assert_eq!(parts["n1"], ["net", "web"]);
        assert_eq!(parts["n2"], ["also", "data", "net", "own"]);
        assert_eq!(parts["n3"], ["net"]);
        let (_, fleet) = read(&yaml).expect("a good file");
        let reaches: Vec<Reach> = fleet
            .networks
            .values()
            .flat_map(|n| n.values().copied())
            .collect();
        let before = Reach::At([203, 0, 113, 9].into(), None);
        assert_eq!(reaches, [Reach::Own, before, Reach::Hidden]);
        assert!(read("image: x").expect("a good file").1.is_empty());
    }

    #[test]
    fn what_cannot_be_placed_is_named() {
        for (workloads, says) in [
            ("web: {image: x}", "say on which node it is"),
            (
                "web: {image: x, on: n4, networks: [net]}",
                "add n4 to its nodes",
            ),
            ("web: {image: x, on: N}", "not a DNS label"),
            ("own: {network: }", "no machine has it"),
            (
                "own: {network: }\n  a: {image: x, on: n1, networks: [own]}\n  b: {image: x, on: n2, networks: [own]}",
                "add `nodes: [n1, n2]` to it",
            ),
            (
                "d: {volume: {size: 1Gi}}\n  a: {image: x, on: n1, mounts: ['d:/d']}\n  b: {image: x, on: n2, mounts: ['d:/d']}",
                "a volume lies on one node",
            ),
            ("x: {network: {nodes: n1}}", "write a list of nodes"),
            ("x: {network: {nodes: [n1]}}", "name 2 to 32 nodes"),
            ("x: {network: {nodes: [n1, n1]}}", "stands twice"),
            (
                "x: {network: {nodes: [n1, {node: n2, at: 1}]}}",
                "at is not a field here",
            ),
            (
                "x: {network: {nodes: [n1, {node: n2, endpoint: example.org}]}}",
                "write an IP address",
            ),
            (
                "x: {network: {subnet: 10.200.1.0/24, nodes: [n1, n2]}}",
                "leave subnet out",
            ),
        ] {
            let error = parts(&format!("workloads:\n{NET}  {workloads}\n")).expect_err(says);
            assert!(error.contains(says), "{error} for {says}");
        }
    }
}
