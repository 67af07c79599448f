//! The node's connection to the world: its ports, bonds and VLANs as its site says, DHCP where that asks for it, addresses
//! and routes as both say.
//!
//! Owns: the loop that keeps the kernel's links as they should be, and the [`Uplink`] that others watch.
//! Refuses: what should be ([`net::site`]), and tenant networks.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use net::dhcp::{self, Lease};
use net::link::{self, Observed};
use net::site::{Addressing, ROUNDS_MAX, Role, Site, Wanted};
use tokio::sync::{Notify, mpsc, watch};
use types::node::Link;
use types::{AnyCidr, Cidr, Mac};

use super::context::Uplink;

/// Leases that wait to be applied: one per port is usual, and a port's newest is what counts.
const LEASES_QUEUED: usize = 16;
/// Pause after the kernel could not be listened to: without, a lasting fault would keep the loop busy.
const DEAF: Duration = Duration::from_secs(1);

/// The link, and its lease or the loss of it.
type Heard = (String, Option<Lease>);

type Tell<T> = Box<dyn Fn(&T)>;

/// What the loop publishes.
pub(crate) struct Publish {
    pub(crate) uplink: watch::Sender<Uplink>,
    pub(crate) time_servers: watch::Sender<Vec<SocketAddr>>,
    /// From `sifr.ntp=`: asked before what DHCP names.
    pub(crate) time_server: Option<SocketAddr>,
    /// The links for the node report.
    pub(crate) links: Box<dyn Fn(Vec<Link>)>,
    /// What the site names and the machine has not.
    pub(crate) problems: Tell<[String]>,
    /// Why a link is not as it should be, where the kernel refuses it.
    pub(crate) refused: Tell<Option<String>>,
}

/// The DHCP client of one link.
struct Client {
    task: tokio::task::JoinHandle<()>,
    /// A bond gets its address from its first port, and changes it with that.
    mac: Mac,
    /// The link had its cable when last looked at.
    carrier: bool,
    attached: Arc<Notify>,
}

/// The state of the loop.
pub(crate) struct Uplinks {
    site: Site,
    monitor: link::Monitor,
    leases: BTreeMap<String, Lease>,
    clients: BTreeMap<u32, Client>,
    heard: (mpsc::Sender<Heard>, mpsc::Receiver<Heard>),
    publish: Publish,
}

impl Uplinks {
    /// Makes the links of the site and starts asking for addresses.
    pub(crate) async fn start(publish: Publish, site: Site) -> Result<Self, net::Error> {
        let mut uplinks = Self {
            site,
            monitor: link::Monitor::open()?,
            leases: BTreeMap::new(),
            clients: BTreeMap::new(),
            heard: mpsc::channel(LEASES_QUEUED),
            publish,
        };
        uplinks.converge().await?;
        Ok(uplinks)
    }

    /// Runs for ever. An error is shown and tried again at the next change.
    pub(crate) async fn run(mut self) {
        loop {
            tokio::select! {
                // Both are safe to drop: the channel and the socket keep what was not taken.
                Some((port, lease)) = self.heard.1.recv() => {
                    match lease {
                        Some(lease) => self.leases.insert(port, lease),
                        None => self.leases.remove(&port),
                    };
                }
                changed = self.monitor.changed() => {
                    if let Err(error) = changed {
                        log::warn!("{}", sys::error::chain(&error));
                        tokio::time::sleep(DEAF).await;
                    }
                }
            }
            if let Err(error) = self.converge().await {
                log::error!("{}", sys::error::chain(&error));
            }
        }
    }

    /// An error where the kernel's links cannot be seen.
    async fn converge(&mut self) -> Result<(), net::Error> {
        // A connection of its own for each time: what ended one must not end the next.
        let mut handle = link::Handle::open()?;
        let mut applied = Ok(());
        let mut observed = handle.observe().await?;
        let mut wanted = self.wanted(&observed);
        for _ in 0..ROUNDS_MAX {
            let steps = wanted.steps(&observed);
            if steps.is_empty() {
                break;
            }
            // One link that cannot be as it should keeps no other from it.
            applied = handle.apply_each(&steps).await;
            observed = handle.observe().await?;
            wanted = self.wanted(&observed);
        }
        self.ask(&observed, &wanted.roles);
        self.tell(&observed, &wanted);
        // What the kernel refuses of one link ends nothing: the node is reached by the others, and says it there.
        let refused = applied.err().map(|error| sys::error::chain(&error));
        refused.iter().for_each(|error| log::error!("{error}"));
        (self.publish.refused)(&refused);
        Ok(())
    }

    fn wanted(&mut self, observed: &Observed) -> Wanted {
        let wanted = self.site.wanted(observed, &self.leases);
        if keep_asked(&mut self.leases, &wanted.roles) {
            return self.site.wanted(observed, &self.leases);
        }
        wanted
    }

    /// A DHCP client for each link that asks, and none for others.
    fn ask(&mut self, observed: &Observed, roles: &[Role]) {
        let asks = |l: &&link::Link| l.up && roles.iter().any(|r| r.asks && r.link == l.name);
        let asking: Vec<(&link::Link, Mac)> = observed
            .links
            .iter()
            .filter(asks)
            .filter_map(|l| Some((l, l.mac?)))
            .collect();
        self.clients.retain(|index, client| {
            let same = |(l, mac): &(&link::Link, Mac)| l.index == *index && *mac == client.mac;
            let stays = asking.iter().any(same);
            if !stays {
                client.task.abort();
            }
            stays
        });
        for (port, mac) in asking {
            let (name, heard) = (port.name.clone(), self.heard.0.clone());
            let client = self.clients.entry(port.index).or_insert_with(|| {
                let attached = Arc::new(Notify::new());
                let nic = dhcp::Nic {
                    name: name.clone(),
                    index: port.index,
                    mac,
                    hostname: None,
                };
                let lease = lease_loop(nic, name, heard, attached.clone());
                Client {
                    task: tokio::task::spawn_local(lease),
                    mac,
                    carrier: port.carrier,
                    attached,
                }
            });
            // The cable may lead to another network now, where the lease is worth nothing.
            if came_back(&mut client.carrier, port.carrier) {
                client.attached.notify_one();
            }
        }
    }

    fn tell(&self, observed: &Observed, wanted: &Wanted) {
        (self.publish.problems)(&wanted.problems);
        let gateway = |name: &str| {
            let role = wanted.roles.iter().find(|role| role.link == name);
            role.and_then(|role| role.addressing.as_ref()?.gateway)
        };
        let links = own(observed).filter_map(|l| {
            let (mac, address) = (l.mac?, l.addresses.iter().find_map(AnyCidr::v4));
            Some(Link {
                name: l.name.clone(),
                mac,
                up: l.up && l.carrier,
                address,
                gateway: gateway(&l.name),
            })
        });
        (self.publish.links)(links.collect());
        let first = preferred(observed, &wanted.roles);
        let addressing = first.map(|(_, addressing)| addressing);
        let dns = match self.site.dns.as_slice() {
            [] => addressing.map(|a| a.dns.clone()).unwrap_or_default(),
            written => written.to_vec(),
        };
        let uplink = Uplink {
            link: first.map(|(name, _)| name.to_owned()),
            address: addressing.and_then(|a| a.addresses.first().copied()),
            networks: networks(observed, &wanted.roles),
            gateway: addressing.and_then(|a| a.gateway),
            dns,
            links: own(observed).map(|l| l.name.clone()).collect(),
        };
        let servers = time_servers(self.publish.time_server, addressing);
        publish(&self.publish.time_servers, servers);
        publish(&self.publish.uplink, uplink);
    }
}

/// The machine's ports, and the bonds and VLANs made of them.
fn own(observed: &Observed) -> impl Iterator<Item = &link::Link> {
    observed.links.iter().filter(|link| match link.kind {
        link::Kind::Ethernet | link::Kind::Bond(_) | link::Kind::Vlan { .. } => true,
        link::Kind::Loopback
        | link::Kind::Bridge
        | link::Kind::Veth
        | link::Kind::Tun
        | link::Kind::Other => false,
    })
}

/// The link that the kernel's default route leads through: the first with a gateway of those that have a cable, as the
/// routes of the others are passed over (`net::ground`). Where there is none, one with an address.
fn preferred<'a>(observed: &Observed, roles: &'a [Role]) -> Option<(&'a str, &'a Addressing)> {
    let addressed = |role: &'a Role| Some((role.link.as_str(), role.addressing.as_ref()?));
    let rank = |(name, addressing): &(&str, &Addressing)| {
        let carrier = observed.link(name).is_some_and(|link| link.carrier);
        (!carrier, addressing.gateway.is_none())
    };
    roles.iter().filter_map(addressed).min_by_key(rank)
}

/// A link that does not ask (any more) has no lease, and leaves none to what comes later under its name. Whether one went.
fn keep_asked(leases: &mut BTreeMap<String, Lease>, roles: &[Role]) -> bool {
    let before = leases.len();
    leases.retain(|link, _| roles.iter().any(|role| role.asks && role.link == *link));
    leases.len() < before
}

/// Notes whether the cable is there. True if it was not, and now is.
fn came_back(carrier: &mut bool, now: bool) -> bool {
    !std::mem::replace(carrier, now) && now
}

/// The prefixes on all links: what the kernel holds, and what it will.
fn networks(observed: &Observed, roles: &[Role]) -> Vec<Cidr> {
    let mut networks: Vec<Cidr> = Vec::new();
    let held = own(observed).flat_map(|link| &link.addresses);
    let held = held.filter_map(AnyCidr::v4);
    let wanted = roles.iter().filter_map(|role| role.addressing.as_ref());
    let wanted = wanted.flat_map(|a| a.addresses.iter().copied());
    for address in held.chain(wanted) {
        if !networks.contains(&address.network()) {
            networks.push(address.network());
        }
    }
    networks
}

/// Whom to ask for the time: nobody before there is an address, as nobody would answer, and then whoever
/// is configured before whoever the lease names.
fn time_servers(
    configured: Option<SocketAddr>,
    addressing: Option<&Addressing>,
) -> Vec<SocketAddr> {
    let Some(addressing) = addressing else {
        return Vec::new();
    };
    let named = addressing.ntp.iter();
    let named = named.map(|ip| SocketAddr::from((*ip, net::time::PORT)));
    configured.into_iter().chain(named).collect()
}

/// Wakes the watchers only where something is new.
fn publish<T: PartialEq>(to: &watch::Sender<T>, value: T) {
    to.send_if_modified(|held| {
        let new = *held != value;
        *held = value;
        new
    });
}

/// Runs the DHCP client of one link and passes on what it gets.
async fn lease_loop(
    nic: dhcp::Nic,
    port: String,
    heard: mpsc::Sender<Heard>,
    attached: Arc<Notify>,
) {
    let (told, mut lease) = watch::channel(None);
    let pass_on = async {
        while lease.changed().await.is_ok() {
            let newest = lease.borrow_and_update().clone();
            if heard.send((port.clone(), newest)).await.is_err() {
                return;
            }
        }
    };
    tokio::join!(dhcp::run(nic, told, attached), pass_on);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn role(link: &str, address: Option<&str>, gateway: bool) -> Role {
        let addressing = address.map(|address| Addressing {
            addresses: vec![address.parse().expect("an address")],
            gateway: gateway.then_some([192, 0, 2, 1].into()),
            ..Addressing::default()
        });
        Role {
            link: link.to_owned(),
            asks: true,
            addressing,
        }
    }

    fn lease() -> Lease {
        Lease {
            address: "192.0.2.77/26".parse().expect("an address"),
            gateway: None,
            dns: Vec::new(),
            ntp: Vec::new(),
            mtu: None,
            expires: None,
        }
    }

    fn ethernet(name: &str, index: u32, addresses: &[&str]) -> link::Link {
        link::Link {
            name: name.to_owned(),
            index,
            kind: link::Kind::Ethernet,
            mtu: 1500,
            up: true,
            carrier: true,
            mac: None,
            permanent: None,
            master: None,
            addresses: addresses.iter().map(|a| a.parse().expect("one")).collect(),
        }
    }

    #[test]
    fn time_is_asked_for_once_there_is_an_address_and_first_of_whom_the_owner_named() {
        let addressing = Addressing {
            ntp: vec![[10, 0, 2, 4].into()],
            ..Addressing::default()
        };
        let owners: SocketAddr = "192.0.2.1:1230".parse().expect("an address");
        let leased = SocketAddr::from(([10, 0, 2, 4], net::time::PORT));
        assert_eq!(time_servers(Some(owners), None), []);
        assert_eq!(
            time_servers(Some(owners), Some(&addressing)),
            [owners, leased]
        );
        assert_eq!(time_servers(None, Some(&addressing)), [leased]);
    }

    #[test]
    fn guests_are_kept_from_the_neighbours_on_every_link_and_not_only_the_first() {
        let observed = Observed {
            links: vec![
                ethernet("eth0", 2, &["198.51.100.7/24"]),
                link::Link {
                    kind: link::Kind::Vlan { on: 2, id: 7 },
                    ..ethernet("office", 3, &["203.0.113.9/25", "203.0.113.10/25"])
                },
                ethernet("eth2", 4, &[]),
            ],
            routes: Vec::new(),
        };
        let refused = networks(&observed, &[role("eth2", Some("192.0.2.77/26"), false)]);
        let expected = ["198.51.100.0/24", "203.0.113.0/25", "192.0.2.64/26"];
        assert_eq!(refused, expected.map(|lan| lan.parse().expect("a prefix")));
    }

    #[test]
    fn the_first_link_with_a_cable_and_a_gateway_leads_to_the_world() {
        let roles = [
            role("eth0", None, false),
            role("storage", Some("198.51.100.9/24"), false),
            role("eth1", Some("192.0.2.1/24"), true),
            role("eth2", Some("192.0.2.2/24"), true),
        ];
        for (first, second, expected) in [
            (true, true, "eth1"),
            (true, false, "eth1"),
            (false, true, "eth2"),
            (false, false, "storage"),
        ] {
            let ports = [
                ("eth0", true),
                ("storage", true),
                ("eth1", first),
                ("eth2", second),
            ];
            let links = ports
                .iter()
                .zip(2..)
                .map(|((name, carrier), index)| link::Link {
                    carrier: *carrier,
                    ..ethernet(name, index, &[])
                });
            let observed = Observed {
                links: links.collect(),
                routes: Vec::new(),
            };
            let (found, _) = preferred(&observed, &roles).expect("a link with an address");
            assert_eq!(found, expected);
        }
        assert!(preferred(&Observed::default(), &roles[..1]).is_none());
    }

    #[test]
    fn a_cable_that_comes_back_is_noticed_once_and_a_link_that_does_not_ask_has_no_lease() {
        let mut carrier = true;
        let seen = [true, false, false, true, true].map(|now| came_back(&mut carrier, now));
        assert_eq!(seen, [false, false, false, true, false]);
        let mut leases =
            BTreeMap::from([("eth0".to_owned(), lease()), ("eth1".to_owned(), lease())]);
        assert!(keep_asked(&mut leases, &[role("eth1", None, false)]));
        assert_eq!(leases.keys().collect::<Vec<_>>(), ["eth1"]);
        assert!(!keep_asked(&mut leases, &[role("eth1", None, false)]));
    }
}
