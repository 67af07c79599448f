//! Links, addresses and routes in namespaces of their own, against what Debian's `ip` says of the same
//! namespace. Needs root and `iproute2`.

use std::process::Command;
use std::sync::Arc;

use serde_json::Value;

use super::super::{Create, Desired, DesiredRoute, Kind, Link, plan};
use super::*;
use crate::namespace;
use crate::scratch::{Scratch, on_a_runtime};

/// What `ip -j -details` lists in a namespace.
fn ip(namespace: &str, arguments: &[&str]) -> Vec<Value> {
    let mut command = Command::new("ip");
    command.args(["-n", namespace, "-j", "-details"]);
    let output = command.args(arguments).output();
    let output = output.expect("ip from Debian's iproute2");
    assert!(output.status.success(), "ip {arguments:?}: {output:?}");
    serde_json::from_slice(&output.stdout).expect("JSON")
}

fn cidr(text: &str) -> types::AnyCidr {
    text.parse().expect("a prefix")
}

fn bridge(mtu: u32) -> [Desired; 1] {
    [Desired {
        create: Some(Create::Bridge),
        mtu: Some(mtu),
        ..Desired::up("bridge0")
    }]
}

#[test]
fn a_change_is_told_to_the_monitor() {
    let scratch = Scratch::new("monitor");
    let namespace = namespace::ensure(&scratch.name("one")).expect("a namespace; it needs root");
    let told = || on_a_runtime(tell_of_changes());
    namespace::within(&namespace, told).expect("no error");
}

async fn tell_of_changes() -> Result<(), Error> {
    let (mut monitor, mut handle) = (Monitor::open()?, Handle::open()?);
    for mtu in [1500, 1400] {
        let steps = plan(&bridge(mtu), &handle.observe().await?);
        handle.apply(&steps).await?;
        let wait = tokio::time::timeout(ANSWER_TIME, monitor.changed());
        wait.await.expect("told in time")?;
        let observed = handle.observe().await?;
        assert_eq!(observed.link("bridge0").map(|link| link.mtu), Some(mtu));
        assert!(plan(&bridge(mtu), &observed).is_empty());
    }
    let link = || "bridge0".to_owned();
    let delete = [Step::Delete { link: link() }];
    handle.apply(&delete).await?;
    handle.apply(&delete).await?;
    let up = handle.apply(&[Step::Up { link: link() }]).await;
    let error = up.expect_err("it is gone");
    assert_eq!(error.raw_os_error(), Some(Errno::ENODEV as i32));
    assert_eq!(error.to_string(), "cannot set link bridge0 up");
    Ok(())
}

/// Two namespaces with a pair between them, one end a port of a bridge that has addresses and routes.
fn desired(other: &Arc<std::os::fd::OwnedFd>) -> [Desired; 3] {
    let route = |destination, gateway: Option<&str>, metric| DesiredRoute {
        destination: cidr(destination),
        gateway: gateway.map(|gateway| gateway.parse().expect("an address")),
        metric,
    };
    [
        Desired {
            addresses: vec![cidr("127.0.0.1/8")],
            ..Desired::up("lo")
        },
        Desired {
            create: Some(Create::Bridge),
            mtu: Some(1400),
            mac: Some("02:00:00:00:00:09".parse().expect("a MAC")),
            addresses: [
                "192.0.2.1/24",
                "198.51.100.1/32",
                "2001:db8::1/64",
                "2001:db8::2/64",
                "fe80::1/64",
            ]
            .map(cidr)
            .to_vec(),
            routes: vec![
                route("0.0.0.0/0", Some("192.0.2.2"), 100),
                route("203.0.113.0/24", Some("203.0.113.7"), 0),
                route("10.9.0.0/16", None, 7),
                route("::/0", Some("fe80::9"), 100),
                route("2001:db8:9::/48", Some("2001:db8::9"), 0),
                route("2001:db8:7::/64", None, 7),
            ],
            ..Desired::up("bridge0")
        },
        Desired {
            create: Some(Create::Veth {
                peer: "eth0".to_owned(),
                namespace: other.clone(),
            }),
            master: Some("bridge0".to_owned()),
            ..Desired::up("port0")
        },
    ]
}

#[test]
fn what_is_set_and_seen_is_what_ip_lists() {
    let scratch = Scratch::new("ip");
    let (name, other) = (scratch.name("one"), scratch.name("other"));
    let namespace = namespace::ensure(&name).expect("a namespace; it needs root");
    let other_fd = Arc::new(namespace::ensure(&other).expect("a namespace"));
    let make = || on_a_runtime(make(&other_fd));
    let observed = namespace::within(&namespace, make).expect("made");
    // `ip` names no address apart.
    let mut links = observed.links.clone();
    links.iter_mut().for_each(|link| link.local = None);
    assert_eq!(listed_links(&name), links);
    assert_eq!(listed_routes(&name, &observed), observed.routes);
    let far = ip(&other, &["link", "show", "eth0"]);
    assert_eq!(far[0]["linkinfo"]["info_kind"], "veth");
}

/// Makes everything, and observes once all links have a carrier: the kernel gives it in its own time.
async fn make(other: &Arc<std::os::fd::OwnedFd>) -> Result<Observed, Error> {
    let desired = desired(other);
    let (mut monitor, mut handle) = (Monitor::open()?, Handle::open()?);
    let steps = plan(&desired, &handle.observe().await?);
    handle.apply(&steps).await?;
    let up = Step::Up {
        link: "eth0".to_owned(),
    };
    Handle::open_in(&**other)?.apply(&[up]).await?;
    loop {
        let observed = handle.observe().await?;
        let ready = |want: &Desired| {
            let link = observed.link(&want.name);
            link.is_some_and(|link| link.carrier && has_its_own(link))
        };
        if desired.iter().all(ready) {
            let rest = plan(&desired, &observed);
            assert!(rest.is_empty(), "nothing is left to do: {rest:?}");
            return Ok(observed);
        }
        let wait = tokio::time::timeout(ANSWER_TIME, monitor.changed());
        wait.await.expect("told in time")?;
    }
}

/// The kernel has given it the address that it gives itself, and no neighbour objects.
fn has_its_own(link: &Link) -> bool {
    let own = |address: &types::AnyCidr| {
        let own = address
            .v6()
            .filter(|a| *address != cidr("fe80::1/64") && a.prefix() >= 64);
        own.is_some_and(|a| a.address.is_unicast_link_local() || a.address.is_loopback())
    };
    link.addresses.iter().any(own)
}

/// A namespace's links as `ip` has them.
fn listed_links(name: &str) -> Vec<Link> {
    let found = ip(name, &["address"]);
    let flag = |link: &Value, flag: &str| {
        let flags = link["flags"].as_array().expect("flags");
        flags.iter().any(|value| value == flag)
    };
    let number = |value: &Value| u32::try_from(value.as_u64().expect("a number")).expect("fits");
    let index = |name: &Value| {
        let link = found.iter().find(|link| link["ifname"] == *name);
        number(&link.expect("the link")["ifindex"])
    };
    let address = |info: &Value| {
        let text = info["local"].as_str().expect("an address");
        cidr(&format!("{text}/{}", info["prefixlen"]))
    };
    let link = |link: &Value| Link {
        name: link["ifname"].as_str().expect("a name").to_owned(),
        index: number(&link["ifindex"]),
        mac: match link["link_type"].as_str() {
            Some("ether") => Some(
                link["address"]
                    .as_str()
                    .expect("a MAC")
                    .parse()
                    .expect("a MAC"),
            ),
            _ => None,
        },
        // Links that are made came with no address.
        permanent: None,
        up: flag(link, "UP"),
        carrier: flag(link, "LOWER_UP"),
        mtu: number(&link["mtu"]),
        kind: match link["linkinfo"]["info_kind"].as_str() {
            Some("bridge") => Kind::Bridge,
            Some("veth") => Kind::Veth,
            Some(other) => panic!("a {other} is not among those that were made"),
            None => Kind::Loopback,
        },
        master: link.get("master").map(index),
        addresses: {
            let infos = link["addr_info"].as_array().expect("addresses").iter();
            infos.map(address).collect()
        },
        local: None,
        taken: Vec::new(),
    };
    // Namespaces of some kernels are born with tunnels that nobody asked for.
    let made = |link: &&Value| {
        ["lo", "bridge0", "port0"]
            .iter()
            .any(|name| link["ifname"] == *name)
    };
    found.iter().filter(made).map(link).collect()
}

/// A namespace's main routes as `ip` has them.
fn listed_routes(name: &str, observed: &Observed) -> Vec<super::super::Route> {
    let show = ["route", "show", "table", "main"];
    let of = |family| ip(name, &[&[family], &show[..]].concat());
    let route = |route: &Value, family: &str| {
        let text = |key: &str| route[key].as_str();
        let destination = match text("dst").expect("a destination") {
            "default" if family == "-4" => "0.0.0.0/0".to_owned(),
            "default" => "::/0".to_owned(),
            prefix if prefix.contains('/') => prefix.to_owned(),
            host if family == "-4" => format!("{host}/32"),
            host => format!("{host}/128"),
        };
        let link = observed.link(text("dev").expect("a link"));
        super::super::Route {
            destination: cidr(&destination),
            gateway: text("gateway").map(|gateway| gateway.parse().expect("an address")),
            link: link.expect("the link").index,
            metric: route["metric"]
                .as_u64()
                .map_or(0, |n| u32::try_from(n).expect("fits")),
            kernel: text("protocol") == Some("kernel"),
        }
    };
    let mut all = Vec::new();
    for family in ["-4", "-6"] {
        all.extend(of(family).iter().map(|found| route(found, family)));
    }
    all
}

#[test]
fn what_is_left_out_goes_and_what_a_link_lost_by_going_down_comes_again() {
    let scratch = Scratch::new("changes");
    let namespace = namespace::ensure(&scratch.name("one")).expect("a namespace; it needs root");
    let other = Arc::new(namespace::ensure(&scratch.name("other")).expect("a namespace"));
    let changed = || {
        on_a_runtime(async {
            make(&other).await?;
            let mut handle = Handle::open()?;
            let link = || "bridge0".to_owned();
            let flapped = [Step::Down { link: link() }, Step::Up { link: link() }];
            handle.apply(&flapped).await?;
            let mut want = desired(&other);
            for addresses in [5, 3, 0] {
                want[1].addresses.truncate(addresses);
                want[1].routes.truncate(addresses);
                let steps = plan(&want, &handle.observe().await?);
                handle.apply(&steps).await?;
                let rest = plan(&want, &handle.observe().await?);
                assert!(rest.is_empty(), "nothing is left to do: {rest:?}");
            }
            handle.observe().await
        })
    };
    let observed = namespace::within(&namespace, changed).expect("no error");
    let bridge = observed.link("bridge0").expect("made");
    let left = &bridge.addresses;
    assert!(
        !left.is_empty()
            && left
                .iter()
                .all(|a| a.v6().is_some_and(|a| a.address.is_unicast_link_local()))
    );
}

#[test]
fn what_the_kernel_refuses_is_named_and_ends_the_steps() {
    let scratch = Scratch::new("refused");
    let namespace = namespace::ensure(&scratch.name("one")).expect("a namespace; it needs root");
    on_a_runtime(async {
        let mut handle = Handle::open_in(&namespace).expect("a connection");
        let mtu = |mtu| Step::SetMtu {
            link: "bridge0".to_owned(),
            mtu,
        };
        let made = Step::Create {
            link: "bridge0".to_owned(),
            create: Create::Bridge,
        };
        let error = handle.apply(&[made.clone(), mtu(1), mtu(1400)]).await;
        let error = error.expect_err("no bridge carries packets of one byte");
        assert_eq!(error.raw_os_error(), Some(Errno::EINVAL as i32));
        assert_eq!(error.to_string(), "cannot set MTU 1 on link bridge0");
        let observed = handle.observe().await.expect("it goes on");
        assert_ne!(observed.link("bridge0").expect("made").mtu, 1400);
        let error = handle.apply(&[made]).await.expect_err("it is there");
        assert_eq!(error.raw_os_error(), Some(Errno::EEXIST as i32));
    });
}
