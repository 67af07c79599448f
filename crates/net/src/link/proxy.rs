//! Addresses that the node answers for on a link although they are a machine's behind it (proxy ARP, and the same of IPv6).
//!
//! Owns: the kernel's list of them, made what it should be, and telling neighbours of each that is new. Refuses: addresses that nobody
//! named: the kernel's settings that answer for whatever has a route stay off.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddrV6};
use std::os::fd::AsRawFd;

use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn6, sendto, setsockopt,
    socket, sockopt,
};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage,
};

use types::Mac;

use super::observe::{Handle, cause};
use crate::Error;
use crate::namespace::sysctl_if_present;

/// By the names of links.
pub type Answered = BTreeMap<String, BTreeSet<IpAddr>>;

/// One change of the kernel's list; links by their numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Change {
    Add(u32, IpAddr),
    Delete(u32, IpAddr),
}

/// From what is to what should be.
fn plan(wanted: &BTreeSet<(u32, IpAddr)>, observed: &BTreeSet<(u32, IpAddr)>) -> Vec<Change> {
    let stale = observed.difference(wanted);
    let stale = stale.map(|(link, address)| Change::Delete(*link, *address));
    let new = wanted.difference(observed);
    stale
        .chain(new.map(|(link, address)| Change::Add(*link, *address)))
        .collect()
}

/// Answers for these in the caller's namespace, and for no others. Links that are not there are passed over. Within a tokio
/// runtime.
pub async fn answer_for(wanted: &Answered) -> Result<(), Error> {
    let mut handle = Handle::open()?;
    let links = match wanted.is_empty() {
        true => Vec::new(),
        false => handle.observe().await?.links,
    };
    let (mut numbered, mut macs) = (BTreeSet::new(), BTreeMap::new());
    for (name, addresses) in wanted {
        let Some(link) = links.iter().find(|link| link.name == *name) else {
            continue;
        };
        // Else the kernel waits for up to 0.8 seconds before each answer.
        for family in ["ipv4", "ipv6"] {
            sysctl_if_present(&format!("{family}/neigh/{name}/proxy_delay"), "0")?;
        }
        // For those alone that are named below: of IPv6 there is no setting that answers for whatever has a route.
        if addresses.iter().any(IpAddr::is_ipv6) {
            sysctl_if_present(&format!("ipv6/conf/{name}/proxy_ndp"), "1")?;
        }
        macs.extend(link.mac.map(|mac| (link.index, mac)));
        numbered.extend(addresses.iter().map(|address| (link.index, *address)));
    }
    let mut question = NeighbourMessage::default();
    question.header.flags = NeighbourFlags::Proxy;
    let question = RouteNetlinkMessage::GetNeighbour(question);
    let observed = handle.list(
        "list the addresses that are answered for",
        question,
        |answer| match answer {
            RouteNetlinkMessage::NewNeighbour(message) => proxied(&message),
            _ => None,
        },
    );
    let observed = observed.await?.into_iter().collect();
    for change in plan(&numbered, &observed) {
        set(&mut handle, change).await?;
        if let Change::Add(link, address) = change
            && let Some(mac) = macs.get(&link)
        {
            // A link without a cable has nobody to tell: who comes later asks.
            let _ = match address {
                IpAddr::V4(address) => announce(link, *mac, address),
                IpAddr::V6(address) => announce6(link, *mac, address),
            };
        }
    }
    Ok(())
}

/// Whoever knew the address at another place, a router or a switch, learns that it is here now (RFC 5227 section 3).
fn announce(link: u32, mac: Mac, address: Ipv4Addr) -> io::Result<()> {
    let socket = sys::packet::open_frames(link)?;
    nix::unistd::write(&socket, &announcement(mac, address))?;
    Ok(())
}

/// ARP for IPv4 over Ethernet: a question to all for the address, from it.
fn announcement(mac: Mac, address: Ipv4Addr) -> Vec<u8> {
    let mut frame = vec![0xff; 6];
    frame.extend(mac.0);
    frame.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
    frame.extend(mac.0);
    frame.extend(address.octets());
    frame.extend([0; 6]);
    frame.extend(address.octets());
    frame
}

/// The same of IPv6: an advertisement that nobody asked for (RFC 4861 section 7.2.6).
fn announce6(link: u32, mac: Mac, address: Ipv6Addr) -> io::Result<()> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let (family, protocol) = (AddressFamily::Inet6, SockProtocol::IcmpV6);
    let socket = socket(family, SockType::Raw, flags, protocol)?;
    setsockopt(&socket, sockopt::Ipv6MulticastHops, &HOPS)?;
    let all = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
    let to = SockaddrIn6::from(SocketAddrV6::new(all, 0, 0, link));
    let packet = advertisement(mac, address);
    sendto(socket.as_raw_fd(), &packet, &to, MsgFlags::MSG_DONTWAIT)?;
    Ok(())
}

/// What shows that it came through no router.
const HOPS: i32 = 255;

/// Of a neighbour: whatever was known of the address is overridden.
fn advertisement(mac: Mac, address: Ipv6Addr) -> Vec<u8> {
    let mut packet = vec![136, 0, 0, 0, 0x20, 0, 0, 0];
    packet.extend(address.octets());
    packet.extend([2, 1]);
    packet.extend(mac.0);
    packet
}

async fn set(handle: &mut Handle, change: Change) -> Result<(), Error> {
    let (what, link, address) = match change {
        Change::Add(link, address) => ("answer for", link, address),
        Change::Delete(link, address) => ("answer no more for", link, address),
    };
    let neighbours = handle.requests.neighbours();
    let mut add = neighbours.add(link, address).flags(NeighbourFlags::Proxy);
    let neighbours = handle.requests.neighbours();
    let work = async {
        let done = match change {
            Change::Add(..) => add.execute().await,
            Change::Delete(..) => {
                let message = std::mem::take(add.message_mut());
                neighbours.del(message).execute().await
            }
        };
        done.map_err(cause)
    };
    let operation = format!("{what} {address} on link {link}");
    handle.carry(operation, work).await
}

fn proxied(message: &NeighbourMessage) -> Option<(u32, IpAddr)> {
    let header = &message.header;
    if !header.flags.contains(NeighbourFlags::Proxy) {
        return None;
    }
    let address = message
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(at)) => Some((*at).into()),
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(at)) => Some((*at).into()),
            _ => None,
        })?;
    Some((header.ifindex, address))
}

#[cfg(test)]
mod tests {
    use proptest::collection::btree_set;
    use proptest::prelude::{any, proptest};

    use super::*;

    proptest! {
        #[test]
        fn whatever_was_answered_for_the_changes_lead_to_what_is_wanted(
            wanted in btree_set((0u32..3, any::<u8>()), 0..8), observed in btree_set((0u32..3, any::<u8>()), 0..8),
        ) {
            let on = |(link, last): (u32, u8)| (link, IpAddr::from([192, 0, 2, last]));
            let wanted: BTreeSet<_> = wanted.into_iter().map(on).collect();
            let mut observed: BTreeSet<_> = observed.into_iter().map(on).collect();
            for change in plan(&wanted, &observed) {
                let new = match change {
                    Change::Add(link, address) => observed.insert((link, address)),
                    Change::Delete(link, address) => observed.remove(&(link, address)),
                };
                assert!(new, "{change:?} changes nothing");
            }
            assert_eq!(observed, wanted);
        }
    }
}
