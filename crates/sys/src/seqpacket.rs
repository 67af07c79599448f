//! Unix sockets with a name in the file system, of packets and of streams.
//!
//! Owns: listening on, accepting from and connecting to a path. What travels on a SOCK_SEQPACKET is
//! [`crate::socket`]'s. Refuses: other users; the path has mode 0600.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::Path;

use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr};
use nix::sys::stat::{Mode, umask};

/// Connections that wait to be accepted: one node speaks to one daemon, and each may just have restarted.
const BACKLOG: i32 = 4;
/// The same of streams, whose clients are programs of anybody's: as many as a machine has room for (`SOCKETS_MAX`).
const STREAM_BACKLOG: i32 = 128;

fn socket(kind: SockType, flags: SockFlag) -> io::Result<OwnedFd> {
    let flags = flags | SockFlag::SOCK_CLOEXEC;
    Ok(nix::sys::socket::socket(
        AddressFamily::Unix,
        kind,
        flags,
        None,
    )?)
}

/// Listens at `path`, in place of what an earlier process left there. Non-blocking. Changes the process's
/// umask for a moment: call it before threads that make files.
pub fn listen(path: &Path) -> io::Result<OwnedFd> {
    listen_of(SockType::SeqPacket, BACKLOG, path)
}

/// The same for streams.
pub fn listen_stream(path: &Path) -> io::Result<OwnedFd> {
    listen_of(SockType::Stream, STREAM_BACKLOG, path)
}

fn listen_of(kind: SockType, backlog: i32, path: &Path) -> io::Result<OwnedFd> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let listener = socket(kind, SockFlag::SOCK_NONBLOCK)?;
    let before = umask(Mode::from_bits_truncate(0o177));
    let bound = nix::sys::socket::bind(listener.as_raw_fd(), &UnixAddr::new(path)?);
    umask(before);
    bound?;
    nix::sys::socket::listen(&listener, Backlog::new(backlog)?)?;
    Ok(listener)
}

/// The next connection, non-blocking and close-on-exec. `WouldBlock` when there is none.
pub fn accept(listener: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let raw = nix::sys::socket::accept4(listener.as_raw_fd(), flags)?;
    // SAFETY: the kernel has just made this descriptor for us, and nothing else knows its number.
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
}

/// Connects to `path`. Blocking and close-on-exec.
pub fn connect(path: &Path) -> io::Result<OwnedFd> {
    connect_of(SockType::SeqPacket, SockFlag::empty(), path)
}

/// A stream to `path`, non-blocking and close-on-exec. `WouldBlock` where too many wait to be accepted there.
pub fn connect_stream(path: &Path) -> io::Result<OwnedFd> {
    connect_of(SockType::Stream, SockFlag::SOCK_NONBLOCK, path)
}

fn connect_of(kind: SockType, flags: SockFlag, path: &Path) -> io::Result<OwnedFd> {
    let connection = socket(kind, flags)?;
    nix::sys::socket::connect(connection.as_raw_fd(), &UnixAddr::new(path)?)?;
    Ok(connection)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_packet_reaches_whoever_listens_and_the_path_is_ours_alone() {
        let directory = tempfile::tempdir().expect("temp");
        let path = directory.path().join("socket");
        std::fs::write(&path, b"left behind").expect("write");
        let listener = listen(&path).expect("listen");
        let mode = std::fs::metadata(&path).expect("stat").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let none = accept(listener.as_fd()).expect_err("nobody yet");
        assert_eq!(none.kind(), io::ErrorKind::WouldBlock);
        let client = connect(&path).expect("connect");
        let server = accept(listener.as_fd()).expect("accept");
        crate::socket::send(client.as_fd(), b"hello", &[]).expect("send");
        let mut buffer = [0; 16];
        let got = crate::socket::receive(server.as_fd(), &mut buffer).expect("receive");
        assert_eq!(got.map(|r| r.length), Some(5));
    }

    #[test]
    fn a_stream_is_refused_where_nobody_listens_and_never_waits_where_somebody_does() {
        let directory = tempfile::tempdir().expect("temp");
        let path = directory.path().join("socket");
        let listener = listen_stream(&path).expect("listen");
        let mut waiting = Vec::new();
        let full = loop {
            match connect_stream(&path) {
                Ok(stream) => waiting.push(stream),
                Err(error) => break error,
            }
        };
        assert_eq!(full.kind(), io::ErrorKind::WouldBlock);
        let of_packets = connect(&path).expect_err("another kind");
        assert_ne!(of_packets.kind(), io::ErrorKind::ConnectionRefused);
        drop(listener);
        let gone = connect_stream(&path).expect_err("nobody");
        assert_eq!(gone.kind(), io::ErrorKind::ConnectionRefused);
    }
}
