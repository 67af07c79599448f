//! One link that hears arbitrary packets at arbitrary times, for the package `fuzz`.
//!
//! Owns: the clock of that conversation, and what must hold of all that is learned. Refuses: sockets.

use std::net::Ipv6Addr;
use std::time::{Duration, Instant};

use types::Mac;

use super::{Action, Link, MTU_MIN, advert};
use crate::dhcp6;
use crate::link::Neighbour;

const MAC: Mac = Mac([2, 0, 0, 0, 0, 1]);
/// Ticks at one moment until nothing is left to do there: of routers and of servers.
const TICKS_MAX: usize = 4;

/// A link that is spoken to.
pub struct Conversation {
    link: Link<Box<dyn FnMut() -> u32>>,
    now: Instant,
}

impl std::fmt::Debug for Conversation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Conversation").finish_non_exhaustive()
    }
}

impl Default for Conversation {
    /// Its transactions are numbered from 1, so that packets can fit them.
    fn default() -> Self {
        let now = Instant::now();
        let mut number = 0_u32;
        let random = move || {
            number = number.wrapping_add(1);
            number
        };
        let link = Link::new(MAC, now, Box::new(random) as Box<_>);
        Self { link, now }
    }
}

impl Conversation {
    /// Time passes; what is then asked of DHCPv6 servers.
    pub fn wait(&mut self, seconds: u32) -> Vec<Vec<u8>> {
        self.now += Duration::from_secs(seconds.into());
        let actions = self.link.tick(self.now);
        self.said(actions)
    }

    /// Time passes to the next deadline; what is then asked.
    pub fn wait_for_deadline(&mut self) -> Vec<Vec<u8>> {
        let deadline = self.link.deadline().unwrap_or(self.now);
        self.now = self.now.max(deadline);
        let actions = self.link.tick(self.now);
        self.said(actions)
    }

    /// The cable was away.
    pub fn attach(&mut self) -> Vec<Vec<u8>> {
        let actions = self.link.attached(self.now);
        self.said(actions)
    }

    /// An ICMPv6 packet from the router of this number.
    pub fn hear_router(&mut self, router: u8, hops: u8, packet: &[u8]) -> Vec<Vec<u8>> {
        let router = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, router.into());
        let Some(advert) = advert::parse(router, hops, packet) else {
            return Vec::new();
        };
        let actions = self.link.advert(self.now, &advert);
        self.said(actions)
    }

    /// What the kernel finds out about the router of this number.
    pub fn notice(&mut self, router: u8, answers: bool) -> Vec<Vec<u8>> {
        let address = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, router.into());
        let actions = self
            .link
            .neighbour(self.now, Neighbour { address, answers });
        self.said(actions)
    }

    /// A datagram of a server.
    pub fn hear_server(&mut self, message: &[u8]) -> Vec<Vec<u8>> {
        let Some(answer) = dhcp6::parse(message) else {
            return Vec::new();
        };
        let actions = self.link.answer(self.now, answer);
        self.said(actions)
    }

    fn said(&mut self, actions: Vec<Action>) -> Vec<Vec<u8>> {
        let mut asked = Vec::new();
        for action in actions {
            match action {
                Action::Solicit(packet) => assert_eq!(packet.len(), 16),
                Action::Ask(message) => asked.push(message),
                Action::Learned(learned) => {
                    let all = learned.addresses.iter().map(|a| a.address);
                    let usable = |a: Ipv6Addr| {
                        !a.is_multicast() && !a.is_unicast_link_local() && !a.is_loopback()
                    };
                    assert!(all.clone().all(usable), "{learned:?}");
                    assert!(learned.mtu.is_none_or(|mtu| mtu >= MTU_MIN));
                    let local = |a: Ipv6Addr| a.is_unicast_link_local();
                    assert!(learned.gateway.is_none_or(local));
                    // No more than a kernel is to hold for one link.
                    assert!(all.count() <= 17 && learned.routes.len() <= 48);
                }
            }
        }
        // Nothing makes it work without pause.
        for tick in 0.. {
            if self.link.deadline().is_none_or(|at| at > self.now) {
                break;
            }
            assert!(
                tick < TICKS_MAX,
                "work without end: {:?}",
                self.link.routers
            );
            let _ = self.link.tick(self.now);
        }
        asked
    }
}
