//! What a node says and does when it is not well: no network, a lying clock, a newer ledger, a hang.
//!
//! Owns: nodes that are each made ill in one way. Refuses: power cuts at random moments (`torture` has those).
#![cfg(test)]

mod tests {
    use std::fs::{File, OpenOptions};
    use std::net::UdpSocket;
    use std::os::unix::fs::FileExt;
    use std::path::Path;
    use std::thread;

    use image::qemu::{Clock, OnReset};
    use qemu_tests::{Lab, PATIENCE, Setup, WEB_PORT, busybox, http};
    use serde_json::json;

    fn web(lab: &Lab) {
        let flist = busybox(lab.command(), lab.directory()).expect("an image");
        let yaml = format!(
            "name: web\nimage: {}\nmemory: 96Mi\ndisk: 64Mi\nports: [\"{WEB_PORT}:80\"]\n",
            flist.display()
        );
        let deployed = lab.deploy(&yaml).expect("sifr runs");
        deployed.must().expect("deployed");
        runs(lab);
    }

    fn runs(lab: &Lab) {
        let waited = lab.wait("web", "running").expect("sifr runs");
        waited.must().expect("it runs");
    }

    fn line(lab: &Lab, text: &str) -> String {
        let line = lab.node().wait_for_line(text, PATIENCE);
        line.unwrap_or_else(|error| panic!("{error:#}\n{}", lab.console()))
    }

    fn info(lab: &Lab) -> serde_json::Value {
        let answer = lab.sifr(&["--output", "json", "node", "info"]);
        let text = answer.expect("sifr runs").must().expect("info").stdout;
        serde_json::from_str(&text).expect("JSON")
    }

    #[test]
    fn where_no_dhcp_server_and_no_store_answers_machines_run_and_the_api_is_there_with_the_address()
     {
        let mut lab = Lab::new().expect("a node");
        web(&lab);
        lab.power_cut().expect("off");
        lab.switch_on().expect("on");
        lab.node().set_link(0, false).expect("the cable is pulled");
        line(&lab, "sifr: ready, waiting for an address");
        line(&lab, "sifr: workloads 1: 1 running");
        assert!(!lab.console().contains("sifr: ready https"));
        lab.node().set_link(0, true).expect("plugged in");
        line(&lab, "sifr: ready https://");
        let page = http::page(lab.web, "/").expect("a page");
        assert!(page.contains("It works"));
        runs(&lab);
    }

    /// The header of a ledger's copy, as another build writes it: `workload::ledger` has the layout.
    fn header(format: u32, needs: &str) -> Vec<u8> {
        let check = |bytes: &[u8]| blake3::hash(bytes).as_bytes()[..4].to_vec();
        let mut out = b"SIFRLDGR".to_vec();
        out.extend_from_slice(&format.to_le_bytes());
        out.extend(check(&format.to_le_bytes()));
        out.extend_from_slice(needs.as_bytes());
        out.resize(60, 0);
        let whole = check(&out);
        out.extend(whole);
        out
    }

    /// Where the copies begin on the pool's disk, and what their headers are.
    fn headers(disk: &Path) -> Vec<(u64, Vec<u8>)> {
        const BLOCK: usize = 4096;
        let file = File::open(disk).expect("the disk");
        let length = file.metadata().expect("its length").len();
        let (mut at, mut found) = (0, Vec::new());
        let mut buffer = vec![0; 4 << 20];
        while at < length {
            file.read_exact_at(&mut buffer, at).expect("read");
            for (block, bytes) in (0u64..).zip(buffer.chunks_exact(BLOCK)) {
                if bytes.starts_with(b"SIFRLDGR") {
                    found.push((at + block * BLOCK as u64, bytes[..64].to_vec()));
                }
            }
            at += buffer.len() as u64;
        }
        found
    }

    fn write(disk: &Path, all: &[(u64, Vec<u8>)]) {
        let file = OpenOptions::new().write(true).open(disk).expect("the disk");
        for (at, bytes) in all {
            file.write_all_at(bytes, *at).expect("written");
        }
    }

    #[test]
    fn a_ledger_of_a_newer_sifr_is_left_alone_and_the_node_says_which_it_needs() {
        let mut lab = Lab::new().expect("a node");
        web(&lab);
        lab.power_button().expect("off");
        let disk = lab.disks()[0].file.clone();
        let ours = headers(&disk);
        assert!(ours.len() >= 2, "{} copies", ours.len());
        let newer = header(99, "7.8.9");
        let all: Vec<_> = ours.iter().map(|(at, _)| (*at, newer.clone())).collect();
        write(&disk, &all);
        lab.power_on().expect("on");
        let said = line(&lab, "sifr: trouble ledger_newer:");
        assert!(said.contains("needs Sifr 7.8.9 or newer"), "{said}");
        for args in [&["get"][..], &["delete", "web"]] {
            let refused = lab.sifr(args).expect("sifr runs");
            assert_eq!(refused.code, 3, "{refused:?}");
            assert!(refused.stderr.contains("7.8.9"), "{refused:?}");
        }
        let troubles = info(&lab)["troubles"].to_string();
        assert!(troubles.contains("ledger_newer"), "{troubles}");
        let explained = lab.sifr(&["explain", "ledger_newer"]).expect("sifr runs");
        let explained = explained.must().expect("explained").stdout;
        assert!(explained.contains("boot the version"), "{explained}");
        lab.power_button().expect("off");
        assert_eq!(headers(&disk), all, "nothing has been changed");
        write(&disk, &ours);
        lab.power_on().expect("on");
        runs(&lab);
    }

    /// Answers everybody with a time so many seconds after 1900.
    fn liar(seconds: u32) -> u16 {
        let socket = UdpSocket::bind("127.0.0.1:0").expect("a port");
        let port = socket.local_addr().expect("an address").port();
        thread::spawn(move || {
            let mut packet = [0; 48];
            while let Ok((48, from)) = socket.recv_from(&mut packet) {
                let mut answer = [0; 48];
                (answer[0], answer[1]) = (4 << 3 | 4, 2);
                answer[24..32].copy_from_slice(&packet[40..48]);
                for at in [32, 40] {
                    answer[at..at + 4].copy_from_slice(&seconds.to_be_bytes());
                    answer[at + 7] = 1;
                }
                // Who has gone needs no answer.
                let _ = socket.send_to(&answer, from);
            }
        });
        port
    }

    #[test]
    fn a_clock_without_a_battery_and_a_server_that_lies_by_decades_are_named_and_not_believed() {
        // 1 January 2026, less sixty years: in NTP's next era, which is read as 2102.
        let setup = Setup {
            arguments: format!("sifr.ntp=10.0.2.2:{}", liar(2_082_758_400)),
            ..Setup::default()
        };
        let lab = Lab::with(&setup, |machine| {
            machine.clock = Clock::At("1999-01-01T00:00:00".to_owned());
            Ok(())
        });
        let lab = lab.expect("a node");
        let said = line(&lab, "sifr: trouble clock_at_floor:");
        assert!(said.contains("days before"), "{said}");
        let said = line(&lab, "sifr: trouble clock_refused:");
        assert!(said.contains("not believed"), "{said}");
        let info = info(&lab);
        assert_eq!(info["clock"]["synchronised"], false, "{info}");
        let realtime = info["clock"]["realtime_ms"].as_u64().expect("a time");
        let years = realtime / 1000 / 31_556_952 + 1970;
        // The floor is the day of the build.
        assert!((2026..2102).contains(&years), "{years}");
    }

    #[test]
    fn a_kernel_that_stands_still_is_reset_by_the_watchdog_and_the_next_boot_says_so() {
        let setup = Setup {
            arguments: "unknown_nmi_panic sifr.panic=halt".to_owned(),
            ..Setup::default()
        };
        let lab = Lab::with(&setup, |machine| {
            machine.watchdog = true;
            machine.on_reset = OnReset::Boot;
            Ok(())
        });
        let lab = lab.expect("a node");
        lab.node().mark();
        lab.node()
            .monitor("inject-nmi", &json!({}))
            .expect("pressed");
        line(&lab, "it ended the last boot");
        let said = line(&lab, "sifr: last boot ended by the watchdog");
        assert!(said.contains("no progress"), "{said}");
        line(&lab, "sifr: trouble last_boot_watchdog:");
    }

    #[test]
    fn the_nodes_own_share_is_kept_before_any_machine_runs_and_a_guest_that_takes_all_does_not_get_it()
     {
        let setup = Setup {
            memory: types::Bytes::mib(448),
            watched: true,
            ..Setup::default()
        };
        let lab = Lab::with(&setup, |_| Ok(())).expect("a node");
        let mut watch = lab.watch().expect("eyes");
        let mut number = |file: &str| -> u64 {
            let text = watch.read(&format!("/sys/fs/cgroup/{file}")).expect("read");
            text.trim()
                .parse()
                .unwrap_or_else(|_| panic!("{file}: {text}"))
        };
        assert_eq!(number("node/cpu.weight"), 1000);
        assert_eq!(number("node/memory.min"), 48 << 20);
        assert_eq!(number("chunks/memory.low"), 24 << 20);
        let most = number("vms/memory.max");
        assert!((200 << 20..400 << 20).contains(&most), "{most}");
        let flist = busybox(lab.command(), lab.directory()).expect("an image");
        let take = "mkdir /m; mount -t tmpfs -o size=100% m /m; echo begins; dd if=/dev/zero of=/m/all bs=1M; tail -f /dev/null";
        let yaml = format!(
            "name: all\nimage: {}\nmemory: 192Mi\ndisk: 64Mi\ncommand: [sh, -c, {take:?}]\n",
            flist.display()
        );
        lab.deploy(&yaml)
            .expect("sifr runs")
            .must()
            .expect("deployed");
        let log = lab.follow("all").expect("its log");
        log.wait_for("begins").expect("it takes memory");
        for _ in 0..20 {
            info(&lab);
        }
        lab.delete("all").expect("deleted");
    }
}
