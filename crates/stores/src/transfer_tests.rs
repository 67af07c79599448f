//! Moving images, where sources fail and targets are swept.
//!
//! Owns: what a copy promises, whenever it ends. Refuses: stores elsewhere.

use super::*;
use crate::fake::{Answer, Fake};
use crate::{Pool, Route, sweep};
use std::fs::File;
use std::path::Path;
use tempfile::TempDir;

fn chunk(index: u8) -> Vec<u8> {
    let mut bytes = vec![0; 20_000];
    blake3::Hasher::new()
        .update(&[index])
        .finalize_xof()
        .fill(&mut bytes);
    bytes
}

fn image(chunks: std::ops::Range<u8>) -> Image {
    let pieces = chunks.clone().map(|i| {
        let bytes = chunk(i);
        Piece {
            name: Digest(blake3::hash(&bytes).into()),
            bytes: u32::try_from(bytes.len()).expect("small"),
        }
    });
    let file = format!("an flist of {chunks:?}").into_bytes();
    let digest = Digest(blake3::hash(&file).into());
    Image::open(digest, file, pieces.collect())
}

/// A store with these chunks and no flist.
fn packed(chunks: std::ops::Range<u8>) -> TempDir {
    let root = TempDir::new().expect("temp");
    for (i, piece) in chunks.clone().zip(image(chunks).chunks) {
        let path = root.path().join(Object::Chunk(piece.name).path());
        std::fs::create_dir_all(path.parent().expect("below")).expect("directory");
        std::fs::write(path, chunk(i)).expect("writes");
    }
    root
}

fn set(texts: &[&str]) -> Set {
    let routes = texts
        .iter()
        .map(|text| Route::parse(text, &|_| None).expect("valid"));
    let routes: Vec<Route> = routes.collect();
    Pool::of_a_node().set(&routes, None).expect("opens")
}

fn text(path: &Path) -> &str {
    path.to_str().expect("text")
}

async fn listed(set: &Set) -> Vec<Object> {
    let store = set.stores().next().expect("a store");
    let mut objects: Vec<_> = store
        .list()
        .await
        .expect("lists")
        .into_iter()
        .map(|e| e.object)
        .collect();
    objects.sort();
    objects
}

#[tokio::test]
async fn what_is_there_is_not_sent_again() {
    let (local, target) = (packed(0..20), TempDir::new().expect("temp"));
    let (from, to) = (set(&[text(local.path())]), set(&[text(target.path())]));
    let first = copy(&image(0..20), &from, &to, &|_| ())
        .await
        .expect("copies");
    assert_eq!((first.sent_chunks, first.kept_chunks), (20, 0));
    let again = copy(&image(0..20), &from, &to, &|_| ())
        .await
        .expect("copies");
    assert_eq!((again.sent_chunks, again.kept_chunks), (0, 20));
    let more = packed(10..30);
    let from = set(&[text(more.path())]);
    let next = copy(&image(10..30), &from, &to, &|_| ())
        .await
        .expect("copies");
    assert_eq!((next.sent_chunks, next.kept_chunks), (10, 10));
    assert_eq!(listed(&to).await.len(), 32);
    assert_eq!(verify(&image(0..20), &to, &|_| ()).await, []);
}

#[tokio::test]
async fn an_interrupted_copy_leaves_no_flist_and_goes_on_where_it_was() {
    let (local, target) = (packed(0..20), TempDir::new().expect("temp"));
    let source = Fake::start(local.path(), 0, 0).await.expect("starts");
    // What does not pass: the copy ends there.
    source.script(&[Answer::Content; 8]);
    source.script(&[Answer::Status(403); 1]);
    let (from, to) = (set(&[&source.url]), set(&[text(target.path())]));
    let error = copy(&image(0..20), &from, &to, &|_| ())
        .await
        .expect_err("refused");
    assert!(matches!(error, StoreError::Denied { .. }), "{error}");
    let there = listed(&to).await;
    assert!(!there.is_empty() && there.len() < 20, "{}", there.len());
    assert!(
        there
            .iter()
            .all(|object| matches!(object, Object::Chunk(_)))
    );
    let moved = copy(&image(0..20), &from, &to, &|_| ())
        .await
        .expect("goes on");
    // What was being written when the copy ended may have come after the list: of the eight that passed.
    assert!((there.len() as u64..=8).contains(&moved.kept_chunks));
    assert_eq!(verify(&image(0..20), &to, &|_| ()).await, []);
}

#[tokio::test]
async fn a_trace_goes_along_and_a_copy_without_one_leaves_it_where_it_is() {
    let (source, target) = (packed(0..3), TempDir::new().expect("temp"));
    let mut image = image(0..3);
    let (from, to) = (set(&[text(source.path())]), set(&[text(target.path())]));
    let trace = || async { to.trace(&image.digest, 100).await };
    let moved = copy(&image, &from, &to, &|_| {}).await.expect("copied");
    assert!(!moved.has_trace && trace().await.is_err());
    image.trace = Some(b"a trace".to_vec());
    let moved = copy(&image, &from, &to, &|_| {}).await.expect("copied");
    assert!(moved.has_trace && moved.sent_chunks == 0);
    image.trace = None;
    copy(&image, &from, &to, &|_| {}).await.expect("copied");
    let held = to.trace(&image.digest, 100).await.expect("there");
    assert_eq!(held, b"a trace");
}

#[tokio::test]
async fn two_copies_at_once_make_one_whole_store() {
    let (local, target) = (packed(0..40), TempDir::new().expect("temp"));
    let (from, to) = (set(&[text(local.path())]), set(&[text(target.path())]));
    let (one, two) = (image(0..30), image(10..40));
    let (one, two) = (
        copy(&one, &from, &to, &|_| ()),
        copy(&two, &from, &to, &|_| ()),
    );
    let (one, two) = tokio::join!(one, two);
    one.and(two).expect("both copy");
    assert_eq!(listed(&to).await.len(), 42);
    assert_eq!(verify(&image(0..30), &to, &|_| ()).await, []);
    assert_eq!(verify(&image(10..40), &to, &|_| ()).await, []);
}

#[tokio::test]
async fn a_source_that_fails_often_gives_the_right_image_in_the_end() {
    let local = packed(0..12);
    for seed in 0..4 {
        let target = TempDir::new().expect("temp");
        let one = Fake::start(local.path(), seed, 30).await.expect("starts");
        let two = Fake::start(local.path(), seed + 50, 30)
            .await
            .expect("starts");
        let (from, to) = (set(&[&one.url, &two.url]), set(&[text(target.path())]));
        copy(&image(0..12), &from, &to, &|_| ())
            .await
            .expect("copies");
        assert_eq!(verify(&image(0..12), &to, &|_| ()).await, [], "seed {seed}");
    }
}

#[tokio::test]
async fn parts_and_copies_each_get_their_own() {
    let local = packed(0..40);
    let targets: Vec<TempDir> = (0..3).map(|_| TempDir::new().expect("temp")).collect();
    let path = |i: usize| text(targets[i].path());
    let low = format!("00-7f={}", path(0));
    let high = format!("80-ff={}", path(1));
    let (from, to) = (set(&[text(local.path())]), set(&[&low, &high, path(2)]));
    let moved = copy(&image(0..40), &from, &to, &|_| ())
        .await
        .expect("copies");
    assert_eq!(moved.sent_chunks, 80);
    let count = |objects: Vec<Object>, low: bool| {
        let of = |o: &&Object| matches!(o, Object::Chunk(d) if (d.0[0] < 0x80) == low);
        objects.iter().filter(of).count()
    };
    assert_eq!(count(listed(&set(&[path(0)])).await, false), 0);
    assert_eq!(count(listed(&set(&[path(1)])).await, true), 0);
    assert_eq!(listed(&set(&[path(2)])).await.len(), 41);
    assert_eq!(verify(&image(0..40), &to, &|_| ()).await, []);
    // Half of a copy goes: reading passes over it, verifying says so.
    std::fs::remove_dir_all(targets[2].path().join("chunks")).expect("removes");
    let back = TempDir::new().expect("temp");
    let again = copy(&image(0..40), &to, &set(&[text(back.path())]), &|_| ()).await;
    assert_eq!(again.expect("from the parts").sent_chunks, 40);
    let faults = verify(&image(0..40), &to, &|_| ()).await;
    assert_eq!(faults.len(), 40);
    assert!(
        faults
            .iter()
            .all(|f| f.what == Problem::Missing && f.store == path(2))
    );
}

#[tokio::test]
async fn what_is_wrong_is_found_and_named() {
    let (local, target) = (packed(0..5), TempDir::new().expect("temp"));
    let (from, to) = (set(&[text(local.path())]), set(&[text(target.path())]));
    copy(&image(0..5), &from, &to, &|_| ())
        .await
        .expect("copies");
    let path = |i: usize| {
        target
            .path()
            .join(Object::Chunk(image(0..5).chunks[i].name).path())
    };
    let mut bytes = std::fs::read(path(1)).expect("reads");
    bytes[7] ^= 1;
    std::fs::write(path(1), bytes).expect("writes");
    std::fs::remove_file(path(3)).expect("removes");
    let faults = verify(&image(0..5), &to, &|_| ()).await;
    let mut problems: Vec<_> = faults.iter().map(|f| format!("{:?}", f.what)).collect();
    problems.sort();
    assert_eq!(problems, ["Missing", "Wrong"]);
}

fn make_old(path: &Path) {
    let old = SystemTime::now() - Duration::from_secs(40 * 86_400);
    File::open(path)
        .and_then(|f| f.set_modified(old))
        .expect("sets the time");
}

#[tokio::test]
async fn a_sweep_keeps_what_is_named_what_is_young_and_what_a_push_under_way_has_found() {
    let (local, target) = (packed(0..30), TempDir::new().expect("temp"));
    let (from, to) = (set(&[text(local.path())]), set(&[text(target.path())]));
    copy(&image(0..10), &from, &to, &|_| ())
        .await
        .expect("copies");
    copy(&image(10..20), &from, &to, &|_| ())
        .await
        .expect("copies");
    let store = to.stores().next().expect("one");
    store
        .remove(&Object::Flist(image(10..20).digest))
        .await
        .expect("removes");
    for entry in store.list().await.expect("lists") {
        make_old(&target.path().join(entry.object.path()));
    }
    std::fs::write(target.path().join(".tmp-old"), b"half").expect("writes");
    make_old(&target.path().join(".tmp-old"));
    let before = SystemTime::now() - Duration::from_secs(86_400);
    let named = image(0..10).chunks.iter().map(|p| p.name).collect();
    let plan = sweep::plan(store.list().await.expect("lists"), &named, before);
    assert_eq!((plan.named, plan.young, plan.remove.len()), (10, 0, 10));
    // A push comes between the list and the removal, and finds half of what shall go.
    let pushed = copy(&image(15..25), &from, &to, &|_| ())
        .await
        .expect("copies");
    assert_eq!((pushed.sent_chunks, pushed.kept_chunks), (5, 5));
    assert_eq!(sweep::remove(store, &plan, before).await, Ok(5));
    assert_eq!(store.remove_drafts(before), Ok(1));
    assert_eq!(verify(&image(0..10), &to, &|_| ()).await, []);
    assert_eq!(verify(&image(15..25), &to, &|_| ()).await, []);
    assert_eq!(listed(&to).await.len(), 22);
}

#[tokio::test]
async fn a_web_server_is_not_written_to() {
    let local = packed(0..1);
    let web = Fake::start(local.path(), 0, 0).await.expect("starts");
    let empty = packed(0..1);
    std::fs::remove_dir_all(local.path().join("chunks")).expect("removes");
    let (from, to) = (set(&[text(empty.path())]), set(&[&web.url]));
    let error = copy(&image(0..1), &from, &to, &|_| ())
        .await
        .expect_err("reads only");
    assert!(matches!(error, StoreError::ReadOnly { .. }), "{error}");
}
