//! Requests: the target, the envelope and what it holds, and HTTP behind the handshake.
//!
//! Owns: that nothing is accepted that was not signed, and that a connection ends whatever it says.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use ::api::answer::Answer;
use ::api::route::Route;
use ::api::server::{Body, Handler, Limits, serve_connection};
use ::api::{Envelope, SecretKey, tls};
use ::types::deployment::PAYLOAD_TYPE;
use ::types::status::Refusal;
use ::types::{Digest, PublicKey};
use rustls::{ClientConfig, ServerConfig};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::Target;
use crate::choices::{Choices, Made};

pub(crate) const TARGETS: [Target; 5] = [
    Target {
        name: "api-envelope",
        bytes_max: 4096,
        run: envelope,
        seeds: envelopes,
    },
    Target {
        name: "api-http",
        bytes_max: 4096,
        run: http,
        seeds: requests,
    },
    Target {
        name: "api-key",
        bytes_max: 256,
        run: key,
        seeds: || vec![owner().to_text().into_bytes()],
    },
    Target {
        name: "api-route",
        bytes_max: 512,
        run: route,
        seeds: routes,
    },
    Target {
        name: "api-statement",
        bytes_max: 4096,
        run: statement,
        seeds: statements,
    },
];

fn owner() -> SecretKey {
    SecretKey::from_seed([5; 32])
}

fn envelope(input: &[u8]) {
    let Ok(envelope) = Envelope::parse(input) else {
        return;
    };
    assert_eq!(
        Envelope::parse(&envelope.to_json()).ok(),
        Some(envelope.clone())
    );
    let mut asked = false;
    let opened = envelope.open_statement(|_| {
        asked = true;
        false
    });
    assert!(opened.is_err(), "nobody is trusted here");
    // Whoever is asked about has signed: the seeds' own key, no fuzzer's.
    if asked {
        assert_eq!(envelope.signatures[0].keyid, owner().public().to_string());
    }
}

fn envelopes() -> Vec<Vec<u8>> {
    let payloads = statements();
    let seal = |payload: &Vec<u8>| Envelope::seal(&owner(), PAYLOAD_TYPE, payload).to_json();
    payloads.iter().map(seal).collect()
}

/// What a signer may have signed.
fn statement(input: &[u8]) {
    let envelope = Envelope::seal(&owner(), PAYLOAD_TYPE, input);
    if let Ok(signed) = envelope.open_statement(|_| true) {
        assert_eq!(signed.payload, input);
        assert_eq!(signed.signer, owner().public());
        signed.statement.check().expect("it was checked");
    }
}

fn statements() -> Vec<Vec<u8>> {
    let (node, digest) = (PublicKey([1; 32]), Digest([2; 32]));
    let machine = format!(
        r#"{{"machine":{{"image":{{"flist":"{digest}"}},"ports":[{{"node":80,"machine":1}}]}}}}"#
    );
    let action = format!(r#"{{"deploy":{{"workloads":{{"web":{machine}}}}}}}"#);
    ["\"stop\"".to_owned(), action]
        .map(|action| {
            format!(r#"{{"node":"{node}","name":"shop","version":1,"action":{action}}}"#)
                .into_bytes()
        })
        .to_vec()
}

fn key(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else {
        return;
    };
    if let Ok(key) = SecretKey::from_text(text) {
        let again = SecretKey::from_text(&key.to_text()).expect("what is written is read");
        assert_eq!(key.seed(), again.seed());
    }
}

fn route(input: &[u8]) {
    let mut choices = Choices(input);
    let method = match choices.u8() % 4 {
        0 => "GET",
        1 => "PUT",
        2 => "POST",
        _ => "DELETE",
    };
    let method = method.parse().expect("a method");
    let Ok(target) = std::str::from_utf8(choices.rest()) else {
        return;
    };
    if let Ok(route) = Route::parse(&method, target) {
        assert_eq!(route.method(), method);
        assert_eq!(Route::parse(&method, &route.target()), Ok(route));
    }
}

fn routes() -> Vec<Vec<u8>> {
    let hex = Digest([0xab; 32]).hex();
    let all = [
        (0, "/v1/node".to_owned()),
        (0, "/v1/node/dmesg".to_owned()),
        (1, format!("/v1/flists/{hex}")),
        (1, format!("/v1/chunks/{hex}")),
        (2, "/v1/statements".to_owned()),
        (0, "/v1/deployments".to_owned()),
        (
            0,
            "/v1/deployments/shop?wait=running&timeout_ms=60000".to_owned(),
        ),
        (
            0,
            "/v1/deployments/shop/workloads/web/logs?follow=1&tail=10".to_owned(),
        ),
    ];
    let seed =
        |(method, target): &(u8, String)| Made::default().u8(*method).raw(target.as_bytes()).0;
    all.iter().map(seed).collect()
}

/// Reads each body to its end and answers with its length.
struct Reads;

impl Handler for Reads {
    fn authorise(&self, _key: &PublicKey, _route: &Route) -> Result<(), Refusal> {
        Ok(())
    }

    async fn handle(&self, _key: PublicKey, route: Route, body: Body) -> Answer {
        match body.collect().await {
            Ok(bytes) => {
                assert!(bytes.len() as u64 <= route.body_max());
                Answer::json(&bytes.len())
            }
            Err(refusal) => Answer::refuse(&refusal),
        }
    }
}

/// As on a node, where a slow machine must not look like a slow peer.
const LIMITS: Limits = Limits {
    handshake: Duration::from_secs(60),
    header: Duration::from_secs(60),
    ..Limits::NODE
};

/// Both sides' TLS, made once: keys and certificates cost more than a request.
fn configurations() -> &'static (Arc<ServerConfig>, Arc<ClientConfig>) {
    static MADE: OnceLock<(Arc<ServerConfig>, Arc<ClientConfig>)> = OnceLock::new();
    MADE.get_or_init(|| {
        let node = SecretKey::from_seed([9; 32]);
        let server = tls::server_config(&node).expect("a good key");
        let client = tls::client_config(&owner(), node.public()).expect("a good key");
        (server, client)
    })
}

/// The bytes of a client that has the owner's key, behind the handshake.
fn http(input: &[u8]) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let (server, client) = configurations();
        let (ours, theirs) = tokio::io::duplex(64 << 10);
        let address = ([127, 0, 0, 1], 1).into();
        let handler = Reads;
        let served = serve_connection(ours, address, Arc::clone(server), &handler, LIMITS);
        let asks = async {
            let connector = tokio_rustls::TlsConnector::from(Arc::clone(client));
            let stream = connector.connect(tls::server_name(), theirs).await;
            let mut stream = stream.expect("both sides are ours");
            // It may have hung up already, which is its right.
            let _ = stream.write_all(input).await;
            let _ = stream.shutdown().await;
            let mut answers = Vec::new();
            let _ = stream.read_to_end(&mut answers).await;
            answers
        };
        let both = async { tokio::join!(served, asks) };
        // The client says all it has and hangs up: no limit of time is reached.
        let ended = tokio::time::timeout(LIMITS.header, both).await;
        let (_, answers) = ended.expect("a connection ends");
        assert!(answers.is_empty() || answers.starts_with(b"HTTP/1."));
    });
}

fn requests() -> Vec<Vec<u8>> {
    let hex = Digest([0xab; 32]).hex();
    let texts = [
        "GET /v1/node HTTP/1.1\r\nhost: a\r\n\r\n".to_owned(),
        format!("PUT /v1/chunks/{hex} HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\nhello"),
        format!(
            "PUT /v1/flists/{hex} HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"
        ),
        "POST /v1/statements HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 2\r\n\r\n{}"
            .to_owned(),
        "GET /v1/deployments HTTP/1.1\r\nhost: a\r\n\r\nGET /v1/node HTTP/1.1\r\nhost: a\r\n\r\n".to_owned(),
    ];
    texts.into_iter().map(String::into_bytes).collect()
}
