//! Every reader of hostile bytes, as a function that takes arbitrary ones.
//!
//! Owns: the table of targets with their seeds, what must hold of whatever a reader accepts, and a test
//! that changes the seeds a thousand times on the compiler of every day.
//! Refuses: corpora in the tree. Seeds are made by our own encoders, so they follow the formats.
#![forbid(unsafe_code)]

mod api;
mod certificates;
mod choices;
mod files;
mod flist;
mod guest;
mod ingress;
mod init;
pub mod mutate;
mod net;
mod peer;
mod storage;
mod stores;
mod types;
mod vault;
mod vmm;
mod workload;

/// Names the target that `fuzz-target` runs.
pub const TARGET_VARIABLE: &str = "SIFR_FUZZ_TARGET";

/// One reader.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// `<package>-<what it reads>`.
    pub name: &'static str,
    /// Longer inputs show nothing new and cost time.
    pub bytes_max: usize,
    /// Panics where a promise is broken.
    pub run: fn(&[u8]),
    /// Inputs that get far, made by our own encoders.
    pub seeds: fn() -> Vec<Vec<u8>>,
}

/// All targets, sorted by name.
pub fn targets() -> Vec<Target> {
    let areas: [&[Target]; 13] = [
        &api::TARGETS,
        &certificates::TARGETS,
        &flist::TARGETS,
        &guest::TARGETS,
        &ingress::TARGETS,
        &init::TARGETS,
        &net::TARGETS,
        &storage::TARGETS,
        &stores::TARGETS,
        &types::TARGETS,
        &vault::TARGETS,
        &vmm::TARGETS,
        &workload::TARGETS,
    ];
    let mut all = areas.concat();
    all.sort_by_key(|target| target.name);
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::time::{Duration, Instant};

    /// Changed inputs of each target: a few seconds for all of them together.
    const CHANGES: u64 = 1000;
    /// No target has more time than this: some make files.
    const TIME_MAX: Duration = Duration::from_secs(2);

    fn survives(target: &Target, input: &[u8]) {
        if catch_unwind(AssertUnwindSafe(|| (target.run)(input))).is_err() {
            let bytes: String = input.iter().map(|b| format!("{b:02x}")).collect();
            panic!("{} does not survive {bytes}", target.name);
        }
    }

    #[test]
    fn every_reader_survives_its_seeds_and_a_thousand_changes_of_them() {
        for target in targets() {
            let seeds = (target.seeds)();
            for seed in &seeds {
                assert!(seed.len() <= target.bytes_max, "a seed of {}", target.name);
                survives(&target, seed);
            }
            survives(&target, &[]);
            let began = Instant::now();
            for number in 0..CHANGES {
                survives(&target, &mutate::change(&seeds, number, target.bytes_max));
                if began.elapsed() > TIME_MAX {
                    break;
                }
            }
        }
    }

    #[test]
    fn every_reader_has_a_name_of_its_own_and_seeds() {
        let all = targets();
        assert!(all.windows(2).all(|w| w[0].name < w[1].name));
        for target in all {
            assert!(!(target.seeds)().is_empty(), "{}", target.name);
        }
    }

    #[test]
    fn a_reader_that_breaks_its_promise_is_found() {
        let target = Target {
            name: "broken",
            bytes_max: 8,
            run: |input| assert!(input.len() < 8, "too long"),
            seeds: || vec![vec![1; 7]],
        };
        let found = (0..CHANGES).any(|number| {
            let input = mutate::change(&(target.seeds)(), number, target.bytes_max);
            catch_unwind(|| (target.run)(&input)).is_err()
        });
        assert!(found, "a change makes it longer");
    }
}
