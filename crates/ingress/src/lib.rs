//! Ingress: the one proxy of a node, before the machines that names lead to.
//!
//! Owns: HTTP and TLS from clients, the choice of a machine, its health, and what a client is told where there is none.
//! Refuses: to open a socket or a file: listeners and unconnected sockets in tenants' networks are handed to it
//! ([`wire`]), and configuration with them. A runtime of its own: the caller brings it.
#![forbid(unsafe_code)]

mod answer;
mod backends;
#[cfg(feature = "fuzz")]
pub mod fuzz;
mod head;
mod health;
mod hello;
mod line;
mod pace;
mod proxy;
mod serve;
mod stock;
mod table;
pub mod wire;

pub use serve::{Ingress, listener};
pub use stock::Stock;
