//! A time server on loopback, which has this machine's time.
//!
//! Owns: the answers (RFC 5905), until the test ends. Refuses: any other question.

use std::net::UdpSocket;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Result;

const PACKET_BYTES: usize = 48;
/// Seconds between the beginning of NTP's time, 1900, and of Unix's.
const NTP_TO_UNIX: u64 = 2_208_988_800;
/// Version 4, a server, no leap second.
const FIRST: u8 = 4 << 3 | 4;
/// As one that hears a clock.
const STRATUM: u8 = 2;

/// Its address, as a node names it, which reaches loopback as 10.0.2.2.
pub fn serve() -> Result<String> {
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    let port = socket.local_addr()?.port();
    std::thread::spawn(move || {
        let mut packet = [0; PACKET_BYTES];
        while let Ok((length, from)) = socket.recv_from(&mut packet) {
            if length == PACKET_BYTES {
                // Whoever is gone hears nothing.
                let _ = socket.send_to(&answer(&packet), from);
            }
        }
    });
    Ok(format!("10.0.2.2:{port}"))
}

fn answer(question: &[u8; PACKET_BYTES]) -> [u8; PACKET_BYTES] {
    let mut packet = [0; PACKET_BYTES];
    (packet[0], packet[1]) = (FIRST, STRATUM);
    // It is answered under the time that it says.
    packet[24..32].copy_from_slice(&question[40..]);
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    let seconds = (now.as_secs() + NTP_TO_UNIX) << 32;
    let fraction = (u64::from(now.subsec_nanos()) << 32) / 1_000_000_000;
    let stamp = (seconds | fraction).to_be_bytes();
    for at in [16, 32, 40] {
        packet[at..at + 8].copy_from_slice(&stamp);
    }
    packet
}
