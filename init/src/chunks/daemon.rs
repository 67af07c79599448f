//! The daemon's loop: one owner of all state, everything else sends it events.
//!
//! Owns: which flists are open, which VMs are attached, and what the node is told.
//! Refuses: blocking. Work is done by the tasks of `job`, sockets by those of `link`.

use std::collections::{HashMap, HashSet, VecDeque};
use std::convert::Infallible;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Context;
use flist::cache::Cache;
use flist::chunk::Chunk;
use flist::trace::Recorder;
use flist::wire::{Counts, FromNode, ToNode, ToVmm};
use stores::Pool;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;
use types::proxy::Egress;
use types::{Digest, Stores, VmId};

use super::Paths;
use super::ahead::Streams;
use super::disk::{self, Disk};
use super::fill::{Fill, Held};
use super::job::{self, Absent, Cached, Event, Ready, Shared, Task};
use super::link::{self, ForNode, Socket, VmLink};
use super::queue::{Guess, Outcome, Queue, Source, Start, Target, Verdict, Waiter};
use super::scrub::{Pace, Scrub, Step};
use super::store::Remote;

mod traces;

/// Events that wait for the loop; senders wait when it is full.
const EVENTS_MAX: usize = 256;
/// Messages that wait for the node. Beyond it the node hangs: its connection is closed, and its
/// successor asks anew.
const MESSAGES_MAX: usize = 1024;
/// Between two reports of one flist's progress: quick enough for a person who watches.
const PROGRESS_EVERY: Duration = Duration::from_millis(250);

#[derive(Debug)]
struct Open {
    disk: Arc<Disk>,
    store: Option<Remote>,
    pin: bool,
    absent: HashMap<Digest, u64>,
    /// What was last told: (present, total).
    told: (u64, u64),
    /// Its first run, while that is taken down.
    recorder: Option<Recorder>,
    fill: Fill,
    /// What is back-filled once that begins.
    later: VecDeque<Chunk>,
}

impl Open {
    fn progress(&self) -> (u64, u64) {
        let total = self.disk.flist.chunks().len() as u64;
        (total - self.absent.values().sum::<u64>(), total)
    }

    fn source(&self, chunk: &Chunk) -> Source {
        match self.absent.contains_key(&chunk.stored) {
            true => Source::Store,
            false => Source::Cache,
        }
    }
}

#[derive(Debug)]
struct Opening {
    store: Option<Remote>,
    pin: bool,
    /// `Open` messages to answer.
    answers: usize,
    /// The node has said `Close` since: what comes of it goes at once.
    closed: bool,
}

#[derive(Debug)]
struct Attached {
    generation: u64,
    flist: Digest,
    replies: mpsc::UnboundedSender<ToVmm>,
    streams: Streams,
}

#[derive(Debug)]
struct Node {
    connection: u64,
    messages: mpsc::Sender<ForNode>,
}

#[derive(Debug)]
pub(crate) struct Daemon {
    paths: Paths,
    listener: Socket,
    started: Instant,
    /// Opened when first needed: the pool is mounted after this daemon has started.
    shared: Option<Arc<Shared>>,
    /// How stores are asked, as last told.
    egress: Egress,
    open: HashMap<Digest, Open>,
    opening: HashMap<Digest, Opening>,
    vms: HashMap<VmId, Attached>,
    node: Option<Node>,
    queue: Queue,
    /// Faults the node knows of: (flist, chunk).
    faults: HashSet<(Digest, Digest)>,
    progress_due: Option<Instant>,
    held: Option<Held>,
    pace: Pace,
    /// The scrub while it rests, and until when.
    scrub: Option<(Instant, Scrub)>,
    /// As last told.
    counts: Counts,
    serial: u64,
    sender: mpsc::Sender<Event>,
    events: mpsc::Receiver<Event>,
    /// Dropped with the daemon, which ends them.
    tasks: JoinSet<()>,
}

impl Daemon {
    /// `listener`: of the node's connections; `pace`: of the scrub.
    pub(crate) fn new(paths: Paths, listener: OwnedFd, pace: Pace) -> anyhow::Result<Self> {
        let (sender, events) = mpsc::channel(EVENTS_MAX);
        Ok(Self {
            paths,
            listener: link::socket(listener).context("watch the socket")?,
            started: Instant::now(),
            shared: None,
            egress: Egress::default(),
            open: HashMap::new(),
            opening: HashMap::new(),
            vms: HashMap::new(),
            node: None,
            queue: Queue::default(),
            faults: HashSet::new(),
            progress_due: None,
            held: None,
            pace,
            scrub: None,
            counts: Counts::default(),
            serial: 0,
            sender,
            events,
            tasks: JoinSet::new(),
        })
    }

    pub(crate) async fn run(mut self) -> anyhow::Result<Infallible> {
        loop {
            self.start_jobs();
            let due = self.next_due();
            let accept = |fd: &OwnedFd| sys::seqpacket::accept(fd.as_fd());
            tokio::select! {
                Some(event) = self.events.recv() => self.handle(event),
                Some(_) = self.tasks.join_next() => {}
                connection = self.listener.async_io(tokio::io::Interest::READABLE, accept) => {
                    self.welcome(connection.context("accept the node")?);
                }
                () = tokio::time::sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {
                    self.on_time(Instant::now());
                }
            }
        }
    }

    fn next_due(&self) -> Option<Instant> {
        let recorders = self.open.values().filter_map(|o| o.recorder.as_ref());
        let over = recorders.filter_map(Recorder::due).min();
        let fills = self.open.values().filter_map(|o| o.fill.due()).min();
        let held = self.held.map(Held::until);
        let inner = [self.queue.next_due(), over, fills, held];
        let inner = inner.into_iter().flatten().map(|due| self.started + due);
        let scrub = self.scrub.as_ref().map(|(due, _)| *due);
        let own = [self.progress_due, scrub];
        inner.chain(own.into_iter().flatten()).min()
    }

    fn on_time(&mut self, now: Instant) {
        self.queue.wake(now - self.started);
        if self.progress_due.is_some_and(|due| due <= now) {
            self.tell_progress();
        }
        if self
            .held
            .is_some_and(|held| held.until() <= now - self.started)
        {
            self.held = None;
            self.queue.hold(false);
        }
        self.keep_traces(now - self.started);
        for (flist, open) in &mut self.open {
            if open.fill.wake(now - self.started) {
                self.queue.fill(*flist, std::mem::take(&mut open.later));
            }
        }
        if let Some((_, scrub)) = self.scrub.take_if(|(due, _)| *due <= now)
            && let Some(shared) = &self.shared
        {
            let shared = Arc::clone(shared);
            self.tasks
                .spawn(job::scrub(shared, scrub, self.sender.clone()));
        }
    }

    /// What was damaged is fetched again where it is pinned; nobody else misses it before it is wanted.
    fn scrubbed(&mut self, scrub: Scrub, step: Step) {
        self.scrub = Some((Instant::now() + step.rest, scrub));
        let Some(scrubbed) = step.scrubbed else {
            return;
        };
        self.counts.scrubbed_bytes += scrubbed.bytes;
        if !scrubbed.was_damaged {
            return;
        }
        log::warn!(
            "chunk {} of the cache was damaged and is removed",
            scrubbed.digest
        );
        self.counts.damaged += 1;
        self.note(&scrubbed.digest, Cached::No);
        for (flist, open) in self.open.iter().filter(|(_, open)| open.pin) {
            let mut chunks = open.disk.flist.chunks().iter();
            if let Some(chunk) = chunks.find(|c| c.stored == scrubbed.digest) {
                self.queue.refill(*flist, *chunk);
            }
        }
        self.tell_soon();
    }

    fn tell_soon(&mut self) {
        self.progress_due
            .get_or_insert(Instant::now() + PROGRESS_EVERY);
    }

    /// The newest connection is the node: the one before it has died, or is about to.
    fn welcome(&mut self, connection: OwnedFd) {
        let socket = match link::socket(connection) {
            Ok(socket) => socket,
            Err(error) => return log::warn!("connection of the node is not usable: {error}"),
        };
        self.serial += 1;
        let (messages, receiver) = mpsc::channel(MESSAGES_MAX);
        let connection = self.serial;
        self.node = Some(Node {
            connection,
            messages,
        });
        self.faults.clear();
        // The pool is there. What an earlier boot left goes now, whether or not an image is ever opened.
        if let Err(error) = self.shared() {
            log::warn!("the cache is not usable yet: {error}");
        }
        self.tasks.spawn(link::serve_node(
            connection,
            socket,
            receiver,
            self.sender.clone(),
        ));
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Node {
                connection,
                message,
                fds,
            } => {
                if self
                    .node
                    .as_ref()
                    .is_some_and(|n| n.connection == connection)
                {
                    self.obey(message, fds);
                }
            }
            Event::NodeGone { connection } => {
                self.node.take_if(|n| n.connection == connection);
            }
            Event::Want { link, index } => self.want(&link, index),
            Event::VmGone(link) => {
                self.queue.hang_up(&link.vm, link.generation);
                let of_this_link = |a: &Attached| a.generation == link.generation;
                if self.vms.get(&link.vm).is_some_and(of_this_link)
                    && let Some(attached) = self.vms.remove(&link.vm)
                {
                    self.gone_from(attached.flist);
                }
            }
            Event::Opened { flist, result } => self.opened(flist, result),
            Event::Traced { flist, trace } => self.traced(&flist, &trace),
            Event::Scrubbed { scrub, step } => self.scrubbed(scrub, step),
            Event::Filled { chunk } => self.answer_served(&chunk),
            Event::Ended {
                chunk,
                outcome,
                cached,
            } => self.ended(chunk, outcome, cached),
        }
    }

    fn obey(&mut self, message: FromNode, fds: Vec<OwnedFd>) {
        match message {
            FromNode::Egress { egress } => self.go_by(egress),
            FromNode::Open { flist, store, pin } => self.open(flist, store, pin),
            FromNode::Attach { vm, flist } => {
                let reply = match self.attach(&vm, flist, fds) {
                    Ok(()) => ToNode::Attached { vm },
                    Err(error) => ToNode::AttachFailed { vm, error },
                };
                self.tell(reply, Vec::new());
            }
            FromNode::Started { vm } => {
                let now = self.started.elapsed();
                let flist = self.vms.get(&vm).map(|attached| attached.flist);
                if let Some(open) = flist.and_then(|flist| self.open.get_mut(&flist)) {
                    open.fill.program_runs(now);
                }
            }
            FromNode::Detach { vm } => {
                if let Some(attached) = self.vms.remove(&vm) {
                    self.queue.hang_up(&vm, attached.generation);
                    self.gone_from(attached.flist);
                }
            }
            FromNode::Unpin { flist } => {
                self.queue.forget(&flist);
                if let Some(open) = self.open.get_mut(&flist) {
                    open.pin = false;
                    open.later.clear();
                }
            }
            FromNode::Close { flist } => self.close(&flist),
        }
    }

    /// A machine has ended that ran on this image: nobody starts from it any more, unless there are others.
    fn gone_from(&mut self, flist: Digest) {
        let left = self.vms.values().filter(|a| a.flist == flist).count();
        if let Some(open) = self.open.get_mut(&flist)
            && open.fill.gone(left)
        {
            self.queue.fill(flist, std::mem::take(&mut open.later));
        }
    }

    fn shared(&mut self) -> Result<Arc<Shared>, String> {
        if let Some(shared) = &self.shared {
            return Ok(Arc::clone(shared));
        }
        let cache = Cache::open(&self.paths.pool).map_err(|e| sys::chain(&e))?;
        let (maps, pool) = (self.paths.maps.clone(), Pool::of_a_node());
        pool.go_by(&self.egress).map_err(|e| sys::chain(&e))?;
        disk::remove_stale(&cache, &maps);
        let shared = Arc::new(Shared {
            cache,
            maps,
            room: self.paths.room.clone(),
            pool,
            fetched: AtomicU64::new(0),
            fetched_bytes: AtomicU64::new(0),
        });
        self.scrub = Some((Instant::now() + self.pace.idle, Scrub::new(self.pace)));
        Ok(Arc::clone(self.shared.insert(shared)))
    }

    fn go_by(&mut self, egress: Egress) {
        if let Some(shared) = &self.shared
            && let Err(error) = shared.pool.go_by(&egress)
        {
            log::error!("stores are asked as before: {}", sys::chain(&error));
        }
        self.egress = egress;
    }

    fn open(&mut self, flist: Digest, store: Option<Stores>, pin: bool) {
        let opened = self.shared().and_then(|shared| {
            let open = |named| Remote::open(&shared.pool, flist, named);
            let store = store.map(open).transpose().map_err(|e| sys::chain(&e))?;
            Ok((store, shared))
        });
        let (store, shared) = match opened {
            Ok(opened) => opened,
            Err(error) => return self.tell(ToNode::OpenFailed { flist, error }, Vec::new()),
        };
        if let Some(opening) = self.opening.get_mut(&flist) {
            opening.store = store;
            opening.pin = pin;
            opening.answers += 1;
            opening.closed = false;
            return;
        }
        let disk = self.open.get(&flist).map(|o| Arc::clone(&o.disk));
        let task = job::open(shared, flist, store.clone(), disk, self.sender.clone());
        self.opening.insert(
            flist,
            Opening {
                store,
                pin,
                answers: 1,
                closed: false,
            },
        );
        self.tasks.spawn(task);
    }

    fn opened(&mut self, flist: Digest, result: Result<Ready, String>) {
        let Some(Opening {
            store,
            pin,
            answers,
            closed,
        }) = self.opening.remove(&flist)
        else {
            return;
        };
        let ready = match result {
            Ok(ready) => ready,
            Err(error) => {
                for _ in 0..answers {
                    self.tell(
                        ToNode::OpenFailed {
                            flist,
                            error: error.clone(),
                        },
                        Vec::new(),
                    );
                }
                if closed {
                    self.close(&flist);
                }
                return;
            }
        };
        let Ready {
            disk,
            absent: Absent { counts, order },
            trace,
            is_new,
        } = ready;
        let absent_chunks = if pin && store.is_some() {
            order
        } else {
            Default::default()
        };
        let before = self.open.remove(&flist);
        let new = || Fill::new(self.started.elapsed());
        let fill = before.as_ref().map_or_else(new, |open| open.fill);
        let (now_filled, later) = fill.part(absent_chunks);
        self.queue.fill(flist, now_filled);
        let before = before.and_then(|open| open.recorder);
        let mut open = Open {
            disk,
            store,
            pin,
            absent: counts,
            told: (0, 0),
            recorder: before.or_else(|| (is_new && trace.is_none()).then(Recorder::default)),
            fill,
            later,
        };
        open.told = open.progress();
        for _ in 0..answers {
            self.tell_opened(flist, &open);
        }
        self.open.insert(flist, open);
        if let Some(trace) = trace {
            self.traced(&flist, &trace);
        } else if is_new {
            self.ask_for_trace(flist);
        }
        if closed {
            self.close(&flist);
        }
    }

    fn tell_opened(&mut self, flist: Digest, open: &Open) {
        let (present, total) = open.progress();
        let config = open.disk.flist.config().clone();
        let disk_bytes = open.disk.flist.disk_bytes();
        match open.disk.for_vmm() {
            Ok(files) => {
                let message = ToNode::Opened {
                    flist,
                    disk_bytes,
                    config,
                    present,
                    total,
                };
                self.tell(message, Vec::from(files));
            }
            Err(error) => {
                let error = sys::chain(&error);
                self.tell(ToNode::OpenFailed { flist, error }, Vec::new());
            }
        }
    }

    fn close(&mut self, flist: &Digest) {
        self.queue.forget(flist);
        if let Some(opening) = self.opening.get_mut(flist) {
            opening.closed = true;
            return;
        }
        if self.vms.values().any(|a| a.flist == *flist) {
            return;
        }
        if let (Some(open), Some(shared)) = (self.open.remove(flist), &self.shared)
            && let Err(error) = open.disk.remove(&shared.cache)
        {
            log::warn!("disk of {flist} is not removed: {}", sys::chain(&error));
        }
    }

    fn attach(&mut self, vm: &VmId, flist: Digest, fds: Vec<OwnedFd>) -> Result<(), String> {
        let [fd] = <[OwnedFd; 1]>::try_from(fds)
            .map_err(|fds| format!("{} sockets came with the request instead of 1", fds.len()))?;
        if !self.open.contains_key(&flist) {
            return Err(format!("{flist} is not open: open it first"));
        }
        let socket = link::socket(fd).map_err(|e| format!("the socket is not usable: {e}"))?;
        self.serial += 1;
        let generation = self.serial;
        let (replies, receiver) = mpsc::unbounded_channel();
        let old = self.vms.insert(
            vm.clone(),
            Attached {
                generation,
                flist,
                replies,
                streams: Streams::default(),
            },
        );
        if let Some(old) = old {
            self.queue.hang_up(vm, old.generation);
        }
        let link = VmLink {
            vm: vm.clone(),
            generation,
        };
        self.tasks
            .spawn(link::serve_vm(link, socket, receiver, self.sender.clone()));
        Ok(())
    }

    fn want(&mut self, link: &VmLink, index: u32) {
        let Some(attached) = self
            .vms
            .get_mut(&link.vm)
            .filter(|a| a.generation == link.generation)
        else {
            return;
        };
        let flist = attached.flist;
        let Some(open) = self.open.get_mut(&flist) else {
            return;
        };
        let Some(chunk) = open.disk.chunk(index) else {
            log::warn!(
                "VM {} wants chunk {index}, which its disk does not have",
                link.vm
            );
            self.queue.hang_up(&link.vm, link.generation);
            self.vms.remove(&link.vm);
            return;
        };
        let ahead = attached.streams.touch(index);
        if let Some(recorder) = &mut open.recorder {
            let now = self.started.elapsed();
            (ahead.passed.clone().chain([index])).for_each(|chunk| recorder.touch(chunk, now));
        }
        match open.disk.is_present(index) {
            Ok(true) => reply(attached, ToVmm::Ready(index)),
            Ok(false) => {
                let target = Target { flist, index };
                let (vm, generation) = (link.vm.clone(), link.generation);
                let waiter = Waiter {
                    vm,
                    generation,
                    target,
                };
                self.queue.want(chunk, waiter, open.source(chunk));
                self.counts.wanted += 1;
                let now = self.started.elapsed();
                open.fill.waits(now);
                self.queue.hold(true);
                self.held = Some(Held::waits(self.held, now));
            }
            Err(error) => {
                log::error!("{}", sys::chain(&error));
                reply(attached, ToVmm::Failed(index));
            }
        }
        for index in ahead.next {
            expect(&mut self.queue, open, flist, index, Guess::Sequence);
        }
    }

    fn start_jobs(&mut self) {
        let Some(shared) = &self.shared else {
            return;
        };
        while let Some(Start {
            chunk,
            flists,
            targets,
            is_guess,
        }) = self.queue.start()
        {
            self.counts.guessed += u64::from(is_guess);
            let disk = |t: &Target| Some((Arc::clone(&self.open.get(&t.flist)?.disk), t.index));
            let targets = targets.iter().filter_map(disk).collect();
            let mut stores: Vec<Remote> = Vec::new();
            for store in flists
                .iter()
                .filter_map(|f| self.open.get(f)?.store.as_ref())
            {
                if !stores.contains(store) {
                    stores.push(store.clone());
                }
            }
            let task = Task {
                chunk,
                targets,
                stores,
                is_guess,
            };
            self.tasks
                .spawn(job::get(Arc::clone(shared), task, self.sender.clone()));
        }
    }

    /// Answers those who wait for a chunk and whose disk has it now.
    fn answer_served(&mut self, chunk: &Digest) {
        let open = &self.open;
        let present = |t: &Target| {
            open.get(&t.flist)
                .is_some_and(|o| o.disk.is_present(t.index).unwrap_or(false))
        };
        for waiter in self.queue.take_served(chunk, present) {
            self.answer(&waiter, ToVmm::Ready(waiter.target.index));
        }
    }

    fn answer(&self, waiter: &Waiter, answer: ToVmm) {
        if let Some(attached) = self.vms.get(&waiter.vm)
            && attached.generation == waiter.generation
        {
            reply(attached, answer);
        }
    }

    fn ended(&mut self, chunk: Digest, outcome: Outcome, cached: Cached) {
        self.answer_served(&chunk);
        self.tell_soon();
        self.note(&chunk, cached);
        if let Outcome::Unreachable(message) = &outcome {
            log::info!("{message}");
        }
        let end = self.queue.end(&chunk, outcome, self.started.elapsed());
        match end.verdict {
            Verdict::Finished => self.faults.retain(|(_, c)| *c != chunk),
            Verdict::Again(_) => {}
            Verdict::GiveUp(message) | Verdict::Never(message) => {
                for waiter in &end.waiters {
                    self.answer(waiter, ToVmm::Failed(waiter.target.index));
                }
                for flist in end.flists {
                    if self.open.contains_key(&flist) && self.faults.insert((flist, chunk)) {
                        let message = message.clone();
                        self.tell(
                            ToNode::Fault {
                                flist,
                                chunk,
                                message,
                            },
                            Vec::new(),
                        );
                    }
                }
            }
        }
    }

    /// Counts what a job found out about the cache.
    fn note(&mut self, chunk: &Digest, cached: Cached) {
        let mut changed = false;
        for open in self.open.values_mut() {
            match cached {
                Cached::Yes => changed |= open.absent.remove(chunk).is_some(),
                Cached::No if !open.absent.contains_key(chunk) => {
                    let same = open
                        .disk
                        .flist
                        .chunks()
                        .iter()
                        .filter(|c| c.stored == *chunk);
                    let count = same.count() as u64;
                    if count > 0 {
                        open.absent.insert(*chunk, count);
                        changed = true;
                    }
                }
                Cached::No | Cached::Unknown => {}
            }
        }
        if changed {
            self.tell_soon();
        }
    }

    fn tell_progress(&mut self) {
        self.progress_due = None;
        let mut messages = Vec::new();
        for (flist, open) in &mut self.open {
            let (present, total) = open.progress();
            if open.told != (present, total) {
                open.told = (present, total);
                messages.push(ToNode::Progress {
                    flist: *flist,
                    present,
                    total,
                });
            }
        }
        if let Some(shared) = &self.shared {
            self.counts.fetched = shared.fetched.load(Ordering::Relaxed);
            self.counts.fetched_bytes = shared.fetched_bytes.load(Ordering::Relaxed);
        }
        messages.push(ToNode::Counted {
            counts: self.counts,
        });
        for message in messages {
            self.tell(message, Vec::new());
        }
    }

    fn tell(&mut self, message: ToNode, files: Vec<File>) {
        let Some(node) = &self.node else {
            return;
        };
        if let Err(mpsc::error::TrySendError::Full(_)) = node.messages.try_send((message, files)) {
            log::warn!("the node reads nothing: its connection is closed");
            self.node = None;
        }
    }
}

/// Queues a chunk that a VM will want, unless it is there or beyond the disk.
fn expect(queue: &mut Queue, open: &Open, flist: Digest, index: u32, guess: Guess) {
    if let Some(chunk) = open.disk.chunk(index)
        && matches!(open.disk.is_present(index), Ok(false))
    {
        let target = Target { flist, index };
        queue.ahead(chunk, target, open.source(chunk), guess);
    }
}

/// Fails only when the VM's socket has just closed, which `VmGone` says as well.
fn reply(attached: &Attached, answer: ToVmm) {
    let _ = attached.replies.send(answer);
}
