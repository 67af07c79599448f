//! From what is to what should be, as steps.
//!
//! Owns: the difference. Refuses: doing it.

use std::collections::BTreeMap;
use std::fmt;
use std::net::Ipv4Addr;

use types::{Cidr, Mac};

use super::{Create, Desired, DesiredRoute, Link, Observed, Route};
use crate::dhcp::Lease;

/// One change. Links are named, not numbered: an earlier step may make them.
#[derive(Debug, Clone)]
pub enum Step {
    Create { link: String, create: Create },
    Delete { link: String },
    Up { link: String },
    SetMtu { link: String, mtu: u32 },
    SetMac { link: String, mac: Mac },
    SetMaster { link: String, master: String },
    AddAddress { link: String, address: Cidr },
    DeleteAddress { link: String, address: Cidr },
    AddRoute { link: String, route: DesiredRoute },
    DeleteRoute { route: Route },
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let via =
            |gateway: Option<Ipv4Addr>| gateway.map(|g| format!(" via {g}")).unwrap_or_default();
        match self {
            Self::Create {
                link,
                create: Create::Bridge,
            } => write!(f, "create bridge {link}"),
            Self::Create {
                link,
                create: Create::Veth { peer, .. },
            } => {
                write!(f, "create veth pair {link} and {peer}")
            }
            Self::Delete { link } => write!(f, "delete link {link}"),
            Self::Up { link } => write!(f, "set link {link} up"),
            Self::SetMtu { link, mtu } => write!(f, "set MTU {mtu} on link {link}"),
            Self::SetMac { link, mac } => write!(f, "set MAC {mac} on link {link}"),
            Self::SetMaster { link, master } => write!(f, "make link {link} a port of {master}"),
            Self::AddAddress { link, address } => write!(f, "add address {address} to link {link}"),
            Self::DeleteAddress { link, address } => {
                write!(f, "delete address {address} from link {link}")
            }
            Self::AddRoute { link, route } => {
                write!(
                    f,
                    "add route to {}{} on link {link}",
                    route.destination,
                    via(route.gateway)
                )
            }
            Self::DeleteRoute { route } => {
                write!(
                    f,
                    "delete route to {}{}",
                    route.destination,
                    via(route.gateway)
                )
            }
        }
    }
}

/// The steps from `observed` to `desired`; none where they agree. Links that are not described stay.
pub fn plan(desired: &[Desired], observed: &Observed) -> Vec<Step> {
    let mut steps = Vec::new();
    for want in desired {
        match (observed.link(&want.name), &want.create) {
            (Some(link), _) => change(want, link, observed, &mut steps),
            (None, Some(create)) => {
                steps.push(Step::Create {
                    link: want.name.clone(),
                    create: create.clone(),
                });
                change(want, &nothing(), observed, &mut steps);
            }
            (None, None) => {}
        }
    }
    steps
}

/// A link as it is right after its creation, as far as plans care.
fn nothing() -> Link {
    Link {
        name: String::new(),
        index: 0,
        mac: None,
        up: false,
        carrier: false,
        mtu: 0,
        kind: super::Kind::Other,
        master: None,
        addresses: Vec::new(),
    }
}

fn change(want: &Desired, have: &Link, observed: &Observed, steps: &mut Vec<Step>) {
    let link = || want.name.clone();
    if let Some(mac) = want.mac.filter(|mac| have.mac != Some(*mac)) {
        steps.push(Step::SetMac { link: link(), mac });
    }
    if let Some(master) = &want.master {
        let now = have
            .master
            .and_then(|at| observed.links.iter().find(|l| l.index == at));
        if now.is_none_or(|now| now.name != *master) {
            steps.push(Step::SetMaster {
                link: link(),
                master: master.clone(),
            });
        }
    }
    if let Some(mtu) = want.mtu.filter(|mtu| have.mtu != *mtu) {
        steps.push(Step::SetMtu { link: link(), mtu });
    }
    if !have.up {
        steps.push(Step::Up { link: link() });
    }
    let stale: Vec<Cidr> = have
        .addresses
        .iter()
        .filter(|a| !want.addresses.contains(a))
        .copied()
        .collect();
    let routes = |route: &&Route| have.index != 0 && route.link == have.index && !route.kernel;
    let present: Vec<&Route> = observed.routes.iter().filter(routes).collect();
    for route in &present {
        if !want.routes.iter().any(|wanted| same(wanted, route)) {
            steps.push(Step::DeleteRoute { route: **route });
        }
    }
    for address in &stale {
        steps.push(Step::DeleteAddress {
            link: link(),
            address: *address,
        });
    }
    for address in &want.addresses {
        // The kernel may drop the other addresses of a subnet with the first: they are set again.
        let shaken = stale.iter().any(|gone| gone.network() == address.network());
        if shaken || !have.addresses.contains(address) {
            steps.push(Step::AddAddress {
                link: link(),
                address: *address,
            });
        }
    }
    for route in &want.routes {
        // Routes may go with an address, and do when a link comes up.
        let shaken = !stale.is_empty() || !have.up;
        if shaken || !present.iter().any(|have| same(route, have)) {
            steps.push(Step::AddRoute {
                link: link(),
                route: *route,
            });
        }
    }
}

fn same(wanted: &DesiredRoute, have: &Route) -> bool {
    let DesiredRoute {
        destination,
        gateway,
        metric,
    } = *wanted;
    (destination.network(), gateway, metric)
        == (have.destination.network(), have.gateway, have.metric)
}

/// Metric of the first port's default route; later ports count up from here.
const METRIC: u32 = 100;

/// The node's own links: loopback and all Ethernet ports up, and on each port what its lease says. The
/// first port with a gateway, in the kernel's order, is preferred.
pub fn uplinks(observed: &Observed, leases: &BTreeMap<String, Lease>) -> Vec<Desired> {
    let loopback = Desired {
        addresses: vec![Cidr::new(Ipv4Addr::LOCALHOST, 8).expect("8 is a prefix length")],
        ..Desired::up("lo")
    };
    let ports = observed.ethernet().zip(METRIC..).map(|(link, metric)| {
        let port = Desired::up(&link.name);
        let Some(lease) = leases.get(&link.name) else {
            return port;
        };
        let everywhere = Cidr::new(Ipv4Addr::UNSPECIFIED, 0).expect("0 is a prefix length");
        let route = |gateway| DesiredRoute {
            destination: everywhere,
            gateway: Some(gateway),
            metric,
        };
        Desired {
            mtu: lease.mtu.map(u32::from),
            addresses: vec![lease.address],
            routes: lease.gateway.map(route).into_iter().collect(),
            ..port
        }
    });
    std::iter::once(loopback).chain(ports).collect()
}

#[cfg(test)]
mod tests {
    use super::super::Kind;
    use super::*;

    fn port(name: &str, index: u32) -> Link {
        Link {
            name: name.to_owned(),
            index,
            kind: Kind::Ethernet,
            mtu: 1500,
            ..nothing()
        }
    }

    fn cidr(text: &str) -> Cidr {
        text.parse().expect("a prefix")
    }

    fn lease(address: &str, gateway: [u8; 4]) -> Lease {
        Lease {
            address: cidr(address),
            gateway: Some(gateway.into()),
            dns: Vec::new(),
            ntp: Vec::new(),
            mtu: Some(1400),
            expires: None,
        }
    }

    fn words(steps: &[Step]) -> Vec<String> {
        steps.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_lease_becomes_address_mtu_and_default_route() {
        let observed = Observed {
            links: vec![port("eth0", 2)],
            routes: Vec::new(),
        };
        let leases = BTreeMap::from([("eth0".to_owned(), lease("10.0.2.15/24", [10, 0, 2, 2]))]);
        let steps = plan(&uplinks(&observed, &leases), &observed);
        let expected = [
            "set MTU 1400 on link eth0",
            "set link eth0 up",
            "add address 10.0.2.15/24 to link eth0",
            "add route to 0.0.0.0/0 via 10.0.2.2 on link eth0",
        ];
        assert_eq!(words(&steps), expected);
    }

    #[test]
    fn what_is_as_it_should_be_needs_no_step() {
        let mut eth0 = port("eth0", 2);
        (eth0.up, eth0.mtu, eth0.addresses) = (true, 1400, vec![cidr("10.0.2.15/24")]);
        let default = Route {
            destination: cidr("0.0.0.0/0"),
            gateway: Some([10, 0, 2, 2].into()),
            link: 2,
            metric: METRIC,
            kernel: false,
        };
        let own = Route {
            destination: cidr("10.0.2.0/24"),
            gateway: None,
            kernel: true,
            ..default
        };
        let mut observed = Observed {
            links: vec![eth0],
            routes: vec![default, own],
        };
        let leases = BTreeMap::from([("eth0".to_owned(), lease("10.0.2.15/24", [10, 0, 2, 2]))]);
        assert_eq!(
            words(&plan(&uplinks(&observed, &leases), &observed)),
            [""; 0]
        );
        observed.links[0].addresses.push(cidr("10.0.2.16/24"));
        let steps = plan(&uplinks(&observed, &leases), &observed);
        assert_eq!(
            steps.len(),
            3,
            "address deleted, neighbour and route set again: {steps:?}"
        );
    }

    #[test]
    fn a_lost_lease_takes_address_and_route_away() {
        let mut eth0 = port("eth0", 2);
        (eth0.up, eth0.addresses) = (true, vec![cidr("10.0.2.15/24")]);
        let default = Route {
            destination: cidr("0.0.0.0/0"),
            gateway: Some([10, 0, 2, 2].into()),
            link: 2,
            metric: METRIC,
            kernel: false,
        };
        let observed = Observed {
            links: vec![eth0],
            routes: vec![default],
        };
        let steps = plan(&uplinks(&observed, &BTreeMap::new()), &observed);
        let expected = [
            "delete route to 0.0.0.0/0 via 10.0.2.2",
            "delete address 10.0.2.15/24 from link eth0",
        ];
        assert_eq!(words(&steps), expected);
    }
}
