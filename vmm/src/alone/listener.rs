//! A socket with a name, that leaves no name behind.
//!
//! Owns: the name. Refuses: a path that somebody uses; one left by a process that was killed is taken.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

#[derive(Debug, thiserror::Error)]
pub(super) enum ListenError {
    #[error("{} exists and is no socket: choose another path", .0.display())]
    Occupied(PathBuf),
    #[error("another process listens at {}: choose another path", .0.display())]
    InUse(PathBuf),
    #[error("listen at {}: check that its directory exists and is yours", .0.display())]
    Listen(PathBuf, #[source] io::Error),
}

#[derive(Debug)]
pub(super) struct Listener {
    fd: OwnedFd,
    path: PathBuf,
}

impl Drop for Listener {
    fn drop(&mut self) {
        // Whoever removed it before us wanted it gone too.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// One way to open a socket at a path.
type Open = fn(&Path) -> io::Result<OwnedFd>;

impl Listener {
    /// Of packets.
    pub(super) fn packets(path: &Path) -> Result<Self, ListenError> {
        Self::new(path, sys::seqpacket::connect, sys::seqpacket::listen)
    }

    /// Of streams.
    pub(super) fn stream(path: &Path) -> Result<Self, ListenError> {
        let connect = sys::seqpacket::connect_stream;
        Self::new(path, connect, sys::seqpacket::listen_stream)
    }

    fn new(path: &Path, connect: Open, listen: Open) -> Result<Self, ListenError> {
        match std::fs::symlink_metadata(path) {
            Ok(found) if !found.file_type().is_socket() => {
                return Err(ListenError::Occupied(path.into()));
            }
            Ok(_) => match connect(path) {
                // Left behind by one that was killed.
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
                Ok(_) | Err(_) => return Err(ListenError::InUse(path.into())),
            },
            Err(_) => {}
        }
        let fd = listen(path).map_err(|e| ListenError::Listen(path.into(), e))?;
        let path = path.into();
        Ok(Self { fd, path })
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_that_somebody_uses_is_left_alone_and_a_stale_one_is_taken() {
        let directory = tempfile::tempdir().expect("directory");
        let path = directory.path().join("s");
        for listen in [Listener::packets, Listener::stream] {
            std::fs::write(&path, "precious").expect("writes");
            assert!(matches!(listen(&path), Err(ListenError::Occupied(_))));
            assert_eq!(std::fs::read(&path).expect("still there"), b"precious");
            std::fs::remove_file(&path).expect("removes");
            let listener = listen(&path).expect("free");
            for other in [Listener::packets, Listener::stream] {
                assert!(matches!(other(&path), Err(ListenError::InUse(_))));
            }
            drop(listener);
            assert!(!path.exists());
            // As a process leaves it that is killed.
            drop(sys::seqpacket::listen(&path).expect("listens"));
            assert!(path.exists());
            drop(listen(&path).expect("nobody listens"));
        }
    }
}
