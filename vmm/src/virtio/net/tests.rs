//! The network card as a driver sees it. A socket of packets stands for the TAP.

use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, recv, send, socketpair};
use proptest::prelude::*;

use types::Mac;
use types::vm::{Fd, Limit, Rate};

use super::*;
use crate::virtio::testing::{DATA, Driver, hostile, idle, stopped};

const MERGEABLE: u64 = 1 << VIRTIO_NET_F_MRG_RXBUF;
const SEVERAL: u64 = 1 << VIRTIO_NET_F_MQ | 1 << VIRTIO_NET_F_CTRL_VQ;
const SEGMENTED: u64 = 1 << VIRTIO_NET_F_GUEST_TSO4 | 1 << VIRTIO_NET_F_GUEST_CSUM;

const TO_GUEST: usize = 0;
const FROM_GUEST: usize = 1;

fn spec() -> NetSpec {
    NetSpec::new(Fd(4), Mac([2, 0, 0, 0, 0, 1]), 1500)
}

fn wire() -> (File, OwnedFd) {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let (ours, wire) =
        socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags).expect("sockets");
    (File::from(ours), wire)
}

fn card(features: u64) -> (Net, OwnedFd) {
    let (ours, wire) = wire();
    let mut net = Net::fake(&spec(), vec![ours]).expect("makes");
    net.activate(features);
    (net, wire)
}

/// A card with several pairs, all agreed on.
fn wide_card(pairs: usize) -> (Net, Vec<OwnedFd>) {
    let (ours, wires): (Vec<_>, Vec<_>) = (0..pairs).map(|_| wire()).unzip();
    let mut net = Net::fake(&spec(), ours).expect("makes");
    net.activate(MERGEABLE | SEVERAL);
    (net, wires)
}

fn arrive(wire: &OwnedFd, packet: &[u8]) {
    send(
        wire.as_raw_fd(),
        &[&[0; 12], packet].concat(),
        MsgFlags::empty(),
    )
    .expect("sends");
}

/// All that a card's thread ever does but for one ioctl, between `confined` and `done`: for the tests of its filter.
pub(crate) fn work(confined: impl FnOnce(), done: impl FnOnce()) {
    let (mut net, wire) = card(MERGEABLE);
    let mut driver = Driver::new(&[16, 16]);
    for n in 0..4 {
        driver.offer(TO_GUEST, &[], &[(DATA + n * 0x1000, 600)]);
    }
    driver.offer(FROM_GUEST, &[(DATA + 0x8000, 112)], &[]);
    arrive(&wire, &[7; 1200]);
    let (stop, idle) = (stopped(), idle());
    confined();
    let _ = driver.turn(&mut net).expect("rules kept");
    assert_eq!(driver.used(TO_GUEST).len(), 3);
    assert_eq!(driver.counters[FROM_GUEST].read().errors, 0);
    crate::event::run(&[&idle], &stop).expect("waits");
    done();
}

#[test]
fn a_packet_fills_as_many_buffers_as_it_needs_and_says_how_many() {
    let (mut net, wire) = card(MERGEABLE);
    let mut driver = Driver::new(&[16, 16]);
    let heads: Vec<u16> = (0..4)
        .map(|n| driver.offer(TO_GUEST, &[], &[(DATA + n * 0x1000, 600)]))
        .collect();
    arrive(&wire, &[7; 1200]);
    let _ = driver.turn(&mut net).expect("rules kept");
    assert_eq!(
        driver.used(TO_GUEST),
        [(heads[0], 600), (heads[1], 600), (heads[2], 12)]
    );
    assert_eq!(driver.read(DATA + 10, 3), [3, 0, 7]);
    assert!(driver.interrupted());
}

#[test]
fn packets_wait_until_there_is_room_for_the_longest() {
    let (mut net, wire) = card(MERGEABLE | SEGMENTED);
    let mut driver = Driver::new(&[64, 16]);
    arrive(&wire, &[1; 100]);
    for n in 0..16 {
        driver.offer(TO_GUEST, &[], &[(DATA + n * 0x1000, 4096)]);
    }
    let _ = driver.turn(&mut net).expect("rules kept");
    assert!(driver.used(TO_GUEST).is_empty() && !net.pairs[0].fillable);
    driver.offer(TO_GUEST, &[], &[(DATA + 0x10_0000, 4096)]);
    let _ = driver.turn(&mut net).expect("rules kept");
    assert_eq!(
        driver
            .used(TO_GUEST)
            .iter()
            .map(|u| u.1)
            .collect::<Vec<_>>(),
        [112]
    );
}

#[test]
fn a_ring_that_can_never_hold_the_longest_packet_is_used_anyway() {
    let (mut net, wire) = card(MERGEABLE | SEGMENTED);
    let mut driver = Driver::new(&[4, 4]);
    for n in 0..4 {
        driver.offer(TO_GUEST, &[], &[(DATA + n * 0x1000, 1600)]);
    }
    arrive(&wire, &[1; 100]);
    let _ = driver.turn(&mut net).expect("rules kept");
    assert_eq!(driver.used(TO_GUEST).len(), 1);
}

#[test]
fn a_packet_of_the_guest_goes_out_whole() {
    let (mut net, wire) = card(0);
    let mut driver = Driver::new(&[16, 16]);
    driver.write(DATA, &[0; 12]);
    driver.write(DATA + 0x1000, b"hello, wire");
    driver.offer(
        FROM_GUEST,
        &[(DATA, 12), (DATA + 0x1000, 5), (DATA + 0x1005, 6)],
        &[],
    );
    driver.offer(FROM_GUEST, &[(DATA, 12)], &[]);
    let _ = driver.turn(&mut net).expect("rules kept");
    let mut packet = [0; 100];
    let length = recv(wire.as_raw_fd(), &mut packet, MsgFlags::MSG_DONTWAIT).expect("a packet");
    assert_eq!(&packet[12..length], b"hello, wire");
    assert!(recv(wire.as_raw_fd(), &mut packet, MsgFlags::MSG_DONTWAIT).is_err());
    assert_eq!(driver.used(FROM_GUEST).len(), 2);
}

#[test]
fn a_reset_card_forgets_the_buffers_it_held() {
    let (mut net, wire) = card(MERGEABLE);
    let mut driver = Driver::new(&[16, 16]);
    driver.offer(TO_GUEST, &[], &[(DATA, 4096)]);
    let _ = driver.turn(&mut net).expect("rules kept");
    net.reset();
    arrive(&wire, &[1; 100]);
    let _ = driver.turn(&mut net).expect("rules kept");
    assert!(driver.used(TO_GUEST).is_empty());
}

/// Gives a command and takes the answer.
fn command(driver: &mut Driver, net: &mut Net, queue: usize, bytes: &[u8]) -> u8 {
    let (at, answer) = (DATA + 0x8_0000, DATA + 0x8_1000);
    driver.write(at, bytes);
    driver.write(answer, &[0xee]);
    let length = u32::try_from(bytes.len()).expect("small");
    driver.offer(queue, &[(at, length)], &[(answer, 1)]);
    let _ = driver.turn(net).expect("rules kept");
    assert_eq!(driver.used(queue).len(), 1);
    driver.read(answer, 1)[0]
}

#[test]
fn packets_arrive_on_the_pairs_that_the_driver_has_asked_for() {
    let (mut net, wires) = wide_card(3);
    assert_eq!(net.queues(), [256, 256, 256, 256, 256, 256, 16]);
    assert_eq!(net.config()[8..10], [3, 0]);
    let mut driver = Driver::new(&[16, 16, 16, 16, 16, 16, 16]);
    for pair in 0..3u64 {
        driver.offer(
            2 * usize::try_from(pair).expect("small"),
            &[],
            &[(DATA + pair * 0x1000, 4096)],
        );
    }
    wires.iter().for_each(|wire| arrive(wire, &[1; 100]));
    let _ = driver.turn(&mut net).expect("rules kept");
    let arrived = |driver: &mut Driver| [0, 2, 4].map(|queue| driver.used(queue).len());
    assert_eq!(arrived(&mut driver), [1, 0, 0]);
    assert_eq!(command(&mut driver, &mut net, 6, &[4, 0, 2, 0]), 0);
    let _ = driver.turn(&mut net).expect("rules kept");
    assert_eq!(arrived(&mut driver), [0, 1, 0]);
    let attached: Vec<_> = net.pairs.iter().map(Pair::is_attached).collect();
    assert_eq!(attached, [true, true, false]);
    // Too many, none, half a number, an unknown command: the answer is an error, and nothing changes.
    for bytes in [
        &[4, 0, 4, 0][..],
        &[4, 0, 0, 0],
        &[4, 0, 1],
        &[4, 1, 1, 0],
        &[1, 0, 1, 0],
    ] {
        assert_eq!(command(&mut driver, &mut net, 6, bytes), 1);
        assert_eq!(net.active, 2);
    }
    net.reset();
    assert_eq!(net.active, 1);
}

#[test]
fn a_driver_that_knows_commands_but_no_pairs_has_its_commands_in_the_third_queue() {
    let (mut net, _wires) = wide_card(2);
    net.reset();
    net.activate(1 << VIRTIO_NET_F_CTRL_VQ);
    let mut driver = Driver::new(&[16; 5]);
    assert_eq!(command(&mut driver, &mut net, 2, &[4, 0, 2, 0]), 1);
    assert_eq!(net.active, 1);
}

#[test]
fn a_card_has_one_to_a_few_pairs() {
    for pairs in [0, usize::from(NET_QUEUES_MAX) + 1] {
        let taps = (0..pairs).map(|_| wire().0).collect();
        let made = Net::fake(&spec(), taps);
        assert!(matches!(made, Err(NetError::Queues(n)) if n == pairs));
    }
}

#[test]
fn a_limit_holds_each_direction_back_and_a_timer_says_when_it_goes_on() {
    let value = |v| std::num::NonZeroU64::new(v).expect("not zero");
    // So slow that a test never sees the third one.
    let two = Rate {
        per_second: value(1),
        burst: value(2),
    };
    let limit = Limit {
        operations: Some(two),
        bytes: None,
    };
    for (tx, rx) in [(Some(limit), None), (None, Some(limit))] {
        let (ours, wire) = wire();
        let spec = NetSpec {
            limit: Some(NetLimit { tx, rx }),
            ..spec()
        };
        let mut net = Net::fake(&spec, vec![ours]).expect("makes");
        net.activate(MERGEABLE);
        let mut driver = Driver::new(&[16, 16]);
        for n in 0..4 {
            driver.offer(TO_GUEST, &[], &[(DATA + n * 0x1000, 4096)]);
            driver.offer(FROM_GUEST, &[(DATA, 112)], &[]);
            arrive(&wire, &[1; 100]);
        }
        for _ in 0..3 {
            let _ = driver.turn(&mut net).expect("rules kept");
        }
        let passed = (driver.used(FROM_GUEST).len(), driver.used(TO_GUEST).len());
        let mut sources = Vec::new();
        net.sources(&mut sources);
        let timers = [sources[2] != Source::never(), sources[1] != Source::never()];
        match tx {
            Some(_) => assert_eq!((passed, timers), ((2, 4), [true, false])),
            None => assert_eq!((passed, timers), ((4, 2), [false, true])),
        }
    }
}

#[test]
fn a_card_at_rest_holds_no_buffer_and_fills_them_afterwards_in_their_order() {
    let (mut net, wire) = card(MERGEABLE | SEGMENTED);
    let mut driver = Driver::new(&[64, 16]);
    let heads: Vec<u16> = (0..20)
        .map(|n| driver.offer(TO_GUEST, &[], &[(DATA + n * 0x1000, 4096)]))
        .collect();
    let _ = driver.turn(&mut net).expect("rules kept");
    assert!(!net.pairs[0].buffers.is_empty());
    driver.quiesce(&mut net).expect("rests");
    assert_eq!(driver.rings()[TO_GUEST].waiting(), 20);
    arrive(&wire, &[1; 100]);
    arrive(&wire, &[1; 100]);
    let _ = driver.turn(&mut net).expect("rules kept");
    assert_eq!(driver.used(TO_GUEST), [(heads[0], 112), (heads[1], 112)]);
}

#[test]
fn a_card_in_another_machine_receives_on_the_pairs_that_its_driver_uses() {
    let (mut before, _wires) = wide_card(3);
    let mut driver = Driver::new(&[16, 16, 16, 16, 16, 16, 16]);
    assert_eq!(command(&mut driver, &mut before, 6, &[4, 0, 2, 0]), 0);
    for pair in 0..3 {
        driver.offer(2 * pair, &[], &[(DATA, 4096)]);
    }
    let _ = driver.turn(&mut before).expect("rules kept");
    driver.quiesce(&mut before).expect("rests");
    let (mut after, wires) = wide_card(3);
    after.restore(&before.save()).expect("its own state");
    wires.iter().for_each(|wire| arrive(wire, &[1; 100]));
    let _ = driver.turn(&mut after).expect("rules kept");
    let attached: Vec<_> = after.pairs.iter().map(Pair::is_attached).collect();
    assert_eq!(attached, [true, true, false]);
    let arrived = [0, 2, 4].map(|queue| driver.used(queue).len());
    assert_eq!(arrived, [1, 1, 0]);
    for (features, state, good) in [
        (SEVERAL, 0, false),
        (SEVERAL, 3, true),
        (SEVERAL, 4, false),
        (0, 2, false),
        (0, 1, true),
    ] {
        after.activate(features);
        let restored = after.restore(&Value::from(state));
        assert_eq!(restored.is_ok(), good, "{features:#x} {state}");
    }
}

#[test]
fn offloads_are_asked_of_the_kernel_only_as_far_as_they_make_sense() {
    let cases = [
        (0, 0),
        (1 << VIRTIO_NET_F_GUEST_TSO4, 0),
        (
            1 << VIRTIO_NET_F_GUEST_CSUM | 1 << VIRTIO_NET_F_GUEST_ECN,
            CHECKSUM,
        ),
        (SEGMENTED, CHECKSUM | SEGMENTATION_4),
        (
            SEGMENTED | 1 << VIRTIO_NET_F_GUEST_TSO6 | 1 << VIRTIO_NET_F_GUEST_ECN,
            CHECKSUM | SEGMENTATION_4 | SEGMENTATION_6 | CONGESTION,
        ),
    ];
    for (features, offloads) in cases {
        assert_eq!(card(features).0.offloads(), offloads, "{features:#x}");
    }
}

#[test]
fn a_card_has_vhost_for_every_pair_or_none_and_no_limit_beside_it() {
    let null = || {
        File::options()
            .read(true)
            .write(true)
            .open("/dev/null")
            .expect("opens")
    };
    let some = Net::new(&spec(), vec![wire().0, wire().0], vec![null()]);
    let [vhosts, pairs] = [1, 2];
    assert!(
        matches!(some, Err(NetError::SomeVhost { vhosts: v, pairs: p }) if (v, p) == (vhosts, pairs))
    );
    let limited = NetSpec {
        limit: Some(NetLimit::default()),
        ..spec()
    };
    let limited = Net::new(&limited, vec![wire().0], vec![null()]);
    assert!(matches!(limited, Err(NetError::LimitedVhost)));
    let wrong = Net::new(&spec(), vec![wire().0], vec![null()]);
    assert!(matches!(wrong, Err(NetError::Vhost(_) | NetError::Tap(_))));
}

#[test]
fn a_ring_that_another_serves_is_whole_and_goes_on_where_he_stopped() {
    let mut driver = Driver::new(&[16, 16]);
    driver.offer(TO_GUEST, &[], &[(DATA, 4096)]);
    let base = {
        let slice =
            vm_memory::GuestMemoryBackend::get_slice(&driver.ram, vm_memory::GuestAddress(0), 1);
        slice.expect("inside").ptr_guard().as_ptr().addr() as u64
    };
    let rings = driver.rings();
    let place = rings[TO_GUEST].place().expect("inside").expect("set up");
    let offsets = [place.descriptors, place.available, place.used].map(|at| at - base);
    assert_eq!(
        (place.size, place.next, offsets),
        (16, 0, [0, 0x4000, 0x8000])
    );
    // He takes the chain and answers it.
    driver.write(0x8004, &0u64.to_le_bytes());
    driver.write(0x8002, &1u16.to_le_bytes());
    let mut rings = driver.rings();
    rings[TO_GUEST].take_over(1).expect("inside");
    assert_eq!(rings[TO_GUEST].waiting(), 0);
    drop(rings);
    let head = driver.offer(TO_GUEST, &[], &[(DATA, 4096)]);
    let mut rings = driver.rings();
    let chain = rings[TO_GUEST].pop().expect("rules kept").expect("offered");
    assert_eq!(chain.head, head);
    rings[TO_GUEST].complete(head, 7).expect("inside");
    drop(rings);
    assert_eq!(driver.used(TO_GUEST), [(0, 0), (head, 7)]);
}

proptest! {
    #[test]
    fn no_descriptors_make_the_card_panic(
        descriptors in hostile::descriptors(), heads in hostile::heads(),
        mergeable in any::<bool>(), packets in prop::collection::vec(0usize..9000, 0..6),
    ) {
        let (mut net, wire) = card(if mergeable { MERGEABLE } else { 0 });
        let mut driver = Driver::new(&[16, 16]);
        for (index, (address, length, flags, next)) in (0u16..).zip(descriptors) {
            driver.describe(TO_GUEST, index, address, length, flags | 2, next);
            driver.describe(FROM_GUEST, index, address, length, flags & !2, next);
        }
        for length in packets {
            arrive(&wire, &vec![1; length]);
        }
        for head in heads {
            driver.offer_head(TO_GUEST, head);
            driver.offer_head(FROM_GUEST, head);
            if driver.turn(&mut net).is_err() {
                net.reset();
            }
            prop_assert!(net.pairs[0].buffers.len() <= 16 + 1);
        }
    }
}
