//! The client of stores: HTTP/1.1 GET from a plain web server.
//!
//! Owns: URLs, connections that are kept for the next chunk, and time-outs.
//! Refuses: trusting. Lengths are bounded here, hashes are checked by whoever asked. No TLS: what is
//! fetched is verified by its hash and is not secret from the one who serves it.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use http_body_util::{BodyExt, Empty};
use hyper::body::Bytes;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::{Request, Response, StatusCode, Uri, header};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::timeout;

/// To a store that answers at all, from anywhere on earth.
const CONNECT_MAX: Duration = Duration::from_secs(5);
/// Longest silence: a disk may have to spin up.
const SILENCE_MAX: Duration = Duration::from_secs(15);
/// Longest time for one object, so that a store which sends a byte a second is given up.
const OBJECT_MAX: Duration = Duration::from_secs(300);
/// Idle connections kept per store: as many as there can be jobs.
const IDLE_MAX: usize = super::queue::IN_FLIGHT_MAX;
/// Longest base URL.
const URL_BYTES_MAX: usize = 2048;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum StoreError {
    #[error(
        "store {0:?} is not of the form http://host[:port][/path]: correct it in the deployment"
    )]
    Url(String),
    #[error("store {url} does not answer: {reason}")]
    Unreachable { url: String, reason: String },
    #[error("store {url} answers {status}")]
    Status { url: String, status: u16 },
    #[error("store {url} sends more than the {limit} bytes it should")]
    Large { url: String, limit: u64 },
    #[error("{0}")]
    Refused(String),
}

impl StoreError {
    /// Whether time alone may help: a connection that fails, or a server that says it is not well.
    pub(crate) fn is_transient(&self) -> bool {
        match self {
            Self::Unreachable { .. } => true,
            Self::Status { status, .. } => *status >= 500 || matches!(status, 408 | 429),
            Self::Url(_) | Self::Large { .. } | Self::Refused(_) => false,
        }
    }
}

/// The base of a store.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Base {
    host: String,
    port: u16,
    /// Begins and ends with `/`.
    path: String,
}

impl Base {
    pub(crate) fn parse(text: &str) -> Result<Self, StoreError> {
        let refused = || StoreError::Url(text.chars().take(200).collect());
        let uri: Uri = text.parse().map_err(|_| refused())?;
        let authority = uri.authority().ok_or_else(refused)?;
        let plain = uri.scheme_str() == Some("http")
            && uri.query().is_none()
            && !authority.as_str().contains('@')
            && text.len() <= URL_BYTES_MAX;
        if !plain || uri.host().is_none_or(str::is_empty) {
            return Err(refused());
        }
        let host = authority
            .host()
            .trim_start_matches('[')
            .trim_end_matches(']')
            .to_owned();
        let path = format!("{}/", uri.path().trim_end_matches('/'));
        Ok(Self {
            host,
            port: authority.port_u16().unwrap_or(80),
            path,
        })
    }

    /// For the `Host` header and for messages.
    fn authority(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }

    fn url(&self, object: &str) -> String {
        format!("http://{}{}{object}", self.authority(), self.path)
    }
}

type Connection = SendRequest<Empty<Bytes>>;

/// Shared by all jobs.
#[derive(Debug, Default)]
pub(crate) struct Client {
    idle: Mutex<HashMap<String, Vec<Connection>>>,
}

impl Client {
    /// Fetches an object of at most `limit` bytes; each piece goes to `sink`, which may refuse it.
    pub(crate) async fn get(
        &self,
        base: &Base,
        object: &str,
        limit: u64,
        sink: &mut (dyn FnMut(&[u8]) -> Result<(), String> + Send),
    ) -> Result<(), StoreError> {
        let url = base.url(object);
        let unreachable = |reason: String| StoreError::Unreachable {
            url: url.clone(),
            reason,
        };
        timeout(OBJECT_MAX, self.transfer(base, object, limit, sink))
            .await
            .unwrap_or_else(|_| Err(unreachable("it took too long".to_owned())))
    }

    async fn transfer(
        &self,
        base: &Base,
        object: &str,
        limit: u64,
        sink: &mut (dyn FnMut(&[u8]) -> Result<(), String> + Send),
    ) -> Result<(), StoreError> {
        let url = base.url(object);
        let unreachable = |reason: String| StoreError::Unreachable {
            url: url.clone(),
            reason,
        };
        let (mut connection, response) = self.ask(base, object).await.map_err(unreachable)?;
        let status = response.status();
        if status != StatusCode::OK {
            return Err(StoreError::Status {
                url,
                status: status.as_u16(),
            });
        }
        let large = || StoreError::Large {
            url: url.clone(),
            limit,
        };
        let said = response
            .headers()
            .get(header::CONTENT_LENGTH)
            .and_then(|v| v.to_str().ok());
        if said
            .and_then(|v| v.parse::<u64>().ok())
            .is_some_and(|length| length > limit)
        {
            return Err(large());
        }
        let (mut body, mut received) = (response.into_body(), 0);
        loop {
            let frame = timeout(SILENCE_MAX, body.frame()).await;
            let frame = match frame.map_err(|_| unreachable("it fell silent".to_owned()))? {
                None => break,
                Some(frame) => frame.map_err(|e| unreachable(sys::chain(&e)))?,
            };
            let Ok(data) = frame.into_data() else {
                continue;
            };
            received += data.len() as u64;
            if received > limit {
                return Err(large());
            }
            sink(&data).map_err(StoreError::Refused)?;
        }
        if connection.ready().await.is_ok() {
            self.keep(base, connection);
        }
        Ok(())
    }

    /// Sends the request over an idle connection, or over a new one where none is idle or the server has
    /// closed it meanwhile.
    async fn ask(
        &self,
        base: &Base,
        object: &str,
    ) -> Result<(Connection, Response<hyper::body::Incoming>), String> {
        while let Some(mut connection) = self.take(base) {
            if let Ok(response) = send(&mut connection, base, object).await {
                return Ok((connection, response));
            }
        }
        let mut connection = connect(base).await?;
        let response = send(&mut connection, base, object).await?;
        Ok((connection, response))
    }

    fn take(&self, base: &Base) -> Option<Connection> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let connections = idle.get_mut(&base.authority())?;
        connections.retain(|c| !c.is_closed());
        connections.pop()
    }

    fn keep(&self, base: &Base, connection: Connection) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.retain(|_, connections| {
            connections.retain(|c| !c.is_closed());
            !connections.is_empty()
        });
        let connections = idle.entry(base.authority()).or_default();
        if connections.len() < IDLE_MAX {
            connections.push(connection);
        }
    }
}

async fn connect(base: &Base) -> Result<Connection, String> {
    let stream = timeout(
        CONNECT_MAX,
        TcpStream::connect((base.host.as_str(), base.port)),
    );
    let stream = stream
        .await
        .map_err(|_| "connecting took too long".to_owned())?;
    let stream = stream.map_err(|e| e.to_string())?;
    // Requests are one small packet each and wait for their answer.
    stream.set_nodelay(true).map_err(|e| e.to_string())?;
    let (sender, driver) = handshake(TokioIo::new(stream))
        .await
        .map_err(|e| sys::chain(&e))?;
    // It ends when the sender is dropped or the server closes; its errors reach the request.
    tokio::spawn(async move {
        let _ = driver.await;
    });
    Ok(sender)
}

async fn send(
    connection: &mut Connection,
    base: &Base,
    object: &str,
) -> Result<Response<hyper::body::Incoming>, String> {
    let request = Request::get(format!("{}{object}", base.path))
        .header(header::HOST, base.authority())
        .header(header::USER_AGENT, "sifr")
        .body(Empty::new())
        .map_err(|e| e.to_string())?;
    let answer = async {
        connection.ready().await?;
        connection.send_request(request).await
    };
    let answer = timeout(SILENCE_MAX, answer)
        .await
        .map_err(|_| "no answer in time".to_owned())?;
    answer.map_err(|e| sys::chain(&e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bases_are_plain_http_urls() {
        let base = Base::parse("http://store.example:8080/flists/").expect("valid");
        assert_eq!(
            base.url("chunks/ab"),
            "http://store.example:8080/flists/chunks/ab"
        );
        let base = Base::parse("http://[fd00::1]").expect("valid");
        assert_eq!(
            (base.host.as_str(), base.url("x")),
            ("fd00::1", "http://[fd00::1]:80/x".to_owned())
        );
        for bad in [
            "https://a/",
            "a/b",
            "http://",
            "http://u@a/",
            "http://a/?q",
            "ftp://a",
            "http:///x",
        ] {
            assert!(Base::parse(bad).is_err(), "{bad}");
        }
    }
}
