//! The node's own network as its owner sets it over the API: tried, then confirmed or taken back.
//!
//! Owns: the one change that is being tried, its time, and which options count.
//! Refuses: a change that is not whole, and one that nobody has reached the node by. What is not confirmed is on no disk: a power
//! cut, or the end of this agent, takes it back too.
//!
//! States: rest → proposed (the answer is on its way) → used (since, until) → rest.

mod desk;
mod kept;

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

use super::troubles;
use super::uplink;
use crate::options::{self, Network, Options};

/// Requests that wait for their turn: one person's, or one program's.
pub(crate) const ASKED_MAX: usize = 4;
/// Beside what this boot knows of the node already.
pub(crate) const KNOWN: &str = "/run/sifr/known";

/// What is asked of the loop.
pub(crate) enum Ask {
    Propose {
        envelope: Vec<u8>,
        reply: oneshot::Sender<Result<Trial, Refusal>>,
    },
    /// Who proposed it has the answer.
    Begin { version: u64 },
    Confirm {
        version: u64,
        /// Of the connection that it came over.
        connected: Instant,
        reply: oneshot::Sender<Result<Confirmed, Refusal>>,
    },
    /// Back at once.
    End { version: u64 },
}

/// A change that is being tried.
#[derive(Debug)]
struct Tried {
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
    /// Up to this version, changes do not count in this boot.
    reset: Option<u64>,
    kept: Option<Kept>,
    /// What counts while nothing is tried.
    network: Network,
    tried: Option<Tried>,
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
        };
        let (kept, problems) = shelf.read();
        let reset = options.network_reset.then(|| shelf.reset(kept.as_ref()));
        let mut changes = Self {
            shelf,
            durable,
            booted: options.network.clone(),
            reset,
            kept: None,
            network: options.network.clone(),
            tried: None,
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
                ask = asked.recv() => match ask {
                    Some(ask) => self.hear(ask, &links).await,
                    None => return,
                },
                () = over(until) => {
                    let seconds = self.tried.as_ref().map_or(0, |tried| tried.confirm.as_secs());
                    self.back(&links, &format!("not confirmed within {seconds} s")).await;
                }
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
            Ask::Begin { version } => self.begin(version, links).await,
            Ask::Confirm {
                version,
                connected,
                reply,
            } => {
                let _ = reply.send(self.confirm(version, connected).await);
            }
            Ask::End { version } => {
                if self.is_tried(version) {
                    self.back(links, "taken back by the owner").await;
                }
            }
        }
    }

    fn version(&self) -> u64 {
        self.kept.as_ref().map_or(0, |kept| kept.version)
    }

    fn is_tried(&self, version: u64) -> bool {
        let mut tried = self.tried.iter();
        tried.any(|tried| tried.change.version == version)
    }

    /// Takes a change that the machine can do. It is used when its answer has been read.
    async fn propose(
        &mut self,
        envelope: Vec<u8>,
        links: &mpsc::Sender<uplink::Ask>,
    ) -> Result<Trial, Refusal> {
        if let Some(tried) = &self.tried {
            let message = format!(
                "version {} is being tried: confirm it, or `sifr node network revert`",
                tried.change.version
            );
            return Err(refusal(RefusalCode::Conflict, message));
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
        self.tried = Some(Tried {
            change: Kept {
                version,
                options: change.options,
                envelope,
            },
            network,
            confirm: Duration::from_secs(confirm_s.into()),
            used: None,
        });
        Ok(Trial {
            version,
            confirm_s,
            until_uptime_ms: None,
        })
    }

    async fn begin(&mut self, version: u64, links: &mpsc::Sender<uplink::Ask>) {
        let tried = self.tried.as_mut();
        let Some(tried) = tried.filter(|t| t.change.version == version && t.used.is_none()) else {
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
    async fn confirm(&mut self, version: u64, connected: Instant) -> Result<Confirmed, Refusal> {
        let confirmed = Confirmed {
            version,
            durable: self.durable,
        };
        let Some(tried) = &self.tried else {
            if version == self.version() {
                // Its answer was lost.
                return Ok(confirmed);
            }
            let message = format!(
                "no change waits for its confirmation: version {version} {}",
                self.note.as_deref().unwrap_or("is not known")
            );
            return Err(refusal(RefusalCode::Conflict, message));
        };
        if tried.change.version != version {
            let message = format!("version {} is being tried", tried.change.version);
            return Err(refusal(RefusalCode::Conflict, message));
        }
        if tried.used.is_none_or(|used| connected < used.since) {
            return Err(refusal(
                RefusalCode::Conflict,
                "a change is confirmed over a connection that was made while it was used: connect anew",
            ));
        }
        let (shelf, change) = (self.shelf.clone(), tried.change.clone());
        let former = self.kept.clone();
        let written = tokio::task::spawn_blocking(move || {
            shelf.keep(&change, former.as_ref())?;
            Ok(change)
        });
        let written = written.await.map_err(|error| error.to_string());
        let change = written.flatten().map_err(|why: String| {
            let message = format!("the change cannot be kept, and is taken back: {why}");
            refusal(RefusalCode::Internal, message)
        })?;
        self.tried = None;
        self.count(Some(change));
        troubles::over(&self.info, Code::NetworkUnset);
        log::info!("version {version} of the network is confirmed and kept");
        Ok(confirmed)
    }

    /// What counted before counts again.
    async fn back(&mut self, links: &mpsc::Sender<uplink::Ask>, why: &str) {
        let Some(tried) = self.tried.take() else {
            return;
        };
        let note = format!("version {} was {why}", tried.change.version);
        log::warn!("the network is what it was: {note}");
        self.note = Some(note);
        if tried.used.is_some() {
            // What is refused of it stands among the troubles.
            let _ = lead(links, &self.network).await;
        }
    }

    /// Makes it what counts. Says where it cannot be.
    fn count(&mut self, kept: Option<Kept>) -> Option<String> {
        let (network, unused) = match &kept {
            None => (self.booted.clone(), None),
            Some(kept) if self.reset.is_some_and(|reset| kept.version <= reset) => {
                let (version, reset) = (kept.version, "sifr.net=reset");
                self.note = Some(format!(
                    "version {version} does not count in this boot, which was told {reset}"
                ));
                (self.booted.clone(), None)
            }
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

fn refusal(code: RefusalCode, message: impl Into<String>) -> Refusal {
    Refusal {
        code,
        message: message.into(),
    }
}

fn restarting() -> Refusal {
    refusal(
        RefusalCode::Restarting,
        "the node agent is restarting: try again",
    )
}

#[cfg(test)]
mod tests;
