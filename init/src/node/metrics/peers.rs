//! The numbers of networks across nodes, from what the API says of them.
//!
//! Owns: their families. Refuses: asking anybody.

use types::status::DeploymentStatus;

use super::super::exposition::{Family, Type, Value, text};

/// The text, empty where no network spans nodes.
pub(crate) fn render(all: &[DeploymentStatus]) -> String {
    let mut heard = Family::new(
        "sifr_network_peer_handshake_age_seconds",
        Type::Gauge,
        "Since this node and the other last agreed on a key; more than 180: they do not hear each other. Absent: never.",
    );
    let mut bytes = Family::new(
        "sifr_network_peer_bytes_total",
        Type::Counter,
        "Sent to and received from the other node, with what WireGuard adds.",
    );
    let networks = all.iter().flat_map(|status| {
        let networks = status.networks.iter();
        networks.map(move |(name, network)| (&status.name, name, network))
    });
    let mut any = false;
    for (deployment, network, status) in networks {
        for (peer, status) in &status.peers {
            any = true;
            let labels = [
                ("deployment", deployment.as_str()),
                ("network", network.as_str()),
                ("peer", peer.as_str()),
            ];
            if let Some(age) = status.handshake_s {
                heard.sample(&labels, Value::Count(age));
            }
            for (way, count) in [("sent", status.sent), ("received", status.received)] {
                let labels = [&labels[..], &[("direction", way)]].concat();
                bytes.sample(&labels, Value::Count(count.0));
            }
        }
    }
    match any {
        true => text(&[heard, bytes]),
        false => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use types::status::{NetworkStatus, PeerStatus};
    use types::{Bytes, Name, PublicKey};

    use super::super::super::exposition::tests::parse;
    use super::*;

    #[test]
    fn a_peer_that_was_never_heard_has_no_age() {
        let name = |text: &str| text.parse::<Name>().expect("a name");
        let peer = |handshake_s| PeerStatus {
            node: PublicKey([1; 32]),
            subnet: "10.200.1.0/24".parse().expect("a subnet"),
            endpoint: None,
            handshake_s,
            sent: Bytes(3),
            received: Bytes(4),
        };
        let network = NetworkStatus {
            peers: [(name("n2"), peer(Some(7))), (name("n3"), peer(None))].into(),
            ..NetworkStatus::default()
        };
        let json =
            r#"{"name":"shop","version":1,"desired":"running","durable":true,"workloads":{}}"#;
        let mut status: DeploymentStatus = serde_json::from_str(json).expect("a status");
        assert_eq!(render(&[status.clone()]), "");
        status.networks.insert(name("net"), network);
        let samples = parse(&render(&[status]));
        let ages = samples.iter().filter(|(name, ..)| name.contains("age"));
        let ages: Vec<_> = ages
            .map(|(_, labels, age)| (labels["peer"].as_str(), *age))
            .collect();
        assert_eq!(ages, [("n2", 7.0)]);
        assert_eq!(samples.len(), 5);
    }
}
