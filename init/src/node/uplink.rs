//! The node's connection to the world: its ports, bonds and VLANs as its site says, DHCP and routers where that asks for
//! them, addresses and routes as all say.
//!
//! Owns: the loop that keeps the kernel's links as they should be, and the [`Uplink`] that others watch.
//! Refuses: what should be ([`net::site`]), and tenant networks.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use net::autoconf::{self, Learned};
use net::dhcp::{self, Lease};
use net::link::{self, Observed};
use net::site::{Addressing, Heard, ROUNDS_MAX, Role, Wanted};
use tokio::sync::{Notify, mpsc, oneshot, watch};
use types::node::Link;
use types::{AnyCidr, Cidr, Mac};

use super::context::Uplink;
use crate::options::Network;

mod around;

pub(crate) use around::names_network;

/// News that wait to be applied: one per port and family is usual, and the newest is what counts.
const NEWS_QUEUED: usize = 16;
/// Pause after the kernel could not be listened to: without, a lasting fault would keep the loop busy.
const DEAF: Duration = Duration::from_secs(1);

/// What one link was told, or that it holds no more.
enum News {
    Lease(Option<Lease>),
    Learned(Learned),
}

/// Of the link of this name.
type Named = (String, News);

type Tell<T> = Box<dyn Fn(&T)>;

/// What the loop publishes.
pub(crate) struct Publish {
    pub(crate) uplink: watch::Sender<Uplink>,
    pub(crate) time_servers: watch::Sender<Vec<SocketAddr>>,
    /// The links for the node report.
    pub(crate) links: Box<dyn Fn(Vec<Link>)>,
    /// What the site names and the machine has not.
    pub(crate) problems: Tell<[String]>,
    /// Why a link is not as it should be, where the kernel refuses it.
    pub(crate) refused: Tell<Option<String>>,
}

/// Who speaks for a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Family {
    V4,
    V6,
}

/// The addresses that a client speaks from. A bond gets its own from its first port, and changes it with that.
type From = (Mac, Option<Ipv6Addr>);

/// The client of one family on one link. Neither waits for the other.
struct Client {
    task: tokio::task::JoinHandle<()>,
    from: From,
    /// The link had its cable when last looked at.
    carrier: bool,
    attached: Arc<Notify>,
}

/// What is asked of the loop.
pub(crate) enum Ask {
    /// What the network names and the machine has not. Nothing changes.
    Check(Network, oneshot::Sender<Vec<String>>),
    /// Lead the links there from now on. Answered when that has been done once, with what the kernel refused.
    Use(Network, oneshot::Sender<Option<String>>),
}

/// The state of the loop.
pub(crate) struct Uplinks {
    network: Network,
    monitor: link::Monitor,
    heard: BTreeMap<String, Heard>,
    clients: BTreeMap<(u32, Family), Client>,
    news: (mpsc::Sender<Named>, mpsc::Receiver<Named>),
    asked: mpsc::Receiver<Ask>,
    publish: Publish,
}

impl Uplinks {
    /// Makes the links of the network and starts asking for addresses.
    pub(crate) async fn start(
        publish: Publish,
        network: Network,
        asked: mpsc::Receiver<Ask>,
    ) -> Result<Self, net::Error> {
        let mut uplinks = Self {
            network,
            asked,
            monitor: link::Monitor::open()?,
            heard: BTreeMap::new(),
            clients: BTreeMap::new(),
            news: mpsc::channel(NEWS_QUEUED),
            publish,
        };
        uplinks.converge().await?;
        Ok(uplinks)
    }

    /// Runs for ever. An error is shown and tried again at the next change.
    pub(crate) async fn run(mut self) {
        loop {
            let mut used = None;
            tokio::select! {
                // All are safe to drop: channels and the socket keep what was not taken.
                Some((link, news)) = self.news.1.recv() => {
                    let heard = self.heard.entry(link).or_default();
                    match news {
                        News::Lease(lease) => heard.lease = lease,
                        News::Learned(learned) => heard.learned = Some(learned),
                    }
                }
                Some(ask) = self.asked.recv() => match ask {
                    Ask::Check(network, reply) => {
                        // Who asked may have gone.
                        let _ = reply.send(self.check(&network).await);
                        continue;
                    }
                    Ask::Use(network, reply) => {
                        self.network = network;
                        used = Some(reply);
                    }
                },
                changed = self.monitor.changed() => {
                    if let Err(error) = changed {
                        log::warn!("{}", sys::error::chain(&error));
                        tokio::time::sleep(DEAF).await;
                    }
                }
            }
            let refused = self.converge().await.unwrap_or_else(|error| {
                log::error!("{}", sys::error::chain(&error));
                Some(sys::error::chain(&error))
            });
            if let Some(reply) = used {
                let _ = reply.send(refused);
            }
        }
    }

    async fn check(&self, network: &Network) -> Vec<String> {
        let observed = async { link::Handle::open()?.observe().await };
        match observed.await {
            Ok(observed) => network.site.wanted(&observed, &self.heard).problems,
            Err(error) => vec![sys::error::chain(&error)],
        }
    }

    /// What the kernel refused. An error where its links cannot be seen.
    async fn converge(&mut self) -> Result<Option<String>, net::Error> {
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
        let wrong = refused.clone().or(taken(&observed));
        wrong.iter().for_each(|error| log::error!("{error}"));
        (self.publish.refused)(&wrong);
        Ok(refused)
    }

    fn wanted(&mut self, observed: &Observed) -> Wanted {
        let site = &self.network.site;
        let wanted = site.wanted(observed, &self.heard);
        if keep_asked(&mut self.heard, &wanted.roles) {
            return site.wanted(observed, &self.heard);
        }
        wanted
    }

    /// A client for each link and family that asks, and none for others.
    fn ask(&mut self, observed: &Observed, roles: &[Role]) {
        let asking: Vec<(&link::Link, Family, From)> = observed
            .links
            .iter()
            .flat_map(|link| asking(link, roles))
            .collect();
        self.clients.retain(|(index, family), client| {
            let same = |(link, of, from): &(&link::Link, Family, From)| {
                link.index == *index && of == family && is_same(client.from, *from)
            };
            let stays = asking.iter().any(same);
            if !stays {
                client.task.abort();
            }
            stays
        });
        for (port, family, from) in asking {
            // Of IPv6 nobody speaks before it is known that no neighbour has the same address.
            let ready = family == Family::V4 || from.1.is_some();
            let news = self.news.0.clone();
            let client = match self.clients.entry((port.index, family)) {
                Entry::Occupied(client) => client.into_mut(),
                Entry::Vacant(_) if !ready => continue,
                Entry::Vacant(place) => place.insert(Client::start(port, from, news)),
            };
            // The cable may lead to another network now, where what was told is worth nothing.
            if came_back(&mut client.carrier, port.carrier && ready) {
                client.attached.notify_one();
            }
        }
    }

    fn tell(&self, observed: &Observed, wanted: &Wanted) {
        (self.publish.problems)(&wanted.problems);
        let links = own(observed).filter_map(|l| {
            Some(Link {
                name: l.name.clone(),
                mac: l.mac?,
                up: l.up && l.carrier,
                addresses: shown(&l.addresses),
                gateways: gateways(&wanted.roles, &l.name),
            })
        });
        (self.publish.links)(links.collect());
        let first = preferred(observed, &wanted.roles);
        let addressing = first.map(|(_, addressing)| addressing);
        let dns = match self.network.site.dns.as_slice() {
            [] => addressing.map(|a| a.dns.clone()).unwrap_or_default(),
            written => written.to_vec(),
        };
        let uplink = Uplink {
            link: first.map(|(name, _)| name.to_owned()),
            link6: around::leads6(observed, &wanted.roles),
            addresses: addressing.map(|a| a.addresses.clone()).unwrap_or_default(),
            networks: networks(observed, &wanted.roles),
            dns,
            egress: self.network.site.egress.clone(),
            links: own(observed).map(|l| l.name.clone()).collect(),
            indexes: own(observed).map(|l| l.index).collect(),
            prefixes: around::prefixes(own(observed), &wanted.roles),
            occupied: around::occupied(own(observed), &wanted.roles),
        };
        let servers = time_servers(self.network.ntp, addressing);
        publish(&self.publish.time_servers, servers);
        publish(&self.publish.uplink, uplink);
    }
}

impl Client {
    /// Of IPv6 where `from` has its address.
    fn start(port: &link::Link, from: From, news: mpsc::Sender<Named>) -> Self {
        let attached = Arc::new(Notify::new());
        let ((mac, local), name, index) = (from, port.name.clone(), port.index);
        let told = attached.clone();
        let task = match local {
            None => {
                let nic = dhcp::Nic {
                    name: name.clone(),
                    index,
                    mac,
                    hostname: None,
                };
                tokio::task::spawn_local(lease_loop(nic, name, news, told))
            }
            Some(local) => {
                let port = autoconf::Port {
                    name,
                    index,
                    mac,
                    local,
                };
                tokio::task::spawn_local(learn_loop(port, news, told))
            }
        };
        Self {
            task,
            from,
            carrier: port.carrier,
            attached,
        }
    }
}

/// Who is to speak for a link, and from which address: of IPv6 `None` while neighbours are asked for it, as they are anew
/// when a cable comes back.
fn asking<'a>(
    link: &'a link::Link,
    roles: &[Role],
) -> impl Iterator<Item = (&'a link::Link, Family, From)> + use<'a> {
    let role = roles.iter().find(|role| role.link == link.name && link.up);
    let from = |family| match family {
        Family::V4 => Some((link.mac?, None)),
        Family::V6 => Some((link.mac?, link.local)),
    };
    let v4 = role.filter(|role| role.asks).and(from(Family::V4));
    let v6 = role.filter(|role| role.listens).and(from(Family::V6));
    let v4 = v4.map(|from| (link, Family::V4, from));
    v4.into_iter()
        .chain(v6.map(|from| (link, Family::V6, from)))
}

fn is_same(client: From, now: From) -> bool {
    client.0 == now.0 && (now.1.is_none() || client.1 == now.1)
}

/// Addresses that neighbours have too, for people.
fn taken(observed: &Observed) -> Option<String> {
    let links = own(observed).filter(|link| !link.taken.is_empty());
    let each = links.map(|link| {
        let all: Vec<String> = link.taken.iter().map(ToString::to_string).collect();
        let (all, name) = (all.join(", "), &link.name);
        format!("another machine on {name} has {all}: give one of them another address")
    });
    let each: Vec<String> = each.collect();
    (!each.is_empty()).then(|| each.join("; "))
}

/// What every link has by itself tells nobody anything.
fn shown(addresses: &[AnyCidr]) -> Vec<AnyCidr> {
    let local = |a: &AnyCidr| a.v6().is_some_and(|a| a.address.is_unicast_link_local());
    addresses.iter().filter(|a| !local(a)).copied().collect()
}

fn gateways(roles: &[Role], link: &str) -> Vec<IpAddr> {
    let role = roles.iter().find(|role| role.link == link);
    let Some(addressing) = role.and_then(|role| role.addressing.as_ref()) else {
        return Vec::new();
    };
    let v4 = addressing.gateway.map(IpAddr::from).into_iter();
    v4.chain(addressing.gateway6.map(IpAddr::from)).collect()
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
        (!carrier, !addressing.has_gateway())
    };
    roles.iter().filter_map(addressed).min_by_key(rank)
}

/// A link that does not ask (any more) was told nothing, and leaves none of it to what comes later under its name. Whether
/// something went.
fn keep_asked(heard: &mut BTreeMap<String, Heard>, roles: &[Role]) -> bool {
    let before = heard.clone();
    heard.retain(|link, heard| {
        let role = roles.iter().find(|role| role.link == *link);
        heard.lease = heard
            .lease
            .take()
            .filter(|_| role.is_some_and(|role| role.asks));
        let learned = heard.learned.take();
        heard.learned = learned.filter(|_| role.is_some_and(|role| role.listens));
        *heard != Heard::default()
    });
    *heard != before
}

/// Notes whether the cable is there. True if it was not, and now is.
fn came_back(carrier: &mut bool, now: bool) -> bool {
    !std::mem::replace(carrier, now) && now
}

/// The prefixes of IPv4 on all links: what the kernel holds, and what it will.
fn networks(observed: &Observed, roles: &[Role]) -> Vec<Cidr> {
    let mut networks: Vec<Cidr> = Vec::new();
    let held = own(observed).flat_map(|link| &link.addresses);
    let held = held.filter_map(AnyCidr::v4);
    let wanted = roles.iter().filter_map(|role| role.addressing.as_ref());
    let wanted = wanted.flat_map(|a| &a.addresses);
    let wanted = wanted.filter_map(AnyCidr::v4);
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
    news: mpsc::Sender<Named>,
    attached: Arc<Notify>,
) {
    let (told, mut lease) = watch::channel(None);
    let pass_on = async {
        while lease.changed().await.is_ok() {
            let newest = lease.borrow_and_update().clone();
            let newest = (port.clone(), News::Lease(newest));
            if news.send(newest).await.is_err() {
                return;
            }
        }
    };
    tokio::join!(dhcp::run(nic, told, attached), pass_on);
}

/// Listens on one link and passes on what it learns.
async fn learn_loop(port: autoconf::Port, news: mpsc::Sender<Named>, attached: Arc<Notify>) {
    let name = port.name.clone();
    let (told, mut learned) = watch::channel(Learned::default());
    let pass_on = async {
        while learned.changed().await.is_ok() {
            let newest = News::Learned(learned.borrow_and_update().clone());
            if news.send((name.clone(), newest)).await.is_err() {
                return;
            }
        }
    };
    tokio::join!(autoconf::run(port, told, attached), pass_on);
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
            listens: true,
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

    pub(super) fn ethernet(name: &str, index: u32, addresses: &[&str]) -> link::Link {
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
            local: None,
            taken: Vec::new(),
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
    fn a_cable_that_comes_back_is_noticed_once_and_a_link_that_does_not_ask_was_told_nothing() {
        let mut carrier = true;
        let seen = [true, false, false, true, true].map(|now| came_back(&mut carrier, now));
        assert_eq!(seen, [false, false, false, true, false]);
        let told = || Heard {
            lease: Some(lease()),
            learned: Some(Learned::default()),
        };
        let mut heard = BTreeMap::from([("eth0".to_owned(), told()), ("eth1".to_owned(), told())]);
        let deaf = Role {
            listens: false,
            ..role("eth1", None, false)
        };
        assert!(keep_asked(&mut heard, std::slice::from_ref(&deaf)));
        assert_eq!(heard.keys().collect::<Vec<_>>(), ["eth1"]);
        assert!(heard["eth1"].lease.is_some() && heard["eth1"].learned.is_none());
        assert!(!keep_asked(&mut heard, &[deaf]));
    }

    #[test]
    fn a_client_stays_while_its_address_is_asked_about_and_goes_with_it() {
        let roles = [role("eth0", None, false)];
        let mut link = link::Link {
            mac: Some(Mac([2, 0, 0, 0, 0, 1])),
            ..ethernet("eth0", 2, &["fe80::1/64"])
        };
        let speaks = |link: &link::Link| -> Vec<(Family, From)> {
            let all = asking(link, &roles);
            all.map(|(_, family, from)| (family, from)).collect()
        };
        let mac = Mac([2, 0, 0, 0, 0, 1]);
        let unsure = (mac, None);
        assert_eq!(speaks(&link), [(Family::V4, unsure), (Family::V6, unsure)]);
        link.local = "fe80::1".parse().ok();
        let sure = speaks(&link)[1].1;
        assert_eq!(sure, (mac, link.local));
        assert!(is_same(sure, unsure) && is_same(sure, sure));
        assert!(!is_same(sure, (mac, "fe80::2".parse().ok())));
        assert!(!is_same(sure, (Mac([2; 6]), link.local)));
        link.up = false;
        assert_eq!(speaks(&link), []);
        assert_eq!(shown(&link.addresses), []);
    }
}
