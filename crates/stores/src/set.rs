//! The stores of an image: copies, parts, or both.
//!
//! Owns: which stores have a chunk, in which order they are asked, and that only bytes with the right hash come out.
//! Copies share the reads: where a chunk is asked for first is in its hash. One that fails is passed over.
//! Refuses: endless patience.

use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::sync::Arc;
use std::time::Duration;

use types::Digest;
use types::stores::{STORES_MAX, Shard};

use crate::transfer::Piece;
use crate::{Object, Store, StoreError, roll};

/// How often all stores are asked, where time may help.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    rounds: u32,
    /// Before the second round; doubled each time, and each time up to half more or less.
    pause: Duration,
}

impl Patience {
    /// Who asks has retries of their own.
    pub const ONCE: Self = Self {
        rounds: 1,
        pause: Duration::ZERO,
    };
    /// For a person who waits: a server that restarts is back within these.
    pub const SOME: Self = Self {
        rounds: 6,
        pause: Duration::from_millis(250),
    };

    /// Before the round after this one, counted from 0; `None`: enough.
    pub(crate) fn pause(self, round: u32) -> Option<Duration> {
        (round + 1 < self.rounds).then(|| jittered(self.pause * (1 << round.min(16))))
    }
}

/// Half to one and a half of it, so that those who failed together do not come back together.
fn jittered(pause: Duration) -> Duration {
    let random = RandomState::new().build_hasher().finish();
    let thousandths = u32::try_from(random % 1001).unwrap_or(0);
    pause / 2 + pause * thousandths / 1000
}

#[derive(Debug)]
pub struct Set {
    routes: Vec<(Shard, Arc<Store>)>,
}

impl Set {
    pub(crate) fn new(routes: Vec<(Shard, Arc<Store>)>) -> Result<Self, StoreError> {
        if !(1..=STORES_MAX).contains(&routes.len()) {
            return Err(StoreError::Count(routes.len()));
        }
        Ok(Self { routes })
    }

    pub fn stores(&self) -> impl Iterator<Item = &Arc<Store>> {
        self.routes.iter().map(|(_, store)| store)
    }

    /// Those that should have an object: all of them an flist, those of its range a chunk.
    pub fn holders(&self, object: &Object) -> impl Iterator<Item = &Arc<Store>> + use<'_> {
        let object = *object;
        let holds = move |shard: &Shard| match object {
            Object::Flist(_) | Object::Roll(_) | Object::Trace(_) => true,
            Object::Chunk(stored) => shard.holds(stored.0[0]),
        };
        let holding = self.routes.iter().filter(move |(shard, _)| holds(shard));
        holding.map(|(_, store)| store)
    }

    /// The same in the order in which they are asked.
    pub fn order(&self, object: &Object) -> Vec<Arc<Store>> {
        let mut stores: Vec<_> = self.holders(object).cloned().collect();
        let (Object::Flist(digest)
        | Object::Roll(digest)
        | Object::Trace(digest)
        | Object::Chunk(digest)) = object;
        if !stores.is_empty() {
            // Not the first byte: that decides about ranges.
            let first = usize::from(digest.0[31]) % stores.len();
            stores.rotate_left(first);
        }
        let (well, ailing): (Vec<_>, Vec<_>) = stores.into_iter().partition(|s| s.is_well());
        [well, ailing].concat()
    }

    /// Whether other images' stores are no use to this one: its chunks are found by way of its flist.
    pub fn goes_by_flist(&self) -> bool {
        self.stores().any(|store| store.goes_by_flist())
    }

    /// The stored bytes of a chunk of `flist`: as many as there should be, with the hash there should be.
    pub async fn chunk(
        &self,
        flist: &Digest,
        piece: &Piece,
        patience: Patience,
    ) -> Result<Vec<u8>, StoreError> {
        let object = Object::Chunk(piece.name);
        let right = |bytes: &[u8]| {
            bytes.len() as u64 == u64::from(piece.bytes) && is_named(bytes, &piece.name)
        };
        self.read(flist, &object, u64::from(piece.bytes), &right, patience)
            .await
    }

    /// An flist of at most `limit` bytes that `right` says is the one.
    pub async fn flist(
        &self,
        flist: &Digest,
        limit: u64,
        right: &(dyn Fn(&[u8]) -> bool + Sync),
        patience: Patience,
    ) -> Result<Vec<u8>, StoreError> {
        self.read(flist, &Object::Flist(*flist), limit, right, patience)
            .await
    }

    /// The chunks of an encrypted image, from whoever has their list; nothing vouches for it.
    pub async fn roll(&self, flist: &Digest, patience: Patience) -> Result<Vec<Piece>, StoreError> {
        let object = Object::Roll(*flist);
        let right = |bytes: &[u8]| roll::decode(bytes, flist).is_ok();
        let bytes = self
            .read(flist, &object, roll::BYTES_MAX, &right, patience)
            .await?;
        Ok(roll::decode(&bytes, flist).expect("it was just read"))
    }

    /// A trace of at most `limit` bytes, from whoever has one; nothing vouches for it.
    pub async fn trace(&self, flist: &Digest, limit: u64) -> Result<Vec<u8>, StoreError> {
        let object = Object::Trace(*flist);
        self.read(flist, &object, limit, &|_| true, Patience::ONCE)
            .await
    }

    async fn read(
        &self,
        flist: &Digest,
        object: &Object,
        limit: u64,
        right: &(dyn Fn(&[u8]) -> bool + Sync),
        patience: Patience,
    ) -> Result<Vec<u8>, StoreError> {
        let mut round = 0;
        loop {
            let mut worst = StoreError::NoShard(object.to_string());
            for store in self.order(object) {
                let read = read_one(&store, flist, object, limit, right).await;
                store.learn(&read);
                match read {
                    Ok(bytes) => return Ok(bytes),
                    Err(error) => worst = worse(worst, error),
                }
            }
            let again = worst.is_transient() || matches!(worst, StoreError::Wrong { .. });
            match patience.pause(round).filter(|_| again) {
                Some(pause) => tokio::time::sleep(pause).await,
                None => return Err(worst),
            }
            round += 1;
        }
    }
}

/// Whether bytes have the hash that is their name.
pub(crate) fn is_named(bytes: &[u8], name: &Digest) -> bool {
    blake3::hash(bytes) == name.0
}

async fn read_one(
    store: &Store,
    flist: &Digest,
    object: &Object,
    limit: u64,
    right: &(dyn Fn(&[u8]) -> bool + Sync),
) -> Result<Vec<u8>, StoreError> {
    let bytes = store.whole(flist, object, limit).await?;
    right(&bytes)
        .then_some(bytes)
        .ok_or_else(|| StoreError::Wrong {
            store: store.name().to_owned(),
            object: object.to_string(),
        })
}

/// What is said in the end: while one store may come back, there is hope; else who has something else says more than
/// who has nothing.
fn worse(sofar: StoreError, next: StoreError) -> StoreError {
    let rank = |error: &StoreError| match error {
        error if error.is_transient() => 3,
        StoreError::Wrong { .. } | StoreError::Large { .. } => 2,
        StoreError::NoShard(_) => 0,
        _ => 1,
    };
    if rank(&next) > rank(&sofar) {
        next
    } else {
        sofar
    }
}

#[cfg(test)]
#[path = "set_tests.rs"]
mod tests;
