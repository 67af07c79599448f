//! The ledger at the start of an agent.
//!
//! Owns: reading it from all pools, and telling what is wrong with it. Refuses: a guess in its place: where it is not read, the
//! reason stands there.

use types::trouble::Code;
use workload::desired::Desired;
use workload::ledger::{self, Ledger, LedgerError};
use workload::reconcile::{ChooseSubnet, Reconciler};

use super::super::context::NodeContext;
use super::super::machines::Machines;
use super::super::pauses::Pauses;
use super::super::troubles;
use super::super::volumes::Volumes;
use super::{ledger_copies, now, starts_max, verify};

/// The ledger, and what its statements add up to. What is wrong with it is shown; where it cannot be
/// read at all, the reason stands in its place.
pub(super) fn read_ledger(context: &NodeContext) -> (Result<Ledger, String>, Desired) {
    if let Some(why) = &context.waits {
        troubles::say(&context.info, Code::LedgerUnread, why);
        return (Err(why.clone()), Desired::default());
    }
    let owner = context.owner;
    let pools = context.pools.iter().take(ledger::POOLS_MAX);
    let pools: Vec<_> = pools.map(|pool| ledger_copies(&pool.mountpoint)).collect();
    let opened = Ledger::open_in(&pools, sys::fs::reserve, |envelope| {
        verify(envelope, owner).map_err(|refusal| refusal.message)
    });
    let show = |code: Code, error: &String| {
        log::error!("{error}");
        context
            .info
            .send_modify(|info| info.last_error = Some(error.clone()));
        troubles::say(&context.info, code, error);
    };
    let mut desired = Desired::default();
    match opened {
        Ok(opened) => {
            let healed = |problem| show(Code::LedgerHealed, problem);
            opened.problems.iter().for_each(healed);
            opened
                .statements
                .iter()
                .for_each(|statement| desired.apply(statement));
            (Ok(opened.ledger), desired)
        }
        Err(error) => {
            let why = sys::error::chain(&error);
            let code = match error {
                LedgerError::Newer { .. } => Code::LedgerNewer,
                _ => Code::LedgerUnread,
            };
            show(
                code,
                &format!("the ledger is not read, nothing is accepted: {why}"),
            );
            (Err(why), desired)
        }
    }
}

/// What is to run, and how what failed before in this boot waits.
pub(super) fn reconciler(
    desired: Desired,
    choose: ChooseSubnet,
    machines: &Machines,
    volumes: &Volumes,
) -> anyhow::Result<(Reconciler, Pauses)> {
    let mut reconciler = Reconciler::new(desired, machines.scan()?, choose);
    reconciler.find_volumes(volumes.scan()?);
    reconciler.limit_starts(starts_max());
    let pauses = Pauses::open();
    reconciler.resume(pauses.kept(), now());
    Ok((reconciler, pauses))
}
