//! Stores by way of a proxy: which form its requests have, who is asked without it, and who is blamed.
//!
//! Owns: a proxy that answers what it is told, and notes what it was asked. Refuses: machines elsewhere.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use types::Digest;
use types::proxy::exceptions;

use super::*;
use crate::{Object, Pool, Route};

const FLIST: Digest = Digest([9; 32]);
const FINE: &str = "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nfine";
const WANTS: &str =
    "HTTP/1.1 407 No\r\nProxy-Authenticate: Basic realm=\"x\"\r\nContent-Length: 2\r\n\r\nno";

/// Answers each request with the next of its answers, and the last again and again. It ends with the runtime.
struct Fake {
    port: u16,
    heads: Arc<Mutex<Vec<String>>>,
}

impl Fake {
    async fn start(answers: &[&str]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("listens");
        let port = listener.local_addr().expect("an address").port();
        let heads = Arc::<Mutex<Vec<String>>>::default();
        let (noted, mut answers) = (
            Arc::clone(&heads),
            answers.iter().map(|a| (*a).to_owned()).collect::<Vec<_>>(),
        );
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    match stream.read_u8().await {
                        Ok(byte) => head.push(byte),
                        Err(_) => break,
                    }
                }
                let head = String::from_utf8_lossy(&head).into_owned();
                noted
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .push(head);
                let answer = match answers.len() {
                    1 => answers[0].clone(),
                    _ => answers.remove(0),
                };
                if let Some(port) = answer.strip_prefix("tunnel to ") {
                    let mut to = TcpStream::connect(format!("127.0.0.1:{port}"))
                        .await
                        .expect("there");
                    stream
                        .write_all(b"HTTP/1.1 200 Connected\r\n\r\n")
                        .await
                        .expect("sent");
                    // Either end may close it.
                    let _ = copy_bidirectional(&mut stream, &mut to).await;
                    continue;
                }
                // Each connection has one request.
                let closing = answer.replacen("\r\n", "\r\nConnection: close\r\n", 1);
                let _ = stream.write_all(closing.as_bytes()).await;
            }
        });
        Self { port, heads }
    }

    fn heads(&self) -> Vec<String> {
        self.heads
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn egress(&self, login: &str, except: &[&str]) -> Egress {
        let proxy: proxy::Proxy = format!("http://{login}127.0.0.1:{}", self.port)
            .parse()
            .expect("a proxy");
        Egress::By(proxy.except(exceptions(except).expect("exceptions")))
    }
}

fn pool(egress: &Egress) -> Pool {
    let pool = Pool::of_a_node();
    pool.go_by(egress).expect("goes so");
    pool
}

async fn ask(pool: &Pool, url: &str) -> Result<Vec<u8>, StoreError> {
    let route = Route::parse(url, &|_| None).expect("a store");
    let set = pool.set(&[route], None).expect("opens");
    let store = set.stores().next().expect("one");
    store.whole(&FLIST, &Object::Flist(FLIST), 100).await
}

fn elsewhere(to: &str) -> String {
    format!("HTTP/1.1 302 There\r\nLocation: {to}\r\nContent-Length: 0\r\n\r\n")
}

#[tokio::test]
async fn what_is_in_the_clear_goes_by_the_whole_url_and_tls_through_a_tunnel_with_a_login_each() {
    let fake = Fake::start(&[FINE, "HTTP/1.1 403 No\r\n\r\n"]).await;
    let pool = pool(&fake.egress("node:secret@", &[]));
    assert_eq!(
        ask(&pool, "http://store.example/a").await.as_deref(),
        Ok(&b"fine"[..])
    );
    let error = ask(&pool, "https://store.example")
        .await
        .expect_err("no tunnel");
    let heads = fake.heads();
    assert!(
        heads[0].starts_with("GET http://store.example/a/0909"),
        "{}",
        heads[0]
    );
    assert!(
        heads[1].starts_with("CONNECT store.example:443 HTTP/1.1\r\n"),
        "{}",
        heads[1]
    );
    // printf node:secret | base64
    for head in heads {
        assert!(
            head.to_lowercase()
                .contains("proxy-authorization: basic bm9kztpzzwnyzxq="),
            "{head}"
        );
    }
    let (said, at) = (error.to_string(), format!("127.0.0.1:{}", fake.port));
    assert!(
        said.contains(&format!(
            "the proxy {at} does not connect to store.example:443"
        )),
        "{said}"
    );
    assert!(
        said.contains("sifr.proxy") && error.is_transient(),
        "{said}"
    );
}

#[tokio::test]
async fn a_proxy_that_wants_another_login_is_blamed_and_not_the_store_and_shows_no_password() {
    for url in ["http://store.example", "https://store.example"] {
        for (login, says) in [
            ("node:secret@", "refused the node's user or password"),
            ("", "has no password for it"),
        ] {
            let fake = Fake::start(&[WANTS]).await;
            let error = ask(&pool(&fake.egress(login, &[])), url)
                .await
                .expect_err("refused");
            let said = error.to_string();
            assert!(
                matches!(error, StoreError::Proxy { .. }) && said.contains(says),
                "{said}"
            );
            assert!(
                said.contains("sifr.proxy") && !said.contains("secret"),
                "{said}"
            );
        }
    }
}

#[tokio::test]
async fn a_proxy_that_is_not_there_is_blamed_and_an_answer_that_it_may_have_written_says_so() {
    let gone = Fake::start(&[FINE]).await;
    let free = TcpListener::bind("127.0.0.1:0").await.expect("listens");
    let port = free.local_addr().expect("an address").port();
    drop(free);
    let egress = Fake { port, ..gone }.egress("", &[]);
    for url in ["http://store.example", "https://store.example"] {
        let said = ask(&pool(&egress), url)
            .await
            .expect_err("nobody")
            .to_string();
        assert!(
            said.contains(&format!("the proxy 127.0.0.1:{port} does not answer")),
            "{said}"
        );
    }
    let fake = Fake::start(&["HTTP/1.1 503 Busy\r\nContent-Length: 3\r\n\r\nbad"]).await;
    let said = ask(&pool(&fake.egress("", &[])), "http://store.example")
        .await
        .expect_err("503");
    let said = said.to_string();
    assert!(
        said.contains("answers 503: bad (it came by way of the proxy"),
        "{said}"
    );
    // A store that is no proxy's, and wants a login for one.
    let store = Fake::start(&[WANTS]).await;
    let said = ask(
        &Pool::of_a_node(),
        &format!("http://127.0.0.1:{}", store.port),
    )
    .await;
    assert!(
        matches!(said, Err(StoreError::Status { status: 407, .. })),
        "{said:?}"
    );
}

#[tokio::test]
async fn an_error_of_a_proxy_has_a_bounded_length() {
    let long = format!(
        "HTTP/1.1 502 {}\r\nX: {}\r\n\r\n",
        "r".repeat(2000),
        "y".repeat(20_000)
    );
    let body = format!(
        "HTTP/1.1 502 Bad\r\nContent-Length: 90000\r\n\r\n{}",
        "z".repeat(90_000)
    );
    for (answer, url) in [
        (&long, "https://store.example"),
        (&body, "http://store.example"),
    ] {
        let fake = Fake::start(&[answer]).await;
        let said = ask(&pool(&fake.egress("", &[])), url)
            .await
            .expect_err("502")
            .to_string();
        assert!(said.len() < 1000, "{} {said}", said.len());
    }
}

#[tokio::test]
async fn where_a_redirection_leads_goes_its_own_way_with_the_login_that_is_its_own() {
    // By the proxy to another host by the proxy: who leaves the login behind is asked for one.
    let fake = Fake::start(&[&elsewhere("http://mirror.example/x"), FINE]).await;
    let through = pool(&fake.egress("node:secret@", &[]));
    assert_eq!(
        ask(&through, "http://store.example").await.as_deref(),
        Ok(&b"fine"[..])
    );
    let heads = fake.heads();
    assert!(
        heads[1].starts_with("GET http://mirror.example/x"),
        "{}",
        heads[1]
    );
    assert!(
        heads[1].to_lowercase().contains("proxy-authorization"),
        "{}",
        heads[1]
    );
    // By the proxy to one that is excepted: it is asked directly, and sees no login.
    let excepted = Fake::start(&[FINE]).await;
    let to = elsewhere(&format!("http://127.0.0.1:{}/y", excepted.port));
    let fake = Fake::start(&[&to]).await;
    let through = pool(&fake.egress("node:secret@", &["127.0.0.1"]));
    assert_eq!(
        ask(&through, "http://store.example").await.as_deref(),
        Ok(&b"fine"[..])
    );
    let heads = excepted.heads();
    assert!(heads[0].starts_with("GET /y HTTP/1.1"), "{}", heads[0]);
    assert!(!heads[0].to_lowercase().contains("proxy-"), "{}", heads[0]);
    // And back: whom the proxy does not reach stands in what is said.
    let store = Fake::start(&[&elsewhere("https://mirror.example/z")]).await;
    let refuses = Fake::start(&["HTTP/1.1 403 No\r\n\r\n"]).await;
    let through = pool(&refuses.egress("", &["127.0.0.1"]));
    let said = ask(&through, &format!("http://127.0.0.1:{}", store.port)).await;
    let said = said.expect_err("refused").to_string();
    assert!(
        said.contains("does not connect to mirror.example:443"),
        "{said}"
    );
    // One without an end.
    let round = Fake::start(&[&elsewhere("http://store.example/again")]).await;
    let said = ask(&pool(&round.egress("", &[])), "http://store.example").await;
    assert!(
        said.expect_err("round")
            .to_string()
            .contains("leads elsewhere too often")
    );
    assert_eq!(round.heads().len(), 4);
}

#[tokio::test]
async fn stores_that_are_open_go_another_way_from_the_word_on_and_none_while_it_is_unclear() {
    let (one, other) = (Fake::start(&[FINE]).await, Fake::start(&[FINE]).await);
    let pool = pool(&one.egress("", &[]));
    let route = Route::parse("http://store.example", &|_| None).expect("a store");
    let set = pool.set(&[route], None).expect("opens");
    let store = set.stores().next().expect("one");
    let object = Object::Flist(FLIST);
    store.whole(&FLIST, &object, 100).await.expect("by the one");
    pool.go_by(&other.egress("", &[])).expect("goes so");
    store
        .whole(&FLIST, &object, 100)
        .await
        .expect("by the other");
    assert_eq!((one.heads().len(), other.heads().len()), (1, 1));
    pool.go_by(&Egress::Unclear).expect("goes so");
    let error = store
        .whole(&FLIST, &object, 100)
        .await
        .expect_err("nobody is asked");
    assert!(
        error.to_string().contains("sifr.proxy cannot be read"),
        "{error}"
    );
    let near = Fake::start(&[FINE]).await;
    let asked = ask(&pool, &format!("http://127.0.0.1:{}", near.port)).await;
    assert!(asked.is_ok() && other.heads().len() == 1, "{asked:?}");
}

#[tokio::test]
async fn what_a_tunnel_leads_to_speaks_for_itself() {
    // No TLS at its end.
    let store = TcpListener::bind("127.0.0.1:0").await.expect("listens");
    let port = store.local_addr().expect("an address").port();
    tokio::spawn(async move {
        let (mut stream, _) = store.accept().await.expect("a connection");
        stream
            .write_all(b"HTTP/1.1 400 No\r\n\r\n")
            .await
            .expect("sent");
        // Until the client has gone.
        let _ = stream.read_to_end(&mut Vec::new()).await;
    });
    let fake = Fake::start(&[&format!("tunnel to {port}")]).await;
    let error = ask(&pool(&fake.egress("", &[])), "https://store.example")
        .await
        .expect_err("no TLS");
    let said = error.to_string();
    assert!(matches!(error, StoreError::Unreachable { .. }), "{said}");
    assert!(
        said.contains("store.example:443 by way of the proxy 127.0.0.1"),
        "{said}"
    );
}
