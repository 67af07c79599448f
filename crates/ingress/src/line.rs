//! Connections that end when their other side has gone.
//!
//! Owns: a connection to a machine, and how many of these there are; how the death of a peer is found.
//! Refuses: judging a peer that answers and is slow.

use std::io;
use std::os::fd::AsFd;
use std::pin::Pin;
use std::task::{Context, Poll};

use nix::sys::socket::{setsockopt, sockopt};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::OwnedSemaphorePermit;

/// Connections to machines at once, those that are kept for the next request too. Each takes a descriptor and two buffers.
pub(crate) const LINES_MAX: usize = 4096;
/// Seconds without a word after which a peer is asked whether it is there, between two such questions, and how many of them.
const ALIVE: (u32, u32, u32) = (30, 10, 3);
/// How long sent bytes may wait for a peer that is there and does not read: a video that is paused, an upload into a database that is
/// busy. The kernel has no other clock for a peer that is gone while bytes wait.
const UNREAD_MS: u32 = 300_000;

/// A peer that is gone without a word is found out.
pub(crate) fn watch(socket: &impl AsFd) -> io::Result<()> {
    let (idle, interval, count) = ALIVE;
    setsockopt(socket, sockopt::KeepAlive, &true)?;
    setsockopt(socket, sockopt::TcpKeepIdle, &idle)?;
    setsockopt(socket, sockopt::TcpKeepInterval, &interval)?;
    setsockopt(socket, sockopt::TcpKeepCount, &count)?;
    Ok(setsockopt(socket, sockopt::TcpUserTimeout, &UNREAD_MS)?)
}

/// To a machine.
pub(crate) struct Line {
    pub(crate) stream: TcpStream,
    /// One of [`LINES_MAX`].
    pub(crate) _place: OwnedSemaphorePermit,
}

impl AsyncRead for Line {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Line {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
