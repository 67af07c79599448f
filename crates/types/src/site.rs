//! A node's own network, as its owner sets it over the API.
//!
//! Owns: the signed change, what the node says of the options that count, and the limits of both.
//! Refuses: what the options mean: the node knows that (`net::site`), and judges them whole.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::PublicKey;
use crate::proxy::masked;

/// DSSE payload type of a signed [`SiteChange`].
pub const SITE_PAYLOAD_TYPE: &str = "application/vnd.sifr.site.v1+json";
/// Options of one change: nine keys for each of more links than a machine has.
pub const OPTIONS_MAX: usize = 640;
/// Longest option: sixteen addresses of IPv6 with their lengths, and the name before them.
pub const OPTION_MAX: usize = 1024;
/// Time to confirm that is given where nobody says another: a switch's port may take 30 s to open.
pub const CONFIRM_DEFAULT_S: u32 = 60;
/// Shortest: a client needs a round or two.
pub const CONFIRM_MIN_S: u32 = 5;
/// Longest: an hour that a node may be out of reach for a mistake.
pub const CONFIRM_MAX_S: u32 = 3600;

/// The owner's wish for the network of one node: all of it, in place of what was there. Empty: as the node was booted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SiteChange {
    pub node: PublicKey,
    /// One more than the node's, so that none counts twice.
    pub version: u64,
    /// Each a word, as `sifr.net.eth0.address=192.0.2.7/24`.
    pub options: Vec<String>,
    /// Seconds after which the node goes back, unless it is confirmed.
    pub confirm_s: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SiteError {
    #[error("a change has at most {OPTIONS_MAX} options, this one {0}")]
    Options(usize),
    #[error("an option is one word of at most {OPTION_MAX} printable letters, not {0:?}")]
    Word(String),
    #[error("a change is confirmed within {CONFIRM_MIN_S} to {CONFIRM_MAX_S} s, not {0}")]
    Confirm(u32),
}

impl SiteChange {
    /// What of it any node may rely on.
    pub fn check(&self) -> Result<(), SiteError> {
        if self.options.len() > OPTIONS_MAX {
            return Err(SiteError::Options(self.options.len()));
        }
        let is_word = |word: &&String| {
            (1..=OPTION_MAX).contains(&word.len()) && word.bytes().all(|b| b.is_ascii_graphic())
        };
        if let Some(word) = self.options.iter().find(|word| !is_word(word)) {
            return Err(SiteError::Word(masked(word).chars().take(100).collect()));
        }
        if !(CONFIRM_MIN_S..=CONFIRM_MAX_S).contains(&self.confirm_s) {
            return Err(SiteError::Confirm(self.confirm_s));
        }
        Ok(())
    }
}

/// Where an option stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OptionPlace {
    /// A file behind the initramfs.
    File,
    /// A partition that its owner made for it.
    Partition,
    /// OEM strings of the machine's SMBIOS tables.
    Smbios,
    CommandLine,
    /// A change that the owner has signed.
    Owner,
}

impl fmt::Display for OptionPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::File => "/etc/sifr/options",
            Self::Partition => "options partition",
            Self::Smbios => "SMBIOS string",
            Self::CommandLine => "kernel option",
            Self::Owner => "set by the owner",
        })
    }
}

/// An option that counts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stated {
    pub option: String,
    pub from: OptionPlace,
}

/// What a node says of its own network.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct NodeNetwork {
    /// Of the newest change that was confirmed; 0: there was none.
    pub version: u64,
    /// The network's options that count now. While a change is tried they are its own.
    pub options: Vec<Stated>,
    /// A change that waits for its confirmation.
    pub trial: Option<Trial>,
    /// Why what was confirmed does not count, or what became of the last change.
    pub note: Option<String>,
}

/// A change that the node has taken, and takes back unless it is confirmed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Trial {
    pub version: u64,
    /// From the moment on that it is used.
    pub confirm_s: u32,
    /// The node's uptime at which it goes back; `None`: it is not used yet.
    pub until_uptime_ms: Option<u64>,
}

/// What a client says of a change, over a connection that it made while that was used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Confirm {
    pub version: u64,
}

/// Answer to a confirmation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Confirmed {
    pub version: u64,
    /// It survives a power cut. False on a node that runs from RAM.
    pub durable: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(options: &[&str], confirm_s: u32) -> SiteChange {
        SiteChange {
            node: PublicKey([1; 32]),
            version: 1,
            options: options.iter().map(|o| (*o).to_owned()).collect(),
            confirm_s,
        }
    }

    #[test]
    fn a_change_has_words_and_a_time_that_a_person_may_wait() {
        assert_eq!(change(&["sifr.dns=192.0.2.53"], 60).check(), Ok(()));
        assert_eq!(change(&[], CONFIRM_MAX_S).check(), Ok(()));
        for bad in [
            change(&["two words"], 60),
            change(&["sifr.dns=\u{e9}"], 60),
            change(&["a\nb"], 60),
            change(&[""], 60),
            change(&[&"x".repeat(OPTION_MAX + 1)], 60),
            change(&["sifr.dns=192.0.2.53"; OPTIONS_MAX + 1], 60),
            change(&[], 0),
            change(&[], CONFIRM_MAX_S + 1),
        ] {
            assert!(bad.check().is_err());
        }
    }

    #[test]
    fn a_change_with_a_field_that_nobody_knows_is_none() {
        let json = serde_json::to_string(&change(&[], 60)).expect("JSON");
        assert!(serde_json::from_str::<SiteChange>(&json).is_ok());
        let more = json.replacen("\"version\"", "\"force\":true,\"version\"", 1);
        assert!(serde_json::from_str::<SiteChange>(&more).is_err());
    }
}
