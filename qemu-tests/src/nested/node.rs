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

/// Debian's QEMU now and then ends a nested guest by a fault that nothing in the guest made (docs/testing.md: the mended one
/// does not). A fault that a guest or the monitor makes comes each time.
pub(crate) const TRIES: u32 = 6;
/// What such an end is called by the monitor.
pub(crate) const TRIPLE_FAULT: &str = "triple fault";
/// The same faults make a guest stand still. One more try only, as each costs the whole of its patience.
const STILL_TRIES: u32 = 2;
/// What is said of a guest that stands still.
pub(super) const NOT_SAID: &str = "was not said in";

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

fn run(node: &Node, scenario: &Scenario) -> Line {
    let mut tried = 0;
    loop {
        tried += 1;
        let (name, started) = (scenario.name.to_owned(), Instant::now());
        let why = match (scenario.run)(node) {
            Ok(figures) => {
                let took = started.elapsed();
                return Line::Ok {
                    name,
                    took,
                    figures,
                };
            }
            Err(error) => format!("{error:#}"),
        };
        if tried >= tries(&why) {
            return Line::Failed { name, why };
        }
        say(&format!("\n{}", Line::Again { name, why }));
    }
}

/// How often a scenario that failed so may run in all.
fn tries(why: &str) -> u32 {
    match why {
        _ if why.contains(TRIPLE_FAULT) => TRIES,
        _ if why.contains(NOT_SAID) => STILL_TRIES,
        _ => 1,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_the_emulator_is_known_for_is_tried_again() {
        assert_eq!(tries("vCPU 1: triple fault"), TRIES);
        assert_eq!(tries("\"read \" was not said in 120s"), STILL_TRIES);
        assert_eq!(tries("block 7 is not what the guest left"), 1);
    }
}
