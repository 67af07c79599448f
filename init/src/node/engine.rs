//! The engine of the node: one task that owns the ledger, what should run and what runs.
//!
//! Owns: the order of the last boot phases (`open` = "ledger", `listen` = "api", `adopt` =
//! "workloads") and the loop after them.
//! Refuses: deciding (`workload` does) and system calls (`host` does).

use std::cell::OnceCell;
use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use api::Envelope;
use flist::cache::{Cache, Keep};
use flist::wire::Counts;
use tokio::sync::{mpsc, oneshot, watch};
use types::node::{Capacity, NodeInfo};
use types::status::{Ack, Condition, DeploymentStatus, Refusal};
use types::trouble::Code;
use types::{Digest, PublicKey, VmId};
use workload::admission;
use workload::desired::{Desired, Key, Verified};
use workload::host::{Event, Host, Places};
use workload::reconcile::{ChooseSubnet, Offer, Reconciler, reconcile};

use super::accounts::Accounts;
use super::certificates::Certificates;
use super::content;
use super::context::NodeContext;
use super::drills::{DrillReply, Drills};
use super::ending;
use super::host::{Message, NodeHost};
use super::images::{Images, News};
use super::ingress::Ingress;
use super::machines::Machines;
use super::metrics::Asked;
use super::pauses::Pauses;
use super::prepare::Means;
use super::pulse;
use super::server::Server;
use super::vigil::{Turn, Vigil};
use super::volumes::Volumes;
use super::{mesh, network};
use super::{retire, sweep, troubles};
use crate::packets::Packets;
use crate::wire::{CHUNKS_ID, FromPid1, Mode, PACKET_MAX, ToPid1, Victim};

use statements::Statements;

mod loss;
mod reading;
mod statements;
mod unused;

/// Requests that wait for the loop: one of each connection that the server admits.
const REQUESTS_MAX: usize = 256;
/// Machines that start at once, for each of the node's processors: while one waits for its disk another has the processor.
const STARTS_PER_CPU: u64 = 2;
/// As many on the smallest node: a few machines come up together.
const STARTS_MIN: u64 = 4;

/// What the API asks of the loop.
#[derive(Debug)]
pub(crate) enum Request {
    /// The bytes of an envelope.
    Statement {
        envelope: Vec<u8>,
        reply: oneshot::Sender<Result<Ack, Refused>>,
    },
    Status {
        key: Key,
        reply: oneshot::Sender<Option<DeploymentStatus>>,
    },
    List {
        signer: PublicKey,
        reply: oneshot::Sender<Vec<DeploymentStatus>>,
    },
    /// Kill a process as a crash would. Answered when it is dead and that shows in the status.
    Drill { victim: Victim, reply: DrillReply },
    /// Read the ledger again, in another agent: this one ends, and pid1 starts it.
    End,
    /// Stop all machines in order, then start the node again.
    Reboot,
    /// The same, then switch it off.
    PowerOff,
    /// Ask the VMMs what they have counted: those of one signer, or of all; of one deployment, or of all.
    Metrics {
        signer: Option<PublicKey>,
        deployment: Option<types::Name>,
        reply: oneshot::Sender<Vec<Asked>>,
    },
    /// Flists that may not be swept.
    Images {
        reply: oneshot::Sender<BTreeMap<Digest, Keep>>,
    },
    /// A pool is lost, or a disk has come.
    Disks { turn: Turn },
    /// What firewalls and names follow from.
    Places { reply: oneshot::Sender<Places> },
    /// What this node can be in a network across nodes.
    Offer {
        key: Key,
        network: types::Name,
        reply: oneshot::Sender<Option<Offer>>,
    },
    /// What the chunk daemon has done.
    Counts { reply: oneshot::Sender<Counts> },
}

impl Request {
    /// Whether nothing follows from it but an answer.
    fn asks(&self) -> bool {
        match self {
            Self::Status { .. }
            | Self::List { .. }
            | Self::Metrics { .. }
            | Self::Images { .. }
            | Self::Places { .. }
            | Self::Offer { .. }
            | Self::Counts { .. } => true,
            Self::Statement { .. }
            | Self::Drill { .. }
            | Self::Disks { .. }
            | Self::End
            | Self::Reboot
            | Self::PowerOff => false,
        }
    }
}

/// Why a statement was not accepted.
#[derive(Debug)]
pub(crate) enum Refused {
    Final(Refusal),
    /// It would have been, if content that no deployment names did not lie in its place.
    NoRoom(Refusal),
    /// Nobody knows whether it was kept before the ledger is read again: whoever answers says
    /// [`Request::End`] when that is done.
    Unknown(Refusal),
}

impl From<Refusal> for Refused {
    fn from(refusal: Refusal) -> Self {
        Self::Final(refusal)
    }
}

/// The engine between its phases.
pub(crate) struct Engine {
    key: PublicKey,
    owner: Option<PublicKey>,
    durable: bool,
    pool: PathBuf,
    total: Capacity,
    info: watch::Sender<NodeInfo>,
    uplink: watch::Receiver<super::context::Uplink>,
    statements: Statements,
    reconciler: Reconciler,
    host: NodeHost,
    accounts: Accounts,
    volumes: Volumes,
    images: Images,
    pid1: Rc<Packets>,
    messages: mpsc::Receiver<Message>,
    news: mpsc::UnboundedReceiver<News>,
    requests: mpsc::Receiver<Request>,
    drills: Drills,
    pauses: Pauses,
    /// Counts up with every change of a status.
    changes: watch::Sender<u64>,
    /// Something may have changed since that was last counted up. Questions change nothing: who waits
    /// for a change asks at each one.
    dirty: bool,
    server: Option<Server>,
    /// The node is to go down, once nothing runs.
    down: Option<Mode>,
    down_said: bool,
    disks: loss::Disks,
    /// Other nodes of networks.
    seen: watch::Receiver<mesh::Seen>,
    ingress: Ingress,
}

fn now() -> u64 {
    u64::try_from(sys::clock::since_boot().as_millis()).unwrap_or(u64::MAX)
}

/// Reads an envelope for admission and for the ledger.
pub(crate) fn verify(envelope: &[u8], owner: Option<PublicKey>) -> Result<Verified, Refusal> {
    let signed = Envelope::parse(envelope)?.open_statement(|key| Some(*key) == owner)?;
    let digest = Digest(*blake3::hash(&signed.payload).as_bytes());
    Ok(Verified {
        signer: signed.signer,
        statement: signed.statement,
        digest,
    })
}

/// Where a pool has its ledger.
pub(crate) fn ledger_copies(pool: &Path) -> [PathBuf; 2] {
    ["a", "b"].map(|copy| pool.join("ledger").join(copy))
}

/// Of all pools, the first first.
fn mountpoints(context: &NodeContext) -> Vec<PathBuf> {
    let pools = context.pools.iter();
    pools.map(|pool| pool.mountpoint.clone()).collect()
}

/// What deployments need and another pool has is brought where machines run from, while the node already serves.
fn gather(
    context: &NodeContext,
    cache: &Cache,
    desired: &Desired,
    news: mpsc::UnboundedSender<News>,
) {
    let further = context.pools.iter().skip(1).map(|pool| &pool.mountpoint);
    let further: Vec<PathBuf> = further.cloned().collect();
    if further.is_empty() {
        return;
    }
    let images: BTreeSet<_> = desired.machines().map(|(.., m)| m.image.flist).collect();
    let (cache, room) = (cache.clone(), context.room.clone());
    let work = move || content::gather(&cache, &further, &room, images);
    tokio::task::spawn_local(async move {
        let brought = tokio::task::spawn_blocking(work).await;
        if brought.is_ok_and(|images| !images.is_empty()) {
            // The loop reads it, unless it has ended.
            let _ = news.send(News::Progress);
        }
    });
}

/// Those who ask the loop: the API, and the kernel where disks come and go.
fn open_doors(
    context: &NodeContext,
    requests: mpsc::Sender<Request>,
    cache: Cache,
    machines: &Machines,
    (changed, silence): (watch::Receiver<u64>, watch::Sender<Option<String>>),
) -> anyhow::Result<Server> {
    let heard = silence.subscribe();
    tokio::task::spawn_local(Vigil::of(context, requests.clone(), silence).keep());
    Server::new(context, requests, cache, machines.clone(), (changed, heard))
}

fn accounts_of(
    context: &NodeContext,
    cache: &Cache,
    machines: &Machines,
    volumes: &Volumes,
) -> Accounts {
    let (room, pools) = (&context.room, &context.pools);
    Accounts::new(
        cache.clone(),
        room,
        pools,
        machines.clone(),
        volumes.clone(),
        context.info.subscribe(),
    )
}

fn starts_max() -> usize {
    let starts = super::machine::cpus().saturating_mul(STARTS_PER_CPU);
    usize::try_from(starts.max(STARTS_MIN)).unwrap_or(usize::MAX)
}

fn to_pid1(socket: OwnedFd) -> anyhow::Result<Rc<Packets>> {
    let packets = Packets::new(socket, PACKET_MAX);
    packets.context("take the socket to pid1").map(Rc::new)
}

/// Gives networks subnets that touch none of the uplink's.
fn subnets(uplink: watch::Receiver<super::context::Uplink>) -> ChooseSubnet {
    Box::new(move |wish, taken| network::choose_subnet(wish, taken, &uplink.borrow()))
}

impl Engine {
    /// Phase "ledger": reads both copies, heals them, and knows what should run.
    pub(crate) async fn open(context: NodeContext) -> anyhow::Result<Self> {
        let (ledger, desired) = reading::read_ledger(&context);
        let machines = Machines::open_in(&context.pools)?;
        let volumes = Volumes::open_in(&context.pools)?;
        let cache = Cache::open(&context.pool).and_then(|cache| cache.given_to(CHUNKS_ID));
        let cache = cache.context("open the chunk cache")?;
        let choose = subnets(context.uplink.clone());
        let mut accounts = accounts_of(&context, &cache, &machines, &volumes);
        accounts.renew(&desired);
        let (news_tx, news) = mpsc::unbounded_channel();
        gather(&context, &cache, &desired, news_tx.clone());
        let (reconciler, pauses) = reading::reconciler(desired, choose, &machines, &volumes)?;
        let (requests_tx, requests) = mpsc::channel(REQUESTS_MAX);
        let (changes, _) = watch::channel(0);
        let (silence_tx, silence) = watch::channel(None);
        let heard = (changes.subscribe(), silence_tx);
        let server = open_doors(&context, requests_tx, cache, &machines, heard)?;
        let certificates = Certificates::open(mountpoints(&context));
        let pid1 = to_pid1(context.pid1)?;
        loss::forget_images(&pid1, context.adopted);
        let images = Images::new(news_tx);
        let ingress = Ingress::new(&context.seed, pid1.clone(), certificates);
        let (networks_tx, networks) = watch::channel(BTreeSet::new());
        let means = Means {
            images: images.clone(),
            machines,
            volumes: volumes.clone(),
            networks,
            kvm_problem: context.kvm_problem,
            kernel: OnceCell::new(),
            storage: context.storage,
            ula: network::ula(&context.key),
            keys: mesh::Keys::of(&context.seed),
            ingress: ingress.clone(),
        };
        let (host, messages) =
            NodeHost::new(means, networks_tx, pid1.clone(), context.uplink.clone());
        let mut engine = Self {
            seen: mesh::begin(host.joined(), &context.info),
            key: context.key,
            owner: context.owner,
            durable: context.storage.is_durable(),
            pool: context.pool,
            total: context.capacity,
            info: context.info,
            uplink: context.uplink,
            statements: Statements::begin(ledger, silence)?,
            reconciler,
            host,
            accounts,
            volumes,
            images,
            pid1,
            messages,
            news,
            requests,
            drills: Drills::default(),
            pauses,
            changes,
            dirty: true,
            server: Some(server),
            down: None,
            down_said: false,
            disks: loss::Disks::of(context.pools, context.guarded, context.adopted),
            ingress,
        };
        engine.host.decide(engine.accounts.decisions());
        engine.show();
        Ok(engine)
    }

    /// Phase "api": binds the port and accepts connections from here on. Requests are answered once
    /// the loop runs.
    pub(crate) async fn listen(&mut self) -> anyhow::Result<()> {
        if let Some(server) = self.server.take() {
            let listener = server.bind().await?;
            tokio::task::spawn_local(server.serve(listener));
        }
        Ok(())
    }

    /// Phase "workloads": takes over the VMs that pid1 kept.
    pub(crate) async fn adopt(&mut self) -> anyhow::Result<()> {
        let mut survivors = BTreeSet::new();
        self.reconciler
            .keep_off(unused::occupied(self.uplink.clone()));
        // Before the first image is asked for.
        let egress = self.uplink.borrow().egress.clone();
        self.images.go_by(egress);
        tokio::task::spawn_local(self.images.clone().follow(self.uplink.clone()));
        self.reconciler.reserve(network::ours(&self.key));
        tokio::task::spawn_local(self.images.clone().run());
        tokio::task::spawn_local(self.ingress.clone().run(self.info.clone()));
        loop {
            let received = self
                .pid1
                .receive::<FromPid1>()
                .await
                .context("listen to pid1")?;
            let (message, fds) = received.context("pid1 has closed its socket")?;
            match message {
                FromPid1::Kept {
                    vm,
                    slot,
                    pid,
                    tag,
                    status,
                } => {
                    let desired = self.reconciler.desired();
                    let store = |key: &Key, workload: &types::Name| {
                        desired.get(key)?.machine(workload)?.image.store.clone()
                    };
                    match self.host.adopt(vm.clone(), slot, &tag, status, fds, store) {
                        Ok(survivor) => {
                            self.host.is_process(&vm, pid);
                            survivors.insert(vm);
                            self.reconciler.adopt(survivor, now());
                        }
                        // Not one of this version: it runs on, and nobody can speak to it.
                        Err(error) => log::error!("take over {vm}: {error:#}"),
                    }
                }
                FromPid1::Welcome => break,
                other => self.hear_pid1(other),
            }
        }
        self.end_orphans(&survivors);
        // An earlier agent did not live to say so.
        if retire::stands(&self.info.borrow()).is_err() {
            self.go_down(Mode::PowerOff);
        }
        Ok(())
    }

    /// Serves until the node goes down; returns only why it cannot go on.
    pub(crate) async fn run(mut self) -> anyhow::Error {
        match self.serve().await {
            Ok(never) => match never {},
            Err(error) => error,
        }
    }

    async fn serve(&mut self) -> anyhow::Result<Infallible> {
        let mut alive = tokio::time::interval(pulse::EVERY);
        alive.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        // When to come back, where nothing has changed since that was found out.
        let mut rest: Option<Option<u64>> = None;
        loop {
            let deadline = match rest.take() {
                Some(deadline) => deadline,
                None => self.advance()?,
            };
            let sleep = async {
                match deadline {
                    Some(at) => {
                        tokio::time::sleep(Duration::from_millis(at.saturating_sub(now()))).await
                    }
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                // All are safe to drop: what was not taken stays in its channel or socket.
                Some(request) = self.requests.recv() => {
                    if request.asks() {
                        rest = Some(deadline);
                    }
                    self.answer(request)?;
                    continue;
                }
                _ = alive.tick() => {
                    // This loop turns: nobody else may say so.
                    let told = self.pid1.send(&ToPid1::Alive, Vec::new());
                    told.context("tell pid1 that the node is alive")?;
                    continue;
                }
                Some(message) = self.messages.recv() => {
                    self.host.hear(message);
                    // What has come meanwhile is one change with it: a turn looks at every machine.
                    while let Ok(message) = self.messages.try_recv() {
                        self.host.hear(message);
                    }
                }
                Some(news) = self.news.recv() => self.hear_news(news),
                Some(news) = self.statements.news() => self.hear_statements(news),
                received = self.pid1.receive::<FromPid1>() => {
                    let (message, _) = received.context("listen to pid1")?.context("pid1 has closed its socket")?;
                    self.hear_pid1(message);
                }
                sent = self.pid1.serve() => match sent.context("speak to pid1")? {},
                changed = self.uplink.changed() => {
                    changed.map_err(|_| anyhow!("the network loop has ended"))?;
                    self.reconciler.republish();
                }
                () = sleep => {}
            }
            self.dirty = true;
        }
    }

    /// Does all that can be done now. Returns when to come back at the latest.
    fn advance(&mut self) -> anyhow::Result<Option<u64>> {
        let deadline = loop {
            let deadline = reconcile(&mut self.reconciler, &mut self.host, now());
            let mut heard = false;
            while let Some(event) = self.host.event() {
                (heard, self.dirty) = (true, true);
                let of_volume = matches!(event, Event::VolumeChanged { .. });
                for step in self.reconciler.event(event, now()) {
                    self.host.begin(step);
                }
                if of_volume {
                    self.renew();
                }
            }
            if !heard {
                break deadline;
            }
        };
        if self.statements.must_end {
            bail!("the ledger has to be read again");
        }
        let parting = self.go_on_parting()?;
        let waiting = self.statements.tire(now(), || self.disks.named());
        let deadline = [deadline, parting, waiting].into_iter().flatten().min();
        let wanted = self.wanted_images();
        self.images.retain(&wanted);
        self.show();
        self.drills.answer(|vm| self.host.is_ending(vm));
        if let Some(mode) = self
            .down
            .filter(|_| self.reconciler.is_drained() && !self.down_said)
        {
            self.down_said = true;
            ending::end(&self.pool, mode);
            self.pid1
                .send(&ToPid1::Shutdown { mode }, Vec::new())
                .context("tell pid1 to go down")?;
        }
        Ok(deadline)
    }

    /// What the API shows of all this.
    fn show(&mut self) {
        let dirty = std::mem::take(&mut self.dirty);
        if dirty {
            self.changes
                .send_modify(|changes| *changes = changes.wrapping_add(1));
        }
        if dirty {
            self.tell_of_workloads();
        }
        let size = |flist: &Digest| self.accounts.size(flist);
        let capacity = admission::capacity(self.reconciler.desired(), self.total, size);
        let network_error = self.reconciler.network_error();
        self.info.send_if_modified(|info| {
            let mut new = info.capacity != capacity;
            info.capacity = capacity;
            if let Some(error) = network_error
                && info.last_error.as_deref() != Some(error)
            {
                info.last_error = Some(error.to_owned());
                new = true;
            }
            new
        });
        match network_error {
            Some(error) => troubles::say(&self.info, Code::NetworkFailed, error),
            None => troubles::over(&self.info, Code::NetworkFailed),
        }
    }

    /// For the console and the node report, and for the agent that comes after this one.
    fn tell_of_workloads(&mut self) {
        let all = self.reconciler.statuses(self.durable).into_iter();
        let all: Vec<DeploymentStatus> = all.map(|(_, status)| status).collect();
        self.info
            .send_if_modified(|info| troubles::of_workloads(&all, info));
        self.pauses.keep(self.reconciler.pauses());
    }

    fn wanted_images(&self) -> BTreeSet<Digest> {
        self.reconciler
            .desired()
            .machines()
            .map(|(.., machine)| machine.image.flist)
            .collect()
    }

    /// The first wish counts.
    fn go_down(&mut self, mode: Mode) {
        self.down.get_or_insert(mode);
        self.reconciler.drain();
    }

    fn hear_pid1(&mut self, message: FromPid1) {
        match message {
            FromPid1::Stop { mode } => self.go_down(mode),
            FromPid1::Drilled { victim, pid } => self.drills.over(&victim, pid),
            other @ (FromPid1::Exited { .. }
            | FromPid1::SpawnFailed { .. }
            | FromPid1::Spawned { .. }
            | FromPid1::Kept { .. }
            | FromPid1::Welcome) => self.host.hear_pid1(other),
        }
    }

    fn hear_news(&mut self, news: News) {
        match news {
            // Shown by the next status. An flist may have come from its store.
            News::Progress => {
                if self.accounts.lacks(self.reconciler.desired()) {
                    self.renew();
                }
            }
            News::Fault { flist, message } => {
                for vm in self.host.vms_of(&flist) {
                    let message = format!("a chunk of the image cannot be had: {message}");
                    // Nothing follows from it but what is shown.
                    self.reconciler.event(Event::Trouble { vm, message }, now());
                }
            }
        }
    }

    /// A client that has gone away misses its answer.
    fn answer(&mut self, request: Request) -> anyhow::Result<()> {
        match request {
            Request::End => bail!("the ledger has to be read again"),
            Request::Reboot => self.go_down(Mode::Reboot),
            Request::PowerOff => self.go_down(Mode::PowerOff),
            Request::Statement { envelope, reply } => self.take(envelope, reply),
            Request::Status { key, reply } => {
                let _ = reply.send(self.status(&key));
            }
            Request::List { signer, reply } => {
                let all = self.reconciler.statuses(self.durable).into_iter();
                let own = all.filter(|(key, _)| key.signer == signer);
                let own = own.map(|(key, status)| self.complete(key, status));
                let _ = reply.send(own.collect());
            }
            Request::Drill { victim, reply } => {
                let asked = self.pid1.send(
                    &ToPid1::Drill {
                        victim: victim.clone(),
                    },
                    Vec::new(),
                );
                match asked {
                    Ok(()) => self.drills.begin(victim, reply),
                    // Who asked hears that the agent restarts: without pid1 it cannot go on.
                    Err(error) => log::error!("ask pid1 for a drill: {error}"),
                }
            }
            Request::Metrics {
                signer,
                deployment,
                reply,
            } => {
                let _ = reply.send(self.ask_metrics(signer, deployment.as_ref()));
            }
            Request::Images { reply } => {
                let used = self.images.used();
                let _ = reply.send(sweep::needed(self.reconciler.desired(), &used));
            }
            Request::Offer {
                key,
                network,
                reply,
            } => {
                let _ = reply.send(self.reconciler.offer(&key, &network));
            }
            Request::Disks { turn } => self.disks_changed(turn),
            Request::Places { reply } => {
                let _ = reply.send(self.reconciler.places());
            }
            Request::Counts { reply } => {
                let _ = reply.send(self.images.counts());
            }
        }
        Ok(())
    }

    /// What is promised, and where it goes.
    fn renew(&mut self) {
        self.accounts.renew(self.reconciler.desired());
        self.host.decide(self.accounts.decisions());
    }

    /// Asks every VMM of these; who asked waits for the answers.
    fn ask_metrics(
        &mut self,
        signer: Option<PublicKey>,
        deployment: Option<&types::Name>,
    ) -> Vec<Asked> {
        let of = |key: &Key| {
            signer.is_none_or(|signer| signer == key.signer)
                && deployment.is_none_or(|name| *name == key.name)
        };
        let all = self.reconciler.statuses(self.durable).into_iter();
        let mut asked = Vec::new();
        for (key, status) in all.filter(|(key, _)| of(key)) {
            for (workload, status) in status.workloads {
                let vm = VmId::new(&key.signer, &key.name, &workload);
                asked.push(Asked {
                    deployment: key.name.clone(),
                    workload,
                    state: status.state,
                    restarts: status.restarts,
                    answer: self.host.ask_metrics(&vm),
                    vm,
                });
            }
        }
        asked
    }

    fn status(&self, key: &Key) -> Option<DeploymentStatus> {
        let status = self.reconciler.status(key, self.durable)?;
        Some(self.complete(key, status))
    }

    /// With what only the host knows.
    fn complete(&self, key: &Key, mut status: DeploymentStatus) -> DeploymentStatus {
        let target = self.reconciler.desired().get(key);
        for (name, workload) in &mut status.workloads {
            workload.timeline = self.host.timeline(&VmId::new(&key.signer, &key.name, name));
            workload.chunks = target
                .and_then(|target| target.machine(name))
                .and_then(|machine| self.host.progress(&machine.image.flist));
        }
        for (name, volume) in &mut status.volumes {
            let id = VmId::new(&key.signer, &key.name, name);
            volume.used = self.volumes.used(&id);
        }
        mesh::complete(key, &mut status, &self.seen.borrow());
        let sites = target.into_iter().flat_map(|target| target.sites.keys());
        status.ingress = sites
            .map(|host| (host.clone(), self.ingress.status(host)))
            .collect();
        let all = status.workloads.keys().chain(status.volumes.keys());
        let all: BTreeMap<VmId, types::Name> = all
            .map(|name| (VmId::new(&key.signer, &key.name, name), name.clone()))
            .collect();
        let threatened = self.accounts.on_failing(all.keys()).into_iter();
        let condition = |(id, disk)| Condition {
            code: Code::DiskFailing,
            workload: all[id].clone(),
            message: format!("its data lies on a disk that fails: {disk}"),
        };
        status.conditions = threatened.map(condition).collect();
        status
            .conditions
            .extend(self.unused_addresses(key, &status));
        status
    }
}
