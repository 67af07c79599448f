//! Vectored I/O straight between files and guest memory.
//!
//! Owns: lists of `iovec`s over guest memory, and the system calls that take them.
//! Refuses: addresses. A list is made of slices that guest memory itself handed out.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::marker::PhantomData;
use std::os::fd::{AsRawFd, BorrowedFd};

use vm_memory::bitmap::BitmapSlice;
use vm_memory::{ReadVolatile, VolatileMemoryError, VolatileSlice};

/// Linux refuses longer lists (UIO_MAXIOV).
pub(crate) const IOV_MAX: usize = 1024;

/// Pieces of guest memory, in order. They stay mapped for `'m`.
#[derive(Debug)]
pub(crate) struct IoVec<'m> {
    list: Vec<libc::iovec>,
    bytes: usize,
    memory: PhantomData<VolatileSlice<'m>>,
}

impl<'m> IoVec<'m> {
    pub(crate) fn with_capacity(pieces: usize) -> Self {
        Self {
            list: Vec::with_capacity(pieces),
            bytes: 0,
            memory: PhantomData,
        }
    }

    /// Refuses what one system call cannot take. The slice counts as written: who reads it instead has it
    /// in a later snapshot once too often.
    #[must_use]
    pub(crate) fn push<B: BitmapSlice>(&mut self, slice: &VolatileSlice<'m, B>) -> bool {
        if self.list.len() == IOV_MAX {
            return false;
        }
        slice.bitmap().mark_dirty(0, slice.len());
        let iov_base = slice.ptr_guard_mut().as_ptr().cast();
        self.list.push(libc::iovec {
            iov_base,
            iov_len: slice.len(),
        });
        self.bytes += slice.len();
        true
    }

    /// For a call that goes on after its list's borrow has ended.
    pub(crate) fn detach(self) -> Detached {
        Detached { list: self.list }
    }

    /// Total length.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Drops the first `count` bytes.
    fn advance(&mut self, count: usize) {
        let mut rest = count;
        let whole = self
            .list
            .iter()
            .take_while(|v| {
                let fits = v.iov_len <= rest;
                rest -= if fits { v.iov_len } else { 0 };
                fits
            })
            .count();
        self.list.drain(..whole);
        if let Some(first) = self.list.first_mut() {
            first.iov_base = first.iov_base.wrapping_byte_add(rest);
            first.iov_len -= rest;
        }
        self.bytes -= count;
    }

    fn count(&self) -> i32 {
        i32::try_from(self.list.len()).expect("at most IOV_MAX")
    }
}

/// The same pieces without the promise that they stay mapped: who hands it to the kernel keeps that.
#[derive(Debug, Default)]
pub(crate) struct Detached {
    list: Vec<libc::iovec>,
}

// SAFETY: the addresses mean the same in every thread, and nothing is read or written through them here.
unsafe impl Send for Detached {}

impl Detached {
    /// First piece and count, for as long as this lives.
    pub(crate) fn raw(&self) -> (*const libc::iovec, u32) {
        let count = u32::try_from(self.list.len()).expect("at most IOV_MAX");
        (self.list.as_ptr(), count)
    }
}

fn result(returned: isize) -> io::Result<usize> {
    usize::try_from(returned).map_err(|_| io::Error::last_os_error())
}

fn position(offset: u64) -> io::Result<i64> {
    i64::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput.into())
}

/// Fills all of `to` from `offset` of `file`. What lies beyond the end of the file reads as an error.
pub(crate) fn read_exact_at(
    file: BorrowedFd<'_>,
    mut to: IoVec<'_>,
    mut offset: u64,
) -> io::Result<()> {
    while to.bytes() > 0 {
        // SAFETY: every iovec of `to` lies in a mapping of guest memory that lives for `'m`, which
        // outlives this call; the kernel writes inside these bounds. That the guest sees them change
        // is what memory is for: no Rust reference to them exists.
        let done = unsafe {
            libc::preadv(
                file.as_raw_fd(),
                to.list.as_ptr(),
                to.count(),
                position(offset)?,
            )
        };
        match result(done) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => {
                to.advance(count);
                offset += count as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Writes all of `from` at `offset` of `file`.
pub(crate) fn write_all_at(
    file: BorrowedFd<'_>,
    mut from: IoVec<'_>,
    mut offset: u64,
) -> io::Result<()> {
    while from.bytes() > 0 {
        // SAFETY: as in `read_exact_at`; the kernel only reads, and copies before it uses.
        let done = unsafe {
            libc::pwritev(
                file.as_raw_fd(),
                from.list.as_ptr(),
                from.count(),
                position(offset)?,
            )
        };
        match result(done) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => {
                from.advance(count);
                offset += count as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// One read of one packet.
pub(crate) fn read_packet(file: BorrowedFd<'_>, to: &IoVec<'_>) -> io::Result<usize> {
    // SAFETY: as in `read_exact_at`.
    result(unsafe { libc::readv(file.as_raw_fd(), to.list.as_ptr(), to.count()) })
}

/// One write of one packet.
pub(crate) fn write_packet(file: BorrowedFd<'_>, from: &IoVec<'_>) -> io::Result<usize> {
    // SAFETY: as in `write_all_at`.
    result(unsafe { libc::writev(file.as_raw_fd(), from.list.as_ptr(), from.count()) })
}

/// A file read at a position of our own: the descriptor's position is shared with other VMMs that load
/// the same kernel at the same time.
#[derive(Debug)]
pub(crate) struct Positioned<'f> {
    file: &'f File,
    at: u64,
}

impl<'f> Positioned<'f> {
    pub(crate) fn new(file: &'f File) -> Self {
        Self { file, at: 0 }
    }
}

impl Read for Positioned<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let count = std::os::unix::fs::FileExt::read_at(self.file, buf, self.at)?;
        self.at += count as u64;
        Ok(count)
    }
}

impl Seek for Positioned<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let invalid = || io::Error::from(io::ErrorKind::InvalidInput);
        self.at = match to {
            SeekFrom::Start(at) => at,
            SeekFrom::Current(by) => self.at.checked_add_signed(by).ok_or_else(invalid)?,
            SeekFrom::End(by) => self
                .file
                .metadata()?
                .len()
                .checked_add_signed(by)
                .ok_or_else(invalid)?,
        };
        Ok(self.at)
    }
}

impl ReadVolatile for Positioned<'_> {
    fn read_volatile<B: BitmapSlice>(
        &mut self,
        buf: &mut VolatileSlice<'_, B>,
    ) -> Result<usize, VolatileMemoryError> {
        let guard = buf.ptr_guard_mut();
        let at = position(self.at).map_err(VolatileMemoryError::IOError)?;
        // SAFETY: `buf` vouches for `len` bytes at its pointer for as long as it is borrowed.
        let done =
            unsafe { libc::pread(self.file.as_raw_fd(), guard.as_ptr().cast(), buf.len(), at) };
        let count = result(done).map_err(VolatileMemoryError::IOError)?;
        self.at += count as u64;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::GuestRam;
    use std::os::fd::AsFd;
    use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

    #[test]
    fn a_list_of_pieces_reads_and_writes_in_order() {
        let ram = GuestRam::from_ranges(&[(GuestAddress(0), 0x4000)]).expect("maps");
        let file = tempfile::tempfile().expect("temporary file");
        ram.write_slice(b"hello, world", GuestAddress(0x1000))
            .expect("inside");
        let mut list = IoVec::with_capacity(2);
        for (at, len) in [(0x1007, 5), (0x1000, 5)] {
            assert!(list.push(&ram.get_slice(GuestAddress(at), len).expect("inside")));
        }
        write_all_at(file.as_fd(), list, 3).expect("writes");
        let mut back = IoVec::with_capacity(1);
        assert!(back.push(&ram.get_slice(GuestAddress(0), 10).expect("inside")));
        read_exact_at(file.as_fd(), back, 3).expect("reads");
        let mut read = [0; 10];
        ram.read_slice(&mut read, GuestAddress(0)).expect("inside");
        assert_eq!(&read, b"worldhello");
        let mut beyond = IoVec::with_capacity(1);
        assert!(beyond.push(&ram.get_slice(GuestAddress(0), 10).expect("inside")));
        assert!(read_exact_at(file.as_fd(), beyond, 4).is_err());
    }
}
