//! The reconciler: compares what should be with what is, and says what to do next.
//!
//! Owns: all machines of the node and the steps that lead each to its target. Deterministic: state,
//! events and times in, steps and the next deadline out.
//! Refuses: doing steps ([`Host`] does), reading a clock, and removing anything that no signed
//! statement has given up.

use std::collections::BTreeMap;

use types::address::Range;
use types::deployment::{Deployment, RestartPolicy};
use types::status::{DeploymentStatus, VolumeStatus};
use types::{Name, VmId, VolumeId};

use crate::admission::Admitted;
use crate::desired::{Desired, Key, Target};
use crate::host::{
    Event, Host, Launch, Layer, OnPool, Placed, PlacedCard, Places, Record, Start, Step, Survivor,
};
use crate::machine::{Action, BACKOFF_MAX_MS, Intent, Machine, Pause};
use crate::volume::Volume;

mod addresses;
mod networks;
mod sites;
mod volumes;

pub use addresses::Occupied;
use networks::across;
pub use networks::{ChooseSubnet, Offer, Wish};

/// What [`Reconciler::plan`] says.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// To be begun in this order.
    pub steps: Vec<Step>,
    /// When to plan again if nothing happens before.
    pub deadline: Option<u64>,
}

/// The network: what it is to be, and how far that has come.
#[derive(Debug, Default)]
struct Network {
    published: Option<Places>,
    publishing: Option<Places>,
    /// What is being published has been overtaken.
    stale: bool,
    failures: u32,
    not_before: u64,
    error: Option<String>,
}

/// The starts that are under way. A boot of a node with many machines is done sooner, and its agent has the processor in between,
/// where they come one after another than where all come at once.
#[derive(Debug)]
struct Seats {
    most: usize,
    /// Of each that is taken, until when. Known while there is a plan being made.
    until: Vec<u64>,
}

impl Seats {
    fn look(&mut self, machines: &BTreeMap<VmId, Machine>, now: u64) {
        let until = machines.values().filter_map(Machine::has_seat_until);
        self.until.clear();
        self.until.extend(until.filter(|until| *until > now));
    }

    /// When to ask again, where there is none.
    fn is_taken_until(&self) -> Option<u64> {
        let first = self.until.iter().min().copied();
        first.filter(|_| self.until.len() >= self.most)
    }
}

pub struct Reconciler {
    desired: Desired,
    machines: BTreeMap<VmId, Machine>,
    volumes: BTreeMap<VolumeId, Volume>,
    network: Network,
    choose_subnet: ChooseSubnet,
    occupied: Occupied,
    /// No pool has any of it.
    reserved: Option<Range>,
    seats: Seats,
    /// The node goes down: nothing is to run, whatever the ledger says.
    draining: bool,
}

impl std::fmt::Debug for Reconciler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reconciler")
            .field("machines", &self.machines)
            .field("volumes", &self.volumes)
            .field("draining", &self.draining)
            .finish_non_exhaustive()
    }
}

impl Reconciler {
    /// From the ledger and what the pool holds.
    pub fn new(
        desired: Desired,
        found: impl IntoIterator<Item = (VmId, OnPool)>,
        choose_subnet: ChooseSubnet,
    ) -> Self {
        let wanted: BTreeMap<VmId, (Key, Name)> = desired
            .machines()
            .map(|(vm, key, _, workload, _)| (vm, (key.clone(), workload.clone())))
            .collect();
        let mut machines = BTreeMap::new();
        for (vm, pool) in found {
            let owner = match &pool {
                OnPool::Record(record) => Some((record.key(), record.workload.clone())),
                OnPool::Unreadable(_) | OnPool::Away { .. } => wanted.get(&vm).cloned(),
            };
            // Unreadable and unknown: there is nothing to say about it and nothing to do.
            if let Some((key, workload)) = owner {
                machines.insert(vm, Machine::new(key, workload, Some(pool)));
            }
        }
        let network = Network::default();
        let mut reconciler = Self {
            desired,
            machines,
            volumes: BTreeMap::new(),
            network,
            choose_subnet,
            occupied: Box::new(BTreeMap::new),
            reserved: None,
            seats: Seats {
                most: usize::MAX,
                until: Vec::new(),
            },
            draining: false,
        };
        reconciler.add_wanted();
        reconciler
    }

    /// At most so many machines start at once, from now on; a start that takes long counts no more after a while, so that none
    /// waits for another for ever. At least one.
    pub fn limit_starts(&mut self, most: usize) {
        self.seats.most = most.max(1);
    }

    /// Whether a machine was missing.
    fn add_wanted(&mut self) -> bool {
        self.add_wanted_volumes();
        let before = self.machines.len();
        for (vm, key, _, workload, _) in self.desired.machines() {
            self.machines
                .entry(vm)
                .or_insert_with(|| Machine::new(key.clone(), workload.clone(), None));
        }
        self.machines.len() > before
    }

    /// A VM that pid1 has kept over a restart of the agent. `start_ms`: its program runs.
    pub fn adopt(&mut self, survivor: Survivor, now: u64) {
        let machine = self
            .machines
            .entry(survivor.vm.clone())
            .or_insert_with(|| Machine::new(survivor.key.clone(), survivor.workload.clone(), None));
        machine.adopt(&survivor, now);
    }

    /// A statement that is in the ledger.
    pub fn apply(&mut self, admitted: &Admitted) {
        self.desired.apply(admitted.verified());
        self.add_wanted();
    }

    pub fn desired(&self) -> &Desired {
        &self.desired
    }

    /// From now on everything is to stop; the ledger stays as it is.
    pub fn drain(&mut self) {
        self.draining = true;
    }

    /// No VM is left.
    pub fn is_drained(&self) -> bool {
        self.draining && !self.machines.values().any(Machine::has_vm)
    }

    /// What the network was made from has changed (the uplink): make it again.
    pub fn republish(&mut self) {
        self.network.published = None;
        self.network.stale = self.network.publishing.is_some();
        self.network.not_before = 0;
    }

    /// How each machine that failed waits, for an agent that comes after this one.
    pub fn pauses(&self) -> BTreeMap<VmId, Pause> {
        let pauses = self.machines.iter();
        pauses
            .filter_map(|(vm, machine)| Some((vm.clone(), machine.pause()?)))
            .collect()
    }

    /// Goes on with the pauses of the agent before this one, in the same boot.
    pub fn resume(&mut self, pauses: BTreeMap<VmId, Pause>, now: u64) {
        for (vm, pause) in pauses {
            if let Some(machine) = self.machines.get_mut(&vm).filter(|m| !m.has_vm()) {
                machine.resume(pause, now);
            }
        }
    }

    /// Why the network is not what it should be.
    pub fn network_error(&self) -> Option<&str> {
        self.network.error.as_deref()
    }

    /// Takes an event. Returns steps that are to be begun at once.
    pub fn event(&mut self, event: Event, now: u64) -> Vec<Step> {
        match event {
            Event::Published => {
                let published = self.network.publishing.take();
                self.network.published = published.filter(|_| !self.network.stale);
                self.network.stale = false;
                (self.network.failures, self.network.error) = (0, None);
            }
            Event::PublishFailed { message } => {
                (self.network.publishing, self.network.stale) = (None, false);
                self.network.failures = self.network.failures.saturating_add(1);
                let pause = 1000u64 << self.network.failures.min(6);
                self.network.not_before = now.saturating_add(pause.min(BACKOFF_MAX_MS));
                self.network.error = Some(message);
            }
            Event::Ended { vm, end } => {
                let policy = self.restart_policy(&vm);
                let record = self
                    .machines
                    .get_mut(&vm)
                    .and_then(|m| m.ended(end, policy, now));
                let record = record.map(Box::new);
                return vec![Step::Settle { vm, record }];
            }
            Event::Layered { vm } => self.with(&vm, Machine::layered),
            Event::StartFailed { vm, message } => self.with(&vm, |m| m.start_failed(&message, now)),
            Event::Running { vm, start_ms } => self.with(&vm, |m| m.running(start_ms, now)),
            Event::Settling { vm } => self.with(&vm, |m| m.settling(now)),
            Event::Trouble { vm, message } => self.with(&vm, |m| m.trouble(message)),
            Event::VolumeChanged {
                volume,
                record,
                trouble,
            } => self.with_volume(&volume, |v| v.changed(*record, trouble)),
            Event::VolumeErased { volume } => self.with_volume(&volume, Volume::erased),
            Event::VolumeFailed { volume, message } => {
                self.with_volume(&volume, |v| v.failed(&message, now));
            }
            Event::Removed { vm } => self.with(&vm, Machine::removed),
            Event::RemoveFailed { vm, message } => {
                self.with(&vm, |m| m.remove_failed(message, now));
            }
        }
        Vec::new()
    }

    fn with(&mut self, vm: &VmId, act: impl FnOnce(&mut Machine)) {
        if let Some(machine) = self.machines.get_mut(vm) {
            act(machine);
        }
    }

    fn restart_policy(&self, vm: &VmId) -> RestartPolicy {
        self.machines
            .get(vm)
            .and_then(|machine| self.desired.get(&machine.key)?.machine(&machine.workload))
            .map(|spec| spec.restart)
            .unwrap_or_default()
    }

    /// Everything that can be begun now. What is returned counts as begun.
    pub fn plan(&mut self, now: u64) -> Plan {
        let mut plan = Plan::default();
        let mut rest = self.plan_volumes(now, &mut plan.deadline);
        self.seats.look(&self.machines, now);
        let ids: Vec<VmId> = self.machines.keys().cloned().collect();
        for vm in ids {
            let step = self.plan_machine(&vm, now, &mut plan.deadline);
            if !self.machines.contains_key(&vm) && self.add_wanted() {
                // Another deployment has taken over the id of the one that has just gone.
                rest.extend(self.plan_machine(&vm, now, &mut plan.deadline));
            }
            rest.extend(step);
        }
        // The network first: a TAP that no rule names passes nothing.
        plan.steps
            .extend(self.plan_network(now, &mut plan.deadline));
        plan.steps.extend(rest);
        plan
    }

    fn plan_machine(&mut self, vm: &VmId, now: u64, deadline: &mut Option<u64>) -> Option<Step> {
        let machine = self.machines.get(vm)?;
        let intent = Intent::of(
            self.desired.get(&machine.key),
            &machine.workload,
            self.draining,
        );
        let action = machine.next(&intent, now);
        if let (Action::Start { .. }, Some(until)) = (&action, self.seats.is_taken_until()) {
            earlier(deadline, until);
            return None;
        }
        let start = match (&action, &intent) {
            (Action::Start { launch, layer }, Intent::Run { .. }) => {
                Some(self.start(vm, *launch, *layer))
            }
            _ => None,
        };
        let machine = self.machines.get_mut(vm)?;
        match action {
            Action::Start { launch, .. } => match start? {
                Ok(start) => {
                    let volumes = start.volumes.iter().map(|v| v.attached.clone());
                    machine.starting(launch, start.record.clone(), volumes.collect(), now);
                    self.seats.until.extend(machine.has_seat_until());
                    Some(Step::Start(Box::new(start)))
                }
                Err(Obstacle::Wait(message)) => {
                    machine.trouble(message);
                    None
                }
                Err(Obstacle::Failure(message)) => {
                    earlier(deadline, machine.cannot_start(launch, message, now));
                    None
                }
            },
            Action::Stop => {
                machine.stopping(now);
                if let Action::Wait(Some(at)) = machine.next(&Intent::Rest, now) {
                    earlier(deadline, at);
                }
                Some(Step::Stop { vm: vm.clone() })
            }
            Action::Kill => {
                machine.killing();
                Some(Step::Kill { vm: vm.clone() })
            }
            Action::Remove => {
                machine.removing();
                Some(Step::Remove { vm: vm.clone() })
            }
            Action::Wait(at) => {
                at.into_iter().for_each(|at| earlier(deadline, at));
                None
            }
            Action::Drop => {
                self.machines.remove(vm);
                None
            }
        }
    }

    fn start(&self, vm: &VmId, launch: Launch, layer: Layer) -> Result<Start, Obstacle> {
        let machine = &self.machines[vm];
        let target = self
            .desired
            .get(&machine.key)
            .expect("a machine that is to run has a target");
        let spec = target
            .machine(&machine.workload)
            .expect("and its target has a machine");
        let volumes = self.attachments(vm, machine, target, spec);
        let volumes = volumes.map_err(Obstacle::Wait)?;
        let mut cards = self
            .choose_cards(vm, machine, target)
            .map_err(Obstacle::Failure)?;
        let address = cards.first().map(|card| card.address);
        let address = address.ok_or(Obstacle::Failure("it is on no network"))?;
        if let [one] = &cards[..]
            && one.is_default()
            && one.own.is_empty()
        {
            cards.clear();
        }
        let record = Record {
            signer: machine.key.signer,
            deployment: machine.key.name.clone(),
            workload: machine.workload.clone(),
            incarnation: target.incarnation,
            image: spec.image.flist,
            disk: spec.disk,
            address,
            cards,
            finished: None,
        };
        Ok(Start {
            vm: vm.clone(),
            launch,
            layer,
            record,
            machine: spec.clone(),
            volumes,
            restarts: machine.starts(),
            across: across(target, spec),
        })
    }

    /// Machines that run or are to run.
    pub fn places(&self) -> Places {
        let held = self.held();
        let place = |(vm, machine): (&VmId, &Machine)| {
            let target = self.desired.get(&machine.key);
            let intent = Intent::of(target, &machine.workload, self.draining);
            let wanted = matches!(intent, Intent::Run { .. });
            let spec = target.and_then(|target| target.machine(&machine.workload));
            let ports = spec
                .filter(|_| wanted)
                .map(|spec| spec.ports.clone())
                .unwrap_or_default();
            let (key, workload) = (machine.key.clone(), machine.workload.clone());
            let card = |card: &crate::host::CardAddress| PlacedCard {
                address: card.address,
                internal: self.is_internal(&key, &card.network),
            };
            let cards: Vec<PlacedCard> = machine.cards.iter().map(card).collect();
            let there = !cards.is_empty() && (wanted || machine.has_vm());
            if !there {
                return None;
            }
            Some((
                vm.clone(),
                Placed {
                    key,
                    workload,
                    cards,
                    ports,
                    own: self.place_own((vm, machine), spec.filter(|_| wanted), &held),
                },
            ))
        };
        let machines = self.machines.iter().filter_map(place).collect();
        Places {
            sites: self.sites(&machines),
            machines,
            meshes: self.meshes(),
        }
    }

    fn plan_network(&mut self, now: u64, deadline: &mut Option<u64>) -> Option<Step> {
        if self.network.publishing.is_some() {
            return None;
        }
        let places = self.places();
        if self.network.published.as_ref() == Some(&places) {
            return None;
        }
        if now < self.network.not_before {
            earlier(deadline, self.network.not_before);
            return None;
        }
        self.network.publishing = Some(places.clone());
        Some(Step::Publish(places))
    }

    /// What the API says of a deployment; `None` where the name has never been used.
    pub fn status(&self, key: &Key, durable: bool) -> Option<DeploymentStatus> {
        let target = self.desired.get(key)?;
        let machines = self.machines.values().filter(|m| m.key == *key);
        let volumes = self.volume_statuses(key);
        Some(self.status_of(key, target, machines, volumes, durable))
    }

    /// The same of all deployments, in their order: machines are looked through once, not once for each.
    pub fn statuses(&self, durable: bool) -> Vec<(&Key, DeploymentStatus)> {
        let mut machines: BTreeMap<&Key, Vec<&Machine>> = BTreeMap::new();
        for machine in self.machines.values() {
            machines.entry(&machine.key).or_default().push(machine);
        }
        let mut volumes = self.all_volume_statuses();
        let status = |(key, target)| {
            let machines = machines.remove(key).unwrap_or_default();
            let volumes = volumes.remove(key).unwrap_or_default();
            let status = self.status_of(key, target, machines, volumes, durable);
            (key, status)
        };
        self.desired.iter().map(status).collect()
    }

    fn status_of<'a>(
        &self,
        key: &Key,
        target: &Target,
        machines: impl IntoIterator<Item = &'a Machine>,
        volumes: BTreeMap<Name, VolumeStatus>,
        durable: bool,
    ) -> DeploymentStatus {
        let status = |machine: &Machine| {
            let intent = Intent::of(Some(target), &machine.workload, self.draining);
            let status = machine.status(&intent, target.machine(&machine.workload));
            (machine.workload.clone(), status)
        };
        let mut workloads: BTreeMap<_, _> = machines.into_iter().map(status).collect();
        // Until the id is free, a machine that waits for it is shown as one that has not begun.
        let named = target.deployment().into_iter();
        for (name, _) in named.flat_map(Deployment::machines) {
            if !workloads.contains_key(name) {
                let waiting = Machine::new(key.clone(), name.clone(), None);
                workloads.extend([status(&waiting)]);
            }
        }
        DeploymentStatus {
            name: key.name.clone(),
            version: target.version,
            desired: target.desired(),
            durable,
            workloads,
            volumes,
            networks: self.network_statuses(key),
            pools: self.pool_statuses(key),
            ingress: Default::default(),
            conditions: Vec::new(),
        }
    }
}

/// Why a machine does not start now.
enum Obstacle {
    /// Something that is on its way.
    Wait(String),
    /// To be tried again after a pause.
    Failure(&'static str),
}

fn earlier(deadline: &mut Option<u64>, at: u64) {
    *deadline = Some(deadline.map_or(at, |d| d.min(at)));
}

/// The body of the loop: plans, and begins what was planned. Returns when to come back at the latest.
pub fn reconcile(reconciler: &mut Reconciler, host: &mut impl Host, now: u64) -> Option<u64> {
    let plan = reconciler.plan(now);
    plan.steps.into_iter().for_each(|step| host.begin(step));
    plan.deadline
}

#[cfg(test)]
#[path = "reconcile_tests.rs"]
mod tests;
