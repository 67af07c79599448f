//! The firewall: nf_tables rules as data, their bytes, and the node's policies.
//!
//! Owns: our tables (`sifr` in each family) in every namespace, replaced whole in one transaction.
//! Refuses: tables of others, and half a policy.

mod attribute;
mod batch;
mod counters;
mod encode;
mod owned;
pub mod policy;
pub mod rule;
pub mod trace;
mod words;

use nix::errno::Errno;

pub use counters::{Counted, Counts};
pub use rule::Ruleset;

use crate::Error;
use crate::namespace::{self, within};
pub(crate) use attribute::Writer;
use batch::Message;

/// Most rules of one transaction: 32 networks of 32 machines with 64 ports come to fewer.
const RULES_MAX: usize = 100_000;

/// Replaces our tables in a named namespace.
pub fn apply_in(name: &str, ruleset: &Ruleset) -> Result<(), Error> {
    let namespace = namespace::open(name)?.ok_or_else(|| {
        Error::errno(format!("apply firewall rules in namespace {name}"))(Errno::ENOENT)
    })?;
    within(namespace, || apply(ruleset))
}

/// What the counters of our tables in a named namespace have counted; nothing where there is no such namespace.
pub fn counts_in(name: &str) -> Result<Counts, Error> {
    let operation = || format!("read the counters of namespace {name}");
    match namespace::open(name)? {
        None => Ok(Counts::new()),
        Some(namespace) => within(namespace, || {
            counters::read().map_err(Error::io(operation()))
        }),
    }
}

/// Replaces our tables in the caller's own namespace.
pub fn apply(ruleset: &Ruleset) -> Result<(), Error> {
    let parts = encode::transaction(ruleset);
    if parts.len() > RULES_MAX {
        let value = parts.len().to_string();
        return Err(Error::Refused {
            what: "ruleset size",
            value,
            reason: "use fewer ports",
        });
    }
    let (messages, about): (Vec<Message>, Vec<String>) = parts
        .into_iter()
        .map(|part| (part.message, part.what))
        .unzip();
    batch::send(&messages).map_err(|refusal| {
        let about = refusal.index.and_then(|index| about.get(index));
        let what = about.map_or("the firewall rules", String::as_str);
        Error::io(format!("apply {what}"))(refusal.source)
    })
}
