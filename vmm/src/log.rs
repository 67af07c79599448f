//! The log of a workload: two files used in turn, records appended.
//!
//! Owns: sequence numbers, which go on over restarts, and rotation. Refuses: to stop the workload. A
//! record that the disk does not take is lost, and said so on stderr: once until it takes one again.

use std::fs::File;
use std::io::{self, IoSlice, Write};
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};

use types::vm::{LogRecord, Stream};

use crate::report::Reports;

/// Read at a time while looking for the last record.
const SCAN_BYTES: usize = 64 << 10;
/// Least size of a file: one record of the largest size. A smaller bound would hold none.
const FILE_BYTES_MIN: u64 = LogRecord::LENGTH_MAX as u64 + LogRecord::HEADER_BYTES as u64;

/// Vsock writes to it, and at the end whoever ends the machine.
pub(crate) type SharedLog = Arc<Mutex<Log>>;

#[derive(Debug)]
pub(crate) struct Log {
    files: [File; 2],
    /// Length of each.
    lengths: [u64; 2],
    current: usize,
    max_bytes: u64,
    next: u64,
    /// The last record was lost, and it was said.
    lost: bool,
    reports: Reports,
}

/// What a file holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Content {
    /// Where the last whole record ends.
    end: u64,
    last: Option<u64>,
}

impl Log {
    /// Continues what the files hold; a torn record at the end is cut off.
    pub(crate) fn open(files: [File; 2], max_bytes: u64) -> io::Result<Self> {
        let contents = [scan(&files[0])?, scan(&files[1])?];
        let current = usize::from(contents[1].last > contents[0].last);
        files[current].set_len(contents[current].end)?;
        let next = contents[current]
            .last
            .map_or(0, |last| last.wrapping_add(1));
        Ok(Self {
            files,
            lengths: contents.map(|c| c.end),
            current,
            max_bytes: max_bytes.max(FILE_BYTES_MIN),
            next,
            lost: false,
            reports: Reports::default(),
        })
    }

    /// Appends a record of at most `LogRecord::LENGTH_MAX` bytes.
    pub(crate) fn append(&mut self, stream: Stream, bytes: &[u8]) {
        let appended = self.try_append(stream, bytes, SystemTime::now());
        let was_lost = std::mem::replace(&mut self.lost, appended.is_err());
        if let (Err(error), false) = (appended, was_lost) {
            let next = self.next;
            self.reports
                .say(format_args!("log record {next} is lost: {error}"));
        }
        // A number that was not written shows a reader that something is missing.
        self.next = self.next.wrapping_add(1);
    }

    fn try_append(&mut self, stream: Stream, bytes: &[u8], now: SystemTime) -> io::Result<()> {
        let since = now.duration_since(UNIX_EPOCH).unwrap_or_default();
        let record = LogRecord {
            sequence: self.next,
            time_ms: u64::try_from(since.as_millis()).unwrap_or(u64::MAX),
            stream,
            length: u32::try_from(bytes.len()).map_err(|_| io::ErrorKind::InvalidInput)?,
        };
        let header = record.encode();
        let total = header.len() + bytes.len();
        if self.lengths[self.current] + total as u64 > self.max_bytes {
            self.turn()?;
        }
        let current = self.current;
        let done =
            (&self.files[current]).write_vectored(&[IoSlice::new(&header), IoSlice::new(bytes)]);
        match done {
            Ok(count) if count == total => {
                self.lengths[current] += total as u64;
                Ok(())
            }
            partly => {
                // Half a record would hide all that follow.
                self.files[current].set_len(self.lengths[current])?;
                partly.and(Err(io::ErrorKind::StorageFull.into()))
            }
        }
    }

    fn turn(&mut self) -> io::Result<()> {
        let other = 1 - self.current;
        self.files[other].set_len(0)?;
        self.lengths[other] = 0;
        self.current = other;
        Ok(())
    }
}

/// Walks the records of a file from its beginning.
fn scan(file: &File) -> io::Result<Content> {
    let length = file.metadata()?.len();
    let mut content = Content { end: 0, last: None };
    let mut buffer = vec![0; SCAN_BYTES];
    let (mut from, mut filled) = (0u64, 0usize);
    loop {
        let at = usize::try_from(content.end.saturating_sub(from)).unwrap_or(usize::MAX);
        let header = buffer[..filled]
            .get(at..)
            .and_then(|rest| rest.first_chunk());
        let Some(header) = header else {
            if content.end + LogRecord::HEADER_BYTES as u64 > length {
                return Ok(content);
            }
            from = content.end;
            filled = file.read_at(&mut buffer, from)?;
            if filled < LogRecord::HEADER_BYTES {
                return Ok(content);
            }
            continue;
        };
        let end = LogRecord::decode(header).map(|record| {
            let bytes = LogRecord::HEADER_BYTES as u64 + u64::from(record.length);
            (content.end + bytes, record.sequence)
        });
        match end {
            Some((end, sequence)) if end <= length => {
                content = Content {
                    end,
                    last: Some(sequence),
                }
            }
            Some(_) | None => return Ok(content),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::OpenOptions;

    struct Files {
        directory: tempfile::TempDir,
    }

    impl Files {
        fn new() -> Self {
            Self {
                directory: tempfile::tempdir().expect("directory"),
            }
        }

        fn open(&self) -> [File; 2] {
            ["a", "b"].map(|name| {
                let mut options = OpenOptions::new();
                options.read(true).append(true).create(true);
                options
                    .open(self.directory.path().join(name))
                    .expect("opens")
            })
        }

        fn log(&self) -> Log {
            Log::open(self.open(), 0).expect("opens")
        }

        /// Sequence numbers in each file.
        fn sequences(&self) -> [Vec<u64>; 2] {
            self.open().map(|file| {
                let mut bytes =
                    vec![0; usize::try_from(file.metadata().expect("stat").len()).expect("small")];
                file.read_exact_at(&mut bytes, 0).expect("reads");
                let mut found = Vec::new();
                let mut rest = bytes.as_slice();
                while let Some((header, tail)) = rest.split_first_chunk() {
                    let record = LogRecord::decode(header).expect("a record");
                    found.push(record.sequence);
                    rest = &tail[record.length as usize..];
                }
                assert!(rest.is_empty());
                found
            })
        }
    }

    #[test]
    fn sequence_numbers_go_on_after_a_restart() {
        let files = Files::new();
        files.log().append(Stream::Stdout, b"one");
        let mut log = files.log();
        log.append(Stream::Stderr, b"two");
        log.append(Stream::Stdout, b"");
        assert_eq!(files.sequences(), [vec![0, 1, 2], vec![]]);
    }

    #[test]
    fn a_full_file_makes_the_other_one_start_anew() {
        let files = Files::new();
        let half = vec![b'x'; 33_000];
        let mut log = files.log();
        for _ in 0..4 {
            log.append(Stream::Stdout, &half);
        }
        assert_eq!(files.sequences(), [vec![2], vec![3]].map(|v| v).map(|v| v));
        let mut log = files.log();
        log.append(Stream::Stdout, b"more");
        assert_eq!(files.sequences(), [vec![2], vec![3, 4]]);
        log.append(Stream::Stdout, &half);
        assert_eq!(files.sequences(), [vec![5], vec![3, 4]]);
    }

    #[test]
    fn a_record_that_is_lost_leaves_a_gap_and_each_loss_after_a_success_is_said_again() {
        let files = Files::new();
        let mut log = files.log();
        log.append(Stream::Stdout, b"one");
        let mut full = || {
            let full = File::options().append(true).open("/dev/full");
            std::mem::replace(&mut log.files[0], full.expect("opens"))
        };
        let good = full();
        for _ in 0..2 {
            log.append(Stream::Stdout, b"lost");
            assert!(log.lost);
        }
        log.files[0] = good;
        log.append(Stream::Stdout, b"four");
        assert!(!log.lost);
        assert_eq!(files.sequences()[0], [0, 3]);
    }

    #[test]
    fn a_torn_record_at_the_end_is_cut_off() {
        let files = Files::new();
        files.log().append(Stream::Stdout, b"whole");
        for tail in [&b"torn"[..], &[1; 20], &[0; 30]] {
            (&files.open()[0]).write_all(tail).expect("writes");
            drop(files.log());
            assert_eq!(files.sequences()[0], [0]);
        }
        let record = LogRecord {
            sequence: 9,
            time_ms: 0,
            stream: Stream::Stdout,
            length: 50,
        };
        (&files.open()[0])
            .write_all(&record.encode())
            .expect("writes");
        files.log().append(Stream::Stdout, b"next");
        assert_eq!(files.sequences()[0], [0, 1]);
    }

    #[test]
    fn many_small_records_are_found_across_the_borders_of_reads() {
        let files = Files::new();
        let mut log = Log::open(files.open(), 1 << 20).expect("opens");
        for _ in 0..5000 {
            log.append(Stream::Stdout, b"0123456789");
        }
        assert_eq!(
            scan(&files.open()[0]).expect("scans"),
            Content {
                end: 150_000,
                last: Some(4999)
            }
        );
    }
}
