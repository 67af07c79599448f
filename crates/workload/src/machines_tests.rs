//! Machines: what is restarted and what is not, how failing ones are tried, and how they are stopped.

use super::*;

#[test]
fn the_network_is_made_before_the_machine() {
    let world = running();
    let at = |wanted: fn(&Step) -> bool| world.host.begun.iter().position(wanted).expect("a step");
    assert!(
        at(|s| matches!(s, Step::Publish(p) if !p.machines.is_empty()))
            < at(|s| matches!(s, Step::Start(_)))
    );
}

#[test]
fn an_idle_node_makes_its_network_at_once_and_then_waits_for_nothing() {
    let mut world = World::new();
    world.settle();
    assert_eq!(world.host.begun, [Step::Publish(Places::default())]);
    assert_eq!(world.deadline, None);
}

#[test]
fn an_uplink_that_changes_while_the_network_is_made_is_not_forgotten() {
    let mut world = World::new();
    let published = |world: &World| {
        world
            .host
            .begun
            .iter()
            .filter(|s| matches!(s, Step::Publish(_)))
            .count()
    };
    reconcile(&mut world.reconciler, &mut world.host, world.now);
    world.reconciler.republish();
    world.settle();
    assert_eq!(published(&world), 2);
    world.reconciler.republish();
    world.settle();
    assert_eq!(published(&world), 3);
}

#[test]
fn a_change_that_no_vm_sees_restarts_nothing() {
    let mut world = running();
    world.say(changed(|m| {
        m.ports = vec![types::deployment::Port::tcp(80, 8080)];
        m.restart = RestartPolicy::Never;
    }));
    world.host.begun.clear();
    world.settle();
    let [Step::Publish(places)] = &world.host.begun[..] else {
        panic!("{:?}", world.host.begun)
    };
    assert_eq!(
        places.machines.values().next().map(|p| p.ports.len()),
        Some(1)
    );
}

#[test]
fn an_update_restarts_only_what_differs() {
    let mut world = World::new();
    let two = |second: &str| {
        let mut deployment = deployment(1);
        let web: Name = "web".parse().expect("a name");
        let mut machine = deployment.workloads[&web].clone();
        if let Workload::Machine(m) = &mut machine {
            m.env.insert("A".to_owned(), second.to_owned());
        }
        deployment
            .workloads
            .insert("db".parse().expect("a name"), machine);
        Action::Deploy(deployment)
    };
    world.say(two("1"));
    world.settle();
    world.say(two("2"));
    world.host.begun.clear();
    world.settle();
    let touched: Vec<String> = world.host.begun.iter().map(|s| format!("{s:?}")).collect();
    assert!(
        touched
            .iter()
            .any(|s| s.starts_with("Start") && s.contains("db-shop")),
        "{touched:?}"
    );
    assert!(
        !touched
            .iter()
            .any(|s| s.starts_with("St") && s.contains("web-shop")),
        "{touched:?}"
    );
}

#[test]
fn a_machine_whose_id_is_still_being_removed_waits_for_it_and_then_runs() {
    // `a-b` of `c` and `b-c`'s `a` are one id.
    let named = |name: &str, workload: &str, version: u64| {
        let mut deployment = deployment(1);
        let machine = deployment.workloads.pop_first().expect("one machine").1;
        let workload = workload.parse().expect("a name");
        deployment.workloads.insert(workload, machine);
        let mut v = verified(version, Action::Deploy(deployment));
        v.statement.name = name.parse().expect("a name");
        v
    };
    let mut world = World::new();
    let first = named("b-c", "a", 1);
    let mut deleted = first.clone();
    (deleted.statement.version, deleted.statement.action) = (2, Action::Delete);
    let second = named("c", "a-b", 1);
    let key = second.key();
    world.say_verified(first);
    world.settle();
    world.say_verified(deleted);
    world.say_verified(second);
    let status = world.reconciler.status(&key, true).expect("a status");
    assert_eq!(status.workloads.len(), 1, "it is shown while it waits");
    world.settle();
    let status = world.reconciler.status(&key, true).expect("a status");
    let states: Vec<State> = status.workloads.values().map(|w| w.state).collect();
    assert_eq!(states, [State::Running]);
}

#[test]
fn the_layer_survives_a_restart_and_goes_with_a_new_image() {
    let mut world = running();
    let vm = world.vm();
    world.say(Action::Restart);
    world.settle();
    world.say(changed(|m| {
        m.env.insert("A".to_owned(), "1".to_owned());
    }));
    world.settle();
    assert_eq!(world.host.layers[&vm], 1);
    let address = world.host.pool[&vm].address;
    world.say(changed(|m| m.image.flist = Digest([77; 32])));
    world.settle();
    assert_eq!((world.host.layers[&vm], world.state()), (2, State::Running));
    assert_eq!(world.host.pool[&vm].address, address);
}

#[test]
fn a_deletion_removes_the_disk_and_a_successor_gets_a_new_one() {
    let mut world = running();
    let vm = world.vm();
    world.say(Action::Delete);
    world.settle();
    assert!(world.host.pool.is_empty() && world.host.vms.is_empty());
    assert_eq!(
        (world.status().desired, world.status().workloads.len()),
        (Want::Deleted, 0)
    );
    // Deleted and made again before the node could do either.
    let mut world = running();
    world.say(Action::Delete);
    world.say(Action::Deploy(deployment(1)));
    world.settle();
    assert_eq!((world.host.layers[&vm], world.state()), (2, State::Running));
}

#[test]
fn a_failing_start_is_tried_for_ever_with_growing_pauses() {
    let mut world = World::new();
    world.host.failures = [false]
        .into_iter()
        .chain(std::iter::repeat_n(true, 50))
        .collect();
    world.say(Action::Deploy(deployment(1)));
    world.settle();
    let mut pauses = Vec::new();
    for _ in 0..9 {
        assert_eq!(world.state(), State::Backoff);
        let at = world.deadline.expect("a deadline");
        pauses.push((at - world.now) / 1000);
        world.pass(at - world.now);
    }
    assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 60, 60, 60]);
    world.host.failures.clear();
    let at = world.deadline.expect("a deadline");
    world.pass(at - world.now);
    assert_eq!(world.state(), State::Running);
}

#[test]
fn an_agent_that_comes_back_goes_on_counting_where_the_last_one_was() {
    let mut world = World::new();
    world.host.failures = [false]
        .into_iter()
        .chain(std::iter::repeat_n(true, 50))
        .collect();
    world.say(Action::Deploy(deployment(1)));
    world.settle();
    for _ in 0..3 {
        let at = world.deadline.expect("a deadline");
        world.pass(at - world.now);
    }
    let (before, starts) = (world.status(), world.host.begun.len());
    let pauses = serde_json::to_vec(&world.reconciler.pauses()).expect("JSON");
    world.restart_agent();
    // What it has to publish anew does well.
    world.host.failures.push_front(false);
    let pauses = serde_json::from_slice(&pauses).expect("as it was kept");
    world.reconciler.resume(pauses, world.now);
    world.settle();
    let tried = |step: &Step| matches!(step, Step::Start(_));
    assert!(!world.host.begun[starts..].iter().any(tried), "it waits on");
    assert_eq!(world.state(), State::Backoff);
    assert_eq!(world.deadline.expect("a deadline") - world.now, 8000);
    let (was, is) = (before.workloads.values().next(), world.status());
    let (was, is) = (
        was.expect("it"),
        is.workloads.values().next().expect("it").clone(),
    );
    assert_eq!(
        (is.restarts, &is.message, is.code),
        (was.restarts, &was.message, was.code)
    );
    // Its place in the network was lost with its start.
    world.host.failures.push_front(false);
    world.pass(8000);
    assert_eq!(world.deadline.expect("a deadline") - world.now, 16_000);
}

#[test]
fn a_note_of_pauses_that_lies_makes_nobody_wait_longer_than_a_minute() {
    let mut world = World::new();
    world.host.failures = [false, true].into();
    world.say(Action::Deploy(deployment(1)));
    world.settle();
    let mut kept = serde_json::to_value(world.reconciler.pauses()).expect("JSON");
    for pause in kept.as_object_mut().expect("a map").values_mut() {
        pause["not_before"] = u64::MAX.into();
        pause["failures"] = u32::MAX.into();
    }
    world.restart_agent();
    let kept = serde_json::from_value(kept).expect("pauses");
    world.reconciler.resume(kept, world.now);
    world.settle();
    let wait = world.deadline.expect("a deadline") - world.now;
    assert_eq!(wait, crate::machine::BACKOFF_MAX_MS);
    world.pass(wait);
    assert_eq!(world.state(), State::Running);
}

#[test]
fn every_failure_has_a_code() {
    let mut world = World::new();
    world.host.failures = [false, true].into();
    world.say(Action::Deploy(deployment(1)));
    world.settle();
    let code = |world: &World| {
        let status = world.status();
        status.workloads.values().next().expect("it").code
    };
    assert_eq!(code(&world), Some(types::trouble::Code::StartFailed));
    world.pass(1000);
    assert_eq!((world.state(), code(&world)), (State::Running, None));
    let vm = world.vm();
    world.host.end(&vm, None);
    world.settle();
    assert_eq!(code(&world), Some(types::trouble::Code::MachineLost));
    world.pass(2000);
    world.host.end(&vm, Some(3));
    world.settle();
    assert_eq!(code(&world), Some(types::trouble::Code::ProgramFailed));
}

#[test]
fn a_correction_does_not_wait_for_the_pause_of_its_predecessor() {
    let mut world = World::new();
    world.host.failures = [false, true].into();
    world.say(Action::Deploy(deployment(1)));
    world.settle();
    assert_eq!(world.state(), State::Backoff);
    world.say(Action::Deploy(deployment(2)));
    world.settle();
    assert_eq!(world.state(), State::Running);
}

#[test]
fn a_long_run_forgets_earlier_failures() {
    let mut world = running();
    for expected in [1, 2, 4] {
        let vm = world.vm();
        world.host.end(&vm, None);
        world.settle();
        let pause = world.deadline.expect("a deadline") - world.now;
        assert_eq!(pause, expected * 1000);
        world.pass(pause);
    }
    world.pass(10 * 60_000);
    let vm = world.vm();
    world.host.end(&vm, Some(1));
    world.settle();
    assert_eq!(world.deadline.expect("a deadline") - world.now, 1000);
    assert!(
        world
            .status()
            .workloads
            .values()
            .all(|w| w.message.as_deref().is_some_and(|m| m.contains("status 1")))
    );
}

#[test]
fn restarts_are_counted_on_by_the_next_agent() {
    let mut world = World::new();
    world.say(with_policy(RestartPolicy::Always));
    world.settle();
    let vm = world.vm();
    let restarts = |world: &World| world.status().workloads.values().next().map(|w| w.restarts);
    for count in 1..4 {
        world.host.end(&vm, None);
        world.settle();
        world.pass(BACKOFF_MAX_MS);
        world.restart_agent();
        world.settle();
        assert_eq!(restarts(&world), Some(count));
    }
}

#[test]
fn an_exit_is_final_as_the_policy_says_and_stays_so_over_a_restart_of_the_agent() {
    for (policy, code, state) in [
        (RestartPolicy::Never, 3, State::Exited),
        (RestartPolicy::OnFailure, 0, State::Exited),
        (RestartPolicy::OnFailure, 3, State::Backoff),
        (RestartPolicy::Always, 0, State::Backoff),
    ] {
        let mut world = World::new();
        world.say(with_policy(policy));
        world.settle();
        let vm = world.vm();
        world.host.end(&vm, Some(code));
        world.settle();
        assert_eq!(world.state(), state, "{policy:?} {code}");
        if state == State::Exited {
            world.restart_agent();
            world.pass(1_000_000);
            assert_eq!(world.state(), State::Exited);
            assert_eq!(
                world
                    .status()
                    .workloads
                    .values()
                    .next()
                    .and_then(|w| w.exit)
                    .map(|e| e.code),
                Some(code)
            );
            world.say(Action::Start);
            world.settle();
            assert_eq!(world.state(), State::Running, "a start runs it again");
        }
    }
}

#[test]
fn a_lost_vm_is_started_again_whatever_the_policy() {
    let mut world = World::new();
    world.say(with_policy(RestartPolicy::Never));
    world.settle();
    let vm = world.vm();
    world.host.end(&vm, None);
    world.settle();
    world.pass(1000);
    assert_eq!(world.state(), State::Running);
}

#[test]
fn a_machine_that_is_stopped_between_two_tries_promises_no_third() {
    let mut world = running();
    let vm = world.vm();
    world.host.end(&vm, Some(3));
    world.settle();
    let message = |world: &World| {
        let status = world.status();
        let machine = status.workloads.into_values().next().expect("a machine");
        (machine.state, machine.message, machine.exit.map(|e| e.code))
    };
    let (state, says, _) = message(&world);
    assert_eq!(state, State::Backoff);
    assert!(says.is_some_and(|says| says.contains("the next try")));
    world.say(Action::Stop);
    world.settle();
    assert_eq!(message(&world), (State::Stopped, None, Some(3)));
}

#[test]
fn a_deaf_guest_is_killed_after_its_grace() {
    let mut world = running();
    world.host.failures = [true].into();
    world.say(Action::Stop);
    world.settle();
    assert_eq!(world.state(), State::Stopping);
    let at = world.deadline.expect("a deadline");
    assert_eq!(at - world.now, 15_000);
    world.pass(at - world.now);
    assert_eq!(world.state(), State::Stopped);
    assert!(
        world
            .host
            .begun
            .iter()
            .any(|s| matches!(s, Step::Kill { .. }))
    );
}

/// Its program has ended, and nothing more is heard of it.
fn settles(world: &mut World) {
    let vm = world.vm();
    world.host.events.push_back(Event::Settling { vm });
    world.settle();
}

fn kills(world: &World) -> usize {
    let kill = |s: &&Step| matches!(s, Step::Kill { .. });
    world.host.begun.iter().filter(kill).count()
}

#[test]
fn a_guest_that_writes_out_its_disk_is_not_killed_for_a_minute() {
    let mut world = running();
    world.host.failures = [true].into();
    world.say(Action::Stop);
    world.settle();
    // Killed by its own init at the end of its grace: now the disk has its turn.
    world.pass(10_000);
    settles(&mut world);
    let at = world.deadline.expect("a deadline");
    assert_eq!(at - world.now, 60_000);
    world.pass(59_999);
    assert_eq!((kills(&world), world.state()), (0, State::Stopping));
    world.pass(1);
    assert_eq!((kills(&world), world.state()), (1, State::Stopped));
}

#[test]
fn an_order_to_stop_leaves_a_guest_that_settles_its_time() {
    let mut world = running();
    settles(&mut world);
    world.host.failures = [true].into();
    world.pass(20_000);
    world.say(Action::Stop);
    world.settle();
    world.pass(39_999);
    assert_eq!((kills(&world), world.state()), (0, State::Stopping));
    world.pass(1);
    assert_eq!((kills(&world), world.state()), (1, State::Stopped));
}

#[test]
fn a_guest_that_never_settles_is_killed_and_started_again() {
    let mut world = running();
    settles(&mut world);
    assert_eq!(world.state(), State::Running);
    world.pass(60_000);
    assert_eq!((kills(&world), world.state()), (1, State::Backoff));
    let status = world.status();
    let message = status.workloads.values().find_map(|w| w.message.as_ref());
    let says = |m: &String| m.contains("did not write out its disk");
    assert!(message.is_some_and(says), "{message:?}");
    world.pass(1000);
    assert_eq!(world.state(), State::Running);
}

#[test]
fn a_drain_stops_everything_and_changes_no_target() {
    let mut world = running();
    world.reconciler.drain();
    assert!(!world.reconciler.is_drained());
    world.settle();
    assert!(world.reconciler.is_drained());
    assert_eq!(world.status().desired, Want::Running);
    world.restart_agent();
    world.settle();
    assert_eq!(
        world.state(),
        State::Running,
        "the next boot starts it again"
    );
}

#[test]
fn one_machine_that_fails_holds_up_no_other() {
    let mut world = World::new();
    let mut both = deployment(1);
    let machine = both.workloads.values().next().expect("a machine").clone();
    both.workloads
        .insert("other".parse().expect("a name"), machine);
    world.host.failures = [false, true].into();
    world.say(Action::Deploy(both));
    world.settle();
    let states: Vec<State> = world.status().workloads.values().map(|w| w.state).collect();
    assert_eq!(states, [State::Backoff, State::Running]);
}

#[test]
fn a_disk_that_nobody_gave_up_is_left_alone() {
    let world = running();
    let (vm, record) = world.host.pool.iter().next().expect("a record");
    // The ledger knows nothing of it.
    let found = [(vm.clone(), OnPool::Record(record.clone()))];
    let mut reconciler = Reconciler::new(Desired::default(), found, choose());
    let steps = reconciler.plan(0).steps;
    assert!(
        steps.iter().all(|s| matches!(s, Step::Publish(_))),
        "{steps:?}"
    );
}

#[test]
fn an_unreadable_record_keeps_its_disk_until_the_deployment_is_deleted() {
    let mut world = running();
    let vm = world.vm();
    let mut desired = Desired::default();
    world
        .ledger
        .iter()
        .for_each(|a| desired.apply(a.verified()));
    world.host.vms.clear();
    let found = [(
        vm,
        OnPool::Unreadable("machine.json is not JSON".to_owned()),
    )];
    world.reconciler = Reconciler::new(desired, found, choose());
    world.settle();
    assert_eq!(world.state(), State::Backoff);
    let message = world
        .status()
        .workloads
        .values()
        .next()
        .and_then(|w| w.message.clone());
    assert!(
        message
            .expect("a message")
            .contains("delete the deployment")
    );
    world.say(Action::Delete);
    world.settle();
    assert!(world.host.pool.is_empty());
}

/// A node that has just booted: five machines are to run, two may start at once.
fn crowd() -> (Reconciler, u64) {
    let mut five = deployment(1);
    let machine = five.workloads.values().next().expect("a machine").clone();
    for name in ["b", "c", "d", "e"] {
        five.workloads
            .insert(name.parse().expect("a name"), machine.clone());
    }
    let mut world = World::new();
    world.say(Action::Deploy(five));
    world.reconciler.event(Event::Published, world.now);
    (world.reconciler, world.now)
}

fn starts(steps: &[Step]) -> Vec<VmId> {
    let vm = |step: &Step| match step {
        Step::Start(start) => Some(start.vm.clone()),
        _ => None,
    };
    steps.iter().filter_map(vm).collect()
}

#[test]
fn so_many_machines_start_at_once_and_the_next_when_one_runs() {
    let (mut reconciler, now) = crowd();
    let first = starts(&reconciler.plan(now).steps);
    assert_eq!(first.len(), STARTS);
    assert_eq!(starts(&reconciler.plan(now).steps), []);
    let (vm, start_ms) = (first[0].clone(), 5);
    reconciler.event(Event::Running { vm, start_ms }, now);
    let next = starts(&reconciler.plan(now).steps);
    assert!(next.len() == 1 && !first.contains(&next[0]), "{next:?}");
}

#[test]
fn starts_that_take_for_ever_hold_up_the_others_for_a_while() {
    let (mut reconciler, mut now) = crowd();
    let mut begun = 0;
    while begun < 5 {
        let plan = reconciler.plan(now);
        let starts = starts(&plan.steps).len();
        assert!(starts > 0, "{begun} of 5 are begun at {now}");
        begun += starts;
        // Nothing happens: what was said to be the time of the next look is all there is.
        let deadline = plan.deadline.expect("a time to look again");
        assert!(deadline > now && deadline <= now + 10_000 || begun == 5);
        now = deadline;
    }
}

#[test]
fn a_start_that_fails_leaves_its_place_to_another() {
    let (mut reconciler, now) = crowd();
    let first = starts(&reconciler.plan(now).steps);
    for vm in first {
        let message = "no".to_owned();
        reconciler.event(Event::StartFailed { vm, message }, now);
    }
    assert_eq!(starts(&reconciler.plan(now).steps).len(), STARTS);
}
