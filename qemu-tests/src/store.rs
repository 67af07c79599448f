//! A plain web server over a store directory, which the node reaches as 10.0.2.2.
//!
//! Owns: serving files, and damaging one on request. Refuses: being a good web server.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};

use anyhow::Result;

/// Serves `directory` on a loopback port until the test's process ends; gives the URL for the node.
pub fn serve(directory: &Path) -> Result<String> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let url = format!("http://10.0.2.2:{}", listener.local_addr()?.port());
    let root = directory.to_owned();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let root = root.clone();
            std::thread::spawn(move || answer(&stream, &root));
        }
    });
    Ok(url)
}

fn answer(stream: &TcpStream, root: &Path) -> Option<()> {
    let mut reader = BufReader::new(stream);
    let mut writer = stream;
    loop {
        let mut request = String::new();
        if reader.read_line(&mut request).ok()? == 0 {
            return None;
        }
        loop {
            let mut header = String::new();
            reader.read_line(&mut header).ok()?;
            if header.trim().is_empty() {
                break;
            }
        }
        let path = request
            .split(' ')
            .nth(1)?
            .trim_start_matches('/')
            .to_owned();
        let (status, body) = match std::fs::read(root.join(path)) {
            Ok(body) => ("200 OK", body),
            Err(_) => ("404 Not Found", Vec::new()),
        };
        write!(
            writer,
            "HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n",
            body.len()
        )
        .ok()?;
        writer.write_all(&body).ok()?;
    }
}

/// All chunk files of a store.
pub fn chunks(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for shard in std::fs::read_dir(directory.join("chunks"))? {
        for file in std::fs::read_dir(shard?.path())? {
            files.push(file?.path());
        }
    }
    files.sort();
    Ok(files)
}
