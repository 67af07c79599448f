//! A program in a machine beside others: it answers what it is asked.
//!
//! Owns: the program `neighbour` in an image of busybox, and what it does there. Refuses: being in a shipped image.

use std::fs;
use std::net::UdpSocket;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use image::paths::Paths;

use crate::{archive, userland};

const PROGRAM_NAME: &str = "neighbour";
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
        other => bail!("{other:?} is nothing that a neighbour does"),
    }
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
