//! One request: to which machine it goes, and what comes back.
//!
//! Owns: the order of attempts, waits for answers, the change to another protocol. Refuses: keeping a body: both directions are
//! passed on piece by piece, no faster than the slower side takes them.

use std::sync::Arc;
use std::time::Duration;

use http_body_util::{Either, Empty};
use hyper::body::{Body as _, Incoming};
use hyper::client::conn::http1::SendRequest;
use hyper::http::request;
use hyper::upgrade::OnUpgrade;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use types::ingress::Host;

use crate::answer::{Body, Out, Refused, redirect};
use crate::backends::{Backend, Busy, NoConnection};
use crate::head::{self, Asker};
use crate::serve::{Client, Shared, Site};
use crate::table::{Stand, choose, route};

/// How long a machine may take until the head of its answer: as long as proxies commonly wait.
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
    let response = match (secure, site.has_tls()) {
        (false, true) => {
            let path = parts.uri.path_and_query().map_or("/", |path| path.as_str());
            let path = if path.starts_with('/') { path } else { "/" };
            redirect(&format!("https://{}{path}", asker.host))
        }
        _ => pass(&site, asker, parts, body).await,
    };
    site.count(response.status());
    response
}

async fn pass(
    site: &Site,
    asker: Asker,
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
    let mut request = Some(Request::from_parts(parts, Either::Left(body)));
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
        match attempt(backend, busy, this, way).await {
            Attempt::Answered(response, held) => return give_back(*response, client, held),
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
            Attempt::Failed(Refused::Slow) => return Refused::Slow.response(),
            Attempt::Failed(why) => {
                tried[chosen] = true;
                outcome = why;
            }
        }
    }
    outcome.response()
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
    Failed(Refused),
}

/// What goes on until the answer has been read.
struct Held {
    busy: Busy,
    sender: SendRequest<Out>,
}

async fn attempt(backend: &Backend, busy: Busy, request: Request<Out>, way: Way) -> Attempt {
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
    let sent = tokio::time::timeout(ANSWER_WAIT, sender.try_send_request(request)).await;
    match sent {
        Ok(Ok(response)) => Attempt::Answered(Box::new(response), Held { busy, sender }),
        Ok(Err(mut error)) => match error.take_message() {
            Some(unsent) if is_kept => Attempt::Stale(Box::new(unsent)),
            Some(unsent) => Attempt::Unsent(Box::new(unsent), NoConnection::Refused),
            None => Attempt::Failed(Refused::Broken),
        },
        Err(_) => Attempt::Failed(Refused::Slow),
    }
}

fn give_back(
    response: Response<Incoming>,
    client: Option<OnUpgrade>,
    held: Held,
) -> Response<Body> {
    let (mut parts, body) = response.into_parts();
    if parts.status == StatusCode::SWITCHING_PROTOCOLS {
        let machine = parts.extensions.remove::<OnUpgrade>();
        let Some((client, machine)) = client.zip(machine) else {
            return Refused::Broken.response();
        };
        tokio::spawn(tunnel(client, machine, held.busy));
        // The headers say to what.
        return Response::from_parts(parts, Either::Left(body));
    }
    Backend::keep(held.busy, held.sender);
    head::give_back(&mut parts);
    Response::from_parts(parts, Either::Left(body))
}

/// Bytes in both directions, until either side is done.
async fn tunnel(client: OnUpgrade, machine: OnUpgrade, busy: Busy) {
    if let (Ok(client), Ok(machine)) = tokio::join!(client, machine) {
        let (mut client, mut machine) = (TokioIo::new(client), TokioIo::new(machine));
        // One that ends early is the other's end too.
        let _ = tokio::io::copy_bidirectional(&mut client, &mut machine).await;
    }
    drop(busy);
}
