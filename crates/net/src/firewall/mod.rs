//! The firewall: nf_tables rules as data, their bytes, and the node's policies.
//!
//! Owns: our tables (`sifr` in each family) in every namespace, replaced whole in one transaction.
//! Refuses: tables of others, and half a policy.

mod encode;
pub mod policy;
pub mod rule;

use nix::errno::Errno;
use nix::sys::socket::SockProtocol;

pub use rule::Ruleset;

use crate::Error;
use crate::namespace::{self, within};
use crate::netlink::{Message, Socket};

/// Most rules of one transaction: 32 networks of 32 machines with 64 ports come to fewer.
const RULES_MAX: usize = 100_000;

/// Replaces our tables in the caller's own namespace.
pub fn apply(ruleset: &Ruleset) -> Result<(), Error> {
    commit(&Socket::open(SockProtocol::NetlinkNetFilter, 0)?, ruleset)
}

/// Replaces our tables in a named namespace.
pub fn apply_in(name: &str, ruleset: &Ruleset) -> Result<(), Error> {
    let namespace = namespace::open(name)?.ok_or_else(|| {
        Error::errno(format!("apply firewall rules in namespace {name}"))(Errno::ENOENT)
    })?;
    let socket = within(namespace, || {
        Socket::open(SockProtocol::NetlinkNetFilter, 0)
    })?;
    commit(&socket, ruleset)
}

fn commit(socket: &Socket, ruleset: &Ruleset) -> Result<(), Error> {
    let parts = encode::transaction(ruleset);
    if parts.len() > RULES_MAX {
        let value = parts.len().to_string();
        return Err(Error::Refused {
            what: "ruleset size",
            value,
            reason: "use fewer ports",
        });
    }
    let messages: Vec<Message> = parts.iter().map(|part| part.message.clone()).collect();
    socket.batch(&messages).map_err(|failed| {
        let part = failed.index.and_then(|index| parts.get(index));
        let what = part.map_or("the firewall rules", |part| &part.what);
        Error::io(format!("apply {what}"))(failed.source)
    })
}
