//! The disk as a driver sees it, well-behaved and hostile.

use std::os::unix::fs::FileExt;

use flist::map::{Extent, PRESENT, Table};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use proptest::prelude::*;
use types::vm::{Fd, Limit, Rate};
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN,
    VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES,
};

use super::*;
use crate::virtio::testing::{DATA, Driver, hostile, idle, stopped};

const STATUS: u64 = DATA + 0x8_0000;

fn outbox() -> Arc<Outbox> {
    Arc::new(Outbox::new(None).expect("makes"))
}

/// The threads of tests go on to other tests.
fn unsealed() -> Result<(), String> {
    Ok(())
}

pub(super) fn file(bytes: u64) -> File {
    let file = tempfile::tempfile().expect("temporary file");
    file.set_len(bytes).expect("grows");
    file
}

fn disk(file: &File, read_only: bool) -> Blk {
    let spec = DiskSpec::new("upper", Fd(4), read_only);
    with(file, &spec)
}

pub(super) fn with(file: &File, spec: &DiskSpec) -> Blk {
    let file = file.try_clone().expect("clones");
    Blk::new(spec, file, None, unsealed, &outbox()).expect("makes")
}

/// A disk as it is made, and requests enough to make a ring for: what the filter of its thread is tested by.
pub(crate) fn deep() -> (Blk, Driver) {
    let file = file(1 << 20);
    let spec = DiskSpec::new("upper", Fd(4), false);
    let blk = Blk::new(&spec, file, None, crate::confine::seal_ring, &outbox());
    (blk.expect("makes"), Driver::new(&[16]))
}

pub(crate) fn go_deep(blk: &mut Blk, driver: &mut Driver) {
    for _ in 0..2 * DEEP_TURNS {
        for (place, kind) in (0..).zip([
            VIRTIO_BLK_T_IN,
            VIRTIO_BLK_T_OUT,
            VIRTIO_BLK_T_FLUSH,
            VIRTIO_BLK_T_IN,
        ]) {
            let data: &[(u64, u32)] = if kind == VIRTIO_BLK_T_FLUSH {
                &[]
            } else {
                &[(DATA, 512)]
            };
            request(driver, place, kind, place, data);
        }
        let _ = driver.turn(blk).expect("rules kept");
        driver.quiesce(blk).expect("rests");
        assert_eq!(driver.used(0).len(), 4);
    }
    assert!(matches!(blk.way, Way::Ring(_) | Way::Refused));
}

/// Offers one request on the first queue; `place` keeps several apart.
pub(super) fn request(
    driver: &mut Driver,
    place: u64,
    kind: u32,
    sector: u64,
    data: &[(u64, u32)],
) -> u16 {
    request_on(driver, 0, place, kind, sector, data)
}

pub(super) fn request_on(
    driver: &mut Driver,
    queue: usize,
    place: u64,
    kind: u32,
    sector: u64,
    data: &[(u64, u32)],
) -> u16 {
    let header = DATA + 0x9_0000 + place * 16;
    driver.write(header, &u64::from(kind).to_le_bytes());
    driver.write(header + 8, &sector.to_le_bytes());
    driver.write(STATUS + place, &[0xee]);
    let status = (STATUS + place, 1);
    match kind {
        VIRTIO_BLK_T_OUT | VIRTIO_BLK_T_DISCARD | VIRTIO_BLK_T_WRITE_ZEROES => {
            driver.offer(queue, &[&[(header, 16)], data].concat(), &[status])
        }
        _ => driver.offer(queue, &[(header, 16)], &[data, &[status]].concat()),
    }
}

pub(super) fn status(driver: &Driver, place: u64) -> u8 {
    driver.read(STATUS + place, 1)[0]
}

#[test]
fn what_is_written_is_read_back_and_the_driver_is_told() {
    let (file, mut driver) = (file(1 << 20), Driver::new(&[16]));
    let mut disk = disk(&file, false);
    driver.write(DATA, &[0x5a; 1024]);
    request(
        &mut driver,
        0,
        VIRTIO_BLK_T_OUT,
        4,
        &[(DATA, 512), (DATA + 512, 512)],
    );
    request(&mut driver, 1, VIRTIO_BLK_T_FLUSH, 0, &[]);
    request(&mut driver, 2, VIRTIO_BLK_T_IN, 4, &[(DATA + 0x1000, 1024)]);
    request(
        &mut driver,
        3,
        VIRTIO_BLK_T_GET_ID,
        0,
        &[(DATA + 0x2000, 20)],
    );
    assert_eq!(driver.turn(&mut disk).expect("rules kept"), Turn::Done);
    assert_eq!(
        (0..4).map(|p| status(&driver, p)).collect::<Vec<_>>(),
        [0; 4]
    );
    assert_eq!(driver.read(DATA + 0x1000, 1024), [0x5a; 1024]);
    assert_eq!(
        driver.read(DATA + 0x2000, 20),
        b"upper\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0"
    );
    assert_eq!(
        driver.used(0).iter().map(|u| u.1).collect::<Vec<_>>(),
        [1, 1, 1025, 21]
    );
    assert!(driver.interrupted());
    let counted = driver.counters[0].read();
    assert_eq!((counted.requests, counted.errors), (4, 0));
    // Four headers, and what was written; then four outcomes, and what was read.
    assert_eq!(counted.from_guest_bytes, 4 * 16 + 1024);
    assert_eq!(counted.to_guest_bytes, 4 + 1024 + 20);
    assert_eq!((counted.depth, counted.depth_max), (0, 4));
}

#[test]
fn a_read_only_disk_answers_a_write_with_an_error_and_stays_as_it_is() {
    let (file, mut driver) = (file(4096), Driver::new(&[16]));
    driver.write(DATA, &[1; 512]);
    request(&mut driver, 0, VIRTIO_BLK_T_OUT, 0, &[(DATA, 512)]);
    let _ = driver.turn(&mut disk(&file, true)).expect("rules kept");
    assert_eq!(status(&driver, 0), Outcome::IoError.byte());
    assert_eq!(driver.counters[0].read().errors, 1);
    let mut content = [9; 512];
    file.read_exact_at(&mut content, 0).expect("reads");
    assert_eq!(content, [0; 512]);
}

#[test]
fn a_file_that_shrank_gives_an_io_error() {
    let (file, mut driver) = (file(1 << 20), Driver::new(&[16]));
    let mut disk = disk(&file, true);
    file.set_len(4096).expect("shrinks");
    request(&mut driver, 0, VIRTIO_BLK_T_IN, 100, &[(DATA, 512)]);
    let _ = driver.turn(&mut disk).expect("rules kept");
    assert_eq!(status(&driver, 0), Outcome::IoError.byte());
    assert_eq!(driver.used(0)[0].1, 1);
}

#[test]
fn a_disk_that_grows_is_written_beyond_its_old_end_and_not_before_and_never_shrinks() {
    let (file, mut driver) = (file(4096), Driver::new(&[16]));
    let mut disk = disk(&file, false);
    driver.write(DATA, &[0x5a; 512]);
    request(&mut driver, 0, VIRTIO_BLK_T_OUT, 8, &[(DATA, 512)]);
    let _ = driver.turn(&mut disk).expect("rules kept");
    assert_eq!(status(&driver, 0), Outcome::IoError.byte());
    file.set_len(8192).expect("grows");
    for wrong in [0, 512, 8191] {
        assert!(matches!(disk.grow(wrong), Err(BlkError::Growth { .. })));
    }
    disk.grow(8192).expect("grows");
    assert_eq!(disk.config()[..8], 16u64.to_le_bytes());
    request(&mut driver, 1, VIRTIO_BLK_T_OUT, 8, &[(DATA, 512)]);
    request(&mut driver, 2, VIRTIO_BLK_T_OUT, 16, &[(DATA, 512)]);
    let _ = driver.turn(&mut disk).expect("rules kept");
    assert_eq!(
        [1, 2].map(|p| status(&driver, p)),
        [0, Outcome::IoError.byte()]
    );
    let mut content = [0; 512];
    file.read_exact_at(&mut content, 4096).expect("reads");
    assert_eq!(content, [0x5a; 512]);
}

#[test]
fn names_and_sizes_that_do_not_fit_are_refused() {
    for serial in ["", "a b", "äöü", "123456789012345678901"] {
        assert!(matches!(
            Blk::new(
                &DiskSpec::new(serial, Fd(4), true),
                file(512),
                None,
                unsealed,
                &outbox()
            ),
            Err(BlkError::Serial(_))
        ));
    }
}

#[test]
fn broken_chains_are_violations() {
    type Break = fn(&mut Driver);
    let breaks: [(&str, Break); 6] = [
        ("loop", |d| {
            (d.describe(0, 0, DATA, 16, 1, 0), d.offer_head(0, 0)).1
        }),
        ("next beyond the table", |d| {
            (d.describe(0, 0, DATA, 16, 1, 99), d.offer_head(0, 0)).1
        }),
        ("head beyond the table", |d| d.offer_head(0, 16)),
        ("outside memory", |d| {
            (d.describe(0, 0, 1 << 40, 16, 0, 0), d.offer_head(0, 0)).1
        }),
        ("no status", |d| {
            (d.describe(0, 0, DATA, 16, 0, 0), d.offer_head(0, 0)).1
        }),
        ("readable after writable", |d| {
            d.describe(0, 0, DATA, 16, 3, 1);
            d.describe(0, 1, DATA, 16, 0, 0);
            d.offer_head(0, 0);
        }),
    ];
    for (what, break_it) in breaks {
        let mut driver = Driver::new(&[16]);
        break_it(&mut driver);
        let turn = driver.turn(&mut disk(&file(4096), false));
        assert!(turn.is_err(), "{what}");
    }
}

/// A lazy disk of four chunks of 64 KiB, and the daemon's end.
struct LazyDisk {
    image: File,
    map: File,
    states: u64,
    daemon: OwnedFd,
    blk: Blk,
}

impl LazyDisk {
    fn new() -> Self {
        let extent = |index: u32| Extent {
            start_block: index * 16,
            blocks: 16,
        };
        let table = Table::new(4 << 16, (0..4).map(extent).collect()).expect("valid");
        let (image, map) = (file(4 << 16), file(0));
        map.write_all_at(&table.encode(), 0).expect("writes");
        let (daemon, socket) = socketpair(
            AddressFamily::Unix,
            SockType::SeqPacket,
            None,
            SockFlag::SOCK_CLOEXEC,
        )
        .expect("sockets");
        let lazy = LazyParts {
            map: map.try_clone().expect("clones"),
            socket,
        };
        let blk = Blk::new(
            &DiskSpec::new("image", Fd(4), true),
            image.try_clone().expect("clones"),
            Some(lazy),
            unsealed,
            &outbox(),
        );
        let states = table.states_offset() as u64;
        Self {
            image,
            map,
            states,
            daemon,
            blk: blk.expect("makes"),
        }
    }

    fn arrive(&self, chunk: u32) {
        let content = vec![u8::try_from(chunk).expect("small") + 1; 1 << 16];
        self.image
            .write_all_at(&content, u64::from(chunk) << 16)
            .expect("writes");
        self.map
            .write_all_at(&[PRESENT], self.states + u64::from(chunk))
            .expect("writes");
    }

    fn say(&self, packet: ToVmm) {
        send(self.daemon.as_raw_fd(), &packet.encode(), MsgFlags::empty()).expect("sends");
    }

    fn asked(&self) -> Vec<u32> {
        let mut out = Vec::new();
        let mut packet = [0; 16];
        while recv(self.daemon.as_raw_fd(), &mut packet, MsgFlags::MSG_DONTWAIT)
            .is_ok_and(|n| n > 0)
        {
            let wire::FromVmm::Want(chunk) = wire::FromVmm::decode(&packet).expect("a packet");
            out.push(chunk);
        }
        out
    }
}

/// All that a disk's thread ever does, between `confined` and `done`: for the tests of its filter.
pub(crate) fn work(confined: impl FnOnce(), done: impl FnOnce()) {
    use virtio_bindings::virtio_blk::{VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_WRITE_ZEROES};
    let file = file(1 << 20);
    let (mut disk, mut driver) = (disk(&file, false), Driver::new(&[64]));
    let (mut lazy, mut other) = (LazyDisk::new(), Driver::new(&[64]));
    lazy.arrive(1);
    lazy.say(ToVmm::Failed(0));
    let (stop, idle) = (stopped(), idle());
    let (mut deep, mut many) = deep();
    confined();
    go_deep(&mut deep, &mut many);
    driver.write(DATA, &[0x5a; 512]);
    request(&mut driver, 0, VIRTIO_BLK_T_OUT, 0, &[(DATA, 512)]);
    request(&mut driver, 1, VIRTIO_BLK_T_IN, 0, &[(DATA + 0x1000, 512)]);
    request(&mut driver, 2, VIRTIO_BLK_T_FLUSH, 0, &[]);
    let _ = driver.turn(&mut disk).expect("rules kept");
    for kind in [VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_WRITE_ZEROES] {
        // Sector 0, one of them, no flags.
        driver.write(DATA, &[0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
        let header = DATA + 0x9_0000;
        driver.write(header, &u64::from(kind).to_le_bytes());
        driver.offer(0, &[(header, 16), (DATA, 16)], &[(STATUS, 1)]);
        let _ = driver.turn(&mut disk).expect("rules kept");
    }
    assert_eq!(driver.used(0).len(), 5);
    request(&mut other, 0, VIRTIO_BLK_T_IN, sector(0), &[(DATA, 512)]);
    request(&mut other, 1, VIRTIO_BLK_T_IN, sector(1), &[(DATA, 512)]);
    // One is there, one is asked for; then the daemon gives up on it.
    let _ = other.turn(&mut lazy.blk).expect("rules kept");
    let _ = other.turn(&mut lazy.blk).expect("rules kept");
    crate::event::run(&[&idle], &stop).expect("waits");
    done();
}

fn sector(chunk: u64) -> u64 {
    chunk * 128
}

#[test]
fn a_read_waits_for_its_chunk_while_another_one_goes_on() {
    let (mut lazy, mut driver) = (LazyDisk::new(), Driver::new(&[16]));
    lazy.arrive(1);
    let waits = request(&mut driver, 0, VIRTIO_BLK_T_IN, sector(0), &[(DATA, 512)]);
    let goes_on = request(
        &mut driver,
        1,
        VIRTIO_BLK_T_IN,
        sector(1),
        &[(DATA + 512, 512)],
    );
    let _ = driver.turn(&mut lazy.blk).expect("rules kept");
    assert_eq!(driver.used(0), [(goes_on, 513)]);
    assert_eq!(lazy.asked(), [0]);
    lazy.arrive(0);
    lazy.say(ToVmm::Ready(0));
    let _ = driver.turn(&mut lazy.blk).expect("rules kept");
    assert_eq!(driver.used(0), [(waits, 513)]);
    assert_eq!(
        (driver.read(DATA, 1), driver.read(DATA + 512, 1)),
        (vec![1], vec![2])
    );
    assert!(lazy.asked().is_empty());
}

#[test]
fn a_read_over_two_chunks_waits_for_both() {
    let (mut lazy, mut driver) = (LazyDisk::new(), Driver::new(&[16]));
    request(
        &mut driver,
        0,
        VIRTIO_BLK_T_IN,
        sector(2) - 1,
        &[(DATA, 1024)],
    );
    let _ = driver.turn(&mut lazy.blk).expect("rules kept");
    assert_eq!(lazy.asked(), [1, 2]);
    lazy.arrive(2);
    lazy.say(ToVmm::Ready(2));
    let _ = driver.turn(&mut lazy.blk).expect("rules kept");
    assert!(driver.used(0).is_empty());
    lazy.arrive(1);
    lazy.say(ToVmm::Ready(1));
    let _ = driver.turn(&mut lazy.blk).expect("rules kept");
    assert_eq!(
        (status(&driver, 0), driver.read(DATA + 511, 2)),
        (0, vec![2, 3])
    );
}

#[test]
fn a_failed_chunk_fails_its_readers_only_and_the_next_read_asks_again() {
    let (mut lazy, mut driver) = (LazyDisk::new(), Driver::new(&[16]));
    for (place, chunk) in [(0, 0), (1, 0), (2, 3)] {
        request(
            &mut driver,
            place,
            VIRTIO_BLK_T_IN,
            sector(chunk),
            &[(DATA, 512)],
        );
    }
    let _ = driver.turn(&mut lazy.blk).expect("rules kept");
    assert_eq!(lazy.asked(), [0, 3]);
    lazy.say(ToVmm::Failed(0));
    let _ = driver.turn(&mut lazy.blk).expect("rules kept");
    assert_eq!(
        (0..3).map(|p| status(&driver, p)).collect::<Vec<_>>(),
        [1, 1, 0xee]
    );
    request(&mut driver, 3, VIRTIO_BLK_T_IN, sector(0), &[(DATA, 512)]);
    let _ = driver.turn(&mut lazy.blk).expect("rules kept");
    assert_eq!(lazy.asked(), [0]);
}

#[test]
fn a_driver_that_offers_more_reads_than_its_ring_holds_is_stopped() {
    let (mut lazy, mut driver) = (LazyDisk::new(), Driver::new(&[16]));
    let waits = request(&mut driver, 0, VIRTIO_BLK_T_IN, sector(0), &[(DATA, 512)]);
    let mut turns = 0;
    // The same entry again and again, though it has not come back.
    while driver.turn(&mut lazy.blk).is_ok() {
        driver.offer_head(0, waits);
        turns += 1;
        assert!(lazy.blk.parked.len() <= 16);
    }
    assert_eq!(turns, 16);
}

#[test]
fn the_node_hears_once_of_each_failed_chunk_however_often_it_is_read() {
    let (mut lazy, mut driver) = (LazyDisk::new(), Driver::new(&[16]));
    let (node, ours) = socketpair(
        AddressFamily::Unix,
        SockType::SeqPacket,
        None,
        SockFlag::SOCK_CLOEXEC,
    )
    .expect("sockets");
    lazy.blk.outbox = Arc::new(Outbox::new(Some(Arc::new(ours))).expect("makes"));
    let mut fail = |chunk: u64| {
        request(
            &mut driver,
            0,
            VIRTIO_BLK_T_IN,
            sector(chunk),
            &[(DATA, 512)],
        );
        let _ = driver.turn(&mut lazy.blk).expect("rules kept");
        lazy.say(ToVmm::Failed(u32::try_from(chunk).expect("small")));
        let _ = driver.turn(&mut lazy.blk).expect("rules kept");
        assert_eq!(status(&driver, 0), Outcome::IoError.byte());
    };
    [0, 0, 1, 0].into_iter().for_each(&mut fail);
    let mut packet = [0; 512];
    let mut heard: Vec<FromVmm> = Vec::new();
    while let Ok(length) = recv(node.as_raw_fd(), &mut packet, MsgFlags::MSG_DONTWAIT) {
        heard.push(serde_json::from_slice(&packet[..length]).expect("a message"));
    }
    let failed = |chunk| FromVmm::ChunkFailed {
        disk: "image".to_owned(),
        chunk,
    };
    assert_eq!(heard, [failed(0), failed(1)]);
}

#[test]
fn a_new_daemon_hears_everything_that_is_outstanding() {
    let (mut lazy, mut driver) = (LazyDisk::new(), Driver::new(&[16]));
    for (place, chunk) in [(0, 1), (1, 2)] {
        request(
            &mut driver,
            place,
            VIRTIO_BLK_T_IN,
            sector(chunk),
            &[(DATA, 512)],
        );
    }
    let _ = driver.turn(&mut lazy.blk).expect("rules kept");
    assert_eq!(lazy.asked(), [1, 2]);
    lazy.say(ToVmm::Hello);
    let _ = driver.turn(&mut lazy.blk).expect("rules kept");
    assert_eq!(lazy.asked(), [1, 2]);
}

#[test]
fn when_nobody_is_left_to_answer_reads_fail_instead_of_hanging() {
    let (lazy, mut driver) = (LazyDisk::new(), Driver::new(&[16]));
    let LazyDisk {
        daemon, mut blk, ..
    } = lazy;
    request(&mut driver, 0, VIRTIO_BLK_T_IN, sector(0), &[(DATA, 512)]);
    let _ = driver.turn(&mut blk).expect("rules kept");
    drop(daemon);
    let _ = driver.turn(&mut blk).expect("rules kept");
    request(&mut driver, 1, VIRTIO_BLK_T_IN, sector(1), &[(DATA, 512)]);
    let _ = driver.turn(&mut blk).expect("rules kept");
    assert_eq!((status(&driver, 0), status(&driver, 1)), (1, 1));
    let mut sources = Vec::new();
    blk.sources(&mut sources);
    assert!(sources.iter().all(|s| *s == Source::never()));
}

#[test]
fn a_reset_forgets_what_was_waited_for() {
    let (mut lazy, mut driver) = (LazyDisk::new(), Driver::new(&[16]));
    request(&mut driver, 0, VIRTIO_BLK_T_IN, sector(0), &[(DATA, 512)]);
    let _ = driver.turn(&mut lazy.blk).expect("rules kept");
    lazy.blk.reset();
    lazy.arrive(0);
    lazy.say(ToVmm::Ready(0));
    let _ = driver.turn(&mut lazy.blk).expect("rules kept");
    assert!(driver.used(0).is_empty());
}

#[test]
fn every_queue_is_served_and_answered_on_its_own_ring() {
    let file = file(1 << 20);
    let spec = DiskSpec {
        queues: 4,
        ..DiskSpec::new("upper", Fd(4), false)
    };
    let mut disk = with(&file, &spec);
    assert_eq!(disk.queues(), [256; 4]);
    assert_ne!(disk.features() & 1 << VIRTIO_BLK_F_MQ, 0);
    assert_eq!(disk.config()[34..36], [4, 0]);
    let mut driver = Driver::new(&[16; 4]);
    for queue in 0..4u8 {
        let at = DATA + u64::from(queue) * 512;
        driver.write(at, &[queue + 1; 512]);
        let (place, sector) = (queue.into(), queue.into());
        request_on(
            &mut driver,
            queue.into(),
            place,
            VIRTIO_BLK_T_OUT,
            sector,
            &[(at, 512)],
        );
    }
    let _ = driver.turn(&mut disk).expect("rules kept");
    for queue in 0..4 {
        assert_eq!(driver.used(queue).len(), 1);
        let mut byte = [0];
        file.read_exact_at(&mut byte, queue as u64 * 512)
            .expect("reads");
        assert_eq!(usize::from(byte[0]), queue + 1);
    }
    for queues in [0, DISK_QUEUES_MAX + 1] {
        let spec = DiskSpec {
            queues,
            ..spec.clone()
        };
        let made = Blk::new(
            &spec,
            file.try_clone().expect("clones"),
            None,
            unsealed,
            &outbox(),
        );
        assert!(matches!(made, Err(BlkError::Queues(..))));
    }
}

fn one_a_minute(burst: u64) -> Rate {
    // So slow that a test never sees the second one.
    let value = |v| std::num::NonZeroU64::new(v).expect("not zero");
    Rate {
        per_second: value(1),
        burst: value(burst),
    }
}

#[test]
fn what_exceeds_a_limit_waits_in_its_ring_and_nothing_is_lost() {
    let file = file(1 << 20);
    for limit in [
        Limit {
            operations: Some(one_a_minute(3)),
            bytes: None,
        },
        // Three fit; the third goes into debt by what it is larger than what is left.
        Limit {
            operations: None,
            bytes: Some(one_a_minute(1100)),
        },
    ] {
        let spec = DiskSpec {
            limit: Some(limit),
            ..DiskSpec::new("upper", Fd(4), false)
        };
        let (mut disk, mut driver) = (with(&file, &spec), Driver::new(&[16]));
        for place in 0..4 {
            request(&mut driver, place, VIRTIO_BLK_T_IN, place, &[(DATA, 512)]);
        }
        for _ in 0..3 {
            assert_eq!(driver.turn(&mut disk).expect("rules kept"), Turn::Done);
        }
        assert_eq!(driver.used(0).len(), 3);
        assert_eq!(driver.rings()[0].waiting(), 1);
        let mut sources = Vec::new();
        disk.sources(&mut sources);
        assert!(
            sources.iter().any(|s| *s != Source::never()),
            "a timer tells when"
        );
    }
}

#[test]
fn at_rest_nothing_is_held_and_what_waited_is_taken_again() {
    let (mut lazy, mut driver) = (LazyDisk::new(), Driver::new(&[16]));
    lazy.arrive(1);
    let chunks = [0, 1, 2, 3];
    let heads = chunks.map(|chunk| {
        request(
            &mut driver,
            chunk,
            VIRTIO_BLK_T_IN,
            sector(chunk),
            &[(DATA + chunk * 512, 512)],
        )
    });
    let _ = driver.turn(&mut lazy.blk).expect("rules kept");
    assert_eq!(driver.used(0), [(heads[1], 513)]);
    driver.quiesce(&mut lazy.blk).expect("rests");
    assert!(lazy.blk.parked.is_empty() && lazy.blk.outstanding == [0]);
    assert_eq!(driver.rings()[0].waiting(), 3);
    [0, 2, 3].into_iter().for_each(|chunk| lazy.arrive(chunk));
    let _ = driver.turn(&mut lazy.blk).expect("rules kept");
    assert_eq!(driver.used(0), [0, 2, 3].map(|n| (heads[n], 513)));
    assert_eq!(driver.read(DATA + 1536, 1), [4]);
}

proptest! {
    #[test]
    fn no_descriptors_make_the_disk_panic_or_grow(
        descriptors in hostile::descriptors(), heads in hostile::heads(),
        headers in prop::collection::vec((0u32..16, 0u64..70), 64),
    ) {
        let mut driver = Driver::new(&[16]);
        for (place, (kind, sector)) in (0u64..).zip(headers) {
            driver.write(place * 0x1_0000 + 0x9000, &u64::from(kind).to_le_bytes());
            driver.write(place * 0x1_0000 + 0x9008, &sector.to_le_bytes());
        }
        for (index, (address, length, flags, next)) in (0u16..).zip(descriptors) {
            // Most descriptors begin at one of the headers.
            let address = if address < 0x20_0000 { address / 0x1_0000 * 0x1_0000 + 0x9000 } else { address };
            driver.describe(0, index, address, length, flags, next);
        }
        for head in heads {
            driver.offer_head(0, head);
        }
        let file = file(64 * 512);
        let mut disk = disk(&file, false);
        let _ = driver.turn(&mut disk);
        prop_assert_eq!(file.metadata().expect("stat").len(), 64 * 512);
    }
}
