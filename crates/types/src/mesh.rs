//! A network across nodes: what a node says of itself, and whom the owner lets it speak to.
//!
//! Owns: the card that a node signs, the peers that the owner signs, and what of both can be checked without a node.
//! Refuses: secrets. The private key of a card is never in a document.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::deployment::WORKLOADS_MAX;
use crate::id::{hex, serde_as_text, unhex};
use crate::network::Network;
use crate::{Cidr, Name, PublicKey};

/// DSSE payload type of a [`Card`], which a node signs.
pub const CARD_PAYLOAD_TYPE: &str = "application/vnd.sifr.mesh-card.v1+json";
/// Largest envelope of a card: some 1,700 bytes where all lists are full.
pub const CARD_MAX: usize = 4 << 10;
/// Most other nodes of a network: every node keeps each of them alive.
pub const PEERS_MAX: usize = 31;
/// Most addresses of one node: it tries one after the other.
pub const ENDPOINTS_MAX: usize = 8;
/// Subnets that a node offers: as many as a network has nodes, so that there is one that no other has taken.
pub const OFFERS_MAX: usize = PEERS_MAX + 1;
/// Ports that a node offers: new networks of one file have one each.
pub const PORT_OFFERS_MAX: usize = WORKLOADS_MAX;
/// UDP ports of networks across nodes: from WireGuard's usual one on, one for each network of a node.
pub const PORTS: RangeInclusive<u16> = 51820..=52843;
/// Of such a network, inside: 1500 less 40 bytes of IPv6, 8 of UDP and 32 of WireGuard.
pub const MTU: u16 = 1420;
/// Seconds between two packets that keep a NAT's memory of the way: RFC 4787 lets one forget after 120, many do after 30.
pub const KEEPALIVE_S: u16 = 25;

/// A WireGuard public key (X25519, RFC 7748). Text: `x25519:` and 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MeshKey(pub [u8; 32]);

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("key {0:?} is not \"x25519:\" followed by 64 lower-case hexadecimal digits")]
pub struct MeshKeyError(String);

impl FromStr for MeshKey {
    type Err = MeshKeyError;
    fn from_str(text: &str) -> Result<Self, MeshKeyError> {
        let digits = text.strip_prefix("x25519:").and_then(unhex);
        digits
            .map(Self)
            .ok_or_else(|| MeshKeyError(text.to_owned()))
    }
}

impl fmt::Display for MeshKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "x25519:{}", hex(&self.0))
    }
}

impl fmt::Debug for MeshKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

serde_as_text!(MeshKey);

/// What a node says of its part in one network of one deployment. It signs this with its own key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Card {
    pub node: PublicKey,
    /// Whose deployment it is.
    pub signer: PublicKey,
    pub deployment: Name,
    pub network: Name,
    /// Made on the node, where the private key stays.
    pub key: MeshKey,
    /// The UDP port that it has, or several that it could take, the first first.
    pub ports: Vec<u16>,
    /// Its own addresses; a NAT may stand before them.
    pub addresses: Vec<IpAddr>,
    /// The subnet that it has, or several that it could take, the first first.
    pub subnets: Vec<Cidr>,
}

/// A node's part in a network across nodes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mesh {
    /// UDP port of this node. Never changes.
    pub port: u16,
    /// The other nodes, by the owner's names for them.
    #[serde(default)]
    pub peers: BTreeMap<Name, Peer>,
}

/// Another node of the network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Peer {
    pub node: PublicKey,
    pub key: MeshKey,
    pub subnet: Cidr,
    /// Where it may be reached, the first first. None: it stands behind a NAT, and has to begin.
    #[serde(default)]
    pub endpoints: Vec<SocketAddr>,
    /// The machines that it has on this network: of these names it is asked and believed, and of no others.
    #[serde(default)]
    pub machines: BTreeSet<Name>,
    /// The envelope of its [`Card`], as that node gave it.
    pub card: String,
}

/// Answer to `GET /v1/deployments/{name}/networks/{network}`: what a client needs to join the node with others.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Membership {
    /// The envelope of a fresh [`Card`].
    pub card: String,
    /// The network as the node's ledger has it.
    pub network: Option<Network>,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MeshError {
    #[error("it needs a subnet of its own on this node")]
    NoSubnet,
    #[error("UDP port {0} is none of {start} to {end}", start = PORTS.start(), end = PORTS.end())]
    Port(u16),
    #[error("it spans {0} other nodes, at most {PEERS_MAX} are possible")]
    Peers(usize),
    #[error("{peer} has {found} endpoints, at most {ENDPOINTS_MAX} are possible")]
    Endpoints { peer: Name, found: usize },
    #[error("{peer} has {found} as an endpoint, which is no address of a node")]
    Endpoint { peer: Name, found: SocketAddr },
    #[error("the card of {peer} has {found} bytes, at most {CARD_MAX} are possible")]
    Card { peer: Name, found: usize },
    #[error("{peer} has the subnet {subnet}, which is no /24 of tenants or another node's too")]
    Subnet { peer: Name, subnet: Cidr },
    #[error("{peer} is a node, or has a key, that stands twice")]
    Twice { peer: Name },
    #[error("{peer} has {found} machines, at most {WORKLOADS_MAX} are possible")]
    Machines { peer: Name, found: usize },
    #[error("{machine} is on {peer}, and on another node too")]
    Machine { peer: Name, machine: Name },
    #[error("the card of {peer} does not say its {what}: ask that node for its card again")]
    Mismatch { peer: Name, what: &'static str },
}

impl Mesh {
    /// What any node may rely on. `subnet`: this node's own; `here`: what the deployment has on this node.
    pub(crate) fn check<'a>(
        &'a self,
        subnet: Option<Cidr>,
        here: impl IntoIterator<Item = &'a Name>,
    ) -> Result<(), MeshError> {
        self.check_machines(here)?;
        let own = subnet.ok_or(MeshError::NoSubnet)?;
        if !PORTS.contains(&self.port) {
            return Err(MeshError::Port(self.port));
        }
        if self.peers.len() > PEERS_MAX {
            return Err(MeshError::Peers(self.peers.len()));
        }
        let (mut subnets, mut nodes, mut keys) =
            (BTreeSet::from([own]), BTreeSet::new(), BTreeSet::new());
        for (name, peer) in &self.peers {
            let name = || name.clone();
            let (subnet, found) = (peer.subnet, peer.endpoints.len());
            if found > ENDPOINTS_MAX {
                return Err(MeshError::Endpoints {
                    peer: name(),
                    found,
                });
            }
            if let Some(found) = peer.endpoints.iter().find(|at| !is_endpoint(at)) {
                let (peer, found) = (name(), *found);
                return Err(MeshError::Endpoint { peer, found });
            }
            if peer.card.len() > CARD_MAX {
                let (peer, found) = (name(), peer.card.len());
                return Err(MeshError::Card { peer, found });
            }
            if !crate::network::is_subnet(&subnet) || !subnets.insert(subnet) {
                return Err(MeshError::Subnet {
                    peer: name(),
                    subnet,
                });
            }
            if !nodes.insert(peer.node) || !keys.insert(peer.key) {
                return Err(MeshError::Twice { peer: name() });
            }
        }
        Ok(())
    }

    /// Each name is one machine's.
    fn check_machines<'a>(
        &'a self,
        here: impl IntoIterator<Item = &'a Name>,
    ) -> Result<(), MeshError> {
        let mut all: BTreeSet<&Name> = here.into_iter().collect();
        for (name, peer) in &self.peers {
            let found = peer.machines.len();
            if found > WORKLOADS_MAX {
                let peer = name.clone();
                return Err(MeshError::Machines { peer, found });
            }
            if let Some(machine) = peer.machines.iter().find(|machine| !all.insert(machine)) {
                let (peer, machine) = (name.clone(), machine.clone());
                return Err(MeshError::Machine { peer, machine });
            }
        }
        Ok(())
    }
}

/// What packets can be sent to, one at a time.
fn is_endpoint(at: &SocketAddr) -> bool {
    let one = match at.ip() {
        IpAddr::V4(ip) => !ip.is_multicast() && !ip.is_broadcast(),
        IpAddr::V6(ip) => !ip.is_multicast() && !ip.is_unicast_link_local(),
    };
    let somebody = !at.ip().is_unspecified() && !at.ip().is_loopback();
    one && somebody && at.port() != 0
}

impl Card {
    /// Whether a peer is who this card speaks of. The card's signature, by the peer's node, holds already.
    pub fn confirms(
        &self,
        (signer, deployment, network): (&PublicKey, &Name, &Name),
        name: &Name,
        peer: &Peer,
    ) -> Result<(), MeshError> {
        let says = |is: bool, what| match is {
            true => Ok(()),
            false => Err(MeshError::Mismatch {
                peer: name.clone(),
                what,
            }),
        };
        let about = (&self.signer, &self.deployment, &self.network);
        says(about == (signer, deployment, network), "network")?;
        says(self.node == peer.node, "node")?;
        says(self.key == peer.key, "key")?;
        says(self.subnets.contains(&peer.subnet), "subnet")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Name {
        text.parse().expect("a name")
    }

    fn peer(n: u8) -> Peer {
        Peer {
            node: PublicKey([n; 32]),
            key: MeshKey([n; 32]),
            subnet: format!("10.200.{n}.0/24").parse().expect("a subnet"),
            endpoints: vec![([192, 0, 2, n], 51820).into()],
            machines: [name(&format!("m{n}"))].into(),
            card: "{}".to_owned(),
        }
    }

    fn mesh(peers: &[(&str, Peer)]) -> Mesh {
        let peers = peers.iter().map(|(n, peer)| (name(n), peer.clone()));
        Mesh {
            port: 51820,
            peers: peers.collect(),
        }
    }

    #[test]
    fn each_contradiction_between_peers_is_named() {
        let own = "10.200.9.0/24".parse().ok();
        let two = [("a", peer(1)), ("b", peer(2))];
        assert_eq!(mesh(&two).check(own, []), Ok(()));
        assert_eq!(mesh(&two).check(None, []), Err(MeshError::NoSubnet));
        type Change = fn(&mut Peer);
        let web = name("web");
        let changes: [(Change, &str); 11] = [
            (|p| p.machines = peer(1).machines, "m1 is on b, and on"),
            (|p| p.machines = [name("web")].into(), "web is on b, and on"),
            (
                |p| p.machines = (0..33).map(|n| name(&format!("x{n}"))).collect(),
                "33 machines",
            ),
            (|p| p.subnet = peer(1).subnet, "another node's too"),
            (
                |p| p.subnet = "10.200.9.0/24".parse().expect("a subnet"),
                "another node's too",
            ),
            (
                |p| p.subnet = "192.168.1.0/24".parse().expect("a subnet"),
                "no /24 of tenants",
            ),
            (|p| p.node = peer(1).node, "stands twice"),
            (|p| p.key = peer(1).key, "stands twice"),
            (|p| p.card = " ".repeat(CARD_MAX + 1), "4097 bytes"),
            (
                |p| p.endpoints = vec![([224, 0, 0, 1], 1).into()],
                "no address of a node",
            ),
            (
                |p| p.endpoints = vec![([192, 0, 2, 1], 1).into(); 9],
                "9 endpoints",
            ),
        ];
        for (change, says) in changes {
            let mut other = peer(2);
            change(&mut other);
            let error = mesh(&[("a", peer(1)), ("b", other)]).check(own, [&web]);
            let error = error.expect_err(says).to_string();
            assert!(error.contains(says), "{error} for {says}");
        }
        let odd = Mesh {
            port: 53,
            ..mesh(&two)
        };
        assert_eq!(odd.check(own, []), Err(MeshError::Port(53)));
        let many = (0..32).map(|n| (name(&format!("n{n}")), peer(n))).collect();
        let many = Mesh {
            peers: many,
            ..mesh(&two)
        };
        assert_eq!(
            many.check("10.201.0.0/24".parse().ok(), []),
            Err(MeshError::Peers(32))
        );
    }

    #[test]
    fn a_card_confirms_its_own_peer_and_no_other() {
        let (signer, shop, net) = (PublicKey([7; 32]), name("shop"), name("net"));
        let of = peer(1);
        let card = Card {
            node: of.node,
            signer,
            deployment: shop.clone(),
            network: net.clone(),
            key: of.key,
            ports: vec![51820],
            addresses: Vec::new(),
            subnets: vec![peer(5).subnet, of.subnet],
        };
        let about = (&signer, &shop, &net);
        assert_eq!(card.confirms(about, &name("a"), &of), Ok(()));
        let stranger = PublicKey([8; 32]);
        for about in [
            (&stranger, &shop, &net),
            (&signer, &net, &net),
            (&signer, &shop, &shop),
        ] {
            assert!(card.confirms(about, &name("a"), &of).is_err());
        }
        for other in [
            Peer {
                node: peer(2).node,
                ..of.clone()
            },
            Peer {
                key: peer(2).key,
                ..of.clone()
            },
            Peer {
                subnet: peer(2).subnet,
                ..of.clone()
            },
        ] {
            assert!(card.confirms(about, &name("a"), &other).is_err());
        }
    }
}
