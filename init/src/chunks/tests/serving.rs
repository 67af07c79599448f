//! What VMs want they are given, whatever becomes of the store, the daemon and the node.

use super::*;

#[tokio::test]
async fn a_chunk_in_the_cache_comes_without_a_store() {
    let w = world().await;
    w.push_all();
    let daemon = Running::start(&w).await;
    let shown = daemon.open(&w, None, true).await;
    assert_eq!(shown.present, u64::from(CHUNKS));
    let (vm, _kept) = daemon.attach(&w, "vm").await;
    assert!(!shown.is_present(3));
    vm.want(3).await;
    assert_eq!(vm.told().await, ToVmm::Ready(3));
    shown.assert_holds(&w, 3);
    vm.want(3).await;
    assert_eq!(vm.told().await, ToVmm::Ready(3));
    assert!(!shown.is_present(2));
}

#[tokio::test]
async fn what_many_vms_want_is_fetched_once_verified_and_kept() {
    let w = world().await;
    w.script.lock().expect("lock").delay = Duration::from_millis(50);
    let daemon = Running::start(&w).await;
    let shown = daemon.open(&w, Some(&w.url), false).await;
    assert_eq!(shown.present, 0);
    let mut vms = Vec::new();
    for name in ["a", "b", "c"] {
        vms.push(daemon.attach(&w, name).await);
    }
    for index in 0..CHUNKS {
        for (vm, _) in &vms {
            vm.want(index).await;
        }
    }
    for (vm, _) in &vms {
        let mut ready = Vec::new();
        for _ in 0..CHUNKS {
            let ToVmm::Ready(index) = vm.told().await else {
                panic!("not ready")
            };
            ready.push(index);
        }
        ready.sort_unstable();
        assert_eq!(ready, (0..CHUNKS).collect::<Vec<_>>());
    }
    daemon.filled().await;
    for index in 0..CHUNKS {
        shown.assert_holds(&w, index);
        assert_eq!(w.requests(index), 1);
    }
    assert!(w.cache().missing(&w.flist).is_empty());
}

#[tokio::test]
async fn a_store_that_fails_and_recovers_costs_the_vm_only_time() {
    let w = world().await;
    let daemon = Running::start(&w).await;
    let shown = daemon.open(&w, Some(&w.url), false).await;
    let (vm, _kept) = daemon.attach(&w, "vm").await;
    w.script(
        &[
            Answer::Status(500),
            Answer::Cut,
            Answer::Status(503),
            Answer::WrongBytes,
        ],
        None,
    );
    vm.want(0).await;
    assert_eq!(vm.told().await, ToVmm::Ready(0));
    shown.assert_holds(&w, 0);
    assert_eq!(w.requests(0), 5);
}

#[tokio::test]
async fn wrong_bytes_are_never_shown_and_the_next_want_tries_again() {
    for answer in [Answer::WrongBytes, Answer::Status(404), Answer::Short] {
        let w = world().await;
        let daemon = Running::start(&w).await;
        let shown = daemon.open(&w, Some(&w.url), false).await;
        let (vm, _kept) = daemon.attach(&w, "vm").await;
        w.script(&[], Some(answer));
        vm.want(5).await;
        assert_eq!(vm.told().await, ToVmm::Failed(5));
        let news = daemon.news().await;
        let ToNode::Fault { chunk, .. } = news else {
            panic!("{news:?}")
        };
        assert_eq!((chunk, w.requests(5)), (w.stored(5), WRONG_MAX));
        assert!(!shown.is_present(5));
        w.script(&[], None);
        vm.want(5).await;
        assert_eq!(vm.told().await, ToVmm::Ready(5));
        shown.assert_holds(&w, 5);
    }
}

#[tokio::test]
async fn without_a_store_a_missing_chunk_says_what_to_do() {
    let w = world().await;
    w.cache()
        .put_flist(w.packed.digest, &w.packed.flist)
        .expect("valid");
    let daemon = Running::start(&w).await;
    daemon.open(&w, None, true).await;
    let (vm, _kept) = daemon.attach(&w, "vm").await;
    vm.want(1).await;
    assert_eq!(vm.told().await, ToVmm::Failed(1));
    let news = daemon.news().await;
    let ToNode::Fault { message, .. } = news else {
        panic!("{news:?}")
    };
    assert!(message.contains("sifr deploy"), "{message}");
    // Pushed meanwhile, it is found.
    let bytes = w.store.read_chunk(&w.stored(1)).expect("there");
    w.cache().put_chunk(w.stored(1), &bytes).expect("valid");
    vm.want(1).await;
    assert_eq!(vm.told().await, ToVmm::Ready(1));
}

#[tokio::test]
async fn a_vm_waits_for_a_store_that_is_down_until_it_is_up() {
    let w = world().await;
    w.cache()
        .put_flist(w.packed.digest, &w.packed.flist)
        .expect("valid");
    let reserved = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let address = reserved.local_addr().expect("address");
    drop(reserved);
    let daemon = Running::start(&w).await;
    let url = format!("http://{address}/");
    let shown = daemon.open(&w, Some(&url), false).await;
    let (vm, _kept) = daemon.attach(&w, "vm").await;
    vm.want(2).await;
    let quiet = tokio::time::timeout(Duration::from_millis(500), vm.told()).await;
    assert!(quiet.is_err(), "{quiet:?}");
    let listener = TcpListener::bind(address).await.expect("bind");
    tokio::spawn(serve(
        listener,
        w.work.path().join("store"),
        Arc::clone(&w.script),
    ));
    assert_eq!(vm.told().await, ToVmm::Ready(2));
    shown.assert_holds(&w, 2);
}

#[tokio::test]
async fn a_damaged_cached_chunk_is_fetched_again_or_reported() {
    for (with_store, expected) in [(true, ToVmm::Ready(4)), (false, ToVmm::Failed(4))] {
        let w = world().await;
        w.push_all();
        let path = w.cache().chunk_path(&w.stored(4));
        let mut bytes = fs::read(&path).expect("read");
        bytes[100] ^= 1;
        fs::write(&path, bytes).expect("write");
        let daemon = Running::start(&w).await;
        let shown = daemon
            .open(&w, with_store.then_some(w.url.as_str()), true)
            .await;
        let (vm, _kept) = daemon.attach(&w, "vm").await;
        vm.want(4).await;
        assert_eq!(vm.told().await, expected);
        if with_store {
            shown.assert_holds(&w, 4);
        } else {
            let news = daemon.news().await;
            assert!(matches!(news, ToNode::Fault { .. }), "{news:?}");
            assert!(!path.exists());
        }
    }
}

#[tokio::test]
async fn a_daemon_killed_after_the_bytes_and_before_the_state_leaves_no_wrong_byte() {
    let w = world().await;
    w.push_all();
    let daemon = Running::start(&w).await;
    let shown = daemon.open(&w, None, true).await;
    daemon.kill().await;
    // What a daemon leaves that dies there, torn bytes included.
    let maps = w.work.path().join("maps");
    let disk = Disk::open(&w.cache(), &maps, &w.room(), w.packed.digest).expect("kept");
    disk.write(6, &[0xee; 5000]).expect("write");
    drop(disk);
    assert!(!shown.is_present(6));
    let daemon = Running::start(&w).await;
    daemon.open(&w, None, true).await;
    let (vm, _kept) = daemon.attach(&w, "vm").await;
    vm.want(6).await;
    assert_eq!(vm.told().await, ToVmm::Ready(6));
    shown.assert_holds(&w, 6);
}

#[tokio::test]
async fn a_restarted_daemon_goes_on_with_the_same_disk_and_the_vm_asks_again() {
    let w = world().await;
    let daemon = Running::start(&w).await;
    let shown = daemon.open(&w, Some(&w.url), false).await;
    let (vm, kept) = daemon.attach(&w, "vm").await;
    vm.want(0).await;
    assert_eq!(vm.told().await, ToVmm::Ready(0));
    w.script.lock().expect("lock").delay = Duration::from_secs(60);
    vm.want(1).await;
    w.until_asked(|w| w.requests(1) > 0).await;
    daemon.kill().await;
    w.script.lock().expect("lock").delay = Duration::ZERO;

    let daemon = Running::start(&w).await;
    daemon.open(&w, Some(&w.url), false).await;
    daemon.attach_again(&w, "vm", &kept).await;
    assert_eq!(vm.told().await, ToVmm::Hello);
    vm.want(1).await;
    assert_eq!(vm.told().await, ToVmm::Ready(1));
    // The VM's first descriptors still show everything.
    shown.assert_holds(&w, 0);
    shown.assert_holds(&w, 1);
    assert_eq!(w.requests(0), 1);
}

#[tokio::test]
async fn after_a_boot_the_disk_is_made_anew() {
    let w = world().await;
    w.push_all();
    let daemon = Running::start(&w).await;
    daemon.open(&w, None, true).await;
    let (vm, _kept) = daemon.attach(&w, "vm").await;
    vm.want(0).await;
    assert_eq!(vm.told().await, ToVmm::Ready(0));
    daemon.kill().await;
    fs::remove_dir_all(w.work.path().join("maps")).expect("a tmpfs forgets");
    let image = w.cache().image(&w.packed.digest).expect("there");
    image.write_all_at(&[0xee; 4096], 0).expect("a power cut");
    let daemon = Running::start(&w).await;
    let shown = daemon.open(&w, None, true).await;
    assert!(!shown.is_present(0));
    let mut start = [1; 1024];
    shown.image.read_exact_at(&mut start, 0).expect("read");
    assert_eq!(start, [0; 1024]);
}

#[tokio::test]
async fn a_pinned_flist_is_filled_when_its_vm_is_gone_even_after_the_store_was_down() {
    let w = world().await;
    w.script(&[], Some(Answer::Status(503)));
    w.cache()
        .put_flist(w.packed.digest, &w.packed.flist)
        .expect("valid");
    let daemon = Running::start(&w).await;
    let shown = daemon.open(&w, Some(&w.url), true).await;
    daemon.attach(&w, "vm").await;
    let vm = "vm".parse().expect("id");
    daemon.say(FromNode::Detach { vm }, &[]).await;
    w.until_asked(|w| w.all_requests() > 0).await;
    w.script(&[], None);
    daemon.filled().await;
    assert!(w.cache().missing(&w.flist).is_empty());
    assert!(
        !shown.is_present(0),
        "filling is for the cache, not for the disk"
    );
}

#[tokio::test]
async fn while_its_vm_starts_an_image_is_not_filled_and_once_it_has_started_it_is() {
    let w = world().await;
    let daemon = Running::start(&w).await;
    daemon.open(&w, Some(&w.url), true).await;
    let (vm, _kept) = daemon.attach(&w, "vm").await;
    daemon.ask_all(&vm, [5]).await;
    let started = FromNode::Started {
        vm: "vm".parse().expect("id"),
    };
    daemon.say(started, &[]).await;
    tokio::time::sleep(NOTHING_COMES).await;
    daemon.ask_all(&vm, [2]).await;
    // The same image opened for a second VM: it is the same start.
    daemon.open(&w, Some(&w.url), true).await;
    tokio::time::sleep(NOTHING_COMES).await;
    assert_eq!(w.all_requests(), 2, "what was touched, and nothing else");
    let filled = tokio::time::timeout(trace::QUIET + PATIENCE, daemon.filled());
    filled.await.expect("it is filled");
    assert_eq!(w.all_requests(), CHUNKS);
}

#[tokio::test]
async fn an_flist_comes_from_its_store_and_a_wrong_one_does_not_open() {
    let w = world().await;
    let daemon = Running::start(&w).await;
    w.script(&[Answer::WrongBytes], None);
    let (flist, store) = (w.packed.digest, Some(Stores::from(w.url.as_str())));
    daemon
        .say(
            FromNode::Open {
                flist,
                store: store.clone(),
                pin: false,
            },
            &[],
        )
        .await;
    let news = daemon.news().await;
    assert!(matches!(news, ToNode::OpenFailed { .. }), "{news:?}");
    daemon.open(&w, Some(&w.url), false).await;
    let directory = Some(Stores::from("/srv/store"));
    daemon
        .say(
            FromNode::Open {
                flist,
                store: directory,
                pin: false,
            },
            &[],
        )
        .await;
    let news = daemon.news().await;
    assert!(matches!(news, ToNode::OpenFailed { .. }), "{news:?}");
    let (vm, unknown) = ("vm".parse().expect("id"), Digest([1; 32]));
    daemon
        .say(FromNode::Attach { vm, flist: unknown }, &[])
        .await;
    let news = daemon.news().await;
    assert!(matches!(news, ToNode::AttachFailed { .. }), "{news:?}");
}

#[tokio::test]
async fn a_vm_that_talks_nonsense_loses_its_socket_and_no_other_notices() {
    let w = world().await;
    w.push_all();
    let daemon = Running::start(&w).await;
    daemon.open(&w, None, true).await;
    for packet in [
        &FromVmm::Want(CHUNKS).encode()[..],
        b"short",
        &[9; 16],
        &[0; 200],
    ] {
        let (bad, bad_end) = daemon.attach(&w, "bad").await;
        drop(bad_end);
        bad.send(packet, &[]).await;
        assert!(bad.receive().await.is_none());
    }
    let (good, _kept) = daemon.attach(&w, "good").await;
    // Many more than may be outstanding, before one answer is read.
    for _ in 0..300 {
        good.want(0).await;
    }
    for _ in 0..300 {
        assert_eq!(good.told().await, ToVmm::Ready(0));
    }
}

#[tokio::test]
async fn a_closed_flist_is_removed_once_no_vm_uses_it() {
    let w = world().await;
    w.push_all();
    let daemon = Running::start(&w).await;
    daemon.open(&w, None, true).await;
    let (_vm, _kept) = daemon.attach(&w, "vm").await;
    let flist = w.packed.digest;
    let image = w.cache().image_path(&flist);
    daemon.say(FromNode::Close { flist }, &[]).await;
    daemon.open(&w, None, true).await;
    assert!(image.exists());
    daemon
        .say(
            FromNode::Detach {
                vm: "vm".parse().expect("id"),
            },
            &[],
        )
        .await;
    daemon.say(FromNode::Close { flist }, &[]).await;
    let (vm, unknown) = ("x".parse().expect("id"), flist);
    daemon
        .say(FromNode::Attach { vm, flist: unknown }, &[])
        .await;
    let news = daemon.news().await;
    assert!(matches!(news, ToNode::AttachFailed { .. }), "{news:?}");
    assert!(!image.exists());
}

#[tokio::test]
async fn an_flist_that_is_closed_while_it_is_opened_leaves_no_disk_behind() {
    let w = world().await;
    w.push_all();
    w.script.lock().expect("lock").delay = Duration::from_millis(50);
    let daemon = Running::start(&w).await;
    let flist = w.packed.digest;
    let open = || FromNode::Open {
        flist,
        store: None,
        pin: true,
    };
    daemon.say(open(), &[]).await;
    daemon.say(FromNode::Close { flist }, &[]).await;
    let news = daemon.news().await;
    assert!(matches!(news, ToNode::Opened { .. }), "{news:?}");
    let vm = "x".parse().expect("an id");
    let (socket, _peer) = sys::socket::pair().expect("a pair");
    daemon.say(FromNode::Attach { vm, flist }, &[socket]).await;
    let news = daemon.news().await;
    assert!(matches!(news, ToNode::AttachFailed { .. }), "{news:?}");
    assert!(!w.cache().image_path(&flist).exists());
    // Opened again, closed or not before, it is there.
    daemon.say(open(), &[]).await;
    daemon.say(FromNode::Close { flist }, &[]).await;
    daemon.say(open(), &[]).await;
    for _ in 0..2 {
        let news = daemon.news().await;
        assert!(matches!(news, ToNode::Opened { .. }), "{news:?}");
    }
    let (_vm, _kept) = daemon.attach(&w, "vm").await;
}

#[tokio::test]
async fn disks_of_an_earlier_boot_go_when_the_node_comes_whatever_it_opens() {
    let w = world().await;
    let old = w.cache().image_path(&Digest([9; 32]));
    fs::write(&old, b"old").expect("written");
    let daemon = Running::start(&w).await;
    let (vm, flist) = ("x".parse().expect("an id"), w.packed.digest);
    daemon.say(FromNode::Attach { vm, flist }, &[]).await;
    let news = daemon.news().await;
    assert!(matches!(news, ToNode::AttachFailed { .. }), "{news:?}");
    assert!(!old.exists());
}

#[tokio::test]
async fn an_image_is_not_made_where_machines_were_promised_its_room() {
    let w = world().await;
    w.push_all();
    w.fill_pool(true);
    let daemon = Running::start(&w).await;
    let open = FromNode::Open {
        flist: w.packed.digest,
        store: None,
        pin: true,
    };
    daemon.say(open, &[]).await;
    let ToNode::OpenFailed { error, .. } = daemon.news().await else {
        panic!("there was no room")
    };
    assert!(error.contains("promised to nobody"), "{error}");
    assert!(w.cache().images().is_empty());
    w.fill_pool(false);
    daemon.open(&w, None, true).await;
}

#[tokio::test]
async fn a_vm_is_served_where_there_is_no_room_to_keep_the_chunk() {
    let w = world().await;
    let daemon = Running::start(&w).await;
    let shown = daemon.open(&w, Some(&w.url), false).await;
    let (vm, _kept) = daemon.attach(&w, "vm").await;
    w.fill_pool(true);
    vm.want(3).await;
    assert_eq!(vm.told().await, ToVmm::Ready(3));
    shown.assert_holds(&w, 3);
    let ToNode::Fault { message, .. } = daemon.news().await else {
        panic!("nothing was said")
    };
    assert!(message.contains("no room"), "{message}");
    assert!(!w.cache().has(&w.flist.chunks()[3]));
}

#[tokio::test]
async fn disks_of_an_earlier_boot_are_removed() {
    let w = world().await;
    w.push_all();
    let stale = w.cache().image_path(&Digest([9; 32]));
    fs::write(&stale, "old").expect("written");
    let daemon = Running::start(&w).await;
    daemon.open(&w, None, true).await;
    assert_eq!(w.cache().images(), [w.packed.digest]);
    daemon.kill().await;
    // Those of this boot have a map, and stay.
    let daemon = Running::start(&w).await;
    daemon.open(&w, None, true).await;
    assert_eq!(w.cache().images(), [w.packed.digest]);
}
