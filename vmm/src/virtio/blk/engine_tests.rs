//! Results judged, and requests in flight on real files. Where the machine has no io_uring, it says so.

use std::io::Read;
use std::os::unix::fs::{FileExt, MetadataExt};

use proptest::prelude::*;
use types::vm::{Disk as DiskSpec, Fd};
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
    VIRTIO_BLK_T_WRITE_ZEROES,
};

use super::super::tests::{file, request, request_on, status, with};
use super::super::{Blk, DEEP_TURNS, Way};
use super::*;
use crate::virtio::Device;
use crate::virtio::testing::{DATA, Driver};

fn data(bytes: u32) -> Segments {
    Segments::from_parts(&[(0x1000, bytes)])
}

#[test]
fn a_transfer_goes_on_where_a_short_one_ended_and_nothing_more_is_the_end_of_the_file() {
    let read = Operation::Read {
        offset: 0,
        data: data(1024),
    };
    let judged = |done, result| judge(Stage::Transfer(done), &read, result);
    assert_eq!(judged(0, 1024), Next::Over(Outcome::Ok));
    assert_eq!(judged(0, 1000), Next::Call(Stage::Transfer(1000)));
    assert_eq!(judged(1000, 24), Next::Over(Outcome::Ok));
    assert_eq!(judged(1000, 0), Next::Over(Outcome::IoError));
    assert_eq!(judged(0, -libc::EIO), Next::Over(Outcome::IoError));
    assert_eq!(judged(0, -libc::ENOSPC), Next::Over(Outcome::IoError));
    for later in [libc::EAGAIN, libc::EINTR, libc::ECANCELED] {
        assert_eq!(judged(512, -later), Next::Alone(Stage::Transfer(512)));
    }
}

#[test]
fn ranges_go_one_after_the_other_and_a_file_system_that_cannot_says_so() {
    let range = ByteRange {
        start: 0,
        length: 512,
        unmap: false,
    };
    let discard = Operation::Discard(vec![range; 2]);
    let judged = |at, result| judge(Stage::Range(at), &discard, result);
    assert_eq!(judged(0, 0), Next::Call(Stage::Range(1)));
    assert_eq!(judged(1, 0), Next::Over(Outcome::Ok));
    assert_eq!(
        judged(0, -libc::EOPNOTSUPP),
        Next::Over(Outcome::Unsupported)
    );
    assert_eq!(judged(0, -libc::EIO), Next::Over(Outcome::IoError));
    assert_eq!(judged(1, -libc::EINTR), Next::Alone(Stage::Range(1)));
}

/// A disk with its ring, if there is one.
fn ringed(file: &File, queues: u8, driver: &Driver) -> Option<Blk> {
    let spec = DiskSpec {
        queues,
        ..DiskSpec::new("upper", Fd(4), false)
    };
    let mut blk = with(file, &spec);
    blk.make_ring(&driver.ram);
    blk.activate(1 << virtio_bindings::virtio_blk::VIRTIO_BLK_F_FLUSH);
    match blk.way {
        Way::Ring(_) => Some(blk),
        Way::Sync | Way::Untried(_) | Way::Refused => {
            println!("without io_uring there is nothing to see");
            None
        }
    }
}

fn flights(blk: &Blk) -> &Engine {
    match &blk.way {
        Way::Ring(engine) => engine,
        other => panic!("{other:?}"),
    }
}

#[test]
fn requests_at_depth_are_in_flight_together_and_answered_each() {
    let (file, mut driver) = (file(1 << 20), Driver::new(&[16]));
    let Some(mut blk) = ringed(&file, 1, &driver) else {
        return;
    };
    driver.write(DATA, &[7; 1024]);
    request(
        &mut driver,
        0,
        VIRTIO_BLK_T_OUT,
        8,
        &[(DATA, 512), (DATA + 512, 512)],
    );
    request(&mut driver, 1, VIRTIO_BLK_T_FLUSH, 0, &[]);
    request(
        &mut driver,
        2,
        VIRTIO_BLK_T_IN,
        100,
        &[(DATA + 0x1000, 4096)],
    );
    let _ = driver.turn(&mut blk).expect("rules kept");
    driver.quiesce(&mut blk).expect("rests");
    assert_eq!([0, 1, 2].map(|p| status(&driver, p)), [0; 3]);
    let mut lengths: Vec<_> = driver.used(0).iter().map(|u| u.1).collect();
    lengths.sort_unstable();
    assert_eq!(lengths, [1, 1, 4097]);
    let mut content = [0; 1024];
    file.read_exact_at(&mut content, 4096).expect("reads");
    assert_eq!(content, [7; 1024]);
    assert!(blk.outstanding == [0] && flights(&blk).is_idle());
}

#[test]
fn what_a_ring_reads_into_memory_is_noted_before_it_is_at_rest() {
    use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};
    let (file, mut driver) = (file(1 << 20), Driver::new(&[16]));
    let Some(mut blk) = ringed(&file, 1, &driver) else {
        return;
    };
    let region = driver.ram.iter().next().expect("one");
    region.bitmap().begin();
    let mut bits = vec![0; region.size() / 4096 / 64];
    let at = [DATA, DATA + 0x5000, DATA + 0x9000];
    for (place, at) in (0..).zip(at) {
        request(&mut driver, place, VIRTIO_BLK_T_IN, 0, &[(at, 4096)]);
    }
    let _ = driver.turn(&mut blk).expect("rules kept");
    driver.quiesce(&mut blk).expect("rests");
    let region = driver.ram.iter().next().expect("one");
    region.bitmap().take(&mut bits);
    let word = usize::try_from(DATA / 4096 / 64).expect("small");
    assert_eq!(bits[word] & 0x3ff, 1 | 1 << 5 | 1 << 9);
}

#[test]
fn a_ring_is_made_only_after_several_deep_turns() {
    let (file, mut driver) = (file(1 << 20), Driver::new(&[16]));
    let mut blk = with(&file, &DiskSpec::new("upper", Fd(4), false));
    for turn in 0..DEEP_TURNS {
        assert!(matches!(blk.way, Way::Untried(seen) if seen == turn));
        for place in 0..4 {
            request(&mut driver, place, VIRTIO_BLK_T_IN, place, &[(DATA, 512)]);
        }
        // Shallow turns count for nothing.
        for _ in 0..3 {
            let _ = driver.turn(&mut blk).expect("rules kept");
        }
        driver.quiesce(&mut blk).expect("rests");
        assert_eq!(driver.used(0).len(), 4);
    }
    assert!(matches!(blk.way, Way::Ring(_) | Way::Refused));
    let wish = DiskSpec {
        engine: types::vm::Engine::Sync,
        ..DiskSpec::new("upper", Fd(4), false)
    };
    assert!(matches!(with(&file, &wish).way, Way::Sync));
}

#[test]
fn a_disk_whose_kernel_refuses_a_ring_goes_on_without() {
    use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, TargetArch};
    // In a thread of its own: a filter stays.
    let refused = std::thread::spawn(|| {
        let errno = SeccompAction::Errno(libc::EPERM.cast_unsigned());
        let rules = [(libc::SYS_io_uring_setup, Vec::new())].into();
        let filter = SeccompFilter::new(rules, SeccompAction::Allow, errno, TargetArch::x86_64);
        let filter = BpfProgram::try_from(filter.expect("builds")).expect("builds");
        let (file, mut driver) = (file(1 << 20), Driver::new(&[16]));
        seccompiler::apply_filter(&filter).expect("installs");
        let mut blk = with(&file, &DiskSpec::new("upper", Fd(4), false));
        blk.make_ring(&driver.ram);
        assert!(matches!(blk.way, Way::Refused));
        for place in 0..4 {
            request(&mut driver, place, VIRTIO_BLK_T_IN, place, &[(DATA, 512)]);
        }
        let _ = driver.turn(&mut blk).expect("rules kept");
        driver.used(0).len()
    });
    assert_eq!(refused.join().expect("no panic"), 4);
}

#[test]
fn more_requests_than_can_be_in_flight_wait_in_their_rings() {
    let (file, mut driver) = (file(1 << 20), Driver::new(&[256, 256]));
    let Some(mut blk) = ringed(&file, 2, &driver) else {
        return;
    };
    for place in 0..160u64 {
        let queue = usize::from(place >= 80);
        request_on(
            &mut driver,
            queue,
            place,
            VIRTIO_BLK_T_IN,
            place,
            &[(DATA, 512)],
        );
    }
    let mut answered = 0;
    for _ in 0..160 {
        let _ = driver.turn(&mut blk).expect("rules kept");
        assert!(blk.outstanding.iter().sum::<usize>() <= FLIGHTS_MAX);
        driver.quiesce(&mut blk).expect("rests");
        answered += driver.used(0).len() + driver.used(1).len();
        if answered == 160 {
            break;
        }
    }
    assert_eq!(answered, 160);
}

#[test]
fn a_file_that_shrank_gives_io_errors_in_flight_too() {
    let (file, mut driver) = (file(1 << 20), Driver::new(&[16]));
    let Some(mut blk) = ringed(&file, 1, &driver) else {
        return;
    };
    file.set_len(4096).expect("shrinks");
    request(&mut driver, 0, VIRTIO_BLK_T_IN, 7, &[(DATA, 1024)]);
    request(&mut driver, 1, VIRTIO_BLK_T_IN, 100, &[(DATA, 512)]);
    request(&mut driver, 2, VIRTIO_BLK_T_IN, 0, &[(DATA, 512)]);
    let _ = driver.turn(&mut blk).expect("rules kept");
    driver.quiesce(&mut blk).expect("rests");
    assert_eq!([0, 1, 2].map(|p| status(&driver, p)), [1, 1, 0]);
}

/// Writes go nowhere, and a sync is an error.
fn null(driver: &Driver) -> Option<Blk> {
    let null = File::options()
        .read(true)
        .write(true)
        .open("/dev/null")
        .expect("opens");
    let mut blk = ringed(&null, 1, driver)?;
    blk.limits.bytes = 1 << 20;
    Some(blk)
}

#[test]
fn after_a_failed_flush_in_flight_no_flush_is_good_again() {
    let mut driver = Driver::new(&[16]);
    let Some(mut blk) = null(&driver) else { return };
    for turn in 0..2 {
        for place in 0..2 {
            request(&mut driver, place, VIRTIO_BLK_T_FLUSH, 0, &[]);
        }
        request(&mut driver, 2, VIRTIO_BLK_T_OUT, 0, &[(DATA, 512)]);
        let _ = driver.turn(&mut blk).expect("rules kept");
        driver.quiesce(&mut blk).expect("rests");
        assert_eq!(
            [0, 1, 2].map(|p| status(&driver, p)),
            [1, 1, 0],
            "turn {turn}"
        );
        assert!(blk.disk.lost());
    }
}

#[test]
fn a_driver_that_sends_no_flush_hears_of_a_write_once_it_is_on_the_medium() {
    let mut driver = Driver::new(&[16]);
    let Some(mut blk) = null(&driver) else { return };
    blk.activate(0);
    for place in 0..2 {
        request(&mut driver, place, VIRTIO_BLK_T_OUT, place, &[(DATA, 512)]);
    }
    let _ = driver.turn(&mut blk).expect("rules kept");
    driver.quiesce(&mut blk).expect("rests");
    // The write was good, its sync was not.
    assert_eq!([0, 1].map(|p| status(&driver, p)), [1, 1]);
    let (file, mut driver) = (file(1 << 20), Driver::new(&[16]));
    let Some(mut blk) = ringed(&file, 1, &driver) else {
        return;
    };
    blk.activate(0);
    for place in 0..2 {
        request(&mut driver, place, VIRTIO_BLK_T_OUT, place, &[(DATA, 512)]);
    }
    let _ = driver.turn(&mut blk).expect("rules kept");
    driver.quiesce(&mut blk).expect("rests");
    assert_eq!([0, 1].map(|p| status(&driver, p)), [0, 0]);
}

#[test]
fn a_flush_waits_for_writes_before_it_and_a_reset_for_all() {
    let (file, mut driver) = (file(1 << 20), Driver::new(&[16]));
    let Some(mut blk) = ringed(&file, 1, &driver) else {
        return;
    };
    let Way::Ring(engine) = &mut blk.way else {
        return;
    };
    // A write that is in flight, as far as anyone knows.
    engine.sequence += 1;
    engine.writing.insert(engine.sequence);
    for place in 0..2 {
        request(&mut driver, place, VIRTIO_BLK_T_FLUSH, 0, &[]);
    }
    let _ = driver.turn(&mut blk).expect("rules kept");
    assert_eq!(
        (flights(&blk).riders.len(), flights(&blk).syncing.len()),
        (2, 0)
    );
    assert!(driver.used(0).is_empty());
    let Way::Ring(engine) = &mut blk.way else {
        return;
    };
    engine.writing.clear();
    request(&mut driver, 2, VIRTIO_BLK_T_IN, 0, &[(DATA, 512)]);
    let _ = driver.turn(&mut blk).expect("rules kept");
    assert!(flights(&blk).riders.is_empty());
    blk.reset();
    assert!(flights(&blk).is_idle() && blk.outstanding == [0]);
}

/// A pipe for a disk: a read is in flight until the other end writes.
#[test]
fn memory_stays_mapped_while_a_read_is_in_flight() {
    let (reader, mut writer) = std::io::pipe().expect("pipe");
    let driver = Driver::new(&[16]);
    let pipe = File::from(std::os::fd::OwnedFd::from(reader));
    let Ok(mut engine) = Engine::new(&pipe, &driver.ram) else {
        println!("without io_uring there is nothing to see");
        return;
    };
    let read = Request {
        head: 0,
        status: data(1),
        operation: Ok(Operation::Read {
            // Where it stands: a pipe has no other place.
            offset: u64::MAX,
            data: Segments::from_parts(&[(DATA, 512)]),
        }),
    };
    engine.begin(0, read, false).expect("taken");
    engine.ring.submit().expect("submits");
    assert!(!engine.is_idle());
    drop(driver);
    let done = std::thread::spawn(move || {
        drop(engine);
    });
    std::io::Write::write_all(&mut writer, &[5; 512]).expect("writes");
    done.join().expect("waited for the read, and no longer");
    drop(writer);
    let mut rest = Vec::new();
    (&pipe).read_to_end(&mut rest).expect("reads");
    assert!(rest.is_empty(), "the read has taken it");
}

#[test]
fn a_discard_in_flight_gives_blocks_back() {
    let (file, mut driver) = (file(1 << 20), Driver::new(&[16]));
    let Some(mut blk) = ringed(&file, 1, &driver) else {
        return;
    };
    file.write_all_at(&vec![1; 1 << 20], 0).expect("writes");
    file.sync_all().expect("syncs");
    let before = file.metadata().expect("stat").blocks();
    // Sector, count, flags: two ranges of 64 KiB; zeroes without giving back.
    for (at, sector, count) in [
        (DATA, 0u64, 128u32),
        (DATA + 16, 256, 128),
        (DATA + 32, 1024, 8),
    ] {
        driver.write(at, &sector.to_le_bytes());
        driver.write(at + 8, &u64::from(count).to_le_bytes());
    }
    request(&mut driver, 0, VIRTIO_BLK_T_DISCARD, 0, &[(DATA, 32)]);
    request(
        &mut driver,
        1,
        VIRTIO_BLK_T_WRITE_ZEROES,
        0,
        &[(DATA + 32, 16)],
    );
    let _ = driver.turn(&mut blk).expect("rules kept");
    driver.quiesce(&mut blk).expect("rests");
    let after = file.metadata().expect("stat").blocks();
    match status(&driver, 0) {
        0 => assert_eq!(before - after, 256, "128 KiB in blocks of 512 bytes"),
        other => assert_eq!(other, Outcome::Unsupported.byte()),
    }
    if status(&driver, 1) == 0 {
        let mut zeroed = [9; 4096];
        file.read_exact_at(&mut zeroed, 1024 * 512).expect("reads");
        assert_eq!(zeroed, [0; 4096]);
    }
}

/// One request of a batch: kind, slot of 16 sectors, sectors, content.
type Ask = (u32, u64, u64, u8);

/// Content of the disk, statuses, and what was read.
fn play(batches: &[Vec<Ask>], ring: bool) -> Option<(Vec<u8>, Vec<u8>, Vec<u8>)> {
    let (file, mut driver) = (file(1 << 18), Driver::new(&[64, 64]));
    let spec = DiskSpec {
        queues: 2,
        ..DiskSpec::new("upper", Fd(4), false)
    };
    let mut blk = match ring {
        true => ringed(&file, 2, &driver)?,
        false => with(&file, &spec),
    };
    let (mut statuses, mut read) = (Vec::new(), Vec::new());
    for batch in batches {
        for (place, (kind, slot, sectors, content)) in (0u64..).zip(batch) {
            let at = DATA + 0x1_0000 + place * 0x2000;
            let bytes = u32::try_from(sectors * 512).expect("small");
            driver.write(at, &vec![*content; bytes as usize]);
            let queue = usize::try_from(place % 2).expect("small");
            let parts = [
                (at, bytes / 2),
                (at + u64::from(bytes / 2), bytes - bytes / 2),
            ];
            let sector = slot * 16;
            match *kind {
                VIRTIO_BLK_T_DISCARD | VIRTIO_BLK_T_WRITE_ZEROES => {
                    driver.write(at, &sector.to_le_bytes());
                    driver.write(at + 8, &sectors.to_le_bytes());
                    request_on(&mut driver, queue, place, *kind, 0, &[(at, 16)]);
                }
                VIRTIO_BLK_T_FLUSH => {
                    request_on(&mut driver, queue, place, *kind, 0, &[]);
                }
                _ => {
                    request_on(&mut driver, queue, place, *kind, sector, &parts);
                }
            }
        }
        let _ = driver.turn(&mut blk).expect("rules kept");
        driver.quiesce(&mut blk).expect("rests");
        let answered = driver.used(0).len() + driver.used(1).len();
        assert_eq!(answered, batch.len());
        for (place, (_, _, sectors, _)) in (0u64..).zip(batch) {
            statuses.push(status(&driver, place));
            let bytes = usize::try_from(sectors * 512).expect("small");
            read.extend(driver.read(DATA + 0x1_0000 + place * 0x2000, bytes));
        }
    }
    let mut content = vec![0; 1 << 18];
    file.read_exact_at(&mut content, 0).expect("reads");
    Some((content, statuses, read))
}

fn ask() -> impl Strategy<Value = Ask> {
    let kind = prop_oneof![
        4 => Just(VIRTIO_BLK_T_OUT), 4 => Just(VIRTIO_BLK_T_IN), 1 => Just(VIRTIO_BLK_T_FLUSH),
        1 => Just(VIRTIO_BLK_T_DISCARD), 1 => Just(VIRTIO_BLK_T_WRITE_ZEROES), 1 => 0u32..16,
    ];
    // The last slot reaches beyond the disk.
    (kind, Just(0), 1u64..=16, any::<u8>())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]
    #[test]
    fn in_flight_together_gives_the_same_bytes_as_one_after_the_other(
        mut batches in prop::collection::vec(prop::collection::vec(ask(), 1..16), 1..8),
        first in 0u64..33,
    ) {
        // Within a batch each has a slot of its own: what overlaps has no order.
        for batch in &mut batches {
            for (n, ask) in (0u64..).zip(batch) {
                ask.1 = (first + n) % 33;
            }
        }
        if let Some(together) = play(&batches, true) {
            prop_assert_eq!(Some(together), play(&batches, false));
        }
    }
}
