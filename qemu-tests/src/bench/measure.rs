//! The machines that are booted to measure.
//!
//! Owns: one boot per group of figures, and reading them from the console.
//! Refuses: looking at a clock of this machine.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use image::assemble::Image;
use image::paths::Paths;
use image::qemu::{Boot, Machine, Node, Time};
use types::Bytes;

use super::archive;
use super::report::{AVAILABLE, FAILED, PROGRAM, REPORT, ROLE, Report, Role};
use super::table::{Row, Target};
use crate::{Lab, Setup};

/// Counting instructions is slower than not, and the machine has a dozen guests to run.
const PATIENCE: Duration = Duration::from_secs(900);
/// Reports of free memory after the node is ready, one a second: the last counts.
const IDLE_SAMPLES: usize = 5;
const MIB: f64 = 1024.0 * 1024.0;

/// Everything, in the order of the table.
pub fn all(paths: &Paths) -> Result<Vec<Row>> {
    let image = Image::find(paths)?;
    let program = archive::program(paths)?;
    let mut rows = size(&image)?;
    eprintln!("bench: boots a node, twice");
    rows.extend(boot()?);
    eprintln!("bench: boots a node and leaves it alone");
    rows.extend(idle(&image, &program)?);
    eprintln!("bench: runs virtual machines in a node");
    rows.extend(machines(&image, &program)?);
    Ok(rows)
}

fn size(image: &Image) -> Result<Vec<Row>> {
    let mut bytes = 0;
    for file in [&image.kernel, &image.initramfs] {
        let file = fs::metadata(file).with_context(|| format!("read {}", file.display()))?;
        bytes += file.len();
    }
    let target = Target::AtMost(24.0);
    Ok(vec![Row::new(
        "image: kernel and initramfs",
        float(bytes) / MIB,
        "MiB",
        target,
    )])
}

/// What the console says about one boot.
#[derive(Debug, PartialEq)]
struct Booted {
    ready_ms: u64,
    /// All rows of the boot table but the one that waits for the network.
    own_ms: u64,
}

/// Without a disk all is counted, and the same at each run; with one the waits for it are this machine's.
fn boot() -> Result<Vec<Row>> {
    let timed = |time| {
        move |machine: &mut Machine| {
            machine.time = time;
            Ok(())
        }
    };
    let setup = Setup {
        disk: false,
        ..Setup::default()
    };
    let lab = Lab::with(&setup, timed(Time::Instructions))?;
    answers(&lab)?;
    let memory = booted(&lab)?;
    drop(lab);
    let mut lab = Lab::with(&Setup::default(), timed(Time::InstructionsAndWaits))?;
    let first = booted(&lab)?;
    lab.power_cut()?;
    lab.power_on()?;
    answers(&lab)?;
    let second = booted(&lab)?;
    let seconds = |ms: u64| float(ms) / 1000.0;
    let (api, own) = (Target::AtMost(2.5), Target::AtMost(0.25));
    Ok(vec![
        Row::new(
            "kernel to API, DHCP included",
            seconds(memory.ready_ms),
            "s",
            api,
        ),
        Row::new(
            "  of it the node's own programs",
            seconds(memory.own_ms),
            "s",
            own,
        ),
        Row::new(
            "  the same with a pool on a disk",
            seconds(second.ready_ms),
            "s",
            api,
        ),
        Row::new(
            "  of it the node's own programs",
            seconds(second.own_ms),
            "s",
            own,
        ),
        Row::new(
            "  the first time: the pool is made",
            seconds(first.ready_ms),
            "s",
            Target::None,
        ),
    ])
}

/// An answer, and not only the word that there would be one.
fn answers(lab: &Lab) -> Result<()> {
    lab.sifr(&["node", "info"])?.must().map(drop)
}

fn booted(lab: &Lab) -> Result<Booted> {
    lab.node().wait_for_line("sifr: status as of", PATIENCE)?;
    let console = lab.console();
    parse_boot(&console).with_context(|| format!("no boot table on the console:\n{console}"))
}

fn parse_boot(console: &str) -> Option<Booted> {
    let (_, rest) = console.split_once("sifr: ready https://")?;
    let (_, status) = rest.split_once("sifr: status as of ")?;
    let ready_ms = status.split(' ').next()?.parse().ok()?;
    let rows = console.lines().filter_map(parse_row);
    let own_ms = rows
        .filter(|(name, _)| *name != "address")
        .map(|(_, ms)| ms)
        .sum();
    Some(Booted { ready_ms, own_ms })
}

/// Name and milliseconds of `sifr: [ 3/15] cgroups    ok        12 ms`.
fn parse_row(line: &str) -> Option<(&str, u64)> {
    let (_, row) = line.split_once("sifr: [")?.1.split_once("] ")?;
    let mut words = row.split_whitespace();
    let (name, _, ms) = (words.next()?, words.next()?, words.next()?);
    Some((name, ms.parse().ok()?))
}

/// The bench's archive in place of the shipped initramfs, the program in place of init.
fn instead(
    machine: &mut Machine,
    initramfs: &[u8],
    role: Role,
    extra: &str,
) -> Result<tempfile::TempPath> {
    let file = tempfile::NamedTempFile::new().context("make a file for an initramfs")?;
    fs::write(file.path(), initramfs).context("write an initramfs")?;
    machine.time = Time::Instructions;
    match &mut machine.boot {
        Boot::Kernel {
            initramfs,
            arguments,
            ..
        } => {
            *initramfs = file.path().to_owned();
            arguments.push_str(&format!(" rdinit={PROGRAM} {ROLE}={}{extra}", role.word()));
        }
        Boot::Network { .. } | Boot::Disk => bail!("the machine does not boot a kernel directly"),
    }
    Ok(file.into_temp_path())
}

fn idle(image: &Image, program: &[u8]) -> Result<Vec<Row>> {
    let initramfs = archive::small(image, program)?;
    let setup = Setup::default();
    let mut file = None;
    let lab = Lab::with(&setup, |machine| {
        file = Some(instead(machine, &initramfs, Role::Idle, "")?);
        Ok(())
    })?;
    let mut available = String::new();
    for _ in 0..IDLE_SAMPLES {
        lab.node().mark();
        available = lab.node().wait_for_line(AVAILABLE, PATIENCE)?;
    }
    let (free, total) = parse_sample(&available).with_context(|| available.clone())?;
    let all = setup.memory.as_mib();
    let used = Row::new(
        "memory in use, idle, of 1 GiB",
        float(all.saturating_sub(free)),
        "MiB",
        Target::AtMost(112.0),
    );
    let kernel = float(all.saturating_sub(total));
    Ok(vec![
        used,
        Row::new(
            "  of it taken before the first page is free",
            kernel,
            "MiB",
            Target::None,
        ),
    ])
}

/// MiB available and MiB in all, of `bench: available 890 of 950`.
fn parse_sample(line: &str) -> Option<(u64, u64)> {
    let (free, total) = line.split_once(AVAILABLE)?.1.trim().split_once(" of ")?;
    Some((free.parse().ok()?, total.parse().ok()?))
}

fn machines(image: &Image, program: &[u8]) -> Result<Vec<Row>> {
    let initramfs = archive::large(image, program)?;
    let mut machine = Machine::new(image, "");
    // The guests, QEMU and both archives, packed and unpacked.
    machine.memory = Bytes::gib(2);
    let _file = instead(&mut machine, &initramfs, Role::Machines, " loglevel=1")?;
    let node = Node::spawn(&machine)?;
    let line = node.wait_for_line("bench: ", PATIENCE)?;
    let Some((_, json)) = line.split_once(REPORT) else {
        let why = line
            .split_once(FAILED)
            .map_or(line.as_str(), |(_, why)| why);
        bail!("inside the node: {why}");
    };
    Ok(compare(
        &serde_json::from_str(json).context("understand the report")?,
    ))
}

fn compare(report: &Report) -> Vec<Row> {
    let Report {
        ours,
        qemu,
        setup_us,
        exits,
    } = report;
    let ms = |us: u64| float(us) / 1000.0;
    let mib = |kib: u64| float(kib) / 1024.0;
    let ratio = float(ours.median_us()) / float(qemu.median_us());
    let setup = setup_us.iter().copied().min().unwrap_or(0);
    let (ports, devices) = (
        exits.pio_in + exits.pio_out,
        exits.mmio_read + exits.mmio_write,
    );
    let all = ports + devices + exits.other;
    vec![
        Row::new(
            "a guest's life, as a part of QEMU's",
            ratio,
            "",
            Target::AtMost(0.42),
        ),
        Row::new("  in sifr-vmm", ms(ours.median_us()), "ms", Target::None),
        Row::new(
            "  of it before the guest runs",
            ms(setup),
            "ms",
            Target::None,
        ),
        Row::new(
            "  in QEMU microvm",
            ms(qemu.median_us()),
            "ms",
            Target::None,
        ),
        Row::new(
            "memory beyond the guest's",
            mib(ours.memory_kib),
            "MiB",
            Target::AtMost(3.0),
        ),
        Row::new(
            "  of QEMU microvm",
            mib(qemu.memory_kib),
            "MiB",
            Target::None,
        ),
        Row::new(
            "exits to sifr-vmm in a guest's life",
            float(all),
            "",
            Target::AtMost(60.0),
        ),
        Row::new(
            "  of them to virtio devices",
            float(devices),
            "",
            Target::None,
        ),
        Row::new("  of them to ports", float(ports), "", Target::None),
    ]
}

/// Figures here are far below 2^52.
fn float(number: u64) -> f64 {
    let low = u32::try_from(number & u64::from(u32::MAX)).expect("32 bits");
    let high = u32::try_from(number >> 32).expect("32 bits");
    f64::from(high) * 4_294_967_296.0 + f64::from(low)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_boot_table_is_read_without_the_wait_for_the_network() {
        let console = "sifr: [ 1/15] mounts     ok         7 ms\n\
                       sifr: [12/15] address    ok       400 ms  10.0.2.15/24 eth0\n\
                       sifr: [14/15] api        FAILED     3 ms  no\n\
                       sifr: ready, waiting for an address\n\
                       sifr: status as of 1000 ms since the kernel started\n\
                       sifr: ready https://10.0.2.15:7443\n\
                       sifr: status as of 1234 ms since the kernel started\n";
        assert_eq!(
            parse_boot(console),
            Some(Booted {
                ready_ms: 1234,
                own_ms: 10
            })
        );
        assert_eq!(parse_boot(""), None);
    }

    #[test]
    fn a_sample_of_memory_is_read() {
        assert_eq!(
            parse_sample("bench: available 890 of 950\r"),
            Some((890, 950))
        );
        assert_eq!(parse_sample("bench: available much"), None);
    }

    #[test]
    fn large_numbers_become_floats_unchanged() {
        assert_eq!(float(5_000_000_000), 5e9);
    }
}
