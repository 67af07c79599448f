//! A machine that counts on its own disk, and a reader who notes how far it said it had come.
//!
//! Owns: the guest's program, and what its log may say. Pure but for the program.
//! Refuses: a count that goes back.

use std::collections::BTreeSet;

/// Its deployment's name.
pub(super) const NAME: &str = "scribe";

/// Says what it finds, then counts: each number is appended, flushed, and only then said.
pub(super) const PROGRAM: &str = "touch /notes; n=0; while read l; do n=$l; done </notes; \
    echo have $n $(cat /proc/sys/kernel/random/boot_id); \
    while :; do n=$((n+1)); echo $n >>/notes; sync; echo done $n; sleep 0.3; done";

/// What it has said.
#[derive(Debug, Default)]
pub(super) struct Scribe {
    boots: BTreeSet<String>,
    done: u64,
}

impl Scribe {
    /// Numbers that were said to be on disk.
    pub(super) fn count(&self) -> u64 {
        self.done
    }

    /// Hears a line of its log, old ones again at each reading. True where it is the first word of a new boot.
    ///
    /// # Errors
    /// A new boot found less than an earlier one had flushed.
    pub(super) fn hear(&mut self, line: &str) -> Result<bool, String> {
        let mut words = line.split_whitespace();
        let (word, number, boot) = (words.next(), words.next(), words.next());
        let Some(number) = number.and_then(|n| n.parse::<u64>().ok()) else {
            return Ok(false);
        };
        match (word, boot) {
            (Some("done"), None) => self.done = self.done.max(number),
            (Some("have"), Some(boot)) if self.boots.insert(boot.to_owned()) => {
                if number < self.done {
                    let done = self.done;
                    return Err(format!("{NAME}: {done} were flushed, {number} are there"));
                }
                return Ok(true);
            }
            _ => {}
        }
        Ok(false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_count_that_goes_back_is_found_and_old_lines_are_not_taken_for_it() {
        let mut scribe = Scribe::default();
        assert_eq!(scribe.hear("have 0 a"), Ok(true));
        assert_eq!(scribe.hear("done 1"), Ok(false));
        assert_eq!(scribe.hear("done 2"), Ok(false));
        assert_eq!(scribe.hear("have 0 a"), Ok(false), "heard before");
        assert_eq!(scribe.hear("have 3 b"), Ok(true), "more than was said");
        assert!(scribe.hear("have 1 c").is_err());
    }
}
