//! TAP devices.
//!
//! Owns: attaching to a TAP by name. Refuses: everything else about the link; that is netlink's.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

/// Opens the TAP `name` in the calling thread's network namespace, making it if it is missing: Ethernet
/// frames behind a virtio-net header, one queue. It goes with the last copy of the descriptor. `EBUSY`
/// where another descriptor is attached to it.
pub fn open(name: &str) -> io::Result<OwnedFd> {
    let mut flags = OpenOptions::new();
    let flags = flags
        .read(true)
        .write(true)
        .custom_flags(libc::O_CLOEXEC | libc::O_NONBLOCK);
    let tun: File = flags.open("/dev/net/tun")?;
    // SAFETY: ifreq is plain data (arrays and a union of integers), for which all zero is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if name.is_empty() || name.len() >= request.ifr_name.len() || name.contains(['\0', '%', '/']) {
        return Err(ErrorKind::InvalidInput.into());
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    request.ifr_ifru.ifru_flags =
        libc::c_short::try_from(flags).map_err(|_| ErrorKind::InvalidInput)?;
    // SAFETY: the descriptor is open, and `request` is an ifreq that lives over the call, which is what
    // TUNSETIFF reads and writes (linux/if_tun.h).
    let result = unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETIFF as _, &raw mut request) };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(tun.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_are_no_link_are_refused() {
        for name in ["", "sixteen-bytes-ab", "tap%d", "a/b", "a\0"] {
            assert_eq!(
                open(name).expect_err("refused").kind(),
                ErrorKind::InvalidInput,
                "{name:?}"
            );
        }
    }
}
