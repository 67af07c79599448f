//! The socket device as a driver sees it, well-behaved and hostile.

use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;

use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, recv, send, socketpair};
use proptest::prelude::*;
use types::guest::{CONTROL_PORT, FromGuest, STDOUT_PORT, ToGuest};
use types::vm::{FromBroker, FromVmm, SOCKET_PORT_MAX, SOCKETS_MAX, ToBroker, ToVmm};

use super::packet::{NO_RECEIVE, NO_SEND};
use super::*;
use crate::control::Inbox;
use crate::virtio::testing::{DATA, Driver, hostile};

const EXITED: &[u8] = b"{\"exited\":{\"code\":3,\"signal\":null,\"oom_kills\":0}}\n";

/// A port of a program of the host.
const NAMED: u32 = 5001;

/// A guest with one device and the node's end of its control socket.
struct Guest {
    driver: Driver,
    device: Vsock,
    outbox: Arc<Outbox>,
    node: OwnedFd,
    broker: OwnedFd,
    inbox: Inbox,
    packets: u64,
}

impl Guest {
    fn new() -> Self {
        let (ours, node) = socketpair(
            AddressFamily::Unix,
            SockType::SeqPacket,
            None,
            SockFlag::SOCK_CLOEXEC,
        )
        .expect("sockets");
        let ours = Arc::new(ours);
        let outbox = Arc::new(Outbox::new(Some(ours.clone())).expect("makes"));
        let lines = Arc::new(Lines::new().expect("makes"));
        let (ours_too, broker) = sys::socket::pair().expect("sockets");
        sys::socket::set_nonblocking(&broker).expect("a flag");
        let forward = Broker::new(ours_too, &[NAMED]).expect("a flag");
        let device = Vsock::new(&outbox, &lines, None, Some(forward));
        let inbox = Inbox::new(Some(ours), &lines, &outbox).expect("makes");
        let mut guest = Self {
            driver: Driver::new(&[128, 128, 16]),
            device,
            outbox,
            node,
            broker,
            inbox,
            packets: 0,
        };
        for place in 0..64 {
            guest.offer_buffer(place);
        }
        guest
    }

    /// A buffer of 4 KiB for packets to us.
    fn offer_buffer(&mut self, place: u64) {
        self.driver
            .offer(TO_GUEST, &[], &[(DATA + place * 0x1000, 0x1000)]);
    }

    fn header(port: u32, operation: u16) -> Header {
        Header {
            source_cid: GUEST_CID,
            destination_cid: HOST_CID,
            source_port: 5000,
            destination_port: port,
            kind: STREAM,
            operation,
            buffer: 0x1_0000,
            ..Header::default()
        }
    }

    fn say(&mut self, header: Header, data: &[u8]) {
        let at = DATA + 0x10_0000 + self.packets % 8 * 0x2_0000;
        self.packets += 1;
        let header = Header {
            length: u32::try_from(data.len()).expect("small"),
            ..header
        };
        self.driver.write(at, &header.encode());
        self.driver.write(at + 44, data);
        let length = u32::try_from(data.len()).expect("small");
        self.driver.offer(
            FROM_GUEST,
            &[(at, 44), (at + 44, length)][..if length > 0 { 2 } else { 1 }],
            &[],
        );
        let _ = self.driver.turn(&mut self.device).expect("rules kept");
    }

    /// Packets that arrived: operation, flags and data.
    fn heard(&mut self) -> Vec<(u16, u32, Vec<u8>)> {
        let used = self.driver.used(TO_GUEST);
        used.into_iter()
            .map(|(head, length)| {
                let bytes = self
                    .driver
                    .read(DATA + u64::from(head) * 0x1000, length as usize);
                let header = Header::decode(bytes.first_chunk().expect("a header"));
                assert_eq!(header.length as usize, bytes.len() - 44);
                (header.operation, header.flags, bytes[44..].to_vec())
            })
            .collect()
    }

    fn operations(&mut self) -> Vec<u16> {
        self.heard().into_iter().map(|p| p.0).collect()
    }

    fn connect(&mut self, port: u32) {
        self.say(Self::header(port, op::REQUEST), &[]);
        assert_eq!(self.operations(), [op::RESPONSE]);
    }

    fn node_hears(&self) -> Option<FromVmm> {
        let mut packet = [0; 8192];
        let length = recv(self.node.as_raw_fd(), &mut packet, MsgFlags::MSG_DONTWAIT).ok()?;
        Some(serde_json::from_slice(&packet[..length]).expect("a message"))
    }

    fn node_says(&mut self, message: ToGuest) {
        let packet = serde_json::to_vec(&ToVmm::Guest(message)).expect("plain data");
        send(self.node.as_raw_fd(), &packet, MsgFlags::empty()).expect("sends");
        assert!(self.inbox.next().is_none());
        let _ = self.driver.turn(&mut self.device).expect("rules kept");
    }
}

#[test]
fn lines_reach_the_node_and_its_messages_reach_the_guest() {
    let mut guest = Guest::new();
    guest.connect(CONTROL_PORT);
    let init = guest.node_hears();
    assert!(
        matches!(init, Some(FromVmm::GuestInit { us: 1.. })),
        "{init:?}"
    );
    guest.say(Guest::header(CONTROL_PORT, op::DATA), &EXITED[..20]);
    assert_eq!(guest.node_hears(), None);
    guest.say(Guest::header(CONTROL_PORT, op::DATA), &EXITED[20..]);
    assert!(matches!(
        guest.node_hears(),
        Some(FromVmm::Guest(FromGuest::Exited { code: 3, .. }))
    ));
    guest.node_says(ToGuest::Stop);
    assert_eq!(guest.heard(), [(op::DATA, 0, b"\"stop\"\n".to_vec())]);
}

#[test]
fn a_message_of_the_node_waits_for_the_guest_to_connect() {
    let mut guest = Guest::new();
    guest.node_says(ToGuest::Stop);
    guest.node_says(ToGuest::Signal { number: 15 });
    assert!(guest.heard().is_empty());
    guest.say(Guest::header(CONTROL_PORT, op::REQUEST), &[]);
    let heard: Vec<u8> = guest.heard().into_iter().flat_map(|p| p.2).collect();
    assert_eq!(heard, b"\"stop\"\n{\"signal\":{\"number\":15}}\n");
}

#[test]
fn other_ports_types_and_addresses_are_reset() {
    let wrong = [
        Guest::header(99, op::REQUEST),
        Header {
            kind: 2,
            ..Guest::header(CONTROL_PORT, op::REQUEST)
        },
        Header {
            source_cid: 4,
            ..Guest::header(CONTROL_PORT, op::REQUEST)
        },
        Header {
            destination_cid: 1,
            ..Guest::header(CONTROL_PORT, op::REQUEST)
        },
        Guest::header(CONTROL_PORT, op::DATA),
        Guest::header(CONTROL_PORT, 77),
    ];
    for header in wrong {
        let mut guest = Guest::new();
        guest.say(header, &[]);
        assert_eq!(guest.operations(), [op::RESET], "{header:?}");
    }
}

#[test]
fn a_reset_is_never_answered() {
    let mut guest = Guest::new();
    guest.say(Guest::header(99, op::RESET), &[]);
    guest.connect(STDOUT_PORT);
    guest.say(Guest::header(STDOUT_PORT, op::RESET), &[]);
    assert!(guest.heard().is_empty() && guest.device.connections.is_empty());
}

#[test]
fn only_one_connection_reads_the_control_port() {
    let mut guest = Guest::new();
    guest.connect(CONTROL_PORT);
    guest.say(
        Header {
            source_port: 6000,
            ..Guest::header(CONTROL_PORT, op::REQUEST)
        },
        &[],
    );
    assert_eq!(guest.operations(), [op::RESET]);
    assert_eq!(guest.device.connections.len(), 1);
}

#[test]
fn connections_are_bounded() {
    let mut guest = Guest::new();
    for port in 0..40 {
        guest.say(
            Header {
                source_port: port,
                ..Guest::header(STDOUT_PORT, op::REQUEST)
            },
            &[],
        );
    }
    assert_eq!(guest.device.connections.len(), CONNECTIONS_MAX);
    let resets = guest
        .operations()
        .into_iter()
        .filter(|o| *o == op::RESET)
        .count();
    assert_eq!(resets, 40 - CONNECTIONS_MAX);
}

#[test]
fn a_line_that_is_no_message_resets_the_connection() {
    let mut guest = Guest::new();
    guest.connect(CONTROL_PORT);
    guest.say(Guest::header(CONTROL_PORT, op::DATA), b"give me root\n");
    assert_eq!(guest.operations(), [op::RESET]);
    assert!(guest.device.connections.is_empty());
}

#[test]
fn after_half_close_the_host_closes_once_the_last_line_is_handed_on() {
    let mut guest = Guest::new();
    guest.connect(CONTROL_PORT);
    // The node reads nothing until the socket is full.
    while guest.outbox.empty() {
        guest.outbox.post(&FromVmm::Running { setup_us: 0 });
    }
    guest.say(Guest::header(CONTROL_PORT, op::DATA), EXITED);
    guest.say(
        Header {
            flags: NO_SEND,
            ..Guest::header(CONTROL_PORT, op::SHUTDOWN)
        },
        &[],
    );
    assert!(guest.heard().is_empty());
    let mut last = None;
    while let Some(message) = guest.node_hears() {
        last = Some(message);
        crate::event::Served::serve(guest.outbox.as_ref(), 1);
    }
    assert!(matches!(
        last,
        Some(FromVmm::Guest(FromGuest::Exited { .. }))
    ));
    let _ = guest.driver.turn(&mut guest.device).expect("rules kept");
    assert_eq!(
        guest.heard(),
        [(op::SHUTDOWN, NO_RECEIVE | NO_SEND, vec![])]
    );
    guest.say(Guest::header(CONTROL_PORT, op::RESET), &[]);
    assert!(guest.device.connections.is_empty());
}

#[test]
fn a_node_that_does_not_read_stops_the_guest_and_loses_nothing() {
    let mut guest = Guest::new();
    guest.connect(CONTROL_PORT);
    let lines = EXITED.repeat(20);
    let (mut sent, mut buffered) = (0, 0);
    // Well-behaved: sends only what it has credit for, told by the packets it gets.
    while buffered + lines.len() <= BUFFER_BYTES as usize {
        guest.say(Guest::header(CONTROL_PORT, op::DATA), &lines);
        sent += 20;
        let key = (Port::Control, 5000);
        buffered = guest.device.connections[&key].inbox.len();
    }
    let mut got = 0;
    assert!(matches!(
        guest.node_hears(),
        Some(FromVmm::GuestInit { .. })
    ));
    while let Some(message) = guest.node_hears() {
        assert!(matches!(message, FromVmm::Guest(_)));
        got += 1;
        crate::event::Served::serve(guest.outbox.as_ref(), 1);
        let _ = guest.driver.turn(&mut guest.device).expect("rules kept");
    }
    assert_eq!(got, sent);
}

#[test]
fn output_gives_credit_back() {
    let mut guest = Guest::new();
    guest.connect(STDOUT_PORT);
    for _ in 0..20 {
        guest.say(Guest::header(STDOUT_PORT, op::DATA), &[b'x'; 30_000]);
    }
    let operations = guest.operations();
    assert!(operations.len() >= 8 && operations.iter().all(|o| *o == op::CREDIT_UPDATE));
}

#[test]
fn lengths_that_lie_are_violations() {
    for length in [1, 100, BUFFER_BYTES + 1, u32::MAX] {
        let mut guest = Guest::new();
        guest.connect(STDOUT_PORT);
        let header = Header {
            length,
            ..Guest::header(STDOUT_PORT, op::DATA)
        };
        guest.driver.write(DATA + 0x20_0000, &header.encode());
        guest
            .driver
            .offer(FROM_GUEST, &[(DATA + 0x20_0000, 44)], &[]);
        assert!(guest.driver.turn(&mut guest.device).is_err());
    }
    let mut guest = Guest::new();
    guest.driver.offer(FROM_GUEST, &[(DATA, 43)], &[]);
    assert!(guest.driver.turn(&mut guest.device).is_err());
}

#[test]
fn a_buffer_without_room_for_data_is_a_violation() {
    for length in [10, 44] {
        let (mut driver, outbox) = (Driver::new(&[128, 128, 16]), Outbox::new(None));
        let lines = Arc::new(Lines::new().expect("makes"));
        let mut device = Vsock::new(&Arc::new(outbox.expect("makes")), &lines, None, None);
        driver.write(DATA, &Guest::header(99, op::REQUEST).encode());
        driver.offer(FROM_GUEST, &[(DATA, 44)], &[]);
        driver.offer(TO_GUEST, &[], &[(DATA + 0x1000, length)]);
        assert!(driver.turn(&mut device).is_err(), "{length}");
    }
}

#[test]
fn what_is_said_in_one_turn_is_bounded_and_the_rest_comes_in_the_next() {
    let (mut driver, outbox) = (Driver::new(&[256, 128, 16]), Outbox::new(None));
    let lines = Arc::new(Lines::new().expect("makes"));
    let mut device = Vsock::new(&Arc::new(outbox.expect("makes")), &lines, None, None);
    let resets = u32::try_from(PACKETS_PER_TURN).expect("small") + 10;
    device.resets.extend((0..resets).map(|port| (99, port)));
    for place in 0..200 {
        driver.offer(TO_GUEST, &[], &[(DATA + place * 0x1000, 0x1000)]);
    }
    assert_eq!(driver.turn(&mut device).expect("rules kept"), Turn::Again);
    assert_eq!(driver.used(TO_GUEST).len(), PACKETS_PER_TURN);
    assert_eq!(driver.turn(&mut device).expect("rules kept"), Turn::Done);
    assert_eq!(driver.used(TO_GUEST).len(), 10);
}

#[test]
fn a_guest_that_takes_no_packets_makes_no_queue_grow() {
    let mut driver = Driver::new(&[128, 128, 16]);
    let outbox = Arc::new(Outbox::new(None).expect("makes"));
    let lines = Arc::new(Lines::new().expect("makes"));
    let mut device = Vsock::new(&outbox, &lines, None, None);
    driver.write(DATA, &Guest::header(99, op::REQUEST).encode());
    for _ in 0..300 {
        driver.offer(FROM_GUEST, &[(DATA, 44)], &[]);
        let _ = driver.turn(&mut device);
    }
    assert_eq!(device.resets.len(), RESETS_MAX);
}

proptest! {
    #[test]
    fn no_packets_make_the_device_panic_or_its_tables_grow(
        descriptors in hostile::descriptors(), heads in hostile::heads(),
        headers in prop::collection::vec(
            (0u32..8, prop_oneof![Just(99u32), 1024u32..1027], 0u32..100, 0u16..9, 0u32..4, any::<(u32, u32)>()), 32),
    ) {
        let mut guest = Guest::new();
        for (place, (source_port, port, length, operation, flags, (buffer, forwarded))) in (0u64..).zip(headers) {
            let header = Header { source_port, length, flags, buffer, forwarded, ..Guest::header(port, operation) };
            guest.driver.write(0x20_0000 + place * 0x1_0000, &header.encode());
        }
        for (index, (address, length, flags, next)) in (0u16..).zip(descriptors) {
            let sane = address < 0x20_0000;
            let address = if sane { 0x20_0000 + address / 0x1_0000 * 0x1_0000 } else { address };
            let flags = if sane { flags & 1 } else { flags };
            guest.driver.describe(FROM_GUEST, index, address, length.max(60), flags, next);
        }
        for head in heads {
            guest.driver.offer_head(FROM_GUEST, head);
            let _ = guest.driver.turn(&mut guest.device);
        }
        prop_assert!(guest.device.connections.len() <= CONNECTIONS_MAX);
        prop_assert!(guest.device.resets.len() <= RESETS_MAX + CONNECTIONS_MAX);
        let held = |entry: &Entry| entry.inbox.len() <= BUFFER_BYTES as usize;
        prop_assert!(guest.device.connections.values().all(held));
    }
}

#[test]
fn in_a_restored_machine_the_guest_is_told_once_that_its_connections_are_gone() {
    let mut guest = Guest::new();
    guest.device.restore(&Value::Null).expect("its own state");
    // Not before the driver has room for it.
    let _ = guest.driver.turn(&mut guest.device).expect("rules kept");
    for place in 0..2 {
        guest
            .driver
            .offer(EVENTS, &[], &[(DATA + place * 0x1000, 8)]);
    }
    guest.driver.write(DATA, &[0xff; 8]);
    for _ in 0..2 {
        let _ = guest.driver.turn(&mut guest.device).expect("rules kept");
    }
    assert_eq!(guest.driver.used(EVENTS), [(0, 4)]);
    assert_eq!(guest.driver.read(DATA, 5), [0, 0, 0, 0, 0xff]);
}

/// A connection's bytes that have come to the guest.
fn data(heard: Vec<(u16, u32, Vec<u8>)>) -> Vec<u8> {
    let data = heard.into_iter().filter(|packet| packet.0 == op::DATA);
    data.flat_map(|packet| packet.2).collect()
}

impl Guest {
    fn turn(&mut self) {
        while self.driver.turn(&mut self.device).expect("rules kept") == Turn::Again {}
    }

    /// What the broker is asked for.
    fn broker_hears(&self) -> Option<ToBroker> {
        let mut packet = [0; 256];
        let received = sys::socket::receive(self.broker.as_fd(), &mut packet).ok()??;
        serde_json::from_slice(&packet[..received.length]).ok()
    }

    fn broker_says(&mut self, message: &FromBroker, stream: Option<&UnixStream>) {
        let packet = serde_json::to_vec(message).expect("plain data");
        let stream: Vec<_> = stream.iter().map(AsFd::as_fd).collect();
        sys::socket::send(self.broker.as_fd(), &packet, &stream).expect("sends");
        self.turn();
    }

    /// A program of the host, connected to by the guest.
    fn reach(&mut self) -> UnixStream {
        self.say(Self::header(NAMED, op::REQUEST), &[]);
        let asked = self.broker_hears().expect("the broker is asked");
        assert_eq!((asked.port, asked.guest_port), (NAMED, 5000));
        assert!(self.operations().is_empty(), "not before it has answered");
        let (ours, host) = stream();
        let (port, guest_port) = (asked.port, asked.guest_port);
        self.broker_says(&FromBroker::Accepted { port, guest_port }, Some(&ours));
        assert_eq!(self.operations(), [op::RESPONSE]);
        host
    }
}

/// Both ends of a stream, non-blocking.
fn stream() -> (UnixStream, UnixStream) {
    let (ours, host) = UnixStream::pair().expect("sockets");
    for end in [&ours, &host] {
        end.set_nonblocking(true).expect("a flag");
    }
    (ours, host)
}

fn all(host: &mut UnixStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    match host.read_to_end(&mut bytes) {
        Ok(_) => {}
        Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
    }
    bytes
}

#[test]
fn the_guest_speaks_to_a_program_of_the_host_and_is_answered() {
    let mut guest = Guest::new();
    let mut host = guest.reach();
    guest.say(Guest::header(NAMED, op::DATA), b"hello");
    assert_eq!(all(&mut host), b"hello");
    host.write_all(b"hello, guest").expect("room");
    guest.turn();
    assert_eq!(data(guest.heard()), b"hello, guest");
    // The guest has said its last word; the host answers it, and then there is an end.
    let header = Header {
        flags: NO_SEND,
        ..Guest::header(NAMED, op::SHUTDOWN)
    };
    guest.say(header, &[]);
    assert_eq!(host.read(&mut [0]).expect("an end"), 0);
    host.write_all(b"bye").expect("the guest reads");
    drop(host);
    guest.turn();
    let heard = guest.heard();
    assert_eq!(heard[0], (op::DATA, 0, b"bye".to_vec()));
    let last = heard.last().expect("an end");
    assert_eq!((last.0, last.1), (op::SHUTDOWN, NO_RECEIVE | NO_SEND));
    guest.say(Guest::header(NAMED, op::RESET), &[]);
    assert!(guest.device.connections.is_empty());
}

#[test]
fn a_program_of_the_host_speaks_to_the_guest_from_a_port_of_its_own() {
    let mut guest = Guest::new();
    let (ours, mut host) = stream();
    host.write_all(b"early").expect("room");
    guest.broker_says(&FromBroker::Connect { guest_port: 22 }, Some(&ours));
    drop(ours);
    assert_eq!(guest.operations(), [op::REQUEST]);
    let keys: Vec<Key> = guest.device.connections.keys().copied().collect();
    let [(Port::Forwarded(port), 22)] = keys[..] else {
        panic!("{keys:?}");
    };
    assert!(port > SOCKET_PORT_MAX);
    let from = |operation| Header {
        source_port: 22,
        ..Guest::header(port, operation)
    };
    guest.say(from(op::RESPONSE), &[]);
    assert_eq!(data(guest.heard()), b"early");
    guest.say(from(op::DATA), b"welcome");
    assert_eq!(all(&mut host), b"welcome");
    // A program that closes: both ends go.
    let flags = NO_SEND | NO_RECEIVE;
    guest.say(
        Header {
            flags,
            ..from(op::SHUTDOWN)
        },
        &[],
    );
    assert_eq!(guest.operations(), [op::RESET]);
    assert_eq!(host.read(&mut [0]).expect("an end"), 0);
}

#[test]
fn the_guest_that_refuses_and_the_host_that_refuses_are_heard() {
    let mut guest = Guest::new();
    let (ours, mut host) = stream();
    guest.broker_says(&FromBroker::Connect { guest_port: 22 }, Some(&ours));
    drop(ours);
    let Some((Port::Forwarded(port), _)) = guest.device.connections.keys().next().copied() else {
        panic!("no connection");
    };
    let header = Header {
        source_port: 22,
        ..Guest::header(port, op::RESET)
    };
    guest.say(header, &[]);
    assert_eq!(host.read(&mut [0]).expect("an end"), 0);
    guest.heard();
    let (port, guest_port) = (NAMED, 5000);
    guest.say(Guest::header(port, op::REQUEST), &[]);
    guest.broker_says(&FromBroker::Accepted { port, guest_port }, None);
    assert_eq!(guest.operations(), [op::RESET]);
    // A port that is not named is nobody's to answer for.
    assert!(guest.broker_hears().is_some());
    guest.say(Guest::header(NAMED + 1, op::REQUEST), &[]);
    assert_eq!(guest.operations(), [op::RESET]);
    assert!(guest.broker_hears().is_none() && guest.device.connections.is_empty());
}

#[test]
fn whoever_waits_for_a_broker_that_goes_is_refused_and_who_is_connected_stays() {
    let mut guest = Guest::new();
    let mut host = guest.reach();
    let waiting = Header {
        source_port: 6000,
        ..Guest::header(NAMED, op::REQUEST)
    };
    guest.say(waiting, &[]);
    drop(std::mem::replace(
        &mut guest.broker,
        sys::socket::pair().expect("sockets").0,
    ));
    guest.turn();
    assert_eq!(guest.operations(), [op::RESET]);
    guest.say(waiting, &[]);
    assert_eq!(guest.operations(), [op::RESET]);
    guest.say(Guest::header(NAMED, op::DATA), b"still here");
    assert_eq!(all(&mut host), b"still here");
}

#[test]
fn a_program_that_does_not_read_stops_its_guest_and_loses_nothing() {
    let mut guest = Guest::new();
    let mut host = guest.reach();
    let block: Vec<u8> = (0..30_000u32).map(|n| n.to_le_bytes()[0]).collect();
    let key = (Port::Forwarded(NAMED), 5000);
    let mut sent = Vec::new();
    // Well-behaved: sends only what it has credit for.
    while guest.device.connections[&key].inbox.len() + block.len() <= BUFFER_BYTES as usize {
        guest.say(Guest::header(NAMED, op::DATA), &block);
        sent.extend_from_slice(&block);
    }
    let held = guest.device.connections[&key].inbox.len();
    assert!(held > 0, "the stream has taken all of it");
    let mut got = Vec::new();
    while got.len() < sent.len() {
        got.extend(all(&mut host));
        guest.turn();
    }
    assert_eq!(got, sent);
    guest.heard();
    // One that sends without credit is reset.
    for _ in 0..20 {
        guest.say(Guest::header(NAMED, op::DATA), &block);
    }
    assert!(guest.operations().contains(&op::RESET));
}

#[test]
fn a_guest_that_does_not_read_stops_its_program_and_what_waits_is_bounded() {
    let mut guest = Guest::new();
    let mut host = guest.reach();
    let mut written = 0;
    while let Ok(count) = host.write(&[7; 4096]) {
        written += count;
        guest.turn();
        let entry = guest.device.connections.values().next().expect("connected");
        assert!(entry.connection.unsent() <= BUFFER_BYTES as usize);
    }
    let come = data(guest.heard()).len();
    assert!(come <= 0x1_0000, "more than its credit: {come}");
    assert!(written > come + BUFFER_BYTES as usize / 2);
}

#[test]
fn forwarded_connections_are_bounded_and_leave_room_for_the_guests_init() {
    let mut guest = Guest::new();
    let (ours, _host) = stream();
    // Each packet to the guest takes a buffer, of which there are 64 to begin with.
    for place in (64u64..).take(SOCKETS_MAX + 3) {
        guest.broker_says(&FromBroker::Connect { guest_port: 22 }, Some(&ours));
        guest.heard();
        guest.offer_buffer(place % 128);
    }
    assert_eq!(guest.device.connections.len(), SOCKETS_MAX);
    guest.say(Guest::header(NAMED, op::REQUEST), &[]);
    assert_eq!(guest.operations(), [op::RESET]);
    assert!(guest.broker_hears().is_none());
    guest.connect(CONTROL_PORT);
}
