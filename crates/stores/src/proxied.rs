//! The proxy by which a node asks its stores.
//!
//! Owns: which requests go by it, who is to blame where one fails, and words that say what to do.
//! Refuses: to show its password, and to say more of what it answers than that: its text is not the store's.

use reqwest::header::HeaderValue;
use reqwest::{ClientBuilder, Proxy, Response, StatusCode, Url};
use types::proxy::{self, Egress, Way};

use crate::StoreError;
use crate::http::basic;

/// What `hyper-util` says of a CONNECT; its type is not public. A test beside compares.
const TUNNEL: &str = "tunnel error: ";
const WANTS_LOGIN: &str = "tunnel error: proxy authorization required";
const REFUSED: &str = "tunnel error: unsuccessful";
/// Of a cause in a message: causes are short, whoever made them.
const CAUSE_MAX: usize = 300;

/// Beside an answer: by which proxy it came, which may have written it itself.
#[derive(Debug, Clone)]
pub(crate) struct CameBy(String);

/// A client that asks each host as `egress` says, whatever leads there.
pub(crate) fn client(builder: ClientBuilder, egress: &Egress) -> ClientBuilder {
    let builder = builder.no_proxy();
    let Egress::By(proxy) = egress else {
        return builder;
    };
    let way = egress.clone();
    let goes = move |url: &Url| match way.way(url.host_str().unwrap_or_default()) {
        Way::By(proxy) => format!("http://{}", proxy.at()).parse::<Url>().ok(),
        Way::Direct | Way::Unclear => None,
    };
    let mut custom = Proxy::custom(goes);
    if let Some(mut login) = proxy.login().and_then(header) {
        login.set_sensitive(true);
        custom = custom.custom_http_auth(login);
    }
    builder.proxy(custom)
}

fn header(login: &proxy::Login) -> Option<HeaderValue> {
    basic(login.user(), login.password()).parse().ok()
}

/// Before anything is sent.
pub(crate) fn may_ask(store: &str, way: Way<'_>) -> Result<(), StoreError> {
    match way {
        Way::Direct | Way::By(_) => Ok(()),
        Way::Unclear => Err(StoreError::Proxy {
            store: store.to_owned(),
            problem: "sifr.proxy cannot be read, and nobody is asked without it: correct it where the trouble option_unreadable says that it stands".to_owned(),
        }),
    }
}

/// Whose fault it is that no answer came.
pub(crate) fn blame(store: &str, way: Way<'_>, url: &Url, error: reqwest::Error) -> StoreError {
    let to = place(url);
    let is_plain = url.scheme() == "http";
    let is_connect = error.is_connect();
    let said = cause(error);
    let Way::By(proxy) = way else {
        return StoreError::Unreachable {
            store: store.to_owned(),
            reason: said,
        };
    };
    let at = proxy.at();
    let problem = if said.contains(WANTS_LOGIN) {
        login(proxy)
    } else if said.contains(REFUSED) {
        format!(
            "the proxy {at} does not connect to {to}: it forbids that, or does not reach it; its own log says which (sifr.proxy)"
        )
    } else if said.contains(TUNNEL) || is_plain && is_connect {
        format!("the proxy {at} does not answer: {said}; see sifr.proxy")
    } else {
        return StoreError::Unreachable {
            store: store.to_owned(),
            reason: format!("{to} by way of the proxy {at}: {said}"),
        };
    };
    StoreError::Proxy {
        store: store.to_owned(),
        problem,
    }
}

/// An answer that is the proxy's own and no store's is an error; another is marked, where the proxy could have written it.
pub(crate) fn judge(
    store: &str,
    way: Way<'_>,
    mut answer: Response,
) -> Result<Response, StoreError> {
    // Of what goes through TLS it sees nothing.
    let (Way::By(proxy), "http") = (way, answer.url().scheme()) else {
        return Ok(answer);
    };
    if answer.status() == StatusCode::PROXY_AUTHENTICATION_REQUIRED {
        return Err(StoreError::Proxy {
            store: store.to_owned(),
            problem: login(proxy),
        });
    }
    answer.extensions_mut().insert(CameBy(proxy.at()));
    Ok(answer)
}

/// To stand behind what an answer says.
pub(crate) fn came_by(answer: &Response) -> String {
    let by = answer.extensions().get::<CameBy>();
    by.map_or(String::new(), |CameBy(at)| {
        format!(
            " (it came by way of the proxy {at}, which may have said so itself: see sifr.proxy)"
        )
    })
}

fn login(proxy: &proxy::Proxy) -> String {
    let at = proxy.at();
    match proxy.login() {
        Some(_) => format!(
            "the proxy {at} refused the node's user or password: correct them in sifr.proxy"
        ),
        None => format!(
            "the proxy {at} refused the node, which has no password for it: write http://user:password@{at} in sifr.proxy"
        ),
    }
}

/// Host and port; of a path nothing, for it may be signed.
fn place(url: &Url) -> String {
    let port = url.port_or_known_default().unwrap_or_default();
    format!("{}:{port}", url.host_str().unwrap_or_default())
}

/// An error with its causes and without the URL.
pub(crate) fn cause(error: reqwest::Error) -> String {
    let said = sys::chain(&error.without_url());
    said.chars().take(CAUSE_MAX).collect()
}

#[cfg(test)]
#[path = "proxied_tests.rs"]
mod tests;
