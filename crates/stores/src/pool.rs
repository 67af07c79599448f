//! Stores that are open, shared by all who name them.
//!
//! Owns: one connection pool and one memory of failures a store, however many images name it; with which keys and
//! authorities it is opened.
//! Refuses: directories where there are none for images: on a node.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use types::Stores;
use types::proxy::Egress;

use crate::StoreError;
use crate::directory::Directory;
use crate::http::{Http, Trust};
use crate::keys::Keys;
use crate::location::{Location, Route};
use crate::oci::Oci;
use crate::s3::S3;
use crate::set::Set;
use crate::store::{Kind, Store, Web};

/// What this machine knows of registries.
pub trait Logins: Send + Sync {
    /// Name and password.
    fn login(&self, registry: &str) -> Result<Option<(String, String)>, String>;
    /// Authorities in PEM that count for it, beside the usual.
    fn authority(&self, registry: &str) -> Result<Option<String>, String>;
}

type Authority = Option<String>;

/// Opens stores.
pub struct Pool {
    trust: Trust,
    keys: Keys,
    logins: Option<Box<dyn Logins>>,
    /// How requests go out; it is replaced while several threads open stores.
    egress: Mutex<Egress>,
    /// Requests of several threads open stores; each is opened once.
    clients: Mutex<HashMap<Authority, Weak<Http>>>,
    stores: Mutex<HashMap<(Location, Authority), Weak<Store>>>,
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pool")
            .field("trust", &self.trust)
            .finish_non_exhaustive()
    }
}

impl Pool {
    /// For a node: what is public, by the public authorities and those that a deployment names; until it is told otherwise, without a
    /// proxy.
    pub fn of_a_node() -> Self {
        Self::new(Trust::Public, Keys::default(), None)
    }

    /// For a person's machine.
    pub fn of_this_machine(keys: Keys, logins: Box<dyn Logins>) -> Self {
        Self::new(Trust::System, keys, Some(logins))
    }

    fn new(trust: Trust, keys: Keys, logins: Option<Box<dyn Logins>>) -> Self {
        Self {
            trust,
            keys,
            logins,
            egress: Mutex::default(),
            clients: Mutex::default(),
            stores: Mutex::default(),
        }
    }

    /// All that is asked from now on goes out so, of stores that are open too.
    pub fn go_by(&self, egress: &Egress) -> Result<(), StoreError> {
        // Held throughout: a client that is made meanwhile is among them, or made by the new word.
        let mut now = self.egress.lock().unwrap_or_else(PoisonError::into_inner);
        now.clone_from(egress);
        let clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        let held: Vec<Arc<Http>> = clients.values().filter_map(Weak::upgrade).collect();
        drop(clients);
        held.iter().try_for_each(|client| client.go_by(egress))
    }

    /// Opens stores that a deployment names: remote ones.
    pub fn remote(&self, stores: &Stores) -> Result<Set, StoreError> {
        let refused = |problem: String| StoreError::Location {
            text: stores.urls.join(" "),
            problem,
        };
        stores.check().map_err(|e| refused(e.to_string()))?;
        let routes = stores.urls.iter().map(|text| Route::parse(text, &|_| None));
        let routes: Vec<Route> = routes.collect::<Result<_, _>>()?;
        if routes.iter().any(|route| !route.location.is_remote()) {
            return Err(refused("a node has no directories of stores".to_owned()));
        }
        self.set(&routes, stores.authority.as_deref())
    }

    /// `authority`: more authorities in PEM for these stores.
    pub fn set(&self, routes: &[Route], authority: Option<&str>) -> Result<Set, StoreError> {
        let open = |route: &Route| {
            let store = self.open(&route.location, authority)?;
            Ok((route.shard, store))
        };
        Set::new(routes.iter().map(open).collect::<Result<_, _>>()?)
    }

    fn open(&self, location: &Location, authority: Option<&str>) -> Result<Arc<Store>, StoreError> {
        let key = (location.clone(), authority.map(str::to_owned));
        let held = self.stores.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(store) = held.get(&key).and_then(Weak::upgrade) {
            return Ok(store);
        }
        drop(held);
        let store = Arc::new(Store::new(
            location.to_string(),
            self.kind(location, authority)?,
        ));
        keep(&self.stores, key, &store);
        Ok(store)
    }

    fn kind(&self, location: &Location, authority: Option<&str>) -> Result<Kind, StoreError> {
        let name = location.to_string();
        Ok(match location {
            Location::Directory(path) => Kind::Directory(Arc::new(Directory::new(path.clone()))),
            Location::Web(base) => Kind::Web(Web {
                http: self.client(authority)?,
                base: base.clone(),
            }),
            Location::S3(bucket) => {
                let http = self.client(authority)?;
                Kind::S3(S3::new(name, bucket, self.keys.clone(), http)?)
            }
            Location::Oci(repository) => {
                let wrong = |problem: String| StoreError::Location {
                    text: location.to_string(),
                    problem,
                };
                let registry = &repository.registry;
                let (mut login, mut own) = (None, None);
                if let Some(logins) = &self.logins {
                    login = logins.login(registry).map_err(wrong)?;
                    own = logins.authority(registry).map_err(wrong)?;
                }
                let both = [authority, own.as_deref()];
                let both: Vec<&str> = both.into_iter().flatten().collect();
                let authority = (!both.is_empty()).then(|| both.join("\n"));
                let http = self.client(authority.as_deref())?;
                Kind::Oci(Oci::new(name, repository, login, http)?)
            }
        })
    }

    fn client(&self, authority: Option<&str>) -> Result<Arc<Http>, StoreError> {
        let key = authority.map(str::to_owned);
        let egress = self.egress.lock().unwrap_or_else(PoisonError::into_inner);
        let held = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(client) = held.get(&key).and_then(Weak::upgrade) {
            return Ok(client);
        }
        drop(held);
        let client = Arc::new(Http::new(self.trust, authority, &egress)?);
        keep(&self.clients, key, &client);
        Ok(client)
    }
}

/// What nobody holds any more is forgotten.
fn keep<K: Eq + Hash, V>(held: &Mutex<HashMap<K, Weak<V>>>, key: K, value: &Arc<V>) {
    let mut held = held.lock().unwrap_or_else(PoisonError::into_inner);
    held.retain(|_, value| value.strong_count() > 0);
    held.insert(key, Arc::downgrade(value));
}
