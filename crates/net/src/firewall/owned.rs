//! Addresses of guests' own, as rules of the node's namespace.
//!
//! Owns: translation between such an address and the guest's, one to one, on the link that it is an address of, and who may
//! begin to speak to it.
//! Refuses: everything that no permit names: it is not translated, and so is nobody's. The guest's own rules (`policy`) stand
//! behind as they do for published ports.

use std::collections::BTreeSet;
use std::net::IpAddr;

use types::AnyCidr;

use super::policy::{Guest, Inside, NodeTenant, host, ping6, rule};
use super::rule::{Rule, Test, Transport, Verdict};
use crate::network::{BRIDGE, WAN};

/// An address from a pool, and the guest that has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owned {
    pub address: IpAddr,
    /// The guest in its network.
    pub inside: Inside,
    /// The link to the network that it is an address of: by others it is nobody's. `None`: it is reached by each.
    pub link: Option<String>,
    pub allow: Vec<Let>,
}

impl Owned {
    /// The guest's address in its network that this one is translated to.
    pub(super) fn within(&self) -> IpAddr {
        self.inside.like(self.address)
    }

    fn by(&self, test: fn(String) -> Test) -> impl Iterator<Item = Test> + use<> {
        self.link.clone().map(test).into_iter()
    }
}

/// What may come in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Let {
    /// `None`: pings.
    pub port: Option<(Transport, u16)>,
    /// `None`: from everybody. Of the address's family.
    pub from: Option<AnyCidr>,
}

impl Let {
    fn what(&self, family: IpAddr) -> Test {
        match (self.port, family) {
            (Some((transport, port)), _) => Test::DestinationPort(transport, port),
            (None, IpAddr::V4(_)) => Test::Ping,
            (None, IpAddr::V6(_)) => ping6(),
        }
    }

    pub(super) fn tests(&self, destination: IpAddr) -> Vec<Test> {
        let from = self.from.map(|prefix| Test::Source(prefix.network()));
        let what = self.what(destination);
        let all = [Test::Destination(host(destination)), what];
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
            ..rule([], Verdict::DestinationHost(owned.within()))
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
                tests: by.chain(one.tests(owned.within())).collect(),
                ..rule([], Verdict::Accept)
            }
        })
    })
}

/// The same in the guest's own network, behind the node's rules, and its published ports there.
pub(super) fn reached(guest: &Guest) -> impl Iterator<Item = Rule> {
    let both = [guest.address.into(), guest.address6.into()];
    let published = |(transport, port): &(Transport, u16)| {
        let one = Let {
            port: Some((*transport, *port)),
            from: None,
        };
        both.map(|address: IpAddr| (address, one))
    };
    let all: BTreeSet<(IpAddr, Let)> = guest
        .ports
        .iter()
        .flat_map(published)
        .chain(guest.lets.iter().copied())
        .collect();
    all.into_iter().map(|(address, one)| {
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
        let from = [Test::Source(host(owned.within()))];
        Rule {
            tests: owned.by(Test::To).chain(from).collect(),
            ..rule([], Verdict::SourceNat(owned.address))
        }
    })
}
