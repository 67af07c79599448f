//! One line of the log answer: a record of a program's output.
//!
//! Owns: its JSON form, and how an answer's beginning is named. Refuses: splitting output into lines of text; a record is what one read of the
//! guest's stream gave.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use types::Name;
use types::status::{DeploymentStatus, Desired, State};
use types::vm::Stream;

/// Longest JSON line: a record of 64 KiB in base64, and the fields around it.
pub const LOG_LINE_MAX: usize = 128 << 10;
/// Most lines that `tail` can ask for.
pub const TAIL_MAX: u64 = 100_000;

/// With which record an answer begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Begin {
    /// The oldest that is still there.
    Oldest,
    /// So many lines before the end; of the first record only what belongs to them.
    Tail(u64),
    /// What follows this record, of which a reader has `seq` and time: where it goes on whose connection broke. A node that lost
    /// its power may have lost the record, and have given its number to another since: then what was written later than it.
    After { seq: u64, time_ms: u64 },
}

/// As an option `--tail` is meant.
impl From<Option<u64>> for Begin {
    fn from(tail: Option<u64>) -> Self {
        tail.map_or(Self::Oldest, Self::Tail)
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogLine {
    pub seq: u64,
    pub time_ms: u64,
    pub stream: Stream,
    /// As the program wrote it; base64 in JSON.
    #[serde(serialize_with = "to_base64", deserialize_with = "from_base64")]
    pub data: Vec<u8>,
}

impl LogLine {
    /// The line with its newline, as it goes over the wire.
    pub fn to_json_line(&self) -> Vec<u8> {
        let mut line = serde_json::to_vec(self).expect("a log line has only text keys");
        line.push(b'\n');
        line
    }
}

/// Whether more may come of a workload's output, by a status that was asked for before the output was read.
/// A follower goes on until it may not: over every restart, until the program has ended and stays so, or is
/// stopped, or is gone.
pub fn goes_on(status: &DeploymentStatus, workload: &Name) -> bool {
    let Some(workload) = status.workloads.get(workload) else {
        return false;
    };
    match (workload.state, status.desired) {
        (State::Exited, _) | (State::Stopped, Desired::Stopped | Desired::Deleted) => false,
        // A node that goes down stops what is to run, and goes on with it.
        (State::Stopped, Desired::Running) => true,
        (
            State::Pending | State::Starting | State::Running | State::Stopping | State::Backoff,
            _,
        ) => true,
    }
}

fn to_base64<S: Serializer>(data: &[u8], s: S) -> Result<S::Ok, S::Error> {
    s.serialize_str(&STANDARD.encode(data))
}

fn from_base64<'de, D: Deserializer<'de>>(d: D) -> Result<Vec<u8>, D::Error> {
    STANDARD
        .decode(String::deserialize(d)?)
        .map_err(serde::de::Error::custom)
}

#[cfg(test)]
mod tests {
    use types::status::WorkloadStatus;

    use super::*;

    #[test]
    fn a_log_ends_with_a_machine_that_is_not_to_run_again() {
        use Desired::{Deleted, Running as Run, Stopped as Stop};
        for (state, desired, more) in [
            (State::Pending, Run, true),
            (State::Starting, Run, true),
            (State::Running, Run, true),
            (State::Backoff, Run, true),
            (State::Exited, Run, false),
            // The node goes down.
            (State::Stopped, Run, true),
            (State::Stopping, Stop, true),
            (State::Stopped, Stop, false),
            (State::Stopping, Deleted, true),
        ] {
            let workload = WorkloadStatus {
                state,
                address: None,
                addresses: Vec::new(),
                ports: Vec::new(),
                restarts: 0,
                exit: None,
                message: None,
                start_ms: None,
                chunks: None,
                timeline: None,
                code: None,
            };
            let [shop, web, db] = ["shop", "web", "db"].map(|n| n.parse::<Name>().expect("a name"));
            let status = DeploymentStatus {
                name: shop,
                version: 1,
                desired,
                durable: true,
                workloads: [(web.clone(), workload)].into(),
                volumes: Default::default(),
                networks: Default::default(),
                pools: Default::default(),
                ingress: Default::default(),
                conditions: Vec::new(),
            };
            assert_eq!(goes_on(&status, &web), more, "{state:?} {desired:?}");
            assert!(!goes_on(&status, &db), "what is gone says nothing more");
        }
    }

    #[test]
    fn the_longest_record_fits_a_line() {
        let length = types::vm::LogRecord::LENGTH_MAX as usize;
        let line = LogLine {
            seq: u64::MAX,
            time_ms: u64::MAX,
            stream: Stream::Stderr,
            data: vec![255; length],
        };
        let json = line.to_json_line();
        assert!(json.len() <= LOG_LINE_MAX);
        assert_eq!(
            serde_json::from_slice::<LogLine>(&json).expect("reads back"),
            line
        );
    }
}
