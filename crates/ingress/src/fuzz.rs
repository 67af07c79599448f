//! What clients send, for the package `fuzz`.
//!
//! Owns: first messages of TLS, and heads of requests on their way through. Refuses: sockets.

use std::net::IpAddr;

use hyper::Request;
use types::ingress::Host;

use crate::head::{self, Asker};

/// Which host a client's first message names. `None`: none, or it is no such message.
pub fn hello(bytes: &[u8]) -> Option<Host> {
    crate::hello::parse(bytes).ok().flatten().flatten()
}

/// Fields as they stand in a head.
pub type Fields = Vec<(String, Vec<u8>)>;

/// The host that is asked for, and the fields that its machine hears. `None`: it is refused.
pub fn forwarded(client: IpAddr, uri: &str, fields: &[(&[u8], &[u8])]) -> Option<(Host, Fields)> {
    let mut request = Request::builder().uri(uri);
    for (name, value) in fields {
        request = request.header(*name, *value);
    }
    let mut parts = request.body(()).ok()?.into_parts().0;
    let host = head::host(&parts)?;
    let asker = Asker {
        client,
        secure: true,
        host: host.clone(),
    };
    head::forward(&mut parts, &asker);
    let heard = parts
        .headers
        .iter()
        .map(|(name, value)| (name.to_string(), value.as_bytes().to_vec()));
    Some((host, heard.collect()))
}
