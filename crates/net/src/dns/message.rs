//! DNS messages, as far as a forwarder reads them (RFC 1035 section 4, RFC 6891).
//!
//! Owns: reading one question, writing short answers of our own, telling whether a reply answers a query.
//! Refuses: compressed names in questions, more than one question, records in a query but for one OPT.

use std::net::{Ipv4Addr, Ipv6Addr};

const HEADER_BYTES: usize = 12;
/// Longest name on the wire, and longest label (RFC 1035 section 2.3.4).
const NAME_MAX: usize = 255;
const LABEL_MAX: usize = 63;

const TYPE_A: u16 = 1;
const TYPE_AAAA: u16 = 28;
const TYPE_OPT: u16 = 41;
const CLASS_IN: u16 = 1;
const CLASS_ANY: u16 = 255;

/// Second header word: response, authoritative, recursion desired, recursion available.
const RESPONSE: u16 = 1 << 15;
const OPCODE: u16 = 0xf << 11;
const AUTHORITATIVE: u16 = 1 << 10;
const RECURSION_DESIRED: u16 = 1 << 8;
const RECURSION_AVAILABLE: u16 = 1 << 7;

/// Seconds that a guest may keep the address of a machine: it may move with its next start.
pub(super) const TTL: u32 = 5;

/// Result codes of our own answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Code {
    NoError = 0,
    FormatError = 1,
    ServerFailure = 2,
    NameError = 3,
    NotImplemented = 4,
}

/// A query with one well-formed question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Query {
    /// The whole message as it came.
    pub(super) bytes: Vec<u8>,
    /// Lower case, labels joined by dots, without a final one. Labels with other bytes than those of
    /// host names make a name that is in no list of ours.
    pub(super) name: String,
    kind: u16,
    class: u16,
    /// Where the question ends.
    end: usize,
}

/// Why there is no [`Query`], and what is answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Flaw {
    /// Nothing: answering responses and fragments makes loops.
    Silence,
    Answer(Vec<u8>),
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

impl Query {
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, Flaw> {
        if bytes.len() < HEADER_BYTES {
            return Err(Flaw::Silence);
        }
        let flags = half(bytes, 2).ok_or(Flaw::Silence)?;
        if flags & RESPONSE != 0 {
            return Err(Flaw::Silence);
        }
        let refuse = |code| Flaw::Answer(header(bytes, code, [0; 4]));
        if flags & OPCODE != 0 {
            return Err(refuse(Code::NotImplemented));
        }
        let bad = || refuse(Code::FormatError);
        let counts = [4, 6, 8, 10].map(|at| half(bytes, at));
        let [Some(1), Some(0), Some(0), Some(extra @ 0..=1)] = counts else {
            return Err(bad());
        };
        let (name, end) = name(bytes).ok_or_else(bad)?;
        let (kind, class) = (half(bytes, end), half(bytes, end + 2));
        let (Some(kind), Some(class)) = (kind, class) else {
            return Err(bad());
        };
        let end = end + 4;
        if !is_tail(&bytes[end..], extra) {
            return Err(bad());
        }
        Ok(Self {
            bytes: bytes.to_vec(),
            name,
            kind,
            class,
            end,
        })
    }

    /// Our own answer: the address of the family that is asked for, else only that the name exists.
    pub(super) fn answer(&self, address: Ipv4Addr, six: Option<Ipv6Addr>) -> Vec<u8> {
        let asked = matches!(self.class, CLASS_IN | CLASS_ANY);
        let octets = match self.kind {
            TYPE_A if asked => Some(address.octets().to_vec()),
            TYPE_AAAA if asked => six.map(|six| six.octets().to_vec()),
            _ => None,
        };
        let mut out = self.reply(Code::NoError, u16::from(octets.is_some()));
        if let Some(octets) = octets {
            let length = u16::try_from(octets.len()).expect("an address");
            out.extend_from_slice(&[0xc0, 0x0c]); // The name of the question.
            out.extend_from_slice(&self.kind.to_be_bytes());
            out.extend_from_slice(&CLASS_IN.to_be_bytes());
            out.extend_from_slice(&TTL.to_be_bytes());
            out.extend_from_slice(&length.to_be_bytes());
            out.extend(octets);
        }
        out
    }

    /// Our own answer without a record.
    pub(super) fn refuse(&self, code: Code) -> Vec<u8> {
        self.reply(code, 0)
    }

    fn reply(&self, code: Code, answers: u16) -> Vec<u8> {
        let mut out = header(&self.bytes, code, [1, answers, 0, 0]);
        out.extend_from_slice(&self.bytes[HEADER_BYTES..self.end]);
        out
    }

    /// The message with another id.
    pub(super) fn with_id(&self, id: u16) -> Vec<u8> {
        let mut out = self.bytes.clone();
        out[..2].copy_from_slice(&id.to_be_bytes());
        out
    }

    /// Whether `reply` answers this query as it was sent with `id`: the id and the question are repeated.
    /// Then its id is put back to the guest's.
    pub(super) fn accept(&self, id: u16, mut reply: Vec<u8>) -> Option<Vec<u8>> {
        let response = half(&reply, 2)? & RESPONSE != 0;
        let question = reply.get(HEADER_BYTES..self.end)?;
        let same = question.eq_ignore_ascii_case(&self.bytes[HEADER_BYTES..self.end]);
        if half(&reply, 0)? != id || !response || half(&reply, 4)? != 1 || !same {
            return None;
        }
        reply[..2].copy_from_slice(&self.bytes[..2]);
        Some(reply)
    }
}

pub(super) fn id(message: &[u8]) -> Option<u16> {
    half(message, 0)
}

pub(super) fn is_response(message: &[u8]) -> bool {
    half(message, 2).is_some_and(|flags| flags & RESPONSE != 0)
}

/// A question for the IPv4 address of a name. `None`: it is no name.
pub(super) fn question(id: u16, name: &str) -> Option<Vec<u8>> {
    let mut out = id.to_be_bytes().to_vec();
    out.extend([0, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    for label in name.split('.') {
        let length = u8::try_from(label.len()).ok()?;
        if !(1..=LABEL_MAX).contains(&label.len()) {
            return None;
        }
        out.push(length);
        out.extend_from_slice(label.as_bytes());
    }
    out.push(0);
    out.extend(TYPE_A.to_be_bytes());
    out.extend(CLASS_IN.to_be_bytes());
    (out.len() <= HEADER_BYTES + NAME_MAX + 4).then_some(out)
}

/// What a gateway of ours says to our question: it writes one address behind the question, or none. `None`: that is no answer
/// to it.
pub(super) fn address_in(query: &[u8], answer: &[u8]) -> Option<Option<Ipv4Addr>> {
    let same = answer.get(HEADER_BYTES..query.len())? == query.get(HEADER_BYTES..)?;
    if !same || id(answer) != id(query) || half(answer, 4)? != 1 {
        return None;
    }
    let (code, count) = (half(answer, 2)? & 0xf, half(answer, 6)?);
    if code != Code::NoError as u16 || count == 0 {
        return Some(None);
    }
    // The question's name, type, class, time, length.
    let record = answer.get(query.len()..)?;
    let known = half(record, 0)? == 0xc00c && half(record, 2)? == TYPE_A;
    let known = known && half(record, 4)? == CLASS_IN && half(record, 10)? == 4;
    let octets: [u8; 4] = record.get(12..16)?.try_into().ok()?;
    known.then_some(Some(octets.into()))
}

/// A response header to a message that has one itself.
fn header(query: &[u8], code: Code, counts: [u16; 4]) -> Vec<u8> {
    let asked = half(query, 2).unwrap_or(0) & (OPCODE | RECURSION_DESIRED);
    let flags = RESPONSE | AUTHORITATIVE | RECURSION_AVAILABLE | asked | code as u16;
    let mut out = query[..2].to_vec();
    out.extend_from_slice(&flags.to_be_bytes());
    out.extend(counts.iter().flat_map(|count| count.to_be_bytes()));
    out
}

/// The name of the first question and where it ends.
fn name(bytes: &[u8]) -> Option<(String, usize)> {
    let (mut text, mut at) = (String::new(), HEADER_BYTES);
    loop {
        let length = usize::from(*bytes.get(at)?);
        at += 1;
        if length == 0 {
            return Some((text, at));
        }
        if length > LABEL_MAX || at + length - HEADER_BYTES >= NAME_MAX {
            return None;
        }
        if !text.is_empty() {
            text.push('.');
        }
        for byte in bytes.get(at..at + length)? {
            let plain = byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
            text.push(if plain {
                char::from(byte.to_ascii_lowercase())
            } else {
                '?'
            });
        }
        at += length;
    }
}

/// Whether what follows the question is nothing, or one OPT record to the end.
fn is_tail(tail: &[u8], records: u16) -> bool {
    match records {
        0 => tail.is_empty(),
        _ => {
            let fixed = tail.first() == Some(&0) && half(tail, 1) == Some(TYPE_OPT);
            fixed && half(tail, 9).is_some_and(|length| tail.len() == 11 + usize::from(length))
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::{any, proptest};

    use super::*;

    /// A query for an A record.
    pub(crate) fn query(id: u16, name: &str, kind: u16) -> Vec<u8> {
        let mut out = id.to_be_bytes().to_vec();
        out.extend_from_slice(&[1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
        for label in name.split('.') {
            out.push(u8::try_from(label.len()).expect("short"));
            out.extend_from_slice(label.as_bytes());
        }
        out.push(0);
        out.extend_from_slice(&kind.to_be_bytes());
        out.extend_from_slice(&CLASS_IN.to_be_bytes());
        out
    }

    #[test]
    fn a_question_is_read_and_answered() {
        let query = Query::parse(&query(7, "Web.Shop", TYPE_A)).expect("a query");
        assert_eq!(query.name, "web.shop");
        let answer = query.answer([10, 128, 0, 2].into(), None);
        assert_eq!(answer[..8], [0, 7, 0x85, 0x80, 0, 1, 0, 1]);
        assert_eq!(answer[answer.len() - 6..], [0, 4, 10, 128, 0, 2]);
        assert_eq!(query.refuse(Code::NameError)[3] & 0xf, 3);
    }

    #[test]
    fn another_type_of_a_known_name_is_an_empty_answer() {
        let mail = Query::parse(&query(7, "web", 15)).expect("a query");
        let (address, six) = ([10, 128, 0, 2].into(), Ipv6Addr::LOCALHOST);
        assert_eq!(mail.answer(address, Some(six))[6..8], [0, 0]);
        let query = Query::parse(&query(7, "web", TYPE_AAAA)).expect("a query");
        assert_eq!(query.answer(address, None)[6..8], [0, 0]);
        let answer = query.answer(address, Some(six));
        assert_eq!(answer[6..8], [0, 1]);
        assert_eq!(answer[answer.len() - 18..answer.len() - 15], [0, 16, 0]);
        assert_eq!(answer[answer.len() - 1], 1);
    }

    #[test]
    fn only_a_reply_to_this_question_is_accepted() {
        let query = Query::parse(&query(7, "example.org", TYPE_A)).expect("a query");
        let mut reply = query.with_id(99);
        reply[2] |= 0x80;
        let accepted = query.accept(99, reply.clone()).expect("accepted");
        assert_eq!(accepted[..2], [0, 7]);
        assert_eq!(query.accept(98, reply.clone()), None, "another id");
        assert_eq!(query.accept(99, query.with_id(99)), None, "no response");
        reply[14] ^= 1;
        assert_eq!(query.accept(99, reply), None, "another question");
    }

    #[test]
    fn messages_that_are_no_plain_query_are_refused() {
        let good = query(7, "example.org", TYPE_A);
        let changed = |at: usize, value: u8| {
            let mut bytes = good.clone();
            bytes[at] = value;
            Query::parse(&bytes)
        };
        assert_eq!(changed(2, 0x80), Err(Flaw::Silence), "a response");
        for (at, value) in [
            (2, 0x28),
            (5, 2),
            (7, 1),
            (9, 1),
            (11, 1),
            (12, 0xc0),
            (12, 64),
        ] {
            assert!(
                matches!(changed(at, value), Err(Flaw::Answer(_))),
                "{at} {value}"
            );
        }
        let mut with_opt = good.clone();
        with_opt[11] = 1;
        with_opt.extend_from_slice(&[0, 0, 41, 4, 208, 0, 0, 0, 0, 0, 0]);
        assert!(Query::parse(&with_opt).is_ok());
        with_opt.push(0);
        assert!(Query::parse(&with_opt).is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_query_or_a_flaw(bytes: Vec<u8>, reply: Vec<u8>, name: Vec<u8>, id in any::<u16>()) {
            let _ = Query::parse(&bytes);
            let mut framed = query(id, "x", TYPE_A)[..HEADER_BYTES].to_vec();
            framed.extend_from_slice(&name);
            if let Ok(query) = Query::parse(&framed) {
                let _ = address_in(&query.bytes, &reply);
                let _ = (query.accept(id, reply), query.answer([1, 2, 3, 4].into(), Some(Ipv6Addr::LOCALHOST)));
            }
        }
    }
}
