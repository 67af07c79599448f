//! Log pages of SCSI disks (SPC-5, 7.3; SBC-4, 6.4).
//!
//! Owns: which pages are asked for, and their parameters. Refuses: a page that the disk does not list.

use std::fs::File;
use std::io;

use sys::scsi::{Reply, log_sense};

use super::{COMMAND_WAIT, Said, Sign, celsius};

/// The list of pages.
const PAGES: u8 = 0x00;
const WRITE_ERRORS: u8 = 0x02;
const READ_ERRORS: u8 = 0x03;
const VERIFY_ERRORS: u8 = 0x05;
const TEMPERATURE: u8 = 0x0d;
const FLASH: u8 = 0x11;
const BACKGROUND_SCAN: u8 = 0x15;
const EXCEPTIONS: u8 = 0x2f;
/// Those that are asked for. The first has the disk's own verdict.
pub const WANTED: [u8; 7] = [
    EXCEPTIONS,
    TEMPERATURE,
    WRITE_ERRORS,
    READ_ERRORS,
    VERIFY_ERRORS,
    FLASH,
    BACKGROUND_SCAN,
];
/// Room for a page: what is read stands at its beginning. Even, as SAT wants it, and what one byte can say.
const PAGE_BYTES: usize = 252;

pub(super) fn ask(disk: &File) -> io::Result<Said> {
    let mut said = Said::default();
    let Some(list) = page(disk, PAGES)? else {
        let text = "it has no pages that tell of its health".to_owned();
        said.signs.push(Sign::Note(text));
        return Ok(said);
    };
    for number in listed(&list) {
        if let Some(page) = page(disk, number)? {
            read(number, &page, &mut said);
        }
    }
    Ok(said)
}

fn page(disk: &File, number: u8) -> io::Result<Option<Vec<u8>>> {
    let mut page = vec![0; PAGE_BYTES];
    match log_sense(disk, number, &mut page, COMMAND_WAIT)? {
        Reply::Given(bytes) => {
            page.truncate(bytes);
            Ok(Some(page))
        }
        Reply::Sense(_) => Ok(None),
        Reply::Failed { host, status } => Err(io::Error::other(format!(
            "the transport says {host}, the disk {status}"
        ))),
    }
}

/// Of the pages that are wanted, those in the list.
pub fn listed(list: &[u8]) -> Vec<u8> {
    let body = body(PAGES, list).unwrap_or_default();
    let has = |number: &u8| body.contains(number);
    WANTED.into_iter().filter(has).collect()
}

/// What is behind the head of a page of this number.
fn body(number: u8, page: &[u8]) -> Option<&[u8]> {
    let (head, rest) = page.split_at_checked(4)?;
    let length = usize::from(u16::from_be_bytes([head[2], head[3]]));
    (head[0] & 0x3f == number).then(|| &rest[..length.min(rest.len())])
}

/// Code and value of each parameter.
fn parameters(mut body: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let (head, rest) = body.split_at_checked(4)?;
        let (value, rest) = rest.split_at_checked(usize::from(head[3]))?;
        body = rest;
        Some((u16::from_be_bytes([head[0], head[1]]), value))
    })
}

/// Takes what a page says.
pub fn read(number: u8, page: &[u8], said: &mut Said) {
    let parameters = parameters(body(number, page).unwrap_or_default());
    for (code, value) in parameters {
        let figures = &mut said.figures;
        match (number, code, value) {
            (EXCEPTIONS, 0, [code, qualifier, rest @ ..]) => {
                said.judged = true;
                said.signs.extend(exception(*code, *qualifier));
                let known = figures.temperature_celsius;
                figures.temperature_celsius = known.or(degrees(rest.first()));
            }
            (TEMPERATURE, 0, [_, degrees, ..]) => {
                figures.temperature_celsius = self::degrees(Some(degrees));
            }
            // What was lost, of all errors: those that were mended are a disk's everyday work.
            (WRITE_ERRORS | READ_ERRORS | VERIFY_ERRORS, 6, value) => {
                let before = figures.media_errors.unwrap_or(0);
                figures.media_errors = Some(before.saturating_add(counter(value)));
            }
            (FLASH, 1, [_, _, _, used, ..]) => figures.used_percent = Some(*used),
            (BACKGROUND_SCAN, 0, [a, b, c, d, ..]) => {
                let minutes = u32::from_be_bytes([*a, *b, *c, *d]);
                figures.power_on_hours = Some(u64::from(minutes / 60));
            }
            _ => {}
        }
    }
}

/// Additional sense code and qualifier of an informational exception.
fn exception(code: u8, qualifier: u8) -> Option<Sign> {
    let text = |what: &str| format!("it {what} (code {code:02x}h, {qualifier:02x}h)");
    match (code, qualifier) {
        (0, _) => None,
        (0x0b, 0x01) => Some(Sign::Hot(text("warns of its temperature"))),
        (0x0b, _) => Some(Sign::Worn(text("warns"))),
        // The last qualifier is a trial of just this message.
        (0x5d, 0xff) => Some(Sign::Note(text("was told to try its warning"))),
        (0x5d, _) => Some(Sign::Failing(text("says that it is about to fail"))),
        (..) => Some(Sign::Note(text("has something to say"))),
    }
}

/// The highest byte is for those who do not know.
fn degrees(byte: Option<&u8>) -> Option<i16> {
    let byte = byte.filter(|byte| **byte != 0xff)?;
    celsius(i64::from(*byte))
}

fn counter(value: &[u8]) -> u64 {
    value.iter().fold(0u64, |sum, byte| {
        sum.saturating_mul(256).saturating_add(u64::from(*byte))
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use types::health::{Health, Source, Verdict};

    use super::super::judge;
    use super::*;

    fn page(number: u8, parameters: &[(u16, &[u8])]) -> Vec<u8> {
        let mut body = Vec::new();
        for (code, value) in parameters {
            body.extend(code.to_be_bytes());
            body.extend([3, u8::try_from(value.len()).expect("short")]);
            body.extend_from_slice(value);
        }
        let length = u16::try_from(body.len()).expect("short").to_be_bytes();
        [&[number, 0, length[0], length[1]][..], &body].concat()
    }

    fn health(pages: &[Vec<u8>]) -> Health {
        let mut said = Said::default();
        for page in pages {
            read(page[0], page, &mut said);
        }
        judge(Source::Scsi, said)
    }

    #[test]
    fn only_wanted_pages_that_are_listed_are_asked_for() {
        let list = [0, 0, 0, 4, 0, 0x02, 0x0e, 0x2f, 0x11];
        assert_eq!(listed(&list), [0x2f, 0x02]);
        assert!(listed(&[0, 0, 0]).is_empty());
        assert!(listed(&[5, 0, 0, 1, 0x2f]).is_empty(), "another page");
    }

    #[test]
    fn pages_are_read_as_the_specification_lays_them_out() {
        let health = health(&[
            page(0x2f, &[(0, &[0, 0, 41, 0])]),
            page(0x0d, &[(0, &[0, 42]), (1, &[0, 60])]),
            page(0x02, &[(0, &[9, 9]), (6, &[0, 0, 1, 0])]),
            page(0x03, &[(6, &[2])]),
            page(0x11, &[(1, &[0, 0, 0, 12])]),
            page(0x15, &[(0, &[0, 1, 0x51, 0x80, 0, 0])]),
        ]);
        let f = health.figures;
        assert_eq!(f.temperature_celsius, Some(42));
        assert_eq!((f.media_errors, f.used_percent), (Some(258), Some(12)));
        assert_eq!(f.power_on_hours, Some(1440));
        assert_eq!(health.verdict, Verdict::Worn, "258 losses");
    }

    #[test]
    fn a_disk_that_foretells_its_end_fails_and_a_trial_of_that_does_not() {
        let verdict = |code, qualifier| {
            let health = health(&[page(0x2f, &[(0, &[code, qualifier, 30])])]);
            (health.verdict, health.hot)
        };
        assert_eq!(verdict(0, 0), (Verdict::Passed, false));
        assert_eq!(verdict(0x5d, 0x10), (Verdict::Failing, false));
        assert_eq!(verdict(0x5d, 0xff), (Verdict::Passed, false));
        assert_eq!(verdict(0x0b, 0x01), (Verdict::Passed, true));
        assert_eq!(verdict(0x0b, 0x03), (Verdict::Worn, false));
        let temperature = page(0x0d, &[(0, &[0, 42])]);
        assert_eq!(health(&[temperature]).verdict, Verdict::NotOffered);
    }

    proptest! {
        #[test]
        fn any_page_is_read_to_its_end_and_no_further(
            number in prop::sample::select(WANTED.to_vec()),
            mut bytes in prop::collection::vec(any::<u8>(), 4..300),
        ) {
            bytes[0] = number;
            let mut said = Said::default();
            read(number, &bytes, &mut said);
            let health = judge(Source::Scsi, said);
            prop_assert!(matches!(health.verdict, Verdict::Passed | Verdict::NotOffered) || !health.reasons.is_empty());
            prop_assert!(listed(&bytes).len() <= WANTED.len());
        }
    }
}
