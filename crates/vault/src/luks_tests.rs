//! Headers of ours, and what Debian's `cryptsetup` says of them.

use std::fs;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Stdio};

use proptest::prelude::{any, prop, proptest};

use super::*;
use crate::recovery::passphrase;
use crate::sealed::RecipientSecret;

const KEY: [u8; KEY_BYTES] = [0x5a; KEY_BYTES];

/// A partition in a file, as a node makes it: the owner's slot, then its own.
struct Partition {
    file: tempfile::NamedTempFile,
    header: Header,
    key: VolumeKey,
    owners: Zeroizing<String>,
    nodes: crate::Secret,
}

fn write(file: &fs::File, header: &Header, slot: &NewSlot) {
    file.write_all_at(&slot.material, slot.area.offset)
        .expect("written");
    file.write_all_at(&header.encode().expect("a header"), 0)
        .expect("written");
}

fn partition() -> Partition {
    let file = tempfile::NamedTempFile::new().expect("a file");
    file.as_file().set_len(DATA_AT + (1 << 20)).expect("a size");
    let key = VolumeKey::new(KEY);
    let mut header = Header::new(&key, 4096).expect("a header");
    let owners = passphrase(&crate::draw().expect("random"));
    let slot = header.add_slot(&key, owners.as_bytes()).expect("a slot");
    let recipient = RecipientSecret::new(crate::draw().expect("random")).public();
    let recovery = Recovery {
        slot: slot.number,
        recipient,
        sealed: vec![1; 120],
    };
    header.set_recovery_token(&recovery).expect("a token");
    assert_eq!(header.recovery(), Some(recovery));
    write(file.as_file(), &header, &slot);
    let nodes = crate::draw().expect("random");
    let slot = header.add_slot(&key, nodes.as_ref()).expect("a slot");
    let sealed = Sealed {
        public: vec![2; 80],
        private: vec![3; 200],
    };
    header
        .set_node_token(slot.number, &sealed)
        .expect("a token");
    assert_eq!(header.node_token(), Some(NodeToken { slot: 1, sealed }));
    write(file.as_file(), &header, &slot);
    Partition {
        file,
        header,
        key,
        owners,
        nodes,
    }
}

fn cryptsetup(args: &[&str], at: &Path, passphrase: &[u8]) -> (bool, String) {
    let mut program = Command::new("/sbin/cryptsetup");
    let child = program.args(args).arg(at).args(["--key-file", "-"]);
    let child = child
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = child.spawn().expect("cryptsetup: run 'make setup'");
    let mut stdin = child.stdin.take().expect("a pipe");
    stdin.write_all(passphrase).expect("heard");
    drop(stdin);
    let output = child.wait_with_output().expect("an end");
    let said = [output.stdout, output.stderr].concat();
    (
        output.status.success(),
        String::from_utf8_lossy(&said).into_owned(),
    )
}

fn material(file: &fs::File, area: Area) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(area.bytes).expect("small")];
    file.read_exact_at(&mut bytes, area.offset).expect("read");
    bytes
}

#[test]
fn debians_cryptsetup_opens_what_we_write_with_both_passphrases_and_no_other() {
    let made = partition();
    let path = made.file.path();
    let test = ["open", "--test-passphrase"];
    for (passphrase, opens) in [
        (made.owners.as_bytes(), true),
        (made.nodes.as_ref(), true),
        (b"00000000".as_slice(), false),
    ] {
        let (opened, said) = cryptsetup(&test, path, passphrase);
        assert_eq!(opened, opens, "{said}");
    }
    let (done, said) = cryptsetup(&["luksDump"], path, b"");
    for words in [
        "allow-discards",
        "sifr-recovery",
        "sifr-tpm2",
        "aes-xts-plain64",
        "sector: 4096",
    ] {
        assert!(done && said.contains(words), "{words}: {said}");
    }
    let volume = ["luksDump", "--dump-volume-key", "-q"];
    let (done, said) = cryptsetup(&volume, path, made.owners.as_bytes());
    let line = ["5a"; 16].join(" ");
    assert!(done && said.matches(&line).count() == 4, "{said}");
}

#[test]
fn we_open_a_header_that_cryptsetup_has_changed_and_keep_what_it_added() {
    let made = partition();
    let path = made.file.path();
    let new = tempfile::NamedTempFile::new().expect("a file");
    fs::write(new.path(), "a person's passphrase").expect("written");
    let mut program = Command::new("/sbin/cryptsetup");
    let program = program.args([
        "luksAddKey",
        "-q",
        "--pbkdf",
        "pbkdf2",
        "--pbkdf-force-iterations",
        "1000",
    ]);
    let old = tempfile::NamedTempFile::new().expect("a file");
    fs::write(old.path(), made.owners.as_bytes()).expect("written");
    let program = program
        .arg("--key-file")
        .arg(old.path())
        .args([path, new.path()]);
    assert!(
        program
            .status()
            .expect("cryptsetup: run 'make setup'")
            .success()
    );
    let mut bytes = vec![0; HEADERS_BYTES];
    made.file
        .as_file()
        .read_exact_at(&mut bytes, 0)
        .expect("read");
    let mut header = Header::parse(&bytes).expect("a header");
    assert_eq!(header.slots(), [0, 1, 2]);
    assert_eq!(header.node_token(), made.header.node_token());
    let area = header.area(2).expect("theirs");
    let theirs = material(made.file.as_file(), area);
    assert_eq!(
        header.open(2, b"a person's passphrase", &theirs),
        Some(made.key.clone())
    );
    // The node's slot is made anew: theirs is not touched, and the node's old one is free again.
    let slot = header.add_slot(&made.key, b"another").expect("a slot");
    assert_eq!(header.remove_slot(1), made.header.area(1));
    assert_eq!((slot.number, header.node_token()), (3, None));
    header.step();
    write(made.file.as_file(), &header, &slot);
    for passphrase in ["a person's passphrase", "another", &made.owners] {
        let (opened, said) =
            cryptsetup(&["open", "--test-passphrase"], path, passphrase.as_bytes());
        assert!(opened, "{passphrase}: {said}");
    }
    let (opened, _) = cryptsetup(&["open", "--test-passphrase"], path, made.nodes.as_ref());
    assert!(!opened, "the slot that was removed");
    let slot = header.add_slot(&made.key, b"x").expect("a slot");
    assert_eq!(
        Some(slot.area),
        made.header.area(1),
        "a place that is free is used"
    );
}

#[test]
fn only_the_right_passphrase_and_whole_material_give_the_key() {
    let made = partition();
    let area = made.header.area(0).expect("a slot");
    let mut bytes = material(made.file.as_file(), area);
    let open = |passphrase: &str, bytes: &[u8]| made.header.open(0, passphrase.as_bytes(), bytes);
    assert_eq!(open(&made.owners, &bytes), Some(made.key.clone()));
    assert_eq!(open("wrong", &bytes), None);
    assert_eq!(open(&made.owners, &bytes[..1000]), None);
    bytes[100_000] ^= 1;
    assert_eq!(open(&made.owners, &bytes), None);
    assert_eq!(made.header.open(7, made.owners.as_bytes(), &bytes), None);
}

#[test]
fn a_copy_that_a_power_cut_left_half_written_is_replaced_by_the_other() {
    let before = partition().header;
    let mut after = before.clone();
    after.remove_slot(1);
    after.step();
    let (old, new) = (
        before.encode().expect("a header"),
        after.encode().expect("a header"),
    );
    // Every sector, in the order in which they are written.
    for cut in 0..=HEADERS_BYTES / 512 {
        let cut = cut * 512;
        let torn = [&new[..cut], &old[cut..]].concat();
        let found = Header::parse(&torn).expect("one of them");
        assert!(found == before || found == after, "cut at {cut}");
        assert!(is_luks(&torn));
        if cut >= COPY_BYTES {
            assert_eq!(found, after, "cut at {cut}");
        }
    }
    let gone = vec![0; HEADERS_BYTES];
    assert!(matches!(Header::parse(&gone), Err(LuksError::Damaged)));
    assert!(!is_luks(&gone));
}

#[test]
fn what_we_do_not_write_is_refused() {
    type Change = fn(&mut Map<String, Value>);
    let changes: [Change; 6] = [
        |json| json["segments"]["0"]["encryption"] = "aes-cbc-plain".into(),
        |json| json["segments"]["0"]["offset"] = "016777216".into(),
        |json| json["segments"]["0"]["sector_size"] = 1024.into(),
        |json| json["segments"]["0"]["integrity"] = json!({"type": "aead"}),
        |json| json["segments"]["1"] = json["segments"]["0"].clone(),
        |json| json["config"]["requirements"] = json!({"mandatory": ["online-reencrypt"]}),
    ];
    for (n, change) in changes.iter().enumerate() {
        let mut header = partition().header;
        change(&mut header.json);
        let parsed = Header::parse(&header.encode().expect("bytes"));
        assert!(matches!(parsed, Err(LuksError::Foreign(_))), "{n}");
    }
    let mut slow = partition().header;
    slow.json["keyslots"]["0"]["kdf"]["iterations"] = u32::MAX.into();
    slow.json["keyslots"]["1"]["area"]["offset"] = "16777000".into();
    assert_eq!(slow.slots(), Vec::<u32>::new());
    assert!(matches!(
        slow.add_slot(&VolumeKey::new(KEY), b""),
        Err(LuksError::Foreign(_))
    ));
}

#[test]
fn a_header_has_an_end() {
    let mut header = partition().header;
    for _ in 0..SLOTS_MAX - 2 {
        header.add_slot(&VolumeKey::new(KEY), b"x").expect("a slot");
    }
    assert!(matches!(
        header.add_slot(&VolumeKey::new(KEY), b"x"),
        Err(LuksError::Full(_))
    ));
    let sealed = Sealed {
        public: vec![2; 1000],
        private: vec![3; 1000],
    };
    header.set_node_token(2, &sealed).expect("a number");
    assert!(
        matches!(header.encode(), Err(LuksError::Full(_))),
        "more than 12 KiB"
    );
}

/// One is enough where only its form counts: making one takes a while.
fn made_once() -> Header {
    static HEADER: std::sync::OnceLock<Header> = std::sync::OnceLock::new();
    HEADER.get_or_init(|| partition().header).clone()
}

/// Puts a value at a path; where there is no object on the way, instead of what stands there.
fn change(json: &mut Map<String, Value>, path: &[&str], value: Value) {
    let [first, rest @ ..] = path else { return };
    match (rest, json.get_mut(*first)) {
        ([_, ..], Some(Value::Object(inner))) => change(inner, rest, value),
        _ => drop(json.insert((*first).to_owned(), value)),
    }
}

proptest! {
    #[test]
    fn no_bytes_make_the_reader_panic(noise in prop::collection::vec((0..HEADERS_BYTES, any::<u8>()), 0..40)) {
        let mut bytes = made_once().encode().expect("a header");
        for (at, byte) in noise {
            bytes[at] = byte;
        }
        let _ = Header::parse(&bytes);
    }

    #[test]
    fn no_metadata_makes_the_reader_panic(path in prop::collection::vec(prop::sample::select(&[
        "keyslots", "tokens", "segments", "digests", "config", "0", "1", "af", "area", "kdf", "offset", "size", "salt",
        "digest", "iterations", "requirements", "recipient", "sealed", "sector_size",
    ]), 1..4), what in 0..7usize) {
        let mut header = made_once();
        let values = [json!(null), json!([]), json!({}), json!("16777216"), json!(-1), json!(1u64 << 40), json!(["0"])];
        change(&mut header.json, &path, values[what].clone());
        if let Ok(mut header) = Header::parse(&header.encode().expect("bytes")) {
            let _ = (header.node_token(), header.recovery(), header.slots());
            let _ = header.open(0, b"x", &[0; MATERIAL_BYTES]);
            let _ = header.remove_slot(0);
            let _ = header.add_slot(&VolumeKey::new(KEY), b"x");
        }
    }
}
