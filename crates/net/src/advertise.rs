//! What the gateway of a tenant network says of itself to guests: whether it leads outside by IPv6 (RFC 4861 section 6.2).
//!
//! Owns: when it is said, to whom, and the bytes. Refuses: saying more: guests have their addresses, name server and MTU from their
//! specification, so that an advertisement has no prefix in it.

use std::io::{self, IoSliceMut};
use std::net::{Ipv6Addr, SocketAddrV6};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::net::if_::if_nametoindex;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn6, recvmsg, sendto,
    setsockopt, socket, sockopt,
};
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;
use types::Mac;

use crate::network::{BRIDGE, Network, guest_mac};
use crate::{Error, namespace, ready};

const SOLICITATION: u8 = 133;
const ADVERTISEMENT: u8 = 134;
const OPTION_SOURCE: u8 = 1;
/// All nodes of the link.
const ALL: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
/// What shows that it came through no router.
const HOPS: i32 = 255;
/// What packets of guests begin with, as they do by themselves.
const HOP_LIMIT: u8 = 64;
/// For how long guests believe it: a guest keeps its way while the node agent is away for less. The usual of routers.
const LIFETIME: Duration = Duration::from_secs(1800);
/// Between two that nobody asked for: several of them in a lifetime, as one may be lost.
const EVERY: Duration = Duration::from_secs(200);
/// What is new is said this often, a short while apart.
const NEWS: u8 = 3;
const NEWS_EVERY: Duration = Duration::from_secs(3);
/// The fixed part of a question; what follows it is not read.
const QUESTION_BYTES: usize = 8;

/// When it is said without being asked for.
#[derive(Debug)]
struct Turn {
    leads: bool,
    due: Instant,
    /// How often it is still new.
    news: u8,
}

impl Turn {
    fn new(leads: bool, now: Instant) -> Self {
        Self {
            leads,
            due: now,
            news: NEWS,
        }
    }

    fn set(&mut self, leads: bool, now: Instant) {
        if self.leads != leads {
            *self = Self::new(leads, now);
        }
    }

    /// Whether it is to be said now.
    fn take(&mut self, now: Instant) -> bool {
        if now < self.due {
            return false;
        }
        self.news = self.news.saturating_sub(1);
        self.due = now + if self.news > 0 { NEWS_EVERY } else { EVERY };
        true
    }
}

/// Lifetime 0: it is no way out, or is none any more.
fn advertisement(leads: bool, mac: Mac) -> Vec<u8> {
    let lifetime = if leads { LIFETIME.as_secs() } else { 0 };
    let lifetime = u16::try_from(lifetime).expect("half an hour");
    let mut packet = vec![ADVERTISEMENT, 0, 0, 0, HOP_LIMIT, 0];
    packet.extend(lifetime.to_be_bytes());
    packet.extend([0; 8]);
    packet.extend([OPTION_SOURCE, 1]);
    packet.extend(mac.0);
    packet
}

/// Whom a question is answered to; `None`: it is none. That it came through no router the rules of the network's namespace see to.
fn answered_to(from: Ipv6Addr, packet: &[u8]) -> Option<Ipv6Addr> {
    let fixed = packet.first_chunk::<QUESTION_BYTES>()?;
    let asks = fixed.starts_with(&[SOLICITATION, 0]);
    // Who has no address yet hears what is said to all.
    let to = match from.is_unicast_link_local() {
        true => from,
        false => ALL,
    };
    asks.then_some(to)
}

/// The gateway's voice in its network.
#[derive(Debug)]
pub struct Voice {
    socket: OwnedFd,
    /// The bridge's number in its namespace.
    index: u32,
    mac: Mac,
}

/// The network has been made.
pub fn voice(network: &Network) -> Result<Voice, Error> {
    let operation = || format!("speak to guests of namespace {}", network.name);
    let inside = namespace::open(&network.name)?;
    let inside = inside.ok_or_else(|| Error::errno(operation())(Errno::ENOENT))?;
    namespace::within(inside, || {
        let (socket, index) = open().map_err(Error::io(operation()))?;
        let mac = guest_mac(network.gateway.address);
        Ok(Voice { socket, index, mac })
    })
}

fn open() -> io::Result<(OwnedFd, u32)> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let protocol = SockProtocol::IcmpV6;
    let fd = socket(AddressFamily::Inet6, SockType::Raw, flags, protocol)?;
    sys::icmp::hear_only(fd.as_fd(), SOLICITATION)?;
    setsockopt(&fd, sockopt::BindToDevice, &BRIDGE.to_owned().into())?;
    setsockopt(&fd, sockopt::Ipv6MulticastHops, &HOPS)?;
    setsockopt(&fd, sockopt::Ipv6Ttl, &HOPS)?;
    Ok((fd, if_nametoindex(BRIDGE)?))
}

/// Says whether it `leads` outside, for as long as somebody has the other end of that. Within a tokio runtime.
pub async fn speak(voice: Voice, mut leads: watch::Receiver<bool>) -> Result<(), Error> {
    let failed = || Error::io("speak to guests of a network");
    let Voice { socket, index, mac } = voice;
    let socket = ready::watch(socket).map_err(failed())?;
    let mut turn = Turn::new(*leads.borrow_and_update(), Instant::now());
    loop {
        if turn.take(Instant::now()) {
            say(&socket, (ALL, index), &advertisement(turn.leads, mac));
        }
        tokio::select! {
            // All are safe to drop: nothing is taken before it is there.
            () = tokio::time::sleep_until(turn.due.into()) => {}
            changed = leads.changed() => match changed {
                Ok(()) => turn.set(*leads.borrow_and_update(), Instant::now()),
                Err(_) => return Ok(()),
            },
            heard = hear(&socket) => {
                if let Some(to) = heard.map_err(failed())? {
                    say(&socket, (to, index), &advertisement(turn.leads, mac));
                }
            }
        }
    }
}

/// What could not be said is as what was lost: it is said again in time.
fn say(socket: &AsyncFd<OwnedFd>, (to, index): (Ipv6Addr, u32), packet: &[u8]) {
    let to = SockaddrIn6::from(SocketAddrV6::new(to, 0, 0, index));
    let fd = socket.get_ref().as_raw_fd();
    if let Err(errno) = sendto(fd, packet, &to, MsgFlags::MSG_DONTWAIT) {
        log::debug!("a gateway cannot speak to its guests: {errno}");
    }
}

/// Who asks whether it leads outside, if that is what was heard.
async fn hear(socket: &AsyncFd<OwnedFd>) -> io::Result<Option<Ipv6Addr>> {
    let mut packet = [0; QUESTION_BYTES];
    loop {
        let mut guard = socket.readable().await?;
        let fd = guard.get_inner().as_raw_fd();
        let mut parts = [IoSliceMut::new(&mut packet)];
        match recvmsg::<SockaddrIn6>(fd, &mut parts, None, MsgFlags::MSG_DONTWAIT) {
            Ok(message) => {
                let (from, length) = (message.address, message.bytes);
                let packet = packet.get(..length).unwrap_or_default();
                return Ok(from.and_then(|from| answered_to(from.ip(), packet)));
            }
            Err(Errno::EAGAIN) => guard.clear_ready(),
            // The bridge goes down when nobody is plugged into it.
            Err(Errno::EINTR | Errno::ENETDOWN) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, proptest};

    use super::*;

    const MAC: Mac = Mac([2, 0, 10, 128, 3, 1]);

    #[test]
    fn an_advertisement_is_for_half_an_hour_or_for_no_time() {
        let says = advertisement(true, MAC);
        assert_eq!((says.len(), says[0], &says[6..8]), (24, 134, &[7, 8][..]));
        assert_eq!(says[16..], [1, 1, 2, 0, 10, 128, 3, 1]);
        assert_eq!(advertisement(false, MAC)[6..8], [0, 0]);
    }

    #[test]
    fn news_is_said_three_times_at_once_and_then_it_is_repeated_now_and_then() {
        let begin = Instant::now();
        let mut turn = Turn::new(false, begin);
        let mut said = Vec::new();
        let mut now = begin;
        while said.len() < 5 {
            assert!(turn.take(now) && !turn.take(now), "once at a time");
            said.push((now - begin).as_secs());
            now = turn.due;
        }
        assert_eq!(said, [0, 3, 6, 206, 406]);
        turn.set(false, now);
        assert_eq!(turn.due, now, "nothing is new");
        turn.set(true, begin);
        assert!(turn.due == begin && turn.leads);
        turn.take(begin);
        assert_eq!(turn.due, begin + NEWS_EVERY);
    }

    #[test]
    fn who_asks_is_answered_itself_and_who_has_no_address_hears_what_is_said_to_all() {
        let guest: Ipv6Addr = "fe80::aff:fe80:302".parse().expect("an address");
        let asks = [133, 0, 1, 2, 0, 0, 0, 0];
        assert_eq!(answered_to(guest, &asks), Some(guest));
        assert_eq!(answered_to(Ipv6Addr::UNSPECIFIED, &asks), Some(ALL));
        let given = "fd01:203:405:3::a80:302".parse().expect("an address");
        assert_eq!(answered_to(given, &asks), Some(ALL));
        assert_eq!(answered_to(guest, &asks[..7]), None);
        assert_eq!(answered_to(guest, &[134, 0, 0, 0, 0, 0, 0, 0]), None);
    }

    proptest! {
        #[test]
        fn any_packet_is_a_question_or_none(from: [u8; 16], packet in any::<Vec<u8>>()) {
            let to = answered_to(from.into(), &packet);
            assert!(to.is_none_or(|to| to == ALL || to.is_unicast_link_local()));
        }
    }
}
