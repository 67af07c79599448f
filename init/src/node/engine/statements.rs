//! Statements on their way into the ledger.
//!
//! Owns: the order in which they are judged and kept, one at a time, and how long who sent one is kept waiting for a disk.
//! Refuses: writing (`scribe` does, on a thread that a disk may hold up for ever), and judging (`workload::admission` does).
//!
//! | a statement | until |
//! |---|---|
//! | waits for its turn | the one before it is kept or not |
//! | is admitted, and being written | the ledger has it in all copies, and it is acknowledged |
//! | has been written for [`ANSWER_WAIT_MS`] | who sent it is refused; kept after all, it counts, and `sifr get` shows it |

use std::collections::{BTreeSet, VecDeque};

use tokio::sync::{oneshot, watch};
use types::Bytes;
use types::deployment::Action;
use types::node::PoolState;
use types::status::{Ack, Refusal, RefusalCode};
use types::trouble::Code;
use workload::admission::{self, Admitted, admit};
use workload::desired::Verified;
use workload::ledger::{self, Claim, Ledger, LedgerError};

use super::super::ingress::brought;
use super::super::scribe::{Job, Scribe, Written};
use super::super::{retire, troubles};
use super::{Engine, Refused, verify};

/// Longest wait for the ledger: two of its three pools may have used up their time ([`super::super::scribe::DISK_WAIT`]), and it
/// is less than a client waits for an answer (a minute).
const ANSWER_WAIT_MS: u64 = 45_000;
/// Statements that wait for their turn: each has a connection of its own, and the server admits so many.
const QUEUE_MAX: usize = super::REQUESTS_MAX;

type Reply = oneshot::Sender<Result<Ack, Refused>>;

/// The one that is being written.
struct Writing {
    admitted: Admitted,
    /// `None`: who sent it has been refused.
    reply: Option<Reply>,
    until_ms: u64,
}

pub(super) struct Statements {
    /// Why nothing can be accepted, where the ledger is not one of this build.
    scribe: Result<Scribe, String>,
    writing: Option<Writing>,
    queue: VecDeque<(Vec<u8>, Reply)>,
    /// Why the disks are waited for, while none of them answers.
    silence: watch::Receiver<Option<String>>,
    /// The ledger has to be read again.
    pub(super) must_end: bool,
}

/// What the loop hears of statements.
pub(super) enum News {
    /// What became of the one that was being written.
    Written(Written),
    /// None of the disks answers, or one does again.
    Silence,
}

impl Statements {
    pub(super) fn begin(
        ledger: Result<Ledger, String>,
        silence: watch::Receiver<Option<String>>,
    ) -> anyhow::Result<Self> {
        let scribe = match ledger {
            Ok(ledger) => Ok(Scribe::start(ledger)?),
            Err(why) => Err(why),
        };
        Ok(Self {
            scribe,
            writing: None,
            queue: VecDeque::new(),
            silence,
            must_end: false,
        })
    }

    /// Safe to drop. `None`: nothing will ever come.
    pub(super) async fn news(&mut self) -> Option<News> {
        let written = async {
            match &mut self.scribe {
                Ok(scribe) => scribe.written().await,
                Err(_) => None,
            }
        };
        tokio::select! {
            Some(written) = written => Some(News::Written(written)),
            Ok(()) = self.silence.changed() => Some(News::Silence),
            else => None,
        }
    }

    /// Whether the ledger has kept its clients waiting for too long, and does so still.
    fn is_stuck(&self) -> bool {
        let writing = self.writing.as_ref();
        writing.is_some_and(|writing| writing.reply.is_none())
    }

    /// Refuses those who have waited for too long, and those behind them. When to come back at the latest.
    pub(super) fn tire(&mut self, now_ms: u64, disks: impl Fn() -> String) -> Option<u64> {
        let writing = self.writing.as_mut().filter(|w| w.reply.is_some())?;
        if now_ms < writing.until_ms {
            return Some(writing.until_ms);
        }
        let seconds = ANSWER_WAIT_MS / 1000;
        let name = writing.admitted.verified().statement.name.clone();
        let message = format!(
            "{} has not answered for {seconds} seconds: whether the statement is kept is not known before it does, then `sifr get {name}` shows it",
            disks()
        );
        log::error!("{message}");
        let reply = writing.reply.take();
        refuse(reply, message);
        for (_, reply) in self.queue.drain(..) {
            refuse(Some(reply), unanswered(&disks()));
        }
        None
    }
}

fn unanswered(disks: &str) -> String {
    format!(
        "{disks} does not answer: nothing is accepted until it does, and nothing of this statement was kept"
    )
}

/// A client that has gone away misses its answer.
fn refuse(reply: Option<Reply>, message: String) {
    let code = RefusalCode::DiskSilent;
    if let Some(reply) = reply {
        let _ = reply.send(Err(Refusal { code, message }.into()));
    }
}

impl Engine {
    /// Judged in its turn: what is being written counts before it.
    pub(super) fn take(&mut self, envelope: Vec<u8>, reply: Reply) {
        let silent = self.statements.silence.borrow().clone();
        if let Some(why) = silent {
            return refuse(Some(reply), why);
        }
        if self.statements.is_stuck() || self.statements.queue.len() >= QUEUE_MAX {
            return refuse(Some(reply), unanswered(&self.disks.named()));
        }
        self.statements.queue.push_back((envelope, reply));
        self.go_on_writing();
    }

    /// The next that is admitted, where none is being written.
    fn go_on_writing(&mut self) {
        while self.statements.writing.is_none() {
            let Some((envelope, reply)) = self.statements.queue.pop_front() else {
                return;
            };
            match self.begin(envelope) {
                Ok(admitted) => {
                    self.statements.writing = Some(Writing {
                        admitted,
                        reply: Some(reply),
                        until_ms: super::now().saturating_add(ANSWER_WAIT_MS),
                    });
                }
                Err(refused) => {
                    let _ = reply.send(Err(refused));
                }
            }
        }
    }

    fn begin(&mut self, envelope: Vec<u8>) -> Result<Admitted, Refused> {
        let verified = verify(&envelope, self.owner)?;
        // It may have waited for its turn since before the wish.
        retire::stands(&self.info.borrow())?;
        if let Some(refusal) = self.reconciler.in_the_way(&verified) {
            return Err(refusal.into());
        }
        let admitted = self.admit(verified)?;
        let now_s = sys::clock::realtime().as_secs();
        brought::check(&admitted.verified().statement, now_s)?;
        let verified = admitted.verified();
        let networks = self.reconciler.networks_in_the_way(verified);
        let addresses = || self.reconciler.addresses_in_the_way(verified);
        if let Some(refusal) = networks.or_else(addresses) {
            return Err(Refused::Final(refusal));
        }
        let scribe = self.statements.scribe.as_ref().map_err(|why| Refusal {
            code: RefusalCode::LedgerUnread,
            message: format!("the node's ledger is not readable, so nothing is accepted: {why}"),
        })?;
        let claim = Claim::of(&admitted.verified().statement.action);
        scribe.write(Job {
            envelope,
            claim,
            owner: self.owner,
        });
        Ok(admitted)
    }

    /// The acknowledgement is given only now, that the ledger has synced all copies.
    fn hear_written(&mut self, written: Written) {
        let Some(writing) = self.statements.writing.take() else {
            return;
        };
        written.lost.iter().for_each(|lost| self.tell_lost(lost));
        let result = match written.kept {
            Ok(()) => Ok(self.keep(&writing.admitted)),
            Err(error) => Err(not_kept(&error, written.poisoned)),
        };
        match writing.reply {
            Some(reply) => drop(reply.send(result)),
            // Nobody is left to say so when the answer is out: the ledger is read again at once.
            None if written.poisoned => self.statements.must_end = true,
            None => {}
        }
        self.go_on_writing();
    }

    fn keep(&mut self, admitted: &Admitted) -> Ack {
        self.reconciler.apply(admitted);
        self.accounts.assign(admitted.placement());
        self.renew();
        self.dirty = true;
        let Verified {
            statement, digest, ..
        } = admitted.verified();
        Ack {
            name: statement.name.clone(),
            version: statement.version,
            digest: *digest,
            durable: self.durable,
        }
    }

    pub(super) fn hear_statements(&mut self, news: News) {
        match news {
            News::Written(written) => self.hear_written(written),
            News::Silence => {
                let why = self.statements.silence.borrow_and_update().clone();
                self.host.wait_for_disks(why);
            }
        }
    }

    /// A pool has failed under the ledger: the node goes on with the others, and says so.
    fn tell_lost(&self, lost: &ledger::Lost) {
        let error = format!(
            "a disk of this node fails, and keeps no statements until the node starts again: {}",
            lost.why
        );
        log::error!("{error}");
        self.info.send_modify(|info| {
            let failed = info.pools.get_mut(lost.pool);
            failed.into_iter().for_each(|pool| {
                pool.state = PoolState::Failed;
                pool.because = Some(error.clone());
            });
            info.last_error = Some(error.clone());
        });
        troubles::say(&self.info, Code::PoolFailing, error);
    }

    fn admit(&self, verified: Verified) -> Result<Admitted, Refused> {
        let new = match &verified.statement.action {
            Action::Deploy(deployment) => deployment
                .machines()
                .map(|(_, machine)| machine.image.flist)
                .collect(),
            Action::Stop
            | Action::Start
            | Action::Restart
            | Action::Delete
            | Action::Destroy { .. }
            | Action::Snapshot { .. }
            | Action::DropSnapshot { .. }
            | Action::Restore { .. } => BTreeSet::new(),
        };
        let node = admission::Node {
            key: self.key,
            owner: self.owner,
            durable: self.durable,
            capacity: self.total,
            pools: self.accounts.shelves(),
            places: self.accounts.places(),
        };
        let images = self.accounts.images(new);
        let desired = self.reconciler.desired();
        admit(verified.clone(), &node, desired, &images).map_err(|refusal| {
            // What nobody deployed lies on the first.
            let mut empty = node;
            let first = empty.pools.first_mut();
            first
                .into_iter()
                .for_each(|first| first.room = Bytes(u64::MAX));
            match admit(verified, &empty, desired, &images) {
                Ok(_) => Refused::NoRoom(refusal),
                Err(refusal) => Refused::Final(refusal),
            }
        })
    }
}

fn not_kept(error: &LedgerError, poisoned: bool) -> Refused {
    let why = sys::error::chain(error);
    log::error!("{why}");
    let refusal = |code, message| Refusal { code, message };
    if poisoned {
        return Refused::Unknown(refusal(
            RefusalCode::Restarting,
            format!(
                "the ledger could not be written ({why}): the node agent restarts and reads it again, then `sifr get` shows whether the statement was kept"
            ),
        ));
    }
    let code = match error {
        error if error.is_full() => RefusalCode::OverCapacity,
        _ => RefusalCode::Internal,
    };
    Refused::Final(refusal(code, format!("the statement was not kept: {why}")))
}
