//! A web server with TLS over a store directory, which the node reaches as 10.0.2.2, or under a name that somebody leads here.
//!
//! Owns: its certificate, and the authority that signed it. Refuses: being a good web server.

use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};

use crate::registry::pem;
use crate::store;

/// What the node calls this machine.
const HERE: &str = "10.0.2.2";

/// It serves until the test's process ends.
#[derive(Debug)]
pub struct TlsServer {
    /// For the node.
    pub url: String,
    /// In PEM.
    pub authority: String,
}

impl TlsServer {
    pub fn serve(directory: &Path) -> Result<Self> {
        Self::serve_as(HERE, directory)
    }

    /// `host`: the name or address that its certificate is for.
    pub fn serve_as(host: &str, directory: &Path) -> Result<Self> {
        let key = KeyPair::generate()?;
        let mut authority = CertificateParams::new([])?;
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let text = pem("CERTIFICATE", authority.self_signed(&key)?.der());
        let issuer = Issuer::new(authority, key);
        let key = KeyPair::generate()?;
        let own = CertificateParams::new([host.to_owned()])?;
        let certificate = own.signed_by(&key, &issuer)?;
        let secret = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let ring = Arc::new(rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(ring)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], secret)
            .context("the certificate that was just made")?;
        let (config, root) = (Arc::new(config), directory.to_owned());
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let url = format!("https://{host}:{}", listener.local_addr()?.port());
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (config, root) = (Arc::clone(&config), root.clone());
                std::thread::spawn(move || {
                    let connection = ServerConnection::new(config).ok()?;
                    let stream = StreamOwned::new(connection, stream);
                    let (gate, served) = (store::Gate::default(), store::Served::default());
                    store::answer(stream, &root, &gate, &served)
                });
            }
        });
        Ok(Self {
            url,
            authority: text,
        })
    }
}
