//! A change of a network across three nodes: how long until it holds on all of them.
//!
//! Owns: the change, which is a port that is published on each and closed again, and looking at it from outside.
//! Refuses: seconds of emulated nodes as a target. The time beside it is the same change until all have acknowledged it.

use std::fmt::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::images::median;
use super::measure::PATIENCE;
use super::table::Row;
use crate::fleet::Fleet;
use crate::{WEB_PORT, busybox, http};

const NAMES: [&str; 3] = ["n1", "n2", "n3"];
/// Odd, so that one is in the middle.
const ROUNDS: usize = 5;
/// A closed port is silent, and who asks for it asks again after seconds: so each look is a new one.
const SILENCE: Duration = Duration::from_millis(400);
/// Between two looks.
const LOOK_AGAIN: Duration = Duration::from_millis(20);
const SERVE: &str = "mkdir -p /www; echo here >/www/index.html; exec httpd -f -h /www";

pub(super) fn measure() -> Result<Vec<Row>> {
    let fleet = Fleet::on_a_switch(&NAMES)?;
    let first = fleet.labs.first().context("three nodes")?;
    let flist = busybox(first.command(), first.directory())?;
    let deploy = |open: bool| -> Result<Duration> {
        let since = Instant::now();
        first.deploy(&yaml(&flist, open)?)?.must()?;
        Ok(since.elapsed())
    };
    deploy(true)?;
    everywhere(&fleet, true)?;
    let (mut acknowledged, mut live) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        deploy(false)?;
        everywhere(&fleet, false)?;
        let since = Instant::now();
        acknowledged.push(deploy(true)?.as_secs_f64() * 1e3);
        everywhere(&fleet, true)?;
        live.push(since.elapsed().as_secs_f64() * 1e3);
    }
    let (acknowledged, live) = (median(acknowledged), median(live));
    Ok(vec![
        Row::part(
            "a change on three nodes, until it holds on all, as a multiple of its acknowledgements",
            live / acknowledged,
            "",
        ),
        Row::part(
            "… by the clock, until all have acknowledged",
            acknowledged,
            "ms",
        ),
        Row::part("… until a page comes from each", live, "ms"),
    ])
}

/// Each node has a machine with a page, whose port is open or is not.
fn yaml(flist: &Path, open: bool) -> Result<String> {
    let mut yaml = format!(
        "name: shop\nworkloads:\n  net: {{network: {{nodes: [{}]}}}}\n",
        NAMES.join(", ")
    );
    let ports = match open {
        true => format!("ports: ['{WEB_PORT}:80'], "),
        false => String::new(),
    };
    for node in NAMES {
        writeln!(
            yaml,
            "  web-{node}: {{image: {}, memory: 64Mi, disk: 64Mi, on: {node}, networks: [net], {ports}command: [sh, -c, {SERVE:?}]}}",
            flist.display()
        )?;
    }
    Ok(yaml)
}

/// Waits until it is so on all nodes.
fn everywhere(fleet: &Fleet, open: bool) -> Result<()> {
    let since = Instant::now();
    for lab in &fleet.labs {
        let look = || http::get_within(lab.web, "/", SILENCE);
        while look().is_ok_and(|page| page.contains("here")) != open {
            ensure!(
                since.elapsed() < PATIENCE,
                "not so on all nodes:\n{}",
                fleet.consoles()
            );
            std::thread::sleep(LOOK_AGAIN);
        }
    }
    Ok(())
}
