//! The files of volumes. Copies that share blocks need an XFS: `qemu-tests` has one.

use std::os::unix::fs::FileExt;
use std::process::Command;

use types::PublicKey;
use workload::host::SnapshotRecord;

use super::*;

fn id() -> VolumeId {
    "data-shop-01010101".parse().expect("an id")
}

fn record(mib: u64) -> VolumeRecord {
    VolumeRecord {
        signer: PublicKey([1; 32]),
        deployment: "shop".parse().expect("a name"),
        workload: "data".parse().expect("a name"),
        incarnation: 3,
        size: Bytes::mib(mib),
        restored: 0,
        snapshots: Default::default(),
        made: 1,
        shared: Bytes(0),
    }
}

fn pool() -> (tempfile::TempDir, Volumes) {
    let pool = tempfile::tempdir().expect("a directory");
    let volumes = Volumes::open(pool.path()).expect("opens");
    (pool, volumes)
}

#[test]
fn a_volume_is_a_clean_file_system_that_is_found_again() {
    let (_pool, volumes) = pool();
    volumes.make(&id(), &record(64), 0).expect("made");
    let path = volumes.content(&id(), &record(64));
    let check = Command::new("/sbin/e2fsck").arg("-fn").arg(&path).output();
    assert!(check.expect("e2fsck").status.success());
    let found = volumes.scan().expect("a scan");
    assert_eq!(found, [(id(), VolumeOnPool::Record(record(64)))]);
    assert!(
        volumes
            .used(&id())
            .is_some_and(|used| used < Bytes::mib(64))
    );
    volumes.erase(&id()).expect("erased");
    volumes.erase(&id()).expect("nothing to erase");
    assert!(volumes.scan().expect("a scan").is_empty());
}

#[test]
fn growth_keeps_what_is_in_it_and_is_said_in_the_record() {
    let (_pool, volumes) = pool();
    volumes.make(&id(), &record(64), 0).expect("made");
    let file = volumes
        .open_content(&id(), &record(64), false)
        .expect("opens");
    file.write_all_at(b"data", 50 << 20).expect("written");
    volumes.grow(&id(), &record(128)).expect("grown");
    volumes.grow(&id(), &record(128)).expect("grown already");
    let mut bytes = [0; 4];
    let read = volumes
        .open_content(&id(), &record(128), true)
        .expect("opens");
    read.read_exact_at(&mut bytes, 50 << 20).expect("read");
    assert_eq!(
        (&bytes, read.metadata().expect("stat").len()),
        (b"data", 128 << 20)
    );
    assert!(read.write_at(b"x", 0).is_err(), "who reads cannot write");
    let found = volumes.scan().expect("a scan");
    assert_eq!(found, [(id(), VolumeOnPool::Record(record(128)))]);
}

#[test]
fn what_no_record_names_goes_and_what_it_names_stays() {
    let (_pool, volumes) = pool();
    let mut with = record(64);
    volumes.make(&id(), &with, 0).expect("made");
    for version in [4, 5] {
        fs::write(volumes.snapshot(&id(), version), "x").expect("a snapshot");
    }
    fs::write(volumes.directory(&id()).join(PARTIAL), "x").expect("half a copy");
    let snapshot = SnapshotRecord {
        name: "monday".parse().expect("a name"),
        size: Bytes::mib(64),
        settled: true,
    };
    with.snapshots.insert(4, snapshot);
    volumes.save(&id(), &with).expect("saved");
    assert_eq!(
        volumes.scan().expect("a scan"),
        [(id(), VolumeOnPool::Record(with))]
    );
    let files = fs::read_dir(volumes.directory(&id())).expect("a list");
    assert_eq!(files.count(), 3);
    assert!(volumes.snapshot(&id(), 4).exists());
    volumes.let_go(&id(), &record(64)).expect("let go");
    assert!(!volumes.snapshot(&id(), 4).exists());
}

#[test]
fn a_volume_whose_disk_is_away_is_waited_for_and_not_made_again() {
    let [one, two] = [(); 2].map(|()| tempfile::tempdir().expect("a directory"));
    let both = Volumes::open_below([one.path(), two.path()]).expect("opens");
    both.make(&id(), &record(64), 0).expect("made");
    assert!(
        one.path()
            .join("volumes")
            .join(id().as_str())
            .join(RECORD)
            .exists()
    );
    let found = both.scan().expect("a scan");
    assert_eq!(found, [(id(), VolumeOnPool::Record(record(64)))]);
    // The other one is the first now.
    let alone = Volumes::open_below([two.path()]).expect("opens");
    let found = alone.scan().expect("a scan");
    assert!(
        matches!(&found[..], [(_, VolumeOnPool::Unreadable(why))] if why.contains("disk is not there"))
    );
    let turned = Volumes::open_below([two.path(), one.path()]).expect("opens");
    assert_eq!(
        turned.scan().expect("a scan"),
        [(id(), VolumeOnPool::Record(record(64)))]
    );
    // Given up and made anew while the disk was away: the newer counts, and both go together.
    alone.erase(&id()).expect("erased");
    let newer = VolumeRecord {
        made: 2,
        ..record(64)
    };
    alone.make(&id(), &newer, 0).expect("made");
    assert_eq!(
        turned.scan().expect("a scan"),
        [(id(), VolumeOnPool::Record(newer))]
    );
    turned.erase(&id()).expect("erased");
    for volumes in [&alone, &both] {
        assert!(volumes.scan().expect("a scan").is_empty());
    }
}

#[test]
fn a_record_that_cannot_be_read_is_said_and_nothing_of_it_is_touched() {
    let (_pool, volumes) = pool();
    volumes.make(&id(), &record(64), 0).expect("made");
    fs::write(volumes.directory(&id()).join(RECORD), "{").expect("damaged");
    let found = volumes.scan().expect("a scan");
    assert!(matches!(&found[..], [(_, VolumeOnPool::Unreadable(why))] if why.contains(RECORD)));
    assert!(volumes.content(&id(), &record(64)).exists());
}
