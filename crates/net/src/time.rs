//! Time from the network: one SNTP exchange (RFC 4330, RFC 5905).
//!
//! Owns: asking and checking the answer. Refuses: setting the clock, and trusting its own before.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tokio::net::UdpSocket;

use crate::Error;

/// The UDP port of NTP.
pub const PORT: u16 = 123;

/// A packet without extensions.
const PACKET_BYTES: usize = 48;
/// Seconds from 1900, where NTP's era 0 begins, to 1970.
const NTP_TO_UNIX: i64 = 2_208_988_800;
/// NTP's 32 bits of seconds are read as a time within 2^32 seconds from here, 1 January 2024: before
/// that this program did not exist.
const PIVOT_UNIX: i64 = 1_704_067_200;
/// Strata of servers that know the time (RFC 5905 figure 11).
const STRATA: std::ops::RangeInclusive<u8> = 1..=15;
/// Packets that are no answer before the exchange is given up: a flood must not keep it going.
const STRAY_MAX: usize = 32;

/// What a server said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sample {
    /// Microseconds to add to the local realtime clock.
    pub offset_us: i64,
    pub stratum: u8,
    pub round_trip: Duration,
}

/// Asks once. The local clock may be wrong by years.
pub async fn query(server: SocketAddr, timeout: Duration) -> Result<Sample, Error> {
    let exchange = tokio::time::timeout(timeout, exchange(server));
    exchange.await.unwrap_or(Err(Error::Time {
        server,
        reason: "it did not answer in time",
    }))
}

async fn exchange(server: SocketAddr) -> Result<Sample, Error> {
    let operation = || format!("ask {server} for the time");
    let any: SocketAddr = match server {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (std::net::Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = UdpSocket::bind(any).await.map_err(Error::io(operation()))?;
    // Connected: the kernel passes only what comes from that address and port.
    socket
        .connect(server)
        .await
        .map_err(Error::io(operation()))?;
    // RFC 4330 has the client's time here. A number that nobody can guess does the same for the check,
    // keeps a wrong clock to itself, and the clock is not needed: the round trip is measured.
    let nonce = getrandom::u64().map_err(|error| Error::io(operation())(error.into()))?;
    let before = SystemTime::now();
    let sent = Instant::now();
    socket
        .send(&request(nonce))
        .await
        .map_err(Error::io(operation()))?;
    let mut buffer = [0; PACKET_BYTES + 1];
    let mut reason = "its packets were no answers";
    for _ in 0..STRAY_MAX {
        let length = socket
            .recv(&mut buffer)
            .await
            .map_err(Error::io(operation()))?;
        let round_trip = sent.elapsed();
        match parse(&buffer[..length], nonce) {
            Ok(answer) => return Ok(sample(&answer, micros(before), round_trip)),
            // Wrong origin: not an answer to us, so the true one may still come.
            Err(Flaw::Stray) => {}
            Err(Flaw::Unusable(why)) => {
                reason = why;
                break;
            }
        }
    }
    Err(Error::Time { server, reason })
}

fn request(nonce: u64) -> [u8; PACKET_BYTES] {
    let mut packet = [0; PACKET_BYTES];
    packet[0] = 4 << 3 | 3; // Version 4, client.
    packet[40..].copy_from_slice(&nonce.to_be_bytes());
    packet
}

/// A server's answer. Times are microseconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Answer {
    stratum: u8,
    received: i64,
    sent: i64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flaw {
    /// Not an answer to this request.
    Stray,
    /// An answer that says that it is of no use, or contradicts itself.
    Unusable(&'static str),
}

fn parse(packet: &[u8], nonce: u64) -> Result<Answer, Flaw> {
    let packet: &[u8; PACKET_BYTES] = packet.try_into().map_err(|_| Flaw::Stray)?;
    let stamp = |at: usize| {
        u64::from_be_bytes(
            packet[at..at + 8]
                .try_into()
                .expect("eight bytes of a packet"),
        )
    };
    let (leap, version, mode) = (packet[0] >> 6, packet[0] >> 3 & 7, packet[0] & 7);
    let stratum = packet[1];
    if stamp(24) != nonce || mode != 4 || !(3..=4).contains(&version) {
        return Err(Flaw::Stray);
    }
    if stratum == 0 {
        return Err(Flaw::Unusable("it asks to be left alone (kiss of death)"));
    }
    if leap == 3 || !STRATA.contains(&stratum) {
        return Err(Flaw::Unusable("its own clock is not synchronised"));
    }
    let (received, sent) = (stamp(32), stamp(40));
    if received == 0 || sent == 0 {
        return Err(Flaw::Unusable("it sent no time"));
    }
    let (received, sent) = (unix_micros(received), unix_micros(sent));
    if sent < received {
        return Err(Flaw::Unusable("it answered before it was asked"));
    }
    Ok(Answer {
        stratum,
        received,
        sent,
    })
}

/// An NTP timestamp as microseconds since 1970, in the era that lies after the pivot.
fn unix_micros(stamp: u64) -> i64 {
    let bytes = stamp.to_be_bytes();
    let [a, b, c, d, ..] = bytes;
    let seconds = i64::from(u32::from_be_bytes([a, b, c, d])) - NTP_TO_UNIX;
    let since_pivot = (seconds - PIVOT_UNIX).rem_euclid(1 << 32);
    let [.., e, f, g, h] = bytes;
    let fraction = i64::from(u32::from_be_bytes([e, f, g, h]));
    (PIVOT_UNIX + since_pivot) * 1_000_000 + ((fraction * 1_000_000) >> 32)
}

fn micros(time: SystemTime) -> i64 {
    let clamp = |d: Duration| i64::try_from(d.as_micros()).unwrap_or(i64::MAX);
    match time.duration_since(UNIX_EPOCH) {
        Ok(after) => clamp(after),
        Err(before) => -clamp(before.duration()),
    }
}

/// The server's time at the middle of the round trip, less what its own work took.
fn sample(answer: &Answer, before: i64, round_trip: Duration) -> Sample {
    let trip = i64::try_from(round_trip.as_micros()).unwrap_or(i64::MAX);
    let work = answer.sent.saturating_sub(answer.received).clamp(0, trip);
    let local = before.saturating_add(trip);
    let remote = answer.sent.saturating_add((trip - work) / 2);
    let path = trip.saturating_sub(work).cast_unsigned();
    Sample {
        offset_us: remote.saturating_sub(local),
        stratum: answer.stratum,
        round_trip: Duration::from_micros(path),
    }
}

#[cfg(any(test, feature = "fuzz"))]
pub(crate) mod fuzz {
    use std::time::Duration;

    /// The offset in microseconds that a server's packet gives a clock of 2024. `None`: refused.
    pub fn answer(packet: &[u8], nonce: u64) -> Option<i64> {
        let answer = super::parse(packet, nonce).ok()?;
        let now = super::PIVOT_UNIX * 1_000_000;
        Some(super::sample(&answer, now, Duration::from_millis(20)).offset_us)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, proptest};

    use super::*;
    use crate::scratch::on_a_runtime;

    const NONCE: u64 = 0x1122_3344_5566_7788;

    /// A server's packet: stratum 2, with this time of receipt and of sending.
    fn packet(received: u64, sent: u64) -> [u8; PACKET_BYTES] {
        let mut packet = [0; PACKET_BYTES];
        (packet[0], packet[1]) = (4 << 3 | 4, 2);
        packet[24..32].copy_from_slice(&NONCE.to_be_bytes());
        packet[32..40].copy_from_slice(&received.to_be_bytes());
        packet[40..].copy_from_slice(&sent.to_be_bytes());
        packet
    }

    fn ntp(unix: i64) -> u64 {
        ((unix + NTP_TO_UNIX).cast_unsigned() & 0xffff_ffff) << 32
    }

    #[test]
    fn the_time_is_right_whatever_the_local_clock_says() {
        let now = 1_800_000_000;
        let answer = parse(&packet(ntp(now), ntp(now) + (1 << 31)), NONCE).expect("an answer");
        let trip = Duration::from_millis(700);
        for local in [0, now - 86_400 * 3650, now + 86_400 * 3650] {
            let sample = sample(&answer, local * 1_000_000, trip);
            let remote = local * 1_000_000 + 700_000 + sample.offset_us;
            assert_eq!(remote, now * 1_000_000 + 500_000 + 100_000);
            assert_eq!(
                (sample.stratum, sample.round_trip),
                (2, Duration::from_millis(200))
            );
        }
    }

    #[test]
    fn the_next_era_of_ntp_follows_the_first() {
        let in_2040 = 2_208_988_800 + 1_000;
        assert_eq!(unix_micros(ntp(in_2040)), in_2040 * 1_000_000);
        assert_eq!(unix_micros(ntp(PIVOT_UNIX)), PIVOT_UNIX * 1_000_000);
    }

    #[test]
    fn what_is_no_usable_answer_is_refused() {
        let good = packet(ntp(1_800_000_000), ntp(1_800_000_000));
        assert!(parse(&good, NONCE).is_ok());
        assert_eq!(parse(&good, NONCE + 1), Err(Flaw::Stray));
        assert_eq!(parse(&good[..47], NONCE), Err(Flaw::Stray));
        let with = |at: usize, value: u8| {
            let mut packet = good;
            packet[at] = value;
            parse(&packet, NONCE)
        };
        assert_eq!(with(0, 4 << 3 | 3), Err(Flaw::Stray), "a client");
        assert!(
            matches!(with(0, 3 << 6 | 4 << 3 | 4), Err(Flaw::Unusable(_))),
            "no leap"
        );
        assert!(
            matches!(with(1, 0), Err(Flaw::Unusable(_))),
            "kiss of death"
        );
        assert!(
            matches!(with(1, 16), Err(Flaw::Unusable(_))),
            "unsynchronised"
        );
        assert!(matches!(
            parse(&packet(9, 0), NONCE),
            Err(Flaw::Unusable(_))
        ));
    }

    #[test]
    fn a_server_is_asked_over_the_network() {
        on_a_runtime(async {
            let server = UdpSocket::bind("127.0.0.1:0").await.expect("a socket");
            let address = server.local_addr().expect("an address");
            let answer = async {
                let mut request = [0; PACKET_BYTES];
                let (_, client) = server.recv_from(&mut request).await.expect("a request");
                server.send_to(b"noise", client).await.expect("sent");
                let in_2040 = ntp(2_208_988_800);
                let mut reply = packet(in_2040, in_2040);
                reply[24..32].copy_from_slice(&request[40..]);
                server.send_to(&reply, client).await.expect("sent");
            };
            let (sample, ()) = tokio::join!(query(address, Duration::from_secs(10)), answer);
            let sample = sample.expect("a sample");
            let found = micros(SystemTime::now()) + sample.offset_us;
            assert!(
                (found - 2_208_988_800_000_000).abs() < 10_000_000,
                "{sample:?}"
            );
            let silent = query(address, Duration::from_millis(20)).await;
            assert!(matches!(silent, Err(Error::Time { .. })), "{silent:?}");
        });
    }

    proptest! {
        #[test]
        fn any_packet_is_an_answer_or_none(bytes: Vec<u8>, fixed in any::<[[u8; 16]; 3]>(), before: i64, trip: u32) {
            let _ = parse(&bytes, NONCE);
            let mut packet = fixed.concat();
            packet[24..32].copy_from_slice(&NONCE.to_be_bytes());
            if let Ok(answer) = parse(&packet, NONCE) {
                let _ = sample(&answer, before, Duration::from_micros(trip.into()));
            }
        }
    }
}
