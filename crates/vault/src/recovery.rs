//! The owner's recovery key on paper: shares of it, and the passphrase that it opens.
//!
//! Owns: the text forms. A share names its key, so that shares of two keys are never mixed, and has a checksum for those
//! who type it.
//! Refuses: shares that do not make the key which they name.

use std::fmt;
use std::str::FromStr;

use ring::digest;
use zeroize::Zeroizing;

use crate::sealed::{Recipient, RecipientSecret};
use crate::shares::{self, Share};
use crate::{NoRandom, Secret};

/// What a passphrase is sealed to the recovery key for.
pub const PURPOSE: &str = "sifr disk recovery 1";
/// First word of a share.
const SHARE_TAG: &str = "sifr-share-v1";
/// Most shares: a board of directors. More are a mistake in typing.
pub const SHARES_MAX: u8 = 32;
/// Digits of a passphrase between two hyphens.
const GROUP: usize = 8;

#[derive(Debug, thiserror::Error)]
pub enum RecoveryError {
    #[error(transparent)]
    Random(#[from] NoRandom),
    #[error(
        "{need} of {count} shares: both are 1 to {SHARES_MAX}, and no more are needed than there are"
    )]
    Count { count: u8, need: u8 },
    #[error(
        "a share is one line: \"{SHARE_TAG}\", the key, needed/number, 64 digits, a checksum of 8 digits"
    )]
    Form,
    #[error("share {0} was mistyped: its checksum is another")]
    Mistyped(u8),
    #[error("these are shares of two keys, {0} and {1}")]
    Mixed(Recipient, Recipient),
    #[error("share {0} is given twice")]
    Twice(u8),
    #[error("{given} shares are given, {need} are needed")]
    TooFew { given: usize, need: u8 },
    #[error("these shares do not make the key {0}: one of them is no share of it")]
    Wrong(Recipient),
}

/// One line for one person.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PaperShare {
    pub key: Recipient,
    pub need: u8,
    share: Share,
}

impl PaperShare {
    pub fn number(&self) -> u8 {
        self.share.number
    }

    /// The line: it is a secret.
    pub fn line(&self) -> Zeroizing<String> {
        let body = self.body();
        let sum = checksum(&body);
        Zeroizing::new(format!("{} {sum}", *body))
    }

    fn body(&self) -> Zeroizing<String> {
        let values = Zeroizing::new(hex(&*self.share.values));
        let (key, need, number) = (self.key, self.need, self.share.number);
        Zeroizing::new(format!("{SHARE_TAG} {key} {need}/{number} {}", *values))
    }
}

impl FromStr for PaperShare {
    type Err = RecoveryError;
    fn from_str(line: &str) -> Result<Self, RecoveryError> {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        let [SHARE_TAG, key, place, values, sum] = words.as_slice() else {
            return Err(RecoveryError::Form);
        };
        let form = || RecoveryError::Form;
        let (need, number) = place.split_once('/').ok_or_else(form)?;
        let small = |text: &str| {
            let number = text.parse().ok().filter(|n| (1..=SHARES_MAX).contains(n));
            number.ok_or_else(form)
        };
        let share = Self {
            key: key.parse().map_err(|_| form())?,
            need: small(need)?,
            share: Share {
                number: small(number)?,
                values: Secret::new(unhex(values).ok_or_else(form)?),
            },
        };
        match checksum(&share.body()) == *sum {
            true => Ok(share),
            false => Err(RecoveryError::Mistyped(share.share.number)),
        }
    }
}

/// Makes a key, and with it its shares.
pub fn make(count: u8, need: u8) -> Result<(Recipient, Vec<PaperShare>), RecoveryError> {
    if !(1..=SHARES_MAX).contains(&count) || !(1..=count).contains(&need) {
        return Err(RecoveryError::Count { count, need });
    }
    let secret = RecipientSecret::new(crate::draw()?);
    let key = secret.public();
    let shares = shares::split(secret.secret(), count, need)?;
    let paper = |share| PaperShare { key, need, share };
    Ok((key, shares.into_iter().map(paper).collect()))
}

/// The key of enough shares. More than are needed must fit too.
pub fn combine(given: &[PaperShare]) -> Result<RecipientSecret, RecoveryError> {
    let [first, others @ ..] = given else {
        return Err(RecoveryError::TooFew { given: 0, need: 1 });
    };
    for (at, share) in others.iter().enumerate() {
        if share.key != first.key || share.need != first.need {
            return Err(RecoveryError::Mixed(first.key, share.key));
        }
        if given[..=at]
            .iter()
            .any(|other| other.number() == share.number())
        {
            return Err(RecoveryError::Twice(share.number()));
        }
    }
    if given.len() < usize::from(first.need) {
        return Err(RecoveryError::TooFew {
            given: given.len(),
            need: first.need,
        });
    }
    let shares: Vec<Share> = given.iter().map(|paper| paper.share.clone()).collect();
    let secret = shares::combine(&shares).map(RecipientSecret::new);
    secret
        .filter(|secret| secret.public() == first.key)
        .ok_or(RecoveryError::Wrong(first.key))
}

/// A passphrase of a disk: 256 bits in digits that can be read aloud. What is typed into `cryptsetup open`.
pub fn passphrase(secret: &Secret) -> Zeroizing<String> {
    let digits = Zeroizing::new(hex(&**secret));
    let mut text = Zeroizing::new(String::with_capacity(digits.len() + digits.len() / GROUP));
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && at % GROUP == 0 {
            text.push('-');
        }
        text.push(digit);
    }
    text
}

/// Eight digits against errors in typing, not against forgery.
fn checksum(body: &str) -> String {
    hex(&digest::digest(&digest::SHA256, body.as_bytes()).as_ref()[..4])
}

fn hex(bytes: &[u8]) -> String {
    // Room for all of it at once: a text that grows leaves a copy behind.
    let mut text = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        fmt::Write::write_fmt(&mut text, format_args!("{byte:02x}")).expect("a text has room");
    }
    text
}

/// 32 bytes of exactly 64 lower-case digits.
pub(crate) fn unhex(text: &str) -> Option<[u8; 32]> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    let digits: &[u8; 64] = text.as_bytes().try_into().ok()?;
    let mut bytes = [0; 32];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{prop, proptest};

    use super::*;
    use crate::sealed::seal;

    fn lines(count: u8, need: u8) -> (Recipient, Vec<String>) {
        let (key, shares) = make(count, need).expect("shares");
        (
            key,
            shares
                .iter()
                .map(|share| share.line().to_string())
                .collect(),
        )
    }

    fn read(lines: &[&String]) -> Vec<PaperShare> {
        lines
            .iter()
            .map(|line| line.parse().expect("a share"))
            .collect()
    }

    #[test]
    fn any_two_of_three_papers_open_what_was_sealed_to_their_key() {
        let (key, lines) = lines(3, 2);
        let sealed = seal(key, PURPOSE, b"the passphrase").expect("sealed");
        for (a, b) in [(0, 1), (0, 2), (2, 1)] {
            let secret = combine(&read(&[&lines[a], &lines[b]])).expect("the key");
            assert_eq!(
                *secret.open(PURPOSE, &sealed).expect("opened"),
                b"the passphrase"
            );
        }
        assert!(combine(&read(&[&lines[0], &lines[1], &lines[2]])).is_ok());
    }

    #[test]
    fn papers_that_do_not_belong_together_are_told_apart() {
        let ((_, a), (_, b)) = (lines(3, 2), lines(3, 2));
        let combine = |lines: &[&String]| combine(&read(lines)).expect_err("refused");
        assert!(matches!(combine(&[&a[0], &b[1]]), RecoveryError::Mixed(..)));
        assert!(matches!(
            combine(&[&a[0]]),
            RecoveryError::TooFew { given: 1, need: 2 }
        ));
        assert!(matches!(combine(&[&a[0], &a[0]]), RecoveryError::Twice(1)));
        assert!(matches!(combine(&[]), RecoveryError::TooFew { .. }));
        // Whoever forges a share can make its checksum right.
        let mut forged = read(&[&a[0], &a[1]]);
        forged[1].share.values[3] ^= 1;
        assert!(matches!(
            super::combine(&forged),
            Err(RecoveryError::Wrong(_))
        ));
    }

    proptest! {
        #[test]
        fn what_was_mistyped_is_said(at: prop::sample::Index, letter in "[0-9a-f]") {
            let (_, lines) = lines(2, 2);
            let line = &lines[1];
            let at = line.len() - 1 - at.index(9 + 64);
            let mut typed = line.clone();
            typed.replace_range(at..=at, &letter);
            assert!(typed == *line || typed.parse::<PaperShare>().is_err());
        }

        #[test]
        fn any_text_is_a_share_or_refused(text: String) {
            let _ = text.parse::<PaperShare>();
        }
    }

    #[test]
    fn numbers_that_make_no_sense_are_refused() {
        for (count, need) in [(0, 0), (3, 0), (2, 3), (33, 2)] {
            assert!(make(count, need).is_err(), "{need} of {count}");
        }
    }

    #[test]
    fn a_passphrase_can_be_read_aloud() {
        let text = passphrase(&Secret::new([0xa5; 32]));
        assert_eq!(*text, ["a5a5a5a5"; 8].join("-"));
    }
}
