//! From what is to what should be, as steps.
//!
//! Owns: the difference. Refuses: doing it.

use std::fmt;
use std::net::IpAddr;

use types::{AnyCidr, Mac};

use super::{Create, Desired, DesiredRoute, Link, Observed, Route};

/// One change. Links are named, not numbered: an earlier step may make them.
#[derive(Debug, Clone)]
pub enum Step {
    Create { link: String, create: Create },
    Delete { link: String },
    Up { link: String },
    Down { link: String },
    SetMtu { link: String, mtu: u32 },
    SetMac { link: String, mac: Mac },
    SetMaster { link: String, master: String },
    Release { link: String },
    AddAddress { link: String, address: AnyCidr },
    DeleteAddress { link: String, address: AnyCidr },
    AddRoute { link: String, route: DesiredRoute },
    DeleteRoute { route: Route },
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let via =
            |gateway: Option<IpAddr>| gateway.map(|g| format!(" via {g}")).unwrap_or_default();
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
            Self::Create {
                link,
                create: Create::Wireguard { .. },
            } => write!(f, "create WireGuard link {link}"),
            Self::Create {
                link,
                create: Create::Bond { mode },
            } => write!(f, "create bond {link} ({mode})"),
            Self::Create {
                link,
                create: Create::Vlan { on, id },
            } => write!(f, "create VLAN {id} on {on} as {link}"),
            Self::Delete { link } => write!(f, "delete link {link}"),
            Self::Up { link } => write!(f, "set link {link} up"),
            Self::Down { link } => write!(f, "set link {link} down"),
            Self::SetMtu { link, mtu } => write!(f, "set MTU {mtu} on link {link}"),
            Self::SetMac { link, mac } => write!(f, "set MAC {mac} on link {link}"),
            Self::SetMaster { link, master } => write!(f, "make link {link} a port of {master}"),
            Self::Release { link } => write!(f, "take link {link} out of its bridge or bond"),
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
    let bonds = desired
        .iter()
        .filter(|want| matches!(want.create, Some(Create::Bond { .. })));
    let bonds: Vec<&str> = bonds.map(|bond| bond.name.as_str()).collect();
    for want in desired {
        match (observed.link(&want.name), &want.create) {
            (Some(link), _) => change(want, link, (observed, &bonds), &mut steps),
            (None, Some(create)) => {
                steps.push(Step::Create {
                    link: want.name.clone(),
                    create: create.clone(),
                });
                change(want, &nothing(), (observed, &bonds), &mut steps);
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
        permanent: None,
        up: false,
        carrier: false,
        mtu: 0,
        kind: super::Kind::Other,
        master: None,
        addresses: Vec::new(),
        local: None,
        taken: Vec::new(),
    }
}

fn change(
    want: &Desired,
    have: &Link,
    (observed, bonds): (&Observed, &[&str]),
    steps: &mut Vec<Step>,
) {
    let link = || want.name.clone();
    if let Some(mac) = want.mac.filter(|mac| have.mac != Some(*mac)) {
        steps.push(Step::SetMac { link: link(), mac });
    }
    let join = join(want, have, observed, bonds);
    // The kernel takes no port into a bond that is up, and leaves none up that it lets go.
    let released = matches!(join.last(), Some(Step::Release { .. }));
    let up = have.up && !released && join.is_empty();
    steps.extend(join);
    // A bond gives back the MTU that the port once came with.
    if let Some(mtu) = want.mtu.filter(|mtu| released || have.mtu != *mtu) {
        steps.push(Step::SetMtu { link: link(), mtu });
    }
    if !up {
        steps.push(Step::Up { link: link() });
    }
    let stale = have.addresses.iter().copied();
    let stale = stale.filter(|a| !want.addresses.contains(a) && !is_kernels(a.address));
    let stale: Vec<AnyCidr> = stale.collect();
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
        let mut shaken = stale.iter().any(|gone| gone.network() == address.network());
        // A link that goes down loses those of IPv6.
        shaken |= !up && address.address.is_ipv6();
        if shaken || !have.addresses.contains(address) {
            steps.push(Step::AddAddress {
                link: link(),
                address: *address,
            });
        }
    }
    for route in &want.routes {
        // Routes may go with an address, and do when a link comes up.
        let shaken = !stale.is_empty() || !up;
        if shaken || !present.iter().any(|have| same(route, have)) {
            steps.push(Step::AddRoute {
                link: link(),
                route: *route,
            });
        }
    }
}

/// Steps that make a link a port of what it should be one of, and of nothing else.
fn join(want: &Desired, have: &Link, observed: &Observed, bonds: &[&str]) -> Vec<Step> {
    let link = || want.name.clone();
    let now = have
        .master
        .map(|at| observed.links.iter().find(|l| l.index == at));
    let Some(master) = &want.master else {
        let release = now.map(|_| Step::Release { link: link() });
        return release.into_iter().collect();
    };
    if now.flatten().is_some_and(|now| now.name == *master) {
        return Vec::new();
    }
    let down = have.up && bonds.contains(&master.as_str());
    let down = down.then(|| Step::Down { link: link() });
    let join = Step::SetMaster {
        link: link(),
        master: master.clone(),
    };
    down.into_iter().chain([join]).collect()
}

/// The metric that the kernel gives a route of IPv6 that is set with none (`IP6_RT_PRIO_USER`).
const METRIC_IPV6: u32 = 1024;

fn same(wanted: &DesiredRoute, have: &Route) -> bool {
    let DesiredRoute {
        destination,
        gateway,
        metric,
    } = *wanted;
    let metric = match destination.address {
        IpAddr::V6(_) if metric == 0 => METRIC_IPV6,
        IpAddr::V4(_) | IpAddr::V6(_) => metric,
    };
    (destination.network(), gateway, metric)
        == (have.destination.network(), have.gateway, have.metric)
}

/// What the kernel gives a link itself: `::1` and link-local addresses.
fn is_kernels(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(_) => false,
        IpAddr::V6(address) => address.is_loopback() || address.is_unicast_link_local(),
    }
}
