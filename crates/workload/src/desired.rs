//! What should be: the statements of a ledger, folded to one state per deployment.
//!
//! Owns: the meaning of a sequence of statements, and which of them that meaning needs.
//! Refuses: judging a statement (`admission` does) and doing anything about it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use types::deployment::{Action, Deployment, Machine, Protocol, Statement, Workload};
use types::ingress::{Host, Site};
use types::status;
use types::volume::Volume;
use types::{Digest, Name, PublicKey, VmId, VolumeId};

use crate::host::launch_digest;

/// A deployment belongs to its signer: two tenants may use the same name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    pub signer: PublicKey,
    pub name: Name,
}

/// A statement whose signature has been verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified {
    pub signer: PublicKey,
    pub statement: Statement,
    /// BLAKE3 of the signed payload.
    pub digest: Digest,
}

impl Verified {
    pub fn key(&self) -> Key {
        Key {
            signer: self.signer,
            name: self.statement.name.clone(),
        }
    }
}

/// What a deployment should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Of the newest statement; the next one is this plus one.
    pub version: u64,
    pub phase: Phase,
    /// Version of the newest deletion, 0 before the first: disks from before it must go.
    pub incarnation: u64,
    /// Version of the newest `Restart`: machines launched at a lower version are restarted ([`Target::relaunch`]).
    pub restart: u64,
    /// Version of the newest `Restart` or `Start`: programs that ended before it run again.
    pub start: u64,
    /// What was said of its volumes beside the document.
    pub volumes: BTreeMap<Name, History>,
    /// [`launch_digest`] of each machine: asked for at every turn of the loop, of every machine of the node.
    launches: BTreeMap<Name, Digest>,
    /// Shared with who serves them: certificates are long.
    pub sites: BTreeMap<Host, Arc<Site>>,
}

/// What is to become of one volume beside its size. Versions are those of the statements.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct History {
    /// Which are to be kept, by name.
    pub snapshots: BTreeMap<Name, u64>,
    pub restored: Option<Restored>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Restored {
    pub version: u64,
    /// Of the snapshot.
    pub from: u64,
}

impl History {
    fn drop_snapshot(&mut self, snapshot: &Name) {
        let Some(version) = self.snapshots.remove(snapshot) else {
            return;
        };
        // Admission has seen that it was done.
        if self
            .restored
            .is_some_and(|restored| restored.from == version)
        {
            self.restored = None;
        }
    }

    fn restore(&mut self, snapshot: &Name, version: u64) {
        if let Some(from) = self.snapshots.get(snapshot) {
            let from = *from;
            self.restored = Some(Restored { version, from });
        }
    }

    fn versions(&self) -> impl Iterator<Item = u64> {
        let restored = self.restored.map(|restored| restored.version);
        self.snapshots.values().copied().chain(restored)
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Phase {
    Running(Deployment),
    Stopped(Deployment),
    /// A tombstone: nothing is left but the version count.
    Deleted,
}

impl Target {
    /// The document, unless deleted.
    pub fn deployment(&self) -> Option<&Deployment> {
        match &self.phase {
            Phase::Running(deployment) | Phase::Stopped(deployment) => Some(deployment),
            Phase::Deleted => None,
        }
    }

    pub fn machine(&self, workload: &Name) -> Option<&Machine> {
        match self.deployment()?.workloads.get(workload)? {
            Workload::Machine(machine) => Some(machine),
            Workload::Volume(_) | Workload::Network(_) | Workload::Pool(_) => None,
        }
    }

    /// What the machine is made from: another digest is another VM.
    pub(crate) fn launch(&self, workload: &Name) -> Option<Digest> {
        self.launches.get(workload).copied()
    }

    /// A VM of the machine that was launched at a lower version is to be stopped, whatever it is made from: it has
    /// outlived a restart, or a volume of it is to be restored, for which it must let go.
    pub(crate) fn relaunch(&self, machine: &Machine) -> u64 {
        let volumes = machine
            .mounts
            .iter()
            .filter_map(|mount| self.volumes.get(&mount.volume));
        let restored = volumes.filter_map(|history| history.restored);
        let restored = restored.map(|restored| restored.version).max();
        self.restart.max(restored.unwrap_or(0))
    }

    pub fn volume(&self, workload: &Name) -> Option<&Volume> {
        match self.deployment()?.workloads.get(workload)? {
            Workload::Volume(volume) => Some(volume),
            Workload::Machine(_) | Workload::Network(_) | Workload::Pool(_) => None,
        }
    }

    pub fn history(&self, volume: &Name) -> History {
        self.volumes.get(volume).cloned().unwrap_or_default()
    }

    pub fn desired(&self) -> status::Desired {
        match self.phase {
            Phase::Running(_) => status::Desired::Running,
            Phase::Stopped(_) => status::Desired::Stopped,
            Phase::Deleted => status::Desired::Deleted,
        }
    }

    /// The state after `statement`, which follows `before`. A statement that changes the state of
    /// nothing (a stop of what is deleted) counts its version and is otherwise without effect.
    fn after(before: Option<Self>, statement: &Statement) -> Self {
        let version = statement.version;
        let mut target = before.unwrap_or(Self {
            version,
            phase: Phase::Deleted,
            incarnation: 0,
            restart: 0,
            start: 0,
            volumes: BTreeMap::new(),
            launches: BTreeMap::new(),
            sites: BTreeMap::new(),
        });
        target.version = version;
        match &statement.action {
            Action::Deploy(deployment) => {
                let stays = |name: &Name| deployment.volumes().any(|(volume, _)| volume == name);
                target.volumes.retain(|name, _| stays(name));
                let digest = |(name, machine): (&Name, &Machine)| {
                    (name.clone(), launch_digest(machine, target.incarnation))
                };
                target.launches = deployment.machines().map(digest).collect();
                let site = |(host, site): (&Host, &Site)| (host.clone(), Arc::new(site.clone()));
                target.sites = deployment.ingress.iter().map(site).collect();
                target.phase = Phase::Running(deployment.clone());
            }
            Action::Stop => {
                target.phase = match target.phase {
                    Phase::Running(d) | Phase::Stopped(d) => Phase::Stopped(d),
                    Phase::Deleted => Phase::Deleted,
                }
            }
            Action::Start | Action::Restart => {
                target.start = version;
                if statement.action == Action::Restart {
                    target.restart = version;
                }
                target.phase = match target.phase {
                    Phase::Running(d) | Phase::Stopped(d) => Phase::Running(d),
                    Phase::Deleted => Phase::Deleted,
                }
            }
            Action::Delete | Action::Destroy { .. } => {
                target.phase = Phase::Deleted;
                (target.incarnation, target.restart, target.start) = (version, 0, 0);
                target.volumes.clear();
                target.launches.clear();
                target.sites.clear();
            }
            Action::Snapshot { volume, snapshot } => {
                let history = target.volumes.entry(volume.clone()).or_default();
                let snapshot = history.snapshots.entry(snapshot.clone());
                snapshot.or_insert(version);
            }
            Action::DropSnapshot { volume, snapshot } => {
                if let Some(history) = target.volumes.get_mut(volume) {
                    history.drop_snapshot(snapshot);
                }
            }
            Action::Restore { volume, snapshot } => {
                if let Some(history) = target.volumes.get_mut(volume) {
                    history.restore(snapshot, version);
                }
            }
        }
        target
            .volumes
            .retain(|_, history| *history != History::default());
        target
    }
}

/// All deployments of a node, tombstones included.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Desired {
    targets: BTreeMap<Key, Target>,
}

impl Desired {
    /// Takes the next statement. Versions at or below the newest are passed over: they have been
    /// taken.
    pub fn apply(&mut self, verified: &Verified) {
        let key = verified.key();
        let before = self.targets.remove(&key);
        let target = match before {
            Some(target) if target.version >= verified.statement.version => target,
            before => Target::after(before, &verified.statement),
        };
        self.targets.insert(key, target);
    }

    pub fn get(&self, key: &Key) -> Option<&Target> {
        self.targets.get(key)
    }

    pub fn iter(&self) -> impl Iterator<Item = (&Key, &Target)> {
        self.targets.iter()
    }

    /// Names in use, tombstones included.
    pub fn len(&self) -> usize {
        self.targets.len()
    }

    pub fn is_empty(&self) -> bool {
        self.targets.is_empty()
    }

    /// UDP ports of the node that deployments have, published or for networks across nodes; `except` one's.
    pub fn udp_ports(&self, except: Option<&Key>) -> BTreeSet<u16> {
        let others = self.targets.iter().filter(|(key, _)| Some(*key) != except);
        let deployments = others.filter_map(|(_, target)| target.deployment());
        deployments.flat_map(udp_ports).collect()
    }

    /// Every machine that should exist, running or not.
    pub fn machines(&self) -> impl Iterator<Item = (VmId, &Key, &Target, &Name, &Machine)> {
        self.targets.iter().flat_map(|(key, target)| {
            target
                .deployment()
                .into_iter()
                .flat_map(Deployment::machines)
                .map(move |(name, machine)| {
                    (
                        VmId::new(&key.signer, &key.name, name),
                        key,
                        target,
                        name,
                        machine,
                    )
                })
        })
    }
}

/// UDP ports of the node that a deployment has.
pub(crate) fn udp_ports(deployment: &Deployment) -> BTreeSet<u16> {
    let published = deployment
        .machines()
        .flat_map(|(_, machine)| &machine.ports);
    let published = published.filter(|port| port.protocol == Protocol::Udp);
    let meshes = deployment
        .networks()
        .filter_map(|(_, network)| network.mesh.as_ref());
    let meshes = meshes.map(|mesh| mesh.port);
    published.map(|port| port.node).chain(meshes).collect()
}

/// A volume that should exist, as the ledger has it.
#[derive(Debug, Clone, Copy)]
pub struct Wanted<'a> {
    pub key: &'a Key,
    pub target: &'a Target,
    pub workload: &'a Name,
    pub volume: &'a Volume,
}

impl Desired {
    /// Every volume that should exist.
    pub fn volumes(&self) -> impl Iterator<Item = (VolumeId, Wanted<'_>)> {
        self.targets.iter().flat_map(|(key, target)| {
            let deployment = target.deployment().into_iter();
            let volumes = deployment.flat_map(Deployment::volumes);
            volumes.map(move |(workload, volume)| {
                let wanted = Wanted {
                    key,
                    target,
                    workload,
                    volume,
                };
                (VmId::new(&key.signer, &key.name, workload), wanted)
            })
        })
    }
}

/// Which of these statements of one deployment, oldest first, its state needs: folding them alone
/// gives the same state as folding all.
pub(crate) fn needed(statements: &[&Statement]) -> Vec<usize> {
    let last = |wanted: fn(&Action) -> bool| statements.iter().rposition(|s| wanted(&s.action));
    let deleted = last(|a| matches!(a, Action::Delete | Action::Destroy { .. }));
    let of_volumes = of_volumes(statements);
    let mut keep: Vec<usize> = [
        last(|a| matches!(a, Action::Deploy(_))),
        last(|a| matches!(a, Action::Restart)),
        last(|a| matches!(a, Action::Start)),
        last(|a| matches!(a, Action::Stop)),
        statements.len().checked_sub(1),
    ]
    .into_iter()
    .flatten()
    .chain(of_volumes)
    .filter(|at| deleted.is_none_or(|deleted| *at > deleted))
    .chain(deleted)
    .collect();
    keep.sort_unstable();
    keep.dedup();
    keep
}

/// Those by which snapshots are there, and by which volumes were restored.
fn of_volumes(statements: &[&Statement]) -> Vec<usize> {
    let fold = |before, statement: &&Statement| Some(Target::after(before, statement));
    let Some(target) = statements.iter().fold(None, fold) else {
        return Vec::new();
    };
    let histories = target.volumes.values();
    let alive: BTreeSet<u64> = histories.flat_map(History::versions).collect();
    let is_alive = |at: &usize| alive.contains(&statements[*at].version);
    (0..statements.len()).filter(is_alive).collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    pub(crate) fn deployment(cpus: u8) -> Deployment {
        let flist = Digest([cpus; 32]);
        serde_json::from_str(&format!(
            r#"{{"workloads":{{"web":{{"machine":{{"image":{{"flist":"{flist}"}},"cpus":{cpus}}}}}}}}}"#
        ))
        .expect("a valid deployment")
    }

    pub(crate) fn verified(version: u64, action: Action) -> Verified {
        Verified {
            signer: PublicKey([1; 32]),
            statement: Statement {
                node: PublicKey([9; 32]),
                name: "shop".parse().expect("a valid name"),
                version,
                action,
            },
            digest: Digest([0; 32]),
        }
    }

    pub(crate) fn any_action() -> impl Strategy<Value = Action> {
        prop_oneof![
            (1u8..4).prop_map(|n| Action::Deploy(deployment(n))),
            Just(Action::Stop),
            Just(Action::Start),
            Just(Action::Restart),
            Just(Action::Delete),
        ]
    }

    /// Two volumes with names for three states each; whether they exist, is not asked.
    fn any_of_volumes() -> impl Strategy<Value = Action> {
        let name = |n: u8| -> Name { format!("n{n}").parse().expect("a valid name") };
        (0u8..4, 0u8..2, 0u8..3).prop_map(move |(kind, volume, snapshot)| {
            let (volume, snapshot) = (name(volume), name(snapshot));
            match kind {
                0 => Action::Snapshot { volume, snapshot },
                1 => Action::DropSnapshot { volume, snapshot },
                2 => Action::Restore { volume, snapshot },
                _ => {
                    let mut deployment = deployment(1);
                    let made = r#"{"volume":{"size":"64Mi"}}"#;
                    let made = serde_json::from_str(made).expect("a valid volume");
                    deployment.workloads.insert(volume, made);
                    Action::Deploy(deployment)
                }
            }
        })
    }

    fn fold<'a>(statements: impl IntoIterator<Item = &'a Verified>) -> Desired {
        let mut desired = Desired::default();
        statements.into_iter().for_each(|s| desired.apply(s));
        desired
    }

    proptest! {
        #[test]
        fn the_needed_statements_alone_mean_the_same_as_all(actions in prop::collection::vec(prop_oneof![any_action(), any_of_volumes()], 1..24)) {
            let all: Vec<_> = actions.into_iter().zip(1..).map(|(a, v)| verified(v, a)).collect();
            let keep = needed(&all.iter().map(|v| &v.statement).collect::<Vec<_>>());
            // Three snapshots of either volume, and the restoration of each.
            prop_assert!(keep.len() <= 6 + 2 * (3 + 1));
            prop_assert_eq!(fold(&all), fold(keep.iter().map(|at| &all[*at])));
        }
    }

    #[test]
    fn a_deletion_is_remembered_by_its_successor() {
        let desired = fold(&[
            verified(1, Action::Deploy(deployment(1))),
            verified(2, Action::Restart),
            verified(3, Action::Delete),
            verified(4, Action::Deploy(deployment(2))),
        ]);
        let target = desired
            .get(&verified(1, Action::Stop).key())
            .expect("a target");
        assert_eq!(
            (target.version, target.incarnation, target.restart),
            (4, 3, 0)
        );
    }

    #[test]
    fn an_old_version_changes_nothing() {
        let (one, two) = (
            verified(1, Action::Deploy(deployment(1))),
            verified(2, Action::Stop),
        );
        assert_eq!(fold([&one, &two]), fold([&one, &two, &one]));
    }
}
