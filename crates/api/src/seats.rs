//! Who has a place among the bounded number of connections.
//!
//! Owns: the count for each address, and who makes room when every place is taken: the one among those
//! who have not yet asked for anything they may ask for that has been here longest.
//! Refuses: to take a place from a caller whose request was authorised, and to wait.

use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::Notify;

/// One connection's place.
#[derive(Debug, Default)]
pub(crate) struct Seat {
    trusted: AtomicBool,
    given_up: Notify,
}

impl Seat {
    /// A request of this connection was authorised: it keeps its place.
    pub(crate) fn trust(&self) {
        self.trusted.store(true, Ordering::Relaxed);
    }

    fn trusted(&self) -> bool {
        self.trusted.load(Ordering::Relaxed)
    }

    /// Ends when another needs the place.
    pub(crate) async fn given_up(&self) {
        self.given_up.notified().await;
    }
}

/// All places of a server.
#[derive(Debug)]
pub(crate) struct Seats {
    all: usize,
    per_address: usize,
    /// In the order of arrival.
    taken: VecDeque<(IpAddr, Arc<Seat>)>,
    addresses: BTreeMap<IpAddr, usize>,
}

impl Seats {
    pub(crate) fn new(all: usize, per_address: usize) -> Self {
        Self {
            all,
            per_address,
            taken: VecDeque::new(),
            addresses: BTreeMap::new(),
        }
    }

    /// A place for a connection from `ip`; `None` where its address has all that it may have, or every
    /// place is a trusted caller's.
    pub(crate) fn take(&mut self, ip: IpAddr) -> Option<Arc<Seat>> {
        if self.addresses.get(&ip).copied().unwrap_or(0) >= self.per_address {
            return None;
        }
        if self.taken.len() >= self.all {
            let stranger = self.taken.iter().position(|(_, s)| !s.trusted())?;
            let (other, seat) = self.taken.remove(stranger)?;
            seat.given_up.notify_one();
            self.forget(other);
        }
        let seat = Arc::new(Seat::default());
        *self.addresses.entry(ip).or_default() += 1;
        self.taken.push_back((ip, Arc::clone(&seat)));
        Some(seat)
    }

    /// The connection has ended. One that was made to end has left already.
    pub(crate) fn leave(&mut self, seat: &Arc<Seat>) {
        let at = self.taken.iter().position(|(_, s)| Arc::ptr_eq(s, seat));
        if let Some((ip, _)) = at.and_then(|at| self.taken.remove(at)) {
            self.forget(ip);
        }
    }

    fn forget(&mut self, ip: IpAddr) {
        if let Some(held) = self.addresses.get_mut(&ip) {
            *held -= 1;
            if *held == 0 {
                self.addresses.remove(&ip);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(n: u8) -> IpAddr {
        [10, 0, 0, n].into()
    }

    #[test]
    fn a_newcomer_takes_the_place_of_the_stranger_who_has_been_here_longest() {
        let mut seats = Seats::new(3, 2);
        let owner = seats.take(ip(1)).expect("a place");
        owner.trust();
        let old = seats.take(ip(2)).expect("a place");
        let _young = seats.take(ip(2)).expect("a place");
        assert!(seats.take(ip(2)).is_none(), "two for an address");
        let new = seats.take(ip(3)).expect("the old stranger's place");
        assert!(!seats.taken.iter().any(|(_, s)| Arc::ptr_eq(s, &old)));
        assert!(seats.taken.iter().any(|(_, s)| Arc::ptr_eq(s, &owner)));
        // Its connection ends a little later, and takes nothing away from anybody.
        seats.leave(&old);
        seats.leave(&new);
        assert_eq!((seats.taken.len(), seats.addresses[&ip(2)]), (2, 1));
    }

    #[test]
    fn trusted_callers_are_never_turned_out() {
        let mut seats = Seats::new(2, 2);
        for n in 1..=2 {
            seats.take(ip(n)).expect("a place").trust();
        }
        assert!(seats.take(ip(3)).is_none());
    }
}
