//! Our monitor beside QEMU's microvm, in one node, with one guest kernel and initramfs.
//!
//! Owns: the boot that measures both, and the rows of its report.
//! Refuses: QEMU in an image that ships. It is in an archive of the benchmark's own.

use anyhow::{Context, Result};
use image::assemble::Image;
use types::vm::Exits;

use super::beside::{self, Peers};
use super::measure::float;
use super::report::{REPORT, Report, Role, median};
use super::table::Row;

/// Guest's life as a part of QEMU's: the target, and Firecracker's in the same harness.
const LIFE: f64 = 0.42;
const FIRECRACKER_LIFE: f64 = 0.53;
const OVERHEAD_MIB: f64 = 3.0;
const FIRECRACKER_MIB: f64 = 5.0;
const EXITS: f64 = 60.0;

pub(super) fn compare(image: &Image, program: &[u8], peers: &Peers) -> Result<Vec<Row>> {
    let console = beside::console(image, program, peers, Role::Machines)?;
    let json = console.lines().find_map(|line| line.split_once(REPORT));
    let (_, json) = json.context("the node has made no report")?;
    let report: Report = serde_json::from_str(json.trim()).context("understand the report")?;
    let mut rows = lives(&report);
    rows.extend(memory(&report));
    rows.extend(exits(report.exits));
    Ok(rows)
}

fn lives(report: &Report) -> Vec<Row> {
    let ms = |us: u64| float(us) / 1000.0;
    let (ours, qemu) = (report.ours.median_us(), report.qemu.median_us());
    vec![
        Row::target(
            "a guest's life, as a part of QEMU's",
            float(ours) / float(qemu),
            "",
            LIFE,
        )
        .beside("Firecracker", FIRECRACKER_LIFE),
        Row::part("in sifr-vmm, process start to end", ms(ours), "ms"),
        Row::part(
            "of it before the guest runs",
            ms(median(&report.setup_us)),
            "ms",
        ),
        Row::part("in QEMU microvm, process start to end", ms(qemu), "ms"),
    ]
}

fn memory(report: &Report) -> Vec<Row> {
    let mib = |kib: u64| float(kib) / 1024.0;
    let (ours, qemu) = (report.ours.memory, report.qemu.memory);
    vec![
        Row::target(
            "memory of sifr-vmm beyond the guest's",
            mib(ours.pss_kib),
            "MiB",
            OVERHEAD_MIB,
        )
        .beside("Firecracker", FIRECRACKER_MIB),
        Row::part(
            "with pages that others share (RSS)",
            mib(ours.rss_kib),
            "MiB",
        ),
        Row::part("and the kernel's own for it", mib(ours.kernel_kib), "MiB"),
        Row::part("QEMU microvm", mib(qemu.pss_kib), "MiB"),
        Row::part("and the kernel's own for it", mib(qemu.kernel_kib), "MiB"),
    ]
}

fn exits(exits: Exits) -> Vec<Row> {
    let Exits {
        pio_in,
        pio_out,
        mmio_read,
        mmio_write,
        other,
    } = exits;
    let all = pio_in + pio_out + mmio_read + mmio_write + other;
    let part = |what, count| Row::part(what, float(count), "");
    vec![
        Row::target("exits to sifr-vmm in a guest's life", float(all), "", EXITS),
        part("reads of device registers", mmio_read),
        part("writes of device registers", mmio_write),
        part("reads of ports", pio_in),
        part("writes of ports", pio_out),
        part("others", other),
    ]
}
