//! A machine's log: records out of two files that are used in turn.
//!
//! Owns: their order by sequence, the tail, and following what is written next.
//! Refuses: what is no whole record. The last one may still be on its way; it comes when it is whole.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use api::{Begin, LogLine};
use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::io::unix::AsyncFd;
use types::vm::LogRecord;
use workload::admission::LOG_FILE_MAX;

use super::tail::{Place, Tail};

/// Records of one batch: what is held in memory at a time is this many of at most 64 KiB.
const BATCH_RECORDS: usize = 64;
/// … or this many bytes, whichever is less.
const BATCH_BYTES: usize = 256 << 10;

/// A reader's place in both files. It holds them open: of a machine that is removed, the rest is read all
/// the same.
#[derive(Debug)]
pub(crate) struct Reader {
    paths: [PathBuf; 2],
    files: [File; 2],
    /// Records that end here or before have been given, or are before the tail.
    offsets: [u64; 2],
    /// So have records up to this one.
    last: Option<u64>,
    /// The tail begins within this record.
    cut: Option<Place>,
}

/// A record's header and where it is.
#[derive(Debug, Clone, Copy)]
struct Found {
    file: usize,
    offset: u64,
    record: LogRecord,
}

impl Found {
    fn end(&self) -> u64 {
        self.offset + LogRecord::HEADER_BYTES as u64 + u64::from(self.record.length)
    }
}

impl Reader {
    /// `None`: nothing has been started, so there is no log.
    pub(crate) fn open(paths: &[PathBuf; 2], begin: Begin) -> io::Result<Option<Self>> {
        let [Some(a), Some(b)] = [open(&paths[0])?, open(&paths[1])?] else {
            return Ok(None);
        };
        let mut reader = Self {
            paths: paths.clone(),
            files: [a, b],
            offsets: [0; 2],
            last: None,
            cut: None,
        };
        match begin {
            Begin::Oldest => {}
            Begin::Tail(lines) => reader.cut = reader.tail(lines)?,
            Begin::After { seq, time_ms } => reader.last = reader.given(seq, time_ms)?,
        }
        if let Some(cut) = reader.cut {
            reader.last = cut.sequence.checked_sub(1);
        }
        Ok(Some(reader))
    }

    /// The machine has been removed, perhaps for another of its name: nothing more comes.
    pub(crate) fn is_removed(&self) -> io::Result<bool> {
        for (path, file) in self.paths.iter().zip(&self.files) {
            let there = match fs::metadata(path) {
                Ok(there) => there,
                Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(true),
                Err(e) => return Err(e),
            };
            let held = file.metadata()?;
            if (there.dev(), there.ino()) != (held.dev(), held.ino()) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The newest record that a reader has who had this one last; `None`: none of these.
    fn given(&self, seq: u64, time_ms: u64) -> io::Result<Option<u64>> {
        let (mut is_there, mut oldest, mut earlier) = (false, None, None);
        for file in 0..self.files.len() {
            self.scan(file, 0, &mut |Found { record, .. }| {
                is_there |= (record.sequence, record.time_ms) == (seq, time_ms);
                oldest = Some(oldest.unwrap_or(u64::MAX).min(record.sequence));
                if record.sequence <= seq && record.time_ms <= time_ms {
                    earlier = earlier.max(Some(record.sequence));
                }
                true
            })?;
        }
        // It has gone with its file, as old records do; or it was lost, and the log goes on with its number.
        let is_known = is_there || oldest.is_some_and(|oldest| oldest > seq);
        Ok(if is_known { Some(seq) } else { earlier })
    }

    /// Where the last lines begin; `None`: with the first.
    fn tail(&self, lines: u64) -> io::Result<Option<Place>> {
        let mut tail = Tail::new(lines);
        let mut files = [(self.oldest(0)?, 0), (self.oldest(1)?, 1)];
        files.sort_unstable();
        for (_, file) in files {
            let mut content = Vec::new();
            let mut source = &self.files[file];
            source.seek(SeekFrom::Start(0))?;
            source.take(LOG_FILE_MAX.0).read_to_end(&mut content)?;
            let mut rest = content.as_slice();
            while let Some((header, after)) = rest.split_first_chunk()
                && let Some(record) = LogRecord::decode(header)
                && let Some((data, after)) = after.split_at_checked(record.length as usize)
            {
                tail.add(record.sequence, data);
                rest = after;
            }
        }
        Ok(tail.begin())
    }

    fn oldest(&self, file: usize) -> io::Result<Option<u64>> {
        let mut oldest = None;
        self.scan(file, 0, &mut |found| {
            oldest = Some(found.record.sequence);
            false
        })?;
        Ok(oldest)
    }

    /// Visits whole records from `offset` on, until `visit` says stop.
    fn scan(
        &self,
        file: usize,
        offset: u64,
        visit: &mut impl FnMut(Found) -> bool,
    ) -> io::Result<()> {
        let length = self.files[file].metadata()?.len();
        let mut reader = BufReader::new(&self.files[file]);
        let mut at = reader.seek(SeekFrom::Start(offset))?;
        while at + LogRecord::HEADER_BYTES as u64 <= length {
            let mut header = [0; LogRecord::HEADER_BYTES];
            match reader.read_exact(&mut header) {
                Ok(()) => {}
                // Begun anew by the writer since its length was taken.
                Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => break,
                Err(e) => return Err(e),
            }
            let Some(record) = LogRecord::decode(&header) else {
                break;
            };
            let found = Found {
                file,
                offset: at,
                record,
            };
            if found.end() > length || !visit(found) {
                break;
            }
            reader.seek_relative(i64::from(record.length))?;
            at = found.end();
        }
        Ok(())
    }

    /// The next records in order, at most a batch of them. Empty: all have been given.
    pub(crate) fn batch(&mut self) -> io::Result<Vec<LogLine>> {
        let (mut a, mut b) = (self.ahead(0)?, self.ahead(1)?);
        let mut lines = Vec::new();
        let mut bytes = 0;
        while lines.len() < BATCH_RECORDS && bytes < BATCH_BYTES {
            let queue = match (a.front(), b.front()) {
                (Some(x), Some(y)) if x.record.sequence <= y.record.sequence => &mut a,
                (Some(_), None) => &mut a,
                (_, Some(_)) => &mut b,
                (None, None) => break,
            };
            let Some(next) = queue.pop_front() else { break };
            if Some(next.record.sequence) <= self.last {
                self.offsets[next.file] = next.end();
                continue;
            }
            // The writer has begun this file anew, and so shall we.
            let Some(mut line) = self.line(&next)? else {
                break;
            };
            self.offsets[next.file] = next.end();
            self.last = Some(next.record.sequence);
            if let Some(cut) = self.cut.take_if(|cut| cut.sequence == line.seq) {
                line.data.drain(..cut.offset.min(line.data.len()));
                if line.data.is_empty() {
                    continue;
                }
            }
            bytes += line.data.len();
            lines.push(line);
        }
        Ok(lines)
    }

    /// The records of one file that have not been given: a batch of them at most. A VMM that its guest
    /// has taken over may write any numbers; those that do not rise are passed over, so that none is
    /// given twice.
    fn ahead(&mut self, file: usize) -> io::Result<VecDeque<Found>> {
        let length = self.files[file].metadata()?.len();
        if length < self.offsets[file] {
            self.offsets[file] = 0;
        }
        let from = self.offsets[file];
        let found = self.ahead_of(file, from)?;
        // More is there and no record: it is not whole yet, or the file was begun anew and has grown
        // beyond our place since. Its beginning tells.
        if found.is_empty() && from > 0 && self.offsets[file] < length {
            return self.ahead_of(file, 0);
        }
        Ok(found)
    }

    fn ahead_of(&mut self, file: usize, from: u64) -> io::Result<VecDeque<Found>> {
        let (mut found, mut bytes, mut given) = (VecDeque::new(), 0, from);
        let mut newest = self.last;
        self.scan(file, from, &mut |f| {
            if Some(f.record.sequence) > newest {
                newest = Some(f.record.sequence);
                bytes += f.record.length as usize;
                found.push_back(f);
            } else if found.is_empty() {
                given = f.end();
            }
            found.len() < BATCH_RECORDS && bytes < BATCH_BYTES
        })?;
        self.offsets[file] = given;
        Ok(found)
    }

    fn line(&self, found: &Found) -> io::Result<Option<LogLine>> {
        let LogRecord {
            sequence: seq,
            time_ms,
            stream,
            length,
        } = found.record;
        let mut data = vec![0; LogRecord::HEADER_BYTES + length as usize];
        match self.files[found.file].read_exact_at(&mut data, found.offset) {
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            Err(e) => return Err(e),
        }
        let rest = data.split_off(LogRecord::HEADER_BYTES);
        if data != found.record.encode() {
            return Ok(None);
        }
        Ok(Some(LogLine {
            seq,
            time_ms,
            stream,
            data: rest,
        }))
    }
}

fn open(path: &Path) -> io::Result<Option<File>> {
    match File::open(path) {
        Ok(file) => Ok(Some(file)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
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
    /// Fails where too many have one (`fs.inotify.max_user_instances`).
    #[expect(
        deprecated,
        reason = "`register` asks the caller to vouch that the descriptor stays open and the same; `Events` \
                  owns it and nobody takes it out again"
    )]
    pub(crate) fn new() -> io::Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
        Ok(Self(AsyncFd::new(Events(inotify))?))
    }

    /// Asked for before the first read, it misses nothing.
    pub(crate) fn add(&self, paths: &[PathBuf; 2]) -> io::Result<()> {
        for path in paths {
            match self.0.get_ref().0.add_watch(path, AddWatchFlags::IN_MODIFY) {
                // A machine that is removed just now writes nothing more.
                Ok(_) | Err(Errno::ENOENT) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }

    /// Waits for a change. What changed before this was called counts.
    pub(crate) async fn changed(&mut self) -> io::Result<()> {
        let mut ready = self.0.readable().await?;
        // One read takes all that wait, up to its buffer; more keeps the descriptor ready.
        match ready.get_inner().0.read_events() {
            Ok(_) => Ok(()),
            Err(Errno::EAGAIN) => {
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
        time: u64,
    }

    /// Of a record, where a test does not care.
    const TIME: u64 = 7;

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
                time: TIME,
            }
        }

        fn write(&mut self, file: usize, data: &[u8]) {
            let header = LogRecord {
                sequence: self.sequence,
                time_ms: self.time,
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

        fn reader(&self, begin: Begin) -> Reader {
            let opened = Reader::open(&self.paths, begin).expect("no error");
            opened.expect("a log")
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

    /// What follows a record that this test wrote at its usual time.
    fn after(seq: u64) -> Begin {
        Begin::After { seq, time_ms: TIME }
    }

    #[test]
    fn a_reader_goes_on_after_a_power_cut_that_took_what_it_had_read() {
        let mut log = Log::new();
        (0..3).for_each(|_| log.write(0, b"kept"));
        // It has read up to number 9, of which 3 to 9 are gone.
        let mut behind = log.reader(after(9));
        assert_eq!(sequences(&mut behind), [0; 0]);
        log.write(0, b"new");
        assert_eq!(
            sequences(&mut behind),
            [3],
            "it does not wait for number 10"
        );
        // The same where the log has come that far again, by other records.
        log.time = TIME + 1;
        (4..12).for_each(|_| log.write(1, b"newer"));
        assert_eq!(
            sequences(&mut log.reader(after(9))),
            [4, 5, 6, 7, 8, 9, 10, 11]
        );
        // Or all of it is gone.
        let mut anew = Log::new();
        let mut behind = anew.reader(after(9));
        anew.write(0, b"new");
        assert_eq!(sequences(&mut behind), [0]);
        // Old records go with their file, and nothing is wrong with that.
        File::create(&log.paths[0]).expect("truncated");
        assert_eq!(sequences(&mut log.reader(after(2))).len(), 8);
    }

    #[test]
    fn both_files_are_read_in_the_order_of_writing() {
        let mut log = Log::new();
        (0..3).for_each(|_| log.write(1, b"old"));
        (0..200).for_each(|_| log.write(0, b"new"));
        assert_eq!(
            sequences(&mut log.reader(Begin::Oldest)),
            (0..203).collect::<Vec<_>>()
        );
        assert_eq!(sequences(&mut log.reader(after(200))), [201, 202]);
        assert_eq!(sequences(&mut log.reader(after(0))).len(), 202);
    }

    #[test]
    fn a_tail_is_of_lines_over_both_files_and_goes_on_with_what_is_written_next() {
        let mut log = Log::new();
        log.write(1, b"one\ntwo\nthr");
        log.write(0, b"ee\nfour\n");
        let text = |reader: &mut Reader| {
            let lines = reader.batch().expect("a batch").into_iter();
            let data: Vec<u8> = lines.flat_map(|line| line.data).collect();
            String::from_utf8(data).expect("text")
        };
        assert_eq!(text(&mut log.reader(Begin::Tail(1))), "four\n");
        assert_eq!(text(&mut log.reader(Begin::Tail(2))), "three\nfour\n");
        assert_eq!(
            text(&mut log.reader(Begin::Tail(9))),
            "one\ntwo\nthree\nfour\n"
        );
        let mut next = log.reader(Begin::Tail(0));
        assert_eq!(text(&mut next), "");
        log.write(0, b"five\n");
        assert_eq!(text(&mut next), "five\n");
    }

    #[test]
    fn a_follower_goes_on_over_a_change_of_files() {
        let mut log = Log::new();
        log.write(0, b"a");
        let mut reader = log.reader(Begin::Oldest);
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
        let mut reader = log.reader(Begin::Oldest);
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
        assert_eq!(sequences(&mut log.reader(Begin::Oldest)), [0, 1]);
    }

    #[test]
    fn records_whose_numbers_do_not_rise_are_passed_over_and_none_comes_twice() {
        let mut log = Log::new();
        for (file, sequence) in [(0, 100), (0, 50), (0, 5), (0, 101), (1, 100), (1, 102)] {
            log.sequence = sequence;
            log.write(file, b"x");
        }
        // Not whole, so that the beginning is looked at again.
        log.append(0, &[0; 7]);
        let mut reader = log.reader(Begin::Oldest);
        assert_eq!(sequences(&mut reader), [100, 101, 102]);
        assert_eq!(sequences(&mut reader), Vec::<u64>::new());
    }

    #[test]
    fn a_reader_that_was_overtaken_finds_its_way_again() {
        let mut log = Log::new();
        log.write(0, b"a");
        let mut reader = log.reader(Begin::Oldest);
        assert_eq!(sequences(&mut reader), [0]);
        // Begun anew, and longer again than what has been read, with no record where the reader stands.
        File::create(&log.paths[0]).expect("truncated");
        log.write(0, &[0xff; 100]);
        assert_eq!(sequences(&mut reader), [1]);
    }

    #[test]
    fn a_removed_log_is_read_to_its_end_and_is_not_its_successor() {
        let mut log = Log::new();
        log.write(0, b"a");
        let mut reader = log.reader(Begin::Oldest);
        assert!(!reader.is_removed().expect("no error"));
        log.paths
            .iter()
            .for_each(|p| fs::remove_file(p).expect("removed"));
        assert!(reader.is_removed().expect("no error"));
        assert!(
            Reader::open(&log.paths, Begin::Oldest)
                .expect("no error")
                .is_none()
        );
        log.paths
            .iter()
            .for_each(|p| drop(File::create(p).expect("a file")));
        log.write(0, b"of another machine");
        assert!(reader.is_removed().expect("no error"));
        assert_eq!(sequences(&mut reader), [0]);
    }

    #[test]
    fn the_largest_number_is_a_number_like_others() {
        let mut log = Log::new();
        log.sequence = u64::MAX - 1;
        log.write(0, b"a");
        let header = LogRecord {
            sequence: u64::MAX,
            time_ms: 0,
            stream: Stream::Stdout,
            length: 0,
        };
        log.append(0, &header.encode());
        assert_eq!(sequences(&mut log.reader(after(u64::MAX - 1))), [u64::MAX]);
        let all = sequences(&mut log.reader(Begin::Oldest));
        assert_eq!(all[..2], [u64::MAX - 1, u64::MAX]);
    }

    #[tokio::test]
    async fn a_watch_wakes_on_a_write() {
        let mut log = Log::new();
        let mut watch = Watch::new().expect("a watch");
        watch.add(&log.paths).expect("the files are there");
        log.write(1, b"x");
        tokio::time::timeout(std::time::Duration::from_secs(5), watch.changed())
            .await
            .expect("in time")
            .expect("no error");
    }
}
