//! What a deployment says of a store, and what a store says, for the package `fuzz`.
//!
//! Owns: reading the URL, and one object. Refuses: to judge the object; whoever asked has its hash.

use stores::{Object, Pool};
use types::{Digest, Stores};

/// Whether the daemon takes this URL as a store.
pub fn store(url: &str) -> bool {
    Pool::of_a_node().remote(&Stores::from(url)).is_ok()
}

/// An object of a store: all that it says of it, up to `limit` bytes. `None`: refused.
pub async fn fetch(url: &str, limit: u64) -> Option<Vec<u8>> {
    let set = Pool::of_a_node().remote(&Stores::from(url)).ok()?;
    let store = set.stores().next()?;
    let name = Digest([0; 32]);
    store.whole(&name, &Object::Chunk(name), limit).await.ok()
}
