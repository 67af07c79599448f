//! Authorities that answer whatever the test says: what comes of each, and that none is asked for ever.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use http_body_util::Full;
use hyper::Response;
use proptest::prelude::*;

use super::*;
use crate::chain::tests::made;

const URL: &str = "https://ca.example/dir";

/// Answers by the path of the request: status and body.
#[derive(Default)]
struct Script {
    answers: BTreeMap<&'static str, (u16, String)>,
    asked: Mutex<Vec<String>>,
    count: AtomicUsize,
}

impl HttpClient for Script {
    fn request(
        &self,
        request: Request<BodyWrapper<Bytes>>,
    ) -> Pin<Box<dyn Future<Output = Result<BytesResponse, Error>> + Send>> {
        let path = request.uri().path().to_owned();
        self.count.fetch_add(1, Ordering::Relaxed);
        let mut asked = self.asked.lock().expect("no panic");
        let signs = asked.iter().any(|path| path == "/finalize");
        asked.push(path.clone());
        let now = match path.as_str() {
            "/order/1" if signs => "/order/1 then",
            path => path,
        };
        let (status, body) = match self.answers.get(now) {
            Some((status, body)) => (*status, body.clone()),
            None => (404, r#"{"type":"x","detail":"no such thing"}"#.to_owned()),
        };
        let answer = Response::builder()
            .status(status)
            .header("replay-nonce", "n1")
            .header("location", format!("https://ca.example{path}/1"))
            .body(Full::new(Bytes::from(body)))
            .expect("an answer");
        Box::pin(async move { Ok(answer.into()) })
    }
}

fn directory() -> String {
    let url = |path: &str| format!("https://ca.example/{path}");
    format!(
        r#"{{"newNonce":"{}","newAccount":"{}","newOrder":"{}"}}"#,
        url("nonce"),
        url("account"),
        url("order")
    )
}

fn order(state: &str, more: &str) -> String {
    format!(
        r#"{{"status":"{state}","identifiers":[{{"type":"dns","value":"shop.example"}}],
            "authorizations":["https://ca.example/authz"],"finalize":"https://ca.example/finalize"{more}}}"#
    )
}

fn proof(state: &str, kind: &str, token: &str, more: &str) -> String {
    format!(
        r#"{{"status":"{state}","identifier":{{"type":"dns","value":"shop.example"}},
            "challenges":[{{"type":"{kind}","url":"https://ca.example/proof","token":"{token}","status":"{state}"{more}}}]}}"#
    )
}

/// An authority that gives `chain`.
fn script(chain: &str) -> Script {
    let chain_at = r#","certificate":"https://ca.example/chain""#;
    let answers = [
        ("/dir", (200, directory())),
        ("/nonce", (200, String::new())),
        ("/account", (201, "{}".to_owned())),
        ("/order", (201, order("pending", ""))),
        ("/authz", (200, proof("pending", "http-01", "t0k_en-", ""))),
        (
            "/proof",
            (
                200,
                r#"{"type":"http-01","url":"x","token":"t","status":"pending"}"#.to_owned(),
            ),
        ),
        ("/order/1", (200, order("ready", ""))),
        ("/finalize", (200, order("processing", ""))),
        ("/order/1 then", (200, order("valid", chain_at))),
        ("/chain", (200, chain.to_owned())),
    ];
    Script {
        answers: answers.into(),
        ..Script::default()
    }
}

/// What came of it, what was served meanwhile, and how often it was asked.
struct Outcome {
    result: Result<Pair, OrderError>,
    served: Vec<(String, String)>,
    asked: usize,
}

fn try_order(script: Script) -> Outcome {
    let acme = Acme {
        directory: URL.to_owned(),
        ..Acme::default()
    };
    let script = Arc::new(script);
    let authority = Authority {
        acme: &acme,
        http: script.clone(),
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .expect("a runtime");
    let served = Mutex::new(Vec::new());
    let host = "shop.example".parse().expect("a host");
    let result = runtime.block_on(async {
        let account = authority.register().await?;
        let serve = async |token: String, answer: String| {
            served.lock().expect("no panic").push((token, answer));
            Ok(())
        };
        authority.order(&account, &host, 1_000, serve).await
    });
    Outcome {
        result,
        served: served.into_inner().expect("no panic"),
        asked: script.count.load(Ordering::Relaxed),
    }
}

fn with(path: &'static str, status: u16, body: &str) -> Script {
    let (chain, _) = made(&["shop.example"], 0, 2_000);
    let mut script = script(&chain);
    script.answers.insert(path, (status, body.to_owned()));
    script
}

fn error(script: Script) -> OrderError {
    try_order(script).result.expect_err("no certificate")
}

#[test]
fn the_proof_is_served_before_the_authority_looks_and_a_chain_for_another_key_is_none() {
    let (chain, _) = made(&["shop.example"], 0, 2_000);
    let outcome = try_order(script(&chain));
    let [(token, answer)] = &outcome.served[..] else {
        panic!("one proof, not {:?}", outcome.served)
    };
    assert_eq!(token, "t0k_en-");
    assert!(
        answer.starts_with("t0k_en-.") && answer.len() > 40,
        "{answer}"
    );
    let error = outcome.result.expect_err("the fake has no key of ours");
    assert!(matches!(error, OrderError::Key { .. }), "{error}");
}

#[test]
fn a_chain_that_serves_nobody_now_is_none() {
    let wrong = |chain: &str| error(script(chain)).to_string();
    let (other, _) = made(&["other.example"], 0, 2_000);
    assert!(wrong(&other).contains("not for shop.example"));
    let (old, _) = made(&["shop.example"], 0, 999);
    assert!(wrong(&old).contains("has expired"));
    assert!(wrong("hello").contains("0 certificates"));
}

#[test]
fn what_an_authority_says_is_told_with_what_to_do() {
    let problem = |word: &str, detail: &str| {
        format!(r#"{{"type":"urn:ietf:params:acme:error:{word}","detail":"{detail}"}}"#)
    };
    for (script, says) in [
        (with("/dir", 200, "<html>"), "as a directory of ACME does"),
        (
            with("/account", 400, &problem("externalAccountRequired", "who?")),
            "takes no account of this node: who?",
        ),
        (
            with(
                "/order",
                403,
                &problem("rejectedIdentifier", "a\\u001b[2Jb"),
            ),
            "refuses shop.example: a [2Jb",
        ),
        (
            with("/order", 400, &problem("accountDoesNotExist", "x")),
            "does not know this node's account",
        ),
        (
            with("/order", 429, &problem("rateLimited", "later")),
            "too many orders: later",
        ),
        (
            with("/authz", 200, &proof("pending", "dns-01", "t", "")),
            "does not offer http-01",
        ),
        (
            with("/authz", 200, &proof("pending", "http-01", "../x", "")),
            "stands in no path",
        ),
        (
            with("/authz", 200, &proof("pending", "http-01", "", "")),
            "stands in no path",
        ),
        (
            with("/authz", 200, &proof("invalid", "http-01", "t", "")),
            "does not offer http-01",
        ),
        (
            with("/proof", 400, &problem("connection", "refused")),
            "did not find this node under shop.example: refused",
        ),
    ] {
        let error = error(script).to_string();
        assert!(error.contains(says), "{says}: {error}");
    }
    let limited = error(with("/order", 429, &problem("rateLimited", "later")));
    assert_eq!(limited.failure(), Failure::Limited);
    let long = problem("malformed", &"x".repeat(5000));
    assert!(error(with("/order", 403, &long)).to_string().len() < 600);
}

#[test]
fn a_failed_look_at_the_node_is_told_in_the_authority_s_words() {
    let why = r#","error":{"type":"urn:ietf:params:acme:error:unauthorized","detail":"404 at http://shop.example/"}"#;
    let mut script = with("/order/1", 200, &order("invalid", ""));
    script
        .answers
        .insert("/authz", (200, proof("pending", "http-01", "t", why)));
    let error = error(script).to_string();
    assert!(
        error.contains("404 at http://shop.example/") && error.contains("port 80"),
        "{error}"
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn whatever_it_answers_there_is_an_error_and_an_end(
        path in prop::sample::select(vec!["/dir", "/nonce", "/account", "/order", "/authz", "/proof", "/order/1", "/finalize", "/chain"]),
        status in prop::sample::select(vec![200u16, 201, 301, 400, 404, 500]),
        body in prop_oneof![
            proptest::collection::vec(any::<u8>(), 0..100).prop_map(|bytes| String::from_utf8_lossy(&bytes).into_owned()),
            Just("{}".to_owned()),
            Just(order("ready", "")),
            Just(order("invalid", "")),
            Just(proof("valid", "http-01", "t", "")),
            Just(directory()),
        ],
    ) {
        let outcome = try_order(with(path, status, &body));
        prop_assert!(outcome.result.is_err());
        prop_assert!(outcome.asked < 30, "{}", outcome.asked);
        prop_assert!(outcome.served.iter().all(|(token, _)| is_token(token)));
    }
}
