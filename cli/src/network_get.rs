//! `sifr network get`: the networks of deployments, who is on them, and whether their other nodes are heard.
//!
//! Owns: how they are shown. Refuses: how a network comes about: the deployment file says it.

use anyhow::Context as _;
use serde_json::json;
use types::Name;
use types::status::{DeploymentStatus, NetworkStatus, PeerStatus};

use crate::Context;
use crate::screen::{mebibytes, table};

/// After so many seconds without a new key WireGuard lets nothing pass.
const HEARD_S: u64 = 180;

/// One deployment's on each of its nodes, or those of all on one node.
pub(crate) async fn get(context: &Context, name: Option<Name>) -> anyhow::Result<()> {
    let mut all: Vec<(Name, DeploymentStatus)> = Vec::new();
    match name {
        Some(name) => {
            for (node, _, client) in context.home.clients_of(context.node.as_deref(), &name)? {
                let status = client.deployment(&name).await;
                let status = status.with_context(|| format!("cannot ask {node} for {name}"))?;
                all.push((node, status));
            }
        }
        None => {
            let (node, _, client) = context.home.client(context.node.as_deref())?;
            let statuses = client.deployments().await;
            let statuses = statuses.with_context(|| format!("cannot ask node {node}"))?;
            all.extend(statuses.into_iter().map(|status| (node.clone(), status)));
        }
    }
    let value: Vec<_> = all
        .iter()
        .flat_map(|(node, status)| status.networks.iter().map(move |of| (node, status, of)))
        .map(|(node, status, (network, of))| {
            json!({ "node": node, "deployment": status.name, "network": network, "status": of })
        })
        .collect();
    context.screen.show(&json!(value), || shown(&all))
}

fn shown(all: &[(Name, DeploymentStatus)]) -> String {
    let mut rows = Vec::new();
    let mut others = Vec::new();
    for (node, status) in all {
        for (network, of) in &status.networks {
            rows.extend(machines(node, status, network, of));
        }
        others.extend(peers(status));
    }
    if rows.is_empty() {
        let own = "a `network:` in a deployment file makes one";
        return format!(
            "no networks of deployments' own: {own}; other machines of yours are on one that `sifr get` shows"
        );
    }
    let mut out = table(["NETWORK", "ON", "SUBNET", "MACHINE", "ADDRESS"], &rows);
    if !others.is_empty() {
        out.push_str(&format!("\n\n{}", table(PEERS, &others)));
    }
    out
}

/// A row for each machine, and one for a network that has none.
fn machines(
    node: &Name,
    status: &DeploymentStatus,
    network: &Name,
    of: &NetworkStatus,
) -> Vec<[String; 5]> {
    let row = |machine: String, address: String| {
        let subnet = of.subnet.map(|subnet| subnet.to_string());
        [
            format!("{}/{network}", status.name),
            node.to_string(),
            subnet.unwrap_or_else(|| "none yet".to_owned()),
            machine,
            address,
        ]
    };
    if of.machines.is_empty() {
        return vec![row("none".to_owned(), String::new())];
    }
    let each = of.machines.iter();
    each.map(|(name, address)| row(name.to_string(), address.to_string()))
        .collect()
}

/// Headings of [`peers`].
pub(crate) const PEERS: [&str; 7] = [
    "NETWORK", "NODE", "SUBNET", "ENDPOINT", "HEARD", "SENT", "RECEIVED",
];

/// The other nodes of its networks.
pub(crate) fn peers(status: &DeploymentStatus) -> Vec<[String; 7]> {
    let networks = status.networks.iter();
    let peers =
        networks.flat_map(|(network, of)| of.peers.iter().map(move |(n, p)| (network, n, p)));
    let row = |(network, name, peer): (&Name, &Name, &PeerStatus)| {
        let heard = match peer.handshake_s {
            // Both agree anew each two minutes.
            Some(age) if age <= HEARD_S => "yes".to_owned(),
            Some(age) => format!("{age} s ago"),
            None => "never".to_owned(),
        };
        [
            network.to_string(),
            name.to_string(),
            peer.subnet.to_string(),
            peer.endpoint.map(|at| at.to_string()).unwrap_or_default(),
            heard,
            mebibytes(peer.sent.0),
            mebibytes(peer.received.0),
        ]
    };
    peers.map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(networks: &str) -> DeploymentStatus {
        let json = format!(
            r#"{{"name":"shop","version":1,"desired":"running","durable":true,"workloads":{{}},"networks":{networks}}}"#
        );
        serde_json::from_str(&json).expect("a status")
    }

    #[test]
    fn each_machine_has_a_row_and_a_network_without_any_has_one() {
        let lab: Name = "lab".parse().expect("a name");
        assert!(
            shown(&[(lab.clone(), status("{}"))]).contains("a `network:` in a deployment file")
        );
        let networks = r#"{"back":{"subnet":null,"machines":{}},
            "front":{"subnet":"10.200.7.0/24","machines":{"db":"10.200.7.2","web":"10.200.7.80"}}}"#;
        let text = shown(&[(lab, status(networks))]);
        let lines: Vec<Vec<&str>> = text
            .lines()
            .map(|line| line.split_whitespace().collect())
            .collect();
        assert_eq!(lines[1], ["shop/back", "lab", "none", "yet", "none", "-"]);
        assert_eq!(
            lines[3],
            ["shop/front", "lab", "10.200.7.0/24", "web", "10.200.7.80"]
        );
        assert_eq!(lines.len(), 4);
    }
}
