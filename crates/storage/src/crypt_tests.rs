//! Partitions in files, opened as a node opens them, and by Debian's `cryptsetup`.

use std::cell::Cell;
use std::io::Write;
use std::process::{Command, Stdio};

use vault::sealed::RecipientSecret;

use super::*;

/// A TPM of which two kinds can be told apart: it gives what it sealed itself.
struct Machine {
    kind: u8,
    wish: Wish,
    clear: ClearPools,
    sealed: Cell<Option<[u8; 32]>>,
}

impl Keys for Machine {
    fn wish(&self) -> Wish {
        self.wish.clone()
    }

    fn clear_pools(&self) -> ClearPools {
        self.clear
    }

    fn seal(&self, secret: &Secret) -> Result<Sealed, String> {
        self.sealed.set(Some(**secret));
        Ok(Sealed {
            public: vec![self.kind; 80],
            private: vec![0; 200],
        })
    }

    fn unseal(&self, sealed: &Sealed) -> Result<Secret, String> {
        match (sealed.public.first(), self.sealed.get()) {
            (Some(kind), Some(secret)) if *kind == self.kind => Ok(Secret::new(secret)),
            _ => Err("it was sealed by another TPM".to_owned()),
        }
    }
}

fn owner() -> RecipientSecret {
    RecipientSecret::new(Secret::new([7; 32]))
}

fn machine(kind: u8) -> Machine {
    Machine {
        kind,
        wish: Wish::Encrypt {
            recovery: owner().public(),
        },
        clear: ClearPools::Used,
        sealed: Cell::new(None),
    }
}

fn partition() -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().expect("a file");
    file.as_file().set_len(DATA_AT + (1 << 20)).expect("a size");
    file
}

fn read(file: &tempfile::NamedTempFile) -> Header {
    let found = header(file.as_file(), file.path()).expect("read");
    found.expect("a header")
}

fn opens(file: &tempfile::NamedTempFile, passphrase: &[u8]) -> bool {
    let mut program = Command::new("/sbin/cryptsetup");
    let program = program.args(["open", "--test-passphrase", "--key-file", "-"]);
    let child = program
        .arg(file.path())
        .stdin(Stdio::piped())
        .stderr(Stdio::null())
        .spawn();
    let mut child = child.expect("cryptsetup: run 'make setup'");
    let mut stdin = child.stdin.take().expect("a pipe");
    stdin.write_all(passphrase).expect("heard");
    drop(stdin);
    child.wait().expect("an end").success()
}

#[test]
fn the_node_opens_what_it_made_and_so_does_the_owner_elsewhere() {
    let (file, node) = (partition(), machine(1));
    let (made, key) =
        format(file.as_file(), file.path(), 512, owner().public(), &node).expect("made");
    let found = read(&file);
    assert_eq!(found, made);
    assert_eq!(found.segment().expect("data").sector_bytes, 512);
    assert_eq!(
        unseal(file.as_file(), file.path(), &found, &node).expect("the key"),
        key
    );
    let recovery = found.recovery().expect("the owner's token");
    let passphrase = owner()
        .open(recovery::PURPOSE, &recovery.sealed)
        .expect("opened");
    assert!(opens(&file, &passphrase));
    assert!(opens(&file, &node.sealed.get().expect("sealed")));
}

#[test]
fn another_machine_is_told_what_to_do_and_opens_it_once_the_owner_said_so() {
    let (file, old, new) = (partition(), machine(1), machine(2));
    let (_, key) = format(file.as_file(), file.path(), 4096, owner().public(), &old).expect("made");
    let before = std::fs::read(file.path()).expect("read");
    let refused = unseal(file.as_file(), file.path(), &read(&file), &new);
    let said = refused.expect_err("another machine").to_string();
    for words in ["another TPM", "Nothing was touched", "sifr disk unlock"] {
        assert!(said.contains(words), "{said}");
    }
    assert_eq!(std::fs::read(file.path()).expect("read"), before);

    let mut header = read(&file);
    assert_eq!(header.segment().expect("data").sector_bytes, 4096);
    let nodes = header.node_token().expect("the node's").slot;
    let place = header.area(nodes).expect("its slot");
    add_node_slot(
        file.as_file(),
        file.path(),
        &mut header,
        &key,
        &new,
        Some(nodes),
    )
    .expect("a slot");
    let found = read(&file);
    assert_eq!(
        unseal(file.as_file(), file.path(), &found, &new).expect("the key"),
        key
    );
    assert!(unseal(file.as_file(), file.path(), &found, &old).is_err());
    assert!(!opens(&file, &old.sealed.get().expect("sealed")));
    let after = std::fs::read(file.path()).expect("read");
    let place = usize::try_from(place.offset).expect("small")
        ..usize::try_from(place.range().end).expect("small");
    assert!(after[place].iter().all(|byte| *byte == 0), "the old slot");
    let recovery = found.recovery().expect("the owner's token");
    let passphrase = owner()
        .open(recovery::PURPOSE, &recovery.sealed)
        .expect("opened");
    assert!(opens(&file, &passphrase));
}

#[test]
fn without_a_tpm_a_pool_is_made_in_the_clear_or_not_at_all() {
    let file = partition();
    let plain = Machine {
        wish: Wish::Plain {
            because: "no TPM".to_owned(),
        },
        ..machine(1)
    };
    assert_eq!(make(file.path(), 512, &plain).expect("made"), file.path());
    assert_eq!(enter(file.path(), &plain).expect("entered"), file.path());
    let strict = Machine {
        wish: Wish::Required {
            but: "no TPM".to_owned(),
        },
        clear: ClearPools::Refused,
        ..machine(1)
    };
    assert!(matches!(
        make(file.path(), 512, &strict),
        Err(CryptError::Required(_))
    ));
    let written = std::fs::read(file.path()).expect("read");
    assert!(written.iter().all(|byte| *byte == 0));
}

#[test]
fn where_encryption_is_required_a_pool_in_the_clear_is_not_used_and_not_touched() {
    let (file, node) = (partition(), machine(1));
    let strict = Machine {
        clear: ClearPools::Refused,
        ..machine(1)
    };
    let mut xfs = [0; 4096];
    xfs[..4].copy_from_slice(b"XFSB");
    file.as_file().write_all_at(&xfs, 0).expect("written");
    let before = std::fs::read(file.path()).expect("read");
    let refused = enter(file.path(), &strict).expect_err("in the clear");
    assert!(refused.to_string().contains("sifr.encrypt=required"));
    assert_eq!(enter(file.path(), &node).expect("entered"), file.path());
    assert_eq!(std::fs::read(file.path()).expect("read"), before);
}

#[test]
fn beside_encrypted_pools_none_is_made_in_the_clear() {
    let because = || "the TPM does not answer".to_owned();
    let plain = Machine {
        wish: Wish::Plain { because: because() },
        ..machine(1)
    };
    let refused = beside(true, &plain).expect_err("in the clear");
    assert!(refused.to_string().contains(&because()), "{refused}");
    assert!(beside(false, &plain).is_ok() && beside(true, &machine(1)).is_ok());
}

#[test]
fn a_header_of_which_no_copy_is_whole_is_not_made_anew_where_a_pool_was() {
    let (file, node) = (partition(), machine(1));
    format(file.as_file(), file.path(), 512, owner().public(), &node).expect("made");
    for at in [5000, luks::COPY_BYTES as u64 + 5000] {
        file.as_file().write_all_at(b"?", at).expect("written");
    }
    let entered = enter(file.path(), &node);
    assert!(
        matches!(entered, Err(CryptError::Header(..))),
        "{entered:?}"
    );
}

#[test]
fn a_copy_of_the_header_that_was_damaged_is_written_anew() {
    let (file, node) = (partition(), machine(1));
    format(file.as_file(), file.path(), 512, owner().public(), &node).expect("made");
    let whole = read(&file);
    for at in [0, 5000, luks::COPY_BYTES as u64 + 5000] {
        file.as_file().write_all_at(b"?", at).expect("written");
        mend(file.as_file(), &read(&file)).expect("mended");
        let bytes = std::fs::read(file.path()).expect("read");
        assert_eq!(whole.torn(&bytes), Vec::<usize>::new(), "at {at}");
    }
    // A power cut came between the two copies of a change.
    let older = std::fs::read(file.path()).expect("read");
    let (mut header, key) = (read(&file), VolumeKey::new([1; 64]));
    add_node_slot(file.as_file(), file.path(), &mut header, &key, &node, None).expect("a slot");
    let second = luks::COPY_BYTES..HEADERS_BYTES;
    let written = file.as_file();
    written
        .write_all_at(&older[second], luks::COPY_BYTES as u64)
        .expect("written");
    assert_eq!(read(&file), header);
    mend(file.as_file(), &header).expect("mended");
    file.as_file().write_all_at(b"?", 5000).expect("written");
    assert_eq!(read(&file), header, "the second alone is the newer one");
}

#[test]
fn what_a_begun_header_left_does_not_shine_through_a_file_system_in_the_clear() {
    let (file, node) = (partition(), machine(1));
    format(file.as_file(), file.path(), 512, owner().public(), &node).expect("made");
    // A file system whose making wrote its beginning and not what lies behind.
    let header = std::fs::read(file.path()).expect("read")[..HEADERS_BYTES].to_vec();
    let mut xfs = [0; 4096];
    xfs[..4].copy_from_slice(b"XFSB");
    file.as_file().write_all_at(&xfs, 0).expect("written");
    assert!(luks::is_luks(&header) && !is_encrypted(&std::fs::read(file.path()).expect("read")));
    assert_eq!(
        enter(file.path(), &node).expect("in the clear"),
        file.path()
    );
    file.as_file().write_all_at(&header, 0).expect("written");
    let plain = Machine {
        wish: Wish::Plain {
            because: "no TPM".to_owned(),
        },
        ..machine(2)
    };
    assert_eq!(make(file.path(), 512, &plain).expect("made"), file.path());
    let left = std::fs::read(file.path()).expect("read");
    assert!(left[..HEADERS_BYTES].iter().all(|byte| *byte == 0));
}
