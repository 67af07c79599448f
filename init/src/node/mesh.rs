//! Networks across nodes: this node's keys for them, who of the others is heard, and where those are looked for that are not.
//!
//! Owns: the private keys, which follow from the node's identity and are written nowhere; the look at every link to other nodes,
//! again and again. Refuses: choosing peers (the owner's statement has them), and to forget one that is silent.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use api::{Envelope, SecretKey};
use net::network::{self, Network};
use net::wireguard::{self, Secret, Wanted, WantedPeer};
use tokio::sync::watch;
use tokio::time::Instant;
use types::mesh::{Card, ENDPOINTS_MAX, KEEPALIVE_S, Membership, Mesh, MeshKey, PORTS};
use types::node::NodeInfo;
use types::status::{DeploymentStatus, PeerStatus, Refusal, RefusalCode};
use types::trouble::Code;
use types::{Bytes, Name};
use vault::sealed::RecipientSecret;
use workload::desired::Key;
use workload::reconcile::Offer;
use zeroize::Zeroizing;

use super::context::Uplink;
use super::network::links_turn;
use super::troubles;

/// What a key of ours is for (BLAKE3's key derivation asks for such a text, of this program and no other).
const PURPOSE: &str = "sifr 2026 WireGuard key of a network across nodes, version 1";
/// Between two looks at the links. One who is not heard is looked for at its next place: a packet that is to begin a
/// conversation is sent anew each 5 s, so that each place is tried twice.
const EVERY: Duration = Duration::from_secs(10);
/// How long another node may be silent before that is a trouble: it reboots, or agrees on a new key, within less.
const SILENCE: Duration = Duration::from_secs(240);

/// The keys of this node for all networks.
#[derive(Clone)]
pub(crate) struct Keys(Zeroizing<[u8; 32]>);

impl Keys {
    /// Of the node with this identity.
    pub(crate) fn of(seed: &[u8; 32]) -> Self {
        Self(Zeroizing::new(blake3::derive_key(PURPOSE, seed)))
    }

    /// Of one network: another one for another signer, deployment or name.
    fn secret(&self, key: &Key, network: &Name) -> Secret {
        let mut hasher = blake3::Hasher::new_keyed(&self.0);
        hasher.update(&key.signer.0);
        // No name has a dot.
        hasher.update(format!("{network}.{}", key.name).as_bytes());
        Secret(*hasher.finalize().as_bytes())
    }

    pub(crate) fn public(&self, key: &Key, network: &Name) -> MeshKey {
        let secret = vault::Secret::new(self.secret(key, network).0);
        MeshKey(RecipientSecret::new(secret).public().0)
    }

    /// What the link of a network should be.
    pub(crate) fn wanted(
        &self,
        (key, network): (&Key, &Name),
        mesh: &Mesh,
        from: &Uplink,
    ) -> Wanted {
        let peer = |peer: &types::mesh::Peer| {
            let wanted = WantedPeer {
                subnet: peer.subnet,
                endpoints: ordered(&peer.endpoints, from),
                keepalive_s: KEEPALIVE_S,
            };
            (peer.key.0, wanted)
        };
        Wanted {
            secret: self.secret(key, network),
            port: mesh.port,
            peers: mesh.peers.values().map(peer).collect(),
        }
    }
}

/// What this node says of itself to who joins it with others, signed with its own key.
pub(crate) fn membership(
    (own, keys): (&SecretKey, &Keys),
    (key, network): (&Key, &Name),
    offer: Option<Offer>,
    info: &NodeInfo,
) -> Result<Membership, Refusal> {
    let Some(offer) = offer else {
        return Err(Refusal {
            code: RefusalCode::OverCapacity,
            message: format!(
                "all UDP ports from {} to {} of this node are taken: delete a deployment, or publish others",
                PORTS.start(),
                PORTS.end()
            ),
        });
    };
    let addresses = info.links.iter().flat_map(|link| &link.addresses);
    let addresses = addresses.map(|a| a.address).filter(is_reachable);
    let card = Card {
        node: own.public(),
        signer: key.signer,
        deployment: key.name.clone(),
        network: network.clone(),
        key: keys.public(key, network),
        ports: offer.ports,
        addresses: addresses.take(ENDPOINTS_MAX).collect(),
        subnets: offer.subnets,
    };
    let card = Envelope::seal_card(own, &card)?;
    Ok(Membership {
        card: String::from_utf8_lossy(&card.to_json()).into_owned(),
        network: offer.network,
    })
}

/// From beyond its own link.
fn is_reachable(address: &IpAddr) -> bool {
    match address {
        IpAddr::V4(ip) => !ip.is_loopback() && !ip.is_link_local(),
        IpAddr::V6(ip) => !ip.is_loopback() && !ip.is_unicast_link_local(),
    }
}

/// Neighbours first; what is an address of this node itself is nobody else's.
fn ordered(endpoints: &[SocketAddr], from: &Uplink) -> Vec<SocketAddr> {
    let own = |at: &SocketAddr| from.addresses.iter().any(|a| a.address == at.ip());
    let is_near = |at: &SocketAddr| match at.ip() {
        IpAddr::V4(ip) => from.networks.iter().any(|network| network.contains(ip)),
        IpAddr::V6(ip) => from
            .addresses
            .iter()
            .any(|a| a.network().contains(ip.into())),
    };
    let mut all: Vec<SocketAddr> = endpoints.iter().filter(|at| !own(at)).copied().collect();
    all.sort_by_key(|at| !is_near(at));
    all
}

/// A network across nodes that has been made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Joined {
    pub(crate) key: Key,
    pub(crate) name: Name,
    pub(crate) network: Network,
    /// What the owner calls the nodes with these keys.
    pub(crate) peers: BTreeMap<wireguard::Key, Name>,
}

/// The other nodes of each network, as they were last seen.
pub(crate) type Seen = BTreeMap<(Key, Name), BTreeMap<Name, Sight>>;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Sight {
    endpoint: Option<SocketAddr>,
    /// Seconds since 1970.
    handshake: Option<u64>,
    sent: u64,
    received: u64,
}

/// Looks at the links from now on.
pub(crate) fn begin(
    links: watch::Receiver<Vec<Joined>>,
    info: &watch::Sender<NodeInfo>,
) -> watch::Receiver<Seen> {
    let (tell, seen) = watch::channel(Seen::new());
    tokio::task::spawn_local(watch(links, tell, info.clone()));
    seen
}

async fn watch(
    mut links: watch::Receiver<Vec<Joined>>,
    seen: watch::Sender<Seen>,
    info: watch::Sender<NodeInfo>,
) {
    let mut since: BTreeMap<(Key, Name, Name), Instant> = BTreeMap::new();
    loop {
        let all = links.borrow_and_update().clone();
        let now = match all.is_empty() {
            true => Seen::new(),
            false => tokio::task::spawn_blocking(move || look(&all))
                .await
                .unwrap_or_default(),
        };
        let peers = now.iter().flat_map(|((key, network), peers)| {
            peers
                .iter()
                .map(move |(name, sight)| ((key.clone(), network.clone(), name.clone()), *sight))
        });
        let peers: BTreeMap<_, _> = peers.collect();
        since.retain(|peer, _| peers.contains_key(peer));
        let mut silent = Vec::new();
        for (peer, sight) in peers {
            let heard = since.entry(peer.clone()).or_insert_with(Instant::now);
            if age(sight.handshake).is_some_and(|age| age <= wireguard::SILENT_S) {
                *heard = Instant::now();
            }
            if heard.elapsed() > SILENCE {
                let (key, network, name) = peer;
                silent.push(format!("{name} of network {network} of {}", key.name));
            }
        }
        match &silent[..] {
            [] => troubles::over(&info, Code::PeerSilent),
            all => {
                let minutes = SILENCE.as_secs() / 60;
                let all = all.join(", ");
                let message = format!("not heard for {minutes} minutes: {all}");
                troubles::say(&info, Code::PeerSilent, message);
            }
        }
        seen.send_replace(now);
        tokio::select! {
            changed = links.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(EVERY) => {}
        }
    }
}

/// What is read of all links; those that are not heard are looked for elsewhere.
fn look(all: &[Joined]) -> Seen {
    let mut seen = Seen::new();
    for joined in all {
        let Some(mesh) = &joined.network.mesh else {
            continue;
        };
        let _turn = links_turn();
        match network::seek(&joined.network, mesh) {
            Err(error) => log::error!("{}", sys::error::chain(&error)),
            Ok(observed) => {
                let sight = |(key, name): (&wireguard::Key, &Name)| {
                    let peer = observed.peers.get(key)?;
                    let sight = Sight {
                        endpoint: peer.endpoint,
                        handshake: peer.handshake,
                        sent: peer.sent_bytes,
                        received: peer.received_bytes,
                    };
                    Some((name.clone(), sight))
                };
                let peers = joined.peers.iter().filter_map(sight).collect();
                seen.insert((joined.key.clone(), joined.name.clone()), peers);
            }
        }
    }
    seen
}

fn age(handshake: Option<u64>) -> Option<u64> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).ok()?;
    Some(now.as_secs().saturating_sub(handshake?))
}

/// Adds to a status what only the links say.
pub(crate) fn complete(key: &Key, status: &mut DeploymentStatus, seen: &Seen) {
    for (network, status) in &mut status.networks {
        let Some(peers) = seen.get(&(key.clone(), network.clone())) else {
            continue;
        };
        for (name, status) in &mut status.peers {
            let Some(sight) = peers.get(name) else {
                continue;
            };
            *status = PeerStatus {
                endpoint: sight.endpoint,
                handshake_s: age(sight.handshake),
                sent: Bytes(sight.sent),
                received: Bytes(sight.received),
                ..status.clone()
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use types::PublicKey;

    use super::*;

    fn name(text: &str) -> Name {
        text.parse().expect("a name")
    }

    #[test]
    fn each_network_of_each_node_has_a_key_of_its_own_that_stays() {
        let of = |seed: u8, signer: u8, deployment: &str, network: &str| {
            let key = Key {
                signer: PublicKey([signer; 32]),
                name: name(deployment),
            };
            Keys::of(&[seed; 32]).public(&key, &name(network))
        };
        let first = of(1, 1, "shop", "net");
        assert_eq!(first, of(1, 1, "shop", "net"));
        let others = [
            of(2, 1, "shop", "net"),
            of(1, 2, "shop", "net"),
            of(1, 1, "shop", "back"),
            of(1, 1, "blog", "net"),
        ];
        assert!(!others.contains(&first));
    }

    #[test]
    fn neighbours_are_tried_first_and_the_node_itself_never() {
        let at = |text: &str| text.parse::<SocketAddr>().expect("an endpoint");
        let uplink = Uplink {
            addresses: vec!["10.0.2.15/24".parse().expect("an address")],
            networks: vec![
                "10.0.2.0/24".parse().expect("a prefix"),
                "192.168.77.0/24".parse().expect("a prefix"),
            ],
            ..Uplink::default()
        };
        let all = ["10.0.2.15:51820", "203.0.113.9:51820", "192.168.77.1:51820"].map(at);
        let order = ordered(&all, &uplink);
        assert_eq!(order, [all[2], all[1]]);
    }
}
