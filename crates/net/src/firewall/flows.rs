//! Connections that the kernel knows of (linux/netfilter/nfnetlink_conntrack.h), and their end.
//!
//! Owns: reading the list of one namespace, of both families, and taking single ones out of it. Refuses: judging which (`standing`
//! does).

use std::io;
use std::net::IpAddr;

use nix::errno::Errno;
use rtnetlink::packet_core::{NLM_F_ACK, NlasIterator};

use super::attribute::Writer;
use super::batch::{self, Message};
use super::encode::{
    IPPROTO_ICMP, IPPROTO_ICMPV6, IPPROTO_TCP, IPPROTO_UDP, NFPROTO_IPV4, NFPROTO_IPV6,
    NFPROTO_UNSPEC,
};
use super::rule::Transport;

const SUBSYSTEM: u16 = 1;
const NEW: u16 = SUBSYSTEM << 8;
const GET: u16 = SUBSYSTEM << 8 | 1;
const DELETE: u16 = SUBSYSTEM << 8 | 2;

const TUPLE_ORIGINAL: u16 = 1;
const TUPLE_REPLY: u16 = 2;
const ID: u16 = 12;
/// Attributes that hold attributes say so.
const NESTED: u16 = 1 << 15;

/// Taken out with one packet: the kernel's word for each that it no longer knows waits until all are done, and of this many
/// all have room.
const AT_ONCE: usize = 128;
/// A packet that the old rules have let pass on another processor may become a connection just after the list was read: it is read
/// again until there is nothing to take out, and this often at most.
const ROUNDS_MAX: usize = 8;

/// Connections of the reader's own namespace.
const COUNT: &str = "/proc/sys/net/netfilter/nf_conntrack_count";

/// A connection, as its first packet had it and as answers to that have it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flow {
    pub began: Way,
    pub answered: Way,
    /// What names it to the kernel: the attributes of its first packet, and its number.
    pub(super) named: (Vec<u8>, Vec<u8>),
}

/// One direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Way {
    pub source: IpAddr,
    pub destination: IpAddr,
    pub what: Spoken,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Spoken {
    Port {
        transport: Transport,
        from: u16,
        to: u16,
    },
    /// ICMP of either family, of which nothing but pings begins anything.
    Ping,
    Other,
}

/// Ends all in the caller's namespace that are not to be kept. How many that were.
pub(super) fn end(keep: impl Fn(&Flow) -> bool) -> io::Result<usize> {
    let mut ended = 0;
    if !is_any()? {
        return Ok(ended);
    }
    for _ in 0..ROUNDS_MAX {
        let flows = read(&keep)?;
        if flows.is_empty() {
            return Ok(ended);
        }
        ended += flows.len();
        flows.chunks(AT_ONCE).try_for_each(take_out)?;
    }
    let error = "connections that the rules do not allow come as fast as they are ended";
    Err(io::Error::new(io::ErrorKind::ResourceBusy, error))
}

/// Whether the caller's namespace has a connection. The kernel has one table for all namespaces, and walks all of it for the list of each.
fn is_any() -> io::Result<bool> {
    match std::fs::read_to_string(COUNT) {
        Ok(count) => Ok(count.trim() != "0"),
        // The list says it, if this kernel does not count.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
        Err(error) => Err(error),
    }
}

/// Those that are not to be kept.
fn read(keep: impl Fn(&Flow) -> bool) -> io::Result<Vec<Flow>> {
    let mut flows = Vec::new();
    batch::list(GET, NFPROTO_UNSPEC, |kind, body| {
        if kind == NEW {
            flows.extend(flow(body).filter(|flow| !keep(flow)));
        }
    })?;
    Ok(flows)
}

fn take_out(flows: &[Flow]) -> io::Result<()> {
    let message = |flow: &Flow| {
        let (began, id) = &flow.named;
        let family = match flow.began.source {
            IpAddr::V4(_) => NFPROTO_IPV4,
            IpAddr::V6(_) => NFPROTO_IPV6,
        };
        let mut body = Writer::new(&[family, 0, 0, 0]);
        body.bytes(TUPLE_ORIGINAL | NESTED, began).bytes(ID, id);
        Message {
            kind: DELETE,
            flags: 0,
            body: body.finish(),
        }
    };
    let mut messages: Vec<Message> = flows.iter().map(message).collect();
    if let Some(last) = messages.last_mut() {
        last.flags |= NLM_F_ACK;
    }
    // One may have ended by itself, and another come in its place.
    let over = |error: &io::Error| error.raw_os_error() == Some(Errno::ENOENT as i32);
    batch::send_excusing(&messages, over).map_err(|refusal| refusal.source)
}

/// What the kernel says of one connection. `None`: it is none of IP.
fn flow(body: &[u8]) -> Option<Flow> {
    let (mut began, mut answered, mut id) = (None, None, None);
    for attribute in NlasIterator::new(body).flatten() {
        let value = attribute.value();
        match attribute.kind() {
            TUPLE_ORIGINAL => began = way(value).map(|way| (way, value.to_vec())),
            TUPLE_REPLY => answered = way(value),
            ID => id = Some(value.to_vec()),
            _ => {}
        }
    }
    let (began, attributes) = began?;
    Some(Flow {
        began,
        answered: answered?,
        named: (attributes, id?),
    })
}

fn way(tuple: &[u8]) -> Option<Way> {
    let (mut addresses, mut what) = (None, None);
    for attribute in NlasIterator::new(tuple).flatten() {
        match attribute.kind() {
            1 => addresses = ends(attribute.value()),
            2 => what = spoken(attribute.value()),
            _ => {}
        }
    }
    let ((source, destination), what) = (addresses?, what?);
    Some(Way {
        source,
        destination,
        what,
    })
}

fn ends(attributes: &[u8]) -> Option<(IpAddr, IpAddr)> {
    let (mut source, mut destination) = (None, None);
    for attribute in NlasIterator::new(attributes).flatten() {
        let value = attribute.value();
        let four = || <[u8; 4]>::try_from(value).ok().map(IpAddr::from);
        let six = || <[u8; 16]>::try_from(value).ok().map(IpAddr::from);
        match attribute.kind() {
            1 => source = four(),
            2 => destination = four(),
            3 => source = six(),
            4 => destination = six(),
            _ => {}
        }
    }
    let (source, destination) = (source?, destination?);
    (source.is_ipv4() == destination.is_ipv4()).then_some((source, destination))
}

fn spoken(attributes: &[u8]) -> Option<Spoken> {
    let (mut protocol, mut from, mut to) = (None, 0, 0);
    for attribute in NlasIterator::new(attributes).flatten() {
        let value = attribute.value();
        let port = || value.try_into().map_or(0, u16::from_be_bytes);
        match attribute.kind() {
            1 => protocol = value.first().copied(),
            2 => from = port(),
            3 => to = port(),
            _ => {}
        }
    }
    let of = |transport| Spoken::Port {
        transport,
        from,
        to,
    };
    Some(match protocol? {
        IPPROTO_TCP => of(Transport::Tcp),
        IPPROTO_UDP => of(Transport::Udp),
        IPPROTO_ICMP | IPPROTO_ICMPV6 => Spoken::Ping,
        _ => Spoken::Other,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::proptest;

    use super::*;

    fn tuple(source: [u8; 4], destination: [u8; 4], protocol: u8, ports: (u16, u16)) -> Vec<u8> {
        let mut tuple = Writer::default();
        tuple.nest(1, |ends| {
            ends.bytes(1, &source).bytes(2, &destination);
        });
        tuple.nest(2, |what| {
            what.u8(1, protocol).bytes(2, &ports.0.to_be_bytes());
            what.bytes(3, &ports.1.to_be_bytes());
        });
        tuple.finish()
    }

    #[test]
    fn a_connection_is_read_in_both_directions() {
        let (client, own, inside) = ([203, 0, 113, 9], [192, 0, 2, 200], [10, 128, 3, 3]);
        let began = tuple(client, own, IPPROTO_TCP, (5000, 443));
        let mut body = Writer::default();
        body.bytes(TUPLE_ORIGINAL | NESTED, &began)
            .bytes(
                TUPLE_REPLY | NESTED,
                &tuple(inside, client, IPPROTO_TCP, (443, 5000)),
            )
            .be32(3, 14)
            .be32(ID, 77);
        let found = flow(&body.finish()).expect("a connection");
        let port = |from, to| Spoken::Port {
            transport: Transport::Tcp,
            from,
            to,
        };
        let way = |source: [u8; 4], destination: [u8; 4], what| Way {
            source: source.into(),
            destination: destination.into(),
            what,
        };
        assert_eq!(found.began, way(client, own, port(5000, 443)));
        assert_eq!(found.answered, way(inside, client, port(443, 5000)));
        assert_eq!(found.named, (began, 77u32.to_be_bytes().to_vec()));
    }

    #[test]
    fn a_connection_of_ipv6_is_read_and_one_of_both_families_is_none() {
        let end = |last: u8| {
            let mut octets = [0; 16];
            (octets[0], octets[1], octets[15]) = (0x20, 1, last);
            octets
        };
        let tuple = |source: (u16, &[u8]), destination: (u16, &[u8])| {
            let mut tuple = Writer::default();
            tuple.nest(1, |ends| {
                ends.bytes(source.0, source.1)
                    .bytes(destination.0, destination.1);
            });
            tuple.nest(2, |what| {
                what.u8(1, IPPROTO_ICMPV6);
            });
            tuple.finish()
        };
        let read = way(&tuple((3, &end(1)), (4, &end(2)))).expect("a way");
        assert_eq!(
            (read.source, read.destination),
            (end(1).into(), end(2).into())
        );
        assert_eq!(read.what, Spoken::Ping);
        for wrong in [
            tuple((1, &[192, 0, 2, 1]), (4, &end(2))),
            tuple((3, &end(1)[..15]), (4, &end(2))),
        ] {
            assert_eq!(way(&wrong), None);
        }
    }

    proptest! {
        #[test]
        fn any_answer_is_a_connection_or_none(body: Vec<u8>) {
            let _ = flow(&body);
            let _ = way(&body);
        }
    }
}
