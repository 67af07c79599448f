//! Rules in the words of `nft`.
//!
//! Owns: one line for a rule, the same that a person would write into a file of `nft`.
//! Refuses: being read back: the kernel gets rules from `encode`.

use std::net::{IpAddr, SocketAddr};

use super::rule::{Count, EtherType, Family, Rule, Test, Transport, Verdict};

/// Types of ICMPv6 that have a name in `nft`.
const ICMP6: [(u8, &str); 8] = [
    (128, "echo-request"),
    (130, "mld-listener-query"),
    (133, "nd-router-solicit"),
    (134, "nd-router-advert"),
    (135, "nd-neighbor-solicit"),
    (136, "nd-neighbor-advert"),
    (137, "nd-redirect"),
    (143, "mld2-listener-report"),
];

/// A rule of a table of this family.
pub(super) fn rule(rule: &Rule, family: Family) -> String {
    let mut words: Vec<String> = rule.tests.iter().map(|test| words(test, family)).collect();
    match &rule.count {
        Count::Nowhere => {}
        Count::Here => words.push("counter".to_owned()),
        Count::In(name) => words.push(format!("counter name \"{name}\"")),
    }
    words.push(verdict(&rule.verdict));
    words.join(" ")
}

fn verdict(verdict: &Verdict) -> String {
    match verdict {
        Verdict::Accept => "accept".to_owned(),
        Verdict::Drop => "drop".to_owned(),
        Verdict::Reject => "reject with icmpx admin-prohibited".to_owned(),
        Verdict::Jump(chain) => format!("jump {chain}"),
        Verdict::DestinationNat(address, port) => {
            let to = SocketAddr::new(*address, *port);
            format!("dnat {} to {to}", protocol(*address))
        }
        Verdict::DestinationHost(address) => format!("dnat {} to {address}", protocol(*address)),
        Verdict::SourceNat(address) => format!("snat {} to {address}", protocol(*address)),
        Verdict::Masquerade => "masquerade".to_owned(),
    }
}

fn words(test: &Test, family: Family) -> String {
    // A bridge has frames of all kinds: what is asked of one kind asks for that first.
    let six = |text: String| match family {
        Family::Bridge => format!("ether type ip6 {text}"),
        Family::Inet => text,
    };
    match test {
        Test::From(link) => format!("iifname \"{link}\""),
        Test::To(link) => format!("oifname \"{link}\""),
        Test::Established => "ct state established,related".to_owned(),
        Test::Invalid => "ct state invalid".to_owned(),
        Test::Ipv4 => "meta nfproto ipv4".to_owned(),
        Test::Ipv6 => "meta nfproto ipv6".to_owned(),
        Test::Source(prefix) => format!("{} saddr {}", protocol(prefix.address), short(prefix)),
        Test::SourceIsNot(address) => format!("ether type ip ip saddr != {address}"),
        Test::Destination(prefix) => {
            format!("{} daddr {}", protocol(prefix.address), short(prefix))
        }
        Test::DestinationIsOurs => "fib daddr type local".to_owned(),
        Test::SourcePort(transport, port) => format!("{} sport {port}", word(*transport)),
        Test::DestinationPort(transport, port) => format!("{} dport {port}", word(*transport)),
        Test::Ping => "icmp type echo-request".to_owned(),
        Test::Icmp6(kind) => {
            let named = ICMP6.iter().find(|(number, _)| number == kind);
            let name = named.map_or_else(|| kind.to_string(), |(_, name)| (*name).to_owned());
            six(format!("icmpv6 type {name}"))
        }
        Test::Neighbour => "ip6 hoplimit 255".to_owned(),
        Test::LinkLocal => "ip6 saddr fe80::/10".to_owned(),
        Test::Source6Is(address) => six(format!("ip6 saddr {address}")),
        Test::TargetIs(address) => format!("@th,64,128 {:#034x}", address.to_bits()),
        Test::ToGroup => "ether daddr & 01:00:00:00:00:00 == 01:00:00:00:00:00".to_owned(),
        Test::OverPerSecond { rate, burst } => {
            format!("limit rate over {rate}/second burst {burst} packets")
        }
        Test::PerSecond { rate, burst } => {
            format!("limit rate {rate}/second burst {burst} packets")
        }
        Test::MoreConnectionsThan(most) => format!("ct count over {most}"),
        Test::EtherType(EtherType::Ipv4) => "ether type ip".to_owned(),
        Test::EtherType(EtherType::Ipv6) => "ether type ip6".to_owned(),
        Test::EtherType(EtherType::Arp) => "ether type arp".to_owned(),
        Test::EtherSourceIsNot(mac) => format!("ether saddr != {mac}"),
        Test::ArpSender(mac, address) => format!(
            "arp htype 1 arp ptype ip arp hlen 6 arp plen 4 arp saddr ether {mac} arp saddr ip {address}"
        ),
    }
}

/// A prefix, or an address alone.
fn short(prefix: &types::AnyCidr) -> String {
    if *prefix == types::Cidr::host(prefix.address) {
        prefix.address.to_string()
    } else {
        prefix.to_string()
    }
}

fn protocol(address: IpAddr) -> &'static str {
    match address {
        IpAddr::V4(_) => "ip",
        IpAddr::V6(_) => "ip6",
    }
}

fn word(transport: Transport) -> &'static str {
    match transport {
        Transport::Tcp => "tcp",
        Transport::Udp => "udp",
    }
}
