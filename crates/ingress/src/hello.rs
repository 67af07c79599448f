//! The first message of a TLS client, before it is known who answers it.
//!
//! Owns: reading it, bounded, and that not one byte of it is lost to who does. Refuses: parsing it: rustls does.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use rustls::server::Acceptor;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use types::ingress::Host;

/// Longest first message: with the keys of the largest post-quantum exchange it is some 2 KiB; a record has at most 16.
const HELLO_MAX: usize = 18 << 10;
/// The alert of who does not know the name (RFC 6066 section 3), fatal, in a record of its own.
pub(crate) const UNRECOGNISED_NAME: [u8; 7] = [21, 3, 3, 0, 2, 2, 112];

/// What a client's first message says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Hello {
    /// `None`: none, or one that is no name of ours.
    pub(crate) host: Option<Host>,
    pub(crate) bytes: Vec<u8>,
}

/// What these bytes alone say. `None`: there is more to come.
#[cfg(any(test, feature = "fuzz"))]
pub(crate) fn parse(bytes: &[u8]) -> io::Result<Option<Option<Host>>> {
    feed(&mut Acceptor::default(), bytes)
}

/// What the bytes so far say. `None`: there is more to come.
fn feed(acceptor: &mut Acceptor, bytes: &[u8]) -> io::Result<Option<Option<Host>>> {
    let mut rest = bytes;
    while !rest.is_empty() {
        acceptor.read_tls(&mut rest)?;
        match acceptor.accept() {
            Ok(Some(accepted)) => {
                let hello = accepted.client_hello();
                return Ok(Some(hello.server_name().and_then(Host::asked)));
            }
            Ok(None) => {}
            Err((error, _alert)) => return Err(io::Error::new(io::ErrorKind::InvalidData, error)),
        }
    }
    Ok(None)
}

/// Reads until it is known.
pub(crate) async fn read(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Hello> {
    let (mut bytes, mut acceptor) = (Vec::new(), Acceptor::default());
    let mut limited = stream.take(HELLO_MAX as u64);
    loop {
        let before = bytes.len();
        if limited.read_buf(&mut bytes).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if let Some(host) = feed(&mut acceptor, &bytes[before..])? {
            return Ok(Hello { host, bytes });
        }
    }
}

/// A stream whose first bytes have been read already.
#[derive(Debug)]
pub(crate) struct Replayed<S> {
    pub(crate) bytes: Vec<u8>,
    pub(crate) at: usize,
    pub(crate) stream: S,
}

impl<S: AsyncRead + Unpin> AsyncRead for Replayed<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.at < self.bytes.len() {
            let length = buffer.remaining().min(self.bytes.len() - self.at);
            let until = self.at + length;
            buffer.put_slice(&self.bytes[self.at..until]);
            self.at = until;
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Replayed<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }
    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;
    use rustls::{ClientConfig, ClientConnection, RootCertStore};

    use super::*;

    pub(crate) fn hello(name: &str) -> Vec<u8> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_root_certificates(RootCertStore::empty())
            .with_no_client_auth();
        let name = name.to_owned().try_into().expect("a name");
        let mut client = ClientConnection::new(Arc::new(config), name).expect("a client");
        let mut bytes = Vec::new();
        client.write_tls(&mut bytes).expect("written");
        bytes
    }

    #[tokio::test]
    async fn the_name_is_known_however_the_bytes_come_and_none_is_lost() {
        let bytes = hello("shop.example");
        for cut in 1..bytes.len() {
            assert_eq!(parse(&bytes[..cut]).expect("not wrong"), None, "{cut}");
        }
        let (mut ours, mut theirs) = tokio::io::duplex(7);
        let sent = bytes.clone();
        let send = async move { tokio::io::AsyncWriteExt::write_all(&mut theirs, &sent).await };
        let (read, _) = tokio::join!(read(&mut ours), send);
        let read = read.expect("a hello");
        assert_eq!(read.host, "shop.example".parse().ok());
        assert_eq!(read.bytes, bytes);
        assert_eq!(parse(&hello("10.0.0.1")).expect("a hello"), Some(None));
    }

    proptest! {
        #[test]
        fn bytes_of_anybody_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200), flip in 0usize..2000) {
            let _ = parse(&bytes);
            let mut real = hello("shop.example");
            let at = flip % (real.len() * 8);
            real[at / 8] ^= 1 << (at % 8);
            let _ = parse(&real);
        }
    }
}
