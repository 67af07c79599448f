//! Netlink attributes: type-length-value, padded to four bytes, nested.
//!
//! Owns: writing them as nf_tables and generic netlink families read them. Refuses: reading (`counters` does).

/// Set on the type of an attribute that holds attributes.
const NESTED: u16 = 1 << 15;
const HEADER_BYTES: usize = 4;

/// The body of a message while it is written. Numbers are in network byte order: those of families that want the machine's are written as bytes.
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
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    pub(crate) fn u8(&mut self, kind: u16, value: u8) -> &mut Self {
        self.bytes(kind, &[value])
    }

    pub(crate) fn be32(&mut self, kind: u16, value: u32) -> &mut Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    pub(crate) fn be64(&mut self, kind: u16, value: u64) -> &mut Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    /// Text with its final NUL.
    pub(crate) fn text(&mut self, kind: u16, value: &str) -> &mut Self {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.bytes(kind, &bytes)
    }

    pub(crate) fn nest(&mut self, kind: u16, write: impl FnOnce(&mut Self)) -> &mut Self {
        let mut inner = Self::default();
        write(&mut inner);
        self.bytes(kind | NESTED, &inner.0)
    }

    pub(crate) fn finish(self) -> Vec<u8> {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use rtnetlink::packet_core::NlasIterator;

    use super::*;

    #[test]
    fn attributes_read_back_as_they_were_written() {
        let mut writer = Writer::default();
        writer.text(3, "sifr").be32(4, 1500).nest(18, |inner| {
            inner.text(1, "bridge");
        });
        let bytes = writer.finish();
        let read: Vec<_> = NlasIterator::new(&bytes)
            .map(|attribute| attribute.expect("an attribute"))
            .collect();
        assert_eq!((read[0].kind(), read[0].value()), (3, &b"sifr\0"[..]));
        assert_eq!(read[1].value(), 1500_u32.to_be_bytes());
        let inner = NlasIterator::new(read[2].value()).next();
        let inner = inner.expect("one more").expect("an attribute");
        assert_eq!((inner.kind(), inner.value()), (1, &b"bridge\0"[..]));
        assert_eq!(bytes.len(), 12 + 8 + 16);
    }
}
