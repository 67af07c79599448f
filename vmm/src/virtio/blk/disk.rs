//! The file or block device behind a disk.
//!
//! Owns: its size and the system calls on it. Refuses: to call a flush good after one that failed: the
//! kernel says once that bytes were lost, and the next call would succeed without them.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::fd::AsFd;

use nix::fcntl::{FallocateFlags, fallocate};

use super::request::{ByteRange, Operation, Outcome};
use crate::memory::GuestRam;
use crate::memory::io::{read_exact_at, write_all_at};
use crate::report;
use crate::virtio::chain::Segments;

#[derive(Debug)]
pub(crate) struct Disk {
    file: File,
    bytes: u64,
    /// A flush has failed: what was written before may be gone.
    lost: bool,
}

impl Disk {
    pub(crate) fn new(file: File) -> io::Result<Self> {
        // Works for block devices too; nobody uses the position.
        let bytes = (&file).seek(SeekFrom::End(0))?;
        Ok(Self {
            file,
            bytes,
            lost: false,
        })
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(crate) fn read(&self, ram: &GuestRam, data: &Segments, offset: u64) -> Outcome {
        let read = data
            .io_vec(ram)
            .map(|list| read_exact_at(self.file.as_fd(), list, offset));
        outcome(read)
    }

    pub(crate) fn write(&self, ram: &GuestRam, data: &Segments, offset: u64) -> Outcome {
        outcome(
            data.io_vec(ram)
                .map(|list| write_all_at(self.file.as_fd(), list, offset)),
        )
    }

    pub(crate) fn flush(&mut self) -> Outcome {
        if self.lost {
            return Outcome::IoError;
        }
        let synced = self.file.sync_data();
        self.judge(synced)
    }

    /// What a sync has come to that another did for us; `result` as the system call's, negative errors.
    pub(crate) fn synced(&mut self, result: i32) -> Outcome {
        match result.wrapping_neg() {
            // It has not begun.
            libc::EAGAIN | libc::EINTR | libc::ECANCELED => self.flush(),
            0 => self.judge(Ok(())),
            error => self.judge(Err(io::Error::from_raw_os_error(error))),
        }
    }

    fn judge(&mut self, synced: io::Result<()>) -> Outcome {
        if let Err(error) = &synced {
            self.lost = true;
            report::line(&format!("a disk has lost writes: {error}"));
        }
        match self.lost {
            true => Outcome::IoError,
            false => Outcome::Ok,
        }
    }

    /// Whether no flush is good any more.
    pub(crate) fn lost(&self) -> bool {
        self.lost
    }

    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// Discards or zeroes ranges, as `operation` says. Discarding is advice: a file system that cannot is no
    /// error of the guest's.
    pub(crate) fn allocate(&self, operation: &Operation, ranges: &[ByteRange]) -> Outcome {
        let signed = |value: u64| i64::try_from(value).expect("ranges lie inside the file");
        for range in ranges {
            let flags = allocation(operation, range);
            match fallocate(&self.file, flags, signed(range.start), signed(range.length)) {
                Ok(()) => {}
                Err(nix::errno::Errno::EOPNOTSUPP) => return Outcome::Unsupported,
                Err(_) => return Outcome::IoError,
            }
        }
        Outcome::Ok
    }
}

/// How a range is given back or zeroed.
pub(super) fn allocation(operation: &Operation, range: &ByteRange) -> FallocateFlags {
    let how = match operation {
        Operation::WriteZeroes(_) if !range.unmap => FallocateFlags::FALLOC_FL_ZERO_RANGE,
        Operation::WriteZeroes(_)
        | Operation::Discard(_)
        | Operation::Read { .. }
        | Operation::Write { .. }
        | Operation::Flush
        | Operation::Identify { .. } => FallocateFlags::FALLOC_FL_PUNCH_HOLE,
    };
    how | FallocateFlags::FALLOC_FL_KEEP_SIZE
}

/// `None`: the request has more pieces than one system call takes.
fn outcome(result: Option<io::Result<()>>) -> Outcome {
    match result {
        Some(Ok(())) => Outcome::Ok,
        Some(Err(_)) | None => Outcome::IoError,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_a_failed_flush_no_flush_is_good_again() {
        let null = File::options().write(true).open("/dev/null");
        let mut disk = Disk::new(null.expect("opens")).expect("has a size");
        assert_eq!(disk.flush(), Outcome::IoError, "/dev/null cannot be synced");
        disk.file = tempfile::tempfile().expect("temporary file");
        assert_eq!(disk.flush(), Outcome::IoError);
    }
}
