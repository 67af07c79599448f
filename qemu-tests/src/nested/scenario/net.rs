//! Network cards as their guests use them: large transfers both ways, on one queue pair and on several,
//! moved by the monitor and by the kernel.
//!
//! Owns: a TAP of the node, streams whose every byte follows from its place, and what the TAP has counted.
//! Refuses: to believe in offloads: packets on the TAP are longer than the wire's, or they do not work.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::num::NonZeroU64;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use sys::process::Ended;
use types::Mac;
use types::vm::{Limit, Net, NetLimit, NetQueue, Rate};

use super::Scenario;
use crate::nested::guest::{Program, argument, mount, say};
use crate::nested::link;
use crate::nested::toolkit::{Machine, Node, PATIENCE, Plan};

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
    Scenario {
        name: "limit-of-what-is-sent",
        run: |node| limited(node, "taplimout", Way::Out),
    },
    Scenario {
        name: "limit-of-what-is-received",
        run: |node| limited(node, "taplimin", Way::In),
    },
];

pub(super) const GUESTS: &[(&str, Program)] = &[("net", talk), ("net-limited", flood)];

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

/// A machine to be, with a card on the TAP `tap`.
fn plan<'n>(
    node: &'n Node,
    tap: &str,
    guest: &str,
    pairs: usize,
    mover: Mover,
) -> Result<Plan<'n>> {
    let mut plan = node.plan(tap, guest)?;
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
    Ok(plan)
}

fn transfer(node: &Node, tap: &str, pairs: usize, mover: Mover) -> Result<String> {
    let plan = plan(node, tap, "net", pairs, mover)?;
    let listener = TcpListener::bind((NODE, PORT)).context("listen")?;
    let mut machine = plan.start()?;
    let answers = std::thread::spawn(move || answer(&listener));
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

/// Which direction of a card has a limit, as its guest sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Out,
    In,
}

/// Far below what two emulated cores move, so that the limit is what holds the bytes back; and far above what a
/// window of the wire's packets is rounded to.
const LIMIT_BYTES: u64 = 256 << 10;
const BURST_BYTES: u64 = 64 << 10;
/// Longest frame: a segment that the card would cut.
const FRAME_BYTES: u64 = 65_536 + 64;
/// A window in which burst and one frame are less than a tenth of what the limit lets through.
const WINDOW: Duration = Duration::from_secs(8);
/// How far from the limit a window may be, in hundredths.
const OFF: u64 = 20;
/// Tokens are lost where the machine under all this stands still: then the next window is looked at.
const WINDOWS: usize = 4;

/// No window has more than the limit lets through, ever; one of them has no less than four fifths of it.
fn limited(node: &Node, tap: &str, way: Way) -> Result<String> {
    let rate = |bytes| NonZeroU64::new(bytes).context("a rate");
    let limit = Limit {
        bytes: Some(Rate {
            per_second: rate(LIMIT_BYTES)?,
            burst: rate(BURST_BYTES)?,
        }),
        operations: None,
    };
    let mut plan = plan(node, tap, "net-limited", 1, Mover::Monitor)?;
    plan.spec.nets[0].limit = Some(match way {
        Way::Out => NetLimit {
            tx: Some(limit),
            rx: None,
        },
        Way::In => NetLimit {
            tx: None,
            rx: Some(limit),
        },
    });
    plan.spec.cmdline.push_str(match way {
        Way::Out => " way=out",
        Way::In => " way=in",
    });
    let listener = TcpListener::bind((NODE, PORT)).context("listen")?;
    let mut machine = plan.start()?;
    let (guest, _) = listener.accept().context("accept")?;
    guest.set_read_timeout(Some(PATIENCE))?;
    guest.set_write_timeout(Some(PATIENCE))?;
    let end = guest.try_clone()?;
    let other = std::thread::spawn(move || match way {
        Way::Out => swallow(guest),
        Way::In => pour(guest),
    });
    let rates = windows(tap, way);
    // Its other end then stops, and so does the guest.
    end.shutdown(Shutdown::Both).context("end the stream")?;
    other.join().expect("no panic");
    let rates = rates?;
    machine.line("flooded", PATIENCE)?;
    let life = machine.finish(PATIENCE)?;
    ensure!(life.ended == Ended::Code(0), "{life:?}");
    let least = LIMIT_BYTES - LIMIT_BYTES / 100 * OFF;
    let last = *rates.last().context("no window")?;
    ensure!(last >= least, "{rates:?} of {LIMIT_BYTES} bytes a second");
    Ok(format!("{rates:?} of {LIMIT_BYTES} bytes a second"))
}

/// Bytes a second in windows one after the other, up to the first that is close to the limit. An error where one is
/// above it.
fn windows(tap: &str, way: Way) -> Result<Vec<u64>> {
    let passed = || -> Result<u64> {
        let [(_, from_guest), (_, to_guest)] = counted(tap)?;
        Ok(match way {
            Way::Out => from_guest,
            Way::In => to_guest,
        })
    };
    let mut rates = Vec::new();
    while rates.len() < WINDOWS {
        // The clock is read outside: what a window is too long is in the limit's favour.
        let (start, before) = (Instant::now(), passed()?);
        sleep(WINDOW);
        let (count, took) = (passed()? - before, start.elapsed());
        let micros = u64::try_from(took.as_micros())?;
        let allowed = BURST_BYTES + FRAME_BYTES + LIMIT_BYTES * micros / 1_000_000;
        ensure!(
            count <= allowed,
            "{count} of {allowed} bytes allowed in {took:?}"
        );
        let rate = count * 1_000_000 / micros;
        rates.push(rate);
        if rate >= LIMIT_BYTES - LIMIT_BYTES / 100 * OFF {
            break;
        }
    }
    Ok(rates)
}

/// Reads until the stream ends, however it does.
fn swallow(mut from: TcpStream) {
    let mut piece = vec![0; PIECE];
    while from.read(&mut piece).is_ok_and(|count| count > 0) {}
}

/// Writes until nobody takes it any more.
fn pour(mut to: TcpStream) {
    let piece = vec![7; PIECE];
    while to.write_all(&piece).is_ok() {}
}

fn flood() -> Result<()> {
    mount("sysfs", "/sys")?;
    link::set_up("eth0", GUEST)?;
    let node = TcpStream::connect((NODE, PORT)).context("reach the node")?;
    match argument("way")?.as_str() {
        "out" => pour(node),
        _ => swallow(node),
    }
    say("flooded");
    Ok(())
}
