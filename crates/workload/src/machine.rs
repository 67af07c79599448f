//! One machine on its way from what it is to what it should be.
//!
//! Owns: the state of a machine, what follows from each event, and when a failed start is tried again.
//! Refuses: other machines. Nothing here can make one wait for another; how many start at once the reconciler counts.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use types::Name;
use types::deployment::{Machine as Spec, RestartPolicy};
use types::status::{Exit, State, WorkloadStatus};
use types::trouble::Code;

use crate::desired::{Key, Phase, Target};
use crate::host::{
    Attached, CardAddress, End, Finished, Launch, Layer, OnPool, Record, Survivor, all_cards,
};

/// First pause after a failure, doubled with each further one. No jitter: one node's machines do not
/// press on anything together.
pub(crate) const BACKOFF_FIRST_MS: u64 = 1_000;
/// Longest pause: what a person who has repaired something will wait.
pub(crate) const BACKOFF_MAX_MS: u64 = 60_000;
/// A run of this length was no failure to start: the next pause is the first again.
const LONG_RUN_MS: u64 = 2 * BACKOFF_MAX_MS;
/// From the stop signal to killing everything in the guest, as Docker has it.
pub const STOP_GRACE_MS: u64 = 10_000;
/// What the guest may take beyond its grace until it says that its program has ended: a kill and a line.
const STOP_MARGIN_MS: u64 = 5_000;
/// From the program's end to the VM's: 10 s for output that is under way, 5 s each for the guest's last line and
/// its farewell, and what then remains for the disk. All that a program wrote may still be in the guest's
/// memory, and many guests write at once when a node goes down. Killed in the middle, none loses more
/// than a power cut would take.
const SETTLE_MAX_MS: u64 = 60_000;
/// Longest from the order to stop to the VMM's death.
pub const STOP_MAX_MS: u64 = STOP_GRACE_MS + STOP_MARGIN_MS + SETTLE_MAX_MS;
/// Longest start: an image that trickles in over a poor line.
const START_MAX_MS: u64 = 10 * 60_000;
/// So long a start keeps others waiting, where no more may be under way at once: a guest that comes up as it should has
/// needed the processor by then, and one that waits for its image or for ever needs none.
pub(crate) const SEAT_MS: u64 = 10_000;

/// What a machine should be.
#[derive(Debug, Clone)]
pub(crate) enum Intent<'a> {
    Run {
        spec: &'a Spec,
        launch: Launch,
        target: &'a Target,
    },
    /// Not running, disk kept.
    Rest,
    /// Removed with its disk, because a signed statement says so.
    Gone,
    /// The ledger has never heard of it: left alone.
    Unknown,
}

impl<'a> Intent<'a> {
    pub(crate) fn of(target: Option<&'a Target>, workload: &Name, draining: bool) -> Self {
        let Some(target) = target else {
            return Self::Unknown;
        };
        let made = target.machine(workload).zip(target.launch(workload));
        match (made, &target.phase) {
            (None, _) | (_, Phase::Deleted) => Self::Gone,
            (Some(_), Phase::Stopped(_)) => Self::Rest,
            (Some(_), Phase::Running(_)) if draining => Self::Rest,
            (Some((spec, digest)), Phase::Running(_)) => {
                let launch = Launch {
                    digest,
                    version: target.version,
                };
                Self::Run {
                    spec,
                    launch,
                    target,
                }
            }
        }
    }
}

/// What is being done with a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Activity {
    Idle,
    Starting {
        launch: Launch,
        since: u64,
    },
    Running {
        launch: Launch,
        since: u64,
    },
    /// Its program has ended by itself, the VM is about to.
    Settling {
        launch: Launch,
        since: u64,
        kill_at: u64,
    },
    Stopping {
        reason: Reason,
        kill_at: u64,
        killed: bool,
    },
    Removing,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reason {
    Told,
    TooSlow(Launch),
    /// It did not settle.
    Stuck(Launch),
}

/// What to do now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Action {
    /// The address is the caller's to choose.
    Start {
        launch: Launch,
        layer: Layer,
    },
    Stop,
    Kill,
    Remove,
    /// Nothing until this time, or until something happens.
    Wait(Option<u64>),
    /// Nothing is left of it.
    Drop,
}

#[derive(Debug, Clone)]
pub(crate) struct Machine {
    pub(crate) key: Key,
    pub(crate) workload: Name,
    pub(crate) pool: Option<OnPool>,
    /// Kept while the record is being replaced.
    pub(crate) cards: Vec<CardAddress>,
    /// A start has been tried: there may be remains even without a record.
    touched: bool,
    /// What the record becomes once the layer is there.
    pending: Option<Record>,
    activity: Activity,
    /// Of the VM, while there is one.
    attached: Vec<Attached>,
    /// What failed last, how many times in a row, and when it may be tried again.
    failed: Option<Launch>,
    failures: u32,
    not_before: u64,
    starts: u64,
    exit: Option<Exit>,
    message: Option<String>,
    /// What the message is of.
    code: Option<Code>,
    start_ms: Option<u64>,
}

/// How a machine waits for its next try, in the time of [`crate::reconcile::Reconciler::plan`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pause {
    failed: Option<Launch>,
    failures: u32,
    not_before: u64,
    starts: u64,
    message: Option<String>,
    code: Option<Code>,
}

pub(crate) fn backoff(failures: u32) -> u64 {
    let doubled = 1u64
        .checked_shl(failures.saturating_sub(1))
        .unwrap_or(u64::MAX);
    BACKOFF_FIRST_MS.saturating_mul(doubled).min(BACKOFF_MAX_MS)
}

impl Machine {
    pub(crate) fn new(key: Key, workload: Name, pool: Option<OnPool>) -> Self {
        let cards = match &pool {
            Some(OnPool::Record(record)) => record.cards(),
            Some(OnPool::Away { address, cards, .. }) => all_cards(*address, cards),
            Some(OnPool::Unreadable(_)) | None => Vec::new(),
        };
        Self {
            key,
            workload,
            pool,
            cards,
            touched: false,
            pending: None,
            activity: Activity::Idle,
            attached: Vec::new(),
            failed: None,
            failures: 0,
            not_before: 0,
            starts: 0,
            exit: None,
            message: None,
            code: None,
            start_ms: None,
        }
    }

    pub(crate) fn adopt(&mut self, survivor: &Survivor, now: u64) {
        let launch = survivor.launch;
        self.starts = survivor.restarts.saturating_add(1);
        self.start_ms = survivor.start_ms;
        self.attached = survivor.volumes.clone();
        self.activity = match survivor.start_ms {
            Some(_) => Activity::Running { launch, since: now },
            None => Activity::Starting { launch, since: now },
        };
    }

    /// Starts that have begun since the node's boot.
    pub(crate) fn starts(&self) -> u64 {
        self.starts
    }

    pub(crate) fn has_vm(&self) -> bool {
        match self.activity {
            Activity::Starting { .. }
            | Activity::Running { .. }
            | Activity::Settling { .. }
            | Activity::Stopping { .. } => true,
            Activity::Idle | Activity::Removing => false,
        }
    }

    /// Until when its start counts among those that are under way.
    pub(crate) fn has_seat_until(&self) -> Option<u64> {
        match self.activity {
            Activity::Starting { since, .. } => Some(since.saturating_add(SEAT_MS)),
            Activity::Idle
            | Activity::Running { .. }
            | Activity::Settling { .. }
            | Activity::Stopping { .. }
            | Activity::Removing => None,
        }
    }

    /// The volumes that its VM has.
    pub(crate) fn attached(&self) -> &[Attached] {
        if self.has_vm() { &self.attached } else { &[] }
    }

    /// Its guest can be spoken to.
    pub(crate) fn is_running(&self) -> bool {
        matches!(self.activity, Activity::Running { .. })
    }

    fn own_addresses(&self) -> Vec<IpAddr> {
        let own = self.cards.iter().flat_map(|card| &card.own);
        own.map(|own| own.address).collect()
    }

    fn record(&self) -> Option<&Record> {
        match &self.pool {
            Some(OnPool::Record(record)) => Some(record),
            Some(OnPool::Unreadable(_) | OnPool::Away { .. }) | None => None,
        }
    }

    /// What to do now. The caller does it by the methods below.
    pub(crate) fn next(&self, intent: &Intent<'_>, now: u64) -> Action {
        match (&self.activity, intent) {
            (Activity::Removing, _) => Action::Wait(None),
            (Activity::Stopping { killed: true, .. }, _) => Action::Wait(None),
            (Activity::Stopping { kill_at, .. }, _) if now >= *kill_at => Action::Kill,
            (Activity::Stopping { kill_at, .. }, _) => Action::Wait(Some(*kill_at)),
            (
                Activity::Starting { .. } | Activity::Running { .. } | Activity::Settling { .. },
                Intent::Unknown,
            ) => Action::Wait(None),
            (
                Activity::Starting { .. } | Activity::Running { .. } | Activity::Settling { .. },
                Intent::Rest | Intent::Gone,
            ) => Action::Stop,
            (
                Activity::Starting { launch: has, .. }
                | Activity::Running { launch: has, .. }
                | Activity::Settling { launch: has, .. },
                Intent::Run {
                    launch,
                    target,
                    spec,
                },
            ) if has.digest != launch.digest || has.version < target.relaunch(spec) => Action::Stop,
            (Activity::Starting { since, .. }, Intent::Run { .. }) => {
                let end = since.saturating_add(START_MAX_MS);
                if now >= end {
                    Action::Kill
                } else {
                    Action::Wait(Some(end))
                }
            }
            (Activity::Running { .. }, Intent::Run { .. }) => Action::Wait(None),
            (Activity::Settling { kill_at, .. }, Intent::Run { .. }) if now >= *kill_at => {
                Action::Kill
            }
            (Activity::Settling { kill_at, .. }, Intent::Run { .. }) => {
                Action::Wait(Some(*kill_at))
            }
            (Activity::Idle, Intent::Rest | Intent::Unknown) => Action::Wait(None),
            (Activity::Idle, Intent::Gone) if self.pool.is_none() && !self.touched => Action::Drop,
            (Activity::Idle, Intent::Gone) if now < self.not_before => {
                Action::Wait(Some(self.not_before))
            }
            (Activity::Idle, Intent::Gone) => Action::Remove,
            (
                Activity::Idle,
                Intent::Run {
                    launch,
                    target,
                    spec,
                },
            ) => self.next_start(launch, target, spec, now),
        }
    }

    fn next_start(&self, launch: &Launch, target: &Target, spec: &Spec, now: u64) -> Action {
        let unusable = matches!(self.pool, Some(OnPool::Unreadable(_) | OnPool::Away { .. }));
        if unusable || self.is_finished(launch, target) {
            return Action::Wait(None);
        }
        let same =
            |failed: &Launch| failed.digest == launch.digest && failed.version >= target.start;
        if self.failed.as_ref().is_some_and(same) && now < self.not_before {
            return Action::Wait(Some(self.not_before));
        }
        let keep = self.record().is_some_and(|record| {
            record.incarnation == target.incarnation && record.image == spec.image.flist
        });
        Action::Start {
            launch: *launch,
            layer: if keep { Layer::Keep } else { Layer::Fresh },
        }
    }

    fn is_finished(&self, launch: &Launch, target: &Target) -> bool {
        self.record()
            .and_then(|record| record.finished)
            .is_some_and(|finished| {
                finished.launch.digest == launch.digest && finished.launch.version >= target.start
            })
    }

    /// A start begins. Its record counts from `layered` on; until then the old one does.
    pub(crate) fn starting(
        &mut self,
        launch: Launch,
        record: Record,
        attached: Vec<Attached>,
        now: u64,
    ) {
        if self
            .failed
            .is_some_and(|failed| failed.digest != launch.digest)
        {
            (self.failed, self.failures) = (None, 0);
        }
        self.cards = record.cards();
        self.touched = true;
        self.attached = attached;
        self.pending = Some(record);
        self.activity = Activity::Starting { launch, since: now };
        self.start_ms = None;
        self.starts += 1;
    }

    pub(crate) fn layered(&mut self) {
        if let Some(record) = self.pending.take() {
            self.pool = Some(OnPool::Record(record));
        }
    }

    pub(crate) fn stopping(&mut self, now: u64) {
        let kill_at = match self.activity {
            Activity::Settling { kill_at, .. } => kill_at,
            Activity::Starting { .. }
            | Activity::Running { .. }
            | Activity::Stopping { .. }
            | Activity::Removing
            | Activity::Idle => now.saturating_add(STOP_GRACE_MS + STOP_MARGIN_MS),
        };
        self.activity = Activity::Stopping {
            reason: Reason::Told,
            kill_at,
            killed: false,
        };
    }

    /// Its program has ended: what is left to do takes the time it takes, within bounds.
    pub(crate) fn settling(&mut self, now: u64) {
        let until = now.saturating_add(SETTLE_MAX_MS);
        match &mut self.activity {
            Activity::Starting { launch, .. } => {
                self.activity = Activity::Settling {
                    launch: *launch,
                    since: now,
                    kill_at: until,
                };
            }
            Activity::Running { launch, since } => {
                self.activity = Activity::Settling {
                    launch: *launch,
                    since: *since,
                    kill_at: until,
                };
            }
            Activity::Stopping { kill_at, .. } => *kill_at = until,
            Activity::Settling { .. } | Activity::Removing | Activity::Idle => {}
        }
    }

    pub(crate) fn killing(&mut self) {
        self.activity = match self.activity {
            Activity::Starting { launch, .. } => {
                let message = format!("it did not start within {} s", START_MAX_MS / 1000);
                (self.message, self.code) = (Some(message), Some(Code::StartSlow));
                Activity::Stopping {
                    reason: Reason::TooSlow(launch),
                    kill_at: 0,
                    killed: true,
                }
            }
            Activity::Settling {
                launch, kill_at, ..
            } => Activity::Stopping {
                reason: Reason::Stuck(launch),
                kill_at,
                killed: true,
            },
            Activity::Stopping {
                reason, kill_at, ..
            } => Activity::Stopping {
                reason,
                kill_at,
                killed: true,
            },
            Activity::Running { .. } | Activity::Idle | Activity::Removing => return,
        };
    }

    pub(crate) fn removing(&mut self) {
        self.activity = Activity::Removing;
    }

    pub(crate) fn removed(&mut self) {
        (self.pool, self.pending) = (None, None);
        self.cards.clear();
        self.touched = false;
        (self.failures, self.not_before) = (0, 0);
        self.activity = Activity::Idle;
    }

    pub(crate) fn remove_failed(&mut self, message: String, now: u64) {
        self.activity = Activity::Idle;
        let message = format!("its disk cannot be removed: {message}");
        self.fail(None, (Code::DiskNotRemoved, &message), now);
    }

    pub(crate) fn running(&mut self, start_ms: u64, now: u64) {
        if let Activity::Starting { launch, .. } = self.activity {
            self.activity = Activity::Running { launch, since: now };
            (self.start_ms, self.message, self.code) = (Some(start_ms), None, None);
        }
    }

    pub(crate) fn trouble(&mut self, message: String) {
        (self.message, self.code) = (Some(message), Some(Code::ImageUnavailable));
    }

    /// No VM came to be.
    pub(crate) fn start_failed(&mut self, message: &str, now: u64) {
        self.pending = None;
        match std::mem::replace(&mut self.activity, Activity::Idle) {
            Activity::Starting { launch, .. } => {
                self.fail(Some(launch), (Code::StartFailed, message), now);
            }
            Activity::Stopping {
                reason: Reason::TooSlow(launch) | Reason::Stuck(launch),
                ..
            } => {
                self.fail(Some(launch), (Code::StartFailed, message), now);
            }
            Activity::Stopping {
                reason: Reason::Told,
                ..
            } => self.at_rest(None),
            // Said of nothing that is under way: nothing changes.
            other @ (Activity::Running { .. }
            | Activity::Settling { .. }
            | Activity::Idle
            | Activity::Removing) => self.activity = other,
        }
    }

    /// The VM has ended. Returns the record to be saved where the end is final.
    pub(crate) fn ended(&mut self, end: End, policy: RestartPolicy, now: u64) -> Option<Record> {
        self.pending = None;
        self.exit = end.exit.or(self.exit);
        let (launch, ran) = match std::mem::replace(&mut self.activity, Activity::Idle) {
            Activity::Starting { launch, .. } => (launch, 0),
            Activity::Running { launch, since } | Activity::Settling { launch, since, .. } => {
                (launch, now.saturating_sub(since))
            }
            // All was written, only the reset was missing.
            Activity::Stopping {
                reason: Reason::Stuck(launch),
                ..
            } if end.exit.is_some() => (launch, 0),
            Activity::Stopping {
                reason: Reason::Stuck(launch),
                ..
            } => {
                let seconds = SETTLE_MAX_MS / 1000;
                let message = format!(
                    "its program has ended, but the guest did not write out its disk within {seconds} s and was killed"
                );
                self.fail(Some(launch), (Code::GuestStuck, &message), now);
                return None;
            }
            Activity::Stopping {
                reason: Reason::TooSlow(launch),
                ..
            } => {
                let message = self.message.clone().unwrap_or_default();
                self.fail(Some(launch), (Code::StartSlow, &message), now);
                return None;
            }
            Activity::Stopping {
                reason: Reason::Told,
                killed,
                ..
            } => {
                self.at_rest(killed.then(|| "it did not stop in time and was killed".to_owned()));
                return None;
            }
            other @ (Activity::Idle | Activity::Removing) => {
                self.activity = other;
                return None;
            }
        };
        let (code, what) = (code_of(&end), describe(&end));
        if let Some(exit) = end.exit.filter(|exit| is_final(*exit, policy))
            && let Some(OnPool::Record(record)) = &mut self.pool
        {
            record.finished = Some(Finished { launch, exit });
            self.message = end.message;
            self.code = (exit.code != 0).then_some(code);
            return Some(record.clone());
        }
        if ran >= LONG_RUN_MS {
            self.failures = 0;
        }
        self.fail(Some(launch), (code, &what), now);
        None
    }

    fn at_rest(&mut self, message: Option<String>) {
        self.code = message.as_ref().map(|_| Code::StopSlow);
        (self.failed, self.failures, self.message) = (None, 0, message);
    }

    /// What an agent of the same boot that comes after this one has to know to go on waiting.
    pub(crate) fn pause(&self) -> Option<Pause> {
        let waits = self.failures > 0 && !self.has_vm();
        waits.then(|| Pause {
            failed: self.failed,
            failures: self.failures,
            not_before: self.not_before,
            starts: self.starts,
            message: self.message.clone(),
            code: self.code,
        })
    }

    /// Goes on where an agent before this one was.
    pub(crate) fn resume(&mut self, pause: Pause, now: u64) {
        (self.failed, self.failures, self.starts) = (pause.failed, pause.failures, pause.starts);
        // Whatever the note says, nobody waits longer than the longest pause.
        self.not_before = pause.not_before.min(now.saturating_add(BACKOFF_MAX_MS));
        (self.message, self.code) = (pause.message, pause.code);
    }

    fn fail(&mut self, launch: Option<Launch>, (code, what): (Code, &str), now: u64) {
        self.failures = self.failures.saturating_add(1);
        let pause = backoff(self.failures);
        self.failed = launch;
        self.not_before = now.saturating_add(pause);
        self.code = Some(code);
        self.message = Some(format!("{what}; the next try is after {} s", pause / 1000));
    }

    /// It could not even be begun. Returns when it is tried again.
    pub(crate) fn cannot_start(&mut self, launch: Launch, what: &str, now: u64) -> u64 {
        self.fail(Some(launch), (Code::NoAddress, what), now);
        self.not_before
    }

    pub(crate) fn state(&self, intent: &Intent<'_>) -> State {
        match (&self.activity, intent) {
            (Activity::Starting { .. }, _) => State::Starting,
            (Activity::Running { .. } | Activity::Settling { .. }, _) => State::Running,
            (Activity::Stopping { .. } | Activity::Removing, _) => State::Stopping,
            (Activity::Idle, Intent::Rest | Intent::Unknown) => State::Stopped,
            (Activity::Idle, Intent::Gone) => State::Stopping,
            (Activity::Idle, Intent::Run { launch, target, .. }) => {
                if self.is_finished(launch, target) {
                    State::Exited
                } else if matches!(self.pool, Some(OnPool::Away { .. })) {
                    // It is not tried again before the disk is back.
                    State::Pending
                } else if self.failures > 0 || matches!(self.pool, Some(OnPool::Unreadable(_))) {
                    State::Backoff
                } else {
                    State::Pending
                }
            }
        }
    }

    pub(crate) fn status(&self, intent: &Intent<'_>, spec: Option<&Spec>) -> WorkloadStatus {
        let unreadable = match &self.pool {
            Some(OnPool::Unreadable(why)) => Some(format!(
                "{why}; its disk is kept and not used: delete the deployment and deploy it again"
            )),
            Some(OnPool::Away { why, .. }) => Some(format!(
                "{why}; it waits for that, and is not begun anew: put the disk back, or delete the deployment and \
                 deploy it again, which gives up what lies there"
            )),
            Some(OnPool::Record(_)) | None => None,
        };
        let finished = self
            .record()
            .and_then(|record| record.finished)
            .map(|f| f.exit);
        let state = self.state(intent);
        // Stopped while it was to be tried again: that promise is void.
        let void = state == State::Stopped && self.failures > 0;
        let code = match &unreadable {
            Some(_) => Some(Code::DiskUnreadable),
            None => self.code.filter(|_| !void),
        };
        WorkloadStatus {
            state,
            address: self.cards.first().map(|card| card.address),
            addresses: self.own_addresses(),
            ports: spec.map(|spec| spec.ports.clone()).unwrap_or_default(),
            restarts: self.starts.saturating_sub(1),
            exit: self.exit.or(finished),
            message: unreadable.or_else(|| self.message.clone().filter(|_| !void)),
            code,
            start_ms: self.start_ms,
            chunks: None,
            timeline: None,
        }
    }
}

fn is_final(exit: Exit, policy: RestartPolicy) -> bool {
    match policy {
        RestartPolicy::Always => false,
        RestartPolicy::OnFailure => exit.code == 0,
        RestartPolicy::Never => true,
    }
}

fn code_of(end: &End) -> Code {
    match end.exit {
        Some(Exit { oom: true, .. }) => Code::GuestMemory,
        Some(Exit {
            signal: Some(_), ..
        }) => Code::ProgramKilled,
        Some(_) => Code::ProgramFailed,
        None => Code::MachineLost,
    }
}

fn describe(end: &End) -> String {
    let what = match end.exit {
        Some(Exit { oom: true, .. }) => "the guest ran out of memory".to_owned(),
        Some(Exit {
            signal: Some(signal),
            ..
        }) => format!("the program was ended by signal {signal}"),
        Some(Exit { code, .. }) => format!("the program ended with status {code}"),
        None => "the VM was lost".to_owned(),
    };
    match &end.message {
        Some(message) => format!("{what}: {message}"),
        None => what,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_from_a_second_to_a_minute_and_stay_there() {
        let pauses: Vec<u64> = (1..10).map(|n| backoff(n) / 1000).collect();
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 60, 60, 60]);
        assert_eq!(backoff(u32::MAX), BACKOFF_MAX_MS);
    }
}
