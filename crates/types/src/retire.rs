//! The end of a node's disks, and opening one that its machine cannot open.
//!
//! Owns: the signed wish, the signed receipt, and what is said to unlock a pool.
//! Refuses: a passphrase in a debug print.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::claim::{DISKS_MAX, is_serial};
use crate::{Bytes, Digest, PublicKey};

/// DSSE payload type of a signed [`Retirement`].
pub const RETIREMENT_PAYLOAD_TYPE: &str = "application/vnd.sifr.decommission.v1+json";
/// The same of a [`Receipt`], which a node signs.
pub const RECEIPT_PAYLOAD_TYPE: &str = "application/vnd.sifr.decommission-receipt.v1+json";
/// Longest passphrase: ours has 71 letters, a person's slot may have another.
pub const PASSPHRASE_MAX: usize = 512;

/// The owner's wish that what is on these disks of a node be gone for ever.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Retirement {
    pub node: PublicKey,
    /// What the node gave with the list of its disks.
    pub challenge: Digest,
    /// Serials.
    pub disks: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a decommission names 1 to {DISKS_MAX} disks, each once, by a serial that can be printed")]
pub struct RetirementError;

impl Retirement {
    /// What of it any node may rely on.
    pub fn check(&self) -> Result<(), RetirementError> {
        let named = |at: usize| {
            let serial = &self.disks[at];
            is_serial(serial) && !self.disks[..at].contains(serial)
        };
        let count = (1..=DISKS_MAX).contains(&self.disks.len());
        match count && (0..self.disks.len()).all(named) {
            true => Ok(()),
            false => Err(RetirementError),
        }
    }
}

/// What a node has destroyed. It signs this with the key that goes with it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Receipt {
    pub node: PublicKey,
    /// Of the wish that it answers.
    pub challenge: Digest,
    /// By the node's clock, in milliseconds since 1970.
    pub time_ms: u64,
    /// Whether a time server had set it.
    pub synchronised: bool,
    pub disks: Vec<Destroyed>,
    /// Pools of the owner that this node knows of and that are not in `disks`: for them this receipt says nothing.
    pub remaining: Vec<Remaining>,
}

/// A pool that was not destroyed, and why: it was not named, is not there, or its disk does not take it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Remaining {
    pub serial: String,
    pub why: String,
}

/// What was destroyed of one disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Destroyed {
    pub serial: String,
    pub model: String,
    pub size: Bytes,
    pub method: Method,
    /// Of the encrypted pool.
    pub uuid: Option<String>,
    /// From the pool's beginning on: overwritten with noise, then with zeros, and read again.
    pub overwritten: Bytes,
    /// The disk was told as well that nobody needs these places.
    pub discarded: bool,
}

/// What that means for the rest of the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Method {
    /// All key slots are gone, so that nobody has the key of what is left.
    CryptoErase,
    /// It was never encrypted: only its beginning is gone, the rest can be read. A file system that was in use may write to
    /// its beginning again until the machine is off.
    BeginningOnly,
}

/// Body of `POST /v1/node/disks/unlock`.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Unlock {
    pub serial: String,
    pub passphrase: String,
}

impl fmt::Debug for Unlock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Unlock({})", self.serial)
    }
}

/// Answer: this machine opens the pool from now on, and starts again to use it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Unlocked {
    pub serial: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wish(disks: &[&str]) -> Retirement {
        Retirement {
            node: PublicKey([1; 32]),
            challenge: Digest([2; 32]),
            disks: disks.iter().map(|serial| (*serial).to_owned()).collect(),
        }
    }

    #[test]
    fn each_disk_is_named_once() {
        assert_eq!(wish(&["A", "B"]).check(), Ok(()));
        for bad in [&[][..], &["A", "A"], &[""], &["a\n"]] {
            assert_eq!(wish(bad).check(), Err(RetirementError), "{bad:?}");
        }
    }

    #[test]
    fn a_passphrase_is_not_printed() {
        let unlock = Unlock {
            serial: "A".to_owned(),
            passphrase: "secret".to_owned(),
        };
        assert_eq!(format!("{unlock:?}"), "Unlock(A)");
    }
}
