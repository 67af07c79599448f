//! Names that lead to machines, as clients outside of the node find them.
//!
//! Owns: one node with two machines behind its names, in the clear and by TLS with a certificate that was brought, what clients
//! notice when the deployment changes, a machine dies, the agent does or the proxy itself, and what that process may do.
//! Refuses: the proxy's own limits: `crates/ingress` has those.
#![cfg(test)]

mod tests {
    use std::collections::BTreeSet;
    use std::io::{BufRead, BufReader, Read, Write};
    use std::net::TcpStream;
    use std::path::PathBuf;
    use std::sync::Arc;
    use std::time::{Duration, Instant};

    use qemu_tests::visitor::{self, who};
    use qemu_tests::{Lab, PATIENCE, Setup, neighbour};
    use rustls::pki_types::CertificateDer;
    use rustls::{ClientConnection, StreamOwned};

    /// Between two tries: nothing tells from outside that a machine serves.
    const PAUSE: Duration = Duration::from_millis(200);

    struct Stage {
        lab: Lab,
        flist: PathBuf,
        http: u16,
        https: u16,
        roots: Vec<CertificateDer<'static>>,
    }

    impl Stage {
        fn new() -> Self {
            let (mut http, mut https) = (0, 0);
            let setup = Setup {
                watched: true,
                ..Setup::default()
            };
            let lab = Lab::with(&setup, |machine| {
                http = machine.forward(80)?;
                https = machine.forward(443)?;
                Ok(())
            });
            let lab = lab.expect("a node");
            let flist = neighbour::image(lab.command(), lab.directory()).expect("an image");
            let root = visitor::certificate(lab.directory(), "shop", "shop.test");
            let roots = vec![root.expect("a certificate")];
            Self {
                lab,
                flist,
                http,
                https,
                roots,
            }
        }

        fn deploy(&self, more: &str) {
            let machine = |name: &str| {
                format!(
                    "  {name}: {{image: {}, memory: 64Mi, disk: 64Mi, command: [neighbour, web, {name}, 8080]}}\n",
                    self.flist.display()
                )
            };
            let files = self.lab.directory().display();
            let yaml = format!(
                "name: shop\ningress:\n  plain.test: {{to: [one:8080, two:8080], health: {{path: /up, interval_s: 1}}}}\n\
                 \x20 shop.test: {{to: two:8080, paths: {{/one: one:8080}}, tls: {{certificate: {files}/shop.pem, key: {files}/shop.key}}}}\n\
                 {more}workloads:\n{}{}",
                machine("one"),
                machine("two")
            );
            let answer = self.lab.deploy(&yaml).expect("sifr runs");
            answer.must().unwrap_or_else(|e| panic!("{e:#}\n{yaml}"));
        }

        /// The whole answer in the clear.
        fn ask(&self, host: &str, path: &str, more: &str) -> String {
            visitor::ask(self.http, host, path, more).expect("connected")
        }

        /// Asks until the answer is as it should be.
        fn until(
            &self,
            what: &str,
            ask: impl Fn() -> String,
            right: impl Fn(&str) -> bool,
        ) -> String {
            let since = Instant::now();
            loop {
                let text = ask();
                if right(&text) {
                    return text;
                }
                assert!(
                    since.elapsed() < PATIENCE,
                    "{what}: {text}\n{}",
                    self.lab.console()
                );
                std::thread::sleep(PAUSE);
            }
        }

        fn tls(
            &self,
            name: &str,
            protocols: &[&[u8]],
        ) -> std::io::Result<StreamOwned<ClientConnection, TcpStream>> {
            let config = visitor::trusting(&self.roots, protocols).expect("a client");
            visitor::tls(self.https, name, config)
        }
    }

    #[test]
    fn names_lead_to_machines_that_answer_and_nothing_that_changes_cuts_a_client_off() {
        let stage = Stage::new();
        nobody_serves_before_there_is_a_name(&stage);
        stage.deploy("");
        both_machines_answer_and_hear_who_asks(&stage);
        whoever_is_not_served_is_told(&stage);
        tls_is_spoken_with_the_certificate_that_was_brought(&stage);
        an_update_ends_no_connection(&stage);
        a_machine_dies_and_requests_go_on(&stage);
        the_agent_dies_and_clients_notice_nothing(&stage);
        the_process_has_nothing_but_its_sockets(&stage);
        the_process_dies_and_the_next_one_serves(&stage);
        the_owner_sees_it(&stage);
        the_last_name_goes_and_its_ports_are_closed(&stage);
    }

    /// The ingress process, where there is one.
    fn process(stage: &Stage) -> Option<u32> {
        let mut watch = stage.lab.watch().expect("eyes");
        let found = watch.processes(&["init", "ingress"]).expect("processes");
        assert!(found.len() < 2, "{found:?}");
        found.first().copied()
    }

    fn nobody_serves_before_there_is_a_name(stage: &Stage) {
        assert_eq!(process(stage), None, "it would take memory for nothing");
        assert_eq!(listens(stage), [false; 2]);
    }

    /// Whether the node listens at its ports 80 and 443, of which the kernel keeps a table.
    fn listens(stage: &Stage) -> [bool; 2] {
        let mut watch = stage.lab.watch().expect("eyes");
        let table = watch.of(1, "net/tcp6").expect("a table");
        [80, 443].map(|port| {
            let own = format!(":{port:04X} ");
            let is_it = |line: &str| line.contains(&own) && line.contains(" 0A ");
            table.lines().any(is_it)
        })
    }

    fn both_machines_answer_and_hear_who_asks(stage: &Stage) {
        let mut seen = BTreeSet::new();
        let claims = "x-forwarded-for: 203.0.113.9\r\nforwarded: for=203.0.113.9\r\n";
        let since = Instant::now();
        while seen.len() < 2 {
            let answer = stage.ask("plain.test", "/x?y=z", claims);
            if let Some(name) = who(&answer) {
                seen.insert(name.to_owned());
                assert!(answer.contains("get /x?y=z http/1.1"), "{answer}");
                assert!(answer.contains("x-forwarded-for: 10.0.2.2\r\n"), "{answer}");
                assert!(answer.contains("x-forwarded-proto: http\r\n"), "{answer}");
                assert!(!answer.contains("203.0.113.9"), "{answer}");
            }
            assert!(
                since.elapsed() < PATIENCE,
                "{seen:?}: {answer}\n{}",
                stage.lab.console()
            );
            std::thread::sleep(PAUSE);
        }
    }

    fn whoever_is_not_served_is_told(stage: &Stage) {
        let answer = stage.ask("other.test", "/", "");
        assert!(
            answer.starts_with("HTTP/1.1 404") && answer.contains("no site of this name"),
            "{answer}"
        );
        let answer = stage.ask("shop.test", "/a?b", "");
        assert!(
            answer.starts_with("HTTP/1.1 308")
                && answer.contains("location: https://shop.test/a?b"),
            "{answer}"
        );
        let error = stage.tls("other.test", &[]).expect_err("no such name");
        assert!(error.to_string().contains("UnrecognisedName"), "{error}");
    }

    fn tls_is_spoken_with_the_certificate_that_was_brought(stage: &Stage) {
        let ask = |path: &str| {
            let mut stream = stage.tls("shop.test", &[b"http/1.1"]).expect("trusted");
            let request =
                format!("GET {path} HTTP/1.1\r\nhost: shop.test\r\nconnection: close\r\n\r\n");
            stream.write_all(request.as_bytes()).expect("asked");
            let mut text = String::new();
            let _ = stream.read_to_string(&mut text);
            text
        };
        let answer = stage.until(
            "two answers by TLS",
            || ask("/"),
            |text| who(text) == Some("two"),
        );
        assert!(answer.contains("x-forwarded-proto: https\r\n"), "{answer}");
        stage.until(
            "one answers below its path",
            || ask("/one/x"),
            |text| who(text) == Some("one"),
        );
        let stream = stage
            .tls("shop.test", &[b"h2", b"http/1.1"])
            .expect("trusted");
        assert_eq!(stream.conn.alpn_protocol(), Some(&b"h2"[..]));
        let answer = h2(stage);
        assert_eq!(who(&answer), Some("two"), "{answer}");
    }

    /// The body of one answer by HTTP/2.
    fn h2(stage: &Stage) -> String {
        use http_body_util::{BodyExt, Empty};
        use hyper::body::Bytes;
        use hyper_util::rt::{TokioExecutor, TokioIo};
        let config = visitor::trusting(&stage.roots, &[b"h2"]).expect("a client");
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        runtime.expect("a runtime").block_on(async {
            let stream = tokio::net::TcpStream::connect(("127.0.0.1", stage.https))
                .await
                .expect("connected");
            let name = "shop.test".try_into().expect("a name");
            let tls = tokio_rustls::TlsConnector::from(Arc::new(config));
            let stream = TokioIo::new(tls.connect(name, stream).await.expect("trusted"));
            let (mut sender, connection) =
                hyper::client::conn::http2::handshake(TokioExecutor::new(), stream)
                    .await
                    .expect("spoken");
            tokio::spawn(connection);
            let request = hyper::Request::get("https://shop.test/x")
                .body(Empty::<Bytes>::new())
                .expect("a request");
            let response = sender.send_request(request).await.expect("answered");
            assert_eq!(response.version(), hyper::Version::HTTP_2);
            let body = response
                .into_body()
                .collect()
                .await
                .expect("a body")
                .to_bytes();
            String::from_utf8_lossy(&body).into_owned()
        })
    }

    /// A connection that becomes another protocol's. Each word that is said on it comes back.
    fn socket(stage: &Stage) -> impl FnMut(&str) + use<> {
        let mut socket = TcpStream::connect(("127.0.0.1", stage.http)).expect("connected");
        socket.set_read_timeout(Some(PATIENCE)).expect("set");
        socket
            .write_all(b"GET /ws HTTP/1.1\r\nhost: plain.test\r\nconnection: Upgrade\r\nupgrade: echo\r\n\r\n")
            .expect("asked");
        let mut reader = BufReader::new(socket.try_clone().expect("a copy"));
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            assert_ne!(reader.read_line(&mut head).expect("a head"), 0, "{head}");
        }
        assert!(head.starts_with("HTTP/1.1 101"), "{head}");
        move |word| {
            writeln!(socket, "{word}").expect("said");
            let mut line = String::new();
            reader.read_line(&mut line).expect("heard");
            assert_eq!(line.trim_end(), word);
        }
    }

    /// A connection that has become another protocol's, and a download that does not end.
    fn an_update_ends_no_connection(stage: &Stage) {
        let mut echo = socket(stage);
        echo("before");
        let mut stream = TcpStream::connect(("127.0.0.1", stage.http)).expect("connected");
        stream.set_read_timeout(Some(PATIENCE)).expect("set");
        stream
            .write_all(b"GET /endless HTTP/1.1\r\nhost: plain.test\r\n\r\n")
            .expect("asked");
        let mut download = BufReader::new(stream).lines();
        let mut beat = || {
            let line = download.by_ref().map(|line| line.expect("it goes on"));
            let mut beats =
                line.filter(|line| line.starts_with("one ") || line.starts_with("two "));
            beats.next().expect("a line")
        };
        let first = beat();
        stage.deploy("  new.test: {to: one:8080}\n");
        stage.until(
            "the new name",
            || stage.ask("new.test", "/", ""),
            |text| who(text) == Some("one"),
        );
        stage.deploy("");
        let gone = |text: &str| text.starts_with("HTTP/1.1 404");
        stage.until(
            "the new name is gone",
            || stage.ask("new.test", "/", ""),
            gone,
        );
        echo("after");
        let name = first.split(' ').next().expect("a word").to_owned();
        assert!(beat().starts_with(&name));
    }

    fn all_are_answered(stage: &Stage, during: &str, patience: Duration) {
        let since = Instant::now();
        let mut seen = 0;
        while since.elapsed() < patience {
            let answer = stage.ask("plain.test", "/", "");
            assert!(
                answer.starts_with("HTTP/1.1 200"),
                "{during}, after {seen}: {answer}\n{}",
                stage.lab.console()
            );
            seen += 1;
            std::thread::sleep(PAUSE);
        }
        println!("{during}: {seen} requests answered");
    }

    fn a_machine_dies_and_requests_go_on(stage: &Stage) {
        let restarts =
            || stage.lab.get("shop").expect("a status")["workloads"]["one"]["restarts"].as_u64();
        let before = restarts();
        let answer = stage
            .lab
            .sifr(&["node", "drill", "shop/one"])
            .expect("sifr runs");
        answer.must().expect("it is killed");
        all_are_answered(stage, "a machine dies", Duration::from_secs(10));
        let since = Instant::now();
        while restarts() == before {
            assert!(since.elapsed() < PATIENCE, "it is started again");
            std::thread::sleep(PAUSE);
        }
        let one = |text: &str| who(text) == Some("one");
        stage.until("it is back", || stage.ask("plain.test", "/", ""), one);
    }

    fn the_agent_dies_and_clients_notice_nothing(stage: &Stage) {
        let before = process(stage);
        let mut echo = socket(stage);
        echo("before");
        let drill = ["node", "drill", "node"];
        stage
            .lab
            .sifr(&drill)
            .expect("sifr runs")
            .must()
            .expect("killed");
        all_are_answered(stage, "the agent dies", Duration::from_secs(10));
        stage
            .lab
            .wait("shop", "running")
            .expect("sifr runs")
            .must()
            .expect("it runs");
        echo("after");
        assert_eq!(process(stage), before, "it runs on");
    }

    fn the_process_has_nothing_but_its_sockets(stage: &Stage) {
        let pid = process(stage).expect("there are names");
        let mut watch = stage.lab.watch().expect("eyes");
        let mut status = |field: &str| watch.status(pid, field).expect(field);
        for field in ["Uid", "Gid"] {
            assert_eq!(status(field), "99997 99997 99997 99997", "{field}");
        }
        assert_eq!(status("Groups"), "");
        for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
            assert_eq!(status(set), "0000000000000000", "{set}");
        }
        assert_eq!(
            (status("NoNewPrivs"), status("Seccomp")),
            ("1".into(), "2".into())
        );
        let (rss, private) = (status("VmRSS"), status("RssAnon"));
        println!("the process has {rss} of memory, {private} of it its own");
        let group = watch.of(pid, "cgroup").expect("its group");
        assert_eq!(group.trim(), "0::/ingress");
        assert_ne!(
            watch.link(pid, "ns/net").expect("its namespace"),
            watch.link(1, "ns/net").expect("the node's")
        );
        let links = watch.of(pid, "net/dev").expect("its links");
        let links: Vec<&str> = links.lines().filter(|line| line.contains(':')).collect();
        assert!(
            matches!(links[..], [only] if only.trim_start().starts_with("lo:")),
            "{links:?}"
        );
        let log = stage.lab.sifr(&["node", "dmesg"]).expect("sifr runs");
        let log = log.must().expect("dmesg").stdout;
        assert!(!log.contains("Landlock does not keep"), "{log}");
    }

    fn the_process_dies_and_the_next_one_serves(stage: &Stage) {
        let before = process(stage);
        let drill = ["node", "drill", "ingress"];
        stage
            .lab
            .sifr(&drill)
            .expect("sifr runs")
            .must()
            .expect("killed");
        let served = |text: &str| text.starts_with("HTTP/1.1 200");
        stage.until("served again", || stage.ask("plain.test", "/", ""), served);
        stage.tls("shop.test", &[]).expect("trusted");
        let after = process(stage);
        assert!(after.is_some() && after != before, "{after:?}");
    }

    fn the_last_name_goes_and_its_ports_are_closed(stage: &Stage) {
        stage.lab.delete("shop").expect("deleted");
        let since = Instant::now();
        while listens(stage) != [false; 2] {
            assert!(since.elapsed() < PATIENCE, "{}", stage.lab.console());
            std::thread::sleep(PAUSE);
        }
    }

    fn the_owner_sees_it(stage: &Stage) {
        let shown = || {
            let status = stage.lab.get("shop").expect("a status");
            status["ingress"]["plain.test"].to_string()
        };
        let up = r#""backends":{"one:8080":true,"two:8080":true}"#;
        stage.until("both are up", shown, |text| text.contains(up));
        let table = stage
            .lab
            .sifr(&["get", "shop"])
            .expect("sifr runs")
            .must()
            .expect("it answers");
        assert!(table.stdout.contains("shop.test"), "{}", table.stdout);
    }
}
