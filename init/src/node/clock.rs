//! Time: a floor that survives reboots, and a server's word when there is one.
//!
//! Owns: the file `clock` in each pool, and the loop that asks time servers.
//! Refuses: going below the floor or above the ceiling, whatever the machine's clock or a server says; and keeping as a floor
//! what only one server says: a liar sets the clock until an honest server answers, never for good. Whom to believe
//! is decided in `witness`.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::sync::watch;
use types::node::NodeInfo;
use types::trouble::Code;

use super::witness::{Bounds, Heard, Judgement, judge, moved};
use super::{patient, troubles};

/// The kernel configuration's own date: no clock of a running node is right before it.
const BUILD_FLOOR: Duration = Duration::from_secs(1_767_225_600);
/// How long one answer may take: the far side of the planet and a slow server.
const ANSWER: Duration = Duration::from_secs(3);
/// Pause after an answer. RFC 5905's poll interval for a quiet client, and the floor's age at most.
const PAUSE: Duration = Duration::from_secs(1024);
/// First pause after no answer; it doubles up to [`PAUSE`].
const RETRY: Duration = Duration::from_secs(2);
/// No clock of a node that runs this build is right this long after it: thirty years. A clock whose battery has run out may
/// come up anywhere.
const CEILING: Duration = Duration::from_secs(BUILD_FLOOR.as_secs() + 30 * 31_556_952);
/// Servers that are asked: an odd number with room for a liar or two, and a lease may name dozens.
const SERVERS_MAX: usize = 7;
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
    /// It said what cannot be.
    impossible: bool,
}

impl Start {
    fn own_now(self) -> Duration {
        self.own_at_boot.saturating_add(sys::clock::since_boot())
    }

    /// Says aloud that nobody knows the time.
    pub(crate) fn say(self, info: &watch::Sender<NodeInfo>) {
        if self.impossible {
            let (own, floor) = (self.own_at_boot, self.floor);
            let days = own.abs_diff(floor).as_secs() / (24 * 3600);
            let side = if own < floor { "before" } else { "after" };
            let said = format!(
                "the machine's own clock is {days} days {side} the last time that this node knew, where it starts now"
            );
            log::warn!("{said}");
            troubles::say(info, Code::ClockAtFloor, said);
        }
    }
}

fn bounds(floor: Duration) -> Bounds {
    Bounds {
        floor,
        ceiling: CEILING,
    }
}

/// Sets the clock to the highest floor of the node's pools, if it is below, or where no clock can be.
pub(crate) fn start(pools: &[PathBuf]) -> Result<Start, sys::error::Error> {
    let stored = |pool: &PathBuf| std::fs::read_to_string(file(pool)).ok();
    let floors = pools.iter().map(|pool| floor(stored(pool).as_deref()));
    let floor = floors.fold(BUILD_FLOOR, Duration::max);
    let own_at_boot = own_at_boot(Path::new(OWN_CLOCK))?;
    let possible = floor..=CEILING.max(floor);
    if !possible.contains(&sys::clock::realtime()) {
        sys::clock::set_realtime(floor)?;
    }
    let own = own_at_boot.saturating_add(sys::clock::since_boot());
    Ok(Start {
        floor,
        own_at_boot,
        impossible: !possible.contains(&own),
    })
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
    // A floor that cannot be is damage, too: no server could ever be believed again.
    match Duration::from_secs(seconds) {
        stored if (BUILD_FLOOR..=CEILING).contains(&stored) => stored,
        _ => BUILD_FLOOR,
    }
}

/// The time that an offset implies; `None` where the clock is near enough.
fn corrected(now: Duration, offset_us: i64) -> Option<Duration> {
    if offset_us.unsigned_abs() < TOLERANCE_US {
        return None;
    }
    moved(now, offset_us)
}

/// The floor after a server has been believed. What a second witness confirms is the floor; without one
/// it rises no faster than time passes.
fn raised(floor: Duration, elapsed: Duration, now: Duration, confirmed: bool) -> Duration {
    if confirmed {
        return now.max(floor);
    }
    now.min(floor.saturating_add(elapsed)).max(floor)
}

/// Asks the servers for ever, and says what is known of the time.
pub(crate) async fn keep(
    pools: Vec<PathBuf>,
    start: Start,
    mut servers: watch::Receiver<Vec<SocketAddr>>,
    info: watch::Sender<NodeInfo>,
) {
    let mut floor = start.floor;
    let mut floor_from = sys::clock::since_boot();
    let mut retry = RETRY;
    loop {
        let known = servers.borrow_and_update().clone();
        let heard = ask(&known).await;
        let (now, own) = (sys::clock::realtime(), start.own_now());
        let judged = judge(now, own, bounds(floor), &heard);
        tell(&info, &judged);
        let pause = match judged.offset_us.filter(|offset| set(*offset)) {
            Some(_) => {
                synchronised(&info);
                let (now, uptime) = (sys::clock::realtime(), sys::clock::since_boot());
                let elapsed = uptime.saturating_sub(floor_from);
                floor = raised(floor, elapsed, now, judged.confirmed);
                floor_from = uptime;
                for pool in &pools {
                    // Nobody waits for a disk that may not answer.
                    let place = pool.clone();
                    let name = format!("clock {}", pool.display());
                    patient::begin(&name, move || remember(&place, floor));
                }
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

fn synchronised(info: &watch::Sender<NodeInfo>) {
    info.send_if_modified(|i| !std::mem::replace(&mut i.clock.synchronised, true));
    troubles::over(info, Code::ClockAtFloor);
}

/// What is wrong with the servers, until a round in which it is not.
fn tell(info: &watch::Sender<NodeInfo>, judged: &Judgement) {
    let told = [
        (Code::ClockRefused, &judged.refused),
        (Code::ClockContradicted, &judged.contradicted),
    ];
    for (code, said) in told {
        match said {
            Some(said) => {
                log::warn!("{said}");
                troubles::say(info, code, said);
            }
            None => troubles::over(info, code),
        }
    }
}

/// What each server says, in the order in which they are named. All at once: a server that is not there holds up none.
async fn ask(servers: &[SocketAddr]) -> Vec<Heard> {
    let mut asked = tokio::task::JoinSet::new();
    for (at, server) in servers.iter().copied().enumerate().take(SERVERS_MAX) {
        asked.spawn_local(async move { (at, server, net::time::query(server, ANSWER).await) });
    }
    let mut heard = Vec::new();
    while let Some(answer) = asked.join_next().await {
        match answer {
            Ok((at, server, Ok(sample))) => {
                let offset_us = sample.offset_us;
                heard.push((at, Heard { server, offset_us }));
            }
            Ok((_, _, Err(error))) => log::warn!("{}", sys::error::chain(&error)),
            Err(error) => log::error!("ask a time server: {error}"),
        }
    }
    heard.sort_by_key(|(at, _)| *at);
    heard.into_iter().map(|(_, heard)| heard).collect()
}

/// Sets the clock where it is not near enough. Whether it is right then.
fn set(offset_us: i64) -> bool {
    let Some(then) = corrected(sys::clock::realtime(), offset_us) else {
        return true;
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
        assert_eq!(corrected(now, 50_000), None);
        assert_eq!(
            corrected(now, year),
            Some(Duration::from_secs(1_831_536_000))
        );
        assert_eq!(
            corrected(now, -year),
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
    fn a_stored_floor_that_cannot_be_is_no_floor() {
        let far = (CEILING.as_secs() + 1).to_string();
        assert_eq!(floor(Some(&far)), BUILD_FLOOR);
        assert_eq!(floor(Some(&u64::MAX.to_string())), BUILD_FLOOR);
    }
}
