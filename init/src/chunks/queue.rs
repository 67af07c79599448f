//! Which chunk is got next, for whom, and what follows when that fails.
//!
//! Owns: one job per stored chunk however many VMs wait for it, the order (VMs that wait, then what is got ahead of them,
//! then back-filling), the limits on work in flight, and the retry rules. What is got ahead has places of its own and starts
//! only while no VM waits for a place. No image waits for another one's
//! store: what is in the cache has places of its own, and an image whose store does not answer has few.
//! Pure: time is passed in.
//! Refuses: doing anything.

use std::collections::{HashMap, HashSet, VecDeque};
use std::time::Duration;

use flist::chunk::Chunk;
use types::{Digest, VmId};

/// Jobs at work for chunks that are not in the cache: enough to keep a LAN busy, and at most this many
/// times 2 MiB of memory.
pub(crate) const IN_FLIGHT_MAX: usize = 6;
/// Of these, for one image while others wait too: a store that trickles keeps no other waiting.
pub(crate) const IMAGE_MAX: usize = 4;
/// Of these, for all images together whose stores did not answer when last asked. Each has one at most.
pub(crate) const AILING_MAX: usize = 2;
/// Beside these, jobs for chunks that are in the cache: they read, verify and write, and need a core.
pub(crate) const CACHED_MAX: usize = 4;
/// Of these, for back-filling: a VM that begins to wait finds the rest free.
pub(crate) const BACKFILL_MAX: usize = 2;
/// Beside all these, jobs that get what a VM is expected to want. They begin with one at a time, and each that ends well
/// lets one more be, up to this: a store or a line that is slow is not filled with guesses.
pub(crate) const AHEAD_MAX: usize = 4;
/// Chunks that wait to be got ahead: the traces of a few images that start at once. What is guessed beyond is not got.
pub(crate) const AHEAD_QUEUED_MAX: usize = 4096;
/// Wrong answers of a store before a chunk is given up: a proxy may have been caught half-way once.
pub(crate) const WRONG_MAX: u32 = 3;
/// First wait after a failure, doubled each time up to [`RETRY_LONGEST`].
pub(crate) const RETRY_FIRST: Duration = Duration::from_millis(100);
/// A store that comes back is found within this.
pub(crate) const RETRY_LONGEST: Duration = Duration::from_secs(10);

/// Time since the daemon's start.
pub(crate) type Now = Duration;

/// A chunk of one disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Target {
    pub(crate) flist: Digest,
    pub(crate) index: u32,
}

/// Who said `Want`, and over which of a VM's successive sockets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Waiter {
    pub(crate) vm: VmId,
    pub(crate) generation: u64,
    pub(crate) target: Target,
}

/// For whom a job was queued or started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Class {
    /// A VM waits.
    Demand,
    /// A VM is expected to want it.
    Ahead,
    Backfill,
}

/// What a guess rests on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Guess {
    /// On what the VM reads now.
    Sequence,
    /// On an earlier run.
    Trace,
}

/// Where a chunk is expected when it is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Source {
    Cache,
    Store,
}

/// How a job ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// In the cache, and on the disks it was asked for.
    Done,
    /// Nobody answers, or answers that it cannot now.
    Unreachable(String),
    /// The store does not have it, or has something else.
    Wrong(String),
    /// It takes a person: no store is known, the disk is full.
    Hopeless(String),
    /// No try will ever change it: the chunk has the hash that the flist gives it, and is not what that says.
    Contradiction(String),
}

/// What to do about an outcome.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    Finished,
    Again(Duration),
    /// Who waits is told. What is pinned is tried again all the same, for ever: a store is mended, a disk is
    /// emptied, and nobody comes to say so.
    GiveUp(String),
    /// The same, and nobody tries again by himself.
    Never(String),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Queued,
    Running,
    Resting(Now),
}

#[derive(Debug)]
struct Job {
    chunk: Chunk,
    /// The flists that asked: their stores are tried.
    flists: Vec<Digest>,
    waiters: Vec<Waiter>,
    /// Disks that it is brought to although nobody waits.
    ahead: Vec<Target>,
    /// Pinned flists that want it in the cache.
    fills: Vec<Digest>,
    phase: Phase,
    source: Source,
    class: Class,
    failures: u32,
    wrong: u32,
    /// It was given up, and only back-filling goes on with it.
    given_up: bool,
}

/// What follows from a job's end. When it was given up: who asked and who waited.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct End {
    pub(crate) verdict: Verdict,
    pub(crate) flists: Vec<Digest>,
    pub(crate) waiters: Vec<Waiter>,
}

/// A job to start.
#[derive(Debug, Clone)]
pub(crate) struct Start {
    pub(crate) chunk: Chunk,
    pub(crate) flists: Vec<Digest>,
    /// Without repetition.
    pub(crate) targets: Vec<Target>,
    /// Nobody waits for it.
    pub(crate) is_guess: bool,
}

#[derive(Debug, Default)]
pub(crate) struct Queue {
    jobs: HashMap<Digest, Job>,
    cached: VecDeque<Digest>,
    urgent: VecDeque<Digest>,
    /// By what VMs read now, and by traces.
    sequence: VecDeque<Digest>,
    traced: VecDeque<Digest>,
    backfill: VecDeque<Digest>,
    /// Back-filling waits, because VMs are waiting.
    held: bool,
    /// How many jobs may be at work ahead, less one.
    ramp: usize,
    running_ahead: usize,
    /// What back-filling has still to look at, one list per pinned flist.
    fills: Vec<(Digest, VecDeque<Chunk>)>,
    running_cached: usize,
    running_backfill: usize,
    /// Jobs at work that may ask a store, by the image on whose account they are.
    asking: HashMap<Digest, usize>,
    /// Images whose store did not answer when last asked.
    ailing: HashSet<Digest>,
}

impl Queue {
    /// A VM waits for a chunk.
    pub(crate) fn want(&mut self, chunk: &Chunk, waiter: Waiter, source: Source) {
        let name = chunk.stored;
        let queue = match source {
            Source::Cache => &mut self.cached,
            Source::Store => &mut self.urgent,
        };
        let job = self.jobs.entry(name).or_insert_with(|| {
            queue.push_back(name);
            Job::new(*chunk, Class::Demand, source)
        });
        if job.class != Class::Demand && job.phase != Phase::Running {
            // It waited at the back, or for a slow retry; now somebody needs it.
            (job.class, job.source) = (Class::Demand, source);
            // From now on it takes places of the one who waits.
            job.flists.retain(|flist| *flist != waiter.target.flist);
            job.flists.insert(0, waiter.target.flist);
            if std::mem::take(&mut job.given_up) {
                (job.failures, job.wrong) = (0, 0);
            }
            job.phase = Phase::Queued;
            for list in [&mut self.sequence, &mut self.traced, &mut self.backfill] {
                list.retain(|d| *d != name);
            }
            queue.push_back(name);
        }
        job.ask(waiter.target.flist);
        job.waiters.push(waiter);
    }

    /// A chunk that a VM will want, by all appearances. Nothing is tried twice for a guess.
    pub(crate) fn ahead(&mut self, chunk: &Chunk, target: Target, source: Source, guess: Guess) {
        let name = chunk.stored;
        if self.sequence.len() + self.traced.len() >= AHEAD_QUEUED_MAX {
            return;
        }
        let queue = match guess {
            Guess::Sequence => &mut self.sequence,
            Guess::Trace => &mut self.traced,
        };
        let job = self.jobs.entry(name).or_insert_with(|| {
            queue.push_back(name);
            Job::new(*chunk, Class::Ahead, source)
        });
        // What is under way, rests or was given up is left to those who need it.
        if job.phase != Phase::Queued || job.given_up {
            return;
        }
        if job.class == Class::Backfill {
            (job.class, job.source) = (Class::Ahead, source);
            self.backfill.retain(|d| *d != name);
            queue.push_back(name);
        }
        job.ask(target.flist);
        if !job.ahead.contains(&target) {
            job.ahead.push(target);
        }
    }

    /// Whether back-filling waits.
    pub(crate) fn hold(&mut self, held: bool) {
        self.held = held;
    }

    /// Replaces what back-filling has to do for an flist.
    pub(crate) fn fill(&mut self, flist: Digest, chunks: VecDeque<Chunk>) {
        self.drop_fills(&flist);
        if !chunks.is_empty() {
            self.fills.push((flist, chunks));
        }
    }

    /// Back-fills an flist no longer, and gets nothing ahead for it. What is under way ends by itself.
    pub(crate) fn forget(&mut self, flist: &Digest) {
        for job in self.jobs.values_mut() {
            job.ahead.retain(|target| target.flist != *flist);
        }
        self.drop_fills(flist);
    }

    /// One more chunk to fill: it was there, and is no more.
    pub(crate) fn refill(&mut self, flist: Digest, chunk: Chunk) {
        match self.fills.iter_mut().find(|(f, _)| *f == flist) {
            Some((_, chunks)) => chunks.push_back(chunk),
            None => self.fills.push((flist, [chunk].into())),
        }
    }

    fn drop_fills(&mut self, flist: &Digest) {
        self.fills.retain(|(f, _)| f != flist);
        for job in self.jobs.values_mut() {
            job.fills.retain(|f| f != flist);
            if job.class == Class::Ahead && job.phase == Phase::Queued && job.ahead.is_empty() {
                // Only back-filling of others is left of it, if anything.
                job.class = Class::Backfill;
                if job.is_wanted() {
                    self.backfill.push_back(job.chunk.stored);
                }
            }
        }
        self.jobs
            .retain(|_, job| job.is_needed() || job.phase == Phase::Running);
        self.ailing.remove(flist);
        let jobs = &self.jobs;
        self.cached.retain(|name| jobs.contains_key(name));
        self.urgent.retain(|name| jobs.contains_key(name));
        self.backfill.retain(|name| jobs.contains_key(name));
        let is_ahead = |name: &Digest| jobs.get(name).is_some_and(|j| j.class == Class::Ahead);
        self.sequence.retain(is_ahead);
        self.traced.retain(is_ahead);
    }

    /// A socket is gone: nobody waits on it any more. What is under way stays useful for the cache.
    pub(crate) fn hang_up(&mut self, vm: &VmId, generation: u64) {
        for job in self.jobs.values_mut() {
            job.waiters
                .retain(|w| w.vm != *vm || w.generation != generation);
        }
    }

    /// The next job to start, if the limits allow one.
    pub(crate) fn start(&mut self) -> Option<Start> {
        let name = self
            .next_cached()
            .or_else(|| self.next_urgent())
            .or_else(|| self.next_ahead())
            .or_else(|| self.next_backfill())?;
        let job = self.jobs.get_mut(&name)?;
        job.phase = Phase::Running;
        match (job.class, job.source) {
            (Class::Ahead, _) => self.running_ahead += 1,
            (Class::Demand | Class::Backfill, Source::Cache) => self.running_cached += 1,
            (Class::Demand | Class::Backfill, Source::Store) => {
                *self.asking.entry(job.account()).or_default() += 1;
            }
        }
        self.running_backfill += usize::from(job.class == Class::Backfill);
        let mut targets: Vec<Target> = Vec::new();
        for target in job
            .waiters
            .iter()
            .map(|w| w.target)
            .chain(job.ahead.iter().copied())
        {
            if !targets.contains(&target) {
                targets.push(target);
            }
        }
        Some(Start {
            chunk: job.chunk,
            flists: job.flists.clone(),
            targets,
            is_guess: job.class == Class::Ahead,
        })
    }

    fn next_cached(&mut self) -> Option<Digest> {
        if self.running_cached >= CACHED_MAX {
            return None;
        }
        self.cached.pop_front()
    }

    fn next_urgent(&mut self) -> Option<Digest> {
        let may = |name: &Digest| self.may_ask(&self.jobs[name].account());
        let at = self.urgent.iter().position(may)?;
        self.urgent.remove(at)
    }

    /// Only while no VM waits for a place, and from no store that does not answer.
    fn next_ahead(&mut self) -> Option<Digest> {
        let waits = !self.cached.is_empty() || !self.urgent.is_empty();
        if waits || self.running_ahead > self.ramp {
            return None;
        }
        let (jobs, ailing) = (&self.jobs, &self.ailing);
        let may = |name: &Digest| {
            let job = &jobs[name];
            job.source == Source::Cache || !ailing.contains(&job.account())
        };
        for list in [&mut self.sequence, &mut self.traced] {
            if let Some(at) = list.iter().position(may) {
                return list.remove(at);
            }
        }
        None
    }

    fn next_backfill(&mut self) -> Option<Digest> {
        if self.held || self.running_ahead > 0 || self.running_backfill >= BACKFILL_MAX {
            return None;
        }
        let may = |name: &Digest| self.may_ask(&self.jobs[name].account());
        let hopeful = |name: &Digest| may(name) && !self.jobs[name].given_up;
        if let Some(at) = self.backfill.iter().position(hopeful) {
            return self.backfill.remove(at);
        }
        // What was given up comes last: however much that is, it holds up nothing.
        self.next_fill().or_else(|| {
            let may = |name: &Digest| self.may_ask(&self.jobs[name].account());
            let at = self.backfill.iter().position(may)?;
            self.backfill.remove(at)
        })
    }

    /// Whether one more job may ask the store of this image.
    fn may_ask(&self, flist: &Digest) -> bool {
        let all: usize = self.asking.values().sum();
        let own = self.asking.get(flist).copied().unwrap_or(0);
        if self.ailing.contains(flist) {
            let ailing = self.asking.iter().filter(|(f, _)| self.ailing.contains(*f));
            let ailing: usize = ailing.map(|(_, n)| n).sum();
            return all < IN_FLIGHT_MAX && own == 0 && ailing < AILING_MAX;
        }
        all < IN_FLIGHT_MAX && own < IMAGE_MAX
    }

    /// Takes one chunk from the lists in turn, passing over images that have their share.
    fn next_fill(&mut self) -> Option<Digest> {
        loop {
            let at = self
                .fills
                .iter()
                .position(|(flist, _)| self.may_ask(flist))?;
            let (flist, mut chunks) = self.fills.remove(at);
            let Some(chunk) = chunks.pop_front() else {
                continue;
            };
            self.fills.push((flist, chunks));
            let is_new = !self.jobs.contains_key(&chunk.stored);
            let job = self
                .jobs
                .entry(chunk.stored)
                .or_insert_with(|| Job::new(chunk, Class::Backfill, Source::Store));
            job.ask(flist);
            job.fills.push(flist);
            if is_new {
                return Some(chunk.stored);
            }
        }
    }

    /// The waiters of a job that `served` says can be answered now; they wait no more.
    pub(crate) fn take_served(
        &mut self,
        name: &Digest,
        mut served: impl FnMut(&Target) -> bool,
    ) -> Vec<Waiter> {
        let Some(job) = self.jobs.get_mut(name) else {
            return Vec::new();
        };
        job.waiters.extract_if(.., |w| served(&w.target)).collect()
    }

    /// The place that a job had is another's, and its end tells something of the store.
    fn free_place(&mut self, class: Class, source: Source, account: Digest, outcome: &Outcome) {
        self.running_backfill -= usize::from(class == Class::Backfill);
        match (class, source) {
            (Class::Ahead, _) => {
                self.running_ahead -= 1;
                self.ramp = match outcome {
                    Outcome::Done => (self.ramp + 1).min(AHEAD_MAX - 1),
                    Outcome::Unreachable(_)
                    | Outcome::Wrong(_)
                    | Outcome::Hopeless(_)
                    | Outcome::Contradiction(_) => 0,
                };
            }
            (Class::Demand | Class::Backfill, Source::Cache) => self.running_cached -= 1,
            (Class::Demand | Class::Backfill, Source::Store) => {
                if let Some(count) = self.asking.get_mut(&account) {
                    *count -= 1;
                }
                self.asking.retain(|_, count| *count > 0);
            }
        }
        match outcome {
            Outcome::Unreachable(_) => {
                self.ailing.insert(account);
            }
            // It has answered, if only that it has something else.
            Outcome::Done | Outcome::Wrong(_) => {
                self.ailing.remove(&account);
            }
            Outcome::Hopeless(_) | Outcome::Contradiction(_) => {}
        }
    }

    /// A started job has ended: what follows.
    pub(crate) fn end(&mut self, name: &Digest, outcome: Outcome, now: Now) -> End {
        let nobody = |verdict| End {
            verdict,
            flists: Vec::new(),
            waiters: Vec::new(),
        };
        let Some(job) = self.jobs.get_mut(name) else {
            return nobody(Verdict::Finished);
        };
        let (class, source, account) = (job.class, job.source, job.account());
        let is_lost_guess = !job.is_wanted() && class == Class::Ahead;
        self.free_place(class, source, account, &outcome);
        if is_lost_guess {
            self.jobs.remove(name);
            return nobody(Verdict::Finished);
        }
        let Some(job) = self.jobs.get_mut(name) else {
            return nobody(Verdict::Finished);
        };
        job.ahead.clear();
        let verdict = job.judge(outcome);
        match &verdict {
            // Asked for on another disk while it was under way: once more, out of the cache.
            Verdict::Finished if !job.waiters.is_empty() => {
                job.phase = Phase::Queued;
                (job.class, job.source) = (Class::Demand, Source::Cache);
                self.cached.push_front(*name);
            }
            Verdict::Again(wait) if job.is_wanted() => {
                job.phase = Phase::Resting(now + *wait);
                // Not in the cache, whatever was expected.
                (job.class, job.source) = (job.rests_as(), Source::Store);
            }
            Verdict::GiveUp(_) if !job.fills.is_empty() => {
                job.phase = Phase::Resting(now + RETRY_LONGEST);
                (job.class, job.source) = (Class::Backfill, Source::Store);
                job.given_up = true;
                let flists = job.flists.clone();
                job.flists.retain(|flist| job.fills.contains(flist));
                return End {
                    verdict,
                    flists,
                    waiters: std::mem::take(&mut job.waiters),
                };
            }
            Verdict::Finished | Verdict::Again(_) | Verdict::GiveUp(_) | Verdict::Never(_) => {
                let job = self.jobs.remove(name);
                let (flists, waiters) = job.map(|j| (j.flists, j.waiters)).unwrap_or_default();
                return End {
                    verdict,
                    flists,
                    waiters,
                };
            }
        }
        nobody(verdict)
    }

    /// When a rested job comes due; `None` while none rests.
    pub(crate) fn next_due(&self) -> Option<Now> {
        let due = self.jobs.values().filter_map(|j| match j.phase {
            Phase::Resting(until) => Some(until),
            Phase::Queued | Phase::Running => None,
        });
        due.min()
    }

    /// Queues what has rested enough.
    pub(crate) fn wake(&mut self, now: Now) {
        for (name, job) in &mut self.jobs {
            if matches!(job.phase, Phase::Resting(until) if until <= now) {
                job.phase = Phase::Queued;
                let queue = match job.class {
                    Class::Backfill => &mut self.backfill,
                    Class::Demand | Class::Ahead => &mut self.urgent,
                };
                queue.push_back(*name);
            }
        }
    }
}

impl Job {
    fn new(chunk: Chunk, class: Class, source: Source) -> Self {
        let (flists, waiters, fills) = (Vec::new(), Vec::new(), Vec::new());
        let ahead = Vec::new();
        let phase = Phase::Queued;
        Self {
            chunk,
            flists,
            waiters,
            ahead,
            fills,
            phase,
            source,
            class,
            failures: 0,
            wrong: 0,
            given_up: false,
        }
    }

    /// The image whose places it takes: the first that asked. (Every job has been asked for.)
    fn account(&self) -> Digest {
        self.flists.first().copied().unwrap_or(self.chunk.stored)
    }

    fn is_wanted(&self) -> bool {
        !self.waiters.is_empty() || !self.fills.is_empty()
    }

    /// The same, or expected to be.
    fn is_needed(&self) -> bool {
        self.is_wanted() || !self.ahead.is_empty()
    }

    /// What it is tried again as.
    fn rests_as(&self) -> Class {
        if self.waiters.is_empty() {
            Class::Backfill
        } else {
            Class::Demand
        }
    }

    fn ask(&mut self, flist: Digest) {
        if !self.flists.contains(&flist) {
            self.flists.push(flist);
        }
    }

    fn judge(&mut self, outcome: Outcome) -> Verdict {
        let wait = (RETRY_FIRST * 2u32.saturating_pow(self.failures.min(16))).min(RETRY_LONGEST);
        match outcome {
            Outcome::Done => Verdict::Finished,
            Outcome::Unreachable(_) => {
                self.failures += 1;
                Verdict::Again(wait)
            }
            Outcome::Wrong(message) => {
                self.failures += 1;
                self.wrong += 1;
                if self.wrong >= WRONG_MAX {
                    Verdict::GiveUp(message)
                } else {
                    Verdict::Again(wait)
                }
            }
            Outcome::Hopeless(message) => Verdict::GiveUp(message),
            Outcome::Contradiction(message) => Verdict::Never(message),
        }
    }
}

#[cfg(test)]
#[path = "queue_tests.rs"]
mod tests;
