//! IPv6 of machines beyond their network: out under the node's addresses, and in at them.
//!
//! Owns: one node on a network of the test's own, on which the test is the router, and the world behind it. Refuses: the packets of a
//! single rule: `crates/net` has those against the real kernel.
#![cfg(test)]

mod tests {
    use std::io::{Read, Write};
    use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
    use std::time::Instant;

    use qemu_tests::PATIENCE;
    use qemu_tests::lan::{self, Lan, SILENCE};
    use qemu_tests::router::Announced;
    use serde_json::Value;

    const ROUTER: &str = "2001:db8:6::1";
    /// What follows from the card and the router's prefix.
    const NODE: &str = "2001:db8:6:0:5054:ff:fe00:6";
    const POOLS: &str = "name: pools\nworkloads:\n  lan6: {pool: {kind: lan, range: 2001:db8:6::200-2001:db8:6::20f}}\n  far6: {pool: {kind: routed, range: 2001:db8:5::/64}}\n";
    /// Beyond the owner's site, where the router has it.
    const OUTSIDE: &str = "2001:db8:99::1";

    /// How a trace ends.
    fn traced(lan: &Lan, from: &str, to: &str, port: &str) -> String {
        let line = [
            "--output", "json", "network", "trace", from, to, "--tcp", port,
        ];
        let answer = lan.lab.sifr(&line).expect("sifr runs").must();
        let answer = answer.expect("it answers").stdout;
        let trace: Value = serde_json::from_str(&answer).expect("JSON");
        trace["outcome"].as_str().expect("an outcome").to_owned()
    }

    fn at(address: &str) -> IpAddr {
        address.parse().expect("an address")
    }

    fn works(at: IpAddr, port: u16) {
        assert!(lan::page(at, port).expect("a page").contains("It works"));
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

    /// One that neighbours find, and one that the router sends to the node.
    fn machines_have_addresses_of_their_own(lan: &Lan, outside: &TcpListener) {
        let refused = lan.refusal(&POOLS.replace("2001:db8:5::/64", "100.126.1.0/24"));
        assert!(refused.contains("leads to its networks"), "{refused}");
        lan.deploy(POOLS);
        let serves = format!(
            "until nc -w 2 {OUTSIDE} 80 </dev/null; do sleep 1; done; exec httpd -f -h /www"
        );
        let of_lan = ", addresses: [{pool: lan6, allow: [80, icmp]}]";
        let of_far = ", addresses: [{pool: far6, allow: [{tcp: 80, from: '2001:db8:6::/64'}]}]";
        let machines = [("near", of_lan), ("far", of_far)];
        let machines = machines.map(|(name, own)| lan.machine(name, &serves, own));
        let desk = format!("name: desk\nworkloads:\n{}", machines.concat());
        lan.deploy(&desk);
        lan.router.route("2001:db8:5::/64", NODE).expect("a route");
        let callers = [(); 2].map(|()| outside.accept().expect("it calls").1.ip());
        let (near, far) = (lan.own("desk", "near"), lan.own("desk", "far"));
        assert!(
            callers.contains(&near) && callers.contains(&far),
            "{callers:?}"
        );
        for own in [near, far] {
            works(own, 80);
            assert!(lan::is_closed(own, 7443), "{own}");
        }
        let mut stands = TcpStream::connect((far, 80)).expect("a page");
        stands
            .write_all(b"GET / HTTP/1.0\r\n")
            .expect("half a question");
        stands.set_read_timeout(Some(SILENCE)).expect("set");
        lan.deploy(&desk.replace("2001:db8:6::/64", "2001:db8:9::/48"));
        let end = Instant::now() + PATIENCE;
        while TcpStream::connect_timeout(&SocketAddr::new(far, 80), SILENCE).is_ok() {
            assert!(Instant::now() < end, "who has no permit is let in");
        }
        // The kernel may tell it so.
        let _ = stands.write_all(b"\r\n");
        let heard = stands.read(&mut [0; 64]);
        assert!(!matches!(heard, Ok(1..)), "it is answered: {heard:?}");
        works(near, 80);
        // In their network somebody is to answer the outside for as long as they are there.
        let gone = lan.lab.sifr(&["delete", "desk"]).expect("sifr runs");
        gone.must().expect("deleted");
    }

    #[test]
    fn ipv6_comes_and_goes_with_the_nodes_under_machines_that_run() {
        let lan = Lan::lay("sifr.net.eth0.ra=on", &[&format!("{OUTSIDE}/128")]);
        let lan = lan.expect("a node");
        let outside = TcpListener::bind((OUTSIDE, 80)).expect("a listener");
        let _near = TcpListener::bind((ROUTER, 7443)).expect("a listener");
        let web = lan.machine("web", &traveller(), ", ports: ['8080:80']");
        lan.deploy(&format!("name: shop\nworkloads:\n{web}"));
        let log = lan.lab.follow("shop/web").expect("it is followed");
        log.wait_for("begins without").expect("no way yet");
        assert_eq!(traced(&lan, "shop/web", OUTSIDE, "80"), "nowhere");

        let prefix = Announced {
            network: "2001:db8:6::/64".parse().expect("a prefix"),
            preferred: 3600,
        };
        lan.router.announce(vec![prefix]).expect("said");
        log.wait_for("has one").expect("it has learned of the way");
        let (_, caller) = outside.accept().expect("it calls");
        assert_eq!(caller.ip(), at(NODE), "it speaks under the node's address");
        log.wait_for("tried").expect("it tries");
        let said = lan.lab.logs("shop/web").expect("its log");
        assert!(!said.contains("OPEN"), "{said}");
        assert!(lan.refused("web", "private") > 0, "nothing was counted");

        works(at(NODE), 8080);
        works(at("192.0.2.7"), 8080);
        assert!(lan::is_closed(at(NODE), 80));
        for (from, to, outcome) in [
            ("shop/web", OUTSIDE, "leaves"),
            ("shop/web", ROUTER, "refused"),
            ("shop/web", "fe80::1", "refused"),
        ] {
            assert_eq!(traced(&lan, from, to, "80"), outcome, "{from} to {to}");
        }

        machines_have_addresses_of_their_own(&lan, &outside);
        // A port is answered to neighbours still; the way is for that alone.
        lan.router.lead(0).expect("said");
        works(at(NODE), 8080);
        assert_eq!(traced(&lan, "shop/web", OUTSIDE, "80"), "nowhere");
        lan.deploy(&format!(
            "name: shop\nworkloads:\n{}",
            web.replace(", ports: ['8080:80']", "")
        ));
        log.wait_for("lost it")
            .expect("it has learned that the way is gone");
        let status = lan.lab.get("shop").expect("a status");
        assert_eq!(status["workloads"]["web"]["restarts"], 0, "{status}");
    }
}
