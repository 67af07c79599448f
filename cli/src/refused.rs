//! `sifr node refused`: what machines tried in their networks and were not allowed.
//!
//! Owns: reading one family of a node's metrics. Refuses: all others.

use anyhow::Context as _;
use serde_json::json;

use crate::Context;
use crate::screen::table;

const FAMILY: &str = "sifr_machine_refused_packets_total{";

/// A machine, what it tried, and how many packets of that there were.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Refused {
    deployment: String,
    workload: String,
    kind: String,
    packets: u64,
}

pub(crate) async fn show(context: &Context) -> anyhow::Result<()> {
    let (node, _, client) = context.home.client(context.node.as_deref())?;
    let text = client.metrics(None).await;
    let text = text.with_context(|| format!("cannot ask node {node}"))?;
    let all = read(&String::from_utf8_lossy(&text));
    let list: Vec<_> = all
        .iter()
        .map(|r| {
            json!({ "deployment": r.deployment, "workload": r.workload, "kind": r.kind, "packets": r.packets })
        })
        .collect();
    context.screen.show(&json!(list), || listed(&all))
}

/// Those of which there were any, the most first.
fn read(metrics: &str) -> Vec<Refused> {
    let mut all: Vec<Refused> = metrics.lines().filter_map(line).collect();
    all.retain(|refused| refused.packets > 0);
    all.sort_by_key(|refused| std::cmp::Reverse(refused.packets));
    all
}

/// Names and kinds are of letters, digits and hyphens: nothing in them is escaped.
fn line(line: &str) -> Option<Refused> {
    let (labels, packets) = line.strip_prefix(FAMILY)?.rsplit_once("} ")?;
    let label = |name: &str| {
        let mut labels = labels.split(',').filter_map(|label| label.split_once('='));
        let (_, value) = labels.find(|(label, _)| *label == name)?;
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
        let value = value.trim_matches('"');
        value.chars().all(plain).then(|| value.to_owned())
    };
    Some(Refused {
        deployment: label("deployment")?,
        workload: label("workload")?,
        kind: label("kind")?,
        packets: packets.parse().ok()?,
    })
}

fn listed(all: &[Refused]) -> String {
    if all.is_empty() {
        return "no machine has tried what it may not".to_owned();
    }
    let row = |r: &Refused| {
        [
            format!("{}/{}", r.deployment, r.workload),
            r.kind.clone(),
            r.packets.to_string(),
            meaning(&r.kind).to_owned(),
        ]
    };
    let rows: Vec<[String; 4]> = all.iter().map(row).collect();
    table(["MACHINE", "KIND", "PACKETS", "IT TRIED"], &rows)
}

/// docs/networks.md says more.
fn meaning(kind: &str) -> &'static str {
    match kind {
        "mac" => "to speak under another MAC",
        "arp" => "to answer for another's address",
        "address" => "to speak under another's address",
        "dhcp" => "to be a DHCP server",
        "router" => "to be a router of IPv6",
        "frame" => "another protocol than IP",
        "node" => "ports of the node",
        "metadata" => "a cloud's metadata, or other link-local addresses",
        "tenants" => "other networks of the node",
        "private" => "the owner's networks, or other private addresses",
        "outside" => "to leave an internal network",
        "connections" => "more connections than it may have",
        _ => "what this sifr does not know",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_refused_is_read_from_metrics_and_the_most_stands_first() {
        let text = "# HELP x y\nsifr_machine_up{machine=\"a\"} 1\n\
            sifr_machine_refused_packets_total{deployment=\"shop\",workload=\"web\",kind=\"mac\"} 3\n\
            sifr_machine_refused_packets_total{deployment=\"shop\",workload=\"db\",kind=\"private\"} 9\n\
            sifr_machine_refused_packets_total{deployment=\"shop\",workload=\"db\",kind=\"arp\"} 0\n\
            sifr_machine_refused_packets_total{deployment=\"shop\",workload=\"\u{1b}[2J\",kind=\"arp\"} 1\n\
            sifr_machine_refused_packets_total{deployment=\"shop\"} 7\n";
        let all = read(text);
        let kinds: Vec<_> = all.iter().map(|r| (r.kind.as_str(), r.packets)).collect();
        assert_eq!(kinds, [("private", 9), ("mac", 3)]);
        let shown = listed(&all);
        let first = shown.lines().nth(1).expect("a row");
        assert!(
            first.starts_with("shop/db") && first.contains("owner's networks"),
            "{shown}"
        );
        assert!(listed(&[]).contains("no machine"));
    }
}
