//! A site that lets nothing out but through its HTTP proxy.
//!
//! Owns: that a node gets its images there, asks directly whom it should, and blames who is to blame. Refuses: other sites (`site`).
#![cfg(test)]

mod tests {
    use std::time::Instant;

    use image::qemu::{Card, Link, Machine, Net};
    use qemu_tests::proxy::Proxy;
    use qemu_tests::router::{Router, TAP};
    use qemu_tests::tls::TlsServer;
    use qemu_tests::{Lab, PATIENCE, Setup, command, store, variant};
    use tempfile::TempDir;

    /// Touches every chunk of the large file.
    const READ: &str = "restart: never\ncommand: [sh, -c, 'dd if=/www/large.bin of=/dev/null bs=64k && echo whole']\n";
    /// The node's network: nothing leads out of it, and nobody there looks up names.
    const NETWORK: &str = "sifr.net.eth0.address=192.0.2.77/24";
    const PROXY: &str = "192.0.2.1";

    /// The node answers: its neighbours are found anew after each boot, and nothing tells when that is over.
    fn reached(lab: &Lab) {
        let end = Instant::now() + PATIENCE;
        while lab.sifr(&["node", "info"]).expect("sifr runs").code != 0 {
            assert!(Instant::now() < end, "not reached: {}", lab.console());
        }
    }

    fn sifr(lab: &Lab, args: &[&str]) -> String {
        let answer = lab.sifr(args).expect("sifr runs").must();
        answer.expect("it does it").stdout
    }

    /// An image of its own, in a directory of its own.
    fn packed(work: &TempDir, seed: u32) -> (std::path::PathBuf, String) {
        let program = command().expect("sifr is built");
        let name = format!("store-{seed}");
        let file = variant(&program, work.path(), &name, seed).expect("an image");
        let digest = file
            .file_stem()
            .expect("a name")
            .to_string_lossy()
            .into_owned();
        (work.path().join(name), format!("blake3:{digest}"))
    }

    fn deploy(lab: &Lab, name: &str, image: &str, store: &str) {
        let yaml = format!(
            "name: {name}\nimage: {image}\nstore: {store}\nmemory: 96Mi\ndisk: 64Mi\n{READ}"
        );
        let deployed = lab.deploy(&yaml).expect("sifr runs");
        deployed.must().expect("deployed");
    }

    fn runs(lab: &Lab, name: &str) {
        let ended = lab.wait(name, "exited").expect("sifr runs");
        ended.must().expect("it ends");
        let said = lab.logs(name).expect("its output");
        assert!(said.contains("whole"), "{said}");
        lab.delete(name).expect("deleted");
    }

    /// Confirmed over the node's address, which stays the same.
    fn set(lab: &Lab, options: &[&str]) {
        let file = lab.directory().join("options");
        std::fs::write(&file, options.join("\n")).expect("written");
        sifr(
            lab,
            &["node", "network", "set", &file.display().to_string()],
        );
    }

    /// The store's URL with a name that nobody but the proxy leads to it.
    fn named(url: &str) -> String {
        url.replace("10.0.2.2", "stores.example")
    }

    #[test]
    fn images_come_by_the_sites_proxy_and_who_refuses_is_named_without_the_password() {
        let own = ["2001:db8:6::1/64".parse().expect("an address")];
        let router = Router::lay(&own, usize::MAX).expect("a network; it needs root");
        router.add(&format!("{PROXY}/24")).expect("an address");
        let proxy = Proxy::start("node:right-one").expect("a proxy");
        let at = format!("{PROXY}:{}", proxy.port);
        let setup = Setup {
            told: format!("{NETWORK}\nsifr.proxy=http://node:wrong-one@{at}\n"),
            ..Setup::default()
        };
        let lab = Lab::with(&setup, |machine: &mut Machine| {
            machine.nets = vec![Net {
                card: Card::Virtio,
                mac: Some("52:54:00:00:00:06".parse()?),
                link: Link::Tap {
                    name: TAP.to_owned(),
                },
            }];
            Ok(())
        });
        let mut lab = lab.expect("a node");
        reached(&lab);
        let work = TempDir::new().expect("temp");
        let (clear, first) = packed(&work, 121);
        let url = named(&store::serve(&clear).expect("a server"));
        deploy(&lab, "behind", &first, &url);
        let end = Instant::now() + PATIENCE;
        let blames = format!(
            "the proxy {at} refused the node's user or password: correct them in sifr.proxy"
        );
        loop {
            let status = lab.get("behind").expect("its status").to_string();
            if status.contains(&blames) {
                break;
            }
            assert!(Instant::now() < end, "{status}");
            // It returns when time is up, or when it runs.
            let waited = lab.sifr(&["wait", "behind", "--timeout", "5s"]);
            assert_ne!(waited.expect("sifr runs").code, 0);
        }
        assert!(proxy.refused() > 0 && proxy.asked().is_empty());
        let shown = sifr(&lab, &["node", "network", "show"]);
        assert!(
            shown.contains(&format!("sifr.proxy=http://…@{at}")),
            "{shown}"
        );

        // Corrected from afar, without a boot; what waits goes on.
        let right = format!("sifr.proxy=http://node:right-one@{at}");
        set(&lab, &[NETWORK, &right]);
        runs(&lab, "behind");
        let asked = proxy.asked();
        let whole = format!("GET {url}/");
        assert!(
            asked.iter().all(|line| line.starts_with(&whole)),
            "{asked:?}"
        );

        // Through a tunnel, after a power cut: the proxy is kept.
        lab.power_cut().expect("cut");
        lab.power_on().expect("a node");
        reached(&lab);
        let (sealed, second) = packed(&work, 122);
        let server = TlsServer::serve_as("stores.example", &sealed).expect("a server");
        let ca = server.authority.replace('\n', "\n    ");
        let place = format!("\n  urls: [\"{}\"]\n  ca: |\n    {ca}", server.url);
        deploy(&lab, "tunnel", &second, &place);
        runs(&lab, "tunnel");
        let connect = format!("CONNECT {} HTTP/1.1", &server.url["https://".len()..]);
        let asked = &proxy.asked()[asked.len()..];
        assert!(
            !asked.is_empty() && asked.iter().all(|line| *line == connect),
            "{asked:?}"
        );

        // Who is excepted is asked directly.
        set(
            &lab,
            &[NETWORK, &right, &format!("sifr.proxy.except=.lan,{PROXY}")],
        );
        let before = proxy.asked().len();
        let (near, third) = packed(&work, 123);
        let url = store::serve_at(PROXY, &near).expect("a server");
        deploy(&lab, "near", &third, &url);
        runs(&lab, "near");
        assert_eq!(proxy.asked().len(), before);

        let seen = [
            lab.console(),
            sifr(&lab, &["node", "dmesg"]),
            sifr(&lab, &["--output", "json", "node", "info"]),
        ];
        for seen in seen {
            assert!(
                !seen.contains("right-one") && !seen.contains("wrong-one"),
                "{seen}"
            );
        }
    }
}
