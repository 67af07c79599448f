//! Admission of what is said of volumes.

use proptest::prelude::*;
use types::PublicKey;
use types::node::Capacity;

use super::*;
use crate::admission::{Admitted, Image, ImagePresence, admit};
use crate::desired::tests::verified;

static NOTHING: std::collections::BTreeMap<VmId, Place> = std::collections::BTreeMap::new();

fn node(disk: Bytes) -> Node<'static> {
    Node {
        key: PublicKey([9; 32]),
        owner: Some(PublicKey([1; 32])),
        durable: true,
        capacity: Capacity {
            cpus: 2,
            memory: Bytes::gib(1),
            disk,
            ..Capacity::default()
        },
        pools: vec![crate::placement::Shelf {
            pool: "a".to_owned(),
            class: types::node::DiskClass::Ssd,
            capacity: disk,
            room: disk,
            failing: false,
        }],
        places: &NOTHING,
    }
}

fn present(_: &Digest) -> Image {
    Image {
        presence: ImagePresence::Complete,
        size: ImageSize::default(),
    }
}

/// A ledger on a node of a size.
struct Ledger {
    node: Node<'static>,
    desired: Desired,
    version: u64,
}

impl Ledger {
    fn of(disk: Bytes) -> Self {
        Self {
            node: node(disk),
            desired: Desired::default(),
            version: 0,
        }
    }

    fn say(&mut self, action: Action) -> Result<Admitted, Refusal> {
        let statement = verified(self.version + 1, action);
        let admitted = admit(statement, &self.node, &self.desired, present)?;
        self.desired.apply(admitted.verified());
        self.version += 1;
        Ok(admitted)
    }

    fn refused(&mut self, action: Action) -> String {
        self.say(action).expect_err("a refusal").message
    }
}

fn name(text: &str) -> Name {
    text.parse().expect("a valid name")
}

fn deploy(workloads: &str, more: &str) -> Action {
    let json = format!(r#"{{"workloads":{{{workloads}}}{more}}}"#);
    Action::Deploy(serde_json::from_str(&json).expect(&json))
}

fn data(size: &str) -> String {
    format!(r#""data":{{"volume":{{"size":"{size}"}}}}"#)
}

fn db(mounts: &str) -> String {
    let flist = Digest([1; 32]);
    format!(
        r#""db":{{"machine":{{"image":{{"flist":"{flist}"}},"disk":"64Mi","mounts":[{mounts}]}}}}"#
    )
}

fn with_db(size: &str) -> Action {
    let mount = r#"{"volume":"data","path":"/data"}"#;
    deploy(&format!("{},{}", data(size), db(mount)), "")
}

fn snapshot(snapshot: &str) -> Action {
    Action::Snapshot {
        volume: name("data"),
        snapshot: name(snapshot),
    }
}

#[test]
fn a_volume_grows_and_does_not_shrink() {
    let mut ledger = Ledger::of(Bytes::gib(10));
    ledger.say(with_db("1Gi")).expect("made");
    ledger.say(with_db("2Gi")).expect("grown");
    assert!(ledger.refused(with_db("1Gi")).contains("cannot shrink"));
    assert!(ledger.refused(with_db("20Gi")).contains("disk"));
}

#[test]
fn a_volume_goes_only_where_its_content_is_named() {
    let mut ledger = Ledger::of(Bytes::gib(10));
    ledger.say(with_db("1Gi")).expect("made");
    let alone = |more: &str| deploy(&db(""), more);
    assert!(ledger.refused(alone("")).contains("leaves out"));
    let said = ledger.refused(alone(r#","remove":["data"]"#));
    assert!(said.contains("--destroy data"), "{said}");
    // Its machine may go without it.
    ledger
        .say(deploy(&data("1Gi"), r#","remove":["db"]"#))
        .expect("the volume stays");
    assert!(ledger.refused(Action::Delete).contains("--with-volumes"));
    let destroy = |volumes: &[&str]| Action::Destroy {
        volumes: volumes.iter().map(|n| name(n)).collect(),
    };
    assert!(
        ledger
            .refused(destroy(&["other"]))
            .contains("the volumes data")
    );
    ledger
        .say(deploy(&db(""), r#","remove":["data"],"destroy":["data"]"#))
        .expect("destroyed");
    assert!(ledger.refused(destroy(&["data"])).contains("no volumes"));
    ledger.say(Action::Delete).expect("nothing is lost");
    ledger.say(with_db("1Gi")).expect("made anew");
    ledger.say(destroy(&["data"])).expect("named");
}

#[test]
fn a_workload_keeps_its_kind() {
    let mut ledger = Ledger::of(Bytes::gib(10));
    ledger.say(deploy(&data("1Gi"), "")).expect("made");
    let machine = db("").replace("db", "data");
    assert!(
        ledger
            .refused(deploy(&machine, ""))
            .contains("another kind")
    );
}

#[test]
fn snapshots_are_promised_as_much_as_their_volume_and_have_names() {
    let mut ledger = Ledger::of(Bytes::mib(3 * 1024 + 200));
    ledger.say(with_db("1Gi")).expect("made");
    assert!(ledger.refused(with_db("4Gi")).contains("disk"));
    ledger.say(snapshot("a")).expect("taken");
    assert!(ledger.refused(snapshot("a")).contains("already"));
    ledger.say(snapshot("b")).expect("taken");
    assert!(ledger.refused(snapshot("c")).contains("promised"));
    // Growth is for each of them.
    assert!(ledger.refused(with_db("2Gi")).contains("disk"));
    let drop = |snapshot: &str| Action::DropSnapshot {
        volume: name("data"),
        snapshot: name(snapshot),
    };
    assert!(ledger.refused(drop("c")).contains("no snapshot"));
    ledger.say(drop("a")).expect("deleted");
    ledger.say(snapshot("c")).expect("there is room");
}

#[test]
fn a_volume_is_restored_while_nobody_has_it() {
    let mut ledger = Ledger::of(Bytes::gib(10));
    ledger.say(with_db("1Gi")).expect("made");
    ledger.say(snapshot("a")).expect("taken");
    let restore = || Action::Restore {
        volume: name("data"),
        snapshot: name("a"),
    };
    assert!(ledger.refused(restore()).contains("sifr stop shop"));
    ledger.say(Action::Stop).expect("stopped");
    ledger.say(restore()).expect("restored");
    assert!(
        ledger
            .refused(Action::Restore {
                volume: name("data"),
                snapshot: name("x")
            })
            .contains("no snapshot")
    );
}

#[test]
fn a_copy_is_of_what_there_is_and_as_large_and_need_not_be_said_again() {
    let mut ledger = Ledger::of(Bytes::gib(10));
    ledger.say(deploy(&data("1Gi"), "")).expect("made");
    ledger.say(snapshot("a")).expect("taken");
    let copy = |size: &str, from: &str| {
        let copy = format!(r#""copy":{{"volume":{{"size":"{size}","from":{{{from}}}}}}}"#);
        deploy(&format!("{},{copy}", data("1Gi")), "")
    };
    for (action, says) in [
        (
            copy("1Gi", r#""volume":"x""#),
            "no volume of this deployment",
        ),
        (
            copy("1Gi", r#""volume":"data","snapshot":"b""#),
            "no snapshot",
        ),
        (copy("512Mi", r#""volume":"data""#), "as large at least"),
    ] {
        let said = ledger.refused(action);
        assert!(said.contains(says), "{said}");
    }
    ledger
        .say(copy("2Gi", r#""volume":"data","snapshot":"a""#))
        .expect("copied");
    let drop = Action::DropSnapshot {
        volume: name("data"),
        snapshot: name("a"),
    };
    ledger.say(drop).expect("deleted");
    ledger
        .say(copy("2Gi", r#""volume":"data","snapshot":"a""#))
        .expect("it is there already");
}

#[test]
fn a_node_in_memory_has_volumes_and_no_copies_of_them() {
    let mut ledger = Ledger::of(Bytes::gib(10));
    ledger.node.durable = false;
    let volume = deploy(&data("1Gi"), r#","accept_volatile":true"#);
    ledger.say(volume).expect("made");
    assert!(ledger.refused(snapshot("a")).contains("from memory"));
}

proptest! {
    /// Whatever is said in whatever order: all that is promised fits, and nothing of a volume goes by itself.
    #[test]
    fn what_is_promised_never_exceeds_the_disk_and_no_volume_goes_unnamed(
        deeds in prop::collection::vec((0u8..7, 1u64..6, 0u8..3), 1..40),
    ) {
        let mut ledger = Ledger::of(Bytes::mib(1024));
        for (kind, size, which) in deeds {
            let which = ["a", "b", "c"][usize::from(which)];
            let size = format!("{}Mi", 64 * size);
            let before: BTreeSet<Name> = volumes(&ledger);
            let (action, may_go) = match kind {
                0 | 1 => (with_db(&size), false),
                2 => (snapshot(which), false),
                3 => (Action::DropSnapshot { volume: name("data"), snapshot: name(which) }, false),
                4 => (deploy(&db(""), r#","remove":["data"]"#), false),
                5 => (Action::Delete, false),
                _ => (deploy(&db(""), r#","remove":["data"],"destroy":["data"]"#), true),
            };
            let _ = ledger.say(action);
            let shown = crate::admission::capacity(&ledger.desired, ledger.node.capacity, |_| ImageSize::default());
            prop_assert!(shown.disk_used <= shown.disk, "{:?}", shown);
            prop_assert!(may_go || before.is_subset(&volumes(&ledger)));
        }
    }
}

fn volumes(ledger: &Ledger) -> BTreeSet<Name> {
    let volumes = ledger.desired.volumes();
    volumes.map(|(_, of)| of.workload.clone()).collect()
}
