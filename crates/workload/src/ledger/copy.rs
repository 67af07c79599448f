//! One copy of the ledger as a file: appended to, cut, and replaced as a whole.
//!
//! Owns: the acts, as work that another thread may do. Refuses: deciding which copies count, and waiting for a disk.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{FILE, LedgerError, TEMPORARY, Work, io_error};

#[derive(Debug)]
pub(super) struct Copy {
    pub(super) directory: PathBuf,
    pub(super) pool: usize,
    pub(super) state: State,
}

#[derive(Debug)]
pub(super) enum State {
    /// It holds every statement, in `length` bytes, and is open for appending.
    Whole { file: Arc<File>, length: u64 },
    /// It does not, and could not be made to.
    Behind,
    /// Its pool has failed: it is left as it is.
    GivenUp,
}

impl Copy {
    pub(super) fn is_behind(&self) -> bool {
        matches!(self.state, State::Behind)
    }

    pub(super) fn is_given_up(&self) -> bool {
        matches!(self.state, State::GivenUp)
    }

    pub(super) fn length(&self) -> u64 {
        match self.state {
            State::Whole { length, .. } => length,
            State::Behind | State::GivenUp => 0,
        }
    }

    pub(super) fn append(&self, bytes: &Arc<Vec<u8>>) -> Result<Work, LedgerError> {
        let State::Whole { file, .. } = &self.state else {
            // Not after `catch_up`; and if it were, nothing must be acknowledged.
            return Err(LedgerError::Poisoned);
        };
        let (file, directory, bytes) = (file.clone(), self.directory.clone(), bytes.clone());
        Ok(Box::new(move || {
            let mut to = &*file;
            to.write_all(&bytes)
                .map_err(io_error("append to", &directory))?;
            file.sync_data().map_err(io_error("sync", &directory))
        }))
    }

    /// What was appended last belongs to it.
    pub(super) fn keep(&mut self, bytes: usize) {
        if let State::Whole { length, .. } = &mut self.state {
            *length += bytes as u64;
        }
    }

    /// Back to what belongs to it.
    pub(super) fn cut(&self) -> Work {
        let State::Whole { file, length } = &self.state else {
            return Box::new(|| Ok(()));
        };
        let (file, length, directory) = (file.clone(), *length, self.directory.clone());
        Box::new(move || {
            let cut = file.set_len(length).and_then(|()| file.sync_all());
            cut.map_err(io_error("cut", &directory))
        })
    }
}

/// Opens a copy that holds everything.
pub(super) fn whole(directory: &Path) -> Result<State, LedgerError> {
    let path = directory.join(FILE);
    let file = OpenOptions::new()
        .append(true)
        .open(&path)
        .map_err(io_error("open", &path))?;
    let length = file.metadata().map_err(io_error("stat", &path))?.len();
    let file = Arc::new(file);
    Ok(State::Whole { file, length })
}

/// Replaces a copy by one rename: it is the old or the new at any moment.
pub(super) fn replace(directory: &Path, bytes: &[u8]) -> Result<(), LedgerError> {
    let (path, temporary) = (directory.join(FILE), directory.join(TEMPORARY));
    let mut file = File::create(&temporary).map_err(io_error("create", &temporary))?;
    if let Err(error) = file.write_all(bytes).and_then(|()| file.sync_all()) {
        // Half a copy would keep the room that the next try needs.
        let _ = std::fs::remove_file(&temporary);
        return Err(io_error("write", &temporary)(error));
    }
    std::fs::rename(&temporary, &path).map_err(io_error("rename to", &path))?;
    sync_directory(directory)?;
    directory.parent().map_or(Ok(()), sync_directory)
}

fn sync_directory(directory: &Path) -> Result<(), LedgerError> {
    File::open(directory)
        .and_then(|d| d.sync_all())
        .map_err(io_error("sync", directory))
}
