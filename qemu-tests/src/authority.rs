//! An authority of certificates on loopback: Debian's pebble, and the names that it looks up.
//!
//! Owns: both processes, the certificate that pebble shows, and what it has said. Refuses: everything but loopback.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use serde_json::json;
use tempfile::TempDir;

use crate::registry::pem;
use crate::{PATIENCE, visitor};

/// Between two tries: nothing tells when a server listens.
const PAUSE: Duration = Duration::from_millis(100);

/// A name server that has the same address for each name, but for those that it is told.
#[derive(Debug)]
pub struct Names {
    process: Child,
    port: u16,
    management: u16,
}

impl Names {
    pub fn start() -> Result<Self> {
        let (port, management) = (free_port()?, free_port()?);
        let process = Command::new("pebble-challtestsrv")
            .args(["-http01", "", "-https01", "", "-tlsalpn01", ""])
            .args(["-defaultIPv4", "127.0.0.1", "-defaultIPv6", ""])
            .arg("-dns01")
            .arg(format!("127.0.0.1:{port}"))
            .arg("-management")
            .arg(format!("127.0.0.1:{management}"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("start pebble-challtestsrv: `make setup` installs it")?;
        let names = Self {
            process,
            port,
            management,
        };
        listens(management)?;
        Ok(names)
    }

    /// This name has this address alone.
    pub fn lead(&self, name: &str, address: Ipv4Addr) -> Result<()> {
        let body = json!({"host": format!("{name}."), "addresses": [address]}).to_string();
        let mut stream = TcpStream::connect(("127.0.0.1", self.management))?;
        write!(
            stream,
            "POST /add-a HTTP/1.0\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        )?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        ensure!(answer.contains(" 200 "), "add-a {body}: {answer}");
        Ok(())
    }
}

impl Drop for Names {
    fn drop(&mut self) {
        // Whoever is gone already needs no end.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Where an authority is, which outlives the process: one that is started again has forgotten everything.
#[derive(Debug)]
pub struct Place {
    directory: TempDir,
    root: CertificateDer<'static>,
    port: u16,
    management: u16,
    /// Where the node is reached on loopback under all names.
    http: u16,
    dns: u16,
}

impl Place {
    pub fn new(names: &Names, http: u16) -> Result<Self> {
        let directory = TempDir::with_prefix("sifr-authority-")?;
        let root = certify(directory.path())?;
        Ok(Self {
            directory,
            root,
            port: free_port()?,
            management: free_port()?,
            http,
            dns: names.port,
        })
    }

    /// Its directory, as a node names it, which reaches loopback as 10.0.2.2.
    pub fn url(&self) -> String {
        format!("https://10.0.2.2:{}/dir", self.port)
    }

    /// Who signed what it shows to those who ask for certificates.
    pub fn ca(&self) -> PathBuf {
        self.directory.path().join("ca.pem")
    }
}

/// The process.
#[derive(Debug)]
pub struct Authority {
    process: Child,
    said: Arc<Mutex<Vec<String>>>,
}

impl Authority {
    /// Its certificates live for so many seconds.
    pub fn start(place: &Place, life_s: u64) -> Result<Self> {
        let home = place.directory.path();
        let config = json!({"pebble": {
            "listenAddress": format!("127.0.0.1:{}", place.port),
            "managementListenAddress": format!("127.0.0.1:{}", place.management),
            "certificate": home.join("server.crt"),
            "privateKey": home.join("server.key"),
            "httpPort": place.http,
            "tlsPort": place.http,
            "ocspResponderURL": "",
            "externalAccountBindingRequired": false,
            "certificateValidityPeriod": life_s,
        }});
        let file = home.join("config.json");
        fs::write(&file, config.to_string())?;
        let mut process = Command::new("pebble")
            .arg("-config")
            .arg(&file)
            .arg("-dnsserver")
            .arg(format!("127.0.0.1:{}", place.dns))
            // It looks at once, and at each order anew.
            .env("PEBBLE_VA_NOSLEEP", "1")
            .env("PEBBLE_AUTHZREUSE", "0")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .context("start pebble: `make setup` installs it")?;
        let said: Arc<Mutex<Vec<String>>> = Arc::default();
        let lines = BufReader::new(process.stdout.take().context("stdout is piped")?).lines();
        let ears = said.clone();
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                ears.lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .push(line);
            }
        });
        let authority = Self { process, said };
        listens(place.port)?;
        listens(place.management)?;
        Ok(authority)
    }

    /// What it has said, line by line.
    pub fn said(&self) -> Vec<String> {
        let said = self.said.lock();
        said.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Certificates that it has given.
    pub fn issued(&self) -> usize {
        let said = self.said();
        said.iter()
            .filter(|line| line.contains("Issued certificate"))
            .count()
    }

    /// Who signs its certificates, since it was started.
    pub fn root(&self, place: &Place) -> Result<CertificateDer<'static>> {
        let roots = [place.root.clone()];
        let client = visitor::trusting(&roots, &[])?;
        let mut stream = visitor::tls(place.management, "localhost", client)?;
        let answer = visitor::get(&mut stream, "localhost", "/roots/0", "");
        let from = answer.find("-----BEGIN").context("no certificate")?;
        CertificateDer::from_pem_slice(&answer.as_bytes()[from..]).context("a root of pebble")
    }
}

impl Drop for Authority {
    fn drop(&mut self) {
        // Whoever is gone already needs no end.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// Waits until somebody listens there.
fn listens(port: u16) -> Result<()> {
    let end = Instant::now() + PATIENCE;
    loop {
        match TcpStream::connect(("127.0.0.1", port)) {
            Ok(_) => return Ok(()),
            Err(_) if Instant::now() < end => std::thread::sleep(PAUSE),
            Err(error) => return Err(error).context("nobody listens"),
        }
    }
}

/// What the authority shows to those who ask it, and who signed that.
fn certify(home: &Path) -> Result<CertificateDer<'static>> {
    let key = KeyPair::generate()?;
    let mut authority = CertificateParams::new([])?;
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let root = authority.self_signed(&key)?.der().clone();
    fs::write(home.join("ca.pem"), pem("CERTIFICATE", &root))?;
    let issuer = Issuer::new(authority, key);
    let key = KeyPair::generate()?;
    let names = ["localhost", "127.0.0.1", "10.0.2.2"].map(str::to_owned);
    let own = CertificateParams::new(names)?.signed_by(&key, &issuer)?;
    fs::write(home.join("server.crt"), pem("CERTIFICATE", own.der()))?;
    fs::write(
        home.join("server.key"),
        pem("PRIVATE KEY", &key.serialize_der()),
    )?;
    Ok(root)
}
