//! One request: to which machine it goes, and what comes back.
//!
//! Owns: the order of attempts, waits for answers, the change to another protocol. Refuses: keeping a body: both directions are
//! passed on piece by piece, no faster than the slower side takes them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use http_body_util::{Either, Empty, Full};
use hyper::body::{Body as _, Incoming};
use hyper::client::conn::http1::SendRequest;
use hyper::header::{HeaderValue, TRANSFER_ENCODING};
use hyper::http::request;
use hyper::upgrade::OnUpgrade;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use types::ingress::Host;

use crate::answer::{self, Body, Counted, Out, Refused, Seated, redirect};
use crate::backends::{Backend, Busy, NoConnection};
use crate::head::{self, Asker};
use crate::serve::{Asking, Client, Shared, Site};
use crate::table::{Stand, choose, route};

/// How long a machine may take until the head of its answer while nothing of the request moves: as long as proxies commonly wait.
const ANSWER_WAIT: Duration = Duration::from_secs(60);
/// Machines that one request is tried at.
const TRIES_MAX: usize = 3;

/// Answers one request of a client. `begun`: the name that TLS was begun for.
pub(crate) async fn answer(
    shared: Arc<Shared>,
    client: Client,
    begun: Option<Host>,
    request: Request<Incoming>,
) -> Response<Body> {
    let Some(asking) = client.ask() else {
        return Refused::TooMany.response();
    };
    let (parts, body) = request.into_parts();
    let Some(host) = head::host(&parts) else {
        return Refused::Malformed.response();
    };
    if head::is_refused(&parts.method) {
        return Refused::Method.response();
    }
    let secure = begun.is_some();
    if begun.is_some_and(|begun| begun != host) {
        return Refused::Misdirected.response();
    }
    let Some(site) = shared.site(&host) else {
        return Refused::NoSite.response();
    };
    let asker = Asker {
        client: client.address,
        secure,
        host,
    };
    let proof = match secure {
        true => None,
        false => site.proof(&parts.method, parts.uri.path()),
    };
    let response = match (proof, !secure && site.has_tls()) {
        (Some(proof), _) => answer::proof(proof),
        (None, true) => {
            let path = parts.uri.path_and_query().map_or("/", |path| path.as_str());
            let path = if path.starts_with('/') { path } else { "/" };
            redirect(&format!("https://{}{path}", asker.host))
        }
        (None, false) => pass(&site, asker, asking, parts, body).await,
    };
    site.count(response.status());
    response
}

async fn pass(
    site: &Site,
    asker: Asker,
    asking: Asking,
    mut parts: request::Parts,
    body: Incoming,
) -> Response<Body> {
    let prefixes = site.routes.iter().map(|route| route.path.as_str());
    let Some(at) = route(prefixes, parts.uri.path()) else {
        return Refused::NoRoute.response();
    };
    let client = parts.extensions.remove::<OnUpgrade>();
    let upgrade = head::forward(&mut parts, &asker);
    let client = client.filter(|_| upgrade);
    // What changes nothing and has no body can be sent again.
    let again = (head::is_safe(&parts.method) && body.is_end_stream()).then(|| bare(&parts));
    let (request, passed) = outgoing(parts, body);
    let mut request = Some(request);
    let backends = &site.routes[at].backends;
    let mut tried = vec![false; backends.len()];
    let mut outcome = Refused::NoBackend;
    let mut way = match client {
        // A connection that becomes another protocol's is one of its own.
        Some(_) => Way::New,
        None => Way::Kept,
    };
    for _ in 0..TRIES_MAX {
        let Some(chosen) = next(site, backends, &tried) else {
            break;
        };
        let backend = &backends[chosen];
        let busy = backend.begin();
        let Some(this) = request.take().or_else(|| again.as_ref().map(bare_again)) else {
            break;
        };
        let attempt = attempt(backend, busy, this, way, &passed);
        let attempt = match again {
            Some(_) => unless(attempt, other(site, backends, &tried, chosen)).await,
            None => attempt.await,
        };
        match attempt {
            Attempt::Answered(response, held) => {
                return give_back(*response, client, held, asking);
            }
            Attempt::Unsent(unsent, why) => {
                if why == NoConnection::Refused {
                    backend.found(false);
                }
                request = Some(*unsent);
                tried[chosen] = true;
                outcome = Refused::NoBackend;
            }
            Attempt::Stale(unsent) => {
                (request, way) = (Some(*unsent), Way::New);
            }
            // Machines close connections that nothing goes by; this request may have met with that.
            Attempt::Lost => (way, outcome) = (Way::New, Refused::Broken),
            Attempt::Left => (tried[chosen], outcome) = (true, Refused::NoBackend),
            Attempt::Failed(Refused::Slow) => return Refused::Slow.response(),
            Attempt::Failed(why) => {
                tried[chosen] = true;
                outcome = why;
            }
        }
    }
    outcome.response()
}

/// As it goes to a machine, and how much of its body has gone.
fn outgoing(mut parts: request::Parts, body: Incoming) -> (Request<Out>, Arc<AtomicU64>) {
    if body.size_hint().exact().is_none() {
        // Else a method that mostly has no body would lose this one.
        let chunked = HeaderValue::from_static("chunked");
        parts.headers.insert(TRANSFER_ENCODING, chunked);
    }
    let passed = Arc::new(AtomicU64::new(0));
    let body = Counted {
        body,
        passed: passed.clone(),
    };
    (Request::from_parts(parts, Either::Left(body)), passed)
}

/// A machine whose node is gone says nothing, and no connection to it ends: its health says so first.
async fn unless(attempt: impl Future<Output = Attempt>, left: impl Future<Output = ()>) -> Attempt {
    tokio::select! {
        biased;
        attempt = attempt => attempt,
        () = left => Attempt::Left,
    }
}

/// Until this one is left out while another could answer. Where there is none, this one may still.
async fn other(site: &Site, backends: &[Arc<Backend>], tried: &[bool], this: usize) {
    backends[this].left_out().await;
    if next(site, backends, tried).is_none() {
        std::future::pending::<()>().await;
    }
}

fn next(site: &Site, backends: &[Arc<Backend>], tried: &[bool]) -> Option<usize> {
    let stand = |(backend, tried): (&Arc<Backend>, &bool)| Stand {
        usable: backend.health().is_usable(),
        busy: backend.busy(),
        tried: *tried,
    };
    let stands: Vec<Stand> = backends.iter().zip(tried).map(stand).collect();
    choose(&stands, site.turn())
}

/// The head of a request without a body.
fn bare(parts: &request::Parts) -> request::Parts {
    let mut request = Request::new(()).into_parts().0;
    request.method = parts.method.clone();
    request.uri = parts.uri.clone();
    request.version = parts.version;
    request.headers = parts.headers.clone();
    request
}

fn bare_again(parts: &request::Parts) -> Request<Out> {
    Request::from_parts(bare(parts), Either::Right(Empty::new()))
}

/// Which connection a request may go by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// One from before, where there is one.
    Kept,
    New,
}

enum Attempt {
    Answered(Box<Response<Incoming>>, Held),
    /// There was no connection.
    Unsent(Box<Request<Out>>, NoConnection),
    /// The one from before had just ended.
    Stale(Box<Request<Out>>),
    /// The one from before ended when the request had begun to go by it.
    Lost,
    /// The machine was left out before it had answered, and another can.
    Left,
    Failed(Refused),
}

/// What goes on until the answer has been read.
struct Held {
    busy: Busy,
    sender: SendRequest<Out>,
}

async fn attempt(
    backend: &Backend,
    busy: Busy,
    request: Request<Out>,
    way: Way,
    passed: &AtomicU64,
) -> Attempt {
    let kept = match way {
        Way::Kept => backend.kept(),
        Way::New => None,
    };
    let is_kept = kept.is_some();
    let sender = match kept {
        Some(sender) => Ok(sender),
        None => backend.speak().await,
    };
    let mut sender = match sender {
        Ok(sender) => sender,
        Err(why) => return Attempt::Unsent(Box::new(request), why),
    };
    match moving(sender.try_send_request(request), passed).await {
        Some(Ok(response)) => Attempt::Answered(Box::new(response), Held { busy, sender }),
        Some(Err(mut error)) => match error.take_message() {
            Some(unsent) if is_kept => Attempt::Stale(Box::new(unsent)),
            Some(unsent) => Attempt::Unsent(Box::new(unsent), NoConnection::Refused),
            None if is_kept => Attempt::Lost,
            None => Attempt::Failed(Refused::Broken),
        },
        None => Attempt::Failed(Refused::Slow),
    }
}

/// The answer to a request that is being sent. `None`: for [`ANSWER_WAIT`] nothing of it has gone, and nothing has come.
async fn moving<T>(sending: impl Future<Output = T>, passed: &AtomicU64) -> Option<T> {
    let mut sending = std::pin::pin!(sending);
    let mut before = passed.load(Ordering::Relaxed);
    loop {
        if let Ok(sent) = tokio::time::timeout(ANSWER_WAIT, sending.as_mut()).await {
            return Some(sent);
        }
        let now = passed.load(Ordering::Relaxed);
        if now == before {
            return None;
        }
        before = now;
    }
}

fn give_back(
    response: Response<Incoming>,
    client: Option<OnUpgrade>,
    held: Held,
    asking: Asking,
) -> Response<Body> {
    let (mut parts, body) = response.into_parts();
    if parts.status == StatusCode::SWITCHING_PROTOCOLS {
        let machine = parts.extensions.remove::<OnUpgrade>();
        let Some((client, machine)) = client.zip(machine) else {
            return Refused::Broken.response();
        };
        tokio::spawn(tunnel(client, machine, held.busy, asking));
        // The headers say to what; there is no body.
        return Response::from_parts(parts, Either::Right(Full::default()));
    }
    Backend::keep(held.busy, held.sender);
    head::give_back(&mut parts);
    let body = Seated {
        body,
        _asking: asking,
    };
    Response::from_parts(parts, Either::Left(body))
}

/// Bytes in both directions, until either side is done. All that time the client has its seat and its request.
async fn tunnel(client: OnUpgrade, machine: OnUpgrade, busy: Busy, asking: Asking) {
    if let (Ok(client), Ok(machine)) = tokio::join!(client, machine) {
        let (mut client, mut machine) = (TokioIo::new(client), TokioIo::new(machine));
        // One that ends early is the other's end too.
        let _ = tokio::io::copy_bidirectional(&mut client, &mut machine).await;
    }
    drop((busy, asking));
}
