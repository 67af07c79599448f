//! Networks against the fake node: who is where, and who restarts for it.

use std::net::Ipv4Addr;

use super::*;

fn name(text: &str) -> Name {
    text.parse().expect("a valid name")
}

fn network(more: &str) -> Workload {
    serde_json::from_str(&format!(r#"{{"network":{{{more}}}}}"#)).expect("a valid network")
}

/// Machines with the networks that each is on.
fn with(networks: &[(&str, &str)], machines: &[(&str, &[&str])]) -> Deployment {
    let mut deployment = deployment(1);
    let template = deployment.workloads.remove(&name("web"));
    for (machine, on) in machines {
        let mut machine_of = template.clone().expect("a machine");
        if let Workload::Machine(spec) = &mut machine_of {
            let card = |text: &&str| {
                let (network, address) = match text.split_once('=') {
                    Some((network, address)) => (network, address.parse().ok()),
                    None => (*text, None),
                };
                let network = name(network);
                types::network::Card { network, address }
            };
            spec.networks = on.iter().map(card).collect();
        }
        deployment.workloads.insert(name(machine), machine_of);
    }
    for (of, more) in networks {
        deployment.workloads.insert(name(of), network(more));
    }
    deployment
}

const SIDES: [(&str, &str); 2] = [("front", ""), ("back", "")];

fn start(deployment: Deployment) -> World {
    let mut world = World::new();
    world.say(Action::Deploy(deployment));
    world.settle();
    world.host.begun.clear();
    world
}

impl World {
    fn addresses(&self, workload: &str) -> Vec<Ipv4Addr> {
        let key = self.key();
        let vm = VmId::new(&key.signer, &key.name, &name(workload));
        let places = self.host.places.as_ref().expect("published");
        places.machines[&vm]
            .cards
            .iter()
            .map(|card| card.address)
            .collect()
    }

    fn starts(&self) -> Vec<String> {
        let start = |step: &Step| match step {
            Step::Start(start) => Some(start.record.workload.to_string()),
            _ => None,
        };
        self.host.begun.iter().filter_map(start).collect()
    }
}

#[test]
fn a_machine_has_an_address_in_each_of_its_networks_and_keeps_it() {
    let deployment = with(
        &SIDES,
        &[("db", &["back"]), ("web", &["front", "back"]), ("old", &[])],
    );
    let mut world = start(deployment.clone());
    let (web, db, old) = (
        world.addresses("web"),
        world.addresses("db"),
        world.addresses("old"),
    );
    assert_eq!((web.len(), db.len(), old.len()), (2, 1, 1));
    let subnet = crate::address::subnet_of;
    assert_eq!(subnet(web[1]), subnet(db[0]));
    let subnets: BTreeSet<_> = [web[0], web[1], old[0]].map(subnet).into();
    assert_eq!(subnets.len(), 3, "each network has its own");
    world.say(Action::Restart);
    world.settle();
    world.restart_agent();
    world.settle();
    assert_eq!((world.addresses("web"), world.addresses("db")), (web, db));
    let status = world.reconciler.status(&world.key(), true).expect("one");
    assert_eq!(status.networks[&name("back")].machines.len(), 2);
    assert!(status.networks[&name("front")].subnet.is_some());
}

#[test]
fn only_a_machine_whose_own_networks_change_starts_again() {
    let mut world = start(with(&SIDES, &[("db", &["back"]), ("web", &["front"])]));
    let before = world.addresses("db");
    let three = [("front", ""), ("back", r#""internal":true"#), ("side", "")];
    world.say(Action::Deploy(with(
        &three,
        &[
            ("db", &["back"]),
            ("new", &["back"]),
            ("web", &["front", "side"]),
        ],
    )));
    world.settle();
    assert_eq!(world.starts(), ["new", "web"]);
    assert_eq!(world.addresses("db"), before);
    assert_eq!(world.addresses("web").len(), 2);
    let mut less = with(&[("back", "")], &[("db", &["back"]), ("new", &["back"])]);
    less.remove = ["web", "front", "side"].map(name).into();
    world.host.begun.clear();
    world.say(Action::Deploy(less));
    world.settle();
    assert_eq!(
        world.starts(),
        [""; 0],
        "a network that goes restarts nobody"
    );
}

#[test]
fn what_a_network_and_a_machine_ask_for_they_get() {
    let asked = [("front", r#""subnet":"10.200.3.0/24""#)];
    let mut world = start(with(
        &asked,
        &[("a", &["front=10.200.3.77"]), ("b", &["front"])],
    ));
    assert_eq!(world.addresses("a"), [Ipv4Addr::new(10, 200, 3, 77)]);
    assert_eq!(world.addresses("b")[0].octets()[..3], [10, 200, 3]);
    // What a machine has by chance, another does not get by asking.
    let held = world.addresses("b")[0];
    let wants = format!("front={held}");
    let others = with(&asked, &[("a", &[&wants]), ("b", &["front"])]);
    let refused = verified(world.next_version(), Action::Deploy(others));
    let refusal = world.reconciler.networks_in_the_way(&refused);
    assert!(refusal.is_some_and(|r| r.message.contains("which another machine has")));
    // Nor has another deployment the same subnet.
    let mut second = verified(1, Action::Deploy(with(&asked, &[("a", &["front"])])));
    second.statement.name = name("other");
    let refusal = world.reconciler.networks_in_the_way(&second);
    assert!(refusal.is_some_and(|r| r.message.contains("is in use")));
    let moved = [("front", r#""subnet":"10.200.4.0/24""#)];
    let version = world.next_version();
    world.say(Action::Deploy(with(
        &moved,
        &[("a", &["front"]), ("b", &["front"])],
    )));
    assert_eq!(world.next_version(), version, "a subnet stays as it is");
}

#[test]
fn a_machine_that_is_on_the_default_network_alone_is_the_same_with_and_without_its_name() {
    let one = with(&[], &[("web", &["default"])]);
    let none = with(&[], &[("web", &[])]);
    let digest = |deployment: &Deployment| {
        let (_, machine) = deployment.machines().next().expect("a machine");
        launch_digest(machine, 0)
    };
    assert_eq!(digest(&one), digest(&none));
    let other = with(&SIDES, &[("web", &["front"])]);
    assert_ne!(digest(&one), digest(&other));
}

#[test]
fn a_name_leads_to_its_machines_without_starting_any_again_and_stays_while_they_are_stopped() {
    let mut world = start(with(&[], &[("web", &[]), ("db", &[])]));
    let mut named = with(&[], &[("web", &[]), ("db", &[])]);
    let host: types::ingress::Host = "a.test".parse().expect("a host");
    let site = r#"{"routes":[{"to":["web:80"]}]}"#;
    named
        .ingress
        .insert(host.clone(), serde_json::from_str(site).expect("a site"));
    world.say(Action::Deploy(named));
    world.settle();
    assert!(world.starts().is_empty());
    let web = world.addresses("web");
    let led = |world: &World| {
        let places = world.host.places.as_ref().expect("published");
        places
            .sites
            .get(&host)
            .map(|site| site.machines.get(&name("web")).copied())
    };
    assert_eq!(led(&world), Some(Some(web[0])));
    world.say(Action::Stop);
    world.settle();
    assert_eq!(led(&world), Some(None));
    world.say(Action::Delete);
    world.settle();
    assert_eq!(led(&world), None);
}

#[test]
fn a_name_leads_to_a_machine_on_another_node_while_the_deployment_runs() {
    let key = types::mesh::MeshKey([8; 32]);
    let node = types::PublicKey([7; 32]);
    let net = format!(
        r#""subnet":"10.200.3.0/24","mesh":{{"port":51820,"peers":{{"n2":{{"node":"{node}","key":"{key}","subnet":"10.200.4.0/24","machines":["web2"],"card":"{{}}"}}}}}}"#
    );
    let mut named = with(&[("net", &net)], &[("web", &["net"])]);
    let host: types::ingress::Host = "a.test".parse().expect("a host");
    let site = r#"{"routes":[{"to":["web:80","web2:80"]}]}"#;
    named
        .ingress
        .insert(host.clone(), serde_json::from_str(site).expect("a site"));
    let mut world = start(named);
    let led = |world: &World| {
        let places = world.host.places.as_ref().expect("published");
        let site = &places.sites[&host];
        assert!(
            site.elsewhere
                .keys()
                .all(|machine| *machine == name("web2"))
        );
        let elsewhere = site.elsewhere.values().next().cloned();
        elsewhere.map(|way| format!("{} from {} on {}", way.there, way.here, way.node))
    };
    let there = "10.200.4.0/24 from 10.200.3.0/24 on n2";
    assert_eq!(led(&world).as_deref(), Some(there));
    world.say(Action::Stop);
    world.settle();
    assert_eq!(led(&world), None, "what is stopped leads to nobody");
    world.say(Action::Start);
    world.settle();
    assert_eq!(led(&world).as_deref(), Some(there));
}
