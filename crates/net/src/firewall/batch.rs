//! Messages to netfilter, in batches of nf_tables or one after the other, questions for its lists, and the kernel's answers.
//!
//! Owns: the framing, and one socket for the length of an exchange.
//! Refuses: answers from anybody but the kernel, and waiting: it answers while it is told.

use std::io::{self, ErrorKind};

use nix::sys::socket::{setsockopt, sockopt};
use rtnetlink::packet_core::{
    Emitable, ErrorBuffer, NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR,
    NetlinkBuffer, NetlinkHeader,
};
use rtnetlink::sys::protocols::NETLINK_NETFILTER;
use rtnetlink::sys::{Socket, SocketAddr};

/// The kernel's port.
const KERNEL: u32 = 0;
/// `struct nfgenmsg`.
const FAMILY_BYTES: usize = 4;
/// The send buffer has room for a batch, and for as much again that the kernel counts of its own; this is
/// the least of it.
const ROOM_MIN_BYTES: usize = 64 << 10;

/// One message before it is sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Message {
    pub(super) kind: u16,
    pub(super) flags: u16,
    pub(super) body: Vec<u8>,
}

/// Which message of a batch the kernel refused. `None`: the batch as a whole.
#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) index: Option<usize>,
    pub(super) source: io::Error,
}

/// Sends all messages in one packet, in the caller's namespace. The last that asks for an
/// acknowledgement tells by it that all were taken: errors of others come before it.
pub(super) fn send(messages: &[Message]) -> Result<(), Refusal> {
    send_excusing(messages, |_| false)
}

/// The same, where some errors are none.
pub(super) fn send_excusing(
    messages: &[Message],
    excused: impl Fn(&io::Error) -> bool,
) -> Result<(), Refusal> {
    let whole = |source| Refusal {
        index: None,
        source,
    };
    let socket = deliver(&packet(messages)).map_err(whole)?;
    let last = messages.iter().rposition(|m| m.flags & NLM_F_ACK != 0);
    loop {
        let (answer, from) = socket.recv_from_full().map_err(whole)?;
        if from.port_number() != KERNEL {
            continue;
        }
        for (index, result) in answers(&answer) {
            match result {
                Err(source) if !excused(&source) => return Err(Refusal { index, source }),
                _ if index == last => return Ok(()),
                _ => {}
            }
        }
    }
}

/// All objects of a list in the caller's namespace: the kind and the body of each, without its family. `family`: of which.
pub(super) fn list(kind: u16, family: u8, mut each: impl FnMut(u16, &[u8])) -> io::Result<()> {
    let question = Message {
        kind,
        flags: NLM_F_DUMP,
        body: vec![family, 0, 0, 0],
    };
    // Parts of the answer are ready when the one before has been read.
    let socket = deliver(&packet(&[question]))?;
    loop {
        let (answer, from) = socket.recv_from_full()?;
        if from.port_number() == KERNEL && take(&answer, &mut each)? {
            return Ok(());
        }
    }
}

/// Whether that was the end of the answer.
fn take(answer: &[u8], each: &mut impl FnMut(u16, &[u8])) -> io::Result<bool> {
    let mut rest = answer;
    while let Ok(message) = NetlinkBuffer::new_checked(rest) {
        match message.message_type() {
            NLMSG_DONE => return Ok(true),
            NLMSG_ERROR => return Err(ErrorKind::InvalidData.into()),
            kind => {
                let body = message.payload().get(FAMILY_BYTES..).unwrap_or_default();
                each(kind, body);
            }
        }
        let length = message.length() as usize;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(false)
}

/// The socket on which the answers are then ready.
fn deliver(packet: &[u8]) -> io::Result<Socket> {
    let mut socket = Socket::new(NETLINK_NETFILTER)?;
    socket.bind_auto()?;
    socket.set_non_blocking(true)?;
    let room = packet.len().saturating_mul(2).max(ROOM_MIN_BYTES);
    setsockopt(&socket, sockopt::SndBufForce, &room)?;
    let sent = socket.send_to(packet, &SocketAddr::new(KERNEL, 0), 0)?;
    if sent != packet.len() {
        return Err(ErrorKind::WriteZero.into());
    }
    Ok(socket)
}

/// The messages one after the other, numbered from 1.
fn packet(messages: &[Message]) -> Vec<u8> {
    let mut packet = Vec::new();
    for (number, message) in (1..).zip(messages) {
        let mut header = NetlinkHeader::default();
        let length = u32::try_from(header.buffer_len() + message.body.len());
        header.length = length.expect("a message is written from bounded parts");
        header.message_type = message.kind;
        header.flags = message.flags | NLM_F_REQUEST;
        header.sequence_number = number;
        let start = packet.len();
        packet.resize(start + header.buffer_len(), 0);
        header.emit(&mut packet[start..]);
        packet.extend_from_slice(&message.body);
        packet.resize(packet.len().next_multiple_of(4), 0);
    }
    packet
}

/// What one packet of the kernel says, and of which messages. Whatever does not fit ends the list.
fn answers(packet: &[u8]) -> Vec<(Option<usize>, io::Result<()>)> {
    let (mut found, mut rest) = (Vec::new(), packet);
    while let Ok(message) = NetlinkBuffer::new_checked(rest) {
        if message.message_type() == NLMSG_ERROR {
            let number = message.sequence_number() as usize;
            let result = match ErrorBuffer::new_checked(message.payload()).map(|e| e.code()) {
                Ok(None) => Ok(()),
                Ok(Some(code)) => Err(io::Error::from_raw_os_error(code.get().saturating_neg())),
                Err(_) => Err(ErrorKind::InvalidData.into()),
            };
            found.push((number.checked_sub(1), result));
        }
        let length = message.length() as usize;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    found
}

#[cfg(test)]
mod tests {
    use proptest::prelude::proptest;

    use super::*;

    #[test]
    fn a_batch_is_numbered_and_its_messages_stand_apart() {
        let message = Message {
            kind: 16,
            flags: NLM_F_ACK,
            body: vec![1, 2, 3],
        };
        let packet = packet(&[message.clone(), message]);
        assert_eq!(packet.len(), 40);
        let second = NetlinkBuffer::new_checked(&packet[20..]).expect("a message");
        assert_eq!((second.sequence_number(), second.message_type()), (2, 16));
        assert_eq!(second.flags(), NLM_F_ACK | NLM_F_REQUEST);
        assert_eq!(second.payload(), [1, 2, 3]);
    }

    #[test]
    fn an_answer_names_the_message_that_it_is_about() {
        let error = |number: u32, code: i32| {
            let mut bytes = packet(&[Message {
                kind: NLMSG_ERROR,
                flags: 0,
                body: code.to_ne_bytes().to_vec(),
            }]);
            bytes[8..12].copy_from_slice(&number.to_ne_bytes());
            bytes
        };
        let both = [error(3, -2), error(7, 0)].concat();
        let read = answers(&both);
        assert_eq!((read[0].0, read[1].0), (Some(2), Some(6)));
        let refusal = read[0].1.as_ref().expect_err("refused");
        assert_eq!(refusal.raw_os_error(), Some(2));
        assert!(read[1].1.is_ok());
    }

    proptest! {
        #[test]
        fn any_packet_is_read_to_an_end(packet: Vec<u8>) {
            assert!(answers(&packet).len() <= packet.len() / 16);
        }

        #[test]
        fn any_answer_to_a_question_is_read_to_an_end(answer: Vec<u8>) {
            let mut found = 0;
            let _ = take(&answer, &mut |_, _| found += 1);
            assert!(found <= answer.len() / 16);
        }
    }
}
