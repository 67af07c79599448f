//! Units: byte quantities, network prefixes, MAC addresses.
//!
//! Owns: their text forms (Kubernetes quantities such as `512Mi`, CIDR, colon-separated octets).
//! Refuses: bare numbers whose unit must be guessed.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use crate::id::serde_as_text;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UnitError {
    #[error("quantity {0:?} is not a whole number with an optional suffix Ki, Mi, Gi or Ti")]
    Bytes(String),
    #[error("network {0:?} is not an IPv4 address and prefix length such as 10.1.2.0/24")]
    Cidr(String),
    #[error("MAC address {0:?} is not six hexadecimal octets separated by colons")]
    Mac(String),
}

/// A number of bytes. Text: a Kubernetes quantity with binary suffixes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Bytes(pub u64);

impl Bytes {
    pub const fn mib(n: u64) -> Self {
        Self(n << 20)
    }
    pub const fn gib(n: u64) -> Self {
        Self(n << 30)
    }
    /// Whole mebibytes, rounded down.
    pub const fn as_mib(self) -> u64 {
        self.0 >> 20
    }
}

const SUFFIXES: [(&str, u32); 5] = [("Ti", 40), ("Gi", 30), ("Mi", 20), ("Ki", 10), ("", 0)];

impl FromStr for Bytes {
    type Err = UnitError;
    fn from_str(s: &str) -> Result<Self, UnitError> {
        let error = || UnitError::Bytes(s.to_owned());
        let (digits, shift) = SUFFIXES
            .iter()
            .find_map(|(suffix, shift)| Some((s.strip_suffix(suffix)?, *shift)))
            .ok_or_else(error)?;
        if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
            return Err(error());
        }
        let number: u64 = digits.parse().map_err(|_| error())?;
        number.checked_mul(1 << shift).map(Self).ok_or_else(error)
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (suffix, shift) = SUFFIXES
            .iter()
            .find(|(_, shift)| self.0 != 0 && self.0.is_multiple_of(1 << shift))
            .unwrap_or(&("", 0));
        write!(f, "{}{suffix}", self.0 >> shift)
    }
}

/// An IPv4 address with its prefix length: an interface address or a network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cidr {
    pub address: Ipv4Addr,
    prefix: u8,
}

impl Cidr {
    /// `None` where `prefix` is over 32.
    pub const fn new(address: Ipv4Addr, prefix: u8) -> Option<Self> {
        if prefix <= 32 {
            Some(Self { address, prefix })
        } else {
            None
        }
    }
    pub const fn prefix(&self) -> u8 {
        self.prefix
    }
    /// The netmask as 32 bits.
    pub const fn mask(&self) -> u32 {
        match self.prefix {
            0 => 0,
            n => u32::MAX << (32 - n as u32),
        }
    }
    /// The same network with all host bits zero.
    pub fn network(&self) -> Self {
        Self {
            address: Ipv4Addr::from(u32::from(self.address) & self.mask()),
            ..*self
        }
    }
    pub fn contains(&self, other: Ipv4Addr) -> bool {
        (u32::from(self.address) ^ u32::from(other)) & self.mask() == 0
    }
}

impl FromStr for Cidr {
    type Err = UnitError;
    fn from_str(s: &str) -> Result<Self, UnitError> {
        let parse = || {
            let (address, prefix) = s.split_once('/')?;
            // A number's own parser would take a sign and zeros in front.
            let plain = prefix == "0" || prefix.starts_with(|c: char| matches!(c, '1'..='9'));
            let prefix = Some(prefix).filter(|_| plain)?;
            Self::new(address.parse().ok()?, prefix.parse().ok()?)
        };
        parse().ok_or_else(|| UnitError::Cidr(s.to_owned()))
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

/// An Ethernet address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mac(pub [u8; 6]);

impl FromStr for Mac {
    type Err = UnitError;
    fn from_str(s: &str) -> Result<Self, UnitError> {
        let parse = || {
            let mut octets = [0; 6];
            let mut parts = s.split(':');
            for octet in &mut octets {
                // A number's own parser would take a sign.
                let digits = |p: &&str| p.len() == 2 && p.bytes().all(|b| b.is_ascii_hexdigit());
                let part = parts.next().filter(digits)?;
                *octet = u8::from_str_radix(part, 16).ok()?;
            }
            parts.next().is_none().then_some(Self(octets))
        };
        parse().ok_or_else(|| UnitError::Mac(s.to_owned()))
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

serde_as_text!(Bytes, Cidr, Mac);

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, proptest};

    use super::*;

    #[test]
    fn quantities_read_as_kubernetes_writes_them() {
        assert_eq!("512Mi".parse(), Ok(Bytes::mib(512)));
        assert_eq!("1Gi".parse(), Ok(Bytes::gib(1)));
        assert_eq!("17".parse(), Ok(Bytes(17)));
        assert_eq!(Bytes::mib(1536).to_string(), "1536Mi");
        for bad in ["", "Mi", "-1Mi", "1.5Gi", "1G", "+1", "99999999999Ti"] {
            assert_eq!(bad.parse::<Bytes>(), Err(UnitError::Bytes(bad.to_owned())));
        }
    }

    #[test]
    fn a_prefix_knows_its_network() {
        let cidr: Cidr = "10.1.2.3/24".parse().expect("a valid prefix");
        assert_eq!(cidr.network().to_string(), "10.1.2.0/24");
        assert!(cidr.contains([10, 1, 2, 200].into()) && !cidr.contains([10, 1, 3, 1].into()));
        assert!("10.1.2.3/33".parse::<Cidr>().is_err());
        assert!(
            "0.0.0.0/0"
                .parse::<Cidr>()
                .expect("a valid prefix")
                .contains([9, 9, 9, 9].into())
        );
    }

    #[test]
    fn signs_and_zeros_in_front_are_no_second_spelling() {
        for text in [
            "10.0.0.0/+8",
            "10.0.0.0/08",
            "10.0.0.0/00",
            "10.0.0.0/ 8",
            "10.0.0.0/",
        ] {
            assert!(text.parse::<Cidr>().is_err(), "{text}");
        }
        assert!("+2:00:0a:01:02:03".parse::<Mac>().is_err());
        assert!("0.0.0.0/0".parse::<Cidr>().is_ok());
    }

    proptest! {
        #[test]
        fn what_is_read_is_written_the_same(network in "[0-9.]{7,15}/[0-9+ ]{0,3}", mac in "[0-9a-f+ ]{2}(:[0-9a-f+ ]{2}){5}") {
            if let Ok(read) = network.parse::<Cidr>() {
                assert_eq!(read.to_string(), network);
            }
            if let Ok(read) = mac.parse::<Mac>() {
                assert_eq!(read.to_string(), mac);
            }
        }

        #[test]
        fn what_is_written_is_read_as_the_same(bytes: u64, address: [u8; 4], prefix in 0u8..=32, mac: [u8; 6]) {
            assert_eq!(Bytes(bytes).to_string().parse(), Ok(Bytes(bytes)));
            let cidr = Cidr::new(address.into(), prefix).expect("at most 32");
            assert_eq!(cidr.to_string().parse(), Ok(cidr));
            assert_eq!(Mac(mac).to_string().parse(), Ok(Mac(mac)));
        }

        #[test]
        fn a_quantity_never_overflows(number in any::<u64>(), suffix in "(Ki|Mi|Gi|Ti|K|)") {
            if let Ok(bytes) = format!("{number}{suffix}").parse::<Bytes>() {
                assert!(bytes.0 >= number);
            }
        }
    }

    #[test]
    fn a_mac_is_six_octets() {
        assert_eq!("02:00:0a:01:02:03".parse(), Ok(Mac([2, 0, 10, 1, 2, 3])));
        assert!("02:00:0a:01:02".parse::<Mac>().is_err() && "2:0:a:1:2:3".parse::<Mac>().is_err());
    }
}
