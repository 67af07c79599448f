//! Which pool a writable layer or volume goes to.
//!
//! Owns: the rule. What lies somewhere stays there. The fastest class that has room comes first, among pools of one class
//! the one with most room; who asks for a class gets that or nothing. The largest is placed first. A pool whose disk fails comes
//! last of all: better there, and said, than nowhere.
//! Refuses: promising more of a pool than it has, and to split what is one file over two.
//!
//! The same question has the same answer: nothing but the arguments counts, and not their order.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use types::node::DiskClass;
use types::{Bytes, VmId};

/// A pool, as one that is asked for room.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shelf {
    /// Its id: of two that are alike the lower one is taken.
    pub pool: String,
    pub class: DiskClass,
    /// All that deployments may have of it.
    pub capacity: Bytes,
    /// What of it is free just now and promised to nobody.
    pub room: Bytes,
    /// Its disk says that it fails: what is new goes elsewhere, where there is room.
    pub failing: bool,
}

/// Where something lies, or is to lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// On the pool at this place of the list.
    Here(usize),
    /// On a pool that is not there.
    Away,
    /// Not decided.
    Nowhere,
}

/// Something that is to have room.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    pub id: VmId,
    pub bytes: Bytes,
    pub class: Option<DiskClass>,
    pub place: Place,
    /// Of what it is a copy: it shares blocks with that, so that it lies beside it.
    pub beside: Option<VmId>,
}

/// What has no room.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Misfit {
    pub id: VmId,
    pub needs: Bytes,
    pub class: Option<DiskClass>,
    /// The most that a pool which it could lie on has for it; `None`: there is no such pool.
    pub most: Option<Bytes>,
}

impl std::fmt::Display for Misfit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            needs, class, most, ..
        } = self;
        let of = class.map_or(String::new(), |class| format!(" of class {class}"));
        let needs = needs.as_mib();
        match most {
            None => write!(
                f,
                "no pool of this node is{of}: ask for another class, or give it such a disk"
            ),
            Some(most) => write!(
                f,
                "it needs {needs}Mi on one pool, and the one{of} with most room has {}Mi: make it smaller, delete another, or give the node a disk",
                most.as_mib()
            ),
        }
    }
}

/// What is left of each pool, below zero where more lies on it than it has.
pub type Left = Vec<i128>;

fn left_as_bytes(left: i128) -> Bytes {
    Bytes(u64::try_from(left.max(0)).unwrap_or(u64::MAX))
}

/// Gives each item its pool and takes its bytes from there. What is away has none. The first that has no room ends it.
pub fn place(
    shelves: &[Shelf],
    left: &mut Left,
    items: &[Item],
) -> Result<BTreeMap<VmId, usize>, Misfit> {
    let mut placed = BTreeMap::new();
    let mut order: Vec<&Item> = items.iter().collect();
    order.sort_by_key(|item| {
        (
            rank(item),
            item.beside.is_some(),
            Reverse(item.bytes),
            &item.id,
        )
    });
    for item in order {
        let at = match item.place {
            Place::Away => continue,
            Place::Here(at) => at,
            Place::Nowhere => match &item.beside {
                // Until its source has a place it waits.
                Some(source) => match lies(source, items, &placed) {
                    Some(at) => at,
                    None => continue,
                },
                None => choose(shelves, left, item)?,
            },
        };
        if left[at] < i128::from(item.bytes.0) {
            return Err(misfit(item, Some(left_as_bytes(left[at]))));
        }
        left[at] -= i128::from(item.bytes.0);
        placed.insert(item.id.clone(), at);
    }
    Ok(placed)
}

/// What lies somewhere takes its room before others choose.
fn rank(item: &Item) -> u8 {
    match item.place {
        Place::Here(_) => 0,
        Place::Away => 1,
        Place::Nowhere => 2,
    }
}

fn lies(id: &VmId, items: &[Item], placed: &BTreeMap<VmId, usize>) -> Option<usize> {
    placed.get(id).copied().or_else(|| {
        let item = items.iter().find(|item| item.id == *id)?;
        match item.place {
            Place::Here(at) => Some(at),
            Place::Away | Place::Nowhere => None,
        }
    })
}

fn misfit(item: &Item, most: Option<Bytes>) -> Misfit {
    Misfit {
        id: item.id.clone(),
        needs: item.bytes,
        class: item.class,
        most,
    }
}

fn choose(shelves: &[Shelf], left: &Left, item: &Item) -> Result<usize, Misfit> {
    let fits = |at: &usize| item.class.is_none_or(|class| class == shelves[*at].class);
    let possible = || (0..shelves.len()).filter(fits);
    let roomy = possible().filter(|at| left[*at] >= i128::from(item.bytes.0));
    let best = roomy.min_by_key(|at| {
        let shelf = &shelves[*at];
        (shelf.failing, shelf.class, Reverse(left[*at]), &shelf.pool)
    });
    best.ok_or_else(|| {
        let most = possible().map(|at| left[at]).max();
        misfit(item, most.map(left_as_bytes))
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn id(n: usize) -> VmId {
        format!("vm{n}-shop-01010101").parse().expect("an id")
    }

    fn shelf(n: usize, class: DiskClass, room: u64) -> Shelf {
        Shelf {
            pool: format!("{n:02}"),
            class,
            capacity: Bytes(room),
            room: Bytes(room),
            failing: false,
        }
    }

    fn item(n: usize, bytes: u64) -> Item {
        Item {
            id: id(n),
            bytes: Bytes(bytes),
            class: None,
            place: Place::Nowhere,
            beside: None,
        }
    }

    fn left(shelves: &[Shelf]) -> Left {
        shelves.iter().map(|s| i128::from(s.room.0)).collect()
    }

    fn placed(shelves: &[Shelf], items: &[Item]) -> Result<BTreeMap<VmId, usize>, Misfit> {
        place(shelves, &mut left(shelves), items)
    }

    use DiskClass::{Hdd, Nvme, Ssd};

    #[test]
    fn the_fastest_class_with_room_comes_first_then_the_emptiest_pool() {
        let shelves = [
            shelf(0, Hdd, 1000),
            shelf(1, Ssd, 200),
            shelf(2, Ssd, 300),
            shelf(3, Nvme, 50),
        ];
        let place = |bytes| placed(&shelves, &[item(1, bytes)]).map(|p| p[&id(1)]);
        assert_eq!(place(50), Ok(3));
        assert_eq!(place(60), Ok(2));
        assert_eq!(place(500), Ok(0));
        let none = place(2000).expect_err("no room");
        assert_eq!(none.most, Some(Bytes(1000)));
    }

    #[test]
    fn a_pool_whose_disk_fails_is_the_last_resort_and_what_lies_there_stays() {
        let mut shelves = [shelf(0, Nvme, 1000), shelf(1, Hdd, 100), shelf(2, Nvme, 50)];
        shelves[0].failing = true;
        let place = |item: Item| placed(&shelves, &[item]).map(|p| p[&id(1)]);
        assert_eq!(place(item(1, 40)), Ok(2));
        assert_eq!(place(item(1, 60)), Ok(1));
        assert_eq!(place(item(1, 500)), Ok(0), "no other has the room");
        let held = Item {
            place: Place::Here(0),
            ..item(1, 40)
        };
        assert_eq!(place(held), Ok(0));
        let asks = Item {
            class: Some(Nvme),
            ..item(1, 60)
        };
        assert_eq!(place(asks), Ok(0), "no other of the class has it");
    }

    #[test]
    fn who_asks_for_a_class_gets_that_or_nothing() {
        let shelves = [shelf(0, Ssd, 100), shelf(1, Hdd, 1000)];
        let asks = |class, bytes| {
            let item = Item {
                class: Some(class),
                ..item(1, bytes)
            };
            placed(&shelves, &[item]).map(|p| p[&id(1)])
        };
        assert_eq!(asks(Hdd, 50), Ok(1));
        let full = asks(Ssd, 200).expect_err("no room");
        assert_eq!(full.most, Some(Bytes(100)));
        let none = asks(Nvme, 1).expect_err("no pool");
        assert!(
            none.to_string()
                .contains("no pool of this node is of class nvme"),
            "{none}"
        );
    }

    #[test]
    fn what_lies_somewhere_stays_and_a_copy_lies_beside_its_source() {
        let shelves = [shelf(0, Nvme, 100), shelf(1, Hdd, 1000)];
        let held = Item {
            place: Place::Here(1),
            ..item(1, 400)
        };
        let copy = Item {
            beside: Some(id(1)),
            ..item(2, 50)
        };
        let away = Item {
            place: Place::Away,
            ..item(3, 5000)
        };
        let waits = Item {
            beside: Some(id(3)),
            ..item(4, 5000)
        };
        let found = placed(&shelves, &[copy, away, waits, held]).expect("room");
        assert_eq!(found, [(id(1), 1), (id(2), 1)].into());
    }

    type Drawn = (u64, usize, usize, bool);

    fn class(n: usize) -> DiskClass {
        [Nvme, Ssd, Hdd][n % 3]
    }

    fn items(drawn: &[Drawn], shelves: usize) -> Vec<Item> {
        let one = |(n, (bytes, asked, at, lies)): (usize, &Drawn)| Item {
            class: (*asked < 3).then(|| class(*asked)),
            place: match (lies, at % (shelves + 1)) {
                (false, _) => Place::Nowhere,
                (true, at) if at == shelves => Place::Away,
                (true, at) => Place::Here(at),
            },
            ..item(n, *bytes)
        };
        drawn.iter().enumerate().map(one).collect()
    }

    proptest! {
        #[test]
        fn nothing_is_placed_beyond_room_and_what_is_placed_stays(
            rooms in prop::collection::vec((0..2000u64, 0..3usize), 1..5),
            drawn in prop::collection::vec((0..900u64, 0..6usize, any::<usize>(), any::<bool>()), 0..9),
            turn in any::<usize>(),
        ) {
            let shelves: Vec<_> = rooms.iter().enumerate().map(|(n, (room, c))| shelf(n, class(*c), *room)).collect();
            let items = items(&drawn, shelves.len());
            let answer = placed(&shelves, &items);
            // The order of the list does not count.
            let mut turned = items.clone();
            turned.rotate_left(if items.is_empty() { 0 } else { turn % items.len() });
            prop_assert_eq!(&placed(&shelves, &turned), &answer);
            let Ok(answer) = answer else { return Ok(()) };
            let mut used = vec![0; shelves.len()];
            for item in &items {
                match (item.place, answer.get(&item.id)) {
                    (Place::Away, at) => prop_assert_eq!(at, None),
                    (Place::Here(was), at) => prop_assert_eq!(at, Some(&was)),
                    (Place::Nowhere, at) => {
                        let at = *at.expect("placed");
                        prop_assert!(item.class.is_none_or(|class| class == shelves[at].class));
                    }
                }
                if let Some(at) = answer.get(&item.id) {
                    used[*at] += item.bytes.0;
                }
            }
            for (shelf, used) in shelves.iter().zip(used) {
                prop_assert!(used <= shelf.room.0, "{} of {:?}", used, shelf);
            }
            // Asked again, with what it said, it says the same.
            let again: Vec<_> = items.iter().map(|item| Item {
                place: answer.get(&item.id).map_or(item.place, |at| Place::Here(*at)),
                ..item.clone()
            }).collect();
            prop_assert_eq!(placed(&shelves, &again), Ok(answer));
        }
    }
}
