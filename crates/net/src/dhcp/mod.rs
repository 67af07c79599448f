//! DHCPv4 client (RFC 2131, RFC 2132).
//!
//! Owns: getting and keeping a lease on one link, for ever.
//! Refuses: setting what it was given; that is `link::plan` with `link::uplinks`.

mod client;
#[cfg(any(test, feature = "fuzz"))]
pub(crate) mod fuzz;
mod packet;

use std::io;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockType, SockaddrIn, bind, recv, setsockopt, socket,
    sockopt,
};
use tokio::io::unix::AsyncFd;
use tokio::sync::{Notify, watch};
use types::{Cidr, Mac, Name};

use crate::ready;
use client::{Action, Client};

/// What a server has lent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    pub address: Cidr,
    pub gateway: Option<Ipv4Addr>,
    pub dns: Vec<Ipv4Addr>,
    pub ntp: Vec<Ipv4Addr>,
    pub mtu: Option<u16>,
    /// `None`: never.
    pub expires: Option<Instant>,
}

/// The link that is asked on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Nic {
    pub name: String,
    pub index: u32,
    pub mac: Mac,
    /// Told to the server, if any.
    pub hostname: Option<Name>,
}

/// Pause before the sockets are opened again where they fail: the link may be gone for good, and then
/// the caller ends this.
const REOPEN: Duration = Duration::from_secs(1);
/// A deadline for a lease that has none: looked at again after this.
const IDLE: Duration = Duration::from_secs(86_400);

/// Keeps a lease on `nic`: `lease` holds it, or `None` while there is none. Never gives up; ends when
/// nobody listens to `lease` any more. The link must be up; `attached` says that its cable came back.
/// Within a tokio runtime, in the link's namespace.
pub async fn run(nic: Nic, lease: watch::Sender<Option<Lease>>, attached: Arc<Notify>) {
    let random = || getrandom::u32().expect("getrandom(2) does not fail on the kernels we build");
    let mut client = Client::new(nic.mac, nic.hostname.clone(), Instant::now(), random);
    while !lease.is_closed() {
        let failed = match Wire::open(&nic) {
            Ok(mut wire) => wire.drive(&mut client, &lease, &attached).await,
            Err(error) => Err(error),
        };
        match failed {
            Ok(()) => return,
            Err(error) => log::warn!("DHCP on {}: {error}; trying again", nic.name),
        }
        tokio::select! {
            () = lease.closed() => {}
            () = tokio::time::sleep(REOPEN) => {}
        }
    }
}

/// The client's sockets.
struct Wire<'a> {
    nic: &'a Nic,
    packets: AsyncFd<OwnedFd>,
    /// Bound to the leased address while it is being renewed: the reply then finds a socket, so that the
    /// kernel does not tell the server that nobody is here. It is read from `packets` all the same.
    unicast: Option<UdpSocket>,
}

impl<'a> Wire<'a> {
    fn open(nic: &'a Nic) -> io::Result<Self> {
        let packets = sys::packet::open_udp(nic.index, packet::CLIENT_PORT)?;
        Ok(Self {
            nic,
            packets: ready::watch(packets)?,
            unicast: None,
        })
    }

    /// Ends well when nobody listens any more.
    async fn drive<R: FnMut() -> u32>(
        &mut self,
        client: &mut Client<R>,
        lease: &watch::Sender<Option<Lease>>,
        attached: &Notify,
    ) -> io::Result<()> {
        loop {
            let deadline = client.deadline().unwrap_or_else(|| Instant::now() + IDLE);
            let actions = tokio::select! {
                () = lease.closed() => return Ok(()),
                () = attached.notified() => client.attached(Instant::now()),
                () = tokio::time::sleep_until(deadline.into()) => client.tick(Instant::now()),
                received = self.receive() => match received? {
                    Some(reply) => client.receive(Instant::now(), reply),
                    None => Vec::new(),
                },
            };
            for action in actions {
                match action {
                    Action::Lease(now) => {
                        self.unicast = None;
                        lease.send_replace(now);
                    }
                    Action::Broadcast(request) => {
                        let packet = packet::broadcast(&request);
                        let socket = self.packets.get_ref().as_fd();
                        self.sent(sys::packet::broadcast(socket, self.nic.index, &packet));
                    }
                    Action::Unicast { from, to, request } => {
                        let result = self.unicast(from, to, &request);
                        self.sent(result);
                    }
                }
            }
        }
    }

    /// A request that could not be sent is as one that was lost: it is repeated in time.
    fn sent(&self, result: io::Result<()>) {
        if let Err(error) = result {
            log::debug!("DHCP on {}: cannot send: {error}", self.nic.name);
        }
    }

    fn unicast(&mut self, from: Ipv4Addr, to: Ipv4Addr, request: &[u8]) -> io::Result<()> {
        let socket = match self.unicast.take() {
            Some(socket) => socket,
            None => open_unicast(&self.nic.name, from)?,
        };
        socket.send_to(request, (to, packet::SERVER_PORT))?;
        self.unicast = Some(socket);
        Ok(())
    }

    /// The next packet to the client's port; `None` where it is no reply.
    async fn receive(&self) -> io::Result<Option<packet::Reply>> {
        let mut buffer = [0; packet::REPLY_MAX as usize];
        loop {
            let mut guard = self.packets.readable().await?;
            let fd = guard.get_inner().as_raw_fd();
            match recv(
                fd,
                &mut buffer,
                MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_TRUNC,
            ) {
                Ok(length) => {
                    let packet = buffer.get(..length).and_then(packet::payload);
                    return Ok(packet.and_then(packet::parse));
                }
                Err(Errno::EAGAIN) => guard.clear_ready(),
                // Told once, when the link goes down. It may come up again.
                Err(Errno::EINTR | Errno::ENETDOWN) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}

fn open_unicast(link: &str, address: Ipv4Addr) -> io::Result<UdpSocket> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket(AddressFamily::Inet, SockType::Datagram, flags, None)?;
    setsockopt(&fd, sockopt::ReuseAddr, &true)?;
    setsockopt(&fd, sockopt::BindToDevice, &link.into())?;
    let [a, b, c, d] = address.octets();
    bind(
        fd.as_raw_fd(),
        &SockaddrIn::new(a, b, c, d, packet::CLIENT_PORT),
    )?;
    Ok(fd.into())
}

#[cfg(test)]
mod tests;
