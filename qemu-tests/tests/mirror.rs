//! Pools on two disks: either may go, at any time.
//!
//! Owns: nodes with a mirror whose disks fail, go, come back and are replaced. Refuses: judging by anything but what the node
//! says and runs.
#![cfg(test)]

mod tests {
    use std::time::{Duration, Instant};

    use image::qemu::Disk;
    use qemu_tests::shelf::Shelf;
    use qemu_tests::{Lab, PATIENCE, Setup};
    use serde_json::{Value, json};
    use types::Bytes;

    /// Small, as all of it is copied where a half is new.
    const DISK: Bytes = Bytes::gib(2);
    /// Between two questions how far the node is.
    const ASK_EVERY: Duration = Duration::from_secs(2);

    struct Held {
        shelf: Shelf,
    }

    impl Held {
        /// A node with two blank disks that are to be a mirror.
        fn new() -> Self {
            let setup = Setup {
                arguments: "sifr.disks=mirror".to_owned(),
                ..Setup::default()
            };
            let mut disks = Vec::new();
            let lab = Lab::with(&setup, |machine| {
                let first = machine.disks.remove(0);
                for at in 0..3 {
                    let disk = Disk {
                        file: first.file.with_file_name(format!("half{at}.raw")),
                        serial: format!("LAB{at}"),
                        ..first.clone()
                    };
                    image::qemu::blank_disk(&disk.file, DISK)?;
                    disks.push(disk);
                }
                // The third is for later.
                machine.disks.extend(disks[..2].iter().cloned());
                Ok(())
            })
            .expect("a node");
            let shelf = Shelf::of(lab, disks).expect("an image and a key");
            Self { shelf }
        }

        /// Cuts the power, and boots with these disks alone.
        fn boot_with(&mut self, disks: &[usize]) {
            self.shelf.boot_with(disks).expect("the same node");
        }

        /// Its program counts on a volume, for ever.
        fn deploy(&self, name: &str) {
            let yaml = format!(
                "name: {name}\nworkloads:\n  v: {{volume: {{size: 64Mi}}}}\n  m:\n    image: {}\n    memory: 64Mi\n    \
                 disk: 64Mi\n    mounts: [\"v:/v\"]\n    command: [sh, -c, \"while :; do echo x >> /v/n; sync; \
                 echo beat $(wc -l < /v/n); sleep 1; done\"]\n",
                self.shelf.flist.display()
            );
            let answer = self.shelf.lab.deploy(&yaml).expect("sifr runs");
            answer.must().expect("accepted");
        }

        /// How far its program has counted, at the least `least`.
        fn beats(&self, name: &str, least: u64) -> u64 {
            let start = Instant::now();
            loop {
                let logs = self.shelf.lab.logs(name).unwrap_or_default();
                let last = logs
                    .lines()
                    .rev()
                    .find_map(|line| line.split("beat ").nth(1));
                let beats = last.and_then(|text| text.trim().parse().ok()).unwrap_or(0);
                if beats >= least {
                    return beats;
                }
                self.patient(start, &format!("{name} has {beats} beats of {least}"));
            }
        }

        fn patient(&self, start: Instant, what: &str) {
            let console = self.shelf.lab.console();
            assert!(start.elapsed() < PATIENCE, "{what}\n{console}");
            std::thread::sleep(ASK_EVERY);
        }

        fn info(&self) -> Value {
            let answer = self.shelf.lab.sifr(&["--output", "json", "node", "info"]);
            let answer = answer.expect("sifr runs").must().expect("info");
            serde_json::from_str(&answer.stdout).expect("JSON")
        }

        fn knows(&self, name: &str) -> bool {
            let all = self.shelf.lab.sifr(&["get"]).expect("sifr runs");
            all.must().expect("told").stdout.contains(name)
        }

        /// State of each half of the one pool, by its serial.
        fn halves(&self) -> Vec<(String, String)> {
            let info = self.info();
            assert_eq!(info["pools"].as_array().map(Vec::len), Some(1), "{info}");
            let halves = info["pools"][0]["mirror"]["halves"].as_array();
            let text = |half: &Value, key: &str| half[key].as_str().unwrap_or_default().to_owned();
            let mut halves: Vec<_> = halves
                .map_or(&[][..], Vec::as_slice)
                .iter()
                .map(|half| (text(half, "serial"), text(half, "state")))
                .collect();
            halves.sort();
            halves
        }

        fn wait_for_halves(&self, wanted: &[(&str, &str)]) {
            let start = Instant::now();
            loop {
                let halves = self.halves();
                let same = |((a, b), (c, d)): (&(String, String), &(&str, &str))| a == c && b == d;
                if halves.len() == wanted.len() && halves.iter().zip(wanted).all(same) {
                    return;
                }
                self.patient(start, &format!("{halves:?} are to be {wanted:?}"));
            }
        }

        fn trouble(&self) -> Option<String> {
            let info = self.info();
            let troubles = info["troubles"].as_array().expect("a list");
            let of_mirror = troubles.iter().find(|t| t["code"] == "mirror_degraded");
            of_mirror.map(|t| t["message"].as_str().unwrap_or_default().to_owned())
        }

        fn wait_for_trouble(&self, there: bool) {
            let start = Instant::now();
            while self.trouble().is_some() != there {
                self.patient(start, "the trouble of the mirror");
            }
        }
    }

    const IN_STEP: [(&str, &str); 2] = [("LAB0", "in_step"), ("LAB1", "in_step")];

    #[test]
    fn either_disk_of_a_mirror_may_fail_and_go_and_what_was_acknowledged_is_on_the_other() {
        let mut held = Held::new();
        held.wait_for_halves(&IN_STEP);
        assert_eq!(held.trouble(), None);
        held.deploy("web");
        let before = held.beats("web", 3);

        // A disk dies while the node runs: nothing stops.
        let dead = json!({"command-line": "drive_del disk0"});
        let node = held.shelf.lab.node();
        node.monitor("human-monitor-command", &dead).expect("dead");
        held.wait_for_trouble(true);
        let before = held.beats("web", before + 3);
        held.wait_for_halves(&[("LAB0", "failed"), ("LAB1", "in_step")]);
        held.deploy("job");
        held.beats("job", 1);

        // Without it the node is the same, and goes on.
        held.boot_with(&[1]);
        held.wait_for_trouble(true);
        let before = held.beats("web", before + 1);

        // It returns with what it knew: it is filled, never believed.
        held.boot_with(&[0, 1]);
        held.wait_for_halves(&IN_STEP);
        held.wait_for_trouble(false);
        let before = held.beats("web", before + 1);

        // And may then be the only one.
        held.boot_with(&[0]);
        held.wait_for_trouble(true);
        held.beats("web", before + 1);
        held.beats("job", 2);
        held.shelf.lab.power_button().expect("off, in order");
    }

    #[test]
    fn a_disk_is_replaced_while_the_node_runs_and_a_power_cut_on_the_way_loses_nothing() {
        let mut held = Held::new();
        held.deploy("web");
        let before = held.beats("web", 2);
        held.boot_with(&[1, 2]);
        held.wait_for_trouble(true);
        // The new disk is kept for the mirror.
        let list = held.shelf.lab.sifr(&["disk", "list"]).expect("sifr runs");
        let list = list.must().expect("listed").stdout;
        assert!(list.contains("LAB2") && list.contains("ready"), "{list}");
        let replace = ["disk", "replace", "LAB0", "LAB2", "--yes"];
        let answer = held.shelf.lab.sifr(&replace).expect("sifr runs");
        answer.must().expect("replaced");

        held.boot_with(&[1, 2]);
        held.wait_for_halves(&[("LAB1", "in_step"), ("LAB2", "in_step")]);
        let before = held.beats("web", before + 1);
        // Who was replaced has no place any more, and changes nothing.
        held.boot_with(&[0, 1, 2]);
        held.wait_for_halves(&[("LAB1", "in_step"), ("LAB2", "in_step")]);
        let list = held.shelf.lab.sifr(&["disk", "list"]).expect("sifr runs");
        let list = list.must().expect("listed").stdout;
        assert!(list.contains("another disk has its place"), "{list}");
        let wrong = held
            .shelf
            .lab
            .sifr(&["disk", "replace", "LAB9", "LAB0", "--yes"]);
        let wrong = wrong.expect("sifr runs");
        assert_ne!(wrong.code, 0, "{wrong:?}");

        // A half that works is replaced as well: nothing stops, and it is copied to the new one.
        let replace = ["disk", "replace", "LAB1", "LAB0", "--yes"];
        let answer = held.shelf.lab.sifr(&replace).expect("sifr runs");
        answer.must().expect("replaced");
        held.wait_for_halves(&[("LAB0", "in_step"), ("LAB2", "in_step")]);
        let before = held.beats("web", before + 1);
        held.boot_with(&[0]);
        held.beats("web", before + 1);
        held.shelf.lab.power_button().expect("off, in order");
    }

    #[test]
    fn a_blank_disk_beside_a_whole_mirror_is_kept_to_replace_a_half_that_still_works() {
        let mut held = Held::new();
        held.boot_with(&[0, 1, 2]);
        held.wait_for_halves(&IN_STEP);
        let replace = ["disk", "replace", "LAB0", "LAB2", "--yes"];
        let answer = held.shelf.lab.sifr(&replace).expect("sifr runs");
        answer.must().expect("replaced");
        held.wait_for_halves(&[("LAB1", "in_step"), ("LAB2", "in_step")]);
        held.shelf.lab.power_button().expect("off, in order");
    }

    #[test]
    fn halves_that_were_used_apart_are_never_put_together_and_each_keeps_what_it_has() {
        let mut held = Held::new();
        held.wait_for_halves(&IN_STEP);
        let sides = [("LAB0", "left"), ("LAB1", "right")];
        for (at, (_, name)) in sides.into_iter().enumerate() {
            held.boot_with(&[at]);
            held.wait_for_trouble(true);
            held.deploy(name);
            held.beats(name, 1);
        }

        // The node goes on with one of them, and says what the other is.
        held.boot_with(&[0, 1]);
        held.wait_for_trouble(true);
        let halves = held.halves();
        let counts = |(serial, _): &(&str, &str)| {
            halves.contains(&((*serial).to_owned(), "in_step".to_owned()))
        };
        let truth = sides.iter().position(counts).expect("one counts");
        let other = 1 - truth;
        held.beats(sides[truth].1, 1);
        assert!(!held.knows(sides[other].1), "{halves:?}");
        let info = held.info();
        let disks = info["disks"].as_array().expect("disks");
        let apart = disks.iter().find(|d| d["serial"] == sides[other].0);
        let apart = apart.expect("it is listed");
        let because = apart["because"].as_str().unwrap_or_default();
        assert!(because.contains("without the other half"), "{apart}");

        // Booted alone it has what was acknowledged there.
        held.boot_with(&[other]);
        held.beats(sides[other].1, 1);
        assert!(!held.knows(sides[truth].1), "{halves:?}");
    }
}
