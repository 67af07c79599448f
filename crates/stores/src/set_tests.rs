//! Sets of stores that fail.
//!
//! Owns: what reading from several stores promises, kept while they break what they can. Refuses: stores elsewhere.

use super::*;
use crate::fake::{Answer, Fake};
use crate::{Pool, Route};
use tempfile::TempDir;

const FLIST: Digest = Digest([9; 32]);

fn piece(bytes: &[u8]) -> Piece {
    Piece {
        name: Digest(blake3::hash(bytes).into()),
        bytes: u32::try_from(bytes.len()).expect("small"),
    }
}

/// A directory with some chunks.
fn filled(chunks: &[&[u8]]) -> TempDir {
    let root = TempDir::new().expect("temp");
    for bytes in chunks {
        let path = root.path().join(Object::Chunk(piece(bytes).name).path());
        std::fs::create_dir_all(path.parent().expect("below")).expect("directory");
        std::fs::write(path, bytes).expect("writes");
    }
    root
}

/// What a person's machine opens, without its keys.
fn set(urls: &[&str]) -> Set {
    let routes = urls
        .iter()
        .map(|url| Route::parse(url, &|_| None).expect("valid"));
    let routes: Vec<Route> = routes.collect();
    Pool::of_a_node().set(&routes, None).expect("opens")
}

#[tokio::test]
async fn a_chunk_comes_from_whichever_copy_is_well() {
    let content: Vec<Vec<u8>> = (0..16u8).map(|i| vec![i; 5000]).collect();
    let content: Vec<&[u8]> = content.iter().map(Vec::as_slice).collect();
    let root = filled(&content);
    let good = Fake::start(root.path(), 0, 0).await.expect("starts");
    let bad = Fake::start(root.path(), 0, 100).await.expect("starts");
    let set = set(&[&bad.url, &good.url]);
    for bytes in content {
        let got = set.chunk(&FLIST, &piece(bytes), Patience::ONCE).await;
        assert_eq!(got.as_deref(), Ok(bytes));
    }
    // Once it has failed some times in a row it is asked no more: not even once for each chunk it would be first for.
    assert!(bad.asked("chunks/") < 12, "{}", bad.asked("chunks/"));
}

#[tokio::test]
async fn copies_share_the_reads() {
    let content: Vec<Vec<u8>> = (0..64u8).map(|i| vec![i; 100]).collect();
    let content: Vec<&[u8]> = content.iter().map(Vec::as_slice).collect();
    let root = filled(&content);
    let one = Fake::start(root.path(), 0, 0).await.expect("starts");
    let two = Fake::start(root.path(), 0, 0).await.expect("starts");
    let set = set(&[&one.url, &two.url]);
    for bytes in content {
        let got = set.chunk(&FLIST, &piece(bytes), Patience::ONCE).await;
        assert_eq!(got.as_deref(), Ok(bytes));
    }
    let (one, two) = (one.asked("chunks/"), two.asked("chunks/"));
    assert_eq!(one + two, 64);
    assert!(one > 16 && two > 16, "{one} and {two}");
}

#[tokio::test]
async fn parts_are_asked_for_their_range_only() {
    let content: Vec<Vec<u8>> = (0..32u8).map(|i| vec![i; 100]).collect();
    let content: Vec<&[u8]> = content.iter().map(Vec::as_slice).collect();
    let root = filled(&content);
    let low = Fake::start(root.path(), 0, 0).await.expect("starts");
    let high = Fake::start(root.path(), 0, 0).await.expect("starts");
    let set = set(&[
        &format!("00-7f={}", low.url),
        &format!("80-ff={}", high.url),
    ]);
    for bytes in content {
        let piece = piece(bytes);
        let got = set.chunk(&FLIST, &piece, Patience::ONCE).await;
        assert_eq!(got.as_deref(), Ok(bytes));
        let (right, wrong) = if piece.name.0[0] < 0x80 {
            (&low, &high)
        } else {
            (&high, &low)
        };
        let path = Object::Chunk(piece.name).path();
        assert_eq!((right.asked(&path), wrong.asked(&path)), (1, 0));
    }
    let gap = super::tests::set(&[&format!("00-00={}", low.url)]);
    let lost = Piece {
        name: Digest([1; 32]),
        bytes: 1,
    };
    let error = gap
        .chunk(&FLIST, &lost, Patience::SOME)
        .await
        .expect_err("no store");
    assert!(matches!(error, StoreError::NoShard(_)));
}

#[tokio::test]
async fn every_kind_of_failure_ends_in_the_right_bytes_or_an_error_and_never_in_wrong_ones() {
    let bytes = vec![7; 60_000];
    let root = filled(&[&bytes]);
    let store = Fake::start(root.path(), 0, 0).await.expect("starts");
    for (answer, is_well) in [
        (Answer::Content, true),
        (Answer::Slow, true),
        (Answer::Cut, false),
        (Answer::Short, false),
        (Answer::WrongBytes, false),
        (Answer::Longer, false),
        (Answer::Status(500), false),
        (Answer::Status(403), false),
        (Answer::Reset, false),
        (Answer::Noise, false),
    ] {
        let set = set(&[&store.url]);
        store.script(&[answer]);
        let got = set.chunk(&FLIST, &piece(&bytes), Patience::ONCE).await;
        match got {
            Ok(got) => assert!(is_well && got == bytes, "{answer:?}"),
            Err(error) => assert!(!is_well, "{answer:?}: {error}"),
        }
    }
}

#[tokio::test]
async fn a_store_that_fails_half_the_time_costs_time_only() {
    for seed in 0..8 {
        let bytes = vec![u8::try_from(seed).expect("small"); 30_000];
        let root = filled(&[&bytes]);
        let one = Fake::start(root.path(), seed, 50).await.expect("starts");
        let two = Fake::start(root.path(), seed + 100, 50)
            .await
            .expect("starts");
        let set = set(&[&one.url, &two.url]);
        let quick = Patience {
            rounds: 16,
            pause: Duration::from_micros(1),
        };
        let got = set.chunk(&FLIST, &piece(&bytes), quick).await;
        assert_eq!(got.as_ref(), Ok(&bytes), "seed {seed}");
    }
}

#[tokio::test]
async fn what_is_nowhere_is_said_at_once() {
    let root = filled(&[]);
    let store = Fake::start(root.path(), 0, 0).await.expect("starts");
    let set = set(&[&store.url]);
    let got = set.chunk(&FLIST, &piece(b"x"), Patience::SOME).await;
    assert!(matches!(got, Err(StoreError::NotFound { .. })), "{got:?}");
    assert_eq!(store.asked("chunks/"), 1);
}

#[test]
fn pauses_grow_and_differ_and_end() {
    let pause = |round| Patience::SOME.pause(round).map(|p| p.as_millis());
    let first = pause(0).expect("a second round");
    assert!((125..=375).contains(&first), "{first}");
    let last = pause(4).expect("a sixth round");
    assert!((2000..=6000).contains(&last), "{last}");
    assert_eq!(pause(5), None);
    assert_eq!(Patience::ONCE.pause(0), None);
    let several: std::collections::BTreeSet<_> = (0..32).map(|_| pause(4)).collect();
    assert!(several.len() > 1);
}
