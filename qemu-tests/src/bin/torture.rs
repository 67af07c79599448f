//! `make torture`: hundreds of power cuts at random moments.
//!
//! Owns: the command line, and what a person sees of it. Refuses: to go on after a promise that was not kept.
#![forbid(unsafe_code)]

use std::io::{IsTerminal, stderr};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use image::assemble::Image;
use image::paths::Paths;
use indicatif::ProgressBar;
use qemu_tests::torture::{Kind, Tally, Torture};

/// As many as the project asks for.
const CUTS: u64 = 200;
/// Nodes: each begins with a blank disk.
const CUTS_A_NODE: u64 = 40;
/// Of these, claims of another's disk, of four cuts each.
const CLAIMS: u64 = 4;
/// And pairs of cuts while the pool is made.
const FIRST_BOOTS: u64 = 8;

fn main() -> Result<()> {
    let (mut cuts, mut seed, mut only) = (CUTS, None, None);
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let value = arguments.next().unwrap_or_default();
        let kind = Kind::ALL
            .into_iter()
            .find(|kind| format!("{kind:?}").eq_ignore_ascii_case(&value));
        let number = value.parse::<u64>();
        match (argument.as_str(), number) {
            ("--kind", _) if kind.is_some() => only = kind,
            ("--cuts", Ok(number)) => cuts = number,
            ("--seed", Ok(number)) => seed = Some(number),
            _ => bail!(
                "usage: torture [--cuts {CUTS}] [--seed NUMBER] [--kind plain|large|volumes|encrypted|two|fill|mirror]"
            ),
        }
    }
    let clock = SystemTime::now().duration_since(UNIX_EPOCH);
    let seed = seed.map_or_else(|| clock.map(|d| d.as_secs()), Ok)?;
    let build = Image::find(&Paths::find()?)?.identity()?;
    println!("{build}\n{cuts} cuts from seed {seed}");
    let bar = if stderr().is_terminal() {
        ProgressBar::new(cuts)
    } else {
        ProgressBar::hidden()
    };
    let (start, mut sum) = (Instant::now(), Tally::default());
    let mut left = cuts;
    for node in 0.. {
        let now = left.min(CUTS_A_NODE);
        if now == 0 {
            break;
        }
        let of_node = seed.wrapping_add(node);
        // Each kind in turn.
        let kinds = u64::try_from(Kind::ALL.len())?;
        let kind = Kind::ALL[usize::try_from(of_node % kinds)?];
        let kind = only.unwrap_or(kind);
        let tally = one_node(Torture::new(of_node, kind)?, kind, now, &bar);
        let tally = tally.with_context(|| format!("seed {of_node}, {kind:?}"))?;
        println!(
            "seed {of_node}, {kind:?}: {tally}, {} s",
            start.elapsed().as_secs()
        );
        sum += tally;
        left -= now;
    }
    println!(
        "in all: {sum}, {} s; every promise was kept",
        start.elapsed().as_secs()
    );
    Ok(())
}

fn one_node(mut torture: Torture, kind: Kind, cuts: u64, bar: &ProgressBar) -> Result<Tally> {
    // What is claimed is one disk; a node with volumes has other things to do.
    let (first_boots, claims) = match kind {
        Kind::Plain | Kind::Large | Kind::Encrypted => (FIRST_BOOTS, CLAIMS),
        Kind::Two | Kind::Mirror => (FIRST_BOOTS, 0),
        Kind::Volumes | Kind::Fill => (0, 0),
    };
    for _ in 0..first_boots.min(cuts / 4) {
        torture.first_boot()?;
        bar.inc(2);
    }
    for _ in 0..claims.min(cuts / 8) {
        torture.claim()?;
        bar.inc(4);
    }
    torture.first_boot()?;
    torture.settle_in()?;
    while torture.tally().cuts < cuts {
        torture.cut()?;
        bar.inc(1);
    }
    torture.check()?;
    Ok(torture.tally())
}
