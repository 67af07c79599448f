//! Options of a site, read one by one and then checked together.
//!
//! Owns: keys, values and what contradicts what; each error names its option and what would be right.
//! Refuses: guessing. A link with an error is left out, and with it what lies on it.

use std::collections::BTreeSet;
use std::net::IpAddr;

use types::AnyCidr;
use types::proxy::{self, Egress, Except, Proxy, ProxyError};

use super::{LINKS_MAX, MTU, Made, PARTS_MAX, Port, Site, Spec};
use crate::autoconf::MTU_MIN;
use crate::link::BondMode;

/// An MTU below what every IPv4 host accepts (RFC 791) or above what Ethernet has is a slip.
const MTUS: std::ops::RangeInclusive<u32> = 576..=9216;
/// IEEE 802.1Q: 0 is no VLAN and 4095 is reserved.
const VLANS: std::ops::RangeInclusive<u16> = 1..=4094;

/// Options that were read so far.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Draft {
    links: Vec<(Port, Parts)>,
    dns: Vec<IpAddr>,
    /// As far as it could be read; `None`: nothing was said.
    egress: Option<Egress>,
    except: Option<Result<Vec<Except>, ProxyError>>,
    /// Links of which something could not be read.
    spoilt: BTreeSet<Port>,
    /// Something was said of links, if only what could not be read.
    named: bool,
}

/// What was said of one link.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Parts {
    vlan: Option<u16>,
    on: Option<Port>,
    bond: Option<BondMode>,
    ports: Vec<Port>,
    dhcp: Option<bool>,
    ra: Option<bool>,
    addresses: Vec<AnyCidr>,
    gateways: Vec<IpAddr>,
    mtu: Option<u32>,
}

impl Draft {
    /// `option` as in `<link>.<key>`. A later value of the same key replaces the earlier.
    pub fn set_link(&mut self, option: &str, value: &str) -> Result<(), String> {
        self.named = true;
        let (link, key) = option.rsplit_once('.').ok_or(
            "it is sifr.net.<link>.<key>=<value>, such as sifr.net.eth0.address=192.0.2.7/24",
        )?;
        let port: Port = link.parse()?;
        let parts = self.parts(&port)?;
        let set = parts.set(key, value);
        if set.is_err() {
            self.spoilt.insert(port);
        }
        set
    }

    pub fn set_dns(&mut self, value: &str) -> Result<(), String> {
        let dns: Vec<IpAddr> = list(value, "a name server's address")?;
        if let Some(local) = dns.iter().find(|server| is_local(**server)) {
            return Err(format!(
                "{local} is another machine on each link: use an address that is not of one link only"
            ));
        }
        self.dns = dns;
        Ok(())
    }

    /// Its errors show nothing of the value: a password may be in it.
    pub fn set_proxy(&mut self, value: &str) -> Result<(), String> {
        self.egress = Some(Egress::Unclear);
        self.egress = Some(match value {
            "off" => Egress::Direct,
            _ => Egress::By(far(value
                .parse()
                .map_err(|e: ProxyError| e.to_string())?)?),
        });
        Ok(())
    }

    /// What was said of the proxy does not count, and what was meant is not guessed.
    pub fn spoil_proxy(&mut self) {
        self.egress = Some(Egress::Unclear);
    }

    pub fn set_proxy_except(&mut self, value: &str) -> Result<(), String> {
        let each: Vec<&str> = value.split(',').collect();
        let except = self.except.insert(proxy::exceptions(&each));
        except.as_ref().map(drop).map_err(ToString::to_string)
    }

    fn egress(&self) -> Result<Egress, String> {
        match (&self.egress, &self.except) {
            (None, None) => Ok(Egress::Direct),
            (None, Some(_)) => Err(
                "sifr.proxy.except: no sifr.proxy is named that it could be excepted from"
                    .to_owned(),
            ),
            (Some(Egress::By(_)), Some(Err(_))) => Ok(Egress::Unclear),
            (Some(Egress::By(proxy)), Some(Ok(except))) => {
                Ok(Egress::By(proxy.clone().except(except.clone())))
            }
            (Some(egress), _) => Ok(egress.clone()),
        }
    }

    fn parts(&mut self, port: &Port) -> Result<&mut Parts, String> {
        let at = self.links.iter().position(|(known, _)| known == port);
        let at = match at {
            Some(at) => at,
            None if self.links.len() == LINKS_MAX => {
                return Err(format!("there are more than {LINKS_MAX} links"));
            }
            None => {
                self.links.push((port.clone(), Parts::default()));
                self.links.len() - 1
            }
        };
        Ok(&mut self.links[at].1)
    }

    /// What all of it means, and what contradicts itself.
    pub fn site(&self) -> (Site, Vec<String>) {
        let mut errors = Vec::new();
        let mut specs: Vec<Spec> = Vec::new();
        for (port, parts) in &self.links {
            // Its error was told when it was read.
            if self.spoilt.contains(port) {
                continue;
            }
            match parts.spec(port, self) {
                Ok(spec) => specs.push(spec),
                Err(error) => errors.push(format!("sifr.net.{port}: {error}")),
            }
        }
        errors.extend(contradictions(&mut specs, &self.links));
        let egress = self.egress();
        errors.extend(egress.as_ref().err().cloned());
        let site = Site {
            links: self.named.then_some(specs),
            dns: self.dns.clone(),
            egress: egress.unwrap_or_default(),
        };
        (site, errors)
    }

    fn carries_vlans(&self, port: &Port) -> bool {
        let mut all = self.links.iter();
        all.any(|(_, parts)| parts.on.as_ref() == Some(port))
    }

    fn is_bonded(&self, port: &Port) -> bool {
        let mut all = self.links.iter();
        all.any(|(_, parts)| parts.ports.contains(port))
    }
}

impl Parts {
    fn set(&mut self, key: &str, value: &str) -> Result<(), String> {
        match key {
            "address" => {
                self.addresses = list(
                    value,
                    "an address with its prefix length, as 192.0.2.7/24 or 2001:db8::7/64",
                )?;
                let unusable = self.addresses.iter().find(|a| !is_usable(a));
                unusable.map_or(Ok(()), |a| Err(format!("{a} is no address of a machine")))?;
            }
            "gateway" => {
                self.gateways = list(value, "a router's address")?;
                let v6 = self.gateways.iter().filter(|g| g.is_ipv6()).count();
                let special = self.gateways.iter().any(|g| is_special(*g));
                if special || v6 > 1 || self.gateways.len() - v6 > 1 {
                    return Err(
                        "use the router's address: one of IPv4, one of IPv6 or both".to_owned()
                    );
                }
            }
            "dhcp" => self.dhcp = Some(is_on(value)?),
            "ra" => self.ra = Some(is_on(value)?),
            "mtu" => {
                let (least, most) = (MTUS.start(), MTUS.end());
                let mtu = value.parse().ok().filter(|mtu| MTUS.contains(mtu));
                self.mtu = Some(mtu.ok_or_else(|| format!("use {least} to {most}"))?);
            }
            "vlan" => {
                let id = value.parse().ok().filter(|id| VLANS.contains(id));
                self.vlan = Some(id.ok_or("use the VLAN's number, 1 to 4094")?);
            }
            "on" => self.on = Some(value.parse()?),
            "bond" => {
                self.bond = match value {
                    "802.3ad" | "lacp" => Some(BondMode::Lacp),
                    "active-backup" => Some(BondMode::ActiveBackup),
                    _ => return Err("use 802.3ad or active-backup".to_owned()),
                }
            }
            "ports" => {
                self.ports = list(value, "a port's name or address")?;
                let distinct: BTreeSet<&Port> = self.ports.iter().collect();
                if distinct.len() != self.ports.len() {
                    return Err("a port is named twice".to_owned());
                }
            }
            _ => {
                return Err(
                    "there is no such key: address, gateway, dhcp, ra, mtu, vlan, on, bond and ports exist"
                        .to_owned(),
                );
            }
        }
        Ok(())
    }

    fn spec(&self, port: &Port, all: &Draft) -> Result<Spec, String> {
        let made = self.made(port)?;
        if all.is_bonded(port) {
            return Err(
                "a port of a bond has no options of its own: give them to the bond".to_owned(),
            );
        }
        let asks = self.addresses.is_empty() && !all.carries_vlans(port);
        let narrow = self.mtu.is_some_and(|mtu| mtu < MTU_MIN);
        let dhcp = self.dhcp.unwrap_or(asks);
        let ra = self.ra.unwrap_or(asks && !narrow);
        if narrow && (ra || self.addresses.iter().any(|a| a.address.is_ipv6())) {
            return Err(format!("IPv6 needs an mtu of {MTU_MIN} or more"));
        }
        for gateway in &self.gateways {
            self.reaches(*gateway, if gateway.is_ipv4() { dhcp } else { ra })?;
        }
        let v4 = |gateway: &IpAddr| match gateway {
            IpAddr::V4(gateway) => Some(*gateway),
            IpAddr::V6(_) => None,
        };
        let v6 = |gateway: &IpAddr| match gateway {
            IpAddr::V4(_) => None,
            IpAddr::V6(gateway) => Some(*gateway),
        };
        Ok(Spec {
            port: port.clone(),
            made,
            dhcp,
            ra,
            addresses: self.addresses.clone(),
            gateway: self.gateways.iter().find_map(v4),
            gateway6: self.gateways.iter().find_map(v6),
            mtu: self.mtu,
        })
    }

    /// `asks`: addresses of its family come from others.
    fn reaches(&self, gateway: IpAddr, asks: bool) -> Result<(), String> {
        let of_family = |a: &&AnyCidr| a.address.is_ipv4() == gateway.is_ipv4();
        let own: Vec<&AnyCidr> = self.addresses.iter().filter(of_family).collect();
        let reached = |a: &&AnyCidr| a.contains(gateway) || AnyCidr::host(a.address) == **a;
        if own.is_empty() && !asks {
            return Err(format!(
                "the gateway {gateway} cannot be used without an address of its kind"
            ));
        }
        if !own.is_empty() && !own.iter().any(reached) && !is_local(gateway) {
            return Err(format!(
                "the gateway {gateway} lies in no network of its addresses"
            ));
        }
        if own.iter().any(|a| a.address == gateway) {
            return Err(format!(
                "{gateway} cannot be the node's own and the gateway's"
            ));
        }
        Ok(())
    }

    fn made(&self, port: &Port) -> Result<Made, String> {
        let made = match (self.vlan, &self.on, self.bond, self.ports.as_slice()) {
            (None, None, None, []) => return Ok(Made::Found),
            (Some(id), Some(on), None, []) => Made::Vlan { on: on.clone(), id },
            (None, None, Some(mode), [_, ..]) => Made::Bond {
                mode,
                ports: self.ports.clone(),
            },
            (Some(_), None, None, []) => {
                return Err("a vlan lies on a link: name it with on=".to_owned());
            }
            (None, Some(_), None, []) => {
                return Err("on= is a VLAN's: give its number with vlan=".to_owned());
            }
            (None, None, Some(_), []) => {
                return Err("a bond is made of ports: name them with ports=".to_owned());
            }
            (None, None, None, [_, ..]) => {
                return Err("ports= are a bond's: say with bond= which kind it is, 802.3ad or active-backup".to_owned());
            }
            _ => {
                return Err(
                    "a link is a VLAN or a bond: for a VLAN on a bond name two links".to_owned(),
                );
            }
        };
        match port {
            Port::Name(_) => Ok(made),
            Port::Mac(_) => {
                Err("a link that is made has a name of its own, not a port's address".to_owned())
            }
        }
    }
}

/// What no link can see alone. Those that are wrong are taken out.
fn contradictions(specs: &mut Vec<Spec>, told: &[(Port, Parts)]) -> Vec<String> {
    let mut errors = Vec::new();
    // Taking one out may leave another without what it lies on.
    loop {
        let found = specs.iter().enumerate().find_map(|(at, spec)| {
            let missing = |on: &&Port| {
                told.iter().any(|t| t.0 == **on) && !specs.iter().any(|s| s.port == **on)
            };
            let error = match lies_on(spec).iter().find(missing) {
                Some(on) => format!("{on} is left out, for its own error"),
                None => against(spec, &specs[..at], specs)?,
            };
            Some((at, format!("sifr.net.{}: {error}", spec.port)))
        });
        let Some((at, error)) = found else {
            hear_none_where_narrow(specs);
            return errors;
        };
        specs.remove(at);
        errors.push(error);
    }
}

/// What a VLAN lies on may carry less than IPv6 needs: then no router is heard there.
fn hear_none_where_narrow(specs: &mut [Spec]) {
    let narrow = |s: &&Spec| s.mtu.is_some_and(|mtu| mtu < MTU_MIN);
    let narrow: Vec<Port> = specs
        .iter()
        .filter(narrow)
        .map(|s| s.port.clone())
        .collect();
    for spec in specs {
        if let Made::Vlan { on, .. } = &spec.made {
            spec.ra &= !narrow.contains(on);
        }
    }
}

fn against(spec: &Spec, before: &[Spec], all: &[Spec]) -> Option<String> {
    let made = |port: &Port| {
        all.iter()
            .find(|s| s.port == *port && s.made != Made::Found)
    };
    match &spec.made {
        Made::Found => {}
        Made::Vlan { on, .. } => {
            let carrier = all.iter().find(|s| s.port == *on);
            if carrier.is_some_and(|carrier| matches!(carrier.made, Made::Vlan { .. })) {
                return Some(format!(
                    "{on} is a VLAN itself: name the link that it lies on"
                ));
            }
            let largest = carrier.and_then(|carrier| carrier.mtu).unwrap_or(MTU);
            if spec.mtu.is_some_and(|mtu| mtu > largest) {
                return Some(format!(
                    "its packets must fit those of {on}, {largest} bytes: give {on} a larger mtu"
                ));
            }
            let six = spec.addresses.iter().any(|a| a.address.is_ipv6());
            if largest < MTU_MIN && (six || spec.gateway6.is_some()) {
                return Some(format!(
                    "IPv6 needs an mtu of {MTU_MIN} or more, and that of {on} is {largest}"
                ));
            }
            if let Some(bond) = all.iter().find(|s| bonded(s).contains(on)) {
                return Some(format!(
                    "{on} is a port of {}: put the VLAN on that",
                    bond.port
                ));
            }
            let same = |s: &&Spec| s.made == spec.made;
            if let Some(twin) = before.iter().find(same) {
                return Some(format!("{} is the same VLAN", twin.port));
            }
        }
        Made::Bond { ports, .. } => {
            if let Some(port) = ports
                .iter()
                .find(|port| made(port).is_some() || **port == spec.port)
            {
                return Some(format!("{port} is no port of the machine"));
            }
            let taken = |port: &&Port| before.iter().any(|s| bonded(s).contains(port));
            if let Some(port) = ports.iter().find(taken) {
                return Some(format!("{port} is a port of another bond"));
            }
        }
    }
    let others = before.iter().flat_map(|s| &s.addresses);
    let mut twins = others.filter(|a| spec.addresses.iter().any(|own| own.address == a.address));
    let twin = twins.next()?;
    Some(format!("{} is another link's address", twin.address))
}

fn bonded(spec: &Spec) -> &[Port] {
    match &spec.made {
        Made::Bond { ports, .. } => ports,
        Made::Found | Made::Vlan { .. } => &[],
    }
}

fn lies_on(spec: &Spec) -> &[Port] {
    match &spec.made {
        Made::Vlan { on, .. } => std::slice::from_ref(on),
        Made::Found | Made::Bond { .. } => &[],
    }
}

fn far(proxy: Proxy) -> Result<Proxy, String> {
    match proxy.is_near() {
        true => Err(
            "a proxy is another machine: this is the node itself, or an address of one link only"
                .to_owned(),
        ),
        false => Ok(proxy),
    }
}

/// Values with commas between.
fn list<T: std::str::FromStr>(value: &str, what: &str) -> Result<Vec<T>, String> {
    let items = value.split(',').map(|item| {
        item.parse()
            .map_err(|_| format!("{item:?} is not {what}; several have a comma between"))
    });
    let items: Vec<T> = items.collect::<Result<_, String>>()?;
    if items.len() > PARTS_MAX {
        return Err(format!("there are more than {PARTS_MAX}"));
    }
    Ok(items)
}

fn is_on(value: &str) -> Result<bool, String> {
    match value {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err("use on or off".to_owned()),
    }
}

/// Of one link only.
fn is_local(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(address) if address.is_unicast_link_local())
}

/// No machine's on any network.
fn is_special(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => {
            let first = address.octets()[0];
            first == 0 || first == 127 || first >= 224
        }
        IpAddr::V6(address) => {
            let nobody = address.is_unspecified() || address.is_loopback();
            nobody || address.is_multicast() || address.to_ipv4_mapped().is_some()
        }
    }
}

/// Neither the network's own address, which of IPv6 is its routers', nor its broadcast address, nor one that every link has
/// by itself.
fn is_usable(address: &AnyCidr) -> bool {
    let edge = match (address.v4(), address.v6()) {
        (Some(v4), _) => {
            let host = u32::from(v4.address) & !v4.mask();
            v4.prefix() < 31 && (host == 0 || host == !v4.mask())
        }
        (None, Some(v6)) => v6.prefix() < 127 && v6.network().address == v6.address,
        (None, None) => false,
    };
    !is_special(address.address) && !is_local(address.address) && !edge && address.prefix() > 0
}
