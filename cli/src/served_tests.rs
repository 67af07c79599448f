//! Files for two and three nodes, and what each serves.

use std::collections::BTreeMap;

use types::Digest;

use crate::spec;

use super::*;

const NET: &str = "  net: {network: {nodes: [n1, n2, n3]}}\n";
const WEBS: &str =
    "  web1: {image: x, on: n1, networks: [net]}\n  web2: {image: x, on: n2, networks: [net]}\n";

fn parts(ingress: &str, workloads: &str) -> Result<BTreeMap<String, Deployment>, String> {
    let yaml = format!("name: shop\ningress:\n  {ingress}\nworkloads:\n{workloads}");
    let mut resolve = |_: &str| Ok(Digest([0xaa; 32]));
    let draft = spec::parse(&yaml, &mut resolve).map_err(|error| error.to_string())?;
    let parts = draft.fleet.parts(&draft.deployment);
    let parts = parts.map_err(|error| error.0)?.into_iter();
    Ok(parts.map(|(node, part)| (node.to_string(), part)).collect())
}

/// The nodes that serve, and to how many machines the name leads.
fn serving(ingress: &str, workloads: &str) -> Result<Vec<(String, usize)>, String> {
    let parts = parts(ingress, workloads)?;
    let serves = |(node, part): (String, Deployment)| {
        let site = part.ingress.into_values().next()?;
        Some((node, site.backends().count()))
    };
    Ok(parts.into_iter().filter_map(serves).collect())
}

#[test]
fn a_name_is_served_where_its_machines_are_or_where_the_file_says_and_leads_to_all_of_them() {
    let all = format!("{NET}{WEBS}");
    for (ingress, nodes) in [
        ("a.b: {to: web1:80}", &["n1"][..]),
        ("a.b: {to: [web1:80, web2:80]}", &["n1", "n2"]),
        ("a.b: {to: [web1:80, web2:80], on: n1}", &["n1"]),
        ("a.b: {to: [web1:80, web2:80], on: n1, tls: acme}", &["n1"]),
        ("a.b: {to: [web1:80, web2:80], on: [n3, n1]}", &["n1", "n3"]),
        (
            "a.b: {to: web1:80, paths: {/api: web2:80}, on: n3}",
            &["n3"],
        ),
    ] {
        let found = serving(ingress, &all).expect(ingress);
        let wanted = ingress.matches(":80").count();
        let wanted: Vec<(String, usize)> = nodes
            .iter()
            .map(|node| ((*node).to_owned(), wanted))
            .collect();
        assert_eq!(found, wanted, "{ingress}");
    }
}

#[test]
fn a_name_that_a_node_cannot_lead_anywhere_is_refused_with_what_to_do() {
    let two = "a.b: {to: [web1:80, web2:80]}";
    let on = |networks: &str| format!("  web2: {{image: x, on: n2, networks: [{networks}]}}\n");
    let web1 = "  web1: {image: x, on: n1, networks: [net]}\n";
    let own = "  own: {network: }\n";
    let back = "  back: {network: {internal: true, nodes: [n1, n2]}}\n";
    let side = "  side: {network: {nodes: [n1, n2]}}\n";
    let apart = "  net: {network: {nodes: [n2, n3]}}\n";
    for (ingress, workloads, says) in [
        (
            "a.b: {to: [web1:80, web2:80], tls: acme}",
            format!("{NET}{WEBS}"),
            "n1 and n2 serve it",
        ),
        (
            "a.b: {to: web1:80, on: 7}",
            format!("{NET}{WEBS}"),
            "write a node that you know",
        ),
        (
            "a.b: {to: web1:80, on: []}",
            format!("{NET}{WEBS}"),
            "write a node that you know",
        ),
        (
            "a.b: {to: web1:80, on: [n1, n1]}",
            format!("{NET}{WEBS}"),
            "n1 stands twice",
        ),
        (
            "a.b: {to: web1:80, on: N}",
            format!("{NET}{WEBS}"),
            "not a DNS label",
        ),
        (
            "a.b: {to: web9:80}",
            format!("{NET}{WEBS}"),
            "web9 is no machine of this file",
        ),
        (
            two,
            format!("{NET}{own}{web1}{}", on("own, net")),
            "let net be the first of its networks",
        ),
        (
            "a.b: {to: [web1:80], on: n4}",
            format!("{NET}{WEBS}"),
            "`nodes: [n4, n1]`",
        ),
        (
            "a.b: {to: web2:80, on: n1}",
            format!("{apart}  web1: {{image: x, on: n1}}\n{}", on("net")),
            "`on: n2`",
        ),
        (
            two,
            format!("{NET}{back}{web1}{}", on("back")),
            "is internal",
        ),
        (
            two,
            format!("{NET}{side}{web1}{}", on("net, side")),
            "make side internal",
        ),
    ] {
        let error = serving(ingress, &workloads).expect_err(says);
        assert!(error.contains(says), "{error} for {says}");
    }
    let behind = format!("{NET}{back}{web1}{}", on("net, back"));
    serving(two, &behind).expect("of two networks one is internal");
}

/// As `across` joins them.
fn joined(part: &mut Deployment, machines: &[&str]) {
    let (node, key) = (types::PublicKey([7; 32]), types::mesh::MeshKey([7; 32]));
    let peer = serde_json::json!({
        "node": node, "key": key, "subnet": "10.200.2.0/24", "machines": machines, "card": "{}"
    });
    let mesh = serde_json::json!({"port": 51820, "peers": {"n2": peer}});
    let network = part
        .workloads
        .values_mut()
        .find_map(|workload| match workload {
            types::deployment::Workload::Network(network) => Some(network),
            _ => None,
        });
    let network = network.expect("a network");
    network.mesh = serde_json::from_value(mesh).expect("a mesh");
    network.subnet = "10.200.1.0/24".parse().ok();
}

#[test]
fn what_lies_on_a_node_that_never_joined_is_left_out_and_holds_up_nobody() {
    let all = format!("{NET}{WEBS}");
    let part = |ingress: &str| {
        parts(ingress, &all)
            .expect(ingress)
            .remove("n1")
            .expect("a part")
    };
    let two = "a.b: {to: [web1:80, web2:80]}";
    let mut whole = part(two);
    joined(&mut whole, &["web2"]);
    let before = whole.clone();
    assert_eq!((leave_out(&mut whole), &whole), (vec![], &before));
    whole.check().expect("all are there");

    let mut alone = part(two);
    joined(&mut alone, &[]);
    let missing = leave_out(&mut alone);
    let [Missing::Machines(host, machines)] = &missing[..] else {
        panic!("{missing:?}")
    };
    assert_eq!((host.as_str(), machines.len()), ("a.b", 1));
    alone.check().expect("it leads to the other");
    assert_eq!(alone.ingress[host].backends().count(), 1);
    let node: Name = "n1".parse().expect("a name");
    assert!(missing[0].say(&node).contains("web2"));

    let mut nobody = part("a.b: {to: web1:80, paths: {/api: web2:80}, on: n1}");
    joined(&mut nobody, &[]);
    let missing = leave_out(&mut nobody);
    assert!(matches!(&missing[..], [Missing::Name(_)]), "{missing:?}");
    assert!(nobody.ingress.is_empty());
}
