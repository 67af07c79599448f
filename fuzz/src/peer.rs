//! A server on the loopback that says what an input says.
//!
//! Owns: one listener for all inputs, and hanging up. Refuses: to wait for more than a request's header.

use std::net::{SocketAddr, TcpListener};
use std::sync::OnceLock;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

/// Ports are used up for a minute each: one listener for all.
fn listener() -> &'static TcpListener {
    static LISTENER: OnceLock<TcpListener> = OnceLock::new();
    LISTENER.get_or_init(|| {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port on the loopback");
        listener.set_nonblocking(true).expect("a flag");
        listener
    })
}

pub(crate) fn address() -> SocketAddr {
    listener().local_addr().expect("it is bound")
}

/// A runtime that lives for one input.
pub(crate) fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime")
}

/// The next connection.
pub(crate) async fn accept() -> TcpStream {
    let listener = listener().try_clone().expect("a descriptor");
    let listener = tokio::net::TcpListener::from_std(listener).expect("it does not block");
    listener.accept().await.expect("a connection").0
}

/// Reads one header, says these bytes, and hangs up when the other side has.
pub(crate) async fn say<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S, bytes: &[u8]) {
    if hear(&mut stream).await.is_some() {
        tell(stream, bytes).await;
    }
}

/// One header; `None`: the other side has hung up before its end.
pub(crate) async fn hear<S: AsyncRead + Unpin>(stream: &mut S) -> Option<Vec<u8>> {
    let mut heard = Vec::new();
    while !heard.windows(4).any(|w| w == b"\r\n\r\n") {
        match stream.read_buf(&mut heard).await {
            Ok(0) | Err(_) => return None,
            Ok(_) => {}
        }
    }
    Some(heard)
}

/// Says these bytes, and hangs up when the other side has.
pub(crate) async fn tell<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S, bytes: &[u8]) {
    // The other side may have heard enough, which is its right.
    let _ = stream.write_all(bytes).await;
    let _ = stream.shutdown().await;
    let mut sink = [0; 4096];
    while stream.read(&mut sink).await.is_ok_and(|count| count > 0) {}
}
