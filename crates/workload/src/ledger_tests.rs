//! Fault injection on the ledger: cuts at every byte, flipped bits, lost files, failed writes.

use std::cell::Cell;
use std::fs;

use types::{Digest, PublicKey};

use super::header::of_format;
use super::*;
use crate::desired::tests::{deployment, verified};

/// The tests' envelope is the statement's JSON; its signature is taken on trust.
pub(super) fn verify(envelope: &[u8]) -> Result<Verified, String> {
    let statement = serde_json::from_slice(envelope).map_err(|e| e.to_string())?;
    let digest = Digest(*blake3::hash(envelope).as_bytes());
    Ok(Verified {
        signer: PublicKey([1; 32]),
        statement,
        digest,
    })
}

pub(super) fn envelope(version: u64, action: Action) -> Vec<u8> {
    serde_json::to_vec(&verified(version, action).statement).expect("statements serialise")
}

pub(super) fn history() -> Vec<Vec<u8>> {
    vec![
        envelope(1, Action::Deploy(deployment(1))),
        envelope(2, Action::Stop),
        envelope(3, Action::Start),
    ]
}

thread_local! {
    /// Whether the disk of this test has no room left.
    pub(super) static FULL: Cell<bool> = const { Cell::new(false) };
}

fn reserve(_: &File, _: u64) -> io::Result<()> {
    if FULL.get() {
        return Err(io::ErrorKind::StorageFull.into());
    }
    Ok(())
}

pub(super) fn append(ledger: &mut Ledger, envelope: &[u8]) -> Result<(), LedgerError> {
    ledger.append(envelope, Claim::Ordinary, verify)
}

pub(super) struct Place {
    _root: tempfile::TempDir,
    pub(super) a: PathBuf,
    pub(super) b: PathBuf,
}

impl Place {
    pub(super) fn new() -> Self {
        // In memory where there is such a place: thousands of syncs on a disk take minutes.
        let memory = Path::new("/dev/shm");
        let root = if memory.is_dir() {
            tempfile::tempdir_in(memory)
        } else {
            tempfile::tempdir()
        };
        let root = root.expect("a directory");
        let (a, b) = (root.path().join("a"), root.path().join("b"));
        Self { _root: root, a, b }
    }

    pub(super) fn with_history() -> Self {
        let place = Self::new();
        let mut ledger = place.open().expect("an empty ledger").ledger;
        for envelope in history() {
            append(&mut ledger, &envelope).expect("an append");
        }
        place
    }

    pub(super) fn open(&self) -> Result<Opened, LedgerError> {
        Ledger::open(&self.a, &self.b, reserve, verify)
    }

    pub(super) fn versions(&self) -> Vec<u64> {
        let opened = self.open().expect("a ledger that opens");
        assert_eq!(
            self.bytes(0),
            self.bytes(1),
            "both copies are the same after opening"
        );
        opened
            .statements
            .iter()
            .map(|v| v.statement.version)
            .collect()
    }

    pub(super) fn file(&self, copy: usize) -> PathBuf {
        [&self.a, &self.b][copy].join(FILE)
    }

    pub(super) fn bytes(&self, copy: usize) -> Vec<u8> {
        fs::read(self.file(copy)).expect("a copy")
    }

    pub(super) fn set(&self, copy: usize, bytes: &[u8]) {
        fs::write(self.file(copy), bytes).expect("a write");
    }
}

#[test]
fn what_was_appended_is_there_after_opening_again() {
    let place = Place::with_history();
    assert_eq!(place.versions(), [1, 2, 3]);
    assert!(place.open().expect("a ledger").problems.is_empty());
}

#[test]
fn a_cut_of_one_copy_at_any_byte_loses_nothing() {
    let place = Place::with_history();
    let whole = place.bytes(0);
    for copy in [0, 1] {
        for cut in 0..whole.len() {
            place.set(copy, &whole[..cut]);
            assert_eq!(place.versions(), [1, 2, 3], "copy {copy} cut at {cut}");
            assert_eq!(place.bytes(copy), whole);
        }
    }
}

#[test]
fn a_flipped_bit_at_any_byte_of_one_copy_loses_nothing() {
    let place = Place::with_history();
    let whole = place.bytes(0);
    for copy in [0, 1] {
        for at in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] ^= 1 << (at % 8);
            place.set(copy, &bytes);
            assert_eq!(place.versions(), [1, 2, 3], "copy {copy} flipped at {at}");
            assert_eq!(place.bytes(copy), whole);
        }
    }
}

#[test]
fn copies_torn_differently_give_what_either_holds() {
    let place = Place::with_history();
    let whole = place.bytes(0);
    let ends: Vec<usize> = history()
        .iter()
        .scan(HEADER_BYTES, |at, e| {
            *at += RECORD_HEADER_BYTES + e.len();
            Some(*at)
        })
        .collect();
    for (a, b) in (0..whole.len())
        .step_by(7)
        .flat_map(|a| (0..whole.len()).step_by(11).map(move |b| (a, b)))
    {
        place.set(0, &whole[..a]);
        place.set(1, &whole[..b]);
        let expected = ends.iter().filter(|end| **end <= a.max(b)).count();
        assert_eq!(place.versions().len(), expected, "cut at {a} and {b}");
        place.set(0, &whole);
        place.set(1, &whole);
    }
}

#[test]
fn a_ledger_with_statements_is_told_from_an_empty_one() {
    let empty = Place::new();
    let directories = |place: &Place| [place.a.clone(), place.b.clone()];
    assert!(!has_statements(&directories(&empty)));
    drop(empty.open().expect("an empty ledger"));
    assert!(!has_statements(&directories(&empty)));
    assert!(has_statements(&directories(&Place::with_history())));
}

#[test]
fn a_lost_copy_is_made_anew_and_said() {
    let place = Place::with_history();
    fs::remove_dir_all(&place.a).expect("a removal");
    let opened = place.open().expect("a ledger");
    assert_eq!(opened.statements.len(), 3);
    assert!(
        opened.problems[0].contains("missing"),
        "{:?}",
        opened.problems
    );
    assert_eq!(place.bytes(0), place.bytes(1));
}

#[test]
fn a_damaged_copy_is_kept_aside() {
    let place = Place::with_history();
    let mut bytes = place.bytes(1);
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    place.set(1, &bytes);
    assert_eq!(place.versions(), [1, 2, 3]);
    assert_eq!(fs::read(place.b.join(DAMAGED)).expect("evidence"), bytes);
}

/// A directory in a file's place: reading it fails as a bad sector does.
fn unreadable(path: &Path) {
    fs::remove_file(path).expect("removed");
    fs::create_dir(path).expect("in its place");
}

#[test]
fn a_copy_that_cannot_be_read_is_made_anew_from_the_other_and_said() {
    for copy in [0, 1] {
        let place = Place::with_history();
        let whole = place.bytes(copy);
        unreadable(&place.file(copy));
        let opened = place.open().expect("the other copy is good");
        assert_eq!(opened.statements.len(), 3);
        let said = opened.problems.join("\n");
        assert!(
            said.contains("read") && said.contains("failing"),
            "copy {copy}: {said}"
        );
        assert_eq!(place.bytes(copy), whole);
        assert!(place.open().expect("healed").problems.is_empty());
    }
}

#[test]
fn a_copy_in_a_directory_that_is_none_does_not_stop_the_ledger() {
    let place = Place::with_history();
    fs::remove_dir_all(&place.a).expect("a removal");
    fs::write(&place.a, "not a directory").expect("a write");
    let mut opened = place.open().expect("the other copy is good");
    assert_eq!(opened.statements.len(), 3);
    let said = opened.problems.join("\n");
    assert!(said.contains("cannot be healed now"), "{said}");
    // One copy is not two: nothing is acknowledged until the other can be written.
    let next = envelope(4, Action::Stop);
    append(&mut opened.ledger, &next).expect_err("one copy");
    fs::remove_file(&place.a).expect("a removal");
    fs::create_dir(&place.a).expect("a directory");
    append(&mut opened.ledger, &next).expect("both copies");
    assert_eq!(place.versions(), [1, 2, 3, 4]);
}

#[test]
fn evidence_that_cannot_be_kept_does_not_stop_the_healing() {
    let place = Place::with_history();
    let whole = place.bytes(0);
    let mut bytes = whole.clone();
    bytes[HEADER_BYTES + 5] ^= 1;
    place.set(1, &bytes);
    fs::create_dir_all(place.b.join(DAMAGED).join("in the way")).expect("a directory");
    let opened = place.open().expect("a ledger");
    assert_eq!(opened.statements.len(), 3);
    assert_eq!(place.bytes(1), whole);
    let said = opened.problems.join("\n");
    assert!(said.contains("could not be kept as"), "{said}");
}

#[test]
fn a_copy_that_cannot_be_read_beside_one_that_lacks_something_changes_nothing() {
    let spoil: [fn(&Place); 3] = [
        |place| unreadable(&place.file(1)),
        |place| fs::remove_file(place.file(1)).expect("removed"),
        |place| {
            let mut bytes = place.bytes(1);
            bytes[HEADER_BYTES + 40] ^= 1;
            place.set(1, &bytes);
        },
    ];
    for (case, spoil) in spoil.into_iter().enumerate() {
        let place = Place::with_history();
        spoil(&place);
        let other = fs::read(place.file(1)).ok();
        unreadable(&place.file(0));
        let error = place
            .open()
            .expect_err("statements may be in what cannot be read");
        assert!(
            matches!(error, LedgerError::Io { .. }),
            "case {case}: {error}"
        );
        assert!(place.file(0).is_dir());
        assert_eq!(fs::read(place.file(1)).ok(), other, "case {case}");
    }
}

#[test]
fn a_newer_format_is_refused_and_left_alone() {
    let place = Place::with_history();
    let records = &place.bytes(0)[HEADER_BYTES..];
    let bytes = [&of_format(FORMAT + 1, "7.8.9"), records].concat();
    place.set(0, &bytes);
    let other = place.bytes(1);
    let error = place.open().expect_err("a newer format");
    let said = error.to_string();
    assert!(said.contains("needs Sifr 7.8.9 or newer"), "{said}");
    assert_eq!((place.bytes(0), place.bytes(1)), (bytes, other));
}

#[test]
fn a_whole_record_that_is_not_accepted_stops_everything_and_changes_nothing() {
    let place = Place::with_history();
    let before = (place.bytes(0), place.bytes(1));
    let error = Ledger::open(&place.a, &place.b, reserve, |_| {
        Err("bad signature".to_owned())
    })
    .expect_err("records that do not verify");
    assert!(matches!(error, LedgerError::Unverifiable { index: 0, .. }));
    assert_eq!((place.bytes(0), place.bytes(1)), before);
}

#[test]
fn a_failed_write_is_taken_back_and_not_acknowledged() {
    let place = Place::with_history();
    let whole = place.bytes(0);
    let mut ledger = place.open().expect("a ledger").ledger;
    // The second copy is a file that nobody can write to.
    if let State::Whole { file, .. } = &mut ledger.copies[1].state {
        *file = File::open(place.file(1)).expect("a read-only file").into();
    }
    append(&mut ledger, &envelope(4, Action::Stop)).expect_err("a write that fails");
    assert_eq!(place.bytes(0), whole, "the first copy is as before");
    assert!(ledger.is_poisoned());
    assert!(matches!(
        append(&mut ledger, b"{}"),
        Err(LedgerError::Poisoned)
    ));
    // Opening it again is all it takes.
    let mut ledger = place.open().expect("a ledger").ledger;
    append(&mut ledger, &envelope(4, Action::Stop)).expect("an append");
    assert_eq!(place.versions(), [1, 2, 3, 4]);
}

#[test]
fn an_envelope_over_the_limit_is_refused_before_it_is_written() {
    let place = Place::with_history();
    let mut ledger = place.open().expect("a ledger").ledger;
    assert!(matches!(
        append(&mut ledger, &vec![0; ENVELOPE_MAX + 1]),
        Err(LedgerError::TooLarge(_))
    ));
    assert_eq!(place.versions(), [1, 2, 3]);
}

#[test]
fn a_large_ledger_is_compacted_and_means_the_same() {
    let place = Place::new();
    let mut big = deployment(1);
    for machine in big.workloads.values_mut() {
        let types::deployment::Workload::Machine(machine) = machine else {
            continue;
        };
        machine.command = Some(vec!["x".repeat(100_000)]);
    }
    let mut ledger = place.open().expect("an empty ledger").ledger;
    ledger.compact_at = u64::MAX;
    for version in 1..60 {
        let action = if version == 59 {
            Action::Stop
        } else {
            Action::Deploy(big.clone())
        };
        append(&mut ledger, &envelope(version, action)).expect("an append");
    }
    let fold = |statements: &[Verified]| {
        let mut desired = crate::desired::Desired::default();
        statements.iter().for_each(|s| desired.apply(s));
        desired
    };
    let before = fold(&place.open().expect("a ledger").statements);
    let length = place.bytes(0).len();
    assert!(length < 300_000, "compacted to {length} bytes");
    assert_eq!(fold(&place.open().expect("a ledger").statements), before);
    // A crash between the two renames: one copy compacted, one not.
    assert_eq!(place.versions(), [58, 59]);
}

#[test]
fn on_a_full_pool_stops_and_deletions_are_kept_and_nothing_else() {
    let place = Place::with_history();
    FULL.set(true);
    let mut opened = place.open().expect("a full pool is no reason not to open");
    assert!(
        opened.problems[0].contains("stops and deletions"),
        "{:?}",
        opened.problems
    );
    let mut say = |version, action: Action| {
        let claim = Claim::of(&action);
        opened
            .ledger
            .append(&envelope(version, action), claim, verify)
    };
    let refused = say(4, Action::Restart).expect_err("it would take the reserve");
    assert!(refused.is_full(), "{refused}");
    say(4, Action::Stop).expect("a stop");
    say(5, Action::Delete).expect("a deletion");
    let refused = say(6, Action::Deploy(deployment(1))).expect_err("still full");
    assert!(refused.is_full(), "{refused}");
    FULL.set(false);
    say(6, Action::Deploy(deployment(1))).expect("room again");
    assert_eq!(place.versions(), [1, 2, 3, 4, 5, 6]);
}

/// A deployment with arguments of this length, in a test's envelope.
fn large(name: &str, version: u64, bytes: usize) -> Vec<u8> {
    let mut big = deployment(1);
    for machine in big.workloads.values_mut() {
        let types::deployment::Workload::Machine(machine) = machine else {
            continue;
        };
        machine.command = Some(vec!["x".repeat(bytes)]);
    }
    of(name, version, Action::Deploy(big))
}

fn of(name: &str, version: u64, action: Action) -> Vec<u8> {
    let mut statement = verified(version, action).statement;
    statement.name = name.parse().expect("a valid name");
    serde_json::to_vec(&statement).expect("statements serialise")
}

#[test]
fn a_ledger_that_grows_is_compacted_while_it_is_open() {
    let place = Place::new();
    let mut ledger = place.open().expect("an empty ledger").ledger;
    let mut longest = 0;
    for version in 1..200 {
        append(&mut ledger, &large("shop", version, 100_000)).expect("an append");
        longest = longest.max(ledger.length());
    }
    assert!(longest < COMPACT_BYTES + 200_000, "{longest} bytes");
    assert_eq!(place.versions().last(), Some(&199));
}

#[test]
fn a_ledger_that_cannot_be_shorter_takes_stops_and_deletions_alone() {
    const EACH: usize = ENVELOPE_MAX * 3 / 4;
    let place = Place::new();
    let mut ledger = place.open().expect("an empty ledger").ledger;
    let names: Vec<String> = (0..2 * ORDINARY_MAX / EACH as u64)
        .map(|n| format!("n{n}"))
        .collect();
    let mut deployed = 0;
    let refused = names.iter().find_map(|name| {
        let result = append(&mut ledger, &large(name, 1, EACH));
        deployed += usize::from(result.is_ok());
        result.err()
    });
    let refused = refused.expect("it is not endless");
    assert!(matches!(refused, LedgerError::Long(_)) && refused.is_full());
    let taken = deployed as u64 * EACH as u64;
    assert!(
        (ORDINARY_MAX / 10 * 9..=ORDINARY_MAX).contains(&taken),
        "{taken}"
    );
    for name in &names[..deployed / 2 + 1] {
        let deletion = of(name, 2, Action::Delete);
        ledger
            .append(&deletion, Claim::Reserve, verify)
            .expect("a deletion");
    }
    append(&mut ledger, &large("late", 1, EACH)).expect("room again");
    assert!(ledger.length() < ORDINARY_MAX);
}

/// Two pools, of two copies each.
struct Two {
    _root: tempfile::TempDir,
    pools: [[PathBuf; 2]; 2],
}

impl Two {
    fn new() -> Self {
        let root = tempfile::tempdir().expect("a directory");
        let copy = |pool: &str, copy: &str| root.path().join(pool).join(copy);
        let pools = ["one", "two"].map(|pool| ["a", "b"].map(|c| copy(pool, c)));
        Self { _root: root, pools }
    }

    fn open(&self, which: &[usize]) -> Opened {
        let pools: Vec<_> = which.iter().map(|at| self.pools[*at].clone()).collect();
        Ledger::open_in(&pools, reserve, verify).expect("a ledger")
    }

    fn versions(&self, which: &[usize]) -> Vec<u64> {
        let statements = self.open(which).statements;
        let mut versions: Vec<_> = statements.iter().map(|s| s.statement.version).collect();
        versions.sort_unstable();
        versions
    }

    /// Makes the next write to a copy fail as a dead disk does.
    fn kill(ledger: &mut Ledger, at: usize) {
        if let State::Whole { file, .. } = &mut ledger.copies[at].state {
            let dead = File::open("/dev/null").expect("a file that nobody may write to");
            *file = Arc::new(dead);
        }
    }
}

#[test]
fn either_of_two_pools_alone_has_every_statement() {
    let two = Two::new();
    let opened = two.open(&[0, 1]);
    assert_eq!(opened.problems, Vec::<String>::new());
    let mut ledger = opened.ledger;
    for envelope in self::history() {
        append(&mut ledger, &envelope).expect("an append");
    }
    for pool in [0, 1] {
        assert_eq!(two.versions(&[pool]), [1, 2, 3]);
    }
}

#[test]
fn a_pool_that_was_away_learns_what_it_missed_and_brings_nothing_back() {
    let two = Two::new();
    let mut both = two.open(&[0, 1]).ledger;
    append(&mut both, &envelope(1, Action::Deploy(deployment(1)))).expect("an append");
    drop(both);
    let mut alone = two.open(&[1]).ledger;
    append(&mut alone, &envelope(2, Action::Delete)).expect("an append");
    drop(alone);
    // Its age shows before anything is put together.
    let [old, new] = two
        .pools
        .each_ref()
        .map(|p| super::history(p, verify).expect("readable"));
    assert!(old.len() == 1 && new.len() == 2);
    assert!(old.iter().all(|(key, digest)| new.get(key) == Some(digest)));
    assert_eq!(two.versions(&[0, 1]), [1, 2]);
    assert_eq!(two.versions(&[0]), [1, 2]);
}

#[test]
fn a_pool_that_dies_is_given_up_and_told_while_the_other_keeps_every_statement() {
    for dead in [0, 1] {
        for copy in [2 * dead, 2 * dead + 1] {
            let two = Two::new();
            let mut ledger = two.open(&[0, 1]).ledger;
            let [first, second, third] = <[Vec<u8>; 3]>::try_from(self::history()).expect("three");
            append(&mut ledger, &first).expect("an append");
            Two::kill(&mut ledger, copy);
            append(&mut ledger, &second).expect("the other pool keeps it");
            let lost = ledger.take_lost();
            assert!(lost.len() == 1 && lost[0].pool == dead, "{lost:?}");
            append(&mut ledger, &third).expect("an append");
            assert!(ledger.take_lost().is_empty() && !ledger.is_poisoned());
            assert_eq!(two.versions(&[1 - dead]), [1, 2, 3]);
            assert_eq!(two.versions(&[0, 1]), [1, 2, 3]);
        }
    }
}

#[test]
fn nothing_is_acknowledged_when_every_pool_is_dead() {
    let two = Two::new();
    let mut ledger = two.open(&[0, 1]).ledger;
    for copy in [1, 2] {
        Two::kill(&mut ledger, copy);
    }
    let kept = append(&mut ledger, &envelope(1, Action::Deploy(deployment(1))));
    assert!(kept.is_err() && ledger.is_poisoned(), "{kept:?}");
    // What could be taken back is: nobody finds a statement that was refused.
    assert!(!has_statements(two.pools.as_flattened()));
}

#[test]
fn a_full_pool_is_not_given_up() {
    let two = Two::new();
    let mut ledger = two.open(&[0, 1]).ledger;
    FULL.set(true);
    let kept = append(&mut ledger, &envelope(1, Action::Deploy(deployment(1))));
    FULL.set(false);
    assert!(matches!(kept, Err(LedgerError::Full(_))), "{kept:?}");
    assert!(ledger.take_lost().is_empty());
}

thread_local! {
    /// The pool whose disk does not answer, and what it would have done.
    static SILENT: Cell<Option<usize>> = const { Cell::new(None) };
    static WAITING: std::cell::RefCell<Vec<Work>> = const { std::cell::RefCell::new(Vec::new()) };
}

fn attempt(pool: usize, work: Work) -> Option<Result<(), LedgerError>> {
    if SILENT.get() == Some(pool) {
        WAITING.with_borrow_mut(|waiting| waiting.push(work));
        return None;
    }
    Some(work())
}

#[test]
fn a_pool_that_does_not_answer_is_given_up_and_the_other_decides() {
    for silent in [0, 1] {
        let two = Two::new();
        let mut ledger = two.open(&[0, 1]).ledger.with_patience(attempt);
        let [first, second, third] = <[Vec<u8>; 3]>::try_from(self::history()).expect("three");
        append(&mut ledger, &first).expect("an append");
        SILENT.set(Some(silent));
        append(&mut ledger, &second).expect("the other pool keeps it");
        let lost = ledger.take_lost();
        assert!(lost.len() == 1 && lost[0].pool == silent, "{lost:?}");
        assert!(lost[0].why.contains("does not answer"), "{lost:?}");
        // It is asked no second time, and what it was asked may be done at any time.
        append(&mut ledger, &third).expect("an append");
        assert!(ledger.take_lost().is_empty() && !ledger.is_poisoned());
        let waiting = WAITING.take();
        assert_eq!(waiting.len(), 1);
        waiting.into_iter().for_each(|work| work().expect("late"));
        SILENT.set(None);
        assert_eq!(two.versions(&[1 - silent]), [1, 2, 3]);
        assert_eq!(two.versions(&[0, 1]), [1, 2, 3]);
    }
}

#[test]
fn the_last_pool_is_waited_for_and_what_a_silent_one_may_yet_keep_is_known_to_nobody() {
    let two = Two::new();
    let mut ledger = two.open(&[0, 1]).ledger.with_patience(attempt);
    SILENT.set(Some(0));
    Two::kill(&mut ledger, 2);
    let kept = append(&mut ledger, &envelope(1, Action::Deploy(deployment(1))));
    // The second was asked with no limit, as no other was left, and failed.
    assert!(matches!(kept, Err(LedgerError::Io { .. })), "{kept:?}");
    SILENT.set(None);
    WAITING.take();
    // The first was silent before anything was written to it.
    assert!(!has_statements(two.pools.as_flattened()));
}
