//! The role `pid1`: mounts, supervises, is the parent of every VMM, and the one way down.
//!
//! Owns: the order of the parts. Refuses: network, foreign bytes, threads and async.

mod agents;
mod boot;
mod crash;
mod down;
mod drills;
mod jail;
mod link;
mod machines;
mod patience;
mod supervisor;

use std::process::ExitCode;

pub(crate) use crash::{last_panic_headline, watchdog_bit};

/// Never returns in good health: the end of PID 1 is a kernel panic, which reboots the machine.
pub(crate) fn run() -> ExitCode {
    let booted = boot::run();
    crate::console::log_here();
    match supervisor::Supervisor::new(booted) {
        Ok(supervisor) => supervisor.run(),
        Err(error) => panic!("pid1 cannot wait for its children: {}", sys::chain(&error)),
    }
}
