//! Signatures of images, as cosign makes them with a key: "simple signing".
//!
//! The signatures of the manifest `sha256:<hex>` are the layers of the manifest with the tag `sha256-<hex>.sig`: each is a
//! JSON text that names the manifest's digest, and has its signature in an annotation.
//!
//! Owns: which images must be signed and by whom, public keys, and what a signature says.
//! Refuses: certificates, transparency logs and bundles: a key is what one has, or has not.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use base64::prelude::{BASE64_STANDARD, Engine as _};
use ring::signature::{ECDSA_P256_SHA256_ASN1, ED25519, UnparsedPublicKey, VerificationAlgorithm};
use rustls::pki_types::SubjectPublicKeyInfoDer;
use rustls::pki_types::pem::PemObject as _;
use serde::Deserialize;

use crate::Reference;

pub(crate) const ANNOTATION: &str = "dev.cosignproject.cosign/signature";
pub(crate) const PAYLOAD: &str = "application/vnd.dev.cosign.simplesigning.v1+json";
/// Longest payload: a digest, a name and a few annotations.
pub(crate) const PAYLOAD_BYTES_MAX: u64 = 64 << 10;
/// Most signatures that are looked at; an image has one, or one of each of a few people.
pub(crate) const SIGNATURES_MAX: usize = 64;
/// Longest key file, and longest policy.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// Stands for all images in a policy.
const ALL: &str = "*";

/// RFC 5480: a subject's public key on the curve P-256, up to the uncompressed point.
const P256: [u8; 26] = [
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a,
    0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
];
const P256_POINT: usize = 65;
/// RFC 8410: the same of Ed25519, up to the key.
const ED: [u8; 12] = [
    0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00,
];
const ED_KEY: usize = 32;

#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    #[error("read {}", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{} is no policy: write {{\"ghcr.io/team\": [\"team.pub\"]}}, with * for all images", path.display())]
    Form {
        path: PathBuf,
        #[source]
        source: serde_json::Error,
    },
    #[error("{} names no key for {image:?}", path.display())]
    NoKey { path: PathBuf, image: String },
    #[error("{} is no public key in PEM form, ECDSA on P-256 or Ed25519, as `cosign public-key` writes it", path.display())]
    Key { path: PathBuf },
}

/// A public key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key {
    bytes: Vec<u8>,
    is_p256: bool,
    /// What a person calls it: its file.
    name: String,
}

impl Key {
    pub fn read(path: &Path) -> Result<Self, PolicyError> {
        let text = text(path)?;
        let name = path.display().to_string();
        Self::parse(text.as_bytes(), name).ok_or_else(|| PolicyError::Key {
            path: path.to_owned(),
        })
    }

    fn parse(pem: &[u8], name: String) -> Option<Self> {
        let der = SubjectPublicKeyInfoDer::from_pem_slice(pem).ok()?;
        let point = der.strip_prefix(&P256).filter(|p| p.len() == P256_POINT);
        let (bytes, is_p256) = match point {
            Some(point) => (point, true),
            None => (der.strip_prefix(&ED).filter(|k| k.len() == ED_KEY)?, false),
        };
        Some(Self {
            bytes: bytes.to_vec(),
            is_p256,
            name,
        })
    }

    fn has_signed(&self, payload: &[u8], signature: &[u8]) -> bool {
        let algorithm: &dyn VerificationAlgorithm = if self.is_p256 {
            &ECDSA_P256_SHA256_ASN1
        } else {
            &ED25519
        };
        let key = UnparsedPublicKey::new(algorithm, &self.bytes);
        key.verify(payload, signature).is_ok()
    }
}

fn text(path: &Path) -> Result<String, PolicyError> {
    let failed = |source| PolicyError::Read {
        path: path.to_owned(),
        source,
    };
    if fs::metadata(path).map_err(failed)?.len() > FILE_BYTES_MAX {
        return Err(failed(io::ErrorKind::FileTooLarge.into()));
    }
    fs::read_to_string(path).map_err(failed)
}

/// Which images must be signed, and by whom: by any of these keys.
#[derive(Debug, Clone, Default)]
pub struct Policy {
    rules: BTreeMap<String, Vec<Key>>,
}

impl Policy {
    /// All images, by one of these keys. None: nothing must be signed.
    pub fn for_all(keys: Vec<Key>) -> Self {
        let rule = (ALL.to_owned(), keys);
        Self {
            rules: [rule]
                .into_iter()
                .filter(|(_, keys)| !keys.is_empty())
                .collect(),
        }
    }

    /// From a file; the files of keys are beside it. Without the file nothing must be signed.
    pub fn read(path: &Path) -> Result<Self, PolicyError> {
        if !path.exists() {
            return Ok(Self::default());
        }
        let named: BTreeMap<String, Vec<PathBuf>> =
            serde_json::from_str(&text(path)?).map_err(|source| PolicyError::Form {
                path: path.to_owned(),
                source,
            })?;
        let beside = path.parent().unwrap_or(Path::new(""));
        let mut rules = BTreeMap::new();
        for (image, files) in named {
            if files.is_empty() {
                let path = path.to_owned();
                return Err(PolicyError::NoKey { path, image });
            }
            let keys = files.iter().map(|file| Key::read(&beside.join(file)));
            let keys = keys.collect::<Result<_, _>>()?;
            rules.insert(image.trim_end_matches('/').to_owned(), keys);
        }
        Ok(Self { rules })
    }

    /// By whom it must be signed: what the longest rule says that names it. Empty: by nobody.
    pub(crate) fn keys(&self, image: &Reference) -> &[Key] {
        let name = format!("{}/{}", image.0.registry(), image.0.repository());
        let names = |rule: &str| {
            let rest = name.strip_prefix(rule);
            rule == ALL || rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        let naming = self.rules.iter().filter(|(rule, _)| names(rule));
        let longest = naming.max_by_key(|(rule, _)| if *rule == ALL { 0 } else { rule.len() });
        longest.map_or(&[], |(_, keys)| keys)
    }
}

/// What a signature turned out to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Finding {
    Good,
    /// By one of the keys, for that other digest.
    Other(String),
    /// By none of the keys, or no signature at all.
    Foreign,
}

#[derive(Deserialize)]
struct Payload {
    critical: Critical,
}

#[derive(Deserialize)]
struct Critical {
    image: Signed,
    #[serde(rename = "type")]
    kind: String,
}

#[derive(Deserialize)]
struct Signed {
    #[serde(rename = "docker-manifest-digest")]
    digest: String,
}

/// Looks at one signature of a manifest. The payload is understood only once its signature holds.
pub(crate) fn judge(keys: &[Key], digest: &str, payload: &[u8], signature: &str) -> Finding {
    let Ok(signature) = BASE64_STANDARD.decode(signature) else {
        return Finding::Foreign;
    };
    if !keys.iter().any(|key| key.has_signed(payload, &signature)) {
        return Finding::Foreign;
    }
    match serde_json::from_slice::<Payload>(payload) {
        Ok(said) if said.critical.kind != "cosign container image signature" => Finding::Foreign,
        Ok(said) if said.critical.image.digest == digest => Finding::Good,
        Ok(said) => Finding::Other(said.critical.image.digest),
        Err(_) => Finding::Foreign,
    }
}

/// The names of keys, for a person.
pub(crate) fn names(keys: &[Key]) -> String {
    let names: Vec<&str> = keys.iter().map(|key| key.name.as_str()).collect();
    names.join(" or ")
}

/// The tag under which cosign keeps the signatures of a manifest.
pub(crate) fn tag(digest: &str) -> String {
    format!("{}.sig", digest.replace(':', "-"))
}

#[cfg(test)]
#[path = "signature_tests.rs"]
pub(crate) mod tests;
