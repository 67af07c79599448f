//! What a node refuses of a request before it looks at it.
//!
//! Owns: the states of a node in which that is so. Refuses: who may ask (`super` knows), and finding out the states.

use api::Route;
use types::status::{Refusal, RefusalCode};

use super::super::retire;
use super::{Server, refusal};

impl Server {
    /// Of a node whose disks are destroyed nothing is taken that would go with them.
    pub(super) fn keeps_what_it_takes(&self, route: &Route) -> Result<(), Refusal> {
        match route {
            Route::PutFlist(_)
            | Route::PutChunk(_)
            | Route::PostStatement
            | Route::ClaimDisks
            | Route::SetNetwork => retire::stands(&self.info.borrow()),
            Route::Node
            | Route::Dmesg
            | Route::Links
            | Route::Routes
            | Route::Disks
            | Route::UnlockDisk
            | Route::Decommission
            | Route::ConfirmNetwork
            | Route::RevertNetwork
            | Route::Drill
            | Route::NodeMetrics
            | Route::Trace(_)
            | Route::Metrics(_)
            | Route::Deployments
            | Route::Deployment { .. }
            | Route::Capture { .. }
            | Route::NetworkTrace { .. }
            | Route::Membership(..)
            | Route::Logs { .. } => Ok(()),
        }
    }

    /// While nobody knows what the node has promised, nothing is told of deployments, and nothing taken: pushes make room by
    /// removing what no deployment names.
    pub(super) fn needs_the_ledger(&self, route: &Route) -> Result<(), Refusal> {
        match route {
            Route::Node
            | Route::Dmesg
            | Route::Links
            | Route::Routes
            | Route::Disks
            | Route::ClaimDisks
            | Route::UnlockDisk
            | Route::Decommission
            | Route::SetNetwork
            | Route::ConfirmNetwork
            | Route::RevertNetwork
            | Route::Drill
            | Route::NodeMetrics
            | Route::Trace(_) => return Ok(()),
            Route::Metrics(_)
            | Route::PutFlist(_)
            | Route::PutChunk(_)
            | Route::PostStatement
            | Route::Deployments
            | Route::Deployment { .. }
            | Route::Capture { .. }
            | Route::NetworkTrace { .. }
            | Route::Membership(..)
            | Route::Logs { .. } => {}
        }
        let info = self.info.borrow();
        let mut all = info.troubles.iter();
        match all.find(|trouble| trouble.code.is_of_an_unread_ledger()) {
            None => Ok(()),
            Some(trouble) => Err(refusal(RefusalCode::LedgerUnread, trouble.message.clone())),
        }
    }

    /// While no disk answers, nothing is read from one or written to it for anybody: it would take the node along.
    pub(super) fn needs_a_disk(&self, route: &Route) -> Result<(), Refusal> {
        match route {
            Route::PutFlist(_)
            | Route::PutChunk(_)
            | Route::PostStatement
            | Route::Trace(_)
            | Route::ClaimDisks
            | Route::Decommission
            | Route::SetNetwork
            | Route::ConfirmNetwork
            | Route::Logs { .. } => {}
            Route::Node
            | Route::Dmesg
            | Route::Links
            | Route::Routes
            | Route::Disks
            | Route::UnlockDisk
            | Route::RevertNetwork
            | Route::Drill
            | Route::NodeMetrics
            | Route::Metrics(_)
            | Route::Deployments
            | Route::Capture { .. }
            | Route::NetworkTrace { .. }
            | Route::Membership(..)
            | Route::Deployment { .. } => return Ok(()),
        }
        let why = self.silence.borrow().clone();
        why.map_or(Ok(()), |why| Err(refusal(RefusalCode::DiskSilent, why)))
    }
}
