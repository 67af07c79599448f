//! The role `node`: provisions the machine in named phases, then hands over to the engine.
//!
//! Owns: the runtime and the end of the role. Refuses: what the phases do.

mod accounts;
mod alter;
mod capture;
mod certificates;
mod clock;
mod content;
mod context;
mod conversation;
mod custody;
mod dashboard;
mod disks;
mod drills;
mod ending;
mod engine;
mod errands;
mod exposition;
mod flaps;
#[cfg(any(test, feature = "fuzz"))]
pub(crate) mod fuzz;
mod given_up;
mod health;
mod host;
mod identity;
mod images;
mod ingress;
mod known;
mod logs;
mod machine;
mod machines;
mod mesh;
mod metrics;
mod mirror;
mod network;
mod patient;
mod pauses;
mod phases;
mod places;
mod pools;
mod prepare;
mod pulse;
mod questions;
mod remains;
mod resolv;
mod retire;
mod runspec;
mod scribe;
mod server;
mod site;
mod smart;
mod smbios;
mod sweep;
mod tail;
mod told;
mod troubles;
mod uplink;
mod vigil;
mod volumes;
mod witness;

use std::process::ExitCode;

#[cfg(test)]
pub(crate) use context::reserved_memory;
pub(crate) use ending::force;

/// Runs until the node goes down or cannot go on; pid1 then starts it again.
pub(crate) fn run() -> ExitCode {
    crate::console::log_here();
    let runtime = match tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            log::error!("the node agent has no runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    let local = tokio::task::LocalSet::new();
    let error = runtime.block_on(local.run_until(phases::run()));
    // Sockets are closed; threads that wait for a disk are not waited for.
    drop(local);
    runtime.shutdown_background();
    log::error!("the node agent ends: {error:#}");
    ExitCode::FAILURE
}
