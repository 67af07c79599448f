//! A node that has no room left: what it refuses and how it says so, what still goes, and who is none the worse.
//!
//! Owns: one node whose pool and ledger are filled to the last block, which keeps its power no better than any other.
//! Refuses: filling it by hours of pushes: a file beside the node's own takes the room.
#![cfg(test)]

mod tests {
    use std::path::{Path, PathBuf};

    use qemu_tests::{Lab, PATIENCE, Setup, busybox, variant};
    use serde_json::Value;

    /// Takes the pool's room; the node does not know it.
    const BALLAST: &str = "/pool/ballast";
    /// Fills its volume, and says how far it came; what is there it can read.
    const GREEDY: &str = "dd if=/dev/zero of=/data/all bs=1M 2>/dev/null; sync; echo full $(wc -c </data/all); sleep 100000";
    /// Writes to its own disk whenever somebody has reached it, and says so.
    const MODEST: &str =
        "echo ready; while :; do sleep 1; echo x >>/own && sync && echo wrote $(wc -l </own); done";

    struct Stage {
        lab: Lab,
        flist: PathBuf,
    }

    impl Stage {
        fn machine(&self, image: &Path, program: &str, more: &str) -> String {
            let image = image.display();
            format!(
                "  main:\n    image: {image}\n    memory: 64Mi\n    disk: 64Mi\n    command: [sh, -c, {program:?}]\n{more}"
            )
        }

        /// How the command is refused: nothing is left of what was asked.
        fn refused(&self, name: &str, workloads: &str) -> String {
            let yaml = format!("name: {name}\nworkloads:\n{workloads}");
            let answer = self.lab.deploy(&yaml).expect("sifr runs");
            assert_ne!(answer.code, 0, "{name} was taken: {}", answer.stdout);
            let asked = self.lab.sifr(&["get", name]).expect("sifr runs");
            assert_ne!(asked.code, 0, "{name} is there: {}", asked.stdout);
            println!("{name}: {}", answer.stderr);
            answer.stderr
        }

        fn deploy(&self, name: &str, workloads: &str) {
            let yaml = format!("name: {name}\nworkloads:\n{workloads}");
            let answer = self.lab.deploy(&yaml).expect("sifr runs");
            answer.must().expect("deployed");
        }

        fn troubles(&self) -> String {
            let info = self.lab.sifr(&["--output", "json", "node", "info"]);
            let info = info.expect("sifr runs").must().expect("it is reached");
            let info: Value = serde_json::from_str(&info.stdout).expect("JSON");
            info["troubles"].to_string()
        }
    }

    #[test]
    fn a_full_node_is_reached_says_so_and_takes_what_makes_room() {
        let setup = Setup {
            watched: true,
            ..Setup::default()
        };
        let lab = Lab::with(&setup, |_| Ok(())).expect("a node");
        let flist = busybox(lab.command(), lab.directory()).expect("an image");
        let mut stage = Stage { lab, flist };
        what_does_not_fit_is_refused_with_what_there_is(&stage);
        a_machine_that_fills_its_volume_harms_nobody(&stage);
        a_full_pool_takes_stops_and_deletions_alone(&mut stage);
    }

    fn what_does_not_fit_is_refused_with_what_there_is(stage: &Stage) {
        let volume = stage.refused("large", "  data: {volume: {size: 100Gi}}\n");
        let layer = stage
            .machine(&stage.flist, "true", "")
            .replace("disk: 64Mi", "disk: 100Gi");
        let layer = stage.refused("large", &layer);
        for said in [volume, layer] {
            for word in [
                "Mi of disk",
                "Mi is free: make it smaller",
                "`sifr node info` shows what is free",
            ] {
                assert!(said.contains(word), "{word}: {said}");
            }
        }
    }

    fn a_machine_that_fills_its_volume_harms_nobody(stage: &Stage) {
        stage.deploy("modest", &stage.machine(&stage.flist, MODEST, ""));
        let volume = "  data: {volume: {size: 64Mi}}\n".to_owned();
        let greedy = stage.machine(&stage.flist, GREEDY, "    mounts: [\"data:/data\"]\n");
        stage.deploy("greedy", &(volume + &greedy));
        let log = stage.lab.follow("greedy").expect("it is followed");
        let full = log.line().expect("it comes to its end");
        let bytes = full.split_whitespace().last().and_then(|w| w.parse().ok());
        let bytes: u64 = bytes.expect("a number");
        assert!(bytes > 32 << 20 && bytes < 64 << 20, "{full}");
        let neighbour = stage.lab.follow("modest").expect("it is followed");
        // What it says from now on.
        for _ in 0..2 {
            neighbour.wait_for("wrote ").expect("it goes on");
        }
        assert!(
            !stage.troubles().contains("pool_full"),
            "{}",
            stage.troubles()
        );
    }

    /// Of the ledger too: what it must keep lies on the same pool.
    fn a_full_pool_takes_stops_and_deletions_alone(stage: &mut Stage) {
        let key = stage.lab.key().expect("its key");
        stage.lab.node().mark();
        let taken = stage.lab.watch().expect("eyes").fill(BALLAST);
        println!("the ballast has {} bytes", taken.expect("it is full"));
        let says = stage
            .lab
            .node()
            .wait_for_line("sifr: trouble pool_full", PATIENCE);
        println!("{}", says.expect("it says so"));
        let other = variant(stage.lab.command(), stage.lab.directory(), "other", 3);
        let image = stage.machine(&other.expect("an image"), "true", "");
        let known = stage.machine(&stage.flist, "true", "");
        for workloads in [image, known] {
            let said = stage.refused("late", &workloads);
            assert!(
                said.contains("delete deployments that are not needed"),
                "{said}"
            );
        }
        let again = stage.lab.sifr(&["restart", "modest"]).expect("sifr runs");
        assert_ne!(again.code, 0, "it was taken: {}", again.stdout);
        let word = "no room for more than stops and deletions";
        assert!(again.stderr.contains(word), "{}", again.stderr);
        stage
            .lab
            .tell("stop", "modest", "stopped")
            .expect("it takes a stop");
        let gone = ["delete", "greedy", "--with-volumes"];
        // The room that this gives back is filled again.
        let deleted = stage.lab.sifr(&gone).expect("sifr runs");
        deleted.must().expect("it takes a deletion");
        let waited = stage.lab.wait("greedy", "deleted").expect("sifr runs");
        waited.must().expect("gone");
        let more = stage.lab.watch().expect("eyes").fill(BALLAST);
        println!("and then {} bytes", more.expect("it is full"));

        stage.lab.power_cut().expect("off");
        stage.lab.power_on().expect("it boots with a full pool");
        assert_eq!(stage.lab.key().expect("its key"), key);
        assert!(
            stage.troubles().contains("pool_full"),
            "{}",
            stage.troubles()
        );
        let modest = stage.lab.get("modest").expect("a status");
        assert_eq!(modest["desired"], "stopped", "{modest}");
        let start = stage.lab.sifr(&["start", "modest"]).expect("sifr runs");
        assert!(start.stderr.contains(word), "{}", start.stderr);

        let removed = stage.lab.watch().expect("eyes").remove(BALLAST);
        removed.expect("there is room");
        let started = stage.lab.tell("start", "modest", "running");
        started.expect("it is as before");
        let over = stage
            .lab
            .node()
            .wait_for_line("sifr: no more trouble pool_full", PATIENCE);
        over.expect("it says so");
    }
}
