//! The firewall: nf_tables rules as data, their bytes, and the node's policies.
//!
//! Owns: our tables (`sifr` in each family) in every namespace, replaced whole in one transaction.
//! Refuses: tables of others, and half a policy.

pub mod policy;
mod rule;

pub use rule::Ruleset;

use crate::Error;

/// Replaces our tables in the caller's own namespace.
pub fn apply(ruleset: &Ruleset) -> Result<(), Error> {
    unimplemented!("{ruleset:?}")
}

/// Replaces our tables in a named namespace.
pub fn apply_in(namespace: &str, ruleset: &Ruleset) -> Result<(), Error> {
    unimplemented!("{namespace} {ruleset:?}")
}
