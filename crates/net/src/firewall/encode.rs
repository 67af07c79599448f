//! Rules as nf_tables messages (linux/netfilter/nf_tables.h).
//!
//! Owns: the bytes of one transaction. Refuses: talking to the kernel.

use std::net::IpAddr;

use rtnetlink::packet_core::{NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE};
use types::AnyCidr;

use super::attribute::Writer;
use super::batch::Message;
use super::rule::{
    Chain, ChainKind, Count, EtherType, Family, Hook, Point, Policy, Rule, Ruleset, Table, Tally,
    Test, Transport, Verdict,
};

/// Name of our table in each family.
pub(super) const TABLE: &str = "sifr";

pub(super) const NFNL_SUBSYS_NFTABLES: u16 = 10;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const NEWTABLE: u16 = NFNL_SUBSYS_NFTABLES << 8;
const DELTABLE: u16 = NFNL_SUBSYS_NFTABLES << 8 | 2;
const NEWCHAIN: u16 = NFNL_SUBSYS_NFTABLES << 8 | 3;
const NEWRULE: u16 = NFNL_SUBSYS_NFTABLES << 8 | 6;

const NEWOBJ: u16 = NFNL_SUBSYS_NFTABLES << 8 | 18;
/// Of objects with names.
pub(super) const OBJECT_COUNTER: u32 = 1;
/// `limit rate over`, and not up to.
const LIMIT_OVER: u32 = 1;
/// The bit of an Ethernet address that makes it one of several.
const GROUP: [u8; 6] = [1, 0, 0, 0, 0, 0];
/// `ct count over`, and not up to.
const CONNLIMIT_OVER: u32 = 1;

pub(super) const NFPROTO_UNSPEC: u8 = 0;
const NFPROTO_INET: u8 = 1;
pub(super) const NFPROTO_IPV4: u8 = 2;
pub(super) const NFPROTO_IPV6: u8 = 10;
const NFPROTO_BRIDGE: u8 = 7;

/// The registers that expressions hand values on in.
const VERDICT_REGISTER: u32 = 0;
const REGISTER: u32 = 1;
const SECOND_REGISTER: u32 = 2;

const META_NFPROTO: u32 = 15;
const META_L4PROTO: u32 = 16;
const META_IIFNAME: u32 = 6;
const META_OIFNAME: u32 = 7;
/// Names are compared over their whole field.
const NAME_BYTES: usize = 16;

const CMP_EQ: u32 = 0;
const CMP_NEQ: u32 = 1;

pub(super) const IPPROTO_ICMP: u8 = 1;
pub(super) const IPPROTO_ICMPV6: u8 = 58;
pub(super) const IPPROTO_TCP: u8 = 6;
pub(super) const IPPROTO_UDP: u8 = 17;
const ICMP_ECHO: u8 = 8;

const CT_STATE: u32 = 0;
const CT_INVALID: u32 = 1;
const CT_ESTABLISHED: u32 = 2;
const CT_RELATED: u32 = 4;

const FIB_ADDRESS_TYPE: u32 = 3;
const FIB_DESTINATION: u32 = 1 << 1;
const RTN_LOCAL: u32 = 2;

const NF_DROP: u32 = 0;
const NF_ACCEPT: u32 = 1;
const NFT_JUMP: u32 = (-3_i32).cast_unsigned();
const REJECT_ICMPX: u32 = 2;
const ICMPX_ADMIN_PROHIBITED: u8 = 3;
const NAT_SOURCE: u32 = 0;
const NAT_DESTINATION: u32 = 1;

/// A message of the transaction, and what it is about.
#[derive(Debug)]
pub(super) struct Part {
    pub(super) message: Message,
    pub(super) what: String,
}

/// One transaction: our tables go and come again as described.
pub(super) fn transaction(ruleset: &Ruleset) -> Vec<Part> {
    let mut parts = vec![marker(BATCH_BEGIN)];
    for table in &ruleset.tables {
        table_parts(table, &mut parts);
    }
    if let Some(last) = parts.last_mut() {
        last.message.flags |= NLM_F_ACK;
    }
    parts.push(marker(BATCH_END));
    parts
}

fn marker(kind: u16) -> Part {
    // `struct nfgenmsg`: family, version, and the subsystem in network byte order.
    let [high, low] = NFNL_SUBSYS_NFTABLES.to_be_bytes();
    let body = vec![NFPROTO_UNSPEC, 0, high, low];
    Part {
        message: Message {
            kind,
            flags: 0,
            body,
        },
        what: "the transaction".to_owned(),
    }
}

fn body(family: Family) -> Writer {
    let family = match family {
        Family::Inet => NFPROTO_INET,
        Family::Bridge => NFPROTO_BRIDGE,
    };
    Writer::new(&[family, 0, 0, 0])
}

fn table_parts(table: &Table, parts: &mut Vec<Part>) {
    let name = |kind, flags| {
        let mut body = body(table.family);
        body.text(1, TABLE);
        let what = format!("table {:?}", table.family);
        Part {
            message: Message {
                kind,
                flags,
                body: body.finish(),
            },
            what,
        }
    };
    // The first makes sure that there is one to delete.
    parts.extend([
        name(NEWTABLE, NLM_F_CREATE),
        name(DELTABLE, 0),
        name(NEWTABLE, NLM_F_CREATE),
    ]);
    let counters = table.counters.iter();
    parts.extend(counters.map(|tally| counter_part(table.family, tally)));
    // All chains come before all rules: a jump needs its target.
    parts.extend(
        table
            .chains
            .iter()
            .map(|chain| chain_part(table.family, chain)),
    );
    for chain in &table.chains {
        let rules = chain.rules.iter().enumerate();
        parts.extend(rules.map(|(at, rule)| Part {
            message: rule_message(table.family, &chain.name, rule),
            what: format!(
                "rule {at} of chain {} of table {:?}: {rule:?}",
                chain.name, table.family
            ),
        }));
    }
}

fn counter_part(family: Family, tally: &Tally) -> Part {
    let mut body = body(family);
    body.text(1, TABLE)
        .text(2, &tally.name)
        .be32(3, OBJECT_COUNTER);
    body.nest(4, |data| {
        data.be64(1, tally.bytes).be64(2, tally.packets);
    });
    let message = Message {
        kind: NEWOBJ,
        flags: NLM_F_CREATE,
        body: body.finish(),
    };
    Part {
        message,
        what: format!("counter {} of table {family:?}", tally.name),
    }
}

fn chain_part(family: Family, chain: &Chain) -> Part {
    let mut body = body(family);
    body.text(1, TABLE).text(3, &chain.name);
    if let Some(Hook {
        kind,
        point,
        priority,
        policy,
    }) = chain.hook
    {
        // The bridge family numbers these hooks as the IP families do.
        let number = match point {
            Point::Prerouting => 0,
            Point::Input => 1,
            Point::Forward => 2,
            Point::Postrouting => 4,
        };
        body.nest(4, |hook| {
            hook.be32(1, number).be32(2, priority.cast_unsigned());
        });
        body.be32(
            5,
            match policy {
                Policy::Accept => NF_ACCEPT,
                Policy::Drop => NF_DROP,
            },
        );
        body.text(
            7,
            match kind {
                ChainKind::Filter => "filter",
                ChainKind::Nat => "nat",
            },
        );
    }
    let message = Message {
        kind: NEWCHAIN,
        flags: NLM_F_CREATE,
        body: body.finish(),
    };
    Part {
        message,
        what: format!("chain {} of table {family:?}", chain.name),
    }
}

fn rule_message(family: Family, chain: &str, rule: &Rule) -> Message {
    let mut body = body(family);
    body.text(1, TABLE).text(2, chain).nest(4, |list| {
        for test in &rule.tests {
            write_test(list, family, test);
        }
        match &rule.count {
            Count::Nowhere => {}
            Count::Here => expression(list, "counter", |_| {}),
            Count::In(name) => expression(list, "objref", |counter| {
                counter.be32(1, OBJECT_COUNTER).text(2, name);
            }),
        }
        write_verdict(list, &rule.verdict);
    });
    Message {
        kind: NEWRULE,
        flags: NLM_F_CREATE | NLM_F_APPEND,
        body: body.finish(),
    }
}

fn expression(list: &mut Writer, name: &str, write: impl FnOnce(&mut Writer)) {
    list.nest(1, |element| {
        element.text(1, name).nest(2, write);
    });
}

fn write_test(list: &mut Writer, family: Family, test: &Test) {
    match test {
        Test::From(link) => meta(list, META_IIFNAME, &name_field(link)),
        Test::To(link) => meta(list, META_OIFNAME, &name_field(link)),
        Test::Established => state(list, CT_ESTABLISHED | CT_RELATED),
        Test::Invalid => state(list, CT_INVALID),
        Test::Ipv4 => ipv4(list, family),
        Test::Ipv6 => ipv6(list, family),
        Test::Source(prefix) => address(list, family, End::Source, prefix),
        Test::SourceIsNot(address) => {
            ipv4(list, family);
            payload(list, Header::Network, 12, 4);
            compare(list, CMP_NEQ, &address.octets());
        }
        Test::Destination(prefix) => address(list, family, End::Destination, prefix),
        Test::DestinationIsOurs => {
            expression(list, "fib", |fib| {
                fib.be32(1, REGISTER)
                    .be32(2, FIB_ADDRESS_TYPE)
                    .be32(3, FIB_DESTINATION);
            });
            compare(list, CMP_EQ, &RTN_LOCAL.to_ne_bytes());
        }
        Test::SourcePort(transport, port) => self::port(list, *transport, 0, *port),
        Test::DestinationPort(transport, port) => self::port(list, *transport, 2, *port),
        Test::Ping => ping(list, family),
        Test::Icmp6(kind) => icmp6(list, family, *kind),
        Test::Neighbour => {
            ipv6(list, family);
            payload(list, Header::Network, 7, 1);
            compare(list, CMP_EQ, &[255]);
        }
        Test::LinkLocal => link_local(list, family),
        Test::Source6Is(address) => {
            ipv6(list, family);
            payload(list, Header::Network, 8, 16);
            compare(list, CMP_EQ, &address.octets());
        }
        Test::TargetIs(address) => {
            payload(list, Header::Transport, 8, 16);
            compare(list, CMP_EQ, &address.octets());
        }
        Test::ToGroup => {
            payload(list, Header::Link, 0, 6);
            mask(list, &GROUP);
            compare(list, CMP_EQ, &GROUP);
        }
        Test::PerSecond { rate, burst } => limit(list, (*rate, *burst), 0),
        Test::OverPerSecond { rate, burst } => limit(list, (*rate, *burst), LIMIT_OVER),
        Test::MoreConnectionsThan(most) => expression(list, "connlimit", |limit| {
            limit.be32(1, *most).be32(2, CONNLIMIT_OVER);
        }),
        Test::EtherType(kind) => ether_type(list, *kind),
        Test::EtherSourceIsNot(mac) => {
            payload(list, Header::Link, 6, 6);
            compare(list, CMP_NEQ, &mac.0);
        }
        Test::ArpSender(mac, address) => arp_sender(list, &mac.0, &address.octets()),
    }
}

fn ping(list: &mut Writer, family: Family) {
    ipv4(list, family);
    meta(list, META_L4PROTO, &[IPPROTO_ICMP]);
    payload(list, Header::Transport, 0, 1);
    compare(list, CMP_EQ, &[ICMP_ECHO]);
}

fn icmp6(list: &mut Writer, family: Family, kind: u8) {
    ipv6(list, family);
    meta(list, META_L4PROTO, &[IPPROTO_ICMPV6]);
    payload(list, Header::Transport, 0, 1);
    compare(list, CMP_EQ, &[kind]);
}

/// A source in fe80::/10.
fn link_local(list: &mut Writer, family: Family) {
    ipv6(list, family);
    payload(list, Header::Network, 8, 16);
    let (mut bits, mut network) = ([0; 16], [0; 16]);
    bits[..2].copy_from_slice(&[0xff, 0xc0]);
    network[..2].copy_from_slice(&[0xfe, 0x80]);
    mask(list, &bits);
    compare(list, CMP_EQ, &network);
}

/// So many packets a second, and at once.
fn limit(list: &mut Writer, (rate, burst): (u64, u32), flags: u32) {
    expression(list, "limit", |limit| {
        limit.be64(1, rate).be64(2, 1);
        limit.be32(3, burst).be32(4, 0).be32(5, flags);
    });
}

fn arp_sender(list: &mut Writer, mac: &[u8; 6], address: &[u8; 4]) {
    // Ethernet, IPv4, and the lengths of their addresses; then the sender's.
    payload(list, Header::Network, 0, 6);
    compare(list, CMP_EQ, &[0, 1, 8, 0, 6, 4]);
    payload(list, Header::Network, 8, 6);
    compare(list, CMP_EQ, mac);
    payload(list, Header::Network, 14, 4);
    compare(list, CMP_EQ, address);
}

/// IPv4 only, where the family has more than that. A bridge's rules test the EtherType themselves.
fn ipv4(list: &mut Writer, family: Family) {
    match family {
        Family::Inet => meta(list, META_NFPROTO, &[NFPROTO_IPV4]),
        Family::Bridge => ether_type(list, EtherType::Ipv4),
    }
}

fn ipv6(list: &mut Writer, family: Family) {
    match family {
        Family::Inet => meta(list, META_NFPROTO, &[NFPROTO_IPV6]),
        Family::Bridge => ether_type(list, EtherType::Ipv6),
    }
}

fn ether_type(list: &mut Writer, kind: EtherType) {
    let number: u16 = match kind {
        EtherType::Ipv4 => 0x0800,
        EtherType::Arp => 0x0806,
        EtherType::Ipv6 => 0x86dd,
    };
    payload(list, Header::Link, 12, 2);
    compare(list, CMP_EQ, &number.to_be_bytes());
}

fn port(list: &mut Writer, transport: Transport, offset: u32, port: u16) {
    let protocol = match transport {
        Transport::Tcp => IPPROTO_TCP,
        Transport::Udp => IPPROTO_UDP,
    };
    meta(list, META_L4PROTO, &[protocol]);
    payload(list, Header::Transport, offset, 2);
    compare(list, CMP_EQ, &port.to_be_bytes());
}

fn meta(list: &mut Writer, key: u32, value: &[u8]) {
    expression(list, "meta", |meta| {
        meta.be32(2, key).be32(1, REGISTER);
    });
    compare(list, CMP_EQ, value);
}

fn name_field(name: &str) -> [u8; NAME_BYTES] {
    let mut field = [0; NAME_BYTES];
    // A longer name is no link's name: cut, it still has no NUL and equals none.
    for (to, from) in field.iter_mut().zip(name.bytes()) {
        *to = from;
    }
    field
}

fn state(list: &mut Writer, states: u32) {
    expression(list, "ct", |ct| {
        ct.be32(2, CT_STATE).be32(1, REGISTER);
    });
    mask(list, &states.to_ne_bytes());
    compare(list, CMP_NEQ, &[0; 4]);
}

#[derive(Debug, Clone, Copy)]
enum Header {
    Link = 0,
    Network = 1,
    Transport = 2,
}

fn payload(list: &mut Writer, header: Header, offset: u32, length: u32) {
    expression(list, "payload", |payload| {
        payload
            .be32(1, REGISTER)
            .be32(2, header as u32)
            .be32(3, offset)
            .be32(4, length);
    });
}

#[derive(Debug, Clone, Copy)]
enum End {
    Source,
    Destination,
}

/// One end of a packet of the prefix's family lies in it.
fn address(list: &mut Writer, family: Family, end: End, prefix: &AnyCidr) {
    let length = prefix.prefix();
    match prefix.network().address {
        IpAddr::V4(network) => {
            ipv4(list, family);
            let offset = match end {
                End::Source => 12,
                End::Destination => 16,
            };
            payload(list, Header::Network, offset, 4);
            if length < 32 {
                let host = u32::MAX.checked_shr(length.into()).unwrap_or(0);
                mask(list, &(!host).to_be_bytes());
            }
            compare(list, CMP_EQ, &network.octets());
        }
        IpAddr::V6(network) => {
            ipv6(list, family);
            let offset = match end {
                End::Source => 8,
                End::Destination => 24,
            };
            payload(list, Header::Network, offset, 16);
            if length < 128 {
                let host = u128::MAX.checked_shr(length.into()).unwrap_or(0);
                mask(list, &(!host).to_be_bytes());
            }
            compare(list, CMP_EQ, &network.octets());
        }
    }
}

fn mask<const N: usize>(list: &mut Writer, mask: &[u8; N]) {
    let length = u32::try_from(N).expect("a register has sixteen bytes");
    expression(list, "bitwise", |bitwise| {
        bitwise.be32(1, REGISTER).be32(2, REGISTER).be32(3, length);
        bitwise.nest(4, |data| {
            data.bytes(1, mask);
        });
        bitwise.nest(5, |data| {
            data.bytes(1, &[0; N]);
        });
    });
}

fn compare(list: &mut Writer, operation: u32, value: &[u8]) {
    expression(list, "cmp", |cmp| {
        cmp.be32(1, REGISTER).be32(2, operation).nest(3, |data| {
            data.bytes(1, value);
        });
    });
}

fn immediate(list: &mut Writer, register: u32, value: &[u8]) {
    expression(list, "immediate", |immediate| {
        immediate.be32(1, register).nest(2, |data| {
            data.bytes(1, value);
        });
    });
}

/// To an address, and a port where one is given: else ports stay, and ICMP has none.
fn nat(list: &mut Writer, kind: u32, address: IpAddr, port: Option<u16>) {
    let family = match address {
        IpAddr::V4(address) => {
            immediate(list, REGISTER, &address.octets());
            NFPROTO_IPV4
        }
        IpAddr::V6(address) => {
            immediate(list, REGISTER, &address.octets());
            NFPROTO_IPV6
        }
    };
    if let Some(port) = port {
        immediate(list, SECOND_REGISTER, &port.to_be_bytes());
    }
    expression(list, "nat", |nat| {
        nat.be32(1, kind).be32(2, u32::from(family));
        nat.be32(3, REGISTER);
        if port.is_some() {
            nat.be32(5, SECOND_REGISTER);
        }
    });
}

fn write_verdict(list: &mut Writer, verdict: &Verdict) {
    let mut decide = |code: u32, chain: Option<&str>| {
        expression(list, "immediate", |immediate| {
            immediate.be32(1, VERDICT_REGISTER).nest(2, |data| {
                data.nest(2, |verdict| {
                    verdict.be32(1, code);
                    if let Some(chain) = chain {
                        verdict.text(2, chain);
                    }
                });
            });
        });
    };
    match verdict {
        Verdict::Accept => decide(NF_ACCEPT, None),
        Verdict::Drop => decide(NF_DROP, None),
        Verdict::Jump(chain) => decide(NFT_JUMP, Some(chain)),
        Verdict::Reject => expression(list, "reject", |reject| {
            reject.be32(1, REJECT_ICMPX).u8(2, ICMPX_ADMIN_PROHIBITED);
        }),
        Verdict::DestinationNat(address, port) => {
            nat(list, NAT_DESTINATION, *address, Some(*port));
        }
        Verdict::DestinationHost(address) => nat(list, NAT_DESTINATION, *address, None),
        Verdict::SourceNat(address) => nat(list, NAT_SOURCE, *address, None),
        Verdict::Masquerade => expression(list, "masq", |_| {}),
    }
}
