//! Where a redirection leads.
//!
//! Owns: which answers lead elsewhere, what is asked there, and what stays behind: who was trusted with a login was the server that
//! it was for. Each step is a request of its own, so that each goes by the way of its own host, and an error names that.
//! Refuses: more than three steps, one from TLS into the clear, and logins in places.

use reqwest::header::{
    AUTHORIZATION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, COOKIE, LOCATION,
    PROXY_AUTHORIZATION, TRANSFER_ENCODING,
};
use reqwest::{Method, Request, Response, StatusCode, Url};

/// A store, its mirror, its storage.
pub(crate) const REDIRECTS_MAX: usize = 3;

/// What is asked next; `None`: this was the answer. `asked`: the request, of which a copy could be made.
pub(crate) fn next(asked: Option<Request>, answer: &Response) -> Result<Option<Request>, String> {
    let Some((mut request, place)) = asked.zip(place(answer)) else {
        return Ok(None);
    };
    let to = answer.url().join(place);
    let to = to.map_err(|e| format!("it leads to what is no place: {e}"))?;
    check(request.url(), &to)?;
    if let Some(method) = method(answer.status(), request.method()) {
        *request.method_mut() = method;
        *request.body_mut() = None;
        for name in [
            CONTENT_TYPE,
            CONTENT_LENGTH,
            CONTENT_ENCODING,
            TRANSFER_ENCODING,
        ] {
            request.headers_mut().remove(name);
        }
    }
    if request.url().origin() != to.origin() {
        for name in [AUTHORIZATION, COOKIE, PROXY_AUTHORIZATION] {
            request.headers_mut().remove(name);
        }
    }
    *request.url_mut() = to;
    Ok(Some(request))
}

fn place(answer: &Response) -> Option<&str> {
    match answer.status() {
        StatusCode::MOVED_PERMANENTLY
        | StatusCode::FOUND
        | StatusCode::SEE_OTHER
        | StatusCode::TEMPORARY_REDIRECT
        | StatusCode::PERMANENT_REDIRECT => answer.headers().get(LOCATION)?.to_str().ok(),
        _ => None,
    }
}

fn check(from: &Url, to: &Url) -> Result<(), String> {
    let kind = match (from.scheme(), to.scheme()) {
        ("https", "http") => Err("it leads out of TLS"),
        (_, "http" | "https") => Ok(()),
        _ => Err("it leads to what is neither http nor https"),
    };
    kind?;
    match to.username().is_empty() && to.password().is_none() {
        true => Ok(()),
        false => Err("it leads to a place with a login in it".to_owned()),
    }
}

/// What is asked instead, without a body (RFC 9110 section 15.4); `None`: the same.
fn method(status: StatusCode, of: &Method) -> Option<Method> {
    match status {
        StatusCode::MOVED_PERMANENTLY | StatusCode::FOUND if *of == Method::POST => {
            Some(Method::GET)
        }
        StatusCode::SEE_OTHER if *of != Method::HEAD => Some(Method::GET),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_leads_out_of_tls_nor_to_a_login() {
        let url = |text: &str| text.parse::<Url>().expect("a URL");
        for (from, to, fine) in [
            ("https://a/", "https://b/", true),
            ("http://a/", "https://b/", true),
            ("http://a/", "http://b/", true),
            ("https://a/", "http://a/", false),
            ("http://a/", "ftp://a/", false),
            ("http://a/", "http://u:p@a/", false),
        ] {
            assert_eq!(check(&url(from), &url(to)).is_ok(), fine, "{from} {to}");
        }
    }

    #[test]
    fn a_body_goes_along_where_the_server_does_not_say_otherwise() {
        for (status, of, to) in [
            (StatusCode::FOUND, Method::GET, None),
            (StatusCode::FOUND, Method::POST, Some(Method::GET)),
            (StatusCode::SEE_OTHER, Method::PUT, Some(Method::GET)),
            (StatusCode::SEE_OTHER, Method::HEAD, None),
            (StatusCode::TEMPORARY_REDIRECT, Method::POST, None),
            (StatusCode::PERMANENT_REDIRECT, Method::PUT, None),
        ] {
            assert_eq!(method(status, &of), to, "{status} {of}");
        }
    }
}
