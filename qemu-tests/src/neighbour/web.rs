//! A web server that says who it is and what it was asked.
//!
//! Owns: one thread for each connection, answers that end and one that does not, the change to another protocol.
//! Refuses: being a good web server.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result};

/// Between two lines of the answer that does not end.
const BEAT: Duration = Duration::from_millis(500);

pub(super) fn serve(name: &str, port: u16) -> Result<()> {
    let listener = TcpListener::bind(("0.0.0.0", port)).context("listen")?;
    println!("{name} serves");
    for stream in listener.incoming() {
        let (stream, name) = (stream.context("take a connection")?, name.to_owned());
        // A client that goes is its own affair.
        std::thread::spawn(move || answer(&name, stream));
    }
    Ok(())
}

/// Any number of requests without a body.
fn answer(name: &str, mut stream: TcpStream) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    loop {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if reader.read_line(&mut head)? == 0 {
                return Ok(());
            }
        }
        let lower = head.to_ascii_lowercase();
        if lower.contains("\r\nupgrade: ") {
            let to =
                "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n";
            stream.write_all(to.as_bytes())?;
            std::io::copy(&mut reader, &mut stream)?;
            return Ok(());
        }
        if head.starts_with("GET /endless ") {
            stream.write_all(b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n")?;
            for beat in 0u64.. {
                stream.write_all(format!("{name} {beat}\n").as_bytes())?;
                std::thread::sleep(BEAT);
            }
        }
        let body = format!("this is {name}\n{lower}");
        let answer = format!(
            "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(answer.as_bytes())?;
    }
}
