//! IPv6 of machines beyond their network: out under the node's addresses, and in at them.
//!
//! Owns: one node on a network of the test's own, on which the test is the router, and the world behind it. Refuses: the packets of a
//! single rule: `crates/net` has those against the real kernel.
#![cfg(test)]

mod tests {
    use std::io::{Read, Write};
    use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
    use std::path::PathBuf;
    use std::time::{Duration, Instant};

    use image::qemu::{Card, Link, Net};
    use qemu_tests::router::{Announced, Router, TAP};
    use qemu_tests::{Lab, PATIENCE, Setup, neighbour};
    use serde_json::Value;

    /// How long is waited for who must not answer.
    const SILENCE: Duration = Duration::from_secs(2);
    const OPTIONS: &str = "sifr.net.eth0.address=192.0.2.7/24 sifr.net.eth0.gateway=192.0.2.1 sifr.net.eth0.dhcp=off sifr.net.eth0.ra=on";
    const ROUTER: &str = "2001:db8:6::1";
    /// What follows from the card and the router's prefix.
    const NODE: &str = "2001:db8:6:0:5054:ff:fe00:6";
    /// Beyond the owner's site, where the router has it.
    const OUTSIDE: &str = "2001:db8:99::1";

    struct Stage {
        lab: Lab,
        flist: PathBuf,
        router: Router,
    }

    impl Stage {
        /// The router has not spoken yet.
        fn new() -> Self {
            let own = [format!("{ROUTER}/64").parse().expect("an address")];
            let router = Router::lay(&own, usize::MAX).expect("a network; it needs root");
            router.add("192.0.2.1/24").expect("the LAN");
            router.add(&format!("{OUTSIDE}/128")).expect("the outside");
            let setup = Setup {
                arguments: OPTIONS.to_owned(),
                ..Setup::default()
            };
            let lab = Lab::with(&setup, |machine| {
                machine.nets = vec![Net {
                    card: Card::Virtio,
                    mac: Some("52:54:00:00:00:06".parse()?),
                    link: Link::Tap {
                        name: TAP.to_owned(),
                    },
                }];
                Ok(())
            });
            let lab = lab.expect("a node");
            let flist = neighbour::image(lab.command(), lab.directory()).expect("an image");
            Self { lab, flist, router }
        }

        fn machine(&self, name: &str, program: &str, more: &str) -> String {
            format!(
                "  {name}: {{image: {}, memory: 64Mi, disk: 64Mi, command: [sh, -c, {program:?}]{more}}}\n",
                self.flist.display()
            )
        }

        fn deploy(&self, yaml: &str) {
            let answer = self.lab.deploy(yaml).expect("sifr runs");
            answer.must().unwrap_or_else(|e| panic!("{e:#}\n{yaml}"));
        }

        /// How a trace ends.
        fn traced(&self, from: &str, to: &str, port: &str) -> String {
            let line = [
                "--output", "json", "network", "trace", from, to, "--tcp", port,
            ];
            let answer = self.lab.sifr(&line).expect("sifr runs").must();
            let answer = answer.expect("it answers").stdout;
            let trace: Value = serde_json::from_str(&answer).expect("JSON");
            trace["outcome"].as_str().expect("an outcome").to_owned()
        }

        /// Packets of that kind that the node has refused to the machine.
        fn refused(&self, machine: &str, kind: &str) -> u64 {
            let answer = self.lab.sifr(&["--output", "json", "node", "refused"]);
            let answer = answer.expect("sifr runs").must().expect("it answers");
            let all: Vec<Value> = serde_json::from_str(&answer.stdout).expect("JSON");
            let is = |one: &&Value| one["workload"] == machine && one["kind"] == kind;
            let found = all.iter().find(is);
            found.map_or(0, |one| one["packets"].as_u64().expect("a count"))
        }
    }

    fn at(address: &str) -> IpAddr {
        address.parse().expect("an address")
    }

    /// The page that is served there. Nothing tells the outside when the way is there.
    fn page(at: IpAddr, port: u16) -> String {
        let end = Instant::now() + PATIENCE;
        loop {
            match try_page(at, port) {
                Ok(page) if !page.is_empty() => return page,
                other => assert!(Instant::now() < end, "{at}: {other:?}"),
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    fn try_page(at: IpAddr, port: u16) -> std::io::Result<String> {
        let mut stream = TcpStream::connect_timeout(&SocketAddr::new(at, port), SILENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
        let mut page = String::new();
        stream.read_to_string(&mut page)?;
        Ok(page)
    }

    fn closed(at: IpAddr, port: u16) {
        let tried = TcpStream::connect_timeout(&SocketAddr::new(at, port), SILENCE);
        assert!(tried.is_err(), "{at} port {port} is open");
    }

    /// Says whether it has a way, and when that changes; calls the outside, and tries whom it must not reach.
    fn traveller() -> String {
        format!(
            "way() {{ ip -6 route | while read to rest; do case $to in default) echo way; esac; done; }}; \
             httpd -h /www; [ -z \"$(way)\" ] && echo begins without; until [ -n \"$(way)\" ]; do sleep 1; done; echo has one; \
             until nc -w 2 {OUTSIDE} 80 </dev/null; do sleep 1; done; \
             for to in {ROUTER} {NODE} fd00:ec2::254; do nc -w 2 $to 7443 </dev/null && echo OPEN $to; done; echo tried; \
             while [ -n \"$(way)\" ]; do sleep 1; done; echo lost it; sleep 100000"
        )
    }

    #[test]
    fn ipv6_comes_and_goes_with_the_nodes_under_a_machine_that_runs() {
        let stage = Stage::new();
        let outside = TcpListener::bind((OUTSIDE, 80)).expect("a listener");
        let _near = TcpListener::bind((ROUTER, 7443)).expect("a listener");
        let web = stage.machine("web", &traveller(), ", ports: ['8080:80']");
        stage.deploy(&format!("name: shop\nworkloads:\n{web}"));
        let log = stage.lab.follow("shop/web").expect("it is followed");
        log.wait_for("begins without").expect("no way yet");
        assert_eq!(stage.traced("shop/web", OUTSIDE, "80"), "nowhere");

        let prefix = Announced {
            network: "2001:db8:6::/64".parse().expect("a prefix"),
            preferred: 3600,
        };
        stage.router.announce(vec![prefix]).expect("said");
        log.wait_for("has one").expect("it has learned of the way");
        let (_, caller) = outside.accept().expect("it calls");
        assert_eq!(caller.ip(), at(NODE), "it speaks under the node's address");
        log.wait_for("tried").expect("it tries");
        let said = stage.lab.logs("shop/web").expect("its log");
        assert!(!said.contains("OPEN"), "{said}");
        assert!(stage.refused("web", "private") > 0, "nothing was counted");

        assert!(page(at(NODE), 8080).contains("It works"));
        assert!(page(at("192.0.2.7"), 8080).contains("It works"));
        closed(at(NODE), 80);
        for (from, to, outcome) in [
            ("shop/web", OUTSIDE, "leaves"),
            ("shop/web", ROUTER, "refused"),
            ("shop/web", "fe80::1", "refused"),
        ] {
            assert_eq!(stage.traced(from, to, "80"), outcome, "{from} to {to}");
        }

        // A port is answered to neighbours still; the way is for that alone.
        stage.router.lead(0).expect("said");
        assert!(page(at(NODE), 8080).contains("It works"));
        assert_eq!(stage.traced("shop/web", OUTSIDE, "80"), "nowhere");
        stage.deploy(&format!(
            "name: shop\nworkloads:\n{}",
            web.replace(", ports: ['8080:80']", "")
        ));
        log.wait_for("lost it")
            .expect("it has learned that the way is gone");
        let status = stage.lab.get("shop").expect("a status");
        assert_eq!(status["workloads"]["web"]["restarts"], 0, "{status}");
    }
}
