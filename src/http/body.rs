//! The body of an answer: whole, streamed from a function, or from a handler of our own.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

use super::connection::Busy;
use crate::execution::BodyStream;

/// See the module. It also tells the connection's timer when the answer is done.
pub struct AnswerBody {
    kind: Kind,
    busy: Option<Busy>,
}

enum Kind {
    Full(Bytes),
    Stream(BodyStream),
    Own(axum::body::Body),
}

impl AnswerBody {
    /// All of it.
    pub fn full(bytes: Bytes) -> Self {
        Self { kind: Kind::Full(bytes), busy: None }
    }

    /// Pieces from a function.
    pub fn stream(stream: BodyStream) -> Self {
        Self { kind: Kind::Stream(stream), busy: None }
    }

    /// From a handler of our own.
    pub fn own(body: axum::body::Body) -> Self {
        Self { kind: Kind::Own(body), busy: None }
    }

    /// Keeps the connection busy until the body is sent.
    #[must_use]
    pub fn guarded(mut self, busy: Busy) -> Self {
        self.busy = Some(busy);
        self
    }
}

impl Body for AnswerBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        match &mut self.kind {
            Kind::Full(bytes) if bytes.is_empty() => Poll::Ready(None),
            Kind::Full(bytes) => Poll::Ready(Some(Ok(Frame::data(std::mem::take(bytes))))),
            Kind::Stream(stream) => stream
                .as_mut()
                .poll_next(cx)
                .map(|piece| piece.map(|piece| piece.map(Frame::data).map_err(axum::Error::new))),
            Kind::Own(body) => Pin::new(body).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.kind {
            Kind::Full(bytes) => bytes.is_empty(),
            Kind::Stream(_) => false,
            Kind::Own(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            Kind::Full(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Kind::Stream(_) => SizeHint::default(),
            Kind::Own(body) => body.size_hint(),
        }
    }
}
