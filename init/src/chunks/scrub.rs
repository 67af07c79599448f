//! The scrub: reads the whole cache again and again, slowly, and removes what is no longer what its name says.
//!
//! Owns: where it is, and how fast it goes. Refuses: deciding what is fetched again (`daemon` knows who needs it).

use std::path::PathBuf;
use std::time::Duration;

use flist::cache::{Cache, Scrubbed};

/// How fast the scrub goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Pace {
    pub(crate) bytes_per_second: u64,
    /// Between two looks at a cache that is empty, and before the first.
    pub(crate) idle: Duration,
}

impl Pace {
    /// A cache of 100 GiB is read in twelve days, and a disk is busy with it for a hundredth of its time. A machine that
    /// starts has other things to read.
    pub(crate) const OF_A_NODE: Self = Self {
        bytes_per_second: 100 << 10,
        idle: Duration::from_secs(60),
    };
}

/// Where the scrub is: it goes through the cache directory after directory, for ever.
#[derive(Debug)]
pub(crate) struct Scrub {
    pace: Pace,
    /// Of this directory, what is left to look at.
    left: Vec<PathBuf>,
    /// The next directory.
    next: u8,
}

/// What was looked at, and when to look again.
#[derive(Debug)]
pub(crate) struct Step {
    /// `None`: there was nothing to look at.
    pub(crate) scrubbed: Option<Scrubbed>,
    pub(crate) rest: Duration,
}

impl Scrub {
    pub(crate) fn new(pace: Pace) -> Self {
        Self {
            pace,
            left: Vec::new(),
            next: 0,
        }
    }

    /// Looks at one chunk; blocks as long as that takes to read.
    pub(crate) fn step(&mut self, cache: &Cache) -> Step {
        // What is left of this directory, and then once each of all 256, this one again as the last.
        for _ in 0..=256 {
            while let Some(path) = self.left.pop() {
                // What is no chunk, or is gone by now, is none of ours.
                if let Some(scrubbed) = cache.scrub(&path) {
                    let micros =
                        scrubbed.bytes.saturating_mul(1_000_000) / self.pace.bytes_per_second;
                    return Step {
                        rest: Duration::from_micros(micros.max(1)),
                        scrubbed: Some(scrubbed),
                    };
                }
            }
            self.left = cache.stored_in(self.next);
            self.next = self.next.wrapping_add(1);
        }
        Step {
            scrubbed: None,
            rest: self.pace.idle,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;
    use types::Digest;

    fn hash(bytes: &[u8]) -> Digest {
        Digest(blake3::hash(bytes).into())
    }

    fn way(scrub: &mut Scrub, cache: &Cache, steps: usize) -> Vec<(Digest, bool)> {
        let one = |_| {
            scrub
                .step(cache)
                .scrubbed
                .map(|s| (s.digest, s.was_damaged))
        };
        (0..steps).filter_map(one).collect()
    }

    #[test]
    fn every_chunk_is_read_once_on_each_way_and_a_damaged_one_is_removed() {
        let work = tempfile::tempdir().expect("a directory");
        let cache = Cache::open(work.path()).expect("a cache");
        let mut scrub = Scrub::new(Pace::OF_A_NODE);
        let step = scrub.step(&cache);
        assert!(step.scrubbed.is_none() && step.rest == Pace::OF_A_NODE.idle);
        let names: BTreeSet<Digest> = (0..40u8)
            .map(|n| {
                let bytes = vec![n; 2000];
                cache.put_chunk(hash(&bytes), &bytes).expect("kept");
                hash(&bytes)
            })
            .collect();
        let damaged = *names.first().expect("one of forty");
        std::fs::write(cache.chunk_path(&damaged), vec![200; 2000]).expect("written");
        std::fs::write(work.path().join("chunks/stray"), b"x").expect("written");
        let seen = way(&mut scrub, &cache, 40);
        assert_eq!(seen.iter().map(|s| s.0).collect::<BTreeSet<_>>(), names);
        let found: Vec<_> = seen.iter().filter(|s| s.1).map(|s| s.0).collect();
        assert_eq!(found, [damaged]);
        assert!(!cache.chunk_path(&damaged).exists());
        let again = way(&mut scrub, &cache, 39);
        assert!(again.len() == 39 && again.iter().all(|s| !s.1));
    }

    #[test]
    fn it_goes_no_faster_than_it_says() {
        let work = tempfile::tempdir().expect("a directory");
        let cache = Cache::open(work.path()).expect("a cache");
        let bytes = vec![1; 300 << 10];
        cache.put_chunk(hash(&bytes), &bytes).expect("kept");
        let step = Scrub::new(Pace::OF_A_NODE).step(&cache);
        assert_eq!(step.rest, Duration::from_secs(3));
    }
}
