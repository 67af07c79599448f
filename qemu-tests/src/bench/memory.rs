//! How much memory a node needs.
//!
//! Owns: the search for the smallest machine, and the reading of an idle one.
//! Refuses: freeing anything first. A node is measured as it comes up.

use anyhow::{Context, Result};
use image::assemble::Image;
use types::Bytes;

use super::archive;
use super::boot::answers;
use super::measure::{PATIENCE, float, instead};
use super::report::{IDLE, Idle, Role};
use super::table::Row;
use crate::{Lab, Setup};

/// Sizes are tried in such steps, MiB.
const STEP_MIB: u64 = 16;
/// Here no kernel of ours comes up: with its books and both forms of the image it needs all of it.
const FLOOR_MIB: u64 = 48;
/// The target, tried first, and what the search goes up to where it fails.
const TARGET_MIB: u64 = 256;
const CEILING_MIB: u64 = 1024;
const ZERO_OS_MIB: f64 = 2048.0;
/// Of a machine with 1 GiB.
const IDLE_TARGET_MIB: f64 = 112.0;
/// Debian 12 with sshd on the same kernel.
const DEBIAN_MIB: f64 = 110.0;

pub(super) fn smallest() -> Result<Vec<Row>> {
    let good = if serves(TARGET_MIB) {
        search(FLOOR_MIB, TARGET_MIB, serves)
    } else {
        search(TARGET_MIB, CEILING_MIB, serves)
    };
    let target = float(TARGET_MIB);
    Ok(vec![
        Row::target(
            "smallest machine that boots and serves",
            float(good),
            "MiB",
            target,
        )
        .beside("Zero-OS", ZERO_OS_MIB),
    ])
}

/// Whether a machine of this size makes its pool and answers the API.
fn serves(mib: u64) -> bool {
    let setup = Setup {
        memory: Bytes::mib(mib),
        ..Setup::default()
    };
    let served = Lab::with(&setup, |_| Ok(())).and_then(|lab| answers(&lab));
    match &served {
        Ok(()) => eprintln!("bench:     {mib} MiB: serves"),
        Err(error) => eprintln!("bench:     {mib} MiB: {}", first_line(error)),
    }
    served.is_ok()
}

fn first_line(error: &anyhow::Error) -> String {
    let text = format!("{error:#}");
    let line = text.lines().next().unwrap_or_default();
    line.to_owned()
}

/// The smallest good size above `bad`, which is too small, up to `good`, which is taken for good.
fn search(bad: u64, good: u64, mut works: impl FnMut(u64) -> bool) -> u64 {
    let (mut bad, mut good) = (bad / STEP_MIB, good / STEP_MIB);
    while bad + 1 < good {
        let middle = u64::midpoint(bad, good);
        if works(middle * STEP_MIB) {
            good = middle;
        } else {
            bad = middle;
        }
    }
    good * STEP_MIB
}

pub(super) fn idle(image: &Image, program: &[u8]) -> Result<Vec<Row>> {
    let initramfs = archive::small(image, program)?;
    let setup = Setup::default();
    let mut file = None;
    let lab = Lab::with(&setup, |machine| {
        file = Some(instead(machine, &initramfs, Role::Idle, "")?);
        Ok(())
    })?;
    let line = lab.node().wait_for_line(IDLE, PATIENCE)?;
    let idle = parse(&line).with_context(|| format!("understand {line:?}"))?;
    let all = setup.memory.as_mib() * 1024;
    let mib = |kib: u64| float(kib) / 1024.0;
    let used = mib(all.saturating_sub(idle.available_kib));
    let kernel = mib(all.saturating_sub(idle.total_kib));
    Ok(vec![
        Row::target(
            "memory in use, idle, of 1 GiB",
            used,
            "MiB",
            IDLE_TARGET_MIB,
        )
        .beside("Debian with sshd, same kernel", DEBIAN_MIB),
        Row::part("the kernel and its books of pages", kernel, "MiB"),
        Row::part("after them", used - kernel, "MiB"),
    ])
}

fn parse(line: &str) -> Option<Idle> {
    let (_, json) = line.split_once(IDLE)?;
    serde_json::from_str(json.trim()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_search_finds_the_smallest_size_that_works() {
        for least in (64..=256).step_by(16) {
            let mut tried = 0;
            let found = search(48, 256, |mib| {
                tried += 1;
                mib >= least
            });
            assert_eq!(found, least);
            assert!(tried <= 4);
        }
    }

    #[test]
    fn a_reading_of_memory_is_understood() {
        let line = "bench: idle {\"available_kib\":5,\"total_kib\":7}\r";
        let idle = Idle {
            available_kib: 5,
            total_kib: 7,
        };
        assert_eq!(parse(line), Some(idle));
        assert_eq!(parse("bench: idle much"), None);
    }
}
