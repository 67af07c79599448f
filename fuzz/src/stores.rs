//! What stores answer, several of them and of each kind, to whoever reads an image out of them.
//!
//! Owns: a server that is all stores of an input, and what must hold whatever they say: only right bytes come out, from
//! stores that were named for them, after a bounded number of questions; and a copy that is well is enough.
//! Refuses: servers elsewhere. An answer that leads to another machine is no input of ours: none is made here.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ::stores::{Object, Patience, Piece, Pool, StoreError, roll};
use ::types::stores::Shard;
use ::types::{Digest, Stores};
use sha2::{Digest as _, Sha256};
use tokio::net::TcpStream;

use crate::Target;
use crate::choices::{Choices, Made};
use crate::peer;

pub(crate) const TARGETS: [Target; 2] = [
    Target {
        name: "stores-set",
        bytes_max: 4096,
        run: set,
        seeds,
    },
    Target {
        name: "stores-roll",
        bytes_max: 4096,
        run: list,
        seeds: || vec![of_three()],
    },
];

const CHUNK: &[u8] = b"the stored bytes of a chunk";
const FLIST: &[u8] = b"an flist, as far as a store knows";
const TRACE: &[u8] = b"a trace";
/// Which flist: its hash is compared by whoever asks.
const DIGEST: Digest = Digest([7; 32]);
/// Longer than what is asked for.
const LIMIT: u64 = 64;
const STORES_MAX: u8 = 4;
const ANSWERS_MAX: u8 = 6;
/// A connection that hangs is a finding: nothing here waits for a clock.
const PATIENCE: Duration = Duration::from_secs(60);
/// Of one store for one object: a manifest and a blob, each with a refusal, a token and a second try, each of these after
/// three redirections, and each of all these once more where a connection that was kept has ended.
const QUESTIONS_MAX: usize = 2 * 3 * 4 * 2;
/// What an answer may write for the server's own address.
const HERE: &[u8] = b"{here}";

/// One store of an input.
#[derive(Debug)]
struct Hostile {
    kind: Kind,
    shard: (u8, u8),
    /// What it says first, as bytes on the wire; nothing is a connection that ends. Then it is well.
    answers: VecDeque<Vec<u8>>,
    asked: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Web,
    S3,
    Oci,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asks {
    Chunk,
    Flist,
    Trace,
}

/// Connections are many at once, and each store is one.
type Shared = Arc<Mutex<Vec<Hostile>>>;

fn read(choices: &mut Choices<'_>) -> (Asks, Vec<Hostile>) {
    let asks = [Asks::Chunk, Asks::Flist, Asks::Trace][usize::from(choices.u8() % 3)];
    let count = 1 + choices.u8() % STORES_MAX;
    let one = |_| Hostile {
        kind: [Kind::Web, Kind::S3, Kind::Oci][usize::from(choices.u8() % 3)],
        shard: (choices.u8(), choices.u8()),
        answers: (0..choices.u8() % ANSWERS_MAX)
            .map(|_| choices.long().to_vec())
            .collect(),
        asked: 0,
    };
    (asks, (0..count).map(one).collect())
}

impl Hostile {
    fn url(&self, number: usize) -> String {
        let (first, last) = self.shard;
        let here = peer::address();
        let url = match self.kind {
            Kind::Web => format!("http://{here}/at-{number}/"),
            Kind::S3 => format!("s3://at-{number}/p?endpoint=http://{here}"),
            Kind::Oci => format!("oci+http://{here}/at-{number}/x"),
        };
        format!("{first:02x}-{last:02x}={url}")
    }

    /// What it says to a request for this path.
    fn answer(&mut self, path: &str) -> Vec<u8> {
        self.asked += 1;
        match self.answers.pop_front() {
            Some(answer) => replaced(&answer, HERE, peer::address().to_string().as_bytes()),
            None => well(path),
        }
    }
}

fn replaced(text: &[u8], what: &[u8], by: &[u8]) -> Vec<u8> {
    match text.windows(what.len()).position(|window| window == what) {
        Some(at) => [&text[..at], by, &text[at + what.len()..]].concat(),
        None => text.to_vec(),
    }
}

fn said(body: &[u8]) -> Vec<u8> {
    let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", body.len());
    [head.as_bytes(), body].concat()
}

/// What a store says that is well.
fn well(path: &str) -> Vec<u8> {
    let all = [
        (chunk(), CHUNK),
        (Object::Flist(DIGEST), FLIST),
        (Object::Trace(DIGEST), TRACE),
    ];
    if path.contains("/manifests/") {
        let layer = |(object, bytes): &(Object, &[u8])| {
            serde_json::json!({
                "mediaType": "x", "digest": blob(bytes), "size": bytes.len(),
                "annotations": {"org.opencontainers.image.title": object.path()},
            })
        };
        let layers: Vec<_> = all.iter().map(layer).collect();
        let config = serde_json::json!({"mediaType": "x", "digest": blob(b"{}"), "size": 2});
        let manifest = serde_json::json!({"schemaVersion": 2, "config": config, "layers": layers});
        return said(manifest.to_string().as_bytes());
    }
    let is = |(object, bytes): &&(Object, &[u8])| {
        path.ends_with(&object.path()) || path.ends_with(&blob(bytes))
    };
    match all.iter().find(is) {
        Some((_, bytes)) => said(bytes),
        None => b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n".to_vec(),
    }
}

fn blob(bytes: &[u8]) -> String {
    let hash = Sha256::digest(bytes);
    let hex: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

fn name() -> Digest {
    Digest(blake3::hash(CHUNK).into())
}

fn chunk() -> Object {
    Object::Chunk(name())
}

/// Answers every connection, each once, for as long as somebody asks.
async fn serve(shared: Shared) {
    loop {
        let stream = peer::accept().await;
        let shared = Arc::clone(&shared);
        tokio::spawn(async move { serve_one(stream, &shared).await });
    }
}

async fn serve_one(mut stream: TcpStream, shared: &Shared) {
    let Some(request) = peer::hear(&mut stream).await else {
        return;
    };
    let request = String::from_utf8_lossy(&request).into_owned();
    let path = request.split(' ').nth(1).unwrap_or("").to_owned();
    let answer = {
        let mut stores = shared.lock().unwrap_or_else(PoisonError::into_inner);
        let is_for = |(number, _): &(usize, _)| path.contains(&format!("/at-{number}/"));
        let found = stores.iter_mut().enumerate().find(is_for);
        // Where an answer has led to.
        found.map_or_else(Vec::new, |(_, store)| store.answer(&path))
    };
    peer::tell(stream, &answer).await;
}

fn set(input: &[u8]) {
    let mut choices = Choices(input);
    let (asks, hostile) = read(&mut choices);
    let urls = hostile.iter().enumerate().map(|(number, h)| h.url(number));
    let stores = Stores {
        urls: urls.collect(),
        authority: None,
    };
    let is_valid = hostile.iter().all(|h| h.shard.0 <= h.shard.1);
    let byte = name().0[0];
    let holds = |h: &Hostile| {
        let (first, last) = h.shard;
        asks != Asks::Chunk || Shard { first, last }.holds(byte)
    };
    let is_held = hostile.iter().any(holds);
    let is_well = hostile.iter().any(|h| holds(h) && h.answers.is_empty());
    // An answer may lead to another store of the input.
    let leads = |answer: &Vec<u8>| answer.windows(3).any(|window| window == b"at-");
    let leads_nowhere = !hostile.iter().flat_map(|h| &h.answers).any(leads);
    let outsider = |h: &Hostile| leads_nowhere && !holds(h);
    let outsiders: Vec<bool> = hostile.iter().map(outsider).collect();
    let shared: Shared = Arc::new(Mutex::new(hostile));
    let got = peer::runtime().block_on(async {
        let set = Pool::of_a_node().remote(&stores);
        assert_eq!(set.is_ok(), is_valid, "{stores:?}");
        let set = set.ok()?;
        let asked = async {
            match asks {
                Asks::Chunk => {
                    let bytes = u32::try_from(CHUNK.len()).expect("a short one");
                    let piece = Piece {
                        name: name(),
                        bytes,
                    };
                    set.chunk(&DIGEST, &piece, Patience::ONCE).await
                }
                Asks::Flist => {
                    let right = |bytes: &[u8]| bytes == FLIST;
                    set.flist(&DIGEST, LIMIT, &right, Patience::ONCE).await
                }
                Asks::Trace => set.trace(&DIGEST, LIMIT).await,
            }
        };
        let both = async {
            tokio::select! {
                got = asked => got,
                () = serve(Arc::clone(&shared)) => unreachable!("it serves for ever"),
            }
        };
        let ended = tokio::time::timeout(PATIENCE, both).await;
        Some(ended.expect("reading ends"))
    });
    let Some(got) = got else {
        return;
    };
    let stores = shared.lock().unwrap_or_else(PoisonError::into_inner);
    let asked: usize = stores.iter().map(|store| store.asked).sum();
    assert!(asked <= QUESTIONS_MAX * stores.len(), "{asked} questions");
    for (store, is_outsider) in stores.iter().zip(outsiders) {
        assert!(!is_outsider || store.asked == 0, "not its range: {store:?}");
    }
    match (&got, asks) {
        (Ok(bytes), Asks::Chunk) => assert_eq!(bytes, CHUNK),
        (Ok(bytes), Asks::Flist) => assert_eq!(bytes, FLIST),
        (Ok(bytes), Asks::Trace) => assert!(bytes.len() as u64 <= LIMIT),
        (Err(StoreError::NoShard(_)), _) => assert!(!is_held),
        (Err(error), _) => assert!(!is_well, "a copy is well: {error}"),
    }
}

/// What a store gives as the list of an encrypted image's chunks.
fn list(input: &[u8]) {
    if let Ok(pieces) = roll::decode(input, &DIGEST) {
        assert_eq!(roll::encode(&DIGEST, &pieces), input);
    }
}

fn of_three() -> Vec<u8> {
    let piece = |byte: u8| Piece {
        name: Digest([byte; 32]),
        bytes: u32::from(byte),
    };
    roll::encode(&DIGEST, &[piece(1), piece(2), piece(255)])
}

fn seeds() -> Vec<Vec<u8>> {
    let byte = name().0[0];
    let store = |made: Made, kind: u8, shard: (u8, u8), answers: &[&[u8]]| {
        let count = u8::try_from(answers.len()).expect("a few");
        let made = made.u8(kind).u8(shard.0).u8(shard.1).u8(count);
        answers.iter().fold(made, |made, answer| made.long(answer))
    };
    let begin = |asks: u8, count: u8| Made::default().u8(asks).u8(count - 1);
    let (all, mine) = ((0, 255), (byte, byte));
    let refused: &[u8] =
        b"HTTP/1.1 401 No\r\nwww-authenticate: Bearer realm=\"http://{here}/at-0/token\",service=\"s\",scope=\"r\"\r\n\
          content-length: 0\r\n\r\n";
    let token = said(br#"{"token":"t"}"#);
    let led: &[u8] = b"HTTP/1.1 307 There\r\nlocation: /at-0/there\r\ncontent-length: 0\r\n\r\n";
    let wrong = said(&CHUNK.to_ascii_uppercase());
    let long = said(&[0; 100]);
    let cut: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 27\r\n\r\nthe";
    let busy: &[u8] = b"HTTP/1.1 503 Busy\r\ncontent-length: 4\r\n\r\nbusy";
    let manifest = well("/manifests/");
    let blob = said(CHUNK);
    vec![
        store(begin(0, 1), 0, all, &[]).0,
        store(begin(0, 1), 1, mine, &[]).0,
        store(begin(0, 1), 2, all, &[refused, &token, &manifest, &blob]).0,
        store(begin(1, 1), 2, all, &[]).0,
        store(begin(2, 1), 0, all, &[led, &long]).0,
        store(
            store(begin(0, 2), 0, all, &[&wrong, cut]),
            1,
            (byte, 255),
            &[],
        )
        .0,
        store(
            store(store(begin(0, 3), 2, all, &[&long]), 0, all, &[busy, b""]),
            1,
            (byte.wrapping_add(1), 255),
            &[],
        )
        .0,
        store(store(begin(1, 2), 1, all, &[led, led, led]), 0, all, &[cut]).0,
        store(begin(0, 1), 0, (2, 1), &[]).0,
    ]
}
