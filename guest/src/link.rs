//! The guest's network: loopback, and the one card of the specification.
//!
//! Owns: their settings and the order in which they are made. Refuses: DHCP; the host has decided.

use std::fs;

use types::guest::Link;

use crate::console;
use crate::device;
use crate::error::Result;
use crate::rtnetlink::{Request, Socket};

/// The kernel numbers loopback first.
const LOOPBACK: u32 = 1;

pub(crate) fn bring_up(link: Option<&Link>) -> Result<()> {
    let mut socket = Socket::open()?;
    socket.ask(Request::Up {
        link: LOOPBACK,
        mtu: None,
    })?;
    // As Docker does: what runs here needs no privilege for a port or a ping in a VM of its own.
    set("/proc/sys/net/ipv4/ip_unprivileged_port_start", "0");
    set("/proc/sys/net/ipv4/ping_group_range", "0 2147483647");
    let Some(link) = link else { return Ok(()) };
    let (name, index) = device::card(link.mac)?;
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
    socket.ask(Request::DefaultRoute {
        link: index,
        gateway: link.gateway,
    })
}

/// A setting without which the network works too.
fn set(path: &str, value: &str) {
    if let Err(error) = fs::write(path, value) {
        console::warn(&format!("write {value:?} to {path}: {error}"));
    }
}
