//! Why nothing can start on this node.
//!
//! Owns: the reasons. Refuses: finding them out (`vigil` does), and ending what runs.

use super::NodeHost;

#[derive(Debug, Default)]
pub(super) struct Barred {
    /// A pool is lost, and this agent is about to end.
    lost: Option<String>,
    /// The disks do not answer now.
    silent: Option<String>,
}

impl Barred {
    pub(super) fn why(&self) -> Option<&String> {
        self.lost.as_ref().or(self.silent.as_ref())
    }
}

impl NodeHost {
    /// From now on nothing starts.
    pub(crate) fn bar(&mut self, why: String) {
        self.barred.lost = Some(why);
    }

    /// While the disks do not answer nothing starts.
    pub(crate) fn wait_for_disks(&mut self, why: Option<String>) {
        self.barred.silent = why;
    }
}
