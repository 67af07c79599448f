//! The role `chunks`: fetches, verifies and caches the chunks of images, for all VMs of the node.
//!
//! Owns: the image files and chunk maps that VMMs read, and all traffic with stores. Killed at any
//! moment it leaves no wrong byte behind: a chunk counts as present only after its verified bytes are in
//! the image file.
//! Refuses: knowing deployments. The node says which flists and VMs there are.

mod ahead;
mod confine;
mod daemon;
mod disk;
mod fill;
#[cfg(any(test, feature = "fuzz"))]
pub(crate) mod fuzz;
mod job;
mod link;
mod queue;
mod scrub;
mod store;

pub(crate) use link::socket;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::os::fd::{AsFd, OwnedFd};

use crate::room::{PROMISES_DIRECTORY, Room};

/// Threads for work that blocks: disk reads and writes, decompression, name look-ups. One for each job that there can be:
/// none that a VM waits for waits behind a guess.
const BLOCKING_THREADS_MAX: usize = queue::IN_FLIGHT_MAX + queue::CACHED_MAX + queue::AHEAD_MAX;

/// Of a node.
pub(crate) const MAPS: &str = "/run/sifr/maps";

/// Where everything is; tests put it elsewhere.
#[derive(Debug, Clone)]
pub(crate) struct Paths {
    /// The pool, mounted when the node first asks for an flist.
    pub(crate) pool: PathBuf,
    /// Chunk maps. On a tmpfs, so that a map never outlives the boot that its image belongs to.
    pub(crate) maps: PathBuf,
    pub(crate) socket: PathBuf,
    /// The directory of what is promised of the pool.
    pub(crate) promises: PathBuf,
    /// How much of the pool may be taken.
    pub(crate) room: Room,
}

impl Paths {
    fn of_the_node() -> Self {
        let (run, pool) = (Path::new("/run/sifr"), Path::new("/pool"));
        Self {
            pool: pool.to_owned(),
            room: Room::of_the_node(pool),
            promises: PROMISES_DIRECTORY.into(),
            maps: MAPS.into(),
            socket: run.join("chunks.sock"),
        }
    }
}

pub(crate) fn run() -> ExitCode {
    crate::console::log_here();
    match run_confined(Paths::of_the_node()) {
        Ok(never) => match never {},
        Err(error) => {
            log::error!("chunks ends: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The node speaks for the first time when the pool is mounted: only then can the paths be named that are left to a
/// confined daemon. Until then it has heard nobody.
fn run_confined(paths: Paths) -> anyhow::Result<std::convert::Infallible> {
    let listener = sys::seqpacket::listen(&paths.socket)
        .with_context(|| format!("listen on {}", paths.socket.display()))?;
    wait(&listener).context("wait for the node")?;
    confine::enter(&paths).context("confine the daemon")?;
    serve(paths, listener)
}

fn wait(listener: &OwnedFd) -> nix::Result<()> {
    let mut fds = [PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
    loop {
        match poll(&mut fds, PollTimeout::NONE) {
            Err(nix::errno::Errno::EINTR) => {}
            other => return other.map(drop),
        }
    }
}

fn serve(paths: Paths, listener: OwnedFd) -> anyhow::Result<std::convert::Infallible> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(BLOCKING_THREADS_MAX)
        .build()
        .context("start the event loop")?;
    runtime.block_on(async {
        let daemon = daemon::Daemon::new(paths, listener, scrub::Pace::OF_A_NODE)?;
        daemon.run().await
    })
}
