//! One router as its link hears it: router advertisements (RFC 4861).
//!
//! Owns: what it says, at once and to who asks for routers, from its own address. Refuses: packets to lead anywhere, which the kernel does.

use std::net::{Ipv6Addr, SocketAddrV6};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use anyhow::{Context, Result};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn6, bind, recv, sendto,
    setsockopt, socket, sockopt,
};

use super::{Announced, TAP};

const SOLICITATION: u8 = 133;
/// Seconds for which it is a router: half an hour, as most say.
const LIFETIME_S: u16 = 1800;

/// What a router says.
#[derive(Debug, Clone)]
pub(super) struct Says {
    pub(super) prefixes: Vec<Announced>,
    /// Addresses come from DHCPv6.
    pub(super) managed: bool,
    /// Seconds for which it leads to the world.
    pub(super) lifetime_s: u16,
}

#[derive(Debug, Clone)]
pub(super) struct Voice {
    socket: Arc<OwnedFd>,
    index: u32,
    says: Arc<Mutex<Says>>,
    asked: Arc<AtomicUsize>,
}

impl Voice {
    /// It answers from the `patience`th question on.
    pub(super) fn begin(
        index: u32,
        own: Ipv6Addr,
        prefixes: Vec<Announced>,
        patience: usize,
    ) -> Result<Self> {
        let says = Says {
            prefixes,
            managed: false,
            lifetime_s: LIFETIME_S,
        };
        let voice = Self {
            socket: Arc::new(open_as(index, own)?),
            index,
            says: Arc::new(Mutex::new(says)),
            asked: Arc::default(),
        };
        let own = voice.clone();
        thread::spawn(move || own.answer(patience));
        Ok(voice)
    }

    /// Says something else from now on, and at once.
    pub(super) fn say(&self, change: impl FnOnce(&mut Says)) -> Result<()> {
        let mut says = self.says.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut says);
        self.send(&says)
    }

    /// How often was asked for routers.
    pub(super) fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }

    fn answer(&self, patience: usize) -> Result<()> {
        let mut packet = [0; 1500];
        loop {
            let length = recv(self.socket.as_raw_fd(), &mut packet, MsgFlags::empty())?;
            if packet[..length].first() != Some(&SOLICITATION) {
                continue;
            }
            if self.asked.fetch_add(1, Ordering::Relaxed) + 1 >= patience {
                self.send(&self.says.lock().unwrap_or_else(PoisonError::into_inner))?;
            }
        }
    }

    fn send(&self, says: &Says) -> Result<()> {
        tell_all(&self.socket, self.index, &says.advertisement())
    }
}

/// Says something to everybody on the link.
pub(super) fn tell_all(socket: &OwnedFd, index: u32, packet: &[u8]) -> Result<()> {
    let everybody = SocketAddrV6::new("ff02::1".parse()?, 0, 0, index);
    let to = SockaddrIn6::from(everybody);
    sendto(socket.as_raw_fd(), packet, &to, MsgFlags::empty()).context("send an advertisement")?;
    Ok(())
}

/// What it sends comes from its own address: of several on a link the kernel would choose one.
fn open_as(index: u32, own: Ipv6Addr) -> Result<OwnedFd> {
    let socket = open()?;
    let own = SockaddrIn6::from(SocketAddrV6::new(own, 0, 0, index));
    bind(socket.as_raw_fd(), &own).context("speak from the router's address")?;
    Ok(socket)
}

pub(super) fn open() -> Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC;
    let icmp = SockProtocol::IcmpV6;
    let socket =
        socket(AddressFamily::Inet6, SockType::Raw, flags, icmp).context("a raw socket")?;
    setsockopt(&socket, sockopt::Ipv6MulticastHops, &255)?;
    setsockopt(&socket, sockopt::BindToDevice, &TAP.to_owned().into())?;
    Ok(socket)
}

impl Says {
    /// RFC 4861 section 4.2: name and time servers are always from DHCPv6.
    fn advertisement(&self) -> Vec<u8> {
        let [high, low] = self.lifetime_s.to_be_bytes();
        let (flags, of_prefix) = match self.managed {
            true => (0xc0, 0x80),
            false => (0x40, 0xc0),
        };
        let mut packet = vec![134, 0, 0, 0, 64, flags, high, low];
        packet.resize(16, 0);
        for Announced { network, preferred } in &self.prefixes {
            packet.extend([3, 4, network.prefix(), of_prefix]);
            packet.extend(86_400_u32.to_be_bytes());
            packet.extend(preferred.to_be_bytes());
            packet.extend([0; 4]);
            packet.extend(network.address.octets());
        }
        packet
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_advertisement_says_who_lends_addresses_and_for_how_long_the_router_is_one() {
        let network = "2001:db8::/64".parse().expect("a prefix");
        let announced = Announced {
            network,
            preferred: 60,
        };
        let mut says = Says {
            prefixes: vec![announced],
            managed: false,
            lifetime_s: LIFETIME_S,
        };
        let told = says.advertisement();
        assert_eq!((told[5], &told[6..8], told[19]), (0x40, &[7, 8][..], 0xc0));
        (says.managed, says.lifetime_s) = (true, 0);
        let told = says.advertisement();
        assert_eq!((told[5], &told[6..8], told[19]), (0xc0, &[0, 0][..], 0x80));
    }
}
