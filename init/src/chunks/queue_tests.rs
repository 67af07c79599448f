//! Who is served first, what is tried again, and what is given up: the queue without a daemon.

use super::*;
use flist::chunk::Encoding;
use flist::map::Extent;

const NOW: Now = Duration::from_secs(5);
const F: Digest = Digest([0xf; 32]);
const G: Digest = Digest([0xe; 32]);

fn chunk(n: u8) -> Chunk {
    let (plain, stored) = (Digest([n; 32]), Digest([n; 32]));
    let extent = Extent {
        start_block: u32::from(n),
        blocks: 1,
    };
    Chunk {
        extent,
        stored_bytes: 4096,
        encoding: Encoding::Plain,
        plain,
        stored,
        key: None,
    }
}

fn waiter(vm: &str, flist: Digest, index: u32) -> Waiter {
    let target = Target { flist, index };
    Waiter {
        vm: vm.parse().expect("id"),
        generation: 1,
        target,
    }
}

fn started(queue: &mut Queue) -> Vec<u8> {
    std::iter::from_fn(|| queue.start())
        .map(|s| s.chunk.stored.0[0])
        .collect()
}

/// A job ends well, and all who waited have been answered.
fn done(queue: &mut Queue, n: u8) {
    queue.take_served(&chunk(n).stored, |_| true);
    queue.end(&chunk(n).stored, Outcome::Done, NOW);
}

#[test]
fn many_waiters_of_one_chunk_are_one_job() {
    let mut queue = Queue::default();
    for vm in ["a", "b", "c"] {
        queue.want(&chunk(1), waiter(vm, F, 4), Source::Store);
    }
    let start = queue.start().expect("one");
    assert_eq!(start.targets, [Target { flist: F, index: 4 }]);
    queue.want(&chunk(1), waiter("d", F, 4), Source::Store);
    assert!(queue.start().is_none());
    assert_eq!(queue.take_served(&chunk(1).stored, |_| true).len(), 4);
    assert_eq!(
        queue.end(&chunk(1).stored, Outcome::Done, NOW).verdict,
        Verdict::Finished
    );
    assert!(queue.jobs.is_empty() && queue.asking.is_empty());
}

#[test]
fn who_asks_for_another_disk_while_it_is_under_way_is_served_next() {
    let mut queue = Queue::default();
    queue.want(&chunk(1), waiter("a", F, 4), Source::Store);
    queue.start().expect("one");
    queue.want(&chunk(1), waiter("b", G, 9), Source::Store);
    assert_eq!(
        queue.take_served(&chunk(1).stored, |t| t.flist == F).len(),
        1
    );
    queue.end(&chunk(1).stored, Outcome::Done, NOW);
    let again = queue.start().expect("again");
    assert_eq!(again.targets, [Target { flist: G, index: 9 }]);
}

#[test]
fn vms_come_before_back_filling_and_both_are_bounded() {
    let mut queue = Queue::default();
    queue.fill(F, (10..40).map(chunk).collect());
    assert_eq!(started(&mut queue).len(), BACKFILL_MAX);
    for n in 50..70 {
        queue.want(&chunk(n), waiter("a", G, u32::from(n)), Source::Store);
    }
    assert_eq!(started(&mut queue), [50, 51, 52, 53]);
    done(&mut queue, 50);
    assert_eq!(started(&mut queue), [54]);
}

#[test]
fn what_is_in_the_cache_waits_for_no_store() {
    let mut queue = Queue::default();
    for n in 0..20 {
        let flist = Digest([n; 32]);
        queue.want(&chunk(n), waiter("a", flist, 0), Source::Store);
    }
    assert_eq!(started(&mut queue).len(), IN_FLIGHT_MAX);
    for n in 50..60 {
        queue.want(&chunk(n), waiter("b", F, u32::from(n)), Source::Cache);
    }
    assert_eq!(started(&mut queue), [50, 51, 52, 53]);
    done(&mut queue, 50);
    assert_eq!(started(&mut queue), [54]);
}

#[test]
fn an_image_whose_store_does_not_answer_keeps_no_other_image_waiting() {
    let mut queue = Queue::default();
    for n in 0..20 {
        queue.want(&chunk(n), waiter("a", F, u32::from(n)), Source::Store);
    }
    queue.want(&chunk(50), waiter("b", G, 50), Source::Store);
    assert_eq!(started(&mut queue), [0, 1, 2, 3, 50]);
    for n in 0..4 {
        queue.end(&chunk(n).stored, Outcome::Unreachable(String::new()), NOW);
    }
    assert_eq!(started(&mut queue), [4], "one asks whether it is back");
    for n in 51..60 {
        queue.want(&chunk(n), waiter("b", G, u32::from(n)), Source::Store);
    }
    assert_eq!(started(&mut queue), [51, 52, 53]);
    done(&mut queue, 4);
    assert_eq!(started(&mut queue), [5, 6], "it is back");
}

#[test]
fn a_chunk_that_rests_as_back_filling_is_hurried_when_a_vm_wants_it() {
    let mut queue = Queue::default();
    queue.fill(F, [chunk(1)].into());
    queue.start().expect("fill");
    queue.end(&chunk(1).stored, Outcome::Unreachable(String::new()), NOW);
    assert!(queue.start().is_none());
    queue.want(&chunk(1), waiter("a", F, 1), Source::Store);
    assert!(queue.start().is_some());
    assert_eq!(queue.running_backfill, 0);
}

#[test]
fn an_unreachable_store_is_tried_for_ever_and_ever_more_slowly() {
    let mut queue = Queue::default();
    queue.want(&chunk(1), waiter("a", F, 1), Source::Store);
    let (mut now, mut last) = (NOW, Duration::ZERO);
    for _ in 0..50 {
        queue.start().expect("due");
        let end = queue.end(&chunk(1).stored, Outcome::Unreachable(String::new()), now);
        let Verdict::Again(wait) = end.verdict else {
            panic!("{end:?}")
        };
        assert!(wait >= last && wait <= RETRY_LONGEST);
        last = wait;
        assert!(queue.start().is_none());
        now = queue.next_due().expect("rests");
        queue.wake(now);
    }
    assert_eq!(last, RETRY_LONGEST);
}

#[test]
fn wrong_bytes_are_given_up_after_a_few_tries_and_tried_anew_when_wanted_again() {
    let mut queue = Queue::default();
    for _ in 0..2 {
        queue.want(&chunk(1), waiter("a", F, 1), Source::Store);
        for n in 1..=WRONG_MAX {
            queue.start().expect("due");
            let end = queue.end(&chunk(1).stored, Outcome::Wrong("w".into()), NOW);
            assert_eq!(end.verdict == Verdict::GiveUp("w".into()), n == WRONG_MAX);
            assert_eq!(end.waiters.len(), usize::from(n == WRONG_MAX));
            queue.wake(NOW + RETRY_LONGEST);
        }
        assert!(queue.jobs.is_empty());
    }
}

#[test]
fn what_is_pinned_is_tried_for_ever_even_when_it_was_given_up() {
    let hopeless = || Outcome::Hopeless("the disk is full".into());
    let mut queue = Queue::default();
    queue.fill(F, [chunk(1)].into());
    let mut now = NOW;
    for round in 0..20 {
        queue.start().expect("due");
        // Wrong bytes as well, a few times over.
        let outcome = if round % 2 == 0 {
            hopeless()
        } else {
            Outcome::Wrong("w".into())
        };
        queue.end(&chunk(1).stored, outcome, now);
        let due = queue.next_due().expect("tried again");
        assert!(due <= now + RETRY_LONGEST && queue.start().is_none());
        now = due;
        queue.wake(now);
    }
    queue.start().expect("due");
    queue.end(&chunk(1).stored, Outcome::Done, now);
    assert!(queue.jobs.is_empty());
}

#[test]
fn what_was_given_up_comes_after_what_has_not_been_tried() {
    let mut queue = Queue::default();
    queue.fill(F, (1..=9).map(chunk).collect());
    let mut tried = Vec::new();
    for _ in 0..9 {
        let start = queue.start().expect("due");
        tried.push(start.chunk.stored.0[0]);
        let hopeless = Outcome::Hopeless(String::new());
        queue.end(&start.chunk.stored, hopeless, NOW);
        // Those before are due again already.
        queue.wake(NOW + RETRY_LONGEST);
    }
    assert_eq!(tried, (1..=9).collect::<Vec<_>>());
    assert!(queue.start().is_some());
}

#[test]
fn who_waits_for_what_was_given_up_is_told_and_may_ask_again_at_once() {
    let mut queue = Queue::default();
    queue.fill(F, [chunk(1)].into());
    queue.start().expect("due");
    queue.want(&chunk(1), waiter("a", F, 1), Source::Store);
    let end = queue.end(&chunk(1).stored, Outcome::Hopeless("h".into()), NOW);
    assert_eq!((end.waiters.len(), end.flists), (1, vec![F]));
    assert!(queue.start().is_none());
    queue.want(&chunk(1), waiter("a", F, 1), Source::Store);
    for n in 1..=WRONG_MAX {
        queue.start().expect("as often as any");
        let end = queue.end(&chunk(1).stored, Outcome::Wrong("w".into()), NOW);
        assert_eq!(end.waiters.len(), usize::from(n == WRONG_MAX));
        queue.wake(NOW + RETRY_FIRST * 4);
    }
    assert!(queue.start().is_none() && queue.next_due().is_some());
}

#[test]
fn what_contradicts_its_flist_is_not_fetched_again() {
    let mut queue = Queue::default();
    queue.fill(F, [chunk(1)].into());
    queue.start().expect("due");
    let end = queue.end(&chunk(1).stored, Outcome::Contradiction("c".into()), NOW);
    assert_eq!(end.verdict, Verdict::Never("c".into()));
    assert!(queue.jobs.is_empty() && queue.next_due().is_none());
}

fn guess(queue: &mut Queue, n: u8, guess: Guess) {
    let (flist, index) = (F, u32::from(n));
    queue.ahead(&chunk(n), Target { flist, index }, Source::Store, guess);
}

#[test]
fn guesses_begin_one_at_a_time_and_grow_while_they_end_well() {
    let mut queue = Queue::default();
    (0..40).for_each(|n| guess(&mut queue, n, Guess::Trace));
    let mut widths = Vec::new();
    let mut running = started(&mut queue);
    for _ in 0..6 {
        widths.push(running.len());
        let n = running.remove(0);
        queue.end(&chunk(n).stored, Outcome::Done, NOW);
        running.extend(started(&mut queue));
    }
    assert_eq!(widths, [1, 2, 3, 4, 4, 4]);
    let n = running.remove(0);
    queue.end(&chunk(n).stored, Outcome::Wrong("w".into()), NOW);
    assert!(started(&mut queue).is_empty(), "three are under way still");
    assert_eq!(queue.ramp, 0);
}

#[test]
fn a_vm_that_waits_finds_its_place_however_much_is_guessed() {
    let mut queue = Queue::default();
    (0..40).for_each(|n| guess(&mut queue, n, Guess::Trace));
    queue.ramp = AHEAD_MAX;
    started(&mut queue);
    for n in 100..120 {
        queue.want(&chunk(n), waiter("a", F, u32::from(n)), Source::Store);
    }
    assert_eq!(started(&mut queue), [100, 101, 102, 103]);
    queue.end(&chunk(0).stored, Outcome::Done, NOW);
    assert!(started(&mut queue).is_empty(), "guesses wait for VMs");
    // One of those that were guessed is wanted now: it comes before all guesses.
    queue.want(&chunk(30), waiter("b", G, 30), Source::Store);
    assert_eq!(started(&mut queue), [30]);
}

#[test]
fn what_is_read_now_comes_before_what_was_read_once() {
    let mut queue = Queue::default();
    guess(&mut queue, 1, Guess::Trace);
    guess(&mut queue, 2, Guess::Sequence);
    assert_eq!(started(&mut queue), [2]);
}

#[test]
fn a_guess_that_fails_is_nobodys_fault_and_is_not_tried_again() {
    let mut queue = Queue::default();
    guess(&mut queue, 1, Guess::Trace);
    let start = queue.start().expect("due");
    assert_eq!((start.is_guess, start.targets.len()), (true, 1));
    let end = queue.end(&chunk(1).stored, Outcome::Hopeless("h".into()), NOW);
    assert_eq!((end.verdict, end.flists), (Verdict::Finished, vec![]));
    assert!(queue.jobs.is_empty() && queue.next_due().is_none());
    // Of one that a VM waits for meanwhile it is the VM's.
    guess(&mut queue, 1, Guess::Trace);
    queue.start().expect("due");
    queue.want(&chunk(1), waiter("a", F, 1), Source::Store);
    let end = queue.end(&chunk(1).stored, Outcome::Unreachable(String::new()), NOW);
    assert!(matches!(end.verdict, Verdict::Again(_)));
    assert!(queue.next_due().is_some());
}

#[test]
fn guesses_are_bounded_and_go_with_their_image() {
    let mut queue = Queue::default();
    let far = |n: usize| {
        let mut far = chunk(0);
        far.stored.0[..8].copy_from_slice(&n.to_le_bytes());
        far
    };
    let target = Target { flist: F, index: 0 };
    for n in 0..AHEAD_QUEUED_MAX + 10 {
        queue.ahead(&far(n), target, Source::Store, Guess::Trace);
    }
    assert_eq!(queue.jobs.len(), AHEAD_QUEUED_MAX);
    queue.fill(G, [far(3)].into());
    queue.fill(F, VecDeque::new());
    assert_eq!(
        queue.jobs.len(),
        AHEAD_QUEUED_MAX,
        "it is only opened again"
    );
    queue.forget(&F);
    assert!(queue.jobs.is_empty() && queue.traced.is_empty());
}

#[test]
fn back_filling_waits_while_it_is_held_and_while_guesses_are_got() {
    let mut queue = Queue::default();
    queue.fill(F, [chunk(1), chunk(2)].into());
    guess(&mut queue, 3, Guess::Trace);
    assert_eq!(started(&mut queue), [3]);
    queue.end(&chunk(3).stored, Outcome::Done, NOW);
    queue.hold(true);
    assert!(started(&mut queue).is_empty());
    queue.hold(false);
    assert_eq!(started(&mut queue), [1, 2]);
}

#[test]
fn what_is_unpinned_is_filled_no_more() {
    let mut queue = Queue::default();
    queue.fill(F, [chunk(1), chunk(2), chunk(3)].into());
    queue.fill(G, [chunk(3), chunk(4)].into());
    assert_eq!(started(&mut queue), [1, 3]);
    queue.forget(&F);
    for n in [1, 3] {
        queue.end(&chunk(n).stored, Outcome::Done, NOW);
    }
    assert_eq!(started(&mut queue), [4]);
}

#[test]
fn retries_end_when_neither_a_vm_nor_a_pin_wants_the_chunk() {
    let mut queue = Queue::default();
    queue.want(&chunk(1), waiter("a", F, 1), Source::Store);
    queue.fill(F, [chunk(1)].into());
    queue.start().expect("one");
    assert!(queue.start().is_none());
    queue.hang_up(&"a".parse().expect("id"), 1);
    queue.end(&chunk(1).stored, Outcome::Unreachable(String::new()), NOW);
    assert!(queue.next_due().is_some());
    queue.forget(&F);
    assert!(queue.jobs.is_empty() && queue.next_due().is_none());
}

#[test]
fn a_closed_socket_leaves_no_waiter() {
    let mut queue = Queue::default();
    queue.want(&chunk(1), waiter("a", F, 1), Source::Store);
    queue.want(&chunk(1), waiter("b", F, 1), Source::Store);
    queue.hang_up(&"a".parse().expect("id"), 1);
    queue.hang_up(&"b".parse().expect("id"), 2);
    let served = queue.take_served(&chunk(1).stored, |_| true);
    assert_eq!(served, [waiter("b", F, 1)]);
}
