//! Whether what a statement says of volumes is accepted.
//!
//! Owns: that content goes only where it is named for that, and that no volume shrinks.
//! Refuses: what a document alone shows to be wrong: `types::volume` has refused it.

use std::collections::BTreeSet;

use types::deployment::{Action, Deployment, Statement, Workload};
use types::status::{Refusal, RefusalCode};
use types::volume::{Origin, SNAPSHOTS_MAX, Volume};
use types::{Bytes, Digest, Name, VmId};

use super::{ImageSize, Node, mib, refuse, volume_of};
use crate::desired::{Desired, Key, Phase, Target};
use crate::placement::Place;

/// A new version against the one before.
pub(super) fn check(
    key: &Key,
    deployment: &Deployment,
    before: Option<&Target>,
    node: &Node<'_>,
) -> Result<(), Refusal> {
    let old = before.and_then(Target::deployment);
    for (name, was) in old.iter().flat_map(|old| &old.workloads) {
        let is = deployment.workloads.get(name);
        check_one(key, name, was, is, deployment)?;
    }
    let existed = |name: &Name| before.is_some_and(|target| target.volume(name).is_some());
    for (name, volume) in deployment.volumes().filter(|(name, _)| !existed(name)) {
        if let Some(origin) = &volume.from {
            check_origin(name, volume, origin, deployment, before, node)?;
        }
    }
    Ok(())
}

fn check_one(
    key: &Key,
    name: &Name,
    was: &Workload,
    is: Option<&Workload>,
    deployment: &Deployment,
) -> Result<(), Refusal> {
    let of = &key.name;
    let message = match (was, is) {
        (Workload::Volume(_), None) if !deployment.destroy.contains(name) => format!(
            "{name} of {of} is a volume: its content goes only if it is named under `destroy` too (or with --destroy {name})"
        ),
        (
            Workload::Volume(_),
            Some(Workload::Machine(_) | Workload::Network(_) | Workload::Pool(_)),
        )
        | (
            Workload::Machine(_),
            Some(Workload::Volume(_) | Workload::Network(_) | Workload::Pool(_)),
        )
        | (
            Workload::Network(_),
            Some(Workload::Machine(_) | Workload::Volume(_) | Workload::Pool(_)),
        )
        | (
            Workload::Pool(_),
            Some(Workload::Machine(_) | Workload::Volume(_) | Workload::Network(_)),
        ) => format!(
            "{name} of {of} cannot become another kind of workload: remove it in one version and add it in the next, or choose another name"
        ),
        (Workload::Volume(was), Some(Workload::Volume(is))) if is.size < was.size => format!(
            "the volume {name} of {of} has {} and cannot shrink to {}: keep its size, or make a smaller one under another name and copy what is in it",
            was.size, is.size
        ),
        (Workload::Network(was), Some(Workload::Network(is))) if is.subnet != was.subnet => {
            format!(
                "the network {name} of {of} keeps the subnet that it has: leave its `subnet` as it was, or make another network under another name"
            )
        }
        (Workload::Network(_), Some(Workload::Network(_)) | None)
        | (Workload::Pool(_), Some(Workload::Pool(_)) | None)
        | (Workload::Volume(_), Some(Workload::Volume(_)) | None)
        | (Workload::Machine(_), Some(Workload::Machine(_)) | None) => return Ok(()),
    };
    refuse(RefusalCode::Conflict, message)
}

fn check_origin(
    name: &Name,
    volume: &Volume,
    origin: &Origin,
    deployment: &Deployment,
    before: Option<&Target>,
    node: &Node<'_>,
) -> Result<(), Refusal> {
    if !node.durable {
        return refuse(RefusalCode::Volatile, no_copies());
    }
    let source = &origin.volume;
    let Some(of) = before.and_then(|target| target.volume(source)) else {
        return refuse(
            RefusalCode::NotFound,
            format!(
                "the volume {name} is to be made of {source}, which is no volume of this deployment yet: deploy {source} first"
            ),
        );
    };
    if !deployment.volumes().any(|(kept, _)| kept == source) {
        return refuse(
            RefusalCode::Conflict,
            format!(
                "the volume {name} is to be made of {source}, which this version destroys: destroy it in the next one"
            ),
        );
    }
    if let Some(snapshot) = &origin.snapshot {
        let known = before.map(|target| target.history(source));
        if !known.is_some_and(|history| history.snapshots.contains_key(snapshot)) {
            return refuse(RefusalCode::NotFound, no_snapshot(source, snapshot));
        }
    }
    if volume.size < of.size {
        return refuse(
            RefusalCode::Conflict,
            format!(
                "the volume {name} has {}, and {source}, of which it is to be made, has {}: make it as large at least",
                volume.size, of.size
            ),
        );
    }
    Ok(())
}

fn no_copies() -> String {
    "this node runs from memory, where a volume has no snapshots and no copies: give it a blank disk".to_owned()
}

fn no_snapshot(volume: &Name, snapshot: &Name) -> String {
    format!("there is no snapshot {volume}@{snapshot}: `sifr volume list` shows which there are")
}

/// What is said of a deployment beside a new version.
pub(super) fn check_action(
    statement: &Statement,
    key: &Key,
    before: &Target,
    node: &Node<'_>,
    desired: &Desired,
    size: &dyn Fn(&Digest) -> ImageSize,
) -> Result<(), Refusal> {
    match &statement.action {
        Action::Deploy(_) | Action::Stop | Action::Start | Action::Restart => Ok(()),
        Action::Delete => check_destroyed(&statement.name, before, &BTreeSet::new()),
        Action::Destroy { volumes } => check_destroyed(&statement.name, before, volumes),
        Action::Snapshot { volume, snapshot } => {
            let of = find(before, volume)?;
            if !node.durable {
                return refuse(RefusalCode::Volatile, no_copies());
            }
            let snapshots = before.history(volume).snapshots;
            if snapshots.contains_key(snapshot) {
                return refuse(
                    RefusalCode::Conflict,
                    format!(
                        "there is a snapshot {volume}@{snapshot} already: choose another name, or delete it first"
                    ),
                );
            }
            if snapshots.len() >= SNAPSHOTS_MAX {
                return refuse(
                    RefusalCode::OverCapacity,
                    format!(
                        "{volume} has {SNAPSHOTS_MAX} snapshots, which is the most: delete one first"
                    ),
                );
            }
            check_room(key, (volume, of.size), node, desired, size)
        }
        Action::DropSnapshot { volume, snapshot } => {
            find(before, volume)?;
            find_snapshot(before, volume, snapshot)
        }
        Action::Restore { volume, snapshot } => {
            find(before, volume)?;
            find_snapshot(before, volume, snapshot)?;
            match before.phase {
                Phase::Stopped(_) => Ok(()),
                Phase::Running(ref deployment) if !has_user(deployment, volume) => Ok(()),
                Phase::Running(_) | Phase::Deleted => refuse(
                    RefusalCode::Conflict,
                    format!(
                        "a machine that mounts {volume} is to run: `sifr stop {}` first, then restore, then start it",
                        statement.name
                    ),
                ),
            }
        }
    }
}

fn has_user(deployment: &Deployment, volume: &Name) -> bool {
    let mut mounts = deployment.machines().flat_map(|(_, m)| &m.mounts);
    mounts.any(|mount| mount.volume == *volume)
}

/// A deletion names exactly what goes with its content.
fn check_destroyed(name: &Name, before: &Target, named: &BTreeSet<Name>) -> Result<(), Refusal> {
    let deployment = before.deployment().into_iter();
    let there: BTreeSet<Name> = deployment
        .flat_map(Deployment::volumes)
        .map(|(volume, _)| volume.clone())
        .collect();
    if there == *named {
        return Ok(());
    }
    let list = |names: &BTreeSet<Name>| {
        let names: Vec<&str> = names.iter().map(Name::as_str).collect();
        names.join(", ")
    };
    let message = match (named.is_empty(), there.is_empty()) {
        (true, _) => format!(
            "{name} has volumes ({}), whose content would be lost: `sifr delete {name} --with-volumes` deletes them too",
            list(&there)
        ),
        (false, true) => format!(
            "{name} has no volumes, and {} are to go with it: delete it without",
            list(named)
        ),
        (false, false) => format!(
            "{name} has the volumes {}, and {} are to go with it: say it again with those that there are",
            list(&there),
            list(named)
        ),
    };
    refuse(RefusalCode::Conflict, message)
}

fn find<'t>(before: &'t Target, volume: &Name) -> Result<&'t Volume, Refusal> {
    before.volume(volume).ok_or_else(|| Refusal {
        code: RefusalCode::NotFound,
        message: format!("there is no volume {volume} in this deployment: `sifr volume list` shows which there are"),
    })
}

fn find_snapshot(before: &Target, volume: &Name, snapshot: &Name) -> Result<(), Refusal> {
    if before.history(volume).snapshots.contains_key(snapshot) {
        return Ok(());
    }
    refuse(RefusalCode::NotFound, no_snapshot(volume, snapshot))
}

/// A snapshot may come to take as much as its volume, and lies on the same pool.
fn check_room(
    key: &Key,
    (volume, size): (&Name, Bytes),
    node: &Node<'_>,
    desired: &Desired,
    images: &dyn Fn(&Digest) -> ImageSize,
) -> Result<(), Refusal> {
    let free = match node.place_of(&VmId::new(&key.signer, &key.name, volume)) {
        Place::Here(at) => {
            let left = node.left(desired, None, images)[at].max(0);
            let left = u64::try_from(left).unwrap_or(u64::MAX);
            left.min(node.pools[at].room.0)
        }
        // Its pool is looked at when it is there.
        Place::Away | Place::Nowhere => {
            return refuse(
                RefusalCode::Conflict,
                format!("the disk of {volume} is not there: put it back, then take the snapshot"),
            );
        }
    };
    let wanted = volume_of(size, 0).0;
    if wanted <= free {
        return Ok(());
    }
    refuse(
        RefusalCode::OverCapacity,
        format!(
            "a snapshot is promised as much as its volume, {} of disk, and {} are free: delete another snapshot of {}, or another deployment",
            mib(wanted),
            mib(free),
            key.name
        ),
    )
}

#[cfg(test)]
#[path = "volumes_tests.rs"]
mod tests;
