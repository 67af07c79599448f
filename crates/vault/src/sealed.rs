//! Sealing to a public key: HPKE (RFC 9180), base mode, one message a key.
//!
//! Owns: the suite DHKEM(X25519, HKDF-SHA256), HKDF-SHA256, ChaCha20-Poly1305; keys and their text form.
//! Refuses: any other suite, and keys that everybody shares a secret with.

use std::fmt;
use std::str::FromStr;

use curve25519_dalek::edwards::CompressedEdwardsY;
use curve25519_dalek::montgomery::MontgomeryPoint;
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use ring::{digest, hmac};
use zeroize::Zeroizing;

use crate::{NoRandom, Secret};

/// Begins the text of a key.
const TAG: &str = "x25519:";
const KEM_SUITE: &[u8] = b"KEM\0\x20";
const SUITE: &[u8] = b"HPKE\0\x20\0\x01\0\x03";
/// Public key of this one message, which stands before it.
const EPHEMERAL: usize = 32;
const TAG_BYTES: usize = 16;

#[derive(Debug, thiserror::Error)]
pub enum SealError {
    #[error(transparent)]
    Random(#[from] NoRandom),
    #[error("the key {0} is no point with which a secret can be shared")]
    Weak(Recipient),
    #[error("this key does not open it: it was sealed to another one, or is damaged")]
    Unopened,
    #[error("{0:?} is no key such as {TAG} and 64 hexadecimal digits")]
    Form(String),
}

/// Whom something is sealed to: an X25519 public key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Recipient(pub [u8; 32]);

/// The other half.
pub struct RecipientSecret(Secret);

impl fmt::Debug for RecipientSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RecipientSecret(of {})", self.public())
    }
}

impl fmt::Display for Recipient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = self.0.iter().map(|b| format!("{b:02x}"));
        write!(f, "{TAG}{}", digits.collect::<String>())
    }
}

impl FromStr for Recipient {
    type Err = SealError;
    fn from_str(text: &str) -> Result<Self, SealError> {
        let form = || SealError::Form(text.chars().take(100).collect());
        let digits = text.strip_prefix(TAG).ok_or_else(form)?;
        crate::recovery::unhex(digits).map(Self).ok_or_else(form)
    }
}

impl Recipient {
    /// The X25519 key that whoever has this ed25519 key has too: the same point, in the curve's other form.
    pub fn of_ed25519(key: &[u8; 32]) -> Option<Self> {
        let point = CompressedEdwardsY(*key).decompress()?;
        (!point.is_small_order()).then(|| Self(point.to_montgomery().to_bytes()))
    }
}

impl RecipientSecret {
    pub fn new(secret: Secret) -> Self {
        Self(secret)
    }

    /// Of an ed25519 seed, as [`Recipient::of_ed25519`] of its public key (RFC 8032, 5.1.5).
    pub fn of_ed25519(seed: &[u8; 32]) -> Self {
        let hash = digest::digest(&digest::SHA512, seed);
        let mut secret = Secret::default();
        secret.copy_from_slice(&hash.as_ref()[..32]);
        Self(secret)
    }

    pub fn secret(&self) -> &Secret {
        &self.0
    }

    pub fn public(&self) -> Recipient {
        Recipient(MontgomeryPoint::mul_base_clamped(*self.0).to_bytes())
    }

    /// What was sealed for `purpose`.
    pub fn open(&self, purpose: &str, sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, SealError> {
        let (ephemeral, message) = sealed
            .split_first_chunk::<EPHEMERAL>()
            .ok_or(SealError::Unopened)?;
        let ephemeral = Recipient(*ephemeral);
        let shared = agree(&self.0, ephemeral)?;
        let (key, nonce) = schedule(&shared, ephemeral, self.public(), purpose.as_bytes());
        let mut text = Zeroizing::new(message.to_vec());
        let opened = key.open_in_place(nonce, Aad::empty(), &mut text);
        let length = opened.map_err(|_| SealError::Unopened)?.len();
        text.truncate(length);
        Ok(text)
    }
}

/// Seals a message to `recipient`, for `purpose` and no other.
pub fn seal(recipient: Recipient, purpose: &str, message: &[u8]) -> Result<Vec<u8>, SealError> {
    let ephemeral = RecipientSecret::new(crate::draw()?);
    seal_with(&ephemeral, recipient, purpose.as_bytes(), &[], message)
}

fn seal_with(
    ephemeral: &RecipientSecret,
    recipient: Recipient,
    info: &[u8],
    aad: &[u8],
    message: &[u8],
) -> Result<Vec<u8>, SealError> {
    let shared = agree(&ephemeral.0, recipient)?;
    let public = ephemeral.public();
    let (key, nonce) = schedule(&shared, public, recipient, info);
    // Room for all of it at once: a buffer that grows leaves a copy behind.
    let mut text = Zeroizing::new(Vec::with_capacity(message.len() + TAG_BYTES));
    text.extend_from_slice(message);
    key.seal_in_place_append_tag(nonce, Aad::from(aad), &mut *text)
        .map_err(|_| SealError::Unopened)?;
    Ok([&public.0, text.as_slice()].concat())
}

/// Diffie-Hellman. A point of small order, with which every secret makes zero, is refused (RFC 9180, 7.1.4).
fn agree(secret: &Secret, with: Recipient) -> Result<Secret, SealError> {
    let shared = MontgomeryPoint(with.0).mul_clamped(**secret);
    let shared = Secret::new(shared.to_bytes());
    match shared.iter().fold(0, |any, byte| any | byte) {
        0 => Err(SealError::Weak(with)),
        _ => Ok(shared),
    }
}

fn schedule(
    shared: &Secret,
    ephemeral: Recipient,
    recipient: Recipient,
    info: &[u8],
) -> (LessSafeKey, Nonce) {
    let context = [ephemeral.0, recipient.0].concat();
    let prk = extract(KEM_SUITE, &[], b"eae_prk", shared.as_ref());
    let shared: Zeroizing<[u8; 32]> = expand(KEM_SUITE, &prk, b"shared_secret", &context);
    let none = extract(SUITE, &[], b"psk_id_hash", &[]);
    let info = extract(SUITE, &[], b"info_hash", info);
    // Mode zero: base.
    let context = [&[0], none.as_slice(), info.as_slice()].concat();
    let secret = extract(SUITE, shared.as_ref(), b"secret", &[]);
    let key: Zeroizing<[u8; 32]> = expand(SUITE, &secret, b"key", &context);
    let nonce: Zeroizing<[u8; 12]> = expand(SUITE, &secret, b"base_nonce", &context);
    let key = UnboundKey::new(&CHACHA20_POLY1305, key.as_ref()).expect("a key of 32 bytes");
    (LessSafeKey::new(key), Nonce::assume_unique_for_key(*nonce))
}

/// LabeledExtract: HKDF-Extract is HMAC by the salt.
fn extract(suite: &[u8], salt: &[u8], label: &[u8], input: &[u8]) -> Secret {
    let key = hmac::Key::new(hmac::HMAC_SHA256, salt);
    let input = Zeroizing::new([b"HPKE-v1", suite, label, input].concat());
    let mut out = Secret::default();
    out.copy_from_slice(hmac::sign(&key, &input).as_ref());
    out
}

/// LabeledExpand of at most one block: the first block of HKDF-Expand.
fn expand<const N: usize>(
    suite: &[u8],
    prk: &Secret,
    label: &[u8],
    context: &[u8],
) -> Zeroizing<[u8; N]>
where
    [u8; N]: zeroize::Zeroize,
{
    let length = u16::try_from(N).expect("a block is short").to_be_bytes();
    let key = hmac::Key::new(hmac::HMAC_SHA256, prk.as_ref());
    let block = [&length, b"HPKE-v1".as_slice(), suite, label, context, &[1]].concat();
    let block = hmac::sign(&key, &block);
    let mut out = Zeroizing::new([0; N]);
    out.copy_from_slice(&block.as_ref()[..N]);
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{prop, proptest};

    use super::*;
    use crate::recovery::unhex;

    fn secret(text: &str) -> RecipientSecret {
        RecipientSecret::new(Secret::new(unhex(text).expect("32 bytes")))
    }

    fn bytes(text: &str) -> Vec<u8> {
        let pairs = text.as_bytes().chunks(2);
        let byte = |pair| u8::from_str_radix(std::str::from_utf8(pair).expect("text"), 16);
        pairs.map(|pair| byte(pair).expect("digits")).collect()
    }

    #[test]
    fn it_is_the_example_of_the_specification() {
        // RFC 9180, A.2.1: base mode, sequence number 0.
        let ephemeral = secret("f4ec9b33b792c372c1d2c2063507b684ef925b8c75a42dbcbf57d63ccd381600");
        let recipient = secret("8057991eef8f1f1af18f4a9491d16a1ce333f695d4db8e38da75975c4478e0fb");
        let public = recipient.public();
        assert_eq!(
            public.to_string(),
            "x25519:4310ee97d88cc1f088a5576c77ab0cf5c3ac797f3d95139c6c84b5429c59662a"
        );
        let text = b"Beauty is truth, truth beauty";
        let sealed = seal_with(
            &ephemeral,
            public,
            b"Ode on a Grecian Urn",
            b"Count-0",
            text,
        );
        let expected = [
            "1afa08d3dec047a643885163f1180476fa7ddb54c6a8029ea33f95796bf2ac4a",
            "1c5250d8034ec2b784ba2cfd69dbdb8af406cfe3ff938e131f0def8c8b60b4db21993c62ce81883d2dd1b51a28",
        ];
        assert_eq!(sealed.expect("sealed"), bytes(&expected.concat()));
    }

    proptest! {
        #[test]
        fn only_the_recipient_opens_it_and_only_for_its_purpose(message: Vec<u8>, seed: [u8; 32], at: prop::sample::Index) {
            let recipient = RecipientSecret::new(Secret::new(seed));
            let mut sealed = seal(recipient.public(), "a", &message).expect("sealed");
            assert_eq!(*recipient.open("a", &sealed).expect("opened"), message);
            assert!(recipient.open("b", &sealed).is_err());
            let mut other = seed;
            other[7] ^= 1;
            let other = RecipientSecret::new(Secret::new(other));
            assert!(other.open("a", &sealed).is_err());
            let at = at.index(sealed.len());
            sealed[at] ^= 1;
            assert!(recipient.open("a", &sealed).is_err());
        }

        #[test]
        fn any_bytes_are_refused(sealed: Vec<u8>) {
            assert!(RecipientSecret::new(Secret::new([1; 32])).open("a", &sealed).is_err());
        }
    }

    #[test]
    fn the_owners_signing_key_opens_what_is_sealed_to_its_public_half() {
        // RFC 8032, 7.1, test 1.
        let seed = unhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60");
        let public = unhex("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a");
        let secret = RecipientSecret::of_ed25519(&seed.expect("a seed"));
        let recipient = Recipient::of_ed25519(&public.expect("a key")).expect("a point");
        assert_eq!(secret.public(), recipient);
        assert_eq!(
            Recipient::of_ed25519(&[0; 32]),
            None,
            "a point of small order"
        );
        assert_eq!(Recipient::of_ed25519(&[2; 32]), None, "no point at all");
    }

    #[test]
    fn a_point_of_small_order_is_refused() {
        for weak in [[0; 32], std::array::from_fn(|at| u8::from(at == 0))] {
            let sealed = seal(Recipient(weak), "a", b"b");
            assert!(matches!(sealed, Err(SealError::Weak(_))));
        }
    }

    #[test]
    fn a_key_has_one_text_form() {
        let key = Recipient([0xab; 32]);
        assert_eq!(key.to_string().parse::<Recipient>().expect("a key"), key);
        let text = key.to_string();
        for bad in [
            "",
            "x25519:",
            &text[1..],
            &text[..70],
            &text.to_uppercase(),
            "ed25519:00",
        ] {
            assert!(bad.parse::<Recipient>().is_err(), "{bad}");
        }
    }
}
