//! The control socket: what the node asks and what it is told.
//!
//! Owns: both directions of one SOCK_SEQPACKET, and who does what is asked.
//! Refuses: to let a guest stand in the way. What the guest does not read waits in a place of its own, so
//! that a request to the machine is always heard.

mod inbox;
mod lines;
mod outbox;
mod requests;

pub(crate) use inbox::Inbox;
pub(crate) use lines::Lines;
pub(crate) use outbox::Outbox;
pub(crate) use requests::{Requests, SharedBalloon, SharedDisks};
