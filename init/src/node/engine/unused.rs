//! Addresses of machines' own that are not used, or that nobody will find.
//!
//! Owns: telling it beside the machine and the pool. Refuses: judging it (`network::owned` does).

use tokio::sync::watch;
use types::VmId;
use types::deployment::Deployment;
use types::status::{Condition, DeploymentStatus};
use types::trouble::Code;
use workload::desired::{Key, Target};
use workload::reconcile::Occupied;

use super::Engine;
use crate::node::context::Uplink;
use crate::node::network::owned;

/// What is somebody's on the networks around the node, as it is when asked.
pub(super) fn occupied(uplink: watch::Receiver<Uplink>) -> Occupied {
    Box::new(move || uplink.borrow().occupied.clone())
}

impl Engine {
    pub(super) fn unused_addresses(&self, key: &Key, status: &DeploymentStatus) -> Vec<Condition> {
        let uplink = self.uplink.borrow();
        let condition = |workload: &types::Name, message: String| Condition {
            code: Code::AddressUnused,
            workload: workload.clone(),
            message,
        };
        let machines = status.workloads.iter();
        let machines = machines.filter(|(_, workload)| !workload.addresses.is_empty());
        let of_machines = machines.flat_map(|(name, _)| {
            let own = self
                .reconciler
                .own_of(&VmId::new(&key.signer, &key.name, name));
            let problems = own
                .into_iter()
                .filter_map(|own| owned::problem(&own, &uplink));
            problems
                .map(|problem| condition(name, problem))
                .collect::<Vec<_>>()
        });
        let deployment = self.reconciler.desired().get(key);
        let deployment = deployment.and_then(Target::deployment).into_iter();
        let pools = deployment.flat_map(Deployment::pools);
        let of_pools = pools.filter_map(|(name, pool)| {
            let problem = owned::pool_problem(pool, &uplink)?;
            Some(condition(name, problem))
        });
        of_machines.chain(of_pools).collect()
    }
}
