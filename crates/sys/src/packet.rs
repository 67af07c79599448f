//! Packet sockets: IPv4 on a link that has no address yet, and whole frames. Those that hear everything are in
//! [`crate::capture`].
//!
//! Owns: opening one that hears only one UDP port, and sending to everybody on the link; opening one for frames.
//! Refuses: checking what arrives.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// The size of a C struct, which fits the type that C gives it.
pub(crate) const fn size<T>() -> libc::socklen_t {
    let size = size_of::<T>();
    assert!(size <= 1 << 16);
    #[expect(clippy::cast_possible_truncation, reason = "checked in the line above")]
    let size = size as libc::socklen_t;
    size
}

const IPV4: u16 = 0x0800;
/// AF_PACKET as a sockaddr holds it.
const FAMILY: libc::sa_family_t = 17;
const BROADCAST: [u8; 6] = [0xff; 6];

/// A non-blocking socket for IPv4 packets on link `index`, without their Ethernet header, that hears
/// UDP packets to `port` only, whatever address they are for.
pub fn open_udp(index: u32, port: u16) -> io::Result<OwnedFd> {
    // Protocol 0 hears nothing yet: the filter is in place before the first packet.
    let kind = libc::SOCK_DGRAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: socket takes no pointers.
    let fd = unsafe { libc::socket(libc::AF_PACKET, kind, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just made this descriptor, and nothing else knows it.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    attach(&fd, &mut udp_filter(port))?;
    bind(&fd, index, IPV4)?;
    Ok(fd)
}

/// A socket whose writes are frames on link `index`, Ethernet headers included, whatever stands in them.
pub fn open_frames(index: u32) -> io::Result<OwnedFd> {
    // SAFETY: socket takes no pointers.
    let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just made this descriptor, and nothing else knows it.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    bind(&fd, index, IPV4)?;
    Ok(fd)
}

/// From here on the socket hears frames of `protocol` on link `index`.
pub(crate) fn bind(fd: &OwnedFd, index: u32, protocol: u16) -> io::Result<()> {
    let address = address(index, protocol);
    // SAFETY: `address` is a sockaddr_ll that lives over the call, and its true size is given.
    let result = unsafe {
        libc::bind(
            fd.as_raw_fd(),
            (&raw const address).cast(),
            size::<libc::sockaddr_ll>(),
        )
    };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Sends one IPv4 packet to everybody on the link.
pub fn broadcast(socket: BorrowedFd<'_>, index: u32, packet: &[u8]) -> io::Result<()> {
    let mut address = address(index, IPV4);
    address.sll_halen = 6;
    address.sll_addr[..6].copy_from_slice(&BROADCAST);
    // SAFETY: `packet` and `address` live over the call and their true sizes are given.
    let sent = unsafe {
        libc::sendto(
            socket.as_raw_fd(),
            packet.as_ptr().cast(),
            packet.len(),
            libc::MSG_NOSIGNAL,
            (&raw const address).cast(),
            size::<libc::sockaddr_ll>(),
        )
    };
    match usize::try_from(sent) {
        Ok(sent) if sent == packet.len() => Ok(()),
        Ok(_) => Err(io::ErrorKind::WriteZero.into()),
        Err(_) => Err(io::Error::last_os_error()),
    }
}

fn address(index: u32, protocol: u16) -> libc::sockaddr_ll {
    // SAFETY: sockaddr_ll is plain data, for which all zero is a value.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = FAMILY;
    address.sll_protocol = protocol.to_be();
    address.sll_ifindex = index.cast_signed();
    address
}

const FILTER_LENGTH: u16 = 9;

/// Classic BPF over an IPv4 packet: UDP, first fragment, destination port `port`.
fn udp_filter(port: u16) -> [libc::sock_filter; FILTER_LENGTH as usize] {
    let op = |code: u32, jt, jf, k| {
        let code = u16::try_from(code).expect("operations are numbered in 16 bits");
        libc::sock_filter { code, jt, jf, k }
    };
    let (ld_byte, ld_half) = (libc::BPF_LD | libc::BPF_B, libc::BPF_LD | libc::BPF_H);
    let equal = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
    [
        op(ld_byte | libc::BPF_ABS, 0, 0, 9),
        op(equal, 0, 6, 17),
        op(ld_half | libc::BPF_ABS, 0, 0, 6),
        op(libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K, 4, 0, 0x1fff),
        op(libc::BPF_LDX | libc::BPF_B | libc::BPF_MSH, 0, 0, 0),
        op(ld_half | libc::BPF_IND, 0, 0, 2),
        op(equal, 0, 1, u32::from(port)),
        op(libc::BPF_RET | libc::BPF_K, 0, 0, u32::MAX),
        op(libc::BPF_RET | libc::BPF_K, 0, 0, 0),
    ]
}

fn attach(
    fd: &OwnedFd,
    program: &mut [libc::sock_filter; FILTER_LENGTH as usize],
) -> io::Result<()> {
    let program = libc::sock_fprog {
        len: FILTER_LENGTH,
        filter: program.as_mut_ptr(),
    };
    // SAFETY: the kernel copies `len` instructions from `filter`, which is an array of that length that
    // lives over the call, and reads a sock_fprog, whose true size is given.
    let result = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            (&raw const program).cast(),
            size::<libc::sock_fprog>(),
        )
    };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn a_socket_on_the_loopback_link_opens_and_sends() {
        let socket = open_udp(1, 68).expect("a packet socket; it needs CAP_NET_RAW");
        broadcast(socket.as_fd(), 1, &[0x45; 28]).expect("sent");
    }
}
