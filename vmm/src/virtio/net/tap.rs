//! The TAP behind a network card.
//!
//! Owns: its ioctls. Refuses: opening one; it comes attached.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use nix::fcntl::{FcntlArg, OFlag, fcntl};

use crate::confine::{TUNSETOFFLOAD, TUNSETQUEUE};

/// Bytes of `struct virtio_net_hdr_v1` before each packet.
pub(crate) const HEADER_BYTES: u32 = 12;

/// TUN_F_*: what the guest takes in unfinished packets.
pub(crate) const CHECKSUM: u32 = 1;
pub(crate) const SEGMENTATION_4: u32 = 2;
pub(crate) const SEGMENTATION_6: u32 = 4;
pub(crate) const CONGESTION: u32 = 8;

nix::ioctl_write_ptr_bad!(
    set_header_bytes,
    nix::request_code_write!(b'T', 216, size_of::<libc::c_int>()),
    libc::c_int
);

#[derive(Debug)]
pub(crate) struct Tap {
    file: File,
    /// A socket of packets stands for it, which knows no offloads.
    #[cfg(any(test, feature = "fuzz"))]
    is_fake: bool,
}

impl Tap {
    /// Checks by the first ioctl that it is a TAP.
    pub(crate) fn new(file: File) -> io::Result<Self> {
        let bytes = libc::c_int::try_from(HEADER_BYTES).expect("12");
        // SAFETY: TUNSETVNETHDRSZ reads one int, which lives across the call.
        unsafe { set_header_bytes(file.as_raw_fd(), &bytes) }?;
        let flags = OFlag::from_bits_retain(fcntl(&file, FcntlArg::F_GETFL)?);
        fcntl(&file, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
        let tap = Self {
            file,
            #[cfg(any(test, feature = "fuzz"))]
            is_fake: false,
        };
        tap.set_offloads(0)?;
        Ok(tap)
    }

    /// Any descriptor of packets that does not block, for tests.
    #[cfg(any(test, feature = "fuzz"))]
    pub(crate) fn fake(file: File) -> Self {
        Self {
            file,
            is_fake: true,
        }
    }

    /// What the host may leave undone in packets for the guest.
    pub(crate) fn set_offloads(&self, offloads: u32) -> io::Result<()> {
        #[cfg(any(test, feature = "fuzz"))]
        if self.is_fake {
            return Ok(());
        }
        let (request, argument) = (u64::from(TUNSETOFFLOAD), libc::c_ulong::from(offloads));
        let request = libc::Ioctl::try_from(request).expect("31 bits");
        // SAFETY: TUNSETOFFLOAD takes its argument by value and touches no memory of ours.
        match unsafe { libc::ioctl(self.file.as_raw_fd(), request, argument) } {
            -1 => Err(io::Error::last_os_error()),
            _ => Ok(()),
        }
    }

    /// Whether the kernel hands packets to this queue of a TAP with several.
    pub(crate) fn attach(&self, wanted: bool) -> io::Result<()> {
        #[cfg(any(test, feature = "fuzz"))]
        if self.is_fake {
            return Ok(());
        }
        let flag = match wanted {
            true => libc::IFF_ATTACH_QUEUE,
            false => libc::IFF_DETACH_QUEUE,
        };
        // SAFETY: ifreq is plain data (arrays and a union of integers), for which all zero is a value.
        let mut argument: libc::ifreq = unsafe { std::mem::zeroed() };
        argument.ifr_ifru.ifru_flags = libc::c_short::try_from(flag).expect("11 bits");
        let request = libc::Ioctl::try_from(u64::from(TUNSETQUEUE)).expect("31 bits");
        // SAFETY: TUNSETQUEUE reads one ifreq, which lives across the call.
        match unsafe { libc::ioctl(self.file.as_raw_fd(), request, &raw const argument) } {
            -1 => Err(io::Error::last_os_error()),
            _ => Ok(()),
        }
    }
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl AsRawFd for Tap {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        self.file.as_raw_fd()
    }
}
