//! The daemon's loop: one owner of all state, everything else sends it events.
//!
//! Owns: which flists are open, which VMs are attached, and what the node is told.
//! Refuses: blocking. Work is done by the tasks of `job`, sockets by those of `link`.

use std::collections::{HashMap, HashSet};
use std::convert::Infallible;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use flist::cache::Cache;
use flist::wire::{FromNode, ToNode, ToVmm};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;
use types::{Digest, VmId};

use super::Paths;
use super::disk::{self, Disk};
use super::job::{self, Absent, Cached, Event, Ready, Shared, Task};
use super::link::{self, ForNode, Socket, VmLink};
use super::queue::{Outcome, Queue, Source, Start, Target, Verdict, Waiter};
use super::store::{Base, Client};

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
    store: Option<Base>,
    pin: bool,
    absent: HashMap<Digest, u64>,
    /// What was last told: (present, total).
    told: (u64, u64),
}

impl Open {
    fn progress(&self) -> (u64, u64) {
        let total = self.disk.flist.chunks().len() as u64;
        (total - self.absent.values().sum::<u64>(), total)
    }
}

#[derive(Debug)]
struct Opening {
    store: Option<Base>,
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
    open: HashMap<Digest, Open>,
    opening: HashMap<Digest, Opening>,
    vms: HashMap<VmId, Attached>,
    node: Option<Node>,
    queue: Queue,
    /// Faults the node knows of: (flist, chunk).
    faults: HashSet<(Digest, Digest)>,
    progress_due: Option<Instant>,
    serial: u64,
    sender: mpsc::Sender<Event>,
    events: mpsc::Receiver<Event>,
    /// Dropped with the daemon, which ends them.
    tasks: JoinSet<()>,
}

impl Daemon {
    /// `listener`: of the node's connections.
    pub(crate) fn new(paths: Paths, listener: OwnedFd) -> anyhow::Result<Self> {
        let (sender, events) = mpsc::channel(EVENTS_MAX);
        Ok(Self {
            paths,
            listener: link::socket(listener).context("watch the socket")?,
            started: Instant::now(),
            shared: None,
            open: HashMap::new(),
            opening: HashMap::new(),
            vms: HashMap::new(),
            node: None,
            queue: Queue::default(),
            faults: HashSet::new(),
            progress_due: None,
            serial: 0,
            sender,
            events,
            tasks: JoinSet::new(),
        })
    }

    pub(crate) async fn run(mut self) -> anyhow::Result<Infallible> {
        loop {
            self.start_jobs();
            let rested = self.queue.next_due().map(|due| self.started + due);
            let due = rested.into_iter().chain(self.progress_due).min();
            let accept = |fd: &OwnedFd| sys::seqpacket::accept(fd.as_fd());
            tokio::select! {
                Some(event) = self.events.recv() => self.handle(event),
                Some(_) = self.tasks.join_next() => {}
                connection = self.listener.async_io(tokio::io::Interest::READABLE, accept) => {
                    self.welcome(connection.context("accept the node")?);
                }
                () = tokio::time::sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {
                    self.queue.wake(self.started.elapsed());
                    if self.progress_due.is_some_and(|due| due <= Instant::now()) {
                        self.tell_progress();
                    }
                }
            }
        }
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
                if self
                    .vms
                    .get(&link.vm)
                    .is_some_and(|a| a.generation == link.generation)
                {
                    self.vms.remove(&link.vm);
                }
            }
            Event::Opened { flist, result } => self.opened(flist, result),
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
            FromNode::Open { flist, store, pin } => self.open(flist, store, pin),
            FromNode::Attach { vm, flist } => {
                let reply = match self.attach(&vm, flist, fds) {
                    Ok(()) => ToNode::Attached { vm },
                    Err(error) => ToNode::AttachFailed { vm, error },
                };
                self.tell(reply, Vec::new());
            }
            FromNode::Detach { vm } => {
                if let Some(attached) = self.vms.remove(&vm) {
                    self.queue.hang_up(&vm, attached.generation);
                }
            }
            FromNode::Unpin { flist } => {
                self.queue.forget(&flist);
                if let Some(open) = self.open.get_mut(&flist) {
                    open.pin = false;
                }
            }
            FromNode::Close { flist } => self.close(&flist),
        }
    }

    fn shared(&mut self) -> Result<Arc<Shared>, String> {
        if let Some(shared) = &self.shared {
            return Ok(Arc::clone(shared));
        }
        let cache = Cache::open(&self.paths.pool).map_err(|e| sys::chain(&e))?;
        let (maps, client) = (self.paths.maps.clone(), Client::default());
        disk::remove_stale(&cache, &maps);
        let shared = Arc::new(Shared {
            cache,
            maps,
            room: self.paths.room.clone(),
            client,
        });
        Ok(Arc::clone(self.shared.insert(shared)))
    }

    fn open(&mut self, flist: Digest, store: Option<String>, pin: bool) {
        let store = store
            .map(|url| Base::parse(&url))
            .transpose()
            .map_err(|e| sys::chain(&e));
        let (store, shared) = match (store, self.shared()) {
            (Ok(store), Ok(shared)) => (store, shared),
            (Err(error), _) | (_, Err(error)) => {
                return self.tell(ToNode::OpenFailed { flist, error }, Vec::new());
            }
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
        } = ready;
        let fill = if pin && store.is_some() {
            order
        } else {
            Default::default()
        };
        self.queue.fill(flist, fill);
        let mut open = Open {
            disk,
            store,
            pin,
            absent: counts,
            told: (0, 0),
        };
        open.told = open.progress();
        for _ in 0..answers {
            self.tell_opened(flist, &open);
        }
        self.open.insert(flist, open);
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
            .get(&link.vm)
            .filter(|a| a.generation == link.generation)
        else {
            return;
        };
        let flist = attached.flist;
        let Some(open) = self.open.get(&flist) else {
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
                let source = match open.absent.contains_key(&chunk.stored) {
                    true => Source::Store,
                    false => Source::Cache,
                };
                self.queue.want(chunk, waiter, source);
            }
            Err(error) => {
                log::error!("{}", sys::chain(&error));
                reply(attached, ToVmm::Failed(index));
            }
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
        }) = self.queue.start()
        {
            let disk = |t: &Target| Some((Arc::clone(&self.open.get(&t.flist)?.disk), t.index));
            let targets = targets.iter().filter_map(disk).collect();
            let mut stores: Vec<Base> = Vec::new();
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
        if changed && self.progress_due.is_none() {
            self.progress_due = Some(Instant::now() + PROGRESS_EVERY);
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

/// Fails only when the VM's socket has just closed, which `VmGone` says as well.
fn reply(attached: &Attached, answer: ToVmm) {
    let _ = attached.replies.send(answer);
}
