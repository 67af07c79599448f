//! Disks that come and go while the node runs.
//!
//! Owns: pulling disks out of a node and plugging others in. Refuses: a reboot: what is seen here, is seen without one.
#![cfg(test)]

mod tests {
    use image::qemu::{Bus, Disk};
    use qemu_tests::rack::{Rack, blank, list, pool};
    use qemu_tests::tpm::{Chip, recovery};
    use serde_json::{Value, json};

    /// The world wide name of a SAS disk: to QEMU, as the node shows it, and as QEMU is told while it runs.
    const SAS: &str = "0x5000c50000000001";
    const NAA: &str = "5000c50000000001";
    const WWN: u64 = 0x5000_c500_0000_0001;
    /// Another, and one that comes in its place.
    const MATE: &str = "0x5000c50000000002";
    const MATE_WWN: u64 = 0x5000_c500_0000_0002;
    const NEW_WWN: u64 = 0x5000_c500_0000_0003;

    #[test]
    fn a_disk_is_pulled_and_put_back_and_others_come_while_all_else_runs() {
        let held = Rack::with(&[(Bus::Nvme, "FAST", 2048), (Bus::Scsi, SAS, 1024)]);
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
        let file = held.directory().join(SAS);
        let scsi = json!({ "driver": "scsi-hd", "bus": "scsi1.0", "wwn": WWN });
        held.plug("again", scsi, &file);
        held.until_pool(NAA, "in_use");
        held.starts("goes", 2);
        held.is_calm("pool_missing");

        // A blank NVMe in a slot becomes a pool; a foreign disk is listed and nothing else.
        let third = blank(held.directory(), "THIRD", 1024);
        held.plug(
            "third",
            json!({ "driver": "nvme", "bus": "slot0", "serial": "THIRD" }),
            &third,
        );
        held.until_pool("THIRD", "in_use");
        let foreign = blank(held.directory(), "OTHERS", 1024);
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
    fn a_disk_that_comes_back_read_only_is_named_and_used_when_it_takes_writes() {
        let held = Rack::with(&[(Bus::Nvme, "MAIN", 2048), (Bus::Scsi, SAS, 1024)]);
        held.deploy("goes", "hdd");
        held.pull("unit1");
        held.until_pool(NAA, "missing");
        let file = held.directory().join(SAS);
        let scsi = json!({ "driver": "scsi-hd", "bus": "scsi1.0", "wwn": WWN });
        held.plug_protected("protected", scsi.clone(), &file);
        let info = held.until_pool(NAA, "failed");
        let pool = pool(&info, NAA).expect("it is listed");
        let because = pool["because"].as_str().unwrap_or_default();
        assert!(because.contains("read-only"), "{pool}");
        held.has_trouble("pool_failing");
        held.pull("dev-protected");
        held.until_unlisted(NAA);
        held.plug("again", scsi, &file);
        held.until_pool(NAA, "in_use");
        held.starts("goes", 2);
        held.is_calm("pool_failing");
    }

    /// The kernel asks a USB stick for no serial.
    #[test]
    fn what_is_left_in_a_usb_port_is_listed_and_nothing_else_blank_or_not() {
        let held = Rack::with(&[(Bus::Nvme, "MAIN", 2048)]);
        let stick = blank(held.directory(), "STICK", 1024);
        held.add(json!({ "driver": "qemu-xhci", "bus": "slot0", "id": "usb" }));
        let usb = json!({ "driver": "usb-storage", "bus": "usb.0" });
        held.plug("stick", usb, &stick);
        let removable = |info: &Value| {
            let mut disks = list(info, "disks");
            disks.any(|disk| disk["because"] == "removable" && disk["used"] == "left_alone")
        };
        held.until("listed", removable);
        held.pull("dev-stick");
        let info = held.until("gone", |info| {
            list(info, "disks").count() > 0 && !removable(info)
        });
        assert_eq!(list(&info, "pools").count(), 1, "{info}");
        let said = held.lab.console();
        assert!(!said.contains("node ended"), "{said}");
    }

    #[test]
    fn the_first_disk_is_pulled_and_the_node_is_the_same_and_reached() {
        // Of two of one class that with the smaller serial is made first, and is the first: `naa.…`.
        let held = Rack::with(&[(Bus::Scsi, SAS, 2048), (Bus::Virtio, "zTWO", 1024)]);
        let info = held.until_pool("zTWO", "in_use");
        let serials: Vec<_> = list(&info, "pools")
            .map(|pool| pool["serial"].to_string())
            .collect();
        assert!(serials[0].contains(NAA), "{serials:?}");
        let key = held.lab.key().expect("a key");
        held.deploy("goes", "hdd");
        held.pull("unit0");
        // The agent that finds it out says so too, and is followed by one with another first pool.
        let info = held.until("the other is the first", |info| {
            let first = list(info, "pools").next();
            let missing = pool(info, NAA).is_some_and(|pool| pool["state"] == "missing");
            missing && first.is_some_and(|pool| pool["serial"] == "zTWO")
        });
        assert_eq!(info["key"], key.as_str(), "another node");
        held.waits("goes");
        held.has_trouble("pool_missing");
        // It takes statements, of which it has a ledger.
        held.lab.tell("stop", "goes", "stopped").expect("stopped");
        held.lab
            .sifr(&["start", "goes"])
            .expect("sifr runs")
            .must()
            .expect("started");
        let file = held.directory().join(SAS);
        let scsi = json!({ "driver": "scsi-hd", "bus": "scsi0.0", "wwn": WWN });
        held.plug("again", scsi, &file);
        held.until_pool(NAA, "in_use");
        held.starts("goes", 2);
    }

    #[test]
    fn a_node_whose_only_disk_is_pulled_says_so_and_goes_on_when_it_is_back() {
        // Its pool is encrypted: what decrypts it goes and comes with the disk.
        let directory = tempfile::TempDir::with_prefix("sifr-plug-").expect("a directory");
        let (recovery, _) = recovery(&directory.path().join("papers")).expect("a recovery key");
        let mut chip = Chip::new(&directory.path().join("chip")).expect("a TPM");
        chip.start().expect("a TPM");
        let disk = Disk {
            file: blank(directory.path(), SAS, 2048),
            bus: Bus::Scsi,
            serial: SAS.to_owned(),
        };
        let arguments = format!("sifr.recovery={recovery}");
        let held = Rack::of(directory, vec![disk], &arguments, Some(&chip));
        let said = held.lab.console();
        assert!(said.contains("sifr: encryption yes"), "{said}");
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
        let other = blank(held.directory(), "OTHER", 1024);
        let scsi = json!({ "driver": "scsi-hd", "bus": "scsi0.0", "lun": 3, "serial": "OTHER" });
        held.plug("other", scsi, &other);
        let info = held.until("listed", |info| list(info, "disks").count() == 1);
        assert!(pool(&info, "OTHER").is_none(), "{info}");
        let file = held.directory().join(SAS);
        let scsi = json!({ "driver": "scsi-hd", "bus": "scsi0.0", "wwn": WWN });
        held.plug("again", scsi, &file);
        let info = held.until_pool(NAA, "in_use");
        assert_eq!(info["key"], key.as_str());
        held.starts("web", 2);
    }

    #[test]
    fn a_half_of_a_mirror_is_pulled_and_put_back_and_another_comes_in_its_place() {
        let disks = [(Bus::Scsi, SAS, 1024), (Bus::Scsi, MATE, 1024)];
        let held = Rack::booted(&disks, "sifr.disks=mirror");
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
        let file = held.directory().join(MATE);
        held.plug("again", scsi(MATE_WWN), &file);
        held.until_halves(&[(&one, "in_step"), (&mate, "in_step")]);
        held.is_calm("mirror_degraded");

        // A blank one that is put in for it is kept for it, and takes its place when it is told.
        held.pull("dev-again");
        let other = blank(held.directory(), "NEW", 1024);
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

        // The last half goes as well: the node waits for it. Both come back, and what was used alone counts.
        held.pull("dev-new");
        held.until("waiting", |info| {
            let mut pools = list(info, "pools");
            info["durable"] == false && pools.any(|pool| pool["state"] == "missing")
        });
        held.plug("both", scsi(NEW_WWN), &other);
        held.until_pool(&format!("{NEW_WWN:x}"), "in_use");
        held.runs("last");
        held.starts("last", 2);
        let file = held.directory().join(SAS);
        let first = json!({ "driver": "scsi-hd", "bus": "scsi0.0", "wwn": WWN });
        held.plug("first", first, &file);
        held.until("listed", |info| {
            list(info, "disks").any(|disk| disk["serial"] == one.as_str())
        });
        held.until_pool(&format!("{NEW_WWN:x}"), "in_use");
        held.is_calm("pool_missing");
    }
}
