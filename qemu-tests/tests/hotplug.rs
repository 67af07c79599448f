//! Disks that come and go while the node runs.
//!
//! Owns: pulling disks out of a node and plugging others in. Refuses: a reboot: what is seen here, is seen without one.
#![cfg(test)]

mod tests {
    use std::path::{Path, PathBuf};
    use std::time::{Duration, Instant};

    use image::qemu::{Bus, Disk};
    use qemu_tests::{Lab, PATIENCE, Setup, busybox};
    use serde_json::{Value, json};

    /// The node looks at its disks at each event, and every ten seconds: nothing tells a test that it has.
    const LOOK_AGAIN: Duration = Duration::from_millis(500);

    /// The world wide name of a SAS disk: to QEMU, as the node shows it, and as QEMU is told while it runs.
    const SAS: &str = "0x5000c50000000001";
    const NAA: &str = "5000c50000000001";
    const WWN: u64 = 0x5000_c500_0000_0001;
    /// Another, and one that comes in its place.
    const MATE: &str = "0x5000c50000000002";
    const MATE_WWN: u64 = 0x5000_c500_0000_0002;
    const NEW_WWN: u64 = 0x5000_c500_0000_0003;

    /// Linux serves a PCIe slot that the firmware has not left to it only when it is told so. It asks the firmware only where it
    /// was built to manage the links' power too (`CONFIG_PCIEASPM`), and ours is not.
    const NATIVE: &str = "pcie_ports=native";

    struct Held {
        lab: Lab,
        flist: PathBuf,
        directory: tempfile::TempDir,
    }

    fn blank(directory: &Path, serial: &str, mib: u64) -> PathBuf {
        let file = directory.join(serial);
        image::qemu::blank_disk(&file, types::Bytes::mib(mib)).expect("a file");
        file
    }

    impl Held {
        fn with(disks: &[(Bus, &str, u64)]) -> Self {
            Self::booted(disks, "")
        }

        fn booted(disks: &[(Bus, &str, u64)], arguments: &str) -> Self {
            let directory = tempfile::TempDir::with_prefix("sifr-plug-").expect("a directory");
            let setup = Setup {
                disk: false,
                arguments: format!("{NATIVE} {arguments}"),
                ..Setup::default()
            };
            let lab = Lab::with(&setup, |machine| {
                machine.slots = 2;
                for (bus, serial, mib) in disks {
                    machine.disks.push(Disk {
                        file: blank(directory.path(), serial, *mib),
                        bus: *bus,
                        serial: (*serial).to_owned(),
                    });
                }
                Ok(())
            });
            let lab = lab.expect("a node");
            let flist = busybox(lab.command(), lab.directory()).expect("an image");
            Self {
                lab,
                flist,
                directory,
            }
        }

        fn ask(&self, command: &str, arguments: Value) {
            let answer = self.lab.node().monitor(command, &arguments);
            answer.unwrap_or_else(|error| panic!("{command} {arguments}: {error:#}"));
        }

        fn plug(&self, id: &str, mut device: Value, file: &Path) {
            let file = json!({ "driver": "file", "filename": file });
            self.ask(
                "blockdev-add",
                json!({ "driver": "raw", "node-name": id, "file": file }),
            );
            device["drive"] = json!(id);
            device["id"] = json!(format!("dev-{id}"));
            self.ask("device_add", device);
        }

        fn pull(&self, device: &str) {
            self.ask("device_del", json!({ "id": device }));
        }

        fn json(&self, arguments: &[&str]) -> Option<Value> {
            let arguments = [&["--output", "json"], arguments].concat();
            let answer = self.lab.sifr(&arguments).expect("sifr runs");
            // The agent may be starting again.
            serde_json::from_str(&answer.stdout).ok()
        }

        /// What the node says of itself, as soon as it is so.
        fn until(&self, what: &str, is: impl Fn(&Value) -> bool) -> Value {
            let end = Instant::now() + PATIENCE;
            loop {
                let info = self.json(&["node", "info"]).unwrap_or_default();
                if is(&info) {
                    return info;
                }
                assert!(
                    Instant::now() < end,
                    "never {what}: {info:#}\n{}",
                    self.lab.console()
                );
                std::thread::sleep(LOOK_AGAIN);
            }
        }

        fn until_pool(&self, serial: &str, state: &str) -> Value {
            self.until(&format!("{serial} {state}"), |info| {
                pool(info, serial).is_some_and(|pool| pool["state"] == state)
            })
        }

        fn deploy(&self, name: &str, class: &str) {
            let yaml = format!(
                "name: {name}\nimage: {}\nmemory: 64Mi\ndisk: 64Mi\nclass: {class}\n\
                 command: [sh, -c, \"echo x >> /n; sync; echo starts $(wc -l < /n); sleep 3600\"]\n",
                self.flist.display()
            );
            let answer = self.lab.deploy(&yaml).expect("sifr runs");
            answer.must().expect("accepted");
            self.runs(name);
            self.starts(name, 1);
        }

        fn runs(&self, name: &str) {
            let up = self.lab.wait(name, "running").expect("sifr runs");
            up.must()
                .unwrap_or_else(|error| panic!("{error:#}\n{}", self.lab.console()));
        }

        fn starts(&self, name: &str, count: u32) {
            let follow = self.lab.follow(name).expect("it is followed");
            let line = follow.wait_for(&format!("starts {count}"));
            line.unwrap_or_else(|error| panic!("{error:#}\n{}", self.lab.console()));
        }

        fn waits(&self, name: &str) {
            let end = Instant::now() + PATIENCE;
            loop {
                let status = self.json(&["get", name]).unwrap_or_default();
                let workload = &status["workloads"]["main"];
                let message = workload["message"].as_str().unwrap_or_default();
                if message.contains("its disk is not there") && workload["state"] == "pending" {
                    return;
                }
                assert!(Instant::now() < end, "{status:#}\n{}", self.lab.console());
                std::thread::sleep(LOOK_AGAIN);
            }
        }

        /// Until the one pool's mirror is of these disks.
        fn until_halves(&self, wanted: &[(&str, &str)]) -> Value {
            self.until(&format!("{wanted:?}"), |info| {
                let mut pools = list(info, "pools");
                let (Some(pool), None) = (pools.next(), pools.next()) else {
                    return false;
                };
                let halves = pool["mirror"]["halves"].as_array();
                let halves = halves.map_or(&[][..], Vec::as_slice);
                halves.len() == wanted.len()
                    && wanted.iter().all(|(serial, state)| {
                        let mut halves = halves.iter();
                        halves.any(|half| half["serial"] == *serial && half["state"] == *state)
                    })
            })
        }

        fn is_calm(&self, code: &str) {
            self.until(&format!("over: {code}"), |info| {
                troubles(info).all(|trouble| trouble["code"] != code)
            });
        }

        fn has_trouble(&self, code: &str) {
            self.until(code, |info| {
                troubles(info).any(|trouble| trouble["code"] == code)
            });
            let line = format!("sifr: trouble {code}: ");
            let shown = self.lab.node().wait_for_line(&line, PATIENCE);
            shown.expect("the console says so too");
        }
    }

    fn list<'a>(info: &'a Value, name: &str) -> impl Iterator<Item = &'a Value> {
        info[name].as_array().into_iter().flatten()
    }

    fn troubles(info: &Value) -> impl Iterator<Item = &Value> {
        list(info, "troubles")
    }

    fn pool<'a>(info: &'a Value, serial: &str) -> Option<&'a Value> {
        let of_it = |pool: &&Value| pool["serial"].as_str().is_some_and(|s| s.ends_with(serial));
        list(info, "pools").find(of_it)
    }

    #[test]
    fn a_disk_is_pulled_and_put_back_and_others_come_while_all_else_runs() {
        let held = Held::with(&[(Bus::Nvme, "FAST", 2048), (Bus::Scsi, SAS, 1024)]);
        let key = held.lab.key().expect("a key");
        held.deploy("stays", "nvme");
        held.deploy("goes", "hdd");

        // The further pool is pulled: what lay on it waits, all else runs on, and the node is reached.
        held.pull("unit1");
        held.until_pool(NAA, "missing");
        held.waits("goes");
        held.has_trouble("pool_missing");
        held.starts("stays", 1);

        // Put back: its machine goes on where it was.
        let file = held.directory.path().join(SAS);
        let scsi = json!({ "driver": "scsi-hd", "bus": "scsi1.0", "wwn": WWN });
        held.plug("again", scsi, &file);
        held.until_pool(NAA, "in_use");
        held.starts("goes", 2);
        held.is_calm("pool_missing");

        // A blank NVMe in a slot becomes a pool; a foreign disk is listed and nothing else.
        let third = blank(held.directory.path(), "THIRD", 1024);
        held.plug(
            "third",
            json!({ "driver": "nvme", "bus": "slot0", "serial": "THIRD" }),
            &third,
        );
        held.until_pool("THIRD", "in_use");
        let foreign = blank(held.directory.path(), "OTHERS", 1024);
        let made = std::process::Command::new("/sbin/mke2fs")
            .args(["-qFt", "ext4", "-L", "photos"])
            .arg(&foreign)
            .status();
        assert!(made.expect("mke2fs").success());
        let virtio = json!({ "driver": "virtio-blk-pci", "bus": "slot1", "serial": "OTHERS" });
        held.plug("foreign", virtio, &foreign);
        let info = held.until("listed", |info| {
            list(info, "disks").any(|disk| disk["serial"] == "OTHERS")
        });
        let mut disks = list(&info, "disks");
        let disk = disks
            .find(|disk| disk["serial"] == "OTHERS")
            .expect("listed");
        assert_eq!(disk["used"], "left_alone", "{disk}");
        assert!(pool(&info, "OTHERS").is_none(), "{info}");

        // It takes machines, and goes as it came, by the way of a slot.
        held.pull("dev-third");
        held.until_pool("THIRD", "missing");
        held.starts("stays", 1);
        assert_eq!(held.lab.key().expect("a key"), key);
        let drill = held.json(&["node", "info"]).expect("it is reached");
        assert_eq!(drill["key"], key.as_str());
    }

    #[test]
    fn the_first_disk_is_pulled_and_the_node_is_the_same_and_reached() {
        // Of two of one class that with the smaller serial is made first, and is the first: `naa.…`.
        let held = Held::with(&[(Bus::Scsi, SAS, 2048), (Bus::Virtio, "zTWO", 1024)]);
        let info = held.until_pool("zTWO", "in_use");
        let serials: Vec<_> = list(&info, "pools")
            .map(|pool| pool["serial"].to_string())
            .collect();
        assert!(serials[0].contains(NAA), "{serials:?}");
        let key = held.lab.key().expect("a key");
        held.deploy("goes", "hdd");
        held.pull("unit0");
        let info = held.until_pool(NAA, "missing");
        assert_eq!(info["key"], key.as_str(), "another node");
        let first = list(&info, "pools").next().expect("a pool");
        assert_eq!(first["serial"], "zTWO", "{info}");
        held.waits("goes");
        held.has_trouble("pool_missing");
        // It takes statements, of which it has a ledger.
        held.lab.tell("stop", "goes", "stopped").expect("stopped");
        held.lab
            .sifr(&["start", "goes"])
            .expect("sifr runs")
            .must()
            .expect("started");
        let file = held.directory.path().join(SAS);
        let scsi = json!({ "driver": "scsi-hd", "bus": "scsi0.0", "wwn": WWN });
        held.plug("again", scsi, &file);
        held.until_pool(NAA, "in_use");
        held.starts("goes", 2);
    }

    #[test]
    fn a_node_whose_only_disk_is_pulled_says_so_and_goes_on_when_it_is_back() {
        let held = Held::with(&[(Bus::Scsi, SAS, 2048)]);
        let key = held.lab.key().expect("a key");
        held.deploy("web", "hdd");
        held.pull("unit0");
        let info = held.until_pool(NAA, "missing");
        assert_eq!(info["key"], key.as_str());
        held.has_trouble("pool_missing");

        // No deployment is told of, and an agent that dies is followed by one that says the same.
        let refused = held.lab.sifr(&["get", "web"]).expect("sifr runs");
        assert_ne!(refused.code, 0, "{refused:?}");
        assert!(refused.stderr.contains("put one back"), "{refused:?}");
        let drill = held.lab.sifr(&["node", "drill", "node"]);
        drill.expect("sifr runs").must().expect("another agent");
        let info = held.until_pool(NAA, "missing");
        assert_eq!(info["key"], key.as_str());

        // A blank disk would be another node.
        let other = blank(held.directory.path(), "OTHER", 1024);
        let scsi = json!({ "driver": "scsi-hd", "bus": "scsi0.0", "lun": 3, "serial": "OTHER" });
        held.plug("other", scsi, &other);
        let info = held.until("listed", |info| list(info, "disks").count() == 1);
        assert!(pool(&info, "OTHER").is_none(), "{info}");
        let file = held.directory.path().join(SAS);
        let scsi = json!({ "driver": "scsi-hd", "bus": "scsi0.0", "wwn": WWN });
        held.plug("again", scsi, &file);
        let info = held.until_pool(NAA, "in_use");
        assert_eq!(info["key"], key.as_str());
        held.starts("web", 2);
    }

    #[test]
    fn a_half_of_a_mirror_is_pulled_and_put_back_and_another_comes_in_its_place() {
        let disks = [(Bus::Scsi, SAS, 1024), (Bus::Scsi, MATE, 1024)];
        let held = Held::booted(&disks, "sifr.disks=mirror");
        let [one, mate, new] = [WWN, MATE_WWN, NEW_WWN].map(|wwn| format!("naa.{wwn:x}"));
        held.until_halves(&[(&one, "in_step"), (&mate, "in_step")]);
        let agent = |info: &Value| info["agent_pid"].as_u64();
        held.deploy("web", "hdd");
        let before = agent(&held.json(&["node", "info"]).expect("it is reached"));

        // Nothing stops, and it says so.
        held.pull("unit1");
        held.until_halves(&[(&one, "in_step"), (&mate, "missing")]);
        held.has_trouble("mirror_degraded");
        held.starts("web", 1);
        held.deploy("job", "hdd");

        // Put back, it is a half again, and whole.
        let scsi = |wwn: u64| json!({ "driver": "scsi-hd", "bus": "scsi1.0", "wwn": wwn });
        let file = held.directory.path().join(MATE);
        held.plug("again", scsi(MATE_WWN), &file);
        held.until_halves(&[(&one, "in_step"), (&mate, "in_step")]);
        held.is_calm("mirror_degraded");

        // A blank one that is put in for it is kept for it, and takes its place when it is told.
        held.pull("dev-again");
        let other = blank(held.directory.path(), "NEW", 1024);
        held.plug("new", scsi(NEW_WWN), &other);
        held.until("listed", |info| {
            list(info, "disks").any(|disk| disk["serial"] == new.as_str())
        });
        held.until_halves(&[(&one, "in_step"), (&mate, "missing")]);
        let replace = ["disk", "replace", &mate, &new, "--yes"];
        let answer = held.lab.sifr(&replace).expect("sifr runs");
        answer.must().expect("replaced");
        held.until_halves(&[(&one, "in_step"), (&new, "in_step")]);
        held.is_calm("mirror_degraded");

        // The first half may go now: all is on the new one.
        held.pull("unit0");
        let info = held.until_halves(&[(&new, "in_step"), (&one, "missing")]);
        held.starts("web", 1);
        held.deploy("last", "hdd");
        assert_eq!(agent(&info), before, "no agent had to start again");
    }
}
