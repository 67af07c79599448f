//! Names of ingress in a file for several nodes: which of them serve a name, and what each can reach of what is behind it.
//!
//! Owns: `on` of a name, and that a machine on another node is reached by its first network. Refuses: judging all else that a name
//! says (`types::ingress` does), and finding machines (their nodes do).

use std::collections::BTreeSet;

use serde_json::Value;
use types::Name;
use types::deployment::Deployment;
use types::elsewhere::Way;
use types::ingress::{Host, Site, Tls};

use crate::failure::Usage;
use crate::fleet::Fleet;
use crate::spec::{SpecError, at, label};

/// Takes `on` out of a name's fields.
pub(crate) fn take_on(place: &str, value: &mut Value) -> Result<Option<BTreeSet<Name>>, SpecError> {
    let place = format!("{place}.on");
    let on = value.as_object_mut().and_then(|fields| fields.remove("on"));
    let nodes = match on {
        None => return Ok(None),
        Some(Value::Array(nodes)) if !nodes.is_empty() => nodes,
        Some(one @ Value::String(_)) => vec![one],
        Some(_) => {
            return Err(at(
                &place,
                "write a node that you know, or a list of them, such as [n1, n2]",
            ));
        }
    };
    let mut on = BTreeSet::new();
    for node in &nodes {
        let node = label(&place, node)?;
        if on.contains(&node) {
            return Err(at(&place, &format!("{node} stands twice")));
        }
        on.insert(node);
    }
    Ok(Some(on))
}

fn two(nodes: &BTreeSet<Name>) -> Option<(&Name, &Name)> {
    let mut nodes = nodes.iter();
    nodes.next().zip(nodes.next())
}

/// The nodes that serve a name: those that it says, else each that has one of its machines. All of them reach all machines.
pub(crate) fn nodes(
    fleet: &Fleet,
    whole: &Deployment,
    host: &Host,
    site: &Site,
) -> Result<BTreeSet<Name>, Usage> {
    let behind: BTreeSet<&Name> = site.backends().map(|backend| &backend.machine).collect();
    let machines = whole.machines().filter(|(name, _)| behind.contains(name));
    let placed = machines.map(|(name, machine)| Ok((name, fleet.node_of(name, machine)?)));
    let placed: Vec<(&Name, &Name)> = placed.collect::<Result<_, Usage>>()?;
    let is_known = |name: &&Name| placed.iter().any(|(known, _)| known == name);
    if let Some(unknown) = behind.iter().copied().find(|name| !is_known(name)) {
        return Err(Usage(format!(
            "ingress.{host}: {unknown} is no machine of this file: name some that are, in `to`"
        )));
    }
    let own = || placed.iter().map(|(_, node)| (*node).clone()).collect();
    let serving: BTreeSet<Name> = fleet.sites.get(host).cloned().unwrap_or_else(own);
    // Its proof would be with one of them, and who looks for it comes to any.
    if let (Some(Tls::Acme(_)), Some((first, second))) = (&site.tls, two(&serving)) {
        return Err(Usage(format!(
            "ingress.{host}: {first} and {second} serve it, and an authority of certificates finds one of them: name one node with `on`, or bring a certificate"
        )));
    }
    for node in &serving {
        for (machine, there) in placed.iter().filter(|(_, there)| *there != node) {
            reaches(fleet, whole, node, (machine, there))
                .map_err(|problem| Usage(format!("ingress.{host}: {problem}")))?;
        }
    }
    Ok(serving)
}

/// Whether requests get from a node to a machine on another: its answers leave by its first network.
fn reaches(
    fleet: &Fleet,
    whole: &Deployment,
    node: &Name,
    (machine, there): (&Name, &Name),
) -> Result<(), String> {
    let spans = |network: &Name| {
        let nodes = fleet.networks.get(network);
        nodes.is_some_and(|nodes| nodes.contains_key(node) && nodes.contains_key(there))
    };
    let is_internal = |network: &Name| whole.network(network).is_some_and(|of| of.internal);
    let found = whole.machines().find(|(name, _)| *name == machine);
    let cards = found.map_or_else(Vec::new, |(_, machine)| machine.cards());
    let networks: Vec<&Name> = cards.iter().map(|card| &card.network).collect();
    let [first, others @ ..] = &networks[..] else {
        return Err(format!("{machine} is on no network"));
    };
    if !spans(first) {
        let known = fleet.networks.iter();
        let both = known
            .map(|(network, _)| network)
            .find(|network| spans(network));
        let how = match both {
            Some(network) => format!("let {network} be the first of its networks"),
            None => format!("let its first network span both, with `nodes: [{node}, {there}]`"),
        };
        return Err(format!(
            "{node} is to serve it, {machine} is on {there}, and its first network, {first}, leads from none to the other: {how}, or say \
             by which nodes the name is served, with `on: {there}`"
        ));
    }
    if is_internal(first) {
        return Err(format!(
            "{machine} is on {there}, and its first network, {first}, is internal: nothing is published into it, from {node} either"
        ));
    }
    let another = others
        .iter()
        .find(|network| spans(network) && !is_internal(network));
    match another {
        None => Ok(()),
        Some(other) => Err(format!(
            "{machine} is on {there}, and two of its networks lead there from {node}, {first} and {other}: let it be on one of them, or make \
             {other} internal"
        )),
    }
}

/// What a node cannot serve yet, because machines behind it are on nodes that have never joined its networks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Missing {
    /// The name leads to the others.
    Machines(Host, BTreeSet<Name>),
    /// Below a path of it nobody would be left.
    Name(Host),
}

/// Takes out of a node's part what it cannot reach yet: a node that is down holds up no other.
pub(crate) fn leave_out(part: &mut Deployment) -> Vec<Missing> {
    let here: BTreeSet<Name> = part.machines().map(|(name, _)| name.clone()).collect();
    let hosts = part.ingress.iter();
    let lost = hosts.filter_map(|(host, site)| {
        let behind = site.backends().map(|backend| backend.machine.clone());
        let lost = behind.filter(|name| !here.contains(name) && part.way_to(name) == Way::Nowhere);
        let lost: BTreeSet<Name> = lost.collect();
        (!lost.is_empty()).then(|| (host.clone(), lost))
    });
    let lost: Vec<(Host, BTreeSet<Name>)> = lost.collect();
    let mut missing = Vec::new();
    for (host, machines) in lost {
        let Some(site) = part.ingress.get_mut(&host) else {
            continue;
        };
        for route in &mut site.routes {
            route
                .to
                .retain(|backend| !machines.contains(&backend.machine));
        }
        if site.routes.iter().any(|route| route.to.is_empty()) {
            part.ingress.remove(&host);
            missing.push(Missing::Name(host));
        } else {
            missing.push(Missing::Machines(host, machines));
        }
    }
    missing
}

impl Missing {
    /// For people, of this node.
    pub(crate) fn say(&self, node: &Name) -> String {
        match self {
            Self::Machines(host, machines) => {
                let machines: Vec<&str> = machines.iter().map(Name::as_str).collect();
                format!(
                    "on {node} {host} does not lead to {} until you deploy again: the node of that has not joined yet",
                    machines.join(", ")
                )
            }
            Self::Name(host) => format!(
                "on {node} {host} is not served until you deploy again: the nodes of its machines have not joined yet"
            ),
        }
    }
}

#[cfg(test)]
#[path = "served_tests.rs"]
mod tests;
