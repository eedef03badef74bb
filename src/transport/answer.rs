//! What a guest answered, and section 9.5 of the runtime protocol.
//!
//! The head is cleaned, the body comes as a stream that drives its own connection and puts it back when it has ended
//! in good order. Invariants: the hard limit and the size bound hold for every byte; a body that is dropped early
//! closes its connection. Failure: [`BodyError`]; nothing follows it.

use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures_util::future::{FutureExt, ready as at_once};
use futures_util::{Stream, StreamExt};
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http_body::{Body as _, Frame};

use super::connection::{Connection, why};
use super::kept::Kept;
use super::logs::{self, LogFiles};
use super::request::stays_here;
use super::{Head, Incoming, Limit, Profile, Target};
use crate::execution::{Body, BodyError};
use crate::headers::{ERRORS, LOG_TRANSPORT, LOGS};

const LOG_ID: HeaderName = HeaderName::from_static("x-open-runtimes-log-id");

/// A head that has arrived and a body that follows.
pub(super) struct Answer {
    pub(super) status: u16,
    headers: HeaderMap,
    pub(super) body: AnswerBody,
}

impl Answer {
    /// `most`: how many bytes the body may have.
    pub(super) fn new(head: Head, limit: Limit, most: Option<u64>, kept: Kept, address: SocketAddr) -> Self {
        let (response, connection) = head;
        let (head, body) = response.into_parts();
        let body = AnswerBody { body, connection, kept, address, limit, most, seen: 0, ended: false };
        Self { status: head.status.as_u16(), headers: head.headers, body }
    }

    /// Cleaned, with its lines, for every profile but v2.
    pub(super) fn incoming(mut self, target: &Target, wanted: bool, head_only: bool) -> Incoming {
        let length = match self.body.body.size_hint().exact() {
            Some(exact) if !head_only => Some(exact),
            _ => {
                self.headers.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok())
            }
        };
        let lines = self.lines(target, wanted);
        // Nothing to wait for: the connection is free at once.
        let body = if self.body.body.is_end_stream() {
            self.body.settle(&mut Context::from_waker(std::task::Waker::noop()));
            Body::Full(Bytes::new())
        } else {
            Body::Stream(self.body.boxed())
        };
        Incoming { status: self.status, headers: clean(&self.headers), length, body, lines }
    }

    fn lines(
        &self,
        target: &Target,
        wanted: bool,
    ) -> futures_util::future::BoxFuture<'static, (Bytes, Bytes)> {
        let none = || at_once((Bytes::new(), Bytes::new())).boxed();
        let in_head = || {
            let decoded = |name| self.headers.get(name).map(|text| logs::url_decode(text.as_bytes()));
            let both = (decoded(LOGS).unwrap_or_default(), decoded(ERRORS).unwrap_or_default());
            at_once((both.0.into(), both.1.into())).boxed()
        };
        match target.profile {
            Profile::V3 if wanted => in_head(),
            Profile::V5 if wanted && self.headers.contains_key(LOG_TRANSPORT) => in_head(),
            Profile::V4 | Profile::V5 => {
                let id = self.headers.get(LOG_ID).and_then(|id| logs::log_id(id.as_bytes()));
                match (id, &target.logs) {
                    (Some(id), Some(folder)) => LogFiles::new(folder, &id).lines(wanted).boxed(),
                    _ => none(),
                }
            }
            Profile::V2 | Profile::V3 | Profile::Port => none(),
        }
    }
}

/// What may leave, in the order it came.
fn clean(headers: &HeaderMap) -> HeaderMap {
    let connection: Vec<&HeaderValue> = headers.get_all(header::CONNECTION).iter().collect();
    let mut cleaned = HeaderMap::with_capacity(headers.len());
    for (name, value) in headers.iter().filter(|(name, _)| !stays_here(name, &connection)) {
        cleaned.append(name, value.clone());
    }
    cleaned
}

/// A body as it comes.
pub(super) struct AnswerBody {
    body: hyper::body::Incoming,
    /// None: it has ended, although pieces may still be on their way here.
    connection: Option<Connection>,
    kept: Kept,
    address: SocketAddr,
    limit: Limit,
    most: Option<u64>,
    seen: u64,
    ended: bool,
}

impl AnswerBody {
    /// The next frame; moves the connection only if none is there yet.
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let frame = Pin::new(&mut self.body).poll_frame(cx);
        if frame.is_ready() {
            return frame;
        }
        if self.connection.as_mut().is_some_and(|connection| connection.poll(cx).is_ready()) {
            self.connection = None;
        }
        Pin::new(&mut self.body).poll_frame(cx)
    }

    /// Puts the connection back after the last frame, if it can be used again.
    fn settle(&mut self, cx: &mut Context<'_>) {
        self.ended = true;
        if let Some(mut connection) = self.connection.take()
            && connection.is_idle(cx)
        {
            self.kept.put(self.address, connection);
        }
    }

    fn fail(&mut self, error: BodyError) -> Poll<Option<Result<Bytes, BodyError>>> {
        self.ended = true;
        self.connection = None;
        Poll::Ready(Some(Err(error)))
    }
}

impl Stream for AnswerBody {
    type Item = Result<Bytes, BodyError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        if this.ended {
            return Poll::Ready(None);
        }
        // First: a guest that always has another byte must not outrun it.
        if this.limit.passed.as_mut().poll(cx).is_ready() {
            return this.fail(BodyError::Late(this.limit.hard));
        }
        loop {
            match ready!(this.poll_frame(cx)) {
                None => {
                    this.settle(cx);
                    return Poll::Ready(None);
                }
                Some(Err(error)) => return this.fail(BodyError::Broken(why(&error))),
                Some(Ok(frame)) => {
                    let Ok(piece) = frame.into_data() else { continue };
                    this.seen = this.seen.saturating_add(piece.len() as u64);
                    return match this.most {
                        Some(most) if this.seen > most => this.fail(BodyError::TooLarge(most)),
                        _ => Poll::Ready(Some(Ok(piece))),
                    };
                }
            }
        }
    }
}
