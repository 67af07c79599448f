//! The list is proved in a child process each time: it serves a client under the filter and lives, or does one thing more and
//! dies of SIGSYS.

use std::io::{Read, Write};
use std::net::{SocketAddrV4, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::Arc;

use ::ingress::wire::{Place, SiteConfig};
use ::ingress::{Ingress, Stock, listener};

use super::*;

/// Set in the child: what it is to do.
const DEED: &str = "SIFR_INGRESS_TEST_DEED";

type Deed = (&'static str, fn());

/// What the process never does. Each is harmless where it passes.
const FORBIDDEN: &[Deed] = &[
    ("execute", || {
        let _ = Command::new("/nowhere").status();
    }),
    ("make-a-socket", || {
        let _ = TcpStream::connect("127.0.0.1:1");
    }),
    ("listen-at-a-port", || {
        let _ = TcpListener::bind("127.0.0.1:0");
    }),
    ("open-a-file", || {
        let _ = std::fs::File::open("/nowhere");
    }),
    ("unshare", || {
        let _ = nix::sched::unshare(nix::sched::CloneFlags::empty());
    }),
    ("signal", || {
        let _ = nix::sys::signal::kill(nix::unistd::getpid(), None);
    }),
    ("become-user", || {
        let _ = nix::unistd::setuid(nix::unistd::getuid());
    }),
];

/// One client that is served by one machine, all of whose sockets were there before.
fn serve_one() {
    let machine = TcpListener::bind("127.0.0.1:0").expect("bound");
    let std::net::SocketAddr::V4(address) = machine.local_addr().expect("an address") else {
        panic!("IPv4")
    };
    std::thread::spawn(move || {
        for mut caller in machine.incoming().flatten() {
            let mut head = [0; 1024];
            if caller.read(&mut head).is_ok_and(|length| length > 0) {
                let _ = caller.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi");
            }
        }
    });
    let door = TcpListener::bind("127.0.0.1:0").expect("bound");
    let at = door.local_addr().expect("an address");
    let mut client = TcpStream::connect(at).expect("connected");
    client
        .write_all(b"GET / HTTP/1.1\r\nhost: a.test\r\nconnection: close\r\n\r\n")
        .expect("asked");
    let spare: Vec<OwnedFd> = (0..8).map(|_| spare()).collect();
    sys::confine::forbid_privileges().expect("forbidden");
    sys::confine::enter_domain(&[], Tcp::Connect).expect("a domain");
    sys::confine::install(&filter().expect("builds")).expect("installs");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .build();
    runtime.expect("a runtime").block_on(async {
        let (need, _needed) = tokio::sync::mpsc::unbounded_channel();
        let stock = Arc::new(Stock::new(need));
        let ingress = Ingress::new(stock.clone());
        ingress.apply(vec![site(address)]);
        stock.put("tenant1", spare);
        let door = listener(door.into()).expect("taken");
        tokio::spawn(ingress.accept(door, false));
        client.set_nonblocking(true).expect("set");
        let mut client = tokio::net::TcpStream::from_std(client).expect("taken");
        let mut answer = String::new();
        let read = tokio::io::AsyncReadExt::read_to_string(&mut client, &mut answer);
        read.await.expect("answered");
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    });
}

fn spare() -> OwnedFd {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    socket(AddressFamily::Inet, SockType::Stream, flags, None).expect("a socket")
}

fn site(address: SocketAddrV4) -> SiteConfig {
    let network = "tenant1".to_owned();
    SiteConfig {
        host: "a.test".parse().expect("a host"),
        whose: "shop".to_owned(),
        tls: None,
        routes: vec![("/".to_owned(), vec!["web:1".to_owned()])],
        backends: [("web:1".to_owned(), Place { network, address })].into(),
        health: types::ingress::HealthCheck::default(),
        proofs: Default::default(),
    }
}

#[test]
#[expect(clippy::exit, reason = "ends the child under its filter")]
fn child() {
    let Ok(deed) = std::env::var(DEED) else {
        return;
    };
    if deed == "serve" {
        serve_one();
    } else {
        let (_, deed) = FORBIDDEN
            .iter()
            .find(|(name, _)| *name == deed)
            .expect("a deed");
        sys::confine::install(&filter().expect("builds")).expect("installs");
        deed();
    }
    std::process::exit(0);
}

fn outcome(deed: &str) -> ExitStatus {
    let test = std::env::current_exe().expect("this program");
    let mut child = Command::new(test);
    child.args(["--exact", "ingress::confine::tests::child", "--nocapture"]);
    let status = child.env(DEED, deed).stdin(Stdio::null()).status();
    status.expect("it runs")
}

#[test]
fn a_client_is_served_under_the_filter() {
    assert_eq!(outcome("serve").code(), Some(0));
}

#[test]
fn one_call_more_is_death() {
    for (deed, _) in FORBIDDEN {
        assert_eq!(outcome(deed).signal(), Some(libc::SIGSYS), "{deed}");
    }
}
