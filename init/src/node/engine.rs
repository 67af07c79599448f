//! The engine of the node: one task that owns the ledger, what should run and what runs.
//!
//! Owns: the order of the last boot phases (`open` = "ledger", `listen` = "api", `adopt` =
//! "workloads") and the loop after them.
//! Refuses: deciding (`workload` does) and system calls (`host` does).

use super::context::NodeContext;

/// The engine between its phases.
#[derive(Debug)]
pub(crate) struct Engine {
    context: NodeContext,
}

impl Engine {
    /// Phase "ledger": reads both copies, heals them, and knows what should run.
    pub(crate) async fn open(context: NodeContext) -> anyhow::Result<Self> {
        Ok(Self { context })
    }

    /// Phase "api": binds the port and accepts connections from here on.
    pub(crate) async fn listen(&mut self) -> anyhow::Result<()> {
        Ok(())
    }

    /// Phase "workloads": takes over the VMs that pid1 kept and says `Ready`.
    pub(crate) async fn adopt(&mut self) -> anyhow::Result<()> {
        Ok(())
    }

    /// Serves until the node goes down; returns only why it cannot go on.
    pub(crate) async fn run(self) -> anyhow::Error {
        anyhow::anyhow!("the engine of {} has ended", self.context.key)
    }
}
