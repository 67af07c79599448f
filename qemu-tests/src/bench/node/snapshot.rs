//! Snapshots of our machines: how long they take, how large they are, how soon a machine goes on from one, and
//! what a hundred machines of one cost.
//!
//! Owns: a guest that sleeps in a read from its host, which a restore ends: its next word is the proof that it runs.
//! Refuses: the monitor's word that vCPUs run as a proof that they do; it is told beside.

use std::fs::File;
use std::os::fd::AsFd;
use std::time::Instant;

use anyhow::{Context, Result, anyhow};
use types::guest::CONTROL_PORT;
use types::vm::{Base, FromVmm, Restore, RestoreMode, SnapshotKind, ToVmm};

use super::monitor::{FIGURE, Monitor, PATIENCE, Wanted, ours};
use super::say;
use super::vsock::host;
use crate::bench::report::{Role, Sample};
use crate::nested::toolkit::{FILES, Machine, Node, Plan};

/// Boots, and restores. Odd, so that one is in the middle.
const TIMES: usize = 5;
const CLONES: usize = 100;
const BOOTED: &str = "booted";
const WAITS: &str = "waits";
const GOES_ON: &str = "goes on";

/// Says when it is up, when it waits, and when its wait is over.
pub(super) fn guest() -> Result<()> {
    say(&format!("{FIGURE}{BOOTED}"));
    let mut control = host(CONTROL_PORT)?;
    say(&format!("{FIGURE}{WAITS}"));
    // The connection ends with the machine that had it: an error or an end, never a byte.
    let ended = std::io::Read::read(&mut control, &mut [0]);
    say(&format!("{FIGURE}{GOES_ON}"));
    drop(ended);
    crate::inside::wait()
}

pub(super) const KINDS: [&str; 14] = [
    "boot, process start to the guest's first word",
    "restore, process start to the guest's next word",
    "restore, process start to vCPUs that run",
    "restore that reads and compares all memory first, to the guest's next word",
    "pause",
    "full snapshot",
    "full snapshot: size",
    "differential snapshot at once after a full one",
    "differential snapshot: size",
    "100 clones, first start to the last one's word",
    "100 clones: memory of each beyond the shared file",
    "100 clones: least and most of it",
    "restore with a working set, process start to the guest's next word",
    "restore with a working set, process start to vCPUs that run",
];

const USERFAULT: &str = "/dev/userfaultfd";

/// What a snapshot consists of.
struct Files {
    state: File,
    memory: File,
}

impl Files {
    fn new() -> Result<Self> {
        let file = || tempfile::tempfile_in(FILES).context("make a file");
        Ok(Self {
            state: file()?,
            memory: file()?,
        })
    }
}

fn plan(node: &Node) -> Result<Plan<'_>> {
    ours(node, Wanted::new(Role::Sleep))
}

/// How memory comes.
#[derive(Debug, Clone, Copy)]
enum Memory<'a> {
    Trusted,
    /// It is read and compared with its digests before the guest goes on.
    Compared,
    /// Page by page, so that it is noted which the guest needs.
    Noted,
    /// These pages first.
    With(&'a File),
}

fn restored<'a>(node: &'a Node, files: &Files, how: Memory<'_>) -> Result<Plan<'a>> {
    let mut plan = plan(node)?;
    let again = |file: &File| file.try_clone().context("copy a descriptor");
    let last = Base {
        state: plan.pass(again(&files.state)?),
        memory: plan.pass(again(&files.memory)?),
    };
    let (mut mode, mut working_set) = (RestoreMode::Private, None);
    match how {
        Memory::Trusted | Memory::Compared => {}
        Memory::Noted => {
            let device = File::options().read(true).write(true).open(USERFAULT);
            let userfault = plan.pass(device.context("open /dev/userfaultfd")?);
            mode = RestoreMode::Missing { userfault };
        }
        Memory::With(set) => working_set = Some(plan.pass(again(set)?)),
    }
    plan.spec.restore = Some(Restore {
        state: last.state,
        memory: last.memory,
        bases: Vec::new(),
        mode,
        working_set,
        trusted: !matches!(how, Memory::Compared),
        hostname: None,
        link: None,
    });
    Ok(plan)
}

fn word(machine: &mut Machine, word: &str) -> Result<()> {
    machine.line(&format!("{FIGURE}{word}"), PATIENCE).map(drop)
}

/// The answer to a request: milliseconds and MiB.
fn ask(machine: &mut Machine, request: &ToVmm, files: Option<&Files>) -> Result<(f64, f64)> {
    let fds = files.map(|files| [files.state.as_fd(), files.memory.as_fd()]);
    machine.ask(request, fds.as_ref().map_or(&[], |fds| fds))?;
    let answer = machine.hear_until("an answer", PATIENCE, |message| match message {
        FromVmm::Done { took_us, bytes } => Some(Ok((*took_us, *bytes))),
        FromVmm::Refused { message } => Some(Err(message.clone())),
        _ => None,
    })?;
    let (us, bytes) = answer.map_err(|why| anyhow!("{request:?} was refused: {why}"))?;
    Ok((float(us)? / 1e3, float(bytes)? / f64::from(1 << 20)))
}

fn float(number: u64) -> Result<f64> {
    Ok(f64::from(u32::try_from(number)?))
}

/// From its start to the guest's word; and to vCPUs that run, by the monitor's own clock. Milliseconds.
fn until_word(plan: Plan<'_>, says: &str) -> Result<(Machine, f64, f64)> {
    let started = Instant::now();
    let mut machine = plan.start()?;
    word(&mut machine, says)?;
    let took = started.elapsed().as_secs_f64() * 1e3;
    let setup = float(machine.running()?)? / 1e3;
    Ok((machine, took, setup))
}

pub(super) fn measure(node: &Node) -> Result<Vec<Sample>> {
    let mut runs: Vec<Vec<f64>> = vec![Vec::new(); KINDS.len()];
    let mut files = None;
    for _ in 0..TIMES {
        let (mut machine, took, _) = until_word(plan(node)?, BOOTED)?;
        runs[0].push(took);
        word(&mut machine, WAITS)?;
        runs[4].push(ask(&mut machine, &ToVmm::Pause, None)?.0);
        let kind = SnapshotKind::Full;
        let fresh = Files::new()?;
        let (took, size) = ask(&mut machine, &ToVmm::Snapshot { kind }, Some(&fresh))?;
        runs[5].push(took);
        runs[6].push(size);
        machine.kill()?;
        for (how, row) in [(Memory::Trusted, 1), (Memory::Compared, 3)] {
            let (mut machine, took, setup) = until_word(restored(node, &fresh, how)?, GOES_ON)?;
            runs[row].push(took);
            if row == 1 {
                runs[2].push(setup);
            }
            machine.kill()?;
        }
        files = Some(fresh);
    }
    let files = files.context("no snapshot was taken")?;
    let set = working_set(node, &files)?;
    for _ in 0..TIMES {
        let plan = restored(node, &files, Memory::With(&set))?;
        let (mut machine, took, setup) = until_word(plan, GOES_ON)?;
        machine.kill()?;
        runs[12].push(took);
        runs[13].push(setup);
    }
    for _ in 0..TIMES {
        let (took, size) = differential(node)?;
        runs[7].push(took);
        runs[8].push(size);
    }
    let (took, memory) = clones(node, &files)?;
    runs[9].push(took);
    let mean = memory.iter().sum::<f64>() / float(u64::try_from(memory.len())?)?;
    runs[10].push(mean);
    let least = memory.iter().copied().min_by(f64::total_cmp);
    let most = memory.iter().copied().max_by(f64::total_cmp);
    runs[11].extend(least.into_iter().chain(most));
    let who = Monitor::Ours.name();
    let samples = KINDS.iter().zip(runs);
    Ok(samples
        .map(|(what, runs)| Sample::new(*what, who, runs))
        .collect())
}

/// The pages that a restored machine needs up to its word.
fn working_set(node: &Node, files: &Files) -> Result<File> {
    let (mut machine, _, _) = until_word(restored(node, files, Memory::Noted)?, GOES_ON)?;
    let set = tempfile::tempfile_in(FILES).context("make a file")?;
    machine.ask(&ToVmm::WorkingSet, &[set.as_fd()])?;
    let answer = machine.hear_until("an answer", PATIENCE, |message| match message {
        FromVmm::Done { .. } => Some(Ok(())),
        FromVmm::Refused { message } => Some(Err(message.clone())),
        _ => None,
    })?;
    answer.map_err(|why| anyhow!("the working set was refused: {why}"))?;
    machine.kill()?;
    Ok(set)
}

fn differential(node: &Node) -> Result<(f64, f64)> {
    let mut plan = plan(node)?;
    plan.spec.track_memory = true;
    let mut machine = plan.start()?;
    word(&mut machine, WAITS)?;
    let kind = SnapshotKind::Full;
    let full = Files::new()?;
    ask(&mut machine, &ToVmm::Snapshot { kind }, Some(&full))?;
    let kind = SnapshotKind::Differential;
    let after = Files::new()?;
    let taken = ask(&mut machine, &ToVmm::Snapshot { kind }, Some(&after))?;
    machine.kill()?;
    Ok(taken)
}

/// Milliseconds until all have spoken, and MiB of each.
fn clones(node: &Node, files: &Files) -> Result<(f64, Vec<f64>)> {
    let started = Instant::now();
    let machines = (0..CLONES).map(|_| restored(node, files, Memory::Trusted)?.start());
    let mut machines = machines.collect::<Result<Vec<_>>>()?;
    for machine in &mut machines {
        word(machine, GOES_ON)?;
    }
    let took = started.elapsed().as_secs_f64() * 1e3;
    let memory = machines.iter().map(|machine| {
        let bytes = machine.charged_bytes()?;
        Ok(float(bytes)? / f64::from(1 << 20))
    });
    let memory = memory.collect::<Result<Vec<_>>>()?;
    machines.iter_mut().try_for_each(Machine::kill)?;
    Ok((took, memory))
}
