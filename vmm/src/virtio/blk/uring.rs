//! One io_uring over one file.
//!
//! Owns: the ring, and what the kernel lets it do: read, write, sync and allocate on that file, nothing else,
//! and no change of this ever (IORING_REGISTER_RESTRICTIONS, from before the ring is switched on).
//! Refuses: to be dropped with memory of its caller still in the kernel's hand; the caller waits.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};

use io_uring::squeue::{Entry, Flags};
use io_uring::types::{Fixed, FsyncFlags};
use io_uring::{IoUring, opcode, register::Restriction};

use crate::memory::io::Detached;

/// Calls in flight, one more for a sync beside them; rounded up to a power of two by the kernel.
pub(crate) const ENTRIES: u32 = 256;
/// Kernel threads for what cannot be begun without waiting, of files and of other things. Disks seldom gain
/// from more, and each counts among the tasks that the node lets a VMM have.
const WORKERS: [u32; 2] = [4, 1];
/// The file's place among the registered ones.
const FILE: Fixed = Fixed(0);

/// What the kernel is asked to do.
#[derive(Debug)]
pub(super) enum Call<'c> {
    Read { to: &'c Detached, offset: u64 },
    Write { from: &'c Detached, offset: u64 },
    Sync,
    Allocate { flags: i32, start: u64, length: u64 },
}

pub(super) struct Uring(IoUring);

impl std::fmt::Debug for Uring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Uring")
    }
}

impl Uring {
    /// An error means that the kernel has none for us: too old, forbidden, short of memory.
    pub(super) fn new(file: &File) -> io::Result<Self> {
        let ring = IoUring::builder().setup_r_disabled().build(ENTRIES)?;
        let submitter = ring.submitter();
        submitter.register_files(&[file.as_raw_fd()])?;
        submitter.register_iowq_max_workers(&mut { WORKERS })?;
        let fixed = Flags::FIXED_FILE.bits();
        let operations = [
            opcode::Readv::CODE,
            opcode::Writev::CODE,
            opcode::Fsync::CODE,
            opcode::Fallocate::CODE,
        ];
        let mut rules = vec![
            Restriction::sqe_flags_allowed(fixed),
            Restriction::sqe_flags_required(fixed),
        ];
        rules.extend(operations.map(Restriction::sqe_op));
        submitter.register_restrictions(&mut rules)?;
        submitter.register_enable_rings()?;
        Ok(Self(ring))
    }

    /// Queues a call, whose result comes with `token`. False where the ring is full.
    ///
    /// # Safety
    /// What `call` refers to stays where it is, and the memory that it names stays mapped, until the result
    /// of `token` has been taken.
    pub(super) unsafe fn push(&mut self, call: &Call<'_>, token: u64) -> bool {
        let entry: Entry = match call {
            Call::Read { to, offset } => {
                let (list, count) = to.raw();
                opcode::Readv::new(FILE, list, count)
                    .offset(*offset)
                    .build()
            }
            Call::Write { from, offset } => {
                let (list, count) = from.raw();
                opcode::Writev::new(FILE, list, count)
                    .offset(*offset)
                    .build()
            }
            Call::Sync => opcode::Fsync::new(FILE).flags(FsyncFlags::DATASYNC).build(),
            Call::Allocate {
                flags,
                start,
                length,
            } => opcode::Fallocate::new(FILE, *length)
                .offset(*start)
                .mode(*flags)
                .build(),
        };
        let mut queue = self.0.submission();
        // SAFETY: the caller keeps alive what the entry points to.
        unsafe { queue.push(&entry.user_data(token)) }.is_ok()
    }

    /// Hands what is queued to the kernel. `WouldBlock` and `ResourceBusy`: not now, try again.
    pub(super) fn submit(&mut self) -> io::Result<()> {
        while !self.0.submission().is_empty() {
            match self.0.submit() {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// The same, then waits for a result.
    pub(super) fn wait(&mut self) -> io::Result<()> {
        match self.0.submit_and_wait(1) {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => Err(error),
            Ok(_) | Err(_) => Ok(()),
        }
    }

    /// A call that is done: its token, and what the system call would have returned, negative errors.
    pub(super) fn result(&mut self) -> Option<(u64, i32)> {
        let done = self.0.completion().next()?;
        Some((done.user_data(), done.result()))
    }
}

/// Readable while there are results.
impl AsRawFd for Uring {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ring(file: &File) -> Option<Uring> {
        match Uring::new(file) {
            Ok(ring) => Some(ring),
            Err(error) => {
                println!("without io_uring there is nothing to see: {error}");
                None
            }
        }
    }

    fn result_of(ring: &mut Uring, entry: &Entry) -> i32 {
        // SAFETY: none of the entries of these tests refers to memory.
        unsafe { ring.0.submission().push(entry) }.expect("room");
        ring.wait().expect("waits");
        ring.result().expect("a result").1
    }

    #[test]
    fn the_ring_does_four_things_on_one_file_and_nothing_else() {
        let file = tempfile::tempfile().expect("temporary file");
        let Some(mut ring) = ring(&file) else { return };
        let other = File::open("/dev/null").expect("opens");
        let sync = opcode::Fsync::new(FILE).build();
        assert_eq!(result_of(&mut ring, &sync), 0);
        let elsewhere = opcode::Fsync::new(io_uring::types::Fd(other.as_raw_fd())).build();
        let beyond = opcode::Fsync::new(Fixed(1)).build();
        let drained = opcode::Fsync::new(FILE)
            .build()
            .flags(Flags::IO_DRAIN | Flags::FIXED_FILE);
        let (fd, path) = (io_uring::types::Fd(libc::AT_FDCWD), c"/".as_ptr());
        let path = opcode::OpenAt::new(fd, path).build();
        assert_eq!(result_of(&mut ring, &elsewhere), -libc::EACCES);
        assert_eq!(result_of(&mut ring, &beyond), -libc::EBADF);
        assert_eq!(result_of(&mut ring, &drained), -libc::EACCES);
        assert_eq!(result_of(&mut ring, &path), -libc::EACCES);
        assert_eq!(
            result_of(&mut ring, &opcode::Nop::new().build()),
            -libc::EACCES
        );
        let more = ring
            .0
            .submitter()
            .register_files_update(0, &[other.as_raw_fd()]);
        assert_eq!(
            more.expect_err("refused").raw_os_error(),
            Some(libc::EACCES)
        );
        let rules = ring
            .0
            .submitter()
            .register_restrictions(&mut [Restriction::sqe_op(0)]);
        assert!(rules.is_err());
    }
}
