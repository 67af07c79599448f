//! Packets whose fate is known, through the rules of `policy`.

use super::super::policy::{self, tests::example_tenant};
use super::*;
use crate::firewall::Counts;
use crate::network::{BRIDGE, WAN};

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
