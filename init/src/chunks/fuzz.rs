//! What a deployment says of a store, for the package `fuzz`.
//!
//! Owns: reading the URL. Refuses: the network.

use super::store::Base;

/// Whether the daemon takes this URL as a store.
pub fn store(url: &str) -> bool {
    Base::parse(url).is_ok()
}
