//! How machines that failed wait, over restarts of the agent.
//!
//! Owns: the file in `/run` that says so: it goes with the boot, as a new boot is a new try.
//! Refuses: deciding how long anybody waits (`workload` does). A file that cannot be read is as good as none.

use std::collections::BTreeMap;
use std::path::PathBuf;

use types::VmId;
use workload::Pause;

const FILE: &str = "/run/sifr/pauses.json";

type All = BTreeMap<VmId, Pause>;

/// What was kept last.
#[derive(Debug)]
pub(crate) struct Pauses {
    file: PathBuf,
    kept: All,
}

impl Pauses {
    pub(crate) fn open() -> Self {
        Self::at(FILE.into())
    }

    fn at(file: PathBuf) -> Self {
        let text = std::fs::read(&file).unwrap_or_default();
        let kept = serde_json::from_slice(&text).unwrap_or_default();
        Self { file, kept }
    }

    pub(crate) fn kept(&self) -> All {
        self.kept.clone()
    }

    /// Written where it is another than before.
    pub(crate) fn keep(&mut self, now: All) {
        if now == self.kept {
            return;
        }
        let bytes = serde_json::to_vec(&now).expect("numbers and words are JSON");
        match sys::fs::write_atomic(&self.file, &bytes, 0o600) {
            Ok(()) => self.kept = now,
            // After a restart of the agent the machines are tried a little sooner.
            Err(error) => log::warn!("{}", sys::error::chain(&error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_kept_is_there_for_the_next_agent_and_what_is_damaged_is_nothing() {
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("pauses.json");
        let mut pauses = Pauses::at(file.clone());
        assert!(pauses.kept().is_empty());
        let json = r#"{"web-shop-01010101":{"failed":null,"failures":3,"not_before":8000,"starts":4,"message":"no","code":"start_failed"}}"#;
        let some: All = serde_json::from_str(json).expect("pauses");
        pauses.keep(some.clone());
        assert_eq!(Pauses::at(file.clone()).kept(), some);
        std::fs::write(&file, &json[..20]).expect("cut");
        assert!(Pauses::at(file).kept().is_empty());
    }
}
