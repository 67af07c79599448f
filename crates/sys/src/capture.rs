//! Packet sockets that hear every frame of a link, for who looks for a fault.
//!
//! Owns: opening one, each frame with its time and direction, and the count of those that found no room.
//! Refuses: sending, and reading what is in a frame.

use std::io::{self, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::Duration;

use nix::sys::socket::sockopt::{RcvBufForce, ReceiveTimestampns};
use nix::sys::socket::{ControlMessageOwned, LinkAddr, MsgFlags, recvmsg, setsockopt};
use nix::sys::time::TimeSpec;

use crate::packet::{bind, size};

/// ETH_P_ALL: frames of every protocol, those that leave too.
const EVERYTHING: u16 = 3;

/// A non-blocking socket. It belongs to the network namespace of the thread that opened it.
#[derive(Debug)]
pub struct Capture(OwnedFd);

/// A frame that came by, with its Ethernet header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame {
    /// Bytes of it that are in the buffer now.
    pub captured: usize,
    /// Bytes that it had.
    pub length: usize,
    /// Since 1970, by the node's clock, when it came by.
    pub at: Duration,
    /// It was sent by the node through the link, not heard from the link.
    pub outgoing: bool,
}

impl Capture {
    /// Of link `index`. What the reader has not read yet waits in at most `room` bytes of the kernel's
    /// memory; frames beyond are left out and counted.
    pub fn open(index: u32, room: usize) -> io::Result<Self> {
        // Protocol 0 hears nothing yet: bound first, so that no frame of another link is heard.
        let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
        // SAFETY: socket takes no pointers.
        let fd = unsafe { libc::socket(libc::AF_PACKET, kind, 0) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel just made this descriptor, and nothing else knows it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        setsockopt(&fd, RcvBufForce, &room)?;
        setsockopt(&fd, ReceiveTimestampns, &true)?;
        bind(&fd, index, EVERYTHING)?;
        Ok(Self(fd))
    }

    /// The next frame, as much of it as `buffer` holds.
    ///
    /// # Errors
    /// `WouldBlock` while there is none; ENETDOWN once the link is down or gone.
    pub fn next(&self, buffer: &mut [u8]) -> io::Result<Frame> {
        let mut space = nix::cmsg_space!(TimeSpec);
        let room = buffer.len();
        let mut vectors = [IoSliceMut::new(buffer)];
        let descriptor = self.0.as_raw_fd();
        // The length of the whole frame, however much of it there is room for.
        let flags = MsgFlags::MSG_TRUNC;
        let heard = recvmsg::<LinkAddr>(descriptor, &mut vectors, Some(&mut space), flags)?;
        let at = heard.cmsgs()?.find_map(|message| match message {
            ControlMessageOwned::ScmTimestampns(time) => Some(Duration::from(time)),
            _ => None,
        });
        let kind = heard.address.map(|address| address.pkttype());
        Ok(Frame {
            captured: heard.bytes.min(room),
            length: heard.bytes,
            at: at.unwrap_or_default(),
            outgoing: kind == Some(libc::PACKET_OUTGOING),
        })
    }

    /// Frames that found no room since this was last asked.
    pub fn lost(&self) -> io::Result<u32> {
        // SAFETY: tpacket_stats is plain data, for which all zero is a value.
        let mut counts: libc::tpacket_stats = unsafe { std::mem::zeroed() };
        let mut length = size::<libc::tpacket_stats>();
        // SAFETY: the kernel writes at most `length` bytes, which is the true size of `counts`; both live
        // over the call.
        let result = unsafe {
            libc::getsockopt(
                self.0.as_raw_fd(),
                libc::SOL_PACKET,
                libc::PACKET_STATISTICS,
                (&raw mut counts).cast(),
                &raw mut length,
            )
        };
        if result < 0 {
            Err(io::Error::last_os_error())
        } else {
            Ok(counts.tp_drops)
        }
    }
}

impl AsFd for Capture {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for Capture {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        self.0.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use super::*;

    /// The link of 127.0.0.1.
    const LOOPBACK: u32 = 1;

    /// The frames that carry `word`, of those that are there.
    fn with(capture: &Capture, word: &[u8]) -> Vec<(Frame, Vec<u8>)> {
        let mut frames = Vec::new();
        let mut buffer = [0; 64];
        while let Ok(frame) = capture.next(&mut buffer) {
            let bytes = buffer[..frame.captured].to_vec();
            if bytes.windows(word.len()).any(|part| part == word) {
                frames.push((frame, bytes));
            }
        }
        frames
    }

    #[test]
    fn a_frame_is_heard_in_both_directions_with_its_length_and_time() {
        let capture =
            Capture::open(LOOPBACK, 1 << 20).expect("a packet socket; it needs CAP_NET_RAW");
        let socket = UdpSocket::bind("127.0.0.1:0").expect("bound");
        let to = socket.local_addr().expect("an address");
        let mut datagram = b"here I am".to_vec();
        datagram.resize(100, 0);
        socket.send_to(&datagram, to).expect("sent");
        let heard = with(&capture, b"here I am");
        // Ethernet, IPv4 and UDP headers come before it.
        let length = 14 + 20 + 8 + datagram.len();
        let sizes: Vec<_> = heard.iter().map(|(f, _)| (f.captured, f.length)).collect();
        assert_eq!(sizes, [(64, length), (64, length)]);
        assert!(heard[0].0.outgoing && !heard[1].0.outgoing);
        assert!(
            heard[0].0.at > Duration::from_secs(1_700_000_000),
            "{:?}",
            heard[0].0.at
        );
    }

    #[test]
    fn frames_without_room_are_counted_once() {
        let capture = Capture::open(LOOPBACK, 1).expect("a packet socket");
        let socket = UdpSocket::bind("127.0.0.1:0").expect("bound");
        let to = socket.local_addr().expect("an address");
        for _ in 0..200 {
            socket.send_to(&[0; 1000], to).expect("sent");
        }
        assert!(capture.lost().expect("counted") > 100);
        while capture.next(&mut [0; 64]).is_ok() {}
        assert!(capture.lost().expect("counted") < 100);
    }
}
