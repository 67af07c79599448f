//! Disks that neither answer nor fail, for ever.
//!
//! Owns: a node whose disks stop answering, one after the other, and answer again. Refuses: what the kernel does of its own
//! where a driver has a time limit: these are virtio disks, of which it waits without end.
#![cfg(test)]

mod tests {
    use image::qemu::{Bus, Disk};
    use qemu_tests::rack::{Rack, Tap, list, pool, troubles};
    use serde_json::Value;

    fn has(info: &Value, code: &str, serial: &str) -> bool {
        troubles(info).any(|trouble| {
            let message = trouble["message"].as_str().unwrap_or_default();
            trouble["code"] == code && message.contains(serial)
        })
    }

    #[test]
    fn a_disk_that_hangs_is_done_without_and_the_last_one_is_waited_for() {
        let directory = tempfile::TempDir::with_prefix("sifr-hang-").expect("a directory");
        let tap = |serial, mib| Tap::open(directory.path(), serial, mib).expect("a server");
        // Of two of one class the smaller serial is the first; new machines go where most room is.
        let (first, other) = (tap("AONE", 2048), tap("BTWO", 1024));
        let disk = |tap: &Tap, serial: &str| Disk {
            file: tap.address.clone(),
            bus: Bus::Virtio,
            serial: serial.to_owned(),
        };
        let disks = vec![disk(&first, "AONE"), disk(&other, "BTWO")];
        let held = Rack::of(directory, disks, "", None);
        let key = held.lab.key().expect("a key");
        held.deploy("web", "hdd");

        // The first hangs: a statement is kept by the other, and acknowledged.
        first.close().expect("hangs");
        let stop = held.lab.sifr(&["stop", "web"]).expect("sifr runs");
        stop.must().expect("acknowledged");
        // Its pool is lost as if it had been pulled, and the node is the same without it.
        let info = held.until("lost", |info| {
            pool(info, "AONE").is_some_and(|pool| pool["state"] == "failed")
                && pool(info, "BTWO").is_some_and(|pool| pool["state"] == "in_use")
                && list(info, "pools")
                    .next()
                    .is_some_and(|pool| pool["serial"] == "BTWO")
        });
        assert_eq!(info["key"], key.as_str());
        assert!(has(&info, "pool_failing", "AONE"), "{info:#}");
        let start = held.lab.sifr(&["start", "web"]).expect("sifr runs");
        start.must().expect("acknowledged");

        // The last one hangs: who deploys is refused, and the node is reached and says why.
        other.close().expect("hangs");
        let info = held.until("silent", |info| has(info, "pool_silent", "BTWO"));
        let agent = &info["agent_pid"];
        let refused = held.lab.sifr(&["stop", "web"]).expect("sifr runs");
        assert_ne!(refused.code, 0, "{refused:?}");
        assert!(refused.stderr.contains("has not answered"), "{refused:?}");
        assert!(refused.stderr.contains("BTWO"), "{refused:?}");
        held.lab
            .node()
            .wait_for_line("sifr: trouble pool_silent", qemu_tests::PATIENCE)
            .expect("said");

        // It answers again, and takes statements, of the same agent.
        other.reopen().expect("answers");
        let info = held.until("over", |info| !has(info, "pool_silent", "BTWO"));
        assert_eq!(&info["agent_pid"], agent, "{}", held.lab.console());
        held.lab
            .sifr(&["get", "web"])
            .expect("sifr runs")
            .must()
            .expect("told");

        // The first answers, too: it is taken back, and its machine goes on.
        first.reopen().expect("answers");
        held.until_pool("AONE", "in_use");
        held.runs("web");
        held.starts("web", 2);
        held.is_calm("pool_failing");
    }
}
