//! From a site and the ports that a machine has to the links that should be.
//!
//! Owns: which port is meant, what each link gets, and in which order links lead to the world.
//! Refuses: asking for leases and changing links.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use types::AnyCidr;

use super::{Addressing, Heard, MTU, Made, Port, Site, Spec};
use crate::link::{self, Create, Desired, DesiredRoute, Kind, Link, Observed, Step};

/// Metric of the first link's routes; later links count up from here: the kernel keeps one route to a network for each.
const METRIC: u32 = 100;

/// What follows from a site.
#[derive(Debug, Clone, Default)]
pub struct Wanted {
    /// In an order in which they can be made.
    pub links: Vec<Desired>,
    /// The links that lead somewhere, the most preferred first.
    pub roles: Vec<Role>,
    /// What the site names and the machine has not.
    pub problems: Vec<String>,
}

/// What one link is there for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Role {
    /// The kernel's name.
    pub link: String,
    /// It asks DHCP.
    pub asks: bool,
    /// It listens to routers.
    pub listens: bool,
    /// `None`: it has no address yet.
    pub addressing: Option<Addressing>,
}

impl Site {
    /// What each link should be. `heard` by the kernel's name.
    pub fn wanted(&self, observed: &Observed, heard: &BTreeMap<String, Heard>) -> Wanted {
        let all;
        let specs = match &self.links {
            Some(specs) => specs,
            None => {
                all = observed.ethernet().map(asking).collect::<Vec<_>>();
                &all
            }
        };
        let mut plan = Plan {
            observed,
            specs,
            masters: BTreeMap::new(),
            problems: BTreeSet::new(),
        };
        plan.join();
        let mut roles: Vec<Role> = Vec::new();
        let (mut bonds, mut vlans) = (Vec::new(), Vec::new());
        let mut found: BTreeMap<String, Desired> = BTreeMap::new();
        for spec in specs {
            let Some((name, create)) = plan.link_of(spec) else {
                continue;
            };
            if roles.iter().any(|role| role.link == name) {
                plan.problem(format!("{} is {name}, which is named already", spec.port));
                continue;
            }
            let metric = METRIC.saturating_add(u32::try_from(roles.len()).unwrap_or(u32::MAX));
            let addressing = spec.addressing(heard.get(&name));
            let mut desired = desired(&name, addressing.as_ref(), metric);
            let told = addressing.as_ref().and_then(|addressing| addressing.mtu);
            desired.mtu = Some(plan.mtu(spec, told));
            desired.create = create;
            match &spec.made {
                Made::Bond { .. } => bonds.push(desired),
                Made::Vlan { .. } => vlans.push(desired),
                Made::Found => {
                    found.insert(name.clone(), desired);
                }
            }
            roles.push(Role {
                link: name,
                asks: spec.dhcp,
                listens: spec.ra,
                addressing,
            });
        }
        let ports = observed
            .ethernet()
            .map(|port| match plan.masters.get(&port.name) {
                // Its bond says the rest.
                Some(bond) => Desired {
                    master: Some(bond.clone()),
                    ..Desired::up(&port.name)
                },
                None => found.remove(&port.name).unwrap_or_else(|| Desired {
                    mtu: Some(MTU),
                    ..Desired::up(&port.name)
                }),
            });
        let ports: Vec<Desired> = ports.collect();
        let links = std::iter::once(loopback()).chain(bonds).chain(ports);
        let links = links.chain(vlans);
        Wanted {
            links: links.collect(),
            roles,
            problems: plan.problems.into_iter().collect(),
        }
    }
}

impl Wanted {
    /// The next steps towards it; none where all is as it should be. Links that were made for an earlier site or otherwise
    /// go first, and nothing else is done then: what lay on them changes with them, and is to be observed anew.
    pub fn steps(&self, observed: &Observed) -> Vec<Step> {
        let made = observed.links.iter().filter(|link| is_made(link.kind));
        let stale = made.filter(|link| {
            !self
                .links
                .iter()
                .any(|want| is_as_wanted(want, link, observed))
        });
        let mut stale: Vec<&Link> = stale.collect();
        // A bond that goes takes its VLANs along: they go before.
        stale.sort_by_key(|link| !matches!(link.kind, Kind::Vlan { .. }));
        let name = |link: &&Link| link.name.clone();
        let stale: Vec<Step> = stale
            .iter()
            .map(|link| Step::Delete { link: name(link) })
            .collect();
        if stale.is_empty() {
            link::plan(&self.links, observed)
        } else {
            stale
        }
    }
}

/// A bond or a VLAN: nothing else in the node's own namespace makes those.
fn is_made(kind: Kind) -> bool {
    match kind {
        Kind::Bond(_) | Kind::Vlan { .. } => true,
        Kind::Loopback | Kind::Ethernet | Kind::Bridge | Kind::Veth | Kind::Tun | Kind::Other => {
            false
        }
    }
}

fn is_as_wanted(want: &Desired, link: &Link, observed: &Observed) -> bool {
    want.name == link.name
        && match (&want.create, link.kind) {
            (Some(Create::Bond { mode }), Kind::Bond(is)) => is == Some(*mode),
            (Some(Create::Vlan { on, id }), Kind::Vlan { on: at, id: is }) => {
                *id == is && observed.link(on).is_some_and(|on| on.index == at)
            }
            _ => false,
        }
}

/// While it is worked out.
struct Plan<'a> {
    observed: &'a Observed,
    specs: &'a [Spec],
    /// The bond of each port, both by the kernel's names.
    masters: BTreeMap<String, String>,
    problems: BTreeSet<String>,
}

impl Plan<'_> {
    fn problem(&mut self, problem: String) {
        self.problems.insert(problem);
    }

    /// Gives each bond its ports.
    fn join(&mut self) {
        for spec in self.specs {
            let Made::Bond { ports, .. } = &spec.made else {
                continue;
            };
            for port in ports {
                let Some(found) = self.find(port) else {
                    continue;
                };
                let (bond, name) = (spec.port.to_string(), found.name.clone());
                if let Some(other) = self.masters.get(&name) {
                    let problem = format!("{port} is {name}, which is a port of {other} already");
                    self.problem(problem);
                } else {
                    self.masters.insert(name, bond);
                }
            }
        }
    }

    /// The port that is meant, or the problem that there is none.
    fn find(&mut self, port: &Port) -> Option<Link> {
        let is = |link: &&Link| match port {
            Port::Name(name) => link.name == *name,
            // A port of a bond wears the bond's address.
            Port::Mac(mac) => link.permanent.or(link.mac) == Some(*mac),
        };
        let found = self.observed.ethernet().find(is).cloned();
        if found.is_none() {
            let all = self.observed.ethernet();
            let all = all.map(|l| match l.permanent.or(l.mac) {
                Some(mac) => format!("{} ({mac})", l.name),
                None => l.name.clone(),
            });
            let all: Vec<_> = all.collect();
            let all = if all.is_empty() {
                "none".to_owned()
            } else {
                all.join(", ")
            };
            self.problem(format!("the machine has no port {port}; it has {all}"));
        }
        found
    }

    /// The kernel's name of the link, and how to make it. `None` where it cannot be.
    fn link_of(&mut self, spec: &Spec) -> Option<(String, Option<Create>)> {
        let name = spec.port.to_string();
        match &spec.made {
            Made::Found => {
                let found = self.find(&spec.port)?.name;
                if let Some(bond) = self.masters.get(&found) {
                    let problem = format!("{} is {found}, which is a port of {bond}", spec.port);
                    self.problem(problem);
                    return None;
                }
                Some((found, None))
            }
            Made::Bond { mode, .. } => self
                .free(&name)
                .then_some((name, Some(Create::Bond { mode: *mode }))),
            Made::Vlan { on, id } => {
                let is_bond = |s: &Spec| s.port == *on && matches!(s.made, Made::Bond { .. });
                let on = match self.specs.iter().any(is_bond) {
                    true => on.to_string(),
                    false => self.find(on)?.name,
                };
                self.free(&name)
                    .then_some((name, Some(Create::Vlan { on, id: *id })))
            }
        }
    }

    /// Nothing else has the name: what is made by its name is made anew where it is of another kind.
    fn free(&mut self, name: &str) -> bool {
        let mut all = self.observed.links.iter();
        let taken = all.any(|link| link.name == *name && !is_made(link.kind));
        if taken {
            self.problem(format!(
                "{name} is there already: give the link that is to be made another name"
            ));
        }
        !taken
    }

    /// What is written counts, else what others have told; but a VLAN's packets must fit the link that it lies on,
    /// whatever a server says of either.
    fn mtu(&self, spec: &Spec, told: Option<u32>) -> u32 {
        let carries = |s: &Spec| matches!(&s.made, Made::Vlan { on, .. } if *on == spec.port);
        let told = match &spec.made {
            Made::Found | Made::Bond { .. } => told.filter(|_| !self.specs.iter().any(carries)),
            Made::Vlan { on, .. } => {
                let carrier = self.specs.iter().find(|s| s.port == *on);
                let most = carrier.and_then(|carrier| carrier.mtu).unwrap_or(MTU);
                Some(told.unwrap_or(MTU).min(most))
            }
        };
        spec.mtu.or(told).unwrap_or(MTU)
    }
}

/// As every port does where no site is described.
fn asking(link: &Link) -> Spec {
    Spec {
        port: Port::Name(link.name.clone()),
        made: Made::Found,
        dhcp: true,
        ra: true,
        addresses: Vec::new(),
        gateway: None,
        gateway6: None,
        mtu: None,
    }
}

fn loopback() -> Desired {
    let ours = AnyCidr::new(Ipv4Addr::LOCALHOST.into(), 8);
    Desired {
        addresses: vec![ours.expect("8 is a prefix length")],
        ..Desired::up("lo")
    }
}

fn desired(name: &str, addressing: Option<&Addressing>, metric: u32) -> Desired {
    let link = Desired::up(name);
    let Some(addressing) = addressing else {
        return link;
    };
    let default = |gateway: IpAddr| {
        let everywhere: IpAddr = match gateway {
            IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        DesiredRoute {
            destination: AnyCidr::new(everywhere, 0).expect("0 is a prefix length"),
            gateway: Some(gateway),
            metric,
        }
    };
    let gateways = addressing.gateway.map(IpAddr::from).into_iter();
    let gateways = gateways.chain(addressing.gateway6.map(IpAddr::from));
    let further = addressing.routes.iter().map(|(to, by)| DesiredRoute {
        destination: (*to).into(),
        gateway: by.map(IpAddr::from),
        metric,
    });
    Desired {
        addresses: addressing.addresses.clone(),
        routes: gateways.map(default).chain(further).collect(),
        ..link
    }
}
