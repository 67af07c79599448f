//! The smallest HTTP client that a published port needs.
//!
//! Owns: one GET over one connection. Refuses: everything that a browser does more.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::PATIENCE;

/// Longest answer that a test looks at.
const ANSWER_MAX: u64 = 64 << 20;

/// Pause between tries: a program runs a moment before it listens, and nothing tells from outside.
const PAUSE: Duration = Duration::from_millis(200);

/// The answer to `GET path`, once there is one.
pub fn page(port: u16, path: &str) -> Result<String> {
    let end = Instant::now() + PATIENCE;
    loop {
        match get(port, path) {
            Err(_) if Instant::now() < end => std::thread::sleep(PAUSE),
            result => return result,
        }
    }
}

/// The status line, headers and body of `GET path`, as text; bytes that are no UTF-8 are replaced.
pub fn get(port: u16, path: &str) -> Result<String> {
    get_within(port, path, Duration::from_secs(30))
}

/// The same, where silence of so long is an error.
pub fn get_within(port: u16, path: &str, silence: Duration) -> Result<String> {
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let mut stream =
        TcpStream::connect_timeout(&address, Duration::from_secs(10)).context("connect")?;
    stream.set_read_timeout(Some(silence))?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: node\r\n\r\n")?;
    let mut bytes = Vec::new();
    stream
        .take(ANSWER_MAX)
        .read_to_end(&mut bytes)
        .context("read the answer")?;
    ensure!(
        !bytes.is_empty(),
        "the connection was closed without an answer"
    );
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
