//! What comes before it is asked for: in sequence, by trace, and as a whole.

use super::*;

#[tokio::test]
async fn a_whole_image_comes_over_as_few_connections_as_there_are_jobs() {
    let w = world().await;
    w.script.lock().expect("lock").delay = Duration::from_millis(5);
    let daemon = Running::start(&w).await;
    daemon.open(&w, Some(&w.url), true).await;
    let (a, _kept) = daemon.attach(&w, "a").await;
    let (b, _kept_too) = daemon.attach(&w, "b").await;
    for (mine, others) in [(0, 7), (5, 2), (3, 6), (1, 4)] {
        daemon.ask_all(&a, [mine]).await;
        daemon.ask_all(&b, [others]).await;
    }
    daemon.filled().await;
    assert_eq!(w.all_requests(), CHUNKS, "each chunk once, for both");
    let connections = w.script.lock().expect("lock").connections;
    // One at a time, and beside it what is guessed and the question for a trace.
    assert!((1..=3).contains(&connections), "{connections}");
}

#[tokio::test]
async fn what_is_read_in_sequence_comes_ahead_and_random_reads_bring_nothing_else() {
    let w = world().await;
    let daemon = Running::start(&w).await;
    let shown = daemon.open(&w, Some(&w.url), false).await;
    let (vm, _kept) = daemon.attach(&w, "vm").await;
    daemon.ask_all(&vm, [7, 4, 6]).await;
    daemon.ask_all(&vm, [0]).await;
    assert_eq!(w.all_requests(), 4);
    daemon.ask_all(&vm, [1]).await;
    shown.comes(&daemon, 2).await;
    shown.assert_holds(&w, 2);
    assert!(!shown.is_present(3) && !shown.is_present(5));
    daemon.ask_all(&vm, [3]).await;
    shown.comes(&daemon, 5).await;
    assert_eq!(w.all_requests(), CHUNKS, "none twice");
}

#[tokio::test]
async fn a_first_run_is_taken_down_and_the_next_one_finds_its_chunks_there_unasked() {
    let w = world().await;
    let daemon = Running::start(&w).await;
    daemon.open(&w, Some(&w.url), false).await;
    let (vm, _kept) = daemon.attach(&w, "vm").await;
    let order = [5, 0, 2, 7];
    daemon.ask_all(&vm, order).await;
    assert_eq!(w.trace_kept().await.chunks(), order);
    daemon.kill().await;
    // A boot; the store is gone, the cache is not.
    fs::remove_dir_all(w.work.path().join("maps")).expect("a tmpfs forgets");
    let daemon = Running::start(&w).await;
    let shown = daemon.open(&w, None, true).await;
    for index in order {
        shown.comes(&daemon, index).await;
        shown.assert_holds(&w, index);
    }
    assert!(!shown.is_present(1), "it was not touched");
}

#[tokio::test]
async fn the_trace_of_a_store_brings_its_chunks_in_its_order_before_a_vm_is_there() {
    let w = world().await;
    w.publish_trace(&[6, 1, 4]);
    let daemon = Running::start(&w).await;
    let shown = daemon.open(&w, Some(&w.url), false).await;
    for index in [6, 1, 4] {
        shown.comes(&daemon, index).await;
        shown.assert_holds(&w, index);
    }
    assert_eq!(w.all_requests(), 3);
    let cache = w.cache();
    assert!(cache.trace(&w.packed.digest, CHUNKS as usize).is_some());
}

#[tokio::test]
async fn a_trace_that_is_none_or_lies_harms_nobody() {
    let w = world().await;
    let path = w.work.path().join("store");
    let path = path.join(trace::object(&w.packed.digest));
    fs::write(path, b"SIFRTRC1 and nothing true").expect("written");
    let daemon = Running::start(&w).await;
    let shown = daemon.open(&w, Some(&w.url), false).await;
    let (vm, _kept) = daemon.attach(&w, "vm").await;
    daemon.ask_all(&vm, [3]).await;
    shown.assert_holds(&w, 3);
    assert_eq!(w.all_requests(), 1);
    let cache = w.cache();
    assert!(cache.trace(&w.packed.digest, CHUNKS as usize).is_none());
}

#[tokio::test]
async fn what_a_trace_names_and_the_store_lacks_is_no_fault_until_a_vm_wants_it() {
    let w = world().await;
    w.publish_trace(&[2]);
    w.script(&[], Some(Answer::Status(404)));
    w.cache()
        .put_flist(w.packed.digest, &w.packed.flist)
        .expect("valid");
    let daemon = Running::start(&w).await;
    daemon.open(&w, Some(&w.url), false).await;
    w.until_asked(|w| w.requests(2) > 0).await;
    let (vm, _kept) = daemon.attach(&w, "vm").await;
    assert_eq!(w.requests(2), 1, "once, for a guess");
    w.script(&[], None);
    daemon.ask_all(&vm, [2]).await;
}
