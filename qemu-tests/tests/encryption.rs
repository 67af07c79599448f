//! Encryption at rest: whose machine opens a disk, whose key opens it elsewhere, and how it ends.
//!
//! Owns: a machine with a TPM, and the same disk with another one. Refuses: a TPM that only pretends.
#![cfg(test)]

mod tests {
    use std::fs::{self, File};
    use std::io::Write;
    use std::os::unix::fs::FileExt;
    use std::path::{Path, PathBuf};
    use std::process::{Command, Stdio};

    use api::client::Client;
    use api::sign::SecretKey;
    use image::qemu::OnReset;
    use qemu_tests::tpm::{Chip, recovery};
    use qemu_tests::{Lab, PATIENCE, Setup, busybox};
    use serde_json::Value;
    use types::node::Drill;

    /// Where the pool's partition begins.
    const PARTITION: u64 = 1 << 20;
    /// Before the data of an encrypted partition: headers and key slots.
    const KEYS: usize = 16 << 20;

    fn hash(disk: &Path) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new();
        std::io::copy(&mut File::open(disk).expect("open"), &mut hasher).expect("read");
        hasher.finalize()
    }

    fn read(disk: &Path, at: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        let file = File::open(disk).expect("open");
        file.read_exact_at(&mut bytes, at).expect("read");
        bytes
    }

    fn json(lab: &Lab, args: &[&str]) -> Value {
        let all = [&["--output", "json"][..], args].concat();
        let answer = lab.sifr(&all).expect("sifr runs").must().expect("done");
        serde_json::from_str(&answer.stdout).expect("JSON")
    }

    fn disk(lab: &Lab) -> Value {
        json(lab, &["disk", "list"])[0]["disks"][0].clone()
    }

    fn opens(partition: &Path, passphrase: &str) -> bool {
        let mut cryptsetup = Command::new("/sbin/cryptsetup")
            .args(["open", "--test-passphrase", "--key-file", "-"])
            .arg(partition)
            .stdin(Stdio::piped())
            .spawn()
            .expect("cryptsetup: run 'make setup'");
        let mut stdin = cryptsetup.stdin.take().expect("a pipe");
        stdin.write_all(passphrase.as_bytes()).expect("heard");
        drop(stdin);
        cryptsetup.wait().expect("an end").success()
    }

    fn pin(lab: &Lab, key: &str) {
        let address = format!("127.0.0.1:{}", lab.api);
        let add = ["node", "add", "lab", &address, "--key", key, "--replace"];
        lab.sifr(&add).expect("sifr runs").must().expect("pinned");
    }

    fn recover(lab: &Lab, what: &[&str], shares: &[&PathBuf]) -> Result<String, String> {
        let mut args = [&["disk", "recover"], what].concat();
        for share in shares {
            args.extend(["--share", share.to_str().expect("text")]);
        }
        let answer = lab.sifr(&args).expect("sifr runs");
        match answer.code {
            0 => Ok(answer.stdout.trim().to_owned()),
            _ => Err(answer.stderr),
        }
    }

    #[test]
    fn a_disk_is_opened_by_its_own_machine_or_by_the_recovery_key_and_ends_with_a_receipt() {
        let place = tempfile::tempdir().expect("a directory");
        let at = |name: &str| place.path().join(name);
        let (recovery_key, shares) = recovery(&at("papers")).expect("a recovery key");
        let mut chip = Chip::new(&at("chip")).expect("a TPM");
        let setup = Setup {
            arguments: format!("sifr.recovery={recovery_key}"),
            ..Setup::default()
        };
        let made = Lab::with(&setup, |machine| {
            chip.start()?;
            machine.tpm = Some(chip.socket());
            machine.on_reset = OnReset::Boot;
            Ok(())
        });
        let mut lab = made.expect("a node");
        let file = lab.directory().join("pool.raw");
        let key = lab.key().expect("its key");
        for says in ["sifr: encryption yes", "sifr: durable yes"] {
            assert!(lab.console().contains(says), "{}", lab.console());
        }
        let found = disk(&lab);
        assert_eq!(found["encryption"]["state"], "encrypted");
        assert_eq!(found["encryption"]["recovery"], recovery_key.as_str());

        // The same machine, after a power cut.
        lab.power_cut().expect("off");
        assert_eq!(read(&file, PARTITION, 6), b"LUKS\xba\xbe");
        let data = read(&file, PARTITION + KEYS as u64, 64 << 20);
        assert!(
            !data.windows(4).any(|w| w == b"XFSB"),
            "a file system in the clear"
        );
        chip.start().expect("the same TPM");
        lab.power_on().expect("on");
        assert_eq!(
            lab.key().expect("its key"),
            key,
            "it is the node that it was"
        );

        // The disk in another machine.
        lab.power_cut().expect("off");
        let before = hash(&file);
        let partition = at("partition");
        qemu_tests::disk::first_partition(&file, 512, &partition).expect("a copy");
        fs::remove_dir_all(at("chip")).expect("removed");
        let mut chip = Chip::new(&at("chip")).expect("another TPM");
        chip.start().expect("another TPM");
        lab.power_on().expect("on");
        let console = lab.console();
        for says in [
            "sifr: durable no",
            "sealed by another TPM",
            "Nothing was touched",
            "sifr disk unlock",
        ] {
            assert!(console.contains(says), "{says}: {console}");
        }
        pin(&lab, &lab.key().expect("its key"));
        let found = disk(&lab);
        assert_eq!(found["encryption"]["state"], "encrypted", "{found}");
        assert_eq!(hash(&file), before, "it was written to");

        // What opens it anywhere.
        let serial = "LAB0";
        let own = recover(&lab, &[serial], &[]).expect_err("the owner's own key");
        assert!(own.contains("--share"), "{own}");
        let one = recover(&lab, &[serial], &[&shares[0]]).expect_err("one share");
        assert!(one.contains("2 are needed"), "{one}");
        let passphrase = recover(&lab, &[serial], &[&shares[2], &shares[0]]).expect("two shares");
        let offline = ["--device", partition.to_str().expect("text")];
        let elsewhere = recover(&lab, &offline, &[&shares[1], &shares[2]]);
        assert_eq!(elsewhere.as_ref(), Ok(&passphrase));
        assert!(opens(&partition, &passphrase));
        assert!(!opens(&partition, &passphrase[1..]));
        assert!(!lab.console().contains(&passphrase));

        // And gives it to the new machine for good.
        let two = [&shares[0], &shares[1]].map(|share| share.to_str().expect("text"));
        let unlock = [
            "disk", "unlock", serial, "--share", two[0], "--share", two[1],
        ];
        lab.node().mark();
        lab.sifr(&unlock)
            .expect("sifr runs")
            .must()
            .expect("unlocked");
        let durable = lab.node().wait_for_line("sifr: durable yes", PATIENCE);
        durable.expect("the pool is used again");
        let ready = lab.node().wait_for_line("sifr: ready https://", PATIENCE);
        ready.expect("it serves");
        pin(&lab, &key);

        // The end.
        let receipt = at("receipt.json");
        let path = receipt.to_str().expect("text");
        let gone = json(&lab, &["node", "decommission", "--yes", "--receipt", path]);
        assert_eq!(gone["disks"][0]["method"], "crypto_erase", "{gone}");
        assert_eq!(gone["disks"][0]["serial"], serial);
        assert_eq!(gone["node"], key.as_str());
        lab.ended().expect("it switches itself off");
        let keys = read(&file, PARTITION, KEYS);
        assert!(
            keys.iter().all(|byte| *byte == 0),
            "something of the key slots is left"
        );
        assert!(!opens(&file, &passphrase));
        chip.start().expect("the same TPM");
        lab.power_on().expect("on");
        assert_ne!(lab.key().expect("its key"), key, "a new node");
        assert!(
            lab.console().contains("sifr: durable yes"),
            "{}",
            lab.console()
        );
    }

    /// Its machine does not heed the signal to stop, so that the node is some seconds about its end. Whatever comes in these
    /// seconds is refused, by the agent that was asked and by the one after it; where they are over already, nobody answers.
    #[test]
    fn a_node_whose_disks_are_destroyed_takes_nothing_more_and_goes_down_though_its_agent_dies() {
        let mut lab = Lab::new().expect("a node");
        let flist = busybox(lab.command(), lab.directory()).expect("an image");
        let machine = |name: &str| {
            format!(
                "name: {name}\nimage: {}\nmemory: 64Mi\ndisk: 64Mi\ncommand: [sh, -c, 'trap \"\" TERM; while :; do sleep 1000; done']\n",
                flist.display()
            )
        };
        let key = lab.key().expect("its key");
        let deployed = lab.deploy(&machine("shop")).expect("sifr runs");
        deployed.must().expect("deployed");
        let receipt = lab.directory().join("receipt.json");
        let path = receipt.to_str().expect("text");
        json(&lab, &["node", "decommission", "--yes", "--receipt", path]);
        let late = || {
            let late = lab.deploy(&machine("late")).expect("sifr runs");
            assert_ne!(late.code, 0, "it was taken: {}", late.stdout);
            late.stderr.contains("disks destroyed")
        };
        println!("the agent that was asked refuses: {}", late());
        // Not by `sifr`, which waits for the next one: that is on its way out when it comes.
        let owner = SecretKey::load(&lab.directory().join("home/key")).expect("a key");
        let address = format!("127.0.0.1:{}", lab.api);
        let node = key.parse().expect("a key");
        let client = Client::new(&address, node, &owner).expect("a client");
        lab.node().mark();
        let killed = qemu_tests::runtime().block_on(client.drill(&Drill::Node {}));
        println!("it is killed: {killed:?}");
        // It listens, or the node is off already.
        let listens = lab.node().wait_for_line("] api", PATIENCE);
        println!("the next one listens: {}", listens.is_ok());
        println!("the next one refuses: {}", late());
        lab.ended().expect("it switches itself off");
        lab.power_on().expect("on");
        assert_ne!(lab.key().expect("its key"), key, "a new node");
    }

    #[test]
    fn without_a_tpm_a_node_says_that_it_does_not_encrypt_and_makes_no_pool_where_it_must() {
        let setup = Setup {
            arguments: "sifr.encrypt=required".to_owned(),
            ..Setup::default()
        };
        let mut lab = Lab::with(&setup, |_| Ok(())).expect("a node");
        let console = lab.console();
        for says in [
            "sifr: encryption no: this machine shows no TPM 2.0",
            "sifr: durable no",
        ] {
            assert!(console.contains(says), "{says}: {console}");
        }
        let info = json(&lab, &["node", "info"]);
        let why = info["volatile_because"].as_str().expect("a reason");
        assert!(why.contains("encryption is required"), "{why}");
        lab.power_cut().expect("off");
        let data = read(&lab.directory().join("pool.raw"), 0, 2 * KEYS);
        assert!(data.iter().all(|byte| *byte == 0), "the disk was touched");
    }
}
