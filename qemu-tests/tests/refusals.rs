//! What a node refuses, with a reason, and with nothing changed.
//!
//! Owns: hand-made statements and connections. Refuses: going through `sifr`, which would not send them.
#![cfg(test)]

mod tests {
    use std::io::{Read, Write};
    use std::sync::OnceLock;
    use std::time::Duration;

    use api::client::{Client, ClientError};
    use api::envelope::Envelope;
    use api::sign::SecretKey;
    use qemu_tests::{Lab, busybox};
    use types::deployment::{Action, Statement};
    use types::status::{DeploymentStatus, RefusalCode};
    use types::{Name, PublicKey};

    /// A node with the deployment `web` at version 1.
    fn lab() -> &'static Lab {
        static LAB: OnceLock<Lab> = OnceLock::new();
        LAB.get_or_init(|| {
            let lab = Lab::new().expect("a node");
            let flist = busybox(lab.command(), lab.directory()).expect("an image");
            let yaml = format!(
                "name: web\nimage: {}\nmemory: 96Mi\ndisk: 64Mi\n",
                flist.display()
            );
            lab.deploy(&yaml)
                .expect("sifr runs")
                .must()
                .expect("deployed");
            lab
        })
    }

    fn owner() -> SecretKey {
        let directory = lab().directory().join("home");
        let files = std::fs::read_dir(&directory)
            .expect("a home")
            .flatten()
            .map(|f| f.path());
        let mut keys = files.filter_map(|path| SecretKey::load(&path).ok());
        keys.next().expect("a key in the home directory")
    }

    fn node() -> PublicKey {
        lab().key().expect("a key").parse().expect("a key")
    }

    fn wait<T>(work: impl Future<Output = T>) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        runtime.block_on(work)
    }

    fn client(key: &SecretKey) -> Client {
        Client::new(&format!("127.0.0.1:{}", lab().api), node(), key).expect("a client")
    }

    fn stop(version: u64) -> Statement {
        Statement {
            node: node(),
            name: "web".parse().expect("a name"),
            version,
            action: Action::Stop,
        }
    }

    fn status() -> DeploymentStatus {
        let name: Name = "web".parse().expect("a name");
        wait(client(&owner()).deployment(&name)).expect("a status")
    }

    fn sealed(key: &SecretKey, statement: &Statement) -> Envelope {
        Envelope::seal_statement(key, statement).expect("it fits")
    }

    /// Posts, expects a refusal, and that the deployment stands as before.
    fn refusal(key: &SecretKey, envelope: &Envelope) -> RefusalCode {
        let before = status();
        let answer = wait(client(key).post_statement(envelope));
        let error = answer.expect_err("a refusal");
        let refusal = error
            .refusal()
            .unwrap_or_else(|| panic!("no refusal: {error}"));
        assert!(!refusal.message.is_empty());
        let after = status();
        assert_eq!(
            (before.version, before.desired),
            (after.version, after.desired)
        );
        refusal.code
    }

    #[test]
    fn a_replayed_and_a_skipped_version() {
        let owner = owner();
        assert_eq!(
            refusal(&owner, &sealed(&owner, &stop(1))),
            RefusalCode::Replayed
        );
        assert_eq!(
            refusal(&owner, &sealed(&owner, &stop(3))),
            RefusalCode::Skipped
        );
    }

    #[test]
    fn a_statement_for_another_node() {
        let (owner, other) = (owner(), SecretKey::from_seed([3; 32]).public());
        let statement = Statement {
            node: other,
            ..stop(2)
        };
        assert_eq!(
            refusal(&owner, &sealed(&owner, &statement)),
            RefusalCode::WrongNode
        );
    }

    #[test]
    fn a_signature_that_does_not_fit_the_bytes() {
        let owner = owner();
        let mut envelope = sealed(&owner, &stop(2));
        envelope.payload = sealed(&owner, &stop(9)).payload;
        assert_eq!(refusal(&owner, &envelope), RefusalCode::BadSignature);
    }

    #[test]
    fn a_statement_signed_by_a_stranger() {
        let stranger = SecretKey::from_seed([9; 32]);
        assert_eq!(
            refusal(&owner(), &sealed(&stranger, &stop(2))),
            RefusalCode::UnknownKey
        );
    }

    #[test]
    fn unknown_fields() {
        let owner = owner();
        let mut json = serde_json::to_value(stop(2)).expect("JSON");
        json["colour"] = "red".into();
        let bytes = serde_json::to_vec(&json).expect("JSON");
        let envelope = Envelope::seal(&owner, types::deployment::PAYLOAD_TYPE, &bytes);
        assert_eq!(refusal(&owner, &envelope), RefusalCode::Malformed);
    }

    #[test]
    fn an_envelope_that_is_too_large() {
        let owner = owner();
        let bytes = vec![b' '; api::envelope::ENVELOPE_MAX];
        let envelope = Envelope::seal(&owner, types::deployment::PAYLOAD_TYPE, &bytes);
        assert_eq!(refusal(&owner, &envelope), RefusalCode::TooLarge);
    }

    #[test]
    fn a_grant_which_does_not_exist_yet() {
        let owner = owner();
        let envelope = Envelope::seal(&owner, types::deployment::GRANT_PAYLOAD_TYPE, b"{}");
        assert_eq!(refusal(&owner, &envelope), RefusalCode::Malformed);
    }

    #[test]
    fn a_caller_whose_key_is_not_known() {
        let stranger = SecretKey::from_seed([9; 32]);
        let error = wait(client(&stranger).deployments()).expect_err("a refusal");
        assert_eq!(
            error.refusal().map(|r| r.code),
            Some(RefusalCode::UnknownKey),
            "{error}"
        );
    }

    #[test]
    fn a_node_that_is_not_the_pinned_one() {
        let other = SecretKey::from_seed([4; 32]).public();
        let client =
            Client::new(&format!("127.0.0.1:{}", lab().api), other, &owner()).expect("a client");
        let error = wait(client.node_info()).expect_err("a wrong key");
        assert!(error.to_string().contains(&node().to_string()), "{error}");
        assert!(!matches!(error, ClientError::Refused { .. }));
    }

    #[test]
    fn more_than_the_node_has() {
        let (lab, flist) = (lab(), busybox_of(lab()));
        let yaml = format!("name: huge\nimage: {flist}\nmemory: 64Gi\ndisk: 64Mi\n");
        let refused = lab.deploy(&yaml).expect("sifr runs");
        assert!(
            refused.code == 3 && refused.stderr.contains("memory"),
            "{refused:?}"
        );
        assert_eq!(lab.sifr(&["get", "huge"]).expect("sifr runs").code, 3);
    }

    fn busybox_of(lab: &Lab) -> String {
        let store = std::fs::read_dir(lab.directory().join("store"))
            .expect("a store")
            .flatten();
        let mut files = store
            .map(|f| f.path())
            .filter(|p| p.extension().is_some_and(|e| e == "flist"));
        files.next().expect("an image").display().to_string()
    }

    #[test]
    fn a_client_without_a_key_learns_nothing() {
        let curl = std::process::Command::new("curl")
            .args([
                "-skS",
                "--max-time",
                "20",
                &format!("https://127.0.0.1:{}/v1/node", lab().api),
            ])
            .output()
            .expect("curl");
        assert!(!curl.status.success() && curl.stdout.is_empty());
        // It reached the node, and the node said why.
        let said = String::from_utf8_lossy(&curl.stderr);
        assert!(said.contains("certificate required"), "{said}");
    }

    #[test]
    fn a_client_that_dawdles_is_hung_up_on() {
        let mut stream =
            std::net::TcpStream::connect(("127.0.0.1", lab().api)).expect("a connection");
        stream
            .set_read_timeout(Some(Duration::from_secs(60)))
            .expect("a time-out");
        stream.write_all(&[22]).expect("one byte of a handshake");
        let mut rest = Vec::new();
        let ended = stream.read_to_end(&mut rest);
        assert!(
            ended.is_ok() || ended.is_err_and(|e| e.kind() == std::io::ErrorKind::ConnectionReset)
        );
    }
}
