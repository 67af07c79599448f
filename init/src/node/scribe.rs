//! The ledger, on a thread of its own: a disk that does not answer holds up this thread and nobody else.
//!
//! Owns: the ledger, and how long each pool is waited for where another could decide. Refuses: judging statements.
//!
//! A pool is written to by one more thread at a time, which is left behind where its disk never answers: the ledger gives such a
//! pool up, so that there is one such thread for each pool at most.

use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use tokio::sync::mpsc as channel;
use types::PublicKey;
use workload::ledger::{Claim, Ledger, LedgerError, Lost, Work};

use super::engine::verify;

/// Longest that a disk may take to sync a statement where another disk can keep it: longer than one needs that has to spin up,
/// or that tidies up; shorter than the half a minute after which the kernel's drivers doubt a command.
pub(crate) const DISK_WAIT: Duration = Duration::from_secs(20);

/// What is to be kept.
pub(crate) struct Job {
    pub(crate) envelope: Vec<u8>,
    pub(crate) claim: Claim,
    /// Whose signature counts.
    pub(crate) owner: Option<PublicKey>,
}

/// What became of it.
pub(crate) struct Written {
    pub(crate) kept: Result<(), LedgerError>,
    /// Pools that failed over it.
    pub(crate) lost: Vec<Lost>,
    pub(crate) poisoned: bool,
}

pub(crate) struct Scribe {
    jobs: mpsc::Sender<Job>,
    written: channel::UnboundedReceiver<Written>,
}

impl Scribe {
    /// One job at a time is given, so that no queue grows.
    pub(crate) fn start(ledger: Ledger) -> std::io::Result<Self> {
        let (jobs, work) = mpsc::channel();
        let (said, written) = channel::unbounded_channel();
        let mut ledger = ledger.with_patience(attempt);
        let write = move || {
            for job in work {
                if said.send(write(&mut ledger, job)).is_err() {
                    return;
                }
            }
        };
        thread::Builder::new()
            .name("ledger".to_owned())
            .spawn(write)?;
        Ok(Self { jobs, written })
    }

    pub(crate) fn write(&self, job: Job) {
        // The thread ends with this end of the channel.
        let _ = self.jobs.send(job);
    }

    /// Safe to drop.
    pub(crate) async fn written(&mut self) -> Option<Written> {
        self.written.recv().await
    }
}

fn write(ledger: &mut Ledger, job: Job) -> Written {
    let Job {
        envelope,
        claim,
        owner,
    } = job;
    let again = |kept: &[u8]| verify(kept, owner).map_err(|refusal| refusal.message);
    let kept = ledger.append(&envelope, claim, again);
    Written {
        kept,
        lost: ledger.take_lost(),
        poisoned: ledger.is_poisoned(),
    }
}

fn attempt(pool: usize, work: Work) -> Option<Result<(), LedgerError>> {
    super::patient::within(&format!("ledger-{pool}"), DISK_WAIT, work)
}
