//! The node's side: `vmm-node` as init, which runs the scenarios of one group and powers off.
//!
//! Owns: what a node needs before its first monitor: mounts, control groups, the network's loopback.
//! Refuses: to stop at an error: each scenario has its line. A panic ends the node, and the test says so.

use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result};
use sys::mount::Flags;

use super::guest::say;
use super::report::{BEGIN, Line};
use super::scenario::{self, Scenario};
use super::toolkit::Node;
use super::{GROUP, toolkit};

/// All of it: the caller then powers the machine off.
pub fn main() {
    say(&format!("\n{BEGIN}"));
    let what = std::env::var(GROUP).unwrap_or_default();
    match prepare().and_then(|node| Ok((node, scenario::named(&what)?))) {
        Err(error) => {
            let (name, why) = (what, format!("{error:#}"));
            say(&format!("\n{}", Line::Failed { name, why }));
        }
        Ok((node, scenarios)) => {
            for scenario in scenarios {
                say(&format!("\n{}", run(&node, scenario)));
            }
        }
    }
    say(&format!("\n{}", Line::End));
}

/// Once: what a guest or the emulator did to it is a finding.
fn run(node: &Node, scenario: &Scenario) -> Line {
    let (name, started) = (scenario.name.to_owned(), Instant::now());
    match (scenario.run)(node) {
        Ok(figures) => {
            let took = started.elapsed();
            Line::Ok {
                name,
                took,
                figures,
            }
        }
        Err(error) => {
            let why = format!("{error:#}");
            Line::Failed { name, why }
        }
    }
}

/// What a node needs before its first monitor, as pid1 does it.
pub(crate) fn prepare() -> Result<Node> {
    // As pid1 does: else no process of ours could pivot into a root of its own.
    sys::mount::leave_initramfs(Path::new("/run"))?;
    for (kind, place) in [
        ("proc", "/proc"),
        ("sysfs", "/sys"),
        ("devtmpfs", "/dev"),
        ("tmpfs", "/run"),
        ("cgroup2", "/sys/fs/cgroup"),
    ] {
        sys::mount::mount(kind, Path::new(place), kind, Flags::empty(), "")?;
    }
    let controllers = "/sys/fs/cgroup/cgroup.subtree_control";
    std::fs::write(controllers, "+cpu +memory +pids").context("hand the controllers down")?;
    std::fs::create_dir(toolkit::EMPTY_ROOT).context("make the monitors' root")?;
    Node::open()
}
