//! What a machine says of itself in numbers.
//!
//! Owns: the answer to `types::vm::ToVmm::Metrics`. Refuses: rates and averages; who asks twice has both.

use serde::{Deserialize, Serialize};

use crate::vm::Exits;

/// Counters of one VMM since its start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    pub exits: Exits,
}
