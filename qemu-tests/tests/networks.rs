//! Networks of a deployment, seen from inside the machines that are on them, and from outside by what is published.
//!
//! Owns: one node, a deployment with two networks, and what becomes of its machines when the deployment changes.
//! Refuses: the packets of a single rule: `crates/net` has those against the real kernel.
#![cfg(test)]

mod tests {
    use std::net::UdpSocket;
    use std::path::PathBuf;
    use std::time::{Duration, Instant};

    use qemu_tests::{Lab, PATIENCE, Setup, WEB_PORT, http, neighbour};
    use serde_json::Value;

    /// Between two questions over UDP, which may be lost.
    const ASK_AGAIN: Duration = Duration::from_millis(500);
    const SERVE: &str = "neighbour udp 53 & neighbour tcp 7 & exec httpd -f -h /www";
    /// Says where it is, whom it finds, and who answers it; then serves.
    const WEB: &str = "ip -o addr | while read n card f address rest; do echo has $card $address; done; \
        ip route | while read to rest; do echo to $to; done; \
        until wget -q -O /dev/null http://db/; do sleep 1; done; echo reached db; \
        until wget -q -O /dev/null http://edge/; do sleep 1; done; echo reached edge; \
        for name in db edge; do nslookup -type=aaaa $name | while read word at; do case $at in fd*) wget -q -O /dev/null http://[$at]/ && \
        echo six $name; esac; done; done; ip -6 route | while read to rest; do echo route6 $to; done; echo told; ";

    struct Stage {
        lab: Lab,
        flist: PathBuf,
    }

    impl Stage {
        fn new() -> Self {
            let lab = Lab::with(&Setup::default(), |_| Ok(())).expect("a node");
            let flist = neighbour::image(lab.command(), lab.directory()).expect("an image");
            Self { lab, flist }
        }

        fn machine(&self, name: &str, program: &str, more: &str) -> String {
            format!(
                "  {name}: {{image: {}, memory: 64Mi, disk: 64Mi, command: [sh, -c, {program:?}], {more}}}\n",
                self.flist.display()
            )
        }

        fn deploy(&self, head: &str, workloads: &[&str]) {
            let yaml = format!("name: shop\n{head}workloads:\n{}", workloads.concat());
            let answer = self.lab.deploy(&yaml).expect("sifr runs");
            answer.must().unwrap_or_else(|e| panic!("{e:#}\n{yaml}"));
        }

        fn says(&self, machine: &str, words: &[&str]) -> Vec<String> {
            let log = self.lab.follow(machine).expect("it is followed");
            let mut lines = Vec::new();
            while !words
                .iter()
                .all(|w| lines.iter().any(|l: &String| l.starts_with(w)))
            {
                let line = log.line();
                lines.push(line.unwrap_or_else(|e| {
                    panic!("{e:#}: {words:?}\n{lines:?}\n{}", self.lab.console())
                }));
            }
            lines
        }

        /// Each of these machines has been started once since the node has booted.
        fn started_once(&self, machines: &[&str]) {
            let status = self.lab.get("shop").expect("a status");
            for machine in machines {
                let of = &status["workloads"][machine];
                assert_eq!(of["restarts"], 0, "{machine}: {status}");
            }
        }
    }

    /// What the program behind a published UDP port answers.
    fn ask_udp(port: u16) -> String {
        let socket = UdpSocket::bind("127.0.0.1:0").expect("a socket");
        socket.connect(("127.0.0.1", port)).expect("an address");
        socket.set_read_timeout(Some(ASK_AGAIN)).expect("set");
        let since = Instant::now();
        loop {
            // Nobody listens there before the machine does: that is an error of the next call.
            let _ = socket.send(b"hello");
            let mut packet = [0; 64];
            if let Ok(length) = socket.recv(&mut packet) {
                return String::from_utf8_lossy(&packet[..length]).into_owned();
            }
            assert!(since.elapsed() < PATIENCE, "nobody answers on UDP");
        }
    }

    /// Packets of that kind that the node has refused to a machine, as the owner reads it.
    fn refused(stage: &Stage, machine: &str, kind: &str) -> u64 {
        let answer = stage.lab.sifr(&["--output", "json", "node", "refused"]);
        let text = answer
            .expect("sifr runs")
            .must()
            .expect("it answers")
            .stdout;
        let all: Vec<Value> = serde_json::from_str(&text).expect("JSON");
        let is = |one: &&Value| one["workload"] == machine && one["kind"] == kind;
        let found = all.iter().find(is);
        found.map_or(0, |one| one["packets"].as_u64().expect("a count"))
    }

    /// A machine that spoofs, scans and floods: each of it is counted as what it is, and nobody beside it notices.
    fn whatever_a_guest_tries_is_counted_and_hurts_nobody(stage: &Stage, others: &[&str]) {
        let tries = "neighbour attack eth0; for to in 10.0.2.2 10.0.2.15 192.168.0.1; do nc -w 2 $to 7443 </dev/null; done; \
            nc -w 2 169.254.169.254 80 </dev/null; nc -w 2 10.129.0.2 80 </dev/null; \
            gw=$(ip route | cut -d ' ' -f 3 | while read g; do echo $g; break; done); nc -w 2 $gw 7443 </dev/null; \
            neighbour flood 203.0.113.9; echo tried all; sleep 100000";
        let evil = stage.machine("evil", tries, "networks: [front]");
        let all = [others, &[evil.as_str()]].concat();
        // A neighbour in the same network has a connection, from before to after.
        let log = stage.lab.follow("shop/edge").expect("it is followed");
        log.wait_for("beat").expect("it is connected");
        stage.deploy("", &all);
        stage.says("shop/evil", &["tried all"]);
        log.so_far();
        log.wait_for("beat").expect("it goes on");
        let all = stage.lab.logs("shop/edge").expect("its log");
        assert!(!all.contains("broken"), "{all}");
        for kind in [
            "mac",
            "arp",
            "address",
            "neighbour",
            "multicast",
            "dhcp",
            "router",
            "frame",
            "node",
            "metadata",
            "tenants",
            "private",
            "connections",
        ] {
            let packets = refused(stage, "evil", kind);
            println!("{kind}: {packets}");
            assert!(packets > 0, "{kind} was not counted");
        }
        assert_eq!(refused(stage, "edge", "mac"), 0);
        assert!(
            http::page(stage.lab.web, "/")
                .expect("a page")
                .contains("It works")
        );
        assert_eq!(ask_udp(stage.lab.web), "heard hello");
    }

    #[test]
    fn machines_are_on_networks_and_a_change_restarts_only_who_is_concerned() {
        let stage = Stage::new();
        let networks =
            "  front: {network: {subnet: 10.200.7.0/24}}\n  back: {network: {internal: true}}\n";
        let db = stage.machine("db", SERVE, "networks: [back]");
        let web = |ports: &str| {
            let program = format!("{WEB}{SERVE}");
            let on = "networks: [{network: front, address: 10.200.7.80}, back]";
            stage.machine("web", &program, &format!("{on}, ports: [{ports}]"))
        };
        let page = format!("'{WEB_PORT}:80'");
        let hold = format!("neighbour hold 10.200.7.80 7 & {SERVE}");
        let edge = stage.machine("edge", &hold, "networks: [front]");
        stage.deploy("", &[networks, &db, &web(&page), &edge]);

        machines_reach_whom_they_share_a_network_with(&stage);
        traces_say_what_the_machines_have_found(&stage);
        the_node_shows_its_links_and_routes(&stage);
        let both = format!("{page}, '{WEB_PORT}:53/udp'");
        changes_restart_nobody_else(&stage, networks, &db, &web(&both), &edge);
        let others = [networks, &db, &web(&both), &edge];
        whatever_a_guest_tries_is_counted_and_hurts_nobody(&stage, &others);
    }

    /// As the node's kernel has them: the port by which it was reached just now, the way out, and a link to each network.
    fn the_node_shows_its_links_and_routes(stage: &Stage) {
        let told = |args: &[&str]| {
            let answer = stage.lab.sifr(args).expect("sifr runs").must();
            answer.expect("told").stdout
        };
        let json = |what| {
            let text = told(&["--output", "json", "node", what]);
            serde_json::from_str::<serde_json::Value>(&text).expect("JSON")
        };
        let links = json("links");
        let links = links.as_array().expect("a list");
        let port = links.iter().find(|link| link["name"] == "eth0");
        let port = port.expect("the node's port");
        assert_eq!(port["state"], "up");
        assert!(port["received"]["bytes"].as_u64() > Some(0), "{port}");
        let front = links
            .iter()
            .find(|l| l["kind"]["subnet"] == "10.200.7.0/24");
        let front = front.expect("a link to the network");
        let routes = json("routes");
        let all = routes.as_array().expect("a list");
        assert_eq!(all[0]["gateway"], "10.0.2.2");
        let inside = all.iter().find(|r| r["destination"] == "10.200.7.0/24");
        assert_eq!(inside.expect("a route to it")["link"], front["name"]);
        let networks = told(&["network", "get", "shop"]);
        assert!(networks.contains("10.200.7.80"), "{networks}");
        let file = stage.lab.directory().join("back.pcapng");
        let to = file.to_str().expect("a path");
        let back = ["network", "capture", "shop/web", "--network", "back"];
        told(&[&back[..], &["-w", to, "--for", "1s"]].concat());
        let frames = std::fs::read(&file).expect("a capture");
        assert_eq!(
            frames.get(..4),
            Some(&[0x0a, 0x0d, 0x0d, 0x0a][..]),
            "pcapng"
        );
        let metrics = told(&["node", "metrics"]);
        assert!(
            metrics.contains("sifr_link_up{link=\"eth0\"} 1"),
            "{metrics}"
        );
    }

    /// What `sifr network trace` answers: how it ends, and the chain of the rule that decided.
    fn trace(stage: &Stage, from: &str, to: &str, port: u16) -> (String, String) {
        let port = port.to_string();
        let line = [
            "--output", "json", "network", "trace", from, to, "--tcp", &port,
        ];
        let answer = stage.lab.sifr(&line).expect("sifr runs");
        let text = answer.must().expect("it answers").stdout;
        let trace: Value = serde_json::from_str(&text).expect("JSON");
        let steps = trace["steps"].as_array().expect("steps");
        let chains = steps.last().map(|step| step["chains"].to_string());
        let outcome = trace["outcome"].as_str().expect("an outcome");
        (outcome.to_owned(), chains.unwrap_or_default())
    }

    fn traces_say_what_the_machines_have_found(stage: &Stage) {
        let page = WEB_PORT;
        for (from, to, port, outcome, chain) in [
            ("shop/web", "db", 80, "delivered", "from-tap"),
            ("shop/web", "198.51.100.7", 80, "leaves", "translated"),
            ("outside", "shop/web", page, "delivered", "forward"),
            ("outside", "shop/web", 9, "dropped", "input"),
            ("shop/db", "198.51.100.7", 80, "refused", "outside"),
            ("shop/db", "10.200.7.80", 80, "refused", "tenants"),
            ("shop/edge", "10.0.2.2", 7443, "refused", "private"),
            ("shop/edge", "db", 80, "nowhere", ""),
        ] {
            let (ends, by) = trace(stage, from, to, port);
            assert!(
                ends == outcome && by.contains(chain),
                "{from} to {to} {port}: {ends} by {by}"
            );
        }
    }

    fn machines_reach_whom_they_share_a_network_with(stage: &Stage) {
        let said = stage.says("shop/web", &["reached db", "reached edge", "told"]);
        let has = |text: &str| said.iter().any(|line| line.starts_with(text));
        assert!(has("has eth0 10.200.7.80/24"), "{said:?}");
        assert!(has("has eth1 10.") && has("to default"), "{said:?}");
        assert!(has("six db") && has("six edge"), "{said:?}");
        assert!(has("has eth0 fd") && has("has eth1 fd"), "{said:?}");
        let defaults = said.iter().filter(|line| *line == "to default").count();
        assert_eq!(defaults, 1, "{said:?}");
        assert!(
            http::page(stage.lab.web, "/")
                .expect("a page")
                .contains("It works")
        );
        let status = stage.lab.get("shop").expect("a status");
        let networks = &status["networks"];
        assert_eq!(networks["front"]["subnet"], "10.200.7.0/24", "{status}");
        assert_eq!(networks["front"]["machines"]["web"], "10.200.7.80");
        let back = networks["back"]["machines"].as_object().expect("machines");
        let names: Vec<&String> = back.keys().collect();
        assert_eq!(names, ["db", "web"]);
    }

    fn changes_restart_nobody_else(stage: &Stage, networks: &str, db: &str, web: &str, edge: &str) {
        stage.started_once(&["db", "edge", "web"]);
        // A port of the other protocol, a network, a machine that tries what it must not reach, by another's address too.
        let status = stage.lab.get("shop").expect("a status");
        let of_db = status["networks"]["back"]["machines"]["db"]
            .as_str()
            .expect("an address");
        let program = format!(
            "nslookup db >/dev/null 2>&1 && echo FOUND db; nc -w 3 {of_db} 80 </dev/null && echo OPEN db; \
             nc -w 3 10.200.7.80 80 </dev/null && echo OPEN web; wget -q -O /dev/null http://edge/ && echo OPEN edge; \
             echo tried; sleep 100000"
        );
        let spy = stage.machine("spy", &program, "networks: [side]");
        let more = "  side: {network: }\n";
        stage.deploy("", &[networks, more, db, web, edge, &spy]);
        let said = stage.says("shop/spy", &["tried"]);
        assert!(
            !said
                .iter()
                .any(|l| l.starts_with("OPEN") || l.starts_with("FOUND")),
            "{said:?}"
        );
        assert_eq!(ask_udp(stage.lab.web), "heard hello");
        stage.started_once(&["db", "edge", "spy", "web"]);
        // All of it goes again, and what was internal is open.
        let open = networks.replace("internal: true", "internal: false");
        stage.deploy("remove: [spy, side]\n", &[&open, db, web, edge]);
        stage.started_once(&["db", "edge", "web"]);
        // Over a restart of the agent too.
        let killed = stage
            .lab
            .sifr(&["node", "drill", "node"])
            .expect("sifr runs");
        killed.must().expect("killed");
        assert_eq!(ask_udp(stage.lab.web), "heard hello");
        assert!(
            http::page(stage.lab.web, "/")
                .expect("a page")
                .contains("It works")
        );
        stage.started_once(&["db", "edge", "web"]);
    }
}
