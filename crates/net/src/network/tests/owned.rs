//! Guests with addresses of their own, as packets see them.

use std::net::IpAddr;

use super::outside6::NODE6;
use super::*;
use crate::firewall::Standing;
use crate::ground;

/// Another host, on a second link of the node's.
const OFFICE: &str = "office";
const OFFICE_HOST: Ipv4Addr = Ipv4Addr::new(192, 168, 78, 1);
const OFFICE_NODE: Ipv4Addr = Ipv4Addr::new(192, 168, 78, 2);
/// Of the second guest, on the LAN.
const OWN: Ipv4Addr = Ipv4Addr::new(192, 168, 77, 200);

fn tcp(port: u16, from: Option<&str>) -> policy::Let {
    policy::Let {
        port: Some((Transport::Tcp, port)),
        from: from.map(cidr),
    }
}

fn udp(port: u16) -> policy::Let {
    policy::Let {
        port: Some((Transport::Udp, port)),
        from: None,
    }
}

const PING: policy::Let = policy::Let {
    port: None,
    from: None,
};

/// An address of the second guest's, on this link.
fn owned(address: Ipv4Addr, link: &str, allow: &[policy::Let]) -> policy::Owned {
    policy::Owned {
        address: address.into(),
        inside: within_network(3),
        link: Some(link.to_owned()),
        allow: allow.to_vec(),
    }
}

/// It leads to the second guest.
fn published(node_port: u16) -> policy::Published {
    policy::Published {
        transport: Transport::Tcp,
        node_port,
        inside: within_network(3),
        port: PORT,
    }
}

/// The same network, in which the second guest has this. What stood and may not any more is ended.
pub(super) fn give(owned: Option<policy::Owned>, published: &[policy::Published]) {
    let node = policy::Node {
        uplinks: vec!["eth0".to_owned(), "eth1".to_owned()],
        open_ports: vec![7443],
        mesh_ports: Vec::new(),
        tenants: vec![policy::NodeTenant {
            link: network().host_link(),
            subnet: network().gateway,
            subnet6: six(network().gateway.address),
            published: published.to_vec(),
            owned: owned.iter().cloned().collect(),
        }],
    };
    let with = Network {
        owned: owned.iter().map(|own| own.address).collect(),
        ..network()
    };
    let answered = owned.iter().filter_map(|own| {
        let all = [own.address].into();
        Some((own.link.clone()?, all))
    });
    let answered = answered.collect();
    let mut tenant = tenant();
    tenant.guests[1].ports = published
        .iter()
        .map(|one| (one.transport, one.port))
        .collect();
    let lets = owned.iter().flat_map(|own| {
        let inside = own.inside.like(own.address);
        own.allow.iter().map(move |one| (inside, *one))
    });
    tenant.guests[1].lets = lets.collect();
    inside(NODE, || {
        firewall::apply(&policy::node(&node)).expect("the node's rules");
        let four = [NODE_ADDRESS, OFFICE_NODE].map(IpAddr::from);
        let addresses = four.into_iter().chain([NODE6.into()]).collect();
        let standing = Standing::of(&node, &addresses);
        firewall::end(|flow| standing.keeps(flow)).expect("ended");
        on_a_runtime(async {
            ensure(&with).await.expect("the network");
            // Twice: what is answered for already is no error.
            crate::link::answer_for(&answered).await.expect("answered");
            crate::link::answer_for(&answered).await.expect("answered");
        });
    });
    let rules = policy::tenant(&tenant, &firewall::Counts::new());
    firewall::apply_in(&with.name, &rules).expect("the tenant's rules");
    firewall::end_in(&with.name, |flow| tenant.keeps(flow)).expect("ended");
}

/// The node as its own first steps make it.
fn hardened() {
    inside(NODE, || ground::prepare().expect("prepared"));
}

/// A server that says back what it hears, line by line, and beside that whatever the test tells it to say.
pub(super) fn serve_lines(name: &str, port: u16) -> Talk {
    let listener = inside(name, || {
        TcpListener::bind(("::", port)).expect("a listener")
    });
    let (held, taken) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let Ok(copy) = stream.try_clone() else { return };
            if held.send(copy).is_err() {
                return;
            }
            std::thread::spawn(move || {
                let mut bytes = [0; 64];
                while let Ok(count @ 1..) = stream.read(&mut bytes) {
                    if stream.write_all(&bytes[..count]).is_err() {
                        return;
                    }
                }
            });
        }
    });
    Talk(taken)
}

/// The server's ends of its connections.
pub(super) struct Talk(std::sync::mpsc::Receiver<TcpStream>);

impl Talk {
    /// A connection from the namespace, which is heard: both its ends.
    pub(super) fn begin(
        &self,
        from: &str,
        (to, port): (impl Into<IpAddr>, u16),
    ) -> (TcpStream, TcpStream) {
        let to = SocketAddr::new(to.into(), port);
        let mut ours = inside(from, || {
            TcpStream::connect_timeout(&to, PATIENCE).expect("connected")
        });
        assert!(answers(&mut ours, PATIENCE), "{from} to {to}");
        let theirs = self.0.recv_timeout(PATIENCE).expect("its other end");
        (ours, theirs)
    }
}

pub(super) fn answers(stream: &mut TcpStream, wait: Duration) -> bool {
    stream.set_read_timeout(Some(wait)).expect("set");
    stream.write_all(b"x").expect("written");
    matches!(stream.read(&mut [0; 64]), Ok(1..))
}

/// Neither end gets through to the other any more, also where the server goes on.
pub(super) fn is_cut((mut ours, mut theirs): (TcpStream, TcpStream)) {
    assert!(!answers(&mut ours, SILENCE), "the client is heard");
    theirs.write_all(b"still here").expect("written");
    ours.set_read_timeout(Some(SILENCE)).expect("set");
    let heard = ours.read(&mut [0; 64]);
    assert!(heard.is_err(), "the server is heard: {heard:?}");
    assert!(!answers(&mut ours, SILENCE), "it has come back");
}

#[test]
fn a_connection_that_stands_ends_with_its_permit_and_others_go_on() {
    let _scratch = build();
    hardened();
    let [_, other] = GUESTS;
    let (ssh, web, port) = (
        serve_lines(other, 22),
        serve_lines(other, 443),
        serve_lines(other, PORT),
    );
    let names = inside(other, || UdpSocket::bind("0.0.0.0:53").expect("a socket"));
    names.set_read_timeout(Some(SILENCE)).expect("set");
    let all = [tcp(22, None), tcp(443, None), udp(53), PING];
    give(
        Some(owned(OWN, "eth0", &all)),
        &[published(8080), published(8081)],
    );
    let kept = ssh.begin(LAN, (OWN, 22));
    let cut = web.begin(LAN, (OWN, 443));
    let mut stays = port.begin(LAN, (NODE_ADDRESS, 8080)).0;
    let withdrawn = port.begin(LAN, (NODE_ADDRESS, 8081));
    let asker = inside(LAN, || UdpSocket::bind((LAN_HOST, 0)).expect("a socket"));
    let ask = || {
        asker.send_to(b"?", (OWN, 53)).expect("sent");
        names.recv_from(&mut [0; 8]).map(|(_, from)| from)
    };
    let from = ask().expect("it is asked");
    names.send_to(b"!", from).expect("sent");

    // Who is let in from elsewhere only, and which port is not published now.
    let fewer = [tcp(22, None), tcp(443, Some("203.0.113.0/24")), PING];
    give(Some(owned(OWN, "eth0", &fewer)), &[published(8080)]);
    is_cut(cut);
    is_cut(withdrawn);
    assert!(ask().is_err(), "UDP goes on");
    let mut kept_ours = kept.0.try_clone().expect("a copy");
    assert!(
        answers(&mut kept_ours, PATIENCE),
        "another's connection ended"
    );
    assert!(answers(&mut stays, PATIENCE), "another's connection ended");

    // The address is freed.
    give(None, &[published(8080)]);
    is_cut(kept);
    assert!(answers(&mut stays, PATIENCE), "another's connection ended");
}

/// A guest's standing answer to the LAN is no way into it.
#[test]
fn a_guest_speaks_to_nobody_on_the_lan_whom_it_may_not_answer_any_more() {
    let _scratch = build();
    hardened();
    let [_, other] = GUESTS;
    let names = inside(other, || UdpSocket::bind("0.0.0.0:53").expect("a socket"));
    names.set_read_timeout(Some(PATIENCE)).expect("set");
    give(Some(owned(OWN, "eth0", &[udp(53)])), &[]);
    let asker = inside(LAN, || UdpSocket::bind((LAN_HOST, 0)).expect("a socket"));
    asker.set_read_timeout(Some(PATIENCE)).expect("set");
    asker.send_to(b"?", (OWN, 53)).expect("sent");
    let (_, from) = names.recv_from(&mut [0; 8]).expect("it is asked");
    names.send_to(b"!", from).expect("sent");
    asker.recv_from(&mut [0; 8]).expect("it answers");
    give(Some(owned(OWN, "eth0", &[])), &[]);
    // The kernel may tell it so.
    let _ = names.send_to(b"!", from);
    asker.set_read_timeout(Some(SILENCE)).expect("set");
    let heard = asker.recv_from(&mut [0; 8]);
    assert!(heard.is_err(), "the LAN hears it: {heard:?}");
}

/// What the LAN takes for the MAC of the address.
fn known_as(address: Ipv4Addr) -> String {
    let at = address.to_string();
    let neighbours = inside(LAN, || {
        let mut ip = std::process::Command::new("ip");
        let output = ip.args(["neigh", "show", "to", &at]).output();
        output.expect("ip from Debian's iproute2").stdout
    });
    String::from_utf8(neighbours).expect("text")
}

#[test]
fn who_knew_an_address_at_another_place_learns_that_it_has_moved() {
    let _scratch = build();
    let (own, before) = (OWN.to_string(), "02:00:00:00:00:99");
    inside(LAN, || {
        let mut ip = std::process::Command::new("ip");
        let add = [
            "neigh", "add", &own, "lladdr", before, "dev", "lan0", "nud", "stale",
        ];
        let added = ip.args(add).status().expect("ip from Debian's iproute2");
        assert!(added.success());
    });
    assert!(known_as(OWN).contains(before));
    give(Some(owned(OWN, "eth0", &[])), &[]);
    let end = std::time::Instant::now() + PATIENCE;
    while known_as(OWN).contains(before) {
        assert!(std::time::Instant::now() < end, "{}", known_as(OWN));
        std::thread::yield_now();
    }
    assert!(known_as(OWN).contains("lladdr"), "{}", known_as(OWN));
}

#[test]
fn an_address_is_of_its_link_alone() {
    let _scratch = build();
    let [_, other] = GUESTS;
    let office = Desired {
        create: Some(Create::Veth {
            peer: "eth1".to_owned(),
            namespace: space(NODE),
        }),
        addresses: vec![Cidr::new(OFFICE_HOST.into(), 24).expect("a prefix")],
        ..Desired::up("office0")
    };
    configure(OFFICE, &[office]);
    let second = Desired {
        addresses: vec![Cidr::new(OFFICE_NODE.into(), 24).expect("a prefix")],
        ..Desired::up("eth1")
    };
    configure(NODE, &[second]);
    let of_office = Ipv4Addr::new(192, 168, 78, 200);
    // Somebody on the LAN who sends to it through the node.
    let shortcut = DesiredRoute {
        destination: Cidr::host(of_office).into(),
        gateway: Some(NODE_ADDRESS.into()),
        metric: 0,
    };
    let lan = Desired {
        addresses: vec![Cidr::new(LAN_HOST.into(), 24).expect("a prefix")],
        routes: vec![shortcut],
        ..Desired::up("lan0")
    };
    configure(LAN, &[lan]);
    serve(other, 22);
    serve(LAN, 80);
    give(Some(owned(of_office, "eth1", &[tcp(22, None)])), &[]);
    let client = OFFICE_HOST.to_string();
    assert_eq!(
        greeting(OFFICE, (of_office, 22), PATIENCE).expect("its own link"),
        client
    );
    refused(LAN, (of_office, 22));
    // Out by the other link it is one of the node's.
    let under = greeting(other, (INTERNET, 80), PATIENCE).expect("the internet");
    assert_eq!(under, NODE_ADDRESS.to_string());
}

#[test]
fn a_guest_with_an_address_of_its_own_is_reached_there_by_whom_it_lets_and_speaks_under_it() {
    let _scratch = build();
    let [web, other] = GUESTS;
    for (name, port) in [
        (LAN, 80),
        (other, PORT),
        (other, 22),
        (other, 443),
        (NODE, 7443),
    ] {
        serve(name, port);
    }
    let own = OWN;
    refused(LAN, (own, 22));
    let lets = [
        tcp(22, Some("192.168.77.0/30")),
        tcp(443, Some("203.0.113.0/24")),
    ];
    give(Some(owned(own, "eth0", &lets)), &[published(8080)]);
    let client = LAN_HOST.to_string();
    // The LAN asks by ARP who has it: the node answers. The guest sees who speaks to it.
    assert_eq!(
        greeting(LAN, (own, 22), PATIENCE).expect("what it lets in"),
        client
    );
    // Not from there; not what is published on the node's port only; nor the node itself under that address.
    refused(LAN, (own, 443));
    refused(LAN, (own, PORT));
    refused(LAN, (own, 7443));
    assert!(greeting(LAN, (NODE_ADDRESS, 8080), PATIENCE).is_ok());
    // Outward under its own address; its neighbour, under the node's.
    let speaks = |from: &str| greeting(from, (INTERNET, 80), PATIENCE).expect("the internet");
    assert_eq!(speaks(other), own.to_string());
    assert_eq!(speaks(web), NODE_ADDRESS.to_string());
    refused(other, (LAN_HOST, 80));
    // A neighbour that takes it for itself gets nothing out.
    let thief = Desired {
        mac: Some(guest(2).mac),
        addresses: vec![Cidr::new(own.into(), 32).expect("a prefix")],
        routes: vec![route([10, 128, 7, 1])],
        ..Desired::up("eth0")
    };
    configure(web, &[thief]);
    refused(web, (INTERNET, 80));
    assert_eq!(speaks(other), own.to_string());
    // It is given up.
    inside(NODE, || {
        let nobody = policy::Node::default();
        firewall::apply(&policy::node(&nobody)).expect("the node's rules");
        on_a_runtime(async {
            ensure(&network()).await.expect("the network");
            let nothing = crate::link::Answered::new();
            crate::link::answer_for(&nothing).await.expect("no more");
        });
    });
    refused(LAN, (own, 22));
}
