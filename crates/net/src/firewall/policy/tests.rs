//! The policies against an independent reader: `nft` lists what the kernel took from us, and it must be
//! what `nft` makes of the same policy written by hand. Needs root and Debian's `nftables`.

use std::io::Write;
use std::process::{Command, Stdio};

use serde_json::Value;

use super::*;
use crate::firewall::words;
use crate::scratch::Scratch;
use crate::{firewall, namespace};

/// `nft` in a namespace; its output.
pub(crate) fn nft(namespace: &str, arguments: &[&str], input: &str) -> String {
    let mut command = Command::new("ip");
    command
        .args(["netns", "exec", namespace, "nft"])
        .args(arguments);
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().expect("ip from Debian's iproute2");
    child
        .stdin
        .take()
        .expect("a pipe")
        .write_all(input.as_bytes())
        .expect("written");
    let output = child.wait_with_output().expect("an exit status");
    assert!(
        output.status.success(),
        "nft {arguments:?} failed: install Debian's nftables, be root"
    );
    String::from_utf8(output.stdout).expect("text")
}

/// What the kernel holds, without its numbering and its counts.
fn listing(namespace: &str) -> Vec<Value> {
    let mut value: Value =
        serde_json::from_str(&nft(namespace, &["-j", "list", "ruleset"], "")).expect("JSON");
    let list = value["nftables"].as_array_mut().expect("a list");
    list.remove(0);
    let mut list = std::mem::take(list);
    for object in &mut list {
        for (_, fields) in object.as_object_mut().expect("an object") {
            fields.as_object_mut().expect("fields").remove("handle");
        }
    }
    list
}

fn compare(test: &str, ruleset: &Ruleset, by_hand: &str) {
    let scratch = Scratch::new(test);
    let (name, theirs) = (scratch.name("ours"), scratch.name("by-hand"));
    for namespace in [&name, &theirs] {
        namespace::ensure(namespace).expect("a namespace; it needs root");
    }
    // Twice: the second replaces the first.
    firewall::apply_in(&name, ruleset).expect("applied");
    firewall::apply_in(&name, ruleset).expect("applied again");
    let counts = firewall::counts_in(&name).expect("counters");
    let tallies = ruleset.tables.iter().flat_map(|table| &table.counters);
    for tally in tallies.clone() {
        let counted = counts[&tally.name];
        assert_eq!(
            (counted.packets, counted.bytes),
            (tally.packets, tally.bytes)
        );
    }
    assert_eq!(counts.len(), tallies.count());
    nft(&theirs, &["-f", "-"], by_hand);
    let (ours, expected) = (listing(&name), listing(&theirs));
    for (ours, expected) in ours.iter().zip(&expected) {
        assert_eq!(ours, expected);
    }
    assert_eq!(ours.len(), expected.len());
}

fn six(address: [u8; 4]) -> Ipv6Addr {
    let address = crate::network::address6([1, 2, 3, 4, 5], address.into());
    address.expect("of a tenant network").address
}

fn cidr<A: types::cidr::Address>(text: &str) -> Cidr<A> {
    text.parse().expect("a prefix")
}

fn inside(address: [u8; 4]) -> Inside {
    Inside {
        four: address.into(),
        six: six(address),
    }
}

const PING_FROM_ALL: Let = Let {
    port: None,
    from: None,
};

fn https(from: &str) -> Let {
    Let {
        port: Some((Transport::Tcp, 443)),
        from: Some(cidr(from)),
    }
}

/// Two uplinks, and a network of one machine with a port of each protocol.
pub(crate) fn example_node() -> Node {
    Node {
        uplinks: vec!["eth0".to_owned(), "enp3s0".to_owned()],
        open_ports: vec![7443],
        mesh_ports: vec![51820],
        tenants: vec![NodeTenant {
            link: "tenant3".to_owned(),
            subnet: cidr("10.128.3.1/24"),
            subnet6: cidr("fd01:203:405:3::/64"),
            published: vec![
                Published {
                    transport: Transport::Tcp,
                    node_port: 8080,
                    inside: inside([10, 128, 3, 2]),
                    port: 80,
                },
                Published {
                    transport: Transport::Udp,
                    node_port: 8080,
                    inside: inside([10, 128, 3, 2]),
                    port: 53,
                },
            ],
            owned: vec![
                Owned {
                    address: [198, 51, 100, 9].into(),
                    inside: inside([10, 128, 3, 3]),
                    link: Some("eth0".to_owned()),
                    allow: vec![https("203.0.113.0/24"), PING_FROM_ALL],
                },
                Owned {
                    address: "2001:db8:5::9".parse().expect("an address"),
                    inside: inside([10, 128, 3, 3]),
                    link: None,
                    allow: vec![https("2001:db8:9::/48"), PING_FROM_ALL],
                },
            ],
        }],
    }
}

/// A network of two machines, of which one is published.
pub(crate) fn example_tenant() -> Tenant {
    Tenant {
        gateway: cidr("10.128.3.1/24"),
        gateway6: cidr("fd01:203:405:3::a80:301/64"),
        refused: vec![
            cidr("198.51.100.7/32"),
            cidr("198.51.96.0/20"),
            cidr("2001:db8:6::/48"),
        ],
        internal: false,
        peers: vec![cidr("10.200.7.0/24")],
        guests: vec![
            Guest {
                tap: "tap2".to_owned(),
                mac: "02:00:0a:80:03:02".parse().expect("a MAC"),
                address: [10, 128, 3, 2].into(),
                address6: six([10, 128, 3, 2]),
                ports: vec![
                    (Transport::Tcp, 80),
                    (Transport::Tcp, 443),
                    (Transport::Udp, 53),
                ],
                lets: Vec::new(),
            },
            Guest {
                tap: "tap3".to_owned(),
                mac: "02:00:0a:80:03:03".parse().expect("a MAC"),
                address: [10, 128, 3, 3].into(),
                address6: six([10, 128, 3, 3]),
                ports: vec![],
                lets: vec![
                    ([10, 128, 3, 3].into(), PING_FROM_ALL),
                    (six([10, 128, 3, 3]).into(), https("2001:db8:9::/48")),
                    (six([10, 128, 3, 3]).into(), PING_FROM_ALL),
                ],
            },
        ],
    }
}

/// What stands in each chain, as somebody wrote it down.
fn written(by_hand: &str) -> Vec<&str> {
    let lines = by_hand.lines().map(str::trim);
    let is_rule = |line: &&str| {
        !line.ends_with(['{', '}']) && !line.starts_with(['#', 't']) || line.starts_with("tcp")
    };
    lines
        .filter(|line| !line.is_empty())
        .filter(is_rule)
        .collect()
}

#[test]
fn rules_are_shown_as_a_person_writes_them() {
    let shown = |ruleset: &Ruleset| -> Vec<String> {
        let chains = ruleset
            .tables
            .iter()
            .flat_map(|table| table.chains.iter().map(|chain| (table.family, chain)));
        chains
            .flat_map(|(family, chain)| {
                chain
                    .rules
                    .iter()
                    .map(move |rule| words::rule(rule, family))
            })
            .collect()
    };
    assert_eq!(
        shown(&node(&example_node())),
        written(include_str!("node.nft"))
    );
    let rules = tenant(&example_tenant(), &Counts::new());
    assert_eq!(shown(&rules), written(include_str!("tenant.nft")));
}

#[test]
fn the_nodes_rules_are_what_nft_makes_of_the_same_policy() {
    compare("nft-node", &node(&example_node()), include_str!("node.nft"));
}

#[test]
fn a_tenants_rules_are_what_nft_makes_of_the_same_policy() {
    let name = Attempt::Metadata.counter("tap2");
    let seen = firewall::Counted {
        packets: 3,
        bytes: 210,
    };
    let rules = tenant(&example_tenant(), &[(name, seen)].into());
    compare("nft-tenant", &rules, include_str!("tenant.nft"));
}

#[test]
fn every_attempt_has_a_counter_of_its_own() {
    let words: BTreeSet<&str> = Attempt::ALL.map(Attempt::word).into();
    assert_eq!(words.len(), Attempt::ALL.len());
}

#[test]
fn a_refused_rule_is_named_and_leaves_the_old_rules() {
    let scratch = Scratch::new("nft-refused");
    let name = &scratch.name("one");
    namespace::ensure(name).expect("a namespace; it needs root");
    let mut ruleset = node(&Node::default());
    firewall::apply_in(name, &ruleset).expect("applied");
    let before = listing(name);
    ruleset.tables[0].chains[7]
        .rules
        .push(jump(Test::Ipv4, "nowhere"));
    let error = firewall::apply_in(name, &ruleset).expect_err("there is no such chain");
    assert!(
        error.to_string().contains("chain input of table Inet"),
        "{error}"
    );
    assert_eq!(listing(name), before);
}
