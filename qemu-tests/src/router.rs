//! A network of the test's own: a TAP that a node's card is plugged into, and routers, servers of DHCP and a time server on it.
//!
//! Owns: a network namespace of the calling thread's own, which ends with the thread and what it started. Needs root and
//! Debian's iproute2. Refuses: IPv4 where it is not asked for, and speaking before it is told to.

mod dhcp4;
mod dhcp6;

use std::io::{self, ErrorKind};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use nix::sched::{CloneFlags, unshare};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn6, recv, sendto,
    setsockopt, socket, sockopt,
};
use types::Cidr6;

/// The TAP's name in its namespace.
pub const TAP: &str = "lan6";
/// The router's address on the link.
const LOCAL: &str = "fe80::1";
const SOLICITATION: u8 = 133;
/// Of a neighbour.
const ADVERTISEMENT: u8 = 136;
/// Several times in the second in which a node waits for an answer.
const SAID_AGAIN: Duration = Duration::from_millis(100);
/// Seconds from 1900, where NTP begins, to 1970.
const NTP_TO_UNIX: u64 = 2_208_988_800;

/// What the router says of one prefix.
#[derive(Debug, Clone, Copy)]
pub struct Announced {
    pub network: Cidr6,
    /// Seconds for which addresses of it are to be used.
    pub preferred: u32,
}

/// What a router says.
#[derive(Debug, Clone)]
struct Says {
    prefixes: Vec<Announced>,
    /// Addresses come from DHCPv6.
    managed: bool,
}

/// Seconds for which it is a router: half an hour, as most say.
const LIFETIME_S: u16 = 1800;

/// The network; threads of it live as long as the test's process.
#[derive(Debug)]
pub struct Router {
    socket: Arc<OwnedFd>,
    index: u32,
    says: Arc<Mutex<Says>>,
    asked: Arc<AtomicUsize>,
    lent: Arc<Mutex<Option<Ipv6Addr>>>,
}

impl Router {
    /// Moves the calling thread, and so all that it starts from then on, into a namespace with such a network. The router
    /// answers who asks for routers from the `patience`th time on.
    /// `own`: the router's address in each of its prefixes, of which it announces the first.
    pub fn lay(own: &[Cidr6], patience: usize) -> Result<Self> {
        unshare(CloneFlags::CLONE_NEWNET).context("make a network namespace; it needs root")?;
        ip("link set lo up")?;
        ip(&format!("tuntap add dev {TAP} mode tap"))?;
        ip(&format!("link set dev {TAP} addrgenmode none"))?;
        let settings = "/proc/sys/net/ipv6/conf";
        // What is sent to all routers is heard by one.
        std::fs::write(format!("{settings}/all/forwarding"), "1").context("be a router")?;
        ip(&format!("link set dev {TAP} up"))?;
        ip(&format!("address add {LOCAL}/64 dev {TAP} nodad"))?;
        for own in own {
            ip(&format!("address add {own} dev {TAP} nodad"))?;
        }
        let index = std::fs::read_to_string(format!("/sys/class/net/{TAP}/ifindex"));
        let index = match index {
            Ok(index) => index.trim().parse()?,
            // What is mounted there is of another namespace.
            Err(_) => nix::net::if_::if_nametoindex(TAP)?,
        };
        let announced = |own: &Cidr6| Announced {
            network: own.network(),
            preferred: 3600,
        };
        let router = Self {
            socket: Arc::new(open()?),
            index,
            says: Arc::new(Mutex::new(Says {
                prefixes: own.iter().take(1).map(announced).collect(),
                managed: false,
            })),
            asked: Arc::default(),
            lent: Arc::default(),
        };
        router.answer(patience);
        let first = own.first().context("a network has a prefix")?.address;
        serve(index, first, router.lent.clone())?;
        Ok(router)
    }

    /// Says something else from now on, and at once.
    pub fn announce(&self, says: Vec<Announced>) -> Result<()> {
        self.says_now(|now| now.prefixes = says)
    }

    /// Addresses do not follow from prefixes any more: this one is lent.
    pub fn lend(&self, address: Ipv6Addr) -> Result<()> {
        *self.lent.lock().unwrap_or_else(PoisonError::into_inner) = Some(address);
        self.says_now(|now| now.managed = true)
    }

    /// Lends one address of IPv4 to who has asked for the `patience`th time. How often was asked.
    pub fn lease(
        &self,
        leased: Ipv4Addr,
        own: Ipv4Addr,
        patience: usize,
    ) -> Result<Arc<AtomicUsize>> {
        self.add(&format!("{own}/24"))?;
        dhcp4::serve(leased, own, patience)
    }

    fn says_now(&self, change: impl FnOnce(&mut Says)) -> Result<()> {
        let mut says = self.says.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut says);
        send(&self.socket, self.index, &says.advertisement())
    }

    /// Another address of the router's, of either family. It is there at once: one that is still being looked for would be given up
    /// where the node looks for the same at that moment.
    pub fn add(&self, address: &str) -> Result<()> {
        let nodad = if address.contains(':') { " nodad" } else { "" };
        ip(&format!("address add {address} dev {TAP}{nodad}"))
    }

    /// Another address, whose owner speaks: it tells everybody again and again that it has it. A card that is just up may not hear
    /// yet what is sent to all, and the one answer to a node's one question is lost then.
    pub fn add_twin(&self, address: Cidr6) -> Result<()> {
        self.add(&address.to_string())?;
        let (socket, index) = (open()?, self.index);
        // RFC 4861 section 4.4, with the override flag.
        let mut packet = vec![ADVERTISEMENT, 0, 0, 0, 0x20, 0, 0, 0];
        packet.extend(address.address.octets());
        // Nobody hears it while the machine is off.
        thread::spawn(move || {
            loop {
                let _ = send(&socket, index, &packet);
                thread::sleep(SAID_AGAIN);
            }
        });
        Ok(())
    }

    /// How often was asked for routers.
    pub fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }

    fn answer(&self, patience: usize) {
        let (socket, index) = (self.socket.clone(), self.index);
        let (says, asked) = (self.says.clone(), self.asked.clone());
        thread::spawn(move || -> Result<()> {
            let mut packet = [0; 1500];
            loop {
                let length = recv(socket.as_raw_fd(), &mut packet, MsgFlags::empty())?;
                if packet[..length].first() != Some(&SOLICITATION) {
                    continue;
                }
                if asked.fetch_add(1, Ordering::Relaxed) + 1 >= patience {
                    let says = says.lock().unwrap_or_else(PoisonError::into_inner);
                    send(&socket, index, &says.advertisement())?;
                }
            }
        });
    }
}

fn ip(arguments: &str) -> Result<()> {
    let output = Command::new("ip").args(arguments.split(' ')).output();
    let output = output.context("run Debian's ip")?;
    ensure!(output.status.success(), "ip {arguments}: {output:?}");
    Ok(())
}

fn open() -> Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC;
    let icmp = SockProtocol::IcmpV6;
    let socket =
        socket(AddressFamily::Inet6, SockType::Raw, flags, icmp).context("a raw socket")?;
    setsockopt(&socket, sockopt::Ipv6MulticastHops, &255)?;
    setsockopt(&socket, sockopt::BindToDevice, &TAP.to_owned().into())?;
    Ok(socket)
}

fn send(socket: &OwnedFd, index: u32, packet: &[u8]) -> Result<()> {
    let everybody = SocketAddrV6::new("ff02::1".parse()?, 0, 0, index);
    let to = SockaddrIn6::from(everybody);
    sendto(socket.as_raw_fd(), packet, &to, MsgFlags::empty()).context("send an advertisement")?;
    Ok(())
}

impl Says {
    /// RFC 4861 section 4.2: name and time servers are always from DHCPv6.
    fn advertisement(&self) -> Vec<u8> {
        let [high, low] = LIFETIME_S.to_be_bytes();
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

/// Answers questions of DHCPv6 and for the time.
fn serve(index: u32, own: Ipv6Addr, lent: Arc<Mutex<Option<Ipv6Addr>>>) -> Result<()> {
    let servers = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 547)).context("listen for DHCPv6")?;
    servers.join_multicast_v6(&"ff02::1:2".parse()?, index)?;
    answer_each(servers, None, move |question| {
        dhcp6::answer(question, own, &lent)
    });
    let time = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 123)).context("listen for NTP")?;
    answer_each(time, None, now);
    Ok(())
}

/// To who asked, or to whom else.
fn answer_each(
    socket: UdpSocket,
    to: Option<SocketAddr>,
    answer: impl Fn(&[u8]) -> Option<Vec<u8>> + Send + 'static,
) {
    thread::spawn(move || -> io::Result<()> {
        let mut packet = [0; 1500];
        loop {
            let received: (usize, SocketAddr) = match socket.recv_from(&mut packet) {
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                received => received?,
            };
            if let Some(answer) = answer(&packet[..received.0]) {
                socket.send_to(&answer, to.unwrap_or(received.1))?;
            }
        }
    });
}

/// RFC 4330: version 4, a server of stratum 2, the client's number returned.
fn now(question: &[u8]) -> Option<Vec<u8>> {
    let number = question.get(40..48)?;
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    let since = since.unwrap_or(Duration::ZERO);
    let seconds = u32::try_from((since.as_secs() + NTP_TO_UNIX) & 0xffff_ffff).ok()?;
    let stamp = [seconds.to_be_bytes(), [0; 4]].concat();
    let mut answer = vec![4 << 3 | 4, 2];
    answer.resize(24, 0);
    answer.extend(number);
    answer.extend(&stamp);
    answer.extend(&stamp);
    Some(answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_is_answered_in_one_packet_and_an_advertisement_says_who_lends_addresses() {
        assert_eq!(now(&[0; 48]).expect("an answer").len(), 48);
        let network = "2001:db8::/64".parse().expect("a prefix");
        let announced = Announced {
            network,
            preferred: 60,
        };
        let mut says = Says {
            prefixes: vec![announced],
            managed: false,
        };
        let told = says.advertisement();
        assert_eq!((told[5], &told[6..8], told[19]), (0x40, &[7, 8][..], 0xc0));
        says.managed = true;
        let told = says.advertisement();
        assert_eq!((told[5], &told[6..8], told[19]), (0xc0, &[7, 8][..], 0x80));
    }
}
