//! Volumes: what outlives what, growth under a running program, snapshots.
//!
//! Owns: one node with a pool large enough that a file system outgrows its first descriptors (8 GiB).
//! Refuses: looking into the pool. What a program sees is what counts.
#![cfg(test)]

mod tests {
    use std::path::{Path, PathBuf};
    use std::time::Instant;

    use image::qemu::{Bus, Disk, blank_disk};
    use qemu_tests::{Lab, PATIENCE, Setup, WEB_PORT, busybox, http, variant};
    use serde_json::Value;
    use tempfile::TempDir;
    use types::Bytes;

    /// Notes each start on the volume, and over and over how large that is, where the web server finds both.
    const PROGRAM: &str = "echo start >>/data/starts; sync; \
        (while true; do df -m /data >/tmp/df; mv /tmp/df /data/df; sleep 1; done) & exec httpd -f -h /data";

    struct Stage {
        lab: Lab,
        flist: PathBuf,
        _disk: TempDir,
    }

    impl Stage {
        fn new() -> Self {
            let directory = TempDir::with_prefix("sifr-volumes-").expect("a directory");
            let file = directory.path().join("pool.raw");
            blank_disk(&file, Bytes::gib(24)).expect("a disk");
            let setup = Setup {
                disk: false,
                ..Setup::default()
            };
            let lab = Lab::with(&setup, |machine| {
                let (bus, serial) = (Bus::Virtio, "VOL0".to_owned());
                machine.disks.push(Disk { file, bus, serial });
                Ok(())
            });
            let lab = lab.expect("a node");
            let flist = busybox(lab.command(), lab.directory()).expect("an image");
            Self {
                lab,
                flist,
                _disk: directory,
            }
        }

        fn yaml(&self, flist: &Path, size: &str) -> String {
            format!(
                "name: shop\nworkloads:\n  data: {{volume: {{size: {size}}}}}\n  web:\n    image: {}\n    memory: 128Mi\n    \
                 disk: 64Mi\n    ports: [\"{WEB_PORT}:80\"]\n    mounts: [\"data:/data\"]\n    command: [sh, -c, {PROGRAM:?}]\n",
                flist.display()
            )
        }

        fn deploy(&self, yaml: &str) {
            let answer = self.lab.deploy(yaml).expect("sifr runs");
            answer.must().expect("deployed");
            self.runs();
        }

        fn runs(&self) {
            let answer = self.lab.wait("shop", "running").expect("sifr runs");
            answer.must().expect("it runs");
        }

        fn must(&self, args: &[&str]) -> String {
            let answer = self.lab.sifr(args).expect("sifr runs");
            answer.must().expect("done").stdout
        }

        /// How the command is refused.
        fn refused(&self, args: &[&str]) -> String {
            let answer = self.lab.sifr(args).expect("sifr runs");
            assert_ne!(answer.code, 0, "{args:?}: {}", answer.stdout);
            answer.stderr
        }

        fn page(&self, path: &str) -> String {
            let answer = http::page(self.lab.web, path).expect("a page");
            let (_, body) = answer.split_once("\r\n\r\n").expect("header and body");
            body.to_owned()
        }

        fn starts(&self) -> usize {
            self.page("/starts").lines().count()
        }

        /// MiB that the program sees of its volume, as soon as they are more than this.
        fn sees_more_than(&self, mib: u64) -> u64 {
            let end = Instant::now() + PATIENCE;
            loop {
                let table = self.page("/df");
                let line = table.lines().last().unwrap_or_default();
                let all = line.split_whitespace().nth(1).and_then(|n| n.parse().ok());
                match all {
                    Some(all) if all > mib => return all,
                    _ => assert!(Instant::now() < end, "{table}"),
                }
            }
        }

        fn volume(&self) -> Value {
            self.lab.get("shop").expect("a status")["volumes"]["data"].take()
        }
    }

    #[test]
    fn a_volume_outlives_its_machine_grows_under_it_and_goes_back_to_a_snapshot() {
        let mut stage = Stage::new();
        stage.deploy(&stage.yaml(&stage.flist, "64Mi"));
        assert_eq!(stage.starts(), 1);
        survives(&mut stage);
        grows(&stage);
        goes_back(&stage);
        is_copied(&stage);
        goes_when_it_is_named(&stage);
    }

    fn survives(stage: &mut Stage) {
        stage.must(&["restart", "shop"]);
        stage.runs();
        assert_eq!(stage.starts(), 2);
        let other = variant(stage.lab.command(), stage.lab.directory(), "other", 3);
        let other = other.expect("an image");
        stage.deploy(&stage.yaml(&other, "64Mi"));
        assert_eq!(stage.starts(), 3, "a new image, the same volume");
        stage.lab.power_cut().expect("off");
        stage.lab.power_on().expect("on");
        stage.runs();
        assert_eq!(stage.starts(), 4);
        stage.must(&["stop", "shop"]);
        stage
            .lab
            .wait("shop", "stopped")
            .expect("sifr runs")
            .must()
            .expect("stopped");
        stage.deploy(&stage.yaml(&stage.flist, "64Mi"));
        assert_eq!(stage.starts(), 5);
        assert_eq!(stage.volume()["attached"][0], "web");
    }

    fn grows(stage: &Stage) {
        assert!(stage.sees_more_than(0) < 64);
        stage.deploy(&stage.yaml(&stage.flist, "1Gi"));
        let small = stage.sees_more_than(900);
        assert!(small < 1024, "{small}");
        // Over the 8 GiB whose descriptors fit a block.
        stage.deploy(&stage.yaml(&stage.flist, "10Gi"));
        let all = stage.sees_more_than(9 << 10);
        assert!(all < 10 << 10, "{all}");
        assert_eq!(stage.starts(), 5, "the machine ran on");
        let volume = stage.volume();
        assert_eq!(
            (&volume["size"], &volume["message"]),
            (&"10Gi".into(), &Value::Null)
        );
        let smaller = stage
            .lab
            .deploy(&stage.yaml(&stage.flist, "5Gi"))
            .expect("sifr runs");
        assert!(
            smaller.code != 0 && smaller.stderr.contains("cannot shrink"),
            "{}",
            smaller.stderr
        );
    }

    fn goes_back(stage: &Stage) {
        let said = stage.must(&["volume", "snapshot", "shop/data@monday"]);
        assert!(said.contains("as after a sync"), "{said}");
        stage.must(&["restart", "shop"]);
        stage.runs();
        assert_eq!(stage.starts(), 6);
        let said = stage.refused(&["volume", "restore", "shop/data@monday"]);
        assert!(said.contains("sifr stop shop"), "{said}");
        stage.must(&["stop", "shop"]);
        stage.must(&["volume", "restore", "shop/data@monday"]);
        stage.must(&["start", "shop"]);
        stage.runs();
        assert_eq!(stage.starts(), 6, "five of the snapshot, and this one");
        assert!(stage.sees_more_than(9 << 10) < 10 << 10);
    }

    fn is_copied(stage: &Stage) {
        let yaml = stage.yaml(&stage.flist, "10Gi").replace(
            "workloads:\n",
            "workloads:\n  copy: {volume: {size: 11Gi, from: data@monday}}\n",
        );
        // Ten of the volume, ten of its snapshot: there is no room for eleven more.
        let full = stage.lab.deploy(&yaml).expect("sifr runs");
        assert!(
            full.code != 0 && full.stderr.contains("disk"),
            "{}",
            full.stderr
        );
        stage.must(&["volume", "delete", "shop/data@monday"]);
        let live = yaml.replace("data@monday", "data");
        let live = live.replace("[\"data:/data\"]", "[\"data:/data\", \"copy:/copy:ro\"]");
        stage.deploy(&live.replace("exec httpd", "cp /copy/starts /data/copied; exec httpd"));
        assert_eq!(stage.page("/copied").lines().count(), 6);
        assert_eq!(stage.starts(), 7);
    }

    fn goes_when_it_is_named(stage: &Stage) {
        let said = stage.refused(&["delete", "shop"]);
        assert!(said.contains("--with-volumes"), "{said}");
        stage.must(&["delete", "shop", "--with-volumes"]);
        stage
            .lab
            .wait("shop", "deleted")
            .expect("sifr runs")
            .must()
            .expect("deleted");
        assert!(stage.must(&["volume", "list"]).contains("no volumes"));
    }
}
