//! A network of the test's own: a TAP that a node's card is plugged into, and routers, servers of DHCP and a time server on it.
//!
//! Owns: a network namespace of the calling thread's own, which ends with the thread and what it started. Needs root and
//! Debian's iproute2. Refuses: IPv4 where it is not asked for, and speaking before it is told to.

mod dhcp4;
mod dhcp6;
mod voice;

use std::io::{self, ErrorKind};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use nix::sched::{CloneFlags, unshare};
use types::Cidr6;

pub use dhcp4::Lends;
use voice::Voice;

/// The TAP's name in its namespace.
pub const TAP: &str = "lan6";
/// The router's address on the link.
const LOCAL: &str = "fe80::1";
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

/// The network; threads of it live as long as the test's process.
#[derive(Debug)]
pub struct Router {
    index: u32,
    voice: Voice,
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
        let prefixes = own.iter().take(1).map(announced).collect();
        let router = Self {
            index,
            voice: Voice::begin(index, LOCAL.parse()?, prefixes, patience)?,
            lent: Arc::default(),
        };
        let first = own.first().context("a network has a prefix")?.address;
        serve(index, first, router.lent.clone())?;
        Ok(router)
    }

    /// Says something else from now on, and at once.
    pub fn announce(&self, says: Vec<Announced>) -> Result<()> {
        self.voice.say(|now| now.prefixes = says)
    }

    /// Sends what is for this network to that neighbour.
    pub fn route(&self, network: &str, neighbour: &str) -> Result<()> {
        ip(&format!("route add {network} via {neighbour} dev {TAP}"))
    }

    /// Addresses do not follow from prefixes any more: this one is lent.
    pub fn lend(&self, address: Ipv6Addr) -> Result<()> {
        *self.lent.lock().unwrap_or_else(PoisonError::into_inner) = Some(address);
        self.voice.say(|now| now.managed = true)
    }

    /// Says that it leads to the world for so many seconds; 0: no more.
    pub fn lead(&self, seconds: u16) -> Result<()> {
        self.voice.say(|now| now.lifetime_s = seconds)
    }

    /// The router dies without a word: nobody answers for its address on the link any more, and what it had said still holds.
    pub fn die(&self) -> Result<()> {
        ip(&format!("address del {LOCAL}/64 dev {TAP}"))
    }

    /// One more router on the link, which has this address there, names no prefix, and says so at once.
    pub fn beside(&self, address: &str) -> Result<()> {
        self.add(&format!("{address}/64"))?;
        let voice = Voice::begin(self.index, address.parse()?, Vec::new(), 1)?;
        voice.say(|_| ())
    }

    /// What the test asks of the node it asks as this address beyond the routers from now on.
    /// `own`: the network that the node is in.
    pub fn ask_from(&self, outside: &str, own: &Cidr6) -> Result<()> {
        // It can be a source at once.
        ip(&format!("address add {outside}/128 dev lo nodad"))?;
        let network = own.network();
        ip(&format!(
            "-6 route replace {network} dev {TAP} src {outside}"
        ))
    }

    /// Lends one address of IPv4 to who has asked for the `patience`th time.
    pub fn lease(&self, leased: Ipv4Addr, own: Ipv4Addr, patience: usize) -> Result<Lends> {
        self.add(&format!("{own}/24"))?;
        dhcp4::serve(leased, own, patience)
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
        let (socket, index) = (voice::open()?, self.index);
        // RFC 4861 section 4.4, with the override flag.
        let mut packet = vec![ADVERTISEMENT, 0, 0, 0, 0x20, 0, 0, 0];
        packet.extend(address.address.octets());
        // Nobody hears it while the machine is off.
        thread::spawn(move || {
            loop {
                let _ = voice::tell_all(&socket, index, &packet);
                thread::sleep(SAID_AGAIN);
            }
        });
        Ok(())
    }

    /// How often was asked for routers.
    pub fn asked(&self) -> usize {
        self.voice.asked()
    }
}

fn ip(arguments: &str) -> Result<()> {
    let output = Command::new("ip").args(arguments.split(' ')).output();
    let output = output.context("run Debian's ip")?;
    ensure!(output.status.success(), "ip {arguments}: {output:?}");
    Ok(())
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
    fn the_time_is_answered_in_one_packet() {
        assert_eq!(now(&[0; 48]).expect("an answer").len(), 48);
    }
}
