//! A network across three nodes, as machines on it and its owner see it.
//!
//! Owns: three nodes on one switch, and what becomes of their network when one dies, moves, or is no longer of it.
//! Refuses: the changes of a single link: `crates/net` has those.
#![cfg(test)]

mod tests {
    use std::path::{Path, PathBuf};
    use std::time::{Duration, Instant};

    use image::qemu::{Boot, Card, Link, Machine, Net};
    use qemu_tests::switch::Switch;
    use qemu_tests::{Follower, Lab, PATIENCE, Setup, busybox};
    use serde_json::Value;
    use types::Bytes;

    /// Between two questions about what nobody tells.
    const ASK_AGAIN: Duration = Duration::from_secs(1);

    /// Says whenever another machine comes or goes, by name. Not by a connection: busybox's nc waits for ever for the end of one
    /// whose other side has lost its power.
    const PROGRAM: &str = "echo began $(cat /proc/sys/kernel/random/boot_id); echo mtu $(cat /sys/class/net/eth0/mtu); for other in $OTHERS; do ( \
        was=; while :; do \
        if ping -c 1 -w 3 $other >/dev/null 2>&1; then now=up; else now=down; sleep 1; fi; \
        if [ \"$now\" != \"$was\" ]; then echo $other is $now; was=$now; fi; \
        if [ $now = up ]; then sleep 1; fi; done ) & done; wait";

    /// All that is said of the node's own network.
    fn options(machine: &mut Machine, address: &str) {
        let told = format!("sifr.net.eth0.dhcp=on sifr.net.eth1.address={address}/24");
        if let Boot::Kernel { arguments, .. } = &mut machine.boot {
            let words = arguments
                .split(' ')
                .filter(|word| !word.starts_with("sifr.net."));
            let words: Vec<&str> = words.chain(told.split(' ')).collect();
            *arguments = words.join(" ");
        }
    }

    struct Stage {
        labs: Vec<Lab>,
        flist: PathBuf,
    }

    const NAMES: [(&str, &str); 3] = [("n1", "a"), ("n2", "b"), ("n3", "c")];

    impl Stage {
        fn new() -> Self {
            let switch = Switch::lay().expect("a switch");
            let setup = Setup {
                memory: Bytes::mib(768),
                ..Setup::default()
            };
            let mut labs: Vec<Lab> = Vec::new();
            for (number, (name, _)) in (1..).zip(NAMES) {
                let lab = match labs.first() {
                    None => Lab::named(name, &setup),
                    Some(first) => Lab::beside(first, name, &setup),
                };
                let mut lab = lab.expect("a machine");
                let machine = lab.machine();
                machine.nets.push(Net {
                    card: Card::Virtio,
                    mac: format!("02:00:00:00:77:0{number}").parse().ok(),
                    link: Link::Switch { port: switch.port },
                });
                options(machine, &format!("192.168.77.{number}"));
                lab.switch_on().expect("QEMU");
                labs.push(lab);
            }
            for lab in &mut labs {
                lab.come_up().expect("a node");
                lab.learn_key().expect("known");
            }
            let flist = busybox(labs[0].command(), labs[0].directory()).expect("an image");
            Self { labs, flist }
        }

        /// On as many nodes.
        fn deploy(&self, nodes: usize) {
            let yaml = yaml(&self.flist, nodes);
            let answer = self.labs[0].deploy(&yaml).expect("sifr runs");
            answer.must().unwrap_or_else(|e| panic!("{e:#}\n{yaml}"));
        }

        fn follow(&self, machine: &str) -> Follower {
            self.labs[0]
                .follow(&format!("shop/{machine}"))
                .expect("it is followed")
        }

        /// As one node has it.
        fn peers(&self, node: &str) -> Value {
            let words = ["--output", "json", "--node", node, "get", "shop"];
            let answer = self.labs[0].sifr(&words).expect("sifr runs");
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

        fn consoles(&self) -> String {
            self.labs
                .iter()
                .map(Lab::console)
                .collect::<Vec<_>>()
                .join("\n----\n")
        }

        fn says(&self, log: &Follower, word: &str) {
            log.wait_for(word)
                .unwrap_or_else(|e| panic!("{e:#}: {word}\n{}", self.consoles()));
        }
    }

    fn yaml(flist: &Path, nodes: usize) -> String {
        let names = &NAMES[..nodes];
        let listed: Vec<&str> = names.iter().map(|(node, _)| *node).collect();
        let mut yaml = format!(
            "name: shop\nworkloads:\n  net: {{network: {{nodes: [{}]}}}}\n",
            listed.join(", ")
        );
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
        let mut stage = Stage::new();
        stage.deploy(3);
        let mut logs = NAMES.map(|(_, machine)| stage.follow(machine));
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
                    panic!("{e:#}: {machine}: {lines:?}\n{}", stage.consoles())
                }));
            }
        }
        let heard = |peer: &Value| peer["handshake_s"].is_u64();
        let peers = stage.seen("n1", |all| heard(&all["n2"]) && heard(&all["n3"]));
        println!("all three talk: {peers}");
        a_node_dies_and_comes_back_elsewhere(&mut stage, &mut logs, &first);
        a_node_that_is_removed_is_not_heard(&stage, &logs);
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

    fn a_node_dies_and_comes_back_elsewhere(
        stage: &mut Stage,
        logs: &mut [Follower; 3],
        first: &str,
    ) {
        stage.labs[2].power_cut().expect("no power");
        stage.says(&logs[0], "c is down");
        options(stage.labs[2].machine(), "192.168.77.33");
        let since = Instant::now();
        stage.labs[2].power_on().expect("a node");
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
        // What a log had not written out went with the power, so that it is read from its beginning.
        logs[2] = stage.follow("c");
        while began(&logs[2]) == first {}
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
            let answer = stage.labs[0].sifr(&words).expect("sifr runs");
            let text = answer.must().expect("a status").stdout;
            let status: Value = serde_json::from_str(&text).expect("JSON");
            assert_eq!(status["workloads"][machine]["restarts"], 0, "{status}");
        }
    }
}
