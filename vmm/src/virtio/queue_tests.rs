//! What holds for every ring and every chain, whatever their driver does.
//!
//! Owns: a second reading of VIRTIO 1.2 section 2.7, plain and slow, that rings and chains are compared with.
//! Refuses: devices. Each has properties of its own beside it.

use std::collections::VecDeque;

use proptest::prelude::*;

use super::chain::{Chain, DESCRIPTORS_MAX};
use super::testing::{DATA, Driver};

const SIZE: u16 = 16;
const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;
/// All of a [`Driver`]'s memory.
const MEMORY: u64 = 4 << 20;
/// Where tests put indirect tables.
const TABLE: u64 = DATA;

/// Where a ring's indices stand: mostly close to their wrap at 2^16.
fn index() -> impl Strategy<Value = u16> {
    prop_oneof![4 => 65_500u16..=u16::MAX, 1 => any::<u16>()]
}

#[derive(Debug, Clone, Copy)]
enum Step {
    /// The driver offers a chain that it has free.
    Offer,
    /// The device takes one.
    Take,
    /// It takes one and leaves it to the next time.
    PutBack,
    /// It answers the `n`th of those it holds.
    Answer(usize),
    /// It answers the first so many that it holds at once.
    Together(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => Just(Step::Offer),
        3 => Just(Step::Take),
        1 => Just(Step::PutBack),
        2 => (0..usize::from(SIZE)).prop_map(Step::Answer),
        1 => (0..=usize::from(SIZE)).prop_map(Step::Together),
    ];
    prop::collection::vec(step, 1..200)
}

/// Who has which chain, by the rules.
#[derive(Debug, Default)]
struct Model {
    free: VecDeque<u16>,
    offered: VecDeque<u16>,
    held: Vec<u16>,
    answered: Vec<(u16, u32)>,
}

type Parts = Vec<(u64, u32)>;

/// What a chain is, read as the specification says, or `None` where it breaks a rule.
fn read(driver: &Driver, head: u16) -> Option<(Parts, Parts)> {
    let (mut readable, mut writable) = (Parts::new(), Parts::new());
    let (mut table, mut entries, mut indirect) = (0, u64::from(SIZE), false);
    let (mut at, mut steps, mut bytes) = (u64::from(head), 0, 0);
    let (mut count, mut writing) = (0, false);
    loop {
        // No table has a chain longer than itself, so that a loop ends.
        if at >= entries || steps == entries {
            return None;
        }
        let place = u64::checked_add(table, at * 16)?;
        if place.checked_add(16)? > MEMORY {
            return None;
        }
        let word = |bytes: &[u8]| bytes.iter().rev().fold(0, |n, b| n << 8 | u64::from(*b));
        let entry = driver.read(place, 16);
        let (address, length) = (word(&entry[..8]), word(&entry[8..12]));
        let (flags, next) = (
            u16::try_from(word(&entry[12..14])).ok()?,
            word(&entry[14..]),
        );
        if flags & INDIRECT != 0 {
            if indirect || length % 16 != 0 || length / 16 > u64::from(u16::MAX) {
                return None;
            }
            // A table takes the place of the descriptor that names it and of what would follow.
            (table, entries, indirect, at, steps) = (address, length / 16, true, 0, 0);
            continue;
        }
        bytes += length;
        let inside = address.checked_add(length).is_some_and(|end| end <= MEMORY);
        // What has no bytes is nowhere, and is left out.
        if length > 0 && !inside || bytes > u64::from(u32::MAX) {
            return None;
        }
        let part = (length > 0).then_some((address, u32::try_from(length).ok()?));
        writing |= flags & WRITE != 0;
        match (flags & WRITE != 0, writing) {
            (true, _) => writable.extend(part),
            (false, false) => readable.extend(part),
            (false, true) => return None,
        }
        count += 1;
        if count > DESCRIPTORS_MAX {
            return None;
        }
        if flags & NEXT == 0 {
            return Some((readable, writable));
        }
        (at, steps) = (next, steps + 1);
    }
}

fn parts(chain: &Chain) -> (Parts, Parts) {
    let list = |segments: &super::chain::Segments| {
        let part = |s: &super::chain::Segment| (s.address.0, s.length);
        segments.iter().map(part).collect()
    };
    (list(&chain.readable), list(&chain.writable))
}

/// A descriptor of a table: most of them lead on inside it.
fn descriptor(entries: u16) -> impl Strategy<Value = (u64, u32, u16, u16)> {
    let address = prop_oneof![
        8 => DATA..MEMORY,
        1 => MEMORY - 64..MEMORY + 64,
        1 => any::<u64>(),
    ];
    let length = prop_oneof![6 => 0u32..5000, 2 => Just(16), 1 => any::<u32>()];
    let flags = prop_oneof![
        4 => Just(NEXT),
        3 => Just(NEXT | WRITE),
        1 => Just(WRITE),
        1 => 0u16..8,
    ];
    let next = prop_oneof![12 => 0..entries, 1 => any::<u16>()];
    (address, length, flags, next)
}

/// A table whose entries follow each other, readable parts first: rules kept, but for what is changed then.
fn in_order(count: u16, writable_from: u16) -> Vec<(u64, u32, u16, u16)> {
    let entry = |at: u16| {
        let way = if at >= writable_from { WRITE } else { 0 };
        let more = if at + 1 < count { NEXT } else { 0 };
        (DATA + u64::from(at) * 64, 64, way | more, at + 1)
    };
    (0..count).map(entry).collect()
}

fn table() -> impl Strategy<Value = Vec<(u64, u32, u16, u16)>> {
    let wild = prop::collection::vec(descriptor(SIZE), usize::from(SIZE));
    let changed = (0..=SIZE, 0..SIZE, descriptor(SIZE)).prop_map(|(from, at, entry)| {
        let mut table = in_order(SIZE, from);
        table[usize::from(at)] = entry;
        table
    });
    prop_oneof![
        wild,
        changed,
        (0..=SIZE).prop_map(|from| in_order(SIZE, from))
    ]
}

fn place(driver: &Driver, table: &[(u64, u32, u16, u16)]) {
    for (index, (address, length, flags, next)) in (0u16..).zip(table) {
        driver.describe(0, index, *address, *length, *flags, *next);
    }
}

/// Both readings of the chain at `head` are the same.
fn compare(driver: &mut Driver, head: u16) -> Result<(), TestCaseError> {
    let expected = read(driver, head);
    driver.offer_head(0, head);
    let found = driver.rings()[0].pop();
    match found {
        Ok(Some(chain)) => {
            prop_assert_eq!(chain.head, head);
            prop_assert_eq!(Some(parts(&chain)), expected);
        }
        Ok(None) => prop_assert!(false, "a chain was offered"),
        Err(error) => prop_assert!(expected.is_none(), "{error} for {expected:?}"),
    }
    Ok(())
}

proptest! {
    #[test]
    fn every_chain_is_given_once_and_in_order_wherever_the_indices_wrap(
        start in index(), steps in steps(),
    ) {
        let mut driver = Driver::new(&[SIZE]);
        driver.begin_at(0, start);
        place(&driver, &vec![(DATA, 64, WRITE, 0); usize::from(SIZE)]);
        let mut model = Model { free: (0..SIZE).collect(), ..Model::default() };
        for step in steps {
            match step {
                Step::Offer => if let Some(head) = model.free.pop_front() {
                    driver.offer_head(0, head);
                    model.offered.push_back(head);
                },
                Step::Take | Step::PutBack => {
                    let mut rings = driver.rings();
                    let chain = rings[0].pop().expect("rules kept");
                    prop_assert_eq!(chain.as_ref().map(|c| c.head), model.offered.front().copied());
                    match (step, chain) {
                        (Step::PutBack, Some(chain)) => rings[0].put_back(chain.readable.bytes()),
                        (_, Some(_)) => model.held.extend(model.offered.pop_front()),
                        (_, None) => {}
                    }
                }
                Step::Answer(n) => if !model.held.is_empty() {
                    let head = model.held.remove(n % model.held.len());
                    let written = u32::from(head) + 7;
                    driver.rings()[0].complete(head, written).expect("inside");
                    model.answered.push((head, written));
                },
                Step::Together(n) => {
                    let count = n.min(model.held.len());
                    let chains: Vec<_> = model.held.drain(..count).map(|h| (h, u32::from(h))).collect();
                    driver.rings()[0].complete_together(&chains).expect("inside");
                    model.answered.extend(chains);
                }
            }
            prop_assert_eq!(driver.rings()[0].waiting(), model.offered.len());
            let used = driver.used(0);
            prop_assert_eq!(&used, &model.answered);
            model.free.extend(used.iter().map(|(head, _)| *head));
            model.answered.clear();
        }
    }

    #[test]
    fn an_index_further_ahead_than_the_ring_is_long_stops_it(start in index(), ahead in any::<u16>()) {
        let mut driver = Driver::new(&[SIZE]);
        driver.begin_at(0, start);
        place(&driver, &in_order(SIZE, 0));
        driver.set_available(0, start.wrapping_add(ahead));
        let found = driver.rings()[0].pop();
        match ahead {
            0 => prop_assert!(matches!(found, Ok(None))),
            1..=SIZE => prop_assert!(matches!(found, Ok(Some(_)))),
            _ => prop_assert!(found.is_err()),
        }
    }

    #[test]
    fn a_driver_is_told_when_the_entry_that_it_named_is_used_and_not_before(
        start in index(), batches in prop::collection::vec((1..=SIZE, 0..2 * SIZE), 1..20),
    ) {
        let mut driver = Driver::new(&[SIZE]);
        driver.begin_at(0, start);
        driver.use_event_index(0);
        place(&driver, &vec![(DATA, 64, WRITE, 0); usize::from(SIZE)]);
        let mut now = start;
        for (count, ahead) in batches {
            // From a ring's length ago to as far ahead.
            let wanted = now.wrapping_add(ahead).wrapping_sub(SIZE);
            driver.want_event(0, wanted);
            for head in 0..count {
                driver.offer_head(0, head);
            }
            let mut rings = driver.rings();
            for _ in 0..count {
                let chain = rings[0].pop().expect("rules kept").expect("offered");
                rings[0].complete(chain.head, 0).expect("inside");
            }
            rings[0].notify().expect("inside");
            drop(rings);
            prop_assert_eq!(driver.interrupted(), (0..count).any(|n| now.wrapping_add(n) == wanted));
            driver.used(0);
            now = now.wrapping_add(count);
        }
    }

    #[test]
    fn a_chain_is_what_the_specification_makes_of_its_table_or_is_refused(
        table in table(), head in prop_oneof![12 => 0..SIZE, 1 => any::<u16>()],
    ) {
        let mut driver = Driver::new(&[SIZE]);
        place(&driver, &table);
        compare(&mut driver, head)?;
    }

    #[test]
    fn an_indirect_table_is_read_by_the_same_rules_and_not_inside_another(
        table in table(), direct in 0..4u16, length in prop_oneof![4 => Just(256u32), 2 => 0u32..300, 1 => any::<u32>()],
        address in prop_oneof![8 => Just(TABLE), 1 => MEMORY - 300..MEMORY, 1 => any::<u64>()],
    ) {
        let mut driver = Driver::new(&[SIZE]);
        // Plain readable parts, and behind them a table.
        let mut outer: Vec<_> = (0..direct).map(|at| (DATA + 0x1_0000, 8, NEXT, at + 1)).collect();
        outer.push((address, length, INDIRECT, 0));
        place(&driver, &outer);
        for (at, (address, length, flags, next)) in (0u64..).zip(&table) {
            let bytes = [&address.to_le_bytes()[..], &length.to_le_bytes(), &flags.to_le_bytes(), &next.to_le_bytes()];
            driver.write(TABLE + at * 16, &bytes.concat());
        }
        compare(&mut driver, 0)?;
    }
}

#[test]
fn a_piece_without_bytes_hides_none_of_those_behind_it() {
    let mut driver = Driver::new(&[SIZE]);
    driver.write(DATA, b"header");
    let readable = [(u64::MAX, 0), (DATA, 2), (DATA, 0), (DATA + 2, 4)];
    let writable = [(0, 0), (DATA + 64, 6)];
    driver.offer(0, &readable, &writable);
    let ram = driver.ram.clone();
    let chain = driver.rings()[0].pop().expect("rules kept");
    let (chain, mut copy) = (chain.expect("offered"), [0; 6]);
    assert_eq!(chain.readable.copy_to(&ram, &mut copy), 6);
    assert_eq!(&copy, b"header");
    assert_eq!(chain.writable.copy_from(&ram, b"answer"), 6);
    assert_eq!(driver.read(DATA + 64, 6), b"answer");
}

#[test]
fn a_chain_that_leads_into_itself_is_refused_from_wherever_it_begins() {
    for length in 1..=SIZE {
        for head in 0..length {
            let mut driver = Driver::new(&[SIZE]);
            for at in 0..length {
                driver.describe(0, at, DATA, 64, NEXT, (at + 1) % length);
            }
            driver.offer_head(0, head);
            assert!(driver.rings()[0].pop().is_err(), "{length} from {head}");
        }
    }
}

#[test]
fn a_table_of_the_longest_chain_is_taken_and_one_more_is_refused() {
    let most = u16::try_from(DESCRIPTORS_MAX).expect("a ring's size");
    for (count, fits) in [(most, true), (most + 1, false)] {
        let mut driver = Driver::new(&[SIZE]);
        for at in 0..count {
            let flags = if at + 1 < count { NEXT } else { 0 };
            let entry = [
                &DATA.to_le_bytes()[..],
                &64u32.to_le_bytes(),
                &flags.to_le_bytes(),
                &(at + 1).to_le_bytes(),
            ];
            driver.write(TABLE + u64::from(at) * 16, &entry.concat());
        }
        driver.describe(0, 0, TABLE, u32::from(count) * 16, INDIRECT, 0);
        driver.offer_head(0, 0);
        assert_eq!(driver.rings()[0].pop().is_ok(), fits, "{count}");
    }
}
