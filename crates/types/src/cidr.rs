//! An address with the length of its network's prefix, of IPv4, of IPv6, or of either.
//!
//! Owns: their text form (CIDR), what lies in a network, and how one of a family becomes one of any.
//! Refuses: a prefix that is longer than its family's addresses, signs and zeros in front, and zones (`%eth0`).

use std::fmt;
use std::hash::Hash;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use crate::id::serde_as_text;
use crate::unit::UnitError;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// An interface address or a network. `Cidr` is of IPv4; see [`Cidr6`] and [`AnyCidr`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cidr<A = Ipv4Addr> {
    pub address: A,
    prefix: u8,
}

/// Of IPv6.
pub type Cidr6 = Cidr<Ipv6Addr>;

/// Of either family.
pub type AnyCidr = Cidr<IpAddr>;

/// What can stand before the slash.
pub trait Address: Copy + Eq + fmt::Display + FromStr {
    /// Bits of an address of this family.
    fn width(self) -> u8;
    /// With all but the first `prefix` bits zero.
    fn network(self, prefix: u8) -> Self;
}

impl Address for Ipv4Addr {
    fn width(self) -> u8 {
        32
    }
    fn network(self, prefix: u8) -> Self {
        let host = u32::MAX.checked_shr(prefix.into()).unwrap_or(0);
        Self::from_bits(self.to_bits() & !host)
    }
}

impl Address for Ipv6Addr {
    fn width(self) -> u8 {
        128
    }
    fn network(self, prefix: u8) -> Self {
        let host = u128::MAX.checked_shr(prefix.into()).unwrap_or(0);
        Self::from_bits(self.to_bits() & !host)
    }
}

impl Address for IpAddr {
    fn width(self) -> u8 {
        match self {
            Self::V4(address) => address.width(),
            Self::V6(address) => address.width(),
        }
    }
    fn network(self, prefix: u8) -> Self {
        match self {
            Self::V4(address) => Self::V4(address.network(prefix)),
            Self::V6(address) => Self::V6(address.network(prefix)),
        }
    }
}

impl<A: Address> Cidr<A> {
    /// `None` where `prefix` is longer than the address.
    pub fn new(address: A, prefix: u8) -> Option<Self> {
        (prefix <= address.width()).then_some(Self { address, prefix })
    }
    /// The address and nothing beside it.
    pub fn host(address: A) -> Self {
        let prefix = address.width();
        Self { address, prefix }
    }
    pub const fn prefix(&self) -> u8 {
        self.prefix
    }
    /// The same network with all host bits zero.
    pub fn network(&self) -> Self {
        Self {
            address: self.address.network(self.prefix),
            ..*self
        }
    }
    /// An address of the other family lies in no network of this one.
    pub fn contains(&self, other: A) -> bool {
        self.address.width() == other.width()
            && self.address.network(self.prefix) == other.network(self.prefix)
    }
}

impl Cidr {
    /// The netmask as 32 bits.
    pub const fn mask(&self) -> u32 {
        match self.prefix {
            0 => 0,
            n => u32::MAX << (32 - n as u32),
        }
    }
}

impl AnyCidr {
    /// Where it is of IPv4.
    pub fn v4(&self) -> Option<Cidr> {
        let prefix = self.prefix;
        match self.address {
            IpAddr::V4(address) => Some(Cidr { address, prefix }),
            IpAddr::V6(_) => None,
        }
    }
    /// Where it is of IPv6.
    pub fn v6(&self) -> Option<Cidr6> {
        let prefix = self.prefix;
        match self.address {
            IpAddr::V4(_) => None,
            IpAddr::V6(address) => Some(Cidr { address, prefix }),
        }
    }
}

impl From<Cidr> for AnyCidr {
    fn from(Cidr { address, prefix }: Cidr) -> Self {
        let address = address.into();
        Self { address, prefix }
    }
}

impl From<Cidr6> for AnyCidr {
    fn from(Cidr { address, prefix }: Cidr6) -> Self {
        let address = address.into();
        Self { address, prefix }
    }
}

impl<A: Address> FromStr for Cidr<A> {
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

impl<A: Address> fmt::Display for Cidr<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

serde_as_text!(Cidr, Cidr6, AnyCidr);

#[cfg(test)]
mod tests {
    use proptest::prelude::proptest;

    use super::*;

    fn any(text: &str) -> AnyCidr {
        text.parse().expect("a valid prefix")
    }

    #[test]
    fn a_prefix_knows_its_network() {
        let cidr: Cidr = "10.1.2.3/24".parse().expect("a valid prefix");
        assert_eq!(cidr.network().to_string(), "10.1.2.0/24");
        assert!(cidr.contains([10, 1, 2, 200].into()) && !cidr.contains([10, 1, 3, 1].into()));
        assert!("10.1.2.3/33".parse::<Cidr>().is_err());
        let cidr: Cidr6 = "2001:db8:0:7::9/64".parse().expect("a valid prefix");
        assert_eq!(cidr.network().to_string(), "2001:db8:0:7::/64");
        assert!(cidr.contains("2001:db8:0:7:ffff::".parse().expect("an address")));
        assert!(!cidr.contains("2001:db8:0:8::9".parse().expect("an address")));
        assert!("2001:db8::/129".parse::<Cidr6>().is_err());
        for (all, one) in [("0.0.0.0/0", "9.9.9.9"), ("::/0", "2001:db8::1")] {
            assert!(any(all).contains(one.parse().expect("an address")));
        }
    }

    #[test]
    fn the_families_are_told_apart() {
        assert!(!any("0.0.0.0/0").contains("::1".parse().expect("an address")));
        assert!(!any("::/0").contains("127.0.0.1".parse().expect("an address")));
        assert_eq!(
            (any("fe80::1/10").v4(), any("10.0.0.1/8").v6()),
            (None, None)
        );
        assert!("2001:db8::/32".parse::<Cidr>().is_err() && "10.0.0.0/8".parse::<Cidr6>().is_err());
        assert!("10.0.0.0/33".parse::<AnyCidr>().is_err() && any("::/33").v6().is_some());
        assert_eq!(Cidr::host(any("10.0.0.7/8").address), any("10.0.0.7/32"));
        assert_eq!(Cidr::host(any("fe80::7/10").address), any("fe80::7/128"));
    }

    #[test]
    fn signs_and_zeros_in_front_are_no_second_spelling_and_a_zone_is_no_network() {
        for text in [
            "10.0.0.0/+8",
            "10.0.0.0/08",
            "10.0.0.0/00",
            "10.0.0.0/ 8",
            "10.0.0.0/",
            "::/+8",
            "::/00",
            "::",
            "fe80::1%eth0/64",
            "[::]/0",
        ] {
            assert!(text.parse::<AnyCidr>().is_err(), "{text}");
        }
        assert!("0.0.0.0/0".parse::<Cidr>().is_ok());
    }

    proptest! {
        #[test]
        fn what_is_read_is_written_the_same(network in "[0-9.]{7,15}/[0-9+ ]{0,3}") {
            if let Ok(read) = network.parse::<Cidr>() {
                assert_eq!(read.to_string(), network);
            }
        }

        #[test]
        fn what_is_written_is_read_as_the_same(v4: [u8; 4], v6: [u8; 16], prefix in 0_u8..=129) {
            if let Some(cidr) = Cidr::new(Ipv4Addr::from(v4), prefix) {
                assert_eq!(cidr.to_string().parse(), Ok(cidr));
                assert_eq!(cidr.to_string().parse(), Ok(AnyCidr::from(cidr)));
                assert_eq!(AnyCidr::from(cidr).v4(), Some(cidr));
            }
            if let Some(cidr) = Cidr::new(Ipv6Addr::from(v6), prefix) {
                assert_eq!(cidr.to_string().parse(), Ok(cidr));
                assert_eq!(cidr.to_string().parse(), Ok(AnyCidr::from(cidr)));
                assert_eq!(AnyCidr::from(cidr).v6(), Some(cidr));
            }
        }

        #[test]
        fn a_network_contains_its_own_and_agrees_with_any_familys(v6: [u8; 16], other: [u8; 16], prefix in 0_u8..=128) {
            let cidr = Cidr::new(Ipv6Addr::from(v6), prefix).expect("at most 128");
            let other = Ipv6Addr::from(other);
            assert!(cidr.contains(cidr.network().address) && cidr.network().contains(cidr.address));
            assert_eq!(cidr.contains(other), AnyCidr::from(cidr).contains(other.into()));
            let same = prefix == 0 || (cidr.address.to_bits() ^ other.to_bits()) >> (128 - u32::from(prefix)) == 0;
            assert_eq!(cidr.contains(other), same);
        }
    }
}
