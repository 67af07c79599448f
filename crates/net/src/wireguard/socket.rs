//! Questions and changes over generic netlink (linux/genetlink.h).
//!
//! Owns: one socket for the length of a call, the number of the family, and framing.
//! Refuses: answers from anybody but the kernel, and waiting: it answers while it is told.

use std::io::{self, ErrorKind};

use rtnetlink::packet_core::{
    Emitable, ErrorBuffer, NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR,
    NetlinkBuffer, NetlinkHeader, NlasIterator,
};
use rtnetlink::sys::protocols::NETLINK_GENERIC;
use rtnetlink::sys::{Socket, SocketAddr};

use super::message::{self, GET_DEVICE, SET_DEVICE, VERSION};
use super::{Change, Observed};
use crate::firewall::Writer;

const KERNEL: u32 = 0;
/// `struct genlmsghdr`: command, version, and two bytes of nothing.
const HEADER_BYTES: usize = 4;
/// The family that knows all others, by number; its commands and attributes.
const CONTROLLER: u16 = 16;
const GET_FAMILY: u8 = 3;
const FAMILY_ID: u16 = 1;
const FAMILY_NAME: u16 = 2;
const FAMILY: &str = "wireguard";

/// All of a link in the caller's namespace.
pub(super) fn observe(link: &str) -> io::Result<Observed> {
    let mut socket = Generic::open()?;
    let family = socket.family()?;
    let mut observed = Observed::default();
    let question = message::question(link);
    socket.ask(family, (GET_DEVICE, NLM_F_DUMP), &question, |attributes| {
        message::read(attributes, &mut observed);
    })?;
    Ok(observed)
}

/// One change after the other, to the first that is refused.
pub(super) fn change(link: &str, changes: &[Change]) -> io::Result<()> {
    let mut socket = Generic::open()?;
    let family = socket.family()?;
    changes.iter().try_for_each(|change| {
        let attributes = message::change(link, change);
        socket.ask(family, (SET_DEVICE, NLM_F_ACK), &attributes, |_| {})
    })
}

struct Generic {
    socket: Socket,
    sequence: u32,
}

impl Generic {
    fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_GENERIC)?;
        socket.bind_auto()?;
        let sequence = 0;
        Ok(Self { socket, sequence })
    }

    /// The family's number, which the kernel gives out at its boot.
    fn family(&mut self) -> io::Result<u16> {
        let mut question = Writer::default();
        question.text(FAMILY_NAME, FAMILY);
        let mut number = None;
        let what = (GET_FAMILY, NLM_F_ACK);
        self.ask(CONTROLLER, what, &question.finish(), |attributes| {
            let mut all = NlasIterator::new(attributes).flatten();
            let id = all.find(|attribute| attribute.kind() == FAMILY_ID);
            number = id.and_then(|id| Some(u16::from_ne_bytes(id.value().try_into().ok()?)));
        })?;
        number.ok_or_else(|| ErrorKind::InvalidData.into())
    }

    /// Asks and hears the answer to its end: what ends a list, or an acknowledgement.
    fn ask(
        &mut self,
        family: u16,
        (command, flags): (u8, u16),
        attributes: &[u8],
        mut hear: impl FnMut(&[u8]),
    ) -> io::Result<()> {
        self.sequence += 1;
        let mut header = NetlinkHeader::default();
        let mut packet = vec![0; header.buffer_len()];
        packet.extend([command, VERSION, 0, 0]);
        packet.extend(attributes);
        header.length = u32::try_from(packet.len()).map_err(io::Error::other)?;
        header.message_type = family;
        header.flags = NLM_F_REQUEST | flags;
        header.sequence_number = self.sequence;
        header.emit(&mut packet);
        self.socket.set_non_blocking(false)?;
        self.socket
            .send_to(&packet, &SocketAddr::new(KERNEL, 0), 0)?;
        // The kernel has answered by now, or does so when the part before has been read.
        self.socket.set_non_blocking(true)?;
        loop {
            let (answer, from) = self.socket.recv_from_full()?;
            if from.port_number() != KERNEL {
                continue;
            }
            if take(&answer, (family, self.sequence), &mut hear)? {
                return Ok(());
            }
        }
    }
}

/// Whether that was the end of the answer.
fn take(
    answer: &[u8],
    (family, sequence): (u16, u32),
    hear: &mut impl FnMut(&[u8]),
) -> io::Result<bool> {
    let mut rest = answer;
    while let Ok(message) = NetlinkBuffer::new_checked(rest) {
        let kind = message.message_type();
        if message.sequence_number() == sequence {
            match kind {
                NLMSG_DONE => return Ok(true),
                NLMSG_ERROR => {
                    let error = ErrorBuffer::new_checked(message.payload());
                    let code = error.map_err(|_| ErrorKind::InvalidData)?.code();
                    return match code {
                        None => Ok(true),
                        Some(code) => {
                            Err(io::Error::from_raw_os_error(code.get().saturating_neg()))
                        }
                    };
                }
                kind if kind == family => {
                    hear(message.payload().get(HEADER_BYTES..).unwrap_or_default());
                }
                _ => {}
            }
        }
        let length = message.length() as usize;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::proptest;

    use super::*;

    /// Every kernel has the family that knows the others.
    #[test]
    fn a_family_that_the_kernel_lacks_is_an_error_and_the_controller_is_found() {
        let mut socket = Generic::open().expect("a socket");
        let mut question = Writer::default();
        question.text(FAMILY_NAME, "nlctrl");
        let mut heard = 0;
        socket
            .ask(
                CONTROLLER,
                (GET_FAMILY, NLM_F_ACK),
                &question.finish(),
                |_| heard += 1,
            )
            .expect("it knows itself");
        assert_eq!(heard, 1);
        let mut question = Writer::default();
        question.text(FAMILY_NAME, "no-such-family");
        let error = socket
            .ask(
                CONTROLLER,
                (GET_FAMILY, NLM_F_ACK),
                &question.finish(),
                |_| {},
            )
            .expect_err("there is none");
        assert_eq!(error.kind(), ErrorKind::NotFound);
    }

    proptest! {
        #[test]
        fn any_packet_is_read_to_an_end(packet: Vec<u8>, family: u16, sequence: u32) {
            let mut heard = 0;
            let _ = take(&packet, (family, sequence), &mut |_: &[u8]| heard += 1);
            assert!(heard <= packet.len() / 16);
        }
    }
}
