//! Packets whose fate is known, through the rules of `policy`.

use super::super::policy;
use super::super::policy::tests::{example_node, example_tenant};
use super::*;
use crate::firewall::Counts;
use crate::network::{BRIDGE, MESH, WAN};

const WEB: [u8; 4] = [10, 128, 3, 2];

/// From the first machine of the network outward.
fn out(to: [u8; 4], what: What) -> Packet {
    Packet {
        from: Some(BRIDGE.to_owned()),
        to: Some(WAN.to_owned()),
        mac: "02:00:0a:80:03:02".parse().expect("a MAC"),
        source: WEB.into(),
        destination: to.into(),
        is_ours: false,
        what,
    }
}

fn forwarded(packet: &Packet) -> Decision {
    let rules = policy::tenant(&example_tenant(), &Counts::new());
    let (inet, filter) = (Family::Inet, ChainKind::Filter);
    decide(&rules, inet, filter, Point::Forward, packet).expect("a filter decides")
}

const HTTPS: What = What::Port(Transport::Tcp, 443);

#[test]
fn the_rule_that_refuses_is_named_with_its_counter() {
    for (to, chain, counter) in [
        ([192, 168, 1, 1], "private", "tap2-private"),
        ([198, 51, 100, 7], "private", "tap2-private"),
        ([169, 254, 169, 254], "metadata", "tap2-metadata"),
        ([10, 200, 0, 5], "tenants", "tap2-tenants"),
    ] {
        let decision = forwarded(&out(to, HTTPS));
        assert_eq!(decision.verdict, Decided::Reject, "{to:?}");
        assert_eq!(decision.chains, ["forward", chain], "{to:?}");
        assert_eq!(decision.counter.as_deref(), Some(counter), "{to:?}");
        let rule = format!(
            "ip saddr 10.128.3.2 counter name \"{counter}\" reject with icmpx admin-prohibited"
        );
        assert_eq!(decision.rule, rule);
    }
}

#[test]
fn of_ipv6_the_same_rules_refuse_and_let_through() {
    let six = |to: &str| {
        let source = "fd01:203:405:3::a80:302".parse().expect("an address");
        let destination = to.parse().expect("an address");
        Packet {
            source,
            destination,
            ..out([192, 0, 2, 1], HTTPS)
        }
    };
    for (to, chain) in [
        ("2001:db8:6:9::1", "private"),
        ("fd00:ec2::254", "private"),
        ("fe80::1", "metadata"),
        ("fd01:203:405:9::a80:902", "tenants"),
    ] {
        let decision = forwarded(&six(to));
        assert_eq!(decision.verdict, Decided::Reject, "{to}");
        assert_eq!(decision.chains, ["forward", chain], "{to}");
        let counter = format!("tap2-{chain}");
        assert_eq!(decision.counter, Some(counter), "{to}");
    }
    let decision = forwarded(&six("2a01:4f8::1"));
    assert_eq!(decision.verdict, Decided::Accept);
    let rule = "iifname \"br0\" oifname \"wan\" ip6 saddr fd01:203:405:3::/64 accept";
    assert_eq!(decision.rule, rule);
}

#[test]
fn the_internet_is_let_through_below_the_limit_of_connections() {
    let decision = forwarded(&out([93, 184, 216, 34], HTTPS));
    assert_eq!(decision.verdict, Decided::Accept);
    assert_eq!(decision.chains, ["forward"]);
    let rule = "iifname \"br0\" oifname \"wan\" ip saddr 10.128.3.0/24 accept";
    assert_eq!(decision.rule, rule);
}

#[test]
fn a_port_that_is_not_published_is_dropped_by_the_last_rule() {
    let inward = |port| Packet {
        from: Some(WAN.to_owned()),
        to: Some(BRIDGE.to_owned()),
        source: [203, 0, 113, 9].into(),
        destination: WEB.into(),
        ..out(WEB, What::Port(Transport::Tcp, port))
    };
    assert_eq!(forwarded(&inward(443)).verdict, Decided::Accept);
    let decision = forwarded(&inward(444));
    assert_eq!(
        (decision.verdict, decision.rule.as_str()),
        (Decided::Drop, "counter drop")
    );
}

#[test]
fn a_machine_under_anothers_address_is_stopped_at_its_card() {
    let rules = policy::tenant(&example_tenant(), &Counts::new());
    let at_card = |source: [u8; 4]| {
        let packet = Packet {
            from: Some("tap2".to_owned()),
            to: None,
            source: source.into(),
            ..out([10, 128, 3, 3], HTTPS)
        };
        let (bridge, filter) = (Family::Bridge, ChainKind::Filter);
        decide(&rules, bridge, filter, Point::Prerouting, &packet).expect("a filter decides")
    };
    assert_eq!(at_card(WEB).verdict, Decided::Accept);
    let stopped = at_card([10, 128, 3, 3]);
    assert_eq!(stopped.verdict, Decided::Drop);
    assert_eq!(stopped.chains, ["prerouting", "from-tap2"]);
    assert_eq!(stopped.counter.as_deref(), Some("tap2-address"));
}

#[test]
fn where_nothing_translates_nothing_is_said() {
    let rules = policy::node(&policy::Node::default());
    let packet = out([93, 184, 216, 34], What::Ping);
    let (inet, nat) = (Family::Inet, ChainKind::Nat);
    assert_eq!(decide(&rules, inet, nat, Point::Postrouting, &packet), None);
    let by_policy = decide(&Ruleset::default(), inet, nat, Point::Input, &packet);
    assert_eq!(by_policy, None);
}

/// From another node's part of the network.
fn across(source: [u8; 4], destination: [u8; 4], is_ours: bool, what: What) -> Packet {
    Packet {
        from: Some(MESH.to_owned()),
        to: (!is_ours).then(|| BRIDGE.to_owned()),
        source: source.into(),
        destination: destination.into(),
        is_ours,
        ..out(destination, what)
    }
}

#[test]
fn another_nodes_gateway_leads_requests_to_machines_and_has_of_the_gateway_here_names_alone() {
    let (gateway, machine, stranger) = ([10, 200, 7, 1], [10, 200, 7, 9], [10, 200, 8, 1]);
    let web = |source| forwarded(&across(source, WEB, false, HTTPS)).verdict;
    for source in [gateway, machine] {
        assert_eq!(web(source), Decided::Accept, "{source:?}");
    }
    assert_eq!(web(stranger), Decided::Drop);
    let rules = policy::tenant(&example_tenant(), &Counts::new());
    let here = |source, what| {
        let packet = across(source, [10, 128, 3, 1], true, what);
        let (inet, filter) = (Family::Inet, ChainKind::Filter);
        decide(&rules, inet, filter, Point::Input, &packet).map(|decision| decision.verdict)
    };
    let dns = What::Port(Transport::Udp, 53);
    assert_eq!(here(gateway, dns), Some(Decided::Accept));
    assert_eq!(here(machine, dns), Some(Decided::Drop));
    assert_eq!(here(gateway, HTTPS), Some(Decided::Drop));
    // Nor is it led on to the internet, or to other nodes.
    for link in [WAN, MESH] {
        let packet = Packet {
            to: Some(link.to_owned()),
            ..across(gateway, [93, 184, 216, 34], false, HTTPS)
        };
        assert_eq!(forwarded(&packet).verdict, Decided::Drop, "{link}");
    }
}

#[test]
fn what_a_gateway_begins_leaves_the_node_by_no_uplink() {
    let rules = policy::node(&example_node());
    let leaves = |source: [u8; 4]| {
        let packet = Packet {
            from: Some("tenant3".to_owned()),
            to: Some("eth0".to_owned()),
            source: source.into(),
            ..out([10, 200, 7, 9], HTTPS)
        };
        let (inet, filter) = (Family::Inet, ChainKind::Filter);
        let decision = decide(&rules, inet, filter, Point::Forward, &packet);
        decision.expect("a filter decides").verdict
    };
    assert_eq!(leaves(WEB), Decided::Accept);
    assert_eq!(leaves([10, 128, 3, 1]), Decided::Drop);
}
