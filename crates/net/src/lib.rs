//! The node's network: links, addresses, routes, DHCP, router advertisements, time, tenant networks, firewall, DNS.
//!
//! Owns: what is asked of the kernel by netlink, and every protocol the node itself speaks below HTTP.
//! Refuses: deciding what a deployment may do. Tenant networks and published ports are given.
//!
//! Starts no async runtime: the async functions run on the caller's. The one thread it starts is in
//! [`namespace`], lives for one call, and is how the caller stays in its own namespace.
#![forbid(unsafe_code)]

pub mod advertise;
pub mod autoconf;
pub mod capture;
pub mod dhcp;
mod dhcp6;
pub mod dns;
mod error;
pub mod firewall;
#[cfg(any(test, feature = "fuzz"))]
pub mod fuzz;
pub mod ground;
pub mod link;
pub mod namespace;
pub mod network;
mod ready;
#[cfg(test)]
mod scratch;
pub mod site;
pub mod time;
mod ula;
pub mod wireguard;

pub use error::Error;
