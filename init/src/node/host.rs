//! The node as the reconciler sees it: begins steps, and turns what happens into events.
//!
//! Owns: the VMs that pid1 runs for us, their slots, control sockets and what this boot remembers of
//! them. Refuses: deciding what should run.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::convert::Infallible;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use anyhow::Context;
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use types::guest::{FromGuest, ToGuest};
use types::metrics;
use types::status::{Exit, Timeline};
use types::vm::{CONTROL_PACKET_MAX, FromVmm, StopReason, ToVmm};
use types::{Digest, VmId};
use workload::desired::Key;
use workload::host::{End, Event, Host, Places, Start, Step, Survivor};

use super::context::Uplink;
use super::conversation;
use super::errands::Errands;
use super::mesh::Joined;
use super::network::{self, Forwarders};
use super::prepare::{self, Means, Prepared};
use super::questions::Questions;
use super::remains::{Began, Remains, Tag};
use crate::packets::Packets;
use crate::wire::{FromPid1, SLOTS_MAX, Status, ToPid1};

mod barred;
mod volumes;

use volumes::limits;

/// Messages of tasks to the loop. A full queue holds up the tasks, and with them VMMs that talk too
/// much.
const MESSAGES_MAX: usize = 256;
/// Threads of a VMM beside its vCPUs: the main loop, one for each disk and card, and room for what the kernel
/// starts for it: five workers of a disk's ring, one of vhost-net for each queue pair, and KVM's.
const VMM_THREADS: u64 = 32;
/// Answers about volumes that an agent of before may have asked for: a copy and a growth of each of a few volumes.
const ERRANDS_OWED: u32 = 8;
/// Processors for the devices of a VM beside its vCPUs: an honest guest is never slowed down by it, and one that has
/// taken its VMM over, or floods its disks, takes no more.
const DEVICE_CPUS: u64 = 1;
/// cgroup v2 `cpu.weight` of one vCPU; a VM's share follows its size.
const WEIGHT_PER_CPU: u64 = 100;
/// Longest text of a guest or VMM that is shown.
const TEXT_MAX: usize = 512;
const SIGKILL: i32 = 9;
/// What the owner reads where a VM was ended for what it said.
const MISBEHAVED: &str = "the machine's VMM said again and again what none says, and was ended: its guest may have \
                          taken it over; deploy an image that you trust";

/// What tasks tell the loop.
pub(crate) enum Message {
    Layered {
        vm: VmId,
        attempt: u64,
    },
    Prepared {
        attempt: u64,
        prepared: Box<Prepared>,
    },
    PrepareFailed {
        vm: VmId,
        attempt: u64,
        message: String,
    },
    FromVmm {
        vm: VmId,
        attempt: u64,
        message: FromVmm,
        /// Dropped when the message has been noted. Nothing is ever sent.
        noted: oneshot::Sender<Infallible>,
    },
    /// It has broken the contract too often; nothing more of it is heard.
    Misbehaved {
        vm: VmId,
        attempt: u64,
    },
    ControlClosed {
        vm: VmId,
        attempt: u64,
    },
    Removed {
        vm: VmId,
        result: Result<(), String>,
    },
    Volume(Event),
    Published {
        plan: Box<network::Plan>,
        made: BTreeSet<String>,
        result: Result<(), String>,
    },
}

/// A start that has no VM yet.
struct Starting {
    attempt: u64,
    cancel: Rc<Notify>,
}

/// A VM that pid1 has been asked to run.
struct Vm {
    attempt: u64,
    slot: u16,
    flist: Digest,
    control: Rc<Packets>,
    reader: JoinHandle<()>,
    /// When this agent asked for it; `None` for one from before.
    spawned: Option<Instant>,
    remains: Remains,
    questions: Questions,
    errands: Rc<Errands>,
    /// Of its VMM, once that is known.
    pid: Option<i32>,
    status: Option<Status>,
    control_closed: bool,
}

pub(crate) struct NodeHost {
    means: Rc<Means>,
    pid1: Rc<Packets>,
    uplink: watch::Receiver<Uplink>,
    networks: watch::Sender<BTreeSet<String>>,
    /// Those that go on on other nodes.
    joined: watch::Sender<Vec<Joined>>,
    forwarders: Forwarders,
    laid: Arc<Mutex<network::Laid>>,
    starting: BTreeMap<VmId, Starting>,
    vms: BTreeMap<VmId, Vm>,
    /// The newest start of each machine of this boot.
    timelines: BTreeMap<VmId, Began>,
    /// The pool of each layer and volume, or why there is none.
    pools: Pools,
    barred: barred::Barred,
    attempts: u64,
    messages: mpsc::Sender<Message>,
    events: VecDeque<Event>,
}

/// Where new layers and volumes are to be made: a place in the list of pools, or why there is none.
pub(crate) type Pools = BTreeMap<VmId, Result<usize, String>>;

impl NodeHost {
    pub(crate) fn new(
        means: Means,
        networks: watch::Sender<BTreeSet<String>>,
        pid1: Rc<Packets>,
        uplink: watch::Receiver<Uplink>,
    ) -> (Self, mpsc::Receiver<Message>) {
        let (messages, heard) = mpsc::channel(MESSAGES_MAX);
        let host = Self {
            means: Rc::new(means),
            pid1,
            uplink,
            networks,
            joined: watch::channel(Vec::new()).0,
            forwarders: Forwarders::default(),
            laid: Arc::default(),
            starting: BTreeMap::new(),
            vms: BTreeMap::new(),
            timelines: BTreeMap::new(),
            pools: Pools::new(),
            barred: barred::Barred::default(),
            attempts: 0,
            messages,
            events: VecDeque::new(),
        };
        (host, heard)
    }

    /// What has been decided of layers and volumes: to be said before a step for them.
    pub(crate) fn decide(&mut self, pools: Pools) {
        self.pools = pools;
    }

    /// Networks that go on on other nodes, as they were last made.
    pub(crate) fn joined(&self) -> watch::Receiver<Vec<Joined>> {
        self.joined.subscribe()
    }

    /// Its process has not ended.
    pub(crate) fn is_alive(&self, vm: &VmId) -> bool {
        self.vms.get(vm).is_some_and(|held| held.status.is_none())
    }

    fn pool_for(&self, id: &VmId) -> Result<usize, String> {
        self.pools.get(id).cloned().unwrap_or(Ok(0))
    }

    /// The next thing that the reconciler should hear.
    pub(crate) fn event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    pub(crate) fn progress(&self, flist: &Digest) -> Option<(u64, u64)> {
        self.means.images.progress(flist)
    }

    /// Its process has ended, and what it said last is still being read.
    pub(crate) fn is_ending(&self, vm: &VmId) -> bool {
        self.vms
            .get(vm)
            .is_some_and(|held| held.status.is_some() && !held.control_closed)
    }

    /// Asks a VMM what it has counted. `None`: it cannot be asked.
    pub(crate) fn ask_metrics(&mut self, vm: &VmId) -> Option<oneshot::Receiver<metrics::Machine>> {
        let Vm {
            questions, control, ..
        } = self.vms.get_mut(vm).filter(|held| held.status.is_none())?;
        questions.ask(|| control.send(&ToVmm::Metrics, Vec::new()))
    }

    /// How the newest start of a VM went.
    pub(crate) fn timeline(&self, vm: &VmId) -> Option<Timeline> {
        self.timelines.get(vm).map(|t| t.timeline)
    }

    /// Notes a milestone of a start, the first time that it is reached.
    fn reach(&mut self, vm: &VmId, milestone: fn(&mut Timeline) -> &mut Option<u64>) {
        let Some(began) = self.timelines.get_mut(vm) else {
            return;
        };
        let now = sys::clock::since_boot().saturating_sub(began.at);
        let now = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
        milestone(&mut began.timeline).get_or_insert(now);
        if let Some(held) = self.vms.get_mut(vm) {
            held.remains.began = Some(*began);
        }
    }

    /// VMs that run on an image.
    pub(crate) fn vms_of(&self, flist: &Digest) -> Vec<VmId> {
        let of = |(vm, held): (&VmId, &Vm)| (held.flist == *flist).then(|| vm.clone());
        self.vms.iter().filter_map(of).collect()
    }

    /// Takes over a VM that pid1 kept, running or ended. `fds`: control, then chunks.
    pub(crate) fn adopt(
        &mut self,
        vm: VmId,
        slot: u16,
        tag: &str,
        status: Option<Status>,
        fds: Vec<OwnedFd>,
        store: impl FnOnce(&Key, &types::Name) -> Option<types::Stores>,
    ) -> anyhow::Result<Survivor> {
        let tag: Tag = serde_json::from_str(tag).context("read the tag of a VM")?;
        let mut fds = fds.into_iter();
        let (Some(control), Some(chunks)) = (fds.next(), fds.next()) else {
            anyhow::bail!("pid1 kept no sockets of {vm}");
        };
        let control = Packets::new(control, CONTROL_PACKET_MAX).context("take a control socket")?;
        let remains = Remains::load(&vm);
        let start_ms = remains.start_ms;
        if let Some(began) = remains.began {
            self.timelines.insert(vm.clone(), began);
        }
        if remains.settling {
            self.events.push_back(Event::Settling { vm: vm.clone() });
        }
        let store = store(&tag.key(), &tag.workload);
        self.means
            .images
            .adopt(vm.clone(), tag.flist, store, chunks, start_ms.is_some());
        self.hold(vm.clone(), slot, tag.flist, control, remains, None);
        if let Some(held) = self.vms.get_mut(&vm) {
            held.status = status;
        }
        Ok(Survivor {
            vm,
            key: tag.key(),
            workload: tag.workload,
            launch: tag.launch,
            volumes: tag.volumes,
            restarts: tag.restarts,
            start_ms,
        })
    }

    fn hold(
        &mut self,
        vm: VmId,
        slot: u16,
        flist: Digest,
        control: Packets,
        remains: Remains,
        spawned: Option<Instant>,
    ) {
        self.attempts += 1;
        let (attempt, control) = (self.attempts, Rc::new(control));
        let questions = Questions::default();
        let owed = if spawned.is_none() { ERRANDS_OWED } else { 0 };
        let errands = Rc::new(Errands::new(owed));
        let reader = conversation::listen(
            vm.clone(),
            attempt,
            control.clone(),
            self.messages.clone(),
            conversation::Open {
                questions: questions.open(),
                errands: errands.open(),
            },
            u32::from(spawned.is_none()),
        );
        let held = Vm {
            attempt,
            slot,
            flist,
            control,
            reader: tokio::task::spawn_local(reader),
            spawned,
            remains,
            questions,
            errands,
            pid: None,
            status: None,
            control_closed: false,
        };
        self.vms.insert(vm, held);
    }

    /// The VMM's process.
    pub(crate) fn is_process(&mut self, vm: &VmId, pid: i32) {
        if let Some(held) = self.vms.get_mut(vm) {
            held.pid = Some(pid);
        }
    }

    /// A message of pid1 after its `Welcome`.
    pub(crate) fn hear_pid1(&mut self, message: FromPid1) {
        match message {
            FromPid1::Exited { vm, status } => {
                if let Some(held) = self.vms.get_mut(&vm) {
                    held.status = Some(status);
                    self.end_if_over(&vm);
                }
            }
            FromPid1::SpawnFailed { vm, error } => {
                if self.let_go(&vm).is_some() {
                    let message = format!("the VMM was not started: {error}");
                    self.events.push_back(Event::StartFailed { vm, message });
                }
            }
            // The guest's word is waited for, not the process's.
            FromPid1::Spawned { vm, pid } => {
                self.is_process(&vm, pid);
                self.reach(&vm, |t| &mut t.vmm_ms);
            }
            // The engine's.
            FromPid1::Kept { .. }
            | FromPid1::Welcome
            | FromPid1::Drilled { .. }
            | FromPid1::Stop { .. } => {}
        }
    }

    /// A message of a task. Those of a start or VM that is gone are passed over.
    pub(crate) fn hear(&mut self, message: Message) {
        match message {
            Message::Layered { vm, attempt } => {
                if self.starting.get(&vm).is_some_and(|s| s.attempt == attempt) {
                    self.events.push_back(Event::Layered { vm });
                }
            }
            Message::Prepared { attempt, prepared } => {
                let vm = prepared.start.vm.clone();
                if self.starting.get(&vm).is_some_and(|s| s.attempt == attempt) {
                    self.starting.remove(&vm);
                    self.reach(&vm, |t| &mut t.image_ms);
                    if let Err(error) = self.spawn(*prepared) {
                        self.means.images.detach(&vm);
                        let message = format!("{error:#}");
                        self.events.push_back(Event::StartFailed { vm, message });
                    }
                }
            }
            Message::PrepareFailed {
                vm,
                attempt,
                message,
            } => {
                if self.starting.get(&vm).is_some_and(|s| s.attempt == attempt) {
                    self.starting.remove(&vm);
                    self.means.images.detach(&vm);
                    self.events.push_back(Event::StartFailed { vm, message });
                }
            }
            Message::FromVmm {
                vm,
                attempt,
                message,
                noted,
            } => {
                self.hear_vmm(vm, attempt, message);
                drop(noted);
            }
            Message::Misbehaved { vm, attempt } => {
                if let Some(held) = self.vms.get_mut(&vm).filter(|held| held.attempt == attempt) {
                    log::error!("{vm} has broken its VMM's contract too often: it is ended");
                    held.remains.trouble = Some(MISBEHAVED.to_owned());
                    held.remains.save(&vm);
                    self.kill(&vm);
                }
            }
            Message::ControlClosed { vm, attempt } => {
                if let Some(held) = self.vms.get_mut(&vm).filter(|held| held.attempt == attempt) {
                    held.control_closed = true;
                    held.errands.clear();
                    self.end_if_over(&vm);
                }
            }
            Message::Removed { vm, result } => self.events.push_back(match result {
                Ok(()) => Event::Removed { vm },
                Err(message) => Event::RemoveFailed { vm, message },
            }),
            Message::Volume(event) => self.events.push_back(event),
            Message::Published { plan, made, result } => {
                self.made(&plan, made);
                self.events.push_back(match result {
                    Ok(()) => Event::Published,
                    Err(message) => Event::PublishFailed { message },
                });
            }
        }
    }

    fn made(&mut self, plan: &network::Plan, made: BTreeSet<String>) {
        self.forwarders.converge(plan, &made, &self.uplink.borrow());
        self.means.ingress.converge(&plan.sites);
        self.networks.send_replace(made);
        self.joined.send_replace(plan.joined());
    }

    fn hear_vmm(&mut self, vm: VmId, attempt: u64, message: FromVmm) {
        let Some(held) = self.vms.get_mut(&vm).filter(|held| held.attempt == attempt) else {
            return;
        };
        match message {
            FromVmm::Running { setup_us } => {
                log::info!("{vm} runs {setup_us} us after its start");
                self.reach(&vm, |t| &mut t.vcpus_ms);
            }
            FromVmm::GuestInit { us: _ } => self.reach(&vm, |t| &mut t.guest_init_ms),
            FromVmm::Guest(FromGuest::Started { .. }) => {
                self.reach(&vm, |t| &mut t.program_ms);
                self.means.images.started(&vm);
                self.started(vm);
            }
            FromVmm::Guest(FromGuest::SetupFailed { stage, message }) => {
                held.remains.trouble = Some(printable(&format!("{stage}: {message}")));
                held.remains.save(&vm);
            }
            FromVmm::Guest(FromGuest::Settling) => {
                held.remains.settling = true;
                held.remains.save(&vm);
                self.events.push_back(Event::Settling { vm });
            }
            FromVmm::Guest(FromGuest::Restored { generation }) => {
                log::info!("{vm} is restored as generation {}", printable(&generation));
            }
            FromVmm::Guest(FromGuest::Frozen { .. }) => {
                log::warn!("{vm} says that it stands still, and nobody has asked for that");
            }
            FromVmm::Guest(said @ (FromGuest::Grown { .. } | FromGuest::Held { .. })) => {
                held.errands.hear(said);
            }
            FromVmm::Guest(FromGuest::Exited {
                code,
                signal,
                oom_kills,
            }) => {
                // The guest's kernel may have chosen another process, which the program got over.
                let oom = oom_kills > 0 && signal == Some(SIGKILL);
                if oom_kills > 0 && !oom {
                    held.remains.trouble.get_or_insert(out_of_memory(oom_kills));
                }
                held.remains.exit = Some(Exit { code, signal, oom });
                held.remains.save(&vm);
            }
            FromVmm::ChunkFailed { disk, chunk } => {
                let message = printable(&format!(
                    "the disk {disk} could not be read: chunk {chunk} cannot be had; it is tried again at the next read"
                ));
                self.events.push_back(Event::Trouble { vm, message });
            }
            FromVmm::Panicked { reason } => {
                let reason = format!("the guest's kernel panicked: {reason}; its log says more");
                held.remains.trouble = Some(printable(&reason));
                held.remains.save(&vm);
            }
            FromVmm::Refused { message } if held.errands.refused(&message) => {}
            FromVmm::Refused { message } => log::warn!("{vm} refused: {}", printable(&message)),
            FromVmm::Metrics(machine) => held.questions.answer(&machine),
            FromVmm::Done { .. } => held.errands.done(),
            FromVmm::Stopped { reason, exits } => {
                log::info!("{vm} has stopped: {reason:?} after {exits:?}");
                if let Some(trouble) = trouble_of(&reason) {
                    held.remains.trouble = Some(trouble);
                    held.remains.save(&vm);
                }
            }
        }
    }

    fn started(&mut self, vm: VmId) {
        let Some(held) = self.vms.get_mut(&vm) else {
            return;
        };
        let start_ms = held.spawned.map_or(0, |at| at.elapsed().as_millis());
        let start_ms = u64::try_from(start_ms).unwrap_or(u64::MAX);
        if held.remains.start_ms.is_none() {
            held.remains.start_ms = Some(start_ms);
            held.remains.save(&vm);
            self.events.push_back(Event::Running { vm, start_ms });
        }
    }

    /// The process is reaped and all that it said is read: only now is it known how it ended.
    fn end_if_over(&mut self, vm: &VmId) {
        let Some(held) = self.vms.get(vm) else { return };
        let (Some(status), true) = (held.status, held.control_closed) else {
            return;
        };
        let exit = held.remains.exit;
        let message = match (&held.remains.trouble, exit, status) {
            (Some(trouble), ..) => Some(trouble.clone()),
            (None, Some(_), _) => None,
            (None, None, Status::Code(0)) => {
                Some("the guest reset itself before its program had ended".to_owned())
            }
            (None, None, Status::Code(code)) => Some(format!(
                "the VMM ended with status {code}; `sifr node dmesg` shows its last words"
            )),
            (None, None, Status::Signal(signal)) => {
                Some(format!("the VMM was ended by signal {signal}"))
            }
        };
        let end = End { exit, message };
        self.events.push_back(Event::Ended {
            vm: vm.clone(),
            end,
        });
    }

    /// Drops all that is held for a VM. Its slot is free then.
    fn let_go(&mut self, vm: &VmId) -> Option<Vm> {
        let held = self.vms.remove(vm)?;
        held.reader.abort();
        self.means.images.detach(vm);
        Remains::remove(vm);
        Some(held)
    }

    fn start(&mut self, start: Start) {
        if let Some(why) = self.barred.why() {
            let message = why.clone();
            self.events.push_back(Event::StartFailed {
                vm: start.vm,
                message,
            });
            return;
        }
        self.attempts += 1;
        self.timelines.insert(start.vm.clone(), Began::now());
        let (attempt, vm) = (self.attempts, start.vm.clone());
        let cancel = Rc::new(Notify::new());
        let work = Work {
            means: self.means.clone(),
            attempt,
            at: self.pool_for(&vm),
            cancel: cancel.clone(),
            messages: self.messages.clone(),
        };
        tokio::task::spawn_local(work.run(start));
        self.starting.insert(vm, Starting { attempt, cancel });
    }

    fn spawn(&mut self, prepared: Prepared) -> anyhow::Result<()> {
        let Prepared {
            start,
            child,
            control,
            chunks,
        } = prepared;
        let used = |slot: &u16| self.vms.values().any(|held| held.slot == *slot);
        let slot = (0..SLOTS_MAX)
            .find(|slot| !used(slot))
            .with_context(|| format!("all {SLOTS_MAX} VM slots are taken"))?;
        let tag = Tag::new(&start);
        let limits = limits(&start, self.means.storage);
        let message = ToPid1::Spawn {
            vm: start.vm.clone(),
            slot,
            child: child.len(),
            limits,
            tag: serde_json::to_string(&tag).context("write the tag of a VM")?,
        };
        let kept = control.try_clone().context("copy a control socket")?;
        let fds = child.into_iter().chain([kept, chunks]).collect();
        let control = Packets::new(control, CONTROL_PACKET_MAX).context("take a control socket")?;
        self.pid1.send(&message, fds).context("ask pid1 for a VM")?;
        let (vm, flist) = (start.vm, start.record.image);
        self.hold(
            vm,
            slot,
            flist,
            control,
            Remains::default(),
            Some(Instant::now()),
        );
        Ok(())
    }

    /// Ends a start that has no VM yet: it answers that it failed. False where there is none.
    fn abandon(&self, vm: &VmId) -> bool {
        self.starting
            .get(vm)
            .map(|starting| starting.cancel.notify_one())
            .is_some()
    }

    fn stop(&mut self, vm: &VmId) {
        if self.abandon(vm) {
            return;
        }
        if let Some(held) = self.vms.get(vm)
            && let Err(error) = held.control.send(&ToVmm::Guest(ToGuest::Stop), Vec::new())
        {
            // It is ending by itself, or it will be killed when its grace is over.
            log::info!("tell {vm} to stop: {error}");
        }
    }

    fn kill(&mut self, vm: &VmId) {
        if !self.abandon(vm) {
            self.tell_pid1(&ToPid1::Kill {
                vm: vm.clone(),
                signal: SIGKILL,
            });
        }
    }

    fn settle(&mut self, vm: &VmId, record: Option<&workload::host::Record>) {
        if let Some(record) = record
            && let Err(error) = self.means.machines.save(vm, record)
        {
            // It will run again after a restart of the node: said here, and better than not at all.
            log::error!("note the end of {vm}: {error:#}");
        }
        if self.let_go(vm).is_some() {
            self.tell_pid1(&ToPid1::Forget { vm: vm.clone() });
        }
    }

    fn tell_pid1(&self, message: &ToPid1) {
        if let Err(error) = self.pid1.send(message, Vec::new()) {
            log::error!("tell pid1 {message:?}: {error}");
        }
    }

    fn publish(&self, places: &Places) {
        let plan = network::plan(
            places,
            &self.uplink.borrow(),
            self.means.ula,
            &self.means.keys,
        );
        keep_planned(&self.networks, &plan);
        let (messages, laid) = (self.messages.clone(), self.laid.clone());
        tokio::task::spawn_local(async move {
            let planned = plan.clone();
            let apply = move || network::apply(&planned, &laid);
            let applied = tokio::task::spawn_blocking(apply).await;
            let (made, result) =
                applied.unwrap_or_else(|e| (Default::default(), Err(e.to_string())));
            let plan = Box::new(plan);
            // Fails only when the loop has ended.
            let _ = messages
                .send(Message::Published { plan, made, result })
                .await;
        });
    }

    fn remove(&mut self, vm: VmId) {
        self.timelines.remove(&vm);
        let (machines, messages) = (self.means.machines.clone(), self.messages.clone());
        tokio::task::spawn_local(async move {
            let of = vm.clone();
            let removed = tokio::task::spawn_blocking(move || machines.remove(&of)).await;
            let result = match removed {
                Ok(result) => result.map_err(|e| format!("{e:#}")),
                Err(error) => Err(error.to_string()),
            };
            let _ = messages.send(Message::Removed { vm, result }).await;
        });
    }
}

impl Host for NodeHost {
    fn begin(&mut self, step: Step) {
        match step {
            Step::Start(start) => self.start(*start),
            Step::Stop { vm } => self.stop(&vm),
            Step::Kill { vm } => self.kill(&vm),
            Step::Settle { vm, record } => self.settle(&vm, record.as_deref()),
            Step::Remove { vm } => self.remove(vm),
            Step::Change(step) => self.alter(*step),
            Step::Erase { volume } => self.erase(volume),
            Step::Publish(places) => self.publish(&places),
        }
    }
}

/// One start, up to the spawn.
struct Work {
    means: Rc<Means>,
    attempt: u64,
    /// The pool of a new layer.
    at: Result<usize, String>,
    cancel: Rc<Notify>,
    messages: mpsc::Sender<Message>,
}

impl Work {
    async fn run(self, start: Start) {
        let (attempt, vm) = (self.attempt, start.vm.clone());
        let message = match self.prepare(start).await {
            Ok(prepared) => Message::Prepared {
                attempt,
                prepared: Box::new(prepared),
            },
            Err(message) => Message::PrepareFailed {
                vm,
                attempt,
                message,
            },
        };
        // Fails only when the loop has ended.
        let _ = self.messages.send(message).await;
    }

    async fn prepare(&self, start: Start) -> Result<Prepared, String> {
        // Never dropped half-way: two starts must not change one machine's files at a time.
        let upper = prepare::layer(&self.means, &start, self.at.clone()).await?;
        let layered = Message::Layered {
            vm: start.vm.clone(),
            attempt: self.attempt,
        };
        let _ = self.messages.send(layered).await;
        tokio::select! {
            prepared = prepare::prepare(self.means.clone(), start, upper) => prepared,
            () = self.cancel.notified() => Err("the start was abandoned".to_owned()),
        }
    }
}

/// What a machine's end says of it, if it is no proper one.
fn trouble_of(reason: &StopReason) -> Option<String> {
    match reason {
        StopReason::GuestReset => None,
        StopReason::Fault { message } => Some(printable(message)),
        StopReason::Watchdog => Some("the guest hung: it did not feed its watchdog".to_owned()),
    }
}

fn out_of_memory(kills: u64) -> String {
    let processes = if kills == 1 { "process" } else { "processes" };
    format!("the guest killed {kills} {processes} of it for lack of memory: deploy it with more")
}

/// Takes networks that a plan does without from those that are ready. Before the plan is applied: a start
/// that came meanwhile would else open its TAP in a network that is about to go, and never be heard.
fn keep_planned(ready: &watch::Sender<BTreeSet<String>>, plan: &network::Plan) {
    ready.send_if_modified(|ready| {
        let before = ready.len();
        ready.retain(|name| plan.tenants.contains_key(name));
        ready.len() != before
    });
}

/// A guest's words, safe to print: short, and without control characters.
fn printable(text: &str) -> String {
    text.chars()
        .filter(|c| !c.is_control())
        .take(TEXT_MAX)
        .collect()
}

#[cfg(test)]
#[path = "host_tests.rs"]
mod tests;
