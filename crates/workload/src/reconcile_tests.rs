//! The reconciler against a fake node: failures by script, restarts of the agent, any order of events.

use std::collections::{BTreeSet, VecDeque};

use proptest::prelude::*;
use types::deployment::{Action, Deployment, Workload};
use types::node::Capacity;
use types::status::{Desired as Want, Exit, State};
use types::{Bytes, Cidr, Digest, PublicKey};

use super::*;
use crate::admission::{self, ImagePresence, ImageSize};
use crate::desired::Phase;
use crate::desired::Verified;
use crate::desired::tests::{any_action, deployment, verified};
use crate::host::{Attached, Change, End, VolumeOnPool, VolumeRecord, VolumeStep, launch_digest};

#[path = "addresses_tests.rs"]
mod addresses_tests;
#[path = "machines_tests.rs"]
mod machines;
#[path = "networks_tests.rs"]
mod networks_tests;
#[path = "volumes_tests.rs"]
mod volumes;

/// A node in memory. What it holds survives the agent.
#[derive(Default)]
struct Fake {
    pool: BTreeMap<VmId, Record>,
    vms: BTreeMap<VmId, Launch>,
    volumes: BTreeMap<VolumeId, Held>,
    /// Volumes ever made.
    made: u64,
    /// What each VM has.
    attached: BTreeMap<VmId, Vec<Attached>>,
    /// What pid1 keeps with each VM: its count of restarts.
    restarts: BTreeMap<VmId, u64>,
    /// Whether the program in each VM runs.
    running: BTreeSet<VmId>,
    places: Option<Places>,
    events: VecDeque<Event>,
    /// Outcomes of the next steps that can fail; empty = all go well.
    failures: VecDeque<bool>,
    begun: Vec<Step>,
    /// Layers ever made, by machine.
    layers: BTreeMap<VmId, u32>,
}

/// A volume: its record, and what it and its snapshots hold: which of all that were made it is, and by how many
/// machines it has been written.
#[derive(Clone, Debug)]
struct Held {
    record: VolumeRecord,
    content: (u64, u64),
    snapshots: BTreeMap<u64, (u64, u64)>,
}

impl Fake {
    /// Who has it.
    fn users(&self, volume: &VolumeId) -> Vec<&Attached> {
        let attached = self.attached.values().flatten();
        attached.filter(|a| a.volume == *volume).collect()
    }

    fn change(&mut self, step: VolumeStep) {
        let VolumeStep {
            volume,
            record,
            change,
        } = step;
        if self.fails() {
            let message = "no".to_owned();
            self.events
                .push_back(Event::VolumeFailed { volume, message });
            return;
        }
        let unused = self.users(&volume).is_empty();
        match change {
            Change::Make { from } => {
                assert!(unused && !self.volumes.contains_key(&volume), "made twice");
                self.made += 1;
                let content = match from {
                    None => (self.made, 0),
                    Some(from) => {
                        let source = &self.volumes[&from.volume];
                        let snapshot = from.snapshot.map(|version| source.snapshots[&version]);
                        snapshot.unwrap_or(source.content)
                    }
                };
                let held = Held {
                    record: record.clone(),
                    content,
                    snapshots: BTreeMap::new(),
                };
                self.volumes.insert(volume.clone(), held);
            }
            Change::Grow { users } => {
                assert_eq!(users.len(), self.users(&volume).len());
                assert!(record.size > self.volumes[&volume].record.size);
            }
            Change::Snapshot { version, .. } => {
                let held = self.volumes.get_mut(&volume).expect("it is there");
                let twice = held.snapshots.insert(version, held.content);
                assert_eq!(twice, None);
            }
            Change::DropSnapshot { version } => {
                let held = self.volumes.get_mut(&volume).expect("it is there");
                held.snapshots.remove(&version).expect("it is there");
            }
            Change::Restore { from, .. } => {
                assert!(unused, "{volume} is restored under a machine");
                let held = self.volumes.get_mut(&volume).expect("it is there");
                held.content = held.snapshots[&from];
            }
        }
        let held = self.volumes.get_mut(&volume).expect("it is there");
        held.record = record.clone();
        self.events.push_back(Event::VolumeChanged {
            volume,
            record: Box::new(record),
            trouble: None,
        });
    }

    /// A machine takes its volumes, and writes to those it may write to.
    fn attach(&mut self, start: &Start) {
        for attachment in &start.volumes {
            let Attached {
                volume, read_only, ..
            } = &attachment.attached;
            let alone = self.users(volume).iter().all(|a| a.read_only && *read_only);
            assert!(alone, "{volume} is written by one and had by another");
            let held = self.volumes.get_mut(volume).expect("it is there before");
            assert_eq!(held.record, attachment.record);
            if !read_only {
                held.content.1 += 1;
            }
        }
        let attached = start.volumes.iter().map(|v| v.attached.clone());
        self.attached.insert(start.vm.clone(), attached.collect());
    }

    fn fails(&mut self) -> bool {
        self.failures.pop_front().unwrap_or(false)
    }

    fn end(&mut self, vm: &VmId, exit: Option<i32>) {
        if self.vms.remove(vm).is_some() {
            self.attached.remove(vm);
            self.running.remove(vm);
            let exit = exit.map(|code| Exit {
                code,
                signal: None,
                oom: false,
            });
            self.events.push_back(Event::Ended {
                vm: vm.clone(),
                end: End {
                    exit,
                    message: None,
                },
            });
        }
    }
}

impl Host for Fake {
    fn begin(&mut self, step: Step) {
        self.begun.push(step.clone());
        match step {
            Step::Start(start) => {
                let vm = start.vm.clone();
                assert!(!self.vms.contains_key(&vm), "{vm} is started twice");
                if self.fails() {
                    let message = "no".to_owned();
                    self.events.push_back(Event::StartFailed { vm, message });
                    return;
                }
                match (start.layer, self.pool.get(&vm)) {
                    (Layer::Fresh, _) => *self.layers.entry(vm.clone()).or_default() += 1,
                    (Layer::Keep, Some(old)) => {
                        assert_eq!(
                            (old.image, old.incarnation),
                            (start.record.image, start.record.incarnation)
                        );
                    }
                    (Layer::Keep, None) => panic!("{vm} has no layer to keep"),
                }
                self.pool.insert(vm.clone(), start.record.clone());
                self.events.push_back(Event::Layered { vm: vm.clone() });
                self.attach(&start);
                self.vms.insert(vm.clone(), start.launch);
                self.restarts.insert(vm.clone(), start.restarts);
                if self.fails() {
                    self.end(&vm, Some(1));
                } else {
                    self.running.insert(vm.clone());
                    self.events.push_back(Event::Running { vm, start_ms: 5 });
                }
            }
            // A guest may be deaf.
            Step::Stop { vm } => {
                if !self.fails() {
                    self.end(&vm, Some(143));
                }
            }
            Step::Kill { vm } => self.end(&vm, None),
            Step::Settle { vm, record } => {
                assert!(!self.vms.contains_key(&vm), "{vm} is settled while it runs");
                if let Some(record) = record {
                    self.pool.insert(vm, *record);
                }
            }
            Step::Remove { vm } => {
                assert!(
                    !self.vms.contains_key(&vm),
                    "the disk of {vm} is removed under it"
                );
                if self.fails() {
                    let message = "busy".to_owned();
                    self.events.push_back(Event::RemoveFailed { vm, message });
                } else {
                    self.pool.remove(&vm);
                    self.events.push_back(Event::Removed { vm });
                }
            }
            Step::Change(step) => self.change(*step),
            Step::Erase { volume } => {
                assert!(
                    self.users(&volume).is_empty(),
                    "{volume} is removed under a machine"
                );
                if self.fails() {
                    let message = "busy".to_owned();
                    self.events
                        .push_back(Event::VolumeFailed { volume, message });
                } else {
                    self.volumes.remove(&volume);
                    self.events.push_back(Event::VolumeErased { volume });
                }
            }
            Step::Publish(places) => {
                if self.fails() {
                    let message = "netlink".to_owned();
                    self.events.push_back(Event::PublishFailed { message });
                } else {
                    self.places = Some(places);
                    self.events.push_back(Event::Published);
                }
            }
        }
    }
}

/// Fewer than a deployment of the tests has machines.
const STARTS: usize = 2;

/// A node with its ledger and clock.
struct World {
    host: Fake,
    ledger: Vec<Admitted>,
    reconciler: Reconciler,
    now: u64,
    deadline: Option<u64>,
}

fn choose() -> ChooseSubnet {
    Box::new(|wish, others| {
        let free = |subnet: &Cidr| !others.contains(&subnet.network());
        match wish {
            Wish::This(subnet) => Some(subnet).filter(free),
            Wish::Any(_) => {
                let mut subnets = (4..255).map(|n| Cidr::new([10, 130, n, 1].into(), 24));
                subnets.find_map(|subnet| subnet.filter(free))
            }
        }
    })
}

impl World {
    fn new() -> Self {
        let mut reconciler = Reconciler::new(Desired::default(), [], choose());
        reconciler.limit_starts(STARTS);
        Self {
            host: Fake::default(),
            ledger: Vec::new(),
            reconciler,
            now: 1_000_000,
            deadline: None,
        }
    }

    fn next_version(&self) -> u64 {
        self.ledger.len() as u64 + 1
    }

    fn say(&mut self, action: Action) {
        let version = self.next_version();
        assert!(self.ledger.iter().all(|a| a.verified().key() == self.key()));
        self.say_verified(verified(version, action));
    }

    /// Refusals leave everything as it was.
    fn say_verified(&mut self, v: Verified) {
        let node = admission::Node {
            key: verified(1, Action::Stop).statement.node,
            owner: Some(PublicKey([1; 32])),
            durable: true,
            capacity: Capacity {
                cpus: 64,
                memory: Bytes::gib(64),
                disk: Bytes::gib(64),
                ..Capacity::default()
            },
            pools: vec![crate::placement::Shelf {
                pool: "a".to_owned(),
                class: types::node::DiskClass::Ssd,
                capacity: Bytes::gib(64),
                room: Bytes::gib(64),
                failing: false,
            }],
            places: &BTreeMap::new(),
        };
        let present = |_: &Digest| admission::Image {
            presence: ImagePresence::Complete,
            size: ImageSize::default(),
        };
        let networks = self.reconciler.networks_in_the_way(&v);
        if self.reconciler.in_the_way(&v).is_some() || networks.is_some() {
            return;
        }
        if let Ok(admitted) = admission::admit(v, &node, self.reconciler.desired(), present) {
            self.reconciler.apply(&admitted);
            self.ledger.push(admitted);
        }
    }

    /// Everything that can happen without time passing.
    fn settle(&mut self) {
        for _ in 0..1000 {
            self.deadline = reconcile(&mut self.reconciler, &mut self.host, self.now);
            let Some(event) = self.host.events.pop_front() else {
                if self.reconciler.plan(self.now).steps.is_empty() {
                    return;
                }
                panic!("a second plan at the same time has further steps");
            };
            for step in self.reconciler.event(event, self.now) {
                self.host.begin(step);
            }
        }
        panic!("it does not come to rest: {:?}", self.host.begun);
    }

    fn pass(&mut self, ms: u64) {
        self.now += ms;
        self.settle();
    }

    /// The agent dies and comes back: what it knew is gone, events that were under way too, except
    /// the ends of VMs, which pid1 repeats.
    fn restart_agent(&mut self) {
        let mut desired = Desired::default();
        self.ledger.iter().for_each(|a| desired.apply(a.verified()));
        let found: Vec<_> = self
            .host
            .pool
            .iter()
            .map(|(vm, r)| (vm.clone(), OnPool::Record(r.clone())))
            .collect();
        self.reconciler = Reconciler::new(desired, found, choose());
        self.reconciler.limit_starts(STARTS);
        let volumes = self.host.volumes.iter();
        let volumes = volumes.map(|(id, v)| (id.clone(), VolumeOnPool::Record(v.record.clone())));
        self.reconciler.find_volumes(volumes.collect::<Vec<_>>());
        let ended = self
            .host
            .events
            .drain(..)
            .filter(|e| matches!(e, Event::Ended { .. }));
        self.host.events = ended.collect();
        for (vm, launch) in &self.host.vms {
            let record = &self.host.pool[vm];
            let start_ms = self.host.running.contains(vm).then_some(5);
            let survivor = Survivor {
                vm: vm.clone(),
                key: record.key(),
                workload: record.workload.clone(),
                launch: *launch,
                volumes: self.host.attached[vm].clone(),
                restarts: self.host.restarts[vm],
                start_ms,
            };
            self.reconciler.adopt(survivor, self.now);
        }
    }

    fn key(&self) -> Key {
        verified(1, Action::Stop).key()
    }

    /// What is said of one is said of it among all.
    fn status(&self) -> DeploymentStatus {
        let key = self.key();
        let status = self.reconciler.status(&key, true).expect("a status");
        let all = self.reconciler.statuses(true).into_iter();
        let of_it: Vec<_> = all.filter(|(of, _)| **of == key).collect();
        assert_eq!(of_it, [(&key, status.clone())]);
        status
    }

    fn state(&self) -> State {
        self.status()
            .workloads
            .values()
            .next()
            .expect("a workload")
            .state
    }

    fn vm(&self) -> VmId {
        self.host.vms.keys().next().expect("a VM").clone()
    }
}

fn changed(change: impl Fn(&mut types::deployment::Machine)) -> Action {
    let mut deployment = deployment(1);
    for workload in deployment.workloads.values_mut() {
        if let Workload::Machine(machine) = workload {
            change(machine);
        }
    }
    Action::Deploy(deployment)
}

fn with_policy(policy: RestartPolicy) -> Action {
    changed(move |m| m.restart = policy)
}

fn running() -> World {
    let mut world = World::new();
    world.say(Action::Deploy(deployment(1)));
    world.settle();
    assert_eq!(world.state(), State::Running);
    world
}

#[derive(Debug, Clone)]
enum Happening {
    Say(Action),
    Fail(Vec<bool>),
    Lose(Option<i32>),
    RestartAgent,
    /// The agent dies before it has taken an event.
    Interrupt,
    Pass(u64),
}

/// `often`: the weight of what a client says, beside 7 for all else.
fn happening(often: u32, said: impl Strategy<Value = Action>) -> impl Strategy<Value = Happening> {
    prop_oneof![
        often => said.prop_map(Happening::Say),
        2 => prop::collection::vec(any::<bool>(), 0..6).prop_map(Happening::Fail),
        1 => prop::option::of(0..3i32).prop_map(Happening::Lose),
        1 => Just(Happening::RestartAgent),
        1 => Just(Happening::Interrupt),
        2 => (0u64..100_000).prop_map(Happening::Pass),
    ]
}

fn check_converged(world: &World) {
    let wanted: Option<(u64, Deployment)> = match world.reconciler.desired().get(&world.key()) {
        None => None,
        Some(target) => match &target.phase {
            Phase::Running(d) => Some((target.incarnation, d.clone())),
            Phase::Stopped(_) => {
                assert!(world.host.vms.is_empty());
                return;
            }
            Phase::Deleted => {
                assert!(world.host.vms.is_empty() && world.host.pool.is_empty());
                return;
            }
        },
    };
    let expected: Vec<Digest> = wanted
        .iter()
        .flat_map(|(incarnation, d)| d.machines().map(|(_, m)| launch_digest(m, *incarnation)))
        .collect();
    let actual: Vec<Digest> = world
        .host
        .vms
        .values()
        .map(|launch| launch.digest)
        .collect();
    assert_eq!(actual, expected);
    assert_eq!(world.host.running.len(), expected.len());
    let places = world.host.places.clone().unwrap_or_default();
    assert_eq!(places.machines.len(), expected.len());
}

/// A node to which all that has happened, and then nothing for a while.
fn after(happenings: Vec<Happening>) -> World {
    let mut world = World::new();
    for happening in happenings {
        match happening {
            Happening::Say(action) => world.say(action),
            Happening::Fail(failures) => world.host.failures = failures.into(),
            Happening::Lose(exit) => {
                if let Some(vm) = world.host.vms.keys().next().cloned() {
                    world.host.end(&vm, exit);
                }
            }
            Happening::RestartAgent => world.restart_agent(),
            Happening::Interrupt => {
                world.deadline = reconcile(&mut world.reconciler, &mut world.host, world.now);
                world.restart_agent();
            }
            Happening::Pass(ms) => world.now += ms,
        }
        world.settle();
    }
    world.host.failures.clear();
    for _ in 0..4 {
        world.pass(120_000);
    }
    assert_eq!(world.deadline, None);
    world
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]
    #[test]
    fn whatever_happens_the_node_comes_to_be_what_was_signed(
        happenings in prop::collection::vec(happening(4, any_action()), 1..24),
    ) {
        check_converged(&after(happenings));
    }
}
