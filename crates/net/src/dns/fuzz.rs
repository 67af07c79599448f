//! Messages of guests and of upstream servers, for the package `fuzz`.
//!
//! Owns: what must hold of every answer. Refuses: sockets.

use super::message::{Code, Flaw, Query, address_in};

/// What a guest is answered when its machine has the name. `None`: nothing.
pub fn query(bytes: &[u8]) -> Option<Vec<u8>> {
    let query = match Query::parse(bytes) {
        Ok(query) => query,
        Err(Flaw::Silence) => return None,
        Err(Flaw::Answer(answer)) => return Some(answer),
    };
    let refusal = query.refuse(Code::NameError);
    assert_eq!(refusal[..2], bytes[..2], "an answer to another question");
    assert!(query.name.bytes().all(|b| b.is_ascii_graphic()));
    Some(query.answer([10, 0, 0, 1].into(), Some(std::net::Ipv6Addr::LOCALHOST)))
}

/// What a guest that asked `question` is told of an upstream server's `reply`. `None`: nothing.
pub fn reply(question: &[u8], id: u16, reply: &[u8]) -> Option<Vec<u8>> {
    let query = Query::parse(question).ok()?;
    assert_eq!(query.with_id(id)[..2], id.to_be_bytes());
    // The same words from another node's gateway.
    let said = address_in(question, reply);
    assert!(said.is_none() || reply.len() >= question.len());
    let subnet = types::Cidr::new([10, 200, 2, 0].into(), 24)?;
    super::round::fuzz::hear(&[&query.name], subnet, &[question.to_vec(), reply.to_vec()]);
    let accepted = query.accept(id, reply.to_vec())?;
    assert_eq!(accepted[..2], question[..2], "the guest's own number");
    assert_eq!(accepted.len(), reply.len());
    Some(accepted)
}
