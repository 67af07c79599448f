//! A change on its way to the disks, which take as long as they like.
//!
//! Owns: who waits for it, and that what was given up meanwhile is on no disk in the end. Refuses: two at once.

use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use types::site::Confirmed;
use types::status::{Refusal, RefusalCode};

use super::{Kept, Shelf};
use crate::node::server::refusal;

/// Confirmations of one change that wait for its disks: a client asks every few seconds, for a minute.
const WAITING_MAX: usize = 16;

type Reply = oneshot::Sender<Result<Confirmed, Refusal>>;

/// What follows when the disks are done.
pub(super) enum Then {
    Answer(Vec<Reply>),
    /// It was taken back meanwhile.
    Forget,
    Rest,
}

pub(super) struct Writing {
    task: JoinHandle<Result<(), String>>,
    pub(super) change: Kept,
    pub(super) former: Option<Kept>,
    pub(super) then: Then,
}

impl Writing {
    pub(super) fn keep(shelf: &Shelf, change: Kept, former: Option<Kept>, reply: Reply) -> Self {
        let (shelf, new, old) = (shelf.clone(), change.clone(), former.clone());
        Self {
            task: tokio::task::spawn_blocking(move || shelf.keep(&new, old.as_ref())),
            change,
            former,
            then: Then::Answer(vec![reply]),
        }
    }

    pub(super) fn forget(shelf: &Shelf, change: Kept, former: Option<Kept>) -> Self {
        let (shelf, new, old) = (shelf.clone(), change.clone(), former.clone());
        let task = tokio::task::spawn_blocking(move || {
            shelf.forget(&new, old.as_ref());
            Ok(())
        });
        Self {
            task,
            change,
            former,
            then: Then::Rest,
        }
    }

    /// One more waits for the answer.
    pub(super) fn wait(&mut self, reply: Reply) {
        match &mut self.then {
            Then::Answer(waiting) if waiting.len() < WAITING_MAX => waiting.push(reply),
            Then::Answer(_) | Then::Forget | Then::Rest => {
                let message = "a disk has not taken the change yet: ask again";
                tell(vec![reply], &Err(refusal(RefusalCode::DiskSilent, message)));
            }
        }
    }

    /// What it writes does not count any more.
    pub(super) fn give_up(&mut self, why: &Refusal) {
        if let Then::Answer(waiting) = &mut self.then {
            tell(std::mem::take(waiting), &Err(why.clone()));
            self.then = Then::Forget;
        }
    }
}

/// Whoever does not wait any more sees it in the node's report.
pub(super) fn tell(waiting: Vec<Reply>, answer: &Result<Confirmed, Refusal>) {
    for reply in waiting {
        let _ = reply.send(answer.clone());
    }
}

/// For ever, where nothing is written.
pub(super) async fn done(writing: &mut Option<Writing>) -> Result<(), String> {
    match writing {
        Some(writing) => match (&mut writing.task).await {
            Ok(done) => done,
            Err(error) => Err(error.to_string()),
        },
        None => std::future::pending().await,
    }
}
