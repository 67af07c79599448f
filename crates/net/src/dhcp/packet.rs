//! DHCP packets (RFC 2131 section 2, RFC 2132) and the IPv4 and UDP headers around them.
//!
//! Owns: writing requests and reading replies. Refuses: replies that are cut, for another machine, or
//! whose fields contradict themselves. Every byte of a reply is hostile.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use types::{Cidr, Mac};

pub(super) const SERVER_PORT: u16 = 67;
pub(super) const CLIENT_PORT: u16 = 68;
/// The least a server must be able to take, and so what relays expect: RFC 951's 300 bytes.
const BOOTP_MIN: usize = 300;
const FIXED_BYTES: usize = 236;
const COOKIE: [u8; 4] = [99, 130, 83, 99];
const SNAME: std::ops::Range<usize> = 44..108;
const FILE: std::ops::Range<usize> = 108..236;
/// Largest reply: what fits one Ethernet frame, and what is asked for.
pub(super) const REPLY_MAX: u16 = 1500;
/// Most addresses of one kind that are kept.
const ADDRESSES_MAX: usize = 4;

const PAD: u8 = 0;
const MASK: u8 = 1;
const ROUTER: u8 = 3;
const DNS: u8 = 6;
const HOSTNAME: u8 = 12;
const MTU: u8 = 26;
const NTP: u8 = 42;
const REQUESTED: u8 = 50;
const LEASE_TIME: u8 = 51;
const OVERLOAD: u8 = 52;
const KIND: u8 = 53;
const SERVER: u8 = 54;
const PARAMETERS: u8 = 55;
const SIZE_MAX: u8 = 57;
const RENEWAL: u8 = 58;
const REBINDING: u8 = 59;
const CLIENT: u8 = 61;
const END: u8 = 255;

/// What the client says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Request<'a> {
    pub(super) kind: RequestKind,
    pub(super) xid: u32,
    /// Seconds since the client began.
    pub(super) secs: u16,
    pub(super) mac: Mac,
    pub(super) hostname: Option<&'a str>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RequestKind {
    Discover,
    /// Takes an offer.
    Select {
        address: Ipv4Addr,
        server: Ipv4Addr,
    },
    /// Asks whether an address may be used on, on what may be another network (INIT-REBOOT).
    Reboot {
        address: Ipv4Addr,
    },
    /// Extends the lease of an address that is in use: renewing and rebinding.
    Extend {
        address: Ipv4Addr,
    },
}

impl Request<'_> {
    pub(super) fn encode(&self) -> Vec<u8> {
        let in_use = match self.kind {
            RequestKind::Discover | RequestKind::Select { .. } | RequestKind::Reboot { .. } => {
                Ipv4Addr::UNSPECIFIED
            }
            RequestKind::Extend { address } => address,
        };
        let mut out = vec![1, 1, 6, 0];
        out.extend_from_slice(&self.xid.to_be_bytes());
        out.extend_from_slice(&self.secs.to_be_bytes());
        // No broadcast flag: the packet socket hears what is sent to an address that is not set yet.
        out.extend_from_slice(&[0, 0]);
        out.extend_from_slice(&in_use.octets());
        out.resize(28, 0);
        out.extend_from_slice(&self.mac.0);
        out.resize(FIXED_BYTES, 0);
        out.extend_from_slice(&COOKIE);
        let mut option = |code: u8, value: &[u8]| {
            // Values are numbers, addresses and one DNS label.
            let length =
                u8::try_from(value.len()).expect("options are written from bounded values");
            out.extend_from_slice(&[code, length]);
            out.extend_from_slice(value);
        };
        let [a, b, c, d, e, f] = self.mac.0;
        option(CLIENT, &[1, a, b, c, d, e, f]);
        option(SIZE_MAX, &REPLY_MAX.to_be_bytes());
        option(
            PARAMETERS,
            &[MASK, ROUTER, DNS, MTU, NTP, LEASE_TIME, RENEWAL, REBINDING],
        );
        if let Some(name) = self.hostname {
            option(HOSTNAME, name.as_bytes());
        }
        match self.kind {
            RequestKind::Discover => option(KIND, &[1]),
            RequestKind::Select { address, server } => {
                option(KIND, &[3]);
                option(REQUESTED, &address.octets());
                option(SERVER, &server.octets());
            }
            RequestKind::Reboot { address } => {
                option(KIND, &[3]);
                option(REQUESTED, &address.octets());
            }
            RequestKind::Extend { .. } => option(KIND, &[3]),
        }
        out.push(END);
        out.resize(out.len().max(BOOTP_MIN), PAD);
        out
    }
}

/// What a server said, checked as far as one packet alone can be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Reply {
    pub(super) xid: u32,
    pub(super) mac: Mac,
    pub(super) server: Ipv4Addr,
    pub(super) kind: ReplyKind,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum ReplyKind {
    Offer(Terms),
    Ack(Terms),
    Nak,
}

/// What is offered or lent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Terms {
    pub(super) address: Cidr,
    pub(super) gateway: Option<Ipv4Addr>,
    pub(super) dns: Vec<Ipv4Addr>,
    pub(super) ntp: Vec<Ipv4Addr>,
    pub(super) mtu: Option<u16>,
    /// `None`: for ever.
    pub(super) seconds: Option<u32>,
    pub(super) renewal: Option<u32>,
    pub(super) rebinding: Option<u32>,
}

/// Reads the payload of a UDP packet. `None`: no reply to a client of this kind.
pub(super) fn parse(bytes: &[u8]) -> Option<Reply> {
    let fixed: &[u8; FIXED_BYTES] = bytes.get(..FIXED_BYTES)?.try_into().ok()?;
    if fixed[..3] != [2, 1, 6] || bytes.get(FIXED_BYTES..FIXED_BYTES + 4)? != COOKIE {
        return None;
    }
    let mut options = Options::default();
    options.read(&bytes[FIXED_BYTES + 4..]);
    let overload = options.byte(OVERLOAD).unwrap_or(0);
    if overload & 1 != 0 {
        options.read(&fixed[FILE]);
    }
    if overload & 2 != 0 {
        options.read(&fixed[SNAME]);
    }
    let kind = match options.byte(KIND)? {
        2 => ReplyKind::Offer(terms(fixed, &options)?),
        5 => ReplyKind::Ack(terms(fixed, &options)?),
        6 => ReplyKind::Nak,
        _ => return None,
    };
    Some(Reply {
        xid: u32::from_be_bytes(fixed[4..8].try_into().ok()?),
        mac: Mac(fixed[28..34].try_into().ok()?),
        server: options.addresses(SERVER).first().copied()?,
        kind,
    })
}

fn terms(fixed: &[u8; FIXED_BYTES], options: &Options) -> Option<Terms> {
    let address = Ipv4Addr::from(<[u8; 4]>::try_from(&fixed[16..20]).ok()?);
    if !usable(address) {
        return None;
    }
    let prefix = match options.word(MASK) {
        // Contiguous ones, then zeros.
        Some(mask) if mask.leading_ones() + mask.trailing_zeros() == 32 => mask.leading_ones(),
        Some(_) => return None,
        None => 32, // Routes name the link, so this suffices to reach the gateway.
    };
    let seconds = options.word(LEASE_TIME)?;
    Some(Terms {
        address: Cidr::new(address, u8::try_from(prefix).ok()?)?,
        gateway: options
            .addresses(ROUTER)
            .into_iter()
            .find(|gateway| *gateway != address),
        dns: options.addresses(DNS),
        ntp: options.addresses(NTP),
        mtu: options.half(MTU),
        seconds: (seconds != u32::MAX).then_some(seconds),
        renewal: options.word(RENEWAL),
        rebinding: options.word(REBINDING),
    })
}

/// An address that one machine can have.
fn usable(address: Ipv4Addr) -> bool {
    let first = address.octets()[0];
    first != 0 && first != 127 && first < 224
}

/// Options by code; parts of a split option (RFC 3396) joined.
#[derive(Debug, Default)]
struct Options(BTreeMap<u8, Vec<u8>>);

impl Options {
    /// Reads to the end, or to the first option that is cut.
    fn read(&mut self, mut bytes: &[u8]) {
        while let Some((code, rest)) = bytes.split_first() {
            match *code {
                PAD => bytes = rest,
                END => return,
                code => {
                    let Some((length, rest)) = rest.split_first() else {
                        return;
                    };
                    let Some((value, rest)) = rest.split_at_checked(usize::from(*length)) else {
                        return;
                    };
                    self.0.entry(code).or_default().extend_from_slice(value);
                    bytes = rest;
                }
            }
        }
    }

    fn get<const N: usize>(&self, code: u8) -> Option<[u8; N]> {
        self.0.get(&code)?.as_slice().try_into().ok()
    }

    fn byte(&self, code: u8) -> Option<u8> {
        self.get(code).map(|[byte]| byte)
    }

    fn half(&self, code: u8) -> Option<u16> {
        self.get(code).map(u16::from_be_bytes)
    }

    fn word(&self, code: u8) -> Option<u32> {
        self.get(code).map(u32::from_be_bytes)
    }

    fn addresses(&self, code: u8) -> Vec<Ipv4Addr> {
        let bytes = self.0.get(&code).map(Vec::as_slice).unwrap_or_default();
        let all = bytes
            .as_chunks::<4>()
            .0
            .iter()
            .map(|octets| Ipv4Addr::from(*octets));
        all.filter(|address| usable(*address))
            .take(ADDRESSES_MAX)
            .collect()
    }
}

const IP_BYTES: usize = 20;
const UDP_BYTES: usize = 8;
const UDP: u8 = 17;

/// An IPv4 packet from the client, which has no address, to everybody.
pub(super) fn broadcast(payload: &[u8]) -> Vec<u8> {
    let length = |bytes: usize| {
        u16::try_from(bytes)
            .expect("requests are a few hundred bytes")
            .to_be_bytes()
    };
    let udp = UDP_BYTES + payload.len();
    let mut packet = vec![0x45, 0x10];
    packet.extend_from_slice(&length(IP_BYTES + udp));
    packet.extend_from_slice(&[0, 0, 0, 0, 64, UDP, 0, 0, 0, 0, 0, 0, 255, 255, 255, 255]);
    let sum = checksum(&packet);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet.extend_from_slice(&CLIENT_PORT.to_be_bytes());
    packet.extend_from_slice(&SERVER_PORT.to_be_bytes());
    packet.extend_from_slice(&length(udp));
    // No UDP checksum (RFC 768): the frame has one, and the reply is checked by its content.
    packet.extend_from_slice(&[0, 0]);
    packet.extend_from_slice(payload);
    packet
}

/// The internet checksum (RFC 1071) of a header of even length.
fn checksum(header: &[u8]) -> u16 {
    let halves = header
        .as_chunks::<2>()
        .0
        .iter()
        .map(|pair| u32::from(u16::from_be_bytes(*pair)));
    let sum: u32 = halves.sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    let folded = (folded & 0xffff) + (folded >> 16);
    !u16::try_from(folded).unwrap_or(u16::MAX)
}

/// The payload of an unfragmented IPv4 and UDP packet to the client's port. The UDP checksum is not
/// looked at: on a link between virtual machines it is often not filled in.
pub(super) fn payload(packet: &[u8]) -> Option<&[u8]> {
    let header: &[u8; IP_BYTES] = packet.get(..IP_BYTES)?.try_into().ok()?;
    let length = usize::from(header[0] & 0xf) * 4;
    let total = usize::from(u16::from_be_bytes([header[2], header[3]]));
    let fragment = u16::from_be_bytes([header[6], header[7]]) & 0x3fff;
    if header[0] >> 4 != 4 || length < IP_BYTES || fragment != 0 || header[9] != UDP {
        return None;
    }
    if checksum(packet.get(..length)?) != 0 {
        return None;
    }
    let udp = packet.get(length..total)?;
    let word = |at: usize| Some(u16::from_be_bytes([*udp.get(at)?, *udp.get(at + 1)?]));
    if word(0)? != SERVER_PORT || word(2)? != CLIENT_PORT {
        return None;
    }
    udp.get(UDP_BYTES..usize::from(word(4)?))
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::{Strategy, any, proptest};

    use super::*;

    /// A server's reply, as bytes.
    pub(crate) fn reply(
        kind: u8,
        request: &[u8],
        yiaddr: [u8; 4],
        options: &[(u8, &[u8])],
    ) -> Vec<u8> {
        let mut out = request[..FIXED_BYTES + 4].to_vec();
        out[0] = 2;
        out[16..20].copy_from_slice(&yiaddr);
        for (code, value) in [(KIND, &[kind][..])].iter().chain(options) {
            out.extend_from_slice(&[*code, u8::try_from(value.len()).expect("short")]);
            out.extend_from_slice(value);
        }
        out.push(END);
        out
    }

    fn discover() -> Vec<u8> {
        let mac = Mac([2, 0, 0, 0, 0, 1]);
        Request {
            kind: RequestKind::Discover,
            xid: 7,
            secs: 0,
            mac,
            hostname: Some("node"),
        }
        .encode()
    }

    const FULL: [(u8, &[u8]); 7] = [
        (SERVER, &[10, 0, 2, 2]),
        (MASK, &[255, 255, 255, 0]),
        (ROUTER, &[10, 0, 2, 2]),
        (DNS, &[10, 0, 2, 3, 0, 0, 0, 0, 9, 9, 9, 9]),
        (LEASE_TIME, &[0, 1, 0x51, 0x80]),
        (MTU, &[5, 0xdc]),
        (NTP, &[10, 0, 2, 4]),
    ];

    #[test]
    fn an_offer_is_read_with_all_that_was_asked_for() {
        let reply = parse(&reply(2, &discover(), [10, 0, 2, 15], &FULL)).expect("an offer");
        assert_eq!((reply.xid, reply.server), (7, Ipv4Addr::new(10, 0, 2, 2)));
        let ReplyKind::Offer(terms) = reply.kind else {
            panic!("no offer: {reply:?}")
        };
        assert_eq!(terms.address.to_string(), "10.0.2.15/24");
        assert_eq!(
            terms.dns,
            [Ipv4Addr::new(10, 0, 2, 3), Ipv4Addr::new(9, 9, 9, 9)]
        );
        assert_eq!((terms.mtu, terms.seconds), (Some(1500), Some(86400)));
    }

    #[test]
    fn replies_that_contradict_themselves_are_no_replies() {
        let with = |code: u8, value: &'static [u8]| {
            let mut options = FULL;
            options
                .iter_mut()
                .filter(|o| o.0 == code)
                .for_each(|o| o.1 = value);
            parse(&reply(2, &discover(), [10, 0, 2, 15], &options))
        };
        assert!(with(MASK, &[255, 0, 255, 0]).is_none());
        assert!(with(SERVER, &[10, 0, 2]).is_none());
        assert!(with(LEASE_TIME, &[]).is_none());
        assert!(with(LEASE_TIME, &[0, 1, 2, 3, 4]).is_none());
        for address in [
            [0, 0, 0, 0],
            [127, 0, 0, 1],
            [224, 0, 0, 1],
            [255, 255, 255, 255],
        ] {
            assert!(parse(&reply(2, &discover(), address, &FULL)).is_none());
        }
    }

    fn offered(bytes: &[u8]) -> Option<Terms> {
        match parse(bytes)?.kind {
            ReplyKind::Offer(terms) => Some(terms),
            ReplyKind::Ack(_) | ReplyKind::Nak => None,
        }
    }

    #[test]
    fn options_that_nobody_asked_for_hide_no_others() {
        // Host and domain names that are no text, before everything else.
        let names: [(u8, &[u8]); 2] = [(HOSTNAME, &[0xff]), (15, &[0xff, 0xfe])];
        let options = [&names[..], &FULL].concat();
        let bytes = reply(2, &discover(), [10, 0, 2, 15], &options);
        let terms = offered(&bytes).expect("an offer");
        assert_eq!((terms.seconds, terms.mtu), (Some(86400), Some(1500)));
        let mut bytes = bytes;
        bytes[2] = 17;
        assert!(parse(&bytes).is_none(), "no Ethernet address is that long");
    }

    #[test]
    fn an_option_in_parts_is_joined_wherever_they_stand() {
        let mut options = FULL.to_vec();
        options.push((OVERLOAD, &[3]));
        let mut bytes = reply(2, &discover(), [10, 0, 2, 15], &options);
        let part = |last| [DNS, 4, 10, 0, 2, last, END];
        bytes[FILE][..7].copy_from_slice(&part(5));
        bytes[SNAME][..7].copy_from_slice(&part(6));
        let last: Vec<u8> = offered(&bytes)
            .expect("an offer")
            .dns
            .iter()
            .map(|server| server.octets()[3])
            .collect();
        assert_eq!(last, [3, 9, 5, 6]);
    }

    #[test]
    fn a_packet_carries_its_payload() {
        let mut packet = broadcast(&discover());
        assert_eq!(checksum(&packet[..IP_BYTES]), 0);
        assert!(payload(&packet).is_none(), "it is for a server");
        let (source, target) = (SERVER_PORT.to_be_bytes(), CLIENT_PORT.to_be_bytes());
        packet[20..22].copy_from_slice(&source);
        packet[22..24].copy_from_slice(&target);
        packet.extend_from_slice(&[0; 7]); // Padding of the frame.
        assert_eq!(payload(&packet), Some(&discover()[..]));
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_reply_or_none(bytes: Vec<u8>) {
            let _ = (parse(&bytes), payload(&bytes));
        }

        #[test]
        fn a_reply_with_any_bytes_changed_or_cut_is_a_reply_or_none(
            changes in proptest::collection::vec((0_usize..320, any::<u8>()), 0..8),
            length in (0_usize..320).prop_map(|n| n),
            tail: Vec<u8>,
        ) {
            let mut bytes = reply(2, &discover(), [10, 0, 2, 15], &FULL);
            for (at, value) in changes {
                if let Some(byte) = bytes.get_mut(at) { *byte = value; }
            }
            bytes.truncate(length);
            bytes.extend_from_slice(&tail);
            let _ = parse(&bytes);
        }
    }
}
