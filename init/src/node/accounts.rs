//! What deployments take of the pool, and may come to take.
//!
//! Owns: the sizes of their images, and telling the chunk daemon what is promised ([`crate::room`]).
//! Refuses: judging whether it is too much (`workload::admission` does).

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use flist::cache::Cache;
use flist::format::Flist;
use types::{Bytes, Digest, VolumeId};
use workload::admission::{Image, ImagePresence, ImageSize, disk_of, volume_of};
use workload::desired::{Desired, Wanted};

use super::volumes::Volumes;
use crate::room::{Promises, Room};

pub(crate) struct Accounts {
    cache: Cache,
    room: Room,
    volumes: Volumes,
    /// Of the images that deployments name; one whose flist is not here yet has none.
    sizes: BTreeMap<Digest, ImageSize>,
    promised: Option<Promises>,
}

impl Accounts {
    pub(crate) fn new(cache: Cache, room: Room, volumes: Volumes) -> Self {
        Self {
            cache,
            room,
            volumes,
            sizes: BTreeMap::new(),
            promised: None,
        }
    }

    /// To be called whenever deployments or their images may have changed.
    pub(crate) fn renew(&mut self, desired: &Desired) {
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
        let machines = desired.machines();
        let promises = Promises {
            machines: machines
                .map(|(vm, .., machine)| (vm, disk_of(machine.disk)))
                .collect(),
            volumes: desired
                .volumes()
                .map(|(id, of)| self.promise(id, &of))
                .collect(),
            images: self.sizes.iter().map(|(f, size)| (*f, size.disk)).collect(),
        };
        if self.promised.as_ref() == Some(&promises) {
            return;
        }
        match self.room.promise(&promises) {
            Ok(()) => self.promised = Some(promises),
            // Said again with the next change.
            Err(error) => log::error!("{}", sys::error::chain(&error)),
        }
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

    /// What is free and promised to nobody. Nothing, where that cannot be told.
    pub(crate) fn left(&self) -> Bytes {
        let left = self.room.left();
        Bytes(left.unwrap_or_else(|error| {
            log::error!("{}", sys::error::chain(&error));
            0
        }))
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
