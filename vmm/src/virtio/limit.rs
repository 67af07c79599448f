//! How fast a device may be used: token buckets.
//!
//! Owns: what may begin now, and when the next may; the timer that says so to a worker's wait.
//! Refuses: to drop or to guess. An operation that begins is charged whole, into debt where it is larger than
//! what is left: the next ones wait until that is paid. So no request is too large to be served, and over
//! any time no more than `burst + rate * time` is begun, plus one operation.

use std::io;
use std::num::NonZeroU64;
use std::time::{Duration, Instant};

use types::vm::{Limit, Rate};
use vmm_sys_util::timerfd::TimerFd;

use crate::event::Source;

/// Levels are kept in tokens times this, so that a nanosecond's share is a whole number.
const NANOS_PER_SECOND: i128 = 1_000_000_000;

/// One bucket, pure: `now` is nanoseconds since any one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Bucket {
    per_second: i128,
    /// Tokens times [`NANOS_PER_SECOND`]; negative is debt.
    level: i128,
    full: i128,
    at: u64,
}

impl Bucket {
    fn new(rate: Rate) -> Self {
        let wide = |value: NonZeroU64| i128::from(value.get());
        let full = wide(rate.burst) * NANOS_PER_SECOND;
        Self {
            per_second: wide(rate.per_second),
            level: full,
            full,
            at: 0,
        }
    }

    fn refill(&mut self, now: u64) {
        let passed = i128::from(now.saturating_sub(self.at));
        let gained = passed.saturating_mul(self.per_second);
        self.level = self.level.saturating_add(gained).min(self.full);
        self.at = self.at.max(now);
    }

    /// Nanoseconds until something may begin.
    fn wait(&mut self, now: u64) -> u64 {
        self.refill(now);
        // A whole token, or a drop that has just come in would let another operation go.
        if self.level >= NANOS_PER_SECOND {
            return 0;
        }
        let missing = NANOS_PER_SECOND.saturating_sub(self.level);
        let nanos = missing.saturating_add(self.per_second - 1) / self.per_second;
        u64::try_from(nanos).unwrap_or(u64::MAX)
    }

    fn take(&mut self, tokens: u64) {
        let tokens = i128::from(tokens).saturating_mul(NANOS_PER_SECOND);
        self.level = self.level.saturating_sub(tokens);
    }
}

/// The buckets of one direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Buckets {
    operations: Option<Bucket>,
    bytes: Option<Bucket>,
}

impl Buckets {
    fn new(limit: Limit) -> Self {
        Self {
            operations: limit.operations.map(Bucket::new),
            bytes: limit.bytes.map(Bucket::new),
        }
    }

    fn wait(&mut self, now: u64) -> u64 {
        let both = [&mut self.operations, &mut self.bytes];
        let waits = both.into_iter().flatten().map(|bucket| bucket.wait(now));
        waits.max().unwrap_or(0)
    }

    fn take(&mut self, bytes: u64) {
        if let Some(bucket) = &mut self.operations {
            bucket.take(1);
        }
        if let Some(bucket) = &mut self.bytes {
            bucket.take(bytes);
        }
    }
}

/// The limit of one direction of a device, or none: then it costs nothing.
#[derive(Debug, Default)]
pub(crate) struct Throttle(Option<Limited>);

#[derive(Debug)]
struct Limited {
    buckets: Buckets,
    start: Instant,
    timer: TimerFd,
    /// The timer runs: until it fires nothing begins.
    closed: bool,
}

impl Throttle {
    pub(crate) fn new(limit: Option<Limit>) -> io::Result<Self> {
        let limit = limit.filter(|l| l.operations.is_some() || l.bytes.is_some());
        let limited = limit.map(|limit| {
            Ok::<_, io::Error>(Limited {
                buckets: Buckets::new(limit),
                start: Instant::now(),
                timer: TimerFd::new().map_err(io::Error::from)?,
                closed: false,
            })
        });
        Ok(Self(limited.transpose()?))
    }

    /// Whether an operation may begin. If not, [`Throttle::source`] fires when one may.
    pub(crate) fn open(&mut self) -> bool {
        let Some(limited) = &mut self.0 else {
            return true;
        };
        let passed = limited.start.elapsed().as_nanos();
        let wait = limited
            .buckets
            .wait(u64::try_from(passed).unwrap_or(u64::MAX));
        if wait == 0 {
            limited.closed = false;
            return true;
        }
        // Setting it also takes back what it has said before. That fails for no argument that fits.
        let set = limited.timer.reset(Duration::from_nanos(wait), None);
        limited.closed = set.is_ok();
        !limited.closed
    }

    /// An operation begins.
    pub(crate) fn take(&mut self, bytes: u64) {
        if let Some(limited) = &mut self.0 {
            limited.buckets.take(bytes);
        }
    }

    /// What a worker waits for while nothing may begin.
    pub(crate) fn source(&self) -> Source {
        match &self.0 {
            Some(limited) if limited.closed => Source::readable(&limited.timer),
            Some(_) | None => Source::never(),
        }
    }

    /// Whether nothing may begin, as far as is known.
    pub(crate) fn closed(&self) -> bool {
        self.0.as_ref().is_some_and(|limited| limited.closed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn rate(per_second: u64, burst: u64) -> Rate {
        let value = |v| NonZeroU64::new(v).expect("not zero");
        Rate {
            per_second: value(per_second),
            burst: value(burst),
        }
    }

    #[test]
    fn a_burst_goes_at_once_and_the_rest_at_the_rate() {
        let mut bucket = Bucket::new(rate(10, 3));
        for _ in 0..3 {
            assert_eq!(bucket.wait(0), 0);
            bucket.take(1);
        }
        let wait = bucket.wait(0);
        assert!((1..=100_000_000).contains(&wait), "{wait}");
        assert_ne!(bucket.wait(wait - 1), 0);
        assert_eq!(bucket.wait(wait), 0);
        // An hour of rest gives the burst back and no more.
        bucket.refill(3_600_000_000_000);
        assert_eq!(bucket.level, bucket.full);
    }

    #[test]
    fn an_operation_larger_than_the_burst_begins_and_is_paid_for_afterwards() {
        let mut bucket = Bucket::new(rate(1000, 10));
        assert_eq!(bucket.wait(0), 0);
        bucket.take(5010);
        let wait = bucket.wait(0);
        assert_eq!(
            wait.div_ceil(1_000_000_000),
            6,
            "5000 tokens and one more at 1000 a second"
        );
    }

    #[test]
    fn what_is_not_limited_is_always_open_and_costs_no_timer() {
        for limit in [None, Some(Limit::default())] {
            let mut throttle = Throttle::new(limit).expect("makes");
            throttle.take(u64::MAX);
            assert!(throttle.open() && !throttle.closed());
            assert_eq!(throttle.source(), Source::never());
        }
    }

    #[test]
    fn a_closed_throttle_says_when_it_opens() {
        let bytes = Some(rate(1_000_000, 100));
        let limit = Limit {
            operations: None,
            bytes,
        };
        let mut throttle = Throttle::new(Some(limit)).expect("makes");
        assert!(throttle.open());
        throttle.take(20_100);
        assert!(!throttle.open() && throttle.closed());
        assert_ne!(throttle.source(), Source::never());
        // Reading waits for the timer.
        throttle
            .0
            .as_mut()
            .expect("limited")
            .timer
            .wait()
            .expect("fires");
        assert!(throttle.open() && !throttle.closed());
    }

    proptest! {
        #[test]
        fn no_time_sees_more_than_burst_and_rate_and_one_operation(
            per_second in 1u64..1 << 40, burst in 1u64..1 << 40,
            steps in prop::collection::vec((0u64..3_000_000_000, 1u64..1 << 20), 1..200),
        ) {
            let mut bucket = Bucket::new(rate(per_second, burst));
            let (mut now, mut begun, mut largest) = (0u64, 0u128, 0u64);
            for (pause, tokens) in steps {
                now += pause;
                if bucket.wait(now) == 0 {
                    bucket.take(tokens);
                    begun += u128::from(tokens);
                    largest = largest.max(tokens);
                }
                let allowed = u128::from(per_second) * u128::from(now) / 1_000_000_000;
                prop_assert!(begun <= allowed + u128::from(burst) + u128::from(largest));
            }
        }

        #[test]
        fn who_waits_as_long_as_told_may_begin(
            per_second in 1u64..u64::MAX, burst in 1u64..u64::MAX, tokens in any::<u64>(), now in any::<u64>(),
        ) {
            let mut bucket = Bucket::new(rate(per_second, burst));
            bucket.refill(now);
            bucket.take(tokens);
            let wait = bucket.wait(now);
            if let Some(then) = now.checked_add(wait) {
                prop_assert_eq!(bucket.wait(then), 0);
            }
        }
    }
}
