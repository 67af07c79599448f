//! The figures, group by group.
//!
//! Owns: their order, and saying which is being measured.
//! Refuses: looking at a clock of this machine for a figure. It times only how long a group took.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use image::assemble::Image;
use image::paths::Paths;
use image::qemu::{Machine, Time};

use super::archive;
use super::report::{PROGRAM, ROLE, Role};
use super::table::Row;
use super::{boot, machines, memory};

/// Counting instructions is slower than not, and one machine has a dozen guests to run.
pub(super) const PATIENCE: Duration = Duration::from_secs(900);
pub(super) const MIB: f64 = 1024.0 * 1024.0;
/// Talos 1.x, its initramfs alone.
const TALOS_MIB: f64 = 58.0 * 1e6 / MIB;

/// Everything, in the order of the table. Progress is told on stderr.
pub fn all(paths: &Paths) -> Result<Vec<Row>> {
    let image = Image::find(paths)?;
    let program = step("1/6 the measuring program", || archive::program(paths))?;
    let mut rows = size(&image)?;
    rows.extend(step("2/6 a node without a disk, from power-on", || {
        boot::to_api(&image, &program)
    })?);
    rows.extend(step("3/6 a node with a disk, twice", boot::with_disk)?);
    rows.extend(step(
        "4/6 machines with ever less memory",
        memory::smallest,
    )?);
    rows.extend(step("5/6 a node that is left alone", || {
        memory::idle(&image, &program)
    })?);
    rows.extend(step("6/6 virtual machines in a node", || {
        machines::compare(&image, &program)
    })?);
    Ok(rows)
}

fn step<T>(what: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    eprintln!("bench: {what} ...");
    let start = Instant::now();
    let done = work().with_context(|| format!("measure {what}"))?;
    eprintln!("bench: {what}: {} s", start.elapsed().as_secs());
    Ok(done)
}

fn size(image: &Image) -> Result<Vec<Row>> {
    let bytes = |file: &std::path::Path| {
        let file = fs::metadata(file).with_context(|| format!("read {}", file.display()));
        file.map(|file| float(file.len()))
    };
    let (kernel, initramfs) = (bytes(&image.kernel)?, bytes(&image.initramfs)?);
    Ok(vec![
        Row::target(
            "image: kernel and initramfs",
            (kernel + initramfs) / MIB,
            "MiB",
            24.0,
        )
        .beside("Talos, initramfs alone", TALOS_MIB),
        Row::part("kernel", kernel / MIB, "MiB"),
        Row::part("initramfs", initramfs / MIB, "MiB"),
    ])
}

/// The bench's archive in place of the shipped initramfs, the program in place of init.
pub(super) fn instead(
    machine: &mut Machine,
    initramfs: &[u8],
    role: Role,
    extra: &str,
) -> Result<tempfile::TempPath> {
    machine.time = Time::Instructions;
    let arguments = format!("rdinit={PROGRAM} {ROLE}={}{extra}", role.word());
    crate::archive::instead(machine, initramfs, &arguments)
}

/// Figures here are far below 2^52.
pub(super) fn float(number: u64) -> f64 {
    let low = u32::try_from(number & u64::from(u32::MAX)).expect("32 bits");
    let high = u32::try_from(number >> 32).expect("32 bits");
    f64::from(high) * 4_294_967_296.0 + f64::from(low)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_numbers_become_floats_unchanged() {
        assert_eq!(float(5_000_000_000), 5e9);
    }
}
