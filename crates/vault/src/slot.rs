//! What lies in a key slot: the volume's key, spread over many stripes and encrypted.
//!
//! Owns: AES-XTS, the anti-forensic splitter of LUKS, and the two keys: that of the volume, that of a slot.
//! Refuses: ciphers, hashes and key sizes other than the ones we write.

use std::num::NonZeroU32;

use aes::Aes256;
use aes::cipher::{BlockCipherDecrypt, BlockCipherEncrypt, KeyInit};
use ring::{digest, pbkdf2};
use zeroize::Zeroizing;

use crate::NoRandom;

/// Key of a volume, and of a slot: two keys of AES-256, as XTS has it.
pub const KEY_BYTES: usize = 64;
/// Copies of the key's length in a slot: one lost sector loses the key.
pub(crate) const STRIPES: usize = 4000;
/// Bytes of a slot that are used.
pub(crate) const MATERIAL_BYTES: usize = KEY_BYTES * STRIPES;
/// Slots are encrypted in sectors of this size.
const SECTOR: usize = 512;
const HASH_BYTES: usize = 32;

/// The key that encrypts the data of a disk.
pub type VolumeKey = Zeroizing<[u8; KEY_BYTES]>;

/// Derives from a passphrase. Ours have 256 bits that nobody guesses, so that it need not be slow.
pub(crate) fn derive(passphrase: &[u8], salt: &[u8], iterations: NonZeroU32, out: &mut [u8]) {
    pbkdf2::derive(
        pbkdf2::PBKDF2_HMAC_SHA256,
        iterations,
        salt,
        passphrase,
        out,
    );
}

/// Fills a slot: `key` so that `slot_key` opens it.
pub(crate) fn close(key: &VolumeKey, slot_key: &VolumeKey) -> Result<Zeroizing<Vec<u8>>, NoRandom> {
    let mut material = Zeroizing::new(vec![0; MATERIAL_BYTES]);
    let (spread, last) = material.split_at_mut(MATERIAL_BYTES - KEY_BYTES);
    getrandom::fill(spread)?;
    let mixed = mix(spread);
    for ((byte, mixed), key) in last.iter_mut().zip(mixed.iter()).zip(key.iter()) {
        *byte = mixed ^ key;
    }
    xts(slot_key, Way::Encrypt, &mut material);
    Ok(material)
}

/// What is in a slot, if `slot_key` is its key: the volume's digest tells.
pub(crate) fn open(material: &[u8], slot_key: &VolumeKey) -> VolumeKey {
    let mut material = Zeroizing::new(material.to_vec());
    xts(slot_key, Way::Decrypt, &mut material);
    let (spread, last) = material.split_at(material.len().saturating_sub(KEY_BYTES));
    let mut key = mix(spread);
    for (byte, last) in key.iter_mut().zip(last) {
        *byte ^= last;
    }
    key
}

/// All stripes but the last in one.
fn mix(spread: &[u8]) -> VolumeKey {
    let mut mixed = VolumeKey::new([0; KEY_BYTES]);
    for stripe in spread.chunks_exact(KEY_BYTES) {
        for (byte, stripe) in mixed.iter_mut().zip(stripe) {
            *byte ^= stripe;
        }
        for (at, piece) in (0u32..).zip(mixed.chunks_exact_mut(HASH_BYTES)) {
            let mut hash = digest::Context::new(&digest::SHA256);
            hash.update(&at.to_be_bytes());
            hash.update(piece);
            piece.copy_from_slice(hash.finish().as_ref());
        }
    }
    mixed
}

#[derive(Clone, Copy)]
enum Way {
    Encrypt,
    Decrypt,
}

/// AES-256-XTS with the sector's number as tweak (IEEE 1619; `xts-plain64`), sectors counted from the slot's beginning.
fn xts(key: &VolumeKey, way: Way, bytes: &mut [u8]) {
    let half = |half: &[u8]| Aes256::new_from_slice(half).expect("half of the key has 32 bytes");
    let (data, tweaks) = (half(&key[..32]), half(&key[32..]));
    for (number, sector) in (0u64..).zip(bytes.chunks_exact_mut(SECTOR)) {
        let mut tweak = aes::Block::default();
        tweak[..8].copy_from_slice(&number.to_le_bytes());
        tweaks.encrypt_block(&mut tweak);
        let mut tweak = u128::from_le_bytes(tweak.into());
        for block in sector.chunks_exact_mut(16) {
            let mask = tweak.to_le_bytes();
            let mut work = aes::Block::default();
            mixed(&mut work, block, &mask);
            match way {
                Way::Encrypt => data.encrypt_block(&mut work),
                Way::Decrypt => data.decrypt_block(&mut work),
            }
            let done: [u8; 16] = work.into();
            mixed(block, &done, &mask);
            tweak = (tweak << 1) ^ ((tweak >> 127) * 0x87);
        }
    }
}

fn mixed(out: &mut [u8], text: &[u8], mask: &[u8; 16]) {
    for ((out, text), mask) in out.iter_mut().zip(text).zip(mask) {
        *out = text ^ mask;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digits(bytes: &[u8]) -> String {
        bytes.iter().map(|b| format!("{b:02x}")).collect()
    }

    #[test]
    fn the_cipher_is_that_of_the_standard() {
        // IEEE 1619-2007, B.2, vector 10: AES-256, sector ff.
        let half = |text: &str| -> Vec<u8> {
            let pairs = text.as_bytes().chunks(2);
            let byte = |pair| u8::from_str_radix(std::str::from_utf8(pair).expect("text"), 16);
            pairs.map(|pair| byte(pair).expect("digits")).collect()
        };
        let key = half(concat!(
            "2718281828459045235360287471352662497757247093699959574966967627",
            "3141592653589793238462643383279502884197169399375105820974944592"
        ));
        let key = VolumeKey::new(key.try_into().expect("64 bytes"));
        // The sector with that number is the 256th of a slot.
        let mut bytes = vec![0; 256 * SECTOR];
        for (byte, at) in bytes[255 * SECTOR..].iter_mut().zip((0..=255).cycle()) {
            *byte = at;
        }
        let plain = bytes.clone();
        xts(&key, Way::Encrypt, &mut bytes);
        assert_eq!(
            digits(&bytes[255 * SECTOR..][..16]),
            "1c3b3a102f770386e4836c99e370cf9b"
        );
        xts(&key, Way::Decrypt, &mut bytes);
        assert_eq!(bytes, plain);
    }

    #[test]
    fn a_slot_gives_its_key_back_and_one_lost_sector_loses_it() {
        let (key, slot_key) = (VolumeKey::new([3; 64]), VolumeKey::new([9; 64]));
        let material = close(&key, &slot_key).expect("random bytes");
        assert_eq!(open(&material, &slot_key), key);
        assert_ne!(open(&material, &VolumeKey::new([8; 64])), key);
        for sector in [0, 250, 499] {
            let mut lost = material.clone();
            lost[sector * SECTOR..][..SECTOR].fill(0);
            assert_ne!(open(&lost, &slot_key), key);
        }
        assert_ne!(close(&key, &slot_key).expect("random bytes"), material);
    }

    #[test]
    fn a_slot_that_is_too_short_is_no_panic() {
        let key = VolumeKey::new([1; 64]);
        for length in [0, 1, 63, 64, 511, 513] {
            open(&vec![7; length], &key);
        }
    }
}
