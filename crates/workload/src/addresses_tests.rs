//! Addresses of machines' own against the fake node: who has which, who keeps it, and who may not have one.

use std::net::IpAddr;

use types::address::Wanted;
use types::status::Refusal;

use super::*;

fn name(text: &str) -> Name {
    text.parse().expect("a valid name")
}

/// A pool `lan` of these addresses, or none, and machines with what each asks of it.
fn with(pool: Option<&str>, machines: &[(&str, &str)]) -> Deployment {
    let mut deployment = deployment(1);
    let template = deployment.workloads.remove(&name("web"));
    for (machine, asks) in machines {
        let mut machine_of = template.clone().expect("a machine");
        if let Workload::Machine(spec) = &mut machine_of {
            let asks: Vec<Wanted> = serde_json::from_str(&format!("[{asks}]")).expect("addresses");
            spec.addresses = asks;
        }
        deployment.workloads.insert(name(machine), machine_of);
    }
    if let Some(range) = pool {
        let pool = format!(r#"{{"pool":{{"kind":"lan","range":{range}}}}}"#);
        let pool = serde_json::from_str(&pool).expect("a pool");
        deployment.workloads.insert(name("lan"), pool);
    }
    deployment
}

const TWO: &str = r#""192.0.2.200-192.0.2.201""#;
const ANY: &str = r#"{"pool":"lan"}"#;

fn start(deployment: Deployment) -> World {
    let mut world = World::new();
    world.say(Action::Deploy(deployment));
    world.settle();
    world.host.begun.clear();
    world
}

/// An address of `lan` that is asked for by itself.
fn fixed(last: u8) -> String {
    format!(r#"{{"pool":"lan","address":"192.0.2.{last}"}}"#)
}

/// What the node and its router have.
fn around() -> crate::reconcile::Occupied {
    Box::new(|| [(IpAddr::from([192, 0, 2, 200]), "the router's")].into())
}

impl World {
    /// The one that has the address by the rules.
    fn placed(&self, last: u8) -> Vec<String> {
        let address = IpAddr::from([192, 0, 2, last]);
        let places = self.reconciler.places();
        let has =
            |placed: &&crate::host::Placed| placed.own.iter().any(|own| own.address == address);
        let all = places.machines.values().filter(has);
        all.map(|placed| placed.workload.to_string()).collect()
    }

    fn own(&self, workload: &str) -> Vec<IpAddr> {
        let status = self.reconciler.status(&self.key(), true).expect("one");
        status.workloads[&name(workload)].addresses.clone()
    }

    fn refusal(&self, of: &str, action: Action) -> Option<Refusal> {
        let version = if of == "shop" { self.next_version() } else { 1 };
        let mut said = verified(version, action);
        said.statement.name = name(of);
        self.reconciler.addresses_in_the_way(&said)
    }

    fn refused(&self, of: &str, action: Action, because: &str) {
        let refusal = self.refusal(of, action).expect(because);
        assert!(refusal.message.contains(because), "{}", refusal.message);
    }
}

const SIX: &str = r#""2001:db8:5::/64""#;

#[test]
fn a_pool_of_ipv6_is_as_one_of_ipv4_and_lets_in_from_its_own_family_alone() {
    let open = r#"{"pool":"lan","allow":[{"tcp":443,"from":"2001:db8:9::/48"}]}"#;
    let mut world = start(with(Some(SIX), &[("a", open), ("b", ANY)]));
    let (a, b) = (world.own("a"), world.own("b"));
    assert!(a.len() == 1 && b.len() == 1 && a != b);
    assert!(a[0].to_string().starts_with("2001:db8:5::"), "{a:?}");
    world.restart_agent();
    world.settle();
    assert_eq!((world.own("a"), world.own("b")), (a, b));
    for (pool, from, says) in [
        (SIX, "203.0.113.0/24", "are of IPv6"),
        (TWO, "2001:db8:9::/48", "are of IPv4"),
    ] {
        let asks = format!(r#"{{"pool":"lan","allow":[{{"tcp":443,"from":"{from}"}}]}}"#);
        let other = start(with(None, &[("c", "")]));
        let shop = Action::Deploy(with(Some(pool), &[("c", &asks)]));
        other.refused("shop", shop, says);
    }
}

#[test]
fn a_pool_has_nothing_of_what_the_node_makes_networks_of() {
    let mut world = start(with(None, &[("a", "")]));
    let ours = "fd01:203:405::/48".parse().expect("a range");
    world.reconciler.reserve(ours);
    for range in [r#""fd01:203:405:7::/64""#, r#""fd00::/8""#] {
        let pools = Action::Deploy(with(Some(range), &[("a", "")]));
        world.refused("shop", pools, "makes its machines' networks");
    }
    let pools = Action::Deploy(with(Some(r#""fd01:203:406::/48""#), &[("a", "")]));
    assert_eq!(world.refusal("shop", pools), None);
}

#[test]
fn a_machine_keeps_its_address_and_rules_change_without_a_restart() {
    let mut world = start(with(Some(TWO), &[("a", ANY), ("b", ANY), ("c", "")]));
    let (a, b) = (world.own("a"), world.own("b"));
    assert!(a.len() == 1 && b.len() == 1 && a != b && world.own("c").is_empty());
    world.say(Action::Restart);
    world.settle();
    world.restart_agent();
    world.settle();
    assert_eq!((world.own("a"), world.own("b")), (a.clone(), b.clone()));
    let status = world.reconciler.status(&world.key(), true).expect("one");
    let used = &status.pools[&name("lan")].used;
    assert_eq!(used.get(&a[0]).map(String::as_str), Some("shop/a"));
    world.host.begun.clear();
    let open = r#"{"pool":"lan","allow":[{"tcp":443}]}"#;
    world.say(Action::Deploy(with(
        Some(TWO),
        &[("a", open), ("b", ANY), ("c", "")],
    )));
    world.settle();
    let starts = |world: &World| {
        let begun = world.host.begun.iter();
        begun.filter(|step| matches!(step, Step::Start(_))).count()
    };
    assert_eq!(starts(&world), 0);
    let places = world.host.places.as_ref().expect("published");
    let allowed = places.machines.values().flat_map(|placed| &placed.own);
    let allowed: usize = allowed.map(|own| own.allow.len()).sum();
    assert_eq!(allowed, 1);
    // One that gives it up starts again, and its address is free for another.
    let fixed = format!(r#"{{"pool":"lan","address":"{}"}}"#, a[0]);
    world.refused(
        "shop",
        Action::Deploy(with(Some(TWO), &[("a", ANY), ("b", ANY), ("c", &fixed)])),
        "which shop/a has",
    );
    world.say(Action::Deploy(with(
        Some(TWO),
        &[("a", ""), ("b", ANY), ("c", "")],
    )));
    world.settle();
    assert_eq!((starts(&world), world.own("a")), (1, Vec::new()));
    world.say(Action::Deploy(with(
        Some(TWO),
        &[("a", ""), ("b", ANY), ("c", &fixed)],
    )));
    world.settle();
    assert_eq!((world.own("c"), world.own("b")), (a, b));
}

#[test]
fn what_cannot_be_is_refused_with_its_reason() {
    let world = start(with(Some(TWO), &[("a", ANY), ("b", ANY)]));
    fn deploy(pool: Option<&str>, machines: &[(&str, &str)]) -> Action {
        Action::Deploy(with(pool, machines))
    }
    let both: &[(&str, &str)] = &[("a", ANY), ("b", ANY)];
    world.refused(
        "other",
        deploy(None, &[("c", ANY)]),
        "all of them are taken",
    );
    world.refused(
        "other",
        deploy(None, &[("c", r#"{"pool":"moon"}"#)]),
        "no pool of this node",
    );
    world.refused(
        "other",
        deploy(Some(r#""198.51.100.7""#), &[]),
        "a pool of that name",
    );
    let outside = r#"{"pool":"lan","address":"192.0.2.7"}"#;
    world.refused(
        "shop",
        deploy(Some(TWO), &[("a", outside), ("b", ANY)]),
        "is not in lan",
    );
    let shared = |shares: &str| format!(r#"{TWO},"for":{{{shares}}}"#);
    world.refused(
        "shop",
        deploy(Some(&shared(r#""shop":1"#)), both),
        "may have 1",
    );
    world.refused(
        "shop",
        deploy(Some(&shared(r#""blog":2"#)), both),
        "may not have",
    );
    // What is in use stays in the pool, and the pool stays.
    world.refused(
        "shop",
        deploy(Some(r#""192.0.2.201""#), both),
        "which 192.0.2.201 has not",
    );
    let mut gone = with(None, both);
    gone.remove = [name("lan")].into();
    world.refused("shop", Action::Deploy(gone), "has an address of it");
    assert_eq!(
        world.refusal("shop", Action::Delete),
        None,
        "all of it goes at once"
    );
    let larger = deploy(Some(r#""192.0.2.200-192.0.2.209""#), both);
    assert_eq!(world.refusal("shop", larger), None);
    // A network of machines is no place for a pool.
    let status = world.reconciler.places();
    let card = status.machines.values().next().expect("a machine").cards[0];
    let touching = format!(r#""{}""#, card.address);
    let mut pool = with(None, &[]);
    let fields = format!(r#"{{"pool":{{"kind":"lan","range":{touching}}}}}"#);
    let fields = serde_json::from_str(&fields).expect("a pool");
    pool.workloads.insert(name("side"), fields);
    world.refused("other", Action::Deploy(pool), "is the network of machines");
}

#[test]
fn what_is_the_nodes_or_its_routers_is_given_to_nobody() {
    let mut world = World::new();
    world.reconciler.keep_off(around());
    let deploy = |machines: &[(&str, &str)]| Action::Deploy(with(Some(TWO), machines));
    let router = deploy(&[("a", &fixed(200))]);
    world.refused("shop", router, "192.0.2.200, which is the router's");
    let both = deploy(&[("a", ANY), ("b", ANY)]);
    world.refused("shop", both, "1 addresses for machines, and all of them");
    world.say(deploy(&[("a", ANY)]));
    world.settle();
    assert_eq!(world.own("a"), [IpAddr::from([192, 0, 2, 201])]);
}

#[test]
fn a_machine_whose_address_has_become_the_routers_gets_another_with_its_next_start() {
    let mut world = start(with(Some(r#""192.0.2.200-192.0.2.209""#), &[("a", ANY)]));
    let before = world.own("a");
    let last = before[0];
    world
        .reconciler
        .keep_off(Box::new(move || [(last, "the router's")].into()));
    assert_eq!(world.own("a"), before, "it runs");
    world.say(Action::Restart);
    world.settle();
    assert_ne!(world.own("a"), before);
}

#[test]
fn addresses_go_from_one_machine_to_the_other_in_one_statement() {
    let (first, second) = (fixed(200), fixed(201));
    let deploy = |a: &str, b: &str| Action::Deploy(with(Some(TWO), &[("a", a), ("b", b)]));
    let mut world = World::new();
    world.say(deploy(&first, &second));
    world.settle();
    let (a, b) = (world.own("a"), world.own("b"));
    // Who keeps it by asking for any is not robbed.
    world.refused("shop", deploy(ANY, &first), "which shop/a has");
    for (of_a, of_b, expected) in [
        (&second, &first, (b.clone(), a.clone())),
        (&String::new(), &second, (Vec::new(), b.clone())),
    ] {
        assert_eq!(world.refusal("shop", deploy(of_a, of_b)), None);
        world.say(deploy(of_a, of_b));
        for _ in 0..10 {
            world.pass(2_000);
        }
        assert_eq!((world.own("a"), world.own("b")), expected);
        assert!(world.placed(200).len() <= 1 && world.placed(201).len() <= 1);
    }
}

#[test]
fn an_address_is_had_by_one_also_after_a_change_that_failed_and_a_new_agent() {
    let three = Some(r#""192.0.2.200-192.0.2.202""#);
    let mut world = World::new();
    let deploy = |a: &str, b: &str| Action::Deploy(with(three, &[("a", a), ("b", b)]));
    world.say(deploy(&fixed(200), ""));
    world.settle();
    // It stops, and does not come up as it should: its record says what it had before.
    world.host.failures = vec![false, true].into();
    world.say(deploy(&fixed(201), ""));
    world.settle();
    world.host.failures = vec![true; 1000].into();
    world.pass(60_000);
    world.host.failures.clear();
    world.say(deploy(&fixed(201), &fixed(200)));
    world.settle();
    world.restart_agent();
    assert_eq!(world.placed(200), ["b"]);
    // Any will do for it, and that one is taken.
    world.say(deploy(ANY, &fixed(200)));
    world.restart_agent();
    assert_eq!(world.placed(200), ["b"]);
    world.pass(120_000);
    assert_eq!(world.placed(200), ["b"]);
    assert_eq!(world.own("a").len(), 1);
}

#[test]
fn networks_of_machines_are_made_outside_of_pools() {
    let mut world = World::new();
    let pool = with(Some(r#""10.130.3.200-10.130.6.20""#), &[]);
    world.say(Action::Deploy(pool.clone()));
    let mut more = pool;
    more.workloads.extend(with(None, &[("a", "")]).workloads);
    world.say(Action::Deploy(more));
    world.settle();
    let places = world.reconciler.places();
    let card = places.machines.values().next().expect("a machine").cards[0];
    assert_eq!(card.address.octets()[..3], [10, 130, 7]);
    // Nor where somebody asks for it.
    let asks = r#"{"network":{"subnet":"10.130.5.0/24"}}"#;
    let mut asking = with(None, &[]);
    let fields = serde_json::from_str(asks).expect("a network");
    asking.workloads.insert(name("net"), fields);
    let mut said = verified(1, Action::Deploy(asking));
    said.statement.name = name("other");
    let refusal = world.reconciler.networks_in_the_way(&said);
    let message = refusal.expect("it is refused").message;
    assert!(
        message.contains("10.130.5.0/24, which is in use"),
        "{message}"
    );
}
