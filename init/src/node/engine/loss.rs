//! Pools that are lost while the node runs, and disks that come.
//!
//! Owns: ending what lay on a lost pool, and the end of this agent. Refuses: opening pools: the agent that comes next does
//! it by the rules of a boot, while all other machines run on.
//!
//! Where the last pool is lost, that agent has nothing to begin anew with: it is the same node in memory, answers, and takes
//! nothing until the disk is back (`known`).

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::bail;
use types::VmId;
use types::node::PoolState;
use types::trouble::Code;
use workload::host::{Host, Step};
use workload::placement::Place;

use super::super::given_up::{self, Ill};
use super::super::machines::Site;
use super::super::troubles;
use super::super::vigil::{Guarded, Health, Turn};
use super::{Engine, now};
use crate::packets::Packets;
use crate::wire::{ToPid1, Victim};

/// Longest wait for the ends of machines whose disk is gone: one may hang in the disk's driver.
const ENDS_WAIT_MS: u64 = 5_000;

/// The node's pools, and what became of them since this agent's start.
pub(super) struct Disks {
    sites: Vec<Site>,
    guarded: Vec<Guarded>,
    lost: BTreeMap<usize, Health>,
    parting: Option<Parting>,
    adopted: bool,
}

impl Disks {
    /// Those that are in use, for people.
    pub(super) fn named(&self) -> String {
        let kept = self.guarded.iter().enumerate();
        let kept = kept.filter(|(at, _)| !self.lost.contains_key(at));
        let name = |(_, pool): (usize, &Guarded)| {
            let Guarded { disk, serial, .. } = pool;
            format!("{disk} (serial {serial:?})")
        };
        let named: Vec<_> = kept.map(name).collect();
        format!("the disk {}", named.join(" or "))
    }

    pub(super) fn of(sites: Vec<Site>, guarded: Vec<Guarded>, adopted: bool) -> Self {
        Self {
            sites,
            guarded,
            adopted,
            lost: BTreeMap::new(),
            parting: None,
        }
    }
}

/// The first pool is another than that which *chunks* is confined to, or has been away: what was written to images and not
/// flushed is lost, whatever their maps say of it. Both begin anew, as at a boot. Not so where the pool was `adopted`.
pub(super) fn forget_images(pid1: &Packets, adopted: bool) {
    if adopted {
        return;
    }
    let maps = Path::new(crate::chunks::MAPS);
    let Ok(entries) = std::fs::read_dir(maps) else {
        return;
    };
    for map in entries.flatten() {
        if let Err(error) = std::fs::remove_file(map.path()) {
            log::error!("remove the chunk map {}: {error}", map.path().display());
        }
    }
    let victim = Victim::Chunks;
    // Where pid1 is not there, nothing is.
    let _ = pid1.send(&ToPid1::Drill { victim }, Vec::new());
}

/// This agent is about to end.
struct Parting {
    victims: BTreeSet<VmId>,
    until: u64,
}

impl Engine {
    pub(super) fn disks_changed(&mut self, turn: Turn) {
        match turn {
            Turn::Lost(lost) => self.lose(lost),
            Turn::Join(disks) => {
                let disks = disks.join(", ");
                log::info!("{disks} has come: the node agent starts again with it");
                self.part(BTreeSet::new());
            }
        }
    }

    fn lose(&mut self, lost: BTreeMap<usize, Health>) {
        self.disks.lost.extend(lost);
        let mut said = Vec::new();
        for (at, health) in &self.disks.lost {
            let pool = &self.disks.guarded[*at];
            let (state, what) = match health {
                Health::Fine => continue,
                Health::Gone => (
                    PoolState::Missing,
                    "its disk is not there any more".to_owned(),
                ),
                Health::Failing(why) => (PoolState::Failed, format!("its disk fails: {why}")),
                Health::Hanging => (PoolState::Failed, "its disk does not answer".to_owned()),
            };
            let (disk, serial) = (&pool.disk, &pool.serial);
            let message = format!(
                "the pool on {disk} (serial {serial:?}) is lost: {what}; what lies on it waits"
            );
            log::error!("{message}");
            let id = &self.disks.sites[*at].id;
            self.info.send_modify(|info| {
                let pool = info.pools.iter_mut().find(|pool| pool.id == *id);
                pool.into_iter().for_each(|pool| {
                    pool.state = state;
                    pool.because = Some(what.clone());
                });
            });
            said.push(message);
        }
        let gone = self
            .disks
            .lost
            .values()
            .all(|health| *health == Health::Gone);
        let code = if gone {
            Code::PoolMissing
        } else {
            Code::PoolFailing
        };
        let message = said.join("; ");
        troubles::say(&self.info, code, &message);
        self.host.bar(message);
        let victims = self.victims();
        for vm in &victims {
            self.host.begin(Step::Kill { vm: vm.clone() });
        }
        self.part(victims);
    }

    /// Machines of an earlier agent whose disk went before this one came.
    pub(super) fn end_orphans(&mut self, survivors: &BTreeSet<VmId>) {
        let places = self.accounts.places();
        let is_away = |id: &VmId| matches!(places.get(id), Some(Place::Away | Place::Nowhere));
        let desired = self.reconciler.desired();
        let hit = desired.machines().filter(|(vm, key, _, _, machine)| {
            let id = |name| VmId::new(&key.signer, &key.name, name);
            is_away(vm) || machine.mounts.iter().any(|m| is_away(&id(&m.volume)))
        });
        let hit: BTreeSet<VmId> = hit.map(|(vm, ..)| vm).collect();
        // Images lie on the first: where that is another, nothing can go on.
        let orphans = survivors
            .iter()
            .filter(|vm| !self.disks.adopted || hit.contains(vm));
        for vm in orphans {
            log::warn!("{vm} runs from a disk that has gone: it is ended");
            self.host.begin(Step::Kill { vm: vm.clone() });
        }
    }

    /// Machines with a disk on a lost pool. Images lie on the first: with that all are.
    fn victims(&self) -> BTreeSet<VmId> {
        let places = self.accounts.places();
        let is_lost = |id: &VmId| match places.get(id) {
            Some(Place::Here(at)) => self.disks.lost.contains_key(at),
            Some(Place::Away | Place::Nowhere) | None => false,
        };
        let desired = self.reconciler.desired();
        let hit = desired.machines().filter(|(vm, key, _, _, machine)| {
            let id = |name| VmId::new(&key.signer, &key.name, name);
            self.disks.lost.contains_key(&0)
                || is_lost(vm)
                || machine
                    .mounts
                    .iter()
                    .any(|mount| is_lost(&id(&mount.volume)))
        });
        hit.map(|(vm, ..)| vm).collect()
    }

    fn part(&mut self, victims: BTreeSet<VmId>) {
        let until = now().saturating_add(ENDS_WAIT_MS);
        self.disks.parting = Some(Parting { victims, until });
    }

    /// Ends this agent once nothing uses what is lost. When to come back at the latest.
    pub(super) fn go_on_parting(&mut self) -> anyhow::Result<Option<u64>> {
        let Some(Parting { victims, until }) = &self.disks.parting else {
            return Ok(None);
        };
        if now() < *until && victims.iter().any(|vm| self.host.is_alive(vm)) {
            return Ok(Some(*until));
        }
        for (at, health) in &self.disks.lost {
            let mark = self.disks.guarded[*at].mark.clone();
            match health {
                Health::Failing(_) => given_up::add(mark, Ill::Fails),
                Health::Hanging => given_up::add(mark, Ill::Hangs),
                Health::Gone | Health::Fine => {}
            }
            given_up::let_go(&self.disks.sites[*at].mountpoint);
        }
        bail!("the node's disks are others now: they are opened anew")
    }
}
