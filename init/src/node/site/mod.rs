//! The node's own network as its owner sets it over the API: tried, then confirmed or taken back.
//!
//! Owns: the one change that is being tried, its time, and which options count.
//! Refuses: a change that is not whole, and one that nobody has reached the node by. What is not confirmed is on no disk: a power
//! cut, or the end of this agent, takes it back too.
//!
//! States: rest → proposed (the answer is on its way) → used (since, until) → rest. While a confirmed change is on its way to the
//! disks it is used still: its time runs on, and what a disk takes after that is taken from it again (`writing`).

mod desk;
mod kept;
mod writing;

use std::path::{Path, PathBuf};
use std::time::Duration;

use api::Envelope;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;
use types::PublicKey;
use types::node::NodeInfo;
use types::site::{Confirmed, NodeNetwork, SiteChange, Trial};
use types::status::{Refusal, RefusalCode};
use types::trouble::Code;

pub(crate) use desk::Desk;
pub(crate) use kept::{Kept, Shelf};

use super::server::{refusal, restarting};
use super::troubles;
use super::uplink;
use crate::options::{self, Network, Options};
use writing::{Then, Writing};

/// Requests that wait for their turn: one person's, or one program's.
pub(crate) const ASKED_MAX: usize = 4;
/// Beside what this boot knows of the node already.
pub(crate) const KNOWN: &str = "/run/sifr/known";

/// One try of this agent: a version that was taken back may be tried again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Turn(u64);

/// What is asked of the loop.
pub(crate) enum Ask {
    Propose {
        envelope: Vec<u8>,
        reply: oneshot::Sender<Result<(Trial, Turn), Refusal>>,
    },
    /// Who proposed it has the answer.
    Begin { turn: Turn },
    Confirm {
        version: u64,
        /// Of the connection that it came over.
        connected: Instant,
        reply: oneshot::Sender<Result<Confirmed, Refusal>>,
    },
    /// Which try that is. Nothing changes.
    Find {
        version: u64,
        reply: oneshot::Sender<Result<Turn, Refusal>>,
    },
    /// Back at once: who asked for it has the answer.
    End { turn: Turn },
}

/// A change that is being tried.
#[derive(Debug)]
struct Tried {
    turn: Turn,
    change: Kept,
    network: Network,
    confirm: Duration,
    /// `None`: the answer is on its way.
    used: Option<Used>,
}

#[derive(Debug, Clone, Copy)]
struct Used {
    since: Instant,
    until: Instant,
    until_uptime_ms: u64,
}

/// The state of the loop.
pub(crate) struct Changes {
    shelf: Shelf,
    durable: bool,
    /// What the node was booted with.
    booted: Network,
    /// What was set before this boot does not count in it.
    reset: bool,
    /// Set in this boot, the newest.
    now: Option<Kept>,
    kept: Option<Kept>,
    /// What counts while nothing is tried.
    network: Network,
    tried: Option<Tried>,
    /// The tries so far.
    turns: u64,
    writing: Option<Writing>,
    note: Option<String>,
    info: watch::Sender<NodeInfo>,
}

impl Changes {
    /// Reads what was kept.
    pub(crate) fn open(
        pools: Vec<PathBuf>,
        boot: &Path,
        options: &Options,
        info: watch::Sender<NodeInfo>,
    ) -> Self {
        let (owner, node, durable) = {
            let info = info.borrow();
            (info.owner, info.key, info.durable)
        };
        let shelf = Shelf {
            pools,
            boot: boot.to_owned(),
            owner,
            node,
            disk: kept::Disk::default(),
        };
        let (kept, problems) = shelf.read();
        let mut changes = Self {
            now: shelf.set_now(),
            shelf,
            durable,
            booted: options.network.clone(),
            reset: options.network_reset,
            kept: None,
            network: options.network.clone(),
            tried: None,
            turns: 0,
            writing: None,
            note: None,
            info,
        };
        problems.iter().for_each(|problem| log::error!("{problem}"));
        let unused = changes.count(kept).or(problems.into_iter().next());
        if let Some(why) = unused {
            troubles::say(&changes.info, Code::NetworkUnset, why);
        }
        changes.publish();
        changes
    }

    /// What counts.
    pub(crate) fn network(&self) -> &Network {
        &self.network
    }

    /// Runs for ever.
    pub(crate) async fn run(
        mut self,
        mut asked: mpsc::Receiver<Ask>,
        links: mpsc::Sender<uplink::Ask>,
    ) {
        loop {
            let until = self.tried.as_ref().and_then(|tried| tried.used);
            tokio::select! {
                // What a disk has taken in time counts, and a confirmation that waits in the queue comes too late.
                biased;
                done = writing::done(&mut self.writing) => self.written(done),
                () = over(until) => self.late(&links).await,
                ask = asked.recv() => match ask {
                    Some(ask) => self.hear(ask, &links).await,
                    None => return,
                },
            }
            self.publish();
        }
    }

    async fn hear(&mut self, ask: Ask, links: &mpsc::Sender<uplink::Ask>) {
        match ask {
            // Whoever does not wait for the answer sees it in the node's report.
            Ask::Propose { envelope, reply } => {
                let _ = reply.send(self.propose(envelope, links).await);
            }
            Ask::Begin { turn } => self.begin(turn, links).await,
            Ask::Confirm {
                version,
                connected,
                reply,
            } => self.confirm(version, connected, reply),
            Ask::Find { version, reply } => {
                let _ = reply.send(self.find(version).map(|tried| tried.turn));
            }
            Ask::End { turn } => {
                if self.tried.as_ref().is_some_and(|tried| tried.turn == turn) {
                    self.back(links, "taken back by the owner").await;
                }
            }
        }
    }

    fn version(&self) -> u64 {
        self.kept.as_ref().map_or(0, |kept| kept.version)
    }

    /// The change that is being tried, which must be this one.
    fn find(&self, version: u64) -> Result<&Tried, Refusal> {
        let message = match &self.tried {
            Some(tried) if tried.change.version == version => return Ok(tried),
            Some(tried) => format!("version {} is being tried", tried.change.version),
            None => format!(
                "no change is being tried: version {version} {}",
                self.note.as_deref().unwrap_or("is not known")
            ),
        };
        Err(refusal(RefusalCode::Conflict, message))
    }

    /// Takes a change that the machine can do. It is used when its answer has been read.
    async fn propose(
        &mut self,
        envelope: Vec<u8>,
        links: &mpsc::Sender<uplink::Ask>,
    ) -> Result<(Trial, Turn), Refusal> {
        if let Some(tried) = &self.tried {
            let message = format!(
                "version {} is being tried: confirm it, or `sifr node network revert`",
                tried.change.version
            );
            return Err(refusal(RefusalCode::Conflict, message));
        }
        if self.writing.is_some() {
            let message = "a disk has not answered since the last change was to be kept: look at `sifr node info`, and try again";
            return Err(refusal(RefusalCode::DiskSilent, message));
        }
        let signed = (self.shelf.owner, self.shelf.node);
        let (change, own) = judge(&envelope, signed, self.version())?;
        let network = match change.options.is_empty() {
            true => self.booted.clone(),
            false => own,
        };
        let (reply, problems) = oneshot::channel();
        let asked = uplink::Ask::Check(network.clone(), reply);
        let problems = match links.send(asked).await {
            Ok(()) => problems.await.map_err(|_| restarting())?,
            Err(_) => return Err(restarting()),
        };
        if !problems.is_empty() && !change.options.is_empty() {
            let message = format!("{}: nothing was changed", problems.join("; "));
            return Err(refusal(RefusalCode::Conflict, message));
        }
        let (version, confirm_s) = (change.version, change.confirm_s);
        log::info!(
            "version {version} of the network is taken, to be confirmed within {confirm_s} s"
        );
        self.note = None;
        self.turns += 1;
        let turn = Turn(self.turns);
        self.tried = Some(Tried {
            turn,
            change: Kept {
                version,
                options: change.options,
                envelope,
            },
            network,
            confirm: Duration::from_secs(confirm_s.into()),
            used: None,
        });
        let trial = Trial {
            version,
            confirm_s,
            until_uptime_ms: None,
        };
        Ok((trial, turn))
    }

    async fn begin(&mut self, turn: Turn, links: &mpsc::Sender<uplink::Ask>) {
        let tried = self.tried.as_mut();
        let Some(tried) = tried.filter(|t| t.turn == turn && t.used.is_none()) else {
            return;
        };
        let refused = lead(links, &tried.network).await;
        let uptime = sys::clock::since_boot() + tried.confirm;
        let since = Instant::now();
        tried.used = Some(Used {
            since,
            until: since + tried.confirm,
            until_uptime_ms: u64::try_from(uptime.as_millis()).unwrap_or(u64::MAX),
        });
        // Else who reaches the node by what is left of the former network would confirm what nobody has seen work.
        if let Some(why) = refused {
            self.back(links, &format!("not possible: {why}")).await;
        }
    }

    /// Over a connection that was made while the change was used: then the node can be reached so.
    fn confirm(
        &mut self,
        version: u64,
        connected: Instant,
        reply: oneshot::Sender<Result<Confirmed, Refusal>>,
    ) {
        let change = match self.confirmable(version, connected) {
            Ok(Some(change)) => change,
            Ok(None) => {
                // Its answer was lost. Whoever does not wait for this one either asks again.
                let _ = reply.send(Ok(self.confirmed(version)));
                return;
            }
            Err(refused) => {
                let _ = reply.send(Err(refused));
                return;
            }
        };
        match &mut self.writing {
            Some(writing) => writing.wait(reply),
            None => {
                let former = self.kept.clone();
                self.writing = Some(Writing::keep(&self.shelf, change, former, reply));
            }
        }
    }

    fn confirmed(&self, version: u64) -> Confirmed {
        Confirmed {
            version,
            durable: self.durable,
        }
    }

    /// `None`: it is kept already.
    fn confirmable(&self, version: u64, connected: Instant) -> Result<Option<Kept>, Refusal> {
        if self.tried.is_none() && version == self.version() {
            return Ok(None);
        }
        let tried = self.find(version)?;
        if tried.used.is_none_or(|used| connected < used.since) {
            return Err(refusal(
                RefusalCode::Conflict,
                "a change is confirmed over a connection that was made while it was used: connect anew",
            ));
        }
        Ok(Some(tried.change.clone()))
    }

    /// The disks have taken the change, or will not.
    fn written(&mut self, done: Result<(), String>) {
        let Some(writing) = self.writing.take() else {
            return;
        };
        match (writing.then, done) {
            (Then::Answer(waiting), Ok(())) => {
                let version = writing.change.version;
                self.tried = None;
                self.shelf.mark_now(&writing.change);
                self.now = Some(writing.change.clone());
                self.count(Some(writing.change));
                troubles::over(&self.info, Code::NetworkUnset);
                log::info!("version {version} of the network is confirmed and kept");
                writing::tell(waiting, &Ok(self.confirmed(version)));
            }
            (Then::Answer(waiting), Err(why)) => {
                let message = format!("the change cannot be kept, and is taken back: {why}");
                writing::tell(waiting, &Err(refusal(RefusalCode::Internal, message)));
            }
            // What counts has not been what they took for a while.
            (Then::Forget, Ok(())) => {
                self.writing = Some(Writing::forget(&self.shelf, writing.change, writing.former));
            }
            (Then::Forget, Err(_)) | (Then::Rest, _) => {}
        }
    }

    async fn late(&mut self, links: &mpsc::Sender<uplink::Ask>) {
        let tried = self.tried.as_ref();
        let seconds = tried.map_or(0, |tried| tried.confirm.as_secs());
        let why = match &self.writing {
            None => format!("not confirmed within {seconds} s"),
            Some(_) => format!("not kept within {seconds} s: a disk does not answer"),
        };
        self.back(links, &why).await;
    }

    /// What counted before counts again.
    async fn back(&mut self, links: &mpsc::Sender<uplink::Ask>, why: &str) {
        let Some(tried) = self.tried.take() else {
            return;
        };
        let note = format!("version {} was {why}", tried.change.version);
        if let Some(writing) = &mut self.writing {
            writing.give_up(&refusal(RefusalCode::Conflict, note.clone()));
        }
        log::warn!("the network is what it was: {note}");
        self.note = Some(note);
        if tried.used.is_some() {
            // What is refused of it stands among the troubles.
            let _ = lead(links, &self.network).await;
        }
    }

    /// Makes it what counts. Says where it cannot be.
    fn count(&mut self, kept: Option<Kept>) -> Option<String> {
        let counts = match self.reset {
            true => &self.now,
            false => &kept,
        };
        if let Some(kept) = kept.as_ref().filter(|_| *counts != kept) {
            self.note = Some(format!(
                "version {} does not count in this boot, which was told sifr.net=reset",
                kept.version
            ));
        }
        let (network, unused) = match counts {
            None => (self.booted.clone(), None),
            Some(kept) if kept.options.is_empty() => (self.booted.clone(), None),
            Some(kept) => match options::of_the_owner(&kept.options) {
                Ok(network) => (network, None),
                Err(errors) => {
                    let (version, errors) = (kept.version, errors.join("; "));
                    let why = format!("version {version} of the network does not count: {errors}");
                    (self.booted.clone(), Some(why))
                }
            },
        };
        if unused.is_some() {
            self.note.clone_from(&unused);
        }
        (self.network, self.kept) = (network, kept);
        unused
    }

    fn publish(&self) {
        let now = self.report();
        self.info.send_if_modified(|info| {
            let new = info.network != now;
            info.network = now;
            new
        });
    }

    fn report(&self) -> NodeNetwork {
        let used = self.tried.as_ref().filter(|tried| tried.used.is_some());
        let network = used.map_or(&self.network, |tried| &tried.network);
        NodeNetwork {
            version: self.version(),
            options: network.stated.clone(),
            trial: self.tried.as_ref().map(|tried| Trial {
                version: tried.change.version,
                confirm_s: u32::try_from(tried.confirm.as_secs()).unwrap_or(u32::MAX),
                until_uptime_ms: tried.used.map(|used| used.until_uptime_ms),
            }),
            note: self.note.clone(),
        }
    }
}

/// A change that this owner has signed for this node, the next in turn, and what it means.
fn judge(
    envelope: &[u8],
    (owner, node): (Option<PublicKey>, PublicKey),
    version: u64,
) -> Result<(SiteChange, Network), Refusal> {
    let change = Envelope::parse(envelope)?.open_site(|key| Some(*key) == owner)?;
    if change.node != node {
        let message = format!("the change is for node {}, this one is {node}", change.node);
        return Err(refusal(RefusalCode::WrongNode, message));
    }
    let next = version.saturating_add(1);
    if change.version != next {
        let code = match change.version > next {
            true => RefusalCode::Skipped,
            false => RefusalCode::Replayed,
        };
        let message = format!(
            "version {} of the network cannot follow version {version}: sign version {next}",
            change.version
        );
        return Err(refusal(code, message));
    }
    let network = options::of_the_owner(&change.options).map_err(|errors| {
        let message = format!("{}: nothing was changed", errors.join("; "));
        refusal(RefusalCode::Malformed, message)
    })?;
    Ok((change, network))
}

/// Leads the links there. Returns when the kernel has been told, what it refused.
async fn lead(links: &mpsc::Sender<uplink::Ask>, network: &Network) -> Option<String> {
    let (reply, done) = oneshot::channel();
    let asked = uplink::Ask::Use(network.clone(), reply);
    links.send(asked).await.ok()?;
    // It fails where the loop has ended, and this process is about to.
    done.await.ok()?
}

/// For ever, where nothing is used.
async fn over(used: Option<Used>) {
    match used {
        Some(used) => tokio::time::sleep_until(used.until).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests;
