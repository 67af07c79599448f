//! Disks that somebody plugs in.
//!
//! Owns: that nothing is called blank that is not, that a pool's mark is the owner's or refused, and that no disk is called ill
//! without a reason.

use std::fs;
use std::os::unix::fs::FileExt;

use ::storage::fuzz::{fat, options_of};
use ::storage::mirror::{Half, Part, judge};
use ::storage::probe::{Content, Stage, owner_mark, probe};
use ::storage::smart::{Said, ata, judge as verdict, nvme, scsi};
use ::types::PublicKey;
use ::types::health::{Source, Verdict};

use crate::Target;
use crate::choices::{Choices, Made};
use crate::files::{directory, file};

pub(crate) const TARGETS: [Target; 5] = [
    Target {
        name: "storage-options",
        bytes_max: 8192,
        run: options,
        seeds: || {
            let long = b"sifr.dns=192.0.2.53\n".repeat(100);
            [&b""[..], b"sifr.dns=192.0.2.53\n", &long]
                .map(fat)
                .to_vec()
        },
    },
    Target {
        name: "storage-marker",
        bytes_max: 512,
        run: marker,
        seeds: || {
            let marker = |owner| {
                format!(r#"{{"format":1,"id":"00","owner":"{}"}}"#, PublicKey(owner)).into_bytes()
            };
            vec![marker([7; 32]), marker([8; 32])]
        },
    },
    Target {
        name: "storage-probe",
        bytes_max: 4096,
        run: disk,
        seeds: disks,
    },
    Target {
        name: "storage-mirror",
        bytes_max: 4096,
        run: mirror,
        seeds: || {
            let halves = Half::pair([7; 16], [[1; 16], [2; 16]], [1 << 30; 2]);
            halves
                .iter()
                .map(|half| half.encode()[..512].to_vec())
                .collect()
        },
    },
    Target {
        name: "storage-smart",
        bytes_max: 4096,
        run: health,
        seeds: ill,
    },
];

/// The file system in a partition of options, as long as the partition or shorter.
fn options(input: &[u8]) {
    let size = input.len() as u64;
    if let Ok(text) = options_of(input, size) {
        assert!(text.len() <= ::storage::options::FILE_MAX as usize);
        // What lies behind its end is nobody's.
        assert!(options_of(&[input, b"more"].concat(), size + 4).is_ok_and(|same| same == text));
    }
}

const OWNER: PublicKey = PublicKey([7; 32]);
/// Size of the disk: both edges are all of it.
const DISK_BYTES: u64 = 4 << 20;

fn marker(input: &[u8]) {
    let pool = directory();
    fs::write(pool.path().join("pool.json"), input).expect("memory");
    let is_ours = ::storage::fuzz::is_ours(pool.path(), &OWNER);
    let named = input
        .windows(OWNER.to_string().len())
        .any(|w| w == OWNER.to_string().as_bytes());
    assert!(!is_ours || named, "another owner's pool");
}

/// Superblocks of two halves: what is read can be written, judged and given a spare, and nothing else comes of it.
fn mirror(input: &[u8]) {
    let (first, second) = input.split_at(input.len() / 2);
    let half = |bytes: &[u8]| {
        let mut block = [0; 4096];
        block[..bytes.len()].copy_from_slice(bytes);
        Half::parse(&block)?.ok()
    };
    // Whole, or two of them.
    let halves: Vec<Half> = [half(input), half(first), half(second)]
        .into_iter()
        .flatten()
        .collect();
    for half in &halves {
        assert!(half.bitmap().len() <= 2 << 20);
        assert!(
            half.spare([3; 16], u64::MAX, &[half.number])
                .is_none_or(|s| s.number != half.number)
        );
    }
    if let Some(parts) = judge(&halves) {
        assert_eq!(parts.iter().filter(|part| **part == Part::Truth).count(), 1);
    }
}

/// Pieces of a disk: offset in sectors of 512 bytes from the start (the high bit: from the end), then bytes.
fn disk(input: &[u8]) {
    let mut choices = Choices(input);
    let block = if choices.u8() & 1 == 0 { 512 } else { 4096 };
    let disk = file(&[]);
    disk.set_len(DISK_BYTES).expect("memory");
    let mut written = false;
    while !choices.is_empty() {
        let place = choices.u16();
        let sector = u64::from(place & 0x7fff) % (DISK_BYTES / 512);
        let at = if place & 0x8000 == 0 {
            sector * 512
        } else {
            DISK_BYTES - 512 - sector * 512
        };
        let bytes = choices.long();
        let room = usize::try_from(DISK_BYTES - at).expect("small");
        let bytes = &bytes[..bytes.len().min(room)];
        disk.write_all_at(bytes, at).expect("memory");
        written |= bytes.iter().any(|b| *b != 0);
    }
    let content = probe(&disk, DISK_BYTES, block).expect("files can be read");
    assert!(!content.describe(Some(&OWNER)).is_empty());
    match content {
        Content::Foreign(_) | Content::Pool { .. } => assert!(written, "zeros are blank"),
        // A beginning of ours may hold more than zeros; it has no MBR or no partition in it.
        Content::Blank => {}
    }
}

/// A disk as the pool's provisioning leaves it.
fn disks() -> Vec<Vec<u8>> {
    let disk = file(&[]);
    disk.set_len(DISK_BYTES).expect("memory");
    ::storage::fuzz::make_table(&disk, DISK_BYTES, &OWNER);
    let found = probe(&disk, DISK_BYTES, 512).expect("files can be read");
    let expected = Content::Pool {
        owner: owner_mark(&OWNER),
        stage: Stage::Made,
        partition: 1,
    };
    assert_eq!(found, expected, "the seed is a pool");
    let mut made = Made::default().u8(0);
    let mut early = Made::default().u8(0);
    let sectors = u16::try_from(DISK_BYTES / 512).expect("small");
    for sector in 0..sectors {
        let mut bytes = [0; 512];
        let at = u64::from(sector) * 512;
        disk.read_exact_at(&mut bytes, at).expect("memory");
        if bytes.iter().any(|b| *b != 0) {
            made = made.u16(sector).long(&bytes);
            // Cut short before the MBR, which comes last.
            if sector > 0 {
                early = early.u16(sector).long(&bytes);
            }
        }
    }
    let xfs = Made::default().u8(0).u16(0).long(b"XFSB").0;
    let raid = Made::default()
        .u8(0)
        .u16(0x8000 | 15)
        .long(b"\xfc\x4e\x2b\xa9")
        .0;
    vec![made.0, early.0, xfs, raid]
}

/// A piece, with zeros to the length of a block.
fn block(piece: &[u8]) -> ata::Block {
    let mut block = [0; ata::BLOCK];
    let length = piece.len().min(block.len());
    block[..length].copy_from_slice(&piece[..length]);
    block
}

/// What a disk answers to who asks for its health, in one of three languages.
fn health(input: &[u8]) {
    let mut choices = Choices(input);
    let (source, said) = match choices.u8() % 3 {
        0 => (Source::Nvme, nvme::parse(&block(choices.rest()))),
        1 => {
            let identify = block(choices.long());
            let (offer, _) = (ata::offer(&identify), ata::has_flash(&identify));
            assert!(offer == ata::Offer::None || identify[164] & 1 != 0);
            let mut whole = || ata::summed(block(choices.long()));
            let (values, thresholds, flash) = (whole(), whole(), whole());
            let answers = ata::Answers {
                values: Some(values),
                thresholds: Some(thresholds),
                flash: Some(flash),
                status: Some(choices.rest().to_vec()),
            };
            (Source::Ata, ata::parse(&answers))
        }
        _ => {
            let mut said = Said::default();
            for number in scsi::listed(choices.long()) {
                scsi::read(number, choices.long(), &mut said);
            }
            (Source::Scsi, said)
        }
    };
    let judged = said.judged;
    let health = verdict(source, said);
    match health.verdict {
        Verdict::Passed => assert!(judged),
        Verdict::NotOffered => assert!(!judged),
        Verdict::Worn | Verdict::Failing => assert!(!health.reasons.is_empty()),
        Verdict::Silent | Verdict::Unknown => panic!("it has answered: {health:?}"),
    }
    assert!(health.reasons.iter().all(|why| why.len() < 200));
    let json = serde_json::to_vec(&health).expect("JSON");
    let read: ::types::health::Health = serde_json::from_slice(&json).expect("its own JSON");
    assert_eq!(read, health);
}

fn ill() -> Vec<Vec<u8>> {
    let mut nvme = [0; nvme::PAGE_BYTES];
    (nvme[0], nvme[1], nvme[2], nvme[3], nvme[4]) = (2, 0x37, 1, 100, 10);
    let page = |number: u8, parameter: &[u8]| {
        let length = u8::try_from(parameter.len() + 4).expect("short");
        let size = length - 4;
        [&[number, 0, 0, length, 0, 0, 3, size][..], parameter].concat()
    };
    let sata = Made::default()
        .u8(1)
        .long(&[])
        .long(&[0, 0, 5, 3, 0, 9, 9, 20, 0, 0, 0, 0])
        .long(&[0, 0, 5, 10])
        .long(&[0, 0, 7, 0, 0, 0, 0, 0, 101, 0, 0, 0, 0, 0, 0, 0xc0])
        .raw(&[0x70, 0, 1, 0, 0, 0, 0, 10, 0, 0, 0xf4, 0x2c, 0, 0x1d]);
    let sas = Made::default()
        .u8(2)
        .long(&[0, 0, 0, 2, 0x2f, 0x0d])
        .long(&page(0x2f, &[0x5d, 0x10, 40]))
        .long(&page(0x0d, &[0, 41]));
    vec![Made::default().u8(0).raw(&nvme).0, sata.0, sas.0]
}
