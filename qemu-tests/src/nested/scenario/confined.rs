//! What a monitor is confined by while its guest runs, and what it says it has counted.
//!
//! Owns: reading `/proc` and the cgroup of a monitor that was started as pid1 does. Refuses: trusting its word:
//! all but the metrics is the kernel's.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use nix::unistd::pause;
use types::metrics;
use types::vm::{FromVmm, ToVmm};

use super::Scenario;
use crate::nested::guest::{Program, say};
use crate::nested::toolkit::{Machine, Node, PATIENCE};

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "walled-in",
        run: walled_in,
    },
    Scenario {
        name: "counted",
        run: counted,
    },
];

pub(super) const GUESTS: &[(&str, Program)] = &[("rests", || {
    say("rests");
    pause();
    Ok(())
})];

fn resting(node: &Node, name: &str) -> Result<Machine> {
    let mut plan = node.plan(name, "rests")?;
    plan.spec.cpus = 2;
    let mut machine = plan.start()?;
    machine.line("rests", PATIENCE)?;
    Ok(machine)
}

fn walled_in(node: &Node) -> Result<String> {
    let (mut one, other) = (resting(node, "one")?, resting(node, "other")?);
    for set in ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
        let set_is = one.status(set)?;
        ensure!(set_is == "0000000000000000", "{set} {set_is}");
    }
    let ids = one.status("Uid:")?;
    ensure!(
        ids == one.status("Gid:")? && !ids.split_whitespace().any(|id| id == "0"),
        "{ids}"
    );
    ensure!(ids != other.status("Uid:")?, "both are {ids}");
    ensure!(
        one.status("NoNewPrivs:")? == "1",
        "privileges could come back"
    );
    let threads = threads(&one)?;
    let proc = |machine: &Machine| format!("/proc/{}", machine.pid());
    for space in ["pid", "mnt", "net", "ipc", "uts"] {
        let of = |proc: &str| fs::read_link(format!("{proc}/ns/{space}"));
        let (mine, ones, others) = (of("/proc/self")?, of(&proc(&one))?, of(&proc(&other))?);
        ensure!(ones != mine && ones != others, "{space} is shared");
    }
    let root = fs::read_dir(format!("{}/root", proc(&one)))?.count();
    ensure!(root == 0, "its root has {root} entries");
    let mounts = fs::read_to_string(format!("{}/mounts", proc(&one)))?;
    ensure!(
        mounts.lines().count() == 1 && mounts.contains(" ro,"),
        "{mounts}"
    );
    let environment = fs::read(format!("{}/environ", proc(&one)))?;
    ensure!(environment.is_empty(), "it has an environment");
    let files = files(&proc(&one))?;
    drop(other);
    one.kill()?;
    let life = one.finish(PATIENCE)?;
    ensure!(!life.output.contains("Landlock"), "{}", life.output);
    Ok(format!("{threads} threads, {files} descriptors"))
}

/// Every thread has its filter, and none is forgotten.
fn threads(machine: &Machine) -> Result<usize> {
    let mut count = 0;
    for task in fs::read_dir(format!("/proc/{}/task", machine.pid()))? {
        let path = task?.path();
        let name = fs::read_to_string(path.join("comm"))?;
        let status = fs::read_to_string(path.join("status"))?;
        let field = |key: &str| status.lines().find_map(|line| line.strip_prefix(key));
        let mode = field("Seccomp:").context("no Seccomp")?.trim();
        ensure!(mode == "2", "{} has mode {mode}", name.trim());
        count += 1;
    }
    Ok(count)
}

/// What it has open: nothing with a path but /dev/null and /dev/kvm; its kernel and initramfs were closed.
fn files(proc: &str) -> Result<usize> {
    let mut count = 0;
    for file in fs::read_dir(Path::new(proc).join("fd"))? {
        let target = fs::read_link(file?.path())?;
        let text = target.to_string_lossy();
        let named = text.starts_with('/');
        let known = ["/dev/null", "/dev/kvm"].contains(&text.as_ref());
        // The file for what it says on standard error has no name any more.
        let nameless = text.ends_with(" (deleted)") || text.starts_with("/memfd:");
        ensure!(!named || known || nameless, "{text} is open");
        count += 1;
    }
    Ok(count)
}

fn counted(node: &Node) -> Result<String> {
    let mut machine = resting(node, "counted")?;
    machine.running()?;
    let mut ask = || -> Result<metrics::Machine> {
        machine.ask(&ToVmm::Metrics, &[])?;
        machine.hear_until("the metrics come", PATIENCE, |message| match message {
            FromVmm::Metrics(metrics) => Some(metrics.as_ref().clone()),
            _ => None,
        })
    };
    let (first, again) = (ask()?, ask()?);
    let boot = first.boot;
    let running = boot.running_us.context("its vCPUs do not run")?;
    ensure!(boot.entry_boottime_us > 0 && running > 0, "{boot:?}");
    ensure!(
        boot.program_us.is_none(),
        "no program of the contract has started: {boot:?}"
    );
    ensure!(
        first.exits.pio_out > 0 && first.exits.mmio_read > 0,
        "{:?}",
        first.exits
    );
    ensure!(
        again.exits.pio_out >= first.exits.pio_out,
        "counts never fall"
    );
    ensure!(again.boot == boot, "milestones stay");
    ensure!(first.memory.guest_bytes == 128 << 20, "{:?}", first.memory);
    let resident = first.memory.resident_max_bytes;
    ensure!(resident > 1 << 20 && resident < 128 << 20, "{resident}");
    let kinds: Vec<&str> = first
        .devices
        .iter()
        .map(|device| device.kind.word())
        .collect();
    ensure!(
        kinds.contains(&"rng") && kinds.contains(&"vsock"),
        "{kinds:?}"
    );
    Ok(format!(
        "vCPUs run after {running} us, resident {} KiB, {kinds:?}",
        resident >> 10
    ))
}
