//! Ed25519 keys: making, keeping, signing, verifying.
//!
//! Owns: the secret key and its file (text, mode 0600).
//! Refuses: to show a secret in a debug print, weak public keys, and signatures that more than one
//! message could share (RFC 8032 strictly).

use std::ffi::OsString;
use std::fmt;
use std::fs::{self, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};
use types::{Digest, PublicKey};

/// First word of a key file; the seed in hexadecimal is the second.
const KEY_FILE_TAG: &str = "sifr-key-v1";
/// Longest key file that is read: the line is 76 bytes, the rest is room for an editor's line ends.
const KEY_FILE_MAX: u64 = 256;

#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    #[error("the kernel gave no random bytes for a new key")]
    Random(#[source] getrandom::Error),
    #[error(
        "cannot read the key file {path}: make one with `sifr key new`, or name another with --identity"
    )]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot write the key file {path}")]
    Write {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{path} already exists: a key is never overwritten, move it away first")]
    Exists { path: PathBuf },
    #[error("the key file {path} can be read by others (mode {mode:04o}): run `chmod 600 {path}`")]
    Open { path: PathBuf, mode: u32 },
    #[error("a key file is one line: \"{KEY_FILE_TAG}\" and 64 lower-case hexadecimal digits")]
    Form,
    #[error("the key file {path} is damaged")]
    Damaged {
        path: PathBuf,
        #[source]
        source: Box<KeyError>,
    },
}

/// The signature does not belong to the key and the bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the signature does not match the bytes and the key")]
pub struct BadSignature;

/// A secret key. Zeroised when dropped (by `ed25519_dalek`).
pub struct SecretKey(SigningKey);

impl SecretKey {
    pub fn generate() -> Result<Self, KeyError> {
        let mut seed = [0; 32];
        getrandom::fill(&mut seed).map_err(KeyError::Random)?;
        Ok(Self::from_seed(seed))
    }

    pub fn from_seed(seed: [u8; 32]) -> Self {
        Self(SigningKey::from_bytes(&seed))
    }

    /// The 32 secret bytes: for storage only.
    pub fn seed(&self) -> &[u8; 32] {
        self.0.as_bytes()
    }

    pub fn public(&self) -> PublicKey {
        PublicKey(self.0.verifying_key().to_bytes())
    }

    pub fn sign(&self, message: &[u8]) -> [u8; 64] {
        self.0.sign(message).to_bytes()
    }

    /// The key file's content.
    pub fn to_text(&self) -> String {
        // A digest's text is the house's only 32-byte hexadecimal form.
        format!("{KEY_FILE_TAG} {}\n", Digest(*self.seed()).hex())
    }

    pub fn from_text(text: &str) -> Result<Self, KeyError> {
        let line = text.strip_suffix('\n').unwrap_or(text);
        let digits = line
            .strip_prefix(KEY_FILE_TAG)
            .and_then(|rest| rest.strip_prefix(' '));
        let seed = digits
            .and_then(|digits| Digest::from_hex(digits).ok())
            .ok_or(KeyError::Form)?;
        Ok(Self::from_seed(seed.0))
    }

    /// Reads a key file that nobody but its owner can read.
    pub fn load(path: &Path) -> Result<Self, KeyError> {
        let read = |source| KeyError::Read {
            path: path.to_owned(),
            source,
        };
        let file = fs::File::open(path).map_err(read)?;
        let mode = file.metadata().map_err(read)?.permissions().mode() & 0o7777;
        if mode & 0o077 != 0 {
            return Err(KeyError::Open {
                path: path.to_owned(),
                mode,
            });
        }
        let mut text = String::new();
        file.take(KEY_FILE_MAX)
            .read_to_string(&mut text)
            .map_err(read)?;
        Self::from_text(&text).map_err(|source| KeyError::Damaged {
            path: path.to_owned(),
            source: Box::new(source),
        })
    }

    /// Writes a new key file with mode 0600, whole and on disk when this returns: it is written beside its
    /// name and then linked, so that a power cut leaves a key or none. An existing file is never touched.
    pub fn save(&self, path: &Path) -> Result<(), KeyError> {
        let write = |source| KeyError::Write {
            path: path.to_owned(),
            source,
        };
        let beside = beside(path).map_err(write)?;
        let linked = self
            .write_new(&beside)
            .and_then(|()| fs::hard_link(&beside, path));
        // Whatever came of it, the secret stands under one name at most.
        let _ = fs::remove_file(&beside);
        linked.map_err(|source| match source.kind() {
            io::ErrorKind::AlreadyExists => KeyError::Exists {
                path: path.to_owned(),
            },
            _ => write(source),
        })?;
        let directory = path.parent().filter(|d| !d.as_os_str().is_empty());
        fs::File::open(directory.unwrap_or(Path::new(".")))
            .and_then(|directory| directory.sync_all())
            .map_err(write)
    }

    fn write_new(&self, path: &Path) -> io::Result<()> {
        // Left by a process of this number that was killed half-way.
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)?;
        file.write_all(self.to_text().as_bytes())?;
        file.sync_all()
    }
}

/// A name in the same directory that no other process uses.
fn beside(path: &Path) -> io::Result<PathBuf> {
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    let mut hidden = OsString::from(".");
    hidden.push(name);
    hidden.push(format!("-{}", std::process::id()));
    Ok(path.with_file_name(hidden))
}

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SecretKey(of {})", self.public())
    }
}

/// Verifies strictly: no weak key, no malleable signature.
pub fn verify(key: &PublicKey, message: &[u8], signature: &[u8; 64]) -> Result<(), BadSignature> {
    let key = VerifyingKey::from_bytes(&key.0).map_err(|_| BadSignature)?;
    key.verify_strict(message, &Signature::from_bytes(signature))
        .map_err(|_| BadSignature)
}

/// Whether the bytes are a point on the curve, and not one of the few that sign everything.
pub fn is_sound(key: &PublicKey) -> bool {
    VerifyingKey::from_bytes(&key.0).is_ok_and(|key| !key.is_weak())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_holds_for_its_key_and_bytes_alone() {
        let key = SecretKey::from_seed([7; 32]);
        let signature = key.sign(b"bytes");
        assert_eq!(verify(&key.public(), b"bytes", &signature), Ok(()));
        assert_eq!(
            verify(&key.public(), b"Bytes", &signature),
            Err(BadSignature)
        );
        let other = SecretKey::from_seed([8; 32]).public();
        assert_eq!(verify(&other, b"bytes", &signature), Err(BadSignature));
    }

    #[test]
    fn rfc_8032_test_2_signs_as_printed() {
        let seed = "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb";
        let key = SecretKey::from_seed(Digest::from_hex(seed).expect("hexadecimal").0);
        let public = "ed25519:3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c";
        assert_eq!(key.public().to_string(), public);
        assert_eq!(key.sign(&[0x72])[..4], [0x92, 0xa0, 0x09, 0xa9]);
    }

    #[test]
    fn a_weak_key_verifies_nothing() {
        // The identity point: with it a fixed signature would fit every message.
        let mut identity = [0; 32];
        identity[0] = 1;
        let mut signature = [0; 64];
        signature[0] = 1;
        assert_eq!(
            verify(&PublicKey(identity), b"anything", &signature),
            Err(BadSignature)
        );
        assert!(!is_sound(&PublicKey(identity)));
        assert!(is_sound(&SecretKey::from_seed([1; 32]).public()));
    }

    #[test]
    fn a_debug_print_shows_no_secret() {
        let key = SecretKey::from_seed([0xab; 32]);
        assert!(!format!("{key:?}").contains("abab"));
    }

    #[test]
    fn a_key_file_reads_back_and_is_private() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("key");
        let key = SecretKey::generate().expect("a key");
        key.save(&path).expect("a new file");
        assert_eq!(
            SecretKey::load(&path).expect("a good file").seed(),
            key.seed()
        );
        assert!(matches!(key.save(&path), Err(KeyError::Exists { .. })));
        assert_eq!(names(directory.path()), ["key"]);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).expect("chmod");
        let error = SecretKey::load(&path).expect_err("an open file");
        assert!(error.to_string().contains("chmod 600"), "{error}");
    }

    fn names(directory: &Path) -> Vec<String> {
        let entries = fs::read_dir(directory).expect("a directory");
        let name = |entry: io::Result<fs::DirEntry>| entry.expect("an entry").file_name();
        entries
            .map(|entry| name(entry).to_string_lossy().into_owned())
            .collect()
    }

    #[test]
    fn what_a_killed_process_left_beside_the_key_is_no_obstacle() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("key");
        fs::write(beside(&path).expect("a name"), "sifr-key").expect("half a key");
        let key = SecretKey::generate().expect("a key");
        key.save(&path).expect("a new file");
        assert_eq!(SecretKey::load(&path).expect("a key").seed(), key.seed());
        assert_eq!(names(directory.path()), ["key"]);
    }

    /// The name appears with the whole key behind it: who looks at any time finds a key or nothing.
    #[test]
    fn a_key_file_is_never_seen_half_written() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("key");
        let over = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !over.load(std::sync::atomic::Ordering::Relaxed) {
                    match SecretKey::load(&path) {
                        Ok(_) => {}
                        Err(KeyError::Read { source, .. }) => {
                            assert_eq!(source.kind(), io::ErrorKind::NotFound);
                        }
                        Err(error) => panic!("{error}"),
                    }
                }
            });
            for n in 0..50 {
                SecretKey::from_seed([n; 32]).save(&path).expect("saved");
                fs::remove_file(&path).expect("removed");
            }
            over.store(true, std::sync::atomic::Ordering::Relaxed);
        });
    }

    #[test]
    fn a_damaged_key_file_is_refused() {
        let good = SecretKey::from_seed([3; 32]).to_text();
        assert!(SecretKey::from_text(&good).is_ok());
        for bad in [
            "",
            "sifr-key-v1",
            &good[..40],
            &good.to_uppercase(),
            &format!("{good}\n"),
            &good[1..],
        ] {
            assert!(
                matches!(SecretKey::from_text(bad), Err(KeyError::Form)),
                "{bad:?}"
            );
        }
    }
}
