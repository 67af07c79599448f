//! When certificates are ordered.
//!
//! Owns: the rules: renewal after two thirds of a life, pauses after failures, and rates that no failure and no restart exceeds.
//! Refuses: I/O, and a clock. All times are seconds since 1970.
//!
//! | a name has | the next order begins |
//! |---|---|
//! | no certificate | at once |
//! | a certificate | when two thirds of its life are over |
//! | failed since | after a pause that doubles, from [`PAUSE_MIN_S`] to [`PAUSE_MAX_S`]; where the authority said that it is too much, the longest |
//! | been ordered [`ORDERS_OF_NAME`] times within an hour | when that is not so any more |

use serde::{Deserialize, Serialize};
use types::PublicKey;
use types::ingress::Host;

/// Orders of one name within an hour. Let's Encrypt takes five failures of a name in an hour.
pub const ORDERS_OF_NAME: usize = 4;
/// Orders of a node within an hour. Let's Encrypt takes 300 of an account in three, and ten new accounts of an address in three.
pub const ORDERS_OF_NODE: usize = 30;
/// Orders under way at once, of all tenants; of one tenant one, so that whoever asks an authority that hangs holds up nobody else.
pub const UNDER_WAY_MAX: usize = 4;
/// After a first failure: long enough for a name server to hear of a change.
pub const PAUSE_MIN_S: u64 = 60;
/// The longest pause: whoever has mended a name waits no longer.
pub const PAUSE_MAX_S: u64 = 3 * HOUR_S;
/// Between two certificates of a name, however short their lives are.
pub const SUCCESS_PAUSE_S: u64 = 30;
const HOUR_S: u64 = 3600;

/// Why an order failed, as far as the next one follows from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    Any,
    /// The authority has had too many.
    Limited,
}

/// What is remembered of the orders of one name.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct History {
    /// When the last of them began, the oldest first.
    begun: Vec<u64>,
    /// Failures since the last that did not.
    in_a_row: u32,
    /// All of them.
    failures: u64,
}

impl History {
    pub fn begin(&mut self, now: u64) {
        self.begun.push(now);
        let more = self.begun.len().saturating_sub(ORDERS_OF_NAME);
        self.begun.drain(..more);
    }

    pub fn fail(&mut self, failure: Failure) {
        self.failures = self.failures.saturating_add(1);
        self.in_a_row = match failure {
            Failure::Any => self.in_a_row.saturating_add(1),
            // The longest pause follows.
            Failure::Limited => self.in_a_row.max(u64::BITS),
        };
    }

    pub fn succeed(&mut self) {
        self.in_a_row = 0;
    }

    /// Somebody else has the name, or another authority is asked. The rate of orders stays.
    pub fn forgive(&mut self) {
        self.in_a_row = 0;
    }

    pub fn failures(&self) -> u64 {
        self.failures
    }

    pub fn has_failed(&self) -> bool {
        self.in_a_row > 0
    }

    /// The clock may have gone back since: nothing began in the future.
    pub fn heed(&mut self, now: u64) {
        self.begun
            .iter_mut()
            .for_each(|begun| *begun = (*begun).min(now));
    }

    pub fn last(&self) -> u64 {
        self.begun.last().copied().unwrap_or(0)
    }

    /// When the next order may begin at the earliest, with a certificate of this life or none.
    pub fn next(&self, life: Option<(u64, u64)>) -> u64 {
        let wanted = life.map_or(0, |(from, until)| renewal(from, until));
        let doubled = self.in_a_row.checked_sub(1);
        let pause = match doubled {
            None => SUCCESS_PAUSE_S,
            Some(times) => PAUSE_MIN_S
                .checked_shl(times)
                .filter(|pause| *pause >> times == PAUSE_MIN_S)
                .map_or(PAUSE_MAX_S, |pause| pause.min(PAUSE_MAX_S)),
        };
        let paused = self
            .begun
            .last()
            .map_or(0, |last| last.saturating_add(pause));
        let kept = self.begun.len().checked_sub(ORDERS_OF_NAME);
        let rate = kept.map_or(0, |at| self.begun[at].saturating_add(HOUR_S));
        wanted.max(paused).max(rate)
    }
}

/// When a certificate is renewed: two thirds of its life leave a third for whatever fails.
pub fn renewal(from: u64, until: u64) -> u64 {
    until.saturating_sub(until.saturating_sub(from) / 3)
}

/// A name that is to have a certificate.
#[derive(Debug, Clone)]
pub struct Candidate<'a> {
    pub host: &'a Host,
    pub signer: PublicKey,
    pub history: &'a History,
    pub life: Option<(u64, u64)>,
    /// An order of it has begun and has not ended.
    pub under_way: bool,
}

/// What to do now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Choice {
    Order(Host),
    /// Nothing before this time.
    Wait(u64),
    /// Nothing before an order ends, or another name is wanted.
    Nothing,
}

/// The next order, that first which has been due for the longest.
pub fn choose(all: &[Candidate<'_>], now: u64) -> Choice {
    let busy = || all.iter().filter(|candidate| candidate.under_way);
    if busy().count() >= UNDER_WAY_MAX {
        return Choice::Nothing;
    }
    let idle = |one: &&Candidate<'_>| busy().all(|other| other.signer != one.signer);
    let due = |one: &Candidate<'_>| (one.history.next(one.life), one.host.clone());
    let first = all.iter().filter(idle).map(due).min();
    let Some((at, host)) = first else {
        return Choice::Nothing;
    };
    let mut begun: Vec<u64> = all
        .iter()
        .flat_map(|candidate| &candidate.history.begun)
        .copied()
        .filter(|begun| begun.saturating_add(HOUR_S) > now)
        .collect();
    begun.sort_unstable();
    let over = begun.len().checked_sub(ORDERS_OF_NODE);
    let rate = over.map_or(0, |at| begun[at].saturating_add(HOUR_S));
    match at.max(rate) {
        at if at <= now => Choice::Order(host),
        at => Choice::Wait(at),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DAY: u64 = 24 * HOUR_S;
    const NOW: u64 = 1_800_000_000;

    #[test]
    fn a_certificate_is_renewed_when_two_thirds_of_its_life_are_over() {
        let mut history = History::default();
        assert_eq!(history.next(None), 0, "at once");
        history.begin(NOW);
        history.succeed();
        let life = Some((NOW, NOW + 90 * DAY));
        assert_eq!(history.next(life), NOW + 60 * DAY);
        assert_eq!(renewal(5, 3), 3, "one that ends before it begins");
        assert_eq!(history.next(Some((0, 0))), NOW + SUCCESS_PAUSE_S);
    }

    #[test]
    fn pauses_double_up_to_the_longest_and_a_name_has_four_orders_an_hour() {
        let (mut history, mut now, mut pauses) = (History::default(), NOW, Vec::new());
        for _ in 0..14 {
            history.begin(now);
            history.fail(Failure::Any);
            let next = history.next(None);
            pauses.push(next - now);
            now = next;
        }
        let doubling = [60, 120, 240, HOUR_S - 420, 960, 1920];
        assert_eq!(pauses[..6], doubling, "{pauses:?}");
        assert_eq!(pauses[13], PAUSE_MAX_S);
        assert_eq!(history.failures(), 14);
        history.forgive();
        assert!(
            history.next(None) < now,
            "another authority is asked at once"
        );
    }

    #[test]
    fn who_is_told_that_it_is_too_much_waits_for_the_longest() {
        let mut history = History::default();
        history.begin(NOW);
        history.fail(Failure::Limited);
        assert_eq!(history.next(None), NOW + PAUSE_MAX_S);
        history.fail(Failure::Any);
        assert_eq!(history.next(None), NOW + PAUSE_MAX_S);
    }

    #[test]
    fn a_clock_that_went_back_is_no_reason_to_wait_for_years() {
        let mut history = History::default();
        history.begin(NOW + 3650 * DAY);
        history.fail(Failure::Any);
        history.heed(NOW);
        assert_eq!(history.next(None), NOW + PAUSE_MIN_S);
    }

    fn hosts(count: usize) -> Vec<Host> {
        let host = |at| format!("n{at}.example").parse().expect("a host");
        (0..count).map(host).collect()
    }

    #[test]
    fn a_tenant_has_one_order_under_way_and_a_node_four() {
        let (hosts, none) = (hosts(6), History::default());
        let one = |at: usize, signer: u8, under_way| Candidate {
            host: &hosts[at],
            signer: PublicKey([signer; 32]),
            history: &none,
            life: None,
            under_way,
        };
        let mut all = vec![one(0, 1, true), one(1, 1, false)];
        assert_eq!(choose(&all, NOW), Choice::Nothing);
        all.push(one(2, 2, false));
        assert_eq!(choose(&all, NOW), Choice::Order(hosts[2].clone()));
        let busy = (1..=4).map(|signer| one(usize::from(signer), signer, true));
        let mut all: Vec<_> = busy.collect();
        all.push(one(0, 9, false));
        assert_eq!(choose(&all, NOW), Choice::Nothing);
    }

    #[test]
    fn a_node_has_thirty_orders_an_hour() {
        let hosts = hosts(ORDERS_OF_NODE + 1);
        let mut histories = vec![History::default(); hosts.len()];
        for (at, history) in histories.iter_mut().take(ORDERS_OF_NODE).enumerate() {
            history.begin(NOW + at as u64);
            history.succeed();
        }
        let all: Vec<Candidate<'_>> = hosts
            .iter()
            .zip(&histories)
            .enumerate()
            .map(|(at, (host, history))| Candidate {
                host,
                signer: PublicKey([7; 32]),
                history,
                life: (at < ORDERS_OF_NODE).then_some((NOW, NOW + DAY)),
                under_way: false,
            })
            .collect();
        assert_eq!(choose(&all, NOW + 100), Choice::Wait(NOW + HOUR_S));
        let last = hosts.last().expect("some").clone();
        assert_eq!(choose(&all, NOW + HOUR_S), Choice::Order(last));
    }

    proptest! {
        #[test]
        fn no_failures_and_no_clock_make_more_than_four_orders_an_hour(
            fates in proptest::collection::vec((any::<bool>(), 0u64..4000, 0u64..200), 1..60),
        ) {
            let (mut history, mut now, mut begun) = (History::default(), NOW, Vec::new());
            let mut life = None;
            for (fails, idle, length) in fates {
                now = history.next(life).max(now) + idle % 90;
                history.begin(now);
                begun.push(now);
                if fails {
                    history.fail(Failure::Any);
                } else {
                    history.succeed();
                    life = Some((now, now + length));
                }
                now += idle;
            }
            for at in 0..begun.len() {
                let within = begun[at..].iter().filter(|other| **other < begun[at] + HOUR_S);
                prop_assert!(within.count() <= ORDERS_OF_NAME);
            }
        }

        #[test]
        fn whatever_was_kept_gives_a_time(begun in proptest::collection::vec(any::<u64>(), 0..6), in_a_row in any::<u32>(), life in any::<Option<(u64, u64)>>()) {
            let history = History { begun, in_a_row, failures: 0 };
            let _ = history.next(life);
        }
    }
}
