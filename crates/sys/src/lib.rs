//! sys
pub mod program;
