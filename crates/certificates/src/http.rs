//! Requests to an authority.
//!
//! Owns: whom is believed, time limits, and limits of what is read. Refuses: anything but https, redirections, connections that are kept,
//! and more than [`REQUESTS_MAX`] requests.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1;
use hyper::header::{HOST, HeaderValue};
use hyper::{Request, Response, Uri};
use hyper_util::rt::TokioIo;
use instant_acme::{BodyWrapper, BytesResponse, HttpClient};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

/// To one address, handshake included.
const CONNECT_MAX: Duration = Duration::from_secs(10);
/// Addresses of an authority that are tried: a few of each family.
const ADDRESSES_MAX: usize = 4;
/// One answer, whole: authorities with a distant signing service take some seconds.
const ANSWER_WAIT: Duration = Duration::from_secs(30);
/// Of an answer's head.
const HEAD_BYTES_MAX: usize = 16 << 10;
/// Of its body: a chain has at most 24 KiB, everything else a few.
const BODY_BYTES_MAX: usize = 64 << 10;
/// Requests of one order. It takes some twelve; an authority that always says "not yet" is not asked for ever.
pub(crate) const REQUESTS_MAX: usize = 64;
/// HTTPS, where a URL names no port.
const PORT: u16 = 443;

#[derive(Debug, thiserror::Error)]
pub(crate) enum HttpError {
    #[error("{0} is no URL with https")]
    Url(String),
    #[error("it has been asked {REQUESTS_MAX} times for one certificate, and there is none")]
    TooOften,
    #[error("its name {name} has no address")]
    Resolve { name: String, source: io::Error },
    #[error("no connection with {name}")]
    Connect { name: String, source: io::Error },
    #[error("no TLS with {name}")]
    Tls { name: String, source: io::Error },
    #[error("{name} has not answered within {} seconds", ANSWER_WAIT.as_secs())]
    Slow { name: String },
    #[error("the answer of {name} broke off, or is longer than {BODY_BYTES_MAX} bytes")]
    Answer {
        name: String,
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// A client for one directory.
pub(crate) struct Http {
    tls: TlsConnector,
    asked: Arc<AtomicUsize>,
}

impl Http {
    /// `ca`: authorities in PEM form, beside the public ones.
    pub(crate) fn new(ca: Option<&str>) -> Result<Self, String> {
        let mut roots = RootCertStore::empty();
        roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
        let before = roots.len();
        for certificate in CertificateDer::pem_slice_iter(ca.unwrap_or("").as_bytes()) {
            let certificate = certificate.map_err(|e| format!("ca is not PEM: {e}"))?;
            let added = roots.add(certificate);
            added.map_err(|e| format!("ca has no authority: {e}"))?;
        }
        if ca.is_some() && roots.len() == before {
            return Err("ca has no certificate in PEM form".to_owned());
        }
        let ring = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(ring)
            .with_safe_default_protocol_versions()
            .map_err(|e| e.to_string())?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Self {
            tls: TlsConnector::from(Arc::new(config)),
            asked: Arc::default(),
        })
    }
}

impl HttpClient for Http {
    fn request(
        &self,
        request: Request<BodyWrapper<hyper::body::Bytes>>,
    ) -> Pin<Box<dyn Future<Output = Result<BytesResponse, instant_acme::Error>> + Send>> {
        let (tls, asked) = (self.tls.clone(), self.asked.clone());
        Box::pin(async move {
            let answer = ask(&tls, &asked, request).await;
            answer.map_err(|error| instant_acme::Error::Other(Box::new(error)))
        })
    }
}

async fn ask(
    tls: &TlsConnector,
    asked: &AtomicUsize,
    mut request: Request<BodyWrapper<hyper::body::Bytes>>,
) -> Result<BytesResponse, HttpError> {
    if asked.fetch_add(1, Ordering::Relaxed) >= REQUESTS_MAX {
        return Err(HttpError::TooOften);
    }
    let url = request.uri().clone();
    let wrong = || HttpError::Url(url.to_string().chars().take(200).collect());
    let secure = url.scheme_str() == Some("https");
    let authority = url.authority().filter(|_| secure).ok_or_else(wrong)?;
    let name = authority.host().trim_matches(['[', ']']).to_owned();
    let port = authority.port_u16().unwrap_or(PORT);
    let server = ServerName::try_from(name.clone()).map_err(|_| wrong())?;
    let path = url.path_and_query().map_or("/", |path| path.as_str());
    let host = HeaderValue::from_str(authority.as_str()).map_err(|_| wrong())?;
    *request.uri_mut() = path.parse::<Uri>().map_err(|_| wrong())?;
    request.headers_mut().insert(HOST, host);
    let stream = connect(&name, port).await?;
    let failed = |source| HttpError::Tls {
        name: name.clone(),
        source,
    };
    let shaken = timeout(CONNECT_MAX, tls.connect(server, stream)).await;
    let stream = shaken
        .map_err(|_| failed(io::ErrorKind::TimedOut.into()))?
        .map_err(failed)?;
    let broken = |source| HttpError::Answer {
        name: name.clone(),
        source,
    };
    let (mut sender, connection) = http1::Builder::new()
        .max_buf_size(HEAD_BYTES_MAX)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(|e| broken(e.into()))?;
    // Ends with this request.
    let mut driver = JoinSet::new();
    driver.spawn(connection);
    let answer = async {
        let answer = sender.send_request(request).await;
        let (parts, body) = answer.map_err(|e| broken(e.into()))?.into_parts();
        let body = Limited::new(body, BODY_BYTES_MAX).collect().await;
        let body = Full::new(body.map_err(broken)?.to_bytes());
        Ok(Response::from_parts(parts, body).into())
    };
    let answer = timeout(ANSWER_WAIT, answer).await;
    answer.map_err(|_| HttpError::Slow { name: name.clone() })?
}

/// The first of a name's addresses that answers.
async fn connect(name: &str, port: u16) -> Result<TcpStream, HttpError> {
    let unknown = |source| HttpError::Resolve {
        name: name.to_owned(),
        source,
    };
    let found = timeout(CONNECT_MAX, tokio::net::lookup_host((name, port))).await;
    let found = found
        .map_err(|_| unknown(io::ErrorKind::TimedOut.into()))?
        .map_err(unknown)?;
    let mut last = io::Error::from(io::ErrorKind::NotFound);
    for address in found.take(ADDRESSES_MAX) {
        match timeout(CONNECT_MAX, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => last = error,
            Err(_) => last = io::ErrorKind::TimedOut.into(),
        }
    }
    Err(HttpError::Connect {
        name: name.to_owned(),
        source: last,
    })
}
