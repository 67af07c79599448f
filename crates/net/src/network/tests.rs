//! Tenant networks with the node's policies on them, as packets see them. The node, the LAN and the
//! guests are namespaces; a guest's link has the name of its TAP, and one guest is a real TAP that the
//! test writes frames to. Needs root.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::*;
use crate::firewall::policy::Attempt;
use crate::firewall::rule::Transport;
use crate::firewall::{self, policy};
use crate::scratch::{self, Scratch, on_a_runtime};

mod outside6;
mod owned;

/// How long what must arrive may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long is waited for what must not arrive. Links between namespaces take microseconds.
const SILENCE: Duration = Duration::from_millis(300);

/// This test's part of the names of its namespaces, and theirs.
const TEST: &str = "net";
const LAN: &str = "lan";
const NODE: &str = "node";
const TENANT: &str = "tenant";
/// A second network, without rules of its own: only the node's protect it.
const OPEN: &str = "open";
const GUESTS: [&str; 2] = ["guest2", "guest3"];
/// On the LAN host: its address there, and one "on the internet" that is routed through it.
const LAN_HOST: Ipv4Addr = Ipv4Addr::new(192, 168, 77, 1);
const INTERNET: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 9);
const NODE_ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 168, 77, 2);
const PORT: u16 = 4242;

fn cidr<A: types::cidr::Address>(text: &str) -> Cidr<A> {
    text.parse().expect("a prefix")
}

fn route(gateway: [u8; 4]) -> DesiredRoute {
    DesiredRoute {
        destination: cidr("0.0.0.0/0"),
        gateway: Some(std::net::IpAddr::from(gateway)),
        metric: 0,
    }
}

fn space(name: &str) -> Arc<OwnedFd> {
    let name = scratch::name(TEST, name);
    Arc::new(namespace::ensure(&name).expect("a namespace; it needs root"))
}

/// Runs on a thread in the namespace.
fn inside<T: Send>(name: &str, call: impl FnOnce() -> T + Send) -> T {
    within(&*space(name), || Ok(call())).expect("the namespace is entered")
}

fn configure(name: &str, desired: &[Desired]) {
    on_a_runtime(async {
        let mut handle = Handle::open_in(&*space(name)).expect("a connection");
        let steps = plan(desired, &handle.observe().await.expect("links"));
        handle.apply(&steps).await.expect("configured");
    });
}

fn network() -> Network {
    Network {
        name: scratch::name(TEST, TENANT),
        index: 7,
        gateway: cidr("10.128.7.1/24"),
        gateway6: Some(six(Ipv4Addr::new(10, 128, 7, 1))),
        mtu: 1500,
        mesh: None,
        owned: Vec::new(),
    }
}

/// What has this address has of IPv6.
fn six(address: Ipv4Addr) -> Cidr6 {
    address6([1, 2, 3, 4, 5], address).expect("of a tenant network")
}

fn within_network(last: u8) -> policy::Inside {
    let guest = guest(last);
    policy::Inside {
        four: guest.address,
        six: guest.address6,
    }
}

fn open_network() -> Network {
    let gateway = cidr("10.128.8.1/24");
    Network {
        name: scratch::name(TEST, OPEN),
        index: 8,
        gateway,
        gateway6: Some(six(Ipv4Addr::new(10, 128, 8, 1))),
        mtu: 1500,
        mesh: None,
        owned: Vec::new(),
    }
}

fn guest(last: u8) -> policy::Guest {
    let address = Ipv4Addr::new(10, 128, 7, last);
    let ports = if last == 2 {
        [Transport::Tcp, Transport::Udp]
            .map(|transport| (transport, PORT))
            .into()
    } else {
        Vec::new()
    };
    policy::Guest {
        tap: format!("tap{last}"),
        mac: guest_mac(address),
        address,
        address6: six(address).address,
        ports,
        lets: Vec::new(),
    }
}

fn tenant() -> policy::Tenant {
    policy::Tenant {
        gateway: network().gateway,
        gateway6: six(network().gateway.address),
        refused: vec![cidr("192.168.77.0/24"), cidr("2001:db8:77::/48")],
        internal: false,
        peers: Vec::new(),
        guests: vec![guest(2), guest(3), guest(4)],
    }
}

/// One test at a time: both have namespaces of the same names.
static TURN: Mutex<()> = Mutex::new(());

/// LAN, node and tenant network with the node's rules; two guests as namespaces, a third as a TAP.
fn build() -> (Scratch, MutexGuard<'static, ()>) {
    let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let scratch = Scratch::new(TEST);
    let veth = |peer: &str, namespace: &str| {
        Some(Create::Veth {
            peer: peer.to_owned(),
            namespace: space(namespace),
        })
    };
    let lan = Desired {
        create: veth("eth0", NODE),
        addresses: vec![Cidr::new(LAN_HOST.into(), 24).expect("a prefix")],
        ..Desired::up("lan0")
    };
    let internet = Desired {
        addresses: vec![
            cidr("127.0.0.1/8"),
            Cidr::new(INTERNET.into(), 32).expect("a prefix"),
        ],
        ..Desired::up("lo")
    };
    configure(LAN, &[lan, internet]);
    let uplink = Desired {
        addresses: vec![Cidr::new(NODE_ADDRESS.into(), 24).expect("a prefix")],
        routes: vec![route(LAN_HOST.octets())],
        ..Desired::up("eth0")
    };
    configure(NODE, &[Desired::up("lo"), uplink]);
    inside(NODE, || {
        let published = |transport| policy::Published {
            transport,
            node_port: 8080,
            inside: within_network(2),
            port: PORT,
        };
        let tenant = policy::NodeTenant {
            link: network().host_link(),
            subnet: network().gateway,
            subnet6: six(network().gateway.address),
            published: vec![published(Transport::Tcp), published(Transport::Udp)],
            owned: Vec::new(),
        };
        let node = policy::Node {
            uplinks: vec!["eth0".to_owned()],
            open_ports: vec![7443],
            mesh_ports: Vec::new(),
            tenants: vec![tenant],
        };
        firewall::apply(&policy::node(&node)).expect("the node's rules");
        on_a_runtime(async {
            ensure(&network()).await.expect("the network");
            ensure(&network()).await.expect("the same network");
            ensure(&open_network()).await.expect("the second network");
        });
    });
    let rules = policy::tenant(&tenant(), &firewall::Counts::new());
    firewall::apply_in(&network().name, &rules).expect("the tenant's rules");
    for (name, last) in GUESTS.iter().zip([2, 3]) {
        let port = Desired {
            create: veth("eth0", name),
            master: Some(BRIDGE.to_owned()),
            ..Desired::up(guest(last).tap)
        };
        configure(TENANT, &[port]);
        let card = Desired {
            mac: Some(guest(last).mac),
            addresses: vec![Cidr::new(guest(last).address.into(), 24).expect("a prefix")],
            routes: vec![route([10, 128, 7, 1])],
            ..Desired::up("eth0")
        };
        configure(name, &[card]);
    }
    (scratch, turn)
}

/// A server in a namespace that greets whoever connects, with the address that it sees.
fn serve(name: &str, port: u16) {
    let listener = inside(name, || {
        TcpListener::bind(("0.0.0.0", port)).expect("a listener")
    });
    // Ends with the test program: nothing of it is in the test's way.
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let text = stream
                .peer_addr()
                .map(|peer| peer.ip().to_string())
                .unwrap_or_default();
            let _ = stream.write_all(text.as_bytes());
        }
    });
}

/// What the server at `to` says to somebody in the namespace.
fn greeting(from: &str, to: (Ipv4Addr, u16), wait: Duration) -> io::Result<String> {
    inside(from, || {
        let mut stream = TcpStream::connect_timeout(&SocketAddr::from(to), wait)?;
        stream.set_read_timeout(Some(wait))?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    })
}

fn refused(from: &str, to: (Ipv4Addr, u16)) {
    let error = greeting(from, to, SILENCE).expect_err("no connection");
    let kinds = [
        ErrorKind::TimedOut,
        ErrorKind::HostUnreachable,
        ErrorKind::PermissionDenied,
    ];
    assert!(kinds.contains(&error.kind()), "{from} to {to:?}: {error:?}");
}

#[test]
fn guests_reach_what_they_may_and_nothing_else() {
    let _scratch = build();
    let [web, other] = GUESTS;
    for (name, port) in [
        (LAN, 80),
        (web, PORT),
        (web, 22),
        (NODE, 7443),
        (NODE, 9),
        (TENANT, 9),
        (OPEN, 9),
    ] {
        serve(name, port);
    }
    // Outward: through the owner's LAN, under the node's address, but to nobody on it.
    let node = NODE_ADDRESS.to_string();
    assert_eq!(
        greeting(other, (INTERNET, 80), PATIENCE).expect("the internet"),
        node
    );
    refused(other, (LAN_HOST, 80));
    // The node: not by its LAN address, not by its end of the pair, not by the gateway's.
    let (node_end, tenant_end) = network().transfer();
    for (address, port) in [
        (NODE_ADDRESS, 7443),
        (NODE_ADDRESS, 8080),
        (node_end.address, 7443),
        (tenant_end.address, 9),
        (network().gateway.address, 9),
        ([169, 254, 169, 254].into(), 80),
    ] {
        refused(other, (address, port));
    }
    // Each other, on every port.
    let third = guest(3).address.to_string();
    assert_eq!(
        greeting(other, (guest(2).address, 22), PATIENCE).expect("a neighbour"),
        third
    );
    // Inward: what is published, and the node's own port; the client's address is seen.
    let client = LAN_HOST.to_string();
    assert_eq!(
        greeting(LAN, (NODE_ADDRESS, 8080), PATIENCE).expect("a published port"),
        client
    );
    assert_eq!(
        greeting(LAN, (NODE_ADDRESS, 7443), PATIENCE).expect("the API"),
        client
    );
    refused(LAN, (NODE_ADDRESS, 9));
    // Somebody on the LAN who routes to the guests through the node.
    let shortcut = |network: Network| DesiredRoute {
        destination: network.gateway.network().into(),
        gateway: Some(NODE_ADDRESS.into()),
        metric: 0,
    };
    let lan = Desired {
        addresses: vec![Cidr::new(LAN_HOST.into(), 24).expect("a prefix")],
        routes: vec![shortcut(network()), shortcut(open_network())],
        ..Desired::up("lan0")
    };
    configure(LAN, &[lan]);
    refused(LAN, (guest(2).address, 22));
    let open = open_network().gateway.address;
    assert!(
        greeting(NODE, (open, 9), PATIENCE).is_ok(),
        "nothing but the node is in the way"
    );
    refused(LAN, (open, 9));
    // A guest under another's address, and under another's MAC.
    assert_eq!(
        greeting(web, (INTERNET, 80), PATIENCE).expect("the internet"),
        node
    );
    let card = |mac, address: &str| Desired {
        mac: Some(mac),
        addresses: vec![cidr(address)],
        routes: vec![route([10, 128, 7, 1])],
        ..Desired::up("eth0")
    };
    configure(web, &[card(guest(2).mac, "10.128.7.9/24")]);
    refused(web, (INTERNET, 80));
    configure(
        web,
        &[card(
            "02:00:00:00:00:99".parse().expect("a MAC"),
            "10.128.7.2/24",
        )],
    );
    refused(web, (INTERNET, 80));
    configure(web, &[card(guest(2).mac, "10.128.7.2/24")]);
    assert_eq!(
        greeting(web, (INTERNET, 80), PATIENCE).expect("itself again"),
        node
    );
    let seen = |tap: &str, what: Attempt| {
        let counts = firewall::counts_in(&network().name).expect("counters");
        counts[&what.counter(tap)].packets
    };
    for (tap, what) in [
        ("tap3", Attempt::Private),
        ("tap3", Attempt::Node),
        ("tap3", Attempt::Metadata),
        ("tap2", Attempt::Mac),
        ("tap2", Attempt::Arp),
    ] {
        assert!(seen(tap, what) > 0, "{tap} {what:?}");
    }
    assert_eq!(seen("tap2", Attempt::Metadata), 0, "that was another");
    // They go on where the rules are made anew.
    let before = seen("tap3", Attempt::Metadata);
    let counts = firewall::counts_in(&network().name).expect("counters");
    let rules = policy::tenant(&tenant(), &counts);
    firewall::apply_in(&network().name, &rules).expect("the tenant's rules");
    assert_eq!(seen("tap3", Attempt::Metadata), before);
    a_tap_passes_only_its_own_frames();
    for what in [Attempt::Mac, Attempt::Arp, Attempt::Address, Attempt::Dhcp] {
        assert!(seen("tap4", what) > 0, "{what:?}");
    }
    dns_sockets_are_reached_by_guests();
    a_network_is_removed_and_made_again();
}

/// An ARP request to the gateway behind an empty virtio-net header.
fn arp(mac: Mac, sender_mac: Mac, sender: Ipv4Addr) -> Vec<u8> {
    let mut frame = vec![0; 10];
    frame.extend_from_slice(&[0xff; 6]);
    frame.extend_from_slice(&mac.0);
    frame.extend_from_slice(&[8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
    frame.extend_from_slice(&sender_mac.0);
    frame.extend_from_slice(&sender.octets());
    frame.extend_from_slice(&[0; 6]);
    frame.extend_from_slice(&network().gateway.address.octets());
    frame
}

/// The senders of the ARP replies that the TAP gives out, until it is silent.
fn replies(tap: &OwnedFd, wait: Duration) -> Vec<Mac> {
    let mut found = Vec::new();
    loop {
        let mut ready = [PollFd::new(tap.as_fd(), PollFlags::POLLIN)];
        let wait = PollTimeout::try_from(wait).expect("a short time");
        if poll(&mut ready, wait).expect("polled") == 0 {
            return found;
        }
        let mut frame = [0; 2048];
        let length = nix::unistd::read(tap, &mut frame).expect("a frame");
        let frame = &frame[10..length];
        if frame[12..14] == [8, 6] && frame[20..22] == [0, 2] {
            found.push(Mac(frame[6..12].try_into().expect("six bytes")));
        }
    }
}

fn open(spec: &TapSpec) -> Result<OwnedFd, Error> {
    let mut fds = open_queues(spec, NonZeroU8::MIN)?;
    Ok(fds.remove(0))
}

fn open_queues(spec: &TapSpec, queues: NonZeroU8) -> Result<Vec<OwnedFd>, Error> {
    on_a_runtime(open_tap(&network(), spec, queues))
}

fn a_tap_passes_only_its_own_frames() {
    let spec = TapSpec {
        name: "tap4".to_owned(),
        mtu: 1400,
    };
    let me = guest(4);
    let gateway = guest_mac(network().gateway.address);
    // Twice: a guest starts again.
    for _ in 0..2 {
        let tap = open(&spec).expect("a TAP; it needs /dev/net/tun");
        let busy = open(&spec).expect_err("it is held");
        assert_eq!(busy.raw_os_error(), Some(nix::errno::Errno::EBUSY as i32));
        let send = |frame: &[u8]| nix::unistd::write(&tap, frame).expect("written");
        let stranger: Mac = "02:00:00:00:00:99".parse().expect("a MAC");
        send(&arp(stranger, stranger, me.address));
        send(&arp(me.mac, stranger, me.address));
        send(&arp(me.mac, me.mac, guest(2).address));
        assert_eq!(replies(&tap, SILENCE), [], "not under another's name");
        send(&arp(me.mac, me.mac, me.address));
        assert_eq!(replies(&tap, SILENCE), [gateway]);
    }
    let two = NonZeroU8::new(2).expect("not zero");
    let queues = open_queues(&spec, two).expect("a TAP with two queues");
    assert_eq!(queues.len(), 2);
    assert!(open_queues(&spec, two).is_err(), "it is held");
    drop(queues);
    an_address_that_is_not_its_own_gets_nowhere(&spec);
    let unknown = TapSpec {
        name: "tap5".to_owned(),
        mtu: 1500,
    };
    let tap = open(&unknown).expect("a TAP");
    nix::unistd::write(&tap, &arp(guest(5).mac, guest(5).mac, guest(5).address)).expect("written");
    assert_eq!(replies(&tap, SILENCE), [], "the rules do not name it");
}

/// A UDP packet to the gateway's DNS behind an empty virtio-net header.
fn question(sender: Ipv4Addr, source_port: u16, text: &[u8]) -> Vec<u8> {
    let half = |n: usize| u16::try_from(n).expect("short").to_be_bytes();
    let mut header = vec![0x45, 0];
    header.extend_from_slice(&half(28 + text.len()));
    header.extend_from_slice(&[0, 0, 0, 0, 64, 17, 0, 0]);
    header.extend_from_slice(&sender.octets());
    header.extend_from_slice(&network().gateway.address.octets());
    let sum: u32 = header
        .chunks(2)
        .map(|p| u32::from(p[0]) << 8 | u32::from(p[1]))
        .sum();
    let sum = !u16::try_from((sum & 0xffff) + (sum >> 16)).expect("folded once is enough here");
    header[10..12].copy_from_slice(&sum.to_be_bytes());
    let mut frame = vec![0; 10];
    frame.extend_from_slice(&guest_mac(network().gateway.address).0);
    frame.extend_from_slice(&guest(4).mac.0);
    frame.extend_from_slice(&[8, 0]);
    frame.extend_from_slice(&header);
    for field in [source_port, DNS_PORT] {
        frame.extend_from_slice(&field.to_be_bytes());
    }
    frame.extend_from_slice(&half(8 + text.len()));
    frame.extend_from_slice(&[0, 0]);
    frame.extend_from_slice(text);
    frame
}

fn an_address_that_is_not_its_own_gets_nowhere(spec: &TapSpec) {
    let tap = open(spec).expect("a TAP");
    let sockets = dns_sockets(&network()).expect("sockets");
    sockets.udp.set_nonblocking(false).expect("blocking");
    sockets.udp.set_read_timeout(Some(PATIENCE)).expect("set");
    let send = |frame: &[u8]| nix::unistd::write(&tap, frame).expect("written");
    send(&question(guest(2).address, 1000, b"as another guest"));
    send(&question([10, 128, 7, 77].into(), 1000, b"as nobody"));
    send(&question(INTERNET, 1000, b"as the internet"));
    send(&question(guest(4).address, 67, b"as a DHCP server"));
    send(&question(guest(4).address, 1000, b"as itself"));
    // Frames of one TAP keep their order, so what was dropped is not merely late.
    let mut buffer = [0; 64];
    let (length, from) = sockets.udp.recv_from(&mut buffer).expect("a packet");
    assert_eq!(
        (&buffer[..length], from.ip()),
        (&b"as itself"[..], guest(4).address.into())
    );
}

fn dns_sockets_are_reached_by_guests() {
    let sockets = dns_sockets(&network()).expect("sockets");
    let [_, other] = GUESTS;
    sockets.udp.set_nonblocking(false).expect("blocking");
    sockets.udp.set_read_timeout(Some(PATIENCE)).expect("set");
    inside(other, || {
        let socket = UdpSocket::bind("0.0.0.0:0").expect("a socket");
        socket
            .send_to(b"query", (network().gateway.address, DNS_PORT))
            .expect("sent");
    });
    let mut buffer = [0; 16];
    let (length, from) = sockets.udp.recv_from(&mut buffer).expect("a query");
    assert_eq!(
        (&buffer[..length], from.ip()),
        (&b"query"[..], guest(3).address.into())
    );
}

fn a_network_is_removed_and_made_again() {
    let link = network().host_link();
    let again = async {
        remove(&network()).await.expect("removed");
        remove(&network()).await.expect("nothing to remove");
        let mut handle = Handle::open().expect("a connection");
        let observed = handle.observe().await.expect("links");
        assert!(observed.link(&link).is_none());
        ensure(&network()).await.expect("the network again");
        let observed = handle.observe().await.expect("links");
        let link = observed.link(&link).expect("the node's end");
        assert!(link.up && link.carrier);
        remove(&network()).await.expect("removed");
    };
    inside(NODE, || on_a_runtime(again));
}

#[test]
fn addresses_of_ipv6_follow_from_those_of_ipv4() {
    let six = address6([1, 2, 3, 4, 5], [10, 128, 3, 2].into()).expect("one of ours");
    assert_eq!(six.to_string(), "fd01:203:405:3::a80:302/64");
    assert_eq!(address6([1, 2, 3, 4, 5], [192, 168, 3, 2].into()), None);
    let mac = guest_mac([10, 128, 3, 2].into());
    assert_eq!(link_local(mac).to_string(), "fe80::aff:fe80:302");
}

#[test]
fn subnets_keep_clear_of_what_is_there() {
    let first = subnet(0, &[]).expect("a subnet");
    assert_eq!(first.to_string(), "10.128.0.1/24");
    assert_eq!(
        subnet(3, &[]).expect("a subnet").to_string(),
        "10.128.3.1/24"
    );
    let lan = cidr("10.128.0.0/15");
    assert_eq!(
        subnet(0, &[lan]).expect("a subnet").to_string(),
        "10.130.0.1/24"
    );
    assert_eq!(
        subnet(u16::MAX, &[]).expect("a subnet").to_string(),
        "10.255.255.1/24"
    );
    let lans = [cidr("10.0.0.0/8"), cidr("172.16.0.0/12")];
    assert_eq!(subnet(0, &lans), None);
}

#[test]
fn a_lan_that_takes_all_of_10_leaves_tenants_a_second_range() {
    let lan = cidr("10.0.0.0/8");
    for (index, expected) in [(0, "172.16.0.1/24"), (5000, "172.19.136.1/24")] {
        let chosen = subnet(index, &[lan]).expect("a subnet");
        assert_eq!(chosen.to_string(), expected);
        let number = number(chosen.address).expect("one of ours");
        assert_eq!(gateway(number), Some(chosen));
    }
    for (number_of, address) in [(0, [10, 128, 0, 9]), (32767, [10, 255, 255, 1])] {
        assert_eq!(number(address.into()), Some(number_of));
    }
    let last = gateway((1 << 15) + (1 << 12) - 1).expect("the last");
    assert_eq!(last.to_string(), "172.31.255.1/24");
    assert_eq!(gateway((1 << 15) + (1 << 12)), None);
    for address in [
        [10, 127, 255, 255],
        [11, 0, 0, 0],
        [172, 15, 0, 1],
        [172, 32, 0, 1],
    ] {
        assert_eq!(number(address.into()), None, "{address:?}");
    }
}
