//! Disks that come and go again and again: a bad cable, a power supply that gives out.
//!
//! Owns: the list of when disks came in this boot, and how long one has to stay before it is used once more. Refuses: looking at
//! disks (`vigil` does).
//!
//! Each disk that is used anew costs another node agent, and the machines on it a start. So the first returns count at once, and
//! each further one has to prove that it lasts.

use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::given_up::Mark;

/// As short-lived as the boot.
const FILE: &str = "/run/sifr/flaps.json";
/// Comings that are remembered: what was so long ago is another story.
const WINDOW: Duration = Duration::from_secs(30 * 60);
/// Comings in that time that are used at once: a disk is put back, and once more as its cable sat badly.
const FREE: usize = 3;
/// How long the next one has to stay; doubled with each further one.
const STAY_MIN: Duration = Duration::from_secs(60);
/// At most, so that one that was mended is used the same hour.
const STAY_MAX: Duration = Duration::from_secs(15 * 60);
/// Comings that are counted: from here on it is [`STAY_MAX`] anyhow.
const COUNT_MAX: usize = FREE + 8;
/// Disks that are remembered, those that came last.
const DISKS_MAX: usize = 64;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    disk: Mark,
    /// When it was used anew, in milliseconds since the boot, in order.
    came_ms: Vec<u64>,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Flaps(Vec<Entry>);

impl Flaps {
    pub(crate) fn read() -> Self {
        let bytes = std::fs::read(FILE).unwrap_or_default();
        serde_json::from_slice(&bytes).unwrap_or_default()
    }

    pub(crate) fn write(&self) {
        let json = serde_json::to_vec(self).expect("text and numbers are JSON");
        if let Err(error) = sys::fs::write_atomic(Path::new(FILE), &json, 0o600) {
            log::error!("note which disks came: {}", sys::error::chain(&error));
        }
    }

    /// It is used anew now.
    pub(crate) fn came(&mut self, disk: &Mark, now_ms: u64) {
        let at = self.0.iter().position(|entry| entry.disk.is(disk));
        let mut entry = at.map_or_else(
            || Entry {
                disk: disk.clone(),
                came_ms: Vec::new(),
            },
            |at| self.0.remove(at),
        );
        entry.came_ms.push(now_ms);
        let more = entry.came_ms.len().saturating_sub(COUNT_MAX);
        entry.came_ms.drain(..more);
        self.0.push(entry);
        let more = self.0.len().saturating_sub(DISKS_MAX);
        self.0.drain(..more);
    }

    /// How long one that comes now has to stay before it is used, and how often it has come. `None`: not at all.
    pub(crate) fn stay(&self, disk: &Mark, now_ms: u64) -> Option<(Duration, usize)> {
        let entry = self.0.iter().find(|entry| entry.disk.is(disk))?;
        let recent = |at: &&u64| u128::from(now_ms.saturating_sub(**at)) < WINDOW.as_millis();
        let count = entry.came_ms.iter().filter(recent).count();
        let over = u32::try_from(count.checked_sub(FREE)?).unwrap_or(u32::MAX);
        let stay = STAY_MIN.saturating_mul(2u32.saturating_pow(over));
        Some((stay.min(STAY_MAX), count))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::disks::a_disk;

    #[test]
    fn the_first_returns_count_at_once_and_each_further_one_has_to_stay_longer() {
        let (disk, other) = (Mark::of(&a_disk("sda", "A")), Mark::of(&a_disk("sdb", "B")));
        let mut flaps = Flaps::default();
        let minutes = |stay: Option<(Duration, usize)>| stay.map(|(stay, _)| stay.as_secs() / 60);
        let mut stays = Vec::new();
        for at in 0..20 {
            stays.push(minutes(flaps.stay(&disk, at)));
            flaps.came(&disk, at);
        }
        assert_eq!(stays[..3], [None; 3]);
        assert_eq!(stays[3..8], [1, 2, 4, 8, 15].map(Some));
        assert_eq!(stays[19], Some(15), "and no longer, however often");
        assert_eq!(flaps.stay(&other, 20), None, "it did nothing");
        let later = 20 + u64::try_from(WINDOW.as_millis()).expect("small");
        assert_eq!(flaps.stay(&disk, later), None, "it was quiet since");
    }

    #[test]
    fn what_came_last_is_remembered_of_however_many() {
        let mut flaps = Flaps::default();
        for at in 0..DISKS_MAX + 5 {
            flaps.came(&Mark::of(&a_disk("sda", &format!("{at}"))), 1);
        }
        assert_eq!(flaps.0.len(), DISKS_MAX);
        let json = serde_json::to_string(&flaps).expect("text");
        assert_eq!(serde_json::from_str::<Flaps>(&json).expect("read"), flaps);
    }
}
