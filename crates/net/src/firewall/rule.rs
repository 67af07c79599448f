//! Rules as data.
//!
//! Owns: the shape of tables, chains and rules. Refuses: nothing yet encoded.

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Ruleset {}
