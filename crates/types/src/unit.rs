//! Units: byte quantities, MAC addresses.
//!
//! Owns: their text forms (Kubernetes quantities such as `512Mi`, colon-separated octets).
//! Refuses: bare numbers whose unit must be guessed.

use std::fmt;
use std::str::FromStr;

use crate::id::serde_as_text;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UnitError {
    #[error("quantity {0:?} is not a whole number with an optional suffix Ki, Mi, Gi or Ti")]
    Bytes(String),
    #[error(
        "network {0:?} is not an address and prefix length such as 10.1.2.0/24 or 2001:db8::/32"
    )]
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

serde_as_text!(Bytes, Mac);

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
    fn a_sign_is_no_second_spelling() {
        assert!("+2:00:0a:01:02:03".parse::<Mac>().is_err());
    }

    proptest! {
        #[test]
        fn what_is_read_is_written_the_same(mac in "[0-9a-f+ ]{2}(:[0-9a-f+ ]{2}){5}") {
            if let Ok(read) = mac.parse::<Mac>() {
                assert_eq!(read.to_string(), mac);
            }
        }

        #[test]
        fn what_is_written_is_read_as_the_same(bytes: u64, mac: [u8; 6]) {
            assert_eq!(Bytes(bytes).to_string().parse(), Ok(Bytes(bytes)));
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
