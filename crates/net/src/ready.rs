//! Waiting for descriptors on the caller's runtime.
//!
//! Owns: the one place where a descriptor meets the runtime. Refuses: borrowed descriptors.

use std::io;
use std::os::fd::OwnedFd;

use tokio::io::unix::AsyncFd;

/// Registers with the current tokio runtime; panics outside one, as tokio's own sockets do.
#[expect(
    deprecated,
    reason = "`register` asks the caller to vouch that the descriptor stays open and the same; an OwnedFd that \
              nobody takes out again does that by its type, and this crate forbids unsafe code"
)]
pub(crate) fn watch(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::new(fd)
}
