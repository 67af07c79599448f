//! `sifr deploy` of a file for several nodes: it joins their networks and gives each its part.
//!
//! Owns: which subnet each node has in a network, whom each is told of, and that one node that is down holds up no other.
//! Refuses: a node's word that is not signed by the key that is pinned for it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use anyhow::bail;
use api::{Client, Envelope};
use tokio::task::JoinSet;
use types::deployment::{Deployment, Machine, Protocol, Workload};
use types::mesh::{Card, Membership, Mesh, Peer};
use types::status::Ack;
use types::{Cidr, Name, PublicKey};

use crate::Context;
use crate::deploy::{self, Report};
use crate::failure::Usage;
use crate::fleet::{Fleet, Reach};
use crate::home::{Pin, Spots};
use crate::push::{Images, Pushed};
use crate::served;

/// A node of the file.
struct Node {
    pin: Pin,
    client: Client,
    part: Deployment,
    /// What it has answered: the version to sign, and itself in each network.
    heard: anyhow::Result<Heard>,
}

struct Heard {
    version: u64,
    /// Machines and volumes that it has of the deployment.
    has: BTreeSet<Name>,
    networks: BTreeSet<Name>,
    memberships: BTreeMap<Name, Membership>,
}

pub(crate) async fn deploy(
    context: &Context,
    name: &Name,
    (whole, fleet): (&Deployment, &Fleet),
    images: &Images,
) -> anyhow::Result<()> {
    let owner = context.home.key()?.public();
    let parts = fleet.parts(whole)?;
    let mut nodes = ask_all(context, name, parts).await?;
    let mut used = published(&nodes);
    for (network, reaches) in &fleet.networks {
        let about = (&owner, name, network);
        let seats = seats(about, reaches, &mut nodes, &mut used);
        let gone = gone(network, &nodes);
        if !gone.is_empty() {
            context.screen.note(&format!(
                "{} no longer in the network {network}: what runs there is cut off; delete it there with --node",
                listed(&gone)
            ));
        }
        for node in reaches.keys().filter(|node| !seats.contains_key(*node)) {
            context.screen.note(&format!(
                "{node} does not answer and is not known to the others: it is left out of {network} until you deploy again"
            ));
        }
        join(network, reaches, &seats, &mut nodes);
        leave(network, reaches, &mut nodes);
    }
    for (node, of) in nodes.iter_mut().filter(|(_, of)| of.heard.is_ok()) {
        for missing in served::leave_out(&mut of.part) {
            context.screen.note(&missing.say(node));
        }
    }
    let parts = nodes.iter().map(|(node, of)| {
        let has = of.heard.as_ref().map(|heard| heard.has.clone());
        (node, (has.unwrap_or_default(), &of.part))
    });
    moves_nothing(&parts.collect())?;
    let done = send_all(context, name, &nodes, images).await?;
    show(context, &nodes, &done)?;
    remember(context, name, fleet, &nodes)?;
    let failed: BTreeSet<&Name> = nodes
        .keys()
        .filter(|node| !done.contains_key(*node))
        .collect();
    if !failed.is_empty() {
        bail!(
            "{name} is not on {}: the other nodes have their parts; deploy the file again once this is mended",
            listed(&failed)
        );
    }
    if !context.screen.is_json() {
        let next = format!("next: sifr wait {name}, sifr get {name}");
        context.screen.note(&next);
    }
    Ok(())
}

fn listed<'a>(names: impl IntoIterator<Item = &'a &'a Name>) -> String {
    let names: Vec<&str> = names.into_iter().map(|name| name.as_str()).collect();
    names.join(", ")
}

/// All at once: one that is off does not hold up the others.
async fn ask_all(
    context: &Context,
    name: &Name,
    parts: BTreeMap<Name, Deployment>,
) -> anyhow::Result<BTreeMap<Name, Node>> {
    let mut asked = JoinSet::new();
    for (node, part) in parts {
        let (_, pin, client) = context.home.client(Some(node.as_str()))?;
        let (name, networks) = (name.clone(), part.networks());
        let networks: Vec<Name> = networks.map(|(name, _)| name.clone()).collect();
        asked.spawn(async move {
            let heard = ask(&client, &name, networks).await;
            let node_of = Node {
                pin,
                client,
                part,
                heard,
            };
            (node, node_of)
        });
    }
    Ok(asked.join_all().await.into_iter().collect())
}

async fn ask(client: &Client, name: &Name, networks: Vec<Name>) -> anyhow::Result<Heard> {
    let stands = deploy::stands(client, name).await?;
    let version = deploy::after(stands.as_ref());
    let (has, has_networks) = stands.map_or_else(Default::default, |status| {
        let machines = status.workloads.into_keys();
        let has = machines.chain(status.volumes.into_keys()).collect();
        (has, status.networks.into_keys().collect())
    });
    let mut memberships = BTreeMap::new();
    for network in networks {
        let membership = client.membership(name, &network).await?;
        memberships.insert(network, membership);
    }
    Ok(Heard {
        version,
        has,
        networks: has_networks,
        memberships,
    })
}

/// A node in a network, as the others are told of it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Seat {
    port: u16,
    peer: Peer,
}

type About<'a> = (&'a PublicKey, &'a Name, &'a Name);

/// What an answering node offers for a network.
struct Offered {
    card: Card,
    /// The card's envelope.
    text: String,
    reach: Reach,
    machines: BTreeSet<Name>,
}

/// What each node has otherwise: in what it publishes, and in the networks of this file that were looked at before.
type Used = BTreeMap<Name, (BTreeSet<u16>, BTreeSet<Cidr>)>;

/// The UDP ports that each node's part publishes.
fn published(nodes: &BTreeMap<Name, Node>) -> Used {
    let of = |part: &Deployment| -> BTreeSet<u16> {
        let ports = part.machines().flat_map(|(_, machine)| &machine.ports);
        let ports = ports.filter(|port| port.protocol == Protocol::Udp);
        ports.map(|port| port.node).collect()
    };
    let nodes = nodes.iter();
    nodes
        .map(|(name, node)| (name.clone(), (of(&node.part), BTreeSet::new())))
        .collect()
}

/// All nodes of a network that are known: those that answer by their cards, others as the rest know them. A node that cannot
/// be joined has an error from then on, and the others go on.
fn seats(
    about: About<'_>,
    reaches: &BTreeMap<Name, Reach>,
    nodes: &mut BTreeMap<Name, Node>,
    used: &mut Used,
) -> BTreeMap<Name, Seat> {
    let (_, _, network) = about;
    let mut offers: BTreeMap<Name, Offered> = BTreeMap::new();
    let mut seats = BTreeMap::new();
    for (name, reach) in reaches {
        let Some(node) = nodes.get_mut(name) else {
            continue;
        };
        let machines = machines_on(network, &node.part);
        let own = node.heard.as_ref().ok();
        let own = own.and_then(|heard| heard.memberships.get(network));
        let card = own.map(|own| (card(about, &node.pin.key, &own.card), own.card.clone()));
        match card {
            Some((Ok(card), text)) => {
                let reach = *reach;
                let offered = Offered {
                    card,
                    text,
                    reach,
                    machines,
                };
                offers.insert(name.clone(), offered);
                continue;
            }
            Some((Err(error), _)) => {
                node.heard = Err(error.context(format!("cannot join {name} with others")));
            }
            None => {}
        }
        let key = node.pin.key;
        if let Some(peer) = known(network, &key, nodes) {
            let peer = Peer { machines, ..peer };
            // Its own port is its own business until it answers.
            seats.insert(name.clone(), Seat { port: 0, peer });
        }
    }
    for (name, choice) in choose(&offers, &seats, used) {
        let (Some(offered), Some(node)) = (offers.remove(&name), nodes.get_mut(&name)) else {
            continue;
        };
        match choice {
            Ok(choice) => drop(seats.insert(name, seat(offered, choice))),
            Err(error) => node.heard = Err(error.into()),
        }
    }
    seats
}

fn machines_on(network: &Name, part: &Deployment) -> BTreeSet<Name> {
    let machines = part.machines();
    let is_on = |machine: &Machine| machine.cards().iter().any(|card| card.network == *network);
    let on = machines.filter(|(_, machine)| is_on(machine));
    on.map(|(name, _)| name.clone()).collect()
}

/// A card that the pinned node has signed for this network.
fn card((owner, name, network): About<'_>, node: &PublicKey, text: &str) -> anyhow::Result<Card> {
    let envelope = Envelope::parse(text.as_bytes())?;
    let card = envelope.open_card(|key| key == node)?;
    let is = card.node == *node && card.signer == *owner;
    let is = is && card.deployment == *name && card.network == *network;
    if !is || card.subnets.is_empty() || card.ports.is_empty() {
        bail!("the node's card is of something else: compare `sifr version` with `sifr node info`");
    }
    Ok(card)
}

/// How the other nodes know one.
fn known(network: &Name, node: &PublicKey, nodes: &BTreeMap<Name, Node>) -> Option<Peer> {
    let mut peers = peers(network, nodes).map(|(_, peer)| peer);
    peers.find(|peer| peer.node == *node).cloned()
}

/// Those that the nodes' ledgers have.
fn peers<'a>(
    network: &'a Name,
    nodes: &'a BTreeMap<Name, Node>,
) -> impl Iterator<Item = (&'a Name, &'a Peer)> {
    let heard = nodes.values().filter_map(|node| node.heard.as_ref().ok());
    let held = heard.filter_map(move |heard| heard.memberships.get(network)?.network.as_ref());
    held.filter_map(|network| network.mesh.as_ref())
        .flat_map(|mesh| &mesh.peers)
}

/// Nodes that were in the network and are not in the file.
fn gone<'a>(network: &'a Name, nodes: &'a BTreeMap<Name, Node>) -> BTreeSet<&'a Name> {
    let here = |peer: &Peer| nodes.values().any(|node| node.pin.key == peer.node);
    let gone = peers(network, nodes).filter(|(_, peer)| !here(peer));
    gone.map(|(name, _)| name).collect()
}

/// What a node gets of its offer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Choice {
    port: u16,
    subnet: Cidr,
}

/// A subnet of its own for each: who has one keeps it, the others take the first that they offer and nobody has, nor they
/// themselves in another network of the file.
fn choose(
    offers: &BTreeMap<Name, Offered>,
    seats: &BTreeMap<Name, Seat>,
    used: &mut Used,
) -> Vec<(Name, Result<Choice, Usage>)> {
    let taken = seats.iter().map(|(n, seat)| (seat.peer.subnet, n.clone()));
    let mut taken: BTreeMap<Cidr, Name> = taken.collect();
    let is_fixed = |offered: &Offered| offered.card.subnets.len() == 1;
    let (fixed, free): (Vec<_>, Vec<_>) = offers.iter().partition(|(_, offered)| is_fixed(offered));
    let mut choose_one = |name: &Name, card: &Card| {
        let (ports, subnets) = used.entry(name.clone()).or_default();
        let mut own = card.subnets.iter();
        let own = own.find(|subnet| !taken.contains_key(*subnet) && !subnets.contains(*subnet));
        let Some(subnet) = own.copied() else {
            let subnet = card.subnets[0];
            let other = taken.get(&subnet).unwrap_or(name);
            return Err(Usage(format!(
                "{name} and {other} both have {subnet} in this network: delete the deployment on one of them, and deploy again"
            )));
        };
        let Some(port) = card.ports.iter().copied().find(|p| !ports.contains(p)) else {
            return Err(Usage(format!(
                "{name} has no UDP port left for this network: delete a deployment there"
            )));
        };
        ports.insert(port);
        subnets.insert(subnet);
        taken.insert(subnet, name.clone());
        Ok(Choice { port, subnet })
    };
    let all = fixed.into_iter().chain(free);
    all.map(|(name, offered)| (name.clone(), choose_one(name, &offered.card)))
        .collect()
}

fn seat(offered: Offered, Choice { port, subnet }: Choice) -> Seat {
    let card = offered.card;
    let endpoints = match offered.reach {
        Reach::Hidden => Vec::new(),
        Reach::At(ip, before) => vec![SocketAddr::new(ip, before.unwrap_or(port))],
        Reach::Own => {
            let own = card.addresses.iter();
            own.map(|ip| SocketAddr::new(*ip, port)).collect()
        }
    };
    Seat {
        port,
        peer: Peer {
            node: card.node,
            key: card.key,
            subnet,
            endpoints,
            machines: offered.machines,
            card: offered.text,
        },
    }
}

/// Tells each node of all others.
fn join(
    network: &Name,
    reaches: &BTreeMap<Name, Reach>,
    seats: &BTreeMap<Name, Seat>,
    nodes: &mut BTreeMap<Name, Node>,
) {
    for name in reaches.keys() {
        let (Some(node), Some(own)) = (nodes.get_mut(name), seats.get(name)) else {
            continue;
        };
        let Some(Workload::Network(spec)) = node.part.workloads.get_mut(network) else {
            continue;
        };
        let others = seats.iter().filter(|(other, _)| *other != name);
        let peers = others.map(|(other, seat)| (other.clone(), seat.peer.clone()));
        spec.subnet = Some(own.peer.subnet);
        spec.mesh = Some(Mesh {
            port: own.port,
            peers: peers.collect(),
        });
    }
}

/// A node that has the network and is not among its nodes any more removes it: the file names the nodes, and `remove` could not,
/// because the network is there on others.
fn leave(network: &Name, reaches: &BTreeMap<Name, Reach>, nodes: &mut BTreeMap<Name, Node>) {
    for (_, node) in nodes
        .iter_mut()
        .filter(|(name, _)| !reaches.contains_key(*name))
    {
        let heard = node.heard.as_ref();
        if heard.is_ok_and(|heard| heard.networks.contains(network)) {
            node.part.remove.insert(network.clone());
        }
    }
}

/// What lies on one node is not made anew on another, where it would begin empty, and both would have its name.
fn moves_nothing(parts: &BTreeMap<&Name, (BTreeSet<Name>, &Deployment)>) -> Result<(), Usage> {
    for (node, (has, part)) in parts {
        for workload in has.iter().filter(|has| !part.workloads.contains_key(*has)) {
            let is_there = |part: &Deployment| part.workloads.contains_key(workload);
            let there = parts.iter().find(|(_, (_, part))| is_there(part));
            if let Some((there, _)) = there {
                return Err(Usage(format!(
                    "{workload} is on {node}, and the file has it on {there}; its data does not move: leave it out of the file, with `remove: [{workload}]` \
                     (a volume: `destroy: [{workload}]`), deploy, and then deploy it on {there}"
                )));
            }
        }
    }
    Ok(())
}

/// One after the other, whatever becomes of one; gives those that have acknowledged. What is wrong with the file itself is
/// said before anything is sent.
async fn send_all(
    context: &Context,
    name: &Name,
    nodes: &BTreeMap<Name, Node>,
    images: &Images,
) -> anyhow::Result<BTreeMap<Name, (Ack, Pushed)>> {
    for (node, of) in nodes.iter().filter(|(_, of)| of.heard.is_ok()) {
        deploy::check(&of.part).map_err(|error| Usage(format!("the part of {node}: {error}")))?;
    }
    let mut done = BTreeMap::new();
    for (node, of) in nodes {
        let sent = match &of.heard {
            Err(error) => Err(format!("{error:#}")),
            Ok(heard) => {
                let part = (name, heard.version, &of.part);
                let sent = deploy::send(context, &of.client, part, images).await;
                sent.map_err(|error| format!("{error:#}"))
            }
        };
        match sent {
            Ok(sent) => drop(done.insert(node.clone(), sent)),
            Err(error) => context.screen.note(&format!("{node}: {error}")),
        }
    }
    Ok(done)
}

fn show(
    context: &Context,
    nodes: &BTreeMap<Name, Node>,
    done: &BTreeMap<Name, (Ack, Pushed)>,
) -> anyhow::Result<()> {
    let reports = done.iter().map(|(node, (ack, pushed))| Report {
        node,
        ack,
        pushed: *pushed,
    });
    let reports: Vec<Report<'_>> = reports.collect();
    context.screen.show(&reports, || {
        let said = done.iter().map(|(node, (ack, _))| {
            let of = &nodes[node];
            deploy::acknowledged(ack, node, &of.part, &of.pin)
        });
        said.collect()
    })
}

/// Where it lies from now on; who did not answer is asked too.
fn remember(
    context: &Context,
    name: &Name,
    fleet: &Fleet,
    nodes: &BTreeMap<Name, Node>,
) -> anyhow::Result<()> {
    let mut spread = context.home.spread()?;
    let spots = Spots {
        nodes: nodes.keys().cloned().collect(),
        machines: fleet.on.clone(),
    };
    spread.deployments.insert(name.clone(), spots);
    context.home.save_spread(&spread)
}

#[cfg(test)]
mod tests {
    use types::mesh::MeshKey;

    use super::*;

    fn name(text: &str) -> Name {
        text.parse().expect("a name")
    }

    fn subnet(n: u8) -> Cidr {
        format!("10.200.{n}.0/24").parse().expect("a subnet")
    }

    fn offered(n: u8, subnets: &[u8]) -> Offered {
        let card = Card {
            node: PublicKey([n; 32]),
            signer: PublicKey([9; 32]),
            deployment: name("shop"),
            network: name("net"),
            key: MeshKey([n; 32]),
            ports: vec![51820, 51821],
            addresses: vec![[192, 0, 2, n].into()],
            subnets: subnets.iter().map(|n| subnet(*n)).collect(),
        };
        Offered {
            card,
            text: String::new(),
            reach: Reach::Own,
            machines: [name("web")].into(),
        }
    }

    fn three() -> BTreeMap<Name, Offered> {
        let offers = [
            ("a", offered(1, &[1, 2, 3])),
            ("b", offered(2, &[1, 2, 3])),
            ("c", offered(3, &[1])),
        ];
        offers.map(|(n, offered)| (name(n), offered)).into()
    }

    fn chosen(choices: Vec<(Name, Result<Choice, Usage>)>) -> BTreeMap<Name, Choice> {
        let choices = choices.into_iter();
        let choices = choices.map(|(n, choice)| (n, choice.unwrap_or_else(|e| panic!("{}", e.0))));
        choices.collect()
    }

    #[test]
    fn who_has_a_subnet_keeps_it_and_no_two_have_the_same() {
        let away = Choice {
            port: 51820,
            subnet: subnet(2),
        };
        let away = seat(offered(4, &[2]), away);
        let all = chosen(choose(&three(), &BTreeMap::new(), &mut Used::default()));
        let subnets: Vec<Cidr> = all.into_values().map(|choice| choice.subnet).collect();
        assert_eq!(subnets, [subnet(2), subnet(3), subnet(1)]);
        // One too few: who is without one has an error, and the others none.
        let seats = [(name("d"), away)].into();
        let choices = choose(&three(), &seats, &mut Used::default());
        let errors = choices.iter().filter_map(|(n, choice)| {
            let error = choice.as_ref().err()?;
            Some((n.as_str(), error.0.contains("both have")))
        });
        assert_eq!(errors.collect::<Vec<_>>(), [("b", true)]);
    }

    #[test]
    fn a_port_that_a_machine_of_the_file_publishes_is_no_networks() {
        let mut used: Used = [(name("a"), ([51820].into(), BTreeSet::new()))].into();
        let all = chosen(choose(&three(), &BTreeMap::new(), &mut used));
        let ports: Vec<u16> = all.into_values().map(|choice| choice.port).collect();
        assert_eq!(ports, [51821, 51820, 51820]);
    }

    #[test]
    fn two_new_networks_of_one_file_have_ports_and_subnets_of_their_own_on_each_node() {
        let mut used = Used::default();
        let offers = || {
            let mut offers = three();
            let card = &mut offers.get_mut(&name("c")).expect("c").card;
            card.subnets.extend([subnet(2), subnet(3), subnet(4)]);
            offers
        };
        let (first, second) = (
            chosen(choose(&offers(), &BTreeMap::new(), &mut used)),
            chosen(choose(&offers(), &BTreeMap::new(), &mut used)),
        );
        for (node, of_first) in first {
            let of_second = second[&node];
            assert_eq!((of_first.port, of_second.port), (51820, 51821));
            assert_ne!(of_first.subnet, of_second.subnet);
        }
    }

    #[test]
    fn what_lies_on_one_node_is_not_made_anew_on_another() {
        let part = |workloads: &[&str]| -> Deployment {
            let volume = |name: &&str| {
                (
                    (*name).to_owned(),
                    serde_json::json!({"volume": {"size": "1Gi"}}),
                )
            };
            let workloads: serde_json::Map<_, _> = workloads.iter().map(volume).collect();
            serde_json::from_value(serde_json::json!({ "workloads": workloads })).expect("a part")
        };
        let ([a, b], has) = (["a", "b"].map(name), |names: &[&str]| {
            names.iter().map(|n| name(n)).collect()
        });
        let (web, both) = (part(&["web"]), part(&["db", "web2"]));
        let stays = [
            (&a, (has(&["web", "old"]), &web)),
            (&b, (has(&["db"]), &both)),
        ];
        moves_nothing(&stays.into()).expect("nothing moves: old is in no part");
        let moved = [(&a, (has(&["web", "db"]), &web)), (&b, (has(&[]), &both))];
        let error = moves_nothing(&moved.into()).expect_err("db moves");
        assert!(
            error.0.starts_with("db is on a, and the file has it on b"),
            "{}",
            error.0
        );
    }

    #[test]
    fn a_node_is_told_of_as_the_file_says() {
        for (reach, endpoints) in [
            (Reach::Own, vec!["192.0.2.1:51820"]),
            (Reach::Hidden, vec![]),
            (
                Reach::At([203, 0, 113, 9].into(), None),
                vec!["203.0.113.9:51820"],
            ),
            (
                Reach::At([203, 0, 113, 9].into(), Some(7)),
                vec!["203.0.113.9:7"],
            ),
        ] {
            let choice = Choice {
                port: 51820,
                subnet: subnet(1),
            };
            let of = Offered {
                reach,
                ..offered(1, &[1])
            };
            let seat = seat(of, choice);
            let found: Vec<String> = seat
                .peer
                .endpoints
                .iter()
                .map(ToString::to_string)
                .collect();
            assert_eq!(found, endpoints);
        }
    }
}
