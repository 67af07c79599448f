//! An HTTP proxy, which a node behind it has no other way out than.
//!
//! Owns: CONNECT, requests by their whole URL, a login, and what it was asked. Every name is this machine's loopback to it, so that
//! whoever reaches a name has asked it. It runs where the calling thread is: in the network namespace of a test's own.
//! Refuses: being a good proxy.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use anyhow::{Context, Result};
use base64::prelude::{BASE64_STANDARD, Engine as _};

/// It serves until the test's process ends.
#[derive(Debug)]
pub struct Proxy {
    pub port: u16,
    asked: Arc<Mutex<Asked>>,
}

#[derive(Debug, Default)]
struct Asked {
    /// The first line of each request that it let through.
    lines: Vec<String>,
    refused: usize,
}

impl Proxy {
    /// For who has this login, as `user:password`.
    pub fn start(login: &str) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).context("listen")?;
        let port = listener.local_addr()?.port();
        let header = format!(
            "proxy-authorization: basic {}",
            BASE64_STANDARD.encode(login)
        );
        let asked = Arc::<Mutex<Asked>>::default();
        let ours = Arc::clone(&asked);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (header, asked) = (header.clone(), Arc::clone(&ours));
                // A client that goes is its own affair.
                thread::spawn(move || serve(&stream, &header, &asked));
            }
        });
        Ok(Self { port, asked })
    }

    /// The first line of each request that it let through.
    pub fn asked(&self) -> Vec<String> {
        let asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        asked.lines.clone()
    }

    /// Requests without the login.
    pub fn refused(&self) -> usize {
        let asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        asked.refused
    }
}

fn serve(stream: &TcpStream, header: &str, asked: &Mutex<Asked>) -> Result<()> {
    let mut client = BufReader::new(stream.try_clone()?);
    while let Some(head) = head(&mut client)? {
        let fold = |line: &String| line.eq_ignore_ascii_case(header);
        let is_let = head.iter().any(fold);
        {
            let mut asked = asked.lock().unwrap_or_else(PoisonError::into_inner);
            match is_let {
                true => asked.lines.push(head[0].clone()),
                false => asked.refused += 1,
            }
        }
        let mut to = stream;
        if !is_let {
            let no = "HTTP/1.1 407 No\r\nProxy-Authenticate: Basic realm=\"tests\"\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
            return Ok(to.write_all(no.as_bytes())?);
        }
        let mut words = head[0].split(' ');
        let (method, place) = (words.next().unwrap_or(""), words.next().unwrap_or(""));
        if method == "CONNECT" {
            let server = reach(place)?;
            to.write_all(b"HTTP/1.1 200 Connected\r\n\r\n")?;
            return tunnel(client, stream, &server);
        }
        let rest = place.strip_prefix("http://").context("no whole URL")?;
        let (host, path) = rest.split_once('/').context("a URL without a path")?;
        let mut server = reach(host)?;
        write!(server, "{method} /{path} HTTP/1.1\r\nHost: {host}\r\n\r\n")?;
        answer(server, to)?;
    }
    Ok(())
}

/// Its lines; `None`: the connection has ended.
fn head(from: &mut impl BufRead) -> Result<Option<Vec<String>>> {
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        if from.read_line(&mut line)? == 0 {
            return Ok(None);
        }
        match line.trim_end() {
            "" => return Ok(Some(lines)),
            line => lines.push(line.to_owned()),
        }
    }
}

/// Wherever the name leads elsewhere, to this it is here.
fn reach(host: &str) -> Result<TcpStream> {
    let (_, port) = host.rsplit_once(':').context("a host without a port")?;
    TcpStream::connect((Ipv4Addr::LOCALHOST, port.parse()?)).context("reach the server")
}

/// One answer that says how long it is.
fn answer(server: TcpStream, mut to: &TcpStream) -> Result<()> {
    let mut server = BufReader::new(server);
    let head = head(&mut server)?.context("no answer")?;
    let length = head.iter().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length")
            .then(|| value.trim().parse::<u64>().ok())?
    });
    to.write_all(format!("{}\r\n\r\n", head.join("\r\n")).as_bytes())?;
    let mut body = server.take(length.context("an answer without its length")?);
    std::io::copy(&mut body, &mut to)?;
    Ok(())
}

fn tunnel(mut client: BufReader<TcpStream>, back: &TcpStream, server: &TcpStream) -> Result<()> {
    let (mut from, mut to) = (server.try_clone()?, back.try_clone()?);
    thread::spawn(move || {
        let copied = std::io::copy(&mut from, &mut to);
        // Whoever is gone needs no end.
        let _ = to.shutdown(Shutdown::Write);
        copied
    });
    let mut server = server;
    match std::io::copy(&mut client, &mut server) {
        Err(error) if error.kind() != ErrorKind::ConnectionReset => Err(error.into()),
        Ok(_) | Err(_) => Ok(server.shutdown(Shutdown::Write)?),
    }
}
