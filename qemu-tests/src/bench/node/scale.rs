//! How much a machine costs besides its guest, by its processors, and how many begin and end in a second.
//!
//! Owns: counting both. Refuses: a guest in which a processor is missing.

use std::time::Instant;

use anyhow::{Context, Result, ensure};

use super::monitor::{Monitor, Running, Serial, Wanted};
use super::{Figures, figure, rate};
use crate::bench::report::{Role, Sample};
use crate::nested::toolkit::Node;

const CPUS: [u8; 3] = [1, 4, 32];
/// Machines of one run.
const MACHINES: usize = 8;
const AT_ONCE: [usize; 2] = [1, 4];
/// Runs of each number. Odd, so that one is in the middle.
const RATE_RUNS: usize = 3;

/// What is measured for its own sake; a peer that cannot is told of.
pub(super) fn measure(node: &Node) -> Result<Vec<Sample>> {
    let mut samples = Vec::new();
    for cpus in CPUS {
        for monitor in Monitor::all() {
            samples.extend(memory(node, monitor, cpus));
        }
    }
    // In turn: what slows the machine down for a while slows all.
    let mut figures = Figures::default();
    for at_once in AT_ONCE {
        let what = format!("machines begun and ended in a second, {at_once} at once");
        for _ in 0..RATE_RUNS {
            for monitor in Monitor::all() {
                let rate = lives(node, monitor, at_once).context(what.clone())?;
                figures.add(monitor.name(), vec![(what.clone(), rate)]);
            }
        }
    }
    samples.extend(figures.samples());
    Ok(samples)
}

fn memory(node: &Node, monitor: Monitor, cpus: u8) -> [Sample; 2] {
    let beyond = format!("memory beyond the guest's, {cpus} vCPUs");
    let kernel = format!("the kernel's own for it, {cpus} vCPUs");
    let who = monitor.name();
    let mib = |kib: u64| f64::from(u32::try_from(kib).expect("less than 4 TiB")) / 1024.0;
    match at_rest(node, monitor, cpus) {
        Ok(memory) => [
            Sample::new(beyond, who, vec![mib(memory.pss_kib)]),
            Sample::new(kernel, who, vec![mib(memory.kernel_kib)]),
        ],
        Err(error) => {
            let why = format!("{error:#}");
            [
                Sample::cannot(beyond, who, why.clone()),
                Sample::cannot(kernel, who, why),
            ]
        }
    }
}

fn at_rest(node: &Node, monitor: Monitor, cpus: u8) -> Result<crate::bench::report::Overhead> {
    let mut wanted = Wanted::new(Role::Count);
    wanted.cpus = cpus;
    let mut machine = Running::start(monitor, node, wanted)?;
    let figures = machine.figures()?;
    let (_, found) = figures.first().context("a guest that counts nothing")?;
    ensure!(
        *found == f64::from(cpus),
        "the guest has {found} processors of {cpus}"
    );
    let memory = machine.memory()?;
    if let Running::Ours(ours) = &machine {
        // For whoever asks where it goes: on the node's console, not in the table.
        for (kib, what) in ours.mappings()? {
            println!("{cpus} vCPUs: {kib} KiB {what}");
        }
    }
    machine.kill()?;
    Ok(memory)
}

/// Says how many processors work, and rests until it is ended from outside: `end` comes first.
pub(super) fn guest() -> Result<()> {
    let cpus = std::thread::available_parallelism()?;
    figure("cpus", f64::from(u32::try_from(cpus.get())?));
    super::say(super::GUEST_END);
    crate::inside::wait()
}

fn lives(node: &Node, monitor: Monitor, at_once: usize) -> Result<f64> {
    let started = Instant::now();
    for _ in 0..MACHINES / at_once {
        let all = (0..at_once).map(|_| {
            let mut wanted = Wanted::new(Role::Reset);
            wanted.serial = Serial::None;
            Running::start(monitor, node, wanted)
        });
        let all: Result<Vec<_>> = all.collect();
        all?.into_iter().try_for_each(Running::finish)?;
    }
    Ok(rate(u64::try_from(MACHINES)?, started.elapsed()))
}
