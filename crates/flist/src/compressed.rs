//! Compressed tar archives, told by their first bytes.
//!
//! Owns: gzip and zstd, unpacked into unnamed temporary files.
//! Refuses: to unpack without end.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;

use crate::DISK_BYTES_MAX;

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

/// Copies or unpacks `from` into an unnamed file in `spool`. `None`: it is longer than any disk.
pub(crate) fn unpack(from: impl Read, spool: &Path) -> io::Result<Option<File>> {
    let mut from = BufReader::new(from);
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
    let copied = io::copy(&mut plain.by_ref().take(DISK_BYTES_MAX), &mut out)?;
    Ok((copied < DISK_BYTES_MAX).then_some(out))
}
