//! Options in a partition that somebody has made for them, on a disk that is plugged in.
//!
//! Owns: looking for it once in a boot, at what is there and at what still comes; the same for every agent of that boot.
//! Refuses: a choice between two, and what a node's own pool says. How bytes of such a disk are read: `storage::options`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::{Deserialize, Serialize};
use storage::disk::{Disk, inventory};
use storage::options::{NAME, Part, find, read};
use sys::uevent::Uevents;

use crate::node::patient;
use crate::options::Wish;

/// What was found in this boot. Of the agent alone: a password may be in it.
const KEPT: &str = "/run/sifr/options-partition.json";
/// How long a partition is waited for that is named: a disk on USB that has to spin up, behind a hub.
const NAMED_MAX: Duration = Duration::from_secs(30);
/// How long a disk is waited for that is plugged in and not there yet: a stick takes some two seconds.
const COMING_MAX: Duration = Duration::from_secs(10);
/// In so much time from the kernel's start USB controllers find what is plugged into them: a hub powers its ports within 100 ms, and a
/// device has half a second to answer, each of a few hubs behind one another.
const USB_SETTLED: Duration = Duration::from_secs(3);
/// Longest wait for one look at a disk, and for its file: one that hangs is passed over.
const DISK_MAX: Duration = Duration::from_secs(5);
/// Between two looks where no event says that there is something new: what was passed over may answer now.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// USB's class of mass storage (USB-IF), in sysfs.
const MASS_STORAGE: &str = "08";

/// What such a partition says, and what was wrong with it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(super) struct Found {
    pub(super) text: String,
    pub(super) errors: Vec<String>,
}

/// A partition, by its disk's kernel name.
type Place = (String, Part);

/// What is there now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rest {
    /// Everything that is plugged in.
    All,
    /// A disk is on its way.
    Coming,
}

/// Once in a boot: an agent that comes later hears what the first one has found.
pub(super) fn once(wish: &Wish) -> Found {
    let kept = fs::read(KEPT).ok();
    if let Some(found) = kept.and_then(|bytes| serde_json::from_slice(&bytes).ok()) {
        return found;
    }
    let found = match wish {
        Wish::Off | Wish::Unclear => Found::default(),
        Wish::Usual => seek(NAME, COMING_MAX, Duration::ZERO),
        Wish::Named(name) => seek(name, COMING_MAX, NAMED_MAX),
    };
    let bytes = serde_json::to_vec(&found).expect("plain data");
    if let Err(error) = sys::fs::write_atomic(Path::new(KEPT), &bytes, 0o600) {
        log::error!(
            "a later agent of this boot looks anew: {}",
            sys::error::chain(&error)
        );
    }
    found
}

/// Whether to look on. A partition that was seen once stays seen: of two of one name none counts, whenever each comes.
fn looks_on(
    found: usize,
    rest: Rest,
    waited: Duration,
    (coming, named): (Duration, Duration),
) -> bool {
    match (rest, found) {
        (Rest::Coming, _) if waited < coming => true,
        (_, 0) => waited < named,
        _ => false,
    }
}

fn seek(name: &str, coming: Duration, named: Duration) -> Found {
    let begun = Instant::now();
    // Before the first look, so that nothing comes in between. Without, it is looked each second.
    let events =
        Uevents::subscribe().inspect_err(|error| log::warn!("{}", sys::error::chain(error)));
    let mut seen = Seen::default();
    loop {
        // In this order: what comes between the two is looked at once more, or was there for the look.
        let rest = rest(Path::new("/sys"), sys::clock::since_boot());
        seen.look(name);
        if !looks_on(seen.parts.len(), rest, begun.elapsed(), (coming, named)) {
            return seen.verdict(name, named);
        }
        wait(events.as_ref().ok());
    }
}

/// Until a device has come or gone, or it is time.
fn wait(events: Option<&Uevents>) {
    let limit = PollTimeout::try_from(LOOK_EVERY).unwrap_or(PollTimeout::ZERO);
    let Some(events) = events else {
        return std::thread::sleep(LOOK_EVERY);
    };
    let mut fds = [PollFd::new(events.as_fd(), PollFlags::POLLIN)];
    // What is wrong with it ends with the time.
    let _ = poll(&mut fds, limit);
    while let Ok(Some(_)) = events.next() {}
}

/// Whether something that is plugged in is no disk yet: a USB controller that has just begun, or a mass storage device without one.
fn rest(sys: &Path, since_boot: Duration) -> Rest {
    let devices = entries(&sys.join("bus/usb/devices"));
    let is_root = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with("usb")
    };
    let begins = since_boot < USB_SETTLED && devices.iter().any(is_root);
    let is_storage = |path: &&PathBuf| {
        let class = fs::read_to_string(path.join("bInterfaceClass"));
        class.is_ok_and(|class| class.trim() == MASS_STORAGE)
    };
    let mut storage = devices.iter().filter(is_storage);
    match begins || storage.any(|interface| !has_disk(interface)) {
        true => Rest::Coming,
        false => Rest::All,
    }
}

/// `host1/target1:0:0/1:0:0:0/block/sda` below its interface.
fn has_disk(interface: &Path) -> bool {
    let mut level = vec![interface.to_owned()];
    for begin in ["host", "target", ""] {
        let below = level.iter().flat_map(|path| entries(path));
        let begins = |path: &PathBuf| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            name.starts_with(begin)
        };
        level = below.filter(begins).collect();
    }
    level
        .iter()
        .any(|unit| !entries(&unit.join("block")).is_empty())
}

/// None where it cannot be listed.
fn entries(directory: &Path) -> Vec<PathBuf> {
    let all = fs::read_dir(directory).into_iter().flatten().flatten();
    all.map(|entry| entry.path()).collect()
}

/// What was seen so far.
#[derive(Debug, Default)]
struct Seen {
    parts: BTreeSet<Place>,
    /// Disks whose tables have been read.
    looked: BTreeMap<String, Disk>,
}

impl Seen {
    /// Reads the tables of all disks that are new, at the same time.
    fn look(&mut self, name: &str) {
        let disks = inventory(Path::new("/sys")).unwrap_or_else(|error| {
            log::warn!("{}", sys::error::chain(&error));
            Vec::new()
        });
        let new = |disk: &Disk| self.looked.get(&disk.name) != Some(disk);
        let new: Vec<Disk> = disks.into_iter().filter(new).collect();
        let begin = |disk: Disk| {
            let (asked, name) = (disk.clone(), name.to_owned());
            let task = format!("options: look at {}", disk.name);
            let begun = patient::begin(&task, move || {
                let file = File::open(asked.device())?;
                find(&file, asked.size_bytes, asked.block_bytes, &name)
            });
            (disk, begun)
        };
        let begun: Vec<_> = new.into_iter().map(begin).collect();
        let end = Instant::now() + DISK_MAX;
        for (disk, begun) in begun {
            match begun.until(end) {
                Some(Ok(parts)) => {
                    let place = |part| (disk.name.clone(), part);
                    self.parts.extend(parts.into_iter().map(place));
                    self.looked.insert(disk.name.clone(), disk);
                }
                // It is looked at again while there is time.
                Some(Err(error)) => {
                    log::info!("options are not looked for on {}: {error}", disk.name)
                }
                None => log::warn!(
                    "options are not looked for on {}, which does not answer",
                    disk.name
                ),
            }
        }
    }

    fn verdict(self, name: &str, named: Duration) -> Found {
        let each: Vec<&Place> = self.parts.iter().collect();
        let error = match each.as_slice() {
            [] if named.is_zero() => return Found::default(),
            [] => format!(
                "sifr.config={name}: no disk had a GPT partition of that name within {} s",
                named.as_secs()
            ),
            [(disk, part)] => {
                return self
                    .looked
                    .get(disk)
                    .map_or_else(Found::default, |disk| content(disk, *part));
            }
            all => {
                let all: Vec<String> = all.iter().map(|place| shown(place)).collect();
                format!(
                    "there are {} partitions with the name {name} ({}), and none of them is read: leave one, or name another with sifr.config=",
                    all.len(),
                    all.join(", ")
                )
            }
        };
        Found {
            errors: vec![error],
            ..Found::default()
        }
    }
}

fn shown((disk, part): &Place) -> String {
    format!("number {} of {disk}", part.number)
}

fn content(disk: &Disk, part: Part) -> Found {
    let place = shown(&(disk.name.clone(), part));
    let asked = disk.device();
    let read = patient::within("options: read the partition", DISK_MAX, move || {
        let file = File::open(asked).map_err(|error| format!("open it: {error}"))?;
        read(&file, part).map_err(|error| sys::error::chain(&error))
    });
    let text = match read {
        None => Err("the disk does not answer".to_owned()),
        Some(Err(error)) => Err(error),
        // As editors of other systems begin a text.
        Some(Ok(bytes)) => match String::from_utf8(bytes) {
            Ok(text) => Ok(text.trim_start_matches('\u{feff}').to_owned()),
            Err(_) => Err("its file options is no text in UTF-8".to_owned()),
        },
    };
    match text {
        Ok(text) => {
            log::info!("options are read from the partition {place}");
            Found {
                text,
                errors: Vec::new(),
            }
        }
        Err(error) => Found {
            text: String::new(),
            errors: vec![format!("options partition, {place}: {error}")],
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_named_partition_is_waited_for_and_a_disk_that_is_on_its_way_and_nobody_else() {
        let s = Duration::from_secs;
        let usual = (COMING_MAX, Duration::ZERO);
        let named = (COMING_MAX, NAMED_MAX);
        for (found, rest, waited, limits, on) in [
            (0, Rest::All, s(0), usual, false),
            (0, Rest::Coming, s(0), usual, true),
            (0, Rest::Coming, s(11), usual, false),
            (0, Rest::All, s(29), named, true),
            (0, Rest::All, s(30), named, false),
            (1, Rest::All, s(0), named, false),
            // A second one would make both an error.
            (1, Rest::Coming, s(9), named, true),
            (1, Rest::Coming, s(10), usual, false),
            (2, Rest::All, s(0), usual, false),
        ] {
            assert_eq!(
                looks_on(found, rest, waited, limits),
                on,
                "{found} {rest:?} {waited:?}"
            );
        }
    }

    #[test]
    fn a_stick_that_is_plugged_in_is_coming_until_it_has_a_disk() {
        let sys = tempfile::tempdir().expect("a directory");
        let late = Duration::from_secs(60);
        assert_eq!(rest(sys.path(), Duration::ZERO), Rest::All);
        let devices = sys.path().join("bus/usb/devices");
        fs::create_dir_all(devices.join("usb1")).expect("made");
        assert_eq!(rest(sys.path(), Duration::ZERO), Rest::Coming);
        assert_eq!(rest(sys.path(), late), Rest::All);
        let interface = devices.join("1-1:1.0");
        let unit = interface.join("host0/target0:0:0/0:0:0:0");
        fs::create_dir_all(&interface).expect("made");
        fs::write(interface.join("bInterfaceClass"), "03\n").expect("written");
        assert_eq!(rest(sys.path(), late), Rest::All, "a keyboard");
        fs::write(interface.join("bInterfaceClass"), "08\n").expect("written");
        assert_eq!(rest(sys.path(), late), Rest::Coming);
        fs::create_dir_all(&unit).expect("made");
        assert_eq!(rest(sys.path(), late), Rest::Coming);
        fs::create_dir_all(unit.join("block/sda")).expect("made");
        assert_eq!(rest(sys.path(), late), Rest::All);
    }
}
