//! Moving images between stores.
//!
//! ```text
//! for each chunk: who lacks it ─► read it once, verified ─► all that lack it;  then the flist, everywhere
//! ```
//!
//! Owns: that order: an flist that is there has all its chunks, whenever a push was interrupted, however many push at
//! once. What is there already is not sent, and is made young, so that no sweep takes it for forgotten.
//! Refuses: to read what is in an flist.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use types::Digest;

use crate::oci::Descriptor;
use crate::set::{Patience, is_named};
use crate::store::Placed;
use crate::{Object, Set, Store, StoreError, roll};

/// Chunks on their way at once: each has a MiB at most, and servers far away answer late.
const AT_ONCE: usize = 8;
/// What is older is made young again where it is needed. A push between two sweeps' graces takes less.
pub const RENEW_AFTER: Duration = Duration::from_secs(3600);
/// Most of a trace that is kept in a registry when its manifest is written anew: a few KiB is what one has.
const TRACE_BYTES_MAX: u64 = 64 << 10;

/// A chunk by its stored bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Piece {
    pub name: Digest,
    pub bytes: u32,
}

/// What there is to move.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// Of its flist.
    pub digest: Digest,
    /// What makes it known in a store: the flist, or the list of its chunks where that has their keys.
    pub entry: Object,
    /// The whole of that.
    pub file: Vec<u8>,
    /// Each once.
    pub chunks: Vec<Piece>,
    /// What its first run touched, where that is known. Checked by who read it.
    pub trace: Option<Vec<u8>>,
}

impl Image {
    /// One whose flist a store may have.
    pub fn open(digest: Digest, file: Vec<u8>, chunks: Vec<Piece>) -> Self {
        Self {
            digest,
            entry: Object::Flist(digest),
            file,
            chunks,
            trace: None,
        }
    }

    /// One whose flist no store is to have: it holds the keys.
    pub fn encrypted(digest: Digest, chunks: Vec<Piece>) -> Self {
        Self {
            digest,
            entry: Object::Roll(digest),
            file: roll::encode(&digest, &chunks),
            chunks,
            trace: None,
        }
    }

    pub fn stored_bytes(&self) -> u64 {
        self.chunks.iter().map(|piece| u64::from(piece.bytes)).sum()
    }
}

/// What was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Moved {
    /// To all stores together.
    pub sent_chunks: u64,
    pub sent_bytes: u64,
    /// Which were there.
    pub kept_chunks: u64,
    /// Its trace went with it.
    pub has_trace: bool,
}

#[derive(Default)]
struct Tally {
    sent_chunks: AtomicU64,
    sent_bytes: AtomicU64,
    kept_chunks: AtomicU64,
}

impl Tally {
    fn count(&self, piece: &Piece, sent: bool) {
        if sent {
            self.sent_chunks.fetch_add(1, Ordering::Relaxed);
            let bytes = u64::from(piece.bytes);
            self.sent_bytes.fetch_add(bytes, Ordering::Relaxed);
        } else {
            self.kept_chunks.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Chunks that manifests of registries will name, by store.
type Named = Mutex<BTreeMap<String, BTreeMap<Digest, Descriptor>>>;

struct Move<'a> {
    image: &'a Image,
    from: &'a Set,
    to: &'a Set,
    tally: Tally,
    named: Named,
    /// What was there when it was looked for, and old.
    renewed: Mutex<Vec<(Arc<Store>, Piece)>>,
}

/// Makes an image whole in all stores of `to`. `report` is told the bytes of chunks that are done with.
pub async fn copy(
    image: &Image,
    from: &Set,
    to: &Set,
    report: &(dyn Fn(u64) + Sync),
) -> Result<Moved, StoreError> {
    let work = Move {
        image,
        from,
        to,
        tally: Tally::default(),
        named: Mutex::default(),
        renewed: Mutex::default(),
    };
    let done = AtomicU64::new(0);
    let one = |piece: Piece| {
        let (work, done) = (&work, &done);
        async move {
            work.chunk(piece).await?;
            let bytes = u64::from(piece.bytes);
            report(done.fetch_add(bytes, Ordering::Relaxed) + bytes);
            Ok::<_, StoreError>(())
        }
    };
    let pieces = stream::iter(image.chunks.iter().copied().map(Ok));
    pieces.try_for_each_concurrent(AT_ONCE, one).await?;
    work.publish().await?;
    work.make_sure().await?;
    Ok(Moved {
        sent_chunks: work.tally.sent_chunks.into_inner(),
        sent_bytes: work.tally.sent_bytes.into_inner(),
        kept_chunks: work.tally.kept_chunks.into_inner(),
        has_trace: image.trace.is_some(),
    })
}

impl Move<'_> {
    async fn chunk(&self, piece: Piece) -> Result<(), StoreError> {
        let object = Object::Chunk(piece.name);
        let mut lacking = Vec::new();
        let mut holders = 0;
        for store in self.to.holders(&object) {
            holders += 1;
            if self.has(store, &piece).await? {
                self.tally.count(&piece, false);
            } else {
                lacking.push(Arc::clone(store));
            }
        }
        if holders == 0 {
            return Err(StoreError::NoShard(object.to_string()));
        }
        if lacking.is_empty() {
            return Ok(());
        }
        let bytes = self
            .from
            .chunk(&self.image.digest, &piece, Patience::SOME)
            .await?;
        for store in lacking {
            self.put(&store, &piece, bytes.clone()).await?;
        }
        Ok(())
    }

    /// Whether a store has a chunk, and will have it when the flist comes.
    async fn has(&self, store: &Arc<Store>, piece: &Piece) -> Result<bool, StoreError> {
        // A registry names blobs by another hash: who has the bytes finds out whether they are there.
        if store.goes_by_flist() {
            return Ok(false);
        }
        let object = Object::Chunk(piece.name);
        let find = || store.find(&self.image.digest, &object);
        let Some(found) = patiently(find).await? else {
            return Ok(false);
        };
        if found
            .bytes
            .is_some_and(|bytes| bytes != u64::from(piece.bytes))
        {
            return Ok(false);
        }
        let age = found
            .modified
            .and_then(|time| SystemTime::now().duration_since(time).ok());
        if age.is_some_and(|age| age > RENEW_AFTER) {
            patiently(|| store.renew(&object)).await?;
            let mut renewed = self.renewed.lock().unwrap_or_else(PoisonError::into_inner);
            renewed.push((Arc::clone(store), *piece));
        }
        Ok(true)
    }

    async fn put(&self, store: &Store, piece: &Piece, bytes: Vec<u8>) -> Result<(), StoreError> {
        let object = Object::Chunk(piece.name);
        let put = || store.put(&object, bytes.clone());
        let Placed { sent, descriptor } = patiently(put).await?;
        self.tally.count(piece, sent);
        if let Some(descriptor) = descriptor {
            let mut named = self.named.lock().unwrap_or_else(PoisonError::into_inner);
            let of_store = named.entry(store.name().to_owned()).or_default();
            of_store.insert(piece.name, descriptor);
        }
        Ok(())
    }

    async fn publish(&self) -> Result<(), StoreError> {
        for store in self.to.stores() {
            let descriptors = {
                let named = self.named.lock().unwrap_or_else(PoisonError::into_inner);
                named
                    .get(store.name())
                    .map(|d| d.values().cloned().collect::<Vec<_>>())
            };
            let mut descriptors = descriptors.unwrap_or_default();
            // Before the flist: who finds that finds the trace as well.
            descriptors.extend(self.put_trace(store).await?);
            let publish = || {
                let (file, chunks) = (self.image.file.clone(), descriptors.clone());
                store.publish(&self.image.digest, &self.image.entry, file, chunks)
            };
            patiently(publish).await?;
        }
        Ok(())
    }

    /// Without one, a trace that a registry has stays: its manifest is about to be replaced.
    async fn put_trace(&self, store: &Store) -> Result<Option<Descriptor>, StoreError> {
        let flist = &self.image.digest;
        let object = Object::Trace(*flist);
        let trace = match &self.image.trace {
            Some(trace) => Some(trace.clone()),
            None if store.goes_by_flist() => {
                store.whole(flist, &object, TRACE_BYTES_MAX).await.ok()
            }
            None => None,
        };
        let Some(trace) = trace else {
            return Ok(None);
        };
        let placed = patiently(|| store.put(&object, trace.clone())).await?;
        Ok(placed.descriptor)
    }

    /// What was old may have been swept between the look and its renewal: then it is sent after all.
    async fn make_sure(&self) -> Result<(), StoreError> {
        let renewed =
            std::mem::take(&mut *self.renewed.lock().unwrap_or_else(PoisonError::into_inner));
        for (store, piece) in renewed {
            let object = Object::Chunk(piece.name);
            if patiently(|| store.find(&self.image.digest, &object))
                .await?
                .is_none()
            {
                let bytes = self
                    .from
                    .chunk(&self.image.digest, &piece, Patience::SOME)
                    .await?;
                self.put(&store, &piece, bytes).await?;
            }
        }
        Ok(())
    }
}

/// Tries again what time may mend.
async fn patiently<T, F>(mut work: impl FnMut() -> F) -> Result<T, StoreError>
where
    F: Future<Output = Result<T, StoreError>>,
{
    let mut round = 0;
    loop {
        match work().await {
            Err(error) if error.is_transient() => match Patience::SOME.pause(round) {
                Some(pause) => tokio::time::sleep(pause).await,
                None => return Err(error),
            },
            other => return other,
        }
        round += 1;
    }
}

/// What is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    pub store: String,
    pub object: Object,
    pub what: Problem,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Problem {
    Missing,
    Wrong,
    /// Why it could not be read.
    Unreadable(String),
}

/// Reads every chunk of an image in every store that should have it, and compares.
pub async fn verify(image: &Image, set: &Set, report: &(dyn Fn(u64) + Sync)) -> Vec<Fault> {
    let done = AtomicU64::new(0);
    let work = image.chunks.iter().flat_map(|piece| {
        let holders = set.holders(&Object::Chunk(piece.name));
        holders.map(move |store| (piece, store))
    });
    let one = |(piece, store): (&Piece, &Arc<Store>)| {
        let (piece, store, done) = (*piece, Arc::clone(store), &done);
        async move {
            let fault = examine(&store, &image.digest, &piece).await;
            let bytes = u64::from(piece.bytes);
            report(done.fetch_add(bytes, Ordering::Relaxed) + bytes);
            fault
        }
    };
    let found = stream::iter(work).map(one).buffer_unordered(AT_ONCE);
    let mut faults: Vec<Fault> = found.filter_map(|fault| async { fault }).collect().await;
    for store in set.stores() {
        let limit = image.file.len() as u64;
        let right = |bytes: &[u8]| bytes == image.file;
        faults.extend(look(store, &image.digest, image.entry, limit, &right).await);
    }
    faults.sort_by(|a, b| (&a.store, a.object).cmp(&(&b.store, b.object)));
    faults
}

async fn examine(store: &Store, flist: &Digest, piece: &Piece) -> Option<Fault> {
    let right = |bytes: &[u8]| is_named(bytes, &piece.name);
    let limit = u64::from(piece.bytes);
    look(store, flist, Object::Chunk(piece.name), limit, &right).await
}

async fn look(
    store: &Store,
    flist: &Digest,
    object: Object,
    limit: u64,
    right: &(dyn Fn(&[u8]) -> bool + Sync),
) -> Option<Fault> {
    let what = match patiently(|| store.whole(flist, &object, limit)).await {
        Ok(bytes) if right(&bytes) => return None,
        Ok(_) | Err(StoreError::Large { .. }) => Problem::Wrong,
        Err(StoreError::NotFound { .. }) => Problem::Missing,
        Err(error) => Problem::Unreadable(sys::chain(&error)),
    };
    Some(Fault {
        store: store.name().to_owned(),
        object,
        what,
    })
}

#[cfg(test)]
#[path = "transfer_tests.rs"]
mod tests;
