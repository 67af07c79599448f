//! The first bytes of a copy: which format it has, and which Sifr reads that.
//!
//! Owns: the header of every format there was, and what a build says of one from the future.
//! Refuses: records.
//!
//! From format 2 on the header is the same for ever, so that every build can tell of every later format what it
//! needs: magic (8 bytes), format (u32 LE), its check (4), the version of Sifr that reads it (32, ASCII, filled up
//! with zeros), reserved (12), and a check of all that (4). Format 1 ended after the first check.

const MAGIC: [u8; 8] = *b"SIFRLDGR";

/// One row for each format: its number, the first version of Sifr that reads it, and what it brought. A kind of
/// workload, an action or a field that older builds do not know needs a row of its own once the last one was
/// released: a build must never meet a statement that it cannot read in a format that it can.
const FORMATS: [(u32, &str, &str); 4] = [
    (1, "0.0.0", "machines"),
    (
        2,
        "0.0.0",
        "a header that says what it needs; volumes; classes of disks",
    ),
    (
        3,
        "0.0.0",
        "networks, also across nodes; published UDP ports; pools of addresses",
    ),
    (
        4,
        "0.0.0",
        "names of ingress, which may lead to machines on other nodes; certificates that are brought or ordered",
    ),
];
/// Written, and the newest that is read.
pub(super) const FORMAT: u32 = FORMATS[FORMATS.len() - 1].0;
/// Records are laid out alike from this format on: a copy of one may be added to as it is.
pub(super) const LAYOUT_SINCE: u32 = 1;

/// Of every format but the first.
pub(super) const HEADER_BYTES: usize = 64;
const FIRST_HEADER_BYTES: usize = 16;
const NEEDS_BYTES: usize = 32;
const NEEDS_AT: usize = 16;
const CHECK_AT: usize = HEADER_BYTES - 4;

/// What the first bytes of a copy are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Header {
    /// One of ours; records begin after this many bytes.
    Known { format: u32, length: usize },
    /// Only a newer build reads it: that of this version, where the header says so.
    Newer { format: u32, needs: Option<String> },
    /// No header, or its bytes have changed.
    Damaged,
}

pub(super) fn read(bytes: &[u8]) -> Header {
    // A file comes to its name whole: no power cut leaves less than a header.
    let Some((first, _)) = bytes.split_first_chunk::<FIRST_HEADER_BYTES>() else {
        return Header::Damaged;
    };
    let word = |at: usize| [first[at], first[at + 1], first[at + 2], first[at + 3]];
    // A version counts only under its own checksum: a flipped bit is damage, not a future.
    if first[..8] != MAGIC || word(12) != check(&word(8)) {
        return Header::Damaged;
    }
    let format = u32::from_le_bytes(word(8));
    let whole = bytes
        .split_first_chunk::<HEADER_BYTES>()
        .map(|(whole, _)| whole);
    let whole = whole.filter(|whole| whole[CHECK_AT..] == check(&whole[..CHECK_AT]));
    match (format, whole) {
        (0, _) => Header::Damaged,
        (1, _) => Header::Known {
            format,
            length: FIRST_HEADER_BYTES,
        },
        // Its number is intact, and that is enough not to touch it.
        (FORMAT.., None) if format > FORMAT => Header::Newer {
            format,
            needs: None,
        },
        (_, None) => Header::Damaged,
        (_, Some(whole)) if format > FORMAT => Header::Newer {
            format,
            needs: needs(&whole[NEEDS_AT..NEEDS_AT + NEEDS_BYTES]),
        },
        (_, Some(_)) => Header::Known {
            format,
            length: HEADER_BYTES,
        },
    }
}

/// Whatever a disk holds there, only what looks like a version is shown to people.
fn needs(field: &[u8]) -> Option<String> {
    let text = field.split(|byte| *byte == 0).next()?;
    let text = std::str::from_utf8(text).ok()?;
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '+');
    (!text.is_empty() && text.chars().all(fits)).then(|| text.to_owned())
}

fn check(bytes: &[u8]) -> [u8; 4] {
    let [a, b, c, d, ..] = *blake3::hash(bytes).as_bytes();
    [a, b, c, d]
}

/// Of what this build writes.
pub(super) fn header() -> Vec<u8> {
    let (format, needs, _) = FORMATS[FORMATS.len() - 1];
    made(format, needs)
}

fn made(format: u32, needs: &str) -> Vec<u8> {
    let mut out = MAGIC.to_vec();
    out.extend_from_slice(&format.to_le_bytes());
    out.extend_from_slice(&check(&format.to_le_bytes()));
    out.extend(needs.bytes().take(NEEDS_BYTES));
    out.resize(CHECK_AT, 0);
    out.extend_from_slice(&check(&out));
    out
}

/// As another build would have begun it.
#[cfg(test)]
pub(super) fn of_format(format: u32, needs: &str) -> Vec<u8> {
    let whole = made(format, needs);
    match format {
        1 => whole[..FIRST_HEADER_BYTES].to_vec(),
        _ => whole,
    }
}

#[cfg(test)]
mod tests {
    use types::deployment::Workload;

    use super::*;

    /// Which format a kind of workload came with: a new kind does not build here before it has one.
    fn since(workload: &Workload) -> u32 {
        match workload {
            Workload::Machine(_) => 1,
            Workload::Volume(_) => 2,
            Workload::Network(_) | Workload::Pool(_) => 3,
        }
    }

    #[test]
    fn formats_count_up_and_no_build_writes_what_needs_a_newer_one() {
        let parts = |text: &str| -> Vec<u64> {
            let numbers = text.split('.').map(|part| part.parse().expect("a number"));
            numbers.collect()
        };
        let ours = parts(env!("CARGO_PKG_VERSION"));
        for (at, (format, version, brought)) in FORMATS.into_iter().enumerate() {
            assert_eq!(format as usize, at + 1);
            assert!(version.len() <= NEEDS_BYTES && !brought.is_empty());
            assert!(parts(version) <= ours, "format {format} needs {version}");
        }
    }

    #[test]
    fn each_kind_of_workload_came_with_a_format_that_this_build_writes() {
        let deployment = crate::desired::tests::deployment(1);
        for workload in deployment.workloads.values() {
            assert!((1..=FORMAT).contains(&since(workload)));
        }
    }

    #[test]
    fn every_format_there_was_is_known_and_each_later_one_says_what_it_needs() {
        for (format, needs, _) in FORMATS {
            let bytes = of_format(format, needs);
            let length = bytes.len();
            assert_eq!(read(&bytes), Header::Known { format, length });
        }
        let future = |needs: &str| read(&of_format(FORMAT + 5, needs));
        let newer = |needs: Option<&str>| Header::Newer {
            format: FORMAT + 5,
            needs: needs.map(str::to_owned),
        };
        assert_eq!(future("12.3.4-rc.1"), newer(Some("12.3.4-rc.1")));
        assert_eq!(future(""), newer(None));
        assert_eq!(future("\x1b[2J"), newer(None), "nothing paints the console");
    }

    #[test]
    fn a_header_with_one_bit_changed_is_damage_or_a_future_that_nobody_touches() {
        let whole = header();
        for at in 0..whole.len() * 8 {
            let mut bytes = whole.clone();
            bytes[at / 8] ^= 1 << (at % 8);
            assert_eq!(read(&bytes), Header::Damaged, "bit {at}");
            let mut bytes = of_format(FORMAT + 1, "9.9.9");
            bytes[at / 8] ^= 1 << (at % 8);
            let found = read(&bytes);
            assert!(!matches!(found, Header::Known { .. }), "bit {at}");
        }
        for cut in 0..whole.len() {
            assert_eq!(read(&whole[..cut]), Header::Damaged, "cut at {cut}");
        }
    }
}
