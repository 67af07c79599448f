//! Inherited descriptors become owned ones, once.
//!
//! Owns: the step from a number in the specification to an open file. Refuses: numbers that are not
//! open, named twice, or kept for something else; and every inherited descriptor that nobody named.
#![allow(unsafe_code)]

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use types::vm::{Fd, SPEC_FD, VmSpec};

/// Longest specification: some descriptors, a command line, an id.
const SPEC_BYTES_MAX: u64 = 1 << 20;

#[derive(Debug, thiserror::Error)]
pub(crate) enum FdError {
    #[error("descriptor {number} ({what}) is not open: pass it to the new process, or see sifr-vmm --help", number = .fd.0)]
    NotOpen { fd: Fd, what: &'static str },
    #[error("descriptor {number} ({what}) is used twice or kept for the specification", number = .fd.0)]
    Taken { fd: Fd, what: &'static str },
    #[error("read the specification from descriptor 3")]
    Read(#[source] std::io::Error),
    #[error("the specification is longer than {SPEC_BYTES_MAX} bytes")]
    Long,
    #[error("the specification is not what this VMM takes")]
    Parse(#[source] serde_json::Error),
}

/// Hands out each inherited descriptor at most once.
#[derive(Debug)]
pub(crate) struct Inherited {
    taken: BTreeSet<RawFd>,
}

impl Inherited {
    /// Reads the specification to its end and closes its descriptor. To be called once, first of all.
    pub(crate) fn spec() -> Result<(Self, VmSpec), FdError> {
        let mut inherited = Self {
            taken: (0..SPEC_FD).collect(),
        };
        let file = File::from(inherited.take(Fd(SPEC_FD), "specification")?);
        let mut text = Vec::new();
        file.take(SPEC_BYTES_MAX + 1)
            .read_to_end(&mut text)
            .map_err(FdError::Read)?;
        if text.len() as u64 > SPEC_BYTES_MAX {
            return Err(FdError::Long);
        }
        Ok((
            inherited,
            serde_json::from_slice(&text).map_err(FdError::Parse)?,
        ))
    }

    pub(crate) fn take(&mut self, fd: Fd, what: &'static str) -> Result<OwnedFd, FdError> {
        if fd.0 < SPEC_FD || !self.taken.insert(fd.0) {
            return Err(FdError::Taken { fd, what });
        }
        // SAFETY: F_GETFD takes no pointer and changes nothing; any number may be asked about.
        if unsafe { libc::fcntl(fd.0, libc::F_GETFD) } == -1 {
            return Err(FdError::NotOpen { fd, what });
        }
        // SAFETY: the descriptor is open, was opened by the parent and not by this program (which has
        // opened nothing before all descriptors are taken), and is handed out only once: `taken`.
        Ok(unsafe { OwnedFd::from_raw_fd(fd.0) })
    }

    /// Closes everything inherited that was not taken. To be called when all are taken, before this
    /// program opens anything.
    pub(crate) fn close_rest(self) {
        let mut from = SPEC_FD;
        for taken in self
            .taken
            .into_iter()
            .filter(|fd| *fd >= SPEC_FD)
            .chain([RawFd::MAX])
        {
            if taken > from {
                let bound = |fd: RawFd| libc::c_long::from(fd);
                // SAFETY: no object of this program owns a descriptor in this gap: it has opened none,
                // and those it took over are the borders of the gaps.
                let done = unsafe {
                    libc::syscall(libc::SYS_close_range, bound(from), bound(taken - 1), 0)
                };
                // Older than Linux 5.9: the parent is trusted to have passed nothing more.
                debug_assert!(done == 0 || Errno::last() == Errno::ENOSYS);
            }
            from = taken.saturating_add(1);
        }
    }
}
