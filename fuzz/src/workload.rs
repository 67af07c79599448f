//! The ledger: two files on a disk that somebody may have written to.
//!
//! Owns: that what opens is healed: opened again, it says the same and has nothing to complain of.

use std::fs;
use std::path::Path;

use ::types::deployment::{Action, Statement};
use ::types::{Digest, PublicKey};
use ::workload::desired::Verified;
use ::workload::ledger::{Claim, Ledger, LedgerError};

use crate::Target;
use crate::choices::{Choices, Made};
use crate::files::directory;

pub(crate) const TARGETS: [Target; 1] = [Target {
    name: "workload-ledger",
    bytes_max: 1024,
    run: ledger,
    seeds: ledgers,
}];

/// A statement of two bytes: who and what, which version. An odd first byte is one that does not verify.
fn verify(envelope: &[u8]) -> Result<Verified, String> {
    let &[who, version] = envelope else {
        return Err("not two bytes".to_owned());
    };
    if who & 1 != 0 {
        return Err("odd".to_owned());
    }
    let action = match who >> 1 & 3 {
        0 => Action::Stop,
        1 => Action::Start,
        2 => Action::Restart,
        _ => Action::Delete,
    };
    let statement = Statement {
        node: PublicKey([0; 32]),
        name: "shop".parse().expect("a name"),
        version: u64::from(version) + 1,
        action,
    };
    Ok(Verified {
        signer: PublicKey([who >> 3; 32]),
        statement,
        digest: Digest([who; 32]),
    })
}

/// A file as the input wants it: an honest header or any, then records with their hash and raw bytes.
fn content(choices: &mut Choices<'_>) -> Vec<u8> {
    let mut out = match choices.u8() & 3 {
        0 => choices.take(16).to_vec(),
        1 => first_header(),
        2 => choices.take(64).to_vec(),
        _ => header(choices),
    };
    for _ in 0..choices.u8() & 15 {
        match choices.u8() & 7 {
            0 => out.extend_from_slice(choices.short()),
            1 => {
                let cut = usize::from(choices.u8());
                let record = record(choices.take(2));
                out.extend_from_slice(&record[..cut.min(record.len())]);
            }
            _ => out.extend(record(choices.take(2))),
        }
    }
    out
}

/// Of format 1.
fn first_header() -> Vec<u8> {
    let format = 1u32.to_le_bytes();
    [&b"SIFRLDGR"[..], &format, &check_of(&format)].concat()
}

/// Of any format since, its sums right: what it needs and what it reserves are the input's.
fn header(choices: &mut Choices<'_>) -> Vec<u8> {
    let format = match choices.u8() {
        format @ 0..=4 => u32::from(format),
        _ => 3,
    };
    let format = format.to_le_bytes();
    let mut out = [&b"SIFRLDGR"[..], &format, &check_of(&format)].concat();
    let more = usize::from(choices.u8() % 45);
    out.extend_from_slice(choices.take(more));
    out.resize(60, 0);
    let whole = check_of(&out);
    out.extend(whole);
    out
}

fn check_of(bytes: &[u8]) -> [u8; 4] {
    let [a, b, c, d, ..] = *blake3::hash(bytes).as_bytes();
    [a, b, c, d]
}

fn record(envelope: &[u8]) -> Vec<u8> {
    let length = u32::try_from(envelope.len()).expect("two bytes");
    let hash = blake3::hash(envelope);
    [&length.to_le_bytes(), hash.as_bytes().as_slice(), envelope].concat()
}

fn ledger(input: &[u8]) {
    let mut choices = Choices(input);
    let root = directory();
    let [a, b] = ["a", "b"].map(|name| root.path().join(name));
    for path in [&a, &b] {
        if choices.u8() & 7 != 0 {
            fs::create_dir_all(path).expect("memory");
            fs::write(path.join("ledger"), content(&mut choices)).expect("memory");
        }
    }
    check(&a, &b);
}

fn check(a: &Path, b: &Path) {
    // The disk has room.
    let open = || Ledger::open(a, b, |_, _| Ok(()), verify);
    let opened = match open() {
        Ok(opened) => opened,
        Err(LedgerError::Newer { .. } | LedgerError::Unverifiable { .. }) => return,
        Err(error) => panic!("{error}: nothing is wrong with the disk"),
    };
    let mut newest = std::collections::BTreeMap::new();
    for verified in &opened.statements {
        let before = newest.insert(verified.signer, verified.statement.version);
        assert!(before < Some(verified.statement.version), "versions rise");
    }
    let mut ledger = opened.ledger;
    ledger
        .append(&[0, 254], Claim::Ordinary, verify)
        .expect("memory");
    drop(ledger);
    let again = open().expect("what was healed opens");
    assert!(again.problems.is_empty(), "{:?}", again.problems);
    let expected = opened.statements.len() + 1;
    // The version appended may have been there.
    assert!((expected - 1..=expected).contains(&again.statements.len()));
    let same = fs::read(a.join("ledger")).ok() == fs::read(b.join("ledger")).ok();
    assert!(same, "both copies are the same");
}

fn ledgers() -> Vec<Vec<u8>> {
    // Its first byte says that there is a copy, the next what its header is.
    let first = || Made::default().u8(1).u8(1);
    let second = |format| Made::default().u8(1).u8(3).u8(format).u8(5).raw(b"0.1.0");
    let honest = |head: Made, records: &[[u8; 2]]| {
        let count = u8::try_from(records.len()).expect("a few");
        let records = records.iter();
        let all = records.fold(head.u8(count), |made, record| made.u8(2).raw(record));
        all.0
    };
    let (all, some) = ([[0, 0], [2, 1], [8, 0], [4, 2]], [[0, 0], [2, 1]]);
    let (long, short) = (honest(first(), &all), honest(first(), &some));
    let torn = |head: Made| {
        let torn = head.u8(2).u8(2).raw(&[0, 0]);
        torn.u8(1).u8(20).raw(&[2, 1]).0
    };
    let now = honest(second(3), &all);
    vec![
        [long.clone(), long.clone()].concat(),
        [long.clone(), short.clone()].concat(),
        [torn(first()), long.clone()].concat(),
        vec![0, 0],
        [now.clone(), now.clone()].concat(),
        // A migration that was cut, both ways round.
        [now.clone(), long.clone()].concat(),
        [short, now.clone()].concat(),
        [torn(second(3)), now.clone()].concat(),
        [honest(second(2), &all), now.clone()].concat(),
        // One of the future, alone and beside one of ours.
        [honest(second(4), &all), now].concat(),
        [honest(second(4), &all), honest(second(4), &some)].concat(),
    ]
}
