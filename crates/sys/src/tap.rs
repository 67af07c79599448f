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
    attach(name, libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR)
}

/// The same with `count` queues, each a descriptor of its own (IFF_MULTI_QUEUE), at least one. `EBUSY` where
/// the TAP is open already: who has its queues would else share them with us.
pub fn open_queues(name: &str, count: usize) -> io::Result<Vec<OwnedFd>> {
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | libc::IFF_MULTI_QUEUE;
    // The first makes it, and must find none.
    let first = attach(name, flags | IFF_TUN_EXCL)?;
    let mut queues = vec![first];
    for _ in 1..count {
        queues.push(attach(name, flags)?);
    }
    Ok(queues)
}

/// IFF_TUN_EXCL of linux/if_tun.h, which libc has as a wider type on some targets.
const IFF_TUN_EXCL: libc::c_int = 0x8000;

fn attach(name: &str, flags: libc::c_int) -> io::Result<OwnedFd> {
    let mut request = named(name)?;
    // The kernel's flags are 16 bits, of which the highest is the sign of libc's.
    let flags = u16::try_from(flags).map_err(|_| ErrorKind::InvalidInput)?;
    request.ifr_ifru.ifru_flags = flags.cast_signed();
    let tun = device()?;
    // SAFETY: the descriptor is open, and `request` is an ifreq that lives over the call, which is what
    // TUNSETIFF reads and writes (linux/if_tun.h).
    let result = unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETIFF as _, &raw mut request) };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(tun.into())
    }
}

fn device() -> io::Result<File> {
    let mut flags = OpenOptions::new();
    let flags = flags
        .read(true)
        .write(true)
        .custom_flags(libc::O_CLOEXEC | libc::O_NONBLOCK);
    flags.open("/dev/net/tun")
}

fn named(name: &str) -> io::Result<libc::ifreq> {
    // SAFETY: ifreq is plain data (arrays and a union of integers), for which all zero is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if name.is_empty() || name.len() >= request.ifr_name.len() || name.contains(['\0', '%', '/']) {
        return Err(ErrorKind::InvalidInput.into());
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    Ok(request)
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
            assert!(open_queues(name, 2).is_err(), "{name:?}");
        }
    }

    #[test]
    fn a_tap_with_several_queues_has_a_descriptor_for_each_and_one_owner() {
        let queues = match open_queues("tapqueues", 3) {
            Ok(queues) => queues,
            Err(error) => {
                println!("without TAPs there is nothing to see: {error}");
                return;
            }
        };
        assert_eq!(queues.len(), 3);
        let again = open_queues("tapqueues", 1).expect_err("it is open");
        assert_eq!(again.raw_os_error(), Some(libc::EBUSY));
        assert!(open("tapqueues").is_err(), "it is not of one queue");
        drop(queues);
        drop(open_queues("tapqueues", 1).expect("it went with its descriptors"));
    }
}
