//! Networks of sites: without DHCP, without IPv4, with two cables as one, and on a VLAN.
//!
//! Owns: that a node is reached as its options say, wherever they are written. Refuses: tenants' networks.
#![cfg(test)]

mod tests {
    use std::time::Instant;

    use image::qemu::{Bus, Card, Disk, Link, Machine, Net};
    use qemu_tests::disk::stick;
    use qemu_tests::router::{Announced, Router, TAP};
    use qemu_tests::trunk::Trunk;
    use qemu_tests::{Lab, PATIENCE, Setup};
    use serde_json::Value;

    /// A node of IPv6 asks its neighbours first whether one of them has its address, and says that it is ready meanwhile; nothing tells
    /// when that is over.
    fn reached(lab: &Lab) {
        let end = Instant::now() + PATIENCE;
        while lab.sifr(&["node", "info"]).expect("sifr runs").code != 0 {
            assert!(Instant::now() < end, "not reached: {}", lab.console());
        }
    }

    fn links(lab: &Lab) -> Vec<Value> {
        reached(lab);
        let answer = lab.sifr(&["--output", "json", "node", "info"]);
        let text = answer
            .expect("sifr runs")
            .must()
            .expect("it answers")
            .stdout;
        let info: Value = serde_json::from_str(&text).expect("JSON");
        info["links"].as_array().expect("links").clone()
    }

    /// The first of the link's.
    fn address(lab: &Lab, link: &str) -> Value {
        let links = links(lab);
        let link = links.iter().find(|l| l["name"] == link);
        link.unwrap_or_else(|| panic!("no such link: {links:?}"))["addresses"][0].clone()
    }

    fn told(arguments: &str) -> Setup {
        Setup {
            disk: false,
            arguments: arguments.to_owned(),
            ..Setup::default()
        }
    }

    /// The network's first lease, and where its ports lead, is this address: the node has it by its options alone, as
    /// only they say that it lies in half of a /24.
    fn lease(machine: &mut Machine, first: [u8; 4]) {
        for net in &mut machine.nets {
            if let Link::User { leased, .. } = &mut net.link {
                *leased = Some(first.into());
            }
        }
    }

    #[test]
    fn a_node_without_dhcp_has_the_address_that_is_written_down() {
        let setup = told(
            "sifr.net.eth0.address=10.0.2.77/25 sifr.net.eth0.gateway=10.0.2.2 sifr.dns=10.0.2.3",
        );
        let lab = Lab::with(&setup, |machine| {
            lease(machine, [10, 0, 2, 77]);
            Ok(())
        });
        let lab = lab.expect("a node");
        assert_eq!(address(&lab, "eth0"), "10.0.2.77/25");
        assert_eq!(links(&lab)[0]["gateways"][0], "10.0.2.2");
    }

    /// A stick with options, which comes a second after the other disks.
    fn plug(lab: &mut Lab, serial: &str, options: &str) {
        let file = lab.directory().join(format!("{serial}.raw"));
        stick(&file, "sifr-config", options).expect("a stick");
        lab.disks().push(Disk {
            file,
            bus: Bus::Usb,
            serial: serial.to_owned(),
        });
    }

    /// The image and its boot say nothing: not whose it is either.
    #[test]
    fn a_stick_says_whose_a_node_is_and_where_and_a_second_one_makes_both_worth_nothing() {
        let setup = Setup {
            owned: false,
            ..told("")
        };
        let mut lab = Lab::unpowered(&setup).expect("a machine");
        lease(lab.machine(), [10, 0, 2, 77]);
        let shown = lab.sifr(&["key", "show"]).expect("sifr runs");
        let shown = shown.must().expect("a key").stdout;
        let key = shown.split_whitespace().find(|w| w.starts_with("ed25519:"));
        let options = format!(
            "sifr.owner={} # mine\r\nsifr.net.eth0.address=10.0.2.77/25\nsifr.net.eth0.gateway=10.0.2.2\n",
            key.expect("a key")
        );
        plug(&mut lab, "STICK1", &options);
        lab.power_on().expect("a node");
        lab.learn_key().expect("it is ours");
        assert_eq!(address(&lab, "eth0"), "10.0.2.77/25");
        assert_eq!(network(&lab)["options"][0]["from"], "partition");
        lab.power_button().expect("off");
        plug(&mut lab, "STICK2", &options);
        lab.switch_on().expect("QEMU");
        let console = lab.node();
        let both =
            "there are 2 partitions with the name sifr-config (number 1 of sda, number 1 of sdb)";
        console.wait_for_line(both, PATIENCE).expect("shown");
        let nobodys = "sifr: trouble owner_absent";
        console.wait_for_line(nobodys, PATIENCE).expect("shown");
    }

    #[test]
    fn what_is_wrong_with_the_options_stands_on_the_console() {
        let setup = told("sifr.net.eth7.dhcp=on sifr.net.eth0.adress=10.0.2.77/25");
        let mut lab = Lab::unpowered(&setup).expect("a machine");
        lab.switch_on().expect("QEMU");
        let shown = |line: &str| lab.node().wait_for_line(line, PATIENCE).expect("shown");
        shown("sifr.net.eth0.adress=10.0.2.77/25: there is no such key");
        shown("the machine has no port eth7; it has eth0 (52:54:");
    }

    /// Both cables lead to one switch. The ports are named by their own addresses, one of them.
    #[test]
    fn two_ports_are_one_link_of_which_either_cable_may_be_pulled() {
        let setup = told(
            "sifr.net.lan.bond=active-backup sifr.net.lan.ports=eth0,02:00:00:00:00:02 sifr.net.lan.dhcp=on",
        );
        let lab = Lab::with(&setup, |machine| {
            machine.nets.push(Net {
                card: Card::Virtio,
                mac: Some("02:00:00:00:00:02".parse()?),
                link: Link::Beside { card: 0 },
            });
            Ok(())
        });
        let lab = lab.expect("a node");
        assert_eq!(address(&lab, "lan"), "10.0.2.15/24");
        for (pulled, kept) in [(0, 1), (1, 0)] {
            lab.node().set_link(kept, true).expect("plugged in");
            lab.node().set_link(pulled, false).expect("pulled");
            assert_eq!(address(&lab, "eth0"), Value::Null);
            assert_eq!(address(&lab, "lan"), "10.0.2.15/24");
        }
    }

    /// Without a partner that speaks LACP one port carries everything (IEEE 802.1AX, an individual link). The kernel asks a
    /// port of such a bond for its speed, which a virtio card does not know.
    #[test]
    fn a_bond_by_802_3ad_serves_before_its_switch_speaks_lacp() {
        let options = "sifr.net.lan.bond=802.3ad sifr.net.lan.ports=eth0 sifr.net.lan.dhcp=on";
        let lab = Lab::with(&told(options), |machine| {
            machine.nets[0].card = Card::E1000e;
            Ok(())
        });
        assert_eq!(address(&lab.expect("a node"), "lan"), "10.0.2.15/24");
    }

    /// Nobody says anything at first: the node is up all the same, and asks again.
    #[test]
    fn a_node_on_a_network_without_ipv4_follows_its_router_and_keeps_its_deployments() {
        let own = ["2001:db8:6::1/64", "2001:db8:7::1/64"].map(|a| a.parse().expect("an address"));
        let router = Router::lay(&own, 3).expect("a network; it needs root");
        let lab = Lab::with(&Setup::default(), |machine| {
            at(&router, machine);
            Ok(())
        });
        let lab = lab.expect("a node");
        assert_eq!(
            lab.address().expect("shown"),
            "[2001:db8:6:0:5054:ff:fe00:6]:7443"
        );
        assert!(router.asked() >= 3);
        assert_eq!(address(&lab, "eth0"), "2001:db8:6:0:5054:ff:fe00:6/64");
        assert_eq!(links(&lab)[0]["gateways"][0], "fe80::1");
        let yaml = "name: shop\nworkloads:\n  data: {volume: {size: 64Mi}}\n";
        let deployed = lab.deploy(yaml).expect("sifr runs");
        deployed.must().expect("deployed");
        // The server of the time is one that DHCPv6 names.
        let console = lab.node();
        let synchronised = console.wait_for_line("sifr: time synchronised", PATIENCE);
        synchronised.expect("the time");
        let [old, new] = own.map(|own| own.network());
        let says = [(old, 0), (new, 3600)];
        let says = says.map(|(network, preferred)| Announced { network, preferred });
        router.announce(says.to_vec()).expect("sent");
        let there = "[2001:db8:7:0:5054:ff:fe00:6]:7443";
        let moved = console.wait_for_line(&format!("sifr: ready https://{there}"), PATIENCE);
        moved.expect("another address");
        let key = lab.key().expect("the key");
        let again = lab.sifr(&["node", "add", "moved", there, "--key", &key]);
        again.expect("sifr runs").must().expect("it is the node");
        let shop = lab.sifr(&["--output", "json", "get", "shop", "--node", "moved"]);
        let shop = shop.expect("sifr runs").must().expect("it is kept").stdout;
        assert!(shop.contains("data"), "{shop}");
    }

    /// A card at the router's network.
    fn at(_router: &Router, machine: &mut Machine) {
        machine.nets = vec![Net {
            card: Card::Virtio,
            mac: Some("52:54:00:00:00:06".parse().expect("a MAC")),
            link: Link::Tap {
                name: TAP.to_owned(),
            },
        }];
    }

    fn network(lab: &Lab) -> Value {
        reached(lab);
        let shown = lab.sifr(&["--output", "json", "node", "network", "show"]);
        let shown = shown.expect("sifr runs").must().expect("it answers");
        serde_json::from_str(&shown.stdout).expect("JSON")
    }

    /// Of the lab's node, in a file.
    fn written(lab: &Lab, options: &str) -> String {
        let file = lab.directory().join("options");
        std::fs::write(&file, options).expect("written");
        file.display().to_string()
    }

    /// One address leads nowhere, the other is where the owner finds the node: over the new one, without IPv6.
    #[test]
    fn a_network_that_is_set_from_afar_is_taken_back_unless_confirmed_and_survives_a_power_cut() {
        let own = ["2001:db8:6::1/64".parse().expect("an address")];
        let router = Router::lay(&own, 1).expect("a network; it needs root");
        router.add("192.0.2.1/24").expect("another address");
        let lab = Lab::with(&Setup::default(), |machine| {
            at(&router, machine);
            Ok(())
        });
        let mut lab = lab.expect("a node");
        let (old, key) = (lab.address().expect("shown"), lab.key().expect("a key"));
        let set = |lab: &Lab, options: &str, within: &str| {
            reached(lab);
            let file = written(lab, options);
            let set = lab.sifr(&["node", "network", "set", &file, "--confirm-within", within]);
            set.expect("sifr runs")
        };
        let refused = set(&lab, "sifr.net.eth0.adress=192.0.2.7/24", "10");
        assert_eq!(refused.code, 3, "{}", refused.stderr);
        assert!(refused.stderr.contains("sifr.net.eth0.adress"));
        lab.node().mark();
        let lost = set(&lab, "sifr.net.eth0.address=198.51.100.7/24", "10");
        assert_eq!(lost.code, 5, "{}", lost.stderr);
        let back = "sifr: network version 1 was not confirmed within 10 s";
        lab.node().wait_for_line(back, PATIENCE).expect("said");
        let again = lab.node().wait_for_line("sifr: ready https://[", PATIENCE);
        again.expect("its old address");
        assert_eq!(network(&lab)["version"], 0);
        // The power goes while another is tried.
        lab.node().mark();
        let file = written(&lab, "sifr.net.eth0.address=198.51.100.7/24");
        let args = ["node", "network", "set", &file, "--confirm-within", "3600"];
        let mut beside = lab.sifr_beside(&args).expect("sifr runs");
        let used = lab
            .node()
            .wait_for_line("sifr: address 198.51.100.7/24", PATIENCE);
        used.expect("it is used");
        lab.power_cut().expect("cut");
        beside.kill().and_then(|()| beside.wait()).expect("ended");
        lab.power_on().expect("a node");
        assert_eq!(lab.address().expect("shown"), old);
        // One that the owner reaches.
        let kept = set(&lab, "sifr.net.eth0.address=192.0.2.7/24", "60");
        let kept = kept.must().expect("confirmed");
        assert!(kept.stdout.contains("192.0.2.7"), "{}", kept.stdout);
        lab.power_cut().expect("cut");
        lab.power_on().expect("a node");
        assert_eq!(lab.address().expect("shown"), "192.0.2.7:7443");
        let now = network(&lab);
        assert_eq!(
            (&now["version"], &now["options"][0]["from"]),
            (&1.into(), &"owner".into())
        );
        // Whoever boots the machine can have it as it was booted, and the owner sets it anew.
        lab.oem_strings().push("sifr.net=reset".to_owned());
        lab.power_button().expect("off");
        lab.power_on().expect("a node");
        assert_eq!(lab.address().expect("shown"), old);
        let pin = lab.sifr(&["node", "add", "lab", &old, "--key", &key, "--replace"]);
        pin.expect("sifr runs").must().expect("pinned");
        let noted = network(&lab)["note"].to_string();
        assert!(noted.contains("sifr.net=reset"), "{noted}");
        let revert = lab.sifr(&["node", "network", "revert"]);
        revert.expect("sifr runs").must().expect("confirmed");
        lab.oem_strings().clear();
        lab.power_button().expect("off");
        lab.power_on().expect("a node");
        assert_eq!(lab.address().expect("shown"), old);
        assert_eq!(network(&lab)["version"], 2);
    }

    fn gateways(lab: &Lab) -> Value {
        links(lab)[0]["gateways"].clone()
    }

    /// The node asks on, and is up when it is answered; with a cable that comes and goes it is the same node at the same place.
    #[test]
    fn a_lease_that_comes_late_is_taken_without_a_boot_and_outlives_a_cable_that_flaps() {
        let own = ["2001:db8:6::1/64".parse().expect("an address")];
        let router = Router::lay(&own, usize::MAX).expect("a network; it needs root");
        let asked = router.lease([192, 0, 2, 77].into(), [192, 0, 2, 1].into(), 7);
        let asked = asked.expect("a server");
        let lab = Lab::with(&told(""), |machine| {
            at(&router, machine);
            Ok(())
        });
        let lab = lab.expect("a node");
        // It had said that it has none, and gone on.
        let console = lab.console();
        let none = "none yet: no DHCP server has answered, asking on";
        assert!(console.contains(none), "{console}");
        assert_eq!(lab.address().expect("shown"), "192.0.2.77:7443");
        assert!(asked.asked() >= 7);
        for _ in 0..3 {
            for there in [false, true] {
                lab.node().set_link(0, there).expect("set");
            }
        }
        assert_eq!(address(&lab, "eth0"), "192.0.2.77/24");
        assert_eq!(gateways(&lab), serde_json::json!(["192.0.2.1"]));
    }

    /// Whether a router leads the node, as it says itself. `None`: it is not reached just now.
    fn led_by(lab: &Lab) -> Option<Value> {
        let answer = lab.sifr(&["--output", "json", "node", "info"]);
        let answer = answer.expect("sifr runs").must().ok()?;
        let info: Value = serde_json::from_str(&answer.stdout).expect("JSON");
        Some(info["links"][0]["gateways"].clone())
    }

    /// Nothing tells a test when a neighbour is found not to answer: the node is asked, which sends something there.
    fn until_led_by(lab: &Lab, gateway: &str) {
        let expected = serde_json::json!([gateway]);
        let end = Instant::now() + PATIENCE;
        loop {
            let now = led_by(lab);
            if now.as_ref() == Some(&expected) {
                return;
            }
            assert!(Instant::now() < end, "{now:?} for {expected}");
        }
    }

    /// All that the test asks comes from beyond the link: the node answers by way of a router.
    #[test]
    fn a_node_is_led_by_the_router_that_is_left_where_the_other_says_that_it_goes() {
        let own = ["2001:db8:6::1/64".parse().expect("an address")];
        let router = Router::lay(&own, 1).expect("a network; it needs root");
        router
            .ask_from("2001:db8:ffff::1", &own[0])
            .expect("an address beyond");
        let lab = Lab::with(&told(""), |machine| {
            at(&router, machine);
            Ok(())
        });
        let lab = lab.expect("a node");
        assert_eq!(gateways(&lab), serde_json::json!(["fe80::1"]));
        router.beside("fe80::2").expect("another router");
        // It says that it leads nowhere any more, and then that it does again.
        router.lead(0).expect("sent");
        until_led_by(&lab, "fe80::2");
        router.lead(1800).expect("sent");
        assert_eq!(gateways(&lab), serde_json::json!(["fe80::2"]));
        assert_eq!(address(&lab, "eth0"), "2001:db8:6:0:5054:ff:fe00:6/64");
    }

    /// The server names another router when the node asks it to renew its lease.
    #[test]
    fn a_router_that_is_another_when_a_lease_is_renewed_is_followed() {
        let own = ["2001:db8:6::1/64".parse().expect("an address")];
        let router = Router::lay(&own, usize::MAX).expect("a network; it needs root");
        let lends = router.lease([192, 0, 2, 77].into(), [192, 0, 2, 1].into(), 1);
        let lends = lends.expect("a server");
        let lab = Lab::with(&told(""), |machine| {
            at(&router, machine);
            Ok(())
        });
        let lab = lab.expect("a node");
        assert_eq!(gateways(&lab), serde_json::json!(["192.0.2.1"]));
        router.add("192.0.2.2/24").expect("another router");
        lends.lead_by([192, 0, 2, 2].into());
        until_led_by(&lab, "192.0.2.2");
        assert_eq!(address(&lab, "eth0"), "192.0.2.77/24");
    }

    /// One of its two addresses is a neighbour's. The other is reached, and says so.
    #[test]
    fn an_address_that_a_neighbour_has_is_not_used_and_the_node_says_whose_it_is() {
        let own = ["2001:db8:6::1/64".parse().expect("an address")];
        let router = Router::lay(&own, usize::MAX).expect("a network; it needs root");
        let twin = "2001:db8:6::9/64".parse().expect("an address");
        router.add_twin(twin).expect("a twin");
        let options =
            "sifr.net.eth0.address=2001:db8:6::8/64,2001:db8:6::9/64 sifr.net.eth0.gateway=fe80::1";
        let lab = Lab::with(&told(options), |machine| {
            at(&router, machine);
            Ok(())
        });
        let lab = lab.expect("a node");
        let shown = lab.address().expect("shown");
        assert_eq!(shown, "[2001:db8:6::8]:7443", "{}", lab.console());
        let twin = "sifr: trouble phase_links: another machine on eth0 has 2001:db8:6::9";
        lab.node().wait_for_line(twin, PATIENCE).expect("told");
        assert_eq!(gateways(&lab), serde_json::json!(["fe80::1"]));
    }

    /// A router says that addresses are lent, and leads to the world.
    #[test]
    fn an_address_is_borrowed_from_dhcpv6_where_the_router_says_so() {
        let own = ["2001:db8:6::1/64".parse().expect("an address")];
        let router = Router::lay(&own, 1).expect("a network; it needs root");
        let lent = "2001:db8:6::77";
        router
            .lend(lent.parse().expect("an address"))
            .expect("lent");
        let lab = Lab::with(&told(""), |machine| {
            at(&router, machine);
            Ok(())
        });
        let lab = lab.expect("a node");
        assert_eq!(lab.address().expect("shown"), format!("[{lent}]:7443"));
        assert_eq!(gateways(&lab), serde_json::json!(["fe80::1"]));
        assert!(address(&lab, "eth0").to_string().contains(lent));
    }

    /// The VLAN is named in a file behind the initramfs, its address in the firmware's tables.
    #[test]
    fn a_node_is_reached_on_a_vlan_as_a_file_and_the_firmware_say() {
        let trunk = Trunk::lay(7).expect("two sockets");
        let setup = Setup {
            told: "# rack 7\nsifr.net.office.vlan=7\nsifr.net.office.on=eth0 # the only one\n"
                .to_owned(),
            ..told("")
        };
        let lab = Lab::with(&setup, |machine| {
            let address = "sifr.net.office.address=10.0.2.77/25";
            machine.oem_strings = vec![
                address.to_owned(),
                "sifr.net.office.gateway=10.0.2.2".to_owned(),
            ];
            if let Link::User { forwards, .. } = machine.nets[0].link.clone() {
                machine.nets[0].link = Link::Trunk {
                    near: trunk.near,
                    far: trunk.far,
                    forwards,
                    leased: Some([10, 0, 2, 77].into()),
                };
            }
            Ok(())
        });
        let lab = lab.expect("a node");
        assert_eq!(address(&lab, "office"), "10.0.2.77/25");
        assert_eq!(address(&lab, "eth0"), Value::Null);
    }
}
