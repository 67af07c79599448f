//! Devices across a pause and a snapshot: each goes on in another machine as it was left.
//!
//! Owns: a guest that uses all devices at once, and a second host's end for each of them.
//! Refuses: memory and registers, which `snapshot` compares.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use sys::process::Ended;
use types::Mac;
use types::vm::{
    Balloon, Console, ConsoleKind, Disk, FromVmm, Net, NetQueue, Pmem, SnapshotKind, StopReason,
    ToVmm,
};

use super::Scenario;
use super::snapshot::{Files, again, ask, file, from, mix, round, snapshot, until};
use crate::nested::guest::{Program, mount, say};
use crate::nested::link;
use crate::nested::toolkit::{Machine, Node, PATIENCE, Plan};

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "all-devices-go-on-in-another-machine",
        run: |node| go_on(node, "tapkept", Mover::Monitor),
    },
    Scenario {
        name: "a-card-in-the-kernels-hands-goes-on-in-another-machine",
        run: |node| go_on(node, "tapkeptv", Mover::Kernel),
    },
    Scenario {
        name: "a-paused-machine-is-not-ended-by-its-watchdog",
        run: pauses,
    },
];

pub(super) const GUESTS: &[(&str, Program)] = &[("uses-all-devices", use_all)];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mover {
    Monitor,
    Kernel,
}

const NODE: Ipv4Addr = Ipv4Addr::new(10, 9, 8, 1);
const GUEST: Ipv4Addr = Ipv4Addr::new(10, 9, 8, 2);
const PORT: u16 = 7001;
const CPUS: u8 = 2;
const DISK_BYTES: u64 = 8 << 20;
/// What one thread writes and reads of the disk.
const PART: usize = 512 << 10;
const PARTS: u64 = 4;
const IMAGE_BYTES: usize = 2 << 20;
/// What the guest is to keep of its 128 MiB.
const TARGET_MIB: u64 = 112;
/// The watchdog's time in seconds, how often it is fed, and a pause that is longer than its time.
const BITE_S: u64 = 4;
const FEED: Duration = Duration::from_millis(500);
const PAUSE: Duration = Duration::from_secs(6);
/// A datagram may be lost with the host's end that it was sent to.
const ANSWER: Duration = Duration::from_millis(500);
const ASKED_MAX: u32 = 60;

/// The bytes of a part of the disk or of a datagram.
fn content(length: usize, seed: u64) -> Vec<u8> {
    let words = length as u64 / 8;
    let bytes = (0..words).flat_map(|n| mix(n ^ seed << 32).to_le_bytes());
    bytes.collect()
}

fn image() -> Vec<u8> {
    content(IMAGE_BYTES, 99)
}

fn use_all() -> Result<()> {
    mount("devtmpfs", "/dev")?;
    mount("proc", "/proc")?;
    mount("sysfs", "/sys")?;
    link::set_up("eth0", GUEST)?;
    let hungry = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let feeder = scope.spawn(|| feed(&hungry));
        let ended = rounds(&hungry);
        // There is nothing to do but to wait for the watchdog.
        if let Err(error) = &ended {
            say(&format!("{error:#}"));
        }
        hungry.store(true, Ordering::Relaxed);
        feeder.join().expect("no panic")?;
        ended
    })
}

fn feed(hungry: &AtomicBool) -> Result<()> {
    let mut watchdog = File::options().write(true).open("/dev/watchdog")?;
    while !hungry.load(Ordering::Relaxed) {
        watchdog.write_all(b"x").context("feed the watchdog")?;
        std::thread::sleep(FEED);
    }
    say("not fed from now on");
    loop {
        std::thread::park();
    }
}

fn rounds(hungry: &AtomicBool) -> Result<()> {
    let devices = fs::read_dir("/dev").context("list /dev")?;
    let mut names = devices.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let port = names.find(|name| name.starts_with("vport"));
    let port = format!("/dev/{}", port.context("there is no port")?);
    let flags = nix::libc::O_NONBLOCK;
    let port = File::options()
        .read(true)
        .write(true)
        .custom_flags(flags)
        .open(port);
    let mut port = port.context("open the port")?;
    let disk = File::options().read(true).write(true).open("/dev/vda")?;
    let node = UdpSocket::bind((GUEST, PORT)).context("bind")?;
    node.connect((NODE, PORT))?;
    node.set_read_timeout(Some(ANSWER))?;
    let queues = fs::read_dir("/sys/block/vda/mq")?.count();
    let pairs = fs::read_dir("/sys/class/net/eth0/queues")?.count() / 2;
    ensure!((queues, pairs) == (2, 2), "{queues} queues, {pairs} pairs");
    for round in 0u64.. {
        use_disk(&disk, round)?;
        exchange(&node, round)?;
        let found = fs::read("/dev/pmem0").context("read the image in memory")?;
        ensure!(found == image(), "the image has changed");
        port.write_all(format!("kept {round}\n").as_bytes())
            .context("write")?;
        say(&format!("round {round}"));
        let mut input = [0; 64];
        match port.read(&mut input) {
            Ok(length) if input[..length].starts_with(b"starve") => {
                hungry.store(true, Ordering::Relaxed);
                return Ok(());
            }
            Ok(length) => say(&format!(
                "heard {}",
                String::from_utf8_lossy(&input[..length])
            )),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Err(error).context("read"),
        }
    }
    Ok(())
}

/// Writes a part, and reads it and all others at once: both queues have several requests.
fn use_disk(disk: &File, round: u64) -> Result<()> {
    disk.write_all_at(&content(PART, round), round % PARTS * PART as u64)?;
    disk.sync_data()?;
    fs::write("/proc/sys/vm/drop_caches", "3")?;
    let newest = |part: u64| (0..=round).rev().find(|r| r % PARTS == part);
    std::thread::scope(|scope| {
        let readers = (0..PARTS).filter_map(|part| Some((part, newest(part)?)));
        let readers: Vec<_> = readers
            .map(|(part, written)| {
                scope.spawn(move || {
                    let mut found = vec![0; PART];
                    disk.read_exact_at(&mut found, part * PART as u64)?;
                    ensure!(
                        found == content(PART, written),
                        "part {part} of round {round}"
                    );
                    Ok(())
                })
            })
            .collect();
        let mut ends = readers.into_iter().map(|r| r.join().expect("no panic"));
        ends.try_for_each(|end| end)
    })
}

/// Sends a datagram until it comes back.
fn exchange(node: &UdpSocket, round: u64) -> Result<()> {
    let sent = content(1024, round);
    let mut found = [0; 2048];
    for _ in 0..ASKED_MAX {
        node.send(&sent).context("send")?;
        // One that is late is of an earlier round.
        while let Ok(length) = node.recv(&mut found) {
            if found[..length] == sent {
                return Ok(());
            }
        }
    }
    bail!("no datagram of round {round} came back")
}

/// What stays in the node when a monitor ends.
struct Behind {
    disk: File,
    image: File,
    queues: Vec<File>,
    mover: Mover,
}

impl Behind {
    fn new(tap: &str, mover: Mover) -> Result<Self> {
        let disk = file()?;
        disk.set_len(DISK_BYTES)?;
        let mut memory = file()?;
        memory.write_all(&image())?;
        let queues = sys::tap::open_queues(tap, CPUS.into())?;
        let queues = queues.into_iter().map(File::from);
        let queues = queues.collect();
        link::set_up(tap, NODE)?;
        Ok(Self {
            disk,
            image: memory,
            queues,
            mover,
        })
    }

    /// A machine with all devices, and its other end of the console.
    fn plan<'a>(&self, node: &'a Node, files: &[&Files]) -> Result<(Plan<'a>, UnixStream)> {
        let mut plan = node.plan("kept", "uses-all-devices")?;
        plan.spec.cpus = CPUS;
        plan.spec.track_memory = true;
        plan.spec
            .cmdline
            .push_str(&format!(" ib700wdt.timeout={BITE_S}"));
        let disk = plan.pass(again(&self.disk)?);
        plan.spec.disks.push(Disk {
            queues: CPUS,
            ..Disk::new("disk", disk, false)
        });
        let mut given = Vec::new();
        for queue in &self.queues {
            let vhost = match self.mover {
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
                tap: plan.pass(again(queue)?),
                vhost,
            });
        }
        let first = given.remove(0);
        plan.spec.nets.push(Net {
            vhost: first.vhost,
            queues: given,
            ..Net::new(first.tap, Mac([2, 0, 0, 9, 8, 2]), 1500)
        });
        let (ours, theirs) = UnixStream::pair().context("make a stream")?;
        ours.set_read_timeout(Some(PATIENCE))?;
        let fd = plan.pass(OwnedFd::from(theirs));
        plan.spec.console = Some(Console {
            fd,
            kind: ConsoleKind::Stream,
        });
        plan.spec.balloon = Some(Balloon::reporting());
        let fd = plan.pass(again(&self.image)?);
        plan.spec.pmems.push(Pmem { fd });
        (plan.spec.rtc, plan.spec.watchdog, plan.spec.pvpanic) = (true, true, true);
        if !files.is_empty() {
            plan.spec.restore = Some(from(&mut plan, files)?);
        }
        Ok((plan, ours))
    }
}

/// Sends back what comes, until the node ends.
fn echo() -> Result<()> {
    let socket = UdpSocket::bind((NODE, PORT)).context("bind")?;
    std::thread::spawn(move || {
        let mut bytes = [0; 2048];
        while let Ok((length, from)) = socket.recv_from(&mut bytes) {
            // Whoever is gone gets nothing.
            let _ = socket.send_to(&bytes[..length], from);
        }
    });
    Ok(())
}

/// Numbers on the console from `first` on, without a gap.
fn follow(console: &UnixStream, first: Option<u64>, rounds: usize) -> Result<u64> {
    let mut lines = BufReader::new(console.try_clone()?).lines();
    let mut last: Option<u64> = None;
    for _ in 0..rounds {
        let line = lines.next().context("the console has ended")??;
        let number: u64 = line
            .strip_prefix("kept ")
            .and_then(|number| number.parse().ok())
            .with_context(|| format!("{line:?} on the console"))?;
        let expected = last.map(|last| last + 1).or(first).unwrap_or(number);
        ensure!(
            number == expected,
            "{number} on the console, not {expected}"
        );
        last = Some(number);
    }
    last.context("some rounds")
}

fn balloon(machine: &mut Machine) -> Result<(u64, u64)> {
    machine.ask(&ToVmm::Metrics, &[])?;
    let found = machine.hear_until("metrics", PATIENCE, |message| match message {
        FromVmm::Metrics(found) => Some(found.balloon),
        _ => None,
    })?;
    let found = found.context("the machine has no balloon")?;
    Ok((found.target_bytes, found.actual_bytes))
}

fn go_on(node: &Node, tap: &str, mover: Mover) -> Result<String> {
    let behind = Behind::new(tap, mover)?;
    echo().or_else(|error| match mover {
        // The other scenario's is still there.
        Mover::Kernel => Ok(()),
        Mover::Monitor => Err(error),
    })?;
    let (plan, console) = behind.plan(node, &[])?;
    let mut machine = plan.start()?;
    until(&mut machine, 1)?;
    ask(
        &mut machine,
        &ToVmm::Balloon {
            target_mib: TARGET_MIB,
        },
        &[],
    )?;
    let (full, _, full_bytes) = snapshot(&mut machine, SnapshotKind::Full)?;
    let now = round(&mut machine)?;
    until(&mut machine, now + 2)?;
    ask(&mut machine, &ToVmm::Pause, &[])?;
    let (more, _, more_bytes) = snapshot(&mut machine, SnapshotKind::Differential)?;
    let before = balloon(&mut machine)?;
    machine.kill()?;
    // All that the guest has written stands in the stream, up to where the next one begins.
    console.set_nonblocking(true)?;
    let mut said = Vec::new();
    let _ = (&console).read_to_end(&mut said);
    let said = String::from_utf8(said)?;
    let last = said
        .lines()
        .last()
        .and_then(|line| line.strip_prefix("kept "));
    let last: u64 = last.context("nothing on the console")?.parse()?;

    let (plan, console) = behind.plan(node, &[&full, &more])?;
    let mut machine = plan.start()?;
    machine.running()?;
    let now = follow(&console, Some(last + 1), 3)?;
    let after = balloon(&mut machine)?;
    ensure!(
        before.0 == (128 - TARGET_MIB) << 20 && before == after,
        "{before:?}, then {after:?}"
    );
    (&console).write_all(b"hello")?;
    machine.line("heard hello", PATIENCE)?;
    (&console).write_all(b"starve")?;
    machine.line("not fed", PATIENCE)?;
    let life = machine.finish(PATIENCE)?;
    ensure!(life.ended == Ended::Code(2), "{life:?}");
    match life.stopped()? {
        (StopReason::Watchdog, _) => {}
        (other, _) => bail!("{other:?}"),
    }
    Ok(format!(
        "{full_bytes} and {more_bytes} bytes; {last} rounds, then to {now}; {} MiB in the balloon",
        after.1 >> 20
    ))
}

fn pauses(node: &Node) -> Result<String> {
    let behind = Behind::new("tappaused", Mover::Kernel)?;
    let _ = echo();
    let (plan, console) = behind.plan(node, &[])?;
    let mut machine = plan.start()?;
    until(&mut machine, 1)?;
    ask(&mut machine, &ToVmm::Pause, &[])?;
    let used = machine.processor_time()?;
    // Nothing announces that nothing happens.
    std::thread::sleep(PAUSE);
    let used = machine.processor_time()? - used;
    ensure!(machine.alive()?, "the watchdog has ended a paused machine");
    ensure!(used < PAUSE / 100, "a paused machine has used {used:?}");
    ask(&mut machine, &ToVmm::Resume, &[])?;
    let now = round(&mut machine)?;
    until(&mut machine, now + 2)?;
    follow(&console, Some(0), 3)?;
    machine.kill()?;
    Ok(format!("{PAUSE:?} of rest cost {used:?}"))
}
