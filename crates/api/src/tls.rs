//! TLS 1.3 between pinned keys.
//!
//! Owns: the self-signed certificate around a key, both sides' configuration, the key of a peer.
//! Refuses: TLS 1.2, session resumption, any key but ed25519, a server other than the pinned one, and a
//! client without a certificate. Names, dates and issuers are not looked at: the key is the identity.

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{NoServerSessionStorage, ParsedCertificate};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, OtherError,
    ServerConfig, SignatureScheme,
};
use types::PublicKey;

use crate::sign::{self, SecretKey};

/// The one protocol inside: what a browser's h2 offers is not spoken.
const ALPN: &[u8] = b"http/1.1";
/// Name in every certificate and every client hello. It identifies nothing.
const NAME: &str = "sifr";
/// PKCS #8 (RFC 8410) around a 32-byte ed25519 seed.
const PKCS8_PREFIX: [u8; 16] = [
    0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20,
];
/// SubjectPublicKeyInfo (RFC 8410) around a 32-byte ed25519 public key.
const SPKI_PREFIX: [u8; 12] = [
    0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00,
];
/// Bytes of base64 in a PEM line (RFC 7468).
const PEM_LINE: usize = 64;

#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("cannot make a certificate for the key {key}")]
    Certificate {
        key: PublicKey,
        #[source]
        source: rcgen::Error,
    },
    #[error("cannot configure TLS with the key {key}")]
    Configure {
        key: PublicKey,
        #[source]
        source: rustls::Error,
    },
}

/// The server proved to have another key than the pinned one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("expected the node's key {expected}, found {found}")]
pub struct WrongKey {
    pub expected: PublicKey,
    pub found: PublicKey,
}

/// Certificate and key as text, for `curl --cert … --key …`.
pub struct Pem {
    pub certificate: String,
    /// The secret.
    pub key: String,
}

impl std::fmt::Debug for Pem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pem")
            .field("certificate", &self.certificate)
            .finish_non_exhaustive()
    }
}

/// The key as rcgen wants to see it.
struct Subject<'a> {
    secret: &'a SecretKey,
    public: [u8; 32],
}

impl rcgen::PublicKeyData for Subject<'_> {
    fn der_bytes(&self) -> &[u8] {
        &self.public
    }
    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        &rcgen::PKCS_ED25519
    }
}

impl rcgen::SigningKey for Subject<'_> {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        Ok(self.secret.sign(message).to_vec())
    }
}

/// The key's certificate. The same key gives the same bytes: dates are fixed (rcgen's 1975 to 4096), the
/// serial number comes from the key, the signature is deterministic.
pub fn certificate(key: &SecretKey) -> Result<CertificateDer<'static>, TlsError> {
    let error = |source| TlsError::Certificate {
        key: key.public(),
        source,
    };
    let subject = Subject {
        secret: key,
        public: key.public().0,
    };
    let mut parameters = rcgen::CertificateParams::new(vec![NAME.to_owned()]).map_err(error)?;
    parameters.distinguished_name = rcgen::DistinguishedName::new();
    parameters
        .distinguished_name
        .push(rcgen::DnType::CommonName, key.public().to_string());
    // curl and openssl treat the certificate as its own issuer.
    parameters
        .self_signed(&subject)
        .map(|certificate| certificate.der().clone())
        .map_err(error)
}

/// Certificate and secret key in PEM.
pub fn pem(key: &SecretKey) -> Result<Pem, TlsError> {
    let block = |label: &str, der: &[u8]| {
        let text = STANDARD.encode(der);
        let lines = text.as_bytes().chunks(PEM_LINE).map(|line| {
            std::str::from_utf8(line)
                .expect("base64 is ASCII")
                .to_owned()
                + "\n"
        });
        format!(
            "-----BEGIN {label}-----\n{}-----END {label}-----\n",
            lines.collect::<String>()
        )
    };
    Ok(Pem {
        certificate: block("CERTIFICATE", &certificate(key)?),
        key: block("PRIVATE KEY", private_key(key).secret_der()),
    })
}

fn private_key(key: &SecretKey) -> PrivateKeyDer<'static> {
    let der = [PKCS8_PREFIX.as_slice(), key.seed()].concat();
    PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(der))
}

/// A server that any holder of an ed25519 key may speak to: which keys may do what is asked per request.
pub fn server_config(key: &SecretKey) -> Result<Arc<ServerConfig>, TlsError> {
    let error = |source| TlsError::Configure {
        key: key.public(),
        source,
    };
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = AnyClient {
        algorithms: provider.signature_verification_algorithms,
    };
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(error)?
        .with_client_cert_verifier(Arc::new(verifier))
        .with_single_cert(vec![certificate(key)?], private_key(key))
        .map_err(error)?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

/// A client that speaks to the node with exactly this key.
pub fn client_config(key: &SecretKey, node: PublicKey) -> Result<Arc<ClientConfig>, TlsError> {
    let error = |source| TlsError::Configure {
        key: key.public(),
        source,
    };
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = client_builder(provider, node)
        .map_err(error)?
        .with_client_auth_cert(vec![certificate(key)?], private_key(key))
        .map_err(error)?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}

type WantsClientCert = rustls::ConfigBuilder<ClientConfig, rustls::client::WantsClientCert>;

fn client_builder(
    provider: Arc<CryptoProvider>,
    node: PublicKey,
) -> Result<WantsClientCert, rustls::Error> {
    let verifier = PinnedServer {
        node,
        algorithms: provider.signature_verification_algorithms,
    };
    Ok(ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier)))
}

/// The name that a client says hello to.
pub fn server_name() -> ServerName<'static> {
    ServerName::try_from(NAME).expect("the constant is a DNS name")
}

/// The key that the peer proved to have in the handshake.
pub fn peer_key(certificates: Option<&[CertificateDer<'_>]>) -> Option<PublicKey> {
    certificate_key(certificates?.first()?).ok()
}

/// The ed25519 key of a certificate.
fn certificate_key(certificate: &CertificateDer<'_>) -> Result<PublicKey, rustls::Error> {
    let parsed = ParsedCertificate::try_from(certificate)?;
    let spki = parsed.subject_public_key_info();
    spki.strip_prefix(SPKI_PREFIX.as_slice())
        .and_then(|key| key.try_into().ok())
        .map(PublicKey)
        .filter(sign::is_sound)
        .ok_or(rustls::Error::InvalidCertificate(
            CertificateError::BadEncoding,
        ))
}

fn no_tls12() -> rustls::Error {
    rustls::Error::General("TLS 1.2 is not spoken here".to_owned())
}

#[derive(Debug)]
struct AnyClient {
    algorithms: WebPkiSupportedAlgorithms,
}

impl ClientCertVerifier for AnyClient {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        certificate_key(end_entity).map(|_| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(no_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }
}

#[derive(Debug)]
struct PinnedServer {
    node: PublicKey,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for PinnedServer {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let found = certificate_key(end_entity)?;
        if found == self.node {
            return Ok(ServerCertVerified::assertion());
        }
        let wrong = OtherError(Arc::new(WrongKey {
            expected: self.node,
            found,
        }));
        Err(rustls::Error::InvalidCertificate(CertificateError::Other(
            wrong,
        )))
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(no_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_is_the_same_each_time_and_yields_its_key() {
        let key = SecretKey::from_seed([9; 32]);
        let first = certificate(&key).expect("a certificate");
        assert_eq!(certificate(&key).expect("a certificate"), first);
        assert_eq!(peer_key(Some(&[first])), Some(key.public()));
        assert_eq!(peer_key(Some(&[])), None);
        assert_eq!(peer_key(None), None);
    }

    #[test]
    fn a_certificate_of_another_kind_of_key_is_refused() {
        let pair =
            rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).expect("a key pair");
        let parameters = rcgen::CertificateParams::new(vec![NAME.to_owned()]).expect("parameters");
        let der = parameters
            .self_signed(&pair)
            .expect("a certificate")
            .der()
            .clone();
        assert!(certificate_key(&der).is_err());
        assert!(certificate_key(&CertificateDer::from(vec![0; 40])).is_err());
    }

    #[test]
    fn both_sides_can_be_configured() {
        let key = SecretKey::from_seed([9; 32]);
        assert!(server_config(&key).is_ok());
        assert!(client_config(&key, key.public()).is_ok());
        let pem = pem(&key).expect("PEM");
        assert!(
            pem.key
                .starts_with("-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEI")
        );
        assert!(!format!("{pem:?}").contains("PRIVATE"));
    }
}
