//! What is wrong with this node, as it is published.
//!
//! Owns: keeping the list: one entry for each code and workload, until it is over.
//! Refuses: finding anything out, and telling what to do (`types::trouble` does).

use tokio::sync::watch;
use types::node::NodeInfo;
use types::status::{DeploymentStatus, State};
use types::trouble::{Code, Trouble};

/// Workloads whose troubles are listed one by one: a console has so many lines. The states of all are counted.
const WORKLOADS_MAX: usize = 8;

/// It is so from now on, or still. What was said of it before is replaced; the time stays.
pub(crate) fn say(info: &watch::Sender<NodeInfo>, code: Code, message: impl Into<String>) {
    let uptime_ms = uptime_ms();
    let new = Trouble {
        code,
        about: None,
        message: message.into(),
        uptime_ms,
    };
    info.send_if_modified(|info| put(&mut info.troubles, new));
}

/// It is not so any more.
pub(crate) fn over(info: &watch::Sender<NodeInfo>, code: Code) {
    info.send_if_modified(|info| {
        let before = info.troubles.len();
        info.troubles
            .retain(|trouble| trouble.code != code || trouble.about.is_some());
        info.troubles.len() != before
    });
}

/// Whether the list is another than before.
fn put(troubles: &mut Vec<Trouble>, new: Trouble) -> bool {
    let same = |old: &&mut Trouble| (old.code, &old.about) == (new.code, &new.about);
    match troubles.iter_mut().find(same) {
        Some(old) if old.message == new.message => false,
        Some(old) => {
            old.message = new.message;
            true
        }
        None => {
            troubles.push(new);
            true
        }
    }
}

/// The states of all workloads, and what is wrong with those that wait to be tried again.
pub(crate) fn of_workloads(all: &[DeploymentStatus], info: &mut NodeInfo) -> bool {
    let mut counts = std::collections::BTreeMap::<State, u64>::new();
    let mut found = Vec::new();
    for deployment in all {
        for (name, workload) in &deployment.workloads {
            *counts.entry(workload.state).or_default() += 1;
            let told = (
                workload.code,
                &workload.message,
                found.len() < WORKLOADS_MAX,
            );
            if let (Some(code), Some(message), true) = told {
                found.push(Trouble {
                    code,
                    about: Some(format!("{}/{name}", deployment.name)),
                    message: message.clone(),
                    uptime_ms: uptime_ms(),
                });
            }
        }
    }
    let mut new = info.workloads != counts;
    info.workloads = counts;
    let still = |old: &Trouble| {
        let is = |new: &Trouble| (new.code, &new.about) == (old.code, &old.about);
        old.about.is_none() || found.iter().any(is)
    };
    let before = info.troubles.len();
    info.troubles.retain(still);
    new |= info.troubles.len() != before;
    for trouble in found {
        new |= put(&mut info.troubles, trouble);
    }
    new
}

fn uptime_ms() -> u64 {
    u64::try_from(sys::clock::since_boot().as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trouble(code: Code, about: Option<&str>, message: &str, uptime_ms: u64) -> Trouble {
        Trouble {
            code,
            about: about.map(str::to_owned),
            message: message.to_owned(),
            uptime_ms,
        }
    }

    #[test]
    fn what_is_said_again_replaces_what_was_said_and_keeps_its_time() {
        let mut all = Vec::new();
        assert!(put(&mut all, trouble(Code::PoolFull, None, "1 MiB", 5)));
        assert!(!put(&mut all, trouble(Code::PoolFull, None, "1 MiB", 9)));
        assert!(put(&mut all, trouble(Code::PoolFull, None, "0 MiB", 9)));
        assert!(put(
            &mut all,
            trouble(Code::PoolFull, Some("shop/web"), "x", 9)
        ));
        assert_eq!(all[0], trouble(Code::PoolFull, None, "0 MiB", 5));
        assert_eq!(all.len(), 2);
    }

    #[test]
    fn a_workload_that_runs_again_is_no_trouble_any_more_and_the_nodes_own_stay() {
        let status = |state: &str, code: &str| -> DeploymentStatus {
            let json = format!(
                r#"{{"name":"shop","version":1,"desired":"running","durable":true,"workloads":{{"web":{{
                "state":"{state}","address":null,"ports":[],"restarts":0,"exit":null,"message":"no",
                "code":{code},"start_ms":null,"chunks":null}}}}}}"#
            );
            serde_json::from_str(&json).expect("a status")
        };
        let mut info = crate::node::dashboard::tests::info();
        put(
            &mut info.troubles,
            trouble(Code::PoolFull, None, "0 MiB", 5),
        );
        let failing = [status("backoff", "\"start_failed\"")];
        assert!(of_workloads(&failing, &mut info));
        assert!(!of_workloads(&failing, &mut info), "nothing new");
        assert_eq!(info.troubles[1].about.as_deref(), Some("shop/web"));
        assert_eq!(info.workloads[&State::Backoff], 1);
        assert!(of_workloads(&[status("running", "null")], &mut info));
        assert_eq!(info.troubles.len(), 1);
        assert_eq!(info.workloads.keys().next(), Some(&State::Running));
    }
}
