//! DNS forwarder for the guests of one network.
//!
//! Owns: answering for the network's own machines, relaying everything else to the upstream servers; the node's own questions after
//! machines on other nodes ([`ask`]).
//! Refuses: resolving or caching; what a guest sends beyond one well-formed question; to ask the world for
//! a name that could only be a machine's ([`Names::find`]).

#[cfg(any(test, feature = "fuzz"))]
pub(crate) mod fuzz;
mod message;
mod peers;
mod round;

use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::watch;
use tokio::task::{JoinError, JoinSet};
use tokio::time::{Instant, timeout};

use crate::Error;
use crate::network::{Ula, address6};
use message::{Code, Flaw, Query};
use peers::Peers;
pub use peers::Said;
pub use round::ask;
use types::Cidr;

/// Bound to port 53 inside a tenant's namespace: see `network::dns_sockets`.
#[derive(Debug)]
pub struct Sockets {
    pub udp: std::net::UdpSocket,
    pub tcp: std::net::TcpListener,
}

/// Below this all names are the network's own: it is reserved for that, and no public server has it.
pub const OWN_SUFFIX: &str = "internal";

/// Names of the network's machines, without a final dot, lower case.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Names {
    /// `web.shop`, and `shop` where that is a machine.
    pub machines: BTreeMap<String, Ipv4Addr>,
    /// The second label of each guest's own name: with `shop`, it finds `web.shop` as `web`.
    pub domains: BTreeMap<Ipv4Addr, String>,
    /// The names in other networks of guests that are on some.
    pub beyond: BTreeMap<Ipv4Addr, BTreeMap<String, Ipv4Addr>>,
    /// The node's part of the machines' addresses of IPv6. `None`: they have none.
    pub six: Option<Ula>,
    /// The network has no way out: nobody else is asked.
    pub alone: bool,
    /// It goes on on other nodes.
    pub across: Option<Across>,
}

/// Where else the network is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Across {
    /// Who asks from elsewhere is another node's gateway: it is told the machines here, and nothing else.
    pub subnet: Cidr,
    /// The machines of other nodes as `db.shop`, and the subnet of its node, whose gateway knows its address.
    pub machines: BTreeMap<String, Cidr>,
    /// The deployment, which all of the network's machines are of, everywhere.
    pub domain: String,
}

/// Whose a name is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    Machine(Ipv4Addr),
    /// A machine on another node: the subnet there, whose gateway knows its address by this name.
    Across {
        subnet: Cidr,
        name: String,
    },
    /// A name of the network's that no machine has.
    Nobody,
    /// The world's.
    Elsewhere,
}

impl Names {
    /// What a guest means by a name: a machine of its own domain, here or on another node, else one of the network. Names of one label
    /// and those below [`OWN_SUFFIX`] are never asked for elsewhere: a machine that is stopped does not turn
    /// into a stranger's. Those of two labels are, or a deployment called `dev` would hide the world's `dev`.
    pub fn find(&self, guest: IpAddr, name: &str) -> Found {
        let (short, own) = match name.rsplit_once('.') {
            Some((short, OWN_SUFFIX)) => (short, true),
            Some(_) => (name, false),
            None => (name, !name.is_empty()),
        };
        let (domain, beyond) = match guest {
            IpAddr::V4(guest) => (self.domains.get(&guest), self.beyond.get(&guest)),
            IpAddr::V6(_) => (None, None),
        };
        // Its own deployment's in any of its networks, before those of others.
        let known = [Some(&self.machines), beyond];
        let known = || known.iter().flatten();
        let full = domain.map(|domain| format!("{short}.{domain}"));
        let full = full.as_deref();
        let beside = full.and_then(|full| known().find_map(|names| names.get(full)));
        if let Some(address) = beside {
            return Found::Machine(*address);
        }
        if let Some((subnet, name)) = self.beyond_this_node(guest, short) {
            return Found::Across { subnet, name };
        }
        match known().find_map(|names| names.get(short)) {
            Some(address) => Found::Machine(*address),
            None if own || self.alone || self.is_of_a_peer(guest) => Found::Nobody,
            None => Found::Elsewhere,
        }
    }
}

impl Names {
    fn is_of_a_peer(&self, asker: IpAddr) -> bool {
        let IpAddr::V4(asker) = asker else {
            return false;
        };
        let across = self.across.as_ref();
        across.is_some_and(|across| !across.subnet.contains(asker))
    }

    /// A machine on another node that a guest here means: its full name, and the subnet that it is in.
    /// `short`: without the suffix of names that are never the world's.
    fn beyond_this_node(&self, guest: IpAddr, short: &str) -> Option<(Cidr, String)> {
        let across = self.across.as_ref().filter(|_| !self.is_of_a_peer(guest))?;
        let full = match short.contains('.') {
            true => short.to_owned(),
            false => format!("{short}.{}", across.domain),
        };
        let subnet = *across.machines.get(&full)?;
        Some((subnet, format!("{full}.{OWN_SUFFIX}")))
    }
}

/// Longest query: a question and an OPT record are far below.
const QUERY_MAX: usize = 4096;
/// Longest reply over UDP: what resolvers agreed on is 1232, some still send 4096.
const UDP_REPLY_MAX: usize = 4096;
/// UDP queries under way at once; more are dropped, as in any busy network, and asked again by who sent them.
const QUERIES_MAX: usize = 256;
/// TCP connections of guests at once; more are closed.
const CONNECTIONS_MAX: usize = 32;
/// One guest has at most this part of both: a busy one has a dozen queries under way, and seven of them leave room for others.
const SHARES: usize = 8;
/// Queries on one connection before it is closed.
const CONNECTION_QUERIES_MAX: usize = 128;
/// How long one upstream server has. Guests commonly repeat after 5 s: a second server fits before.
const UPSTREAM_TIME: Duration = Duration::from_millis(2400);
/// Upstream servers that are asked in turn.
const UPSTREAMS_MAX: usize = 3;
/// Packets on an upstream socket that are no reply to the query, before it is given up.
const STRAY_MAX: usize = 16;
/// How long a guest's connection may be silent, or slow in taking a reply.
const IDLE_TIME: Duration = Duration::from_secs(10);
/// Pause after a connection or a packet could not be taken: what is short (descriptors, memory) comes back, and without
/// a pause what waits would keep the forwarder busy. Guests ask again.
const TAKE_PAUSE: Duration = Duration::from_secs(1);

/// What every query needs to be answered.
#[derive(Debug, Clone)]
struct Knowledge {
    upstreams: watch::Receiver<Vec<SocketAddr>>,
    names: watch::Receiver<Names>,
    udp: Arc<UdpSocket>,
    peers: Arc<Peers>,
}

/// Answers until `names` or `upstreams` has no sender any more, whatever becomes of single packets. Within a tokio
/// runtime. Upstream servers are asked from the namespace of the thread that runs this.
pub async fn forward(
    sockets: Sockets,
    mut upstreams: watch::Receiver<Vec<SocketAddr>>,
    mut names: watch::Receiver<Names>,
) -> Result<(), Error> {
    let failed = |source| Error::io("serve DNS to guests")(source);
    let udp = Arc::new(UdpSocket::from_std(sockets.udp).map_err(failed)?);
    let tcp = TcpListener::from_std(sockets.tcp).map_err(failed)?;
    let knowledge = Knowledge {
        upstreams: upstreams.clone(),
        names: names.clone(),
        udp: udp.clone(),
        peers: Arc::default(),
    };
    let mut queries = UnderWay::new(QUERIES_MAX);
    let mut connections = UnderWay::new(CONNECTIONS_MAX);
    let mut buffer = [0; QUERY_MAX];
    let (mut paused_until, mut deaf_until) = (None, None);
    loop {
        tokio::select! {
            changed = names.changed() => if changed.is_err() { return Ok(()) },
            changed = upstreams.changed() => if changed.is_err() { return Ok(()) },
            Some(ended) = queries.tasks.join_next() => queries.ended(ended),
            Some(ended) = connections.tasks.join_next() => connections.ended(ended),
            received = udp.recv_from(&mut buffer), if deaf_until.is_none() => match received {
                // However busy guests are: what comes here ends questions.
                Ok((length, from)) if knowledge.peers.hear(from, &buffer[..length]) => {}
                Ok((length, guest)) => {
                    let query = Query::parse(&buffer[..length]);
                    queries.begin(guest.ip(), answer(query, guest, knowledge.clone()));
                }
                Err(error) => {
                    log::warn!("take a guest's DNS query: {error}; tried again in {TAKE_PAUSE:?}");
                    deaf_until = Some(Instant::now() + TAKE_PAUSE);
                }
            },
            () = pause(deaf_until), if deaf_until.is_some() => deaf_until = None,
            () = pause(paused_until), if paused_until.is_some() => paused_until = None,
            accepted = tcp.accept(), if paused_until.is_none() => match accepted {
                Ok((stream, guest)) => {
                    connections.begin(guest.ip(), serve(stream, guest.ip(), knowledge.clone()));
                }
                Err(error) if error.kind() == ErrorKind::ConnectionAborted => {}
                Err(error) => {
                    log::warn!("take a guest's DNS connection: {error}; tried again in {TAKE_PAUSE:?}");
                    paused_until = Some(Instant::now() + TAKE_PAUSE);
                }
            },
        }
    }
}

/// Tasks for guests, each of which ends with whose it was. Nobody has more than a share.
#[derive(Debug)]
struct UnderWay {
    tasks: JoinSet<IpAddr>,
    of: BTreeMap<IpAddr, usize>,
    most: usize,
}

impl UnderWay {
    fn new(most: usize) -> Self {
        Self {
            tasks: JoinSet::new(),
            of: BTreeMap::new(),
            most,
        }
    }

    /// Begins it, or drops it where too many are under way.
    fn begin(&mut self, guest: IpAddr, task: impl Future<Output = ()> + Send + 'static) {
        let own = self.of.get(&guest).copied().unwrap_or(0);
        if own >= self.most / SHARES || self.tasks.len() >= self.most {
            return;
        }
        self.of.insert(guest, own + 1);
        self.tasks.spawn(async move {
            task.await;
            guest
        });
    }

    fn ended(&mut self, ended: Result<IpAddr, JoinError>) {
        let Ok(guest) = ended else {
            // A defect of ours, whose guest is not known: all are counted anew, at worst too few.
            return self.of.clear();
        };
        if let Some(count) = self.of.get_mut(&guest) {
            *count = count.saturating_sub(1);
        }
        self.of.retain(|_, count| *count > 0);
    }
}

/// A query that came in a packet.
async fn answer(query: Result<Query, Flaw>, guest: SocketAddr, knowledge: Knowledge) {
    if let Some(reply) = knowledge.reply(guest.ip(), query, Transport::Udp).await {
        // A guest that is gone needs no reply.
        let _ = knowledge.udp.send_to(&reply, guest).await;
    }
}

/// Until the instant; at once where there is none.
async fn pause(until: Option<Instant>) {
    if let Some(until) = until {
        tokio::time::sleep_until(until).await;
    }
}

/// One connection of a guest, to its end.
async fn serve(mut stream: TcpStream, guest: IpAddr, knowledge: Knowledge) {
    for _ in 0..CONNECTION_QUERIES_MAX {
        let Ok(Ok(query)) = timeout(IDLE_TIME, read(&mut stream, QUERY_MAX)).await else {
            return;
        };
        let query = Query::parse(&query);
        let Some(reply) = knowledge.reply(guest, query, Transport::Tcp).await else {
            return;
        };
        match timeout(IDLE_TIME, write(&mut stream, &reply)).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) | Err(_) => return,
        }
    }
}

/// A message behind its length (RFC 1035 section 4.2.2).
async fn read(stream: &mut TcpStream, max: usize) -> io::Result<Vec<u8>> {
    let length = usize::from(stream.read_u16().await?);
    if length > max {
        return Err(ErrorKind::InvalidData.into());
    }
    let mut message = vec![0; length];
    stream.read_exact(&mut message).await?;
    Ok(message)
}

async fn write(stream: &mut TcpStream, message: &[u8]) -> io::Result<()> {
    let length = u16::try_from(message.len()).map_err(|_| ErrorKind::InvalidData)?;
    let mut packet = length.to_be_bytes().to_vec();
    packet.extend_from_slice(message);
    stream.write_all(&packet).await
}

#[derive(Debug, Clone, Copy)]
enum Transport {
    Udp,
    Tcp,
}

impl Knowledge {
    /// What the guest is answered; `None` = nothing.
    async fn reply(
        &self,
        guest: IpAddr,
        query: Result<Query, Flaw>,
        transport: Transport,
    ) -> Option<Vec<u8>> {
        let query = match query {
            Ok(query) => query,
            Err(Flaw::Silence) => return None,
            Err(Flaw::Answer(answer)) => return Some(answer),
        };
        let (found, six) = {
            let names = self.names.borrow();
            (names.find(guest, &query.name), names.six)
        };
        match found {
            Found::Machine(address) => {
                let six = six.and_then(|node| address6(node, address));
                return Some(query.answer(address, six.map(|six| six.address)));
            }
            Found::Across { subnet, name } => {
                let said = self.peers.find(&self.udp, subnet, &name).await;
                return Some(match said {
                    // Of IPv6 there is nothing between nodes.
                    Said::At(address) => query.answer(address, None),
                    Said::Nobody => query.refuse(Code::NameError),
                    Said::Nothing => query.refuse(Code::ServerFailure),
                });
            }
            Found::Nobody => return Some(query.refuse(Code::NameError)),
            Found::Elsewhere => {}
        }
        let upstreams = self.upstreams.borrow().clone();
        for upstream in upstreams.into_iter().take(UPSTREAMS_MAX) {
            let relayed = timeout(UPSTREAM_TIME, relay(&query, upstream, transport)).await;
            if let Ok(Ok(reply)) = relayed {
                return Some(reply);
            }
        }
        Some(query.refuse(Code::ServerFailure))
    }
}

/// Asks one upstream server, with an id and from a port that the guest did not choose.
async fn relay(query: &Query, upstream: SocketAddr, transport: Transport) -> io::Result<Vec<u8>> {
    let [a, b, ..] = getrandom::u32()?.to_be_bytes();
    let id = u16::from_be_bytes([a, b]);
    let request = query.with_id(id);
    match transport {
        Transport::Tcp => {
            let mut stream = TcpStream::connect(upstream).await?;
            write(&mut stream, &request).await?;
            let reply = read(&mut stream, u16::MAX.into()).await?;
            query
                .accept(id, reply)
                .ok_or_else(|| ErrorKind::InvalidData.into())
        }
        Transport::Udp => {
            let any: SocketAddr = match upstream {
                SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
                SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
            };
            let socket = UdpSocket::bind(any).await?;
            // Connected: the kernel passes only what comes from that address and port.
            socket.connect(upstream).await?;
            socket.send(&request).await?;
            let mut buffer = vec![0; UDP_REPLY_MAX];
            for _ in 0..STRAY_MAX {
                let length = socket.recv(&mut buffer).await?;
                if let Some(reply) = query.accept(id, buffer[..length].to_vec()) {
                    return Ok(reply);
                }
            }
            Err(ErrorKind::InvalidData.into())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::message::tests::query;
    use super::*;
    use crate::scratch::on_a_runtime;

    const A: u16 = 1;

    /// Sockets as `network::dns_sockets` makes them, on loopback; and their addresses.
    fn sockets() -> (Sockets, SocketAddr, SocketAddr) {
        let udp = std::net::UdpSocket::bind("127.0.0.1:0").expect("a socket");
        let tcp = std::net::TcpListener::bind("127.0.0.1:0").expect("a socket");
        udp.set_nonblocking(true).expect("non-blocking");
        tcp.set_nonblocking(true).expect("non-blocking");
        let (at_udp, at_tcp) = (
            udp.local_addr().expect("an address"),
            tcp.local_addr().expect("an address"),
        );
        (Sockets { udp, tcp }, at_udp, at_tcp)
    }

    async fn ask(at: SocketAddr, message: &[u8]) -> Vec<u8> {
        let socket = UdpSocket::bind("127.0.0.1:0").await.expect("a socket");
        socket.connect(at).await.expect("connected");
        socket.send(message).await.expect("sent");
        let mut buffer = vec![0; UDP_REPLY_MAX];
        let wait = timeout(Duration::from_secs(20), socket.recv(&mut buffer));
        let length = wait.await.expect("an answer in time").expect("an answer");
        buffer.truncate(length);
        buffer
    }

    #[test]
    fn a_guest_finds_its_neighbours_by_short_names_and_others_by_their_deployments() {
        let [web, db, blog, stranger] = [2, 3, 4, 9].map(|n| Ipv4Addr::new(10, 128, 0, n));
        let machines = [
            ("web.shop", web),
            ("db.shop", db),
            ("main.blog", blog),
            ("blog", blog),
            ("main.db", stranger),
            ("db", stranger),
        ];
        let names = Names {
            machines: machines.map(|(name, at)| (name.to_owned(), at)).into(),
            domains: [
                (web, "shop"),
                (db, "shop"),
                (blog, "blog"),
                (stranger, "db"),
            ]
            .map(|(at, domain)| (at, domain.to_owned()))
            .into(),
            ..Names::default()
        };
        use Found::{Elsewhere, Machine, Nobody};
        for (guest, name, found) in [
            (web, "db", Machine(db)),
            (web, "web", Machine(web)),
            (web, "db.shop", Machine(db)),
            (web, "db.internal", Machine(db)),
            (web, "main.db", Machine(stranger)),
            (web, "blog", Machine(blog)),
            (blog, "blog", Machine(blog)),
            (blog, "main", Machine(blog)),
            (blog, "db", Machine(stranger)),
            (blog, "db.shop", Machine(db)),
            (blog, "db.shop.internal", Machine(db)),
            (blog, "web", Nobody),
            (blog, "cache.shop.internal", Nobody),
            (blog, "a.db.shop.internal", Nobody),
            (blog, "internal", Nobody),
            (blog, "example.org", Elsewhere),
            (blog, "cache.shop", Elsewhere),
            (blog, "a.db.shop", Elsewhere),
            (blog, "", Elsewhere),
        ] {
            assert_eq!(names.find(guest.into(), name), found, "{name} for {guest}");
        }
    }

    #[test]
    fn machines_are_answered_for_and_the_rest_is_relayed() {
        on_a_runtime(async {
            let (sockets, udp, tcp) = sockets();
            let (dead, live) = (
                UdpSocket::bind("127.0.0.1:0").await.expect("a socket"),
                UdpSocket::bind("127.0.0.1:0").await.expect("a socket"),
            );
            let address = |socket: &UdpSocket| socket.local_addr().expect("an address");
            let (to, upstreams) = watch::channel(vec![address(&dead), address(&live)]);
            let web = ("web.shop".to_owned(), Ipv4Addr::new(10, 128, 0, 2));
            let names = Names {
                machines: [web].into(),
                domains: [(Ipv4Addr::LOCALHOST, "shop".to_owned())].into(),
                ..Names::default()
            };
            let (names_to, names) = watch::channel(names);
            let upstream = async {
                let mut buffer = [0; 512];
                let (length, from) = live.recv_from(&mut buffer).await.expect("a query");
                let mut reply = buffer[..length].to_vec();
                reply[2] |= 0x80;
                let mut forged = reply.clone();
                forged[0] ^= 1;
                live.send_to(&forged, from).await.expect("sent");
                reply[3] = 5; // A code of the upstream's own.
                live.send_to(&reply, from).await.expect("sent");
            };
            let guest = async {
                let answer = ask(udp, &query(7, "WEB", A)).await;
                assert_eq!(answer[answer.len() - 4..], [10, 128, 0, 2]);
                let answer = ask(udp, &query(8, "database", A)).await;
                assert_eq!((answer[1], answer[3] & 0xf), (8, Code::NameError as u8));
                let answer = ask(udp, &query(9, "example.org", A)).await;
                assert_eq!((answer[1], answer[3] & 0xf), (9, 5));
                let mut stream = TcpStream::connect(tcp).await.expect("connected");
                write(&mut stream, &query(10, "web", A))
                    .await
                    .expect("sent");
                let answer = read(&mut stream, 512).await.expect("an answer");
                assert_eq!(answer[answer.len() - 4..], [10, 128, 0, 2]);
                to.send_replace(Vec::new());
                let answer = ask(udp, &query(11, "example.org", A)).await;
                assert_eq!(
                    (answer[1], answer[3] & 0xf),
                    (11, Code::ServerFailure as u8)
                );
                names_to.send_replace(Names::default());
                let answer = ask(udp, &query(12, "web", A)).await;
                assert_eq!(answer[3] & 0xf, Code::NameError as u8);
                drop(names_to);
            };
            let (ended, (), ()) = tokio::join!(forward(sockets, upstreams, names), upstream, guest);
            ended.expect("it ends well when nobody tells it more");
        });
    }

    #[test]
    fn one_guest_that_asks_much_takes_nobody_elses_room() {
        on_a_runtime(async {
            let [greedy, other] = [2, 3].map(|n| IpAddr::from([10, 128, 0, n]));
            let (end, ends) = watch::channel(());
            let mut all = UnderWay::new(QUERIES_MAX);
            let wait = || {
                let mut ends = ends.clone();
                async move { drop(ends.changed().await) }
            };
            (0..QUERIES_MAX).for_each(|_| all.begin(greedy, wait()));
            assert_eq!(all.tasks.len(), QUERIES_MAX / SHARES);
            all.begin(other, wait());
            assert_eq!(all.of[&other], 1);
            drop(end);
            while let Some(ended) = all.tasks.join_next().await {
                all.ended(ended);
            }
            assert!(all.of.is_empty());
            all.begin(greedy, wait());
            assert_eq!(all.of[&greedy], 1, "there is room again");
        });
    }

    #[test]
    fn a_name_on_another_node_is_asked_of_that_node_alone_and_its_silence_is_no_answer() {
        let guest = Ipv4Addr::new(10, 200, 1, 2);
        let subnet = |text: &str| text.parse::<Cidr>().expect("a subnet");
        let (own, there) = (subnet("10.200.1.0/24"), subnet("10.200.2.0/24"));
        let names = Names {
            across: Some(Across {
                subnet: own,
                machines: [("db.shop".to_owned(), there)].into(),
                domain: "shop".to_owned(),
            }),
            ..Names::default()
        };
        let across = Found::Across {
            subnet: there,
            name: "db.shop.internal".to_owned(),
        };
        for (name, found) in [
            ("db", across.clone()),
            ("db.shop", across.clone()),
            ("db.internal", across.clone()),
            ("web", Found::Nobody),
            ("db.blog", Found::Elsewhere),
            ("a.db.shop", Found::Elsewhere),
            ("", Found::Elsewhere),
        ] {
            assert_eq!(names.find(guest.into(), name), found, "{name}");
        }
        let peer = IpAddr::from([10, 200, 2, 1]);
        for name in ["db", "db.shop.internal", "example.org"] {
            let found = names.find(peer, name);
            assert_eq!(
                found,
                Found::Nobody,
                "no circles, and nothing of the world: {name}"
            );
        }
        on_a_runtime(async {
            let (sockets, udp, _) = sockets();
            let loopback = subnet("127.0.0.0/24");
            let mut names = names;
            // The guest of this test is on loopback.
            names.across.as_mut().expect("it is across").subnet = loopback;
            let (names_to, names) = watch::channel(names);
            let (_to, upstreams) = watch::channel(Vec::new());
            let guest = async {
                let answer = ask(udp, &query(7, "db", A)).await;
                assert_eq!(answer[3] & 0xf, Code::ServerFailure as u8);
                drop(names_to);
            };
            let (ended, ()) = tokio::join!(forward(sockets, upstreams, names), guest);
            ended.expect("it goes on");
        });
    }

    #[test]
    fn a_deployments_own_machine_on_another_node_comes_before_a_strangers_of_that_name_here() {
        let guest = Ipv4Addr::new(10, 200, 1, 2);
        let stranger = Ipv4Addr::new(10, 128, 9, 2);
        let there = "10.200.2.0/24".parse::<Cidr>().expect("a subnet");
        let names = Names {
            domains: [(guest, "shop".to_owned())].into(),
            beyond: [(guest, [("db".to_owned(), stranger)].into())].into(),
            across: Some(Across {
                subnet: "10.200.1.0/24".parse().expect("a subnet"),
                machines: [("db.shop".to_owned(), there)].into(),
                domain: "shop".to_owned(),
            }),
            ..Names::default()
        };
        let found = names.find(guest.into(), "db");
        assert!(
            matches!(found, Found::Across { subnet, .. } if subnet == there),
            "{found:?}"
        );
    }

    #[test]
    fn a_guest_is_answered_while_no_connection_can_be_taken() {
        on_a_runtime(async {
            let (mut sockets, udp, _) = sockets();
            // Nobody listens on it, so every accept is refused.
            let deaf = tokio::net::TcpSocket::new_v4().expect("a socket");
            let any = "127.0.0.1:0".parse().expect("an address");
            deaf.bind(any).expect("bound");
            let deaf = std::os::fd::AsFd::as_fd(&deaf).try_clone_to_owned();
            sockets.tcp = deaf.expect("a copy").into();
            let (_to, upstreams) = watch::channel(Vec::new());
            let web = ("web".to_owned(), Ipv4Addr::new(10, 128, 0, 2));
            let names = Names {
                machines: [web].into(),
                ..Names::default()
            };
            let (names_to, names) = watch::channel(names);
            let guest = async {
                for id in [7, 8] {
                    let answer = ask(udp, &query(id, "web", A)).await;
                    assert_eq!(answer[answer.len() - 4..], [10, 128, 0, 2]);
                    tokio::time::sleep(TAKE_PAUSE / 4).await;
                }
                drop(names_to);
            };
            let (ended, ()) = tokio::join!(forward(sockets, upstreams, names), guest);
            ended.expect("a refused accept does not end it");
        });
    }

    #[test]
    fn a_packet_that_cannot_be_taken_does_not_end_it() {
        on_a_runtime(async {
            let (sockets, udp, _) = sockets();
            let guest = UdpSocket::bind("127.0.0.1:0").await.expect("a socket");
            let address = guest.local_addr().expect("an address");
            // Bound to one guest, the socket hears that its guest is gone, as an error of its next receive.
            sockets.udp.connect(address).expect("connected");
            let (_to, upstreams) = watch::channel(Vec::new());
            let web = ("web".to_owned(), Ipv4Addr::new(10, 128, 0, 2));
            let names = Names {
                machines: [web].into(),
                ..Names::default()
            };
            let (names_to, names) = watch::channel(names);
            let guest = async {
                guest.send_to(&query(7, "web", A), udp).await.expect("sent");
                drop(guest);
                tokio::time::sleep(TAKE_PAUSE / 4).await;
                let guest = UdpSocket::bind(address).await.expect("the same again");
                guest.send_to(&query(8, "web", A), udp).await.expect("sent");
                let mut buffer = [0; 512];
                let wait = timeout(Duration::from_secs(20), guest.recv(&mut buffer));
                let length = wait.await.expect("in time").expect("an answer");
                assert_eq!(
                    (buffer[1], &buffer[length - 4..length]),
                    (8, &[10, 128, 0, 2][..])
                );
                drop(names_to);
            };
            let (ended, ()) = tokio::join!(forward(sockets, upstreams, names), guest);
            ended.expect("it goes on");
        });
    }
}
