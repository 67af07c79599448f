//! What is asked on the control socket at a path, and answered.
//!
//! Owns: the JSON of both directions, and what each request is for the machine's process. Pure.
//! Refuses: paths that depend on where somebody stands.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use types::Bytes;
use types::metrics::Machine;
use types::vm::{FromVmm, SnapshotKind, ToVmm};

/// One packet.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(tag = "request", rename_all = "snake_case", deny_unknown_fields)]
pub(super) enum Request {
    Pause,
    Resume,
    Metrics,
    /// Memory that the guest keeps.
    Balloon {
        target: Bytes,
    },
    /// Files that are made or overwritten.
    Snapshot {
        state: PathBuf,
        memory: PathBuf,
        #[serde(default = "full")]
        kind: SnapshotKind,
    },
    /// End the machine in order.
    Stop,
}

const fn full() -> SnapshotKind {
    SnapshotKind::Full
}

/// One packet back, in the order of the requests.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "answer", rename_all = "snake_case")]
pub(super) enum Answer {
    Done { took_us: u64, bytes: u64 },
    Refused { message: String },
    Metrics { machine: Box<Machine> },
}

/// What a request leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Deed {
    /// A message to the machine's process, with these files beside it.
    Ask(ToVmm, Vec<PathBuf>),
    Stop,
    Refuse(String),
}

/// Understands a packet.
pub(super) fn understand(packet: &[u8]) -> Deed {
    let request = match serde_json::from_slice(packet) {
        Ok(request) => request,
        Err(error) => return Deed::Refuse(format!("the request is not understood: {error}")),
    };
    match request {
        Request::Pause => Deed::Ask(ToVmm::Pause, Vec::new()),
        Request::Resume => Deed::Ask(ToVmm::Resume, Vec::new()),
        Request::Metrics => Deed::Ask(ToVmm::Metrics, Vec::new()),
        Request::Balloon { target } => {
            let target_mib = target.as_mib();
            Deed::Ask(ToVmm::Balloon { target_mib }, Vec::new())
        }
        Request::Snapshot {
            state,
            memory,
            kind,
        } => snapshot(kind, vec![state, memory]),
        Request::Stop => Deed::Stop,
    }
}

fn snapshot(kind: SnapshotKind, files: Vec<PathBuf>) -> Deed {
    if let Some(path) = files.iter().find(|p| !p.is_absolute()) {
        return Deed::Refuse(format!("{} is no absolute path", path.display()));
    }
    if files[0] == files[1] {
        return Deed::Refuse("`state` and `memory` are the same file".to_owned());
    }
    Deed::Ask(ToVmm::Snapshot { kind }, files)
}

/// What of a machine's messages is an answer to a request.
pub(super) fn answer(message: FromVmm) -> Result<Answer, FromVmm> {
    match message {
        FromVmm::Done { took_us, bytes } => Ok(Answer::Done { took_us, bytes }),
        FromVmm::Refused { message } => Ok(Answer::Refused { message }),
        FromVmm::Metrics(machine) => Ok(Answer::Metrics { machine }),
        other => Err(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(text: &str) -> Deed {
        understand(text.as_bytes())
    }

    #[test]
    fn every_request_of_the_manual_is_understood() {
        let plain = |message| Deed::Ask(message, Vec::new());
        assert_eq!(ask(r#"{"request":"pause"}"#), plain(ToVmm::Pause));
        assert_eq!(ask(r#"{"request":"resume"}"#), plain(ToVmm::Resume));
        assert_eq!(ask(r#"{"request":"metrics"}"#), plain(ToVmm::Metrics));
        let balloon = ask(r#"{"request":"balloon","target":"64Mi"}"#);
        assert_eq!(balloon, plain(ToVmm::Balloon { target_mib: 64 }));
        assert_eq!(ask(r#"{"request":"stop"}"#), Deed::Stop);
        let snapshot =
            ask(r#"{"request":"snapshot","state":"/a","memory":"/b","kind":"differential"}"#);
        let kind = SnapshotKind::Differential;
        let files = vec!["/a".into(), "/b".into()];
        assert_eq!(snapshot, Deed::Ask(ToVmm::Snapshot { kind }, files));
    }

    #[test]
    fn what_is_no_request_is_refused_with_the_reason() {
        for (text, word) in [
            ("", "EOF"),
            (r#"{"request":"reboot"}"#, "reboot"),
            (r#"{"request":"balloon"}"#, "target"),
            (r#"{"request":"balloon","target":"1Mi","force":1}"#, "force"),
            (
                r#"{"request":"snapshot","state":"a","memory":"/b"}"#,
                "no absolute path",
            ),
            (
                r#"{"request":"snapshot","state":"/a","memory":"/a"}"#,
                "same file",
            ),
        ] {
            match ask(text) {
                Deed::Refuse(why) => assert!(why.contains(word), "{text}: {why}"),
                other => panic!("{text}: {other:?}"),
            }
        }
    }

    #[test]
    fn answers_are_tagged_and_other_messages_are_none() {
        let (took_us, bytes) = (7, 9);
        let done = answer(FromVmm::Done { took_us, bytes }).expect("an answer");
        let text = serde_json::to_string(&done).expect("plain data");
        assert_eq!(text, r#"{"answer":"done","took_us":7,"bytes":9}"#);
        let running = FromVmm::Running { setup_us: 1 };
        assert_eq!(answer(running.clone()), Err(running));
    }
}
