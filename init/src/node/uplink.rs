//! The node's connection to the world: every Ethernet port up, DHCP on each, addresses and routes as
//! the leases say.
//!
//! Owns: the loop that keeps the kernel's links as they should be, and the [`Uplink`] that others watch.
//! Refuses: tenant networks.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use net::dhcp::{self, Lease};
use net::link::{self, Observed};
use tokio::sync::{Notify, mpsc, watch};
use types::Cidr;
use types::node::Link;

use super::context::Uplink;

/// Leases that wait to be applied: one per port is usual, and a port's newest is what counts.
const LEASES_QUEUED: usize = 16;
/// Pause after the kernel could not be listened to: without, a lasting fault would keep the loop busy.
const DEAF: Duration = Duration::from_secs(1);

/// The port, and its lease or the loss of it.
type Heard = (String, Option<Lease>);

/// What the loop publishes.
pub(crate) struct Publish {
    pub(crate) uplink: watch::Sender<Uplink>,
    pub(crate) time_servers: watch::Sender<Vec<SocketAddr>>,
    /// From `sifr.ntp=`: asked before what DHCP names.
    pub(crate) time_server: Option<SocketAddr>,
    /// The links for the node report.
    pub(crate) links: Box<dyn Fn(Vec<Link>)>,
}

/// The DHCP client of one port.
struct Client {
    task: tokio::task::JoinHandle<()>,
    /// The port had its cable when last looked at.
    carrier: bool,
    attached: Arc<Notify>,
}

/// The state of the loop.
pub(crate) struct Uplinks {
    monitor: link::Monitor,
    leases: BTreeMap<String, Lease>,
    clients: BTreeMap<u32, Client>,
    heard: (mpsc::Sender<Heard>, mpsc::Receiver<Heard>),
    publish: Publish,
}

impl Uplinks {
    /// Brings all ports up and starts asking for addresses.
    pub(crate) async fn start(publish: Publish) -> Result<Self, net::Error> {
        let mut uplinks = Self {
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

    async fn converge(&mut self) -> Result<(), net::Error> {
        // A connection of its own for each time: what ended one must not end the next.
        let mut handle = link::Handle::open()?;
        let observed = handle.observe().await?;
        keep_present(&mut self.leases, &observed);
        let steps = link::plan(&link::uplinks(&observed, &self.leases), &observed);
        let applied = handle.apply(&steps).await;
        let observed = handle.observe().await?;
        self.ask_on_new_ports(&observed);
        self.tell(&observed);
        applied
    }

    fn ask_on_new_ports(&mut self, observed: &Observed) {
        self.clients.retain(|index, client| {
            let there = observed.links.iter().any(|l| l.index == *index);
            if !there {
                client.task.abort();
            }
            there
        });
        for port in observed.ethernet().filter(|l| l.up) {
            let Some(mac) = port.mac else { continue };
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

    fn tell(&self, observed: &Observed) {
        let gateway = |name: &str| self.leases.get(name).and_then(|l| l.gateway);
        let links = observed.ethernet().filter_map(|l| {
            let (mac, address) = (l.mac?, l.addresses.first().copied());
            Some(Link {
                name: l.name.clone(),
                mac,
                up: l.up && l.carrier,
                address,
                gateway: gateway(&l.name),
            })
        });
        (self.publish.links)(links.collect());
        let first = preferred(observed, &self.leases);
        let uplink = Uplink {
            link: first.map(|(l, _)| l.name.clone()),
            address: first.map(|(_, lease)| lease.address),
            networks: networks(observed, &self.leases),
            gateway: first.and_then(|(_, lease)| lease.gateway),
            dns: first
                .map(|(_, lease)| lease.dns.clone())
                .unwrap_or_default(),
            links: observed.ethernet().map(|l| l.name.clone()).collect(),
        };
        let lease = first.map(|(_, lease)| lease);
        let servers = time_servers(self.publish.time_server, lease);
        publish(&self.publish.time_servers, servers);
        publish(&self.publish.uplink, uplink);
    }
}

/// The port that the kernel's default route leads through: the first with a lease of those that have a cable, as the
/// routes of the others are passed over (`net::ground`). Where no cable is left, the first with a lease.
fn preferred<'a>(
    observed: &'a Observed,
    leases: &'a BTreeMap<String, Lease>,
) -> Option<(&'a net::link::Link, &'a Lease)> {
    let leased = || {
        let ports = observed.ethernet();
        ports.filter_map(|port| Some((port, leases.get(&port.name)?)))
    };
    let connected = leased().find(|(port, _)| port.carrier);
    connected.or_else(|| leased().next())
}

/// A port that was taken out has no lease, and leaves none to what is plugged in later under its name.
fn keep_present(leases: &mut BTreeMap<String, Lease>, observed: &Observed) {
    leases.retain(|port, _| observed.ethernet().any(|l| l.name == *port));
}

/// Notes whether the cable is there. True if it was not, and now is.
fn came_back(carrier: &mut bool, now: bool) -> bool {
    !std::mem::replace(carrier, now) && now
}

/// The prefixes on all Ethernet ports: what the kernel holds, and what leases say that it will.
fn networks(observed: &Observed, leases: &BTreeMap<String, Lease>) -> Vec<Cidr> {
    let mut networks: Vec<Cidr> = Vec::new();
    for port in observed.ethernet() {
        let leased = leases.get(&port.name).map(|lease| lease.address);
        for address in port.addresses.iter().copied().chain(leased) {
            if !networks.contains(&address.network()) {
                networks.push(address.network());
            }
        }
    }
    networks
}

/// Whom to ask for the time: nobody before there is an address, as nobody would answer, and then whoever
/// is configured before whoever the lease names.
fn time_servers(configured: Option<SocketAddr>, lease: Option<&Lease>) -> Vec<SocketAddr> {
    let Some(lease) = lease else {
        return Vec::new();
    };
    let named = lease.ntp.iter();
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

/// Runs the DHCP client of one port and passes on what it gets.
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

    fn ethernet(name: &str, index: u32, addresses: &[&str]) -> net::link::Link {
        net::link::Link {
            name: name.to_owned(),
            index,
            kind: net::link::Kind::Ethernet,
            mtu: 1500,
            up: true,
            carrier: true,
            mac: None,
            master: None,
            addresses: addresses.iter().map(|a| a.parse().expect("one")).collect(),
        }
    }

    #[test]
    fn time_is_asked_for_once_there_is_an_address_and_first_of_whom_the_owner_named() {
        let lease = Lease {
            ntp: vec![[10, 0, 2, 4].into()],
            ..lease()
        };
        let owners: SocketAddr = "192.0.2.1:1230".parse().expect("an address");
        let leased = SocketAddr::from(([10, 0, 2, 4], net::time::PORT));
        assert_eq!(time_servers(Some(owners), None), []);
        assert_eq!(time_servers(Some(owners), Some(&lease)), [owners, leased]);
        assert_eq!(time_servers(None, Some(&lease)), [leased]);
    }

    #[test]
    fn guests_are_kept_from_the_neighbours_on_every_port_and_not_only_the_first() {
        let observed = Observed {
            links: vec![
                ethernet("eth0", 2, &["198.51.100.7/24"]),
                ethernet("eth1", 3, &["203.0.113.9/25", "203.0.113.10/25"]),
                ethernet("eth2", 4, &[]),
            ],
            routes: Vec::new(),
        };
        let leases = BTreeMap::from([("eth2".to_owned(), lease())]);
        let refused = networks(&observed, &leases);
        let expected = ["198.51.100.0/24", "203.0.113.0/25", "192.0.2.64/26"];
        assert_eq!(refused, expected.map(|lan| lan.parse().expect("a prefix")));
    }

    #[test]
    fn the_first_port_with_a_cable_leads_to_the_world() {
        let port = |name: &str, index, carrier| net::link::Link {
            carrier,
            ..ethernet(name, index, &[])
        };
        let leased = |last: u8| Lease {
            address: format!("192.0.2.{last}/24").parse().expect("an address"),
            ..lease()
        };
        let leases = BTreeMap::from([
            ("eth1".to_owned(), leased(1)),
            ("eth2".to_owned(), leased(2)),
        ]);
        for (first, second, expected) in [
            (true, true, "eth1"),
            (true, false, "eth1"),
            (false, true, "eth2"),
            (false, false, "eth1"),
        ] {
            let ports = [("eth0", true), ("eth1", first), ("eth2", second)];
            let ports = ports.iter().zip(2..);
            let observed = Observed {
                links: ports
                    .map(|((name, carrier), index)| port(name, index, *carrier))
                    .collect(),
                routes: Vec::new(),
            };
            let (found, lease) = preferred(&observed, &leases).expect("a port with a lease");
            assert_eq!((found.name.as_str(), lease), (expected, &leases[expected]));
        }
        assert!(preferred(&Observed::default(), &leases).is_none());
    }

    #[test]
    fn a_cable_that_comes_back_is_noticed_once_and_a_port_that_is_gone_has_no_lease() {
        let mut carrier = true;
        let seen = [true, false, false, true, true].map(|now| came_back(&mut carrier, now));
        assert_eq!(seen, [false, false, false, true, false]);
        let mut leases = BTreeMap::from([("eth0".to_owned(), lease())]);
        keep_present(&mut leases, &Observed::default());
        assert!(leases.is_empty());
    }
}
