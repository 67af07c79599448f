//! What this machine knows of registries: logins, certificates, mirrors.
//!
//! Owns: reading the files in which docker and podman keep these. Refuses: files of its own, and to send
//! anything to another machine in the clear.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use docker_credential::{CredentialRetrievalError as NoLogin, DockerCredential};
use oci_client::client::{Certificate, CertificateEncoding, ClientProtocol};
use oci_client::secrets::RegistryAuth;
use serde::Deserialize;

use crate::{Policy, Reference};

/// `REGISTRY=MIRROR`, comma between; asked in this order before the registry itself.
const MIRRORS: &str = "SIFR_REGISTRY_MIRRORS";
const DOCKER_HUB: &str = "docker.io";
/// Under which name `docker login` keeps the login of Docker Hub.
const DOCKER_HUB_LOGIN: &str = "https://index.docker.io/v1/";
const DOCKER_DAEMON: &str = "/etc/docker/daemon.json";
/// A certificate authority's file has a few KiB.
const CERTIFICATE_BYTES_MAX: u64 = 1 << 20;
const PEM_BEGIN: &str = "-----BEGIN CERTIFICATE-----";

#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    #[error("the login for {registry} in {}", file.display())]
    Login {
        registry: String,
        file: PathBuf,
        #[source]
        source: NoLogin,
    },
    #[error(
        "{} has an identity token for {registry}, which is not supported: \
         log in with a password or an access token", file.display()
    )]
    IdentityToken { registry: String, file: PathBuf },
    #[error("read the certificate {}", path.display())]
    Certificate {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{0} is no certificate in PEM form, or longer than {CERTIFICATE_BYTES_MAX} bytes", path.display())]
    Pem { path: PathBuf },
    #[error("{place}: {entry:?} is no mirror: write {expected}")]
    Mirror {
        place: &'static str,
        entry: String,
        expected: &'static str,
    },
    #[error("{DOCKER_DAEMON} is not valid")]
    Daemon(#[source] serde_json::Error),
}

/// What is needed to speak to one registry.
#[derive(Debug)]
pub(crate) struct Terms {
    pub(crate) auth: RegistryAuth,
    pub(crate) certificates: Vec<Certificate>,
    pub(crate) protocol: ClientProtocol,
}

/// Where this machine keeps what it knows.
#[derive(Debug, Clone, Default)]
pub struct Access {
    /// The first that knows a registry counts.
    login_files: Vec<PathBuf>,
    /// With a directory for each registry, in which each `.crt` is trusted for it.
    certificate_directories: Vec<PathBuf>,
    mirrors: BTreeMap<String, Vec<String>>,
    pub(crate) policy: Policy,
}

#[derive(Deserialize)]
struct Daemon {
    #[serde(default, rename = "registry-mirrors")]
    mirrors: Vec<String>,
}

impl Access {
    /// As docker and podman find it. `variable` reads the environment.
    pub fn of_this_machine(
        variable: impl Fn(&str) -> Option<OsString>,
    ) -> Result<Self, AccessError> {
        let path = |name: &str| variable(name).filter(|v| !v.is_empty()).map(PathBuf::from);
        let home = path("HOME");
        let below_home = |rest: &str| home.as_ref().map(|home| home.join(rest));
        let docker = path("DOCKER_CONFIG").or_else(|| below_home(".docker"));
        let login_files = [
            path("REGISTRY_AUTH_FILE"),
            path("XDG_RUNTIME_DIR").map(|run| run.join("containers/auth.json")),
            docker.map(|directory| directory.join("config.json")),
        ];
        let certificate_directories = [
            below_home(".config/containers/certs.d"),
            Some("/etc/containers/certs.d".into()),
            Some("/etc/docker/certs.d".into()),
        ];
        let mut mirrors = BTreeMap::new();
        if let Some(text) = variable(MIRRORS) {
            named_mirrors(&text.to_string_lossy(), &mut mirrors)?;
        }
        // Docker's mirrors are of Docker Hub. Without the file there are none.
        if let Ok(text) = fs::read_to_string(DOCKER_DAEMON) {
            hub_mirrors(&text, &mut mirrors)?;
        }
        Ok(Self {
            login_files: login_files.into_iter().flatten().collect(),
            certificate_directories: certificate_directories.into_iter().flatten().collect(),
            mirrors,
            policy: Policy::default(),
        })
    }

    /// What must be signed.
    #[must_use]
    pub fn with_policy(self, policy: Policy) -> Self {
        Self { policy, ..self }
    }

    /// Where the image may be had: the mirrors of its registry, then the registry.
    pub(crate) fn places(&self, image: &Reference) -> Vec<oci_client::Reference> {
        let mirrors = self.mirrors.get(image.registry()).into_iter().flatten();
        let at = |mirror: &String| {
            let mut there = image.0.clone();
            there.set_mirror_registry(mirror.clone());
            there
        };
        mirrors.map(at).chain([image.0.clone()]).collect()
    }

    /// `host`: name or address, with the port where it has one.
    pub(crate) fn terms(&self, host: &str) -> Result<Terms, AccessError> {
        let certificates = self.certificates(host)?;
        // As docker and podman do it; a registry that one tries out here seldom has a certificate.
        let plain = is_here(host) && certificates.is_empty();
        Ok(Terms {
            auth: self.login(host)?,
            protocol: if plain {
                ClientProtocol::Http
            } else {
                ClientProtocol::Https
            },
            certificates,
        })
    }

    /// Name and password for a registry, for whoever keeps other things there than images.
    pub fn password(&self, host: &str) -> Result<Option<(String, String)>, AccessError> {
        Ok(match self.login(host)? {
            RegistryAuth::Basic(user, password) => Some((user, password)),
            RegistryAuth::Anonymous | RegistryAuth::Bearer(_) => None,
        })
    }

    /// The certificates that count for it beside the system's, in PEM.
    pub fn authority(&self, host: &str) -> Result<Option<String>, AccessError> {
        let certificates = self.certificates(host)?;
        let text = |c: &Certificate| String::from_utf8_lossy(&c.data).into_owned();
        let texts: Vec<String> = certificates.iter().map(text).collect();
        Ok((!texts.is_empty()).then(|| texts.join("\n")))
    }

    fn login(&self, host: &str) -> Result<RegistryAuth, AccessError> {
        let (registry, key) = match host {
            DOCKER_HUB | "index.docker.io" | "registry-1.docker.io" => {
                (DOCKER_HUB, DOCKER_HUB_LOGIN)
            }
            host => (host, host),
        };
        for file in &self.login_files {
            let Ok(opened) = File::open(file) else {
                continue;
            };
            let (registry, file) = (registry.to_owned(), file.clone());
            match docker_credential::get_credential_from_reader(io::BufReader::new(opened), key) {
                Ok(DockerCredential::UsernamePassword(user, password)) => {
                    return Ok(RegistryAuth::Basic(user, password));
                }
                Ok(DockerCredential::IdentityToken(_)) => {
                    return Err(AccessError::IdentityToken { registry, file });
                }
                Err(NoLogin::NoCredentialConfigured) => {}
                // What a helper says of a registry that nobody has logged in to.
                Err(NoLogin::HelperFailure { stdout, .. }) if stdout.contains("not found") => {}
                Err(source) => {
                    return Err(AccessError::Login {
                        registry,
                        file,
                        source,
                    });
                }
            }
        }
        Ok(RegistryAuth::Anonymous)
    }

    fn certificates(&self, host: &str) -> Result<Vec<Certificate>, AccessError> {
        let mut found = Vec::new();
        for directory in &self.certificate_directories {
            let Ok(entries) = fs::read_dir(directory.join(host)) else {
                continue;
            };
            let mut paths: Vec<_> = entries.filter_map(|e| Some(e.ok()?.path())).collect();
            paths.sort();
            for path in paths
                .iter()
                .filter(|p| p.extension().is_some_and(|e| e == "crt"))
            {
                found.extend(bundle(path)?);
            }
        }
        Ok(found)
    }
}

/// All certificates of a file.
fn bundle(path: &Path) -> Result<Vec<Certificate>, AccessError> {
    let error = |source| AccessError::Certificate {
        path: path.to_owned(),
        source,
    };
    let not_pem = || AccessError::Pem {
        path: path.to_owned(),
    };
    if fs::metadata(path).map_err(error)?.len() > CERTIFICATE_BYTES_MAX {
        return Err(not_pem());
    }
    let text = String::from_utf8(fs::read(path).map_err(error)?).map_err(|_| not_pem())?;
    let certificates: Vec<_> = text
        .split(PEM_BEGIN)
        .skip(1)
        .map(|rest| Certificate {
            encoding: CertificateEncoding::Pem,
            data: format!("{PEM_BEGIN}{rest}").into_bytes(),
        })
        .collect();
    if certificates.is_empty() {
        return Err(not_pem());
    }
    Ok(certificates)
}

/// Whether a host is this machine, by a name or address that cannot be another's.
fn is_here(host: &str) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
        Some(_) | None => host,
    };
    let address = name.trim_start_matches('[').trim_end_matches(']');
    name == "localhost" || address.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

fn named_mirrors(
    text: &str,
    mirrors: &mut BTreeMap<String, Vec<String>>,
) -> Result<(), AccessError> {
    for entry in text
        .split(',')
        .map(str::trim)
        .filter(|entry| !entry.is_empty())
    {
        let wrong = || AccessError::Mirror {
            place: MIRRORS,
            entry: entry.to_owned(),
            expected: "REGISTRY=HOST or REGISTRY=HOST:PORT, such as docker.io=mirror.example",
        };
        let (registry, mirror) = entry.split_once('=').ok_or_else(wrong)?;
        if !is_host(registry) || !is_host(mirror) {
            return Err(wrong());
        }
        mirrors
            .entry(registry.to_owned())
            .or_default()
            .push(mirror.to_owned());
    }
    Ok(())
}

fn hub_mirrors(text: &str, mirrors: &mut BTreeMap<String, Vec<String>>) -> Result<(), AccessError> {
    let daemon: Daemon = serde_json::from_str(text).map_err(AccessError::Daemon)?;
    for entry in daemon.mirrors {
        let (scheme, rest) = entry.split_once("://").unwrap_or(("https", &entry));
        let host = rest.trim_end_matches('/');
        let is_safe = scheme == "https" || scheme == "http" && is_here(host);
        if !is_safe || !is_host(host) {
            return Err(AccessError::Mirror {
                place: DOCKER_DAEMON,
                entry,
                expected: "https://HOST or https://HOST:PORT",
            });
        }
        mirrors
            .entry(DOCKER_HUB.to_owned())
            .or_default()
            .push(host.to_owned());
    }
    Ok(())
}

fn is_host(text: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-.:[]".contains(&b);
    !text.is_empty() && text.bytes().all(plain)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tempfile::TempDir;

    /// A machine whose home is `home`.
    fn access(home: &TempDir, mirrors: &str) -> Result<Access, AccessError> {
        Access::of_this_machine(|name| match name {
            "HOME" => Some(home.path().into()),
            MIRRORS => Some(mirrors.into()),
            _ => None,
        })
    }

    fn write(home: &TempDir, path: &str, text: &str) {
        let path = home.path().join(path);
        fs::create_dir_all(path.parent().expect("below home")).expect("creates");
        fs::write(path, text).expect("writes");
    }

    #[test]
    fn a_login_that_docker_keeps_is_used_for_its_registry_only() {
        let home = TempDir::new().expect("temp");
        // user:secret, hub:word
        let logins = r#"{"auths":{"ghcr.io":{"auth":"dXNlcjpzZWNyZXQ="},"https://index.docker.io/v1/":{"auth":"aHViOndvcmQ="}}}"#;
        write(&home, ".docker/config.json", logins);
        let access = access(&home, "").expect("reads");
        let login = |host: &str| access.terms(host).expect("reads").auth;
        assert_eq!(
            login("ghcr.io"),
            RegistryAuth::Basic("user".to_owned(), "secret".to_owned())
        );
        assert_eq!(
            login("docker.io"),
            RegistryAuth::Basic("hub".to_owned(), "word".to_owned())
        );
        assert_eq!(login("quay.io"), RegistryAuth::Anonymous);
    }

    #[test]
    fn a_damaged_login_and_an_identity_token_are_named_with_their_file() {
        let home = TempDir::new().expect("temp");
        write(
            &home,
            ".docker/config.json",
            r#"{"auths":{"a.io":{"auth":"!"},"b.io":{"identitytoken":"x"}}}"#,
        );
        let access = access(&home, "").expect("reads");
        for host in ["a.io", "b.io"] {
            let error = access.terms(host).expect_err("not usable").to_string();
            assert!(
                error.contains(host) && error.contains("config.json"),
                "{error}"
            );
        }
        write(&home, ".docker/config.json", "{");
        assert!(access.terms("c.io").is_err());
    }

    #[test]
    fn only_this_machine_is_spoken_to_in_the_clear_and_not_where_it_has_a_certificate() {
        let home = TempDir::new().expect("temp");
        let access = access(&home, "").expect("reads");
        let protocol = |host: &str| access.terms(host).expect("reads").protocol;
        for host in [
            "localhost",
            "localhost:5000",
            "127.0.0.1:5000",
            "127.1.2.3",
            "[::1]:5000",
        ] {
            assert_eq!(protocol(host), ClientProtocol::Http, "{host}");
        }
        for host in [
            "docker.io",
            "10.0.0.1:5000",
            "localhost.example",
            "127.0.0.1.example:80",
        ] {
            assert_eq!(protocol(host), ClientProtocol::Https, "{host}");
        }
        let pem = format!("{PEM_BEGIN}\nAA==\n-----END CERTIFICATE-----\n");
        write(
            &home,
            ".config/containers/certs.d/localhost:5000/ca.crt",
            &pem.repeat(2),
        );
        assert_eq!(protocol("localhost:5000"), ClientProtocol::Https);
        assert_eq!(
            access
                .terms("localhost:5000")
                .expect("reads")
                .certificates
                .len(),
            2
        );
        write(
            &home,
            ".config/containers/certs.d/a.io/ca.crt",
            "no certificate",
        );
        assert!(access.terms("a.io").is_err());
    }

    #[test]
    fn mirrors_are_asked_before_the_registry() {
        let home = TempDir::new().expect("temp");
        let mut access =
            access(&home, "docker.io=one.example, docker.io=two.example:5000").expect("reads");
        hub_mirrors(
            r#"{"registry-mirrors":["https://three.example/"],"debug":true}"#,
            &mut access.mirrors,
        )
        .expect("reads");
        let hosts = |name: &str| {
            let image = Reference::read(name).expect("a registry's").expect("right");
            let places = access.places(&image);
            places
                .iter()
                .map(|p| p.resolve_registry().to_owned())
                .collect::<Vec<_>>()
        };
        let of_hub = [
            "one.example",
            "two.example:5000",
            "three.example",
            "index.docker.io",
        ];
        assert_eq!(hosts("docker.io/library/nginx:1"), of_hub);
        assert_eq!(hosts("ghcr.io/a/b:1"), ["ghcr.io"]);
    }

    #[test]
    fn a_mirror_without_registry_with_a_path_or_in_the_clear_is_refused() {
        let home = TempDir::new().expect("temp");
        for entry in [
            "mirror.example",
            "docker.io=https://mirror.example",
            "docker.io=mirror/path",
            "=a",
            "a=",
        ] {
            assert!(access(&home, entry).is_err(), "{entry}");
        }
        for entry in [
            "http://mirror.example",
            "https://mirror.example/path",
            "ftp://a",
        ] {
            let text = format!(r#"{{"registry-mirrors":["{entry}"]}}"#);
            assert!(hub_mirrors(&text, &mut BTreeMap::new()).is_err(), "{entry}");
        }
    }
}
