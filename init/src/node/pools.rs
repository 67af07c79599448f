//! The node's pools at the boot: what is in each, what each is told of the others, and what is said of them.
//!
//! Owns: reading a pool for [`storage::assemble`], and the order in which one becomes the node's. Refuses: deciding which are
//! the node's, and mounting.
//!
//! A pool that joins is given the roster first: should the others be lost from there on, it knows that they were. Then it is
//! given the identity, and at last the ledger, by whoever opens that.

use std::path::{Path, PathBuf};

use storage::assemble::History;
use storage::disk::Disk;
use storage::mirrors;
use storage::plan::LeftAlone;
use storage::pool::Pool;
use storage::pools::{Depth, Further, Inside, Pools, away};
use storage::roster::{PoolId, Roster};
use tokio::sync::watch;
use types::PublicKey;
use types::node::{DiskClass, NodeInfo, PoolState};
use types::trouble::Code;
use workload::ledger;

use super::disks::Found;
use super::engine::{ledger_copies, verify};
use super::given_up::{Ill, Mark};
use super::machines::Site;
use super::vigil::Guarded;
use super::{identity, known, machine, places, troubles};

/// What is in a pool of this owner.
pub(crate) fn inspect(pool: &Path, depth: Depth, owner: Option<PublicKey>) -> Inside {
    Inside {
        identity: identity::trace(pool),
        history: match depth {
            Depth::Alone => None,
            Depth::Beside => history(pool, owner),
        },
        named: places::named(pool),
    }
}

fn history(pool: &Path, owner: Option<PublicKey>) -> Option<History> {
    let verify = |envelope: &[u8]| verify(envelope, owner).map_err(|refusal| refusal.message);
    let history = ledger::history(&ledger_copies(pool), verify).ok()?;
    let said = history.into_iter().map(|((key, version), digest)| {
        let deployment = format!("{} {}", key.signer, key.name);
        ((deployment, version), digest.0)
    });
    Some(said.collect())
}

/// The node's identity, in every pool when this returns, and what was wrong.
pub(crate) fn identity(pools: &Pools) -> anyhow::Result<([u8; 32], PublicKey, Vec<String>)> {
    let first = &pools.first.mountpoint;
    let further: Vec<PathBuf> = pools.further.iter().map(|f| f.mountpoint.clone()).collect();
    let mut identity = identity::of_the_node(first, &further)?;
    let key = api::sign::SecretKey::from_seed(identity.seed).public();
    let roster = pools.outline.as_ref().map(|outline| outline.roster(key));
    for pool in std::iter::once(first).chain(&further) {
        let Some(roster) = &roster else { break };
        if let Err(error) = roster.write(pool) {
            let why = sys::error::chain(&error);
            identity
                .problems
                .push(format!("which disks belong together is not noted: {why}"));
        }
    }
    identity
        .problems
        .extend(identity::share(&identity.seed, &further));
    Ok((identity.seed, key, identity.problems))
}

/// The first first: its id, its disk, and where it is mounted. The one in memory has no disk.
fn used(pools: &Pools) -> Vec<(PoolId, Option<&str>, &Path)> {
    let Pool {
        id,
        disk,
        mountpoint,
        ..
    } = &pools.first;
    let first = (
        id.clone().unwrap_or_default(),
        disk.as_deref(),
        mountpoint.as_path(),
    );
    let further = pools.further.iter().map(|further| {
        let Further {
            id,
            disk,
            mountpoint,
            remark: _,
        } = further;
        (id.clone(), Some(disk.as_str()), mountpoint.as_path())
    });
    std::iter::once(first).chain(further).collect()
}

fn class_of(disk: Option<&str>, found: &[Found]) -> DiskClass {
    let of_it = found.iter().find(|(d, _)| Some(d.name.as_str()) == disk);
    of_it.map_or(DiskClass::Ssd, |(disk, _)| disk.class)
}

/// All pools, the first first.
pub(crate) fn sites(pools: &Pools, found: &[Found]) -> Vec<Site> {
    let site = |(id, disk, mountpoint): (PoolId, Option<&str>, &Path)| Site {
        id,
        class: class_of(disk, found),
        mountpoint: mountpoint.to_owned(),
    };
    used(pools).into_iter().map(site).collect()
}

/// Disks in use are of the class that they had when they joined.
pub(crate) fn remember_classes(pools: &Pools, found: &mut [Found]) {
    let Some(roster) = Roster::read(&pools.first.mountpoint) else {
        return;
    };
    for (id, name, _) in used(pools) {
        let of_it = found.iter_mut();
        let mut of_it = of_it.filter(|(disk, _)| Some(disk.name.as_str()) == name);
        if let (Some((disk, _)), Some(member)) = (of_it.next(), roster.member(&id)) {
            disk.class = member.class;
        }
    }
}

/// None of the node's pools is there, and why nothing is accepted until one is.
pub(crate) fn waits(pools: &Pools) -> Option<String> {
    let waits = !pools.first.durable && !pools.missing.is_empty();
    pools.first.remark.clone().filter(|_| waits)
}

/// Their disks, in the order of [`sites`]; where none is there, those that are waited for.
pub(crate) fn guarded(pools: &Pools, found: &[Found]) -> Vec<Guarded> {
    if !pools.first.durable {
        let waits = |serial: String| Guarded {
            serial,
            ..Guarded::default()
        };
        let known = known::read().filter(|_| !pools.missing.is_empty());
        let serials = known.map(|known| known.serials).unwrap_or_default();
        return serials.into_iter().map(waits).collect();
    }
    let guarded = |(_, disk, mountpoint): (PoolId, Option<&str>, &Path)| {
        let disk = disk?.to_owned();
        let of_it = found.iter().find(|(found, _)| found.name == disk);
        Some(Guarded {
            serial: of_it.map(|(d, _)| d.serial.clone()).unwrap_or_default(),
            mark: of_it.map(|(d, _)| Mark::of(d)).unwrap_or_default(),
            array: mirrors::array_of(mountpoint),
            mountpoint: mountpoint.to_owned(),
            disk,
        })
    };
    used(pools).into_iter().filter_map(guarded).collect()
}

/// A disk whose pool has failed in this boot.
pub(crate) fn failed(disk: &Disk, ill: Ill) -> LeftAlone {
    let Disk { name, serial, .. } = disk;
    let why = match ill {
        Ill::Fails => {
            "failed while the node ran: replace it, or start the node again to have it tried"
        }
        Ill::Hangs => {
            "does not answer: what lies on it waits until it does; look at its cable, and replace it where it stays so"
        }
    };
    LeftAlone {
        disk: name.clone(),
        why: format!("the disk {name} (serial {serial:?}) {why}"),
    }
}

/// What is wrong with pools from the start of this agent on.
pub(crate) fn say(info: &watch::Sender<NodeInfo>) {
    let pools = info.borrow().pools.clone();
    for (code, state) in [
        (Code::PoolMissing, PoolState::Missing),
        (Code::PoolFailing, PoolState::Failed),
    ] {
        let of_it = pools.iter().filter(|pool| pool.state == state);
        let said: Vec<_> = of_it.filter_map(|pool| pool.because.clone()).collect();
        if !said.is_empty() {
            troubles::say(info, code, said.join("; "));
        }
    }
}

/// Sizes as they are now; of pools that are not there they stay zero.
pub(crate) fn refresh(pools: &mut [types::node::Pool], sites: &[Site]) {
    for site in sites {
        let of_it = pools
            .iter_mut()
            .find(|pool| pool.id == site.id && pool.state != PoolState::Missing);
        if let Some(pool) = of_it {
            pool.size = machine::size_of(&site.mountpoint);
            pool.free = machine::available_in(&site.mountpoint);
        }
    }
}

/// What the API says of them, in the order of [`sites`]; missing ones come last.
pub(crate) fn report(pools: &Pools, found: &[Found]) -> Vec<types::node::Pool> {
    let pool = |(id, name, mountpoint): (PoolId, Option<&str>, &Path)| {
        let disk = found.iter().map(|(disk, _)| disk);
        let disk = disk
            .into_iter()
            .find(|disk| Some(disk.name.as_str()) == name);
        types::node::Pool {
            id,
            serial: disk.map(|disk| disk.serial.clone()).unwrap_or_default(),
            class: class_of(name, found),
            disk: name.map(str::to_owned),
            state: PoolState::InUse,
            size: machine::size_of(mountpoint),
            free: machine::available_in(mountpoint),
            because: None,
            mirror: None,
        }
    };
    let mut report: Vec<_> = match pools.first.durable {
        true => used(pools).into_iter().map(pool).collect(),
        false => Vec::new(),
    };
    report.extend(pools.missing.iter().map(|member| {
        let is_its = |left: &&LeftAlone| {
            let mut disks = found.iter().map(|(disk, _)| disk);
            disks.any(|d| d.name == left.disk && !d.serial.is_empty() && d.serial == member.serial)
        };
        let left = pools.left.iter().find(is_its);
        types::node::Pool {
            id: member.pool.clone(),
            disk: left.map(|left| left.disk.clone()),
            serial: member.serial.clone(),
            class: member.class,
            state: match left {
                Some(_) => PoolState::Failed,
                None => PoolState::Missing,
            },
            size: types::Bytes(0),
            free: types::Bytes(0),
            because: Some(left.map_or_else(|| away(member), |left| left.why.clone())),
            mirror: None,
        }
    }));
    report
}

#[cfg(test)]
mod tests {
    use storage::assemble::Trace;

    use super::*;

    #[test]
    fn an_empty_pool_holds_nothing_and_one_with_an_identity_is_somebodys() {
        let pool = tempfile::tempdir().expect("a directory");
        let empty = Inside {
            identity: Trace::Nothing,
            history: Some(History::new()),
            named: Vec::new(),
        };
        assert_eq!(inspect(pool.path(), Depth::Beside, None), empty);
        identity::keep(pool.path(), &[7; 32]).expect("kept");
        let inside = inspect(pool.path(), Depth::Alone, None);
        assert!(matches!(inside.identity, Trace::Key(_)), "{inside:?}");
    }
}
