//! IPv6 that configures itself: router advertisements, and DHCPv6 where they say so (docs/decisions/0026).
//!
//! Owns: listening on one link, for ever, and what follows from all that is heard on it ([`Learned`]).
//! Refuses: setting what it learned; that is `link::plan`. Addresses that change from day to day: a server is found by its
//! address, so that it follows from the port's own (RFC 4291 appendix A).

mod advert;
#[cfg(any(test, feature = "fuzz"))]
pub(crate) mod fuzz;
mod routers;
mod wire;

use std::net::Ipv6Addr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{Notify, watch};
use types::{Cidr6, Mac};

use crate::dhcp6::{self, Told};
use crate::link::{Neighbour, Neighbours};
use advert::Advert;
use routers::Routers;
use wire::{Heard, Wire};

/// No link of IPv6 carries less (RFC 8200 section 5).
pub const MTU_MIN: u32 = 1280;
/// Pause before the sockets are opened again where they fail: the link may be gone for good, and then the caller ends this.
const REOPEN: Duration = Duration::from_secs(1);
/// A deadline where there is none: looked at again after this.
const IDLE: Duration = Duration::from_secs(86_400);

/// What a link has by what is said on it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Learned {
    /// From DHCPv6, then from prefixes.
    pub addresses: Vec<Cidr6>,
    pub gateway: Option<Ipv6Addr>,
    /// Beside those that follow from addresses: by this router, or directly.
    pub routes: Vec<(Cidr6, Option<Ipv6Addr>)>,
    pub dns: Vec<Ipv6Addr>,
    pub ntp: Vec<Ipv6Addr>,
    pub mtu: Option<u32>,
}

/// The link that is listened on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Port {
    pub name: String,
    pub index: u32,
    pub mac: Mac,
    /// Its own address on the link, which no neighbour has.
    pub local: Ipv6Addr,
}

/// Keeps `learned` as the link says. Never gives up; ends when nobody listens to `learned` any more. `attached` says that
/// the link's cable came back. Within a tokio runtime, in the link's namespace.
pub async fn run(port: Port, learned: watch::Sender<Learned>, attached: Arc<Notify>) {
    let random = || getrandom::u32().expect("getrandom(2) does not fail on the kernels we build");
    let mut link = Link::new(port.mac, Instant::now(), random);
    while !learned.is_closed() {
        let failed = match Wire::open(&port) {
            Ok(wire) => drive(&wire, &mut link, &learned, &attached).await,
            Err(error) => Err(error),
        };
        match failed {
            Ok(()) => return,
            Err(error) => log::warn!("IPv6 on {}: {error}; trying again", port.name),
        }
        tokio::select! {
            () = learned.closed() => {}
            () = tokio::time::sleep(REOPEN) => {}
        }
    }
}

/// Ends well when nobody listens any more.
async fn drive<R: FnMut() -> u32>(
    wire: &Wire<'_>,
    link: &mut Link<R>,
    learned: &watch::Sender<Learned>,
    attached: &Notify,
) -> std::io::Result<()> {
    let mut neighbours = None;
    loop {
        match (&neighbours, link.routers.are_several()) {
            (None, true) => neighbours = Some(Neighbours::open(wire.index()).map_err(failed)?),
            // With one there is no choice, and whoever else is on the link wakes nobody.
            (Some(_), false) => neighbours = None,
            (None, false) | (Some(_), true) => {}
        }
        let deadline = link.deadline().unwrap_or_else(|| Instant::now() + IDLE);
        let actions = tokio::select! {
            () = learned.closed() => return Ok(()),
            () = attached.notified() => link.attached(Instant::now()),
            () = tokio::time::sleep_until(deadline.into()) => link.tick(Instant::now()),
            heard = wire.hear() => match heard? {
                Heard::Advert(advert) => link.advert(Instant::now(), &advert),
                Heard::Answer(answer) => link.answer(Instant::now(), answer),
            },
            said = next(&mut neighbours) => link.neighbour(Instant::now(), said?),
        };
        for action in actions {
            match action {
                Action::Solicit(packet) => wire.solicit(&packet),
                Action::Ask(message) => wire.ask(&message),
                Action::Learned(now) => {
                    learned.send_replace(now);
                }
            }
        }
    }
}

/// For ever, where nobody is watched.
async fn next(neighbours: &mut Option<Neighbours>) -> std::io::Result<Neighbour> {
    match neighbours {
        Some(neighbours) => neighbours.next().await.map_err(failed),
        None => std::future::pending().await,
    }
}

fn failed(error: crate::Error) -> std::io::Error {
    std::io::Error::other(sys::error::chain(&error))
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Action {
    /// To all routers.
    Solicit(Vec<u8>),
    /// To all DHCPv6 servers.
    Ask(Vec<u8>),
    Learned(Learned),
}

/// One link: routers say what DHCPv6 is for, and both together what the link has.
#[derive(Debug)]
struct Link<R> {
    mac: Mac,
    routers: Routers,
    client: dhcp6::Client<R>,
    told: Told,
    learned: Learned,
}

impl<R: FnMut() -> u32> Link<R> {
    fn new(mac: Mac, now: Instant, random: R) -> Self {
        Self {
            mac,
            routers: Routers::new(mac, now),
            client: dhcp6::Client::new(mac, now, random),
            told: Told::default(),
            learned: Learned::default(),
        }
    }

    /// When [`Self::tick`] wants to be called.
    fn deadline(&self) -> Option<Instant> {
        let both = [self.routers.deadline(), self.client.deadline()];
        both.into_iter().flatten().min()
    }

    fn tick(&mut self, now: Instant) -> Vec<Action> {
        let asks = self.routers.tick(now);
        let mut actions = self.follow(now, |client| client.tick(now));
        if asks {
            actions.push(Action::Solicit(advert::solicitation(self.mac)));
        }
        actions
    }

    fn attached(&mut self, now: Instant) -> Vec<Action> {
        self.routers.attached(now);
        let mut actions = self.tick(now);
        actions.extend(self.follow(now, |client| client.attached(now)));
        actions
    }

    fn advert(&mut self, now: Instant, advert: &Advert) -> Vec<Action> {
        self.routers.hear(now, advert);
        self.follow(now, |_| Vec::new())
    }

    fn neighbour(&mut self, now: Instant, said: Neighbour) -> Vec<Action> {
        self.routers.answers(now, said);
        self.follow(now, |_| Vec::new())
    }

    fn answer(&mut self, now: Instant, answer: dhcp6::Answer) -> Vec<Action> {
        self.follow(now, |client| client.receive(now, answer))
    }

    /// Whatever has happened to either, and what follows from it.
    fn follow(
        &mut self,
        now: Instant,
        happened: impl FnOnce(&mut dhcp6::Client<R>) -> Vec<dhcp6::Action>,
    ) -> Vec<Action> {
        let mut said = happened(&mut self.client);
        said.extend(self.client.turn(now, self.routers.mode()));
        let mut actions = Vec::new();
        for action in said {
            match action {
                dhcp6::Action::Send(message) => actions.push(Action::Ask(message)),
                dhcp6::Action::Told(told) => self.told = told,
            }
        }
        let learned = self.learn(now);
        if learned != self.learned {
            self.learned = learned.clone();
            actions.push(Action::Learned(learned));
        }
        actions
    }

    fn learn(&self, now: Instant) -> Learned {
        let mut learned = self.routers.learned(now, self.told.address.is_some());
        let leased = self.told.address.map(Cidr6::host);
        if let Some(leased) = leased {
            // The router's prefix gives the same one, by chance or by plan.
            learned.addresses.retain(|a| a.address != leased.address);
            learned.addresses.insert(0, leased);
        }
        let more = self.told.dns.iter();
        let more = more.filter(|server| !learned.dns.contains(server));
        let more: Vec<Ipv6Addr> = more.copied().collect();
        learned.dns.extend(more);
        learned.ntp = self.told.ntp.clone();
        learned
    }
}

/// The address that a port has in a network, from its own (RFC 4291 appendix A).
fn eui64(network: Cidr6, mac: Mac) -> Ipv6Addr {
    let [a, b, c, d, e, f] = mac.0;
    let own = u64::from_be_bytes([a ^ 2, b, c, 0xff, 0xfe, d, e, f]);
    Ipv6Addr::from_bits(network.network().address.to_bits() | u128::from(own))
}

#[cfg(test)]
mod tests;
