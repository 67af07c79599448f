//! Structured input out of plain bytes.
//!
//! Owns: reading numbers and pieces off the front. Refuses: to fail: what is not there is zero or empty, so
//! that every input is an input.

/// Bytes that are read from front to back.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Choices<'a>(pub(crate) &'a [u8]);

impl<'a> Choices<'a> {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn take(&mut self, count: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(count.min(self.0.len()));
        self.0 = rest;
        taken
    }

    fn array<const N: usize>(&mut self) -> [u8; N] {
        let mut out = [0; N];
        let taken = self.take(N);
        out[..taken.len()].copy_from_slice(taken);
        out
    }

    pub(crate) fn u8(&mut self) -> u8 {
        u8::from_le_bytes(self.array())
    }

    pub(crate) fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.array())
    }

    pub(crate) fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.array())
    }

    pub(crate) fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.array())
    }

    /// A piece behind its length in one byte.
    pub(crate) fn short(&mut self) -> &'a [u8] {
        let count = usize::from(self.u8());
        self.take(count)
    }

    /// A piece behind its length in two bytes.
    pub(crate) fn long(&mut self) -> &'a [u8] {
        let count = usize::from(self.u16());
        self.take(count)
    }

    /// All that is left.
    pub(crate) fn rest(&mut self) -> &'a [u8] {
        self.take(self.0.len())
    }
}

/// Writes what [`Choices`] reads, for seeds.
#[derive(Debug, Clone, Default)]
pub(crate) struct Made(pub(crate) Vec<u8>);

impl Made {
    pub(crate) fn u8(mut self, value: u8) -> Self {
        self.0.push(value);
        self
    }

    pub(crate) fn u16(mut self, value: u16) -> Self {
        self.0.extend_from_slice(&value.to_le_bytes());
        self
    }

    pub(crate) fn u32(mut self, value: u32) -> Self {
        self.0.extend_from_slice(&value.to_le_bytes());
        self
    }

    pub(crate) fn u64(mut self, value: u64) -> Self {
        self.0.extend_from_slice(&value.to_le_bytes());
        self
    }

    pub(crate) fn short(self, piece: &[u8]) -> Self {
        let count = u8::try_from(piece.len()).expect("a seed's pieces are short");
        self.u8(count).raw(piece)
    }

    pub(crate) fn long(self, piece: &[u8]) -> Self {
        let count = u16::try_from(piece.len()).expect("a seed's pieces are short");
        self.u16(count).raw(piece)
    }

    pub(crate) fn raw(mut self, piece: &[u8]) -> Self {
        self.0.extend_from_slice(piece);
        self
    }
}
