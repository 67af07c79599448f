//! Certificates of names: what stands in one, when the next is ordered, and how.
//!
//! Owns: reading a chain, the rules after which orders are made, and one order by ACME (RFC 8555) from its beginning to the chain.
//! Refuses: keeping anything, serving (`ingress` does), and a clock: callers say what time it is.
#![forbid(unsafe_code)]

#[cfg(feature = "acme")]
mod authority;
mod chain;
#[cfg(feature = "acme")]
mod http;
#[cfg(feature = "acme")]
pub mod plan;

#[cfg(feature = "acme")]
pub use authority::{Authority, OrderError, Pair};
pub use chain::{Chain, ChainError, shown};
