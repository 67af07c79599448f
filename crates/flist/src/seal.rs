//! Encrypted chunks: each under a key made of its own bytes and a tenant's salt.
//!
//! Owns: the salt, how a key is made of it, sealing and opening (docs/flist-format.md, "Encrypted chunks").
//! Refuses: keeping keys (they are in the flist) and salts (they are in a file of whoever packs).

use std::fmt;

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};

/// What a sealed chunk is longer than its content: the tag.
pub const TAG_BYTES: usize = 16;
/// Says what the salt is used for, so that no other use of it ever gives the same bytes.
const CONTEXT: &str = "sifr flist 1: keys of chunks";

/// A tenant's secret. Whoever has it and a file can tell whether the file is in a store.
#[derive(Clone, PartialEq, Eq)]
pub struct Salt([u8; 32]);

impl Salt {
    pub fn new(secret: [u8; 32]) -> Self {
        Self(secret)
    }

    /// The key of one chunk: the same bytes under the same salt have the same key, and so the same
    /// ciphertext, which is what lets a tenant's images share chunks. Other bytes have another key, and
    /// so no key ever seals two messages.
    pub(crate) fn key_of(&self, encoded: &[u8]) -> Key {
        let derived = blake3::derive_key(CONTEXT, &self.0);
        Key(blake3::keyed_hash(&derived, encoded).into())
    }

    /// The key of any bytes and the bytes sealed with it, as a packer makes them that follows no other rule.
    pub fn sealed(&self, encoded: &[u8]) -> (Key, Vec<u8>) {
        let (key, mut bytes) = (self.key_of(encoded), encoded.to_vec());
        key.seal(&mut bytes);
        (key, bytes)
    }
}

impl fmt::Debug for Salt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Salt(secret)")
    }
}

/// Opens one chunk.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Key(pub(crate) [u8; 32]);

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(secret)")
    }
}

/// The tag does not belong to these bytes under this key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Broken;

impl Key {
    fn cipher(&self) -> LessSafeKey {
        let key = UnboundKey::new(&AES_256_GCM, &self.0);
        LessSafeKey::new(key.expect("a key of 32 bytes is one of AES-256"))
    }

    /// Always the same: the key is of this one message.
    fn nonce() -> Nonce {
        Nonce::assume_unique_for_key([0; NONCE_LEN])
    }

    /// Encrypts in place and appends the tag.
    pub(crate) fn seal(&self, bytes: &mut Vec<u8>) {
        let sealed = self
            .cipher()
            .seal_in_place_append_tag(Self::nonce(), Aad::empty(), bytes);
        sealed.expect("a chunk is far shorter than what GCM can seal");
    }

    /// Decrypts in place and removes the tag.
    pub(crate) fn open(&self, bytes: &mut Vec<u8>) -> Result<(), Broken> {
        let opened = self
            .cipher()
            .open_in_place(Self::nonce(), Aad::empty(), bytes);
        let length = opened.map_err(|_| Broken)?.len();
        bytes.truncate(length);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_salt_gives_one_ciphertext_and_another_salt_another() {
        let seal = |salt: u8, content: &[u8]| {
            let mut bytes = content.to_vec();
            Salt::new([salt; 32]).key_of(content).seal(&mut bytes);
            bytes
        };
        let sealed = seal(1, b"content");
        assert_eq!(sealed.len(), 7 + TAG_BYTES);
        assert_eq!(sealed, seal(1, b"content"));
        assert_ne!(sealed, seal(2, b"content"));
        assert!(!sealed.windows(4).any(|w| b"content".starts_with(w)));
    }

    #[test]
    fn a_byte_that_changed_in_content_tag_or_key_is_noticed() {
        let key = Salt::new([1; 32]).key_of(b"content");
        let mut sealed = b"content".to_vec();
        key.seal(&mut sealed);
        for at in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[at] ^= 1;
            assert_eq!(key.open(&mut changed), Err(Broken), "byte {at}");
        }
        let other = Key([7; 32]);
        assert_eq!(other.open(&mut sealed.clone()), Err(Broken));
        assert_eq!(key.open(&mut sealed[..3].to_vec()), Err(Broken));
        key.open(&mut sealed).expect("unchanged");
        assert_eq!(sealed, b"content");
    }

    #[test]
    fn secrets_are_in_no_message() {
        let salt = Salt::new([0xab; 32]);
        let shown = format!("{salt:?} {:?}", salt.key_of(b"x"));
        assert_eq!(shown, "Salt(secret) Key(secret)");
    }
}
