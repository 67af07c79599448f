//! Health of disks: what each says of itself is seen outside, as it changes.
//!
//! Owns: a node with a disk of each kind, one of which begins to fail and is mended. Refuses: disks that lie.
#![cfg(test)]

mod tests {
    use std::path::Path;
    use std::time::{Duration, Instant};

    use image::qemu::{Bus, Disk};
    use qemu_tests::{Lab, PATIENCE, Setup};
    use serde_json::{Value, json};
    use types::Bytes;

    /// Between two questions: nothing tells who asks that a disk has been asked.
    const ASK_EVERY: Duration = Duration::from_secs(2);

    /// Number 0 is the NVMe disk: QEMU's monitor knows it as `unit0`.
    fn node(directory: &Path) -> Lab {
        let setup = Setup {
            disk: false,
            ..Setup::default()
        };
        let lab = Lab::with(&setup, |machine| {
            for (bus, serial) in [
                (Bus::Nvme, "FAST"),
                (Bus::Ahci, "SATA"),
                (Bus::Virtio, "VIRT"),
            ] {
                let (file, serial) = (directory.join(serial), serial.to_owned());
                image::qemu::blank_disk(&file, Bytes::gib(1))?;
                machine.disks.push(Disk { file, bus, serial });
            }
            Ok(())
        });
        lab.expect("a node")
    }

    /// The health of the disk whose serial ends so, once it has been asked.
    fn health(lab: &Lab, serial: &str) -> Value {
        let start = Instant::now();
        loop {
            let answer = lab.sifr(&["--output", "json", "disk", "health"]);
            let text = answer.expect("sifr runs").must().expect("health").stdout;
            let all: Value = serde_json::from_str(&text).expect("JSON");
            let disks = all[0]["disks"].as_array().expect("disks").iter();
            let is = |disk: &&Value| disk["serial"].as_str().is_some_and(|s| s.ends_with(serial));
            if let Some(disk) = disks.clone().find(is) {
                return disk["health"].clone();
            }
            assert!(start.elapsed() < PATIENCE, "{serial}: {all}");
            std::thread::sleep(ASK_EVERY);
        }
    }

    fn metrics(lab: &Lab) -> String {
        let answer = lab.sifr(&["node", "metrics"]).expect("sifr runs");
        answer.must().expect("metrics").stdout
    }

    fn warn(lab: &Lab, bits: u8) {
        let property = "smart_critical_warning";
        let set =
            json!({ "path": "/machine/peripheral/unit0", "property": property, "value": bits });
        lab.node().monitor("qom-set", &set).expect("set");
    }

    #[test]
    fn a_disk_that_begins_to_fail_is_a_trouble_and_no_more_when_it_is_well_again() {
        let directory = tempfile::TempDir::with_prefix("sifr-smart-").expect("a directory");
        let lab = node(directory.path());
        let line = |text: &str| {
            let line = lab.node().wait_for_line(text, PATIENCE);
            line.unwrap_or_else(|error| panic!("{error:#}\n{}", lab.console()))
        };
        let fast = health(&lab, "FAST");
        assert_eq!(fast["verdict"], "passed", "{fast}");
        assert_eq!(fast["source"], "nvme", "{fast}");
        assert_eq!(fast["figures"]["temperature_celsius"], 50, "{fast}");
        let sata = health(&lab, "SATA");
        assert_eq!(
            (&sata["verdict"], &sata["source"]),
            (&json!("passed"), &json!("ata")),
            "{sata}"
        );
        assert!(sata["figures"]["temperature_celsius"].is_number(), "{sata}");
        let virt = health(&lab, "VIRT");
        assert_eq!(virt["verdict"], "not_offered", "{virt}");

        // Bit 2: not reliable any more.
        warn(&lab, 4);
        let said = line("sifr: trouble disk_failing: FAST");
        assert!(
            said.contains("not reliable") && said.contains("disk replace"),
            "{said}"
        );
        let metrics = metrics(&lab);
        let failing = "serial=\"FAST\",verdict=\"failing\"} 1\n";
        assert!(metrics.contains(failing), "{metrics}");
        let listed = lab.sifr(&["disk", "list"]).expect("sifr runs");
        let listed = listed.must().expect("a list").stdout;
        assert!(
            listed.contains("failing") && listed.contains("not offered"),
            "{listed}"
        );

        warn(&lab, 0);
        line("sifr: no more trouble disk_failing");
        assert_eq!(health(&lab, "FAST")["verdict"], "passed");
        warn(&lab, 2);
        let said = line("sifr: trouble disk_hot: FAST");
        assert!(said.contains("temperature"), "{said}");
        let hot = health(&lab, "FAST");
        assert_eq!(
            (&hot["verdict"], &hot["hot"]),
            (&json!("passed"), &json!(true))
        );
    }

    /// What lies on the pools of the slower disks, by the node's own word.
    fn used_beside(lab: &Lab) -> u64 {
        let answer = lab.sifr(&["--output", "json", "node", "info"]);
        let text = answer.expect("sifr runs").must().expect("info").stdout;
        let info: Value = serde_json::from_str(&text).expect("JSON");
        let pools = info["pools"].as_array().expect("pools").iter();
        let beside = pools.filter(|pool| pool["serial"] != "FAST");
        let bytes = |pool: &Value, what: &str| {
            let bytes = pool[what].as_str().map(|text| text.parse::<Bytes>());
            bytes.expect("bytes").expect("bytes").0
        };
        beside.map(|p| bytes(p, "size") - bytes(p, "free")).sum()
    }

    #[test]
    fn while_the_fastest_disk_fails_new_machines_have_their_data_elsewhere() {
        let directory = tempfile::TempDir::with_prefix("sifr-smart-").expect("a directory");
        let lab = node(directory.path());
        let flist = qemu_tests::busybox(lab.command(), lab.directory()).expect("an image");
        let console = lab.console();
        assert!(
            !console.contains("sifr: trouble"),
            "nothing is wrong: {console}"
        );
        let fill = |name: &str| {
            let before = used_beside(&lab);
            let yaml = format!(
                "name: {name}\nimage: {}\nmemory: 64Mi\ndisk: 64Mi\nrestart: never\n\
                 command: [sh, -c, \"dd if=/dev/zero of=/all bs=1M count=24; sync\"]\n",
                flist.display()
            );
            lab.deploy(&yaml)
                .expect("sifr runs")
                .must()
                .expect("deployed");
            lab.wait(name, "exited")
                .expect("sifr runs")
                .must()
                .expect("done");
            used_beside(&lab) - before
        };
        assert!(fill("fine") < 1 << 20);
        health(&lab, "FAST");
        warn(&lab, 4);
        let line = lab
            .node()
            .wait_for_line("sifr: trouble disk_failing: FAST", PATIENCE);
        line.expect("told");
        assert!(fill("careful") >= 24 << 20);
        // What lies on it says so.
        let conditions = |name: &str| lab.get(name).expect("a status")["conditions"].clone();
        let fine = &conditions("fine")[0];
        assert_eq!(
            (&fine["code"], &fine["workload"]),
            (&json!("disk_failing"), &json!("main")),
            "{fine}"
        );
        let shown = lab.sifr(&["get", "fine"]).expect("sifr runs").stdout;
        assert!(
            shown.contains("fine/main: disk_failing: ") && shown.contains("FAST"),
            "{shown}"
        );
        assert_eq!(conditions("careful"), Value::Null);
    }
}
