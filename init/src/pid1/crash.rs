//! The end of pid1 by its own fault, and what is left of the last one.
//!
//! Owns: the epitaph, and reading the kernel's crash records (pstore).
//! Refuses: going on after a panic: PID 1 ends, the kernel panics, keeps its log and reboots
//! (`kernel.panic`), or halts where `sifr.panic=halt` asked for that.

use std::fs;
use std::io::Read;
use std::path::Path;

use sys::mount::Flags;

use crate::console::Console;

/// Where the text of the last panic is kept during this boot.
const LAST_PANIC: &str = "/run/sifr/last-panic";
/// Is there where the watchdog ended the last boot.
const BITE: &str = "/run/sifr/watchdog-bit";
/// Most crash text that is kept: several records of the usual 32 KiB.
const RECORDS_MAX_BYTES: u64 = 256 << 10;
/// Most records that are looked at: the firmware's memory is small.
const RECORDS_MAX: usize = 64;

/// From now on a panic says its last words on the consoles and in the kernel log, which pstore keeps.
pub(super) fn tell_before_dying() {
    std::panic::set_hook(Box::new(|info| {
        let text = format!("sifr: pid1 has failed: {info}").replace('\n', " ");
        // The kernel shows a critical line on every console too.
        if sys::klog::write_critical(&text).is_err() {
            Console::open().line(&text);
        }
    }));
}

/// Moves the records of the last panic to [`LAST_PANIC`] and gives its headline.
pub(super) fn last_panic(store: &Path, flags: Flags) -> Option<String> {
    if !store.exists() || sys::mount::mount("pstore", store, "pstore", flags, "").is_err() {
        return None;
    }
    let mut names: Vec<_> = fs::read_dir(store)
        .ok()?
        .flatten()
        .map(|e| e.path())
        .take(RECORDS_MAX)
        .collect();
    names.sort();
    let mut text = Vec::new();
    for path in &names {
        if let Ok(file) = fs::File::open(path) {
            let left =
                RECORDS_MAX_BYTES.saturating_sub(u64::try_from(text.len()).unwrap_or(u64::MAX));
            // A record that cannot be read is as good as none.
            let _ = file.take(left).read_to_end(&mut text);
        }
        // Removing it makes room in the firmware for the next one.
        let _ = fs::remove_file(path);
    }
    let text = String::from_utf8_lossy(&text);
    headline(&text)?;
    let _ = fs::write(LAST_PANIC, text.as_bytes());
    last_panic_headline()
}

/// How the last boot ended, if in a panic.
pub(crate) fn last_panic_headline() -> Option<String> {
    let text = fs::read_to_string(LAST_PANIC).ok()?;
    headline(&text).map(|line| format!("the last boot ended so: {line}"))
}

/// Says to the agents of this boot that the watchdog ended the last one.
pub(super) fn note_bite() {
    // Without it the end of that boot is only said less precisely.
    let _ = fs::write(BITE, b"");
}

/// Whether the watchdog ended the last boot.
pub(crate) fn watchdog_bit() -> bool {
    Path::new(BITE).exists()
}

fn headline(text: &str) -> Option<String> {
    let marks = ["sifr: pid1 has failed", "Kernel panic - not syncing"];
    let found = marks.iter().find_map(|mark| {
        text.lines()
            .find_map(|line| line.find(mark).map(|at| &line[at..]))
    });
    found.map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_last_words_say_more_than_the_kernels() {
        let text = "<2>[ 1.0] sifr: pid1 has failed: x\n<0>[ 1.1] Kernel panic - not syncing: Attempted to kill init!\n";
        assert_eq!(headline(text).as_deref(), Some("sifr: pid1 has failed: x"));
        assert_eq!(
            headline("Kernel panic - not syncing: y").as_deref(),
            Some("Kernel panic - not syncing: y")
        );
        assert_eq!(headline("console text"), None);
    }
}
