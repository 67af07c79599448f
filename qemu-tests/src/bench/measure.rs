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
use super::{Peers, beside, boot, crowd, images, live, machines, memory, plain};

/// Counting instructions is slower than not, and one machine has a dozen guests to run.
pub(super) const PATIENCE: Duration = Duration::from_secs(900);
pub(super) const MIB: f64 = 1024.0 * 1024.0;
/// Talos 1.x, its initramfs alone.
const TALOS_MIB: f64 = 58.0 * 1e6 / MIB;

/// A part of the benchmark that can be measured alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Group {
    Boot,
    Disk,
    Smallest,
    Idle,
    Machines,
    MachineDisk,
    MachineNet,
    MachineScale,
    MachineSnapshot,
    Flist,
    FlistStart,
    Crowd,
    Pools,
    Volumes,
    Networks,
}

impl Group {
    /// In the order of the table, with what each is called on the command line and in progress.
    pub const ALL: [(Self, &str, &str); 15] = [
        (Self::Boot, "boot", "a node without a disk, from power-on"),
        (Self::Disk, "disk", "a node with a disk, twice"),
        (Self::Smallest, "smallest", "machines with ever less memory"),
        (Self::Idle, "idle", "a node that is left alone"),
        (Self::Machines, "machines", "virtual machines in a node"),
        (Self::MachineDisk, "machine-disk", "their disks"),
        (Self::MachineNet, "machine-net", "their cards and sockets"),
        (Self::MachineScale, "machine-scale", "how many there can be"),
        (Self::MachineSnapshot, "machine-snapshot", "their snapshots"),
        (Self::Flist, "flist", "images: packing, and what is shared"),
        (Self::FlistStart, "flist-start", "images: first starts"),
        (Self::Crowd, "crowd", "a hundred deployments on a node"),
        (Self::Pools, "pools", "one pool, and two"),
        (Self::Volumes, "volumes", "volumes"),
        (Self::Networks, "networks", "tenants' networks"),
    ];

    fn measure(self, image: &Image, program: &[u8], choice: &Choice) -> Result<Vec<Row>> {
        let peers = &choice.peers;
        match self {
            Self::Boot => boot::to_api(image, program),
            Self::Disk => boot::with_disk(),
            Self::Smallest => memory::smallest(),
            Self::Idle => memory::idle(image, program),
            Self::Machines => machines::compare(image, program, peers),
            Self::MachineDisk => beside::disks(image, program, peers),
            Self::MachineNet => beside::nets(image, program, peers),
            Self::MachineScale => beside::scale(image, program, peers),
            Self::MachineSnapshot => beside::snapshots(image, program, peers),
            Self::Flist => images::packed(image),
            Self::FlistStart => images::started(image),
            Self::Crowd => crowd::grown(choice.machines),
            Self::Pools => crowd::pools(),
            Self::Volumes => plain::volumes(),
            Self::Networks => {
                let mut rows = beside::networks(image, program, peers)?;
                rows.extend(live::measure()?);
                Ok(rows)
            }
        }
    }
}

/// The table's rows, and the groups that could not be measured.
#[derive(Debug)]
pub struct Measured {
    pub rows: Vec<Row>,
    pub failed: Vec<&'static str>,
}

/// What is measured, and how much of it.
#[derive(Debug)]
pub struct Choice {
    /// All groups where there are none.
    pub only: Vec<Group>,
    pub peers: Peers,
    /// How many a crowd is.
    pub machines: u16,
}

impl Default for Choice {
    fn default() -> Self {
        Self {
            only: Vec::new(),
            peers: Peers::default(),
            machines: crowd::MACHINES,
        }
    }
}

/// Everything, or the chosen groups, in the order of the table. Progress is told on stderr. A group that fails is
/// a row that says why, and the others go on.
pub fn all(paths: &Paths, choice: &Choice) -> Result<Measured> {
    let image = Image::find(paths)?;
    let program = step("the measuring program", || archive::program(paths))?;
    let mut rows = size(&image)?;
    let mut failed = Vec::new();
    for (number, (group, word, what)) in (1..).zip(Group::ALL) {
        if choice.only.is_empty() || choice.only.contains(&group) {
            let step_name = format!("{number}/{} {what}", Group::ALL.len());
            match step(&step_name, || group.measure(&image, &program, choice)) {
                Ok(measured) => rows.extend(measured),
                Err(error) => {
                    rows.push(Row::cannot(what, format!("{error:#}")));
                    failed.push(word);
                }
            }
        }
    }
    Ok(Measured { rows, failed })
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
