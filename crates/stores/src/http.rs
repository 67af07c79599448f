//! Requests to stores that speak HTTP.
//!
//! Owns: time limits, limits of lengths, which authorities are believed, and what an answer means for a store.
//! Refuses: where a redirection leads (`onward`), whom a proxy is asked for (`proxied`); proxies of the environment on a node;
//! URLs in messages: those of S3 are signed.

use std::sync::{Arc, Once, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use reqwest::{Certificate, Client, Method, RequestBuilder, Response, StatusCode, Url, redirect};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::{ClientConfig, RootCertStore};
use types::proxy::Egress;

use crate::onward::{self, REDIRECTS_MAX};
use crate::proxied;
use crate::sink::Sink;
use crate::store::Found;
use crate::{Object, StoreError};

/// To a store that answers at all, from anywhere on earth.
const CONNECT_MAX: Duration = Duration::from_secs(5);
/// The same by way of a proxy, which looks for it only then: twice the way.
const CONNECT_BY_PROXY_MAX: Duration = Duration::from_secs(10);
/// Longest silence: a disk may have to spin up.
const SILENCE_MAX: Duration = Duration::from_secs(15);
/// Longest time for one object, so that a store which sends a byte a second is given up.
const OBJECT_MAX: Duration = Duration::from_secs(300);
/// Idle connections kept per store: as many as there are requests at once.
const IDLE_MAX: usize = 8;
/// Idle connections are closed before most servers close them: 75 s for nginx, 60 s for S3's balancers.
const IDLE_KEPT: Duration = Duration::from_secs(50);
/// Of an error's text, for a person.
const SAID_BYTES_MAX: u64 = 300;
/// What is read of an error's text, to keep the connection.
const ERROR_BYTES_MAX: u64 = 64 << 10;

/// Whose certificates count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trust {
    /// The system's authorities, or `$SSL_CERT_FILE`; and its proxies.
    System,
    /// The public authorities that this program brings: a node has no others.
    Public,
}

/// A client for all stores that believe the same authorities.
#[derive(Debug)]
pub(crate) struct Http {
    trust: Trust,
    authority: Option<String>,
    /// Requests of several threads go out by it, and one word of the node replaces it.
    now: RwLock<Now>,
}

/// How requests go out.
#[derive(Debug, Clone)]
struct Now {
    client: Client,
    egress: Arc<Egress>,
}

impl Http {
    /// `authority`: more authorities, in PEM.
    pub(crate) fn new(
        trust: Trust,
        authority: Option<&str>,
        egress: &Egress,
    ) -> Result<Self, StoreError> {
        Ok(Self {
            trust,
            authority: authority.map(str::to_owned),
            now: RwLock::new(Now::make(trust, authority, egress)?),
        })
    }

    /// From now on. What is on its way ends as it began; no connection of before is used again.
    pub(crate) fn go_by(&self, egress: &Egress) -> Result<(), StoreError> {
        let next = Now::make(self.trust, self.authority.as_deref(), egress)?;
        *self.now.write().unwrap_or_else(PoisonError::into_inner) = next;
        Ok(())
    }

    fn now(&self) -> Now {
        let now = self.now.read();
        now.unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn request(&self, method: Method, url: Url) -> RequestBuilder {
        self.now().client.request(method, url)
    }

    /// Sends a request, and where its answer leads; whatever the last answer says.
    pub(crate) async fn send(
        &self,
        store: &str,
        request: RequestBuilder,
    ) -> Result<Response, StoreError> {
        let Now { client, egress } = self.now();
        let unreachable = |reason: String| StoreError::Unreachable {
            store: store.to_owned(),
            reason,
        };
        let mut request = request
            .build()
            .map_err(|e| unreachable(proxied::cause(e)))?;
        for _ in 0..=REDIRECTS_MAX {
            let url = request.url().clone();
            let way = egress.way(url.host_str().unwrap_or_default());
            proxied::may_ask(store, way)?;
            let asked = request.try_clone();
            let answer = client.execute(request).await;
            let answer = answer.map_err(|e| proxied::blame(store, way, &url, e))?;
            let answer = proxied::judge(store, way, answer)?;
            request = match onward::next(asked, &answer).map_err(unreachable)? {
                Some(next) => next,
                None => return Ok(answer),
            };
        }
        Err(unreachable("it leads elsewhere too often".to_owned()))
    }
}

impl Now {
    fn make(trust: Trust, authority: Option<&str>, egress: &Egress) -> Result<Self, StoreError> {
        static PROVIDER: Once = Once::new();
        // Where the program has chosen one already, that is it.
        PROVIDER.call_once(|| drop(rustls::crypto::ring::default_provider().install_default()));
        let wrong = |problem: String| StoreError::Location {
            text: "ca".to_owned(),
            problem,
        };
        let mut more = Vec::new();
        for certificate in CertificateDer::pem_slice_iter(authority.unwrap_or("").as_bytes()) {
            more.push(certificate.map_err(|e| wrong(format!("no certificate in PEM form: {e}")))?);
        }
        if more.is_empty() && authority.is_some() {
            return Err(wrong("no certificate in PEM form".to_owned()));
        }
        let connect = match egress {
            Egress::By(_) => CONNECT_BY_PROXY_MAX,
            Egress::Direct | Egress::Unclear => CONNECT_MAX,
        };
        let builder = Client::builder()
            .user_agent("sifr")
            .connect_timeout(connect)
            .read_timeout(SILENCE_MAX)
            .timeout(OBJECT_MAX)
            .pool_max_idle_per_host(IDLE_MAX)
            .pool_idle_timeout(IDLE_KEPT)
            .redirect(redirect::Policy::none());
        let builder = match trust {
            Trust::System => {
                let more: Result<Vec<_>, _> =
                    more.iter().map(|der| Certificate::from_der(der)).collect();
                builder.tls_certs_merge(more.map_err(|e| wrong(proxied::cause(e)))?)
            }
            Trust::Public => {
                let mut roots = RootCertStore::empty();
                roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
                for der in more {
                    let added = roots.add(der);
                    added.map_err(|e| wrong(format!("no authority: {e}")))?;
                }
                let ring = Arc::new(rustls::crypto::ring::default_provider());
                let config = ClientConfig::builder_with_provider(ring)
                    .with_safe_default_protocol_versions()
                    .map_err(|e| wrong(e.to_string()))?
                    .with_root_certificates(roots)
                    .with_no_client_auth();
                proxied::client(builder.tls_backend_preconfigured(config), egress)
            }
        };
        let client = builder.build().map_err(|e| wrong(proxied::cause(e)))?;
        Ok(Self {
            client,
            egress: Arc::new(egress.clone()),
        })
    }
}

fn unreachable(store: &str, error: reqwest::Error) -> StoreError {
    StoreError::Unreachable {
        store: store.to_owned(),
        reason: proxied::cause(error),
    }
}

/// The answer, if it is a good one.
pub(crate) async fn good(
    store: &str,
    object: &(dyn std::fmt::Display + Sync),
    advice: &'static str,
    response: Response,
) -> Result<Response, StoreError> {
    let (store, status) = (store.to_owned(), response.status());
    let by = proxied::came_by(&response);
    match status {
        _ if status.is_success() => Ok(response),
        StatusCode::NOT_FOUND => Err(StoreError::NotFound {
            store,
            object: object.to_string(),
        }),
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Err(StoreError::Denied {
            said: format!("{}{}{by}", status.as_u16(), said(response).await),
            store,
            advice,
        }),
        _ => Err(StoreError::Status {
            said: said(response).await + &by,
            store,
            status: status.as_u16(),
        }),
    }
}

/// The beginning of an error's text, on one line, with a colon before it.
async fn said(response: Response) -> String {
    let mut text = Vec::new();
    let mut sink = Sink::memory(ERROR_BYTES_MAX, &mut text);
    // What came until it broke off is as good.
    let _ = stream("", &"", response, &mut sink).await;
    drop(sink);
    let text = String::from_utf8_lossy(&text);
    let plain = |c: char| if c.is_control() { ' ' } else { c };
    let text: String = text.chars().map(plain).collect();
    let limit = usize::try_from(SAID_BYTES_MAX).unwrap_or(usize::MAX);
    match text.trim() {
        "" => String::new(),
        text => format!(": {}", text.chars().take(limit).collect::<String>()),
    }
}

/// Gives the body to `sink`.
pub(crate) async fn stream(
    store: &str,
    object: &(dyn std::fmt::Display + Sync),
    mut response: Response,
    sink: &mut Sink<'_>,
) -> Result<(), StoreError> {
    if let Some(said) = response.content_length() {
        sink.announce(&store, object, said)?;
    }
    while let Some(piece) = response.chunk().await.map_err(|e| unreachable(store, e))? {
        sink.push(&store, object, &piece)?;
    }
    Ok(())
}

/// Gives an object to `sink`, as the answer to a request that needs no second try.
pub(crate) async fn fetch(
    http: &Http,
    store: &str,
    object: &Object,
    advice: &'static str,
    request: RequestBuilder,
    sink: &mut Sink<'_>,
) -> Result<(), StoreError> {
    let response = http.send(store, request).await?;
    let response = good(store, object, advice, response).await?;
    stream(store, object, response, sink).await
}

/// The whole body in memory.
pub(crate) async fn whole(
    store: &str,
    object: &(dyn std::fmt::Display + Sync),
    response: Response,
    limit: u64,
) -> Result<Vec<u8>, StoreError> {
    let mut body = Vec::new();
    stream(store, object, response, &mut Sink::memory(limit, &mut body)).await?;
    Ok(body)
}

/// What a request without a body says of an object; `None`: it is not there.
pub(crate) async fn find(
    http: &Http,
    store: &str,
    object: &Object,
    advice: &'static str,
    request: RequestBuilder,
) -> Result<Option<Found>, StoreError> {
    let response = http.send(store, request).await?;
    let response = match good(store, object, advice, response).await {
        Err(StoreError::NotFound { .. }) => return Ok(None),
        other => other?,
    };
    let header = |name: &str| response.headers().get(name)?.to_str().ok();
    let time = |text: &str| jiff::fmt::rfc2822::parse(text).ok();
    Ok(Some(Found {
        bytes: header("content-length").and_then(|text| text.parse().ok()),
        modified: header("last-modified")
            .and_then(time)
            .map(|zoned| SystemTime::from(zoned.timestamp())),
    }))
}

/// RFC 7617.
pub(crate) fn basic(user: &str, password: &str) -> String {
    use base64::prelude::{BASE64_STANDARD, Engine as _};
    format!(
        "Basic {}",
        BASE64_STANDARD.encode(format!("{user}:{password}"))
    )
}
