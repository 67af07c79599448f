//! What a link learns, loses and keeps, in virtual time; and one router over a real link.

use std::net::Ipv6Addr;

use proptest::prelude::*;

use super::advert::tests::{advert, dns_option, ip, prefix_option};
use super::fuzz::Conversation;
use super::*;

const MAC: Mac = Mac([2, 0, 0, 0, 0, 1]);
/// On the link, and addresses follow from it.
const BOTH: u8 = 0xc0;
const MANAGED: u8 = 0x80;

struct Lan {
    link: Link<Box<dyn FnMut() -> u32>>,
    start: Instant,
    seconds: u64,
}

impl Lan {
    fn new() -> Self {
        let start = Instant::now();
        let link = Link::new(MAC, start, Box::new(|| 7_u32) as Box<_>);
        Self {
            link,
            start,
            seconds: 0,
        }
    }

    fn now(&self) -> Instant {
        self.start + Duration::from_secs(self.seconds)
    }

    /// An advertisement of the router `fe80::<router>`.
    fn hear(&mut self, router: &str, lifetime: u16, flags: u8, options: &[Vec<u8>]) -> Vec<Action> {
        let packet = advert(lifetime, flags, options);
        let advert = advert::parse(ip(router), 255, &packet).expect("an advertisement");
        self.link.advert(self.now(), &advert)
    }

    /// Time passes, and each deadline is kept. How often routers were asked meanwhile.
    fn pass(&mut self, seconds: u64) -> usize {
        let end = self.now() + Duration::from_secs(seconds);
        let mut asked = 0;
        while let Some(at) = self.link.deadline().filter(|at| *at <= end) {
            let actions = self.link.tick(at);
            asked += actions
                .iter()
                .filter(|a| matches!(a, Action::Solicit(_)))
                .count();
        }
        self.seconds += seconds;
        asked
    }

    fn addresses(&self) -> Vec<String> {
        let all = self.link.learned.addresses.iter();
        all.map(ToString::to_string).collect()
    }

    fn gateway(&self) -> Option<String> {
        self.link.learned.gateway.map(|g| g.to_string())
    }
}

const FIRST: &str = "2001:db8:1::/64";
const FIRST_OURS: &str = "2001:db8:1::ff:fe00:1/64";
const SECOND: &str = "2001:db8:2::/64";
const SECOND_OURS: &str = "2001:db8:2::ff:fe00:1/64";

#[test]
fn a_router_gives_an_address_that_follows_from_the_ports_own() {
    let mut lan = Lan::new();
    let said = [
        prefix_option(FIRST, BOTH, 7200, 3600),
        dns_option("2001:db8::53", 1200),
        vec![5, 1, 0, 0, 0, 0, 5, 0x78],
    ];
    let actions = lan.hear("fe80::1", 1800, 0, &said);
    let address: Cidr6 = "2001:db8:1:0:0:ff:fe00:1/64".parse().expect("an address");
    let learned = Learned {
        addresses: vec![address],
        gateway: Some(ip("fe80::1")),
        dns: vec![ip("2001:db8::53")],
        mtu: Some(1400),
        ..Learned::default()
    };
    assert_eq!(actions, [Action::Learned(learned)]);
    assert_eq!(lan.hear("fe80::1", 1800, 0, &said), [], "nothing is new");
}

#[test]
fn a_router_that_comes_after_ten_minutes_is_heard_and_until_then_asked_for() {
    let mut lan = Lan::new();
    let asked = lan.pass(600);
    assert!((6..20).contains(&asked), "{asked}");
    lan.hear(
        "fe80::1",
        1800,
        0,
        &[prefix_option(FIRST, BOTH, 7200, 3600)],
    );
    assert_eq!(lan.addresses(), [FIRST_OURS]);
    assert_eq!(lan.pass(900), 0, "who is known is not asked");
}

#[test]
fn what_a_router_says_ends_with_its_lifetime_and_another_takes_over() {
    let mut lan = Lan::new();
    lan.hear(
        "fe80::1",
        600,
        0,
        &[prefix_option(FIRST, BOTH, 14400, 3600)],
    );
    lan.hear("fe80::2", 1800, 0, &[]);
    assert_eq!(
        lan.gateway().as_deref(),
        Some("fe80::1"),
        "it stays of equals"
    );
    lan.pass(601);
    assert_eq!(lan.gateway().as_deref(), Some("fe80::2"));
    lan.hear("fe80::2", 0, 0, &[]);
    assert_eq!(lan.gateway(), None);
    assert_eq!(
        lan.addresses(),
        [FIRST_OURS],
        "its address has a life of its own"
    );
    assert!(lan.pass(600) > 0, "another is asked for");
    lan.pass(14_400);
    assert_eq!(lan.addresses(), [""; 0]);
}

#[test]
fn the_router_that_says_it_is_better_is_used() {
    let mut lan = Lan::new();
    lan.hear("fe80::1", 600, 0, &[]);
    lan.hear("fe80::2", 600, 0x08, &[]);
    assert_eq!(lan.gateway().as_deref(), Some("fe80::2"));
    lan.hear("fe80::2", 600, 0x18, &[]);
    assert_eq!(lan.gateway().as_deref(), Some("fe80::1"));
}

fn says(lan: &mut Lan, address: &str, answers: bool) -> String {
    let address = ip(address);
    let said = Neighbour { address, answers };
    lan.link.neighbour(lan.now(), said);
    lan.gateway().expect("one is always tried")
}

#[test]
fn a_router_that_does_not_answer_is_left_for_one_that_does() {
    let mut lan = Lan::new();
    // The dead one would be the better.
    lan.hear("fe80::1", 1800, 0x08, &[]);
    lan.hear("fe80::2", 1800, 0, &[]);
    assert_eq!(lan.gateway().as_deref(), Some("fe80::1"));
    assert_eq!(says(&mut lan, "fe80::1", false), "fe80::2");
    assert_eq!(says(&mut lan, "fe80::77", false), "fe80::2", "no router");
    // Where none answers they are tried in turn.
    for expected in ["fe80::1", "fe80::2", "fe80::1"] {
        lan.pass(3);
        let tried = lan.gateway().expect("one is tried");
        assert_eq!(says(&mut lan, &tried, false), expected);
    }
    assert_eq!(says(&mut lan, "fe80::2", true), "fe80::2");
    assert_eq!(says(&mut lan, "fe80::1", true), "fe80::1");
    // What it says of itself is followed at once.
    lan.hear("fe80::1", 0, 0x08, &[]);
    assert_eq!(lan.gateway().as_deref(), Some("fe80::2"));
}

/// A dead one whose advertisements something goes on sending, or one whose other half is dead.
#[test]
fn a_router_that_speaks_and_does_not_answer_is_tried_again_more_and_more_rarely() {
    let mut lan = Lan::new();
    let speak = |lan: &mut Lan| {
        lan.hear("fe80::1", 1800, 0x08, &[]);
        lan.hear("fe80::2", 1800, 0, &[]);
        lan.gateway().expect("one of them")
    };
    assert_eq!(speak(&mut lan), "fe80::1");
    for minutes in [5, 10, 20, 40, 60, 60] {
        assert_eq!(says(&mut lan, "fe80::1", false), "fe80::2");
        for minute in 1..minutes {
            lan.pass(60);
            assert_eq!(speak(&mut lan), "fe80::2", "{minute} of {minutes}");
            // The kernel finds out again and again that it does not answer, and that is no news.
            assert_eq!(says(&mut lan, "fe80::1", false), "fe80::2");
        }
        lan.pass(60);
        assert_eq!(speak(&mut lan), "fe80::1", "{minutes}");
    }
    // It answers: all is forgotten.
    assert_eq!(says(&mut lan, "fe80::1", true), "fe80::1");
    assert_eq!(says(&mut lan, "fe80::1", false), "fe80::2");
    lan.pass(300);
    assert_eq!(speak(&mut lan), "fe80::1");
}

/// Of two that say it in the two ways that there are, as a router and as a route to everywhere.
#[test]
fn a_dead_router_is_left_for_one_that_only_says_that_it_has_a_route_to_everywhere() {
    let mut lan = Lan::new();
    let mut everywhere = vec![24, 1, 0, 0];
    everywhere.extend(1800_u32.to_be_bytes());
    lan.hear("fe80::1", 1800, 0, &[]);
    lan.hear("fe80::2", 0, 0, &[everywhere]);
    assert_eq!(lan.gateway().as_deref(), Some("fe80::1"));
    assert_eq!(says(&mut lan, "fe80::1", false), "fe80::2");
    lan.pass(1);
    assert_eq!(says(&mut lan, "fe80::2", false), "fe80::1");
    assert_eq!(says(&mut lan, "fe80::2", true), "fe80::2");
    assert_eq!(says(&mut lan, "fe80::1", true), "fe80::1");
}

#[test]
fn an_address_that_is_not_preferred_any_more_goes_as_soon_as_there_is_a_better() {
    let mut lan = Lan::new();
    lan.hear(
        "fe80::1",
        1800,
        0,
        &[prefix_option(FIRST, BOTH, 14400, 3600)],
    );
    lan.hear("fe80::1", 1800, 0, &[prefix_option(FIRST, BOTH, 14400, 0)]);
    assert_eq!(lan.addresses(), [FIRST_OURS], "better than none");
    let both = [
        prefix_option(FIRST, BOTH, 14400, 0),
        prefix_option(SECOND, BOTH, 14400, 3600),
    ];
    lan.hear("fe80::1", 1800, 0, &both);
    assert_eq!(lan.addresses(), [SECOND_OURS]);
}

#[test]
fn a_router_that_began_anew_with_another_prefix_is_followed() {
    let mut lan = Lan::new();
    lan.hear(
        "fe80::1",
        1800,
        0,
        &[prefix_option(FIRST, BOTH, u32::MAX, u32::MAX)],
    );
    for _ in 0..4 {
        lan.hear(
            "fe80::1",
            1800,
            0,
            &[prefix_option(SECOND, BOTH, 14400, 3600)],
        );
    }
    assert_eq!(lan.addresses(), [SECOND_OURS]);
}

#[test]
fn one_forged_advertisement_does_not_end_an_address() {
    let mut lan = Lan::new();
    lan.hear(
        "fe80::1",
        1800,
        0,
        &[prefix_option(FIRST, BOTH, 86400, 86400)],
    );
    lan.hear("fe80::1", 1800, 0, &[prefix_option(FIRST, BOTH, 0, 0)]);
    lan.pass(7000);
    assert_eq!(lan.addresses(), [FIRST_OURS]);
    lan.pass(300);
    assert_eq!(lan.addresses(), [""; 0]);
}

#[test]
fn where_the_cable_leads_elsewhere_what_nobody_repeats_is_forgotten() {
    let mut lan = Lan::new();
    lan.hear(
        "fe80::1",
        1800,
        0,
        &[prefix_option(FIRST, BOTH, 86400, 86400)],
    );
    let asked = lan.link.attached(lan.now());
    assert!(matches!(asked[..], [Action::Solicit(_)]), "{asked:?}");
    lan.pass(60);
    assert_eq!(lan.addresses(), [FIRST_OURS], "nobody has answered yet");
    lan.hear(
        "fe80::9",
        1800,
        0,
        &[prefix_option(SECOND, BOTH, 86400, 86400)],
    );
    lan.pass(10);
    assert_eq!(lan.addresses(), [SECOND_OURS]);
    assert_eq!(lan.gateway().as_deref(), Some("fe80::9"));
}

#[test]
fn a_flap_in_the_same_network_changes_nothing() {
    let mut lan = Lan::new();
    let said = [
        prefix_option(FIRST, BOTH, 86400, 86400),
        dns_option("2001:db8::53", 9000),
    ];
    lan.hear("fe80::1", 1800, 0, &said);
    let before = lan.link.learned.clone();
    for _ in 0..5 {
        lan.link.attached(lan.now());
        lan.pass(1);
        assert_eq!(lan.hear("fe80::1", 1800, 0, &said), []);
        lan.pass(60);
        assert_eq!(lan.link.learned, before);
    }
}

#[test]
fn where_addresses_are_managed_the_prefix_is_a_route_and_a_server_is_asked() {
    let mut lan = Lan::new();
    let actions = lan.hear(
        "fe80::1",
        1800,
        MANAGED,
        &[prefix_option(FIRST, 0x80, 7200, 3600)],
    );
    let asked = actions
        .iter()
        .filter(|a| matches!(a, Action::Ask(message) if message[0] == 1));
    assert_eq!(asked.count(), 1, "{actions:?}");
    let network: Cidr6 = FIRST.parse().expect("a prefix");
    assert_eq!(lan.link.learned.routes, [(network, None)]);
    assert_eq!(lan.addresses(), [""; 0]);
}

#[test]
fn a_prefix_that_is_not_on_the_link_gives_an_address_alone() {
    let mut lan = Lan::new();
    lan.hear(
        "fe80::1",
        1800,
        0,
        &[prefix_option(FIRST, 0x40, 7200, 3600)],
    );
    assert_eq!(lan.addresses(), ["2001:db8:1::ff:fe00:1/128"]);
    assert_eq!(lan.link.learned.routes, []);
}

proptest! {
    /// Whatever is heard whenever: nothing panics, works without pause, or grows without end.
    #[test]
    fn any_conversation_ends_in_something_sane(
        events in prop::collection::vec((0_u8..8, any::<u8>(), any::<u32>(), prop::collection::vec(any::<u8>(), 0..40)), 0..50)
    ) {
        let mut lan = Conversation::default();
        for (kind, small, large, bytes) in events {
            let lifetime = if large & 1 == 0 { large } else { large & 0xffff };
            let network = format!("2001:db8:{small:x}::/64");
            match kind {
                0 => lan.wait(lifetime),
                1 => lan.wait_for_deadline(),
                2 => lan.attach(),
                3 => lan.hear_server(&bytes),
                4 => lan.hear_router(small, 255, &bytes),
                7 => lan.notice(small & 3, large & 1 == 0),
                _ => {
                    let seconds = u16::try_from(large & 0xffff).expect("16 bits");
                    let options = [
                        prefix_option(&network, small, lifetime, lifetime / 2),
                        dns_option("2001:db8::53", lifetime),
                    ];
                    lan.hear_router(small & 3, 255, &advert(seconds, small, &options))
                }
            };
        }
    }
}

mod on_a_link {
    //! A real kernel's sockets and neighbours, over a veth pair between two namespaces. Needs root.

    use std::net::{SocketAddrV6, UdpSocket};

    use nix::sys::socket::{
        AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn6, recv, sendto,
        setsockopt, socket, sockopt,
    };

    use super::*;
    use crate::dhcp6;
    use crate::firewall::{self, policy};
    use crate::link::{Create, Desired, Handle, Monitor, plan};
    use crate::namespace;
    use crate::scratch::{Scratch, on_a_runtime};
    use crate::site::{Heard, Site};

    /// How long anything may take here; it takes as long as the kernel looks for a twin of an address: 2 s.
    const PATIENCE: Duration = Duration::from_secs(20);

    /// Answers the first solicitation with an advertisement that says where to ask, and what is asked then.
    fn router(index: u32) {
        let flags = SockFlag::SOCK_CLOEXEC;
        let icmp = socket(
            AddressFamily::Inet6,
            SockType::Raw,
            flags,
            SockProtocol::IcmpV6,
        );
        let icmp = icmp.expect("a raw socket; it needs root");
        setsockopt(&icmp, sockopt::Ipv6MulticastHops, &255).expect("set");
        setsockopt(&icmp, sockopt::BindToDevice, &"lan0".to_owned().into()).expect("set");
        // A router hears what is sent to all routers.
        std::fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "1").expect("a router");
        let servers = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 547)).expect("a socket");
        servers
            .join_multicast_v6(&dhcp6::SERVERS, index)
            .expect("joined");
        let mut packet = [0; 1500];
        let raw = std::os::fd::AsRawFd::as_raw_fd(&icmp);
        while !matches!(recv(raw, &mut packet, MsgFlags::empty()), Ok(1..) if packet[0] == 133) {}
        let said = [
            prefix_option(FIRST, BOTH, 7200, 3600),
            dns_option("2001:db8:1::53", 1200),
        ];
        let everybody = SocketAddrV6::new(ip("ff02::1"), 0, 0, index);
        let answer = advert(1800, MANAGED, &said);
        sendto(
            raw,
            &answer,
            &SockaddrIn6::from(everybody),
            MsgFlags::empty(),
        )
        .expect("sent");
        for kind in [2, 7] {
            let (length, from) = servers.recv_from(&mut packet).expect("a question");
            let mac = packet[12..18]
                .first_chunk::<6>()
                .expect("the client's identity");
            let options = [
                dhcp6::tests::ia_option(Mac(*mac), "2001:db8:1::77", [100, 200, 300, 400]),
                dhcp6::tests::ntp_option("2001:db8:1::123"),
            ];
            let answer = dhcp6::tests::answer(kind, &packet[..length], &options);
            servers.send_to(&answer, from).expect("sent");
        }
    }

    #[test]
    fn a_router_and_a_server_configure_a_link() {
        let scratch = Scratch::new("autoconf");
        let (node, lan) = (scratch.name("node"), scratch.name("lan"));
        let node = Arc::new(namespace::ensure(&node).expect("a namespace; it needs root"));
        let lan = namespace::ensure(&lan).expect("a namespace");
        let index = namespace::within(&lan, || on_a_runtime(wire_up(node.clone())));
        let index = index.expect("a pair of links");
        std::thread::scope(|scope| {
            scope.spawn(|| {
                namespace::within(&lan, || {
                    router(index);
                    Ok(())
                })
            });
            namespace::within(&node, || {
                crate::ground::prepare()?;
                let uplink = policy::Node {
                    uplinks: vec!["eth0".to_owned()],
                    ..policy::Node::default()
                };
                firewall::apply(&policy::node(&uplink))?;
                on_a_runtime(configure())
            })
            .expect("configured");
        });
    }

    async fn wire_up(node: Arc<std::os::fd::OwnedFd>) -> Result<u32, crate::Error> {
        let create = Some(Create::Veth {
            peer: "eth0".to_owned(),
            namespace: node.clone(),
        });
        let lan = Desired {
            create,
            ..Desired::up("lan0")
        };
        let (mut handle, mut other) = (Handle::open()?, Handle::open_in(&*node)?);
        let steps = plan(&[lan], &handle.observe().await?);
        handle.apply(&steps).await?;
        let eth0 = [Desired::up("eth0")];
        let steps = plan(&eth0, &other.observe().await?);
        other.apply(&steps).await?;
        ready(&mut handle, "lan0").await.map(|link| link.index)
    }

    /// The link, once it has an address of its own.
    async fn ready(handle: &mut Handle, name: &str) -> Result<crate::link::Link, crate::Error> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let observed = handle.observe().await?;
            let link = observed.link(name).expect("the link");
            if link.local.is_some() {
                return Ok(link.clone());
            }
            assert!(Instant::now() < deadline, "no address of its own: {link:?}");
            // The monitor of that namespace is another test's business.
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn configure() -> Result<(), crate::Error> {
        let (mut handle, mut monitor) = (Handle::open()?, Monitor::open()?);
        let link = ready(&mut handle, "eth0").await?;
        let port = Port {
            name: link.name.clone(),
            index: link.index,
            mac: link.mac.expect("a MAC"),
            local: link.local.expect("an address of its own"),
        };
        let (told, mut learned) = watch::channel(Learned::default());
        let all = async {
            let whole = |l: &Learned| l.addresses.len() == 2 && !l.ntp.is_empty();
            let wait = tokio::time::timeout(PATIENCE, learned.wait_for(whole)).await;
            let all = wait.expect("in time").expect("a sender").clone();
            drop(learned);
            all
        };
        let ((), learned) = tokio::join!(run(port, told, Arc::default()), all);
        assert_eq!(learned.addresses[0].to_string(), "2001:db8:1::77/128");
        assert_eq!(learned.dns, [ip("2001:db8:1::53")]);
        assert_eq!(learned.ntp, [ip("2001:db8:1::123")]);
        // What init does with it.
        let heard = [(
            "eth0".to_owned(),
            Heard {
                lease: None,
                learned: Some(learned),
            },
        )]
        .into();
        let deadline = Instant::now() + PATIENCE;
        loop {
            let mut observed = handle.observe().await?;
            for link in observed.links.iter_mut().filter(|l| l.name == "eth0") {
                link.kind = crate::link::Kind::Ethernet;
            }
            let steps = Site::default().wanted(&observed, &heard).steps(&observed);
            if steps.is_empty() {
                let default = |r: &crate::link::Route| r.destination.to_string() == "::/0";
                assert!(observed.routes.iter().any(default), "{observed:?}");
                return Ok(());
            }
            assert!(Instant::now() < deadline, "it never ends: {steps:?}");
            handle.apply(&steps).await?;
            monitor.changed().await?;
        }
    }
}
