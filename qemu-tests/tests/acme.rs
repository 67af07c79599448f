//! Certificates that a node orders: from an authority beside it, Debian's pebble.
//!
//! Owns: a certificate that comes and is served, kept over the agent's end and a power cut, and renewed; authorities that are not
//! believed, do not find the node, or have forgotten it, and that no other name suffers.
//! Refuses: the rules after which orders are made: `crates/certificates` has those.
#![cfg(test)]

mod tests {
    use std::io::{BufRead, BufReader, Write};
    use std::net::{Ipv4Addr, TcpStream};
    use std::path::{Path, PathBuf};
    use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

    use qemu_tests::authority::{Authority, Names, Place};
    use qemu_tests::visitor::{self, who};
    use qemu_tests::{Lab, PATIENCE, Setup, hour, neighbour};
    use rustls::pki_types::CertificateDer;
    use rustls::{ClientConnection, StreamOwned};
    use serde_json::Value;

    /// Between two looks: nothing tells from outside what the node has got.
    const PAUSE: Duration = Duration::from_millis(500);
    /// Five years, as pebble's own.
    const LONG_S: u64 = 157_766_400;
    /// Two thirds of it are a minute.
    const SHORT_S: u64 = 90;

    struct Stage {
        lab: Lab,
        flist: PathBuf,
        http: u16,
        https: u16,
        _names: Names,
        place: Place,
    }

    impl Stage {
        fn new() -> Self {
            let (mut http, mut https) = (0, 0);
            let clock = hour::serve().expect("a time server");
            let setup = Setup {
                arguments: format!("sifr.ntp={clock}"),
                ..Setup::default()
            };
            let lab = Lab::with(&setup, |machine| {
                http = machine.forward(80)?;
                https = machine.forward(443)?;
                Ok(())
            });
            let lab = lab.expect("a node");
            let flist = neighbour::image(lab.command(), lab.directory()).expect("an image");
            let names = Names::start().expect("a name server");
            // Nobody is there.
            names
                .lead("lost.test", Ipv4Addr::new(127, 0, 0, 9))
                .expect("it is told");
            let place = Place::new(&names, http).expect("a place");
            Self {
                lab,
                flist,
                http,
                https,
                _names: names,
                place,
            }
        }

        fn ordered(&self, name: &str, ca: &Path) -> String {
            let (url, ca) = (self.place.url(), ca.display());
            format!(
                "  {name}: {{to: web:8080, tls: {{acme: {{directory: '{url}', contact: ops@example.org, ca: {ca}}}}}}}\n"
            )
        }

        fn deploy(&self, ingress: &str) {
            let yaml = format!(
                "name: shop\ningress:\n  plain.test: {{to: web:8080}}\n{ingress}workloads:\n\
                 \x20 web: {{image: {}, memory: 64Mi, disk: 64Mi, command: [neighbour, web, web, 8080]}}\n",
                self.flist.display()
            );
            let answer = self.lab.deploy(&yaml).expect("sifr runs");
            answer.must().unwrap_or_else(|e| panic!("{e:#}\n{yaml}"));
        }

        fn certificate(&self, name: &str) -> Value {
            let status = self.lab.get("shop").expect("a status");
            status["ingress"][name]["certificate"].clone()
        }

        /// Asks until it is so.
        fn until<T: std::fmt::Debug>(
            &self,
            what: &str,
            ask: impl Fn() -> T,
            right: impl Fn(&T) -> bool,
        ) -> T {
            let since = Instant::now();
            loop {
                let found = ask();
                if right(&found) {
                    println!("{what}, after {} s", since.elapsed().as_secs());
                    return found;
                }
                assert!(
                    since.elapsed() < PATIENCE,
                    "{what}: {found:?}\n{}",
                    self.lab.console()
                );
                std::thread::sleep(PAUSE);
            }
        }

        fn has_state(&self, name: &str, state: &str) -> Value {
            let right = |found: &Value| found["state"] == state;
            self.until(
                &format!("{name} is {state}"),
                || self.certificate(name),
                right,
            )
        }

        /// TLS under a name, where its certificate is believed.
        fn tls(
            &self,
            name: &str,
            root: &CertificateDer<'static>,
        ) -> std::io::Result<StreamOwned<ClientConnection, TcpStream>> {
            let roots = std::slice::from_ref(root);
            let client = visitor::trusting(roots, &[b"http/1.1"]).expect("a client");
            visitor::tls(self.https, name, client)
        }

        fn served(&self, name: &str, root: &CertificateDer<'static>) {
            let ask = || match self.tls(name, root) {
                Ok(mut stream) => visitor::get(&mut stream, name, "/x", ""),
                Err(error) => error.to_string(),
            };
            let right = |text: &String| who(text) == Some("web");
            self.until(&format!("{name} is served by TLS"), ask, right);
        }

        /// The first certificate that is shown under a name.
        fn shown(&self, name: &str, root: &CertificateDer<'static>) -> Vec<u8> {
            let stream = self.tls(name, root).expect("believed");
            let chain = stream.conn.peer_certificates().expect("a chain");
            chain[0].to_vec()
        }

        fn is_plain(&self) {
            let text = visitor::ask(self.http, "plain.test", "/y", "").expect("answered");
            assert_eq!(who(&text), Some("web"), "{text}");
        }
    }

    #[test]
    fn a_node_orders_its_certificates_keeps_them_and_renews_them_and_no_name_suffers_for_another() {
        let mut stage = Stage::new();
        let authority = Authority::start(&stage.place, LONG_S).expect("an authority");
        let root = authority.root(&stage.place).expect("its root");
        one_is_ordered_and_served(&stage, &authority, &root);
        names_that_get_none_say_why(&stage, &root);
        the_agent_and_the_power_end_and_nothing_is_ordered_twice(&mut stage, &authority, &root);
        an_authority_that_has_forgotten_everything_is_met_anew(&stage, authority, &root);
    }

    fn one_is_ordered_and_served(
        stage: &Stage,
        authority: &Authority,
        root: &CertificateDer<'static>,
    ) {
        stage.deploy(&stage.ordered("shop.test", &stage.place.ca()));
        let found = stage.has_state("shop.test", "valid");
        let until = found["until_s"].as_u64().expect("an end");
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .expect("a time");
        assert!(
            (1..LONG_S + 60).contains(&(until - now.as_secs())),
            "{found}"
        );
        assert!(found["order_s"].as_u64() < Some(until), "{found}");
        stage.served("shop.test", root);
        let text = visitor::ask(stage.http, "shop.test", "/a?b", "").expect("answered");
        assert!(text.starts_with("HTTP/1.1 308"), "{text}");
        assert_eq!(authority.issued(), 1, "{:?}", authority.said());
        let table = stage.lab.sifr(&["get", "shop"]).expect("sifr runs");
        let table = table.must().expect("it answers").stdout;
        assert!(
            table.contains("CERTIFICATE") && table.contains("until 20"),
            "{table}"
        );
        let metrics = stage.lab.sifr(&["node", "metrics"]).expect("sifr runs");
        let metrics = metrics.must().expect("it answers").stdout;
        let expiry = format!(
            "sifr_ingress_certificate_expiry_timestamp_seconds{{deployment=\"shop\",name=\"shop.test\"}} {until}"
        );
        assert!(metrics.contains(&expiry), "{metrics}");
    }

    fn names_that_get_none_say_why(stage: &Stage, root: &CertificateDer<'static>) {
        let other = stage.lab.directory().join("other.pem");
        let made = rcgen::generate_simple_self_signed(["other".to_owned()]).expect("made");
        let pem = qemu_tests::registry::pem("CERTIFICATE", made.cert.der());
        std::fs::write(&other, pem).expect("write");
        let all = [
            stage.ordered("shop.test", &stage.place.ca()),
            stage.ordered("doubted.test", &other),
            stage.ordered("lost.test", &stage.place.ca()),
        ];
        stage.deploy(&all.concat());
        let found = stage.has_state("doubted.test", "waiting");
        let error = found["error"].as_str().expect("why");
        assert!(
            error.contains("is not believed") && error.contains("`ca`"),
            "{error}"
        );
        assert!(found["order_s"].as_u64().is_some(), "{found}");
        let found = stage.has_state("lost.test", "waiting");
        let error = found["error"].as_str().expect("why");
        assert!(
            error.contains("did not find this node under lost.test"),
            "{error}"
        );
        let error = stage.tls("lost.test", root);
        let error = error.expect_err("there is no certificate").to_string();
        assert!(error.contains("UnrecognisedName"), "{error}");
        let table = stage.lab.sifr(&["get", "shop"]).expect("sifr runs");
        let table = table.must().expect("it answers").stdout;
        assert!(
            table.contains("shop/lost.test: the authority did not find"),
            "{table}"
        );
        stage.served("shop.test", root);
        stage.is_plain();
        let path = "/.well-known/acme-challenge/none";
        let text = visitor::ask(stage.http, "plain.test", path, "").expect("answered");
        assert!(text.contains(path), "it is the machine's: {text}");
    }

    fn the_agent_and_the_power_end_and_nothing_is_ordered_twice(
        stage: &mut Stage,
        authority: &Authority,
        root: &CertificateDer<'static>,
    ) {
        stage.deploy(&stage.ordered("shop.test", &stage.place.ca()));
        let before = (authority.issued(), stage.shown("shop.test", root));
        let drill = stage
            .lab
            .sifr(&["node", "drill", "node"])
            .expect("sifr runs");
        drill.must().expect("killed");
        stage.served("shop.test", root);
        stage.has_state("shop.test", "valid");
        stage.lab.power_cut().expect("no power");
        stage.lab.power_on().expect("it comes back");
        stage.served("shop.test", root);
        stage.has_state("shop.test", "valid");
        let synchronised = || {
            let info = stage
                .lab
                .sifr(&["--output", "json", "node", "info"])
                .expect("sifr runs");
            let info: Value =
                serde_json::from_str(&info.must().expect("it answers").stdout).expect("JSON");
            info["clock"]["synchronised"].clone()
        };
        stage.until("the time is known", synchronised, |known| *known == true);
        let after = (authority.issued(), stage.shown("shop.test", root));
        assert_eq!(before, after, "{:?}", authority.said());
    }

    /// It knows neither the account nor its own root any more, and what it gives ends soon.
    fn an_authority_that_has_forgotten_everything_is_met_anew(
        stage: &Stage,
        authority: Authority,
        root: &CertificateDer<'static>,
    ) {
        drop(authority);
        let authority = Authority::start(&stage.place, SHORT_S).expect("an authority");
        let new = authority.root(&stage.place).expect("its root");
        let both = ["shop.test", "short.test"];
        let all = both.map(|name| stage.ordered(name, &stage.place.ca()));
        stage.deploy(&all.concat());
        stage.has_state("short.test", "valid");
        stage.served("short.test", &new);
        let first = stage.shown("short.test", &new);
        // A download outlives the certificate that it was begun with.
        let mut stream = stage.tls("short.test", &new).expect("believed");
        stream
            .write_all(b"GET /endless HTTP/1.1\r\nhost: short.test\r\n\r\n")
            .expect("asked");
        let mut download = BufReader::new(stream).lines();
        let mut beat = || {
            let lines = download.by_ref().map(|line| line.expect("it goes on"));
            let mut beats = lines.filter_map(|line| line.strip_prefix("web ")?.parse::<u64>().ok());
            beats.next().expect("a beat")
        };
        let before = beat();
        let renewed = || stage.shown("short.test", &new);
        let since = Instant::now();
        stage.until("short.test is renewed", renewed, |shown| *shown != first);
        // The machine has counted on meanwhile, and what it says now arrives.
        let beats_a_second = 1;
        let now = before + since.elapsed().as_secs() * beats_a_second;
        while beat() < now {}
        assert!(authority.issued() >= 2, "{:?}", authority.said());
        stage.served("shop.test", root);
        stage.is_plain();
    }
}
