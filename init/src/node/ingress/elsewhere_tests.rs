//! What is asked of other nodes, and what becomes of their answers.

use types::PublicKey;
use workload::desired::Key;
use workload::host::PlacedElsewhere;

use super::*;

fn name(text: &str) -> Name {
    text.parse().expect("a name")
}

fn subnet(text: &str) -> Cidr {
    text.parse().expect("a subnet")
}

/// A name that leads to `web` here, and to `web2` and `web3` on node n2.
fn placed() -> PlacedSite {
    let site =
        r#"{"routes":[{"to":["web:80","web2:80","web2:81"]},{"path":"/api","to":["web3:80"]}]}"#;
    let elsewhere = PlacedElsewhere {
        node: name("n2"),
        here: subnet("10.200.1.0/24"),
        there: subnet("10.200.2.0/24"),
    };
    let key = Key {
        signer: PublicKey([1; 32]),
        name: name("shop"),
    };
    PlacedSite {
        key,
        site: std::sync::Arc::new(serde_json::from_str(site).expect("a site")),
        machines: [(name("web"), [10, 200, 1, 2].into())].into(),
        elsewhere: ["web2", "web3"]
            .map(|machine| (name(machine), elsewhere.clone()))
            .into(),
    }
}

fn wanted() -> BTreeSet<Question> {
    let host: Host = "a.test".parse().expect("a host");
    let other: Host = "b.test".parse().expect("a host");
    questions(&[(host, placed()), (other, placed())].into())
}

#[test]
fn each_machine_on_another_node_is_asked_for_once_under_its_full_name() {
    let wanted = wanted();
    let names: Vec<&str> = wanted
        .iter()
        .map(|question| question.name.as_str())
        .collect();
    assert_eq!(names, ["web2.shop.internal", "web3.shop.internal"]);
    for question in &wanted {
        assert_eq!(question.there, subnet("10.200.2.0/24"));
        let network = network::network_of([10, 200, 1, 1].into()).expect("one of ours");
        assert_eq!(question.network, network.name);
    }
    let placed = placed();
    let nodes: Vec<String> = nodes(&placed)
        .map(|(backend, node)| format!("{backend} on {node}"))
        .collect();
    assert_eq!(nodes, ["web2:80 on n2", "web2:81 on n2", "web3:80 on n2"]);
    assert_eq!(question(&placed, &name("web")), None);
}

#[test]
fn an_address_counts_until_its_node_says_another_and_not_only_while_that_is_heard() {
    let wanted = wanted();
    let (web2, web3) = (wanted.first().expect("two"), wanted.last().expect("two"));
    let said = |two: Said, three: Said| [(web2.clone(), two), (web3.clone(), three)].into();
    let at = |last| Said::At([10, 200, 2, last].into());
    let mut known = Known::default();
    assert!(!known.has_asked(&wanted) && known.has_asked(&BTreeSet::new()));

    assert!(known.learn(&wanted, said(at(2), Said::Nothing)));
    assert!(known.has_asked(&wanted));
    assert_eq!(known.address(web2), Some([10, 200, 2, 2].into()));
    assert_eq!(known.address(web3), None);
    assert_eq!(known.pause(), SOON);

    assert!(known.learn(&wanted, said(at(2), at(3))));
    assert!(!known.learn(&wanted, said(at(2), at(3))), "nothing is new");
    assert_eq!(known.pause(), EVERY);

    let silence = said(Said::Nothing, Said::Nothing);
    assert!(!known.learn(&wanted, silence));
    assert_eq!(known.address(web2), Some([10, 200, 2, 2].into()));
    assert_eq!(known.pause(), SOON);

    assert!(known.learn(&wanted, said(Said::Nobody, at(4))));
    assert_eq!(known.address(web2), None);
    assert_eq!(known.address(web3), Some([10, 200, 2, 4].into()));
    assert_eq!(known.pause(), SOON);

    let fewer: BTreeSet<Question> = [web3.clone()].into();
    assert!(!known.learn(&fewer, [(web3.clone(), at(4))].into()));
    assert!(!known.has_asked(&wanted), "what nobody wants is forgotten");
}

#[test]
fn who_came_while_the_others_were_asked_is_asked_soon_and_takes_nobodys_address() {
    let wanted = wanted();
    let (web2, web3) = (wanted.first().expect("two"), wanted.last().expect("two"));
    let at = Said::At([10, 200, 2, 2].into());
    let mut known = Known::default();
    assert!(known.learn(&wanted, [(web2.clone(), at)].into()));
    assert!(!known.has_asked(&wanted));
    assert_eq!((known.address(web3), known.pause()), (None, SOON));
}
