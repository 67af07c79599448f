//! One store, whatever its kind.
//!
//! Owns: the operations that all kinds share, what a kind cannot do, and whether a store is worth asking now.
//! Refuses: to trust: who reads compares hashes ([`crate::Set`] does).

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use reqwest::{Method, Url};
use types::Digest;

use crate::directory::Directory;
use crate::http::{self, Http};
use crate::oci::{Descriptor, Oci};
use crate::s3::S3;
use crate::sink::Sink;
use crate::{Object, StoreError};

/// Failures in a row after which a store is asked last.
const FAILURES_MAX: u32 = 3;
/// For so long at first, doubled with each failure more.
const REST_FIRST: Duration = Duration::from_secs(1);
/// A store that comes back is found within this.
const REST_LONGEST: Duration = Duration::from_secs(30);
const WEB_ADVICE: &str = "Let it serve the files to all; a node has no login";

/// An object as a list shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub object: Object,
    pub bytes: u64,
    pub modified: SystemTime,
}

/// An object as it is found; what a server does not say is `None`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Found {
    pub bytes: Option<u64>,
    pub modified: Option<SystemTime>,
}

#[derive(Debug)]
pub(crate) enum Kind {
    Directory(Arc<Directory>),
    Web(Web),
    S3(S3),
    Oci(Oci),
}

/// A plain web server.
#[derive(Debug)]
pub(crate) struct Web {
    pub(crate) http: Arc<Http>,
    pub(crate) base: Url,
}

/// Whether a store has failed of late.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Circuit {
    #[default]
    Well,
    Failing(u32),
    /// Asked last until then.
    Resting {
        failures: u32,
        until: Instant,
    },
}

#[derive(Debug)]
pub struct Store {
    name: String,
    kind: Kind,
    /// Requests are many at once, and each has something to say of it.
    circuit: Mutex<Circuit>,
}

/// What becomes of an object that is put.
#[derive(Debug)]
pub(crate) struct Placed {
    pub(crate) sent: bool,
    /// In a registry: what its manifest must say.
    pub(crate) descriptor: Option<Descriptor>,
}

impl Store {
    pub(crate) fn new(name: String, kind: Kind) -> Self {
        Self {
            name,
            kind,
            circuit: Mutex::default(),
        }
    }

    /// Its location, as messages name it.
    pub fn name(&self) -> &str {
        &self.name
    }

    fn unable(&self, what: &'static str, why: &'static str) -> StoreError {
        StoreError::Unable {
            store: self.name.clone(),
            what,
            why,
        }
    }

    /// Whether its objects are found by way of an flist.
    pub(crate) fn goes_by_flist(&self) -> bool {
        matches!(self.kind, Kind::Oci(_))
    }

    /// Reads an object that belongs to `flist`.
    pub async fn get(
        &self,
        flist: &Digest,
        object: &Object,
        sink: &mut Sink<'_>,
    ) -> Result<(), StoreError> {
        match &self.kind {
            Kind::Directory(directory) => directory.get(object, sink),
            Kind::Web(web) => {
                let request = web.http.request(Method::GET, self.web_url(web, object)?);
                http::fetch(&web.http, &self.name, object, WEB_ADVICE, request, sink).await
            }
            Kind::S3(s3) => s3.get(object, sink).await,
            Kind::Oci(oci) => oci.get(flist, object, sink).await,
        }
    }

    /// The same into memory, of at most `limit` bytes.
    pub async fn whole(
        &self,
        flist: &Digest,
        object: &Object,
        limit: u64,
    ) -> Result<Vec<u8>, StoreError> {
        let mut bytes = Vec::new();
        let mut sink = Sink::memory(limit, &mut bytes);
        self.get(flist, object, &mut sink).await?;
        drop(sink);
        Ok(bytes)
    }

    /// Whether an object that belongs to `flist` is there.
    pub async fn find(&self, flist: &Digest, object: &Object) -> Result<Option<Found>, StoreError> {
        match &self.kind {
            Kind::Directory(directory) => directory.find(object),
            Kind::Web(web) => {
                let request = web.http.request(Method::HEAD, self.web_url(web, object)?);
                http::find(&web.http, &self.name, object, WEB_ADVICE, request).await
            }
            Kind::S3(s3) => s3.find(object).await,
            Kind::Oci(oci) => oci.find(flist, object).await,
        }
    }

    fn web_url(&self, web: &Web, object: &Object) -> Result<Url, StoreError> {
        let url = web.base.join(&object.path());
        url.map_err(|error| StoreError::Location {
            text: self.name.clone(),
            problem: error.to_string(),
        })
    }

    /// Says of an object that is there that it is needed.
    pub(crate) async fn renew(&self, object: &Object) -> Result<(), StoreError> {
        match &self.kind {
            Kind::Directory(directory) => directory.renew(object),
            Kind::S3(s3) => s3.renew(object).await,
            // A registry counts by manifests, and nobody writes to a web server.
            Kind::Web(_) | Kind::Oci(_) => Ok(()),
        }
    }

    pub(crate) async fn put(&self, object: &Object, bytes: Vec<u8>) -> Result<Placed, StoreError> {
        let (sent, descriptor) = match &self.kind {
            Kind::Directory(directory) => {
                let (directory, object) = (Arc::clone(directory), *object);
                let work = move || directory.put(&object, &bytes);
                let done = tokio::task::spawn_blocking(work).await;
                done.map_err(|_| self.unable("be written", "the thread that wrote has ended"))??;
                (true, None)
            }
            Kind::Web(_) => {
                return Err(StoreError::ReadOnly {
                    store: self.name.clone(),
                    why: "a web server only gives; write to the directory that it serves",
                });
            }
            Kind::S3(s3) => {
                s3.put(object, bytes).await?;
                (true, None)
            }
            Kind::Oci(oci) => {
                let (sent, descriptor) = oci.put(object, bytes).await?;
                (sent, Some(descriptor))
            }
        };
        Ok(Placed { sent, descriptor })
    }

    /// Makes an image known whose chunks are there, by its flist or by their list.
    pub(crate) async fn publish(
        &self,
        flist: &Digest,
        entry: &Object,
        file: Vec<u8>,
        chunks: Vec<Descriptor>,
    ) -> Result<(), StoreError> {
        match &self.kind {
            Kind::Oci(oci) => oci.publish(flist, entry, file, chunks).await,
            Kind::Directory(_) | Kind::Web(_) | Kind::S3(_) => {
                self.put(entry, file).await.map(drop)
            }
        }
    }

    /// All that is there.
    pub async fn list(&self) -> Result<Vec<Entry>, StoreError> {
        match &self.kind {
            Kind::Directory(directory) => directory.list(),
            Kind::S3(s3) => s3.list().await,
            Kind::Web(_) => Err(self.unable("be listed", "a web server gives what is named")),
            Kind::Oci(_) => Err(self.unable(
                "be swept",
                "a registry removes by itself what no manifest names: delete the tags blake3-… of what is not needed",
            )),
        }
    }

    /// All images that are there, by the digests of their flists.
    pub async fn images(&self) -> Result<Vec<Digest>, StoreError> {
        if let Kind::Oci(oci) = &self.kind {
            return oci.list().await;
        }
        let image = |entry: Entry| match entry.object {
            Object::Flist(digest) | Object::Roll(digest) => Some(digest),
            Object::Trace(_) | Object::Chunk(_) => None,
        };
        let images: BTreeSet<_> = self.list().await?.into_iter().filter_map(image).collect();
        Ok(images.into_iter().collect())
    }

    /// No error where it is gone already.
    pub async fn remove(&self, object: &Object) -> Result<(), StoreError> {
        match &self.kind {
            Kind::Directory(directory) => directory.remove(object),
            Kind::S3(s3) => s3.remove(object).await,
            Kind::Web(_) | Kind::Oci(_) => {
                Err(self.unable("remove anything", "only directories and S3 do that for us"))
            }
        }
    }

    /// Removes what writers left unfinished before that time.
    pub fn remove_drafts(&self, before: SystemTime) -> Result<u64, StoreError> {
        match &self.kind {
            Kind::Directory(directory) => directory.remove_drafts(before),
            Kind::Web(_) | Kind::S3(_) | Kind::Oci(_) => Ok(0),
        }
    }

    /// Whether it has not failed again and again of late.
    pub(crate) fn is_well(&self) -> bool {
        let circuit = *self.circuit.lock().unwrap_or_else(PoisonError::into_inner);
        match circuit {
            Circuit::Well | Circuit::Failing(_) => true,
            Circuit::Resting { until, .. } => Instant::now() >= until,
        }
    }

    /// What a read said of the store's health.
    pub fn learn<T>(&self, result: &Result<T, StoreError>) {
        let has_failed = match result {
            Ok(_) => false,
            // Who gives wrong bytes now may give them again.
            Err(error @ StoreError::Wrong { .. }) => error.is_of_the_store(),
            Err(error) => error.is_transient(),
        };
        let mut circuit = self.circuit.lock().unwrap_or_else(PoisonError::into_inner);
        *circuit = next(*circuit, has_failed, Instant::now());
    }
}

fn next(circuit: Circuit, has_failed: bool, now: Instant) -> Circuit {
    if !has_failed {
        return Circuit::Well;
    }
    let failures = match circuit {
        Circuit::Well => 1,
        Circuit::Failing(failures) | Circuit::Resting { failures, .. } => {
            failures.saturating_add(1)
        }
    };
    match failures.checked_sub(FAILURES_MAX) {
        None => Circuit::Failing(failures),
        Some(over) => {
            let rest = REST_FIRST
                .saturating_mul(1 << over.min(10))
                .min(REST_LONGEST);
            Circuit::Resting {
                failures,
                until: now + rest,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_that_fails_again_and_again_rests_for_longer_and_longer_until_it_answers() {
        let now = Instant::now();
        let mut circuit = Circuit::Well;
        let mut rests = Vec::new();
        for _ in 0..10 {
            circuit = next(circuit, true, now);
            rests.push(match circuit {
                Circuit::Resting { until, .. } => (until - now).as_secs(),
                Circuit::Well | Circuit::Failing(_) => 0,
            });
        }
        assert_eq!(rests, [0, 0, 1, 2, 4, 8, 16, 30, 30, 30]);
        assert_eq!(next(circuit, false, now), Circuit::Well);
    }
}
