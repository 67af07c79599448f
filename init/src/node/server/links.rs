//! The node's own links and routes as its kernel has them, for the owner.
//!
//! Owns: what is told of each and in which order. Refuses: changing any (`uplink` and `network` do), and asking inside tenants'
//! networks.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;

use net::link::{Both, Handle, Kind, Link, Observed};
use net::network;
use types::links::{LinkKind, LinkState, LinkStatus, RouteStatus};
use types::status::{Refusal, RefusalCode};

use super::refusal;

/// Longest text of a port's speed: a number.
const SPEED_BYTES_MAX: u64 = 32;
/// Of the links that lead to tenants' networks, before their number: `net::network` names them.
const TENANT: &str = "tenant";

/// The ports of the machine and what lies on them first, then tenants' networks.
pub(super) async fn links() -> Result<Vec<LinkStatus>, Refusal> {
    let mut kernel = Handle::open().map_err(unseen)?;
    let observed = kernel.observe().await.map_err(unseen)?;
    let traffic = kernel.traffic().await.map_err(unseen)?;
    Ok(told(&observed, &traffic, speed))
}

pub(super) async fn routes() -> Result<Vec<RouteStatus>, Refusal> {
    let mut kernel = Handle::open().map_err(unseen)?;
    let observed = kernel.observe().await.map_err(unseen)?;
    Ok(routes_of(&observed))
}

fn unseen(error: net::Error) -> Refusal {
    let why = sys::error::chain(&error);
    refusal(
        RefusalCode::Internal,
        format!("the kernel does not tell its links: {why}; ask again"),
    )
}

/// `None`: no cable, or a link that is of software.
fn speed(link: &str) -> Option<u32> {
    let file = std::fs::File::open(Path::new("/sys/class/net").join(link).join("speed")).ok()?;
    let mut text = String::new();
    file.take(SPEED_BYTES_MAX).read_to_string(&mut text).ok()?;
    // -1 and 0 stand for "unknown".
    text.trim().parse().ok().filter(|speed| *speed > 0)
}

fn told(
    observed: &Observed,
    traffic: &BTreeMap<u32, Both>,
    speed: impl Fn(&str) -> Option<u32>,
) -> Vec<LinkStatus> {
    let one = |link: &Link| {
        let (received, sent) = traffic.get(&link.index).copied().unwrap_or_default();
        LinkStatus {
            name: link.name.clone(),
            kind: kind(link, observed),
            state: state(link),
            mac: link.mac,
            mtu: link.mtu,
            speed_mbit: speed(&link.name),
            master: link.master.map(|index| name(observed, index)),
            addresses: link.addresses.clone(),
            taken: link.taken.clone(),
            received,
            sent,
        }
    };
    let mut all: Vec<LinkStatus> = observed.links.iter().map(one).collect();
    // Stable: among its like each stays in the kernel's order.
    all.sort_by_key(|link| match link.kind {
        LinkKind::Ethernet | LinkKind::Bond { .. } | LinkKind::Vlan { .. } => 0,
        LinkKind::Other => 1,
        LinkKind::Loopback => 2,
        LinkKind::Network { .. } => 3,
    });
    all
}

fn state(link: &Link) -> LinkState {
    match (link.up, link.carrier) {
        (true, true) => LinkState::Up,
        (true, false) => LinkState::NoCarrier,
        (false, _) => LinkState::Down,
    }
}

fn kind(link: &Link, observed: &Observed) -> LinkKind {
    match link.kind {
        Kind::Loopback => LinkKind::Loopback,
        Kind::Ethernet => LinkKind::Ethernet,
        Kind::Bond(mode) => LinkKind::Bond {
            mode: mode.map(|mode| mode.to_string()),
        },
        Kind::Vlan { on, id } => LinkKind::Vlan {
            id,
            on: name(observed, on),
        },
        Kind::Veth => {
            let number = link.name.strip_prefix(TENANT);
            let number = number.and_then(|number| number.parse().ok());
            match number.and_then(network::gateway) {
                Some(gateway) => LinkKind::Network {
                    subnet: gateway.network(),
                },
                None => LinkKind::Other,
            }
        }
        Kind::Bridge | Kind::Tun | Kind::Other => LinkKind::Other,
    }
}

fn name(observed: &Observed, index: u32) -> String {
    let mut links = observed.links.iter();
    let link = links.find(|link| link.index == index);
    link.map_or_else(|| format!("#{index}"), |link| link.name.clone())
}

/// Default routes first, then by destination; of several to one the one that is used first.
fn routes_of(observed: &Observed) -> Vec<RouteStatus> {
    let mut routes = observed.routes.clone();
    routes.sort_by_key(|route| (route.destination.prefix() > 0, *route));
    let told = |route: &net::link::Route| RouteStatus {
        destination: route.destination,
        gateway: route.gateway,
        link: name(observed, route.link),
        metric: route.metric,
        kernel: route.kernel,
    };
    routes.iter().map(told).collect()
}

#[cfg(test)]
mod tests {
    use net::link::{BondMode, Route};
    use types::links::Traffic;

    use super::*;

    fn link(name: &str, index: u32, kind: Kind) -> Link {
        Link {
            name: name.to_owned(),
            index,
            mac: None,
            permanent: None,
            up: true,
            carrier: true,
            mtu: 1500,
            kind,
            master: None,
            addresses: Vec::new(),
            local: None,
            taken: Vec::new(),
        }
    }

    #[test]
    fn ports_come_first_and_each_link_says_what_it_is() {
        let mut port = link("eth0", 2, Kind::Ethernet);
        port.master = Some(3);
        port.carrier = false;
        let mut off = link("eth1", 9, Kind::Ethernet);
        off.up = false;
        let observed = Observed {
            links: vec![
                link("lo", 1, Kind::Loopback),
                link("tenant3", 5, Kind::Veth),
                port,
                link("bond0", 3, Kind::Bond(Some(BondMode::Lacp))),
                link("bond0.7", 4, Kind::Vlan { on: 3, id: 7 }),
                link("gone.8", 6, Kind::Vlan { on: 77, id: 8 }),
                off,
            ],
            routes: Vec::new(),
        };
        let received = Traffic {
            bytes: 5,
            ..Traffic::default()
        };
        let traffic = [(2, (received, Traffic::default()))].into();
        let all = told(&observed, &traffic, |name| {
            (name == "eth0").then_some(10_000)
        });
        let shown: Vec<_> = all
            .iter()
            .map(|l| format!("{} {} {}", l.name, l.kind, l.state))
            .collect();
        assert_eq!(
            shown,
            [
                "eth0 ethernet no cable",
                "bond0 bond 802.3ad up",
                "bond0.7 vlan 7 on bond0 up",
                "gone.8 vlan 8 on #77 up",
                "eth1 ethernet down",
                "lo loopback up",
                "tenant3 network 10.128.3.0/24 up",
            ]
        );
        let first = &all[0];
        assert_eq!(first.master.as_deref(), Some("bond0"));
        assert_eq!((first.received.bytes, first.speed_mbit), (5, Some(10_000)));
    }

    #[test]
    fn the_default_route_that_is_used_comes_first() {
        let route = |destination: &str, metric| Route {
            destination: destination.parse().expect("a prefix"),
            gateway: None,
            link: 2,
            metric,
            kernel: false,
        };
        let observed = Observed {
            links: vec![link("eth0", 2, Kind::Ethernet)],
            routes: vec![
                route("10.0.2.0/24", 0),
                route("0.0.0.0/0", 20),
                route("0.0.0.0/0", 10),
            ],
        };
        let told = routes_of(&observed);
        let order: Vec<_> = told.iter().map(|r| r.metric).collect();
        assert_eq!(order, [10, 20, 0]);
        assert!(told.iter().all(|route| route.link == "eth0"));
    }

    /// With the kernel that runs this test.
    #[tokio::test]
    async fn the_kernels_own_loopback_is_told_with_what_went_over_it() {
        std::net::UdpSocket::bind("127.0.0.1:0")
            .and_then(|s| s.send_to(b"counted", s.local_addr()?))
            .expect("sent");
        let links = links().await.expect("told");
        let lo = links.iter().find(|link| link.kind == LinkKind::Loopback);
        let lo = lo.expect("it has one");
        assert!(lo.sent.bytes > 0 && lo.mtu > 0, "{lo:?}");
        routes().await.expect("told");
    }
}
