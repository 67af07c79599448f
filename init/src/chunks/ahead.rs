//! Read-ahead: which chunks a VM will want next, from those that it wanted.
//!
//! Owns: the streams of a VM's reads and how far each is read ahead: nothing at a first touch, one chunk at the second in a
//! row, then twice as many each time, up to a bound. A touch that continues no stream begins one and brings nothing.
//! Pure. Refuses: fetching, and knowing what is present.

use std::ops::Range;

/// Most chunks that are read ahead of one stream: 4 MiB of the usual chunks, which a LAN brings in the time that a guest
/// needs to read what it has.
pub(crate) const WINDOW_MAX: u32 = 8;
/// Streams that are told apart: a guest reads a few files at once. The one that rested longest makes room.
const STREAMS_MAX: usize = 4;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stream {
    /// The chunk wanted last.
    last: u32,
    /// The first that was not asked for ahead.
    end: u32,
    window: u32,
}

/// Of one VM and its disk; the stream that moved last stands last.
#[derive(Debug, Clone, Default)]
pub(crate) struct Streams(Vec<Stream>);

/// What follows from a touch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ahead {
    /// Read since the last touch without anybody being asked: they had come ahead.
    pub(crate) passed: Range<u32>,
    /// To be got before it is wanted. May go beyond the disk.
    pub(crate) next: Range<u32>,
}

impl Streams {
    /// The VM waits for a chunk: those that were there already it does not wait for, and says nothing of.
    pub(crate) fn touch(&mut self, chunk: u32) -> Ahead {
        let continues = |s: &Stream| (s.last..=s.end).contains(&chunk);
        let Some(at) = self.0.iter().position(continues) else {
            if self.0.len() == STREAMS_MAX {
                self.0.remove(0);
            }
            let end = chunk.saturating_add(1);
            self.0.push(Stream {
                last: chunk,
                end,
                window: 0,
            });
            return Ahead {
                passed: chunk..chunk,
                next: end..end,
            };
        };
        let mut stream = self.0.remove(at);
        let passed = stream.last.saturating_add(1).min(chunk)..chunk;
        if chunk > stream.last {
            stream.window = (stream.window * 2).clamp(1, WINDOW_MAX);
        }
        let from = stream.end.max(chunk.saturating_add(1));
        let end = chunk
            .saturating_add(1)
            .saturating_add(stream.window)
            .max(from);
        (stream.last, stream.end) = (chunk, end);
        self.0.push(stream);
        Ahead {
            passed,
            next: from..end,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn next(streams: &mut Streams, chunk: u32) -> Range<u32> {
        streams.touch(chunk).next
    }

    #[test]
    fn a_sequence_is_read_ahead_twice_as_far_each_time_up_to_a_bound() {
        let mut streams = Streams::default();
        assert!(next(&mut streams, 10).is_empty());
        assert_eq!(next(&mut streams, 11), 12..13);
        // It had come; what lies behind it is wanted.
        let ahead = streams.touch(13);
        assert_eq!((ahead.passed, ahead.next), (12..13, 14..16));
        assert_eq!(next(&mut streams, 16), 17..21);
        assert_eq!(next(&mut streams, 21), 22..30);
        assert_eq!(next(&mut streams, 30), 31..31 + WINDOW_MAX);
    }

    #[test]
    fn a_guest_that_is_faster_than_the_store_lengthens_the_window_all_the_same() {
        let mut streams = Streams::default();
        next(&mut streams, 0);
        assert_eq!(next(&mut streams, 1), 2..3);
        assert_eq!(next(&mut streams, 2), 3..5);
        assert_eq!(next(&mut streams, 3), 5..8);
        // The same again, as after a crash of this daemon: nothing new.
        assert_eq!(next(&mut streams, 3), 8..8);
    }

    #[test]
    fn random_touches_bring_nothing() {
        let mut streams = Streams::default();
        for chunk in [900, 5, 400, 7, 100, 3, 1000, 50] {
            assert!(next(&mut streams, chunk).is_empty(), "{chunk}");
        }
        assert_eq!(streams.0.len(), STREAMS_MAX);
    }

    #[test]
    fn several_files_are_read_side_by_side() {
        let mut streams = Streams::default();
        for at in [0, 100, 200] {
            next(&mut streams, at);
        }
        for at in [0, 100, 200] {
            assert_eq!(next(&mut streams, at + 1), at + 2..at + 3);
        }
    }

    #[test]
    fn a_stream_at_the_end_of_numbers_stays_there() {
        let mut streams = Streams::default();
        for _ in 0..3 {
            let ahead = streams.touch(u32::MAX);
            assert!(ahead.next.is_empty() && ahead.passed.is_empty());
        }
        assert!(streams.touch(u32::MAX - 1).next.is_empty());
    }
}
