//! From power-on to an API that answers.
//!
//! Owns: where a boot is cut into parts: the kernel's first instruction, init's first, the API.
//! Refuses: the clock of a kernel that starts. It has none at its entry, and counts by timer ticks at
//! first; the processor's cycle counter runs from power-on, one cycle an instruction.

use std::fs;

use anyhow::{Context, Result, bail};
use image::assemble::Image;
use image::qemu::{Boot, Machine, Node, Time};

use super::measure::{PATIENCE, float, instead};
use super::report::{CYCLES, Role};
use super::table::Row;
use super::{archive, entry};
use crate::{Lab, Setup};

/// Target of the design for a whole boot, and for our programs' part of it.
const BOOT_SECONDS: f64 = 2.5;
const OWN_SECONDS: f64 = 0.25;
/// Debian 12 with systemd and sshd, measured the same way, to its multi-user target.
const DEBIAN_SECONDS: f64 = 6.46;
/// Lines of the kernel log get times.
const TIMES: &str = "printk.time=1";

/// Nothing here waits for a device but the network, so all is counted, and the same at each run.
pub(super) fn to_api(image: &Image, program: &[u8]) -> Result<Vec<Row>> {
    let setup = Setup {
        disk: false,
        arguments: TIMES.to_owned(),
        ..Setup::default()
    };
    let entered = kernel_entry(image)?;
    let init = init_entry(&setup, image, program)?;
    let lab = counted(&setup, Time::Instructions)?;
    let own = own_part(&lab)?;
    let kernel = init.checked_sub(entered);
    let kernel = seconds(kernel.context("init was entered before its kernel")?);
    Ok(vec![
        Row::target(
            "kernel entry to API, DHCP included",
            kernel + own,
            "s",
            BOOT_SECONDS,
        )
        .beside("Debian to multi-user", DEBIAN_SECONDS),
        Row::part("kernel, to init's first instruction", kernel, "s"),
        Row::target("user space, to API", own, "s", OWN_SECONDS),
        Row::part("before the kernel: firmware", seconds(entered), "s"),
    ])
}

/// Waits for a disk are this machine's, the work between them is counted.
pub(super) fn with_disk() -> Result<Vec<Row>> {
    let setup = Setup {
        arguments: TIMES.to_owned(),
        ..Setup::default()
    };
    let mut lab = counted(&setup, Time::InstructionsAndWaits)?;
    let first = own_part(&lab)?;
    lab.power_cut()?;
    lab.power_on()?;
    answers(&lab)?;
    let second = own_part(&lab)?;
    Ok(vec![
        Row::part("user space, with a pool on a disk", second, "s"),
        Row::part("user space, the first time: makes the pool", first, "s"),
    ])
}

fn counted(setup: &Setup, time: Time) -> Result<Lab> {
    let lab = Lab::with(setup, |machine| {
        machine.time = time;
        Ok(())
    })?;
    answers(&lab)?;
    Ok(lab)
}

/// An answer, and not only the word that there would be one.
pub(super) fn answers(lab: &Lab) -> Result<()> {
    lab.sifr(&["node", "info"])?.must().map(drop)
}

/// Cycles from power-on to the first instruction of a kernel.
fn kernel_entry(image: &Image) -> Result<u64> {
    let file = tempfile::NamedTempFile::new().context("make a file for a kernel")?;
    fs::write(file.path(), entry::kernel()).context("write a kernel")?;
    let mut machine = Machine::new(image, "");
    machine.time = Time::Instructions;
    match &mut machine.boot {
        Boot::Kernel { kernel, .. } => *kernel = file.path().to_owned(),
        Boot::Network { .. } | Boot::Disk => bail!("the machine does not boot a kernel directly"),
    }
    let node = Node::spawn(&machine)?;
    let line = node.wait_for_line(CYCLES, PATIENCE)?;
    entry::cycles(&line).with_context(|| format!("understand {line:?}"))
}

/// Cycles from power-on to the first instruction of an init, which the bench's is in this boot.
fn init_entry(setup: &Setup, image: &Image, program: &[u8]) -> Result<u64> {
    let initramfs = archive::small(image, program)?;
    let mut file = None;
    let lab = Lab::with(setup, |machine| {
        file = Some(instead(machine, &initramfs, Role::Idle, "")?);
        Ok(())
    })?;
    let console = lab.console();
    let line = console.lines().find_map(entry::cycles);
    line.with_context(|| format!("init has not said when it was entered:\n{console}"))
}

/// Seconds from init's start to the line that says the API answers, by the kernel log of a node.
fn own_part(lab: &Lab) -> Result<f64> {
    let log = lab.sifr(&["node", "dmesg"])?.must()?.stdout;
    let part = parse_own(&log);
    part.map(|micros| float(micros) / 1e6)
        .with_context(|| format!("the kernel log does not show the boot:\n{log}"))
}

fn parse_own(log: &str) -> Option<u64> {
    let at = |what: &str| log.lines().find(|l| l.contains(what)).and_then(stamp);
    at("sifr: ready https://")?.checked_sub(at("Run /init as init process")?)
}

/// Microseconds of `<6>[   12.345678] text`.
fn stamp(line: &str) -> Option<u64> {
    let (_, rest) = line.split_once('[')?;
    let (stamp, _) = rest.split_once(']')?;
    let (seconds, micros) = stamp.trim().split_once('.')?;
    let whole: u64 = seconds.parse().ok()?;
    whole
        .checked_mul(1_000_000)?
        .checked_add(micros.parse().ok()?)
}

/// One cycle a nanosecond.
fn seconds(cycles: u64) -> f64 {
    float(cycles) / 1e9
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_part_of_our_programs_is_between_two_lines_of_the_kernel_log() {
        let log = "<6>[    0.812345] Run /init as init process\n\
                   <7>[    0.812400] sifr: ready, waiting for an address\n\
                   <7>[    1.000000] sifr: ready https://10.0.2.15:7443\n\
                   <7>[    2.000000] sifr: ready https://10.0.2.15:7443\n";
        assert_eq!(parse_own(log), Some(187_655));
        assert_eq!(parse_own("<6>Run /init as init process\n"), None);
    }
}
