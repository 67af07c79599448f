//! Network links of a node or guest that a scenario runs in, by rtnetlink (rtnetlink(7)).
//!
//! Owns: an address and "up". Refuses: everything else about links.

use std::net::Ipv4Addr;
use std::os::fd::AsRawFd;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, connect, recv, send,
    socket,
};

const RTM_NEWLINK: u16 = 16;
const RTM_NEWADDR: u16 = 20;
const NLMSG_ERROR: u16 = 2;
/// NLM_F_REQUEST, NLM_F_ACK, NLM_F_CREATE.
const FLAGS: u16 = 1 | 4 | 0x400;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFF_UP: u32 = 1;

/// Gives `name` an address in a /24, and brings it up.
pub fn set_up(name: &str, address: Ipv4Addr) -> Result<()> {
    let index = std::fs::read_to_string(format!("/sys/class/net/{name}/ifindex"));
    let index = index.with_context(|| format!("find the link {name}"))?;
    let index: u32 = index.trim().parse()?;
    let local = address.octets();
    let mut message = vec![2, 24, 0, 0];
    message.extend(index.to_le_bytes());
    for kind in [IFA_LOCAL, IFA_ADDRESS] {
        message.extend([8, 0]);
        message.extend(kind.to_le_bytes());
        message.extend(local);
    }
    ask(RTM_NEWADDR, &message).with_context(|| format!("give {name} the address {address}"))?;
    // Family, padding and type; then the index, flags and which of them are meant.
    let mut message = vec![0; 4];
    for word in [index, IFF_UP, IFF_UP] {
        message.extend(word.to_le_bytes());
    }
    ask(RTM_NEWLINK, &message).with_context(|| format!("bring {name} up"))
}

fn ask(kind: u16, body: &[u8]) -> Result<()> {
    let netlink = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkRoute,
    )?;
    connect(netlink.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
    let length = u32::try_from(16 + body.len())?;
    let mut message = Vec::from(length.to_le_bytes());
    message.extend(kind.to_le_bytes());
    message.extend(FLAGS.to_le_bytes());
    // Sequence and port: one request a socket.
    message.extend([0; 8]);
    message.extend(body);
    send(netlink.as_raw_fd(), &message, MsgFlags::empty())?;
    let mut answer = [0; 256];
    let count = recv(netlink.as_raw_fd(), &mut answer, MsgFlags::empty())?;
    let answer = &answer[..count];
    ensure!(
        count >= 20 && answer[4..6] == NLMSG_ERROR.to_le_bytes(),
        "no acknowledgement: {answer:?}"
    );
    match i32::from_le_bytes(answer[16..20].try_into()?) {
        0 => Ok(()),
        error => bail!(std::io::Error::from_raw_os_error(-error)),
    }
}
