//! One volume on its way from what it is to what it should be.
//!
//! Owns: the state of a volume, and the order of its changes: that of the statements that asked for them.
//! Refuses: machines. What they have of it comes with each question ([`Use`]).

use types::status::{SnapshotStatus, VolumeState, VolumeStatus};
use types::volume::Volume as Spec;
use types::{Name, VmId};

use crate::desired::{History, Key, Phase, Target};
use crate::host::{
    Attached, Change, SnapshotRecord, Source, User, VolumeOnPool, VolumeRecord, VolumeStep,
};
use crate::machine::backoff;

/// What a volume should be.
#[derive(Debug, Clone)]
pub(crate) enum Intent<'a> {
    Keep {
        spec: &'a Spec,
        target: &'a Target,
        history: History,
    },
    /// Removed with its content, because a signed statement says so.
    Gone,
    /// The ledger has never heard of it, or the node goes down: left alone.
    Unknown,
}

impl<'a> Intent<'a> {
    pub(crate) fn of(target: Option<&'a Target>, workload: &Name, draining: bool) -> Self {
        match target {
            Some(target) if !draining => match (target.volume(workload), &target.phase) {
                (None, _) | (_, Phase::Deleted) => Self::Gone,
                (Some(spec), Phase::Running(_) | Phase::Stopped(_)) => Self::Keep {
                    spec,
                    target,
                    history: target.history(workload),
                },
            },
            Some(_) | None => Self::Unknown,
        }
    }
}

/// A VM that has the volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Use {
    pub(crate) vm: VmId,
    pub(crate) machine: Name,
    pub(crate) attached: Attached,
    /// Its program runs: the guest can be spoken to.
    pub(crate) running: bool,
}

/// What to do now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Action {
    /// The source is the caller's to find.
    Make,
    Change(Box<VolumeStep>),
    Erase,
    Wait(Option<u64>),
    /// Nothing is left of it.
    Drop,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Activity {
    Idle,
    Changing,
    Erasing,
}

#[derive(Debug, Clone)]
pub(crate) struct Volume {
    pub(crate) key: Key,
    pub(crate) workload: Name,
    pool: Option<VolumeOnPool>,
    activity: Activity,
    /// A change has been tried: there may be remains even without a record.
    touched: bool,
    failures: u32,
    not_before: u64,
    message: Option<String>,
}

impl Volume {
    pub(crate) fn new(key: Key, workload: Name, pool: Option<VolumeOnPool>) -> Self {
        Self {
            key,
            workload,
            pool,
            activity: Activity::Idle,
            touched: false,
            failures: 0,
            not_before: 0,
            message: None,
        }
    }

    pub(crate) fn record(&self) -> Option<&VolumeRecord> {
        match &self.pool {
            Some(VolumeOnPool::Record(record)) => Some(record),
            Some(VolumeOnPool::Unreadable(_)) | None => None,
        }
    }

    /// What of it a machine may be given, or what has to come first.
    pub(crate) fn ready(&self, intent: &Intent<'_>) -> Result<&VolumeRecord, String> {
        let name = &self.workload;
        let unreadable = match &self.pool {
            Some(VolumeOnPool::Unreadable(why)) => Some(why),
            Some(VolumeOnPool::Record(_)) | None => None,
        };
        let waits = || match unreadable.or(self.message.as_ref()) {
            Some(message) => format!("it waits for its volume {name}: {message}"),
            None => format!("it waits for its volume {name}"),
        };
        let Intent::Keep {
            target, history, ..
        } = intent
        else {
            return Err(waits());
        };
        let record = self.record().ok_or_else(waits)?;
        let restored = history.restored.map_or(0, |restored| restored.version);
        let fits = record.incarnation == target.incarnation && record.restored >= restored;
        if fits && self.activity == Activity::Idle {
            Ok(record)
        } else {
            Err(waits())
        }
    }

    /// As the source of a copy: nothing happens to it just now.
    pub(crate) fn source(&self) -> Option<&VolumeRecord> {
        self.record().filter(|_| self.activity == Activity::Idle)
    }

    /// What to do now. The caller does it by the methods below.
    pub(crate) fn next(&self, intent: &Intent<'_>, users: &[Use], now: u64) -> Action {
        match (self.activity, intent) {
            (Activity::Changing | Activity::Erasing, _) | (_, Intent::Unknown) => {
                Action::Wait(None)
            }
            (Activity::Idle, _) if now < self.not_before => Action::Wait(Some(self.not_before)),
            (Activity::Idle, Intent::Gone) if self.pool.is_none() && !self.touched => Action::Drop,
            (Activity::Idle, Intent::Gone) => self.erase(users),
            (
                Activity::Idle,
                Intent::Keep {
                    spec,
                    target,
                    history,
                },
            ) => match &self.pool {
                None => Action::Make,
                Some(VolumeOnPool::Unreadable(_)) => Action::Wait(None),
                // Of before a deletion.
                Some(VolumeOnPool::Record(record)) if record.incarnation != target.incarnation => {
                    self.erase(users)
                }
                Some(VolumeOnPool::Record(record)) => {
                    let change = next_change(record, spec, target, history, users);
                    change.map_or(Action::Wait(None), |(record, change)| {
                        Action::Change(Box::new(VolumeStep {
                            volume: self.id(),
                            record,
                            change,
                        }))
                    })
                }
            },
        }
    }

    fn erase(&self, users: &[Use]) -> Action {
        if users.is_empty() {
            Action::Erase
        } else {
            Action::Wait(None)
        }
    }

    pub(crate) fn id(&self) -> VmId {
        VmId::new(&self.key.signer, &self.key.name, &self.workload)
    }

    /// The step that makes it.
    pub(crate) fn making(&self, spec: &Spec, target: &Target, from: Option<Source>) -> VolumeStep {
        let history = target.history(&self.workload);
        VolumeStep {
            volume: self.id(),
            record: VolumeRecord {
                signer: self.key.signer,
                deployment: self.key.name.clone(),
                workload: self.workload.clone(),
                incarnation: target.incarnation,
                size: spec.size,
                restored: history.restored.map_or(0, |restored| restored.version),
                snapshots: Default::default(),
                made: target.version,
                shared: Default::default(),
            },
            change: Change::Make { from },
        }
    }

    pub(crate) fn changing(&mut self) {
        (self.activity, self.touched) = (Activity::Changing, true);
    }

    pub(crate) fn erasing(&mut self) {
        self.activity = Activity::Erasing;
    }

    pub(crate) fn changed(&mut self, record: VolumeRecord, trouble: Option<String>) {
        self.pool = Some(VolumeOnPool::Record(record));
        (self.activity, self.failures, self.not_before) = (Activity::Idle, 0, 0);
        self.message = trouble;
    }

    pub(crate) fn erased(&mut self) {
        (self.pool, self.message, self.touched) = (None, None, false);
        (self.activity, self.failures, self.not_before) = (Activity::Idle, 0, 0);
    }

    pub(crate) fn failed(&mut self, what: &str, now: u64) {
        self.activity = Activity::Idle;
        self.failures = self.failures.saturating_add(1);
        let pause = backoff(self.failures);
        self.not_before = now.saturating_add(pause);
        self.message = Some(format!("{what}; the next try is after {} s", pause / 1000));
    }

    pub(crate) fn waits(&mut self, message: &str) {
        self.message = Some(message.to_owned());
    }

    /// Whether something of it is still on its way out, which a statement must not bring back.
    pub(crate) fn is_leaving(&self, intent: &Intent<'_>) -> bool {
        match intent {
            Intent::Gone => self.pool.is_some() || self.touched || self.activity != Activity::Idle,
            Intent::Keep { .. } | Intent::Unknown => false,
        }
    }

    /// Whether the snapshot of this version is still to be copied back.
    pub(crate) fn is_needed(&self, history: &History, snapshot: u64) -> bool {
        let done = self.record().map_or(0, |record| record.restored);
        history
            .restored
            .is_some_and(|restored| restored.from == snapshot && restored.version > done)
    }

    pub(crate) fn status(&self, intent: &Intent<'_>, users: &[Use]) -> VolumeStatus {
        let unreadable = match &self.pool {
            Some(VolumeOnPool::Unreadable(why)) => {
                Some(format!("{why}; nothing of it is used or changed"))
            }
            Some(VolumeOnPool::Record(_)) | None => None,
        };
        let record = self.record();
        let (state, size, wanted) = match intent {
            Intent::Keep {
                spec,
                target,
                history,
            } => {
                let state = match (self.activity, record) {
                    _ if unreadable.is_some() => VolumeState::Failed,
                    // What failed may not be wanted any more.
                    (Activity::Idle, Some(record)) if is_done(record, spec, target, history) => {
                        VolumeState::Ready
                    }
                    _ if self.failures > 0 => VolumeState::Failed,
                    (Activity::Changing | Activity::Erasing, _) => VolumeState::Changing,
                    (Activity::Idle, None) => VolumeState::Pending,
                    (Activity::Idle, Some(_)) => VolumeState::Changing,
                };
                (state, spec.size, history.snapshots.clone())
            }
            Intent::Gone => (
                VolumeState::Removing,
                Default::default(),
                Default::default(),
            ),
            Intent::Unknown => (VolumeState::Ready, Default::default(), Default::default()),
        };
        let void = state == VolumeState::Ready && self.failures > 0;
        let taken = |version: &u64| record.and_then(|record| record.snapshots.get(version));
        let snapshot = |(name, version): (Name, u64)| {
            let status = SnapshotStatus {
                version,
                taken: taken(&version).is_some(),
                settled: taken(&version).is_some_and(|snapshot| snapshot.settled),
            };
            (name, status)
        };
        VolumeStatus {
            state,
            size: record.map_or(size, |record| record.size),
            used: None,
            attached: users.iter().map(|user| user.machine.clone()).collect(),
            snapshots: wanted.into_iter().map(snapshot).collect(),
            message: unreadable.or_else(|| self.message.clone().filter(|_| !void)),
        }
    }
}

/// The first change that the volume needs and that can be made now, with the record as it is to be then. What statements
/// asked for comes in their order, so that a snapshot before a restoration holds what there was before it.
fn next_change(
    record: &VolumeRecord,
    spec: &Spec,
    target: &Target,
    history: &History,
    users: &[Use],
) -> Option<(VolumeRecord, Change)> {
    let missing = history
        .snapshots
        .iter()
        .map(|(name, version)| (*version, name))
        .filter(|(version, _)| !record.snapshots.contains_key(version));
    let snapshot = missing.min();
    let restored = history.restored.filter(|r| r.version > record.restored);
    match (snapshot, restored) {
        (Some((version, name)), restored) if restored.is_none_or(|r| version < r.version) => {
            let mut record = record.clone();
            let snapshot = SnapshotRecord {
                name: name.clone(),
                size: record.size,
                settled: users.is_empty(),
            };
            record.snapshots.insert(version, snapshot);
            let users = reachable(users)?;
            let writer = users.into_iter().find(|user| !user.attached.read_only);
            return Some((record, Change::Snapshot { version, writer }));
        }
        (_, Some(restored)) => {
            let (from, before) = (restored.from, record.restored);
            let size = record.snapshots.get(&from)?.size;
            let record = VolumeRecord {
                restored: restored.version,
                // What grew since is grown again.
                size,
                ..record.clone()
            };
            return users
                .is_empty()
                .then_some((record, Change::Restore { from, before }));
        }
        (_, None) => {}
    }
    // One of a later statement than this ledger's newest is nobody's to remove.
    let given_up = |version: &&u64| {
        **version <= target.version && !history.snapshots.values().any(|kept| kept == *version)
    };
    if let Some(version) = record.snapshots.keys().find(given_up) {
        let (version, mut record) = (*version, record.clone());
        record.snapshots.remove(&version);
        return Some((record, Change::DropSnapshot { version }));
    }
    if record.size < spec.size {
        let record = VolumeRecord {
            size: spec.size,
            ..record.clone()
        };
        let users = reachable(users)?;
        return Some((record, Change::Grow { users }));
    }
    None
}

/// Whether nothing is left to change.
fn is_done(record: &VolumeRecord, spec: &Spec, target: &Target, history: &History) -> bool {
    let taken = |version: &u64| record.snapshots.contains_key(version);
    record.incarnation == target.incarnation
        && record.size >= spec.size
        && history
            .restored
            .is_none_or(|restored| restored.version <= record.restored)
        && history.snapshots.values().all(taken)
        && record.snapshots.len() == history.snapshots.len()
}

/// Everybody who has it, if all can be spoken to: who is on the way up or down is waited for.
fn reachable(users: &[Use]) -> Option<Vec<User>> {
    let user = |user: &Use| {
        user.running.then(|| User {
            vm: user.vm.clone(),
            attached: user.attached.clone(),
        })
    };
    users.iter().map(user).collect()
}
