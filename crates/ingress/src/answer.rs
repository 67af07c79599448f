//! What a client is told by this proxy itself.
//!
//! Owns: bodies in both directions, and the words of each refusal. Refuses: to say anything of machines or tenants.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use http_body_util::{Either, Empty, Full};
use hyper::body::{Bytes, Frame, Incoming, SizeHint};
use hyper::header::{CONTENT_TYPE, HeaderValue, LOCATION, RETRY_AFTER};
use hyper::{Response, StatusCode};

use crate::serve::Asking;

/// To a machine.
pub(crate) type Out = Either<Counted, Empty<Bytes>>;
/// To a client.
pub(crate) type Body = Either<Seated, Full<Bytes>>;

/// A client's body on its way to a machine.
pub(crate) struct Counted {
    pub(crate) body: Incoming,
    /// Its pieces that have gone: a long one is no slow answer.
    pub(crate) passed: Arc<AtomicU64>,
}

impl hyper::body::Body for Counted {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(context);
        if polled.is_ready() {
            self.passed.fetch_add(1, Ordering::Relaxed);
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A machine's body on its way to a client, whose request is under way until it has gone.
pub(crate) struct Seated {
    pub(crate) body: Incoming,
    pub(crate) _asking: Asking,
}

impl hyper::body::Body for Seated {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Seconds after which a client may try again where no machine answers: about two health checks.
const RETRY_S: &str = "10";

/// Why a request goes to no machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refused {
    Malformed,
    Method,
    NoSite,
    NoRoute,
    /// TLS was begun for another name.
    Misdirected,
    NoBackend,
    Broken,
    Slow,
    /// The client's address has too many requests under way.
    TooMany,
}

impl Refused {
    fn says(self) -> (StatusCode, &'static str) {
        match self {
            Self::Malformed => (
                StatusCode::BAD_REQUEST,
                "the request names no host, or more than one",
            ),
            Self::Method => (
                StatusCode::METHOD_NOT_ALLOWED,
                "this method is not passed on",
            ),
            Self::NoSite => (StatusCode::NOT_FOUND, "no site of this name is served here"),
            Self::NoRoute => (
                StatusCode::NOT_FOUND,
                "nothing is served below this path of the site",
            ),
            Self::Misdirected => (
                StatusCode::MISDIRECTED_REQUEST,
                "this connection was made for another site: make one for this",
            ),
            Self::NoBackend => (
                StatusCode::SERVICE_UNAVAILABLE,
                "no machine of this site answers just now: try again in a moment",
            ),
            Self::Broken => (
                StatusCode::BAD_GATEWAY,
                "the machine of this site broke off before it had answered",
            ),
            Self::TooMany => (
                StatusCode::TOO_MANY_REQUESTS,
                "too many requests of your address are under way: end some, then try again",
            ),
            Self::Slow => (
                StatusCode::GATEWAY_TIMEOUT,
                "the machine of this site has not answered in time",
            ),
        }
    }

    pub(crate) fn response(self) -> Response<Body> {
        let (status, words) = self.says();
        let text = format!("{}: {words}\n", status.as_u16());
        let mut response = Response::new(Either::Right(Full::new(text.into())));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(
            CONTENT_TYPE,
            HeaderValue::from_static("text/plain; charset=utf-8"),
        );
        if self == Self::NoBackend {
            headers.insert(RETRY_AFTER, HeaderValue::from_static(RETRY_S));
        }
        response
    }
}

/// To an authority of certificates that looks whether a name leads here (RFC 8555 section 8.3).
pub(crate) fn proof(text: &str) -> Response<Body> {
    let mut response = Response::new(Either::Right(Full::new(text.to_owned().into())));
    let kind = HeaderValue::from_static("application/octet-stream");
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}

/// To the same by TLS; the method stays.
pub(crate) fn redirect(to: &str) -> Response<Body> {
    let Ok(to) = HeaderValue::from_str(to) else {
        return Refused::Malformed.response();
    };
    let mut response = Response::new(Either::Right(Full::default()));
    *response.status_mut() = StatusCode::PERMANENT_REDIRECT;
    response.headers_mut().insert(LOCATION, to);
    response
}
