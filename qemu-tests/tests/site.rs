//! Networks of sites: without DHCP, without IPv4, with two cables as one, and on a VLAN.
//!
//! Owns: that a node is reached as its options say, wherever they are written. Refuses: tenants' networks.
#![cfg(test)]

mod tests {
    use image::qemu::{Card, Link, Machine, Net};
    use qemu_tests::router::{Announced, Router, TAP};
    use qemu_tests::trunk::Trunk;
    use qemu_tests::{Lab, PATIENCE, Setup};
    use serde_json::Value;

    fn links(lab: &Lab) -> Vec<Value> {
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
