//! Page faults served by user space (userfaultfd(2), linux/userfaultfd.h).
//!
//! Owns: the descriptor, the ranges that it watches, filling a missing page.
//! Refuses: knowing what belongs there. Faults of the kernel on our behalf (KVM's, those of a system call) count too:
//! that is why the descriptor comes from `/dev/userfaultfd`, whose opener vouches for us, and not from the
//! system call, which gives those to nobody without CAP_SYS_PTRACE.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use crate::error::{During, Result};

/// USERFAULTFD_IOC_NEW: takes flags, gives a descriptor.
const NEW: libc::Ioctl = 0xaa00;
/// UFFDIO_API: takes an `Api`.
const API: libc::Ioctl = request(0x3f, size_of::<Api>());
/// UFFDIO_REGISTER: takes a `Register`.
const REGISTER: libc::Ioctl = request(0x00, size_of::<Register>());
/// UFFDIO_WAKE takes a `Range`, and is said to read, by mistake (linux/userfaultfd.h says so).
const WAKE: libc::Ioctl = 0x8010_aa02u32 as libc::Ioctl;
/// UFFDIO_COPY: takes a `Copy`.
const COPY: libc::Ioctl = request(0x03, size_of::<Copy>());
/// UFFDIO_ZEROPAGE: takes a `Zero`.
const ZERO: libc::Ioctl = request(0x04, size_of::<Zero>());
/// UFFD_API.
const VERSION: u64 = 0xaa;
/// UFFDIO_REGISTER_MODE_MISSING.
const MISSING: u64 = 1;
/// UFFD_EVENT_PAGEFAULT.
const PAGE_FAULT: u8 = 0x12;
/// `struct uffd_msg`.
const MESSAGE_BYTES: usize = 32;
/// In it, of a page fault: after event, flags.
const ADDRESS_AT: usize = 16;

/// _IOWR of the kernel's type 0xAA.
const fn request(number: libc::c_ulong, bytes: usize) -> libc::Ioctl {
    (0xc000_0000 | (bytes as libc::c_ulong) << 16 | 0xaa00 | number) as libc::Ioctl
}

#[repr(C)]
struct Api {
    api: u64,
    features: u64,
    ioctls: u64,
}

#[repr(C)]
struct Range {
    start: u64,
    bytes: u64,
}

#[repr(C)]
struct Register {
    range: Range,
    mode: u64,
    ioctls: u64,
}

#[repr(C)]
struct Copy {
    to: u64,
    from: u64,
    bytes: u64,
    mode: u64,
    copied: i64,
}

#[repr(C)]
struct Zero {
    range: Range,
    mode: u64,
    zeroed: i64,
}

/// What became of a page that was to be filled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Filled {
    /// So many bytes from the beginning on. Fewer than asked for: ask again for the rest.
    Bytes(usize),
    /// The first page has been there; who waited for it has been woken.
    There,
}

/// A descriptor by which missing pages of this process are announced.
#[derive(Debug)]
pub struct Userfault(OwnedFd);

impl Userfault {
    /// `device` is `/dev/userfaultfd`.
    pub fn new(device: &File) -> Result<Self> {
        let during = || "make a descriptor of missing pages".to_owned();
        // SAFETY: USERFAULTFD_IOC_NEW takes flags as its argument and no pointer.
        let fd = unsafe { libc::ioctl(device.as_raw_fd(), NEW, libc::O_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error()).during(during);
        }
        // SAFETY: the call has just made this descriptor, and nobody else knows of it.
        let made = Self(unsafe { OwnedFd::from_raw_fd(fd) });
        let mut api = Api {
            api: VERSION,
            features: 0,
            ioctls: 0,
        };
        // SAFETY: UFFDIO_API reads and writes one `uffdio_api`, which `api` is.
        unsafe { made.call(API, (&raw mut api).cast()) }.during(during)?;
        Ok(made)
    }

    /// # Safety
    /// `argument` points to what `request` takes, for reading and writing.
    unsafe fn call(&self, request: libc::Ioctl, argument: *mut libc::c_void) -> io::Result<()> {
        // SAFETY: the caller vouches for the argument.
        match unsafe { libc::ioctl(self.0.as_raw_fd(), request, argument) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Announces each missing page of a range of whole pages, and has who needs one wait until it is filled.
    ///
    /// # Safety
    /// The range is a mapping of the caller's, in which no Rust reference is ever made: what is read there is
    /// whatever the page is filled with later.
    pub unsafe fn watch(&self, start: *mut u8, bytes: usize) -> Result<()> {
        let mut register = Register {
            range: range(start as usize, bytes),
            mode: MISSING,
            ioctls: 0,
        };
        // SAFETY: UFFDIO_REGISTER reads and writes one `uffdio_register`, which `register` is.
        unsafe { self.call(REGISTER, (&raw mut register).cast()) }
            .during(|| format!("watch {bytes} bytes of memory for missing pages"))
    }

    /// The address of the next page that somebody waits for; waits for it.
    pub fn next(&self) -> io::Result<usize> {
        loop {
            let mut message = [0; MESSAGE_BYTES];
            let count = match nix::unistd::read(self.0.as_fd(), &mut message) {
                Err(nix::errno::Errno::EINTR | nix::errno::Errno::EAGAIN) => continue,
                other => other?,
            };
            if count != MESSAGE_BYTES {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            // No other event has been asked for.
            if message[0] == PAGE_FAULT {
                let address = &message[ADDRESS_AT..ADDRESS_AT + 8];
                let address = u64::from_ne_bytes(address.try_into().expect("8 bytes"));
                return Ok(usize::try_from(address).expect("64-bit only"));
            }
        }
    }

    /// Fills missing pages from `to` on with what is at `from`, and wakes who waits for them.
    ///
    /// # Safety
    /// `from` points to `bytes` readable bytes of a mapping, which may be cut short meanwhile (EFAULT). `to` is in a
    /// range given to `watch`.
    pub unsafe fn fill(&self, to: usize, from: *const u8, bytes: usize) -> io::Result<Filled> {
        let mut copy = Copy {
            to: to as u64,
            from: from as u64,
            bytes: bytes as u64,
            mode: 0,
            copied: 0,
        };
        // SAFETY: UFFDIO_COPY reads and writes one `uffdio_copy`. It writes into missing pages of watched
        // ranges only; the caller vouches for the source.
        let done = unsafe { self.call(COPY, (&raw mut copy).cast()) };
        self.judge(done, copy.copied, to, bytes)
    }

    /// Fills missing pages with zeros. Of a range that is not watched: an error.
    pub fn zero(&self, to: usize, bytes: usize) -> io::Result<Filled> {
        let mut zero = Zero {
            range: range(to, bytes),
            mode: 0,
            zeroed: 0,
        };
        // SAFETY: UFFDIO_ZEROPAGE reads and writes one `uffdio_zeropage`; it makes zero pages where none are.
        let done = unsafe { self.call(ZERO, (&raw mut zero).cast()) };
        self.judge(done, zero.zeroed, to, bytes)
    }

    fn judge(
        &self,
        done: io::Result<()>,
        count: i64,
        to: usize,
        bytes: usize,
    ) -> io::Result<Filled> {
        let Err(error) = done else {
            return Ok(Filled::Bytes(bytes));
        };
        // Where it did some, the count says how much, else it is the error's number.
        if let Some(count) = usize::try_from(count).ok().filter(|count| *count > 0) {
            return Ok(Filled::Bytes(count));
        }
        match error.raw_os_error() {
            Some(libc::EEXIST) => {
                let mut range = range(to, 1 << 12);
                // SAFETY: UFFDIO_WAKE reads one `uffdio_range`, and only wakes.
                unsafe { self.call(WAKE, (&raw mut range).cast()) }?;
                Ok(Filled::There)
            }
            // The process's map of memory is being changed.
            Some(libc::EAGAIN) => Ok(Filled::Bytes(0)),
            _ => Err(error),
        }
    }
}

fn range(start: usize, bytes: usize) -> Range {
    Range {
        start: start as u64,
        bytes: bytes as u64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_have_the_kernels_numbers() {
        // As strace(1) shows them.
        assert_eq!(
            [API, REGISTER],
            [0xc018_aa3fu32, 0xc020_aa00].map(|n| n as libc::Ioctl)
        );
        assert_eq!(
            [COPY, ZERO],
            [0xc028_aa03u32, 0xc020_aa04].map(|n| n as libc::Ioctl)
        );
    }

    #[test]
    fn a_missing_page_is_announced_filled_once_and_read_as_filled() {
        const PAGE: usize = 4096;
        let device = File::options()
            .read(true)
            .write(true)
            .open("/dev/userfaultfd");
        // A kernel without it, or a sandbox: the laboratory has one.
        let Ok(device) = device else { return };
        let fault = Userfault::new(&device).expect("a descriptor");
        let (read, private) = (
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
        );
        // SAFETY: a new mapping of two pages, at no particular place.
        let memory = unsafe { libc::mmap(std::ptr::null_mut(), 2 * PAGE, read, private, -1, 0) };
        assert_ne!(memory, libc::MAP_FAILED);
        let start = memory as usize;
        // SAFETY: the mapping above, which only raw pointers read.
        unsafe { fault.watch(memory.cast(), 2 * PAGE) }.expect("watched");
        let reader = std::thread::spawn(move || {
            // SAFETY: the mapping lives until the thread has been joined.
            unsafe { [0, PAGE].map(|at| ((start + at) as *const u8).read_volatile()) }
        });
        let page = [7u8; PAGE];
        let address = fault.next().expect("a fault");
        assert_eq!(address / PAGE, start / PAGE);
        // SAFETY: `page` is a whole page; the address is in the watched range.
        let fill = || unsafe { fault.fill(start, page.as_ptr(), PAGE) }.expect("filled");
        assert_eq!(fill(), Filled::Bytes(PAGE));
        assert_eq!(fill(), Filled::There);
        assert_eq!(fault.next().expect("a fault") / PAGE, start / PAGE + 1);
        assert_eq!(
            fault.zero(start + PAGE, PAGE).expect("zeroed"),
            Filled::Bytes(PAGE)
        );
        assert_eq!(reader.join().expect("it has read"), [7, 0]);
        // SAFETY: nobody uses the mapping any more.
        unsafe { libc::munmap(memory, 2 * PAGE) };
    }
}
