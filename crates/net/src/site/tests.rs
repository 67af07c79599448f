//! What options mean, what contradicts itself, and that a kernel comes to be as described from wherever it was.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::link::{Create, Kind, Link, Observed, Route, Step};
use types::Cidr;

/// Reads options as they stand on a command line, without `sifr.`.
fn read(options: &str) -> (Site, Vec<String>) {
    let mut draft = Draft::default();
    let mut errors = Vec::new();
    for word in options.split_whitespace() {
        let (key, value) = word.split_once('=').expect("key=value");
        let set = match key.strip_prefix("net.") {
            Some(link) => draft.set_link(link, value),
            None => draft.set_dns(value),
        };
        errors.extend(set.err().map(|error| format!("{word}: {error}")));
    }
    let (site, more) = draft.site();
    errors.extend(more);
    (site, errors)
}

fn site(options: &str) -> Site {
    let (site, errors) = read(options);
    assert_eq!(errors, [""; 0], "{options}");
    site
}

fn cidr<A: types::cidr::Address>(text: &str) -> Cidr<A> {
    text.parse().expect("a prefix")
}

fn mac(last: u8) -> Mac {
    Mac([2, 0, 0, 0, 0, last])
}

fn port(name: &str, index: u32) -> Link {
    Link {
        name: name.to_owned(),
        index,
        mac: Some(mac(u8::try_from(index).expect("small"))),
        permanent: Some(mac(u8::try_from(index).expect("small"))),
        up: false,
        carrier: false,
        mtu: MTU,
        kind: Kind::Ethernet,
        master: None,
        addresses: Vec::new(),
        local: None,
        taken: Vec::new(),
    }
}

/// A machine with so many ports, `eth0` and on.
fn machine(ports: u32) -> Observed {
    let lo = Link {
        kind: Kind::Loopback,
        permanent: None,
        mac: None,
        ..port("lo", 1)
    };
    let ports = (0..ports).map(|n| port(&format!("eth{n}"), n + 2));
    Observed {
        links: std::iter::once(lo).chain(ports).collect(),
        routes: Vec::new(),
    }
}

/// What a DHCP server says.
fn lease(address: &str, gateway: [u8; 4]) -> Heard {
    let lease = Some(Lease {
        address: cidr(address),
        gateway: Some(gateway.into()),
        dns: vec![[10, 0, 2, 3].into()],
        ntp: Vec::new(),
        mtu: Some(1400),
        expires: None,
    });
    Heard {
        lease,
        learned: None,
    }
}

/// What a router says.
fn learned(address: &str) -> Heard {
    let address: Cidr6 = cidr(address);
    Heard {
        lease: None,
        learned: Some(Learned {
            addresses: vec![address],
            gateway: "fe80::1".parse().ok(),
            routes: vec![
                (cidr("2001:db8:9::/48"), "fe80::2".parse().ok()),
                (cidr("2001:db8:8::/64"), None),
            ],
            dns: vec![
                "2001:db8::53".parse().expect("one"),
                "fe80::53".parse().expect("one"),
            ],
            ntp: Vec::new(),
            mtu: Some(1450),
        }),
    }
}

fn words(steps: &[Step]) -> Vec<String> {
    let loopback = |word: &String| !word.contains("link lo");
    steps
        .iter()
        .map(ToString::to_string)
        .filter(loopback)
        .collect()
}

/// The first steps towards `options` on a machine as it is found.
fn steps(options: &str, heard: &BTreeMap<String, Heard>) -> Vec<String> {
    let observed = machine(2);
    words(&site(options).wanted(&observed, heard).steps(&observed))
}

#[test]
fn without_options_every_port_asks_and_a_lease_becomes_address_mtu_and_route() {
    let leases = BTreeMap::from([("eth0".to_owned(), lease("10.0.2.15/24", [10, 0, 2, 2]))]);
    let observed = machine(2);
    let wanted = Site::default().wanted(&observed, &leases);
    assert!(wanted.roles.iter().all(|role| role.asks && role.listens) && wanted.roles.len() == 2);
    let expected = [
        "set MTU 1400 on link eth0",
        "set link eth0 up",
        "add address 10.0.2.15/24 to link eth0",
        "add route to 0.0.0.0/0 via 10.0.2.2 on link eth0",
        "set link eth1 up",
    ];
    assert_eq!(words(&wanted.steps(&observed)), expected);
}

#[test]
fn both_families_stand_beside_each_other_and_neither_waits() {
    let observed = machine(1);
    let mut heard = BTreeMap::from([("eth0".to_owned(), learned("2001:db8:1::7/64"))]);
    let v6 = [
        "set MTU 1450 on link eth0",
        "set link eth0 up",
        "add address 2001:db8:1::7/64 to link eth0",
        "add route to ::/0 via fe80::1 on link eth0",
        "add route to 2001:db8:9::/48 via fe80::2 on link eth0",
        "add route to 2001:db8:8::/64 on link eth0",
    ];
    let wanted = Site::default().wanted(&observed, &heard);
    assert_eq!(words(&wanted.steps(&observed)), v6);
    let both = heard.get_mut("eth0").expect("it is there");
    both.lease = lease("10.0.2.15/24", [10, 0, 2, 2]).lease;
    let wanted = Site::default().wanted(&observed, &heard);
    let mut expected = v6.to_vec();
    expected[0] = "set MTU 1400 on link eth0";
    expected.insert(2, "add address 10.0.2.15/24 to link eth0");
    expected.insert(4, "add route to 0.0.0.0/0 via 10.0.2.2 on link eth0");
    assert_eq!(words(&wanted.steps(&observed)), expected);
    let addressing = wanted.roles[0].addressing.as_ref().expect("addresses");
    let dns: Vec<String> = addressing.dns.iter().map(ToString::to_string).collect();
    assert_eq!(
        dns,
        ["10.0.2.3", "2001:db8::53"],
        "and none of one link only"
    );
}

#[test]
fn addresses_of_both_families_are_written_down_with_their_gateways() {
    let options = "net.eth0.address=192.0.2.7/24,2001:db8::7/64,2001:db8::8/64 \
        net.eth0.gateway=fe80::1,192.0.2.1 dns=2001:db8::53,192.0.2.53";
    let expected = [
        "set link eth0 up",
        "add address 192.0.2.7/24 to link eth0",
        "add address 2001:db8::7/64 to link eth0",
        "add address 2001:db8::8/64 to link eth0",
        "add route to 0.0.0.0/0 via 192.0.2.1 on link eth0",
        "add route to ::/0 via fe80::1 on link eth0",
        "set link eth1 up",
    ];
    assert_eq!(steps(options, &BTreeMap::new()), expected);
    let heard = BTreeMap::from([("eth0".to_owned(), learned("2001:db8:1::7/64"))]);
    assert_eq!(steps(options, &heard), expected, "nobody was to be heard");
    let both = format!("{options} net.eth0.ra=on");
    let steps = steps(&both, &heard);
    assert!(
        steps.contains(&"add address 2001:db8:1::7/64 to link eth0".to_owned()),
        "{steps:?}"
    );
    assert!(steps.contains(&"add route to ::/0 via fe80::1 on link eth0".to_owned()));
}

#[test]
fn an_address_that_is_written_down_needs_no_dhcp() {
    let options = "net.eth1.address=192.0.2.7/24 net.eth1.gateway=192.0.2.1 dns=192.0.2.53,9.9.9.9";
    let expected = [
        "set link eth0 up",
        "set link eth1 up",
        "add address 192.0.2.7/24 to link eth1",
        "add route to 0.0.0.0/0 via 192.0.2.1 on link eth1",
    ];
    assert_eq!(steps(options, &BTreeMap::new()), expected);
    let wanted = site(options).wanted(&machine(2), &BTreeMap::new());
    let roles: Vec<_> = wanted
        .roles
        .iter()
        .map(|r| (r.link.as_str(), r.asks))
        .collect();
    assert_eq!(roles, [("eth1", false)], "what is not named is not used");
    assert_eq!(site(options).dns.len(), 2);
}

#[test]
fn two_ports_become_a_bond_and_a_vlan_lies_on_it() {
    let options = "net.lan.bond=active-backup net.lan.ports=eth1,02:00:00:00:00:02 \
        net.office.vlan=7 net.office.on=lan net.office.address=192.0.2.7/24";
    let expected = [
        "create bond lan (active-backup)",
        "set MTU 1500 on link lan",
        "set link lan up",
        "make link eth0 a port of lan",
        "set link eth0 up",
        "make link eth1 a port of lan",
        "set link eth1 up",
        "create VLAN 7 on lan as office",
        "set MTU 1500 on link office",
        "set link office up",
        "add address 192.0.2.7/24 to link office",
    ];
    assert_eq!(steps(options, &BTreeMap::new()), expected);
    let wanted = site(options).wanted(&machine(2), &BTreeMap::new());
    assert!(wanted.roles.iter().all(|role| !role.asks), "{wanted:?}");
    assert_eq!(wanted.problems, [""; 0]);
}

#[test]
fn a_port_that_the_machine_lacks_is_told_with_those_it_has() {
    let wanted = site("net.eth7.dhcp=on net.eth0.dhcp=on").wanted(&machine(1), &BTreeMap::new());
    let expected = "the machine has no port eth7; it has eth0 (02:00:00:00:00:02)";
    assert_eq!(wanted.problems, [expected]);
    assert_eq!(wanted.roles.len(), 1);
    let twice = site("net.eth0.dhcp=on net.02:00:00:00:00:02.dhcp=on");
    let wanted = twice.wanted(&machine(1), &BTreeMap::new());
    assert_eq!(
        wanted.problems,
        ["02:00:00:00:00:02 is eth0, which is named already"]
    );
}

#[test]
fn what_is_made_takes_no_name_that_something_else_has() {
    let mut observed = machine(2);
    observed.links.push(Link {
        kind: Kind::Other,
        ..port("sit0", 9)
    });
    for name in ["eth1", "sit0"] {
        let vlan = site(&format!("net.{name}.vlan=7 net.{name}.on=eth0"));
        let wanted = vlan.wanted(&observed, &BTreeMap::new());
        let expected = format!("{name} is there already");
        assert!(wanted.problems[0].starts_with(&expected), "{wanted:?}");
        assert_eq!(wanted.roles, []);
    }
}

#[test]
fn options_that_say_nothing_or_two_things_are_refused_with_what_would_be_right() {
    let cases = [
        ("net.eth0.adress=192.0.2.7/24", "there is no such key"),
        ("net.eth0.address=192.0.2.7", "with its prefix length"),
        ("net.eth0.address=192.0.2.0/24", "no address of a machine"),
        (
            "net.eth0.address=192.0.2.7/24 net.eth0.gateway=192.0.3.1",
            "lies in no network",
        ),
        (
            "net.eth0.dhcp=off net.eth0.gateway=192.0.2.1",
            "without an address",
        ),
        (
            "net.eth0.address=192.0.2.7/24 net.eth0.gateway=192.0.2.7",
            "the node's own",
        ),
        ("net.eth0.dhcp=yes", "use on or off"),
        ("net.eth0.mtu=90", "use 576 to 9216"),
        ("net.eth0=dhcp", "sifr.net.<link>.<key>=<value>"),
        ("net.lo.address=192.0.2.7/24", "the node gives itself"),
        ("net.tenant3.dhcp=on", "the node gives itself"),
        ("net.all.dhcp=on", "the kernel gives no link"),
        ("net.much-too-long-a-name.dhcp=on", "no name of a link"),
        ("net.a.vlan=4095 net.a.on=eth0", "1 to 4094"),
        ("net.a.vlan=5", "name it with on="),
        ("net.a.on=eth0", "with vlan="),
        ("net.a.bond=802.3ad", "name them with ports="),
        ("net.a.ports=eth0", "say with bond="),
        (
            "net.a.bond=balance-rr net.a.ports=eth0",
            "802.3ad or active-backup",
        ),
        ("net.a.bond=802.3ad net.a.ports=eth0,eth0", "named twice"),
        (
            "net.a.bond=lacp net.a.ports=eth0 net.a.vlan=5 net.a.on=eth1",
            "name two links",
        ),
        (
            "net.02:00:00:00:00:02.vlan=5 net.02:00:00:00:00:02.on=eth0",
            "a name of its own",
        ),
        (
            "net.a.bond=lacp net.a.ports=eth0 net.eth0.dhcp=on",
            "no options of its own",
        ),
        (
            "net.a.bond=lacp net.a.ports=eth0 net.b.bond=lacp net.b.ports=eth0",
            "another bond",
        ),
        (
            "net.a.bond=lacp net.a.ports=eth0 net.b.vlan=5 net.b.on=eth0",
            "put the VLAN on that",
        ),
        (
            "net.a.vlan=5 net.a.on=eth0 net.b.vlan=6 net.b.on=a",
            "is a VLAN itself",
        ),
        (
            "net.a.vlan=5 net.a.on=eth0 net.b.vlan=5 net.b.on=eth0",
            "a is the same VLAN",
        ),
        (
            "net.a.vlan=5 net.a.on=eth0 net.a.mtu=9000",
            "give eth0 a larger mtu",
        ),
        (
            "net.a.address=192.0.2.7/24 net.b.address=192.0.2.7/25",
            "another link's address",
        ),
        ("dns=one.one.one.one", "a name server's address"),
        ("dns=fe80::1", "another machine on each link"),
        ("net.eth0.address=fe80::7/64", "no address of a machine"),
        ("net.eth0.address=2001:db8::/64", "no address of a machine"),
        ("net.eth0.address=ff02::1/64", "no address of a machine"),
        (
            "net.eth0.address=::ffff:192.0.2.7/64",
            "no address of a machine",
        ),
        ("net.eth0.address=2001:db8::7", "with its prefix length"),
        ("net.eth0.address=2001:db8::7/129", "with its prefix length"),
        (
            "net.eth0.address=2001:db8::7/64 net.eth0.gateway=2001:db9::1",
            "lies in no network",
        ),
        (
            "net.eth0.address=192.0.2.7/24 net.eth0.gateway=fe80::1",
            "without an address of its kind",
        ),
        (
            "net.eth0.address=2001:db8::7/64 net.eth0.gateway=192.0.2.1",
            "without an address of its kind",
        ),
        (
            "net.eth0.gateway=fe80::1,fe80::2",
            "one of IPv4, one of IPv6",
        ),
        ("net.eth0.gateway=::1", "one of IPv4, one of IPv6"),
        ("net.eth0.ra=yes", "use on or off"),
        (
            "net.eth0.address=2001:db8::7/64 net.eth0.mtu=1200",
            "an mtu of 1280 or more",
        ),
        ("net.eth0.ra=on net.eth0.mtu=1200", "an mtu of 1280 or more"),
        (
            "net.eth0.mtu=1200 net.lan.vlan=1 net.lan.on=eth0 net.lan.address=2001:db8:1::1/64",
            "an mtu of 1280 or more",
        ),
    ];
    for (options, expected) in cases {
        let (_, errors) = read(options);
        let [error] = errors.as_slice() else {
            panic!("{options}: {errors:?}");
        };
        assert!(error.contains(expected), "{options}: {error}");
    }
}

#[test]
fn a_link_with_an_error_is_left_out_with_what_lies_on_it_and_no_port_asks_instead() {
    let (site, errors) =
        read("net.lan.bond=lacp net.lan.prots=eth0,eth1 net.a.vlan=5 net.a.on=lan");
    assert_eq!(errors.len(), 2, "{errors:?}");
    assert!(errors[1].contains("lan is left out"), "{errors:?}");
    assert_eq!(site.links, Some(Vec::new()));
    assert_eq!(site.wanted(&machine(2), &BTreeMap::new()).roles, []);
}

/// A kernel that does steps as Linux does, and refuses what Linux refuses.
struct Kernel {
    now: Observed,
    next: u32,
    /// MTUs that ports had before they were put in a bond.
    before: BTreeMap<u32, u32>,
}

impl Kernel {
    fn link(&mut self, name: &str) -> Result<&mut Link, String> {
        let link = self.now.links.iter_mut().find(|l| l.name == name);
        link.ok_or_else(|| format!("no link {name}"))
    }

    fn index(&mut self, name: &str) -> Result<u32, String> {
        Ok(self.link(name)?.index)
    }

    fn down(&mut self, index: u32) {
        self.now.routes.retain(|route| route.link != index);
        let link = self.now.links.iter_mut().find(|l| l.index == index);
        if let Some(link) = link {
            link.up = false;
            link.addresses.retain(|a| a.address.is_ipv4());
        }
    }

    fn release(&mut self, index: u32) {
        let before = self.before.remove(&index);
        for link in self.now.links.iter_mut().filter(|l| l.index == index) {
            (link.master, link.mtu) = (None, before.unwrap_or(link.mtu));
        }
        self.down(index);
    }

    fn delete(&mut self, index: u32) {
        let on = |l: &&Link| matches!(l.kind, Kind::Vlan { on, .. } if on == index);
        let on_it: Vec<u32> = self.now.links.iter().filter(on).map(|l| l.index).collect();
        on_it.into_iter().for_each(|index| self.delete(index));
        let ports = self
            .now
            .links
            .iter_mut()
            .filter(|l| l.master == Some(index));
        let ports: Vec<u32> = ports.map(|l| l.index).collect();
        ports.into_iter().for_each(|port| self.release(port));
        self.down(index);
        self.now.links.retain(|l| l.index != index);
    }

    fn create(&mut self, name: &str, create: &Create) -> Result<(), String> {
        if self.link(name).is_ok() {
            return Err(format!("{name} exists"));
        }
        let (kind, mtu) = match create {
            Create::Bond { mode } => (Kind::Bond(Some(*mode)), MTU),
            Create::Vlan { on, id } => {
                let on = self.link(on)?.clone();
                let twin = |l: &Link| {
                    l.kind
                        == Kind::Vlan {
                            on: on.index,
                            id: *id,
                        }
                };
                if self.now.links.iter().any(twin) {
                    return Err(format!("VLAN {id} exists on {}", on.name));
                }
                (
                    Kind::Vlan {
                        on: on.index,
                        id: *id,
                    },
                    on.mtu,
                )
            }
            Create::Bridge | Create::Veth { .. } | Create::Wireguard { .. } => {
                return Err("not in the node's own network".to_owned());
            }
        };
        self.next += 1;
        let link = Link {
            kind,
            mtu,
            permanent: None,
            ..port(name, self.next)
        };
        self.now.links.push(link);
        Ok(())
    }

    fn set_mtu(&mut self, name: &str, mtu: u32) -> Result<(), String> {
        let link = self.link(name)?.clone();
        if let Kind::Vlan { on, .. } = link.kind {
            let carrier = self.now.links.iter().find(|l| l.index == on);
            if carrier.is_some_and(|carrier| mtu > carrier.mtu) {
                return Err(format!(
                    "MTU {mtu} of {name} is above that of what it lies on"
                ));
            }
        }
        for l in &mut self.now.links {
            if l.index == link.index || l.master == Some(link.index) {
                l.mtu = mtu;
                let fits = mtu >= MTU_MIN;
                l.addresses.retain(|a| fits || a.address.is_ipv4());
            }
            if matches!(l.kind, Kind::Vlan { on, .. } if on == link.index) {
                l.mtu = l.mtu.min(mtu);
            }
        }
        Ok(())
    }

    fn enslave(&mut self, name: &str, master: &str) -> Result<(), String> {
        let master = self.link(master)?.clone();
        let link = self.link(name)?;
        if matches!(master.kind, Kind::Bond(_)) {
            if link.up {
                return Err(format!("{name} is up"));
            }
            let before = (link.index, link.mtu);
            (link.up, link.mac, link.mtu) = (true, master.mac, master.mtu);
            link.master = Some(master.index);
            self.before.insert(before.0, before.1);
            return Ok(());
        }
        link.master = Some(master.index);
        Ok(())
    }

    fn apply(&mut self, step: &Step) -> Result<(), String> {
        match step {
            Step::Create { link, create } => self.create(link, create)?,
            Step::Delete { link } => {
                let index = self.index(link)?;
                self.delete(index);
            }
            Step::Up { link } => {
                let link = self.link(link)?;
                link.up = true;
                let own = cidr(&format!("fe80::{:x}/64", link.index));
                if link.mtu >= MTU_MIN && !link.addresses.contains(&own) {
                    link.addresses.push(own);
                }
            }
            Step::Down { link } => {
                let index = self.index(link)?;
                self.down(index);
            }
            Step::SetMtu { link, mtu } => self.set_mtu(link, *mtu)?,
            Step::SetMac { link, mac } => self.link(link)?.mac = Some(*mac),
            Step::SetMaster { link, master } => self.enslave(link, master)?,
            Step::Release { link } => {
                let index = self.index(link)?;
                self.release(index);
            }
            Step::AddAddress { link, address } => {
                let link = self.link(link)?;
                if address.address.is_ipv6() && link.mtu < MTU_MIN {
                    return Err(format!("{} carries no IPv6", link.name));
                }
                if !link.addresses.contains(address) {
                    link.addresses.push(*address);
                }
            }
            Step::DeleteAddress { link, address } => {
                self.link(link)?.addresses.retain(|a| a != address);
            }
            Step::AddRoute { link, route } => {
                let link = self.link(link)?.clone();
                if !link.up {
                    return Err(format!("{} is down", link.name));
                }
                let route = Route {
                    destination: route.destination,
                    gateway: route.gateway,
                    link: link.index,
                    metric: route.metric,
                    kernel: false,
                };
                self.now
                    .routes
                    .retain(|r| (r.destination, r.metric) != (route.destination, route.metric));
                self.now.routes.push(route);
            }
            Step::DeleteRoute { route } => self.now.routes.retain(|r| r != route),
        }
        Ok(())
    }

    /// Goes from wherever it is to what the site wants, as the agent does.
    fn converge(&mut self, site: &Site, heard: &BTreeMap<String, Heard>) -> Wanted {
        for _ in 0..ROUNDS_MAX {
            let wanted = site.wanted(&self.now, heard);
            let steps = wanted.steps(&self.now);
            if steps.is_empty() {
                return wanted;
            }
            for step in &steps {
                let done = self.apply(step);
                assert_eq!(done, Ok(()), "{step}, of {:?}", words(&steps));
            }
        }
        let rest = site.wanted(&self.now, heard).steps(&self.now);
        panic!("it does not come to rest: {:?}", words(&rest));
    }
}

fn any_link() -> impl Strategy<Value = String> {
    let any_port = || prop_oneof![Just("eth0"), Just("eth1"), Just("02:00:00:00:00:04")];
    let name = || prop_oneof![Just("lan"), Just("wan"), Just("a")];
    let address = (1..4u8, 1..4u8, 0..4u8).prop_map(|(net, host, kind)| match kind {
        0 => format!("10.0.{net}.{host}/24"),
        1 => format!("2001:db8:{net}::{host}/64"),
        2 => format!("2001:db8:{net}::{host}/64,2001:db8:{net}::{host}9/64,10.0.{net}.{host}/24"),
        _ => format!("2001:db8:{net}::{host}/128,10.0.{net}.{host}/24"),
    });
    let address = prop::option::of(address);
    let kind = prop_oneof![
        any_port().prop_map(|port| (port.to_owned(), String::new())),
        (name(), any_port(), 1..3u16).prop_map(|(name, on, id)| {
            (
                name.to_owned(),
                format!("net.{name}.vlan={id} net.{name}.on={on} "),
            )
        }),
        (name(), name(), 1..3u16).prop_map(|(name, on, id)| {
            (
                name.to_owned(),
                format!("net.{name}.vlan={id} net.{name}.on={on} "),
            )
        }),
        (name(), any::<bool>(), any_port(), any_port()).prop_map(|(name, lacp, a, b)| {
            let mode = if lacp { "802.3ad" } else { "active-backup" };
            (
                name.to_owned(),
                format!("net.{name}.bond={mode} net.{name}.ports={a},{b} "),
            )
        }),
    ];
    let mtu = prop::option::of(prop_oneof![Just(1200), Just(1400), Just(1500), Just(9000)]);
    (kind, address, mtu).prop_map(|((name, kind), address, mtu)| {
        let address = address.map_or("dhcp=on".to_owned(), |a| format!("address={a}"));
        let mtu = mtu.map_or(String::new(), |mtu| format!("net.{name}.mtu={mtu}"));
        format!("{kind}net.{name}.{address} {mtu}")
    })
}

fn any_site() -> impl Strategy<Value = String> {
    prop::collection::vec(any_link(), 0..4).prop_map(|links| links.join(" "))
}

proptest! {
    #[test]
    fn from_any_site_the_kernel_comes_to_any_other(
        before in any_site(),
        after in any_site(),
        told in prop::collection::btree_map(prop_oneof![Just("eth0"), Just("lan"), Just("a")], (2..9u8, 0..3u8), 0..3),
        pulled in any::<bool>(),
    ) {
        let heard = told.into_iter().map(|(link, (last, which))| {
            let lease = lease(&format!("10.9.{last}.7/24"), [10, 9, last, 1]);
            // Two links may well be in one network.
            let learned = learned(&format!("2001:db8:9{}::7/64", last / 4));
            let heard = match which {
                0 => lease,
                1 => learned,
                _ => Heard { lease: lease.lease, ..learned },
            };
            (link.to_owned(), heard)
        });
        let heard: BTreeMap<String, Heard> = heard.collect();
        let mut kernel = Kernel { now: machine(3), next: 100, before: BTreeMap::new() };
        kernel.converge(&read(&before).0, &heard);
        if pulled {
            // A port is taken out of the machine, with what lay on it.
            kernel.delete(2);
        }
        let (site, _) = read(&after);
        let wanted = kernel.converge(&site, &heard);
        for role in &wanted.roles {
            let link = kernel.now.link(&role.link).expect("a link for each role").clone();
            let addresses = role.addressing.iter().flat_map(|a| a.addresses.clone()).collect::<Vec<_>>();
            let set = |addresses: &[types::AnyCidr]| addresses.iter().copied().collect::<std::collections::BTreeSet<_>>();
            let given = link.addresses.iter().filter(|a| !a.to_string().starts_with("fe80:")).copied();
            prop_assert_eq!(set(&given.collect::<Vec<_>>()), set(&addresses));
            let routes = kernel.now.routes.iter().filter(|r| r.link == link.index).count();
            let wanted = role.addressing.as_ref().map_or(0, |a| a.routes.len() + usize::from(a.gateway.is_some()) + usize::from(a.gateway6.is_some()));
            prop_assert_eq!(routes, wanted);
            prop_assert!(link.up);
        }
        let made = kernel.now.links.iter().filter(|l| matches!(l.kind, Kind::Bond(_) | Kind::Vlan { .. }));
        prop_assert!(made.clone().all(|l| wanted.roles.iter().any(|role| role.link == l.name)));
    }

    #[test]
    fn any_words_are_a_site_or_errors(options in prop::collection::vec(("[a-z0-9.:]{0,12}", "[ -~]{0,20}"), 0..8)) {
        let mut draft = Draft::default();
        for (key, value) in &options {
            let _ = draft.set_link(key, value);
        }
        let (site, _) = draft.site();
        let _ = site.wanted(&machine(2), &BTreeMap::new());
    }
}
