//! A switch port that carries a VLAN: frames are tagged towards the node and not tagged behind (IEEE 802.1Q).
//!
//! Owns: two loopback ports, which QEMU's `socket` back ends connect to, and the frames between them.
//! Refuses: frames without the VLAN's tag, as a switch does.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::thread;

use anyhow::{Context, Result, ensure};

/// Both Ethernet addresses stand before the tag.
const ADDRESSES: usize = 12;
const TAG: [u8; 2] = [0x81, 0x00];
/// The largest frame that a card of QEMU sends, and its tag.
const FRAME_MAX: usize = 64 << 10;

#[derive(Debug)]
pub struct Trunk {
    /// Where the node's card connects to, and where the network behind does.
    pub near: u16,
    pub far: u16,
}

impl Trunk {
    /// Ends with the machine's sockets.
    pub fn lay(vlan: u16) -> Result<Self> {
        let listen = || TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("listen for QEMU");
        let (near, far) = (listen()?, listen()?);
        let port = |listener: &TcpListener| Ok::<u16, anyhow::Error>(listener.local_addr()?.port());
        let trunk = Self {
            near: port(&near)?,
            far: port(&far)?,
        };
        thread::spawn(move || -> Result<()> {
            let ((near, _), (far, _)) = (near.accept()?, far.accept()?);
            let (near_in, far_in) = (near.try_clone()?, far.try_clone()?);
            thread::spawn(move || relay(far_in, near, |frame| Some(tagged(frame, vlan))));
            relay(near_in, far, |frame| untagged(frame, vlan))
        });
        Ok(trunk)
    }
}

/// Until one side closes.
fn relay(
    mut from: TcpStream,
    mut to: TcpStream,
    change: impl Fn(&[u8]) -> Option<Vec<u8>>,
) -> Result<()> {
    loop {
        let mut length = [0; 4];
        from.read_exact(&mut length)?;
        let length = u32::from_be_bytes(length) as usize;
        ensure!(length <= FRAME_MAX, "a frame of {length} bytes");
        let mut frame = vec![0; length];
        from.read_exact(&mut frame)?;
        if let Some(frame) = change(&frame) {
            let length = u32::try_from(frame.len())?.to_be_bytes();
            to.write_all(&[&length, frame.as_slice()].concat())?;
        }
    }
}

fn tagged(frame: &[u8], vlan: u16) -> Vec<u8> {
    let (addresses, rest) = frame.split_at(ADDRESSES.min(frame.len()));
    [addresses, &TAG, &vlan.to_be_bytes(), rest].concat()
}

/// `None`: not of this VLAN.
fn untagged(frame: &[u8], vlan: u16) -> Option<Vec<u8>> {
    let (addresses, rest) = frame.split_at_checked(ADDRESSES)?;
    let rest = rest.strip_prefix(&TAG)?;
    let (tag, rest) = rest.split_first_chunk::<2>()?;
    // The upper four bits are its priority.
    let is_of = u16::from_be_bytes(*tag) & 0xfff == vlan;
    is_of.then(|| [addresses, rest].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_is_put_on_and_taken_off_and_other_frames_are_refused() {
        let frame: Vec<u8> = (0..60).collect();
        let on = tagged(&frame, 7);
        assert_eq!(&on[12..16], [0x81, 0, 0, 7]);
        assert_eq!(untagged(&on, 7), Some(frame.clone()));
        assert_eq!(untagged(&on, 8), None);
        assert_eq!(untagged(&frame, 7), None);
        assert_eq!(untagged(&frame[..5], 7), None);
    }
}
