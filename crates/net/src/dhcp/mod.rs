//! DHCPv4 client (RFC 2131, RFC 2132).
//!
//! Owns: getting and keeping a lease on one link, for ever.
//! Refuses: setting what it was given; that is `link::plan` with `link::uplinks`.

use std::net::Ipv4Addr;
use std::time::Instant;

use tokio::sync::watch;
use types::{Cidr, Mac, Name};

/// What a server has lent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    pub address: Cidr,
    pub gateway: Option<Ipv4Addr>,
    pub dns: Vec<Ipv4Addr>,
    pub ntp: Vec<Ipv4Addr>,
    pub mtu: Option<u16>,
    /// `None`: never.
    pub expires: Option<Instant>,
}

/// The link that is asked on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Nic {
    pub name: String,
    pub index: u32,
    pub mac: Mac,
    /// Told to the server, if any.
    pub hostname: Option<Name>,
}

/// Keeps a lease on `nic`: `lease` holds it, or `None` while there is none. Never gives up; ends when
/// nobody listens to `lease` any more. The link must be up.
pub async fn run(nic: Nic, lease: watch::Sender<Option<Lease>>) {
    unimplemented!("{nic:?} {lease:?}")
}
