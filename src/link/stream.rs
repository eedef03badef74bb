//! A response body on its way from a worker to a reader, bounded by credit.
//!
//! The connection's reader task must never wait for one slow client, so it puts pieces here and goes on; what the
//! worker may send is bounded by the credit that the consumer gives back as it takes. Pieces are kept as they came
//! up to a number, then glued together, so that neither many tiny nor few large ones cost more than the window.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};

use bytes::{Bytes, BytesMut};
use futures_util::Stream;

use crate::execution::BodyError;
use crate::link::connection::Shared;
use crate::link::frame::WINDOW;

/// More pieces than this are glued to the last one.
const PIECES: usize = 64;

/// Where the connection's reader puts pieces.
pub(super) struct Incoming(Mutex<State>);

struct State {
    pieces: VecDeque<Bytes>,
    glued: BytesMut,
    buffered: usize,
    end: Option<Result<(), String>>,
    waker: Option<Waker>,
}

impl Incoming {
    pub(super) fn new(first: Bytes) -> Arc<Self> {
        let pieces = if first.is_empty() { VecDeque::new() } else { VecDeque::from([first]) };
        let state = State { pieces, glued: BytesMut::new(), buffered: 0, end: None, waker: None };
        Arc::new(Self(Mutex::new(state)))
    }

    /// Takes a piece; `false`: the worker sent more than it had credit for.
    pub(super) fn push(&self, piece: Bytes) -> bool {
        // The reader takes an empty piece for "none there", so it must never see one.
        if piece.is_empty() {
            return true;
        }
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.buffered += piece.len();
        if state.buffered > WINDOW {
            return false;
        }
        if state.pieces.len() < PIECES && state.glued.is_empty() {
            state.pieces.push_back(piece);
        } else {
            state.glued.extend_from_slice(&piece);
        }
        wake(state);
        true
    }

    /// No more pieces come.
    pub(super) fn end(&self, how: Result<(), String>) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.end.get_or_insert(how);
        wake(state);
    }
}

fn wake(mut state: std::sync::MutexGuard<'_, State>) {
    let waker = state.waker.take();
    drop(state);
    if let Some(waker) = waker {
        waker.wake();
    }
}

/// The reading side. Dropping it before the end cancels the call in the worker.
pub(super) struct ResponseStream {
    pub(super) incoming: Arc<Incoming>,
    pub(super) shared: Arc<Shared>,
    pub(super) call: u32,
    /// Bytes taken but not yet given back as credit.
    pub(super) owed: usize,
    pub(super) first: usize,
    pub(super) done: bool,
    /// It was told to wait once before the error it ends with.
    pub(super) paused: bool,
}

impl Stream for ResponseStream {
    type Item = Result<Bytes, BodyError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.done {
            return Poll::Ready(None);
        }
        let incoming = Arc::clone(&self.incoming);
        let mut state = incoming.0.lock().unwrap_or_else(PoisonError::into_inner);
        let piece = match state.pieces.pop_front() {
            Some(piece) => piece,
            None => state.glued.split().freeze(),
        };
        if !piece.is_empty() {
            // The piece inside RESULT was not paid for with credit.
            let free = self.first.min(piece.len());
            self.first -= free;
            let paid = piece.len() - free;
            state.buffered -= paid.min(state.buffered);
            drop(state);
            self.owed += paid;
            if self.owed >= WINDOW / 4 {
                self.shared.send_credit(self.call, self.owed as u32);
                self.owed = 0;
            }
            return Poll::Ready(Some(Ok(piece)));
        }
        if matches!(state.end, Some(Err(_))) && !self.paused {
            // An error makes the server drop the connection with what it has not sent yet. Being told to wait makes
            // it send what came before.
            drop(state);
            self.paused = true;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        match state.end.take() {
            Some(how) => {
                drop(state);
                self.done = true;
                Poll::Ready(how.err().map(|e| Err(BodyError::Broken(e))))
            }
            None => {
                state.waker = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }
}

impl Drop for ResponseStream {
    fn drop(&mut self) {
        if !self.done {
            self.shared.abandon(self.call);
        }
    }
}
