//! The console against a driver that follows the rules, and one that does not.

use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use proptest::prelude::*;

use super::*;
use crate::virtio::testing::{DATA, Driver, hostile};

fn console() -> (Console, UnixStream) {
    let (ours, theirs) = UnixStream::pair().expect("sockets");
    theirs.set_nonblocking(true).expect("a flag");
    let file = File::from(OwnedFd::from(ours));
    (
        Console::new(file, ConsoleKind::Stream).expect("a flag"),
        theirs,
    )
}

/// A console with a driver that knows nothing of ports.
fn plain() -> (Console, UnixStream, Driver) {
    let (mut console, world) = console();
    console.activate(0);
    (console, world, Driver::new(&QUEUES))
}

/// What there is to read now.
fn read(world: &mut UnixStream) -> Vec<u8> {
    let mut out = Vec::new();
    let mut part = vec![0; 64 << 10];
    while let Ok(count @ 1..) = world.read(&mut part) {
        out.extend(&part[..count]);
    }
    out
}

fn send(driver: &mut Driver, message: [u16; 4]) {
    let bytes: Vec<u8> = message.iter().flat_map(|word| word.to_le_bytes()).collect();
    driver.write(DATA, &bytes);
    driver.offer(CONTROL_FROM_GUEST, &[(DATA, 8)], &[]);
}

#[test]
fn output_comes_out_in_order_and_whole() {
    let (mut console, mut world, mut driver) = plain();
    driver.write(DATA, b"hello, world");
    driver.offer(FROM_GUEST, &[(DATA, 5), (DATA + 5, 2)], &[]);
    driver.offer(FROM_GUEST, &[(DATA + 7, 5)], &[]);
    assert_eq!(driver.turn(&mut console).expect("served"), Turn::Done);
    assert_eq!(read(&mut world), b"hello, world");
    assert_eq!(driver.used(FROM_GUEST).len(), 2);
}

#[test]
fn a_reader_that_is_slow_loses_nothing_and_the_guest_waits() {
    let (mut console, mut world, mut driver) = plain();
    let all: Vec<u8> = (0..3_000_000u32)
        .map(|n| (n * 7).to_le_bytes()[1])
        .collect();
    driver.write(DATA, &all);
    let (head, length) = (DATA, u32::try_from(all.len()).expect("short"));
    driver.offer(FROM_GUEST, &[(head, length)], &[]);
    let mut out = Vec::new();
    let mut waited = 0;
    while driver.used(FROM_GUEST).is_empty() {
        let turn = driver.turn(&mut console).expect("served");
        if turn == Turn::Done && console.output == Flow::Waiting {
            waited += 1;
            let mut sources = Vec::new();
            console.sources(&mut sources);
            assert_eq!(sources[1], Source::writable(&console.descriptor));
        }
        out.extend(read(&mut world));
    }
    out.extend(read(&mut world));
    assert!(out == all, "{} of {} bytes", out.len(), all.len());
    assert!(waited > 1, "a socket takes no three megabytes");
}

#[test]
fn output_that_was_half_out_goes_on_in_another_machine_where_it_stopped() {
    let (mut console, mut world, mut driver) = plain();
    let all: Vec<u8> = (0..3_000_000u32)
        .map(|n| (n * 7).to_le_bytes()[1])
        .collect();
    driver.write(DATA, &all);
    let length = u32::try_from(all.len()).expect("short");
    driver.offer(FROM_GUEST, &[(DATA, length)], &[]);
    while console.output != Flow::Waiting {
        let _ = driver.turn(&mut console).expect("served");
    }
    driver.quiesce(&mut console).expect("rests");
    let state = console.save();
    let mut out = read(&mut world);
    drop(console);
    let (mut after, mut world, _) = plain();
    after.restore(&state).expect("its own state");
    assert_eq!(after.save(), state);
    while driver.used(FROM_GUEST).is_empty() {
        let _ = driver.turn(&mut after).expect("served");
        out.extend(read(&mut world));
    }
    out.extend(read(&mut world));
    assert!(out == all, "{} of {} bytes", out.len(), all.len());
    assert_eq!(after.restore(&Value::Null), Err(Foreign));
    let terminal = Console::new(after.descriptor, ConsoleKind::Terminal).expect("a flag");
    assert_ne!(terminal.shape(), console_shape());
}

fn console_shape() -> Vec<u8> {
    console().0.shape()
}

#[test]
fn output_that_nobody_can_ever_take_is_dropped() {
    let (mut console, world, mut driver) = plain();
    drop(world);
    for _ in 0..3 {
        driver.offer(FROM_GUEST, &[(DATA, 100)], &[]);
        assert_eq!(driver.turn(&mut console).expect("served"), Turn::Done);
    }
    assert_eq!(driver.used(FROM_GUEST).len(), 3);
    let mut sources = Vec::new();
    console.sources(&mut sources);
    assert_eq!(sources, [Source::never(); 2]);
}

#[test]
fn input_waits_for_room_and_then_comes_in_order() {
    let (mut console, mut world, mut driver) = plain();
    world.write_all(b"abcdefgh").expect("room");
    let sources = |console: &Console| {
        let mut out = Vec::new();
        console.sources(&mut out);
        out
    };
    assert_eq!(driver.turn(&mut console).expect("served"), Turn::Done);
    assert_eq!(sources(&console)[0], Source::never());
    driver.offer(TO_GUEST, &[], &[(DATA, 3), (DATA + 64, 2)]);
    driver.offer(TO_GUEST, &[], &[(DATA + 128, 100)]);
    driver.offer(TO_GUEST, &[], &[(DATA + 256, 100)]);
    assert_eq!(driver.turn(&mut console).expect("served"), Turn::Done);
    let lengths: Vec<u32> = driver.used(TO_GUEST).iter().map(|u| u.1).collect();
    assert_eq!(lengths, [5, 3]);
    assert_eq!(driver.read(DATA, 3), b"abc");
    assert_eq!(driver.read(DATA + 64, 2), b"de");
    assert_eq!(driver.read(DATA + 128, 3), b"fgh");
    assert_eq!(sources(&console)[0], Source::readable(&console.descriptor));
    world.write_all(b"i").expect("room");
    assert_eq!(driver.turn(&mut console).expect("served"), Turn::Done);
    assert_eq!(driver.used(TO_GUEST).len(), 1);
    assert_eq!(driver.read(DATA + 256, 1), b"i");
}

#[test]
fn linux_learns_of_the_port_opens_it_and_hears_the_end() {
    let (mut console, mut world) = console();
    console.activate(MULTIPORT);
    let mut driver = Driver::new(&QUEUES);
    for place in 0..8u64 {
        let buffer = (DATA + 0x1000 + place * 64, 64);
        driver.offer(CONTROL_TO_GUEST, &[], &[buffer]);
    }
    send(&mut driver, [u16::MAX, u16::MAX, 0, 1]);
    let _ = driver.turn(&mut console).expect("served");
    send(&mut driver, [0, 0, 3, 1]);
    world.write_all(b"early").expect("room");
    driver.offer(TO_GUEST, &[], &[(DATA + 0x2000, 64)]);
    let _ = driver.turn(&mut console).expect("served");
    assert!(driver.used(TO_GUEST).is_empty(), "nobody has opened it");
    send(&mut driver, [0, 0, 6, 1]);
    let _ = driver.turn(&mut console).expect("served");
    assert_eq!(driver.used(TO_GUEST).len(), 1);
    drop(world);
    driver.offer(TO_GUEST, &[], &[(DATA + 0x2000, 64)]);
    let _ = driver.turn(&mut console).expect("served");
    let messages: Vec<Vec<u8>> = (0u64..)
        .zip(driver.used(CONTROL_TO_GUEST))
        .map(|(place, (_, length))| driver.read(DATA + 0x1000 + place * 64, length as usize))
        .collect();
    let said = [
        control::Message::Add,
        control::Message::Name,
        control::Message::Open(true),
        control::Message::Open(false),
    ];
    assert_eq!(messages, said.map(control::Message::encode));
}

#[test]
fn a_driver_that_resets_in_the_middle_of_output_begins_anew() {
    let (mut console, mut world, mut driver) = plain();
    driver.offer(FROM_GUEST, &[(DATA, 3_000_000)], &[]);
    while console.output != Flow::Waiting {
        let _ = driver.turn(&mut console).expect("served");
    }
    console.reset();
    read(&mut world);
    console.activate(0);
    let mut driver = Driver::new(&QUEUES);
    driver.write(DATA, b"again");
    driver.offer(FROM_GUEST, &[(DATA, 5)], &[]);
    let _ = driver.turn(&mut console).expect("served");
    assert_eq!(read(&mut world), b"again");
}

proptest! {
    #[test]
    fn no_descriptors_make_it_panic(
        table in hostile::descriptors(),
        heads in hostile::heads(),
        queue in 0usize..4,
        ports in any::<bool>(),
        input in prop::collection::vec(any::<u8>(), 0..100),
    ) {
        let (mut console, mut world) = console();
        console.activate(if ports { MULTIPORT } else { 0 });
        let mut driver = Driver::new(&QUEUES);
        for (index, (address, length, flags, next)) in (0u16..).zip(&table) {
            driver.describe(queue, index, *address, *length, *flags, *next);
        }
        for head in heads {
            driver.offer_head(queue, head);
        }
        world.write_all(&input).expect("room");
        for _ in 0..20 {
            if driver.turn(&mut console).is_err() {
                break;
            }
            let mut part = [0; 4096];
            let _ = world.read(&mut part);
        }
    }
}
