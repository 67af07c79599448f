//! Devices that only some machines have, as Linux' own drivers use them.
//!
//! Owns: memory that comes back, a stream that loses nothing, a watchdog that bites.
//! Refuses: disks, cards and sockets, which every machine has.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use sys::process::Ended;
use types::metrics;
use types::vm::{Balloon, Console, ConsoleKind, FromVmm, StopReason, ToVmm};

use super::Scenario;
use crate::nested::guest::{Program, mount, say};
use crate::nested::toolkit::{Machine, Node, PATIENCE};

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "memory-that-a-guest-frees-comes-back-by-itself",
        run: reports,
    },
    Scenario {
        name: "memory-that-the-balloon-takes-comes-back",
        run: inflates,
    },
    Scenario {
        name: "a-console-carries-megabytes-both-ways",
        run: streams,
    },
    Scenario {
        name: "a-watchdog-that-is-not-fed-ends-the-machine",
        run: bites,
    },
];

pub(super) const GUESTS: &[(&str, Program)] = &[
    ("takes-and-frees", take_and_free),
    ("streams", stream),
    ("starves-its-watchdog", starve),
];

const MIB: u64 = 1 << 20;
/// What a guest of 128 MiB touches and frees, and how much of that must come back: single pages stay behind.
const TOUCHED: u64 = 64 * MIB;
const RETURNED: u64 = 48 * MIB;
/// Between two looks at a number that nobody announces.
const LOOK: Duration = Duration::from_millis(200);
const OUTPUT: usize = 4 << 20;
const INPUT: usize = 1 << 20;

fn take_and_free() -> Result<()> {
    let memory = vec![7u8; usize::try_from(TOUCHED)?];
    say(&format!("touched {}", std::hint::black_box(&memory).len()));
    drop(memory);
    say("freed");
    loop {
        std::thread::park();
    }
}

fn resident(machine: &Machine) -> Result<u64> {
    let text = machine.status("VmRSS:")?;
    let kib = text.strip_suffix(" kB").context("no unit")?;
    Ok(kib.trim().parse::<u64>()? * 1024)
}

/// Looks until the monitor has so much less than `before`.
fn fallen(machine: &Machine, before: u64) -> Result<u64> {
    let until = Instant::now() + PATIENCE;
    loop {
        let now = resident(machine)?;
        if now + RETURNED <= before {
            return Ok(now);
        }
        ensure!(Instant::now() < until, "{before} bytes, and then {now}");
        std::thread::sleep(LOOK);
    }
}

fn metrics(machine: &mut Machine) -> Result<metrics::Balloon> {
    machine.ask(&ToVmm::Metrics, &[])?;
    let answer = machine.hear_until("metrics", PATIENCE, |message| match message {
        FromVmm::Metrics(found) => Some(found.balloon),
        _ => None,
    })?;
    answer.context("the machine has no balloon")
}

fn reports(node: &Node) -> Result<String> {
    let mut plan = node.plan("reports", "takes-and-frees")?;
    plan.spec.balloon = Some(Balloon::reporting());
    let mut machine = plan.start()?;
    machine.line("touched", PATIENCE)?;
    let before = resident(&machine)?;
    machine.line("freed", PATIENCE)?;
    let after = fallen(&machine, before)?;
    let (first, second) = (metrics(&mut machine)?, metrics(&mut machine)?);
    ensure!(first.returned_bytes >= RETURNED, "{first:?}");
    let total = second.guest.total_bytes.context("no statistics")?;
    ensure!((64 * MIB..=128 * MIB).contains(&total), "{second:?}");
    ensure!(second.guest.free_bytes.is_some_and(|free| free < total));
    machine.kill()?;
    Ok(format!("{} to {} MiB", before / MIB, after / MIB))
}

fn inflates(node: &Node) -> Result<String> {
    let mut plan = node.plan("inflates", "takes-and-frees")?;
    plan.spec.balloon = Some(Balloon {
        free_page_reporting: false,
        ..Balloon::reporting()
    });
    let mut machine = plan.start()?;
    machine.line("freed", PATIENCE)?;
    let before = resident(&machine)?;
    let started = Instant::now();
    machine.ask(&ToVmm::Balloon { target_mib: 48 }, &[])?;
    machine.hear_until("the balloon is told", PATIENCE, |message| {
        matches!(message, FromVmm::Done { .. }).then_some(())
    })?;
    let after = fallen(&machine, before)?;
    let took = started.elapsed();
    let found = metrics(&mut machine)?;
    ensure!(found.target_bytes == 80 * MIB, "{found:?}");
    ensure!(found.actual_bytes >= RETURNED, "{found:?}");
    machine.ask(&ToVmm::Balloon { target_mib: 129 }, &[])?;
    machine.hear_until("a refusal", PATIENCE, |message| {
        matches!(message, FromVmm::Refused { .. }).then_some(())
    })?;
    machine.kill()?;
    Ok(format!(
        "{} to {} MiB in {} ms",
        before / MIB,
        after / MIB,
        took.as_millis()
    ))
}

fn pattern(length: usize) -> Vec<u8> {
    let mut state = 1u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state.to_le_bytes()[3]
    };
    (0..length).map(|_| next()).collect()
}

fn stream() -> Result<()> {
    mount("devtmpfs", "/dev")?;
    let devices = fs::read_dir("/dev").context("list /dev")?;
    let mut names = devices.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let port = names.find(|name| name.starts_with("vport"));
    let port = format!("/dev/{}", port.context("there is no port")?);
    let mut port = File::options().read(true).write(true).open(port)?;
    port.write_all(&pattern(OUTPUT)).context("write")?;
    let mut input = vec![0; INPUT];
    port.read_exact(&mut input).context("read")?;
    ensure!(input == pattern(INPUT), "input is not what was sent");
    say("input is whole");
    Ok(())
}

fn streams(node: &Node) -> Result<String> {
    let mut plan = node.plan("streams", "streams")?;
    let (mut ours, theirs) = UnixStream::pair().context("make a stream")?;
    ours.set_read_timeout(Some(PATIENCE))?;
    ours.set_write_timeout(Some(PATIENCE))?;
    let fd = plan.pass(OwnedFd::from(theirs));
    let kind = ConsoleKind::Stream;
    plan.spec.console = Some(Console { fd, kind });
    let mut machine = plan.start()?;
    let mut output = vec![0; OUTPUT];
    ours.read_exact(&mut output[..1]).context("read a byte")?;
    let started = Instant::now();
    ours.read_exact(&mut output[1..]).context("read the rest")?;
    let took = started.elapsed();
    ensure!(output == pattern(OUTPUT), "output is not what was sent");
    ours.write_all(&pattern(INPUT)).context("write")?;
    machine.line("input is whole", PATIENCE)?;
    let life = machine.finish(PATIENCE)?;
    ensure!(life.ended == Ended::Code(0), "{life:?}");
    Ok(format!("4 MiB out in {} ms", took.as_millis()))
}

fn starve() -> Result<()> {
    mount("devtmpfs", "/dev")?;
    // The shortest time there is comes with the kernel's parameter `ib700wdt.timeout`.
    let _watchdog = File::options().write(true).open("/dev/watchdog")?;
    say("not fed from now on");
    loop {
        std::thread::park();
    }
}

fn bites(node: &Node) -> Result<String> {
    let mut plan = node.plan("bites", "starves-its-watchdog")?;
    plan.spec.watchdog = true;
    plan.spec.cmdline.push_str(" ib700wdt.timeout=2");
    let mut machine = plan.start()?;
    machine.line("not fed", PATIENCE)?;
    let started = Instant::now();
    let life = machine.finish(PATIENCE)?;
    let took = started.elapsed();
    ensure!(life.ended == Ended::Code(2), "{life:?}");
    match life.stopped()? {
        (StopReason::Watchdog, _) => Ok(format!("after {} ms", took.as_millis())),
        (other, _) => bail!("{other:?}"),
    }
}
