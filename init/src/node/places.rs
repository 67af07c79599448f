//! Which of the node's pools has what of a machine.
//!
//! Owns: `machines/<vm id>/place.json`, which says in every pool on which one the machine's data lies, and what follows from
//! several of them. Refuses: to have a machine begin anew while its data may lie on a disk that is not there.
//!
//! The version is that of the deployment when the layer was made: a later one is newer, on whatever disk it was made. A node
//! with one pool has no such files; what has none is older than all that have.

use std::collections::BTreeSet;
use std::fs;
use std::io::Read;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use storage::roster::PoolId;
use types::VmId;
use workload::host::CardAddress;

const PLACE: &str = "place.json";
/// Longest file that is read: an id and a number.
const PLACE_BYTES_MAX: u64 = 4096;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Place {
    pub(crate) pool: PoolId,
    /// Of the deployment when the layer was made there.
    pub(crate) version: u64,
    /// Its place in the network, which nobody else gets while it waits.
    pub(crate) address: Ipv4Addr,
    /// The same of a machine that names its networks.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) cards: Vec<CardAddress>,
    /// The version of the layer that lies in this very pool, old or new; 0 without one.
    pub(crate) own: u64,
}

impl Place {
    /// `None`: nothing is said, or nothing that can be read.
    pub(crate) fn read(machine: &Path) -> Option<Self> {
        let mut bytes = Vec::new();
        let file = fs::File::open(machine.join(PLACE)).ok()?;
        file.take(PLACE_BYTES_MAX).read_to_end(&mut bytes).ok()?;
        serde_json::from_slice(&bytes).ok()
    }

    /// Says in a pool where a machine's data lies. What lies in that pool itself stays said.
    pub(crate) fn tell(&self, machine: &Path) -> anyhow::Result<()> {
        let own = Self::read(machine).map_or(0, |place| place.own);
        let place = Self {
            own,
            ..self.clone()
        };
        place.write(machine)
    }

    /// Durable when this returns, the machine's directory too.
    pub(crate) fn write(&self, machine: &Path) -> anyhow::Result<()> {
        if Self::read(machine).as_ref() == Some(self) {
            return Ok(());
        }
        if !machine.exists() {
            fs::create_dir_all(machine)?;
            machine.parent().map_or(Ok(()), sys::fs::sync_directory)?;
        }
        let json = serde_json::to_vec(self)?;
        Ok(sys::fs::write_atomic(&machine.join(PLACE), &json, 0o600)?)
    }

    pub(crate) fn remove(machine: &Path) {
        let _ = fs::remove_file(machine.join(PLACE));
        // It stays where anything else is in it.
        let _ = fs::remove_dir(machine);
    }
}

/// What one pool has of a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Holding {
    pub(crate) pool: PoolId,
    /// There is a record: data of it is here.
    pub(crate) record: bool,
    pub(crate) place: Option<Place>,
}

impl Holding {
    /// Of the data that is here.
    fn version(&self) -> u64 {
        self.place.as_ref().map_or(0, |place| place.own)
    }
}

/// Where a machine is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Located {
    /// Nowhere: it has not begun.
    Nowhere,
    /// In the pool at this place of the list. `stale`: those with data from before.
    Here { at: usize, stale: Vec<usize> },
    /// On a pool that is not there.
    Away(Place),
}

/// The newest data counts. Of the same age, which is none of the node's own doing, the earlier in the list does, and nothing
/// is stale.
pub(crate) fn locate(holdings: &[Holding], there: &BTreeSet<PoolId>) -> Located {
    let records = holdings.iter().enumerate().filter(|(_, h)| h.record);
    let best = records.rev().max_by_key(|(_, holding)| holding.version());
    let away = holdings.iter().filter_map(|h| h.place.as_ref());
    let away = away.filter(|place| !there.contains(&place.pool));
    let away = away.max_by_key(|place| place.version);
    match (best, away) {
        (None, None) => Located::Nowhere,
        (None, Some(place)) => Located::Away(place.clone()),
        (Some((_, best)), Some(place)) if place.version > best.version() => {
            Located::Away(place.clone())
        }
        (Some((at, best)), _) => {
            let older = |(n, h): (usize, &Holding)| {
                (n != at && h.record && h.version() < best.version()).then_some(n)
            };
            let stale = holdings.iter().enumerate().filter_map(older);
            Located::Here {
                at,
                stale: stale.collect(),
            }
        }
    }
}

/// The machines that a pool knows anything of.
pub(crate) fn known(machines: &Path) -> Vec<(VmId, PathBuf)> {
    let entries = fs::read_dir(machines).into_iter().flatten().flatten();
    let vm = |entry: fs::DirEntry| {
        let vm = entry.file_name().to_str()?.parse().ok()?;
        Some((vm, entry.path()))
    };
    entries.filter_map(vm).collect()
}

/// Pools that the machines of this one name.
pub(crate) fn named(pool: &Path) -> Vec<PoolId> {
    let machines = known(&pool.join("machines"));
    let places = machines.iter().filter_map(|(_, at)| Place::read(at));
    let named: BTreeSet<PoolId> = places.map(|place| place.pool).collect();
    named.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn place(pool: &str, version: u64, own: u64) -> Option<Place> {
        let pool = pool.to_owned();
        Some(Place {
            pool,
            version,
            address: [10, 130, 1, 2].into(),
            cards: Vec::new(),
            own,
        })
    }

    fn holding(pool: &str, record: bool, place: Option<Place>) -> Holding {
        Holding {
            pool: pool.to_owned(),
            record,
            place,
        }
    }

    fn there(pools: &[&str]) -> BTreeSet<PoolId> {
        pools.iter().map(|pool| (*pool).to_owned()).collect()
    }

    #[test]
    fn a_machine_whose_disk_is_away_waits_and_never_begins_anew() {
        let said = [holding("b", false, place("a", 1, 0))];
        let away = |version| Located::Away(place("a", version, 0).expect("a place"));
        assert_eq!(locate(&said, &there(&["b"])), away(1));
        // The disk is there and has nothing of it: the power went before the layer was made.
        assert_eq!(locate(&said, &there(&["a", "b"])), Located::Nowhere);
        // An older layer of it is no reason to go back.
        let said = [holding("b", true, place("a", 2, 1))];
        let Located::Away(place) = locate(&said, &there(&["b"])) else {
            panic!("it would go back")
        };
        assert_eq!((place.pool.as_str(), place.version), ("a", 2));
    }

    #[test]
    fn a_disk_that_comes_back_has_what_is_older_and_that_goes() {
        let both = [
            holding("a", true, place("a", 1, 1)),
            holding("b", true, place("b", 4, 4)),
        ];
        let here = |at, stale| Located::Here { at, stale };
        assert_eq!(locate(&both, &there(&["a", "b"])), here(1, vec![0]));
        let same = [
            holding("a", true, place("a", 4, 4)),
            holding("b", true, place("b", 4, 4)),
        ];
        assert_eq!(locate(&same, &there(&["a", "b"])), here(0, vec![]));
        let before = [holding("a", true, None), holding("b", false, None)];
        assert_eq!(locate(&before, &there(&["a", "b"])), here(0, vec![]));
    }

    fn tell(holding: &mut Holding, pool: &str, version: u64) {
        let own = holding.place.as_ref().map_or(0, |place| place.own);
        holding.place = place(pool, version, own);
    }

    type Write = Box<dyn Fn(&mut [Holding])>;

    /// What a start does to the pools that are there, up to a cut. Whether the layer was made, and
    /// whether it came to its end.
    fn start(
        pools: &mut [Holding],
        there: &[usize],
        at: usize,
        version: u64,
        cut: usize,
    ) -> (bool, bool) {
        let pool = pools[at].pool.clone();
        let others = || there.iter().copied().filter(|other| *other != at);
        let (holders, empty): (Vec<_>, Vec<_>) = others().partition(|n| pools[*n].record);
        let mut writes: Vec<Write> = Vec::new();
        for n in empty.into_iter().chain([at]) {
            let own = if n == at { version } else { 0 };
            let place = place(&pool, version, own);
            writes.push(Box::new(move |pools| pools[n].place = place.clone()));
        }
        writes.push(Box::new(move |pools| pools[at].record = true));
        let made = writes.len();
        for n in holders {
            let pool = pool.clone();
            let same = pool.clone();
            writes.push(Box::new(move |pools| tell(&mut pools[n], &same, version)));
            writes.push(Box::new(move |pools| {
                pools[n].record = false;
                pools[n].place = place(&pool, version, 0);
            }));
        }
        writes.iter().take(cut).for_each(|write| write(pools));
        (cut >= made, cut >= writes.len())
    }

    proptest! {
        /// Disks come and go, starts are cut at every write. As long as one disk stays from boot to boot, a machine is
        /// found where its program last ran, or in a layer that was made later and has no byte of it, or it waits.
        #[test]
        fn a_machine_is_where_it_ran_last_or_waits(
            boots in prop::collection::vec((any::<[bool; 3]>(), 0..3usize, 0..9usize, any::<bool>()), 1..12)
        ) {
            let mut pools: Vec<_> = ["a", "b", "c"].map(|id| holding(id, false, None)).into();
            // Where its program has run, in a layer of which version.
            let mut ran: Option<(usize, u64)> = None;
            // Layers that are there, by the version that they were made for.
            let mut layers = [0u64; 3];
            let mut stays = 0;
            for (version, (mut is_there, at, cut, fresh)) in (1u64..).zip(boots) {
                is_there[stays] = true;
                let list: Vec<usize> = (0..3).filter(|n| is_there[*n]).collect();
                let ids = list.iter().map(|n| pools[*n].pool.clone()).collect();
                let seen: Vec<_> = list.iter().map(|n| pools[*n].clone()).collect();
                stays = list[at % list.len()];
                let target = list[at % list.len()];
                match locate(&seen, &ids) {
                    Located::Nowhere => prop_assert_eq!(ran, None, "it would begin anew"),
                    Located::Away(Place { pool, version, .. }) => {
                        list.iter().for_each(|n| tell(&mut pools[*n], &pool, version));
                        continue;
                    }
                    Located::Here { at, stale } => {
                        let at = list[at];
                        let (pool, own) = (pools[at].pool.clone(), pools[at].version());
                        list.iter().for_each(|n| tell(&mut pools[*n], &pool, own));
                        if let Some((place, of)) = ran {
                            prop_assert!(at == place || layers[at] > of, "it would go back");
                        }
                        for n in stale {
                            prop_assert!(ran.is_none_or(|(place, _)| place != list[n] || layers[at] > layers[list[n]]));
                            pools[list[n]].record = false;
                            pools[list[n]].place = place(&pool, own, 0);
                        }
                        // It runs on as it is.
                        if !fresh {
                            continue;
                        }
                    }
                }
                // A statement has asked for a new layer: the old one is void.
                ran = None;
                let (made, whole) = start(&mut pools, &list, target, version, cut);
                if made {
                    layers[target] = version;
                }
                if whole {
                    ran = Some((target, version));
                }
            }
        }
    }
}
