//! A machine's log: records out of two files that are used in turn.
//!
//! Owns: their order by sequence, the tail, and following what is written next.
//! Refuses: what is no whole record. The last one may still be on its way; it comes when it is whole.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;

use api::LogLine;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::io::unix::AsyncFd;
use types::vm::LogRecord;

/// Records of one batch: what is held in memory at a time is this many of at most 64 KiB.
const BATCH_RECORDS: usize = 64;
/// … or this many bytes, whichever is less.
const BATCH_BYTES: usize = 256 << 10;

/// A reader's place in both files.
#[derive(Debug)]
pub(crate) struct Reader {
    paths: [PathBuf; 2],
    places: [Place; 2],
    /// Records below this have been given, or are before the tail.
    next: u64,
}

#[derive(Debug, Clone, Copy, Default)]
struct Place {
    offset: u64,
    inode: u64,
}

/// A record's header and where its bytes are.
#[derive(Debug, Clone, Copy)]
struct Found {
    file: usize,
    offset: u64,
    record: LogRecord,
}

impl Reader {
    /// Begins with the last `tail` records, or with the first that is still there.
    pub(crate) fn open(paths: [PathBuf; 2], tail: Option<u64>) -> io::Result<Self> {
        let mut reader = Self {
            paths,
            places: [Place::default(); 2],
            next: 0,
        };
        if let Some(tail) = tail {
            // Sequences count up by one, so the newest tells where the tail begins.
            let newest = [0, 1].map(|file| reader.newest(file));
            let [a, b] =
                [newest[0].as_ref(), newest[1].as_ref()].map(|n| n.ok().copied().flatten());
            if let Some(newest) = a.max(b) {
                reader.next = (newest + 1).saturating_sub(tail);
            }
        }
        Ok(reader)
    }

    fn newest(&self, file: usize) -> io::Result<Option<u64>> {
        let mut newest = None;
        self.scan(file, 0, &mut |found| {
            newest = newest.max(Some(found.record.sequence));
            true
        })?;
        Ok(newest)
    }

    /// Visits whole records from `offset` on, until `visit` says stop.
    fn scan(
        &self,
        file: usize,
        offset: u64,
        visit: &mut impl FnMut(Found) -> bool,
    ) -> io::Result<u64> {
        let opened = match File::open(&self.paths[file]) {
            Ok(opened) => opened,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(0),
            Err(e) => return Err(e),
        };
        let length = opened.metadata()?.len();
        let mut reader = BufReader::new(opened);
        let mut at = reader.seek(SeekFrom::Start(offset))?;
        let header_bytes = LogRecord::HEADER_BYTES as u64;
        while at + header_bytes <= length {
            let mut header = [0; LogRecord::HEADER_BYTES];
            reader.read_exact(&mut header)?;
            let Some(record) = LogRecord::decode(&header) else {
                break;
            };
            let end = at + header_bytes + u64::from(record.length);
            if end > length {
                break;
            }
            let found = Found {
                file,
                offset: at + header_bytes,
                record,
            };
            if !visit(found) {
                break;
            }
            reader.seek_relative(i64::from(record.length))?;
            at = end;
        }
        Ok(at)
    }

    /// The next records in order, at most a batch of them. Empty: all have been given.
    pub(crate) fn batch(&mut self) -> io::Result<Vec<LogLine>> {
        let mut found: [VecDeque<Found>; 2] = Default::default();
        for file in [0, 1] {
            self.forget_if_begun_anew(file)?;
            let (next, mut bytes) = (self.next, 0);
            let queue = &mut found[file];
            self.scan(file, self.places[file].offset, &mut |f| {
                if f.record.sequence >= next {
                    bytes += f.record.length as usize;
                    queue.push_back(f);
                }
                queue.len() < BATCH_RECORDS && bytes < BATCH_BYTES
            })?;
        }
        let mut lines = Vec::new();
        let mut bytes = 0;
        while lines.len() < BATCH_RECORDS && bytes < BATCH_BYTES {
            let [a, b] = &mut found;
            let queue = match (a.front(), b.front()) {
                (Some(x), Some(y)) if x.record.sequence <= y.record.sequence => a,
                (Some(_), None) => a,
                (_, Some(_)) => b,
                (None, None) => break,
            };
            let Some(next) = queue.pop_front() else { break };
            // Truncated under us: the writer has begun this file anew, and so shall we.
            let Some(line) = self.line(&next)? else { break };
            bytes += line.data.len();
            self.places[next.file].offset = next.offset + u64::from(next.record.length);
            self.next = next.record.sequence + 1;
            lines.push(line);
        }
        Ok(lines)
    }

    fn line(&self, found: &Found) -> io::Result<Option<LogLine>> {
        let mut file = match File::open(&self.paths[found.file]) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(e),
        };
        file.seek(SeekFrom::Start(found.offset))?;
        let mut data = vec![0; found.record.length as usize];
        match file.read_exact(&mut data) {
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            Err(e) => return Err(e),
        }
        Ok(Some(LogLine {
            seq: found.record.sequence,
            time_ms: found.record.time_ms,
            stream: found.record.stream,
            data,
        }))
    }

    /// A file that is shorter than our place in it, or another file, is read from its beginning.
    fn forget_if_begun_anew(&mut self, file: usize) -> io::Result<()> {
        use std::os::unix::fs::MetadataExt;
        let (length, inode) = match std::fs::metadata(&self.paths[file]) {
            Ok(m) => (m.len(), m.ino()),
            Err(e) if e.kind() == io::ErrorKind::NotFound => (0, 0),
            Err(e) => return Err(e),
        };
        let place = &mut self.places[file];
        if length < place.offset || inode != place.inode {
            *place = Place { offset: 0, inode };
        }
        Ok(())
    }
}

/// Wakes when either file changes.
#[derive(Debug)]
pub(crate) struct Watch(AsyncFd<Events>);

#[derive(Debug)]
struct Events(Inotify);

impl AsFd for Events {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl std::os::fd::AsRawFd for Events {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        std::os::fd::AsRawFd::as_raw_fd(&self.0.as_fd())
    }
}

impl Watch {
    /// Made before the first read, it misses nothing.
    #[expect(
        deprecated,
        reason = "`register` asks the caller to vouch that the descriptor stays open and the same; `Events` \
                  owns it and nobody takes it out again"
    )]
    pub(crate) fn new(paths: &[PathBuf; 2]) -> io::Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
        for path in paths {
            inotify.add_watch(
                path,
                AddWatchFlags::IN_MODIFY | AddWatchFlags::IN_DELETE_SELF,
            )?;
        }
        Ok(Self(AsyncFd::new(Events(inotify))?))
    }

    /// Waits for a change. What changed before this was called counts.
    pub(crate) async fn changed(&mut self) -> io::Result<()> {
        let mut ready = self.0.readable().await?;
        // One read takes all that wait, up to its buffer; more keeps the descriptor ready.
        match ready.get_inner().0.read_events() {
            Ok(_) => Ok(()),
            Err(nix::errno::Errno::EAGAIN) => {
                ready.clear_ready();
                Ok(())
            }
            Err(errno) => Err(errno.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::OpenOptions;
    use std::io::Write;
    use types::vm::Stream;

    struct Log {
        _directory: tempfile::TempDir,
        paths: [PathBuf; 2],
        sequence: u64,
    }

    impl Log {
        fn new() -> Self {
            let directory = tempfile::tempdir().expect("a directory");
            let paths = ["log.a", "log.b"].map(|name| directory.path().join(name));
            paths
                .iter()
                .for_each(|p| drop(File::create(p).expect("a file")));
            Self {
                _directory: directory,
                paths,
                sequence: 0,
            }
        }

        fn write(&mut self, file: usize, data: &[u8]) {
            let header = LogRecord {
                sequence: self.sequence,
                time_ms: 7,
                stream: Stream::Stdout,
                length: u32::try_from(data.len()).expect("short"),
            };
            self.sequence += 1;
            self.append(file, &header.encode());
            self.append(file, data);
        }

        fn append(&self, file: usize, bytes: &[u8]) {
            let mut file = OpenOptions::new()
                .append(true)
                .open(&self.paths[file])
                .expect("the file");
            file.write_all(bytes).expect("write");
        }

        fn reader(&self, tail: Option<u64>) -> Reader {
            Reader::open(self.paths.clone(), tail).expect("a reader")
        }
    }

    fn sequences(reader: &mut Reader) -> Vec<u64> {
        let mut all = Vec::new();
        loop {
            let batch = reader.batch().expect("a batch");
            if batch.is_empty() {
                return all;
            }
            all.extend(batch.iter().map(|line| line.seq));
        }
    }

    #[test]
    fn both_files_are_read_in_the_order_of_writing() {
        let mut log = Log::new();
        (0..3).for_each(|_| log.write(1, b"old"));
        (0..200).for_each(|_| log.write(0, b"new"));
        assert_eq!(
            sequences(&mut log.reader(None)),
            (0..203).collect::<Vec<_>>()
        );
        assert_eq!(sequences(&mut log.reader(Some(2))), [201, 202]);
        assert_eq!(sequences(&mut log.reader(Some(0))), Vec::<u64>::new());
        assert_eq!(sequences(&mut log.reader(Some(9999))).len(), 203);
    }

    #[test]
    fn a_follower_goes_on_over_a_change_of_files() {
        let mut log = Log::new();
        log.write(0, b"a");
        let mut reader = log.reader(None);
        assert_eq!(sequences(&mut reader), [0]);
        log.write(0, b"b");
        log.write(1, b"c");
        assert_eq!(sequences(&mut reader), [1, 2]);
        File::create(&log.paths[0]).expect("truncated");
        log.write(0, b"d");
        assert_eq!(sequences(&mut reader), [3]);
    }

    #[test]
    fn a_record_that_is_not_whole_waits() {
        let mut log = Log::new();
        log.write(0, b"a");
        let header = LogRecord {
            sequence: 1,
            time_ms: 0,
            stream: Stream::Stderr,
            length: 4,
        };
        log.append(0, &header.encode());
        let mut reader = log.reader(None);
        assert_eq!(sequences(&mut reader), [0]);
        log.append(0, b"late");
        assert_eq!(sequences(&mut reader), [1]);
    }

    #[test]
    fn damage_ends_the_reading_of_a_file_and_nothing_else() {
        let mut log = Log::new();
        log.write(0, b"a");
        log.append(0, &[0xff; 40]);
        log.write(1, b"b");
        assert_eq!(sequences(&mut log.reader(None)), [0, 1]);
    }

    #[tokio::test]
    async fn a_watch_wakes_on_a_write() {
        let mut log = Log::new();
        let mut watch = Watch::new(&log.paths).expect("a watch");
        log.write(1, b"x");
        tokio::time::timeout(std::time::Duration::from_secs(5), watch.changed())
            .await
            .expect("in time")
            .expect("no error");
    }
}
