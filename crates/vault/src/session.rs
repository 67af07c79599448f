//! A session with a TPM that nobody on the wire between can listen to (TPM 2.0 Library, part 1, 17.6, 19.6 and 21).
//!
//! Owns: the key that is agreed on with the TPM's own storage key, the first parameter encrypted by it, and that answers are
//! the TPM's. Refuses: telling the TPM's storage key from one that somebody between has put in its place: nothing that could
//! be compared with is anywhere else than on the same machine.

use aes::Aes128;
use aes::cipher::{BlockCipherEncrypt, KeyInit};
use ring::agreement::{self, ECDH_P256, EphemeralPrivateKey, UnparsedPublicKey};
use ring::{digest, hmac, rand};
use zeroize::Zeroizing;

use crate::wire::{Reader, Writer};
use crate::{NoRandom, Secret};

/// Attribute of a session: it stays, for us to end it.
pub(crate) const STAYS: u8 = 1;
/// The first parameter of the command is encrypted.
pub(crate) const COMMAND: u8 = 1 << 5;
/// The first parameter of the answer is encrypted.
pub(crate) const ANSWER: u8 = 1 << 6;
/// Longest nonce: the hash of the session.
const NONCE_MAX: usize = 32;
const COORDINATE: usize = 32;

/// What is needed of a key of the TPM: its name, and its point on P-256.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Parent {
    pub(crate) handle: u32,
    pub(crate) name: Vec<u8>,
    x: Vec<u8>,
    y: Vec<u8>,
}

impl Parent {
    /// `public` is the TPM's word: it must be of the key that was asked for, whose description begins with `template`.
    pub(crate) fn read(handle: u32, public: &[u8], template: &[u8]) -> Option<Self> {
        let mut reader = Reader(public.strip_prefix(template)?);
        let (x, y) = (reader.sized()?, reader.sized()?);
        let fits = x.len().max(y.len()) <= COORDINATE && reader.0.is_empty();
        fits.then(|| Self {
            handle,
            name: name(public),
            x: x.to_vec(),
            y: y.to_vec(),
        })
    }

    /// As everybody but TPMs writes it.
    fn point(&self) -> [u8; 1 + 2 * COORDINATE] {
        let mut point = [0; 1 + 2 * COORDINATE];
        point[0] = 4;
        let (x, y) = point[1..].split_at_mut(COORDINATE);
        x[COORDINATE - self.x.len()..].copy_from_slice(&self.x);
        y[COORDINATE - self.y.len()..].copy_from_slice(&self.y);
        point
    }
}

/// Name of a key or an object by its description.
pub(crate) fn name(public: &[u8]) -> Vec<u8> {
    const SHA256: [u8; 2] = [0, 0x0b];
    let digest = digest::digest(&digest::SHA256, public);
    [&SHA256, digest.as_ref()].concat()
}

/// What goes to the TPM so that it can come to the same key.
pub(crate) struct Offer {
    pub(crate) nonce: [u8; NONCE_MAX],
    /// Our point, for this session alone.
    pub(crate) point: Vec<u8>,
    salt: Secret,
}

impl Offer {
    /// `None`: the TPM's point is none, or the kernel has no random bytes.
    pub(crate) fn new(to: &Parent) -> Option<Self> {
        let key = EphemeralPrivateKey::generate(&ECDH_P256, &rand::SystemRandom::new()).ok()?;
        let ours = key.compute_public_key().ok()?;
        let (x, y) = ours.as_ref().get(1..)?.split_at_checked(COORDINATE)?;
        let theirs = UnparsedPublicKey::new(&ECDH_P256, to.point());
        let salt = agreement::agree_ephemeral(key, &theirs, |shared| {
            // KDFe (part 1, 11.4.10.3): one block is enough.
            let mut hash = digest::Context::new(&digest::SHA256);
            for part in [&[0, 0, 0, 1], shared, b"SECRET\0", x, &to.x] {
                hash.update(part);
            }
            let mut salt = Secret::default();
            salt.copy_from_slice(hash.finish().as_ref());
            salt
        });
        Some(Self {
            nonce: nonce().ok()?,
            point: Writer::default().sized(x).sized(y).0,
            salt: salt.ok()?,
        })
    }

    /// With what the TPM has answered.
    pub(crate) fn accept(self, handle: u32, nonce: &[u8]) -> Option<Session> {
        let key = derive(self.salt.as_ref(), b"ATH", nonce, &self.nonce);
        (nonce.len() <= NONCE_MAX).then(|| Session {
            handle,
            key,
            ours: self.nonce,
            theirs: nonce.to_vec(),
        })
    }
}

/// Each side's last nonce makes every command and answer another one.
pub(crate) struct Session {
    pub(crate) handle: u32,
    key: Secret,
    ours: [u8; NONCE_MAX],
    theirs: Vec<u8>,
}

impl Session {
    /// The authorisation of a command that uses the things of these names, with its size before it. The first of the
    /// parameters is encrypted in place, where `attributes` say so.
    pub(crate) fn authorise(
        &mut self,
        command: u32,
        names: &[&[u8]],
        parameters: &mut [u8],
        attributes: u8,
    ) -> Result<Writer, NoRandom> {
        self.ours = nonce()?;
        if attributes & COMMAND != 0 {
            let length = Reader(parameters).u16().unwrap_or_default();
            if let Some(first) = parameters.get_mut(2..2 + usize::from(length)) {
                self.cipher(Way::Encrypt, &self.ours, &self.theirs, first);
            }
        }
        let code = command.to_be_bytes();
        let parts = [&[&code[..]], names, &[parameters]].concat();
        let mac = self.mac(&parts, &self.ours, &self.theirs, attributes);
        let one = Writer::default()
            .u32(self.handle)
            .sized(&self.ours)
            .u8(attributes)
            .sized(mac.as_ref());
        let length = u32::try_from(one.0.len()).expect("two nonces are short");
        Ok(Writer::default().u32(length).raw(&one.0))
    }

    /// The parameters of an answer, if it is the TPM's; `None` if somebody else has written any of it.
    pub(crate) fn open(
        &mut self,
        command: u32,
        answer: &[u8],
        attributes: u8,
    ) -> Option<Zeroizing<Vec<u8>>> {
        let mut reader = Reader(answer);
        let length = reader.u32()?;
        let parameters = reader.take(usize::try_from(length).ok()?)?;
        let nonce = reader.sized().filter(|nonce| nonce.len() <= NONCE_MAX)?;
        let said = reader.take(1)?[0];
        let mac = reader.sized()?;
        // The answer's code, which is zero, and the command's.
        let parts = [&[0; 4][..], &command.to_be_bytes(), parameters];
        let (key, text) = self.signed(&parts, nonce, &self.ours, said);
        hmac::verify(&key, &text, mac).ok()?;
        let encrypted = said & ANSWER != 0;
        (encrypted == (attributes & ANSWER != 0)).then_some(())?;
        let mut parameters = Zeroizing::new(parameters.to_vec());
        if encrypted {
            let length = Reader(&parameters).u16()?;
            let first = parameters.get_mut(2..2 + usize::from(length))?;
            self.cipher(Way::Decrypt, nonce, &self.ours, first);
        }
        self.theirs = nonce.to_vec();
        Some(parameters)
    }

    fn mac(&self, parts: &[&[u8]], newer: &[u8], older: &[u8], attributes: u8) -> hmac::Tag {
        let (key, text) = self.signed(parts, newer, older, attributes);
        hmac::sign(&key, &text)
    }

    fn signed(
        &self,
        parts: &[&[u8]],
        newer: &[u8],
        older: &[u8],
        attributes: u8,
    ) -> (hmac::Key, Vec<u8>) {
        let mut hash = digest::Context::new(&digest::SHA256);
        parts.iter().for_each(|part| hash.update(part));
        let text = [hash.finish().as_ref(), newer, older, &[attributes]].concat();
        (hmac::Key::new(hmac::HMAC_SHA256, self.key.as_ref()), text)
    }

    /// AES-128 in CFB, key and first block by both nonces.
    fn cipher(&self, way: Way, newer: &[u8], older: &[u8], bytes: &mut [u8]) {
        let derived = derive(self.key.as_ref(), b"CFB", newer, older);
        let (key, first) = derived.split_at(16);
        let cipher = Aes128::new_from_slice(key).expect("16 bytes");
        let mut before = aes::Block::try_from(first).expect("16 bytes");
        for piece in bytes.chunks_mut(16) {
            cipher.encrypt_block(&mut before);
            let text = Zeroizing::new(piece.to_vec());
            piece.iter_mut().zip(&before).for_each(|(p, b)| *p ^= b);
            let sent = match way {
                Way::Encrypt => &*piece,
                Way::Decrypt => &text,
            };
            before[..sent.len()].copy_from_slice(sent);
        }
    }
}

#[derive(Debug, Clone, Copy)]
enum Way {
    Encrypt,
    Decrypt,
}

/// KDFa (part 1, 11.4.10.2): one block of 256 bits.
fn derive(key: &[u8], label: &[u8], u: &[u8], v: &[u8]) -> Secret {
    let key = hmac::Key::new(hmac::HMAC_SHA256, key);
    let text = [&[0, 0, 0, 1], label, &[0], u, v, &256u32.to_be_bytes()].concat();
    let mut out = Secret::default();
    out.copy_from_slice(hmac::sign(&key, &text).as_ref());
    out
}

fn nonce() -> Result<[u8; NONCE_MAX], NoRandom> {
    let mut nonce = [0; NONCE_MAX];
    getrandom::fill(&mut nonce)?;
    Ok(nonce)
}
