//! Frames of a link, written down as pcapng.
//!
//! Owns: the blocks of that format, and opening a link inside a namespace.
//! Refuses: reading frames, choosing among them, and knowing whose link it is.
//!
//! Source: draft-ietf-opsawg-pcapng. Numbers stand in little-endian order; tcpdump and Wireshark read either.

use std::io;
use std::time::Duration;

use sys::capture::{Capture, Frame};

use crate::{Error, namespace};

/// Inside the namespace `network`. `room` is the kernel's memory for frames that are not read yet, in bytes.
/// Blocking.
pub fn open(network: &str, link: &str, room: usize) -> Result<Capture, Error> {
    let opening = || format!("capture {link} of {network}");
    let namespace = namespace::open(network)?;
    let namespace =
        namespace.ok_or_else(|| Error::io(opening())(io::ErrorKind::NotFound.into()))?;
    namespace::within(&namespace, || {
        let index = nix::net::if_::if_nametoindex(link).map_err(Error::errno(opening()))?;
        Capture::open(index, room).map_err(Error::io(opening()))
    })
}

const SECTION: u32 = 0x0a0d_0d0a;
const INTERFACE: u32 = 1;
const STATISTICS: u32 = 5;
const PACKET: u32 = 6;
const BYTE_ORDER: u32 = 0x1a2b_3c4d;
/// Of the section: as long as it lasts.
const UNKNOWN_LENGTH: u64 = u64::MAX;
const ETHERNET: u16 = 1;
const END: u16 = 0;
const PROGRAM: u16 = 4;
const NAME: u16 = 2;
const RESOLUTION: u16 = 9;
/// Nanoseconds, as a power of ten.
const NANOSECONDS: [u8; 1] = [9];
const FLAGS: u16 = 2;
const INBOUND: u32 = 1;
const OUTBOUND: u32 = 2;
const LOST: u16 = 5;

/// A file with one interface, as the machine sees it: what it sends is outbound.
#[derive(Debug)]
pub struct File {
    snap: u32,
}

impl File {
    /// The file and its first blocks. `name` is the interface's, `snap` the longest part of a frame that is kept.
    pub fn new(name: &str, snap: u32) -> (Self, Vec<u8>) {
        let mut bytes = Vec::new();
        block(&mut bytes, SECTION, |bytes| {
            bytes.extend(BYTE_ORDER.to_le_bytes());
            bytes.extend([1, 0, 0, 0]);
            bytes.extend(UNKNOWN_LENGTH.to_le_bytes());
            option(bytes, PROGRAM, b"sifr");
            option(bytes, END, &[]);
        });
        block(&mut bytes, INTERFACE, |bytes| {
            bytes.extend(ETHERNET.to_le_bytes());
            bytes.extend([0, 0]);
            bytes.extend(snap.to_le_bytes());
            option(bytes, NAME, name.as_bytes());
            option(bytes, RESOLUTION, &NANOSECONDS);
            option(bytes, END, &[]);
        });
        (Self { snap }, bytes)
    }

    /// How long a buffer for [`Capture::next`] is to be.
    pub fn buffer(&self) -> Vec<u8> {
        vec![0; self.snap as usize]
    }

    /// Appends a frame, of which `captured` has what was kept.
    pub fn frame(&self, bytes: &mut Vec<u8>, frame: &Frame, captured: &[u8]) {
        block(bytes, PACKET, |bytes| {
            bytes.extend([0; 4]);
            time(bytes, frame.at);
            bytes.extend(length(captured.len()));
            bytes.extend(length(frame.length));
            bytes.extend(captured);
            pad(bytes, captured.len());
            // What the node sends through a TAP its machine hears.
            let direction = if frame.outgoing { INBOUND } else { OUTBOUND };
            option(bytes, FLAGS, &direction.to_le_bytes());
            option(bytes, END, &[]);
        });
    }

    /// Appends how many frames were left out since the file began.
    pub fn lost(&self, bytes: &mut Vec<u8>, at: Duration, frames: u64) {
        block(bytes, STATISTICS, |bytes| {
            bytes.extend([0; 4]);
            time(bytes, at);
            option(bytes, LOST, &frames.to_le_bytes());
            option(bytes, END, &[]);
        });
    }
}

/// Its length stands before and behind it.
fn block(bytes: &mut Vec<u8>, kind: u32, content: impl FnOnce(&mut Vec<u8>)) {
    let start = bytes.len();
    bytes.extend(kind.to_le_bytes());
    bytes.extend([0; 4]);
    content(bytes);
    let total = length(bytes.len() - start + 4);
    bytes[start + 4..start + 8].copy_from_slice(&total);
    bytes.extend(total);
}

fn option(bytes: &mut Vec<u8>, code: u16, value: &[u8]) {
    let length = u16::try_from(value.len()).expect("options of ours are short");
    bytes.extend(code.to_le_bytes());
    bytes.extend(length.to_le_bytes());
    bytes.extend(value);
    pad(bytes, value.len());
}

fn pad(bytes: &mut Vec<u8>, length: usize) {
    bytes.extend(std::iter::repeat_n(0, length.next_multiple_of(4) - length));
}

/// The upper half first.
fn time(bytes: &mut Vec<u8>, at: Duration) {
    let nanoseconds = u64::try_from(at.as_nanos()).unwrap_or(u64::MAX);
    let [a, b, c, d, e, f, g, h] = nanoseconds.to_le_bytes();
    bytes.extend([e, f, g, h, a, b, c, d]);
}

fn length(bytes: usize) -> [u8; 4] {
    u32::try_from(bytes).unwrap_or(u32::MAX).to_le_bytes()
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    /// An ARP request of 42 bytes.
    const ASKED: &str =
        "ffffffffffff02000a800302080600010800060400010200 0a800302 0a800302 000000000000 0a800301";

    fn asked() -> Vec<u8> {
        let digits: String = ASKED.split_whitespace().collect();
        let byte = |at: usize| u8::from_str_radix(&digits[at..at + 2], 16).expect("hex");
        (0..digits.len()).step_by(2).map(byte).collect()
    }

    fn frame(at_ns: u64, captured: usize, length: usize, outgoing: bool) -> Frame {
        let at = Duration::from_nanos(at_ns);
        Frame {
            captured,
            length,
            at,
            outgoing,
        }
    }

    fn tcpdump(file: &[u8], more: &[&str]) -> String {
        let mut command = Command::new("tcpdump");
        let command = command.args(["-r", "-", "-nn", "-tt", "--nano"]).args(more);
        let pipes = command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = pipes
            .stderr(Stdio::piped())
            .spawn()
            .expect("tcpdump: run 'make setup'");
        let mut input = child.stdin.take().expect("a pipe");
        io::Write::write_all(&mut input, file).expect("written");
        drop(input);
        let output = child.wait_with_output().expect("an end");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{said}");
        String::from_utf8(output.stdout).expect("text")
    }

    #[test]
    fn tcpdump_reads_a_file_with_times_and_lengths() {
        let (file, mut bytes) = File::new("web", 1 << 17);
        let whole = asked();
        file.frame(
            &mut bytes,
            &frame(1_700_000_000_000_000_007, 42, 42, false),
            &whole,
        );
        file.frame(
            &mut bytes,
            &frame(1_700_000_001_000_000_000, 41, 1514, true),
            &whole[..41],
        );
        file.lost(&mut bytes, Duration::from_secs(1_700_000_002), 3);
        let lines = tcpdump(&bytes, &["-e"]);
        let lines: Vec<_> = lines.lines().collect();
        assert_eq!(lines.len(), 2, "{lines:?}");
        assert!(
            lines[0].starts_with("1700000000.000000007 02:00:0a:80:03:02 > ff:ff:ff:ff:ff:ff"),
            "{}",
            lines[0]
        );
        assert!(
            lines[0].contains("who-has 10.128.3.1 tell 10.128.3.2"),
            "{}",
            lines[0]
        );
        assert!(lines[1].contains("length 1514"), "{}", lines[1]);
    }

    #[test]
    fn each_block_can_be_passed_over_from_both_sides() {
        let (file, mut bytes) = File::new("", 64);
        for length in 0..=9 {
            file.frame(&mut bytes, &frame(1, length, 99, false), &[7; 9][..length]);
        }
        file.lost(&mut bytes, Duration::ZERO, 1);
        let number = |at: usize| {
            let four = bytes[at..at + 4].try_into().expect("four bytes");
            usize::try_from(u32::from_le_bytes(four)).expect("small")
        };
        let (mut at, mut blocks) = (0, 0);
        while at < bytes.len() {
            let length = number(at + 4);
            assert_eq!(number(at + length - 4), length);
            assert!(length.is_multiple_of(4) && length >= 12);
            (at, blocks) = (at + length, blocks + 1);
        }
        assert_eq!((at, blocks), (bytes.len(), 13));
    }
}
