//! Lines for guest init that wait for it to connect or to read.
//!
//! Owns: a bounded queue between the control socket and the socket device, and the event that tells of it.
//! Refuses: more lines than its bound; whoever sent one is told.

use std::collections::VecDeque;
use std::io;
use std::sync::{Mutex, MutexGuard};

use types::guest::ToGuest;
use vmm_sys_util::eventfd::EventFd;

use crate::event::Source;

/// A node says a handful of lines in a guest's life; a guest that reads none of so many reads none.
const LINES_MAX: usize = 32;

#[derive(Debug)]
pub(crate) struct Lines {
    queue: Mutex<VecDeque<Vec<u8>>>,
    /// Signalled while lines were added that the device has not looked for.
    added: EventFd,
}

impl Lines {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self {
            queue: Mutex::default(),
            added: EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?,
        })
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Vec<u8>>> {
        self.queue
            .lock()
            .expect("no panic while the lines were locked")
    }

    /// Adds one. False: there is no room.
    #[must_use]
    pub(crate) fn add(&self, message: &ToGuest) -> bool {
        let mut line = serde_json::to_vec(message).expect("plain data");
        line.push(b'\n');
        let mut queue = self.lock();
        if queue.len() >= LINES_MAX {
            return false;
        }
        queue.push_back(line);
        // Counters of events overflow only after 2^64 signals.
        let _ = self.added.write(1);
        true
    }

    /// The oldest one.
    pub(crate) fn take(&self) -> Option<Vec<u8>> {
        let mut queue = self.lock();
        let _ = self.added.read();
        queue.pop_front()
    }

    /// Fires once after lines were added.
    pub(crate) fn source(&self) -> Source {
        Source::readable(&self.added)
    }

    /// The device has looked: until the next line is added the source is quiet.
    pub(crate) fn seen(&self) {
        let _ = self.added.read();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_come_out_in_order_and_beyond_the_bound_none_is_taken() {
        let lines = Lines::new().expect("an event counter");
        let signal = |number| ToGuest::Signal { number };
        let taken = (0..).take_while(|n| lines.add(&signal(*n))).count();
        assert_eq!(taken, LINES_MAX);
        for number in 0..LINES_MAX {
            let line = lines.take().expect("a line");
            let expected = format!("{{\"signal\":{{\"number\":{number}}}}}\n");
            assert_eq!(String::from_utf8(line).expect("text"), expected);
        }
        assert_eq!(lines.take(), None);
    }
}
