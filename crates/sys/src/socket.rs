//! Packets between processes of one machine, with descriptors beside them.
//!
//! Owns: SOCK_SEQPACKET pairs and SCM_RIGHTS. Refuses: a packet or descriptor list that was cut.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::cmsg_space;
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType,
};

/// The kernel's SCM_MAX_FD: most descriptors beside one packet.
pub const FDS_MAX: usize = 253;

/// Two ends of a packet connection, both close-on-exec and blocking.
pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let flags = SockFlag::SOCK_CLOEXEC;
    Ok(nix::sys::socket::socketpair(
        AddressFamily::Unix,
        SockType::SeqPacket,
        None,
        flags,
    )?)
}

/// Sends one packet, whole or not at all. An empty packet is refused: it would read as the end.
pub fn send(socket: BorrowedFd<'_>, packet: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    if packet.is_empty() || fds.len() > FDS_MAX {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let raw: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let control: &[ControlMessage<'_>] = if raw.is_empty() { &[] } else { &rights };
    let iov = [IoSlice::new(packet)];
    let flags = MsgFlags::MSG_NOSIGNAL;
    loop {
        match nix::sys::socket::sendmsg::<()>(socket.as_raw_fd(), &iov, control, flags, None) {
            Ok(_) => return Ok(()),
            Err(nix::errno::Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// What arrived in one packet.
#[derive(Debug)]
pub struct Received {
    pub length: usize,
    /// Close-on-exec.
    pub fds: Vec<OwnedFd>,
}

/// Receives one packet into `buffer`. `None` when the other end is closed. Where the packet or its
/// descriptors do not fit, the packet is lost and the error is `InvalidData`.
pub fn receive(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<Option<Received>> {
    let mut space = cmsg_space!([RawFd; FDS_MAX]);
    let mut iov = [IoSliceMut::new(buffer)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message = loop {
        match nix::sys::socket::recvmsg::<()>(socket.as_raw_fd(), &mut iov, Some(&mut space), flags)
        {
            Err(nix::errno::Errno::EINTR) => {}
            other => break other?,
        }
    };
    let mut fds = Vec::new();
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(raw) = control {
            // SAFETY: the kernel has just installed these descriptors for this message, and nothing
            // else in the process knows their numbers.
            fds.extend(
                raw.into_iter()
                    .map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }),
            );
        }
    }
    let (length, flags) = (message.bytes, message.flags);
    if flags.intersects(MsgFlags::MSG_TRUNC | MsgFlags::MSG_CTRUNC) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "a packet or its descriptors did not fit",
        ));
    }
    if length == 0 {
        return Ok(None);
    }
    Ok(Some(Received { length, fds }))
}

/// The next packet's bytes, which stays where it is; descriptors with it are left alone. `None` when the
/// other end is closed. `InvalidData` where it does not fit: [`receive`] drops it.
pub fn peek(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<Option<usize>> {
    // Gives the packet's whole length, however much of it fits.
    let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_TRUNC;
    loop {
        match nix::sys::socket::recv(socket.as_raw_fd(), buffer, flags) {
            Ok(0) => return Ok(None),
            Ok(length) if length > buffer.len() => {
                let error = format!("a packet of {length} bytes, at most {} fit", buffer.len());
                return Err(io::Error::new(io::ErrorKind::InvalidData, error));
            }
            Ok(length) => return Ok(Some(length)),
            Err(nix::errno::Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// Reads and writes fail with `WouldBlock` instead of waiting.
pub fn set_nonblocking(fd: impl AsFd) -> io::Result<()> {
    use nix::fcntl::{FcntlArg, OFlag};
    let flags = OFlag::from_bits_retain(nix::fcntl::fcntl(&fd, FcntlArg::F_GETFL)?);
    nix::fcntl::fcntl(&fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}

/// The descriptor that a program inherited under this number, as a copy that its children do not
/// inherit. The number itself stays open until the program ends or executes another, closed for that one.
pub fn inherited(number: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: both calls take numbers and touch no memory; a number that is not open is an error.
    let copy = unsafe {
        libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC);
        libc::fcntl(number, libc::F_DUPFD_CLOEXEC, 3)
    };
    if copy < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor, so nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(copy) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::io::{Read, Write};

    #[test]
    fn packets_keep_their_borders_and_bring_descriptors() {
        let (a, b) = pair().expect("a pair");
        let (mut reader, writer) = io::pipe().expect("a pipe");
        send(a.as_fd(), b"one", &[writer.as_fd()]).expect("send");
        send(a.as_fd(), b"two", &[]).expect("send");
        drop((a, writer));
        let mut buffer = [0; 16];
        let one = receive(b.as_fd(), &mut buffer)
            .expect("receive")
            .expect("a packet");
        assert_eq!((&buffer[..one.length], one.fds.len()), (&b"one"[..], 1));
        let mut passed = File::from(one.fds.into_iter().next().expect("one descriptor"));
        passed.write_all(b"x").expect("write");
        drop(passed);
        let mut text = String::new();
        reader.read_to_string(&mut text).expect("read");
        assert_eq!(text, "x");
        let two = receive(b.as_fd(), &mut buffer)
            .expect("receive")
            .expect("a packet");
        assert_eq!((&buffer[..two.length], two.fds.len()), (&b"two"[..], 0));
        assert!(receive(b.as_fd(), &mut buffer).expect("receive").is_none());
    }

    #[test]
    fn a_packet_that_was_looked_at_is_still_there_with_its_descriptors() {
        let (a, b) = pair().expect("a pair");
        send(a.as_fd(), b"one", &[a.as_fd()]).expect("send");
        let mut buffer = [0; 16];
        for _ in 0..2 {
            assert_eq!(peek(b.as_fd(), &mut buffer).expect("peek"), Some(3));
        }
        let error = peek(b.as_fd(), &mut buffer[..2]).expect_err("too long");
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        let one = receive(b.as_fd(), &mut buffer).expect("receive");
        assert_eq!(one.expect("a packet").fds.len(), 1);
        drop(a);
        assert_eq!(peek(b.as_fd(), &mut buffer).expect("peek"), None);
    }

    #[test]
    fn a_packet_that_does_not_fit_is_an_error_not_a_shorter_packet() {
        let (a, b) = pair().expect("a pair");
        send(a.as_fd(), b"too long", &[]).expect("send");
        let error = receive(b.as_fd(), &mut [0; 3]).expect_err("cut");
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }
}
