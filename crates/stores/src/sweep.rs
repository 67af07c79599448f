//! Removing from a store what no flist in it names.
//!
//! Owns: what may go: chunks that are unnamed and older than the grace, so that a push under way keeps what it has sent
//! and what it has found. Pure, but for doing it.
//! Refuses: to decide about flists.

use std::collections::BTreeSet;
use std::time::SystemTime;

use types::Digest;

use crate::store::Entry;
use crate::{Object, Store, StoreError};

/// What was found, and what may go.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Plan {
    pub remove: Vec<Entry>,
    pub named: u64,
    /// Unnamed, and too young to go.
    pub young: u64,
}

impl Plan {
    pub fn bytes(&self) -> u64 {
        self.remove.iter().map(|entry| entry.bytes).sum()
    }
}

/// `entries` were listed before `named` was read: what an flist that came meanwhile names is kept.
pub fn plan(entries: Vec<Entry>, named: &BTreeSet<Digest>, before: SystemTime) -> Plan {
    let mut plan = Plan::default();
    for entry in entries {
        match entry.object {
            Object::Flist(_) | Object::Roll(_) | Object::Trace(_) => {}
            Object::Chunk(stored) if named.contains(&stored) => plan.named += 1,
            Object::Chunk(_) if entry.modified >= before => plan.young += 1,
            Object::Chunk(_) => plan.remove.push(entry),
        }
    }
    plan
}

/// Removes it, but for what somebody has made young since it was listed. Says how many went.
pub async fn remove(store: &Store, plan: &Plan, before: SystemTime) -> Result<u64, StoreError> {
    let mut removed = 0;
    for entry in &plan.remove {
        let Object::Chunk(stored) = entry.object else {
            continue;
        };
        let Some(found) = store.find(&stored, &entry.object).await? else {
            continue;
        };
        if found.modified.is_none_or(|modified| modified < before) {
            store.remove(&entry.object).await?;
            removed += 1;
        }
    }
    Ok(removed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn only_what_is_unnamed_and_old_goes() {
        let now = SystemTime::now();
        let entry = |byte: u8, age: u64| Entry {
            object: Object::Chunk(Digest([byte; 32])),
            bytes: 10,
            modified: now - Duration::from_secs(age),
        };
        let entries = vec![entry(1, 100), entry(2, 100), entry(3, 1)];
        let named = [Digest([1; 32])].into();
        let plan = plan(entries, &named, now - Duration::from_secs(50));
        let objects: Vec<_> = plan.remove.iter().map(|e| e.object).collect();
        assert_eq!(objects, [Object::Chunk(Digest([2; 32]))]);
        assert_eq!((plan.named, plan.young, plan.bytes()), (1, 1, 10));
    }
}
