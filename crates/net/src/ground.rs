//! The node's own namespace before any of its links is up.
//!
//! Owns: the kernel's network settings there, and that nothing passes before the first rules are known.
//! Refuses: links, addresses, and the rules that follow from them.

use std::fs;

use crate::Error;
use crate::firewall::{self, policy};
use crate::namespace::{SETTINGS, sysctl_if_present};

/// Settings of each link, those that are still to come included: name, value, reason.
const OF_IPV4_LINKS: [(&str, &str, &str); 8] = [
    ("accept_redirects", "0", "no neighbour bends our routes"),
    ("secure_redirects", "0", "nor one that says it is a router"),
    ("send_redirects", "0", "nobody is told of shorter ways"),
    ("accept_source_route", "0", "senders choose no path"),
    (
        "rp_filter",
        "2",
        "a source must be reachable at all; strict would cut off what a second uplink brings from afar",
    ),
    (
        "ignore_routes_with_linkdown",
        "1",
        "what is reached by two ports is reached by the one with a cable",
    ),
    (
        "arp_ignore",
        "1",
        "of two ports in one network each answers for its own address only",
    ),
    (
        "arp_announce",
        "2",
        "and asks with it, so that neighbours learn no address at the wrong port",
    ),
];
const OF_IPV6_LINKS: [(&str, &str, &str); 4] = [
    (
        "accept_ra",
        "0",
        "the node has no IPv6 but its own loopback",
    ),
    ("autoconf", "0", "the same"),
    ("accept_redirects", "0", "no neighbour bends our routes"),
    ("accept_source_route", "-1", "senders choose no path"),
];
const OF_IPV4: [(&str, &str, &str); 3] = [
    ("tcp_syncookies", "1", "a flood of SYN closes no port"),
    ("icmp_echo_ignore_broadcasts", "1", "no amplifier of pings"),
    ("icmp_ignore_bogus_error_responses", "1", "no log of them"),
];

/// Hardens the calling thread's namespace and shuts it, to be called before links come up. Rules of an
/// earlier agent stay where tenants may be served by them.
pub fn prepare() -> Result<(), Error> {
    for (name, value, _reason) in OF_IPV4 {
        sysctl_if_present(&format!("ipv4/{name}"), value)?;
    }
    harden_links("ipv4", &OF_IPV4_LINKS)?;
    harden_links("ipv6", &OF_IPV6_LINKS)?;
    // Forwarding is turned on after the rules of the first tenant network were applied (`network::ensure`).
    if is_forwarding()? {
        return Ok(());
    }
    firewall::apply(&policy::node(&policy::Node::default()))
}

/// No error where the kernel has no such protocol.
fn harden_links(family: &str, settings: &[(&str, &str, &str)]) -> Result<(), Error> {
    let directory = format!("{SETTINGS}/{family}/conf");
    let harden = |link: &str| {
        settings.iter().try_for_each(|(name, value, _reason)| {
            sysctl_if_present(&format!("{family}/conf/{link}/{name}"), value)
        })
    };
    // First those of links to come: one that comes meanwhile is then not missed.
    harden("default")?;
    let Ok(links) = fs::read_dir(&directory) else {
        return Ok(());
    };
    for link in links.filter_map(|entry| entry.ok()?.file_name().into_string().ok()) {
        harden(&link)?;
    }
    Ok(())
}

fn is_forwarding() -> Result<bool, Error> {
    let path = format!("{SETTINGS}/ipv4/ip_forward");
    let text = fs::read_to_string(&path).map_err(Error::io(format!("read {path}")))?;
    Ok(text.trim() != "0")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::namespace::{self, sysctl, within};
    use crate::scratch::Scratch;

    #[test]
    fn before_links_come_up_the_kernel_believes_no_neighbour_and_nothing_passes() {
        let scratch = Scratch::new("ground");
        let name = &scratch.name("node");
        let namespace = namespace::ensure(name).expect("a namespace; it needs root");
        let read = |key: &str| {
            let text = fs::read_to_string(format!("{SETTINGS}/{key}")).expect("a setting");
            text.trim().to_owned()
        };
        within(&namespace, || {
            prepare()?;
            for link in ["default", "all", "lo"] {
                for (name, value, _) in OF_IPV4_LINKS {
                    assert_eq!(
                        read(&format!("ipv4/conf/{link}/{name}")),
                        value,
                        "{link} {name}"
                    );
                }
            }
            if fs::exists(format!("{SETTINGS}/ipv6")).expect("no error") {
                assert_eq!(read("ipv6/conf/default/accept_ra"), "0");
            }
            Ok(())
        })
        .expect("prepared");
        let rules = || firewall::policy::tests::nft(name, &["list", "ruleset"], "");
        assert!(rules().contains("hook input priority filter; policy drop"));
        // A later agent finds tenants served, and takes their rules from nobody.
        let held = policy::Node {
            open_ports: vec![7443],
            ..policy::Node::default()
        };
        firewall::apply_in(name, &policy::node(&held)).expect("applied");
        within(&namespace, || {
            sysctl("ipv4/ip_forward", "1")?;
            prepare()
        })
        .expect("prepared again");
        assert!(rules().contains("7443"));
    }
}
