//! Names of machines on other nodes of the network: asked of the gateways there.
//!
//! Owns: the questions under way, what was answered a moment ago, and whose word counts for which addresses.
//! Refuses: an address that is not in the subnet of who says it, questions of others for others, and answers that were not
//! asked for.
//!
//! All of it goes over the forwarder's own socket: it is in the network's namespace, and the way to a gateway has one sender.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::net::UdpSocket;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};
use types::Cidr;

use super::message;

/// The port of DNS on a gateway.
const PORT: u16 = 53;
/// How long gateways have: a packet may be lost on the way, and what asks waits five seconds.
const PATIENCE: Duration = Duration::from_millis(1200);
/// When a gateway that has not answered is asked once more.
const AGAIN: Duration = Duration::from_millis(400);
/// How long an answer counts: as long as a guest may keep one.
const KEPT: Duration = Duration::from_secs(message::TTL as u64);
/// How long a name that nobody has is not asked for again.
const KEPT_NOBODY: Duration = Duration::from_secs(1);
/// Names that are remembered, and questions under way: a network has some hundreds of machines. Beyond, nothing is asked.
const NAMES_MAX: usize = 512;

/// The gateway of a subnet.
fn gateway(subnet: &Cidr) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(subnet.network().address) + 1)
}

/// The lock is held for a look-up only, never over an await.
#[derive(Debug, Default)]
pub(super) struct Peers {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    asked: BTreeMap<u16, Asked>,
    known: BTreeMap<String, (Option<Ipv4Addr>, Instant)>,
}

/// One question to all gateways. Each answers once.
#[derive(Debug)]
struct Asked {
    query: Vec<u8>,
    waits: Vec<Cidr>,
    answers: mpsc::UnboundedSender<Option<Ipv4Addr>>,
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
        let Some(asked) = state.asked.get_mut(&id) else {
            return true;
        };
        let who = asked
            .waits
            .iter()
            .position(|subnet| gateway(subnet) == address);
        if let (Some(who), Some(said)) = (who, message::address_in(&asked.query, packet)) {
            let subnet = asked.waits.swap_remove(who);
            let said = said.filter(|said| subnet.contains(*said));
            // Nobody waits any more where another was quicker.
            let _ = asked.answers.send(said);
        }
        true
    }

    /// The machine with this full name on another node.
    pub(super) async fn find(
        &self,
        socket: &UdpSocket,
        subnets: &[Cidr],
        name: &str,
    ) -> Option<Ipv4Addr> {
        let now = Instant::now();
        if let Some((address, until)) = self.state().known.get(name)
            && now < *until
        {
            // It may be of a node that is no peer any more.
            return address.filter(|at| subnets.iter().any(|subnet| subnet.contains(*at)));
        }
        let (id, mut answers) = self.begin(subnets, name)?;
        let found = self.ask(socket, (id, now), &mut answers).await;
        let mut state = self.state();
        state.asked.remove(&id);
        let kept = found.map_or(KEPT_NOBODY, |_| KEPT);
        state.known.retain(|_, (_, until)| now < *until);
        if state.known.len() < NAMES_MAX {
            state
                .known
                .insert(name.to_owned(), (found, Instant::now() + kept));
        }
        found
    }

    fn begin(
        &self,
        subnets: &[Cidr],
        name: &str,
    ) -> Option<(u16, mpsc::UnboundedReceiver<Option<Ipv4Addr>>)> {
        let [a, b, ..] = getrandom::u32().ok()?.to_be_bytes();
        let id = u16::from_be_bytes([a, b]);
        let (answers, heard) = mpsc::unbounded_channel();
        let asked = Asked {
            query: message::question(id, name)?,
            waits: subnets.to_vec(),
            answers,
        };
        let mut state = self.state();
        if state.asked.len() >= NAMES_MAX || state.asked.contains_key(&id) {
            return None;
        }
        state.asked.insert(id, asked);
        Some((id, heard))
    }

    /// The first address that is said, or none once all have answered or time is up.
    async fn ask(
        &self,
        socket: &UdpSocket,
        (id, since): (u16, Instant),
        answers: &mut mpsc::UnboundedReceiver<Option<Ipv4Addr>>,
    ) -> Option<Ipv4Addr> {
        for until in [since + AGAIN, since + PATIENCE] {
            let (query, waits) = {
                let state = self.state();
                let asked = state.asked.get(&id)?;
                (asked.query.clone(), asked.waits.clone())
            };
            for subnet in &waits {
                // One that cannot be reached is as one that does not answer.
                let _ = socket.send_to(&query, (gateway(subnet), PORT)).await;
            }
            loop {
                let waits = self.state().asked.get(&id).map_or(0, |a| a.waits.len());
                let said = match waits {
                    // What was said is all there is.
                    0 => answers.try_recv().ok(),
                    _ => match timeout_at(until, answers.recv()).await {
                        Err(_) => break,
                        Ok(said) => said,
                    },
                };
                match said {
                    None => return None,
                    Some(Some(address)) => return Some(address),
                    Some(None) => {}
                }
            }
        }
        None
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

    fn subnets() -> Vec<Cidr> {
        ["10.200.1.0/24", "10.200.2.0/24"]
            .map(|subnet| subnet.parse().expect("a subnet"))
            .into()
    }

    /// Who says it, from which port, and where the machine is.
    type Said = ([u8; 4], u16, Option<[u8; 4]>);

    /// Answers as these gateways would, in their order; `find`'s result.
    fn found(said: &[Said]) -> Option<Ipv4Addr> {
        on_a_runtime(async {
            let (peers, subnets) = (Peers::default(), subnets());
            let socket = UdpSocket::bind("127.0.0.1:0").await.expect("a socket");
            let find = peers.find(&socket, &subnets, "web.shop.internal");
            let hear = async {
                tokio::task::yield_now().await;
                let query = {
                    let state = peers.state();
                    let asked = state.asked.values().next().expect("a question");
                    asked.query.clone()
                };
                for (from, port, address) in said {
                    peers.hear((*from, *port).into(), &answer(&query, *address));
                }
            };
            tokio::join!(find, hear).0
        })
    }

    #[test]
    fn a_gateway_is_believed_of_its_own_subnet_alone() {
        let (first, second) = ([10, 200, 1, 1], [10, 200, 2, 1]);
        let web = Some([10, 200, 2, 9]);
        assert_eq!(
            found(&[(first, 53, None), (second, 53, web)]),
            web.map(Into::into)
        );
        // Of another's subnet; of a stranger; from another port; a machine that is no gateway.
        assert_eq!(found(&[(first, 53, web), (second, 53, None)]), None);
        assert_eq!(found(&[([10, 200, 3, 1], 53, Some([10, 200, 3, 9]))]), None);
        assert_eq!(found(&[(second, 5353, web)]), None);
        assert_eq!(found(&[([10, 200, 2, 9], 53, web)]), None);
    }

    #[test]
    fn what_was_found_is_not_asked_for_again_until_its_node_is_no_peer() {
        on_a_runtime(async {
            let peers = Peers::default();
            let socket = UdpSocket::bind("127.0.0.1:0").await.expect("a socket");
            let web = Ipv4Addr::new(10, 200, 2, 9);
            let until = Instant::now() + KEPT;
            peers
                .state()
                .known
                .insert("web".to_owned(), (Some(web), until));
            assert_eq!(peers.find(&socket, &subnets(), "web").await, Some(web));
            assert_eq!(peers.find(&socket, &subnets()[..1], "web").await, None);
        });
    }
}
