//! What a client is told by this proxy itself.
//!
//! Owns: bodies in both directions, and the words of each refusal. Refuses: to say anything of machines or tenants.

use http_body_util::{Either, Empty, Full};
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue, LOCATION, RETRY_AFTER};
use hyper::{Response, StatusCode};

/// To a machine.
pub(crate) type Out = Either<Incoming, Empty<Bytes>>;
/// To a client.
pub(crate) type Body = Either<Incoming, Full<Bytes>>;

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
