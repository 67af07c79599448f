//! What a handler answers.
//!
//! Owns: the three kinds of body, and the HTTP status of each refusal.
//! Refuses: headers and statuses of a handler's own.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use http_body_util::Full;
use hyper::body::{Body as HttpBody, Bytes, Frame, SizeHint};
use hyper::header::{CONNECTION, CONTENT_TYPE, HeaderValue};
use hyper::{Response, StatusCode};
use serde::Serialize;
use tokio::sync::mpsc::Receiver;
use types::status::{Refusal, RefusalCode};

const JSON: &str = "application/json";
const TEXT: &str = "text/plain; charset=utf-8";
const JSON_LINES: &str = "application/jsonl";

#[derive(Debug)]
pub struct Answer {
    status: StatusCode,
    content_type: &'static str,
    body: AnswerBody,
    /// The connection ends after this answer: its rest is not worth reading.
    close: bool,
}

#[derive(Debug)]
pub(crate) enum AnswerBody {
    Whole(Full<Bytes>),
    /// Ends when all senders are gone. A receiver that is dropped (the peer went away) shows in
    /// `Sender::closed`.
    Stream(Receiver<Bytes>),
}

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

    /// JSON lines (see [`crate::LogLine::to_json_line`]), for as long as a sender lives.
    pub fn json_lines(lines: Receiver<Bytes>) -> Self {
        let body = AnswerBody::Stream(lines);
        Self {
            status: StatusCode::OK,
            content_type: JSON_LINES,
            body,
            close: false,
        }
    }

    pub fn refuse(refusal: &Refusal) -> Self {
        let json = serde_json::to_vec(refusal).expect("a refusal has only text keys");
        // After these, unread bytes of the request's body are still on their way.
        let close = matches!(refusal.code, RefusalCode::TooLarge | RefusalCode::TooSlow);
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
        }
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
        | RefusalCode::Conflict => StatusCode::CONFLICT,
        RefusalCode::OverCapacity => StatusCode::INSUFFICIENT_STORAGE,
        RefusalCode::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
        RefusalCode::TooSlow => StatusCode::REQUEST_TIMEOUT,
        RefusalCode::Internal => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

impl HttpBody for AnswerBody {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        match self.get_mut() {
            Self::Whole(body) => Pin::new(body).poll_frame(cx),
            Self::Stream(lines) => {
                Poll::Ready(ready!(lines.poll_recv(cx)).map(|line| Ok(Frame::data(line))))
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
