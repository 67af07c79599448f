//! Many tenants' networks on one node: what each costs, and what a change costs among so many.
//!
//! Owns: making them as the node does, and what the kernel has less of then.
//! Refuses: machines in them. Each network has the rules of one, which has no card.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use net::firewall::{self, Counts, Ruleset, policy};
use net::network::{self, Network};

use super::paths::{guest, numbered, runtime, six};
use crate::bench::report::{BY_HAND, OURS, Sample};
use crate::inside::kib_of;

/// So many networks, one step after the other.
const STEPS: [u16; 3] = [1, 100, 1000];

/// Links alone, as somebody would lay them by hand; then the rules of all that were added.
pub(super) fn measure() -> Result<Vec<Sample>> {
    let runtime = runtime()?;
    let mut samples = Vec::new();
    let mut all: Vec<Tenant> = Vec::new();
    let (mut links_kib, mut rules_kib) = (0, 0);
    for count in STEPS {
        let (first, start) = (all.len(), available_kib()?);
        let mut laying = Duration::ZERO;
        for index in u16::try_from(first)?..count {
            all.push(tenant(index)?);
            let started = Instant::now();
            runtime.block_on(network::ensure(&all[usize::from(index)].0))?;
            laying = started.elapsed();
        }
        let laid = available_kib()?;
        links_kib += start.saturating_sub(laid);
        all[first..].iter().try_for_each(rules_of)?;
        let started = Instant::now();
        change(&all)?;
        let changing = started.elapsed();
        rules_kib += laid.saturating_sub(available_kib()?);
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        let each = |kib: u64| u32::try_from(kib).map(|kib| f64::from(kib) / f64::from(count));
        let of_tenants = all
            .iter()
            .map(|(_, tenant)| rules(&policy::tenant(tenant, &Counts::new())));
        let rules = of_tenants.sum::<usize>() + rules(&policy::node(&node(&all)));
        for (what, who, value) in [
            ("memory of each, KiB", BY_HAND, each(links_kib)?),
            ("memory of each, KiB", OURS, each(links_kib + rules_kib)?),
            ("links of one more, ms", BY_HAND, ms(laying)),
            (
                "a change of one's rules and the node's, ms",
                OURS,
                ms(changing),
            ),
            ("rules", OURS, f64::from(u32::try_from(rules)?)),
        ] {
            let sample = Sample::new(format!("{count} networks: {what}"), who, vec![value]);
            println!("{sample:?}");
            samples.push(sample);
        }
    }
    Ok(samples)
}

/// A network, and its rules.
type Tenant = (Network, policy::Tenant);

fn tenant(index: u16) -> Result<Tenant> {
    let network = numbered(index)?;
    let gateway = network.gateway;
    let [a, b, c, _] = gateway.address.octets();
    let tenant = policy::Tenant {
        gateway,
        gateway6: six(gateway)?,
        refused: Vec::new(),
        internal: false,
        peers: Vec::new(),
        guests: vec![guest([a, b, c, 2].into())],
    };
    Ok((network, tenant))
}

/// The node's own rules.
fn node(all: &[Tenant]) -> policy::Node {
    let tenants = all.iter().map(|(network, tenant)| policy::NodeTenant {
        link: network.host_link(),
        subnet: network.gateway.network(),
        subnet6: tenant.gateway6.network(),
        published: Vec::new(),
        owned: Vec::new(),
    });
    policy::Node {
        uplinks: vec!["eth0".to_owned()],
        open_ports: Vec::new(),
        mesh_ports: Vec::new(),
        tenants: tenants.collect(),
    }
}

/// What a change of the newest network takes: its rules, and the node's.
fn change(all: &[Tenant]) -> Result<()> {
    firewall::apply(&policy::node(&node(all)))?;
    all.last().map_or(Ok(()), rules_of)
}

fn rules_of((network, tenant): &Tenant) -> Result<()> {
    let counted = firewall::counts_in(&network.name)?;
    Ok(firewall::apply_in(
        &network.name,
        &policy::tenant(tenant, &counted),
    )?)
}

fn rules(ruleset: &Ruleset) -> usize {
    let chains = ruleset.tables.iter().flat_map(|table| &table.chains);
    chains.map(|chain| chain.rules.len()).sum()
}

fn available_kib() -> Result<u64> {
    let meminfo = fs::read_to_string("/proc/meminfo").context("read meminfo")?;
    kib_of(&meminfo, "MemAvailable:").context("MemAvailable")
}
