//! Where the last lines of a log begin.
//!
//! Owns: what a line is: what ends with a newline, on either stream; the last one may lack it yet.
//! Refuses: reading (`logs` does), and to keep more than a place for each line that is asked for.

use std::collections::VecDeque;

/// A place within a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) sequence: u64,
    pub(crate) offset: usize,
}

/// Takes a log from its beginning.
#[derive(Debug)]
pub(crate) struct Tail {
    wanted: usize,
    /// Where the newest lines end: one more than are wanted.
    ends: VecDeque<Place>,
    /// Where the log ends.
    end: Option<Place>,
    /// The last line has no newline.
    is_open: bool,
}

impl Tail {
    pub(crate) fn new(lines: u64) -> Self {
        Self {
            wanted: usize::try_from(lines).unwrap_or(usize::MAX),
            ends: VecDeque::new(),
            end: None,
            is_open: false,
        }
    }

    pub(crate) fn add(&mut self, sequence: u64, data: &[u8]) {
        let place = |offset| Place { sequence, offset };
        let newlines = data.iter().enumerate().filter(|(_, byte)| **byte == b'\n');
        for (at, _) in newlines {
            self.ends.push_back(place(at + 1));
            if self.ends.len() > self.wanted.saturating_add(1) {
                self.ends.pop_front();
            }
        }
        if let Some(last) = data.last() {
            self.is_open = *last != b'\n';
            self.end = Some(place(data.len()));
        }
    }

    /// The place before the lines that are wanted; `None`: there are no more than these.
    pub(crate) fn begin(&self) -> Option<Place> {
        // The end of the line before the first.
        let back = self.wanted.saturating_add(usize::from(!self.is_open));
        if back == 0 {
            return self.end;
        }
        let index = self.ends.len().checked_sub(back)?;
        self.ends.get(index).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The text from where the last `lines` of these records begin.
    fn tail(records: &[&str], lines: u64) -> String {
        let mut tail = Tail::new(lines);
        for (sequence, data) in (5..).zip(records) {
            tail.add(sequence, data.as_bytes());
        }
        let begin = tail.begin().unwrap_or(Place {
            sequence: 0,
            offset: 0,
        });
        let from = |(sequence, data): (u64, &&str)| match sequence.cmp(&begin.sequence) {
            std::cmp::Ordering::Less => String::new(),
            std::cmp::Ordering::Equal => data[begin.offset..].to_owned(),
            std::cmp::Ordering::Greater => (*data).to_owned(),
        };
        (5..).zip(records).map(from).collect()
    }

    #[test]
    fn lines_are_counted_and_not_records() {
        let log = ["a\nb", "b\nc\n", "", "d", "\n"];
        for (lines, text) in [
            (0, ""),
            (1, "d\n"),
            (2, "c\nd\n"),
            (3, "bb\nc\nd\n"),
            (4, "a\nbb\nc\nd\n"),
            (9, "a\nbb\nc\nd\n"),
            (u64::MAX, "a\nbb\nc\nd\n"),
        ] {
            assert_eq!(tail(&log, lines), text, "{lines}");
        }
    }

    #[test]
    fn a_last_line_without_its_end_is_a_line() {
        for (lines, text) in [(0, ""), (1, "c"), (2, "b\nc"), (3, "a\nb\nc")] {
            assert_eq!(tail(&["a\nb", "\nc"], lines), text, "{lines}");
        }
        assert_eq!(tail(&["no end"], 1), "no end");
        assert_eq!(tail(&[], 1), "");
    }
}
