//! Addresses of guests' own, as rules of the node's namespace.
//!
//! Owns: translation between such an address and the guest's, one to one, and who may begin to speak to it.
//! Refuses: everything that no permit names: it is not translated, and so is nobody's. The guest's own rules (`policy`) stand
//! behind as they do for published ports.

use std::net::Ipv4Addr;

use types::Cidr;

use super::policy::{NodeTenant, host, rule};
use super::rule::{Rule, Test, Transport, Verdict};

/// An address from a pool, and the guest that has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owned {
    pub address: Ipv4Addr,
    /// The guest's address in its network.
    pub inside: Ipv4Addr,
    pub allow: Vec<Let>,
}

/// What may come in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
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

    fn tests(&self, destination: Ipv4Addr) -> Vec<Test> {
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
            tests: one.tests(owned.address),
            ..rule([], Verdict::DestinationHost(owned.inside))
        })
    })
}

/// On its way to the guest.
pub(super) fn let_in(tenant: &NodeTenant) -> impl Iterator<Item = Rule> {
    tenant.owned.iter().flat_map(|owned| {
        owned.allow.iter().map(|one| {
            let to = Test::To(tenant.link.clone());
            let tests = [to].into_iter().chain(one.tests(owned.inside));
            Rule {
                tests: tests.collect(),
                ..rule([], Verdict::Accept)
            }
        })
    })
}

/// The guest speaks to the outside under it.
pub(super) fn from_guests(tenants: &[NodeTenant]) -> impl Iterator<Item = Rule> {
    let all = tenants.iter().flat_map(|tenant| &tenant.owned);
    all.map(|owned| {
        let from = Test::Source(host(owned.inside));
        rule([from], Verdict::SourceNat(owned.address))
    })
}
