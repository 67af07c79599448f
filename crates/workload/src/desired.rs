//! What should be: the statements of a ledger, folded to one state per deployment.
//!
//! Owns: the meaning of a sequence of statements, and which of them that meaning needs.
//! Refuses: judging a statement (`admission` does) and doing anything about it.

use std::collections::BTreeMap;

use types::deployment::{Action, Deployment, Machine, Statement};
use types::status;
use types::{Digest, Name, PublicKey, VmId};

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
    /// Version of the newest `Restart`: machines launched at a lower version are restarted.
    pub restart: u64,
    /// Version of the newest `Restart` or `Start`: programs that ended before it run again.
    pub start: u64,
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
        self.deployment()?
            .machines()
            .find(|(name, _)| *name == workload)
            .map(|(_, machine)| machine)
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
        });
        target.version = version;
        match &statement.action {
            Action::Deploy(deployment) => target.phase = Phase::Running(deployment.clone()),
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
            Action::Delete => {
                target.phase = Phase::Deleted;
                (target.incarnation, target.restart, target.start) = (version, 0, 0);
            }
        }
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

/// Which of these statements of one deployment, oldest first, its state needs: folding them alone
/// gives the same state as folding all.
pub(crate) fn needed(statements: &[&Statement]) -> Vec<usize> {
    let last = |wanted: fn(&Action) -> bool| statements.iter().rposition(|s| wanted(&s.action));
    let deleted = last(|a| matches!(a, Action::Delete));
    let mut keep: Vec<usize> = [
        last(|a| matches!(a, Action::Deploy(_))),
        last(|a| matches!(a, Action::Restart)),
        last(|a| matches!(a, Action::Start)),
        statements.len().checked_sub(1),
    ]
    .into_iter()
    .flatten()
    .filter(|at| deleted.is_none_or(|deleted| *at > deleted))
    .chain(deleted)
    .collect();
    keep.sort_unstable();
    keep.dedup();
    keep
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

    fn fold<'a>(statements: impl IntoIterator<Item = &'a Verified>) -> Desired {
        let mut desired = Desired::default();
        statements.into_iter().for_each(|s| desired.apply(s));
        desired
    }

    proptest! {
        #[test]
        fn the_needed_statements_alone_mean_the_same_as_all(actions in prop::collection::vec(any_action(), 1..12)) {
            let all: Vec<_> = actions.into_iter().zip(1..).map(|(a, v)| verified(v, a)).collect();
            let keep = needed(&all.iter().map(|v| &v.statement).collect::<Vec<_>>());
            prop_assert!(keep.len() <= 5);
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
