//! Time: a floor that survives reboots, and a server's word when there is one.
//!
//! Owns: the file `clock` in each pool, and the loop that asks time servers.
//! Refuses: going below the floor, whatever the machine's clock or a server says; and keeping as a floor
//! what only one server says: a liar sets the clock until an honest server answers, never for good.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::sync::watch;

/// The kernel configuration's own date: no clock of a running node is right before it.
const BUILD_FLOOR: Duration = Duration::from_secs(1_767_225_600);
/// How long one answer may take: the far side of the planet and a slow server.
const ANSWER: Duration = Duration::from_secs(3);
/// Pause after an answer. RFC 5905's poll interval for a quiet client, and the floor's age at most.
const PAUSE: Duration = Duration::from_secs(1024);
/// First pause after no answer; it doubles up to [`PAUSE`].
const RETRY: Duration = Duration::from_secs(2);
/// Two witnesses this near to each other agree: servers differ by milliseconds, a machine's own clock
/// drifts by a day in a year or two.
const AGREEMENT: Duration = Duration::from_secs(24 * 3600);
/// What the machine's own clock said in this boot, less the time since: kept over restarts of the agent.
const OWN_CLOCK: &str = "/run/sifr/own-clock";
/// Offsets below this are left alone: certificates and logs need no better.
const TOLERANCE_US: u64 = 100_000;

/// The clock at the start of the agent.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Start {
    floor: Duration,
    /// What the machine's own clock said when the kernel started, before any server was asked.
    own_at_boot: Duration,
}

/// Raises the clock to the highest floor of the node's pools, if it is below.
pub(crate) fn start(pools: &[PathBuf]) -> Result<Start, sys::error::Error> {
    let stored = |pool: &PathBuf| std::fs::read_to_string(file(pool)).ok();
    let floors = pools.iter().map(|pool| floor(stored(pool).as_deref()));
    let floor = floors.fold(BUILD_FLOOR, Duration::max);
    let own_at_boot = own_at_boot(Path::new(OWN_CLOCK))?;
    if sys::clock::realtime() < floor {
        sys::clock::set_realtime(floor)?;
    }
    Ok(Start { floor, own_at_boot })
}

/// Only the first agent of a boot sees the clock as no server has set it.
fn own_at_boot(file: &Path) -> Result<Duration, sys::error::Error> {
    let stored = std::fs::read_to_string(file).ok();
    if let Some(seconds) = stored.and_then(|text| text.trim().parse().ok()) {
        return Ok(Duration::from_secs(seconds));
    }
    let own = sys::clock::realtime().saturating_sub(sys::clock::since_boot());
    sys::fs::write_atomic(file, format!("{}\n", own.as_secs()).as_bytes(), 0o600)?;
    Ok(own)
}

fn file(pool: &Path) -> PathBuf {
    pool.join("clock")
}

/// A damaged or absent file is no floor: the build's own date is.
fn floor(stored: Option<&str>) -> Duration {
    let seconds = stored
        .and_then(|text| text.trim().parse().ok())
        .unwrap_or(0);
    Duration::from_secs(seconds).max(BUILD_FLOOR)
}

/// The time that a sample implies; `None` where the clock is near enough or the sample is below the floor.
fn corrected(now: Duration, offset_us: i64, floor: Duration) -> Option<Duration> {
    if offset_us.unsigned_abs() < TOLERANCE_US {
        return None;
    }
    let step = Duration::from_micros(offset_us.unsigned_abs());
    let then = if offset_us < 0 {
        now.checked_sub(step)?
    } else {
        now.checked_add(step)?
    };
    (then >= floor).then_some(then)
}

/// The floor after a server has been believed. What a second witness confirms is the floor; without one
/// it rises no faster than time passes.
fn raised(floor: Duration, elapsed: Duration, now: Duration, confirmed: bool) -> Duration {
    if confirmed {
        return now.max(floor);
    }
    now.min(floor.saturating_add(elapsed)).max(floor)
}

/// Asks the servers in turn for ever, and says in `synchronised` once one has been believed.
pub(crate) async fn keep(
    pools: Vec<PathBuf>,
    start: Start,
    mut servers: watch::Receiver<Vec<SocketAddr>>,
    synchronised: impl Fn(),
) {
    let mut floor = start.floor;
    let mut floor_from = sys::clock::since_boot();
    let mut retry = RETRY;
    loop {
        let known = servers.borrow_and_update().clone();
        let pause = match ask(&known, floor, start.own_at_boot).await {
            Some(word) => {
                synchronised();
                let (now, uptime) = (sys::clock::realtime(), sys::clock::since_boot());
                let elapsed = uptime.saturating_sub(floor_from);
                floor = raised(floor, elapsed, now, word == Word::Confirmed);
                floor_from = uptime;
                pools.iter().for_each(|pool| remember(pool, floor));
                retry = RETRY;
                PAUSE
            }
            None => {
                retry = (retry * 2).min(PAUSE);
                retry
            }
        };
        tokio::select! {
            // Both are safe to drop: a watch and a timer lose nothing.
            () = tokio::time::sleep(pause) => {}
            changed = servers.changed() => {
                if changed.is_err() {
                    return;
                }
            }
        }
    }
}

/// What a round of questions came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Word {
    /// One server was believed, and a second one or the machine's own clock agrees.
    Confirmed,
    OneServer,
}

async fn ask(servers: &[SocketAddr], floor: Duration, own_at_boot: Duration) -> Option<Word> {
    let mut believed = false;
    for server in servers {
        let offset_us = match net::time::query(*server, ANSWER).await {
            Ok(sample) => sample.offset_us,
            Err(error) => {
                log::warn!("{}", sys::error::chain(&error));
                continue;
            }
        };
        if believed {
            if Duration::from_micros(offset_us.unsigned_abs()) < AGREEMENT {
                return Some(Word::Confirmed);
            }
            log::warn!("time server {server} contradicts another: neither is kept as a floor");
            continue;
        }
        if !set(*server, offset_us, floor) {
            continue;
        }
        believed = true;
        let own = own_at_boot.saturating_add(sys::clock::since_boot());
        if own.abs_diff(sys::clock::realtime()) < AGREEMENT {
            return Some(Word::Confirmed);
        }
    }
    believed.then_some(Word::OneServer)
}

/// Sets the clock as a server says, unless that is below the floor. Whether it was believed.
fn set(server: SocketAddr, offset_us: i64, floor: Duration) -> bool {
    let now = sys::clock::realtime();
    let Some(then) = corrected(now, offset_us, floor) else {
        let near = offset_us.unsigned_abs() < TOLERANCE_US;
        if !near {
            log::warn!("time server {server} names a time before this node's last: not believed");
        }
        return near;
    };
    match sys::clock::set_realtime(then) {
        Ok(()) => true,
        Err(error) => {
            log::error!("{}", sys::error::chain(&error));
            false
        }
    }
}

fn remember(pool: &Path, floor: Duration) {
    let text = format!("{}\n", floor.as_secs());
    if let Err(error) = sys::fs::write_atomic(&file(pool), text.as_bytes(), 0o600) {
        log::warn!(
            "the clock's floor was not kept: {}",
            sys::error::chain(&error)
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_floor_is_the_last_known_time_and_never_before_the_build() {
        assert_eq!(floor(None), BUILD_FLOOR);
        assert_eq!(floor(Some("damaged")), BUILD_FLOOR);
        assert_eq!(floor(Some("12\n")), BUILD_FLOOR);
        assert_eq!(
            floor(Some("1900000000\n")),
            Duration::from_secs(1_900_000_000)
        );
    }

    #[test]
    fn a_clock_that_is_years_off_is_set_and_one_that_is_near_is_left() {
        let (now, year) = (Duration::from_secs(1_800_000_000), 31_536_000_000_000);
        assert_eq!(corrected(now, 50_000, BUILD_FLOOR), None);
        assert_eq!(
            corrected(now, year, BUILD_FLOOR),
            Some(Duration::from_secs(1_831_536_000))
        );
        assert_eq!(
            corrected(now, -year, BUILD_FLOOR),
            Some(Duration::from_secs(1_768_464_000))
        );
    }

    #[test]
    fn one_lying_server_never_raises_the_floor_faster_than_time_passes() {
        let (floor, year) = (BUILD_FLOOR, Duration::from_secs(31_536_000));
        let (elapsed, far) = (Duration::from_secs(1024), floor + 60 * year);
        assert_eq!(raised(floor, elapsed, far, false), floor + elapsed);
        assert_eq!(raised(floor, elapsed, floor + year, true), floor + year);
        assert_eq!(raised(floor, elapsed, floor - year, false), floor);
    }

    #[test]
    fn the_machines_own_clock_is_what_it_was_before_any_server_set_it() {
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("own-clock");
        let first = own_at_boot(&file).expect("written");
        let drift = first.abs_diff(sys::clock::realtime() - sys::clock::since_boot());
        assert!(drift < Duration::from_secs(60));
        std::fs::write(&file, "1000\n").expect("as an earlier agent left it");
        let again = own_at_boot(&file).expect("read");
        assert_eq!(again, Duration::from_secs(1000));
    }

    #[test]
    fn no_server_moves_the_clock_below_the_floor() {
        let now = Duration::from_secs(1_800_000_000);
        assert_eq!(corrected(now, -10_000_000, now), None);
        assert_eq!(corrected(now, i64::MIN, now), None);
    }
}
