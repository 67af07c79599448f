//! What the named counters of our tables have counted.
//!
//! Owns: one question to the kernel and its answer. Refuses: other tables, other objects.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind};

use rtnetlink::packet_core::{
    Emitable, NLM_F_DUMP, NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR, NetlinkBuffer, NetlinkHeader,
    NlasIterator,
};
use rtnetlink::sys::protocols::NETLINK_NETFILTER;
use rtnetlink::sys::{Socket, SocketAddr};

use super::encode::{NFNL_SUBSYS_NFTABLES, NFPROTO_UNSPEC, OBJECT_COUNTER, TABLE};

const NEWOBJ: u16 = NFNL_SUBSYS_NFTABLES << 8 | 18;
const GETOBJ: u16 = NFNL_SUBSYS_NFTABLES << 8 | 19;
/// `struct nfgenmsg`.
const FAMILY_BYTES: usize = 4;
const SEQUENCE: u32 = 1;
const KERNEL: u32 = 0;

/// Packets and bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counted {
    pub packets: u64,
    pub bytes: u64,
}

/// By the counters' names, which are unique over our tables in one namespace.
pub type Counts = BTreeMap<String, Counted>;

/// All of the caller's own namespace.
pub(super) fn read() -> io::Result<Counts> {
    let mut socket = Socket::new(NETLINK_NETFILTER)?;
    socket.bind_auto()?;
    let mut header = NetlinkHeader::default();
    let mut packet = vec![0; header.buffer_len()];
    packet.extend_from_slice(&[NFPROTO_UNSPEC, 0, 0, 0]);
    header.length = u32::try_from(packet.len()).expect("twenty bytes");
    header.message_type = GETOBJ;
    header.flags = NLM_F_REQUEST | NLM_F_DUMP;
    header.sequence_number = SEQUENCE;
    header.emit(&mut packet);
    socket.send_to(&packet, &SocketAddr::new(KERNEL, 0), 0)?;
    // Parts of the answer are ready when the one before has been read.
    socket.set_non_blocking(true)?;
    let mut counts = Counts::new();
    loop {
        let (answer, from) = socket.recv_from_full()?;
        if from.port_number() != KERNEL {
            continue;
        }
        if take(&answer, &mut counts)? {
            return Ok(counts);
        }
    }
}

/// Whether that was the end of the answer.
fn take(answer: &[u8], counts: &mut Counts) -> io::Result<bool> {
    let mut rest = answer;
    while let Ok(message) = NetlinkBuffer::new_checked(rest) {
        match message.message_type() {
            NLMSG_DONE => return Ok(true),
            NLMSG_ERROR => return Err(ErrorKind::InvalidData.into()),
            NEWOBJ => {
                let body = message.payload().get(FAMILY_BYTES..).unwrap_or_default();
                counts.extend(counter(body));
            }
            _ => {}
        }
        let length = message.length() as usize;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(false)
}

fn counter(body: &[u8]) -> Option<(String, Counted)> {
    let (mut table, mut name, mut kind) = (None, None, None);
    let mut counted = Counted::default();
    for attribute in NlasIterator::new(body).flatten() {
        let value = attribute.value();
        match attribute.kind() {
            1 => table = text(value),
            2 => name = text(value),
            3 => kind = value.try_into().ok().map(u32::from_be_bytes),
            4 => counted = figures(value),
            _ => {}
        }
    }
    let ours = table.as_deref() == Some(TABLE) && kind == Some(OBJECT_COUNTER);
    name.filter(|_| ours).map(|name| (name, counted))
}

fn figures(data: &[u8]) -> Counted {
    let mut counted = Counted::default();
    for attribute in NlasIterator::new(data).flatten() {
        let number = attribute.value().try_into().map_or(0, u64::from_be_bytes);
        match attribute.kind() {
            1 => counted.bytes = number,
            2 => counted.packets = number,
            _ => {}
        }
    }
    counted
}

fn text(value: &[u8]) -> Option<String> {
    let text = value.split(|byte| *byte == 0).next()?;
    std::str::from_utf8(text).ok().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::proptest;

    use super::*;

    proptest! {
        #[test]
        fn any_answer_is_read_to_an_end(answer: Vec<u8>) {
            let mut counts = Counts::new();
            let _ = take(&answer, &mut counts);
            assert!(counts.len() <= answer.len());
        }
    }
}
