//! Stores of images: where the chunks of flists lie, and how they get there.
//!
//! Owns: the kinds of stores (a directory, a web server, S3, a registry), sets of them with ranges and copies, and
//! moving images between them. What is given out has the hash it was asked by.
//! Refuses: to know what is in an flist (`flist` does): it is told which chunks an image has. It brings no runtime.
#![forbid(unsafe_code)]

mod directory;
mod error;
#[cfg(any(test, feature = "fake"))]
pub mod fake;
mod http;
mod keys;
mod location;
mod object;
mod oci;
mod onward;
mod pool;
mod proxied;
pub mod roll;
mod s3;
mod set;
mod sink;
mod store;
pub mod sweep;
pub mod transfer;

pub use error::StoreError;
pub use http::Trust;
pub use keys::{Keys, KeysError};
pub use location::{Location, Route};
pub use object::Object;
pub use pool::{Logins, Pool};
pub use set::{Patience, Set};
pub use sink::Sink;
pub use store::{Entry, Store};
pub use transfer::{Image, Piece};
