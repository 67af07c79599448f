//! The balloon against a driver that follows the rules, and one that does not.

use proptest::prelude::*;
use vm_memory::Bytes;

use super::*;
use crate::virtio::testing::{DATA, Driver, hostile};

const STATISTICS_QUEUE: usize = 2;
const REPORTS_QUEUE: usize = 3;
const MEMORY_MIB: u64 = 128;
const ALL: u64 = STATISTICS | REPORTING;

fn balloon() -> Balloon {
    let mut balloon = Balloon::new(&Spec::reporting(), MEMORY_MIB).expect("a good target");
    balloon.activate(ALL);
    balloon
}

fn driver() -> Driver {
    Driver::new(&QUEUES)
}

/// Names pages to a queue.
fn name(driver: &mut Driver, queue: usize, pfns: &[u32]) {
    let bytes: Vec<u8> = pfns.iter().flat_map(|pfn| pfn.to_le_bytes()).collect();
    driver.write(DATA, &bytes);
    let length = u32::try_from(bytes.len()).expect("short");
    driver.offer(queue, &[(DATA, length)], &[]);
}

#[test]
fn pages_in_the_balloon_are_gone_and_their_neighbours_stay() {
    let (mut driver, mut balloon) = (driver(), balloon());
    driver.write(0x20_0000, &[7; 5 * 4096]);
    name(&mut driver, INFLATE, &[0x203, 0x201, 0x201]);
    assert_eq!(driver.turn(&mut balloon).expect("served"), Turn::Done);
    let first = [0x200, 0x201, 0x202, 0x203, 0x204].map(|page| driver.read(page * 4096, 1)[0]);
    assert_eq!(first, [7, 0, 7, 0, 7]);
    assert_eq!(balloon.standing().returned_bytes, 2 * 4096);
    assert_eq!(driver.used(INFLATE).len(), 1);
    name(&mut driver, DEFLATE, &[0x201]);
    assert_eq!(driver.turn(&mut balloon).expect("served"), Turn::Done);
    assert_eq!(driver.used(DEFLATE).len(), 1);
}

#[test]
fn a_page_outside_memory_or_too_many_at_once_stop_the_device() {
    for pfns in [
        vec![0x1_0000],
        vec![0x200, u32::MAX],
        vec![0x200; PFNS_MAX + 1],
    ] {
        let (mut driver, mut balloon) = (driver(), balloon());
        name(&mut driver, INFLATE, &pfns);
        let turn = driver.turn(&mut balloon);
        assert!(matches!(turn, Err(Violation::Request(_))), "{turn:?}");
    }
}

#[test]
fn reported_ranges_are_gone_in_whole_pages() {
    let (mut driver, mut balloon) = (driver(), balloon());
    driver.write(0x20_0000, &[7; 8 * 4096]);
    driver.offer(
        REPORTS_QUEUE,
        &[],
        &[(0x20_0001, 2 * 4096), (0x20_4000, 4096)],
    );
    assert_eq!(driver.turn(&mut balloon).expect("served"), Turn::Done);
    let first: Vec<u8> = (0x200..0x208)
        .map(|page| driver.read(page * 4096, 1)[0])
        .collect();
    assert_eq!(first, [7, 0, 7, 7, 0, 7, 7, 7]);
    assert_eq!(driver.used(REPORTS_QUEUE).len(), 1);
}

#[test]
fn more_requests_than_a_turn_takes_are_left_to_the_next() {
    let (mut driver, mut balloon) = (driver(), balloon());
    for _ in 0..REQUESTS_PER_TURN + 1 {
        driver.offer(REPORTS_QUEUE, &[], &[(0x20_0000, 4096)]);
    }
    assert_eq!(driver.turn(&mut balloon).expect("served"), Turn::Again);
    assert_eq!(driver.used(REPORTS_QUEUE).len(), REQUESTS_PER_TURN);
    assert_eq!(driver.turn(&mut balloon).expect("served"), Turn::Done);
    assert_eq!(driver.used(REPORTS_QUEUE).len(), 1);
}

/// What Linux sends: tag and value, packed.
fn statistics(driver: &mut Driver, items: &[(u16, u64)]) -> u16 {
    let mut bytes = Vec::new();
    for (tag, value) in items {
        bytes.extend(tag.to_le_bytes());
        bytes.extend(value.to_le_bytes());
    }
    driver.write(DATA, &bytes);
    let length = u32::try_from(bytes.len()).expect("short");
    driver.offer(STATISTICS_QUEUE, &[(DATA, length)], &[])
}

#[test]
fn statistics_are_kept_and_their_buffer_goes_back_only_when_somebody_asks() {
    let (mut driver, mut balloon) = (driver(), balloon());
    let head = statistics(&mut driver, &[(4, 1000), (5, 2000), (77, 1), (6, 1500)]);
    assert_eq!(driver.turn(&mut balloon).expect("served"), Turn::Done);
    assert!(driver.used(STATISTICS_QUEUE).is_empty());
    let now = balloon.standing().guest;
    assert_eq!((now.free_bytes, now.total_bytes), (Some(1000), Some(2000)));
    assert_eq!((now.available_bytes, now.cache_bytes), (Some(1500), None));
    assert_eq!(driver.turn(&mut balloon).expect("served"), Turn::Done);
    assert_eq!(driver.used(STATISTICS_QUEUE), [(head, 0)]);
    statistics(&mut driver, &[(4, 900)]);
    assert_eq!(driver.turn(&mut balloon).expect("served"), Turn::Done);
    assert!(driver.used(STATISTICS_QUEUE).is_empty());
    assert_eq!(balloon.standing().guest.free_bytes, Some(900));
}

#[test]
fn of_two_buffers_for_statistics_the_older_goes_back() {
    let (mut driver, mut balloon) = (driver(), balloon());
    let first = statistics(&mut driver, &[(4, 1)]);
    statistics(&mut driver, &[(4, 2)]);
    assert_eq!(driver.turn(&mut balloon).expect("served"), Turn::Done);
    assert_eq!(driver.used(STATISTICS_QUEUE), [(first, 0)]);
}

#[test]
fn the_driver_reads_the_target_and_writes_what_it_has() {
    let mut balloon = balloon();
    balloon.keep(125).expect("a good target");
    assert_eq!(balloon.config()[..4], 768u32.to_le_bytes());
    balloon.write_config(4, &5u32.to_le_bytes());
    balloon.write_config(0, &9u32.to_le_bytes());
    balloon.write_config(4, &[1]);
    balloon.write_config(usize::MAX, &9u32.to_le_bytes());
    let standing = balloon.standing();
    assert_eq!(
        (standing.target_bytes, standing.actual_bytes),
        (3 << 20, 5 * 4096)
    );
    balloon.reset();
    assert_eq!(balloon.config(), [768u32.to_le_bytes(), [0; 4]].concat());
    for mib in [0, 31, 129, u64::MAX] {
        assert!(balloon.keep(mib).is_err());
    }
    assert_eq!(balloon.standing().target_bytes, 3 << 20);
}

#[test]
fn queues_are_numbered_as_features_were_agreed() {
    let mut balloon = Balloon::new(&Spec::reporting(), MEMORY_MIB).expect("a good target");
    for (features, statistics, reports) in [
        (0, None, None),
        (STATISTICS, Some(2), None),
        (REPORTING, None, Some(2)),
        (ALL, Some(2), Some(3)),
    ] {
        balloon.activate(features);
        let places = (balloon.statistics_queue, balloon.reports_queue);
        assert_eq!(places, (statistics, reports));
    }
    let none = Spec {
        target_mib: None,
        deflate_on_oom: false,
        free_page_reporting: false,
    };
    let balloon = Balloon::new(&none, MEMORY_MIB).expect("a good target");
    assert_eq!(
        (balloon.queues().len(), balloon.features()),
        (3, STATISTICS)
    );
}

#[test]
fn a_balloon_in_another_machine_goes_on_with_its_target_its_pages_and_its_buffer() {
    let (mut driver, mut before) = (driver(), balloon());
    before.keep(100).expect("a good target");
    before.write_config(4, &77u32.to_le_bytes());
    let head = statistics(&mut driver, &[(4, 1000)]);
    let _ = driver.turn(&mut before).expect("served");
    assert_eq!(before.held, Some(head));
    driver.quiesce(&mut before).expect("rests");
    assert_eq!(driver.rings()[STATISTICS_QUEUE].waiting(), 1);
    let state = before.save();

    let mut after = balloon();
    after.restore(&state).expect("its own state");
    assert_eq!((after.config(), after.save()), (before.config(), state));
    assert_eq!(after.standing().actual_bytes, 77 * PAGE);
    let _ = driver.turn(&mut after).expect("served");
    assert_eq!(after.held, Some(head));
    assert_eq!(after.standing().guest.free_bytes, Some(1000));

    // What the specification says counts more.
    let spec = Spec {
        target_mib: Some(64),
        ..Spec::reporting()
    };
    let mut told = Balloon::new(&spec, MEMORY_MIB).expect("a good target");
    told.activate(ALL);
    told.restore(&before.save()).expect("its own state");
    assert_eq!(told.standing().target_bytes, 64 << 20);
    assert_eq!(told.standing().actual_bytes, 77 * PAGE);
}

#[test]
fn a_state_that_no_balloon_had_is_refused() {
    for pages in [u32::MAX, 128 * 256, 97 * 256] {
        let state = serde_json::json!({ "target_pages": pages, "actual_pages": 0 });
        assert_eq!(balloon().restore(&state), Err(Foreign));
    }
    for state in [Value::Null, serde_json::json!({ "target_pages": 0 })] {
        assert_eq!(balloon().restore(&state), Err(Foreign));
    }
}

#[test]
fn page_numbers_become_ranges() {
    let bytes: Vec<u8> = [5u32, 3, 4, 9, 4, u32::MAX]
        .iter()
        .flat_map(|pfn| pfn.to_le_bytes())
        .chain([1, 2, 3])
        .collect();
    let end = (u64::from(u32::MAX) + 1) * 4096;
    assert_eq!(
        ranges(&bytes),
        [0x3000..0x6000, 0x9000..0xa000, end - 4096..end]
    );
}

proptest! {
    #[test]
    fn no_descriptors_make_it_panic_or_touch_what_is_not_named(
        table in hostile::descriptors(),
        heads in hostile::heads(),
        queue in 0usize..4,
    ) {
        let (mut driver, mut balloon) = (driver(), balloon());
        for (index, (address, length, flags, next)) in (0u16..).zip(&table) {
            driver.describe(queue, index, *address, *length, *flags, *next);
        }
        for head in heads {
            driver.offer_head(queue, head);
        }
        driver.ram.write_obj(7u8, GuestAddress(0x3f_f000)).expect("inside");
        let named = |&(address, length, ..): &hostile::Descriptor| {
            address <= 0x3f_f000 && address.saturating_add(length.into()) > 0x3f_f000
        };
        let indirect = |descriptor: &hostile::Descriptor| descriptor.2 & 4 != 0;
        let untouched = queue != INFLATE && !table.iter().any(|d| named(d) || indirect(d));
        for _ in 0..4 {
            if driver.turn(&mut balloon).is_err() {
                break;
            }
        }
        prop_assert!(!untouched || driver.read(0x3f_f000, 1) == [7]);
    }
}
