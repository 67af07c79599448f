//! Rules as data.
//!
//! Owns: the shape of tables, chains and rules; what each test and verdict means.
//! Refuses: anything the policies do not use. There are no sets and no expressions to combine freely.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use types::{AnyCidr, Mac};

/// All our rules in one namespace: they replace what was there in one transaction.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Ruleset {
    pub tables: Vec<Table>,
}

/// A table; it is named `sifr` in every family.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    pub family: Family,
    pub counters: Vec<Tally>,
    /// A chain stands before those that jump to it.
    pub chains: Vec<Chain>,
}

/// A counter with a name, and where it begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tally {
    pub name: String,
    pub packets: u64,
    pub bytes: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// IPv4 and IPv6.
    Inet,
    /// Frames between ports of a bridge.
    Bridge,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    pub name: String,
    /// `None`: reached by jumps only.
    pub hook: Option<Hook>,
    pub rules: Vec<Rule>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hook {
    pub kind: ChainKind,
    pub point: Point,
    pub priority: i32,
    /// What happens to a packet that no rule decides.
    pub policy: Policy,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChainKind {
    Filter,
    Nat,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Point {
    Prerouting,
    Input,
    Forward,
    Postrouting,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Policy {
    Accept,
    Drop,
}

/// If all tests hold, in order: count if asked, then the verdict.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    pub tests: Vec<Test>,
    pub count: Count,
    pub verdict: Verdict,
}

/// Where a rule that holds is counted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Count {
    Nowhere,
    /// In the rule.
    Here,
    /// In a counter of its table.
    In(String),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Test {
    /// Name of the link that it came in by.
    From(String),
    /// Name of the link that it will leave by.
    To(String),
    /// Connection is established or related.
    Established,
    /// Belongs to no connection and cannot begin one.
    Invalid,
    Ipv4,
    Ipv6,
    /// Source within a prefix, of its family.
    Source(AnyCidr),
    /// IPv4 source is not this address.
    SourceIsNot(Ipv4Addr),
    /// Destination within a prefix, of its family.
    Destination(AnyCidr),
    /// Destination is an address of the node itself.
    DestinationIsOurs,
    SourcePort(Transport, u16),
    DestinationPort(Transport, u16),
    /// ICMP echo request of IPv4.
    Ping,
    /// ICMPv6 message of this type.
    Icmp6(u8),
    /// IPv6 packet that came through no router, and nobody behind one can have sent (hop limit 255).
    Neighbour,
    /// IPv6 source is of this link only.
    LinkLocal,
    /// IPv6 source is this address.
    Source6Is(Ipv6Addr),
    /// ICMPv6 message of neighbours, about this address.
    TargetIs(Ipv6Addr),
    /// The frame is for several, or for all.
    ToGroup,
    /// More than this many a second, beyond as many more at once.
    OverPerSecond {
        rate: u64,
        burst: u32,
    },
    /// More connections than this many have come to this rule and are not over.
    MoreConnectionsThan(u32),
    /// At most this many a second, and as many more at once.
    PerSecond {
        rate: u64,
        burst: u32,
    },
    /// The frame's EtherType, a VLAN tag included.
    EtherType(EtherType),
    /// The frame's source is not this address.
    EtherSourceIsNot(Mac),
    /// ARP for IPv4 over Ethernet, its sender being exactly this.
    ArpSender(Mac, Ipv4Addr),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Transport {
    Tcp,
    Udp,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EtherType {
    Ipv4,
    Ipv6,
    Arp,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    Accept,
    Drop,
    /// Drop, and tell the sender that it is prohibited.
    Reject,
    /// Go on in a chain without a hook, and come back at its end.
    Jump(String),
    /// Rewrite the destination. The packet is of the address's family: a test says so.
    DestinationNat(IpAddr, u16),
    /// Rewrite the destination's address, and no port.
    DestinationHost(IpAddr),
    /// Rewrite the source to this address.
    SourceNat(IpAddr),
    /// Rewrite the source to the address of the link it leaves by.
    Masquerade,
}
