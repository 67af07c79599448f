//! What stays in the chunk cache when the pool is short of room.
//!
//! Owns: the rule. What a deployment needs is pinned and never removed, running or stopped; what a VM still
//! runs on and what was pushed not long ago is spared; everything else is a cache, kept while there is room and
//! removed, what rested longest first, when a push or a deployment needs its place.
//! Refuses: removing (`flist::cache` does) and deciding when (`server` does, when room is short).

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::{Duration, SystemTime};

use flist::cache::Keep;
use types::Digest;
use workload::desired::Desired;

/// Pushed flists without a deployment are kept this long when room is short: a push of a large image
/// over a poor line ends within it, and is followed by its deployment.
const PUSH_KEPT: Duration = Duration::from_secs(6 * 3600);

/// What deployments and VMs need. An image with a store can be had again, so it may be missing.
pub(crate) fn needed(desired: &Desired, used: &BTreeSet<Digest>) -> BTreeMap<Digest, Keep> {
    let mut keep: BTreeMap<Digest, Keep> = used.iter().map(|f| (*f, Keep::Spared)).collect();
    let mut fetchable = BTreeSet::new();
    for (.., machine) in desired.machines() {
        keep.insert(machine.image.flist, Keep::Pinned);
        if machine.image.store.is_some() {
            fetchable.insert(machine.image.flist);
        }
    }
    for flist in fetchable {
        keep.insert(flist, Keep::Spared);
    }
    keep
}

/// Adds the flists in `directory` that were pushed not long ago: their deployment may be on its way.
pub(crate) fn spare_recent(directory: &Path, keep: &mut BTreeMap<Digest, Keep>) {
    let recent = |file: &std::fs::DirEntry| {
        let age = file
            .metadata()
            .and_then(|m| m.modified())
            .map(|at| SystemTime::now().duration_since(at));
        // A file from the future is one from before the clock was set right.
        age.is_ok_and(|age| age.is_ok_and(|age| age < PUSH_KEPT))
    };
    let files = std::fs::read_dir(directory).into_iter().flatten().flatten();
    for file in files.filter(recent) {
        let name = file.file_name();
        let hex = name.to_str().and_then(|name| name.strip_suffix(".flist"));
        if let Some(digest) = hex.and_then(|hex| Digest::from_hex(hex).ok()) {
            keep.entry(digest).or_insert(Keep::Spared);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use types::PublicKey;
    use types::deployment::{Action, Statement};
    use workload::desired::Verified;

    fn digest(n: u8) -> Digest {
        Digest([n; 32])
    }

    fn apply(desired: &mut Desired, name: &str, version: u64, action: Action) {
        let statement = Statement {
            node: PublicKey([0; 32]),
            name: name.parse().expect("a name"),
            version,
            action,
        };
        desired.apply(&Verified {
            signer: PublicKey([1; 32]),
            statement,
            digest: digest(0),
        });
    }

    fn deploy(image: Digest, store: &str) -> Action {
        let json = format!(
            r#"{{"deploy":{{"workloads":{{"web":{{"machine":{{"image":{{"flist":"{image}"{store}}}}}}}}}}}}}"#
        );
        serde_json::from_str(&json).expect("an action")
    }

    #[test]
    fn what_is_deployed_is_pinned_running_or_stopped_until_it_is_deleted() {
        let mut desired = Desired::default();
        apply(&mut desired, "runs", 1, deploy(digest(1), ""));
        apply(&mut desired, "stops", 1, deploy(digest(2), ""));
        apply(&mut desired, "stops", 2, Action::Stop);
        apply(&mut desired, "gone", 1, deploy(digest(3), ""));
        apply(&mut desired, "gone", 2, Action::Delete);
        apply(
            &mut desired,
            "fetched",
            1,
            deploy(digest(4), r#","store":"http://a/""#),
        );
        apply(&mut desired, "updated", 1, deploy(digest(5), ""));
        apply(&mut desired, "updated", 2, deploy(digest(1), ""));
        // The old image's VM has not ended yet.
        let used = BTreeSet::from([digest(1), digest(5)]);
        let expected = BTreeMap::from([
            (digest(1), Keep::Pinned),
            (digest(2), Keep::Pinned),
            (digest(4), Keep::Spared),
            (digest(5), Keep::Spared),
        ]);
        assert_eq!(needed(&desired, &used), expected);
    }

    #[test]
    fn a_push_is_spared_for_some_hours_and_a_pin_stays_a_pin() {
        let directory = tempfile::tempdir().expect("a directory");
        let pushed = |n: u8, age: Duration| {
            let path = directory.path().join(format!("{}.flist", digest(n).hex()));
            let file = File::create(path).expect("a file");
            let then = SystemTime::now() - age;
            file.set_modified(then).expect("a time");
        };
        pushed(1, Duration::from_secs(60));
        pushed(2, PUSH_KEPT + Duration::from_secs(60));
        pushed(3, Duration::from_secs(60));
        File::create(directory.path().join("stray")).expect("a file");
        let mut keep = BTreeMap::from([(digest(3), Keep::Pinned)]);
        spare_recent(directory.path(), &mut keep);
        let expected = BTreeMap::from([(digest(1), Keep::Spared), (digest(3), Keep::Pinned)]);
        assert_eq!(keep, expected);
    }
}
