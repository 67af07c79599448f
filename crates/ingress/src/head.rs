//! Heads of requests and responses on their way through.
//!
//! Owns: which host is asked for, what a machine is told of the client, and what belongs to one connection only and ends here.
//! Refuses: a client's word about who it is.

use std::net::IpAddr;

use hyper::header::{
    CONNECTION, CONTENT_LENGTH, COOKIE, HOST, HeaderMap, HeaderName, HeaderValue, TE,
    TRANSFER_ENCODING, UPGRADE,
};
use hyper::http::{request, response};
use hyper::{Method, Uri, Version};
use types::ingress::Host;

const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
/// What programs believe of who a client is, or take for a variable of their own (`Proxy`): said by this proxy or by nobody.
const CLAIMS: [&str; 10] = [
    "forwarded",
    "x-real-ip",
    "x-client-ip",
    "x-cluster-client-ip",
    "true-client-ip",
    "cf-connecting-ip",
    "x-original-url",
    "x-rewrite-url",
    "http2-settings",
    "proxy",
];
/// The same with whatever stands behind it.
const CLAIMS_BEGIN: &str = "x-forwarded";
/// Of one connection (RFC 9110 section 7.6.1), beside those that `Connection` names.
const OF_CONNECTION: [&str; 8] = [
    "connection",
    "keep-alive",
    "proxy-connection",
    "proxy-authenticate",
    "proxy-authorization",
    "te",
    "transfer-encoding",
    "upgrade",
];

/// Who asks, and how.
#[derive(Debug, Clone)]
pub(crate) struct Asker {
    pub(crate) client: IpAddr,
    pub(crate) secure: bool,
    pub(crate) host: Host,
}

/// The host that is asked for. `None`: none, or two that differ, of which others would choose the other.
pub(crate) fn host(parts: &request::Parts) -> Option<Host> {
    let mut named = parts.headers.get_all(HOST).iter();
    let (first, second) = (named.next(), named.next());
    if second.is_some() {
        return None;
    }
    let header = match first {
        Some(value) => Some(Host::asked(value.to_str().ok()?)?),
        None => None,
    };
    let uri = match parts.uri.authority() {
        Some(authority) => Some(Host::asked(authority.as_str())?),
        None => None,
    };
    match (uri, header) {
        (Some(uri), Some(header)) => (uri == header).then_some(uri),
        (Some(one), None) | (None, Some(one)) => Some(one),
        (None, None) => None,
    }
}

/// Whether a request may be sent again to another machine: it changes nothing there (RFC 9110 section 9.2.1).
pub(crate) fn is_safe(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS)
}

/// Neither is for a machine behind a proxy: one asks for a tunnel to anywhere, the other for what else the machine is told.
pub(crate) fn is_refused(method: &Method) -> bool {
    matches!(*method, Method::CONNECT | Method::TRACE)
}

/// What the connection is to become, where a client asks for that.
fn upgrade(version: Version, headers: &HeaderMap) -> Option<HeaderValue> {
    let asks = tokens(headers).any(|token| token.eq_ignore_ascii_case("upgrade"));
    let mut all = headers.get_all(UPGRADE).iter();
    let to = all.next().filter(|_| all.next().is_none())?;
    // To one protocol, which the machine can only take or leave; the clear form of HTTP/2 would take requests past this proxy.
    let one = to.to_str().ok()?.trim();
    let one = !one.contains([',', ' ']) && !one.to_ascii_lowercase().starts_with("h2c");
    (asks && version == Version::HTTP_11 && one).then(|| to.clone())
}

/// A client's word that a program would take for this proxy's. What has an underscore is another name to some and the same to others,
/// who turn each hyphen into one.
fn is_claim(name: &HeaderName) -> bool {
    let name = name.as_str();
    CLAIMS.contains(&name) || name.starts_with(CLAIMS_BEGIN) || name.contains('_')
}

fn tokens(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    let values = headers.get_all(CONNECTION).iter();
    let values = values.filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(str::trim)
}

fn strip(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = tokens(headers)
        .filter_map(|token| token.parse().ok())
        .collect();
    for name in named {
        headers.remove(name);
    }
    for name in OF_CONNECTION {
        headers.remove(name);
    }
}

/// Makes a client's request one to a machine. Says whether the connection is to become another protocol's.
pub(crate) fn forward(parts: &mut request::Parts, asker: &Asker) -> bool {
    let upgrade = upgrade(parts.version, &parts.headers);
    let trailers = parts.headers.get(TE).is_some_and(|te| te == "trailers");
    let headers = &mut parts.headers;
    strip(headers);
    let claims: Vec<HeaderName> = headers.keys().filter(|n| is_claim(n)).cloned().collect();
    for name in claims {
        headers.remove(name);
    }
    // How long the body is follows from what comes of it, and from nobody's word.
    headers.remove(CONTENT_LENGTH);
    headers.remove(TRANSFER_ENCODING);
    if trailers {
        headers.insert(TE, HeaderValue::from_static("trailers"));
    }
    join_cookies(headers);
    let text =
        |text: &str| HeaderValue::from_str(text).expect("host names and addresses are ASCII");
    headers.insert(HOST, text(asker.host.as_str()));
    headers.insert(FORWARDED_HOST, text(asker.host.as_str()));
    headers.insert(
        FORWARDED_FOR,
        text(&asker.client.to_canonical().to_string()),
    );
    let proto = if asker.secure { "https" } else { "http" };
    headers.insert(FORWARDED_PROTO, HeaderValue::from_static(proto));
    let is_upgrade = upgrade.is_some();
    if let Some(upgrade) = upgrade {
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(UPGRADE, upgrade);
    }
    parts.uri = origin(&parts.uri);
    parts.version = Version::HTTP_11;
    is_upgrade
}

/// HTTP/2 sends cookies one by one (RFC 9113 section 8.2.3).
fn join_cookies(headers: &mut HeaderMap) {
    let all: Vec<&[u8]> = headers
        .get_all(COOKIE)
        .iter()
        .map(HeaderValue::as_bytes)
        .collect();
    if all.len() < 2 {
        return;
    }
    let joined = HeaderValue::from_bytes(&all.join(&b"; "[..]));
    headers.insert(COOKIE, joined.expect("of values that were"));
}

/// Path and query alone.
fn origin(uri: &Uri) -> Uri {
    let path = uri.path_and_query().cloned();
    path.map_or_else(Uri::default, Uri::from)
}

/// Makes a machine's response one to a client.
pub(crate) fn give_back(parts: &mut response::Parts) {
    strip(&mut parts.headers);
    parts.version = Version::HTTP_11;
}

#[cfg(test)]
mod tests {
    use hyper::Request;
    use proptest::prelude::*;

    use super::*;

    fn asker() -> Asker {
        Asker {
            client: [192, 0, 2, 7].into(),
            secure: true,
            host: "shop.example".parse().expect("a host"),
        }
    }

    fn parts(uri: &str, headers: &[(&str, &str)]) -> request::Parts {
        let mut request = Request::builder().uri(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(()).expect("a request").into_parts().0
    }

    #[test]
    fn a_client_is_who_it_is_and_not_who_it_says() {
        let mut request = parts(
            "/a?b=c",
            &[
                ("host", "shop.example:80"),
                ("x-forwarded-for", "10.0.0.1"),
                ("Forwarded", "for=10.0.0.1"),
                ("x-real-ip", "10.0.0.1"),
                ("x_forwarded_for", "10.0.0.1"),
                ("X-Forwarded-Ssl", "on"),
                ("cf-connecting-ip", "10.0.0.1"),
                ("proxy", "http://evil"),
                ("connection", "x-mine, close"),
                ("x-mine", "1"),
                ("transfer-encoding", "chunked"),
                ("content-length", "5"),
                ("cookie", "a=1"),
                ("cookie", "b=2"),
                ("accept", "*/*"),
            ],
        );
        assert!(!forward(&mut request, &asker()));
        let mut seen: Vec<_> = request
            .headers
            .iter()
            .map(|(name, value)| format!("{name}: {}", value.to_str().expect("text")))
            .collect();
        seen.sort();
        let wanted = [
            "accept: */*",
            "cookie: a=1; b=2",
            "host: shop.example",
            "x-forwarded-for: 192.0.2.7",
            "x-forwarded-host: shop.example",
            "x-forwarded-proto: https",
        ];
        assert_eq!(seen, wanted);
        assert_eq!(request.uri, "/a?b=c");
    }

    #[test]
    fn an_upgrade_is_passed_on_and_one_that_would_hide_requests_is_not() {
        let with = |to: &str, connection: &str| {
            let mut request = parts(
                "/",
                &[("host", "a.b"), ("upgrade", to), ("connection", connection)],
            );
            let upgrades = forward(&mut request, &asker());
            assert_eq!(upgrades, request.headers.contains_key(UPGRADE));
            upgrades
        };
        assert!(with("websocket", "keep-alive, Upgrade"));
        assert!(!with("websocket", "keep-alive"));
        assert!(!with("h2c", "Upgrade"));
        assert!(!with("websocket, h2c", "Upgrade"));
    }

    #[test]
    fn one_host_is_asked_for_or_none() {
        let ask =
            |uri: &str, headers: &[(&str, &str)]| host(&parts(uri, headers)).map(|h| h.to_string());
        let found = Some("a.b".to_owned());
        assert_eq!(ask("/", &[("host", "A.b:80")]), found);
        assert_eq!(ask("http://a.b/x", &[]), found);
        assert_eq!(ask("http://a.b/x", &[("host", "a.b")]), found);
        assert_eq!(ask("http://a.b/x", &[("host", "c.d")]), None);
        assert_eq!(ask("/", &[("host", "a.b"), ("host", "a.b")]), None);
        assert_eq!(ask("/", &[]), None);
        assert_eq!(ask("http://a.b@c.d/", &[]), None);
    }

    proptest! {
        #[test]
        fn whatever_a_client_sends_the_machine_hears_one_host_and_one_address(
            headers in proptest::collection::vec(("[a-zA-Z-]{1,20}", "[ -~]{0,30}"), 0..12),
        ) {
            let fine: Vec<(&str, &str)> = headers.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
            let mut request = parts("/x", &fine);
            forward(&mut request, &asker());
            let of = |name: &str| request.headers.get_all(name).iter().count();
            prop_assert_eq!((of("host"), of("x-forwarded-for"), of("transfer-encoding"), of("content-length")), (1, 1, 0, 0));
            prop_assert_eq!(&request.headers["x-forwarded-for"], "192.0.2.7");
        }
    }
}
