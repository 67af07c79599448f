//! Structures of KVM's as text: their bytes in hexadecimal, without the zeros that they end in.
//!
//! Owns: that form; as JSON's lists of numbers they are most of the time that a restore takes to read its state.
//! Refuses: digits that are none, and more bytes than the structure has. What the bytes mean is KVM's.

use serde::de::{Error, Visitor};
use serde::{Deserializer, Serializer};
use std::marker::PhantomData;
use zerocopy::{FromBytes, Immutable, IntoBytes};

const DIGITS: &[u8; 16] = b"0123456789abcdef";

pub(crate) fn serialize<T: IntoBytes + Immutable, S: Serializer>(
    value: &T,
    to: S,
) -> Result<S::Ok, S::Error> {
    to.serialize_str(&text(value.as_bytes()))
}

pub(crate) fn deserialize<'de, T: FromBytes + IntoBytes, D: Deserializer<'de>>(
    from: D,
) -> Result<T, D::Error> {
    let mut value = T::new_zeroed();
    from.deserialize_str(Digits(value.as_mut_bytes()))?;
    Ok(value)
}

/// Several, one behind the other; of these no zeros are left out.
pub(crate) mod list {
    use super::{
        Deserializer, Error, FromBytes, Immutable, IntoBytes, Items, PhantomData, Serializer,
        hexadecimal,
    };

    pub(crate) fn serialize<T: IntoBytes + Immutable, S: Serializer>(
        values: &[T],
        to: S,
    ) -> Result<S::Ok, S::Error> {
        to.serialize_str(&hexadecimal(values.as_bytes()))
    }

    pub(crate) fn deserialize<'de, T: FromBytes + IntoBytes, D: Deserializer<'de>>(
        from: D,
    ) -> Result<Vec<T>, D::Error> {
        from.deserialize_str(Items(PhantomData))
    }

    /// So many of them as the digits are for.
    pub(super) fn read<T: FromBytes + IntoBytes, E: Error>(digits: &str) -> Result<Vec<T>, E> {
        let digits_each = 2 * size_of::<T>();
        if !digits.len().is_multiple_of(digits_each) {
            return Err(E::custom("digits of half a structure"));
        }
        let pieces = digits.as_bytes().chunks_exact(digits_each);
        let one = |piece: &[u8]| {
            let mut value = T::new_zeroed();
            super::fill(value.as_mut_bytes(), piece)?;
            Ok(value)
        };
        pieces.map(one).collect()
    }
}

fn hexadecimal(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        text.push(char::from(DIGITS[usize::from(byte >> 4)]));
        text.push(char::from(DIGITS[usize::from(byte & 0xf)]));
    }
    text
}

fn text(bytes: &[u8]) -> String {
    let used = bytes.iter().rposition(|byte| *byte != 0);
    hexadecimal(&bytes[..used.map_or(0, |last| last + 1)])
}

fn value(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    }
}

/// Two digits are a byte; bytes that have none stay as they are.
fn fill<E: Error>(bytes: &mut [u8], digits: &[u8]) -> Result<(), E> {
    if !digits.len().is_multiple_of(2) || digits.len() > 2 * bytes.len() {
        return Err(E::invalid_length(digits.len(), &"two digits a byte"));
    }
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        let both = value(pair[0]).zip(value(pair[1]));
        let (high, low) = both.ok_or_else(|| E::custom("no hexadecimal digit"))?;
        *byte = high << 4 | low;
    }
    Ok(())
}

/// Where the bytes of one structure go.
struct Digits<'a>(&'a mut [u8]);

impl Visitor<'_> for Digits<'_> {
    type Value = ();

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "at most {} hexadecimal digits", 2 * self.0.len())
    }

    fn visit_str<E: Error>(self, digits: &str) -> Result<(), E> {
        fill(self.0, digits.as_bytes())
    }
}

struct Items<T>(PhantomData<T>);

impl<T: FromBytes + IntoBytes> Visitor<'_> for Items<T> {
    type Value = Vec<T>;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("hexadecimal digits of whole structures")
    }

    fn visit_str<E: Error>(self, digits: &str) -> Result<Vec<T>, E> {
        list::read(digits)
    }
}

#[cfg(test)]
mod tests {
    use kvm_bindings::{kvm_msr_entry, kvm_regs};
    use serde::{Deserialize, Serialize};

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Both {
        #[serde(with = "super")]
        one: kvm_regs,
        #[serde(with = "super::list")]
        many: Vec<kvm_msr_entry>,
    }

    fn both() -> Both {
        let msr = |index, data| kvm_msr_entry {
            index,
            data,
            ..Default::default()
        };
        Both {
            one: kvm_regs {
                rax: 0x1234,
                ..Default::default()
            },
            many: vec![msr(0x10, 7), msr(0xc000_0080, 0)],
        }
    }

    #[test]
    fn what_is_written_is_read_and_zeros_at_the_end_are_left_out() {
        let text = serde_json::to_string(&both()).expect("plain data");
        assert!(
            text.starts_with(r#"{"one":"3412","many":"10000000000000000700"#),
            "{text}"
        );
        assert_eq!(serde_json::from_str::<Both>(&text).expect("reads"), both());
        let none = Both {
            one: kvm_regs::default(),
            many: Vec::new(),
        };
        let text = serde_json::to_string(&none).expect("plain data");
        assert_eq!(text, r#"{"one":"","many":""}"#);
        assert_eq!(serde_json::from_str::<Both>(&text).expect("reads"), none);
    }

    #[test]
    fn what_is_no_structure_is_refused() {
        let long = "0".repeat(2 * size_of::<kvm_regs>() + 2);
        for (one, many) in [
            ("123", ""),
            ("1G", ""),
            ("1A", ""),
            (long.as_str(), ""),
            ("", "10"),
            ("é", ""),
        ] {
            let text = format!(r#"{{"one":"{one}","many":"{many}"}}"#);
            assert!(serde_json::from_str::<Both>(&text).is_err(), "{text}");
        }
        assert!(serde_json::from_str::<Both>(r#"{"one":[1],"many":""}"#).is_err());
    }
}
