//! WireGuard links: who may speak by one, and who was heard.
//!
//! Owns: what a link should be and is, the changes between (pure), and the kernel's generic netlink interface for both.
//! Refuses: making links and routes ([`crate::network`] does), and choosing peers.

mod message;
mod plan;
mod socket;

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;

use types::Cidr;

pub use plan::{Change, SILENT_S, plan, seek};

use crate::Error;
use crate::namespace::{self, within};

/// An X25519 public key.
pub type Key = [u8; 32];

/// An X25519 private key.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(pub [u8; 32]);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// What a link should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    pub secret: Secret,
    pub port: u16,
    pub peers: BTreeMap<Key, WantedPeer>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WantedPeer {
    /// Under whose addresses alone it speaks, and which are sent to it.
    pub subnet: Cidr,
    /// Where it may be; none: it begins.
    pub endpoints: Vec<SocketAddr>,
    pub keepalive_s: u16,
}

/// What a link is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Observed {
    pub secret: Option<Secret>,
    pub port: u16,
    pub peers: BTreeMap<Key, Peer>,
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Peer {
    pub subnets: Vec<Cidr>,
    pub endpoint: Option<SocketAddr>,
    pub keepalive_s: u16,
    /// When both last agreed on a key, in seconds since 1970. `None`: never.
    pub handshake: Option<u64>,
    pub sent_bytes: u64,
    pub received_bytes: u64,
}

/// A link of a named namespace as it is.
pub fn observe(namespace: &str, link: &str) -> Result<Observed, Error> {
    inside(namespace, "read", link, || socket::observe(link))
}

/// Makes the changes of a link in a named namespace, all or none.
pub fn apply(namespace: &str, link: &str, changes: &[Change]) -> Result<(), Error> {
    if changes.is_empty() {
        return Ok(());
    }
    inside(namespace, "change", link, || socket::change(link, changes))
}

fn inside<T: Send>(
    name: &str,
    verb: &str,
    link: &str,
    call: impl FnOnce() -> std::io::Result<T> + Send,
) -> Result<T, Error> {
    let operation = format!("{verb} the WireGuard link {link} in namespace {name}");
    let namespace = namespace::open(name)?
        .ok_or_else(|| Error::errno(operation.clone())(nix::errno::Errno::ENOENT))?;
    within(namespace, || call().map_err(Error::io(operation)))
}
