//! A registry on this machine that fails as it is told to.
//!
//! Owns: just as much of the distribution specification as pulling needs, with tokens. Refuses: to push.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use futures_util::stream;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Bytes, Frame, Incoming};
use hyper::header::{AUTHORIZATION, RANGE};
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use sha2::{Digest as _, Sha256};
use tokio::net::TcpListener;

/// What a registry does wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Fault {
    /// Each answer with a blob ends after 40 000 bytes.
    Cuts,
    /// Blobs always come from their beginning.
    NoRanges,
    /// The first request of each blob gets status 503.
    Busy,
    /// Each blob has one wrong bit.
    Wrong,
    /// Each blob goes on behind its end, for ever.
    Endless,
    /// Blobs are never sent.
    Gone,
}

const TOKEN: &str = "a-token-of-the-fake";
const CUT_BYTES: usize = 40_000;

type Body = BoxBody<Bytes, std::io::Error>;

pub(crate) struct Fake {
    pub(crate) host: String,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    /// By path.
    content: BTreeMap<String, (String, Vec<u8>)>,
    faults: BTreeSet<Fault>,
    /// `user:password` in Base64, where one is demanded.
    login: Option<String>,
    asked: Vec<String>,
}

impl Fake {
    /// `login`: what a client must know, as an `Authorization` header has it.
    pub(crate) async fn start(faults: &[Fault], login: Option<&str>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let host = listener.local_addr().expect("bound").to_string();
        let state = Arc::new(Mutex::new(State {
            faults: faults.iter().copied().collect(),
            login: login.map(str::to_owned),
            ..State::default()
        }));
        let (ours, name) = (state.clone(), host.clone());
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (state, name) = (ours.clone(), name.clone());
                tokio::spawn(async move {
                    let answer = |request: Request<Incoming>| {
                        let answer = state.lock().expect("no panic").answer(&name, &request);
                        async move { Ok::<_, Infallible>(answer) }
                    };
                    let service = hyper::service::service_fn(answer);
                    // A connection that is cut ends with an error: that is what cutting is.
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
        Self { host, state }
    }

    pub(crate) fn asked(&self, for_what: &str) -> usize {
        let state = self.state.lock().expect("no panic");
        state
            .asked
            .iter()
            .filter(|path| path.contains(for_what))
            .count()
    }

    /// Returns the digest.
    pub(crate) fn blob(&self, repository: &str, bytes: &[u8]) -> String {
        let digest = digest(bytes);
        self.put(
            format!("/v2/{repository}/blobs/{digest}"),
            "application/octet-stream",
            bytes,
        );
        digest
    }

    /// By its digest, and by a tag where there is one.
    pub(crate) fn manifest(
        &self,
        repository: &str,
        tag: &str,
        media_type: &str,
        text: &str,
    ) -> String {
        let digest = digest(text.as_bytes());
        for name in [tag, &digest] {
            self.put(
                format!("/v2/{repository}/manifests/{name}"),
                media_type,
                text.as_bytes(),
            );
        }
        digest
    }

    fn put(&self, path: String, media_type: &str, bytes: &[u8]) {
        let content = (media_type.to_owned(), bytes.to_vec());
        self.state
            .lock()
            .expect("no panic")
            .content
            .insert(path, content);
    }
}

impl State {
    fn answer(&mut self, host: &str, request: &Request<Incoming>) -> Response<Body> {
        let path = request.uri().path().to_owned();
        let authorization = request
            .headers()
            .get(AUTHORIZATION)
            .and_then(|v| v.to_str().ok());
        if path == "/token" {
            let expected = self.login.as_ref().map(|login| format!("Basic {login}"));
            if expected.is_some() && authorization != expected.as_deref() {
                return plain(StatusCode::UNAUTHORIZED, "wrong password");
            }
            return plain(StatusCode::OK, &format!("{{\"token\":\"{TOKEN}\"}}"));
        }
        if authorization != Some(&format!("Bearer {TOKEN}")) {
            let challenge = format!("Bearer realm=\"http://{host}/token\",service=\"fake\"");
            let mut refused = plain(
                StatusCode::UNAUTHORIZED,
                "{\"errors\":[{\"code\":\"UNAUTHORIZED\"}]}",
            );
            refused
                .headers_mut()
                .insert("www-authenticate", challenge.parse().expect("plain text"));
            return refused;
        }
        let is_first = !self.asked.contains(&path);
        self.asked.push(path.clone());
        let Some((media_type, bytes)) = self.content.get(&path) else {
            return plain(
                StatusCode::NOT_FOUND,
                "{\"errors\":[{\"code\":\"MANIFEST_UNKNOWN\"}]}",
            );
        };
        if !path.contains("/blobs/") {
            return typed(media_type, bytes);
        }
        let range = request.headers().get(RANGE).and_then(|v| v.to_str().ok());
        let from = range.and_then(|r| r.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok());
        self.blob(bytes, from.unwrap_or(0), is_first)
    }

    fn blob(&self, bytes: &[u8], from: usize, is_first: bool) -> Response<Body> {
        let has = |fault| self.faults.contains(&fault);
        if has(Fault::Gone) {
            return plain(
                StatusCode::NOT_FOUND,
                "{\"errors\":[{\"code\":\"BLOB_UNKNOWN\"}]}",
            );
        }
        if has(Fault::Busy) && is_first {
            return plain(StatusCode::SERVICE_UNAVAILABLE, "later");
        }
        let (status, from) = match has(Fault::NoRanges) {
            true => (StatusCode::OK, 0),
            false => (StatusCode::PARTIAL_CONTENT, from),
        };
        let mut bytes = bytes.to_vec();
        if has(Fault::Wrong) {
            bytes[0] ^= 1;
        }
        let rest = Bytes::from(bytes.split_off(from));
        let body = match rest.len() {
            // Without ranges each answer must be longer than the last, or nothing would ever come.
            length
                if has(Fault::Cuts)
                    && length > CUT_BYTES
                    && (!has(Fault::NoRanges) || is_first) =>
            {
                let part = rest.slice(..CUT_BYTES);
                let first = stream::once(async { Ok(Frame::data(part)) });
                // The server sends what it has before it waits.
                let cut = stream::once(async {
                    tokio::task::yield_now().await;
                    Err(std::io::ErrorKind::ConnectionReset.into())
                });
                StreamBody::new(futures_util::StreamExt::chain(first, cut)).boxed()
            }
            _ if has(Fault::Endless) => {
                let more = stream::repeat_with(|| Ok(Frame::data(Bytes::from_static(&[0; 4096]))));
                let first = stream::iter([Ok(Frame::data(rest))]);
                StreamBody::new(futures_util::StreamExt::chain(first, more)).boxed()
            }
            _ => Full::new(rest).map_err(|never| match never {}).boxed(),
        };
        let mut answer = Response::new(body);
        *answer.status_mut() = status;
        answer
    }
}

fn digest(bytes: &[u8]) -> String {
    let hex: String = Sha256::digest(bytes)
        .iter()
        .map(|b| format!("{b:02x}"))
        .collect();
    format!("sha256:{hex}")
}

fn plain(status: StatusCode, text: &str) -> Response<Body> {
    let mut answer = typed("application/json", text.as_bytes());
    *answer.status_mut() = status;
    answer
}

fn typed(media_type: &str, bytes: &[u8]) -> Response<Body> {
    let body = Full::new(Bytes::copy_from_slice(bytes))
        .map_err(|never| match never {})
        .boxed();
    let mut answer = Response::new(body);
    answer
        .headers_mut()
        .insert("content-type", media_type.parse().expect("plain text"));
    answer
}
