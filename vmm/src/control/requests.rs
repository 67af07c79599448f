//! What is asked of the machine itself, done and answered.
//!
//! Owns: one answer for each request, in the order in which they were asked.
//! Refuses: with words what it cannot do. A request never ends the machine.

use std::sync::Arc;

use types::vm::{FromVmm, ToVmm};

use super::inbox::Request;
use super::{Inbox, Outbox};
use crate::event::{Served, Source};
use crate::metrics::Registry;

/// Requests of one turn, so that devices come in between.
const REQUESTS_PER_TURN: usize = 8;

pub(crate) struct Requests {
    inbox: Inbox,
    outbox: Arc<Outbox>,
    registry: Registry,
}

impl Requests {
    pub(crate) fn new(inbox: Inbox, outbox: &Arc<Outbox>, registry: Registry) -> Self {
        Self {
            inbox,
            outbox: Arc::clone(outbox),
            registry,
        }
    }

    fn answer(&self, request: &Request) -> FromVmm {
        let refused = |what: &str| FromVmm::Refused {
            message: format!("{what} is not a thing that this VMM does: use a newer one"),
        };
        match &request.message {
            ToVmm::Guest(_) => refused("a line for the guest in the place of a request"),
            ToVmm::Pause => refused("pause"),
            ToVmm::Resume => refused("resume"),
            ToVmm::Snapshot { .. } if request.fds.len() != 2 => FromVmm::Refused {
                message: format!(
                    "a snapshot takes two descriptors beside its request, not {}",
                    request.fds.len()
                ),
            },
            ToVmm::Snapshot { .. } => refused("snapshot"),
            ToVmm::Balloon { .. } => refused("balloon"),
            ToVmm::Metrics => FromVmm::Metrics(Box::new(self.registry.read())),
        }
    }
}

impl Served for Requests {
    fn sources(&self, out: &mut Vec<Source>) {
        out.push(self.inbox.source());
    }

    fn serve(&self, _fired: u64) {
        for _ in 0..REQUESTS_PER_TURN {
            let Some(request) = self.inbox.next() else {
                return;
            };
            self.outbox.post(&self.answer(&request));
        }
    }

    fn stop(&self) {}
}
