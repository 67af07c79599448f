//! How often an address may begin what costs the proxy much.
//!
//! Owns: a bucket of tokens for each address that has lately taken some, in bounded memory. Refuses: a clock: callers say what time it is.
//!
//! A bucket that is full again says nothing, and goes. Where there are too many others at once, new addresses share one.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// Handshakes of one address a second: with the largest RSA key in use (4096 bits, some 5 ms) a sixth of the one thread.
const RATE: u32 = 32;
/// As many at once: an office behind one address begins its day, each browser with six connections.
const BURST: u32 = 256;
/// Addresses that have lately taken some, each with some 64 bytes.
const ADDRESSES_MAX: usize = 16_384;

/// Between two looks at all of them, which take as long as a handshake: a flood of addresses is not to cost more than it would.
const SWEEP: Duration = Duration::from_secs(1);

/// What an address has left, some time ago.
#[derive(Debug, Clone, Copy)]
struct Bucket {
    /// Until it is full again, from `since` on.
    lacks: Duration,
    since: Instant,
}

/// What one token takes to come back.
const TOKEN: Duration = Duration::from_nanos(1_000_000_000 / RATE as u64);

impl Bucket {
    fn new(now: Instant) -> Self {
        Self {
            lacks: Duration::ZERO,
            since: now,
        }
    }

    fn lacks(&self, now: Instant) -> Duration {
        let passed = now.saturating_duration_since(self.since);
        self.lacks.saturating_sub(passed)
    }

    fn take(&mut self, now: Instant) -> bool {
        let lacks = self.lacks(now) + TOKEN;
        let has = lacks <= TOKEN * BURST;
        if has {
            (self.lacks, self.since) = (lacks, now);
        }
        has
    }
}

/// All addresses' buckets.
#[derive(Debug, Default)]
pub(crate) struct Paces {
    buckets: BTreeMap<IpAddr, Bucket>,
    /// Of those for whom there is no room.
    others: Option<Bucket>,
    /// When all were last looked at.
    swept: Option<Instant>,
}

impl Paces {
    /// Whether this address has a token left, which is then taken.
    pub(crate) fn take(&mut self, address: IpAddr, now: Instant) -> bool {
        if !self.buckets.contains_key(&address) && self.buckets.len() >= ADDRESSES_MAX {
            self.sweep(now);
        }
        let full = self.buckets.len() >= ADDRESSES_MAX;
        let bucket = match full && !self.buckets.contains_key(&address) {
            true => self.others.get_or_insert_with(|| Bucket::new(now)),
            false => self
                .buckets
                .entry(address)
                .or_insert_with(|| Bucket::new(now)),
        };
        bucket.take(now)
    }

    /// Lets go of those that are full again.
    fn sweep(&mut self, now: Instant) {
        let recent = |swept: Instant| now.saturating_duration_since(swept) < SWEEP;
        if self.swept.is_some_and(recent) {
            return;
        }
        self.swept = Some(now);
        self.buckets
            .retain(|_, bucket| !bucket.lacks(now).is_zero());
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use proptest::prelude::*;

    use super::*;

    fn address(number: u32) -> IpAddr {
        Ipv4Addr::from_bits(number).into()
    }

    #[test]
    fn an_address_has_a_burst_and_then_its_rate_and_another_one_its_own() {
        let (mut paces, start) = (Paces::default(), Instant::now());
        let takes = |paces: &mut Paces, address, now| {
            (0..1000).filter(|_| paces.take(address, now)).count()
        };
        assert_eq!(takes(&mut paces, address(1), start), BURST as usize);
        assert_eq!(takes(&mut paces, address(2), start), BURST as usize);
        let later = start + Duration::from_secs(1);
        assert_eq!(takes(&mut paces, address(1), later), RATE as usize);
        let rested = later + Duration::from_secs(60);
        assert_eq!(takes(&mut paces, address(1), rested), BURST as usize);
    }

    #[test]
    fn more_addresses_than_there_is_room_for_share_a_bucket_until_some_have_rested() {
        let (mut paces, start) = (Paces::default(), Instant::now());
        let all = u32::try_from(ADDRESSES_MAX).expect("it is small");
        assert!((0..all).all(|number| paces.take(address(number), start)));
        let strangers = (all..2 * all).filter(|number| paces.take(address(*number), start));
        assert_eq!(strangers.count(), BURST as usize);
        assert!(paces.take(address(7), start), "who is known has its own");
        assert_eq!(paces.buckets.len(), ADDRESSES_MAX);
        let later = start + Duration::from_secs(1);
        assert!(paces.take(address(2 * all), later));
        assert_eq!(paces.buckets.len(), 1, "the rest is as good as new");
    }

    proptest! {
        #[test]
        fn within_any_time_an_address_takes_no_more_than_a_burst_and_its_rate(
            pauses in proptest::collection::vec(0u64..40_000_000, 1..2000),
        ) {
            let (mut paces, mut now, mut taken) = (Paces::default(), Instant::now(), 0u32);
            let start = now;
            for pause in pauses {
                now += Duration::from_nanos(pause);
                taken += u32::from(paces.take(address(1), now));
            }
            let most = f64::from(BURST) + (now - start).as_secs_f64() * f64::from(RATE) + 1.0;
            prop_assert!(f64::from(taken) <= most);
        }
    }
}
