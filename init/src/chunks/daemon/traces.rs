//! The traces of first runs: what an image's next start is expected to touch.
//!
//! Owns: when one is asked for, used and kept. Refuses: what one is (`flist::trace`).

use std::sync::Arc;
use std::time::Duration;

use flist::trace::Trace;
use types::Digest;

use super::{Daemon, Guess, expect, job};

impl Daemon {
    /// A start is like the one before: what that touched is got now, before the machine asks.
    pub(super) fn traced(&mut self, flist: &Digest, trace: &Trace) {
        let Some(open) = self.open.get_mut(flist) else {
            return;
        };
        open.recorder = None;
        log::info!("{flist}: {} chunks of its trace", trace.chunks().len());
        for index in trace.chunks() {
            expect(&mut self.queue, open, *flist, *index, Guess::Trace);
        }
    }

    pub(super) fn ask_for_trace(&mut self, flist: Digest) {
        let store = self.open.get(&flist).and_then(|open| open.store.clone());
        if let (Some(shared), Some(store), Some(open)) =
            (&self.shared, store, self.open.get(&flist))
        {
            let (shared, disk) = (Arc::clone(shared), Arc::clone(&open.disk));
            let task = job::fetch_trace(shared, disk, store, self.sender.clone());
            self.tasks.spawn(task);
        }
    }

    /// Puts the traces of first runs that are over beside their flists.
    pub(super) fn keep_traces(&mut self, now: Duration) {
        let Some(shared) = &self.shared else {
            return;
        };
        for (flist, open) in &mut self.open {
            let over = open
                .recorder
                .take_if(|r| r.due().is_some_and(|due| due <= now));
            let Some(trace) = over.map(|recorder| recorder.finish(*flist)) else {
                continue;
            };
            log::info!(
                "{flist}: its first run touched {} chunks",
                trace.chunks().len()
            );
            let shared = Arc::clone(shared);
            self.tasks.spawn(job::keep_trace(shared, trace));
        }
    }
}
