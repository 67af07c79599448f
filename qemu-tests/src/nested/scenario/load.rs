//! Machines at work that are snapshotted, resumed and restored: what they make sums of is as they left it.
//!
//! Owns: a guest whose memory, disk and network are busy at once, what becomes of its stream when its machine dies
//! and another goes on; pages that come one by one; twenty clones at once.
//! Refuses: to help the stream. What was on its way in a snapshot is for TCP to bring again.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::thread::JoinHandle;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use types::Mac;
use types::metrics::Pages;
use types::vm::{Disk, FromVmm, Net, Restore, RestoreMode, SnapshotKind, ToVmm};

use super::Scenario;
use super::snapshot::{Files, ask, disk, file, from, mix, round, snapshot, sums, until};
use crate::nested::guest::{FAILED, Program, say};
use crate::nested::link;
use crate::nested::toolkit::{Machine, Node, PATIENCE, Plan, readable};

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "streams-and-sums-are-right-after-resume-and-after-restore",
        run: streams,
    },
    Scenario {
        name: "a-working-set-spares-the-faults-of-a-restore",
        run: working_set,
    },
    Scenario {
        name: "twenty-clones-run-at-once",
        run: twenty,
    },
];

pub(super) const GUESTS: &[(&str, Program)] = &[("load", load)];

const NODE: Ipv4Addr = Ipv4Addr::new(10, 9, 10, 1);
const GUEST: Ipv4Addr = Ipv4Addr::new(10, 9, 10, 2);
const PORT: u16 = 7200;
const TAP: &str = "tapload";
const MAC: Mac = Mac([2, 0, 0, 9, 10, 2]);
const PIECE: usize = 32 << 10;
/// Pieces between two lines on the console.
const PIECES_PER_LINE: u64 = 16;
const CLONES: usize = 20;
const USERFAULT: &str = "/dev/userfaultfd";

/// Memory and disk, and beside them a stream to the node whose every byte comes back.
fn load() -> Result<()> {
    crate::nested::guest::mount("sysfs", "/sys")?;
    link::set_up("eth0", GUEST)?;
    std::thread::spawn(|| {
        if let Err(error) = talk() {
            say(&format!("{FAILED}: stream: {error:#}"));
        }
    });
    sums()
}

fn talk() -> Result<()> {
    let mut node = TcpStream::connect((NODE, PORT)).context("reach the node")?;
    let mut back = vec![0; PIECE];
    for number in 0u64.. {
        let piece = piece(number);
        node.write_all(&piece).context("send")?;
        node.read_exact(&mut back).context("receive")?;
        ensure!(back == piece, "piece {number} has come back as another");
        if number % PIECES_PER_LINE == 0 {
            say(&format!("stream {number}"));
        }
    }
    Ok(())
}

/// Piece of the stream, by its number.
fn piece(number: u64) -> Vec<u8> {
    let words = (0..PIECE as u64 / 8).map(|word| mix(number << 32 | word));
    words.flat_map(u64::to_le_bytes).collect()
}

/// The node's end of one stream: each piece is compared, and sent back. Ends with the guest.
fn echo(listener: TcpListener) -> JoinHandle<Result<()>> {
    std::thread::spawn(move || {
        let called = readable(listener.as_fd(), Instant::now() + PATIENCE)?;
        ensure!(called, "no guest has called");
        let (mut guest, _) = listener.accept().context("accept")?;
        // Whoever runs this once more listens there again.
        drop(listener);
        guest.set_read_timeout(Some(PATIENCE))?;
        let mut found = vec![0; PIECE];
        for number in 0u64.. {
            // Who is killed ends its stream in no way: the scenario's end is then the node's.
            guest.read_exact(&mut found).context("receive")?;
            let expected = piece(number);
            if found != expected {
                say(&format!("{FAILED}: piece {number} is wrong in the node"));
            }
            ensure!(found == expected, "piece {number} is wrong in the node");
            guest.write_all(&found).context("send")?;
        }
        Ok(())
    })
}

/// The machine with its disk and this queue of its TAP, which outlives it.
fn plan<'a>(node: &'a Node, guest: &str, disk: &File, tap: Option<&OwnedFd>) -> Result<Plan<'a>> {
    let mut plan = node.plan("load", guest)?;
    plan.spec.memory_mib = 96;
    let disk = plan.pass(disk.try_clone()?);
    plan.spec.disks.push(Disk::new("disk", disk, false));
    if let Some(tap) = tap {
        let tap = plan.pass(tap.try_clone()?);
        plan.spec.nets.push(Net::new(tap, MAC, 1500));
    }
    Ok(plan)
}

/// How its memory comes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    Private,
    Missing,
}

/// `chain`: the snapshot, behind what it is based on.
fn go_on(plan: &mut Plan<'_>, chain: &[&Files], mode: Mode, set: Option<&File>) -> Result<()> {
    let from = from(plan, chain)?;
    let mode = match mode {
        Mode::Private => RestoreMode::Private,
        Mode::Missing => {
            let device = File::options().read(true).write(true).open(USERFAULT);
            let userfault = plan.pass(device.context("open /dev/userfaultfd")?);
            RestoreMode::Missing { userfault }
        }
    };
    let set = set.map(File::try_clone).transpose()?;
    plan.spec.restore = Some(Restore {
        mode,
        working_set: set.map(|file| plan.pass(file)),
        ..from
    });
    Ok(())
}

fn stream(machine: &mut Machine) -> Result<u64> {
    let line = machine.line("stream ", PATIENCE)?;
    let number = line.rsplit(' ').next().context("a number")?;
    number
        .parse()
        .with_context(|| format!("a number in {line:?}"))
}

/// Both are further than they were.
fn moves_on(machine: &mut Machine) -> Result<(u64, u64)> {
    let piece = stream(machine)?;
    let first = round(machine)?;
    until(machine, first + 2)?;
    while stream(machine)? < piece + 2 * PIECES_PER_LINE {}
    Ok((first, piece))
}

fn streams(node: &Node) -> Result<String> {
    let disk = disk()?;
    let tap = sys::tap::open(TAP)?;
    link::set_up(TAP, NODE)?;
    let echo = echo(TcpListener::bind((NODE, PORT)).context("listen")?);
    let tracked = || -> Result<Plan<'_>> {
        let mut plan = plan(node, "load", &disk, Some(&tap))?;
        plan.spec.track_memory = true;
        Ok(plan)
    };
    let mut machine = tracked()?.start()?;
    let mut seen = vec![moves_on(&mut machine)?];
    for (kind, mode) in [
        (SnapshotKind::Full, Mode::Private),
        (SnapshotKind::Full, Mode::Missing),
        (SnapshotKind::Differential, Mode::Private),
        (SnapshotKind::Differential, Mode::Missing),
    ] {
        let mut chain = Vec::new();
        if kind == SnapshotKind::Differential {
            // In the middle of all that: it goes on by itself.
            chain.push(snapshot(&mut machine, SnapshotKind::Full)?.0);
            seen.push(moves_on(&mut machine)?);
        }
        ask(&mut machine, &ToVmm::Pause, &[])?;
        chain.push(snapshot(&mut machine, kind)?.0);
        machine.kill()?;
        let mut plan = tracked()?;
        go_on(&mut plan, &chain.iter().collect::<Vec<_>>(), mode, None)?;
        machine = plan.start()?;
        seen.push(moves_on(&mut machine)?);
    }
    ensure!(!echo.is_finished(), "the node has ended the stream");
    machine.kill()?;
    let grows = seen
        .windows(2)
        .all(|pair| pair[0].0 < pair[1].0 && pair[0].1 < pair[1].1);
    ensure!(grows, "{seen:?}");
    Ok(format!("rounds and pieces: {seen:?}"))
}

/// Pages of a machine that was restored.
fn pages(machine: &mut Machine) -> Result<Pages> {
    machine.ask(&ToVmm::Metrics, &[])?;
    let pages = machine.hear_until("metrics", PATIENCE, |message| match message {
        FromVmm::Metrics(metrics) => Some(metrics.memory.restored),
        _ => None,
    })?;
    pages.context("the machine does not count its pages")
}

fn content_of(disk: &File) -> Result<Vec<u8>> {
    let mut content = vec![0; usize::try_from(disk.metadata()?.len())?];
    std::os::unix::fs::FileExt::read_exact_at(disk, &mut content, 0)?;
    Ok(content)
}

fn working_set(node: &Node) -> Result<String> {
    let disk = disk()?;
    let mut machine = plan(node, "sums", &disk, None)?.start()?;
    until(&mut machine, 2)?;
    ask(&mut machine, &ToVmm::Pause, &[])?;
    let (files, _, _) = snapshot(&mut machine, SnapshotKind::Full)?;
    machine.kill()?;
    let content = content_of(&disk)?;
    let set = file()?;
    let mut figures = String::new();
    let mut faulted = Vec::new();
    for given in [None, Some(&set)] {
        // As it was in the snapshot.
        let mut again = file()?;
        again.write_all(&content)?;
        let mut plan = self::plan(node, "sums", &again, None)?;
        go_on(&mut plan, &[&files], Mode::Missing, given)?;
        let mut machine = plan.start()?;
        let running_us = machine.running()?;
        let start = Instant::now();
        let first = round(&mut machine)?;
        let round_ms = start.elapsed().as_millis();
        until(&mut machine, first + 2)?;
        let pages = pages(&mut machine)?;
        ensure!(given.is_some() == (pages.prefetched > 0), "{pages:?}");
        faulted.push(pages.faulted);
        figures += &format!(
            "{} prefetched, {} faults, set-up {running_us} us, first round {round_ms} ms; ",
            pages.prefetched, pages.faulted
        );
        if given.is_none() {
            let (_, bytes) = ask(&mut machine, &ToVmm::WorkingSet, &[&set])?;
            figures += &format!("working set of {bytes} bytes; ");
        }
        machine.kill()?;
    }
    ensure!(faulted[1] * 4 < faulted[0], "{figures}");
    // A machine that was mapped has no faults to tell of; another snapshot's set is refused.
    let mut plan = self::plan(node, "sums", &disk, None)?;
    go_on(&mut plan, &[&files], Mode::Private, Some(&set))?;
    let mut machine = plan.start()?;
    round(&mut machine)?;
    ensure!(ask(&mut machine, &ToVmm::WorkingSet, &[&set]).is_err());
    let (other, _, _) = snapshot(&mut machine, SnapshotKind::Full)?;
    machine.kill()?;
    let mut plan = self::plan(node, "sums", &disk, None)?;
    go_on(&mut plan, &[&other], Mode::Missing, Some(&set))?;
    let life = plan.start()?.finish(PATIENCE)?;
    ensure!(
        life.output.contains("another snapshot's"),
        "{}",
        life.output
    );
    Ok(figures)
}

fn twenty(node: &Node) -> Result<String> {
    let original = disk()?;
    let mut machine = plan(node, "sums", &original, None)?.start()?;
    until(&mut machine, 2)?;
    ask(&mut machine, &ToVmm::Pause, &[])?;
    let (files, _, _) = snapshot(&mut machine, SnapshotKind::Full)?;
    machine.kill()?;
    let content = content_of(&original)?;
    let start = Instant::now();
    let mut machines = Vec::new();
    for _ in 0..CLONES {
        let mut copy = file()?;
        copy.write_all(&content)?;
        let mut plan = self::plan(node, "sums", &copy, None)?;
        go_on(&mut plan, &[&files], Mode::Private, None)?;
        machines.push(plan.start()?);
    }
    let mut generations = std::collections::BTreeSet::new();
    for machine in &mut machines {
        let line = machine.line("restored ", PATIENCE)?;
        let words = line.split_once("restored ").context("its words")?.1;
        for word in words.split(' ') {
            ensure!(generations.insert(word.to_owned()), "two say {word}");
        }
        let first = round(machine)?;
        until(machine, first + 1)?;
    }
    let took = start.elapsed().as_millis();
    // All of them are there at the end, too.
    for machine in &mut machines {
        ensure!(machine.alive()?, "a clone has ended");
    }
    for machine in &mut machines {
        machine.kill()?;
    }
    Ok(format!("{CLONES} clones have answered after {took} ms"))
}
