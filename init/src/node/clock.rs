//! Time: a floor that survives reboots, and a server's word when there is one.
//!
//! Owns: the file `clock` in the pool, and the loop that asks time servers.
//! Refuses: going below the floor, whatever the machine's clock or a server says.

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
/// Offsets below this are left alone: certificates and logs need no better.
const TOLERANCE_US: u64 = 100_000;

/// Raises the clock to the floor, if it is below. Returns the floor.
pub(crate) fn start(pool: &Path) -> Result<Duration, sys::error::Error> {
    let stored = std::fs::read_to_string(file(pool)).ok();
    let floor = floor(stored.as_deref());
    if sys::clock::realtime() < floor {
        sys::clock::set_realtime(floor)?;
    }
    Ok(floor)
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

/// Asks the servers in turn for ever, and says in `synchronised` once one has been believed.
pub(crate) async fn keep(
    pool: PathBuf,
    floor: Duration,
    mut servers: watch::Receiver<Vec<SocketAddr>>,
    synchronised: impl Fn(),
) {
    let mut retry = RETRY;
    loop {
        let known = servers.borrow_and_update().clone();
        let pause = match ask(&known, floor).await {
            true => {
                synchronised();
                remember(&pool);
                retry = RETRY;
                PAUSE
            }
            false => {
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

async fn ask(servers: &[SocketAddr], floor: Duration) -> bool {
    for server in servers {
        match net::time::query(*server, ANSWER).await {
            Ok(sample) => {
                let now = sys::clock::realtime();
                let Some(then) = corrected(now, sample.offset_us, floor) else {
                    if sample.offset_us.unsigned_abs() < TOLERANCE_US {
                        return true;
                    }
                    log::warn!(
                        "time server {server} names a time before this node's last: not believed"
                    );
                    continue;
                };
                match sys::clock::set_realtime(then) {
                    Ok(()) => return true,
                    Err(error) => log::error!("{}", sys::error::chain(&error)),
                }
            }
            Err(error) => log::warn!("{}", sys::error::chain(&error)),
        }
    }
    false
}

fn remember(pool: &Path) {
    let text = format!("{}\n", sys::clock::realtime().as_secs());
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
    fn no_server_moves_the_clock_below_the_floor() {
        let now = Duration::from_secs(1_800_000_000);
        assert_eq!(corrected(now, -10_000_000, now), None);
        assert_eq!(corrected(now, i64::MIN, now), None);
    }
}
