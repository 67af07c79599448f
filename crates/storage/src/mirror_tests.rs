//! Halves that fail, return, are replaced and were used apart.
//!
//! Owns: what becomes of each, and that `mdadm` reads what is written. Refuses: devices, which `qemu-tests` has.

use std::process::Command;

use proptest::prelude::*;

use super::*;

const GIB: u64 = 1 << 30;

fn pair() -> [Half; 2] {
    Half::pair([7; 16], [[1; 16], [2; 16]], [GIB, GIB + 4096])
}

fn parsed(bytes: &[u8]) -> Option<Result<Half, HalfError>> {
    Half::parse(bytes.first_chunk().expect("a block"))
}

/// As the kernel notes it when the other half fails: it counts on, and names it no more.
fn alone(half: &Half, other: u16, events: u64) -> Half {
    let mut half = half.clone();
    half.events = events;
    half.roles[usize::from(other)] = FAULTY;
    half
}

#[test]
fn a_superblock_is_read_as_it_was_written() {
    for half in pair() {
        assert_eq!(parsed(&half.encode()), Some(Ok(half.clone())));
        let mut partition = vec![0; 8192];
        assert!(!is_half(&partition));
        partition[4096..].copy_from_slice(&half.encode());
        assert!(is_half(&partition));
    }
    assert_eq!(pair()[0].size, (GIB - DATA_AT) / SECTOR);
}

#[test]
fn an_array_of_somebody_else_is_not_ours_and_one_that_is_damaged_is_not_taken() {
    let mut foreign = pair()[0].encode();
    foreign[32..37].copy_from_slice(b"home:");
    assert_eq!(parsed(&foreign), None);
    let mut damaged = pair()[0].encode();
    damaged[200] ^= 1;
    assert_eq!(parsed(&damaged), Some(Err(HalfError::Checksum)));
}

/// In 64 bits of bytes it would be the right place.
#[test]
fn a_superblock_whose_sectors_wrap_around_is_not_taken() {
    for place in [128, 144] {
        let mut block = pair()[0].encode();
        block[place + 7] = 0x10;
        let sum = checksum(&block, u32::from(DEVICES)).to_le_bytes();
        block[216..220].copy_from_slice(&sum);
        assert_eq!(parsed(&block), Some(Err(HalfError::Kind)));
    }
}

#[test]
fn mdadm_reads_what_is_written() {
    let directory = tempfile::tempdir().expect("a directory");
    for half in pair() {
        let path = directory.path().join("half");
        let file = std::fs::File::create(&path).expect("a file");
        file.set_len(GIB + 4096).expect("a size");
        use std::os::unix::fs::FileExt;
        file.write_all_at(&half.encode(), SUPER_AT)
            .expect("written");
        file.write_all_at(&half.bitmap(), BITMAP_AT)
            .expect("written");
        let bits = directory.path().join("bits");
        std::fs::write(&bits, half.bitmap()).expect("written");
        let look = |how: &str, path: &std::path::Path| {
            let output = Command::new("/sbin/mdadm").arg(how).arg(path).output();
            let output = output.expect("`make setup` installs mdadm");
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            assert!(output.status.success(), "{how}: {text}");
            text
        };
        let text = look("--examine", &path);
        for said in [
            "Version : 1.2",
            "Raid Level : raid1",
            "Raid Devices : 2",
            "State : clean",
            "Internal Bitmap : 8 sectors from superblock",
            "- correct",
            "Array State : AA",
        ] {
            assert!(text.contains(said), "{said}: {text}");
        }
        let text = look("--examine-bitmap", &bits);
        for said in ["Chunksize : 64 MB", "16 bits (chunks), 0 dirty"] {
            assert!(text.contains(said), "{said}: {text}");
        }
    }
}

#[test]
fn halves_in_step_are_the_mirror_and_one_that_missed_something_is_filled() {
    let [a, b] = pair();
    let both = [a.clone(), b.clone()];
    assert_eq!(judge(&both), Some(vec![Part::Truth, Part::Half]));
    let on = alone(&b, 0, 9);
    assert_eq!(
        judge(&[a.clone(), on.clone()]),
        Some(vec![Part::Stale, Part::Truth])
    );
    // One event behind, and already given up.
    let just = alone(&b, 0, 1);
    assert_eq!(
        judge(&[a.clone(), just]),
        Some(vec![Part::Stale, Part::Truth])
    );
    assert_eq!(judge(&[a]), Some(vec![Part::Truth]));
    assert_eq!(judge(&[]), None);
}

#[test]
fn halves_that_were_used_apart_are_never_put_together() {
    let [a, b] = pair();
    let (a, b) = (alone(&a, 1, 5), alone(&b, 0, 8));
    assert_eq!(judge(&[a, b]), Some(vec![Part::Apart, Part::Truth]));
}

#[test]
fn a_half_that_is_being_filled_is_never_the_truth() {
    let [a, mut b] = pair();
    b.unfinished = true;
    b.events = 7;
    assert_eq!(judge(&[b.clone()]), None);
    let mut a = a;
    a.events = 7;
    assert_eq!(judge(&[a, b]), Some(vec![Part::Truth, Part::Half]));
}

#[test]
fn who_was_replaced_has_no_place_any_more_while_his_successor_is_there() {
    let [a, b] = pair();
    let on = alone(&a, 1, 9);
    let spare = on.spare([3; 16], 2 * GIB, &[0, 1]).expect("it fits");
    assert_eq!(spare.number, 2);
    assert_eq!(
        judge(&[on.clone(), spare.clone()]),
        Some(vec![Part::Truth, Part::Stale])
    );
    let mut truth = on.clone();
    (truth.events, truth.roles[2], truth.roles[1]) = (20, 1, SPARE);
    let half = Half {
        events: 20,
        roles: truth.roles.clone(),
        ..spare
    };
    let parts = judge(&[truth, half.clone(), b.clone()]);
    assert_eq!(parts, Some(vec![Part::Truth, Part::Half, Part::Replaced]));
    // With the place free again it may be filled anew; what it says of itself does not count.
    assert_eq!(judge(&[half, b]), Some(vec![Part::Truth, Part::Stale]));
    assert_eq!(on.spare([3; 16], GIB / 2, &[0, 1]), None);
}

#[test]
fn disks_of_like_size_become_pairs() {
    assert_eq!(pairs(&[100, 95]), [[0, 1]]);
    assert_eq!(pairs(&[4000, 2000, 3900, 1990]), [[0, 2], [1, 3]]);
    assert!(pairs(&[4000, 2000]).is_empty());
    assert_eq!(pairs(&[4000, 2000, 2000]), [[1, 2]]);
    assert!(pairs(&[4000]).is_empty());
}

fn any_half() -> impl Strategy<Value = Half> {
    let role = prop_oneof![Just(0u16), Just(1), Just(SPARE), Just(FAULTY)];
    let roles = proptest::collection::vec(role, 3);
    (0u16..3, 0u64..4, any::<bool>(), roles).prop_map(|(number, events, unfinished, roles)| Half {
        number,
        events,
        unfinished,
        roles,
        ..pair()[0].clone()
    })
}

proptest! {
    #[test]
    fn a_changed_byte_means_the_same_or_nothing(at in 0usize..SUPER_BYTES, to in any::<u8>()) {
        let half = &pair()[0];
        let mut bytes = half.encode();
        bytes[at] = to;
        match parsed(&bytes) {
            None | Some(Err(_)) => {}
            Some(Ok(read)) => prop_assert_eq!(&read, half),
        }
    }

    #[test]
    fn whatever_halves_say_the_truth_is_whole_and_the_latest_and_has_at_most_one_mate(
        halves in proptest::collection::vec(any_half(), 0..5)
    ) {
        let Some(parts) = judge(&halves) else {
            prop_assert!(!halves.iter().any(Half::is_whole));
            return Ok(());
        };
        let with = |part: Part| (0..halves.len()).filter(move |at| parts[*at] == part).collect::<Vec<_>>();
        let (truth, half, stale) = (with.clone()(Part::Truth), with.clone()(Part::Half), with(Part::Stale));
        prop_assert_eq!(truth.len(), 1);
        let truth = &halves[truth[0]];
        prop_assert!(truth.is_whole());
        prop_assert!(halves.iter().filter(|h| h.is_whole()).all(|h| h.events <= truth.events));
        prop_assert!(half.len() + stale.len() <= 1);
        for at in half {
            prop_assert!(truth.trusts(halves[at].number) && halves[at].events + 1 >= truth.events);
        }
        for at in stale {
            let half = &halves[at];
            prop_assert!(!half.is_whole() || !half.is_alone() || half.trusts(truth.number));
        }
    }
}
