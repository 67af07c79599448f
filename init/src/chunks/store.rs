//! The stores of an image, as the daemon's work uses them.
//!
//! Owns: reading a chunk or an flist out of whichever store has it. What stores are, `stores` knows.
//! Refuses: retries: `queue` decides about the next try.

use std::sync::Arc;

use flist::cache::{Cache, STORED_BYTES_MAX};
use flist::chunk::Chunk;
use flist::format::FLIST_BYTES_MAX;
use stores::{Object, Patience, Piece, Pool, Set, Sink, StoreError};
use types::{Digest, Stores};

/// What a deployment names, opened.
#[derive(Debug, Clone)]
pub(crate) struct Remote {
    flist: Digest,
    named: Stores,
    set: Arc<Set>,
}

/// Two that would ask the same stores in the same way.
impl PartialEq for Remote {
    fn eq(&self, other: &Self) -> bool {
        let same_way = self.flist == other.flist || !self.set.goes_by_flist();
        same_way && self.named == other.named
    }
}

impl Remote {
    pub(crate) fn open(pool: &Pool, flist: Digest, named: Stores) -> Result<Self, StoreError> {
        let set = Arc::new(pool.remote(&named)?);
        Ok(Self { flist, named, set })
    }

    /// Stored bytes with the chunk's hash.
    pub(crate) async fn chunk(&self, chunk: &Chunk) -> Result<Vec<u8>, StoreError> {
        let longest = u32::try_from(STORED_BYTES_MAX).unwrap_or(u32::MAX);
        let piece = Piece {
            name: chunk.stored,
            bytes: chunk.stored_bytes.min(longest),
        };
        self.set.chunk(&self.flist, &piece, Patience::ONCE).await
    }

    /// The flist's trace, unread: whoever has it decides whether it is one.
    pub(crate) async fn trace(&self, limit: u64) -> Result<Vec<u8>, StoreError> {
        self.set.trace(&self.flist, limit).await
    }

    /// Brings the flist into the cache; it is large, and goes by way of a file.
    pub(crate) async fn flist(&self, cache: &Cache) -> Result<(), StoreError> {
        let object = Object::Flist(self.flist);
        let mut last = StoreError::NoShard(object.to_string());
        for store in self.set.order(&object) {
            let upload = cache.receive_flist(self.flist);
            let mut upload = upload.map_err(|e| StoreError::Sink(sys::chain(&e)))?;
            let take = |bytes: &[u8]| upload.push(bytes).map_err(|e| sys::chain(&e));
            let mut sink = Sink::new(FLIST_BYTES_MAX, take);
            let got = store.get(&self.flist, &object, &mut sink).await;
            drop(sink);
            store.learn(&got);
            if let Err(error) = got {
                last = error;
                continue;
            }
            let finished = tokio::task::spawn_blocking(move || upload.finish_flist()).await;
            match finished {
                Ok(Ok(_)) => return Ok(()),
                Ok(Err(error)) => last = StoreError::Sink(sys::chain(&error)),
                Err(error) => last = StoreError::Sink(sys::chain(&error)),
            }
        }
        Err(last)
    }
}
