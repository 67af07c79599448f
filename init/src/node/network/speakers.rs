//! Gateways say to their machines whether IPv6 leads outside.
//!
//! Owns: one voice for each network, for as long as the network stands. Refuses: what it says and when ([`net::advertise`]).

use std::collections::{BTreeMap, BTreeSet};

use net::advertise::{self, Voice};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::Plan;

#[derive(Default)]
pub(super) struct Speakers {
    running: BTreeMap<String, Speaker>,
}

struct Speaker {
    leads: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Drop for Speaker {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Speakers {
    /// Starts, informs and ends them as the plan says. One that cannot speak is tried again at the next change.
    pub(super) fn converge(&mut self, plan: &Plan, made: &BTreeSet<String>) {
        self.running
            .retain(|name, speaker| plan.tenants.contains_key(name) && !speaker.task.is_finished());
        for (name, tenant) in &plan.tenants {
            if let Some(speaker) = self.running.get(name) {
                speaker.leads.send_if_modified(|held| {
                    let new = *held != tenant.leads6;
                    *held = tenant.leads6;
                    new
                });
            } else if made.contains(name) {
                match advertise::voice(&tenant.network) {
                    Ok(voice) => {
                        let (leads, heard) = watch::channel(tenant.leads6);
                        let task = tokio::task::spawn_local(speak(voice, heard));
                        self.running.insert(name.clone(), Speaker { leads, task });
                    }
                    Err(error) => log::error!("{}", sys::error::chain(&error)),
                }
            }
        }
    }
}

async fn speak(voice: Voice, leads: watch::Receiver<bool>) {
    if let Err(error) = advertise::speak(voice, leads).await {
        log::error!("{}", sys::error::chain(&error));
    }
}
