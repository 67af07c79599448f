//! The reconciler's names of ingress: where the machines are that requests go to.
//!
//! Owns: what follows from the addresses that machines have. Refuses: serving, and judging who answers.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use types::ingress::Host;
use types::{Name, VmId};

use super::Reconciler;
use crate::desired::{Key, Target};
use crate::host::{Placed, PlacedSite};

impl Reconciler {
    /// Names of all deployments; of one that is stopped too, so that who asks is told that nobody answers.
    pub(super) fn sites(&self, machines: &BTreeMap<VmId, Placed>) -> BTreeMap<Host, PlacedSite> {
        let all = self.desired.iter().flat_map(|(key, target)| {
            let sites = target.sites.iter();
            sites.map(move |(host, site)| (host, key, target, site))
        });
        let place = |(host, key, target, site): (&Host, &Key, &Target, _)| {
            let placed = PlacedSite {
                key: key.clone(),
                site: std::sync::Arc::clone(site),
                machines: placed(key, target, machines),
            };
            (host.clone(), placed)
        };
        all.map(place).collect()
    }
}

/// The machines of a deployment in the first of their networks.
fn placed(
    key: &Key,
    target: &Target,
    machines: &BTreeMap<VmId, Placed>,
) -> BTreeMap<Name, Ipv4Addr> {
    let deployment = target.deployment().into_iter();
    let names = deployment.flat_map(|deployment| deployment.machines());
    let address = |name: &Name| {
        let place = machines.get(&VmId::new(&key.signer, &key.name, name))?;
        // A long name's id may be another machine's for a while.
        let first = place
            .cards
            .first()
            .filter(|_| place.key == *key && place.workload == *name)?;
        Some((name.clone(), first.address))
    };
    names.filter_map(|(name, _)| address(name)).collect()
}
