//! One DHCP client that hears arbitrary packets at arbitrary times, for the package `fuzz`.
//!
//! Owns: the clock of that conversation, and what must hold of every lease.
//! Refuses: sockets.

use std::time::{Duration, Instant};

use types::{Mac, Name};

use super::client::{Action, Client};
use super::packet;

/// The client's address on the link.
const MAC: Mac = Mac([2, 0, 0, 0, 0, 1]);

/// A client that is spoken to.
pub struct Conversation {
    client: Client<Box<dyn FnMut() -> u32>>,
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
        let mut number = 0u32;
        let random = move || {
            number = number.wrapping_add(1);
            number
        };
        let hostname: Option<Name> = "node".parse().ok();
        let client = Client::new(MAC, hostname, now, Box::new(random) as Box<_>);
        Self { client, now }
    }
}

impl Conversation {
    /// Time passes; what the client then says.
    pub fn wait(&mut self, seconds: u32) -> Vec<Vec<u8>> {
        self.now += Duration::from_secs(seconds.into());
        let actions = self.client.tick(self.now);
        self.said(actions)
    }

    /// Time passes to the client's next deadline; what it then says.
    pub fn wait_for_deadline(&mut self) -> Vec<Vec<u8>> {
        if let Some(deadline) = self.client.deadline() {
            self.now = self.now.max(deadline);
        }
        let actions = self.client.tick(self.now);
        self.said(actions)
    }

    /// A whole packet arrives, with its IPv4 and UDP headers.
    pub fn hear(&mut self, packet: &[u8]) -> Vec<Vec<u8>> {
        match packet::payload(packet) {
            Some(payload) => self.hear_payload(payload),
            None => Vec::new(),
        }
    }

    /// The payload of a packet arrives.
    pub fn hear_payload(&mut self, payload: &[u8]) -> Vec<Vec<u8>> {
        let Some(reply) = packet::parse(payload) else {
            return Vec::new();
        };
        let actions = self.client.receive(self.now, reply);
        self.said(actions)
    }

    fn said(&self, actions: Vec<Action>) -> Vec<Vec<u8>> {
        let mut said = Vec::new();
        for action in actions {
            match action {
                Action::Broadcast(request) => said.push(packet::broadcast(&request)),
                Action::Unicast { request, .. } => said.push(request),
                Action::Lease(Some(lease)) => {
                    let address = lease.address.address;
                    let odd = address.is_unspecified()
                        || address.is_loopback()
                        || address.is_multicast()
                        || address.is_broadcast();
                    assert!(!odd, "a lease of {address}");
                    assert!(lease.expires.is_none_or(|expires| expires > self.now));
                }
                Action::Lease(None) => {}
            }
        }
        // A client that asks without pause would flood the link.
        assert!(said.len() <= 1, "{} requests at once", said.len());
        said
    }
}
