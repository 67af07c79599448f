//! Certificates that the node orders for names of ingress.
//!
//! Owns: which names have one, the orders under way, what is kept of both, and what is served while an authority looks.
//! Refuses: the rules after which orders are made (`certificates::plan` has them), speaking to an authority (`certificates` does),
//! and to begin anything before the time is known.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use ::ingress::wire::TlsConfig;
use certificates::plan::{Candidate, Choice, choose, renewal};
use certificates::{Authority, Chain, OrderError, Pair};
use tokio::sync::{Notify, watch};
use types::PublicKey;
use types::ingress::{Acme, Host};
use types::node::NodeInfo;
use types::status::{CertificateState, CertificateStatus};
use types::trouble::Code;

use super::troubles;
use shelf::{Account, Issued, Name, Shelf, account_id};

mod shelf;

/// Names whose orders are remembered, those that nobody wants any more too: each is some KiB on every pool.
const NAMES_MAX: usize = 1024;
/// Accounts of the node: tenants, authorities and addresses of mail.
const ACCOUNTS_MAX: usize = 256;
/// A name that nobody wants is remembered for so long after its last order: rates of authorities are of a week.
const REMEMBERED_S: u64 = 7 * 24 * 3600;
/// The clock may be set meanwhile: whatever is waited for, it is looked at again after this.
const LOOK: Duration = Duration::from_secs(600);
/// How long the ingress process may take to serve a proof: it does so between two requests.
const SERVED_WAIT: Duration = Duration::from_secs(30);

/// Who wants a certificate, and of whom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Wanted {
    pub(crate) signer: PublicKey,
    pub(crate) acme: Acme,
}

/// What is known of a name.
#[derive(Debug)]
struct Entry {
    kept: Name,
    /// Of the certificate that is kept.
    life: Option<(u64, u64)>,
}

impl Entry {
    fn new(kept: Name) -> Self {
        let issued = kept.issued.as_ref();
        let chain = issued.and_then(|issued| Chain::read(&issued.certificate).ok());
        let life = chain.map(|chain| (chain.from_s, chain.until_s));
        Self { kept, life }
    }

    /// Somebody else has the name now, or asks another authority. The rate of its orders stays.
    fn heed(&mut self, now: &Wanted) {
        let kept = &mut self.kept;
        if kept.signer != now.signer {
            kept.signer = now.signer;
            // Who has the name now gets nothing that somebody else has ordered.
            (kept.issued, self.life) = (None, None);
            kept.error = None;
            kept.history.forgive();
        }
        if kept.directory != now.acme.directory {
            kept.directory = now.acme.directory.clone();
            kept.error = None;
            kept.history.forgive();
        }
    }

    /// The life of a certificate that the wanted authority has given: another's is used until there is one.
    fn renewed(&self, wanted: &Wanted) -> Option<(u64, u64)> {
        let same = |issued: &Issued| issued.directory == wanted.acme.directory;
        self.life
            .filter(|_| self.kept.issued.as_ref().is_some_and(same))
    }
}

#[derive(Debug, Default)]
struct State {
    wanted: BTreeMap<Host, Wanted>,
    entries: BTreeMap<Host, Entry>,
    accounts: BTreeMap<String, Account>,
    under_way: BTreeSet<Host>,
    /// Tokens with their answers, while an authority looks.
    proofs: BTreeMap<Host, BTreeMap<String, String>>,
    /// Counts up with whatever the ingress process is to hear of.
    stand: u64,
}

struct Inner {
    shelf: Shelf,
    state: RefCell<State>,
    /// A name is wanted, or an order has ended.
    wake: Notify,
    /// What is served has changed.
    changed: Notify,
    /// The newest stand that the ingress process serves.
    served: watch::Sender<u64>,
    time_is_known: Cell<bool>,
}

/// A handle. Orders are made while [`Certificates::run`] runs.
#[derive(Clone)]
pub(crate) struct Certificates {
    inner: Rc<Inner>,
}

fn now_s() -> u64 {
    sys::clock::realtime().as_secs()
}

impl Certificates {
    /// With what these pools have.
    pub(crate) fn open(pools: Vec<PathBuf>) -> Self {
        let shelf = Shelf::new(pools);
        let names = shelf.all::<Name>().into_values();
        let state = State {
            entries: names
                .map(|kept| (kept.host.clone(), Entry::new(kept)))
                .collect(),
            accounts: shelf.all(),
            ..State::default()
        };
        let inner = Inner {
            shelf,
            state: RefCell::new(state),
            wake: Notify::new(),
            changed: Notify::new(),
            served: watch::Sender::new(0),
            time_is_known: Cell::new(false),
        };
        Self {
            inner: Rc::new(inner),
        }
    }

    /// These names are to have one from now on.
    pub(crate) fn converge(&self, wanted: BTreeMap<Host, Wanted>) {
        let mut state = self.inner.state.borrow_mut();
        if state.wanted == wanted {
            return;
        }
        for (host, now) in &wanted {
            if let Some(entry) = state.entries.get_mut(host) {
                entry.heed(now);
            }
        }
        state.wanted = wanted;
        drop(state);
        self.inner.wake.notify_one();
    }

    /// How TLS is spoken under a name.
    pub(crate) fn tls(&self, host: &Host, signer: &PublicKey) -> TlsConfig {
        let state = self.inner.state.borrow();
        let entry = state.entries.get(host);
        let entry = entry.filter(|entry| entry.kept.signer == *signer);
        match entry.and_then(|entry| entry.kept.issued.as_ref()) {
            Some(issued) => TlsConfig::Own {
                certificate: issued.certificate.clone(),
                key: issued.key.clone(),
            },
            None => TlsConfig::Broken {
                why: "its certificate is not there yet".to_owned(),
            },
        }
    }

    /// What an authority is answered under a name.
    pub(crate) fn proofs(&self, host: &Host) -> BTreeMap<String, String> {
        let state = self.inner.state.borrow();
        state.proofs.get(host).cloned().unwrap_or_default()
    }

    /// Which of its changes the two above say.
    pub(crate) fn stand(&self) -> u64 {
        self.inner.state.borrow().stand
    }

    /// Waits until they say something new.
    pub(crate) async fn changed(&self) {
        self.inner.changed.notified().await;
    }

    /// The ingress process serves what they said at that stand.
    pub(crate) fn served(&self, stand: u64) {
        self.inner.served.send_replace(stand);
    }

    /// `None`: nobody wants one of this name.
    pub(crate) fn status(&self, host: &Host) -> Option<CertificateStatus> {
        let state = self.inner.state.borrow();
        let wanted = state.wanted.get(host)?;
        let entry = state.entries.get(host);
        let entry = entry.filter(|entry| entry.kept.signer == wanted.signer);
        let is_under_way = state.under_way.contains(host);
        let mut status = shown(entry, wanted, is_under_way, now_s());
        if !self.inner.time_is_known.get() && status.error.is_none() {
            let why = "nothing is ordered before the node knows the time: no time server has answered yet (`sifr node info`)";
            status.error = Some(why.to_owned());
        }
        Some(status)
    }

    /// Orders whatever is due, for ever.
    pub(crate) async fn run(self, info: watch::Sender<NodeInfo>) {
        let mut reports = info.subscribe();
        let known = reports.wait_for(|info| info.clock.synchronised).await;
        if known.is_err() {
            return;
        }
        drop(known);
        self.inner.time_is_known.set(true);
        loop {
            let wait = self.turn().await;
            match self.ending(now_s()) {
                Some(said) => troubles::say(&info, Code::CertificateEnding, said),
                None => troubles::over(&info, Code::CertificateEnding),
            }
            tokio::select! {
                // Both are safe to drop.
                () = self.inner.wake.notified() => {}
                () = tokio::time::sleep(wait.min(LOOK)) => {}
            }
        }
    }

    /// Names whose certificates end, or have ended, while nothing brings the next.
    fn ending(&self, now: u64) -> Option<String> {
        let state = self.inner.state.borrow();
        let ends = |(host, wanted): &(&Host, &Wanted)| {
            let entry = state.entries.get(host);
            let own = entry.filter(|entry| entry.kept.signer == wanted.signer);
            match shown(own, wanted, state.under_way.contains(host), now).state {
                CertificateState::Ending | CertificateState::Expired => true,
                CertificateState::Wanted
                | CertificateState::Ordered
                | CertificateState::Waiting
                | CertificateState::Valid
                | CertificateState::Unreadable => false,
            }
        };
        let all: Vec<&Host> = state
            .wanted
            .iter()
            .filter(ends)
            .map(|(host, _)| host)
            .collect();
        let (first, more) = (all.first()?, all.len() - 1);
        Some(match more {
            0 => format!("the certificate of {first} ends, and no order brings the next"),
            more => format!(
                "the certificates of {first} and {more} more end, and no order brings the next"
            ),
        })
    }

    /// Begins all orders that are due. How long nothing is, unless somebody wakes it.
    async fn turn(&self) -> Duration {
        self.forget().await;
        loop {
            let now = now_s();
            match self.choose(now) {
                Choice::Order(host) => {
                    let Some(wanted) = self.begin(&host, now) else {
                        return LOOK;
                    };
                    let this = self.clone();
                    tokio::task::spawn_local(async move { this.order(host, wanted).await });
                }
                Choice::Wait(until) => return Duration::from_secs(until.saturating_sub(now)),
                Choice::Nothing => return LOOK,
            }
        }
    }

    fn choose(&self, now: u64) -> Choice {
        let mut state = self.inner.state.borrow_mut();
        let entries = state.entries.values_mut();
        entries.for_each(|entry| entry.kept.history.heed(now));
        let none = certificates::plan::History::default();
        let mut all = Vec::new();
        for (host, wanted) in &state.wanted {
            let entry = state.entries.get(host);
            // Nobody may forget one name's rate to remember another's.
            if entry.is_none() && state.entries.len() >= NAMES_MAX {
                continue;
            }
            let own = entry.filter(|entry| entry.kept.signer == wanted.signer);
            all.push(Candidate {
                host,
                signer: wanted.signer,
                history: entry.map_or(&none, |entry| &entry.kept.history),
                life: own.and_then(|own| own.renewed(wanted)),
                under_way: state.under_way.contains(host),
            });
        }
        choose(&all, now)
    }

    /// An order counts from here on.
    fn begin(&self, host: &Host, now: u64) -> Option<Wanted> {
        let mut state = self.inner.state.borrow_mut();
        let wanted = state.wanted.get(host)?.clone();
        let blank = || {
            Entry::new(Name {
                saved: 0,
                host: host.clone(),
                signer: wanted.signer,
                directory: wanted.acme.directory.clone(),
                history: certificates::plan::History::default(),
                issued: None,
                error: None,
            })
        };
        let entry = state.entries.entry(host.clone()).or_insert_with(blank);
        entry.heed(&wanted);
        entry.kept.history.begin(now);
        state.under_way.insert(host.clone());
        Some(wanted)
    }

    async fn order(self, host: Host, wanted: Wanted) {
        let outcome = self.attempt(&host, &wanted).await;
        self.note(&host, &wanted, outcome);
        self.inner.changed.notify_one();
        if let Err(why) = self.save(&host).await {
            log::error!(
                "what came of the order for {host} is known until the next boot alone: {why}"
            );
        }
        self.inner.wake.notify_one();
    }

    fn note(&self, host: &Host, wanted: &Wanted, outcome: Result<Pair, Failed>) {
        let mut state = self.inner.state.borrow_mut();
        state.under_way.remove(host);
        state.proofs.remove(host);
        state.stand += 1;
        if let Some(entry) = state.entries.get_mut(host)
            && entry.kept.signer == wanted.signer
        {
            entry.kept.note(wanted, outcome);
            *entry = Entry::new(entry.kept.clone());
        }
    }

    async fn attempt(&self, host: &Host, wanted: &Wanted) -> Result<Pair, Failed> {
        // Before anything is asked: no end of this node makes an authority be asked more often.
        self.save(host).await.map_err(Failed::Disk)?;
        let authority = Authority::new(&wanted.acme)?;
        let Wanted { signer, acme } = wanted;
        let id = account_id(signer, &acme.directory, acme.contact.as_deref());
        let known = self.inner.state.borrow().accounts.get(&id).cloned();
        let order = async |account: Account| {
            let serve = async |token, answer| self.serve(host, token, answer).await;
            let account = account.credentials;
            authority.order(&account, host, now_s(), serve).await
        };
        if let Some(account) = known {
            match order(account).await {
                // A new one, once.
                Err(OrderError::Forgotten { .. }) => {
                    self.inner.state.borrow_mut().accounts.remove(&id);
                    self.inner.shelf.remove::<Account>(&id).await;
                }
                ordered => return Ok(ordered?),
            }
        }
        let account = self.register(&authority, wanted, &id).await?;
        Ok(order(account).await?)
    }

    async fn register(
        &self,
        authority: &Authority<'_>,
        wanted: &Wanted,
        id: &str,
    ) -> Result<Account, Failed> {
        if self.inner.state.borrow().accounts.len() >= ACCOUNTS_MAX {
            return Err(Failed::Accounts);
        }
        let account = Account {
            saved: 1,
            signer: wanted.signer,
            directory: wanted.acme.directory.clone(),
            contact: wanted.acme.contact.clone(),
            credentials: authority.register().await?,
        };
        let kept = self.inner.shelf.save(&account).await;
        kept.map_err(Failed::Disk)?;
        let mut state = self.inner.state.borrow_mut();
        state.accounts.insert(id.to_owned(), account.clone());
        Ok(account)
    }

    /// Returns once the ingress process answers so.
    async fn serve(&self, host: &Host, token: String, answer: String) -> Result<(), String> {
        let stand = {
            let mut state = self.inner.state.borrow_mut();
            let proofs = state.proofs.entry(host.clone()).or_default();
            proofs.insert(token, answer);
            state.stand += 1;
            state.stand
        };
        self.inner.changed.notify_one();
        let mut served = self.inner.served.subscribe();
        let served = served.wait_for(|served| *served >= stand);
        match tokio::time::timeout(SERVED_WAIT, served).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) | Err(_) => Err("the ingress process does not answer".to_owned()),
        }
    }

    async fn save(&self, host: &Host) -> Result<(), String> {
        let kept = {
            let mut state = self.inner.state.borrow_mut();
            let Some(entry) = state.entries.get_mut(host) else {
                return Ok(());
            };
            entry.kept.saved += 1;
            entry.kept.clone()
        };
        self.inner.shelf.save(&kept).await
    }

    /// Names that nobody wants, once no authority counts their orders any more and their certificates have ended.
    async fn forget(&self) {
        let gone: Vec<Host> = {
            let mut state = self.inner.state.borrow_mut();
            let State {
                wanted, entries, ..
            } = &mut *state;
            let now = now_s();
            let forgotten = |(host, entry): (&Host, &Entry)| {
                let last = entry.kept.history.last().saturating_add(REMEMBERED_S);
                let until = entry.life.map_or(0, |(_, until)| until);
                let over = last.max(until) <= now;
                (over && !wanted.contains_key(host)).then(|| host.clone())
            };
            let gone: Vec<Host> = entries.iter().filter_map(forgotten).collect();
            entries.retain(|host, _| !gone.contains(host));
            gone
        };
        for host in gone {
            self.inner.shelf.remove::<Name>(host.as_str()).await;
        }
    }
}

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
enum Failed {
    #[error(transparent)]
    Order(#[from] OrderError),
    #[error("nothing is ordered that could not be kept: {0}: look at `sifr node info`")]
    Disk(String),
    #[error(
        "the node has {ACCOUNTS_MAX} accounts at authorities: order under an account that there is, with the same signer, directory and contact"
    )]
    Accounts,
}

impl Name {
    fn note(&mut self, wanted: &Wanted, outcome: Result<Pair, Failed>) {
        match outcome {
            Ok(Pair { certificate, key }) => {
                log::info!(
                    "a certificate of {} for {}",
                    wanted.acme.directory,
                    self.host
                );
                self.issued = Some(Issued {
                    directory: wanted.acme.directory.clone(),
                    certificate,
                    key,
                });
                self.error = None;
                self.history.succeed();
            }
            Err(failed) => {
                log::warn!("no certificate for {}: {failed}", self.host);
                self.history.fail(match &failed {
                    Failed::Order(error) => error.failure(),
                    Failed::Disk(_) | Failed::Accounts => certificates::plan::Failure::Any,
                });
                self.error = Some(failed.to_string());
            }
        }
    }
}

fn shown(
    entry: Option<&Entry>,
    wanted: &Wanted,
    is_under_way: bool,
    now: u64,
) -> CertificateStatus {
    let history = entry.map(|entry| &entry.kept.history);
    let has_failed = history.is_some_and(|history| history.has_failed());
    let life = entry.and_then(|entry| entry.life);
    let state = match life {
        Some((_, until)) if until <= now => CertificateState::Expired,
        Some((from, until)) if has_failed && renewal(from, until) <= now => {
            CertificateState::Ending
        }
        Some(_) => CertificateState::Valid,
        None if is_under_way => CertificateState::Ordered,
        None if has_failed => CertificateState::Waiting,
        None => CertificateState::Wanted,
    };
    let renewed = entry.and_then(|entry| entry.renewed(wanted));
    let next = history.map(|history| history.next(renewed));
    CertificateStatus {
        state,
        brought: false,
        until_s: life.map(|(_, until)| until),
        order_s: next.filter(|next| !is_under_way && *next > 0),
        failures: history.map_or(0, |history| history.failures()),
        error: entry.and_then(|entry| entry.kept.error.clone()),
    }
}

#[cfg(test)]
#[path = "certificates_tests.rs"]
mod tests;
