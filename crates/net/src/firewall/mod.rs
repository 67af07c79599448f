//! The firewall: nf_tables rules as data, their bytes, and the node's policies.
//!
//! Owns: our tables (`sifr` in each family) in every namespace, replaced whole in one transaction, and the end of connections that
//! stood before.
//! Refuses: tables of others, and half a policy.

mod attribute;
mod batch;
mod counters;
mod encode;
mod flows;
mod owned;
pub mod policy;
pub mod rule;
mod standing;
pub mod trace;
mod words;

use nix::errno::Errno;

pub use counters::{Counted, Counts};
pub use flows::{Flow, Spoken, Way};
pub use rule::Ruleset;
pub use standing::Standing;

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

/// Ends all connections in the caller's own namespace that are not to be kept: the rules judge the first packet of each, and so
/// never see those again. How many that were. After the rules have been replaced: what begins meanwhile is judged by the new ones.
pub fn end(keep: impl Fn(&Flow) -> bool) -> Result<usize, Error> {
    flows::end(keep).map_err(Error::io("end connections that the rules do not let begin"))
}

/// The same in a named namespace; nothing where there is no such namespace.
pub fn end_in(name: &str, keep: impl Fn(&Flow) -> bool + Send) -> Result<usize, Error> {
    match namespace::open(name)? {
        None => Ok(0),
        Some(namespace) => within(namespace, || end(keep)),
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
