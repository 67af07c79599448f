//! Names and identities: deployment and workload names, VM ids, public keys, content digests.
//!
//! Owns: their one text form and its checks. Refuses: any other spelling of the same thing.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Longest name: one DNS label (RFC 1035 section 2.3.4), because names become host names.
pub const NAME_MAX: usize = 63;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    #[error(
        "name {0:?} is not a DNS label: use 1 to 63 of a-z, 0-9 and '-', beginning with a letter and not ending in '-'"
    )]
    Name(String),
    #[error("VM id {0:?} is not 1 to 80 of a-z, 0-9 and '-'")]
    VmId(String),
    #[error("digest {0:?} is not \"blake3:\" followed by 64 lower-case hexadecimal digits")]
    Digest(String),
    #[error("public key {0:?} is not \"ed25519:\" followed by 64 lower-case hexadecimal digits")]
    PublicKey(String),
}

/// The name of a deployment or workload: a DNS label.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(String);

impl Name {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Name {
    type Err = IdError;
    fn from_str(s: &str) -> Result<Self, IdError> {
        let label = s
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
        let edges = s.bytes().next().is_some_and(|b| b.is_ascii_lowercase()) && !s.ends_with('-');
        if label && edges && s.len() <= NAME_MAX {
            Ok(Self(s.to_owned()))
        } else {
            Err(IdError::Name(s.to_owned()))
        }
    }
}

/// One virtual machine on one node: `<workload>-<deployment>-<8 hex of the signer's key>`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VmId(String);

impl VmId {
    /// Longest id: two names, eight digits and two hyphens, cut to fit a cgroup and file name.
    pub const MAX: usize = 80;

    pub fn new(signer: &PublicKey, deployment: &Name, workload: &Name) -> Self {
        let key = hex(&signer.0[..4]);
        // Long names are cut so that the key part, which keeps tenants apart, always fits. A cut name
        // could collide with another, so its digest-like length suffix is left to the caller's check
        // that ids are unique (`workload::admission`).
        let (w, d) = (
            &workload.0[..workload.0.len().min(34)],
            &deployment.0[..deployment.0.len().min(34)],
        );
        Self(format!("{w}-{d}-{key}"))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for VmId {
    type Err = IdError;
    fn from_str(s: &str) -> Result<Self, IdError> {
        let fine = s
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
        if fine && !s.is_empty() && s.len() <= Self::MAX {
            Ok(Self(s.to_owned()))
        } else {
            Err(IdError::VmId(s.to_owned()))
        }
    }
}

/// One volume on one node: named as a machine of that name would be, and no two workloads of a deployment share one.
pub type VolumeId = VmId;

/// A BLAKE3 content address, 32 bytes. Text: `blake3:` and 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest(pub [u8; 32]);

impl Digest {
    /// The 64 digits alone, as used in file names and URLs.
    pub fn hex(&self) -> String {
        hex(&self.0)
    }
    /// Reads the 64 digits alone.
    pub fn from_hex(s: &str) -> Result<Self, IdError> {
        unhex(s)
            .map(Self)
            .ok_or_else(|| IdError::Digest(s.to_owned()))
    }
}

impl FromStr for Digest {
    type Err = IdError;
    fn from_str(s: &str) -> Result<Self, IdError> {
        s.strip_prefix("blake3:")
            .and_then(unhex)
            .map(Self)
            .ok_or_else(|| IdError::Digest(s.to_owned()))
    }
}

/// An ed25519 public key (RFC 8032), which is also the fingerprint: it is short enough to compare
/// whole. Text: `ed25519:` and 64 hexadecimal digits. Not checked to be a point on the curve here:
/// `api::sign` does that before it verifies with it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PublicKey(pub [u8; 32]);

impl FromStr for PublicKey {
    type Err = IdError;
    fn from_str(s: &str) -> Result<Self, IdError> {
        s.strip_prefix("ed25519:")
            .and_then(unhex)
            .map(Self)
            .ok_or_else(|| IdError::PublicKey(s.to_owned()))
    }
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    use fmt::Write;
    bytes
        .iter()
        .fold(String::with_capacity(bytes.len() * 2), |mut out, b| {
            write!(out, "{b:02x}").expect("writing to a String cannot fail");
            out
        })
}

pub(crate) fn unhex(s: &str) -> Option<[u8; 32]> {
    let digit = |b: u8| match b {
        b'0'..=b'9' => Some(b - b'0'),
        b'a'..=b'f' => Some(b - b'a' + 10),
        _ => None,
    };
    let bytes: &[u8; 64] = s.as_bytes().try_into().ok()?;
    let mut out = [0; 32];
    for (o, pair) in out.iter_mut().zip(bytes.chunks_exact(2)) {
        *o = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(out)
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for VmId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "blake3:{}", hex(&self.0))
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ed25519:{}", hex(&self.0))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Serde through the text form, so that JSON and YAML show what the console shows.
macro_rules! serde_as_text {
    ($($type:ty),*) => {$(
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.collect_str(self)
            }
        }
        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
            }
        }
    )*};
}
pub(crate) use serde_as_text;

serde_as_text!(Name, VmId, Digest, PublicKey);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_a_dns_label() {
        for good in ["a", "shop", "web-1", &"a".repeat(63)] {
            assert_eq!(
                good.parse::<Name>().map(|n| n.to_string()),
                Ok(good.to_owned())
            );
        }
        for bad in [
            "",
            "-a",
            "a-",
            "A",
            "1a",
            "a.b",
            "a/b",
            "ä",
            &"a".repeat(64),
        ] {
            assert_eq!(bad.parse::<Name>(), Err(IdError::Name(bad.to_owned())));
        }
    }

    #[test]
    fn a_digest_and_a_key_have_one_text_form_each() {
        let digest = Digest([0xab; 32]);
        assert_eq!(digest.to_string().parse(), Ok(digest));
        assert!(digest.to_string().to_uppercase().parse::<Digest>().is_err());
        assert_eq!(Digest::from_hex(&digest.hex()), Ok(digest));
        let key = PublicKey([7; 32]);
        assert_eq!(key.to_string().parse(), Ok(key));
        assert!(digest.to_string().parse::<PublicKey>().is_err());
    }

    #[test]
    fn vm_ids_of_the_longest_names_fit() {
        let long: Name = "a".repeat(63).parse().expect("a valid name");
        let id = VmId::new(&PublicKey([255; 32]), &long, &long);
        assert_eq!(id.to_string().parse(), Ok(id));
    }
}
