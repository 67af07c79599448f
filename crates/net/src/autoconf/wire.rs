//! The sockets of one link: ICMPv6 for routers, UDP for DHCPv6 servers.
//!
//! Owns: opening them on that link alone, and which hop limit a packet came with. Refuses: reading more into packets.

use std::io::{self, IoSliceMut};
use std::net::{Ipv6Addr, SocketAddrV6};
use std::os::fd::{AsRawFd, OwnedFd};

use nix::cmsg_space;
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, ControlMessageOwned, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn6,
    bind, recvmsg, sendto, setsockopt, socket, sockopt,
};
use tokio::io::unix::AsyncFd;
use tokio::net::UdpSocket;

use super::Port;
use super::advert::{ADVERT_MAX, Advert, parse};
use crate::dhcp6::{self, Answer};
use crate::ready;

/// All routers of the link.
const ROUTERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2);
/// What shows that it came through no router (RFC 4861 section 4.1).
const HOPS: i32 = 255;

pub(super) enum Heard {
    Advert(Advert),
    Answer(Answer),
}

pub(super) struct Wire<'a> {
    port: &'a Port,
    icmp: AsyncFd<OwnedFd>,
    udp: UdpSocket,
}

impl<'a> Wire<'a> {
    pub(super) fn open(port: &'a Port) -> io::Result<Self> {
        Ok(Self {
            port,
            icmp: ready::watch(open_icmp(port)?)?,
            udp: open_udp(port)?,
        })
    }

    pub(super) fn index(&self) -> u32 {
        self.port.index
    }

    /// What could not be sent is as what was lost: it is said again in time.
    pub(super) fn solicit(&self, packet: &[u8]) {
        let to = SockaddrIn6::from(SocketAddrV6::new(ROUTERS, 0, 0, self.port.index));
        let fd = self.icmp.get_ref().as_raw_fd();
        if let Err(errno) = sendto(fd, packet, &to, MsgFlags::MSG_DONTWAIT) {
            log::debug!("IPv6 on {}: cannot ask routers: {errno}", self.port.name);
        }
    }

    pub(super) fn ask(&self, message: &[u8]) {
        let (servers, port) = (dhcp6::SERVERS, dhcp6::SERVER_PORT);
        let to = SocketAddrV6::new(servers, port, 0, self.port.index);
        if let Err(error) = self.udp.try_send_to(message, to.into()) {
            log::debug!("DHCPv6 on {}: cannot send: {error}", self.port.name);
        }
    }

    /// The next that means something.
    pub(super) async fn hear(&self) -> io::Result<Heard> {
        let mut message = [0; dhcp6::REPLY_MAX];
        loop {
            let heard = tokio::select! {
                // Both are safe to drop: nothing is taken before it is there.
                advert = self.advert() => advert?.map(Heard::Advert),
                received = self.udp.recv_from(&mut message) => match received {
                    Ok((length, _)) => {
                        message.get(..length).and_then(dhcp6::parse).map(Heard::Answer)
                    }
                    Err(error) => passing(error)?,
                },
            };
            if let Some(heard) = heard {
                return Ok(heard);
            }
        }
    }

    /// `None` where it was none.
    async fn advert(&self) -> io::Result<Option<Advert>> {
        let mut packet = [0; ADVERT_MAX];
        loop {
            let mut guard = self.icmp.readable().await?;
            match receive(guard.get_inner().as_raw_fd(), &mut packet) {
                Ok((from, hops, length)) => {
                    let packet = packet.get(..length).unwrap_or_default();
                    return Ok(parse(from, hops, packet));
                }
                Err(Errno::EAGAIN) => guard.clear_ready(),
                Err(Errno::EINTR) => {}
                Err(errno) => return passing(errno.into()),
            }
        }
    }
}

/// Told once, when the link goes down or a packet came back. It may come up again.
fn passing<T>(error: io::Error) -> io::Result<Option<T>> {
    let codes = [Errno::ENETDOWN, Errno::ECONNREFUSED, Errno::EHOSTUNREACH];
    match error.raw_os_error() {
        Some(code) if codes.iter().any(|c| *c as i32 == code) => Ok(None),
        _ => Err(error),
    }
}

fn open_icmp(port: &Port) -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket(
        AddressFamily::Inet6,
        SockType::Raw,
        flags,
        SockProtocol::IcmpV6,
    )?;
    setsockopt(&fd, sockopt::BindToDevice, &port.name.clone().into())?;
    setsockopt(&fd, sockopt::Ipv6RecvHopLimit, &true)?;
    setsockopt(&fd, sockopt::Ipv6MulticastHops, &HOPS)?;
    Ok(fd)
}

fn open_udp(port: &Port) -> io::Result<UdpSocket> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket(AddressFamily::Inet6, SockType::Datagram, flags, None)?;
    setsockopt(&fd, sockopt::ReuseAddr, &true)?;
    setsockopt(&fd, sockopt::BindToDevice, &port.name.clone().into())?;
    let local = SocketAddrV6::new(port.local, dhcp6::CLIENT_PORT, 0, port.index);
    bind(fd.as_raw_fd(), &SockaddrIn6::from(local))?;
    UdpSocket::from_std(std::net::UdpSocket::from(fd))
}

/// Sender, hop limit and length. A packet without its sender or hop limit is as one from nobody.
fn receive(fd: i32, packet: &mut [u8]) -> Result<(Ipv6Addr, u8, usize), Errno> {
    let mut space = cmsg_space!(i32);
    let mut parts = [IoSliceMut::new(packet)];
    let flags = MsgFlags::MSG_DONTWAIT;
    let message = recvmsg::<SockaddrIn6>(fd, &mut parts, Some(&mut space), flags)?;
    let hops = message.cmsgs()?.find_map(|control| match control {
        ControlMessageOwned::Ipv6HopLimit(hops) => u8::try_from(hops).ok(),
        _ => None,
    });
    let from = message
        .address
        .map_or(Ipv6Addr::UNSPECIFIED, |from| from.ip());
    Ok((from, hops.unwrap_or(0), message.bytes))
}
