//! Netlink attributes: type-length-value, padded to four bytes, nested.
//!
//! Owns: writing and reading them. Refuses: an attribute that reaches over its end; reading stops there.

use std::net::Ipv4Addr;

/// Set on the type of an attribute that holds attributes.
const NESTED: u16 = 1 << 15;
/// The type without its flag bits (NLA_TYPE_MASK).
const TYPE_MASK: u16 = 0x3fff;
const HEADER_BYTES: usize = 4;

/// The body of a message while it is written.
#[derive(Debug, Clone, Default)]
pub(crate) struct Writer(Vec<u8>);

impl Writer {
    /// Begins with the fixed header that the message's family asks for.
    pub(crate) fn new(header: &[u8]) -> Self {
        Self(header.to_vec())
    }

    pub(crate) fn bytes(&mut self, kind: u16, value: &[u8]) -> &mut Self {
        let length = u16::try_from(HEADER_BYTES + value.len());
        let length = length.expect("attributes are written from bounded names and numbers");
        self.0.extend_from_slice(&length.to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(value);
        self.pad();
        self
    }

    pub(crate) fn u8(&mut self, kind: u16, value: u8) -> &mut Self {
        self.bytes(kind, &[value])
    }

    /// Native byte order, as rtnetlink has it.
    pub(crate) fn u32(&mut self, kind: u16, value: u32) -> &mut Self {
        self.bytes(kind, &value.to_ne_bytes())
    }

    /// Network byte order, as nf_tables has it.
    pub(crate) fn be32(&mut self, kind: u16, value: u32) -> &mut Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    /// Network byte order, as nf_tables has it.
    pub(crate) fn be64(&mut self, kind: u16, value: u64) -> &mut Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    /// Text with its final NUL.
    pub(crate) fn text(&mut self, kind: u16, value: &str) -> &mut Self {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.bytes(kind, &bytes)
    }

    pub(crate) fn ip(&mut self, kind: u16, value: Ipv4Addr) -> &mut Self {
        self.bytes(kind, &value.octets())
    }

    pub(crate) fn nest(&mut self, kind: u16, write: impl FnOnce(&mut Self)) -> &mut Self {
        let mut inner = Self::default();
        write(&mut inner);
        self.bytes(kind | NESTED, &inner.0)
    }

    /// Bytes that are no attribute: a header inside a nest.
    pub(crate) fn raw(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.extend_from_slice(bytes);
        self.pad();
        self
    }

    fn pad(&mut self) {
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }

    pub(crate) fn finish(self) -> Vec<u8> {
        self.0
    }
}

/// Attributes in bytes from the kernel: (type, value).
#[derive(Debug, Clone)]
pub(crate) struct Attributes<'a>(pub(crate) &'a [u8]);

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let length = usize::from(u16::from_ne_bytes(self.0.get(..2)?.try_into().ok()?));
        let kind = u16::from_ne_bytes(self.0.get(2..HEADER_BYTES)?.try_into().ok()?);
        let value = self.0.get(HEADER_BYTES..length)?;
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind & TYPE_MASK, value))
    }
}

/// A number in native byte order, if the value is four bytes long.
pub(crate) fn u32_of(value: &[u8]) -> Option<u32> {
    Some(u32::from_ne_bytes(value.try_into().ok()?))
}

pub(crate) fn ip_of(value: &[u8]) -> Option<Ipv4Addr> {
    Some(Ipv4Addr::from(<[u8; 4]>::try_from(value).ok()?))
}

/// Text up to its NUL.
pub(crate) fn text_of(value: &[u8]) -> Option<&str> {
    std::str::from_utf8(value.split(|b| *b == 0).next()?).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, proptest};

    use super::*;

    #[test]
    fn attributes_read_back_as_they_were_written() {
        let mut writer = Writer::default();
        writer.text(3, "eth0").u32(4, 1500).nest(18, |inner| {
            inner.text(1, "bridge");
        });
        let bytes = writer.finish();
        let read: Vec<_> = Attributes(&bytes).collect();
        assert_eq!(read[0], (3, &b"eth0\0"[..]));
        assert_eq!(u32_of(read[1].1), Some(1500));
        assert_eq!(
            Attributes(read[2].1).next().and_then(|(_, v)| text_of(v)),
            Some("bridge")
        );
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_to_an_end(bytes: Vec<u8>, more in any::<[u8; 12]>()) {
            assert!(Attributes(&bytes).count() <= bytes.len() / HEADER_BYTES);
            assert!(Attributes(&more).count() <= 3);
        }
    }
}
