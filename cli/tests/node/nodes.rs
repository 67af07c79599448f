//! Keys, nodes and their disks.

use types::PublicKey;

use super::bench::Bench;

#[test]
fn a_key_is_made_once_and_shown() {
    let bench = Bench::new(true);
    bench.run(&["key", "new"]).ends(1).says("never overwritten");
    bench
        .run(&["key", "show"])
        .ends(0)
        .says(&bench.node.owner.to_string());
    bench
        .run(&["key", "show", "--pem"])
        .ends(0)
        .says("BEGIN CERTIFICATE");
    let made = bench
        .run(&["key", "new", "--identity", "other", "--output", "json"])
        .ends(0);
    assert!(
        made.json()["key"]
            .as_str()
            .is_some_and(|key| key.starts_with("ed25519:"))
    );
    bench
        .run(&["node", "list", "--identity", "missing"])
        .ends(0);
}

#[test]
fn nodes_are_added_listed_and_forgotten() {
    let bench = Bench::new(true);
    bench.run(&["get"]).ends(2).says("sifr node add");
    let bench = Bench::with_node(true);
    bench
        .run(&["node", "list"])
        .ends(0)
        .says("ready")
        .says("lab");
    bench
        .run(&["node", "info"])
        .ends(0)
        .says("sifr test")
        .says("1 m 1 s");
    assert_eq!(
        bench.run(&["node", "info", "--output", "json"]).json()["build"],
        "sifr test"
    );
    assert!(
        !bench
            .run(&["node", "dmesg"])
            .ends(0)
            .says("Linux")
            .out
            .contains('\x1b')
    );
    bench.run(&["node", "links"]).ends(0).says("no cable");
    let routes = bench.run(&["node", "routes"]);
    routes.ends(0).says("192.0.2.1").says("eth0");
    bench.run(&["node", "metrics"]).ends(0).says("# HELP up");
    let json = bench.run(&["node", "metrics", "--output", "json"]).json();
    assert_eq!(json["metrics"], "# HELP up Up.\n");
    bench.run(&["metrics", "none"]).ends(3).says("none");
    let other = PublicKey([2; 32]).to_string();
    bench
        .run(&["node", "add", "lab", "10.0.0.1", "--key", &other])
        .ends(2)
        .says("--replace");
    bench.run(&["node", "remove", "lab"]).ends(0);
    bench.run(&["node", "use", "lab"]).ends(2).says("not known");
}

#[test]
fn a_drill_says_what_was_killed_and_waits_for_the_next_agent() {
    let bench = Bench::with_node(true);
    bench.deploy().ends(0);
    bench
        .run(&["node", "drill", "shop"])
        .ends(0)
        .says("the VMM (process 99) of shop/main")
        .says("sifr wait shop");
    bench
        .run(&["node", "drill", "chunks"])
        .ends(0)
        .says("process 99");
    bench
        .run(&["node", "drill", "node"])
        .ends(0)
        .says("the node agent (process 57) of lab was killed")
        .says("another node agent (process 58) answers after");
    let again = bench
        .run(&["node", "drill", "node", "--output", "json"])
        .ends(0)
        .json();
    assert_eq!(
        (&again["pid"], &again["successor"]),
        (&58.into(), &59.into())
    );
    bench.run(&["node", "drill", "moon"]).ends(3);
}

#[test]
fn disks_are_shown_with_what_is_on_them_and_why_they_are_used_so() {
    let bench = Bench::with_node(true);
    let listed = bench.run(&["disk", "list"]).ends(0);
    let listed = listed.says("left alone").says("XFS file system: so it is");
    listed.says("Flash 9000").says("SSD").says("40960.0 MiB");
    let json = bench
        .run(&["disk", "list", "--output", "json"])
        .ends(0)
        .json();
    assert_eq!(json[0]["disks"][1]["used"], "left_alone");
    bench.run(&["disk", "list", "lab", "lab"]).ends(2);
    bench.run(&["disk", "list"]).ends(0).says("not offered");
}

#[test]
fn health_of_disks_is_shown_with_its_reasons_and_silence_is_not_shown_as_health() {
    let bench = Bench::with_node(true);
    let shown = bench.run(&["disk", "health"]).ends(0);
    assert!(!shown.out.contains('\u{1b}'), "{}", shown.out);
    let line = |name: &str| {
        let line = shown.out.lines().find(|line| line.contains(name));
        line.unwrap_or_else(|| panic!("{}", shown.out)).to_owned()
    };
    for says in ["failing", "41", "3 %", "it runs"] {
        assert!(line("vda").contains(says), "{}", line("vda"));
    }
    assert!(line("vdb").contains("not offered") && !line("vdb").contains("passed"));
    let json = bench
        .run(&["disk", "health", "lab", "--output", "json"])
        .ends(0)
        .json();
    assert_eq!(json[0]["disks"][0]["health"]["verdict"], "failing");
    assert_eq!(
        json[0]["disks"][1]["health"]["figures"]["spare_percent"],
        serde_json::Value::Null
    );
    bench.run(&["disk", "health", "lab", "lab"]).ends(2);
    bench.run(&["disk", "health", "moon"]).ends(2);
}

#[test]
fn a_disk_is_claimed_only_after_it_was_shown_and_a_person_said_yes() {
    let bench = Bench::with_node(true);
    let claim = |more: &[&str]| bench.run(&[&["disk", "claim", "lab"][..], more].concat());
    let asked = claim(&["--serial", "S-vdb"]).ends(1);
    let asked = asked
        .says("ALL OF THIS WILL BE LOST")
        .says("XFS file system");
    asked.says("nothing was touched");
    claim(&["--serial", "S-vdb", "--yes"])
        .ends(0)
        .says("blank, ready");
    claim(&["--all-foreign", "--yes"]).ends(0).says("S-vdb");
    claim(&["--serial", "S-vda", "--yes"])
        .ends(2)
        .says("cannot be claimed");
    claim(&["--serial", "S-none", "--yes"])
        .ends(2)
        .says("no disk has");
    claim(&["--yes"]).ends(2);
}

#[test]
fn the_owners_key_opens_an_encrypted_disk_and_shares_of_another_key_do_not() {
    let bench = Bench::with_node(true);
    let recovered = bench.run(&["disk", "recover", "S-vda"]).ends(0);
    assert_eq!(recovered.out.trim_end(), "open sesame");
    let unlocked = bench.run(&["disk", "unlock", "S-vda"]).ends(0);
    unlocked.says("this machine opens it from now on");
    bench
        .run(&["disk", "recover", "S-vdb"])
        .ends(1)
        .says("has no pool");
    let papers = bench.directory.path().join("papers");
    let papers = papers.to_str().expect("text");
    let made = bench.run(&[
        "key", "recovery", "--shares", "2", "--need", "2", "-o", papers,
    ]);
    made.ends(0).says("sifr.recovery=x25519:");
    let share = |n: u8| format!("{papers}/share-{n}-of-2");
    let (one, two) = (share(1), share(2));
    let recover = |shares: &[&str]| bench.run(&[&["disk", "recover", "S-vda"], shares].concat());
    recover(&["--share", &one]).ends(2).says("2 are needed");
    recover(&["--share", &one, "--share", &two])
        .ends(2)
        .says("another key");
    bench
        .run(&["key", "recovery", "-o", papers, "--need", "9"])
        .ends(2);
}

#[test]
fn a_decommission_is_confirmed_and_its_receipt_checked_and_kept() {
    for (honest, code) in [(true, 0), (false, 1)] {
        let bench = Bench::with_node(honest);
        let file = bench.directory.path().join("receipt.json");
        let path = file.to_str().expect("text");
        let end = ["node", "decommission", "--receipt", path];
        let asked = bench.run(&end).ends(1);
        asked
            .says("ALL OF THIS WILL BE LOST")
            .says("nothing was touched");
        let unknown = [&end[..], &["--serial", "S-vdb", "--yes"]].concat();
        bench.run(&unknown).ends(2).says("no pool");
        assert!(!file.exists());
        let done = bench.run(&[&end[..], &["--yes"]].concat()).ends(code);
        match honest {
            true => done
                .says("crypto-erased")
                .says("switches itself off")
                .says("S-away: NOT destroyed: a disk of this node is not there"),
            false => done.says("not signed by the node"),
        };
        assert!(file.exists());
    }
}

#[test]
fn a_decommission_that_the_node_refuses_leaves_no_file_in_the_way_of_the_next() {
    let bench = Bench::with_node(true);
    let file = bench.directory.path().join("receipt.json");
    let path = file.to_str().expect("text");
    let end = ["node", "decommission", "--yes", "--receipt", path];
    bench.run(&end).ends(0);
    let next = bench.directory.path().join("next.json");
    let again = [
        "node",
        "decommission",
        "--yes",
        "--receipt",
        next.to_str().expect("text"),
    ];
    bench.run(&again).ends(3).says("was not decommissioned");
    assert!(file.exists() && !next.exists());
}

#[test]
fn the_version_is_that_of_the_build() {
    let bench = Bench::new(true);
    bench
        .run(&["version"])
        .ends(0)
        .says(&sifr::IDENTITY.to_string());
    let short = bench.run(&["--version"]).ends(0);
    assert_eq!(short.out.trim_end(), sifr::IDENTITY.to_string());
    assert_eq!(
        bench.run(&["version", "--output", "json"]).json()["version"],
        sifr::IDENTITY.version
    );
}

#[test]
fn a_network_is_set_confirmed_and_taken_back() {
    let bench = Bench::with_node(true);
    let set = ["node", "network", "set", "options", "--confirm-within", "5"];
    let write = |text: &str| std::fs::write(bench.path("options"), text).expect("written");
    write("# nothing\n");
    bench.run(&set).ends(2).says("sifr node network revert");
    bench
        .run(&["node", "network", "revert"])
        .ends(2)
        .says("never set");
    write("sifr.net.eth0.adress=192.0.2.7/24\n");
    bench.run(&set).ends(3).says("there is no such key");
    write("sifr.net.eth0.mtu=1400 # a tunnel\nsifr.dns=192.0.2.53\n");
    bench
        .run(&set)
        .ends(0)
        .says("tries version 1")
        .says("keeps version 1");
    bench
        .run(&["node", "network", "show"])
        .ends(0)
        .says("sifr.dns=192.0.2.53")
        .says("set by the owner")
        .says("version 1");
    bench
        .run(&["node", "info"])
        .ends(0)
        .says("sifr.net.eth0.mtu=1400");
    let json = bench
        .run(&["node", "network", "show", "--output", "json"])
        .json();
    assert_eq!(json["version"], 1);
    // What is being tried is taken back at once; else what was kept, by a change of its own.
    let tried = bench.node.state.lock().expect("held").network.clone();
    bench.node.state.lock().expect("held").tried = tried;
    bench
        .run(&["node", "network", "revert"])
        .ends(0)
        .says("has taken version 1 back");
    bench
        .run(&["node", "network", "revert"])
        .ends(0)
        .says("keeps version 2");
    // One that the node has taken back meanwhile.
    write("sifr.net.lost.dhcp=on\n");
    bench.run(&set).ends(5).says("was not confirmed");
}
