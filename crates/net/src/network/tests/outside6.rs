//! IPv6 between guests and the outside, as packets see it.

use std::net::IpAddr;
use std::process::Command;
use std::time::Instant;

use tokio::sync::watch;

use super::owned::{answers, give, is_cut, serve_lines};
use super::*;
use crate::advertise;

/// On the LAN, and beyond it.
const LAN6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0x77, 0, 0, 0, 0, 1);
pub(super) const NODE6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0x77, 0, 0, 0, 0, 2);
const INTERNET6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0x99, 0, 0, 0, 0, 9);
/// The least that a link of IPv6 carries.
const NARROW: u32 = 1280;

/// Addresses are there at once, as on links that have been up for a while.
fn at_once(name: &str, link: &str) {
    inside(name, || {
        for (setting, value) in [("accept_dad", "0"), ("dad_transmits", "0")] {
            sysctl(&format!("ipv6/conf/{link}/{setting}"), value).expect("set");
        }
    });
    // The one of the link itself too, which is looked for since the link is up.
    ip(name, &["link", "set", link, "down"]);
    ip(name, &["link", "set", link, "up"]);
}

fn any(address: Ipv6Addr, prefix: u8) -> types::AnyCidr {
    Cidr6::new(address, prefix).expect("a prefix").into()
}

/// LAN and node have IPv6 too.
fn outside6() {
    at_once(LAN, "lan0");
    at_once(NODE, "eth0");
    let lan = Desired {
        addresses: vec![cidr("192.168.77.1/24"), any(LAN6, 64)],
        ..Desired::up("lan0")
    };
    let internet = Desired {
        addresses: vec![
            cidr("127.0.0.1/8"),
            cidr("203.0.113.9/32"),
            any(INTERNET6, 128),
        ],
        ..Desired::up("lo")
    };
    configure(LAN, &[lan, internet]);
    configure(NODE, &[uplink(1500)]);
}

fn uplink(mtu: u32) -> Desired {
    Desired {
        mtu: Some(mtu),
        addresses: vec![cidr("192.168.77.2/24"), any(NODE6, 64)],
        routes: vec![
            route(LAN_HOST.octets()),
            way(any(Ipv6Addr::UNSPECIFIED, 0), LAN6.into()),
        ],
        ..Desired::up("eth0")
    }
}

fn ip(name: &str, arguments: &[&str]) -> String {
    let output = inside(name, || Command::new("ip").args(arguments).output());
    let output = output.expect("ip from Debian's iproute2");
    assert!(output.status.success(), "ip {arguments:?}: {output:?}");
    String::from_utf8(output.stdout).expect("text")
}

/// The guest's card, as its own init makes it.
fn card6(name: &str, last: u8) {
    inside(name, || {
        for (setting, value) in [("accept_ra", "2"), ("accept_ra_pinfo", "0")] {
            sysctl(&format!("ipv6/conf/eth0/{setting}"), value).expect("set");
        }
    });
    at_once(name, "eth0");
    let card = Desired {
        mac: Some(guest(last).mac),
        addresses: vec![
            Cidr::new(guest(last).address.into(), 24).expect("a prefix"),
            any(guest(last).address6, 64),
        ],
        routes: vec![route([10, 128, 7, 1])],
        ..Desired::up("eth0")
    };
    // What the kernel learns stays: it is not planned here.
    configure(name, &[card]);
}

fn has_a_way(name: &str) -> bool {
    !ip(name, &["-6", "route", "show", "default"]).is_empty()
}

fn until(what: &str, is_so: impl Fn() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < end, "not so: {what}");
        std::thread::yield_now();
    }
}

/// The gateway says from now on what the test tells it to.
fn voice(leads: bool) -> watch::Sender<bool> {
    let (tell, heard) = watch::channel(leads);
    let voice = advertise::voice(&network()).expect("a voice");
    std::thread::spawn(move || on_a_runtime(advertise::speak(voice, heard)));
    tell
}

fn serve6(name: &str, port: u16) {
    let listener = inside(name, || {
        TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).expect("a listener")
    });
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let peer = stream.peer_addr().map(|peer| peer.ip().to_string());
            let _ = stream.write_all(peer.unwrap_or_default().as_bytes());
        }
    });
}

fn greeting6(from: &str, to: Ipv6Addr, port: u16, wait: Duration) -> io::Result<String> {
    inside(from, || {
        let mut stream = TcpStream::connect_timeout(&SocketAddr::from((to, port)), wait)?;
        stream.set_read_timeout(Some(wait))?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    })
}

fn refused6(from: &str, to: Ipv6Addr, port: u16) {
    let answer = greeting6(from, to, port, SILENCE);
    assert!(answer.is_err(), "{from} to {to} {port}: {answer:?}");
}

fn seen(tap: &str, what: Attempt) -> u64 {
    let counts = firewall::counts_in(&network().name).expect("counters");
    counts[&what.counter(tap)].packets
}

fn stage() -> (Scratch, MutexGuard<'static, ()>) {
    let held = build();
    outside6();
    for (name, last) in GUESTS.iter().zip([2, 3]) {
        card6(name, last);
    }
    // The kernel looks at each for a moment, if only to see that nobody is to be asked.
    for name in [LAN, NODE, GUESTS[0], GUESTS[1]] {
        until("addresses are used", || {
            ip(name, &["-6", "addr", "show", "tentative"]).is_empty()
        });
    }
    held
}

#[test]
fn a_guest_learns_while_it_runs_that_ipv6_leads_outside_and_that_it_does_no_more() {
    let _held = stage();
    let [_, other] = GUESTS;
    serve6(LAN, 80);
    let tell = voice(false);
    assert!(!has_a_way(other));
    let error = greeting6(other, INTERNET6, 80, SILENCE).expect_err("no way");
    assert_eq!(error.kind(), ErrorKind::NetworkUnreachable);
    tell.send_replace(true);
    until("the guest has a way", || has_a_way(other));
    let under = greeting6(other, INTERNET6, 80, PATIENCE).expect("the internet");
    assert_eq!(under, NODE6.to_string());
    tell.send_replace(false);
    until("the guest has no way", || !has_a_way(other));
    // Who comes later asks, and is answered.
    tell.send_replace(true);
    until("the guest has a way", || has_a_way(other));
    at_once(other, "eth0");
    until("the guest has asked", || has_a_way(other));
}

#[test]
fn by_ipv6_guests_reach_what_they_may_and_nothing_else() {
    let _held = stage();
    let _tell = voice(true);
    let [web, other] = GUESTS;
    for name in GUESTS {
        until("the guest has a way", || has_a_way(name));
    }
    for (name, port) in [
        (LAN, 80),
        (web, PORT),
        (web, 22),
        (NODE, 7443),
        (NODE, 9),
        (TENANT, 9),
        (OPEN, 9),
    ] {
        serve6(name, port);
    }
    assert!(greeting6(other, INTERNET6, 80, PATIENCE).is_ok());
    // Not the owner's site, on the LAN or beyond it; not the node, by whatever address; nor its other networks.
    let gateway = six(network().gateway.address).address;
    let elsewhere = six(open_network().gateway.address).address;
    for (to, port) in [
        (LAN6, 80),
        (NODE6, 7443),
        (NODE6, 8080),
        (gateway, 9),
        (elsewhere, 9),
        ("fd00:ec2::254".parse().expect("an address"), 80),
    ] {
        refused6(other, to, port);
    }
    let neighbour = greeting6(other, guest(2).address6, 22, PATIENCE);
    assert_eq!(
        neighbour.expect("a neighbour"),
        guest(3).address6.to_string()
    );
    for what in [Attempt::Private, Attempt::Node, Attempt::Tenants] {
        assert!(seen("tap3", what) > 0, "{what:?}");
    }
    // Inward: what is published, by the node's address of IPv6 too; the client's address is seen.
    let client = greeting6(LAN, NODE6, 8080, PATIENCE).expect("a published port");
    assert_eq!(client, LAN6.to_string());
    assert!(greeting6(LAN, NODE6, 7443, PATIENCE).is_ok(), "the API");
    refused6(LAN, NODE6, 9);
    // Somebody on the LAN who sends to the guests through the node.
    let subnet = six(network().gateway.address).network();
    let lan = Desired {
        addresses: vec![cidr("192.168.77.1/24"), any(LAN6, 64)],
        routes: vec![way(subnet.into(), NODE6.into())],
        ..Desired::up("lan0")
    };
    configure(LAN, &[lan]);
    refused6(LAN, guest(2).address6, 22);
    // A guest under another's address.
    let before = seen("tap2", Attempt::Address);
    let thief: Ipv6Addr = "fd01:203:405:7::a80:709".parse().expect("an address");
    ip(
        web,
        &["-6", "addr", "flush", "dev", "eth0", "scope", "global"],
    );
    let thief = format!("{thief}/64");
    ip(web, &["addr", "add", &thief, "dev", "eth0", "nodad"]);
    refused6(web, INTERNET6, 80);
    assert!(seen("tap2", Attempt::Address) > before);
}

#[test]
fn nothing_of_a_guest_leaves_under_the_nodes_address_of_one_link() {
    let _held = stage();
    let _tell = voice(true);
    let [_, other] = GUESTS;
    until("the guest has a way", || has_a_way(other));
    serve6(LAN, 80);
    let bare = Desired {
        addresses: vec![cidr("192.168.77.2/24")],
        ..uplink(1500)
    };
    configure(NODE, &[bare]);
    refused6(other, INTERNET6, 80);
    configure(NODE, &[uplink(1500)]);
    let under = greeting6(other, INTERNET6, 80, PATIENCE).expect("the internet");
    assert_eq!(under, NODE6.to_string());
}

#[test]
fn a_guest_is_told_that_its_packets_are_too_big_for_the_way() {
    let _held = stage();
    let _tell = voice(true);
    let [_, other] = GUESTS;
    until("the guest has a way", || has_a_way(other));
    configure(NODE, &[uplink(NARROW)]);
    let listener = inside(LAN, || {
        TcpListener::bind((INTERNET6, 81)).expect("a listener")
    });
    let heard = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a client");
        stream.set_read_timeout(Some(PATIENCE)).expect("set");
        let mut all = Vec::new();
        stream.read_to_end(&mut all).map(|_| all.len())
    });
    let sent = vec![7; 100_000];
    inside(other, || {
        let to = SocketAddr::from((IpAddr::from(INTERNET6), 81));
        let mut stream = TcpStream::connect_timeout(&to, PATIENCE).expect("connected");
        stream.write_all(&sent).expect("sent");
    });
    let heard = heard.join().expect("no panic").expect("all of it");
    assert_eq!(heard, sent.len());
    let learned = ip(other, &["-6", "route", "get", &INTERNET6.to_string()]);
    assert!(learned.contains("mtu 1280"), "{learned}");
}

/// What the second guest lets in at its own address.
fn owned6(allow: &[(u16, &str)]) -> policy::Owned {
    let one = |(port, from): &(u16, &str)| policy::Let {
        port: Some((Transport::Tcp, *port)),
        from: Some(cidr(from)),
    };
    policy::Owned {
        address: OWN6.into(),
        inside: within_network(3),
        link: Some("eth0".to_owned()),
        allow: allow.iter().map(one).collect(),
    }
}

/// Of the second guest, on the LAN.
const OWN6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0x77, 0, 0, 0, 2, 0);
const LAN_NET6: &str = "2001:db8:77::/64";

#[test]
fn a_guest_has_an_address_of_ipv6_for_itself_and_what_it_lets_in_ends_with_its_permit() {
    let _held = stage();
    let _tell = voice(true);
    let [web, other] = GUESTS;
    for name in GUESTS {
        until("the guest has a way", || has_a_way(name));
    }
    for (name, port) in [(LAN, 80), (other, PORT), (other, 443), (NODE, 7443)] {
        serve6(name, port);
    }
    let ssh = serve_lines(other, 22);
    refused6(LAN, OWN6, 22);
    let both = [(22, LAN_NET6), (443, "2001:db8:9::/48")];
    give(Some(owned6(&both)), &[]);
    // The LAN asks its neighbours who has it: the node answers.
    let mut stands = ssh.begin(LAN, (OWN6, 22));
    refused6(LAN, OWN6, 443);
    refused6(LAN, OWN6, PORT);
    refused6(LAN, OWN6, 7443);
    // Outward under its own address; its neighbour, under the node's.
    let speaks = |from: &str| greeting6(from, INTERNET6, 80, PATIENCE).expect("the internet");
    assert_eq!(speaks(other), OWN6.to_string());
    assert_eq!(speaks(web), NODE6.to_string());
    refused6(other, LAN6, 80);
    // The rules change, and it is let in still; then it is not.
    give(Some(owned6(&both[..1])), &[]);
    assert!(answers(&mut stands.0, PATIENCE), "it is allowed");
    give(Some(owned6(&[(22, "2001:db8:9::/48")])), &[]);
    is_cut(stands);
    refused6(LAN, OWN6, 22);
    give(None, &[]);
    refused6(LAN, OWN6, 22);
    assert_eq!(speaks(other), NODE6.to_string());
}

#[test]
fn who_knew_an_address_of_ipv6_at_another_place_learns_that_it_has_moved() {
    let _held = stage();
    let (own, before) = (OWN6.to_string(), "02:00:00:00:00:99");
    let stale = ["lladdr", before, "dev", "lan0", "nud", "stale"];
    ip(LAN, &[&["neigh", "add", &own][..], &stale].concat());
    let known = || ip(LAN, &["neigh", "show", "to", &own]);
    assert!(known().contains(before));
    give(Some(owned6(&[])), &[]);
    until("the address is at the node", || !known().contains(before));
    assert!(known().contains("lladdr"), "{}", known());
}
