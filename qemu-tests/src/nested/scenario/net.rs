//! Network cards as their guests use them: large transfers both ways, on one queue pair and on several,
//! moved by the monitor and by the kernel.
//!
//! Owns: a TAP of the node, streams whose every byte follows from its place, and what the TAP has counted.
//! Refuses: to believe in offloads: packets on the TAP are longer than the wire's, or they do not work.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use sys::process::Ended;
use types::Mac;
use types::vm::{Net, NetQueue};

use super::Scenario;
use crate::nested::guest::{Program, mount, say};
use crate::nested::link;
use crate::nested::toolkit::{Machine, Node, PATIENCE};

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "one-pair",
        run: |node| transfer(node, "tapone", 1, Mover::Monitor),
    },
    Scenario {
        name: "several-pairs",
        run: |node| transfer(node, "tapmany", 2, Mover::Monitor),
    },
    Scenario {
        name: "vhost",
        run: |node| transfer(node, "tapvhost", 1, Mover::Kernel),
    },
    Scenario {
        name: "vhost-several-pairs",
        run: |node| transfer(node, "tapvmany", 2, Mover::Kernel),
    },
];

pub(super) const GUESTS: &[(&str, Program)] = &[("net", talk)];

const NODE: Ipv4Addr = Ipv4Addr::new(10, 9, 9, 1);
const GUEST: Ipv4Addr = Ipv4Addr::new(10, 9, 9, 2);
const PORT: u16 = 7000;
const MTU: u16 = 1500;
/// Streams at once, so that several queues have something to do.
const STREAMS: u64 = 4;
/// Bytes of a stream in each direction.
const BYTES: u64 = 2 << 20;
const PIECE: usize = 64 << 10;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mover {
    Monitor,
    Kernel,
}

/// The bytes of a stream from `at` on.
fn fill(piece: &mut [u8], stream: u64, at: u64) {
    for (word, bytes) in (at / 8..).zip(piece.chunks_exact_mut(8)) {
        let value = (word << 8 | stream).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        bytes.copy_from_slice(&value.to_le_bytes());
    }
}

fn send(to: &mut TcpStream, stream: u64) -> Result<()> {
    let mut piece = vec![0; PIECE];
    for at in (0..BYTES).step_by(PIECE) {
        fill(&mut piece, stream, at);
        to.write_all(&piece).context("send")?;
    }
    to.shutdown(Shutdown::Write).context("end a stream")
}

fn receive(from: &mut TcpStream, stream: u64) -> Result<()> {
    let (mut found, mut expected) = (vec![0; PIECE], vec![0; PIECE]);
    for at in (0..BYTES).step_by(PIECE) {
        from.read_exact(&mut found).context("receive")?;
        fill(&mut expected, stream, at);
        ensure!(
            found == expected,
            "stream {stream} is wrong within {PIECE} bytes of {at}"
        );
    }
    ensure!(from.read(&mut found)? == 0, "stream {stream} does not end");
    Ok(())
}

/// Both ends of a stream: what it sends says who it is to the other end.
const ANSWER: u64 = 100;

fn talk() -> Result<()> {
    mount("sysfs", "/sys")?;
    mount("proc", "/proc")?;
    link::set_up("eth0", GUEST)?;
    let queues = std::fs::read_dir("/sys/class/net/eth0/queues")?;
    let names = queues.map(|q| Ok(q?.file_name().to_string_lossy().into_owned()));
    let names = names.collect::<Result<Vec<_>>>()?;
    let pairs = names.iter().filter(|name| name.starts_with("rx-")).count();
    say(&format!("pairs {pairs}"));
    let start = Instant::now();
    std::thread::scope(|scope| {
        let streams = (0..STREAMS).map(|stream| {
            scope.spawn(move || {
                let mut node = TcpStream::connect((NODE, PORT)).context("reach the node")?;
                node.write_all(&stream.to_le_bytes())?;
                send(&mut node, stream)?;
                receive(&mut node, stream + ANSWER)
            })
        });
        let streams: Vec<_> = streams.collect();
        let mut ends = streams.into_iter().map(|s| s.join().expect("no panic"));
        ends.try_for_each(|end| end)
    })?;
    say(&format!("moved in {} us", start.elapsed().as_micros()));
    Ok(())
}

/// The node's end of all streams.
fn answer(listener: &TcpListener) -> Result<()> {
    let mut threads = Vec::new();
    for _ in 0..STREAMS {
        let (mut guest, _) = listener.accept().context("accept")?;
        threads.push(std::thread::spawn(move || -> Result<()> {
            guest.set_read_timeout(Some(PATIENCE))?;
            guest.set_write_timeout(Some(PATIENCE))?;
            let mut stream = [0; 8];
            guest.read_exact(&mut stream)?;
            let stream = u64::from_le_bytes(stream);
            receive(&mut guest, stream)?;
            send(&mut guest, stream + ANSWER)
        }));
    }
    let mut ends = threads.into_iter().map(|t| t.join().expect("no panic"));
    ends.try_for_each(|end| end)
}

/// Packets and bytes that the TAP has taken from the guest, and those it has given it.
fn counted(tap: &str) -> Result<[(u64, u64); 2]> {
    let read = |what: &str| -> Result<u64> {
        let path = format!("/sys/class/net/{tap}/statistics/{what}");
        Ok(std::fs::read_to_string(path)?.trim().parse()?)
    };
    Ok([
        (read("rx_packets")?, read("rx_bytes")?),
        (read("tx_packets")?, read("tx_bytes")?),
    ])
}

/// Threads of the monitor that are the kernel's workers for vhost.
fn workers(machine: &Machine) -> Result<usize> {
    let mut count = 0;
    for task in std::fs::read_dir(format!("/proc/{}/task", machine.pid()))? {
        let comm = File::open(task?.path().join("comm")).map(BufReader::new);
        let name = comm.ok().and_then(|c| c.lines().next()).transpose()?;
        count += usize::from(name.is_some_and(|n| n.starts_with("vhost-")));
    }
    Ok(count)
}

/// A machine with a card on the TAP `tap`, and who answers it.
fn machine(
    node: &Node,
    tap: &str,
    pairs: usize,
    mover: Mover,
) -> Result<(Machine, std::thread::JoinHandle<Result<()>>)> {
    let mut plan = node.plan(tap, "net")?;
    plan.spec.cpus = u8::try_from(pairs)?;
    let queues = match pairs {
        1 => vec![sys::tap::open(tap)?],
        several => sys::tap::open_queues(tap, several)?,
    };
    link::set_up(tap, NODE)?;
    let mut given = Vec::new();
    for tap in queues {
        let vhost = match mover {
            Mover::Monitor => None,
            Mover::Kernel => {
                let device = File::options()
                    .read(true)
                    .write(true)
                    .open("/dev/vhost-net");
                Some(plan.pass(device.context("open /dev/vhost-net")?))
            }
        };
        given.push(NetQueue {
            tap: plan.pass(tap),
            vhost,
        });
    }
    let first = given.remove(0);
    plan.spec.nets.push(Net {
        vhost: first.vhost,
        queues: given,
        ..Net::new(first.tap, Mac([2, 0, 0, 9, 9, 2]), MTU)
    });
    let listener = TcpListener::bind((NODE, PORT)).context("listen")?;
    let machine = plan.start()?;
    Ok((machine, std::thread::spawn(move || answer(&listener))))
}

fn transfer(node: &Node, tap: &str, pairs: usize, mover: Mover) -> Result<String> {
    let (mut machine, answers) = machine(node, tap, pairs, mover)?;
    let line = machine.line("pairs ", PATIENCE)?;
    ensure!(line == format!("pairs {pairs}"), "{line}");
    let moved = machine.line("moved ", PATIENCE)?;
    let workers = workers(&machine)?;
    let expected = if mover == Mover::Kernel { pairs } else { 0 };
    ensure!(workers == expected, "{workers} workers of vhost");
    let [(sent, sent_bytes), (received, received_bytes)] = counted(tap)?;
    answers.join().expect("no panic")?;
    let life = machine.finish(PATIENCE)?;
    ensure!(life.ended == Ended::Code(0), "{life:?}");
    let all = STREAMS * BYTES;
    ensure!(
        sent_bytes > all && received_bytes > all,
        "{sent_bytes} and {received_bytes} bytes"
    );
    // Acknowledgements are short: were packets of the wire's length, the mean would be far below it.
    for (packets, bytes) in [(sent, sent_bytes), (received, received_bytes)] {
        let mean = bytes / packets.max(1);
        ensure!(mean > MTU.into(), "{packets} packets of {mean} bytes");
    }
    Ok(format!("{moved}; {sent} packets out, {received} in"))
}
