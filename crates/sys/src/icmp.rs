//! Raw sockets of ICMPv6 that hear one kind of message.
//!
//! Owns: the kernel's filter of them (RFC 3542 section 3.2). Refuses: opening them, and reading what comes.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// A bit for each kind of message (linux/icmpv6.h): those that are set are not heard.
type Filter = [u32; 8];
const OPTION: libc::c_int = 1;

/// From here on the socket hears messages of this kind alone: whatever else is sent to it wakes nobody.
pub fn hear_only(socket: BorrowedFd<'_>, kind: u8) -> io::Result<()> {
    let filter = filter(kind);
    // SAFETY: `filter` is plain data that lives over the call, and its true size is given.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_ICMPV6,
            OPTION,
            (&raw const filter).cast(),
            crate::packet::size::<Filter>(),
        )
    };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

fn filter(kind: u8) -> Filter {
    let mut filter = [u32::MAX; 8];
    filter[usize::from(kind >> 5)] &= !(1 << (kind & 31));
    filter
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_kind_passes_and_no_other() {
        for kind in [0, 31, 32, 133, 255] {
            let open = filter(kind)
                .map(|word| word.count_zeros())
                .iter()
                .sum::<u32>();
            let bit = filter(kind)[usize::from(kind / 32)] >> (kind % 32) & 1;
            assert_eq!((open, bit), (1, 0), "{kind}");
        }
    }
}
