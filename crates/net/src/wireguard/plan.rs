//! From what a WireGuard link is to what it should be, as changes.
//!
//! Owns: the difference, and when a peer is looked for at another place. Refuses: doing it.

use std::net::SocketAddr;

use types::Cidr;

use super::{Key, Observed, Peer, Secret, Wanted, WantedPeer};

/// After so many seconds without a new key nothing passes any more (WireGuard's `REJECT_AFTER_TIME`): while both are
/// there they agree on one every two minutes.
pub const SILENT_S: u64 = 180;

/// One change of a link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    Device {
        secret: Secret,
        port: u16,
    },
    /// A new one or a known one: its subnet is this alone.
    Peer {
        key: Key,
        subnet: Cidr,
        /// `None`: as it is.
        endpoint: Option<SocketAddr>,
        keepalive_s: u16,
    },
    Remove {
        key: Key,
    },
}

/// The changes from `observed` to `wanted`; none where they agree. Who is heard is left where it was last heard: it may have
/// moved. Who is not is looked for at the next place that is known of it. `now`: seconds since 1970.
pub fn plan(wanted: &Wanted, observed: &Observed, now: u64) -> Vec<Change> {
    let mut changes = Vec::new();
    if observed.secret.as_ref() != Some(&wanted.secret) || observed.port != wanted.port {
        changes.push(Change::Device {
            secret: wanted.secret.clone(),
            port: wanted.port,
        });
    }
    let gone = observed.peers.keys();
    let gone = gone.filter(|key| !wanted.peers.contains_key(*key));
    // First: what is taken from one may be given to another.
    changes.extend(gone.map(|key| Change::Remove { key: *key }));
    for (key, want) in &wanted.peers {
        let have = observed.peers.get(key);
        let endpoint = endpoint(want, have, now);
        let same = have.is_some_and(|have| {
            have.subnets == [want.subnet] && have.keepalive_s == want.keepalive_s
        });
        if !same || endpoint.is_some() {
            changes.push(Change::Peer {
                key: *key,
                subnet: want.subnet,
                endpoint,
                keepalive_s: want.keepalive_s,
            });
        }
    }
    changes
}

/// Of these changes, where to look for those that the link knows as it should. What else differs is on its way, or `wanted` is of
/// before: who was taken out must not come back by it.
pub fn seek(wanted: &Wanted, observed: &Observed, now: u64) -> Vec<Change> {
    if observed.secret.as_ref() != Some(&wanted.secret) {
        return Vec::new();
    }
    let mut changes = plan(wanted, observed, now);
    changes.retain(|change| match change {
        Change::Peer { key, subnet, .. } => {
            let known = observed.peers.get(key);
            known.is_some_and(|known| known.subnets == [*subnet])
        }
        Change::Device { .. } | Change::Remove { .. } => false,
    });
    changes
}

/// Where to look for a peer from now on, where that is another place than before.
fn endpoint(want: &WantedPeer, have: Option<&Peer>, now: u64) -> Option<SocketAddr> {
    let first = want.endpoints.first().copied();
    let Some(have) = have else {
        return first;
    };
    // A clock that was set back makes nobody silent.
    let is_heard = |at: u64| now.saturating_sub(at) <= SILENT_S;
    if have.handshake.is_some_and(is_heard) {
        return None;
    }
    let Some(at) = have.endpoint else {
        return first;
    };
    let place = want.endpoints.iter().position(|known| *known == at);
    let next = match place {
        Some(place) => want
            .endpoints
            .get((place + 1) % want.endpoints.len())
            .copied(),
        None => first,
    };
    next.filter(|next| *next != at)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::{any, prop, proptest};

    use super::*;

    fn at(n: u8) -> SocketAddr {
        ([192, 0, 2, n], 51820).into()
    }

    fn subnet(n: u8) -> Cidr {
        Cidr::new([10, 200, n, 0].into(), 24).expect("24 is a prefix length")
    }

    fn want(n: u8, endpoints: &[u8]) -> (Key, WantedPeer) {
        let peer = WantedPeer {
            subnet: subnet(n),
            endpoints: endpoints.iter().map(|n| at(*n)).collect(),
            keepalive_s: 25,
        };
        ([n; 32], peer)
    }

    fn wanted(peers: impl IntoIterator<Item = (Key, WantedPeer)>) -> Wanted {
        Wanted {
            secret: Secret([9; 32]),
            port: 51820,
            peers: peers.into_iter().collect(),
        }
    }

    /// What the kernel makes of changes.
    fn after(mut link: Observed, changes: &[Change]) -> Observed {
        for change in changes {
            match change {
                Change::Device { secret, port } => {
                    (link.secret, link.port) = (Some(secret.clone()), *port);
                }
                Change::Remove { key } => {
                    link.peers.remove(key);
                }
                Change::Peer {
                    key,
                    subnet,
                    endpoint,
                    keepalive_s,
                } => {
                    let moved = |peer: &mut Peer| peer.subnets.retain(|have| have != subnet);
                    link.peers.values_mut().for_each(moved);
                    let peer = link.peers.entry(*key).or_default();
                    peer.subnets = vec![*subnet];
                    peer.endpoint = endpoint.or(peer.endpoint);
                    peer.keepalive_s = *keepalive_s;
                }
            }
        }
        link
    }

    #[test]
    fn who_is_heard_stays_where_it_is_and_who_is_not_is_looked_for_elsewhere() {
        let wanted = wanted([want(1, &[1, 2])]);
        let mut link = after(
            Observed::default(),
            &plan(&wanted, &Observed::default(), 1000),
        );
        assert_eq!(link.peers[&[1; 32]].endpoint, Some(at(1)));
        let peer = |link: &mut Observed, endpoint, handshake| {
            let peer = link.peers.get_mut(&[1; 32]).expect("a peer");
            (peer.endpoint, peer.handshake) = (Some(endpoint), handshake);
        };
        // It has moved, and speaks.
        peer(&mut link, at(7), Some(900));
        assert_eq!(plan(&wanted, &link, 1000), []);
        assert_eq!(plan(&wanted, &link, 800), [], "a clock that was set back");
        // It was not heard for long: one place after the other.
        for (from, to) in [(7, 1), (1, 2), (2, 1)] {
            peer(&mut link, at(from), Some(100));
            let next = after(link.clone(), &plan(&wanted, &link, 1000));
            assert_eq!(next.peers[&[1; 32]].endpoint, Some(at(to)));
        }
    }

    #[test]
    fn who_is_not_wanted_goes_and_leaves_its_subnet_to_others() {
        let first = wanted([want(1, &[1])]);
        let link = after(Observed::default(), &plan(&first, &Observed::default(), 0));
        let (_, taken) = want(1, &[2]);
        let second = wanted([([2; 32], taken)]);
        let changes = plan(&second, &link, 0);
        assert_eq!(changes[0], Change::Remove { key: [1; 32] });
        let link = after(link, &changes);
        assert_eq!(link.peers.keys().collect::<Vec<_>>(), [&[2; 32]]);
        assert_eq!(link.peers[&[2; 32]].subnets, [subnet(1)]);
    }

    #[test]
    fn a_look_at_a_link_by_what_was_wanted_before_brings_back_nobody() {
        let before = wanted([want(1, &[1, 2]), want(3, &[3, 4])]);
        let nothing = Observed::default();
        let (_, taken) = want(1, &[5]);
        let now = wanted([([2; 32], taken), want(3, &[3, 4])]);
        let link = after(nothing.clone(), &plan(&now, &nothing, 1000));
        let changes = seek(&before, &link, 1000);
        let seen = after(link.clone(), &changes);
        assert_eq!(seen.peers.keys().collect::<Vec<_>>(), [&[2; 32], &[3; 32]]);
        assert_eq!(seen.peers[&[2; 32]].subnets, [subnet(1)]);
        assert_eq!(
            seen.peers[&[3; 32]].endpoint,
            Some(at(4)),
            "it is looked for"
        );
        let other = Observed {
            secret: Some(Secret([8; 32])),
            ..link
        };
        assert_eq!(seek(&before, &other, 1000), [], "another network's by now");
    }

    proptest! {
        #[test]
        fn any_link_comes_to_be_as_wanted_and_then_stays(
            before in prop::collection::btree_map(0u8..6, (0u8..6, any::<bool>()), 0..5),
            after_that in prop::collection::btree_set(0u8..6, 0..5),
            port in any::<u16>(),
        ) {
            let peers: BTreeMap<Key, Peer> = before.into_iter().map(|(n, (of, heard))| {
                let peer = Peer {
                    subnets: vec![subnet(of)],
                    endpoint: Some(at(n)),
                    handshake: heard.then_some(1000),
                    ..Peer::default()
                };
                ([n; 32], peer)
            }).collect();
            let found = Observed { secret: None, port, peers };
            let wanted = wanted(after_that.into_iter().map(|n| want(n, &[n])));
            let link = after(found.clone(), &plan(&wanted, &found, 1000));
            assert_eq!(plan(&wanted, &link, 1000), []);
            assert_eq!(link.peers.len(), wanted.peers.len());
            for (key, peer) in &link.peers {
                assert_eq!(peer.subnets, [wanted.peers[key].subnet]);
            }
        }
    }
}
