//! Volumes against the fake node.

use types::status::VolumeState;

use super::*;

fn name(text: &str) -> Name {
    text.parse().expect("a valid name")
}

fn volume(more: &str) -> Workload {
    serde_json::from_str(&format!(r#"{{"volume":{{{more}}}}}"#)).expect("a valid volume")
}

/// The machine `web` with the volume `data` of so many MiB.
fn with_volume(mib: u64, read_only: bool) -> Deployment {
    let mut deployment = deployment(1);
    let size = format!(r#""size":"{mib}Mi""#);
    deployment.workloads.insert(name("data"), volume(&size));
    if let Some(Workload::Machine(web)) = deployment.workloads.get_mut(&name("web")) {
        web.mounts.push(types::volume::Mount {
            volume: name("data"),
            path: "/data".to_owned(),
            read_only,
        });
    }
    deployment
}

fn deploy(mib: u64) -> Action {
    Action::Deploy(with_volume(mib, false))
}

fn snapshot(snapshot: &str) -> Action {
    Action::Snapshot {
        volume: name("data"),
        snapshot: name(snapshot),
    }
}

fn restore(snapshot: &str) -> Action {
    Action::Restore {
        volume: name("data"),
        snapshot: name(snapshot),
    }
}

fn destroy() -> Action {
    Action::Destroy {
        volumes: [name("data")].into(),
    }
}

fn held(world: &World) -> &Held {
    world.host.volumes.values().next().expect("a volume")
}

fn state_of_volume(world: &World) -> VolumeState {
    world.status().volumes[&name("data")].state
}

#[test]
fn a_machine_starts_when_its_volume_is_there_and_not_before() {
    let mut world = World::new();
    // The network goes well.
    world.host.failures = [false, true].into();
    world.say(deploy(64));
    world.settle();
    assert!(world.host.vms.is_empty());
    let status = world.status();
    let message = status.workloads[&name("web")].message.clone();
    assert!(
        message
            .expect("why")
            .contains("waits for its volume data: no")
    );
    assert_eq!(state_of_volume(&world), VolumeState::Failed);
    world.pass(2_000);
    assert_eq!(world.state(), State::Running);
    assert_eq!(
        world.status().volumes[&name("data")].attached,
        [name("web")]
    );
}

#[test]
fn a_volume_survives_stop_restart_update_and_the_removal_of_its_machine() {
    let mut world = World::new();
    world.say(deploy(64));
    world.settle();
    for action in [Action::Stop, Action::Start, Action::Restart, {
        let mut other = with_volume(64, false);
        if let Some(Workload::Machine(web)) = other.workloads.get_mut(&name("web")) {
            web.image.flist = Digest([9; 32]);
        }
        Action::Deploy(other)
    }] {
        world.say(action);
        world.settle();
        world.restart_agent();
        world.settle();
    }
    let mut alone = with_volume(64, false);
    alone.workloads.remove(&name("web"));
    alone.remove.insert(name("web"));
    world.say(Action::Deploy(alone));
    world.settle();
    assert!(world.host.vms.is_empty());
    // Made once; written by the first machine, after the start, the restart and the update.
    assert_eq!(held(&world).content, (1, 4));
    world.say(Action::Delete);
    world.settle();
    assert_eq!(world.host.volumes.len(), 1, "a deletion does not name it");
    world.say(destroy());
    world.settle();
    assert!(world.host.volumes.is_empty() && world.status().volumes.is_empty());
}

#[test]
fn a_volume_grows_under_its_machine_and_the_machine_stays() {
    let mut world = World::new();
    world.say(deploy(64));
    world.settle();
    let vm = world.host.vms.clone();
    world.say(deploy(128));
    world.settle();
    assert_eq!(
        (held(&world).record.size, &world.host.vms),
        (Bytes::mib(128), &vm)
    );
    let told = world.host.begun.iter().any(|step| {
        matches!(step, Step::Change(step) if matches!(&step.change, Change::Grow { users } if users.len() == 1))
    });
    assert!(told, "the machine hears of it");
}

#[test]
fn what_is_destroyed_in_one_version_is_another_in_the_next() {
    let mut world = World::new();
    world.say(deploy(64));
    world.settle();
    let mut without = deployment(1);
    without.remove.insert(name("data"));
    without.destroy.insert(name("data"));
    world.say(Action::Deploy(without));
    // Not before the old one has gone.
    world.say(deploy(64));
    world.settle();
    assert!(world.host.volumes.is_empty());
    world.say(deploy(64));
    world.settle();
    assert_eq!(held(&world).content, (2, 1));
    // Over the deletion of all, the incarnation tells.
    world.say(destroy());
    world.say(deploy(64));
    world.settle();
    assert_eq!(held(&world).content, (3, 1));
}

#[test]
fn snapshots_and_restorations_come_in_the_order_of_their_statements() {
    let mut world = World::new();
    world.say(deploy(64));
    world.say(snapshot("a"));
    world.settle();
    assert_eq!(
        held(&world).snapshots[&2],
        (1, 0),
        "taken before the machine had it"
    );
    world.say(Action::Restart);
    world.say(snapshot("b"));
    world.settle();
    world.say(restore("a"));
    assert_eq!(world.ledger.len(), 4, "not while a machine is to run");
    world.say(Action::Stop);
    world.say(snapshot("c"));
    world.say(restore("a"));
    let drop = |snapshot: &str| Action::DropSnapshot {
        volume: name("data"),
        snapshot: name(snapshot),
    };
    world.say(drop("a"));
    assert_eq!(world.ledger.len(), 7, "not while it is to be copied back");
    world.settle();
    assert_eq!(held(&world).content, (1, 0));
    assert!(
        held(&world).snapshots[&6].1 > 0,
        "c is of before the restoration"
    );
    world.say(drop("a"));
    world.say(Action::Start);
    world.settle();
    world.restart_agent();
    world.settle();
    assert_eq!(held(&world).content, (1, 1), "restored once");
    assert_eq!(held(&world).snapshots.len(), 2);
}

#[test]
fn a_copy_is_made_of_a_volume_or_snapshot_and_is_its_own() {
    let mut world = World::new();
    world.say(deploy(64));
    world.settle();
    world.say(snapshot("a"));
    world.settle();
    world.say(Action::Restart);
    world.settle();
    let mut copies = with_volume(64, false);
    for (copy, from) in [
        ("new", r#""volume":"data""#),
        ("old", r#""volume":"data","snapshot":"a""#),
    ] {
        let made = volume(&format!(r#""size":"64Mi","from":{{{from}}}"#));
        copies.workloads.insert(name(copy), made);
    }
    world.say(Action::Deploy(copies));
    world.settle();
    let busy = world.host.begun.iter().any(|step| match step {
        Step::Change(step) => match &step.change {
            Change::Make { from: Some(from) } => from.writer.is_some(),
            _ => false,
        },
        _ => false,
    });
    assert!(busy, "of what a machine has, it stands still");
    let contents: BTreeSet<(u64, u64)> = world.host.volumes.values().map(|v| v.content).collect();
    assert_eq!(contents, [(1, 1), (1, 2)].into());
    assert_eq!(world.host.volumes.len(), 3);
}

#[test]
fn a_copy_waits_for_a_machine_that_is_about_to_stop() {
    let mut world = World::new();
    world.say(deploy(64));
    world.settle();
    let mut other = with_volume(64, false);
    other.workloads.insert(
        name("copy"),
        volume(r#""size":"64Mi","from":{"volume":"data"}"#),
    );
    if let Some(Workload::Machine(web)) = other.workloads.get_mut(&name("web")) {
        web.cpus = 2;
    }
    world.say(Action::Deploy(other));
    world.settle();
    let steps = world.host.begun.iter();
    let order: Vec<&str> = steps
        .filter_map(|step| match step {
            Step::Stop { .. } => Some("stop"),
            Step::Change(step) => match &step.change {
                Change::Make { from: Some(from) } if from.writer.is_none() => Some("copy"),
                Change::Make { from: Some(_) } => Some("copy of what is written to"),
                _ => None,
            },
            _ => None,
        })
        .collect();
    assert_eq!(order, ["stop", "copy"]);
    assert_eq!(world.state(), State::Running);
}

#[test]
fn one_machine_lets_go_before_the_next_takes_over() {
    let mut world = World::new();
    world.say(deploy(64));
    world.settle();
    let mut other = with_volume(64, false);
    let web = other.workloads.remove(&name("web")).expect("web");
    other.workloads.insert(name("api"), web);
    other.remove.insert(name("web"));
    // The old one is deaf at first: the fake would refuse two writers.
    world.host.failures = [true].into();
    world.say(Action::Deploy(other));
    world.settle();
    world.pass(120_000);
    assert_eq!(world.host.vms.len(), 1);
    assert_eq!(held(&world).content, (1, 2));
}

#[test]
fn a_deaf_machine_lets_go_of_a_volume_that_is_to_be_restored_also_after_the_agent_restarts() {
    let mut world = World::new();
    world.say(deploy(64));
    world.settle();
    world.say(snapshot("a"));
    world.settle();
    // It does not hear that it is to stop, and the next agent finds it running, as it should be again.
    world.host.failures = [true].into();
    for said in [Action::Stop, restore("a"), deploy(128)] {
        world.say(said);
        world.settle();
    }
    world.restart_agent();
    world.settle();
    world.pass(120_000);
    assert_eq!(world.state(), State::Running);
    let held = held(&world);
    assert_eq!((held.record.restored, held.content), (4, (1, 2)));
    assert_eq!(held.record.size, Bytes::mib(128));
}

fn any_said() -> impl Strategy<Value = Action> {
    let names = prop_oneof![Just("a"), Just("b")];
    prop_oneof![
        3 => (1u64..4, any::<bool>()).prop_map(|(n, ro)| Action::Deploy(with_volume(64 * n, ro))),
        1 => any_action(),
        2 => names.clone().prop_map(snapshot),
        2 => names.clone().prop_map(restore),
        1 => names.prop_map(|n| Action::DropSnapshot { volume: name("data"), snapshot: name(n) }),
        1 => Just(destroy()),
        1 => Just(Action::Stop),
    ]
}

fn check(world: &World) {
    let key = world.key();
    let Some(target) = world.reconciler.desired().get(&key) else {
        assert!(world.host.volumes.is_empty());
        return;
    };
    let wanted: Vec<_> = world.reconciler.desired().volumes().collect();
    assert_eq!(wanted.len(), world.host.volumes.len());
    for (id, of) in wanted {
        let held = &world.host.volumes[&id];
        let history = target.history(of.workload);
        assert_eq!(held.record.size, of.volume.size);
        let kept: BTreeSet<u64> = history.snapshots.values().copied().collect();
        assert_eq!(
            held.snapshots.keys().copied().collect::<BTreeSet<_>>(),
            kept
        );
        let restored = history.restored.map_or(0, |restored| restored.version);
        assert!(held.record.restored >= restored);
        assert_eq!(
            world.status().volumes[of.workload].state,
            VolumeState::Ready
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]
    #[test]
    fn whatever_happens_volumes_come_to_be_what_was_signed(
        happenings in prop::collection::vec(happening(6, any_said()), 1..32),
    ) {
        let world = after(happenings);
        check(&world);
        check_converged(&world);
    }
}
