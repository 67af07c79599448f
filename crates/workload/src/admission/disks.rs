//! Whether a deployment fits the node's pools.
//!
//! Owns: what is left of each pool, and that every layer and volume has its place on one of them before it is promised.
//! Refuses: the choice itself ([`crate::placement`] has it). Images lie on the first pool.

use std::collections::BTreeMap;

use types::deployment::{Deployment, Workload};
use types::status::{Refusal, RefusalCode};
use types::{Bytes, Digest, Name, VmId};

use super::{ImageSize, Node, Sum, disk_of, mib, refuse, volume_of, whole};
use crate::desired::{Desired, Key, Target};
use crate::placement::{self, Item, Left, Misfit, Place, Shelf};

/// Where each of a deployment's layers and volumes is to lie.
pub type Placement = BTreeMap<VmId, usize>;

impl Node<'_> {
    /// What is known of where something lies. On a node with one pool that is where.
    pub(super) fn place_of(&self, id: &VmId) -> Place {
        let known = self.places.get(id).copied();
        match known {
            None | Some(Place::Nowhere) if self.pools.len() == 1 => Place::Here(0),
            None => Place::Nowhere,
            Some(place) => place,
        }
    }

    fn sum(&self, of: impl Fn(&Shelf) -> Bytes) -> u64 {
        let all = self.pools.iter().map(|shelf| of(shelf).0);
        all.fold(0, u64::saturating_add)
    }

    pub(super) fn left(
        &self,
        desired: &Desired,
        except: Option<&Key>,
        size: &dyn Fn(&Digest) -> ImageSize,
    ) -> Left {
        left(&self.pools, |id| self.place_of(id), desired, except, size)
    }
}

/// What each pool has for deployments beside those that are promised; `except` is what is about to be replaced.
pub fn left(
    pools: &[Shelf],
    place_of: impl Fn(&VmId) -> Place,
    desired: &Desired,
    except: Option<&Key>,
    size: &dyn Fn(&Digest) -> ImageSize,
) -> Left {
    let mut left: Left = pools.iter().map(|s| i128::from(s.capacity.0)).collect();
    let machines = desired
        .machines()
        .filter(|(_, key, ..)| Some(*key) != except);
    let machines = machines.map(|(vm, .., machine)| (vm, disk_of(machine.disk)));
    let volumes = desired.volumes().filter(|(_, of)| Some(of.key) != except);
    let volumes = volumes.map(|(id, of)| {
        let snapshots = of.target.history(of.workload).snapshots.len();
        (id, volume_of(of.volume.size, snapshots))
    });
    for (id, bytes) in machines.chain(volumes) {
        if let Place::Here(at) = place_of(&id) {
            left[at] -= i128::from(bytes.0);
        }
    }
    if let Some(first) = left.first_mut() {
        let images = Sum::promised(desired, except).images;
        let images = images.iter().map(|flist| i128::from(whole(size(flist)).0));
        *first -= images.sum::<i128>();
    }
    left
}

/// The layers and volumes of a deployment.
pub fn items(
    key: &Key,
    deployment: &Deployment,
    before: Option<&Target>,
    place_of: impl Fn(&VmId) -> Place,
) -> Vec<Item> {
    let id = |name: &Name| VmId::new(&key.signer, &key.name, name);
    let item = |(name, workload): (&Name, &Workload)| {
        let (bytes, class, from) = match workload {
            Workload::Network(_) | Workload::Pool(_) => return None,
            Workload::Machine(machine) => (disk_of(machine.disk), machine.class, None),
            Workload::Volume(volume) => {
                let snapshots = before.map_or(0, |target| target.history(name).snapshots.len());
                let from = volume.from.as_ref().map(|origin| id(&origin.volume));
                (volume_of(volume.size, snapshots), volume.class, from)
            }
        };
        let id = id(name);
        Some(Item {
            place: place_of(&id),
            id,
            bytes,
            class,
            beside: from,
        })
    };
    deployment.workloads.iter().filter_map(item).collect()
}

/// What is checked, and what it takes of the first pool for images.
struct Question<'a> {
    key: &'a Key,
    node: &'a Node<'a>,
    items: &'a [Item],
    deployment: &'a Deployment,
}

/// Capacity is what the pools have for deployments; room is what of that nothing else lies in.
pub(super) fn check(
    key: &Key,
    deployment: &Deployment,
    node: &Node<'_>,
    desired: &Desired,
    size: &dyn Fn(&Digest) -> ImageSize,
) -> Result<Placement, Refusal> {
    let before = desired.get(key);
    let others = Sum::promised(desired, Some(key));
    let wanted = Sum::of(Some(deployment), before);
    // One that is new has a place only where there is one pool.
    let existed = |name: &Name| {
        let old = before.and_then(Target::deployment);
        old.is_some_and(|old| old.workloads.contains_key(name))
    };
    let new = |id: &VmId| {
        let mut names = deployment.workloads.keys().filter(|name| !existed(name));
        names.any(|name| VmId::new(&key.signer, &key.name, name) == *id)
    };
    let items = items(key, deployment, before, |id| {
        if new(id) {
            Place::Nowhere
        } else {
            node.place_of(id)
        }
    });
    let question = Question {
        key,
        node,
        items: &items,
        deployment,
    };

    let mut capacity = node.left(desired, Some(key), size);
    let free = capacity.iter().fold(0, |sum, left| sum + (*left).max(0));
    let all = |flist: &Digest| whole(size(flist));
    take_images(&mut capacity, wanted.images_beyond(&others, all));
    question.place(&mut capacity.clone()).map_err(|misfit| {
        let (needed, free) = (
            wanted.disk(&others, all),
            u64::try_from(free).unwrap_or(u64::MAX),
        );
        question.refuse_capacity(needed, free, misfit)
    })?;

    // What is stored already takes no more room.
    let more = |flist: &Digest| {
        let size = size(flist);
        Bytes(size.missing.0.saturating_add(size.disk.0))
    };
    let was = Sum::of(before.and_then(Target::deployment), before);
    let mut room = room_with(key, before, node);
    take_images(&mut room, wanted.images_beyond(&others, more));
    let disk = |flist: &Digest| size(flist).disk;
    give_images(&mut room, was.images_beyond(&others, disk));
    let both = capacity.iter().zip(&room).map(|(a, b)| *a.min(b));
    question.place(&mut both.collect()).map_err(|misfit| {
        let promised = was.disk(&others, disk);
        let needed = wanted.disk(&others, more).saturating_sub(promised);
        question.refuse_room(needed, misfit)
    })
}

/// What is free just now, with what the version before was promised: that is free for this.
fn room_with(key: &Key, before: Option<&Target>, node: &Node<'_>) -> Left {
    let mut room: Left = node.pools.iter().map(|s| i128::from(s.room.0)).collect();
    let old = before.and_then(Target::deployment);
    let old = old.map_or_else(Vec::new, |old| {
        items(key, old, before, |id| node.place_of(id))
    });
    for item in old {
        if let Place::Here(at) = item.place {
            room[at] += i128::from(item.bytes.0);
        }
    }
    room
}

fn take_images(left: &mut Left, bytes: u64) {
    if let Some(first) = left.first_mut() {
        *first -= i128::from(bytes);
    }
}

fn give_images(left: &mut Left, bytes: u64) {
    if let Some(first) = left.first_mut() {
        *first += i128::from(bytes);
    }
}

impl Question<'_> {
    /// `None`: its images alone are too much for the first pool.
    fn place(&self, left: &mut Left) -> Result<Placement, Option<Misfit>> {
        if left.first().is_some_and(|first| *first < 0) {
            return Err(None);
        }
        placement::place(&self.node.pools, left, self.items).map_err(Some)
    }

    /// With several pools the sum does not say what is wrong.
    fn of_one(&self, misfit: Option<Misfit>) -> Option<String> {
        let misfit = misfit.filter(|_| self.node.pools.len() > 1)?;
        let mut names = self.deployment.workloads.keys();
        let id = |name: &Name| VmId::new(&self.key.signer, &self.key.name, name);
        let name = names.find(|name| id(name) == misfit.id)?;
        Some(format!("the disk of {name}: {misfit}"))
    }

    fn refuse_capacity(&self, needed: u64, free: u64, misfit: Option<Misfit>) -> Refusal {
        over(self.of_one(misfit).unwrap_or_else(|| format!(
            "the deployment needs {} of disk (images included), {} is free: make it smaller or delete another",
            mib(needed),
            mib(free)
        )))
    }

    fn refuse_room(&self, needed: u64, misfit: Option<Misfit>) -> Refusal {
        let room = self.node.sum(|shelf| shelf.room);
        over(self.of_one(misfit).unwrap_or_else(|| format!(
            "the deployment needs {} more of the pool, where {} are free just now: delete deployments that are not needed, or wait until pushed content that nobody deployed has gone",
            mib(needed),
            mib(room)
        )))
    }
}

fn over(message: String) -> Refusal {
    Refusal {
        code: RefusalCode::OverCapacity,
        message,
    }
}

/// What lies somewhere stays there: its class cannot change.
pub(super) fn check_classes(
    key: &Key,
    deployment: &Deployment,
    before: Option<&Target>,
) -> Result<(), Refusal> {
    let old = before.and_then(Target::deployment);
    for (name, was) in old.iter().flat_map(|old| &old.workloads) {
        let (was, is) = match (was, deployment.workloads.get(name)) {
            (Workload::Machine(was), Some(Workload::Machine(is))) => (was.class, is.class),
            (Workload::Volume(was), Some(Workload::Volume(is))) => (was.class, is.class),
            (
                Workload::Machine(_)
                | Workload::Volume(_)
                | Workload::Network(_)
                | Workload::Pool(_),
                _,
            ) => continue,
        };
        if was != is {
            let said = |class: Option<types::node::DiskClass>| {
                class.map_or("no class".to_owned(), |class| class.to_string())
            };
            return refuse(
                RefusalCode::Conflict,
                format!(
                    "{name} of {} was deployed with {}, and its disk stays where it is: leave its class, or make another under another name",
                    key.name,
                    said(was)
                ),
            );
        }
    }
    Ok(())
}

#[cfg(test)]
#[path = "disks_tests.rs"]
mod tests;
