//! What a hostile network can reach, for the package `fuzz`.
//!
//! Owns: packets of DHCP servers and routers, of guests and name servers, of time servers. Refuses: sockets.

pub use crate::autoconf::fuzz::Conversation as Autoconf;
pub use crate::dhcp::fuzz::Conversation as Dhcp;
pub use crate::dns::fuzz::{query as dns_query, reply as dns_reply};
pub use crate::time::fuzz::answer as sntp;
