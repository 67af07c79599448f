//! The network card as a driver sees it. A socket of packets stands for the TAP.

use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, recv, send, socketpair};
use proptest::prelude::*;

use super::*;
use crate::virtio::testing::{DATA, Driver, hostile};

const MERGEABLE: u64 = 1 << VIRTIO_NET_F_MRG_RXBUF;
const SEGMENTED: u64 = 1 << VIRTIO_NET_F_GUEST_TSO4 | 1 << VIRTIO_NET_F_GUEST_CSUM;

fn card(features: u64) -> (Net, OwnedFd) {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let (ours, wire) =
        socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags).expect("sockets");
    let mut net = Net {
        tap: Tap::fake(File::from(ours)),
        config: [0; 12],
        mtu: 1500,
        features: 0,
        offloads: None,
        buffers: VecDeque::new(),
        room: 0,
        fillable: false,
    };
    net.activate(features);
    (net, wire)
}

fn arrive(wire: &OwnedFd, packet: &[u8]) {
    send(
        wire.as_raw_fd(),
        &[&[0; 12], packet].concat(),
        MsgFlags::empty(),
    )
    .expect("sends");
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
    assert!(driver.used(TO_GUEST).is_empty() && !net.fillable);
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
            prop_assert!(net.buffers.len() <= 16 + 1);
        }
    }
}
