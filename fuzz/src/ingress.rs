//! Clients of names that lead to machines.
//!
//! Owns: that a machine hears one host and one address, and no length but the proxy's own, whatever a client sends.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use rustls::{ClientConfig, ClientConnection, RootCertStore};

use crate::Target;

pub(crate) const TARGETS: [Target; 2] = [
    Target {
        name: "ingress-head",
        bytes_max: 1024,
        run: head,
        seeds: heads,
    },
    Target {
        name: "ingress-hello",
        bytes_max: 4096,
        run: hello,
        seeds: hellos,
    },
];

const CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 7));

/// The first line is the request's target, each other one a field.
fn head(input: &[u8]) {
    let mut lines = input.split(|byte| *byte == b'\n');
    let Some(Ok(uri)) = lines.next().map(std::str::from_utf8) else {
        return;
    };
    let field = |line: &'_ [u8]| line.iter().position(|byte| *byte == b':');
    let fields = lines.filter_map(|line| {
        let (name, value) = line.split_at(field(line)?);
        Some((name, &value[1..]))
    });
    let fields: Vec<(&[u8], &[u8])> = fields.collect();
    let Some((host, heard)) = ::ingress::fuzz::forwarded(CLIENT, uri, &fields) else {
        return;
    };
    assert_eq!(host.as_str().parse(), Ok(host.clone()));
    let all = |wanted: &str| -> Vec<&[u8]> {
        let same = heard.iter().filter(|(name, _)| name == wanted);
        same.map(|(_, value)| value.as_slice()).collect()
    };
    for (name, value) in [
        ("host", host.as_str()),
        ("x-forwarded-host", host.as_str()),
        ("x-forwarded-for", "192.0.2.7"),
        ("x-forwarded-proto", "https"),
    ] {
        assert_eq!(all(name), [value.as_bytes()], "{name}");
    }
    for name in [
        "content-length",
        "transfer-encoding",
        "forwarded",
        "x-real-ip",
        "keep-alive",
    ] {
        assert!(all(name).is_empty(), "{name}");
    }
    assert!(all("connection").iter().all(|value| *value == b"upgrade"));
    assert!(all("cookie").len() < 2);
}

fn heads() -> Vec<Vec<u8>> {
    [
        "/a?b=c\nhost:shop.example:80\ncookie:a=1\ncookie:b=2\ncontent-length:5\nx-forwarded-for:10.0.0.1",
        "http://shop.example/x\nconnection:upgrade, x-mine\nupgrade:websocket\nx-mine:1\nte:trailers",
        "*\nhost:Shop.Example.\ntransfer-encoding:chunked\nforwarded:for=10.0.0.1\nx-real-ip:10.0.0.1",
    ]
    .map(|text| text.as_bytes().to_vec())
    .to_vec()
}

fn hello(input: &[u8]) {
    if let Some(host) = ::ingress::fuzz::hello(input) {
        assert_eq!(host.as_str().parse(), Ok(host.clone()));
    }
}

fn hellos() -> Vec<Vec<u8>> {
    let hello = |name: &'static str| {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_root_certificates(RootCertStore::empty())
            .with_no_client_auth();
        let name = name.try_into().expect("a name");
        let mut client = ClientConnection::new(Arc::new(config), name).expect("a client");
        let mut bytes = Vec::new();
        client.write_tls(&mut bytes).expect("written");
        bytes
    };
    ["shop.example", "10.0.0.1"].map(hello).to_vec()
}
