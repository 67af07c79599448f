//! Requests: the target, the envelope and what it holds, and HTTP behind the handshake.
//!
//! Owns: that nothing is accepted that was not signed, and that a connection ends whatever it says.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use ::api::answer::Answer;
use ::api::route::Route;
use ::api::server::{Body, Handler, Limits, serve_connection};
use ::api::{Begin, Client, ClientError, Envelope, SecretKey, tls};
use ::types::deployment::PAYLOAD_TYPE;
use ::types::mesh::{CARD_PAYLOAD_TYPE, MeshKey, Peer};
use ::types::site::SITE_PAYLOAD_TYPE;
use ::types::status::Refusal;
use ::types::{Digest, PublicKey};
use rustls::{ClientConfig, ServerConfig};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::Target;
use crate::choices::{Choices, Made};
use crate::peer;

pub(crate) const TARGETS: [Target; 7] = [
    Target {
        name: "api-answers",
        bytes_max: 4096,
        run: answers,
        seeds: replies,
    },
    Target {
        name: "api-card",
        bytes_max: 4096,
        run: card,
        seeds: || vec![a_card()],
    },
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
    let envelope = Envelope::seal(&owner(), SITE_PAYLOAD_TYPE, input);
    if let Ok(change) = envelope.open_site(|_| true) {
        change.check().expect("it was checked");
    }
}

/// What a node may have signed of itself, and what a statement then says of it.
fn card(input: &[u8]) {
    let node = SecretKey::from_seed([6; 32]);
    let envelope = Envelope::seal(&node, CARD_PAYLOAD_TYPE, input);
    assert!(envelope.open_card(|_| false).is_err());
    let Ok(card) = envelope.open_card(|key| *key == node.public()) else {
        return;
    };
    let Some(subnet) = card.subnets.first() else {
        return;
    };
    let peer = Peer {
        node: node.public(),
        key: card.key,
        subnet: *subnet,
        endpoints: Vec::new(),
        machines: Default::default(),
        card: String::from_utf8_lossy(&envelope.to_json()).into_owned(),
    };
    let of_it = card.node == node.public() && card.signer == owner().public();
    let of_it = of_it && card.deployment.as_str() == "shop" && card.network.as_str() == "net";
    let said = with_peer(&peer);
    let signed = Envelope::seal(&owner(), PAYLOAD_TYPE, &said).open_statement(|_| true);
    assert!(signed.is_err() || of_it, "a peer is who its card speaks of");
}

fn with_peer(peer: &Peer) -> Vec<u8> {
    let peer = serde_json::to_string(peer).expect("text keys");
    let network = format!(
        r#"{{"network":{{"subnet":"10.200.9.0/24","mesh":{{"port":51820,"peers":{{"n2":{peer}}}}}}}}}"#
    );
    let node = PublicKey([1; 32]);
    format!(
        r#"{{"node":"{node}","name":"shop","version":1,"action":{{"deploy":{{"workloads":{{"net":{network}}}}}}}}}"#
    )
    .into_bytes()
}

fn a_card() -> Vec<u8> {
    let (node, signer) = (SecretKey::from_seed([6; 32]).public(), owner().public());
    let key = MeshKey([7; 32]);
    format!(
        r#"{{"node":"{node}","signer":"{signer}","deployment":"shop","network":"net","key":"{key}","ports":[51820],"addresses":["192.0.2.7"],"subnets":["10.200.7.0/24"]}}"#
    )
    .into_bytes()
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

fn node() -> SecretKey {
    SecretKey::from_seed([9; 32])
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
        let node = node();
        let server = tls::server_config(&node).expect("a good key");
        let client = tls::client_config(&owner(), node.public()).expect("a good key");
        (server, client)
    })
}

/// The bytes of a client that has the owner's key, behind the handshake.
fn http(input: &[u8]) {
    peer::runtime().block_on(async {
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

/// The bytes of a node that somebody has taken over.
fn answers(input: &[u8]) {
    let mut choices = Choices(input);
    let (question, bytes) = (choices.u8(), choices.rest());
    peer::runtime().block_on(async {
        let address = peer::address().to_string();
        let client = Client::new(&address, node().public(), &owner()).expect("a good key");
        let node = async {
            let (server, _) = configurations();
            let acceptor = tokio_rustls::TlsAcceptor::from(Arc::clone(server));
            let stream = acceptor.accept(peer::accept().await).await;
            peer::say(stream.expect("both sides are ours"), bytes).await;
        };
        let asked = async {
            let outcome = ask(client, question).await;
            if let Err(ClientError::Refused { refusal }) = outcome {
                let odd = |c: char| c.is_control() && c != '\n';
                assert!(
                    !refusal.message.contains(odd),
                    "a terminal is not to be written on"
                );
            }
        };
        let both = async { tokio::join!(node, asked) };
        let ended = tokio::time::timeout(LIMITS.header, both).await;
        ended.expect("an answer ends with its connection");
    });
}

async fn ask(client: Client, question: u8) -> Result<(), ClientError> {
    let shop = "shop".parse().expect("a name");
    let digest = Digest([0xab; 32]);
    match question % 5 {
        0 => client.node_info().await.map(drop),
        1 => client.deployments().await.map(drop),
        2 => client
            .put_flist(digest, b"flist".as_slice().into())
            .await
            .map(drop),
        3 => client.deployment(&shop).await.map(drop),
        _ => {
            let mut lines = client.logs(&shop, &shop, false, Begin::Oldest).await?;
            while lines.next().await?.is_some() {}
            Ok(())
        }
    }
}

fn replies() -> Vec<Vec<u8>> {
    let status = r#"{"name":"shop","version":1,"desired":"running","durable":true,"workloads":{}}"#;
    let bodies = [
        (1, 200, format!("[{status}]")),
        (
            2,
            200,
            format!(r#"{{"missing":["{}"]}}"#, Digest([1; 32]).hex()),
        ),
        (3, 200, status.to_owned()),
        (
            3,
            404,
            r#"{"code":"not_found","message":"gone\u001b[2J"}"#.to_owned(),
        ),
        (
            4,
            200,
            "{\"seq\":0,\"time_ms\":1,\"stream\":\"stdout\",\"data\":\"aGk=\"}\n".to_owned(),
        ),
    ];
    bodies
        .map(|(question, status, body)| {
            let head = format!(
                "HTTP/1.1 {status} OK\r\ncontent-length: {}\r\n\r\n",
                body.len()
            );
            let made = Made::default().u8(question).raw(head.as_bytes());
            made.raw(body.as_bytes()).0
        })
        .to_vec()
}
