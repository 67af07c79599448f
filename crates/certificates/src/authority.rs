//! An authority that speaks ACME: an account there, and one order.
//!
//! Owns: the order of the steps, their bounds, and what a person is told of each that fails.
//! Refuses: believing the authority beyond what its chain says of itself: a chain that is not for the name, not for the key or not of now is none.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use hyper::Request;
use hyper::body::Bytes;
use instant_acme::{
    Account, AccountBuilder, AuthorizationStatus, BodyWrapper, BytesResponse, ChallengeType, Error,
    HttpClient, Identifier, NewAccount, NewOrder, OrderStatus, Problem, RetryPolicy,
};
use types::ingress::{Acme, Host};

use crate::chain::{Chain, ChainError};
use crate::http::{Http, HttpError};
use crate::plan::Failure;

/// How long an order may take, from the directory to the chain: authorities look from several places, and some sign in the background.
const ORDER_WAIT: Duration = Duration::from_secs(300);
/// How long an authority may look at the node, and how long it may sign.
const STEP_WAIT: Duration = Duration::from_secs(120);
/// Between two questions after it, at first. Authorities of tests answer at once.
const ASK: Duration = Duration::from_millis(if cfg!(test) { 1 } else { 500 });
const ASK_LONGER: f32 = 1.5;
/// Proofs of one order. It has one name.
const PROOFS_MAX: usize = 2;
/// Longest token. RFC 8555 section 8.3 asks for 22 letters at least.
const TOKEN_MAX: usize = 128;
/// Longest key that is kept of an account, with what stands beside it.
const ACCOUNT_BYTES_MAX: usize = 8 << 10;
/// Of what an authority says, for a person.
const SAID_MAX: usize = 300;

/// A chain and its key, both in PEM form.
#[derive(Clone, PartialEq, Eq)]
pub struct Pair {
    pub certificate: String,
    pub key: String,
}

impl std::fmt::Debug for Pair {
    /// Shows no secret.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Pair")
    }
}

/// Why there is no certificate, and what to do next.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OrderError {
    #[error(
        "the authority {directory} is not reached: {why}: see to it that the URL is right and that the node reaches it (`sifr node routes`)"
    )]
    Unreached { directory: String, why: String },
    #[error(
        "the authority {directory} shows a certificate that is not believed: {why}: name whoever signed that with `ca`"
    )]
    Unbelieved { directory: String, why: String },
    #[error("the authority {directory} cannot be asked: {why}: correct `ca`")]
    Unusable { directory: String, why: String },
    #[error(
        "{directory} does not answer as a directory of ACME does: {why}: see to it that the URL is right"
    )]
    Strange { directory: String, why: String },
    #[error(
        "the authority {directory} takes no account of this node: {said}: see to it that it is open to all, and `contact` right"
    )]
    Account { directory: String, said: String },
    #[error(
        "the authority {directory} does not know this node's account, which it has just made: order elsewhere, or ask whoever runs it"
    )]
    Forgotten { directory: String },
    #[error(
        "the authority {directory} has had too many orders: {said}: nothing is to be done but to wait"
    )]
    Limited { directory: String, said: String },
    #[error("the authority {directory} refuses {host}: {said}")]
    Refused {
        directory: String,
        host: Host,
        said: String,
    },
    #[error(
        "the authority {directory} does not offer http-01 for {host}: choose another authority, or bring a certificate"
    )]
    NoProof { directory: String, host: Host },
    #[error(
        "the authority did not find this node under {host}: {said}: have the name's A and AAAA records lead here alone, and TCP port 80 be reached from where the authority is"
    )]
    Unproven { host: Host, said: String },
    #[error("the proof for {host} is not served: {why}: look at `sifr node dmesg`")]
    Unserved { host: Host, why: String },
    #[error("the authority {directory} was not done within {} seconds", .wait.as_secs())]
    Slow { directory: String, wait: Duration },
    #[error("the certificate of {directory} for {host} cannot be used: {why}")]
    Chain {
        directory: String,
        host: Host,
        why: ChainError,
    },
    #[error(
        "the certificate of {directory} for {host} is not for the key that it was ordered with"
    )]
    Key { directory: String, host: Host },
}

impl OrderError {
    pub fn failure(&self) -> Failure {
        match self {
            Self::Limited { .. } => Failure::Limited,
            _ => Failure::Any,
        }
    }
}

/// An authority, for one order.
pub struct Authority<'a> {
    acme: &'a Acme,
    http: Arc<dyn HttpClient>,
}

/// The same client for each step.
struct Same(Arc<dyn HttpClient>);

impl HttpClient for Same {
    fn request(
        &self,
        request: Request<BodyWrapper<Bytes>>,
    ) -> Pin<Box<dyn Future<Output = Result<BytesResponse, Error>> + Send>> {
        self.0.request(request)
    }
}

impl std::fmt::Debug for Authority<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Authority({})", self.acme.directory)
    }
}

/// What others say, short and without what paints a screen.
fn said(text: impl std::fmt::Display) -> String {
    let text = text.to_string();
    let plain = text.chars().map(|c| if c.is_control() { ' ' } else { c });
    plain.take(SAID_MAX).collect()
}

/// An error with its causes.
fn chained(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text += &format!(": {cause}");
        source = cause.source();
    }
    said(text)
}

fn words(problem: &Problem) -> String {
    let detail = problem.detail.as_deref();
    said(detail.or(problem.r#type.as_deref()).unwrap_or("no reason"))
}

fn is(problem: &Problem, word: &str) -> bool {
    let kind = problem.r#type.as_deref().unwrap_or_default();
    kind.strip_prefix("urn:ietf:params:acme:error:") == Some(word)
}

impl<'a> Authority<'a> {
    pub fn new(acme: &'a Acme) -> Result<Self, OrderError> {
        let http = Http::new(acme.ca.as_deref());
        let directory = acme.directory.clone();
        let http = http.map_err(|why| OrderError::Unusable { directory, why })?;
        let http = Arc::new(http);
        Ok(Self { acme, http })
    }

    fn client(&self) -> AccountBuilder {
        Account::builder_with_http(Box::new(Same(self.http.clone())))
    }

    fn directory(&self) -> String {
        self.acme.directory.clone()
    }

    /// What went wrong where nothing was refused.
    fn failed(&self, error: Error) -> OrderError {
        let directory = self.directory();
        match error {
            Error::Api(problem) if is(&problem, "rateLimited") => OrderError::Limited {
                directory,
                said: words(&problem),
            },
            Error::Api(problem) => OrderError::Strange {
                directory,
                why: words(&problem),
            },
            Error::Timeout(_) => OrderError::Slow {
                directory,
                wait: STEP_WAIT,
            },
            Error::Other(error) => {
                let why = chained(error.as_ref());
                match error.downcast_ref::<HttpError>() {
                    Some(HttpError::Tls { source, .. }) if is_doubt(source) => {
                        OrderError::Unbelieved { directory, why }
                    }
                    Some(
                        HttpError::Resolve { .. }
                        | HttpError::Connect { .. }
                        | HttpError::Tls { .. }
                        | HttpError::Slow { .. }
                        | HttpError::Answer { .. },
                    ) => OrderError::Unreached { directory, why },
                    Some(HttpError::Url(_) | HttpError::TooOften) | None => {
                        OrderError::Strange { directory, why }
                    }
                }
            }
            error => OrderError::Strange {
                directory,
                why: chained(&error),
            },
        }
    }

    /// What it says to this name.
    fn refused(&self, host: &Host, error: Error) -> OrderError {
        let directory = self.directory();
        match error {
            Error::Api(problem) if is(&problem, "accountDoesNotExist") => {
                OrderError::Forgotten { directory }
            }
            Error::Api(problem) if !is(&problem, "rateLimited") => OrderError::Refused {
                directory,
                host: host.clone(),
                said: words(&problem),
            },
            error => self.failed(error),
        }
    }

    /// Whoever has signed for this authority has agreed to its terms. Returns what is to be kept, a secret.
    pub async fn register(&self) -> Result<String, OrderError> {
        let directory = self.directory();
        let late = OrderError::Slow {
            directory: directory.clone(),
            wait: ORDER_WAIT,
        };
        let mail = self
            .acme
            .contact
            .as_ref()
            .map(|mail| format!("mailto:{mail}"));
        let contact: Vec<&str> = mail.iter().map(String::as_str).collect();
        let account = NewAccount {
            contact: &contact,
            terms_of_service_agreed: true,
            only_return_existing: false,
        };
        let asked = self.client().create(&account, directory, None);
        let made = tokio::time::timeout(ORDER_WAIT, asked).await;
        let made = made.map_err(|_| late)?;
        let (_, credentials) = made.map_err(|error| match error {
            Error::Api(problem) if !is(&problem, "rateLimited") => OrderError::Account {
                directory: self.directory(),
                said: words(&problem),
            },
            error => self.failed(error),
        })?;
        let text = serde_json::to_string(&credentials).map_err(|e| self.failed(e.into()))?;
        match text.len() <= ACCOUNT_BYTES_MAX {
            true => Ok(text),
            false => Err(OrderError::Strange {
                directory: self.directory(),
                why: "what it calls the account is too long".to_owned(),
            }),
        }
    }

    /// Orders a certificate. `serve` has an answer served under a token until this ends, and returns once it is.
    pub async fn order(
        &self,
        account: &str,
        host: &Host,
        now_s: u64,
        serve: impl AsyncFn(String, String) -> Result<(), String>,
    ) -> Result<Pair, OrderError> {
        let late = OrderError::Slow {
            directory: self.directory(),
            wait: ORDER_WAIT,
        };
        let ordered = self.steps(account, host, now_s, serve);
        tokio::time::timeout(ORDER_WAIT, ordered)
            .await
            .map_err(|_| late)?
    }

    async fn steps(
        &self,
        account: &str,
        host: &Host,
        now_s: u64,
        serve: impl AsyncFn(String, String) -> Result<(), String>,
    ) -> Result<Pair, OrderError> {
        let credentials = serde_json::from_str(account);
        let credentials = credentials.map_err(|_| OrderError::Forgotten {
            directory: self.directory(),
        })?;
        let account = self.client().from_credentials(credentials).await;
        let account = account.map_err(|error| self.failed(error))?;
        let names = [Identifier::Dns(host.to_string())];
        let order = account.new_order(&NewOrder::new(&names)).await;
        let mut order = order.map_err(|error| self.refused(host, error))?;
        self.prove(&mut order, host, serve).await?;
        let key = order.finalize().await;
        let key = key.map_err(|error| self.refused(host, error))?;
        let certificate = order.poll_certificate(&patience()).await;
        let certificate = certificate.map_err(|error| self.refused(host, error))?;
        let directory = || self.directory();
        let chain = Chain::read(&certificate).and_then(|chain| chain.serves(host, now_s));
        let chain = chain.map_err(|why| OrderError::Chain {
            directory: directory(),
            host: host.clone(),
            why,
        })?;
        match chain.has_key(&key) {
            true => Ok(Pair { certificate, key }),
            false => Err(OrderError::Key {
                directory: directory(),
                host: host.clone(),
            }),
        }
    }

    /// Shows that this node is reached under the name, where the authority does not know that already.
    async fn prove(
        &self,
        order: &mut instant_acme::Order,
        host: &Host,
        serve: impl AsyncFn(String, String) -> Result<(), String>,
    ) -> Result<(), OrderError> {
        let none = || OrderError::NoProof {
            directory: self.directory(),
            host: host.clone(),
        };
        let mut asked = order.authorizations();
        let mut count = 0;
        while let Some(wanted) = asked.next().await {
            count += 1;
            let mut wanted = wanted.map_err(|error| self.refused(host, error))?;
            match wanted.status {
                AuthorizationStatus::Valid => continue,
                AuthorizationStatus::Pending if count <= PROOFS_MAX => {}
                _ => return Err(none()),
            }
            let challenge = wanted.challenge(ChallengeType::Http01);
            let mut challenge = challenge.ok_or_else(none)?;
            if !is_token(&challenge.token) {
                return Err(OrderError::Strange {
                    directory: self.directory(),
                    why: "it gives a token that stands in no path".to_owned(),
                });
            }
            let answer = challenge.key_authorization().as_str().to_owned();
            let served = serve(challenge.token.clone(), answer).await;
            served.map_err(|why| OrderError::Unserved {
                host: host.clone(),
                why,
            })?;
            let ready = challenge.set_ready().await;
            ready.map_err(|error| self.unproven(host, error))?;
        }
        match order.poll_ready(&patience()).await {
            Ok(OrderStatus::Ready | OrderStatus::Valid) => Ok(()),
            Ok(_) => Err(OrderError::Unproven {
                host: host.clone(),
                said: found(order).await.unwrap_or_else(|| "no reason".to_owned()),
            }),
            Err(error) => Err(self.unproven(host, error)),
        }
    }

    fn unproven(&self, host: &Host, error: Error) -> OrderError {
        match error {
            Error::Api(problem) if !is(&problem, "rateLimited") => OrderError::Unproven {
                host: host.clone(),
                said: words(&problem),
            },
            error => self.failed(error),
        }
    }
}

fn patience() -> RetryPolicy {
    RetryPolicy::new()
        .initial_delay(ASK)
        .backoff(ASK_LONGER)
        .timeout(STEP_WAIT)
}

/// What the authority found where the node should have been.
async fn found(order: &mut instant_acme::Order) -> Option<String> {
    let mut asked = order.authorizations();
    while let Some(Ok(mut wanted)) = asked.next().await {
        let state = wanted.refresh().await.ok()?;
        let mut problems = state.challenges.iter().filter_map(|c| c.error.as_ref());
        if let Some(problem) = problems.next() {
            return Some(words(problem));
        }
    }
    None
}

/// Whether it stands in a path as it is (RFC 8555 section 8.3: letters of base64url).
fn is_token(token: &str) -> bool {
    let fine = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
    (1..=TOKEN_MAX).contains(&token.len()) && token.bytes().all(fine)
}

/// Whether a handshake failed because of who the other side said that it is.
fn is_doubt(error: &std::io::Error) -> bool {
    let inner = error
        .get_ref()
        .and_then(|e| e.downcast_ref::<rustls::Error>());
    matches!(inner, Some(rustls::Error::InvalidCertificate(_)))
}

#[cfg(test)]
#[path = "authority_tests.rs"]
mod tests;
