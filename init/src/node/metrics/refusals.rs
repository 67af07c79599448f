//! What machines tried in their networks and were refused.
//!
//! Owns: its family, and which addresses are asked for. Refuses: asking ([`super::super::network::attempts`] does).

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use types::Name;
use types::status::{DeploymentStatus, WorkloadStatus};

use super::super::exposition::{Family, Type, Value, text};
use super::super::network::Attempts;

/// The machine's address in each of its networks.
fn addresses_of<'a>(
    status: &'a DeploymentStatus,
    name: &'a Name,
    workload: &'a WorkloadStatus,
) -> BTreeSet<Ipv4Addr> {
    let networks = status.networks.values();
    let others = networks.filter_map(|network| network.machines.get(name).copied());
    workload.address.into_iter().chain(others).collect()
}

/// Of all their machines.
pub(crate) fn addresses(all: &[DeploymentStatus]) -> BTreeSet<Ipv4Addr> {
    let of = |status: &DeploymentStatus| -> BTreeSet<Ipv4Addr> {
        let machines = status.workloads.iter();
        let of = machines.flat_map(|(name, workload)| addresses_of(status, name, workload));
        of.collect()
    };
    all.iter().flat_map(of).collect()
}

/// The text, empty where nothing is known of any machine.
pub(crate) fn render(all: &[DeploymentStatus], attempts: &Attempts) -> String {
    let mut family = Family::new(
        "sifr_machine_refused_packets_total",
        Type::Counter,
        "Packets that the machine was not allowed to send, by what it tried.",
    );
    for status in all {
        for (name, workload) in &status.workloads {
            let own = addresses_of(status, name, workload);
            let mut sums = std::collections::BTreeMap::new();
            for (kind, packets) in own.iter().filter_map(|at| attempts.get(at)).flatten() {
                let sum: &mut u64 = sums.entry(*kind).or_default();
                *sum = sum.saturating_add(*packets);
            }
            for (kind, packets) in sums {
                let labels = [
                    ("deployment", status.name.as_str()),
                    ("workload", name.as_str()),
                    ("kind", kind),
                ];
                family.sample(&labels, Value::Count(packets));
            }
        }
    }
    text(&[family])
}

#[cfg(test)]
mod tests {
    use types::status::{Desired, NetworkStatus, State};

    use super::super::super::exposition::tests::parse;
    use super::*;

    #[test]
    fn what_a_machine_tried_in_all_its_networks_is_one_sum() {
        let name = |text: &str| text.parse::<Name>().expect("a name");
        let (first, second) = (Ipv4Addr::new(10, 128, 1, 2), Ipv4Addr::new(10, 128, 2, 2));
        let workload = WorkloadStatus {
            state: State::Running,
            address: Some(first),
            addresses: Vec::new(),
            ports: Vec::new(),
            restarts: 0,
            exit: None,
            message: None,
            code: None,
            start_ms: None,
            chunks: None,
            timeline: None,
        };
        let network = NetworkStatus {
            subnet: None,
            machines: [(name("web"), second), (name("db"), [10, 128, 2, 3].into())].into(),
            peers: Default::default(),
        };
        let status = DeploymentStatus {
            name: name("shop"),
            version: 1,
            desired: Desired::Running,
            durable: true,
            workloads: [(name("web"), workload)].into(),
            volumes: Default::default(),
            pools: Default::default(),
            networks: [(name("back"), network)].into(),
            ingress: Default::default(),
            conditions: Vec::new(),
        };
        let all = [status];
        assert_eq!(addresses(&all), [first, second].into());
        let attempts: Attempts = [
            (first, [("mac", 3), ("node", 0)].into()),
            (second, [("mac", 4)].into()),
        ]
        .into();
        let samples = parse(&render(&all, &attempts));
        let of = |kind: &str| {
            let sample = samples.iter().find(|(_, labels, _)| labels["kind"] == kind);
            sample.map(|(_, labels, value)| (labels["workload"].clone(), *value))
        };
        assert_eq!(of("mac"), Some(("web".to_owned(), 7.0)));
        assert_eq!(of("node"), Some(("web".to_owned(), 0.0)));
        assert_eq!(render(&all, &Attempts::new()), "");
    }
}
