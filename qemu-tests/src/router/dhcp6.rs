//! A DHCPv6 server (RFC 8415) that names servers, and lends one address where it is to.
//!
//! Owns: answers to requests for information, and the four messages of a loan. Refuses: all others.

use std::net::Ipv6Addr;
use std::sync::{Mutex, PoisonError};

const SERVER: [u8; 14] = [0, 2, 0, 10, 0, 3, 0, 1, 2, 0, 0, 0, 0, 9];
const IA: u16 = 3;
/// Seconds for which an address is to be used, and is valid.
const PREFERRED: u32 = 3600;
const VALID: u32 = 7200;

/// `None` where it asks for an address, and none is lent.
pub(super) fn answer(
    question: &[u8],
    own: Ipv6Addr,
    lent: &Mutex<Option<Ipv6Addr>>,
) -> Option<Vec<u8>> {
    let (&[kind, a, b, c], options) = question.split_first_chunk()?;
    let lent = *lent.lock().unwrap_or_else(PoisonError::into_inner);
    let (says, lent) = match (kind, lent) {
        (11, _) => (7, None),
        (1, Some(lent)) => (2, Some(lent)),
        (3 | 5 | 6, Some(lent)) => (7, Some(lent)),
        _ => return None,
    };
    // The client's identity is what it says first.
    let (&[0, 1, high, low], rest) = options.split_first_chunk()? else {
        return None;
    };
    let length = usize::from(u16::from_be_bytes([high, low]));
    let client = rest.get(..length)?;
    let mut answer = vec![says, a, b, c, 0, 1, high, low];
    answer.extend(client);
    answer.extend(SERVER);
    if let Some(lent) = lent {
        let id = association(rest.get(length..)?)?;
        answer.extend([0, 3, 0, 40]);
        answer.extend(id);
        answer.extend([0; 8]);
        answer.extend([0, 5, 0, 24]);
        answer.extend(lent.octets());
        answer.extend(PREFERRED.to_be_bytes());
        answer.extend(VALID.to_be_bytes());
    }
    answer.extend([0, 23, 0, 16]);
    answer.extend(own.octets());
    answer.extend([0, 56, 0, 20, 0, 1, 0, 16]);
    answer.extend(own.octets());
    Some(answer)
}

/// The number by which the client knows its addresses.
fn association(mut options: &[u8]) -> Option<[u8; 4]> {
    loop {
        let (&[a, b, high, low], rest) = options.split_first_chunk()?;
        let length = usize::from(u16::from_be_bytes([high, low]));
        let (value, after) = rest.split_at_checked(length)?;
        if u16::from_be_bytes([a, b]) == IA {
            return value.first_chunk().copied();
        }
        options = after;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_goes_to_who_asked_and_names_both_servers() {
        let own: Ipv6Addr = "2001:db8::1".parse().expect("an address");
        let none = Mutex::new(None);
        let question = [11, 1, 2, 3, 0, 1, 0, 2, 8, 9, 0, 8, 0, 2, 0, 0];
        let named = answer(&question, own, &none).expect("an answer");
        assert_eq!(named[..10], [7, 1, 2, 3, 0, 1, 0, 2, 8, 9]);
        assert_eq!(answer(&[1, 1, 2, 3], own, &none), None);
    }

    #[test]
    fn a_loan_is_advertised_and_then_made_for_the_same_association() {
        let own: Ipv6Addr = "2001:db8::1".parse().expect("an address");
        let lent = Mutex::new("2001:db8::77".parse().ok());
        for (asked, says) in [(1, 2), (3, 7), (5, 7)] {
            let mut question = vec![asked, 1, 2, 3, 0, 1, 0, 2, 8, 9, 0, 8, 0, 2, 0, 0];
            question.extend([0, 3, 0, 12, 4, 5, 6, 7, 0, 0, 0, 0, 0, 0, 0, 0]);
            let answer = answer(&question, own, &lent).expect("an answer");
            assert_eq!(answer[0], says);
            assert_eq!(answer[24..32], [0, 3, 0, 40, 4, 5, 6, 7]);
        }
    }
}
