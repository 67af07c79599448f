//! Our monitor beside QEMU's microvm, in one node, with one guest kernel and initramfs.
//!
//! Owns: the boot that measures both, and the rows of its report.
//! Refuses: QEMU in an image that ships. It is in an archive of the benchmark's own.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use image::assemble::Image;
use image::qemu::{Machine, Node};
use types::Bytes;
use types::vm::Exits;

use super::archive;
use super::measure::{float, instead};
use super::report::{FAILED, REPORT, Report, Role, median};
use super::table::Row;

/// Guest's life as a part of QEMU's: the target, and Firecracker's in the same harness.
const LIFE: f64 = 0.42;
const FIRECRACKER_LIFE: f64 = 0.53;
const OVERHEAD_MIB: f64 = 3.0;
const FIRECRACKER_MIB: f64 = 5.0;
const EXITS: f64 = 60.0;

/// Far longer than the whole comparison takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(300);
/// QEMU 7.2, when it counts instructions, now and then gives a guest's guest its timer interrupt a second time
/// while the first is being handled: that guest then waits for a lock that it holds itself, and nothing
/// goes on. It is seen in one boot in ten or fifteen; three in a row are another fault.
const BOOTS: usize = 3;

pub(super) fn compare(image: &Image, program: &[u8]) -> Result<Vec<Row>> {
    let initramfs = archive::large(image, program)?;
    let report = (0..BOOTS).find_map(|_| once(image, &initramfs).transpose());
    let report = report.context("the node did not come to its end")??;
    let mut rows = lives(&report);
    rows.extend(memory(&report));
    rows.extend(exits(report.exits));
    Ok(rows)
}

/// `None`: the node stood still.
fn once(image: &Image, initramfs: &[u8]) -> Result<Option<Report>> {
    let mut machine = Machine::new(image, "");
    // The guests, QEMU and both archives, packed and unpacked.
    machine.memory = Bytes::gib(2);
    let _file = instead(&mut machine, initramfs, Role::Machines, " loglevel=1")?;
    let node = Node::spawn(&machine)?;
    let line = match node.wait_for_line("bench: ", PATIENCE) {
        Ok(line) => line,
        Err(error) => {
            eprintln!("bench: {error:#}");
            return Ok(None);
        }
    };
    let Some((_, json)) = line.split_once(REPORT) else {
        let why = line.split_once(FAILED);
        bail!("inside the node: {}", why.map_or(&*line, |(_, why)| why));
    };
    let report = serde_json::from_str(json).context("understand the report")?;
    Ok(Some(report))
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
