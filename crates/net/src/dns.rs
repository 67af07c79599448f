//! DNS forwarder for the guests of one network.
//!
//! Owns: answering for the network's own machines, relaying everything else to the upstream servers.
//! Refuses: resolving or caching; what a guest sends beyond one well-formed question.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};

use tokio::sync::watch;

use crate::Error;

/// Bound to port 53 inside a tenant's namespace: see `network::dns_sockets`.
#[derive(Debug)]
pub struct Sockets {
    pub udp: UdpSocket,
    pub tcp: TcpListener,
}

/// Names of the network's machines without a final dot, lower case: `web`, `web.shop`.
pub type Names = BTreeMap<String, Ipv4Addr>;

/// Answers until `names` or `upstreams` has no sender any more, or a socket fails.
pub async fn forward(
    sockets: Sockets,
    upstreams: watch::Receiver<Vec<SocketAddr>>,
    names: watch::Receiver<Names>,
) -> Result<(), Error> {
    unimplemented!("{sockets:?} {upstreams:?} {names:?}")
}
