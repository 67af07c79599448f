//! Cards: a stream each way and a byte to and fro, over TCP between the guest and the node at its TAP.
//!
//! Owns: what is spoken on the connection: a word of nine bytes, then what it asks for.
//! Refuses: several queues. One pair and one stream tell what a packet costs.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::time::Instant;

use anyhow::{Context, Result, bail};

use super::monitor::{Monitor, Mover, Peer, Running, Wanted};
use super::{Figures, ROUNDS, figure, rate};
use crate::bench::report::{Role, Sample};
use crate::nested::guest::mount;
use crate::nested::link;
use crate::nested::toolkit::{Node, PATIENCE};

const NODE: Ipv4Addr = Ipv4Addr::new(10, 9, 9, 1);
const GUEST: Ipv4Addr = Ipv4Addr::new(10, 9, 9, 2);
pub(super) const PORT: u16 = 7000;
const MIB: u64 = 1 << 20;
/// One stream; long against the first round trips, in which TCP finds its pace.
const STREAM_MIB: u64 = 32;
/// Round trips of one run.
const TRIPS: u64 = 512;
const PIECE: usize = 64 << 10;

/// What the guest asks the node for, and how often or how much.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ask {
    /// The guest sends so many bytes; the node answers with one.
    Up,
    /// The node sends so many bytes.
    Down,
    /// So many bytes, each sent back before the next comes.
    Echo,
}

impl Ask {
    pub(super) const ALL: [Self; 3] = [Self::Up, Self::Down, Self::Echo];

    const fn name(self) -> &'static str {
        match self {
            Self::Up => "TCP from the guest",
            Self::Down => "TCP to the guest",
            Self::Echo => "TCP round trips of a byte",
        }
    }

    const fn letter(self) -> u8 {
        match self {
            Self::Up => b'u',
            Self::Down => b'd',
            Self::Echo => b'e',
        }
    }

    fn word(self, count: u64) -> [u8; 9] {
        let mut word = [self.letter(); 9];
        word[1..].copy_from_slice(&count.to_le_bytes());
        word
    }

    fn parse(word: [u8; 9]) -> Option<(Self, u64)> {
        let ask = Self::ALL.into_iter().find(|a| a.letter() == word[0])?;
        let count = u64::from_le_bytes(word[1..].try_into().expect("eight bytes"));
        Some((ask, count))
    }
}

fn send(to: &mut TcpStream, bytes: u64) -> Result<()> {
    let piece = vec![0x5a; PIECE];
    for _ in 0..bytes / PIECE as u64 {
        to.write_all(&piece).context("send")?;
    }
    Ok(())
}

fn receive(from: &mut TcpStream, bytes: u64) -> Result<()> {
    let mut piece = vec![0; PIECE];
    let mut left = bytes;
    while left > 0 {
        let most = usize::try_from(left).unwrap_or(PIECE).min(PIECE);
        match from.read(&mut piece[..most]).context("receive")? {
            0 => bail!("the stream ends {left} bytes too soon"),
            count => left -= count as u64,
        }
    }
    Ok(())
}

pub(super) fn guest() -> Result<()> {
    mount("sysfs", "/sys")?;
    link::set_up("eth0", GUEST)?;
    ask_all(TcpStream::connect((NODE, PORT)).context("reach the node")?)
}

/// All kinds of work, with who answers them.
pub(super) fn ask_all(mut node: TcpStream) -> Result<()> {
    node.set_nodelay(true)?;
    for ask in Ask::ALL {
        // The first run warms up.
        for run in 0..=1 {
            let started = Instant::now();
            match ask {
                Ask::Up => {
                    node.write_all(&ask.word(STREAM_MIB * MIB))?;
                    send(&mut node, STREAM_MIB * MIB)?;
                    receive(&mut node, 1)?;
                }
                Ask::Down => {
                    node.write_all(&ask.word(STREAM_MIB * MIB))?;
                    receive(&mut node, STREAM_MIB * MIB)?;
                }
                Ask::Echo => {
                    node.write_all(&ask.word(TRIPS))?;
                    for _ in 0..TRIPS {
                        node.write_all(&[1])?;
                        receive(&mut node, 1)?;
                    }
                }
            }
            let count = match ask {
                Ask::Up | Ask::Down => STREAM_MIB,
                Ask::Echo => TRIPS,
            };
            if run > 0 {
                figure(ask.name(), rate(count, started.elapsed()));
            }
        }
    }
    Ok(())
}

/// The other end, until the guest closes it.
pub(super) fn answer(listener: TcpListener) -> Result<()> {
    let (mut guest, _) = listener.accept().context("accept")?;
    // The next card's is at the same address.
    drop(listener);
    guest.set_nodelay(true)?;
    guest.set_read_timeout(Some(PATIENCE))?;
    guest.set_write_timeout(Some(PATIENCE))?;
    loop {
        let mut word = [0; 9];
        // A guest that ends closes nothing: its machine is gone, and the process of it.
        if guest.read_exact(&mut word).is_err() {
            return Ok(());
        }
        match Ask::parse(word).context("understand the guest")? {
            (Ask::Up, bytes) => {
                receive(&mut guest, bytes)?;
                guest.write_all(&[1])?;
            }
            (Ask::Down, bytes) => send(&mut guest, bytes)?,
            (Ask::Echo, times) => {
                for _ in 0..times {
                    receive(&mut guest, 1)?;
                    guest.write_all(&[1])?;
                }
            }
        }
    }
}

fn tap(name: &str) -> Result<(OwnedFd, TcpListener)> {
    let tap = sys::tap::open(name).with_context(|| format!("make the TAP {name}"))?;
    link::set_up(name, NODE)?;
    let listener = TcpListener::bind((NODE, PORT)).context("listen")?;
    Ok((tap, listener))
}

pub(super) fn measure(node: &Node) -> Result<Vec<Sample>> {
    let (mut figures, mut samples, mut able) = (Figures::default(), Vec::new(), Vec::new());
    for monitor in Monitor::all() {
        let why = match monitor {
            Monitor::Ours | Monitor::Qemu => {
                able.push(monitor);
                continue;
            }
            Monitor::Peer(Peer::Firecracker) => "it opens TAPs by name only",
            Monitor::Peer(Peer::CloudHypervisor) => {
                "its cards are on PCI, which the guest's kernel has not"
            }
        };
        let cannot = |ask: Ask| Sample::cannot(ask.name(), monitor.name(), why);
        samples.extend(Ask::ALL.map(cannot));
    }
    for round in 0..ROUNDS {
        for (number, monitor) in able.iter().enumerate() {
            for (mover, word) in [(Mover::Monitor, ""), (Mover::Kernel, ", vhost-net")] {
                let who = format!("{}{word}", monitor.name());
                let seen = one(
                    node,
                    *monitor,
                    mover,
                    &format!("tap{round}{number}{}", word.len()),
                );
                figures.add(&who, seen.with_context(|| format!("in {who}"))?);
            }
        }
    }
    samples.splice(0..0, figures.samples());
    Ok(samples)
}

/// What the guest of one machine has measured on this TAP.
fn one(node: &Node, monitor: Monitor, mover: Mover, name: &str) -> Result<Vec<(String, f64)>> {
    let (tap, listener) = tap(name)?;
    let mut wanted = Wanted::new(Role::UseNet);
    wanted.card = Some((tap, mover));
    // It ends with the connection; what goes wrong there, the guest says.
    std::thread::spawn(move || answer(listener));
    let mut machine = Running::start(monitor, node, wanted)?;
    let seen = machine.figures()?;
    machine.finish()?;
    Ok(seen)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_says_what_and_how_much() {
        for ask in Ask::ALL {
            assert_eq!(Ask::parse(ask.word(77)), Some((ask, 77)));
        }
        assert_eq!(Ask::parse([b'x'; 9]), None);
    }

    #[test]
    fn both_ends_understand_each_other() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        let address = listener.local_addr().expect("bound");
        let node = std::thread::spawn(move || answer(listener));
        let mut guest = TcpStream::connect(address).expect("it listens");
        let bytes = 3 * PIECE as u64;
        guest.write_all(&Ask::Up.word(bytes)).expect("written");
        send(&mut guest, bytes).expect("sent");
        receive(&mut guest, 1).expect("an answer");
        guest.write_all(&Ask::Down.word(bytes)).expect("written");
        receive(&mut guest, bytes).expect("all of it");
        guest.write_all(&Ask::Echo.word(1)).expect("written");
        guest.write_all(&[1]).expect("written");
        receive(&mut guest, 1).expect("it comes back");
        drop(guest);
        node.join().expect("no panic").expect("the end is an end");
    }
}
