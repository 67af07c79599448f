//! How a snapshot's memory becomes the guest's.
//!
//! ```text
//! files ── mapped, one laid over the other ──┬── private: that mapping is guest memory ◄── populate ──┐
//!                                            └── missing: pages go from it into guest memory ◄────────┴── working set
//! ```
//!
//! Owns: the two modes, and what is brought before anybody asks for it.
//! Refuses: a working set of another snapshot.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use types::vm::{Restore, RestoreMode};

use super::working_set::{self, ID_BYTES, WorkingSet, WorkingSetError};
use super::{SnapshotError, State};
use crate::confine::{self, Kind};
use crate::memory::missing::Missing;
use crate::memory::{self, GuestRam};

/// What a mode needs besides the snapshot's files.
#[derive(Debug, Default)]
pub(crate) struct Aids {
    pub(crate) working_set: Option<File>,
    /// `/dev/userfaultfd`.
    pub(crate) userfault: Option<File>,
}

impl Aids {
    /// `take` gives the descriptor that the specification names.
    pub(crate) fn take<E>(
        restore: Option<&Restore>,
        mut take: impl FnMut(types::vm::Fd, &'static str) -> Result<OwnedFd, E>,
    ) -> Result<Self, E> {
        let Some(restore) = restore else {
            return Ok(Self::default());
        };
        let userfault = match restore.mode {
            RestoreMode::Private => None,
            RestoreMode::Missing { userfault } => Some(take(userfault, "userfaultfd")?.into()),
        };
        let set = restore.working_set;
        let set = set.map(|fd| take(fd, "working set")).transpose()?;
        Ok(Self {
            working_set: set.map(File::from),
            userfault,
        })
    }
}

/// Of a machine whose pages come one by one: which have come.
#[derive(Clone)]
pub(crate) struct Recorder {
    pub(crate) missing: Arc<Missing>,
    snapshot: [u8; ID_BYTES],
    memory_bytes: u64,
}

impl Recorder {
    /// Into the one file. Returns the bytes written.
    pub(crate) fn write(&self, fds: Vec<OwnedFd>) -> Result<u64, SnapshotError> {
        let count = fds.len();
        let file = fds.into_iter().next().map(File::from);
        let file = file.filter(|file| count == 1 && super::machine::writable(file));
        let file = file.ok_or(SnapshotError::File(1))?;
        let pages = self.missing.order();
        let set = WorkingSet::of(self.snapshot, self.memory_bytes, &pages);
        Ok(set.write(&file)?)
    }
}

/// Guest memory from `source`, which holds what the snapshot holds.
pub(crate) fn place(
    state: &State,
    source: Arc<GuestRam>,
    aids: Aids,
) -> Result<(Arc<GuestRam>, Option<Recorder>), SnapshotError> {
    let snapshot = state.id_bytes().ok_or(WorkingSetError::Foreign)?;
    let memory_bytes = state.memory.bytes;
    let set = match &aids.working_set {
        None => None,
        Some(file) => Some(WorkingSet::read(file, snapshot, memory_bytes)?),
    };
    let runs = set.as_ref().map(WorkingSet::runs).unwrap_or_default();
    let Some(device) = aids.userfault else {
        memory::populate(&source, runs).map_err(SnapshotError::Prefetch)?;
        return Ok((source, None));
    };
    let mib = state.shape.memory_mib;
    let missing = Missing::new(&device, mib, source, working_set::PAGES_MAX);
    let missing = Arc::new(missing.map_err(SnapshotError::Map)?);
    missing.prefetch(runs).map_err(SnapshotError::Prefetch)?;
    let filter = confine::filter(Kind::Pages).map_err(SnapshotError::Filter)?;
    missing.serve(filter).map_err(SnapshotError::Serve)?;
    let ram = Arc::clone(missing.ram());
    let recorder = Recorder {
        missing,
        snapshot,
        memory_bytes,
    };
    Ok((ram, Some(recorder)))
}
