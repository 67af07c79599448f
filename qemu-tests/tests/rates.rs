//! Volumes among others: what a limit lets through, who may read, what a deletion gives back, an agent that dies in a change.
//!
//! Owns: one node, and programs that say what they see of their own disks. Refuses: time as a figure: a machine that is slow
//! keeps a limit as well.
#![cfg(test)]

mod tests {
    use std::path::PathBuf;
    use std::thread;
    use std::time::{Duration, Instant};

    use qemu_tests::{Lab, PATIENCE, Setup, busybox};
    use serde_json::Value;

    const RATE: u64 = 20;
    /// Between two looks: nothing tells from outside what the pool has got back.
    const LOOK_AGAIN: Duration = Duration::from_millis(300);
    /// Appends and flushes, and says what its volume's disk has done by then, and by its own clock. vda and vdb are the image and
    /// its layer.
    const WORK: &str = "mount -t sysfs s /sys 2>/dev/null; look() { read r x x x w x < /sys/block/vdc/stat; read up x < /proc/uptime; \
        echo $1 $((r+w)) $up; }; look before; for i in 1 2 3 4 5 6 7 8 9 10; do for j in 1 2 3 4 5 6 7 8 9 10; do \
        echo $i$j >>/data/all; sync; done; done; look after; sleep 100000";

    /// As the volume says it: `1Mi`.
    const BYTES: u64 = 1 << 20;
    /// Writes for ever, and says after each MiB how many bytes its volume's disk has moved, by its own clock, and how many one
    /// operation moves at most.
    const STREAM: &str = "mount -t sysfs s /sys 2>/dev/null; read m < /sys/block/vdc/queue/max_sectors_kb; \
        while dd if=/dev/zero of=/data/all bs=1M count=1 conv=fsync 2>/dev/null; do \
        read x x r x x x w x < /sys/block/vdc/stat; read up x < /proc/uptime; echo moved $(((r+w)*512)) $up $((m*1024)); done";

    struct Stage {
        lab: Lab,
        flist: PathBuf,
    }

    impl Stage {
        fn new() -> Self {
            let lab = Lab::with(&Setup::default(), |_| Ok(())).expect("a node");
            let flist = busybox(lab.command(), lab.directory()).expect("an image");
            Self { lab, flist }
        }

        fn machine(&self, name: &str, mount: &str, program: &str) -> String {
            format!(
                "  {name}:\n    image: {}\n    memory: 64Mi\n    disk: 64Mi\n    mounts: [\"{mount}\"]\n    command: [sh, -c, {program:?}]\n",
                self.flist.display()
            )
        }

        fn deploy(&self, name: &str, workloads: &str) {
            let yaml = format!("name: {name}\nworkloads:\n{workloads}");
            self.lab
                .deploy(&yaml)
                .expect("sifr runs")
                .must()
                .expect("deployed");
        }

        fn says(&self, target: &str, word: &str) -> String {
            let log = self.lab.follow(target).expect("it is followed");
            loop {
                let line = log
                    .line()
                    .unwrap_or_else(|e| panic!("{word}: {e:#}\n{}", self.lab.console()));
                if line.starts_with(word) {
                    return line;
                }
            }
        }

        fn volume(&self, name: &str) -> Value {
            self.lab.get(name).expect("a status")["volumes"]["data"].take()
        }
    }

    fn numbers(line: &str) -> (f64, f64) {
        let mut words = line
            .split_whitespace()
            .skip(1)
            .map(|w| w.parse().expect("a number"));
        let mut next = || words.next().expect("two numbers");
        (next(), next())
    }

    #[test]
    fn limits_readers_room_and_a_killed_agent() {
        let stage = Stage::new();
        a_limit_holds_as_the_guest_counts_it(&stage);
        a_bandwidth_holds_and_who_writes_for_ever_starves_nobody(&stage);
        several_read_what_one_has_written(&stage);
        what_a_program_deletes_comes_back_to_the_pool(&stage);
        an_agent_that_is_killed_in_a_change_finishes_it(&stage);
    }

    /// At any time no more than a burst and the rate has been done: true of any machine, however slow, and a volume without a
    /// limit does ten times as much while it is written to.
    fn a_limit_holds_as_the_guest_counts_it(stage: &Stage) {
        let volume = format!(
            "  data: {{volume: {{size: 64Mi, limits: {{operations_per_second: {RATE}}}}}}}\n"
        );
        stage.deploy(
            "slow",
            &(volume + &stage.machine("main", "data:/data", WORK)),
        );
        let (before, from) = numbers(&stage.says("slow", "before"));
        let (after, to) = numbers(&stage.says("slow", "after"));
        let (done, seconds) = (after - before, to - from);
        assert!(
            done >= 100.0,
            "a hundred flushed appends are {done} operations"
        );
        // A burst is a second's worth, and one operation more may have begun.
        let most = f64::from(u32::try_from(RATE).expect("small")) * (seconds + 1.0) + 1.0;
        assert!(done <= most, "{done} operations in {seconds} s");
        stage
            .lab
            .sifr(&["delete", "slow", "--with-volumes"])
            .expect("sifr runs")
            .must()
            .expect("deleted");
        stage
            .lab
            .wait("slow", "deleted")
            .expect("sifr runs")
            .must()
            .expect("gone");
    }

    /// One has a limit of bytes, one has none, and neither ends; a third does its work beside them, and comes to its end.
    fn a_bandwidth_holds_and_who_writes_for_ever_starves_nobody(stage: &Stage) {
        let volume = |limits: &str| format!("  data: {{volume: {{size: 64Mi{limits}}}}}\n");
        let narrow = volume(", limits: {bytes_per_second: 1Mi}");
        stage.deploy(
            "narrow",
            &(narrow + &stage.machine("main", "data:/data", STREAM)),
        );
        stage.deploy(
            "hog",
            &(volume("") + &stage.machine("main", "data:/data", STREAM)),
        );
        let log = stage.lab.follow("narrow").expect("it is followed");
        let first = log.line().expect("it writes");
        stage.says("hog", "moved");
        stage.deploy(
            "beside",
            &(volume("") + &stage.machine("main", "data:/data", WORK)),
        );
        stage.says("beside", "after");
        let mut all = vec![first];
        // Three bursts' worth, however much of it has come by now.
        while all.len() < 4 {
            all.push(log.line().expect("it goes on"));
        }
        all.extend(log.so_far());
        let words = |line: &str| -> Vec<f64> {
            let words = line.split_whitespace().skip(1);
            words.map(|word| word.parse().expect("a number")).collect()
        };
        let (from, to) = (words(&all[0]), words(&all[all.len() - 1]));
        let (bytes, seconds) = (to[0] - from[0], to[1] - from[1]);
        let most = f64::from(u32::try_from(BYTES).expect("small")) * (seconds + 1.0) + to[2];
        assert!(bytes >= 3e6, "{bytes}: nothing was limited");
        assert!(bytes <= most, "{bytes} bytes in {seconds} s");
        println!("{bytes} bytes in {seconds} s, {most} at most");
        for name in ["narrow", "hog", "beside"] {
            let deleted = stage.lab.sifr(&["delete", name, "--with-volumes"]);
            deleted.expect("sifr runs").must().expect("deleted");
            let gone = stage.lab.wait(name, "deleted").expect("sifr runs");
            gone.must().expect("gone");
        }
    }

    fn several_read_what_one_has_written(stage: &Stage) {
        let volume = "  data: {volume: {size: 64Mi}}\n";
        let writer = stage.machine(
            "writer",
            "data:/data",
            "echo written >/data/word; sync; echo ready; sleep 100000",
        );
        stage.deploy("many", &(volume.to_owned() + &writer));
        stage.says("many", "ready");
        let read = "read w </data/word; echo have $w; touch /data/x || echo refused; sleep 100000";
        let readers = ["one", "two"]
            .map(|name| stage.machine(name, "data:/data:ro", read))
            .concat();
        let both = stage
            .lab
            .deploy(&format!(
                "name: many\nworkloads:\n{volume}{writer}{readers}"
            ))
            .expect("sifr runs");
        assert!(
            both.code != 0,
            "one writes and others read: {}",
            both.stdout
        );
        let yaml = format!("name: many\nremove: [writer]\nworkloads:\n{volume}{readers}");
        stage
            .lab
            .deploy(&yaml)
            .expect("sifr runs")
            .must()
            .expect("deployed");
        for name in ["many/one", "many/two"] {
            assert_eq!(stage.says(name, "have"), "have written");
            stage.says(name, "refused");
        }
        let volume = stage.volume("many");
        assert_eq!(
            volume["attached"].as_array().map(Vec::len),
            Some(2),
            "{volume}"
        );
        stage
            .lab
            .sifr(&["delete", "many", "--with-volumes"])
            .expect("sifr runs")
            .must()
            .expect("deleted");
        stage
            .lab
            .wait("many", "deleted")
            .expect("sifr runs")
            .must()
            .expect("gone");
    }

    fn what_a_program_deletes_comes_back_to_the_pool(stage: &Stage) {
        let program = "if test -e /data/all; then rm /data/all; sync; echo empty; else dd if=/dev/zero of=/data/all bs=1M count=64; \
            sync; echo full; fi; sleep 100000";
        let volume = "  data: {volume: {size: 256Mi}}\n";
        let machine = stage.machine("main", "data:/data", program);
        stage.deploy("room", &(volume.to_owned() + &machine));
        stage.says("room", "full");
        let used = || {
            let volume = stage.volume("room");
            let text = volume["used"].as_str().expect("what it uses").to_owned();
            text.parse::<types::Bytes>().expect("a quantity").as_mib()
        };
        assert!(used() >= 64, "{} MiB", used());
        stage
            .lab
            .sifr(&["restart", "room"])
            .expect("sifr runs")
            .must()
            .expect("restarted");
        stage.says("room", "empty");
        let since = Instant::now();
        while used() >= 64 {
            assert!(since.elapsed() < PATIENCE, "{} MiB stay taken", used());
            thread::sleep(LOOK_AGAIN);
        }
    }

    fn an_agent_that_is_killed_in_a_change_finishes_it(stage: &Stage) {
        thread::scope(|scope| {
            let snapshot = || stage.lab.sifr(&["volume", "snapshot", "room/data@kept"]);
            let asked = scope.spawn(snapshot);
            let killed = stage
                .lab
                .sifr(&["node", "drill", "node"])
                .expect("sifr runs");
            killed.must().expect("killed");
            // It may have been refused, acknowledged or left without an answer.
            asked.join().expect("a thread").expect("sifr runs");
        });
        let taken = |name: &str| stage.volume("room")["snapshots"][name]["taken"] == true;
        let since = Instant::now();
        while stage.volume("room")["snapshots"]["kept"].is_object() && !taken("kept") {
            assert!(since.elapsed() < PATIENCE, "{}", stage.volume("room"));
            thread::sleep(LOOK_AGAIN);
        }
        let again = stage.lab.sifr(&["volume", "snapshot", "room/data@after"]);
        again.expect("sifr runs").must().expect("taken");
        assert!(taken("after"));
    }
}
