//! The guest's network: loopback, and the cards of the specification.
//!
//! Owns: their settings and the order in which they are made, and made anew. Refuses: DHCP; the host has decided. Whether IPv6 leads
//! outside changes while the machine runs: the kernel hears that of the gateway.

use std::fs;

use types::guest::Link;

use crate::console;
use crate::device;
use crate::error::{Result, SetupError};
use crate::rtnetlink::{Request, Socket};

/// The kernel numbers loopback first.
const LOOPBACK: u32 = 1;

type Settings = [(&'static str, &'static str); 4];

/// Of the card that leads outside: the network's gateway says whether there is IPv6 there now, and nothing else; the host lets no other
/// router speak. 2: also where a program in the machine forwards packets itself.
const HEARS_GATEWAY: Settings = [
    ("accept_ra", "2"),
    ("accept_ra_pinfo", "0"),
    ("accept_ra_mtu", "0"),
    ("autoconf", "0"),
];
/// Of the others: they lead to their own networks alone.
const HEARS_NOBODY: Settings = [
    ("accept_ra", "0"),
    ("accept_ra_pinfo", "0"),
    ("accept_ra_mtu", "0"),
    ("autoconf", "0"),
];

/// `link` leads outside, each of `further` to its own network alone.
pub(crate) fn bring_up(link: Option<&Link>, further: &[Link]) -> Result<()> {
    let mut socket = Socket::open()?;
    socket.ask(Request::Up {
        link: LOOPBACK,
        mtu: None,
    })?;
    // As Docker does: what runs here needs no privilege for a port or a ping in a VM of its own.
    set("/proc/sys/net/ipv4/ip_unprivileged_port_start", "0");
    set("/proc/sys/net/ipv4/ping_group_range", "0 2147483647");
    let first = link.into_iter().map(|link| (link, HEARS_GATEWAY));
    let others = further.iter().map(|link| (link, HEARS_NOBODY));
    for (link, routers) in first.chain(others) {
        add(&mut socket, link, routers)?;
        if !further.is_empty() {
            separate(link)?;
        }
    }
    let Some(link) = link else { return Ok(()) };
    let (_, index) = device::card(link.mac)?;
    socket.ask(Request::DefaultRoute {
        link: index,
        gateway: link.gateway,
    })
}

fn add(socket: &mut Socket, link: &Link, routers: Settings) -> Result<()> {
    let (name, index) = device::card(link.mac)?;
    for (setting, value) in routers {
        set(&format!("/proc/sys/net/ipv6/conf/{name}/{setting}"), value);
    }
    // The host gives the address: probing for duplicates would only delay the first packet.
    set(&format!("/proc/sys/net/ipv6/conf/{name}/accept_dad"), "0");
    set(
        &format!("/proc/sys/net/ipv6/conf/{name}/dad_transmits"),
        "0",
    );
    socket.ask(Request::Up {
        link: index,
        mtu: Some(link.mtu),
    })?;
    socket.ask(Request::Address {
        link: index,
        address: link.address,
    })?;
    match link.address6 {
        Some(address) => socket.ask(Request::Address6 {
            link: index,
            address,
        }),
        None => Ok(()),
    }
}

/// One that is on several networks answers in each for the address that it has there, and asks under it.
fn separate(link: &Link) -> Result<()> {
    let (name, _) = device::card(link.mac)?;
    set(&format!("/proc/sys/net/ipv4/conf/{name}/arp_ignore"), "1");
    set(&format!("/proc/sys/net/ipv4/conf/{name}/arp_announce"), "2");
    Ok(())
}

/// In a restored machine: the card becomes another one.
pub(crate) fn change(old: Option<&Link>, new: &Link) -> Result<()> {
    let old = old.ok_or(SetupError::NoCard)?;
    let (name, index) = device::card(old.mac)?;
    // Neighbours that knew this address under another card's learn it anew.
    set(&format!("/proc/sys/net/ipv4/conf/{name}/arp_notify"), "1");
    let mut socket = Socket::open()?;
    for request in changes(index, old, new) {
        match (socket.ask(request), request) {
            // Whoever runs here may have taken it away before.
            (Err(error), Request::RemoveAddress { .. }) => console::warn(&sys::chain(&error)),
            (other, _) => other?,
        }
    }
    Ok(())
}

fn changes(index: u32, old: &Link, new: &Link) -> Vec<Request> {
    let link = index;
    let mut requests = vec![Request::Down { link }];
    if old.address != new.address {
        let address = old.address;
        requests.push(Request::RemoveAddress { link, address });
    }
    let (mac, mtu) = (new.mac, Some(new.mtu));
    let (address, gateway) = (new.address, new.gateway);
    requests.extend([
        Request::Hardware { link, mac },
        Request::Up { link, mtu },
        Request::Address { link, address },
        Request::DefaultRoute { link, gateway },
    ]);
    requests.extend(
        new.address6
            .map(|address| Request::Address6 { link, address }),
    );
    requests
}

/// A setting without which the network works too.
fn set(path: &str, value: &str) {
    if let Err(error) = fs::write(path, value) {
        console::warn(&format!("write {value:?} to {path}: {error}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_card_becomes_another_while_it_is_down() {
        let old = Link {
            mac: types::Mac([2, 0, 0, 0, 0, 1]),
            address: "10.1.0.2/24".parse().expect("an address"),
            gateway: "10.1.0.1".parse().expect("an address"),
            dns: "10.1.0.1".parse().expect("an address"),
            mtu: 1500,
            address6: None,
        };
        let new = Link {
            mac: types::Mac([2, 0, 0, 0, 0, 2]),
            address: "10.1.0.3/24".parse().expect("an address"),
            address6: "fd01::3/64".parse().ok(),
            ..old.clone()
        };
        let requests = changes(7, &old, &new);
        let place = |wanted: Request| requests.iter().position(|r| *r == wanted);
        let hardware = place(Request::Hardware {
            link: 7,
            mac: new.mac,
        });
        let up = place(Request::Up {
            link: 7,
            mtu: Some(1500),
        });
        assert_eq!(place(Request::Down { link: 7 }), Some(0));
        assert!(hardware.is_some() && hardware < up, "{requests:?}");
        let gone = place(Request::RemoveAddress {
            link: 7,
            address: old.address,
        });
        assert!(gone.is_some(), "{requests:?}");
        let six = |r: &Request| matches!(r, Request::Address6 { .. });
        assert!(requests.last().is_some_and(six), "{requests:?}");
        let same = changes(7, &old, &old);
        let is_removal = |r: &Request| matches!(r, Request::RemoveAddress { .. });
        assert!(!same.iter().any(is_removal), "{same:?}");
    }
}
