//! Where an object goes.
//!
//! Owns: the bound of its length, whichever kind of store it comes from. Refuses: to compare hashes; who reads does.

use std::fmt::Display;

use crate::StoreError;

type Take<'a> = dyn FnMut(&[u8]) -> Result<(), String> + Send + 'a;

/// Takes an object piece by piece, of at most so many bytes, and may refuse it.
pub struct Sink<'a> {
    limit: u64,
    received: u64,
    take: Box<Take<'a>>,
}

impl std::fmt::Debug for Sink<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sink")
            .field("limit", &self.limit)
            .field("received", &self.received)
            .finish_non_exhaustive()
    }
}

impl<'a> Sink<'a> {
    pub fn new(limit: u64, take: impl FnMut(&[u8]) -> Result<(), String> + Send + 'a) -> Self {
        Self {
            limit,
            received: 0,
            take: Box::new(take),
        }
    }

    /// Into memory.
    pub fn memory(limit: u64, bytes: &'a mut Vec<u8>) -> Self {
        Self::new(limit, |piece| {
            bytes.extend_from_slice(piece);
            Ok(())
        })
    }

    /// So many bytes are announced, before the first has come.
    pub(crate) fn announce(
        &self,
        store: &dyn Display,
        object: &dyn Display,
        bytes: u64,
    ) -> Result<(), StoreError> {
        if bytes <= self.limit {
            return Ok(());
        }
        Err(StoreError::Large {
            store: store.to_string(),
            object: object.to_string(),
            limit: self.limit,
        })
    }

    /// The next piece.
    pub(crate) fn push(
        &mut self,
        store: &dyn Display,
        object: &dyn Display,
        piece: &[u8],
    ) -> Result<(), StoreError> {
        self.received += piece.len() as u64;
        self.announce(store, object, self.received)?;
        (self.take)(piece).map_err(StoreError::Sink)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sink_takes_as_many_bytes_as_it_may_and_not_one_more() {
        let mut bytes = Vec::new();
        let mut sink = Sink::memory(5, &mut bytes);
        assert_eq!(sink.announce(&"s", &"o", 5), Ok(()));
        assert!(sink.announce(&"s", &"o", 6).is_err());
        assert_eq!(sink.push(&"s", &"o", b"abc"), Ok(()));
        assert_eq!(sink.push(&"s", &"o", b"de"), Ok(()));
        let error = sink.push(&"s", &"o", b"f");
        assert!(matches!(error, Err(StoreError::Large { limit: 5, .. })));
        drop(sink);
        assert_eq!(bytes, b"abcde");
    }
}
