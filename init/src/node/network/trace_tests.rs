//! A small site: a shop on a network of its own and a closed one, and somebody else's machine.

use types::deployment::Protocol;

use super::super::tests::{card, keys, place, placed};
use super::*;

const ULA: Ula = [1, 2, 3, 4, 5];
const WEB: [u8; 4] = [10, 130, 1, 2];
const DB: [u8; 4] = [10, 130, 2, 9];
const OTHERS: [u8; 4] = [10, 130, 7, 2];

fn site() -> (Places, Uplink) {
    let (web_vm, mut web) = place("shop", "web", WEB, &[(80, 8080)]);
    web.cards.push(card([10, 130, 2, 2]));
    web.cards[1].internal = true;
    let (db_vm, mut db) = place("shop", "db", DB, &[]);
    db.cards[0].internal = true;
    let (other_vm, mut other) = place("other", "main", OTHERS, &[(81, 80)]);
    other.key.signer = types::PublicKey([9; 32]);
    let lan = "192.168.1.9/24";
    let uplink = Uplink {
        link: Some("eth0".to_owned()),
        addresses: lan.parse().into_iter().collect(),
        networks: vec!["192.168.1.0/24".parse().expect("a prefix")],
        links: vec!["eth0".to_owned()],
        ..Uplink::default()
    };
    let places = [(web_vm, web), (db_vm, db), (other_vm, other)];
    (placed(places), uplink)
}

fn ask(of: &str, way: Way, port: Option<u16>) -> Trace {
    let (places, uplink) = site();
    let placed = places
        .machines
        .values()
        .find(|placed| placed.workload.as_str() == of);
    let scene = Scene {
        places: &places,
        uplink: &uplink,
        ula: ULA,
        keys: &keys(),
    };
    let port = port.map(|port| (Protocol::Tcp, port));
    trace(&scene, placed.expect("a machine"), &Question { way, port })
}

fn to(text: &str) -> Way {
    Way::To(text.parse().expect("a destination"))
}

#[test]
fn machines_of_a_network_reach_each_other_by_name_and_address_and_both_families() {
    let six = network::address6(ULA, DB.into())
        .expect("in a network")
        .address;
    for destination in ["db", "db.shop", "10.130.2.9", &six.to_string()] {
        let trace = ask("web", to(destination), Some(5432));
        assert_eq!(
            trace.outcome,
            Outcome::Delivered,
            "{destination}: {trace:?}"
        );
        assert!(trace.message.starts_with("shop/db ("), "{}", trace.message);
        let card: Vec<_> = trace.steps.iter().map(|step| step.place).collect();
        assert_eq!(card, [Place::Card]);
    }
}

#[test]
fn the_way_to_the_internet_is_shown_place_by_place() {
    let trace = ask("web", to("198.51.100.7"), Some(443));
    assert_eq!(trace.outcome, Outcome::Leaves);
    let way: Vec<_> = trace
        .steps
        .iter()
        .map(|s| (s.place, s.verdict.as_str()))
        .collect();
    let (accept, node) = ("accept", Place::Node);
    assert_eq!(
        way,
        [
            (Place::Card, accept),
            (Place::Network, accept),
            (node, accept),
            (node, "masquerade")
        ]
    );
    assert!(
        trace.message.contains("by eth0 under 192.168.1.9"),
        "{}",
        trace.message
    );
}

#[test]
fn what_is_refused_names_the_chain_and_what_to_do() {
    for (of, destination, chain, word) in [
        ("web", "192.168.1.20", "private", "publish"),
        ("web", "169.254.169.254", "metadata", "no metadata"),
        ("web", "10.130.7.2", "tenants", "one network"),
        ("db", "198.51.100.7", "outside", "internal"),
        ("db", "10.130.1.2", "tenants", "one network"),
    ] {
        let trace = ask(of, to(destination), Some(80));
        assert_eq!(trace.outcome, Outcome::Refused, "{destination}");
        let last = trace.steps.last().expect("a step");
        assert_eq!(last.chains, ["forward", chain], "{destination}");
        let counter = last.counter.as_deref().expect("it is counted");
        assert!(counter.ends_with(chain), "{counter}");
        assert!(trace.message.contains(word), "{}", trace.message);
    }
}

#[test]
fn the_gateway_answers_dns_and_pings_only() {
    for (port, outcome) in [
        (Some(53), Outcome::Delivered),
        (None, Outcome::Delivered),
        (Some(22), Outcome::Dropped),
    ] {
        assert_eq!(
            ask("web", to("10.130.1.1"), port).outcome,
            outcome,
            "{port:?}"
        );
    }
}

#[test]
fn a_name_or_address_that_nobody_has_leads_nowhere() {
    for destination in ["cache", "example.com", "10.130.2.77", "2001:db8::1"] {
        let trace = ask("web", to(destination), Some(80));
        assert_eq!(trace.outcome, Outcome::Nowhere, "{destination}");
    }
}

#[test]
fn of_ipv6_the_way_to_the_internet_and_from_it_is_shown_where_the_node_has_it() {
    let (places, uplink) = site();
    let uplink = Uplink {
        link: None,
        link6: Some("eth0".to_owned()),
        prefixes: [(
            "eth0".to_owned(),
            ["fe80::9/64", "2001:db8:6::9/64"]
                .map(|own| own.parse().expect("an address"))
                .into(),
        )]
        .into(),
        ..uplink
    };
    let scene = Scene {
        places: &places,
        uplink: &uplink,
        ula: ULA,
        keys: &keys(),
    };
    let ask = |of: &str, way: Way| {
        let mut all = places.machines.values();
        let placed = all.find(|placed| placed.workload.as_str() == of);
        let port = Some((Protocol::Tcp, 80));
        trace(&scene, placed.expect("a machine"), &Question { way, port })
    };
    let out = ask("web", to("2001:db8:99::1"));
    assert_eq!(out.outcome, Outcome::Leaves, "{out:?}");
    assert!(
        out.message.contains("by eth0 under 2001:db8:6::9"),
        "{out:?}"
    );
    assert_eq!(
        out.steps.last().map(|s| s.verdict.as_str()),
        Some("masquerade")
    );
    for (of, destination, chain) in [
        ("web", "2001:db8:6:7::1", "private"),
        ("web", "fe80::1", "metadata"),
        ("web", "fd01:203:405:207::a82:702", "tenants"),
        ("db", "2001:db8:99::1", "outside"),
    ] {
        let trace = ask(of, to(destination));
        assert_eq!(trace.outcome, Outcome::Refused, "{destination}: {trace:?}");
        let last = trace.steps.last().expect("a step");
        assert_eq!(last.chains, ["forward", chain], "{destination}");
    }
    let gateway = network::address6(ULA, [10, 130, 1, 1].into()).expect("a gateway");
    let gateway = ask("web", to(&gateway.address.to_string()));
    assert_eq!(gateway.outcome, Outcome::Dropped, "{gateway:?}");
    let inward = ask("web", Way::FromOutside);
    assert_eq!(inward.outcome, Outcome::Delivered, "{inward:?}");
    assert_eq!(inward.steps[0].verdict, "[fd01:203:405:201::a82:102]:8080");
}

#[test]
fn without_ipv6_of_the_nodes_that_is_what_is_said() {
    let trace = ask("web", to("2001:db8:99::1"), Some(80));
    assert_eq!(trace.outcome, Outcome::Nowhere);
    assert!(trace.message.contains("no way out by IPv6"), "{trace:?}");
}

#[test]
fn a_published_port_leads_in_and_others_end_at_the_node() {
    let trace = ask("web", Way::FromOutside, Some(80));
    assert_eq!(trace.outcome, Outcome::Delivered, "{trace:?}");
    assert_eq!(trace.steps[0].verdict, "10.130.1.2:8080");
    assert!(
        trace
            .message
            .contains("shop/web (10.130.1.2) gets it on TCP port 8080"),
        "{}",
        trace.message
    );
    let closed = ask("web", Way::FromOutside, Some(22));
    assert_eq!(closed.outcome, Outcome::Dropped);
    assert!(closed.message.contains("publish it"), "{}", closed.message);
    assert!(
        ask("web", Way::FromOutside, Some(7443))
            .message
            .contains("the node itself")
    );
    assert_eq!(ask("web", Way::FromOutside, None).outcome, Outcome::Nowhere);
}

#[test]
fn of_another_tenants_machine_nothing_is_said() {
    let trace = ask("web", Way::FromOutside, Some(81));
    assert_eq!(trace.outcome, Outcome::Nowhere);
    assert!(
        trace.message.contains("somebody else's"),
        "{}",
        trace.message
    );
    let said = serde_json::to_string(&trace).expect("JSON");
    assert!(!said.contains("10.130.7"), "{said}");
}

#[test]
fn without_a_way_out_that_is_what_is_said() {
    let (places, uplink) = site();
    let uplink = Uplink {
        link: None,
        ..uplink
    };
    let scene = Scene {
        places: &places,
        uplink: &uplink,
        ula: ULA,
        keys: &keys(),
    };
    let web = places
        .machines
        .values()
        .find(|placed| placed.workload.as_str() == "web");
    let question = Question {
        way: to("198.51.100.7"),
        port: None,
    };
    let trace = trace(&scene, web.expect("a machine"), &question);
    assert_eq!(trace.outcome, Outcome::Nowhere);
    assert!(trace.message.contains("no way out"), "{}", trace.message);
}

#[test]
fn a_machine_on_another_node_of_the_network_is_reached_by_the_link_between_them() {
    let (mut places, uplink) = site();
    let web = places
        .machines
        .values()
        .find(|placed| placed.workload.as_str() == "web");
    let key = web.expect("a machine").key.clone();
    places.meshes.push(super::super::tests::meshed(
        key,
        [10, 130, 1, 0],
        [10, 130, 40, 0],
    ));
    let scene = Scene {
        places: &places,
        uplink: &uplink,
        ula: ULA,
        keys: &keys(),
    };
    let ask = |of: &str, destination: &str| {
        let placed = places
            .machines
            .values()
            .find(|placed| placed.workload.as_str() == of);
        let (way, port) = (to(destination), Some((Protocol::Tcp, 80)));
        trace(&scene, placed.expect("a machine"), &Question { way, port })
    };
    let there = ask("web", "10.130.40.7");
    assert_eq!(there.outcome, Outcome::Leaves, "{there:?}");
    assert!(there.message.contains("node n2"), "{}", there.message);
    assert!(
        there.steps[1].rule.contains("oifname \"mesh\""),
        "{there:?}"
    );
    assert_eq!(ask("db", "10.130.40.7").outcome, Outcome::Refused);
}
