//! The reconciler's pools: which addresses a machine gets of its own, and what of pools cannot be as a statement says.
//!
//! Owns: the choice, kept in the machine's record from its first start on, and every reason against pools and addresses that
//! needs the node. Refuses: the rules that follow ([`crate::host::Step::Publish`] has the places).

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use types::address::{Allow, Pool, Range, Wanted};
use types::deployment::{Action, Deployment, Machine as Spec};
use types::network::number;
use types::status::{PoolStatus, Refusal, RefusalCode};
use types::{Cidr, Name, PublicKey, VmId};

use super::Reconciler;
use crate::desired::{Key, Target, Verified};
use crate::host::{Own, PlacedOwn};
use crate::machine::Machine;

/// Tells which addresses around the node are somebody's whom no pool may take them from, and whose each is.
pub type Occupied = Box<dyn Fn() -> BTreeMap<IpAddr, &'static str> + Send>;

/// Who has an address, or asks for it.
pub(super) struct Claim<'a> {
    vm: VmId,
    key: &'a Key,
    machine: &'a Name,
    pool: Name,
}

impl Claim<'_> {
    fn who(&self) -> String {
        format!("{}/{}", self.key.name, self.machine)
    }
}

impl Reconciler {
    /// No machine gets any of these, from now on.
    pub fn keep_off(&mut self, occupied: Occupied) {
        self.occupied = occupied;
    }

    /// No pool has any of this range, from now on: it is what the node makes its machines' networks of.
    pub fn reserve(&mut self, range: Range) {
        self.reserved = Some(range);
    }

    /// The pools of a signer, by their names, and whose each is.
    fn pools(&self, signer: PublicKey) -> impl Iterator<Item = (&Key, &Name, &Pool)> {
        let targets = self.desired.iter();
        let own = targets.filter(move |(key, _)| key.signer == signer);
        own.flat_map(|(key, target)| {
            let deployment = target.deployment().into_iter();
            let pools = deployment.flat_map(Deployment::pools);
            pools.map(move |(name, pool)| (key, name, pool))
        })
    }

    fn pool(&self, signer: PublicKey, name: &Name) -> Option<&Pool> {
        let mut pools = self.pools(signer);
        pools.find_map(|(_, known, pool)| (known == name).then_some(pool))
    }

    /// The addresses that machines ask for, and those that they have, which count before.
    fn claimed(&self) -> BTreeMap<IpAddr, Claim<'_>> {
        let machines = self.desired.machines();
        let asked = machines.flat_map(|(vm, key, _, machine, spec)| {
            spec.addresses.iter().filter_map(move |wanted| {
                let (vm, pool) = (vm.clone(), wanted.pool.clone());
                let claim = Claim {
                    vm,
                    key,
                    machine,
                    pool,
                };
                Some((wanted.address?, claim))
            })
        });
        let mut claimed: BTreeMap<_, _> = asked.collect();
        claimed.extend(self.held());
        claimed
    }

    /// The addresses that machines have: those of its VM, and without one those that it is to have again. What a record has
    /// beside that is from before a change that has not come to its end: somebody else may have it by now, and has it alone.
    pub(super) fn held(&self) -> BTreeMap<IpAddr, Claim<'_>> {
        let (run, rest): (Vec<_>, Vec<_>) = self
            .machines
            .iter()
            .partition(|(_, machine)| machine.has_vm());
        let mut held = BTreeMap::new();
        for (vm, machine) in run.into_iter().chain(rest) {
            let target = self.desired.get(&machine.key);
            let spec = target.and_then(|target| target.machine(&machine.workload));
            for own in machine.cards.iter().flat_map(|card| &card.own) {
                if machine.has_vm() || asks_for(spec, &own.pool, own.address) {
                    held.entry(own.address).or_insert_with(|| Claim {
                        vm: vm.clone(),
                        key: &machine.key,
                        machine: &machine.workload,
                        pool: own.pool.clone(),
                    });
                }
            }
        }
        held
    }

    /// The addresses of its own that a machine is to have: those that it has already, where its pools have them still.
    pub(super) fn choose_own(
        &self,
        vm: &VmId,
        machine: &Machine,
        spec: &Spec,
    ) -> Result<Vec<Own>, &'static str> {
        if spec.addresses.is_empty() {
            return Ok(Vec::new());
        }
        let (claimed, occupied) = (self.claimed(), (self.occupied)());
        let held: Vec<&Own> = machine.cards.iter().flat_map(|card| &card.own).collect();
        let choose = |wanted: &Wanted| {
            let pool = self.pool(machine.key.signer, &wanted.pool);
            let range = pool
                .ok_or("a pool that it asks for an address is gone")?
                .range;
            let held = held.iter().find(|own| own.pool == wanted.pool);
            let held = held.map(|own| own.address);
            let free = |address: &IpAddr| {
                let others = claimed.get(address).is_some_and(|claim| claim.vm != *vm);
                range.contains(*address) && !others && !occupied.contains_key(address)
            };
            let address = match wanted.address {
                Some(asked) if occupied.contains_key(&asked) => {
                    return Err(
                        "the address that it asks for is now the node's own or its router's",
                    );
                }
                Some(asked) => Some(asked).filter(free),
                None => held
                    .filter(free)
                    .or_else(|| range.from(begin(vm)).find(free)),
            };
            let address = address.ok_or("the pool that it asks has no address left for it now")?;
            let pool = wanted.pool.clone();
            Ok(Own { pool, address })
        };
        spec.addresses.iter().map(choose).collect()
    }

    /// What the machine's addresses are to the rules now. `spec`: as it is to run.
    pub(super) fn place_own(
        &self,
        (vm, machine): (&VmId, &Machine),
        spec: Option<&Spec>,
        held: &BTreeMap<IpAddr, Claim<'_>>,
    ) -> Vec<PlacedOwn> {
        let all = machine.cards.first().into_iter().flat_map(|card| &card.own);
        let its = |own: &&Own| held.get(&own.address).is_some_and(|claim| claim.vm == *vm);
        let place = |own: &Own| {
            let pool = self.pool(machine.key.signer, &own.pool)?;
            let wanted = spec.into_iter().flat_map(|spec| &spec.addresses);
            let mut wanted = wanted.filter(|wanted| wanted.pool == own.pool);
            let allow: Vec<Allow> = wanted
                .next()
                .map(|wanted| wanted.allow.clone())
                .unwrap_or_default();
            Some(PlacedOwn {
                address: own.address,
                kind: pool.kind,
                link: pool.link.clone(),
                allow,
            })
        };
        all.filter(its).filter_map(place).collect()
    }

    /// The same of one machine, whether it is to run or not.
    pub fn own_of(&self, vm: &VmId) -> Vec<PlacedOwn> {
        let machine = self.machines.get(vm);
        let machine =
            machine.filter(|machine| machine.cards.iter().any(|card| !card.own.is_empty()));
        let place = |machine| self.place_own((vm, machine), None, &self.held());
        machine.map(place).unwrap_or_default()
    }

    pub(super) fn pool_statuses(&self, key: &Key) -> BTreeMap<Name, PoolStatus> {
        let deployment = self.desired.get(key).and_then(Target::deployment);
        let pools = deployment.into_iter().flat_map(Deployment::pools);
        let status = |(name, pool): (&Name, &Pool)| {
            let claimed = self.claimed().into_iter();
            let of_it =
                claimed.filter(|(at, claim)| claim.pool == *name && pool.range.contains(*at));
            let status = PoolStatus {
                kind: pool.kind,
                range: pool.range,
                used: of_it
                    .map(|(address, claim)| (address, claim.who()))
                    .collect(),
            };
            (name.clone(), status)
        };
        pools.map(status).collect()
    }

    /// Why pools, or addresses of them, cannot be as the statement says.
    pub fn addresses_in_the_way(&self, verified: &Verified) -> Option<Refusal> {
        let key = verified.key();
        match &verified.statement.action {
            Action::Deploy(deployment) => self
                .pools_in_the_way(&key, deployment)
                .or_else(|| self.losses(&key, Some(deployment)))
                .or_else(|| self.wishes_in_the_way(&key, deployment)),
            Action::Delete | Action::Destroy { .. } => self.losses(&key, None),
            Action::Stop
            | Action::Start
            | Action::Restart
            | Action::Snapshot { .. }
            | Action::DropSnapshot { .. }
            | Action::Restore { .. } => None,
        }
    }

    /// Pools of one name, or with one address, are one too many.
    fn pools_in_the_way(&self, key: &Key, deployment: &Deployment) -> Option<Refusal> {
        let networks = self.subnets_in_use();
        let others: Vec<_> = self
            .desired
            .iter()
            .filter(|(other, _)| *other != key)
            .flat_map(|(other, target)| {
                let deployment = target.deployment().into_iter();
                let pools = deployment.flat_map(Deployment::pools);
                pools.map(move |(name, pool)| (other, name, pool))
            })
            .collect();
        deployment.pools().find_map(|(name, pool)| {
            let mut all = others.iter();
            if let Some((other, ..)) = all.find(|(other, known, _)| other.signer == key.signer && *known == name) {
                return Some(conflict(format!(
                    "pool {name} of {}: {} has a pool of that name already: choose another name, or change that one",
                    key.name, other.name
                )));
            }
            let mut all = others.iter();
            if let Some((other, known, _)) = all.find(|(.., other)| other.range.touches(&pool.range)) {
                return Some(conflict(format!(
                    "pool {name} of {}: it has addresses in common with the pool {known} of {}: give each its own",
                    key.name, other.name
                )));
            }
            if let Some(range) = self.reserved.filter(|range| range.touches(&pool.range)) {
                return Some(conflict(format!(
                    "pool {name} of {}: it has addresses of {range}, of which this node makes its machines' networks: give it another range",
                    key.name
                )));
            }
            let touched = networks.iter().find(|range| range.touches(&pool.range))?;
            Some(conflict(format!(
                "pool {name} of {}: {touched} is the network of machines on this node: give the pool another range, or those machines another network",
                key.name
            )))
        })
    }

    /// The /24s that pools lie in, where networks of machines could be made. `more`: of a deployment that is to come.
    pub(super) fn grounds_of_pools(&self, more: Option<&Deployment>) -> BTreeSet<Cidr> {
        let targets = self.desired.iter();
        let known = targets.filter_map(|(_, target)| target.deployment());
        let pools = known.chain(more).flat_map(Deployment::pools);
        pools.flat_map(|(_, pool)| grounds(&pool.range)).collect()
    }

    fn subnets_in_use(&self) -> Vec<Range> {
        let subnets: BTreeSet<_> = self.subnets().into_values().collect();
        let range = |subnet: types::Cidr| subnet.network().to_string().parse().ok();
        subnets.into_iter().filter_map(range).collect()
    }

    /// An address that a machine has, or asks for, is not taken from under it. `after`: what the deployment is to be.
    fn losses(&self, key: &Key, after: Option<&Deployment>) -> Option<Refusal> {
        let before = self.desired.get(key).and_then(Target::deployment)?;
        let of_it = |other: &Key, name: &Name| {
            let leaves = |after: &Deployment| !after.machines().any(|(stays, _)| stays == name);
            other == key && after.is_none_or(leaves)
        };
        before.pools().find_map(|(name, was)| {
            let is = after.and_then(|after| after.pools().find(|(known, _)| *known == name));
            let range = is.map(|(_, pool)| pool.range);
            if is.is_some_and(|(_, is)| is == was) {
                return None;
            }
            let users = self.desired.machines().find(|(_, other, _, machine, spec)| {
                let asks = spec.addresses.iter().any(|wanted| wanted.pool == *name);
                asks && other.signer == key.signer && !of_it(other, machine) && range.is_none()
            });
            if let Some((_, other, _, machine, _)) = users {
                return Some(conflict(format!(
                    "pool {name} of {}: {}/{machine} has an address of it: delete that, or deploy it without the address, first",
                    key.name, other.name
                )));
            }
            let range = range?;
            let claimed = self.claimed().into_iter();
            let mut held = claimed.filter(|(_, claim)| claim.pool == *name);
            let (address, claim) = held.find(|(address, _)| was.range.contains(*address) && !range.contains(*address))?;
            let who = claim.who();
            Some(conflict(format!(
                "pool {name} of {}: {who} has {address}, which {range} has not: keep it in the pool, or deploy {who} without the address first",
                key.name
            )))
        })
    }

    /// What machines of the deployment ask of pools.
    fn wishes_in_the_way(&self, key: &Key, deployment: &Deployment) -> Option<Refusal> {
        let mut count: BTreeMap<&Name, u16> = BTreeMap::new();
        for (name, spec) in deployment.machines() {
            let vm = VmId::new(&key.signer, &key.name, name);
            let mut families = BTreeSet::new();
            for wanted in &spec.addresses {
                let asked = count.entry(&wanted.pool).or_default();
                *asked = asked.saturating_add(1);
                let found = self.wish_in_the_way(key, deployment, (&vm, name), wanted, *asked);
                match found {
                    Ok(range) if families.insert(range.is_ipv4()) => {}
                    Ok(_) => {
                        return Some(conflict(format!(
                            "{name} of {} asks for two addresses of one family: leave one of them out",
                            key.name
                        )));
                    }
                    Err(refusal) => return Some(refusal),
                }
            }
        }
        None
    }

    /// `asked`: how many the deployment asks of that pool, this one included.
    fn wish_in_the_way(
        &self,
        key: &Key,
        deployment: &Deployment,
        (vm, name): (&VmId, &Name),
        wanted: &Wanted,
        asked: u16,
    ) -> Result<Range, Refusal> {
        let (of, called, occupied) = (&key.name, &wanted.pool, (self.occupied)());
        let mut own = deployment.pools();
        let own = own.find_map(|(known, pool)| (known == called).then_some(pool));
        let mut others = self.pools(key.signer);
        let pool = own.or_else(|| {
            others
                .find_map(|(other, known, pool)| (other != key && known == called).then_some(pool))
        });
        let Some(pool) = pool else {
            return Err(refusal(
                RefusalCode::NotFound,
                format!(
                    "{name} of {of} asks for an address of {called}, which is no pool of this node: deploy the pool first, `sifr get` lists what is deployed"
                ),
            ));
        };
        let share = match &pool.deployments {
            None => u16::MAX,
            Some(shares) => shares.get(of).copied().unwrap_or(0),
        };
        if asked > share {
            let message = match share {
                0 => format!(
                    "{name} of {of} asks for an address of {called}, which {of} may not have: the pool's `for` says who may"
                ),
                _ => format!(
                    "{of} asks for {asked} addresses of {called} and may have {share}: ask for fewer, or raise its number in the pool's `for`"
                ),
            };
            return Err(refusal(RefusalCode::OverCapacity, message));
        }
        let like = |from: &types::AnyCidr| from.address.is_ipv4() == pool.range.is_ipv4();
        let mut froms = wanted.allow.iter().filter_map(|allow| allow.from);
        if let Some(from) = froms.find(|from| !like(from)) {
            let family = if pool.range.is_ipv4() { "IPv4" } else { "IPv6" };
            return Err(conflict(format!(
                "{name} of {of} lets in `from: {from}`, and addresses of {called} are of {family}: write a prefix of that"
            )));
        }
        if let Some(address) = wanted.address {
            let asked = (vm, name, called, address);
            self.address_in_the_way(key, deployment, asked, (pool.range, &occupied))?;
        }
        let ask = |spec: &Spec| spec.addresses.iter().any(|other| other.pool == *called);
        let others = self.desired.machines();
        let others = others.filter(|(_, other, _, _, spec)| {
            other.signer == key.signer && *other != key && ask(spec)
        });
        let all = others.count() as u128 + u128::from(asked);
        let apart = occupied.keys().filter(|at| pool.range.contains(**at));
        let usable = pool.range.count().saturating_sub(apart.count() as u128);
        if all > usable {
            return Err(refusal(
                RefusalCode::OverCapacity,
                format!(
                    "the pool {called} has {usable} addresses for machines, and all of them are taken: delete a machine that has one, or give the pool a larger range"
                ),
            ));
        }
        Ok(pool.range)
    }

    /// One that is asked for by itself.
    fn address_in_the_way(
        &self,
        key: &Key,
        deployment: &Deployment,
        (vm, name, called, address): (&VmId, &Name, &Name, IpAddr),
        (range, occupied): (Range, &BTreeMap<IpAddr, &'static str>),
    ) -> Result<(), Refusal> {
        let of = &key.name;
        if !range.contains(address) {
            return Err(conflict(format!(
                "{name} of {of} asks for {address}, which is not in {called} ({range}): ask for one of those, or for none"
            )));
        }
        if let Some(whose) = occupied.get(&address) {
            return Err(conflict(format!(
                "{name} of {of} asks for {address}, which is {whose}: ask for another, or for none"
            )));
        }
        let claimed = self.claimed();
        // Of a machine of the same deployment that gives it up with this very statement: this one waits for it.
        let given = |claim: &&Claim<'_>| {
            let spec = deployment
                .machines()
                .find(|(known, _)| *known == claim.machine);
            claim.key == key && !asks_for(spec.map(|(_, spec)| spec), called, address)
        };
        let other = claimed.get(&address).filter(|claim| claim.vm != *vm);
        if let Some(claim) = other.filter(|claim| !given(claim)) {
            return Err(conflict(format!(
                "{name} of {of} asks for {address}, which {} has: ask for another, or for none; or take it from that one in the same statement",
                claim.who()
            )));
        }
        Ok(())
    }
}

/// Whether a machine that has this address of a pool is to keep it.
fn asks_for(spec: Option<&Spec>, pool: &Name, address: IpAddr) -> bool {
    let mut wanted = spec.into_iter().flat_map(|spec| &spec.addresses);
    wanted.any(|wanted| wanted.pool == *pool && wanted.address.is_none_or(|at| at == address))
}

fn grounds(range: &Range) -> impl Iterator<Item = Cidr> + use<> {
    let ends = match range.ends() {
        (IpAddr::V4(first), IpAddr::V4(last)) => Some((first.to_bits() >> 8, last.to_bits() >> 8)),
        _ => None,
    };
    let all = ends.into_iter().flat_map(|(first, last)| first..=last);
    let grounds = all.filter_map(|ground| Cidr::new(Ipv4Addr::from_bits(ground << 8), 24));
    grounds.filter(|ground| number(ground.address).is_some())
}

/// Where the search begins: a machine that comes back mostly finds its old address, also where its record is lost.
fn begin(vm: &VmId) -> u128 {
    let hash = blake3::hash(vm.as_str().as_bytes());
    let [_, _, a, b, c, d, ..] = *hash.as_bytes();
    u32::from_le_bytes([a, b, c, d]).into()
}

fn refusal(code: RefusalCode, message: String) -> Refusal {
    Refusal { code, message }
}

fn conflict(message: String) -> Refusal {
    refusal(RefusalCode::Conflict, message)
}
