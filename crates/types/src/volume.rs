//! Volumes: disks that outlive the machines they are attached to, and where machines mount them.
//!
//! Owns: the fields a tenant writes, and what can be checked of them without a node.
//! Refuses: two writers of one volume, and mounts over what the guest itself needs.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::deployment::Deployment;
use crate::limits::DiskRates;
use crate::node::DiskClass;
use crate::{Bytes, Name};

/// Smallest volume: an ext4 with a journal.
pub const VOLUME_MIN: Bytes = Bytes::mib(64);
/// Largest volume: our ext4 counts blocks in 32 bits, which ends short of 16Ti, and growth needs room for its tables.
pub const VOLUME_MAX: Bytes = Bytes::gib(8 << 10);
/// A size is a multiple of this: what the file system in it counts in.
pub const VOLUME_UNIT: Bytes = Bytes::mib(1);
/// Most volumes of one machine: each takes an interrupt line and threads of its monitor.
pub const MOUNTS_MAX: usize = 8;
/// Most snapshots of one volume: each is promised as much of the pool as the volume itself.
pub const SNAPSHOTS_MAX: usize = 32;
/// Longest path of a mount: it stands in the run specification and in messages.
pub const PATH_MAX: usize = 1024;
/// Begins the virtio-blk serial of each volume's disk; its place among the machine's mounts follows.
const SERIAL_PREFIX: &str = "vol";
/// What the guest mounts for itself: a volume there would hide it.
const OF_THE_GUEST: [&str; 4] = ["/dev", "/proc", "/sys", "/run/sifr"];

/// A disk with a file system of its own, which stays until its name stands in `destroy`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Volume {
    /// May grow with a later version, and never shrinks.
    pub size: Bytes,
    /// Which kind of disk it lies on; absent: the node chooses. Never changes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub class: Option<DiskClass>,
    /// How fast the machine that mounts it may use it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<DiskRates>,
    /// What it holds in the beginning; nothing, if absent. Read once, when the volume is made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<Origin>,
}

/// A volume of the same deployment, or a snapshot of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Origin {
    pub volume: Name,
    /// `None`: as the volume is when the copy is made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<Name>,
}

/// Where a machine has a volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mount {
    /// A workload of the same deployment.
    pub volume: Name,
    /// Absolute, without `.`, `..` or a slash at its end; made where the image has none.
    pub path: String,
    #[serde(default, skip_serializing_if = "is_false")]
    pub read_only: bool,
}

fn is_false(value: &bool) -> bool {
    !*value
}

/// The serial by which a guest finds the disk of its mount number `place`.
pub fn serial(place: usize) -> String {
    format!("{SERIAL_PREFIX}{place}")
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VolumeError {
    #[error("volume {name}: size is {found}, allowed is {VOLUME_MIN} to {VOLUME_MAX} in whole Mi")]
    Size { name: Name, found: Bytes },
    #[error("volume {name}: {field} is {found}, allowed is {allowed}")]
    Rate {
        name: Name,
        field: &'static str,
        found: String,
        allowed: String,
    },
    #[error(
        "volume {0} is a copy, which lies where its source does: leave out its `class`, or `from`"
    )]
    ClassOfCopy(Name),
    #[error("workload {machine}: it has {found} mounts, at most {MOUNTS_MAX} are possible")]
    Mounts { machine: Name, found: usize },
    #[error(
        "workload {machine}: {path:?} is no place for a volume: write an absolute path without '.', '..', ':' or a slash at its end, outside of /dev, /proc, /sys and /run/sifr"
    )]
    Path { machine: Name, path: String },
    #[error("workload {machine}: two volumes are mounted on {path}")]
    PathTwice { machine: Name, path: String },
    #[error(
        "workload {machine} mounts {volume}, which is no volume of this deployment: add it to workloads as `{volume}: {{volume: {{size: 1Gi}}}}`"
    )]
    Unknown { machine: Name, volume: Name },
    #[error("workload {machine} mounts the volume {volume} twice: once is enough")]
    Twice { machine: Name, volume: Name },
    #[error(
        "volume {volume} is written by {writer} and mounted by {other} too: one machine may write to a volume, or several may mount it with read_only: true"
    )]
    Shared {
        volume: Name,
        writer: Name,
        other: Name,
    },
    #[error("{0} is to be destroyed and is still among the workloads: take it out of one of them")]
    Kept(Name),
    #[error(
        "{0} is to be destroyed and does not stand in `remove`: name it in both to delete the volume with its content"
    )]
    NotRemoved(Name),
}

impl Volume {
    fn check(&self, name: &Name) -> Result<(), VolumeError> {
        let whole = self.size.0.is_multiple_of(VOLUME_UNIT.0);
        if !whole || !(VOLUME_MIN..=VOLUME_MAX).contains(&self.size) {
            return Err(VolumeError::Size {
                name: name.clone(),
                found: self.size,
            });
        }
        if self.class.is_some() && self.from.is_some() {
            return Err(VolumeError::ClassOfCopy(name.clone()));
        }
        let rates = self.limits.map_or(Ok(()), |limits| limits.check_volume());
        rates.map_err(|(field, found, allowed)| VolumeError::Rate {
            name: name.clone(),
            field,
            found,
            allowed,
        })
    }
}

/// Everything about a deployment's volumes that needs no node.
pub(crate) fn check(deployment: &Deployment) -> Result<(), VolumeError> {
    for (name, volume) in deployment.volumes() {
        volume.check(name)?;
    }
    for name in &deployment.destroy {
        if deployment.workloads.contains_key(name) {
            return Err(VolumeError::Kept(name.clone()));
        }
        if !deployment.remove.contains(name) {
            return Err(VolumeError::NotRemoved(name.clone()));
        }
    }
    let mut users: BTreeMap<&Name, (&Name, bool)> = BTreeMap::new();
    for (machine, spec) in deployment.machines() {
        check_mounts(machine, &spec.mounts)?;
        for mount in &spec.mounts {
            if !deployment.volumes().any(|(name, _)| *name == mount.volume) {
                return Err(VolumeError::Unknown {
                    machine: machine.clone(),
                    volume: mount.volume.clone(),
                });
            }
            let writes = !mount.read_only;
            if let Some((other, other_writes)) = users.insert(&mount.volume, (machine, writes))
                && (writes || other_writes)
            {
                let (writer, other) = if writes {
                    (machine, other)
                } else {
                    (other, machine)
                };
                return Err(VolumeError::Shared {
                    volume: mount.volume.clone(),
                    writer: writer.clone(),
                    other: other.clone(),
                });
            }
        }
    }
    Ok(())
}

fn check_mounts(machine: &Name, mounts: &[Mount]) -> Result<(), VolumeError> {
    if mounts.len() > MOUNTS_MAX {
        return Err(VolumeError::Mounts {
            machine: machine.clone(),
            found: mounts.len(),
        });
    }
    let (mut volumes, mut paths) = (BTreeSet::new(), BTreeSet::new());
    for Mount { volume, path, .. } in mounts {
        let (machine, path_text) = (machine.clone(), path.clone());
        if !is_place(path) {
            return Err(VolumeError::Path {
                machine,
                path: path_text,
            });
        }
        if !paths.insert(path) {
            return Err(VolumeError::PathTwice {
                machine,
                path: path_text,
            });
        }
        if !volumes.insert(volume) {
            return Err(VolumeError::Twice {
                machine,
                volume: volume.clone(),
            });
        }
    }
    Ok(())
}

/// One spelling of a path, so that the same place is seen to be the same.
fn is_place(path: &str) -> bool {
    let part = |part: &str| !part.is_empty() && part != "." && part != "..";
    let plain = |c: char| !c.is_control() && c != ':';
    let taken = |of: &&str| {
        let rest = path.strip_prefix(*of);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    path.len() <= PATH_MAX
        && path.chars().all(plain)
        && path
            .strip_prefix('/')
            .is_some_and(|rest| rest.split('/').all(part))
        && !OF_THE_GUEST.iter().any(taken)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::Digest;

    fn deployment(workloads: &str, more: &str) -> Result<Deployment, String> {
        let workloads =
            workloads.replace("IMAGE", &format!(r#"{{"flist":"{}"}}"#, Digest([1; 32])));
        let json = format!(r#"{{"workloads":{{{workloads}}}{more}}}"#);
        let read: Deployment = serde_json::from_str(&json).map_err(|e| e.to_string())?;
        read.check().map_err(|e| e.to_string()).map(|()| read)
    }

    const DATA: &str = r#""data":{"volume":{"size":"1Gi"}}"#;

    fn with_mounts(mounts: &str) -> Result<Deployment, String> {
        let db = format!(r#""db":{{"machine":{{"image":IMAGE,"mounts":[{mounts}]}}}}"#);
        deployment(&format!("{DATA},{db}"), "")
    }

    #[test]
    fn a_volume_is_a_workload_that_a_machine_mounts() {
        let read = with_mounts(r#"{"volume":"data","path":"/var/lib/data"}"#).expect("fine");
        let (name, volume) = read.volumes().next().expect("a volume");
        assert_eq!((name.as_str(), volume.size), ("data", Bytes::gib(1)));
        let (_, db) = read.machines().next().expect("a machine");
        assert!(!db.mounts[0].read_only);
        // A volume may wait for its machine.
        deployment(DATA, "").expect("alone");
    }

    #[test]
    fn a_mount_hides_nothing_of_the_guest_and_has_one_spelling() {
        for path in [
            "",
            "data",
            "/",
            "/a/",
            "/a//b",
            "/a/../b",
            "/./a",
            "/proc",
            "/proc/x",
            "/dev/x",
            "/sys",
            "/run/sifr",
            "/run/sifr/x",
            "/a:b",
            "/a\\nb",
        ] {
            let error = with_mounts(&format!(r#"{{"volume":"data","path":"{path}"}}"#));
            let error = error.expect_err(path);
            assert!(error.contains("no place for a volume"), "{path}: {error}");
        }
        for path in ["/data", "/procs", "/run/x", "/a.b/..c"] {
            with_mounts(&format!(r#"{{"volume":"data","path":"{path}"}}"#)).expect(path);
        }
    }

    #[test]
    fn sizes_rates_and_references_are_checked_and_named() {
        let volume = |fields: &str| deployment(&format!(r#""data":{{"volume":{{{fields}}}}}"#), "");
        for (read, says) in [
            (volume(r#""size":"1Mi""#), "size is 1Mi"),
            (volume(r#""size":"66561Ki""#), "whole Mi"),
            (volume(r#""size":"1Gi","limits":{}"#), "limits is empty"),
            (volume(r#""size":"1Gi","class":"tape""#), "unknown variant"),
            (
                volume(r#""size":"1Gi","class":"ssd","from":{"volume":"a"}"#),
                "lies where its source does",
            ),
            (
                volume(r#""size":"1Gi","limits":{"operations_per_second":1}"#),
                "limits.operations_per_second is 1",
            ),
            (
                with_mounts(r#"{"volume":"dat","path":"/a"}"#),
                "no volume of this deployment",
            ),
            (
                with_mounts(r#"{"volume":"db","path":"/a"}"#),
                "no volume of this deployment",
            ),
            (
                with_mounts(r#"{"volume":"data","path":"/a"},{"volume":"data","path":"/b"}"#),
                "twice",
            ),
            (deployment(DATA, r#","destroy":["data"]"#), "still among"),
            (
                deployment(DATA, r#","destroy":["old"]"#),
                "does not stand in `remove`",
            ),
        ] {
            let error = read.expect_err(says);
            assert!(error.contains(says), "{error} does not say {says}");
        }
    }

    proptest! {
        #[test]
        fn a_volume_has_one_writer_and_nobody_beside_it_or_readers_alone(
            read_only in prop::collection::vec(any::<bool>(), 1..5),
        ) {
            let machines: Vec<String> = read_only.iter().enumerate().map(|(n, read_only)| {
                format!(r#""m{n}":{{"machine":{{"image":IMAGE,"mounts":[
                    {{"volume":"data","path":"/a","read_only":{read_only}}}]}}}}"#)
            }).collect();
            let read = deployment(&format!("{DATA},{}", machines.join(",")), "");
            let fine = read_only.len() == 1 || read_only.iter().all(|read_only| *read_only);
            prop_assert_eq!(read.is_ok(), fine, "{:?}", read);
        }
    }
}
