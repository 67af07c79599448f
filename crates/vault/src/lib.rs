//! Secrets of disks: the LUKS2 header, a conversation with a TPM, sealing to a public key, shares of a key.
//!
//! Owns: these formats, and that no secret outlives its use in memory.
//! Refuses: opening a disk or a device: callers give bytes, or something to read and write. And logging.
#![forbid(unsafe_code)]

pub mod luks;
pub mod recovery;
pub mod sealed;
mod session;
pub mod shares;
mod slot;
pub mod tpm;
mod wire;

pub use slot::{KEY_BYTES, VolumeKey};

/// A secret of 32 bytes, which nobody guesses.
pub type Secret = zeroize::Zeroizing<[u8; 32]>;

/// The kernel has no random bytes.
#[derive(Debug, thiserror::Error)]
#[error("the kernel gave no random bytes")]
pub struct NoRandom(#[from] getrandom::Error);

/// Draws a secret.
pub fn draw() -> Result<Secret, NoRandom> {
    let mut secret = Secret::default();
    getrandom::fill(secret.as_mut())?;
    Ok(secret)
}
