//! What deployments take of the pools, and may come to take, and on which pool.
//!
//! Owns: the sizes of their images, what is decided of where they lie, and telling the chunk daemon what is promised
//! ([`crate::room`]).
//! Refuses: judging whether it is too much (`workload::admission` does) and choosing a pool (`workload::placement` does).
//!
//! What a statement was admitted with is where it goes. After a restart what lies somewhere stays there; the little that
//! was acknowledged and is not made yet is placed again.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use flist::cache::Cache;
use flist::format::Flist;
use tokio::sync::watch;
use types::node::NodeInfo;
use types::{Bytes, Digest, VmId, VolumeId};
use workload::admission::{self, Image, ImagePresence, ImageSize, Placement, disk_of, volume_of};
use workload::desired::{Desired, Wanted};
use workload::placement::{self, Item, Left, Place, Shelf};

use super::context::tenant_disk;
use super::host::Pools;
use super::machine;
use super::machines::{Machines, Site};
use super::smart;
use super::volumes::Volumes;
use crate::room::{Promises, Room};

/// A pool with what is promised of it.
struct Account {
    site: Site,
    room: Room,
    promised: Option<Promises>,
}

pub(crate) struct Accounts {
    cache: Cache,
    /// The first first: images lie there.
    pools: Vec<Account>,
    machines: Machines,
    volumes: Volumes,
    /// Which disks fail.
    info: watch::Receiver<NodeInfo>,
    /// Of the images that deployments name; one whose flist is not here yet has none.
    sizes: BTreeMap<Digest, ImageSize>,
    /// What is decided and not made yet, or why it could not be decided.
    decided: Pools,
    /// Of all that should exist.
    places: BTreeMap<VmId, Place>,
}

impl Accounts {
    /// `first`: the room of the first pool.
    pub(crate) fn new(
        cache: Cache,
        first: &Room,
        sites: &[Site],
        machines: Machines,
        volumes: Volumes,
        info: watch::Receiver<NodeInfo>,
    ) -> Self {
        let account = |(at, site): (usize, &Site)| Account {
            site: site.clone(),
            room: match at {
                0 => first.clone(),
                _ => Room::of_a_further(&site.mountpoint, &site.id),
            },
            promised: None,
        };
        Self {
            cache,
            pools: sites.iter().enumerate().map(account).collect(),
            machines,
            volumes,
            info,
            sizes: BTreeMap::new(),
            decided: Pools::new(),
            places: BTreeMap::new(),
        }
    }

    /// Where what was admitted is to lie.
    pub(crate) fn assign(&mut self, placement: &Placement) {
        let new = placement.iter().map(|(id, at)| (id.clone(), Ok(*at)));
        self.decided.extend(new);
    }

    /// To be called whenever deployments or their images may have changed.
    pub(crate) fn renew(&mut self, desired: &Desired) {
        self.measure_named(desired);
        self.locate(desired);
        self.promise_all(desired);
        if self.place_rest(desired) {
            self.promise_all(desired);
        }
    }

    fn measure_named(&mut self, desired: &Desired) {
        let named: BTreeSet<Digest> = desired
            .machines()
            .map(|(.., machine)| machine.image.flist)
            .collect();
        self.sizes.retain(|flist, _| named.contains(flist));
        for flist in named {
            if !self.sizes.contains_key(&flist)
                && let Ok((read, _)) = self.cache.flist(&flist)
            {
                self.sizes.insert(flist, self.measure(&read));
            }
        }
    }

    fn locate(&mut self, desired: &Desired) {
        let machines = desired.machines().map(|(vm, ..)| {
            let place = self.machines.place_of(&vm);
            (vm, place)
        });
        let volumes = desired.volumes().map(|(id, _)| {
            let place = self.volumes.place_of(&id);
            (id, place)
        });
        let found: BTreeMap<VmId, Place> = machines.chain(volumes).collect();
        self.decided
            .retain(|id, decided| match (found.get(id), &decided) {
                // It is made, or nobody wants it any more.
                (None, _) => false,
                (Some(Place::Here(at)), Ok(decided)) => at != decided,
                (Some(Place::Here(_)), Err(_)) => false,
                (Some(Place::Away | Place::Nowhere), _) => true,
            });
        let one = self.pools.len() == 1;
        let place = |(id, place): (VmId, Place)| {
            let place = match (self.decided.get(&id), place) {
                (Some(Ok(at)), Place::Here(_) | Place::Nowhere) => Place::Here(*at),
                (_, Place::Nowhere) if one => Place::Here(0),
                (_, place) => place,
            };
            (id, place)
        };
        self.places = found.into_iter().map(place).collect();
    }

    fn promise_all(&mut self, desired: &Desired) {
        for at in 0..self.pools.len() {
            let promises = self.promises(desired, at);
            let account = &mut self.pools[at];
            if account.promised.as_ref() == Some(&promises) {
                continue;
            }
            match account.room.promise(&promises) {
                Ok(()) => account.promised = Some(promises),
                // Said again with the next change.
                Err(error) => log::error!("{}", sys::error::chain(&error)),
            }
        }
    }

    fn promises(&self, desired: &Desired, at: usize) -> Promises {
        let here = |id: &VmId| self.places.get(id) == Some(&Place::Here(at));
        let machines = desired.machines().filter(|(vm, ..)| here(vm));
        let volumes = desired.volumes().filter(|(id, _)| here(id));
        let images = self.sizes.iter().filter(|_| at == 0);
        Promises {
            machines: machines
                .map(|(vm, .., machine)| (vm, disk_of(machine.disk)))
                .collect(),
            volumes: volumes.map(|(id, of)| self.promise(id, &of)).collect(),
            images: images.map(|(f, size)| (*f, size.disk)).collect(),
        }
    }

    /// What an agent before this one has promised and not made. Whether anything was placed.
    fn place_rest(&mut self, desired: &Desired) -> bool {
        if !self.places.values().any(|place| *place == Place::Nowhere) {
            return false;
        }
        let shelves = self.shelves();
        let place_of = |id: &VmId| self.places.get(id).copied().unwrap_or(Place::Nowhere);
        let size = |flist: &Digest| self.size(flist);
        let capacity = admission::left(&shelves, place_of, desired, None, &size);
        let rooms = shelves.iter().map(|shelf| i128::from(shelf.room.0));
        let mut left: Left = capacity
            .into_iter()
            .zip(rooms)
            .map(|(a, b)| a.min(b))
            .collect();
        let mut new = Pools::new();
        for (key, target) in desired.iter() {
            let Some(deployment) = target.deployment() else {
                continue;
            };
            let items = admission::items(key, deployment, Some(target), place_of);
            let rest = items.iter().filter(|item| item.place == Place::Nowhere);
            for item in rest {
                // Its source has taken its own room.
                let source = items.iter().filter(|i| item.beside.as_ref() == Some(&i.id));
                let source = source.map(|source| Item {
                    bytes: Bytes(0),
                    ..source.clone()
                });
                let ask: Vec<Item> = source.chain([item.clone()]).collect();
                let decided = match placement::place(&shelves, &mut left, &ask) {
                    Ok(placed) => placed.get(&item.id).copied().map(Ok),
                    Err(misfit) => Some(Err(format!("it has no room: {misfit}"))),
                };
                new.extend(decided.map(|decided| (item.id.clone(), decided)));
            }
        }
        let placed = new
            .iter()
            .filter_map(|(id, at)| Some((id.clone(), *at.as_ref().ok()?)));
        let placed: Vec<(VmId, Place)> = placed.map(|(id, at)| (id, Place::Here(at))).collect();
        let any = !placed.is_empty();
        self.places.extend(placed);
        self.decided.extend(new);
        any
    }

    /// Where each layer and volume is made, if it is made now.
    pub(crate) fn decisions(&self) -> Pools {
        let decided = self.decided.iter().map(|(id, at)| (id.clone(), at.clone()));
        let lies = self.places.iter().filter_map(|(id, place)| match place {
            Place::Here(at) => Some((id.clone(), Ok(*at))),
            Place::Away | Place::Nowhere => None,
        });
        decided.chain(lies).collect()
    }

    pub(crate) fn places(&self) -> &BTreeMap<VmId, Place> {
        &self.places
    }

    /// What a copy shares with its source is counted as taken by both: that much more is promised.
    fn promise(&self, id: VolumeId, of: &Wanted<'_>) -> (VolumeId, Bytes) {
        let snapshots = of.target.history(of.workload).snapshots.len();
        let own = volume_of(of.volume.size, snapshots).0;
        let shared = match of.volume.from {
            Some(_) => self.volumes.shared(&id).0,
            None => 0,
        };
        (id, Bytes(own.saturating_add(shared)))
    }

    /// Whether an image that a deployment names could not be measured yet.
    pub(crate) fn lacks(&self, desired: &Desired) -> bool {
        let mut named = desired.machines().map(|(.., machine)| machine.image.flist);
        named.any(|flist| !self.sizes.contains_key(&flist))
    }

    pub(crate) fn size(&self, flist: &Digest) -> ImageSize {
        self.sizes.get(flist).copied().unwrap_or_default()
    }

    /// Pools on disks that fail, by their ids, with those disks for people.
    fn failing(&self) -> BTreeMap<String, String> {
        let info = self.info.borrow();
        smart::failing_pools(&info.pools, &info.health)
    }

    /// What lies on a disk that fails: of these those, each with that disk for people.
    pub(crate) fn on_failing<'a>(
        &'a self,
        all: impl Iterator<Item = &'a VmId>,
    ) -> BTreeMap<&'a VmId, String> {
        let failing = self.failing();
        let disk = |id: &VmId| match self.places.get(id)? {
            Place::Here(at) => failing.get(&self.pools.get(*at)?.site.id).cloned(),
            Place::Away | Place::Nowhere => None,
        };
        all.filter_map(|id| Some((id, disk(id)?))).collect()
    }

    /// All pools, each with what of it is free and promised to nobody. Nothing, where that cannot be told.
    pub(crate) fn shelves(&self) -> Vec<Shelf> {
        let failing = self.failing();
        let shelf = |account: &Account| Shelf {
            pool: account.site.id.clone(),
            failing: failing.contains_key(&account.site.id),
            class: account.site.class,
            capacity: tenant_disk(machine::size_of(&account.site.mountpoint)),
            room: Bytes(account.room.left().unwrap_or_else(|error| {
                log::error!("{}", sys::error::chain(&error));
                0
            })),
        };
        self.pools.iter().map(shelf).collect()
    }

    /// Images as admission asks for them: those in `new` are looked at, each once, the others are known.
    pub(crate) fn images(&self, new: BTreeSet<Digest>) -> impl Fn(&Digest) -> Image {
        let seen = RefCell::new(BTreeMap::new());
        move |flist| {
            if new.contains(flist) {
                let mut seen = seen.borrow_mut();
                return *seen.entry(*flist).or_insert_with(|| self.look(flist));
            }
            Image {
                presence: ImagePresence::Complete,
                size: self.size(flist),
            }
        }
    }

    /// How much of an image is here, by the cache's own count.
    fn look(&self, flist: &Digest) -> Image {
        let Ok((read, _)) = self.cache.flist(flist) else {
            return Image {
                presence: ImagePresence::Absent,
                size: ImageSize::default(),
            };
        };
        let presence = match self.cache.missing(&read).len() {
            0 => ImagePresence::Complete,
            missing => ImagePresence::Missing(u64::try_from(missing).unwrap_or(u64::MAX)),
        };
        let size = self.measure(&read);
        Image { presence, size }
    }

    fn measure(&self, flist: &Flist) -> ImageSize {
        let footprint = self.cache.footprint(flist);
        ImageSize {
            stored: Bytes(footprint.stored),
            missing: Bytes(footprint.missing),
            disk: Bytes(footprint.placed),
        }
    }
}
