//! A DHCP server (RFC 2131) with one address to lend.
//!
//! Owns: offers and acknowledgements. Refuses: to answer before it has been asked often enough.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result};
use nix::sys::socket::{setsockopt, sockopt};

use super::{TAP, answer_each};

const COOKIE: [u8; 4] = [99, 130, 83, 99];
/// Before the cookie.
const FIXED: usize = 236;
const KIND: u8 = 53;
/// Seconds, of which half pass until it is renewed: the shortest that a node takes at its word.
const LEASE: u32 = 30;

/// A server at work.
#[derive(Debug)]
pub struct Lends {
    asked: Arc<AtomicUsize>,
    gateway: Arc<Mutex<Ipv4Addr>>,
}

impl Lends {
    /// How often was asked, of either kind.
    pub fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }

    /// Names another router from the next question on.
    pub fn lead_by(&self, gateway: Ipv4Addr) {
        *self.gateway.lock().unwrap_or_else(PoisonError::into_inner) = gateway;
    }
}

/// Serves from now on, and names itself as the router.
pub(super) fn serve(leased: Ipv4Addr, own: Ipv4Addr, patience: usize) -> Result<Lends> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 67)).context("listen for DHCP")?;
    setsockopt(&socket, sockopt::BindToDevice, &TAP.to_owned().into())?;
    setsockopt(&socket, sockopt::Broadcast, &true)?;
    let asked = Arc::new(AtomicUsize::new(0));
    let (count, gateway) = (asked.clone(), Arc::new(Mutex::new(own)));
    let named = gateway.clone();
    let everybody = SocketAddr::from((Ipv4Addr::BROADCAST, 68));
    answer_each(socket, Some(everybody), move |question| {
        let gateway = *named.lock().unwrap_or_else(PoisonError::into_inner);
        let answer = answer(question, leased, (own, gateway))?;
        (count.fetch_add(1, Ordering::Relaxed) + 1 >= patience).then_some(answer)
    });
    Ok(Lends { asked, gateway })
}

/// An offer to who discovers, an acknowledgement to who requests.
fn answer(
    question: &[u8],
    leased: Ipv4Addr,
    (own, gateway): (Ipv4Addr, Ipv4Addr),
) -> Option<Vec<u8>> {
    let kind = match option(question.get(FIXED..)?, KIND)? {
        [1] => 2,
        [3] => 5,
        _ => return None,
    };
    let mut out = vec![2, 1, 6, 0];
    out.extend(&question[4..8]);
    out.resize(16, 0);
    out.extend(leased.octets());
    out.resize(28, 0);
    out.extend(&question[28..44]);
    out.resize(FIXED, 0);
    out.extend(COOKIE);
    out.extend([KIND, 1, kind]);
    for (code, value) in [
        (54, own.octets()),
        (1, [255, 255, 255, 0]),
        (3, gateway.octets()),
        (51, LEASE.to_be_bytes()),
    ] {
        out.extend([code, 4]);
        out.extend(value);
    }
    out.push(255);
    out.resize(300, 0);
    Some(out)
}

fn option(rest: &[u8], wanted: u8) -> Option<&[u8]> {
    let mut rest = rest.strip_prefix(&COOKIE)?;
    loop {
        match rest {
            [0, after @ ..] => rest = after,
            [code, length, after @ ..] if *code != 255 => {
                let (value, after) = after.split_at_checked(usize::from(*length))?;
                if *code == wanted {
                    return Some(value);
                }
                rest = after;
            }
            _ => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_discovers_gets_an_offer_and_who_requests_an_acknowledgement() {
        let ask = |kind: u8| {
            let mut out = vec![1, 1, 6, 0, 9, 8, 7, 6];
            out.resize(28, 0);
            out.extend([2, 0, 0, 0, 0, 1]);
            out.resize(FIXED, 0);
            out.extend(COOKIE);
            out.extend([57, 2, 5, 220, KIND, 1, kind, 255]);
            out
        };
        let (leased, own) = ([192, 0, 2, 77].into(), Ipv4Addr::new(192, 0, 2, 1));
        let own = (own, own);
        for (asked, answered) in [(1, 2), (3, 5)] {
            let answer = answer(&ask(asked), leased, own).expect("an answer");
            assert_eq!(answer[4..8], [9, 8, 7, 6]);
            assert_eq!(answer[16..20], [192, 0, 2, 77]);
            assert_eq!(answer[28..34], [2, 0, 0, 0, 0, 1]);
            assert_eq!(option(&answer[FIXED..], KIND), Some(&[answered][..]));
            assert_eq!(answer.len(), 300);
        }
        assert_eq!(answer(&ask(7), leased, own), None);
        assert_eq!(answer(&[0; 20], leased, own), None);
    }
}
