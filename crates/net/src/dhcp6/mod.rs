//! DHCPv6 client (RFC 8415): an address where routers say that addresses are managed, else name and time servers.
//!
//! Owns: its messages and its states, without sockets or clocks; [`crate::autoconf`] carries them.
//! Refuses: prefix delegation, temporary addresses, and whatever was not asked for.

mod client;
mod packet;

use std::net::Ipv6Addr;

pub(crate) use client::{Action, Client};
#[cfg(test)]
pub(crate) use packet::tests;
pub(crate) use packet::{Answer, CLIENT_PORT, REPLY_MAX, SERVER_PORT, SERVERS, parse};

/// What routers say that DHCPv6 is for. The greater includes the lesser.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Mode {
    Off,
    /// Servers of names and time only.
    Stateless,
    /// An address too.
    Stateful,
}

/// What servers have told.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Told {
    pub(crate) address: Option<Ipv6Addr>,
    pub(crate) dns: Vec<Ipv6Addr>,
    pub(crate) ntp: Vec<Ipv6Addr>,
}
