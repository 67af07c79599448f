//! The role `chunks`: fetches, verifies and caches the chunks of images, for all VMs of the node.
//!
//! Owns: the image files and chunk maps that VMMs read, and all traffic with stores. Killed at any
//! moment it leaves no wrong byte behind: a chunk counts as present only after its verified bytes are in
//! the image file.
//! Refuses: knowing deployments. The node says which flists and VMs there are.

mod daemon;
mod disk;
#[cfg(any(test, feature = "fuzz"))]
pub(crate) mod fuzz;
mod job;
mod link;
mod queue;
mod store;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;

use crate::room::Room;

/// Threads for work that blocks: disk reads and writes, decompression, name look-ups.
const BLOCKING_THREADS_MAX: usize = 8;

/// Where everything is; tests put it elsewhere.
#[derive(Debug, Clone)]
pub(crate) struct Paths {
    /// The pool, mounted when the node first asks for an flist.
    pub(crate) pool: PathBuf,
    /// Chunk maps. On a tmpfs, so that a map never outlives the boot that its image belongs to.
    pub(crate) maps: PathBuf,
    pub(crate) socket: PathBuf,
    /// How much of the pool may be taken.
    pub(crate) room: Room,
}

impl Paths {
    fn of_the_node() -> Self {
        let (run, pool) = (Path::new("/run/sifr"), Path::new("/pool"));
        Self {
            pool: pool.to_owned(),
            room: Room::of_the_node(pool),
            maps: run.join("maps"),
            socket: run.join("chunks.sock"),
        }
    }
}

pub(crate) fn run() -> ExitCode {
    crate::console::log_here();
    match serve(Paths::of_the_node()) {
        Ok(never) => match never {},
        Err(error) => {
            log::error!("chunks ends: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn serve(paths: Paths) -> anyhow::Result<std::convert::Infallible> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(BLOCKING_THREADS_MAX)
        .build()
        .context("start the event loop")?;
    runtime.block_on(async {
        let daemon = daemon::Daemon::new(paths)?;
        daemon.run().await
    })
}
