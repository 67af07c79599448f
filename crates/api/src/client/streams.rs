//! Answers that come in pieces: a log's lines, a capture's bytes.
//!
//! Owns: what of a line has come, and that a line has an end. Refuses: asking, and asking again (the client does).

use http_body_util::BodyExt;
use hyper::body::{Bytes, Incoming};

use super::{Client, ClientError, describe};
use crate::logs::{LOG_LINE_MAX, LogLine};
use crate::route::Route;

/// A workload's output on its way.
#[derive(Debug)]
pub struct LogStream<'a> {
    pub(super) client: &'a Client,
    pub(super) route: Route,
    pub(super) body: Incoming,
    /// Lines that have come, the last one perhaps without its end.
    pub(super) pending: Vec<u8>,
    /// How much of `pending` has been given out.
    pub(super) read: usize,
}

impl LogStream<'_> {
    /// The next record, `None` at the end.
    pub async fn next(&mut self) -> Result<Option<LogLine>, ClientError> {
        loop {
            let rest = &self.pending[self.read..];
            if let Some(end) = rest.iter().position(|b| *b == b'\n') {
                self.read += end + 1;
                return self.client.parse(&self.route, &rest[..end]).map(Some);
            }
            self.pending.drain(..self.read);
            self.read = 0;
            if self.pending.len() > LOG_LINE_MAX {
                return Err(self
                    .client
                    .strange(&self.route, "a line without an end".to_owned()));
            }
            match self.body.frame().await {
                None if self.pending.is_empty() => return Ok(None),
                None => return Err(self.client.strange(&self.route, "half a line".to_owned())),
                Some(Err(source)) => return Err(self.client.broken(describe(&self.route), source)),
                Some(Ok(frame)) => self
                    .pending
                    .extend_from_slice(&frame.into_data().unwrap_or_default()),
            }
        }
    }
}

/// Bytes as they come.
#[derive(Debug)]
pub struct ByteStream<'a> {
    pub(super) client: &'a Client,
    pub(super) route: Route,
    pub(super) body: Incoming,
}

impl ByteStream<'_> {
    /// The next of them, `None` at the end.
    pub async fn next(&mut self) -> Result<Option<Bytes>, ClientError> {
        match self.body.frame().await {
            None => Ok(None),
            Some(Ok(frame)) => Ok(Some(frame.into_data().unwrap_or_default())),
            Some(Err(source)) => Err(self.client.broken(describe(&self.route), source)),
        }
    }
}
