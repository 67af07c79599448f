//! Whose word on the time counts: servers that agree, and the machine's own clock as one more witness.
//!
//! Owns: the bounds of what can be true, and which of several servers is believed. Pure.
//! Refuses: asking and setting. A majority of liars is believed for now, and never below the floor.

use std::net::SocketAddr;
use std::time::Duration;

/// Two witnesses this near to each other agree: servers differ by milliseconds, a machine's own clock
/// drifts by a day in a year or two.
pub(crate) const AGREEMENT: Duration = Duration::from_secs(24 * 3600);
const DAY_SECONDS: u64 = 24 * 3600;

/// What can be true.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    pub(crate) floor: Duration,
    pub(crate) ceiling: Duration,
}

/// What a server said, as microseconds to add to the clock.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Heard {
    pub(crate) server: SocketAddr,
    pub(crate) offset_us: i64,
}

/// What follows from a round of questions.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Judgement {
    /// Of the server that is believed.
    pub(crate) offset_us: Option<i64>,
    /// A second witness agrees with it, and not as many with another.
    pub(crate) confirmed: bool,
    /// A sentence on servers that name times that cannot be.
    pub(crate) refused: Option<String>,
    /// A sentence on servers that name different times.
    pub(crate) contradicted: Option<String>,
}

/// `own`: what the machine's own clock would say now, had nobody set it.
pub(crate) fn judge(now: Duration, own: Duration, bounds: Bounds, heard: &[Heard]) -> Judgement {
    let mut judgement = Judgement::default();
    let mut believable = Vec::new();
    for one in heard {
        match moved(now, one.offset_us) {
            Some(then) if (bounds.floor..=bounds.ceiling).contains(&then) => {
                believable.push((one, then));
            }
            then => judgement.refused = Some(refusal(one.server, then, bounds)),
        }
    }
    let agrees = |a: Duration, b: Duration| a.abs_diff(b) < AGREEMENT;
    let witnesses = |then: Duration| {
        let servers = believable.iter().filter(|(_, other)| agrees(*other, then));
        servers.count() + usize::from(agrees(own, then))
    };
    // The first of several as good ones: that is the one that the owner named.
    let mut best: Option<(usize, &Heard, Duration)> = None;
    for (one, then) in &believable {
        let count = witnesses(*then);
        if best.is_none_or(|(most, ..)| count > most) {
            best = Some((count, one, *then));
        }
    }
    let Some((count, one, then)) = best else {
        return judgement;
    };
    let other = believable.iter().find(|(_, other)| !agrees(*other, then));
    let rival = believable
        .iter()
        .any(|(_, other)| !agrees(*other, then) && witnesses(*other) == count);
    judgement.offset_us = Some(one.offset_us);
    judgement.confirmed = count > 1 && !rival;
    judgement.contradicted = other.map(|(other, there)| {
        let days = there.abs_diff(then).as_secs() / DAY_SECONDS;
        let (believed, other) = (one.server, other.server);
        format!("time servers {believed} and {other} are {days} days apart; {believed} is believed")
    });
    judgement
}

fn refusal(server: SocketAddr, then: Option<Duration>, bounds: Bounds) -> String {
    let days = |time: Duration| time.as_secs() / DAY_SECONDS;
    match then {
        Some(then) if then >= bounds.floor => format!(
            "time server {server} names a time {} days after what can be: not believed",
            days(then.saturating_sub(bounds.ceiling))
        ),
        then => format!(
            "time server {server} names a time {} days before this node's last: not believed",
            days(bounds.floor.saturating_sub(then.unwrap_or_default()))
        ),
    }
}

/// The clock after it was moved; `None`: before 1970.
pub(crate) fn moved(now: Duration, offset_us: i64) -> Option<Duration> {
    let step = Duration::from_micros(offset_us.unsigned_abs());
    if offset_us < 0 {
        now.checked_sub(step)
    } else {
        now.checked_add(step)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const YEAR: i64 = 365 * 24 * 3600 * 1_000_000;
    const NOW: Duration = Duration::from_secs(1_800_000_000);
    const BOUNDS: Bounds = Bounds {
        floor: Duration::from_secs(1_790_000_000),
        ceiling: Duration::from_secs(2_700_000_000),
    };

    fn heard(offsets: &[i64]) -> Vec<Heard> {
        let one = |(at, offset_us): (usize, &i64)| Heard {
            server: format!("10.0.0.{}:123", at + 1)
                .parse()
                .expect("an address"),
            offset_us: *offset_us,
        };
        offsets.iter().enumerate().map(one).collect()
    }

    #[test]
    fn one_server_is_believed_and_confirmed_by_the_machines_own_clock_alone() {
        let far = NOW + 9 * BOUNDS.floor;
        let alone = judge(NOW, far, BOUNDS, &heard(&[5 * YEAR]));
        assert_eq!((alone.offset_us, alone.confirmed), (Some(5 * YEAR), false));
        let both = judge(NOW, NOW, BOUNDS, &heard(&[1_000_000]));
        assert_eq!((both.offset_us, both.confirmed), (Some(1_000_000), true));
    }

    #[test]
    fn a_server_years_before_the_floor_or_after_the_ceiling_is_not_believed_and_named() {
        for lie in [-20 * YEAR, 40 * YEAR, i64::MIN, i64::MAX] {
            let judged = judge(NOW, NOW, BOUNDS, &heard(&[lie, 2_000_000]));
            assert_eq!(
                (judged.offset_us, judged.confirmed),
                (Some(2_000_000), true)
            );
            let said = judged.refused.expect("said aloud");
            assert!(said.contains("10.0.0.1:123"), "{said}");
            assert_eq!(judge(NOW, NOW, BOUNDS, &heard(&[lie])).offset_us, None);
        }
    }

    #[test]
    fn of_three_servers_the_two_that_agree_are_believed_whoever_is_asked_first() {
        let far = NOW + 9 * BOUNDS.floor;
        for order in [[6 * YEAR, 10, 20], [10, 6 * YEAR, 20], [10, 20, 6 * YEAR]] {
            let judged = judge(NOW, far, BOUNDS, &heard(&order));
            assert!(judged.offset_us.is_some_and(|offset| offset < YEAR));
            assert!(judged.confirmed);
            let said = judged.contradicted.expect("said aloud");
            assert!(said.contains("days apart"), "{said}");
        }
    }

    #[test]
    fn two_servers_that_disagree_confirm_nothing() {
        let far = NOW + 9 * BOUNDS.floor;
        let judged = judge(NOW, far, BOUNDS, &heard(&[6 * YEAR, 10]));
        assert_eq!(
            (judged.offset_us, judged.confirmed),
            (Some(6 * YEAR), false)
        );
        assert!(judged.contradicted.is_some());
        // The machine's own clock decides.
        let judged = judge(NOW, NOW, BOUNDS, &heard(&[6 * YEAR, 10]));
        assert_eq!((judged.offset_us, judged.confirmed), (Some(10), true));
    }

    #[test]
    fn whatever_servers_say_the_clock_stays_within_its_bounds() {
        // Numbers from everywhere: SplitMix64.
        let mut state = 7u64;
        let mut any = || {
            state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
            let mixed = (state ^ (state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
            (mixed ^ (mixed >> 31)).cast_signed() >> (state % 40)
        };
        for round in 0..5000 {
            let offsets: Vec<i64> = (0..round % 8).map(|_| any()).collect();
            let own = Duration::from_secs(any().unsigned_abs() >> 32);
            let judged = judge(NOW, own, BOUNDS, &heard(&offsets));
            if let Some(offset) = judged.offset_us {
                let then = moved(NOW, offset).expect("after 1970");
                assert!((BOUNDS.floor..=BOUNDS.ceiling).contains(&then));
            }
            assert!(judged.offset_us.is_some() || !judged.confirmed);
        }
    }
}
