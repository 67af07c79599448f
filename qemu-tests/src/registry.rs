//! Debian's container registry on loopback, and images that common tools put there.
//!
//! Owns: the registry's process and certificate. Refuses: everything but loopback.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};
use base64::prelude::{BASE64_STANDARD, Engine as _};
use image::paths::Paths;
use image::tools;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use tempfile::TempDir;

/// What a tenant calls itself at a private registry.
pub const LOGIN: &str = "tenant:secret";
/// The same as `docker login` keeps it.
pub const LOGIN_KEPT: &str = "dGVuYW50OnNlY3JldA==";
/// bcrypt of the password, as htpasswd writes it.
const HTPASSWD: &str = "tenant:$2b$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a\n";

/// A registry; it ends with this value.
#[derive(Debug)]
pub struct Registry {
    process: Child,
    directory: TempDir,
    /// Name and port.
    pub host: String,
    is_private: bool,
}

impl Registry {
    /// Open to all on this machine, in the clear.
    pub fn open() -> Result<Self> {
        Self::start(false)
    }

    /// With TLS under a certificate authority of its own, for [`LOGIN`] only.
    pub fn private() -> Result<Self> {
        Self::start(true)
    }

    fn start(is_private: bool) -> Result<Self> {
        let directory = TempDir::with_prefix("sifr-registry-")?;
        let home = directory.path();
        let shown = home.display();
        let mut config = format!(
            "version: 0.1\nstorage: {{filesystem: {{rootdirectory: {shown}/data}}}}\nhttp:\n  addr: 127.0.0.1:0\n"
        );
        if is_private {
            certify(home)?;
            fs::write(home.join("htpasswd"), HTPASSWD)?;
            config += &format!(
                "  tls: {{certificate: {shown}/server.crt, key: {shown}/server.key}}\n\
                 auth: {{htpasswd: {{realm: test, path: {shown}/htpasswd}}}}\n"
            );
        }
        fs::write(home.join("config.yml"), config)?;
        let mut process = Command::new(tools::docker_registry(&Paths::find()?)?)
            .arg("serve")
            .arg(home.join("config.yml"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .context("start the registry")?;
        let port = port(&mut process)?;
        Ok(Self {
            process,
            directory,
            host: format!("localhost:{port}"),
            is_private,
        })
    }

    /// Where its certificate authority is: a directory as docker and podman have for each registry.
    pub fn certificates(&self) -> PathBuf {
        self.directory.path().join("ca")
    }

    /// Puts the image of an OCI layout there, compressed as `compression` (gzip or zstd) says.
    pub fn push(&self, layout: &Path, name: &str, compression: &str) -> Result<String> {
        let image = format!("{}/{name}", self.host);
        let mut skopeo = Command::new("skopeo");
        skopeo.args([
            "--insecure-policy",
            "copy",
            "--dest-compress-format",
            compression,
        ]);
        if self.is_private {
            skopeo
                .args(["--dest-creds", LOGIN, "--dest-cert-dir"])
                .arg(self.certificates());
        } else {
            skopeo.arg("--dest-tls-verify=false");
        }
        skopeo
            .arg(format!("oci:{}:1", layout.display()))
            .arg(format!("docker://{image}"));
        run(&mut skopeo)?;
        Ok(image)
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        // Whoever is gone already needs no end.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The port that it says it listens on. What it says later is read and dropped, so that it never waits.
fn port(process: &mut Child) -> Result<u16> {
    let mut lines = BufReader::new(process.stderr.take().context("stderr is piped")?).lines();
    let mut said = String::new();
    for line in lines.by_ref() {
        let line = line?;
        if let Some((_, rest)) = line.split_once("listening on 127.0.0.1:") {
            let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
            std::thread::spawn(move || lines.for_each(drop));
            return Ok(digits.parse()?);
        }
        said += &format!("{line}\n");
    }
    anyhow::bail!("the registry ended:\n{said}")
}

/// A certificate for `localhost` and the authority that signed it.
fn certify(home: &Path) -> Result<()> {
    let key = KeyPair::generate()?;
    let mut authority = CertificateParams::new([])?;
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    fs::create_dir(home.join("ca"))?;
    fs::write(
        home.join("ca/ca.crt"),
        pem("CERTIFICATE", authority.self_signed(&key)?.der()),
    )?;
    let issuer = Issuer::new(authority, key);
    let key = KeyPair::generate()?;
    let certificate = CertificateParams::new(["localhost".to_owned()])?.signed_by(&key, &issuer)?;
    fs::write(
        home.join("server.crt"),
        pem("CERTIFICATE", certificate.der()),
    )?;
    fs::write(
        home.join("server.key"),
        pem("PRIVATE KEY", &key.serialize_der()),
    )?;
    Ok(())
}

/// RFC 7468, in one line: those who read it take that, too.
pub fn pem(what: &str, der: &[u8]) -> String {
    let body = BASE64_STANDARD.encode(der);
    format!("-----BEGIN {what}-----\n{body}\n-----END {what}-----\n")
}

/// An OCI layout with the image `1`: `root` in a layer, and a program to run.
pub fn layout(root: &Path, layout: &Path, program: &[&str]) -> Result<()> {
    let image = format!("{}:1", layout.display());
    let umoci = |args: &[&str]| run(Command::new("umoci").args(args));
    umoci(&["init", "--layout", &layout.display().to_string()])?;
    umoci(&["new", "--image", &image])?;
    umoci(&[
        "insert",
        "--rootless",
        "--image",
        &image,
        &root.display().to_string(),
        "/",
    ])?;
    let mut config = vec![
        "config",
        "--image",
        &image,
        "--architecture",
        "amd64",
        "--os",
        "linux",
    ];
    program
        .iter()
        .for_each(|word| config.extend(["--config.cmd", word]));
    umoci(&config)
}

fn run(command: &mut Command) -> Result<()> {
    let name = command.get_program().display().to_string();
    let output = command
        .output()
        .with_context(|| format!("start {name}: run 'make setup'"))?;
    ensure!(
        output.status.success(),
        "{name}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}
