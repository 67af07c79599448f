//! SMART of ATA disks (ATA/ATAPI Command Set 4, 7.48; the attributes by Small Form Factor 8035i), and device statistics.
//!
//! Owns: the order of the questions, the layout of the answers, and which attributes are read. Refuses: to switch SMART on where
//! it is off, to start a self-test, and a block whose sum is wrong.
//!
//! Numbers of attributes are custom, not specification: those alone are read whose meaning all makers share. Whether an
//! attribute is beyond its threshold is the disk's own word, whatever it counts.

use std::fs::File;
use std::io;

use sys::scsi::{Ata, Reply, ata};
use types::health::Figures;

use super::{COMMAND_WAIT, Said, Sign, celsius};

pub const BLOCK: usize = 512;
pub type Block = [u8; BLOCK];

/// Attributes in a block, each of twelve bytes, behind two of a version.
const ATTRIBUTES: usize = 30;
const ATTRIBUTE: usize = 12;
const FIRST: usize = 2;

const REALLOCATED: u8 = 5;
const POWER_ON_HOURS: u8 = 9;
const LOST: u8 = 187;
const AIRFLOW_TEMPERATURE: u8 = 190;
const UNSAFE_SHUTDOWNS: u8 = 192;
const TEMPERATURE: u8 = 194;
const PENDING: u8 = 197;

/// Device statistics, its list of pages, and the one of flash.
const STATISTICS: u8 = 0x04;
const PAGES: u8 = 0;
const FLASH: u8 = 7;

/// What a disk answers, each `None` where it does not.
#[derive(Debug, Clone, Default)]
pub struct Answers {
    /// Sense data with the registers after SMART RETURN STATUS.
    pub status: Option<Vec<u8>>,
    pub values: Option<Block>,
    pub thresholds: Option<Block>,
    /// Device statistics of flash.
    pub flash: Option<Block>,
}

/// What IDENTIFY DEVICE says of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Offer {
    None,
    /// It has it, and somebody has switched it off.
    Off,
    On {
        /// Logs of general purpose.
        logs: bool,
    },
}

pub(super) fn ask(disk: &File) -> io::Result<Said> {
    let mut block = [0; BLOCK];
    let note = |text: &str| {
        let signs = vec![Sign::Note(text.to_owned())];
        Ok(Said {
            signs,
            ..Said::default()
        })
    };
    if !given(disk, Ata::Identify, &mut block)? {
        return note("it does not say what it is");
    }
    let logs = match offer(&block) {
        Offer::None => return note("it has no SMART"),
        Offer::Off => return note("its SMART is switched off"),
        Offer::On { logs } => logs,
    };
    let mut answers = Answers::default();
    match ata(disk, Ata::SmartStatus, &mut block, COMMAND_WAIT)? {
        Reply::Sense(sense) => answers.status = Some(sense),
        Reply::Given(_) | Reply::Failed { .. } => {}
    }
    let get = |command| {
        let mut block = [0; BLOCK];
        Ok::<_, io::Error>(given(disk, command, &mut block)?.then_some(block))
    };
    answers.values = get(Ata::SmartData)?;
    answers.thresholds = get(Ata::SmartThresholds)?;
    let log = |page| Ata::Log {
        log: STATISTICS,
        page,
    };
    if logs && get(log(PAGES))?.is_some_and(|list| has_flash(&list)) {
        answers.flash = get(log(FLASH))?;
    }
    Ok(parse(&answers))
}

fn given(disk: &File, command: Ata, block: &mut Block) -> io::Result<bool> {
    match ata(disk, command, block, COMMAND_WAIT)? {
        Reply::Given(bytes) => Ok(bytes == BLOCK),
        Reply::Sense(_) => Ok(false),
        Reply::Failed { host, status } => Err(io::Error::other(format!(
            "the transport says {host}, the disk {status}"
        ))),
    }
}

pub fn offer(identify: &Block) -> Offer {
    let word = |n: usize| u16::from_le_bytes([identify[2 * n], identify[2 * n + 1]]);
    // Two bits say that a word is there.
    let there = |word: u16| word & 0xc000 == 0x4000;
    let (commands, enabled) = (word(82), word(85));
    if !there(word(83)) || commands & 1 == 0 {
        return Offer::None;
    }
    if !there(word(87)) || enabled & 1 == 0 {
        return Offer::Off;
    }
    let more = word(84);
    Offer::On {
        logs: there(more) && more & 1 << 5 != 0,
    }
}

/// Whether the list of pages has that of flash.
pub fn has_flash(list: &Block) -> bool {
    let pages = usize::from(list[8]);
    list[2] == PAGES && list[9..].iter().take(pages).any(|page| *page == FLASH)
}

/// What registers say after SMART RETURN STATUS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Status {
    Passed,
    Exceeded,
}

/// From sense data of either form (SPC-5, 4.4; SAT-4, 12.2.5).
fn status(sense: &[u8]) -> Option<Status> {
    const REGISTERS: u8 = 0x09;
    let byte = |at: usize| sense.get(at).copied();
    let (middle, high) = match byte(0)? & 0x7f {
        0x72 | 0x73 => {
            let mut rest = sense.get(8..)?;
            loop {
                let length = usize::from(*rest.get(1)?) + 2;
                if rest[0] == REGISTERS {
                    break (*rest.get(9)?, *rest.get(11)?);
                }
                rest = rest.get(length..)?;
            }
        }
        // Where it is about ATA's registers, and not another failure.
        0x70 | 0x71 if (byte(12)?, byte(13)?) == (0, 0x1d) => (byte(10)?, byte(11)?),
        _ => return None,
    };
    match (middle, high) {
        (0x4f, 0xc2) => Some(Status::Passed),
        (0xf4, 0x2c) => Some(Status::Exceeded),
        _ => None,
    }
}

fn sum(block: &Block) -> u8 {
    block.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
}

/// All bytes of a block of SMART add up to nothing.
fn is_whole(block: &Block) -> bool {
    sum(block) == 0
}

/// The block with a last byte that makes it whole.
#[cfg(any(test, feature = "fuzz"))]
pub fn summed(mut block: Block) -> Block {
    let last = block[BLOCK - 1].wrapping_sub(sum(&block));
    block[BLOCK - 1] = last;
    block
}

struct Attribute<'a> {
    number: u8,
    /// Beyond its threshold the disk is about to fail; else it has lived its time.
    foretells: bool,
    value: u8,
    raw: &'a [u8],
}

impl Attribute<'_> {
    /// The lowest bytes of the raw value: makers put other things above.
    fn low(&self, bytes: usize) -> u64 {
        let bytes = self.raw.iter().take(bytes).rev();
        bytes.fold(0, |value, byte| value << 8 | u64::from(*byte))
    }
}

fn attributes(values: &Block) -> impl Iterator<Item = Attribute<'_>> {
    let all = values[FIRST..].chunks_exact(ATTRIBUTE).take(ATTRIBUTES);
    all.filter(|one| one[0] != 0).map(|one| Attribute {
        number: one[0],
        foretells: one[1] & 1 != 0,
        value: one[3],
        raw: &one[5..11],
    })
}

fn threshold(thresholds: &Block, number: u8) -> Option<u8> {
    let mut all = thresholds[FIRST..].chunks_exact(ATTRIBUTE).take(ATTRIBUTES);
    let one = all.find(|one| one[0] == number)?;
    // Zero never counts, and the two highest are for trials.
    Some(one[1]).filter(|threshold| (1..0xfe).contains(threshold))
}

pub fn parse(answers: &Answers) -> Said {
    let mut said = Said::default();
    let status = answers.status.as_deref().and_then(status);
    match status {
        Some(Status::Exceeded) => said.signs.push(Sign::Failing(
            "it says itself that it is about to fail".to_owned(),
        )),
        Some(Status::Passed) | None => {}
    }
    let values = answers.values.as_ref().filter(|block| is_whole(block));
    let thresholds = answers.thresholds.as_ref().filter(|block| is_whole(block));
    if answers.values.is_some() && values.is_none() {
        let text = "what it says of its attributes is garbled".to_owned();
        said.signs.push(Sign::Note(text));
    }
    if let Some(values) = values {
        said.figures = figures(values);
        let beyond = |one: &Attribute<'_>| {
            let threshold = threshold(thresholds?, one.number)?;
            (1..=threshold).contains(&one.value).then(|| sign(one))
        };
        let mut beyond: Vec<Sign> = attributes(values).filter_map(|one| beyond(&one)).collect();
        beyond.dedup();
        said.signs.extend(beyond);
    }
    said.judged = status.is_some() || values.is_some() && thresholds.is_some();
    said.figures.used_percent = answers.flash.as_ref().and_then(used);
    said
}

fn sign(one: &Attribute<'_>) -> Sign {
    let (number, value) = (one.number, one.value);
    let text = format!("its attribute {number} is at {value}, beyond its own threshold");
    match (number, one.foretells) {
        (TEMPERATURE | AIRFLOW_TEMPERATURE, _) => Sign::Hot(text),
        (_, true) => Sign::Failing(text),
        (_, false) => Sign::Worn(text),
    }
}

fn figures(values: &Block) -> Figures {
    let of = |number: u8, bytes: usize| {
        let mut all = attributes(values);
        all.find(|one| one.number == number)
            .map(|one| one.low(bytes))
    };
    let temperature = of(TEMPERATURE, 1).or_else(|| of(AIRFLOW_TEMPERATURE, 1));
    let signed = |low: u64| i64::from(u8::try_from(low).unwrap_or(0).cast_signed());
    Figures {
        temperature_celsius: temperature.and_then(|low| celsius(signed(low))),
        // Two bytes, as smartmontools reads it: others have another count above.
        reallocated_sectors: of(REALLOCATED, 2),
        // Three, the same: some have minutes and more above.
        power_on_hours: of(POWER_ON_HOURS, 3),
        media_errors: of(LOST, 6),
        unsafe_shutdowns: of(UNSAFE_SHUTDOWNS, 3),
        pending_sectors: of(PENDING, 6),
        ..Figures::default()
    }
}

/// "Percentage Used Endurance Indicator", where it is supported and valid.
fn used(page: &Block) -> Option<u8> {
    (page[2] == FLASH && page[15] & 0xc0 == 0xc0).then_some(page[8])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use types::health::{Source, Verdict};

    use super::super::judge;
    use super::*;

    /// Number, flags, value, raw.
    fn values(all: &[(u8, u8, u8, u64)]) -> Block {
        let mut block = [0; BLOCK];
        let places = block[FIRST..].chunks_exact_mut(ATTRIBUTE);
        for (place, (number, flags, value, raw)) in places.zip(all) {
            (place[0], place[1], place[3]) = (*number, *flags, *value);
            place[5..11].copy_from_slice(&raw.to_le_bytes()[..6]);
        }
        summed(block)
    }

    fn thresholds(all: &[(u8, u8)]) -> Block {
        let mut block = [0; BLOCK];
        let places = block[FIRST..].chunks_exact_mut(ATTRIBUTE);
        for (place, (number, threshold)) in places.zip(all) {
            (place[0], place[1]) = (*number, *threshold);
        }
        summed(block)
    }

    /// As libata gives it.
    fn sense(middle: u8, high: u8) -> Vec<u8> {
        let mut sense = vec![0x72, 1, 0, 0x1d, 0, 0, 0, 14, 0x09, 12];
        sense.extend([0, 0, 0, 0, 0, 0, 0, middle, 0, high, 0, 0x50]);
        sense
    }

    fn good() -> Answers {
        Answers {
            status: Some(sense(0x4f, 0xc2)),
            values: Some(values(&[
                (5, 3, 100, 0x0007_0000_0002),
                (9, 0x32, 95, 0x77_0000_1388),
                (187, 0x32, 100, 1),
                (190, 0x22, 60, 99),
                (194, 0x22, 60, 0x0028_0010_0023),
                (197, 0x12, 100, 0),
            ])),
            thresholds: Some(thresholds(&[(5, 10), (9, 0), (190, 45)])),
            flash: None,
        }
    }

    fn health(answers: &Answers) -> types::health::Health {
        judge(Source::Ata, parse(answers))
    }

    #[test]
    fn attributes_are_read_without_what_makers_put_above_them() {
        let health = health(&good());
        assert_eq!(health.verdict, Verdict::Passed, "{health:?}");
        let f = health.figures;
        assert_eq!(f.reallocated_sectors, Some(2));
        assert_eq!(f.power_on_hours, Some(5000));
        assert_eq!(f.temperature_celsius, Some(35));
        assert_eq!((f.media_errors, f.pending_sectors), (Some(1), Some(0)));
        assert_eq!(f.used_percent, None);
    }

    #[test]
    fn the_disks_own_word_counts_in_both_forms_of_sense_data() {
        let with = |sense: Vec<u8>| Answers {
            status: Some(sense),
            values: None,
            ..good()
        };
        assert_eq!(health(&with(sense(0xf4, 0x2c))).verdict, Verdict::Failing);
        let mut fixed = vec![0x70, 0, 1, 0, 0, 0, 0, 10, 0, 0, 0xf4, 0x2c, 0, 0x1d];
        assert_eq!(health(&with(fixed.clone())).verdict, Verdict::Failing);
        // Another failure, which has nothing to do with registers.
        fixed[13] = 0;
        assert_eq!(health(&with(fixed)).verdict, Verdict::NotOffered);
        let mut other = sense(0x4f, 0xc2);
        other.splice(8..8, [0x02, 2, 9, 9]);
        assert_eq!(status(&other), Some(Status::Passed));
        for length in 0..other.len() - 2 {
            assert_eq!(status(&other[..length]), None, "{length}");
        }
    }

    #[test]
    fn an_attribute_beyond_its_threshold_is_a_failure_where_it_foretells_one_and_heat_where_it_is_heat()
     {
        let with = |number, flags| {
            let values = Some(values(&[(number, flags, 9, 0)]));
            let thresholds = Some(thresholds(&[(number, 9)]));
            health(&Answers {
                values,
                thresholds,
                ..good()
            })
        };
        assert_eq!(with(5, 1).verdict, Verdict::Failing);
        assert_eq!(with(9, 0).verdict, Verdict::Worn);
        let hot = with(194, 1);
        assert_eq!((hot.verdict, hot.hot), (Verdict::Passed, true));
    }

    #[test]
    fn a_block_whose_sum_is_wrong_counts_for_nothing_and_that_is_said() {
        let mut answers = good();
        answers.status = None;
        answers.values.as_mut().expect("there")[5] ^= 1;
        let health = health(&answers);
        assert_eq!(health.verdict, Verdict::NotOffered);
        assert_eq!(health.figures, Figures::default());
        assert!(health.reasons[0].contains("garbled"), "{health:?}");
    }

    #[test]
    fn flash_says_how_much_of_its_life_is_used_where_that_is_valid() {
        let mut page = [0; BLOCK];
        (page[2], page[8], page[15]) = (7, 104, 0xc0);
        let flash = |page| {
            health(&Answers {
                flash: Some(page),
                ..good()
            })
        };
        assert_eq!(flash(page).figures.used_percent, Some(104));
        assert_eq!(flash(page).verdict, Verdict::Worn);
        page[15] = 0x80;
        assert_eq!(flash(page).figures.used_percent, None);
        let mut list = [0; BLOCK];
        list[8..12].copy_from_slice(&[3, 0, 1, 7]);
        assert!(has_flash(&list));
        list[8] = 2;
        assert!(!has_flash(&list));
    }

    #[test]
    fn a_disk_without_smart_and_one_whose_smart_is_off_are_told_apart() {
        let identify = |words: &[(usize, u16)]| {
            let mut block = [0; BLOCK];
            for (word, value) in words {
                block[2 * word..2 * word + 2].copy_from_slice(&value.to_le_bytes());
            }
            offer(&block)
        };
        let has = [(82, 1), (83, 0x4000)];
        assert_eq!(identify(&[(83, 0x4000)]), Offer::None);
        assert_eq!(identify(&has), Offer::Off);
        let on = [has[0], has[1], (85, 1), (87, 0x4000)];
        assert_eq!(identify(&on), Offer::On { logs: false });
        let logs = [&on[..], &[(84, 0x4020)]].concat();
        assert_eq!(identify(&logs), Offer::On { logs: true });
        // Bytes of a disk that answers with ones alone.
        assert_eq!(offer(&[0xff; BLOCK]), Offer::None);
    }

    proptest! {
        #[test]
        fn any_answers_have_a_verdict_and_every_bad_one_a_reason(
            bytes in prop::collection::vec(any::<u8>(), 3 * BLOCK),
            status in prop::collection::vec(any::<u8>(), 0..64),
        ) {
            let block = |at: usize| summed(bytes[at * BLOCK..(at + 1) * BLOCK].try_into().expect("a block"));
            let answers = Answers {
                status: Some(status),
                values: Some(block(0)),
                thresholds: Some(block(1)),
                flash: Some(block(2)),
            };
            let health = health(&answers);
            prop_assert!(matches!(health.verdict, Verdict::Passed | Verdict::NotOffered) || !health.reasons.is_empty());
            prop_assert!(health.reasons.len() <= super::super::REASONS_MAX);
        }
    }
}
