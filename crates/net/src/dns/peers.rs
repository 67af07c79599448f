//! Names of machines on other nodes of the network: each asked of the gateway there, as the owner's statement has it.
//!
//! Owns: the questions under way, and what was answered a moment ago.
//! Refuses: an address that is not in the subnet of who says it, the word of any other gateway, and answers that were not
//! asked for.
//!
//! All of it goes over the forwarder's own socket: it is in the network's namespace, and the way to a gateway has one sender.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::net::UdpSocket;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};
use types::Cidr;

use super::message;
use crate::network::gateway_of as gateway;

/// The port of DNS on a gateway.
const PORT: u16 = 53;
/// How long a gateway has: a packet may be lost on the way, and what asks waits five seconds.
pub(super) const PATIENCE: Duration = Duration::from_millis(1200);
/// When a gateway that has not answered is asked once more.
pub(super) const AGAIN: Duration = Duration::from_millis(400);
/// How long an answer counts: as long as a guest may keep one.
const KEPT: Duration = Duration::from_secs(message::TTL as u64);
/// How long a name that has no address is not asked for again.
const KEPT_NOBODY: Duration = Duration::from_secs(1);
/// Names that are remembered, and questions under way: a network has some hundreds of machines. Beyond, nothing is asked.
const NAMES_MAX: usize = 512;

/// What a gateway says of a machine of its node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Said {
    At(Ipv4Addr),
    /// It is stopped, or not there yet.
    Nobody,
    /// The gateway is silent.
    Nothing,
}

/// The lock is held for a look-up only, never over an await.
#[derive(Debug, Default)]
pub(super) struct Peers {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    asked: BTreeMap<u16, Asked>,
    /// By name and whose word it was.
    known: BTreeMap<(String, Cidr), (Said, Instant)>,
}

/// One question to one gateway.
#[derive(Debug)]
struct Asked {
    query: Vec<u8>,
    subnet: Cidr,
    answer: oneshot::Sender<Said>,
}

impl Peers {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a packet that is a gateway's answer. `false`: it is none.
    pub(super) fn hear(&self, from: SocketAddr, packet: &[u8]) -> bool {
        let IpAddr::V4(address) = from.ip() else {
            return false;
        };
        if from.port() != PORT || !message::is_response(packet) {
            return false;
        }
        let Some(id) = message::id(packet) else {
            return true;
        };
        let mut state = self.state();
        let said = state.asked.get(&id).and_then(|asked| {
            let said = message::address_in(&asked.query, packet);
            said.filter(|_| gateway(&asked.subnet) == address)
        });
        if let Some(said) = said
            && let Some(asked) = state.asked.remove(&id)
        {
            let said = said.filter(|said| asked.subnet.contains(*said));
            // Nobody waits any more whose guest is gone.
            let _ = asked.answer.send(said.map_or(Said::Nobody, Said::At));
        }
        true
    }

    /// The machine with this full name, on the node that has the subnet.
    pub(super) async fn find(&self, socket: &UdpSocket, subnet: Cidr, name: &str) -> Said {
        let now = Instant::now();
        let about = (name.to_owned(), subnet);
        if let Some((said, until)) = self.state().known.get(&about)
            && now < *until
        {
            return *said;
        }
        let Some((id, answer)) = self.begin(subnet, name) else {
            return Said::Nothing;
        };
        let said = self.ask(socket, (id, now), answer).await;
        let mut state = self.state();
        state.asked.remove(&id);
        let kept = match said {
            Said::At(_) => KEPT,
            Said::Nobody | Said::Nothing => KEPT_NOBODY,
        };
        state.known.retain(|_, (_, until)| now < *until);
        if state.known.len() < NAMES_MAX {
            let until = Instant::now() + kept;
            state.known.insert(about, (said, until));
        }
        said
    }

    fn begin(&self, subnet: Cidr, name: &str) -> Option<(u16, oneshot::Receiver<Said>)> {
        let [a, b, ..] = getrandom::u32().ok()?.to_be_bytes();
        let id = u16::from_be_bytes([a, b]);
        let (answer, heard) = oneshot::channel();
        let asked = Asked {
            query: message::question(id, name)?,
            subnet,
            answer,
        };
        let mut state = self.state();
        if state.asked.len() >= NAMES_MAX || state.asked.contains_key(&id) {
            return None;
        }
        state.asked.insert(id, asked);
        Some((id, heard))
    }

    async fn ask(
        &self,
        socket: &UdpSocket,
        (id, since): (u16, Instant),
        mut answer: oneshot::Receiver<Said>,
    ) -> Said {
        for until in [since + AGAIN, since + PATIENCE] {
            let asked = self.state().asked.get(&id).map(|asked| {
                let to = (gateway(&asked.subnet), PORT);
                (asked.query.clone(), to)
            });
            if let Some((query, to)) = asked {
                // One that cannot be reached is as one that does not answer.
                let _ = socket.send_to(&query, to).await;
            }
            if let Ok(said) = timeout_at(until, &mut answer).await {
                return said.unwrap_or(Said::Nothing);
            }
        }
        Said::Nothing
    }
}

#[cfg(test)]
mod tests {
    use super::super::message::{Code, Query};
    use super::*;
    use crate::scratch::on_a_runtime;

    fn answer(query: &[u8], address: Option<[u8; 4]>) -> Vec<u8> {
        let query = Query::parse(query).expect("a query");
        match address {
            Some(address) => query.answer(address.into(), None),
            None => query.refuse(Code::NameError),
        }
    }

    fn there() -> Cidr {
        "10.200.2.0/24".parse().expect("a subnet")
    }

    /// Who says it, from which port, and where the machine is.
    type Heard = ([u8; 4], u16, Option<[u8; 4]>);

    /// Answers in this order; `find`'s result.
    fn found(heard: &[Heard]) -> Said {
        on_a_runtime(async {
            let peers = Peers::default();
            let socket = UdpSocket::bind("127.0.0.1:0").await.expect("a socket");
            let find = peers.find(&socket, there(), "web.shop.internal");
            let hear = async {
                tokio::task::yield_now().await;
                let query = {
                    let state = peers.state();
                    let asked = state.asked.values().next().expect("a question");
                    asked.query.clone()
                };
                for (from, port, address) in heard {
                    peers.hear((*from, *port).into(), &answer(&query, *address));
                }
            };
            tokio::join!(find, hear).0
        })
    }

    #[test]
    fn the_gateway_of_the_machines_node_is_believed_and_nobody_else() {
        let (gateway, stranger) = ([10, 200, 2, 1], [10, 200, 1, 1]);
        let (web, elsewhere) = ([10, 200, 2, 9], [10, 200, 1, 9]);
        let is = Said::At(web.into());
        assert_eq!(found(&[(gateway, 53, Some(web))]), is);
        assert_eq!(
            found(&[(stranger, 53, Some(elsewhere)), (gateway, 53, Some(web))]),
            is
        );
        assert_eq!(found(&[(gateway, 53, None)]), Said::Nobody);
        // Of another's subnet; of a stranger; from another port; a machine that is no gateway.
        assert_eq!(found(&[(gateway, 53, Some(elsewhere))]), Said::Nobody);
        assert_eq!(found(&[(stranger, 53, Some(web))]), Said::Nothing);
        assert_eq!(found(&[(gateway, 5353, Some(web))]), Said::Nothing);
        assert_eq!(found(&[(web, 53, Some(web))]), Said::Nothing);
    }

    #[test]
    fn what_was_found_is_not_asked_for_again_until_it_is_on_another_node() {
        on_a_runtime(async {
            let peers = Peers::default();
            let socket = UdpSocket::bind("127.0.0.1:0").await.expect("a socket");
            let web = Said::At([10, 200, 2, 9].into());
            let until = Instant::now() + KEPT;
            let known = (("web".to_owned(), there()), (web, until));
            peers.state().known.extend([known]);
            assert_eq!(peers.find(&socket, there(), "web").await, web);
            let other = "10.200.3.0/24".parse().expect("a subnet");
            assert_eq!(peers.find(&socket, other, "web").await, Said::Nothing);
        });
    }
}
