//! The proxy between real sockets: clients and machines are threads of the test, and sockets "of a network" are of loopback.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddrV4, TcpListener as Machine, TcpStream as Caller};
use std::sync::mpsc::{Receiver, Sender, channel};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use tokio::sync::mpsc::unbounded_channel;
use types::ingress::HealthCheck;

use super::*;
use crate::wire::{Place, SOCKETS_MAX};

const NETWORK: &str = "tenant1";
/// How long what must come may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// A proxy on a thread of its own.
struct Proxy {
    clear: u16,
    tls: u16,
    configure: Sender<(Vec<SiteConfig>, Sender<()>)>,
}

impl Proxy {
    fn new() -> Self {
        let (configure, configured) = channel::<(Vec<SiteConfig>, Sender<()>)>();
        let (ports, found) = channel();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build();
            runtime.expect("a runtime").block_on(run(configured, ports));
        });
        let (clear, tls) = found.recv().expect("ports");
        Self {
            clear,
            tls,
            configure,
        }
    }

    /// Returns when it is so.
    fn serves(&self, sites: Vec<SiteConfig>) {
        let (done, heard) = channel();
        self.configure.send((sites, done)).expect("it runs");
        heard.recv().expect("it is applied");
    }

    fn call(&self) -> Caller {
        let caller = Caller::connect(("127.0.0.1", self.clear)).expect("connected");
        caller.set_read_timeout(Some(PATIENCE)).expect("set");
        caller
    }

    fn ask(&self, request: &str) -> String {
        let mut caller = self.call();
        caller.write_all(request.as_bytes()).expect("asked");
        let mut answer = String::new();
        caller.read_to_string(&mut answer).expect("answered");
        answer
    }

    fn get(&self, host: &str, path: &str) -> String {
        self.ask(&format!(
            "GET {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n"
        ))
    }
}

async fn run(configured: Receiver<(Vec<SiteConfig>, Sender<()>)>, ports: Sender<(u16, u16)>) {
    let (need, mut needed) = unbounded_channel();
    let stock = Arc::new(Stock::new(need));
    let ingress = Ingress::new(stock.clone());
    let bind = || std::net::TcpListener::bind("127.0.0.1:0").expect("bound");
    let (clear, tls) = (bind(), bind());
    let port = |listener: &std::net::TcpListener| listener.local_addr().expect("an address").port();
    ports.send((port(&clear), port(&tls))).expect("heard");
    tokio::spawn(
        ingress
            .clone()
            .accept(listener(clear.into()).expect("taken"), false),
    );
    tokio::spawn(
        ingress
            .clone()
            .accept(listener(tls.into()).expect("taken"), true),
    );
    let (tell, mut told) = unbounded_channel();
    std::thread::spawn(move || {
        configured
            .into_iter()
            .try_for_each(|config| tell.send(config))
    });
    loop {
        tokio::select! {
            network = needed.recv() => {
                let network = network.expect("it runs");
                let make = || socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None);
                let sockets = (0..SOCKETS_MAX).map(|_| make().expect("a socket")).collect();
                stock.put(&network, sockets);
            }
            config = told.recv() => {
                let Some((sites, done)) = config else { return };
                ingress.apply(sites);
                done.send(()).expect("heard");
            }
        }
    }
}

fn site(host: &str, backends: &[(&str, u16)]) -> SiteConfig {
    let place = |(name, port): &(&str, u16)| {
        let address = SocketAddrV4::new([127, 0, 0, 1].into(), *port);
        let network = NETWORK.to_owned();
        ((*name).to_owned(), Place { network, address })
    };
    SiteConfig {
        host: host.parse().expect("a host"),
        whose: "shop".to_owned(),
        tls: None,
        routes: vec![(
            "/".to_owned(),
            backends
                .iter()
                .map(|(name, _)| (*name).to_owned())
                .collect(),
        )],
        backends: backends.iter().map(place).collect(),
        health: HealthCheck::default(),
        proofs: BTreeMap::new(),
    }
}

/// A port at which nobody listens.
fn nobody() -> u16 {
    let machine = Machine::bind("127.0.0.1:0").expect("bound");
    machine.local_addr().expect("an address").port()
}

/// A machine that answers each connection so.
fn machine(answer: impl Fn(Caller) + Send + Sync + 'static) -> u16 {
    let machine = Machine::bind("127.0.0.1:0").expect("bound");
    let port = machine.local_addr().expect("an address").port();
    let answer = Arc::new(answer);
    std::thread::spawn(move || {
        for caller in machine.incoming().flatten() {
            let answer = answer.clone();
            std::thread::spawn(move || answer(caller));
        }
    });
    port
}

/// Of one request; empty where the connection ends before one.
fn head(reader: &mut impl BufRead) -> String {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if reader.read_line(&mut head).unwrap_or(0) == 0 {
            return String::new();
        }
    }
    head
}

/// One that says what it has been asked, with the body in the length that it was told or in chunks as they came.
fn mirror() -> u16 {
    machine(|mut caller| {
        let mut reader = BufReader::new(caller.try_clone().expect("a copy"));
        loop {
            let head = head(&mut reader);
            if head.is_empty() {
                return;
            }
            let mut body = Vec::new();
            if let Some(length) = head.split("content-length: ").nth(1) {
                let length = length
                    .lines()
                    .next()
                    .and_then(|l| l.parse().ok())
                    .expect("a number");
                body.resize(length, 0);
                reader.read_exact(&mut body).expect("a body");
            } else if head.contains("transfer-encoding: chunked") {
                while !body.ends_with(b"0\r\n\r\n") {
                    let mut byte = [0];
                    reader.read_exact(&mut byte).expect("a chunk");
                    body.extend(byte);
                }
            }
            let said = format!("{head}{}", String::from_utf8_lossy(&body));
            let answer = format!(
                "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{said}",
                said.len()
            );
            if caller.write_all(answer.as_bytes()).is_err() {
                return;
            }
        }
    })
}

#[test]
fn a_request_has_one_length_whatever_the_client_says() {
    let proxy = Proxy::new();
    proxy.serves(vec![site("a.test", &[("web:1", mirror())])]);
    let post = |more: &str| {
        proxy.ask(&format!(
            "POST / HTTP/1.1\r\nhost: a.test\r\nconnection: close\r\n{more}"
        ))
    };
    let answer = post("content-length: 5\r\n\r\nhello");
    assert!(
        answer.contains("content-length: 5\r\n") && answer.ends_with("hello"),
        "{answer}"
    );
    // A machine that believed the length would take the rest for a request of its own.
    let smuggled = "5\r\nhello\r\n0\r\n\r\n";
    let answer = post(&format!(
        "content-length: 4\r\ntransfer-encoding: chunked\r\n\r\n{smuggled}"
    ));
    let whole = answer.starts_with("HTTP/1.1 200") && answer.contains("hello");
    let passed = whole && !answer.contains("content-length: 4\r\n");
    assert!(answer.starts_with("HTTP/1.1 400") || passed, "{answer}");
    let answer = post("content-length: 5\r\ncontent-length: 6\r\n\r\nhello!");
    assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
    let answer =
        proxy.ask("GET / HTTP/1.1\r\nhost: a.test\r\nhost: b.test\r\nconnection: close\r\n\r\n");
    assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
}

#[test]
fn whoever_has_nobody_behind_it_says_so_and_one_of_two_is_enough() {
    let proxy = Proxy::new();
    let broken = machine(|caller| {
        let _ = head(&mut BufReader::new(caller));
    });
    proxy.serves(vec![
        site("none.test", &[("web:1", nobody())]),
        site("one.test", &[("a:1", nobody()), ("b:1", mirror())]),
        site("broken.test", &[("a:1", broken)]),
    ]);
    let answer = proxy.get("none.test", "/");
    assert!(
        answer.starts_with("HTTP/1.1 503") && answer.contains("retry-after"),
        "{answer}"
    );
    for _ in 0..8 {
        let answer = proxy.get("one.test", "/");
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
    let post =
        "POST / HTTP/1.1\r\nhost: broken.test\r\ncontent-length: 2\r\nconnection: close\r\n\r\nhi";
    assert!(proxy.ask(post).starts_with("HTTP/1.1 502"));
    assert!(proxy.get("other.test", "/").starts_with("HTTP/1.1 404"));
}

/// A machine that takes one request, says nothing, and can be reached by nobody from then on.
fn gone_with_a_request() -> u16 {
    let machine = Machine::bind("127.0.0.1:0").expect("bound");
    let port = machine.local_addr().expect("an address").port();
    std::thread::spawn(move || {
        loop {
            let (mut caller, _) = machine.accept().expect("a caller");
            // A health check closes without a word.
            if caller.read(&mut [0; 1024]).is_ok_and(|length| length > 0) {
                drop(machine);
                let _ = caller.read_to_end(&mut Vec::new());
                return;
            }
        }
    });
    port
}

#[test]
fn a_request_that_waits_for_a_machine_that_is_gone_is_answered_by_another() {
    let proxy = Proxy::new();
    let health = HealthCheck {
        path: None,
        interval_s: 1,
    };
    let both = SiteConfig {
        health,
        ..site(
            "a.test",
            &[("gone", gone_with_a_request()), ("web", mirror())],
        )
    };
    proxy.serves(vec![both]);
    // Each machine has one of the two.
    std::thread::scope(|scope| {
        let ask = || scope.spawn(|| proxy.get("a.test", "/"));
        for answer in [ask(), ask()].map(|asked| asked.join().expect("answered")) {
            assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        }
    });
}

#[test]
fn a_change_is_there_at_the_next_request_of_the_same_connection_and_ends_nothing_under_way() {
    let proxy = Proxy::new();
    let (go_on, wait) = channel::<()>();
    let wait = Mutex::new(wait);
    let slow = machine(move |mut caller| {
        let asked = head(&mut BufReader::new(caller.try_clone().expect("a copy")));
        if asked.is_empty() {
            return;
        }
        caller
            .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\none")
            .expect("said");
        lock(&wait).recv().expect("told");
        caller.write_all(b"two").expect("said");
    });
    proxy.serves(vec![site("a.test", &[("web:1", slow)])]);
    let mut caller = proxy.call();
    let request = b"GET / HTTP/1.1\r\nhost: a.test\r\n\r\n";
    caller.write_all(request).expect("asked");
    let mut reader = BufReader::new(caller.try_clone().expect("a copy"));
    assert!(head(&mut reader).starts_with("HTTP/1.1 200"));
    let mut body = [0; 3];
    reader.read_exact(&mut body).expect("the first half");
    proxy.serves(vec![site("b.test", &[("web:1", mirror())])]);
    go_on.send(()).expect("it waits");
    reader.read_exact(&mut body).expect("the second half");
    assert_eq!(&body, b"two");
    caller.write_all(request).expect("asked again");
    assert!(head(&mut reader).starts_with("HTTP/1.1 404"));
    assert!(proxy.get("b.test", "/").starts_with("HTTP/1.1 200"));
}

#[test]
fn tls_that_is_passed_through_reaches_its_machine_byte_by_byte() {
    let proxy = Proxy::new();
    let (said, heard) = channel();
    let said = Mutex::new(said);
    let own = machine(move |mut caller| {
        let mut first = vec![0; 8];
        if caller.read_exact(&mut first).is_ok() {
            lock(&said).send(first).expect("heard");
            caller.write_all(b"mine").expect("said");
        }
    });
    let mut raw = site("raw.test", &[("web:1", own)]);
    raw.tls = Some(TlsConfig::Passthrough);
    proxy.serves(vec![raw]);
    let call = |name: &str| {
        let hello = hello::tests::hello(name);
        let mut caller = Caller::connect(("127.0.0.1", proxy.tls)).expect("connected");
        caller.set_read_timeout(Some(PATIENCE)).expect("set");
        caller.write_all(&hello).expect("said");
        let mut back = Vec::new();
        caller.take(8).read_to_end(&mut back).expect("an answer");
        (hello, back)
    };
    let (hello, back) = call("raw.test");
    assert_eq!(back, b"mine");
    assert_eq!(heard.recv().expect("heard"), hello[..8]);
    assert_eq!(call("other.test").1, UNRECOGNISED_NAME);
}

#[test]
fn an_authority_is_answered_in_the_clear_under_the_name_and_the_token_that_it_asks_for_and_nobody_else_is()
 {
    let proxy = Proxy::new();
    let mut own = site("own.test", &[("web:1", mirror())]);
    let why = "it is not there yet".to_owned();
    own.tls = Some(TlsConfig::Broken { why });
    own.proofs = [("t0k-en_".to_owned(), "t0k-en_.proof".to_owned())].into();
    let mut clear = site("clear.test", &[("web:1", mirror())]);
    clear
        .proofs
        .insert("mine".to_owned(), "mine.proof".to_owned());
    proxy.serves(vec![own.clone(), clear]);
    let answer = proxy.get("own.test", "/.well-known/acme-challenge/t0k-en_");
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(answer.ends_with("\r\n\r\nt0k-en_.proof"), "{answer}");
    let answer = proxy.ask("HEAD /.well-known/acme-challenge/t0k-en_ HTTP/1.1\r\nhost: own.test\r\nconnection: close\r\n\r\n");
    assert!(
        answer.starts_with("HTTP/1.1 200") && answer.ends_with("\r\n\r\n"),
        "{answer}"
    );
    // Every other path, and every other name, is served as ever.
    for path in [
        "/",
        "/.well-known/acme-challenge/",
        "/.well-known/acme-challenge/t0k-en_/x",
    ] {
        let answer = proxy.get("own.test", path);
        assert!(answer.starts_with("HTTP/1.1 308"), "{path}: {answer}");
    }
    let post = "POST /.well-known/acme-challenge/t0k-en_ HTTP/1.1\r\nhost: own.test\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
    assert!(proxy.ask(post).starts_with("HTTP/1.1 308"));
    let passed = proxy.get("clear.test", "/.well-known/acme-challenge/t0k-en_");
    assert!(
        passed.contains("GET /.well-known/acme-challenge/t0k-en_ "),
        "{passed}"
    );
    let proof = proxy.get("clear.test", "/.well-known/acme-challenge/mine");
    assert!(proof.ends_with("mine.proof"), "{proof}");
    own.proofs.clear();
    proxy.serves(vec![own]);
    let over = proxy.get("own.test", "/.well-known/acme-challenge/t0k-en_");
    assert!(over.starts_with("HTTP/1.1 308"), "{over}");
}

#[test]
fn one_household_begins_so_many_handshakes_and_takes_nobody_elses() {
    let shared = alone().shared;
    let seat = |address: &str| shared.seat(address.parse().expect("an address"));
    let client = seat("2001:db8:1:2::1").expect("a seat");
    let begun = (0..1000).take_while(|_| shared.may_shake_hands(&client));
    assert!((100..1000).contains(&begun.count()));
    let neighbour = seat("2001:db8:1:2:ffff::9").expect("a seat");
    assert!(
        !shared.may_shake_hands(&neighbour),
        "it is the same household"
    );
    let other = seat("2001:db8:1:3::1").expect("a seat");
    assert!(shared.may_shake_hands(&other));
}

fn alone() -> Ingress {
    Ingress::new(Arc::new(Stock::new(unbounded_channel().0)))
}

#[test]
fn one_household_has_so_many_requests_and_takes_nobody_elses() {
    let shared = alone().shared;
    let seat = |address: &str| shared.seat(address.parse().expect("an address"));
    let client = seat("2001:db8:1:2::1").expect("a seat");
    let mut all: Vec<Asking> = (0..REQUESTS_OF_ADDRESS_MAX)
        .map(|_| client.ask().expect("a request"))
        .collect();
    assert!(client.ask().is_none());
    let neighbour = seat("2001:db8:1:2:ffff::9").expect("a seat");
    assert!(neighbour.ask().is_none(), "it is the same household");
    let other = seat("2001:db8:1:3::1").expect("a seat");
    assert!(other.ask().is_some());
    drop(all.pop());
    assert!(neighbour.ask().is_some(), "there is room again");
}

#[test]
fn a_request_keeps_its_connections_seat_until_it_is_over() {
    let shared = alone().shared;
    let address: IpAddr = [192, 0, 2, 7].into();
    let client = shared.seat(address).expect("a seat");
    // As a tunnel has it, when the connection is no client of HTTP any more.
    let tunnel = client.ask().expect("a request");
    drop(client);
    let count = || lock(&shared.clients).get(&address).map(|t| t.connections);
    assert_eq!(
        (count(), shared.connected.load(Ordering::Relaxed)),
        (Some(1), 1)
    );
    drop(tunnel);
    assert_eq!(
        (count(), shared.connected.load(Ordering::Relaxed)),
        (None, 0)
    );
}

#[test]
fn a_connection_is_quiet_when_nothing_has_been_under_way_for_long() {
    let client = alone().shared.seat([192, 0, 2, 7].into()).expect("a seat");
    assert!(!client.seat.is_quiet(), "it has just begun");
    let long_ago = Instant::now().checked_sub(2 * QUIET_MAX);
    *lock(&client.seat.since) = long_ago.expect("this machine has run so long");
    assert!(client.seat.is_quiet());
    let asking = client.ask();
    assert!(!client.seat.is_quiet(), "a request is under way");
    drop(asking);
    assert!(!client.seat.is_quiet(), "one has just ended");
}

#[test]
fn a_name_that_changes_hands_begins_its_counts_anew() {
    let of = |whose: &str| SiteConfig {
        whose: whose.to_owned(),
        ..site("a.b", &[("web:80", nobody())])
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let _entered = runtime.as_ref().expect("a runtime").enter();
    let ingress = alone();
    let counted = |ingress: &Ingress| ingress.statuses()[0].1.answered;
    ingress.apply(vec![of("shop")]);
    let host = "a.b".parse().expect("a host");
    ingress
        .shared
        .site(&host)
        .expect("served")
        .count(StatusCode::OK);
    ingress.apply(vec![of("shop")]);
    assert_eq!(counted(&ingress), [0, 1, 0, 0, 0]);
    ingress.apply(vec![of("thief")]);
    assert_eq!(counted(&ingress), [0; 5]);
}
