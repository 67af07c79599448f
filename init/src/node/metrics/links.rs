//! What went over the node's own links.
//!
//! Owns: their families. Refuses: asking the kernel (`server::links` does), and the links of tenants' networks: `sifr_machine_*`
//! has what their machines sent.

use types::links::{LinkKind, LinkState, LinkStatus};

use super::super::exposition::{Family, Type, Value, text};

/// The text, empty where there is no link but loopback and networks.
pub(crate) fn render(all: &[LinkStatus]) -> String {
    let mut up = Family::new(
        "sifr_link_up",
        Type::Gauge,
        "1: the link is on and has a cable or another end.",
    );
    let counters = [
        ("sifr_link_bytes_total", "Bytes that went over the link."),
        (
            "sifr_link_packets_total",
            "Packets that went over the link.",
        ),
        (
            "sifr_link_errors_total",
            "Packets that were broken, or that the port refused.",
        ),
        (
            "sifr_link_dropped_total",
            "Whole packets for which there was no room.",
        ),
    ];
    let mut counters = counters.map(|(name, help)| Family::new(name, Type::Counter, help));
    let mut any = false;
    let of_the_node =
        |link: &&LinkStatus| !matches!(link.kind, LinkKind::Network { .. } | LinkKind::Loopback);
    for link in all.iter().filter(of_the_node) {
        any = true;
        let labels = [("link", link.name.as_str())];
        let is_up = link.state == LinkState::Up;
        up.sample(&labels, Value::Count(is_up.into()));
        for (way, traffic) in [("received", link.received), ("sent", link.sent)] {
            let labels = [labels[0], ("direction", way)];
            let counts = [
                traffic.bytes,
                traffic.packets,
                traffic.errors,
                traffic.dropped,
            ];
            for (family, count) in counters.iter_mut().zip(counts) {
                family.sample(&labels, Value::Count(count));
            }
        }
    }
    let [bytes, packets, errors, dropped] = counters;
    match any {
        true => text(&[up, bytes, packets, errors, dropped]),
        false => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use types::links::Traffic;

    use super::super::super::exposition::tests::parse;
    use super::*;

    #[test]
    fn both_ways_of_each_port_are_counted_and_no_tenants_network() {
        let link = |name: &str, kind| LinkStatus {
            name: name.to_owned(),
            kind,
            state: LinkState::Up,
            mac: None,
            mtu: 1500,
            speed_mbit: None,
            master: None,
            addresses: Vec::new(),
            taken: Vec::new(),
            received: Traffic {
                bytes: 7,
                ..Traffic::default()
            },
            sent: Traffic::default(),
        };
        let subnet = "10.128.3.0/24".parse().expect("a subnet");
        let tenant = link("tenant3", LinkKind::Network { subnet });
        assert_eq!(render(std::slice::from_ref(&tenant)), "");
        let samples = parse(&render(&[link("eth0", LinkKind::Ethernet), tenant]));
        assert_eq!(samples.len(), 9);
        assert!(
            samples
                .iter()
                .all(|(_, labels, _)| labels["link"] == "eth0")
        );
        let received = samples.iter().find(|(name, labels, _)| {
            name == "sifr_link_bytes_total" && labels["direction"] == "received"
        });
        assert_eq!(received.expect("counted").2, 7.0);
    }
}
