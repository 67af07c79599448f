//! Keys, policies and signatures. Owns: signatures made by openssl, as cosign makes them. Refuses: a key of its own.

use super::*;
use std::process::Command;
use tempfile::TempDir;

const DIGEST: &str = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";

pub(crate) fn payload(digest: &str) -> Vec<u8> {
    let text = format!(
        r#"{{"critical":{{"identity":{{"docker-reference":"a/b"}},"image":{{"docker-manifest-digest":"{digest}"}},"type":"cosign container image signature"}},"optional":null}}"#
    );
    text.into_bytes()
}

fn openssl(directory: &Path, args: &[&str]) {
    let done = Command::new("openssl")
        .current_dir(directory)
        .args(args)
        .output();
    let done = done.expect("openssl starts: run 'make setup'");
    assert!(
        done.status.success(),
        "{}",
        String::from_utf8_lossy(&done.stderr)
    );
}

/// A key pair in `<name>.key` and `<name>.pub`.
pub(crate) fn pair(directory: &Path, name: &str, algorithm: &str) -> Key {
    let (secret, public) = (format!("{name}.key"), format!("{name}.pub"));
    match algorithm {
        "p256" => openssl(
            directory,
            &[
                "genpkey",
                "-algorithm",
                "EC",
                "-pkeyopt",
                "ec_paramgen_curve:P-256",
                "-out",
                &secret,
            ],
        ),
        other => openssl(
            directory,
            &["genpkey", "-algorithm", other, "-out", &secret],
        ),
    }
    openssl(
        directory,
        &["pkey", "-in", &secret, "-pubout", "-out", &public],
    );
    Key::read(&directory.join(public)).expect("a public key")
}

/// In Base64, as the annotation has it.
pub(crate) fn sign(directory: &Path, name: &str, algorithm: &str, payload: &[u8]) -> String {
    fs::write(directory.join("payload"), payload).expect("writes");
    let key = format!("{name}.key");
    match algorithm {
        "p256" => openssl(
            directory,
            &[
                "dgst",
                "-sha256",
                "-sign",
                &key,
                "-out",
                "signature",
                "payload",
            ],
        ),
        _ => openssl(
            directory,
            &[
                "pkeyutl",
                "-sign",
                "-rawin",
                "-inkey",
                &key,
                "-in",
                "payload",
                "-out",
                "signature",
            ],
        ),
    }
    BASE64_STANDARD.encode(fs::read(directory.join("signature")).expect("a signature"))
}

#[test]
fn signatures_of_both_kinds_of_keys_hold_and_those_of_others_do_not() {
    let work = TempDir::new().expect("temp");
    for algorithm in ["p256", "ed25519"] {
        let (ours, theirs) = (
            pair(work.path(), "a", algorithm),
            pair(work.path(), "b", algorithm),
        );
        let payload = payload(DIGEST);
        let signature = sign(work.path(), "a", algorithm, &payload);
        let judge = |keys: &[Key], payload: &[u8]| super::judge(keys, DIGEST, payload, &signature);
        assert_eq!(judge(std::slice::from_ref(&ours), &payload), Finding::Good);
        assert_eq!(
            judge(&[theirs.clone(), ours.clone()], &payload),
            Finding::Good
        );
        assert_eq!(judge(&[theirs], &payload), Finding::Foreign);
        assert_eq!(judge(&[], &payload), Finding::Foreign);
        let mut changed = payload.clone();
        changed.push(b' ');
        assert_eq!(judge(&[ours], &changed), Finding::Foreign);
    }
}

#[test]
fn a_signature_for_another_image_or_of_another_thing_is_none_for_this() {
    let work = TempDir::new().expect("temp");
    let key = [pair(work.path(), "a", "p256")];
    let other = format!("sha256:{}", "b".repeat(64));
    let signature = sign(work.path(), "a", "p256", &payload(&other));
    let found = judge(&key, DIGEST, &payload(&other), &signature);
    assert_eq!(found, Finding::Other(other));
    let text = br#"{"critical":{"image":{"docker-manifest-digest":""},"type":"a letter"}}"#;
    let signature = sign(work.path(), "a", "p256", text);
    assert_eq!(judge(&key, DIGEST, text, &signature), Finding::Foreign);
    assert_eq!(judge(&key, DIGEST, text, "no base64"), Finding::Foreign);
}

#[test]
fn the_longest_rule_that_names_an_image_says_by_whom() {
    let work = TempDir::new().expect("temp");
    for name in ["a", "b", "c"] {
        pair(work.path(), name, "ed25519");
    }
    let file = work.path().join("signatures.json");
    let text =
        r#"{"*": ["a.pub"], "ghcr.io/team": ["b.pub"], "ghcr.io/team/app/": ["c.pub", "b.pub"]}"#;
    fs::write(&file, text).expect("writes");
    let policy = Policy::read(&file).expect("a policy");
    let count = |image: &str| {
        let image = Reference::read(image)
            .expect("a registry's")
            .expect("right");
        let names = names(policy.keys(&image));
        names.matches(".pub").count() * 10 + usize::from(names.contains("a.pub"))
    };
    assert_eq!(count("ghcr.io/team/app:1"), 20);
    assert_eq!(count("ghcr.io/team/other:1"), 10);
    assert_eq!(count("ghcr.io/teammates/app:1"), 11);
    assert_eq!(count("docker://nginx"), 11);
    let nothing = Policy::read(&work.path().join("none")).expect("no file, no rule");
    assert!(nothing.rules.is_empty());
}

#[test]
fn a_policy_that_cannot_be_kept_is_refused() {
    let work = TempDir::new().expect("temp");
    let file = work.path().join("signatures.json");
    for (text, says) in [
        ("[]", "is no policy"),
        (r#"{"*": []}"#, "names no key"),
        (r#"{"*": ["gone.pub"]}"#, "read"),
        (r#"{"*": ["signatures.json"]}"#, "is no public key"),
    ] {
        fs::write(&file, text).expect("writes");
        let error = Policy::read(&file).expect_err(text).to_string();
        assert!(error.contains(says), "{text}: {error}");
    }
    let large = pair(work.path(), "rsa", "ed25519");
    assert!(!large.is_p256);
    openssl(
        work.path(),
        &["genpkey", "-algorithm", "RSA", "-out", "rsa.key"],
    );
    openssl(
        work.path(),
        &["pkey", "-in", "rsa.key", "-pubout", "-out", "rsa.pub"],
    );
    assert!(matches!(
        Key::read(&work.path().join("rsa.pub")),
        Err(PolicyError::Key { .. })
    ));
}
