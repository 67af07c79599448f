//! Ingress: names under which machines of a deployment are reached by HTTP and TLS, at ports that all deployments share.
//!
//! Owns: the fields a tenant writes, host names, and what can be checked without a node.
//! Refuses: looking into certificates (`ingress` does), and machines of other deployments.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::Name;
use crate::deployment::{Deployment, Protocol};
use crate::elsewhere::Way;
use crate::stores::AUTHORITY_BYTES_MAX;

/// TCP ports of the node at which names are served: those that browsers ask without being told.
pub const HTTP_PORT: u16 = 80;
pub const HTTPS_PORT: u16 = 443;
/// Most names of one deployment: a status shows all of them.
pub const SITES_MAX: usize = 32;
/// Most path prefixes of one name: each request is compared with all.
pub const ROUTES_MAX: usize = 16;
/// Most machines behind one prefix: each is asked for its health again and again.
pub const BACKENDS_MAX: usize = 16;
/// Most machines and ports behind all names of one deployment: each is asked for its health again and again.
pub const BACKENDS_OF_DEPLOYMENT_MAX: usize = 64;
/// Longest host name (RFC 1035 section 2.3.4), without the root's dot.
pub const HOST_MAX: usize = 253;
/// Longest path in a route or of a health check: longer ones are typing errors.
pub const PATH_MAX: usize = 256;
/// Longest chain of certificates in PEM form: four of the largest in use. An envelope has room for several.
pub const CERTIFICATE_BYTES_MAX: usize = 24 << 10;
/// Longest sealed private key, in base64: RSA with 8192 bits.
pub const KEY_BYTES_MAX: usize = 12 << 10;
/// Seconds between two health checks.
pub const INTERVAL_S: (u16, u16) = (1, 300);
const INTERVAL_S_DEFAULT: u16 = 5;
/// Where certificates are ordered if nothing else is said: Let's Encrypt, for everybody.
pub const LETS_ENCRYPT: &str = "https://acme-v02.api.letsencrypt.org/directory";
/// Longest URL of an authority's directory.
pub const DIRECTORY_BYTES_MAX: usize = 512;
/// Longest address of mail (RFC 5321 section 4.5.3.1).
pub const CONTACT_BYTES_MAX: usize = 254;
/// Names that no public authority certifies: the last labels that RFC 2606, 6761, 6762, 8375 and 9476 keep for other uses.
const NOT_PUBLIC: [&str; 9] = [
    "test",
    "example",
    "invalid",
    "localhost",
    "local",
    "internal",
    "onion",
    "alt",
    "arpa",
];
/// What a private key is sealed for: with the host name behind it, so that no other name can be given it.
const KEY_PURPOSE: &str = "sifr ingress key 1 ";

/// A name of the internet's, in lower case, without the root's dot.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Host(String);

impl Host {
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// What the private key of its certificate is sealed for.
    pub fn key_purpose(&self) -> String {
        format!("{KEY_PURPOSE}{self}")
    }

    /// The host in what a client has sent: with a port or not, in whatever case. `None`: it can be no name of ours.
    pub fn asked(authority: &str) -> Option<Self> {
        let port = |port: &str| port.len() <= 5 && port.bytes().all(|b| b.is_ascii_digit());
        let host = match authority.rsplit_once(':') {
            Some((host, after)) if port(after) => host,
            Some(_) => return None,
            None => authority,
        };
        let host = host.strip_suffix('.').unwrap_or(host);
        // Longer ones are not copied.
        (host.len() <= HOST_MAX).then(|| host.to_ascii_lowercase().parse().ok())?
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Host {
    type Err = IngressError;
    fn from_str(text: &str) -> Result<Self, IngressError> {
        let label = |label: &str| {
            let fine = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
            let edges = !label.starts_with('-') && !label.ends_with('-');
            (1..=63).contains(&label.len()) && edges && label.bytes().all(fine)
        };
        let named = text.len() <= HOST_MAX && text.split('.').all(label);
        // The last label of an address is a number, and of a name never.
        let number = |label: &str| label.bytes().all(|b| b.is_ascii_digit());
        if named && !text.rsplit('.').next().is_some_and(number) {
            Ok(Self(text.to_owned()))
        } else {
            Err(IngressError::Host(text.chars().take(100).collect()))
        }
    }
}

impl Serialize for Host {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Host {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// What is served under one name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Site {
    /// Absent: HTTP in the clear. With it what comes in the clear is sent to https.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<Tls>,
    /// The longest prefix of a request's path decides.
    pub routes: Vec<SiteRoute>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health: Option<HealthCheck>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Tls {
    /// The machines speak TLS themselves: they are chosen by the name in the client's first message, and nothing is decrypted.
    Passthrough,
    /// The node speaks it, with a certificate that was brought.
    Sealed {
        /// The chain, in PEM form.
        certificate: String,
        /// The private key in PEM form, sealed to the node for [`Host::key_purpose`], in base64.
        key: String,
    },
    /// The node speaks it, with a certificate that it orders itself.
    Acme(Acme),
}

/// Who is asked for a certificate. Whoever signs it has agreed to that authority's terms.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Acme {
    /// URL of the directory (RFC 8555 section 7.1.1).
    #[serde(default = "lets_encrypt", skip_serializing_if = "is_lets_encrypt")]
    pub directory: String,
    /// An address of mail that the authority may write to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub contact: Option<String>,
    /// Certificate authorities in PEM, beside the public ones, for this directory alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<String>,
}

fn lets_encrypt() -> String {
    LETS_ENCRYPT.to_owned()
}

fn is_lets_encrypt(directory: &String) -> bool {
    directory == LETS_ENCRYPT
}

impl Default for Acme {
    fn default() -> Self {
        Self {
            directory: lets_encrypt(),
            contact: None,
            ca: None,
        }
    }
}

impl Acme {
    /// Checks what can be checked without asking anybody.
    fn check(&self, host: &Host) -> Result<(), IngressError> {
        let host = || host.clone();
        let text = |text: &str, most: usize| {
            text.len() <= most && text.bytes().all(|byte| byte.is_ascii_graphic())
        };
        let server = self.directory.strip_prefix("https://");
        let server = server.and_then(|rest| rest.split('/').next());
        let server = server.filter(|server| {
            let inside = |b: u8| b.is_ascii_alphanumeric() || b".-:[]".contains(&b);
            !server.is_empty() && server.bytes().all(inside)
        });
        if server.is_none()
            || self.directory.contains('#')
            || !text(&self.directory, DIRECTORY_BYTES_MAX)
        {
            return Err(IngressError::Directory {
                host: host(),
                directory: self.directory.chars().take(100).collect(),
            });
        }
        if let Some(contact) = &self.contact {
            let fine = |b: u8| b.is_ascii_alphanumeric() || b".-_+=~@".contains(&b);
            let parts = contact.split_once('@');
            let parts = parts.filter(|(user, at)| {
                !user.is_empty() && at.split('.').count() > 1 && at.parse::<Host>().is_ok()
            });
            if parts.is_none() || contact.len() > CONTACT_BYTES_MAX || !contact.bytes().all(fine) {
                return Err(IngressError::Contact {
                    host: host(),
                    contact: contact.chars().take(100).collect(),
                });
            }
        }
        // Whoever reads it says whether there is an authority in it.
        let fits = |ca: &String| ca.len() <= AUTHORITY_BYTES_MAX && is_pem(ca);
        if !self.ca.iter().all(fits) {
            return Err(IngressError::Authority { host: host() });
        }
        let host = host();
        let labels: Vec<&str> = host.as_str().split('.').collect();
        let last = labels.last().copied().unwrap_or_default();
        let public = !NOT_PUBLIC.contains(&last) || !is_lets_encrypt(&self.directory);
        match labels.len() > 1 && public {
            true => Ok(()),
            false => Err(IngressError::NotPublic { host }),
        }
    }
}

/// Where requests go whose path begins so.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SiteRoute {
    #[serde(default = "root", skip_serializing_if = "is_root")]
    pub path: String,
    /// Whichever of them is healthy and has least to do.
    pub to: Vec<Backend>,
}

fn root() -> String {
    "/".to_owned()
}

fn is_root(path: &String) -> bool {
    path == "/"
}

/// A port of a machine of the same deployment, on this node or another, as `web:8080`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Backend {
    pub machine: Name,
    pub port: u16,
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.machine, self.port)
    }
}

impl FromStr for Backend {
    type Err = IngressError;
    fn from_str(text: &str) -> Result<Self, IngressError> {
        let read = || {
            let (machine, port) = text.split_once(':')?;
            let port: u16 = port.parse().ok().filter(|port| *port != 0)?;
            let machine = machine.parse().ok()?;
            Some(Self { machine, port })
        };
        read().ok_or_else(|| IngressError::Backend(text.chars().take(100).collect()))
    }
}

impl Serialize for Backend {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Backend {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// How it is found out whether a machine can serve.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HealthCheck {
    /// A GET of it answers 200 to 399. Absent: the port accepts connections.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    #[serde(default = "interval")]
    pub interval_s: u16,
}

fn interval() -> u16 {
    INTERVAL_S_DEFAULT
}

impl Default for HealthCheck {
    fn default() -> Self {
        Self {
            path: None,
            interval_s: INTERVAL_S_DEFAULT,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IngressError {
    #[error(
        "{0:?} is no host name: write one such as shop.example.org, in lower case and without a port"
    )]
    Host(String),
    #[error("{0:?} is no back end: write a machine's name and its port, such as web:8080")]
    Backend(String),
    #[error("a deployment has at most {SITES_MAX} names in ingress, this one {0}")]
    Sites(usize),
    #[error(
        "a deployment has at most {BACKENDS_OF_DEPLOYMENT_MAX} machines and ports behind its names in ingress, this one {0}"
    )]
    Backends(usize),
    #[error("ingress {host}: {found} {what}, 1 to {most} are possible")]
    Count {
        host: Host,
        what: &'static str,
        found: usize,
        most: usize,
    },
    #[error(
        "ingress {host}: the path {path:?} is none: begin it with /, and write no space, ?, # or control character"
    )]
    Path { host: Host, path: String },
    #[error("ingress {host}: the path {path} stands there twice")]
    PathTwice { host: Host, path: String },
    #[error(
        "ingress {host}: {backend}: there is no machine of that name in this deployment, here or on another node of its networks"
    )]
    Unknown { host: Host, backend: Backend },
    #[error(
        "ingress {host}: {backend}: that machine is on another node, and two networks lead there, {one} and {other}: let it be on one of them, or make one internal"
    )]
    Ways {
        host: Host,
        backend: Backend,
        one: Name,
        other: Name,
    },
    #[error(
        "ingress {host}: {backend}: the first network of the machine is internal: nothing is published into it"
    )]
    Internal { host: Host, backend: Backend },
    #[error(
        "ingress {host}: paths are not seen in TLS that is passed through: write one route without a path, and no path to check"
    )]
    Passed { host: Host },
    #[error("ingress {host}: interval_s is {found}, 1 to 300 are possible")]
    Interval { host: Host, found: u16 },
    #[error(
        "ingress {host}: the certificate or the sealed key is empty, too long or no text of printable ASCII"
    )]
    Sealed { host: Host },
    #[error(
        "ingress {host}: {directory:?} is no directory of ACME: write a URL such as {LETS_ENCRYPT}, with https and at most {DIRECTORY_BYTES_MAX} bytes"
    )]
    Directory { host: Host, directory: String },
    #[error(
        "ingress {host}: {contact:?} is no address of mail: write one such as ops@example.org, without mailto:"
    )]
    Contact { host: Host, contact: String },
    #[error(
        "ingress {host}: ca is no certificate in PEM form: it is longer than {AUTHORITY_BYTES_MAX} bytes, or no text of printable ASCII"
    )]
    Authority { host: Host },
    #[error(
        "ingress {host}: no public authority certifies this name: choose one of the public DNS, or bring a certificate, or name the directory of your own authority"
    )]
    NotPublic { host: Host },
    #[error(
        "workload {machine} publishes TCP port {port} of the node, at which the names of ingress are served: choose another"
    )]
    Port { machine: Name, port: u16 },
}

impl Site {
    /// Ports of the node that it is served at.
    pub fn ports(&self) -> &'static [u16] {
        match self.tls {
            None => &[HTTP_PORT],
            // What is asked in the clear is sent to https.
            Some(Tls::Sealed { .. } | Tls::Acme(_)) => &[HTTP_PORT, HTTPS_PORT],
            Some(Tls::Passthrough) => &[HTTPS_PORT],
        }
    }

    pub fn backends(&self) -> impl Iterator<Item = &Backend> {
        self.routes.iter().flat_map(|route| &route.to)
    }

    fn check(&self, host: &Host, deployment: &Deployment) -> Result<(), IngressError> {
        let host = || host.clone();
        let count = |what, found: usize, most: usize| match (1..=most).contains(&found) {
            true => Ok(()),
            false => Err(IngressError::Count {
                host: host(),
                what,
                found,
                most,
            }),
        };
        count("routes", self.routes.len(), ROUTES_MAX)?;
        for (at, route) in self.routes.iter().enumerate() {
            check_path(&host(), &route.path)?;
            if self.routes[..at].iter().any(|r| r.path == route.path) {
                let path = route.path.clone();
                return Err(IngressError::PathTwice { host: host(), path });
            }
            count("back ends in a route", route.to.len(), BACKENDS_MAX)?;
        }
        for backend in self.backends() {
            check_backend(&host(), backend, deployment)?;
        }
        if let Some(health) = &self.health {
            health
                .path
                .iter()
                .try_for_each(|path| check_path(&host(), path))?;
            let found = health.interval_s;
            if !(INTERVAL_S.0..=INTERVAL_S.1).contains(&found) {
                return Err(IngressError::Interval {
                    host: host(),
                    found,
                });
            }
        }
        match &self.tls {
            None => Ok(()),
            Some(Tls::Acme(acme)) => acme.check(&host()),
            Some(Tls::Passthrough) => {
                let checked = self.health.as_ref().and_then(|h| h.path.as_ref());
                match (&self.routes[..], checked) {
                    ([only], None) if is_root(&only.path) => Ok(()),
                    _ => Err(IngressError::Passed { host: host() }),
                }
            }
            Some(Tls::Sealed { certificate, key }) => {
                let fits = |text: &str, most| (1..=most).contains(&text.len());
                let sizes = fits(certificate, CERTIFICATE_BYTES_MAX) && fits(key, KEY_BYTES_MAX);
                match sizes && is_pem(certificate) {
                    true => Ok(()),
                    false => Err(IngressError::Sealed { host: host() }),
                }
            }
        }
    }
}

/// Whether it can be PEM: a reader makes nothing longer of it than it is.
pub fn is_pem(text: &str) -> bool {
    let plain = |b: u8| b.is_ascii_graphic() || matches!(b, b' ' | b'\t' | b'\r' | b'\n');
    text.bytes().all(plain)
}

fn check_path(host: &Host, path: &str) -> Result<(), IngressError> {
    let fine = |b: u8| b.is_ascii_graphic() && !matches!(b, b'?' | b'#');
    if path.starts_with('/') && path.len() <= PATH_MAX && path.bytes().all(fine) {
        return Ok(());
    }
    Err(IngressError::Path {
        host: host.clone(),
        path: path.chars().take(100).collect(),
    })
}

fn check_backend(
    host: &Host,
    backend: &Backend,
    deployment: &Deployment,
) -> Result<(), IngressError> {
    let (host, named) = (host.clone(), backend.clone());
    let mut machines = deployment.machines();
    let Some((_, machine)) = machines.find(|(name, _)| **name == backend.machine) else {
        return check_way(host, named, deployment);
    };
    let first = machine.cards().into_iter().next();
    let network = first.and_then(|card| deployment.network(&card.network));
    match network.is_some_and(|network| network.internal) {
        true => Err(IngressError::Internal {
            host,
            backend: named,
        }),
        false => Ok(()),
    }
}

/// Of a machine that is not on this node.
fn check_way(host: Host, backend: Backend, deployment: &Deployment) -> Result<(), IngressError> {
    match deployment.way_to(&backend.machine) {
        Way::By(_) => Ok(()),
        Way::Nowhere => Err(IngressError::Unknown { host, backend }),
        Way::Internal => Err(IngressError::Internal { host, backend }),
        Way::Several(one, other) => Err(IngressError::Ways {
            host,
            backend,
            one: one.clone(),
            other: other.clone(),
        }),
    }
}

pub(crate) fn check(deployment: &Deployment) -> Result<(), IngressError> {
    let sites = &deployment.ingress;
    if sites.len() > SITES_MAX {
        return Err(IngressError::Sites(sites.len()));
    }
    for (host, site) in sites {
        site.check(host, deployment)?;
    }
    let all = sites.iter();
    let backends: usize = all
        .map(|(_, site)| site.backends().collect::<BTreeSet<_>>().len())
        .sum();
    if backends > BACKENDS_OF_DEPLOYMENT_MAX {
        return Err(IngressError::Backends(backends));
    }
    let served: Vec<u16> = ports(sites);
    for (name, machine) in deployment.machines() {
        let taken =
            |p: &&crate::deployment::Port| p.protocol == Protocol::Tcp && served.contains(&p.node);
        if let Some(port) = machine.ports.iter().find(taken) {
            let (machine, port) = (name.clone(), port.node);
            return Err(IngressError::Port { machine, port });
        }
    }
    Ok(())
}

/// Ports of the node that these need.
pub fn ports<'a>(sites: impl IntoIterator<Item = (&'a Host, &'a Site)>) -> Vec<u16> {
    let mut ports: Vec<u16> = sites
        .into_iter()
        .flat_map(|(_, site)| site.ports())
        .copied()
        .collect();
    ports.sort_unstable();
    ports.dedup();
    ports
}

/// Names by host, as they stand in a deployment.
pub type Sites = BTreeMap<Host, Site>;

#[cfg(test)]
#[path = "ingress_tests.rs"]
mod tests;
