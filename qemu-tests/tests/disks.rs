//! Disks of others: each is named and left alone, until its owner signs it away.
//!
//! Owns: nodes with disks that Debian's tools have made. Refuses: disks whose content nobody compares afterwards.
#![cfg(test)]

mod tests {
    use std::fs::{self, File};
    use std::io::{BufRead, BufReader, Write};
    use std::os::unix::fs::FileExt;
    use std::path::Path;
    use std::process::{Command, Stdio};

    use image::qemu::{Bus, Disk, Machine, OnReset, blank_disk};
    use qemu_tests::{Lab, PATIENCE, Setup, busybox};
    use serde_json::Value;
    use types::Bytes;

    fn tool(command: &[&str], disk: &Path) {
        let mut tool = Command::new(command[0]);
        let done = tool.args(&command[1..]).arg(disk).output();
        let done = done.unwrap_or_else(|e| panic!("{}: {e}: run 'make setup'", command[0]));
        let said = String::from_utf8_lossy(&done.stderr);
        assert!(done.status.success(), "{command:?}: {said}");
    }

    /// What the disk holds, every byte of it.
    fn hash(disk: &Path) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new();
        std::io::copy(&mut File::open(disk).expect("open"), &mut hasher).expect("read");
        hasher.finalize()
    }

    fn json(lab: &Lab, args: &[&str]) -> Value {
        let all = [&["--output", "json"][..], args].concat();
        let answer = lab.sifr(&all).expect("sifr runs").must().expect("done");
        serde_json::from_str(&answer.stdout).expect("JSON")
    }

    /// `sifr disk list` of the one node.
    fn disks(lab: &Lab) -> Vec<Value> {
        let list = json(lab, &["disk", "list"]);
        list[0]["disks"].as_array().expect("a list").clone()
    }

    type Maker = fn(&Path);

    /// Bus, what makes it, how it is named.
    const OTHERS: [(Bus, Maker, &str); 6] = [
        (
            Bus::Virtio,
            |disk| tool(&["/sbin/mke2fs", "-qFt", "ext4", "-L", "photos"], disk),
            "ext4 file system \"photos\"",
        ),
        (
            Bus::Virtio,
            |disk| tool(&["/sbin/sgdisk", "-n1:1M:+60M", "-n2:100M:+60M"], disk),
            "GPT partition table: 1 nothing known, 2 nothing known",
        ),
        (
            Bus::Nvme,
            |disk| tool(&["/sbin/mkfs.btrfs", "-qL", "home"], disk),
            "btrfs file system \"home\"",
        ),
        (
            Bus::Ahci,
            |disk| tool(&["/sbin/mkswap", "-q"], disk),
            "swap space",
        ),
        (
            Bus::Ahci,
            |disk| tool(&["/sbin/make-bcache", "-B"], disk),
            "bcache backing device",
        ),
        (
            // As mdadm writes it, which needs a kernel with the driver.
            Bus::Nvme,
            |disk| {
                let file = File::options().write(true).open(disk).expect("open");
                let written = file.write_all_at(b"\xfc\x4e\x2b\xa9\x01\0\0\0", 4096);
                written.expect("written");
            },
            "Linux RAID member (metadata 1.2)",
        ),
    ];

    #[test]
    fn disks_of_others_are_each_named_on_console_and_api_and_never_touched() {
        let setup = Setup {
            disk: false,
            ..Setup::default()
        };
        let images = tempfile::tempdir().expect("a directory");
        let file = |n: usize| images.path().join(format!("F{n}"));
        let mut before = Vec::new();
        let lab = Lab::with(&setup, |machine| {
            for (n, (bus, make, _)) in OTHERS.iter().enumerate() {
                blank_disk(&file(n), Bytes::mib(600))?;
                make(&file(n));
                before.push(hash(&file(n)));
                machine.disks.push(Disk {
                    file: file(n),
                    bus: *bus,
                    serial: format!("F{n}"),
                });
            }
            Ok(())
        });
        let mut lab = lab.expect("a node");
        let (console, listed) = (lab.console(), disks(&lab));
        assert_eq!(listed.len(), OTHERS.len(), "{listed:?}");
        let info = json(&lab, &["node", "info"]);
        let because = info["volatile_because"].as_str().expect("a reason");
        for (n, (.., name)) in OTHERS.iter().enumerate() {
            let with = |disk: &&Value| {
                disk["serial"]
                    .as_str()
                    .is_some_and(|s| s.ends_with(&format!("F{n}")))
            };
            let disk = listed.iter().find(with);
            let disk = disk.unwrap_or_else(|| panic!("F{n} in {listed:?}"));
            assert_eq!(disk["content"], *name);
            assert_eq!(disk["used"], "left_alone");
            for text in [&console, because] {
                assert!(text.contains(name), "{name} in {text}");
            }
        }
        assert!(because.contains("sifr disk claim"), "{because}");
        let table = lab.sifr(&["disk", "list"]).expect("sifr runs");
        assert!(table.stdout.contains("left alone"), "{}", table.stdout);
        lab.power_cut().expect("off");
        for (n, before) in before.iter().enumerate() {
            assert_eq!(hash(&file(n)), *before, "{} was written to", OTHERS[n].2);
        }
    }

    /// Says yes to a claim after `meanwhile` has happened. Exit status and what was said.
    fn claim_slowly(lab: &Lab, meanwhile: impl FnOnce()) -> (Option<i32>, String) {
        let mut sifr = Command::new(lab.command())
            .args(["disk", "claim", "lab", "--all-foreign"])
            .env("SIFR_HOME", lab.directory().join("home"))
            .stdin(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("sifr starts");
        let mut said = String::new();
        let mut lines = BufReader::new(sifr.stderr.take().expect("a pipe"));
        while !said.contains("Type yes") {
            assert_ne!(lines.read_line(&mut said).expect("text"), 0, "{said}");
        }
        meanwhile();
        let mut stdin = sifr.stdin.take().expect("a pipe");
        stdin.write_all(b"yes\n").expect("heard");
        drop(stdin);
        while lines.read_line(&mut said).expect("text") > 0 {}
        (sifr.wait().expect("an end").code(), said)
    }

    #[test]
    fn a_disk_is_taken_by_a_signed_plan_that_names_what_it_holds_and_by_nothing_else() {
        let letter = tempfile::tempdir().expect("a directory");
        fs::write(letter.path().join("letter"), "dear Anna").expect("a file");
        let ext4 = |machine: &mut Machine| {
            let from = letter.path().to_str().expect("a path in ASCII");
            let make = ["/sbin/mke2fs", "-qFt", "ext4", "-L", "letters", "-d", from];
            tool(&make, &machine.disks[0].file);
            machine.on_reset = OnReset::Boot;
            Ok(())
        };
        let mut lab = Lab::with(&Setup::default(), ext4).expect("a node");
        let disk = lab.directory().join("pool.raw");
        let key = lab.key().expect("its key");
        let says = "no: this node runs from memory: no blank disk, none was touched: vda (ext4 file system \"letters\")";
        assert!(lab.console().contains(says), "{}", lab.console());
        let flist = busybox(lab.command(), lab.directory()).expect("an image");
        let yaml = format!(
            "name: web\nimage: {}\nmemory: 96Mi\ndisk: 64Mi\ncommand: [sleep, \"3600\"]\n",
            flist.display()
        );
        let refused = lab.deploy(&yaml).expect("sifr runs");
        assert_eq!(refused.code, 3, "{refused:?}");
        assert!(refused.stderr.contains("runs from memory"), "{refused:?}");

        // Somebody writes to the disk between the plan and the yes.
        let (code, said) = claim_slowly(&lab, || tool(&["/sbin/tune2fs", "-L", "friends"], &disk));
        assert_eq!(code, Some(3), "{said}");
        assert!(said.contains("ALL OF THIS WILL BE LOST"), "{said}");
        let changed =
            "it held ext4 file system \"letters\", and holds ext4 file system \"friends\" now";
        assert!(said.contains(changed), "{said}");
        let unsure = lab.sifr(&["disk", "claim", "lab", "--serial", "LAB0"]);
        assert!(
            unsure
                .expect("sifr runs")
                .stderr
                .contains("nothing was touched")
        );
        let read = Command::new("/sbin/debugfs")
            .args(["-R", "cat letter"])
            .arg(&disk)
            .output();
        assert_eq!(read.expect("debugfs").stdout, b"dear Anna");

        let claim = [
            "disk", "claim", "lab", "--serial", "LAB0", "--yes", "--reboot",
        ];
        let claimed = lab
            .sifr(&claim)
            .expect("sifr runs")
            .must()
            .expect("claimed");
        assert!(claimed.stdout.contains("the pool"), "{claimed:?}");
        let durable = lab.node().wait_for_line("sifr: durable yes", PATIENCE);
        durable.expect("a pool");
        // The same node: the pinned key is still right.
        assert_eq!(disks(&lab)[0]["used"], "pool");
        lab.deploy(&yaml)
            .expect("sifr runs")
            .must()
            .expect("durable");
        lab.wait("web", "running")
            .expect("sifr runs")
            .must()
            .expect("it runs");
        lab.power_cut().expect("off");
        lab.power_on().expect("on");
        assert_eq!(lab.key().expect("its key"), key);
        lab.wait("web", "running")
            .expect("sifr runs")
            .must()
            .expect("it came back");
        assert_eq!(lab.get("web").expect("its status")["durable"], true);
    }
}
