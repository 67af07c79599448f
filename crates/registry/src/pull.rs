//! Bringing one image here.
//!
//! ```text
//! reference ─► manifest, or index ─► manifest for linux/amd64 ─► configuration and layers ─► OCI layout
//! ```
//!
//! Owns: the way from a name to a directory that is an OCI image layout of one image, by way of mirrors,
//! and what a download that fails does.
//! Refuses: content that is not what its digest says, more of it than its manifest says, other platforms, and
//! addresses of layers that a manifest names outside its registry.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Once;
use std::time::Duration;

use futures_util::{StreamExt as _, TryStreamExt as _};
use oci_client::client::{BlobResponse, ClientConfig, LayerDescriptor, SizedStream};
use oci_client::errors::{OciDistributionError as Oci, OciErrorCode};
use oci_client::manifest::{
    IMAGE_MANIFEST_LIST_MEDIA_TYPE, IMAGE_MANIFEST_MEDIA_TYPE, OCI_IMAGE_INDEX_MEDIA_TYPE,
    OCI_IMAGE_MEDIA_TYPE,
};
use oci_client::{Client, RegistryOperation};
use serde::Deserialize;
use serde_json::json;
use sha2::{Digest as _, Sha256};

use crate::access::{AccessError, Terms};
use crate::signature::{self, Finding, Key};
use crate::{Access, Reference};

const ACCEPTED: [&str; 4] = [
    OCI_IMAGE_INDEX_MEDIA_TYPE,
    OCI_IMAGE_MEDIA_TYPE,
    IMAGE_MANIFEST_LIST_MEDIA_TYPE,
    IMAGE_MANIFEST_MEDIA_TYPE,
];
/// Longest manifest: what registries accept at most (distribution specification, "Pushing manifests").
const MANIFEST_BYTES_MAX: usize = 4 << 20;
/// Most configuration and layers together, as they are sent: an flist's disk is no larger.
const IMAGE_BYTES_MAX: u64 = 256 << 30;
/// Docker's own limit is 127.
const LAYERS_MAX: usize = 512;
/// As docker does: enough for a line, and no burden to a registry.
const BLOBS_AT_ONCE: usize = 3;
const CONNECT_MAX: Duration = Duration::from_secs(15);
/// Without a byte.
const SILENCE_MAX: Duration = Duration::from_secs(60);
/// In a row that bring less than `PROGRESS_MIN`.
const TRIES_MAX: u32 = 5;
/// What makes a line that is cut again and again worth going on with.
const PROGRESS_MIN: u64 = 32 << 10;
/// Before the second try; doubled each time.
const PAUSE: Duration = Duration::from_millis(250);

#[derive(Debug, thiserror::Error)]
pub enum PullError {
    #[error(transparent)]
    Access(#[from] AccessError),
    #[error(
        "{registry} does not let you have {image}: {said}. If it is private: `docker login {registry}` \
         or `podman login {registry}`"
    )]
    Denied {
        image: String,
        registry: String,
        said: String,
    },
    #[error("{registry} has no {image}: look at the name and the tag")]
    NotFound { image: String, registry: String },
    #[error("{registry} does not answer")]
    Unreachable {
        registry: String,
        #[source]
        source: Oci,
    },
    #[error("{registry}, asked for {image}")]
    Registry {
        image: String,
        registry: String,
        #[source]
        source: Oci,
    },
    #[error("{what} of {image} is not valid")]
    Manifest {
        what: &'static str,
        image: String,
        #[source]
        source: serde_json::Error,
    },
    #[error("{image} is not for linux/amd64, only for {has}")]
    Platform { image: String, has: String },
    #[error("{image} has {what}, and at most {most} are taken")]
    Large {
        image: String,
        what: String,
        most: u64,
    },
    #[error("{0:?} is no SHA-256 digest, and no other is understood")]
    Digest(String),
    #[error(
        "{registry} sends other bytes than {digest}: pull from elsewhere, the registry or the line is broken"
    )]
    Damaged { registry: String, digest: String },
    #[error("write {}", path.display())]
    Write {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("make the TLS client")]
    Client(#[source] Oci),
    #[error(
        "{image} is not signed, and must be, by {keys}: {registry} has no signature of {digest}. \
         Ask who made it for `cosign sign --key`"
    )]
    Unsigned {
        image: String,
        registry: String,
        digest: String,
        keys: String,
    },
    #[error(
        "none of the {count} signatures of {image} is by {keys}: it was signed by somebody else, or was changed"
    )]
    Foreign {
        image: String,
        count: usize,
        keys: String,
    },
    #[error(
        "the signature by {keys} that stands for {image} is for {signed}, and the image is {digest}"
    )]
    SignedOther {
        image: String,
        keys: String,
        signed: String,
        digest: String,
    },
}

/// Bytes as they are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    pub total_bytes: u64,
    pub done_bytes: u64,
}

/// What came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pulled {
    /// Which registry or mirror it came from.
    pub from: String,
    /// Of the manifest for linux/amd64.
    pub digest: String,
    pub layers: usize,
    pub bytes: u64,
}

#[derive(Debug, Clone, Deserialize)]
struct Descriptor {
    digest: String,
    size: u64,
    platform: Option<Platform>,
}

#[derive(Debug, Clone, Deserialize)]
struct Platform {
    os: String,
    architecture: String,
    variant: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Index {
    manifests: Vec<Descriptor>,
}

#[derive(Debug, Deserialize)]
struct Manifest {
    config: Descriptor,
    layers: Vec<Descriptor>,
}

/// What cosign keeps beside an image.
#[derive(Debug, Deserialize)]
struct Signatures {
    layers: Vec<SignatureLayer>,
}

#[derive(Debug, Deserialize)]
struct SignatureLayer {
    #[serde(rename = "mediaType")]
    media_type: String,
    digest: String,
    size: u64,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

/// A manifest as it came.
struct Raw {
    digest: String,
    media_type: String,
    bytes: Vec<u8>,
}

/// Brings an image into `layout`, an empty directory, as an OCI image layout. Mirrors are asked first; what
/// the registry itself answers counts. `report` is told of each piece that has come.
pub async fn pull(
    image: &Reference,
    access: &Access,
    layout: &Path,
    report: &mut dyn FnMut(Progress),
) -> Result<Pulled, PullError> {
    let keys = access.policy.keys(image);
    let mut places = access.places(image);
    let own = places.pop().expect("the registry itself is the last place");
    let report = RefCell::new(report);
    for mirror in places {
        // A mirror may lack the image, or be away: that is what the registry is for.
        if let Ok(pulled) = Place::new(mirror, access)?
            .pull(layout, keys, &report)
            .await
        {
            return Ok(pulled);
        }
    }
    Place::new(own, access)?.pull(layout, keys, &report).await
}

/// An image at one registry.
struct Place {
    client: Client,
    image: oci_client::Reference,
    terms: Terms,
}

impl Place {
    fn new(image: oci_client::Reference, access: &Access) -> Result<Self, PullError> {
        static PROVIDER: Once = Once::new();
        // Where the program has chosen one already, that is it.
        PROVIDER.call_once(|| drop(rustls::crypto::ring::default_provider().install_default()));
        let host = image.resolve_registry();
        // Logins and certificates go by the name that people use.
        let named = if host == image.registry() || host == "index.docker.io" {
            image.registry()
        } else {
            host
        };
        let terms = access.terms(named)?;
        let config = ClientConfig {
            protocol: terms.protocol.clone(),
            extra_root_certificates: terms.certificates.clone(),
            connect_timeout: Some(CONNECT_MAX),
            read_timeout: Some(SILENCE_MAX),
            user_agent: "sifr",
            ..ClientConfig::default()
        };
        let client = Client::try_from(config).map_err(PullError::Client)?;
        Ok(Self {
            client,
            image,
            terms,
        })
    }

    fn registry(&self) -> String {
        self.image.resolve_registry().to_owned()
    }

    fn failed(&self, error: Oci) -> PullError {
        let (image, registry) = (self.image.to_string(), self.registry());
        match error {
            Oci::AuthenticationFailure(said) => PullError::Denied {
                image,
                registry,
                said,
            },
            Oci::UnauthorizedError { .. } => PullError::Denied {
                image,
                registry,
                said: "not authorised".to_owned(),
            },
            Oci::RegistryError { ref envelope, .. } => {
                let code =
                    |code: &[OciErrorCode]| envelope.errors.iter().any(|e| code.contains(&e.code));
                let unknown = [
                    OciErrorCode::ManifestUnknown,
                    OciErrorCode::NameUnknown,
                    OciErrorCode::NotFound,
                ];
                if code(&unknown) {
                    return PullError::NotFound { image, registry };
                }
                if code(&[OciErrorCode::Unauthorized, OciErrorCode::Denied]) {
                    let said = envelope.to_string();
                    return PullError::Denied {
                        image,
                        registry,
                        said,
                    };
                }
                PullError::Registry {
                    image,
                    registry,
                    source: error,
                }
            }
            Oci::ImageManifestNotFoundError(_) => PullError::NotFound { image, registry },
            Oci::RequestError(ref inner) if inner.is_connect() || inner.is_timeout() => {
                PullError::Unreachable {
                    registry,
                    source: error,
                }
            }
            source => PullError::Registry {
                image,
                registry,
                source,
            },
        }
    }

    async fn pull(
        &self,
        layout: &Path,
        keys: &[Key],
        report: &RefCell<&mut dyn FnMut(Progress)>,
    ) -> Result<Pulled, PullError> {
        // So that a refused login is said as such, and not as an image that is not there.
        let operation = RegistryOperation::Pull;
        let login = self
            .client
            .auth(&self.image, &self.terms.auth, operation)
            .await;
        login.map_err(|error| self.failed(error))?;
        let (named, raw) = self.manifest().await?;
        if !keys.is_empty() {
            self.must_be_signed(keys, &named, &raw.digest).await?;
        }
        let manifest: Manifest = self.parse("the manifest", &raw.bytes)?;
        let blobs = self.blobs(&manifest)?;
        let blob_directory = layout.join("blobs/sha256");
        fs::create_dir_all(&blob_directory).map_err(|source| PullError::Write {
            path: blob_directory.clone(),
            source,
        })?;
        let total_bytes = blobs.values().sum();
        let tally = Tally {
            total_bytes,
            done_bytes: RefCell::new(0),
            report,
        };
        tally.add(0);
        let wanted = futures_util::stream::iter(blobs.iter().map(Ok));
        let fetch = |(hex, bytes): (&String, &u64)| {
            let (path, hex, bytes) = (blob_directory.join(hex), hex.clone(), *bytes);
            let tally = &tally;
            async move { self.blob(&hex, bytes, &path, tally).await }
        };
        wanted.try_for_each_concurrent(BLOBS_AT_ONCE, fetch).await?;
        describe(layout, &raw)?;
        Ok(Pulled {
            from: self.registry(),
            digest: raw.digest,
            layers: manifest.layers.len(),
            bytes: total_bytes,
        })
    }

    /// The digest of what the name leads to, and the manifest for linux/amd64.
    async fn manifest(&self) -> Result<(String, Raw), PullError> {
        let raw = self.raw(&self.image).await?;
        let named = raw.digest.clone();
        let kind: serde_json::Value = self.parse("the manifest", &raw.bytes)?;
        if kind.get("manifests").is_none() {
            return Ok((named, raw));
        }
        let index: Index = self.parse("the index", &raw.bytes)?;
        let chosen = choose(&index.manifests).ok_or_else(|| PullError::Platform {
            image: self.image.to_string(),
            has: platforms(&index.manifests),
        })?;
        sha256(&chosen.digest)?;
        let chosen = self.image.clone_with_digest(chosen.digest.clone());
        Ok((named, self.raw(&chosen).await?))
    }

    /// Either what the name leads to is signed, an index with all its images, or this image of it.
    async fn must_be_signed(
        &self,
        keys: &[Key],
        named: &str,
        chosen: &str,
    ) -> Result<(), PullError> {
        let (image, keys_named) = (self.image.to_string(), signature::names(keys));
        let (mut count, mut other) = (0, None);
        for digest in [named, chosen] {
            for (payload, signed) in self.signatures(digest).await? {
                count += 1;
                match signature::judge(keys, digest, &payload, &signed) {
                    Finding::Good => return Ok(()),
                    Finding::Other(signed) => other = Some(signed),
                    Finding::Foreign => {}
                }
            }
        }
        let digest = chosen.to_owned();
        Err(match (other, count) {
            (Some(signed), _) => PullError::SignedOther {
                image,
                keys: keys_named,
                signed,
                digest,
            },
            (None, 0) => PullError::Unsigned {
                image,
                registry: self.registry(),
                digest: named.to_owned(),
                keys: keys_named,
            },
            (None, count) => PullError::Foreign {
                image,
                count,
                keys: keys_named,
            },
        })
    }

    /// Payloads and signatures that stand beside a manifest.
    async fn signatures(&self, digest: &str) -> Result<Vec<(Vec<u8>, String)>, PullError> {
        let mut place = oci_client::Reference::with_tag(
            self.image.registry().to_owned(),
            self.image.repository().to_owned(),
            signature::tag(digest),
        );
        if self.image.resolve_registry() != place.resolve_registry() {
            place.set_mirror_registry(self.image.resolve_registry().to_owned());
        }
        let raw = match self.raw(&place).await {
            Err(PullError::NotFound { .. }) => return Ok(Vec::new()),
            other => other?,
        };
        let manifest: Signatures = self.parse("the manifest of its signatures", &raw.bytes)?;
        let mut found = Vec::new();
        let layers = manifest.layers.iter().take(signature::SIGNATURES_MAX);
        for layer in layers.filter(|layer| layer.media_type == signature::PAYLOAD) {
            let Some(signed) = layer.annotations.get(signature::ANNOTATION) else {
                continue;
            };
            if layer.size <= signature::PAYLOAD_BYTES_MAX {
                found.push((
                    self.small_blob(&layer.digest, layer.size).await?,
                    signed.clone(),
                ));
            }
        }
        Ok(found)
    }

    /// A blob in memory, and no more of it than its manifest says. Nobody compares its digest: it is signed, or nothing.
    async fn small_blob(&self, digest: &str, bytes: u64) -> Result<Vec<u8>, PullError> {
        sha256(digest)?;
        let layer = LayerDescriptor {
            digest,
            urls: &None,
        };
        let answer = self.client.pull_blob_stream(&self.image, &layer).await;
        let SizedStream { mut stream, .. } = answer.map_err(|error| self.failed(error))?;
        let mut blob = Vec::new();
        while let Some(piece) = stream.next().await {
            let piece = piece.map_err(|error| self.failed(Oci::IoError(error)))?;
            blob.extend_from_slice(&piece);
            if blob.len() as u64 > bytes {
                return Err(self.large("a signature longer than it says".to_owned(), bytes));
            }
        }
        Ok(blob)
    }

    /// The library compares the bytes with the digest, where the reference has one.
    async fn raw(&self, image: &oci_client::Reference) -> Result<Raw, PullError> {
        let got = self
            .client
            .pull_manifest_raw(image, &self.terms.auth, &ACCEPTED)
            .await;
        let (bytes, _) = got.map_err(|error| self.failed(error))?;
        if bytes.len() > MANIFEST_BYTES_MAX {
            return Err(self.large(
                format!("a manifest of {} bytes", bytes.len()),
                MANIFEST_BYTES_MAX as u64,
            ));
        }
        #[derive(Deserialize)]
        struct Typed {
            #[serde(default, rename = "mediaType")]
            media_type: Option<String>,
        }
        let typed: Typed = self.parse("the manifest", &bytes)?;
        Ok(Raw {
            digest: format!("sha256:{}", hex(&Sha256::digest(&bytes))),
            media_type: typed
                .media_type
                .unwrap_or_else(|| OCI_IMAGE_MEDIA_TYPE.to_owned()),
            bytes: bytes.to_vec(),
        })
    }

    fn parse<T: for<'a> Deserialize<'a>>(
        &self,
        what: &'static str,
        bytes: &[u8],
    ) -> Result<T, PullError> {
        serde_json::from_slice(bytes).map_err(|source| PullError::Manifest {
            what,
            image: self.image.to_string(),
            source,
        })
    }

    fn large(&self, what: String, most: u64) -> PullError {
        PullError::Large {
            image: self.image.to_string(),
            what,
            most,
        }
    }

    /// Digest in hexadecimal and length of all that has to come.
    fn blobs(&self, manifest: &Manifest) -> Result<BTreeMap<String, u64>, PullError> {
        if manifest.layers.len() > LAYERS_MAX {
            return Err(self.large(
                format!("{} layers", manifest.layers.len()),
                LAYERS_MAX as u64,
            ));
        }
        let mut blobs = BTreeMap::new();
        let mut total: u64 = 0;
        for descriptor in manifest.layers.iter().chain([&manifest.config]) {
            total = total.saturating_add(descriptor.size);
            blobs.insert(sha256(&descriptor.digest)?.to_owned(), descriptor.size);
        }
        if total > IMAGE_BYTES_MAX {
            return Err(self.large(format!("{total} bytes"), IMAGE_BYTES_MAX));
        }
        Ok(blobs)
    }

    /// One blob into a file. A download that is cut goes on where it was.
    async fn blob(
        &self,
        hex: &str,
        bytes: u64,
        path: &Path,
        tally: &Tally<'_, '_>,
    ) -> Result<(), PullError> {
        let mut draft = Draft::new(path).map_err(|source| PullError::Write {
            path: path.to_owned(),
            source,
        })?;
        let mut tries = 1;
        while draft.at < bytes {
            let before = draft.at;
            let error = match self.part(hex, bytes, &mut draft, tally).await {
                Ok(()) => continue,
                Err(Cut::Local(source)) => {
                    return Err(PullError::Write {
                        path: path.to_owned(),
                        source,
                    });
                }
                Err(Cut::Remote(error)) => error,
            };
            if !may_pass(&error) {
                return Err(self.failed(error));
            }
            if draft.at - before >= PROGRESS_MIN {
                tries = 1;
                continue;
            }
            if tries == TRIES_MAX {
                return Err(self.failed(error));
            }
            tokio::time::sleep(PAUSE * 2u32.pow(tries - 1)).await;
            tries += 1;
        }
        draft
            .finish(hex)
            .map_err(|source| PullError::Write {
                path: path.to_owned(),
                source,
            })?
            .then_some(())
            .ok_or_else(|| PullError::Damaged {
                registry: self.registry(),
                digest: format!("sha256:{hex}"),
            })
    }

    /// What comes of a blob in one answer, from where the draft ends.
    async fn part(
        &self,
        hex: &str,
        bytes: u64,
        draft: &mut Draft,
        tally: &Tally<'_, '_>,
    ) -> Result<(), Cut> {
        let digest = format!("sha256:{hex}");
        // Without the addresses that a manifest may name: they lead anywhere.
        let layer = LayerDescriptor {
            digest: &digest,
            urls: &None,
        };
        let answer = self
            .client
            .pull_blob_stream_partial(&self.image, &layer, draft.at, None)
            .await;
        let (SizedStream { mut stream, .. }, mut known) = match answer.map_err(Cut::Remote)? {
            BlobResponse::Partial(stream) => (stream, 0),
            // From the beginning again.
            BlobResponse::Full(stream) => (stream, draft.at),
        };
        while draft.at < bytes {
            let Some(piece) = stream.next().await else {
                return Err(Cut::Remote(Oci::IoError(
                    io::ErrorKind::UnexpectedEof.into(),
                )));
            };
            let piece = piece.map_err(|error| Cut::Remote(Oci::IoError(error)))?;
            let skipped = known.min(piece.len() as u64);
            known -= skipped;
            let piece = &piece[usize::try_from(skipped).expect("in a piece")..];
            // More than the manifest says is not asked for: the digest tells whether what came is right.
            let wanted = usize::try_from(bytes - draft.at)
                .unwrap_or(usize::MAX)
                .min(piece.len());
            draft.add(&piece[..wanted]).map_err(Cut::Local)?;
            tally.add(wanted as u64);
        }
        Ok(())
    }
}

/// Why an answer ended early.
enum Cut {
    Local(io::Error),
    Remote(Oci),
}

/// Whether the same request may have another end: a broken line, a busy server.
fn may_pass(error: &Oci) -> bool {
    match error {
        Oci::IoError(_) => true,
        Oci::RequestError(error) => error.status().is_none_or(|status| status.is_server_error()),
        Oci::ServerError { code, .. } => *code >= 500 || *code == 429,
        Oci::RegistryError { envelope, .. } => envelope
            .errors
            .iter()
            .any(|e| e.code == OciErrorCode::Toomanyrequests),
        _ => false,
    }
}

/// What has come of a blob.
struct Draft {
    file: File,
    hasher: Sha256,
    at: u64,
}

impl Draft {
    /// In the place of what an earlier place left.
    fn new(path: &Path) -> io::Result<Self> {
        Ok(Self {
            file: File::create(path)?,
            hasher: Sha256::new(),
            at: 0,
        })
    }

    fn add(&mut self, piece: &[u8]) -> io::Result<()> {
        self.file.write_all(piece)?;
        self.hasher.update(piece);
        self.at += piece.len() as u64;
        Ok(())
    }

    /// Whether all of it has this digest.
    fn finish(self, expected: &str) -> io::Result<bool> {
        Ok(hex(&self.hasher.finalize()) == expected)
    }
}

struct Tally<'a, 'b> {
    total_bytes: u64,
    done_bytes: RefCell<u64>,
    report: &'a RefCell<&'b mut dyn FnMut(Progress)>,
}

impl Tally<'_, '_> {
    fn add(&self, bytes: u64) {
        let mut done = self.done_bytes.borrow_mut();
        *done += bytes;
        let progress = Progress {
            total_bytes: self.total_bytes,
            done_bytes: *done,
        };
        (self.report.borrow_mut())(progress);
    }
}

/// The one for linux/amd64; the plain one, where there are others for newer processors only.
fn choose(manifests: &[Descriptor]) -> Option<&Descriptor> {
    let fits = |d: &&Descriptor| {
        let of = d.platform.as_ref();
        of.is_some_and(|p| p.os == "linux" && p.architecture == "amd64")
    };
    let plain = |d: &&Descriptor| {
        let variant = d.platform.as_ref().and_then(|p| p.variant.as_deref());
        matches!(variant, None | Some("" | "v1"))
    };
    let fitting = || manifests.iter().filter(fits);
    fitting().find(plain).or_else(|| fitting().next())
}

fn platforms(manifests: &[Descriptor]) -> String {
    let mut names: Vec<String> = manifests
        .iter()
        .filter_map(|d| d.platform.as_ref())
        // Attestations say so.
        .filter(|p| p.os != "unknown")
        .map(|p| format!("{}/{}", p.os, p.architecture))
        .collect();
    names.sort();
    names.dedup();
    if names.is_empty() {
        "nothing that it names".to_owned()
    } else {
        names.join(", ")
    }
}

/// The hexadecimal part of a digest.
fn sha256(digest: &str) -> Result<&str, PullError> {
    let hex = digest.strip_prefix("sha256:");
    let plain =
        |hex: &&str| hex.len() == 64 && hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    hex.filter(plain)
        .ok_or_else(|| PullError::Digest(digest.to_owned()))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Makes the directory an OCI image layout of this one image, last.
fn describe(layout: &Path, raw: &Raw) -> Result<(), PullError> {
    let index = json!({
        "schemaVersion": 2,
        "manifests": [{ "mediaType": raw.media_type, "digest": raw.digest, "size": raw.bytes.len() }],
    })
    .to_string();
    let manifest = format!("blobs/{}", raw.digest.replace(':', "/"));
    let files: [(&str, &[u8]); 3] = [
        (&manifest, &raw.bytes),
        ("index.json", index.as_bytes()),
        ("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#),
    ];
    for (name, content) in files {
        let path = layout.join(name);
        fs::write(&path, content).map_err(|source| PullError::Write { path, source })?;
    }
    Ok(())
}

#[cfg(test)]
#[path = "pull_tests.rs"]
mod tests;
