//! A guest comes up and goes down.
//!
//! Owns: the least that every other scenario builds on. Refuses: devices.

use anyhow::{Result, ensure};
use types::vm::StopReason;

use super::Scenario;
use crate::nested::guest::{Program, mount, say};
use crate::nested::toolkit::{Node, PATIENCE};

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "boots-and-resets",
        run: boots_and_resets,
    },
    Scenario {
        name: "triple-fault",
        run: triple_fault,
    },
    Scenario {
        name: "one-processor",
        run: |node| processors(node, 1),
    },
    Scenario {
        name: "two-processors",
        run: |node| processors(node, 2),
    },
    Scenario {
        name: "eight-processors",
        run: |node| processors(node, 8),
    },
];

pub(super) const GUESTS: &[(&str, Program)] = &[
    ("hello", || {
        say("hello");
        Ok(())
    }),
    ("processors", || {
        mount("proc", "/proc")?;
        let text = std::fs::read_to_string("/proc/cpuinfo")?;
        let count = text.lines().filter(|l| l.starts_with("processor")).count();
        say(&format!("processors {count}"));
        Ok(())
    }),
];

fn boots_and_resets(node: &Node) -> Result<String> {
    let mut machine = node.plan("boots", "hello")?.start()?;
    machine.line("hello", PATIENCE)?;
    let life = machine.finish(PATIENCE)?;
    ensure!(life.ended == sys::process::Ended::Code(0), "{life:?}");
    let (reason, exits) = life.stopped()?;
    ensure!(*reason == StopReason::GuestReset, "{reason:?}");
    Ok(format!("{exits:?}"))
}

/// `reboot=t` stands behind the monitor's own `reboot=k`: the last one counts.
fn triple_fault(node: &Node) -> Result<String> {
    let mut plan = node.plan("fault", "hello")?;
    plan.spec.cmdline.push_str(" reboot=t");
    let life = plan.start()?.finish(PATIENCE)?;
    ensure!(life.ended == sys::process::Ended::Code(2), "{life:?}");
    match life.stopped()? {
        (StopReason::Fault { message }, _) if message.contains("triple fault") => {
            Ok(message.clone())
        }
        (other, _) => anyhow::bail!("{other:?}"),
    }
}

fn processors(node: &Node, count: u8) -> Result<String> {
    let mut plan = node.plan("processors", "processors")?;
    plan.spec.cpus = count;
    let mut machine = plan.start()?;
    let line = machine.line("processors ", PATIENCE)?;
    ensure!(line == format!("processors {count}"), "{line}");
    let life = machine.finish(PATIENCE)?;
    ensure!(life.ended == sys::process::Ended::Code(0), "{life:?}");
    Ok(line)
}
