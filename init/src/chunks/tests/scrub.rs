//! What the scrub finds, and what becomes of it.

use super::*;

impl World {
    /// One bit of a chunk in the cache is another, as a disk does it.
    fn damage(&self, index: u32) {
        let path = self.cache().chunk_path(&self.stored(index));
        let mut bytes = fs::read(&path).expect("read");
        bytes[100] ^= 1;
        fs::write(&path, bytes).expect("write");
    }

    fn is_cached(&self, index: u32) -> bool {
        self.cache().chunk_path(&self.stored(index)).exists()
    }
}

impl Running {
    /// Reads until the daemon has counted so many damaged chunks, and all that is pinned is there again. Gives what was
    /// fetched.
    async fn scrubbed(&self, damaged: u64) -> u64 {
        let mut whole = true;
        loop {
            match self.told().await.0 {
                ToNode::Progress { present, total, .. } => whole = present == total,
                ToNode::Counted { counts } if counts.damaged == damaged && whole => {
                    return counts.fetched;
                }
                _ => {}
            }
        }
    }
}

#[tokio::test]
async fn what_the_scrub_finds_damaged_is_fetched_again_where_it_is_pinned_and_no_vm_sees_it() {
    let w = world().await;
    w.push_all();
    let daemon = Running::start_at(&w, AT_ONCE).await;
    let shown = daemon.open(&w, Some(&w.url), true).await;
    let (vm, _kept) = daemon.attach(&w, "vm").await;
    daemon.ask_all(&vm, [4]).await;
    w.damage(2);
    w.damage(4);
    assert_eq!(daemon.scrubbed(2).await, 2, "these two, and no other");
    assert_eq!((w.requests(2), w.requests(4), w.all_requests()), (1, 1, 2));
    assert!(w.cache().missing(&w.flist).is_empty());
    // What was on the machine's disk before stays; what was not comes right.
    shown.assert_holds(&w, 4);
    daemon.ask_all(&vm, [2]).await;
    shown.assert_holds(&w, 2);
    assert_eq!(w.all_requests(), 2, "it was here again");
}

#[tokio::test]
async fn what_the_scrub_finds_damaged_and_no_store_has_is_said_with_what_to_do() {
    let w = world().await;
    w.push_all();
    let daemon = Running::start_at(&w, AT_ONCE).await;
    daemon.open(&w, None, true).await;
    w.damage(3);
    let ToNode::Fault { chunk, message, .. } = daemon.news().await else {
        panic!("nothing was said")
    };
    assert_eq!(chunk, w.stored(3));
    assert!(
        message.contains("push it again with `sifr deploy`"),
        "{message}"
    );
    assert!(!w.is_cached(3), "what is wrong is not kept");
    let (vm, _kept) = daemon.attach(&w, "vm").await;
    vm.want(3).await;
    assert_eq!(vm.told().await, ToVmm::Failed(3));
    // Pushed again, it is as before.
    let bytes = w.store.read_chunk(&w.stored(3)).expect("there");
    w.cache().put_chunk(w.stored(3), &bytes).expect("valid");
    daemon.ask_all(&vm, [3]).await;
}

#[tokio::test]
async fn what_the_scrub_finds_damaged_is_not_replaced_by_what_is_as_wrong() {
    let w = world().await;
    w.push_all();
    let daemon = Running::start_at(&w, AT_ONCE).await;
    let shown = daemon.open(&w, Some(&w.url), true).await;
    w.script(&[], Some(Answer::WrongBytes));
    w.damage(6);
    let ToNode::Fault { chunk, .. } = daemon.news().await else {
        panic!("nothing was said")
    };
    assert_eq!((chunk, w.requests(6)), (w.stored(6), WRONG_MAX));
    assert!(!w.is_cached(6) && !shown.is_present(6));
}

#[tokio::test]
async fn what_the_scrub_finds_damaged_and_nobody_needs_is_removed_and_not_fetched() {
    let w = world().await;
    w.push_all();
    let daemon = Running::start_at(&w, AT_ONCE).await;
    // Open for somebody, and pinned by nobody.
    daemon.open(&w, Some(&w.url), false).await;
    w.damage(1);
    let counted = async {
        loop {
            if let (ToNode::Counted { counts }, _) = daemon.told().await
                && counts.damaged == 1
            {
                return;
            }
        }
    };
    counted.await;
    tokio::time::sleep(NOTHING_COMES).await;
    assert!(!w.is_cached(1) && w.all_requests() == 0);
}
