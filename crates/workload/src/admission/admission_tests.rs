//! What is admitted, and what each refusal says.

use super::*;
use crate::desired::tests::{deployment, verified};

fn node() -> Node<'static> {
    Node {
        key: PublicKey([9; 32]),
        owner: Some(PublicKey([1; 32])),
        durable: true,
        capacity: Capacity {
            cpus: 2,
            memory: Bytes::gib(1),
            disk: Bytes::gib(4),
            ..Capacity::default()
        },
        pools: vec![pool(Bytes::gib(4), Bytes::gib(4))],
        places: &NOTHING,
    }
}

static NOTHING: BTreeMap<VmId, Place> = BTreeMap::new();

fn pool(capacity: Bytes, room: Bytes) -> Shelf {
    Shelf {
        pool: "a".to_owned(),
        class: types::node::DiskClass::Ssd,
        capacity,
        room,
        failing: false,
    }
}

fn image(presence: ImagePresence) -> Image {
    let size = ImageSize::default();
    Image { presence, size }
}

fn present(_: &Digest) -> Image {
    image(ImagePresence::Complete)
}

/// Stored in half a GiB, and another on its disk.
fn large(_: &Digest) -> Image {
    let half = Bytes::mib(512);
    Image {
        size: ImageSize {
            stored: half,
            missing: Bytes(0),
            disk: half,
        },
        ..image(ImagePresence::Complete)
    }
}

fn from_image(n: u8, disk: Bytes) -> Action {
    deploy(move |m| (m.image.flist, m.disk) = (Digest([n; 32]), disk))
}

#[test]
fn an_image_takes_disk_as_it_is_stored_and_as_it_is_read_and_once_only() {
    let three = |n| verified(1, from_image(n, Bytes::mib(2800)));
    let admitted = |v: Verified, desired: &Desired| admit(v, &node(), desired, large).is_ok();
    assert!(admitted(three(1), &Desired::default()));
    let held = with(&[three(1)]);
    let shown = capacity(&held, node().capacity, |d| large(d).size);
    assert_eq!(
        shown.disk_used,
        Bytes(disk_of(Bytes::mib(2800)).0 + (1 << 30))
    );
    // The same image again is no more; another does not fit.
    let small = |n| named("other", verified(1, from_image(n, Bytes::mib(100))));
    assert!(admitted(small(1), &held));
    let refusal = admit(small(2), &node(), &held, large).expect_err("over");
    assert_eq!(refusal.code, RefusalCode::OverCapacity);
    assert!(refusal.message.contains("images included"), "{refusal:?}");
    // A new version gives up the image of the old one.
    assert!(admitted(
        verified(2, from_image(2, Bytes::mib(2800))),
        &held
    ));
}

#[test]
fn content_that_nobody_deployed_is_in_the_way_of_a_new_deployment_and_of_no_old_one() {
    let node = Node {
        pools: vec![pool(Bytes::gib(4), Bytes::mib(1000))],
        ..node()
    };
    let fits = |v: Verified, desired: &Desired| admit(v, &node, desired, large).is_ok();
    // 512 MiB for the image's disk, 8 for logs; its stored bytes are there.
    assert!(fits(
        verified(1, from_image(1, Bytes::mib(400))),
        &Desired::default()
    ));
    let late = verified(1, from_image(1, Bytes::mib(500)));
    let refusal = admit(late, &node, &Desired::default(), large).expect_err("no room");
    assert!(refusal.message.contains("free just now"), "{refusal:?}");
    let full = Node {
        pools: vec![pool(Bytes::gib(4), Bytes(0))],
        ..node.clone()
    };
    let held = with(&[verified(1, from_image(1, Bytes::mib(400)))]);
    let again = verified(2, from_image(1, Bytes::mib(400)));
    assert!(admit(again, &full, &held, large).is_ok());
    for action in [Action::Stop, Action::Delete] {
        assert!(admit(verified(2, action), &full, &held, large).is_ok());
    }
}

fn named(name: &str, mut v: Verified) -> Verified {
    v.statement.name = name.parse().expect("a valid name");
    v
}

fn with(deployed: &[Verified]) -> Desired {
    let mut desired = Desired::default();
    deployed.iter().for_each(|v| desired.apply(v));
    desired
}

/// One machine, changed as `change` says.
fn deploy(change: impl Fn(&mut types::deployment::Machine)) -> Action {
    let mut deployment = deployment(1);
    for workload in deployment.workloads.values_mut() {
        if let types::deployment::Workload::Machine(machine) = workload {
            change(machine);
        }
    }
    Action::Deploy(deployment)
}

fn code(v: Verified, node: &Node<'_>, desired: &Desired) -> Option<RefusalCode> {
    admit(v, node, desired, present).err().map(|r| r.code)
}

#[test]
fn a_first_deployment_is_admitted() {
    let v = verified(1, Action::Deploy(deployment(1)));
    let admitted = admit(v.clone(), &node(), &Desired::default(), present);
    assert_eq!(admitted.expect("admitted").verified(), &v);
}

fn with_workloads(names: &[&str], remove: &[&str]) -> Action {
    let mut deployment = deployment(1);
    let any = deployment.workloads.values().next().expect("one").clone();
    let name = |n: &&str| n.parse::<Name>().expect("a valid name");
    deployment.workloads = names.iter().map(|n| (name(n), any.clone())).collect();
    deployment.remove = remove.iter().map(name).collect();
    Action::Deploy(deployment)
}

#[test]
fn a_workload_that_is_left_out_keeps_its_disk_unless_its_removal_is_said() {
    let desired = with(&[verified(1, with_workloads(&["db", "web"], &[]))]);
    let forgotten = verified(2, with_workloads(&["web"], &[]));
    let refusal = admit(forgotten, &node(), &desired, present).expect_err("db is left out");
    assert_eq!(refusal.code, RefusalCode::Conflict);
    assert!(refusal.message.contains("--remove db"), "{refusal:?}");
    let said = verified(2, with_workloads(&["web"], &["db"]));
    assert_eq!(code(said.clone(), &node(), &desired), None);
    // The file need not change once it has gone.
    let desired = with(&[verified(1, with_workloads(&["db", "web"], &[])), said]);
    let again = verified(3, with_workloads(&["web"], &["db"]));
    assert_eq!(code(again, &node(), &desired), None);
}

#[test]
fn what_was_deleted_is_not_left_out() {
    let desired = with(&[
        verified(1, with_workloads(&["db"], &[])),
        verified(2, Action::Delete),
    ]);
    let other = verified(3, with_workloads(&["web"], &[]));
    assert_eq!(code(other, &node(), &desired), None);
}

#[test]
fn a_machine_for_which_the_network_has_no_address_is_refused_and_not_promised() {
    let large = Node {
        capacity: Capacity {
            cpus: 1000,
            memory: Bytes::gib(1000),
            ..Capacity::default()
        },
        pools: vec![pool(Bytes::gib(1000), Bytes::gib(1000))],
        ..node()
    };
    let mut desired = Desired::default();
    for n in 0..address::COUNT {
        let v = named(&format!("n{n}"), verified(1, deploy(|_| ())));
        assert_eq!(code(v.clone(), &large, &desired), None, "machine {n}");
        desired.apply(&v);
    }
    let late = named("late", verified(1, deploy(|_| ())));
    assert_eq!(
        code(late, &large, &desired),
        Some(RefusalCode::OverCapacity)
    );
}

#[test]
fn a_node_without_an_owner_accepts_nothing_and_strangers_are_refused() {
    let v = || verified(1, Action::Deploy(deployment(1)));
    let none = Node {
        owner: None,
        ..node()
    };
    assert_eq!(
        code(v(), &none, &Desired::default()),
        Some(RefusalCode::NoOwner)
    );
    let other = Node {
        owner: Some(PublicKey([2; 32])),
        ..node()
    };
    assert_eq!(
        code(v(), &other, &Desired::default()),
        Some(RefusalCode::UnknownKey)
    );
    let elsewhere = Node {
        key: PublicKey([3; 32]),
        ..node()
    };
    assert_eq!(
        code(v(), &elsewhere, &Desired::default()),
        Some(RefusalCode::WrongNode)
    );
}

#[test]
fn versions_count_up_by_one_over_deletions() {
    let gone = with(&[
        verified(1, Action::Deploy(deployment(1))),
        verified(2, Action::Delete),
    ]);
    let at = |version| verified(version, Action::Deploy(deployment(1)));
    for (version, expected) in [
        (1, Some(RefusalCode::Replayed)),
        (2, Some(RefusalCode::Replayed)),
        (3, None),
        (4, Some(RefusalCode::Skipped)),
    ] {
        assert_eq!(
            code(at(version), &node(), &gone),
            expected,
            "version {version}"
        );
    }
    let refusal = admit(at(9), &node(), &gone, present).expect_err("skipped");
    assert!(
        refusal.message.contains("sign version 3"),
        "{}",
        refusal.message
    );
}

#[test]
fn what_does_not_exist_cannot_be_stopped() {
    for action in [Action::Stop, Action::Start, Action::Restart, Action::Delete] {
        assert_eq!(
            code(verified(1, action), &node(), &Desired::default()),
            Some(RefusalCode::NotFound)
        );
    }
}

#[test]
fn capacity_counts_stopped_machines_and_not_the_one_replaced() {
    let machine = |mib| deploy(move |m| m.memory = Bytes::mib(mib));
    let held = with(&[verified(1, machine(600)), verified(2, Action::Stop)]);
    let other = named("other", verified(1, machine(600)));
    assert_eq!(code(other, &node(), &held), Some(RefusalCode::OverCapacity));
    assert_eq!(code(verified(3, machine(900)), &node(), &held), None);
    let all = deploy(|m| m.memory = Bytes::gib(1));
    assert_eq!(
        code(verified(1, all), &node(), &Desired::default()),
        Some(RefusalCode::OverCapacity)
    );
}

#[test]
fn cpus_are_overcommitted_and_disk_is_not() {
    let cpus = |n| verified(1, deploy(move |m| m.cpus = n));
    assert_eq!(code(cpus(8), &node(), &Desired::default()), None);
    assert_eq!(
        code(cpus(9), &node(), &Desired::default()),
        Some(RefusalCode::OverCapacity)
    );
    let disk = verified(1, deploy(|m| m.disk = Bytes::gib(4)));
    assert_eq!(
        code(disk, &node(), &Desired::default()),
        Some(RefusalCode::OverCapacity)
    );
}

#[test]
fn a_published_port_belongs_to_one_deployment() {
    let web = || deploy(|m| m.ports = vec![types::deployment::Port::tcp(80, 8080)]);
    let held = with(&[verified(1, web())]);
    assert_eq!(
        code(named("other", verified(1, web())), &node(), &held),
        Some(RefusalCode::PortTaken)
    );
    assert_eq!(code(verified(2, web()), &node(), &held), None);
}

#[test]
fn a_disk_keeps_its_size_until_the_image_changes() {
    let held = with(&[verified(1, deploy(|_| ()))]);
    let grown = verified(2, deploy(|m| m.disk = Bytes::gib(2)));
    assert_eq!(code(grown, &node(), &held), Some(RefusalCode::Conflict));
    let renewed = verified(
        2,
        deploy(|m| {
            m.disk = Bytes::gib(2);
            m.image.flist = Digest([7; 32]);
        }),
    );
    assert_eq!(code(renewed, &node(), &held), None);
}

#[test]
fn names_that_are_cut_to_the_same_id_are_refused() {
    let long = |end: &str| format!("{}{end}", "a".repeat(40));
    let held = with(&[named(&long("x"), verified(1, deploy(|_| ())))]);
    let other = named(&long("y"), verified(1, deploy(|_| ())));
    assert_eq!(code(other, &node(), &held), Some(RefusalCode::Conflict));
}

#[test]
fn an_image_must_be_here_or_in_a_store() {
    let missing = |_: &Digest| image(ImagePresence::Missing(3));
    let v = verified(1, deploy(|_| ()));
    let refusal = admit(v, &node(), &Desired::default(), missing).expect_err("missing chunks");
    assert_eq!(refusal.code, RefusalCode::MissingChunks);
    assert!(
        refusal.message.contains("lacks 3 chunks"),
        "{}",
        refusal.message
    );
    let stored = verified(
        1,
        deploy(|m| m.image.store = Some("http://10.0.2.2:8000".into())),
    );
    assert!(admit(stored, &node(), &Desired::default(), missing).is_ok());
}

#[test]
fn a_node_in_memory_wants_consent() {
    let volatile = Node {
        durable: false,
        ..node()
    };
    let v = |accept| {
        let mut d = deployment(1);
        d.accept_volatile = accept;
        verified(1, Action::Deploy(d))
    };
    assert_eq!(
        code(v(false), &volatile, &Desired::default()),
        Some(RefusalCode::Volatile)
    );
    assert_eq!(code(v(true), &volatile, &Desired::default()), None);
}

#[test]
fn a_machine_whose_disk_is_memory_may_fill_it() {
    let Action::Deploy(deployment) = deploy(|m| m.disk = Bytes::mib(512)) else {
        unreachable!("as made")
    };
    let (_, machine) = deployment.machines().next().expect("a machine");
    let on_disk = memory_limit(machine, Bytes(0), Storage::Disk);
    assert_eq!(on_disk, memory_of(machine.memory));
    let in_memory = memory_limit(machine, Bytes(0), Storage::Memory);
    assert!(in_memory.0 > on_disk.0 + disk_of(machine.disk).0);
    let with_volume = memory_limit(machine, Bytes::gib(1), Storage::Memory);
    assert!(with_volume.0 > in_memory.0 + (1 << 30));
}

#[test]
fn what_is_promised_is_what_is_shown() {
    let desired = with(&[verified(1, deploy(|_| ()))]);
    let shown = capacity(&desired, node().capacity, |_| ImageSize::default());
    assert_eq!(shown.memory_used, memory_of(Bytes::mib(256)));
    assert_eq!((shown.cpus, shown.cpus_used), (2, 1));
}
