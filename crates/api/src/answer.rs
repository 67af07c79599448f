//! What a handler answers.
//!
//! Owns: the three kinds of body, and the HTTP status of each refusal.
//! Refuses: headers and statuses of a handler's own.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use http_body_util::Full;
use hyper::body::{Body as HttpBody, Bytes, Frame, SizeHint};
use hyper::header::{CONNECTION, CONTENT_TYPE, HeaderValue};
use hyper::{Response, StatusCode};
use serde::Serialize;
use tokio::sync::mpsc::Receiver;
use tokio::sync::oneshot;
use types::status::{Refusal, RefusalCode};

const BYTES: &str = "application/octet-stream";
const JSON: &str = "application/json";
const TEXT: &str = "text/plain; charset=utf-8";
/// Prometheus' text exposition format.
const METRICS: &str = "text/plain; version=0.0.4; charset=utf-8";
const JSON_LINES: &str = "application/jsonl";
/// draft-ietf-opsawg-pcapng, section 10.
const PCAPNG: &str = "application/x-pcapng";

#[derive(Debug)]
pub struct Answer {
    status: StatusCode,
    content_type: &'static str,
    body: AnswerBody,
    /// The connection ends after this answer: its rest is not worth reading.
    close: bool,
    /// Dropped at the connection's end.
    over: Option<Over>,
}

/// Nothing is ever sent: that it was dropped is the news.
pub(crate) type Over = oneshot::Sender<Infallible>;

#[derive(Debug)]
pub(crate) enum AnswerBody {
    Whole(Full<Bytes>),
    /// Ends when all senders are gone. A receiver that is dropped (the peer went away) shows in
    /// `Sender::closed`.
    Stream(Receiver<Result<Bytes, BrokenOff>>),
}

/// A stream could not be brought to its end. The connection breaks, so that nobody takes what came for
/// all there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the answer broke off")]
pub struct BrokenOff;

impl Answer {
    pub fn json<T: Serialize>(value: &T) -> Self {
        match serde_json::to_vec(value) {
            Ok(json) => Self::whole(StatusCode::OK, JSON, json),
            Err(error) => Self::refuse(&Refusal {
                code: RefusalCode::Internal,
                message: format!("the answer could not be written as JSON: {error}"),
            }),
        }
    }

    pub fn text(text: impl Into<Vec<u8>>) -> Self {
        Self::whole(StatusCode::OK, TEXT, text.into())
    }

    /// What has a format of its own.
    pub fn bytes(bytes: Vec<u8>) -> Self {
        Self::whole(StatusCode::OK, BYTES, bytes)
    }

    /// What Prometheus reads.
    pub fn metrics(text: String) -> Self {
        Self::whole(StatusCode::OK, METRICS, text.into())
    }

    /// JSON lines (see [`crate::LogLine::to_json_line`]), for as long as a sender lives.
    pub fn json_lines(lines: Receiver<Result<Bytes, BrokenOff>>) -> Self {
        Self::stream(JSON_LINES, lines)
    }

    /// Frames, as tcpdump and Wireshark read them; likewise.
    pub fn pcapng(pieces: Receiver<Result<Bytes, BrokenOff>>) -> Self {
        Self::stream(PCAPNG, pieces)
    }

    fn stream(content_type: &'static str, pieces: Receiver<Result<Bytes, BrokenOff>>) -> Self {
        Self {
            status: StatusCode::OK,
            content_type,
            body: AnswerBody::Stream(pieces),
            close: false,
            over: None,
        }
    }

    /// The last answer of its connection. The receiver ends when the peer has closed it as well, which
    /// peers do who have read the answer; or when the server waits for them no longer.
    pub fn last(self) -> (Self, oneshot::Receiver<Infallible>) {
        let (over, told) = oneshot::channel();
        let answer = Self {
            close: true,
            over: Some(over),
            ..self
        };
        (answer, told)
    }

    pub fn refuse(refusal: &Refusal) -> Self {
        let json = serde_json::to_vec(refusal).expect("a refusal has only text keys");
        let close = match refusal.code {
            // Unread bytes of the request's body are still on their way.
            RefusalCode::TooLarge | RefusalCode::TooSlow => true,
            // Strangers, and those who do not speak our language, get no place for longer than one answer.
            RefusalCode::UnknownKey | RefusalCode::NoOwner | RefusalCode::Malformed => true,
            RefusalCode::BadSignature
            | RefusalCode::WrongNode
            | RefusalCode::Replayed
            | RefusalCode::Skipped
            | RefusalCode::NotFound
            | RefusalCode::OverCapacity
            | RefusalCode::PortTaken
            | RefusalCode::Conflict
            | RefusalCode::DiskChanged
            | RefusalCode::MissingChunks
            | RefusalCode::Volatile
            | RefusalCode::LedgerUnread
            | RefusalCode::DiskSilent
            | RefusalCode::Decommissioned
            | RefusalCode::Restarting
            | RefusalCode::Internal => false,
        };
        Self {
            close,
            ..Self::whole(http_status(refusal.code), JSON, json)
        }
    }

    /// What went wrong, if the answer is a refusal's status.
    pub fn status(&self) -> StatusCode {
        self.status
    }

    fn whole(status: StatusCode, content_type: &'static str, body: Vec<u8>) -> Self {
        Self {
            status,
            content_type,
            body: AnswerBody::Whole(Full::new(body.into())),
            close: false,
            over: None,
        }
    }

    pub(crate) fn take_over(&mut self) -> Option<Over> {
        self.over.take()
    }

    pub(crate) fn into_response(self) -> Response<AnswerBody> {
        let mut response = Response::new(self.body);
        *response.status_mut() = self.status;
        response
            .headers_mut()
            .insert(CONTENT_TYPE, HeaderValue::from_static(self.content_type));
        if self.close {
            response
                .headers_mut()
                .insert(CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }
}

impl From<Refusal> for Answer {
    fn from(refusal: Refusal) -> Self {
        Self::refuse(&refusal)
    }
}

/// So that `?` works in a function that returns `Result<Answer, Refusal>`.
impl From<Result<Answer, Refusal>> for Answer {
    fn from(result: Result<Answer, Refusal>) -> Self {
        result.unwrap_or_else(|refusal| Self::refuse(&refusal))
    }
}

/// The HTTP status of a refusal.
pub fn http_status(code: RefusalCode) -> StatusCode {
    match code {
        RefusalCode::Malformed => StatusCode::BAD_REQUEST,
        RefusalCode::UnknownKey | RefusalCode::BadSignature | RefusalCode::NoOwner => {
            StatusCode::FORBIDDEN
        }
        RefusalCode::NotFound => StatusCode::NOT_FOUND,
        RefusalCode::WrongNode => StatusCode::MISDIRECTED_REQUEST,
        RefusalCode::Replayed
        | RefusalCode::Skipped
        | RefusalCode::PortTaken
        | RefusalCode::MissingChunks
        | RefusalCode::Volatile
        | RefusalCode::DiskChanged
        | RefusalCode::Decommissioned
        | RefusalCode::Conflict => StatusCode::CONFLICT,
        RefusalCode::OverCapacity => StatusCode::INSUFFICIENT_STORAGE,
        RefusalCode::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
        RefusalCode::TooSlow => StatusCode::REQUEST_TIMEOUT,
        RefusalCode::Restarting | RefusalCode::LedgerUnread | RefusalCode::DiskSilent => {
            StatusCode::SERVICE_UNAVAILABLE
        }
        RefusalCode::Internal => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

impl HttpBody for AnswerBody {
    type Data = Bytes;
    type Error = BrokenOff;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        match self.get_mut() {
            Self::Whole(body) => Pin::new(body)
                .poll_frame(cx)
                .map_err(|never| match never {}),
            Self::Stream(lines) => {
                Poll::Ready(ready!(lines.poll_recv(cx)).map(|lines| lines.map(Frame::data)))
            }
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(body) => body.size_hint(),
            Self::Stream(_) => SizeHint::default(),
        }
    }
}
