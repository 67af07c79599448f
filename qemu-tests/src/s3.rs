//! A server of S3 on loopback: `s3s-fs`, which checks signatures.
//!
//! Owns: its processes, and a bucket. Refuses: everything but loopback.

use std::fs;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use image::paths::Paths;
use image::tools;
use tempfile::TempDir;

use crate::PATIENCE;

/// Its one key, and the secret.
pub const KEYS: [(&str, &str); 2] = [
    ("AWS_ACCESS_KEY_ID", "tenant"),
    ("AWS_SECRET_ACCESS_KEY", "a-secret-of-the-test"),
];
pub const BUCKET: &str = "images";
/// Between two tries to reach it: nothing tells when it listens.
const PAUSE: Duration = Duration::from_millis(50);

/// Two servers of one bucket; they end with this value.
#[derive(Debug)]
pub struct S3 {
    processes: Vec<Child>,
    directory: TempDir,
    /// With keys only.
    pub private: u16,
    /// Without any.
    pub public: u16,
}

impl S3 {
    pub fn start() -> Result<Self> {
        let directory = TempDir::with_prefix("sifr-s3-")?;
        fs::create_dir(directory.path().join(BUCKET))?;
        let mut started = Self {
            processes: Vec::new(),
            directory,
            private: 0,
            public: 0,
        };
        let [(_, id), (_, secret)] = KEYS;
        started.private = started.serve(&["--access-key", id, "--secret-key", secret])?;
        started.public = started.serve(&[])?;
        Ok(started)
    }

    /// Where its objects are files.
    pub fn bucket(&self) -> std::path::PathBuf {
        self.directory.path().join(BUCKET)
    }

    /// A place in the bucket, as this machine names it.
    pub fn url(&self, prefix: &str, port: u16) -> String {
        format!("s3://{BUCKET}/{prefix}?endpoint=http://127.0.0.1:{port}&region=us-east-1")
    }

    /// The same as a node names it, which reaches loopback as 10.0.2.2.
    pub fn url_for_the_node(&self, prefix: &str) -> String {
        self.url(prefix, self.public)
            .replace("127.0.0.1", "10.0.2.2")
    }

    fn serve(&mut self, keys: &[&str]) -> Result<u16> {
        let program = tools::s3_server(&Paths::find()?)?;
        // It takes no port of 0. Another program may take this one first: then it ends, and says so.
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?
            .local_addr()?
            .port();
        let log = self.directory.path().join(format!("log-{port}"));
        let mut command = Command::new(program);
        command
            .args(["--host", "127.0.0.1", "--port", &port.to_string()])
            .args(keys)
            .arg(self.directory.path())
            .stdin(Stdio::null())
            .stdout(fs::File::create(&log)?)
            .stderr(Stdio::null());
        let mut process = command.spawn().context("start the server of S3")?;
        let end = Instant::now() + PATIENCE;
        while TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err() {
            if process.try_wait()?.is_some() || Instant::now() > end {
                bail!("the server of S3 does not listen:\n{}", text(&log));
            }
            std::thread::sleep(PAUSE);
        }
        self.processes.push(process);
        Ok(port)
    }
}

fn text(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

impl Drop for S3 {
    fn drop(&mut self) {
        for process in &mut self.processes {
            // Whoever is gone already needs no end.
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}
