//! Work that a disk may hold up for ever.
//!
//! Owns: a thread for each such work, and the wait for it. Refuses: ending one, which the kernel does not do, and a second of
//! the same name beside one that hangs: so many threads are left behind as there are names.

use std::collections::BTreeSet;
use std::sync::mpsc::{self, Receiver};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// Names of what has not ended. A lock, as any thread may end.
static UNDER_WAY: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());

fn under_way() -> MutexGuard<'static, BTreeSet<String>> {
    UNDER_WAY.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Takes its name from the list, however the work ends.
struct Named(String);

impl Drop for Named {
    fn drop(&mut self) {
        under_way().remove(&self.0);
    }
}

/// Something that was begun.
#[derive(Debug)]
pub(crate) struct Begun<T>(Option<Receiver<T>>);

impl<T> Begun<T> {
    /// What came of it; `None`: nothing until then.
    pub(crate) fn until(self, end: Instant) -> Option<T> {
        let left = end.saturating_duration_since(Instant::now());
        self.0?.recv_timeout(left).ok()
    }
}

/// Begins it, unless the same is still under way, or the node has no thread for it.
pub(crate) fn begin<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> Begun<T> {
    if !under_way().insert(name.to_owned()) {
        return Begun(None);
    }
    let named = Named(name.to_owned());
    let (done, wait) = mpsc::channel();
    let work = move || {
        let result = work();
        // Before anybody can ask for the same again.
        drop(named);
        // Nobody may wait for it any more.
        let _ = done.send(result);
    };
    match thread::Builder::new().name(name.to_owned()).spawn(work) {
        Ok(_) => Begun(Some(wait)),
        Err(error) => {
            log::error!("{name}: the node has no thread for it: {error}");
            Begun(None)
        }
    }
}

/// Does it, and waits at most so long. `None`: it may yet be done, or never.
pub(crate) fn within<T: Send + 'static>(
    name: &str,
    limit: Duration,
    work: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    begin(name, work).until(Instant::now() + limit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_hangs_is_left_behind_once_and_may_be_asked_again_when_it_has_ended() {
        let (release, hangs) = mpsc::channel::<()>();
        let (ended, end) = mpsc::channel();
        let held = within("a test that hangs", Duration::ZERO, move || {
            let _ = hangs.recv();
            ended.send(()).expect("it is waited for");
        });
        assert_eq!(held, None);
        let again = within("a test that hangs", Duration::from_secs(600), || {
            unreachable!("it hangs")
        });
        assert_eq!(again, None::<()>);
        let other = within("a test that does not", Duration::from_secs(600), || 7);
        assert_eq!(other, Some(7));
        drop(release);
        end.recv().expect("it ends");
        let mut again = None;
        while again.is_none() {
            again = within("a test that hangs", Duration::from_secs(600), || 8);
        }
        assert_eq!(again, Some(8));
    }
}
