//! The power button, as the kernel's ACPI driver reports it over generic netlink.
//!
//! Owns: finding the `acpi_event` family and reading its events (drivers/acpi/event.c).
//! Refuses: every other event, and the keyboard: no input device is opened.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType};

use crate::error::{During, Result};

/// Longest message of the controller or an event: one page.
const MESSAGE_MAX: usize = 4096;
/// Netlink and generic netlink header together.
const HEADER: usize = 20;
// linux/genetlink.h
const GENL_ID_CTRL: u16 = 0x10;
const CTRL_CMD_GETFAMILY: u8 = 3;
const CTRL_ATTR_FAMILY_ID: u16 = 1;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;
const CTRL_ATTR_MCAST_GROUPS: u16 = 7;
const CTRL_ATTR_MCAST_GRP_ID: u16 = 2;
// drivers/acpi/event.c
const FAMILY: &[u8] = b"acpi_event\0";
const ACPI_GENL_ATTR_EVENT: u16 = 1;
const POWER_BUTTON: &[u8] = b"button/power";

/// A non-blocking subscription.
#[derive(Debug)]
pub struct PowerButton {
    socket: OwnedFd,
    family: u16,
}

impl PowerButton {
    /// Fails with `NotFound` in a kernel without ACPI.
    pub fn open() -> Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let protocol = SockProtocol::NetlinkGeneric;
        let socket =
            nix::sys::socket::socket(AddressFamily::Netlink, SockType::Raw, flags, protocol)
                .during(|| "open a generic netlink socket".to_owned())?;
        let (family, group) = find_family(&socket).during(|| "find the ACPI events".to_owned())?;
        subscribe(&socket, group).during(|| "subscribe to ACPI events".to_owned())?;
        Ok(Self { socket, family })
    }

    /// Whether the button was pressed since the last call.
    pub fn pressed(&self) -> Result<bool> {
        let mut pressed = false;
        loop {
            match receive(&self.socket) {
                Ok(message) => pressed |= is_power_button(&message, self.family),
                Err(Errno::EAGAIN) => return Ok(pressed),
                // Events were lost, perhaps a press: people press again.
                Err(Errno::EINTR | Errno::ENOBUFS) => {}
                Err(errno) => return Err(errno).during(|| "read ACPI events".to_owned()),
            }
        }
    }
}

impl AsFd for PowerButton {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn receive(socket: &OwnedFd) -> nix::Result<Vec<u8>> {
    let mut buffer = vec![0; MESSAGE_MAX];
    let length = nix::sys::socket::recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
    buffer.truncate(length);
    Ok(buffer)
}

/// Numbers of the family and of its only multicast group.
fn find_family(socket: &OwnedFd) -> io::Result<(u16, u32)> {
    let missing = || io::Error::from(io::ErrorKind::NotFound);
    nix::sys::socket::send(socket.as_raw_fd(), &question(), MsgFlags::empty())?;
    // The kernel answers within the send call, so the answer is there.
    let answer = receive(socket)?;
    family_and_group(&answer).ok_or_else(missing)
}

fn question() -> Vec<u8> {
    let attribute = u16::try_from(4 + FAMILY.len()).expect("a short name");
    let padded = usize::from(attribute).next_multiple_of(4);
    let length = u32::try_from(HEADER + padded).expect("a short message");
    let mut message = Vec::new();
    message.extend(length.to_ne_bytes());
    message.extend(GENL_ID_CTRL.to_ne_bytes());
    // NLM_F_REQUEST; then sequence and port, which the kernel fills in.
    message.extend(1u16.to_ne_bytes());
    message.extend([0; 8]);
    message.extend([CTRL_CMD_GETFAMILY, 1, 0, 0]);
    message.extend(attribute.to_ne_bytes());
    message.extend(CTRL_ATTR_FAMILY_NAME.to_ne_bytes());
    message.extend(FAMILY);
    message.resize(HEADER + padded, 0);
    message
}

fn family_and_group(answer: &[u8]) -> Option<(u16, u32)> {
    let (kind, attributes) = split(answer)?;
    if kind != GENL_ID_CTRL {
        return None;
    }
    let family = attribute(attributes, CTRL_ATTR_FAMILY_ID)?;
    let groups = attribute(attributes, CTRL_ATTR_MCAST_GROUPS)?;
    let (_, first) = attributes_of(groups).next()?;
    let group = attribute(first, CTRL_ATTR_MCAST_GRP_ID)?;
    Some((
        u16::from_ne_bytes(family.get(..2)?.try_into().ok()?),
        u32::from_ne_bytes(group.get(..4)?.try_into().ok()?),
    ))
}

fn subscribe(socket: &OwnedFd, group: u32) -> io::Result<()> {
    let size = libc::socklen_t::try_from(size_of::<u32>()).expect("four");
    // SAFETY: the option is one u32 that lives until the call returns, and `size` is its size.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_NETLINK,
            libc::NETLINK_ADD_MEMBERSHIP,
            (&raw const group).cast(),
            size,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// `struct acpi_genl_event` begins with the device class, 20 bytes ended by a NUL.
fn is_power_button(message: &[u8], family: u16) -> bool {
    let event = split(message)
        .filter(|(kind, _)| *kind == family)
        .and_then(|(_, attributes)| attribute(attributes, ACPI_GENL_ATTR_EVENT));
    event.is_some_and(|e| e.starts_with(POWER_BUTTON) && e.get(POWER_BUTTON.len()) == Some(&0))
}

/// Type and attributes of the first message.
fn split(message: &[u8]) -> Option<(u16, &[u8])> {
    let length = u32::from_ne_bytes(message.get(..4)?.try_into().ok()?);
    let kind = u16::from_ne_bytes(message.get(4..6)?.try_into().ok()?);
    Some((kind, message.get(HEADER..usize::try_from(length).ok()?)?))
}

fn attribute(attributes: &[u8], wanted: u16) -> Option<&[u8]> {
    attributes_of(attributes).find_map(|(kind, value)| (kind == wanted).then_some(value))
}

fn attributes_of(mut rest: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16::from_ne_bytes(rest.get(..2)?.try_into().ok()?));
        // The two high bits are flags.
        let kind = u16::from_ne_bytes(rest.get(2..4)?.try_into().ok()?) & 0x3fff;
        let value = rest.get(4..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attr(kind: u16, value: &[u8]) -> Vec<u8> {
        let mut out = u16::try_from(4 + value.len())
            .expect("short")
            .to_ne_bytes()
            .to_vec();
        out.extend(kind.to_ne_bytes());
        out.extend(value);
        out.resize(out.len().next_multiple_of(4), 0);
        out
    }

    fn message(kind: u16, attributes: &[u8]) -> Vec<u8> {
        let mut out = u32::try_from(HEADER + attributes.len())
            .expect("short")
            .to_ne_bytes()
            .to_vec();
        out.extend(kind.to_ne_bytes());
        out.resize(HEADER, 0);
        out.extend(attributes);
        out
    }

    #[test]
    fn the_family_and_its_group_are_found_in_an_answer() {
        let group = [attr(1, b"acpi_mc_group\0"), attr(2, &5u32.to_ne_bytes())].concat();
        let attributes = [attr(1, &24u16.to_ne_bytes()), attr(7, &attr(1, &group))].concat();
        assert_eq!(
            family_and_group(&message(GENL_ID_CTRL, &attributes)),
            Some((24, 5))
        );
        // NLMSG_ERROR: no such family.
        assert_eq!(family_and_group(&message(2, &(-2i32).to_ne_bytes())), None);
    }

    #[test]
    fn only_the_power_button_counts_and_torn_messages_are_nothing() {
        let event = |class: &[u8]| {
            let mut bytes = class.to_vec();
            bytes.resize(44, 0);
            message(24, &attr(1, &bytes))
        };
        assert!(is_power_button(&event(b"button/power"), 24));
        for other in [
            event(b"button/lid"),
            event(b"button/powerful"),
            Vec::new(),
            vec![255; 30],
        ] {
            assert!(!is_power_button(&other, 24));
        }
        let whole = event(b"button/power");
        assert!((0..whole.len()).all(|n| !is_power_button(&whole[..n], 24)));
    }
}
