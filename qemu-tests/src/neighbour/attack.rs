//! What a machine sends that is not its own to send.
//!
//! Owns: frames under other names, byte by byte, and more connections than anybody needs.
//! Refuses: to see what comes of it: the node counts.

use std::fs::{self, File};
use std::io::Write;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};

use anyhow::{Context, Result};

/// How often each frame is sent: none is waited for, and one of these gets through a full queue.
const TIMES: usize = 5;
/// Ports that are spoken to at once, one connection each: more than a machine may have.
const PORTS: std::ops::Range<u16> = 20_000..30_000;
/// Frames to all at once: more than are let through in the seconds that they take.
const GROUPS: usize = 20_000;
const EVERYBODY: [u8; 6] = [0xff; 6];
const STRANGER: [u8; 6] = [2, 0, 0, 0, 0, 0x99];

/// Every frame that a guest may not send, by the name of its link; says when all are sent.
pub(super) fn all(link: &str) -> Result<()> {
    let read = |what: &str| fs::read_to_string(format!("/sys/class/net/{link}/{what}"));
    let index = read("ifindex").context("find the link")?.trim().parse()?;
    let mac = mac(read("address")?.trim()).context("read the link's MAC")?;
    let socket = sys::packet::open_frames(index).context("open a packet socket")?;
    let mut socket = File::from(socket);
    // Made of its address, as the node makes it.
    let [_, _, a, b, c, d] = mac;
    let own = Ipv4Addr::new(a, b, c, d);
    let other = Ipv4Addr::new(a, b, c, d ^ 1);
    let frames = [
        frame(EVERYBODY, STRANGER, 0x0800, &udp(own, 1000)),
        frame(EVERYBODY, mac, 0x0806, &arp(mac, other)),
        frame(EVERYBODY, mac, 0x0806, &arp(STRANGER, own)),
        frame(EVERYBODY, mac, 0x0800, &udp(other, 1000)),
        frame(EVERYBODY, mac, 0x0800, &udp(own, 67)),
        frame([0x33, 0x33, 0, 0, 0, 1], mac, 0x86dd, &icmp6(134)),
        frame([0x33, 0x33, 0, 0, 0, 1], mac, 0x86dd, &icmp6(137)),
        frame([0x33, 0x33, 0, 0, 0, 1], mac, 0x86dd, &icmp6(136)),
        frame([0x33, 0x33, 0, 0, 0, 1], mac, 0x86dd, &icmp6(128)),
        frame(EVERYBODY, mac, 0x8100, &[0; 50]),
    ];
    for _ in 0..TIMES {
        for frame in &frames {
            socket.write_all(frame).context("send a frame")?;
        }
    }
    // An honest question, far too often.
    for _ in 0..GROUPS {
        let frame = frame(EVERYBODY, mac, 0x0806, &arp(mac, own));
        socket.write_all(&frame).context("send a frame")?;
    }
    println!("attacked");
    Ok(())
}

/// One packet to each of many ports, so that each is a connection to who tracks them.
pub(super) fn flood(address: Ipv4Addr) -> Result<()> {
    let socket = UdpSocket::bind("0.0.0.0:0").context("open a socket")?;
    for port in PORTS {
        // One that is refused, or has no room in a queue, is as good.
        let _ = socket.send_to(b"x", SocketAddrV4::new(address, port));
    }
    println!("flooded");
    Ok(())
}

fn mac(text: &str) -> Option<[u8; 6]> {
    let bytes: Option<Vec<u8>> = text
        .split(':')
        .map(|byte| u8::from_str_radix(byte, 16).ok())
        .collect();
    bytes?.try_into().ok()
}

fn frame(to: [u8; 6], from: [u8; 6], kind: u16, content: &[u8]) -> Vec<u8> {
    let mut bytes = [&to[..], &from, &kind.to_be_bytes(), content].concat();
    bytes.resize(bytes.len().max(60), 0);
    bytes
}

/// A request, with its sender.
fn arp(mac: [u8; 6], address: Ipv4Addr) -> Vec<u8> {
    let head = [0, 1, 8, 0, 6, 4, 0, 1];
    [
        &head[..],
        &mac,
        &address.octets(),
        &[0; 6],
        &address.octets(),
    ]
    .concat()
}

/// A packet to everybody.
fn udp(from: Ipv4Addr, port: u16) -> Vec<u8> {
    let mut header = vec![0x45, 0, 0, 36, 0, 0, 0, 0, 64, 17, 0, 0];
    header.extend(from.octets());
    header.extend([255; 4]);
    let sum: u32 = header
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1]))
        .sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    let sum = !u16::try_from((folded & 0xffff) + (folded >> 16)).expect("folded twice");
    header[10..12].copy_from_slice(&sum.to_be_bytes());
    let ports = [port.to_be_bytes(), 68u16.to_be_bytes()].concat();
    [&header[..], &ports, &[0, 16, 0, 0], &[0; 8]].concat()
}

/// From a link-local address to all nodes. Nobody gets as far as its sum.
fn icmp6(kind: u8) -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0, 0, 16, 58, 255];
    let mut from = [0; 16];
    (from[0], from[1], from[15]) = (0xfe, 0x80, 9);
    let mut to = [0; 16];
    (to[0], to[1], to[15]) = (0xff, 2, 1);
    packet.extend(from);
    packet.extend(to);
    packet.extend([kind, 0, 0, 0]);
    packet.extend([0; 12]);
    packet
}
