//! From an older format to this build's, with the power cut at every moment of it; and never back.

use std::fs;

use proptest::prelude::*;
use types::deployment::Action;

use super::header::of_format;
use super::tests::{FULL, Place, append, envelope, history};
use super::*;

/// What a build of the first format left.
fn first_format(envelopes: &[Vec<u8>]) -> Vec<u8> {
    let mut out = of_format(1, "0.0.0");
    for envelope in envelopes {
        encode_record(envelope, &mut out).expect("small");
    }
    out
}

fn this_format(envelopes: &[Vec<u8>]) -> Vec<u8> {
    let mut out = header::header();
    for envelope in envelopes {
        encode_record(envelope, &mut out).expect("small");
    }
    out
}

fn place(a: &[u8], b: &[u8]) -> Place {
    let place = Place::new();
    fs::create_dir_all(&place.a).expect("a directory");
    fs::create_dir_all(&place.b).expect("a directory");
    place.set(0, a);
    place.set(1, b);
    place
}

#[test]
fn a_ledger_of_the_first_format_is_brought_to_this_one_with_every_statement() {
    let old = first_format(&history());
    let place = place(&old, &old);
    assert!(place.open().expect("migrated").problems.is_empty());
    assert_eq!(place.versions(), [1, 2, 3]);
    assert_eq!(place.bytes(0), this_format(&history()));
    let mut ledger = place.open().expect("again").ledger;
    append(&mut ledger, &envelope(4, Action::Stop)).expect("an append");
    assert_eq!(place.versions(), [1, 2, 3, 4]);
}

#[test]
fn an_empty_ledger_of_the_first_format_is_brought_to_this_one() {
    let old = first_format(&[]);
    let place = place(&old, &old);
    assert!(place.versions().is_empty());
    assert_eq!(place.bytes(1), header::header());
}

/// The moments of a migration: nothing yet; part of the new copy beside the old one; the new one in its place. One copy
/// is begun once the other is done.
#[test]
fn a_power_cut_at_any_byte_of_a_migration_leaves_a_ledger_that_opens_whole() {
    let (old, new) = (first_format(&history()), this_format(&history()));
    for cut in 0..=new.len() {
        for done in [0, 1] {
            let place = match done {
                0 => place(&old, &old),
                _ => place(&new, &old),
            };
            let beside = place.file(done).with_file_name(TEMPORARY);
            fs::write(beside, &new[..cut]).expect("a write");
            assert_eq!(place.versions(), [1, 2, 3], "copy {done} cut at {cut}");
            assert_eq!(place.bytes(0), new);
        }
    }
}

#[test]
fn what_was_half_migrated_is_refused_by_the_older_build_and_left_alone() {
    // As the next format's build leaves it when the power goes between its two copies.
    let ours = this_format(&history());
    let next = [&of_format(FORMAT + 1, "9.1.0")[..], &ours[HEADER_BYTES..]].concat();
    for (a, b) in [(&next, &ours), (&ours, &next)] {
        let place = place(a, b);
        let error = place.open().expect_err("the newer copy counts");
        assert!(matches!(error, LedgerError::Newer { .. }), "{error}");
        assert_eq!((&place.bytes(0), &place.bytes(1)), (a, b));
        assert!(!place.a.join(TEMPORARY).exists() && !place.b.join(DAMAGED).exists());
    }
}

#[test]
fn a_migration_that_cannot_be_written_takes_stops_alone_until_it_can() {
    let old = first_format(&history());
    let place = place(&old, &old);
    // Nothing can be created at that name.
    let in_the_way = |at: usize| place.file(at).with_file_name(TEMPORARY);
    for at in [0, 1] {
        fs::create_dir_all(in_the_way(at).join("full")).expect("a directory");
    }
    let mut opened = place.open().expect("what should run is known");
    assert_eq!(opened.statements.len(), 3);
    let refused =
        append(&mut opened.ledger, &envelope(4, Action::Start)).expect_err("an older one");
    assert!(matches!(refused, LedgerError::Older), "{refused}");
    FULL.set(true);
    let stop = envelope(4, Action::Stop);
    let kept = opened
        .ledger
        .append(&stop, Claim::Reserve, super::tests::verify);
    FULL.set(false);
    kept.expect("a stop needs no new file");
    assert!(place.bytes(0).starts_with(&old));
    for at in [0, 1] {
        fs::remove_dir_all(in_the_way(at)).expect("removed");
    }
    append(&mut opened.ledger, &envelope(5, Action::Start)).expect("migrated first");
    assert_eq!(place.bytes(0)[..HEADER_BYTES], header::header());
    assert_eq!(place.versions(), [1, 2, 3, 4, 5]);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, ..ProptestConfig::default() })]

    /// Copies of either format, each with its tail torn off somewhere, and the rest of a cut migration beside them.
    #[test]
    fn copies_of_two_formats_torn_anywhere_give_what_either_holds(
        formats in [1u32..3, 1u32..3], cuts in [0.0f64..=1.0, 0.0f64..=1.0], beside in prop::collection::vec(any::<u8>(), 0..80)
    ) {
        let made = formats.map(|format| match format {
            1 => first_format(&history()),
            _ => this_format(&history()),
        });
        let headers = formats.map(|format| of_format(format, "0.0.0").len());
        let cut = |at: usize| {
            let records = made[at].len() - headers[at];
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
            let kept = (records as f64 * cuts[at]) as usize;
            made[at][..headers[at] + kept].to_vec()
        };
        let (a, b) = (cut(0), cut(1));
        let whole = |bytes: &[u8], header: usize| {
            let ends = history();
            let ends = ends.iter().scan(header, |at, e| { *at += RECORD_HEADER_BYTES + e.len(); Some(*at) });
            ends.filter(|end| *end <= bytes.len()).count()
        };
        let expected = whole(&a, headers[0]).max(whole(&b, headers[1]));
        let place = place(&a, &b);
        fs::write(place.a.join(TEMPORARY), &beside).expect("a write");
        prop_assert_eq!(place.versions().len(), expected);
        prop_assert_eq!(&place.bytes(0)[..HEADER_BYTES], &header::header()[..]);
    }
}
