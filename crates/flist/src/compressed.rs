//! Compressed tar archives, told by their first bytes.
//!
//! Owns: gzip and zstd, unpacked into unnamed temporary files.
//! Refuses: to unpack without end, in absolute size or against its own size.

use std::cell::Cell;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::path::Path;

use crate::pack::is_zero;

/// Most bytes of all layers of an image. The largest that people publish have a tenth of it.
pub(crate) const UNPACKED_BYTES_MAX: u64 = 256 << 30;
/// Most times of its own size that something may unpack to. A file tree has 2 to 10, logs and tables 50;
/// zeros have 1000 with gzip and 30 000 with zstd.
const RATIO_MAX: u64 = 200;
/// Below this nobody asks: a few zeros are in many images.
const RATIO_FREE_BYTES: u64 = 1 << 30;
/// Unpacked at once.
const PIECE_BYTES: usize = 256 << 10;

/// Window of zstd (log2): what `zstd --ultra` may ask for without `--long`.
const ZSTD_WINDOW_LOG: u32 = 27;

/// How a file is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Compression {
    None,
    Gzip,
    Zstd,
    /// Known by name, and not unpacked here.
    Other(&'static str),
}

impl Compression {
    /// What a file that begins so is. Magic numbers: RFC 1952, RFC 8878, the xz and bzip2 formats.
    pub(crate) fn of(start: &[u8]) -> Self {
        match start {
            [0x1f, 0x8b, ..] => Self::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Self::Zstd,
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Self::Other("xz"),
            [b'B', b'Z', b'h', ..] => Self::Other("bzip2"),
            _ => Self::None,
        }
    }
}

/// How much one image may still unpack to, all its layers together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Room {
    left_bytes: u64,
}

impl Room {
    pub(crate) fn of_an_image() -> Self {
        Self {
            left_bytes: UNPACKED_BYTES_MAX,
        }
    }
}

/// Copies or unpacks `from` into an unnamed file in `spool`. What unpacks without end is refused as
/// [`io::ErrorKind::InvalidData`], with what it was. Zeros become holes.
/// Each piece is shown to `seen` as well.
pub(crate) fn unpack(
    from: impl Read,
    spool: &Path,
    room: &mut Room,
    seen: &mut dyn FnMut(&[u8]),
) -> io::Result<File> {
    let taken = Cell::new(0);
    let mut from = BufReader::new(Counted {
        from,
        taken: &taken,
    });
    let compression = Compression::of(from.fill_buf()?);
    let mut plain: Box<dyn Read + '_> = match compression {
        Compression::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(from)),
        Compression::Zstd => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(from)?;
            decoder.window_log_max(ZSTD_WINDOW_LOG)?;
            Box::new(decoder)
        }
        Compression::None => Box::new(from),
        Compression::Other(name) => {
            let what = format!("it is compressed with {name}: use gzip or zstd, or none");
            return Err(io::Error::new(io::ErrorKind::Unsupported, what));
        }
    };
    let mut out = tempfile::tempfile_in(spool)?;
    let (mut piece, mut unpacked) = (vec![0; PIECE_BYTES], 0);
    loop {
        let count = match plain.read(&mut piece) {
            Ok(0) => break,
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        unpacked += count as u64;
        if let Some(what) = refusal(taken.get(), unpacked, room, count as u64) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, what));
        }
        seen(&piece[..count]);
        if is_zero(&piece[..count]) {
            out.seek(SeekFrom::Current(i64::try_from(count).unwrap_or(0)))?;
        } else {
            out.write_all(&piece[..count])?;
        }
    }
    // Zeros at the end were only skipped.
    out.set_len(unpacked)?;
    Ok(out)
}

/// Whether so much out of so little is a bomb. Takes the last `count` bytes from the room.
fn refusal(packed: u64, unpacked: u64, room: &mut Room, count: u64) -> Option<String> {
    let Some(left) = room.left_bytes.checked_sub(count) else {
        return Some(format!(
            "it unpacks to more than {} GiB: pack what is in it from a directory",
            UNPACKED_BYTES_MAX >> 30
        ));
    };
    room.left_bytes = left;
    (unpacked > RATIO_FREE_BYTES && unpacked / RATIO_MAX > packed).then(|| {
        format!(
            "it unpacks to more than {RATIO_MAX} times its size, as a zip bomb does: \
             if you trust it, unpack it first"
        )
    })
}

struct Counted<'a, R> {
    from: R,
    taken: &'a Cell<u64>,
}

impl<R: Read> Read for Counted<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.from.read(buffer)?;
        self.taken.set(self.taken.get() + count as u64);
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;

    /// So many zeros, in many members or frames, as both formats allow.
    fn bomb(of_a_mebibyte: &[u8], mebibytes: usize) -> impl Read {
        let one = of_a_mebibyte.to_vec();
        let mut all: Box<dyn Read> = Box::new(io::empty());
        for _ in 0..mebibytes / 64 {
            all = Box::new(all.chain(io::Cursor::new(one.repeat(64))));
        }
        all
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        encoder.write_all(bytes).expect("memory");
        encoder.finish().expect("memory")
    }

    #[test]
    fn what_unpacks_to_far_more_than_itself_is_a_bomb() {
        let spool = tempfile::tempdir().expect("temp");
        let zeros = vec![0; 1 << 20];
        let zstd = zstd::bulk::compress(&zeros, 1).expect("memory");
        for packed in [gzip(&zeros), zstd] {
            let mut room = Room::of_an_image();
            let all = unpack(
                bomb(&packed, 1024 + 64),
                spool.path(),
                &mut room,
                &mut |_| {},
            );
            let error = all.expect_err("a bomb");
            assert!(error.to_string().contains("zip bomb"), "{error}");
            let used = UNPACKED_BYTES_MAX - room.left_bytes;
            assert!(
                used < RATIO_FREE_BYTES + (2 << 20),
                "it stopped after {used}"
            );
        }
        let small = unpack(
            bomb(&gzip(&zeros), 64),
            spool.path(),
            &mut Room::of_an_image(),
            &mut |_| {},
        );
        assert_eq!(
            small
                .expect("zeros are no crime")
                .metadata()
                .expect("stat")
                .len(),
            64 << 20
        );
    }

    #[test]
    fn all_layers_share_one_limit() {
        let spool = tempfile::tempdir().expect("temp");
        let mut room = Room { left_bytes: 10_000 };
        unpack(&[7; 9_000][..], spool.path(), &mut room, &mut |_| {}).expect("fits");
        let error =
            unpack(&[7; 9_000][..], spool.path(), &mut room, &mut |_| {}).expect_err("too much");
        assert!(error.to_string().contains("256 GiB"), "{error}");
    }
}
