//! How a node boots: phases, disks, netboot, clock.
//!
//! Owns: nodes that are booted once each. Refuses: workloads.
#![cfg(test)]

mod tests {
    use image::qemu::{Boot, Clock, Firmware, Machine, OnReset, blank_variables};
    use qemu_tests::{Lab, PATIENCE, Setup, store, variant};
    use types::deployment::API_PORT;

    #[test]
    fn the_console_shows_each_phase_and_then_the_node() {
        let lab = Lab::new().expect("a node");
        let text = lab.console();
        let mut at = 0;
        for phase in [
            "mounts",
            "pool",
            "identity",
            "clock",
            "kvm",
            "links",
            "address",
            "ledger",
            "api",
            "workloads",
        ] {
            let line = text[at..]
                .find(&format!("] {phase}"))
                .unwrap_or_else(|| panic!("{phase} in {text}"));
            at += line;
        }
        assert!(!text.contains("FAILED"), "{text}");
        for says in [
            "made on the blank disk vda",
            "sifr: virtualisation yes",
            "sifr: durable yes",
            "10.0.2.15/24",
        ] {
            assert!(text.contains(says), "{says:?} is missing in {text}");
        }
    }

    #[test]
    fn without_a_disk_the_node_runs_from_memory_and_says_so() {
        let setup = Setup {
            disk: false,
            ..Setup::default()
        };
        let lab = Lab::with(&setup, |_| Ok(())).expect("a node");
        assert!(lab.console().contains("runs from memory"));
        let flist = qemu_tests::busybox(lab.command(), lab.directory()).expect("an image");
        let yaml = format!(
            "name: web\nimage: {}\nmemory: 96Mi\ndisk: 64Mi\n",
            flist.display()
        );
        let refused = lab.deploy(&yaml).expect("sifr runs");
        assert!(
            refused.code == 3 && refused.stderr.contains("accept"),
            "{refused:?}"
        );
        let accepted = lab
            .deploy(&format!("{yaml}accept_volatile: true\n"))
            .expect("sifr runs")
            .must()
            .expect("taken");
        assert!(
            format!("{}{}", accepted.stdout, accepted.stderr).contains("volatile"),
            "{accepted:?}"
        );
    }

    #[test]
    fn a_machine_on_a_node_in_memory_may_fill_its_disk() {
        let setup = Setup {
            disk: false,
            ..Setup::default()
        };
        let lab = Lab::with(&setup, |_| Ok(())).expect("a node");
        let flist = qemu_tests::busybox(lab.command(), lab.directory()).expect("an image");
        // More than the machine's memory and all that its VMM may take beside it.
        let fill = "dd if=/dev/zero of=/fill bs=1M; sync; echo filled $(busybox wc -c </fill)";
        lab.deploy(&format!(
            "name: fill\nimage: {}\nmemory: 96Mi\ndisk: 128Mi\naccept_volatile: true\nrestart: never\n\
             command: [sh, -c, {fill:?}]\n",
            flist.display()
        ))
        .expect("sifr runs")
        .must()
        .expect("deployed");
        lab.wait("fill", "exited").expect("sifr runs");
        let status = lab.get("fill").expect("its status").to_string();
        assert!(status.contains("\"code\":0"), "{status}");
        let text = lab.logs("fill").expect("its output");
        let filled = text.lines().find_map(|line| line.strip_prefix("filled "));
        let bytes: u64 = filled.and_then(|n| n.parse().ok()).unwrap_or_default();
        assert!(bytes > 104 << 20, "{text}");
        // Only the pages of the guest and of its files are in its group: the node is as well as before.
        lab.delete("fill").expect("deleted");
    }

    /// Two cards in one network, as in most racks: 10.0.2.15 and 10.0.2.16.
    #[test]
    fn a_node_with_two_cables_serves_by_whichever_is_plugged_in() {
        let mut second = 0;
        let lab = Lab::with(&Setup::default(), |machine| {
            second = machine.second_card("10.0.2.16".parse()?, API_PORT)?;
            Ok(())
        });
        let lab = lab.expect("a node");
        let sifr = |args: &[&str]| lab.sifr(args).expect("sifr runs").must().expect("done");
        for (pulled, name, seed) in [(0, "second", 1), (1, "lab", 2)] {
            lab.node().set_link(pulled, false).expect("pulled");
            if name == "second" {
                let (address, key) = (format!("127.0.0.1:{second}"), lab.key().expect("its key"));
                sifr(&["node", "add", name, &address, "--key", &key]);
            }
            // The node fetches the image, too, and answers whom it could not have reached before.
            let flist = variant(lab.command(), lab.directory(), name, seed).expect("an image");
            let url = store::serve(flist.parent().expect("a store")).expect("a web server");
            let digest = flist.file_stem().expect("a name").to_string_lossy();
            let yaml = format!(
                "name: {name}\nimage: blake3:{digest}\nstore: {url}\nmemory: 96Mi\ndisk: 64Mi\n\
                 restart: never\ncommand: [cat, /www/index.html]\n"
            );
            let file = lab.directory().join(format!("{name}.yaml"));
            std::fs::write(&file, yaml).expect("written");
            sifr(&["--node", name, "deploy", &file.display().to_string()]);
            sifr(&["--node", name, "wait", name, "--for", "exited"]);
            let told = sifr(&["--node", name, "logs", name]).stdout;
            assert!(told.contains("It works"), "{told}");
            lab.node().set_link(pulled, true).expect("plugged in");
        }
    }

    #[test]
    fn a_node_without_an_owner_accepts_nothing_and_touches_no_disk() {
        let setup = Setup {
            owned: false,
            ..Setup::default()
        };
        let lab = Lab::with(&setup, |_| Ok(())).expect("a node");
        assert!(lab.console().contains("owner none: nothing is accepted"));
        let refused = lab.sifr(&["get"]).expect("sifr runs");
        assert!(
            refused.code == 3 && refused.stderr.contains("owner"),
            "{refused:?}"
        );
        let disk = lab.directory().join("pool.raw");
        let written = std::os::unix::fs::MetadataExt::blocks(&disk.metadata().expect("a disk"));
        assert_eq!(written, 0, "nothing was ever written to the blank disk");
    }

    #[test]
    fn what_the_kernel_said_as_it_panicked_is_shown_after_the_reboot() {
        let setup = Setup {
            disk: false,
            // The button that makes a machine dump its state, as servers have it.
            arguments: "unknown_nmi_panic panic=1".to_owned(),
            ..Setup::default()
        };
        let files = tempfile::tempdir().expect("a directory");
        let lab = Lab::with(&setup, |machine| {
            let variables = files.path().join("variables");
            blank_variables(&variables)?;
            machine.firmware = Firmware::Uefi { variables };
            machine.on_reset = OnReset::Boot;
            Ok(())
        })
        .expect("a node");
        assert!(!lab.console().contains("the last boot ended"));
        lab.node()
            .monitor("inject-nmi", &serde_json::json!({}))
            .expect("pressed");
        let headline = "the last boot ended so: Kernel panic - not syncing: NMI";
        lab.node()
            .wait_for_line(headline, 2 * PATIENCE)
            .expect("the headline");
    }

    #[test]
    fn the_image_boots_over_the_network() {
        let netboot = |machine: &mut Machine| {
            let paths = image::paths::Paths::find()?;
            machine.boot = Boot::Network {
                directory: paths.dist,
                script: "boot.ipxe".to_owned(),
            };
            Ok(())
        };
        let setup = Setup {
            owned: false,
            ..Setup::default()
        };
        let lab = Lab::with(&setup, netboot).expect("a node");
        assert!(lab.console().contains("sifr: ready https://10.0.2.15:7443"));
    }

    #[test]
    fn a_clock_that_is_years_behind_does_not_stop_the_node() {
        let past = |machine: &mut Machine| {
            machine.clock = Clock::At("2001-02-03T04:05:06".to_owned());
            Ok(())
        };
        let lab = Lab::with(&Setup::default(), past).expect("a node");
        lab.sifr(&["node", "info"])
            .expect("sifr runs")
            .must()
            .expect("info");
        lab.node()
            .wait_for_line("sifr: ready", PATIENCE)
            .expect("ready");
    }
}
