//! How the boot before this one ended.
//!
//! Owns: the file `boot` in the pool, and what follows from it, from the kernel's crash records and from the watchdog.
//! Refuses: guessing. A node that has no pool yet, or keeps it in memory, knows what the machine itself tells, or nothing.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use types::node::LastEnd;

use crate::wire::Mode;

/// The kernel's name for this boot.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
/// What was found out at the start of this boot, for agents that start later in it.
const FOUND: &str = "/run/sifr/last-end.json";
/// Longest file that is one of ours: a panic's headline is a line of the kernel.
const FILE_BYTES_MAX: u64 = 16 << 10;

/// Which boot used the pool last, and whether it said farewell.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Noted {
    boot: String,
    ended: Option<Mode>,
    /// Written by pid1, in the place of a node agent that did not come to it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    forced: bool,
}

/// What tells of the last boot.
#[derive(Debug, Clone, Default)]
struct Traces {
    /// The pool's, of another boot than this. `None`: there was none, or it cannot be read.
    ended: Option<Option<Mode>>,
    forced: bool,
    panic: Option<String>,
    watchdog: bool,
}

/// The strongest word first: what panicked on its way down did not end in order.
fn judge(traces: Traces) -> Option<LastEnd> {
    if let Some(headline) = traces.panic {
        return Some(LastEnd::Panicked { headline });
    }
    if traces.watchdog {
        return Some(LastEnd::Watchdog {});
    }
    if traces.forced {
        return Some(LastEnd::Forced {});
    }
    traces.ended.map(|ended| match ended {
        Some(Mode::PowerOff) => LastEnd::SwitchedOff {},
        Some(Mode::Reboot) => LastEnd::Rebooted {},
        None => LastEnd::Unannounced {},
    })
}

/// Called once the pool is there. The first agent of a boot finds out; later ones read what it found. What cannot be
/// written is told in the log: no boot fails over it.
pub(crate) fn begin(pool: &Path) -> Option<LastEnd> {
    let this = std::fs::read_to_string(BOOT_ID).unwrap_or_default();
    let noted: Option<Noted> = read(&file(pool));
    if let Some(found) = read(Path::new(FOUND)) {
        // Another pool may have come in place of one that is lost.
        if noted.is_none_or(|noted| noted.boot != this.trim()) {
            note(pool, this.trim(), None);
        }
        return found;
    }
    let found = judge(Traces {
        forced: noted.as_ref().is_some_and(|noted| noted.forced),
        ended: noted.map(|noted| noted.ended),
        panic: crate::pid1::last_panic_headline(),
        watchdog: crate::pid1::watchdog_bit(),
    });
    write(Path::new(FOUND), &found);
    note(pool, this.trim(), None);
    found
}

/// The node goes down in order. Durable when this returns.
pub(crate) fn end(pool: &Path, mode: Mode) {
    let this = std::fs::read_to_string(BOOT_ID).unwrap_or_default();
    note(pool, this.trim(), Some(mode));
}

fn note(pool: &Path, boot: &str, ended: Option<Mode>) {
    let boot = boot.to_owned();
    let forced = false;
    let noted = Noted {
        boot,
        ended,
        forced,
    };
    write(&file(pool), &noted);
}

/// For pid1, on its way down without the node agent: how it ends. Not in its own loop, as the disk may hang. Where the pool
/// is not mounted, or has another form, the file is of no use to anybody, and nothing reads it.
pub(crate) fn force(pool: &Path, mode: Mode) {
    let boot = std::fs::read_to_string(BOOT_ID).unwrap_or_default();
    let noted = Noted {
        boot: boot.trim().to_owned(),
        ended: Some(mode),
        forced: true,
    };
    write(&file(pool), &noted);
}

fn file(pool: &Path) -> PathBuf {
    pool.join("boot")
}

fn read<T: for<'a> Deserialize<'a>>(path: &Path) -> Option<T> {
    use std::io::Read;
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).ok()?;
    file.take(FILE_BYTES_MAX).read_to_end(&mut bytes).ok()?;
    serde_json::from_slice(&bytes).ok()
}

fn write(path: &Path, value: &impl Serialize) {
    let bytes = serde_json::to_vec(value).expect("words and options are JSON");
    if let Err(error) = sys::fs::write_atomic(path, &bytes, 0o600) {
        log::error!(
            "how this boot ends will not be known: {}",
            sys::error::chain(&error)
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool() -> tempfile::TempDir {
        tempfile::TempDir::new().expect("a directory")
    }

    fn ended(pool: &Path) -> Option<Option<Mode>> {
        read::<Noted>(&file(pool)).map(|noted| noted.ended)
    }

    #[test]
    fn a_boot_that_said_nothing_lost_its_power_and_one_that_did_ended_in_order() {
        let pool = pool();
        assert_eq!(ended(pool.path()), None);
        note(pool.path(), "first", None);
        assert_eq!(ended(pool.path()), Some(None));
        note(pool.path(), "first", Some(Mode::Reboot));
        assert_eq!(ended(pool.path()), Some(Some(Mode::Reboot)));
        let of = |ended| {
            judge(Traces {
                ended,
                ..Traces::default()
            })
        };
        assert_eq!(of(None), None, "the first boot");
        assert_eq!(of(Some(None)), Some(LastEnd::Unannounced {}));
        assert_eq!(
            of(Some(Some(Mode::PowerOff))),
            Some(LastEnd::SwitchedOff {})
        );
    }

    #[test]
    fn a_panic_and_the_watchdog_are_believed_before_a_farewell() {
        let traces = Traces {
            ended: Some(Some(Mode::Reboot)),
            forced: true,
            panic: None,
            watchdog: true,
        };
        assert_eq!(judge(traces.clone()), Some(LastEnd::Watchdog {}));
        let headline = "Kernel panic - not syncing: x".to_owned();
        let panic = Some(headline.clone());
        assert_eq!(
            judge(Traces { panic, ..traces }),
            Some(LastEnd::Panicked { headline })
        );
    }

    #[test]
    fn a_boot_that_pid1_ended_by_force_is_told_from_one_that_lost_its_power() {
        let pool = pool();
        note(pool.path(), "this", None);
        force(pool.path(), Mode::Reboot);
        let noted: Noted = read(&file(pool.path())).expect("a note");
        assert!(noted.forced);
        let traces = Traces {
            ended: Some(noted.ended),
            forced: noted.forced,
            ..Traces::default()
        };
        assert_eq!(judge(traces), Some(LastEnd::Forced {}));
        note(pool.path(), "next", None);
        let text = std::fs::read_to_string(file(pool.path())).expect("text");
        assert!(!text.contains("forced"), "as older images know it: {text}");
    }

    #[test]
    fn a_damaged_note_is_no_note() {
        let pool = pool();
        std::fs::write(file(pool.path()), b"{\"boot\": ").expect("written");
        assert_eq!(ended(pool.path()), None);
    }
}
