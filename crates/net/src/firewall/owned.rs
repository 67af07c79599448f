//! Addresses of guests' own, as rules of the node's namespace.
//!
//! Owns: translation between such an address and the guest's, one to one, on the link that it is an address of, and who may
//! begin to speak to it.
//! Refuses: everything that no permit names: it is not translated, and so is nobody's. The guest's own rules (`policy`) stand
//! behind as they do for published ports.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use types::Cidr;

use super::policy::{Guest, NodeTenant, host, rule};
use super::rule::{Rule, Test, Transport, Verdict};
use crate::network::{BRIDGE, WAN};

/// An address from a pool, and the guest that has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owned {
    pub address: Ipv4Addr,
    /// The guest's address in its network.
    pub inside: Ipv4Addr,
    /// The link to the network that it is an address of: by others it is nobody's. `None`: it is reached by each.
    pub link: Option<String>,
    pub allow: Vec<Let>,
}

impl Owned {
    fn by(&self, test: fn(String) -> Test) -> impl Iterator<Item = Test> + use<> {
        self.link.clone().map(test).into_iter()
    }
}

/// What may come in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Let {
    /// `None`: pings.
    pub port: Option<(Transport, u16)>,
    /// `None`: from everybody.
    pub from: Option<Cidr>,
}

impl Let {
    fn what(&self) -> Test {
        match self.port {
            Some((transport, port)) => Test::DestinationPort(transport, port),
            None => Test::Ping,
        }
    }

    pub(super) fn tests(&self, destination: Ipv4Addr) -> Vec<Test> {
        let from = self.from.map(|prefix| Test::Source(prefix.network()));
        let all = [Test::Destination(host(destination)), self.what()];
        from.into_iter().chain(all).collect()
    }
}

/// Before the way is chosen: to the guest, what is let in alone. Whatever else is sent to the address finds no way, though a
/// published port of the same guest is open to others.
pub(super) fn to_guests(tenants: &[NodeTenant]) -> impl Iterator<Item = Rule> {
    let all = tenants.iter().flat_map(|tenant| &tenant.owned);
    all.flat_map(|owned| {
        owned.allow.iter().map(|one| Rule {
            tests: owned
                .by(Test::From)
                .chain(one.tests(owned.address))
                .collect(),
            ..rule([], Verdict::DestinationHost(owned.inside))
        })
    })
}

/// On its way to the guest.
pub(super) fn let_in(tenant: &NodeTenant) -> impl Iterator<Item = Rule> {
    tenant.owned.iter().flat_map(|owned| {
        owned.allow.iter().map(|one| {
            let to = Test::To(tenant.link.clone());
            let by = owned.by(Test::From).chain([to]);
            Rule {
                tests: by.chain(one.tests(owned.inside)).collect(),
                ..rule([], Verdict::Accept)
            }
        })
    })
}

/// The same in the guest's own network, behind the node's rules, and its published ports there.
pub(super) fn reached(guest: &Guest) -> impl Iterator<Item = Rule> {
    let published = |(transport, port): &(Transport, u16)| Let {
        port: Some((*transport, *port)),
        from: None,
    };
    let all: BTreeSet<Let> = guest
        .ports
        .iter()
        .map(published)
        .chain(guest.lets.iter().copied())
        .collect();
    let address = guest.address;
    all.into_iter().map(move |one| {
        let inward = [Test::From(WAN.to_owned()), Test::To(BRIDGE.to_owned())];
        Rule {
            tests: inward.into_iter().chain(one.tests(address)).collect(),
            ..rule([], Verdict::Accept)
        }
    })
}

/// The guest speaks to the outside under it, where its packets leave by the address's own link; by others, under the node's.
pub(super) fn from_guests(tenants: &[NodeTenant]) -> impl Iterator<Item = Rule> {
    let all = tenants.iter().flat_map(|tenant| &tenant.owned);
    all.map(|owned| {
        let from = [Test::Source(host(owned.inside))];
        Rule {
            tests: owned.by(Test::To).chain(from).collect(),
            ..rule([], Verdict::SourceNat(owned.address))
        }
    })
}
