//! Machines with addresses of their own, from a pool of the owner's, seen from the LAN that these are addresses of.
//!
//! Owns: one node on a network of the test's own, on which the test is another host. Refuses: the packets of a single rule:
//! `crates/net` has those against the real kernel.
#![cfg(test)]

mod tests {
    use std::io::{Read, Write};
    use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
    use std::time::{Duration, Instant};

    use qemu_tests::PATIENCE;
    use qemu_tests::lan::{self, Lan, SILENCE};

    const POOL: &str = "name: pools\nworkloads:\n  lan: {pool: {kind: lan, range: 192.0.2.200-192.0.2.203, for: {shop: 2}}}\n";
    /// Beyond the LAN, where the router has it.
    const OUTSIDE: &str = "198.51.100.1";

    fn works(at: IpAddr) {
        assert!(lan::page(at, 80).expect("a page").contains("It works"));
    }

    fn closed(at: IpAddr, port: u16) {
        assert!(lan::is_closed(at, port), "{at} port {port} is open");
    }

    /// Whether it comes back.
    fn echoed(stream: &mut TcpStream) -> bool {
        stream.set_read_timeout(Some(SILENCE)).expect("set");
        stream.write_all(b"x").is_ok() && matches!(stream.read(&mut [0; 64]), Ok(1..))
    }

    /// The same by UDP.
    fn replied(socket: &UdpSocket) -> bool {
        socket.send(b"x").is_ok() && matches!(socket.recv(&mut [0; 64]), Ok(1..))
    }

    /// Nothing tells the outside when rules have changed.
    fn until(what: &str, mut is_so: impl FnMut() -> bool) {
        let end = Instant::now() + PATIENCE;
        while !is_so() {
            assert!(Instant::now() < end, "not so: {what}");
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    fn what_stands_ends_with_its_permit(stage: &Lan, shop: &str, at: IpAddr) {
        let narrow = "{tcp: 7, from: 203.0.113.0/24}";
        let wide = shop.replace(narrow, "{tcp: 7, from: 192.0.2.0/24}, 9/udp");
        stage.deploy(&wide);
        let connect = || TcpStream::connect_timeout(&SocketAddr::new(at, 7), SILENCE);
        let mut stands = None;
        until("its port is open", || {
            stands = connect().ok();
            stands.as_mut().is_some_and(echoed)
        });
        let mut stands = stands.expect("it was so");
        let asks = UdpSocket::bind("192.0.2.1:0").expect("a socket");
        asks.set_read_timeout(Some(SILENCE)).expect("set");
        asks.connect((at, 9)).expect("an address");
        until("UDP is answered", || replied(&asks));
        let mut page = TcpStream::connect((at, 80)).expect("a page");
        page.write_all(b"GET / HTTP/1.0\r\n")
            .expect("half a question");
        stage.deploy(shop);
        until("a connection without a permit is over", || {
            !echoed(&mut stands)
        });
        until("UDP without a permit is over", || !replied(&asks));
        for _ in 0..3 {
            assert!(!echoed(&mut stands) && !replied(&asks), "it has come back");
        }
        page.write_all(b"\r\n").expect("the other half");
        page.set_read_timeout(Some(PATIENCE)).expect("set");
        let mut text = String::new();
        page.read_to_string(&mut text)
            .expect("the other connection goes on");
        assert!(text.contains("It works"), "{text}");
    }

    fn a_pool_of_a_link_that_is_not_there_is_told(stage: &Lan) {
        let pool = "name: office\nworkloads:\n  far: {pool: {kind: lan, range: 192.0.2.210, link: moon}}\n";
        stage.deploy(pool);
        let status = stage.lab.get("office").expect("a status");
        let condition = &status["conditions"][0];
        assert_eq!(condition["code"], "address_unused", "{status}");
        let message = condition["message"].as_str().unwrap_or_default();
        assert!(message.contains("no link moon"), "{message}");
    }

    #[test]
    fn a_machine_has_an_address_of_the_lan_for_itself_and_nobody_else_has_it() {
        let stage = Lan::lay("", &[&format!("{OUTSIDE}/32")]);
        let mut stage = stage.expect("a node");
        let outside = TcpListener::bind((OUTSIDE, 80)).expect("a listener");
        // Before there is a pool.
        let calls = format!(
            "until nc -w 2 {OUTSIDE} 80 </dev/null; do sleep 1; done; neighbour tcp 7 & neighbour udp 9 & exec httpd -f -h /www"
        );
        let own = ", addresses: [{pool: lan, allow: [80, icmp, {tcp: 7, from: 203.0.113.0/24}]}]";
        let web = stage.machine("web", &calls, own);
        let shop = format!("name: shop\nworkloads:\n{web}");
        let none = stage.refusal(&shop);
        assert!(none.contains("which is no pool of this node"), "{none}");
        stage.deploy(POOL);
        stage.deploy(&shop);
        let (_, caller) = outside.accept().expect("it calls");
        let at = stage.own("shop", "web");
        assert_eq!(
            caller.ip(),
            at,
            "it speaks to the outside under its own address"
        );
        works(at);
        closed(at, 7);
        closed(at, 7443);
        what_stands_ends_with_its_permit(&stage, &shop, at);
        a_pool_of_a_link_that_is_not_there_is_told(&stage);

        // Who has no right to it, who would take the pool away, and who takes the address for itself.
        let right = stage.refusal(&shop.replace("name: shop", "name: other"));
        assert!(right.contains("other may not have"), "{right}");
        let gone = stage.lab.sifr(&["delete", "pools"]).expect("sifr runs");
        assert!(
            gone.stderr.contains("shop/web has an address of it"),
            "{}",
            gone.stderr
        );
        // It asks the gateway under its own address first: it is not to stop at ARP, which is refused to it too.
        let steals = format!(
            "gw=$(ip route | cut -d ' ' -f 3 | while read g; do echo $g; break; done); nc -w 2 $gw 7443 </dev/null; ip addr add {at}/32 dev eth0; \
             ip route replace default via $gw src {at}; nc -w 2 {OUTSIDE} 80 </dev/null; echo tried; sleep 100000"
        );
        let thief = stage.machine("thief", &steals, "");
        stage.deploy(&format!("{shop}{thief}"));
        let log = stage.lab.follow("shop/thief").expect("it is followed");
        log.wait_for("tried").expect("it tries");
        assert!(stage.refused("thief", "address") > 0, "nothing was counted");
        works(at);

        // The same after a power cut, and to the one who has it alone.
        stage.lab.power_cut().expect("cut");
        stage.lab.power_on().expect("a node");
        let (_, caller) = outside.accept().expect("it calls");
        assert_eq!((caller.ip(), stage.own("shop", "web")), (at, at));
        works(at);
        closed(at, 7);
        let trace = ["network", "trace", "outside", "shop/web", "--tcp", "80"];
        let trace = stage.lab.sifr(&trace).expect("sifr runs").must();
        let said = trace.expect("it gets through").stdout;
        assert!(said.contains("at its own address"), "{said}");
        // Freed with the machine.
        for name in ["shop", "pools"] {
            let gone = stage.lab.sifr(&["delete", name]).expect("sifr runs");
            gone.must().expect("deleted");
        }
        closed(at, 80);
    }
}
