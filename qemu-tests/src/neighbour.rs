//! A program in a machine beside others: it answers what it is asked.
//!
//! Owns: the program `neighbour` in an image of busybox, and what it does there. Refuses: being in a shipped image.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use image::paths::Paths;

use crate::{archive, userland};

mod attack;
mod web;

const PROGRAM_NAME: &str = "neighbour";
/// Between two words on a connection that is kept.
const BEAT: Duration = Duration::from_secs(1);
/// Longest packet that is sent back.
const PACKET_MAX: usize = 2048;

/// Packs a busybox userland with this program into `<directory>/neighbour`; gives the .flist file.
pub fn image(sifr: &Path, directory: &Path) -> Result<PathBuf> {
    let paths = Paths::find()?;
    let root = directory.join("neighbour-tree");
    userland::tree(&root, 0)?;
    let program = root.join("bin").join(PROGRAM_NAME);
    fs::write(&program, archive::program(&paths, PROGRAM_NAME)?).context("write a program")?;
    let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(&program, executable).context("let it be run")?;
    userland::pack(sifr, &root, &directory.join("neighbour"))
}

/// The program. Its first argument says what it does.
pub fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match &words[..] {
        ["udp", port] => echo(port.parse().context("a port")?),
        ["web", name, port] => web::serve(name, port.parse().context("a port")?),
        ["tcp", port] => answer(port.parse().context("a port")?),
        ["hold", address, port] => hold(address.parse().context("an address")?, port.parse()?),
        ["attack", link] => attack::all(link),
        ["flood", address] => attack::flood(address.parse().context("an address")?),
        other => bail!("{other:?} is nothing that a neighbour does"),
    }
}

/// Sends back what comes on one connection, then on the next.
fn answer(port: u16) -> Result<()> {
    let listener = TcpListener::bind(("0.0.0.0", port)).context("listen")?;
    for stream in listener.incoming() {
        let mut stream = stream.context("take a connection")?;
        let mut to = stream.try_clone().context("copy a connection")?;
        // One that breaks is followed by the next.
        let _ = std::io::copy(&mut stream, &mut to);
    }
    Ok(())
}

/// Keeps one connection, says a word on it every second and waits for it to come back. Says when it is over.
fn hold(address: Ipv4Addr, port: u16) -> Result<()> {
    let mut stream = loop {
        match TcpStream::connect((address, port)) {
            Ok(stream) => break stream,
            Err(_) => std::thread::sleep(BEAT),
        }
    };
    for beat in 0u64.. {
        let mut back = [0; 8];
        let word = beat.to_be_bytes();
        let done = stream
            .write_all(&word)
            .and_then(|()| stream.read_exact(&mut back));
        match done {
            Ok(()) if back == word => println!("beat {beat}"),
            other => bail!("broken at {beat}: {other:?}"),
        }
        std::thread::sleep(BEAT);
    }
    Ok(())
}

/// Sends back every packet to the port, with whom it came from in front.
fn echo(port: u16) -> Result<()> {
    let socket = UdpSocket::bind(("0.0.0.0", port)).context("listen")?;
    let mut packet = [0; PACKET_MAX];
    loop {
        let (length, from) = socket.recv_from(&mut packet)?;
        let mut answer = b"heard ".to_vec();
        answer.extend(&packet[..length]);
        socket.send_to(&answer, from)?;
    }
}
