//! What the VMM says on standard error: pid1 reads it, and shows the last of it.
//!
//! Owns: how often one part may speak, whatever a guest does to make it. Refuses: to fail. A line that
//! nobody takes is lost, and nothing but the line.

use std::fmt::Arguments;
use std::io::{self, Write};
use std::sync::atomic::{AtomicU32, Ordering};

/// Most lines of one part: a guest can break and reset a device for ever, and what was said eight times
/// is known.
const REPORTS_MAX: u32 = 8;

/// The lines of one part so far.
#[derive(Debug, Default)]
pub(crate) struct Reports(AtomicU32);

impl Reports {
    /// Says a line, if this part may still speak.
    pub(crate) fn say(&self, text: Arguments<'_>) {
        if let Some(text) = self.next(text) {
            line(&text);
        }
    }

    fn next(&self, text: Arguments<'_>) -> Option<String> {
        let add = |count: u32| (count < REPORTS_MAX).then_some(count + 1);
        let order = Ordering::Relaxed;
        let before = self.0.fetch_update(order, order, add).ok()?;
        Some(match before + 1 {
            REPORTS_MAX => format!("{text} (more of this kind is not said)"),
            _ => text.to_string(),
        })
    }
}

/// One line, in one piece. Standard error may be gone: pid1 hears a VMM that talks without end no longer.
pub(crate) fn line(text: &str) {
    // A fuzzer makes a thousand devices a second and reads none of it.
    if !cfg!(feature = "fuzz") {
        let _ = io::stderr().write_all(format!("{text}\n").as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_speaks_a_few_times_and_says_when_it_is_the_last() {
        let reports = Reports::default();
        let said: Vec<_> = (0..100)
            .filter_map(|n| reports.next(format_args!("again {n}")))
            .collect();
        assert_eq!(said.len(), 8);
        assert_eq!((said[0].as_str(), said[6].as_str()), ("again 0", "again 6"));
        assert!(said[7].starts_with("again 7 (more"));
    }
}
