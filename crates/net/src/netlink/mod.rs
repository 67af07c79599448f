//! Netlink sockets.
//!
//! Owns: requests, dumps and batches, and their answers. A socket belongs to the namespace that it was
//! opened in, whichever thread uses it.
//! Refuses: answers from anybody but the kernel, and waiting for ever.

pub(crate) mod attr;

use std::cell::Cell;
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recvfrom, sendto,
    setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};

use crate::Error;

const HEADER_BYTES: usize = 16;
/// Control messages (linux/netlink.h).
const NLMSG_NOOP: u16 = 1;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
pub(crate) const NLM_F_REQUEST: u16 = 1;
pub(crate) const NLM_F_ACK: u16 = 4;
const NLM_F_DUMP_INTR: u16 = 0x10;
pub(crate) const NLM_F_REPLACE: u16 = 0x100;
const NLM_F_DUMP: u16 = 0x300;
pub(crate) const NLM_F_EXCL: u16 = 0x200;
pub(crate) const NLM_F_CREATE: u16 = 0x400;
pub(crate) const NLM_F_APPEND: u16 = 0x800;

/// The kernel answers within the call; this only turns a lost answer into an error.
const ANSWER_SECONDS: i64 = 10;
/// Largest packet the kernel makes for a dump (NLMSG_GOODSIZE is at most 32 KiB), twice over.
const PACKET_MAX: usize = 64 << 10;
/// Most objects one dump may have: far above the links of the largest node.
const OBJECTS_MAX: usize = 64 << 10;
/// A dump that collides with a change is repeated; one that collides this often is an error.
const DUMP_TRIES: usize = 16;

/// One message before it is sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Message {
    pub(crate) kind: u16,
    pub(crate) flags: u16,
    pub(crate) body: Vec<u8>,
}

/// One object of a dump.
#[derive(Debug)]
pub(crate) struct Object {
    pub(crate) kind: u16,
    pub(crate) body: Vec<u8>,
}

/// A netlink socket. Not `Sync`: answers belong to the one who asked.
#[derive(Debug)]
pub(crate) struct Socket {
    fd: OwnedFd,
    sequence: Cell<u32>,
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Socket {
    /// `groups`: multicast groups to hear, as a mask.
    pub(crate) fn open(protocol: SockProtocol, groups: u32) -> Result<Self, Error> {
        let open = || {
            let flags = SockFlag::SOCK_CLOEXEC;
            let fd = socket(AddressFamily::Netlink, SockType::Raw, flags, protocol)?;
            bind(fd.as_raw_fd(), &NetlinkAddr::new(0, groups))?;
            setsockopt(
                &fd,
                sockopt::ReceiveTimeout,
                &TimeVal::seconds(ANSWER_SECONDS),
            )?;
            Ok(fd)
        };
        let fd = open().map_err(Error::errno("open a netlink socket"))?;
        Ok(Self {
            fd,
            sequence: Cell::new(1),
        })
    }

    /// Sends one message and waits for the kernel's acknowledgement.
    pub(crate) fn request(&self, message: Message) -> io::Result<()> {
        self.batch(std::slice::from_ref(&message))
            .map_err(|failed| failed.source)
    }

    /// Sends all messages in one packet, and waits for the acknowledgement of the last. Errors of
    /// earlier ones come before it.
    pub(crate) fn batch(&self, messages: &[Message]) -> Result<(), BatchError> {
        let first = self.sequence.get();
        let mut packet = Vec::new();
        let mut last = first;
        for (at, message) in messages.iter().enumerate() {
            last = self.take_sequence();
            let acknowledge = if message.flags & NLM_F_ACK != 0 {
                NLM_F_ACK
            } else {
                0
            };
            let lonely = if messages.len() == 1 && at == 0 {
                NLM_F_ACK
            } else {
                0
            };
            write_message(
                &mut packet,
                message,
                NLM_F_REQUEST | acknowledge | lonely,
                last,
            );
        }
        let whole = |source: io::Error| BatchError {
            index: None,
            source,
        };
        let acknowledged = match messages.iter().rposition(|m| m.flags & NLM_F_ACK != 0) {
            Some(at) => first.wrapping_add(u32::try_from(at).unwrap_or(u32::MAX)),
            None => last,
        };
        self.send(&packet).map_err(whole)?;
        loop {
            for (header, body) in parse(&self.receive().map_err(whole)?) {
                if header.kind != NLMSG_ERROR {
                    continue;
                }
                let index = header.sequence.wrapping_sub(first) as usize;
                if index >= messages.len() {
                    continue; // The late answer to an earlier request that timed out.
                }
                match error_of(body) {
                    Some(source) => {
                        return Err(BatchError {
                            index: Some(index),
                            source,
                        });
                    }
                    None if header.sequence == acknowledged => return Ok(()),
                    None => {}
                }
            }
        }
    }

    /// All objects that the kernel lists for a request.
    pub(crate) fn dump(&self, kind: u16, body: &[u8]) -> io::Result<Vec<Object>> {
        for _ in 0..DUMP_TRIES {
            if let Some(objects) = self.dump_once(kind, body)? {
                return Ok(objects);
            }
        }
        Err(io::Error::new(
            ErrorKind::ResourceBusy,
            "the list changes faster than it can be read",
        ))
    }

    /// `None` where the list changed while it was read.
    fn dump_once(&self, kind: u16, body: &[u8]) -> io::Result<Option<Vec<Object>>> {
        let sequence = self.take_sequence();
        let message = Message {
            kind,
            flags: 0,
            body: body.to_vec(),
        };
        let mut packet = Vec::new();
        write_message(&mut packet, &message, NLM_F_REQUEST | NLM_F_DUMP, sequence);
        self.send(&packet)?;
        let (mut objects, mut torn) = (Vec::new(), false);
        loop {
            for (header, body) in parse(&self.receive()?) {
                if header.sequence != sequence {
                    continue;
                }
                torn |= header.flags & NLM_F_DUMP_INTR != 0;
                match header.kind {
                    NLMSG_NOOP => {}
                    NLMSG_DONE => return Ok((!torn).then_some(objects)),
                    NLMSG_ERROR => {
                        return Err(error_of(body).unwrap_or_else(|| ErrorKind::InvalidData.into()));
                    }
                    kind => objects.push(Object {
                        kind,
                        body: body.to_vec(),
                    }),
                }
                if objects.len() > OBJECTS_MAX {
                    return Err(ErrorKind::OutOfMemory.into());
                }
            }
        }
    }

    fn take_sequence(&self) -> u32 {
        let sequence = self.sequence.get();
        self.sequence.set(sequence.wrapping_add(1));
        sequence
    }

    fn send(&self, packet: &[u8]) -> io::Result<()> {
        // A batch travels as one packet, which must fit the send buffer with the kernel's own overhead.
        let room = packet.len().saturating_mul(2).max(PACKET_MAX);
        setsockopt(&self.fd, sockopt::SndBufForce, &room)?;
        let kernel = NetlinkAddr::new(0, 0);
        let sent = sendto(self.fd.as_raw_fd(), packet, &kernel, MsgFlags::empty())?;
        if sent == packet.len() {
            Ok(())
        } else {
            Err(ErrorKind::WriteZero.into())
        }
    }

    /// The next packet from the kernel.
    fn receive(&self) -> io::Result<Vec<u8>> {
        let mut buffer = vec![0; PACKET_MAX];
        loop {
            match recvfrom::<NetlinkAddr>(self.fd.as_raw_fd(), &mut buffer) {
                Ok((length, Some(from))) if from.pid() == 0 => {
                    if length == PACKET_MAX {
                        return Err(ErrorKind::FileTooLarge.into());
                    }
                    buffer.truncate(length);
                    return Ok(buffer);
                }
                Ok(_) | Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}

/// Which message of a batch the kernel refused. `None`: the batch as a whole.
#[derive(Debug)]
pub(crate) struct BatchError {
    pub(crate) index: Option<usize>,
    pub(crate) source: io::Error,
}

fn write_message(packet: &mut Vec<u8>, message: &Message, flags: u16, sequence: u32) {
    let length = u32::try_from(HEADER_BYTES + message.body.len());
    let length = length.expect("a message is written from bounded parts");
    packet.extend_from_slice(&length.to_ne_bytes());
    packet.extend_from_slice(&message.kind.to_ne_bytes());
    packet.extend_from_slice(&(message.flags | flags).to_ne_bytes());
    packet.extend_from_slice(&sequence.to_ne_bytes());
    packet.extend_from_slice(&[0; 4]);
    packet.extend_from_slice(&message.body);
    packet.resize(packet.len().next_multiple_of(4), 0);
}

#[derive(Debug, Clone, Copy)]
struct Header {
    kind: u16,
    flags: u16,
    sequence: u32,
}

/// The messages of one packet; whatever does not fit ends the list.
fn parse(packet: &[u8]) -> Vec<(Header, &[u8])> {
    let mut rest = packet;
    std::iter::from_fn(|| {
        let head: &[u8; HEADER_BYTES] = rest.get(..HEADER_BYTES)?.try_into().ok()?;
        let half = |at: usize| u16::from_ne_bytes([head[at], head[at + 1]]);
        let word =
            |at: usize| u32::from_ne_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        let length = word(0) as usize;
        let body = rest.get(HEADER_BYTES..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((
            Header {
                kind: half(4),
                flags: half(6),
                sequence: word(8),
            },
            body,
        ))
    })
    .collect()
}

/// `None` for an acknowledgement.
fn error_of(body: &[u8]) -> Option<io::Error> {
    match body
        .get(..4)
        .and_then(|b| b.try_into().ok())
        .map(i32::from_ne_bytes)
    {
        Some(0) => None,
        Some(code) => Some(io::Error::from_raw_os_error(code.saturating_neg())),
        None => Some(ErrorKind::InvalidData.into()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::proptest;

    use super::*;

    #[test]
    fn a_message_reads_back_from_its_packet() {
        let message = Message {
            kind: 16,
            flags: NLM_F_CREATE,
            body: vec![1, 2, 3],
        };
        let mut packet = Vec::new();
        write_message(&mut packet, &message, NLM_F_REQUEST, 7);
        write_message(&mut packet, &message, NLM_F_REQUEST, 8);
        let read = parse(&packet);
        assert_eq!(read.len(), 2);
        assert_eq!(
            (read[1].0.sequence, read[1].0.kind, read[1].1),
            (8, 16, &[1u8, 2, 3][..])
        );
    }

    proptest! {
        #[test]
        fn any_packet_is_read_to_an_end(packet: Vec<u8>) {
            assert!(parse(&packet).len() <= packet.len() / HEADER_BYTES);
        }
    }
}
