//! The node's own questions after machines on another node: all that it wants of one gateway, asked together.
//!
//! Owns: the questions under way, and which answer is to which. Refuses: an address that is not in the subnet of who says it, answers
//! that were not asked for, and to remember anything: whoever asks does.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::UdpSocket as StdSocket;

use tokio::net::UdpSocket;
use tokio::time::{Instant, timeout_at};
use types::Cidr;

use super::message;
use super::peers::{AGAIN, PATIENCE, Said};

/// Questions at once: a gateway takes 32 of one asker, and guests here ask it too, by ours.
const AT_ONCE: usize = 16;
/// Longest answer: our question, and one address.
const ANSWER_MAX: usize = 512;
/// Packets that are no answer to a question, before a gateway is given up for this time.
const STRAY_MAX: usize = 64;

/// What the gateway of a subnet says of these names. `socket`: connected to it, within the network's namespace
/// (`network::to_gateway`), so that the kernel passes what comes from there alone. Within a tokio runtime.
pub async fn ask(
    socket: StdSocket,
    subnet: Cidr,
    names: &BTreeSet<String>,
) -> io::Result<BTreeMap<String, Said>> {
    let socket = UdpSocket::from_std(socket)?;
    let mut all = BTreeMap::new();
    let names: Vec<&String> = names.iter().collect();
    for some in names.chunks(AT_ONCE) {
        let mut round = Round::of(some, subnet)?;
        round.run(&socket).await;
        let is_silent = round.said.is_empty();
        for name in some {
            let said = round.said.remove(*name).unwrap_or(Said::Nothing);
            all.insert((*name).clone(), said);
        }
        if is_silent {
            // Nor would it answer the next.
            break;
        }
    }
    for name in names {
        all.entry(name.clone()).or_insert(Said::Nothing);
    }
    Ok(all)
}

/// Some questions to one gateway.
#[derive(Debug)]
struct Round {
    subnet: Cidr,
    /// By their numbers.
    open: BTreeMap<u16, (Vec<u8>, String)>,
    said: BTreeMap<String, Said>,
}

impl Round {
    fn of(names: &[&String], subnet: Cidr) -> io::Result<Self> {
        let mut open = BTreeMap::new();
        for name in names {
            let [a, b, ..] = getrandom::u32()?.to_be_bytes();
            let mut id = u16::from_be_bytes([a, b]);
            while open.contains_key(&id) {
                id = id.wrapping_add(1);
            }
            // One that is no name is as one that is not answered.
            if let Some(query) = message::question(id, name) {
                open.insert(id, (query, (*name).clone()));
            }
        }
        Ok(Self {
            subnet,
            open,
            said: BTreeMap::new(),
        })
    }

    async fn run(&mut self, socket: &UdpSocket) {
        let since = Instant::now();
        let mut strays = 0;
        let mut buffer = [0; ANSWER_MAX];
        for until in [since + AGAIN, since + PATIENCE] {
            for (query, _) in self.open.values() {
                // A gateway that cannot be reached is as one that does not answer.
                let _ = socket.send(query).await;
            }
            while !self.open.is_empty() && strays < STRAY_MAX {
                match timeout_at(until, socket.recv(&mut buffer)).await {
                    Ok(Ok(length)) if self.hear(&buffer[..length]) => {}
                    // An error too: what was sent has found nobody.
                    Ok(_) => strays += 1,
                    Err(_) => break,
                }
            }
        }
    }

    /// Whether it is an answer.
    fn hear(&mut self, packet: &[u8]) -> bool {
        let said = message::id(packet).and_then(|id| {
            let (query, _) = self.open.get(&id)?;
            let said = message::address_in(query, packet)?;
            Some((id, said))
        });
        let Some((id, said)) = said.filter(|_| message::is_response(packet)) else {
            return false;
        };
        let said = said.filter(|said| self.subnet.contains(*said));
        if let Some((_, name)) = self.open.remove(&id) {
            self.said.insert(name, said.map_or(Said::Nobody, Said::At));
        }
        true
    }
}

#[cfg(any(test, feature = "fuzz"))]
pub(super) mod fuzz {
    use super::{Cidr, Round, Said};

    /// Whatever a gateway sends: what is believed lies in its subnet, and is of a name that was asked for.
    pub(crate) fn hear(names: &[&String], subnet: Cidr, packets: &[Vec<u8>]) {
        let Ok(mut round) = Round::of(names, subnet) else {
            return;
        };
        for packet in packets {
            // Each with the number of a question, which nobody guesses.
            let mut packet = packet.clone();
            if let (Some(id), [a, b, ..]) = (round.open.keys().next(), &mut packet[..]) {
                [*a, *b] = id.to_be_bytes();
            }
            round.hear(&packet);
        }
        for (name, said) in &round.said {
            assert!(names.contains(&name));
            if let Said::At(address) = said {
                assert!(subnet.contains(*address));
            }
        }
    }
}

#[cfg(test)]
#[path = "round_tests.rs"]
mod tests;
