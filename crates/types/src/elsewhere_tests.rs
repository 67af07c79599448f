//! A node's part of a shop whose second machine is on node n2.

use super::*;
use crate::ingress::Host;

/// Networks by name: this node's part of each, that of n2, whether it is internal and which machines n2 has there.
type Net<'a> = (&'a str, u8, u8, bool, &'a str);

fn part(networks: &[Net<'_>], to: &str) -> Deployment {
    let digest = crate::Digest([2; 32]);
    let network = |(name, here, there, internal, machines): &Net<'_>| {
        let (node, key) = (
            crate::PublicKey([7; 32]),
            crate::mesh::MeshKey([*there; 32]),
        );
        format!(
            r#""{name}":{{"network":{{"subnet":"10.200.{here}.0/24","internal":{internal},"mesh":{{"port":{},"peers":{{"n2":{{
                "node":"{node}","key":"{key}","subnet":"10.200.{there}.0/24","machines":[{machines}],"card":"{{}}"}}}}}}}}}},"#,
            51820 + u16::from(*here)
        )
    };
    let networks: String = networks.iter().map(network).collect();
    let json = format!(
        r#"{{"ingress":{{"a.test":{{"routes":[{{"to":[{to}]}}]}}}},"workloads":{{{networks}
            "web":{{"machine":{{"image":{{"flist":"{digest}"}}}}}}}}}}"#
    );
    serde_json::from_str(&json).expect("a deployment")
}

fn name(text: &str) -> Name {
    text.parse().expect("a name")
}

const FRONT: Net<'_> = ("front", 1, 2, false, r#""web2""#);

#[test]
fn a_machine_that_the_statement_has_on_another_node_is_reached_by_the_network_they_share() {
    let back = ("back", 3, 4, true, r#""web2","db""#);
    let part = part(&[FRONT, back], r#""web:80","web2:80""#);
    part.check().expect("a name may lead there");
    let Way::By(way) = part.way_to(&name("web2")) else {
        panic!("{:?}", part.way_to(&name("web2")))
    };
    assert_eq!((way.network.as_str(), way.node.as_str()), ("front", "n2"));
    let subnets = [way.here, way.there].map(|subnet| subnet.to_string());
    assert_eq!(subnets, ["10.200.1.0/24", "10.200.2.0/24"]);
    assert_eq!(part.way_to(&name("db")), Way::Internal);
    for stranger in ["web", "other", "n2"] {
        assert_eq!(part.way_to(&name(stranger)), Way::Nowhere, "{stranger}");
    }
}

#[test]
fn a_name_leads_to_nobody_whom_it_cannot_reach_and_it_is_said_why() {
    let side = ("side", 5, 6, false, r#""web2""#);
    let back = ("back", 3, 4, true, r#""db""#);
    for (networks, to, says) in [
        (
            &[FRONT][..],
            "web3:80",
            "no machine of that name in this deployment",
        ),
        (&[], "web2:80", "no machine of that name in this deployment"),
        (&[FRONT, back], "db:80", "is internal"),
        (&[FRONT, side], "web2:80", "front and side"),
    ] {
        let part = part(networks, &format!(r#""{to}""#));
        let error = part.check().expect_err(says).to_string();
        assert!(error.contains(says), "{to}: {error}");
    }
}

#[test]
fn a_part_without_a_machine_of_its_own_serves_names_too() {
    let mut part = part(&[FRONT], r#""web2:80""#);
    part.workloads.remove(&name("web"));
    part.check().expect("the machine is on n2");
    let host: Host = "a.test".parse().expect("a host");
    assert!(part.ingress.contains_key(&host));
}
