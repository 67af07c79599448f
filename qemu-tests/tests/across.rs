//! Names of ingress that lead to machines on two nodes, as clients of either node find them.
//!
//! Owns: two nodes on one switch with a machine each, names that one or both serve, and what clients notice when the node of a machine
//! dies and comes back. Refuses: what one node does alone (`ingress` has that), and the network between them (`mesh`).
#![cfg(test)]

mod tests {
    use std::collections::BTreeSet;
    use std::io::{Read, Write};
    use std::path::PathBuf;
    use std::time::{Duration, Instant};

    use qemu_tests::fleet::Fleet;
    use qemu_tests::visitor::{self, who};
    use qemu_tests::{PATIENCE, neighbour};
    use rustls::pki_types::CertificateDer;
    use serde_json::{Value, json};

    /// Between two tries: nothing tells from outside that a machine serves.
    const PAUSE: Duration = Duration::from_millis(200);
    const NODES: [&str; 2] = ["n1", "n2"];

    struct Stage {
        fleet: Fleet,
        flist: PathBuf,
        /// Of each node: ports of this machine that lead to its 80 and 443.
        doors: Vec<(u16, u16)>,
        root: CertificateDer<'static>,
    }

    impl Stage {
        fn new() -> Self {
            let mut doors = Vec::new();
            let fleet = Fleet::on_a_switch_and(&NODES, |_, machine| {
                let mut forward = |port| machine.forward(port).expect("a port");
                doors.push((forward(80), forward(443)));
            });
            let fleet = fleet.expect("two nodes");
            let first = &fleet.labs[0];
            let flist = neighbour::image(first.command(), first.directory()).expect("an image");
            let root = visitor::certificate(first.directory(), "shop", "shop.test");
            Self {
                root: root.expect("a certificate"),
                fleet,
                flist,
                doors,
            }
        }

        fn deploy(&self) {
            let machine = |(name, node): (&str, &str)| {
                format!(
                    "  {name}: {{image: {}, memory: 64Mi, disk: 64Mi, on: {node}, networks: [net], command: [neighbour, web, {name}, 8080]}}\n",
                    self.flist.display()
                )
            };
            let files = self.fleet.labs[0].directory().display();
            let to = "to: [one:8080, two:8080], health: {path: /up, interval_s: 1}";
            let yaml = format!(
                "name: shop\ningress:\n  both.test: {{{to}}}\n  first.test: {{{to}, on: n1}}\n  far.test: {{to: two:8080, on: [n1]}}\n\
                 \x20 shop.test: {{{to}, tls: {{certificate: {files}/shop.pem, key: {files}/shop.key}}}}\n\
                 workloads:\n  net: {{network: {{nodes: [n1, n2]}}}}\n{}{}",
                machine(("one", "n1")),
                machine(("two", "n2"))
            );
            let answer = self.fleet.labs[0].deploy(&yaml).expect("sifr runs");
            answer.must().unwrap_or_else(|e| panic!("{e:#}\n{yaml}"));
        }

        /// At a node, from 0 on.
        fn ask(&self, node: usize, host: &str) -> String {
            visitor::ask(self.doors[node].0, host, "/", "").expect("connected")
        }

        /// The same by TLS.
        fn ask_tls(&self, node: usize) -> String {
            let roots = [self.root.clone()];
            let config = visitor::trusting(&roots, &[b"http/1.1"]).expect("a client");
            let stream = visitor::tls(self.doors[node].1, "shop.test", config);
            let mut stream = stream.expect("trusted");
            let request = "GET / HTTP/1.1\r\nhost: shop.test\r\nconnection: close\r\n\r\n";
            stream.write_all(request.as_bytes()).expect("asked");
            let mut text = String::new();
            let _ = stream.read_to_string(&mut text);
            text
        }

        /// Asks until all of these have answered.
        fn hears(&self, what: &str, ask: impl Fn() -> String, all: &[&str]) {
            let since = Instant::now();
            let mut seen = BTreeSet::new();
            loop {
                let answer = ask();
                seen.extend(who(&answer).map(str::to_owned));
                if all.iter().all(|name| seen.contains(*name)) {
                    println!("{what}: {seen:?} after {:?}", since.elapsed());
                    return;
                }
                let consoles = || self.fleet.consoles();
                assert!(
                    since.elapsed() < PATIENCE,
                    "{what}: {seen:?}: {answer}\n{}",
                    consoles()
                );
                std::thread::sleep(PAUSE);
            }
        }

        fn sifr(&self, words: &[&str]) -> String {
            let answer = self.fleet.labs[0].sifr(words).expect("sifr runs");
            answer.must().expect("it answers").stdout
        }

        /// As a node has it.
        fn status(&self, node: &str) -> Value {
            let text = self.sifr(&["--output", "json", "--node", node, "get", "shop"]);
            serde_json::from_str(&text).expect("JSON")
        }

        /// Every request at the first node is answered, all that time. Gives who answered last, and the longest wait.
        fn all_are_answered(&self, during: &str, host: &str, time: Duration) -> String {
            let since = Instant::now();
            let (mut seen, mut longest, mut last) = (0, Duration::ZERO, String::new());
            while since.elapsed() < time {
                let asked = Instant::now();
                let answer = self.ask(0, host);
                longest = longest.max(asked.elapsed());
                assert!(
                    answer.starts_with("HTTP/1.1 200"),
                    "{during}, after {seen}: {answer}\n{}",
                    self.fleet.consoles()
                );
                last = who(&answer).unwrap_or_default().to_owned();
                seen += 1;
                std::thread::sleep(PAUSE);
            }
            println!("{during}: {seen} requests answered, the slowest within {longest:?}");
            last
        }
    }

    #[test]
    fn a_name_leads_to_machines_on_two_nodes_and_serves_on_while_one_of_them_is_away() {
        let mut stage = Stage::new();
        stage.deploy();
        both_nodes_serve_and_lead_to_both_machines(&stage);
        the_owner_sees_which_node_has_which(&stage);
        the_agent_dies_and_the_other_nodes_machine_is_not_lost(&stage);
        a_node_dies_and_the_other_serves(&mut stage);
        it_comes_back_without_the_client(&mut stage);
    }

    fn both_nodes_serve_and_lead_to_both_machines(stage: &Stage) {
        let both = ["one", "two"];
        for (at, node) in NODES.iter().enumerate() {
            stage.hears(
                &format!("both.test at {node}"),
                || stage.ask(at, "both.test"),
                &both,
            );
            stage.hears(
                &format!("shop.test at {node}, by TLS"),
                || stage.ask_tls(at),
                &both,
            );
        }
        stage.hears("first.test at n1", || stage.ask(0, "first.test"), &both);
        stage.hears("far.test at n1", || stage.ask(0, "far.test"), &["two"]);
        for host in ["first.test", "far.test"] {
            let answer = stage.ask(1, host);
            assert!(answer.starts_with("HTTP/1.1 404"), "{host} at n2: {answer}");
        }
    }

    fn the_owner_sees_which_node_has_which(stage: &Stage) {
        for (node, other) in [
            ("n1", json!({"two:8080": "n2"})),
            ("n2", json!({"one:8080": "n1"})),
        ] {
            let status = stage.status(node);
            let site = &status["ingress"]["both.test"];
            assert_eq!(site["nodes"], other, "{status}");
            assert_eq!(
                site["backends"].as_object().map(|all| all.len()),
                Some(2),
                "{status}"
            );
        }
        let table = stage.sifr(&["--node", "n1", "get", "shop"]);
        assert!(table.contains("two:8080 on n2"), "{table}");
        let metrics = stage.sifr(&["--node", "n1", "metrics", "shop"]);
        let line = |line: &&str| line.contains("backend=\"two:8080\",node=\"n2\"}");
        assert!(metrics.lines().any(|l| line(&l)), "{metrics}");
    }

    fn the_agent_dies_and_the_other_nodes_machine_is_not_lost(stage: &Stage) {
        stage.sifr(&["--node", "n1", "node", "drill", "node"]);
        let last = stage.all_are_answered("the agent dies", "far.test", Duration::from_secs(10));
        assert_eq!(last, "two");
    }

    fn a_node_dies_and_the_other_serves(stage: &mut Stage) {
        stage.fleet.labs[1].power_cut().expect("no power");
        let time = Duration::from_secs(30);
        let last = stage.all_are_answered("n2 is dead", "both.test", time);
        assert_eq!(last, "one");
        let since = Instant::now();
        loop {
            let answer = stage.ask(0, "far.test");
            if answer.starts_with("HTTP/1.1 503") && answer.contains("retry-after") {
                break;
            }
            assert!(since.elapsed() < PATIENCE, "{answer}");
        }
        let status = stage.status("n1");
        let backends = &status["ingress"]["both.test"]["backends"];
        assert_eq!(
            *backends,
            json!({"one:8080": true, "two:8080": false}),
            "{status}"
        );
    }

    fn it_comes_back_without_the_client(stage: &mut Stage) {
        stage.fleet.labs[1].power_on().expect("a node");
        stage.hears(
            "both.test at n1 again",
            || stage.ask(0, "both.test"),
            &["two"],
        );
        stage.hears(
            "far.test at n1 again",
            || stage.ask(0, "far.test"),
            &["two"],
        );
        stage.hears(
            "both.test at n2 again",
            || stage.ask(1, "both.test"),
            &["one", "two"],
        );
        stage.hears(
            "shop.test at n2 again, by TLS",
            || stage.ask_tls(1),
            &["one", "two"],
        );
    }
}
