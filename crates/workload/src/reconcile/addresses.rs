//! The reconciler's pools: which addresses a machine gets of its own, and what of pools cannot be as a statement says.
//!
//! Owns: the choice, kept in the machine's record from its first start on, and every reason against pools and addresses that
//! needs the node. Refuses: the rules that follow ([`crate::host::Step::Publish`] has the places).

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use types::address::{Allow, Pool, Range, Wanted};
use types::deployment::{Action, Deployment, Machine as Spec};
use types::status::{PoolStatus, Refusal, RefusalCode};
use types::{Name, PublicKey, VmId};

use super::Reconciler;
use crate::desired::{Key, Target, Verified};
use crate::host::{Own, PlacedOwn};
use crate::machine::Machine;

impl Reconciler {
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

    /// The addresses that machines have, and those that they ask for, of whom and in which pool; but for `except`.
    fn claimed(&self, except: Option<&VmId>) -> BTreeMap<IpAddr, (String, Name)> {
        let mut claimed = BTreeMap::new();
        let other = |vm: &VmId| Some(vm) != except;
        for (vm, key, _, name, spec) in self.desired.machines() {
            let asked = spec.addresses.iter().filter(|_| other(&vm));
            for wanted in asked {
                let who = (format!("{}/{name}", key.name), wanted.pool.clone());
                claimed.extend(wanted.address.map(|address| (address, who)));
            }
        }
        for (_, machine) in self.machines.iter().filter(|(vm, _)| other(vm)) {
            for own in machine.cards.iter().flat_map(|card| &card.own) {
                let who = format!("{}/{}", machine.key.name, machine.workload);
                claimed.insert(own.address, (who, own.pool.clone()));
            }
        }
        claimed
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
        let taken = self.claimed(Some(vm));
        let held: Vec<&Own> = machine.cards.iter().flat_map(|card| &card.own).collect();
        let choose = |wanted: &Wanted| {
            let pool = self.pool(machine.key.signer, &wanted.pool);
            let range = pool
                .ok_or("a pool that it asks for an address is gone")?
                .range;
            let held = held.iter().find(|own| own.pool == wanted.pool);
            let held = held.map(|own| own.address);
            let free = |address: &IpAddr| range.contains(*address) && !taken.contains_key(address);
            let address = match wanted.address {
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
    pub(super) fn place_own(&self, machine: &Machine, spec: Option<&Spec>) -> Vec<PlacedOwn> {
        let held = machine.cards.first().into_iter().flat_map(|card| &card.own);
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
        held.filter_map(place).collect()
    }

    pub(super) fn pool_statuses(&self, key: &Key) -> BTreeMap<Name, PoolStatus> {
        let deployment = self.desired.get(key).and_then(Target::deployment);
        let pools = deployment.into_iter().flat_map(Deployment::pools);
        let status = |(name, pool): (&Name, &Pool)| {
            let claimed = self.claimed(None).into_iter();
            let of_it = claimed.filter(|(at, (_, of))| of == name && pool.range.contains(*at));
            let status = PoolStatus {
                kind: pool.kind,
                range: pool.range,
                used: of_it.map(|(address, (who, _))| (address, who)).collect(),
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
            let touched = networks.iter().find(|range| range.touches(&pool.range))?;
            Some(conflict(format!(
                "pool {name} of {}: {touched} is the network of machines on this node: give the pool another range, or those machines another network",
                key.name
            )))
        })
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
            let claimed = self.claimed(None).into_iter();
            let mut held = claimed.filter(|(_, (_, pool))| pool == name);
            let (address, (who, _)) = held.find(|(address, _)| was.range.contains(*address) && !range.contains(*address))?;
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
        let (of, called) = (&key.name, &wanted.pool);
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
        if let Some(address) = wanted.address {
            if !pool.range.contains(address) {
                return Err(conflict(format!(
                    "{name} of {of} asks for {address}, which is not in {called} ({}): ask for one of those, or for none",
                    pool.range
                )));
            }
            if let Some((who, _)) = self.claimed(Some(vm)).get(&address) {
                return Err(conflict(format!(
                    "{name} of {of} asks for {address}, which {who} has: ask for another, or for none"
                )));
            }
        }
        let ask = |spec: &Spec| spec.addresses.iter().any(|other| other.pool == *called);
        let others = self.desired.machines();
        let others = others.filter(|(_, other, _, _, spec)| {
            other.signer == key.signer && *other != key && ask(spec)
        });
        let all = others.count() as u128 + u128::from(asked);
        if all > pool.range.count() {
            return Err(refusal(
                RefusalCode::OverCapacity,
                format!(
                    "the pool {called} has {} addresses, and all of them are taken: delete a machine that has one, or give the pool a larger range",
                    pool.range.count()
                ),
            ));
        }
        Ok(pool.range)
    }
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
