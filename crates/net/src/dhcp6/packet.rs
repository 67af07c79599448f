//! The messages of DHCPv6 as bytes (RFC 8415, RFC 3646, RFC 4075, RFC 5908).
//!
//! Owns: what is asked, and what of an answer is used. Refuses: messages of relays, and options that were cut.

use std::net::Ipv6Addr;

use types::Mac;

pub(crate) const CLIENT_PORT: u16 = 546;
pub(crate) const SERVER_PORT: u16 = 547;
/// All servers and relays of the link.
pub(crate) const SERVERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 1, 2);
/// Larger than a datagram on any link that a server would answer on in one piece.
pub(crate) const REPLY_MAX: usize = 9216;
/// RFC 8415 section 11.1.
const SERVER_ID_MAX: usize = 130;
/// Servers and addresses that are read: links have two or three.
const NAMED_MAX: usize = 16;

const OPTION_CLIENT: u16 = 1;
const OPTION_SERVER: u16 = 2;
const OPTION_IA: u16 = 3;
const OPTION_ADDRESS: u16 = 5;
const OPTION_ORO: u16 = 6;
const OPTION_ELAPSED: u16 = 8;
const OPTION_STATUS: u16 = 13;
const OPTION_DNS: u16 = 23;
const OPTION_SNTP: u16 = 31;
const OPTION_REFRESH: u16 = 32;
const OPTION_NTP: u16 = 56;
const NTP_ADDRESS: u16 = 1;

/// What a client says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ask {
    Solicit = 1,
    Request = 3,
    Renew = 5,
    Rebind = 6,
    Information = 11,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Advertise,
    Reply,
}

/// A server's answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(super) kind: Kind,
    pub(super) transaction: u32,
    pub(super) client: Vec<u8>,
    pub(super) server: Vec<u8>,
    /// 0 is success.
    pub(super) status: u16,
    pub(super) ia: Option<Ia>,
    pub(super) dns: Vec<Ipv6Addr>,
    pub(super) ntp: Vec<Ipv6Addr>,
    /// Seconds until servers are asked again.
    pub(super) refresh: Option<u32>,
}

/// Addresses for one link. Times in seconds; `u32::MAX`: for ever.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Ia {
    pub(super) id: u32,
    pub(super) renew: u32,
    pub(super) rebind: u32,
    pub(super) status: u16,
    pub(super) addresses: Vec<Lent>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Lent {
    pub(super) address: Ipv6Addr,
    pub(super) preferred: u32,
    pub(super) valid: u32,
}

/// Follows from the port's own address: the same after every boot, without anything that has to be kept (DUID-LL).
pub(super) fn client_id(mac: Mac) -> Vec<u8> {
    [&[0, 3, 0, 1], &mac.0[..]].concat()
}

pub(super) fn ia_id(mac: Mac) -> u32 {
    let [_, _, a, b, c, d] = mac.0;
    u32::from_be_bytes([a, b, c, d])
}

/// A message to servers.
#[derive(Debug)]
pub(super) struct Question<'a> {
    pub(super) ask: Ask,
    pub(super) transaction: u32,
    pub(super) mac: Mac,
    pub(super) server: Option<&'a [u8]>,
    /// The address that is asked for or held.
    pub(super) address: Option<Ipv6Addr>,
    /// Hundredths of a second since it was first asked.
    pub(super) elapsed: u16,
}

impl Question<'_> {
    pub(super) fn encode(&self) -> Vec<u8> {
        let [_, a, b, c] = self.transaction.to_be_bytes();
        let mut out = vec![self.ask as u8, a, b, c];
        option(&mut out, OPTION_CLIENT, &client_id(self.mac));
        if let Some(server) = self.server {
            option(&mut out, OPTION_SERVER, server);
        }
        option(&mut out, OPTION_ELAPSED, &self.elapsed.to_be_bytes());
        if self.ask != Ask::Information {
            let mut ia = ia_id(self.mac).to_be_bytes().to_vec();
            ia.extend([0; 8]);
            if let Some(address) = self.address {
                let lent = [&address.octets()[..], &[0; 8]].concat();
                option(&mut ia, OPTION_ADDRESS, &lent);
            }
            option(&mut out, OPTION_IA, &ia);
        }
        let wanted = [OPTION_DNS, OPTION_SNTP, OPTION_REFRESH, OPTION_NTP];
        let wanted: Vec<u8> = wanted.iter().flat_map(|o| o.to_be_bytes()).collect();
        option(&mut out, OPTION_ORO, &wanted);
        out
    }
}

fn option(out: &mut Vec<u8>, code: u16, value: &[u8]) {
    let length = u16::try_from(value.len()).expect("options of ours are short");
    out.extend(code.to_be_bytes());
    out.extend(length.to_be_bytes());
    out.extend(value);
}

/// `None` where it is no answer of a server, or was cut.
pub(crate) fn parse(packet: &[u8]) -> Option<Answer> {
    let ([kind, a, b, c], options) = packet.split_first_chunk()?;
    let mut answer = Answer {
        kind: match kind {
            2 => Kind::Advertise,
            7 => Kind::Reply,
            _ => return None,
        },
        transaction: u32::from_be_bytes([0, *a, *b, *c]),
        client: Vec::new(),
        server: Vec::new(),
        status: 0,
        ia: None,
        dns: Vec::new(),
        ntp: Vec::new(),
        refresh: None,
    };
    let mut sntp = Vec::new();
    for (code, value) in read(options)? {
        match code {
            OPTION_CLIENT => answer.client = value.to_vec(),
            OPTION_SERVER => answer.server = value.to_vec(),
            OPTION_STATUS => answer.status = status(value)?,
            // One link has one.
            OPTION_IA => answer.ia = answer.ia.or(ia(value)),
            OPTION_DNS => answer.dns.extend(addresses(value)),
            OPTION_SNTP => sntp.extend(addresses(value)),
            OPTION_NTP => answer.ntp.extend(time_servers(value)),
            OPTION_REFRESH => answer.refresh = value.try_into().ok().map(u32::from_be_bytes),
            _ => {}
        }
    }
    // The older option says the same (RFC 5908 section 1).
    if answer.ntp.is_empty() {
        answer.ntp = sntp;
    }
    answer.dns.truncate(NAMED_MAX);
    answer.ntp.truncate(NAMED_MAX);
    let named = !answer.server.is_empty() && answer.server.len() <= SERVER_ID_MAX;
    named.then_some(answer)
}

/// Code and value of each option; `None` where the last was cut.
fn read(mut bytes: &[u8]) -> Option<Vec<(u16, &[u8])>> {
    let mut options = Vec::new();
    while let Some(([a, b, c, d], rest)) = bytes.split_first_chunk() {
        let length = usize::from(u16::from_be_bytes([*c, *d]));
        let (value, rest) = rest.split_at_checked(length)?;
        options.push((u16::from_be_bytes([*a, *b]), value));
        bytes = rest;
    }
    bytes.is_empty().then_some(options)
}

fn status(value: &[u8]) -> Option<u16> {
    value.first_chunk().map(|code| u16::from_be_bytes(*code))
}

fn addresses(value: &[u8]) -> impl Iterator<Item = Ipv6Addr> {
    let all = value.chunks_exact(16).map(|bytes| {
        let bytes: [u8; 16] = bytes.try_into().expect("a chunk of sixteen");
        Ipv6Addr::from(bytes)
    });
    all.filter(|a| !a.is_unspecified() && !a.is_multicast())
}

fn time_servers(value: &[u8]) -> Vec<Ipv6Addr> {
    let options = read(value).unwrap_or_default();
    let named = options.iter().filter(|(code, _)| *code == NTP_ADDRESS);
    named.flat_map(|(_, value)| addresses(value)).collect()
}

fn ia(value: &[u8]) -> Option<Ia> {
    let number = |at: usize| Some(u32::from_be_bytes(*value.get(at..)?.first_chunk()?));
    let mut ia = Ia {
        id: number(0)?,
        renew: number(4)?,
        rebind: number(8)?,
        status: 0,
        addresses: Vec::new(),
    };
    for (code, value) in read(value.get(12..)?)? {
        match code {
            OPTION_STATUS => ia.status = status(value)?,
            OPTION_ADDRESS => ia.addresses.extend(lent(value)),
            _ => {}
        }
    }
    ia.addresses.truncate(NAMED_MAX);
    // A server that contradicts itself is passed over (RFC 8415 section 21.4).
    let ordered = ia.renew == 0 || ia.rebind == 0 || ia.renew <= ia.rebind;
    ordered.then_some(ia)
}

fn lent(value: &[u8]) -> Option<Lent> {
    let number = |at: usize| Some(u32::from_be_bytes(*value.get(at..)?.first_chunk()?));
    let address = addresses(value.get(..16)?).next()?;
    let (preferred, valid) = (number(16)?, number(20)?);
    // Its own options may say that it is refused after all.
    let refused = read(value.get(24..)?)?.into_iter();
    let mut refused = refused.filter(|(code, v)| *code == OPTION_STATUS && status(v) != Some(0));
    let usable = !address.is_loopback() && !address.is_unicast_link_local();
    (usable && preferred <= valid && refused.next().is_none()).then_some(Lent {
        address,
        preferred,
        valid,
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::{any, proptest};

    use super::*;

    pub(crate) const SERVER: &[u8] = &[0, 3, 0, 1, 2, 0, 0, 0, 0, 9];

    /// A server's answer to `question` with these options beside both identities.
    pub(crate) fn answer(kind: u8, question: &[u8], options: &[(u16, Vec<u8>)]) -> Vec<u8> {
        let mut out = vec![kind, question[1], question[2], question[3]];
        let client = read(&question[4..]).expect("whole");
        let client = client.iter().find(|(code, _)| *code == OPTION_CLIENT);
        option(&mut out, OPTION_CLIENT, client.expect("named").1);
        option(&mut out, OPTION_SERVER, SERVER);
        for (code, value) in options {
            option(&mut out, *code, value);
        }
        out
    }

    /// Option and value: an address for the link of `mac`, with its times.
    pub(crate) fn ia_option(mac: Mac, address: &str, times: [u32; 4]) -> (u16, Vec<u8>) {
        let [renew, rebind, preferred, valid] = times.map(u32::to_be_bytes);
        let address: Ipv6Addr = address.parse().expect("an address");
        let mut ia = [ia_id(mac).to_be_bytes(), renew, rebind].concat();
        let lent = [&address.octets()[..], &preferred, &valid].concat();
        option(&mut ia, OPTION_ADDRESS, &lent);
        (OPTION_IA, ia)
    }

    pub(crate) fn dns_option(server: &str) -> (u16, Vec<u8>) {
        let server: Ipv6Addr = server.parse().expect("an address");
        (OPTION_DNS, server.octets().to_vec())
    }

    pub(crate) fn ntp_option(server: &str) -> (u16, Vec<u8>) {
        let server: Ipv6Addr = server.parse().expect("an address");
        let mut value = Vec::new();
        option(&mut value, NTP_ADDRESS, &server.octets());
        (OPTION_NTP, value)
    }

    const MAC: Mac = Mac([2, 0, 0, 0, 0, 1]);

    fn question(ask: Ask) -> Vec<u8> {
        let question = Question {
            ask,
            transaction: 0x0012_3456,
            mac: MAC,
            server: None,
            address: None,
            elapsed: 7,
        };
        question.encode()
    }

    #[test]
    fn a_question_says_who_asks_and_for_what() {
        let expected = [
            &[11, 0x12, 0x34, 0x56][..],
            &[0, 1, 0, 10, 0, 3, 0, 1, 2, 0, 0, 0, 0, 1],
            &[0, 8, 0, 2, 0, 7],
            &[0, 6, 0, 8, 0, 23, 0, 31, 0, 32, 0, 56],
        ];
        assert_eq!(question(Ask::Information), expected.concat());
        let solicit = question(Ask::Solicit);
        let ia = [0, 3, 0, 12, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0];
        assert!(solicit.windows(16).any(|part| part == ia), "{solicit:?}");
    }

    #[test]
    fn an_answer_is_read_with_its_address_and_servers() {
        let times = [100, 200, 300, 400];
        let options = [
            ia_option(MAC, "2001:db8::77", times),
            dns_option("2001:db8::53"),
            ntp_option("2001:db8::123"),
            (32, vec![0, 0, 14, 16]),
        ];
        let bytes = answer(7, &question(Ask::Request), &options);
        let read = parse(&bytes).expect("an answer");
        assert_eq!((read.kind, read.transaction), (Kind::Reply, 0x12_3456));
        assert_eq!(read.client, client_id(MAC));
        let ia = read.ia.expect("an address");
        assert_eq!((ia.id, ia.renew, ia.rebind), (ia_id(MAC), 100, 200));
        assert_eq!(ia.addresses[0].address.to_string(), "2001:db8::77");
        assert_eq!(read.dns[0].to_string(), "2001:db8::53");
        assert_eq!(read.ntp[0].to_string(), "2001:db8::123");
        assert_eq!(read.refresh, Some(3600));
        for length in 0..bytes.len() {
            assert!(parse(&bytes[..length]).is_none_or(|cut| cut.refresh.is_none()));
        }
    }

    #[test]
    fn the_older_option_names_time_servers_where_the_newer_does_not() {
        let old = (OPTION_SNTP, dns_option("2001:db8::31").1);
        let both = [old.clone(), ntp_option("2001:db8::56")];
        for (options, expected) in [(&both[..1], "2001:db8::31"), (&both, "2001:db8::56")] {
            let read = parse(&answer(7, &question(Ask::Information), options)).expect("one");
            assert_eq!(read.ntp.len(), 1);
            assert_eq!(read.ntp[0].to_string(), expected);
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_an_answer_or_none(bytes: Vec<u8>, code in 0_u16..60, value: Vec<u8>, kind in 0_u8..9) {
            let _ = parse(&bytes);
            let bytes = answer(kind, &question(Ask::Solicit), &[(code, value)]);
            if let Some(read) = parse(&bytes) {
                assert!(read.dns.len().max(read.ntp.len()) <= NAMED_MAX);
                assert!(read.ia.iter().flat_map(|ia| &ia.addresses).all(|l| l.preferred <= l.valid));
            }
        }

        #[test]
        fn every_port_has_an_identity_of_its_own(mac in any::<[u8; 6]>(), other in any::<[u8; 6]>()) {
            assert_eq!(client_id(Mac(mac)) == client_id(Mac(other)), mac == other);
        }
    }
}
