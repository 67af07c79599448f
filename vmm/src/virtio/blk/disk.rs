//! The file or block device behind a disk.
//!
//! Owns: its size and the system calls on it. Refuses: to call a flush good after one that failed: the
//! kernel says once that bytes were lost, and the next call would succeed without them.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::fd::AsFd;

use nix::fcntl::{FallocateFlags, fallocate};

use super::request::{ByteRange, Outcome};
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
        if let Err(error) = &synced {
            self.lost = true;
            report::line(&format!("a disk has lost writes: {error}"));
        }
        outcome(Some(synced))
    }

    /// Discarding is advice: a file system that cannot is no error of the guest's.
    pub(crate) fn discard(&self, ranges: &[ByteRange]) -> Outcome {
        self.on_each(ranges, |_| FallocateFlags::FALLOC_FL_PUNCH_HOLE)
    }

    pub(crate) fn write_zeroes(&self, ranges: &[ByteRange]) -> Outcome {
        self.on_each(ranges, |range| match range.unmap {
            true => FallocateFlags::FALLOC_FL_PUNCH_HOLE,
            false => FallocateFlags::FALLOC_FL_ZERO_RANGE,
        })
    }

    fn on_each(&self, ranges: &[ByteRange], how: impl Fn(&ByteRange) -> FallocateFlags) -> Outcome {
        let signed = |value: u64| i64::try_from(value).expect("ranges lie inside the file");
        for range in ranges {
            let flags = how(range) | FallocateFlags::FALLOC_FL_KEEP_SIZE;
            match fallocate(&self.file, flags, signed(range.start), signed(range.length)) {
                Ok(()) => {}
                Err(nix::errno::Errno::EOPNOTSUPP) => return Outcome::Unsupported,
                Err(_) => return Outcome::IoError,
            }
        }
        Outcome::Ok
    }
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
