//! Deployments on nodes with several pools.

use types::PublicKey;
use types::deployment::Action;
use types::node::{Capacity, DiskClass};

use super::*;
use crate::admission::{Admitted, Image, ImagePresence, admit};
use crate::desired::tests::verified;

fn shelf(pool: &str, class: DiskClass, mib: u64) -> Shelf {
    Shelf {
        pool: pool.to_owned(),
        class,
        capacity: Bytes::mib(mib),
        room: Bytes::mib(mib),
        failing: false,
    }
}

/// A node, its ledger, and where things came to lie.
struct Held {
    pools: Vec<Shelf>,
    desired: Desired,
    places: BTreeMap<VmId, Place>,
    version: u64,
    image: ImageSize,
}

impl Held {
    fn of(pools: Vec<Shelf>) -> Self {
        Self {
            pools,
            desired: Desired::default(),
            places: BTreeMap::new(),
            version: 0,
            image: ImageSize::default(),
        }
    }

    fn say(&mut self, workloads: &str, more: &str) -> Result<Admitted, Refusal> {
        let workloads =
            workloads.replace("IMAGE", &format!(r#"{{"flist":"{}"}}"#, Digest([1; 32])));
        let json = format!(r#"{{"workloads":{{{workloads}}}{more}}}"#);
        let action = Action::Deploy(serde_json::from_str(&json).expect(&json));
        let node = Node {
            key: PublicKey([9; 32]),
            owner: Some(PublicKey([1; 32])),
            durable: true,
            capacity: Capacity {
                cpus: 64,
                memory: Bytes::gib(64),
                ..Capacity::default()
            },
            pools: self.pools.clone(),
            places: &self.places,
        };
        let size = self.image;
        let admitted = admit(
            verified(self.version + 1, action),
            &node,
            &self.desired,
            |_| Image {
                presence: ImagePresence::Complete,
                size,
            },
        )?;
        self.desired.apply(admitted.verified());
        for (id, at) in admitted.placement() {
            self.places.insert(id.clone(), Place::Here(*at));
        }
        self.version += 1;
        Ok(admitted)
    }

    /// The pools of these workloads.
    fn at(&self, names: &[&str]) -> Vec<Place> {
        let key = verified(1, Action::Stop).key();
        let id = |name: &&str| VmId::new(&key.signer, &key.name, &name.parse().expect("a name"));
        names.iter().map(|name| self.places[&id(name)]).collect()
    }
}

fn volume(name: &str, mib: u64, more: &str) -> String {
    format!(r#""{name}":{{"volume":{{"size":"{mib}Mi"{more}}}}}"#)
}

use DiskClass::{Hdd, Nvme};
use Place::Here;

#[test]
fn what_does_not_fit_the_fast_pool_goes_to_another_and_room_is_that_of_all() {
    let mut held = Held::of(vec![shelf("a", Nvme, 1000), shelf("b", Hdd, 5000)]);
    let two = [volume("one", 900, ""), volume("two", 4000, "")].join(",");
    held.say(&two, "").expect("each has its pool");
    assert_eq!(held.at(&["one", "two"]), [Here(0), Here(1)]);
    // 1100 are free in all, and no pool has 1050 of them.
    let three = format!("{two},{}", volume("three", 1050, ""));
    let refusal = held.say(&three, "").expect_err("no pool has room");
    assert_eq!(refusal.code, RefusalCode::OverCapacity);
    assert!(
        refusal
            .message
            .contains("the disk of three: it needs 1050Mi on one pool"),
        "{refusal:?}"
    );
    let three = format!("{two},{}", volume("three", 950, ""));
    held.say(&three, "").expect("it fits");
    assert_eq!(
        held.at(&["one", "two", "three"]),
        [Here(0), Here(1), Here(1)]
    );
}

#[test]
fn a_volume_grows_where_it_lies_or_not_at_all() {
    let mut held = Held::of(vec![shelf("a", Nvme, 1000), shelf("b", Hdd, 5000)]);
    held.say(&volume("one", 900, ""), "").expect("room");
    held.say(&volume("one", 1000, ""), "")
        .expect("as much as there is");
    let refusal = held.say(&volume("one", 1001, ""), "").expect_err("no room");
    assert!(refusal.message.contains("the disk of one"), "{refusal:?}");
}

#[test]
fn a_class_is_kept_to_and_does_not_change() {
    let mut held = Held::of(vec![shelf("a", Nvme, 1000), shelf("b", Hdd, 5000)]);
    let slow = volume("one", 100, r#","class":"hdd""#);
    held.say(&slow, "").expect("room");
    assert_eq!(held.at(&["one"]), [Here(1)]);
    let refusal = held
        .say(&volume("one", 100, ""), "")
        .expect_err("it lies there");
    assert_eq!(refusal.code, RefusalCode::Conflict);
    let ssd = format!("{slow},{}", volume("two", 100, r#","class":"ssd""#));
    let refusal = held.say(&ssd, "").expect_err("no such pool");
    assert!(refusal.message.contains("of class ssd"), "{refusal:?}");
}

#[test]
fn images_take_of_the_first_pool_and_layers_then_go_to_another() {
    let mut held = Held::of(vec![shelf("a", Nvme, 1000), shelf("b", Hdd, 5000)]);
    held.image.disk = Bytes::mib(900);
    let machine = r#""web":{"machine":{"image":IMAGE,"disk":"500Mi"}}"#;
    held.say(machine, "").expect("room");
    assert_eq!(held.at(&["web"]), [Here(1)]);
    held.image.disk = Bytes::mib(1001);
    let refusal = held.say(machine, "").expect_err("the image is too large");
    assert!(refusal.message.contains("images included"), "{refusal:?}");
}

#[test]
fn what_lies_on_a_disk_that_is_gone_is_neither_counted_nor_placed_again() {
    let mut held = Held::of(vec![shelf("a", Nvme, 1000), shelf("b", Hdd, 5000)]);
    let one = volume("one", 900, "");
    held.say(&one, "").expect("room");
    let id = held.places.keys().next().expect("one").clone();
    held.places.insert(id.clone(), Place::Away);
    held.pools.remove(0);
    let two = format!("{one},{}", volume("two", 4500, ""));
    let admitted = held.say(&two, "").expect("room");
    assert!(!admitted.placement().contains_key(&id));
    assert_eq!(held.at(&["two"]), [Here(0)]);
}
