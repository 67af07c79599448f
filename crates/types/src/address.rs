//! Pools of addresses that the outside routes or sees, and what a machine asks of them.
//!
//! Owns: the fields that an owner writes of a pool and a tenant of an address, and what can be checked without a node.
//! Refuses: which address a machine gets (`workload` does), and rules (`net` does).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::deployment::{Deployment, Machine, Protocol};
use crate::id::serde_as_text;
use crate::network::number;
use crate::{AnyCidr, Cidr6, Name};

/// Most addresses of one machine from pools: one of each family.
pub const ADDRESSES_MAX: usize = 2;
/// Most rules of one address: each stands in the node's rules and in the network's.
pub const ALLOW_MAX: usize = 64;
/// Most addresses of IPv4 in one pool. A range of no more that begins and ends outside of 169.254.0.0/16 has none of that.
const RANGE4_MAX: u32 = 1 << 16;
/// The node's ends of its links to networks of machines, whose other ends are the networks': no pool has any of them.
const TRANSFER: Range = Range {
    first: IpAddr::V4(Ipv4Addr::new(100, 126, 0, 0)),
    last: IpAddr::V4(Ipv4Addr::new(100, 127, 255, 255)),
};
/// Of IPv6 machines can have what is global (RFC 4291) or an owner's own (RFC 4193).
const GROUNDS6: [(Ipv6Addr, u8); 2] = [
    (Ipv6Addr::new(0x2000, 0, 0, 0, 0, 0, 0, 0), 3),
    (Ipv6Addr::new(0xfc00, 0, 0, 0, 0, 0, 0, 0), 7),
];
/// And nothing of these in it: what IETF keeps for itself, Teredo among it, and 6to4 (IANA's registry of special addresses).
const NOBODYS6: [(Ipv6Addr, u8); 2] = [
    (Ipv6Addr::new(0x2001, 0, 0, 0, 0, 0, 0, 0), 23),
    (Ipv6Addr::new(0x2002, 0, 0, 0, 0, 0, 0, 0), 16),
];
/// Longest name of a link (IFNAMSIZ less its final NUL).
const LINK_MAX: usize = 15;

/// Addresses of which machines get their own, from the owner.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pool {
    pub kind: Kind,
    pub range: Range,
    /// Of kind `lan`: the node's link to that network, a VLAN's too. Absent: the one with the node's way out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub link: Option<String>,
    /// Which deployments may take of it, and how many each. Absent: all, as many as there are.
    #[serde(default, rename = "for", skip_serializing_if = "Option::is_none")]
    pub deployments: Option<BTreeMap<Name, u16>>,
}

/// How packets to a pool's addresses come to the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// They are addresses of a network that the node is in: it answers for them there.
    Lan,
    /// A router sends them to the node.
    Routed,
}

/// From the first address to the last, of one family. Text: `192.0.2.200-192.0.2.219`, a prefix, or one address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Range {
    first: IpAddr,
    last: IpAddr,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is no range of addresses for machines: write one such as 192.0.2.200-192.0.2.219, 192.0.2.192/28 or 2001:db8:5::/64, of IPv4 of at most {RANGE4_MAX}, of IPv6 within 2000::/3 or fc00::/7"
)]
pub struct RangeError(String);

impl Range {
    pub fn contains(&self, address: IpAddr) -> bool {
        address.is_ipv4() == self.first.is_ipv4() && (self.first..=self.last).contains(&address)
    }

    /// Whether both have an address in common.
    pub fn touches(&self, other: &Self) -> bool {
        self.contains(other.first) || other.contains(self.first)
    }

    /// All of a prefix.
    pub fn of(prefix: AnyCidr) -> Self {
        let first = prefix.network().address;
        let length = u32::from(prefix.prefix());
        let last = match first {
            IpAddr::V4(first) => {
                let host = u32::MAX.checked_shr(length).unwrap_or(0);
                Ipv4Addr::from_bits(first.to_bits() | host).into()
            }
            IpAddr::V6(first) => {
                let host = u128::MAX.checked_shr(length).unwrap_or(0);
                Ipv6Addr::from_bits(first.to_bits() | host).into()
            }
        };
        Self { first, last }
    }

    /// The same question of a range of IPv6: it lies within one ground, and has nothing in it that is nobody's.
    fn is_for_machines6(&self) -> bool {
        let mut grounds = GROUNDS6.into_iter().filter_map(prefix6);
        let mut nobodys = NOBODYS6.into_iter().filter_map(prefix6);
        let lies = |ground: Self| ground.contains(self.first) && ground.contains(self.last);
        grounds.any(lies) && !nobodys.any(|range| range.touches(self))
    }

    /// The first and the last.
    pub fn ends(&self) -> (IpAddr, IpAddr) {
        (self.first, self.last)
    }

    pub fn is_ipv4(&self) -> bool {
        self.first.is_ipv4()
    }

    /// Addresses in it.
    pub fn count(&self) -> u128 {
        (bits(self.last) - bits(self.first)).saturating_add(1)
    }

    /// The addresses from the `start`th on, and around to the one before it.
    pub fn from(&self, start: u128) -> impl Iterator<Item = IpAddr> + use<> {
        let (first, count) = (self.first, self.count());
        (0..count).map(move |step| nth(first, (start % count + step) % count))
    }
}

fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => address.to_bits().into(),
        IpAddr::V6(address) => address.to_bits(),
    }
}

/// `first` and `at` are of one range.
fn nth(first: IpAddr, at: u128) -> IpAddr {
    match first {
        IpAddr::V4(first) => {
            let at = u32::try_from(at).unwrap_or(u32::MAX);
            Ipv4Addr::from_bits(first.to_bits().saturating_add(at)).into()
        }
        IpAddr::V6(first) => Ipv6Addr::from_bits(first.to_bits().saturating_add(at)).into(),
    }
}

/// What a machine can have on its own of IPv4, and be reached at.
fn is_for_machines(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(at) => {
            let [first, ..] = at.octets();
            let nobodys = first == 0 || first >= 224;
            !(nobodys || at.is_loopback() || at.is_link_local())
        }
        IpAddr::V6(_) => false,
    }
}

fn prefix6((address, length): (Ipv6Addr, u8)) -> Option<Range> {
    Cidr6::new(address, length).map(|prefix| Range::of(prefix.into()))
}

impl FromStr for Range {
    type Err = RangeError;
    fn from_str(text: &str) -> Result<Self, RangeError> {
        let ends = || {
            if let Some((first, last)) = text.split_once('-') {
                return Some((first.parse().ok()?, last.parse().ok()?));
            }
            if let Ok(one) = text.parse() {
                return Some((one, one));
            }
            let prefix: AnyCidr = text.parse().ok()?;
            let all = Self::of(prefix);
            (prefix == prefix.network()).then_some((all.first, all.last))
        };
        let read = || {
            let (first, last): (IpAddr, IpAddr) = ends()?;
            let range = Self { first, last };
            let fine = first.is_ipv4() == last.is_ipv4()
                && first <= last
                && match range.is_ipv4() {
                    true => {
                        is_for_machines(first)
                            && is_for_machines(last)
                            && range.count() <= u128::from(RANGE4_MAX)
                    }
                    false => range.is_for_machines6(),
                };
            fine.then_some(range)
        };
        read().ok_or_else(|| RangeError(text.chars().take(100).collect()))
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.first == self.last {
            true => write!(f, "{}", self.first),
            false => write!(f, "{}-{}", self.first, self.last),
        }
    }
}

serde_as_text!(Range);

/// An address of a machine's own: it is reached at it from outside, and speaks to the outside under it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Wanted {
    pub pool: Name,
    /// Absent: the node chooses, and the machine keeps it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<IpAddr>,
    /// Who may begin to speak to it. None: nobody may, and it speaks to the outside alone.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allow: Vec<Allow>,
}

/// One thing that may come in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "AllowFields", into = "AllowFields")]
pub struct Allow {
    pub what: Traffic,
    /// `None`: from everybody.
    pub from: Option<AnyCidr>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Traffic {
    Port(Protocol, u16),
    /// Echo requests. What belongs to connections, errors among it, needs no rule.
    Ping,
}

#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct AllowFields {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    tcp: Option<u16>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    udp: Option<u16>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    icmp: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    from: Option<AnyCidr>,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "write one of `tcp: PORT`, `udp: PORT` and `icmp: true`, and `from: PREFIX` beside it where not everybody may"
)]
pub struct AllowError;

impl TryFrom<AllowFields> for Allow {
    type Error = AllowError;
    fn try_from(fields: AllowFields) -> Result<Self, AllowError> {
        let AllowFields {
            tcp,
            udp,
            icmp,
            from,
        } = fields;
        let what = match (tcp, udp, icmp) {
            (Some(port), None, false) if port != 0 => Traffic::Port(Protocol::Tcp, port),
            (None, Some(port), false) if port != 0 => Traffic::Port(Protocol::Udp, port),
            (None, None, true) => Traffic::Ping,
            _ => return Err(AllowError),
        };
        Ok(Self { what, from })
    }
}

impl From<Allow> for AllowFields {
    fn from(Allow { what, from }: Allow) -> Self {
        let rest = Self {
            from,
            ..Self::default()
        };
        match what {
            Traffic::Port(Protocol::Tcp, port) => Self {
                tcp: Some(port),
                ..rest
            },
            Traffic::Port(Protocol::Udp, port) => Self {
                udp: Some(port),
                ..rest
            },
            Traffic::Ping => Self { icmp: true, ..rest },
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    #[error("pool {name}: {found:?} is no name of a link: `sifr node info` lists the node's")]
    Link { name: Name, found: String },
    #[error("pool {name}: a link is said of kind lan only: packets of a routed pool come by any")]
    LinkOfRouted { name: Name },
    #[error(
        "pool {name}: {range} lies within 10.128.0.0/9 or 172.16.0.0/12, of which networks of tenants are made: route another range to the node"
    )]
    OfTenants { name: Name, range: Range },
    #[error(
        "pool {name}: {range} has addresses of 100.126.0.0/15, by which the node leads to its networks of machines: give it another range"
    )]
    OfNode { name: Name, range: Range },
    #[error("pools {one} and {other} have addresses in common: give each its own")]
    PoolsTouch { one: Name, other: Name },
    #[error(
        "workload {machine}: it asks for {found} addresses of its own, at most {ADDRESSES_MAX} are possible"
    )]
    Addresses { machine: Name, found: usize },
    #[error("workload {machine}: it asks for addresses of one family twice: leave one of them out")]
    Twice { machine: Name },
    #[error("workload {machine}: {found} rules for one address, at most {ALLOW_MAX} are possible")]
    Rules { machine: Name, found: usize },
    #[error(
        "workload {machine}: `from: {from}` is no prefix: write {network} for all of it, or {one} for the one address"
    )]
    From {
        machine: Name,
        from: AnyCidr,
        network: AnyCidr,
        one: AnyCidr,
    },
    #[error("workloads {one} and {other} both ask for {address}: give each its own")]
    AddressTwice {
        one: Name,
        other: Name,
        address: IpAddr,
    },
    #[error(
        "workload {machine} asks for an address of its own and its first network is internal: let the first be one that leads outside"
    )]
    Internal { machine: Name },
}

impl Pool {
    fn check(&self, name: &Name) -> Result<(), AddressError> {
        let name = || name.clone();
        if let Some(link) = &self.link {
            let plain = |c: char| c.is_ascii_graphic() && c != '/';
            if link.is_empty() || link.len() > LINK_MAX || !link.chars().all(plain) {
                let found = link.chars().take(100).collect();
                return Err(AddressError::Link {
                    name: name(),
                    found,
                });
            }
            if self.kind == Kind::Routed {
                return Err(AddressError::LinkOfRouted { name: name() });
            }
        }
        if self.range.touches(&TRANSFER) {
            let range = self.range;
            return Err(AddressError::OfNode {
                name: name(),
                range,
            });
        }
        let of_tenants = |at: IpAddr| matches!(at, IpAddr::V4(at) if number(at).is_some());
        let range = self.range;
        if self.kind == Kind::Routed && (of_tenants(range.first) || of_tenants(range.last)) {
            return Err(AddressError::OfTenants {
                name: name(),
                range,
            });
        }
        Ok(())
    }
}

/// All that is said of pools and of addresses of them in a deployment.
pub(crate) fn check(deployment: &Deployment) -> Result<(), AddressError> {
    let mut seen: Vec<(&Name, Range)> = Vec::new();
    for (name, pool) in deployment.pools() {
        pool.check(name)?;
        if let Some((one, _)) = seen.iter().find(|(_, range)| range.touches(&pool.range)) {
            return Err(AddressError::PoolsTouch {
                one: (*one).clone(),
                other: name.clone(),
            });
        }
        seen.push((name, pool.range));
    }
    let mut asked: BTreeMap<IpAddr, &Name> = BTreeMap::new();
    for (name, machine) in deployment.machines() {
        check_machine(deployment, name, machine)?;
        for address in machine.addresses.iter().filter_map(|own| own.address) {
            if let Some(one) = asked.insert(address, name) {
                return Err(AddressError::AddressTwice {
                    one: one.clone(),
                    other: name.clone(),
                    address,
                });
            }
        }
    }
    Ok(())
}

fn check_machine(
    deployment: &Deployment,
    name: &Name,
    machine: &Machine,
) -> Result<(), AddressError> {
    let own = || name.clone();
    let found = machine.addresses.len();
    if found > ADDRESSES_MAX {
        return Err(AddressError::Addresses {
            machine: own(),
            found,
        });
    }
    let mut pools = BTreeSet::new();
    for wanted in &machine.addresses {
        if !pools.insert(&wanted.pool) {
            return Err(AddressError::Twice { machine: own() });
        }
        let found = wanted.allow.len();
        if found > ALLOW_MAX {
            return Err(AddressError::Rules {
                machine: own(),
                found,
            });
        }
        for from in wanted.allow.iter().filter_map(|allow| allow.from) {
            let network = from.network();
            if from != network {
                return Err(AddressError::From {
                    machine: own(),
                    from,
                    network,
                    one: AnyCidr::host(from.address),
                });
            }
        }
    }
    let first = machine.networks.first();
    let first = first.and_then(|card| deployment.network(&card.network));
    if found > 0 && first.is_some_and(|network| network.internal) {
        return Err(AddressError::Internal { machine: own() });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, proptest};

    use super::*;
    use crate::Digest;

    fn check(pools: &str, machines: &[(&str, &str)]) -> Result<(), String> {
        let flist = Digest([1; 32]);
        let machine = |(name, fields): &(&str, &str)| {
            format!(r#","{name}":{{"machine":{{"image":{{"flist":"{flist}"}}{fields}}}}}"#)
        };
        let machines: String = machines.iter().map(machine).collect();
        let json = format!(r#"{{"workloads":{{{pools}{machines}}}}}"#);
        let deployment: Deployment = serde_json::from_str(&json).map_err(|e| e.to_string())?;
        let back = serde_json::to_string(&deployment).expect("it serialises");
        let again: Deployment = serde_json::from_str(&back).expect("it is read again");
        assert_eq!(again, deployment);
        deployment.check().map_err(|e| e.to_string())
    }

    const LAN: &str = r#""lan":{"pool":{"kind":"lan","range":"192.0.2.200-192.0.2.219","link":"eth0","for":{"shop":2}}}"#;

    #[test]
    fn a_machine_asks_for_an_address_and_says_who_may_speak_to_it() {
        let web = r#","addresses":[{"pool":"lan","allow":[{"tcp":443},{"udp":53,"from":"203.0.113.0/24"},{"icmp":true}]}]"#;
        let db = r#","addresses":[{"pool":"lan","address":"192.0.2.201"}]"#;
        check(LAN, &[("web", web), ("db", db)]).expect("a valid deployment");
    }

    #[test]
    fn each_mistake_is_named() {
        let own = |fields: &str| format!(r#","addresses":[{fields}]"#);
        let pool = |fields: &str| format!(r#""lan":{{"pool":{{{fields}}}}}"#);
        let many = vec![r#"{"tcp":1}"#; ALLOW_MAX + 1].join(",");
        for (pools, machine, says) in [
            (
                LAN.to_owned(),
                own(r#"{"pool":"lan","allow":[{}]}"#),
                "write one of",
            ),
            (
                LAN.to_owned(),
                own(r#"{"pool":"lan","allow":[{"tcp":0}]}"#),
                "write one of",
            ),
            (
                LAN.to_owned(),
                own(r#"{"pool":"lan","allow":[{"tcp":1,"udp":1}]}"#),
                "write one of",
            ),
            (
                LAN.to_owned(),
                own(r#"{"pool":"lan","allow":[{"sctp":1}]}"#),
                "unknown field",
            ),
            (
                LAN.to_owned(),
                own(r#"{"pool":"lan","allow":[{"tcp":22,"from":"192.0.2.50/24"}]}"#),
                "write 192.0.2.0/24 for all of it, or 192.0.2.50/32",
            ),
            (
                LAN.to_owned(),
                own(r#"{"pool":"lan","allow":[{"tcp":22,"from":"2001:db8::7/32"}]}"#),
                "write 2001:db8::/32 for all of it, or 2001:db8::7/128",
            ),
            (
                pool(r#""kind":"routed","range":"100.127.255.0/24""#),
                String::new(),
                "leads to its networks",
            ),
            (
                pool(r#""kind":"lan","range":"100.125.255.255-100.126.0.1""#),
                String::new(),
                "leads to its networks",
            ),
            (
                LAN.to_owned(),
                own(r#"{"pool":"lan","mac":1}"#),
                "unknown field",
            ),
            (
                LAN.to_owned(),
                own(&format!(r#"{{"pool":"lan","allow":[{many}]}}"#)),
                "65 rules",
            ),
            (
                LAN.to_owned(),
                own(r#"{"pool":"lan"},{"pool":"lan"}"#),
                "one family twice",
            ),
            (
                LAN.to_owned(),
                own(r#"{"pool":"a"},{"pool":"b"},{"pool":"c"}"#),
                "3 addresses",
            ),
            (
                pool(r#""kind":"lan","range":"127.0.0.1""#),
                String::new(),
                "no range of addresses",
            ),
            (
                pool(r#""kind":"moon","range":"192.0.2.1""#),
                String::new(),
                "unknown variant",
            ),
            (
                pool(r#""kind":"routed","range":"192.0.2.0/28","link":"eth0""#),
                String::new(),
                "of kind lan only",
            ),
            (
                pool(r#""kind":"lan","range":"192.0.2.0/28","link":"a b""#),
                String::new(),
                "no name of a link",
            ),
            (
                pool(r#""kind":"routed","range":"10.200.0.0/24""#),
                String::new(),
                "networks of tenants",
            ),
            (
                format!(r#"{LAN},"b":{{"pool":{{"kind":"routed","range":"192.0.2.219"}}}}"#),
                String::new(),
                "addresses in common",
            ),
            (
                format!(r#"{LAN},"in":{{"network":{{"internal":true}}}}"#),
                format!(
                    r#","networks":[{{"network":"in"}}]{}"#,
                    own(r#"{"pool":"lan"}"#)
                ),
                "first network is internal",
            ),
        ] {
            let error = check(&pools, &[("web", &machine)]).expect_err(says);
            assert!(error.contains(says), "{error} for {says}");
        }
        let same = own(r#"{"pool":"lan","address":"192.0.2.201"}"#);
        let error = check(LAN, &[("a", &same), ("b", &same)]).expect_err("one for two");
        assert!(error.contains("both ask for 192.0.2.201"), "{error}");
    }

    #[test]
    fn a_range_is_a_prefix_two_ends_or_one_address() {
        for (text, shown, count) in [
            ("192.0.2.200-192.0.2.219", "192.0.2.200-192.0.2.219", 20),
            ("192.0.2.192/28", "192.0.2.192-192.0.2.207", 16),
            ("192.0.2.7", "192.0.2.7", 1),
            ("198.18.0.0/16", "198.18.0.0-198.18.255.255", 1 << 16),
            ("2001:db8:5::7", "2001:db8:5::7", 1),
            (
                "2001:db8:5::/64",
                "2001:db8:5::-2001:db8:5:0:ffff:ffff:ffff:ffff",
                1 << 64,
            ),
            ("fd12::10-fd12::1f", "fd12::10-fd12::1f", 16),
        ] {
            let range: Range = text.parse().expect(text);
            assert_eq!(
                (range.to_string(), range.count()),
                (shown.to_owned(), count)
            );
        }
        for text in [
            "",
            "-",
            "192.0.2.2-192.0.2.1",
            "192.0.2.1/28",
            "198.18.0.0/15",
            "0.0.0.0/16",
            "169.253.255.255-169.255.0.0",
            "224.0.0.1",
            "255.255.255.255",
            "192.0.2.1-2001:db8::1",
            "192.0.2.1-",
            "2001:db8::1/64",
            "2001:db8::2-2001:db8::1",
            "::1",
            "::ffff:192.0.2.1",
            "64:ff9b::c000:201",
            "fe80::1",
            "ff02::1",
            "::/0",
            "3fff::-fd00::1",
            "2001::1",
            "2000::/3",
            "2002:c000:201::/48",
        ] {
            assert!(text.parse::<Range>().is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_a_range_that_reads_back_or_an_error(text in "[0-9a-f.:/-]{0,40}") {
            if let Ok(range) = text.parse::<Range>() {
                assert_eq!(range.to_string().parse(), Ok(range));
                assert!(range.from(7).take(3).all(|address| range.contains(address)));
            }
        }

        #[test]
        fn no_range_of_ipv6_has_an_address_that_is_not_for_machines(first: u128, last: u128, at: u128) {
            let (first, last) = (Ipv6Addr::from_bits(first), Ipv6Addr::from_bits(last));
            if let Ok(range) = format!("{first}-{last}").parse::<Range>() {
                let Some(IpAddr::V6(one)) = range.from(at).next() else { panic!("{range} has none") };
                let head = one.segments()[0];
                assert!((0x2000..0x4000).contains(&head) || (0xfc00..0xfe00).contains(&head), "{one}");
                assert!(head != 0x2002 && !(head == 0x2001 && one.segments()[1] < 0x200), "{one}");
            }
        }

        #[test]
        fn every_address_of_a_range_comes_once_wherever_the_search_begins(first in 1u32..0x7e00_0000, count in 1u32..300, start in any::<u64>()) {
            let last = Ipv4Addr::from_bits(first + count - 1);
            let first = Ipv4Addr::from_bits(first);
            if let Ok(range) = format!("{first}-{last}").parse::<Range>() {
                let all: BTreeSet<IpAddr> = range.from(start.into()).collect();
                assert_eq!(u32::try_from(all.len()), Ok(count));
                assert!(all.iter().all(|address| range.contains(*address) && is_for_machines(*address)));
            }
        }
    }
}
