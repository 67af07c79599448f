//! Device events of the kernel.
//!
//! Owns: the uevent socket and the reading of one event. Refuses: reacting to it.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::sys::socket::{AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType};

use crate::error::{During, Result};

/// Longest event of the kernel: UEVENT_BUFFER_SIZE and a header.
const EVENT_MAX: usize = 4096;
/// The multicast group that the kernel sends to.
const KERNEL_GROUP: u32 = 1;

/// A non-blocking subscription.
#[derive(Debug)]
pub struct Uevents(OwnedFd);

/// One event: what happened to which device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Uevent {
    pub action: String,
    pub subsystem: String,
    pub devpath: String,
}

impl Uevents {
    pub fn subscribe() -> Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let protocol = SockProtocol::NetlinkKObjectUEvent;
        let socket =
            nix::sys::socket::socket(AddressFamily::Netlink, SockType::Datagram, flags, protocol)
                .during(|| "open the uevent socket".to_owned())?;
        nix::sys::socket::bind(socket.as_raw_fd(), &NetlinkAddr::new(0, KERNEL_GROUP))
            .during(|| "subscribe to uevents".to_owned())?;
        Ok(Self(socket))
    }

    /// The next event; `None` when none waits. Events may be lost when nobody reads: look again at
    /// what they are about instead of counting them.
    pub fn next(&self) -> io::Result<Option<Uevent>> {
        let mut buffer = [0; EVENT_MAX];
        loop {
            match nix::sys::socket::recv(self.0.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
                Ok(length) => {
                    if let Some(event) = parse(&buffer[..length]) {
                        return Ok(Some(event));
                    }
                }
                Err(nix::errno::Errno::EAGAIN) => return Ok(None),
                Err(nix::errno::Errno::EINTR | nix::errno::Errno::ENOBUFS) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}

impl AsFd for Uevents {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for Uevents {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        self.0.as_raw_fd()
    }
}

/// `add@/devices/…`, then `KEY=value`, each ended by a NUL.
fn parse(bytes: &[u8]) -> Option<Uevent> {
    let fields = bytes
        .split(|b| *b == 0)
        .filter_map(|f| std::str::from_utf8(f).ok());
    let value = |key: &str| {
        fields
            .clone()
            .find_map(|f| f.strip_prefix(key)?.strip_prefix('='))
            .map(str::to_owned)
    };
    Some(Uevent {
        action: value("ACTION")?,
        subsystem: value("SUBSYSTEM")?,
        devpath: value("DEVPATH")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_its_fields() {
        let bytes = b"add@/devices/x/block/vda\0ACTION=add\0DEVPATH=/devices/x/block/vda\0SUBSYSTEM=block\0SEQNUM=9\0";
        let event = parse(bytes).expect("an event");
        assert_eq!(
            (event.action.as_str(), event.subsystem.as_str()),
            ("add", "block")
        );
        assert_eq!(parse(b"libudev\0\xfe\xed"), None);
    }
}
