//! What the node agent and the ingress process say to each other.
//!
//! Owns: the JSON packets, descriptors beside some of them. Refuses: bytes of anybody else: both ends are roles of one binary.

use std::collections::BTreeMap;
use std::net::SocketAddrV4;

use serde::{Deserialize, Serialize};
use types::ingress::{HealthCheck, Host};
use types::status::SiteStatus;

/// Longest packet: a site with its certificates and all its back ends.
pub const PACKET_MAX: usize = 128 << 10;
/// Most sockets beside one packet, and spare ones of one network.
pub const SOCKETS_MAX: usize = 32;

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ToIngress {
    /// A listening socket beside it.
    Listener {
        secure: bool,
    },
    /// What is served from the next `Commit` on is said anew.
    Begin,
    Site(Box<SiteConfig>),
    /// Answered with the same number once it is served.
    Commit {
        number: u64,
    },
    /// Unconnected sockets in a tenant's network beside it; none where that is not there.
    Sockets {
        network: String,
    },
    /// How is everything?
    Ask,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FromIngress {
    /// The first on each connection: what is listened at, a copy of each socket beside it, that in the clear first. A new agent could make none while
    /// these are open, and to close them would turn clients away.
    Doors {
        open: [bool; 2],
    },
    /// All that was said before the `Commit` of this number is served.
    Committed {
        number: u64,
    },
    /// More sockets in a tenant's network.
    Need {
        network: String,
    },
    Site {
        host: Host,
        status: Box<SiteStatus>,
    },
}

/// One name, as the process serves it.
#[derive(Clone, Serialize, Deserialize)]
pub struct SiteConfig {
    pub host: Host,
    /// Whoever has the name: what is counted for one is not told another.
    pub whose: String,
    pub tls: Option<TlsConfig>,
    /// Path prefixes, and the names of their back ends.
    pub routes: Vec<(String, Vec<String>)>,
    pub backends: BTreeMap<String, Place>,
    pub health: HealthCheck,
    /// What an authority of certificates is answered in the clear, by the token that it asks for. Few, and only while it looks.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub proofs: BTreeMap<String, String>,
}

impl std::fmt::Debug for SiteConfig {
    /// Shows no secret.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SiteConfig({})", self.host)
    }
}

#[derive(Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TlsConfig {
    Passthrough,
    /// Both in PEM form.
    Own {
        certificate: String,
        key: String,
    },
    /// It cannot be spoken, and why.
    Broken {
        why: String,
    },
}

/// Where a back end is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Place {
    /// The tenant's network, by the name of its namespace.
    pub network: String,
    pub address: SocketAddrV4,
}

impl std::fmt::Debug for TlsConfig {
    /// Shows no secret.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TlsConfig")
    }
}
