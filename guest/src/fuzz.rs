//! What a hostile image can reach, for the package `fuzz`.
//!
//! Owns: the resolution of a user against the image's files, and lines of the control stream.
//! Refuses: mounts and processes.

use types::guest::ToGuest;

use crate::control::Lines;
use crate::user;

/// User and group number, supplementary groups and home of `spec`. `None`: refused.
pub fn user(spec: &str, passwd: &str, group: &str) -> Option<(u32, u32, Vec<u32>, String)> {
    let found = user::resolve(spec, passwd, group).ok()?;
    Some((found.uid, found.gid, found.groups, found.home))
}

/// The messages in a stream that arrives in these pieces. `None`: refused.
pub fn messages<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Option<Vec<ToGuest>> {
    let mut lines = Lines::default();
    let mut messages = Vec::new();
    for piece in pieces {
        messages.extend(lines.push(piece).ok()?);
    }
    Some(messages)
}
