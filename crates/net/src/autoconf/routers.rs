//! What the routers of a link have said, and until when it holds (RFC 4861, RFC 4862), without sockets or clocks.
//!
//! Owns: when routers are asked, which of them leads to the world, which prefixes give addresses, and when each ends.
//! Refuses: more of anything than a link honestly has: what a flood of advertisements names beyond that is not kept.
//!
//! An address ends with its prefix's valid lifetime. One whose preferred lifetime is over is given up as soon as there is
//! a better one. A router that does not answer leads nowhere as long as another one does, whatever it has said of itself (RFC 4861
//! section 6.3.6, RFC 4191 section 3.2); one that goes on saying that it leads to the world is tried again, more and more rarely. Where the cable was away everything is in doubt: what nobody repeats soon after the first router that
//! answers is forgotten; where none answers it stays.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::net::Ipv6Addr;
use std::time::{Duration, Instant};

use types::{Cidr6, Mac};

use super::advert::{Advert, Preference, Prefix};
use super::{Learned, eui64};
use crate::dhcp6::Mode;
use crate::link::Neighbour;

/// Between solicitations (RFC 7559 section 2: the first pause is doubled). The longest there is an hour; a router that
/// starts says so itself, and a node that waits for nothing else may ask more often.
const SOLICIT_FIRST: Duration = Duration::from_secs(4);
const SOLICIT_MAX: Duration = Duration::from_secs(300);
/// After the cable came back all routers of a link answer within half a second (RFC 4861: MAX_RA_DELAY_TIME); a packet or
/// two may be lost.
const DOUBT: Duration = Duration::from_secs(8);
/// Advertisements of its router that do not name a prefix any more until it is no longer preferred: one router may spread
/// what it says over two packets.
const MISSES: u8 = 4;
/// RFC 4862 section 5.5.3: one forged advertisement does not end an address, or what is on the link, sooner than this.
const VALID_MIN: Duration = Duration::from_secs(7200);
/// A router that did not answer and goes on speaking is tried again after this, doubled each time up to the second: each try costs who
/// speaks through it up to a minute, and there is another that answers.
const PARDON_FIRST: Duration = Duration::from_secs(300);
const PARDON_MAX: Duration = Duration::from_secs(3600);
/// Links have one or two routers, and some prefixes and name servers.
const ROUTERS_MAX: usize = 16;
const PREFIXES_MAX: usize = 16;
const ROUTES_MAX: usize = 32;
const DNS_MAX: usize = 8;
/// Bits of a prefix beside which the node's own part stands.
const SLAAC_PREFIX: u8 = 64;

/// When something ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Until {
    At(Instant),
    Never,
}

impl Until {
    fn after(now: Instant, seconds: u32) -> Self {
        match seconds {
            u32::MAX => Self::Never,
            seconds => Self::At(now + Duration::from_secs(seconds.into())),
        }
    }

    fn holds(self, now: Instant) -> bool {
        self > Self::At(now)
    }
}

/// What was to last until `before` lasts for `seconds` now, but no less than two hours for that.
fn lasting(now: Instant, before: Option<Until>, seconds: u32) -> Until {
    let said = Until::after(now, seconds);
    let least = Until::At(now + VALID_MIN);
    match before {
        None => said,
        Some(before) if said > least || said > before => said,
        Some(before) => before.min(least),
    }
}

#[derive(Debug, Clone)]
struct Router {
    /// It leads to the world.
    until: Until,
    /// What it said of the link is kept as long, but no shorter than this: a router that leads nowhere still says it.
    known: Until,
    preference: Preference,
    mode: Mode,
    mtu: Option<u32>,
    voice: Voice,
    doubtful: bool,
}

/// Whether a router answers when something is sent to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Voice {
    /// As far as is known.
    #[default]
    Answers,
    /// It did not, and has said since that it is there: it is tried once more, and after that not for longer than the last time.
    Tried { failures: u32 },
    Silent {
        since: Instant,
        /// What it says before then changes nothing: one that is dead may say it for ever.
        until: Instant,
        failures: u32,
    },
}

impl Voice {
    fn failed(self, now: Instant) -> Self {
        let failures = match self {
            Self::Answers => 0,
            Self::Tried { failures } => failures,
            // The same death, found out once more.
            Self::Silent {
                until, failures, ..
            } => {
                return Self::Silent {
                    since: now,
                    until,
                    failures,
                };
            }
        };
        let pause = PARDON_FIRST.saturating_mul(1 << failures.min(16));
        Self::Silent {
            since: now,
            until: now + pause.min(PARDON_MAX),
            failures: failures.saturating_add(1),
        }
    }

    /// It says that it leads to the world.
    fn spoke(self, now: Instant) -> Self {
        match self {
            Self::Silent {
                until, failures, ..
            } if until <= now => Self::Tried { failures },
            Self::Answers | Self::Tried { .. } | Self::Silent { .. } => self,
        }
    }

    /// The highest is the best: one that answers, then the one that has not for longest. So where none answers they are tried in turn.
    fn rank(self) -> Reverse<Option<Instant>> {
        Reverse(match self {
            Self::Answers | Self::Tried { .. } => None,
            Self::Silent { since, .. } => Some(since),
        })
    }
}

/// The highest is used.
type Rank = (Reverse<Option<Instant>>, Preference);

impl Router {
    fn rank(&self) -> Rank {
        (self.voice.rank(), self.preference)
    }
}

#[derive(Debug, Clone)]
struct Held {
    by: Ipv6Addr,
    /// Neighbours are reached directly.
    on_link: Option<Until>,
    /// It gives an address: valid, preferred.
    address: Option<(Until, Until)>,
    missed: u8,
    doubtful: bool,
}

#[derive(Debug, Clone)]
struct Path {
    preference: Preference,
    until: Until,
    doubtful: bool,
}

#[derive(Debug, Clone)]
struct Dns {
    server: Ipv6Addr,
    until: Until,
    doubtful: bool,
}

#[derive(Debug)]
pub(super) struct Routers {
    mac: Mac,
    routers: BTreeMap<Ipv6Addr, Router>,
    prefixes: BTreeMap<Cidr6, Held>,
    /// By destination and router.
    routes: BTreeMap<(Cidr6, Ipv6Addr), Path>,
    dns: Vec<Dns>,
    /// The router in use: of equals it stays.
    chosen: Option<Ipv6Addr>,
    /// When routers are asked next, and the pause after that. `None` while one is known.
    solicit: Option<(Instant, Duration)>,
    /// When what is in doubt is forgotten.
    doubt: Option<Instant>,
    /// What ended until then has been forgotten.
    looked: Instant,
}

impl Routers {
    pub(super) fn new(mac: Mac, now: Instant) -> Self {
        Self {
            mac,
            routers: BTreeMap::new(),
            prefixes: BTreeMap::new(),
            routes: BTreeMap::new(),
            dns: Vec::new(),
            chosen: None,
            solicit: Some((now, SOLICIT_FIRST)),
            doubt: None,
            looked: now,
        }
    }

    /// When [`Self::tick`] wants to be called. `None`: never, unless something is heard.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let solicit = self.solicit.map(|(at, _)| at);
        let ends = self.ends().filter_map(|until| match until {
            Until::At(at) => Some(at),
            Until::Never => None,
        });
        ends.chain(solicit).chain(self.doubt).min()
    }

    fn ends(&self) -> impl Iterator<Item = Until> {
        let routers = self.routers.values();
        let routers = routers.flat_map(|r| [r.until, r.known]);
        let prefixes = self.prefixes.values().flat_map(|held| {
            let address = held.address.map(|(valid, preferred)| [valid, preferred]);
            let address = address.into_iter().flatten();
            address.chain(held.on_link)
        });
        let routes = self.routes.values().map(|path| path.until);
        let dns = self.dns.iter().map(|dns| dns.until);
        let all = routers.chain(prefixes).chain(routes).chain(dns);
        all.filter(|until| until.holds(self.looked))
    }

    /// Forgets what has ended. Whether routers are to be asked now.
    pub(super) fn tick(&mut self, now: Instant) -> bool {
        self.forget(now);
        let Some((at, pause)) = self.solicit else {
            return false;
        };
        if now < at {
            return false;
        }
        self.solicit = Some((now + pause, (pause * 2).min(SOLICIT_MAX)));
        true
    }

    /// The link came up, and may lead elsewhere than before.
    pub(super) fn attached(&mut self, now: Instant) {
        for router in self.routers.values_mut() {
            (router.doubtful, router.voice) = (true, Voice::Answers);
        }
        self.prefixes.values_mut().for_each(|p| p.doubtful = true);
        self.routes.values_mut().for_each(|p| p.doubtful = true);
        self.dns.iter_mut().for_each(|dns| dns.doubtful = true);
        self.doubt = None;
        self.solicit = Some((now, SOLICIT_FIRST));
    }

    /// There are several: whether they answer matters.
    pub(super) fn are_several(&self) -> bool {
        self.routers.len() > 1
    }

    /// A neighbour answers, or does not when something is sent to it.
    pub(super) fn answers(&mut self, now: Instant, neighbour: Neighbour) {
        if let Some(router) = self.routers.get_mut(&neighbour.address) {
            router.voice = match neighbour.answers {
                true => Voice::Answers,
                false => router.voice.failed(now),
            };
        }
        self.forget(now);
    }

    pub(super) fn hear(&mut self, now: Instant, advert: &Advert) {
        self.forget(now);
        if self.routers.len() >= ROUTERS_MAX && !self.routers.contains_key(&advert.router) {
            return;
        }
        self.hear_router(now, advert);
        self.miss(now, advert);
        for prefix in &advert.prefixes {
            self.hear_prefix(now, advert.router, prefix);
        }
        for route in &advert.routes {
            let path = Path {
                preference: route.preference,
                until: Until::after(now, route.lifetime),
                doubtful: false,
            };
            let key = (route.destination, advert.router);
            if self.routes.len() < ROUTES_MAX || self.routes.contains_key(&key) {
                self.routes.insert(key, path);
            }
        }
        for (server, lifetime) in &advert.dns {
            let (until, doubtful) = (Until::after(now, *lifetime), false);
            if let Some(dns) = self.dns.iter_mut().find(|dns| dns.server == *server) {
                (dns.until, dns.doubtful) = (until, doubtful);
            } else if self.dns.len() < DNS_MAX {
                self.dns.push(Dns {
                    server: *server,
                    until,
                    doubtful,
                });
            }
        }
        if self.is_in_doubt() {
            self.doubt.get_or_insert(now + DOUBT);
        }
        self.forget(now);
    }

    fn hear_router(&mut self, now: Instant, advert: &Advert) {
        let mode = match (advert.managed, advert.other) {
            (true, _) => Mode::Stateful,
            (false, true) => Mode::Stateless,
            (false, false) => Mode::Off,
        };
        let until = Until::after(now, advert.lifetime.into());
        let known = self.routers.get(&advert.router);
        let voice = known.map(|router| router.voice).unwrap_or_default();
        let router = Router {
            until,
            known: until.max(Until::At(now + VALID_MIN)),
            preference: advert.preference,
            mode,
            mtu: advert.mtu,
            voice: voice.spoke(now),
            doubtful: false,
        };
        self.routers.insert(advert.router, router);
        // One that leads nowhere does not keep the node from asking for one that does.
        if advert.lifetime > 0 {
            self.solicit = None;
        }
    }

    /// A router that names prefixes, and one of its own no more, has perhaps started anew with others.
    fn miss(&mut self, now: Instant, advert: &Advert) {
        if advert.prefixes.is_empty() {
            return;
        }
        for (network, held) in &mut self.prefixes {
            if held.by != advert.router || advert.prefixes.iter().any(|p| p.network == *network) {
                continue;
            }
            held.missed = held.missed.saturating_add(1);
            if let Some((_, preferred)) = &mut held.address
                && held.missed >= MISSES
            {
                *preferred = (*preferred).min(Until::At(now));
            }
        }
    }

    fn hear_prefix(&mut self, now: Instant, by: Ipv6Addr, prefix: &Prefix) {
        if self.prefixes.len() >= PREFIXES_MAX && !self.prefixes.contains_key(&prefix.network) {
            return;
        }
        let held = self.prefixes.entry(prefix.network).or_insert(Held {
            by,
            on_link: None,
            address: None,
            missed: 0,
            doubtful: false,
        });
        (held.by, held.missed, held.doubtful) = (by, 0, false);
        // What is not said to be on the link says nothing of it (RFC 4861 section 6.3.4).
        if prefix.on_link {
            held.on_link = Some(lasting(now, held.on_link, prefix.valid));
        }
        if prefix.autonomous && prefix.network.prefix() == SLAAC_PREFIX {
            let before = held.address.map(|(valid, _)| valid);
            let valid = lasting(now, before, prefix.valid);
            let preferred = Until::after(now, prefix.preferred).min(valid);
            held.address = Some((valid, preferred));
        }
    }

    fn is_in_doubt(&self) -> bool {
        self.routers.values().any(|r| r.doubtful)
            || self.prefixes.values().any(|p| p.doubtful)
            || self.routes.values().any(|p| p.doubtful)
            || self.dns.iter().any(|dns| dns.doubtful)
    }

    fn forget(&mut self, now: Instant) {
        self.looked = now;
        let doubted = self.doubt.is_some_and(|at| now >= at);
        if doubted {
            self.doubt = None;
        }
        let stays = |doubtful: bool| !(doubtful && doubted);
        self.routers
            .retain(|_, r| stays(r.doubtful) && r.known.holds(now));
        self.prefixes.retain(|_, held| {
            held.on_link = held.on_link.filter(|until| until.holds(now));
            held.address = held.address.filter(|(valid, _)| valid.holds(now));
            stays(held.doubtful) && (held.on_link.is_some() || held.address.is_some())
        });
        self.routes
            .retain(|_, path| stays(path.doubtful) && path.until.holds(now));
        self.dns
            .retain(|dns| stays(dns.doubtful) && dns.until.holds(now));
        self.choose(now);
        if self.chosen.is_none() && self.solicit.is_none() {
            self.solicit = Some((now, SOLICIT_FIRST));
        }
    }

    fn choose(&mut self, now: Instant) {
        let leads = self.routers.iter().filter(|(_, r)| r.until.holds(now));
        let best = leads.clone().map(|(_, r)| r.rank()).max();
        let mut best = leads
            .filter(|(_, r)| Some(r.rank()) == best)
            .map(|(at, _)| *at);
        let first = best.clone().next();
        self.chosen = best.find(|at| Some(*at) == self.chosen).or(first);
    }

    fn voice(&self, router: &Ipv6Addr) -> Voice {
        let router = self.routers.get(router);
        router.map(|router| router.voice).unwrap_or_default()
    }

    /// What DHCPv6 is for on this link: the most that a router says.
    pub(super) fn mode(&self) -> Mode {
        let modes = self.routers.values().map(|r| r.mode);
        modes.max().unwrap_or(Mode::Off)
    }

    /// What follows for the link.
    /// `leased`: DHCPv6 has given an address.
    pub(super) fn learned(&self, now: Instant, leased: bool) -> Learned {
        let valid = self.prefixes.iter().filter_map(|(network, held)| {
            let (_, preferred) = held.address?;
            let address = eui64(*network, self.mac);
            // Neighbours that are not said to be on the link are reached through a router.
            let prefix = match held.on_link {
                Some(_) => network.prefix(),
                None => 128,
            };
            Some((Cidr6::new(address, prefix)?, preferred.holds(now)))
        });
        let valid: Vec<(Cidr6, bool)> = valid.collect();
        let better = leased || valid.iter().any(|(_, preferred)| *preferred);
        let addresses = valid.into_iter().filter(|(_, p)| *p || !better);
        let addresses: Vec<Cidr6> = addresses.map(|(address, _)| address).collect();
        let bare = self.prefixes.iter().filter(|(network, held)| {
            held.on_link.is_some() && !addresses.iter().any(|a| a.network() == **network)
        });
        let mut routes = BTreeMap::new();
        for ((destination, router), path) in &self.routes {
            let rank: Rank = (self.voice(router).rank(), path.preference);
            let known = routes.get(destination);
            if known.is_none_or(|(_, known)| rank > *known) {
                routes.insert(*destination, (Some(*router), rank));
            }
        }
        // `::/0` is another way to say that a router leads to the world.
        let everywhere = Cidr6::new(Ipv6Addr::UNSPECIFIED, 0).expect("0 is a prefix length");
        let world = routes.remove(&everywhere).and_then(|(router, _)| router);
        // Whoever of the two answers; where both do or neither, what a router says of itself.
        let silence = |router: &Ipv6Addr| Reverse(self.voice(router).rank());
        let gateway = self.chosen.into_iter().chain(world).min_by_key(silence);
        let mut all: BTreeMap<Cidr6, Option<Ipv6Addr>> =
            routes.into_iter().map(|(to, (by, _))| (to, by)).collect();
        all.extend(bare.map(|(network, _)| (*network, None)));
        Learned {
            gateway,
            routes: all.into_iter().collect(),
            dns: self.dns.iter().map(|dns| dns.server).collect(),
            ntp: Vec::new(),
            mtu: self.routers.values().filter_map(|r| r.mtu).min(),
            addresses,
        }
    }
}
