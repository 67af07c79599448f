//! A network across three nodes, as machines on it and its owner see it.
//!
//! Owns: three nodes on one switch, and what becomes of their network when one dies, moves, or is no longer of it.
//! Refuses: the changes of a single link: `crates/net` has those.
#![cfg(test)]

mod tests {
    use std::path::{Path, PathBuf};
    use std::time::{Duration, Instant};

    use qemu_tests::fleet::{self, Fleet};
    use qemu_tests::{Follower, PATIENCE, busybox};
    use serde_json::Value;

    /// Between two questions about what nobody tells.
    const ASK_AGAIN: Duration = Duration::from_secs(1);

    /// Says whenever another machine comes or goes, by name. Not by a connection: busybox's nc waits for ever for the end of one
    /// whose other side has lost its power.
    const PROGRAM: &str = "echo began $(cat /proc/sys/kernel/random/boot_id); echo mtu $(cat /sys/class/net/eth0/mtu); for other in $OTHERS; do ( \
        was=; while :; do \
        if ping -c 1 -w 3 $other >/dev/null 2>&1; then now=up; else now=down; sleep 1; fi; \
        if [ \"$now\" != \"$was\" ]; then echo $other is $now; was=$now; fi; \
        if [ $now = up ]; then sleep 1; fi; done ) & done; wait";

    struct Stage {
        fleet: Fleet,
        flist: PathBuf,
    }

    const NAMES: [(&str, &str); 3] = [("n1", "a"), ("n2", "b"), ("n3", "c")];

    impl Stage {
        fn of(fleet: Fleet) -> Self {
            let first = &fleet.labs[0];
            let flist = busybox(first.command(), first.directory()).expect("an image");
            Self { fleet, flist }
        }

        /// On as many nodes.
        fn deploy(&self, nodes: usize) {
            let listed: Vec<&str> = NAMES[..nodes].iter().map(|(node, _)| *node).collect();
            self.deploy_on(&NAMES[..nodes], &listed.join(", "));
        }

        /// `nodes`: as the file lists them.
        fn deploy_on(&self, names: &[(&str, &str)], nodes: &str) {
            let yaml = yaml(&self.flist, names, nodes);
            let answer = self.fleet.labs[0].deploy(&yaml).expect("sifr runs");
            answer.must().unwrap_or_else(|e| panic!("{e:#}\n{yaml}"));
        }

        fn follow(&self, machine: &str) -> Follower {
            self.fleet.labs[0]
                .follow(&format!("shop/{machine}"))
                .expect("it is followed")
        }

        /// As one node has it.
        fn peers(&self, node: &str) -> Value {
            let words = ["--output", "json", "--node", node, "get", "shop"];
            let answer = self.fleet.labs[0].sifr(&words).expect("sifr runs");
            let text = answer.must().expect("a status").stdout;
            let status: Value = serde_json::from_str(&text).expect("JSON");
            status["networks"]["net"]["peers"].clone()
        }

        /// The same, once it is so. A node looks at its links now and then, and tells nobody.
        fn seen(&self, node: &str, is: impl Fn(&Value) -> bool) -> Value {
            let since = Instant::now();
            loop {
                let peers = self.peers(node);
                if is(&peers) {
                    return peers;
                }
                assert!(since.elapsed() < PATIENCE, "{peers}");
                std::thread::sleep(ASK_AGAIN);
            }
        }

        fn says(&self, log: &Follower, word: &str) {
            log.wait_for(word)
                .unwrap_or_else(|e| panic!("{e:#}: {word}\n{}", self.fleet.consoles()));
        }
    }

    fn yaml(flist: &Path, names: &[(&str, &str)], nodes: &str) -> String {
        let mut yaml =
            format!("name: shop\nworkloads:\n  net: {{network: {{nodes: [{nodes}]}}}}\n");
        // Each looks for all others, also for those that are taken out later: nobody is started again for that.
        for (node, machine) in names {
            let others = NAMES.iter().map(|(_, other)| *other);
            let others: Vec<&str> = others.filter(|other| other != machine).collect();
            yaml.push_str(&format!(
                "  {machine}: {{image: {}, memory: 64Mi, disk: 64Mi, on: {node}, networks: [net], env: {{OTHERS: {:?}}}, command: [sh, -c, {PROGRAM:?}]}}\n",
                flist.display(),
                others.join(" "),
            ));
        }
        yaml
    }

    #[test]
    fn machines_on_three_nodes_talk_by_name_and_a_node_that_moves_is_found_and_one_that_is_removed_is_not()
     {
        let fleet = Fleet::on_a_switch(&NAMES.map(|(node, _)| node)).expect("three nodes");
        let mut stage = Stage::of(fleet);
        stage.deploy(3);
        let logs = NAMES.map(|(_, machine)| stage.follow(machine));
        let first = began(&logs[2]);
        for (log, (_, machine)) in logs.iter().zip(NAMES) {
            stage.says(log, "mtu 1420");
            let others: Vec<&str> = NAMES
                .iter()
                .map(|(_, m)| *m)
                .filter(|m| *m != machine)
                .collect();
            let mut lines = Vec::new();
            while !others
                .iter()
                .all(|other| lines.contains(&format!("{other} is up")))
            {
                let line = log.line();
                lines.push(line.unwrap_or_else(|e| {
                    panic!("{e:#}: {machine}: {lines:?}\n{}", stage.fleet.consoles())
                }));
            }
        }
        let heard = |peer: &Value| peer["handshake_s"].is_u64();
        let peers = stage.seen("n1", |all| heard(&all["n2"]) && heard(&all["n3"]));
        println!("all three talk: {peers}");
        a_node_dies_and_comes_back_elsewhere(&mut stage, &logs, &first);
        a_node_that_is_removed_is_not_heard(&stage, &logs);
    }

    /// QEMU's user-mode network is such a NAT: from outside a port is reached that is led inwards, and nothing else. Behind each
    /// of the two is one node, and both have the same address.
    #[test]
    fn a_node_behind_a_nat_begins_and_is_heard_again_after_its_power_was_cut() {
        let mut outside = None;
        let fleet = Fleet::of(&["n1", "n2"], |number, machine| {
            if number == 1 {
                outside = machine.forward(*types::mesh::PORTS.start()).ok();
            }
        });
        let mut stage = Stage::of(fleet.expect("two nodes"));
        let outside = outside.expect("a port before the first");
        let nodes =
            format!("{{node: n1, endpoint: \"10.0.2.2:{outside}\"}}, {{node: n2, endpoint: none}}");
        stage.deploy_on(&NAMES[..2], &nodes);
        let a = stage.follow("a");
        stage.says(&a, "b is up");
        let place = |peers: &Value| peers["n2"]["endpoint"].as_str().map(str::to_owned);
        let first = place(&stage.seen("n1", |all| place(all).is_some()));
        stage.fleet.labs[1].power_cut().expect("no power");
        stage.says(&a, "b is down");
        stage.fleet.labs[1].power_on().expect("a node");
        stage.says(&a, "b is up");
        let second = place(&stage.seen("n1", |all| place(all) != first));
        println!("n2 was heard from {first:?}, and then from {second:?}");
    }

    /// Which start of a machine it is.
    fn began(log: &Follower) -> String {
        loop {
            let line = log.line().expect("it begins");
            if line.starts_with("began ") {
                return line;
            }
        }
    }

    fn a_node_dies_and_comes_back_elsewhere(stage: &mut Stage, logs: &[Follower; 3], first: &str) {
        stage.fleet.labs[2].power_cut().expect("no power");
        stage.says(&logs[0], "c is down");
        fleet::address(stage.fleet.labs[2].machine(), "192.168.77.33");
        let since = Instant::now();
        stage.fleet.labs[2].power_on().expect("a node");
        println!("n3 is ready again after {:?}", since.elapsed());
        for log in &logs[..2] {
            stage.says(log, "c is up");
        }
        println!(
            "n3 is heard under its new address after {:?}",
            since.elapsed()
        );
        stage.seen("n1", |all| {
            let endpoint = all["n3"]["endpoint"].as_str().unwrap_or_default();
            endpoint.starts_with("192.168.77.33:")
        });
        // Its log lost what was not written out yet; whoever follows it hears the new start all the same.
        assert_ne!(began(&logs[2]), first);
        stage.says(&logs[2], "a is up");
    }

    fn a_node_that_is_removed_is_not_heard(stage: &Stage, logs: &[Follower; 3]) {
        let sent = |peers: &Value| peers["n1"]["sent"].as_str().map(str::to_owned);
        let before = sent(&stage.peers("n3"));
        stage.deploy(2);
        stage.says(&logs[0], "c is down");
        stage.says(&logs[1], "c is down");
        stage.says(&logs[2], "a is down");
        let peers = stage.peers("n1");
        assert!(peers["n3"].is_null() && peers["n2"].is_object(), "{peers}");
        // It has not been told, and goes on trying.
        stage.seen("n3", |all| sent(all) != before);
        // Whoever stayed has not noticed.
        let more = logs[0].so_far();
        assert!(!more.contains(&"b is down".to_owned()), "{more:?}");
        for (node, machine) in &NAMES[..2] {
            let words = ["--output", "json", "--node", node, "get", "shop"];
            let answer = stage.fleet.labs[0].sifr(&words).expect("sifr runs");
            let text = answer.must().expect("a status").stdout;
            let status: Value = serde_json::from_str(&text).expect("JSON");
            assert_eq!(status["workloads"][machine]["restarts"], 0, "{status}");
        }
    }
}
