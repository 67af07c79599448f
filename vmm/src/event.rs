//! Waiting: `poll` over a handful of descriptors, and a list of things that are served.
//!
//! Owns: the one wait of every worker thread. Refuses: time-outs; nothing here waits for a clock, but
//! for the bounded last words of `control`.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};

use vmm_sys_util::eventfd::EventFd;

/// A descriptor and what is waited for on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Source {
    fd: RawFd,
    events: i16,
}

impl Source {
    pub(crate) fn readable(fd: &impl AsRawFd) -> Self {
        Self {
            fd: fd.as_raw_fd(),
            events: libc::POLLIN,
        }
    }

    pub(crate) fn writable(fd: &impl AsRawFd) -> Self {
        Self {
            fd: fd.as_raw_fd(),
            events: libc::POLLOUT,
        }
    }

    /// Keeps its place in the list and never fires.
    pub(crate) const fn never() -> Self {
        Self { fd: -1, events: 0 }
    }
}

/// Of what a turn says of its sources.
const LAST_BIT: u32 = u64::BITS - 1;

/// Something that a worker thread serves.
pub(crate) trait Served: Send + Sync {
    /// What to wait for now. Called before each wait.
    fn sources(&self, out: &mut Vec<Source>);
    /// One bit per source that fired, in the order of `sources`; the last bit is that of all from there on.
    fn serve(&self, fired: u64);
    /// Called before a pause: what is in flight is brought to an end, and what is not begun waits for the
    /// next `serve`.
    fn quiesce(&self) {}
    /// Called after a pause, before the next `serve`.
    fn resume(&self) {}
    /// Called once, after the last `serve`, when the machine stops.
    fn stop(&self);
}

/// Serves until `stop` is signalled, then gives each a last turn.
pub(crate) fn run(served: &[&dyn Served], stop: &EventFd) -> io::Result<()> {
    let mut sources = Vec::new();
    let mut polled: Vec<libc::pollfd> = Vec::new();
    let mut counts = vec![0; served.len()];
    loop {
        sources.clear();
        sources.push(Source::readable(stop));
        for (served, count) in served.iter().zip(&mut counts) {
            let before = sources.len();
            served.sources(&mut sources);
            *count = sources.len() - before;
        }
        polled.clear();
        polled.extend(sources.iter().map(|s| libc::pollfd {
            fd: s.fd,
            events: s.events,
            revents: 0,
        }));
        poll(&mut polled, -1)?;
        let mut at = 1;
        for (served, count) in served.iter().zip(&counts) {
            let fired = (0..).zip(&polled[at..at + count]);
            let fired = fired.filter(|(_, p)| p.revents != 0);
            let fired = fired.fold(0, |bits, (index, _)| bits | 1 << u32::min(index, LAST_BIT));
            at += count;
            if fired != 0 {
                served.serve(fired);
            }
        }
        if polled[0].revents != 0 {
            served.iter().for_each(|served| served.stop());
            return Ok(());
        }
    }
}

/// Waits until one descriptor can be written to, at most `milliseconds`.
pub(crate) fn wait_writable(fd: BorrowedFd<'_>, milliseconds: i32) -> io::Result<bool> {
    let mut list = [libc::pollfd {
        fd: fd.as_raw_fd(),
        events: libc::POLLOUT,
        revents: 0,
    }];
    Ok(poll(&mut list, milliseconds)? > 0)
}

/// Whether the other end of a descriptor is closed, for both directions.
pub(crate) fn hung_up(fd: BorrowedFd<'_>) -> bool {
    let mut list = [libc::pollfd {
        fd: fd.as_raw_fd(),
        events: 0,
        revents: 0,
    }];
    let asked = poll(&mut list, 0).is_ok();
    asked && list[0].revents & (libc::POLLHUP | libc::POLLERR) != 0
}

fn poll(list: &mut [libc::pollfd], milliseconds: i32) -> io::Result<i32> {
    let count = libc::nfds_t::try_from(list.len()).expect("a handful");
    loop {
        // SAFETY: `list` is `count` initialised `pollfd`s, borrowed mutably for the call. Descriptors
        // that were closed meanwhile are reported, not dereferenced.
        let ready = unsafe { libc::poll(list.as_mut_ptr(), count, milliseconds) };
        if ready >= 0 {
            return Ok(ready);
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU64, Ordering};

    struct Once {
        quiet: EventFd,
        loud: EventFd,
        stop: EventFd,
        fired: AtomicU64,
        stopped: AtomicU64,
    }

    impl Served for Once {
        fn sources(&self, out: &mut Vec<Source>) {
            out.extend([
                Source::never(),
                Source::readable(&self.quiet),
                Source::readable(&self.loud),
            ]);
        }
        fn serve(&self, fired: u64) {
            self.loud.read().expect("signalled");
            self.fired.fetch_add(fired, Ordering::Relaxed);
            self.stop.write(1).expect("counts");
        }
        fn stop(&self) {
            self.stopped.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn only_what_fired_is_served_and_each_gets_a_last_turn() {
        let event = || EventFd::new(libc::EFD_NONBLOCK).expect("eventfd");
        let stop = event();
        let once = Once {
            quiet: event(),
            loud: event(),
            stop: stop.try_clone().expect("clones"),
            fired: AtomicU64::new(0),
            stopped: AtomicU64::new(0),
        };
        once.loud.write(1).expect("counts");
        run(&[&once], &stop).expect("polls");
        assert_eq!(once.fired.load(Ordering::Relaxed), 0b100);
        assert_eq!(once.stopped.load(Ordering::Relaxed), 1);
    }

    /// Its last source fires.
    struct Crowd(EventFd, AtomicU64);

    impl Served for Crowd {
        fn sources(&self, out: &mut Vec<Source>) {
            out.extend([Source::never(); 99]);
            out.push(Source::readable(&self.0));
        }
        fn serve(&self, fired: u64) {
            self.0.read().expect("signalled");
            self.1.fetch_add(fired, Ordering::Relaxed);
        }
        fn stop(&self) {}
    }

    #[test]
    fn more_sources_than_there_are_bits_are_served_all_the_same() {
        let event = || EventFd::new(libc::EFD_NONBLOCK).expect("eventfd");
        let (crowd, stop) = (Crowd(event(), AtomicU64::new(0)), event());
        crowd.0.write(1).expect("counts");
        stop.write(1).expect("counts");
        run(&[&crowd], &stop).expect("polls");
        assert_eq!(crowd.1.load(Ordering::Relaxed), 1 << LAST_BIT);
    }
}
