//! The rtnetlink requests that bring a link up, and make it another.
//!
//! Owns: their bytes (linux/rtnetlink.h) and one blocking socket.
//! Refuses: reading the kernel's tables. Nothing else configures a network in this VM before its program.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType};
use sys::error::During;
use types::{Cidr, Cidr6, Mac};

use crate::error::{Result, SetupError};

const NLMSG_ERROR: u16 = 2;
const RTM_NEWLINK: u16 = 16;
const RTM_NEWADDR: u16 = 20;
const RTM_DELADDR: u16 = 21;
const RTM_NEWROUTE: u16 = 24;
/// NLM_F_REQUEST | NLM_F_ACK.
const CHANGE: u16 = 1 | 4;
/// With NLM_F_CREATE | NLM_F_REPLACE.
const SET: u16 = CHANGE | 0x400 | 0x100;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
/// Nobody is asked whether it is taken: the host gives it.
const IFA_F_NODAD: u8 = 2;
const IFF_UP: u32 = 1;
const IFLA_ADDRESS: u16 = 1;
const IFLA_MTU: u16 = 4;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_BROADCAST: u16 = 4;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RT_TABLE_MAIN: u8 = 254;
const RTPROT_STATIC: u8 = 4;
const RTN_UNICAST: u8 = 1;
/// The gateway need not lie in the address's network.
const RTNH_F_ONLINK: u32 = 4;
/// struct nlmsghdr.
const HEADER_BYTES: usize = 16;
/// An answer: header, error number and the head of the request.
const ANSWER_BYTES_MAX: usize = 4096;

/// One request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Request {
    Up {
        link: u32,
        mtu: Option<u16>,
    },
    /// Its routes and neighbours go, its IPv4 addresses stay.
    Down {
        link: u32,
    },
    /// Of a link that is down.
    Hardware {
        link: u32,
        mac: Mac,
    },
    Address {
        link: u32,
        address: Cidr,
    },
    /// Goes by itself when the link does.
    Address6 {
        link: u32,
        address: Cidr6,
    },
    RemoveAddress {
        link: u32,
        address: Cidr,
    },
    DefaultRoute {
        link: u32,
        gateway: Ipv4Addr,
    },
}

impl Request {
    /// The message with header and sequence number.
    fn encode(self, sequence: u32) -> Vec<u8> {
        match self {
            Self::Up { link, mtu } => {
                let mut body = link_body(link, IFF_UP, IFF_UP);
                if let Some(mtu) = mtu {
                    attribute(&mut body, IFLA_MTU, &u32::from(mtu).to_ne_bytes());
                }
                message(RTM_NEWLINK, CHANGE, sequence, &body)
            }
            Self::Down { link } => {
                message(RTM_NEWLINK, CHANGE, sequence, &link_body(link, 0, IFF_UP))
            }
            Self::Hardware { link, mac } => {
                let mut body = link_body(link, 0, 0);
                attribute(&mut body, IFLA_ADDRESS, &mac.0);
                message(RTM_NEWLINK, CHANGE, sequence, &body)
            }
            Self::RemoveAddress { link, address } => {
                let mut body = vec![AF_INET, address.prefix(), 0, 0];
                body.extend(link.to_ne_bytes());
                attribute(&mut body, IFA_LOCAL, &address.address.octets());
                message(RTM_DELADDR, CHANGE, sequence, &body)
            }
            Self::Address { link, address } => {
                // struct ifaddrmsg: family, prefix length, flags, scope (universe), index.
                let mut body = vec![AF_INET, address.prefix(), 0, 0];
                body.extend(link.to_ne_bytes());
                attribute(&mut body, IFA_LOCAL, &address.address.octets());
                attribute(&mut body, IFA_ADDRESS, &address.address.octets());
                // Networks of one or two addresses have no broadcast address (RFC 3021).
                if address.prefix() < 31 {
                    let broadcast = u32::from(address.address) | !address.mask();
                    attribute(&mut body, IFA_BROADCAST, &broadcast.to_be_bytes());
                }
                message(RTM_NEWADDR, SET, sequence, &body)
            }
            Self::Address6 { link, address } => {
                let mut body = vec![AF_INET6, address.prefix(), IFA_F_NODAD, 0];
                body.extend(link.to_ne_bytes());
                attribute(&mut body, IFA_ADDRESS, &address.address.octets());
                message(RTM_NEWADDR, SET, sequence, &body)
            }
            Self::DefaultRoute { link, gateway } => {
                // struct rtmsg: family, lengths of destination and source, TOS, table, protocol,
                // scope (universe), type, flags.
                let mut body = vec![
                    AF_INET,
                    0,
                    0,
                    0,
                    RT_TABLE_MAIN,
                    RTPROT_STATIC,
                    0,
                    RTN_UNICAST,
                ];
                body.extend(RTNH_F_ONLINK.to_ne_bytes());
                attribute(&mut body, RTA_GATEWAY, &gateway.octets());
                attribute(&mut body, RTA_OIF, &link.to_ne_bytes());
                message(RTM_NEWROUTE, SET, sequence, &body)
            }
        }
    }
}

fn message(kind: u16, flags: u16, sequence: u32, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(HEADER_BYTES + body.len()).expect("requests are some dozen bytes");
    let mut bytes = Vec::with_capacity(HEADER_BYTES + body.len());
    bytes.extend(length.to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    bytes.extend(sequence.to_ne_bytes());
    bytes.extend(0u32.to_ne_bytes());
    bytes.extend(body);
    bytes
}

/// struct ifinfomsg: family, padding, type, index, flags, mask of flags to change.
fn link_body(link: u32, flags: u32, mask: u32) -> Vec<u8> {
    let mut body = vec![0; 4];
    body.extend(
        [link, flags, mask]
            .iter()
            .flat_map(|word| word.to_ne_bytes()),
    );
    body
}

/// Padded to four bytes, which the length does not count.
fn attribute(body: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let length = u16::try_from(4 + value.len()).expect("values are a few bytes");
    body.extend(length.to_ne_bytes());
    body.extend(kind.to_ne_bytes());
    body.extend(value);
    body.resize(body.len().next_multiple_of(4), 0);
}

/// The kernel's answer to the request with this number.
fn answer(bytes: &[u8], sequence: u32) -> io::Result<()> {
    let malformed = || io::Error::from(io::ErrorKind::InvalidData);
    let kind = bytes
        .get(4..6)
        .and_then(|b| b.try_into().ok())
        .map(u16::from_ne_bytes);
    let number = bytes
        .get(8..12)
        .and_then(|b| b.try_into().ok())
        .map(u32::from_ne_bytes);
    let error = bytes
        .get(16..20)
        .and_then(|b| b.try_into().ok())
        .map(i32::from_ne_bytes);
    match (kind, number, error) {
        (Some(NLMSG_ERROR), Some(n), Some(0)) if n == sequence => Ok(()),
        (Some(NLMSG_ERROR), Some(n), Some(error)) if n == sequence => Err(
            io::Error::from_raw_os_error(error.checked_neg().ok_or_else(malformed)?),
        ),
        _ => Err(malformed()),
    }
}

/// A socket to the kernel's network configuration.
#[derive(Debug)]
pub(crate) struct Socket {
    fd: OwnedFd,
    sequence: u32,
}

impl Socket {
    pub(crate) fn open() -> Result<Self> {
        let protocol = SockProtocol::NetlinkRoute;
        let flags = SockFlag::SOCK_CLOEXEC;
        let fd = nix::sys::socket::socket(AddressFamily::Netlink, SockType::Raw, flags, protocol)
            .during(|| "open a netlink socket".to_owned())?;
        Ok(Self { fd, sequence: 0 })
    }

    /// Sends one request and reads its answer, which the kernel has ready when `send` returns.
    pub(crate) fn ask(&mut self, request: Request) -> Result<()> {
        self.sequence += 1;
        self.exchange(&request.encode(self.sequence))
            .map_err(|source| SetupError::Netlink {
                operation: format!("set {request:?}"),
                source,
            })
    }

    fn exchange(&self, message: &[u8]) -> io::Result<()> {
        let fd = self.fd.as_raw_fd();
        nix::sys::socket::send(fd, message, MsgFlags::empty())?;
        let mut bytes = [0; ANSWER_BYTES_MAX];
        let length = nix::sys::socket::recv(fd, &mut bytes, MsgFlags::MSG_DONTWAIT)?;
        answer(&bytes[..length], self.sequence)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_written_as_the_kernel_reads_them() {
        let up = Request::Up {
            link: 2,
            mtu: Some(1500),
        }
        .encode(1);
        assert_eq!(
            up,
            [
                40, 0, 0, 0, 16, 0, 5, 0, 1, 0, 0, 0, 0, 0, 0, 0, // header
                0, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, // ifinfomsg
                8, 0, 4, 0, 0xdc, 5, 0, 0, // MTU
            ]
        );
        let address = "10.1.2.3/24".parse().expect("an address");
        let address = Request::Address { link: 2, address }.encode(2);
        assert_eq!(address[16..24], [2, 24, 0, 0, 2, 0, 0, 0]);
        assert_eq!(
            address[24..],
            [
                8, 0, 2, 0, 10, 1, 2, 3, 8, 0, 1, 0, 10, 1, 2, 3, 8, 0, 4, 0, 10, 1, 2, 255
            ]
        );
    }

    #[test]
    fn a_link_goes_down_and_gets_another_address() {
        let down = Request::Down { link: 2 }.encode(1);
        assert_eq!(down[16..], [0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0]);
        let mac = Mac([2, 3, 4, 5, 6, 7]);
        let hardware = Request::Hardware { link: 2, mac }.encode(1);
        assert_eq!(hardware[0], 16 + 16 + 12);
        assert_eq!(
            hardware[32..],
            [10, 0, 1, 0, 2, 3, 4, 5, 6, 7, 0, 0] // length without padding, IFLA_ADDRESS
        );
        let address = "10.1.2.3/24".parse().expect("an address");
        let remove = Request::RemoveAddress { link: 2, address }.encode(1);
        assert_eq!(remove[4], 21);
        assert_eq!(
            remove[16..],
            [2, 24, 0, 0, 2, 0, 0, 0, 8, 0, 2, 0, 10, 1, 2, 3]
        );
    }

    #[test]
    fn an_address_of_ipv6_is_taken_at_once() {
        let address = "fd01::a80:302/64".parse().expect("an address");
        let request = Request::Address6 { link: 2, address }.encode(2);
        assert_eq!(request[16..24], [10, 64, 2, 0, 2, 0, 0, 0]);
        let octets = [0xfd, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 10, 128, 3, 2];
        assert_eq!(request[24..28], [20, 0, 1, 0]);
        assert_eq!(request[28..], octets);
    }

    #[test]
    fn a_single_address_has_no_broadcast() {
        let address = "10.1.2.3/32".parse().expect("an address");
        assert_eq!(
            Request::Address { link: 2, address }.encode(2).len(),
            16 + 8 + 16
        );
    }

    #[test]
    fn an_answer_is_the_kernels_error_number() {
        let refusal = message(NLMSG_ERROR, 0, 9, &(-libc::EPERM).to_ne_bytes());
        assert_eq!(
            answer(&refusal, 9).expect_err("refused").raw_os_error(),
            Some(libc::EPERM)
        );
        assert!(answer(&message(NLMSG_ERROR, 0, 9, &[0; 4]), 9).is_ok());
        assert!(answer(&message(NLMSG_ERROR, 0, 8, &[0; 4]), 9).is_err());
        assert!(answer(&[], 9).is_err());
    }
}
