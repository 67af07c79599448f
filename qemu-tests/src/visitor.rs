//! Whoever asks for names of ingress from outside of a node, by ports of this machine that lead there.
//!
//! Owns: a certificate in files with the authority that signed it, one request in the clear, and the beginning of TLS.
//! Refuses: judging answers: tests do.

use std::fs;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::pki_types::CertificateDer;
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use crate::PATIENCE;
use crate::registry::pem;

/// A certificate for `host` in `<directory>/<file>.pem` with its key in `<file>.key`, and the authority that signed it.
pub fn certificate(directory: &Path, file: &str, host: &str) -> Result<CertificateDer<'static>> {
    let key = KeyPair::generate()?;
    let mut authority = CertificateParams::new([])?;
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let root = authority.self_signed(&key)?.der().clone();
    let issuer = Issuer::new(authority, key);
    let key = KeyPair::generate()?;
    let own = CertificateParams::new([host.to_owned()])?.signed_by(&key, &issuer)?;
    let write = |ending: &str, text: String| {
        let path = directory.join(format!("{file}.{ending}"));
        fs::write(&path, text).with_context(|| format!("write {}", path.display()))
    };
    write("pem", pem("CERTIFICATE", own.der()))?;
    write("key", pem("PRIVATE KEY", &key.serialize_der()))?;
    Ok(root)
}

/// The whole answer in the clear; less where the connection ends early. `more`: further fields, each with its end of line.
pub fn ask(port: u16, host: &str, path: &str, more: &str) -> io::Result<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(get(&mut stream, host, path, more))
}

/// The same on a connection, of which it is the last.
pub fn get(stream: &mut (impl Read + Write), host: &str, path: &str, more: &str) -> String {
    let request = format!("GET {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n{more}\r\n");
    let mut text = String::new();
    let _ = stream.write_all(request.as_bytes());
    // What is closed early is seen in what is missing.
    let _ = stream.read_to_string(&mut text);
    text
}

/// Who has answered.
pub fn who(answer: &str) -> Option<&str> {
    answer.split("this is ").nth(1)?.lines().next()
}

/// What a client trusts and offers.
pub fn trusting(roots: &[CertificateDer<'static>], protocols: &[&[u8]]) -> Result<ClientConfig> {
    let mut store = RootCertStore::empty();
    for root in roots {
        store.add(root.clone())?;
    }
    let ring = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(ring)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(store)
        .with_no_client_auth();
    config.alpn_protocols = protocols.iter().map(|p| p.to_vec()).collect();
    Ok(config)
}

/// A connection of TLS that was begun for this name.
pub fn tls(
    port: u16,
    name: &str,
    config: ClientConfig,
) -> io::Result<StreamOwned<ClientConnection, TcpStream>> {
    let name = name.to_owned().try_into().map_err(io::Error::other)?;
    let connection = ClientConnection::new(Arc::new(config), name).map_err(io::Error::other)?;
    let stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut stream = StreamOwned::new(connection, stream);
    stream.conn.complete_io(&mut stream.sock)?;
    Ok(stream)
}
