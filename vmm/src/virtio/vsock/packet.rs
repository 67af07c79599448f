//! The header of a vsock packet (VIRTIO 1.2 section 5.10.6).
//!
//! Owns: its 44 bytes. Refuses: nothing; its reader judges the fields.

/// Bytes of a header.
pub(crate) const HEADER_BYTES: usize = 44;
/// Type of a stream; the only one that is offered.
pub(crate) const STREAM: u16 = 1;

/// Flags of a shutdown: the sender will not receive, will not send, any more.
pub(crate) const NO_RECEIVE: u32 = 1;
pub(crate) const NO_SEND: u32 = 2;

/// Operations.
pub(crate) mod op {
    pub(crate) const REQUEST: u16 = 1;
    pub(crate) const RESPONSE: u16 = 2;
    pub(crate) const RESET: u16 = 3;
    pub(crate) const SHUTDOWN: u16 = 4;
    pub(crate) const DATA: u16 = 5;
    pub(crate) const CREDIT_UPDATE: u16 = 6;
    pub(crate) const CREDIT_REQUEST: u16 = 7;
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Header {
    pub(crate) source_cid: u64,
    pub(crate) destination_cid: u64,
    pub(crate) source_port: u32,
    pub(crate) destination_port: u32,
    /// Bytes of data that follow.
    pub(crate) length: u32,
    pub(crate) kind: u16,
    pub(crate) operation: u16,
    pub(crate) flags: u32,
    /// The sender's receive buffer, in all.
    pub(crate) buffer: u32,
    /// Bytes that the sender has taken out of it since the connection began, modulo 2^32.
    pub(crate) forwarded: u32,
}

impl Header {
    pub(crate) fn decode(bytes: &[u8; HEADER_BYTES]) -> Self {
        let u16_at = |at: usize| u16::from_le_bytes(bytes[at..at + 2].try_into().expect("2 bytes"));
        let u32_at = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("4 bytes"));
        let u64_at = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"));
        Self {
            source_cid: u64_at(0),
            destination_cid: u64_at(8),
            source_port: u32_at(16),
            destination_port: u32_at(20),
            length: u32_at(24),
            kind: u16_at(28),
            operation: u16_at(30),
            flags: u32_at(32),
            buffer: u32_at(36),
            forwarded: u32_at(40),
        }
    }

    pub(crate) fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut out = [0; HEADER_BYTES];
        let mut at = 0;
        let mut put = |bytes: &[u8]| {
            out[at..at + bytes.len()].copy_from_slice(bytes);
            at += bytes.len();
        };
        put(&self.source_cid.to_le_bytes());
        put(&self.destination_cid.to_le_bytes());
        put(&self.source_port.to_le_bytes());
        put(&self.destination_port.to_le_bytes());
        put(&self.length.to_le_bytes());
        put(&self.kind.to_le_bytes());
        put(&self.operation.to_le_bytes());
        put(&self.flags.to_le_bytes());
        put(&self.buffer.to_le_bytes());
        put(&self.forwarded.to_le_bytes());
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_header_reads_back(bytes in prop::collection::vec(any::<u8>(), HEADER_BYTES)) {
            let bytes: [u8; HEADER_BYTES] = bytes.try_into().expect("44 bytes");
            prop_assert_eq!(Header::decode(&bytes).encode(), bytes);
        }
    }
}
