//! How a client and a node speak: signatures, envelopes, TLS with pinned keys, requests and answers.
//!
//! Owns: keys and their files, DSSE envelopes, the TLS configuration of both sides, the table of routes,
//! the limits of the server and the client's calls.
//! Refuses: threads and a runtime of its own (the caller brings tokio), and deciding what a request
//! does: that is the caller's `server::Handler`.
#![forbid(unsafe_code)]

pub mod answer;
pub mod client;
pub mod envelope;
pub mod logs;
mod patience;
mod reach;
pub mod route;
mod seats;
pub mod server;
pub mod sign;
pub mod tls;

pub use answer::Answer;
pub use client::{Client, ClientError};
pub use envelope::{Envelope, EnvelopeError, Signed};
pub use logs::{Begin, LogLine};
pub use route::{Route, Until, Verdict, Wait};
pub use server::{Body, Handler, Limits};
pub use sign::{KeyError, SecretKey};
