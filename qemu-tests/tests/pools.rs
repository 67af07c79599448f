//! Several disks: each of two alone is the node, whatever has become of the other.
//!
//! Owns: nodes whose disks are taken out and put back. Refuses: judging a pool by anything but what the node then says and runs.
#![cfg(test)]

mod tests {
    use std::path::Path;

    use image::qemu::{Bus, Disk};
    use qemu_tests::shelf::Shelf;
    use qemu_tests::{Lab, Setup};
    use serde_json::Value;

    struct Held {
        shelf: Shelf,
    }

    impl Held {
        /// A node with two blank disks.
        fn new() -> Self {
            let mut lab = Lab::with(&Setup::default(), |machine| {
                let directory = machine.disks[0].file.parent().expect("a directory");
                let file = directory.join("second.raw");
                // Smaller than the first: new machines go to the pool with most room.
                image::qemu::blank_disk(&file, types::Bytes::gib(2))?;
                let second = Disk {
                    file,
                    serial: "LAB1".to_owned(),
                    ..machine.disks[0].clone()
                };
                machine.disks.push(second);
                Ok(())
            })
            .expect("a node");
            let disks = lab.disks().clone();
            let shelf = Shelf::of(lab, disks).expect("an image and a key");
            Self { shelf }
        }

        /// Cuts the power, and boots with these disks alone.
        fn boot_with(&mut self, disks: &[usize]) {
            self.shelf.boot_with(disks).expect("the same node");
        }

        /// Each start adds a line to a file on the machine's disk, and says how many there are.
        fn deploy(&self, name: &str) {
            self.deploy_with(name, "disk: 64Mi\n");
        }

        fn yaml(&self, name: &str, more: &str) -> String {
            let disk = if more.contains("disk:") {
                ""
            } else {
                "disk: 64Mi\n"
            };
            format!(
                "name: {name}\nimage: {}\nmemory: 64Mi\n{disk}{more}\
                 command: [sh, -c, \"echo x >> /n; sync; echo starts $(wc -l < /n); sleep 3600\"]\n",
                self.shelf.flist.display()
            )
        }

        fn deploy_with(&self, name: &str, more: &str) {
            let answer = self
                .shelf
                .lab
                .deploy(&self.yaml(name, more))
                .expect("sifr runs");
            answer.must().expect("accepted");
            self.runs(name);
        }

        fn runs(&self, name: &str) {
            let up = self.shelf.lab.wait(name, "running").expect("sifr runs");
            up.must()
                .unwrap_or_else(|error| panic!("{error:#}\n{}", self.shelf.lab.console()));
        }

        /// How often its program has begun on the same disk.
        fn starts(&self, name: &str) -> Option<String> {
            let logs = self.shelf.lab.logs(name).expect("logs");
            logs.lines().last().map(str::to_owned)
        }

        fn wait_for_starts(&self, name: &str, count: u32) {
            let wanted = format!("starts {count}");
            let follow = self.shelf.lab.follow(name).expect("it is followed");
            follow
                .wait_for(&wanted)
                .unwrap_or_else(|error| panic!("{error:#}: {:?}", self.starts(name)));
        }

        /// It waits for a disk, and says so.
        fn waits(&self, name: &str) {
            let status = self.shelf.lab.get(name).expect("it is known");
            assert_eq!(status["desired"], "running", "{status}");
            let workload = status["workloads"].as_object().expect("workloads").values();
            for workload in workload {
                let message = workload["message"].as_str().unwrap_or_default();
                assert!(message.contains("its disk is not there"), "{status}");
                assert_eq!(workload["state"], "pending", "{status}");
            }
        }

        fn info(&self) -> Value {
            let answer = self.shelf.lab.sifr(&["--output", "json", "node", "info"]);
            let answer = answer.expect("sifr runs").must().expect("info");
            serde_json::from_str(&answer.stdout).expect("JSON")
        }

        /// State of each pool, by the serial of its disk.
        fn pools(&self) -> Vec<(String, String)> {
            let info = self.info();
            let pools = info["pools"].as_array().expect("a list");
            let text = |pool: &Value, key: &str| pool[key].as_str().unwrap_or_default().to_owned();
            // A SATA disk says its maker's name before its serial.
            let serial = |pool: &Value| {
                let text = text(pool, "serial");
                text.rsplit(' ').next().unwrap_or_default().to_owned()
            };
            let mut pools: Vec<_> = pools
                .iter()
                .map(|pool| (serial(pool), text(pool, "state")))
                .collect();
            pools.sort();
            pools
        }
    }

    /// Three kinds of disks: what each says of itself decides, and a removable one is left alone.
    fn of_all_kinds(directory: &Path) -> Lab {
        let setup = Setup {
            disk: false,
            ..Setup::default()
        };
        let lab = Lab::with(&setup, |machine| {
            for (bus, serial, mib) in [
                (Bus::Nvme, "FAST", 1024),
                (Bus::Ahci, "SLOW", 2048),
                (Bus::Virtio4Kn, "LARGE", 3072),
                (Bus::Usb, "STICK", 1024),
            ] {
                let (file, serial) = (directory.join(serial), serial.to_owned());
                image::qemu::blank_disk(&file, types::Bytes::mib(mib))?;
                machine.disks.push(Disk { file, bus, serial });
            }
            Ok(())
        });
        lab.expect("a node")
    }

    #[test]
    fn the_fastest_disk_is_filled_first_and_a_class_is_kept_to() {
        let directory = tempfile::TempDir::with_prefix("sifr-kinds-").expect("a directory");
        let mut lab = of_all_kinds(directory.path());
        let disks = lab.disks().clone();
        let shelf = Shelf::of(lab, disks).expect("an image and a key");
        let mut held = Held { shelf };
        let in_use = [("FAST", "in_use"), ("LARGE", "in_use"), ("SLOW", "in_use")];
        assert_eq!(held.pools(), said(&in_use));
        let metrics = held
            .shelf
            .lab
            .sifr(&["node", "metrics"])
            .expect("sifr runs");
        let metrics = metrics.must().expect("metrics").stdout;
        for (serial, class) in [("FAST", "nvme"), ("SLOW", "hdd"), ("LARGE", "hdd")] {
            let up = format!("{serial}\",class=\"{class}\"}} 1\n");
            assert!(metrics.contains(&up), "{serial}: {metrics}");
        }
        held.deploy("quick");
        held.deploy_with("slow", "class: hdd\n");
        // More than the fast one has left, and than all have on one disk.
        held.deploy_with("big", "disk: 1Gi\n");
        for name in ["quick", "slow", "big"] {
            held.wait_for_starts(name, 1);
        }
        let huge = held.shelf.lab.deploy(&held.yaml("huge", "disk: 4Gi\n"));
        let huge = huge.expect("sifr runs");
        assert!(
            huge.code != 0 && huge.stderr.contains("needs 4104Mi on one pool"),
            "{huge:?}"
        );
        let ssd = held.shelf.lab.deploy(&held.yaml("ssd", "class: ssd\n"));
        let ssd = ssd.expect("sifr runs");
        assert!(
            ssd.stderr.contains("no pool of this node is of class ssd"),
            "{ssd:?}"
        );

        // Each waits for the disk that it lies on, and for no other.
        held.boot_with(&[0]);
        held.runs("quick");
        held.waits("slow");
        held.waits("big");
        held.boot_with(&[0, 1, 2, 3]);
        held.wait_for_starts("slow", 2);
        held.wait_for_starts("big", 2);
        held.shelf.lab.power_button().expect("off, in order");
    }

    fn said(pools: &[(&str, &str)]) -> Vec<(String, String)> {
        let own = |(serial, state): &(&str, &str)| (serial.to_string(), state.to_string());
        pools.iter().map(own).collect()
    }

    #[test]
    fn each_of_two_disks_alone_is_the_node_with_all_that_was_acknowledged() {
        let mut held = Held::new();
        assert_eq!(
            held.pools(),
            said(&[("LAB0", "in_use"), ("LAB1", "in_use")])
        );
        held.deploy("web");
        held.deploy("gone");
        held.wait_for_starts("web", 1);
        // Another agent takes both pools over as they are, with what runs from them.
        let drill = held.shelf.lab.sifr(&["node", "drill", "node"]);
        drill.expect("sifr runs").must().expect("killed");
        held.runs("web");
        assert_eq!(
            held.pools(),
            said(&[("LAB0", "in_use"), ("LAB1", "in_use")])
        );
        held.wait_for_starts("web", 1);

        // The disk with the machines is away: they wait for it, and others run.
        held.boot_with(&[1]);
        assert_eq!(
            held.pools(),
            said(&[("LAB0", "missing"), ("LAB1", "in_use")])
        );
        let console = held.shelf.lab.console();
        assert!(
            console.contains("a disk of this node is not there: serial \"LAB0\""),
            "{console}"
        );
        held.waits("web");
        held.waits("gone");
        held.deploy("job");
        held.wait_for_starts("job", 1);
        held.shelf
            .lab
            .delete("gone")
            .expect("deleted while its disk is away");

        // It comes back with an older ledger: nothing deleted returns, and each machine goes on where it was.
        held.boot_with(&[0, 1]);
        assert_eq!(
            held.pools(),
            said(&[("LAB0", "in_use"), ("LAB1", "in_use")])
        );
        held.runs("web");
        held.wait_for_starts("web", 2);
        held.runs("job");
        held.wait_for_starts("job", 2);
        let gone = held.shelf.lab.get("gone").expect("a tombstone");
        assert_eq!(gone["desired"], "deleted", "{gone}");

        // The other way round.
        held.boot_with(&[0]);
        held.runs("web");
        held.waits("job");
        let gone = held.shelf.lab.get("gone").expect("a tombstone");
        assert_eq!(gone["desired"], "deleted", "{gone}");
        held.shelf.lab.power_button().expect("off, in order");
    }

    #[test]
    fn a_disk_that_is_read_only_at_a_boot_is_named_and_what_lies_on_it_waits_and_is_not_lost() {
        let mut held = Held::new();
        let protect = |held: &mut Held, serials: &[&str]| {
            held.shelf.lab.machine().protected = serials.iter().map(|s| (*s).to_owned()).collect();
        };
        held.deploy("web");
        held.wait_for_starts("web", 1);

        // The first pool, with the machine: the other is the node, and says which disk it is.
        protect(&mut held, &["LAB0"]);
        held.boot_with(&[0, 1]);
        assert_eq!(
            held.pools(),
            said(&[("LAB0", "failed"), ("LAB1", "in_use")])
        );
        let console = held.shelf.lab.console();
        assert!(console.contains("the disk vda is read-only"), "{console}");
        held.waits("web");
        held.deploy("job");
        held.wait_for_starts("job", 1);

        // Both: it runs from memory, and says why.
        protect(&mut held, &["LAB0", "LAB1"]);
        held.shelf.lab.power_cut().expect("off");
        held.shelf.lab.power_on().expect("it is up");
        let console = held.shelf.lab.console();
        assert!(console.contains("runs_from_memory"), "{console}");
        assert!(console.contains("is read-only"), "{console}");

        // And nothing was lost.
        protect(&mut held, &[]);
        held.boot_with(&[0, 1]);
        assert_eq!(
            held.pools(),
            said(&[("LAB0", "in_use"), ("LAB1", "in_use")])
        );
        held.runs("web");
        held.wait_for_starts("web", 2);
        held.runs("job");
        held.wait_for_starts("job", 2);
    }
}
