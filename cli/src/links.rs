//! `sifr node links` and `sifr node routes`.
//!
//! Owns: how the node's own links and routes are shown. Refuses: changing them: `sifr node network` does.

use anyhow::Context as _;
use types::links::{LinkStatus, RouteStatus, Traffic};

use crate::Context;
use crate::screen::table;

pub(crate) async fn links(context: &Context) -> anyhow::Result<()> {
    let (node, _, client) = context.home.client(context.node.as_deref())?;
    let links = client.links().await;
    let links = links.with_context(|| format!("cannot ask node {node}"))?;
    context.screen.show(&links, || shown(&links))
}

pub(crate) async fn routes(context: &Context) -> anyhow::Result<()> {
    let (node, _, client) = context.home.client(context.node.as_deref())?;
    let routes = client.routes().await;
    let routes = routes.with_context(|| format!("cannot ask node {node}"))?;
    context.screen.show(&routes, || shown_routes(&routes))
}

fn shown(links: &[LinkStatus]) -> String {
    let lost = |traffic: Traffic| traffic.errors.saturating_add(traffic.dropped);
    let row = |link: &LinkStatus| {
        let address = |address: &types::AnyCidr| match link.taken.contains(address) {
            true => format!("{address} (taken by a neighbour)"),
            false => address.to_string(),
        };
        let addresses: Vec<_> = link.addresses.iter().map(address).collect();
        let part = |master: &String| format!("{}, part of {master}", link.kind);
        [
            link.name.clone(),
            link.master
                .as_ref()
                .map_or_else(|| link.kind.to_string(), part),
            link.state.to_string(),
            link.speed_mbit
                .map_or_else(String::new, |speed| format!("{speed} Mbit/s")),
            link.mtu.to_string(),
            link.mac.map_or_else(String::new, |mac| mac.to_string()),
            amount(link.received.bytes),
            amount(link.sent.bytes),
            lost(link.received)
                .saturating_add(lost(link.sent))
                .to_string(),
            addresses.join(" "),
        ]
    };
    let rows: Vec<_> = links.iter().map(row).collect();
    table(
        [
            "LINK",
            "KIND",
            "STATE",
            "SPEED",
            "MTU",
            "MAC",
            "RECEIVED",
            "SENT",
            "LOST",
            "ADDRESSES",
        ],
        &rows,
    )
}

/// In the largest unit that leaves a whole number of at least one digit.
fn amount(bytes: u64) -> String {
    const UNITS: [(u32, &str); 4] = [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")];
    let unit = UNITS.iter().find(|(shift, _)| bytes >> shift > 0);
    unit.map_or_else(
        || format!("{bytes} B"),
        |(shift, unit)| format!("{} {unit}", bytes >> shift),
    )
}

fn shown_routes(routes: &[RouteStatus]) -> String {
    let row = |route: &RouteStatus| {
        let gateway = route.gateway.map(|gateway| gateway.to_string());
        [
            route.destination.to_string(),
            gateway.unwrap_or_else(|| "on the link".to_owned()),
            route.link.clone(),
            route.metric.to_string(),
            match route.kernel {
                true => "kernel".to_owned(),
                false => "node".to_owned(),
            },
        ]
    };
    let rows: Vec<_> = routes.iter().map(row).collect();
    table(["DESTINATION", "VIA", "LINK", "METRIC", "SET BY"], &rows)
}

#[cfg(test)]
mod tests {
    use types::links::{LinkKind, LinkState};

    use super::*;

    #[test]
    fn an_address_that_a_neighbour_has_is_marked_and_all_losses_are_one_number() {
        let link = LinkStatus {
            name: "eth0".to_owned(),
            kind: LinkKind::Ethernet,
            state: LinkState::Up,
            mac: None,
            mtu: 1500,
            speed_mbit: Some(1000),
            master: Some("bond0".to_owned()),
            addresses: ["192.0.2.7/24", "2001:db8::7/64"]
                .map(|text| text.parse().expect("an address"))
                .to_vec(),
            taken: vec!["2001:db8::7/64".parse().expect("an address")],
            received: Traffic {
                bytes: 3 << 20,
                errors: 2,
                ..Traffic::default()
            },
            sent: Traffic {
                dropped: 3,
                ..Traffic::default()
            },
        };
        let text = shown(&[link]);
        for wanted in [
            "ethernet, part of bond0",
            "1000 Mbit/s",
            "3 MiB",
            "0 B",
            " 5 ",
            "192.0.2.7/24 2001:db8::7/64 (taken by a neighbour)",
        ] {
            assert!(text.contains(wanted), "{wanted:?} in {text}");
        }
    }

    #[test]
    fn amounts_are_whole_numbers() {
        assert_eq!(
            [0, 1023, 1024, 5 << 40].map(amount),
            ["0 B", "1023 B", "1 KiB", "5 TiB"]
        );
    }
}
