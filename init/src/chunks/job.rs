//! The daemon's work, each piece a task: getting a chunk, and making a disk ready.
//!
//! Owns: the steps: cache, else store; verify; onto the disks; tell; keep. And what each failure means.
//! Refuses: deciding about the next try, which is `queue`'s.

use std::collections::{HashMap, VecDeque};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use flist::cache::{Cache, CacheError};
use flist::chunk::{Chunk, ChunkError};
use flist::format::FLIST_BYTES_MAX;
use flist::trace::{self, Trace};
use flist::wire::FromNode;
use stores::{Pool, StoreError};
use tokio::sync::mpsc::Sender;
use types::{Bytes, Digest};

use super::disk::{Disk, DiskError};
use super::link::VmLink;
use super::queue::Outcome;
use super::scrub::{Scrub, Step};
use super::store::Remote;
use crate::room::Room;

/// What a person does when content is nowhere.
const PUSH_AGAIN: &str = "push it again with `sifr deploy`";
/// And where a store is named, which has something else or nothing.
const BRING_AGAIN: &str = "bring it there with `sifr flist push`, or push it to the node with `sifr deploy` and no `store`";

/// What reaches the daemon's loop.
#[derive(Debug)]
pub(crate) enum Event {
    Node {
        connection: u64,
        message: FromNode,
        fds: Vec<OwnedFd>,
    },
    NodeGone {
        connection: u64,
    },
    Want {
        link: VmLink,
        index: u32,
    },
    VmGone(VmLink),
    Opened {
        flist: Digest,
        result: Result<Ready, String>,
    },
    /// A trace of an flist came from its store.
    Traced {
        flist: Digest,
        trace: Trace,
    },
    /// One chunk of the cache was read again.
    Scrubbed {
        scrub: Scrub,
        step: Step,
    },
    /// The disks a job was started for have the chunk; the job still keeps it in the cache.
    Filled {
        chunk: Digest,
    },
    Ended {
        chunk: Digest,
        outcome: Outcome,
        cached: Cached,
    },
}

/// What a job found out about the cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cached {
    Yes,
    No,
    Unknown,
}

/// A disk that is open, and which of its chunks are not in the cache.
#[derive(Debug)]
pub(crate) struct Ready {
    pub(crate) disk: Arc<Disk>,
    pub(crate) absent: Absent,
    /// The trace that the cache has of it, where the disk is new.
    pub(crate) trace: Option<Trace>,
    /// The disk was made just now: nothing of it has been touched yet.
    pub(crate) is_new: bool,
}

/// Stored hash to the number of chunks that have it, and the same once each in the order of the disk.
#[derive(Debug, Default)]
pub(crate) struct Absent {
    pub(crate) counts: HashMap<Digest, u64>,
    pub(crate) order: VecDeque<Chunk>,
}

impl Absent {
    fn of(disk: &Disk, cache: &Cache) -> Self {
        let mut absent = Self::default();
        let mut known: HashMap<Digest, bool> = HashMap::new();
        for chunk in disk.flist.chunks() {
            if !*known
                .entry(chunk.stored)
                .or_insert_with(|| cache.has(chunk))
            {
                let count = absent.counts.entry(chunk.stored).or_default();
                *count += 1;
                if *count == 1 {
                    absent.order.push_back(*chunk);
                }
            }
        }
        absent
    }
}

/// What tasks share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) cache: Cache,
    pub(crate) maps: PathBuf,
    pub(crate) room: Room,
    pub(crate) pool: Pool,
    pub(crate) fetched: AtomicU64,
    pub(crate) fetched_bytes: AtomicU64,
}

/// Runs what blocks on a thread of its own.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, String> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|e| format!("a thread of the daemon ended: {e}"))
}

/// Whether the cache may take so much more of the pool; if not, why.
async fn has_room(shared: &Arc<Shared>, bytes: u64) -> Result<(), String> {
    let room = shared.room.clone();
    match blocking(move || room.left()).await? {
        Ok(left) if left >= bytes => Ok(()),
        Ok(left) => Err(format!(
            "the pool has no room for {} MiB of an image, {} MiB are free and promised to nobody: delete what is not needed",
            Bytes(bytes).as_mib() + 1,
            Bytes(left).as_mib()
        )),
        Err(error) => Err(sys::chain(&error)),
    }
}

/// Makes a disk ready: the flist from the store if it is not in the cache, then image and map.
pub(crate) async fn open(
    shared: Arc<Shared>,
    flist: Digest,
    store: Option<Remote>,
    disk: Option<Arc<Disk>>,
    events: Sender<Event>,
) {
    let result = try_open(&shared, flist, store, disk).await;
    // Without a daemon there is nobody to tell.
    let _ = events.send(Event::Opened { flist, result }).await;
}

async fn try_open(
    shared: &Arc<Shared>,
    flist: Digest,
    store: Option<Remote>,
    disk: Option<Arc<Disk>>,
) -> Result<Ready, String> {
    let first = ready(shared, flist, disk).await?;
    let (store, error) = match (first, store) {
        (Ok(ready), _) => return Ok(ready),
        (Err(error), Some(store)) if is_absent(&error) => (store, error),
        (Err(error), None) if is_absent(&error) => {
            return Err(format!("{}: {PUSH_AGAIN}", sys::chain(&error)));
        }
        (Err(error), _) => return Err(sys::chain(&error)),
    };
    log::info!("{}: it is fetched from its store", sys::chain(&error));
    fetch_flist(shared, &store).await?;
    ready(shared, flist, None)
        .await?
        .map_err(|e| sys::chain(&e))
}

fn is_absent(error: &DiskError) -> bool {
    matches!(
        error,
        DiskError::Cache(CacheError::Absent(_) | CacheError::Damaged { .. })
    )
}

async fn ready(
    shared: &Arc<Shared>,
    flist: Digest,
    disk: Option<Arc<Disk>>,
) -> Result<Result<Ready, DiskError>, String> {
    let shared = Arc::clone(shared);
    blocking(move || {
        let (disk, is_new) = match disk {
            Some(disk) => (disk, false),
            None => {
                let disk = Disk::open(&shared.cache, &shared.maps, &shared.room, flist)?;
                let is_new = disk.is_new;
                (Arc::new(disk), is_new)
            }
        };
        if let Err(error) = shared.cache.used(&flist) {
            // It goes earlier than it would when room is short, and no harm is done.
            log::warn!("{}", sys::chain(&error));
        }
        let absent = Absent::of(&disk, &shared.cache);
        let count = disk.flist.chunks().len();
        let trace = if is_new {
            shared.cache.trace(&flist, count)
        } else {
            None
        };
        Ok(Ready {
            disk,
            absent,
            trace,
            is_new,
        })
    })
    .await
}

async fn fetch_flist(shared: &Arc<Shared>, store: &Remote) -> Result<(), String> {
    has_room(shared, FLIST_BYTES_MAX).await?;
    let fetched = store.flist(&shared.cache).await;
    fetched.map_err(|e| sys::chain(&e))
}

/// Looks for the trace of an flist in its store. Without one a start costs what it costs.
pub(crate) async fn fetch_trace(
    shared: Arc<Shared>,
    disk: Arc<Disk>,
    store: Remote,
    events: Sender<Event>,
) {
    let flist = disk.digest;
    let bytes = match store.trace(trace::BYTES_MAX as u64).await {
        Ok(bytes) => bytes,
        Err(error) => return log::debug!("{flist} has no trace: {}", sys::chain(&error)),
    };
    match Trace::decode(&bytes, &flist, disk.flist.chunks().len()) {
        Ok(trace) => {
            keep_trace(shared, trace.clone()).await;
            // Without a daemon there is nobody to tell.
            let _ = events.send(Event::Traced { flist, trace }).await;
        }
        Err(error) => log::warn!("the trace of {flist} in its store is not used: {error}"),
    }
}

/// Keeps a trace beside its flist. Without it the next start costs what this one did.
pub(crate) async fn keep_trace(shared: Arc<Shared>, trace: Trace) {
    match blocking(move || shared.cache.put_trace(&trace)).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => log::warn!("a trace is not kept: {}", sys::chain(&error)),
        Err(error) => log::warn!("a trace is not kept: {error}"),
    }
}

/// Reads one chunk of the cache again.
pub(crate) async fn scrub(shared: Arc<Shared>, mut scrub: Scrub, events: Sender<Event>) {
    let looked = blocking(move || {
        let step = scrub.step(&shared.cache);
        (scrub, step)
    });
    match looked.await {
        Ok((scrub, step)) => {
            // Without a daemon there is nobody to tell.
            let _ = events.send(Event::Scrubbed { scrub, step }).await;
        }
        Err(error) => log::error!("the cache is scrubbed no more: {error}"),
    }
}

/// One chunk to get.
#[derive(Debug)]
pub(crate) struct Task {
    pub(crate) chunk: Chunk,
    /// Where it goes besides the cache.
    pub(crate) targets: Vec<(Arc<Disk>, u32)>,
    pub(crate) stores: Vec<Remote>,
    /// Nobody waits: where the pool has no room for it, it is not fetched.
    pub(crate) is_guess: bool,
}

/// Gets a chunk.
pub(crate) async fn get(shared: Arc<Shared>, task: Task, events: Sender<Event>) {
    let chunk = task.chunk.stored;
    let (outcome, cached) = try_get(&shared, task, &events).await;
    // Without a daemon there is nobody to tell.
    let _ = events
        .send(Event::Ended {
            chunk,
            outcome,
            cached,
        })
        .await;
}

async fn try_get(shared: &Arc<Shared>, task: Task, events: &Sender<Event>) -> (Outcome, Cached) {
    let Task {
        chunk,
        targets,
        stores,
        is_guess,
    } = task;
    let targets = Arc::new(targets);
    match from_cache(shared, chunk, Arc::clone(&targets)).await {
        Ok(Ok(())) => {
            let _ = events
                .send(Event::Filled {
                    chunk: chunk.stored,
                })
                .await;
            return (Outcome::Done, Cached::Yes);
        }
        Ok(Err(error)) if is_absent(&error) => {
            if matches!(error, DiskError::Cache(CacheError::Damaged { .. })) {
                log::warn!("{}", sys::chain(&error));
            }
        }
        Ok(Err(error @ DiskError::Cache(CacheError::Contradiction(..)))) => {
            return (Outcome::Contradiction(sys::chain(&error)), Cached::Unknown);
        }
        Ok(Err(error)) => return (Outcome::Hopeless(sys::chain(&error)), Cached::Unknown),
        Err(error) => return (Outcome::Hopeless(error), Cached::Unknown),
    }
    // A VM that waits is served even so: its disk has been promised the room.
    let keep = has_room(shared, u64::from(chunk.stored_bytes)).await;
    if let (Err(message), true) = (&keep, targets.is_empty() || is_guess) {
        return (Outcome::Hopeless(message.clone()), Cached::No);
    }
    let stored = match from_stores(shared, &chunk, &stores).await {
        Ok(stored) => Arc::new(stored),
        Err(outcome) => return (outcome, Cached::No),
    };
    if let Err(outcome) = onto_disks(chunk, Arc::clone(&stored), targets).await {
        return (outcome, Cached::No);
    }
    let _ = events
        .send(Event::Filled {
            chunk: chunk.stored,
        })
        .await;
    if let Err(message) = keep {
        return (Outcome::Hopeless(message), Cached::No);
    }
    let shared = Arc::clone(shared);
    match blocking(move || shared.cache.put_chunk(chunk.stored, &stored)).await {
        Ok(Ok(())) => (Outcome::Done, Cached::Yes),
        Ok(Err(error)) => (Outcome::Hopeless(sys::chain(&error)), Cached::No),
        Err(error) => (Outcome::Hopeless(error), Cached::No),
    }
}

async fn from_cache(
    shared: &Arc<Shared>,
    chunk: Chunk,
    targets: Arc<Vec<(Arc<Disk>, u32)>>,
) -> Result<Result<(), DiskError>, String> {
    let shared = Arc::clone(shared);
    blocking(move || {
        if targets.is_empty() && shared.cache.has(&chunk) {
            return Ok(());
        }
        let plain = shared.cache.plain(&chunk)?;
        place(&plain, &targets)
    })
    .await
}

fn place(plain: &[u8], targets: &[(Arc<Disk>, u32)]) -> Result<(), DiskError> {
    for (disk, index) in targets {
        disk.write(*index, plain)?;
        disk.publish(*index)?;
    }
    Ok(())
}

/// Verifies what came from a store, and puts it onto the disks.
async fn onto_disks(
    chunk: Chunk,
    stored: Arc<Vec<u8>>,
    targets: Arc<Vec<(Arc<Disk>, u32)>>,
) -> Result<(), Outcome> {
    let done = blocking(move || match chunk.open(&stored) {
        Ok(plain) => place(&plain, &targets).map_err(|e| Outcome::Hopeless(sys::chain(&e))),
        Err(error @ (ChunkError::Length { .. } | ChunkError::StoredHash(_))) => {
            Err(Outcome::Wrong(format!(
                "the store sent something else: {}",
                sys::chain(&error)
            )))
        }
        Err(
            error @ (ChunkError::Sealed(_) | ChunkError::Zstd { .. } | ChunkError::Plain { .. }),
        ) => Err(Outcome::Contradiction(format!(
            "{}: pack the image again",
            sys::chain(&error)
        ))),
    });
    done.await
        .unwrap_or_else(|error| Err(Outcome::Hopeless(error)))
}

/// Asks the stores of each image that has the chunk.
async fn from_stores(
    shared: &Shared,
    chunk: &Chunk,
    stores: &[Remote],
) -> Result<Vec<u8>, Outcome> {
    let mut worst = Outcome::Hopeless(format!(
        "chunk {} is not on this node and no store is named: {PUSH_AGAIN}",
        chunk.stored
    ));
    for store in stores {
        match store.chunk(chunk).await {
            Ok(stored) => {
                let bytes = stored.len() as u64;
                shared.fetched.fetch_add(1, Ordering::Relaxed);
                shared.fetched_bytes.fetch_add(bytes, Ordering::Relaxed);
                return Ok(stored);
            }
            Err(error) => worst = worse(worst, &error),
        }
    }
    Err(worst)
}

/// While one store may come back, there is hope.
fn worse(sofar: Outcome, error: &StoreError) -> Outcome {
    let message = sys::chain(error);
    match sofar {
        Outcome::Unreachable(_) => sofar,
        _ if error.is_transient() => Outcome::Unreachable(message),
        _ => Outcome::Wrong(format!("{message}: {BRING_AGAIN}")),
    }
}
