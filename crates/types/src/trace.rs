//! Whether a first packet gets through, and which rule says so: `sifr network trace`.
//!
//! Owns: the question and the answer. Refuses: sending a packet; what is answered follows from what the node has told its
//! kernel.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::deployment::Protocol;

/// Longest name of a host (RFC 1035 section 2.3.4), in text.
const NAME_MAX: usize = 253;

/// About a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    pub way: Way,
    /// `None`: a ping.
    pub port: Option<(Protocol, u16)>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Way {
    /// From the machine to this.
    To(Destination),
    /// From outside of the node, to the port of the node.
    FromOutside,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Destination {
    Address(IpAddr),
    /// As the machine would ask for it, in small letters.
    Name(String),
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is neither an IP address nor a name: give one such as 192.0.2.7 or db")]
pub struct DestinationError(String);

impl FromStr for Destination {
    type Err = DestinationError;
    fn from_str(text: &str) -> Result<Self, DestinationError> {
        if let Ok(address) = text.parse() {
            return Ok(Self::Address(address));
        }
        let name = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
        let is_label = |label: &str| {
            let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
            !label.is_empty() && label.chars().all(plain)
        };
        match name.len() <= NAME_MAX && name.split('.').all(is_label) {
            true => Ok(Self::Name(name)),
            false => Err(DestinationError(text.chars().take(NAME_MAX).collect())),
        }
    }
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::Name(name) => f.write_str(name),
        }
    }
}

/// The way of the packet, and its end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trace {
    /// In the order of the way; the last one decides.
    pub steps: Vec<Step>,
    pub outcome: Outcome,
    /// In words: where it ends, and what can be done where it does not get through.
    pub message: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It reaches a machine, or the node. Whether a program listens there is not known.
    Delivered,
    /// It leaves the node.
    Leaves,
    /// The sender is told at once.
    Refused,
    /// The sender waits for nothing.
    Dropped,
    /// Nobody has that address or name, or no way leads there.
    Nowhere,
}

impl Outcome {
    /// Whether no rule and nothing missing stands in its way.
    pub fn gets_through(self) -> bool {
        matches!(self, Self::Delivered | Self::Leaves)
    }
}

/// One place on the way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    pub place: Place,
    /// What happens there: `accept`, `drop`, `reject`, `10.128.3.2:80` for a new destination, `masquerade`.
    pub verdict: String,
    /// The chains that it went through, and the rule that decided, in the words of `nft`.
    pub chains: Vec<String>,
    pub rule: String,
    /// What counts it (`sifr node refused`), where the attempt has a name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub counter: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Place {
    /// Where the machine's frames come in.
    Card,
    /// The network's own namespace, where its gateway is.
    Network,
    /// The node's.
    Node,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Card => "card",
            Self::Network => "network",
            Self::Node => "node",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_destination_is_an_address_or_a_name() {
        for (text, shown) in [
            ("192.0.2.7", "192.0.2.7"),
            ("fd00::7", "fd00::7"),
            ("Web.Shop.", "web.shop"),
            ("db", "db"),
        ] {
            let read: Destination = text.parse().expect(text);
            assert_eq!(read.to_string(), shown);
        }
        for text in [
            "",
            ".",
            "a..b",
            "a b",
            "a/b",
            "a&port=1",
            "ä",
            &"a".repeat(254),
        ] {
            assert!(text.parse::<Destination>().is_err(), "{text}");
        }
    }
}
