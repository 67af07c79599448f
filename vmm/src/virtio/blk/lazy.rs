//! Chunks of a lazy disk that the guest waits for, pure.
//!
//! Owns: which chunks are wanted and which of these have been asked for. Refuses: to ask twice, unless a
//! new daemon says hello.

use std::collections::BTreeMap;

use flist::wire::ToVmm;

/// Whether a wanted chunk has been asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Want {
    Unsent,
    Sent,
}

/// Bounded by what the parked requests of one ring can touch.
#[derive(Debug, Default)]
pub(crate) struct Wants(BTreeMap<u32, Want>);

/// What a packet of the daemon means for those who wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum News {
    Nothing,
    Ready(u32),
    Failed(u32),
}

impl Wants {
    pub(crate) fn add(&mut self, chunk: u32) {
        self.0.entry(chunk).or_insert(Want::Unsent);
    }

    /// The next chunk to ask for.
    pub(crate) fn unsent(&self) -> Option<u32> {
        self.0
            .iter()
            .find(|(_, want)| **want == Want::Unsent)
            .map(|(chunk, _)| *chunk)
    }

    pub(crate) fn sent(&mut self, chunk: u32) {
        self.0.entry(chunk).and_modify(|want| *want = Want::Sent);
    }

    pub(crate) fn hear(&mut self, packet: ToVmm) -> News {
        match packet {
            ToVmm::Hello => {
                self.0.values_mut().for_each(|want| *want = Want::Unsent);
                News::Nothing
            }
            ToVmm::Ready(chunk) => self
                .0
                .remove(&chunk)
                .map_or(News::Nothing, |_| News::Ready(chunk)),
            ToVmm::Failed(chunk) => self
                .0
                .remove(&chunk)
                .map_or(News::Nothing, |_| News::Failed(chunk)),
        }
    }

    /// Nobody will ever answer: every chunk that was wanted.
    pub(crate) fn give_up(&mut self) -> Vec<u32> {
        std::mem::take(&mut self.0).into_keys().collect()
    }

    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chunk_is_asked_for_once_and_again_after_hello() {
        let mut wants = Wants::default();
        wants.add(7);
        wants.add(7);
        assert_eq!(wants.unsent(), Some(7));
        wants.sent(7);
        assert_eq!(wants.unsent(), None);
        wants.add(7);
        assert_eq!(wants.unsent(), None);
        assert_eq!(wants.hear(ToVmm::Hello), News::Nothing);
        assert_eq!(wants.unsent(), Some(7));
    }

    #[test]
    fn only_wanted_chunks_are_news_and_each_only_once() {
        let mut wants = Wants::default();
        wants.add(1);
        wants.add(2);
        assert_eq!(wants.hear(ToVmm::Ready(9)), News::Nothing);
        assert_eq!(wants.hear(ToVmm::Ready(1)), News::Ready(1));
        assert_eq!(wants.hear(ToVmm::Ready(1)), News::Nothing);
        assert_eq!(wants.hear(ToVmm::Failed(2)), News::Failed(2));
        assert!(wants.give_up().is_empty());
    }
}
